"""What the gradient penalty and the attention of the contextual GAN cost; one JSON line.

python benchmarks/contextual.py [--size 128] [--batch 12] [--repeats 5] [--model
'{"discriminator_factor": 2}']

A whole training step (discriminator, generator, running average) with neither, with one and with
both, the four taken in turns in one process; medians. time_ratio: seconds over those of the step
with neither; processor seconds hardly depend on what else the machine does. memory_ratio: likewise
of the peak memory that steps add to a process of their own, for each.

Patches are random numbers, of each class equally many. Time: three minutes on two idle cores at a
discriminator_factor of 2; the full discriminator needs 15 GB, because four of them are held at
once.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tfmammo import _tensorflow  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import numpy as np
import tensorflow as tf

from tfmammo.config import TrainingConfig
from tfmammo.models.contextual import PATHOLOGIES, Contextual, ContextualConfig
from tfmammo.training import script

VARIANTS = {
    "neither": {"lambda_penalty": 0, "attention": None},
    "penalty": {"attention": None},
    "attention": {"lambda_penalty": 0},
    "both": {},
}
MEGABYTE = 2**10 if sys.platform == "linux" else 2**20  # in what the system counts memory


def step(name: str, chosen: argparse.Namespace) -> Callable[[], Any]:
    """A training step of one variant, traced and run once."""
    values = {
        "target": "calcification",
        "start": chosen.size,
        **json.loads(chosen.model),
        **VARIANTS[name],
    }
    room = Contextual(ContextualConfig(**values), chosen.size)
    shape = (chosen.batch, chosen.size, chosen.size, 1)
    labels = np.arange(chosen.batch) % len(PATHOLOGIES)
    batch = {
        "image": tf.random.stateless_uniform(shape, (0, 0)),
        "label": tf.constant(labels, tf.int32),
    }
    run = tf.function(room.train_step)

    def once() -> dict[str, float]:
        return {name: float(value) for name, value in run(batch).items()}

    once()
    return once


def taken(chosen: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median seconds and processor seconds of each variant's step, in turns."""
    steps = {name: step(name, chosen) for name in VARIANTS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(chosen.repeats):
        for name, once in steps.items():
            wall = time.perf_counter()
            processor = time.process_time()
            once()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {
        name: (statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows))
        for name, rows in times.items()
    }


def peak(name: str, chosen: argparse.Namespace) -> float:
    """Megabytes at the peak of two steps in a process of its own, less those of TensorFlow without
    any network.
    """
    command = [
        sys.executable,
        __file__,
        "--size",
        str(chosen.size),
        "--batch",
        str(chosen.batch),
        "--model",
        chosen.model,
    ]
    done = subprocess.run(
        [*command, "--precision", chosen.precision, "--memory-of", name],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Measure, print; or, in a child process, measure memory alone."""
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
    chosen = parser.parse_args()
    script.prepare(TrainingConfig(precision=chosen.precision))
    if chosen.memory_of:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step(chosen.memory_of, chosen)()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MEGABYTE)
        return
    memory = {name: peak(name, chosen) for name in VARIANTS}
    print(json.dumps(report(chosen, taken(chosen), memory)), flush=True)


def report(
    chosen: argparse.Namespace, times: dict[str, tuple[float, float]], memory: dict[str, float]
) -> dict[str, Any]:
    """The JSON line."""
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
    about = {
        "size": chosen.size,
        "batch": chosen.batch,
        "precision": chosen.precision,
        "model": json.loads(chosen.model),
    }
    return {"benchmark": "contextual", **about, "steps": rows}


if __name__ == "__main__":
    main()
