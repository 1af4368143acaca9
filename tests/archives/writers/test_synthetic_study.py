"""A synthetic study of four views, as a PACS takes it."""

import shutil
import subprocess

import pydicom
import pytest

from tests.orthanc import run_orthanc
from tests.small_mammograms import make_mammogram, textured_breast
from tfmammo.archives import read_stored
from tfmammo.archives.writers import synthetic

# in the order of their series: right before left, CC before MLO
VIEWS = [("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO")]
# dicom3tools of Debian 12 is older than this element
TOO_NEW = "(0x0008,0x001c)"


@pytest.fixture
def study(tmp_path):
    """The files of a study, written in another order than that of its series."""
    paths = {}
    for number, (side, view) in enumerate(reversed(VIEWS)):
        mammogram = make_mammogram(
            number,
            textured_breast(number),
            patient_id="p",
            laterality=side,
            view=view,
            spacing=(0.1, 0.1),
        )
        path = tmp_path / "study" / f"{number}.dcm"
        synthetic.write_dicom_of_mammogram(path, read_stored(mammogram), mammogram, f"key{number}")
        paths[side, view] = path
    return paths


def test_four_views_are_one_study_of_four_series(study):
    images = [pydicom.dcmread(study[view]) for view in VIEWS]
    assert len({image.StudyInstanceUID for image in images}) == 1
    assert len({image.SeriesInstanceUID for image in images}) == 4
    assert len({image.SOPInstanceUID for image in images}) == 4
    assert [image.SeriesNumber for image in images] == [1, 2, 3, 4]
    assert [(image.ImageLaterality, image.ViewPosition) for image in images] == VIEWS
    for image in images:
        assert (
            image.SOPClassUID.name == "Digital Mammography X-Ray Image Storage - For Presentation"
        )
        assert image.SyntheticData == "YES" and image.ImageType[0] == "DERIVED"
        named = {element.keyword for element in image.iterall()}
        assert not named & {"ReferencedSOPInstanceUID", "SourceImageSequence"}


def test_a_mammogram_that_is_used_again_is_another_study(tmp_path):
    mammogram = make_mammogram(0, textured_breast(0), spacing=(0.1, 0.1))
    stored = read_stored(mammogram)
    for repeat in (0, 1):
        path = tmp_path / f"{repeat}.dcm"
        synthetic.write_dicom_of_mammogram(path, stored, mammogram, f"key{repeat}", repeat=repeat)
    first, second = (pydicom.dcmread(tmp_path / f"{repeat}.dcm") for repeat in (0, 1))
    assert first.StudyInstanceUID != second.StudyInstanceUID
    assert first.PatientID == second.PatientID


def test_the_standards_checker_finds_no_other_error(study):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("no dciodvfy: apt-get install dicom3tools")
    for path in study.values():
        told = subprocess.run([program, path], capture_output=True, text=True, check=False)
        assert "MammographyImageForPresentation" in told.stderr
        errors = [line for line in told.stderr.splitlines() if "Error" in line]
        assert [line for line in errors if TOO_NEW not in line] == []


@pytest.mark.slow
def test_a_pacs_groups_it(study, tmp_path):
    with run_orthanc(tmp_path / "orthanc") as pacs:
        for path in study.values():
            pacs.upload(path)
        (held,) = pacs.ask("/studies?expand")
        series = [pacs.ask(f"/series/{one}")["MainDicomTags"] for one in held["Series"]]
        assert held["PatientMainDicomTags"]["PatientName"] == "SYNTHETIC^MAMMOGRAM"
        assert sorted(one["SeriesNumber"] for one in series) == ["1", "2", "3", "4"]
        assert {one["Modality"] for one in series} == {"MG"}
