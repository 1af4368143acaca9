"""tfmammo.archives.cbis_ddsm on trees in CBIS-DDSM's native form, and on its real tables."""

import csv
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.archives.writers import cbis_ddsm as writer
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo.archives import cbis_ddsm, phantom
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Mammogram, Skipped

CALC_TRAIN = "calc_case_description_train_set.csv"
FOLDER = "Mass-Training_P_00001_LEFT_CC"
DETAILS = {"pathology": "malignant", "shape": "irregular", "margin": "spiculated"}
MASS = Lesion.from_outline("mass", SQUARE, ROWS, COLS, **DETAILS)
SPECKS = Lesion.from_outline(
    "calcification", SQUARE + [20, 2], ROWS, COLS, pathology="benign", shape="pleomorphic"
)
MASS_TRAIN = "mass_case_description_train_set.csv"


def mammogram(number: int, *lesions: Lesion, patient: str = "aa", **facts) -> Mammogram:
    known = {"patient_id": patient, "birads": "4b", "density": "2"}
    return make_mammogram(number, ramp(number / 10), lesions or (MASS,), **known | facts)


def read(root: Path) -> tuple[list[Mammogram], Skipped]:
    skipped = Skipped()
    return cbis_ddsm.read(root, skipped), skipped


def described(root: Path, word: str) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*.dcm")
        if word in str(pydicom.dcmread(path, stop_before_pixels=True).SeriesDescription)
    )


def change(path: Path, stored: np.ndarray | None = None, **elements) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(dataset, name, value)
    if stored is not None:
        dataset.PixelData = stored.tobytes()
        dataset.Rows, dataset.Columns = stored.shape
    dataset.save_as(path)


def edit(table: Path, **values: str) -> None:
    """Set columns, named with _ for a blank, in a table's last row."""
    with table.open(newline="") as file:
        columns, *rows = csv.reader(file)
    for name, value in values.items():
        rows[-1][[column.replace(" ", "_") for column in columns].index(name)] = value
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def small(tmp_path):
    """Two views of one breast: CC with a mass, MLO with a mass in the mass set and a cluster in the
    other.
    """
    writer.write([mammogram(1), mammogram(2, MASS, SPECKS, view="MLO")], tmp_path)
    return tmp_path


def dice(a, b) -> float:
    return 2 * np.sum(a * b) / (np.sum(a) + np.sum(b))


def test_round_trip(tmp_path):
    originals = [original for original in phantom.read(count=8, seed=3) if original.lesions][:3]
    paths = writer.write(originals, tmp_path)
    records, skipped = read(tmp_path)
    assert not skipped.reasons and len(paths) == len(records)
    by_path = {record.file: pickle.loads(pickle.dumps(record)) for record in records}
    pairs = [
        (original, lesions)
        for original in originals
        for is_calc in (False, True)
        if (lesions := [it for it in original.lesions if (it.kind == "calcification") is is_calc])
    ]
    for (original, lesions), path in zip(pairs, paths, strict=True):
        record = by_path[path]
        for fact in ("rows", "cols", "laterality", "view", "density"):
            assert getattr(record, fact) == getattr(original, fact), fact
        facts = (record.birads, record.spacing, record.official_split)
        assert facts == (original.birads[0], None, "train")
        for ours, theirs in zip(record.lesions, lesions, strict=True):
            for fact in ("kind", "pathology", "shape", "margin", "box"):
                assert getattr(ours, fact) == getattr(theirs, fact), fact
            size = (record.rows, record.cols)
            assert dice(ours.mask(*size), theirs.mask(*size)) >= 0.99
    stored = pydicom.dcmread(paths[0]).pixel_array
    pixels = by_path[paths[0]].pixels()
    np.testing.assert_array_equal(np.rint(pixels[..., 0].astype(np.float64) * 65535), stored)
    assert np.abs(pixels - originals[0].pixels()).max() <= 0.5 / 65535 + 1e-6


def test_both_sets_of_a_mammogram(small):
    records, skipped = read(small)
    assert not skipped.reasons
    found = [([it.kind for it in r.lesions], r.view, r.pathology) for r in records]
    assert found == [
        (["calcification"], "MLO", "benign"),
        (["mass"], "CC", "malignant"),
        (["mass"], "MLO", "malignant"),
    ]
    identifiers = [record.image_id for record in records] + [records[0].patient_id]
    assert len(set(identifiers)) == 4 and len({record.patient_id for record in records}) == 1
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in identifiers)
    assert (records[0].lesions[0].shape, records[0].lesions[0].margin) == ("pleomorphic", None)


@pytest.mark.parametrize("layout", ["nbia", "csv", "series"])
@pytest.mark.parametrize("swapped", [False, True], ids=["straight", "swapped"])
@pytest.mark.parametrize("described", [False, True], ids=["bare", "described"])
def test_masks_are_told_from_crops(tmp_path, layout, swapped, described):
    # A crop of the image's own aspect ratio, so that its size does not give it away.
    corners = np.float32([[15, 11], [15, 32], [44, 32], [44, 11]])
    band = Lesion.from_outline("mass", corners, ROWS, COLS)
    assert band.box == (15, 11, 45, 33)
    form = {"layout": layout, "swapped": swapped, "described": described}
    writer.write([mammogram(1, band, SPECKS)], tmp_path, **form)
    records, skipped = read(tmp_path)
    assert not skipped.reasons
    for record, lesion in zip(records, (SPECKS, band), strict=True):
        np.testing.assert_array_equal(record.lesions[0].mask(ROWS, COLS), lesion.mask(ROWS, COLS))


def test_a_described_crop_is_no_mask_even_if_it_looks_like_one(small):
    crop = described(small, "cropped")[1]
    mask = described(small, "ROI mask")[1]
    assert crop.parent == mask.parent and "LEFT_CC_1" in str(crop)
    pixels = pydicom.dcmread(mask).pixel_array
    change(crop, np.roll(pixels, 3).astype(np.uint16))
    assert read(small)[0][1].lesions[0].box == MASS.box
    mask.unlink()
    with pytest.raises(ArchiveError, match=rf"{FOLDER}_1: has no usable mask .*it is a crop"):
        _ = read(small)[0][1].lesions[0].box


def test_a_described_mask_comes_before_an_undescribed_one_and_the_better_size_first(tmp_path):
    writer.write([mammogram(1)], tmp_path)
    (mask,) = described(tmp_path, "ROI mask")
    pixels = pydicom.dcmread(mask).pixel_array
    first, last = mask.with_name("0.dcm"), mask.with_name("9.dcm")
    for path in (first, last):
        shutil.copy(mask, path)
        change(path, np.roll(pixels, 5, axis=0), SeriesDescription="")
    assert read(tmp_path)[0][0].lesions[0].box == MASS.box
    mask.unlink()
    change(first, np.kron(pixels, np.ones((2, 2), np.uint8)))
    top, left, bottom, right = MASS.box
    assert read(tmp_path)[0][0].lesions[0].box == (top + 5, left, bottom + 5, right)


@pytest.mark.parametrize(
    ("scale", "fits"),
    [
        ((2.0, 2.0), True),
        ((3.0, 3.02), True),
        ((0.5, 0.5), True),
        ((1.0, 1.5), False),
        ((1.05, 1.0), False),
        ((0.5, 0.6), False),
    ],
)
def test_a_mask_of_another_size_is_resampled_if_it_has_the_images_shape(tmp_path, scale, fits):
    writer.write([mammogram(1)], tmp_path, mask_scale=scale)
    (record,), _ = read(tmp_path)
    if fits:
        mask = record.lesions[0].mask(ROWS, COLS)
        assert dice(mask, MASS.mask(ROWS, COLS)) >= (0.99 if scale[0] > 1 else 0.88)
        return
    size = f"{round(ROWS * scale[0])} x {round(COLS * scale[1])}"
    for _ in range(2):
        with pytest.raises(ArchiveError, match=rf"has {size} px, which don't fit .* 60 x 44"):
            record.lesions[0].mask(ROWS, COLS)


def test_resampling_takes_the_nearest_pixel(tmp_path):
    writer.write([mammogram(1)], tmp_path)
    mask = np.zeros((2 * ROWS, 2 * COLS), np.uint8)
    # pixel i's centre is the corner of 2 i and 2 i + 1, of which the second is taken
    mask[21:42, 41:62] = 255
    change(described(tmp_path, "ROI mask")[0], mask)
    assert read(tmp_path)[0][0].lesions[0].box == (10, 20, 21, 31)


FLAT = np.zeros((ROWS, COLS), np.uint8)
SPECK = np.pad(np.uint8([[1]]), ((1, 2 * ROWS - 2), (0, 2 * COLS - 1)))
RAMP = np.arange(ROWS * COLS).astype(np.uint8).reshape(ROWS, COLS)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"text"), "not a DICOM"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "ends early"),
        (lambda path: change(path, FLAT), "marks nothing"),
        (lambda path: change(path, FLAT + 255), "marks nothing"),
        (lambda path: change(path, RAMP), "more than two grey values"),
        (lambda path: change(path, SPECK), "nothing that is left"),
        (lambda path: change(path, 255 * (RAMP != 70).astype(np.uint8)), "inverted"),
        (lambda path: change(path, SeriesDescription="full mammogram images"), "it is a full"),
    ],
)
def test_an_unusable_mask_costs_its_lesion_alone(tmp_path, damage, word):
    writer.write([mammogram(1)], tmp_path)
    (record,), _ = read(tmp_path)
    damage(described(tmp_path, "ROI mask")[0])
    with pytest.raises(ArchiveError, match=rf"LEFT_CC_1: has no usable mask \(.*{word}"):
        _ = record.lesions[0].outlines
    assert record.pixels().shape == (ROWS, COLS, 1)


def test_indexing_reads_neither_masks_nor_pixels_and_pixels_no_window(small, monkeypatch):
    path = described(small, "full")[1]
    plain = read(small)[0][1].pixels()
    change(path, WindowCenter=500, WindowWidth=100)
    np.testing.assert_array_equal(read(small)[0][1].pixels(), plain)
    fail = property(lambda dataset: pytest.fail("pixels were read"))
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", fail)
    for path in [*described(small, "ROI mask"), *described(small, "cropped")]:
        path.write_bytes(b"")
    records, skipped = read(small)
    assert (len(records), len(skipped)) == (3, 0) and repr(records)


def test_several_abnormalities_of_one_image(tmp_path):
    benign = {"pathology": "benign", "shape": "oval", "margin": "circumscribed"}
    other = Lesion.from_outline("mass", SQUARE + [25, -10], ROWS, COLS, **benign)
    writer.write([mammogram(1, other, MASS)], tmp_path)
    edit(tmp_path / MASS_TRAIN, assessment="5")
    (record,), skipped = read(tmp_path)
    assert not skipped.reasons
    assert [lesion.box for lesion in record.lesions] == [other.box, MASS.box]
    assert [lesion.pathology for lesion in record.lesions] == ["benign", "malignant"]
    assert (record.pathology, record.birads) == ("malignant", "5")
    edit(tmp_path / MASS_TRAIN, pathology="UNPROVEN")
    assert read(tmp_path)[0][0].pathology is None  # one is not proven


@pytest.mark.parametrize(
    ("shape", "certain"),
    [
        ("IRREGULAR", True),
        ("LYMPH_NODE", True),
        ("N/A", True),
        ("IRREGULAR-ARCHITECTURAL_DISTORTION", True),
        ("ARCHITECTURAL_DISTORTION", False),
        ("FOCAL_ASYMMETRIC_DENSITY", False),
        ("ASYMMETRIC_BREAST_TISSUE", False),
    ],
)
def test_shapes_that_are_no_mass_make_its_kind_uncertain(small, shape, certain):
    edit(small / MASS_TRAIN, mass_shape=shape, mass_margins="N/A")
    lesion = read(small)[0][2].lesions[0]
    assert (lesion.kind, lesion.kind_is_certain, lesion.margin) == ("mass", certain, None)
    assert lesion.shape == (None if shape == "N/A" else shape.lower())


@pytest.mark.parametrize(
    ("values", "image", "lesion"),
    [
        ({"pathology": "BENIGN"}, {"pathology": "benign"}, "benign"),
        ({"pathology": "BENIGN_WITHOUT_CALLBACK"}, {"pathology": "benign"}, "benign"),
        ({"pathology": ""}, {"pathology": None}, None),
        ({"breast_density": "0", "assessment": ""}, {"density": None, "birads": None}, "malignant"),
    ],
)
def test_words_of_the_table(small, values, image, lesion):
    edit(small / MASS_TRAIN, **values)
    record = read(small)[0][2]
    assert {name: getattr(record, name) for name in image} == image
    assert record.lesions[0].pathology == lesion


def test_official_splits_and_a_patient_who_leaks(tmp_path):
    test = mammogram(2, SPECKS, view="MLO", official_split="test")
    writer.write([mammogram(1, official_split="train"), test], tmp_path)
    leaking, training = read(tmp_path)[0]
    assert (leaking.official_split, training.official_split) == ("test", "train")
    assert leaking.patient_id == training.patient_id


def test_what_was_not_downloaded_is_counted(tmp_path):
    writer.write([mammogram(number, patient=f"p{number}") for number in range(5)], tmp_path)
    for number in (2, 3, 5):
        shutil.rmtree(tmp_path / "CBIS-DDSM" / f"Mass-Training_P_{number:05d}_LEFT_CC")
    shutil.rmtree(tmp_path / "CBIS-DDSM" / f"{FOLDER}_1")
    records, skipped = read(tmp_path)
    assert len(records) == 2
    reasons = skipped.reasons[MASS_TRAIN]
    assert "3 of its 5 rows name images that are not here" in reasons
    assert "1 of its 5 rows name an image that is here and a mask that is not" in reasons
    with pytest.raises(ArchiveError, match="no usable mask \\(none of its files is here"):
        _ = records[0].lesions[0].box
    shutil.rmtree(tmp_path / "CBIS-DDSM")
    rows = cbis_ddsm.tables(tmp_path)
    assert len(rows) == 5 and rows[0].lesion_folder == f"{FOLDER}_1"
    assert all(row.split == "train" and "\n" not in "".join(row.paths) for row in rows)
    with pytest.raises(ArchiveError, match="no image of CBIS-DDSM"):
        cbis_ddsm.read(tmp_path)


def test_one_set_alone_at_any_depth_and_through_links(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("other")
    shutil.copy(small / MASS_TRAIN, root / MASS_TRAIN.upper())
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "manifest").symlink_to(small / "CBIS-DDSM")
    (root / "a" / "again").symlink_to(root)
    (small / "CBIS-DDSM" / "._1-1.dcm").write_bytes(b"macOS")
    records, skipped = read(root)
    assert [record.lesions[0].kind for record in records] == ["mass", "mass"]
    ((file, reason),) = skipped.reasons.items()
    assert "Calc-Training_P_00001_LEFT_MLO" in file and "2 further DICOM files" in reason


def test_a_uid_that_two_rows_claim_is_nobodys(tmp_path):
    writer.write([mammogram(1), mammogram(2, view="MLO")], tmp_path, layout="series")
    first, _ = cbis_ddsm.tables(tmp_path)
    edit(tmp_path / MASS_TRAIN, ROI_mask_file_path=first.paths[2])
    records, skipped = read(tmp_path)
    assert len(records) == 2 and "a mask that is not" in skipped.reasons.pop(MASS_TRAIN)
    assert "1 further DICOM files" in next(iter(skipped.reasons.values()))
    assert records[1].lesions[0].box == MASS.box  # by its crop's path, which lies beside the mask


def test_second_copies_and_strange_files_are_noted(small):
    shutil.copytree(small / "CBIS-DDSM" / FOLDER, small / "more" / FOLDER)
    shutil.copy(small / MASS_TRAIN, small / "more" / MASS_TRAIN)
    image = described(small / "CBIS-DDSM", "full")[1]
    shutil.copy(described(small, "cropped")[1], image.with_name("1-0.dcm"))
    records, skipped = read(small)
    assert len(records) == 3 and (records[1].rows, records[1].cols) == (ROWS, COLS)
    assert "second table" in skipped.reasons.pop(f"more/{MASS_TRAIN}")
    words = sorted(skipped.reasons.values())
    assert "second file" in words[0] and "it is a crop" in words[1] and len(words) == 2


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.write_bytes(b"text"), "not a DICOM"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "ends early"),
        (lambda path: change(path, NumberOfFrames=2), "2 frames"),
    ],
)
def test_an_unreadable_image_is_noted_and_the_others_stay(small, damage, word):
    damage(described(small, "full")[1])
    records, skipped = read(small)
    ((file, reason),) = skipped.reasons.items()
    assert len(records) == 2 and FOLDER in file and word in reason


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"patient_id": "=cmd()"}, "patient_id"),
        ({"patient_id": "P_1/../../x"}, "patient_id"),
        ({"left_or_right_breast": "BOTH"}, "side"),
        ({"image_view": ""}, "view"),
        ({"abnormality_id": "one"}, "abnormality id"),
        ({"abnormality_id": "9" * 5000}, "abnormality id"),
        ({"image_view": "CC"}, "repeats"),
    ],
)
def test_damaged_rows_of_a_table_share_one_note(small, values, word):
    edit(small / MASS_TRAIN, **values)
    records, skipped = read(small)
    assert [record.view for record in records] == ["MLO", "CC"]
    reason = skipped.reasons.pop(MASS_TRAIN)
    assert reason.startswith("1 of its 2 rows left out, the first is row 2: ") and word in reason


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no column patient_id, breast_density"),
        (b"PK\x03\x04\xff\xfe", "no column patient_id"),
        (b"patient_id,pathology\nP_00001,BENIGN\n", "no column breast_density, left_or_right"),
        (b'"' + b"x" * 200_000, "as CSV"),
    ],
)
def test_a_damaged_table_is_noted(small, content, word):
    (small / MASS_TRAIN).write_bytes(content)
    records, skipped = read(small)
    assert [record.lesions[0].kind for record in records] == ["calcification"]
    assert word in skipped.reasons[MASS_TRAIN]
    (small / CALC_TRAIN).unlink()
    with pytest.raises(ArchiveError, match=f"no table has a readable row, {MASS_TRAIN}: .*{word}"):
        cbis_ddsm.read(small)


@pytest.mark.data
def test_the_real_tables(real_data):
    skipped = Skipped()
    rows = cbis_ddsm.tables(real_data / "cbis-ddsm", skipped)
    assert not skipped.reasons
    sets = Counter((row.kind, row.split) for row in rows)
    assert sets == {
        ("mass", "train"): 1318,
        ("mass", "test"): 378,
        ("calcification", "train"): 1546,
        ("calcification", "test"): 326,
    }
    images = Counter(folder.split("_P_")[0] for folder in {row.folder for row in rows})
    assert images == {
        "Mass-Training": 1231,
        "Mass-Test": 361,
        "Calc-Training": 1227,
        "Calc-Test": 284,
    }
    assert Counter(row.lesion["pathology"] for row in rows) == {
        "malignant": 1457,
        "benign": 1429 + 682,
    }
    # Folders are put together from columns: each is the one that the table prints, and so are the
    # lesions'.
    for row in rows:
        assert [path.split("/")[0] for path in row.paths] == [
            row.folder,
            row.lesion_folder,
            row.lesion_folder,
        ]
        assert not any(path != path.strip() for path in row.paths)


@pytest.mark.data
def test_the_real_tables_leak_31_patients(real_data):
    patients: dict[tuple[str, str], set[str]] = {}
    for row in cbis_ddsm.tables(real_data / "cbis-ddsm"):
        patients.setdefault((row.kind, row.split), set()).add(row.image["patient_id"])
    crossing = [
        patients[kind, "train"] & patients[other, "test"]
        for kind in ("mass", "calcification")
        for other in ("mass", "calcification")
    ]
    assert [len(both) for both in crossing] == [0, 13, 18, 0]
    assert len(crossing[1] | crossing[2]) == 31


@pytest.mark.data
@pytest.mark.parametrize("bare", [False, True], ids=["described", "bare"])
def test_the_real_crop_that_the_table_calls_a_mask(real_data, tmp_path, bare):
    table = "calc_case_description_train_set.csv"
    shutil.copy(real_data / "cbis-ddsm" / table, tmp_path)
    (row,) = [
        row
        for row in cbis_ddsm.tables(tmp_path)
        if row.lesion_folder == "Calc-Training_P_00474_LEFT_MLO_1"
    ]
    image_path, path_of_crop, path_of_mask = (tmp_path / path for path in row.paths)
    path_of_mask.parent.mkdir(parents=True)
    (crop,) = (real_data / "cbis-ddsm" / "dicom").glob("*.dcm")
    shutil.copy(crop, path_of_mask)
    if bare:
        change(path_of_mask, SeriesDescription="")
    # an image of the crop's own shape, so that its size does not give it away
    rows = 1129 // 2
    cols = 1065 // 2
    write_dicom(image_path, np.zeros((rows, cols), np.uint16), 16, Modality="MG")
    record = cbis_ddsm.read(tmp_path, notes := Skipped())[0]
    skipped = notes
    assert skipped.reasons == {table: "1545 of its 1546 rows name images that are not here"}
    reason = (
        "it holds more than two grey values" if bare else "is no mask, it says that it is a crop"
    )
    with pytest.raises(ArchiveError, match=rf"LEFT_MLO_1: has no usable mask \(.*{reason}"):
        _ = record.lesions[0].box
    mask = np.zeros((rows, cols), np.uint8)
    mask[100:150, 200:260] = 255
    write_dicom(path_of_crop, mask, 8)
    assert cbis_ddsm.read(tmp_path)[0].lesions[0].box == (100, 200, 150, 260)
