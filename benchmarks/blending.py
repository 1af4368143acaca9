"""What setting a real lesion into a mammogram costs, by a network and without one; one
JSON line for each painter.

python benchmarks/blending.py [--painters blending poisson mixed] [--lesions 1] [--pixels 3328 2560]
[--side 300]

Processor seconds of all threads for one full-resolution mammogram, medians; the painters take
turns, so that whatever else the machine does is shared. reading: file, grey values, breast.
placing: the lesion is drawn, turned and resized, its place found; what its mammogram's file takes,
once for a process, is not counted. blending: all of `synthesis.render`, network: its part within
the network's call. elapsed: seconds by the clock for blending (wanted: at most 0.5).

A phantom, enlarged, and another with an irregular lesion, in 12-bit DICOM files in a temporary
folder. The network is that of the paper, full size and untrained: what it draws is of no account
here. Time: a minute on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tfmammo import _tensorflow  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import cv2
import numpy as np
import tensorflow as tf

from tfmammo import archives
from tfmammo.archives import phantom
from tfmammo.archives.writers import folder as writer
from tfmammo.config import DataConfig
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import Generator
from tfmammo.synthesis.mammograms import plan, render
from tfmammo.synthesis.placement import Ground
from tfmammo.synthesis.provenance import Recipe
from tfmammo.synthesis.renderers import DirectPainter, NetworkPainter, Painter, together

PARTS = ("reading", "placing", "blending", "network")


class Timed:
    """A network that notes what its calls take, in processor seconds of all threads."""

    def __init__(self, call: Callable[..., dict[str, tf.Tensor]]) -> None:
        self.call = call
        self.seconds = 0.0

    def __call__(self, **inputs: tf.Tensor) -> dict[str, Any]:
        """The network's outputs, as arrays."""
        start = time.process_time()
        images = {name: output.numpy() for name, output in self.call(**inputs).items()}
        self.seconds += time.process_time() - start
        return images


def archive(folder: Path, rows: int, cols: int, side: int) -> DataConfig:
    """A normal mammogram and one with a lesion so many px high, in DICOM files."""
    normal = next(
        found
        for found in phantom.read(count=48)
        if found.pathology == "normal" and found.laterality == "L"
    )
    image = np.clip(cv2.resize(normal.pixels(), (cols, rows)), 0, 1)[..., None]
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = side / 2 * (0.85 + 0.15 * np.sin(7 * angle))
    outline = np.stack(
        [rows / 2 + radius * np.sin(angle), cols / 4 + radius * np.cos(angle)], axis=1
    )
    facts: dict[str, Any] = {
        "rows": rows,
        "cols": cols,
        "spacing": (0.07, 0.07),
        "read": partial(np.copy, image),
    }
    whole = replace(normal, **facts)
    ill = replace(
        whole, pathology="malignant", lesions=(Lesion.from_outline("mass", outline, rows, cols),)
    )
    writer.write([whole, ill], folder, ending=".dcm", bits=12)
    return DataConfig(name="folder", root=folder)


def painters(chosen: argparse.Namespace) -> dict[str, Painter]:
    """Those asked for, the network full size unless --model says otherwise."""
    found: dict[str, Painter] = {name: DirectPainter(name) for name in chosen.painters}
    if "blending" in found:
        room = Blending(BlendingConfig(**json.loads(chosen.model)), chosen.size)
        data = DataConfig(size=chosen.size, frame="square", context=2, window=(0, 1))
        network = Generator(Timed(room.functions()["generator"]), chosen.size, None, data)
        found["blending"] = NetworkPainter(network, 16.0, together)
    return found


def measured(source: Mammogram, brush: Painter, recipe: Recipe, number: int) -> tuple[float, ...]:
    """Processor seconds of each part, and of blending what a clock shows. number: of the repeat,
    which draws its own place, angle and factor.
    """
    timed = brush.network.call if isinstance(brush, NetworkPainter) else None
    before = timed.seconds if isinstance(timed, Timed) else 0.0
    times = [time.process_time()]
    stored = archives.stored(source)
    ground = Ground(stored.image(), source, brush.data)
    times.append(time.process_time())
    insertions, _ = plan(recipe, ground, brush, np.random.default_rng(number))
    times.append(time.process_time())
    start = time.perf_counter()
    render(ground, stored, insertions, brush)
    times.append(time.process_time())
    elapsed = time.perf_counter() - start
    return (
        *np.diff(times).tolist(),
        timed.seconds - before if isinstance(timed, Timed) else 0.0,
        elapsed,
    )


def main() -> None:
    """Measure the painters in turns, one round that is not counted before."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--painters", nargs="+", default=["blending", "poisson", "mixed"], metavar="NAME"
    )
    parser.add_argument("--lesions", type=int, default=1, help="in one mammogram")
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=(3328, 2560), metavar=("ROWS", "COLS")
    )
    parser.add_argument(
        "--side", type=int, default=300, help="of a lesion, native px, before it is resized"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", type=int, default=256, help="of the network's patch, px")
    parser.add_argument(
        "--model",
        default="{}",
        metavar="JSON",
        help="the blending's config where it is not the paper's",
    )
    chosen = parser.parse_args()
    cv2.setNumThreads(1)  # as synthesis.make does
    brushes = painters(chosen)
    with tempfile.TemporaryDirectory() as name:
        data = archive(Path(name), *chosen.pixels, chosen.side)
        source = next(
            one for one in archives.mammograms(data, Skipped()) if one.pathology == "normal"
        )
        taken: dict[str, list[tuple[float, ...]]] = {painter: [] for painter in brushes}
        for number in range(1 + chosen.repeats):
            for painter, brush in brushes.items():
                taken[painter].append(
                    measured(source, brush, _recipe(painter, data, chosen.lesions), number)
                )
    for painter, rows in taken.items():
        print(json.dumps(report(painter, chosen, rows[1:])), flush=True)


def report(
    painter: str, chosen: argparse.Namespace, rows: list[tuple[float, ...]]
) -> dict[str, Any]:
    """The JSON line of one painter."""
    seconds = {
        part: round(statistics.median(row[place] for row in rows), 4)
        for place, part in enumerate(PARTS)
    }
    elapsed = round(statistics.median(row[-1] for row in rows), 4)
    about = {
        "rows": chosen.pixels[0],
        "cols": chosen.pixels[1],
        "side": chosen.side,
        "lesions": chosen.lesions,
    }
    return {
        "benchmark": "blending",
        "painter": painter,
        **about,
        "processor_seconds": seconds,
        "elapsed": elapsed,
        "wanted": "<= 0.5",
    }


def _recipe(painter: str, data: DataConfig, lesions: int) -> Recipe:
    generator = "none" if painter == "blending" else None
    config = SynthesisConfig.model_validate(
        {
            "name": "benchmark",
            "painter": painter,
            "generator": generator,
            "data": data,
            "masses": (lesions, lesions),
        }
    )
    return Recipe(
        identity="", name="000000", number=0, config=config, versions={}, generator={}, sizes=None
    )


if __name__ == "__main__":
    main()
