"""What a lesion costs, and how much two lesions of one place differ.

python benchmarks/inpainting.py RUN [RUN ...] [--steps 1 4 20] [--patches 32] [--repeats 5]

RUN is a run of train/infilling.py or train/flow.py; a flow is exported again with each number of
--steps. Patches are the held-out ones of its own data. One JSON line for each network: seconds, the
median of one lesion, and seconds_of_8 of one in a batch of eight, by the clock; variety, the mean
absolute difference inside the mass of two answers that differ by their noise; to_real, that to the
real mass; of_real, that of two real masses where both are. A GAN that ignores its noise has a
variety of 0: it knows one lesion for a place.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo import api
from tfmammo.config import DataConfig
from tfmammo.data.datasets import open_subsets
from tfmammo.data.patches import Patches
from tfmammo.evaluation.realism import make_tri_labels
from tfmammo.models.flow import export_again
from tfmammo.tracking import export

Images = NDArray[np.float32]


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 4, 20])
    parser.add_argument("--patches", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for run in options.runs:
            for name, exported in list_exports(run, options.steps, Path(folder)):
                line = {"model": name, **measure(exported, options.patches, options.repeats)}
                print(json.dumps(line), flush=True)


def list_exports(run: Path, steps: list[int], folder: Path) -> list[tuple[str, Path]]:
    """List the exports of a run: its own, or a flow's with each number of steps."""
    exported = run / "export"
    if "sampling_steps" not in export.read_card(exported)["config"]["model"]:
        return [(str(run), exported)]
    exports = []
    for count in steps:
        again = Path(tempfile.mkdtemp(dir=folder)) / "export"
        name = f"{run}, {count} {'step' if count == 1 else 'steps'}"
        exports.append((name, export_again(exported, again, sampling_steps=count)))
    return exports


def measure(exported: Path, count: int, repeats: int) -> dict[str, Any]:
    """Measure one export; see the module."""
    card = export.read_card(exported)
    patches = open_held_out(card, count)
    network = api.load(exported)
    first, second = (make_tri_labels(patches, card, draw) for draw in (0, 1))

    def inpaint(labels: Images) -> Images:
        return network(labels)["image"]

    images, others = inpaint(first), inpaint(second)
    masks = patches.masks.astype(np.float32)
    other_images, other_masks = (np.roll(a, 1, axis=0) for a in (patches.images, masks))
    return {
        "size": patches.images.shape[1],
        "patches": len(patches),
        "seconds": round(time_call(lambda: inpaint(first[:1]), repeats), 4),
        "seconds_of_8": round(time_call(lambda: inpaint(first[:8]), repeats) / len(first[:8]), 4),
        "variety": compare(images, others, masks),
        "to_real": compare(images, patches.images, masks),
        "of_real": compare(other_images, patches.images, masks * other_masks),
    }


def open_held_out(card: dict[str, Any], count: int) -> Patches:
    """Open the first held-out patches of an export's data."""
    data = DataConfig(**card["config"]["data"])
    _, held_out = open_subsets(data)
    return held_out.take(np.arange(min(count, len(held_out))))


def time_call(call: Callable[[], Any], repeats: int) -> float:
    """Call once, then time some calls; return the median in seconds."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def compare(images: Images, others: Images, masks: Images) -> float:
    """Compute the mean absolute difference inside the masks, averaged over patches."""
    inside = masks.sum(axis=(1, 2, 3))
    differences = (np.abs(images - others) * masks).sum(axis=(1, 2, 3)) / np.maximum(inside, 1)
    return round(float(differences[inside > 0].mean()), 4)


if __name__ == "__main__":
    main()
