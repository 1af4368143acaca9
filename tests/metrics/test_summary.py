"""Means, intervals and tests of several models, and the tables made of them."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tfmammo.metrics.segmentation import Paired, bootstrap_interval, paired_test
from tfmammo.metrics.summary import (
    Measure,
    Printed,
    Row,
    Table,
    convert_units,
    correct_p,
    make_tables,
    summarize,
    write_csv,
)

MEASURES = {"dice": Measure("Dice", "%", 100, 1), "psnr": Measure("PSNR", "dB", 1, 2)}
PATIENTS = np.array(["a", "a", "b", "c", "c", "d", "e", "f", "g"])
N = len(PATIENTS)


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


def row(*values, difference, low=np.nan, high=np.nan, p, **more):
    """A row that is compared with CAN's."""
    return Row(
        *values,
        against="CAN",
        difference=difference,
        difference_low=low,
        difference_high=high,
        p=p,
        **more,
    )


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {
        name: {"dice": rng.random(N), "psnr": rng.uniform(10, 30, N)}
        for name in ("CAN", "U-Net", "FCN-8s")
    }


def test_rows_are_means_intervals_and_tests(scores):
    rows = {
        (row.model, row.measure): row for row in summarize(scores, PATIENTS, samples=300, seed=5)
    }
    assert len(rows) == 6
    for (model, measure), row in rows.items():
        values = scores[model][measure]
        assert (row.n, row.patients, row.mean) == (N, 7, values.mean())
        assert (row.low, row.high) == bootstrap_interval(values, PATIENTS, 300, 5)
    row = rows["U-Net", "dice"]
    expected = paired_test(scores["U-Net"]["dice"], scores["CAN"]["dice"], PATIENTS, 300, 5)
    assert Paired(row.difference, row.difference_low, row.difference_high, row.p) == expected
    assert np.isnan([rows["CAN", "dice"].difference, rows["CAN", "dice"].p]).all()


def test_every_pair_on_request(scores):
    rows = [
        row
        for row in summarize(scores, PATIENTS, samples=300, compare="pairs")
        if row.measure == "dice"
    ]
    assert [(row.model, row.against) for row in rows] == [
        ("CAN", ""),
        ("U-Net", "CAN"),
        ("FCN-8s", "CAN"),
        ("FCN-8s", "U-Net"),
    ]
    expected = paired_test(scores["FCN-8s"]["dice"], scores["U-Net"]["dice"], PATIENTS, 300)
    assert (rows[-1].difference, rows[-1].p) == (expected.difference, expected.p)
    means, differences = make_tables(rows, MEASURES, "title", samples=300)
    assert [line[0] for line in means.body] == ["CAN", "U-Net", "FCN-8s"]
    assert differences.title == "Differences of every pair"
    assert [line[0] for line in differences.body] == [
        "U-Net - CAN",
        "FCN-8s - CAN",
        "FCN-8s - U-Net",
    ]
    assert "Holm's correction for 3 comparisons" in differences.notes[0]


def test_an_image_without_a_value_is_left_out_for_all_models(scores):
    scores["CAN"]["psnr"][2] = np.inf
    scores["U-Net"]["psnr"][5] = np.nan
    scores["U-Net"]["dice"][:] = np.nan
    rows = summarize(scores, PATIENTS, samples=100)
    assert [(row.model, row.measure, row.n, row.patients) for row in rows] == [
        ("CAN", "psnr", 7, 5),
        ("U-Net", "psnr", 7, 5),
        ("FCN-8s", "psnr", 7, 5),
    ]
    assert rows[0].mean == pytest.approx(scores["CAN"]["psnr"][[0, 1, 3, 4, 6, 7, 8]].mean())


ROWS = [
    Row("CAN", "dice", 9, 7, 0.912, 0.9, 0.9251),
    row("U-Net", "dice", 9, 7, 0.9, 0.88, 0.91, difference=-0.012, low=-0.02, high=0.001, p=0.0004),
    Row("CAN", "psnr", 6, 5, 20.123, np.nan, np.nan),
    row(
        "U-Net",
        "psnr",
        6,
        5,
        21.0,
        np.nan,
        np.nan,
        difference=0.877,
        low=np.nan,
        high=np.nan,
        p=np.nan,
    ),
]
PAPER = {"U-Net": Printed({"dice": 0.905, "psnr": 22.0})}


def test_tables_by_hand():
    means, differences = make_tables(ROWS, MEASURES, "title", PAPER)
    assert means.header == ["", "Dice, %", "PSNR, dB"]
    assert means.body == [
        ["CAN", "91.2\n[90.0, 92.5]", "20.12"],
        ["U-Net", "90.0\n[88.0, 91.0]", "21.00"],
        ["U-Net, as printed", "90.5", "22.00"],
    ]
    few = (
        "PSNR. No interval and no p: 5 patients are fewer than 6, and flipping them gives no p "
        "below 0.062."
    )
    assert means.notes == (
        "Dice. In brackets: 95 % interval, percentile bootstrap that draws whole patients.",
        few,
    )
    assert differences.title == "Differences from CAN"
    assert differences.body == [["U-Net", "-1.2\n[-2.0, +0.1]\np < 0.001", "+0.88"]]
    assert (
        differences.notes[0].startswith("Dice. p: two-sided permutation test that flips")
        and differences.notes[1] == few
    )
    assert (
        "one comparison, no correction; 7 patients can give no p below 0.016."
        in differences.notes[0]
    )


def test_what_a_paper_prints_of_other_patches_says_so():
    elsewhere = {"U-Net": Printed({"dice": 0.905}, "on inbreast")}
    assert make_tables(ROWS, MEASURES, "title", elsewhere)[0].body[-1] == [
        "U-Net, as printed (on inbreast)",
        "90.5",
        "-",
    ]


def test_p_is_corrected_for_the_comparisons_of_its_measure():
    rows = [
        Row("A", "dice", 9, 7, 0.9, 0.8, 0.95),
        row("B", "dice", 9, 7, 0.9, 0.8, 0.95, difference=0.1, p=0.02),
        row("C", "dice", 9, 7, 0.9, 0.8, 0.95, difference=0.1, p=0.3),
        row("D", "dice", 9, 7, 0.9, 0.8, 0.95, difference=0.1, p=0.04),
        row("B", "psnr", 9, 7, 20.0, 19.0, 21.0, difference=0.1, p=0.02, method="jackknife"),
    ]
    assert [one.p_corrected for one in correct_p(rows)] == pytest.approx(
        [np.nan, 0.06, 0.3, 0.08, 0.02], nan_ok=True
    )
    assert [one.p for one in correct_p(rows)] == pytest.approx([one.p for one in rows], nan_ok=True)
    differences = make_tables(rows, MEASURES, "title")[1]
    assert [line[1].split("\n")[-1] for line in differences.body] == [
        "p = 0.060",
        "p = 0.300",
        "p = 0.080",
    ]
    assert (
        differences.notes[0].startswith("Dice. ")
        and "Holm's correction for 3 comparisons" in differences.notes[0]
    )
    assert (
        differences.notes[1].startswith("PSNR. p: two-sided, Student's t on a jackknife")
        and "no correction" in differences.notes[1]
    )


def test_models_across_and_a_single_model():
    means, differences = make_tables(ROWS, MEASURES, "title", models_across=True)
    assert means.header == ["", "CAN", "U-Net"]
    assert means.body[0] == ["Dice, %", "91.2\n[90.0, 92.5]", "90.0\n[88.0, 91.0]"]
    assert differences.header == ["", "U-Net"] and len(differences.body) == 2
    (alone,) = make_tables(ROWS[::2], MEASURES, "title")
    assert [line[0] for line in alone.body] == ["CAN"]


def test_a_model_that_is_compared_with_nothing_has_no_line_of_differences():
    real = Row("real", "psnr", 9, 7, 25.0, 24.0, 26.0)
    means, differences = make_tables([*ROWS, real], MEASURES, "title")
    assert means.body[-1] == ["real", "-", "25.00\n[24.00, 26.00]"]
    assert [line[0] for line in differences.body] == ["U-Net"]
    assert len(make_tables([ROWS[0], real], MEASURES, "title")) == 1


def test_markdown_and_rich_show_the_same():
    table = Table("title", ["", "Dice, %"], [["CAN", "91.2\n[90.0, 92.5]"], ["U-Net", "90.0"]])
    assert (
        table.markdown()
        == "### title\n\n|  | Dice, % |\n| --- | ---: |\n| CAN | 91.2 [90.0, 92.5] |\n| U-Net | "
        "90.0 |\n"
    )
    table = replace(table, notes=("One note.", "Another."))
    assert table.markdown().endswith("| U-Net | 90.0 |\n\nOne note.\n\nAnother.\n")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert all(
        cell in text
        for cell in ("title", "Dice, %", "CAN", "91.2", "U-Net", "90.0", "One note.", "Another.")
    )


def test_csv_in_units(tmp_path):
    write_csv(tmp_path / "table.csv", [convert_units(row, MEASURES[row.measure]) for row in ROWS])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["mean"]) == pytest.approx(90.0) and float(
        rows[1]["difference_low"]
    ) == pytest.approx(-2.0)
    assert (rows[1]["unit"], rows[1]["p"], rows[0]["p"], rows[2]["low"]) == ("%", "0.0004", "", "")
    assert float(rows[3]["mean"]) == 21.0
