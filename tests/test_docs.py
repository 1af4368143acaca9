"""Check the documentation: the site builds, commands work, numbers are measured, examples run.

Bash runs every fenced block of shell in README.md and docs/, and every command in running text.
Functions that record their arguments replace python, pip, mlflow and pytest, so that loops and
variables are the page's own. A command is valid if the script or module that it names reads its
arguments, config file and overrides, up to the point where it would touch data.

DIR, RUN and the like stay words, as only users have them.
"""

import argparse
import contextlib
import html
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import setuptools
import yaml

from tfmammo import __main__ as command_line
from tfmammo import shipped
from tfmammo.tracking import zoo

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [REPOSITORY / "README.md", *DOCS.rglob("*.md")]
)
RECORDS = sorted([*DOCS.glob("*.json"), *DOCS.glob("results/pictures/*.json")])  # of pictures
PAPERS = ("can", "infilling", "blending", "contextual", "cgan")
# Where a page's numbers may come from.
SOURCES = [
    "tfmammo/metrics/printed.json",
    "docs/results/*.md",
    "docs/results/*.csv",
    "docs/measurements.md",
    "setup.py",
    "configs/*.yaml",
    "tfmammo/data/card.py",
    "tfmammo/nn/networks.py",
]
SOURCES += [f"tfmammo/{folder}/*.py" for folder in ("archives", "models", "baselines", "detection")]
NOTED = """
set -eu
note() { printf '%s\\0' "$@" $'\\x1e'; }
python() { note python "$@"; }; pip() { note pip "$@"; }; mlflow() { note mlflow "$@"; }; pytest() { note pytest "$@"; }
tfmammo() { note tfmammo "$@"; }
mkdocs() { :; }  # the site's own test builds it
command_not_found_handle() { echo "no command of ours: $*" >&2; return 127; }
"""  # noqa: E501


def text(page):
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page, *languages):
    """Return the fenced blocks of a page in these languages; "" is a fence that names none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)
    return [content for language, content in fenced if language in languages]


def prose(page):
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


def inline(page):
    """Return the commands in running text that have arguments."""
    return re.findall(
        r"`(python (?:-m )?[\w./]+ [^`]+|tfmammo [^`]* -[^`]+|(?:mlflow|pip) [^`]* -[^`]+)`",
        prose(page),
    )


def as_python(words):
    """Return the command of `python` that a command of tfmammo means, or that command."""
    command, *others = words
    if command != "tfmammo" or others[0] not in {*command_line.FOLDERS, *shipped.COMMANDS}:
        return words
    name, *others = others
    if name in command_line.FOLDERS:
        return ["python", f"{name}/{others[0]}.py", *others[1:]]
    return ["python", *shipped.COMMANDS[name][0].split(), *others]


def commands(page, folder):
    """Return every command of a page as bash would start it: lists of words."""
    script = "\n".join([NOTED, *blocks(page, "", "sh"), *inline(page)])
    done = subprocess.run(
        [shutil.which("bash")],
        input=script,  # an argument would end at 128 KiB
        cwd=folder,
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    started = [command.strip("\0").split("\0") for command in done.stdout.split("\x1e")[:-1]]
    return [as_python(words) for words in started]


class Accepted(BaseException):
    """A command was read to its end. No `except Exception` on the way may catch this."""


def check_halvings(parsed):
    """Raise ConfigError where a network halves patches once per filter, and they are too small."""
    from tfmammo.nn.networks import halve

    model = getattr(parsed, "model", None)
    filters = getattr(model, "filters", ())
    if getattr(model, "generator", "") == "crn":
        halve("widths", parsed.data.size, len(model.widths) - 1)
    elif isinstance(filters, tuple) and filters:
        halve("filters", parsed.data.size, len(filters))


@pytest.fixture
def reading(monkeypatch):
    """Stop commands once they have read their arguments, and their config if they have one."""
    from tfmammo import config as config_module
    from tfmammo.cli import Parser

    parse = config_module.parse

    def accepting(parse_args):
        def arguments(self, *args, **kwargs):
            parsed = parse_args(self, *args, **kwargs)
            # no config, or no file: the option of benchmarks/step.py is the model's config
            if isinstance(getattr(parsed, "config", {}), dict):
                raise Accepted
            return parsed

        return arguments

    def configured(schema, path, overrides=()):
        if not path or Path(path).suffix != ".json":  # a synthesis writes recipes as .json
            check_halvings(parse(schema, path, overrides))
        raise Accepted

    monkeypatch.chdir(REPOSITORY)
    for parser in (argparse.ArgumentParser, Parser):
        monkeypatch.setattr(parser, "parse_args", accepting(parser.parse_args))
    monkeypatch.setattr(config_module, "parse", configured)


def read_python(words, monkeypatch):
    """Let a script or module read its arguments."""
    arguments = words[2:] if words[0] == "-m" else words[1:]
    if words[0] == "-m":
        module = importlib.import_module(words[1])
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{words[1]}.__main__")
        main = module.main
    else:
        assert (REPOSITORY / words[0]).is_file(), f"no such script: {words[0]}"
        monkeypatch.syspath_prepend(str((REPOSITORY / words[0]).parent))  # as Python does
        main = runpy.run_path(str(REPOSITORY / words[0]), run_name="a_command_of_the_docs")["main"]
    monkeypatch.setattr(sys, "argv", [words[0], *arguments])
    with pytest.raises(Accepted):
        main()


def read_setup():
    """Return the arguments that setup.py hands to setuptools."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", found.update)
        patch.chdir(REPOSITORY)
        runpy.run_path("setup.py")
    return found


def read_pip(words):
    assert words[0] == "install"
    for named in re.findall(r"^(?:\.|tfmammo)\[([\w,]+)\]$", "\n".join(words), re.MULTILINE):
        assert set(named.split(",")) <= set(read_setup()["extras_require"])


def read_tfmammo(words, capsys):
    """Run a command of tfmammo's own, which only prints."""
    assert words[0] in ("configs", "schema")
    with contextlib.suppress(Accepted):
        command_line.main(words)
    assert not capsys.readouterr().err


def read_mlflow(words):
    from mlflow.cli import cli

    command = cli
    rest = list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        command = command.get_command(
            command.make_context("mlflow", [name], resilient_parsing=True), name
        )
        assert command, f"mlflow has no {name}"
    command.make_context(command.name, rest)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "", "sh") or inline(page)])
def test_every_command_is_read_by_what_it_starts(page, tmp_path, reading, monkeypatch, capsys):
    started = commands(page, tmp_path)
    assert started
    for command, *words in started:
        try:
            if command == "python":
                read_python(words, monkeypatch)
            elif command == "tfmammo":
                read_tfmammo(words, capsys)
            elif command != "pytest":
                {"pip": read_pip, "mlflow": read_mlflow}[command](words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{page}: {command} {' '.join(words)}\n{error!r}")


RUN = re.compile(r"runs/[\w./-]*\w")


def test_runs_are_called_alike_in_readme_configs_and_pages(tmp_path):
    """A run that a page or a config reads is one that a command of some page or config makes.

    A command for one fold means all of them. Measurements are of the past.
    """
    made = set()
    read = set()

    def note(source, text):
        """Note the runs in a text whose commands make what follows --output."""
        for output, run in re.findall(rf"(--output\s+)?({RUN.pattern})", text):
            run = re.sub(r"/fold\d+", "/fold", run)
            made.add(run) if output else read.add((source, run))

    for page in PAGES:
        if page != "docs/measurements.md" and (blocks(page, "", "sh") or inline(page)):
            for words in commands(page, tmp_path):
                note(page, " ".join(words))
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        content = path.read_text(encoding="utf-8")
        head = "".join(line for line in content.splitlines(keepends=True) if line.startswith("#"))
        note(path.name, re.sub(r"\n#\s*", " ", head))
        values = yaml.safe_load(content)
        values.pop("database", None)  # the command itself makes it
        note(path.name, str(values))
    assert len(made) > 20
    parts = ("/split.json", "/best", "/export", "")
    unknown = {
        (source, run)
        for source, run in read
        if not any(run.startswith(f"{one}{part}") for one in made for part in parts)
    }
    assert not unknown


def test_every_extra_is_on_the_first_page():
    (table,) = (table for table in tables("docs/index.md") if table[0][0] == "extra")
    assert {row[0].strip("`") for row in table[2:]} == set(read_setup()["extras_require"])


def numbers(line):
    """Return the numbers of a line as they are written, without signs; a DOI is none."""
    found = re.findall(
        r"(?<![\w.,])(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?![\w])",
        re.sub(r"\b10\.\d{4,}/\S+", "", line).replace("**", ""),
    )
    return list(filter(None, found))


def values(line):
    """Return the numbers of a line, whatever zeros are written: 0.30 is 0.3."""
    return {float(number.replace(",", "")) for number in numbers(line)}


def tables(page):
    """Yield the tables of a page: lists of rows of cells, the heading first."""
    for table in re.findall(r"(?:^\|.*\n)+", text(page), re.MULTILINE):
        yield [
            [cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in table.splitlines()
        ]


def pages_with_numbers():
    return [
        page
        for page in PAGES
        if page not in ("README.md", "docs/measurements.md", "docs/models/zoo.md")
        and not page.startswith(("docs/results/", "docs/guides/sixth", "docs/guides/memory"))
    ]


def read_numbers(path):
    """Return the numbers of each line of a file."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        content = content.replace(",", " ")
    return [values(line) for line in content.splitlines()]


def test_every_measured_number_stands_in_a_row_of_the_results():
    """A value and its interval in one row, other numbers of a cell in any."""
    paths = [*sorted((DOCS / "results").rglob("*.csv")), DOCS / "measurements.md"]
    lines = [line for path in paths for line in read_numbers(path)]
    seen = 0
    for page in ["README.md", *pages_with_numbers()]:
        for heading, _, *rows in tables(page):
            for column in (i for i, title in enumerate(heading) if "measured" in title):
                for cell in (row[column] for row in rows):
                    parts = re.findall(r"[^\s\[]+ \[[^\]]+\]|[^\s\[\]]+", cell)
                    for wanted in map(values, parts):
                        seen += len(wanted)
                        assert any(wanted <= line for line in lines), (
                            f"{page}: {cell} is in no row of the results"
                        )
    assert seen > 100


def test_no_page_has_a_number_of_its_own():
    files = [path for pattern in SOURCES for path in REPOSITORY.glob(pattern)]
    printed = {value for path in files for line in read_numbers(path) for value in line}
    for page in pages_with_numbers():
        found = {number for number in numbers(prose(page)) if "." in number or "," in number}
        others = {number for number in found if not values(number) <= printed}
        assert not others, f"{page}: {sorted(others)}"


def test_the_docs_cite_every_paper_and_so_does_the_citation_file():
    citation = yaml.safe_load(text("CITATION.cff"))
    entries = re.findall(
        r"^@\w+{.*?(?=^@|\Z)", "".join(blocks("docs/papers/index.md", "bibtex")), re.M | re.S
    )
    assert len(entries) == len(citation["references"]) == len(PAPERS)
    for entry, reference in zip(entries, citation["references"], strict=True):
        assert reference["title"].lower() in " ".join(entry.split()).lower()
        if "doi" in reference:
            assert reference["doi"] in entry and f"doi.org/{reference['doi']}" in text("README.md")


def test_the_readme_is_short_and_its_pictures_are_there():
    readme = text("README.md")
    lines = readme.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)
    assert pictures and all((REPOSITORY / picture).is_file() for picture in pictures)


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFMAMMO_CACHE", str(tmp_path))
    (block,) = blocks("README.md", "python")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["edit"].mask.any() and (tmp_path / "synthetic.dcm").is_file()
    assert names["masks"].shape == names["patches"].images.shape


def test_every_system_has_a_page():
    (systems,) = (table for table in tables("docs/models/index.md") if table[0][0] == "system")
    pages = [page for page in PAGES if page.startswith(("docs/papers/", "docs/models/"))]
    written = "\n".join(map(text, pages))
    assert len(systems) > 15
    for name, _, command in systems[2:]:
        words = command.strip("`").split()
        python = " ".join(as_python(words))
        scripts = re.findall(r"(?:train|evaluate)/\w+\.py|--study \w+", python)
        scripts = scripts or [" ".join(words[:2])]
        assert all(script in written for script in scripts), f"no page shows how to run {name}"


def test_every_archive_has_a_page_with_its_licence():
    from tfmammo.archives import ARCHIVES
    from tfmammo.data.card import LICENCES

    assert {path.stem for path in (DOCS / "archives").glob("*.md")} == {*ARCHIVES, "index"}
    for name in ARCHIVES:
        page = " ".join(text(f"docs/archives/{name}.md").split())
        assert LICENCES[name] in page and f"tfmammo archives {name}" in page
        assert f"data.name={name}" in page
        assert f"[`{name}`]({name}.md)" in text("docs/archives/index.md")


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_picture_is_of_the_shipped_networks(record):
    networks = json.loads(record.read_text())["networks"]
    assert networks == {name: zoo.read_entry(name).sha256 for name in networks}
    assert any(record.with_suffix(suffix).is_file() for suffix in (".jpg", ".png"))


def test_every_package_is_in_the_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    modules = set(re.findall(r"^::: tfmammo\.([\w.]+)$", pages, re.MULTILINE))
    files = {
        path.relative_to(REPOSITORY / "tfmammo").parts[0].removesuffix(".py")
        for path in (REPOSITORY / "tfmammo").rglob("*.py")
    }
    tops = {module.partition(".")[0] for module in modules}
    assert {name for name in files if not name.startswith("_")} - tops <= {"cli", "filesystem"}


def test_python_of_the_pages_is_python():
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, page, "exec")
        for block in blocks(page, "yaml"):
            assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.slow
def test_the_sixth_paper_trains_and_its_own_tests_pass(tmp_path, monkeypatch, tracking_uri):
    from tfmammo.tracking.export import find_function, read_card

    page = "docs/guides/sixth_paper.md"
    model, script, tests = blocks(page, "python")
    module = types.ModuleType("tfmammo.models.soft_dice")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(model, "soft_dice.py", "exec"), module.__dict__)
    names = {"__name__": "test_soft_dice"}
    exec(compile(tests, "test_soft_dice.py", "exec"), names)
    own = [test for name, test in names.items() if name.startswith("test_")]
    assert len(own) == 3
    for test in own:
        test()
    (tmp_path / "soft_dice.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
    small = ["data.phantoms=12", "data.size=32", "training.steps=2", "training.steps_per_loop=1"]
    small += ["training.precision=float32", f"tracking.uri={tracking_uri}"]
    arguments = ["--config", "soft_dice.yaml", "--output", "out", "--set", *small]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["soft_dice.py", *arguments, "tracking.system_metrics=false"])
    names = {"__name__": "soft_dice_script", "__doc__": "Train Soft Dice."}
    exec(compile(script, "soft_dice.py", "exec"), names)
    names["main"]()
    card = read_card(tmp_path / "out" / "export")
    assert (card["name"], card["step"]) == ("soft_dice", 2)
    assert card["config"]["model"]["filters"] == module.SoftDiceConfig().filters
    assert find_function(tmp_path / "out" / "export", {"image"}, {"mask"}) == "segmenter"
    assert 0 <= card["metrics"]["dice"] <= 1


@pytest.mark.long
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    from tfmammo.config import DataConfig

    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        if not find_spec(package.partition(".")[0]):
            pytest.skip(f"{package} is missing: pip install -e '.[docs]'")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    pages = {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8")
        for path in site.rglob("*.html")
    }
    docs = {page.removeprefix("docs/").replace(".md", ".html") for page in PAGES}
    assert docs - {"README.html"} <= set(pages)
    for page, content in pages.items():
        fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", content)
        assert not [tag for tag in fetched if re.search(r'(?:src|href)="(?:https?:)?//', tag)], page
    # The fields of a config are documented where they stand.
    description = DataConfig.model_fields["phantoms"].description
    assert html.escape(description, quote=False) in pages["reference/config.html"]
