"""A synthetic study of four views, as a PACS takes it."""

import shutil
import subprocess

import pydicom
import pytest

from tests.small_mammograms import draw_breast, make_mammogram
from tfmammo.archives import read_stored
from tfmammo.archives.writers import synthetic

# in the order of their series: right before left, CC before MLO
VIEWS = [("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO")]
# dicom3tools of Debian 12 is older than this element
TOO_NEW = "(0x0008,0x001c)"


def write(path, mammogram, key, repeat=0):
    stored = read_stored(mammogram)
    synthetic.write_dicom_of_mammogram(path, stored, mammogram, key, repeat=repeat)
    return pydicom.dcmread(path)


@pytest.fixture
def study(tmp_path):
    """The files of a study, written in another order than that of its series."""
    paths = {}
    for number, shown in enumerate(reversed(VIEWS)):
        facts = dict(zip(("laterality", "view"), shown, strict=True)) | {"spacing": (0.1, 0.1)}
        mammogram = make_mammogram(number, draw_breast(number), patient_id="p", **facts)
        paths[shown] = tmp_path / "study" / f"{number}.dcm"
        write(paths[shown], mammogram, f"key{number}")
    return paths


def test_four_views_are_one_study_of_four_series(study):
    images = [pydicom.dcmread(study[view]) for view in VIEWS]
    for key, count in (("Study", 1), ("Series", 4), ("SOP", 4)):
        assert len({image[f"{key}InstanceUID"].value for image in images}) == count
    assert [image.SeriesNumber for image in images] == [1, 2, 3, 4]
    assert [(image.ImageLaterality, image.ViewPosition) for image in images] == VIEWS
    for image in images:
        assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.2"
        assert image.SyntheticData == "YES" and image.ImageType[0] == "DERIVED"
        named = {element.keyword for element in image.iterall()}
        assert not named & {"ReferencedSOPInstanceUID", "SourceImageSequence"}


def test_uids_follow_from_the_key_and_another_use_is_another_study(tmp_path):
    mammogram = make_mammogram(0, draw_breast(0), spacing=(0.1, 0.1))
    uses = {"a": ("1", 0), "b": ("1", 0), "c": ("2", 0), "d": ("3", 1)}
    one, _, two, again = (write(tmp_path / name, mammogram, *use) for name, use in uses.items())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert one.StudyInstanceUID == two.StudyInstanceUID != again.StudyInstanceUID
    assert len({image.SOPInstanceUID for image in (one, two, again)}) == 3
    assert one.SeriesInstanceUID != two.SeriesInstanceUID and one.PatientID == again.PatientID


def test_the_standards_checker_finds_no_other_error(study):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("no dciodvfy: apt-get install dicom3tools")
    for path in study.values():
        told = subprocess.run([program, path], capture_output=True, text=True, check=False)
        assert "MammographyImageForPresentation" in told.stderr
        errors = [line for line in told.stderr.splitlines() if "Error" in line]
        assert [line for line in errors if TOO_NEW not in line] == []
