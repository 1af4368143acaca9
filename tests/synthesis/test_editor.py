"""One lesion into one mammogram, or out of it, at a place: all systems, on a breast of
texture, with tiny networks.
"""

import json
from dataclasses import replace
from functools import partial

import cv2
import keras
import numpy as np
import pydicom
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.archives.writers import folder as writer
from tests.small_mammograms import make_mammogram
from tests.synthetic_sets import export_trained
from tfmammo.archives import phantom
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig
from tfmammo.errors import ArchiveError, DataError
from tfmammo.mammogram import Lesion, Mammogram
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, open_mammogram
from tfmammo.synthesis.mammograms import remake, synthesize

ROWS = 200
COLS = 150
MIDDLE = (100, 60)
LARGER = {"scale": (0.5, 0.5)}  # a contextual GAN's patch of 32 px covers 64


def breast(seed=0):
    random = np.random.default_rng(seed)
    row, col = np.mgrid[:ROWS, :COLS]
    inside = ((row - ROWS / 2) / (0.47 * ROWS)) ** 2 + (col / (0.85 * COLS)) ** 2 < 1
    image = 0.4 + 0.02 * random.standard_normal((ROWS, COLS))
    return np.where(inside, image, 0.0).astype(np.float32)[..., None]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A 16-bit PNG of a breast whose chest wall is on the left."""
    path = tmp_path_factory.mktemp("picture") / "DOE^JANE.png"
    synthetic.write_png(path, Stored.of_image(breast(), 16))
    return path


@pytest.fixture
def mammogram(picture):
    return open_mammogram(picture, "L", "CC", (0.1, 0.1))


@pytest.fixture(scope="module")
def can(tmp_path_factory):
    """A function (**data) -> the export of a CAN that paints 0.3 everywhere and 0.9 on the mask."""

    class TinyCAN(keras.Model):
        def __init__(self):
            super().__init__(name="can")
            layer = keras.layers.Conv2D(
                1,
                1,
                kernel_initializer=keras.initializers.Constant(0.6),
                bias_initializer=keras.initializers.Constant(0.3),
            )
            self.networks = {"generator": keras.Sequential([keras.Input((32, 32, 1)), layer])}

        def functions(self):
            @tf.function(input_signature=[tf.TensorSpec([None, 32, 32, 1], tf.float32, "mask")])
            def generator(mask):
                return {"image": self.networks["generator"](mask)}

            return {"generator": generator}

    def make(**data):
        values = {"size": 32, "frame": "square", "context": 2.0, "window": (0, 1), **data}
        return str(
            export_trained(TinyCAN(), tmp_path_factory.mktemp("can") / "export", ["p"], **values)
        )

    return make


@pytest.fixture(scope="module")
def masses(tmp_path_factory):
    """An archive of two patients with a mass each, 0.1 mm per px as the mammogram."""
    root = tmp_path_factory.mktemp("masses")
    outline = np.float32([[80, 30], [80, 50], [92, 56], [104, 50], [104, 30]])
    lesion = Lesion.from_outline("mass", outline, ROWS, COLS)
    mammograms = [
        make_mammogram(number, breast(number), [lesion], spacing=(0.1, 0.1), pathology="benign")
        for number in (5, 6)
    ]
    writer.write(mammograms, root)
    return DataConfig(name="folder", root=root)


def changed_px(result):
    return result.after.values != result.before.values


def test_a_can_sets_its_patch_in_whole(can, mammogram):
    editor = Editor.load(EditorConfig(renderer="can", generator=can(), feather=4))
    result = editor.edit(
        mammogram, EditRequest(centre=MIDDLE, size=(20, 20), shape="round", seed=1)
    )
    top, left, bottom, right = result.box
    assert (
        max(abs((top + bottom) / 2 - 100), abs((left + right) / 2 - 60)) <= 1
        and bottom - top <= 21
        and right - left <= 21
    )
    after = result.after.image()[..., 0]
    inner = cv2.erode(result.mask, np.ones((7, 7), np.uint8)) > 0
    # What the generator says, on its own grey scale of 0 to 1, and the mammogram's grain, as far as
    # it is finer than the patch.
    assert after[inner].mean() == pytest.approx(0.9, abs=3e-3) and after[inner].std() < 0.025
    changed = np.argwhere(changed_px(result))
    # the patch: twice the box
    assert changed.min(axis=0).tolist() >= [79, 39] and changed.max(axis=0).max() <= 122
    beside = after[top - 5 : top - 2, left:right]
    # tissue of its own, not of the mammogram (0.4)
    assert beside.mean() == pytest.approx(0.3, abs=0.02)
    assert (
        result.kind == "mass"
        and result.recipe["generator"]["name"] == "can"
        and result.recipe["lesions"][0]["shape"] == "drawn, round"
    )


def test_a_can_takes_the_grey_scale_of_the_tissue_it_covers(can, mammogram):
    wish = EditRequest(centre=MIDDLE, size=(20, 20), shape="oval")
    result = Editor.load(
        EditorConfig(renderer="can", generator=can(window=None, percentiles=(0, 100)), feather=4)
    ).edit(mammogram, wish)
    box = result.recipe["lesions"][0]["window"]
    under = cv2.resize(
        breast()[box[0] : box[2], box[1] : box[3]], (32, 32), interpolation=cv2.INTER_AREA
    )
    inner = cv2.erode(result.mask, np.ones((5, 5), np.uint8)) > 0
    low = under.min()
    high = under.max()
    assert result.after.image()[..., 0][inner].mean() == pytest.approx(
        low + 0.9 * (high - low), abs=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "renderer", ["infilling", "can", "blending", "poisson", "paste", "contextual"]
)
def test_every_system_changes_its_place_alone_and_repeats_itself(
    renderer, can, masses, mammogram, tiny_infilling, tiny_blending, tiny_contextual, tmp_path
):
    networks = {
        "infilling": lambda: str(tiny_infilling(size=32, padding=20)),
        "can": can,
        "blending": lambda: str(tiny_blending()),
        "contextual": lambda: str(tiny_contextual(sampling=LARGER)),
    }
    real = renderer in ("blending", "poisson", "paste")
    generator = networks[renderer]() if renderer in networks else None
    editor = Editor.load(
        EditorConfig(renderer=renderer, generator=generator, lesions=masses if real else None)
    )
    wish = EditRequest(
        centre=MIDDLE,
        seed=3,
        **({} if real or renderer == "contextual" else {"size": (22, 18), "shape": "lobular"}),
    )
    result = editor.edit(mammogram, wish)
    top, left, bottom, right = result.box
    assert top <= 100 <= bottom and left <= 60 <= right
    changed = changed_px(result)
    assert (
        changed[result.mask > 0].mean() > 0.5 and not changed[:40].any() and not changed[160:].any()
    )
    assert cv2.boundingRect(result.mask) == (left, top, right - left, bottom - top)
    again = editor.edit(mammogram, wish)
    np.testing.assert_array_equal(again.after.values, result.after.values)
    assert json.dumps(again.recipe) == json.dumps(result.recipe)
    result.write_dicom(tmp_path / "synthetic.dcm")
    written = pydicom.dcmread(tmp_path / "synthetic.dcm")
    assert written.SyntheticData == "YES" and "DOE" not in str(written)
    (annotation,) = result.to_coco("synthetic.dcm")["annotations"]
    assert (
        annotation["bbox"] == [left, top, right - left, bottom - top]
        and annotation["area"] == result.mask.sum()
    )


@pytest.mark.parametrize("form", ["png", "dicom"])
def test_a_can_makes_a_whole_set_and_each_of_it_again(form, can, where, tmp_path):
    normal = [
        Mammogram(
            "test",
            f"n{n}",
            str(n),
            ROWS,
            COLS,
            partial(breast, n),
            laterality="L",
            view="CC",
            pathology="normal",
        )
        for n in (1, 2)
    ]
    writer.write(normal, tmp_path / "normal")
    config = SynthesisConfig(
        name="set",
        data=DataConfig(name="folder", root=tmp_path / "normal"),
        renderer="can",
        generator=can(),
        size=(20, 16),
        feather=4,
        shapes={"drawn": "irregular"},
        count=3,
        format=form,
    )
    recipes = synthesize(config, tmp_path / "set")
    assert [recipe.left_out for recipe in recipes] == [None] * 3
    assert {lesion.shape for recipe in recipes for lesion in recipe.lesions} == {"drawn, irregular"}
    known = json.loads((tmp_path / "set/patients.json").read_text())
    # a shape that is drawn is nobody's
    assert known["trained_on"] == ["p"] and known["lesions"] == []
    again = remake(tmp_path / "set/recipes/000001.json", tmp_path / "again", where(config))
    assert again.files == recipes[1].files


def test_another_seed_is_another_lesion(can, mammogram):
    editor = Editor.load(EditorConfig(renderer="can", generator=can()))
    one, other = (
        editor.edit(
            mammogram, EditRequest(centre=MIDDLE, size=(30, 30), shape="irregular", seed=seed)
        )
        for seed in (1, 2)
    )
    assert (one.mask != other.mask).any()


def test_a_shape_by_name_comes_before_the_editors_own(can, mammogram):
    class OwnShapes:
        def draw(self, random):
            raise DataError("the editor's own")

    editor = Editor.load(EditorConfig(renderer="can", generator=can()))
    editor.synthesizer = replace(editor.synthesizer, shapes=OwnShapes())
    request = EditRequest(centre=MIDDLE, size=(30, 30), shape="oval")
    assert editor.edit(mammogram, request).recipe["lesions"][0]["shape"] == "drawn, oval"
    with pytest.raises(DataError, match="the editor's own"):
        editor.edit(mammogram, EditRequest(centre=MIDDLE, size=(30, 30)))


def test_a_removal_has_no_annotation(tiny_contextual, mammogram):
    editor = Editor.load(
        EditorConfig(
            renderer="contextual", generator=str(tiny_contextual("removal", sampling=LARGER))
        )
    )
    result = editor.edit(mammogram, EditRequest(centre=MIDDLE))
    assert editor.removes and result.kind is None and result.to_coco("x.dcm")["annotations"] == []
    assert (
        result.after.image()[result.mask > 0].mean() < result.before.image()[result.mask > 0].mean()
    )


def test_the_factor_is_that_of_a_real_lesion(masses, mammogram):
    editor = Editor.load(EditorConfig(renderer="paste", lesions=masses))
    areas = [
        editor.edit(mammogram, EditRequest(centre=MIDDLE, factor=factor, seed=4)).mask.sum()
        for factor in (0.5, 1.0)
    ]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.15)


def test_an_editor_takes_the_lesions_of_another_archive(masses, mammogram, tmp_path, can):
    outline = np.float32([[90, 40], [90, 46], [97, 46], [97, 40]])
    lesion = Lesion.from_outline("mass", outline, ROWS, COLS)
    small = make_mammogram(7, breast(7), [lesion], spacing=(0.1, 0.1), pathology="benign")
    writer.write([small], tmp_path)
    lesions = DataConfig(name="folder", root=tmp_path)
    request = EditRequest(centre=MIDDLE, seed=4)
    editor = Editor.load(EditorConfig(renderer="poisson", lesions=masses))
    expected = Editor.load(EditorConfig(renderer="poisson", lesions=lesions))
    found = editor.with_lesions(lesions).edit(mammogram, request)
    assert found.recipe == expected.edit(mammogram, request).recipe
    # the editor itself keeps its own, of 25 x 27 px
    assert found.mask.sum() < 100 < editor.edit(mammogram, request).mask.sum()
    with pytest.raises(DataError, match="renderer=can"):
        Editor.load(EditorConfig(renderer="can", generator=can())).with_lesions(lesions)


def test_stored_real_lesions_are_read_once(masses, mammogram, monkeypatch):
    from tfmammo import archives

    read = []
    reader = archives.ARCHIVES["folder"]
    monkeypatch.setitem(
        archives.ARCHIVES, "folder", lambda *arguments: read.append(1) or reader(*arguments)
    )
    editor = Editor.load(
        EditorConfig(renderer="poisson", lesions=masses.model_copy(update={"seed": 7}))
    )
    for seed in range(3):
        editor.edit(mammogram, EditRequest(centre=(90 + seed, 60), seed=seed))
    assert len(read) == 1


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"centre": (500, 10)}, "centre "),
        (
            {"centre": MIDDLE, "shape": "oval"},
            "size is missing",
        ),
        (
            {"centre": MIDDLE, "size": (20, 20)},
            "shape is missing",
        ),
        (
            {"centre": (5, 140), "size": (20, 20), "shape": "oval"},
            "reaches beyond the mammogram|not wholly free breast",
        ),
        (
            {"centre": MIDDLE, "size": (20_000, 20_000), "shape": "oval"},
            "20000 x 20000 px",
        ),
        (
            {"centre": MIDDLE, "size": (20, 151), "shape": "oval"},
            "20 x 151 px",
        ),
        (
            {"centre": MIDDLE, "size": (180, 140), "shape": "oval"},
            "larger than the mammogram|not wholly free breast|beyond the mammogram",
        ),
    ],
)
def test_what_cant_be_done_is_one_sentence(wish, reason, can, mammogram):
    with pytest.raises(DataError, match=reason) as caught:
        Editor.load(EditorConfig(renderer="can", generator=can())).edit(
            mammogram, EditRequest(**wish)
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", [(1e-9, 1e-9), (1e6, 1e6), (0.1, 40.0)])
def test_a_spacing_that_no_mammogram_has_is_refused(picture, spacing):
    """Lesions would have to be blurred, or be enlarged, over millions of pixels."""
    with pytest.raises(ArchiveError, match="mm per px are no mammogram's"):
        open_mammogram(picture, "L", "CC", spacing)


def test_a_window_off_the_breast_is_refused(tiny_contextual, mammogram):
    editor = Editor.load(
        EditorConfig(renderer="contextual", generator=str(tiny_contextual(sampling=LARGER)))
    )
    with pytest.raises(DataError, match="90 % is breast"):
        editor.edit(mammogram, EditRequest(centre=(5, 145)))
    idle = Editor.load(
        EditorConfig(
            renderer="contextual", generator=str(tiny_contextual(idle=1.0, sampling=LARGER))
        )
    )
    with pytest.raises(DataError, match="post-processing discards all"):
        idle.edit(mammogram, EditRequest(centre=MIDDLE))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"renderer": "poisson"}, "renderer=poisson needs lesions"),
        ({"renderer": "infilling"}, "renderer=infilling needs a generator"),
        ({"renderer": "contextual"}, "renderer=contextual needs a generator"),
        (
            {"renderer": "poisson", "generator": "x", "lesions": {"name": "phantom"}},
            "generator is not used by renderer=poisson",
        ),
        ({"renderer": "cubism"}, "renderer"),
    ],
)
def test_a_wrong_system_is_told(values, message):
    with pytest.raises(ValidationError, match=message):
        EditorConfig(**values)


def test_facts_of_a_file_come_before_those_that_are_said(picture, tmp_path, monkeypatch):
    plain = open_mammogram(picture)
    assert (plain.laterality, plain.view, plain.spacing) == (None, None, None)
    path = tmp_path / "one.dcm"
    (mammogram,) = phantom.read(None, None, count=1, seed=1)[:1]
    synthetic.write_dicom_of_mammogram(
        path, Stored.of_image(mammogram.pixels(), 12), mammogram, "key"
    )
    other = "R" if mammogram.laterality == "L" else "L"
    assert open_mammogram(path, other).laterality == mammogram.laterality
    monkeypatch.setattr("tfmammo.synthesis.editor.LARGEST", 100)
    with pytest.raises(ArchiveError, match="200 x 150 px are more than 100"):
        open_mammogram(picture)
