"""Measure what inserting a real lesion into a mammogram costs, by a network and without one.

python benchmarks/blending.py [--renderers blending poisson mixed] [--lesions 1]
[--pixels 3328 2560] [--side 300]

One JSON line for each renderer: processor seconds of all threads for one full-resolution mammogram,
medians. The renderers take turns, so that they share the machine's other load.

- reading: file, grey values, breast.
- placing: the lesion is drawn and transformed, and its place found. Reading the lesion's own
  mammogram, once for a process, is not counted.
- blending: all of `synthesizer.render`; network: its part within the network's call.
- elapsed: seconds by the clock for blending (wanted: at most 0.5).

A phantom, enlarged, and another with an irregular lesion, in 12-bit DICOM files in a temporary
folder. The network is that of the paper, full size and untrained: what it draws does not matter
here. Time: a minute on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tfmammo.nn import _tensorflow  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import cv2
import numpy as np
from insertion import TimedNetwork, find_normal_phantom, make_parser

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the writers that the tests use
from tests.archives.writers import folder as writer
from tfmammo import archives
from tfmammo.config import DataConfig
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import Generator
from tfmammo.synthesis.lesion_bank import LesionBank
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.recipe import Recipe
from tfmammo.synthesis.renderers import DirectRenderer, NetworkRenderer, Renderer, show_pasted
from tfmammo.synthesis.sources import select_lesions
from tfmammo.synthesis.synthesizer import Synthesizer, render

PARTS = ("reading", "placing", "blending", "network")


def write_archive(folder: Path, rows: int, cols: int, side: int) -> DataConfig:
    """Write a normal mammogram and one with a lesion of `side` px to DICOM files."""
    normal = find_normal_phantom()
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


def make_renderers(options: argparse.Namespace) -> dict[str, Renderer]:
    """Make those asked for, the network full size unless --model says otherwise."""
    renderers: dict[str, Renderer] = {name: DirectRenderer(name) for name in options.renderers}
    if "blending" in renderers:
        model = Blending(BlendingConfig(**json.loads(options.model)), options.size)
        data = DataConfig(size=options.size, frame="square", context=2, window=(0, 1))
        network = Generator(TimedNetwork(model.functions()["generator"]), options.size, None, data)
        renderers["blending"] = NetworkRenderer(network, 16.0, show_pasted)
    return renderers


def measure(
    source: Mammogram, synthesizer: Synthesizer, recipe: Recipe, number: int
) -> tuple[float, ...]:
    """Measure the processor seconds of each part, and the elapsed ones of blending.

    Args:
        source: The mammogram.
        synthesizer: With the renderer to measure.
        recipe: config is used.
        number: Of the repeat, which draws its own place, angle and factor.
    """
    renderer = synthesizer.renderer
    timed = renderer.network.call if isinstance(renderer, NetworkRenderer) else None
    before = timed.seconds if isinstance(timed, TimedNetwork) else 0.0
    times = [time.process_time()]
    stored = archives.read_stored(source)
    target = TargetMammogram(stored.image(), source, renderer.data)
    times.append(time.process_time())
    lesions, _ = synthesizer.plan(recipe, target, np.random.default_rng(number))
    times.append(time.process_time())
    start = time.perf_counter()
    render(target, stored, lesions, renderer)
    times.append(time.process_time())
    elapsed = time.perf_counter() - start
    network_seconds = timed.seconds - before if isinstance(timed, TimedNetwork) else 0.0
    return (*np.diff(times).tolist(), network_seconds, elapsed)


def main() -> None:
    """Measure the renderers in turns, one round that is not counted before."""
    parser = make_parser(__doc__, "blending", repeats=7)
    parser.add_argument(
        "--renderers", nargs="+", default=["blending", "poisson", "mixed"], metavar="NAME"
    )
    parser.add_argument("--lesions", type=int, default=1, help="in one mammogram")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # as synthesis workers do
    renderers = make_renderers(options)
    with tempfile.TemporaryDirectory() as name:
        data = write_archive(Path(name), *options.pixels, options.side)
        mammograms = archives.read_mammograms(data, Skipped())
        source = next(mammogram for mammogram in mammograms if mammogram.pathology == "normal")
        bank = LesionBank.select(select_lesions(mammograms, data), data)
        rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in renderers}
        for number in range(1 + options.repeats):
            for name, renderer in renderers.items():
                recipe = _make_recipe(name, data, options.lesions)
                synthesizer = Synthesizer(renderer, bank)
                rows[name].append(measure(source, synthesizer, recipe, number))
    for name, measured in rows.items():
        print(json.dumps(make_report(name, options, measured[1:])), flush=True)


def make_report(
    renderer: str, options: argparse.Namespace, rows: list[tuple[float, ...]]
) -> dict[str, Any]:
    """Make the JSON line of one renderer."""
    seconds = {
        part: round(statistics.median(row[place] for row in rows), 4)
        for place, part in enumerate(PARTS)
    }
    elapsed = round(statistics.median(row[-1] for row in rows), 4)
    about = {
        "rows": options.pixels[0],
        "cols": options.pixels[1],
        "side": options.side,
        "lesions": options.lesions,
    }
    return {
        "benchmark": "blending",
        "renderer": renderer,
        **about,
        "processor_seconds": seconds,
        "elapsed": elapsed,
        "wanted": "<= 0.5",
    }


def _make_recipe(renderer: str, data: DataConfig, lesions: int) -> Recipe:
    generator = "none" if renderer == "blending" else None
    config = SynthesisConfig.model_validate(
        {
            "name": "benchmark",
            "renderer": renderer,
            "generator": generator,
            "data": data,
            "masses": (lesions, lesions),
        }
    )
    return Recipe(identity="", number=0, config=config, versions={}, generator={}, sizes=None)


if __name__ == "__main__":
    main()
