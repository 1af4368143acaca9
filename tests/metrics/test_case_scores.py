"""Scores of a study's runs: lesions, copies, seeds, and what two arms differ by."""

import numpy as np
import pytest

from tests.facts import find, write_study
from tfmammo.metrics import case_scores
from tfmammo.metrics.case_scores import SCORES

LINES = [
    ("leak", "centred disc", 0, "p", "a~1", 0.1),
    ("leak", "centred disc", 0, "q", "b~0", 0.3),
    ("leak", "CAN", 0, "p", "a~1", 0.7),
    ("leak", "CAN", 0, "p", "a~5", 0.9),
    ("leak", "CAN", 1, "p", "a~2", 0.2),
    ("leak", "CAN", 0, "q", "b~0", 1.0),
    ("leak", "CAN", 0, "q", "c~0", 1.0),  # which the disc has not scored
    ("unseen", "CAN", 0, "p", "a", 0.0),
]


def test_a_lesion_counts_once_whatever_copies_and_seeds_scored_it(tmp_path):
    scores = case_scores.read_scores(write_study(tmp_path, LINES))
    assert scores.list_models("leak") == ["CAN", "centred disc"]
    cases = scores.collect("leak", {"CAN": None, "centred disc": None})
    assert cases.ids.tolist() == ["a", "b"] and cases.patients.tolist() == ["p", "q"]
    np.testing.assert_allclose(cases.scores["CAN"]["dice"], [0.6, 1.0])
    np.testing.assert_allclose(cases.scores["centred disc"]["dice"], [0.1, 0.3])
    np.testing.assert_allclose(cases.scores["CAN"]["mcc"], 0.5)
    assert scores.collect("other", {"CAN": None}) is None and scores.collect("leak", {}) is None


def test_seeds_are_chosen_model_by_model(tmp_path):
    scores = case_scores.read_scores(write_study(tmp_path, LINES))
    cases = scores.collect("leak", {"CAN": [1], "centred disc": None})
    assert cases.ids.tolist() == ["a"] and cases.scores["CAN"]["dice"] == pytest.approx([0.2])
    assert scores.collect("leak", {"CAN": [2]}) is None


def test_a_fold_is_chosen(tmp_path):
    lines = [("unseen", "CAN", 0, f"p{fold}", f"a{fold}", 0.1 * fold, fold) for fold in range(3)]
    scores = case_scores.read_scores(write_study(tmp_path, lines))
    cases = scores.collect("unseen", {"CAN": None}, 2)
    assert cases.ids.tolist() == ["a2"] and cases.scores["CAN"]["dice"] == pytest.approx([0.2])
    assert len(scores.collect("unseen", {"CAN": None}).ids) == 3


def test_arms_are_compared_on_the_lesions_of_both(tmp_path):
    patients = [f"p{number}" for number in range(12)]
    lines = [("unseen", "CAN", 0, patient, f"{patient}-0", 0.8) for patient in patients]
    lines += [("leak", "CAN", 0, patient, f"{patient}-0~3", 0.9) for patient in patients[:8]]
    lines += [("leak", "CAN", 0, "other", "other-0~3", 0.1)]
    lines += [("far", "CAN", 0, "q", "q-0", 0.1)]
    scores = case_scores.read_scores(write_study(tmp_path, lines))
    unseen, leak, far = (scores.collect(arm, {"CAN": None}) for arm in ("unseen", "leak", "far"))
    facts = case_scores.compare_arms(leak, unseen, "arm=leak;less=unseen", 200)
    fact = find(facts, "CAN", "dice", "arms", "CAN", "arm=leak;less=unseen")
    # 8 patients who differ alike: 10 +- 100 * -ln(0.05) / 8
    expected = (10, 10 - 37.4467, 10 + 37.4467)
    assert (fact.value, fact.low, fact.high) == pytest.approx(expected, abs=1e-4)
    assert (fact.patients, fact.images) == (8, 8) and fact.p < 0.05
    assert case_scores.compare_arms(far, unseen, "arm=far;less=unseen") == []


def test_a_study_without_files_has_no_scores(tmp_path):
    assert not case_scores.read_scores(tmp_path / SCORES).runs
    assert case_scores.read_lines(tmp_path / "none.csv") == []
