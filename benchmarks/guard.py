"""Whether the training steps are still as far ahead of plain Keras's as the file beside
this one says: two minutes, for CI.

python benchmarks/guard.py [--write]

Runs benchmarks/step.py against the peer `naive` for small networks on one thread, so that the ratio
depends little on what else the machine does, prints one JSON line each, and ends with code 1 when a
ratio is more than 20 % below the one kept. A ratio that is gets two more chances. --write: keep
what was measured instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

KEPT = Path(__file__).with_name("ratios.json")
FALL = 0.2
CHANCES = 3
SMALL = [
    "--size",
    "64",
    "--batch",
    "1",
    "--config",
    '{"filters": [8, 16, 256, 512, 512, 512], "discriminator_filters": 8}',
]
# as wide as the paper's within, where a step's time is ours to win
STEPS = {"can": SMALL, "infilling": SMALL}


def main() -> None:
    """Measure, and compare or keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    if write:
        KEPT.write_text(
            json.dumps({name: measured(name) for name in STEPS}, indent=2) + "\n", encoding="utf-8"
        )
        return
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    fallen = {name: ratio for name, ratio in kept.items() if not holds(name, ratio)}
    if fallen:
        sys.exit(f"more than {FALL:.0%} below what {KEPT.name} keeps, {CHANCES} times: {fallen}")


def holds(name: str, ratio: float) -> bool:
    """Whether one of three measurements comes near enough to what was kept."""
    return any(measured(name) >= (1 - FALL) * ratio for _ in range(CHANCES))


def measured(name: str) -> float:
    """The ratio of one run."""
    alone = {
        **os.environ,
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        str(Path(__file__).with_name("step.py")),
        "--model",
        name,
        "--peer",
        "naive",
        *STEPS[name],
    ]
    line = subprocess.run(
        [*command, "--rounds", "7", "--steps", "4"],
        env=alone,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    print(line, end="", flush=True)
    return float(json.loads(line)["ratio"])


if __name__ == "__main__":
    main()
