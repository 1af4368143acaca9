"""Synthetic mammograms of training patients: lesions of their own beside those set in,
whose lesions are used, and who is told of.
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
from tests.synthetic_sets import NoiseModel, read_files
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.data.patients import PATIENTS
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, Skipped, key_check
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.synthesis.config import PatientsConfig, ShapeConfig, SynthesisConfig
from tfmammo.synthesis.mammogram_set import collect_patients
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.provenance import (
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
SIZES = {"height": (24, 4), "width": (20, 3)}
# Of a mammogram's own: a triangle, drawn at the chest wall and off the rows that masses are set in,
# and a box.
TRIANGLE = [[20, 10], [20, 30], [34, 10]]
BOX = (160, 12, 176, 40)


def mammogram(number, lesions=(), **facts):
    known = {"spacing": (0.1, 0.1), "pathology": None if lesions else "normal"}
    return make_mammogram(number, textured_breast(number), lesions, **known | facts)


def mass(top, left, height, width, **details):
    corners = [
        [top, left],
        [top, left + width - 1],
        [top + height - 1, left + width - 1],
        [top + height - 1, left],
    ]
    return Lesion.from_outline("mass", np.float32(corners), ROWS, COLS, **details)


def written(root, mammograms, **how):
    """A folder of 8-bit images, its own patients and image ids in the order given."""
    writer.write(mammograms, root, bits=8, **how)
    return DataConfig(name="folder", root=root), archive.read(root)


@pytest.fixture(scope="module")
def masses(tmp_path_factory):
    """An archive of real lesions to set in."""
    mammograms = [
        mammogram(10 + number, [mass(80, 30, 20 + 3 * number, 24, pathology="benign")])
        for number in range(3)
    ]
    return written(tmp_path_factory.mktemp("masses") / "masses", mammograms)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One mammogram without lesions, and one with an outlined mass and a calcification that only a
    box is known of.
    """
    own = [
        Lesion.from_outline("mass", np.float32(TRIANGLE), ROWS, COLS),
        mass(BOX[0], BOX[1], 16, 28),
    ]
    root = tmp_path_factory.mktemp("mixed") / "mixed"
    writer.write(
        [mammogram(0), mammogram(1, own, pathology="malignant")], root, annotations="rle", bits=8
    )
    content = json.loads((root / "annotations.json").read_text())
    del content["annotations"][1]["segmentation"]
    content["annotations"][1]["category_id"] = writer.CATEGORIES["calcification"]
    (root / "annotations.json").write_text(json.dumps(content))
    return DataConfig(name="folder", root=root), archive.read(root)


def make_config(data, lesions, renderer="poisson", **values):
    return SynthesisConfig(
        **{
            "name": "tiny",
            "data": data,
            "lesions": lesions,
            "renderer": renderer,
            "format": "png",
            "count": 4,
            **values,
        }
    )


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def told(root):
    content = json.loads((root / PATIENTS).read_text())
    return {name: set(content[name]) for name in ("mammograms", "lesions", "trained_on")}


# Lesions of the mammograms' own


@pytest.fixture(scope="module")
def all_of_them(mixed, masses, tmp_path_factory):
    """A set from both mammograms: (config, folder, recipes of the one without and of the one with
    own lesions).
    """
    config = make_config(mixed[0], masses[0], mammograms="all")
    root = tmp_path_factory.mktemp("set") / "set"
    recipes = synthesize(config, root)
    assert [recipe.left_out for recipe in recipes] == [None] * 4
    parts = [
        [recipe for recipe in recipes if recipe.source.image_id == record.image_id]
        for record in mixed[1]
    ]
    return config, root, *parts


def triangle():
    """By the rule of its two legs, border included: 15 rows, 21 columns wide at the top and 1 at
    the bottom.
    """
    row, col = np.mgrid[:ROWS, :COLS]
    return (row >= 20) & (row <= 34) & (col >= 10) & ((col - 10) * 14 <= 20 * (34 - row) + 10)


def test_a_recipe_holds_the_mammograms_own_lesions(all_of_them):
    _, _, without, those_with = all_of_them
    assert len(without) == len(those_with) == 2 and [recipe.own for recipe in without] == [(), ()]
    for recipe in those_with:
        outlined, boxed = recipe.own
        assert (outlined.kind, outlined.box, outlined.pathology) == ("mass", (20, 10, 35, 31), None)
        mask = archives.coco.decode(outlined.region, "")
        # a pixel a row, where its edge runs through one
        assert outlined.area == mask.sum() and (mask != triangle()).sum() <= 15
        assert boxed == ExistingLesion(kind="calcification", box=BOX, area=16 * 28)
        for lesion in recipe.lesions:
            top, left, bottom, right = lesion.box
            assert top >= 35 or left >= 31
            assert bottom <= BOX[0] or left >= BOX[3]


# pycocotools
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_annotations_tell_own_lesions_from_those_set_in(all_of_them, mixed):
    from pycocotools.coco import COCO

    _, root, without, those_with = all_of_them
    coco = COCO(str(root / "annotations.json"))
    assert len(coco.anns) == 4 + 2 * 2
    for recipe in (*without, *those_with):
        annotations = coco.imgToAnns[recipe.number + 1]
        assert [annotation["synthetic"] for annotation in annotations] == [True] + [False] * len(
            recipe.own
        )
        for annotation, lesion in zip(annotations, (*recipe.lesions, *recipe.own), strict=True):
            top, left, bottom, right = lesion.box
            assert (
                annotation["bbox"] == [left, top, right - left, bottom - top]
                and annotation["iscrowd"] == 0
            )
            assert (
                coco.cats[annotation["category_id"]]["name"] == lesion.kind
                and annotation["area"] == lesion.area
            )
    for recipe in those_with:
        _, outlined, boxed = coco.imgToAnns[recipe.number + 1]
        np.testing.assert_array_equal(
            coco.annToMask(outlined), mixed[1][1].lesions[0].mask(ROWS, COLS)
        )
        assert boxed["bbox"] == [12, 160, 28, 16] and "segmentation" not in boxed
    assert len(list((root / "lesion_masks").iterdir())) == 4, "of those set in alone"
    assert "annotations.json has 4 lesions besides" in (root / "README.md").read_text()


def test_the_folder_archive_reads_both(all_of_them, mixed):
    _, root, without, those_with = all_of_them
    skipped = Skipped()
    records = archive.read(root, skipped)
    assert not skipped and len(records) == 4
    for recipe in (*without, *those_with):
        record = records[recipe.number]
        assert [lesion.kind for lesion in record.lesions] == ["mass", "mass", "calcification"][
            : 1 + len(recipe.own)
        ]
        assert [lesion.box for lesion in record.lesions] == [
            lesion.box for lesion in (*recipe.lesions, *recipe.own)
        ]
        planted = (
            cv2.imread(str(root / f"lesion_masks/{recipe.name}_1.png"), cv2.IMREAD_UNCHANGED) > 0
        )
        np.testing.assert_array_equal(record.lesions[0].mask(ROWS, COLS) > 0, planted)
        assert record.pathology is None, "nobody knows the worst of lesions without a pathology"
        if recipe.own:
            np.testing.assert_array_equal(
                record.lesions[1].mask(ROWS, COLS), mixed[1][1].lesions[0].mask(ROWS, COLS)
            )
            assert record.lesions[2].outlines == ()


def test_such_a_set_goes_on_and_is_made_again(all_of_them, where, tmp_path):
    config, root, _, those_with = all_of_them
    before = times(root)
    synthesize(config, root)
    assert times(root) == before
    file = root / f"recipes/{those_with[0].name}.json"
    assert read_recipe(Recipe, file) == those_with[0]
    remake(file, tmp_path / "again", where(config))
    assert read_files(tmp_path / "again") == {
        name: (root / name).read_bytes() for name in those_with[0].files
    }
    for key, value in (("places", "breast"), ("rotate", 10.0), ("renderer", "mixed")):
        with pytest.raises(ConfigError, match=f"another {key};"):
            synthesize(config.model_copy(update={key: value}), root)


def test_records_hold_both(mixed, masses, where, tmp_path):
    root = tmp_path / "set"
    ill = mixed[1][1]
    config = make_config(
        mixed[0],
        masses[0],
        mammograms="all",
        only=(ill.image_id,),
        format="tfrecord",
        masses=(2, 2),
        count=1,
    )
    (recipe,) = synthesize(config, root)
    (raw,) = tf.data.TFRecordDataset(str(root / "images/000000.tfrecord")).as_numpy_iterator()
    features = tf.train.Example.FromString(raw).features.feature
    assert list(features["image/object/synthetic"].int64_list.value) == [1, 1, 0, 0]
    assert list(features["image/object/class/text"].bytes_list.value) == [b"mass"] * 3 + [
        b"calcification"
    ]
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
    assert {path.name for path in (root / "lesion_masks").iterdir()} == {
        "000000_1.png",
        "000000_2.png",
    }
    remake(root / "recipes/000000.json", tmp_path / "again", where(config))
    assert (tmp_path / "again/images/000000.tfrecord").read_bytes() == (
        root / "images/000000.tfrecord"
    ).read_bytes()


def test_an_own_lesion_that_cant_be_read_is_a_dead_letter(masses, tmp_path):
    data, records = written(tmp_path / "a", [mammogram(0), mammogram(1, [mass(20, 10, 12, 20)])])
    (mask,) = (tmp_path / "a/masks").iterdir()
    mask.write_bytes(mask.read_bytes()[:40])
    recipes = synthesize(make_config(data, masses[0], mammograms="all", count=2), tmp_path / "out")
    reasons = {
        recipe.source.image_id if recipe.source else "": recipe.left_out for recipe in recipes
    }
    assert (
        reasons[records[0].image_id] is None
        and "can't be read as an image" in reasons[records[1].image_id]
    )
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
    config = make_config(data, masses[0], mammograms="all", count=2)
    assert {recipe.source.image_id for recipe in synthesize(config, tmp_path / "both")} == set(ids)
    certain = config.model_copy(update={"data": data.model_copy(update={"mixed_findings": False})})
    assert {recipe.source.image_id for recipe in synthesize(certain, tmp_path / "one")} == {ids[0]}
    with pytest.raises(ConfigError, match=f"only: {ids[1]} is none of the 1 mammograms"):
        synthesize(certain.model_copy(update={"only": (ids[1],)}), tmp_path / "none")


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [("malignant", "benign", "malignant"), ("benign", None, "benign"), (None, "benign", "")],
)
def test_the_pathology_of_an_image_is_that_of_its_worst_lesion(
    own, asked, expected, masses, tmp_path
):
    """The masses that are set in are benign; what is asked for is said of them alone."""
    root = tmp_path / "a"
    writer.write([mammogram(1, [mass(20, 10, 12, 20, pathology=own)])], root, bits=8)
    data = DataConfig(name="folder", root=root)
    synthesize(
        make_config(data, masses[0], mammograms="all", pathology=asked, count=1), tmp_path / "out"
    )
    assert (tmp_path / "out/metadata.csv").read_text().splitlines()[1].split(",")[4] == expected


# Whose lesions shapes and sizes are of, and who is told of


@pytest.fixture(scope="module")
def both_sides(tmp_path_factory):
    """Four normal mammograms and six with a mass, of ten patients in two folds, and where they
    stand: (data, records, file, train).
    """
    root = tmp_path_factory.mktemp("sides")
    ill = [
        mammogram(10 + number, [mass(80, 30, 18 + 2 * number, 20 + 3 * number)])
        for number in range(6)
    ]
    data, records = written(root / "both", [*(mammogram(number) for number in range(4)), *ill])
    train = {records[i].patient_id for i in (0, 1, 4, 5, 6)}
    places = {record.patient_id: 1 if record.patient_id in train else 0 for record in records}
    saved = splits.SavedSplit(
        archive="folder",
        split="patient",
        folds=2,
        seed=0,
        stratify="none",
        patients=places,
        id_key=key_check(),
    )
    splits.save(root / "split.json", saved)
    return data, records, root / "split.json", train


@pytest.mark.slow
def test_an_infilling_of_one_side(both_sides, tiny_infilling, where, tmp_path):
    """Mammograms, sizes and shapes are all of the patients of that side, and so is what makes the
    folder its own.
    """
    data, records, file, train = both_sides
    generator = str(tiny_infilling(padding=20, preprocess={"flip_right": True}))
    config = make_config(data, None, "infilling", generator=generator, feather=6, count=12)
    by_id = {record.image_id: record for record in records}
    everybody = {record.patient_id for record in records}
    ill = {record.patient_id for record in records if record.lesions}
    for side, patients in (("train", train), ("held_out", everybody - train)):
        one_sided = config.model_copy(
            update={"patients": PatientsConfig(split_file=file, side=side)}
        )
        recipes = synthesize(one_sided, tmp_path / side)
        complete = [recipe for recipe in recipes if not recipe.left_out]
        shapes = {
            by_id[lesion.shape.split()[1].partition("#")[0]].patient_id
            for recipe in complete
            for lesion in recipe.lesions
        }
        assert (
            len(complete) > 6
            and {recipe.source.patient_id for recipe in complete} == patients - ill
        )
        assert shapes <= patients & ill and len(shapes) > 1
        heights = [18 + 2 * number for number in ((0, 1, 2) if side == "train" else (3, 4, 5))]
        assert complete[0].sizes.count == 3 and complete[0].sizes.height[0] == pytest.approx(
            np.mean(heights) * 0.1
        )
        assert told(tmp_path / side) == {
            "mammograms": patients - ill,
            "lesions": patients & ill,
            "trained_on": set(),
        }
        assert (
            f"All are of the {side} side of one split, fold 0."
            in (tmp_path / side / "README.md").read_text()
        )
    with pytest.raises(ConfigError, match="patients.side"):
        synthesize(one_sided, tmp_path / "train")
    remake(tmp_path / f"train/recipes/{complete[0].name}.json", tmp_path / "again", where(config))
    assert (
        synthesize(config, tmp_path / "all")[0].sizes.count == 6
        and told(tmp_path / "all")["lesions"] == ill
    )
    assert "side of one split" not in (tmp_path / "all/README.md").read_text()


def test_a_side_without_lesions(both_sides, tiny_infilling, tmp_path):
    data, records, file, train = both_sides
    places = {record.patient_id: 0 if record.lesions else 1 for record in records}
    saved = splits.load(file).model_copy(update={"patients": places})
    splits.save(tmp_path / "split.json", saved)
    config = make_config(
        data,
        None,
        "infilling",
        generator=str(tiny_infilling(padding=20)),
        patients=PatientsConfig(split_file=tmp_path / "split.json"),
    )
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
    """Those whose lesions lie in the items that were made, and no others of the archive."""
    data, records, _, _ = both_sides
    recipes = synthesize(make_config(data, None, count=2), tmp_path / "out")
    whose = {lesion.graft.patient_id for recipe in recipes for lesion in recipe.lesions}
    expected = {
        "mammograms": {recipe.source.patient_id for recipe in recipes},
        "lesions": whose,
        "trained_on": set(),
    }
    assert told(tmp_path / "out") == expected and 1 <= len(whose) <= 2
    text = json.loads((tmp_path / "out" / PATIENTS).read_text())
    assert list(text) == sorted(text) and all(text[name] == sorted(text[name]) for name in expected)
    assert (
        "keep it out of every training that holds one of them out"
        in (tmp_path / "out/README.md").read_text()
    )
    synthesize(make_config(data, None, count=8), tmp_path / "out")
    assert len(told(tmp_path / "out")["mammograms"]) == 4


class Disc(keras.layers.Layer):
    """Noise [n, 1] -> a disc whose radius it moves."""

    def call(self, noise):
        row, col = np.mgrid[:64, :64] - 31.5
        radius = 16 + 4 * noise[:, :, None]
        return tf.cast(tf.constant(np.hypot(row, col), tf.float32) < radius, tf.float32)[..., None]


@pytest.mark.slow
def test_who_networks_were_trained_on_is_told(both_sides, tiny_infilling, tiny_blending, tmp_path):
    data, records, _, _ = both_sides
    infilling = tiny_infilling(padding=20)
    card = json.loads((infilling / "card.json").read_text())
    (infilling / "card.json").write_text(json.dumps(card | {"train_patients": ["b", "a"]}))
    gan = export(
        NoiseModel("mask_gan", 1, Disc(), ("mask",)),
        tmp_path / "gan",
        {"train_patients": ["c", "a"]},
    )
    config = make_config(
        data,
        None,
        "infilling",
        generator=str(infilling),
        feather=6,
        count=1,
        shapes=ShapeConfig(gan=str(gan)),
    )
    given = config.model_copy(update={"size": (24, 20)})
    synthesize(given, tmp_path / "given")
    assert (
        told(tmp_path / "given")["trained_on"] == {"a", "b", "c"}
        and not told(tmp_path / "given")["lesions"]
    )
    assert not Synthesizer.load(given, Sources(given)).size_patients
    synthesize(config, tmp_path / "fitted")
    assert told(tmp_path / "fitted")["lesions"] == {
        record.patient_id for record in records if record.lesions
    }, "sizes are fitted on all"
    synthesize(
        make_config(data, None, "blending", generator=str(tiny_blending(patients=("x",))), count=1),
        tmp_path / "blending",
    )
    assert told(tmp_path / "blending")["trained_on"] == {"x"}
    card = json.loads((gan / "card.json").read_text())
    del card["train_patients"]
    (gan / "card.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="train_patients"):
        synthesize(given, tmp_path / "unknown")
    assert not (tmp_path / "unknown").exists()


def test_shapes_of_files_are_nobodys_that_is_known(both_sides, tiny_infilling, tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    cv2.circle(mask, (20, 20), 12, 255, -1)
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    shapes = ShapeConfig(files=tmp_path / "mask.png")
    config = make_config(
        both_sides[0],
        None,
        "infilling",
        generator=str(tiny_infilling(padding=20)),
        size=(24, 20),
        shapes=shapes,
        count=1,
    )
    synthesize(config, tmp_path / "out")
    assert (
        told(tmp_path / "out")["lesions"] == set()
        and "nobody says whose lesions" in (tmp_path / "out/README.md").read_text()
    )


# A blending network without the lesion's prior


@pytest.fixture(scope="module")
def blendings(tmp_path_factory):
    """A function (prior) -> the export of a small blending network trained with it."""

    def make(prior):
        keras.utils.set_random_seed(0)
        model = BlendingConfig(prior=prior, widths=(4, 8), discriminator_filters=4)
        data = DataConfig(size=64, frame="square", context=2, window=(0, 1))
        card = {
            "name": "blending",
            "config": {
                "data": data.model_dump(mode="json"),
                "model": model.model_dump(mode="json"),
            },
        }
        return export(
            Blending(model, 64),
            tmp_path_factory.mktemp(prior) / "export",
            card | {"train_patients": []},
        )

    return make


@pytest.mark.slow
def test_a_network_without_prior_sees_the_outline_alone(blendings, both_sides, where, tmp_path):
    """Other grey values of the real lesions change nothing; with the prior they do."""
    data, records, _, _ = both_sides
    others = [
        replace(record, read=partial(np.full, (ROWS, COLS, 1), np.float32(0.9)))
        for record in records
        if record.lesions
    ]
    bright, _ = written(tmp_path / "bright", others)
    same, _ = written(tmp_path / "same", [record for record in records if record.lesions])
    for prior, equal in (("noise", True), ("lesion", False)):
        generator = str(blendings(prior))
        images = []
        for lesions in (same, bright):
            root = tmp_path / f"{prior}-{lesions.root.name}"
            config = make_config(data, lesions, "blending", generator=generator, feather=6, count=2)
            recipes = synthesize(config, root)
            assert [recipe.left_out for recipe in recipes] == [None, None]
            images.append([(root / f"images/{recipe.name}.png").read_bytes() for recipe in recipes])
            (used,) = {lesion.graft.used for recipe in recipes for lesion in recipe.lesions}
            assert used == ("outline" if equal else None)
            assert ("their outlines are those of" in (root / "README.md").read_text()) == equal
            remake(root / "recipes/000001.json", tmp_path / "again" / root.name, where(config))
        assert (images[0] == images[1]) == equal, prior
