"""The plan of the shipped config: valid at each scale, each step after what it needs."""

import json
import shlex
from pathlib import Path

import pytest

from tfmammo import config as configuration
from tfmammo.apps.report import facts, plan, runner, work
from tfmammo.apps.report.config import SCALES, ReportConfig, TrainedConfig
from tfmammo.apps.report.items import FACT_KEYS
from tfmammo.apps.report.runner import Options
from tfmammo.errors import ConfigError

EPOCHS = "the paper: 150 epochs"
CBIS, CESM = "CBIS-DDSM mass patches", "CDD-CESM, scaled to 512 px"
# Facts of earlier settings, with what has changed since.
OUTDATED = {
    "segmenters": "runs in folders without their seed",
}


def change(config, name, **update):
    """Return a config with another command."""
    command = config.commands[name].model_copy(update=update)
    return config.model_copy(update={"commands": {**config.commands, name: command}})


def read_models(planned):
    (models,) = [text for text in planned.step.overrides if text.startswith("models=")]
    return json.loads(models.partition("=")[2])


@pytest.mark.parametrize("scale", SCALES)
def test_the_plan_of_each_scale_is_valid(whole, scale):
    planned = whole[scale].plan.planned
    names = [one.step.name for one in planned]
    assert len(set(names)) == len(names) > 20
    for place, one in enumerate(planned):
        assert set(one.step.depends_on) <= set(names[:place])
    skipped = {
        "smoke": {"can_synthesis_inbreast", "can_defects_inbreast", "cgan_detectors_inbreast"},
        "small": set(),
        "paper": {"cgan_detectors_inbreast"},
    }
    assert set(whole[scale].plan.skipped) == skipped[scale]


def test_every_command_serves_an_item(config, whole):
    needed = {one.command for report in whole.values() for one in report.plan.planned}
    assert needed == set(config.commands)


def test_folds_and_seeds_become_steps_and_an_evaluation_gets_them_all(whole):
    steps = {one.step.name: one for one in whole["small"].plan.planned}
    assert {f"can/seed{seed}" for seed in range(3)} < set(steps)
    assert "training.seed=2" in steps["can/seed2"].step.overrides
    assert read_models(steps["can_segmentation"])["CAN"] == [f"/out/can/seed{n}" for n in range(3)]
    assert read_models(steps["segmenters"])["CAN"] == "/out/can/seed0"  # one by its number
    assert "/out/blending/fold0/seed0/split.json" in " ".join(steps["blending_set"].step.overrides)
    steps = {one.step.name: one for one in whole["paper"].plan.planned}
    assert "data.fold=2" in steps["can/fold2"].step.overrides
    assert len(read_models(steps["can_synthesis"])["CAN"]) == 3


def test_of_a_numbered_command_only_that_run_is_made(complete, repository):
    report = runner.plan_report(complete, Options("small", ("audit",)), Path("/out"), repository)
    names = [one.step.name for one in report.plan.planned]
    assert names == ["can/seed0", "audit_can", "infilling_unet/fold0", "audit_infilling"]
    assert report.plan.planned[1].step.depends_on == ("can/seed0",)
    broken = change(complete, "audit_can", set=({"model": "can/3"},))
    with pytest.raises(ConfigError, match="can/3 is none of the 3 runs of can at the scale small"):
        runner.plan_report(broken, Options("small", ("audit",)), Path("/out"), repository)


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"set": ("model.lambda_3=1",)}, r"commands.can: .*can.yaml: model.lambda_3: unknown key"),
        ({"paper": ("model.lambda_3=1",)}, "model.lambda_3: unknown key"),  # whose scale is told
        ({"set": ({"model.weights": "nothing"},)}, "commands.nothing: is missing, and"),
        ({"set": ({"model.weights": "can_unet"},)}, "can_unet: needs itself"),
        ({"run": "train/missing.py"}, "the config of train/missing.py is not known"),
    ],
)
def test_a_wrong_command_is_found_before_anything_runs(complete, repository, update, said):
    broken = change(complete, "can", **update)
    if "can_unet" in str(update):
        broken = change(broken, "can_unet", set=({"model.weights": "can"},))
        said = "needs itself, by "
    with pytest.raises(ConfigError, match=said):
        runner.plan_report(broken, Options("small", ("can_table1",)), Path("/out"), repository)


def test_what_lacks_its_data_is_skipped_with_all_that_needs_it(repository, tmp_path):
    def read(values, *only, scale="small"):
        own = configuration.parse(ReportConfig, repository / "configs/report.yaml", values)
        return runner.plan_report(own, Options(scale, only), tmp_path, repository).plan

    found = read([], "can_table1")
    reason = "needs CBIS-DDSM mass patches: set data.cbis_patches.root"
    assert not found.planned and found.skipped == {"can_segmentation": reason}
    found = read(["data.cbis_patches.root=DIR"], "segmenters")
    reason = "needs predictions of another tool: set predictions.nnunet"
    assert not found.planned and found.skipped == {"segmenters": reason}
    found = read(["data.inbreast.root=DIR"], "blending_fig4", scale="paper")
    assert found.skipped == {"blending_study": "needs a published checkpoint: set checkpoints.coco"}


def test_weights_and_predictions_count_by_their_content(repository, tmp_path):
    weights, masks = tmp_path / "VGG #19.npz", tmp_path / "masks"
    masks.mkdir()
    for path in (weights, masks / "b.png", masks / "a.png"):
        path.touch()
    values = [f"weights.vgg19='{weights}'", f"predictions.nnunet={masks}"]
    values += ["data.cbis_patches.root='patches #2'", "data.cdd_cesm.root=DIR"]
    own = configuration.parse(ReportConfig, repository / "configs/report.yaml", values)
    made = plan.make_plan(own, "small", tmp_path, repository, ["infilling_unet", "segmenters"])
    assert made.list_of("infilling_unet")[0].step.inputs == (weights,)
    (evaluation,) = made.list_of("segmenters")
    assert evaluation.step.inputs == (masks / "a.png", masks / "b.png")
    assert read_models(evaluation)["nnU-Net"] == f"masks:{masks}"
    assert made.list_of("can")[0].step.inputs == ()
    assert made.list_of("infilling_unet")[0].parsed.model.weights == str(weights)
    assert made.list_of("can")[0].parsed.data.root.name == "patches #2"


def test_commands_for_readers_name_no_folder_of_a_machine(repository, tmp_path):
    values = [f"data.cbis_patches.root={tmp_path}/archive", f"predictions.nnunet={tmp_path}/masks"]
    own = configuration.parse(ReportConfig, repository / "configs/report.yaml", values)
    report = runner.plan_report(own, Options("small", ("segmenters",)), tmp_path, repository)
    lines = [report.format_command(one) for one in report.plan.planned]
    assert not [line for line in lines if str(tmp_path) in line or str(repository) in line]
    place = "--output runs/report-small/can/seed0 --set data.name=folder"
    assert any(line.startswith("python train/can.py") and place in line for line in lines)
    assert "data.root=DIR" in lines[0] and '"nnU-Net": "masks:masks"' in lines[-1]
    # on the terminal they are those that can be typed here
    typed = runner.print_plan(own, Options("small", ("segmenters",)), repository)
    assert f"data.root={tmp_path}/archive" in typed[0] and f"masks:{tmp_path}/masks" in typed[-1]


@pytest.fixture
def exports(complete, repository, tmp_path):
    """Exports of the three runs of can_long, and the card that each has but for its id."""
    step = plan.make_plan(complete, "small", tmp_path, repository, ["can_long"]).planned[0]
    card = {"format": 1, "name": "can", "serves": "generator", "functions": {}, "step": 126_000}
    card["config"] = step.parsed.model_dump(mode="json")
    paths = tuple(tmp_path / f"export{number}" for number in range(3))
    for path in paths:
        path.mkdir()
        (path / "card.json").write_text(json.dumps(card | {"id": path.name}))
    return paths, card


def test_exports_take_the_place_of_runs(complete, repository, tmp_path, exports):
    paths, card = exports
    longer = card | {"id": "export2", "step": 130_000}
    (paths[2] / "card.json").write_text(json.dumps(longer))
    trained = {"can_long": TrainedConfig(exports=paths, how="on a GPU")}
    own = complete.model_copy(update={"trained": trained})
    report = runner.plan_report(own, Options("small", ("can_fig2",)), tmp_path, repository)
    behind = report.plan.list_behind(["can_synthesis"])
    steps = {step.name: step for step in report.plan.steps}
    names = {one.step.name for one in behind if one.export is None}
    assert names == {*(f"can_pix2pix_long/seed{n}" for n in range(1, 4)), "can_synthesis"}
    assert set(steps["can_synthesis"].depends_on) == names - {"can_synthesis"}
    evaluation = behind[-1]
    assert read_models(evaluation)["CAN"] == list(map(str, paths))
    assert [path.parent for path in evaluation.step.inputs] == list(paths)
    lines = [report.format_command(one) for one in behind]
    of_can = [line for line in lines if line.startswith("# can_long, trained on a GPU, as: ")]
    assert len(of_can) == 3 and len(lines) == 7 and str(tmp_path) not in "".join(lines)
    described = work.describe_work(own, report.plan, report.papers, behind)
    text = (
        "can_long: 126,000 to 130,000 of 210,000 steps; can_pix2pix_long: 126,000 of 210,000 steps"
    )
    assert described.runs == 3 and described.work.startswith(f"{text}; ")


@pytest.mark.parametrize(
    ("update", "paths", "said"),
    [
        ({"step": 2}, (0, 1, 2), "export1 has made 2 steps, and .* asks for 126,000"),
        ({"id": "export0"}, (0, 1, 2), "are one run"),
        ({}, (0, 2, 2), "are one run"),
        ({}, (0, 1), "names 2 exports, and the scale small has 3 runs"),
        ({"config": {}}, (0, 1, 2), "has another model or data.size"),
        (None, (0, 1, 2), "trained.can_long: .*export1"),
    ],
)
def test_exports_that_are_no_such_runs(
    complete, repository, tmp_path, exports, update, paths, said
):
    every, card = exports
    path = every[1] / "card.json"
    if update is None:
        path.unlink()
    else:
        path.write_text(json.dumps(card | {"id": "export1"} | update))
    trained = {"can_long": TrainedConfig(exports=tuple(every[n] for n in paths))}
    own = complete.model_copy(update={"trained": trained})
    with pytest.raises(ConfigError, match=said):
        runner.plan_report(own, Options("small", ("can_fig2",)), tmp_path, repository)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trained.can_synthesis={exports: [a]}", "trained.can_synthesis: trains nothing"),
        ("commands.can.archive={small: nowhere}", "commands.can: there is no data.nowhere"),
    ],
)
def test_a_config_that_names_what_is_not_there(repository, override, said):
    with pytest.raises(ConfigError, match=said):
        configuration.parse(ReportConfig, repository / "configs/report.yaml", [override])


@pytest.mark.parametrize(
    ("scale", "command", "text", "data"),
    [
        ("small", "can", "12,000 of 210,000 steps; 128 of 256 px; 1/4 of the width", CBIS),
        ("paper", "can", "210,000 steps", "INbreast"),
        ("small", "blending", "6,000 steps; 64 of 256 px; 1/4 of the width", "INbreast"),
        ("small", "cgan_loose", f"4,000 steps ({EPOCHS}); 64 of 256 px; 1/2 of the width", CESM),
        ("small", "flow_short", "1,040 steps", CBIS),
    ],
)  # fmt: skip
def test_the_work_of_commands_in_words(complete, whole, scale, command, text, data):
    report = whole[scale]
    described = work.describe_work(
        complete, report.plan, report.papers, report.plan.list_behind([command])
    )
    assert (described.work, described.data) == (text, data)
    assert described.is_smaller == (" px" in text)


def test_names_of_papers_and_items_choose():
    assert {item.key for item in runner.choose_items(["can"])} == {
        "can_fig2", "can_fig3", "can_table1", "can_inbreast_images", "segmenters"
    }  # fmt: skip
    (item,) = runner.choose_items(["cgan_boxes"])  # whose facts are those of a table
    assert item.key == "cgan_table"
    assert not [item for item in runner.choose_items([], "paper") if item.study]
    with pytest.raises(ConfigError, match="--only table1: is no paper and no item"):
        runner.choose_items(["table1"])


def read_settings(command):
    """Read a command's words, and the last value of each key."""
    words, _, overrides = command.rpartition(", as: ")[2].partition(" --set ")
    values = dict(one.split("=", 1) for one in shlex.split(overrides) if "=" in one)
    return words, {key: shlex.quote(value).replace('"', "") for key, value in values.items()}


def test_facts_are_of_todays_settings(repository):
    files = {"vgg19": "vgg19", "alexnet": "alexnet", "heads": "lpips_alex"}
    files |= {"inception": "inception_fid2015"}
    values = [f"weights.{name}={file}.npz" for name, file in files.items()]
    values += [f"data.{key}.root=DIR" for key in ("cbis_patches", "cdd_cesm", "films")]
    own = configuration.parse(
        ReportConfig, repository / "configs/report.yaml", [*values, "predictions.nnunet=pred"]
    )
    report = runner.plan_report(own, Options("small"), Path("/out"), repository)
    found = facts.read(repository / "docs/results", FACT_KEYS)
    outdated = set()
    for item in report.items:
        about = found[item.key].about if item.key in found else None
        if about and not about.reason:
            behind = report.plan.list_behind(item.sources)
            wanted = [read_settings(report.format_command(one)) for one in behind]
            made = [read_settings(command) for command in about.commands]
            outdated |= {item.key} if any(one not in made for one in wanted) else set()
    assert outdated == set(OUTDATED)


@pytest.mark.parametrize("scale", SCALES)
def test_no_scorer_of_a_study_has_the_seed_of_a_judge(whole, scale):
    """A judge is trained like the classifiers that score what it chose: by the same seed it would
    be one of them.
    """
    planned = {one.step.name: one for one in whole[scale].plan.planned}

    def find(path):
        return planned[str(Path(path).relative_to("/out"))]

    studies = [one for one in planned.values() if one.command == "contextual_study"]
    for study in (one.parsed for one in studies):
        synthetic = find(study.experiment.model.synthetic).parsed
        for generator in {*study.generators.values(), *synthetic.generators.values()}:
            judge = find(find(generator).parsed.model.judge).parsed
            assert judge.training.seed not in study.seeds
    assert studies


def test_no_facts_about_edits_are_by_the_judge_that_chose_them(repository):
    for one in facts.read(repository / "docs/results", FACT_KEYS).values():
        if {row.table for row in one.rows} & {"effects", "separation", "gate"}:
            judges = {curve.values for curve in one.curves if curve.run.endswith("_judge")}
            others = {curve.values for curve in one.curves if not curve.run.endswith("_judge")}
            assert judges and not judges & others, one.name
