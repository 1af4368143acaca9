"""Each override list of configs/report.yaml changes what it names, and loses nothing else.

An override that replaces a mapping drops whatever the config set in it: `methods={unet: ...}` lost
the paper's hard border. A key is lost if its value changes and no override names it.
"""

import pytest
import yaml

from tfmammo import config as configuration
from tfmammo.apps.commands import find_schema
from tfmammo.apps.report import plan
from tfmammo.apps.report.config import SCALES, ReportConfig
from tfmammo.archives import phantom
from tfmammo.studies import detection
from tfmammo.studies.workflow import parse_step

COMPARED = ("models", "sets", "detectors")  # name -> run: which are compared is a command's choice
ARMS = ("generators", "methods")  # name -> config: an arm may be left out, but loses no key
# Arms of a study, or generators of a set, that a scale above smoke leaves out.
LEFT_OUT = {
    "blending_study": {"noise_prior", "vanilla"},
}


@pytest.fixture(scope="module")
def report(repository):
    shipped = configuration.parse(ReportConfig, repository / "configs/report.yaml")
    return plan.complete(shipped)


def flatten(value, prefix=""):
    """Every leaf by its dotted path; a list is a leaf."""
    if not isinstance(value, dict) or not value:
        return {prefix[:-1]: value}
    parts = [flatten(inner, f"{prefix}{key}.") for key, inner in value.items()]
    return {path: leaf for part in parts for path, leaf in part.items()}


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


def list_arms(paths, config):
    """The arms that lost paths are of, where the whole arm is left out."""
    arms = {tuple(path.split(".")[:2]) for path in paths if path.startswith(ARMS)}
    return {name for section, name in arms if name not in getattr(config, section)}


@pytest.mark.parametrize("scale", SCALES)
def test_no_override_loses_a_key_that_it_does_not_name(report, repository, tmp_path, scale):
    planned = plan.make_plan(report, scale, tmp_path, repository, report.commands)
    lost = {}
    for one in planned.planned:
        name, step = one.command, one.step
        schema = find_schema(report.commands[name].run)
        file = step.command[step.command.index("--config") + 1]
        paths = {
            path
            for path in list_lost(schema, file, step.overrides)
            if not path.startswith(tuple(f"{section}." for section in COMPARED))
        }
        arms = list_arms(paths, one.parsed)
        lost[name] = {path for path in paths if path.split(".")[1:2] not in [[arm] for arm in arms]}
        if scale != "smoke":
            assert arms <= LEFT_OUT.get(name, set()), name
    assert {name: paths for name, paths in lost.items() if paths} == {}


def test_a_replaced_mapping_loses_the_hard_border(repository):
    """The override by which the report pasted otherwise than the paper."""
    file = repository / "configs/study_infilling.yaml"
    method = 'methods={unet: {config: configs/synthesis_full.yaml, set: {generator: "RUN"}}}'
    lost = list_lost(detection.StudyConfig, file, [method])
    of_unet = {path for path in lost if path.startswith("methods.unet.")}
    ends = ("whole_patch", "feather", "shapes.gan", "shapes.plausible")
    assert of_unet == {f"methods.unet.set.{end}" for end in ends}
    assert not list_lost(detection.StudyConfig, file, ["methods.unet.set.generator=RUN"])


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_the_infilling_study_asks_the_papers_question(report, repository, tmp_path, scale):
    whole = plan.make_plan(report, scale, tmp_path, repository, ["infilling_study"])
    study = whole.planned[-1].parsed
    four = {"unet", "unet_no_margin", "crn", "crn_no_margin"}
    assert set(study.methods) == four and set(study.generators) == four | {"mask_gan"}
    assert study.data.pathologies == ("malignant",)
    assert study.base in study.copies and study.base >= 400
    assert max(study.copies) > study.base, "whether more copies still help is measured"
    steps = detection.plan_steps(study, tmp_path, repository, "parent")
    padding = {"small": 5 / phantom.SPACING, "paper": 100}[scale]  # px of 5 mm
    for step in steps:
        values = dict(one.split("=", 1) for one in step.overrides if "=" in one)
        if step.name.startswith("generators/"):
            schema = find_schema(
                f"train/{'mask_gan' if 'mask_gan' in step.name else 'infilling'}.py"
            )
            assert parse_step(step, schema, step.name).data.padding == padding
        if step.name.startswith("detectors/"):
            assert values["model.normal"] == "false", "normal films are for synthetic masses alone"
        if step.name.startswith("synthetic/"):
            assert (values["whole_patch"], values["feather"]) == ("true", "0")
            assert values["pathology"] == "malignant"
            assert "generators/mask_gan/" in values["shapes.gan"]
            assert values["shapes.plausible"] == "false", "every mask is inserted"


def test_masses_go_into_normal_mammograms(report, repository, tmp_path):
    """Fig. 4 shows normal mammograms before and after, pasted as in the paper."""
    for scale in ("small", "paper"):
        whole = plan.make_plan(report, scale, tmp_path, repository, ["infilling_mammograms"])
        config = whole.list_of("infilling_set")[0].parsed
        assert config.mammograms == "normal" and config.whole_patch and config.feather == 0
        assert config.shapes.gan and not config.shapes.plausible
    archive = report.commands["infilling_set"].archive
    assert archive == report.commands["infilling_mammograms"].archive
    assert archive["small"] == "cdd_cesm_normal"
