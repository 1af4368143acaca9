"""What a training run takes from the model that it starts from, and what it says if they differ."""

import os
from argparse import Namespace

import pytest

from tfmammo import config, shipped
from tfmammo.config import Experiment
from tfmammo.detection.light_head_rcnn import LightHeadRCNNConfig
from tfmammo.errors import ConfigError, ExportError
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
        (None, "model.filters=[8,8]", r"model.filters=\[4, 8, 8\].* \[8, 8\]"),
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
    with pytest.raises(ConfigError, match="light_head is of another system"):
        parse("models:/zoo/light_head")


def test_a_training_that_goes_on_does_not_need_its_start(start, tmp_path):
    experiment = parse(start)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(config.dump(experiment))
    gone = parse("no/such/run", output=tmp_path / "run")
    assert gone.model == experiment.model and gone.data.size == 32


def test_weights_that_do_not_fit_name_what_differs(start):
    experiment = parse(start, "model.upsampling=resize", f"model.lambda_1={3.0}")
    model = CAN(experiment.model, 32)
    with pytest.raises(ExportError, match="model.upsampling is transposed there and resize here$"):
        initial.assign(model.networks, str(start), experiment)
