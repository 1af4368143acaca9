"""One lesion into one mammogram, or out of it, at a place: all systems, with tiny networks."""

import json

import cv2
import numpy as np
import pydicom
import pytest
from pydantic import ValidationError

from tests.small_mammograms import draw_breast
from tests.synthesis_archives import draw_mammogram, write_archive
from tfmammo import archives
from tfmammo.archives import phantom
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.errors import ArchiveError, ConfigError, DataError
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, open_mammogram

MIDDLE = (100, 60)
OVAL = {"centre": MIDDLE, "shape": "oval"}
PHANTOM = {"name": "phantom"}
LARGER = {"scale": (0.5, 0.5)}  # a contextual GAN's patch of 32 px covers 64


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A 16-bit PNG of a breast whose chest wall is on the left."""
    path = tmp_path_factory.mktemp("picture") / "DOE^JANE.png"
    synthetic.write_png(path, Stored.of_image(draw_breast(0), 16))
    return path


@pytest.fixture
def mammogram(picture):
    return open_mammogram(picture, "L", "CC", (0.1, 0.1))


@pytest.fixture
def load_can(can):
    """A function (**data) -> the editor of a CAN."""

    def load(**data):
        return Editor.load(EditorConfig(renderer="can", generator=str(can(**data)), feather=4))

    return load


@pytest.fixture(scope="module")
def masses(tmp_path_factory):
    """An archive of two patients with a mass each, 0.1 mm per px as the mammogram."""
    outline = [[80, 30], [80, 50], [92, 56], [104, 50], [104, 30]]
    ill = [draw_mammogram(number, outline) for number in (4, 6)]
    return write_archive(tmp_path_factory.mktemp("masses"), ill)


def test_a_can_inserts_its_patch_whole(load_can, mammogram):
    request = EditRequest(centre=MIDDLE, size=(20, 20), shape="round", seed=1)
    editor = load_can()
    result = editor.edit(mammogram, request)
    top, left, bottom, right = result.box
    np.testing.assert_allclose([(top + bottom) / 2, (left + right) / 2], MIDDLE, atol=1)
    assert bottom - top <= 21 and right - left <= 21
    after = result.after.image()[..., 0]
    inner = cv2.erode(result.mask, np.ones((7, 7), np.uint8)) > 0
    # What the generator makes, on its own grey scale of 0 to 1.
    assert after[inner].mean() == pytest.approx(0.9, abs=3e-3) and after[inner].std() < 0.025
    changed = np.argwhere(result.after.values != result.before.values)
    # the patch: twice the box
    assert changed.min(axis=0).tolist() >= [79, 39] and changed.max(axis=0).max() <= 122
    beside = after[top - 5 : top - 2, left:right]
    assert beside.mean() == pytest.approx(0.3, abs=0.02), "its own tissue, not the mammogram's 0.4"
    assert result.kind == "mass" and result.recipe["generator"]["name"] == "can"
    assert result.recipe["lesions"][0]["shape"] == "drawn, round"
    other = load_can().edit(mammogram, request.model_copy(update={"seed": 2}))
    assert (other.mask != result.mask).any()
    stored = editor.config.model_copy(update={"tracking_uri": "sqlite:///elsewhere.db"})
    again = Editor.load(stored).edit(mammogram, request)
    assert again.recipe["identity"] == result.recipe["identity"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "renderer", ["infilling", "can", "blending", "poisson", "paste", "contextual"]
)
def test_every_system_changes_its_place_alone_and_repeats_itself(
    renderer, can, masses, mammogram, tiny_infilling, tiny_blending, tiny_contextual, tmp_path
):
    networks = {
        "infilling": lambda: tiny_infilling(size=32, padding=20),
        "can": can,
        "blending": tiny_blending,
        "contextual": lambda: tiny_contextual(sampling=LARGER),
    }
    generator = str(networks[renderer]()) if renderer in networks else None
    lesions = masses if renderer in ("blending", "poisson", "paste") else None
    editor = Editor.load(EditorConfig(renderer=renderer, generator=generator, lesions=lesions))
    made_up = {"size": (22, 18), "shape": "lobular"} if renderer in ("infilling", "can") else {}
    request = EditRequest(centre=MIDDLE, seed=3, **made_up)
    result = editor.edit(mammogram, request)
    top, left, bottom, right = result.box
    assert top <= 100 <= bottom and left <= 60 <= right
    changed = result.after.values != result.before.values
    assert changed[result.mask > 0].mean() > 0.5
    assert not changed[:40].any() and not changed[160:].any()
    box = (left, top, right - left, bottom - top)
    assert cv2.boundingRect(result.mask) == box
    again = editor.edit(mammogram, request)
    np.testing.assert_array_equal(again.after.values, result.after.values)
    assert json.dumps(again.recipe) == json.dumps(result.recipe)
    result.write_dicom(tmp_path / "synthetic.dcm")
    written = pydicom.dcmread(tmp_path / "synthetic.dcm")
    assert written.SyntheticData == "YES" and "DOE" not in str(written)
    (annotation,) = result.to_coco("synthetic.dcm")["annotations"]
    assert (annotation["bbox"], annotation["area"]) == ([*box], result.mask.sum())


def test_a_removal_has_no_annotation(tiny_contextual, mammogram):
    generator = str(tiny_contextual("removal", sampling=LARGER))
    editor = Editor.load(EditorConfig(renderer="contextual", generator=generator))
    result = editor.edit(mammogram, EditRequest(centre=MIDDLE))
    assert editor.removes and result.kind is None and result.to_coco("x.dcm")["annotations"] == []
    on = result.mask > 0
    assert result.after.image()[on].mean() < result.before.image()[on].mean()


def test_real_lesions_are_read_once_and_scaled_by_the_factor(masses, mammogram, monkeypatch):
    read = []
    reader = archives.ARCHIVES["folder"]
    counted = lambda *facts: read.append(1) or reader(*facts)  # noqa: E731
    monkeypatch.setitem(archives.ARCHIVES, "folder", counted)
    editor = Editor.load(EditorConfig(renderer="paste", lesions=masses))
    areas = [
        editor.edit(mammogram, EditRequest(centre=MIDDLE, factor=factor, seed=4)).mask.sum()
        for factor in (0.5, 1.0)
    ]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.15) and len(read) == 1


def test_an_editor_takes_the_lesions_of_another_archive(masses, mammogram, tmp_path, load_can):
    small = draw_mammogram(8, [[90, 40], [90, 46], [97, 46], [97, 40]])
    lesions = write_archive(tmp_path / "small", [small])
    request = EditRequest(centre=MIDDLE, seed=4)
    editor = Editor.load(EditorConfig(renderer="poisson", lesions=masses))
    expected = Editor.load(EditorConfig(renderer="poisson", lesions=lesions))
    found = editor.with_lesions(lesions).edit(mammogram, request)
    assert found.recipe == expected.edit(mammogram, request).recipe
    # the editor itself keeps its own, of 25 x 27 px
    assert found.mask.sum() < 100 < editor.edit(mammogram, request).mask.sum()
    with pytest.raises(DataError, match="renderer=can"):
        load_can().with_lesions(lesions)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"centre": (500, 10)}, "centre "),
        (OVAL, "size is missing"),
        ({"centre": MIDDLE, "size": (20, 20)}, "shape is missing"),
        ({**OVAL, "centre": (5, 140), "size": (20, 20)}, "beyond the mammogram|not entirely free"),
        ({**OVAL, "size": (20_000, 20_000)}, "20000 x 20000 px"),
        ({**OVAL, "size": (20, 151)}, "20 x 151 px"),
        ({**OVAL, "size": (180, 140)}, "larger than the mammogram|beyond the mammogram"),
        ({**OVAL, "size": (20, 20), "factor": 2}, "factor plays no part.* takes shape and size"),
    ],
)
def test_what_cant_be_done_is_one_sentence(values, reason, load_can, mammogram):
    with pytest.raises(DataError, match=reason) as caught:
        load_can().edit(mammogram, EditRequest(**values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("idle", "centre", "reason"),
    [(0.0, (5, 145), "90 % is breast"), (1.0, MIDDLE, "post-processing discards all")],
)
def test_what_a_contextual_gan_cant_do(idle, centre, reason, tiny_contextual, mammogram):
    generator = str(tiny_contextual(idle=idle, sampling=LARGER))
    editor = Editor.load(EditorConfig(renderer="contextual", generator=generator))
    with pytest.raises(DataError, match=reason):
        editor.edit(mammogram, EditRequest(centre=centre))
    with pytest.raises(DataError, match="size plays no part"):
        editor.edit(mammogram, EditRequest(size=(20, 20)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"renderer": "poisson"}, "renderer=poisson needs lesions"),
        ({"renderer": "infilling"}, "renderer=infilling needs a generator"),
        ({"renderer": "contextual"}, "renderer=contextual needs a generator"),
        ({"renderer": "poisson", "generator": "x"}, "generator is not used by renderer=poisson"),
        ({"renderer": "cubism"}, "renderer"),
        (
            {"renderer": "poisson", "lesions": {"name": "inbreast"}},
            "folder of inbreast, is missing",
        ),
        ({"renderer": "poisson", "lesions": PHANTOM, "gan": "x"}, "gan is not used by"),
        ({"renderer": "can", "generator": "x", "lesions": PHANTOM, "gan": "y"}, "both gan and"),
        ({"renderer": "contextual", "generator": "x", "lesions": PHANTOM}, "lesions is not used"),
    ],
)
def test_a_wrong_system_is_named(values, message):
    with pytest.raises(ValidationError, match=message):
        EditorConfig(**values)


@pytest.mark.parametrize("spacing", [(1e-9, 1e-9), (1e6, 1e6), (0.1, 40.0)])
def test_a_spacing_that_no_mammogram_has_is_refused(picture, spacing):
    """Lesions would have to be blurred, or be enlarged, over millions of pixels."""
    with pytest.raises(ArchiveError, match="mm per px"):
        open_mammogram(picture, "L", "CC", spacing)


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"laterality": "left"}, "laterality: input should be 'L' or 'R'"),
        ({"spacing": (np.nan, np.nan)}, "spacing.0: input should be a finite number"),
        ({"spacing": 0.1}, "spacing: input should be a valid tuple"),
    ],
)
def test_facts_that_are_none_are_named(picture, facts, fault):
    with pytest.raises(ConfigError, match=fault):
        open_mammogram(picture, **facts)


def test_facts_of_a_file_come_before_stated_ones(picture, tmp_path, monkeypatch):
    plain = open_mammogram(picture)
    assert (plain.laterality, plain.view, plain.spacing) == (None, None, None)
    path = tmp_path / "one.dcm"
    mammogram = phantom.read(None, None, count=1, seed=1)[0]
    stored = Stored.of_image(mammogram.pixels(), 12)
    synthetic.write_dicom_of_mammogram(path, stored, mammogram, "key")
    other = "R" if mammogram.laterality == "L" else "L"
    assert open_mammogram(path, other).laterality == mammogram.laterality
    monkeypatch.setattr("tfmammo.synthesis.editor.LARGEST", 100)
    with pytest.raises(ArchiveError, match="200 x 150 px"):
        open_mammogram(picture)
