"""What every detector gives, and how any exported one is called:
Detector.load(handle).predict(mammogram) -> Detections.

Nothing but TensorFlow is needed: a detector is a SavedModel of the TensorFlow Object Detection API,
one of ours (train/ssd.py) or anybody's. Ours know how they saw mammograms in training, from the
card beside them, and see them so again, at once or in tiles; any other is given the whole
mammogram, its grey values as 0 to 255 in three equal channels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo.config import DataConfig
from tfmammo.data import preprocess
from tfmammo.data.whole import tile, toned, view
from tfmammo.detection import tiles
from tfmammo.errors import DetectionError
from tfmammo.export import CARD, SIGNATURE, located, read_card, trained_on
from tfmammo.mammogram import LesionKind, Mammogram
from tfmammo.tracking import models

log = logging.getLogger(__name__)
COUNT = "num_detections"
OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", COUNT)
# px of tiles in one call, at least one tile: memory is in proportion to it, whatever the
# mammogram's size
AT_ONCE = 2**20
# of some: [1, n, h, w], how probable the lesion is, from its box's upper left to its lower right
# corner
MASKS = "detection_masks"

Found = dict[str, NDArray]  # of one image, by the API's names


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one mammogram, the surest first.

    Raises:
        ValueError: A shape, dtype or range is another, or the scores don't fall.

    Attributes:
        boxes: float32 [n, 4], [row_min, col_min, row_max, col_max], half-open, native px, inside
            the mammogram.
        scores: float32 [n] in [0, 1], falling.
        classes: N kinds of lesions.
        masks: uint8 [n, rows, cols], 0 or 1, native px, None where the detector gives none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: tuple[LesionKind, ...]
    masks: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if (
            self.boxes.shape != (count, 4)
            or self.scores.shape != (count,)
            or len(self.classes) != count
        ):
            raise ValueError(
                f"{self.boxes.shape} boxes, {self.scores.shape} scores and {len(self.classes)} "
                "classes don't fit together"
            )
        if self.boxes.dtype != np.float32 or self.scores.dtype != np.float32:
            raise ValueError(
                f"boxes and scores must be float32, not {self.boxes.dtype} and {self.scores.dtype}"
            )
        if not (
            np.all(self.scores >= 0)
            and np.all(self.scores <= 1)
            and np.all(np.diff(self.scores) <= 0)
        ):
            raise ValueError("scores must fall and lie in [0, 1]")
        if not np.all(self.boxes[:, 2:] > self.boxes[:, :2]):
            raise ValueError("a box has no area")
        if not set(self.classes) <= set(get_args(LesionKind)):
            raise ValueError(
                f"classes must be kinds of lesions, not {', '.join(sorted(set(self.classes)))}"
            )
        if self.masks is not None and (
            self.masks.dtype != np.uint8 or self.masks.ndim != 3 or len(self.masks) != count
        ):
            raise ValueError(
                f"masks must be uint8 [{count}, rows, cols], not {self.masks.dtype} "
                f"{self.masks.shape}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those of at least this score."""
        count = int(np.sum(self.scores >= score))
        masks = None if self.masks is None else self.masks[:count]
        return Detections(self.boxes[:count], self.scores[:count], self.classes[:count], masks)


class Detector:
    """A SavedModel of the TensorFlow Object Detection API, made by `load`.

    handle: what it was loaded from. kinds: of lesions, what its classes 1, 2, ... are. data: how
    one of ours saw its mammograms, None of any other. card: of one of ours, else empty.
    """

    def __init__(
        self,
        handle: str,
        model: Any,
        kinds: Sequence[LesionKind],
        data: DataConfig | None,
        card: dict[str, Any],
    ) -> None:
        self.handle = handle
        self.kinds = tuple(kinds)
        self.data = data
        self.card = card
        self._seen = trained_on(card, handle) if "train_patients" in card else None
        self._model = model  # owns the variables: the signature alone would lose them
        self._function = _signature(handle, model)
        ((self._input, self._spec),) = self._function.structured_input_signature[1].items()

    @staticmethod
    def load(
        handle: str | Path, kinds: Sequence[LesionKind] = ("mass",), uri: str | None = None
    ) -> Detector:
        """Read a detector.

        Args:
            handle: A training's output folder or export, models:/NAME@ALIAS, models:/NAME/VERSION
                or runs:/ID/PATH, the SavedModel's folder or the API's export folder, or a
                TensorFlow Hub handle (https://...).
            kinds: What the model's classes 1, 2, ... are; one of ours knows it by itself.
            uri: The store of models:/ and runs:/.

        Raises:
            DetectionError: Nothing can be read there, or it is no detector of the Object Detection
                API.
            TrackingError: The store can't be reached, or the handle leads to no export.
        """
        place, card = _located(str(handle), uri)
        data = None
        if card:
            try:
                data = DataConfig.model_validate(card["config"]["data"])
            except (KeyError, TypeError, ValidationError):
                raise DetectionError(
                    f"{handle}: its {CARD} does not say how the detector saw its mammograms"
                ) from None
            kinds = data.kinds
        return Detector(str(handle), _read(str(handle), place), kinds, data, card)

    def predict(self, mammogram: Mammogram) -> Detections:
        """Find lesions in one mammogram.

        With data.tiles in tiles that cover it (see tfmammo.detection.tiles), those alone in which a
        pixel is not 0; of all tiles together no more than the model gives of one, the surest.

        Args:
            mammogram: As a reader gives it; its pixels are read.

        Returns:
            Boxes in its native px, and masks if the model gives them: 1 where a pixel's middle lies
            in the box and the lesion's probability there, interpolated, is at least 0.5. What the
            model calls by a class that is none of `kinds` is left out, and logged.

        Raises:
            ArchiveError: The pixels can't be read.
            DataError: A fact that preprocessing needs is not stated.
            ValueError: It is constant.
            DetectionError: The model refuses it.
        """
        if self.data is None:
            found = self._call(mammogram.pixels()[np.newaxis])[0]
            boxes = found["detection_boxes"] * np.array([mammogram.rows, mammogram.cols] * 2)
        else:
            prepared = preprocess.preprocess_mammogram(mammogram, self.data.preprocess)
            look = self._in_tiles if self.data.tiles else self._whole
            found, boxes = look(prepared.pixels(), self.data)
            boxes = _native(boxes, prepared, mammogram, self.data)
            if MASKS in found and _mirrored(mammogram, self.data):
                found[MASKS] = found[MASKS][..., ::-1]
        return self._detections(found, boxes, mammogram)

    def saw(self, patient_id: str) -> bool | None:
        """Whether it was trained on a patient; None of a detector that does not say so."""
        return None if self._seen is None else patient_id in self._seen

    def _whole(self, pixels: NDArray[np.float32], data: DataConfig) -> tuple[Found, NDArray]:
        """What it finds in prepared pixels, letterboxed, and the boxes in their px."""
        image, scale = view(pixels, data)
        found = self._call(image[np.newaxis])[0]
        return found, found["detection_boxes"] * np.array(data.shape * 2) / np.array(
            [*scale, *scale]
        )

    def _in_tiles(self, pixels: NDArray[np.float32], data: DataConfig) -> tuple[Found, NDArray]:
        """What it finds in tiles of prepared pixels, as if found at once, and the boxes in their
        px.
        """
        assert data.tiles
        image = toned(pixels, data)
        shape = data.shape
        places = tiles.grid(pixels.shape[:2], shape, data.tiles.overlap)
        places = [place for place in places if tile(pixels, *place, shape).any()] or places[:1]
        at_once = self._spec.shape[0] or max(1, AT_ONCE // (shape[0] * shape[1]))
        parts = []
        for start in range(0, len(places), at_once):
            parts += self._call(
                np.stack([tile(image, *place, shape) for place in places[start : start + at_once]])
            )
        return _as_one(parts, places, shape, pixels.shape[:2])

    def _call(self, images: NDArray[np.float32]) -> list[Found]:
        """What the model answers of images [n, rows, cols, 1], one by one."""
        pixels = np.repeat(255 * images, 3, axis=-1)
        if self._spec.dtype == tf.uint8:
            pixels = np.rint(pixels)
        try:
            found = self._function(**{self._input: tf.cast(pixels, self._spec.dtype)})
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise DetectionError(
                f"{self.handle}: refuses an image of {images.shape[1]} x {images.shape[2]} px "
                f"({_line(error)})"
            ) from None
        answers = {name: found[name].numpy() for name in (*OUTPUTS, MASKS) if name in found}
        return [
            {name: values[row] for name, values in answers.items()} for row in range(len(images))
        ]

    def _detections(self, found: Found, unclipped: NDArray, mammogram: Mammogram) -> Detections:
        count = int(found[COUNT])
        boxes = np.clip(unclipped[:count], 0, [mammogram.rows, mammogram.cols] * 2).astype(
            np.float32
        )
        scores = found["detection_scores"][:count]
        numbers = np.rint(found["detection_classes"][:count]).astype(int)
        known = (numbers >= 1) & (numbers <= len(self.kinds))
        if not known.all():
            log.warning(
                "%s: %d detections of classes other than %s left out",
                self.handle,
                int((~known).sum()),
                ", ".join(self.kinds),
            )
        rows = np.flatnonzero(known & np.all(boxes[:, 2:] > boxes[:, :2], axis=1) & (scores > 0))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        classes = tuple(self.kinds[number - 1] for number in numbers[rows])
        masks = _pasted(found[MASKS][rows], unclipped[rows], mammogram) if MASKS in found else None
        return Detections(
            boxes[rows], np.clip(scores[rows], 0, 1).astype(np.float32), classes, masks
        )


def _as_one(
    parts: list[Found], places: list[tuple[int, int]], shape: tuple[int, int], size: tuple[int, ...]
) -> tuple[Found, NDArray]:
    """What was found in tiles, as if found at once, no more than one tile has room for, and the
    boxes in px of the image.

    Args:
        parts: Of each tile.
        places: Their upper left corners, shape: their rows and columns, size: the image's, px.
    """
    most = len(parts[0]["detection_scores"])
    counts = [int(part[COUNT]) for part in parts]
    found = {
        name: np.concatenate([part[name][:n] for part, n in zip(parts, counts, strict=True)])
        for name in parts[0]
        if name != COUNT
    }
    boxes = found["detection_boxes"] * np.array(shape * 2) + np.repeat(
        np.tile(places, 2), counts, axis=0
    )
    numbers = np.repeat(np.arange(len(parts)), counts)
    inside = np.clip(boxes, 0, size * 2)
    kept = tiles.merged(inside, found["detection_scores"], found["detection_classes"], numbers)[
        :most
    ]
    return {name: values[kept] for name, values in found.items()} | {
        COUNT: np.array(len(kept))
    }, boxes[kept]


def _native(
    boxes: NDArray, prepared: Mammogram, mammogram: Mammogram, config: DataConfig
) -> NDArray:
    """Boxes [n, 4] of the prepared mammogram's px in those of the stored one."""
    boxes = boxes * (
        np.array([mammogram.rows, mammogram.cols] * 2)
        / np.array([prepared.rows, prepared.cols] * 2)
    )
    if _mirrored(mammogram, config):
        boxes = np.stack(
            [boxes[:, 0], mammogram.cols - boxes[:, 3], boxes[:, 2], mammogram.cols - boxes[:, 1]],
            axis=1,
        )
    return boxes


def _mirrored(mammogram: Mammogram, config: DataConfig) -> bool:
    return config.preprocess.flip_right and mammogram.laterality == "R"


def _pasted(masks: NDArray, boxes: NDArray, mammogram: Mammogram) -> NDArray[np.uint8]:
    """Masks [n, h, w] of boxes [n, 4] in native px, which may reach beyond the mammogram, as masks
    [n, rows, cols] of the whole.
    """
    made = np.zeros((len(masks), mammogram.rows, mammogram.cols), np.uint8)
    for whole, mask, (top, left, bottom, right) in zip(made, masks, boxes, strict=True):
        rows = _inside(top, bottom, mammogram.rows)
        cols = _inside(left, right, mammogram.cols)
        if len(rows) and len(cols):
            y = (rows + 0.5 - top) * mask.shape[0] / (bottom - top) - 0.5
            x = (cols + 0.5 - left) * mask.shape[1] / (right - left) - 0.5
            x, y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
            probability = cv2.remap(
                mask.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            whole[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = probability >= 0.5
    return made


def _inside(low: float, high: float, size: int) -> NDArray[np.intp]:
    """The pixels of an axis whose middles lie in [low, high)."""
    return np.arange(max(0, int(np.ceil(low - 0.5))), min(size, int(np.ceil(high - 0.5))))


def _located(handle: str, uri: str | None) -> tuple[str, dict[str, Any]]:
    """What to load, and the card of one of ours, else {}."""
    if handle.startswith("http://"):
        raise DetectionError(
            f"{handle}: what comes by http can be changed on its way, and a SavedModel is a "
            "program; use https"
        )
    if handle.startswith("https://"):
        return handle, {}
    path = Path(handle)
    for folder in (path, path / "saved_model"):
        if (folder / "saved_model.pb").is_file() and not (located(folder.parent) / CARD).is_file():
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
        raise DetectionError(f"{handle}: can't be loaded ({_line(error)})") from None


def _signature(handle: str, model: Any) -> Any:
    function = getattr(model, "signatures", {}).get(SIGNATURE)
    outputs = function.structured_outputs if function else {}
    missing = [name for name in OUTPUTS if name not in outputs]
    inputs = function.structured_input_signature[1] if function else {}
    if missing or len(inputs) != 1:
        held = (
            f"its outputs are {', '.join(sorted(outputs)) or 'none'}"
            if function
            else f"it has no signature {SIGNATURE}"
        )
        raise DetectionError(
            f"{handle}: is no export of the TensorFlow Object Detection API: {held}, not "
            f"{OUTPUTS[0]} of one image"
        )
    (spec,) = inputs.values()
    if spec.dtype not in (tf.uint8, tf.float32) or spec.shape.rank != 4:
        raise DetectionError(
            f"{handle}: takes {spec.dtype.name} {spec.shape}, not images [n, rows, cols, 3] of "
            "uint8 or float32"
        )
    return function


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
