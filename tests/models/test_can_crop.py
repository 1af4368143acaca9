"""CAN's crop, which its paper does not state, follows from its Table I."""

import numpy as np
import pytest

from tfmammo.metrics.printed import get_values

TABLE_I = {
    model: (row["accuracy"], row["dice"], row["mcc"])
    for model, row in get_values("can", "table1").items()
}


@pytest.mark.parametrize("row", TABLE_I.values(), ids=TABLE_I)
def test_table_1_implies_lesions_that_fill_a_third_of_a_patch_and_more(row):
    """The lesion's share of a patch, from a search over all confusion matrices."""
    accuracy, dice, mcc = (value / 100 for value in row)
    wrong = 1 - accuracy
    hits = dice * wrong / (2 * (1 - dice))  # Dice = 2 TP / (2 TP + FP + FN)
    misses = np.linspace(0, wrong, 1001)
    alarms = wrong - misses
    rest = 1 - wrong - hits
    product = (hits + alarms) * (hits + misses) * (rest + alarms) * (rest + misses)
    errors = np.abs((hits * rest - alarms * misses) / np.sqrt(product) - mcc)
    balanced = (1 - accuracy) / (2 * (1 - dice))
    assert 0.35 <= balanced <= 0.37 and errors.min() < 0.0005
    share = hits + misses[errors.argmin()]
    assert share == pytest.approx(balanced, abs=0.02), "whichever of misses and alarms prevails"
