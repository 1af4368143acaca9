"""Validation curves of training runs: whether they are flat at the end, and a picture of them."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tfmammo.metrics.rows import Fact

SHORTEST = 8  # validations, below which nothing is said about the end
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
WIDTH, HEIGHT, LEFT, BOTTOM, LINE = 480, 200, 52, 30, 15  # of a panel, px
_REPETITION = re.compile(r"(/fold\d+)?(/seed\d+|/fold\d+-seed\d+)?$")


@dataclass(frozen=True)
class Curve:
    """The held-out measure that chose a run's best weights, over its steps."""

    run: str  # its folder in the report: "can/seed0"
    measure: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def is_flat(self) -> bool:
        """Whether it is known to be flat at the end.

        The last two quarters differ by no more than two standard errors of that difference, or
        than a hundredth of the last one's mean.
        """
        if len(self.values) < SHORTEST:
            return False
        length = len(self.values) // 4
        last, before = self.values[-length:], self.values[-2 * length : -length]
        error = sum(statistics.variance(quarter) / length for quarter in (last, before)) ** 0.5
        end = statistics.fmean(last)
        return abs(end - statistics.fmean(before)) <= max(2 * error, 0.01 * abs(end))


def count_ends(curves: Sequence[Curve]) -> str:
    """Say how many curves are flat at their ends."""
    flat = sum(curve.is_flat for curve in curves)
    if flat == len(curves):
        several = "Both" if flat == 2 else f"All {flat}"
        which = "The validation curve is" if flat == 1 else f"{several} validation curves are"
        return f"{which} flat at the end"
    return f"{flat} of {len(curves)} validation curves are flat at the end"


def draw(curves: Sequence[Curve]) -> str:
    """Draw curves as SVG, a panel for each measure and a colour for each model."""
    curves = [curve for curve in curves if len(curve.steps) > 1]
    measures = list(dict.fromkeys(curve.measure for curve in curves))
    parts = []
    top = 0
    for measure in measures:
        of_panel = [curve for curve in curves if curve.measure == measure]
        models = list(dict.fromkeys(_REPETITION.sub("", curve.run) for curve in of_panel))
        parts += _draw_panel(measure, of_panel, models, top)
        top += HEIGHT + BOTTOM + 8 + max(0, len(models) * LINE - HEIGHT)
    return _wrap(parts, LEFT + WIDTH + 210, top)


def draw_intervals(rows: Sequence[tuple[str, int, Fact]], unit: str) -> str:
    """Draw numbers with their intervals as SVG: label, index of the colour and number of each."""
    low = min(fact.low for _, _, fact in rows)
    high = max(fact.high for _, _, fact in rows)
    left, height = 20 + 6 * max(len(label) for label, _, _ in rows), 20 * len(rows) + 10

    def place(value: float) -> float:
        return round(left + WIDTH * (value - low) / (high - low or 1), 1)

    parts = [
        f'<path d="M{left} {height}H{left + WIDTH}" stroke="#888"/>',
        _write(left, height + 16, f"{low:.1f}"),
        _write(left + WIDTH, height + 16, f"{high:.1f} {unit}", "end"),
    ]
    for number, (label, index, fact) in enumerate(rows):
        y, colour = 20 * number + 14, COLOURS[index]
        parts += [
            _write(left - 8, y + 4, label, "end"),
            f'<path d="M{place(fact.low)} {y}H{place(fact.high)}" stroke="{colour}"/>',
            f'<circle cx="{place(fact.value)}" cy="{y}" r="4" fill="{colour}"/>',
        ]
    return _wrap(parts, left + WIDTH + 20, height + 26)


def _wrap(parts: Sequence[str], width: int, height: int) -> str:
    size = f'width="{width}" height="{height}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def _draw_panel(measure: str, curves: Sequence[Curve], models: list[str], top: int) -> list[str]:
    values = [value for curve in curves for value in curve.values]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    last = max(curve.steps[-1] for curve in curves)
    bottom = top + HEIGHT
    parts = [
        f'<path d="M{LEFT} {top + 6}V{bottom}H{LEFT + WIDTH}" fill="none" stroke="#888"/>',
        _write(LEFT - 4, bottom, f"{low:.3g}", "end"),
        _write(LEFT - 4, top + 14, f"{high:.3g}", "end"),
        _write(LEFT, bottom + 14, "0"),
        _write(LEFT + WIDTH, bottom + 14, f"{last:,} steps", "end"),
        _write(LEFT + 6, top + 14, f"{measure}, held out"),
    ]
    for curve in curves:
        colour = COLOURS[models.index(_REPETITION.sub("", curve.run)) % len(COLOURS)]
        points = " ".join(
            f"{LEFT + WIDTH * step / last:.1f},"
            f"{bottom - (HEIGHT - 10) * (value - low) / (high - low):.1f}"
            for step, value in zip(curve.steps, curve.values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    for number, model in enumerate(models):
        y, colour = top + 14 + LINE * number, COLOURS[number % len(COLOURS)]
        parts.append(_write(LEFT + WIDTH + 8, y, model, colour=colour))
    return parts


def _write(x: float, y: float, text: str, anchor: str = "start", colour: str = "#444") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'
    )
