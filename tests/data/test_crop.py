"""CAN's crop, which its paper doesn't state, from its Table I; and what data.context gives
on real masses.
"""

import numpy as np
import pytest

from tfmammo.archives import cdd_cesm
from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.data.windows import square_window
from tfmammo.evaluation.printed import get_values
from tfmammo.mammogram import Skipped

TABLE_I = {
    model: (row["accuracy"], row["dice"], row["mcc"])
    for model, row in get_values("can", "table1").items()
}


def fractions(accuracy: float, dice: float, mcc: float) -> tuple[float, float]:
    """(the lesion's share of a patch, how far its MCC is from the printed one), from a search over
    all confusion matrices.
    """
    wrong = 1 - accuracy
    hits = dice * wrong / (2 * (1 - dice))  # Dice = 2 TP / (2 TP + FP + FN)
    misses = np.linspace(0, wrong, 1001)
    alarms = wrong - misses
    rest = 1 - wrong - hits
    product = (hits + alarms) * (hits + misses) * (rest + alarms) * (rest + misses)
    errors = np.abs((hits * rest - alarms * misses) / np.sqrt(product) - mcc)
    return float(hits + misses[errors.argmin()]), float(errors.min())


@pytest.mark.parametrize("row", TABLE_I.values(), ids=TABLE_I)
def test_table_1_implies_lesions_that_fill_a_third_of_a_patch_and_more(row):
    accuracy, dice, mcc = (value / 100 for value in row)
    balanced = (1 - accuracy) / (2 * (1 - dice))
    share, error = fractions(accuracy, dice, mcc)
    assert 0.35 <= balanced <= 0.37 and error < 0.0005
    assert share == pytest.approx(balanced, abs=0.02), (
        "whichever of misses and false alarms prevails"
    )


@pytest.mark.data
def test_the_default_context_gives_that_share_on_real_masses(real_data):
    def share(context: float) -> float:
        shares = []
        for one in cdd_cesm.read(real_data / "cdd-cesm", Skipped()):
            lesions = sampling.select_lesions(one, DataConfig()).values()
            region = np.zeros((one.rows, one.cols), np.uint8)
            for lesion in lesions:
                region |= lesion.mask(one.rows, one.cols)
            places = [square_window(lesion.box, one.rows, one.cols, context) for lesion in lesions]
            inside = [
                place
                for place in places
                if place[2] - place[0] <= one.rows and place[3] - place[1] <= one.cols
            ]
            shares += [region[top:bottom, left:right].mean() for top, left, bottom, right in inside]
        return float(np.mean(shares))

    assert 0.355 <= share(DataConfig().context) <= 0.365
    assert share(1.5) < 0.30
