"""Segmentation in several crop modes of the same lesions: what evaluate/frames.py writes.

It makes what Singh et al. show of the cGAN beside their loose frames: the three croppings of one
mammogram, masks of all models in each of them, masks before and after morphology, and the failures
in patches that hold a second mass. The table has all models in all crop modes.

Departures:
- The article's pictures are chosen by hand. Here lesions are drawn at random, and the best and
  worst by a stated measure are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tfmammo.config import DataConfig, Frozen
from tfmammo.data import datasets
from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation.comparison import ModelURIs, Name, compare
from tfmammo.evaluation.report import Report, write_markdown
from tfmammo.evaluation.segmentation import (
    CENTRED_DISC,
    MEASURES,
    POSTPROCESSED,
    PUBLISHED,
    WHOLE_PATCH,
    SegmentationConfig,
    score_patches,
)
from tfmammo.evaluation.trainings import average_trainings
from tfmammo.metrics.summary import Row, Scores, Table, convert_units, correct_p, write_csv
from tfmammo.metrics.summary import make_tables as make_summary_tables
from tfmammo.models.cgan import PostprocessConfig
from tfmammo.training import image_grid
from tfmammo.training.image_grid import draw_agreement, draw_outline

Images = NDArray[np.float32]
Frame = Literal["full", "loose", "tight"]
FRAMES: tuple[Frame, ...] = ("full", "loose", "tight")
# Least part of the true mask that counts as a mass: outlines leave specks when they are resampled.
SMALLEST_MASS = 0.05


class FramesConfig(Frozen):
    """Segmentation models of several crop modes, and the lesions that they are compared on."""

    data: DataConfig = DataConfig()
    """The patches. Their frame is not used: each crop mode has its own."""
    frames: tuple[Frame, ...] = Field(default=FRAMES, min_length=1)
    """The crop modes. An archive of patches that are cropped already has "full" alone."""
    models: dict[Frame, dict[Name, ModelURIs]] = {}
    """Crop mode -> models that were trained on it, as for evaluate/segmentation.py. A crop mode
    without models is drawn only.
    """
    postprocess: PostprocessConfig = PostprocessConfig()
    """Sizes of the morphological elements."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """The probability from which on a pixel is mass."""
    floors: tuple[Literal["whole patch", "centred disc"], ...] = (WHOLE_PATCH, CENTRED_DISC)
    """The trivial baselines."""
    patients: Literal["unseen", "all"] = "unseen"
    """As for evaluate/segmentation.py."""
    rows: PositiveInt = 3
    """Lesions of each kind that a figure shows."""
    tracking_uri: str | None = None
    """The MLflow server of models:/ URIs; null means the environment's. Where it is set, the tables
    of each crop mode are logged there too.
    """
    samples: PositiveInt = 10_000
    """Draws of the bootstrap and of the permutation test."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of intervals."""
    seed: NonNegativeInt = 0
    """Seed of all draws."""

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
        shared = self.model_dump(
            include={"threshold", "floors", "patients", "tracking_uri", "samples", "level", "seed"}
        )
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
    outputs: Mapping[str, Images]
    scores: Scores
    networks: tuple[str, ...]

    def find_row(self, lesion: str) -> int | None:
        """Find the patch of a lesion "IMAGE#INDEX"; None where there is none.

        In the crop mode "full" it is the whole mammogram.
        """
        name = f"{lesion.rpartition('#')[0]}#full" if self.frame == "full" else lesion
        rows = np.flatnonzero(self.patches.ids == name)
        return int(rows[0]) if len(rows) else None


def evaluate(config: FramesConfig, output: Path) -> list[Table]:
    """Evaluate each crop mode in a folder of its own, and compare them in tables and figures.

    Returns:
        The tables of all crop modes, then those of morphology and of failures.

    Raises:
        ConfigError: As `compare`.
        DataError: A model was trained by the leaky protocol, or as `compare`.
    """
    tables: list[Table] = []
    results = []
    for frame in config.frames:
        result, of_frame = evaluate_frame(config, frame, output)
        results.append(result)
        tables += of_frame
    lesions = draw_lesions(results, config.rows, config.seed)
    write_croppings(results, lesions, output / "croppings.png")
    with_models = [result for result in results if result.networks]
    if with_models:
        write_overlays(with_models, lesions, config.threshold, output / "overlays.png")
        morphology, lines = tabulate_morphology(with_models, config)
        write_csv(output / "morphology.csv", lines)
        write_morphology(with_models, config, output)
        failures = list_failures(with_models, config.threshold)
        write_csv(output / "failures.csv", failures)
        write_failures(with_models, failures, config, output)
        tables += [*morphology, tabulate_failures(failures)]
    write_markdown(output / "table.md", tables)
    return tables


def evaluate_frame(
    config: FramesConfig, frame: Frame, output: Path
) -> tuple[FrameResult, list[Table]]:
    """Run the models of one crop mode, and write its tables to OUTPUT/FRAME.

    Returns:
        The result, and the tables; none where no model is given.
    """
    if frame not in config.models:
        patches = datasets.load_all_patches(config.make_data(frame))
        return FrameResult(frame, patches, {}, {}, ()), []
    evaluation = config.make_evaluation(frame)
    comparisons = compare(evaluation, "image", "mask")
    comparison = comparisons[0]
    if comparison.protocol == "paper" or len(comparisons) > 1:
        raise DataError(
            f"models.{frame}: a model was trained by the leaky protocol, whose copies no other "
            "crop mode holds; evaluate it with evaluate/segmentation.py"
        )
    outputs, trainings, notes = score_patches(comparison, evaluation)
    scores = average_trainings(trainings)
    networks = tuple(comparison.outputs)
    result = FrameResult(frame, comparison.patches, outputs, scores, networks)
    report = Report(evaluation, MEASURES, PUBLISHED, note=f"frame {frame}")
    report.add(comparison, result.scores, notes=notes)
    report.write(output / frame)
    return result, report.tables


def draw_lesions(results: Sequence[FrameResult], count: int, seed: int) -> list[str]:
    """Draw lesions that have a patch in every crop mode.

    Returns:
        At most `count` names "IMAGE#INDEX".

    Raises:
        DataError: No lesion has a patch in all of them.
    """
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
    parts: dict[str, list[Images]] = {}
    names = [
        name for name in results[0].outputs if all(name in result.outputs for result in results)
    ]
    for result in results:
        rows = _find_rows(result, lesions)
        masks = result.patches.masks[rows]
        parts.setdefault("image", []).append(result.patches.images[rows])
        parts.setdefault("truth", []).append(masks.astype(np.float32))
        for name in names:
            agreement = draw_agreement(masks, result.outputs[name][rows] >= threshold)
            parts.setdefault(name, []).append(agreement)
    panels = {name: np.concatenate(images) for name, images in parts.items()}
    image_grid.save_grid(panels, path)


def tabulate_morphology(
    results: Sequence[FrameResult], config: FramesConfig
) -> tuple[list[Table], list[dict[str, Any]]]:
    """Tabulate each model before and after morphology, and test the difference.

    Holm's correction is over all models and crop modes.

    Returns:
        The tables, and the lines of morphology.csv.
    """
    rows: list[Row] = []
    frames: list[Frame] = []
    for result in results:
        evaluation = config.make_evaluation(result.frame)
        for model in result.networks:
            pair = {name: result.scores[name] for name in (model, f"{model}{POSTPROCESSED}")}
            of_pair = evaluation.summarize(pair, result.patches.patient_ids)
            rows += of_pair
            frames += [result.frame] * len(of_pair)
    rows = correct_p(rows)
    lines = [
        {"frame": frame, **convert_units(row, MEASURES[row.measure])}
        for frame, row in zip(frames, rows, strict=True)
    ]
    named = [
        replace(
            row,
            model=f"{frame}: {row.model}",
            against=f"{frame}: {row.against}" if row.against else "",
        )
        for frame, row in zip(frames, rows, strict=True)
    ]
    title = f"Before and after morphology; {config.data.archive_name}"
    tables = make_summary_tables(named, MEASURES, title, samples=config.samples, level=config.level)
    return tables, lines


def choose_by_gain(
    before: NDArray[np.float64], after: NDArray[np.float64], count: int, seed: int
) -> NDArray[np.intp]:
    """Choose patches at random, then those that gain most, then those that lose most.

    Args:
        before: A score [n].
        after: The score after the change [n].
        count: How many of each.
        seed: Of the random choice.

    Returns:
        Rows, intp.
    """
    order = np.argsort(before - after, kind="stable")
    random = np.random.default_rng(seed).permutation(len(order))[:count]
    return np.concatenate([random, order[:count], order[::-1][:count]])


def write_morphology(results: Sequence[FrameResult], config: FramesConfig, output: Path) -> None:
    """Write each crop mode's first model before and after morphology.

    Rows are a random choice, then those whose Dice gains most, then those that lose most.
    """
    for result in results:
        model = result.networks[0]
        smooth = f"{model}{POSTPROCESSED}"
        rows = choose_by_gain(
            result.scores[model]["dice"], result.scores[smooth]["dice"], config.rows, config.seed
        )
        masks = result.patches.masks[rows]
        panels = {"image": result.patches.images[rows], "truth": masks.astype(np.float32)}
        for name in (model, smooth):
            panels[name] = draw_agreement(masks, result.outputs[name][rows] >= config.threshold)
        image_grid.save_grid(panels, output / f"morphology-{result.frame}.png")


def find_masses(mask: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """Find the connected parts of a mask, without specks.

    Args:
        mask: uint8 [rows, cols], 0 or 1.

    Returns:
        bool [rows, cols] each, of at least SMALLEST_MASS of the mask.
    """
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    parts = [labels == number for number in range(1, count)]
    return [part for part in parts if part.sum() >= SMALLEST_MASS * mask.sum()]


def list_failures(results: Sequence[FrameResult], threshold: float) -> list[dict[str, Any]]:
    """List every mass in every patch, and how much of it each model finds.

    Returns:
        The lines of failures.csv. A mass is a connected part of the true mask, of at least
        SMALLEST_MASS. `masses` is how many the patch holds, `area` its part of the true mask,
        `at_border` whether the patch cuts it off, `found` the part of it that the model marks, from
        0 to 1.

    Raises:
        DataError: No patch holds any mass.
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


def tabulate_failures(failures: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate how many masses each model misses wholly.

    Masses that are alone in their patch stand beside those that have a neighbour there.
    """
    body = []
    for frame, model in dict.fromkeys((line["frame"], line["model"]) for line in failures):
        cells = [f"{frame}: {model}"]
        of_model = [line for line in failures if (line["frame"], line["model"]) == (frame, model)]
        for alone in (True, False):
            masses = [line for line in of_model if (line["masses"] == 1) == alone]
            missed = sum(line["found"] == 0 for line in masses)
            found = np.mean([line["found"] for line in masses]) if masses else np.nan
            cells += [f"{missed} of {len(masses)}", f"{100 * found:.1f}" if masses else "-"]
        body.append(cells)
    header = [
        "",
        "alone in their patch: missed wholly",
        "mean part found, %",
        "with a neighbour: missed wholly",
        "mean part found, %",
    ]
    return Table("Masses that are missed", header, body)


def write_failures(
    results: Sequence[FrameResult],
    failures: Sequence[Mapping[str, Any]],
    config: FramesConfig,
    output: Path,
) -> None:
    """Write each crop mode's patches of which its first model misses the largest masses.

    Rows are a random choice of the patches with several masses, then the patches with the least
    part found of any one mass. A crop mode in which no patch has several masses shows the latter
    alone.
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
        masks = result.patches.masks[rows]
        panels = {"image": result.patches.images[rows], "truth": masks.astype(np.float32)}
        panels |= {
            name: draw_agreement(masks, probabilities[rows] >= config.threshold)
            for name, probabilities in result.outputs.items()
        }
        image_grid.save_grid(panels, output / f"failures-{result.frame}.png")
