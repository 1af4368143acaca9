"""The style of plots."""

import matplotlib

from tfmammo.metrics.plotting import STYLE, plot_style


def test_the_style_ends_with_the_function():
    before = matplotlib.rcParams["font.size"]
    within = plot_style(lambda: matplotlib.rcParams["font.size"])()
    assert within == STYLE["font.size"] != before == matplotlib.rcParams["font.size"]
