"""Whose lesions and tissue a set has: those of one side of a split, the mammograms' own lesions
next to inserted ones, and who is told of.
"""

import json
from dataclasses import replace
from functools import partial

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.synthesis.conftest import BOX
from tests.synthesis_archives import (
    COLS,
    ROWS,
    draw_mammogram,
    make_mass,
    read_features,
    read_metadata,
    write_archive,
    write_mask,
)
from tests.synthetic_sets import Disc, edit_card, make_generator, save_split
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.data.patients import PATIENTS
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.synthesis.config import PatientsConfig, ShapeConfig
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.recipe import ExistingLesion, describe_existing_lesions
from tfmammo.synthesis.sources import Sources
from tfmammo.tracking.export import export


def told(root):
    content = json.loads((root / PATIENTS).read_text())
    return {name: set(content[name]) for name in ("mammograms", "lesions", "trained_on")}


@pytest.fixture
def poisson(config):
    """A function (form, **values) -> a config that inserts real masses."""
    return partial(config, renderer="poisson")


# The mammograms' own lesions


@pytest.fixture
def partly_ill(tmp_path):
    """Two mammograms in the folder a, the second one with a mass."""
    ill = draw_mammogram(2, make_mass(20, 10, 12, 20))
    return write_archive(tmp_path / "a", [draw_mammogram(0), ill])


def test_a_recipe_holds_the_mammograms_own_lesions(poisson, folders, tmp_path):
    recipes = synthesize(poisson("mixed", mammograms="all", count=4), tmp_path / "set")
    first, second = (record.image_id for record in archive.read(folders / "mixed"))
    own = {recipe.source.image_id: recipe.own for recipe in recipes}
    assert own[first] == () and len(own) == 2
    # by the rule of its two legs: 15 rows, 21 columns wide at the top and 1 at the bottom
    row, col = np.mgrid[:ROWS, :COLS]
    triangle = (row >= 20) & (row <= 34) & (col >= 10) & ((col - 10) * 14 <= 20 * (34 - row) + 10)
    outlined, boxed = own[second]
    assert (outlined.kind, outlined.box, outlined.pathology) == ("mass", (20, 10, 35, 31), None)
    mask = archives.coco.decode(outlined.region, "")
    # a pixel a row, where its edge runs through one
    assert outlined.area == mask.sum() and (mask != triangle).sum() <= 15
    assert boxed == ExistingLesion(kind="calcification", box=BOX, area=16 * 28)
    for lesion in (lesion for recipe in recipes if recipe.own for lesion in recipe.lesions):
        top, left, bottom, right = lesion.box
        assert (top >= 35 or left >= 31) and (bottom <= BOX[0] or left >= BOX[3])
    assert "annotations.json has 4 lesions besides" in (tmp_path / "set/README.md").read_text()


def test_records_hold_both(poisson, folders, tmp_path):
    ill = archive.read(folders / "mixed")[1]
    values = {"only": (ill.image_id,), "format": "tfrecord", "masses": (2, 2), "count": 1}
    (recipe,) = synthesize(poisson("mixed", mammograms="all", **values), tmp_path / "set")
    features = read_features(tmp_path / "set", recipe)
    assert list(features["image/object/synthetic"].int64_list.value) == [1, 1, 0, 0]
    names = [b"mass"] * 3 + [b"calcification"]
    assert list(features["image/object/class/text"].bytes_list.value) == names
    assert list(features["image/object/class/label"].int64_list.value) == [1, 1, 1, 2]
    size = [features[f"image/{key}"].int64_list.value[0] for key in ("height", "width")]
    assert size == [ROWS, COLS]
    sides = [
        features[f"image/object/bbox/{side}"].float_list.value
        for side in ("ymin", "xmin", "ymax", "xmax")
    ]
    boxes = [lesion.box for lesion in (*recipe.lesions, *recipe.own)]
    np.testing.assert_allclose(np.array(sides).T * [ROWS, COLS, ROWS, COLS], boxes, rtol=1e-5)
    masks = [
        tf.io.decode_png(mask).numpy()[..., 0] > 0
        for mask in features["image/object/mask"].bytes_list.value
    ]
    np.testing.assert_array_equal(masks[1], archives.coco.decode(recipe.lesions[1].region, "") > 0)
    np.testing.assert_array_equal(masks[2], ill.lesions[0].mask(ROWS, COLS) > 0)
    assert masks[3].sum() == 16 * 28 and masks[3][160:176, 12:40].all()


def test_an_own_lesion_that_cant_be_read_is_a_failure(poisson, partly_ill, tmp_path):
    records = archive.read(partly_ill.root)
    (mask,) = (tmp_path / "a/masks").iterdir()
    mask.write_bytes(mask.read_bytes()[:40])
    recipes = synthesize(poisson(data=partly_ill, mammograms="all", count=2), tmp_path / "out")
    reasons = {recipe.source.image_id: recipe.left_out for recipe in recipes}
    assert reasons[records[0].image_id] is None
    assert "can't be read as an image" in reasons[records[1].image_id]
    for box in ((5, 5, 5, 9), (190, 5, 201, 9), (-1, 5, 9, 9)):
        with pytest.raises(DataError, match="lesion 0"):
            describe_existing_lesions(draw_mammogram(0, Lesion("mass", box)))


def test_lesions_of_uncertain_kind(poisson, partly_ill, tmp_path):
    """A mask whose kind the table does not give is of uncertain kind."""
    data = partly_ill
    table = (tmp_path / "a/metadata.csv").read_text()
    assert table.count(",mass,") == 1
    (tmp_path / "a/metadata.csv").write_text(table.replace(",mass,", ",,"))
    ids = [record.image_id for record in archive.read(data.root)]
    config = poisson(data=data, mammograms="all", count=2)
    assert {mammogram.image_id for mammogram in Sources(config).mammograms} == set(ids)
    certain = config.model_copy(update={"data": data.model_copy(update={"mixed_findings": False})})
    assert [mammogram.image_id for mammogram in Sources(certain).mammograms] == ids[:1]
    with pytest.raises(ConfigError, match=f"only: {ids[1]} is none of the 1 mammograms"):
        _ = Sources(certain.model_copy(update={"only": (ids[1],)})).mammograms


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [("malignant", "benign", "malignant"), ("benign", None, "benign"), (None, "benign", "")],
)
def test_the_pathology_of_an_image_is_that_of_its_worst_lesion(
    own, asked, expected, poisson, tmp_path
):
    """The inserted masses are benign; what is asked for is said of them alone."""
    ill = draw_mammogram(2, make_mass(20, 10, 12, 20, pathology=own), pathology=None)
    data = write_archive(tmp_path / "a", [ill])
    synthesize(poisson(data=data, mammograms="all", pathology=asked, count=1), tmp_path / "out")
    assert [row["pathology"] for row in read_metadata(tmp_path / "out")] == [expected]


# Whose lesions shapes and sizes are of, and who is told of


@pytest.fixture(scope="module")
def both_sides(tmp_path_factory):
    """Four normal mammograms and six with a mass, of ten patients in two folds, and one of neither.

    Returns: (data, records, split file, patients of the train side).
    """
    root = tmp_path_factory.mktemp("sides")
    masses = [make_mass(80, 30, 18 + 2 * number, 20 + 3 * number) for number in range(6)]
    every = [draw_mammogram(2 * number) for number in range(4)]
    every += [draw_mammogram(10 + 2 * number, mass) for number, mass in enumerate(masses)]
    unknown = replace(draw_mammogram(40), pathology=None)
    data = write_archive(root / "both", [*every, unknown])
    records = [one for one in archive.read(data.root) if one.lesions or one.pathology]
    assert len(records) == len(every)
    train = {records[i].patient_id for i in (0, 1, 4, 5, 6)}
    places = {record.patient_id: int(record.patient_id in train) for record in records}
    return data, records, save_split(root / "split.json", places), train


@pytest.fixture
def infilling(config, both_sides):
    """A function (**values) -> a config that takes sizes and shapes from those masses."""
    return partial(config, data=both_sides[0], lesions=None, sizes=None)


@pytest.mark.slow
def test_an_infilling_of_one_side(infilling, both_sides, where, tmp_path):
    """Mammograms, sizes and shapes are all of that side's patients; the folder is that side's."""
    _, records, file, train = both_sides
    patient_of = {record.image_id: record.patient_id for record in records}
    everybody = set(patient_of.values())
    ill = {record.patient_id for record in records if record.lesions}
    for side, patients, numbers in (
        ("train", train, (0, 1, 2)),
        ("held_out", everybody - train, (3, 4, 5)),
    ):
        one_sided = infilling(count=12, patients=PatientsConfig(split_file=file, side=side))
        recipes = synthesize(one_sided, tmp_path / side)
        complete = [recipe for recipe in recipes if not recipe.left_out]
        origins = {lesion.shape.split()[1] for recipe in complete for lesion in recipe.lesions}
        shapes = {patient_of[origin.partition("#")[0]] for origin in origins}
        assert len(complete) > 6
        assert {recipe.source.patient_id for recipe in complete} == patients - ill
        assert shapes <= patients & ill and len(shapes) > 1
        height = np.mean([18 + 2 * number for number in numbers]) * 0.1
        assert complete[0].sizes.count == 3
        assert complete[0].sizes.height[0] == pytest.approx(height)
        known = {"mammograms": patients - ill, "lesions": patients & ill, "trained_on": set()}
        assert told(tmp_path / side) == known
        readme = (tmp_path / side / "README.md").read_text()
        assert f"All are of the {side} side of one split, fold 0." in readme
    with pytest.raises(ConfigError, match="patients.side"):
        synthesize(one_sided, tmp_path / "train")
    file = tmp_path / f"train/recipes/{complete[0].name}.json"
    remake(file, tmp_path / "again", where(infilling()))
    assert synthesize(infilling(), tmp_path / "all")[0].sizes.count == 6
    assert told(tmp_path / "all")["lesions"] == ill
    assert "side of one split" not in (tmp_path / "all/README.md").read_text()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"shapes": ShapeConfig(drawn="oval")}, "sizes can't be fitted on 0 lesions"),
        ({"size": (24, 20)}, "take shapes"),
    ],
)
def test_a_side_without_lesions(values, reason, infilling, both_sides, tmp_path):
    places = {record.patient_id: int(not record.lesions) for record in both_sides[1]}
    subset = PatientsConfig(split_file=save_split(tmp_path / "split.json", places))
    with pytest.raises(DataError, match=reason):
        synthesize(infilling(patients=subset, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_who_a_set_of_real_lesions_tells_of(poisson, both_sides, tmp_path):
    """Those whose lesions are in the items that were made, and no others of the archive."""
    config = poisson(data=both_sides[0], lesions=None, count=2)
    recipes = synthesize(config, tmp_path / "out")
    whose = {graft.patient_id for recipe in recipes for graft in recipe.grafts}
    shown = {recipe.source.patient_id for recipe in recipes}
    known = told(tmp_path / "out")
    assert known == {"mammograms": shown, "lesions": whose, "trained_on": set()}
    assert 1 <= len(whose) <= 2
    text = json.loads((tmp_path / "out" / PATIENTS).read_text())
    assert list(text) == sorted(text) and all(text[name] == sorted(text[name]) for name in known)
    synthesize(config.model_copy(update={"count": 8}), tmp_path / "out")
    assert len(told(tmp_path / "out")["mammograms"]) == 4


@pytest.mark.slow
def test_who_networks_were_trained_on_is_told(
    infilling, both_sides, tiny_infilling, tiny_blending, tmp_path
):
    generator = tiny_infilling(padding=20)
    edit_card(generator, '"train_patients": []', '"train_patients": ["b", "a"]')
    model = make_generator("mask_gan", "noise", (1,), Disc(), ("mask",))
    gan = export(model, tmp_path / "gan", {"train_patients": ["c", "a"]})
    shapes = ShapeConfig(gan=str(gan))
    config = infilling(generator=str(generator), shapes=shapes, count=1)
    given = config.model_copy(update={"size": (24, 20)})
    synthesize(given, tmp_path / "given")
    assert told(tmp_path / "given")["trained_on"] == {"a", "b", "c"}
    assert not told(tmp_path / "given")["lesions"]
    assert not Sources(given).size_patients
    synthesize(config, tmp_path / "fitted")
    ill = {record.patient_id for record in both_sides[1] if record.lesions}
    assert told(tmp_path / "fitted")["lesions"] == ill, "sizes are fitted on all"
    blending = str(tiny_blending(patients=("x",)))
    synthesize(infilling(renderer="blending", generator=blending, count=1), tmp_path / "blending")
    assert told(tmp_path / "blending")["trained_on"] == {"x"}
    edit_card(gan, '"train_patients"', '"others"')
    with pytest.raises(DataError, match="train_patients"):
        synthesize(given, tmp_path / "unknown")
    assert not (tmp_path / "unknown").exists()


def test_it_is_not_known_whose_the_shapes_of_files_are(infilling, tmp_path):
    shapes = ShapeConfig(files=write_mask(tmp_path / "mask.png", (8, 8, 30, 32)))
    synthesize(infilling(shapes=shapes, size=(24, 20), count=1), tmp_path / "out")
    assert told(tmp_path / "out")["lesions"] == set()
    assert "Shapes come from files" in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "equal"), [("noise", True), ("lesion", False)])
def test_a_blending_network_without_prior_sees_the_outline_alone(
    prior, equal, config, both_sides, where, tmp_path
):
    """Other intensities of the real lesions change nothing; with the prior they do."""
    keras.utils.set_random_seed(0)
    model = BlendingConfig(prior=prior, widths=(4, 8), discriminator_filters=4)
    data = DataConfig(size=64, frame="square", context=2, window=(0, 1))
    sections = {"data": data.model_dump(mode="json"), "model": model.model_dump(mode="json")}
    card = {"name": "blending", "config": sections, "train_patients": []}
    generator = str(export(Blending(model, 64), tmp_path / "export", card))
    ill = [record for record in both_sides[1] if record.lesions]
    bright = partial(np.full, (ROWS, COLS, 1), np.float32(0.9))
    images = []
    for name, records in (
        ("same", ill),
        ("bright", [replace(record, read=bright) for record in ill]),
    ):
        lesions = write_archive(tmp_path / name, records)
        root = tmp_path / f"set of {name}"
        values = {"generator": generator, "data": both_sides[0], "lesions": lesions, "count": 2}
        set_config = config(renderer="blending", feather=6, **values)
        recipes = synthesize(set_config, root)
        assert [recipe.left_out for recipe in recipes] == [None, None]
        images.append([cv2.imread(str(root / f"images/{each.name}.png")) for each in recipes])
        (used,) = {graft.used for recipe in recipes for graft in recipe.grafts}
        assert used == ("outline" if equal else None)
        assert ("their outlines are those of" in (root / "README.md").read_text()) == equal
        remake(root / "recipes/000001.json", tmp_path / "again" / name, where(set_config))
    assert np.array_equal(images[0], images[1]) == equal
