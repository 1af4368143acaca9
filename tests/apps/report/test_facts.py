"""Facts on disk, and validation curves."""

from dataclasses import replace

import pytest

from tests.apps.report.rows import difference, level, make_facts
from tfmammo.apps.report import curves, facts
from tfmammo.apps.report.curves import Curve
from tfmammo.errors import DataError

RISING = tuple(0.1 * n for n in range(16))


def test_facts_come_back_and_the_largest_scale_with_a_result_counts(tmp_path):
    for scale in ("smoke", "small"):
        facts.write(make_facts(level("CAN", 89.2, 87.8, 90.4), scale=scale), tmp_path)
    facts.write(make_facts(scale="paper", reason="needs INbreast"), tmp_path)
    (found,) = facts.read(tmp_path, ["can_table1", "can_fig2"]).values()
    assert found.about == make_facts().about and found.curves == make_facts().curves
    assert found.find("CAN", "dice").high == 90.4 and found.name == "can_table1.small"
    (tmp_path / "can_table1.small.csv").unlink()
    (tmp_path / "can_table1.small.curves.csv").unlink()
    (found,) = facts.read(tmp_path, ["can_table1"]).values()
    assert not found.rows and not found.curves and not found.are_flat()


def test_what_an_item_has_no_more_is_removed(tmp_path):
    facts.write(make_facts(level("CAN", 89.2)), tmp_path)
    facts.write(facts.Facts(make_facts(reason="withdrawn").about), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["can_table1.small.json"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("can_table1.small.json", '{"item": 3}', r"holds no facts \(item"),
        ("can_table1.small.json", "{", "can't be read"),
        ("can_table1.small.csv", "a,b\n", "its columns are not table, subset"),
        ("can_table1.small.curves.csv", "a,b\n", "its columns are not run, measure"),
        ("can_table1.small.curves.csv", "run,measure,step,value\na,dice,1,x\n", "read as curves"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, text, said):
    facts.write(make_facts(level("CAN", 89.2)), tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=f"{file}: .*{said}"):
        facts.read(tmp_path, ["can_table1"])


def test_a_difference_is_found_whichever_way_it_was_tested():
    found = make_facts(difference("U-Net", "CAN", -0.5, -0.8, -0.2, 0.004))
    row = found.find("CAN", "dice", "U-Net")
    assert (row.value, row.low, row.high, row.p_corrected) == (0.5, 0.2, 0.8, 0.004)
    assert found.find("U-Net", "dice", "CAN").value == -0.5
    for key in (("CAN", "dice"), ("CAN", "mcc", "U-Net"), ("CAN", "dice", "U-Net", "groups")):
        assert found.find(*key) is None


def test_without_normal_images_jafrocs_merit_is_another_one():
    row = replace(difference("unet", "real", 0.05, 0.01, 0.09, 0.03), measure="jafroc1")
    found = make_facts(row)
    assert found.find("unet", "jafroc", "real") == row
    both = make_facts(row, replace(row, measure="jafroc", value=0.02))
    assert both.find("unet", "jafroc", "real").value == 0.02


@pytest.mark.parametrize(
    ("values", "is_flat"),
    [
        (RISING, False),
        ((0.9,) * 8, True),
        ((0.9,) * 7, False),  # too short to say
        ((0.0,) * 8 + (0.5, 0.6, 0.5, 0.6, 0.6, 0.5, 0.6, 0.5), True),  # within two errors
        ((1.0,) * 12 + (1.005,) * 4, True),  # by less than a hundredth
        ((1.0,) * 12 + (1.02,) * 4, False),
    ],
)
def test_a_curve_is_flat_at_its_end(values, is_flat):
    assert Curve("can", "dice", tuple(range(len(values))), values).is_flat == is_flat


def test_every_run_needs_a_flat_curve():
    flat, rising = (
        Curve(name, "dice", tuple(range(len(values))), values)
        for name, values in (("a", (0.9,) * 8), ("b", RISING))
    )
    assert make_facts(curves=[flat]).are_flat()
    assert not make_facts(curves=[flat], trained=2).are_flat()  # of one nothing is known
    assert not make_facts(curves=[flat, rising], trained=2).are_flat()
    assert curves.count_ends([flat, rising]) == "1 of 2 validation curves are flat at the end"


def test_unknown_values_are_left_out_of_a_curve():
    made = facts.make_curve("can", "dice", {1: 0.123456, 2: float("nan"), 3: 1})
    assert (made.steps, made.values) == ((1, 3), (0.1235, 1.0))


def test_curves_are_drawn_a_colour_for_each_model():
    runs = [Curve(f"can/seed{n}", "dice", (1, 2, 3), (0.1, 0.2, 0.1 * n)) for n in range(2)]
    runs.append(Curve("a<b", "ssim", (1, 2), (0.5, 0.5)))
    drawn = curves.draw(runs)
    assert drawn == curves.draw(runs)
    assert drawn.count("<polyline") == 3 and "a&lt;b" in drawn and drawn.count(">can<") == 1
