"""What the gradient penalty and the attention of the contextual GAN cost; one JSON line.

python benchmarks/contextual.py [--size 128] [--batch 12] [--repeats 5] [--model
'{"discriminator_factor": 2}']

A whole training step (discriminator, generator, running average) is measured with neither, with
one and with both, the four in turns in one process. All figures are medians. time_ratio: seconds
over those of the step with neither. Processor seconds hardly depend on what else the machine does.
memory_ratio: the same ratio of the peak memory that steps add to a process of their own.

Patches are random numbers, equally many of each class. Time: three minutes on two idle cores at a
discriminator_factor of 2. The full discriminator needs 15 GB, because four of them are in memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# the first to import TensorFlow, because it keeps that quiet
from tfmammo.nn import _tensorflow  # noqa: F401

# isort: split
import numpy as np
import tensorflow as tf
from workloads import peak_megabytes

from tfmammo.config import TrainingConfig
from tfmammo.models.contextual import PATHOLOGIES, Contextual, ContextualConfig
from tfmammo.training import script

VARIANTS = {
    "neither": {"lambda_penalty": 0, "attention": None},
    "penalty": {"attention": None},
    "attention": {"lambda_penalty": 0},
    "both": {},
}


def build_step(name: str, arguments: argparse.Namespace) -> Callable[[], Any]:
    """Build one variant's training step, traced and run once."""
    values = {
        "target": "calcification",
        "start": arguments.size,
        **json.loads(arguments.model),
        **VARIANTS[name],
    }
    model = Contextual(ContextualConfig(**values), arguments.size)
    shape = (arguments.batch, arguments.size, arguments.size, 1)
    labels = np.arange(arguments.batch) % len(PATHOLOGIES)
    batch = {
        "image": tf.random.stateless_uniform(shape, (0, 0)),
        "label": tf.constant(labels, tf.int32),
    }
    train_step = tf.function(model.train_step)

    def run_once() -> dict[str, float]:
        return {name: float(value) for name, value in train_step(batch).items()}

    run_once()
    return run_once


def measure_times(arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Measure median seconds and processor seconds of each variant's step, in turns."""
    steps = {name: build_step(name, arguments) for name in VARIANTS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.repeats):
        for name, run in steps.items():
            wall = time.perf_counter()
            processor = time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {
        name: (statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows))
        for name, rows in times.items()
    }


def measure_peak(name: str, arguments: argparse.Namespace) -> float:
    """Measure the peak memory of two steps in a process of their own, in megabytes.

    The memory of TensorFlow without any network is subtracted.
    """
    command = [
        sys.executable,
        __file__,
        "--size",
        str(arguments.size),
        "--batch",
        str(arguments.batch),
        "--model",
        arguments.model,
    ]
    completed = subprocess.run(
        [*command, "--precision", arguments.precision, "--memory-of", name],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(completed.stdout)


def main() -> None:
    """Measure and print; in a child process measure memory alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128, help="of a patch, px")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    parser.add_argument(
        "--model",
        default="{}",
        metavar="JSON",
        help="the model's config where it is not the paper's",
    )
    parser.add_argument("--memory-of", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    script.configure_tensorflow(TrainingConfig(precision=arguments.precision))
    if arguments.memory_of:
        before = peak_megabytes()
        build_step(arguments.memory_of, arguments)()
        print(peak_megabytes() - before)
        return
    memory = {name: measure_peak(name, arguments) for name in VARIANTS}
    print(json.dumps(report(arguments, measure_times(arguments), memory)), flush=True)


def report(
    arguments: argparse.Namespace, times: dict[str, tuple[float, float]], memory: dict[str, float]
) -> dict[str, Any]:
    """Make the JSON line."""
    base = times["neither"]
    least = memory["neither"]
    rows = {
        name: {
            "seconds": round(times[name][0], 4),
            "processor_seconds": round(times[name][1], 4),
            "megabytes": round(memory[name]),
            "time_ratio": round(times[name][0] / base[0], 3),
            "processor_ratio": round(times[name][1] / base[1], 3),
            "memory_ratio": round(memory[name] / least, 3),
        }
        for name in VARIANTS
    }
    settings = {
        "size": arguments.size,
        "batch": arguments.batch,
        "precision": arguments.precision,
        "model": json.loads(arguments.model),
    }
    return {"benchmark": "contextual", **settings, "steps": rows}


if __name__ == "__main__":
    main()
