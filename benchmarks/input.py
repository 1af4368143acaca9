"""How fast data comes in, beside what it is measured against; one JSON line a part.

python benchmarks/input.py [--only dicom pipeline beam index] [--files N]

dicom: a DICOM file to pixels, over pydicom's own decoding and look-up tables of the same files
(wanted: at most 1.3). pipeline: patches a second from memory and from records, over what a
full-size CAN consumes (wanted: at least 20). beam: a build with one worker over one with two, wall
clock with their start (wanted: at least 1.5 on two idle cores). index: reading an archive's tables
and headers, per 10,000 images, for three sizes of it (wanted: the same for each).

Everything is made from the phantom, in a temporary folder. Time: about five minutes on two idle
cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless

from tfmammo.archives import ARCHIVES, phantom
from tfmammo.archives.dicom import read_pixels
from tfmammo.archives.writers import inbreast, vindr
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.config import TrainingConfig
from tfmammo.mammogram import Lesion, Mammogram

PARTS = ("dicom", "pipeline", "beam", "index")
WRITERS: dict[str, Callable[..., list[Path]]] = {"inbreast": inbreast.write, "vindr": vindr.write}
SYNTAXES = {"uncompressed": ExplicitVRLittleEndian, "JPEG 2000": JPEG2000Lossless}
REPEATS = 5


def dicom(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The ratio of both readers for each transfer syntax, taken in turns on each file."""
    rows, cols = chosen.pixels
    images = [
        cv2.resize(found.pixels(), (cols, rows)) for found in phantom.read(count=chosen.files)
    ]
    found: dict[str, object] = {
        "files": chosen.files,
        "rows": rows,
        "cols": cols,
        "wanted": "<= 1.3",
    }
    for name, syntax in SYNTAXES.items():
        paths = [
            _written(folder / f"{name}-{number}.dcm", image, syntax)
            for number, image in enumerate(images)
        ]
        times: dict[Callable[[Path], object], list[float]] = {read_pixels: [], _peer: []}
        for path in paths * REPEATS:
            for reader, taken in times.items():
                start = time.process_time()
                reader(path)
                taken.append(time.process_time() - start)
        ours, theirs = (statistics.median(taken) for taken in times.values())
        found[name] = {
            "ours_ms": round(1e3 * ours, 2),
            "pydicom_ms": round(1e3 * theirs, 2),
            "ratio": round(ours / theirs, 3),
        }
    return found


def _written(path: Path, image: NDArray[np.float32], syntax: UID) -> Path:
    stored = np.rint(image * 4095).astype(np.uint16)
    elements = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 2048, "WindowWidth": 4096}
    write_dicom(path, stored, 12, syntax=syntax, **elements)
    return path


def _peer(path: Path) -> object:
    dataset = pydicom.dcmread(path)
    return apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)


def pipeline(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Patches a second of both pipelines, and of the training step that they feed."""
    # TensorFlow is imported only where it is measured, so that the other parts are not slowed down
    # by its threads.
    from tfmammo.training import script

    script.prepare(TrainingConfig())
    from tfmammo.data.build import BuildConfig, build
    from tfmammo.data.pipeline import batches
    from tfmammo.data.tfrecord import Records

    logging.disable(logging.WARNING)
    data = {
        "phantoms": chosen.files,
        "size": chosen.size,
        "patches": "offset",
        "sampling": {"count": chosen.patches},
    }
    build(BuildConfig(name="benchmark", data=data), folder / "records")
    records = Records.open(folder / "records")
    step = _seconds_a_step(chosen)
    rates = {}
    for name, source in (("memory", records.load()), ("records", records)):
        drawn = iter(batches(source, 1, seed=0, augment=True))
        for _ in range(20):
            next(drawn)
        start = time.perf_counter()
        for _ in range(chosen.draws):
            next(drawn)
        rates[name] = chosen.draws / (time.perf_counter() - start)
    return {
        "patches": len(records),
        "size": chosen.size,
        "can_step_s": round(step, 4),
        "wanted": ">= 20",
        **{
            name: {"patches_per_s": round(rate, 1), "over_step": round(rate * step, 1)}
            for name, rate in rates.items()
        },
    }


def _seconds_a_step(chosen: argparse.Namespace) -> float:
    import tensorflow as tf

    from tfmammo.models.can import CAN, CANConfig

    model = CAN(CANConfig(**json.loads(chosen.model)), chosen.size)
    step = tf.function(model.train_step)
    image = tf.random.stateless_uniform([1, chosen.size, chosen.size, 1], [0, 0])
    batch = {"image": image, "mask": tf.round(image)}
    taken = []
    for _ in range(2 + chosen.steps):  # the first ones trace
        start = time.perf_counter()
        for value in step(batch).values():
            value.numpy()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def beam(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Wall-clock seconds of the same build with one and with two processes."""
    (folder / "build.yaml").write_text("name: benchmark\n", encoding="utf-8")
    taken = {}
    for workers in (1, 2):
        command = [
            sys.executable,
            "-m",
            "tfmammo.data.build",
            "--config",
            folder / "build.yaml",
            "--output",
            folder / str(workers),
        ]
        flags = ["--direct_running_mode", "multi_processing", "--direct_num_workers", workers]
        overrides = [
            "--set",
            f"data.phantoms={chosen.mammograms}",
            f"data.size={chosen.size}",
            "build.shard_mammograms=2",
        ]
        start = time.perf_counter()
        subprocess.run(
            [str(word) for word in (*command, *overrides, *flags)], check=True, capture_output=True
        )
        taken[workers] = time.perf_counter() - start
    same = (folder / "1" / "manifest.json").read_bytes() == (
        folder / "2" / "manifest.json"
    ).read_bytes()
    one = taken[1]
    two = taken[2]
    return {
        "mammograms": chosen.mammograms,
        "one_worker_s": round(one, 2),
        "two_workers_s": round(two, 2),
        "ratio": round(one / two, 3),
        "wanted": ">= 1.5",
        "same_bytes": same,
    }


def index(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Seconds (of this process) and peak memory per 10,000 images of a tree of tiny files."""
    seconds = []
    megabytes = []
    for count in chosen.images:
        root = folder / f"{chosen.archive}-{count}"
        WRITERS[chosen.archive](_tiny(count), root)
        start = time.process_time()
        found = ARCHIVES[chosen.archive](root)
        seconds.append((time.process_time() - start) * 10_000 / count)
        if len(found) != count:
            raise SystemExit(f"{chosen.archive} gives {len(found)} of {count} images")
        del found
        gc.collect()
        tracemalloc.start()
        found = ARCHIVES[chosen.archive](root)
        megabytes.append(tracemalloc.get_traced_memory()[1] / 1e6 * 10_000 / count)
        tracemalloc.stop()
        del found
    return {
        "archive": chosen.archive,
        "images": chosen.images,
        "seconds_per_10000": [round(value, 2) for value in seconds],
        "megabytes_per_10000": [round(value, 1) for value in megabytes],
        "growth": round(max(seconds) / min(seconds), 3),
        "wanted": "growth near 1",
    }


def _tiny(count: int) -> Iterable[Mammogram]:
    """Mammograms of 8 x 8 px, four a patient, every other one with a mass."""
    mass = Lesion.from_outline("mass", np.array([[2, 2], [2, 5], [5, 5], [5, 2]]), 8, 8)
    read = partial(np.zeros, (8, 8, 1), np.float32)
    for number in range(count):
        side = "LR"[number % 2]
        view = ("CC", "MLO")[number // 2 % 2]
        lesions, birads = ((mass,), "4") if number % 2 else ((), "1")
        patient = f"{number // 4:08x}"
        yield Mammogram(
            "tiny",
            patient,
            f"{number:032x}",
            8,
            8,
            read,
            side,
            view,
            None,
            lesions,
            (0.1, 0.1),
            birads,
            "B",
            "train",
        )


def main() -> None:
    """Measure the chosen parts, one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts")
    parser.add_argument("--files", type=int, default=12, help="phantoms of dicom and pipeline")
    parser.add_argument(
        "--pixels",
        type=int,
        nargs=2,
        default=(3328, 2560),
        metavar=("ROWS", "COLS"),
        help="dicom: of a file",
    )
    parser.add_argument("--size", type=int, default=256, help="of a patch, px")
    parser.add_argument("--patches", type=int, default=512, help="pipeline: patches cut from them")
    parser.add_argument("--draws", type=int, default=2000, help="pipeline: patches drawn from each")
    parser.add_argument("--steps", type=int, default=5, help="pipeline: training steps timed")
    parser.add_argument(
        "--model",
        default="{}",
        metavar="JSON",
        help="pipeline: CAN's config where it is not the paper's",
    )
    parser.add_argument("--mammograms", type=int, default=480, help="beam: phantoms built")
    parser.add_argument(
        "--archive",
        choices=sorted(WRITERS),
        default="inbreast",
        help="index: whose form the tree has",
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[2500, 5000, 10000],
        help="index: sizes of the tree",
    )
    chosen = parser.parse_args()
    parts = {"dicom": dicom, "pipeline": pipeline, "beam": beam, "index": index}
    for name in chosen.only:
        with tempfile.TemporaryDirectory() as folder:
            print(
                json.dumps({"benchmark": f"input.{name}", **parts[name](chosen, Path(folder))}),
                flush=True,
            )


if __name__ == "__main__":
    main()
