"""What `import tfmammo` offers to scripts and notebooks.

Each function calls what the commands call. Images are NumPy arrays, float32 [rows, cols, 1] or [n,
rows, cols, 1] in [0, 1]. A model goes by its handle, as in every command: the folder of a run,
an export, a SavedModel in it, `runs:/ID/PLACE`, or `models:/NAME@ALIAS`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
from pydantic import ValidationError

from tfmammo import archives, cli
from tfmammo import config as configuration
from tfmammo.config import DataConfig, Frozen, format_overrides
from tfmammo.config import load as load_config
from tfmammo.data import extraction, splits
from tfmammo.data.patches import Patch, Patches
from tfmammo.detection.detections import Detector
from tfmammo.errors import ConfigError, ExportError, TfmammoError, TrainingError
from tfmammo.evaluation import segmentation
from tfmammo.evaluation.realism import make_tri_labels
from tfmammo.inference.predict import predict, predict_files
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.metrics.segmentation import per_image as score_masks
from tfmammo.metrics.summary import Table
from tfmammo.nn.memory import estimate_memory
from tfmammo.studies.systems import MODELS, make_schema
from tfmammo.synthesis.config import NETWORK_INPUTS, RenderMethod, ShapeName
from tfmammo.synthesis.editor import (
    Editor,
    EditorConfig,
    EditRequest,
    EditResult,
    open_mammogram,
)
from tfmammo.synthesis.generators import find_renderers
from tfmammo.tracking import export, models
from tfmammo.training import script

__all__ = [
    "DataConfig",
    "Detector",
    "EditResult",
    "Lesion",
    "Mammogram",
    "Model",
    "Patch",
    "Patches",
    "Skipped",
    "Table",
    "TfmammoError",
    "augment",
    "estimate_memory",
    "evaluate",
    "insert_lesion",
    "load",
    "load_config",
    "make_patches",
    "open_archive",
    "open_mammogram",
    "predict",
    "predict_files",
    "remove_lesion",
    "score_masks",
    "split_patches",
    "train",
]

Place = tuple[int, int]
Config = TypeVar("Config", bound=Frozen)


def open_archive(
    name: str,
    root: str | Path | None = None,
    *,
    skipped: Skipped | None = None,
    phantoms: int = 48,
    seed: int = 0,
) -> list[Mammogram]:
    """Open an archive as records; no pixel is read.

    Args:
        name: "inbreast", "cbis_ddsm", "folder", ..., or "phantom", which needs no files.
        root: The archive's folder.
        skipped: Takes what is skipped, and why.
        phantoms: How many mammograms a phantom archive has.
        seed: Of the phantom archive.

    Raises:
        ConfigError: There is no such archive or folder.
        ArchiveError: The folder is no such archive.
    """
    if root is None and name in archives.ARCHIVES and name != "phantom":
        raise ConfigError(f"root: is missing; name the folder of the archive {name}")
    config = _parse(DataConfig, name=name, root=root, phantoms=phantoms, seed=seed)
    return archives.read_mammograms(config, skipped)


def make_patches(
    mammograms: Iterable[Mammogram], *, skipped: Skipped | None = None, **data: Any
) -> Patches:
    """Cut patches out of mammograms: one around each lesion, unless `patches` says otherwise.

    Iterating over the result gives one `Patch` after the other; `images` and `masks` hold all.

    Args:
        mammograms: Of `open_archive`.
        skipped: Takes what is skipped, and why.
        data: Keys of `DataConfig`: size=64, frame="loose", kinds=("mass",), ...

    Raises:
        ConfigError: There is no such key, or its value is wrong.
        DataError: No patch is left.
    """
    config = _parse(DataConfig, **data)
    return extraction.make_patches(
        list(mammograms), config, Skipped() if skipped is None else skipped
    )


def split_patches(patches: Patches, **data: Any) -> tuple[Patches, Patches]:
    """Split patches by patient into those to train on and those held out.

    Args:
        patches: Of `make_patches`.
        data: Keys of `DataConfig`: folds=3, fold=0, seed=0, split="official", ...

    Raises:
        ConfigError: There is no such key, or its value is wrong.
        DataError: There are fewer patients than folds.
    """
    return splits.split(patches, _parse(DataConfig, **data))


@dataclass(frozen=True, repr=False)
class Model:
    """One function of a trained model, to be called on arrays or tensors; made by `load`.

    Attributes:
        name: The system's: "can".
        function: The function's: "inverter".
        folder: The export that it was loaded from.
        inputs: Name -> shape, dtype and range, see `export.read_card`.
        outputs: Name -> shape, dtype and range.
        card: The model card: data, step, metrics, versions, ...
    """

    name: str
    function: str
    folder: Path
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Mapping[str, Any]]
    card: Mapping[str, Any]
    _call: Callable[..., export.Tensors] = field(compare=False)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *arrays: Any, **named: Any) -> dict[str, Any]:
        """Run the function on patches.

        Arrays are taken eight at a time and give arrays. Tensors are taken at once and give
        tensors, also within `tf.data.Dataset.map`, a `tf.function` or a Keras model.

        Args:
            arrays: Inputs in the order of `inputs`, numbers [n, size, size, channels] in the
                inputs' ranges each, of any dtype.
            named: Inputs by name.

        Returns:
            Output's name -> float32 [n, ...].

        Raises:
            ExportError: An input is missing, has another shape, or leaves its range.
        """
        values = dict(zip(self.inputs, arrays, strict=False)) | named
        if any(isinstance(value, keras.KerasTensor) for value in values.values()):
            outputs: dict[str, Any] = keras.layers.Lambda(lambda inputs: self._call(**inputs))(
                values
            )
            return outputs
        if any(map(tf.is_tensor, values.values())):
            return self._call(**values)
        values = {name: np.asarray(value) for name, value in values.items()}
        counts = {value.shape[:1] for value in values.values()}
        if len(arrays) + len(named) != len(self.inputs) or len(counts) != 1 or not all(*counts):
            names = ", ".join(self.inputs)
            raise ExportError(f"{self!r}: takes {names}, one patch or more and as many of each")
        return export.predict(self._call, values)

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join(f"{name} {_describe_tensor(tensor)}" for name, tensor in group)
            for group in (self.inputs.items(), self.outputs.items())
        )
        step = f", step {self.card['step']:,}" if "step" in self.card else ""
        return f"<Model {self.name} {self.function}: {inputs} -> {outputs}{step}>"


def load(
    handle: str | Path, function: str | None = None, *, tracking_uri: str | None = None
) -> Model:
    """Load a trained model by its handle, whatever names it in a command.

    Args:
        handle: See the module. A run's folder gives its last weights, its folder `best` the
            best ones.
        function: The name of one of its functions: "generator", "inverter", ... None: the one that
            a server would answer with.
        tracking_uri: The MLflow store of handles that begin with runs:/ or models:/.

    Raises:
        TrackingError: There is no such export.
        ExportError: It has no such function, or is damaged.
    """
    folder = models.resolve(handle, tracking_uri)
    card = export.read_card(folder)
    if function is None:
        last = Path(str(handle)).name
        function = last if folder / last == Path(str(handle)) else card["serves"]
    call = export.load(folder, str(function))
    tensors = card["functions"][function]
    return Model(
        card["name"], str(function), folder, tensors["inputs"], tensors["outputs"], card, call
    )


def augment(
    patches: Patches, model: str | Path | Model, *, share: float = 0.5, seed: int = 0
) -> Patches:
    """Add patches whose images a generator draws, around the masks of these patches.

    Each new one takes the mask of a patch, turned and flipped at random. The model must not have
    been trained on patients that you evaluate on.

    Args:
        patches: Of `make_patches`.
        model: A CAN (mask to image) or an infilling network (tissue and mask to image).
        share: New patches per given patch.
        seed: Of all random draws.

    Returns:
        The patches, then the new ones, without labels. A new one keeps patient, kind and pathology.

    Raises:
        ConfigError: The share is less than one patch.
        ExportError: The model draws no such images, or takes patches of another size.
    """
    if not share * len(patches) > 0.5:  # not NaN either
        raise ConfigError(f"share: {share:g} of {len(patches)} patches is not even one")
    if not isinstance(model, Model):
        folder = models.resolve(model)
        fitting = [
            name
            for name, function in export.read_card(folder)["functions"].items()
            if _draws_of_masks(function["inputs"], function["outputs"])
        ]
        if not fitting:
            raise ExportError(f"{model}: has no function that draws images of masks")
        model = load(folder, fitting[0])
    elif not _draws_of_masks(model.inputs, model.outputs):
        raise ExportError(f"{model!r}: draws no images of masks")
    random = np.random.default_rng(seed)
    rows = random.choice(len(patches), round(share * len(patches)), replace=share > 1)
    variants = random.integers(splits.VARIANTS, size=len(rows))
    chosen = splits.take_variants(patches, rows * splits.VARIANTS + variants)
    ids = [f"{patches.ids[row]}+{number}" for number, row in enumerate(rows)]
    chosen = replace(chosen, ids=np.array(ids, np.str_))
    inputs = (
        make_tri_labels(chosen, model.card, seed) if "tri_label" in model.inputs else chosen.masks
    )
    return patches.concatenate(replace(chosen, images=model(inputs)["image"]))


def _draws_of_masks(inputs: Iterable[str], outputs: Iterable[str]) -> bool:
    return set(inputs) in ({"mask"}, {"tri_label"}) and "image" in outputs


def insert_lesion(
    mammogram: Mammogram,
    model: str | Path | None = None,
    *,
    centre: Place | None = None,
    size: tuple[int, int] | None = None,
    shape: ShapeName | None = None,
    factor: float = 1.0,
    method: RenderMethod | None = None,
    lesions: DataConfig | Mapping[str, Any] | None = None,
    gan: str | None = None,
    seed: int = 0,
    tracking_uri: str | None = None,
) -> EditResult:
    """Insert one lesion into a mammogram.

    Args:
        mammogram: Of `open_archive` or `open_mammogram`. It stays as it is.
        model: Handle of an infilling, a CAN's generator, a blending network, a vanilla GAN or a
            contextual GAN. Its card says what it is. None: a real lesion, without a network.
        centre: (row, col), native px; None draws a place where masses are.
        size: (height, width) of a made-up mass, native px.
        shape: Of a made-up mass; None takes it from `gan`, else from `lesions`.
        factor: Of a real lesion's size.
        method: Without a network: "poisson", "paste", "mixed", "opencv" or "opencv_mixed".
        lesions: The archive of real lesions that are inserted, or whose outlines masses take, as in
            a config: {"name": "inbreast", "root": DIR}.
        gan: Handle of a mask GAN, which draws shapes.
        seed: Of all random draws.
        tracking_uri: See `load`.

    Raises:
        ConfigError: Something that the model or the method needs is missing.
        DataError: There is no room for the lesion.
        TfmammoError: The model or the lesions can't be read.
    """
    if model is None:
        renderer: str = method or "poisson"
        if renderer in NETWORK_INPUTS:
            raise ConfigError(f"method: {renderer} draws with a network; name it as model instead")
        if lesions is None:
            raise ConfigError(
                "lesions: is missing; without a model a real lesion is inserted, so name an "
                'archive of lesions, as in {"name": "inbreast", "root": DIR}'
            )
    elif method is not None:
        raise ConfigError("method: is for lesions without a network; leave out method or model")
    else:
        renderer = _find_renderer(models.resolve(model, tracking_uri))
    values = {
        "renderer": renderer,
        "generator": model and str(model),
        "lesions": lesions,
        "gan": gan,
    }
    editor = Editor.load(_parse(EditorConfig, **values, tracking_uri=tracking_uri))
    if editor.removes:
        raise ConfigError(f"{model}: was trained to remove lesions; remove_lesion takes it")
    request = _parse(EditRequest, centre=centre, size=size, shape=shape, factor=factor, seed=seed)
    return editor.edit(mammogram, request)


def remove_lesion(
    mammogram: Mammogram,
    model: str | Path,
    lesion: Lesion | Place,
    *,
    seed: int = 0,
    tracking_uri: str | None = None,
) -> EditResult:
    """Refill the tissue where a lesion is, with a contextual GAN that was trained to remove.

    Args:
        mammogram: Of `open_archive` or `open_mammogram`. It stays as it is.
        model: The GAN's handle.
        lesion: One of the mammogram's, or its centre: (row, col), native px.
        seed: Of all random draws.
        tracking_uri: See `load`.

    Raises:
        ConfigError: The model removes nothing.
        DataError: The network can't work there.
        TfmammoError: The model can't be read.
    """
    renderer = _find_renderer(models.resolve(model, tracking_uri))
    if renderer != "contextual":
        raise ConfigError(f"{model}: inserts lesions ({renderer}); a contextual GAN removes them")
    config = _parse(
        EditorConfig, renderer=renderer, generator=str(model), tracking_uri=tracking_uri
    )
    editor = Editor.load(config)
    if not editor.removes:
        raise ConfigError(f"{model}: was trained to add lesions; take one of model.target=removal")
    if isinstance(lesion, Lesion):
        top, left, bottom, right = lesion.box
        lesion = (top + bottom) // 2, (left + right) // 2
    return editor.edit(mammogram, _parse(EditRequest, centre=lesion, seed=seed))


def evaluate(
    handles: Mapping[str, str | Path | Sequence[str | Path]],
    *,
    data: DataConfig | Mapping[str, Any],
    output: str | Path | None = None,
    **config: Any,
) -> list[Table]:
    """Compare segmentation models on patients that none of them was trained on.

    Args:
        handles: Name -> a model's handle, or the handles of its folds.
        data: The patches, as in a config: {"name": "inbreast", "root": DIR, "size": 256}.
        output: Where tables, CSV files and figures are written; None keeps the tables alone.
        config: Further keys of configs/segmentation.yaml: compare="pairs", threshold=0.5, ...

    Returns:
        The tables: means with intervals, differences with corrected p, areas under ROC curves.

    Raises:
        ConfigError: There is no such key, or its value is wrong.
        DataError: Every patient is of a model's training.
        TfmammoError: A model or the archive can't be read.
    """
    uris = {
        name: [str(uri) for uri in ((value,) if isinstance(value, str | Path) else value)]
        for name, value in handles.items()
    }
    wanted = _parse(segmentation.SegmentationConfig, models=uris, data=data, **config)
    with tempfile.TemporaryDirectory() as folder:
        return segmentation.evaluate(wanted, Path(output or folder)).tables


def train(
    name: str,
    config: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Train a model, or go on training it, as `tfmammo train NAME` does.

    The training is a process of its own, so that TensorFlow's settings and memory are its own too.
    It prints what the command prints. Ctrl-C lets it save a checkpoint first.

    Args:
        name: "can", "unet", ...: a script of `tfmammo train`.
        config: A config file, or the name of a shipped one; None: `name`.
        values: What differs from the config: {"data": {"name": "inbreast", "root": DIR},
            "training.steps": 3}.
        output: The run's folder; None: one in runs/ that follows from the config.
        quiet: Print nothing.

    Returns:
        The folder, a handle for `load`, `evaluate`, ...

    Raises:
        ConfigError: There is no such script, or the config is wrong.
        TrainingError: The training failed.
    """
    if name not in MODELS:
        raise ConfigError(f"{name}: is none of {', '.join(MODELS)}")
    schema = make_schema(MODELS[name])
    overrides = format_overrides(values or {})
    experiment = configuration.parse(schema, config or name, overrides)
    folder = Path(output) if output else script.default_output(experiment)
    command = [sys.executable, "-m", "tfmammo", "train", name, "--config", str(config or name)]
    settings = ["--set", *overrides] if overrides else []
    code, said = cli.run_to_end([*command, "--output", str(folder), *settings], quiet)
    if code:
        last = (said.strip().splitlines() or ["see above"])[-1]
        raise TrainingError(f"train {name}: ended with exit code {code} ({last})")
    return folder


def _parse(schema: type[Config], **values: Any) -> Config:
    """Make a config of keyword arguments; a wrong one is an error of one sentence."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(configuration.describe(error, schema)) from None


def _find_renderer(folder: Path) -> str:
    """Find what makes an editor's lesions of an export's network.

    Raises:
        ConfigError: It makes none.
    """
    card = export.read_card(folder)
    if card["name"] == "contextual":
        return "contextual"
    fitting = find_renderers(folder)
    if not fitting:
        raise ConfigError(f"{folder}: holds a model for {card['name']}, which makes no lesions")
    return fitting[0]


def _describe_tensor(tensor: Mapping[str, Any]) -> str:
    shape = ", ".join("n" if size is None else str(size) for size in tensor["shape"])
    limits = tensor.get("range")
    return f"[{shape}] in [{limits[0]:g}, {limits[1]:g}]" if limits else f"[{shape}]"
