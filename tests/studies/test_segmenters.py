"""A comparison of segmentation models: its plan, its files, and every number of its methods."""

import json
import shutil

import pytest
from pydantic import ValidationError

from tests.facts import find, read_rows
from tests.known_networks import KnownCAN
from tfmammo import config, shipped
from tfmammo.config import DataConfig, TrainingConfig
from tfmammo.data import datasets, splits
from tfmammo.errors import ConfigError, ExportError
from tfmammo.models.can import CANConfig
from tfmammo.studies import segmenters
from tfmammo.studies.segmenters import ComparisonConfig, plan_steps
from tfmammo.studies.systems import check_steps
from tfmammo.tracking import export

DATA = {"name": "phantom", "phantoms": 48, "size": 32}


def make_config(**values):
    models = {"can": {"title": "CAN"}, "unet": {"title": "U-Net"}}
    return ComparisonConfig.model_validate(
        {"data": DATA, "models": models, "folds": 2, "seeds": 2, "samples": 200, **values}
    )


def test_the_plan_trains_each_model_on_each_fold_with_each_seed(tmp_path):
    mine = str(tmp_path / "mine.yaml")
    models = {
        "can": {"title": "CAN", "set": {"model": {"filters": [4, 8]}}},
        "unet": {"title": "U-Net", "config": mine},
    }
    wanted = make_config(training={"steps": 7}, models=models)
    steps = plan_steps(wanted, tmp_path, shipped.ROOT, "parent")
    assert [step.name for step in steps] == [
        f"{name}/fold{fold}/seed{seed}"
        for fold in (0, 1)
        for seed in (0, 1)
        for name in ("can", "unet")
    ]
    last = steps[-1]
    shared = {"data.folds=2", "data.size=32", "training.steps=7"}
    assert {"data.fold=1", "training.seed=1", *shared} <= {*last.overrides}
    assert mine in last.command and "model.filters=[4, 8]" not in last.overrides
    assert "model.filters=[4, 8]" in steps[0].overrides
    # the run that shows them all changes no result
    assert "tracking.parent=parent" in last.ignored_args and "parent" not in str(last.command)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"training": {"stepz": 7}}, r"can/fold0/seed0: .*training.stepz"),
        (
            {"models": {"can": {"title": "A"}, "cann": {"title": "B"}}},
            "cann/fold0.*cann.py",
        ),
        ({"models": {"can": {"title": "A"}, "unet": {"title": "A"}}}, "the same title"),
        ({"data": {**DATA, "split": "official"}}, "data.split"),
    ],
)
def test_what_a_run_would_refuse_is_refused_at_once(tmp_path, values, said):
    with pytest.raises((ConfigError, ValidationError), match=said):
        check_steps(plan_steps(make_config(**values), tmp_path, shipped.ROOT))


def test_models_are_picked_by_their_scripts():
    shipped_config = config.parse(ComparisonConfig, "compare")
    assert list(shipped_config.select(["segnet", "can"]).models) == ["segnet", "can"]
    for names, said in ((["can", "segnett"], "segnett"), (["can", "can"], "--models")):
        with pytest.raises(ConfigError, match=said):
            shipped_config.select(names)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison whose runs are networks that are known, written up."""
    output = tmp_path_factory.mktemp("comparison")
    wanted = make_config()
    training = TrainingConfig(batch_size=4, precision="float32").model_dump(mode="json")
    for fold in range(2):
        data = DataConfig(**DATA, folds=2, fold=fold)
        train, _ = splits.split(datasets.load_all_patches(data), data)
        config = {"training": training, "model": CANConfig().model_dump(mode="json")}
        card = {
            "name": "can",
            "step": 1200,
            "train_patients": sorted({*train.patient_ids.tolist()}),
            "data_fingerprint": f"f{fold}",
            "git_commit": "c0ffee",
            "git_dirty": "false",
            "precision": "float32",
            "config": {"data": data.model_dump(mode="json"), **config},
        }
        for name, level in {"can": 0.5, "unet": 0.7}.items():
            network = output / "networks" / name
            if not network.is_dir():  # one network for all runs of its model
                export.export(KnownCAN("can", 32, level), network, card)
            for seed in range(2):
                folder = output / f"{name}/fold{fold}/seed{seed}/export"
                shutil.copytree(network, folder)
                made = json.loads((folder / export.CARD).read_text())
                (folder / export.CARD).write_text(json.dumps(made | card))
    return wanted, output, segmenters.write_comparison(wanted, output)


def test_tables_methods_and_figures_are_written(finished):
    _, output, report = finished
    means = [fact for fact in read_rows(output) if fact.table == "means"]
    assert {fact.model for fact in means} == {"CAN", "U-Net", "whole patch", "centred disc"}
    assert find(read_rows(output), "U-Net", "dice", "differences", "CAN").images
    latex = (output / "table.tex").read_text()
    count = len(report.tables)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == count
    assert (output / "table.md").read_text().startswith("### ")
    assert (output / "figure.png").stat().st_size > 5000
    assert (output / "figure.pdf").read_bytes().startswith(b"%PDF")
    text = (output / "methods.md").read_text()
    patches = datasets.load_all_patches(DataConfig(**DATA))
    for number in (
        f"{len(patches)} patches of {len({*patches.patient_ids})} patients of phantom, 32 x 32 px",
        "context 1.3; lesions: mass",
        "the 0.5th to 99.5th percentile",
        "f0, f1.",
        "2 folds (seed 0)",
        "2 times per fold (seeds 0, 1), 4 times in all.",
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
        assert number in text, (number, text)
    assert not any(patient in text for patient in patches.patient_ids)


def test_networks_of_another_patch_size_are_refused(finished):
    wanted, output, _ = finished
    other = wanted.model_copy(update={"data": DataConfig(**{**DATA, "size": 64})})
    with pytest.raises(ExportError, match=r"data.size: .* takes patches of 32 px, not of 64"):
        segmenters.write_comparison(other, output)
