"""Measure how long a user waits for a first sign; one JSON line.

python benchmarks/startup.py [--repeats 3] [--configs quickstart can] [--set KEY=VALUE ...]

- help: seconds of `tfmammo --help` and of `tfmammo train can --help`, as users type them (wanted:
  at most 0.5 for the first).
- training: for each config of CAN, seconds since the process's start, on a folder of patches:
  `ready` (imports, data, networks), `grid` (the picture of step 0), `first_step` and `end`
  (validation, checkpoint, export). Wanted: a first step 10 s after the data is ready for
  quickstart, a picture within 30 s for can. The data is ready before `ready`.
- again: seconds of the same command once more, when nothing is left to train or to export.

Each number is the median of --repeats; each repeat is a new process and a new folder. Time: five
minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

PATIENTS = 12
SIDE = 256  # px
COMMAND = (sys.executable, "-m", "tfmammo")
SIGNS = {"ready": " from the start to step ", "first_step": "step 1 of 1"}  # lines of a training
ROOT = str(Path(__file__).parents[1])


def main() -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=["quickstart", "can"], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print("help", file=sys.stderr, flush=True)
    found = {
        "benchmark": "startup",
        "help_s": {
            " ".join(("tfmammo", *words)): round(
                statistics.median(measure_command(words) for _ in range(options.repeats)), 3
            )
            for words in (("--help",), ("train", "can", "--help"))
        },
        "training_s": {},
        "wanted": "tfmammo --help 0.5; quickstart's first step 10 after its data; can's grid 30",
    }
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        write_patches(data)
        for config in options.configs:
            repeats = []
            for repeat in range(options.repeats):
                print(config, file=sys.stderr, flush=True)
                output = Path(name) / f"{config}-{repeat}"
                repeats.append(measure_training(config, data, output, options.set))
            found["training_s"][config] = {
                key: round(statistics.median(repeat[key] for repeat in repeats), 2)
                for key in repeats[0]
            }
    print(json.dumps(found), flush=True)


def write_patches(folder: Path) -> None:
    """Write a patch with a mask for each of some patients."""
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = ["file,patient"]
    for number in range(PATIENTS):
        file = f"{number}.png"
        mask = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (128, 128), 60 + number, 255, -1)
        image = random.integers(0, 128, mask.shape, np.uint8) + mask // 2
        cv2.imwrite(str(folder / "images" / file), image)
        cv2.imwrite(str(folder / "masks" / file), mask)
        lines.append(f"{file},{number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure_command(words: Sequence[str]) -> float:
    """Measure the seconds of a command that prints something."""
    start = time.perf_counter()
    subprocess.run(
        (*COMMAND, *words), stdout=subprocess.DEVNULL, check=True, env=make_environment()
    )
    return time.perf_counter() - start


def measure_training(
    config: str, data: Path, output: Path, overrides: Sequence[str]
) -> dict[str, float]:
    """Measure a training of one step, and the same command again.

    Raises:
        SystemExit: The training failed, or said nothing of its start or its step.
    """
    command = (
        *(*COMMAND, "train", "can", "--config", config, "--output", str(output)),
        *("--set", "data.name=folder", f"data.root={data}", "data.frame=full", "training.steps=1"),
        *(f"tracking.uri=sqlite:///{output.with_suffix('.db')}", *overrides),
    )
    start, wall = time.perf_counter(), time.time()
    seconds: dict[str, float] = {}
    said = []
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=make_environment(),
    )
    assert process.stderr
    for line in process.stderr:
        said.append(line)
        for name, words in SIGNS.items():
            if words in line:
                seconds.setdefault(name, time.perf_counter() - start)
    if process.wait() or len(seconds) != 2:
        raise SystemExit(f"{' '.join(command)}: {''.join(said)}")
    seconds["end"] = time.perf_counter() - start
    picture = output / "samples" / "step_00000000.png"
    seconds["grid"] = picture.stat().st_mtime - wall
    start = time.perf_counter()
    subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        env=make_environment(),
    )
    seconds["again"] = time.perf_counter() - start
    return {key: seconds[key] for key in ("ready", "grid", "first_step", "end", "again")}


def make_environment() -> dict[str, str]:
    """Make the environment in which the checkout's package is found."""
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


if __name__ == "__main__":
    main()
