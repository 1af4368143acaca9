"""Whether a training that is killed (SIGKILL) at random moments ends as one that never was.

python benchmarks/kills.py [--kills 30] [--exporting 5] [--seed 1] [--steps 1500]

A deterministic tiny CAN is trained once without a stop. Then it is trained again, and killed again
and again: while it starts, between two checkpoints, while it exports and while it registers, each
at a random moment; when it has ended by itself, a new one begins, until there were as many kills as
wanted, and as many of them after the last step. Each must end with weights bitwise equal to the
first one's, with the same exports, one registered version of each, one finished run, and nothing
left over.

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
    """One training's folder beneath a working folder, and its process, started as often
    as needed.
    """

    place: Path
    name: str
    steps: int

    @property
    def output(self) -> Path:
        """Its folder."""
        return self.place / self.name

    @property
    def log(self) -> Path:
        """What it said, all its starts together."""
        return self.place / f"{self.name}.log"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, or let it go on."""
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
                [*command, "--set", *OVERRIDES, f"training.steps={self.steps}"],
                cwd=self.place,
                stdout=log,
                stderr=log,
            )

    def saved_step(self) -> int:
        """The step of its newest checkpoint."""
        return max(
            (
                int(path.stem.rpartition("-")[2])
                for path in self.output.glob("checkpoints/ckpt-*.index")
            ),
            default=0,
        )

    def is_exporting(self, said_before: int) -> bool:
        """Whether it is past its last step, in this start: it says that it exports, or that it has.

        Args:
            said_before: Bytes that its log had when it was started.
        """
        said = self.log.read_bytes()[said_before:]
        return b"exporting step" in said or b"already exported" in said

    def weights(self) -> dict[str, np.ndarray]:
        """Every variable of the newest checkpoint and of the exports."""
        found = {}
        folders = [self.output / f"checkpoints/ckpt-{self.saved_step()}"]
        folders += [
            path.parent / "variables"
            for path in sorted(self.output.glob("*/*/variables/variables.index"))
        ]
        for prefix in folders:
            reader = tf.train.load_checkpoint(str(prefix))
            names = [name for name in reader.get_variable_to_shape_map() if name.endswith(VALUE)]
            found |= {
                f"{prefix.relative_to(self.output)}: {name}": reader.get_tensor(name)
                for name in names
            }
        return found


def measure_end(training: Training) -> float:
    """Run a training to its end.

    Returns:
        Seconds from its first export's beginning to its end.
    """
    process = training.start()
    began = None
    while process.poll() is None:
        if began is None and training.is_exporting(0):
            began = time.monotonic()
        time.sleep(0.02)
    if process.returncode or began is None:
        raise KillsError(
            f"the unbroken training ended with exit code {process.returncode}: "
            f"{training.log.read_text()[-2000:]}"
        )
    return time.monotonic() - began


def kill_once(training: Training, end: float, chance: random.Random, late: bool) -> str | None:
    """Start a training and kill it at a random moment.

    Args:
        end: Seconds that its end takes.
        late: Not before its last step.

    Returns:
        When: "starting", "training", "ending"; None: it ended by itself before.
    """
    before = training.saved_step()
    said = training.log.stat().st_size if training.log.exists() else 0
    process = training.start()
    deadline = time.monotonic() + DEADLINE
    if not late and chance.random() < 0.15:
        _wait(process, chance.uniform(0.2, 15.0))
    else:
        while (
            process.poll() is None
            and not _is_due(training, before, said, late)
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        ending = training.saved_step() == training.steps
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
    if training.saved_step() < before:
        raise KillsError(
            f"work was lost: step {before} was saved, and step {training.saved_step()} is there"
        )
    if training.saved_step() == training.steps and training.is_exporting(said):
        return "ending"
    return "training" if training.saved_step() > before else "starting"


def _is_due(training: Training, before: int, said: int, late: bool) -> bool:
    """Whether a start has come as far as it must before it may be killed: a further checkpoint, or
    past its last step.
    """
    step = training.saved_step()
    return training.is_exporting(said) if late or step == training.steps else step > before


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def compare(whole: Training, parts: Training) -> None:
    """Make sure that a killed training ended as the unbroken one.

    Raises:
        KillsError: It did not.
    """
    expected = whole.weights()
    found = parts.weights()
    if expected.keys() != found.keys():
        raise KillsError(f"other variables: {sorted(expected.keys() ^ found.keys())[:5]}")
    for name, value in expected.items():
        if not np.array_equal(value, found[name]):
            raise KillsError(f"{name}: the weights differ")
    left = [str(path) for path in parts.output.rglob(".*") if path.name != ".lock"] + [
        str(path) for path in parts.output.rglob("*_temp")
    ]
    if left:
        raise KillsError(f"left over: {', '.join(left)}")
    counts = []
    with store.registry(f"sqlite:///{parts.place / 'mlflow.db'}") as client:
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
    """The whole comparison in a folder.

    Returns:
        What is printed.

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
                f"kill {len(moments)}: {moment}, step {parts.saved_step()}",
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
    """Print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument(
        "--exporting", type=int, default=5, help="of them after the last step, at least (5)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1_500)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(
            json.dumps(
                measure(Path(place), chosen.kills, chosen.exporting, chosen.seed, chosen.steps)
            )
        )


if __name__ == "__main__":
    main()
