"""The CAD pipeline: a mammogram in; the box, mask and shape of each lesion out.

Each stage is an exported model:

    detect      Detector.predict: boxes and scores on the whole mammogram
    crop        the patch around a box, made as the segmenter's card says its training patches were
    segment     patch -> mask, and the spread of several draws where the model gives it
    clean       morphology (models.cgan.postprocess); then the connected component that covers the
                box best
    classify    the mask of a mass, alone in a square -> irregular, lobular, oval or round

The paper leaves four things open. What was chosen:
- A segmenter's training masks show every lesion in the patch, but a shape is learned from one mass
  alone. So the lesion is the connected component with most pixels in the detected box
  (`single: false` keeps all components).
- A patch is cut around the detected box, which is less tight than an outline's. If the segmenter
  resamples mammograms (data.preprocess.spacing), the patch may lie one pixel off that of training.
- A mask is interpolated back to native pixels, thresholded at one half, and its holes are filled,
  as in all records.
- Only masses have shapes.

Deviation: the paper's detector is an SSD. configs/case.yaml names the zoo's small Light-Head R-CNN,
since the zoo has no SSD; `detector` takes any.

A stage that can't handle a lesion keeps the results of the stages before it; the lesion's remarks
give the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, floor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tfmammo.config import DataConfig, Frozen
from tfmammo.data import preprocess, sampling, windows
from tfmammo.data.tfrecord import read_manifest
from tfmammo.detection.detections import Detector
from tfmammo.errors import PipelineError
from tfmammo.mammogram import Box, Lesion, LesionKind, Mammogram, hold_pixels, trace_borders
from tfmammo.models.cgan import PostprocessConfig, postprocess
from tfmammo.models.shape import SHAPES
from tfmammo.tracking import export, models
from tfmammo.tracking.export.card import PACKED, remove_places


class PipelineConfig(Frozen):
    """The models of the pipeline, and how their outputs are used.

    A model URI is a training's output folder, an export, models:/NAME@ALIAS, models:/NAME/VERSION
    or runs:/ID/PATH.
    """

    detector: str
    """Model URI of the detector, see Detector.load."""
    kinds: tuple[LesionKind, ...] = Field(default=("mass",), min_length=1)
    """Lesion kinds of classes 1, 2, ... of a detector that has no card of this package."""
    segmenter: str
    """Model URI of an export from image to mask."""
    classifier: str
    """Model URI of an export from mask to shapes."""
    score: float = Field(default=0.5, ge=0, le=1)
    """Least score of a detection."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel belongs to the mask from this probability on."""
    postprocess: PostprocessConfig = PostprocessConfig()
    """Morphology that cleans the mask, see PostprocessConfig."""
    single: bool = True
    """Keep only the connected component of a mask that covers the box best."""
    tracking_uri: str | None = None
    """Store of models:/ and runs:/ URIs; None: as for `tracking.uri` of a training."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One detection, with what the later stages added.

    Attributes:
        kind: Lesion kind that the detector gives.
        score: The detector's score, in [0, 1].
        box: The detector's box [row_min, col_min, row_max, col_max], half-open, native px.
        lesion: The mask as outlines, its own box and, for a mass, its most probable shape; None
            without a mask.
        probabilities: Probability of each of SHAPES; None where no shape was classified.
        uncertainty: Mean standard deviation of the segmenter's draws over the mask, 0 to 0.5; None
            where there is only one draw.
        remarks: What a stage could not do, and what makes its result doubtful.
    """

    kind: LesionKind
    score: float
    box: Box
    lesion: Lesion | None = None
    probabilities: Mapping[str, float] | None = None
    uncertainty: float | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PipelineResult:
    """The findings in one mammogram.

    Attributes:
        mammogram: The record, without lesions of its own.
        image: float32 [rows, cols, 1] in [0, 1], native px.
        findings: Highest score first.
    """

    mammogram: Mammogram
    image: NDArray[np.float32]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """One function of an export.

    Attributes:
        handle: Model URI.
        card: The export's card.
        size: Rows and columns of the input, px.
        call: Name -> float32 array, see export.load.
        folder: The export's folder.
        name: The function's name.
    """

    handle: str
    card: Mapping[str, Any]
    size: int
    call: Callable[..., export.Tensors]
    folder: Path
    name: str

    @staticmethod
    def load(handle: str, source: str, target: str, uri: str | None) -> Stage:
        """Load the function of an export that leads from `source` to `target`.

        Args:
            handle: Model URI.
            source: Name of the input.
            target: Name of the output.
            uri: Store of models:/ and runs:/ URIs.

        Raises:
            ExportError: The export has no such function, or can't be read.
            TrackingError: The URI leads to no export.
        """
        folder = models.resolve(handle, uri)
        name = export.find_function(folder, {source}, {target})
        card = export.read_card(folder)
        size = card["functions"][name]["inputs"][source]["shape"][1]
        return Stage(handle, card, size, export.load(folder, name), folder, name)


class Pipeline:
    """All stages, ready for mammograms; made by `load`.

    Attributes:
        data: How the segmenter's training patches were made.
    """

    def __init__(
        self, config: PipelineConfig, detector: Detector, segmenter: Stage, classifier: Stage
    ) -> None:
        self.config = config
        self.detector = detector
        self.segmenter = segmenter
        self.classifier = classifier
        self.data = _training_data(segmenter)

    @staticmethod
    def load(config: PipelineConfig) -> Pipeline:
        """Load all models.

        Raises:
            DetectionError: The detector's URI leads to no detector.
            ExportError: An export has no function for its stage.
            TrackingError: A model URI leads to no export.
            PipelineError: The segmenter's card does not say how its patches are made, or they are
                not patches around lesions.
        """
        return Pipeline(
            config,
            Detector.load(config.detector, config.kinds, config.tracking_uri),
            Stage.load(config.segmenter, "image", "mask", config.tracking_uri),
            Stage.load(config.classifier, "mask", "shapes", config.tracking_uri),
        )

    def list_remarks(self) -> list[str]:
        """List what everybody must know who reads this pipeline's results."""
        card = self.detector.card
        data = card.get("config", {}).get("data", {})
        if card.get("archive", data.get("name")) == "phantom":
            return [
                "the detector was trained on generated phantoms alone: on a real mammogram its "
                "result means nothing; name your own by detector=RUN"
            ]
        if card.get(PACKED):
            return [
                "the detector is a small one that comes with the package: it missed half of the "
                "masses in mammograms of unseen patients; name your own by detector=RUN"
            ]
        return []

    def predict(self, mammogram: Mammogram) -> PipelineResult:
        """Run every stage on one mammogram.

        Args:
            mammogram: As an archive gives it; its own lesions are ignored.

        Returns:
            The findings; none where nothing was detected.

        Raises:
            PipelineError: Its pixels can't be read or are constant, or it does not state what the
                models' preprocessing needs (laterality, view, spacing).
        """
        try:
            image = mammogram.pixels()
            native = mammogram.with_pixels(hold_pixels(image), lesions=())
            detections = self.detector.predict(native).above(self.config.score)
            lesions = tuple(
                Lesion(kind, _round_box(box, mammogram))
                for kind, box in zip(detections.classes, detections.boxes, strict=True)
            )
            prepared = preprocess.preprocess_mammogram(
                replace(native, lesions=lesions), self.data.preprocess
            )
            pixels = prepared.pixels() if lesions else image
        except ValueError as error:
            raise PipelineError(str(error)) from error
        findings = []
        for lesion, score, moved in zip(lesions, detections.scores, prepared.lesions, strict=True):
            finding = Finding(lesion.kind, float(score), lesion.box)
            findings.append(self._segment(finding, moved.box, pixels, prepared, native))
        return PipelineResult(replace(mammogram, lesions=()), image, tuple(findings))

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the models: URI, and of one with a card its name, step, commit, data and sha256.

        The sha256 is that of the card.
        """
        return {
            "detector": _describe_model(self.detector.handle, self.detector.card),
            "segmenter": _describe_model(self.segmenter.handle, self.segmenter.card),
            "classifier": _describe_model(self.classifier.handle, self.classifier.card),
        }

    def hash_models(self) -> dict[str, str]:
        """Compute the SHA-256 of the files of each stage's SavedModel."""
        return {
            "detector": self.detector.hash_files(),
            "segmenter": export.hash_files(self.segmenter.folder, self.segmenter.name),
            "classifier": export.hash_files(self.classifier.folder, self.classifier.name),
        }

    def _segment(
        self,
        finding: Finding,
        box: Box,
        pixels: NDArray[np.float32],
        prepared: Mammogram,
        native: Mammogram,
    ) -> Finding:
        """Add mask and shape to a detection.

        Args:
            finding: The detection.
            box: Its box on the prepared mammogram.
            pixels: Those of the prepared mammogram.
            prepared: The mammogram as the segmenter's preprocessing gives it.
            native: The mammogram in native pixels.
        """
        if finding.kind not in self.data.kinds:
            kinds = " and ".join(self.data.kinds)
            return replace(
                finding, remarks=(f"no mask: the segmenter was trained on {kinds} only",)
            )
        window = windows.crop_window(box, prepared, self.data)
        try:
            patch = windows.extract_window(pixels, window, self.data)
        except ValueError as error:
            return replace(finding, remarks=(f"no mask: {error}",))
        output = self.segmenter.call(image=patch[np.newaxis])
        binary = (output["mask"][0] >= self.config.threshold).astype(np.uint8)
        mask = postprocess(binary, self.config.postprocess)[..., 0]
        if self.config.single:
            mask = _select_component(mask, box, window)
        canvas = _place_mask(mask, window, prepared)
        region = preprocess.map_to_native(canvas, native, self.data.preprocess)
        if not region.any():
            return replace(finding, remarks=("no mask: the segmenter marks nothing in the box",))
        spread = output.get("uncertainty")  # a single draw has none
        uncertainty = None if spread is None else float(spread[0][mask > 0].mean())
        lesion = _make_lesion(finding.kind, region)
        return self._classify(replace(finding, lesion=lesion, uncertainty=uncertainty), native)

    def _classify(self, finding: Finding, mammogram: Mammogram) -> Finding:
        """Add the shape to a finding that has a mask."""
        lesion = finding.lesion
        size = self.classifier.size
        if lesion is None or lesion.kind != "mass":
            return replace(finding, remarks=("no shape: it is not a mass",))
        try:
            mask = sampling.draw_shape_mask(lesion, mammogram.rows, mammogram.cols, size)
        except ValueError as error:
            return replace(finding, remarks=(f"no shape: {error}",))
        (values,) = self.classifier.call(mask=mask[np.newaxis].astype(np.float32))["shapes"]
        probabilities = dict(zip(SHAPES, values.astype(float).tolist(), strict=True))
        rows = lesion.box[2] - lesion.box[0]
        cols = lesion.box[3] - lesion.box[1]
        remarks: tuple[str, ...] = ()
        if max(rows, cols) < size // 2:
            remarks = (
                f"the shape is doubtful: a mask of {rows} x {cols} px was enlarged to {size} x "
                f"{size} px",
            )
        lesion = replace(lesion, shape=max(SHAPES, key=probabilities.__getitem__))
        return replace(finding, lesion=lesion, probabilities=probabilities, remarks=remarks)


def _describe_model(handle: str, card: Mapping[str, Any]) -> dict[str, Any]:
    handle = remove_places(handle)  # results travel
    if not card:
        return {"handle": handle, "card": None}
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    facts = {name: card.get(name) for name in ("name", "step", "git_commit", "data_fingerprint")}
    return {"handle": handle, "card": digest, **facts}


def _training_data(segmenter: Stage) -> DataConfig:
    """Return how a segmenter's patches were made.

    Raises:
        PipelineError: The card does not say, or no patch around a box can be made that way.
    """
    try:
        data = DataConfig.model_validate(segmenter.card["config"]["data"])
        if data.records:  # the folder of records was made with a config of its own
            data = DataConfig.model_validate(read_manifest(data.records).identity["data"])
    except (KeyError, TypeError, ValidationError):
        raise PipelineError(
            f"{segmenter.handle}: its {export.CARD} does not say how its patches are made"
        ) from None
    except ValueError as error:
        raise PipelineError(
            f"{segmenter.handle}: the manifest of its records, which says how its patches are "
            f"made, can't be used: {error}"
        ) from None
    if data.patches != "lesion":
        raise PipelineError(
            f"{segmenter.handle}: was trained on data.patches={data.patches}, not on patches "
            "around lesions"
        )
    if data.size != segmenter.size:
        raise PipelineError(
            f"{segmenter.handle}: takes {segmenter.size} px, but its {export.CARD} says {data.size}"
        )
    return data


def _round_box(box: NDArray[np.float32], mammogram: Mammogram) -> Box:
    """Round a detection's box to whole pixels, at least one, inside the mammogram."""
    top = min(round(float(box[0])), mammogram.rows - 1)
    left = min(round(float(box[1])), mammogram.cols - 1)
    return top, left, max(round(float(box[2])), top + 1), max(round(float(box[3])), left + 1)


def _select_component(mask: NDArray[np.uint8], box: Box, window: Box) -> NDArray[np.uint8]:
    """Keep the connected component of a patch's mask with most pixels in the box.

    Returns:
        The mask of that component; all 0 where none has a pixel in the box.
    """
    scale = [length / (window[axis + 2] - window[axis]) for axis, length in enumerate(mask.shape)]
    top, left = (max(0, floor((box[axis] - window[axis]) * scale[axis])) for axis in (0, 1))
    bottom, right = (ceil((box[axis + 2] - window[axis]) * scale[axis]) for axis in (0, 1))
    _, components = cv2.connectedComponents(mask, connectivity=8)
    counts = np.bincount(components[top:bottom, left:right].ravel(), minlength=2)
    counts[0] = 0
    return (components == counts.argmax()).astype(np.uint8) * mask


def _place_mask(mask: NDArray[np.uint8], window: Box, prepared: Mammogram) -> NDArray[np.uint8]:
    """Place a patch's mask on the prepared mammogram; what lies beyond the border is cut off."""
    top, left, bottom, right = window
    resized = preprocess.resize_mask_to(mask, bottom - top, right - left)
    inside = resized[max(0, -top) :, max(0, -left) :]
    canvas = np.zeros((prepared.rows, prepared.cols), np.uint8)
    target = canvas[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    target[...] = inside[: target.shape[0], : target.shape[1]]
    return canvas


def _make_lesion(kind: LesionKind, region: NDArray[np.uint8]) -> Lesion:
    """Return the lesion of a region: its outer borders, holes filled, and its box."""
    left, top, width, height = cv2.boundingRect(region)
    return Lesion(kind, (top, left, top + height, left + width), trace_borders(region))
