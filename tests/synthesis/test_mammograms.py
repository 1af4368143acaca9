"""Sets from a small folder of 8-bit, 16-bit and DICOM mammograms with a tiny infilling: files,
recipes, reasons.
"""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial

import cv2
import keras
import numpy as np
import pydicom
import pytest
import tensorflow as tf

from tests.archives.writers import folder as writer
from tests.commands import run_module, run_module_here
from tests.synthesis_archives import (
    COLS,
    PATIENT_NAME,
    ROWS,
    draw_breast,
    draw_mammogram,
    find_source,
    list_times,
    make_outline,
    read_failures,
)
from tests.synthetic_sets import NoiseModel, read_files
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.archives.files import make_pseudonym
from tfmammo.config import DataConfig, dump, parse
from tfmammo.data import runners
from tfmammo.data.runners import Runner
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.mammogram import Skipped
from tfmammo.models import mask_gan
from tfmammo.synthesis import mammograms, synthesizer
from tfmammo.synthesis.config import ShapeConfig, SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.recipe import Recipe, read_recipe
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


def find_outside(recipe):
    """Everything beyond the windows of a recipe's lesions: bool [ROWS, COLS]."""
    outside = np.ones((recipe.source.rows, recipe.source.cols), bool)
    for lesion in recipe.lesions:
        top, left, bottom, right = lesion.window
        outside[top:bottom, left:right] = False
    return outside


@pytest.mark.parametrize("form", FORMS)
def test_nothing_changes_beyond_the_masses_surroundings(form, sets):
    config, root, recipes = sets[form]
    assert [recipe.left_out for recipe in recipes] == [None] * 4
    assert {len(recipe.lesions) for recipe in recipes} == {1, 2}
    bits = 8 if form[0] == "8" else 12
    for recipe in recipes:
        source = archives.read_stored(find_source(config, recipe)).values
        if form[1] == "dicom":
            dataset = pydicom.dcmread(root / f"images/{recipe.name}.dcm")
            synthetic = dataset.pixel_array
            assert dataset.BitsStored == bits and dataset.BitsAllocated == (8 if bits == 8 else 16)
        else:
            path = root / f"images/{recipe.name}.png"
            synthetic = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert synthetic.dtype == source.dtype == (np.uint8 if bits == 8 else np.uint16)
        assert synthetic.max() < 2**bits
        outside = find_outside(recipe)
        np.testing.assert_array_equal(synthetic[outside], source[outside])
        masks = [archives.coco.decode(lesion.region, "") for lesion in recipe.lesions]
        on = np.sum(masks, axis=0) > 0
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
        assert image["file_name"].startswith(recipe.name)
        assert (root / "images" / image["file_name"]).is_file()
        assert (image["height"], image["width"]) == (ROWS, COLS)
        annotations = coco.loadAnns(coco.getAnnIds([image["id"]]))
        overlap = np.zeros((ROWS, COLS), int)
        for number, (annotation, lesion) in enumerate(
            zip(annotations, recipe.lesions, strict=True), start=1
        ):
            path = root / f"lesion_masks/{recipe.name}_{number}.png"
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert set(np.unique(mask)) == {0, 255}
            np.testing.assert_array_equal(coco.annToMask(annotation) * 255, mask)
            left, top, width, height = cv2.boundingRect(mask)
            assert lesion.box == (top, left, top + height, left + width)
            assert annotation["bbox"] == [left, top, width, height]
            assert annotation["area"] == lesion.area == (mask > 0).sum()
            assert annotation["iscrowd"] == 0
            assert coco.cats[annotation["category_id"]]["name"] == "mass"
            overlap += cv2.dilate(mask, np.ones((3, 3))) > 0
        assert overlap.max() == 1


@pytest.mark.parametrize("form", FORMS)
def test_the_set_is_an_archive_of_ours(form, sets):
    config, root, recipes = sets[form]
    skipped = Skipped()
    records = archive.read(root, skipped)
    assert not skipped
    for record, recipe in zip(records, recipes, strict=True):
        source = find_source(config, recipe)
        facts = (record.laterality, record.view, record.spacing, record.density)
        assert facts == (source.laterality, "CC", (0.1, 0.1), "2")
        assert record.pathology == "malignant"
        boxes = [lesion.box for lesion in record.lesions]
        assert boxes == [lesion.box for lesion in recipe.lesions]
        outside = find_outside(recipe)
        np.testing.assert_allclose(record.pixels()[outside], source.pixels()[outside], atol=1e-6)


def test_right_breasts_are_shown_to_the_network_as_left_ones(config, tmp_path):
    """A mammogram and its mirror image, with the mirrored mass, come out as mirror images."""
    left = draw_breast(5)
    mask = np.zeros((40, 40), np.uint8)
    mask[5:30, 8:28] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    images = {}
    for side, image, col in (("L", left, 50), ("R", left[:, ::-1].copy(), COLS - 50)):
        record = draw_mammogram(0, laterality=side, read=lambda image=image: image)
        writer.write([record], tmp_path / side, bits=8)
        set_config = config(
            data=DataConfig(name="folder", root=tmp_path / side),
            shapes=ShapeConfig(files=tmp_path / "mask.png"),
            size=(24, 20),
            centre=(100, col),
            count=1,
        )
        synthesize(set_config, tmp_path / f"out{side}")
        path = tmp_path / f"out{side}/images/000000.png"
        images[side] = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    difference = images["L"].astype(int) - images["R"][:, ::-1].astype(int)
    assert np.abs(difference).max() <= 1  # rounding of the resampled difference


def test_a_recipe_makes_its_item_again_bit_for_bit(sets, tmp_path, generator, where):
    for form, (set_config, root, recipes) in sets.items():
        recipe = recipes[-1]
        output = tmp_path / "-".join(form)
        remake(root / f"recipes/{recipe.name}.json", output, where(set_config))
        assert read_files(output) == {name: (root / name).read_bytes() for name in recipe.files}
    set_config, root, _ = sets["8", "png"]
    moved = shutil.copytree(generator, tmp_path / "moved")
    remake(
        root / "recipes/000001.json",
        tmp_path / "elsewhere",
        [*where(set_config), f"generator={moved}"],
    )
    again = (tmp_path / "elsewhere/images/000001.png").read_bytes()
    assert again == (root / "images/000001.png").read_bytes()


def test_a_recipe_replaces_no_other_file(sets, tmp_path, where, monkeypatch):
    set_config, root, _ = sets["8", "png"]
    file = root / "recipes/000001.json"
    mine = tmp_path / "images/000001.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match="is another file"):
        remake(file, tmp_path, where(set_config))
    assert read_files(tmp_path) == {"images/000001.png": b"mine"}
    for _ in range(2):  # the same file is not another
        remake(file, tmp_path / "again", where(set_config))
    monkeypatch.setattr(
        mammograms,
        "render",
        lambda ground, stored, *rest: replace(stored, values=stored.values ^ 1),
    )
    with pytest.raises(DataError, match="images/000001.png"):
        remake(file, tmp_path / "wrong", where(set_config))
    assert read_files(tmp_path / "wrong") == {}


def test_a_recipe_wants_its_source_and_generator(
    sets, tmp_path, tiny_infilling, folders, generator, where
):
    set_config, root, recipes = sets["8", "png"]
    file = root / "recipes/000000.json"
    other = tiny_infilling(padding=20, offset=0.1)
    copy = shutil.copytree(folders / "8", tmp_path / "copy")
    for path in (copy / "images").iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    name = recipes[0].source.image_id
    changed = [f"data.root={copy}", f"generator={generator}"]
    for overrides, error, named in (
        ([*where(set_config), f"generator={other}"], DataError, "000000.json"),
        (changed, DataError, f"{name} has changed"),
        (["data.name=phantom", f"data.root={copy}"], DataError, f"{name} is not in phantom"),
        ([], ConfigError, "data.root=DIR"),
    ):
        with pytest.raises(error, match=named):
            remake(file, tmp_path / "out", overrides)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="nowhere.json"):
        remake(tmp_path / "nowhere.json", tmp_path / "out")


def test_a_run_goes_on_where_it_stopped_and_a_greater_count_adds(config, tmp_path):
    set_config = config()
    out = tmp_path / "out"
    synthesize(set_config, out)
    before = read_files(out)
    times = list_times(out)
    synthesize(set_config, out)
    assert list_times(out) == times
    (out / "recipes/000001.json").unlink()
    (out / "images/000002.png").write_bytes(b"cut")
    (out / "lesion_masks/000000_1.png").unlink()
    (out / "images/.000001.png.x.part").write_bytes(b"half")
    synthesize(set_config, out)
    assert read_files(out) == before
    assert len(synthesize(config(count=5), out)) == 5
    after = read_files(out)
    for name, content in before.items():
        if name.startswith(("images", "lesion_masks")):
            assert after[name] == content
    images = json.loads(after["annotations.json"])["images"]
    assert [image["id"] for image in images] == [1, 2, 3, 4, 5]


def test_folders_of_others_are_left_alone(config, tmp_path, tiny_infilling):
    out = tmp_path / "out"
    synthesize(config(), out)
    before = read_files(out)
    other = tiny_infilling(padding=20, offset=0.05, preprocess={"flip_right": True})
    writer.write([draw_mammogram(0), draw_mammogram(2)], tmp_path / "fewer", bits=8)
    for values, named in (
        ({"seed": 1, "feather": 7}, "feather, seed"),
        ({"generator": str(other)}, "generator.weights"),
        ({"data": DataConfig(name="folder", root=tmp_path / "fewer")}, "content of the archive"),
    ):
        with pytest.raises(ConfigError, match=named):
            synthesize(config(**values), out)
    assert read_files(out) == before


def test_only_normal_mammograms_are_taken_and_lesions_never_overlapped(config, tmp_path):
    mixed = [
        draw_mammogram(0),
        draw_mammogram(2, make_outline(30, 4, 170, 110)),
        draw_mammogram(4, pathology=None),
    ]
    writer.write(mixed, tmp_path / "mixed")
    data = DataConfig(name="folder", root=tmp_path / "mixed")
    normal, ill, unknown = archive.read(tmp_path / "mixed")

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
    narrow = draw_mammogram(2, read=partial(draw_breast, 2, "L", 0.12))
    root = tmp_path / "narrow"
    writer.write([draw_mammogram(0, laterality=None), narrow, draw_mammogram(4)], root)
    data = DataConfig(name="folder", root=root)
    out = tmp_path / "out"
    recipes = synthesize(config(data=data), out)
    unknown, small, good = (record.image_id for record in archive.read(root))
    by_source = {recipe.source.image_id: recipe for recipe in recipes}
    assert by_source[good].left_out is None
    assert "its laterality is not stated" in by_source[unknown].left_out
    assert "the breast is too small for a mass of" in by_source[small].left_out
    left_out = {f"item {recipe.name}": recipe.left_out for recipe in recipes if recipe.left_out}
    assert {name[:11]: reason for name, reason in read_failures(out).items()} == left_out
    assert len(list((out / "images").iterdir())) == 1
    assert "2 items could not be made" in (out / "README.md").read_text()
    item = by_source[small]
    file = out / f"recipes/{item.name}.json"
    with pytest.raises(DataError, match="could not be made"):
        remake(file, tmp_path / "again")
    file.write_text(item.model_copy(update={"left_out": "an old reason"}).model_dump_json())
    assert "an old reason" in str(synthesize(config(data=data), out))
    assert "an old reason" not in str(synthesize(config(data=data), out, retry=True))
    with pytest.raises(DataError, match="breast is too small"):
        synthesize(config(size=(110, 100), count=1), tmp_path / "none")


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
    mask[2, 2] = 255  # noise, which is cleaned away
    cv2.imwrite(str(picture), mask)
    set_config = config(
        shapes=ShapeConfig(files=picture),
        sizes=None,
        lesions=None,
        size=(40, 30),
        centre=(100, 60),
        count=1,
    )
    (recipe,) = synthesize(set_config, tmp_path / "out")
    (lesion,) = recipe.lesions
    top, left, bottom, right = lesion.box
    np.testing.assert_allclose([(top + bottom) / 2, (left + right) / 2], (100, 60), atol=1)
    np.testing.assert_allclose([bottom - top, right - left], (40, 30), atol=2)
    inside = archives.coco.decode(lesion.region, "")[top:bottom, left:right] > 0
    mask[2, 2] = 0
    col, row, width, height = cv2.boundingRect(mask)
    cut = mask[row : row + height, col : col + width]
    expected = cv2.resize(cut, inside.shape[::-1]) > 127
    assert inside[expected].mean() > 0.95 and inside[~expected].mean() < 0.1
    assert lesion.shape == f"file {hashlib.sha256(picture.read_bytes()).hexdigest()[:12]}"
    (other,) = synthesize(set_config.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.lesions[0].seed != lesion.seed
    for number, (centre, reason) in enumerate(
        (((100, 120), "not wholly free"), ((100, 149), "it reaches beyond"))
    ):
        with pytest.raises(DataError, match=reason):
            synthesize(set_config.model_copy(update={"centre": centre}), tmp_path / str(number))
    for name, content, reason in (
        ("border", cv2.imencode(".png", mask[:, 20:])[1].tobytes(), "border"),
        ("damaged", b"no picture", "read"),
    ):
        picture.write_bytes(content)
        with pytest.raises(DataError, match=f"mask.png: .*{reason}"):
            synthesize(set_config, tmp_path / name)


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
    model = NoiseModel("mask_gan", 6, Discs(), ("mask",))
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
    (tmp_path / "gan" / mask_gan.LIMITS).write_text(limits.model_dump_json())
    with pytest.raises(DataError, match="mask GAN"):
        list_extents("none")
    assert list_extents("every", plausible=False) == pytest.approx([np.pi / 4] * 6, abs=0.08)


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


def test_a_bug_stops_the_run(config, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("not broadcast")

    monkeypatch.setattr(synthesizer, "render", fail)
    with pytest.raises(DataError, match="not broadcast"):
        synthesize(config(count=1), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.part")) and not (tmp_path / "out/recipes").exists()


def test_an_unreadable_file_is_a_failure(config, tmp_path, folders):
    copy = shutil.copytree(folders / "8", tmp_path / "copy")
    path = copy / "images/000002.png"
    path.write_bytes(path.read_bytes()[:2000])
    recipes = synthesize(config(data=DataConfig(name="folder", root=copy)), tmp_path / "out")
    (reason,) = [recipe.left_out for recipe in recipes if recipe.left_out]
    name = make_pseudonym("images/000002.png")
    assert reason.startswith(f"{name}: can't be read as an image"), "names may be patients'"


def test_no_patient_data_is_left(sets, folders):
    sources = list((folders / "dicom/images").iterdir())
    secrets = [word.encode() for word in PATIENT_NAME.split("^")]
    assert all(word in path.read_bytes() for path in sources for word in secrets)
    secrets += [pydicom.dcmread(path).SOPInstanceUID.encode() for path in sources]
    assert len(secrets) == 5
    for name, content in read_files(sets["dicom", "dicom"][1]).items():
        assert not any(word in content for word in secrets), name


def test_what_cant_be_used_is_named(config, tmp_path, tiny_infilling):
    nowhere = str(tmp_path / "nowhere")
    silent, other = tiny_infilling(), tiny_infilling()
    card = json.loads((silent / "card.json").read_text())
    data = card["config"]["data"]
    (silent / "card.json").write_text(json.dumps(card | {"config": {"data": data}}))
    del card["functions"]["generator"]["inputs"]["tri_label"]
    (other / "card.json").write_text(json.dumps(card))
    equalised = str(tiny_infilling(preprocess={"contrast": "clahe"}))
    for values, error, named in (
        ({"generator": nowhere}, ConfigError, "^generator: .*nowhere"),
        ({"shapes": ShapeConfig(gan=nowhere)}, ConfigError, r"^shapes\.gan: .*nowhere"),
        ({"generator": equalised}, DataError, "contrast=clahe"),
        ({"generator": str(silent)}, DataError, "its card"),
        ({"generator": str(other)}, ExportError, "tri_label"),
        ({"lesions": None}, DataError, "shapes"),
    ):
        with pytest.raises(error, match=named):
            synthesize(config(**values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_two_channel_generator_and_percentiles(config, tiny_infilling, where, tmp_path):
    values = {"margin": None, "window": None, "percentiles": (1, 99), "frame": "square"}
    generator = tiny_infilling(**values, context=2.0, preprocess={"remove_marks": True})
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
    image = "images/000002.dcm"
    assert (tmp_path / "again" / image).read_bytes() == (tmp_path / "one" / image).read_bytes()


def test_errors_of_the_command_are_one_line(tmp_path, repository):
    nowhere = tmp_path / "nowhere"
    arguments = ("--config", repository / "configs/synthesis_full.yaml", "--output", tmp_path / "o")
    done = run_module_here("tfmammo.synthesis", *arguments, "--set", f"data.root={nowhere}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"error: data.root: no such folder: {nowhere}"
    assert not (tmp_path / "o").exists()


def test_the_repository_config(repository):
    full = parse(SynthesisConfig, repository / "configs/synthesis_full.yaml", ["masses=[1,3]"])
    assert (full.masses, full.format, full.places) == ((1, 3), "dicom", "rule")
    without_network = ["renderer=poisson", "generator=null"]
    for overrides in ([], without_network):
        path = repository / "configs/synthesis_blending.yaml"
        blending = parse(SynthesisConfig, path, overrides)
        assert (blending.count, blending.places) == (200, "breast")  # of the paper


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
        outside = find_outside(recipe)
        assert values.dtype == np.uint8 and (values != source).any()
        np.testing.assert_array_equal(values[outside], source[outside])
