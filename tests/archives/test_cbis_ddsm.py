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


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    root = tmp_path_factory.mktemp("cbis")
    originals = [original for original in phantom.read(count=8, seed=3) if original.lesions][:3]
    return originals, writer.write(originals, root), root


def expected(original: Mammogram) -> list[list[Lesion]]:
    """The lesions of each set's record."""
    sets = [
        [lesion for lesion in original.lesions if (lesion.kind == "calcification") is calc]
        for calc in (False, True)
    ]
    return [lesions for lesions in sets if lesions]


def dice(a, b) -> float:
    return 2 * np.sum(a * b) / (np.sum(a) + np.sum(b))


def test_round_trip_of_outlines_and_facts(round_trip):
    originals, paths, root = round_trip
    records, skipped = read(root)
    assert not skipped.reasons
    by_path = {record.file: record for record in records}
    pairs = [(original, lesions) for original in originals for lesions in expected(original)]
    assert len(pairs) == len(paths) == len(records)
    for (original, lesions), path in zip(pairs, paths, strict=True):
        record = by_path[path]
        for fact in ("rows", "cols", "laterality", "view", "density"):
            assert getattr(record, fact) == getattr(original, fact), fact
        assert (record.birads, record.spacing, record.official_split) == (
            original.birads[0],
            None,
            "train",
        )
        for ours, theirs in zip(record.lesions, lesions, strict=True):
            assert (ours.kind, ours.pathology, ours.shape, ours.margin) == (
                theirs.kind,
                theirs.pathology,
                theirs.shape,
                theirs.margin,
            )
            assert (
                dice(ours.mask(record.rows, record.cols), theirs.mask(record.rows, record.cols))
                >= 0.99
            )
            assert ours.box == theirs.box


def test_round_trip_of_pixels(round_trip):
    originals, paths, root = round_trip
    record = next(record for record in cbis_ddsm.read(root) if record.file == paths[0])
    stored = pydicom.dcmread(paths[0]).pixel_array
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(
        np.rint(record.pixels()[..., 0].astype(np.float64) * 65535), stored
    )
    assert np.abs(record.pixels() - originals[0].pixels()).max() <= 0.5 / 65535 + 1e-6


def test_both_sets_of_a_mammogram(small):
    records, skipped = read(small)
    assert not skipped.reasons
    assert [
        ([lesion.kind for lesion in record.lesions], record.view, record.pathology)
        for record in records
    ] == [
        (["calcification"], "MLO", "benign"),
        (["mass"], "CC", "malignant"),
        (["mass"], "MLO", "malignant"),
    ]
    assert len({record.image_id for record in records}) == 3
    assert len({record.patient_id for record in records}) == 1
    assert (records[0].lesions[0].shape, records[0].lesions[0].margin) == ("pleomorphic", None)


@pytest.mark.parametrize("layout", ["nbia", "csv", "series"])
@pytest.mark.parametrize("swapped", [False, True], ids=["straight", "swapped"])
@pytest.mark.parametrize("described", [False, True], ids=["bare", "described"])
def test_masks_are_told_from_crops(tmp_path, layout, swapped, described):
    # A crop of the image's own aspect ratio, so that its size does not give it away.
    band = Lesion.from_outline(
        "mass", np.float32([[15, 11], [15, 32], [44, 32], [44, 11]]), ROWS, COLS
    )
    assert band.box == (15, 11, 45, 33)
    writer.write(
        [mammogram(1, band, SPECKS)], tmp_path, layout=layout, swapped=swapped, described=described
    )
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
    record = read(small)[0][1]
    assert record.lesions[0].box == MASS.box
    mask.unlink()
    with pytest.raises(
        ArchiveError,
        match=r"Mass-Training_P_00001_LEFT_CC_1: has no usable mask \(.*1-1\.dcm: is no mask, it "
        r"says that it is a crop",
    ):
        _ = read(small)[0][1].lesions[0].box


def test_a_described_mask_comes_before_an_undescribed_one_and_the_better_size_first(tmp_path):
    writer.write([mammogram(1)], tmp_path)
    (mask,) = described(tmp_path, "ROI mask")
    pixels = pydicom.dcmread(mask).pixel_array
    first = mask.with_name("0.dcm")
    last = mask.with_name("9.dcm")
    for path in (first, last):
        shutil.copy(mask, path)
        change(path, np.roll(pixels, 5, axis=0), SeriesDescription="")
    assert read(tmp_path)[0][0].lesions[0].box == MASS.box
    mask.unlink()
    change(first, np.kron(pixels, np.ones((2, 2), np.uint8)))
    top, left, bottom, right = MASS.box
    assert read(tmp_path)[0][0].lesions[0].box == (top + 5, left, bottom + 5, right)


@pytest.mark.parametrize("scale", [(2.0, 2.0), (3.0, 3.0), (3.0, 3.02)])
def test_a_larger_mask_of_the_images_shape_is_resampled(tmp_path, scale):
    writer.write([mammogram(1)], tmp_path, mask_scale=scale)
    lesion = read(tmp_path)[0][0].lesions[0]
    assert dice(lesion.mask(ROWS, COLS), MASS.mask(ROWS, COLS)) >= 0.99


def test_resampling_takes_the_nearest_pixel(tmp_path):
    writer.write([mammogram(1)], tmp_path)
    mask = np.zeros((2 * ROWS, 2 * COLS), np.uint8)
    # pixel i's centre is the corner of 2 i and 2 i + 1, of which the second is taken
    mask[21:42, 41:62] = 255
    change(described(tmp_path, "ROI mask")[0], mask)
    assert read(tmp_path)[0][0].lesions[0].box == (10, 20, 21, 31)


def test_a_mask_of_half_the_size(tmp_path):
    writer.write([mammogram(1)], tmp_path, mask_scale=(0.5, 0.5))
    # Every second pixel, from 1, was kept: rows 11, 13, 15, 17 and columns 21 to 29 of the square,
    # each now two wide.
    assert read(tmp_path)[0][0].lesions[0].box == (10, 20, 18, 30)


@pytest.mark.parametrize("scale", [(1.0, 1.5), (1.05, 1.0), (0.5, 0.6)])
def test_a_mask_of_another_shape_is_refused(tmp_path, scale):
    writer.write([mammogram(1)], tmp_path, mask_scale=scale)
    record = read(tmp_path)[0][0]
    assert record.pathology == "malignant"
    size = f"{round(ROWS * scale[0])} x {round(COLS * scale[1])}"
    for _ in range(2):
        with pytest.raises(
            ArchiveError, match=rf"1-2\.dcm: has {size} px, which don't fit the image's 60 x 44"
        ):
            record.lesions[0].mask(ROWS, COLS)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"text"), "is not a DICOM file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "the file ends early"),
        (
            lambda path: change(path, np.zeros((ROWS, COLS), np.uint8)),
            "is a mask that marks nothing",
        ),
        (
            lambda path: change(path, np.full((ROWS, COLS), 255, np.uint8)),
            "is a mask that marks nothing",
        ),
        (
            lambda path: change(path, np.arange(ROWS * COLS).astype(np.uint8).reshape(ROWS, COLS)),
            "it holds more than two grey values",
        ),
        (
            lambda path: change(
                path, np.pad(np.uint8([[1]]), ((1, 2 * ROWS - 2), (0, 2 * COLS - 1)))
            ),
            "marks nothing that is left",
        ),
        (
            lambda path: change(path, SeriesDescription="full mammogram images"),
            "is no mask, it says that it is a full",
        ),
    ],
)
def test_an_unusable_mask_costs_its_lesion_alone(tmp_path, damage, reason):
    writer.write([mammogram(1)], tmp_path)
    record = read(tmp_path)[0][0]
    damage(described(tmp_path, "ROI mask")[0])
    with pytest.raises(ArchiveError, match=rf"LEFT_CC_1: has no usable mask \(.*{reason}"):
        _ = record.lesions[0].outlines
    assert record.pixels().shape == (ROWS, COLS, 1)


def test_indexing_reads_neither_masks_nor_pixels(small, monkeypatch):
    monkeypatch.setattr(
        pydicom.Dataset, "pixel_array", property(lambda dataset: pytest.fail("pixels were read"))
    )
    for path in [*described(small, "ROI mask"), *described(small, "cropped")]:
        path.write_bytes(b"")
    records, skipped = read(small)
    assert (len(records), len(skipped)) == (3, 0)
    assert repr(records)


def test_records_pickle(small):
    record = pickle.loads(pickle.dumps(read(small)[0][1]))
    assert record.lesions[0].box == MASS.box
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(record)).lesions[0].outlines, record.lesions[0].outlines
    )
    assert record.pixels().dtype == np.float32


def test_the_window_is_not_applied(small):
    path = described(small, "full")[1]
    plain = read(small)[0][1].pixels()
    change(path, WindowCenter=500, WindowWidth=100)
    np.testing.assert_array_equal(read(small)[0][1].pixels(), plain)


def test_several_abnormalities_of_one_image(tmp_path):
    other = Lesion.from_outline(
        "mass",
        SQUARE + [25, -10],
        ROWS,
        COLS,
        pathology="benign",
        shape="oval",
        margin="circumscribed",
    )
    writer.write([mammogram(1, other, MASS)], tmp_path)
    edit(tmp_path / MASS_TRAIN, assessment="5")
    (record,), skipped = read(tmp_path)
    assert not skipped.reasons
    assert [lesion.box for lesion in record.lesions] == [other.box, MASS.box]
    assert [lesion.pathology for lesion in record.lesions] == ["benign", "malignant"]
    assert (record.pathology, record.birads) == ("malignant", "5")


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


def test_distortions_and_asymmetries_stand_in_the_mass_set(tmp_path):
    lesions = [
        Lesion.from_outline(kind, SQUARE, ROWS, COLS) for kind in ("distortion", "asymmetry")
    ]
    writer.write([mammogram(1, *lesions)], tmp_path)
    (record,), _ = read(tmp_path)
    assert [(lesion.kind, lesion.shape, lesion.kind_is_certain) for lesion in record.lesions] == [
        ("mass", "architectural_distortion", False),
        ("mass", "focal_asymmetric_density", False),
    ]


@pytest.mark.parametrize(
    ("word", "pathology"),
    [
        ("BENIGN", "benign"),
        ("BENIGN_WITHOUT_CALLBACK", "benign"),
        ("MALIGNANT", "malignant"),
        ("", None),
        ("UNPROVEN", None),
    ],
)
def test_pathologies(small, word, pathology):
    edit(small / MASS_TRAIN, pathology=word)
    record = read(small)[0][2]
    assert (record.pathology, record.lesions[0].pathology) == (pathology, pathology)


def test_density_0_and_blanks_are_none(small):
    edit(small / MASS_TRAIN, breast_density="0", assessment="")
    record = read(small)[0][2]
    assert (record.density, record.birads) == (None, None)


def test_official_splits_and_a_patient_who_leaks(tmp_path):
    writer.write(
        [
            mammogram(1, official_split="train"),
            mammogram(2, SPECKS, view="MLO", official_split="test"),
        ],
        tmp_path,
    )
    leaking, training = read(tmp_path)[0]
    assert (leaking.official_split, training.official_split) == ("test", "train")
    assert leaking.patient_id == training.patient_id


def test_patients_and_images_are_pseudonyms(small):
    records, _ = read(small)
    for identifier in {record.patient_id for record in records} | {
        record.image_id for record in records
    }:
        assert len(identifier) == 12 and int(identifier, 16) >= 0
    rows = cbis_ddsm.tables(small)
    assert all("P_0" not in row.image["patient_id"] for row in rows)


def test_masses_alone(small):
    (small / "calc_case_description_train_set.csv").unlink()
    records, skipped = read(small)
    assert [record.lesions[0].kind for record in records] == ["mass", "mass"]
    ((file, reason),) = skipped.reasons.items()
    assert "Calc-Training_P_00001_LEFT_MLO" in file
    assert reason == "it and 2 further DICOM files belong to no row of the tables"


def test_images_that_were_not_downloaded_share_one_note(tmp_path):
    writer.write([mammogram(number, patient=f"p{number}") for number in range(5)], tmp_path)
    for number in (2, 3, 5):
        shutil.rmtree(tmp_path / "CBIS-DDSM" / f"Mass-Training_P_{number:05d}_LEFT_CC")
    records, skipped = read(tmp_path)
    assert len(records) == 2
    assert "3 of its 5 rows name images that are not here" in skipped.reasons[MASS_TRAIN]


def test_a_mask_that_was_not_downloaded_is_counted_and_refused(small):
    shutil.rmtree(small / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_CC_1")
    records, skipped = read(small)
    assert skipped.reasons == {
        MASS_TRAIN: "1 of its 2 rows name an image that is here and a mask that is not"
    }
    with pytest.raises(
        ArchiveError, match="LEFT_CC_1: has no usable mask \\(none of its files is here"
    ):
        _ = records[1].lesions[0].box


def test_tables_need_no_images(small):
    shutil.rmtree(small / "CBIS-DDSM")
    calc, mass, other = cbis_ddsm.tables(small)
    assert (calc.kind, mass.kind, mass.lesion_folder) == (
        "calcification",
        "mass",
        "Mass-Training_P_00001_LEFT_CC_1",
    )
    assert all(
        row.split == "train" and not any("\n" in path for path in row.paths)
        for row in (calc, mass, other)
    )
    with pytest.raises(
        ArchiveError,
        match="holds no image of CBIS-DDSM that can be read",
    ):
        cbis_ddsm.read(small)


def test_a_tree_at_any_depth_and_through_links(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("other")
    for table in small.glob("*.csv"):
        shutil.copy(table, root / table.name.upper())
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "manifest").symlink_to(small / "CBIS-DDSM")
    (root / "a" / "again").symlink_to(root)
    (root / "a" / "up").symlink_to(root / "a")
    (small / "CBIS-DDSM" / "._1-1.dcm").write_bytes(b"macOS")
    records, skipped = read(root)
    assert len(records) == 3
    assert not skipped.reasons


def test_a_uid_that_two_rows_claim_is_nobodys(tmp_path):
    writer.write([mammogram(1), mammogram(2, view="MLO")], tmp_path, layout="series")
    first, _ = cbis_ddsm.tables(tmp_path)
    edit(tmp_path / MASS_TRAIN, ROI_mask_file_path=first.paths[2])
    records, skipped = read(tmp_path)
    assert len(records) == 2
    assert (
        skipped.reasons.pop(MASS_TRAIN)
        == "1 of its 2 rows name an image that is here and a mask that is not"
    )
    assert list(skipped.reasons.values()) == [
        "it and 1 further DICOM files belong to no row of the tables"
    ]
    assert records[1].lesions[0].box == MASS.box  # by its crop's path, which lies beside the mask


def test_a_second_copy_of_an_image_is_noted(small):
    shutil.copytree(
        small / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_CC",
        small / "more" / "Mass-Training_P_00001_LEFT_CC",
    )
    shutil.copy(small / MASS_TRAIN, small / "more" / MASS_TRAIN)
    records, skipped = read(small)
    assert len(records) == 3
    assert skipped.reasons.pop(f"more/{MASS_TRAIN}") == "is a second table of its name"
    ((file, reason),) = skipped.reasons.items()
    assert file.startswith("more/") and reason == "is a second file of the same image"


def test_a_crop_among_the_mammograms_is_noted(small):
    image = described(small, "full")[1]
    crop = described(small, "cropped")[1]
    shutil.copy(crop, image.with_name("1-0.dcm"))
    records, skipped = read(small)
    assert (records[1].rows, records[1].cols) == (ROWS, COLS)
    assert list(skipped.reasons.values()) == [
        "says that it is a crop, but lies among the mammograms"
    ]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"text"), "is not a DICOM file"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "the file ends early"),
        (lambda path: change(path, NumberOfFrames=2), "holds 2 frames, not one image"),
    ],
)
def test_an_unreadable_image_is_noted_and_the_others_stay(small, damage, reason):
    damage(described(small, "full")[1])
    records, skipped = read(small)
    assert len(records) == 2
    ((file, noted),) = skipped.reasons.items()
    assert "Mass-Training_P_00001_LEFT_CC" in file and noted.startswith(reason)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"patient_id": "=cmd()"}, "its patient_id is not of the form P_00001"),
        ({"patient_id": "P_1/../../x"}, "its patient_id is not of the form P_00001"),
        (
            {"left_or_right_breast": "BOTH"},
            "its side is neither LEFT nor RIGHT or its view neither CC nor MLO",
        ),
        ({"image_view": ""}, "its side is neither LEFT nor RIGHT or its view neither CC nor MLO"),
        ({"abnormality_id": "one"}, "its abnormality id is no number"),
        ({"abnormality_id": "9" * 5000}, "its abnormality id is no number"),
        ({"image_view": "CC"}, "it repeats another's image and abnormality"),
    ],
)
def test_damaged_rows_of_a_table_share_one_note(small, values, reason):
    edit(small / MASS_TRAIN, **values)
    records, skipped = read(small)
    assert [record.view for record in records] == ["MLO", "CC"]
    assert (
        skipped.reasons.pop(MASS_TRAIN) == f"1 of its 2 rows left out, the first is row 2: {reason}"
    )
    assert list(skipped.reasons.values()) == [
        "it and 2 further DICOM files belong to no row of the tables"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no column patient_id, breast_density"),
        (b"PK\x03\x04\xff\xfe", "has no column patient_id, breast_density"),
        (
            b"patient_id,pathology\nP_00001,BENIGN\n",
            "has no column breast_density, left_or_right_breast",
        ),
        (b'"' + b"x" * 200_000, "can't be read as CSV"),
    ],
)
def test_a_damaged_table_is_noted(small, content, reason):
    (small / MASS_TRAIN).write_bytes(content)
    records, skipped = read(small)
    assert [record.lesions[0].kind for record in records] == ["calcification"]
    assert skipped.reasons[MASS_TRAIN].startswith(reason)


def test_a_table_that_ends_in_the_middle_of_a_row(small):
    path = small / MASS_TRAIN
    path.write_bytes(path.read_bytes()[:-200])
    assert len(read(small)[0]) == 3  # the paths are lost, the folders' names suffice


def test_what_is_no_archive(tmp_path):
    for function in (cbis_ddsm.read, cbis_ddsm.tables):
        with pytest.raises(ArchiveError, match=rf"{tmp_path}: is no CBIS-DDSM archive"):
            function(tmp_path)
    (tmp_path / MASS_TRAIN).write_text("a,b\n1,2\n")
    with pytest.raises(
        ArchiveError,
        match=f"no table has a readable row, {MASS_TRAIN}: has no column",
    ):
        cbis_ddsm.read(tmp_path)


def test_the_writer_refuses_two_mammograms_of_one_view(tmp_path):
    with pytest.raises(
        ValueError,
        match="Mass-Training_P_00001_LEFT_CC: two mammograms of one patient, side and view",
    ):
        writer.write([mammogram(1), mammogram(2)], tmp_path)


def test_the_writer_leaves_normal_mammograms_out(tmp_path):
    normal = make_mammogram(0, ramp(0), patient_id="aa")
    paths = writer.write([normal, mammogram(1, view="MLO")], tmp_path)
    assert [record.view for record in read(tmp_path)[0]] == ["MLO"]
    assert len(paths) == 1


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
