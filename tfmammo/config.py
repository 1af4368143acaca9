"""YAML and --set overrides -> one frozen, typed experiment. The only file that knows YAML.

Every config file has the sections of `Experiment`. The `model` section belongs to the paper's room
(a config class of tfmammo.models or tfmammo.baselines, handed in by the script); unknown keys,
wrong types and missing files are `ConfigError`s of one sentence that names the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tfmammo.errors import ConfigError

# What yaml.safe_load raises: a value that only looks like a date or a number ("2020-99-99") escapes
# as its conversion's error.
TRAINING_CONFIG = "config.yaml"  # the file in which a training keeps its config
_NOT_YAML = (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError)


class Frozen(BaseModel):
    """The base of every config class: immutable; an unknown key is an error, and so is a number
    that is not finite.
    """

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class PreprocessConfig(Frozen):
    """What is done to a mammogram and to the patches of it, in this order; as it stands here,
    nothing.

    On the whole mammogram, its lesions moving with it: remove_marks: letters, tape marks and noise
    outside the breast become 0.
    """

    remove_marks: bool = False
    remove_pectoral: bool = False
    """So does the pectoral muscle on MLO views."""
    flip_right: bool = False
    """Right breasts are mirrored, so that every chest wall is on the left."""
    spacing: float | None = Field(default=None, gt=0)
    """Resample to so many mm per px; needs an archive that states its spacing. On the patch, after
    it is scaled: denoise: sigma of a Gaussian, px.
    """
    denoise: float = Field(default=0.0, ge=0)
    contrast: Literal["none", "equalise", "clahe"] = "none"
    """Histogram equalisation, or CLAHE with clahe_clip and clahe_tiles x clahe_tiles tiles, which
    stretches to the full range.
    """
    clahe_clip: float = Field(default=2.0, gt=0)
    clahe_tiles: PositiveInt = 8


class SamplingConfig(Frozen):
    """Patches at random places and of fixed scale, for data.patches "offset" and "normal".

    Source:
        Wu, Wu and Lotter, Synthesizing lesions using contextual GANs, section 3 (tissue, offset and
        scale).
    """

    count: PositiveInt = 1000
    """How many; fewer where places are skipped."""
    normals: PositiveInt | None = None
    """How many normal ones, where a training takes both; None: as many."""
    tissue: float = Field(default=0.9, ge=0, le=1)
    """The least part of a normal patch that is breast."""
    offset: NonNegativeInt = 128
    """Native px from a random lesion pixel to the patch's centre, at most, along each axis, and
    never more than just short of half the window.
    """
    scale: tuple[float, float] = (0.8, 1.2)
    """A patch is enlarged by a number drawn from this range: its window is size / scale native px.
    """
    normal: Literal["images", "tissue"] = "images"
    """What normal tissue is: "images", of those that the archive calls normal and marks no lesion
    in; "tissue", of any other too whose lesions are all outlined, with no part of them in the
    patch.
    """
    boxes: bool = False
    """Of a lesion that the archive gives no outline but a box of, take the box for it, in the
    patch's mask too.
    """

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be two positive numbers, the smaller first")
        return self


class AddedConfig(Frozen):
    """What joins the training patients' mammograms; nothing here touches those held out."""

    synthetic: Path | None = None
    """A folder of `python -m tfmammo.synthesis`, in DICOM or PNG, of which nobody held out may be
    part.
    """
    count: PositiveInt | None = None
    """The first so many of its mammograms; null: all."""
    copies: NonNegativeInt = 0
    """So many turned, mirrored and scaled copies of training mammograms with a wanted lesion,
    spread evenly over them.
    """
    rotate: float = Field(default=15.0, ge=0, le=180)
    """Degrees, each way, at most."""
    resize: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.1)
    """Range of the factor; every factor and angle is equally likely."""

    @model_validator(mode="after")
    def _consistent(self) -> AddedConfig:
        if self.resize[0] > self.resize[1]:
            raise ValueError("resize must be two factors, the smaller first")
        if self.count and not self.synthetic:
            raise ValueError("count is of the mammograms in synthetic, which is not given")
        return self


class TilesConfig(Frozen):
    """How a detector sees a mammogram in tiles of data.canvas, else of data.size x data.size px.

    They are cut at the mammogram's own resolution, or at preprocess.spacing's, and never scaled; px
    here are its px.
    """

    overlap: PositiveInt = 256
    """px that neighbouring tiles share, at least: no lesion of that many rows and columns is cut in
    all of them.
    """
    empty: NonNegativeInt = 2
    """Tiles of breast without a lesion that training sees of each mammogram, beside one around each
    lesion.
    """


class DataConfig(Frozen):
    """Which mammograms, which patches of them, and which patients are held out."""

    name: str = "phantom"
    """An archive of tfmammo.archives."""
    root: Path | None = None
    """Its folder; None takes the phantom, whatever the name."""
    records: Path | None = None
    """A folder written by `python -m tfmammo.data.build`: its patches are streamed, name and root
    are not read.
    """
    preprocess: PreprocessConfig = PreprocessConfig()
    """See PreprocessConfig."""
    patches: Literal["lesion", "offset", "normal"] = "lesion"
    """"lesion": one around each lesion; "offset": `sampling.count` near random lesion pixels;
    "normal": `sampling.count` of breast tissue without any lesion.
    """
    sampling: SamplingConfig = SamplingConfig()
    kinds: tuple[Literal["mass", "calcification", "asymmetry", "distortion"], ...] = Field(
        default=("mass",), min_length=1
    )
    """Which lesions become patches."""
    mixed_findings: bool = True
    """Keep outlines whose kind the archive does not settle."""
    size: PositiveInt = 256
    """Patch rows and columns, px."""
    canvas: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns, px, that a detector sees of a whole mammogram in place of a square of
    `size`; the mammogram is scaled by one factor, the largest with which it fits, and 0 stands
    below or beside it.
    """
    tiles: TilesConfig | None = None
    """See TilesConfig; None: a detector sees the mammogram at once. canvas and tiles are for
    detectors alone.
    """
    frame: Literal["square", "tight", "loose", "padded", "full"] = "square"
    """What a lesion's patch shows: "square" with context, "tight" the lesion's box, "loose" the box
    doubled in each side, "padded" the box with `padding` native px on every side, "full" the whole
    mammogram; all but square are scaled to a square by two factors.
    """
    context: float = Field(default=1.3, ge=1.0)
    """Side of the square over the box's longer side. CAN states no crop, but its Table I implies
    lesions that fill 0.35 to 0.37 of a patch, (1 - accuracy) / (2 (1 - Dice)); 1.3 gives 0.36 on
    CDD-CESM's masses, 1.5 gives 0.30.
    """
    padding: NonNegativeInt = 100
    """For frame "padded"."""
    pad: bool = False
    """Keep lesions whose crop is larger than the mammogram, with 0 around it; such outlines are
    mostly not of one mass but of skin or of the whole breast, so without it they are left out and
    counted.
    """
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Of the patch after scaling, mapped to 0 and 1."""
    window: tuple[float, float] | None = None
    """Two grey values, 0 to 1, to map instead."""
    split: Literal["patient", "official", "paper"] = "patient"
    """"patient" holds out fold `fold` of `folds`, no patient on both sides; "official" takes the
    archive's own test set; "paper" is CAN's protocol (augment to `paper_samples`, then split off
    `paper_test` at random), which leaks on purpose.
    """
    stratify: Literal["none", "pathology", "shape"] = "none"
    """"pathology": every fold gets its share of each worst known pathology of patients; "shape": of
    each rarest shape of their masses (round, oval, lobular, irregular).
    """
    split_file: Path | None = None
    """A split.json that an earlier run wrote; it decides instead of folds, stratify and seed. It
    must be of the kind that `split` names, `fold` picks one of its folds, and patients that it does
    not know are an error.
    """
    folds: int = Field(default=3, ge=2)
    fold: NonNegativeInt = 0
    paper_samples: PositiveInt = 850
    paper_test: PositiveInt = 150
    added: AddedConfig = AddedConfig()
    """What joins the training side; evaluations refuse it."""
    seed: NonNegativeInt = 0
    """Of split, sampling, copies and phantom."""
    augment: bool = True
    """Rotate by multiples of 90 degrees and flip, image and mask together, anew at every draw.
    Under split "paper" nothing is turned at a draw, whatever this says: the paper's copies are
    fixed, and turned before they are split.
    """
    phantoms: PositiveInt = 48
    """How many mammograms the phantom archive holds."""

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} is not one of the {self.folds} folds 0 to {self.folds - 1}"
            )
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles must be two rising numbers between 0 and 100")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window must be two rising grey values")
        if self.paper_test >= self.paper_samples:
            raise ValueError("paper_test must be less than paper_samples")
        if self.records and (self.canvas or self.tiles):
            raise ValueError(
                "canvas and tiles are for detectors, and records hold patches for other trainings"
            )
        if self.tiles and self.tiles.overlap >= min(self.shape):
            raise ValueError(
                f"tiles.overlap must be less than the tiles' {self.shape[0]} x {self.shape[1]} px "
                "(canvas, else size)"
            )
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols), px, of what a detector sees at once: canvas, else a square of `size`."""
        return self.canvas or (self.size, self.size)

    @property
    def turn_draws(self) -> bool:
        """Whether each training draw is turned anew: `augment`, but never the fixed copies of split
        "paper".
        """
        return self.augment and self.split != "paper"


class TrainingConfig(Frozen):
    """How long, how precise, and how often to save and look.

    Attributes:
        *_every: In steps.
    """

    steps: PositiveInt | None = None
    """Update rounds; None means epochs * epoch_samples / batch_size."""
    epochs: PositiveInt = 300
    epoch_samples: PositiveInt | None = None
    """Draws that make an epoch; None means one per training patch."""
    batch_size: PositiveInt = 1
    """Over all devices."""
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    """"auto" is mixed_bfloat16 on GPUs of compute capability 8.0 and above, mixed_float16 on older
    ones, mixed_bfloat16 on a CPU that has it, else float32.
    """
    deterministic: bool = False
    """Bitwise repeatable, 7-9 % slower on a CPU."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    steps_per_loop: PositiveInt = 10
    """Steps per call into the graph."""
    checkpoint_every: PositiveInt = 500
    validate_every: PositiveInt = 500
    grid_every: PositiveInt = 500
    grid_samples: PositiveInt = 4
    keep: PositiveInt = 2
    """Checkpoints kept beside the best one."""
    initial: str | None = None
    """Start from an exported run, or from models:/NAME@ALIAS, instead of from random weights."""
    jit_compile: bool = False
    """Compile the training step with XLA, which pays on GPUs and halves the speed of a CPU; from
    the same seed XLA draws other random numbers. A model that can't be compiled says why.
    """
    strategy: Literal["auto", "multi_worker"] = "auto"
    """"auto" takes all devices of this machine; "multi_worker" is one of several processes, on one
    machine or many, that TF_CONFIG or Slurm names; each takes its share of every batch. A run may
    go on with another number of them.
    """
    devices: PositiveInt | tuple[str, ...] | None = None
    """How many of this machine's GPUs, or which devices by name: [GPU:1]. null: all GPUs if they
    can share the batch, else one.
    """

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


class TrackingConfig(Frozen):
    """Where MLflow writes."""

    uri: str | None = None
    """An MLflow tracking server or store; None means the environment's MLFLOW_TRACKING_URI, else
    sqlite:///mlflow.db in the current folder.
    """
    experiment: str = "tfmammo"
    parent: str | None = None
    """Id of a run that this one is shown under."""
    register_models: bool = True
    """Make kept checkpoints versions of the registered model tfmammo-NAME."""
    system_metrics: bool = True
    """Sample CPU, memory and GPU use."""


Model = TypeVar("Model")


class Experiment(Frozen, Generic[Model]):
    """A whole config file."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Of the system ("can"); the registered model is tfmammo-NAME."""
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    tracking: TrackingConfig = TrackingConfig()
    model: Model

    def identity(self) -> dict[str, Any]:
        """What a checkpoint depends on, as far as a config tells.

        Not part of it: how long and on how many machines to train, how often to look, where to
        write, and where data lies. Data counts by its content, which the run's folder keeps a hash
        of (train_patches), so that an archive may move.
        """
        content = self.model_dump(mode="json")
        del content["tracking"]
        for key in ("root", "records", "split_file"):
            del content["data"][key]
        del content["data"]["added"]["synthetic"]
        looks = ("checkpoint_every", "validate_every", "grid_every", "grid_samples", "keep")
        for key in ("steps", "epochs", *looks, "jit_compile", "strategy", "devices"):
            del content["training"][key]
        return content

    def fingerprint(self) -> str:
        """Eight hexadecimal digits of `identity()`: equal for runs that may share a folder if their
        data is equal.
        """
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]


def load(
    path: str | Path, overrides: Iterable[str] = (), model: Any = dict[str, Any]
) -> Experiment[Any]:
    """Read a training config.

    Args:
        path: A YAML file.
        overrides: "section.key=value" each, the value in YAML's spelling.
        model: The class of the `model` section; without it the section stays an unchecked dict.

    Returns:
        The frozen experiment.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown or has the wrong type.
    """
    return parse(Experiment[model], path, overrides)


Schema = TypeVar("Schema", bound=BaseModel)


def parse(schema: type[Schema], path: str | Path, overrides: Iterable[str] = ()) -> Schema:
    """Read a YAML file into any config class; see `load`."""
    content = _read(Path(path))
    for override in overrides:
        _override(content, override)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from None


def dump(config: BaseModel) -> str:
    """The config as YAML that `parse` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def is_training_folder(output: Path) -> bool:
    """Whether a training has claimed the folder, by keeping its config there."""
    path = output / TRAINING_CONFIG
    return path.is_file() and path.stat().st_size > 0


def describe(error: ValidationError) -> str:
    """All faults of a config in one sentence: "training.stepz: unknown key"."""
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"]) or "the file"
        if fault["type"] == "extra_forbidden":
            faults.append(f"{key}: unknown key")
        elif fault["type"] == "missing":
            faults.append(f"{key}: missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            # a section, which says nothing shown
            whole = fault["type"] == "value_error" and isinstance(fault["input"], Mapping)
            faults.append(
                f"{key}: {message[0].lower()}{message[1:]}"
                + ("" if whole else f" (got {fault['input']!r:.80})")
            )
    return "; ".join(faults)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds no sections")
    return dict(content)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: must read section.key=value")
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML:
        raise ConfigError(f"--set {override}: the value is not YAML") from None
    section = content
    for part in parts[:-1]:
        inner = section.get(part)
        section[part] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        section = inner
    section[parts[-1]] = value
