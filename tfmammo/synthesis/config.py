"""The configs of synthesis: what is made, of whose lesions, and where it may lie."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tfmammo.config import DataConfig, Frozen
from tfmammo.errors import DataError

Kind = TypeVar("Kind", bound=Frozen)
Painter = Literal["infilling", "can", "blending", "vanilla", "paste", "poisson", "mixed", "opencv", "opencv_mixed"]
# Painters with a network, and what theirs is given.
THROUGH_NETWORKS = {"infilling": "tri_label", "can": "mask", "blending": "pasted", "vanilla": "noise"}
Used = Literal["outline", "size"]  # what of a real lesion is used, where it is not all of it


class ShapeConfig(Frozen):
    """Where the shapes of masses come from: gan, the handle of a mask GAN; files, a mask picture or a folder of them, one region
    each; drawn, a shape by name, as the phantom's masses have it; with none of them the real outlines of `lesions`.
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
    """Whose lesions and mammograms are taken, be lesions set in or sizes and shapes taken from them. split_file: a split.json of a
    training. fold: which of its folds is held out; for a split by patient. side: train or held_out.
    """

    split_file: Path
    fold: NonNegativeInt = 0
    side: Literal["train", "held_out"] = "train"


class SynthesisConfig(Frozen):
    """A config file of `python -m tfmammo.synthesis`.

    data: the mammograms to insert into; name, root, and for the phantom phantoms and seed are used. mammograms: those called
    normal, or all; a lesion that is there is never overlapped, and is written into the annotations as one of the mammogram's own. With
    data.mixed_findings=false a mammogram is not taken that holds one of uncertain kind, which annotations can't say. only: image ids, to
    take no others.
    painter: what makes grey values: infilling, or can (the generator of train/can.py or train/pix2pix.py), of a shape and size; of a
    real lesion the network of train/blending.py, or a method of baselines.poisson; or vanilla, the network of train/vanilla_gan.py,
    which makes lesion and tissue from noise, as large as a real lesion. generator: handle of that network: a training's folder, an
    export, models:/NAME@ALIAS. tracking_uri: the store of the last.
    lesions: the archive whose lesions are set in, or give sizes and, where `shapes` is empty, shapes; null: that of `data`. kinds
    and mixed_findings are used too. sizes: the Gaussian; null fits it on `lesions`. shapes: see ShapeConfig.
    resize, rotate: of real lesions: range of the factor they are scaled by, beside what mm per px ask for, and degrees, each way, that
    they are turned by at most. patients: whose mammograms, and whose lesions, be they set in or sizes and shapes taken from them; see
    PatientsConfig; null: everybody's. A network's own training, a mask GAN's too, is not checked: patients.json says whom it was on.
    masses: how many in one mammogram, from and to; each number is equally likely. size: (height, width) of each, native px,
    instead of a draw. centre: (row, col) of the one mass, native px, instead of a draw. feather: px of the generator's patch over
    which what it changes fades beyond the margin; of a patch that is set in whole, over which it fades out at its border, and 0 for none.
    whole_patch: whether the patch of an infilling or a blending network takes the tissue's place, as in Shen et al., section 4.3,
    and with feather=0 to a hard border; else what it changes is added. A CAN's or vanilla GAN's is always set in whole.
    count: of items; they are spread evenly over the mammograms. seed: of everything that is drawn.
    format: dicom, png (of 8 or 16 bits, as the source) or tfrecord. pathology: of all masses, where the generator's were all so; real
    lesions of no other are taken then.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: DataConfig = DataConfig()
    mammograms: Literal["normal", "all"] = "normal"
    only: tuple[str, ...] = ()
    painter: Painter = "infilling"
    generator: str | None = None
    tracking_uri: str | None = None
    lesions: DataConfig | None = None
    sizes: Sizes | None = None
    shapes: ShapeConfig = ShapeConfig()
    resize: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    rotate: float = Field(default=180.0, ge=0, le=180)
    patients: PatientsConfig | None = None
    masses: tuple[PositiveInt, PositiveInt] = (1, 1)
    size: tuple[PositiveInt, PositiveInt] | None = None
    centre: tuple[NonNegativeInt, NonNegativeInt] | None = None
    feather: NonNegativeFloat = 16.0
    whole_patch: bool = False
    count: PositiveInt = 100
    seed: NonNegativeInt = 0
    format: Literal["dicom", "png", "tfrecord"] = "dicom"
    pathology: Literal["benign", "malignant"] | None = None

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
            raise ValueError("feather=0 leaves no room to fade in what a network changes; it is for whole_patch=true")
        unused: tuple[str, ...] = ("resize", "rotate") if not self.real_lesions else ("shapes", "sizes", "size")
        unused += () if self.painter in THROUGH_NETWORKS else ("generator", "tracking_uri", "feather")
        unused += () if self.painter in ("infilling", "blending") else ("whole_patch",)
        for key in unused:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is not used by painter={self.painter}; leave it out")
        return self

    @property
    def real_lesions(self) -> bool:
        """Whether real lesions are drawn, to be set in or to say how large one is, and not masses made up."""
        return self.painter not in ("infilling", "can")

    @property
    def sources(self) -> SynthesisConfig:
        """Whose lesions may be taken and nothing else: equal for all items, whatever is asked of them, so that archives are read once."""
        chosen = {key: getattr(self, key) for key in ("data", "lesions", "patients", "pathology")}
        return SynthesisConfig(name="sources", painter="paste", **chosen)

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders of this machine that a message may name, and that nobody needs to be told of."""
        roots = (self.data.root, self.lesions.root if self.lesions else None, self.shapes.files.parent if self.shapes.files else None)
        return tuple(root for root in roots if root)

    @property
    def whose(self) -> str:
        """Whose lesions and mammograms are taken, for messages; nothing where everybody's are."""
        return f" of patients on the {self.patients.side} side" if self.patients else ""


GRID = 512  # cells along a mammogram's longer side, at most: anatomy is no finer
SMALLEST = 8  # native px; a Gaussian may draw less, and also below 0
LARGEST = 2**26  # pixels of anything that is scaled; the largest mammograms have half as many

Reach = tuple[int, int, int, int]  # native px that a support reaches beyond its box: above, to the left, below, to the right


class Sizes(Frozen):
    """The Gaussian of lesions' heights and widths.

    unit: px, or mm where every lesion's spacing was known. height, width: (mean, standard deviation). correlation: of the
    two. count: of lesions that they come from; 0 where they were given.
    Source: Shen et al., section 4.3. Departure: it gives mean and variance of height and width alone; drawn apart, as with
    correlation 0, they make masses much longer and much flatter than real ones.
    """

    unit: str = Field(default="px", pattern="^(px|mm)$")
    height: tuple[PositiveFloat, float]
    width: tuple[PositiveFloat, float]
    correlation: float = Field(default=0.0, ge=-1, le=1)
    count: int = 0

    def draw(self, random: np.random.Generator, spacing: tuple[float, float] | None) -> tuple[int, int]:
        """(height, width) in native px of an image of that spacing, each at least SMALLEST.

        Raises:   DataError: sizes are in mm and the spacing is not stated, or they are too small to be drawn.
        """
        if self.unit == "mm" and spacing is None:
            raise DataError("its mm per px are not stated, and sizes are in mm")
        step = spacing if self.unit == "mm" and spacing else (1.0, 1.0)
        for _ in range(100):
            first, second = random.standard_normal(2)
            second = self.correlation * first + (1 - self.correlation**2) ** 0.5 * second
            size = round((self.height[0] + self.height[1] * first) / step[0]), round((self.width[0] + self.width[1] * second) / step[1])
            if min(size) >= SMALLEST:
                return size
        raise DataError(f"sizes of {self.height[0]:g} x {self.width[0]:g} {self.unit} are hardly ever {SMALLEST} px")


Target = Literal["mass", "calcification", "removal"]
KINDS: Final[dict[str, str]] = {"mass": "mass", "calcification": "calcification", "removal": "normal"}  # what a generator makes


class PatchSynthesisConfig(Frozen):
    """A config file of `python -m tfmammo.synthesis.patches`.

    data: the mammograms; name, root, and for the phantom phantoms and seed are used, all else is as each generator was trained.
    generators: mass, calcification and removal, or some of them -> the handle of a run of train/contextual.py, an export, or
    models:/NAME@ALIAS. tracking_uri: the store of the last. patients: "trained" takes those the generator was trained on, so
    that nothing of those held out reaches what is trained on the patches; "all" takes all. count: patches of each kind.
    tries: places and random numbers drawn for one patch, until post-processing keeps what the generator makes. seed: of all draws.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: DataConfig = DataConfig()
    generators: dict[Target, str] = Field(min_length=1)
    tracking_uri: str | None = None
    patients: Literal["trained", "all"] = "trained"
    count: PositiveInt = 5000
    tries: PositiveInt = 20
    seed: NonNegativeInt = 0
