"""The CAD pipeline: a mammogram in; the box, mask and shape of each lesion out.

Each stage is an exported model:

    detect      Detector.predict: boxes and scores on the whole mammogram
    crop        the patch around a box, made as the segmenter's card says its training patches were
    segment     patch -> mask, and the spread of several draws where the model gives it
    clean       morphology (models.cgan.postprocess), on request; then the connected component that
                covers the box best
    classify    the mask of a mass, alone in a square -> irregular, lobular, oval or round

The paper leaves four things open. What was chosen:
- A segmenter's training masks show every lesion in the patch, but a shape is learned from one mass
  alone. So the lesion is the connected component with most pixels in the detected box
  (`single: false` keeps all components).
- A patch is cut around the detected box, which is less tight than an outline's. If the segmenter
  resamples mammograms (data.preprocess.spacing), the patch may be one pixel off that of training.
- A mask is interpolated back to native pixels, thresholded at one half, and its holes are filled,
  as in all records.
- Only masses have shapes.

Deviation: the paper's detector is an SSD. The zoo has none, so configs/pacs.yaml and the examples
name its small Light-Head R-CNN; `detector` takes any.

A stage that can't handle a lesion keeps the results of the stages before it; the lesion's remarks
give the reason. A stage whose model is not named is skipped. Without a detector, regions are given,
or else the whole image is one patch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tfmammo.config import DataConfig, Frozen
from tfmammo.data import preprocess, sampling, windows
from tfmammo.detection.detections import Detector
from tfmammo.errors import PipelineError
from tfmammo.inference.stages import Stage, describe_model, read_training_data
from tfmammo.mammogram import SHAPES, Box, Lesion, LesionKind, Mammogram, hold_pixels, trace_borders
from tfmammo.models.cgan import PostprocessConfig, postprocess
from tfmammo.tracking import export
from tfmammo.tracking.export.card import PACKED

log = logging.getLogger(__name__)

LARGEST_PATCH = 1500  # px of the shorter side: 105 mm of a detector of 0.07 mm


class PipelineConfig(Frozen):
    """The models of the pipeline, and how their outputs are used.

    A model URI is a run's output folder, an export, models:/NAME@ALIAS, models:/NAME/VERSION
    or runs:/ID/PATH.
    """

    detector: str | None = None
    """Model URI of the detector, see Detector.load. None: the whole image is a patch."""
    kinds: tuple[LesionKind, ...] = Field(default=("mass",), min_length=1)
    """Lesion kinds of classes 1, 2, ... of a detector that has no card of this package."""
    segmenter: str | None = None
    """Model URI of an export from image to mask. None: the detector's own masks, if it has any."""
    classifier: str | None = None
    """Model URI of an export from mask to shapes. None: masses have no shapes."""
    score: float = Field(default=0.5, ge=0, le=1)
    """Least score of a detection."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel belongs to the mask from this probability on."""
    postprocess: PostprocessConfig | None = None
    """Morphology that cleans the mask; None: the mask as the network gives it."""
    single: bool = True
    """Keep only the connected component of a mask that covers the box best."""
    tracking_uri: str | None = None
    """Store of models:/ and runs:/ URIs; None: as for `tracking.uri` of a training run."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One region, with what the later stages added.

    Attributes:
        kind: Lesion kind that the detector gives.
        score: The detector's score, in [0, 1]; of a whole patch its mean probability in the mask.
        box: The detector's box [row_min, col_min, row_max, col_max], half-open, native px.
        lesion: The mask as outlines, its own box and, for a mass, its most probable shape; None
            without a mask.
        probabilities: Probability of each of SHAPES; None where no shape was classified.
        uncertainty: Mean standard deviation of the segmenter's draws over the mask, 0 to 0.5; None
            where there is only one draw.
        remarks: What a stage could not do, and what makes its result doubtful.
        output: The segmenter's probabilities in its patch, float32 [size, size, 1].
    """

    kind: LesionKind
    score: float
    box: Box
    lesion: Lesion | None = None
    probabilities: Mapping[str, float] | None = None
    uncertainty: float | None = None
    remarks: tuple[str, ...] = ()
    output: NDArray[np.float32] | None = field(default=None, repr=False)


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

    @property
    def mask(self) -> NDArray[np.uint8]:
        """All findings' masks in one, uint8 [rows, cols], 0 or 1, native px."""
        mask = np.zeros((self.mammogram.rows, self.mammogram.cols), np.uint8)
        for finding in self.findings:
            if finding.lesion:
                mask |= finding.lesion.mask(*mask.shape)
        return mask


@dataclass(frozen=True, eq=False)
class Prepared:
    """A mammogram whose regions are cut out, before the segmenter has seen them.

    Attributes:
        mammogram: The record, without lesions of its own.
        image: Its pixels.
        moved: What the segmenter's preprocessing makes of it.
        findings: Regions without masks.
        boxes: Their boxes on `moved`; None of a whole patch.
        windows: What their patches show of `moved`.
        patches: float32 [size, size, 1] each; None, like its window, where there can't be one.
    """

    mammogram: Mammogram
    image: NDArray[np.float32]
    moved: Mammogram
    findings: tuple[Finding, ...]
    boxes: tuple[Box | None, ...] = ()
    windows: tuple[Box | None, ...] = ()
    patches: tuple[NDArray[np.float32] | None, ...] = ()


class Pipeline:
    """The stages, ready for mammograms; made by `load`.

    Attributes:
        data: How the segmenter's training patches were made; None without a segmenter.
    """

    def __init__(
        self,
        config: PipelineConfig,
        detector: Detector | None,
        segmenter: Stage | None,
        classifier: Stage | None,
    ) -> None:
        self.config = config
        self.detector = detector
        self.segmenter = segmenter
        self.classifier = classifier
        self.data = read_training_data(segmenter) if segmenter else None

    @staticmethod
    def load(config: PipelineConfig) -> Pipeline:
        """Load all models that the config names: at least a detector or a segmenter.

        The segmenter's card must say how its patches are made, and they must be around lesions.
        """
        uri = config.tracking_uri
        if not (config.detector or config.segmenter):
            raise PipelineError("detector: is missing, and so is segmenter; name one of them")
        return Pipeline(
            config,
            Detector.load(config.detector, config.kinds, uri) if config.detector else None,
            Stage.load(config.segmenter, "image", "mask", uri) if config.segmenter else None,
            Stage.load(config.classifier, "mask", "shapes", uri) if config.classifier else None,
        )

    @property
    def gives_masks(self) -> bool:
        """Whether findings have masks: of a segmenter, or of a detector that draws them."""
        return self.segmenter is not None or (self.detector is not None and self.detector.has_masks)

    def list_remarks(self) -> list[str]:
        """List what everybody must know who reads this pipeline's results."""
        remarks = []
        card = self.detector.card if self.detector else {}
        if _is_of_phantoms(card):
            remarks.append(
                "the detector was trained on generated phantoms alone: on a real mammogram its "
                "result means nothing; use one of your own"
            )
        elif card.get(PACKED):
            remarks.append(
                "the detector is a small one that comes with the package: it missed half of the "
                "masses in mammograms of unseen patients, at 1 false positive per image; use one "
                "of your own"
            )
        if self.classifier and _is_of_phantoms(self.classifier.card):
            remarks.append(
                "the classifier was trained on outlines of generated phantoms alone: what it "
                "says of a real mass means nothing; use one of your own"
            )
        return remarks

    def predict(
        self, mammogram: Mammogram, regions: Sequence[Finding] | None = None
    ) -> PipelineResult:
        """Run every stage on one mammogram.

        Args:
            mammogram: As an archive gives it; its own lesions are ignored.
            regions: Boxes that take the place of the detector's.

        Returns:
            The findings; none where nothing was detected.

        Raises:
            PipelineError: Its pixels can't be read or are constant, or it does not state what the
                models' preprocessing needs (laterality, view, spacing).
        """
        return self.segment([self.prepare(mammogram, regions)])[0]

    def warn_of_whole_images(self) -> None:
        """Log that a segmenter of whole images sees no crop of a box."""
        if self.segmenter and self.data and self.data.frame == "full":
            log.warning(
                "%s was trained on images taken whole (data.frame=full): it sees the whole image, "
                "whatever its boxes are; train on crops of boxes with another data.frame",
                self.segmenter.handle,
            )

    def prepare(self, mammogram: Mammogram, regions: Sequence[Finding] | None = None) -> Prepared:
        """Read a mammogram, find its regions and cut out their patches; see `predict`."""
        whole = regions is None and self.detector is None
        if whole and min(mammogram.rows, mammogram.cols) > LARGEST_PATCH:
            raise PipelineError(
                f"has {mammogram.rows} x {mammogram.cols} px, and the segmenter takes patches; "
                "name the regions by a detector or as boxes (--boxes)"
            )
        try:
            image = mammogram.pixels()
            native = mammogram.with_pixels(hold_pixels(image), lesions=())
            findings = tuple(self._find(native) if regions is None else regions)
            if self.data is None:
                return Prepared(replace(mammogram, lesions=()), image, native, findings)
            data = self.data.model_copy(update={"frame": "full"}) if whole else self.data
            lesions = tuple(Lesion(finding.kind, finding.box) for finding in findings)
            moved = preprocess.preprocess_mammogram(
                replace(native, lesions=lesions), data.preprocess
            )
            pixels = moved.pixels() if lesions else image
        except ValueError as error:
            raise PipelineError(str(error)) from error
        cut = [
            _cut_patch(finding, lesion.box, pixels, moved, data)
            for finding, lesion in zip(findings, moved.lesions, strict=True)
        ]
        return Prepared(
            replace(mammogram, lesions=()),
            image,
            moved,
            tuple(finding for finding, _, _ in cut),
            tuple(None if whole else lesion.box for lesion in moved.lesions),
            tuple(window for _, window, _ in cut),
            tuple(patch for _, _, patch in cut),
        )

    def segment(self, prepared: Sequence[Prepared]) -> list[PipelineResult]:
        """Add masks and shapes to prepared mammograms, whose patches the segmenter sees together.

        Args:
            prepared: Of `prepare`.

        Returns:
            The findings in each.
        """
        patches = [patch for each in prepared for patch in each.patches if patch is not None]
        outputs: export.Tensors = {}
        if self.segmenter and patches:
            outputs = export.predict(self.segmenter.call, {"image": np.stack(patches)})
        results = []
        row = 0
        for each in prepared:
            findings = list(each.findings)
            for number, patch in enumerate(each.patches):
                if patch is not None:
                    output = {name: values[row] for name, values in outputs.items()}
                    findings[number] = self._add_mask(each, number, output)
                    row += 1
            results.append(PipelineResult(each.mammogram, each.image, tuple(findings)))
        return results

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the models: URI, and of one with a card its name, step, commit, data and sha256.

        The sha256 is that of the card.
        """
        return {
            name: describe_model(stage.handle, stage.card) for name, stage in self._list_stages()
        }

    def hash_models(self) -> dict[str, str]:
        """Compute the SHA-256 of the files of each stage's SavedModel."""
        return {
            name: stage.hash_files()
            if isinstance(stage, Detector)
            else export.hash_files(stage.folder, stage.name)
            for name, stage in self._list_stages()
        }

    def _list_stages(self) -> list[tuple[str, Detector | Stage]]:
        stages = (
            ("detector", self.detector),
            ("segmenter", self.segmenter),
            ("classifier", self.classifier),
        )
        return [(name, stage) for name, stage in stages if stage]

    def _find(self, native: Mammogram) -> list[Finding]:
        """Detect regions; without a detector the whole image is one."""
        if self.detector is None:
            assert self.data
            return [Finding(self.data.kinds[0], 0.0, (0, 0, native.rows, native.cols))]
        detections = self.detector.predict(native).above(self.config.score)
        findings = [
            Finding(kind, float(score), _round_box(box, native))
            for kind, score, box in zip(
                detections.classes, detections.scores, detections.boxes, strict=True
            )
        ]
        if self.segmenter or detections.masks is None:
            return findings
        return [
            self._classify(replace(finding, lesion=_make_lesion(finding.kind, mask)), native)
            if mask.any()
            else finding
            for finding, mask in zip(findings, detections.masks, strict=True)
        ]

    def _add_mask(self, prepared: Prepared, number: int, outputs: export.Tensors) -> Finding:
        """Add mask and shape to a finding, given what the segmenter says of its patch."""
        finding = prepared.findings[number]
        box = prepared.boxes[number]
        window = prepared.windows[number]
        output = outputs["mask"]
        assert self.data and window
        mask = (output >= self.config.threshold).astype(np.uint8)
        if self.config.postprocess:
            mask = postprocess(mask, self.config.postprocess)
        mask = mask[..., 0]
        if self.config.single and box:
            mask = _select_component(mask, box, window)
        canvas = _place_mask(mask, window, prepared.moved)
        region = preprocess.map_to_native(canvas, prepared.mammogram, self.data.preprocess)
        finding = replace(finding, output=output)
        if not region.any():
            where = "box" if box else "patch"
            return replace(
                finding, remarks=(f"no mask: the segmenter marks nothing in the {where}",)
            )
        spread = outputs.get("uncertainty")  # a single draw has none
        uncertainty = None if spread is None else float(spread[mask > 0].mean())
        lesion = _make_lesion(finding.kind, region)
        if box is None:
            finding = replace(finding, score=float(output[mask > 0].mean()))
        return self._classify(
            replace(finding, lesion=lesion, uncertainty=uncertainty), prepared.mammogram
        )

    def _classify(self, finding: Finding, mammogram: Mammogram) -> Finding:
        """Add the shape to a finding that has a mask."""
        lesion = finding.lesion
        if self.classifier is None:
            return finding
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


def _is_of_phantoms(card: Mapping[str, Any]) -> bool:
    """Whether a model was trained on generated phantoms, as its card says."""
    data = card.get("config", {}).get("data", {})
    return card.get("archive", data.get("name")) == "phantom"


def _cut_patch(
    finding: Finding, box: Box, pixels: NDArray[np.float32], moved: Mammogram, data: DataConfig
) -> tuple[Finding, Box | None, NDArray[np.float32] | None]:
    """Cut the patch around a box on the preprocessed mammogram.

    Returns:
        The finding with the reason why there is none, the window, and the patch.
    """
    if finding.kind not in data.kinds:
        kinds = " and ".join(data.kinds)
        reason = f"the segmenter was trained on {kinds} only"
        return replace(finding, remarks=(f"no mask: {reason}",)), None, None
    window = windows.crop_window(box, moved, data)
    try:
        return finding, window, windows.extract_window(pixels, window, data)
    except ValueError as error:
        return replace(finding, remarks=(f"no mask: {error}",)), None, None


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
    """Place a patch's mask on the prepared mammogram; what is beyond the border is cut off."""
    top, left, bottom, right = window
    resized = preprocess.resize_mask_to(mask, bottom - top, right - left)
    mammogram = (-top, -left, prepared.rows - top, prepared.cols - left)  # as the window sees it
    return windows.crop_image(resized[..., None], mammogram)[..., 0]


def _make_lesion(kind: LesionKind, region: NDArray[np.uint8]) -> Lesion:
    """Return the lesion of a region: its outer borders, holes filled, and its box."""
    left, top, width, height = cv2.boundingRect(region)
    return Lesion(kind, (top, left, top + height, left + width), trace_borders(region))
