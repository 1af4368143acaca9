"""Compare segmentation in several crop modes of the same lesions: what evaluate/frames.py writes.

It makes what Singh et al. show of the cGAN besides their loose frames: the three croppings of one
mammogram, masks of all models in each of them, masks before and after morphology, and the failures
in patches that hold a second mass. The table has all models in all crop modes.

Deviations:
- The article's pictures are chosen by hand. Ours show lesions drawn at random, and the best and
  worst by a stated measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from tfmammo.config import DataConfig
from tfmammo.data import datasets
from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation import sheets
from tfmammo.evaluation.comparison import ModelURIs, Name, compare
from tfmammo.evaluation.report import ComparisonReport, Report, average_runs
from tfmammo.evaluation.segmentation import (
    PUBLISHED,
    SegmentationConfig,
    SegmentationSettings,
    draw_panels,
    score_patches,
)
from tfmammo.metrics.case_scores import MEASURES, POSTPROCESSED
from tfmammo.metrics.rows import Fact, join_subset
from tfmammo.metrics.summary import Measure, Scores, Table, correct_p, make_tables
from tfmammo.models.cgan import PostprocessConfig
from tfmammo.training import image_grid
from tfmammo.training.image_grid import draw_outline

Images = NDArray[np.float32]
Frame = Literal["full", "loose", "tight"]
FRAMES: tuple[Frame, ...] = ("full", "loose", "tight")
# Least part of the true mask that counts as a mass: outlines leave specks when they are resampled.
SMALLEST_MASS = 0.05
FOUND = Measure("mean part found", "%", 100, 1)
MISSED = Measure("missed", "", 1, 0)


class FramesConfig(SegmentationSettings):
    """Segmentation models of several crop modes, and the lesions that they are compared on."""

    frames: tuple[Frame, ...] = Field(default=FRAMES, min_length=1)
    """The crop modes, each of which replaces data.frame. An archive of patches that are cropped
    already has "full" alone.
    """
    models: dict[Frame, dict[Name, ModelURIs]] = {}
    """Crop mode -> models that were trained on it, as for evaluate/segmentation.py. A crop mode
    without models is drawn only.
    """
    postprocess: PostprocessConfig = PostprocessConfig()
    """Sizes of the morphological elements."""
    rows: PositiveInt = 3
    """Lesions of each kind that a figure shows."""

    @model_validator(mode="after")
    def _check_models(self) -> FramesConfig:
        for frame, models in self.models.items():
            if not models:
                raise ValueError(f"models.{frame}: names no model; leave {frame} out")
            if frame not in self.frames:
                raise ValueError(f"models.{frame}: {frame} is none of frames")
        return self

    def make_data(self, frame: Frame) -> DataConfig:
        """Return the data section of a crop mode."""
        return self.data.model_copy(update={"frame": frame})

    def make_evaluation(self, frame: Frame) -> SegmentationConfig:
        """Return the config that evaluate/segmentation.py would have for a crop mode."""
        shared = {
            key: getattr(self, key) for key in SegmentationSettings.model_fields if key != "data"
        }
        return SegmentationConfig(
            data=self.make_data(frame),
            models=self.models[frame],
            postprocess=self.postprocess,
            **shared,
        )


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What models make of the patches of one crop mode.

    Attributes:
        frame: The crop mode.
        patches: The patches.
        outputs: Model -> probabilities, float32 [n, s, s, 1]; "NAME + post-processing" and trivial
            baselines too. Empty where no model is given.
        scores: The same names -> measure -> float64 [n].
        networks: The names of the models alone.
    """

    frame: Frame
    patches: Patches
    outputs: Mapping[str, Images] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)
    networks: tuple[str, ...] = ()

    def find_row(self, lesion: str) -> int | None:
        """Find the patch of a lesion "IMAGE#INDEX"; None where there is none.

        In the crop mode "full" it is the whole mammogram.
        """
        name = f"{lesion.rpartition('#')[0]}#full" if self.frame == "full" else lesion
        rows = np.flatnonzero(self.patches.ids == name)
        return int(rows[0]) if len(rows) else None


def evaluate(config: FramesConfig, output: Path) -> Report:
    """Evaluate each crop mode in a folder of its own, and compare them in tables and figures."""
    report = Report(config=None)  # each crop mode is logged by itself
    results = [evaluate_frame(config, frame, output, report) for frame in config.frames]
    lesions = draw_lesions(results, config.rows, config.seed)
    write_croppings(results, lesions, output / "croppings.png")
    with_models = [result for result in results if result.networks]
    if with_models:
        write_overlays(with_models, lesions, config.threshold, output / "overlays.png")
        add_morphology(report, with_models, config)
        write_morphology(with_models, config, output)
        failures = list_failures(with_models, config.threshold)
        report.files["failures.csv"] = failures
        write_failures(with_models, failures, config, output)
        add_failures(report, failures)
    report.write(output)
    return report


def evaluate_frame(config: FramesConfig, frame: Frame, output: Path, report: Report) -> FrameResult:
    """Run the models of one crop mode, if any is given, and write its tables to OUTPUT/FRAME."""
    if frame not in config.models:
        return FrameResult(frame, datasets.load_all_patches(config.make_data(frame)))
    evaluation = config.make_evaluation(frame)
    comparison, *leaky = compare(evaluation, "image", "mask")
    if comparison.protocol == "paper" or leaky:
        raise DataError(
            f"models.{frame}: a model was trained by the leaky protocol, whose copies no other "
            "crop mode holds; evaluate it with evaluate/segmentation.py"
        )
    outputs, runs, notes = score_patches(comparison, evaluation)
    scores = average_runs(runs)
    of_frame = ComparisonReport(
        config=evaluation, measures=MEASURES, published=PUBLISHED, note=f"frame {frame}"
    )
    of_frame.add(comparison, scores, notes=notes)
    of_frame.write(output / frame)
    report.tables += of_frame.tables
    report.facts += [_name_frame(fact, frame) for fact in of_frame.facts]
    return FrameResult(frame, comparison.patches, outputs, scores, tuple(comparison.outputs))


def _name_frame(fact: Fact, frame: str, table: str = "") -> Fact:
    subset = join_subset(f"frame={frame}", fact.subset)
    return replace(fact, subset=subset, table=table or fact.table)


def draw_lesions(results: Sequence[FrameResult], count: int, seed: int) -> list[str]:
    """Draw at most `count` lesions "IMAGE#INDEX" that have a patch in every crop mode."""
    # A whole mammogram does not name its lesions; another crop mode does.
    first = next((result for result in results if result.frame != "full"), results[0])
    names = first.patches.ids.tolist()
    common = [
        name for name in names if all(result.find_row(name) is not None for result in results)
    ]
    if not common:
        raise DataError("no lesion has a patch in every crop mode")
    order = np.random.default_rng(seed).permutation(len(common))[:count]
    return [common[number] for number in order]


def _find_rows(result: FrameResult, lesions: Sequence[str]) -> list[int]:
    rows = [result.find_row(lesion) for lesion in lesions]
    return [row for row in rows if row is not None]


def write_croppings(results: Sequence[FrameResult], lesions: Sequence[str], path: Path) -> None:
    """Write one row a lesion and one column a crop mode, the masses outlined."""
    panels: dict[str, Images] = {}
    for result in results:
        patches = result.patches.take(_find_rows(result, lesions))
        pairs = zip(patches.images, patches.masks, strict=True)
        panels[result.frame] = np.stack([draw_outline(image, mask) for image, mask in pairs])
    image_grid.save_grid(panels, path)


def write_overlays(
    results: Sequence[FrameResult], lesions: Sequence[str], threshold: float, path: Path
) -> None:
    """Write where each model is right and wrong on the same lesions in every crop mode.

    Rows are the lesions of the first crop mode, then those of the next. Models are those that all
    crop modes have. True positives are yellow, false negatives red, false positives green.
    """
    names = [
        name for name in results[0].outputs if all(name in result.outputs for result in results)
    ]
    parts = [
        draw_panels(
            result.patches,
            _find_rows(result, lesions),
            {name: result.outputs[name] for name in names},
            threshold,
        )
        for result in results
    ]
    panels = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    image_grid.save_grid(panels, path)


def add_morphology(report: Report, results: Sequence[FrameResult], config: FramesConfig) -> None:
    """Add each model before and after morphology, and test the difference.

    Holm's correction is over all models and crop modes.
    """
    facts: list[Fact] = []
    for result in results:
        evaluation = config.make_evaluation(result.frame)
        for model in result.networks:
            pair = {name: result.scores[name] for name in (model, f"{model}{POSTPROCESSED}")}
            found = evaluation.summarize(pair, result.patches.patient_ids, MEASURES)
            facts += [_name_frame(fact, result.frame, "morphology") for fact in found]
    facts = correct_p(facts)
    report.facts += facts
    named = []
    for fact in facts:
        frame = fact.subset.removeprefix("frame=")
        against = f"{frame}: {fact.against}" if fact.against else ""
        named.append(replace(fact, model=f"{frame}: {fact.model}", against=against))
    title = f"Before and after morphology; {config.data.archive_name}"
    report.tables += make_tables(named, MEASURES, title, samples=config.samples, level=config.level)


def write_morphology(results: Sequence[FrameResult], config: FramesConfig, output: Path) -> None:
    """Write each crop mode's first model before and after morphology.

    Rows are a random choice, then those whose Dice gains most, then those that lose most.
    """
    for result in results:
        model = result.networks[0]
        smooth = f"{model}{POSTPROCESSED}"
        gain = result.scores[smooth]["dice"] - result.scores[model]["dice"]
        rows = np.concatenate(sheets.choose(gain, config.rows, config.rows, config.seed))
        pair = {name: result.outputs[name] for name in (model, smooth)}
        panels = draw_panels(result.patches, rows, pair, config.threshold)
        image_grid.save_grid(panels, output / f"morphology-{result.frame}.png")


def find_masses(mask: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """Find the connected parts of a mask [rows, cols] that are at least SMALLEST_MASS of it."""
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    parts = [labels == number for number in range(1, count)]
    return [part for part in parts if part.sum() >= SMALLEST_MASS * mask.sum()]


def list_failures(results: Sequence[FrameResult], threshold: float) -> list[dict[str, Any]]:
    """List every mass in every patch, and how much of it each model finds.

    A mass is a connected part of the true mask, of at least SMALLEST_MASS. `masses` is how many
    the patch holds, `area` its part of the true mask, `at_border` whether the patch cuts it off,
    `found` the part of it that the model marks, from 0 to 1.
    """
    lines = []
    for result in results:
        for row, mask in enumerate(result.patches.masks[..., 0]):
            parts = find_masses(mask)
            for number, part in enumerate(parts, start=1):
                edges = (part[0], part[-1], part[:, 0], part[:, -1])
                for model, probabilities in result.outputs.items():
                    marked = probabilities[row, ..., 0] >= threshold
                    lines.append(
                        {
                            "frame": result.frame,
                            "model": model,
                            "id": str(result.patches.ids[row]),
                            "patient": str(result.patches.patient_ids[row]),
                            "masses": len(parts),
                            "mass": number,
                            "area": float(part.sum() / mask.sum()),
                            "at_border": any(bool(edge.any()) for edge in edges),
                            "found": float(marked[part].mean()),
                        }
                    )
    if not lines:
        raise DataError("no patch holds any mass")
    return lines


def add_failures(report: Report, failures: Sequence[Mapping[str, Any]]) -> None:
    """Add how many masses each model misses, alone in their patch or with a neighbour."""
    body = []
    for frame, model in dict.fromkeys((line["frame"], line["model"]) for line in failures):
        cells = [f"{frame}: {model}"]
        of_model = [line for line in failures if (line["frame"], line["model"]) == (frame, model)]
        for which, is_alone in (("alone", True), ("several", False)):
            masses = [line for line in of_model if (line["masses"] == 1) == is_alone]
            missed = sum(line["found"] == 0 for line in masses)
            found = float(np.mean([line["found"] for line in masses])) if masses else np.nan
            cells += [f"{missed} of {len(masses)}", FOUND.show(found)]
            fields = {
                "subset": f"frame={frame};masses={which}",
                "patients": len({line["patient"] for line in masses}),
                "images": len({line["id"] for line in masses}),
            }
            for key, measure, value in (
                ("masses", MISSED, len(masses)),
                ("missed", MISSED, missed),
                ("found", FOUND, found),
            ):
                report.facts.append(measure.make_fact("failures", model, key, value, **fields))
        body.append(cells)
    header = [
        "",
        "alone in their patch: missed completely",
        "mean part found, %",
        "with a neighbour: missed completely",
        "mean part found, %",
    ]
    report.tables.append(Table("Masses that are missed", header, body))


def write_failures(
    results: Sequence[FrameResult],
    failures: Sequence[Mapping[str, Any]],
    config: FramesConfig,
    output: Path,
) -> None:
    """Write each crop mode's patches of which its first model misses the largest masses.

    Rows are a random choice of the patches with several masses, then the patches with the least
    part found of any one mass.
    """
    for result in results:
        model = result.networks[0]
        of_model = [
            line for line in failures if (line["frame"], line["model"]) == (result.frame, model)
        ]
        least: dict[str, float] = {}
        for line in of_model:
            least[line["id"]] = min(least.get(line["id"], 1.0), line["found"])
        several = sorted({line["id"] for line in of_model if line["masses"] > 1})
        order = np.random.default_rng(config.seed).permutation(len(several))[: config.rows]
        names = [several[number] for number in order]
        names += sorted(least, key=lambda name: least[name])[: config.rows]
        place = {name: row for row, name in enumerate(result.patches.ids.tolist())}
        rows = [place[name] for name in names]
        panels = draw_panels(result.patches, rows, result.outputs, config.threshold)
        image_grid.save_grid(panels, output / f"failures-{result.frame}.png")
