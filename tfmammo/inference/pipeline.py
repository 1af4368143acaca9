"""The chain: a mammogram in; boxes, the mask of each lesion and its shape out, each stage
an exported model.

    localise    Detector.predict: boxes and scores on the whole mammogram
    frame       the patch around a box, made as the segmenter's training patches were, as its card
    tells
    segment     patch -> mask, and the spread of several draws where the model gives it
    clean       morphology (models.cgan.postprocess), and of what is left the one piece that covers
    the box best
    classify    the mask of a mass, alone in a square -> irregular, lobular, oval or round

What the paper leaves open, and what was chosen:
- A segmenter's training masks show every lesion in the frame, its neighbours too, while a shape is
  learned from one mass
  alone. So of the pieces of a mask the one with most pixels in the detected box is the lesion's
  (`single: false` keeps all).
- A frame is cut around the detected box, which is less tight than an outline's: with a segmenter
  that resamples mammograms
  (data.preprocess.spacing) the frame of the same box may lie one pixel off that of training.
- A mask goes back to native pixels by interpolation, 1 where it is at least half, and its holes are
  filled, as in all records.
- Shapes are of masses: other kinds have none.

A lesion that a stage can do nothing with keeps what the stages before it gave, and its remarks say
why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tfmammo import export
from tfmammo.config import DataConfig, Frozen
from tfmammo.data import patches, preprocess, sampling
from tfmammo.data.tfrecord import read_manifest
from tfmammo.detection.detections import Detector
from tfmammo.errors import CaseError
from tfmammo.mammogram import Box, Lesion, LesionKind, Mammogram, borders
from tfmammo.models.cgan import PostprocessConfig, postprocess
from tfmammo.models.shape import SHAPES
from tfmammo.tracking import models


class CaseConfig(Frozen):
    """Which models, and what becomes of their answers."""

    detector: str
    """A handle of Detector.load."""
    kinds: tuple[LesionKind, ...] = Field(default=("mass",), min_length=1)
    """Of lesions, what a foreign detector's classes 1, 2, ... are."""
    segmenter: str
    """An export from image to mask."""
    classifier: str
    """One from mask to shapes. Both are a training's output folder, an export, models:/NAME@ALIAS,
    models:/NAME/VERSION or runs:/ID/PATH.
    """
    score: float = Field(default=0.5, ge=0, le=1)
    """The least of a detection."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel belongs to the mask from this probability on."""
    postprocess: PostprocessConfig = PostprocessConfig()
    """See PostprocessConfig."""
    single: bool = True
    """Keep one piece of a mask, see the module."""
    tracking_uri: str | None = None
    """The store of models:/ and runs:/; None as for `tracking.uri` of a training."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One detection and what the later stages made of it.

    Attributes:
        kind: The detector's, the box [row_min, col_min, row_max, col_max], half-open, native px.
        score: The detector's, the box [row_min, col_min, row_max, col_max], half-open, native px.
        box: The detector's, the box [row_min, col_min, row_max, col_max], half-open, native px.
        lesion: The mask as outlines, its own box and, of a mass, its most probable shape; None
            without a mask.
        probabilities: Of each of SHAPES; empty where no shape was looked for.
        uncertainty: Mean standard deviation of the segmenter's draws over the mask, 0 to 0.5; None
            where there is but one draw.
        remarks: What a stage could not do, and what makes its answer doubtful.
    """

    kind: LesionKind
    score: float
    box: Box
    lesion: Lesion | None = None
    probabilities: Mapping[str, float] | None = None
    uncertainty: float | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """A mammogram that was read.

    Attributes:
        image: float32 [rows, cols, 1] in [0, 1], native px.
        findings: The surest first.
    """

    mammogram: Mammogram
    image: NDArray[np.float32]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """One function of an export.

    Attributes:
        size: Rows and columns of what goes in, px.
        call: Name -> float32 array, see export.load.
    """

    handle: str
    card: Mapping[str, Any]
    size: int
    call: Callable[..., export.Tensors]

    @staticmethod
    def load(handle: str, source: str, target: str, uri: str | None) -> Stage:
        """The function of a handle that leads from `source` to `target`.

        Raises:
            ExportError: There is none, or it can't be read.
            TrackingError: The handle leads to no export.
        """
        folder = models.resolve(handle, uri)
        name = export.find(folder, {source}, {target})
        card = export.read_card(folder)
        return Stage(
            handle,
            card,
            card["functions"][name]["inputs"][source]["shape"][1],
            export.load(folder, name),
        )


class Chain:
    """All stages, ready to read mammograms; made by `load`.

    Attributes:
        data: How the segmenter saw its patches.
    """

    def __init__(
        self, config: CaseConfig, detector: Detector, segmenter: Stage, classifier: Stage
    ) -> None:
        self.config = config
        self.detector = detector
        self.segmenter = segmenter
        self.classifier = classifier
        self.data = _data(segmenter)

    @staticmethod
    def load(config: CaseConfig) -> Chain:
        """Read all models.

        Raises:
            DetectionError: A handle leads to no model of its stage.
            ExportError: A handle leads to no model of its stage.
            TrackingError: A handle leads to no model of its stage.
            CaseError: The segmenter's card does not say how its patches are made, or they are none
                around lesions.
        """
        return Chain(
            config,
            Detector.load(config.detector, config.kinds, config.tracking_uri),
            Stage.load(config.segmenter, "image", "mask", config.tracking_uri),
            Stage.load(config.classifier, "mask", "shapes", config.tracking_uri),
        )

    def read(self, mammogram: Mammogram) -> Case:
        """Run every stage on one mammogram; no detection gives a case without findings.

        Args:
            mammogram: As a reader gives it; its own lesions are not looked at.

        Raises:
            CaseError: Its pixels can't be read or are constant, or it does not state what the
                models' preprocessing needs (laterality, view, spacing).
        """
        try:
            image = mammogram.pixels()
            held = replace(mammogram, lesions=(), read=partial(_held, image))
            found = self.detector.predict(held).above(self.config.score)
            boxes = [_whole_px(box, mammogram) for box in found.boxes]
            lesions = tuple(
                Lesion(kind, box) for kind, box in zip(found.classes, boxes, strict=True)
            )
            prepared = preprocess.preprocess_mammogram(replace(held, lesions=lesions), self.data.preprocess)
            pixels = prepared.pixels() if lesions else image
        except ValueError as error:
            raise CaseError(str(error)) from error
        findings = [
            self._finding(
                Finding(lesion.kind, float(score), lesion.box), moved, pixels, prepared, held
            )
            for lesion, score, moved in zip(lesions, found.scores, prepared.lesions, strict=True)
        ]
        return Case(replace(mammogram, lesions=()), image, tuple(findings))

    def describe(self) -> dict[str, dict[str, Any]]:
        """Which models these are: handle, and of one with a card its name, step, commit, data and
        the card's sha256.
        """
        return {
            "detector": _identity(self.detector.handle, self.detector.card),
            "segmenter": _identity(self.segmenter.handle, self.segmenter.card),
            "classifier": _identity(self.classifier.handle, self.classifier.card),
        }

    def _finding(
        self,
        finding: Finding,
        moved: Lesion,
        pixels: NDArray[np.float32],
        prepared: Mammogram,
        native: Mammogram,
    ) -> Finding:
        """A detection with its mask and shape. moved: its box on the prepared mammogram, whose
        pixels these are.
        """
        if finding.kind not in self.data.kinds:
            return replace(
                finding,
                remarks=(f"no mask: the segmenter knows {' and '.join(self.data.kinds)} alone",),
            )
        place = patches.frame(moved.box, prepared, self.data)
        try:
            patch = patches.seen(pixels, place, self.data)
        except ValueError as error:
            return replace(finding, remarks=(f"no mask: {error}",))
        answer = self.segmenter.call(image=patch[np.newaxis])
        mask = postprocess(
            (answer["mask"][0] >= self.config.threshold).astype(np.uint8), self.config.postprocess
        )[..., 0]
        if self.config.single:
            mask = _piece(mask, moved.box, place)
        region = preprocess.restored(_placed(mask, place, prepared), native, self.data.preprocess)
        if not region.any():
            return replace(finding, remarks=("no mask: the segmenter marks nothing in the box",))
        # none of one draw; exports of older versions give 0 all over
        spread = answer.get("uncertainty")
        uncertainty = (
            float(spread[0][mask > 0].mean()) if spread is not None and spread.any() else None
        )
        return self._classified(
            replace(finding, lesion=_lesion(finding.kind, region), uncertainty=uncertainty), native
        )

    def _classified(self, finding: Finding, mammogram: Mammogram) -> Finding:
        lesion = finding.lesion
        size = self.classifier.size
        if lesion is None or lesion.kind != "mass":
            return replace(finding, remarks=("no shape: it is not a mass",))
        try:
            mask = sampling.shape_mask(lesion, mammogram.rows, mammogram.cols, size)
        except ValueError as error:
            return replace(finding, remarks=(f"no shape: {error}",))
        (values,) = self.classifier.call(mask=mask[np.newaxis].astype(np.float32))["shapes"]
        probabilities = dict(zip(SHAPES, values.astype(float).tolist(), strict=True))
        rows = lesion.box[2] - lesion.box[0]
        cols = lesion.box[3] - lesion.box[1]
        small = (
            f"the shape is doubtful: a mask of {rows} x {cols} px was enlarged to {size} x "
            f"{size} px"
        )
        lesion = replace(lesion, shape=max(SHAPES, key=probabilities.__getitem__))
        return replace(
            finding,
            lesion=lesion,
            probabilities=probabilities,
            remarks=(small,) if max(rows, cols) < size // 2 else (),
        )


def _identity(handle: str, card: Mapping[str, Any]) -> dict[str, Any]:
    if not card:
        return {"handle": handle, "card": None}
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    known = {name: card.get(name) for name in ("name", "step", "git_commit", "data_fingerprint")}
    return {"handle": handle, "card": digest, **known}


def _data(segmenter: Stage) -> DataConfig:
    """How a segmenter's patches were made.

    Raises CaseError where that is not known, or no frame around a box makes one.
    """
    try:
        stated = DataConfig.model_validate(segmenter.card["config"]["data"])
        if stated.records:  # the folder of records was made with a config of its own
            stated = DataConfig.model_validate(read_manifest(stated.records).identity["data"])
    except (KeyError, TypeError, ValidationError):
        raise CaseError(
            f"{segmenter.handle}: its {export.CARD} does not say how its patches are made"
        ) from None
    except ValueError as error:
        raise CaseError(
            f"{segmenter.handle}: how its patches are made stood beside its records, and {error}"
        ) from None
    if stated.patches != "lesion":
        raise CaseError(
            f"{segmenter.handle}: was trained on data.patches={stated.patches}, not on frames "
            "around lesions"
        )
    if stated.size != segmenter.size:
        raise CaseError(
            f"{segmenter.handle}: takes {segmenter.size} px, its {export.CARD} says {stated.size}"
        )
    return stated


def _held(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return image


def _whole_px(box: NDArray[np.float32], mammogram: Mammogram) -> Box:
    """A detection's box on whole pixels, of one at least and inside the mammogram."""
    top = min(round(float(box[0])), mammogram.rows - 1)
    left = min(round(float(box[1])), mammogram.cols - 1)
    return top, left, max(round(float(box[2])), top + 1), max(round(float(box[3])), left + 1)


def _piece(mask: NDArray[np.uint8], box: Box, place: Box) -> NDArray[np.uint8]:
    """Of the pieces of a patch's mask the one with most pixels in the box; nothing where none has
    any.
    """
    scale = [length / (place[axis + 2] - place[axis]) for axis, length in enumerate(mask.shape)]
    top, left = (max(0, floor((box[axis] - place[axis]) * scale[axis])) for axis in (0, 1))
    bottom, right = (ceil((box[axis + 2] - place[axis]) * scale[axis]) for axis in (0, 1))
    _, pieces = cv2.connectedComponents(mask, connectivity=8)
    counts = np.bincount(pieces[top:bottom, left:right].ravel(), minlength=2)
    counts[0] = 0
    return (pieces == counts.argmax()).astype(np.uint8) * mask


def _placed(mask: NDArray[np.uint8], place: Box, prepared: Mammogram) -> NDArray[np.uint8]:
    """A patch's mask at its place on the prepared mammogram; what lies beyond the border is cut
    off.
    """
    top, left, bottom, right = place
    whole = preprocess.covered(mask, bottom - top, right - left)[max(0, -top) :, max(0, -left) :]
    canvas = np.zeros((prepared.rows, prepared.cols), np.uint8)
    target = canvas[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    target[...] = whole[: target.shape[0], : target.shape[1]]
    return canvas


def _lesion(kind: LesionKind, region: NDArray[np.uint8]) -> Lesion:
    """A region's outer borders, holes filled, and its box."""
    left, top, width, height = cv2.boundingRect(region)
    return Lesion(kind, (top, left, top + height, left + width), borders(region))


def _meets(box: Box, others: list[Box]) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
