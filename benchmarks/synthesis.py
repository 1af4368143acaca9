"""What a synthetic mammogram costs beside its generator alone; one JSON line.

python benchmarks/synthesis.py [--generator unet] [--format dicom] [--lesions 1 2 4] [--pixels 3328
2560]

Processor seconds for one full-resolution mammogram, medians, for each number of lesions: they
decide what a bulk run makes a day, and hardly depend on what else the machine does. Reading (file,
grey values, breast), placing, generator, blending (all of `synthesis.render` but the generator) and
writing (files, hashes, recipe). overhead: all but the generator over the generator (wanted: at most
0.5); overhead_of_insertion: blending and writing alone. per_lesion: seconds of placing and blending
over the number of lesions; per_megapixel: of reading and writing over the size, for three sizes
with one lesion (wanted: neither grows). The generator is full size and untrained: what it draws is
of no account here.

A phantom, enlarged, in a 12-bit DICOM file in a temporary folder. Time: two minutes on two idle
cores with the unet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tfmammo import (
    _tensorflow,  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet
    filesystem,
)

# isort: split
import cv2
import numpy as np
import tensorflow as tf

from tfmammo import archives
from tfmammo.archives import phantom
from tfmammo.archives.dicom import read_pixels
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.config import DataConfig
from tfmammo.mammogram import Mammogram
from tfmammo.models.infilling import Infilling, InfillingConfig
from tfmammo.synthesis.config import ShapeConfig, SynthesisConfig
from tfmammo.synthesis.generators import Generator
from tfmammo.synthesis.mammogram_set import write
from tfmammo.synthesis.mammograms import plan, render
from tfmammo.synthesis.placement import Ground
from tfmammo.synthesis.provenance import Recipe, Source
from tfmammo.synthesis.renderers import NetworkPainter, masked

PADDING = 100  # native px around a lesion
PARTS = ("reading", "placing", "generator", "blending", "writing")


class Timed:
    """A generator that notes what its calls take, in processor seconds of all threads."""

    def __init__(self, call: Callable[..., dict[str, tf.Tensor]]) -> None:
        self.call = call
        self.seconds = 0.0

    def __call__(self, **inputs: tf.Tensor) -> dict[str, Any]:
        """The generator's outputs, as arrays."""
        start = time.process_time()
        images = {name: output.numpy() for name, output in self.call(**inputs).items()}
        self.seconds += time.process_time() - start
        return images


def mammogram(folder: Path, rows: int, cols: int) -> Mammogram:
    """A normal phantom in a DICOM file of this size."""
    normal = next(
        found
        for found in phantom.read(count=48)
        if found.pathology == "normal" and found.laterality == "L"
    )
    stored = np.rint(np.clip(cv2.resize(normal.pixels(), (cols, rows)), 0, 1) * 4095).astype(
        np.uint16
    )
    path = folder / f"{rows}x{cols}.dcm"
    write_dicom(
        path, stored, 12, RescaleSlope=1, RescaleIntercept=0, WindowCenter=2048, WindowWidth=4096
    )
    return replace(
        normal, rows=rows, cols=cols, read=partial(read_pixels, path), spacing=(0.07, 0.07)
    )


def measured(
    source: Mammogram, network: Generator, recipe: Recipe, folder: Path, repeats: int
) -> dict[str, float]:
    """Seconds of each part, medians of `repeats` after one that is not counted."""
    timed = Timed(network.call)
    taken = []
    brush = NetworkPainter(replace(network, call=timed), recipe.config.feather, masked)
    for repeat in range(1 + repeats):
        # a new one, because replacing a file takes as long as removing the old one
        output = folder / str(repeat)
        output.mkdir()
        timed.seconds = 0.0
        times = [time.process_time()]
        stored = archives.stored(source)
        ground = Ground(stored.image(), source, brush.data)
        times.append(time.process_time())
        insertions, _ = plan(recipe, ground, brush, np.random.default_rng(0))
        times.append(time.process_time())
        made = render(ground, stored, insertions, brush)
        times.append(time.process_time())
        named = recipe.model_copy(
            update={
                "lesions": tuple(found.planted for found in insertions),
                "source": _source(source),
            }
        )
        named = named.model_copy(update={"files": write(named, source, made, output)})
        filesystem.write_atomically(output / "recipe.json", named.model_dump_json(), durable=False)
        times.append(time.process_time())
        shutil.rmtree(output)
        reading, placing, rendering, writing = np.diff(times)
        taken.append((reading, placing, timed.seconds, rendering - timed.seconds, writing))
    return {
        name: statistics.median(row[place] for row in taken[1:]) for place, name in enumerate(PARTS)
    }


def _source(source: Mammogram) -> Source:
    facts: dict[str, Any] = {
        "archive": "phantom",
        "image_id": source.image_id,
        "patient_id": source.patient_id,
        "sha256": "",
        "bits": 12,
    }
    return Source(**facts, rows=source.rows, cols=source.cols)


def _recipe(lesions: int, folder: Path, chosen: argparse.Namespace) -> Recipe:
    shapes = ShapeConfig(files=folder / "shape.png")
    size = (chosen.side, chosen.side)
    config = SynthesisConfig(
        name="benchmark",
        generator="none",
        masses=(lesions, lesions),
        size=size,
        shapes=shapes,
        format=chosen.format,
    )
    return Recipe(
        identity="",
        name="000000",
        number=0,
        config=config,
        versions={},
        generator={"sha256": ""},
        sizes=None,
    )


def _network(chosen: argparse.Namespace) -> Generator:
    config = InfillingConfig(generator=chosen.generator, weights="none", **json.loads(chosen.model))
    room = Infilling(config, chosen.size)
    data = DataConfig(size=chosen.size, frame="padded", padding=PADDING, window=(0, 1))
    return Generator(room.functions()["generator"], chosen.size, config.margin, data)


def main() -> None:
    """Measure numbers of lesions, then sizes of the image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", choices=("unet", "crn"), default="unet")
    parser.add_argument("--format", choices=("dicom", "png", "tfrecord"), default="dicom")
    parser.add_argument("--lesions", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=(3328, 2560), metavar=("ROWS", "COLS")
    )
    parser.add_argument("--side", type=int, default=300, help="of a lesion, native px")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="of the generator's patch, px")
    parser.add_argument(
        "--model",
        default="{}",
        metavar="JSON",
        help="the infilling's config where it is not the paper's",
    )
    chosen = parser.parse_args()
    cv2.setNumThreads(1)  # as synthesis.make does
    network = _network(chosen)
    (rows, cols) = chosen.pixels
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cv2.imwrite(
            str(folder / "shape.png"),
            cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), 50, 255, -1),
        )
        by_lesions = {}
        for count in chosen.lesions:
            recipe = _recipe(count, folder, chosen)
            by_lesions[count] = measured(
                mammogram(folder, rows, cols), network, recipe, folder, chosen.repeats
            )
        by_pixels = {}
        for factor in (1.0, 0.8, 0.6):
            source = mammogram(folder, int(rows * factor), int(cols * factor))
            recipe = _recipe(1, folder, chosen)
            by_pixels[source.rows * source.cols / 1e6] = measured(
                source, network, recipe, folder, chosen.repeats
            )
    print(json.dumps(report(chosen, by_lesions, by_pixels)), flush=True)


def report(
    chosen: argparse.Namespace,
    by_lesions: dict[int, dict[str, float]],
    by_pixels: dict[float, dict[str, float]],
) -> dict[str, Any]:
    """The JSON line."""
    rows = []
    for count, taken in by_lesions.items():
        inserting = taken["blending"] + taken["writing"]
        all_but = sum(taken.values()) - taken["generator"]
        overheads = {
            "overhead": all_but / taken["generator"],
            "overhead_of_insertion": inserting / taken["generator"],
        }
        rows.append(
            {"lesions": count}
            | {key: round(value, 4) for key, value in (taken | overheads).items()}
        )
    per_lesion = [
        round((taken["placing"] + taken["blending"]) / count, 4)
        for count, taken in by_lesions.items()
    ]
    per_megapixel = [
        round((taken["reading"] + taken["writing"]) / count, 4)
        for count, taken in by_pixels.items()
    ]
    return {
        "benchmark": "synthesis",
        "generator": chosen.generator,
        "format": chosen.format,
        "side": chosen.side,
        "rows": chosen.pixels[0],
        "cols": chosen.pixels[1],
        "seconds": rows,
        "megapixels": [round(size, 2) for size in by_pixels],
        "per_lesion": per_lesion,
        "per_megapixel": per_megapixel,
        "wanted": "overhead <= 0.5; per_lesion does not grow with lesions, nor per_megapixel with "
        "size",
    }


if __name__ == "__main__":
    main()
