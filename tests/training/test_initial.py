"""What a training run takes from the model that it starts from, and what it says if they differ."""

import os
from argparse import Namespace

import numpy as np
import pytest

from tests.models.every import TINY
from tfmammo import config, shipped
from tfmammo.config import Experiment
from tfmammo.detection.light_head_rcnn import LightHeadRCNNConfig
from tfmammo.errors import ConfigError
from tfmammo.models.can import CAN, CANConfig
from tfmammo.tracking import export
from tfmammo.training import initial

SCHEMA = Experiment[CANConfig]
WIDTHS = {"filters": [4, 8, 8], "discriminator_filters": 6}


@pytest.fixture
def start(tmp_path):
    """A narrow CAN of 32 px: its export."""
    model = CANConfig(**WIDTHS, lambda_1=3.0)
    card = {"name": "can", "config": {"data": {"size": 32}, "model": model.model_dump(mode="json")}}
    return export.export(CAN(model, 32), tmp_path / "start", card)


def parse(start, *overrides, name="can", output=None):
    values = [f"training.initial={start}", *overrides]
    return initial.parse_with_initial(SCHEMA, Namespace(config=name, set=values, output=output))


def test_widths_and_size_are_those_of_the_start_and_nothing_else_is(start):
    plain = config.parse(SCHEMA, "can")
    experiment = parse(start, "training.steps=3")
    assert experiment.data.size == 32 and experiment.model.filters == (4, 8, 8)
    assert experiment.model.discriminator_filters == 6
    assert experiment.model.lambda_1 == plain.model.lambda_1 != 3.0
    assert experiment.training.steps == 3
    assert parse(start, "data.size=32", "model.filters=[4,8,8]") == parse(start)
    assert parse("null") == plain
    shipped_file = shipped.ROOT / "configs/can.yaml"  # states no more than its name
    assert parse(start, name=os.path.relpath(shipped_file)) == parse(start)


@pytest.mark.parametrize(
    ("config", "override", "said"),
    [
        (None, "data.size=64", "data.size=32.* 64"),
        (None, "model.upsampling=resize", "model.upsampling=transposed.* resize"),
        (None, "model.filters=[8,8]", r"model.filters=\[4, 8, 8\].* \[8, 8\]"),
        (None, "model={filters: [8, 8]}", r"model.filters=\[4, 8, 8\].* \[8, 8\]"),
        ("{filters: [8, 8]}", "training.steps=3", r"model.filters=\[4, 8, 8\].* \[8, 8\]"),
    ],
)
def test_a_conflict_names_the_key_and_both_values(start, tmp_path, config, override, said):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: can\nmodel: {config}\n")
    with pytest.raises(ConfigError, match=f"training.initial: {start} has {said}"):
        parse(start, override, name=path if config else "can")


def test_a_config_of_ones_own_states_what_it_holds(start, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: can\nmodel: {lambda_1: 5}\n")
    assert parse(start, name=path).model.filters == (4, 8, 8)


@pytest.mark.parametrize(
    ("ours", "fixed", "is_alike"),
    [
        ("mine.npz", "/theirs/vgg19.npz", True),
        ("imagenet", "imagenet", True),
        ("none", "none", True),
        ("none", "imagenet", False),
        ({"name": "resnet", "weights": "a"}, {"name": "resnet", "weights": "b"}, True),
        ({"name": "resnet", "weights": "a"}, {"name": "cgan", "weights": "a"}, False),
    ],
)
def test_weights_that_are_replaced_may_be_of_another_file(ours, fixed, is_alike):
    key = "model.encoder" if isinstance(ours, dict) else "model.weights"
    assert initial._is_alike(key, ours, fixed) == is_alike


def test_the_detector_of_the_package_is_fine_tuned_without_its_settings():
    values = ["training.initial=models:/zoo/light_head"]
    options = Namespace(config="light_head_rcnn", set=values, output=None)
    experiment = initial.parse_with_initial(Experiment[LightHeadRCNNConfig], options)
    assert (experiment.data.size, experiment.data.canvas) == (384, None)
    model = experiment.model
    assert (model.weights, model.batch_norm, model.blocks) == ("none", "running", (1, 1, 1, 1))
    assert model.anchor_scales == (1, 2, 4)
    assert model.proposals == LightHeadRCNNConfig().proposals  # which no weight depends on


def test_a_start_of_another_system_is_named():
    with pytest.raises(ConfigError, match="light_head doesn't fit this system"):
        parse("models:/zoo/light_head")


def test_a_training_that_goes_on_does_not_need_its_start(start, tmp_path):
    experiment = parse(start)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(config.dump(experiment))
    gone = parse("no/such/run", output=tmp_path / "run")
    assert gone.model == experiment.model and gone.data.size == 32


@pytest.mark.parametrize("name", TINY)
def test_every_model_starts_from_its_own_export_under_the_papers_config(name, tmp_path):
    """Whatever decides a network's variables is taken from the card; dropout is the config's."""
    script = name.split(",")[0]
    kind, schema, values, size = TINY[name]
    tiny = schema(**values)
    content = {"data": {"size": size}, "model": tiny.model_dump(mode="json")}
    trained = kind(tiny, size)
    folder = export.export(trained, tmp_path / "start", {"name": script, "config": content})
    overrides = [f"training.initial={folder}"]
    overrides += ["model.weights=none"] if script == "infilling" else []  # of the loss
    options = Namespace(config=script, set=overrides, output=None)
    experiment = initial.parse_with_initial(Experiment[schema], options)
    fresh = kind(experiment.model, experiment.data.size)
    initial.assign(fresh.networks, str(folder), experiment)
    for key in export.read_card(folder)["functions"]:
        pairs = zip(
            trained.networks[key].trainable_variables,
            fresh.networks[key].trainable_variables,
            strict=True,
        )
        assert all(np.array_equal(theirs, ours) for theirs, ours in pairs)
