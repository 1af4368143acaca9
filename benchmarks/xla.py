"""Time training steps compiled by XLA beside those that are not, and compare their losses.

python benchmarks/xla.py [can unet ...] [--size 64] [--rounds 5] [--seconds 1]

The small models of benchmarks/counts.py, float32, from equal weights on equal patches. One JSON
line a model: difference, the largest relative one of the first step's losses; compile_seconds, of
the first compiled step; seconds and compiled_seconds, medians of a step; ratio, the median of the
rounds' seconds / compiled_seconds. The two steps take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

from models import build_model  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import keras
import numpy as np
import tensorflow as tf
from counts import BATCH, BATCHES, MODELS

Step = Callable[[], dict[str, tf.Tensor]]


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(MODELS))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    for name in options.models:
        found = compare(name, options.size, options.rounds, options.seconds)
        print(json.dumps({"model": name} | found), flush=True)


def compare(name: str, size: int, rounds: int, seconds: float) -> dict[str, float]:
    """Take the first step of a model both ways, then time both in turns."""
    plain, compiled = (build_step(name, size, jit_compile) for jit_compile in (False, True))
    losses = plain()
    start = time.perf_counter()
    found = compiled()
    compile_seconds = time.perf_counter() - start
    difference = max(
        abs(float(found[key] - value)) / max(abs(float(value)), 1e-6)
        for key, value in losses.items()
    )
    times = [(time_step(plain, seconds), time_step(compiled, seconds)) for _ in range(rounds)]
    return {
        "difference": float(f"{difference:.1e}"),
        "compile_seconds": round(compile_seconds, 1),
        "seconds": round(statistics.median(first for first, _ in times), 4),
        "compiled_seconds": round(statistics.median(second for _, second in times), 4),
        "ratio": round(statistics.median(first / second for first, second in times), 2),
    }


def build_step(name: str, size: int, jit_compile: bool) -> Step:
    """Build a model and return its training step on a batch of its own."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = build_model(name, MODELS[name], size)
    batch = make_batch(name, size)
    step = tf.function(model.train_step, jit_compile=jit_compile)
    return lambda: step(batch)


def make_batch(name: str, size: int) -> dict[str, tf.Tensor]:
    """Make a batch of discs in noise, each of another label."""
    count = BATCHES.get(name, BATCH)
    random = np.random.default_rng(0)
    rows, cols = np.mgrid[:size, :size] - size / 2
    disc = np.hypot(rows, cols) < size / 4
    mask = np.broadcast_to(disc[None, ..., None], (count, size, size, 1))
    image = 0.3 * random.random(mask.shape) + 0.4 * mask
    return {
        "image": tf.constant(image, tf.float32),
        "mask": tf.constant(mask, tf.float32),
        "label": tf.range(count),
    }


def time_step(step: Step, seconds: float) -> float:
    """Time a step, as a mean over some seconds, s."""
    steps = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        next(iter(step().values())).numpy()
        steps += 1
    return elapsed / steps


if __name__ == "__main__":
    main()
