"""The configs of synthesis: what is made, of whose lesions, and where it may lie."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tfmammo.config import DataConfig, Frozen
from tfmammo.errors import DataError

Kind = TypeVar("Kind", bound=Frozen)
Painter = Literal[
    "infilling", "can", "blending", "vanilla", "paste", "poisson", "mixed", "opencv", "opencv_mixed"
]
# Painters with a network, and what theirs is given.
THROUGH_NETWORKS = {
    "infilling": "tri_label",
    "can": "mask",
    "blending": "pasted",
    "vanilla": "noise",
}
Used = Literal["outline", "size"]  # what of a real lesion is used, where it is not all of it


class ShapeConfig(Frozen):
    """Where the shapes of masses come from: gan, the handle of a mask GAN; files, a mask picture or
    a folder of them, one region each; drawn, a shape by name, as the phantom's masses have it; with
    none of them the real outlines of `lesions`.
    """

    gan: str | None = None
    files: Path | None = None
    drawn: Literal["irregular", "lobular", "oval", "round"] | None = None

    @model_validator(mode="after")
    def _one(self) -> ShapeConfig:
        if sum(value is not None for value in (self.gan, self.files, self.drawn)) > 1:
            raise ValueError("give one of gan, files and drawn")
        return self


class PatientsConfig(Frozen):
    """Whose lesions and mammograms are taken, be lesions set in or sizes and shapes taken from
    them.
    """

    split_file: Path
    """A split.json of a training."""
    fold: NonNegativeInt = 0
    """Which of its folds is held out; for a split by patient."""
    side: Literal["train", "held_out"] = "train"
    """Train or held_out."""


class SynthesisConfig(Frozen):
    """A config file of `python -m tfmammo.synthesis`."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: DataConfig = DataConfig()
    """The mammograms to insert into; name, root, and for the phantom phantoms and seed are used."""
    mammograms: Literal["normal", "all"] = "normal"
    """Those called normal, or all; a lesion that is there is never overlapped, and is written into
    the annotations as one of the mammogram's own. With data.mixed_findings=false a mammogram is not
    taken that holds one of uncertain kind, which annotations can't say.
    """
    only: tuple[str, ...] = ()
    """Image ids, to take no others."""
    painter: Painter = "infilling"
    """What makes grey values: infilling, or can (the generator of train/can.py or
    train/pix2pix.py), of a shape and size; of a real lesion the network of train/blending.py, or a
    method of baselines.poisson; or vanilla, the network of train/vanilla_gan.py, which makes lesion
    and tissue from noise, as large as a real lesion.
    """
    generator: str | None = None
    """Handle of that network: a training's folder, an export, models:/NAME@ALIAS."""
    tracking_uri: str | None = None
    """The store of the last."""
    lesions: DataConfig | None = None
    """The archive whose lesions are set in, or give sizes and, where `shapes` is empty, shapes;
    null: that of `data`. kinds and mixed_findings are used too.
    """
    sizes: Sizes | None = None
    """The Gaussian; null fits it on `lesions`."""
    shapes: ShapeConfig = ShapeConfig()
    """See ShapeConfig."""
    resize: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    """Of real lesions: range of the factor they are scaled by, beside what mm per px ask for, and
    degrees, each way, that they are turned by at most.
    """
    rotate: float = Field(default=180.0, ge=0, le=180)
    """Of real lesions: range of the factor they are scaled by, beside what mm per px ask for, and
    degrees, each way, that they are turned by at most.
    """
    patients: PatientsConfig | None = None
    """Whose mammograms, and whose lesions, be they set in or sizes and shapes taken from them; see
    PatientsConfig; null: everybody's. A network's own training, a mask GAN's too, is not checked:
    patients.json says whom it was on.
    """
    masses: tuple[PositiveInt, PositiveInt] = (1, 1)
    """How many in one mammogram, from and to; each number is equally likely."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """(height, width) of each, native px, instead of a draw."""
    centre: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """(row, col) of the one mass, native px, instead of a draw."""
    feather: NonNegativeFloat = 16.0
    """px of the generator's patch over which what it changes fades beyond the margin; of a patch
    that is set in whole, over which it fades out at its border, and 0 for none.
    """
    whole_patch: bool = False
    """Whether the patch of an infilling or a blending network takes the tissue's place, as in Shen
    et al., section 4.3, and with feather=0 to a hard border; else what it changes is added. A CAN's
    or vanilla GAN's is always set in whole.
    """
    count: PositiveInt = 100
    """Of items; they are spread evenly over the mammograms."""
    seed: NonNegativeInt = 0
    """Of everything that is drawn."""
    format: Literal["dicom", "png", "tfrecord"] = "dicom"
    """Dicom, png (of 8 or 16 bits, as the source) or tfrecord."""
    pathology: Literal["benign", "malignant"] | None = None
    """Of all masses, where the generator's were all so; real lesions of no other are taken then."""

    @model_validator(mode="after")
    def _consistent(self) -> SynthesisConfig:
        if self.masses[0] > self.masses[1]:
            raise ValueError("masses must be two numbers, the smaller first")
        if self.centre and self.masses != (1, 1):
            raise ValueError("centre places one mass; masses must be [1, 1]")
        if self.resize[0] > self.resize[1]:
            raise ValueError("resize must be two factors, the smaller first")
        if self.painter in THROUGH_NETWORKS and not self.generator:
            raise ValueError(f"painter={self.painter} needs a generator")
        if not self.feather and not (self.whole_patch or self.painter in ("can", "vanilla")):
            raise ValueError(
                "feather=0 leaves no room to fade in what a network changes; it is for "
                "whole_patch=true"
            )
        unused: tuple[str, ...] = (
            ("resize", "rotate") if not self.real_lesions else ("shapes", "sizes", "size")
        )
        unused += (
            () if self.painter in THROUGH_NETWORKS else ("generator", "tracking_uri", "feather")
        )
        unused += () if self.painter in ("infilling", "blending") else ("whole_patch",)
        for key in unused:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is not used by painter={self.painter}; leave it out")
        return self

    @property
    def real_lesions(self) -> bool:
        """Whether real lesions are drawn, to be set in or to say how large one is, and not masses
        made up.
        """
        return self.painter not in ("infilling", "can")

    @property
    def sources(self) -> SynthesisConfig:
        """Whose lesions may be taken and nothing else: equal for all items, whatever is asked of
        them, so that archives are read once.
        """
        chosen = {key: getattr(self, key) for key in ("data", "lesions", "patients", "pathology")}
        return SynthesisConfig(name="sources", painter="paste", **chosen)

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders of this machine that a message may name, and that nobody needs to be told of."""
        roots = (
            self.data.root,
            self.lesions.root if self.lesions else None,
            self.shapes.files.parent if self.shapes.files else None,
        )
        return tuple(root for root in roots if root)

    @property
    def whose(self) -> str:
        """Whose lesions and mammograms are taken, for messages; nothing where everybody's are."""
        return f" of patients on the {self.patients.side} side" if self.patients else ""


GRID = 512  # cells along a mammogram's longer side, at most: anatomy is no finer
SMALLEST = 8  # native px; a Gaussian may draw less, and also below 0
LARGEST = 2**26  # pixels of anything that is scaled; the largest mammograms have half as many

# native px that a support reaches beyond its box: above, to the left, below, to the right
Reach = tuple[int, int, int, int]


class Sizes(Frozen):
    """The Gaussian of lesions' heights and widths.

    correlation 0, they make masses much longer and much flatter than real ones.

    Departure:
        It gives mean and variance of height and width alone; drawn apart, as with.

    Source:
        Shen et al., section 4.3.
    """

    unit: str = Field(default="px", pattern="^(px|mm)$")
    """px, or mm where every lesion's spacing was known."""
    height: tuple[PositiveFloat, float]
    """(mean, standard deviation)."""
    width: tuple[PositiveFloat, float]
    """(mean, standard deviation)."""
    correlation: float = Field(default=0.0, ge=-1, le=1)
    """Of the two."""
    count: int = 0
    """Of lesions that they come from; 0 where they were given."""

    def draw(
        self, random: np.random.Generator, spacing: tuple[float, float] | None
    ) -> tuple[int, int]:
        """(height, width) in native px of an image of that spacing, each at least SMALLEST.

        Raises:
            DataError: Sizes are in mm and the spacing is not stated, or they are too small to be
                drawn.
        """
        if self.unit == "mm" and spacing is None:
            raise DataError("its mm per px are not stated, and sizes are in mm")
        step = spacing if self.unit == "mm" and spacing else (1.0, 1.0)
        for _ in range(100):
            first, second = random.standard_normal(2)
            second = self.correlation * first + (1 - self.correlation**2) ** 0.5 * second
            size = (
                round((self.height[0] + self.height[1] * first) / step[0]),
                round((self.width[0] + self.width[1] * second) / step[1]),
            )
            if min(size) >= SMALLEST:
                return size
        raise DataError(
            f"sizes of {self.height[0]:g} x {self.width[0]:g} {self.unit} are hardly ever "
            f"{SMALLEST} px"
        )


Target = Literal["mass", "calcification", "removal"]
# what a generator makes
KINDS: Final[dict[str, str]] = {
    "mass": "mass",
    "calcification": "calcification",
    "removal": "normal",
}


class PatchSynthesisConfig(Frozen):
    """A config file of `python -m tfmammo.synthesis.patches`."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: DataConfig = DataConfig()
    """The mammograms; name, root, and for the phantom phantoms and seed are used, all else is as
    each generator was trained.
    """
    generators: dict[Target, str] = Field(min_length=1)
    """Mass, calcification and removal, or some of them -> the handle of a run of
    train/contextual.py, an export, or models:/NAME@ALIAS.
    """
    tracking_uri: str | None = None
    """The store of the last."""
    patients: Literal["trained", "all"] = "trained"
    """"trained" takes those the generator was trained on, so that nothing of those held out reaches
    what is trained on the patches; "all" takes all.
    """
    count: PositiveInt = 5000
    """Patches of each kind."""
    tries: PositiveInt = 20
    """Places and random numbers drawn for one patch, until post-processing keeps what the generator
    makes.
    """
    seed: NonNegativeInt = 0
    """Of all draws."""
