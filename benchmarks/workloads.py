"""One point of a curve of benchmarks/scaling.py, in a process of its own; that script says
what is measured and starts this one.

python benchmarks/workloads.py '{"part": "can", "size": 64, "batch": 1, "width": 0.25, "depth": 6}'
[--steps 5] [--count] python benchmarks/workloads.py '{"part": "froc", "images": 1000}'

One JSON line: seconds by the clock and processor_seconds of all threads, of the quickest training
step (what else the machine does only adds) or of all images together; megabytes that it adds to the
process's peak; with --count gflop of the step, counted in its graph, and million_weights.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

DETECTIONS = 100  # in an image
# Columns: sets are larger than they are wide, as with Inception's 2048 beyond as many images, and
# stay within a processor's cache, the end of which looks like growth.
FEATURES = 32
Run = Callable[[], Any]


@dataclass(frozen=True)
class Point:
    """What is measured.

    Attributes:
        part: A model, or what is done with so many images.
        size: px.
        width: Factor of all filters.
        depth: Halvings of the U-Nets.
    """

    part: str
    size: int = 64
    batch: int = 1
    width: float = 1.0
    depth: int = 6
    images: int = 0


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("point", metavar="JSON", help="see Point")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--count", action="store_true", help="the step's FLOPs too")
    chosen = parser.parse_args()
    point = Point(**json.loads(chosen.point))
    logging.disable(logging.WARNING)
    print(json.dumps(of_images(point) if point.part in IMAGES else of_step(point, chosen)))


def of_step(point: Point, chosen: argparse.Namespace) -> dict[str, float]:
    """A training step's line, after two that trace and warm up."""
    from tfmammo import _tensorflow  # noqa: F401, I001  # the first to import TensorFlow, because it keeps that quiet
    import tensorflow as tf

    from tfmammo.config import TrainingConfig
    from tfmammo.training import script

    script.prepare(TrainingConfig(precision=chosen.precision))
    before = forget()
    room = room_of(point)
    batch = {name: tf.constant(value) for name, value in batch_of(point).items()}
    step = tf.function(room.train_step)

    def once() -> None:
        for value in step(batch).values():
            value.numpy()

    once()
    once()
    wall, processor = zip(*(timed(once) for _ in range(chosen.steps)), strict=True)
    found = {
        "seconds": min(wall),
        "processor_seconds": min(processor),
        "megabytes": peak() - before,
    }
    weights = sum(network.count_params() for network in room.networks.values()) / 1e6
    return found | (
        {"gflop": flops(room, batch) / 1e9, "million_weights": weights} if chosen.count else {}
    )


def of_images(point: Point) -> dict[str, float]:
    """The line of something done with images, after the same with two of them, which imports and
    warms up.
    """
    with tempfile.TemporaryDirectory() as folder:
        IMAGES[point.part](2, Path(folder) / "first")()
        before = forget()
        run = IMAGES[point.part](point.images, Path(folder) / "second")
        wall, processor = timed(run)
        return {
            "seconds": wall,
            "processor_seconds": processor,
            "megabytes": max(peak() - before, 0.0),
        }


def timed(run: Run) -> tuple[float, float]:
    """Seconds by the clock, and of the processors."""
    wall = time.perf_counter()
    processor = time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def peak() -> float:
    """MB that this process has held at most since `forget`."""
    try:  # what getrusage gives begins with what the starting process held
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return (
            int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
            / 2**10
        )
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget() -> float:
    """Let the peak start anew from what is held now, where the system can; returns it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken again unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak()


def flops(room: Any, batch: dict[str, Any]) -> int:
    """Of a step, as TensorFlow's profiler counts them in the graph, for which all shapes must be
    known.
    """
    import tensorflow as tf

    def partition(data: Any, partitions: Any, count: int) -> Any:
        half = data.shape[0] // 2  # as batch_of lays them out
        return tf.split(data, [half, 0, data.shape[0] - half])

    with mock.patch.object(tf, "dynamic_partition", partition):
        graph = tf.function(room.train_step).get_concrete_function(batch).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    return int(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


def batch_of(point: Point) -> dict[str, np.ndarray]:
    """Random patches and masks; for the contextual GAN half of them malignant, then half normal."""
    random = np.random.default_rng(0)
    shape = (point.batch, point.size, point.size, 1)
    batch = {
        "image": random.random(shape, np.float32),
        "mask": (random.random(shape) > 0.7).astype(np.float32),
    }
    half = point.batch // 2
    return batch | (
        {"label": np.array([0] * half + [2] * (point.batch - half), np.int32)}
        if point.part == "contextual"
        else {}
    )


def room_of(point: Point) -> Any:
    """A model, all its filters times `width`.

    U-Nets halve the patch `depth` times whatever its size; the contextual GAN's networks end at 4 x
    4 px, as they must, so that they have a level more for each doubling.
    """
    size = point.size
    if point.part == "can":
        from tfmammo.models.can import CAN, CANConfig

        return CAN(CANConfig(**unet(CANConfig(), point)), size)
    if point.part == "infilling":
        from tfmammo.models.infilling import Infilling, InfillingConfig

        return Infilling(InfillingConfig(weights="none", **unet(InfillingConfig(), point)), size)
    if point.part == "cgan":
        from tfmammo.models.cgan import CGAN, CGANConfig

        return CGAN(CGANConfig(**unet(CGANConfig(), point)), size)
    from tfmammo.models.contextual import Contextual, ContextualConfig

    filters = narrow([16 * 2**level for level in range(size.bit_length() - 3)], point.width)
    return Contextual(
        ContextualConfig(
            positives="lesion", filters=filters, start=size, attention=min(32, size // 2)
        ),
        size,
    )


def unet(config: Any, point: Point) -> dict[str, Any]:
    """The widths of a config with a U-Net."""
    one = narrow([config.discriminator_filters], point.width)[0]
    return {
        "filters": narrow(config.filters[: point.depth], point.width),
        "discriminator_filters": one,
    }


def narrow(filters: Any, width: float) -> tuple[int, ...]:
    """Filters times a factor, one at least."""
    return tuple(max(1, round(width * count)) for count in filters)


def build(count: int, folder: Path) -> Run:
    """Phantoms to records."""
    from tfmammo.config import DataConfig
    from tfmammo.data.build import BuildConfig
    from tfmammo.data.build import build as write

    return lambda: write(
        BuildConfig(name="scaling", data=DataConfig(phantoms=count, size=64)), folder
    )


def pipeline(count: int, folder: Path) -> Run:
    """Records to batches of one, each patch once."""
    from tfmammo.config import DataConfig, SamplingConfig
    from tfmammo.data.build import BuildConfig
    from tfmammo.data.build import build as write
    from tfmammo.data.pipeline import batches
    from tfmammo.data.tfrecord import Records

    data = DataConfig(phantoms=8, size=64, patches="offset", sampling=SamplingConfig(count=count))
    write(BuildConfig(name="scaling", data=data), folder)
    return lambda: [
        None
        for _, _ in zip(
            range(count), batches(Records.open(folder), 1, seed=0, augment=True), strict=False
        )
    ]


def synthesis(count: int, folder: Path) -> Run:
    """Masses set into phantoms by Poisson editing, without a network."""
    from tfmammo.config import DataConfig
    from tfmammo.synthesis.config import SynthesisConfig
    from tfmammo.synthesis.mammograms import synthesise

    return lambda: synthesise(
        SynthesisConfig(
            name="scaling",
            painter="poisson",
            format="png",
            count=count,
            data=DataConfig(phantoms=8),
        ),
        folder,
    )


def ssim(count: int, folder: Path) -> Run:
    """L1, PSNR and SSIM of pairs of 64 px."""
    from tfmammo.metrics.synthesis import per_image

    random = np.random.default_rng(0)
    shape = (count, 64, 64, 1)
    real = random.random(shape, np.float32)
    made = random.random(shape, np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[:, 20:40, 20:40] = 1
    return lambda: per_image(real, made, mask)


def segmentation(count: int, folder: Path) -> Run:
    """Dice and the others of masks of 64 px, and a patient bootstrap of one of them."""
    from tfmammo.metrics.segmentation import bootstrap_interval, per_image

    random = np.random.default_rng(0)
    shape = (count, 64, 64, 1)
    truth = random.random(shape) > 0.5
    output = random.random(shape, np.float32)
    return lambda: bootstrap_interval(per_image(truth, output)["dice"], np.arange(count) // 2)


def froc(count: int, folder: Path) -> Run:
    """Boxes to a FROC curve."""
    from tfmammo.metrics.detection import froc as curve
    from tfmammo.metrics.detection import match

    images = detected(count)
    return lambda: curve([match(*image) for image in images])


def jafroc(count: int, folder: Path) -> Run:
    """The test of two detectors' figures of merit."""
    from tfmammo.metrics.detection import match
    from tfmammo.metrics.jafroc import jafroc_test

    random = np.random.default_rng(1)
    images = detected(count)
    ours = [match(*image) for image in images]
    others = [match(boxes, random.random(len(scores)), truth) for boxes, scores, truth in images]
    return lambda: jafroc_test(
        ours, others, [str(number // 2) for number in range(count)], "jafroc1"
    )


def detected(count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes, scores and a lesion of each image; every second detection lies near the lesion."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        corners = random.uniform(0, 3000, (DETECTIONS + 1, 2))
        boxes = np.concatenate([corners, corners + random.uniform(50, 500, corners.shape)], axis=1)
        boxes[:-1:2] = boxes[-1] + random.normal(0, 20, (len(boxes[:-1:2]), 4))
        found.append((boxes[:-1], random.random(DETECTIONS), boxes[-1:]))
    return found


def fid(count: int, folder: Path) -> Run:
    """FID of features that are there already."""
    from tfmammo.metrics.perceptual import fid as distance

    return lambda: distance(*drawn_features(count))


def kid(count: int, folder: Path) -> Run:
    """KID likewise, of its 100 subsets."""
    from tfmammo.metrics.perceptual import kid as distance

    return lambda: distance(*drawn_features(count))


def drawn_features(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of both sets."""
    first, second = np.random.default_rng(0).normal(size=(2, count, FEATURES)).astype(np.float32)
    return first, second


IMAGES: dict[str, Callable[[int, Path], Run]] = {
    "build": build,
    "pipeline": pipeline,
    "synthesis": synthesis,
    "ssim": ssim,
    "segmentation": segmentation,
    "froc": froc,
    "jafroc": jafroc,
    "fid": fid,
    "kid": kid,
}

if __name__ == "__main__":
    main()
