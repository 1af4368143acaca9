"""Lesions as label-map SEG and as a report of OHIF's form: written, stored, and read again."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pydicom
import pytest

from tests.archives.test_regions import CLUSTER, MASS, ODD, read, write_image
from tests.archives.test_reports import AREA, write_measurements
from tests.small_mammograms import COLS, ROWS, SQUARE
from tfmammo.archives import coco, folder, regions
from tfmammo.archives.__main__ import main
from tfmammo.archives.writers import annotations
from tfmammo.mammogram import Lesion, Lost, Skipped

ELLIPSE = [[12.25, 30.5], [28.5, 30.5], [20.5, 26.125], [20.5, 34.5]]


def annotate(root, *lesions):
    """Write a mammogram and its lesions."""
    record = replace(folder.read_one(write_image(root)), lesions=lesions)
    assert annotations.write([record], root / "annotations", Skipped()) == 1


def list_classes(root):
    return sorted(pydicom.dcmread(path).SOPClassUID for path in (root / "annotations").iterdir())


def test_what_ohif_wrote_is_the_same_when_it_is_read_again(tmp_path):
    image = write_image(tmp_path / "ohif")
    write_measurements(image, (AREA, 12.5, ("ELLIPSE", ELLIPSE)), comment="Mass")
    (first,), _ = read(tmp_path / "ohif")
    again = tmp_path / "again"
    main(["folder", str(tmp_path / "ohif"), "--dicom", str(again / "annotations")])
    (again / "images").mkdir()
    shutil.copy(image, again / "images")
    assert list_classes(again) == [regions.LABEL_MAP, regions.REPORTS[1]]
    for counts in ("SEG", "report"):  # the SEG where both are there
        (record,), reasons = read(again)
        (lesion,) = record.lesions
        assert not reasons and (lesion.kind, lesion.kind_is_certain) == ("mass", True)
        drawn = lesion.mask(ROWS, COLS)
        np.testing.assert_array_equal(drawn, first.lesions[0].mask(ROWS, COLS))
        if counts == "SEG":
            next((again / "annotations").glob("*_seg.dcm")).unlink()
    np.testing.assert_allclose(lesion.outlines[0], first.lesions[0].outlines[0], rtol=1e-6)


@pytest.mark.parametrize("without", ["seg", "sr"])
def test_kinds_come_back(tmp_path, without):
    unsure = replace(ODD, kind="mass", kind_is_certain=False)
    asymmetry = Lesion.from_outline("asymmetry", SQUARE + [-8, -15], ROWS, COLS)
    offsets = ([35, -15], [38, 0])
    parts = [Lesion.from_outline("distortion", SQUARE + one, ROWS, COLS) for one in offsets]
    lesions = (MASS, CLUSTER, unsure, asymmetry, coco.unite(parts, {}))
    annotate(tmp_path, *lesions)
    next((tmp_path / "annotations").glob(f"*_{without}.dcm")).unlink()
    (record,), reasons = read(tmp_path)
    assert not reasons
    for read_back, lesion in zip(record.lesions, lesions, strict=True):
        assert (read_back.kind, read_back.kind_is_certain) == (lesion.kind, lesion.kind_is_certain)
        np.testing.assert_array_equal(read_back.mask(ROWS, COLS), lesion.mask(ROWS, COLS))


def test_lesions_that_overlap_are_binary_segments(tmp_path):
    over = Lesion.from_outline("calcification", SQUARE + [3, 3], ROWS, COLS)
    annotate(tmp_path, MASS, over)
    assert list_classes(tmp_path) == [regions.SEGMENTATION, regions.REPORTS[1]]
    (record,), reasons = read(tmp_path)
    assert not reasons and [one.kind for one in record.lesions] == ["mass", "calcification"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lesions": (MASS, Lesion("mass", (1, 2, 9, 9)))}, "without an outline"),
        ({"lesions": (MASS,), "lost": (Lost(),)}, "without an outline"),
        ({"lesions": (MASS,), "file": None}, "is not a DICOM"),
    ],
)
def test_mammograms_of_which_nothing_is_written(tmp_path, changes, reason):
    skipped = Skipped()
    record = replace(folder.read_one(write_image(tmp_path)), **changes)
    assert annotations.write([record], tmp_path / "b", skipped) == 0
    assert reason in skipped.reasons[record.image_id] and not list((tmp_path / "b").iterdir())


def test_the_same_lesions_are_the_same_objects_and_others_are_not(tmp_path):
    record = folder.read_one(write_image(tmp_path))
    uids = []
    for place, lesion in (("a", MASS), ("b", MASS), ("c", CLUSTER)):
        annotations.write([replace(record, lesions=(lesion,))], tmp_path / place, Skipped())
        uids.append({pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / place).iterdir()})
    assert uids[0] == uids[1] and not uids[0] & uids[2] and len(uids[0]) == 2


def test_dcmtk_and_the_standards_checker_read_the_report(tmp_path):
    programs = shutil.which("dsrdump"), shutil.which("dciodvfy")
    if None in programs:
        pytest.skip("no checkers: apt-get install dcmtk dicom3tools")
    annotate(tmp_path, MASS, CLUSTER)
    path = next((tmp_path / "annotations").glob("*_sr.dcm"))
    shown = {"capture_output": True, "text": True, "check": False}
    told = [subprocess.run([program, path], **shown).stderr for program in programs]
    assert told[0] == "" and "Error" not in told[1]
