"""Means, intervals and tests of several models, and the tables made of them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tests.facts import find
from tfmammo.metrics.resampling import bootstrap_interval, paired_test
from tfmammo.metrics.significance import Estimate
from tfmammo.metrics.summary import (
    BOOTSTRAP,
    JACKKNIFE,
    RULE_OF_THREE,
    Measure,
    Table,
    correct_p,
    make_tables,
    summarize,
    write_csv,
)

DICE = Measure("Dice", "%", 100, 1)
PSNR = Measure("PSNR", "dB", 1, 2)
MEASURES = {"dice": DICE, "psnr": PSNR}
PATIENTS = np.array(["a", "a", "b", "c", "c", "d", "e", "f", "g"])
N = len(PATIENTS)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {
        name: {"dice": rng.random(N), "psnr": rng.uniform(10, 30, N)}
        for name in ("CAN", "U-Net", "FCN-8s")
    }


def test_facts_are_means_intervals_and_tests_in_units(scores):
    facts = summarize(scores, PATIENTS, MEASURES, samples=300, seed=5)
    assert len(facts) == 6 + 4
    for model, of_model in scores.items():
        for measure, values in of_model.items():
            fact = find(facts, model, measure)
            scale = MEASURES[measure].scale
            expected = values.mean(), *bootstrap_interval(values, PATIENTS, 300, 5)
            assert (fact.value, fact.low, fact.high) == tuple(scale * one for one in expected)
            assert (fact.images, fact.patients, fact.unit) == (N, 7, MEASURES[measure].unit)
    fact = find(facts, "U-Net", "dice", "differences", "CAN")
    expected = paired_test(scores["U-Net"]["dice"], scores["CAN"]["dice"], PATIENTS, 300, 5)
    found = Estimate(fact.value / 100, fact.low / 100, fact.high / 100, fact.p)
    assert found == pytest.approx(expected)


def test_a_share_of_none_or_all_is_not_certain():
    patients = np.repeat([*"abcdefgh"], 2)
    measures = {"right": Measure("Right", "%", 100, 1, is_share=True)}
    measures["mcc"] = Measure("MCC", "%", 100, 1)
    right = {"all": np.ones(16), "none": np.zeros(16), "some": np.arange(16) > 7}
    scores = {name: {"right": 1.0 * values, "mcc": np.zeros(16)} for name, values in right.items()}
    facts = summarize(scores, patients, measures, samples=300)
    of_all, of_none, of_some = (find(facts, name, "right") for name in scores)
    # 8 patients: 100 * -ln(0.05) / 8
    assert (of_all.low, of_all.high) == pytest.approx((100 - 37.4467, 100), abs=1e-4)
    assert (of_none.low, of_none.high) == pytest.approx((0, 37.4467), abs=1e-4)
    assert (of_all.test, of_some.test) == (RULE_OF_THREE, BOOTSTRAP)
    change = find(facts, "none", "right", "differences", "all")
    assert (change.low, change.high) == pytest.approx((-100, -100 + 37.4467), abs=1e-4)
    assert change.p == 2 / 2**8
    halves = summarize({"half": {"right": np.arange(16) % 2.0}}, patients, measures, samples=300)
    assert (halves[0].low, halves[0].high) == pytest.approx((50 - 37.4467, 50 + 37.4467), abs=1e-4)
    other = find(facts, "none", "mcc")
    assert (other.value, other.low, other.high, other.test) == (0, 0, 0, BOOTSTRAP)
    few = summarize({"all": {"right": np.ones(5)}}, np.array([*"abcde"]), measures)
    assert np.isnan([few[0].low, few[0].high]).all()
    notes = make_tables(correct_p(facts), measures, "title")[0].notes
    assert [note[:6] for note in notes] == ["Right.", "Right;"] and "rule of three" in notes[0]


def test_every_pair_on_request(scores):
    measures = {"dice": DICE}
    facts = summarize(scores, PATIENTS, measures, samples=300, compare="pairs")
    pairs = [(fact.model, fact.against) for fact in facts if fact.against]
    assert pairs == [("U-Net", "CAN"), ("FCN-8s", "CAN"), ("FCN-8s", "U-Net")]
    means, differences = make_tables(correct_p(facts), measures, "title", samples=300)
    assert [line[0] for line in means.body] == ["CAN", "U-Net", "FCN-8s"]
    assert [line[0] for line in differences.body] == [" - ".join(pair) for pair in pairs]
    assert "Holm's correction for 3 comparisons" in differences.notes[0]


def test_an_image_without_a_value_is_left_out_for_all_models(scores):
    scores["CAN"]["psnr"][2] = np.inf
    scores["U-Net"]["psnr"][5] = np.nan
    scores["U-Net"]["dice"][:] = np.nan
    facts = summarize(scores, PATIENTS, MEASURES, samples=100)
    assert {(fact.measure, fact.images, fact.patients) for fact in facts} == {("psnr", 7, 5)}
    expected = scores["CAN"]["psnr"][[0, 1, 3, 4, 6, 7, 8]].mean()
    assert find(facts, "CAN", "psnr").value == pytest.approx(expected)


def level(model, measure, *numbers, patients=7):
    return MEASURES[measure].make_fact(
        "means", model, measure, Estimate(*numbers), patients=patients, images=9, test=BOOTSTRAP
    )


def difference(model, measure, *numbers, p=np.nan, patients=7, test="permutation by patient"):
    fact = MEASURES[measure].make_fact(
        "differences", model, measure, Estimate(*numbers), against="CAN"
    )
    return replace(fact, p=p, patients=patients, images=9, test=test)


FACTS = [
    level("CAN", "dice", 0.912, 0.9, 0.9251),
    level("U-Net", "dice", 0.9, 0.88, 0.91),
    difference("U-Net", "dice", -0.012, -0.02, 0.001, p=0.0004),
    level("CAN", "psnr", 20.123, patients=5),
    level("U-Net", "psnr", 21.0, patients=5),
    difference("U-Net", "psnr", 0.877, patients=5),
]


def test_tables_by_hand():
    paper = {"U-Net": ("U-Net, as printed (on inbreast)", {"dice": 0.905})}
    means, differences = make_tables(correct_p(FACTS), MEASURES, "title", paper)
    assert means.header == ["", "Dice, %", "PSNR, dB"]
    assert means.body == [
        ["CAN", "91.2\n[90.0, 92.5]", "20.12"],
        ["U-Net", "90.0\n[88.0, 91.0]", "21.00"],
        ["U-Net, as printed (on inbreast)", "90.5", "-"],
    ]
    bootstrap, few = means.notes
    assert bootstrap.startswith("Dice. In brackets: 95 % interval")
    assert few.startswith("PSNR. No interval and no p-value: 5 patients")
    assert differences.title == "Differences from CAN"
    assert differences.body == [["U-Net", "-1.2\n[-2.0, +0.1]\np < 0.001", "+0.88"]]
    assert "one comparison, no correction; 7 patients" in differences.notes[0]
    across, _ = make_tables(FACTS, MEASURES, "title", models_across=True)
    assert across.header == ["", "CAN", "U-Net"] and across.body[0][0] == "Dice, %"
    assert across.body[0][1:] == [line[1] for line in means.body[:2]]


def test_a_model_that_is_compared_with_nothing_has_no_line_of_differences():
    real = level("real", "psnr", 25.0, 24.0, 26.0)
    means, differences = make_tables([*FACTS, real], MEASURES, "title")
    assert means.body[-1] == ["real", "-", "25.00\n[24.00, 26.00]"]
    assert [line[0] for line in differences.body] == ["U-Net"]
    assert len(make_tables([FACTS[0], real], MEASURES, "title")) == 1


def test_p_is_corrected_for_the_comparisons_of_its_measure():
    facts = [level("A", "dice", 0.9, 0.8, 0.95)]
    facts += [
        difference(name, "dice", 0.1, p=p) for name, p in {"B": 0.02, "C": 0.3, "D": 0.04}.items()
    ]
    facts += [difference("B", "psnr", 0.1, p=0.02, test=JACKKNIFE)]
    corrected = correct_p(facts)
    expected = [np.nan, 0.06, 0.3, 0.08, 0.02]
    assert [one.p_corrected for one in corrected] == pytest.approx(expected, nan_ok=True)
    _, table = make_tables(corrected, MEASURES, "title")
    lines = [line[1].split("\n")[-1] for line in table.body]
    assert lines == ["p = 0.060", "p = 0.300", "p = 0.080"]
    assert table.notes[0].startswith("Dice. ") and "3 comparisons" in table.notes[0]
    assert "jackknife" in table.notes[1] and "no correction" in table.notes[1]


def test_a_table_in_markdown_latex_and_rich():
    notes = ("A # B.", "Another.")
    table = Table("50 % & more", ["", "a_b"], [["CAN", "1\n[0, 2]"], ["y", "p < 0.001"]], notes)
    assert table.markdown() == (
        "### 50 % & more\n\n|  | a_b |\n| --- | ---: |\n| CAN | 1 [0, 2] |\n| y | p < 0.001 |\n"
        "\nA # B.\n\nAnother.\n"
    )
    latex = table.latex()
    assert r"\caption{50 \% \& more}" in latex and r" & a\_b \\" in latex
    assert r"CAN & 1 [0, 2] \\" in latex and r"y & p $<$ 0.001 \\" in latex
    assert r"\begin{tabular}{lr}" in latex and r"{\footnotesize A \# B.}" in latex
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert all(cell in text for cell in ("50 % & more", "a_b", "CAN", "[0, 2]", "Another."))


def test_units_of_facts(tmp_path):
    kid = Measure("KID x 1000", "", 1000, 2).make_fact("means", "CAN", "kid", 0.0223)
    assert (kid.value, kid.unit) == (pytest.approx(22.3), "0.001")
    write_csv(tmp_path / "some.csv", [{"a": np.nan, "b": 1}])
    assert (tmp_path / "some.csv").read_text().split() == ["a,b", ",1"]
