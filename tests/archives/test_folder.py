"""tfmammo.archives.folder on folders as a group might have them, written to disk."""

import json
import logging
import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as cocotools
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from tests.archives.writers import folder as writer
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo.archives import coco, folder, phantom, pictures
from tfmammo.archives.stored import unused_range
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.data.sampling import is_normal
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Mammogram, MaskedLesion, Skipped, hash_id

MASS = Lesion.from_outline(
    "mass", SQUARE, ROWS, COLS, pathology="malignant", shape="oval", margin="spiculated"
)
CLUSTER = Lesion.from_outline("calcification", SQUARE + [30, -18], ROWS, COLS, pathology="benign")


def mammogram(number: int, lesions=(), **facts) -> Mammogram:
    known = {"spacing": (0.07, 0.05), "birads": "4b", "density": "2"}
    return make_mammogram(number, ramp(number / 10), lesions, **known | facts)


def read(root: Path) -> tuple[list[Mammogram], dict[str, str]]:
    skipped = Skipped()
    return folder.read(root, skipped), skipped.reasons


def picture(path: Path, pixels, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


GREY = np.arange(ROWS * COLS, dtype=np.uint16).reshape(ROWS, COLS)  # 0 to 2639
BYTE = (GREY % 256).astype(np.uint8)
REGION = np.zeros((ROWS, COLS), np.uint8)
REGION[10:19, 20:31] = 255


@pytest.fixture
def small(tmp_path):
    """a.png with a mask, b.png without, both of 8 bits, and a table that names their patients."""
    picture(tmp_path / "images" / "a.png", BYTE)
    picture(tmp_path / "images" / "b.png", BYTE)
    picture(tmp_path / "masks" / "a.png", REGION)
    table(tmp_path, "file,patient", "a.png,p1", "b.png,p2")
    return tmp_path


def table(root: Path, *lines: str, encoding: str = "utf-8") -> None:
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding=encoding)


def annotate(root: Path, *annotations: dict, **changes) -> None:
    """annotations.json in place of masks: image 1 is a.png, 2 is b.png."""
    (root / "masks" / "a.png").unlink(missing_ok=True)
    if (root / "masks").exists():
        (root / "masks").rmdir()
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.png", "height": ROWS, "width": COLS}
            for i, name in ((1, "a"), (2, "b"))
        ],
        "categories": [
            {"id": 1, "name": "mass"},
            {"id": 2, "name": "Calcifications"},
            {"id": 3, "name": "nipple"},
        ],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1} | annotation
            for i, annotation in enumerate(annotations, 1)
        ],
    }
    (root / "annotations.json").write_text(json.dumps(content | changes), encoding="utf-8")


POLYGON = (SQUARE[:, ::-1] + 0.5).ravel().tolist()


def test_round_trip_in_all_forms(tmp_path):
    originals = [
        mammogram(1, [MASS, CLUSTER], pathology="malignant"),
        mammogram(2, [CLUSTER], view="MLO", official_split="test"),
    ]
    originals += [mammogram(3, laterality="R", pathology="normal", spacing=None, birads=None)]
    for form in ("masks", "polygons", "rle", "boxes"):
        root = tmp_path / form
        writer.write(originals, root, annotations=form)
        records, reasons = read(root)
        assert not reasons
        assert len({record.patient_id for record in records}) == 3
        for original, record in zip(originals, records, strict=True):
            assert record.archive == "folder"
            for fact in (
                "rows",
                "cols",
                "laterality",
                "view",
                "spacing",
                "pathology",
                "birads",
                "density",
                "official_split",
            ):
                assert getattr(record, fact) == getattr(original, fact), (form, fact)
            for ours, theirs in zip(record.lesions, original.lesions, strict=True):
                assert (ours.kind, ours.box, ours.kind_is_certain) == (
                    theirs.kind,
                    theirs.box,
                    True,
                )
                if form == "masks":
                    assert (ours.pathology, ours.shape, ours.margin) == (
                        theirs.pathology,
                        theirs.shape,
                        theirs.margin,
                    )
                if form != "boxes":
                    np.testing.assert_array_equal(ours.mask(ROWS, COLS), theirs.mask(ROWS, COLS))


@pytest.mark.parametrize(
    ("ending", "bits"),
    [
        (".png", 8),
        (".png", 12),
        (".png", 16),
        (".tif", 8),
        (".tif", 14),
        (".pgm", 8),
        (".pgm", 12),
        (".pgm", 16),
        (".bmp", 8),
    ]
    + [(".dcm", 8), (".dcm", 12), (".dcm", 16), (".png", 10)],
)
def test_round_trip_of_pixels(tmp_path, ending, bits):
    original = mammogram(1)
    writer.write([original], tmp_path, ending=ending, bits=bits)
    (record,), reasons = read(tmp_path)
    assert not reasons
    image = record.pixels()
    assert image.dtype == np.float32
    full = 2**bits - 1
    np.testing.assert_array_equal(
        np.rint(image.astype(np.float64) * full),
        np.rint(original.pixels().astype(np.float64) * full),
    )
    assert (record.laterality, record.view, record.spacing) == ("L", "CC", (0.07, 0.05))


def test_round_trip_of_the_phantom(tmp_path):
    (original,) = phantom.read(count=1, seed=3)
    writer.write([original], tmp_path, annotations="masks")
    (record,), _ = read(tmp_path)
    pixels, expected = (
        np.rint(image.pixels().astype(np.float64) * 65535) for image in (record, original)
    )
    np.testing.assert_array_equal(pixels, expected)
    for ours, theirs in zip(record.lesions, original.lesions, strict=True):
        a = ours.mask(1024, 832)
        b = theirs.mask(1024, 832)
        assert 2 * np.sum(a * b) / (a.sum() + b.sum()) >= 0.99
        assert (ours.kind, ours.box, ours.pathology) == (theirs.kind, theirs.box, theirs.pathology)


def test_records_are_pickled_and_carry_pseudonyms(small, caplog):
    table(small, "file,patient", "a.png,Jane Roe", "b.png,4711")
    records, _ = read(small)
    again = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal(again[0].pixels(), records[0].pixels())
    np.testing.assert_array_equal(again[0].lesions[0].mask(ROWS, COLS), REGION // 255)
    assert [record.image_id for record in records] == [
        hash_id("folder", "a"),
        hash_id("folder", "b"),
    ]
    assert "Jane" not in repr(records) + caplog.text and "4711" not in repr(records) + caplog.text


# Patients


def test_without_patients_all_images_are_one_and_the_log_says_so(small, caplog):
    for lines in (("file,view", "a.png,CC"), ("file,patient", "a.png,", "b.png,")):
        table(small, *lines)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            records, reasons = read(small)
        assert [record.patient_id for record in records] == [hash_id("folder", "")] * 2
        assert not reasons
        (message,) = caplog.messages
        assert "names no patients, so all images count as one and can't be split" in message


def test_an_image_without_a_patient_among_others_is_left_out(small, caplog):
    for lines in (("a.png,p1",), ("a.png,p1", "b.png,")):
        table(small, "file,patient", *lines)
        records, reasons = read(small)
        assert [record.image_id for record in records] == [hash_id("folder", "a")]
        assert reasons == {
            "images/*": "1 images without a patient in metadata.csv, which might be in both "
            "subsets of a split"
        }
    assert not caplog.messages


def test_patients_that_differ_in_case_are_one(small):
    table(small, "file,patient", "a.png,p1", "b.png, P1 ")
    assert len({record.patient_id for record in read(small)[0]}) == 1


@pytest.mark.parametrize("others", ["12.0", "0012", " 12", "1.2E+01"])
def test_one_number_is_one_patient_and_the_log_speaks_of_leading_zeros(small, caplog, others):
    table(small, "file,patient", "a.png,12", f"b.png,{others}")
    with caplog.at_level(logging.WARNING):
        records, reasons = read(small)
    assert len(records) == 2 and not reasons
    assert {record.patient_id for record in records} == {hash_id("folder", "12")}
    assert len(caplog.messages) == (others == "0012")


def test_a_number_of_a_patient_without_its_last_digits_is_refused(small):
    table(small, "file,patient", "a.png,1.23457E+12", "b.png,p2")
    with pytest.raises(ArchiveError, match="row 2, patient: is a number that lost digits"):
        read(small)


# The table


def test_all_columns(small):
    columns = (
        "file;patient;laterality;view;pathology;kind;shape;margin;birads;density;spacing;split;bits"
    )
    table(
        small,
        columns,
        "images\\a.png;p1;left;mlo;Malignant;Calcifications;ROUND;Obscured;5;c;0,1 x 0,05;Test;8",
        "b;p2;;;;;;;;;0.1;;",
    )
    (record, other), reasons = read(small)
    assert not reasons
    assert (record.laterality, record.view, record.pathology, record.birads) == (
        "L",
        "MLO",
        "malignant",
        "5",
    )
    assert (record.density, record.spacing, record.official_split, other.spacing) == (
        "c",
        (0.1, 0.05),
        "test",
        (0.1, 0.1),
    )
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.shape, lesion.margin, lesion.pathology, lesion.kind_is_certain) == (
        "calcification",
        "round",
        "obscured",
        "malignant",
        True,
    )


def test_a_table_as_a_spreadsheet_writes_it(small):
    table(
        small,
        "File\tPatient\tAnna K.\tPatholgy\t",
        "a.png\tp1\t50\tbenign\t",
        "\t\t\t\t",
        "b.png\tp2\t51\tbenign\t",
        "c.png\tp3\t52\tbenign\t",
        encoding="utf-8-sig",
    )
    records, reasons = read(small)
    assert len(records) == 2
    assert reasons["metadata.csv"].startswith(
        "unknown columns are ignored: number 3, 4 (pathology?); known are file, patient"
    )
    assert reasons["metadata.csv"].endswith("1 of its 3 files are no image or mask here")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("patient", "p1"), "has no column file"),
        (("file,file", "a,b"), "its first line must name every column once"),
        (("",), "has no column file"),
        (("file,view", "a.png"), "row 2 has 1 cells, the first line 2"),
        (("file,spacing", "a.png,0"), "row 2, spacing: is no spacing in mm"),
        (("file,spacing", "a.png,wide"), "row 2, spacing: is no spacing in mm"),
        (("file,spacing", "a.png,1 x 2 x 3"), "row 2, spacing: is no spacing in mm"),
        (("file,bits", "a.png,17"), "row 2, bits: is no number of bits from 1 to 16"),
        (("file,bits", "a.png,12.5"), "row 2, bits: is no number of bits from 1 to 16"),
        (("file,patient", ",p1"), "row 2, file: is blank"),
        (("file,patient", "a.png,p1", "images/a.png,p2"), "row 3 is a second one of its file"),
        (("file,patient", '"a.png,p1'), r"can't be read as CSV in UTF-8 \(Error\)"),
    ],
)
def test_a_wrong_table_is_refused(small, lines, reason):
    table(small, *lines)
    with pytest.raises(ArchiveError, match=f"metadata.csv: {reason}") as caught:
        folder.read(small)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("view", "XCCL", "XCCL"),
        ("view", "ml", "ML"),
        ("view", "FB", "FB"),
        ("view", "SIO", "SIO"),
        ("view", "RMLO", "MLO"),
        ("view", "Medio-lateral oblique", "MLO"),
        ("view", "nan", None),
        ("view", "spot", None),
        ("laterality", "LEFT", "L"),
        ("laterality", "both", None),
        ("pathology", "nan", None),
        ("pathology", "Cancer", "malignant"),
        ("pathology", "BENIGN_WITHOUT_CALLBACK", "benign"),
        ("pathology", "unknown", None),
        ("density", "2.0", "2"),
        ("density", "B", "B"),
        ("birads", "4.0", "4"),
        ("birads", "4b", "4b"),
        ("birads", "None", None),
        ("split", "Training", "train"),
        ("split", "val", None),
        ("bits", "8.0", 8),
        ("spacing", "nan", None),
    ],
)
def test_an_odd_cell_costs_nothing_but_itself(small, column, cell, expected):
    """What is not known counts as not stated, and is counted without a word of it."""
    (small / "masks" / "a.png").unlink()
    table(small, f"file,patient,{column}", f"a.png,p1,{cell}", "b.png,p2,")
    records, reasons = read(small)
    name = {"split": "official_split"}.get(column, column)
    assert len(records) == 2 and getattr(records[0], name) == (
        expected or (8 if name == "bits" else None)
    )
    is_said = expected is None and cell.lower() not in ("nan", "none")
    assert ("metadata.csv" in reasons) == is_said
    assert cell not in str(reasons) or cell == "val"


def test_a_kind_that_is_not_known_loses_the_mask_alone(small):
    picture(small / "masks" / "a_1.png", REGION)
    picture(small / "masks" / "a_2.png", REGION)
    kinds = ("a.png,p1,mass", "a_1.png,,hedgehog", "a_2.png,,lymph node", "b.png,p2,")
    table(small, "file,patient,kind", *kinds)
    records, reasons = read(small)
    assert [lesion.kind for lesion in records[0].lesions] == ["mass"]
    assert records[0].lost == (Lost(),)
    assert reasons["metadata.csv"] == "1 words of kind are not known and count as not stated"
    assert reasons["images/*"] == "1 masks of findings that are no lesions of ours"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_all_forms(small, encoding, separator, end):
    lines = ("file,patient,view", "a.png,\u00c4nne,MLO", "b.png,0012,", ",,")
    text = end.join(line.replace(",", separator) for line in lines)
    (small / "metadata.csv").write_bytes(text.encode(encoding))
    records, reasons = read(small)
    assert [record.patient_id for record in records] == [
        hash_id("folder", "\u00e4nne"),
        hash_id("folder", "12"),
    ]
    assert records[0].view == "MLO" and not reasons


def test_a_table_in_another_encoding_is_refused(small):
    table(small, "file,patient", "a.png,Müller", encoding="latin-1")
    with pytest.raises(
        ArchiveError, match=r"metadata.csv: can't be read as CSV in UTF-8 \(UnicodeDecodeError\)"
    ):
        folder.read(small)


OUTSIDE = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b.png",
    "..\\..\\b.png",
    "C:\\b.png",
    "images/../../a.png",
    "a\x00.png",
]


@pytest.mark.parametrize("name", OUTSIDE[:-1])
def test_the_table_can_not_name_a_file_outside(small, name):
    table(small, "file,patient", f"{name},p1")
    with pytest.raises(
        ArchiveError, match=r"metadata.csv: row 2, file: the file name .* leads out of the folder"
    ):
        folder.read(small)


@pytest.mark.parametrize("name", OUTSIDE)
def test_coco_can_not_name_a_file_outside(small, name):
    """Only the name's last part is compared, with the files that are here."""
    annotate(small, images=[{"id": 1, "file_name": name, "height": ROWS, "width": COLS}])
    base = re.split(r"[/\\]", name)[-1]
    if base in ("a.png", "b.png"):
        (record,) = folder.read(small)
        assert record.file == small / "images" / base
    else:
        with pytest.raises(ArchiveError, match="1 of its 1 images are missing"):
            folder.read(small)


@pytest.mark.parametrize(
    ("name", "is_said"),
    [
        ("a.png", False),
        ("images/a.png", False),
        (r"images\4/a.png", True),
        (r"..\..\label-studio\media\upload\4\a.png", True),
        ("../../label-studio/data/media/upload/4/a.png", True),
        ("/data/local-files/?d=shots/a.png", True),
        ("http://host/data/upload/4/0af51c22-a.png", True),
        ("0af51c22-a.png", True),
        ("s3://bucket/a%2Epng", True),
    ],
)
def test_label_studios_names(small, name, is_said):
    image = {"id": 1, "file_name": name, "height": ROWS, "width": COLS}
    annotate(small, {"bbox": [1, 1, 2, 2]}, images=[image])
    (record,), reasons = read(small)
    assert record.file == small / "images" / "a.png" and len(record.lesions) == 1
    assert ("annotations.json" in reasons) == is_said


def test_a_name_of_several_images_is_missing_and_stops_no_other(small):
    picture(small / "images" / "left" / "b.png", BYTE)
    table(small, "file,patient", "a.png,p1", "b.png,p2", "left/b.png,p2")
    images = [
        {"id": 1, "file_name": "upload/1/a.png", "height": ROWS, "width": COLS},
        {"id": 2, "file_name": "upload/2/b.png", "height": ROWS, "width": COLS},
    ]
    annotate(small, {"bbox": [1, 1, 2, 2]}, images=images)
    (record,), reasons = read(small)
    assert record.file == small / "images" / "a.png"
    assert "1 of its 2 images are missing" in reasons["annotations.json"]


def test_rows_of_images_in_another_folder(small):
    picture(small / "images" / "left" / "c.png", BYTE)
    picture(small / "images" / "left" / "d.png", BYTE)
    lines = ("a.png,p1", "export/b.png,p2", "c.png,p3", "right/d.png,p4")
    table(small, "file,patient", *lines)
    records, reasons = read(small)
    found = {record.file.name: record.patient_id for record in records}
    # right/d.png is not left/d.png
    assert found == {
        f"{n}.png": hash_id("folder", p) for n, p in zip("abc", ("p1", "p2", "p3"), strict=True)
    }
    assert "2 of its files are matched" in reasons["metadata.csv"]


# DICOM without a suffix


@pytest.mark.parametrize(
    "name", ["PAT00000/STU00000/IMG00000", "1.2.826.0.1.3680043.8.498.7", "a.ima", "a.DCM"]
)
def test_bytes_tell_a_dicom(tmp_path, name):
    stored = np.arange(ROWS * COLS, dtype=np.uint16).reshape(ROWS, COLS)
    write_dicom(tmp_path / "images" / name, stored, 12, ImageLaterality="L")
    other = "1.2.826.0.1.3680043.8.498.8"  # differs behind the last point alone
    write_dicom(tmp_path / "images" / other, stored, 12)
    (tmp_path / "images" / "README").write_text("not an image")
    records, reasons = read(tmp_path)
    files = {record.file.relative_to(tmp_path / "images").as_posix() for record in records}
    assert files == {name, other} and len({record.image_id for record in records}) == 2
    np.testing.assert_array_equal(np.rint(records[0].pixels()[..., 0] * 4095), stored)
    assert list(reasons) == ["images/*"] and reasons["images/*"].startswith("1 files")
    one = folder.read_one(tmp_path / "images" / other)
    assert one.rows == ROWS and one.image_id in {record.image_id for record in records}


@pytest.mark.parametrize("is_implicit", [True, False])
@pytest.mark.parametrize("name", ["a", "a.dcm"])
def test_a_dicom_without_the_head_of_part_10(tmp_path, name, is_implicit):
    stored = np.arange(ROWS * COLS, dtype=np.uint16).reshape(ROWS, COLS)
    path = tmp_path / "images" / name
    write_dicom(path, stored, 12, ImageLaterality="R", ViewPosition="MLO")
    dataset = pydicom.dcmread(path)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = is_implicit, True
    write_dataset(buffer, Dataset(dataset))
    path.write_bytes(buffer.getvalue())
    assert folder.is_dicom(path)
    (record,) = read(tmp_path)[0]
    assert (record.laterality, record.view) == ("R", "MLO")
    np.testing.assert_array_equal(np.rint(record.pixels()[..., 0] * 4095), stored)


# Masks


def test_a_mask_without_a_kind_is_an_uncertain_mass(small):
    (record, other), reasons = read(small)
    (lesion,) = record.lesions
    assert isinstance(lesion, MaskedLesion)
    assert (lesion.kind, lesion.kind_is_certain, lesion.box, lesion.pathology) == (
        "mass",
        False,
        (10, 20, 19, 31),
        None,
    )
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), REGION // 255)
    assert other.lesions == ()
    assert not reasons


def test_several_masks_stand_in_the_order_of_their_numbers_with_rows_of_their_own(small):
    for name, row in (("a_10", 40), ("a_2", 30)):
        region = np.zeros_like(REGION)
        region[row, 5:9] = 1
        picture(small / "masks" / f"{name}.png", region)
    lines = (
        "a.png,p1,malignant,mass,round",
        "b.png,p2,,,",
        "masks/a_2.png,,benign,asymmetry,oval",
        "a_10.png,,,,",
    )
    table(small, "file,patient,pathology,kind,shape", *lines)
    (record, _), reasons = read(small)
    assert not reasons
    assert [
        (lesion.box[0], lesion.kind, lesion.pathology, lesion.shape) for lesion in record.lesions
    ] == [
        (10, "mass", None, None),
        (30, "asymmetry", "benign", "oval"),
        (40, "mass", None, None),
    ]


def test_what_an_image_s_row_says_of_several_lesions(small):
    picture(small / "masks" / "a_2.png", REGION)
    table(small, "file,patient,pathology,shape", "a.png,p1,benign,round", "b.png,p2,,")
    (record, _), _ = read(small)
    assert [(lesion.pathology, lesion.shape) for lesion in record.lesions] == [("benign", None)] * 2


def test_parts_of_a_mask_are_one_lesion(small):
    region = REGION.copy()
    region[50:55, 1:4] = 255
    picture(small / "masks" / "a.png", region)
    (lesion,) = read(small)[0][0].lesions
    assert lesion.box == (10, 1, 55, 31)
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), region > 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_all_modes(small, mode):
    pixels = REGION.astype(np.uint16) * 100 if mode == "I;16" else REGION
    picture(small / "masks" / "a.png", pixels, None if mode == "I;16" else mode)
    with Image.open(small / "masks" / "a.png") as image:
        assert image.mode == mode
    np.testing.assert_array_equal(read(small)[0][0].lesions[0].mask(ROWS, COLS), REGION // 255)


def test_a_coloured_mask_and_a_transparent_one(small):
    colours = np.zeros((ROWS, COLS, 4), np.uint8)
    colours[..., 3] = 255
    colours[10:19, 20:31, 0] = 9
    colours[50:, :, :] = (255, 255, 255, 0)  # white, but not there
    picture(small / "masks" / "a.png", colours)
    np.testing.assert_array_equal(read(small)[0][0].lesions[0].mask(ROWS, COLS), REGION // 255)


def test_a_jpeg_mask_is_cut_in_the_middle(small):
    (small / "masks" / "a.png").unlink()
    path = picture(small / "masks" / "a.jpg", REGION, quality=40)
    with Image.open(path) as image:
        # ringing, that must not count
        assert np.count_nonzero(np.asarray(image)) > 1.2 * np.count_nonzero(REGION)
    mask = read(small)[0][0].lesions[0].mask(ROWS, COLS)
    assert 2 * np.sum(mask * (REGION > 0)) / (mask.sum() + np.sum(REGION > 0)) > 0.97


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros_like(REGION), r"masks/a.png: marks nothing"),
        (REGION.astype(np.float32), r"masks/a.tif: its pixels \(F\) are not of 8 or 16 bits"),
        (REGION.T, r"masks/a.png: has 44 x 60 px, its image 60 x 44"),
        (None, r"masks/a.png: can't be read as an image \(UnidentifiedImageError\)"),
        (b"cut", r"masks/a.png: can't be read as an image \(OSError\)"),
    ],
)
def test_a_bad_mask_is_an_error_when_it_is_wanted(small, pixels, reason):
    path = small / "masks" / "a.png"
    if isinstance(pixels, np.ndarray):
        path.unlink()
        picture(path.with_suffix(".tif") if pixels.dtype == np.float32 else path, pixels)
    else:
        path.write_bytes(b"text" if pixels is None else path.read_bytes()[:70])
    (lesion,) = read(small)[0][0].lesions
    for use in (lambda: lesion.box, lambda: lesion.outlines, lambda: lesion.mask(ROWS, COLS)):
        with pytest.raises(ArchiveError, match=reason):
            use()


@pytest.fixture
def nothing_said():
    """Odd files are spoken of once in a process."""
    pictures._advised.clear()


@pytest.mark.usefixtures("nothing_said")
def test_a_resampled_mask_is_cut_at_half_and_that_is_said_once(small, caplog):
    grey_rim = np.zeros((ROWS, COLS), np.uint8)
    # two px of rim below the half
    grey_rim[10:30, 5:25] = 60
    grey_rim[11:29, 6:24] = 127
    grey_rim[12:28, 7:23] = 255
    for name in ("a.png", "b.png"):
        picture(small / "masks" / name, grey_rim)
    with caplog.at_level(logging.WARNING):
        one, other = read(small)[0]
        assert one.lesions[0].box == other.lesions[0].box == (12, 7, 28, 23)
    assert [record.getMessage() for record in caplog.records] == [
        "some masks have more than two grey values and are cut at half of the highest: "
        "resampled, or JPEG"
    ]


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 7), (40, 200)])
@pytest.mark.usefixtures("nothing_said")
def test_of_two_values_the_higher_is_the_lesion(small, caplog, values):
    picture(small / "masks" / "a.png", np.where(REGION > 0, values[1], values[0]).astype(np.uint8))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read(small)[0][0].lesions[0].mask(ROWS, COLS), REGION // 255)
    assert not caplog.records


@pytest.mark.usefixtures("nothing_said")
def test_values_that_use_little_of_16_bits_are_spoken_of_once(tmp_path, caplog):
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png", GREY + np.uint16(1400))  # up to 4039
    table(tmp_path, "file,patient", "a.png,p", "b.png,q")
    with caplog.at_level(logging.WARNING):
        for record in folder.read(tmp_path):
            record.pixels()
    assert [record.getMessage() for record in caplog.records] == [
        "some images: values use 6 % of 16 bits; state bits=12 in metadata.csv"
    ]
    table(tmp_path, "file,patient,bits", "a.png,p,12", "b.png,q,12")
    caplog.clear()
    pictures._advised.clear()
    with caplog.at_level(logging.WARNING):
        for record in folder.read(tmp_path):
            record.pixels()
    assert not caplog.records


@pytest.mark.parametrize(
    ("highest", "full", "said"),
    [
        (4095, 65535, "6 % of 16 bits; state bits=12"),
        (16383, 65535, "25 % of 16 bits; state bits=14"),
        (200, 65535, "0 % of 16 bits"),
        (16384, 65535, None),
        (65535, 65535, None),
        (255, 255, None),
        (10, 255, None),
        (1000, 4095, None),
        (0, 65535, None),
    ],
)
def test_when_a_range_is_called_unused(highest, full, said):
    advice = unused_range(highest, full)
    assert advice is None if said is None else said in advice


def test_spellings_of_one_patient_and_of_one_file_are_one(small):
    for name in ("a", "b"):
        (small / "images" / f"{name}.png").unlink()
    (small / "masks" / "a.png").unlink()
    composed = "m\u00fcller"
    decomposed = "mu\u0308ller"
    for number, name in enumerate((composed, "c", "d", "e")):
        picture(small / "images" / f"{name}.png", BYTE + np.uint8(number))
    table(
        small,
        "file,patient",
        f"{decomposed}.png,M\u00dcLLER",
        f"c\u200b.png,{decomposed}",
        "d.png,m\u00fc\u00adller\ufeff",
        "e.png,\u200b",
    )
    records, reasons = read(small)
    assert len(records) == 3 and len({record.patient_id for record in records}) == 1, (
        "e is of nobody, whatever it looks like"
    )
    assert hash_id("folder", composed) in {record.image_id for record in records}
    assert list(reasons) == ["images/*"]


def test_a_file_twice_in_two_spellings_is_read_once(small):
    for name in ("m\u00fcller", "mu\u0308ller"):
        picture(small / "images" / f"{name}.png", BYTE)
    _, reasons = read(small)
    assert [reason for reason in reasons.values() if "same name" in reason] == [
        "another file has the same name and another ending or spelling"
    ]


def test_unkeyed_pseudonyms_of_patients_are_spoken_of(small, caplog, monkeypatch):
    monkeypatch.delenv("TFMAMMO_ID_KEY", raising=False)
    folder._speak_of_unkeyed_pseudonyms.cache_clear()
    with caplog.at_level(logging.INFO, "tfmammo"):
        folder.read(small)
        folder.read(small)
    assert caplog.text.count("hashes without a key") == 1 and "set TFMAMMO_ID_KEY" in caplog.text
    folder._speak_of_unkeyed_pseudonyms.cache_clear()
    caplog.clear()
    monkeypatch.setenv("TFMAMMO_ID_KEY", "a secret")
    with caplog.at_level(logging.INFO, "tfmammo"):
        folder.read(small)
    assert "without a key" not in caplog.text


def test_masks_of_normal_images_are_not_looked_at(small):
    picture(small / "masks" / "a.png", np.zeros_like(REGION))
    table(small, "file,patient,pathology", "a.png,p1,normal", "b.png,p2,normal")
    records, reasons = read(small)
    assert [(record.pathology, record.lesions) for record in records] == [("normal", ())] * 2
    assert reasons == {
        "images/*": "1 masks of images that the table calls normal were not looked at"
    }


def test_a_mask_of_no_image_is_noted(small):
    picture(small / "masks" / "z_1.png", REGION)
    _, reasons = read(small)
    assert reasons == {
        "masks/z_1.png": "is a mask of no image: none has its name, with or without a number at "
        "the end"
    }


def test_a_mask_named_like_an_image_belongs_to_that_image(small):
    picture(small / "images" / "a_1.png", BYTE)
    picture(small / "masks" / "a_1.png", REGION)
    table(small, "file,patient", "a.png,p1", "a_1.png,p1", "b.png,p2")
    assert [len(record.lesions) for record in read(small)[0]] == [1, 1, 0]


def test_images_in_folders(small):
    picture(small / "images" / "left" / "a.png", BYTE)
    picture(small / "masks" / "left" / "a_1.png", REGION)
    table(small, "file,patient,view", "a.png,p1,CC", "left/a.png,p1,MLO", "b.png,p2,")
    records, reasons = read(small)
    assert [(record.view, len(record.lesions)) for record in records] == [
        ("CC", 1),
        (None, 0),
        ("MLO", 1),
    ]
    assert not reasons


# COCO


def test_a_polygon_counts_from_the_image_s_corner(small):
    annotate(small, {"segmentation": [POLYGON]}, {"segmentation": [POLYGON], "category_id": 2})
    table(small, "file,patient,pathology", "a.png,p1,malignant", "b.png,p2,normal")
    (record, other), reasons = read(small)
    assert not reasons
    assert [lesion.kind for lesion in record.lesions] == ["mass", "calcification"]
    np.testing.assert_array_equal(record.lesions[0].mask(ROWS, COLS), REGION // 255)
    assert record.lesions[0].pathology is None  # of two, one is malignant
    assert (other.lesions, other.pathology) == ((), "normal")


def test_several_polygons_are_one_lesion_and_parts_of_two_points_are_nothing(small):
    annotate(
        small, {"segmentation": [POLYGON, [1, 1, 2, 2], (np.array(POLYGON) + [0, 30] * 4).tolist()]}
    )
    (lesion,) = read(small)[0][0].lesions
    assert (len(lesion.outlines), lesion.box) == (2, (10, 20, 49, 31))
    assert lesion.mask(ROWS, COLS).sum() == 2 * 9 * 11


@pytest.mark.parametrize("compressed", [False, True])
def test_an_rle_is_what_pycocotools_writes(small, compressed):
    region = np.random.default_rng(1).integers(0, 2, (ROWS, COLS), dtype=np.uint8)
    encoded = cocotools.encode(np.asfortranarray(region))
    counts = (
        encoded["counts"].decode() if compressed else coco._decode_runs(encoded["counts"].decode())
    )
    annotate(small, {"segmentation": {"size": [ROWS, COLS], "counts": counts}, "iscrowd": 1})
    (lesion,) = read(small)[0][0].lesions
    np.testing.assert_array_equal(lesion.read(), region)
    assert (lesion.kind, lesion.kind_is_certain) == ("mass", True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=30))
def test_compressed_runs_of_any_length(lengths):
    size = sum(lengths)
    encoded = cocotools.frPyObjects({"size": [1, size], "counts": lengths}, 1, size)
    assert coco._decode_runs(encoded["counts"].decode()) == lengths


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([ROWS * COLS], "marks nothing"),
        ([], "does not fill 60 x 44 px"),
        ([1, 2, 3], "does not fill 60 x 44 px"),
        ([-1, ROWS * COLS + 1], "does not fill 60 x 44 px"),
        ([2**62, 2**62, 2**62, 2**62], "does not fill 60 x 44 px"),
        ([[1]], "does not fill 60 x 44 px"),
        ([10**400], "can't be decoded"),
        (["x"], "can't be decoded"),
        (None, "can't be decoded"),
        ("oooo", "can't be decoded"),
        ("o" * 10_000, "can't be decoded"),
        ("\x01", "can't be decoded"),
    ],
)
def test_a_damaged_rle_is_an_error_when_it_is_wanted(small, counts, reason):
    annotate(small, {"segmentation": {"size": [ROWS, COLS], "counts": counts}})
    (lesion,) = read(small)[0][0].lesions
    with pytest.raises(
        ArchiveError,
        match=rf"annotations.json: {hash_id('folder', 'a')}, annotation 1: its RLE {reason}",
    ):
        lesion.mask(ROWS, COLS)


@pytest.mark.parametrize(
    ("bbox", "box"),
    [
        ([20, 10, 11, 9], (10, 20, 19, 31)),
        ([19.8, 9.6, 11, 9], (10, 20, 19, 31)),
        ([0, 0, COLS, ROWS], (0, 0, ROWS, COLS)),
    ],
)
def test_a_box_has_no_outline(small, bbox, box):
    annotate(small, {"bbox": bbox, "segmentation": []})
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.box, lesion.outlines) == (box, ())


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({}, "it has neither a segmentation nor a bbox of four numbers"),
        ({"bbox": [1, 2, 3]}, "it has neither a segmentation nor a bbox of four numbers"),
        ({"bbox": "none"}, "it has neither a segmentation nor a bbox of four numbers"),
        ({"bbox": [1, 2, float("nan"), 3]}, "its bbox is not finite"),
        ({"bbox": [5, 5, 0, 3]}, "its bbox is empty or lies outside the image"),
        ({"bbox": [5, 5, -2, 3]}, "its bbox is empty or lies outside the image"),
        ({"bbox": [44, 5, 5, 3]}, "its bbox is empty or lies outside the image"),
        ({"bbox": [-6, 5, 5, 3]}, "its bbox is empty or lies outside the image"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            "it has neither a segmentation nor a bbox of four numbers",
        ),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "its polygon is no list of x, y, x, y ..."),
        ({"segmentation": [[1, 2, 3, 4, 5, "six"]]}, "its polygon is no list of x, y, x, y ..."),
        ({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}, "its polygon is no list of x, y, x, y ..."),
        ({"segmentation": 5}, "its polygon is no list of x, y, x, y ..."),
        ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "its polygon is no list of x, y, x, y ..."),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, "an outline's coordinate is no number"),
        ({"segmentation": [[901, 2, 903, 4, 905, 6]]}, "the outline lies outside the image"),
    ],
)
def test_an_annotation_that_is_no_lesion_is_noted_and_the_others_stay(small, annotation, reason):
    annotate(small, {"bbox": [1, 1, 2, 2]}, annotation)
    records, reasons = read(small)
    assert [lesion.box for lesion in records[0].lesions] == [(1, 1, 3, 3)]
    assert reasons == {"images/a.png": f"annotation 2 left out: {reason}"}
    assert records[0].lost == (Lost("mass"),) and not records[1].lost


@pytest.mark.parametrize(
    ("annotation", "box"),
    [
        ({"bbox": [40, 5, 5, 3]}, (5, 40, 8, 44)),
        ({"bbox": [-1, -2, 5, 9]}, (0, 0, 7, 4)),
        ({"bbox": [0, 0, 45, 61]}, (0, 0, ROWS, COLS)),
        # what encloses nothing, beside a good box
        ({"bbox": [4, 5, 6, 3], "segmentation": [[]]}, (5, 4, 8, 10)),
        ({"bbox": [4, 5, 6, 3], "segmentation": []}, (5, 4, 8, 10)),
        ({"bbox": [4, 5, 6, 3], "segmentation": [[4, 5, 9, 7]]}, (5, 4, 8, 10)),
        # corners in COCO's half pixels: the box of [40, 45) x [5, 8), cut
        ({"segmentation": [[40.5, 5.5, 45, 5.5, 45, 7.5, 40.5, 7.5]]}, (5, 40, 8, 44)),
        # a part outside the image
        (
            {"segmentation": [[99, 5, 103, 5, 103, 9], [3.5, 2.5, 6.5, 2.5, 6.5, 4.5, 3.5, 4.5]]},
            (2, 3, 5, 7),
        ),
    ],
)
def test_what_reaches_over_the_border_is_cut_there(small, annotation, box):
    annotate(small, annotation)
    records, reasons = read(small)
    assert [lesion.box for lesion in records[0].lesions] == [box]
    assert not reasons and not records[0].lost


WORDS = {
    "Mass": ("mass", True),
    "Suspicious Calcification": ("calcification", True),
    "architectural_distortion": ("distortion", True),
    "Focal Asymmetry": ("asymmetry", True),
    "Global Asymmetry": ("asymmetry", True),
    "assymetry": ("asymmetry", True),
    "nodule": ("mass", True),
    "tumour": ("mass", False),
    "Lesions": ("mass", False),
    "Mass-calcification": ("mass", False),
}


@pytest.mark.parametrize("word", WORDS)
def test_words_of_findings(small, word):
    annotate(small, {"bbox": [1, 1, 2, 2], "category_id": 9})
    content = json.loads((small / "annotations.json").read_text())
    content["categories"].append({"id": 9, "name": word})
    (small / "annotations.json").write_text(json.dumps(content))
    records, reasons = read(small)
    (lesion,) = records[0].lesions
    assert (lesion.kind, lesion.kind_is_certain) == WORDS[word] and not reasons


def test_the_table_knows_what_a_general_word_means(small):
    table(small, "file,patient,kind", "a.png,p1,distortion", "b.png,p2,")
    annotate(small, {"bbox": [1, 1, 2, 2], "category_id": 9})
    content = json.loads((small / "annotations.json").read_text())
    content["categories"].append({"id": 9, "name": "lesion"})
    (small / "annotations.json").write_text(json.dumps(content))
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.kind, lesion.kind_is_certain) == ("distortion", True)


@pytest.mark.parametrize("word", ["ignore", "Rundherd"])
def test_an_unknown_word_is_named_and_its_image_is_no_background(small, word):
    table(small, "file,patient,pathology", "a.png,p1,normal", "b.png,p2,normal")
    annotate(small, {"bbox": [1, 1, 2, 2], "category_id": 9})
    content = json.loads((small / "annotations.json").read_text())
    content["categories"].append({"id": 9, "name": word})
    (small / "annotations.json").write_text(json.dumps(content))
    records, reasons = read(small)
    assert [(record.lesions, record.lost) for record in records] == [((), (Lost(),)), ((), ())]
    assert f"category '{word}', which is not known" in reasons["annotations.json"]
    assert [is_normal(record) for record in records] == [False, True]


def test_other_categories_and_unlisted_images_are_noted(small):
    picture(small / "images" / "c.png", BYTE)
    table(small, "file,patient", "a.png,p1", "b.png,p1", "c.png,p1")
    annotate(small, {"bbox": [1, 1, 2, 2], "category_id": 3}, {"bbox": [1, 1, 2, 2], "image_id": 9})
    records, reasons = read(small)
    assert [record.lesions for record in records] == [(), ()]
    assert reasons == {
        "annotations.json": "1 annotations of the category 'nipple', which is no lesion of ours; "
        "1 annotations of images that it does not list",
        "images/*": "1 images that annotations.json does not list",
    }


def test_listed_images_that_are_missing_are_counted(small):
    (small / "images" / "b.png").unlink()
    annotate(small)
    records, reasons = read(small)
    assert len(records) == 1
    assert reasons["annotations.json"] == "1 of its 2 images are missing"


@pytest.mark.parametrize("name", ["images/a.png", "images\\a.png", "a.PNG", "a"])
def test_file_names_in_several_forms(small, name):
    annotate(small, images=[{"id": 1, "file_name": name, "height": ROWS, "width": COLS}])
    assert [record.image_id for record in read(small)[0]] == [hash_id("folder", "a")]


def test_a_size_that_contradicts_the_image_is_an_error(small):
    annotate(small, images=[{"id": 1, "file_name": "a.png", "height": COLS, "width": ROWS}])
    with pytest.raises(
        ArchiveError,
        match=r"annotations.json: images/a.png has \(60, 44\) rows and columns there, but \(44, "
        r"60\) is stated",
    ):
        folder.read(small)
    annotate(small, {"segmentation": {"size": [COLS, ROWS], "counts": [1, 2]}})
    with pytest.raises(
        ArchiveError,
        match=r"images/a.png, annotation 1: its RLE is of another size than the image's 60 x 44 px",
    ):
        folder.read(small)


def test_an_image_with_lesions_is_not_called_normal(small):
    annotate(small, {"bbox": [1, 1, 2, 2]})
    table(small, "file,patient,pathology", "a.png,p1,normal", "b.png,p2,normal")
    records, reasons = read(small)
    assert [record.pathology for record in records] == [None, "normal"]
    assert reasons == {
        "images/a.png": "the table calls it normal, but it has 1 lesions: its pathology is taken "
        "as unknown"
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is no COCO file \(JSONDecodeError\)"),
        (b"\xff\xfe\x00", r"is no COCO file \(UnicodeDecodeError\)"),
        (b"[" * 100_000, r"is no COCO file \(RecursionError\)"),
        (b"[]", r"is no COCO file \(TypeError\)"),
        (b"{}", r"is no COCO file \(KeyError\)"),
        (
            b'{"images": [], "categories": [], "annotations": [{"image_id": [], "category_id": '
            b"1}]}",
            r"is no COCO file \(TypeError\)",
        ),
        (
            b'{"images": [{"id": 1, "file_name": "a", "height": "x", "width": 1}], "categories": '
            b'[], "annotations": []}',
            "is no COCO file",
        ),
        (
            b'{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], '
            b'"categories": [], "annotations": []}',
            "lists an image or",
        ),
        (
            b'{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}], '
            b'"categories": [], "annotations": []}',
            "lists an image or",
        ),
    ],
)
def test_a_damaged_coco_file_is_refused(small, content, reason):
    annotate(small)
    (small / "annotations.json").write_bytes(content)
    with pytest.raises(ArchiveError, match=f"annotations.json: {reason}"):
        folder.read(small)


# Pixels


def only(root: Path, *columns: str) -> Mammogram:
    """The one image of a folder; columns: name=value of its row."""
    (path,) = (root / "images").iterdir()
    names, values = (
        zip(*(column.split("=") for column in columns), strict=True) if columns else ((), ())
    )
    table(root, ",".join(["file", "patient", *names]), ",".join([path.name, "p", *values]))
    (record,) = folder.read(root)
    return record


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_are_scaled_by_their_whole_range_unless_the_table_says_otherwise(tmp_path, ending):
    picture(tmp_path / "images" / f"a{ending}", GREY)
    np.testing.assert_array_equal(
        only(tmp_path).pixels()[..., 0], GREY.astype(np.float32) / np.float32(65535)
    )
    np.testing.assert_array_equal(
        only(tmp_path, "bits=12").pixels()[..., 0], GREY.astype(np.float32) / np.float32(4095)
    )
    with pytest.raises(ArchiveError, match=r"holds values up to 2639, more than 11 bits can"):
        only(tmp_path, "bits=11").pixels()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_equal_channels_are_grey(tmp_path, mode):
    picture(tmp_path / "images" / "a.png", BYTE, mode)
    np.testing.assert_array_equal(
        only(tmp_path).pixels()[..., 0], BYTE.astype(np.float32) / np.float32(255)
    )


def test_a_colour_jpeg_of_a_grey_image_is_grey(tmp_path):
    path = picture(tmp_path / "images" / "a.jpg", np.dstack([BYTE] * 3))
    with Image.open(path) as image:
        assert image.mode == "RGB"
        expected = np.asarray(image)[..., 0]
    np.testing.assert_array_equal(only(tmp_path).pixels()[..., 0], expected / np.float32(255))


def tiff(bits: int, photometric: int, data: bytes, rows: int, cols: int) -> bytes:
    """A little-endian TIFF of one uncompressed strip."""
    tags = {
        256: cols,
        257: rows,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: rows,
        279: len(data),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_a_tiff_of_any_depth_and_direction(tmp_path, bits, photometric):
    values = np.array([[0, 1, 100, 255], [7, 200, 30, 2]], np.uint16) * (1 if bits == 8 else 16)
    if bits == 12:  # two values in three bytes
        pairs = values.reshape(-1, 2).astype(int)
        data = b"".join(
            ((first << 12) | second).to_bytes(3, "big") for first, second in pairs.tolist()
        )
    else:
        data = values.astype("u1" if bits == 8 else "<u2").tobytes()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.tif").write_bytes(tiff(bits, photometric, data, 2, 4))
    expected = values.astype(np.float32) / np.float32(2**bits - 1)
    np.testing.assert_allclose(
        only(tmp_path).pixels()[..., 0], expected if photometric else 1 - expected, atol=1e-7
    )


def test_a_pgm_states_its_largest_value(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.pgm").write_bytes(
        b"P5\n# scanner\n44 60\n4095\n" + GREY.astype(">u2").tobytes()
    )
    np.testing.assert_allclose(only(tmp_path).pixels()[..., 0], GREY / 4095, atol=1e-5)
    (tmp_path / "images" / "a.pgm").write_bytes(b"P2 2 1 100 0 50")
    np.testing.assert_allclose(only(tmp_path).pixels()[..., 0], [[0, 0.5]], atol=2e-3)


@pytest.mark.parametrize("wall", ["A", "P"])
def test_the_orientation_holds_where_it_contradicts_the_laterality(tmp_path, wall):
    stored = np.arange(ROWS * COLS, dtype=np.uint16).reshape(ROWS, COLS)
    for name, side in (("a", "L"), ("b", "R")):
        facts = {"ImageLaterality": side, "PatientOrientation": [wall, "F"]}
        write_dicom(tmp_path / "images" / f"{name}.dcm", stored, 12, **facts)
    records, reasons = read(tmp_path)
    assert [record.laterality for record in records] == ["L", "R"]
    assert [record.wall_side for record in records] == [{"A": "L", "P": "R"}[wall]] * 2
    assert reasons["images/*"].startswith("1 images are stored mirrored")


def test_facts_of_a_dicom_hold_where_the_table_is_silent(tmp_path):
    writer.write([mammogram(1)], tmp_path, ending=".dcm", bits=12)
    record = only(tmp_path)
    assert (record.laterality, record.view, record.spacing) == ("L", "CC", (0.07, 0.05))
    record = only(tmp_path, "laterality=R", "spacing=0.2")
    assert (record.laterality, record.view, record.spacing) == ("R", "CC", (0.2, 0.2))


def test_raw_images_are_counted(tmp_path):
    path, _ = writer.write([mammogram(1), mammogram(2)], tmp_path, ending=".dcm", bits=12)
    dataset = pydicom.dcmread(path)
    dataset.PresentationIntentType = "FOR PROCESSING"
    dataset.save_as(path)
    records, reasons = read(tmp_path)
    assert len(records) == 1
    assert reasons == {"images/*": "1 raw images ('for processing')"}


COLOUR = np.dstack([BYTE, BYTE, BYTE + 1])
CLEAR = np.dstack([BYTE] * 4)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [(COLOUR, "is a colour image, its channels differ"), (CLEAR, "is transparent in places")],
)
def test_what_only_the_pixels_show_is_an_error_when_they_are_wanted(tmp_path, pixels, reason):
    picture(tmp_path / "images" / "a.png", pixels)
    record = only(tmp_path)
    with pytest.raises(ArchiveError, match=f"images/a.png: {reason}"):
        record.pixels()


def test_a_truncated_image_is_an_error_when_it_is_wanted(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (ROWS, COLS), dtype=np.uint8)
    for ending in (".jpg", ".png", ".bmp", ".tif", ".pgm"):
        path = picture(tmp_path / ending[1:] / "images" / f"a{ending}", noise)
        path.write_bytes(path.read_bytes()[:-400])
        record = only(tmp_path / ending[1:])
        with pytest.raises(
            ArchiveError, match=r"can't be read as an image \((OSError|ValueError)\)"
        ):
            record.pixels()


def deep_colours(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), np.dstack([GREY] * 3))


def pages(path: Path) -> None:
    picture(path, BYTE, save_all=True, append_images=[Image.fromarray(BYTE)])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture(path, BYTE, exif=exif)


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        (
            "z.png",
            lambda path: path.write_bytes(b"text"),
            "can't be read as an image (UnidentifiedImageError)",
        ),
        (
            "z.png",
            lambda path: path.write_bytes(b""),
            "can't be read as an image (UnidentifiedImageError)",
        ),
        ("z.dcm", lambda path: path.write_bytes(b"text"), "is not a DICOM file"),
        ("z.png", deep_colours, "has 16 bits in several channels, save it in one"),
        ("z.tif", deep_colours, "has 16 bits in several channels, save it in one"),
        ("z.tif", pages, "holds several pages, not one image"),
        ("z.jpg", turned, "is stored turned or mirrored (EXIF orientation), save it upright"),
        (
            "z.tif",
            lambda path: picture(path, BYTE.astype(np.float32)),
            "its pixels (F) are not of 8 or 16 bits",
        ),
        (
            "z.tif",
            lambda path: picture(path, BYTE.astype(np.int32)),
            "its pixels (I) are not of 8 or 16 bits",
        ),
        (
            "z.jpg",
            lambda path: picture(path, BYTE, "CMYK"),
            "its pixels (CMYK) are not of 8 or 16 bits",
        ),
        (
            "z.pgm",
            lambda path: path.write_bytes(b"P6 1 1 65535 " + bytes(6)),
            "is no PGM but a colour image",
        ),
        (
            "z.pgm",
            lambda path: path.write_bytes(b"P5 12000 12000 255 "),
            "12000 x 12000 px are more than a mammogram has",
        ),
        (
            "z.pgm",
            lambda path: path.write_bytes(b"P5 99999999 99999999 255 "),
            "can't be read as an image (DecompressionBombError)",
        ),
        (
            "z.png",
            lambda path: Image.new("L", (4, 4)).save(path, format="GIF"),
            "can't be read as an image (UnidentifiedImageError)",
        ),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Image size.*decompression bomb:PIL.Image.DecompressionBombWarning"
)
def test_an_unusable_image_is_noted_and_the_others_stay(small, name, write, reason):
    write(small / "images" / name)
    table(small, "file,patient", "a.png,p1", "b.png,p2", f"{name},p3")
    records, reasons = read(small)
    assert len(records) == 2
    assert reasons == {f"images/{name}": reason}


@pytest.mark.parametrize(
    ("ending", "bits", "reason"),
    [
        (".png", 12, "has 8 bits, the table says 12"),
        (".pgm", 12, "a PGM states its largest value itself, leave its bits blank"),
        (".dcm", 12, "a DICOM states its bits itself, leave them blank"),
    ],
)
def test_bits_that_contradict_the_file_are_noted(tmp_path, ending, bits, reason):
    first, _ = writer.write([mammogram(1), mammogram(2)], tmp_path, ending=ending, bits=8)
    table(tmp_path, "file,patient,bits", f"{first.name},p1,{bits}", f"000002{ending},p2,")
    records, reasons = read(tmp_path)
    assert len(records) == 1
    assert reasons == {f"images/{first.name}": reason}


# The folder


def test_images_alone_are_enough(small):
    (small / "metadata.csv").unlink()
    (small / "masks" / "a.png").unlink()
    (small / "masks").rmdir()
    records, reasons = read(small)
    assert [
        (record.rows, record.cols, record.lesions, record.pathology, record.birads)
        for record in records
    ] == [(60, 44, (), None, None)] * 2
    assert not reasons


def test_other_files_are_counted_and_hidden_ones_passed_over(small):
    for name in ("Thumbs.db", "notes.txt", ".DS_Store", "._a.png", os.fsdecode(b"\xff\xfe.png")):
        (small / "images" / name).write_bytes(b"")
    picture(small / "images" / "a.tif", BYTE)
    _, reasons = read(small)
    assert reasons.pop("images/*").startswith("3 files of other kinds than .png")
    assert reasons == {
        "images/a.tif": "another file has the same name and another ending or spelling"
    }


def test_a_cyclic_link_is_no_trap(small):
    (small / "images" / "again").symlink_to(small / "images", target_is_directory=True)
    assert len(read(small)[0]) == 2


def test_what_is_no_archive(tmp_path, small):
    with pytest.raises(ArchiveError, match="nowhere: is no folder"):
        folder.read(tmp_path / "nowhere")
    (small / "annotations.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ArchiveError, match=r"has both masks and annotations.json, keep one of them"
    ):
        folder.read(small)


def test_a_folder_of_unreadable_images(small):
    for name in ("a.png", "b.png"):
        (small / "images" / name).write_bytes(b"text")
    with pytest.raises(
        ArchiveError,
        match=r"holds no image that can be read \(2 skipped, the first is images/a.png: can't be "
        r"read as an image",
    ):
        folder.read(small)


def test_one_file_by_itself(small):
    one = folder.read_one(small / "images/a.png")
    listed = next(record for record in read(small)[0] if record.image_id == one.image_id)
    np.testing.assert_array_equal(one.pixels(), listed.pixels())
    assert (one.rows, one.cols, one.lesions, one.laterality) == (ROWS, COLS, (), None)
    assert pickle.loads(pickle.dumps(one)).rows == ROWS
    assert not folder.is_dicom(small / "images/a.png") and not folder.is_dicom(small / "nowhere")


@pytest.mark.parametrize("name", ["a.dcm", "IM0001", "IM0001.png"])
def test_one_dicom_of_any_name(tmp_path, name):
    write_dicom(
        tmp_path / name,
        GREY,
        12,
        ImageLaterality="R",
        ViewPosition="MLO",
        ImagerPixelSpacing=[0.07, 0.05],
    )
    one = folder.read_one(tmp_path / name)
    assert (one.laterality, one.view, one.spacing) == (
        "R",
        "MLO",
        (0.07, 0.05),
    ) and folder.is_dicom(tmp_path / name)
    np.testing.assert_allclose(one.pixels()[..., 0], GREY / 4095, atol=1e-6)


def test_one_file_that_is_no_mammogram(tmp_path):
    write_dicom(tmp_path / "raw.dcm", GREY, 12, PresentationIntentType="FOR PROCESSING")
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "text.dcm").write_text("no image")
    picture(tmp_path / "colour.png", np.dstack([BYTE, BYTE, 255 - BYTE]))
    wrong = {
        "raw.dcm": "raw image",
        "text.txt": "as an image",
        "text.dcm": "not a DICOM",
        "colour.png": "colour",
        "no.png": "no such file",
    }
    for name, reason in (wrong | {".": "is no file"}).items():
        with pytest.raises(ArchiveError, match=reason) as raised:
            folder.read_one(tmp_path / name).pixels()
        assert str(raised.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(
            raised.value
        )


def test_one_file_whose_name_is_in_no_known_encoding(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    Image.fromarray(BYTE).save(os.fsencode(path))
    assert len(folder.read_one(path).image_id) == 12
