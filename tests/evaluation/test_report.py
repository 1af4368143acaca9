"""What evaluations share: groups, folds and runs as facts, sheets, printed numbers, the script."""

from argparse import Namespace

import cv2
import numpy as np
import pytest

from tests.facts import find, read_rows
from tfmammo.config import DataConfig, Frozen
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError
from tfmammo.evaluation import script, sheets
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig
from tfmammo.evaluation.report import ComparisonReport, Report
from tfmammo.evaluation.segmentation import PUBLISHED
from tfmammo.metrics.printed import Published
from tfmammo.metrics.resampling import bootstrap_interval, paired_test
from tfmammo.metrics.summary import Measure

MEASURES = {"dice": Measure("Dice", "%", 100, 1)}
CONFIG = EvaluationConfig(models={"A": "a", "B": "b"}, samples=200)


def make_report():
    return ComparisonReport(config=CONFIG, measures=MEASURES)


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


def compare(patches, protocol="unseen", folds=None):
    return Comparison(protocol, DataConfig(), patches, {}, folds or {}, {}, patches)


def test_each_group_has_its_means_intervals_and_tests(patches):
    first = np.random.default_rng(0).random(17)
    worse_on_malignant = first - np.tile([0, 0.1], 9)[:17]
    scores = {"A": {"dice": first}, "B": {"dice": worse_on_malignant}}
    report = make_report()
    report.add_groups(compare(patches), scores, ())
    assert not report.facts and not report.tables
    report.add_groups(compare(patches), scores, ("pathology", "shape", "margin"))
    malignant = np.arange(1, 16, 2)
    values = {name: of_model["dice"][malignant] for name, of_model in scores.items()}
    patients = patches.patient_ids[malignant]
    fact = find(report.facts, "B", "dice", "groups", subset="pathology=malignant")
    assert (fact.images, fact.patients) == (8, 8)
    expected = values["B"].mean(), *bootstrap_interval(values["B"], patients, samples=200)
    assert (fact.value, fact.low, fact.high) == pytest.approx([100 * one for one in expected])
    fact = find(report.facts, "B", "dice", "groups", "A", "pathology=malignant")
    test = paired_test(values["B"], values["A"], patients, samples=200)
    assert (fact.value, fact.p) == pytest.approx((-10, test.p))
    # Two comparisons of the attribute have a p-value: those of benign and of malignant masses.
    assert fact.p_corrected == pytest.approx(2 * fact.p)
    assert find(report.facts, "A", "dice", "groups", subset="margin=unknown").images == 1
    means, differences, of_shapes, *_ = report.tables
    assert means.title.startswith("By pathology (benign 8 of 8 patients, malignant 8 of 8 patients")
    names = [line[0] for line in means.body[:3]]
    assert names == ["A, benign", "B, benign", "A, malignant"]
    names = [line[0] for line in differences.body]
    assert "B, malignant - A, malignant" in names and "B, benign - A, malignant" not in names
    assert of_shapes.body[0][0] == "A, round"


def test_each_fold_has_a_mean_of_its_own(patches):
    """B's networks are named in another order, C has one. B has no value for A's worst patches,
    which are skipped for all; E has none anywhere.
    """
    folds = np.arange(17) % 2
    one = np.zeros(17, int)
    dice = {
        "A": np.where(folds == 0, 0.8, 0.6),
        "B": np.where(folds == 0, 0.7, 0.9),
        "C": np.full(17, 0.5),
        "E": np.full(17, np.nan),
    }
    dice["A"][:4] = 0.1
    dice["B"][:4] = np.nan
    scores = {name: {"dice": values} for name, values in dice.items()}
    report = make_report()
    report.add(compare(patches, "all", {"A": folds, "B": 1 - folds, "C": one}), scores, [])
    assert report.tables[-1].body == [
        ["A", "80.0, 60.0"],
        ["B", "70.0, 90.0"],
        ["C", "-, -"],
        ["E", "-, -"],
    ]
    assert find(report.facts, "B", "dice", "folds", subset="protocol=all;fold=1").value == 90
    alone = make_report()
    alone.add(compare(patches, folds={"B": one}), scores, [])
    assert len(alone.tables) == 1


def test_each_run_of_a_model_has_a_mean(patches):
    report = make_report()
    of_runs = [{"dice": np.full(17, 0.5)}, {"dice": np.full(17, 0.7)}]
    report.add_runs(compare(patches, "paper"), {"A": of_runs, "B": of_runs[:1]}, "dice", "note")
    assert report.tables[0].body == [["A", "50.0, 70.0", "14.14"]]
    fact = find(report.facts, "A", "dice", "runs", subset="protocol=paper;run=1")
    assert fact.value == pytest.approx(70)


def test_a_report_is_written_and_named_for_mlflow(tmp_path):
    facts = [
        MEASURES["dice"].make_fact("froc", "a b", "tpr@0.5", 0.5, subset="fold=0"),
        MEASURES["dice"].make_fact("differences", "a", "dice", 0.5, against="b"),
    ]
    report = Report(config=None, facts=facts, files={"some.csv": [{"a": 1}]})
    report.write(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rows.csv", "some.csv"}
    assert [fact.value for fact in read_rows(tmp_path / "out")] == [50, 50]
    assert report.list_metrics() == {"froc/fold=0/a b/tpr@0.5": 50}


@pytest.mark.parametrize(
    ("published", "archive", "is_leaky", "label"),
    [
        (PUBLISHED["CAN"], "inbreast", True, "CAN, as printed"),
        (PUBLISHED["CAN"], "inbreast", False, "CAN, as printed (a split that leaks)"),
        (PUBLISHED["CAN"], "x", False, "CAN, as printed (on inbreast, a split that leaks)"),
        (PUBLISHED["cGAN"], "inbreast", False, "CAN, as printed (a split of its own)"),
        (Published({}, "x", leaky=False), "x", True, "CAN, as printed (unseen patients)"),
    ],
)
def test_printed_rows_say_how_their_patches_differ(published, archive, is_leaky, label):
    assert published.label("CAN", archive, is_leaky) == label


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
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"sheet.png", "sheet-best-A.png", "sheet-worst-A.png"}
    for which, grey in (("best", 0), ("worst", 51)):
        assert cv2.imread(str(tmp_path / f"sheet-{which}-A.png"))[-10, 10, 0] == grey


class Settings(Frozen):
    rows: int = 1


def test_an_output_that_is_no_folder_is_refused_before_anything_is_computed(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("rows: 2\n")
    output = tmp_path / "table.md"
    output.touch()
    arguments = Namespace(config=config, set=[], output=output, print_config=False)
    with pytest.raises(ConfigError, match="table.md"):
        script.run_with(arguments, Settings, lambda *_: pytest.fail("it was computed"), "", "")
