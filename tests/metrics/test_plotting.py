"""The style of plots, and what a FROC figure shows."""

import matplotlib
import numpy as np

from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.plotting import STYLE, draw_froc, plot_style

IMAGES = [
    Matches(np.array([0.9]), np.array([0.8]), 1, 1),
    Matches(np.empty(0), np.array([0.3]), 1, 1),
] * 3


def test_the_style_ends_with_the_function():
    before = matplotlib.rcParams["font.size"]
    within = plot_style(lambda: matplotlib.rcParams["font.size"])()
    assert within == STYLE["font.size"] != before == matplotlib.rcParams["font.size"]


def test_curves_and_bands():
    nothing = [Matches(np.empty(0), np.empty(0), 1, 1)] * 6
    detectors = {"ours": IMAGES, "none": nothing}
    (axes,) = draw_froc(detectors, list("abcdef"), 2, 50, title="phantom").axes
    ours, none = axes.get_lines()
    assert np.interp([0, 0.5, 2], *ours.get_data()).tolist() == [0.5] * 3
    assert not np.any(none.get_ydata())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "none"]
    band = axes.collections[0].get_datalim(axes.transData)
    assert 0 <= band.y0 < 0.5 < band.y1 <= 1
    assert (axes.get_title(), axes.get_xlim()) == ("phantom", (0, 2))
    # one curve needs no legend
    (axes,) = draw_froc({"ours": IMAGES}, ["a"] * 6, samples=10, recall="recall at IoU > 0.5").axes
    assert axes.get_legend() is None and axes.get_ylabel() == "recall at IoU > 0.5"
