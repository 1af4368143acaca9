"""The overrides of configs/report.yaml: they lose no key, fit networks, ask what the papers ask."""

import re
import sys
from functools import partial
from pathlib import Path

import keras
import pytest
import yaml

from tests.full_size import build_without_memory, count_each
from tfmammo import config as configuration
from tfmammo.apps.commands import find_schema
from tfmammo.apps.report.config import SCALES
from tfmammo.errors import ConfigError
from tfmammo.studies import detection
from tfmammo.studies.workflow import parse_step

COMPARED = ("models", "sets", "detectors")  # name -> run: which are compared is a command's choice
ARMS = ("generators", "methods")  # name -> config: an arm may be skipped, but loses no key
# Arms of a study, or generators of a set, that a scale above smoke leaves out.
LEFT_OUT = {
    "blending_study": {"noise_prior", "vanilla"},
    # the films have annotations of masses alone
    "contextual_patches": {"calcification"},
    "contextual_study": {"calcification"},
}
# Their networks come from packages of other people, and keep to no size of ours.
FOREIGN = ("SSDConfig", "MaskRCNNConfig")


def flatten(value, prefix=""):
    """Every leaf by its dotted path; a list is a leaf."""
    if not isinstance(value, dict) or not value:
        return {prefix[:-1]: value}
    parts = [flatten(inner, f"{prefix}{key}.") for key, inner in value.items()]
    return {path: leaf for part in parts for path, leaf in part.items()}


def get_file(step):
    return step.command[step.command.index("--config") + 1]


def list_lost(schema, file, overrides):
    """The keys of a config file that overrides change without naming them."""
    before, after = (
        flatten(configuration.parse(schema, file, values).model_dump(mode="json"))
        for values in ((), overrides)
    )
    named = set()
    for override in overrides:
        key, _, text = override.partition("=")
        named |= set(flatten({key: yaml.safe_load(text)}))
    return {
        path
        for path, value in before.items()
        if after.get(path, "absent") != value
        and not any(
            path == name
            or path.startswith(f"{name}.")  # null in place of a mapping
            or (not value and name.startswith(f"{path}."))  # a mapping in place of nothing
            for name in named
        )
    }


@pytest.mark.parametrize("scale", SCALES)
def test_no_override_loses_a_key_that_it_does_not_name(complete, whole, scale):
    """`methods={unet: ...}` once replaced a mapping, and lost the paper's hard border."""
    for one in whole[scale].plan.planned:
        schema = find_schema(complete.commands[one.command].run)
        paths = list_lost(schema, get_file(one.step), one.step.overrides)
        arms = {tuple(path.split(".")[:2]) for path in paths if path.startswith(ARMS)}
        left_out = {name for section, name in arms if name not in getattr(one.parsed, section)}
        if scale != "smoke":
            assert left_out <= LEFT_OUT.get(one.command, set()), one.command
        for path in paths:
            section, *names = path.split(".")
            assert section in COMPARED or set(names[:1]) & left_out, (one.command, path)


@pytest.mark.parametrize(("scale", "pathology"), [("small", None), ("paper", "malignant")])
def test_masses_of_the_infilling_study_are_drawn_for_what_it_detects(
    whole, repository, tmp_path, scale, pathology
):
    (study,) = (one.parsed for one in whole[scale].plan.list_of("infilling_study"))
    steps = detection.plan_steps(study, tmp_path, repository, "parent")
    synthetic = [step for step in steps if step.name.startswith("synthetic/")]
    assert len({step.name.split("/")[1] for step in synthetic}) == 4
    for step in synthetic:
        values = dict(one.split("=", 1) for one in step.overrides if "=" in one)
        assert values.get("pathology") == pathology
        assert f"{tmp_path}/generators/mask_gan/" in values["shapes.gan"]


@pytest.mark.parametrize("scale", SCALES)
def test_mammograms_of_a_figure_are_of_held_out_patients(whole, scale):
    """Blending's Fig. 5."""
    planned = whole[scale].plan.planned
    sets = [one for one in planned if re.fullmatch("blending_.*set", one.command)]
    assert len(sets) == (2 if scale == "smoke" else 4)
    run = {"smoke": "", "small": "/fold0/seed0", "paper": "/fold0"}[scale]
    for one in sets:
        assert "patients.side=held_out" in one.step.overrides, one.command
        split = f"patients.split_file=/out/blending{run}/split.json"
        assert split in one.step.overrides, one.command


@pytest.fixture(scope="module")
def trainings(whole, config, repository):
    """Every training of the scale small, those of studies included: name -> step and config."""
    found = {}
    for one in whole["small"].plan.planned:
        if one.is_training:
            found[one.command] = one.step, one.parsed
        elif config.commands[one.command].run.endswith(("--study infilling", "--study blending")):
            for step in detection.plan_steps(one.parsed, Path("runs"), repository, ""):
                script = Path(step.command[0])
                if script.parent.name == "train":
                    name = f"{one.command}/{step.name}"
                    parsed = parse_step(step, find_schema(f"train/{script.name}"), name)
                    found[name] = step, parsed
    return found


def build(experiment):
    config = experiment.model
    if getattr(config, "weights", None):
        config = config.model_copy(update={"weights": "none"})
    name = {"ShapeConfig": "ShapeCNN"}.get(type(config).__name__)
    name = name or type(config).__name__.removesuffix("Config")
    return getattr(sys.modules[type(config).__module__], name)(config, experiment.data.size)


def test_no_training_of_another_patch_size_inherits_the_windows_of_its_config(
    trainings, repository
):
    """Windows are data.size over sampling.scale: at 64 px a scale made for 256 px would show a
    sixteenth of the tissue.
    """
    checked = []
    for name, (step, experiment) in trainings.items():
        data, file = experiment.data, Path(get_file(step))
        shipped = configuration.parse(type(experiment), repository / file).data
        if file.stem in ("blending", "classifier", "contextual") and data.size != shipped.size:
            checked.append(name)
            scale = data.sampling.scale
            assert scale is None or scale != shipped.sampling.scale, name
            if file.stem != "blending":  # which has no offset
                assert data.sampling.offset != shipped.sampling.offset, name
    assert {"blending", "blending_noise", "contextual_mass", "contextual_judge"} <= set(checked)
    assert any(name.startswith("blending_study/") for name in checked)


@pytest.mark.long
def test_each_network_fits_its_patches(trainings, monkeypatch):
    different = {
        (type(each.model), each.model.model_dump_json(), each.data.size): (name, each)
        for name, (_, each) in trainings.items()
    }
    assert len(different) > 20 and len({form for form, *_ in different}) >= 14
    for (form, *_), (name, experiment) in different.items():
        if form.__name__ in FOREIGN:
            continue
        keras.utils.clear_session()
        try:
            built = build_without_memory(partial(build, experiment), monkeypatch)
        except ConfigError as error:
            pytest.fail(f"{name}: {error}")
        assert built.networks and all(count_each(built).values()), name


def test_cans_page_has_the_sizes_of_table_is_networks(trainings, repository, monkeypatch):
    rows = (repository / "docs/papers/can.md").read_text(encoding="utf-8").splitlines()
    start = next(place for place, row in enumerate(rows) if row.startswith("| network | param"))
    cells = [row.strip("| ").split(" | ") for row in rows[start + 2 : start + 6]]
    sizes = {row[0]: row[2] for row in cells}
    for title, name in (
        ("CAN's inverter, and its generator", "can"),
        ("U-Net", "can_unet"),
        ("SegNet", "can_segnet"),
        ("FCN-8s", "can_fcn8s"),
    ):
        experiment = trainings[name][1]
        counts = count_each(build_without_memory(partial(build, experiment), monkeypatch))
        counts.pop("discriminator", None)
        each = " each" * (len(counts) > 1)
        assert {sizes[title]} == {f"{count:,}{each}" for count in counts.values()}
