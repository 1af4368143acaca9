"""The config of a stress test."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tfmammo.config import DataConfig, Frozen, Statistics
from tfmammo.evaluation.comparison import Name
from tfmammo.metrics.boxes import Criterion
from tfmammo.synthesis.config import NETWORK_INPUTS, RenderMethod

Tissue = Literal["fatty", "dense"]
Place = Literal["central", "peripheral"]
Unit = Literal["mm", "px"]

REMOVAL = "removal"  # in place of a method's name, where a real lesion was removed


class MethodConfig(Frozen):
    """One way to insert a lesion."""

    renderer: Literal[RenderMethod, "drawn"] = "drawn"
    """"drawn": a smooth mass without texture. The others are those of a synthesis; use "infilling"
    for a rectified flow.
    """
    generator: str | None = None
    """Model URI of its network."""
    feather: NonNegativeFloat = 16.0
    """As in a synthesis."""

    @model_validator(mode="after")
    def _check(self) -> MethodConfig:
        if self.renderer == "vanilla":
            raise ValueError("renderer=vanilla draws a lesion's size itself, so it can't be set")
        if (self.renderer in NETWORK_INPUTS) != (self.generator is not None):
            need = "needs a" if self.generator is None else "uses no network, so omit"
            raise ValueError(f"renderer={self.renderer} {need} generator")
        return self


class StressConfig(Statistics):
    """Detectors, the mammograms and lesions that they are tried on, and how hits are counted."""

    data: DataConfig = DataConfig()
    """The mammograms; name, root, kinds, and for the phantom phantoms and seed are used."""
    mammograms: Literal["normal", "all"] = "normal"
    """Insert into normal mammograms or into all. Real lesions are never overlapped."""
    lesions: DataConfig | None = None
    """The archive whose lesions are inserted by methods for real ones; null: that of `data`."""
    detectors: dict[Name, str] = Field(min_length=1)
    """Name -> a run, an export, a SavedModel or models:/NAME@ALIAS; a file FILE.onnx; a URL of
    `tfmammo serve` with a CAD pipeline; or "command: PROGRAM {images} {boxes}".
    """
    methods: dict[Name, MethodConfig] = Field(default={"drawn": MethodConfig()}, min_length=1)
    """Name -> how lesions are inserted."""
    contrasts: tuple[PositiveFloat, ...] = (0.01, 0.02, 0.04, 0.08, 0.16)
    """Mean intensity that a lesion adds inside its outline; the full scale is 1."""
    sizes: tuple[PositiveFloat, ...] = (4.0, 8.0, 16.0)
    """Diameters of the discs that have the lesions' areas, in `unit`."""
    unit: Unit = "mm"
    """Unit of sizes; px where the archive states no mm per px."""
    softness: tuple[float, ...] = (0.0, 0.5)
    """Parts of the lesion's radius over which its margin fades inwards; 0 keeps the method's."""
    tissues: tuple[Tissue, ...] = ("fatty", "dense")
    """Local tissue: darker or brighter than the middle of the same breast."""
    places: tuple[Place, ...] = ("central", "peripheral")
    """More or less than half as deep as the breast's deepest point, from its border."""
    pairs: PositiveInt = 200
    """Pairs of each method, spread evenly over the cells of the grid."""
    removals: NonNegativeInt = 50
    """Real lesions of `data` to remove, at most."""
    controls: bool = True
    """Also insert tissue in place of lesions, see the guide."""
    criterion: Criterion = "centre"
    """What makes a hit, as for evaluate/detection.py."""
    threshold: float = Field(default=0.0, ge=0, lt=1)
    """What IoU or IoR must exceed; "centre" has no threshold."""
    score: float | None = Field(default=None, ge=0, lt=1)
    """A detection counts above this score; null: as `fppi` says."""
    fppi: PositiveFloat = 0.5
    """False positives per mammogram, before insertion, at which each detector works."""
    unseen: DataConfig | None = None
    """Mammograms with lesions that no detector saw, on which recall is compared with the stress
    score; needs three detectors. Patients in a detector's card are skipped, as in `data`.
    """
    batch: PositiveInt = 16
    """Images that a command gets in one folder."""
    timeout: PositiveFloat = 600.0
    """Seconds that a command may take for a batch, or an endpoint for an image."""
    remote: bool = False
    """Whether mammograms may be sent to an endpoint on another machine."""
    worst: NonNegativeInt = 6
    """Pictures of each detector's worst pairs."""
    tracking_uri: str | None = None
    """MLflow's store of models:/ URIs. If set, the test is logged there as a run."""
    samples: PositiveInt = 1000
    """Draws of the bootstraps over patients; a rank correlation uses at most 300."""

    @model_validator(mode="after")
    def _check(self) -> StressConfig:
        for key in ("contrasts", "sizes", "softness", "tissues", "places"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must be different values, at least one")
        if max(self.contrasts) > 1:
            raise ValueError("contrasts are parts of the grey scale, at most 1")
        if not all(0 <= value <= 1 for value in self.softness):
            raise ValueError("softness must be in [0, 1]")
        if REMOVAL in self.methods:
            raise ValueError(f"methods: {REMOVAL} is the name of the removals, not of a method")
        if self.unseen and len(self.detectors) < 3:
            raise ValueError("unseen: a rank correlation needs three detectors at least")
        return self
