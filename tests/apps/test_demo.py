"""The demo: its page, its files, and the places where lesions go."""

import html
import re
import shlex
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from tests.commands import run_module_here
from tfmammo.apps.demo import __main__ as command
from tfmammo.apps.demo import scenes
from tfmammo.archives import folder, phantom
from tfmammo.errors import ConfigError, DataError
from tfmammo.tracking import zoo


@pytest.fixture(scope="module")
def phantom_case(tmp_path_factory):
    return scenes._write_phantom(tmp_path_factory.mktemp("demo"))


@pytest.mark.long
def test_the_demo_shows_every_system(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFMAMMO_CACHE", str(tmp_path / "cache"))
    command.main(["--output", str(tmp_path / "my demo")])
    page = tmp_path / "my demo" / "demo.html"
    assert capsys.readouterr().out == f"page: {page}\n"
    text = html.unescape(page.read_text(encoding="utf-8"))
    for method in scenes.METHODS:
        assert method.title in text
    assert len(re.findall(r"a mass of about \d+ mm was added here:", text)) == 8
    assert len(re.findall(r"\d+ % of its contrast remains\.", text)) == 2
    titles = re.findall(r'<img src="data:[^"]+" alt="([^"]*)"', text)
    assert len(titles) == len(set(titles)) >= 12
    assert "http" not in re.sub(r"models:/\S+|data:image\S+|https://\S+", "", text)
    for name in re.findall(r"models:/zoo/(\w+)", text):
        assert name in zoo.list_names()
    (shown,) = re.findall(r"tfmammo predict ([^<\n]+)", text)
    *arguments, option, name = shlex.split(shown)
    assert option == "-o"
    done = run_module_here("tfmammo.inference", *arguments, option, tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / name / "overviews").glob("*.png")]) == 2


def test_files_of_the_demo_are_an_archive(phantom_case):
    (mammogram,) = folder.read(phantom_case.root)
    assert max(mammogram.rows, mammogram.cols) == scenes.SIDE
    (lesion,) = mammogram.lesions
    assert lesion.kind == "mass"
    original = phantom.read(count=1)[0]
    side = max(original.rows, original.cols) * original.spacing[0]
    assert mammogram.spacing[0] * scenes.SIDE == pytest.approx(side)
    assert phantom_case.describe_size((0, 0, scenes.SIDE, 9)) == f"about {side:.0f} mm"
    image = mammogram.pixels()[..., 0]
    inside = image[phantom_case.mask[..., 0] > 0].mean()
    assert inside > image[image > scenes.DARK].mean()


def test_commands_name_folders_with_blanks(tmp_path):
    case = scenes._write_real(tmp_path / "my demo")
    command = next(
        line
        for line in "\n".join(scenes._show_cases([case], {})).splitlines()
        if line.startswith("tfmammo")
    )
    assert shlex.split(command)[-1] == str(case.root)
    override = scenes._quote_root("data", case)
    assert shlex.split(override) == [f"data.root={case.root}"]


def test_the_real_mammogram_has_its_mass(tmp_path):
    case = scenes._write_real(tmp_path)
    assert (case.mammogram.rows, case.mammogram.cols) == (512, 320)
    assert case.mammogram.lesions[0].box == (183, 97, 248, 157)


def test_no_place_is_an_error_that_says_why(phantom_case):
    config = scenes.EditorConfig(renderer="can", generator="none")
    edit = mock.Mock(side_effect=DataError("there is no room"))
    full = SimpleNamespace(config=config, network=None, edit=edit)
    with pytest.raises(DataError, match=r"phantom\.png"):
        scenes._insert_somewhere(full, phantom_case)


def test_the_remaining_contrast_of_a_mass():
    mask = np.zeros((90, 90), np.uint8)
    mask[40:50, 40:50] = 1

    def make(grey):
        image = np.full((90, 90, 1), 0.2, np.float32)
        image[mask > 0] = grey
        return SimpleNamespace(image=lambda: image)

    for grey, remaining in ((0.6, 1), (0.3, 0.25), (0.1, 0)):
        result = SimpleNamespace(before=make(0.6), after=make(grey))
        assert scenes._measure_remaining(result, mask) == pytest.approx(remaining, abs=1e-6)


def test_a_demo_leaves_other_folders_alone(tmp_path):
    mine = tmp_path / "mammograms/patient1/a.dcm"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(ConfigError, match="is not empty"):
        scenes.write_demo(tmp_path)
    assert mine.read_text() == "precious"
