"""Measure how cost grows: of a training step over its sizes, of all else over the number of images.

python benchmarks/scaling.py [--only step images] [--model can infilling ...]
                             [--parts froc ...] [--plot FILE]

A training step's time and memory are measured over resolution, batch and width. One JSON line for
each curve: its points, medians of the rounds (for a step, of the fastest one in each round);
exponent, the slope b of the line a + b log n fitted to log cost by least squares; last, the slope
of the last doubling; work, the exponent of the work itself; worse, whether exponent > work + 0.1.
A table in markdown goes to stderr. For small sizes, constant costs make the exponent smaller than
that of the work.

Each point is measured in a new process in each round. A round goes through all points, so that
other work of the machine meets all of them alike. processor_seconds, of all threads, depend less on
it. megabytes are those that the work adds to the process's peak.

The work of a step has two parts: the FLOPs counted in its graph, and the weights, each of which is
read and updated. The larger of their exponents counts. The FLOPs are those of convolutions:
exponents of about 2 in resolution (pixels), 1 in batch, at most 2 in width. Self-attention would
have 4 in resolution, but the contextual GAN's map stays at 32 px; the further levels are
convolutions. The flow's maps grow with the patch. The exponents of memory are 2, 1 and 2; over
images, all are 1.

Pix2Pix's U-Nets have the same depth at every size, the largest that the smallest size allows. The
contextual GAN's networks must end at 4 x 4 px, so they get one level more for each doubling.
Batches of models with labels have at least two patches. benchmarks/workloads.py holds what is done
with images. Time: a quarter of an hour a model at --rounds 3 on two idle cores, most of it for
starting processes.
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
from step import MODELS
from workloads import IMAGES, OTHER_LABEL, Point

from tfmammo.metrics.plotting import INK, plot_style
from tfmammo.metrics.summary import Table

MIN_BATCH = dict.fromkeys(OTHER_LABEL, 2)  # patches in a batch: one of each label
# Images in one unit of --images: one unit of each part takes about the same time.
UNITS = {
    "index": 12_500,
    "split": 12_500,
    "plan": 12_500,
    "build": 16,
    "small_build": 12_500,
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
TOLERANCE = 0.1  # an exponent may exceed that of the work by this much
MIN_MEGABYTES = 5.0  # less can't be told from the noise of the process


@dataclass(frozen=True)
class Curve:
    """One part along one axis.

    Attributes:
        part: A model, or a part of benchmarks/workloads.py.
        axis: What varies: resolution, batch, width or images.
        points: The points, in the order of measurement.
    """

    part: str
    axis: str
    points: tuple[Point, ...]

    @property
    def key(self) -> str:
        """The field of Point that varies."""
        return "size" if self.axis == "resolution" else self.axis

    @property
    def sizes(self) -> list[float]:
        """The values along the axis."""
        return [getattr(point, self.key) for point in self.points]


def main() -> None:
    """Measure in rounds, and print the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=("step", "images"), default=("step", "images"))
    # a detector's batch has boxes, which patches do not
    models = tuple(name for name in MODELS if name != "light_head")
    parser.add_argument("--model", nargs="+", choices=models, default=models)
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
        help="numbers of units, see UNITS",
    )
    parser.add_argument("--size", type=int, default=256, help="px, where it does not vary")
    parser.add_argument("--batch", type=int, default=1, help="where it does not vary")
    parser.add_argument("--width", type=float, default=0.25, help="where it does not vary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="steps, of which the fastest counts")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument(
        "--read",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="print and plot the lines of earlier runs; measure nothing",
    )
    options = parser.parse_args()
    if options.read:
        rows = [
            json.loads(line)
            for file in options.read
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
    else:
        curves = make_curves(options)
        rows = make_lines(curves, measure(curves, options), options)
        for row in rows:
            print(json.dumps(row), flush=True)
    print(make_table(rows).markdown(), file=sys.stderr)
    if options.plot:
        plot(rows).savefig(options.plot)


def make_curves(options: argparse.Namespace) -> list[Curve]:
    """Make all curves that the options ask for."""
    curves = []
    for model in options.model if "step" in options.only else ():
        least = MIN_BATCH.get(model, 1)
        depth = int(np.log2(min(options.sizes)))
        at = {
            "size": options.size,
            "batch": max(least, options.batch),
            "width": options.width,
            "depth": depth,
        }
        batches = [size for size in options.batches if size >= least]
        along = {
            "resolution": ("size", options.sizes),
            "batch": ("batch", batches),
            "width": ("width", options.widths),
        }
        for axis in options.axes:
            key, sizes = along[axis]
            points = tuple(Point(model, **at | {key: size}) for size in sizes)
            curves.append(Curve(model, axis, points))
    for part in options.parts if "images" in options.only else ():
        points = tuple(Point(part, images=UNITS[part] * count) for count in options.images)
        curves.append(Curve(part, "images", points))
    return curves


def measure(curves: Sequence[Curve], options: argparse.Namespace) -> dict[Point, dict[str, float]]:
    """Measure each point, and return the medians of each quantity.

    Points that several curves share are measured once. FLOPs are counted in the first round only.
    """
    points = list(dict.fromkeys(point for curve in curves for point in curve.points))
    results: dict[Point, list[dict[str, float]]] = {point: [] for point in points}
    for number in range(options.rounds):
        for point in points:
            results[point].append(
                _measure_once(point, options, count=number == 0 and point.part in MODELS)
            )
    return {
        point: {key: statistics.median(row[key] for row in rows if key in row) for key in rows[0]}
        for point, rows in results.items()
    }


def _measure_once(point: Point, options: argparse.Namespace, count: bool) -> dict[str, float]:
    command = [sys.executable, Path(__file__).with_name("workloads.py"), json.dumps(asdict(point))]
    command += [
        "--steps",
        options.steps,
        "--precision",
        options.precision,
        *(["--count"] if count else []),
    ]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    if point.part in IMAGES:
        environment["OPENBLAS_NUM_THREADS"] = "1"  # waiting threads count as working ones
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{point} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit the exponent b of cost = a * size^b by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def describe_growth(sizes: Sequence[float], costs: Sequence[float], work: float) -> dict[str, Any]:
    """Return the part of a curve's line that describes its growth."""
    exponent = fit_exponent(sizes, costs)
    last = fit_exponent(sizes[-2:], costs[-2:])
    verdict = {"work": round(work, 3), "worse": bool(exponent > work + TOLERANCE)}
    return {"exponent": round(exponent, 3), "last": round(last, 3), **verdict}


def make_lines(
    curves: Sequence[Curve], costs: dict[Point, dict[str, float]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Make a line for each curve and quantity, without memory where a part takes hardly any."""
    rows = []
    for curve in curves:
        about: dict[str, Any] = {"benchmark": "scaling", "part": curve.part, "axis": curve.axis}
        if curve.part in MODELS:
            at = asdict(curve.points[0])
            about |= {
                "precision": options.precision,
                "at": {
                    key: at[key] for key in ("size", "batch", "width", "depth") if key != curve.key
                },
            }
        for quantity in QUANTITIES:
            values = [costs[point][quantity] for point in curve.points]
            if min(values) < MIN_MEGABYTES and quantity == "megabytes":
                continue
            work = WORK[curve.axis]
            if curve.part in MODELS and quantity != "megabytes":
                work = max(
                    fit_exponent(curve.sizes, [costs[point][key] for point in curve.points])
                    for key in ("gflop", "million_weights")
                )
            points = [
                [size, float(f"{cost:.4g}")] for size, cost in zip(curve.sizes, values, strict=True)
            ]
            rows.append(
                {
                    **about,
                    "quantity": quantity,
                    "points": points,
                    **describe_growth(curve.sizes, values, work),
                }
            )
    return rows


def make_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the lines as a table."""
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


@plot_style
def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot processor time and memory over each axis, as multiples of those of the smallest size.

    A dashed line shows the growth of the work.
    """
    axes = [axis for axis in WORK if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(3.7 * len(axes), 5), layout="constrained", dpi=100)
    places = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        for place, quantity in zip(
            places[:, column], ("processor_seconds", "megabytes"), strict=True
        ):
            shown = [row for row in rows if row["axis"] == axis and row["quantity"] == quantity]
            for number, row in enumerate(shown):
                sizes, costs = np.array(row["points"], float).T
                style = {"marker": "o", "markersize": 3, "linestyle": "-" if number < 7 else ":"}
                place.plot(
                    sizes / sizes[0],
                    costs / costs[0],
                    label=f"{row['part']} {row['exponent']:.2f}",
                    **style,
                )
            most = max((row["points"][-1][0] / row["points"][0][0] for row in shown), default=2)
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
