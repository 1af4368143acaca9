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
    read_dead_letters,
)
from tests.synthetic_sets import read_files
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Skipped, key_check
from tfmammo.synthesis.config import PatientsConfig, SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesize


@pytest.fixture(scope="module")
def phantoms(tiny_blending):
    """A function (renderer, **values) -> a config that sets a phantom's masses into its normal
    mammograms.
    """
    data = DataConfig(phantoms=24)
    patients = {
        mammogram.patient_id
        for mammogram in archives.read_mammograms(data, Skipped())
        if mammogram.laterality == "L"
    }

    def make(renderer, **values):
        generator = (
            str(tiny_blending(size=64, patients=patients)) if renderer == "blending" else None
        )
        return SynthesisConfig(
            **{
                "name": "grafts",
                "data": data,
                "renderer": renderer,
                "generator": generator,
                "count": 3,
                **values,
            }
        )

    return make


# pycocotools
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize(
    ("renderer", "form"), [("poisson", "dicom"), ("blending", "png"), ("blending", "tfrecord")]
)
def test_real_lesions_of_the_phantom(renderer, form, phantoms, where, tmp_path):
    """From records to files: nothing changes beyond a support, COCO and masks agree, and all of it
    can be made again.
    """
    from pycocotools.coco import COCO

    set_config = phantoms(renderer, format=form, masses=(1, 2), seed=2)
    root = tmp_path / "set"
    recipes = synthesize(set_config, root)
    assert [recipe.left_out for recipe in recipes] == [None] * 3 and sum(
        len(recipe.lesions) for recipe in recipes
    ) > 3
    known = {
        mammogram.image_id: mammogram
        for mammogram in archives.read_mammograms(set_config.data, Skipped())
    }
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
            if renderer == "poisson":
                assert lesion.window == (top - 3, left - 3, bottom + 3, right + 3)
                near[first:last, before:behind] = mask[first:last, before:behind]
            trained = {
                mammogram.patient_id for mammogram in known.values() if mammogram.laterality == "L"
            }
            assert graft.trained_on == (
                None if renderer == "poisson" else own.patient_id in trained
            )
        path = root / f"images/{recipe.name}"
        if form == "dicom":
            synthetic = pydicom.dcmread(path.with_suffix(".dcm")).pixel_array
        elif form == "png":
            synthetic = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
        else:
            (raw,) = tf.data.TFRecordDataset(str(path.with_suffix(".tfrecord"))).as_numpy_iterator()
            features = tf.train.Example.FromString(raw).features.feature
            synthetic = tf.io.decode_png(
                features["image/encoded"].bytes_list.value[0], dtype=tf.uint16
            ).numpy()[..., 0]
            assert list(features["image/object/class/text"].bytes_list.value) == [b"mass"] * len(
                recipe.lesions
            )
        np.testing.assert_array_equal(synthetic[~near], source.values[~near])
        assert (synthetic[near] != source.values[near]).mean() > 0.2
    before = read_files(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    synthesize(set_config, root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == times
    for recipe in recipes:
        remake(root / f"recipes/{recipe.name}.json", tmp_path / "again", where(set_config))
    assert read_files(tmp_path / "again") == {
        name: before[name] for recipe in recipes for name in recipe.files
    }


def test_places_anywhere_on_the_breast_are_another_set(phantoms, tmp_path):
    by_rule = phantoms("paste", format="png", count=12)
    synthesize(by_rule, tmp_path / "rule")
    anywhere = by_rule.model_copy(update={"places": "breast"})
    with pytest.raises(ConfigError, match="places"):
        synthesize(anywhere, tmp_path / "rule")
    recipes = synthesize(anywhere, tmp_path / "breast")
    heights = []
    for recipe in recipes:
        (lesion,) = recipe.lesions
        top, _, bottom, _ = lesion.box
        heights.append((top + bottom) / 2 / recipe.source.rows)
    assert len(heights) == 12 and not all(1 / 4 <= height <= 3 / 4 for height in heights)


@pytest.mark.slow
def test_whose_lesions_they_are_is_told(real, tmp_path, folders, tiny_blending):
    recipes = synthesize(real(masses=(2, 2)), tmp_path / "out")
    with (tmp_path / "out/metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = {mammogram.image_id: mammogram for mammogram in archive.read(folders / "masses")}
    for row, recipe in zip(rows, recipes, strict=True):
        patients = {known[lesion.graft.image_id].patient_id for lesion in recipe.lesions}
        assert row["patient"] == recipe.source.patient_id and row["lesion_patient"] == " ".join(
            sorted(patients)
        )
        assert row["pathology"] == "benign" and row["patient"] not in patients
    readme = (tmp_path / "out/README.md").read_text()
    assert (
        "without a network (renderer poisson)" in readme
        and "No split was given" in readme
        and "trained_on" not in readme
    )
    skipped = Skipped()
    assert (
        len(archive.read(tmp_path / "out", skipped)) == 3 and "metadata.csv" not in skipped.reasons
    ), "the column is known"
    patient = next(iter(known.values())).patient_id
    folder = tiny_blending(patients=[patient])
    recipes = synthesize(real("blending", generator=str(folder), count=6), tmp_path / "network")
    grafts = [recipe.lesions[0].graft for recipe in recipes]
    assert {graft.trained_on for graft in grafts} == {True, False} and all(
        graft.trained_on == (graft.patient_id == patient) for graft in grafts
    )
    told = (
        f"trained on the patients of {sum(graft.trained_on for graft in grafts)} of the 6 lesions"
    )
    assert told in (tmp_path / "network/README.md").read_text()


def test_only_patients_of_one_side(real, folders, where, tmp_path):
    """One archive of normal mammograms and masses, and a split of its patients."""
    both = [
        *(draw_mammogram(number) for number in range(4)),
        *(draw_mammogram(10 + number, lesion) for number, lesion in enumerate(MASSES)),
    ]
    writer.write(both, tmp_path / "both", bits=8)
    data = DataConfig(name="folder", root=tmp_path / "both")
    records = archive.read(tmp_path / "both")
    train = {records[i].patient_id for i in (0, 1, 4)}
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
    splits.save(tmp_path / "split.json", saved)
    for side, expected in (("train", train), ("held_out", set(places) - train)):
        set_config = real(
            data=data,
            lesions=None,
            patients=PatientsConfig(split_file=tmp_path / "split.json", side=side),
            count=8,
        )
        recipes = synthesize(set_config, tmp_path / side)
        seen = {
            patient
            for recipe in recipes
            for patient in (
                recipe.source.patient_id,
                *(lesion.graft.patient_id for lesion in recipe.lesions),
            )
        }
        assert (
            seen == expected
            and f"All are of the {side} side of one split"
            in (tmp_path / side / "README.md").read_text()
        )
    remake(tmp_path / "train/recipes/000000.json", tmp_path / "again", where(set_config))
    for key, value in (("rotate", 20), ("renderer", "mixed")):
        with pytest.raises(ConfigError, match=f"another {key};"):
            synthesize(set_config.model_copy(update={key: value}), tmp_path / "held_out")
    with pytest.raises(ConfigError, match="another patients.sha256"):
        splits.save(tmp_path / "split.json", saved.model_copy(update={"seed": 1}))
        synthesize(set_config, tmp_path / "held_out")
    splits.save(
        tmp_path / "split.json", saved.model_copy(update={"patients": {records[4].patient_id: 1}})
    )
    with pytest.raises(DataError, match="4 of 4 patients"):
        synthesize(set_config, tmp_path / "new")


def test_lesions_of_another_archive_depth_and_spacing(real, folders, tmp_path):
    """16-bit masses at half the spacing come out half as large in 12-bit mammograms; unknown
    spacings are a sentence.
    """
    fine = [
        replace(draw_mammogram(10, MASSES[0]), spacing=(0.05, 0.05)),
        replace(draw_mammogram(12, [[1, 0], [30, 0], [30, 40]]), spacing=(0.05, 0.05)),
    ]
    writer.write(fine, tmp_path / "fine", bits=16)
    lesions = DataConfig(name="folder", root=tmp_path / "fine")
    set_config = real(form="12", lesions=lesions, resize=(1, 1), rotate=0)
    for recipe in synthesize(set_config, tmp_path / "out"):
        assert recipe.left_out is None
        (lesion,) = recipe.lesions
        assert (lesion.graft.angle, lesion.graft.factor) == (0, 1)
        assert (
            abs(lesion.box[2] - lesion.box[0] - 12.5) <= 1
            and abs(lesion.box[3] - lesion.box[1] - 13.5) <= 1
        )
        synthetic = cv2.imread(
            str(tmp_path / f"out/images/{recipe.name}.png"), cv2.IMREAD_UNCHANGED
        )
        assert synthetic.dtype == np.uint16 and synthetic.max() < 2**12
    assert any(
        reason
        == "lesion 0: its mask touches the border of its mammogram, where the rest of it may be "
        "cut off"
        for reason in read_dead_letters(tmp_path / "out").values()
    )
    unknown = [replace(mammogram, spacing=None) for mammogram in fine]
    writer.write(unknown, tmp_path / "unknown", bits=16)
    with pytest.raises(DataError, match="mm per px"):
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
    with pytest.raises(ConfigError, match="lesions.root=DIR"):
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
    with pytest.raises(DataError, match="holds no mass"):
        synthesize(real(lesions=None), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for config, named in (
        (real(pathology="malignant"), "malignant mass"),
        (real(resize=(5, 5), rotate=0), "too small"),
        (real(resize=(50, 50)), "larger than it"),
        (real("opencv", resize=(0.06, 0.06), count=1), "opencv: "),
    ):
        with pytest.raises(DataError, match=named):
            synthesize(config, tmp_path / named)
    (recipe,) = synthesize(real("mixed", centre=(100, 60), count=1, rotate=0), tmp_path / "centre")
    top, left, bottom, right = recipe.lesions[0].box
    assert abs((top + bottom) / 2 - 100) <= 1 and abs((left + right) / 2 - 60) <= 1


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
        (lesion,) = recipe.lesions
        source = archives.read_stored(find_source(config, recipe)).values
        values = cv2.imread(str(tmp_path / f"out/images/{recipe.name}.png"), cv2.IMREAD_UNCHANGED)
        on = archives.coco.decode(lesion.region, "") > 0
        np.testing.assert_array_equal(values[~on], source[~on])
        assert values.dtype == np.uint8 and (values[on] != source[on]).mean() > 0.3
        remake(
            tmp_path / f"out/recipes/{recipe.name}.json",
            tmp_path / "again",
            [f"data.root={data.root}"],
        )
