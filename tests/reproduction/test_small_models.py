"""Every network that the report trains at the scale small can be built from its config.

A plan is parsed before anything runs, but only a network knows which sizes fit it.
"""

import sys
from functools import partial
from pathlib import Path

import keras
import pytest

from tests.full_size import build_without_memory, count_each
from tfmammo import config as configuration
from tfmammo.errors import ConfigError
from tfmammo.reproduction import plan
from tfmammo.reproduction.config import ReportConfig
from tfmammo.reproduction.schemas import find_schema
from tfmammo.studies import detection
from tfmammo.studies.workflow import parse_step

ROOT = Path(__file__).parents[2]
# Their networks come from packages of other people, and keep to no size of ours.
FOREIGN = ("SSDConfig", "MaskRCNNConfig")
CLASSES = {"ShapeConfig": "ShapeCNN"}


@pytest.fixture(scope="module")
def trainings():
    """All trainings of the scale that differ in their network, those of studies included."""
    config = configuration.parse(ReportConfig, ROOT / "configs/report.yaml")
    complete = plan._pretend_all_data(config)
    planned = plan.make_plan(complete, "small", Path("runs"), ROOT, config.commands)
    trainings = {}
    for name, steps in planned.steps_of.items():
        run = config.commands[name].run
        if run.startswith("train/"):
            trainings[name] = parse_step(steps[0], find_schema(run), name)
        elif run.endswith("--study infilling") or run.endswith("--study blending"):
            study = parse_step(steps[0], detection.StudyConfig, name)
            for step in detection.plan_steps(study, Path("runs"), ROOT, ""):
                script = Path(step.command[0])
                if script.parent.name == "train":
                    schema = find_schema(f"train/{script.name}")
                    trainings[f"{name}/{step.name}"] = parse_step(step, schema, name)
    different = {
        (type(each.model), each.model.model_dump_json(), each.data.size): (name, each)
        for name, each in reversed(trainings.items())
    }
    return dict(reversed(different.values()))


def build(experiment):
    config = experiment.model
    if getattr(config, "weights", None):
        config = config.model_copy(update={"weights": "none"})
    form = type(config).__name__
    model = getattr(
        sys.modules[type(config).__module__], CLASSES.get(form, form.removesuffix("Config"))
    )
    return model(config, experiment.data.size)


def test_studies_and_papers_are_among_them(trainings):
    scripts = {type(experiment.model).__name__ for experiment in trainings.values()}
    assert len(trainings) > 20 and len(scripts) >= 14, sorted(scripts)
    assert any("study" in name for name in trainings)


@pytest.mark.long
def test_each_network_fits_its_patches(trainings, monkeypatch):
    for name, experiment in trainings.items():
        if type(experiment.model).__name__ in FOREIGN:
            continue
        keras.utils.clear_session()
        try:
            built = build_without_memory(partial(build, experiment), monkeypatch)
        except ConfigError as error:
            pytest.fail(f"{name}: {error}")
        assert built.networks and all(count_each(built).values()), name


def test_cans_page_has_the_sizes_of_table_is_networks(trainings, monkeypatch):
    rows = (ROOT / "docs/papers/can.md").read_text(encoding="utf-8").splitlines()
    (start,) = (place for place, row in enumerate(rows) if row.startswith("| network | parameters"))
    sizes = {row.split(" | ")[0]: row.split(" | ")[1] for row in rows[start + 2 : start + 6]}
    for title, name in (
        ("| CAN's inverter, and its generator", "can"),
        ("| U-Net", "can_unet"),
        ("| SegNet", "can_segnet"),
        ("| FCN-8s", "can_fcn8s"),
    ):
        counts = count_each(build_without_memory(partial(build, trainings[name]), monkeypatch))
        counts.pop("discriminator", None)
        assert {sizes[title]} == {
            f"{count:,}" + " each" * (len(counts) > 1) for count in counts.values()
        }
