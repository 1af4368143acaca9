"""tfmammo.archives.folder on folders as a group might have them, written to disk."""

import logging

import numpy as np
import pytest

from tests.archives.folders import BYTE, REGION, annotate, picture, read, table
from tests.small_mammograms import COLS, ROWS
from tfmammo.archives import folder
from tfmammo.data.sampling import is_normal
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lost, hash_id

# Patients


def test_without_patients_all_images_are_one_and_the_log_says_so(small, caplog):
    for lines in (("file,view", "a.png,CC"), ("file,patient", "a.png,", "b.png,"), ()):
        table(small, *lines) if lines else (small / "metadata.csv").unlink()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            records, reasons = read(small)
        assert [record.patient_id for record in records] == [hash_id("folder", "")] * 2
        said = "metadata.csv names no patients" if lines else "there is no metadata.csv"
        assert not reasons and said in caplog.text


def test_an_image_without_a_patient_among_others_is_left_out(small, caplog):
    for lines in (("a.png,p1",), ("a.png,p1", "b.png,")):
        table(small, "file,patient", *lines)
        records, reasons = read(small)
        assert [record.image_id for record in records] == [hash_id("folder", "a")]
        assert list(reasons) == ["images/*"] and "without a patient" in reasons["images/*"]
    assert not caplog.messages


def test_a_bare_name_is_that_of_an_image_whose_mask_is_named_alike(small):
    (small / "images" / "2021").mkdir()
    (small / "images" / "a.png").rename(small / "images" / "2021" / "a.png")
    table(small, "file,patient", "a.png,p1", "b.png,p2")
    records, reasons = read(small)
    assert {record.patient_id for record in records} == {hash_id("folder", n) for n in ("p1", "p2")}
    assert [len(record.lesions) for record in records] == [1, 0] and "images/*" not in reasons


def test_leading_zeros_are_spoken_of_and_lost_digits_refused(small, caplog):
    table(small, "file,patient", "a.png,12", "b.png,0012")
    with caplog.at_level(logging.WARNING):
        records, _ = read(small)
    assert {record.patient_id for record in records} == {hash_id("folder", "12")}
    assert "leading zeros" in caplog.text
    caplog.clear()
    table(small, "file,patient", "a.png,12-A", "b.png,012-B")  # two names
    assert len({record.patient_id for record in read(small)[0]}) == 2
    assert "leading zeros" not in caplog.text
    table(small, "file,patient", "a.png,1.23457E+12", "b.png,p2")
    with pytest.raises(ArchiveError, match="row 2, patient: is a number that lost digits"):
        read(small)


def test_spellings_of_one_file_are_one(small, caplog):
    composed, decomposed = "m\u00fcller", "mu\u0308ller"
    (small / "images" / "b.png").rename(small / "images" / f"{composed}.png")
    picture(small / "images" / f"{decomposed}.tif", BYTE)
    table(small, "file,patient", "a\u200b.png,p1", f"{decomposed}.png,p2")
    records, reasons = read(small)
    assert {record.image_id for record in records} == {
        hash_id("folder", n) for n in ("a", composed)
    }
    (reason,) = reasons.values()
    assert "same name" in reason
    assert "ller" not in repr(records) + caplog.text


def test_unkeyed_pseudonyms_of_patients_are_spoken_of(small, caplog, monkeypatch):
    for key in ("", "a secret"):
        monkeypatch.setenv("TFMAMMO_ID_KEY", key)
        caplog.clear()
        with caplog.at_level(logging.INFO, "tfmammo"):
            folder.read(small)
        assert ("hashes without a key" in caplog.text) == (not key)


# Rows of several images


def test_a_row_may_hold_for_all_images_of_a_folder(small):
    for name in ("left/c", "left/old/d"):
        picture(small / "images" / f"{name}.png", BYTE)
    rows = ("*,p0,CC,", "left/*,,,L", "left/old/*,p9,MLO,", "b.png,p2,,R", "left/c.png,p1,,")
    table(small, "file,patient,view,laterality", *rows)
    records, reasons = read(small)
    found = {r.file.stem: (r.patient_id, r.view, r.laterality) for r in records}
    p0, p1, p2, p9 = (hash_id("folder", patient) for patient in ("p0", "p1", "p2", "p9"))
    assert (found["a"], found["b"]) == ((p0, "CC", None), (p2, "CC", "R"))
    assert (found["c"], found["d"]) == ((p1, "CC", "L"), (p9, "MLO", "L")) and not reasons


def test_a_folder_may_be_declared_normal_and_each_image_another_patient(small):
    table(small, "file,patient,pathology", "*,*,normal")
    records, reasons = read(small)
    assert [is_normal(record) for record in records] == [False, True]
    assert len(records[0].lesions) == 1 and reasons["images/*"].startswith("1 images have masks")
    (small / "masks" / "a.png").unlink()
    picture(small / "images" / "left" / "a.png", BYTE)
    table(small, "file,patient,pathology", "*,*,normal")
    records, reasons = read(small)
    assert all(map(is_normal, records)) and not reasons
    assert len({record.patient_id for record in records}) == len(records) == 3
    annotate(small, {"bbox": [1, 1, 2, 2]})
    records, reasons = read(small)
    assert [is_normal(record) for record in records] == [False, True]
    assert "calls it normal" in reasons["images/a.png"]


# The table


def test_all_columns(small):
    facts = "laterality;view;pathology;kind;shape;margin;birads;density;spacing;split;bits"
    row = "images\\a.png;p1;left;mlo;Malignant;Calcifications;ROUND;Obscured;5;c;0,1 x 0,05;Test;8"
    table(small, f"file;patient;{facts}", row, "b;p2;;;;;;;;;0.1;;")
    (record, other), reasons = read(small)
    assert not reasons and other.spacing == (0.1, 0.1)
    facts = (record.laterality, record.view, record.pathology, record.birads, record.density)
    assert facts == ("L", "MLO", "malignant", "5", "c")
    assert (record.spacing, record.official_split) == ((0.1, 0.05), "test")
    (lesion,) = record.lesions
    facts = (lesion.kind, lesion.shape, lesion.margin, lesion.pathology)
    assert facts == ("calcification", "round", "obscured", "malignant")


def test_a_table_as_a_spreadsheet_writes_it(small):
    lines = ("File\tPatient\tAnna K.\tPatholgy\t", "a.png\tp1\t50\tbenign\t", "\t\t\t\t")
    more = ("b.png\tp2\t51\tbenign\t", "c.png\tp3\t52\tbenign\t")
    table(small, *lines, *more, encoding="utf-8-sig")
    records, reasons = read(small)
    assert len(records) == 2 and "Anna" not in str(reasons)
    unknown, unused = reasons["metadata.csv"].split("; 1 ")
    assert "number 3, 4 (pathology?); known are file, patient" in unknown
    assert unused.startswith("of its 3 files are no image or mask")


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "..\\..\\b.png", "C:\\b.png"]


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (("patient", "p1"), "no column file"),
        (("file,file", "a,b"), "every column once"),
        (("file,view", "a.png"), "row 2 has 1 cells, the first line 2"),
        (("file,spacing", "a.png,1 x 2 x 3"), "row 2, spacing"),
        (("file,bits", "a.png,17"), "row 2, bits"),
        (("file,patient", ",p1"), "row 2, file: is blank"),
        (("file,patient", "a.png,p1", "images/a.png,p2"), "rows 2 and 3 are of one file"),
        (("file,patient", '"a.png,p1'), r"as CSV in UTF-8 \(Error\)"),
        (("file,patient", "a.png,M\udcfcller"), "UnicodeDecodeError"),
        *((("file,patient", f"{name},p1"), "row 2, file: .*leads out") for name in OUTSIDE),
    ],
)
def test_a_wrong_table_is_refused(small, lines, word):
    text = "\n".join(lines) + "\n"
    (small / "metadata.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ArchiveError, match=f"metadata.csv: .*{word}"):
        folder.read(small)


CELLS = {
    "view": {"ml": "ML", "SIO": "SIO", "RMLO": "MLO", "spot": None},
    "laterality": {"LEFT": "L", "both": None},
    "pathology": {"nan": None, "unknown": None},
    "density": {"2.0": "2"},
    "birads": {"4.0": "4", "4b": "4b"},
    "split": {"Training": "train", "val": None},
    "spacing": {"nan": None},
}


@pytest.mark.parametrize(
    ("column", "cell"), [(column, cell) for column, cells in CELLS.items() for cell in cells]
)
def test_an_odd_cell_costs_nothing_but_itself(small, column, cell):
    """What is not known counts as not stated, and is counted without a word of it."""
    (small / "masks" / "a.png").unlink()
    table(small, f"file,patient,{column}", f"a.png,p1,{cell}", "b.png,p2,")
    records, reasons = read(small)
    name = {"split": "official_split"}.get(column, column)
    expected = CELLS[column][cell]
    assert len(records) == 2 and getattr(records[0], name) == expected
    assert ("metadata.csv" in reasons) == (expected is None and cell != "nan")
    assert cell not in str(reasons) or cell == "val"


def test_rows_of_images_in_another_folder(small):
    for name in ("left/c", "left/d"):
        picture(small / "images" / f"{name}.png", BYTE)
    lines = ("a.png,p1", "export/b.png,p2", "c.png,p3", "right/d.png,p4")
    table(small, "file,patient", *lines)
    records, reasons = read(small)
    found = {record.file.stem: record.patient_id for record in records}
    # right/d.png is not left/d.png
    assert found == {name: hash_id("folder", f"p{number}") for number, name in enumerate("abc", 1)}
    assert "2 of its files are matched" in reasons["metadata.csv"]


def test_rows_of_files_that_differ_in_their_ending(small):
    """One of the files is read, and with its own row: the other may be of another patient."""
    picture(small / "images" / "a.bmp", BYTE)
    table(small, "file,patient", "a.png,p1", "b.png,p2", "a.bmp,p3", "a.tif,p4")
    records, reasons = read(small)
    patients = {record.file.name: record.patient_id for record in records}
    assert patients == {"a.bmp": hash_id("folder", "p3"), "b.png": hash_id("folder", "p2")}
    assert set(reasons) == {"images/a.png", "metadata.csv"}


# Masks


def test_a_mask_without_a_kind_is_an_uncertain_mass(small):
    (record, other), reasons = read(small)
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.kind_is_certain, lesion.box) == ("mass", False, (10, 20, 19, 31))
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), REGION // 255)
    assert other.lesions == () and not reasons


def test_several_masks_in_the_order_of_their_numbers_with_rows_of_their_own(small):
    for name, rows in (("a_10", 20), ("a_2", 10)):
        picture(small / "masks" / f"{name}.png", np.roll(REGION, rows, axis=0))
    lines = ("a.png,p1,malignant,mass,round", "b.png,p2,,,", "masks/a_2.png,,benign,asymmetry,oval")
    table(small, "file,patient,pathology,kind,shape", *lines)
    (record, _), reasons = read(small)
    found = [(it.box[0], it.kind, it.pathology, it.shape) for it in record.lesions]
    own = (20, "asymmetry", "benign", "oval")
    assert found == [(10, "mass", None, None), own, (30, "mass", None, None)] and not reasons


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


# The folder


def test_images_without_a_folder_of_their_own(tmp_path):
    """As people have them: masks beside images, in masks/, and in subfolders; no table."""
    for name in ("a", "b", "left/c", "left/d"):
        picture(tmp_path / f"{name}.png", BYTE)
    for name in ("b_mask", "masks/a", "masks/c_1", "left/d_seg"):
        picture(tmp_path / f"{name}.png", REGION)
    (tmp_path / "notes.txt").write_text("mine")
    records, reasons = read(tmp_path)
    found = {record.file.stem: len(record.lesions) for record in records}
    assert found == {"a": 1, "b": 1, "c": 1, "d": 1}
    for record in records:
        np.testing.assert_array_equal(record.lesions[0].mask(ROWS, COLS), REGION // 255)
    assert "2 masks are next to their images" in reasons["images/*"]
    assert "1 files of other kinds" in reasons["./*"]
    table(tmp_path, "file,patient", "left/*,anna", "*,berta")
    assert len({record.patient_id for record in read(tmp_path)[0]}) == 2


def test_what_is_no_archive(small):
    (small / "annotations.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArchiveError, match=r"both masks and annotations.json"):
        folder.read(small)
    (small / "annotations.json").unlink()
    (small / "metadata.csv").unlink()
    (small / "metadata.csv").mkdir()
    with pytest.raises(ArchiveError, match="metadata.csv: is no file"):
        folder.read(small)
