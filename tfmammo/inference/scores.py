"""Predictions on one image, scored by the lesions that the archive states."""

from __future__ import annotations

from itertools import compress
from typing import Any

import numpy as np

from tfmammo.data.extraction import extract_patches
from tfmammo.data.sampling import list_unselected, select_lesions
from tfmammo.inference.images import Image, is_patch
from tfmammo.inference.pipeline import Pipeline, PipelineResult
from tfmammo.mammogram import Lesion, LesionKind, Mammogram, Skipped, stack_boxes
from tfmammo.metrics import boxes, segmentation
from tfmammo.tracking import export

MEASURES = ("dice", "jaccard", "accuracy", "mcc", "lesions", "found", "false_positives")


def find_patients(pipeline: Pipeline) -> frozenset[str]:
    """Find the patients that a stage was trained on, by their pseudonyms."""
    return frozenset[str]().union(
        *(
            export.find_patients(stage.card, stage.handle) or ()
            for stage in (pipeline.detector, pipeline.segmenter)
            if stage
        )
    )


def find_kinds(pipeline: Pipeline) -> tuple[LesionKind, ...]:
    """Find the kinds of lesion that the models find."""
    if pipeline.data:
        return pipeline.data.kinds
    return tuple(pipeline.detector.kinds) if pipeline.detector else ()


def select_truth(pipeline: Pipeline, mammogram: Mammogram) -> list[Lesion]:
    """Select the true lesions of the kinds that the models find."""
    if pipeline.data:
        return list(select_lesions(mammogram, pipeline.data).values())
    return [lesion for lesion in mammogram.lesions if lesion.kind in find_kinds(pipeline)]


def compute_scores(pipeline: Pipeline, image: Image, result: PipelineResult) -> dict[str, float]:
    """Score the result of one image by its true lesions.

    Returns:
        The measures of `metrics.segmentation.per_image`, where the image has an outlined lesion: of
        a whole patch at the network's size, as evaluations score it, else in the image's own
        pixels. Where boxes were detected: lesions, found, and false_positives, by an intersection
        over union above 0.5; boxes on lesions that do not count are neither.

    Raises:
        ArchiveError: A true mask can't be read.
    """
    mammogram = image.mammogram
    lesions = select_truth(pipeline, mammogram)
    scores: dict[str, float] = {}
    if pipeline.data and is_patch(pipeline.config, image):
        config = pipeline.data.model_copy(update={"frame": "full"})
        for patch in extract_patches(mammogram, config, Skipped()):
            output = result.findings[0].output
            assert output is not None
            scores = _score_mask(patch.mask, output, pipeline.config.threshold)
    elif outlined := [lesion for lesion in lesions if lesion.outlines]:
        masks = [lesion.mask(mammogram.rows, mammogram.cols) for lesion in outlined]
        if any(finding.lesion for finding in result.findings) or pipeline.segmenter:
            scores = _score_mask(np.max(masks, axis=0), result.mask)
    if pipeline.detector:
        unwanted = list_unselected(mammogram, pipeline.data) if pipeline.data else []
        detected = np.reshape([finding.box for finding in result.findings], (-1, 4))
        truth = stack_boxes(lesions)
        spared = boxes.find_spared(detected, truth, stack_boxes(unwanted), threshold=0.5)
        found = list(compress(result.findings, ~spared))
        matches = boxes.match_kinds(
            detected[~spared],
            np.array([finding.score for finding in found]),
            [finding.kind for finding in found],
            truth,
            [lesion.kind for lesion in lesions],
        )
        scores |= {
            "lesions": matches.lesions,
            "found": len(matches.hits),
            "false_positives": len(matches.false_positives),
        }
    return scores


def _score_mask(truth: Any, output: Any, threshold: float = 0.5) -> dict[str, float]:
    measures = segmentation.per_image(truth[np.newaxis], output[np.newaxis], threshold)
    return {name: float(values[0]) for name, values in measures.items()}
