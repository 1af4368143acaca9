"""Lesions on patches side by side of one mammogram, put back into it: how a contextual GAN
works in varying contexts (Fig. 3).

python evaluate/contiguous.py --config configs/contiguous.yaml --set data.name=cdd_cesm
data.root=DIR generator=RUN

Writes figure-contiguous.png (above as it was, below with the lesions), mammogram.png (all of it, as
deep as the source) and boxes.csv (each patch's window and what was added in it, native px).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from tfmammo import archives, cli
from tfmammo import config as configuration
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig, Frozen, TrainingConfig
from tfmammo.data import sampling
from tfmammo.data.preprocess import breast_mask
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation import comparison
from tfmammo.mammogram import Box, Mammogram, Skipped
from tfmammo.metrics.plotting import quiet
from tfmammo.metrics.summary import write_csv
from tfmammo.synthesis.generators import LesionGenerator, best_weights, lesion_generator
from tfmammo.synthesis.patch_insertion import Filled, contiguous, filled, reinserted, side
from tfmammo.synthesis.placement import Ground, training_data
from tfmammo.training import script

LIGHT = "#56b4e9"
ADDED = "#e69f00"


class ContiguousConfig(Frozen):
    """A config file of this script."""

    data: DataConfig = DataConfig()
    """The archive; name, root, and for the phantom phantoms and seed are used."""
    generator: str
    """The handle of a run of train/contextual.py that adds lesions; its best weights are taken."""
    only: str | None = None
    """The mammogram's image id; null takes the first normal one, of patients that the generator was
    not trained on, in which the patches fit.
    """
    count: PositiveInt = 5
    """Of patches."""
    tracking_uri: str | None = None
    seed: NonNegativeInt = 0
    """Of places and lesions."""


def main() -> None:
    """Read the config, find a mammogram and a row of patches, add lesions, write."""
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(ContiguousConfig, chosen.config, chosen.set)
    script.prepare(TrainingConfig(precision="float32"))
    network = lesion_generator(best_weights(config.generator, config.tracking_uri))
    if network.removes:
        raise ConfigError(f"generator: {config.generator} removes lesions; name one that adds them")
    data = training_data(network.data.model_dump(mode="json"), config.generator)
    mammogram, places = found(config, network)
    stored = archives.stored(mammogram)
    ground = Ground(stored.image(), mammogram, data)
    random = np.random.default_rng(config.seed)
    patches = [filled(ground, place, network, random) for place in places]
    made = reinserted(ground, stored, patches)
    output = chosen.output or Path("runs/contiguous")
    output.mkdir(parents=True, exist_ok=True)
    synthetic.png(output / "mammogram.png", made)
    write_csv(output / "boxes.csv", [row(patch, mammogram) for patch in patches])
    comparison.save(figure(ground.image, made.image(), patches), output / "figure-contiguous.png")
    kept = sum(patch.mask_box is not None for patch in patches)
    cli.console.print(
        f"{kept} of {len(patches)} patches of {mammogram.image_id} got a lesion: {output}"
    )


def found(config: ContiguousConfig, network: LesionGenerator) -> tuple[Mammogram, list[Box]]:
    """A mammogram with normal tissue that has room for the patches, and their windows.

    Raises:
        ConfigError: There is no such mammogram.
        DataError: None has room.
    """
    normal = [
        one
        for one in archives.mammograms(config.data, Skipped())
        if sampling.gives_normal(one, network.data.sampling)
    ]
    if config.only and config.only not in {one.image_id for one in normal}:
        raise ConfigError(f"only: {config.only} is none of the {len(normal)} normal mammograms")
    unseen = [one for one in normal if one.patient_id not in network.patients]
    reason = "there is none"
    for one in [one for one in normal if one.image_id == config.only] if config.only else unseen:
        random = sampling.stream(config.seed, one.image_id, 0)
        try:
            lesions = np.zeros((one.rows, one.cols, 1), np.uint8)
            for lesion in one.lesions:
                lesions[..., 0] |= lesion.mask(one.rows, one.cols)
            return one, contiguous(
                breast_mask(one.pixels()),
                lesions,
                side(one, network),
                config.count,
                network.data.sampling.tissue,
                random,
            )
        except ValueError as error:
            reason = str(error)
    raise DataError(
        f"no normal mammogram{'' if config.only else ' of a patient new to the generator'} has "
        f"room for the patches: {reason}"
    )


def row(patch: Filled, mammogram: Mammogram) -> dict[str, object]:
    """A line of boxes.csv."""
    names = ("row_min", "col_min", "row_max", "col_max")
    added = patch.mask_box or ("", "", "", "")
    boxes = dict(zip(names, patch.place, strict=True)) | {
        f"lesion_{name}": value for name, value in zip(names, added, strict=True)
    }
    return {"image_id": mammogram.image_id, **boxes, "seed": patch.seed}


@quiet
def figure(
    before: NDArray[np.float32], after: NDArray[np.float32], patches: Sequence[Filled]
) -> Figure:
    """The row of patches as it was and as it is, with the windows and what was added."""
    corners = np.array([patch.place for patch in patches])
    (top, left) = corners[:, :2].min(axis=0)
    (bottom, right) = corners[:, 2:].max(axis=0)
    wide = right - left >= bottom - top
    drawn = Figure(figsize=(9, 4.2) if wide else (4.2, 9), layout="constrained", facecolor="black")
    axes = drawn.subplots(2, 1) if wide else drawn.subplots(1, 2)
    low, high = np.percentile(before[top:bottom, left:right], (0.5, 99.5))
    for ax, image in zip(axes, (before, after), strict=True):
        ax.imshow(image[top:bottom, left:right, 0], cmap="gray", vmin=low, vmax=high)
        ax.set_axis_off()
        for patch in patches:
            ax.add_patch(_rectangle(patch.place, top, left, LIGHT))
            if image is after and patch.mask_box:
                ax.add_patch(_rectangle(patch.mask_box, top, left, ADDED))
    return drawn


def _rectangle(box: Box, top: int, left: int, colour: str) -> Rectangle:
    place = (box[1] - left - 0.5, box[0] - top - 0.5)
    return Rectangle(
        place, box[3] - box[1], box[2] - box[0], fill=False, edgecolor=colour, linewidth=0.8
    )


if __name__ == "__main__":
    cli.run(main)
