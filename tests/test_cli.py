"""How commands read their arguments."""

from pathlib import Path

import pytest

from tests.commands import refuse
from tfmammo import cli, config
from tfmammo.apps.pacs.config import RoundTripConfig
from tfmammo.config import Experiment
from tfmammo.models.can import CANConfig


def parser(prog="x"):
    made = cli.Parser(prog=prog, allow_abbrev=False)
    made.add_argument("--config")
    made.add_argument("--retry", action="store_true")
    made.add_overrides()
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "score=0.3", "kinds=[mass]", "a.dcm", "b/c=d.dcm"],
        ["--set", "score=0.3", "--set", "kinds=[mass]", "a.dcm", "b/c=d.dcm"],
        ["--set", "score=0.3", "kinds=[mass]", "--", "a.dcm", "b/c=d.dcm"],
    ],
)
def test_set_leaves_the_files_that_follow(arguments):
    made = parser()
    made.add_argument("files", nargs="+")
    chosen = made.parse_args(arguments)
    assert chosen.set == ["score=0.3", "kinds=[mass]"] and chosen.files == ["a.dcm", "b/c=d.dcm"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["can", "a.dcm", "b.dcm", "-o", "out"],
        ["can", "-o", "out", "a.dcm", "b.dcm"],
        ["can", "a.dcm", "-o", "out", "b.dcm"],
        ["can", "-o", "out", "--set", "score=0.3", "retry=1", "a.dcm", "b.dcm"],
        ["-o", "out", "--", "can", "a.dcm", "b.dcm"],
    ],
)
def test_files_that_may_be_missing_follow_any_option(arguments):
    made = parser()
    made.add_argument("model")
    made.add_argument("files", nargs="*")
    made.add_argument("-o")
    chosen = made.parse_args(arguments)
    assert (chosen.model, chosen.files, chosen.o) == ("can", ["a.dcm", "b.dcm"], "out")


def test_a_section_is_no_key(capsys):
    """--set data=DIR would be refused."""
    made = cli.make_parser("x", RoundTripConfig, "pacs")
    said = refuse(capsys, made.parse_args, ["--pacs", "x"])
    assert said.endswith("--set pacs.KEY=VALUE")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--retyr"], "unknown: --retyr; did you mean --retry?"),
        (["--count", "500"], "unknown: --count 500; a key of the config is set by --set count=500"),
        (["count=500"], "unknown: count=500; a key of the config is set by --set KEY=VALUE"),
        (["--set", "a=1", "file"], "unknown: file"),
        (["--scale", "smal"], "argument --scale: there is no smal, did you mean small?"),
        (["--scale", "x"], "argument --scale: there is no x; there are smoke, small, 7"),
        *(([f"--jobs={jobs}"], f"--jobs: {jobs} ") for jobs in ("0", "1.5", "²")),
    ],
)
def test_a_wrong_argument_is_an_error_that_helps(capsys, arguments, error):
    made = parser()
    made.add_argument("--scale", choices=("smoke", "small", 7))
    made.add_argument("--jobs", type=cli.parse_count)
    options = made.parse_args(["--scale", "small", "--jobs", "2"])
    assert (options.scale, options.jobs) == ("small", 2)
    assert error in refuse(capsys, made.parse_args, arguments)


def test_data_is_a_short_spelling_at_its_place_among_the_overrides():
    schema = Experiment[CANConfig]
    made = cli.make_parser("x", schema, "can")
    made.add_data()
    arguments = ["--set", "data.root=a", "--data", "b: c", "--set", "training.steps=3"]
    options = made.parse_args(arguments)
    parsed = config.parse(schema, options.config, options.set)
    assert (parsed.data.name, parsed.data.root) == ("folder", Path("b: c"))
    assert parsed.training.steps == 3
    options = made.parse_args(["--data", "b", "--set", "data.root=a", "data.name=inbreast"])
    assert config.parse(schema, "can", options.set).data.root == Path("a")
    options = made.parse_args(["--data", "inbreast=b c"])
    assert options.set == ["data.name=inbreast", 'data.root="b c"']


def test_brackets_in_names_are_printed(capsys):
    cli.console.print("out [1]/[bold].png")
    assert capsys.readouterr().out == "out [1]/[bold].png\n"
