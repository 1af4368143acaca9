"""Predict on many images: masks and boxes, written as files or one result after the other.

    predict.json                what made the folder
    masks/NAME.png              0 tissue, 255 lesion, in the image's own pixels
    segmentations/NAME.dcm      DICOM SEG of a DICOM image with a lesion
    overviews/NAME.png          boxes, outlines and scores over the image, on request
    findings/NAME.json          each lesion's box, outline, score, size and shape
    images.json                 COCO: the images, and with `truth` their lesions
    predictions.json            COCO results: the predicted lesions
    lesions.csv                 the predicted lesions as a table
    scores.csv                  with `truth`: measures of each image
    failures.csv                images without a result, and why

NAME is the image's path without its ending. `findings` is written last, so an image that has it is
finished. A segmenter sees the regions in `boxes`, cut out as its training patches were, or else
whole images, which must be patches then.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import tfmammo
from tfmammo import filesystem
from tfmammo.archives.files import PREDICTIONS
from tfmammo.config import describe
from tfmammo.data.runners import Runner, complete_parts
from tfmammo.detection.detections import OUTPUTS, locate_model
from tfmammo.errors import ConfigError, PipelineError
from tfmammo.inference.images import (
    TRUTH,
    Image,
    add_boxes,
    is_patch,
    name_unopened,
    open_images,
    predict_each,
)
from tfmammo.inference.pipeline import LARGEST_PATCH, Pipeline, PipelineConfig, PipelineResult
from tfmammo.inference.writing import (
    Part,
    Summary,
    load,
    make,
    read_part,
    remove_results,
    write_lists,
)
from tfmammo.mammogram import LesionKind, Mammogram, Skipped
from tfmammo.models.cgan import PostprocessConfig

log = logging.getLogger(__name__)

TOGETHER = 8  # whole patches that a network sees at once
Images = str | Path | Mammogram | Iterable[str | Path | Mammogram]


def predict(
    model: str | Path,
    images: Images,
    *,
    boxes: str | Path | None = None,
    archive: str | None = None,
    classifier: str | Path | None = None,
    kinds: Sequence[LesionKind] | None = None,
    score: float = 0.5,
    threshold: float = 0.5,
    postprocess: bool = False,
    skipped: Skipped | None = None,
    tracking_uri: str | None = None,
) -> Iterator[PipelineResult]:
    """Find lesions in images, one image after the other.

    Args:
        model: Handle of a segmenter or a detector.
        images: Files, folders of them at any depth, or records of an archive.
        boxes: The regions that a segmenter sees: the handle of a detector; a COCO file; a CSV table
            with the columns file, row_min, col_min, row_max, col_max; or "truth", the lesions that
            the archive states. None: each image is a patch.
        archive: The archive that `images` is the folder of.
        classifier: Handle of a network that classifies the shapes of outlined masses.
        kinds: Lesion kinds of classes 1, 2, ... of a detector that was trained elsewhere; None:
            class 1 is masses.
        score: Least score of a detection.
        threshold: A pixel belongs to the mask from this probability on.
        postprocess: Clean masks by Singh et al.'s morphology, see PostprocessConfig. Evaluations
            score masks as the network gives them.
        skipped: Takes images that can't be read or processed, and why. None raises at the end.
        tracking_uri: Store of handles that begin with runs:/ or models:/.

    Yields:
        The result of an image. Its `findings` have kind, score, box and, where there is a mask,
        lesion; `mask` is all of them in one, uint8 [rows, cols] of the image's own pixels.

    Raises:
        ConfigError: There is no such image, boxes or morphology are given to a detector, a
            classifier where nothing is outlined, or kinds to a detector whose card names them.
        TfmammoError: The model can't be read.
    """
    failed = Skipped() if skipped is None else skipped
    config = _make_config(
        model, boxes, classifier, kinds, score, threshold, postprocess, tracking_uri
    )
    opened = _open(_list_given(images), boxes, archive, failed)
    pipeline = Pipeline.load(config)
    _check(pipeline, opened, boxes)
    for waiting in _divide(opened, config):
        for _, result in predict_each(pipeline, waiting, failed):
            yield result
    if skipped is None and failed:
        raise PipelineError("; ".join(f"{file}: {why}" for file, why in failed.reasons.items()))


def predict_files(
    model: str | Path,
    images: Images,
    output: str | Path,
    *,
    boxes: str | Path | None = None,
    archive: str | None = None,
    classifier: str | Path | None = None,
    kinds: Sequence[LesionKind] | None = None,
    score: float = 0.5,
    threshold: float = 0.5,
    postprocess: bool = False,
    overview: bool = False,
    truth: bool = False,
    jobs: int = 1,
    tracking_uri: str | None = None,
) -> Summary:
    """Find lesions in images and write masks, boxes and DICOM SEG, as `tfmammo predict` does.

    A second call makes what is missing. An image that can't be used does not stop the others: it is
    among the summary's failures. Arguments that are not listed here are those of `predict`.

    Args:
        output: A new folder, or one of an earlier call with the same models and settings.
        archive: As of `predict`; with `truth` by default "folder".
        overview: Draw what was found on each image.
        truth: Score the results by the lesions that the archive states.
        jobs: Processes that work at once, each with its own copy of the model.

    Raises:
        ConfigError: As `predict`, or the folder holds other files or results of another call.
        TfmammoError: The model can't be read.
    """
    failed = Skipped()
    config = _make_config(
        model, boxes, classifier, kinds, score, threshold, postprocess, tracking_uri
    )
    output = Path(output)
    archive = archive or ("folder" if truth else None)
    given = _list_given(images)
    opened = _open(given, boxes, archive, failed, output)
    unopened = name_unopened(given, opened, failed)
    settings = config.model_dump(
        mode="json", exclude={"detector", "segmenter", "classifier", "tracking_uri"}
    )
    load.cache_clear()  # a folder may hold another model by now
    pipeline = load(config)
    _check(pipeline, opened, boxes)
    identity = {
        "models": pipeline.hash_models(),
        "settings": settings | {"overview": overview, "truth": truth},
        "tfmammo": tfmammo.__version__,
    }
    parts = [Part(tuple(some), output, config, overview, truth) for some in _divide(opened, config)]
    with filesystem.claim_folder(output, identity, PREDICTIONS):
        for path in output.glob("findings/**/*.json"):
            if "failure" in json.loads(path.read_text(encoding="utf-8")):
                path.unlink()  # it is tried again
        for name in unopened:
            remove_results(output, name)
        records = complete_parts(
            parts, make, read_part, lambda part: part.images[0].name, Runner(jobs)
        )
        info = {"models": pipeline.describe(), "remarks": pipeline.list_remarks()}
        return write_lists(
            opened, [each for some in records for each in some], failed, output, truth, info
        )


def _make_config(
    model: str | Path,
    boxes: str | Path | None,
    classifier: str | Path | None,
    kinds: Sequence[LesionKind] | None,
    score: float,
    threshold: float,
    postprocess: bool,
    tracking_uri: str | None,
) -> PipelineConfig:
    """Make the config of the stages: a segmenter, a detector, or both."""
    settings: dict[str, Any] = {
        "classifier": None if classifier is None else str(classifier),
        "score": score,
        "threshold": threshold,
        "postprocess": PostprocessConfig() if postprocess else None,
        "tracking_uri": tracking_uri,
    }
    is_segmenter = _is_segmenter(model, tracking_uri)
    detector = str(boxes) if boxes and not _is_given(boxes) else None
    if kinds is not None:
        settings["kinds"] = tuple(kinds)
        _check_kinds(detector if is_segmenter else str(model), tracking_uri)
    try:
        if is_segmenter:
            return PipelineConfig(segmenter=str(model), detector=detector, **settings)
        if boxes:
            raise ConfigError(f"boxes: are for segmenters, and {model} is a detector")
        if postprocess:
            raise ConfigError(
                f"postprocess: cleans the masks of a segmenter, and {model} is a detector"
            )
        return PipelineConfig(detector=str(model), **settings)
    except ValidationError as error:
        raise ConfigError(describe(error, PipelineConfig)) from None


def _check_kinds(detector: str | None, tracking_uri: str | None) -> None:
    """Refuse kinds where no detector takes them."""
    if detector is None:
        raise ConfigError("kinds: are for a detector, and there is none")
    _, card = locate_model(detector, tracking_uri)
    if card:
        raise ConfigError(
            f"kinds: are for a detector trained elsewhere, and the card of {detector} says what it "
            "finds"
        )


def _check(pipeline: Pipeline, images: Sequence[Image], boxes: str | Path | None) -> None:
    """Warn of what makes results doubtful; refuse a classifier without outlines."""
    if pipeline.classifier and not pipeline.gives_masks:
        raise ConfigError(
            f"classifier: names the shapes of outlines, and {pipeline.config.detector} gives boxes "
            "alone; give a segmenter, with the detector as its boxes"
        )
    if boxes:
        pipeline.warn_of_whole_images()
    patches = [image.mammogram for image in images if is_patch(pipeline.config, image)]
    large = sum(min(each.rows, each.cols) > LARGEST_PATCH for each in patches)
    if 0 < large < len(patches):
        log.warning(
            "%d of %d images are too large for crops: if all are mammograms, give boxes; without "
            "them the masks of the others mean nothing",
            large,
            len(patches),
        )
    for remark in pipeline.list_remarks():
        log.warning("%s", remark)


def _is_segmenter(model: str | Path, tracking_uri: str | None) -> bool:
    _, card = locate_model(str(model), tracking_uri)
    if not card:
        return False
    functions = card["functions"].values()
    if any(set(one["inputs"]) == {"image"} and "mask" in one["outputs"] for one in functions):
        return True
    if not any(OUTPUTS[0] in one["outputs"] for one in functions):
        raise ConfigError(f"{model}: is neither a segmenter nor a detector, but {card['name']}")
    return False


def _is_given(boxes: str | Path) -> bool:
    """Whether boxes come from a file or the archive, not from a detector."""
    return str(boxes) == TRUTH or Path(boxes).suffix.lower() in (".json", ".csv")


def _list_given(images: Images) -> list[Path | Mammogram]:
    """List what the caller gives, one thing or several."""
    listed = [images] if isinstance(images, str | Path | Mammogram) else list(images)
    for each in listed:
        if not isinstance(each, str | Path | Mammogram):
            raise ConfigError(
                f"images: {type(each).__name__} is no file, folder or record of an archive; "
                "tfmammo.load gives a function that takes arrays"
            )
    return [Path(each) if isinstance(each, str) else each for each in listed]


def _open(
    given: Sequence[Path | Mammogram],
    boxes: str | Path | None,
    archive: str | None,
    failed: Skipped,
    output: Path | None = None,
) -> list[Image]:
    """Open images with their boxes."""
    if str(boxes) == TRUTH and not archive and any(isinstance(each, Path) for each in given):
        raise ConfigError("boxes: truth is what an archive states; name the archive")
    opened = open_images(given, failed, archive, output)
    return add_boxes(opened, boxes, failed) if boxes and _is_given(boxes) else opened


def _divide(images: list[Image], config: PipelineConfig) -> list[list[Image]]:
    """Divide images into those that are in memory together: patches, or single mammograms."""
    step = TOGETHER if all(is_patch(config, image) for image in images) else 1
    return [images[start : start + step] for start in range(0, len(images), step)]
