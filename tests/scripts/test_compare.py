"""evaluate/compare.py as a user calls it."""

import pytest

from tests.commands import run_script_here


def call(repository, *arguments):
    return run_script_here(repository / "evaluate/compare.py", *arguments)


def test_a_plan_shows_commands_and_runs_nothing(repository, tmp_path):
    options = ("--models", "can,unet", "--folds", 2, "--seeds", 1, "--set", "data.name=phantom")
    done = call(repository, *options, "--plan", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1].split("/")[-1] for line in done.stdout.splitlines()] == [
        "can.py",
        "unet.py",
    ] * 2
    assert not (tmp_path / "out").exists()
    done = call(repository, "--data", "inbreast=/data/INbreast #2", "--print-config")
    assert "root: '/data/INbreast #2'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--models", "can"), "--models: name two models or more"),
        (("--folds", 1), "folds: input should be greater than or equal to 2"),
        ((), "data.root: is missing; name the archive by --data [NAME=]DIR"),
        (("--data", "inbreast=nowhere"), "data.root: no such folder: nowhere"),
        (("--data", "nowhere"), "data.root: no such folder: nowhere"),
    ],
)
def test_a_wrong_command_is_one_sentence(repository, arguments, sentence):
    done = call(repository, *arguments)
    assert done.returncode == 2 and sentence in done.stderr


@pytest.mark.long
def test_two_models_are_trained_and_compared(repository, tmp_path):
    small = ["training.steps=1", "training.precision=float32", "training.steps_per_loop=1"]
    tiny = (
        "models={can: {title: CAN, set: {model: {filters: [4, 8, 8], discriminator_filters: 4}}}, "
        "unet: {title: U-Net, set: {model: {widths: [4, 8, 8]}}}}"
    )
    shared = ["data.size=32", "data.phantoms=24", "samples=100", tiny]
    store = [f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}", "tracking.system_metrics=false"]
    options = ("--folds", 2, "--seeds", 1, "--output", tmp_path / "out")
    settings = ("--set", "data.name=phantom", *small, *shared, *store)
    done = call(repository, *options, *settings)
    assert done.returncode == 0, done.stderr
    for name in ("table.md", "table.tex", "rows.csv", "figure.png", "figure.pdf", "methods.md"):
        assert (tmp_path / "out" / name).is_file(), name
    assert "1 step of 1 patch," in (tmp_path / "out" / "methods.md").read_text()
    again = call(repository, *options, *settings)
    assert again.returncode == 0 and "step 1 of" not in again.stderr
