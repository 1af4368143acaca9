"""`tfmammo`: which commands there are, what they read, and what they answer."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest

from tests.commands import refuse
from tfmammo import __main__ as command
from tfmammo import cli, config, shipped
from tfmammo.apps.commands import find_schema
from tfmammo.models.can import CANConfig

# Tests that ran before have imported some of the modules that a command runs.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Commands that run in this process write nowhere else, and leave no name behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setenv("COLUMNS", "200")


def answer(capsys, *words):
    """What a command prints that ends well."""
    try:
        command.main(words)
    except SystemExit as stopped:
        assert not stopped.code, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["train"], ["evaluate", "-h"], ["configs", "list"]],
    ids=" ".join,
)
def test_what_looks_around_is_quick_and_imports_no_tensorflow(repository, words):
    program = (
        "import sys; from tfmammo.__main__ import main; main(); "
        "print(*{'tensorflow', 'keras', 'pydantic', 'mlflow'} & {*sys.modules})"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "", done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_every_script_and_module_with_a_command_line_has_a_command(repository, capsys):
    targets = {target for target, _ in shipped.COMMANDS.values()}
    for folder in command.FOLDERS:
        names = re.findall(r"^  (\w+) +\S", answer(capsys, folder), re.MULTILINE)
        scripts = {f"{folder}/{path.name}" for path in (repository / folder).glob("*.py")}
        assert {f"{folder}/{name}.py" for name in names} == scripts - targets
    modules = {
        ".".join(path.relative_to(repository).with_suffix("").parts).removesuffix(".__main__")
        for path in repository.glob("tfmammo/**/*.py")
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    of_modules = {target for target in targets if target.startswith("-m ")}
    assert {f"-m {module}" for module in modules - {"tfmammo"}} == of_modules


def test_a_training_runs_under_its_name_and_prints_its_config(capsys, tmp_path):
    words = ["train", "can", "--config", "quickstart", "--set", "training.steps=2"]
    text = answer(capsys, *words, "--print-config")
    (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
    schema = config.Experiment[CANConfig]
    shown = config.parse(schema, "shown.yaml")
    assert shown == config.parse(schema, "quickstart", ["training.steps=2"])
    assert shown.training.steps == 2
    assert [path.name for path in tmp_path.iterdir()] == ["shown.yaml"]


# This file's own imports bring modules that the command has not imported when it runs them.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate", "segmentation", "--config", "segmentation"], "threshold: 0.5"),
        (["synthesize", "--config", "synthesis_full", "--set", "count=7"], "count: 7"),
        (["build", "--config", "build", "--set", "data.size=64"], "  size: 64"),
        (["reader-study", "--config", "reader_study", "--set", "level=0.9"], "level: 0.9"),
        (["pacs", "--config", "pacs", "--set", "score=0.25"], "score: 0.25"),
        (["registry", "promote", "--model", "tfmammo-can"], "model: tfmammo-can"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_config_is_printed_without_the_other_arguments(capsys, tmp_path, words, line):
    assert line in answer(capsys, *words, "--print-config").splitlines()
    assert not list(tmp_path.iterdir())


def test_a_reader_who_has_enough_is_no_error():
    command = [sys.executable, "-m", "tfmammo", "configs", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_help_names_the_command_as_it_was_typed_and_lists_the_keys(capsys):
    text = answer(capsys, "train", "can", "--help")
    assert text.startswith("usage: tfmammo train can [-h] [--config FILE]")
    assert "tfmammo train can --config can --set data.name=inbreast" in text
    assert "python" not in text
    lines = text.splitlines()
    row = lines.index("  data.size: int > 0, <= 16384 = 256")
    assert lines[row + 1] == "      Patch rows and columns, px."
    assert "  model.learning_rate: float > 0 = 0.0002" in lines
    assert "  data.canvas: [int > 0, int > 0] or null = null" in lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "tfmammo has no command trian, did you mean train?"),
        ("train cna", "train: there is no cna, did you mean can?"),
        ("evaluate segmentatoin", "evaluate: there is no segmentatoin, did you mean segmen"),
        ("evaluate report", "evaluate: there is no report; there are blending, "),
        ("schema quikstart", "quikstart: is no shipped config, did you mean quickstart?"),
        ("configs show xyzzy", "xyzzy: is no shipped config; there are audit, "),
        ("train can --config can --set training.stepz=1", "can: training.stepz: unknown key, did"),
    ],
)
def test_a_misspelt_word_is_one_sentence(capsys, words, said):
    assert refuse(capsys, command.main, words.split()).startswith(f"error: {said}")


def test_configs_are_listed_shown_and_copied_once(capsys, repository, tmp_path):
    lines = answer(capsys, "configs", "list").splitlines()
    assert [line.split()[0] for line in lines] == shipped.list_configs()
    assert "pix2pix_can             tfmammo train pix2pix --config pix2pix_can" in lines
    assert not [line for line in lines if "python" in line or ".yaml" in line]
    text = (repository / "configs" / "can.yaml").read_text(encoding="utf-8")
    assert answer(capsys, "configs", "show", "can") == text
    assert answer(capsys, "configs", "copy", "can").strip() == "can.yaml"
    assert (tmp_path / "can.yaml").read_text(encoding="utf-8") == text
    (tmp_path / "mine").mkdir()
    assert answer(capsys, "configs", "copy", "can", "mine").strip() == "mine/can.yaml"
    assert refuse(capsys, command.main, ["configs", "copy", "can"]).startswith("error: can.yaml: ")


@pytest.mark.parametrize("name", shipped.list_configs())
def test_every_shipped_config_is_of_the_class_that_its_command_reads(name):
    run = shipped.read_command(name).replace(f" --config configs/{name}.yaml", "")
    schema = find_schema(run)
    assert isinstance(config.parse(schema, name), schema)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tfmammo sy", ["synthesize", "synthesize-patches"]),
        ("tfmammo train vani", ["vanilla_gan"]),
        ("tfmammo evaluate report", [""]),
        ("tfmammo train can --config pix", ["pix2pix", "pix2pix_can"]),
        ("tfmammo schema quick", ["quickstart"]),
        ("tfmammo configs c", ["copy"]),
        ("tfmammo train can --pr", ["--print-config"]),
        ("tfmammo train can --output ", [""]),
    ],
)
def test_the_shell_is_told_the_next_word(capsys, monkeypatch, line, words):
    monkeypatch.setenv("COMP_LINE", f"{line} and what follows")
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert answer(capsys, "complete", "tfmammo", "x", "y") == "\n".join(words) + "\n"


def test_a_schema_says_what_the_class_does(capsys):
    schema = json.loads(answer(capsys, "schema", "quickstart"))
    data = schema["$defs"]["DataConfig"]
    assert schema["additionalProperties"] is False and data["additionalProperties"] is False
    size = {"default": 256, "exclusiveMinimum": 0, "maximum": 2**14, "type": "integer"}
    text = {"title": "Size", "description": "Patch rows and columns, px."}
    assert data["properties"]["size"] == size | text
    assert schema["properties"]["model"]["$ref"] == "#/$defs/CANConfig"


def test_a_file_wins_over_a_shipped_config(tmp_path):
    (tmp_path / "unet").write_text("name: mine\nmodel: {}\n", encoding="utf-8")
    assert config.load("unet").name == "mine"
    (tmp_path / "can").mkdir()  # a folder is no config
    assert config.load("can").name == "can"


# What may reach stderr of a command: our own log lines, which begin with the time.
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d \S.*")
CHEAP = [
    *("pretrained list", "pretrained get shape", "archives phantom", "predict shape.png -o out"),
    *("runs", "registry list", "evaluate segmentation --help"),
    "train can --data DIR --set training.initial=can --print-config",
]
# whose libraries a run that is not nightly hears, too
HEARD = ("predict", "report", "build", "export", "synthesize", "serve", "studio", "reader-study")


def mark_nightly(name):
    return pytest.param([name, "--help"], marks=[pytest.mark.nightly] * (name not in HEARD))


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [*map(mark_nightly, (*shipped.COMMANDS, *command.OWN)), *map(str.split, CHEAP)],
    ids=" ".join,
)
def test_no_command_shows_a_line_of_a_library(repository, tmp_path, words):
    """Each in a process of its own, where TensorFlow is imported and looks for devices."""
    quieted = ("CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL")  # by the tests' own environment
    environment = {key: value for key, value in os.environ.items() if key not in quieted}
    environment["PYTHONPATH"] = str(repository)
    done = subprocess.run(
        [sys.executable, "-m", "tfmammo", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if not LOG_LINE.fullmatch(line)]
    if done.returncode:  # the last line is the error's
        assert done.returncode == 2 and lines.pop().startswith("error: "), done.stderr
    assert not lines, done.stderr


def test_a_missing_extra_is_one_sentence(capsys):
    def import_missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    said = refuse(capsys, cli.run, lambda: import_missing("uvicorn.protocols"))
    assert said == 'error: uvicorn is missing: pip install "tfmammo[serve]"'
    with pytest.raises(ModuleNotFoundError):
        cli.run(lambda: import_missing("nobody_knows"))
