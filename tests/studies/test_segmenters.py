"""A comparison of segmentation models: its plan, its files, and every number of its methods."""

import csv
import json
import shutil

import pytest

from tests.known_networks import KnownCAN
from tfmammo import config, shipped
from tfmammo.apps.commands import SCHEMAS
from tfmammo.config import DataConfig, TrainingConfig
from tfmammo.data import datasets, splits
from tfmammo.errors import ConfigError, ExportError
from tfmammo.metrics.summary import Table
from tfmammo.models.can import CANConfig
from tfmammo.studies import segmenters
from tfmammo.studies.segmenters import ComparisonConfig, check_steps, plan_steps
from tfmammo.tracking import export

DATA = {"name": "phantom", "phantoms": 48, "size": 32}


def make_config(**values):
    models = {"can": {"title": "CAN"}, "unet": {"title": "U-Net"}}
    return ComparisonConfig.model_validate(
        {"data": DATA, "models": models, "folds": 2, "seeds": 2, "samples": 200, **values}
    )


def test_the_plan_trains_each_model_on_each_fold_with_each_seed(tmp_path):
    wanted = make_config(
        training={"steps": 7},
        models={
            "can": {"title": "CAN", "set": {"model": {"filters": [4, 8]}}},
            "unet": {"title": "U-Net", "config": str(tmp_path / "mine.yaml")},
        },
    )
    steps = plan_steps(wanted, tmp_path, shipped.ROOT, "parent")
    assert [step.name for step in steps] == [
        f"{name}/fold{fold}/seed{seed}"
        for fold in (0, 1)
        for seed in (0, 1)
        for name in ("can", "unet")
    ]
    last = steps[-1]
    assert {
        "data.fold=1",
        "data.folds=2",
        "data.size=32",
        "training.seed=1",
        "training.steps=7",
    } <= {*last.overrides}
    assert str(tmp_path / "mine.yaml") in last.command
    assert "model.filters=[4, 8]" in steps[0].overrides
    assert "model.filters=[4, 8]" not in last.overrides
    # the run that shows them all changes no result
    assert "tracking.parent=parent" in last.ignored_args and "parent" not in str(last.command)


def test_what_a_training_would_refuse_is_refused_at_once(tmp_path):
    wrong = make_config(training={"stepz": 7})
    with pytest.raises(ConfigError, match=r"models.can: .*training.stepz: unknown key"):
        check_steps(plan_steps(wrong, tmp_path, shipped.ROOT), SCHEMAS)
    unknown = make_config(models={"can": {"title": "CAN"}, "cann": {"title": "CANN"}})
    with pytest.raises(ConfigError, match="models.cann: there is no such training"):
        check_steps(plan_steps(unknown, tmp_path, shipped.ROOT), SCHEMAS)
    with pytest.raises(ValueError, match="two have the same title"):
        make_config(models={"can": {"title": "A"}, "unet": {"title": "A"}})
    with pytest.raises(ValueError, match=r"data.split must be patient"):
        make_config(data={**DATA, "split": "official"})


def test_models_are_picked_by_their_scripts():
    shipped_config = config.parse(ComparisonConfig, "compare")
    picked = shipped_config.select(["segnet", "can"])
    assert list(picked.models) == ["segnet", "can"]
    with pytest.raises(ConfigError, match="--models: segnett is none of can, unet, segnet, fcn8s"):
        shipped_config.select(["can", "segnett"])
    with pytest.raises(ConfigError, match="name two models or more"):
        shipped_config.select(["can", "can"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison whose trainings are networks that are known, written up."""
    output = tmp_path_factory.mktemp("comparison")
    wanted = make_config()
    levels = {"can": 0.5, "unet": 0.7}
    for fold in range(2):
        data = DataConfig(**DATA, folds=2, fold=fold)
        train, _ = splits.split(datasets.load_all_patches(data), data)
        card = {
            "name": "can",
            "step": 1200,
            "train_patients": sorted({*train.patient_ids.tolist()}),
            "data_fingerprint": f"f{fold}",
            "git_commit": "c0ffee",
            "git_dirty": "false",
            "precision": "float32",
            "config": {
                "data": data.model_dump(mode="json"),
                "training": TrainingConfig(batch_size=4, precision="float32").model_dump(
                    mode="json"
                ),
                "model": CANConfig().model_dump(mode="json"),
            },
        }
        for name, level in levels.items():
            network = output / "networks" / name
            if not network.is_dir():  # one network stands for all trainings of its model
                export.export(KnownCAN("can", 32, level), network, card)
            for seed in range(2):
                folder = output / f"{name}/fold{fold}/seed{seed}/export"
                shutil.copytree(network, folder)
                made = json.loads((folder / export.CARD).read_text())
                (folder / export.CARD).write_text(json.dumps(made | card))
    return wanted, output, segmenters.write_comparison(wanted, output)


@pytest.mark.slow
def test_tables_are_written_for_every_use(finished):
    _, output, tables = finished
    names = [row[0] for row in tables[0].body if "as printed" not in row[0]]
    assert names == ["CAN", "U-Net", "whole patch", "centred disc"]
    assert "U-Net - CAN" in [row[0] for row in tables[1].body]
    assert (output / "table.md").read_text().startswith("### ")
    latex = (output / "table.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == len(tables)
    with (output / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"CAN", "U-Net", "whole patch", "centred disc"}
    assert (output / "figure.png").stat().st_size > 5000
    assert (output / "figure.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_methods_have_every_number(finished):
    wanted, output, _ = finished
    text = (output / "methods.md").read_text()
    data = DataConfig(**DATA)
    patches = datasets.load_all_patches(data)
    patients = len({*patches.patient_ids})
    for sentence in (
        f"{len(patches)} patches of {patients} patients of phantom, 32 x 32 px",
        "crop mode square, context 1.3; lesions: mass",
        "the 0.5th to 99.5th percentile of each patch",
        "Data fingerprints of the trainings: f0, f1.",
        "Patients were dealt into 2 folds (seed 0)",
        "Each model was trained 2 times per fold (seeds 0, 1), 4 times in all.",
        "- CAN: 1,200 steps of 4 patches, rotated and flipped at random; Adam (learning_rate"
        " 0.0002",
        "float32; weights: inverter 2, generator 2.",
        "from a probability of 0.5 on",
        "Accuracy, Dice, Jaccard and MCC",
        "Holm's correction for 6 comparisons",
        "Draws: 200, seed 0.",
        "(commit c0ffee)",
        "tensorflow 2.",
    ):
        assert sentence in text, (sentence, text)
    assert not any(patient in text for patient in patches.patient_ids)
    assert wanted.folds == 2


def test_networks_of_another_patch_size_are_refused(finished):
    wanted, output, _ = finished
    other = wanted.model_copy(update={"data": DataConfig(**{**DATA, "size": 64})})
    with pytest.raises(ExportError, match=r"data.size: .* takes patches of 32 px, these have"):
        segmenters.write_comparison(other, output)


def test_latex_escapes_what_latex_would_read():
    table = Table("50 % & more", ["", "a_b"], [["x", "1\n[0, 2]"], ["y", "p < 0.001"]], ("A # B.",))
    text = table.latex()
    assert r"\caption{50 \% \& more}" in text and r" & a\_b \\" in text
    assert r"x & 1 [0, 2] \\" in text and r"y & p $<$ 0.001 \\" in text
    assert r"\begin{tabular}{lr}" in text and r"{\footnotesize A \# B.}" in text
