"""Models of an evaluation: exported functions, SavedModels without a card, folders of masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo import config as configuration
from tfmammo.config import DataConfig
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, DataError, ExportError, summarize
from tfmammo.filesystem import name_case
from tfmammo.tracking import export
from tfmammo.tracking.export import predict
from tfmammo.tracking.models import resolve

log = logging.getLogger(__name__)

MASKS: Final = "masks:"  # begins the URI of a folder of masks
CHANNEL = "_0000"  # ends the names of nnU-Net's images, not of its masks
# Keys of data that decide what a patch shows.
DECISIVE = {
    "patches",
    "kinds",
    "frame",
    "context",
    "padding",
    "preprocess",
    "percentiles",
    "window",
}

# (patches, card of the model) -> what the model takes
Inputs = Callable[[Patches, Mapping[str, Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Network:
    """One function of one model URI; its weights are read when it runs.

    Attributes:
        uri: The URI as the config names it.
        folder: The folder of the export, or of a SavedModel without a card.
        function: The name of the function; None for a SavedModel without a card.
        card: The card of the export; empty where there is none.
        source: The name of the function's input.
    """

    uri: str
    folder: Path
    function: str | None
    card: dict[str, Any]
    source: str

    @property
    def is_leaky(self) -> bool:
        """Whether the paper's protocol trained it, with copies of one lesion on both sides."""
        return self.card.get("split") == "paper"

    @property
    def training(self) -> tuple[str, ...]:
        """The patients that it was trained on, by which folds differ."""
        return tuple(self.card.get("train_patients", ()))

    def find_eligible(self, patches: Patches) -> NDArray[np.bool_]:
        """Mark the patches of patients that the network was not trained on; see `find_unseen`."""
        try:
            return self.find_unseen(patches.patient_ids)
        except DataError as error:
            raise DataError(f"{error}; patients=all evaluates it anyway") from None

    def find_unseen(self, patient_ids: NDArray[np.str_]) -> NDArray[np.bool_]:
        """Mark the patients that the network was not trained on, bool [n].

        Raises:
            DataError: The card doesn't name the patients that it was trained on.
            ExportError: The card names them under another TFMAMMO_ID_KEY.
        """
        if "train_patients" not in self.card:
            raise DataError(f"{self.uri}: no card names the patients it was trained on")
        return ~np.isin(patient_ids, sorted(export.get_training_patients(self.card, self.uri)))

    def merge_data(self, data: Mapping[str, Any]) -> DataConfig:
        """Merge data settings over those of the card, without what only training uses."""
        of_card = self.card.get("config", {}).get("data", {}) | {"added": {}, "split_file": None}
        if data.keys() & {"name", "root"}:
            of_card["records"] = None  # otherwise they would be read instead of the named archive
        try:
            return DataConfig.model_validate(_merge(of_card, data))
        except ValidationError as error:
            raise ConfigError(
                f"data, with what the card of {self.uri} says: {configuration.describe(error)}"
            ) from None

    def answer(
        self,
        patches: Patches,
        inputs: Mapping[str, Inputs],
        target: str,
        shape: tuple[int, ...],
    ) -> NDArray[np.float32]:
        """Run the network on patches, whose inputs are made by the name of its source."""
        return self.run(self.source, target, inputs[self.source](patches, self.card), shape)

    def run(
        self,
        source: str,
        target: str,
        values: NDArray[np.float32],
        shape: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """Run the network on `values`, eight at a time.

        Args:
            source: Name of the input.
            target: Name of the output.
            values: float32 [n, s, s, 1] in [0, 1], or noise [n, z].
            shape: Shape of one output; None: (s, s, 1).

        Returns:
            float32 [n, *shape] in [0, 1].

        Raises:
            ExportError: The network can't be read, or takes patches of another size.
            DataError: The output has another shape or other values.
        """
        size = self.card.get("config", {}).get("data", {}).get("size", values.shape[1])
        if values.ndim == 4 and size != values.shape[1]:  # noise has no size
            raise ExportError(
                f"data.size: {self.uri} takes patches of {size} px, these have {values.shape[1]}"
            )
        call: Callable[..., Any] = (
            export.load(self.folder, self.function) if self.function else _load(self.folder)
        )
        outputs = predict(call, {source: values})[target]
        expected = (len(values), *(values.shape[1:] if shape is None else shape))
        if outputs.shape != expected or not np.all((outputs >= 0) & (outputs <= 1)):
            raise DataError(
                f"{self.uri}: its {target} is no {list(expected)} in [0, 1] but "
                f"{list(outputs.shape)}, or holds other values"
            )
        return outputs


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    sections = {
        key: _merge(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **sections}


@dataclass(frozen=True)
class MaskFolder:
    """Masks that another tool predicted, such as nnU-Net: one PNG a patch, 0 is tissue.

    The files have the names that `tfmammo export` gives the patches or, with _0000, their images
    for nnU-Net, which `tfmammo predict` keeps. The folder does not say whom the tool was trained
    on. So it must hold predictions of unseen patients alone, and it is eligible for exactly the
    patches that it holds.

    Attributes:
        uri: "masks:DIR", as the config names it.
        folder: The folder.
        names: The names of the patches.
        card: Empty, because nothing is known of how the tool was trained.
    """

    uri: str
    folder: Path
    names: frozenset[str]
    card: Mapping[str, Any] = field(default_factory=dict)
    is_leaky: bool = False

    @property
    def training(self) -> frozenset[str]:
        """The patches that it holds, by which folds differ."""
        return self.names

    def find_eligible(self, patches: Patches) -> NDArray[np.bool_]:
        """Mark the patches that the folder holds, bool [n]."""
        return np.array([name_case(name) in self.names for name in patches.ids], np.bool_)

    def answer(
        self, patches: Patches, inputs: object, target: str, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Read the masks of patches: float32 [n, *shape], 0 or 1."""
        return np.stack([self._read(name, shape) for name in patches.ids])

    def _read(self, patch: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        name = name_case(patch)
        path = self.folder / f"{name}.png"
        if not path.exists():
            path = self.folder / f"{name}{CHANNEL}.png"
        try:
            content = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise DataError(
                f"{path}: the mask of a patch can't be read ({error.strerror})"
            ) from None
        labels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
        if labels is None or labels.ndim != 2:
            raise DataError(f"{path}: is no PNG file with one channel")
        if labels.shape != shape[:2]:
            size = " x ".join(map(str, labels.shape))
            raise DataError(f"{path}: has {size} px, and data.size is {shape[0]}")
        return (labels > 0).astype(np.float32).reshape(shape)


Predictor = Network | MaskFolder


def open_predictor(
    uri: str, sources: Iterable[str], target: str, tracking_uri: str | None = None
) -> Predictor:
    """Open a folder of masks, or a model as `open_first`."""
    if not uri.startswith(MASKS):
        return open_first(uri, sources, target, tracking_uri)
    folder = Path(uri.removeprefix(MASKS))
    if target != "mask":
        raise ExportError(f"{uri}: holds masks, and the evaluation wants {target}")
    names = frozenset(path.stem.removesuffix(CHANNEL) for path in folder.glob("*.png"))
    if not names:
        raise ExportError(f"{uri}: there is no folder with PNG files")
    return MaskFolder(uri, folder, names)


def open_first(
    uri: str, sources: Iterable[str], target: str, tracking_uri: str | None = None
) -> Network:
    """Find the function of a model that leads to target from the first source that it has.

    Raises:
        ExportError: There is no such function; the message is of the first source.
    """
    failures = []
    for source in sources:
        try:
            return open_network(uri, source, target, tracking_uri)
        except ExportError as error:
            failures.append(error)
    raise failures[0]


def open_network(uri: str, source: str, target: str, tracking_uri: str | None = None) -> Network:
    """Find the function of a model that leads from source to target.

    Args:
        uri: See `EvaluationConfig.models`.
        source: Name of the input.
        target: Name of the output.
        tracking_uri: The MLflow server of models:/ URIs; None means the environment's.

    Raises:
        ExportError: There is no such function.
    """
    path = Path(uri)
    if not (path / "saved_model.pb").is_file():
        folder = resolve(uri, tracking_uri)
        function = None
    elif (path.parent / export.CARD).is_file():
        folder = path.parent
        function = path.name
    else:
        _load(path, source, target)
        return Network(uri, path, None, {}, source)
    card = export.read_card(folder)
    function = function or export.find_function(folder, {source}, {target}, uri)
    signature = card["functions"].get(function, {"inputs": (), "outputs": ()})
    if set(signature["inputs"]) != {source} or target not in signature["outputs"]:
        raise ExportError(f"{uri}: does not lead from {source} to {target}")
    return Network(uri, folder, function, card, source)


def check_crops(networks: Iterable[Predictor], data: DataConfig) -> None:
    """Log where networks were trained on patches that were cut in another way.

    Patches of another size are an ExportError, before any is cut. Images that are taken whole are
    crops already.
    """
    for network in networks:
        trained_with = network.card.get("config", {}).get("data", {})
        if trained_with.get("size", data.size) != data.size:
            raise ExportError(
                f"data.size: {network.uri} takes patches of {trained_with['size']} px, not of "
                f"{data.size}"
            )
        if data.frame == "full":
            continue
        for key, value in data.model_dump(mode="json", include=DECISIVE).items():
            if trained_with.get(key, value) != value:
                log.warning(
                    "%s was trained with data.%s %s and is evaluated with %s",
                    network.uri,
                    key,
                    trained_with[key],
                    value,
                )


def _load(
    folder: Path, source: str | None = None, target: str | None = None
) -> Callable[..., Mapping[str, tf.Tensor]]:
    """Load the signature of a SavedModel without a card, and check it if names are given."""
    try:
        loaded = tf.saved_model.load(str(folder))
        signature = loaded.signatures[export.SIGNATURE]
    except (OSError, tf.errors.OpError, ValueError, KeyError) as error:
        raise ExportError(
            f"{folder}: can't be read as a SavedModel with a serving signature ({summarize(error)})"
        ) from None
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    if source and (set(inputs) != {source} or target not in outputs):
        raise ExportError(
            f"{folder}: leads from {', '.join(inputs)} to {', '.join(outputs)}, not from {source} "
            f"to {target}"
        )

    def call(**values: tf.Tensor) -> Mapping[str, tf.Tensor]:
        try:
            # `loaded` owns the weights: the closure keeps it.
            return loaded.signatures[export.SIGNATURE](**values)
        except (tf.errors.OpError, TypeError, ValueError):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ExportError(f"{folder}: does not take {shapes}") from None

    return call
