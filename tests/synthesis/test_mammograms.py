"""A synthesis from a small folder of 8-bit, 16-bit and DICOM mammograms with a tiny
infilling: files, recipes, reasons.
"""

import csv
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import cv2
import keras
import numpy as np
import pydicom
import pytest
import tensorflow as tf

from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.archives.writers import folder as writer
from tfmammo.config import DataConfig, dump, parse
from tfmammo.data import jobs, splits
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.export import export
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.models import mask_gan
from tfmammo.synthesis import mammograms, synthesizer
from tfmammo.synthesis.config import PatientsConfig, ShapeConfig, SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.provenance import read_recipe

ROWS = 200
COLS = 150
SIZES = {"height": (24, 4), "width": (20, 3), "correlation": 0.5}
SECRET = "QUIBBLE^ZEPHYRINE"


def breast(seed, laterality="L", reach=0.85):
    """Half an ellipse of textured tissue on black: float32 [ROWS, COLS, 1]."""
    random = np.random.default_rng(seed)
    row, col = np.mgrid[:ROWS, :COLS]
    inside = ((row - ROWS / 2) / (0.47 * ROWS)) ** 2 + (col / (reach * COLS)) ** 2 < 1
    texture = cv2.GaussianBlur(random.standard_normal((ROWS, COLS)).astype(np.float32), (0, 0), 4)
    image = (
        0.4
        + 0.05 * texture / texture.std()
        + 0.01 * random.standard_normal((ROWS, COLS)).astype(np.float32)
    )
    image = np.where(inside, np.clip(image, 0.2, 0.9), 0.01).astype(np.float32)[..., None]
    return image[:, ::-1].copy() if laterality == "R" else image


def mammogram(number, lesion=None, **facts):
    laterality = "LR"[number % 2]
    lesions = (
        (Lesion.from_outline("mass", np.float32(lesion), ROWS, COLS),) if lesion is not None else ()
    )
    known = {
        "laterality": laterality,
        "view": "CC",
        "spacing": (0.1, 0.1),
        "pathology": "benign" if lesions else "normal",
        "density": "2",
    }
    return Mammogram(
        "test",
        f"p{number}",
        str(number),
        ROWS,
        COLS,
        partial(breast, number, laterality),
        lesions=lesions,
        **known | facts,
    )


def outline(top, left, bottom, right):
    return [
        [top, left],
        [top, right],
        [(top + bottom) / 2, right + 6],
        [bottom, right],
        [bottom, left],
    ]


MASSES = [outline(80, 30, 104, 50), outline(90, 60, 112, 84), outline(70, 40, 100, 62)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Normal mammograms in three forms, and an archive of masses."""
    root = tmp_path_factory.mktemp("archives")
    normal = [mammogram(number) for number in range(3)]
    writer.write(normal, root / "8", bits=8)
    writer.write(normal, root / "12", bits=12)
    for path in writer.write(normal, root / "dicom", ending=".dcm", bits=12):
        made = pydicom.dcmread(path)
        made.PatientName = made.InstitutionName = made.SeriesDescription = SECRET
        made.WindowCenter = 1800
        made.WindowWidth = 2400
        made.save_as(path)
    writer.write(
        [mammogram(10 + number, lesion) for number, lesion in enumerate(MASSES)], root / "masses"
    )
    return root


@pytest.fixture(scope="module")
def generator(tiny_infilling):
    return tiny_infilling(padding=20, preprocess={"flip_right": True})


@pytest.fixture
def config(folders, generator):
    """A function (form="8", **values) -> a config."""

    def make(form="8", **values):
        chosen = {
            "name": "tiny",
            "data": DataConfig(name="folder", root=folders / form),
            "generator": str(generator),
            "count": 3,
        }
        chosen |= {
            "lesions": DataConfig(name="folder", root=folders / "masses"),
            "sizes": SIZES,
            "format": "png",
            "feather": 6,
        }
        return SynthesisConfig(**chosen | values)

    return make


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def letters(root):
    with (root / "dead_letters.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def source_of(config, recipe):
    (found,) = [
        one
        for one in archives.read_mammograms(config.data, Skipped())
        if one.image_id == recipe.source.image_id
    ]
    return found


@pytest.fixture(scope="module")
def sets(folders, generator, tmp_path_factory):
    """A set of each form: (config, folder, recipes)."""
    made = {}
    for form, output in (("8", "png"), ("12", "png"), ("dicom", "dicom"), ("8", "dicom")):
        chosen = SynthesisConfig(
            name="tiny",
            data=DataConfig(name="folder", root=folders / form),
            generator=str(generator),
            masses=(1, 2),
            count=4,
            lesions=DataConfig(name="folder", root=folders / "masses"),
            sizes=SIZES,
            format=output,
            feather=6,
            pathology="malignant",
        )
        root = tmp_path_factory.mktemp("sets") / f"{form}-{output}"
        made[form, output] = chosen, root, synthesize(chosen, root)
    return made


FORMS = [("8", "png"), ("12", "png"), ("dicom", "dicom"), ("8", "dicom")]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_changes_beyond_the_masses_surroundings(form, sets):
    config, root, recipes = sets[form]
    assert [recipe.left_out for recipe in recipes] == [None] * 4 and {
        len(recipe.lesions) for recipe in recipes
    } == {1, 2}
    bits = 8 if form[0] == "8" else 12
    for recipe in recipes:
        source = archives.read_stored(source_of(config, recipe)).values
        path = root / f"images/{recipe.name}.{'dcm' if form[1] == 'dicom' else 'png'}"
        if form[1] == "dicom":
            dataset = pydicom.dcmread(path)
            made = dataset.pixel_array
            assert dataset.BitsStored == bits and dataset.BitsAllocated == (8 if bits == 8 else 16)
        else:
            made = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert (
            made.dtype == source.dtype == (np.uint8 if bits == 8 else np.uint16)
            and made.max() < 2**bits
        )
        near = np.zeros(made.shape, bool)
        on = np.zeros(made.shape, bool)
        for lesion in recipe.lesions:
            (top, left, bottom, right) = lesion.box
            (first, before, last, behind) = lesion.window
            near[first:last, before:behind] = True
            on[top:bottom, left:right] |= (
                archives.coco.decode(lesion.region, "")[top:bottom, left:right] > 0
            )
        np.testing.assert_array_equal(made[~near], source[~near])
        change = made[on].astype(float) - source[on]
        assert change.mean() > 0.1 * 2**bits  # the generator brightens the mask


# pycocotools
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("form", FORMS)
def test_boxes_masks_and_coco_agree(form, sets):
    from pycocotools.coco import COCO

    _, root, recipes = sets[form]
    coco = COCO(str(root / "annotations.json"))
    assert len(coco.imgs) == 4 and len(coco.anns) == sum(len(recipe.lesions) for recipe in recipes)
    for recipe in recipes:
        (image,) = coco.loadImgs([recipe.number + 1])
        assert (
            image["file_name"].startswith(recipe.name)
            and (root / "images" / image["file_name"]).is_file()
        )
        assert (image["height"], image["width"]) == (ROWS, COLS)
        found = coco.loadAnns(coco.getAnnIds([image["id"]]))
        assert len(found) == len(recipe.lesions)
        overlap = np.zeros((ROWS, COLS), int)
        for number, (annotation, lesion) in enumerate(
            zip(found, recipe.lesions, strict=True), start=1
        ):
            mask = cv2.imread(
                str(root / f"lesion_masks/{recipe.name}_{number}.png"), cv2.IMREAD_UNCHANGED
            )
            assert (
                set(np.unique(mask)) == {0, 255}
                and (coco.annToMask(annotation) * 255 == mask).all()
            )
            rows = np.flatnonzero(mask.any(axis=1))
            cols = np.flatnonzero(mask.any(axis=0))
            assert lesion.box == (rows[0], cols[0], rows[-1] + 1, cols[-1] + 1)
            assert annotation["bbox"] == [
                cols[0],
                rows[0],
                cols[-1] + 1 - cols[0],
                rows[-1] + 1 - rows[0],
            ]
            assert (
                annotation["area"] == lesion.area == (mask > 0).sum() and annotation["iscrowd"] == 0
            )
            assert coco.cats[annotation["category_id"]]["name"] == "mass"
            overlap += cv2.dilate(mask, np.ones((3, 3))) > 0
        assert overlap.max() == 1


@pytest.mark.parametrize("form", FORMS)
def test_the_set_is_an_archive_of_ours(form, sets):
    config, root, recipes = sets[form]
    skipped = Skipped()
    found = archive.read(root, skipped)
    assert not skipped and len(found) == 4
    for record, recipe in zip(found, recipes, strict=True):
        source = source_of(config, recipe)
        assert (record.laterality, record.view, record.spacing, record.density) == (
            source.laterality,
            "CC",
            (0.1, 0.1),
            "2",
        )
        assert record.pathology == "malignant" and tuple(
            lesion.box for lesion in record.lesions
        ) == tuple(x.box for x in recipe.lesions)
        outside = np.ones((ROWS, COLS), bool)
        for lesion in recipe.lesions:
            outside[lesion.window[0] : lesion.window[2], lesion.window[1] : lesion.window[3]] = (
                False
            )
        np.testing.assert_allclose(record.pixels()[outside], source.pixels()[outside], atol=1e-6)


def test_right_breasts_are_shown_to_the_network_as_left_ones(folders, generator, config, tmp_path):
    """A mammogram and its mirror image with the mirrored mass come out as mirror images of each
    other.
    """
    left = breast(5)
    for side, image in (("L", left), ("R", left[:, ::-1].copy())):
        record = Mammogram(
            "t", "p", "1", ROWS, COLS, lambda image=image: image, side, "CC", "normal"
        )
        writer.write([record], tmp_path / side, bits=8)
    mask = np.zeros((40, 40), np.uint8)
    mask[5:30, 8:28] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    made = {}
    for side, col in (("L", 50), ("R", COLS - 50)):
        values = {
            "shapes": ShapeConfig(files=tmp_path / "mask.png"),
            "size": (24, 20),
            "centre": (100, col),
            "count": 1,
        }
        data = DataConfig(name="folder", root=tmp_path / side)
        synthesize(config(data=data, **values), tmp_path / f"out{side}")
        made[side] = cv2.imread(
            str(tmp_path / f"out{side}/images/000000.png"), cv2.IMREAD_UNCHANGED
        )
    difference = made["L"].astype(int) - made["R"][:, ::-1].astype(int)
    assert np.abs(difference).max() <= 1  # rounding of the resampled difference


def test_a_recipe_makes_its_item_again_bit_for_bit(sets, tmp_path, generator, where, monkeypatch):
    for form, (chosen, root, recipes) in sets.items():
        recipe = recipes[-1]
        output = tmp_path / "-".join(form)
        remake(root / f"recipes/{recipe.name}.json", output, where(chosen))
        again = contents(output)
        assert set(again) == set(recipe.files) and all(
            (root / name).read_bytes() == content for name, content in again.items()
        )
    chosen, root, _ = sets["8", "png"]
    moved = shutil.copytree(generator, tmp_path / "moved")
    file = root / "recipes/000001.json"
    remake(file, tmp_path / "elsewhere", [*where(chosen), f"generator={moved}"])
    assert (
        contents(tmp_path / "elsewhere")["images/000001.png"]
        == (root / "images/000001.png").read_bytes()
    )
    monkeypatch.setattr(
        mammograms, "render", lambda ground, stored, *rest: stored.with_values(stored.values ^ 1)
    )
    with pytest.raises(
        DataError, match=r"images/000001.png came out otherwise than then; made with .*tensorflow"
    ):
        remake(file, tmp_path / "wrong", where(chosen))


def test_a_recipe_wants_its_source_and_generator(
    sets, tmp_path, tiny_infilling, folders, generator, where
):
    chosen, root, recipes = sets["8", "png"]
    file = root / "recipes/000000.json"
    other = tiny_infilling(padding=20, offset=0.1)
    with pytest.raises(
        DataError, match="is not the generator of .*000000.json, its weights are others"
    ):
        remake(file, tmp_path / "a", [*where(chosen), f"generator={other}"])
    copy = shutil.copytree(folders / "8", tmp_path / "copy")
    remake(file, tmp_path / "b", [f"data.root={copy}", f"generator={generator}"])
    for path in (copy / "images").iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    with pytest.raises(
        DataError, match=f"its source {recipes[0].source.image_id} has changed since"
    ):
        remake(file, tmp_path / "c", [f"data.root={copy}", f"generator={generator}"])
    with pytest.raises(
        DataError, match=f"its source {recipes[0].source.image_id} is not in phantom"
    ):
        remake(file, tmp_path / "d", ["data.name=phantom", f"data.root={copy}"])
    with pytest.raises(
        ConfigError,
        match=r"recipes don't say where archives lie; give --set data.root=DIR \(of an archive "
        r"folder\)",
    ):
        remake(file, tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in "acd")
    with pytest.raises(ConfigError, match="nowhere.json: no such config file"):
        remake(tmp_path / "nowhere.json", tmp_path / "e")


def test_a_run_goes_on_where_it_stopped_and_a_greater_count_adds(config, tmp_path):
    chosen = config()
    out = tmp_path / "out"
    synthesize(chosen, out)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    synthesize(chosen, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    (out / "recipes/000001.json").unlink()
    (out / "images/000002.png").write_bytes(b"cut")
    (out / "lesion_masks/000000_1.png").unlink()
    (out / "images/.000001.png.x.part").write_bytes(b"half")
    synthesize(chosen, out)
    assert contents(out) == before
    more = synthesize(config(count=5), out)
    assert len(more) == 5 and {
        name: content
        for name, content in contents(out).items()
        if name in before and name[0] in "ilr"
    } == {name: content for name, content in before.items() if name[0] in "il"} | {
        name: contents(out)[name] for name in before if name.startswith("recipes")
    }
    assert (
        contents(out)["images/000004.png"]
        and json.loads((out / "annotations.json").read_text())["images"][4]["id"] == 5
    )


def test_folders_of_others_are_left_alone(config, tmp_path, tiny_infilling):
    synthesize(config(), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"was made with another config.feather, config.seed; name a new folder"
    ):
        synthesize(config(seed=1, feather=7), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"was made with another generator.weights;"):
        synthesize(
            config(
                generator=str(
                    tiny_infilling(padding=20, offset=0.05, preprocess={"flip_right": True})
                )
            ),
            tmp_path / "out",
        )
    writer.write([mammogram(0), mammogram(2)], tmp_path / "fewer", bits=8)
    with pytest.raises(ConfigError, match=r"another archive.mammograms, archive.records;"):
        synthesize(
            config(data=DataConfig(name="folder", root=tmp_path / "fewer")), tmp_path / "out"
        )
    assert contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and no output of this command"):
        synthesize(config(), tmp_path / "mine")


def test_only_normal_mammograms_are_taken_and_lesions_never_overlapped(config, tmp_path):
    mixed = [mammogram(0), mammogram(2, outline(30, 4, 170, 110)), mammogram(4, pathology=None)]
    writer.write(mixed, tmp_path / "mixed")
    data = DataConfig(name="folder", root=tmp_path / "mixed")
    recipes = synthesize(config(data=data), tmp_path / "normal")
    normal, ill, unknown = archive.read(tmp_path / "mixed")
    assert {recipe.source.image_id for recipe in recipes} == {normal.image_id}
    recipes = synthesize(config(data=data, mammograms="all", count=12), tmp_path / "all")
    assert {recipe.source.image_id for recipe in recipes} == {
        normal.image_id,
        ill.image_id,
        unknown.image_id,
    }
    kept = [
        found
        for recipe in recipes
        if recipe.source.image_id == ill.image_id
        for found in recipe.lesions
    ]
    top, left, bottom, right = ill.lesions[0].box
    for lesion in kept:
        assert (
            lesion.box[0] >= bottom
            or lesion.box[2] <= top
            or lesion.box[1] >= right
            or lesion.box[3] <= left
        )
    reasons = [reason for name, reason in letters(tmp_path / "all").items() if ill.image_id in name]
    assert (
        len(kept) + len(reasons) == 4
        and all("no normal tissue is left" in reason for reason in reasons)
        and reasons
    )
    chosen = config(data=data, mammograms="all", only=(ill.image_id, unknown.image_id), count=2)
    assert len({recipe.source.image_id for recipe in synthesize(chosen, tmp_path / "only")}) == 2
    with pytest.raises(ConfigError, match=f"only: {ill.image_id} is none of the 1 mammograms"):
        synthesize(config(data=data, only=(ill.image_id,)), tmp_path / "no")
    with pytest.raises(DataError, match="none of 3 mammograms is normal"):
        synthesize(config("masses"), tmp_path / "no")


def test_why_an_item_is_left_out(config, tmp_path, folders):
    narrow = [mammogram(0, laterality=None), mammogram(2), mammogram(4)]
    narrow[1] = Mammogram(
        "t", "p2", "2", ROWS, COLS, partial(breast, 2, "L", 0.12), "L", "CC", "normal"
    )
    writer.write(narrow, tmp_path / "narrow")
    data = DataConfig(name="folder", root=tmp_path / "narrow")
    recipes = synthesize(config(data=data), tmp_path / "out")
    unknown, small, good = archive.read(tmp_path / "narrow")
    reasons = {recipe.source.image_id: recipe.left_out for recipe in recipes}
    assert (
        reasons[good.image_id] is None
        and "its laterality is not stated" in reasons[unknown.image_id]
    )
    assert "the breast is too small for a mass of" in reasons[small.image_id]
    assert {name[:11]: reason for name, reason in letters(tmp_path / "out").items()} == {
        f"item {recipe.name}": recipe.left_out for recipe in recipes if recipe.left_out
    }
    assert (
        len(list((tmp_path / "out/images").iterdir())) == 1
        and "2 items could not be made" in (tmp_path / "out/README.md").read_text()
    )
    with pytest.raises(DataError, match="of an item that could not be made"):
        remake(
            tmp_path / f"out/recipes/{next(r.name for r in recipes if r.left_out)}.json",
            tmp_path / "again",
        )
    (item,) = [recipe for recipe in recipes if recipe.source.image_id == small.image_id]
    (tmp_path / f"out/recipes/{item.name}.json").write_text(
        item.model_copy(update={"left_out": "an old reason"}).model_dump_json()
    )
    assert "an old reason" in str(synthesize(config(data=data), tmp_path / "out"))
    assert "an old reason" not in str(synthesize(config(data=data), tmp_path / "out", retry=True))
    with pytest.raises(
        DataError,
        match=r"no item could be made, dead_letters.csv says why; the first: .*the breast is too "
        r"small",
    ):
        synthesize(config(size=(110, 100), count=1), tmp_path / "none")


def test_more_masses_than_fit(config, tmp_path):
    recipes = synthesize(config(masses=(1, 40), count=2, seed=3), tmp_path / "out")
    for recipe in recipes:
        assert len(recipe.lesions) >= 2 and recipe.left_out is None
        (note,) = recipe.notes
        assert note.startswith(f"{len(recipe.lesions)} of ") and "no normal tissue is left" in note
    assert len(letters(tmp_path / "out")) == 2
    (recipe,) = synthesize(config(masses=(1, 1), count=1), tmp_path / "one")
    assert recipe.notes == ()
    with pytest.raises(DataError, match=r"\d+ of 40 masses fit: no normal tissue is left"):
        synthesize(config(masses=(40, 40), count=1), tmp_path / "none")


def test_size_place_shape_and_seed_are_the_users(config, tmp_path):
    mask = np.zeros((60, 60), np.uint8)
    cv2.ellipse(mask, (30, 30), (22, 12), 30, 0, 360, 255, -1)
    mask[2, 2] = 255  # noise, which is cleaned away
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    shapes = ShapeConfig(files=tmp_path / "mask.png")
    chosen = config(
        shapes=shapes, sizes=None, lesions=None, size=(40, 30), centre=(100, 60), count=1, only=()
    )
    (recipe,) = synthesize(chosen, tmp_path / "out")
    (lesion,) = recipe.lesions
    top, left, bottom, right = lesion.box
    assert abs((top + bottom) / 2 - 100) <= 1 and abs((left + right) / 2 - 60) <= 1
    assert abs(bottom - top - 40) <= 2 and abs(right - left - 30) <= 2
    inside = archives.coco.decode(lesion.region, "")[top:bottom, left:right]
    expected = (
        cv2.resize(
            mask[np.ix_(*[np.flatnonzero((mask > 0)[3:, 3:].any(axis=a)) + 3 for a in (1, 0)])],
            inside.shape[::-1],
        )
        > 127
    )
    assert (inside > 0)[expected].mean() > 0.95 and (inside > 0)[~expected].mean() < 0.1
    assert (
        lesion.shape
        == f"file {hashlib.sha256((tmp_path / 'mask.png').read_bytes()).hexdigest()[:12]}"
    )
    (other,) = synthesize(chosen.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.lesions[0].seed != lesion.seed
    for name, centre, reason in (
        ("air", (100, 120), "the place asked for is not wholly free"),
        ("off", (100, 149), "it reaches beyond"),
    ):
        with pytest.raises(DataError, match=reason):
            synthesize(chosen.model_copy(update={"centre": centre}), tmp_path / name)
    cv2.imwrite(str(tmp_path / "mask.png"), mask[:, 20:])
    with pytest.raises(DataError, match=r"mask.png: its mask touches the border"):
        synthesize(chosen, tmp_path / "border")
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"mask.png: can't be read as a picture"):
        synthesize(chosen, tmp_path / "damaged")


def test_sizes_are_fitted_and_kept_in_the_recipe(config, tmp_path):
    (recipe,) = synthesize(config(sizes=None, count=1), tmp_path / "out")
    boxes = np.array([(25, 27), (23, 31), (31, 29)]) * 0.1  # of MASSES, corners and tip included
    assert recipe.sizes.unit == "mm" and recipe.sizes.count == 3
    np.testing.assert_allclose(
        (recipe.sizes.height, recipe.sizes.width),
        np.array([boxes.mean(axis=0), boxes.std(axis=0, ddof=1)]).T,
    )
    assert read_recipe(tmp_path / "out/recipes/000000.json") == recipe
    assert recipe.lesions[0].shape.startswith("folder ") and "#0" in recipe.lesions[0].shape


class Discs(keras.layers.Layer):
    """z -> a disc of radius 14 + 4 z[0] and, where z[1] is above 0, one that touches the border."""

    def call(self, z):
        row, col = np.mgrid[:64, :64].astype(np.float32)
        radius = 14 + 4 * z[:, :1, None]
        small = np.hypot(row - 24, col - 24) < radius
        return tf.cast(
            small | ((z[:, 1:2, None] > 0) & (np.hypot(row - 63, col - 44) < 12)), tf.float32
        )[..., None]


class MaskRoom(keras.Model):
    """A generator of masks as a mask GAN's export has it."""

    def __init__(self):
        super().__init__(name="mask_gan")
        self.networks = {"generator": keras.Sequential([keras.Input((6,)), Discs()])}

    def functions(self):
        @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, "noise")])
        def generator(noise):
            return {"mask": self.networks["generator"](noise)}

        return {"generator": generator}


def test_shapes_of_a_mask_gan(config, tmp_path):
    """Masks at their patch's border are drawn again, and so are implausible ones."""
    folder = export(
        MaskRoom(), tmp_path / "gan", {"name": "mask_gan", "step": 7, "train_patients": []}
    )
    recipes = synthesize(config(shapes=ShapeConfig(gan=str(folder)), count=6), tmp_path / "out")
    assert [recipe.left_out for recipe in recipes] == [None] * 6
    for recipe in recipes:
        (lesion,) = recipe.lesions
        height = lesion.box[2] - lesion.box[0]
        width = lesion.box[3] - lesion.box[1]
        assert lesion.shape == "mask GAN" and lesion.area / (height * width) == pytest.approx(
            np.pi / 4, abs=0.1
        )
    (folder / mask_gan.LIMITS).write_text(
        mask_gan.Plausibility(area=(0.9, 1), solidity=(0, 1), extent=(0, 1)).model_dump_json()
    )
    with pytest.raises(
        DataError, match="no shape for a mass: the mask GAN's masks look like no training mask"
    ):
        synthesize(config(shapes=ShapeConfig(gan=str(folder)), count=1), tmp_path / "none")


def test_each_archive_is_read_once_and_jobs_are_small(config, tmp_path, monkeypatch):
    """Sizes are fitted on the masses, and their outlines are the shapes; no network is pickled."""
    reads = []
    reader = archives.ARCHIVES["folder"]
    monkeypatch.setitem(
        archives.ARCHIVES, "folder", lambda *arguments: reads.append(1) or reader(*arguments)
    )
    sizes = []
    run = jobs.run

    def measure(parts, make, flags):
        sizes.extend(len(pickle.dumps(part)) for part in parts)
        run(parts, make, flags)

    monkeypatch.setattr(jobs, "run", measure)
    recipes = synthesize(config(sizes=None), tmp_path / "out")
    assert [recipe.left_out for recipe in recipes] == [None] * 3
    assert len(reads) == 2, "the normal mammograms and the masses"
    assert len(sizes) == 3 and max(sizes) < 20_000


def test_a_fault_of_our_own_stops_the_run(config, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("not broadcast")

    monkeypatch.setattr(synthesizer, "render", fail)
    with pytest.raises(DataError, match=r"the work stopped .*ValueError: not broadcast"):
        synthesize(config(count=1), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.part")) and not list(
        (tmp_path / "out/recipes").iterdir()
    )


def test_an_unreadable_file_is_a_dead_letter(config, tmp_path, folders):
    copy = shutil.copytree(folders / "8", tmp_path / "copy")
    path = copy / "images/000002.png"
    path.write_bytes(path.read_bytes()[:2000])
    recipes = synthesize(config(data=DataConfig(name="folder", root=copy)), tmp_path / "out")
    (reason,) = [recipe.left_out for recipe in recipes if recipe.left_out]
    assert reason.startswith("images/000002.png: can't be read as an image")


def test_records_for_the_object_detection_api(config, where, tmp_path):
    (recipe,) = synthesize(
        config("12", format="tfrecord", masses=(2, 2), count=1), tmp_path / "out"
    )
    (raw,) = tf.data.TFRecordDataset(
        str(tmp_path / "out/images/000000.tfrecord")
    ).as_numpy_iterator()
    features = tf.train.Example.FromString(raw).features.feature
    image = tf.io.decode_png(
        features["image/encoded"].bytes_list.value[0], dtype=tf.uint16
    ).numpy()[..., 0]
    source = archives.read_stored(source_of(config("12"), recipe)).values
    assert image.shape == (ROWS, COLS) and 0 < (image != source).mean() < 0.5
    assert [features[f"image/{key}"].int64_list.value[0] for key in ("height", "width")] == [
        ROWS,
        COLS,
    ]
    sides = [
        features[f"image/object/bbox/{side}"].float_list.value
        for side in ("ymin", "xmin", "ymax", "xmax")
    ]
    np.testing.assert_allclose(
        np.array(sides).T * [ROWS, COLS, ROWS, COLS],
        [lesion.box for lesion in recipe.lesions],
        rtol=1e-5,
    )
    assert list(features["image/object/class/text"].bytes_list.value) == [b"mass"] * 2
    assert list(features["image/object/class/label"].int64_list.value) == [1, 1]
    for encoded, lesion in zip(
        features["image/object/mask"].bytes_list.value, recipe.lesions, strict=True
    ):
        np.testing.assert_array_equal(
            tf.io.decode_png(encoded).numpy()[..., 0] > 0,
            archives.coco.decode(lesion.region, "") > 0,
        )
    remake(tmp_path / "out/recipes/000000.json", tmp_path / "again", where(config("12")))


def test_no_patient_data_is_left(sets, folders):
    secrets = [word.encode() for word in SECRET.split("^")]
    for path in (folders / "dicom/images").iterdir():
        assert all(word in path.read_bytes() for word in secrets)
    _, root, _ = sets["dicom", "dicom"]
    uids = [
        str(pydicom.dcmread(path).SOPInstanceUID).encode()
        for path in (folders / "dicom/images").iterdir()
    ]
    names = [path.stem.encode() for path in (folders / "dicom/images").iterdir()]
    assert len(names) == 3
    for name, content in contents(root).items():
        assert not any(word in content for word in (*secrets, *uids)), name


def test_what_cant_be_used_is_named(config, tmp_path, tiny_infilling):
    with pytest.raises(
        ConfigError,
        match=r"^generator: .*nowhere: is neither a folder .*; train it first, or "
        r".*painter=poisson",
    ):
        synthesize(config(generator=str(tmp_path / "nowhere")), tmp_path / "out")
    with pytest.raises(
        ConfigError,
        match=r"^shapes\.gan: .*nowhere: is neither a folder nor a model URI",
    ):
        synthesize(config(shapes=ShapeConfig(gan=str(tmp_path / "nowhere"))), tmp_path / "out")
    with pytest.raises(DataError, match="contrast=clahe, which can't be undone"):
        synthesize(
            config(generator=str(tiny_infilling(preprocess={"contrast": "clahe"}))),
            tmp_path / "out",
        )
    bare = tiny_infilling()
    card = json.loads((bare / "card.json").read_text())
    del card["config"]["model"]
    (bare / "card.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="its card does not say how its training patches were made"):
        synthesize(config(generator=str(bare)), tmp_path / "out")
    del card["functions"]["generator"]["inputs"]["tri_label"]
    (bare / "card.json").write_text(json.dumps(card))
    with pytest.raises(ExportError, match="none of its functions leads from tri_label to image"):
        synthesize(config(generator=str(bare)), tmp_path / "out2")
    with pytest.raises(DataError, match="holds no mass to take shapes from"):
        synthesize(config(lesions=None), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for wrong in (
        {"masses": (3, 2)},
        {"centre": (1, 1), "masses": (1, 2)},
        {"shapes": {"gan": "a", "files": "b"}},
    ):
        with pytest.raises(
            ValueError, match="smaller first|places one mass|give one of gan, files and drawn"
        ):
            config(**wrong)


def test_a_two_channel_generator_and_percentiles(config, tiny_infilling, where, tmp_path):
    generator = tiny_infilling(
        margin=None,
        window=None,
        percentiles=(1, 99),
        frame="square",
        context=2.0,
        preprocess={"remove_marks": True},
    )
    chosen = config(generator=str(generator), count=1)
    (recipe,) = synthesize(chosen, tmp_path / "out")
    assert recipe.left_out is None and len(recipe.lesions) == 1
    remake(tmp_path / "out/recipes/000000.json", tmp_path / "again", where(chosen))


@pytest.fixture
def real(config):
    """A function (painter="poisson", form="8", **values) -> a config that sets real masses in."""

    def make(painter="poisson", form="8", **values):
        return config(
            form,
            **{"painter": painter, "generator": None, "sizes": None, "feather": 16.0, **values},
        )

    return make


@pytest.fixture(scope="module")
def phantoms(tiny_blending):
    """A function (painter, **values) -> a config that sets a phantom's masses into its normal
    mammograms.
    """
    data = DataConfig(phantoms=24)
    patients = {
        one.patient_id for one in archives.read_mammograms(data, Skipped()) if one.laterality == "L"
    }

    def make(painter, **values):
        generator = (
            str(tiny_blending(size=64, patients=patients)) if painter == "blending" else None
        )
        return SynthesisConfig(
            **{
                "name": "grafts",
                "data": data,
                "painter": painter,
                "generator": generator,
                "count": 3,
                **values,
            }
        )

    return make


# pycocotools
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize(
    ("painter", "form"), [("poisson", "dicom"), ("blending", "png"), ("blending", "tfrecord")]
)
def test_real_lesions_of_the_phantom(painter, form, phantoms, where, tmp_path):
    """From records to files: nothing changes beyond a support, COCO and masks agree, and all of it
    can be made again.
    """
    from pycocotools.coco import COCO

    chosen = phantoms(painter, format=form, masses=(1, 2), seed=2)
    root = tmp_path / "set"
    recipes = synthesize(chosen, root)
    assert [recipe.left_out for recipe in recipes] == [None] * 3 and sum(
        len(recipe.lesions) for recipe in recipes
    ) > 3
    known = {one.image_id: one for one in archives.read_mammograms(chosen.data, Skipped())}
    coco = COCO(str(root / "annotations.json"))
    for recipe in recipes:
        source = archives.read_stored(known[recipe.source.image_id])
        near = np.zeros(source.values.shape, bool)
        for number, (lesion, annotation) in enumerate(
            zip(recipe.lesions, coco.imgToAnns[recipe.number + 1], strict=True), start=1
        ):
            graft = lesion.graft
            own = known[lesion.graft.image_id]
            assert (
                own.lesions[graft.number].kind == "mass"
                and graft.patient_id == own.patient_id
                and graft.angle != 0
            )
            assert graft.mirrored == ({own.laterality, recipe.source.laterality} == {"L", "R"})
            assert (
                lesion.shape == f"phantom {graft.image_id}#{graft.number}"
                and 0.8 <= graft.factor <= 1.2
            )
            area = own.lesions[graft.number].mask(own.rows, own.cols).sum() * graft.factor**2
            mask = (
                cv2.imread(
                    str(root / f"lesion_masks/{recipe.name}_{number}.png"), cv2.IMREAD_UNCHANGED
                )
                > 0
            )
            assert (
                lesion.area
                == mask.sum()
                == coco.annToMask(annotation).sum()
                == pytest.approx(area, rel=0.02)
            )
            assert (coco.annToMask(annotation) > 0)[mask].all()
            (top, left, bottom, right) = lesion.box
            (first, before, last, behind) = lesion.window
            near[first:last, before:behind] = True
            if painter == "poisson":
                assert lesion.window == (top - 3, left - 3, bottom + 3, right + 3)
                near[first:last, before:behind] = mask[first:last, before:behind]
            trained = {one.patient_id for one in known.values() if one.laterality == "L"}
            assert graft.trained_on == (None if painter == "poisson" else own.patient_id in trained)
        path = root / f"images/{recipe.name}"
        if form == "dicom":
            made = pydicom.dcmread(path.with_suffix(".dcm")).pixel_array
        elif form == "png":
            made = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
        else:
            (raw,) = tf.data.TFRecordDataset(str(path.with_suffix(".tfrecord"))).as_numpy_iterator()
            features = tf.train.Example.FromString(raw).features.feature
            made = tf.io.decode_png(
                features["image/encoded"].bytes_list.value[0], dtype=tf.uint16
            ).numpy()[..., 0]
            assert list(features["image/object/class/text"].bytes_list.value) == [b"mass"] * len(
                recipe.lesions
            )
        np.testing.assert_array_equal(made[~near], source.values[~near])
        assert (made[near] != source.values[near]).mean() > 0.2
    before = contents(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    synthesize(chosen, root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == times
    for recipe in recipes:
        remake(root / f"recipes/{recipe.name}.json", tmp_path / "again", where(chosen))
    assert contents(tmp_path / "again") == {
        name: before[name] for recipe in recipes for name in recipe.files
    }


def test_whose_lesions_they_are_is_told(real, tmp_path, folders, tiny_blending):
    recipes = synthesize(real(masses=(2, 2)), tmp_path / "out")
    with (tmp_path / "out/metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = {one.image_id: one for one in archive.read(folders / "masses")}
    for row, recipe in zip(rows, recipes, strict=True):
        patients = {known[lesion.graft.image_id].patient_id for lesion in recipe.lesions}
        assert row["patient"] == recipe.source.patient_id and row["lesion_patient"] == " ".join(
            sorted(patients)
        )
        assert row["pathology"] == "benign" and row["patient"] not in patients
    readme = (tmp_path / "out/README.md").read_text()
    assert (
        "without a network (painter poisson)" in readme
        and "No split was given" in readme
        and "trained_on" not in readme
    )
    skipped = Skipped()
    assert (
        len(archive.read(tmp_path / "out", skipped)) == 3 and "metadata.csv" not in skipped.reasons
    ), "the column is known"
    one = next(iter(known.values())).patient_id
    folder = tiny_blending(patients=[one])
    recipes = synthesize(real("blending", generator=str(folder), count=6), tmp_path / "network")
    grafts = [recipe.lesions[0].graft for recipe in recipes]
    assert {graft.trained_on for graft in grafts} == {True, False} and all(
        graft.trained_on == (graft.patient_id == one) for graft in grafts
    )
    told = (
        f"trained on the patients of {sum(graft.trained_on for graft in grafts)} of the 6 lesions"
    )
    assert told in (tmp_path / "network/README.md").read_text()


def test_only_patients_of_one_side(real, folders, where, tmp_path):
    """One archive of normal mammograms and masses, and a split of its patients."""
    both = [
        *(mammogram(number) for number in range(4)),
        *(mammogram(10 + number, lesion) for number, lesion in enumerate(MASSES)),
    ]
    writer.write(both, tmp_path / "both", bits=8)
    data = DataConfig(name="folder", root=tmp_path / "both")
    found = archive.read(tmp_path / "both")
    train = {found[i].patient_id for i in (0, 1, 4)}
    places = {one.patient_id: 1 if one.patient_id in train else 0 for one in found}
    saved = splits.SavedSplit(
        archive="folder", split="patient", folds=2, seed=0, stratify="none", patients=places
    )
    splits.save(tmp_path / "split.json", saved)
    for side, expected in (("train", train), ("held_out", set(places) - train)):
        chosen = real(
            data=data,
            lesions=None,
            patients=PatientsConfig(split_file=tmp_path / "split.json", side=side),
            count=8,
        )
        recipes = synthesize(chosen, tmp_path / side)
        seen = {
            patient
            for one in recipes
            for patient in (
                one.source.patient_id,
                *(lesion.graft.patient_id for lesion in one.lesions),
            )
        }
        assert (
            seen == expected
            and f"All are of the {side} side of one split"
            in (tmp_path / side / "README.md").read_text()
        )
    remake(tmp_path / "train/recipes/000000.json", tmp_path / "again", where(chosen))
    for key, value in (("rotate", 20), ("painter", "mixed")):
        with pytest.raises(
            ConfigError, match=f"was made with another lesions.{key}; name a new folder"
        ):
            synthesize(chosen.model_copy(update={key: value}), tmp_path / "held_out")
    with pytest.raises(
        ConfigError, match=r"was made with another lesions.patients.sha256; name a new folder"
    ):
        splits.save(tmp_path / "split.json", saved.model_copy(update={"seed": 1}))
        synthesize(chosen, tmp_path / "held_out")
    splits.save(
        tmp_path / "split.json", saved.model_copy(update={"patients": {found[4].patient_id: 1}})
    )
    with pytest.raises(DataError, match="does not know 4 of 4 patients"):
        synthesize(chosen, tmp_path / "new")


def test_lesions_of_another_archive_depth_and_spacing(real, folders, tmp_path):
    """16-bit masses at half the spacing come out half as large in 12-bit mammograms; unknown
    spacings are a sentence.
    """
    fine = [
        replace(mammogram(10, MASSES[0]), spacing=(0.05, 0.05)),
        replace(mammogram(12, [[1, 0], [30, 0], [30, 40]]), spacing=(0.05, 0.05)),
    ]
    writer.write(fine, tmp_path / "fine", bits=16)
    lesions = DataConfig(name="folder", root=tmp_path / "fine")
    chosen = real(form="12", lesions=lesions, resize=(1, 1), rotate=0)
    for recipe in synthesize(chosen, tmp_path / "out"):
        assert recipe.left_out is None
        (lesion,) = recipe.lesions
        assert (lesion.graft.angle, lesion.graft.factor) == (0, 1)
        assert (
            abs(lesion.box[2] - lesion.box[0] - 12.5) <= 1
            and abs(lesion.box[3] - lesion.box[1] - 13.5) <= 1
        )
        made = cv2.imread(str(tmp_path / f"out/images/{recipe.name}.png"), cv2.IMREAD_UNCHANGED)
        assert made.dtype == np.uint16 and made.max() < 2**12
    assert any(
        reason
        == "lesion 0: its mask touches the border of its mammogram, where the rest of it may be "
        "cut off"
        for reason in letters(tmp_path / "out").values()
    )
    unknown = [replace(one, spacing=None) for one in fine]
    writer.write(unknown, tmp_path / "unknown", bits=16)
    with pytest.raises(
        DataError,
        match=r"no item could be made.* the mm per px of lesions of folder are not stated, so that",
    ):
        synthesize(
            real(lesions=DataConfig(name="folder", root=tmp_path / "unknown")), tmp_path / "none"
        )


def test_a_recipe_wants_its_lesion(real, folders, tmp_path):
    copy = shutil.copytree(folders / "masses", tmp_path / "copy")
    (recipe,) = synthesize(
        real(count=1, lesions=DataConfig(name="folder", root=copy)), tmp_path / "out"
    )
    file = tmp_path / "out/recipes/000000.json"
    graft = recipe.lesions[0].graft
    root = f"data.root={folders / '8'}"
    remake(file, tmp_path / "moved", [root, f"lesions.root={folders / 'masses'}"])
    with pytest.raises(ConfigError, match=r"give --set lesions.root=DIR \(of an archive folder\)"):
        remake(file, tmp_path / "unsaid", [root])
    for path in (copy / "images").iterdir():
        cv2.imwrite(str(path), 65535 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    with pytest.raises(
        DataError,
        match=f"the mammogram of the lesion {graft.image_id}#{graft.number} has changed since",
    ):
        remake(file, tmp_path / "changed", [root, f"lesions.root={copy}"])
    with pytest.raises(
        DataError, match=f"the lesion {graft.image_id}#{graft.number} is not in folder"
    ):
        remake(file, tmp_path / "gone", [root, f"lesions.root={folders / '8'}"])


def test_bad_lesions_are_sentences(real, folders, tmp_path):
    with pytest.raises(DataError, match="folder holds no mass with an outline to set in"):
        synthesize(real(lesions=None), tmp_path / "none")
    with pytest.raises(DataError, match="folder holds no malignant mass with an outline"):
        synthesize(real(pathology="malignant"), tmp_path / "malignant")
    assert not (tmp_path / "none").exists()
    with pytest.raises(
        DataError, match="no item could be made.*; the first: the breast is too small for a mass of"
    ):
        synthesize(real(resize=(5, 5), rotate=0), tmp_path / "large")
    with pytest.raises(
        DataError, match="no item could be made.*; the first: a lesion of .* px is larger than it"
    ):
        synthesize(real(resize=(50, 50)), tmp_path / "huge")
    with pytest.raises(
        DataError,
        match="no item could be made.*; the first: opencv: OpenCV clones masks from 3 px up",
    ):
        synthesize(real("opencv", resize=(0.06, 0.06), count=1), tmp_path / "tiny")
    (recipe,) = synthesize(real("mixed", centre=(100, 60), count=1, rotate=0), tmp_path / "centre")
    top, left, bottom, right = recipe.lesions[0].box
    assert abs((top + bottom) / 2 - 100) <= 1 and abs((left + right) / 2 - 60) <= 1


def run(*arguments, repository):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(repository), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    command = [sys.executable, "-m", "tfmammo.synthesis", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


@pytest.mark.slow
def test_two_processes_make_what_one_makes(config, where, tmp_path, repository):
    chosen = config(masses=(1, 2), format="dicom")
    synthesize(chosen, tmp_path / "one")
    (tmp_path / "config.yaml").write_text(dump(chosen), encoding="utf-8")
    done = run(
        "--config",
        tmp_path / "config.yaml",
        "--output",
        tmp_path / "two",
        "--direct_num_workers",
        "2",
        repository=repository,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert "3 of 3 items" in done.stderr
    file = tmp_path / "two/recipes/000002.json"
    again = run(
        "--recipe",
        file,
        "--output",
        tmp_path / "again",
        "--set",
        *where(chosen),
        repository=repository,
    )
    assert again.returncode == 0 and "made again, bit for bit" in again.stderr
    assert (
        contents(tmp_path / "again")["images/000002.dcm"]
        == contents(tmp_path / "one")["images/000002.dcm"]
    )


def test_errors_of_the_command_are_one_line(tmp_path, repository):
    done = run(
        "--config",
        repository / "configs/synthesis_full.yaml",
        "--set",
        f"data.root={tmp_path / 'nowhere'}",
        "--output",
        tmp_path / "out",
        repository=repository,
    )
    assert (
        done.returncode == 2
        and done.stderr.splitlines()[-1]
        == f"error: data.root: no such folder: {tmp_path / 'nowhere'}"
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_the_repository_config(repository):
    chosen = parse(SynthesisConfig, repository / "configs/synthesis_full.yaml", ["masses=[1,3]"])
    assert (
        chosen.masses == (1, 3)
        and chosen.feather == SynthesisConfig(name="a", generator="b").feather
        and chosen.format == "dicom"
    )
    chosen = parse(SynthesisConfig, repository / "configs/synthesis_blending.yaml")
    assert chosen.painter == "blending" and chosen.count == 200  # of the paper
    values = SynthesisConfig(name="a", painter="blending", generator="b")
    assert (chosen.resize, chosen.rotate, chosen.feather) == (
        values.resize,
        values.rotate,
        values.feather,
    )
    parse(
        SynthesisConfig,
        repository / "configs/synthesis_blending.yaml",
        ["painter=poisson", "generator=null"],
    )


@pytest.mark.slow
@pytest.mark.data
def test_real_normal_mammograms(real_data, tiny_infilling, tmp_path):
    chosen = SynthesisConfig(
        name="real",
        data=DataConfig(name="cdd_cesm", root=real_data / "cdd-cesm"),
        count=4,
        masses=(1, 2),
        format="dicom",
        generator=str(tiny_infilling(size=256, padding=100, preprocess={"remove_marks": True})),
    )
    recipes = synthesize(chosen, tmp_path / "out")
    made = [recipe for recipe in recipes if not recipe.left_out]
    assert len(made) >= 3
    for recipe in made:
        source = archives.read_stored(source_of(chosen, recipe)).values
        values = pydicom.dcmread(tmp_path / f"out/images/{recipe.name}.dcm").pixel_array
        outside = np.ones(values.shape, bool)
        for lesion in recipe.lesions:
            outside[lesion.window[0] : lesion.window[2], lesion.window[1] : lesion.window[3]] = (
                False
            )
        assert (
            values.dtype == np.uint8
            and (values[outside] == source[outside]).all()
            and (values != source).any()
        )


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("painter", ["poisson", "mixed"])
def test_real_lesions_in_real_mammograms(real_data, painter, tmp_path):
    data = DataConfig(name="cdd_cesm", root=real_data / "cdd-cesm")
    chosen = SynthesisConfig(name="real", data=data, painter=painter, count=4, format="png")
    recipes = synthesize(chosen, tmp_path / "out")
    made = [recipe for recipe in recipes if not recipe.left_out]
    assert len(made) >= 3
    for recipe in made:
        (lesion,) = recipe.lesions
        source = archives.read_stored(source_of(chosen, recipe)).values
        values = cv2.imread(str(tmp_path / f"out/images/{recipe.name}.png"), cv2.IMREAD_UNCHANGED)
        on = archives.coco.decode(lesion.region, "") > 0
        np.testing.assert_array_equal(values[~on], source[~on])
        assert values.dtype == np.uint8 and (values[on] != source[on]).mean() > 0.3
        remake(
            tmp_path / f"out/recipes/{recipe.name}.json",
            tmp_path / "again",
            [f"data.root={data.root}"],
        )
