"""A study of segmentation models: its plan, its rows, and tables made of rows alone."""

import pytest

from tests.commands import REPOSITORY, run_script_here
from tests.facts import find, read_csv, write_study
from tfmammo import config as configuration
from tfmammo import shipped
from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics.case_scores import RUNS, SCORES
from tfmammo.studies import segmentation
from tfmammo.studies.segmentation import StudyConfig, plan_runs, tabulate

TINY = {
    "training": {"steps": 2, "validate_every": 1, "precision": "float32", "deterministic": True},
    "models": {
        "CAN": {
            "script": "can",
            "set": {"model": {"filters": [4, 8, 8], "discriminator_filters": 4}},
        },
        "U-Net": {"script": "unet", "set": {"model": {"widths": [4, 8]}}},
    },
    "samples": 200,
}


def make_config(rows, **values):
    data = {"name": "phantom", "phantoms": 24, "size": 32}
    arms = {
        "unseen": {"folds": 2, "seeds": 2},
        "leak": {"set": {"data": {"split": "paper", "paper_samples": 40, "paper_test": 20}}},
    }
    content = {"name": "tiny", "rows": str(rows), "data": data, "arms": arms, **TINY, **values}
    return StudyConfig.model_validate(content)


def test_each_arm_is_planned_by_its_folds_and_seeds(tmp_path):
    planned = plan_runs(make_config(tmp_path), tmp_path, shipped.ROOT)
    assert [run.key for run in planned] == [
        *((arm, model, fold, "0") for arm, fold in (("unseen", "0"), ("unseen", "1"), ("leak", "0"))
          for model in ("CAN", "U-Net")),
        *(("unseen", model, fold, "1") for fold in ("0", "1") for model in ("CAN", "U-Net")),
    ]  # fmt: skip
    second, leaky, last = planned[2].train.overrides, planned[4].train.overrides, planned[-1].train
    assert {"data.split=patient", "data.folds=2", "data.fold=1", "training.seed=0"} <= {*second}
    assert {"data.split=paper", "data.seed=0"} <= {*leaky} and "data.folds=2" not in leaky
    assert "training.seed=1" in last.overrides and "model.widths=[4, 8]" in last.overrides
    with pytest.raises(ConfigError, match=r"arms.unseen.seeds"):
        plan_runs(
            make_config(tmp_path, arms={"unseen": {"seeds": {"V-Net": 1}}}), tmp_path, shipped.ROOT
        )


def test_an_arms_patches_are_scored_as_they_are_trained_on_whatever_its_split(tmp_path):
    arm = {"set": {"data": {"frame": "tight", "split": "official"}}}
    test = {"name": "phantom", "phantoms": 7, "frame": "loose"}
    config = make_config(tmp_path, arms={"tight": arm}, test=test, postprocess={"closing": 3})
    run = plan_runs(config, tmp_path, shipped.ROOT)[0]
    assert "data.frame=tight" in run.train.overrides and "data.frame=tight" in run.score.overrides
    assert {"data.phantoms=7", "postprocess.closing=3"} <= {*run.score.overrides}
    assert not any(text.startswith("data.split=") for text in run.score.overrides)
    plain = config.model_copy(update={"postprocess": None})
    assert segmentation._hash(config, run) != segmentation._hash(plain, run)


@pytest.mark.parametrize("folder", ["", "/elsewhere/"])
def test_the_committed_rows_are_those_of_the_shipped_config(tmp_path, folder):
    """A study goes on with its rows only while the same config hashes as it did, wherever the files
    of weights are.
    """
    overrides = [
        f"models.{name}.set.model.weights={folder}vgg19.npz" for name in ("SegNet", "FCN-8s")
    ]
    study = configuration.parse(StudyConfig, "study_can", overrides if folder else ())
    study = study.model_copy(update={"rows": REPOSITORY / study.rows})
    made = {tuple(row.values())[:4] for row in read_csv(study.rows / RUNS)}
    assert made
    missing = segmentation.find_missing(study, plan_runs(study, tmp_path, shipped.ROOT))
    assert not made & {run.key for run in missing}


def test_tables_say_what_arms_are_compared_on(tmp_path):
    patients = [f"p{number}" for number in range(12)]
    rows = [("unseen", "CAN", 0, patient, f"{patient}-0", 0.8) for patient in patients]
    rows += [("leak", "CAN", 0, patient, f"{patient}-0~3", 0.9) for patient in patients[:8]]
    write_study(tmp_path, rows)
    leak = {"set": {"data": {"split": "paper"}}}
    arms = {"unseen": {"folds": 2}, "not yet run": {}, "leak": leak}
    report = tabulate(make_config(tmp_path, arms=arms))
    assert find(report.facts, "CAN", "dice", "arms", "CAN", "arm=leak;less=unseen")
    assert find(report.facts, "CAN", "dice", subset="arm=leak")
    assert "8 masses of 8 patients" in report.tables[-1].title
    printed = [line[0] for table in report.tables for line in table.body if "printed" in line[0]]
    assert printed == [
        "CAN, as printed (on inbreast, a split that leaks)",
        "CAN, as printed (on inbreast)",
    ]


def test_p_of_arms_is_corrected_over_all_pairs_of_arms_and_models(tmp_path):
    rows = [
        (arm, model, 0, f"p{number}", f"p{number}-0", dice + 0.001 * number * (model == "CAN"))
        for arm, dice in (("unseen", 0.8), ("leak", 0.9), ("far", 0.7))
        for model in ("CAN", "U-Net")
        for number in range(8)
    ]
    write_study(tmp_path, rows)
    arms = {"unseen": {}, "leak": {}, "far": {}}
    report = tabulate(make_config(tmp_path, arms=arms, samples=1000))
    facts = [fact for fact in report.facts if fact.table == "arms"]
    assert [fact.p for fact in facts] == [2**-7] * 4  # all eight differences have one sign
    assert [fact.p_corrected for fact in facts] == [4 * 2**-7] * 4
    for table in report.tables[-2:]:
        assert all(line[1].endswith("p = 0.031") for line in table.body)
        assert "Holm's correction for 4 comparisons" in table.notes[0]


def test_arms_without_a_common_lesion_are_not_compared(tmp_path):
    """A whole mammogram is a case of its own."""
    patients = [f"p{number}" for number in range(8)]
    rows = [("loose", "CAN", 0, patient, f"{patient}#0", 0.8) for patient in patients]
    rows += [("full", "CAN", 0, patient, f"{patient}#full", 0.4) for patient in patients]
    write_study(tmp_path, rows)
    report = tabulate(make_config(tmp_path, arms={"loose": {}, "full": {}}))
    assert not [fact for fact in report.facts if fact.table == "arms"]
    assert find(report.facts, "CAN", "dice", subset="arm=full").images == 8


@pytest.mark.long
def test_a_study_goes_on_with_its_rows_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows"
    models = {"CAN": TINY["models"]["CAN"]}
    arms = {"unseen": {"folds": 2}, "leak": make_config(rows).arms["leak"]}
    config = make_config(rows, arms=arms, models=models)
    file = tmp_path / "study.yaml"
    file.write_text(config.model_dump_json(exclude_unset=True))
    script = REPOSITORY / "evaluate/segmentation.py"
    store = ("--set", f"tracking_uri=sqlite:///{tmp_path}/store.db")
    run_script_here(script, "--study", "can", "--config", file, *store)
    assert (tmp_path / "store.db").exists() and not (tmp_path / "mlflow.db").exists()
    scores, runs = read_csv(rows / SCORES), read_csv(rows / RUNS)
    assert len(runs) == 3 and {run["steps"] for run in runs} == {"2"}
    by_run = [(row["arm"], row["model"], row["fold"], row["case"]) for row in scores]
    assert len(by_run) == len(set(by_run))
    assert {row["model"] for row in scores} == {"CAN", "whole patch", "centred disc"}
    unseen = {row["case"] for row in scores if row["arm"] == "unseen"}
    copies = [row for row in scores if (row["arm"], row["model"]) == ("leak", "CAN")]
    assert len(copies) == 20 and {row["case"].partition("~")[0] for row in copies} <= unseen

    other = tmp_path / "elsewhere"
    assert segmentation.find_missing(config, plan_runs(config, other, shipped.ROOT)) == []
    longer = {**TINY["training"], "steps": 3}
    changed = make_config(rows, arms=arms, models=models, training=longer)
    with pytest.raises(DataError, match="runs.csv"):
        segmentation.find_missing(changed, plan_runs(changed, other, shipped.ROOT))
