"""Run detectors on pairs: scores at the lesion's place, and the limit above which one counts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.apps.stress.config import StressConfig
from tfmammo.apps.stress.detectors import StressedDetector
from tfmammo.apps.stress.pairs import Condition, Pair
from tfmammo.detection.detections import Detections
from tfmammo.mammogram import Box, Mammogram, stack_boxes
from tfmammo.metrics.boxes import find_hits

log = logging.getLogger(__name__)

SIDE = 128  # px of a picture of a pair
AROUND = 2.5  # the shown side over the lesion's longer side
LEAST_SHOWN = 96  # px of the shown side


@dataclass(frozen=True, eq=False)
class Outcome:
    """One detector's scores of one pair: the highest of the detections that hit the lesion's box.

    A score is 0 if none does. `picture` shows the surroundings before and after, see `draw_pair`.
    """

    detector: str
    method: str
    patient: str
    image: str
    density: str  # in the archive's words; "" if it states none
    box: Box
    condition: Condition | None
    contrast: float
    size: float
    before: float
    after: float
    controls: Mapping[str, float]
    picture: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Trial:
    """One detector's outcomes of all pairs."""

    outcomes: Sequence[Outcome]
    limit: float  # a detection counts above this score
    fppi: float  # false positives per mammogram above it, before anything is inserted

    def list_of(self, method: str) -> list[Outcome]:
        """List the outcomes of a method."""
        return [outcome for outcome in self.outcomes if outcome.method == method]


def run(
    detectors: Mapping[str, StressedDetector], pairs: Iterable[Pair], config: StressConfig
) -> dict[str, Trial]:
    """Run all detectors on all pairs; each sees a mammogram before insertion once."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in detectors}
    bases: dict[str, dict[str, Detections]] = {name: {} for name in detectors}
    false_positives: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in detectors}
    batch: list[Pair] = []
    images = 0

    def work() -> None:
        pictures = [draw_pair(pair) for pair in batch]
        for name, detector in detectors.items():
            outcomes[name] += _detect(name, detector, batch, pictures, bases[name], config)
            for pair in batch:
                if pair.condition:  # a removal's mammogram may have further lesions, unmarked
                    false_positives[name][pair.before.image_id] = _find_false(
                        bases[name][pair.before.image_id], pair.before, config
                    )
        log.info("%d pairs are done", len(next(iter(outcomes.values()))))

    for pair in pairs:
        batch.append(pair)
        images += 2 + len(pair.controls)
        if images >= config.batch:
            work()
            batch.clear()
            images = 0
    if batch:
        work()
    return {
        name: Trial(outcomes[name], *choose_limit(list(false_positives[name].values()), config))
        for name in detectors
    }


def choose_limit(
    false_positives: Sequence[NDArray[np.float32]], config: StressConfig
) -> tuple[float, float]:
    """Choose the score above which a detection counts: `score` if given, else by `fppi`.

    Given the scores of the false positives in each mammogram, also return how many per mammogram
    are above that limit.
    """
    scores = np.sort(np.concatenate([np.empty(0), *false_positives]))[::-1]
    images = max(1, len(false_positives))
    allowed = int(config.fppi * images + 1e-9)
    limit = float(scores[allowed]) if allowed < len(scores) else 0.0
    if config.score is not None:
        limit = config.score
    return limit, float((scores > limit).sum() / images)


def score_box(detections: Detections, box: Sequence[float], config: StressConfig) -> float:
    """Return the highest score of the detections that hit a box, native px; 0 if none does."""
    truth = np.array([box], np.float64)
    hits = find_hits(detections.boxes, truth, config.threshold, config.criterion)[:, 0]
    return float(detections.scores[hits].max(initial=0.0))


def _detect(
    name: str,
    detector: StressedDetector,
    pairs: Sequence[Pair],
    pictures: Sequence[NDArray[np.uint8]],
    known: dict[str, Detections],
    config: StressConfig,
) -> list[Outcome]:
    """Detect in all images of some pairs; `known` keeps what is found before insertion."""
    new = {pair.before.image_id: pair.before for pair in pairs if pair.before.image_id not in known}
    changed = [image for pair in pairs for image in (pair.after, *pair.controls.values())]
    found = detector.detect([*new.values(), *changed])
    known.update(zip(new, found, strict=False))
    rest = iter(found[len(new) :])
    outcomes = []
    for pair, picture in zip(pairs, pictures, strict=True):
        after = next(rest)
        controls = {control: score_box(next(rest), pair.box, config) for control in pair.controls}
        outcomes.append(
            Outcome(
                detector=name,
                method=pair.method,
                patient=pair.before.patient_id,
                image=pair.before.image_id,
                density=pair.before.density or "",
                box=pair.box,
                condition=pair.condition,
                contrast=pair.contrast,
                size=pair.size,
                before=score_box(known[pair.before.image_id], pair.box, config),
                after=score_box(after, pair.box, config),
                controls=controls,
                picture=picture,
            )
        )
    return outcomes


def _find_false(
    detections: Detections, mammogram: Mammogram, config: StressConfig
) -> NDArray[np.float32]:
    """Return the scores of the detections that hit no lesion."""
    truth = stack_boxes(mammogram.lesions)
    hits = find_hits(detections.boxes, truth, config.threshold, config.criterion)
    return detections.scores[~hits.any(axis=1)]


def draw_pair(pair: Pair) -> NDArray[np.uint8]:
    """Draw a pair's surroundings, before and after, on one grey scale: uint8 [SIDE, 2 SIDE]."""
    top, left, bottom, right = pair.box
    half = round(max(AROUND * max(bottom - top, right - left), LEAST_SHOWN) / 2)
    row = (top + bottom) // 2
    col = (left + right) // 2
    crops = []
    for mammogram in (pair.before, pair.after):
        padded = np.pad(mammogram.pixels()[..., 0], half)
        crop = np.ascontiguousarray(padded[row : row + 2 * half, col : col + 2 * half])
        crops.append(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    both = np.concatenate(crops, axis=1)
    low, high = np.percentile(both, (0.5, 99.8))
    scaled = np.clip((both - low) / max(float(high - low), 1e-6), 0, 1)
    return np.rint(255 * scaled).astype(np.uint8)
