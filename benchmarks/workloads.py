"""Measure one point of a curve of benchmarks/scaling.py, which starts this script for each point.

python benchmarks/workloads.py '{"part": "can", "size": 64, "batch": 1, "width": 0.25, "depth": 6}'
                               [--steps 5] [--count]
python benchmarks/workloads.py '{"part": "froc", "images": 1000}'

One JSON line: seconds by the clock and processor_seconds of all threads, of the fastest training
step (other work of the machine can only add time) or of all images together; megabytes that the
work adds to the process's peak; with --count, gflop of the step, counted in its graph, and
million_weights.
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

# models that need labels -> that of the second half of a batch
OTHER_LABEL = {"contextual": 2, "blending": 1, "classifier": 1}
SMALL = 32  # px, of a mammogram without a breast around it
DETECTIONS = 100  # in an image
# Few, so that sets have more images than features, as with Inception's 2048 and enough images, and
# stay in the processor's cache; beyond the cache, cost grows faster.
FEATURES = 32
Run = Callable[[], Any]


@dataclass(frozen=True)
class Point:
    """A point to measure.

    Attributes:
        part: A model, or a key of IMAGES.
        size: Size of a patch, px.
        batch: Patches of a step.
        width: Factor of all filters.
        depth: Levels of the U-Nets.
        images: Number of images.
    """

    part: str
    size: int = 64
    batch: int = 1
    width: float = 1.0
    depth: int = 6
    images: int = 0


def main() -> None:
    """Measure the point, and print its line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("point", metavar="JSON", help="see Point")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--count", action="store_true", help="also count the FLOPs of the step")
    options = parser.parse_args()
    point = Point(**json.loads(options.point))
    logging.disable(logging.WARNING)
    print(
        json.dumps(measure_images(point) if point.part in IMAGES else measure_step(point, options))
    )


def measure_step(point: Point, options: argparse.Namespace) -> dict[str, float]:
    """Measure a training step, after two that trace and warm up."""
    from tfmammo.nn import _tensorflow  # noqa: F401, I001  # the first to import TensorFlow, because it keeps that quiet
    import tensorflow as tf

    from tfmammo.config import TrainingConfig
    from tfmammo.training import script

    script.configure_tensorflow(TrainingConfig(precision=options.precision))
    before = reset_peak()
    model = build_model(point)
    batch = {name: tf.constant(value) for name, value in make_batch(point).items()}
    step = tf.function(model.train_step)

    def run_step() -> None:
        for value in step(batch).values():
            value.numpy()

    run_step()
    run_step()
    wall, processor = zip(*(time_run(run_step) for _ in range(options.steps)), strict=True)
    line = {
        "seconds": min(wall),
        "processor_seconds": min(processor),
        "megabytes": peak_megabytes() - before,
    }
    if options.count:
        line["gflop"] = count_flops(model, batch) / 1e9
        weights = sum(network.count_params() for network in model.networks.values())
        line["million_weights"] = weights / 1e6
    return line


def measure_images(point: Point) -> dict[str, float]:
    """Measure what is done with images; the same with two images before imports all modules."""
    with tempfile.TemporaryDirectory() as folder:
        IMAGES[point.part](2, Path(folder) / "first")()
        before = reset_peak()
        run = IMAGES[point.part](point.images, Path(folder) / "second")
        wall, processor = time_run(run)
        return {
            "seconds": wall,
            "processor_seconds": processor,
            "megabytes": max(peak_megabytes() - before, 0.0),
        }


def time_run(run: Run) -> tuple[float, float]:
    """Run, and return the seconds by the clock and of all threads."""
    wall = time.perf_counter()
    processor = time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def peak_megabytes() -> float:
    """Return the most MB that this process has held since `reset_peak`."""
    try:  # getrusage's peak would include that of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reset_peak() -> float:
    """Reset the peak to the memory that is held now, if the system can, and return it in MB."""
    with contextlib.suppress(OSError, AttributeError):
        # Freed memory that the process keeps could be used again without raising the peak.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_megabytes()


def count_flops(model: Any, batch: dict[str, Any]) -> int:
    """Count the FLOPs of a step in its graph with TensorFlow's profiler, which needs all shapes."""
    import tensorflow as tf

    def partition(data: Any, partitions: Any, count: int) -> Any:
        half = data.shape[0] // 2  # as make_batch orders them
        return tf.split(data, [half, *[0] * (count - 2), data.shape[0] - half])

    with mock.patch.object(tf, "dynamic_partition", partition):
        graph = tf.function(model.train_step).get_concrete_function(batch).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    return int(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


def make_batch(point: Point) -> dict[str, np.ndarray]:
    """Make random patches and masks; where a model needs labels, each half has its own.

    The first half is malignant for the contextual GAN and normal for the others, the second is
    normal for the contextual GAN and of lesions for the others.
    """
    random = np.random.default_rng(0)
    shape = (point.batch, point.size, point.size, 1)
    batch = {
        "image": random.random(shape, np.float32),
        "mask": (random.random(shape) > 0.7).astype(np.float32),
    }
    if point.part in OTHER_LABEL:
        half = point.batch // 2
        other = OTHER_LABEL[point.part]
        batch["label"] = np.array([0] * half + [other] * (point.batch - half), np.int32)
    return batch


def build_model(point: Point) -> Any:
    """Build the model, with all its filters times `width`."""
    import models

    return models.build_model(point.part, make_config(point), point.size)


def make_config(point: Point) -> dict[str, Any]:
    """Make a config with the filters of the shipped one times `width`.

    Pix2Pix's U-Nets have `depth` levels at every size. The contextual GAN's networks must end at
    4 x 4 px, so they get one level more for each doubling.
    """
    if point.part == "contextual":
        levels = point.size.bit_length() - 3
        return {
            "positives": "lesion",
            "filters": scale_filters([16 * 2**level for level in range(levels)], point.width),
            "start": point.size,
            "attention": min(32, point.size // 2),
        }
    from tfmammo.config import read_yaml

    path = Path(__file__).parents[1] / "configs" / f"{point.part}.yaml"
    model = read_yaml(path)["model"]
    config: dict[str, Any] = {"weights": "none"} if "weights" in model else {}
    for key in ("filters", "discriminator_filters", "widths", "fc_width"):
        if key in model:
            many = isinstance(model[key], list)
            scaled = scale_filters(model[key] if many else [model[key]], point.width)
            config[key] = scaled if many else scaled[0]
    if point.part in ("can", "pix2pix", "infilling", "cgan"):
        config["filters"] = config["filters"][: point.depth]
    return config


def scale_filters(filters: Any, width: float) -> tuple[int, ...]:
    """Multiply filters by a factor; at least one is left."""
    return tuple(max(1, round(width * count)) for count in filters)


def prepare_index(count: int, folder: Path) -> Run:
    """Prepare reading the records of an archive, without pixels."""
    from tfmammo import archives
    from tfmammo.config import DataConfig

    return lambda: archives.read_mammograms(DataConfig(phantoms=count))


def prepare_split(count: int, folder: Path) -> Run:
    """Prepare splitting an archive by patient, stratified."""
    from tfmammo.config import DataConfig
    from tfmammo.data import datasets
    from tfmammo.data.splits import split

    data = DataConfig(phantoms=max(count, 24), stratify="pathology")  # fewer have too few patients
    archive = datasets.index_archive(data)
    return lambda: split(archive, data)


def prepare_plan(count: int, folder: Path) -> Run:
    """Prepare planning the shards of a build, with the hash of all records."""
    from tfmammo import archives
    from tfmammo.config import DataConfig
    from tfmammo.data.build import BuildConfig, plan_shards

    config = BuildConfig(name="scaling", data=DataConfig(phantoms=count, size=64))
    mammograms = archives.read_mammograms(config.data)
    return lambda: plan_shards(config, mammograms, folder)


def prepare_build(count: int, folder: Path) -> Run:
    """Prepare writing phantoms to records."""
    from tfmammo.config import DataConfig
    from tfmammo.data.build import BuildConfig
    from tfmammo.data.build import build as write

    return lambda: write(
        BuildConfig(name="scaling", data=DataConfig(phantoms=count, size=64)), folder
    )


def prepare_small_build(count: int, folder: Path) -> Run:
    """Prepare writing mammograms of few pixels to records: what each file costs beside pixels."""
    from tfmammo.config import DataConfig
    from tfmammo.data import build
    from tfmammo.mammogram import Mammogram, trace_lesions

    mass = trace_lesions("mass", draw_small() > 0.5, pathology="malignant")
    mammograms = [
        Mammogram(
            archive="small",
            patient_id=f"{number // 2:06d}",
            image_id=f"{number:06d}",
            rows=SMALL,
            cols=SMALL,
            read=draw_small,
            pathology="malignant",
            lesions=mass,
        )
        for number in range(count)
    ]
    config = build.BuildConfig(name="scaling", data=DataConfig(size=SMALL, window=(0, 1)))

    def write() -> None:
        with mock.patch.object(build.archives, "read_mammograms", lambda *_: mammograms):
            build.build(config, folder)

    return write


def draw_small() -> np.ndarray:
    """Draw the pixels of a small mammogram: a bright square in tissue."""
    pixels = np.full((SMALL, SMALL, 1), 0.3, np.float32)
    pixels[10:20, 10:20] = 0.8
    return pixels


def prepare_pipeline(count: int, folder: Path) -> Run:
    """Prepare reading batches of one from records, each patch once."""
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


def prepare_synthesis(count: int, folder: Path) -> Run:
    """Prepare inserting masses into phantoms by Poisson editing, without a network."""
    from tfmammo.config import DataConfig
    from tfmammo.synthesis.config import SynthesisConfig
    from tfmammo.synthesis.mammograms import synthesize

    return lambda: synthesize(
        SynthesisConfig(
            name="scaling",
            renderer="poisson",
            format="png",
            count=count,
            data=DataConfig(phantoms=8),
        ),
        folder,
    )


def prepare_ssim(count: int, folder: Path) -> Run:
    """Prepare L1, PSNR and SSIM of pairs of 64 px."""
    from tfmammo.metrics.synthesis import per_image

    random = np.random.default_rng(0)
    shape = (count, 64, 64, 1)
    real = random.random(shape, np.float32)
    synthetic = random.random(shape, np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[:, 20:40, 20:40] = 1
    return lambda: per_image(real, synthetic, mask)


def prepare_segmentation(count: int, folder: Path) -> Run:
    """Prepare Dice and its like of masks of 64 px, with a patient bootstrap of Dice."""
    from tfmammo.metrics.segmentation import bootstrap_interval, per_image

    random = np.random.default_rng(0)
    shape = (count, 64, 64, 1)
    truth = random.random(shape) > 0.5
    output = random.random(shape, np.float32)
    return lambda: bootstrap_interval(per_image(truth, output)["dice"], np.arange(count) // 2)


def prepare_froc(count: int, folder: Path) -> Run:
    """Prepare a FROC curve from boxes."""
    from tfmammo.metrics.detection import froc as curve
    from tfmammo.metrics.detection import match

    images = make_detections(count)
    return lambda: curve([match(*image) for image in images])


def prepare_jafroc(count: int, folder: Path) -> Run:
    """Prepare the JAFROC test of two detectors."""
    from tfmammo.metrics.detection import match
    from tfmammo.metrics.jafroc import jafroc_test

    random = np.random.default_rng(1)
    images = make_detections(count)
    ours = [match(*image) for image in images]
    others = [match(boxes, random.random(len(scores)), truth) for boxes, scores, truth in images]
    return lambda: jafroc_test(
        ours, others, [str(number // 2) for number in range(count)], "jafroc1"
    )


def make_detections(count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Make boxes, scores and a lesion for each image; every second box lies near the lesion."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        corners = random.uniform(0, 3000, (DETECTIONS + 1, 2))
        boxes = np.concatenate([corners, corners + random.uniform(50, 500, corners.shape)], axis=1)
        boxes[:-1:2] = boxes[-1] + random.normal(0, 20, (len(boxes[:-1:2]), 4))
        images.append((boxes[:-1], random.random(DETECTIONS), boxes[-1:]))
    return images


def prepare_fid(count: int, folder: Path) -> Run:
    """Prepare FID from existing features."""
    from tfmammo.metrics.perceptual import fid as distance

    return lambda: distance(*draw_features(count))


def prepare_kid(count: int, folder: Path) -> Run:
    """Prepare KID from existing features, with its 100 subsets."""
    from tfmammo.metrics.perceptual import kid as distance

    return lambda: distance(*draw_features(count))


def draw_features(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the features of both sets."""
    first, second = np.random.default_rng(0).normal(size=(2, count, FEATURES)).astype(np.float32)
    return first, second


IMAGES: dict[str, Callable[[int, Path], Run]] = {
    "index": prepare_index,
    "split": prepare_split,
    "plan": prepare_plan,
    "build": prepare_build,
    "small_build": prepare_small_build,
    "pipeline": prepare_pipeline,
    "synthesis": prepare_synthesis,
    "ssim": prepare_ssim,
    "segmentation": prepare_segmentation,
    "froc": prepare_froc,
    "jafroc": prepare_jafroc,
    "fid": prepare_fid,
    "kid": prepare_kid,
}

if __name__ == "__main__":
    main()
