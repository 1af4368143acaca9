"""Tables come back from Markdown as they were written, and cells give their numbers."""

import pytest

from tfmammo.apps.report.tables import (
    find_cell,
    find_difference,
    negate,
    parse_cell,
    parse_markdown,
)
from tfmammo.metrics.summary import Table

MEANS = Table("phantom", ["", "Dice, %"], [["CAN", "91.7\n[90.0, 93.0]"], ["U-Net", "90.5"]])
APART = Table(
    "Differences from CAN",
    ["", "Dice, %"],
    [["U-Net", "-1.2\n[-2.0, -0.4]\np = 0.004"]],
    ("Holm.",),
)


def test_tables_come_back_as_they_were_written():
    means, apart = parse_markdown("\n".join([MEANS.markdown(), APART.markdown()]))
    assert means.title == "phantom" and means.header == ("", "Dice, %")
    assert means.body == (("CAN", "91.7 [90.0, 93.0]"), ("U-Net", "90.5"))
    assert apart.body == (("U-Net", "-1.2 [-2.0, -0.4] p = 0.004"),)
    assert apart.notes == ("Holm.",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("91.7 [90.0, 93.0]", (91.7, 90, 93, None)),
        ("22.6 ± 1.3 [16.2, 30.4]", (22.6, 16.2, 30.4, None)),
        ("-1.2 [-2.0, -0.4] p = 0.004", (-1.2, -2, -0.4, 0.004)),
        ("+0.017", (0.017, None, None, None)),
        ("1e-08", (1e-8, None, None, None)),
        ("1,234", (1234, None, None, None)),
        ("3.0 p < 0.001", (3, None, None, 0.001)),
    ],
)
def test_a_cell_gives_its_numbers(text, expected):
    cell = parse_cell(text)
    assert (cell.value, cell.low, cell.high, cell.p) == expected


@pytest.mark.parametrize("text", ["-", "", "n/a", "CAN 3"])
def test_a_cell_without_a_number_is_none(text):
    assert parse_cell(text) is None


def test_a_cell_is_found_whichever_way_the_table_lies_and_the_last_line_counts():
    across = Table("phantom", ["", "CAN", "U-Net"], [["SSIM, whole patch", "0.3", "0.4"]])
    arms = Table("recall", ["", "1, %"], [["real + 2 by x", "10"], ["real + 9 by x", "20"]])
    tables = parse_markdown("\n".join(table.markdown() for table in (MEANS, across, arms)))
    assert find_cell(tables, "*", "CAN", "Dice*").value == 91.7
    assert find_cell(tables, "*", "U-Net", "SSIM*").value == 0.4
    assert find_cell(tables, "recall", "real + * by x", "1, %").value == 20
    assert find_cell(tables, "other", "CAN", "Dice*") is None


def test_a_difference_is_found_whichever_way_it_was_tested():
    first = parse_markdown(APART.markdown())
    pairs = Table("Differences of every pair", ["", "Dice, %"], [["U-Net - CAN", "-1.2"]])
    for tables in (first, parse_markdown(pairs.markdown())):
        assert find_difference(tables, "U-Net", "CAN", "Dice*").value == -1.2
        assert find_difference(tables, "CAN", "U-Net", "Dice*").value == 1.2
    assert find_difference(first, "CAN", "SegNet", "Dice*") is None


def test_the_first_table_that_tests_two_models_counts_whatever_its_title():
    pairs = Table(
        "Differences of every pair",
        ["", "Dice, %"],
        [["U-Net - CAN", "-0.3\n[-0.9, +0.4]\np = 0.3"]],
        ("Holm.",),
    )
    pairs_first = parse_markdown("\n".join([pairs.markdown(), APART.markdown()]))
    assert find_difference(pairs_first, "U-Net", "CAN", "Dice*").value == -0.3
    assert find_difference(pairs_first[::-1], "U-Net", "CAN", "Dice*").value == -1.2


@pytest.mark.slow
def test_the_opposite_of_a_difference_keeps_its_p_and_turns_its_interval():
    cell = negate(parse_cell("-1.2 [-2.0, -0.4] p = 0.004"))
    assert (cell.value, cell.low, cell.high, cell.p) == (1.2, 0.4, 2, 0.004)
    assert cell.text == "+1.2 [+0.4, +2] p = 0.004"
