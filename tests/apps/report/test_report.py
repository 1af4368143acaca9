"""The report: all items have a command or a reason, plans are valid, facts alone make the page."""

import itertools
import json
import re
import shlex
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tfmammo import config as configuration
from tfmammo import document
from tfmammo.apps.commands import find_schema
from tfmammo.apps.report import page, plan, report
from tfmammo.apps.report.config import SCALES, ReportConfig, TrainedConfig
from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.facts import Facts, read_facts, write_facts
from tfmammo.apps.report.items import ITEMS, find_item
from tfmammo.apps.report.report import Options
from tfmammo.document import TableFacts
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.printed import read_papers
from tfmammo.studies import workflow

PNG = b"\x89PNG fake"
SCRIPT = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "runs.txt").open("a") as file: file.write("x")
lines = "### means", "", "|  | Dice, % |", "| --- | ---: |", "| CAN | 9.0 |"
(folder / "table.md").write_text("\\n".join(lines))
(folder / "sheet.png").write_bytes(b"\\x89PNG fake")
(folder / "export").mkdir(exist_ok=True)
(folder / "export/card.json").write_text("{}")
"""


@pytest.fixture(scope="module")
def config(repository):
    shipped = configuration.parse(ReportConfig, repository / "configs/report.yaml")
    return shipped.model_copy(update={"readme": None})  # which a report would write to


@pytest.fixture(scope="module")
def complete(config):
    """The config with all data and packages available."""
    return plan._pretend_all_data(config)


def test_there_are_33_items_each_with_a_command_or_a_reason(config):
    keys = [f"{key}_{name}" for key, paper in read_papers().items() for name in paper.items]
    assert [item.key for item in ITEMS] == keys and len(keys) == 33
    for item in ITEMS:
        assert bool(item.commands) != bool(item.reason), item.key
        assert set(item.commands) <= set(config.commands), item.key
        if item.decided_by:
            assert find_item(item.decided_by).claims, item.key


def test_a_missing_readme_is_said_before_anything_runs(config, repository, tmp_path):
    elsewhere = config.model_copy(update={"readme": tmp_path / "README.md"})
    with pytest.raises(ConfigError, match="README.md: no such file; start in a checkout, or set"):
        report.run_report(elsewhere, Options(only=("cgan_shape",)), tmp_path / "out", repository)
    assert not list(tmp_path.iterdir())


def test_every_printed_number_is_on_the_page_with_its_row_and_column():
    text = document.render_markdown(page.build_page({}))
    for paper in read_papers().values():
        for item in paper.items.values():
            heading = f"### {paper.name}, {item.label}\n"
            assert text.count(heading) == 1
            section = text.split(heading)[1].split("\n#")[0]
            rows = [line.strip("|").split("|") for line in section.splitlines() if "|" in line]
            cells = [[cell.strip() for cell in row] for row in rows]
            for name, values in item.values.items():
                (row,) = [row for row in cells if row[0] == name]
                for column, value in values.items():
                    assert float(row[cells[0].index(column)]) == value


def test_no_printed_number_stands_in_the_code_as_well(repository):
    values = [
        value
        for paper in read_papers().values()
        for item in paper.items.values()
        for row in item.values.values()
        for value in row.values()
    ]
    numbers = {str(value) for value in values if len(str(value)) > len("0.123")}
    assert len(numbers) > 5
    for path in sorted((repository / "tfmammo").rglob("*.py")):
        text = path.read_text()
        assert not [number for number in numbers if number in text], path


def test_every_command_serves_an_item(config):
    needed = {
        name
        for scale in SCALES
        for name in plan.list_needed(
            config, scale, report.list_commands(report.choose_items([], scale))
        )
    }
    assert needed == set(config.commands)


@pytest.mark.parametrize("scale", SCALES)
def test_the_plan_of_each_scale_is_valid(complete, repository, tmp_path, scale):
    whole = report.plan_report(complete, Options(scale), tmp_path, repository)
    names = [step.name for step in whole.steps]
    assert len(set(names)) == len(names) > 20
    for place, step in enumerate(whole.steps):
        assert set(step.depends_on) <= set(names[:place])
    not_at_smoke = {
        "cgan_mask_rcnn",
        "control_study",
        "control_constant",
        "can_lattice",
        "can_leak",
        "can_rates",
        "can_unet_more",
        "detection_real",
        "infilling_all",
    }
    assert set(whole.left_out) <= (not_at_smoke if scale == "smoke" else set())


@pytest.mark.parametrize("scale", SCALES)
def test_no_scorer_of_a_study_has_the_seed_of_a_judge(complete, repository, tmp_path, scale):
    """A judge is trained like the classifiers that score what it chose: by the same seed it would
    be one of them.
    """
    whole = report.plan_report(complete, Options(scale), tmp_path, repository)
    commands = {
        step.name: (name, workflow.parse_step(step, find_schema(complete.commands[name].run), name))
        for name, steps in whole.steps_of.items()
        for step in steps
    }
    seen = 0
    for name, study in commands.values():
        if not complete.commands[name].run.startswith("evaluate/classification.py"):
            continue
        synthetic = commands[str(study.experiment.model.synthetic.relative_to(tmp_path))][1]
        for generator in {*study.generators.values(), *synthetic.generators.values()}:
            contextual = commands[str(Path(generator).relative_to(tmp_path))][1]
            judge = commands[str(Path(contextual.model.judge).relative_to(tmp_path))][1]
            assert judge.training.seed not in study.seeds, name
            seen += 1
    assert seen >= 3


def test_no_facts_about_edits_are_by_the_judge_that_chose_them(repository):
    patterns = ("*Score of a lesion*", "*told from normal*", "*Scores by the classifiers*")
    for facts in read_facts(repository / "docs/results").values():
        titles = [table.title for table in facts.tables]
        if any(fnmatchcase(title, pattern) for title in titles for pattern in patterns):
            judges = {one.values for one in facts.curves if one.training.endswith("_judge")}
            others = {one.values for one in facts.curves if not one.training.endswith("_judge")}
            assert judges and not judges & others, facts.item


def test_a_wrong_key_is_found_before_anything_runs(complete, repository, tmp_path):
    command = complete.commands["can"].model_copy(update={"set": ("model.lambda_3=1",)})
    broken = complete.model_copy(update={"commands": {**complete.commands, "can": command}})
    with pytest.raises(ConfigError, match=r"commands.can: .*can.yaml: model.lambda_3: unknown key"):
        report.plan_report(broken, Options("smoke", ("can",)), tmp_path, repository)
    # the extent of a small run is described by the paper's, when its facts are written
    command = complete.commands["can"].model_copy(update={"paper": ("model.lambda_3=1",)})
    broken = complete.model_copy(update={"commands": {**complete.commands, "can": command}})
    with pytest.raises(ConfigError, match="model.lambda_3: unknown key"):
        report.plan_report(broken, Options("small", ("can_table1",)), tmp_path, repository)


def test_other_weights_or_predictions_make_another_step(config, repository, tmp_path):
    weights = tmp_path / "vgg19.npz"
    masks = tmp_path / "masks"
    masks.mkdir()
    values = [f"weights.vgg19={weights}", f"predictions.nnunet={masks}"]
    values += ["data.cbis_patches.root=DIR", "data.cdd_cesm.root=DIR"]
    own = configuration.parse(ReportConfig, repository / "configs/report.yaml", values)
    paths = (weights, masks / "b.png", masks / "a.png")
    for path in paths:
        path.touch()
    wanted = ["infilling_unet", "segmenters"]
    steps = plan.make_plan(own, "small", tmp_path, repository, wanted).steps_of
    assert steps["infilling_unet"][0].inputs == (weights,)
    assert steps["segmenters"][0].inputs == (masks / "a.png", masks / "b.png")
    assert steps["can"][0].inputs == ()


def test_what_lacks_its_data_is_left_out_with_all_that_needs_it(config, repository, tmp_path):
    partial = report.plan_report(config, Options("small", ("can_table1",)), tmp_path, repository)
    assert not partial.steps
    reason = "needs CBIS-DDSM mass patches: set data.cbis_patches.root"
    assert partial.left_out == {"can_segmentation": reason}
    other = config.commands["can"].model_copy(update={"archive": {}})  # but what needs it
    commands = {**config.commands, "can": other}
    broken = config.model_copy(update={"commands": commands})
    assert not plan.make_plan(broken, "small", tmp_path, repository, ["can_segmentation"]).steps


def test_predictions_of_another_tool_are_a_folder_or_a_reason(config, repository, tmp_path):
    root = config.data["cbis_patches"].model_copy(update={"root": tmp_path})
    config = config.model_copy(update={"data": {**config.data, "cbis_patches": root}})
    wanted = Options("small", ("segmenters",))
    without = report.plan_report(config, wanted, tmp_path, repository)
    reason = "needs predictions of another tool: set predictions.nnunet"
    assert without.left_out == {"segmenters": reason} and not without.steps  # nothing for nothing
    config = config.model_copy(update={"predictions": {"nnunet": tmp_path / "predicted"}})
    whole = report.plan_report(config, wanted, tmp_path, repository)
    (models,) = [value for value in whole.steps[-1].overrides if "models=" in value]
    assert not whole.left_out and f"'masks:{tmp_path}/predicted'" in models
    shown = plan.show_plan(plan.hide_folders(config), "small", ["segmenters"]).steps[-1]
    assert "'masks:predicted'" in " ".join(shown.overrides)
    # on the terminal the commands are those that can be typed here
    assert f"'masks:{tmp_path}/predicted'" in "\n".join(
        report.print_plan(config, wanted, repository)
    )


def test_a_published_checkpoint_is_a_folder_or_a_reason(config, complete, repository, tmp_path):
    options = Options("paper", ("blending_table1",))
    whole = config.model_copy(update={"data": complete.data})
    without = report.plan_report(whole, options, tmp_path, repository)
    reason = "needs a published checkpoint: set checkpoints.coco"
    assert without.left_out == {"blending_study": reason}
    plans = report.plan_report(complete, options, tmp_path, repository)
    assert "detector.set.model.checkpoint=DIR" in plans.steps[-1].overrides


def test_exports_take_the_place_of_trainings(complete, repository, tmp_path):
    wanted = Options("small", ("can_fig2",))
    exports = tuple(tmp_path / f"export{number}" for number in range(3))
    trained = {"can_long": TrainedConfig(exports=exports, how="on a GPU")}
    config = complete.model_copy(update={"trained": trained})
    with pytest.raises(ConfigError, match=r"trained.can_long: .*export0"):
        report.plan_report(config, wanted, tmp_path, repository)
    (step, *_) = plan.make_plan(complete, "small", tmp_path, repository, ["can_long"]).steps
    planned = workflow.parse_step(step, find_schema("train/can.py"), "can_long")
    form = {"format": 1, "name": "can", "serves": "generator", "functions": {}}
    card = {"config": planned.model_dump(mode="json"), "step": 126_000, **form}
    for path in exports:
        path.mkdir()
        (path / "card.json").write_text(json.dumps(card | {"id": path.name}))
    whole = report.plan_report(config, wanted, tmp_path, repository)
    assert {step.name for step in whole.steps} == {
        *(f"can_pix2pix_long/seed{seed}" for seed in range(1, 4)),
        "can_synthesis",
    }
    assert [path.parent for path in whole.steps[-1].inputs] == list(exports)
    (models,) = [value for value in whole.steps[-1].overrides if "models=" in value]
    assert all(f"export{number}" in models for number in range(3)) and "can_long" not in models
    lines = report.print_plan(config, wanted, repository)
    of_can = [line for line in lines if line.startswith("# can_long, trained on a GPU, as: ")]
    assert "--output runs/report-small/can_long/seed2 --set" in of_can[1]
    assert len(of_can) == 3 and len(lines) == 7 and "can_long/seed2" in lines[-1]
    assert str(tmp_path) not in "".join(lines)
    assert plan.describe_extent(config, "small", ["can_synthesis"], repository).trainings == 3
    longer = card | {"id": "export1", "step": 130_000}
    (exports[1] / "card.json").write_text(json.dumps(longer))
    extent = plan.describe_extent(
        config, "small", ["can_synthesis"], repository, {"can_long/seed2": exports[1]}
    )
    assert extent.text.startswith(
        "can_long: 130,000 of 210,000 steps; can_pix2pix_long: 126,000 of 210,000 steps; "
    )
    (exports[1] / "card.json").write_text(json.dumps(card | {"step": 2}))
    with pytest.raises(ConfigError, match=r"export1 has made 2 steps, and .* asks for 126,000"):
        report.plan_report(config, wanted, tmp_path, repository)
    (exports[1] / "card.json").write_text(json.dumps(card | {"id": "export0"}))
    for twice in (exports, (exports[0], exports[2], exports[2])):
        same = {"can_long": TrainedConfig(exports=twice)}
        with pytest.raises(ConfigError, match="are one training"):
            report.plan_report(
                complete.model_copy(update={"trained": same}), wanted, tmp_path, repository
            )
    fewer = {"can_long": TrainedConfig(exports=exports[:2])}
    config = complete.model_copy(update={"trained": fewer})
    with pytest.raises(ConfigError, match="names 2 exports, and the scale small has 3 trainings"):
        report.plan_report(config, wanted, tmp_path, repository)


def test_of_trainings_made_elsewhere_an_item_names_those_that_it_reads(
    complete, repository, tmp_path
):
    exports = tuple(tmp_path / f"export{fold}" for fold in range(3))
    (step, *_) = plan.make_plan(complete, "small", tmp_path, repository, ["infilling_unet"]).steps
    planned = workflow.parse_step(step, find_schema("train/infilling.py"), "infilling_unet")
    form = {"format": 1, "name": "infilling", "serves": "generator", "functions": {}}
    for path in exports:
        path.mkdir()
        card = {"id": path.name, "step": 60_000, "config": planned.model_dump(mode="json")}
        (path / "card.json").write_text(json.dumps(card | form))
    trained = {"infilling_unet": TrainedConfig(exports=exports)}
    config = complete.model_copy(update={"trained": trained})
    wanted = ["audit_infilling"]  # of {infilling_unet:0}
    whole = plan.make_plan(config, "small", tmp_path, repository, wanted)
    (training,) = whole.trained["infilling_unet"]
    assert whole.exports == {"infilling_unet/fold0": exports[0]} == {training.name: exports[0]}
    assert [path.parent for path in whole.steps[0].inputs] == [exports[0]]
    shown = plan.show_plan(config, "small", wanted)
    lines = plan.format_commands(shown, plan.list_needed(config, "small", wanted), trained)
    assert sum(line.startswith("# infilling_unet, trained elsewhere") for line in lines) == 1
    all_of_them = plan.make_plan(config, "small", tmp_path, repository, ["infilling_realism"])
    assert len(all_of_them.trained["infilling_unet"]) == 3


def test_only_trainings_can_be_made_elsewhere(repository):
    with pytest.raises(ConfigError, match="trained.can_synthesis: is no training of `commands`"):
        configuration.parse(
            ReportConfig,
            repository / "configs/report.yaml",
            ["trained.can_synthesis={exports: [a]}"],
        )


def test_a_training_is_named_by_its_number(complete, repository, tmp_path):
    of_texture = report.plan_report(
        complete, Options("small", ("can_texture",)), tmp_path, repository
    )
    (models,) = [value for value in of_texture.steps[-1].overrides if "models=" in value]
    assert all(f"/can_textured/seed{seed}" in models for seed in range(3))
    beyond = complete.commands["can_texture"].model_copy(update={"small": ("x={can_textured:3}",)})
    commands = {**complete.commands, "can_texture": beyond}
    broken = complete.model_copy(update={"commands": commands})
    with pytest.raises(ConfigError, match=r"can_textured:3} is none of the 3 folders of can_text"):
        plan.make_plan(broken, "small", tmp_path, repository, ["can_texture"])


def test_folds_become_steps_and_an_evaluation_gets_them_all(complete, repository, tmp_path):
    of_paper = report.plan_report(complete, Options("paper", ("can_fig2",)), tmp_path, repository)
    steps = {step.name: step for step in of_paper.steps}
    assert {f"can/fold{fold}" for fold in range(3)} <= set(steps)
    assert "data.fold=2" in steps["can/fold2"].overrides
    (models,) = [value for value in steps["can_synthesis"].overrides if "models=" in value]
    assert models.count("/can/fold") == models.count("/can_pix2pix/fold") == 3
    assert set(steps["can_synthesis"].depends_on) == set(steps) - {"can_synthesis"}


def test_seeds_become_steps_of_each_fold(complete, repository, tmp_path):
    wanted = Options("small", ("can_table1", "segmenters"))
    steps = {
        step.name: step for step in report.plan_report(complete, wanted, tmp_path, repository).steps
    }
    assert "training.seed=2" in steps["can/seed2"].overrides
    (models,) = [value for value in steps["can_segmentation"].overrides if "models=" in value]
    assert models.count("/can/seed") == models.count("/can_fcn8s/seed") == 3
    models = [value for value in steps["segmenters"].overrides if "models=" in value][-1]
    assert models.count("/can/seed") == models.count("/can_unet/seed") == 1
    more = [
        step.name
        for step in plan.make_plan(complete, "small", tmp_path, repository, ["more_can"]).steps
    ]
    assert more == [f"more_can/seed{seed}" for seed in range(3, 5)]  # none is one of Table I's
    two = complete.commands["can"].model_copy(update={"folds": {"small": 2}})
    commands = {**complete.commands, "can": two}
    config = complete.model_copy(update={"commands": commands})
    names = [
        step.name for step in plan.make_plan(config, "small", tmp_path, repository, ["can"]).steps
    ]
    assert names == [f"can/fold{fold}/seed{seed}" for fold in range(2) for seed in range(3)]


def test_of_a_numbered_command_only_that_training_is_run(complete, repository, tmp_path):
    """The audit takes one training of each; whoever wants all seeds besides gets them."""
    wanted = Options("small", ("audit",))
    planned = report.plan_report(complete, wanted, tmp_path, repository)
    names = [step.name for step in planned.steps]
    assert names == ["can/seed0", "audit_can", "infilling_unet/fold0", "audit_infilling"]
    assert [step.name for step in planned.steps_of["can"]] == ["can/seed0"]
    assert planned.steps[1].depends_on == ("can/seed0",)
    assert plan.describe_extent(complete, "small", ["audit_can"], repository).trainings == 1
    both = Options("small", ("audit", "can_table1"))
    planned = report.plan_report(complete, both, tmp_path, repository)
    assert {f"can/seed{seed}" for seed in range(3)} < {step.name for step in planned.steps}


def test_the_plan_for_readers_names_no_folder_of_a_machine(complete, tmp_path):
    data = complete.data["cbis_patches"].model_copy(update={"root": tmp_path / "here"})
    own = complete.model_copy(update={"data": {**complete.data, "cbis_patches": data}})
    shown = plan.show_plan(plan.hide_folders(own), "small", ["can"])
    line = plan.format_commands(shown, ["can"])[0]
    assert line.startswith(
        "python train/can.py --config configs/can.yaml --output runs/report-small/can/seed0 --set "
        "data.name=folder data.frame=full data.split=official data.root=DIR "
    )


def test_the_extent_says_steps_and_data_from_any_folder(config, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extent = plan.describe_extent(config, "small", ["can"], repository)
    assert extent.text == (
        "12,000 of 210,000 steps; 128 of 256 px; 1/4 of the width; CBIS-DDSM mass patches for "
        "INbreast"
    )
    assert not extent.is_papers_data and extent.trainings == 3
    extent = plan.describe_extent(config, "paper", ["can"], repository)
    assert extent.text == "210,000 steps; INbreast" and extent.is_papers_data
    assert extent.trainings == 3
    extent = plan.describe_extent(config, "small", ["blending"], repository)  # prints no length
    assert extent.text.startswith("12,000 steps; 64 of 256 px")
    extent = plan.describe_extent(config, "small", ["cgan_loose"], repository)
    assert extent.text.startswith("4,000 steps (the paper: 150 epochs); ")
    extent = plan.describe_extent(config, "small", ["cgan_light_head"], repository)
    assert "320 of 1344 x 800 px" in extent.text
    extent = plan.describe_extent(config, "small", ["flow_short"], repository)  # of no paper
    assert extent.text == "1,040 steps; CBIS-DDSM mass patches" and not extent.is_papers_data
    extent = plan.describe_extent(config, "small", ["blending", "flow_tissue"], repository)
    assert extent.text == (
        "blending: 12,000 steps; flow_tissue: 1,500 steps; 64 of 256 px; 1/8 of the width; "
        "CDD-CESM, scaled to 512 px for INbreast"
    )
    extent = plan.describe_extent(config, "small", ["contextual_judge", "cgan_loose"], repository)
    assert "; 1/4 to 1/2 of the width; " in extent.text


def test_names_of_papers_and_items_choose(config):
    assert {item.paper for item in report.choose_items(["can"])} == {"can"}
    assert [item.key for item in report.choose_items(["can_fig2", "cgan_roc"])] == [
        "can_fig2",
        "cgan_roc",
    ]
    with pytest.raises(ConfigError, match="--only table1: is no paper and no item"):
        report.choose_items(["table1"])


def make_facts(scale="small", key="can_table1", **values):
    """Facts in which CAN leads the U-Net, in each of two folds, and nothing else was compared."""
    folds = (("CAN", "90.0, 91.0"), ("U-Net", "88.0, 89.0"))
    apart = (("U-Net", "-2.0 [-3.0, -1.0] p = 0.004"), ("centred disc", "-9.0 p = 0.001"))
    means = (("U-Net", "88.0 [86.0, 89.0]"), ("centred disc", "80.0"))
    header = ("", "Dice, %")
    tables = (
        TableFacts(title="means", header=header, body=means),
        TableFacts(title="Differences from CAN", header=header, body=apart),
        TableFacts(title="Means in each fold", header=header, body=folds),
    )
    content = {
        "item": key,
        "scale": scale,
        "extent": "20,000 of 210,000 steps; CBIS-DDSM for INbreast",
        "is_papers_data": False,
        "trainings": 1,
        "commands": ("python evaluate/segmentation.py",),
        "code": ("tfmammo 0.1.0 abc",),
        "tables": tables,
    }
    return Facts(**{**content, **values})


def test_facts_come_back_and_the_largest_scale_counts(tmp_path):
    assert read_facts(tmp_path) == {}
    (tmp_path / "can_average.json").write_text("{}")  # of another kind
    for scale in ("smoke", "small"):
        write_facts(make_facts(scale), tmp_path)
    write_facts(make_facts("paper", reason="needs INbreast", tables=()), tmp_path)
    assert read_facts(tmp_path) == {"can_table1": make_facts("small")}
    (tmp_path / "can_table1.small.json").write_text('{"item": 3}')
    with pytest.raises(DataError, match=r"can_table1.small.json: holds no facts \(item"):
        read_facts(tmp_path)


def test_the_verdict_on_an_item_and_on_its_picture():
    keys = ("can_table1", "can_fig4", "cgan_boxes")
    facts = {key: make_facts(key=key, trainings=3) for key in keys}
    own = page.judge_item(find_item("can_table1"), facts)
    assert own.word == "not attempted" and len(own.evidence) == 3
    assert own.reason == "2 of 3 claims were not measured"
    words = ["not attempted", "not attempted", "reproduced"]
    assert [part.word for part in own.evidence] == words
    assert [part.certainty for part in own.evidence] == ["", "", "low"]
    picture = page.judge_item(find_item("can_fig4"), facts)
    assert (picture.word, picture.reason) == ("not attempted", "as Table I, which measures it")
    alone = page.judge_item(find_item("cgan_boxes"), facts)
    assert alone.reason == "Dice and IoU table measures it, and has no result"
    assert page.judge_item(find_item("can_fig2"), facts).word == "not attempted"
    assert "private data" in page.judge_item(find_item("infilling_fig7"), facts).reason
    failed = {"can_fig2": make_facts(key="can_fig2", reason="can: failed", tables=())}
    assert page.judge_item(find_item("can_fig2"), failed).reason == "can: failed"


def test_what_depends_on_the_pixels_of_a_patch_is_decided_at_the_papers_size():
    item = find_item("cgan_morphology")
    rows = [
        (f"{claim.better} - {claim.worse}", "-0.8 [-1.2, -0.4] p = 0.007") for claim in item.claims
    ]
    tables = (TableFacts(title="Differences of every pair", header=("", "Dice, %"), body=rows),)
    extents = {
        "64 of 256 px; CDD-CESM, scaled to 512 px": "undecided",
        "1,000 steps": "contradicted",
    }
    for extent, word in extents.items():
        facts = make_facts(key=item.key, extent=extent, trainings=3, tables=tables)
        verdict = page.judge_item(item, {item.key: facts})
        assert verdict.word == word
        reasons = [part.reason for part in verdict.evidence]
        assert all(("ours has 64 of 256 px" in text) == (word == "undecided") for text in reasons)
        assert {part.word for part in verdict.evidence} == {word}
        assert verdict.certainty == ("" if word == "undecided" else "low")  # no curve is known


def test_a_claim_that_depends_on_pixels_is_undecided_beside_undecided_ones():
    item = find_item("cgan_morphology")
    cells = ["+0.8 [+0.4, +1.2] p = 0.007", *["+0.8 [-0.4, +1.2] p = 0.700"] * len(item.claims)]
    names = [f"{claim.better} - {claim.worse}" for claim in item.claims]
    rows = list(zip(names, cells, strict=False))
    tables = (TableFacts(title="Differences of every pair", header=("", "Dice, %"), body=rows),)
    for extent, word in (("64 of 256 px", "undecided"), ("1,000 steps", "reproduced")):
        facts = make_facts(key=item.key, extent=extent, trainings=3, tables=tables)
        verdict = page.judge_item(item, {item.key: facts})
        assert (verdict.word, verdict.evidence[0].word) == ("undecided", word)


def test_certainty_needs_the_curve_of_every_training():
    names = ("CAN", "U-Net", "SegNet", "FCN-8s", "centred disc")
    difference = "+2.0 [+1.0, +3.0] p = 0.001"
    rows = [(f"{a} - {b}", difference) for a, b in itertools.combinations(names, 2)]
    folds = [(name, f"{95 - place}, {96 - place}") for place, name in enumerate(names)]
    tables = (
        TableFacts(title="Differences of every pair", header=("", "Dice, %"), body=rows),
        TableFacts(title="Means in each fold", header=("", "Dice, %"), body=folds),
    )
    curves = [
        Curve(training=name, measure="dice", steps=range(8), values=[0.9] * 8)
        for name in ("can", "fcn8s", "segnet")
    ]
    output = "--output runs/report-small"
    commands = (
        f"python train/can.py {output}/can",
        f"python train/fcn8s.py {output}/fcn8s --set model.weights=vgg16.h5",
        f"python train/segnet.py {output}/segnet --set model.weights=vgg16.h5",
        f"python evaluate/segmentation.py {output}/x",
    )
    elsewhere = f"# can, trained on a GPU, as: python train/can.py {output}/can_long"
    study = f"python evaluate/detection.py --study blending {output}/study"
    for others, certainty in (((), "moderate"), ((elsewhere,), "low"), ((study,), "low")):
        facts = make_facts(trainings=3, tables=tables, curves=curves, commands=(*others, *commands))
        verdict = page.judge_item(find_item("can_table1"), {"can_table1": facts})
        assert (verdict.word, verdict.certainty) == ("reproduced", certainty)


def test_facts_alone_make_the_same_page_byte_for_byte(config, tmp_path):
    written = []
    for name in ("one", "two"):
        markdown = tmp_path / "new" / name
        own = config.model_copy(update={"facts": tmp_path / "facts", "markdown": markdown})
        write_facts(make_facts(), tmp_path / "facts")
        report.write_page(own, "small", tmp_path / f"output-{name}")
        html = (tmp_path / f"output-{name}/report.html").read_bytes()
        written.append((html, markdown.read_bytes()))
    assert written[0] == written[1]
    text = written[0][1].decode()
    assert (
        "33 tables and figures of five papers: 0 reproduced, 0 contradicted, 0 undecided, " in text
    )
    assert "Trivial baseline: centred disc" in text and "20,000 of 210,000 steps" in text
    assert b"The picture is not here" in written[0][0] and b"http" not in written[0][0]


def test_a_page_without_a_folder_of_facts_is_an_error_and_writes_nothing(config, tmp_path):
    own = config.model_copy(update={"facts": tmp_path / "none", "markdown": tmp_path / "page.md"})
    with pytest.raises(ConfigError, match=r"^facts: .*none: no such folder"):
        report.write_page(own, "small", tmp_path / "output")
    assert not list(tmp_path.iterdir())


# Facts of earlier settings, with what has changed since.
JUDGE = "the judge had the seed of one of the study's classifiers"
OUTDATED = {
    "segmenters": "trainings in folders without their seed",
    "contextual_fig3": JUDGE,
    "contextual_table1": JUDGE,
    "contextual_fig5": JUDGE,
    "contextual_fig6": JUDGE,
    "contextual_phantoms": JUDGE,
    "contextual_constant": JUDGE,
    "infilling_table1": "LPIPS alone; the study of its recall is still to be run",
}


def read_settings(command):
    """Read a command's words, and the last value of each key; not what only makes it faster."""
    words, _, overrides = command.rpartition(", as: ")[2].partition(" --set ")
    words = re.sub(r" --jobs \d+", "", words)
    return words, dict(one.split("=", 1) for one in shlex.split(overrides) if "=" in one)


def test_facts_are_of_todays_settings(repository):
    places = {"data.cbis_patches.root": "DIR", "data.cdd_cesm.root": "DIR"}
    files = {"vgg19": "vgg19", "alexnet": "alexnet", "heads": "lpips_alex"}
    files |= {"inception": "inception_fid2015"}
    places |= {f"weights.{name}": f"{file}.npz" for name, file in files.items()}
    overrides = [f"{key}={value}" for key, value in places.items()]
    overrides.append("predictions.nnunet=pred")
    config = configuration.parse(ReportConfig, repository / "configs/report.yaml", overrides)
    outdated = set()
    for item in report.choose_items([], "small"):
        own = read_facts(repository / "docs/results").get(item.key)
        if own and not own.reason:
            names = plan.list_needed(config, own.scale, item.commands)
            shown = plan.show_plan(config, own.scale, item.commands)
            wanted = map(read_settings, plan.format_commands(shown, names))
            made = [read_settings(command) for command in own.commands]
            outdated |= {item.key for settings in wanted if settings not in made}
    assert outdated == set(OUTDATED)


def test_the_page_begins_with_every_claim():
    text = document.render_markdown(page.build_page({"can_table1": make_facts(trainings=3)}))
    head = text.partition("## The claims, one by one")[2].partition("\n## ")[0]
    rows = [line for line in head.splitlines() if line.startswith("| CAN, Table I |")]
    assert len(rows) == 3
    assert rows[0].startswith(
        "| CAN, Table I | The Dice coefficient of CAN is higher than that of FCN-8s. | not "
        "attempted |"
    )
    assert "a gain as large as printed: " in rows[2]
    assert "The claims" not in document.render_markdown(page.build_page({}))


def test_pictures_are_inside_the_page():
    blocks = page.build_page({"can_table1": make_facts()})
    html = document.render_html(page.TITLE, blocks, {"can_table1": PNG})
    assert 'src="data:image/png;base64,iVBORyBmYWtl"' in html
    assert html.count("data:image/png;base64,") == 1


@pytest.fixture
def small_repository(repository, tmp_path):
    """A repository whose scripts only write the files that a report reads."""
    root = tmp_path / "repository"
    for path in ("train", "evaluate", "configs"):
        (root / path).mkdir(parents=True)
    for name in ("train/can", "train/pix2pix", "evaluate/synthesis", "evaluate/defects"):
        (root / f"{name}.py").write_text(SCRIPT)
    for path in (repository / "configs").glob("*.yaml"):
        shutil.copy(path, root / "configs")
    return root


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_failing_command_with_and_without_keep_going(
    config, small_repository, tmp_path, keep_going
):
    (small_repository / "train/pix2pix.py").write_text("import sys; sys.exit('error: no space')")
    (small_repository / "evaluate/segmentation.py").write_text(SCRIPT)
    for name in ("unet", "segnet", "fcn8s"):
        (small_repository / f"train/{name}.py").write_text(SCRIPT)
    options = Options("smoke", ("can_fig2", "can_table1"), jobs=2, keep_going=keep_going)
    output = tmp_path / "output"
    with pytest.raises(DataError, match="pix2pix"):
        report.run_report(config, options, output, small_repository)
    if not keep_going:
        assert not (output / "report.html").exists()
        return
    facts = read_facts(output / "facts")
    assert facts["can_fig2"].reason == (
        "can_pix2pix: failed with exit code 1 (error: no space); can_synthesis: needs "
        "can_pix2pix, which failed"
    )
    assert facts["can_table1"].tables[0].body == (("CAN", "9.0"),)
    assert str(tmp_path) not in (output / "report.html").read_text()


def test_a_finished_report_is_not_run_again_and_its_facts_stay(config, small_repository, tmp_path):
    options = Options("smoke", ("can_fig2",))
    output = tmp_path / "output"
    lines = report.run_report(config, options, output, small_repository)
    assert lines == [f"page: {output / 'report.html'}", f"Markdown: {output / 'report.md'}"]
    first = {path.name: path.read_bytes() for path in (output / "facts").iterdir()}
    assert set(first) == {"can_fig2.smoke.json"}
    report.run_report(config, options, output, small_repository)
    assert (output / "can/runs.txt").read_text() == "x"
    assert {path.name: path.read_bytes() for path in (output / "facts").iterdir()} == first
    picture = output / "pictures/can_fig2.png"
    assert picture.read_bytes() == PNG
    html = output / "report.html"
    assert "image/png" in html.read_text()
    larger = make_facts(scale="small", key="can_fig2")
    write_facts(larger, output / "facts")  # whose picture is elsewhere
    report.write_page(config, "smoke", output)
    assert "image/png" not in html.read_text()
    text = first["can_fig2.smoke.json"].decode()
    assert str(tmp_path) not in text
    assert "2 of 210,000 steps; 64 of 256 px; 1/64 of the width; phantoms for INbreast" in text
    assert "tensorflow" in text


def test_the_summary_counts_verdicts_and_names_decided_claims():
    difference = TableFacts(
        title="Differences of every pair",
        header=("", "Dice, %"),
        body=(
            ("U-Net - CAN", "+1.5 [+0.5, +2.5] p = 0.004"),
            ("centred disc - CAN", "-8.0 [-9.0, -7.0] p = 0.001"),
            ("centred disc - U-Net", "-9.5 [-9.9, -9.0] p = 0.001"),
        ),
    )
    means = TableFacts(
        title="means",
        header=("", "Dice, %"),
        body=(("CAN", "88.0"), ("U-Net", "89.5"), ("centred disc", "80.0")),
    )
    folds = TableFacts(
        title="Means in each fold",
        header=("", "Dice, %"),
        body=(("CAN", "87.0, 89.0"), ("U-Net", "89.0, 90.0")),
    )
    facts = Facts(
        item="can_table1",
        scale="small",
        extent="half of the steps",
        is_papers_data=False,
        trainings=3,
        commands=(),
        tables=(means, difference, folds),
    )
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter"
    replaced = page.replace_summary(text, {"can_table1": facts})
    assert replaced.startswith(f"before\n{page.BEGIN}\n\n| paper |")
    assert replaced.endswith(f"\n\n{page.END}\nafter")
    assert "| Blending | 0 | 0 | 0 | 3 |" in replaced
    assert "higher than that of U-Net. Contradicted, certainty low: Dice, %:" in replaced
    assert "p = 0.004 (half of the steps)." in " ".join(replaced.split())
    assert page.replace_summary(replaced, {"can_table1": facts}) == replaced
    blocks = page.build_page({"can_table1": facts})
    first = next(block for block in blocks if isinstance(block, document.Points))
    assert f"- {first.sentences[0]}" in " ".join(replaced.split()), "the page lists them too"


def test_a_readme_without_marks_is_an_error():
    with pytest.raises(DataError, match="readme: it needs the lines"):
        page.replace_summary("nothing", {})


def test_other_versions_are_accepted_by_studies_too():
    study = workflow.Step("a", ("evaluate/detection.py", "--study", "blending"))
    other = workflow.Step("b", ("evaluate/detection.py",))
    assert report._accept_versions(study).arguments == (*study.command, "--any-version")
    assert report._accept_versions(other) is other
