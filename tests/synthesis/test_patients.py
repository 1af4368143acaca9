"""Whose lesions and tissue a set has: those of one side of a split, the mammograms' own lesions
next to inserted ones, and who is told of.
"""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.archives.writers import folder as writer
from tests.small_mammograms import make_mammogram, textured_breast
from tests.synthesis_archives import list_times
from tests.synthetic_sets import NoiseModel, read_files, save_split
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.data.patients import PATIENTS
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, Skipped
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.synthesis.config import PatientsConfig, ShapeConfig, SynthesisConfig
from tfmammo.synthesis.mammogram_set import collect_patients
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.recipe import (
    ExistingLesion,
    Recipe,
    describe_existing_lesions,
    read_recipe,
)
from tfmammo.synthesis.sources import Sources
from tfmammo.synthesis.synthesizer import Synthesizer
from tfmammo.tracking.export import export

ROWS = 200
COLS = 150
# A mammogram's own lesions: a triangle, at the chest wall and off the rows that masses are inserted
# in, and a box.
TRIANGLE = [[20, 10], [20, 30], [34, 10]]
BOX = (160, 12, 176, 40)


def mammogram(number, lesions=(), **facts):
    known = {"spacing": (0.1, 0.1), "pathology": None if lesions else "normal"}
    return make_mammogram(number, textured_breast(number), lesions, **known | facts)


def mass(top, left, height, width, **details):
    bottom = top + height - 1
    right = left + width - 1
    corners = np.float32([[top, left], [top, right], [bottom, right], [bottom, left]])
    return Lesion.from_outline("mass", corners, ROWS, COLS, **details)


def written(root, mammograms, **how):
    """A folder of 8-bit images, and its records in the order given."""
    writer.write(mammograms, root, bits=8, **how)
    return DataConfig(name="folder", root=root), archive.read(root)


@pytest.fixture(scope="module")
def masses(tmp_path_factory):
    """An archive of real lesions to insert."""
    mammograms = [
        mammogram(10 + number, [mass(80, 30, 20 + 3 * number, 24, pathology="benign")])
        for number in range(3)
    ]
    return written(tmp_path_factory.mktemp("masses") / "masses", mammograms)[0]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A mammogram without lesions, and one with an outlined mass and a boxed calcification."""
    triangle = Lesion.from_outline("mass", np.float32(TRIANGLE), ROWS, COLS)
    root = tmp_path_factory.mktemp("mixed") / "mixed"
    ill = mammogram(1, [triangle, mass(BOX[0], BOX[1], 16, 28)], pathology="malignant")
    writer.write([mammogram(0), ill], root, annotations="rle", bits=8)
    content = json.loads((root / "annotations.json").read_text())
    del content["annotations"][1]["segmentation"]
    content["annotations"][1]["category_id"] = writer.CATEGORIES["calcification"]
    (root / "annotations.json").write_text(json.dumps(content))
    return DataConfig(name="folder", root=root), archive.read(root)


def make_config(data, lesions, renderer="poisson", **values):
    known = {"name": "tiny", "format": "png", "count": 4}
    return SynthesisConfig(data=data, lesions=lesions, renderer=renderer, **known | values)


def told(root):
    content = json.loads((root / PATIENTS).read_text())
    return {name: set(content[name]) for name in ("mammograms", "lesions", "trained_on")}


# The mammograms' own lesions


@pytest.fixture(scope="module")
def all_of_them(mixed, masses, tmp_path_factory):
    """A set from both mammograms: (config, folder, recipes without and with own lesions)."""
    config = make_config(mixed[0], masses, mammograms="all")
    root = tmp_path_factory.mktemp("set") / "set"
    recipes = synthesize(config, root)
    assert [recipe.left_out for recipe in recipes] == [None] * 4
    parts = [
        [recipe for recipe in recipes if recipe.source.image_id == record.image_id]
        for record in mixed[1]
    ]
    return config, root, *parts


def test_a_recipe_holds_the_mammograms_own_lesions(all_of_them):
    _, _, without, those_with = all_of_them
    assert len(without) == len(those_with) == 2 and [recipe.own for recipe in without] == [(), ()]
    # by the rule of its two legs: 15 rows, 21 columns wide at the top and 1 at the bottom
    row, col = np.mgrid[:ROWS, :COLS]
    triangle = (row >= 20) & (row <= 34) & (col >= 10) & ((col - 10) * 14 <= 20 * (34 - row) + 10)
    for recipe in those_with:
        outlined, boxed = recipe.own
        assert (outlined.kind, outlined.box, outlined.pathology) == ("mass", (20, 10, 35, 31), None)
        mask = archives.coco.decode(outlined.region, "")
        # a pixel a row, where its edge runs through one
        assert outlined.area == mask.sum() and (mask != triangle).sum() <= 15
        assert boxed == ExistingLesion(kind="calcification", box=BOX, area=16 * 28)
        for lesion in recipe.lesions:
            top, left, bottom, right = lesion.box
            assert (top >= 35 or left >= 31) and (bottom <= BOX[0] or left >= BOX[3])


# pycocotools
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_annotations_distinguish_own_lesions_from_inserted_ones(all_of_them, mixed):
    from pycocotools.coco import COCO

    _, root, without, those_with = all_of_them
    coco = COCO(str(root / "annotations.json"))
    assert len(coco.anns) == 4 + 2 * 2
    for recipe in (*without, *those_with):
        annotations = coco.imgToAnns[recipe.number + 1]
        lesions = (*recipe.lesions, *recipe.own)
        flags = [True] + [False] * len(recipe.own)
        assert [annotation["synthetic"] for annotation in annotations] == flags
        for annotation, lesion in zip(annotations, lesions, strict=True):
            top, left, bottom, right = lesion.box
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert coco.cats[annotation["category_id"]]["name"] == lesion.kind
            assert annotation["area"] == lesion.area and annotation["iscrowd"] == 0
    mask = mixed[1][1].lesions[0].mask(ROWS, COLS)
    for recipe in those_with:
        _, outlined, boxed = coco.imgToAnns[recipe.number + 1]
        np.testing.assert_array_equal(coco.annToMask(outlined), mask)
        assert boxed["bbox"] == [12, 160, 28, 16] and "segmentation" not in boxed
    assert len(list((root / "lesion_masks").iterdir())) == 4, "of inserted lesions alone"
    assert "annotations.json has 4 lesions besides" in (root / "README.md").read_text()


def test_the_folder_archive_reads_both(all_of_them, mixed):
    _, root, without, those_with = all_of_them
    skipped = Skipped()
    records = archive.read(root, skipped)
    assert not skipped and len(records) == 4
    for recipe in (*without, *those_with):
        record = records[recipe.number]
        expected = [(lesion.kind, lesion.box) for lesion in (*recipe.lesions, *recipe.own)]
        assert [(lesion.kind, lesion.box) for lesion in record.lesions] == expected
        path = root / f"lesion_masks/{recipe.name}_1.png"
        inserted = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0
        np.testing.assert_array_equal(record.lesions[0].mask(ROWS, COLS) > 0, inserted)
        assert record.pathology is None, "the worst of lesions without a pathology is not known"
        if recipe.own:
            own = mixed[1][1].lesions[0].mask(ROWS, COLS)
            np.testing.assert_array_equal(record.lesions[1].mask(ROWS, COLS), own)
            assert record.lesions[2].outlines == ()


def test_such_a_set_goes_on_and_is_made_again(all_of_them, where, tmp_path):
    config, root, _, those_with = all_of_them
    before = list_times(root)
    synthesize(config, root)
    assert list_times(root) == before
    file = root / f"recipes/{those_with[0].name}.json"
    assert read_recipe(Recipe, file) == those_with[0]
    remake(file, tmp_path / "again", where(config))
    files = {name: (root / name).read_bytes() for name in those_with[0].files}
    assert read_files(tmp_path / "again") == files
    for key, value in (("places", "breast"), ("rotate", 10.0), ("renderer", "mixed")):
        with pytest.raises(ConfigError, match=f"another {key};"):
            synthesize(config.model_copy(update={key: value}), root)


def test_records_hold_both(mixed, masses, where, tmp_path):
    root = tmp_path / "set"
    ill = mixed[1][1]
    values = {"only": (ill.image_id,), "format": "tfrecord", "masses": (2, 2), "count": 1}
    config = make_config(mixed[0], masses, mammograms="all", **values)
    (recipe,) = synthesize(config, root)
    path = root / "images/000000.tfrecord"
    (raw,) = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    features = tf.train.Example.FromString(raw).features.feature
    assert list(features["image/object/synthetic"].int64_list.value) == [1, 1, 0, 0]
    names = [b"mass"] * 3 + [b"calcification"]
    assert list(features["image/object/class/text"].bytes_list.value) == names
    assert list(features["image/object/class/label"].int64_list.value) == [1, 1, 1, 2]
    size = [features[f"image/{key}"].int64_list.value[0] for key in ("height", "width")]
    assert size == [ROWS, COLS]
    image = tf.io.decode_png(features["image/encoded"].bytes_list.value[0])
    source = archives.read_stored(ill).values
    assert 0 < (image.numpy()[..., 0] != source).mean() < 0.5
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
    remake(root / "recipes/000000.json", tmp_path / "again", where(config))
    assert (tmp_path / "again/images/000000.tfrecord").read_bytes() == path.read_bytes()


def test_an_own_lesion_that_cant_be_read_is_a_failure(masses, tmp_path):
    data, records = written(tmp_path / "a", [mammogram(0), mammogram(1, [mass(20, 10, 12, 20)])])
    (mask,) = (tmp_path / "a/masks").iterdir()
    mask.write_bytes(mask.read_bytes()[:40])
    recipes = synthesize(make_config(data, masses, mammograms="all", count=2), tmp_path / "out")
    reasons = {recipe.source.image_id: recipe.left_out for recipe in recipes}
    assert reasons[records[0].image_id] is None
    assert "can't be read as an image" in reasons[records[1].image_id]
    for box in ((5, 5, 5, 9), (190, 5, 201, 9), (-1, 5, 9, 9)):
        with pytest.raises(DataError, match="lesion 0"):
            describe_existing_lesions(mammogram(0, [Lesion("mass", box)]))


def test_lesions_of_uncertain_kind(masses, tmp_path):
    """A mask whose kind the table does not give is of uncertain kind."""
    data, records = written(tmp_path / "a", [mammogram(0), mammogram(1, [mass(20, 10, 12, 20)])])
    table = (tmp_path / "a/metadata.csv").read_text()
    assert table.count(",mass,") == 1
    (tmp_path / "a/metadata.csv").write_text(table.replace(",mass,", ",,"))
    ids = [record.image_id for record in records]
    config = make_config(data, masses, mammograms="all", count=2)
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
    own, asked, expected, masses, tmp_path
):
    """The inserted masses are benign; what is asked for is said of them alone."""
    data, _ = written(tmp_path / "a", [mammogram(1, [mass(20, 10, 12, 20, pathology=own)])])
    config = make_config(data, masses, mammograms="all", pathology=asked, count=1)
    synthesize(config, tmp_path / "out")
    assert (tmp_path / "out/metadata.csv").read_text().splitlines()[1].split(",")[4] == expected


# Whose lesions shapes and sizes are of, and who is told of


@pytest.fixture(scope="module")
def both_sides(tmp_path_factory):
    """Four normal mammograms and six with a mass, of ten patients in two folds.

    Returns: (data, records, split file, patients of the train side).
    """
    root = tmp_path_factory.mktemp("sides")
    ill = [
        mammogram(10 + number, [mass(80, 30, 18 + 2 * number, 20 + 3 * number)])
        for number in range(6)
    ]
    data, records = written(root / "both", [*(mammogram(number) for number in range(4)), *ill])
    train = {records[i].patient_id for i in (0, 1, 4, 5, 6)}
    places = {record.patient_id: int(record.patient_id in train) for record in records}
    return data, records, save_split(root / "split.json", places), train


@pytest.mark.slow
def test_an_infilling_of_one_side(both_sides, tiny_infilling, where, tmp_path):
    """Mammograms, sizes and shapes are all of that side's patients; the folder is that side's."""
    data, records, file, train = both_sides
    generator = str(tiny_infilling(padding=20, preprocess={"flip_right": True}))
    config = make_config(data, None, "infilling", generator=generator, feather=6, count=12)
    patient_of = {record.image_id: record.patient_id for record in records}
    everybody = set(patient_of.values())
    ill = {record.patient_id for record in records if record.lesions}
    for side, patients, numbers in (
        ("train", train, (0, 1, 2)),
        ("held_out", everybody - train, (3, 4, 5)),
    ):
        subset = PatientsConfig(split_file=file, side=side)
        one_sided = config.model_copy(update={"patients": subset})
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
    remake(tmp_path / f"train/recipes/{complete[0].name}.json", tmp_path / "again", where(config))
    assert synthesize(config, tmp_path / "all")[0].sizes.count == 6
    assert told(tmp_path / "all")["lesions"] == ill
    assert "side of one split" not in (tmp_path / "all/README.md").read_text()


def test_a_side_without_lesions(both_sides, tiny_infilling, tmp_path):
    data, records, _, _ = both_sides
    places = {record.patient_id: int(not record.lesions) for record in records}
    subset = PatientsConfig(split_file=save_split(tmp_path / "split.json", places))
    generator = str(tiny_infilling(padding=20))
    config = make_config(data, None, "infilling", generator=generator, patients=subset)
    with pytest.raises(DataError, match="sizes can't be fitted on 0 lesions"):
        synthesize(config, tmp_path / "out")
    with pytest.raises(DataError, match="take shapes"):
        synthesize(config.model_copy(update={"size": (24, 20)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_lesion_of_every_item_is_somebodys():
    def item(patient, *donors):
        lesions = [SimpleNamespace(graft=SimpleNamespace(patient_id=donor)) for donor in donors]
        source = SimpleNamespace(patient_id=patient)
        return SimpleNamespace(source=source, lesions=[*lesions, SimpleNamespace(graft=None)])

    known = collect_patients([item("m", "a", "b"), item("l", "c", "a")], None, ["t", "s", "t"])
    assert (known.mammograms, known.lesions) == (("l", "m"), ("a", "b", "c"))
    assert known.trained_on == ("s", "t")


def test_who_a_set_of_real_lesions_tells_of(both_sides, tmp_path):
    """Those whose lesions are in the items that were made, and no others of the archive."""
    config = make_config(both_sides[0], None, count=2)
    recipes = synthesize(config, tmp_path / "out")
    whose = {lesion.graft.patient_id for recipe in recipes for lesion in recipe.lesions}
    shown = {recipe.source.patient_id for recipe in recipes}
    known = told(tmp_path / "out")
    assert known == {"mammograms": shown, "lesions": whose, "trained_on": set()}
    assert 1 <= len(whose) <= 2
    text = json.loads((tmp_path / "out" / PATIENTS).read_text())
    assert list(text) == sorted(text) and all(text[name] == sorted(text[name]) for name in known)
    synthesize(config.model_copy(update={"count": 8}), tmp_path / "out")
    assert len(told(tmp_path / "out")["mammograms"]) == 4


class Disc(keras.layers.Layer):
    """Noise [n, 1] -> a disc whose radius it moves."""

    def call(self, noise):
        row, col = np.mgrid[:64, :64] - 31.5
        radius = 16 + 4 * noise[:, :, None]
        return tf.cast(tf.constant(np.hypot(row, col), tf.float32) < radius, tf.float32)[..., None]


def edit_card(folder, **changes):
    card = json.loads((folder / "card.json").read_text()) | changes
    kept = {key: value for key, value in card.items() if value is not None}
    (folder / "card.json").write_text(json.dumps(kept))


@pytest.mark.slow
def test_who_networks_were_trained_on_is_told(both_sides, tiny_infilling, tiny_blending, tmp_path):
    data, records, _, _ = both_sides
    infilling = tiny_infilling(padding=20)
    edit_card(infilling, train_patients=["b", "a"])
    model = NoiseModel("mask_gan", 1, Disc(), ("mask",))
    gan = export(model, tmp_path / "gan", {"train_patients": ["c", "a"]})
    values = {"generator": str(infilling), "feather": 6, "count": 1}
    config = make_config(data, None, "infilling", shapes=ShapeConfig(gan=str(gan)), **values)
    given = config.model_copy(update={"size": (24, 20)})
    synthesize(given, tmp_path / "given")
    assert told(tmp_path / "given")["trained_on"] == {"a", "b", "c"}
    assert not told(tmp_path / "given")["lesions"]
    assert not Synthesizer.load(given, Sources(given)).size_patients
    synthesize(config, tmp_path / "fitted")
    ill = {record.patient_id for record in records if record.lesions}
    assert told(tmp_path / "fitted")["lesions"] == ill, "sizes are fitted on all"
    blending = str(tiny_blending(patients=("x",)))
    config = make_config(data, None, "blending", generator=blending, count=1)
    synthesize(config, tmp_path / "blending")
    assert told(tmp_path / "blending")["trained_on"] == {"x"}
    edit_card(gan, train_patients=None)
    with pytest.raises(DataError, match="train_patients"):
        synthesize(given, tmp_path / "unknown")
    assert not (tmp_path / "unknown").exists()


def test_it_is_not_known_whose_the_shapes_of_files_are(both_sides, tiny_infilling, tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    cv2.circle(mask, (20, 20), 12, 255, -1)
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    shapes = ShapeConfig(files=tmp_path / "mask.png")
    values = {"generator": str(tiny_infilling(padding=20)), "size": (24, 20), "count": 1}
    config = make_config(both_sides[0], None, "infilling", shapes=shapes, **values)
    synthesize(config, tmp_path / "out")
    assert told(tmp_path / "out")["lesions"] == set()
    assert "Shapes come from files" in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "equal"), [("noise", True), ("lesion", False)])
def test_a_blending_network_without_prior_sees_the_outline_alone(
    prior, equal, both_sides, where, tmp_path
):
    """Other grey values of the real lesions change nothing; with the prior they do."""
    keras.utils.set_random_seed(0)
    model = BlendingConfig(prior=prior, widths=(4, 8), discriminator_filters=4)
    data = DataConfig(size=64, frame="square", context=2, window=(0, 1))
    sections = {"data": data.model_dump(mode="json"), "model": model.model_dump(mode="json")}
    card = {"name": "blending", "config": sections, "train_patients": []}
    generator = str(export(Blending(model, 64), tmp_path / "export", card))
    ill = [record for record in both_sides[1] if record.lesions]
    read = partial(np.full, (ROWS, COLS, 1), np.float32(0.9))
    images = []
    for name, records in (
        ("same", ill),
        ("bright", [replace(record, read=read) for record in ill]),
    ):
        lesions, _ = written(tmp_path / name, records)
        root = tmp_path / f"set of {name}"
        values = {"generator": generator, "feather": 6, "count": 2}
        config = make_config(both_sides[0], lesions, "blending", **values)
        recipes = synthesize(config, root)
        assert [recipe.left_out for recipe in recipes] == [None, None]
        images.append([(root / f"images/{recipe.name}.png").read_bytes() for recipe in recipes])
        (used,) = {lesion.graft.used for recipe in recipes for lesion in recipe.lesions}
        assert used == ("outline" if equal else None)
        assert ("their outlines are those of" in (root / "README.md").read_text()) == equal
        remake(root / "recipes/000001.json", tmp_path / "again" / name, where(config))
    assert (images[0] == images[1]) == equal
