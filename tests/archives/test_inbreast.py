"""tfmammo.archives.inbreast on archives in INbreast's native form, written by the phantom."""

import plistlib
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.archives.tools import change_dicom, read_archive
from tests.archives.writers import inbreast as writer
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo.archives import inbreast
from tfmammo.mammogram import Lesion, Lost, Mammogram

MASS = (Lesion.from_outline("mass", SQUARE, ROWS, COLS),)
XML = "AllXML/20000001.xml"
DICOM = "AllDICOMs/20000001_aa1_MG_L_CC_ANON.dcm"
read = partial(read_archive, inbreast)


def mammogram(number: int, lesions=MASS, **facts) -> Mammogram:
    known = {"patient_id": f"aa{number}", "spacing": (0.07, 0.07), "birads": "4b", "density": "2"}
    return make_mammogram(number, ramp(number / 10), lesions, **known | facts)


@pytest.fixture
def small(tmp_path):
    """File 20000001 with a mass, 20000002 of another patient without findings."""
    writer.write([mammogram(1), mammogram(2, (), view="MLO", laterality="R", birads="1")], tmp_path)
    return tmp_path


def region(points=SQUARE, name: str | None = "Mass", **facts) -> dict:
    content = {"Point_px": [f"({col:.6f}, {row:.6f})" for row, col in points], "Type": 15} | facts
    return content if name is None else content | {"Name": name}


def write_regions(root: Path, *regions: dict) -> None:
    images = [{"ImageIndex": 0, "NumberOfROIs": len(regions), "ROIs": list(regions)}]
    (root / XML).write_bytes(plistlib.dumps({"Images": images}))


def test_pixels_are_read_without_the_window(small):
    (record, _) = inbreast.read(small)
    expected = record.pixels()
    change_dicom(small / DICOM, WindowCenter=500, WindowWidth=100)
    np.testing.assert_array_equal(record.pixels(), expected)


def test_kinds_of_names(small):
    names = ("MASS", "calcifications", "Cluster", "Assymetry", "Espiculated Region")
    write_regions(small, *(region(name=name) for name in names))
    (record, _), reasons = read(small)
    kinds = ["mass", "calcification", "calcification", "asymmetry", "distortion"]
    assert [lesion.kind for lesion in record.lesions] == kinds and not reasons
    # the area of spicules is wider than the mass in it
    facts = [(each.margin, each.kind_is_certain) for each in record.lesions]
    assert facts == [(None, True)] * 4 + [("spiculated", False)]


def test_x_is_the_column_and_what_leaves_the_image_is_cut_and_muscles_are_no_findings(small):
    points = ["(30.0, -10.0)", "(40.0, -10.0)", "(40.0, 50.0)", "(30.0, 50.0)"]
    muscle = region(Point_px=["{1, 2}", "{3, 4}", "{5, 9}"], name="Pectoral Muscle")
    write_regions(small, region(Point_px=points), muscle)
    (record, _), reasons = read(small)
    assert record.lesions[0].box == (0, 30, 51, 41) and not reasons
    assert record.lesions[0].mask(ROWS, COLS).sum() == 51 * 11
    assert (len(record.lesions), record.lost) == (1, ())


PLACES = ["(1, 2)", "(3, 4)"]


@pytest.mark.parametrize(
    ("bad", "word", "lost"),
    [
        (region(name="Unnamed"), "name is unknown", (None,)),
        (region(SQUARE[:1], name="Point 3"), "a single point", ("calcification",)),
        (region(SQUARE[:1], name="Nipple"), "a single point", ()),
        (region(Type=19), "a single point", ("mass",)),
        (region(SQUARE[:2]), "2 points", ("mass",)),
        (region(SQUARE + 500), "outside the image", ("mass",)),
        (region(Point_px="(1, 2)"), "no list Point_px", ("mass",)),
        (region(Point_px=[1.0, 2.0, 3.0]), "no list Point_px", ("mass",)),
        *(
            (region(Point_px=[*PLACES, last]), "form (x, y)", ("mass",))
            for last in ("(5, 6", "(5, nan)", "(5, 6, 7)")
        ),
    ],
)
def test_a_region_that_is_no_lesion_is_noted_and_lost(small, bad, word, lost):
    write_regions(small, region(), bad, bad)
    (record, _), reasons = read(small)
    assert [lesion.kind for lesion in record.lesions] == ["mass"]
    assert record.lost == tuple(map(Lost, lost)) * 2
    assert list(reasons) == [XML] and word in reasons[XML] and reasons[XML].startswith("ROI 2, 3 ")


PLIST = b"<?xml version='1.0'?><plist>"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        PLIST + b"<dict><key>Images</key>",
        PLIST + b"<dict><key>Images</key><array/></dict></plist>",
        plistlib.dumps({"Images": [{"ROIs": "x"}]}),
        b"<?xml version='1.0'?><!DOCTYPE p [<!ENTITY a 'a'>]><plist><string>&a;</string></plist>",
        None,
    ],
)
def test_without_its_outlines_a_mammogram_is_kept_and_not_normal(small, content):
    if content is None:
        (small / XML).unlink()
    else:
        (small / XML).write_bytes(content)
    (record, normal), reasons = read(small)
    assert (record.lesions, record.pathology, record.lost) == ((), None, (Lost(),))
    assert normal.pathology == "normal"
    ((file, reason),) = reasons.items()
    assert file == (DICOM if content is None else XML)
    assert "kept without lesions" in reason and "\n" not in reason


@pytest.mark.parametrize(
    ("lesions", "notes"),
    [((), 0), ((Lesion.from_outline("calcification", SQUARE, ROWS, COLS),), 1)],
)
def test_the_marks_of_the_xls_say_whether_an_xml_is_missing(tmp_path, lesions, notes):
    writer.write([mammogram(1, lesions, birads="2")], tmp_path, xls=True)
    (tmp_path / XML).unlink(missing_ok=True)
    (record,), reasons = read(tmp_path)
    assert record.pathology is None and len(reasons) == len(record.lost) == notes


def test_birads_1_with_an_outline_is_not_called_normal(tmp_path):
    writer.write([mammogram(1, birads="1")], tmp_path)
    assert inbreast.read(tmp_path)[0].pathology is None


def test_a_damaged_table_is_noted(small):
    (small / "INbreast.csv").write_bytes(b"a;b\n1;2\n")
    (small / "INbreast.xls").write_bytes(b"not a workbook")
    records, reasons = read(small)
    assert [record.birads for record in records] == [None, None]
    assert "no column file_name" in reasons["INbreast.csv"]
    assert "Excel sheet" in reasons["INbreast.xls"]


@pytest.mark.parametrize(("row", "birads"), [(";R;CC;", None), (";L;MLO;", None), (";L;FB;", "4b")])
def test_a_row_that_contradicts_the_name_is_set_aside(small, row, birads):
    name = DICOM
    if birads:  # a view from below
        name = DICOM.replace("_CC_", "_FB_")
        (small / DICOM).rename(small / name)
    table = small / "INbreast.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(";L;CC;", row), encoding="utf-8")
    (record, _), reasons = read(small)
    view = "FB" if birads else "CC"
    facts = (record.laterality, record.view, record.birads, len(record.lesions))
    assert facts == ("L", view, birads, 1)
    assert ("without its table row" in reasons.get(name, "")) == (birads is None)


def test_a_second_file_of_one_number_is_noted(small):
    (small / "copy" / "AllDICOMs").mkdir(parents=True)
    shutil.copy(small / DICOM, small / "copy" / "AllDICOMs")
    records, reasons = read(small)
    assert len(records) == 2 and list(reasons) == [f"copy/{DICOM}"]
    (small / DICOM).rename(small / "AllDICOMs" / "20000001.dcm")
    (small / "copy" / DICOM).unlink()
    records, reasons = read(small)
    assert len(records) == 1 and "not of the form" in reasons["AllDICOMs/20000001.dcm"]
