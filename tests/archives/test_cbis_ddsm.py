"""tfmammo.archives.cbis_ddsm on trees in CBIS-DDSM's native form, and on its real tables."""

import shutil
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.archives.tools import (
    CLUSTER,
    MASS,
    assert_same,
    assert_same_lesions,
    change_dicom,
    edit_csv,
    make_originals,
    read_archive,
)
from tests.archives.writers import cbis_ddsm as writer
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, make_rectangle, ramp
from tfmammo.archives import cbis_ddsm
from tfmammo.archives.notes import Notes
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Mammogram, Skipped

MASS_TRAIN = "mass_case_description_train_set.csv"
FOLDER = "Mass-Training_P_00001_LEFT_CC"
SPECKS = Lesion.from_outline("calcification", SQUARE + [20, 2], ROWS, COLS, pathology="benign")
read = partial(read_archive, cbis_ddsm)


def mammogram(number: int, *lesions: Lesion, patient: str = "aa", **facts) -> Mammogram:
    known = {"patient_id": patient, "birads": "4b", "density": "2"}
    return make_mammogram(number, ramp(number / 10), lesions or (MASS,), **known | facts)


def described(root: Path, word: str) -> list[Path]:
    paths = sorted(root.rglob("*.dcm"))
    return [path for path in paths if word in str(pydicom.dcmread(path).SeriesDescription)]


def edit(root: Path, **cells: str) -> None:
    """Change the last row of the table of masses for training."""
    edit_csv(root / MASS_TRAIN, -1, **cells)


def read_rows(root: Path) -> list[cbis_ddsm.Row]:
    """Read the rows of the tables; nothing of them is skipped, and no DICOM file is needed."""
    skipped = Skipped()
    by_table = cbis_ddsm._read_tables(Notes(root, skipped, ""), sorted(root.rglob("*.csv")))
    assert not skipped.reasons
    return [row for rows in by_table.values() for row in rows]


@pytest.fixture
def small(tmp_path):
    """Two views of one breast: CC with a mass, MLO with a mass and, in the other set, a cluster."""
    writer.write([mammogram(1), mammogram(2, MASS, SPECKS, view="MLO")], tmp_path)
    return tmp_path


@pytest.fixture
def single(tmp_path):
    """One mammogram with a mass; its mask's path."""
    writer.write([mammogram(1)], tmp_path)
    return tmp_path, *described(tmp_path, "ROI mask")


def test_round_trip(tmp_path):
    """A mammogram with masses and calcifications is in both sets, one without lesions in none."""
    originals = make_originals()
    paths = writer.write(originals, tmp_path)
    records, reasons = read(tmp_path)
    assert not reasons and len(paths) == len(records)
    by_path = {record.file: record for record in records}
    shown = [(originals[0], MASS), (originals[0], CLUSTER), (originals[2], CLUSTER)]
    for (original, lesion), path in zip(shown, paths, strict=True):
        record = by_path[path]
        assert_same(record, original, "rows cols laterality view density birads")
        facts = (record.spacing, record.official_split)
        assert facts == (None, original.official_split or "train")
        pair = original.with_pixels(original.read, lesions=(lesion,))
        assert_same_lesions(record, pair, "kind pathology shape margin box")
        stored = np.rint(original.pixels().astype(np.float64) * 65535)
        np.testing.assert_array_equal(np.rint(record.pixels().astype(np.float64) * 65535), stored)


@pytest.mark.parametrize("layout", ["nbia", "csv", "series"])
@pytest.mark.parametrize("swapped", [False, True], ids=["straight", "swapped"])
@pytest.mark.parametrize("described", [False, True], ids=["bare", "described"])
def test_masks_are_told_from_crops(tmp_path, layout, swapped, described):
    # A crop of 30 x 22 px, the image's own aspect ratio, so that its size does not give it away.
    band = make_rectangle(15, 11, 45, 33, size=(ROWS, COLS))
    form = {"layout": layout, "swapped": swapped, "described": described}
    writer.write([mammogram(1, band, SPECKS)], tmp_path, **form)
    (specks, mass), reasons = read(tmp_path)
    assert not reasons
    assert_same_lesions(specks, mammogram(1, SPECKS), "box", 1)
    assert_same_lesions(mass, mammogram(1, band), "box", 1)


def test_a_described_crop_is_no_mask_even_if_it_looks_like_one(single):
    root, mask = single
    (crop,) = described(root, "cropped")
    change_dicom(crop, np.roll(pydicom.dcmread(mask).pixel_array, 3).astype(np.uint16))
    assert read(root)[0][0].lesions[0].box == MASS.box
    mask.unlink()
    with pytest.raises(ArchiveError, match=rf"{FOLDER}_1: has no usable mask .*it is a crop"):
        _ = read(root)[0][0].lesions[0].box


@pytest.mark.parametrize("scale", [(1.0, 1.5), (1.05, 1.0), (0.5, 0.6)])
def test_a_mask_of_another_shape_is_refused_whenever_it_is_wanted(tmp_path, scale):
    writer.write([mammogram(1)], tmp_path, mask_scale=scale)
    (lesion,) = read(tmp_path)[0][0].lesions
    size = f"{round(ROWS * scale[0])} x {round(COLS * scale[1])}"
    for _ in range(2):
        with pytest.raises(ArchiveError, match=size):
            lesion.mask(ROWS, COLS)


def test_resampling_takes_the_nearest_pixel(single):
    root, path = single
    mask = np.zeros((2 * ROWS, 2 * COLS), np.uint8)
    # pixel i's centre is the corner of 2 i and 2 i + 1, of which the second is taken
    mask[21:42, 41:62] = 255
    change_dicom(path, mask)
    assert read(root)[0][0].lesions[0].box == (10, 20, 21, 31)


FLAT = np.zeros((ROWS, COLS), np.uint8)
SPECK = np.pad(np.uint8([[1]]), ((1, 2 * ROWS - 2), (0, 2 * COLS - 1)))
RAMP = np.arange(ROWS * COLS).astype(np.uint8).reshape(ROWS, COLS)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.write_bytes(b"text"), "not a DICOM"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "ends early"),
        (lambda path: change_dicom(path, FLAT), "marks nothing"),
        (lambda path: change_dicom(path, RAMP), "more than two intensities"),
        (lambda path: change_dicom(path, SPECK), "nothing that is left"),
        (lambda path: change_dicom(path, 255 * (RAMP != 70).astype(np.uint8)), "inverted"),
        (lambda path: change_dicom(path, SeriesDescription="full mammogram images"), "full"),
    ],
)
def test_an_unusable_mask_costs_its_lesion_alone(single, damage, word):
    root, mask = single
    (record,), _ = read(root)
    damage(mask)
    with pytest.raises(ArchiveError, match=rf"LEFT_CC_1: has no usable mask \(.*{word}"):
        _ = record.lesions[0].outlines
    assert record.pixels().shape == (ROWS, COLS, 1)


def test_pixels_are_read_without_the_window_and_records_without_pixels(small, monkeypatch):
    plain = read(small)[0][1].pixels()
    change_dicom(described(small, "full")[1], WindowCenter=500, WindowWidth=100)
    np.testing.assert_array_equal(read(small)[0][1].pixels(), plain)
    fail = property(lambda dataset: pytest.fail("pixels were read"))
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", fail)
    assert len(read(small)[0]) == 3


@pytest.mark.parametrize(
    ("cells", "image", "lesion"),
    [
        ({"mass_shape": "N/A", "mass_margins": "N/A"}, {}, {"shape": None, "margin": None}),
        ({"mass_shape": "OVAL-ARCHITECTURAL_DISTORTION"}, {}, {"kind_is_certain": True}),
        ({"mass_shape": "ARCHITECTURAL_DISTORTION"}, {}, {"kind_is_certain": False}),
        ({"pathology": "BENIGN_WITHOUT_CALLBACK"}, {"pathology": "benign"}, {}),
        ({"pathology": ""}, {"pathology": None}, {"pathology": None}),
        ({"breast_density": "0", "assessment": ""}, {"density": None, "birads": None}, {}),
    ],
)
def test_words_of_the_table(small, cells, image, lesion):
    edit(small, **cells)
    record = read(small)[0][2]
    assert {name: getattr(record, name) for name in image} == image
    assert {name: getattr(record.lesions[0], name) for name in lesion} == lesion


def test_official_splits_and_a_patient_who_leaks(tmp_path):
    test = mammogram(2, SPECKS, view="MLO", official_split="test")
    writer.write([mammogram(1, official_split="train"), test], tmp_path)
    leaking, training = read(tmp_path)[0]
    assert (leaking.official_split, training.official_split) == ("test", "train")
    assert leaking.patient_id == training.patient_id


def test_what_was_not_downloaded_is_counted(tmp_path):
    writer.write([mammogram(number, patient=f"p{number}") for number in range(3)], tmp_path)
    shutil.rmtree(tmp_path / "CBIS-DDSM" / "Mass-Training_P_00002_LEFT_CC")
    shutil.rmtree(tmp_path / "CBIS-DDSM" / f"{FOLDER}_1")
    (record, _), reasons = read(tmp_path)
    assert "1 of its 3 rows name images that are not here" in reasons[MASS_TRAIN]
    assert "1 of its 3 rows name an image that is here and a mask" in reasons[MASS_TRAIN]
    with pytest.raises(ArchiveError, match="no usable mask \\(none of its files is here"):
        _ = record.lesions[0].box
    shutil.rmtree(tmp_path / "CBIS-DDSM")
    assert [row.split for row in read_rows(tmp_path)] == ["train"] * 3


def test_a_uid_that_two_rows_claim_is_nobodys(tmp_path):
    writer.write([mammogram(1), mammogram(2, view="MLO")], tmp_path, layout="series")
    first, _ = read_rows(tmp_path)
    edit(tmp_path, ROI_mask_file_path=first.paths[2])
    records, reasons = read(tmp_path)
    assert len(records) == 2 and "a mask that is not" in reasons.pop(MASS_TRAIN)
    assert "1 further DICOM files" in next(iter(reasons.values()))
    assert records[1].lesions[0].box == MASS.box  # by its crop's path, which is next to the mask


def test_second_copies_and_strange_files_are_noted(small):
    shutil.copytree(small / "CBIS-DDSM" / FOLDER, small / "more" / FOLDER)
    shutil.copy(small / MASS_TRAIN, small / "more" / MASS_TRAIN)
    image = described(small / "CBIS-DDSM", "full")[1]
    shutil.copy(described(small, "cropped")[1], image.with_name("1-0.dcm"))
    records, reasons = read(small)
    assert len(records) == 3 and (records[1].rows, records[1].cols) == (ROWS, COLS)
    assert "second table" in reasons.pop(f"more/{MASS_TRAIN}")
    second, crop = sorted(reasons.values())
    assert "second file" in second and "it is a crop" in crop


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        ({"patient_id": "P_1/../../x"}, "patient_id"),
        ({"left_or_right_breast": "BOTH"}, "side"),
        ({"abnormality_id": "9" * 5000}, "abnormality id"),
        ({"image_view": "CC"}, "repeats"),
    ],
)
def test_damaged_rows_of_a_table_share_one_note(small, cells, word):
    edit(small, **cells)
    records, reasons = read(small)
    assert [record.view for record in records] == ["MLO", "CC"]
    reason = reasons.pop(MASS_TRAIN)
    assert reason.startswith("1 of its 2 rows skipped, the first is row 2: ") and word in reason


def test_a_damaged_table_is_noted(small):
    (small / MASS_TRAIN).write_bytes(b"patient_id,pathology\nP_00001,BENIGN\n")
    records, reasons = read(small)
    assert [record.lesions[0].kind for record in records] == ["calcification"]
    assert "no column breast_density, left_or_right" in reasons[MASS_TRAIN]
    (small / MASS_TRAIN.replace("mass", "calc")).unlink()
    with pytest.raises(ArchiveError, match=f"no table has a readable row, {MASS_TRAIN}: "):
        cbis_ddsm.read(small)


@pytest.mark.data
def test_the_real_tables_and_their_31_patients_in_both_splits(real_data):
    rows = read_rows(real_data / "cbis-ddsm")
    counts = Counter((row.kind, row.split) for row in rows)
    assert counts["mass", "train"] == 1318 and counts["mass", "test"] == 378
    assert counts["calcification", "train"] == 1546 and counts["calcification", "test"] == 326
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    # folders are put together from columns: each is the one that the table prints
    for row in rows:
        printed = [path.split("/")[0] for path in row.paths]
        assert printed == [row.folder, row.lesion_folder, row.lesion_folder]
        patients[row.kind, row.split].add(row.image["patient_id"])
    kinds = ("mass", "calcification")
    crossing = [
        patients[one, "train"] & patients[other, "test"] for one in kinds for other in kinds
    ]
    assert [len(both) for both in crossing] == [0, 13, 18, 0]
    assert len(crossing[1] | crossing[2]) == 31


@pytest.mark.data
def test_the_real_crop_that_the_table_calls_a_mask(real_data, tmp_path):
    table = "calc_case_description_train_set.csv"
    shutil.copy(real_data / "cbis-ddsm" / table, tmp_path)
    name = "Calc-Training_P_00474_LEFT_MLO_1"
    (row,) = [row for row in read_rows(tmp_path) if row.lesion_folder == name]
    image_path, path_of_crop, path_of_mask = (tmp_path / path for path in row.paths)
    path_of_mask.parent.mkdir(parents=True)
    (crop,) = (real_data / "cbis-ddsm" / "dicom").glob("*.dcm")
    shutil.copyfile(crop, path_of_mask)  # which may be written to
    # an image of the crop's own shape, so that its size does not give it away
    rows, cols = 1129 // 2, 1065 // 2
    write_dicom(image_path, np.zeros((rows, cols), np.uint16), 16, Modality="MG")
    for reason in ("it is a crop", "more than two intensities"):
        with pytest.raises(ArchiveError, match=rf"LEFT_MLO_1: has no usable mask \(.*{reason}"):
            _ = read(tmp_path)[0][0].lesions[0].box
        change_dicom(path_of_mask, SeriesDescription="")
    mask = np.zeros((rows, cols), np.uint8)
    mask[100:150, 200:260] = 255
    write_dicom(path_of_crop, mask, 8)
    assert cbis_ddsm.read(tmp_path)[0].lesions[0].box == (100, 200, 150, 260)
