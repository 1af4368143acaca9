"""tfmammo.archives.ddsm on archives in DDSM's native form, written to disk by the phantom
or by hand.
"""

import gzip
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.archives.writers import ddsm as writer
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo.archives import ddsm, ljpeg, phantom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Mammogram, Skipped

MASS = Lesion.from_outline(
    "mass", SQUARE, ROWS, COLS, pathology="malignant", shape="oval", margin="ill_defined-spiculated"
)
CASE = "cases/cancers/cancer_01/case0001"
STEM = f"{CASE}/B_0001_1.LEFT_CC"
ICS = f"{CASE}/B-0001-1.ics"
SQUARE_CHAIN = "20 10 " + "2 " * 10 + "4 " * 8 + "6 " * 10 + "0 " * 8 + "#"
BOUNDARY = f"TOTAL_OUTLINES 1\nBOUNDARY\n{SQUARE_CHAIN}\n"


def mammogram(lesions=(MASS,), **facts) -> Mammogram:
    known = {
        "patient_id": "p",
        "pathology": "malignant",
        "spacing": (0.05, 0.05),
        "birads": "4",
        "density": "2",
    }
    return make_mammogram(1, ramp(0.1), lesions, **known | facts)


@pytest.fixture
def small(tmp_path):
    """One cancer case of two views: a mass in LEFT_CC, nothing in RIGHT_MLO."""
    writer.write([mammogram(), mammogram((), view="MLO", laterality="R", pathology=None)], tmp_path)
    return tmp_path


def read(root: Path) -> tuple[list[Mammogram], dict[str, str]]:
    skipped = Skipped()
    return ddsm.read(root, skipped), skipped.reasons


def first(root: Path) -> tuple[Mammogram, dict[str, str]]:
    records, reasons = read(root)
    return records[0], reasons


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="ascii")
    assert old in text
    path.write_text(text.replace(old, new), encoding="ascii")


def write_overlay(root: Path, *abnormalities: str, total: int | None = None) -> None:
    lines = [f"TOTAL_ABNORMALITIES {len(abnormalities) if total is None else total}"]
    lines += [f"ABNORMALITY {number}\n{text}" for number, text in enumerate(abnormalities, start=1)]
    (root / f"{STEM}.OVERLAY").write_text("\n".join(lines), encoding="ascii")


def abnormality(*types: str, pathology="BENIGN", assessment="3", outlines=BOUNDARY) -> str:
    named = "".join(
        f"LESION_TYPE {words}\n" for words in types or ("MASS SHAPE OVAL MARGINS CIRCUMSCRIBED",)
    )
    return f"{named}ASSESSMENT {assessment}\nSUBTLETY 4\nPATHOLOGY {pathology}\n{outlines}"


def dice(a, b) -> float:
    return 2 * np.sum(a * b) / (np.sum(a) + np.sum(b))


@pytest.fixture(scope="module", params=["lumisys", "dba"])
def round_trip(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("ddsm")
    originals = phantom.read(count=6, seed=3)
    paths = writer.write(
        originals, root, scanner=request.param, transposed=True, selected=True, laser=False
    )
    return originals, paths, root, request.param


def records_of(root: Path, paths: list[Path]) -> list[Mammogram]:
    by_path = {record.read.args[0]: record for record in ddsm.read(root)}
    return [by_path[path] for path in paths]


@pytest.mark.slow
def test_round_trip_of_outlines_and_facts(round_trip):
    originals, paths, root, _ = round_trip
    assert not read(root)[1]
    for original, record in zip(originals, records_of(root, paths), strict=True):
        for fact in ("rows", "cols", "laterality", "view", "density", "spacing"):
            assert getattr(record, fact) == getattr(original, fact), fact
        assert record.birads == (original.birads[0] if original.lesions else None)
        assert len(record.lesions) == len(original.lesions)
        for ours, theirs in zip(record.lesions, original.lesions, strict=True):
            np.testing.assert_array_equal(
                ours.mask(record.rows, record.cols), theirs.mask(record.rows, record.cols)
            )
            assert (ours.kind, ours.pathology, ours.shape, ours.margin) == (
                theirs.kind,
                theirs.pathology,
                theirs.shape,
                theirs.margin,
            )
        patient_has_lesions = any(
            other.lesions for other in originals if other.patient_id == original.patient_id
        )
        assert record.pathology == (
            None if patient_has_lesions and not original.lesions else original.pathology
        )


def test_round_trip_keeps_patients_apart_and_together(round_trip):
    originals, paths, root, _ = round_trip
    pairs = {
        (a.patient_id, b.patient_id)
        for a, b in zip(originals, records_of(root, paths), strict=True)
    }
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) > 1
    assert all(a != b for a, b in pairs)


def test_round_trip_of_pixels(round_trip):
    originals, paths, root, scanner = round_trip
    record = records_of(root, paths)[0]
    original = originals[0].pixels()[..., 0].astype(np.float64)
    if scanner == "lumisys":
        grey = np.clip(np.rint(4096.99 - 1009.01 * (3 - 2.95 * original)), 0, 4095)
        density = (4096.99 - grey) / 1009.01
    else:
        grey = np.clip(np.rint(10 ** (4.80662 - 1.07553 * (3 - 2.95 * original))), 0, 65535)
        density = (4.80662 - np.log10(grey)) / 1.07553
    expected = np.clip((3 - density) / 2.95, 0, 1)
    image = record.pixels()
    assert np.abs(image[..., 0] - expected).max() < 1e-6  # one grey level is at least 2e-6
    assert np.abs(image[..., 0] - original).max() < (2e-4 if scanner == "lumisys" else 3e-3)


def test_a_record_can_be_pickled(small):
    record = pickle.loads(pickle.dumps(ddsm.read(small)[0]))
    assert record.pixels().shape == (ROWS, COLS, 1)


def test_facts_of_a_case(small):
    (left, right), reasons = read(small)
    assert not reasons
    assert (left.laterality, left.view, left.spacing, left.birads, left.density) == (
        "L",
        "CC",
        (0.05, 0.05),
        "4",
        "2",
    )
    # what is unmarked in a cancer case is not proven normal
    assert (left.pathology, right.pathology) == ("malignant", None)
    assert (right.laterality, right.view, right.lesions, right.birads) == ("R", "MLO", (), None)
    assert left.patient_id == right.patient_id and left.image_id == f"{left.patient_id}_L_CC"
    (lesion,) = left.lesions
    assert (lesion.kind, lesion.shape, lesion.margin, lesion.kind_is_certain) == (
        "mass",
        "oval",
        "ill_defined-spiculated",
        True,
    )
    assert lesion.box == (10, 20, 19, 31)


def test_nothing_but_files_names_the_case(small):
    replace(small / ICS, "DENSITY 2", "DENSITY 0")
    (small / f"{CASE}/B_0001_1.RIGHT_MLO.LJPEG").unlink()
    (record,), reasons = read(small)
    assert record.density is None
    assert "0001" not in record.patient_id + record.image_id + "".join(reasons.values())


@pytest.mark.parametrize("form", ["LJPEG", "LJPEG.1", "tif", "png"])
def test_forms_of_the_image(tmp_path, form):
    (path,) = writer.write([mammogram()], tmp_path, form=form)
    assert path.name == f"B_0001_1.LEFT_CC.{form}"
    record, reasons = first(tmp_path)
    assert not reasons
    np.testing.assert_allclose(record.pixels(), mammogram().pixels(), atol=2e-4)


def test_a_decoded_file_is_preferred(small):
    (small / f"{STEM}.LJPEG").write_bytes(b"damaged")
    for form, grey in (("png", 1500), ("tif", 2000)):
        Image.fromarray(np.full((ROWS, COLS), grey, np.uint16)).save(small / f"{STEM}.{form}")
    raw = np.full((ROWS, COLS), 3000, ">u2").tobytes()
    (small / f"{STEM}.LJPEG.1").write_bytes(raw)
    for name, grey in ((f"{STEM}.LJPEG.1", 3000), (f"{STEM}.tif", 2000), (f"{STEM}.png", 1500)):
        expected = (3 - (4096.99 - grey) / 1009.01) / 2.95
        np.testing.assert_allclose(ddsm.read(small)[0].pixels(), expected, atol=1e-6)
        (small / name).unlink()
    with pytest.raises(ArchiveError, match=r"B_0001_1\.LEFT_CC\.LJPEG: is no JPEG"):
        ddsm.read(small)[0].pixels()


def test_gzipped_files_as_in_benign_01(small):
    before = ddsm.read(small)[0]
    expected = before.pixels()
    for form in ("LJPEG", "OVERLAY"):
        path = small / f"{STEM}.{form}"
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    record, reasons = first(small)
    assert not reasons and record.lesions[0].box == before.lesions[0].box
    np.testing.assert_array_equal(record.pixels(), expected)


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


def test_upper_and_lower_case_and_either_joint(small):
    for path in sorted((small / CASE).iterdir()):
        path.rename(path.with_name(path.name.swapcase().replace("-", "_")))
    records, reasons = read(small)
    assert not reasons and [len(record.lesions) for record in records] == [1, 0]


def test_several_cases_in_one_folder(tmp_path):
    writer.write(
        [mammogram(), mammogram((), patient_id="q", pathology="malignant")], tmp_path / "tree"
    )
    for path in sorted((tmp_path / "tree").rglob("B*")):
        shutil.copy(path, tmp_path)
    shutil.rmtree(tmp_path / "tree")
    records, reasons = read(tmp_path)
    assert [len(record.lesions) for record in records] == [1, 0] and not reasons
    assert records[0].patient_id != records[1].patient_id


# A closed walk that takes every direction, by hand: col 20, row 30, then up, up-right, right,
# down-right, down, down-left, left, up-left, each twice.
ALL = "20 30 0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 #"
ALL_POINTS = [
    (30, 20),
    (29, 20),
    (28, 20),
    (27, 21),
    (26, 22),
    (26, 23),
    (26, 24),
    (27, 25),
    (28, 26),
    (29, 26),
    (30, 26),
]
ALL_POINTS += [(31, 25), (32, 24), (32, 23), (32, 22), (31, 21), (30, 20)]


def test_chain_by_hand(small):
    write_overlay(small, abnormality(outlines=f"TOTAL_OUTLINES 1\nBOUNDARY\n{ALL}\n"))
    record, reasons = first(small)
    (lesion,) = record.lesions
    assert not reasons
    np.testing.assert_array_equal(lesion.outlines[0], ALL_POINTS)
    assert lesion.box == (26, 20, 33, 27)
    assert lesion.mask(ROWS, COLS).sum() == 3 + 5 + 7 + 7 + 7 + 5 + 3


def test_the_writers_chain_is_the_same_walk():
    lesion = Lesion.from_outline("mass", np.float32(ALL_POINTS), ROWS, COLS)
    (chain,) = [
        line for line in writer.overlay(mammogram((lesion,))).splitlines() if line.endswith("#")
    ]
    codes = chain.split()[2:-1]
    assert sorted(codes) == sorted(ALL.split()[2:-1])


def test_cores_are_kept_out_and_their_number_is_not_believed(small):
    core = f"\tCORE\n{ALL}\n"
    for number in (1, 2, 3, 9):
        write_overlay(
            small,
            abnormality(
                outlines=f"TOTAL_OUTLINES {number}\nBOUNDARY\n{SQUARE_CHAIN}\n\n{core}\n{core}"
            ),
            abnormality(),
        )
        record, reasons = first(small)
        assert [lesion.box for lesion in record.lesions] == [(10, 20, 19, 31)] * 2 and not reasons


@pytest.mark.parametrize(
    ("types", "lesions"),
    [
        (["MASS SHAPE ROUND MARGINS CIRCUMSCRIBED"], [("mass", "round", "circumscribed", True)]),
        (
            ["MASS SHAPE IRREGULAR-ARCHITECTURAL_DISTORTION MARGINS N/A"],
            [("mass", "irregular-architectural_distortion", None, True)],
        ),
        (
            ["MASS SHAPE ARCHITECTURAL_DISTORTION MARGINS ILL_DEFINED"],
            [("mass", "architectural_distortion", "ill_defined", False)],
        ),
        (["MASS SHAPE N/A MARGINS N/A"], [("mass", None, None, True)]),
        (["MASS SHAPE MARGINS SPICULATED"], [("mass", None, "spiculated", True)]),
        (
            ["CALCIFICATION TYPE PLEOMORPHIC DISTRIBUTION CLUSTERED"],
            [("calcification", "pleomorphic", None, True)],
        ),
        (
            [
                "CALCIFICATION TYPE FINE_LINEAR_BRANCHING DISTRIBUTION LINEAR",
                "MASS SHAPE OVAL MARGINS OBSCURED",
            ],
            [
                ("calcification", "fine_linear_branching", None, True),
                ("mass", "oval", "obscured", True),
            ],
        ),
        (
            ["MASS SHAPE OVAL MARGINS OBSCURED", "MASS SHAPE ROUND MARGINS OBSCURED"],
            [("mass", "oval", "obscured", True)],
        ),
        (["OTHER ASYMMETRIC TISSUE"], [("asymmetry", None, None, True)]),
        (["OTHER ARCHITECTURAL DISTORTION"], [("distortion", None, None, True)]),
        (["OTHER SKIN THICKENING", "MASS SHAPE OVAL MARGINS N/A"], [("mass", "oval", None, True)]),
    ],
)
def test_lesion_types(small, types, lesions):
    write_overlay(small, abnormality(*types))
    record, reasons = first(small)
    assert [
        (lesion.kind, lesion.shape, lesion.margin, lesion.kind_is_certain)
        for lesion in record.lesions
    ] == lesions
    assert {lesion.box for lesion in record.lesions} == {(10, 20, 19, 31)}
    assert not reasons


@pytest.mark.parametrize(
    ("pathologies", "of_lesions", "of_image"),
    [
        (["BENIGN"], ["benign"], "benign"),
        (["BENIGN_WITHOUT_CALLBACK"], ["benign"], "benign"),
        (["UNPROVEN"], [None], None),
        (["BENIGN", "UNPROVEN"], ["benign", None], None),
        (["BENIGN", "MALIGNANT", "UNPROVEN"], ["benign", "malignant", None], "malignant"),
    ],
)
def test_pathology(small, pathologies, of_lesions, of_image):
    write_overlay(small, *[abnormality(pathology=pathology) for pathology in pathologies])
    record, _ = first(small)
    assert [lesion.pathology for lesion in record.lesions] == of_lesions
    assert record.pathology == of_image


@pytest.mark.parametrize(
    ("assessments", "birads"), [("25", "5"), ("0", "0"), ("03", "3"), ("x", None)]
)
def test_birads_is_the_highest_assessment(small, assessments, birads):
    write_overlay(small, *[abnormality(assessment=assessment) for assessment in assessments])
    assert first(small)[0].birads == birads


@pytest.mark.parametrize(
    ("folder", "pathology"),
    [
        ("cases/normals/normal_01/case0001", "normal"),
        ("cases/normals/case0001", "normal"),
        ("case0001", "normal"),  # only normal cases have no overlay, says DDSM
        ("cases/cancers/cancer_12/case0001", None),
        ("cases/benigns/benign_01/case0001", None),
        ("cases/benign_without_callbacks/benign_without_callback_02/case0001", None),
        ("normals/cancer_12/case0001", None),
    ],
)
def test_which_cases_are_normal(tmp_path, folder, pathology):
    writer.write([mammogram((), pathology="normal")], tmp_path / "made")
    (case,) = (tmp_path / "made").rglob("case0001")
    (tmp_path / "read" / folder).parent.mkdir(parents=True)
    case.rename(tmp_path / "read" / folder)
    record, reasons = first(tmp_path / "read")
    assert record.pathology == pathology and not reasons


def test_a_case_that_should_have_overlays_is_not_normal(tmp_path):
    writer.write([mammogram((), pathology="normal")], tmp_path)
    (path,) = tmp_path.rglob("*.ics")
    replace(path, "NON_OVERLAY", "OVERLAY")
    record, reasons = first(tmp_path)
    assert record.pathology is None
    assert list(reasons.values()) == ["LEFT_CC kept without lesions: its overlay is missing"]


@pytest.mark.parametrize(
    ("letter", "digitizer", "scanner"),
    [
        ("A", "DBA 21", "dba"),
        ("A", "HOWTEK 43.5", "howtek_mgh"),
        ("A", "Howtek", "howtek_mgh"),
        ("D", "HOWTEK 960", "howtek_ismd"),
        ("B", "LUMISYS LASER", "lumisys"),
        ("C", "LUMISYS", "lumisys"),
        ("C", "LUMISYS LASER_DENSOTOMETER", "lumisys"),
    ],
)
def test_scanners(small, letter, digitizer, scanner):
    (small / ICS).write_text(
        (small / ICS)
        .read_text(encoding="ascii")
        .replace("B-0001", f"{letter}-0001")
        .replace("LUMISYS LASER", digitizer),
        encoding="ascii",
    )
    for path in sorted((small / CASE).iterdir()):
        path.rename(path.with_name(letter + path.name[1:]))
    record, reasons = first(small)
    assert not reasons
    assert record.read.args[1] == scanner
    grey = ljpeg.grey_level(3 - 2.95 * mammogram().pixels()[..., 0].astype(np.float64), "lumisys")
    expected = 1 - np.clip((ljpeg.optical_density(grey, scanner) - 0.05) / 2.95, 0, 1)
    np.testing.assert_allclose(record.pixels()[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("LUMISYS LASER", "EPSON", "no calibration is known for digitizer (not named) and cases B"),
        (
            "DIGITIZER LUMISYS LASER\n",
            "",
            "no calibration is known for digitizer (not named) and cases B",
        ),
        (
            "LUMISYS LASER",
            "HOWTEK 43.5",
            "no calibration is known for digitizer HOWTEK and cases B",
        ),
        ("PIXELS_PER_LINE", "PIXELS", "lists no image with its LINES and PIXELS_PER_LINE"),
        (
            "LINES 60",
            "LINES 00",
            "LEFT_CC left out: its size is 0 x 44; RIGHT_MLO left out: its size is 0 x 44",
        ),
        (
            "LINES 60 PIXELS_PER_LINE 44",
            "LINES 99999 PIXELS_PER_LINE 99999",
            "LEFT_CC left out: its size is 99999 x 99999; RIGHT_MLO",
        ),
        (
            "filename B-0001-1",
            "filename B-0002-1",
            "LEFT_CC left out: its file is missing; RIGHT_MLO left out: its file is missing",
        ),
    ],
)
def test_a_case_that_can_not_be_read_is_noted_and_the_others_stay(
    small, tmp_path_factory, old, new, reason
):
    writer.write([mammogram(patient_id="other")], small / "more")
    (other,) = (small / "more").rglob("case0001")
    for path in sorted(other.iterdir()):
        path.rename(path.with_name(path.name.replace("0001", "0007")))
    replace(next(other.glob("*.ics")), "0001", "0007")
    replace(small / ICS, old, new)
    records, reasons = read(small)
    assert len(records) == 1
    ((file, noted),) = reasons.items()
    assert file == ICS and noted.startswith(reason)
    shutil.rmtree(small / "more")
    with pytest.raises(
        ArchiveError,
        match=r"holds no image of DDSM that can be read .*the first is "
        r".*B-0001-1.ics: ",
    ):
        ddsm.read(small)


def test_the_name_of_the_ics_serves_where_it_names_no_case(small):
    replace(small / ICS, "filename B-0001-1\n", "")
    assert len(read(small)[0]) == 2
    (small / ICS).rename(small / CASE / "header.ics")
    with pytest.raises(ArchiveError, match=r"header\.ics: names no case of the form B-3027-1"):
        ddsm.read(small)


def test_missing_files_are_noted(small):
    (small / f"{STEM}.OVERLAY").unlink()
    (small / f"{CASE}/B_0001_1.RIGHT_MLO.LJPEG").unlink()
    (record,), reasons = read(small)
    assert (record.lesions, record.pathology, record.lost) == ((), None, (Lost(),))
    assert reasons == {
        ICS: "LEFT_CC kept without lesions: its overlay is missing; RIGHT_MLO left out: its file "
        "is missing"
    }


@pytest.mark.parametrize(
    ("outlines", "reason"),
    [
        ("BOUNDARY\n20 10 2 2 2 4 4 4", "its chain is cut off"),
        ("BOUNDARY\n", "its chain is cut off"),
        ("BOUNDARY\n#", "its chain is cut off"),
        ("BOUNDARY\n20 #", "its chain is cut off"),
        ("BOUNDARY\n20 10 2 8 4 #", "its chain is not of the form col row c c c ... #"),
        ("BOUNDARY\n20 10 2 24 4 #", "its chain is not of the form col row c c c ... #"),
        ("BOUNDARY\n20 -10 2 2 4 #", "its chain is not of the form col row c c c ... #"),
        ("BOUNDARY\n20 10 2 #", "an outline of 2 points encloses nothing"),
        ("BOUNDARY\n20 10 #", "an outline of 1 points encloses nothing"),
        ("BOUNDARY\n90 10 2 2 4 4 6 6 0 0 #", "the outline lies outside the image"),
        ("TOTAL_OUTLINES 1", "it has no BOUNDARY"),
    ],
)
def test_an_abnormality_with_a_bad_chain_is_noted_and_the_others_stay(small, outlines, reason):
    write_overlay(small, abnormality(), abnormality(outlines=outlines + "\n", assessment="5"))
    record, reasons = first(small)
    assert [lesion.box for lesion in record.lesions] == [(10, 20, 19, 31)]
    assert record.lost == (Lost(),)
    assert reasons == {f"{STEM}.OVERLAY": f"abnormality 2 left out: {reason}"}
    assert record.birads == "5"


def test_a_chain_that_leaves_the_image_is_cut_at_its_border(small):
    write_overlay(
        small,
        abnormality(
            outlines="BOUNDARY\n38 10 " + "2 " * 10 + "4 " * 8 + "6 " * 10 + "0 " * 8 + "#\n"
        ),
    )
    record, reasons = first(small)
    assert record.lesions[0].box == (10, 38, 19, 44)
    assert not reasons


def test_another_finding_is_noted(small):
    write_overlay(small, abnormality("OTHER SKIN THICKENING"), abnormality())
    record, reasons = first(small)
    assert len(record.lesions) == 1
    assert reasons == {
        f"{STEM}.OVERLAY": "abnormality 1 left out: its type is OTHER SKIN THICKENING, which is "
        "no lesion of ours"
    }


@pytest.mark.parametrize(
    ("content", "counts"),
    [
        (b"", "0 of 0"),
        (b"\xff\xfe\x00 binary", "0 of 0"),
        (b"TOTAL_ABNORMALITIES 0\n", "0 of 0"),
        (
            b"TOTAL_ABNORMALITIES 2\nABNORMALITY 1\nLESION_TYPE MASS SHAPE OVAL MARGINS N/A\n",
            "1 of 2",
        ),
        (f"TOTAL_ABNORMALITIES 1\n{BOUNDARY}".encode(), "0 of 1"),
    ],
)
def test_a_damaged_overlay_costs_the_lesions_but_not_the_mammogram(small, content, counts):
    (small / f"{STEM}.OVERLAY").write_bytes(content)
    record, reasons = first(small)
    assert (record.lesions, record.pathology, record.birads) == ((), None, None)
    assert record.lost == (Lost(),)
    assert reasons == {
        f"{STEM}.OVERLAY": f"its mammogram is kept without lesions: is no whole overlay, {counts} "
        "abnormalities are there"
    }


def test_an_overlay_that_can_not_be_unpacked(small):
    (small / f"{STEM}.OVERLAY").rename(small / f"{STEM}.OVERLAY.gz")
    assert read(small)[1] == {
        f"{STEM}.OVERLAY.gz": "its mammogram is kept without lesions: can't be read (BadGzipFile)"
    }


def test_a_case_that_is_there_twice(small):
    shutil.copytree(small / CASE, small / "copy")
    records, reasons = read(small)
    assert len(records) == 2
    assert reasons == {"copy/B-0001-1.ics": "left out, the case is there a second time"}


def test_linked_folders_are_followed_and_cycles_end(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("links")
    (root / "cases").symlink_to(small / "cases")
    for name in ("a", "b", "c"):
        (root / name).symlink_to(root)
    records, reasons = read(root)
    assert len(records) == 2 and not reasons


def test_what_macos_and_the_archive_leave_beside_does_not_matter(small):
    for name in (
        "._B-0001-1.ics",
        "._B_0001_1.LEFT_CC.LJPEG",
        "TAPE_B_0001_1.COMB.16_PGM",
        "B_0001_1.LEFT_CC.LJPEG.1_highpass.gif",
    ):
        (small / CASE / name).write_bytes(b"something")
    records, reasons = read(small)
    assert len(records) == 2 and not reasons


def test_what_is_no_archive(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ArchiveError, match=rf"{root}: is no DDSM archive, it holds no \.ics file"
        ):
            ddsm.read(root)


def test_headers_without_images(small):
    for path in (small / CASE).glob("*.LJPEG"):
        path.unlink()
    with pytest.raises(ArchiveError, match="holds no image of DDSM"):
        ddsm.read(small)


def test_the_writer_needs_laterality_and_view(tmp_path):
    with pytest.raises(ValueError, match="laterality and view, and one is missing"):
        writer.write([mammogram(view=None)], tmp_path)


def test_the_writers_quirks(tmp_path):
    (path,) = writer.write([mammogram()], tmp_path, selected=True, laser=False, transposed=True)
    text = path.with_name("B-0001-1.ics").read_text(encoding="ascii")
    assert (
        "DIGITIZER LUMISYS\nSELECTED\nLEFT_CC LINES 60 PIXELS_PER_LINE 44 BITS_PER_PIXEL 12 "
        "RESOLUTION 50 OVERLAY\n" in text
    )
    assert path.read_bytes()[7:11] == bytes([0, 44, 0, 60])
    record, reasons = first(tmp_path)
    assert not reasons
    np.testing.assert_allclose(record.pixels(), mammogram().pixels(), atol=2e-4)
