"""Running a report: each command once, facts as soon as they can be, failures in words."""

import json
import shutil

import pytest

from tests.apps.report.rows import level, make_facts
from tfmammo.apps.report import facts, runner
from tfmammo.apps.report.items import FACT_KEYS
from tfmammo.apps.report.runner import Options
from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics.rows import Fact, write_facts
from tfmammo.studies.workflow import Step

SCRIPT = """
import pathlib, shutil, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "runs.txt").open("a") as file: file.write("x")
here = pathlib.Path(__file__).parent
if (here / "rows.csv").exists(): shutil.copy(here / "rows.csv", folder)
if here.name == "train":
    (folder / "export").mkdir(exist_ok=True)
    (folder / "export/card.json").write_text("{}")
"""
FIG2 = Options("smoke", ("can_fig2",))


@pytest.fixture
def root(repository, tmp_path):
    """A repository whose scripts only write the files that a report reads."""
    root = tmp_path / "repository"
    for path in ("train", "evaluate", "configs"):
        (root / path).mkdir(parents=True)
    for folder, names in (
        ("train", "can pix2pix unet segnet fcn8s"),
        ("evaluate", "synthesis defects segmentation"),
    ):
        for name in names.split():
            (root / folder / f"{name}.py").write_text(SCRIPT)
    for path in (repository / "configs").glob("*.yaml"):
        shutil.copy(path, root / "configs")
    rows = [Fact("differences", "", "CAN", "Pix2Pix", "ssim_edge", "", 0.05, 0.01, 0.09)]
    write_facts(root / "evaluate/rows.csv", rows)
    return root


def test_a_missing_readme_is_said_before_anything_runs(config, root, tmp_path):
    elsewhere = config.model_copy(update={"readme": tmp_path / "README.md"})
    with pytest.raises(ConfigError, match="README.md: no such file; start in a checkout, or set"):
        runner.run_report(elsewhere, Options(only=("cgan_shape",)), tmp_path / "out", root)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_failing_command_with_and_without_keep_going(config, root, tmp_path, keep_going):
    (root / "train/pix2pix.py").write_text("import sys; sys.exit('error: no space')")
    options = Options("smoke", ("can_fig2", "can_table1"), jobs=2, keep_going=keep_going)
    output = tmp_path / "output"
    with pytest.raises(DataError, match="pix2pix"):
        runner.run_report(config, options, output, root)
    assert (output / "results/index.md").exists() == keep_going
    if keep_going:
        found = facts.read(output / "results", FACT_KEYS)
        assert set(found) == {"can_table1"}
        text = (output / "results/can.md").read_text()
        assert str(tmp_path) not in text


def test_at_other_scales_the_reason_is_a_fact_that_names_no_place(config, root, tmp_path):
    folder = tmp_path / "DOE^JANE"
    folder.mkdir()
    (root / "train/pix2pix.py").write_text(f"import sys; sys.exit('error: {folder}/1.dcm')")
    archive = config.data["cbis_patches"].model_copy(update={"root": folder})
    update = {"data": {**config.data, "cbis_patches": archive}, "readme": None}
    own = config.model_copy(update=update | {"results": tmp_path / "results"})
    options = Options("small", ("can_fig2", "contextual_fig3"), keep_going=True)
    with pytest.raises(DataError, match="4 of 7 commands failed"):
        runner.run_report(own, options, tmp_path / "output", root)
    found = facts.read(tmp_path / "results", FACT_KEYS)
    assert found["can_fig2"].about.reason.startswith(
        "can_pix2pix_long/seed1: failed with exit code 1 (error: DIR/1.dcm)"
    )
    assert found["contextual_fig3"].about.reason == (
        "needs CBIS-DDSM films of 800 rows: set data.films.root"
    )
    text = (tmp_path / "results/can_fig2.small.json").read_text()
    assert str(tmp_path) not in text and "DOE" not in text


def test_what_has_a_result_keeps_it_where_its_commands_cannot_run(config, root, tmp_path):
    results = tmp_path / "results"
    facts.write(make_facts(level("CAN", 1), item="can_fig2"), results)
    own = config.model_copy(update={"results": results, "readme": None})
    runner.run_report(own, Options("small", ("can_fig2", "can_fig3")), tmp_path / "output", root)
    found = facts.read(results, FACT_KEYS)
    assert found["can_fig2"].rows and not found["can_fig2"].about.reason
    assert found["can_fig3"].about.reason.startswith("needs CBIS-DDSM mass patches")


def test_a_finished_report_is_not_run_again_and_its_facts_stay(config, root, tmp_path):
    output = tmp_path / "output"
    lines = runner.run_report(config, FIG2, output, root)
    assert lines == [f"pages: {output / 'results/index.md'}"]
    first = {path.name: path.read_bytes() for path in (output / "results").glob("can_fig2*")}
    assert set(first) == {"can_fig2.smoke.json", "can_fig2.smoke.csv"}
    about = json.loads(first["can_fig2.smoke.json"])
    assert about["work"] == "2 of 210,000 steps; 64 of 256 px; 1/32 to 1/16 of the width"
    assert (about["data"], about["papers_data"]) == ("phantoms", "INbreast")
    assert about["trained"] == 2 and "tensorflow" in about["code"][0]
    assert str(tmp_path) not in str(about)
    runner.run_report(config, FIG2, output, root)
    assert (output / "can/runs.txt").read_text() == "x"
    again = {path.name: path.read_bytes() for path in (output / "results").glob("can_fig2*")}
    assert again == first


def test_finished_steps_survive_a_moved_archive_and_no_changed_one(config, root, tmp_path):
    def run(place):
        archive = config.data["cbis_patches"].model_copy(update={"root": place})
        update = {"data": {**config.data, "cbis_patches": archive}, "readme": None}
        own = config.model_copy(update=update | {"results": tmp_path / "results"})
        runner.run_report(own, Options("small", ("can_table1",)), tmp_path / "output", root)
        return (tmp_path / "output/can/seed0/runs.txt").read_text()

    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "a.png").write_text("pixels")
    assert run(old) == "x"
    shutil.copytree(old, new)
    assert run(new) == "x"
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.png").write_text("pixels")
    with pytest.raises(DataError, match="was made by another config"):
        run(other)


def test_other_versions_are_accepted_by_studies_too():
    study = Step("a", ("evaluate/detection.py", "--study", "blending"))
    other = Step("b", ("evaluate/detection.py",))
    assert runner._accept_versions(study).arguments == (*study.command, "--any-version")
    assert runner._accept_versions(other) is other


def test_curves_of_runs_made_elsewhere_come_with_their_exports(tmp_path):
    (tmp_path / "curve.csv").write_text("step,dice\n10,0.5\n20,0.75\n")
    curve = runner._read_exported_curve("can/seed0", tmp_path)
    assert (curve.measure, curve.steps, curve.values) == ("dice", (10, 20), (0.5, 0.75))
    assert not runner._read_exported_curve("can/seed0", tmp_path / "none").steps
    (tmp_path / "curve.csv").write_text("no table")
    with pytest.raises(ConfigError, match="curve.csv: is no table of steps and a measure"):
        runner._read_exported_curve("can/seed0", tmp_path)


def test_rows_of_a_part_of_the_data_name_it(config, root, tmp_path):
    rows = [level("CAN", 1), level("CAN", 2, subset="seed=0")]
    write_facts(root / "evaluate/rows.csv", rows)
    command = config.commands["can_synthesis"].model_copy(update={"subset": "archive=INbreast"})
    own = config.model_copy(update={"commands": {**config.commands, "can_synthesis": command}})
    runner.run_report(own, FIG2, tmp_path / "output", root)
    found = facts.read(tmp_path / "output/results", FACT_KEYS)["can_fig2"].rows
    assert {row.subset for row in found} == {"archive=INbreast", "archive=INbreast;seed=0"}


def test_an_item_does_without_a_command_that_has_no_run_at_the_scale(complete, root, tmp_path):
    for name in ("train/ssd", "train/light_head_rcnn", "train/mask_rcnn", "evaluate/detection"):
        (root / f"{name}.py").write_text(SCRIPT)
    options = Options("smoke", ("cgan_detection",))
    runner.run_report(complete, options, tmp_path / "output", root)
    found = facts.read(tmp_path / "output/results", FACT_KEYS)["cgan_detection"]
    assert found.rows and not found.about.reason
