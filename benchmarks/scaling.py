"""How cost grows: a training step's time and memory over resolution, batch and width,
everything else's over the number of images.

python benchmarks/scaling.py [--only step images] [--model can infilling contextual cgan] [--parts
froc ...] [--plot docs/scaling.png]

One JSON line a curve: its points, medians of the rounds (of a step, of the quickest in each);
exponent, the slope b of the line a + b log n fitted to log cost by least squares; last, that of its
last doubling; work, the exponent of the work itself; worse, whether exponent > work + 0.1. A table
of them in markdown goes to stderr. Constant costs make an exponent smaller than the work's while
sizes are small. Each point is measured in processes of its own, one a round, and rounds go through
all points, so that whatever else the machine does meets all of them alike; processor_seconds, of
all threads, hardly depend on it. megabytes: what is added to the process's peak.

The work of a step in time: the FLOPs counted in its graph at the same points and the weights, each
of which it reads and updates, both fitted alike; the larger. The FLOPs are those of convolutions,
so about 2 in resolution (pixels), 1 in batch, at most 2 in width. Self-attention would add 4 in
resolution, but its map stays at 32 px: the levels beyond are convolutions. Memory: 2, 1 and 2. Over
images: 1.

U-Nets are halved as often at every size as the smallest allows; the contextual GAN's networks end
at 4 x 4 px, as they must, so they grow a level a doubling. It needs two patches at least, malignant
and normal. What is done with images is in benchmarks/workloads.py. Time: four models and all parts
at --rounds 3 an hour on two idle cores, most of it for starting processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
from workloads import IMAGES, Point

from tfmammo.metrics.plotting import INK, quiet
from tfmammo.metrics.summary import Table

MODELS = ("can", "infilling", "contextual", "cgan")
LEAST = {"contextual": 2}  # patches in a batch
# How many images are one unit of --images, so that a unit of each part takes about as long.
UNITS = {
    "build": 16,
    "pipeline": 500,
    "synthesis": 8,
    "ssim": 250,
    "segmentation": 1000,
    "froc": 2000,
    "jafroc": 500,
    "fid": 5000,
    "kid": 500,
}
QUANTITIES = ("seconds", "processor_seconds", "megabytes")
WORK = {"resolution": 2.0, "batch": 1.0, "width": 2.0, "images": 1.0}
SPARE = 0.1  # by which an exponent may be above the work's
FLOOR = 5.0  # MB, below which memory is not told from the process's own noise


@dataclass(frozen=True)
class Curve:
    """One part along one axis.

    Attributes:
        points: As measured.
    """

    part: str
    axis: str
    points: tuple[Point, ...]

    @property
    def key(self) -> str:
        """Of the point, by what it varies."""
        return "size" if self.axis == "resolution" else self.axis

    @property
    def sizes(self) -> list[float]:
        """Along the axis."""
        return [getattr(point, self.key) for point in self.points]


def main() -> None:
    """Measure in rounds, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=("step", "images"), default=("step", "images"))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--axes",
        nargs="+",
        choices=("resolution", "batch", "width"),
        default=("resolution", "batch", "width"),
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(IMAGES), default=tuple(IMAGES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512], help="px")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--widths", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="factors of all filters"
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        help="times what is a unit of each part",
    )
    parser.add_argument("--size", type=int, default=256, help="where it is not varied")
    parser.add_argument("--batch", type=int, default=1, help="likewise")
    parser.add_argument("--width", type=float, default=0.25, help="likewise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of which the quickest counts")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument(
        "--read",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="lines of earlier runs, for table and plot; measures nothing",
    )
    chosen = parser.parse_args()
    if chosen.read:
        rows = [
            json.loads(line)
            for file in chosen.read
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
    else:
        found = curves(chosen)
        rows = lines(found, measured(found, chosen), chosen)
        for row in rows:
            print(json.dumps(row), flush=True)
    print(table(rows).markdown(), file=sys.stderr)
    if chosen.plot:
        drawn(rows).savefig(chosen.plot)


def curves(chosen: argparse.Namespace) -> list[Curve]:
    """All that were asked for."""
    found = []
    for model in chosen.model if "step" in chosen.only else ():
        least = LEAST.get(model, 1)
        depth = int(np.log2(min(chosen.sizes)))
        at = {
            "size": chosen.size,
            "batch": max(least, chosen.batch),
            "width": chosen.width,
            "depth": depth,
        }
        batches = [size for size in chosen.batches if size >= least]
        along = {
            "resolution": ("size", chosen.sizes),
            "batch": ("batch", batches),
            "width": ("width", chosen.widths),
        }
        for axis in chosen.axes:
            key, sizes = along[axis]
            found.append(
                Curve(model, axis, tuple(Point(model, **at | {key: size}) for size in sizes))
            )
    for part in chosen.parts if "images" in chosen.only else ():
        found.append(
            Curve(
                part,
                "images",
                tuple(Point(part, images=UNITS[part] * times) for times in chosen.images),
            )
        )
    return found


def measured(found: Sequence[Curve], chosen: argparse.Namespace) -> dict[Point, dict[str, float]]:
    """Medians of each quantity at each point; points that several curves share are measured once.

    FLOPs: in the first round alone.
    """
    points = list(dict.fromkeys(point for curve in found for point in curve.points))
    taken: dict[Point, list[dict[str, float]]] = {point: [] for point in points}
    for number in range(chosen.rounds):
        for point in points:
            taken[point].append(_once(point, chosen, count=number == 0 and point.part in MODELS))
    return {
        point: {key: statistics.median(row[key] for row in rows if key in row) for key in rows[0]}
        for point, rows in taken.items()
    }


def _once(point: Point, chosen: argparse.Namespace, count: bool) -> dict[str, float]:
    command = [sys.executable, Path(__file__).with_name("workloads.py"), json.dumps(asdict(point))]
    command += [
        "--steps",
        chosen.steps,
        "--precision",
        chosen.precision,
        *(["--count"] if count else []),
    ]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    if point.part in IMAGES:
        environment["OPENBLAS_NUM_THREADS"] = "1"  # waiting threads count as working ones
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{point} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent b of cost = a * size^b by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def fitted(sizes: Sequence[float], costs: Sequence[float], work: float) -> dict[str, Any]:
    """What a curve's line says of its growth."""
    exponent = slope(sizes, costs)
    last = slope(sizes[-2:], costs[-2:])
    verdict = {"work": round(work, 3), "worse": bool(exponent > work + SPARE)}
    return {"exponent": round(exponent, 3), "last": round(last, 3), **verdict}


def lines(
    found: Sequence[Curve], costs: dict[Point, dict[str, float]], chosen: argparse.Namespace
) -> list[dict[str, Any]]:
    """One for each curve and quantity; none of memory where a part hardly takes any."""
    rows = []
    for curve in found:
        about: dict[str, Any] = {"benchmark": "scaling", "part": curve.part, "axis": curve.axis}
        if curve.part in MODELS:
            at = asdict(curve.points[0])
            about |= {
                "precision": chosen.precision,
                "at": {
                    key: at[key] for key in ("size", "batch", "width", "depth") if key != curve.key
                },
            }
        for quantity in QUANTITIES:
            taken = [costs[point][quantity] for point in curve.points]
            if min(taken) < FLOOR and quantity == "megabytes":
                continue
            work = WORK[curve.axis]
            if curve.part in MODELS and quantity != "megabytes":
                work = max(
                    slope(curve.sizes, [costs[point][key] for point in curve.points])
                    for key in ("gflop", "million_weights")
                )
            points = [
                [size, float(f"{cost:.4g}")] for size, cost in zip(curve.sizes, taken, strict=True)
            ]
            rows.append(
                {
                    **about,
                    "quantity": quantity,
                    "points": points,
                    **fitted(curve.sizes, taken, work),
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """For people."""
    header = [
        "what",
        "over",
        "of",
        "from",
        "to",
        "exponent",
        "last doubling",
        "the work's",
        "worse",
    ]
    body = []
    for row in rows:
        (first, little) = row["points"][0]
        (last, much) = row["points"][-1]
        sizes = f"{row['axis']} {first:g} to {last:g}"
        numbers = [f"{row[key]:.2f}" for key in ("exponent", "last", "work")]
        body.append(
            [
                row["part"],
                sizes,
                row["quantity"],
                f"{little:.3g}",
                f"{much:.3g}",
                *numbers,
                "worse" if row["worse"] else "no",
            ]
        )
    return Table("Growth", header, body)


@quiet
def drawn(rows: Sequence[dict[str, Any]]) -> Figure:
    """Processors' time and memory over each axis, as multiples of what the smallest size takes;
    dashed: the work's growth.
    """
    axes = [axis for axis in WORK if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(3.7 * len(axes), 5), layout="constrained", dpi=100)
    places = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        for place, quantity in zip(
            places[:, column], ("processor_seconds", "megabytes"), strict=True
        ):
            chosen = [row for row in rows if row["axis"] == axis and row["quantity"] == quantity]
            for number, row in enumerate(chosen):
                sizes, costs = np.array(row["points"], float).T
                style = {"marker": "o", "markersize": 3, "linestyle": "-" if number < 7 else ":"}
                place.plot(
                    sizes / sizes[0],
                    costs / costs[0],
                    label=f"{row['part']} {row['exponent']:.2f}",
                    **style,
                )
            most = max((row["points"][-1][0] / row["points"][0][0] for row in chosen), default=2)
            place.plot(
                [1, most],
                [1, most ** WORK[axis]],
                color=INK,
                linestyle="--",
                linewidth=0.8,
                label=f"work {WORK[axis]:g}",
            )
            place.set(
                xscale="log",
                yscale="log",
                xlabel=f"{axis}, times the least",
                title=f"{quantity.replace('_', ' ')}, times the least",
            )
            place.xaxis.set_major_locator(matplotlib.ticker.LogLocator(2))
            place.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            place.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            place.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    main()
