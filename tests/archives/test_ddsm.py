"""tfmammo.archives.ddsm on archives in DDSM's native form, by the phantom or by hand."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.archives.tools import MASS, read_archive
from tests.archives.writers import ddsm as writer
from tests.small_mammograms import COLS, ROWS, make_mammogram, ramp
from tfmammo.archives import ddsm, ljpeg
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lost, Mammogram

read = partial(read_archive, ddsm)
CASE = "cases/cancers/cancer_01/case0001"
STEM = f"{CASE}/B_0001_1.LEFT_CC"
ICS = f"{CASE}/B-0001-1.ics"
SQUARE_CHAIN = "20 10 " + "2 " * 10 + "4 " * 8 + "6 " * 10 + "0 " * 8 + "#"
BOUNDARY = f"TOTAL_OUTLINES 1\nBOUNDARY\n{SQUARE_CHAIN}\n"


def mammogram(lesions=(MASS,), **facts) -> Mammogram:
    known = {"patient_id": "p", "pathology": "malignant", "birads": "4", "density": "2"}
    return make_mammogram(1, ramp(0.1), lesions, **known | facts)


@pytest.fixture
def small(tmp_path):
    """One cancer case of two views: a mass in LEFT_CC, nothing in RIGHT_MLO."""
    writer.write([mammogram(), mammogram((), view="MLO", laterality="R", pathology=None)], tmp_path)
    return tmp_path


def first(root: Path) -> tuple[Mammogram, dict[str, str]]:
    records, reasons = read(root)
    return records[0], reasons


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="ascii")
    assert old in text
    path.write_text(text.replace(old, new), encoding="ascii")


def write_overlay(root: Path, *abnormalities: str) -> None:
    lines = [f"TOTAL_ABNORMALITIES {len(abnormalities)}"]
    lines += [f"ABNORMALITY {number}\n{text}" for number, text in enumerate(abnormalities, start=1)]
    (root / f"{STEM}.OVERLAY").write_text("\n".join(lines), encoding="ascii")


def abnormality(*types: str, pathology="BENIGN", assessment="3", outlines=BOUNDARY) -> str:
    named = "".join(
        f"LESION_TYPE {words}\n" for words in types or ("MASS SHAPE OVAL MARGINS CIRCUMSCRIBED",)
    )
    return f"{named}ASSESSMENT {assessment}\nSUBTLETY 4\nPATHOLOGY {pathology}\n{outlines}"


def test_a_decoded_file_is_preferred(small):
    (small / f"{STEM}.LJPEG").write_bytes(b"damaged")
    Image.fromarray(np.full((ROWS, COLS), 1500, np.uint16)).save(small / f"{STEM}.png")
    raw = np.full((ROWS, COLS), 3000, ">u2").tobytes()
    (small / f"{STEM}.LJPEG.1").write_bytes(raw)
    for name, grey in ((f"{STEM}.LJPEG.1", 3000), (f"{STEM}.png", 1500)):
        expected = (3 - (4096.99 - grey) / 1009.01) / 2.95
        np.testing.assert_allclose(ddsm.read(small)[0].pixels(), expected, atol=1e-6)
        (small / name).unlink()
    with pytest.raises(ArchiveError, match=r"B_0001_1\.LEFT_CC\.LJPEG: is no JPEG"):
        ddsm.read(small)[0].pixels()


def test_the_header_that_is_printed_on_ddsms_page(tmp_path):
    (tmp_path / "B-3024-1.ics").write_text(
        "ics_version 1.0\nfilename B-3024-1\nDATE_OF_STUDY 2 7 1995\nPATIENT_AGE 42\nFILM "
        "\nFILM_TYPE REGULAR\nDENSITY 4\n"
        "DATE_DIGITIZED 7 22 1997 \nDIGITIZER LUMISYS\nSELECTED\n"
        "LEFT_CC LINES 4696 PIXELS_PER_LINE 3024 BITS_PER_PIXEL 12 RESOLUTION 50 OVERLAY\n"
        "RIGHT_MLO LINES 4664 PIXELS_PER_LINE 3120 BITS_PER_PIXEL 12 RESOLUTION 43.5 NON_OVERLAY\n",
        encoding="ascii",
    )
    for view in ("LEFT_CC", "RIGHT_MLO"):
        (tmp_path / f"B_3024_1.{view}.LJPEG").write_bytes(b"")
    (left, right), reasons = read(tmp_path)
    assert (left.rows, left.cols, left.spacing, left.density) == (4696, 3024, (0.05, 0.05), "4")
    assert (right.rows, right.cols, right.spacing) == (4664, 3120, (0.0435, 0.0435))
    assert (left.pathology, right.pathology) == (None, None)
    assert reasons == {"B-3024-1.ics": "LEFT_CC kept without lesions: its overlay is missing"}


# Outlines: a closed walk that takes every direction, by hand: col 20, row 30, then up, up-right,
# right, down-right, down, down-left, left, up-left, each twice.
ALL = "20 30 0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 #"
ROW_STEPS = [0, -1, -1, -1, -1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, -1, -1]
COL_STEPS = [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, -1, -1, -1, -1, -1, -1]


def test_chain_by_hand(small):
    write_overlay(small, abnormality(outlines=f"TOTAL_OUTLINES 1\nBOUNDARY\n{ALL}\n"))
    record, reasons = first(small)
    (lesion,) = record.lesions
    assert not reasons
    points = np.stack([30 + np.cumsum(ROW_STEPS), 20 + np.cumsum(COL_STEPS)], axis=1)
    np.testing.assert_array_equal(lesion.outlines[0], points)
    assert lesion.box == (26, 20, 33, 27)
    assert lesion.mask(ROWS, COLS).sum() == 3 + 5 + 7 + 7 + 7 + 5 + 3


def test_cores_are_kept_out_and_their_number_is_not_believed(small):
    outlines = f"TOTAL_OUTLINES 9\nBOUNDARY\n{SQUARE_CHAIN}\n\n" + 2 * f"\tCORE\n{ALL}\n\n"
    write_overlay(small, abnormality(outlines=outlines), abnormality())
    record, reasons = first(small)
    assert [lesion.box for lesion in record.lesions] == [(10, 20, 19, 31)] * 2 and not reasons


CALC = "CALCIFICATION TYPE LINEAR DISTRIBUTION LINEAR"
OVAL = "MASS SHAPE OVAL MARGINS N/A"
DISTORTED = "ARCHITECTURAL_DISTORTION"
MIXED = "oval-architectural_distortion"


@pytest.mark.parametrize(
    ("types", "lesions"),
    [
        ([f"MASS SHAPE OVAL-{DISTORTED} MARGINS N/A"], [("mass", MIXED, None, True)]),
        ([f"MASS SHAPE {DISTORTED} MARGINS N/A"], [("mass", DISTORTED.lower(), None, False)]),
        (["MASS SHAPE N/A MARGINS N/A"], [("mass", None, None, True)]),
        (["MASS SHAPE MARGINS SPICULATED"], [("mass", None, "spiculated", True)]),
        ([CALC, OVAL], [("calcification", "linear", None, True), ("mass", "oval", None, True)]),
        ([OVAL, "MASS SHAPE ROUND MARGINS OBSCURED"], [("mass", "oval", None, True)]),
        (["OTHER ASYMMETRIC TISSUE"], [("asymmetry", None, None, True)]),
        (["OTHER ARCHITECTURAL DISTORTION"], [("distortion", None, None, True)]),
    ],
)
def test_lesion_types(small, types, lesions):
    write_overlay(small, abnormality(*types))
    record, reasons = first(small)
    found = [(it.kind, it.shape, it.margin, it.kind_is_certain) for it in record.lesions]
    assert found == lesions and not reasons
    assert {lesion.box for lesion in record.lesions} == {(10, 20, 19, 31)}


@pytest.mark.parametrize(
    ("folder", "pathology"),
    [
        ("cases/normals/normal_01/case0001", "normal"),
        ("case0001", "normal"),  # only normal cases have no overlay, says DDSM
        ("cases/cancers/cancer_12/case0001", None),
        ("cases/benign_without_callbacks/benign_without_callback_02/case0001", None),
        ("normals/cancer_12/case0001", None),
    ],
)
def test_which_cases_are_normal(tmp_path, folder, pathology):
    writer.write([mammogram((), pathology="normal")], tmp_path / "made")
    (case,) = (tmp_path / "made").rglob("case0001")
    root = tmp_path / "read"
    (root / folder).parent.mkdir(parents=True)
    case.rename(root / folder)
    record, reasons = first(root)
    assert record.pathology == pathology and not reasons
    overlay = next(root.rglob("*.LJPEG")).with_suffix(".OVERLAY")
    overlay.touch()  # which the .ics does not name
    assert first(root)[0].pathology is None
    overlay.unlink()
    replace(next(root.rglob("*.ics")), "NON_OVERLAY", "OVERLAY")
    record, reasons = first(root)  # it should have one
    assert (record.pathology, record.lost, len(reasons)) == (None, (Lost(),), 1)


@pytest.mark.parametrize(
    ("letter", "digitizer", "scanner"),
    [
        ("A", "HOWTEK 43.5", "howtek_mgh"),
        ("D", "HOWTEK 960", "howtek_ismd"),
    ],
)
def test_scanners(small, letter, digitizer, scanner):
    replace(small / ICS, "B-0001", f"{letter}-0001")
    replace(small / ICS, "LUMISYS LASER", digitizer)
    for path in sorted((small / CASE).iterdir()):
        path.rename(path.with_name(letter + path.name[1:]))
    record, reasons = first(small)
    assert not reasons
    grey = writer.grey_level(3 - 2.95 * mammogram().pixels()[..., 0].astype(np.float64), "lumisys")
    expected = 1 - np.clip((ljpeg.optical_density(grey, scanner) - 0.05) / 2.95, 0, 1)
    np.testing.assert_allclose(record.pixels()[..., 0], expected, atol=1e-6)


# Damage


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("DIGITIZER LUMISYS LASER\n", "", "digitizer (not named) and cases B"),
        ("PIXELS_PER_LINE", "PIXELS", "no image with its LINES"),
        ("LINES 60 PIXELS_PER_LINE 44", "LINES 99999 PIXELS_PER_LINE 99999", "99999 x 99999"),
        ("filename B-0001-1", "filename B-0002-1", "RIGHT_MLO skipped: its file is missing"),
    ],
)
def test_a_case_that_can_not_be_read_is_noted_and_the_others_stay(small, old, new, word):
    writer.write([mammogram((), patient_id="q")], small / "more")
    (ics,) = (small / "more").rglob("*.ics")
    replace(ics, "0001", "0007")
    (image,) = (small / "more").rglob("*.LJPEG")
    image.rename(image.with_name(image.name.replace("0001", "0007")))
    replace(small / ICS, old, new)
    records, reasons = read(small)
    assert len(records) == 1 and list(reasons) == [ICS] and word in reasons[ICS]


def test_the_name_of_the_ics_serves_where_it_names_no_case(small):
    replace(small / ICS, "filename B-0001-1\n", "")
    assert len(read(small)[0]) == 2
    (small / ICS).rename(small / CASE / "header.ics")
    with pytest.raises(ArchiveError, match=r"header\.ics: names no case of the form B-3027-1"):
        ddsm.read(small)


@pytest.mark.parametrize(
    ("outlines", "word"),
    [
        *((f"BOUNDARY\n{chain}", "cut off") for chain in ("20 10 2 2 2 4 4 4", "", "20 #")),
        *((f"BOUNDARY\n20 10 2 {codes} 4 #", "of the form") for codes in ("8", "24", "-1")),
        ("BOUNDARY\n20 10 2 #", "2 points"),
        ("BOUNDARY\n90 10 2 2 4 4 6 6 0 0 #", "outside the image"),
        ("TOTAL_OUTLINES 1", "no BOUNDARY"),
        (None, "OTHER SKIN THICKENING"),
    ],
)
def test_an_abnormality_without_a_lesion_is_noted_and_the_others_stay(small, outlines, word):
    types = ["OTHER SKIN THICKENING"] if outlines is None else []
    bad = abnormality(*types, outlines=f"{outlines or BOUNDARY}\n", assessment="5")
    write_overlay(small, abnormality(), bad)
    record, reasons = first(small)
    assert [lesion.box for lesion in record.lesions] == [(10, 20, 19, 31)]
    assert (record.lost, record.birads, list(reasons)) == ((Lost(),), "5", [f"{STEM}.OVERLAY"])
    assert "abnormality 2" in reasons[f"{STEM}.OVERLAY"] and word in reasons[f"{STEM}.OVERLAY"]


@pytest.mark.parametrize(
    ("content", "counts"),
    [
        (b"TOTAL_ABNORMALITIES 0\n", "0 of 0"),
        (b"TOTAL_ABNORMALITIES 2\nABNORMALITY 1\nLESION_TYPE MASS SHAPE OVAL\n", "1 of 2"),
        (None, "is missing"),
    ],
)
def test_a_damaged_overlay_costs_the_lesions_but_not_the_mammogram(small, content, counts):
    path = small / f"{STEM}.OVERLAY"
    path.unlink() if content is None else path.write_bytes(content)
    record, reasons = first(small)
    facts = (record.lesions, record.pathology, record.birads, record.lost)
    assert facts == ((), None, None, (Lost(),))
    ((file, reason),) = reasons.items()
    assert file == (ICS if content is None else f"{STEM}.OVERLAY") and counts in reason


def test_a_case_that_is_there_twice(small):
    shutil.copytree(small / CASE, small / "copy")
    records, reasons = read(small)
    assert len(records) == 2 and list(reasons) == ["copy/B-0001-1.ics"]
