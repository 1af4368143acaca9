"""Sheets: which patches they show, and that their files hold these."""

import cv2
import numpy as np
import pytest

from tfmammo.evaluation import sheets

SCORES = {"A": np.array([0.1, 0.4, 0.2, 0.3]), "B": np.array([0.4, 0.1, 0.3, np.nan])}


@pytest.mark.parametrize("is_higher_better", [False, True])
def test_sheets_show_a_random_choice_and_each_models_own_best_and_worst(is_higher_better):
    rows = sheets.choose_rows(SCORES, 2, seed=1, is_higher_better=is_higher_better)
    lowest, highest = ("worst", "best") if is_higher_better else ("best", "worst")
    assert {name: chosen.tolist() for name, chosen in rows.items()} == {
        "": np.random.default_rng(1).permutation(4)[:2].tolist(),
        f"-{lowest}-A": [0, 2],
        f"-{highest}-A": [1, 3],
        f"-{lowest}-B": [1, 2],
        f"-{highest}-B": [0, 2],
    }


def test_a_sheet_holds_the_chosen_patches(tmp_path):
    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1) / 5 + np.zeros((4, 16, 16, 1))
    sheets.write_sheets({"A": images}, {"A": SCORES["A"]}, 1, 0, tmp_path / "sheet.png")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("sheet.png", "sheet-best-A.png", "sheet-worst-A.png")
    }
    for which, grey in (("best", 0), ("worst", 51)):
        assert cv2.imread(str(tmp_path / f"sheet-{which}-A.png"))[-10, 10, 0] == grey
