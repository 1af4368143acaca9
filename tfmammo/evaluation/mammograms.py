"""Measure and draw synthetic masses in whole mammograms: what evaluate/mammograms.py writes.

Infilling's Fig. 4 shows the mask, the normal mammogram and the mammogram with the mass; blending's
Fig. 5 shows mammograms of four methods. Lin et al. say of Poisson editing that its lesions are
often invisible. The table measures that: how much brighter a mass is than the tissue around it, and
how strong its seam is, compared with the same place before the insertion and with real masses.

Deviations:
- The papers' mammograms are chosen by hand. Ours are drawn at random, followed by those with the
  largest and the smallest contrast of the mass.
- The papers have no control of corners; see tfmammo.evaluation.corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from tfmammo.archives import coco, folder
from tfmammo.config import DataConfig, Statistics
from tfmammo.data import sampling
from tfmammo.data.patients import read_patients
from tfmammo.errors import DataError
from tfmammo.evaluation import sheets
from tfmammo.evaluation.comparison import Name
from tfmammo.evaluation.corners import compare_corners
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.mammogram import Box, Mammogram
from tfmammo.metrics import blending
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.resampling import crossed_interval
from tfmammo.metrics.significance import FEWEST_PATIENTS, Estimate, describe_few
from tfmammo.metrics.summary import JACKKNIFE, Measure, Table
from tfmammo.synthesis.recipe import ArchiveIndexes, Recipe, find_source, read_recipe

REAL = "real masses"
BOX_COLOUR = "#e69f00"
COUNT = Measure("count", "", 1, 0)
CONTRAST = Measure("contrast", "", 1, 3)
SEAM = Measure("seam", "", 1, 2)
MEASURES = {"contrast": CONTRAST, "contrast_before": CONTRAST, "seam": SEAM, "seam_before": SEAM}
AREA = Measure("corners distinguished from those of real masses, AUC", "", 1, 3)
TEST = "bootstrap by patient of the mammogram and of the lesion"
CHOICES = ("random", "largest contrast", "smallest contrast")  # as `sheets.choose` returns them
NOTHING = (np.nan, np.nan)  # contrast and seam of what is not there


class MammogramsConfig(Statistics):
    """Sets of synthetic mammograms, and the archive that they were made from."""

    data: DataConfig = DataConfig()
    """The archive of the normal mammograms. Only name and root are used, and for the phantom
    phantoms and seed.
    """
    sets: dict[Name, Path] = Field(min_length=1)
    """Name -> a folder of `tfmammo synthesize`, in DICOM or PNG."""
    columns: PositiveInt = 4
    """Mammograms that a figure draws at random; the one with the largest contrast and the one with
    the smallest follow.
    """
    ring: PositiveInt = blending.RING
    """Width of the ring of tissue around a mass, native px."""
    real: NonNegativeInt = 100
    """Real masses, at most, that are measured for comparison."""
    corners: NonNegativeInt = 100
    """Mammograms of each set, and real ones with masses, at most, whose corners a classifier
    compares; 0: it does not.
    """


@dataclass(frozen=True)
class Item:
    """One synthetic mammogram.

    Attributes:
        recipe: Its recipe.
        before: The mammogram that it was made from.
        after: The mammogram with the masses.
        trained_on: Patients that the set's networks were trained on.
    """

    recipe: Recipe
    before: Mammogram
    after: Mammogram
    trained_on: frozenset[str]

    @property
    def masks(self) -> list[NDArray[np.uint8]]:
        """Each mass that was inserted, uint8 [rows, cols, 1], 0 or 1."""
        return [
            coco.decode(lesion.region, self.recipe.name)[..., np.newaxis]
            for lesion in self.recipe.lesions
        ]


def evaluate(config: MammogramsConfig, output: Path) -> Report:
    """Measure the masses of every set, and draw mammograms before and after."""
    indexes = ArchiveIndexes()
    items = {name: read_items(path, config, indexes) for name, path in config.sets.items()}
    measured = {
        name: [measure_item(item, config.ring) for item in of_set] for name, of_set in items.items()
    }
    lines = [
        {"set": name, **line}
        for name, of_set in measured.items()
        for of_item in of_set
        for line in of_item
    ]
    lines += measure_real_masses(config, indexes)
    report = Report(config=config, files={"masses.csv": lines})
    add_masses(report, lines, config)
    if config.corners:
        add_corners(report, items, indexes)
    for name, of_set in items.items():
        contrasts = np.array(
            [np.mean([line["contrast"] for line in of_item]) for of_item in measured[name]]
        )
        chosen = sheets.choose(contrasts, config.columns, 1, config.seed)
        choices = dict(zip(CHOICES, chosen, strict=True))
        save_figure(draw_items(of_set, contrasts, choices), output / f"figure-{name}.png")
    report.write(output)
    return report


def read_items(path: Path, config: MammogramsConfig, indexes: ArchiveIndexes) -> list[Item]:
    """Read a set and the mammograms that it was made from."""
    recipes = sorted((path / "recipes").glob("*.json"))
    if not recipes:
        raise DataError(f"{path}: contains no recipe; name a folder of tfmammo.synthesis")
    pictures = {mammogram.file.stem: mammogram for mammogram in folder.read(path) if mammogram.file}
    trained_on = frozenset(read_patients(path).trained_on)
    items = []
    for file in recipes:
        recipe = read_recipe(Recipe, file)
        if recipe.left_out or recipe.source is None:
            continue
        if recipe.name not in pictures:
            raise DataError(f"{path}: has no image of {recipe.name}; is its format dicom or png?")
        before = find_source(recipe.source, config.data, file, indexes)
        items.append(Item(recipe, before, pictures[recipe.name], trained_on))
    if not items:
        raise DataError(f"{path}: contains no finished mammogram")
    return items


def measure_item(item: Item, ring: int) -> list[dict[str, Any]]:
    """Measure each mass of a mammogram and the same place before: lines of masses.csv."""
    pixels = [mammogram.pixels() for mammogram in (item.before, item.after)]
    patient = item.before.patient_id
    lesions = item.recipe.lesions
    lines = []
    for number, (lesion, mask) in enumerate(zip(lesions, item.masks, strict=True)):
        before, after = (measure_mass(image, mask, ring) for image in pixels)
        patients = patient, lesion.graft.patient_id if lesion.graft else patient
        name = item.recipe.name if len(lesions) == 1 else f"{item.recipe.name}#{number}"
        trained_on = not item.trained_on.isdisjoint(patients)
        lines.append(make_line(name, patients, trained_on, after, before))
    return lines


def measure_mass(
    pixels: NDArray[np.float32], mask: NDArray[np.uint8], ring: int
) -> tuple[float, float]:
    """Measure contrast and seam of what a mask covers, by a ring of tissue of a width in px.

    NaN for an empty mask.
    """
    place = np.argwhere(mask[..., 0])
    if not len(place):
        return NOTHING
    top, left = np.maximum(place.min(axis=0) - ring - 1, 0)
    bottom, right = place.max(axis=0) + ring + 2
    window = np.s_[np.newaxis, top:bottom, left:right]
    contrast = blending.lesion_contrast(pixels[window], mask[window], ring)
    seam = blending.seam_strength(pixels[window], mask[window], ring)
    return float(contrast[0]), float(seam[0])


def measure_real_masses(config: MammogramsConfig, indexes: ArchiveIndexes) -> list[dict[str, Any]]:
    """Measure a random choice of the archive's outlined real masses: lines of masses.csv."""
    candidates = [
        (mammogram, number, lesion)
        for mammogram in indexes.read(config.data)
        for number, lesion in sampling.select_lesions(mammogram, config.data).items()
        if lesion.kind == "mass" and lesion.is_outlined
    ]
    lines = []
    for mammogram, number, lesion in _draw(candidates, config.real, config.seed):
        mask = lesion.mask(mammogram.rows, mammogram.cols)[..., np.newaxis]
        measured = measure_mass(mammogram.pixels(), mask, config.ring)
        name = f"{mammogram.image_id}#{number}"
        patients = mammogram.patient_id, mammogram.patient_id
        lines.append({"set": REAL, **make_line(name, patients, False, measured, NOTHING)})
    return lines


def make_line(
    name: str,
    patients: tuple[str, str],
    trained_on: bool,
    after: tuple[float, float],
    before: tuple[float, float],
) -> dict[str, Any]:
    """Make a line of masses.csv, of the patients of a mammogram and of the lesion in it."""
    return {
        "name": name,
        "patient": patients[0],
        "patient_of_lesion": patients[1],
        "trained_on": trained_on,
        "contrast": after[0],
        "contrast_before": before[0],
        "seam": after[1],
        "seam_before": before[1],
    }


def add_masses(
    report: Report, lines: Sequence[Mapping[str, Any]], config: MammogramsConfig
) -> None:
    """Add means of contrast and seam of each set, and of real masses."""
    body = []
    fewest = len(lines)
    for name in dict.fromkeys(line["set"] for line in lines):
        of_set = [line for line in lines if line["set"] == name]
        known = sum(line["trained_on"] for line in of_set)
        patients = {key: {line[key] for line in of_set} for key in ("patient", "patient_of_lesion")}
        fewest = min(fewest, *map(len, patients.values()))
        counts = {"patients": len(patients["patient"]), "images": len(of_set)}
        report.facts += [
            COUNT.make_fact("masses", name, key, value, **counts)
            for key, value in (("masses", len(of_set)), ("of_training_patients", known))
        ]
        cells = [name, str(len(of_set)), "-" if name == REAL else str(known)]
        for key, measure in MEASURES.items():
            finite = [line for line in of_set if np.isfinite(line[key])]
            if not finite:
                cells.append("-")
                continue
            numbers = [line[key] for line in finite]
            bounds = crossed_interval(
                numbers,
                [line["patient"] for line in finite],
                [line["patient_of_lesion"] for line in finite],
                *config.draws,
            )
            mean = Estimate(float(np.mean(numbers)), *bounds)
            fact = measure.make_fact("masses", name, key, mean, test=TEST, **counts)
            report.facts.append(fact)
            cells.append(measure.format_fact(fact))
        body.append(cells)
    before = "before the insertion"
    header = ["", "masses", "of training patients", "contrast", before, "seam", before]
    notes = [
        "Contrast: mean intensity of the mass less that of the tissue around it; 0 is invisible. "
        "Seam: jumps across its border over those of the tissue around it; real masses have one.",
        "Of training patients: masses whose mammogram or lesion is of a patient that the set's "
        "network was trained on.",
        f"In brackets: {100 * config.level:g} % interval, percentile bootstrap that draws whole "
        "patients, those of the mammograms and those of the lesions or outlines.",
    ]
    if fewest < FEWEST_PATIENTS:
        notes.append(describe_few(fewest))
    title = f"Synthetic masses in mammograms of {config.data.archive_name}"
    report.tables.append(Table(title, header, body, tuple(notes)))


def add_corners(
    report: Report, items: Mapping[str, Sequence[Item]], indexes: ArchiveIndexes
) -> None:
    """Add how well a classifier distinguishes the corners of each set's mammograms."""
    config: MammogramsConfig = report.config
    with_masses = [
        mammogram
        for mammogram in indexes.read(config.data)
        if any(lesion.kind == "mass" for lesion in mammogram.lesions)
    ]
    real = _draw(with_masses, config.corners, config.seed)
    body = []
    for name, of_set in items.items():
        drawn = _draw(of_set, config.corners, config.seed)
        made, sources = [item.after for item in drawn], [item.before.patient_id for item in drawn]
        area = compare_corners(real, made, sources, config.level, config.seed)
        patients = len({mammogram.patient_id for mammogram in real} | set(sources))
        counts = {"patients": patients, "images": len(real) + len(made)}
        fact = AREA.make_fact("corners", name, "auc", area, test=JACKKNIFE, **counts)
        report.facts.append(fact)
        body.append([name, str(len(made)), str(len(real)), AREA.format_fact(fact)])
    header = ["", "mammograms of the set", "real mammograms with masses", AREA.heading]
    notes = (
        "0.5: mammograms of the set can be recognized by nothing but their masses.",
        f"In brackets: {100 * config.level:g} % interval, jackknife by patient.",
    )
    report.tables.append(Table("Corners that no lesion touches", header, body, notes))


def _draw(values: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Draw some values, in their order."""
    order = np.random.default_rng(seed).permutation(len(values))[:count]
    return [values[place] for place in np.sort(order).tolist()]


@plot_style
def draw_items(
    items: Sequence[Item], contrasts: NDArray[np.float64], chosen: Mapping[str, NDArray[np.intp]]
) -> Figure:
    """Draw mask, mammogram before and mammogram after, one column an item, contrast above."""
    columns = [(choice, place) for choice, places in chosen.items() for place in places.tolist()]
    figure = Figure(figsize=(1.8 * len(columns), 7), layout="constrained")
    grid = figure.subplots(3, len(columns), squeeze=False)
    for column, (choice, place) in enumerate(columns):
        item = items[place]
        before = item.before.pixels()[..., 0]
        images = (np.any(item.masks, axis=0)[..., 0], before, item.after.pixels()[..., 0])
        limits = ((0, 1), *[tuple(np.percentile(before, (1, 99.9)))] * 2)
        for axes, image, (low, high) in zip(grid[:, column], images, limits, strict=True):
            axes.imshow(image, cmap="gray", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for lesion in item.recipe.lesions:
            add_box(grid[2, column], lesion.box, BOX_COLOUR)
        grid[0, column].set_title(f"{choice}\n{CONTRAST.show(contrasts[place], '+')}", fontsize=8)
    for axes, label in zip(grid[:, 0], ("mask", "before", "after"), strict=True):
        axes.set_ylabel(label)
    return figure


def add_box(axes: Axes, box: Box, colour: str, top: int = 0, left: int = 0) -> None:
    """Draw a box in px over a picture whose first pixel is (top, left)."""
    row_min, col_min, row_max, col_max = box
    corner = (col_min - left - 0.5, row_min - top - 0.5)
    sides = col_max - col_min, row_max - row_min
    axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=0.8))
