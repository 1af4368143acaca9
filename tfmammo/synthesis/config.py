"""The configs of a synthesis: what it makes, from which lesions, and where they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

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

RenderMethod = Literal[
    "infilling", "can", "blending", "vanilla", "paste", "poisson", "mixed", "opencv", "opencv_mixed"
]
# Methods with a network, and what their network is given.
NETWORK_INPUTS = {
    "infilling": "tri_label",
    "can": "mask",
    "blending": "pasted",
    "vanilla": "noise",
}
UsedPart = Literal["outline", "size"]  # part of a real lesion that is used, where it is not all
ShapeName = Literal["irregular", "lobular", "oval", "round"]
GRID = 512  # cells along a mammogram's longer side, at most: anatomy is no finer
SMALLEST = 8  # native px; a Gaussian may draw less, and also below 0
LARGEST = 2**26  # pixels of anything that is scaled; the largest mammograms have half as many

# native px that a support reaches beyond its box: above, to the left, below, to the right
Margins = tuple[int, int, int, int]


class Sizes(Frozen):
    """The Gaussian of lesions' heights and widths.

    Deviation from Shen et al., section 4.3: the paper gives mean and variance of height and width
    alone. Here the two are correlated. Drawn independently (correlation 0), they make masses much
    longer and much flatter than real ones.
    """

    unit: str = Field(default="px", pattern="^(px|mm)$")
    """px, or mm where every lesion's spacing was known."""
    height: tuple[PositiveFloat, float]
    """(mean, standard deviation)."""
    width: tuple[PositiveFloat, float]
    """(mean, standard deviation)."""
    correlation: float = Field(default=0.0, ge=-1, le=1)
    """Correlation of height and width."""
    count: int = 0
    """Number of lesions that they were fitted on; 0 where they were given."""

    def draw(
        self, random: np.random.Generator, spacing: tuple[float, float] | None
    ) -> tuple[int, int]:
        """(height, width) in native px of an image of that spacing, each at least SMALLEST."""
        step = spacing if self.unit == "mm" else (1.0, 1.0)
        if step is None:
            raise DataError("its mm per px are not stated, and sizes are in mm")
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


class ShapeConfig(Frozen):
    """Where the shapes of made-up masses come from, one of three; else outlines of `lesions`."""

    gan: str | None = None
    """A mask GAN's model URI."""
    plausible: bool = True
    """Draw the mask GAN again until a mask looks like the training masks, is not a rectangle, and
    does not touch the patch's border; false: every mask that is not empty, as in Shen et al.,
    section 4.3.
    """
    files: Path | None = None
    """A mask picture or a folder of them, one region each."""
    drawn: ShapeName | None = None
    """A shape by name, as the phantom's masses have it."""

    @model_validator(mode="after")
    def _check_one(self) -> ShapeConfig:
        if sum(value is not None for value in (self.gan, self.files, self.drawn)) > 1:
            raise ValueError("give one of gan, files and drawn")
        if not (self.plausible or self.gan):
            raise ValueError("plausible=false is for the masks of gan, which is not given")
        return self


class PatientsConfig(Frozen):
    """Patients on one side of a split, of mammograms and lesions, of sizes and shapes."""

    split_file: Path
    """A split.json of a training run."""
    fold: NonNegativeInt = 0
    """The fold that is held out; for a split by patient."""
    side: Literal["train", "held_out"] = "train"
    """train or held_out."""


class SynthesisConfig(Frozen):
    """A config file of `tfmammo synthesize`."""

    # Recipes list these fields in this order: do not reorder them.
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the set."""
    data: DataConfig = DataConfig()
    """The mammograms to insert into; name, root, and for the phantom phantoms and seed are used."""
    mammograms: Literal["normal", "all"] = "normal"
    """Those called normal, or all. A lesion that is there is never overlapped. The
    annotations list it as one of the mammogram's own. With data.mixed_findings=false, mammograms
    with a finding of uncertain kind are skipped, because annotations can't name it.
    """
    only: tuple[str, ...] = ()
    """Image ids, to use no others."""
    renderer: RenderMethod = "infilling"
    """What makes the intensities. infilling, or can (the generator of train/can.py or
    train/pix2pix.py): from a shape and a size. blending (the network of train/blending.py), or a
    method of baselines.poisson: from a real lesion. vanilla (the network of train/vanilla_gan.py):
    lesion and tissue from noise, as large as a real lesion.
    """
    generator: str | None = None
    """Model URI of that network: a run's folder, an export, models:/NAME@ALIAS."""
    tracking_uri: str | None = None
    """The store of models:/ URIs."""
    lesions: DataConfig | None = None
    """The archive whose lesions are inserted, or give sizes and, where `shapes` is empty, shapes;
    null: that of `data`. kinds, pathologies and mixed_findings are used too.
    """
    sizes: Sizes | None = None
    """The Gaussian of sizes; null fits it on `lesions`."""
    shapes: ShapeConfig = ShapeConfig()
    """Where the shapes of made-up masses come from."""
    resize: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    """Range of the factor that real lesions are scaled by, besides the ratio of mm per px."""
    rotate: float = Field(default=180.0, ge=0, le=180)
    """Degrees, each way, that real lesions are rotated by at most."""
    patients: PatientsConfig | None = None
    """Patients whose mammograms and lesions are used, also for sizes and shapes; null: everybody.
    What networks were trained on, a mask GAN too, is not checked: patients.json lists their
    patients.
    """
    masses: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Fewest and most masses in one mammogram; each number is equally likely."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """(height, width) of each mass, native px, instead of a draw."""
    centre: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """(row, col) of the one mass, native px, instead of a draw by `places`."""
    feather: NonNegativeFloat = 16.0
    """px of the generator's patch over which its change fades beyond the margin. A patch that is
    inserted whole fades over them at its border, with 0 not at all.
    """
    whole_patch: bool = False
    """Whether the patch of an infilling or a blending network replaces the tissue, as in Shen et
    al., section 4.3, and with feather=0 up to a hard border; else its change is added. Patches of a
    CAN or a vanilla GAN always replace the tissue.
    """
    places: Literal["rule", "breast"] = "rule"
    """Where lesions are: by the rule of Shen et al., section 4.3, or anywhere on the breast, as in
    Lin et al., section 3 ("we randomly select a region in a 'normal' breast mammogram").
    """
    count: int = Field(default=100, gt=0, le=10**7)
    """Number of items, spread evenly over the mammograms."""
    seed: NonNegativeInt = 0
    """Seed of all random draws."""
    format: Literal["dicom", "png", "tfrecord"] = "dicom"
    """dicom, png (of 8 or 16 bits, as the source) or tfrecord."""
    pathology: Literal["benign", "malignant"] | None = None
    """Pathology of all masses, where the generator's were all so. Real lesions of no other are
    used then.
    """

    @model_validator(mode="after")
    def _check(self) -> SynthesisConfig:
        if self.masses[0] > self.masses[1]:
            raise ValueError("masses must be two numbers, the smaller first")
        if self.centre and self.masses != (1, 1):
            raise ValueError("centre places one mass; masses must be [1, 1]")
        if self.resize[0] > self.resize[1]:
            raise ValueError("resize must be two factors, the smaller first")
        if self.renderer in NETWORK_INPUTS and not self.generator:
            raise ValueError(f"renderer={self.renderer} needs a generator")
        if not self.feather and not (self.whole_patch or self.renderer in ("can", "vanilla")):
            raise ValueError(
                "feather=0 leaves no room to fade in what a network changes; it is for "
                "whole_patch=true"
            )
        unused = ["shapes", "sizes", "size"] if self.real_lesions else ["resize", "rotate"]
        if self.renderer not in NETWORK_INPUTS:
            unused += ["generator", "tracking_uri", "feather"]
        if self.renderer not in ("infilling", "blending"):
            unused += ["whole_patch"]
        for key in unused:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is not used by renderer={self.renderer}; leave it out")
        return self

    @property
    def real_lesions(self) -> bool:
        """Whether real lesions are drawn, to be inserted or for their size."""
        return self.renderer not in ("infilling", "can")

    @property
    def fits_sizes(self) -> bool:
        """Whether sizes of made-up masses are fitted on real lesions."""
        return not (self.real_lesions or self.sizes or self.size)

    @property
    def lesion_data(self) -> DataConfig:
        """The section of the archive whose lesions are used."""
        return self.lesions or self.data

    @property
    def archive_folders(self) -> tuple[Path, ...]:
        """Folders of archives, whose files' names messages leave out."""
        folders = (self.data.root, self.lesions.root if self.lesions else None)
        return tuple(folder for folder in folders if folder)

    @property
    def of_patients(self) -> str:
        """Which patients are used, for messages; empty for everybody."""
        return f" of patients on the {self.patients.side} side" if self.patients else ""


Target = Literal["mass", "calcification", "removal"]
# the kind of the patches that a generator makes
KINDS: Final = {"mass": "mass", "calcification": "calcification", "removal": "normal"}


class PatchSynthesisConfig(Frozen):
    """A config file of `tfmammo synthesize-patches`."""

    # Recipes list these fields in this order: do not reorder them.
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the set."""
    data: DataConfig = DataConfig()
    """The mammograms; name, root, and for the phantom phantoms and seed are used. All else is as
    each generator was trained.
    """
    generators: dict[Target, str] = Field(min_length=1)
    """mass, calcification and removal, or some of them -> model URI of a run of
    train/contextual.py: its folder, an export, or models:/NAME@ALIAS.
    """
    tracking_uri: str | None = None
    """The store of models:/ URIs."""
    patients: Literal["trained", "all"] = "trained"
    """"trained" uses the patients that the generator was trained on, so that nothing of held-out
    patients reaches what is trained on the patches; "all" uses everybody.
    """
    count: int = Field(default=5000, gt=0, le=10**7)
    """Patches of each kind."""
    tries: PositiveInt = 20
    """Places and random numbers drawn for one patch, until post-processing keeps a lesion."""
    seed: NonNegativeInt = 0
    """Seed of all random draws."""

    @property
    def archive_folders(self) -> tuple[Path, ...]:
        """Folders of archives, whose files' names messages leave out."""
        return (self.data.root,) if self.data.root else ()
