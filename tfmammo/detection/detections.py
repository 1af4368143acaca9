"""The contract of all detectors: Detector.load(handle).predict(mammogram) -> Detections.

Nothing but TensorFlow is needed. A detector is a SavedModel of the TensorFlow Object Detection API,
trained here (train/ssd.py) or elsewhere. The model card of a detector trained here says how it saw
mammograms in training, at once or in tiles, and it sees them so again. Any other detector is given
the whole mammogram, its intensities as 0 to 255 in three equal channels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo.config import DataConfig
from tfmammo.data import preprocess
from tfmammo.data.whole import extract_tile, letterbox
from tfmammo.data.windows import normalize_intensity
from tfmammo.detection import tiles
from tfmammo.errors import DetectionError, summarize
from tfmammo.mammogram import LesionKind, Mammogram
from tfmammo.tracking import models
from tfmammo.tracking.export import (
    CARD,
    SIGNATURE,
    find_patients,
    hash_files,
    locate,
    read_card,
)

log = logging.getLogger(__name__)
COUNT = "num_detections"
OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", COUNT)
# px of tiles in one call, at least one tile: bounds the memory, whatever the mammogram's size
AT_ONCE = 2**20
# an output of some detectors, [1, n, h, w]: the lesion's probability, from its box's upper left to
# its lower right corner
MASKS = "detection_masks"

Outputs = dict[str, NDArray]  # of one image, by the API's names


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one mammogram, the surest first.

    Attributes:
        boxes: float32 [n, 4], [row_min, col_min, row_max, col_max], half-open, native px, inside
            the mammogram.
        scores: float32 [n] in [0, 1], falling.
        classes: n kinds of lesions.
        masks: uint8 [n, rows, cols], 0 or 1, native px, None where the detector gives none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: tuple[LesionKind, ...]
    masks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Return the detections of at least this score."""
        return self.select(self.scores >= score)

    def of_kinds(self, kinds: Collection[LesionKind]) -> Detections:
        """Return the detections of these kinds of lesions."""
        return self.select(np.array([kind in kinds for kind in self.classes], np.bool_))

    def select(self, kept: NDArray[np.bool_]) -> Detections:
        """Return the marked detections; kept: bool [n]."""
        classes = tuple(kind for kind, keep in zip(self.classes, kept, strict=True) if keep)
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes[kept], self.scores[kept], classes, masks)


class Detector:
    """A SavedModel of the TensorFlow Object Detection API, made by `load`.

    Attributes:
        handle: The model URI that it was loaded from.
        kinds: Kinds of lesions that its classes 1, 2, ... are.
        data: How it saw mammograms in training; None of a detector trained elsewhere.
        card: Its model card; empty of a detector trained elsewhere.
    """

    def __init__(
        self,
        handle: str,
        model: Any,
        kinds: Sequence[LesionKind],
        data: DataConfig | None,
        card: dict[str, Any],
        place: str = "",
    ) -> None:
        self.handle = handle
        self._place = place
        self.kinds = tuple(kinds)
        self.data = data
        self.card = card
        self._seen = find_patients(card, handle)
        self._model = model  # owns the variables: the signature alone would lose them
        self._function = _signature(handle, model)
        ((self._input, self._spec),) = self._function.structured_input_signature[1].items()

    @staticmethod
    def load(
        handle: str | Path, kinds: Sequence[LesionKind] = ("mass",), uri: str | None = None
    ) -> Detector:
        """Load a detector.

        Args:
            handle: Model URI: a run's output folder or export, models:/NAME@ALIAS,
                models:/NAME/VERSION or runs:/ID/PATH, the SavedModel's folder or the API's export
                folder, or a TensorFlow Hub URL (https://...).
            kinds: What the model's classes 1, 2, ... are; the card of a detector trained here
                decides instead.
            uri: The store of models:/ and runs:/.

        Raises:
            DetectionError: Nothing can be read there, or it is not a detector of the Object
                Detection API.
            TrackingError: The store can't be reached, or the model URI leads to no export.
        """
        place, card = locate_model(str(handle), uri)
        data = None
        if card:
            try:
                data = DataConfig.model_validate(card["config"]["data"])
            except (KeyError, TypeError, ValidationError):
                raise DetectionError(
                    f"{handle}: its {CARD} does not say how the detector saw its mammograms"
                ) from None
            kinds = data.kinds
        return Detector(str(handle), _read(str(handle), place), kinds, data, card, place)

    @property
    def has_masks(self) -> bool:
        """Whether it gives a mask with each box."""
        return MASKS in self._function.structured_outputs

    def hash_files(self) -> str:
        """Compute the SHA-256 of its SavedModel's files, as `export.hash_files` does."""
        import tensorflow_hub  # slow, and of use here alone

        folder = Path(tensorflow_hub.resolve(self._place))
        return hash_files(folder.parent, folder.name)

    def predict(self, mammogram: Mammogram) -> Detections:
        """Find lesions in one mammogram.

        With data.tiles the model is called on tiles that cover the mammogram (see
        tfmammo.detection.tiles), without those whose pixels are all 0. All tiles together give no
        more detections than the model gives of one, the surest.

        Returns:
            Boxes in native px, and masks if the model gives them: 1 where a pixel's centre is in
            the box and the lesion's probability there, interpolated, is at least 0.5. Detections of
            a class that is none of `kinds` are skipped, and logged.

        Raises:
            ArchiveError: The pixels can't be read.
            DataError: A fact that preprocessing needs is not stated.
            ValueError: It is constant.
            DetectionError: The model refuses it.
        """
        if self.data is None:
            outputs = self._call(mammogram.pixels()[np.newaxis])[0]
            boxes = outputs["detection_boxes"] * np.array([mammogram.rows, mammogram.cols] * 2)
        else:
            prepared = preprocess.preprocess_mammogram(mammogram, self.data.preprocess)
            detect = self._detect_in_tiles if self.data.tiles else self._detect_at_once
            outputs, boxes = detect(prepared.pixels(), self.data)
            boxes = _map_to_native(boxes, prepared, mammogram, self.data)
            if MASKS in outputs and preprocess.is_mirrored(mammogram, self.data.preprocess):
                outputs[MASKS] = outputs[MASKS][..., ::-1]
        return self._make_detections(outputs, boxes, mammogram)

    def saw(self, patient_id: str) -> bool | None:
        """Return whether it was trained on a patient; None of a detector that does not say so."""
        return None if self._seen is None else patient_id in self._seen

    def _detect_at_once(
        self, pixels: NDArray[np.float32], data: DataConfig
    ) -> tuple[Outputs, NDArray]:
        """Detect in letterboxed preprocessed pixels; return the outputs and the boxes in px."""
        image, scale = letterbox(pixels, data)
        outputs = self._call(image[np.newaxis])[0]
        boxes = outputs["detection_boxes"] * np.array(data.shape * 2)
        return outputs, boxes / np.array([*scale, *scale])

    def _detect_in_tiles(
        self, pixels: NDArray[np.float32], data: DataConfig
    ) -> tuple[Outputs, NDArray]:
        """Detect in tiles of preprocessed pixels; return merged outputs and the boxes in px."""
        assert data.tiles
        image = normalize_intensity(pixels, data)
        shape = data.shape
        corners = tiles.lay_grid(pixels.shape[:2], shape, data.tiles.overlap)
        with_tissue = [corner for corner in corners if extract_tile(pixels, *corner, shape).any()]
        corners = with_tissue or corners[:1]
        at_once = self._spec.shape[0] or max(1, AT_ONCE // (shape[0] * shape[1]))
        outputs_by_tile = []
        for start in range(0, len(corners), at_once):
            batch = corners[start : start + at_once]
            outputs_by_tile += self._call(
                np.stack([extract_tile(image, *corner, shape) for corner in batch])
            )
        return _merge_tiles(outputs_by_tile, corners, shape, pixels.shape[:2])

    def _call(self, images: NDArray[np.float32]) -> list[Outputs]:
        """Call the model on images [n, rows, cols, 1]; return the outputs of each."""
        pixels = np.repeat(255 * images, 3, axis=-1)
        if self._spec.dtype == tf.uint8:
            pixels = np.rint(pixels)
        try:
            outputs = self._function(**{self._input: tf.cast(pixels, self._spec.dtype)})
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise DetectionError(
                f"{self.handle}: refuses an image of {images.shape[1]} x {images.shape[2]} px "
                f"({summarize(error)[:200]})"
            ) from None
        arrays = {name: outputs[name].numpy() for name in (*OUTPUTS, MASKS) if name in outputs}
        return [
            {name: values[row] for name, values in arrays.items()} for row in range(len(images))
        ]

    def _make_detections(
        self, outputs: Outputs, unclipped: NDArray, mammogram: Mammogram
    ) -> Detections:
        count = int(outputs[COUNT])
        limits = [mammogram.rows, mammogram.cols] * 2
        boxes = np.clip(unclipped[:count], 0, limits).astype(np.float32)
        scores = outputs["detection_scores"][:count]
        numbers = np.rint(outputs["detection_classes"][:count]).astype(int)
        has_kind = (numbers >= 1) & (numbers <= len(self.kinds))
        if skipped := int((~has_kind).sum()):
            kinds = ", ".join(self.kinds)
            log.warning(
                "%s: %d detections of classes other than %s skipped", self.handle, skipped, kinds
            )
        has_area = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        rows = np.flatnonzero(has_kind & has_area & (scores > 0))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        classes = tuple(self.kinds[number - 1] for number in numbers[rows])
        masks = None
        if MASKS in outputs:
            masks = _paste_masks(outputs[MASKS][rows], unclipped[rows], mammogram)
        clipped = np.clip(scores[rows], 0, 1).astype(np.float32)
        return Detections(boxes[rows], clipped, classes, masks)


def _merge_tiles(
    outputs_by_tile: list[Outputs],
    corners: list[tuple[int, int]],
    shape: tuple[int, int],
    size: tuple[int, ...],
) -> tuple[Outputs, NDArray]:
    """Merge the outputs of tiles of `shape` to those of the image of `size`, and its boxes in px.

    They are no more detections than a tile's.
    """
    most = len(outputs_by_tile[0]["detection_scores"])
    counts = [int(outputs[COUNT]) for outputs in outputs_by_tile]
    joined = {
        name: np.concatenate(
            [each[name][:n] for each, n in zip(outputs_by_tile, counts, strict=True)]
        )
        for name in outputs_by_tile[0]
        if name != COUNT
    }
    offsets = np.repeat(np.tile(corners, 2), counts, axis=0)
    boxes = joined["detection_boxes"] * np.array(shape * 2) + offsets
    scores, classes = (joined[f"detection_{name}"] for name in ("scores", "classes"))
    numbers = np.repeat(np.arange(len(counts)), counts)
    selected = tiles.merge(np.clip(boxes, 0, size * 2), scores, classes, numbers)[:most]
    merged = {name: values[selected] for name, values in joined.items()}
    return merged | {COUNT: np.array(len(selected))}, boxes[selected]


def _map_to_native(
    boxes: NDArray, prepared: Mammogram, mammogram: Mammogram, config: DataConfig
) -> NDArray:
    """Map boxes [n, 4] in the preprocessed mammogram's px to those of the stored one."""
    scale = [mammogram.rows / prepared.rows, mammogram.cols / prepared.cols]
    top, left, bottom, right = (boxes * (scale * 2)).T
    if preprocess.is_mirrored(mammogram, config.preprocess):
        left, right = mammogram.cols - right, mammogram.cols - left
    return np.stack([top, left, bottom, right], axis=1)


def _paste_masks(masks: NDArray, boxes: NDArray, mammogram: Mammogram) -> NDArray[np.uint8]:
    """Paste probabilities [n, h, w] of boxes [n, 4], native px, into masks of the mammogram."""
    full_masks = np.zeros((len(masks), mammogram.rows, mammogram.cols), np.uint8)
    for full_mask, mask, (top, left, bottom, right) in zip(full_masks, masks, boxes, strict=True):
        rows = _find_pixels(top, bottom, mammogram.rows)
        cols = _find_pixels(left, right, mammogram.cols)
        if len(rows) and len(cols):
            y = (rows + 0.5 - top) * mask.shape[0] / (bottom - top) - 0.5
            x = (cols + 0.5 - left) * mask.shape[1] / (right - left) - 0.5
            x, y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
            probability = cv2.remap(
                mask.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            full_mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = probability >= 0.5
    return full_masks


def _find_pixels(low: float, high: float, size: int) -> NDArray[np.intp]:
    """Find the pixels of an axis whose centres are in [low, high)."""
    return np.arange(max(0, int(np.ceil(low - 0.5))), min(size, int(np.ceil(high - 0.5))))


def locate_model(handle: str, uri: str | None) -> tuple[str, dict[str, Any]]:
    """Find a SavedModel, and its card; {} for a detector of another tool, which alone has none."""
    if handle.startswith("http://"):
        raise DetectionError(
            f"{handle}: what comes by http can be changed on its way, and a SavedModel is a "
            "program; use https"
        )
    if handle.startswith("https://"):
        return handle, {}
    path = Path(handle)
    for folder in (path, path / "saved_model"):
        if (folder / "saved_model.pb").is_file() and not (locate(folder.parent) / CARD).is_file():
            return str(folder), {}
    export = models.resolve(handle, uri)
    card = read_card(export)
    return str(export / card["serves"]), card


def _read(handle: str, place: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        import tensorflow_hub  # slow, and of use here alone

    try:
        return tensorflow_hub.load(place)
    except Exception as error:
        # of the network, of archives, of TensorFlow: a handle can fail in every way
        raise DetectionError(f"{handle}: can't be loaded ({summarize(error)[:200]})") from None


def _signature(handle: str, model: Any) -> Any:
    function = getattr(model, "signatures", {}).get(SIGNATURE)
    outputs = function.structured_outputs if function else {}
    missing = [name for name in OUTPUTS if name not in outputs]
    inputs = function.structured_input_signature[1] if function else {}
    if missing or len(inputs) != 1:
        held = f"its outputs are {', '.join(sorted(outputs)) or 'none'}"
        if not function:
            held = f"it has no signature {SIGNATURE}"
        raise DetectionError(
            f"{handle}: is not an export of the TensorFlow Object Detection API: {held}, not "
            f"{OUTPUTS[0]} of one image"
        )
    (spec,) = inputs.values()
    if spec.dtype not in (tf.uint8, tf.float32) or spec.shape.rank != 4:
        raise DetectionError(
            f"{handle}: takes {spec.dtype.name} {spec.shape}, not images [n, rows, cols, 3] of "
            "uint8 or float32"
        )
    return function
