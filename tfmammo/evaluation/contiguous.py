"""Add lesions to adjacent patches of one mammogram: what evaluate/contiguous.py writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from tfmammo import archives
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig, Frozen
from tfmammo.data import sampling
from tfmammo.data.anatomy import breast_mask
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.mammograms import BOX_COLOUR, add_box
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.mammogram import Box, Mammogram, Skipped
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.summary import Measure, Table
from tfmammo.synthesis.generators import (
    LesionGenerator,
    find_best_weights,
    load_lesion_generator,
    read_training_data,
)
from tfmammo.synthesis.patch_insertion import (
    EditedPatch,
    compute_side,
    draw_contiguous,
    fill_window,
    reinsert_patches,
)
from tfmammo.synthesis.placement import TargetMammogram

WINDOW_COLOUR = "#56b4e9"
CORNERS = ("row_min", "col_min", "row_max", "col_max")


class ContiguousConfig(Frozen):
    """A mammogram, a generator, and how many adjacent patches it works on."""

    data: DataConfig = DataConfig()
    """The archive. Only name and root are used, and for the phantom phantoms and seed."""
    generator: str
    """The model URI of a run of train/contextual.py that adds lesions. Its best weights are taken.
    """
    only: str | None = None
    """The mammogram's image id. null takes the first normal mammogram in which the patches fit, of
    patients that the generator was not trained on.
    """
    count: PositiveInt = 5
    """Number of patches."""
    tracking_uri: str | None = None
    """The MLflow server of models:/ URIs; null means the environment's."""
    seed: NonNegativeInt = 0
    """Seed of places and lesions."""


def evaluate(config: ContiguousConfig, output: Path) -> Report:
    """Add lesions to adjacent patches of a mammogram; write figure, image and boxes."""
    network = load_lesion_generator(find_best_weights(config.generator, config.tracking_uri))
    if network.removes:
        raise ConfigError(f"generator: {config.generator} removes lesions; name one that adds them")
    data = read_training_data(network.data.model_dump(mode="json"), config.generator)
    mammogram, windows = find_windows(config, network)
    stored = archives.read_stored(mammogram)
    target = TargetMammogram(stored.image(), mammogram, data)
    random = np.random.default_rng(config.seed)
    patches = [fill_window(target, window, network, random) for window in windows]
    edited = reinsert_patches(target, stored, patches)
    output.mkdir(parents=True, exist_ok=True)
    synthetic.write_png(output / "mammogram.png", edited)
    figure = draw_before_and_after(target.image, edited.image(), patches)
    save_figure(figure, output / "figure-contiguous.png")
    lesions = sum(patch.mask_box is not None for patch in patches)
    counts = {"patches": len(patches), "lesions": lesions}
    count = Measure("count", "", 1, 0)
    header = ["mammogram", "patches", "patches that got a lesion"]
    body = [[mammogram.image_id, *map(str, counts.values())]]
    report = Report(config=None, tables=[Table("Lesions on adjacent patches", header, body)])
    for key, value in counts.items():
        report.facts.append(count.make_fact("contiguous", "generator", key, value, images=1))
    report.files["boxes.csv"] = [make_row(patch, mammogram) for patch in patches]
    report.write(output)
    return report


def find_windows(config: ContiguousConfig, network: LesionGenerator) -> tuple[Mammogram, list[Box]]:
    """Find a mammogram whose normal tissue has space for the patches, and their windows in px."""
    normal = [
        mammogram
        for mammogram in archives.read_mammograms(config.data, Skipped())
        if sampling.has_normal_tissue(mammogram, network.data.sampling)
    ]
    if config.only:
        candidates = [mammogram for mammogram in normal if mammogram.image_id == config.only]
        if not candidates:
            raise ConfigError(f"only: {config.only} is none of the {len(normal)} normal mammograms")
    else:
        candidates = [
            mammogram for mammogram in normal if mammogram.patient_id not in network.patients
        ]
    reason = "there is none"
    for mammogram in candidates:
        random = sampling.random_stream(config.seed, mammogram.image_id, 0)
        lesions = np.zeros((mammogram.rows, mammogram.cols, 1), np.uint8)
        for lesion in mammogram.lesions:
            lesions[..., 0] |= lesion.mask(mammogram.rows, mammogram.cols)
        try:
            windows = draw_contiguous(
                breast_mask(mammogram.pixels()),
                lesions,
                compute_side(mammogram, network),
                config.count,
                network.data.sampling.tissue,
                random,
            )
        except ValueError as error:
            reason = str(error)
        else:
            return mammogram, windows
    raise DataError(
        f"no normal mammogram{'' if config.only else ' of a patient new to the generator'} has "
        f"room for the patches: {reason}"
    )


def make_row(patch: EditedPatch, mammogram: Mammogram) -> dict[str, object]:
    """Return a line of boxes.csv."""
    lesion = patch.mask_box or ("", "", "", "")
    return {
        "image_id": mammogram.image_id,
        **dict(zip(CORNERS, patch.place, strict=True)),
        **{f"lesion_{name}": value for name, value in zip(CORNERS, lesion, strict=True)},
        "seed": patch.seed,
    }


@plot_style
def draw_before_and_after(
    before: NDArray[np.float32], after: NDArray[np.float32], patches: Sequence[EditedPatch]
) -> Figure:
    """Draw the row of patches before and after, with the windows and the boxes of the lesions."""
    windows = np.array([patch.place for patch in patches])
    top, left = windows[:, :2].min(axis=0)
    bottom, right = windows[:, 2:].max(axis=0)
    is_wide = right - left >= bottom - top
    size = (9, 4.2) if is_wide else (4.2, 9)
    figure = Figure(figsize=size, layout="constrained", facecolor="black")
    both_axes = figure.subplots(2, 1) if is_wide else figure.subplots(1, 2)
    low, high = np.percentile(before[top:bottom, left:right], (0.5, 99.5))
    for axes, image in zip(both_axes, (before, after), strict=True):
        axes.imshow(image[top:bottom, left:right, 0], cmap="gray", vmin=low, vmax=high)
        axes.set_axis_off()
        for patch in patches:
            add_box(axes, patch.place, WINDOW_COLOUR, top, left)
            if image is after and patch.mask_box:
                add_box(axes, patch.mask_box, BOX_COLOUR, top, left)
    return figure
