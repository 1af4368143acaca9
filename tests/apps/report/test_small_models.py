"""Every network that the report trains at the scale small can be built from its config.

A plan is parsed before anything runs, but only a network knows which sizes fit it.
"""

import re
import sys
from functools import partial
from pathlib import Path

import keras
import pytest

from tests.full_size import build_without_memory, count_each
from tfmammo import config as configuration
from tfmammo.apps.commands import find_schema
from tfmammo.apps.report import plan
from tfmammo.apps.report.config import SCALES, ReportConfig
from tfmammo.errors import ConfigError
from tfmammo.studies import detection
from tfmammo.studies.workflow import parse_step

ROOT = Path(__file__).parents[3]
# Their networks come from packages of other people, and keep to no size of ours.
FOREIGN = ("SSDConfig", "MaskRCNNConfig")
CLASSES = {"ShapeConfig": "ShapeCNN"}


@pytest.fixture(scope="module")
def steps():
    """The step of every training of the scale, those of studies included, and its schema."""
    config = configuration.parse(ReportConfig, ROOT / "configs/report.yaml")
    complete = plan.complete(config)
    planned = plan.make_plan(complete, "small", Path("runs"), ROOT, config.commands)
    trainings = {}
    for one in planned.planned:
        name, run = one.command, config.commands[one.command].run
        if one.is_training:
            trainings[name] = one.step, find_schema(run)
        elif run.endswith("--study infilling") or run.endswith("--study blending"):
            study = one.parsed
            for step in detection.plan_steps(study, Path("runs"), ROOT, ""):
                script = Path(step.command[0])
                if script.parent.name == "train":
                    schema = find_schema(f"train/{script.name}")
                    trainings[f"{name}/{step.name}"] = step, schema
    return trainings


@pytest.fixture(scope="module")
def trainings(steps):
    """Those whose networks differ."""
    experiments = {name: parse_step(step, schema, name) for name, (step, schema) in steps.items()}
    different = {
        (type(each.model), each.model.model_dump_json(), each.data.size): (name, each)
        for name, each in reversed(experiments.items())
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


def test_no_training_of_another_patch_size_inherits_the_windows_of_its_config(steps):
    """Windows are data.size over sampling.scale: at 64 px a scale made for 256 px would show a
    sixteenth of the tissue.
    """
    checked = []
    for name, (step, schema) in steps.items():
        data = parse_step(step, schema, name).data
        file = step.command[step.command.index("--config") + 1]
        shipped = configuration.parse(schema, ROOT / file).data
        draws_windows = Path(file).stem in ("blending", "classifier", "contextual")
        if draws_windows and data.size != shipped.size:
            checked.append(name)
            assert data.sampling.scale is None or data.sampling.scale != shipped.sampling.scale, (
                name
            )
            if Path(file).stem != "blending":  # which has no offset
                assert data.sampling.offset != shipped.sampling.offset, name
    assert {"blending", "blending_noise", "contextual_mass", "contextual_judge"} <= set(checked)
    assert any(name.startswith("blending_study/") for name in checked)


def test_mammograms_of_a_figure_are_of_held_out_patients():
    """Blending's Fig. 5, at every scale."""
    config = configuration.parse(ReportConfig, ROOT / "configs/report.yaml")
    complete = plan.complete(config)
    for scale in SCALES:
        planned = plan.make_plan(complete, scale, Path("runs"), ROOT, config.commands)
        sets = [one for one in planned.planned if re.fullmatch("blending_.*set", one.command)]
        assert len(sets) == (2 if scale == "smoke" else 4)
        for one in sets:
            name, overrides = one.command, one.step.overrides
            assert "patients.side=held_out" in overrides, (scale, name)
            fold = "" if scale == "smoke" else "/fold0"
            assert f"patients.split_file=runs/blending{fold}/split.json" in overrides, (scale, name)


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
    sizes = {
        row.split(" | ")[0]: row.split(" | ")[2].removesuffix(" |")
        for row in rows[start + 2 : start + 6]
    }
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
