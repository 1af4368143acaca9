"""Run the benchmarks of speed in turn on an idle machine, and join their lines.

python benchmarks/all.py OUTPUT.json [--only step inference ...] [--runs 3]

Each benchmark runs as often as --runs says, one after the other, never two at once; a run is the
whole list. How each side of a training step is fastest is found in the first run and kept in the
others, which do not compare the losses again either: that is most of the time. In bfloat16 the
sweep tries the allocators that were the fastest in float32. OUTPUT.json holds the machine, every
line of every run, and for each ratio (and the seconds of a start) its median and range over the
runs. A table in Markdown goes to the standard output. What OUTPUT.json holds already is not
measured again, so that a stopped run goes on. A machine with other work on more than 0.3 of its
cores' time is refused: that makes every ratio with PyTorch too good. Time: hours.

The training steps come first, of every model that has a peer: step.py names them.

Left out: scaling.py and inpainting.py, which have no ratio; guard.py, counts.py and memory.py,
which the tests run; kills.py and mutants.py, which measure no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tfmammo.filesystem import write_atomically

MOST_LOAD = 0.3  # of the cores' time
WAIT = 60  # s
# Besides the ratios: parts of a whole, multiples, and seconds that users wait.
SUMMED_UP = ("loss", "overhead", "share", "waited", "over_step", "help_s", "training_s")
# Flags of /proc/cpuinfo: what multiplies matrices.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PACKAGES = ("tensorflow", "keras", "torch", "onnxruntime", "numpy")
# name: script and arguments
BENCHMARKS: Mapping[str, tuple[str, ...]] = {
    **{
        f"step {model} {precision}": (
            "step",
            *("--peer", "torch-best", "--model", model, "--precision", precision, *size),
        )
        for model, size in {
            "can": (),
            "infilling": (),
            "cgan": (),
            "contextual": ("--size", "128", "--batch", "3"),
            "mask_gan": (),
            "blending": (),
            "flow": (),
            "classifier": (),
            "unet": (),
            "segnet": (),
            "fcn8s": (),
            "light_head": (),
        }.items()
        for precision in ("float32", "bfloat16")
    },
    "step contextual 256 px": (
        "step",
        *("--peer", "torch-best", "--model", "contextual", "--size", "256", "--batch", "3"),
    ),
    **{
        f"inference {model}": ("inference", "--model", model)
        for model in ("can", "infilling", "cgan")
    },
    "input": ("input", "--only", "dicom", "pipeline", "index"),
    "input build": ("input", "--only", "build"),
    "synthesis": ("synthesis",),
    "synthesis of 1,200": ("synthesis", "--only", "processes", "--mammograms", "1200"),
    "blending": ("blending",),
    "contextual": ("contextual", "--model", '{"discriminator_factor": 2}'),
    "froc": ("froc",),
    **{
        f"workers {model}": ("workers", "--model", model, *batch)
        for model, batch in {"can": ("--batch", "4"), "infilling": (), "cgan": ()}.items()
    },
    "serving": ("serving",),
    "startup": ("startup",),
}


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="how names begin")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    names = [name for name in BENCHMARKS if name.startswith(tuple(options.only) or "")]
    if not names:
        parser.error(f"--only: none of {', '.join(BENCHMARKS)} begins so")
    measured = read(options.output)
    for run in range(options.runs):
        for name in names:
            runs = measured["runs"].setdefault(name, [])
            if len(runs) <= run:
                wait_until_idle()
                runs.append(measure(keep_choice(name, measured["runs"])))
                write(options.output, measured)
    measured["summary"] = {name: summarize(runs) for name, runs in measured["runs"].items()}
    write(options.output, measured)
    print("\n".join(tabulate(measured["summary"])))


def read(path: Path) -> dict[str, Any]:
    """Read an earlier file of this machine, or begin one.

    Raises:
        SystemExit: The file is of another machine or of other versions.
    """
    machine = describe_machine()
    if not path.exists():
        return {"machine": machine, "runs": {}}
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if measured["machine"] != machine:
        raise SystemExit(f"{path}: was measured with {measured['machine']}; take another file")
    return measured


def write(path: Path, measured: dict[str, Any]) -> None:
    """Write the file whole or not at all: a stop must not cost hours of runs."""
    write_atomically(path, json.dumps(measured, indent=1) + "\n")


def describe_machine() -> dict[str, Any]:
    """Describe processor, cores, memory and versions."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        **describe_processor(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9),
        "python": platform.python_version(),
        **{name: find_version(name) for name in PACKAGES},
    }


def describe_processor(text: str) -> dict[str, Any]:
    """Name the first processor and its instructions.

    A virtual machine may call processors of several generations by one name. The instructions tell
    them apart.

    Args:
        text: Content of /proc/cpuinfo.
    """
    first, _, _ = text.partition("\n\n")
    lines = [line.partition(":") for line in first.splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.processor()),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
    }


def find_version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def wait_until_idle() -> None:
    """Wait until other work takes at most MOST_LOAD of the cores' time.

    The system's load average would take a minute to forget the benchmark before.

    Raises:
        SystemExit: It takes more for WAIT seconds.
    """
    until = time.monotonic() + WAIT
    while (load := measure_load()) > MOST_LOAD:
        if time.monotonic() > until:
            raise SystemExit(
                f"{load:.0%} of the cores' time is taken, above {MOST_LOAD:.0%} for {WAIT} s: "
                "other work runs here"
            )


def measure_load(seconds: float = 3.0) -> float:
    """Measure the part of the cores' time that is taken, waiting for a disk included."""
    before = read_times()
    time.sleep(seconds)
    busy, idle = (after - first for after, first in zip(read_times(), before, strict=True))
    return busy / (busy + idle)


def read_times() -> tuple[int, int]:
    """Read the time that all cores were busy and idle, in ticks, from Linux's /proc/stat."""
    times = [int(value) for value in Path("/proc/stat").read_text("ascii").split(maxsplit=9)[1:9]]
    return sum(times) - times[3], times[3]


def keep_choice(
    name: str, runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
) -> tuple[str, ...]:
    """Return a benchmark's arguments, with what earlier sweeps of its training step chose."""
    arguments = BENCHMARKS[name]
    if chosen := find_choice(runs.get(name, ())):
        return (*arguments, "--chosen", *chosen)
    if chosen := find_choice(runs.get(name.replace("bfloat16", "float32"), ())):
        return (*arguments, "--allocators", *sorted({side.split()[1] for side in chosen}))
    return arguments


def find_choice(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Sequence[str]:
    """Return what the first run's sweep chose, empty where there was none."""
    return runs[0][0].get("chosen", ()) if runs and runs[0] else ()


def measure(arguments: tuple[str, ...]) -> list[dict[str, Any]]:
    """Run one benchmark, and return its JSON lines.

    Raises:
        SystemExit: It failed.
    """
    script, *rest = arguments
    path = Path(__file__).with_name(f"{script}.py")
    print(f"{time.strftime('%H:%M:%S')} {script} {' '.join(rest)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, str(path), *rest], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: failed with code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def summarize(runs: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Compute median, lowest and highest of each ratio over the runs.

    Returns:
        Where the number stands ("0.ratio", "0.ratio.onnx.8") -> [median, lowest, highest].
    """
    found = [dict(walk(lines, "")) for lines in runs]
    return {
        key: [statistics.median(values), min(values), max(values)]
        for key in (found[0] if found else ())
        for values in [[numbers[key] for numbers in found if key in numbers]]
    }


def walk(value: Any, place: str, is_ratio: bool = False) -> Iterator[tuple[str, float]]:
    """List the ratios of JSON lines with their places; "sweep" and "rounds" are left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("sweep", "rounds"):
                named = re.search(r"(^|_)ratios?$", key) or key in SUMMED_UP
                is_inside = is_ratio or bool(named)
                yield from walk(inner, f"{place}.{key}" if place else key, is_inside)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from walk(inner, f"{place}.{number}" if place else str(number), is_ratio)
    elif is_ratio and isinstance(value, int | float) and not isinstance(value, bool):
        yield place, float(value)


def tabulate(summary: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    """Make the lines of a table in Markdown."""
    lines = ["| benchmark | number | median | lowest to highest |", "|---|---|---:|---:|"]
    for name, numbers in summary.items():
        for place, (median, low, high) in numbers.items():
            lines.append(f"| {name} | {place} | {median:.3g} | {low:.3g} to {high:.3g} |")
    return lines


if __name__ == "__main__":
    main()
