"""The rows of the study on INbreast: partial, complete, and beside the leak."""

import csv

import pytest

from tfmammo import config as configuration
from tfmammo.apps.report import inbreast, pages
from tfmammo.apps.report.facts import Facts
from tfmammo.apps.report.items import find_item
from tfmammo.studies.segmentation import StudyConfig

DICE = {"CAN": 0.91, "U-Net": 0.89, "FCN-8s": 0.87, "SegNet": 0.85, inbreast.DISC: 0.70}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(inbreast, "SAMPLES", 2000)


def write(folder, runs):
    """Write the scores of runs: (arm, model, fold, seed) -> Dice of six patients a fold."""
    scores = [
        {
            **dict(zip(("arm", "model", "fold", "seed"), key, strict=True)),
            "patient": f"p{key[2]}{n}",
            "case": f"lesion{key[2]}{n}{copy}",
            **dict.fromkeys(inbreast.MEASURES, dice + 0.001 * n),
        }
        for key, dice in runs.items()
        for n in range(6)
        for copy in (("~0", "~1") if key[0] == "leak" else ("",))
    ]
    curves = [
        dict(zip(("arm", "model", "fold", "seed"), key, strict=True)) | {"step": 10, "dice": 0.5}
        for key in runs
        if key[1] != inbreast.DISC
    ]
    for name, rows in (("scores", scores), ("curves", curves), ("runs", [{"code": "abc"}])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def every(arm="unseen", seeds=1, folds=5, **dice):
    """All runs of models."""
    return {
        (arm, model.replace("_", "-"), fold, seed): value
        for model, value in dice.items()
        for fold in range(folds)
        for seed in range(seeds)
    }


def read(folder, runs) -> Facts:
    write(folder, runs)
    found = inbreast.make_facts(inbreast.read_study(folder))
    assert found is not None
    return found


def test_the_plan_is_the_configs(repository):
    study = configuration.parse(StudyConfig, repository / "configs/study_can.yaml")
    assert set(study.models) == set(inbreast.MODELS)
    planned = {name: (arm.folds, arm.seeds) for name, arm in study.arms.items()}
    assert planned == inbreast.PLANNED and inbreast.count_planned() == 72
    assert study.rows.name == inbreast.FOLDER


def test_before_the_first_run_there_is_nothing(tmp_path):
    assert inbreast.make_facts(inbreast.read_study(tmp_path)) is None


def test_unfinished_models_are_shown_and_decide_nothing(tmp_path):
    runs = every(CAN=0.91, folds=5) | every(**{"U_Net": 0.89}, folds=2)
    found = read(tmp_path, runs | every(**{inbreast.DISC: 0.7}))
    row = found.find("U-Net", "dice", table="progress", subset="protocol=unseen")
    assert (row.patients, round(row.value, 2)) == (12, 89.25)
    assert found.find("U-Net", "dice") is None and found.find("CAN", "dice").patients == 30
    assert found.find("CAN", "dice", "U-Net") is None
    item = find_item("can_table1")
    assert all(one.word == "not tested" for one in pages.judge_item(item, {inbreast.KEY: found}))
    text = " ".join(pages.build_page("can", {inbreast.KEY: found}).split())
    assert "**7 of 60 runs are finished.**" in text
    assert "| U-Net | 2 of 15 | 12 | 89.2" in text and "| SegNet | 0 of 15 | - |" in text


def test_complete_models_are_compared_on_the_papers_data(tmp_path):
    dice = {name.replace("-", "_"): value for name, value in DICE.items()}
    found = read(tmp_path, every(**dice))
    row = found.find("CAN", "dice", "U-Net")
    assert row.patients == 30 and round(row.value, 2) == 2 and row.p_corrected < 0.05
    assert found.list_repeats("folds", "CAN", "dice") == pytest.approx([91.25] * 5)
    assert not found.list_repeats("runs", "CAN", "dice")
    by_claim = {
        one.says.rpartition(" ")[2]: one
        for one in pages.judge_item(find_item("can_table1"), {inbreast.KEY: found})
    }
    assert by_claim["U-Net."].word == "holds" and by_claim["U-Net."].facts is found
    assert found.about.is_papers_data and by_claim["SegNet."].word == "not decided"
    more = read(tmp_path, every(seeds=2, **dice))
    assert len(more.list_repeats("runs", "CAN", "dice")) == 2
    assert not more.list_repeats("folds", "CAN", "dice")


def test_the_leak_is_compared_on_the_lesions_of_both(tmp_path):
    runs = every(CAN=0.91) | every("leak", CAN=0.95, folds=1)
    found = read(tmp_path, runs)
    row = found.find("CAN by the leaking split", "dice", "CAN", "leak")
    assert row.images == 6 and round(row.value, 2) == 4  # copies count once
    assert pages.LEAK in pages.draw_curves({inbreast.KEY: found})
    assert f"({pages.LEAK})" in pages.build_page("can", {inbreast.KEY: found})
