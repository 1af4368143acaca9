"""Real lesions in mammograms: whose they are, how large they come, and what is refused."""

import csv
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pydicom
import pytest
import tensorflow as tf

from tests.archives.writers import folder as writer
from tests.synthesis_archives import (
    MASSES,
    draw_mammogram,
    find_source,
    list_times,
    read_failures,
)
from tests.synthetic_sets import read_files, save_split
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Skipped
from tfmammo.synthesis.config import PatientsConfig, SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesize

PHANTOMS = DataConfig(phantoms=24)


def read_image(root, recipe):
    """The stored values of an item."""
    path = root / f"images/{recipe.name}"
    if recipe.config.format == "dicom":
        return pydicom.dcmread(path.with_suffix(".dcm")).pixel_array
    if recipe.config.format == "png":
        return cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
    (raw,) = tf.data.TFRecordDataset(str(path.with_suffix(".tfrecord"))).as_numpy_iterator()
    encoded = tf.train.Example.FromString(raw).features.feature["image/encoded"]
    return tf.io.decode_png(encoded.bytes_list.value[0], dtype=tf.uint16).numpy()[..., 0]


# pycocotools
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize(
    ("renderer", "form"), [("poisson", "dicom"), ("blending", "png"), ("blending", "tfrecord")]
)
def test_real_lesions_of_the_phantom(renderer, form, tiny_blending, where, tmp_path):
    """From records to files: nothing changes beyond a support, COCO and masks agree, and all of it
    can be made again.
    """
    from pycocotools.coco import COCO

    known = {each.image_id: each for each in archives.read_mammograms(PHANTOMS, Skipped())}
    left = {mammogram.patient_id for mammogram in known.values() if mammogram.laterality == "L"}
    values = {"name": "grafts", "data": PHANTOMS, "count": 3, "masses": (1, 2), "seed": 2}
    if renderer == "blending":
        values["generator"] = str(tiny_blending(size=64, patients=left))
    set_config = SynthesisConfig(renderer=renderer, format=form, **values)
    root = tmp_path / "set"
    recipes = synthesize(set_config, root)
    assert [recipe.left_out for recipe in recipes] == [None] * 3
    assert sum(len(recipe.lesions) for recipe in recipes) > 3
    coco = COCO(str(root / "annotations.json"))
    for recipe in recipes:
        source = archives.read_stored(known[recipe.source.image_id])
        near = np.zeros(source.values.shape, bool)
        annotations = coco.imgToAnns[recipe.number + 1]
        for number, (lesion, annotation) in enumerate(
            zip(recipe.lesions, annotations, strict=True), start=1
        ):
            graft = lesion.graft
            own = known[graft.image_id]
            assert own.lesions[graft.number].kind == "mass" and graft.patient_id == own.patient_id
            assert graft.mirrored == ({own.laterality, recipe.source.laterality} == {"L", "R"})
            assert lesion.shape == f"phantom {graft.image_id}#{graft.number}"
            assert 0.8 <= graft.factor <= 1.2 and graft.angle != 0
            path = root / f"lesion_masks/{recipe.name}_{number}.png"
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0
            np.testing.assert_array_equal(coco.annToMask(annotation) > 0, mask)
            area = own.lesions[graft.number].mask(own.rows, own.cols).sum() * graft.factor**2
            assert lesion.area == mask.sum() == pytest.approx(area, rel=0.02)
            top, left_, bottom, right = lesion.window
            near[top:bottom, left_:right] = True
            trained_on = own.patient_id in left
            if renderer == "poisson":
                box = (top + 3, left_ + 3, bottom - 3, right - 3)
                assert lesion.box == box
                near[top:bottom, left_:right] = mask[top:bottom, left_:right]
                trained_on = None
            assert graft.trained_on == trained_on
        values_ = read_image(root, recipe)
        np.testing.assert_array_equal(values_[~near], source.values[~near])
        assert (values_[near] != source.values[near]).mean() > 0.2
    before = read_files(root)
    times = list_times(root)
    synthesize(set_config, root)
    assert list_times(root) == times
    for recipe in recipes:
        remake(root / f"recipes/{recipe.name}.json", tmp_path / "again", where(set_config))
    files = {name: before[name] for recipe in recipes for name in recipe.files}
    assert read_files(tmp_path / "again") == files


def test_places_anywhere_on_the_breast(tmp_path):
    values = {"name": "grafts", "data": PHANTOMS, "renderer": "paste", "format": "png"}
    config = SynthesisConfig(**values, count=12, places="breast")
    recipes = synthesize(config, tmp_path / "breast")
    boxes = [recipe.lesions[0].box for recipe in recipes]
    rows = [recipe.source.rows for recipe in recipes]
    heights = np.array([(box[0] + box[2]) / 2 for box in boxes]) / rows
    assert len(heights) == 12 and not ((heights >= 1 / 4) & (heights <= 3 / 4)).all()


@pytest.mark.slow
def test_whose_lesions_they_are_is_told(real, tmp_path, folders, tiny_blending):
    recipes = synthesize(real(masses=(2, 2)), tmp_path / "out")
    with (tmp_path / "out/metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = {mammogram.image_id: mammogram for mammogram in archive.read(folders / "masses")}
    for row, recipe in zip(rows, recipes, strict=True):
        patients = {known[lesion.graft.image_id].patient_id for lesion in recipe.lesions}
        assert row["patient"] == recipe.source.patient_id and row["patient"] not in patients
        assert row["lesion_patient"] == " ".join(sorted(patients)) and row["pathology"] == "benign"
    readme = (tmp_path / "out/README.md").read_text()
    assert "without a network (renderer poisson)" in readme and "No split was given" in readme
    skipped = Skipped()
    assert len(archive.read(tmp_path / "out", skipped)) == 3
    assert "metadata.csv" not in skipped.reasons, "the column is known"
    patient = next(iter(known.values())).patient_id
    generator = str(tiny_blending(patients=[patient]))
    recipes = synthesize(real("blending", generator=generator, count=6), tmp_path / "network")
    grafts = [recipe.lesions[0].graft for recipe in recipes]
    assert {graft.trained_on for graft in grafts} == {True, False}
    assert all(graft.trained_on == (graft.patient_id == patient) for graft in grafts)
    count = sum(graft.trained_on for graft in grafts)
    readme = (tmp_path / "network/README.md").read_text()
    assert f"trained on the patients of {count} of the 6 lesions" in readme


def test_only_patients_of_one_side(real, where, tmp_path):
    """One archive of normal mammograms and masses, and a split of its patients."""
    both = [draw_mammogram(number) for number in range(4)]
    both += [draw_mammogram(10 + number, lesion) for number, lesion in enumerate(MASSES)]
    writer.write(both, tmp_path / "both", bits=8)
    data = DataConfig(name="folder", root=tmp_path / "both")
    records = archive.read(tmp_path / "both")
    train = {records[i].patient_id for i in (0, 1, 4)}
    places = {record.patient_id: int(record.patient_id in train) for record in records}
    file = save_split(tmp_path / "split.json", places)
    for side, expected in (("train", train), ("held_out", set(places) - train)):
        patients = PatientsConfig(split_file=file, side=side)
        set_config = real(data=data, lesions=None, patients=patients, count=8)
        recipes = synthesize(set_config, tmp_path / side)
        seen = {recipe.source.patient_id for recipe in recipes}
        seen |= {lesion.graft.patient_id for recipe in recipes for lesion in recipe.lesions}
        assert seen == expected
        readme = (tmp_path / side / "README.md").read_text()
        assert f"All are of the {side} side of one split" in readme
    remake(tmp_path / "train/recipes/000000.json", tmp_path / "again", where(set_config))
    save_split(file, places, seed=1)
    with pytest.raises(ConfigError, match="another patients.sha256"):
        synthesize(set_config, tmp_path / "held_out")
    save_split(file, {records[4].patient_id: 1})
    with pytest.raises(DataError, match="4 of 4 patients"):
        synthesize(set_config, tmp_path / "new")


def test_lesions_of_another_archive_depth_and_spacing(real, tmp_path):
    """16-bit masses at half the spacing come out half as large in 12-bit mammograms."""
    outlines = {10: MASSES[0], 12: [[1, 0], [30, 0], [30, 40]]}
    fine = [
        draw_mammogram(number, outline, spacing=(0.05, 0.05))
        for number, outline in outlines.items()
    ]
    writer.write(fine, tmp_path / "fine", bits=16)
    lesions = DataConfig(name="folder", root=tmp_path / "fine")
    recipes = synthesize(
        real("paste", "12", lesions=lesions, resize=(1, 1), rotate=0), tmp_path / "out"
    )
    for recipe in recipes:
        assert recipe.left_out is None
        (lesion,) = recipe.lesions
        assert (lesion.graft.angle, lesion.graft.factor) == (0, 1)
        top, left, bottom, right = lesion.box
        np.testing.assert_allclose([bottom - top, right - left], [12.5, 13.5], atol=1)
        values = read_image(tmp_path / "out", recipe)
        assert values.dtype == np.uint16 and values.max() < 2**12
    reason = "lesion 0: its mask touches the border of its mammogram"
    assert any(each.startswith(reason) for each in read_failures(tmp_path / "out").values())
    writer.write([replace(each, spacing=None) for each in fine], tmp_path / "unknown", bits=16)
    unknown = DataConfig(name="folder", root=tmp_path / "unknown")
    with pytest.raises(DataError, match="mm per px"):
        synthesize(real(lesions=unknown), tmp_path / "none")


def test_a_recipe_wants_its_lesion(real, folders, tmp_path):
    copy = shutil.copytree(folders / "masses", tmp_path / "copy")
    lesions = DataConfig(name="folder", root=copy)
    (recipe,) = synthesize(real(count=1, lesions=lesions), tmp_path / "out")
    file = tmp_path / "out/recipes/000000.json"
    graft = recipe.lesions[0].graft
    name = f"{graft.image_id}#{graft.number}"
    root = f"data.root={folders / '8'}"
    remake(file, tmp_path / "moved", [root, f"lesions.root={folders / 'masses'}"])
    for path in (copy / "images").iterdir():
        cv2.imwrite(str(path), 65535 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    for overrides, error, named in (
        ([root], ConfigError, "lesions.root=DIR"),
        ([root, f"lesions.root={copy}"], DataError, f"{name} has changed since"),
        ([root, f"lesions.root={folders / '8'}"], DataError, f"{name} is not in folder"),
    ):
        with pytest.raises(error, match=named):
            remake(file, tmp_path / "none", overrides)


def test_bad_lesions_are_sentences(real, tmp_path):
    for number, (config, named) in enumerate(
        (
            (real(lesions=None), "holds no mass"),
            (real(pathology="malignant"), "malignant mass"),
            (real(resize=(5, 5), rotate=0), "too small"),
            (real(resize=(50, 50)), "larger than it"),
            (real("opencv", resize=(0.06, 0.06), count=1), "opencv: "),
        )
    ):
        with pytest.raises(DataError, match=named):
            synthesize(config, tmp_path / str(number))
    (recipe,) = synthesize(real("mixed", centre=(100, 60), count=1, rotate=0), tmp_path / "centre")
    top, left, bottom, right = recipe.lesions[0].box
    np.testing.assert_allclose([(top + bottom) / 2, (left + right) / 2], (100, 60), atol=1)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("renderer", ["poisson", "mixed"])
def test_real_lesions_in_real_mammograms(real_data, renderer, tmp_path):
    data = DataConfig(name="cdd_cesm", root=real_data / "cdd-cesm")
    config = SynthesisConfig(name="real", data=data, renderer=renderer, count=4, format="png")
    recipes = synthesize(config, tmp_path / "out")
    complete = [recipe for recipe in recipes if not recipe.left_out]
    assert len(complete) >= 3
    for recipe in complete:
        source = archives.read_stored(find_source(config, recipe)).values
        values = read_image(tmp_path / "out", recipe)
        on = archives.coco.decode(recipe.lesions[0].region, "") > 0
        np.testing.assert_array_equal(values[~on], source[~on])
        assert values.dtype == np.uint8 and (values[on] != source[on]).mean() > 0.3
        file = tmp_path / f"out/recipes/{recipe.name}.json"
        remake(file, tmp_path / "again", [f"data.root={data.root}"])
