"""Check that the training steps are still as much faster than plain Keras as ratios.json says.

python benchmarks/guard.py [--write]

It runs benchmarks/step.py against the peer `naive` for small networks on one thread, so that the
ratio depends little on other work of the machine, and prints one JSON line for each. It ends with
code 1 if a ratio is more than 20 % below that of ratios.json in three measurements. --write stores
the measured ratios instead. Time: two minutes, for CI.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

REFERENCE = Path(__file__).with_name("ratios.json")
MAX_DROP = 0.2
ATTEMPTS = 3
SMALL = [
    "--size",
    "64",
    "--batch",
    "1",
    "--config",
    '{"filters": [8, 16, 256, 512, 512, 512], "discriminator_filters": 8}',
]
# As wide as in the paper at the bottleneck, where the time of a step depends on this package.
STEPS = {"can": SMALL, "infilling": SMALL}


def main() -> None:
    """Measure the ratios, and compare or store them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        ratios = {name: measure_ratio(name) for name in STEPS}
        REFERENCE.write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")
        return
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    slower = {name: ratio for name, ratio in reference.items() if not is_close_enough(name, ratio)}
    if slower:
        sys.exit(
            f"more than {MAX_DROP:.0%} below {REFERENCE.name} in {ATTEMPTS} attempts: {slower}"
        )


def is_close_enough(name: str, ratio: float) -> bool:
    """Return whether one of three measurements comes near enough to the reference."""
    return any(measure_ratio(name) >= (1 - MAX_DROP) * ratio for _ in range(ATTEMPTS))


def measure_ratio(name: str) -> float:
    """Run the benchmark once, and return its ratio."""
    environment = {
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
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    print(line, end="", flush=True)
    return float(json.loads(line)["ratio"])


if __name__ == "__main__":
    main()
