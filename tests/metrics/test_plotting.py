"""The style of plots: settings that end with the function, axes of ROC curves."""

import matplotlib
from matplotlib.figure import Figure

from tfmammo.metrics.plotting import STYLE, make_roc_axes, plot_style


def test_the_style_ends_with_the_function():
    before = matplotlib.rcParams["font.size"]
    within = plot_style(lambda: matplotlib.rcParams["font.size"])()
    assert within == STYLE["font.size"] != before == matplotlib.rcParams["font.size"]


def test_roc_axes_show_what_guessing_gives():
    figure = Figure()
    axes = make_roc_axes(figure)
    assert figure.axes == [axes]
    (diagonal,) = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("false positive rate", "true positive rate")
    axes.plot([0, 2], [0, 2])
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1.01)), "whatever is drawn"
    assert make_roc_axes(Figure(), "x", "y").get_ylabel() == "y"
