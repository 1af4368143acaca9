"""Models compared group by group, on scores set by hand."""

import numpy as np
import pytest

from tfmammo.config import DataConfig
from tfmammo.data.patches import Patches
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig
from tfmammo.evaluation.groups import summarize_groups, tabulate_groups
from tfmammo.metrics.segmentation import bootstrap_interval, paired_test
from tfmammo.metrics.summary import Measure

MEASURES = {"dice": Measure("Dice", "%", 100, 1)}
CONFIG = EvaluationConfig(models={"A": "a", "B": "b"}, samples=200)


@pytest.fixture(scope="module")
def patches():
    """Eight patients with two masses each: one benign, one malignant; one patch without either."""
    patients = [f"p{number}" for number in range(8) for _ in range(2)] + ["p0"]
    return Patches(
        np.zeros((17, 8, 8, 1), np.float32),
        np.zeros((17, 8, 8, 1), np.uint8),
        np.array(patients),
        np.array([f"i{number}" for number in range(17)]),
        pathologies=np.array(["benign", "malignant"] * 8 + [""]),
        shapes=np.array(["round"] * 17),
        margins=np.array(["spiculated", "circumscribed"] * 8 + [""]),
    )


@pytest.fixture(scope="module")
def scores():
    random = np.random.default_rng(0)
    first = random.random(17)
    better_on_malignant = first - np.tile([0, 0.1], 9)[:17]
    return {"A": {"dice": first}, "B": {"dice": better_on_malignant}}


def test_each_group_has_its_means_intervals_and_tests(patches, scores):
    rows_of = summarize_groups(CONFIG, patches, scores, "pathology")
    assert list(rows_of) == ["benign", "malignant", "unknown"]
    malignant = np.arange(1, 16, 2)
    row = rows_of["malignant"][1]
    values = {name: of_model["dice"][malignant] for name, of_model in scores.items()}
    patients = patches.patient_ids[malignant]
    assert (row.model, row.n, row.patients) == ("B", 8, 8)
    assert row.mean == pytest.approx(values["B"].mean())
    expected = bootstrap_interval(values["B"], patients, samples=200)
    assert (row.low, row.high) == pytest.approx(expected)
    test = paired_test(values["B"], values["A"], patients, samples=200)
    assert (row.difference, row.p) == pytest.approx((-0.1, test.p))
    assert rows_of["benign"][1].difference == pytest.approx(0)
    assert rows_of["unknown"][0].n == 1


def test_a_margin_is_a_group_of_its_own(patches, scores):
    rows_of = summarize_groups(CONFIG, patches, scores, "margin")
    assert {name: rows[0].n for name, rows in rows_of.items()} == {
        "circumscribed": 8,
        "spiculated": 8,
        "unknown": 1,
    }


def test_the_tables_name_groups_and_correct_over_all_of_them(patches, scores):
    comparison = Comparison("unseen", DataConfig(), patches, {}, {})
    tables, lines = tabulate_groups(CONFIG, comparison, scores, MEASURES, ("pathology", "shape"))
    means, differences, of_shapes, _ = tables
    assert means.title.startswith(
        "By pathology (benign 8 of 8 patients, malignant 8 of 8 patients, unknown 1 of 1 patients)"
    )
    assert [line[0] for line in means.body[:4]] == [
        "A, benign",
        "B, benign",
        "A, malignant",
        "B, malignant",
    ]
    assert differences.title == "Differences within each pathology"
    names = [line[0] for line in differences.body]
    assert "B, malignant - A, malignant" in names and "B, benign - A, malignant" not in names
    assert of_shapes.body[0][0] == "A, round"
    line = next(line for line in lines if (line["group"], line["model"]) == ("malignant", "B"))
    assert line["attribute"] == "pathology" and line["mean"] == pytest.approx(
        100 * scores["B"]["dice"][1:16:2].mean()
    )
    # Two comparisons of the attribute have a p: those of benign and of malignant masses.
    assert line["p_corrected"] == pytest.approx(2 * line["p"])


def test_without_attributes_there_is_nothing(patches, scores):
    comparison = Comparison("unseen", DataConfig(), patches, {}, {})
    assert tabulate_groups(CONFIG, comparison, scores, MEASURES, ()) == ([], [])
