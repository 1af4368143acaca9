"""Measure how fast data comes in, against what consumes it; one JSON line a part.

python benchmarks/input.py [--only dicom pipeline build] [--files N]

dicom: a DICOM file to pixels, over pydicom's own decoding and look-up tables of the same files
(wanted: at most 1.3). pipeline: patches a second from memory and from records, over what a
full-size CAN consumes (wanted: at least 20), and the part of its time that a consumer of 200 steps
a second waits for them: it sleeps in its steps, as a host does beside a GPU, and has one batch
ready for comparison. build: a build in one process over one in two, wall clock with their start
(wanted: at least 1.5 on two idle cores).

Everything is made from the phantom, in a temporary folder. Time: about five minutes on two idle
cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless

from tfmammo.archives import phantom
from tfmammo.archives.dicom import read_pixels
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.config import TrainingConfig

PARTS = ("dicom", "pipeline", "build")
SYNTAXES = {"uncompressed": ExplicitVRLittleEndian, "JPEG 2000": JPEG2000Lossless}
REPEATS = 5
FAST = 200  # steps a second, of a consumer that sleeps


def measure_dicom(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure both readers for each transfer syntax, in turns on each file."""
    rows, cols = options.pixels
    images = [
        cv2.resize(mammogram.pixels(), (cols, rows))
        for mammogram in phantom.read(count=options.files)
    ]
    result: dict[str, object] = {
        "files": options.files,
        "rows": rows,
        "cols": cols,
        "wanted": "<= 1.3",
    }
    for name, syntax in SYNTAXES.items():
        paths = [
            _write_file(folder / f"{name}-{number}.dcm", image, syntax)
            for number, image in enumerate(images)
        ]
        times: dict[Callable[[Path], object], list[float]] = {
            read_pixels: [],
            _read_with_pydicom: [],
        }
        for path in paths * REPEATS:
            for reader, seconds in times.items():
                start = time.process_time()
                reader(path)
                seconds.append(time.process_time() - start)
        ours, theirs = (statistics.median(seconds) for seconds in times.values())
        result[name] = {
            "ours_ms": round(1e3 * ours, 2),
            "pydicom_ms": round(1e3 * theirs, 2),
            "ratio": round(ours / theirs, 3),
        }
    return result


def _write_file(path: Path, image: NDArray[np.float32], syntax: UID) -> Path:
    stored = np.rint(image * 4095).astype(np.uint16)
    elements = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 2048, "WindowWidth": 4096}
    write_dicom(path, stored, 12, syntax=syntax, **elements)
    return path


def _read_with_pydicom(path: Path) -> object:
    dataset = pydicom.dcmread(path)
    return apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)


def measure_pipeline(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure patches a second of both pipelines, and the training step that they feed."""
    # TensorFlow is imported only where it is measured, so that the other parts are not slowed down
    # by its threads.
    from tfmammo.training import script

    script.configure_tensorflow(TrainingConfig())
    import tensorflow as tf

    from tfmammo.data.build import BuildConfig, build
    from tfmammo.data.pipeline import batches
    from tfmammo.data.tfrecord import Records

    logging.disable(logging.WARNING)
    data = {
        "phantoms": options.files,
        "size": options.size,
        "patches": "offset",
        "sampling": {"count": options.patches},
    }
    build(BuildConfig(name="benchmark", data=data), folder / "records")
    records = Records.open(folder / "records")
    step = _time_step(options)
    rates = {}
    waited = {}
    ready = tf.data.Dataset.from_tensors(next(iter(batches(records, 1, 0, False)))).repeat()
    without_waiting = _time_consumer(iter(ready), options.draws)
    for name, source in (("memory", records.load()), ("records", records)):
        stream = iter(batches(source, 1, seed=0, augment=True))
        for _ in range(20):
            next(stream)
        start = time.perf_counter()
        for _ in range(options.draws):
            next(stream)
        rates[name] = options.draws / (time.perf_counter() - start)
        waited[name] = 1 - without_waiting / _time_consumer(stream, options.draws)
    return {
        "patches": len(records),
        "size": options.size,
        "can_step_s": round(step, 4),
        "wanted": ">= 20",
        **{
            name: {
                "patches_per_s": round(rate, 1),
                "over_step": round(rate * step, 1),
                "waited": round(waited[name], 4),
            }
            for name, rate in rates.items()
        },
    }


def _time_consumer(stream: Iterator[object], steps: int) -> float:
    """Time a loop in a graph, as a training's, that takes a batch and sleeps 1 / FAST s a step."""
    import tensorflow as tf

    def sleep() -> np.int32:
        time.sleep(1 / FAST)
        return np.int32(1)

    @tf.function
    def consume(stream: Iterator[object], steps: tf.Tensor) -> tf.Tensor:
        slept = 0
        for _ in tf.range(steps):
            batch = next(stream)
            with tf.control_dependencies(tf.nest.flatten(batch)):
                slept += tf.ensure_shape(tf.numpy_function(sleep, [], tf.int32), [])
        return slept

    consume(stream, tf.constant(20))  # traces, and fills the buffers
    start = time.perf_counter()
    consume(stream, tf.constant(steps)).numpy()
    return time.perf_counter() - start


def _time_step(options: argparse.Namespace) -> float:
    import tensorflow as tf

    from tfmammo.models.can import CAN, CANConfig

    model = CAN(CANConfig(**json.loads(options.model)), options.size)
    step = tf.function(model.train_step)
    image = tf.random.stateless_uniform([1, options.size, options.size, 1], [0, 0])
    batch = {"image": image, "mask": tf.round(image)}
    seconds = []
    for _ in range(2 + options.steps):  # the first ones trace
        start = time.perf_counter()
        for value in step(batch).values():
            value.numpy()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def measure_build(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure wall-clock seconds of the same build with one and with two processes."""
    (folder / "build.yaml").write_text("name: benchmark\n", encoding="utf-8")
    overrides = (f"data.phantoms={options.mammograms}", f"data.size={options.size}")
    command = [sys.executable, "-m", "tfmammo.data.build", "--config", str(folder / "build.yaml")]
    command += ["--set", *overrides, "build.shard_mammograms=2"]
    seconds = []
    for jobs in ("1", "2"):
        output = ["--output", str(folder / jobs), "--jobs", jobs]
        start = time.perf_counter()
        subprocess.run([*command, *output], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    one_worker, two_workers = seconds
    same_bytes = (folder / "1" / "manifest.json").read_bytes() == (
        folder / "2" / "manifest.json"
    ).read_bytes()
    return {
        "mammograms": options.mammograms,
        "one_worker_s": round(one_worker, 2),
        "two_workers_s": round(two_workers, 2),
        "ratio": round(one_worker / two_workers, 3),
        "wanted": ">= 1.5",
        "same_bytes": same_bytes,
    }


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
    parser.add_argument("--mammograms", type=int, default=480, help="build: phantoms built")
    options = parser.parse_args()
    parts = {
        "dicom": measure_dicom,
        "pipeline": measure_pipeline,
        "build": measure_build,
    }
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            print(
                json.dumps({"benchmark": f"input.{name}", **parts[name](options, Path(folder))}),
                flush=True,
            )


if __name__ == "__main__":
    main()
