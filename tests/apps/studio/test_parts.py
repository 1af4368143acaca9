"""Parts of the studio without a browser: clicks, texts, uploads, requests, config."""

import shutil
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.archives.writers import folder as writer
from tfmammo import archives
from tfmammo.apps.reader_study import __main__ as reader_study
from tfmammo.apps.reader_study.cases import ReaderStudyConfig
from tfmammo.archives import phantom
from tfmammo.config import DataConfig, parse
from tfmammo.errors import ArchiveError, ConfigError, DataError
from tfmammo.synthesis import editor
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, EditResult

pytest.importorskip("gradio", reason="the extra serve is not installed")

from tfmammo.apps.studio import __main__ as studio  # noqa: E402
from tfmammo.apps.studio import app, inserting, reading, uploads  # noqa: E402
from tfmammo.apps.studio.config import StudioConfig  # noqa: E402


@pytest.mark.parametrize(
    ("click", "expected"),
    [((0, 0), (2, 2)), ((99, 199), (997, 497)), ((50, 100), (502, 252)), ((-3, 500), (999, 0))],
)
def test_a_click_becomes_the_native_pixel_under_it(click, expected):
    """A picture of 200 x 100 px shows 1000 x 500 px: pixel 0 covers native pixels 0 to 4."""
    assert uploads.to_native(click, np.zeros((200, 100), np.uint8), 1000, 500) == expected


def test_the_mark_leaves_its_middle_open():
    picture = np.full((320, 200), 90, np.uint8)
    marked = uploads.draw_cross(picture, (400, 300), 1280, 800)  # the picture's (100, 75)
    changed = np.argwhere((marked != 90).any(axis=-1))
    assert abs(changed.mean(axis=0) - (100, 75)).max() < 1
    assert (marked[98:103, 73:78] == 90).all()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ArchiveError("/srv/a/Jane Doe.dcm: is no DICOM (X: y)"), "Is no DICOM (X: y)."),
        (
            ArchiveError("no such mammogram at /data/Jane/a.png, see b/c.txt."),
            "No such mammogram at a file, see a file.",
        ),
        (ValueError("Jane"), "Something went wrong in the studio. Its log has the details."),
    ],
)
def test_an_error_is_a_sentence_without_places(error, expected):
    assert uploads.format_error(error) == expected


def test_a_fault_of_ours_is_logged_without_its_message(caplog):
    def work():
        raise KeyError("Jane")

    (update,) = uploads.run_with_note("note", work).values()
    assert update["visible"] and "Jane" not in update["value"]
    assert "KeyError" in caplog.text and "in work" in caplog.text
    assert "Jane" not in caplog.text.replace('KeyError("Jane")', "")


def system(**values):
    return Editor(EditorConfig(**{"renderer": "infilling", "generator": "x"} | values), None)


def test_only_what_a_system_uses_is_asked_of_it():
    generated = system()
    assert inserting.size_control(generated) == "size"
    assert inserting.list_shapes(generated) == list(inserting.SHAPES)
    request = inserting.build_request(generated, (5, 6), 40, 50, "oval", 2.0, None)
    assert request == EditRequest(centre=(5, 6), size=(40, 50), shape="oval")
    real = system(renderer="poisson", generator=None, lesions=DataConfig())
    assert inserting.size_control(real) == "factor"
    request = inserting.build_request(real, (5, 6), 40, 50, "oval", 2.0, 3)
    assert request == EditRequest(centre=(5, 6), factor=2.0, seed=3)
    own = system(lesions=DataConfig())
    assert inserting.list_shapes(own)[0] == inserting.OWN_SHAPE
    assert inserting.build_request(own, (5, 6), 40, 50, inserting.OWN_SHAPE, 1.0, 0).shape is None
    with pytest.raises(DataError, match="height and width"):
        inserting.build_request(generated, (5, 6), None, 50, "oval", 1.0, 0)
    with pytest.raises(ValueError) as caught:
        inserting.build_request(generated, (5, 6), 40, 50, "oval", 1.0, -1)
    assert uploads.format_error(caught.value).startswith("Seed: input should be greater than")


def test_texts_of_sizes_results_and_findings():
    assert inserting.format_size(40, 60, (0.1, 0.2)) == "That is 4.0 x 12.0 mm."
    assert "unknown" in inserting.format_size(40, 60, None)
    assert "missing" in inserting.format_size(40, None, (0.1, 0.2))
    mammogram = phantom.read(count=1)[0]
    mask = np.zeros((mammogram.rows, mammogram.cols), np.uint8)
    mask[10:20, 30:45] = 1
    result = EditResult(mammogram, None, None, mask, (10, 30, 20, 45), "mass", {})
    text = inserting.format_result(result)
    assert text.startswith("**Mass added.**") and text.endswith("Area: 150 px = 6.0 mm².")
    assert "rows 10 to 20, columns 30 to 45: 10 x 15 px = 2.0 x 3.0 mm" in text
    lesion = {"number": 1, "kind": "mass", "score": 0.934, "remarks": ["a", "b"]}
    lesion |= {"box": [10, 20, 50, 70], "mask_box": [12, 22, 42, 62], "uncertainty": 0.01234}
    lesion |= {"shape": "oval", "shape_probabilities": {"oval": 0.71, "round": 0.29}}
    row = ["1", "mass", "0.93", "10, 20, 50, 70", "30 x 40", "3.0 x 8.0", "oval 0.71", "0.012"]
    assert reading.format_row(lesion, (0.1, 0.2)) == [*row, "a; b"]
    bare = lesion | dict.fromkeys(("mask_box", "shape", "shape_probabilities", "uncertainty"))
    assert reading.format_row(bare, None)[4:8] == ["40 x 50", "unknown", "-", "-"]


def find_blue(picture):
    """The first and last row and column of an outline."""
    places = np.argwhere(picture[..., 2] > 150)
    return [*places.min(axis=0), *places.max(axis=0)]


def test_an_outline_is_drawn_where_the_mask_is(tmp_path):
    """Of rows 15 to 24 and columns 35 to 49 in a mammogram of 100 x 160 px."""
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:20] = 1
    half, part = np.zeros((50, 80), np.uint8), np.zeros((60, 90), np.uint8)
    box, corner = (10, 30, 30, 60), (4, 10)
    view = inserting.ResultView(half, half, (part, part), corner, 100, 160, box, mask, tmp_path)
    before, after = view.detail(True)
    assert find_blue(after) == [11, 25, 20, 39] and not before.any()
    assert find_blue(view.pair(True)[1]) == [7, 17, 12, 24]
    assert not view.detail(False)[1].any() and not view.pair(False)[1].any()


def test_facts_count_only_where_the_file_has_none():
    known = phantom.read(count=1)[0]
    other = {"L": "right", "R": "left"}[known.laterality]
    assert uploads.parse_facts(other, "MLO", 0.5).add_to(known) == known
    unknown = replace(known, laterality=None, view=None, spacing=None)
    bare = uploads.parse_facts("left", "unknown", 0.1).add_to(unknown)
    assert (bare.laterality, bare.view, bare.spacing) == ("L", None, (0.1, 0.1))
    with pytest.raises(ArchiveError, match="25.4 mm per px is not the spacing of a mammogram"):
        uploads.parse_facts("unknown", "unknown", 25.4).add_to(unknown)


def test_the_next_mammogram_has_not_the_facts_of_the_last_one():
    names = ["held", "centre", "picture", "hint", "height", "width", "make", "result"]
    tab = SimpleNamespace(facts=["side", "view", "spacing"], **{name: name for name in names})
    held = uploads.open_phantom(next(iter(uploads.list_phantoms())))
    updates = inserting.InsertTab._show(tab, held, None)
    assert [updates[name] for name in tab.facts] == ["unknown", "unknown", None]


@pytest.mark.parametrize(
    ("ending", "bits"), [(".dcm", 12), (".png", 16), (".tif", 12), (".jpg", 8)]
)
def test_an_upload_is_deleted_and_its_stored_values_are_kept(tmp_path, ending, bits):
    one = phantom.read(count=1)[0]
    (path,) = writer.write([one], tmp_path / "archive", ending=ending, bits=bits)
    expected = archives.read_stored(editor.open_mammogram(path))
    place = tmp_path / "gradio" / "abc"
    place.mkdir(parents=True)
    upload = shutil.copy(path, place / f"Jane Doe{ending}")
    held = uploads.open_upload(str(upload))
    assert not place.exists() and path.exists()
    stored = archives.read_stored(held.mammogram)
    assert np.array_equal(stored.values, expected.values) and stored.bits == expected.bits
    assert np.array_equal(held.mammogram.pixels(), expected.image())
    assert held.mammogram.is_lossy == (ending == ".jpg")
    assert (held.folder is not None) == (ending == ".dcm")
    uploads.release(held)
    assert held.folder is None or not held.folder.exists()
    with pytest.raises(ArchiveError, match="the upload no longer exists; send it again"):
        uploads.open_upload(str(upload))


def test_an_error_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError), uploads.new_folder("made_") as folder:
        (folder / "mask.png").write_bytes(b"half of it")
        raise OSError("no space left")
    assert not list(tmp_path.iterdir())
    with uploads.new_folder("made_") as folder:
        pass
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("port: 7860", "one of systems"),
        ("systems: {a: {renderer: contextual}}", "systems.a: .* generator"),
        ("systems: {a: {renderer: infilling, generator: x}}\ntotal_mb: 1", "total_mb"),
    ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, content, word):
    (tmp_path / "studio.yaml").write_text(content)
    with pytest.raises(ConfigError, match=word) as caught:
        parse(StudioConfig, tmp_path / "studio.yaml")
    assert "\n" not in str(caught.value)


def test_a_model_that_cant_be_loaded_is_named_by_its_key(tmp_path):
    systems = {"mine": {"renderer": "infilling", "generator": str(tmp_path / "nowhere")}}
    with pytest.raises(ConfigError, match=r"^systems\.mine: "):
        app.build(StudioConfig.model_validate({"systems": systems}))


def test_a_study_is_opened_with_the_keys_that_its_cases_were_drawn_with(
    repository, tmp_path, monkeypatch
):
    shown = []
    monkeypatch.setattr(studio, "show", shown.append)
    config = repository / "configs/reader_study.yaml"
    database = tmp_path / "answers.sqlite"
    overrides = ["pairs=4", "real.phantoms=7", f"database={database}"]
    reader_study.main(["--config", str(config), "open", "--set", *overrides])
    (opened,) = shown
    assert opened.study == parse(ReaderStudyConfig, config, overrides)
    assert not opened.systems and opened.pipeline is None and not database.exists()


@pytest.mark.slow
def test_each_system_of_the_shipped_config_edits(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("TFMAMMO_CACHE", str(tmp_path))
    mammogram = phantom.read(count=1)[0]
    config = parse(StudioConfig, repository / "configs/studio.yaml")
    for name, system in config.systems.items():
        editor = Editor.load(system)
        is_drawn = system.renderer == "infilling"
        request = EditRequest(centre=(300, 150), size=(100, 100) if is_drawn else None)
        result = editor.edit(mammogram, request)
        assert result.mask.any(), name
        assert editor.removes == name.startswith("remove")
