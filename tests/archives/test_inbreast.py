"""tfmammo.archives.inbreast on archives in INbreast's native form, written to disk by the
phantom.
"""

import pickle
import plistlib
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.archives.writers import inbreast as writer
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo.archives import inbreast, phantom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Mammogram, Skipped

MASS = (Lesion.from_outline("mass", SQUARE, ROWS, COLS),)


def mammogram(number: int, lesions=MASS, **facts) -> Mammogram:
    known = {"patient_id": f"aa{number}", "spacing": (0.07, 0.07), "birads": "4b", "density": "2"}
    return make_mammogram(number, ramp(number / 10), lesions, **known | facts)


@pytest.fixture
def small(tmp_path):
    """Two breasts of one kind of patient: file 20000001 with a mass, 20000002 without findings."""
    writer.write([mammogram(1), mammogram(2, (), view="MLO", laterality="R", birads="1")], tmp_path)
    return tmp_path


def dicom_of(root: Path, number: int) -> Path:
    (path,) = (root / "AllDICOMs").glob(f"{number}_*.dcm")
    return path


def write_regions(root: Path, *regions: dict, number: int = 20000001) -> None:
    with (root / "AllXML" / f"{number}.xml").open("wb") as file:
        plistlib.dump(
            {"Images": [{"ImageIndex": 0, "NumberOfROIs": len(regions), "ROIs": list(regions)}]},
            file,
        )


def region(points=SQUARE, name: str | None = "Mass", **facts) -> dict:
    content = {"Point_px": [f"({col:.6f}, {row:.6f})" for row, col in points], "Type": 15} | facts
    return content if name is None else content | {"Name": name}


def first(root: Path) -> tuple[Mammogram, Skipped]:
    skipped = Skipped()
    return inbreast.read(root, skipped)[0], skipped


def dice(a, b) -> float:
    return 2 * np.sum(a * b) / (np.sum(a) + np.sum(b))


@pytest.fixture(scope="module", params=[False, True], ids=["MONOCHROME2", "MONOCHROME1"])
def round_trip(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("inbreast") / "INbreast Release 1.0"
    originals = phantom.read(count=8, seed=3)
    paths = writer.write(originals, root, bits=14, monochrome1=request.param, xls=True)
    return originals, paths, root, request.param


def test_round_trip_of_outlines_and_facts(round_trip):
    originals, _, root, _ = round_trip
    skipped = Skipped()
    records = inbreast.read(root.parent, skipped)
    assert not skipped.reasons
    assert [record.image_id for record in records] == [
        str(20_000_001 + index) for index in range(8)
    ]
    for original, record in zip(originals, records, strict=True):
        for fact in ("rows", "cols", "laterality", "view", "birads", "density", "spacing"):
            assert getattr(record, fact) == getattr(original, fact), fact
        assert [lesion.kind for lesion in record.lesions] == [
            lesion.kind for lesion in original.lesions
        ]
        for ours, theirs in zip(record.lesions, original.lesions, strict=True):
            assert (
                dice(ours.mask(record.rows, record.cols), theirs.mask(record.rows, record.cols))
                >= 0.99
            )
            assert ours.box == theirs.box
        assert record.pathology == ("normal" if original.pathology == "normal" else None)


def test_round_trip_keeps_patients_apart_and_together(round_trip):
    originals, _, root, _ = round_trip
    pairs = {
        (a.patient_id, b.patient_id) for a, b in zip(originals, inbreast.read(root), strict=True)
    }
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert all(a != b for a, b in pairs)


def test_round_trip_of_pixels(round_trip):
    originals, paths, root, inverted = round_trip
    records = inbreast.read(root)
    for index in (0, 7):
        stored = pydicom.dcmread(paths[index]).pixel_array.astype(int)
        stored = 2**14 - 1 - stored if inverted else stored
        image = records[index].pixels()
        np.testing.assert_array_equal(
            np.rint(image[..., 0].astype(np.float64) * (2**14 - 1)), stored
        )
        assert np.abs(image - originals[index].pixels()).max() <= 0.5 / (2**14 - 1) + 1e-6


def test_the_window_is_not_applied(small):
    path = dicom_of(small, 20000001)
    expected = inbreast.read(small)[0].pixels()
    dataset = pydicom.dcmread(path)
    dataset.WindowCenter = 500
    dataset.WindowWidth = 100
    dataset.save_as(path)
    np.testing.assert_array_equal(inbreast.read(small)[0].pixels(), expected)


def test_reading_is_lazy_and_records_pickle(small):
    record = inbreast.read(small)[0]
    image = record.pixels()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(record)).pixels(), image)
    dicom_of(small, 20000001).unlink()
    with pytest.raises(ArchiveError, match=r"20000001_aa1_MG_L_CC_ANON\.dcm: no such file"):
        record.pixels()


def test_x_is_the_column_and_y_the_row(small):
    write_regions(
        small,
        {
            "Name": "Mass",
            "Type": 15,
            "Point_px": ["(30.0, 10.0)", "(40.0, 10.0)", "(40.0, 50.0)", "(30.0, 50.0)"],
        },
    )
    record, _ = first(small)
    assert record.lesions[0].box == (10, 30, 51, 41)


def test_folders_and_tables_are_found_in_any_case_anywhere(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("other")
    deep = root / "a" / "b"
    shutil.copytree(small / "AllDICOMs", deep / "ALLDICOMS")
    shutil.copytree(small / "AllXML", root / "allxml")
    shutil.copy(small / "INbreast.csv", deep / "inbreast.CSV")
    (deep / "ALLDICOMS" / "._20000001_aa1_MG_L_CC_ANON.dcm").write_bytes(b"macOS")
    skipped = Skipped()
    records = inbreast.read(root, skipped)
    assert not skipped.reasons
    assert [(len(record.lesions), record.birads) for record in records] == [(1, "4b"), (0, "1")]


def test_linked_folders_are_followed(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("links")
    for name in ("AllDICOMs", "AllXML", "INbreast.csv"):
        (root / name).symlink_to(small / name)
    assert len(inbreast.read(root)) == 2


def test_identifiers_are_pseudonyms(small):
    record, _ = first(small)
    assert "aa1" not in record.patient_id + record.image_id
    assert len(record.patient_id) == 12


def test_kinds_of_all_known_names(small):
    names = {
        "MASS": "mass",
        "calcifications": "calcification",
        "Calcification": "calcification",
        "Cluster": "calcification",
        "Distortion": "distortion",
        " Asymmetry ": "asymmetry",
        "Assymetry": "asymmetry",
        "Spiculated region": "distortion",
        "Espiculated Region": "distortion",
    }
    write_regions(small, *(region(name=name) for name in names))
    record, skipped = first(small)
    assert [lesion.kind for lesion in record.lesions] == list(names.values())
    assert not skipped.reasons


def test_a_spiculated_region_is_no_mass(small):
    write_regions(small, region(), region(SQUARE * 1.5, name="Spiculated Region"))
    record, _ = first(small)
    mass, spicules = record.lesions
    assert (mass.kind, mass.margin, mass.kind_is_certain) == ("mass", None, True)
    assert (spicules.kind, spicules.margin, spicules.kind_is_certain) == (
        "distortion",
        "spiculated",
        False,
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (region(name="Unnamed"), "ROI 2 'Unnamed' left out: the name is unknown"),
        (region(name=None), "ROI 2 '' left out: the name is unknown"),
        (region(SQUARE[:1]), "ROI 2 'Mass' left out: a single point"),
        (region(Type=19), "ROI 2 'Mass' left out: a single point"),
        (region(SQUARE[:2]), "ROI 2 'Mass' left out: 2 points enclose nothing"),
        (region(SQUARE[:0]), "ROI 2 'Mass' left out: 0 points enclose nothing"),
        (region(SQUARE + 500), "ROI 2 'Mass' left out: the outline lies outside the image"),
        (region(Point_px="(1, 2)"), "ROI 2 'Mass' left out: it has no list Point_px"),
        (region(Point_px=[1.0, 2.0, 3.0]), "ROI 2 'Mass' left out: it has no list Point_px"),
        (
            region(Point_px=["(1, 2)", "(3, 4)", "(5, 6"]),
            "ROI 2 'Mass' left out: the point '(5, 6' is not of the form (x, y)",
        ),
        (
            region(Point_px=["(1, 2)", "(3, 4)", "(5, nan)"]),
            "ROI 2 'Mass' left out: the point '(5, nan)' is not of the form (x, y)",
        ),
        (
            region(Point_px=["(1, 2)", "(3, 4)", "(5; 6)"]),
            "ROI 2 'Mass' left out: the point '(5; 6)' is not of the form (x, y)",
        ),
        (
            region(Point_px=["(1, 2)", "(3, 4)", "(5, 6, 7)"]),
            "ROI 2 'Mass' left out: the point '(5, 6, 7)' is not of the form (x, y)",
        ),
    ],
)
def test_a_region_that_is_no_lesion_is_noted_and_the_others_stay(small, bad, reason):
    write_regions(small, region(), bad)
    record, skipped = first(small)
    assert [lesion.kind for lesion in record.lesions] == ["mass"]
    assert skipped.reasons == {"AllXML/20000001.xml": reason}


def test_regions_of_one_name_and_reason_share_a_note(small):
    point = region(SQUARE[:1], name="Calcification", Type=19)
    write_regions(small, point, region(), point, point, region(name="Point 3"))
    record, skipped = first(small)
    assert len(record.lesions) == 1
    assert skipped.reasons == {
        "AllXML/20000001.xml": "ROI 1, 3, 4 'Calcification' left out: a single point; ROI 5 "
        "'Point 3' left out: the name is unknown"
    }


def test_pectoral_outlines_are_no_findings(small):
    write_regions(small, region(Point_px=["{1, 2}", "{3, 4}", "{5, 9}"], name="Pectoral Muscle"))
    record, skipped = first(small)
    assert record.lesions == ()
    assert not skipped.reasons


def test_an_outline_partly_off_the_image_is_cut_at_its_border(small):
    write_regions(small, region(SQUARE - [15, 0]))
    record, skipped = first(small)
    assert not skipped.reasons
    assert record.lesions[0].box == (0, 20, 4, 31)
    assert record.lesions[0].mask(ROWS, COLS).sum() == 4 * 11


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no XML at all",
        b"<?xml version='1.0'?><plist><dict><key>Images</key>",
        b"<?xml version='1.0'?><plist><dict></dict></plist>",
        b"<?xml version='1.0'?><plist><dict><key>Images</key><array/></dict></plist>",
        b"<?xml version='1.0'?><plist><array><integer>three</integer></array></plist>",
        b"<?xml version='1.0'?><plist><date>yesterday</date></plist>",
        b"<?xml version='1.0'?><plist><dict><key>Images</key><array><dict><key>ROIs</key>"
        b"<string>x</string></dict></array></dict></plist>",
        b"<?xml version='1.0' encoding='no-such'?><plist></plist>",
        b"<?xml version='1.0'?><!DOCTYPE p [<!ENTITY a "
        b"'aaaa'>]><plist><string>&a;</string></plist>",
    ],
)
def test_a_damaged_xml_costs_the_lesions_but_not_the_mammogram(small, content):
    (small / "AllXML" / "20000001.xml").write_bytes(content)
    record, skipped = first(small)
    assert record.lesions == () and record.pathology is None and record.lost == (Lost(),)
    (reason,) = skipped.reasons.values()
    assert reason.startswith("its mammogram is kept without lesions: not an OsiriX plist (")
    assert "\n" not in reason


def test_no_xml_is_normal_where_the_table_says_birads_1(small):
    record = inbreast.read(small)[1]
    assert (record.pathology, record.lesions) == ("normal", ())


def test_no_xml_is_noted_where_the_table_expects_findings(small):
    (small / "AllXML" / "20000001.xml").unlink()
    record, skipped = first(small)
    assert (record.pathology, record.lesions, record.lost) == (None, (), (Lost(),))
    assert skipped.reasons == {
        "AllDICOMs/20000001_aa1_MG_L_CC_ANON.dcm": "kept without lesions: no XML for 20000001, "
        "though its BI-RADS is 4b"
    }


@pytest.mark.parametrize(
    ("lesions", "notes"),
    [((), 0), ((Lesion.from_outline("calcification", SQUARE, ROWS, COLS),), 1)],
)
def test_the_marks_of_the_xls_say_whether_an_xml_is_missing(tmp_path, lesions, notes):
    writer.write([mammogram(1, lesions, birads="2")], tmp_path, xls=True)
    (tmp_path / "AllXML" / "20000001.xml").unlink(missing_ok=True)
    record, skipped = first(tmp_path)
    assert record.pathology is None
    assert len(skipped) == notes


def test_birads_1_with_an_outline_is_not_called_normal(tmp_path):
    writer.write([mammogram(1, birads="1")], tmp_path)
    assert inbreast.read(tmp_path)[0].pathology is None


@pytest.mark.parametrize("kept", ["INbreast.csv", "INbreast.xls"])
def test_each_table_is_enough(tmp_path, kept):
    writer.write([mammogram(1), mammogram(2, density=None)], tmp_path, xls=True)
    for name in {"INbreast.csv", "INbreast.xls"} - {kept}:
        (tmp_path / name).unlink()
    skipped = Skipped()
    records = inbreast.read(tmp_path, skipped)
    assert [(record.birads, record.density) for record in records] == [("4b", "2"), ("4b", None)]
    assert not skipped.reasons


def test_no_table_at_all(small):
    (small / "INbreast.csv").unlink()
    skipped = Skipped()
    records = inbreast.read(small, skipped)
    assert [(record.birads, record.pathology, len(record.lesions)) for record in records] == [
        (None, None, 1),
        (None, None, 0),
    ]
    assert (
        "though its BI-RADS is unknown"
        in skipped.reasons["AllDICOMs/20000002_aa2_MG_R_ML_ANON.dcm"]
    )


def test_columns_may_stand_in_any_order_with_blanks(small):
    (small / "INbreast.csv").write_text(
        " Bi-Rads ;View;ACR;File Name; Laterality\n 5 ;CC;    ; 20000001 ;L\n;;;sum;\n",
        encoding="utf-8",
    )
    record, _ = first(small)
    assert (record.birads, record.density) == ("5", None)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("INbreast.csv", b"a;b\n1;2\n", "has no column file_name"),
        ("INbreast.csv", b"", "has no column file_name"),
        ("INbreast.xls", b"not a workbook", "can't be read as an Excel sheet"),
    ],
)
def test_a_damaged_table_is_noted(small, name, content, reason):
    (small / "INbreast.csv").unlink()
    (small / name).write_bytes(content)
    _, skipped = first(small)
    assert skipped.reasons[name].startswith(reason)


@pytest.mark.parametrize("wrong", [";R;CC;", ";L;MLO;"])
def test_a_row_that_contradicts_the_name_is_set_aside(small, wrong):
    table = small / "INbreast.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(";L;CC;", wrong), encoding="utf-8")
    record, skipped = first(small)
    assert (record.laterality, record.view, record.birads, len(record.lesions)) == (
        "L",
        "CC",
        None,
        1,
    )
    stated = " ".join(wrong.strip(";").split(";"))
    assert skipped.reasons == {
        "AllDICOMs/20000001_aa1_MG_L_CC_ANON.dcm": "kept without its table row: the name says L "
        f"CC, the table {stated}"
    }


def test_a_view_from_below(small):
    path = dicom_of(small, 20000001)
    path.rename(path.with_name(path.name.replace("_CC_", "_FB_")))
    table = small / "INbreast.csv"
    table.write_text(
        table.read_text(encoding="utf-8").replace(";L;CC;", ";L;FB;"), encoding="utf-8"
    )
    record, skipped = first(small)
    assert (record.view, record.birads) == ("FB", "4b")
    assert not skipped.reasons


def test_non_square_pixels_are_reported_as_they_are(tmp_path):
    writer.write([mammogram(1, spacing=(0.05, 0.1))], tmp_path)
    assert inbreast.read(tmp_path)[0].spacing == (0.05, 0.1)


def change(path: Path, **tags) -> None:
    dataset = pydicom.dcmread(path)
    for key, value in tags.items():
        setattr(dataset, key, value)
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "the file ends early"),
        (lambda path: path.write_bytes(b"text"), "is not a DICOM file"),
        (lambda path: change(path, Modality="CT"), "is no mammogram, its modality is CT"),
        (lambda path: change(path, NumberOfFrames=2), "holds 2 frames, not one image"),
        (
            lambda path: path.rename(path.with_name("20000001.dcm")),
            "the name is not of the form id_patient_MG_laterality_view_ANON.dcm",
        ),
    ],
)
def test_an_unusable_file_is_noted_and_the_others_stay(small, damage, reason):
    damage(dicom_of(small, 20000001))
    skipped = Skipped()
    assert [record.image_id for record in inbreast.read(small, skipped)] == ["20000002"]
    ((file, noted),) = skipped.reasons.items()
    assert file.startswith("AllDICOMs/20000001")
    assert noted.startswith(reason)


def test_a_second_file_of_one_number_is_noted(small):
    path = dicom_of(small, 20000001)
    (small / "copy" / "AllDICOMs").mkdir(parents=True)
    shutil.copy(path, small / "copy" / "AllDICOMs")
    skipped = Skipped()
    assert len(inbreast.read(small, skipped)) == 2
    assert skipped.reasons == {f"copy/AllDICOMs/{path.name}": "is a second file of the same image"}


def test_what_is_no_archive(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArchiveError, match=rf"{root}: is no INbreast archive"):
            inbreast.read(root)
    (tmp_path / "AllDICOMs").mkdir()
    with pytest.raises(ArchiveError, match="is no INbreast archive"):
        inbreast.read(tmp_path)


def test_an_archive_of_unreadable_files(small):
    for path in (small / "AllDICOMs").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(
        ArchiveError,
        match=r"2 skipped, the first is AllDICOMs/20000001_.*: is not a DICOM",
    ):
        inbreast.read(small)


def test_a_single_point_is_a_lost_calcification(small):
    """Its image stays of use for its masses, and is no background for calcifications."""
    points = [region(SQUARE[:1], name=name, Type=19) for name in ("Calcification", "Point 3")]
    write_regions(small, *points, region(name="Unnamed"), region(name="Nipple"))
    record, _ = first(small)
    assert not record.lesions
    assert record.lost == (Lost("calcification"), Lost("calcification"), Lost())
    write_regions(small, region(), region(SQUARE[:1], name="Calcification", Type=19))
    record, _ = first(small)
    assert record.lacks() and record.lacks(["calcification"]) and not record.lacks(["mass"])
