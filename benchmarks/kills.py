"""Check that a training killed (SIGKILL) at random moments ends as one that never was.

python benchmarks/kills.py [--kills 30] [--exporting 5] [--seed 1] [--steps 1500]

A deterministic tiny CAN is trained once without a stop. Then it is trained again and killed at
random moments: while it starts, between two checkpoints, while it exports and while it registers.
When it ends by itself, a new one begins, until there were --kills kills, --exporting of them after
the last step. Each training must end with weights bitwise equal to the first one's, with the same
exports, one registered version of each, one finished run, and nothing left over.

One JSON line: kills, after the last step, trainings, seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmammo.tracking import runs, store

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = (
    "data.size=32",
    "data.phantoms=12",
    "training.deterministic=true",
    "training.checkpoint_every=50",
    "training.steps_per_loop=5",
    "training.validate_every=500",
    "training.grid_every=500",
    "tracking.system_metrics=false",
    "model.filters=[4,8,8]",
    "model.discriminator_filters=4",
    "training.precision=float32",
)
DEADLINE = 900.0  # seconds for one start to come to its next checkpoint or its end
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class KillsError(AssertionError):
    """A killed training did not end as the one that was not killed; the message says where."""


@dataclass
class Training:
    """One training's folder, and the process in it, which is started as often as needed."""

    place: Path
    name: str
    steps: int

    @property
    def output(self) -> Path:
        """The training's folder."""
        return self.place / self.name

    @property
    def store(self) -> str:
        """The address of the store, whatever store the environment names."""
        return f"sqlite:///{self.place / 'mlflow.db'}"

    @property
    def log(self) -> Path:
        """The output of all its processes."""
        return self.place / f"{self.name}.log"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the training, or resume it."""
        command = [
            sys.executable,
            str(ROOT / "train/can.py"),
            "--config",
            str(ROOT / "configs/can.yaml"),
            "--output",
            self.name,
        ]
        with self.log.open("a") as log:
            return subprocess.Popen(
                [
                    *command,
                    "--set",
                    *OVERRIDES,
                    f"training.steps={self.steps}",
                    f"tracking.uri={self.store}",
                ],
                cwd=self.place,
                stdout=log,
                stderr=log,
            )

    def find_saved_step(self) -> int:
        """Find the step of the newest checkpoint, 0 without one."""
        return max(
            (
                int(path.stem.rpartition("-")[2])
                for path in self.output.glob("checkpoints/ckpt-*.index")
            ),
            default=0,
        )

    def is_exporting(self, log_size: int) -> bool:
        """Tell whether the process is past the last step, by its log.

        Args:
            log_size: Bytes of the log when the process started.
        """
        text = self.log.read_bytes()[log_size:]
        return b"exporting step" in text or b"already exported" in text

    def read_weights(self) -> dict[str, np.ndarray]:
        """Read every variable of the newest checkpoint and of the exports."""
        weights = {}
        folders = [self.output / f"checkpoints/ckpt-{self.find_saved_step()}"]
        folders += [
            path.parent / "variables"
            for path in sorted(self.output.glob("*/*/variables/variables.index"))
        ]
        for prefix in folders:
            reader = tf.train.load_checkpoint(str(prefix))
            names = [name for name in reader.get_variable_to_shape_map() if name.endswith(VALUE)]
            weights |= {
                f"{prefix.relative_to(self.output)}: {name}": reader.get_tensor(name)
                for name in names
            }
        return weights


def measure_end(training: Training) -> float:
    """Run a training to its end.

    Returns:
        Seconds from the start of its first export to its end.
    """
    process = training.start()
    start = None
    while process.poll() is None:
        if start is None and training.is_exporting(0):
            start = time.monotonic()
        time.sleep(0.02)
    if process.returncode or start is None:
        raise KillsError(
            f"the unbroken training ended with exit code {process.returncode}: "
            f"{training.log.read_text()[-2000:]}"
        )
    return time.monotonic() - start


def kill_once(training: Training, end: float, chance: random.Random, late: bool) -> str | None:
    """Start a training and kill it at a random moment.

    Args:
        training: Its folder may hold checkpoints.
        end: Seconds that its end takes, as of `measure_end`.
        chance: Draws the moment.
        late: Kill it only after its last step.

    Returns:
        When it was killed: "starting", "training" or "ending"; None if it ended by itself before.
    """
    before = training.find_saved_step()
    log_size = training.log.stat().st_size if training.log.exists() else 0
    process = training.start()
    deadline = time.monotonic() + DEADLINE
    if not late and chance.random() < 0.15:
        _wait(process, chance.uniform(0.2, 15.0))
    else:
        while (
            process.poll() is None
            and not _is_due(training, before, log_size, late)
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        ending = training.find_saved_step() == training.steps
        _wait(process, chance.uniform(0, 0.8 * end if ending else 0.7))
    if process.poll() is not None:
        if process.returncode:
            raise KillsError(
                f"a resumed training ended with exit code {process.returncode}: "
                f"{training.log.read_text()[-2000:]}"
            )
        return None
    process.kill()
    process.wait()
    step = training.find_saved_step()
    if step < before:
        raise KillsError(f"work was lost: step {before} was saved, and step {step} is there")
    if step == training.steps and training.is_exporting(log_size):
        return "ending"
    return "training" if step > before else "starting"


def _is_due(training: Training, before: int, log_size: int, late: bool) -> bool:
    """Tell whether a process may be killed: it has saved a checkpoint, or is past its last step."""
    step = training.find_saved_step()
    return training.is_exporting(log_size) if late or step == training.steps else step > before


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def compare(whole: Training, parts: Training) -> None:
    """Check that a killed training ended as the unbroken one.

    Raises:
        KillsError: It did not.
    """
    expected = whole.read_weights()
    actual = parts.read_weights()
    if expected.keys() != actual.keys():
        raise KillsError(f"other variables: {sorted(expected.keys() ^ actual.keys())[:5]}")
    for name, value in expected.items():
        if not np.array_equal(value, actual[name]):
            raise KillsError(f"{name}: the weights differ")
    left = [str(path) for path in parts.output.rglob(".*") if path.name != ".lock"] + [
        str(path) for path in parts.output.rglob("*_temp")
    ]
    if left:
        raise KillsError(f"left over: {', '.join(left)}")
    counts = []
    with store.open_registry(parts.store) as client:
        for training in (whole, parts):
            run = client.get_run((training.output / runs.RUN_ID).read_text().strip())
            if run.info.status != "FINISHED":
                raise KillsError(f"{training.name}: its run is {run.info.status}")
            counts.append(len(client.search_model_versions(f"run_id = '{run.info.run_id}'")))
    if counts[0] != counts[1]:
        raise KillsError(
            f"{counts[1]} versions were registered, where the unbroken training made {counts[0]}"
        )


def measure(place: Path, kills: int, exporting: int, seed: int, steps: int) -> dict[str, float]:
    """Run the whole comparison in a folder.

    Returns:
        The numbers of the JSON line.

    Raises:
        KillsError: As `compare`.
    """
    start = time.monotonic()
    chance = random.Random(seed)
    whole = Training(place, "whole", steps)
    end = measure_end(whole)
    moments: list[str] = []
    trainings = 0
    while len(moments) < kills or moments.count("ending") < exporting:
        trainings += 1
        parts = Training(place, f"parts{trainings}", steps)
        while len(moments) < kills or moments.count("ending") < exporting:
            moment = kill_once(
                parts, end, chance, late=len(moments) >= kills - exporting + moments.count("ending")
            )
            if moment is None:
                break
            moments.append(moment)
            print(
                f"kill {len(moments)}: {moment}, step {parts.find_saved_step()}",
                file=sys.stderr,
                flush=True,
            )
        if parts.start().wait():
            raise KillsError(f"the last start did not end well: {parts.log.read_text()[-2000:]}")
        compare(whole, parts)
    counts = {moment: moments.count(moment) for moment in ("starting", "training", "ending")}
    return {
        "kills": len(moments),
        **counts,
        "trainings": trainings,
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    """Print the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument(
        "--exporting", type=int, default=5, help="of them after the last step, at least (5)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1_500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        numbers = measure(
            Path(place), options.kills, options.exporting, options.seed, options.steps
        )
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
