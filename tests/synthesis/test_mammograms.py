"""A synthesis from a small folder of 8-bit, 16-bit and DICOM mammograms with a tiny
infilling: files, recipes, reasons.
"""

import hashlib
import json
import pickle
import shutil
from functools import partial

import cv2
import keras
import numpy as np
import pydicom
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.archives.writers import folder as writer
from tests.commands import run_module, run_module_here
from tests.synthesis_archives import (
    COLS,
    PATIENT_NAME,
    ROWS,
    draw_breast,
    draw_mammogram,
    find_source,
    make_outline,
    read_dead_letters,
)
from tests.synthetic_sets import NoiseModel, read_files
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.archives.files import make_pseudonym
from tfmammo.config import DataConfig, dump, parse
from tfmammo.data import runners
from tfmammo.data.runners import Runner
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.models import mask_gan
from tfmammo.synthesis import mammograms, synthesizer
from tfmammo.synthesis.config import ShapeConfig, SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.provenance import Recipe, read_recipe
from tfmammo.tracking.export import export

FORMS = [("8", "png"), ("12", "png"), ("dicom", "dicom"), ("8", "dicom")]


@pytest.fixture(scope="module")
def sets(config, tmp_path_factory):
    """A set of each form: (config, folder, recipes)."""
    sets_by_form = {}
    for form, output in FORMS:
        set_config = config(form, masses=(1, 2), count=4, format=output, pathology="malignant")
        root = tmp_path_factory.mktemp("sets") / f"{form}-{output}"
        sets_by_form[form, output] = set_config, root, synthesize(set_config, root)
    return sets_by_form


@pytest.mark.parametrize("form", FORMS)
def test_nothing_changes_beyond_the_masses_surroundings(form, sets):
    config, root, recipes = sets[form]
    assert [recipe.left_out for recipe in recipes] == [None] * 4 and {
        len(recipe.lesions) for recipe in recipes
    } == {1, 2}
    bits = 8 if form[0] == "8" else 12
    for recipe in recipes:
        source = archives.read_stored(find_source(config, recipe)).values
        path = root / f"images/{recipe.name}.{'dcm' if form[1] == 'dicom' else 'png'}"
        if form[1] == "dicom":
            dataset = pydicom.dcmread(path)
            synthetic = dataset.pixel_array
            assert dataset.BitsStored == bits and dataset.BitsAllocated == (8 if bits == 8 else 16)
        else:
            synthetic = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert (
            synthetic.dtype == source.dtype == (np.uint8 if bits == 8 else np.uint16)
            and synthetic.max() < 2**bits
        )
        near = np.zeros(synthetic.shape, bool)
        on = np.zeros(synthetic.shape, bool)
        for lesion in recipe.lesions:
            (top, left, bottom, right) = lesion.box
            (first, before, last, behind) = lesion.window
            near[first:last, before:behind] = True
            on[top:bottom, left:right] |= (
                archives.coco.decode(lesion.region, "")[top:bottom, left:right] > 0
            )
        np.testing.assert_array_equal(synthetic[~near], source[~near])
        change = synthetic[on].astype(float) - source[on]
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
        annotations = coco.loadAnns(coco.getAnnIds([image["id"]]))
        assert len(annotations) == len(recipe.lesions)
        overlap = np.zeros((ROWS, COLS), int)
        for number, (annotation, lesion) in enumerate(
            zip(annotations, recipe.lesions, strict=True), start=1
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
    records = archive.read(root, skipped)
    assert not skipped and len(records) == 4
    for record, recipe in zip(records, recipes, strict=True):
        source = find_source(config, recipe)
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
    left = draw_breast(5)
    for side, image in (("L", left), ("R", left[:, ::-1].copy())):
        record = Mammogram(
            "t", "p", "1", ROWS, COLS, lambda image=image: image, side, "CC", "normal"
        )
        writer.write([record], tmp_path / side, bits=8)
    mask = np.zeros((40, 40), np.uint8)
    mask[5:30, 8:28] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    images = {}
    for side, col in (("L", 50), ("R", COLS - 50)):
        values = {
            "shapes": ShapeConfig(files=tmp_path / "mask.png"),
            "size": (24, 20),
            "centre": (100, col),
            "count": 1,
        }
        data = DataConfig(name="folder", root=tmp_path / side)
        synthesize(config(data=data, **values), tmp_path / f"out{side}")
        images[side] = cv2.imread(
            str(tmp_path / f"out{side}/images/000000.png"), cv2.IMREAD_UNCHANGED
        )
    difference = images["L"].astype(int) - images["R"][:, ::-1].astype(int)
    assert np.abs(difference).max() <= 1  # rounding of the resampled difference


def test_a_recipe_makes_its_item_again_bit_for_bit(sets, tmp_path, generator, where, monkeypatch):
    for form, (set_config, root, recipes) in sets.items():
        recipe = recipes[-1]
        output = tmp_path / "-".join(form)
        remake(root / f"recipes/{recipe.name}.json", output, where(set_config))
        again = read_files(output)
        assert set(again) == set(recipe.files) and all(
            (root / name).read_bytes() == content for name, content in again.items()
        )
    set_config, root, _ = sets["8", "png"]
    moved = shutil.copytree(generator, tmp_path / "moved")
    file = root / "recipes/000001.json"
    remake(file, tmp_path / "elsewhere", [*where(set_config), f"generator={moved}"])
    assert (
        read_files(tmp_path / "elsewhere")["images/000001.png"]
        == (root / "images/000001.png").read_bytes()
    )
    monkeypatch.setattr(
        mammograms, "render", lambda ground, stored, *rest: stored.with_values(stored.values ^ 1)
    )
    with pytest.raises(DataError, match="images/000001.png"):
        remake(file, tmp_path / "wrong", where(set_config))


def test_a_recipe_wants_its_source_and_generator(
    sets, tmp_path, tiny_infilling, folders, generator, where
):
    set_config, root, recipes = sets["8", "png"]
    file = root / "recipes/000000.json"
    other = tiny_infilling(padding=20, offset=0.1)
    with pytest.raises(DataError, match="000000.json"):
        remake(file, tmp_path / "a", [*where(set_config), f"generator={other}"])
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
    with pytest.raises(ConfigError, match="data.root=DIR"):
        remake(file, tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in "acd")
    with pytest.raises(ConfigError, match="nowhere.json"):
        remake(tmp_path / "nowhere.json", tmp_path / "e")


def test_a_run_goes_on_where_it_stopped_and_a_greater_count_adds(config, tmp_path):
    set_config = config()
    out = tmp_path / "out"
    synthesize(set_config, out)
    before = read_files(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    synthesize(set_config, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    (out / "recipes/000001.json").unlink()
    (out / "images/000002.png").write_bytes(b"cut")
    (out / "lesion_masks/000000_1.png").unlink()
    (out / "images/.000001.png.x.part").write_bytes(b"half")
    synthesize(set_config, out)
    assert read_files(out) == before
    more = synthesize(config(count=5), out)
    assert len(more) == 5 and {
        name: content
        for name, content in read_files(out).items()
        if name in before and name[0] in "ilr"
    } == {name: content for name, content in before.items() if name[0] in "il"} | {
        name: read_files(out)[name] for name in before if name.startswith("recipes")
    }
    assert (
        read_files(out)["images/000004.png"]
        and json.loads((out / "annotations.json").read_text())["images"][4]["id"] == 5
    )


def test_folders_of_others_are_left_alone(config, tmp_path, tiny_infilling):
    synthesize(config(), tmp_path / "out")
    before = read_files(tmp_path / "out")
    with pytest.raises(ConfigError, match="feather, seed"):
        synthesize(config(seed=1, feather=7), tmp_path / "out")
    with pytest.raises(ConfigError, match="generator.weights"):
        synthesize(
            config(
                generator=str(
                    tiny_infilling(padding=20, offset=0.05, preprocess={"flip_right": True})
                )
            ),
            tmp_path / "out",
        )
    writer.write([draw_mammogram(0), draw_mammogram(2)], tmp_path / "fewer", bits=8)
    with pytest.raises(ConfigError, match="content of the archive"):
        synthesize(
            config(data=DataConfig(name="folder", root=tmp_path / "fewer")), tmp_path / "out"
        )
    assert read_files(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        synthesize(config(), tmp_path / "mine")


def test_only_normal_mammograms_are_taken_and_lesions_never_overlapped(config, tmp_path):
    mixed = [
        draw_mammogram(0),
        draw_mammogram(2, make_outline(30, 4, 170, 110)),
        draw_mammogram(4, pathology=None),
    ]
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
        lesion
        for recipe in recipes
        if recipe.source.image_id == ill.image_id
        for lesion in recipe.lesions
    ]
    top, left, bottom, right = ill.lesions[0].box
    for lesion in kept:
        assert (
            lesion.box[0] >= bottom
            or lesion.box[2] <= top
            or lesion.box[1] >= right
            or lesion.box[3] <= left
        )
    reasons = [
        reason
        for name, reason in read_dead_letters(tmp_path / "all").items()
        if ill.image_id in name
    ]
    assert (
        len(kept) + len(reasons) == 4
        and all("no normal tissue is left" in reason for reason in reasons)
        and reasons
    )
    set_config = config(data=data, mammograms="all", only=(ill.image_id, unknown.image_id), count=2)
    assert (
        len({recipe.source.image_id for recipe in synthesize(set_config, tmp_path / "only")}) == 2
    )
    with pytest.raises(ConfigError, match=f"only: {ill.image_id} is none of the 1 mammograms"):
        synthesize(config(data=data, only=(ill.image_id,)), tmp_path / "no")
    with pytest.raises(DataError, match="none of 3 mammograms is normal"):
        synthesize(config("masses"), tmp_path / "no")


def test_why_an_item_is_left_out(config, tmp_path, folders):
    narrow = [draw_mammogram(0, laterality=None), draw_mammogram(2), draw_mammogram(4)]
    narrow[1] = Mammogram(
        "t", "p2", "2", ROWS, COLS, partial(draw_breast, 2, "L", 0.12), "L", "CC", "normal"
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
    assert {name[:11]: reason for name, reason in read_dead_letters(tmp_path / "out").items()} == {
        f"item {recipe.name}": recipe.left_out for recipe in recipes if recipe.left_out
    }
    assert (
        len(list((tmp_path / "out/images").iterdir())) == 1
        and "2 items could not be made" in (tmp_path / "out/README.md").read_text()
    )
    with pytest.raises(DataError, match="could not be made"):
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
    with pytest.raises(DataError, match="breast is too small"):
        synthesize(config(size=(110, 100), count=1), tmp_path / "none")


def test_more_masses_than_fit(config, tmp_path):
    recipes = synthesize(config(masses=(1, 40), count=2, seed=3), tmp_path / "out")
    for recipe in recipes:
        assert len(recipe.lesions) >= 2 and recipe.left_out is None
        (note,) = recipe.notes
        assert note.startswith(f"{len(recipe.lesions)} of ") and "no normal tissue is left" in note
    assert len(read_dead_letters(tmp_path / "out")) == 2
    (recipe,) = synthesize(config(masses=(1, 1), count=1), tmp_path / "one")
    assert recipe.notes == ()
    with pytest.raises(DataError, match="of 40 masses"):
        synthesize(config(masses=(40, 40), count=1), tmp_path / "none")


def test_size_place_shape_and_seed_are_the_users(config, tmp_path):
    mask = np.zeros((60, 60), np.uint8)
    cv2.ellipse(mask, (30, 30), (22, 12), 30, 0, 360, 255, -1)
    mask[2, 2] = 255  # noise, which is cleaned away
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    shapes = ShapeConfig(files=tmp_path / "mask.png")
    set_config = config(
        shapes=shapes, sizes=None, lesions=None, size=(40, 30), centre=(100, 60), count=1, only=()
    )
    (recipe,) = synthesize(set_config, tmp_path / "out")
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
    (other,) = synthesize(set_config.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.lesions[0].seed != lesion.seed
    for name, centre, reason in (
        ("air", (100, 120), "the place asked for is not wholly free"),
        ("off", (100, 149), "it reaches beyond"),
    ):
        with pytest.raises(DataError, match=reason):
            synthesize(set_config.model_copy(update={"centre": centre}), tmp_path / name)
    cv2.imwrite(str(tmp_path / "mask.png"), mask[:, 20:])
    with pytest.raises(DataError, match="mask.png: .*border"):
        synthesize(set_config, tmp_path / "border")
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="mask.png: .*read"):
        synthesize(set_config, tmp_path / "damaged")


def test_sizes_are_fitted_and_kept_in_the_recipe(config, tmp_path):
    (recipe,) = synthesize(config(sizes=None, count=1), tmp_path / "out")
    boxes = np.array([(25, 27), (23, 31), (31, 29)]) * 0.1  # of MASSES, corners and tip included
    assert recipe.sizes.unit == "mm" and recipe.sizes.count == 3
    np.testing.assert_allclose(
        (recipe.sizes.height, recipe.sizes.width),
        np.array([boxes.mean(axis=0), boxes.std(axis=0, ddof=1)]).T,
    )
    assert read_recipe(Recipe, tmp_path / "out/recipes/000000.json") == recipe
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


@pytest.mark.slow
def test_shapes_of_a_mask_gan(config, tmp_path):
    """Masks at their patch's border are drawn again, and so are implausible ones."""
    model = NoiseModel("mask_gan", 6, Discs(), ("mask",))
    folder = export(model, tmp_path / "gan", {"step": 7, "train_patients": []})
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
    with pytest.raises(DataError, match="mask GAN"):
        synthesize(config(shapes=ShapeConfig(gan=str(folder)), count=1), tmp_path / "none")
    every = ShapeConfig(gan=str(folder), plausible=False)
    recipes = synthesize(config(shapes=every, count=6), tmp_path / "every")
    assert [recipe.left_out for recipe in recipes] == [None] * 6


class CutDisc(keras.layers.Layer):
    """z -> a disc of which the patch's border cuts the lower half off."""

    def call(self, z):
        row, col = np.mgrid[:64, :64]
        disc = (np.hypot(row - 63, col - 32) < 16).astype(np.float32)
        return 0 * z[:, :1, None, None] + disc[..., None]


@pytest.mark.slow
def test_masks_that_the_border_cuts_are_inserted_where_every_mask_is(config, tmp_path):
    model = NoiseModel("mask_gan", 6, CutDisc(), ("mask",))
    gan = str(export(model, tmp_path / "gan", {"step": 7, "train_patients": []}))
    with pytest.raises(DataError, match="touches the border"):
        synthesize(config(shapes=ShapeConfig(gan=gan), count=1), tmp_path / "none")
    shapes = ShapeConfig(gan=gan, plausible=False)
    (recipe,) = synthesize(config(shapes=shapes, count=1), tmp_path / "every")
    assert recipe.left_out is None
    top, left, bottom, right = recipe.lesions[0].box
    area = recipe.lesions[0].area
    assert area / ((bottom - top) * (right - left)) == pytest.approx(np.pi / 4, abs=0.1)
    with pytest.raises(ValidationError, match="plausible"):
        ShapeConfig(plausible=False)


def test_each_archive_is_read_once_and_jobs_are_small(config, tmp_path, monkeypatch):
    """Sizes are fitted on the masses, and their outlines are the shapes; no network is pickled."""
    reads = []
    reader = archives.ARCHIVES["folder"]
    monkeypatch.setitem(
        archives.ARCHIVES, "folder", lambda *arguments: reads.append(1) or reader(*arguments)
    )
    sizes = []
    run = runners.run

    def measure(parts, make, runner):
        sizes.extend(len(pickle.dumps(part)) for part in parts)
        run(parts, make, runner)

    monkeypatch.setattr(runners, "run", measure)
    recipes = synthesize(config(sizes=None), tmp_path / "out")
    assert [recipe.left_out for recipe in recipes] == [None] * 3
    assert len(reads) == 2, "the normal mammograms and the masses"
    assert len(sizes) == 3 and max(sizes) < 20_000


def test_a_fault_of_our_own_stops_the_run(config, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("not broadcast")

    monkeypatch.setattr(synthesizer, "render", fail)
    with pytest.raises(DataError, match="not broadcast"):
        synthesize(config(count=1), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.part"))
    assert not (tmp_path / "out/recipes").exists()


def test_an_unreadable_file_is_a_dead_letter(config, tmp_path, folders):
    copy = shutil.copytree(folders / "8", tmp_path / "copy")
    path = copy / "images/000002.png"
    path.write_bytes(path.read_bytes()[:2000])
    recipes = synthesize(config(data=DataConfig(name="folder", root=copy)), tmp_path / "out")
    (reason,) = [recipe.left_out for recipe in recipes if recipe.left_out]
    name = make_pseudonym("images/000002.png")
    assert reason.startswith(f"{name}: can't be read as an image"), "names may be patients'"


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
    source = archives.read_stored(find_source(config("12"), recipe)).values
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
    secrets = [word.encode() for word in PATIENT_NAME.split("^")]
    for path in (folders / "dicom/images").iterdir():
        assert all(word in path.read_bytes() for word in secrets)
    _, root, _ = sets["dicom", "dicom"]
    uids = [
        str(pydicom.dcmread(path).SOPInstanceUID).encode()
        for path in (folders / "dicom/images").iterdir()
    ]
    names = [path.stem.encode() for path in (folders / "dicom/images").iterdir()]
    assert len(names) == 3
    for name, content in read_files(root).items():
        assert not any(word in content for word in (*secrets, *uids)), name


def test_what_cant_be_used_is_named(config, tmp_path, tiny_infilling):
    nowhere = str(tmp_path / "nowhere")
    silent, other = tiny_infilling(), tiny_infilling()
    card = json.loads((silent / "card.json").read_text())
    (silent / "card.json").write_text(
        json.dumps(card | {"config": {"data": card["config"]["data"]}})
    )
    del card["functions"]["generator"]["inputs"]["tri_label"]
    (other / "card.json").write_text(json.dumps(card))
    for values, error, named in (
        ({"generator": nowhere}, ConfigError, "^generator: .*nowhere"),
        ({"shapes": ShapeConfig(gan=nowhere)}, ConfigError, r"^shapes\.gan: .*nowhere"),
        (
            {"generator": str(tiny_infilling(preprocess={"contrast": "clahe"}))},
            DataError,
            "contrast=clahe",
        ),
        ({"generator": str(silent)}, DataError, "its card"),
        ({"generator": str(other)}, ExportError, "tri_label"),
        ({"lesions": None}, DataError, "shapes"),
    ):
        with pytest.raises(error, match=named):
            synthesize(config(**values), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for wrong, key in (
        ({"masses": (3, 2)}, "masses"),
        ({"centre": (1, 1), "masses": (1, 2)}, "centre"),
        ({"shapes": {"gan": "a", "files": "b"}}, "gan"),
    ):
        with pytest.raises(ValueError, match=key):
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
    set_config = config(generator=str(generator), count=1)
    (recipe,) = synthesize(set_config, tmp_path / "out")
    assert recipe.left_out is None and len(recipe.lesions) == 1
    remake(tmp_path / "out/recipes/000000.json", tmp_path / "again", where(set_config))


@pytest.mark.long
def test_apache_beam_makes_what_this_process_makes(config, tmp_path):
    pytest.importorskip("apache_beam")
    synthesize(config(), tmp_path / "one")
    synthesize(config(), tmp_path / "beam", Runner(beam="DirectRunner"))
    assert read_files(tmp_path / "beam") == read_files(tmp_path / "one")


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
    assert (
        read_files(tmp_path / "again")["images/000002.dcm"]
        == read_files(tmp_path / "one")["images/000002.dcm"]
    )


def test_errors_of_the_command_are_one_line(tmp_path, repository):
    config = repository / "configs/synthesis_full.yaml"
    overrides = ("--set", f"data.root={tmp_path / 'nowhere'}")
    done = run_module_here(
        "tfmammo.synthesis", "--config", config, *overrides, "--output", tmp_path / "out"
    )
    assert (
        done.returncode == 2
        and done.stderr.splitlines()[-1]
        == f"error: data.root: no such folder: {tmp_path / 'nowhere'}"
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_the_repository_config(repository):
    config = parse(SynthesisConfig, repository / "configs/synthesis_full.yaml", ["masses=[1,3]"])
    assert (
        config.masses == (1, 3)
        and config.feather == SynthesisConfig(name="a", generator="b").feather
        and config.format == "dicom"
    )
    config = parse(SynthesisConfig, repository / "configs/synthesis_blending.yaml")
    assert config.renderer == "blending" and config.count == 200  # of the paper
    assert config.places == "breast" and SynthesisConfig(name="a", generator="b").places == "rule"
    values = SynthesisConfig(name="a", renderer="blending", generator="b")
    assert (config.resize, config.rotate, config.feather) == (
        values.resize,
        values.rotate,
        values.feather,
    )
    parse(
        SynthesisConfig,
        repository / "configs/synthesis_blending.yaml",
        ["renderer=poisson", "generator=null"],
    )


@pytest.mark.slow
@pytest.mark.data
def test_real_normal_mammograms(real_data, tiny_infilling, tmp_path):
    config = SynthesisConfig(
        name="real",
        data=DataConfig(name="cdd_cesm", root=real_data / "cdd-cesm"),
        count=4,
        masses=(1, 2),
        format="dicom",
        generator=str(tiny_infilling(size=256, padding=100, preprocess={"remove_marks": True})),
    )
    recipes = synthesize(config, tmp_path / "out")
    complete = [recipe for recipe in recipes if not recipe.left_out]
    assert len(complete) >= 3
    for recipe in complete:
        source = archives.read_stored(find_source(config, recipe)).values
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


def test_a_recipe_replaces_no_other_file(sets, tmp_path, where, monkeypatch):
    set_config, root, _ = sets["8", "png"]
    file = root / "recipes/000001.json"
    mine = tmp_path / "images/000001.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match="is another file"):
        remake(file, tmp_path, where(set_config))
    assert read_files(tmp_path) == {"images/000001.png": b"mine"}
    output = tmp_path / "again"
    for _ in range(2):  # the same file again is none of another content
        remake(file, output, where(set_config))
    monkeypatch.setattr(
        mammograms, "render", lambda ground, stored, *rest: stored.with_values(stored.values ^ 1)
    )
    with pytest.raises(DataError, match="came out otherwise"):
        remake(file, tmp_path / "wrong", where(set_config))
    assert read_files(tmp_path / "wrong") == {}
