"""The sections of a training config, and how a whole one is read.

Every training config has the sections of `Experiment`. Its `model` section has the config class of
the paper's model (of tfmammo.models or tfmammo.baselines), which the script passes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tfmammo.config.parsing import Frozen, parse
from tfmammo.errors import ConfigError


class PreprocessConfig(Frozen):
    """How mammograms and their patches are preprocessed, in this order; by default, not at all.

    remove_marks to spacing change the whole mammogram, and its lesions move with it. denoise to
    clahe_tiles change a patch after it is scaled.
    """

    remove_marks: bool = False
    """Set letters, tape marks and noise outside the breast to 0."""
    remove_pectoral: bool = False
    """Set the pectoral muscle on MLO views to 0."""
    flip_right: bool = False
    """Mirror right breasts, so that every chest wall is on the left."""
    spacing: float | None = Field(default=None, gt=0)
    """Resample to this many mm per px; needs an archive that states its spacing. null: don't."""
    denoise: float = Field(default=0.0, ge=0)
    """Sigma of a Gaussian filter, px; 0: none."""
    contrast: Literal["none", "equalise", "clahe"] = "none"
    """"equalise": histogram equalisation; "clahe": contrast-limited adaptive equalisation, which
    stretches to the full range.
    """
    clahe_clip: float = Field(default=2.0, gt=0)
    """Clip limit of CLAHE."""
    clahe_tiles: PositiveInt = 8
    """Tiles of CLAHE along each side of a patch."""


class SamplingConfig(Frozen):
    """Patches at random places, for data.patches "offset" and "normal".

    Source:
        Wu, Wu and Lotter, Synthesizing lesions using contextual GANs, section 3 (tissue, offset and
        scale).
    """

    count: PositiveInt = 1000
    """Number of patches; fewer if places are skipped."""
    normals: PositiveInt | None = None
    """Number of normal patches in a run that takes lesions too; null: as many as `count`."""
    tissue: float = Field(default=0.9, ge=0, le=1)
    """Smallest share of a normal patch that is breast."""
    lesion_tissue: float = Field(default=0.9, ge=0, le=1)
    """Smallest share of a patch near a lesion that is breast; 0: any. The paper may mean normal
    patches alone.
    """
    offset: NonNegativeInt = 128
    """Largest distance along each axis, native px, from a random lesion pixel to the patch's
    centre. It is cut to just below half the window.
    """
    scale: tuple[float, ...] | None = (0.8, 1.2)
    """Range from which each patch's enlargement is drawn: its window is size / scale native px.
    More than two numbers are equidistant quantiles of the distribution. null, for blending: those
    of the lesions' windows.
    """
    normal: Literal["images", "tissue"] = "images"
    """Where normal tissue comes from. "images": mammograms that the archive calls normal and marks
    no lesion in; "tissue": also mammograms whose lesions all have outlines, outside of those.
    """
    boxes: bool = False
    """Take a lesion's box as its mask if the archive gives no outline."""

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        scale = self.scale
        if scale is not None and (len(scale) < 2 or scale[0] <= 0 or list(scale) != sorted(scale)):
            raise ValueError("scale must be two positive numbers, the smaller first, or more")
        return self

    def get_scale(self) -> tuple[float, ...]:
        """Return scale.

        Raises:
            ConfigError: It is null.
        """
        if self.scale is None:
            raise ConfigError(
                "data.sampling.scale: null takes windows as large as the lesions', which only "
                "blending does; set two numbers"
            )
        return self.scale


class AddedConfig(Frozen):
    """Extra training data; the held-out patients stay as they are."""

    synthetic: Path | None = None
    """A folder of `tfmammo synthesize`, in DICOM or PNG. No held-out patient may have a
    part in it.
    """
    count: PositiveInt | None = None
    """Take the first mammograms of `synthetic`, this many; null: all."""
    copies: NonNegativeInt = 0
    """Number of rotated, mirrored and scaled copies of training mammograms with a wanted lesion,
    spread evenly over them.
    """
    rotate: float = Field(default=15.0, ge=0, le=180)
    """Largest rotation of a copy either way, degrees; every angle is equally likely."""
    resize: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.1)
    """Range of a copy's scale factor; every factor is equally likely."""

    @model_validator(mode="after")
    def _consistent(self) -> AddedConfig:
        if self.resize[0] > self.resize[1]:
            raise ValueError("resize must be two factors, the smaller first")
        if self.count and not self.synthetic:
            raise ValueError("count is of the mammograms in synthetic, which is not given")
        return self


class TilesConfig(Frozen):
    """How a detector sees a mammogram in tiles of data.canvas, else of data.size x data.size px.

    Tiles have the mammogram's own resolution, or that of preprocess.spacing, and are never scaled;
    px here are its px.
    """

    overlap: PositiveInt = 256
    """Smallest overlap of neighbouring tiles, px. A lesion no larger than this is whole in at least
    one tile.
    """
    empty: NonNegativeInt = 2
    """Tiles without a lesion that training sees of each mammogram, besides one around each lesion.
    """


class DataConfig(Frozen):
    """Which mammograms, which patches of them, and which patients are held out."""

    name: str = "phantom"
    """An archive of tfmammo.archives."""
    root: Path | None = None
    """The archive's folder; null takes the phantom, whatever the name."""
    records: Path | None = None
    """A folder written by `tfmammo build`. Its patches are streamed, and name and
    root are not read.
    """
    preprocess: PreprocessConfig = PreprocessConfig()
    """How mammograms and patches are preprocessed."""
    patches: Literal["lesion", "offset", "normal"] = "lesion"
    """"lesion": one around each lesion; "offset": `sampling.count` near random lesion pixels;
    "normal": `sampling.count` of breast tissue without any lesion.
    """
    sampling: SamplingConfig = SamplingConfig()
    """How "offset" and "normal" patches are drawn."""
    kinds: tuple[Literal["mass", "calcification", "asymmetry", "distortion"], ...] = Field(
        default=("mass",), min_length=1
    )
    """Kinds of lesions that become patches."""
    pathologies: tuple[Literal["benign", "malignant"], ...] | None = Field(
        default=None, min_length=1
    )
    """Pathologies of the lesions that become patches; null: any, and unknown ones too."""
    mixed_findings: bool = True
    """Keep outlines whose kind the archive leaves open."""
    size: int = Field(default=256, gt=0, le=2**14)
    """Patch rows and columns, px."""
    canvas: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns, px, that a detector sees of a whole mammogram; null: size x size. The
    mammogram is scaled by the largest factor with which it fits, and padded with 0 below or beside.
    """
    tiles: TilesConfig | None = None
    """Show a detector tiles; null: the whole mammogram at once. canvas and tiles are for detectors
    only.
    """
    frame: Literal["square", "tight", "loose", "padded", "full"] = "square"
    """Crop mode of a lesion's patch. "square": a square with `context`; "tight": the lesion's box;
    "loose": the box with doubled sides; "padded": the box with `padding` on every side; "full": the
    whole mammogram. All but "square" are scaled to a square by two factors.
    """
    context: float = Field(default=1.3, ge=1.0)
    """Side of the square over the box's longer side. CAN states no crop, but its Table I implies
    lesions that fill 0.35 to 0.37 of a patch, (1 - accuracy) / (2 (1 - Dice)); 1.3 gives 0.36 on
    CDD-CESM's masses, 1.5 gives 0.30.
    """
    padding: NonNegativeInt = 100
    """Margin of frame "padded", native px."""
    pad: bool = False
    """Keep lesions whose crop is larger than the mammogram, padded with 0. By default they are
    skipped and counted, because most such outlines are of skin or of the whole breast.
    """
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles of a scaled patch that are mapped to 0 and 1."""
    window: tuple[float, float] | None = None
    """Two intensities in [0, 1] that are mapped to 0 and 1 instead of `percentiles`."""
    split: Literal["patient", "official", "paper"] = "patient"
    """"patient": hold out fold `fold` of `folds`, with no patient in both subsets; "official": the
    archive's own test set; "paper": CAN's protocol (augment to `paper_samples`, then split off
    `paper_test` at random), which leaks on purpose.
    """
    stratify: Literal["none", "pathology", "shape"] = "none"
    """"pathology": every fold gets its share of the patients of each worst known pathology;
    "shape": of each rarest shape of their masses (round, oval, lobular, irregular).
    """
    split_file: Path | None = None
    """A split.json of an earlier run, which decides instead of folds, stratify and seed. It must be
    of the kind that `split` names. `fold` picks one of its folds; an unknown patient is an error.
    """
    folds: int = Field(default=3, ge=2)
    """Number of folds of split "patient"."""
    fold: NonNegativeInt = 0
    """The fold that is held out, counted from 0."""
    paper_samples: PositiveInt = 850
    """Patches after augmentation of split "paper"."""
    paper_test: PositiveInt = 150
    """Patches that split "paper" holds out."""
    added: AddedConfig = AddedConfig()
    """Extra training data; evaluations refuse it."""
    seed: NonNegativeInt = 0
    """Seed of split, sampling, copies and phantom."""
    augment: bool = True
    """Rotate by multiples of 90 degrees and flip, image and mask together, anew at every draw. No
    effect under split "paper", whose fixed copies are augmented before they are split.
    """
    phantoms: int = Field(default=48, gt=0, le=10**6)
    """Number of mammograms in the phantom archive."""

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.split_file is None and self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} is not one of the {self.folds} folds 0 to {self.folds - 1}"
            )
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles must be two rising numbers between 0 and 100")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window must be two rising intensities")
        if self.paper_test >= self.paper_samples:
            raise ValueError("paper_test must be less than paper_samples")
        if self.records and (self.canvas or self.tiles):
            raise ValueError(
                "canvas and tiles are for detectors, and records hold patches for other models"
            )
        if self.tiles and self.tiles.overlap >= min(self.shape):
            raise ValueError(
                f"tiles.overlap must be less than the tiles' {self.shape[0]} x {self.shape[1]} px "
                "(canvas, else size)"
            )
        return self

    @property
    def archive_name(self) -> str:
        """The name of what is really read.

        It is the folder of records, or the archive, or the phantom where no data.root is given.
        """
        if self.records:
            return self.records.name
        return self.name if self.root else "phantom"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, px, of what a detector sees at once: canvas, else size x size."""
        return self.canvas or (self.size, self.size)

    @property
    def turn_draws(self) -> bool:
        """Whether each training draw is augmented anew; never under split "paper"."""
        return self.augment and self.split != "paper"


class TrainingConfig(Frozen):
    """How long to train, on what, and how often to save and validate."""

    steps: PositiveInt | None = None
    """Update rounds; null: epochs * epoch_samples / (batch_size * accumulate)."""
    epochs: PositiveInt = 300
    """Epochs, if `steps` is null."""
    epoch_samples: PositiveInt | None = None
    """Draws in an epoch; null: one per training patch."""
    batch_size: int = Field(default=1, gt=0, le=2**16)
    """Patches of a batch, over all devices."""
    accumulate: int = Field(default=1, gt=0, le=2**16)
    """Batches of a step. Every network is updated once, by the mean of their gradients, as if by
    one large batch; a loss or a normalisation over a batch still sees one of them. Of several
    networks, only the last batch meets the others' new weights. Memory is that of one batch.
    """
    exchange: Literal["float32", "bfloat16"] = "float32"
    """The numbers in which devices and workers exchange gradients. bfloat16 halves what they send
    and keeps three digits of each gradient; sums and weights stay float32.
    """
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of weights, order of draws and augmentation."""
    initial: str | None = None
    """Start from the weights of an exported run, or of models:/NAME@ALIAS, instead of random ones.
    """
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""
    validate_every: PositiveInt = 500
    """Steps between validations."""
    grid_every: PositiveInt = 500
    """Steps between image grids."""
    grid_samples: PositiveInt = 4
    """Rows of an image grid."""
    keep: PositiveInt = 2
    """Checkpoints that are kept besides the best one."""
    devices: PositiveInt | tuple[str, ...] | None = None
    """How many of this machine's GPUs, or which devices by name: [GPU:1]. null: all GPUs if they
    can share the batch, else one.
    """
    strategy: Literal["auto", "multi_worker"] = "auto"
    """"auto": this process alone, on `devices`. "multi_worker": this process is one of several, on
    one machine or many, that TF_CONFIG or Slurm names; each takes its share of every batch. A run
    may resume with another number of them.
    """
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    """"auto": mixed_bfloat16 on GPUs of compute capability 8.0 and above, mixed_float16 on older
    ones, mixed_bfloat16 on a CPU that has it, else float32.
    """
    steps_per_loop: PositiveInt = 10
    """Steps per call into the graph."""
    jit_compile: bool = False
    """Compile the training step with XLA, which pays on GPUs and halves the speed of a CPU. A model
    that can't be compiled says why.
    """
    deterministic: bool = False
    """Make a run bitwise repeatable; 7-9 % slower on a CPU."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if (
            self.devices == ()
            or isinstance(self.devices, tuple)
            and len(set(self.devices)) < len(self.devices)
        ):
            raise ValueError("devices must name one device or more, each once")
        if self.devices and self.strategy == "multi_worker":
            raise ValueError("devices are of one process; of a worker CUDA_VISIBLE_DEVICES chooses")
        return self


class Statistics(Frozen):
    """How the intervals and tests of an evaluation are made."""

    samples: PositiveInt = 10_000
    """Draws of the bootstrap and of the permutation test."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of intervals."""
    seed: NonNegativeInt = 0
    """Seed of all draws."""

    @property
    def draws(self) -> tuple[int, int, float]:
        """Samples, seed and level, in the order in which all tests take them."""
        return self.samples, self.seed, self.level


class TrackingConfig(Frozen):
    """Where MLflow writes."""

    uri: str | None = None
    """An MLflow tracking server or store; null: the environment's MLFLOW_TRACKING_URI, else
    sqlite:///mlflow.db in the current folder.
    """
    experiment: str = "tfmammo"
    """The experiment in MLflow that runs belong to."""
    parent: str | None = None
    """Id of the run that this one is shown under; null: none."""
    register_models: bool = True
    """Make exports versions of the registered model tfmammo-NAME."""
    system_metrics: bool = True
    """Sample CPU, memory and GPU use."""


Model = TypeVar("Model")


class Experiment(Frozen, Generic[Model]):
    """A whole config file of a training run."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """The system's name ("can"); the registered model is tfmammo-NAME."""
    data: DataConfig = DataConfig()
    """Which mammograms, which patches of them, and which patients are held out."""
    training: TrainingConfig = TrainingConfig()
    """How long to train, on what, and how often to save and validate."""
    tracking: TrackingConfig = TrackingConfig()
    """Where MLflow writes."""
    model: Model
    """The model's own config, of its paper's values."""

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint depends on, as far as a config tells.

        It leaves out how long and on how many machines to train, how often to save and validate,
        where to write, and where data is. Data counts by its content, of which the run's folder
        keeps hashes (train_patches, held_out_patches), so that an archive may move.
        """
        content = self.model_dump(mode="json")
        del content["tracking"]
        for key in ("root", "records", "split_file"):
            del content["data"][key]
        del content["data"]["added"]["synthetic"]
        length = ("steps", "epochs", "epoch_samples")
        intervals = ("checkpoint_every", "validate_every", "grid_every", "grid_samples", "keep")
        devices = ("jit_compile", "strategy", "devices", "steps_per_loop")
        for key in (*length, *intervals, *devices):
            del content["training"][key]
        return content

    def fingerprint(self) -> str:
        """Hash `identity()` to eight hexadecimal digits.

        They are equal for runs that may share a folder if their data is equal.
        """
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]


def load(
    path: str | Path, overrides: Iterable[str] = (), model: Any = dict[str, Any]
) -> Experiment[Any]:
    """Read a training config.

    Args:
        path: A YAML file, or the bare name of a shipped config ("can"). A file of that name wins.
        overrides: "section.key=value" each, the value in YAML's spelling.
        model: The class of the `model` section; without it the section stays an unchecked dict.

    Returns:
        The frozen experiment.

    Raises:
        ConfigError: The file is missing or no YAML, or a key is unknown or has the wrong type.

    Examples:
        >>> experiment = load("configs/quickstart.yaml", ["training.steps=3"])
        >>> experiment.name, experiment.training.steps
        ('quickstart', 3)
    """
    return parse(Experiment[model], path, overrides)
