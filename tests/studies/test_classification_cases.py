"""Which test patches change sides, on scores set by hand."""

import numpy as np
import pytest

from tests.facts import find
from tfmammo.config import DataConfig
from tfmammo.data.patches import Patches
from tfmammo.evaluation.report import Report
from tfmammo.metrics.resampling import paired_test
from tfmammo.studies import classification_cases as cases
from tfmammo.studies.classification import StudyConfig

LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
BEFORE = np.array([0.2, 0.4, 0.6, 0.9, 0.7, 0.1, 0.8, 0.3])
AFTER = np.array([0.6, 0.3, 0.4, 0.9, 0.2, 0.6, 0.9, 0.3])


def make_patches(labels, patients=None):
    count = len(labels)
    names = np.array([f"i{number}" for number in range(count)])
    random = np.random.default_rng(0)
    return Patches(
        random.random((count, 16, 16, 1)).astype(np.float32),
        np.zeros((count, 16, 16, 1), np.uint8),
        np.array(patients or [f"p{number}" for number in range(count)]),
        names,
    ).with_labels(labels)


def make_config(**values):
    experiment = {
        "name": "classifier",
        "data": DataConfig(size=16),
        "training": {"steps": 1},
        "model": {},
    }
    known = {"shares": (0, 0.5), "seeds": (0, 1), "samples": 200}
    return StudyConfig(**{"experiment": experiment, **known, **values})


def test_cases_that_change_sides_are_counted_both_ways():
    moves = cases.count_moves(BEFORE, AFTER, LABELS)
    assert list(moves.values()) == [2, 1, 1, 1, 1, pytest.approx((0.4 - 0.1) / 2)]
    assert list(cases.count_moves(BEFORE, BEFORE, LABELS).values()) == [2, 0, 0, 0, 0, 0]
    none_missed = cases.count_moves(np.ones(8), AFTER, LABELS)
    assert none_missed["missed_lesions"] == 0 and np.isnan(none_missed["score_of_missed"])
    together = cases.average_moves([moves, none_missed])
    assert together["missed_lesions"] == 1 and together["score_of_missed"] == pytest.approx(0.15)
    control = cases.count_control_moves(np.stack([BEFORE, AFTER]), LABELS)
    # Both ways around: what one finds and the other misses counts on either side once.
    assert control["of_them_found"] == control["found_lesions_missed"] == 1
    assert control["score_of_missed"] == pytest.approx(((0.4 - 0.1) / 2 + (0.1 + 0.2) / 2) / 2)
    assert cases.count_control_moves(BEFORE[np.newaxis], LABELS) is None


def test_each_share_and_the_control_are_counted():
    test = make_patches([1] * 8 + [0] * 4)
    reference = np.random.default_rng(1).random((2, 12))
    raised = np.minimum(reference + 0.2, 1)
    report = Report(config=None)
    cases.add_moves(report, {0: reference, 0.5: raised}, test, make_config())
    moves = cases.average_moves(
        [cases.count_moves(a, b, test.labels) for a, b in zip(reference, raised, strict=True)]
    )
    for key, value in moves.items():
        assert find(report.facts, "share50", key, "moves", "share0").value == value
    change = paired_test(
        raised.mean(axis=0)[:8], reference.mean(axis=0)[:8], test.patient_ids[:8], 200
    )
    fact = find(report.facts, "share50", "score_of_lesions", "moves", "share0")
    assert (fact.value, fact.low, fact.p) == (change.value, change.low, change.p)
    assert (fact.patients, fact.images) == (8, 8)
    (table,) = report.tables
    share, control = table.body
    assert share[0] == "50 %" and control[0] == "0 %, another seed" and control[6:] == ["-", "-"]
    assert share[1] == f"{moves['missed_lesions']:.1f}, {moves['of_them_found']:.1f}"
    assert share[6].startswith(f"{change.value:+.3f}\n[")
    assert float(share[7]) == pytest.approx(change.p, abs=0.001)


def test_few_patients_and_one_seed_have_neither_p_nor_control():
    test = make_patches([1, 1, 0, 0])
    scores = {0: np.full((1, 4), 0.4), 0.5: np.full((1, 4), 0.6)}
    report = Report(config=None)
    cases.add_moves(report, scores, test, make_config(seeds=(0,)))
    (table,) = report.tables
    assert table.body == [["50 %", "2.0, 2.0", "0.0", "0.0", "2.0", "+0.200", "+0.200", "-"]]
    assert len(table.notes) == 1 and "2 patients" in table.notes[0]
