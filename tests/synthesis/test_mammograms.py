"""Sets of mammograms with a tiny infilling: sources, reasons, resuming, commands."""

import hashlib
import shutil
from dataclasses import replace
from functools import partial

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.commands import run_module, run_module_here
from tests.facts import read_failures
from tests.small_mammograms import draw_breast
from tests.synthesis_archives import (
    COLS,
    ROWS,
    draw_mammogram,
    make_outline,
    read_image,
    write_archive,
    write_mask,
)
from tests.synthetic_sets import edit_card, make_generator, read_files
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.archives.files import make_pseudonym
from tfmammo.config import dump
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.models import mask_gan
from tfmammo.synthesis import mammograms
from tfmammo.synthesis.config import ShapeConfig
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.recipe import Recipe, read_recipe
from tfmammo.tracking.export import export


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """A set of three items: (config, folder, recipes)."""
    root = tmp_path_factory.mktemp("set") / "set"
    return config(), root, synthesize(config(), root)


@pytest.fixture
def copied(made, tmp_path):
    """A copy of that set's folder."""
    return shutil.copytree(made[1], tmp_path / "set")


def test_right_breasts_are_shown_to_the_network_as_left_ones(config, tmp_path):
    """A mammogram and its mirror image, with the mirrored mass, come out as mirror images."""
    shapes = ShapeConfig(files=write_mask(tmp_path / "mask.png", (5, 8, 30, 28)))
    images = {}
    for side, col in (("L", 50), ("R", COLS - 50)):
        data = write_archive(tmp_path / side, [draw_mammogram(5, laterality=side)])
        set_config = config(data=data, shapes=shapes, size=(24, 20), centre=(100, col), count=1)
        (recipe,) = synthesize(set_config, tmp_path / f"out{side}")
        images[side] = read_image(tmp_path / f"out{side}", recipe)
    difference = images["L"].astype(int) - images["R"][:, ::-1].astype(int)
    assert np.abs(difference).max() <= 1  # rounding of the resampled difference


def test_a_recipe_replaces_no_other_file(made, tmp_path, where, monkeypatch):
    set_config, root, _ = made
    file = root / "recipes/000001.json"
    mine = tmp_path / "images/000001.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match="is another file"):
        remake(file, tmp_path, where(set_config))
    assert read_files(tmp_path) == {"images/000001.png": b"mine"}
    for _ in range(2):  # the same file is not another
        remake(file, tmp_path / "again", where(set_config))

    def spoil(target, stored, *rest):
        return replace(stored, values=stored.values ^ 1)

    monkeypatch.setattr(mammograms, "render", spoil)
    with pytest.raises(DataError, match="images/000001.png"):
        remake(file, tmp_path / "wrong", where(set_config))
    assert read_files(tmp_path / "wrong") == {}


def test_a_recipe_wants_its_source_and_generator(
    made, tmp_path, tiny_infilling, folders, generator, where
):
    set_config, root, recipes = made
    file = root / "recipes/000000.json"
    other = tiny_infilling(padding=20, offset=0.1)
    moved = shutil.copytree(generator, tmp_path / "moved")
    copy = shutil.copytree(folders / "8", tmp_path / "copy")
    for path in (copy / "images").iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    name = recipes[0].source.image_id
    changed = [f"data.root={copy}", f"generator={generator}"]
    for recipe, overrides, error, named in (
        (file, [*where(set_config), f"generator={other}"], DataError, "000000.json"),
        (file, changed, DataError, f"{name} has changed"),
        (file, ["data.name=phantom", f"data.root={copy}"], DataError, f"{name} is not in phantom"),
        (file, [], ConfigError, "data.root=DIR"),
        (tmp_path / "nowhere.json", [], ConfigError, "nowhere.json"),
    ):
        with pytest.raises(error, match=named):
            remake(recipe, tmp_path / "out", overrides)
        assert not (tmp_path / "out").exists()
    remake(file, tmp_path / "out", [*where(set_config), f"generator={moved}"])
    image = "images/000000.png"
    assert (tmp_path / "out" / image).read_bytes() == (root / image).read_bytes()


def test_a_set_of_another_archive_is_left_alone(config, copied, tmp_path):
    before = read_files(copied)
    fewer = write_archive(tmp_path / "fewer", [draw_mammogram(0), draw_mammogram(2)])
    with pytest.raises(ConfigError, match="content of the archive"):
        synthesize(config(data=fewer), copied)
    assert read_files(copied) == before


def test_only_normal_mammograms_are_taken_and_lesions_never_overlapped(config, tmp_path):
    mixed = [
        draw_mammogram(0),
        draw_mammogram(2, make_outline(30, 4, 170, 110)),
        draw_mammogram(4, pathology=None),
    ]
    data = write_archive(tmp_path / "mixed", mixed)
    normal, ill, unknown = archive.read(data.root)

    def find_sources(name, **values):
        recipes = synthesize(config(data=data, **values), tmp_path / name)
        return recipes, {recipe.source.image_id for recipe in recipes}

    assert find_sources("normal")[1] == {normal.image_id}
    recipes, sources = find_sources("all", mammograms="all", count=12)
    assert sources == {normal.image_id, ill.image_id, unknown.image_id}
    of_ill = [recipe for recipe in recipes if recipe.source.image_id == ill.image_id]
    own = np.zeros((ROWS, COLS), bool)
    own[np.s_[ill.lesions[0].box[0] : ill.lesions[0].box[2]], : ill.lesions[0].box[3]] = True
    for recipe in of_ill:
        for top, left, bottom, right in (lesion.box for lesion in recipe.lesions):
            assert not own[top:bottom, left:right].any()
    reasons = [recipe.left_out for recipe in of_ill if recipe.left_out]
    assert reasons and all("no normal tissue is left" in reason for reason in reasons)
    only = (ill.image_id, unknown.image_id)
    assert find_sources("only", mammograms="all", only=only, count=2)[1] == set(only)
    with pytest.raises(ConfigError, match=f"only: {ill.image_id} is none of the 1 mammograms"):
        find_sources("none", only=(ill.image_id,))
    with pytest.raises(DataError, match="none of 3 mammograms is normal"):
        synthesize(config("masses"), tmp_path / "none")


def test_why_an_item_is_left_out(config, tmp_path):
    narrow = draw_mammogram(2, read=lambda: draw_breast(2, reach=0.12))
    normal = [draw_mammogram(0, laterality=None), narrow, draw_mammogram(4), draw_mammogram(6)]
    data = write_archive(tmp_path / "normal", normal)
    path = sorted((data.root / "images").iterdir())[3]
    path.write_bytes(path.read_bytes()[:2000])
    out = tmp_path / "out"
    recipes = synthesize(config(data=data, count=4), out)
    ids = [record.image_id for record in archive.read(data.root)]
    order = [ids[number] for number in np.random.default_rng(0).permutation(4)]
    recipe_of = dict(zip(order, recipes, strict=True))
    unknown, small, good, damaged = (recipe_of[name] for name in ids)
    assert good.left_out is None
    assert "its laterality is not stated" in unknown.left_out
    assert "the breast is too small for a mass of" in small.left_out
    pseudonym = make_pseudonym(f"images/{path.name}")
    assert damaged.left_out.startswith(f"{pseudonym}: can't be read as an image")
    left_out = {f"item {recipe.name}": recipe.left_out for recipe in recipes if recipe.left_out}
    assert {name[:11]: reason for name, reason in read_failures(out).items()} == left_out
    assert len(list((out / "images").iterdir())) == 1
    assert "3 items could not be made" in (out / "README.md").read_text()
    file = out / f"recipes/{small.name}.json"
    with pytest.raises(DataError, match="could not be made"):
        remake(file, tmp_path / "again")
    file.write_text(small.model_copy(update={"left_out": "an old reason"}).model_dump_json())
    assert "an old reason" in str(synthesize(config(data=data, count=4), out))
    assert "an old reason" not in str(synthesize(config(data=data, count=4), out, retry=True))


def test_more_masses_than_fit(config, tmp_path):
    recipes = synthesize(config(masses=(1, 40), count=2, seed=3), tmp_path / "out")
    for recipe in recipes:
        assert len(recipe.lesions) >= 2 and recipe.left_out is None
        (note,) = recipe.notes
        assert note.startswith(f"{len(recipe.lesions)} of ") and "no normal tissue is left" in note
    assert len(read_failures(tmp_path / "out")) == 2
    with pytest.raises(DataError, match="of 40 masses"):
        synthesize(config(masses=(40, 40), count=1), tmp_path / "none")


def test_size_place_shape_and_seed_are_the_users(config, tmp_path):
    picture = tmp_path / "mask.png"
    mask = np.zeros((60, 60), np.uint8)
    cv2.ellipse(mask, (30, 30), (22, 12), 30, 0, 360, 255, -1)
    noisy = mask.copy()
    noisy[2, 2] = 255  # which is cleaned away
    cv2.imwrite(str(picture), noisy)
    facts = {"shapes": ShapeConfig(files=picture), "sizes": None, "lesions": None, "count": 1}
    set_config = config(size=(40, 30), centre=(100, 60), **facts)
    (recipe,) = synthesize(set_config, tmp_path / "out")
    (lesion,) = recipe.lesions
    top, left, bottom, right = lesion.box
    np.testing.assert_allclose([(top + bottom) / 2, (left + right) / 2], (100, 60), atol=1)
    np.testing.assert_allclose([bottom - top, right - left], (40, 30), atol=2)
    inside = archives.coco.decode(lesion.region, "")[top:bottom, left:right] > 0
    col, row, width, height = cv2.boundingRect(mask)
    cut = mask[row : row + height, col : col + width]
    expected = cv2.resize(cut, inside.shape[::-1]) > 127
    assert inside[expected].mean() > 0.95 and inside[~expected].mean() < 0.1
    assert lesion.shape == f"file {hashlib.sha256(picture.read_bytes()).hexdigest()[:12]}"
    (other,) = synthesize(set_config.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.lesions[0].seed != lesion.seed
    cut_off = cv2.imencode(".png", mask[:, 20:])[1].tobytes()
    for number, (values, content, reason) in enumerate(
        (
            ({"centre": (100, 120)}, None, "not entirely free"),
            ({"centre": (100, 149)}, None, "it reaches beyond"),
            ({"centre": None, "size": (110, 100)}, None, "breast is too small"),
            ({}, cut_off, "mask.png: .*border"),
            ({}, b"no picture", "mask.png: .*read"),
        )
    ):
        if content:
            picture.write_bytes(content)
        with pytest.raises(DataError, match=reason):
            synthesize(set_config.model_copy(update=values), tmp_path / str(number))


def test_sizes_are_fitted_and_kept_in_the_recipe(config, tmp_path):
    (recipe,) = synthesize(config(sizes=None, count=1), tmp_path / "out")
    boxes = np.array([(25, 27), (23, 31), (31, 29)]) * 0.1  # of MASSES, corners and tip included
    assert recipe.sizes.unit == "mm" and recipe.sizes.count == 3
    moments = np.array([boxes.mean(axis=0), boxes.std(axis=0, ddof=1)]).T
    np.testing.assert_allclose((recipe.sizes.height, recipe.sizes.width), moments)
    assert read_recipe(Recipe, tmp_path / "out/recipes/000000.json") == recipe
    assert recipe.lesions[0].shape.startswith("folder ") and "#0" in recipe.lesions[0].shape


class Discs(keras.layers.Layer):
    """z -> a disc of radius 14 + 4 z[0] and, where z[1] > 0, a half that the border cuts off."""

    def call(self, z):
        row, col = np.mgrid[:64, :64].astype(np.float32)
        small = np.hypot(row - 24, col - 24) < 14 + 4 * z[:, :1, None]
        cut = np.hypot(row - 63, col - 32) < 16
        is_cut = z[:, 1:2, None] > 0
        return tf.cast((small & ~is_cut) | (cut & is_cut), tf.float32)[..., None]


@pytest.mark.slow
def test_shapes_of_a_mask_gan(config, tmp_path):
    """Masks at their patch's border and implausible ones are drawn again, unless all are wanted."""
    model = make_generator("mask_gan", "noise", (6,), Discs(), ("mask",))
    gan = str(export(model, tmp_path / "gan", {"step": 7, "train_patients": []}))

    def list_extents(name, **shapes):
        set_config = config(shapes=ShapeConfig(gan=gan, **shapes), count=6, size=(24, 24))
        lesions = [recipe.lesions[0] for recipe in synthesize(set_config, tmp_path / name)]
        assert {lesion.shape for lesion in lesions} == {"mask GAN"}
        return [
            lesion.area / (lesion.box[2] - lesion.box[0]) / (lesion.box[3] - lesion.box[1])
            for lesion in lesions
        ]

    assert list_extents("plausible") == pytest.approx([np.pi / 4] * 6, abs=0.08)
    limits = mask_gan.Plausibility(area=(0.9, 1), solidity=(0, 1), extent=(0, 1))
    write = partial(mask_gan.write, limits=limits)
    export(model, tmp_path / "gan", {"step": 7, "train_patients": []}, write)
    with pytest.raises(DataError, match="mask GAN"):
        list_extents("none")
    assert list_extents("every", plausible=False) == pytest.approx([np.pi / 4] * 6, abs=0.08)


def test_what_cant_be_used_is_named(config, tmp_path, tiny_infilling):
    nowhere = str(tmp_path / "nowhere")
    equalised = tiny_infilling(preprocess={"contrast": "clahe"})
    silent = edit_card(tiny_infilling(), '"margin"', '"other"')
    other = edit_card(tiny_infilling(), '"tri_label"', '"other"')
    for values, error, named in (
        ({"generator": nowhere}, ConfigError, "^generator: .*nowhere"),
        ({"shapes": ShapeConfig(gan=nowhere)}, ConfigError, r"^shapes\.gan: .*nowhere"),
        ({"generator": str(equalised)}, DataError, "contrast=clahe"),
        ({"generator": str(silent)}, DataError, "its card"),
        ({"generator": str(other)}, ExportError, "tri_label"),
        ({"lesions": None}, DataError, "shapes"),
    ):
        with pytest.raises(error, match=named):
            synthesize(config(**values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_two_processes_make_what_one_makes(config, where, tmp_path):
    set_config = config(masses=(1, 2), format="dicom")
    synthesize(set_config, tmp_path / "one")
    (tmp_path / "config.yaml").write_text(dump(set_config), encoding="utf-8")
    arguments = ("--config", tmp_path / "config.yaml", "--output", tmp_path / "two")
    done = run_module("tfmammo.synthesis", *arguments, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert read_files(tmp_path / "two") == read_files(tmp_path / "one")
    assert "3 of 3 items" in done.stderr
    arguments = ("--recipe", tmp_path / "two/recipes/000002.json", "--output", tmp_path / "again")
    again = run_module_here("tfmammo.synthesis", *arguments, "--set", *where(set_config))
    assert again.returncode == 0 and "made again, bit for bit" in again.stderr
    image = "images/000002.dcm"
    assert (tmp_path / "again" / image).read_bytes() == (tmp_path / "one" / image).read_bytes()
