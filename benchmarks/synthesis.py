"""Measure what a synthetic mammogram costs besides its generator, and what a second process gives.

python benchmarks/synthesis.py [--only parts processes] [--generator unet] [--format dicom]
[--lesions 1 2 4] [--pixels 3328 2560] [--mammograms 480]

One JSON line each.

**parts.** Processor seconds for one full-resolution mammogram, medians, for each number of lesions.
They decide how much a bulk run makes in a day, and hardly depend on the machine's other load.

- Parts: reading (file, grey values, breast), placing, generator, blending (all of
  `synthesizer.render` but the generator) and writing (files, hashes, recipe).
- overhead: all but the generator over the generator (wanted: at most 0.5).
- overhead_of_insertion: blending and writing alone.
- per_lesion: seconds of placing and blending over the number of lesions.
- per_megapixel: of reading and writing over the size, for three sizes with one lesion.

Neither of the last two should grow. The generator is full size and untrained: what it draws does
not matter here.

**processes.** A set of --mammograms, made with one worker process and with two, by the clock, their
start included: ratio (wanted: at least 1.8 on two idle cores). The generator is the package's small
one, so that little of the time is its own.

A phantom, enlarged, in a 12-bit DICOM file in a temporary folder. Time: on two idle cores, two
minutes with the unet, and five for 480 mammograms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfmammo import filesystem

# isort: split
import cv2
import numpy as np
from insertion import TimedNetwork, find_normal_phantom, make_parser
from processes import time_workers

from tfmammo import archives
from tfmammo.archives.dicom import pixel_source
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.config import DataConfig
from tfmammo.mammogram import Mammogram
from tfmammo.models.infilling import Infilling, InfillingConfig
from tfmammo.synthesis.config import ShapeConfig, SynthesisConfig
from tfmammo.synthesis.generators import Generator
from tfmammo.synthesis.mammogram_set import list_files
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.recipe import Recipe, Source
from tfmammo.synthesis.renderers import NetworkRenderer, show_tri_label
from tfmammo.synthesis.sets import write_files
from tfmammo.synthesis.shapes import ShapeFiles
from tfmammo.synthesis.synthesizer import Synthesizer, render

PADDING = 100  # native px around a lesion
PARTS = ("reading", "placing", "generator", "blending", "writing")


def write_mammogram(folder: Path, rows: int, cols: int) -> Mammogram:
    """Write a normal phantom to a DICOM file of this size."""
    normal = find_normal_phantom()
    stored = np.rint(np.clip(cv2.resize(normal.pixels(), (cols, rows)), 0, 1) * 4095).astype(
        np.uint16
    )
    path = folder / f"{rows}x{cols}.dcm"
    write_dicom(
        path, stored, 12, RescaleSlope=1, RescaleIntercept=0, WindowCenter=2048, WindowWidth=4096
    )
    return replace(normal, rows=rows, cols=cols, spacing=(0.07, 0.07), **pixel_source(path))


def measure(
    source: Mammogram, network: Generator, recipe: Recipe, folder: Path, repeats: int
) -> dict[str, float]:
    """Measure the seconds of each part: medians of `repeats`, after one that is not counted."""
    timed = TimedNetwork(network.call)
    rows = []
    renderer = NetworkRenderer(replace(network, call=timed), recipe.config.feather, show_tri_label)
    assert recipe.config.shapes.files
    synthesizer = Synthesizer(renderer, shapes=ShapeFiles.find(recipe.config.shapes.files))
    for repeat in range(1 + repeats):
        # a new one, because replacing a file takes as long as removing the old one
        output = folder / str(repeat)
        output.mkdir()
        timed.seconds = 0.0
        times = [time.process_time()]
        stored = archives.read_stored(source)
        target = TargetMammogram(stored.image(), source, renderer.data)
        times.append(time.process_time())
        lesions, _ = synthesizer.plan(recipe, target, np.random.default_rng(0))
        times.append(time.process_time())
        synthetic = render(target, stored, lesions, renderer)
        times.append(time.process_time())
        records = tuple(lesion.record for lesion in lesions)
        updated = recipe.model_copy(update={"lesions": records, "source": _describe_source(source)})
        files = write_files(list_files(updated, source, synthetic), output)
        updated = updated.model_copy(update={"files": files})
        filesystem.write_atomically(
            output / "recipe.json", updated.model_dump_json(), durable=False
        )
        times.append(time.process_time())
        shutil.rmtree(output)
        reading, placing, rendering, writing = np.diff(times)
        rows.append((reading, placing, timed.seconds, rendering - timed.seconds, writing))
    return {
        name: statistics.median(row[place] for row in rows[1:]) for place, name in enumerate(PARTS)
    }


def _describe_source(source: Mammogram) -> Source:
    facts: dict[str, Any] = {
        "archive": "phantom",
        "image_id": source.image_id,
        "patient_id": source.patient_id,
        "sha256": "",
        "bits": 12,
    }
    return Source(**facts, rows=source.rows, cols=source.cols)


def _make_recipe(lesions: int, folder: Path, options: argparse.Namespace) -> Recipe:
    shapes = ShapeConfig(files=folder / "shape.png")
    size = (options.side, options.side)
    config = SynthesisConfig(
        name="benchmark",
        generator="none",
        masses=(lesions, lesions),
        size=size,
        shapes=shapes,
        format=options.format,
    )
    return Recipe(
        identity="",
        number=0,
        config=config,
        versions={},
        generator={"sha256": ""},
        sizes=None,
    )


def _make_network(options: argparse.Namespace) -> Generator:
    config = InfillingConfig(
        generator=options.generator, weights="none", **json.loads(options.model)
    )
    model = Infilling(config, options.size)
    data = DataConfig(size=options.size, frame="padded", padding=PADDING, window=(0, 1))
    return Generator(model.functions()["generator"], options.size, config.margin, data)


def main() -> None:
    """Measure both, as far as the options ask for it."""
    parser = make_parser(__doc__, "infilling", repeats=5)
    parser.add_argument("--only", nargs="+", choices=("parts", "processes"), default=())
    parser.add_argument("--generator", choices=("unet", "crn"), default="unet")
    parser.add_argument("--format", choices=("dicom", "png", "tfrecord"), default="dicom")
    parser.add_argument("--lesions", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--mammograms", type=int, default=480, help="of the set")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # as synthesis workers do
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cv2.imwrite(
            str(folder / "shape.png"),
            cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), 50, 255, -1),
        )
        for part, measure_part in {"parts": measure_parts, "processes": measure_processes}.items():
            if part in (options.only or (part,)):
                print(json.dumps(measure_part(options, folder)), flush=True)


def measure_parts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure numbers of lesions, then sizes of the image; return the JSON line."""
    network = _make_network(options)
    (rows, cols) = options.pixels
    by_lesions = {}
    for count in options.lesions:
        recipe = _make_recipe(count, folder, options)
        by_lesions[count] = measure(
            write_mammogram(folder, rows, cols), network, recipe, folder, options.repeats
        )
    by_pixels = {}
    for factor in (1.0, 0.8, 0.6):
        source = write_mammogram(folder, int(rows * factor), int(cols * factor))
        recipe = _make_recipe(1, folder, options)
        by_pixels[source.rows * source.cols / 1e6] = measure(
            source, network, recipe, folder, options.repeats
        )
    return make_report(options, by_lesions, by_pixels)


def measure_processes(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the same set with one and with two processes; return the JSON line."""
    images = folder / "normals" / "images"
    images.mkdir(parents=True)
    write_mammogram(images, *options.pixels)
    (images.parent / "metadata.csv").write_text(
        f"file,patient,laterality,view,pathology\n{next(images.iterdir()).name},1,L,CC,normal\n",
        encoding="utf-8",
    )
    side = {"unit": "px", "height": [options.side, 1], "width": [options.side, 1]}
    config = {
        "name": "benchmark",
        "data": {"name": "folder", "root": str(images.parent)},
        "generator": "models:/zoo/infilling",
        "sizes": {**side, "correlation": 0},
        "shapes": {"files": str(folder / "shape.png")},
        "count": options.mammograms,
        "format": options.format,
    }
    path = folder / "synthesis.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # which is YAML, too
    one_worker, two_workers = time_workers(("-m", "tfmammo.synthesis", "--config", path), folder)
    return {
        "benchmark": "synthesis.processes",
        "format": options.format,
        "rows": options.pixels[0],
        "cols": options.pixels[1],
        "mammograms": options.mammograms,
        "one_worker_s": round(one_worker, 2),
        "two_workers_s": round(two_workers, 2),
        "ratio": round(one_worker / two_workers, 3),
        "wanted": ">= 1.8",
    }


def make_report(
    options: argparse.Namespace,
    by_lesions: dict[int, dict[str, float]],
    by_pixels: dict[float, dict[str, float]],
) -> dict[str, Any]:
    """Make the JSON line."""
    rows = []
    for count, seconds in by_lesions.items():
        inserting = seconds["blending"] + seconds["writing"]
        all_but = sum(seconds.values()) - seconds["generator"]
        overheads = {
            "overhead": all_but / seconds["generator"],
            "overhead_of_insertion": inserting / seconds["generator"],
        }
        rows.append(
            {"lesions": count}
            | {key: round(value, 4) for key, value in (seconds | overheads).items()}
        )
    per_lesion = [
        round((seconds["placing"] + seconds["blending"]) / count, 4)
        for count, seconds in by_lesions.items()
    ]
    per_megapixel = [
        round((seconds["reading"] + seconds["writing"]) / count, 4)
        for count, seconds in by_pixels.items()
    ]
    return {
        "benchmark": "synthesis",
        "generator": options.generator,
        "format": options.format,
        "side": options.side,
        "rows": options.pixels[0],
        "cols": options.pixels[1],
        "seconds": rows,
        "megapixels": [round(size, 2) for size in by_pixels],
        "per_lesion": per_lesion,
        "per_megapixel": per_megapixel,
        "wanted": "overhead <= 0.5; per_lesion does not grow with lesions, nor per_megapixel with "
        "size",
    }


if __name__ == "__main__":
    main()
