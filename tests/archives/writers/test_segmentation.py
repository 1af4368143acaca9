"""DICOM segmentations, read back by pydicom and by highdicom's own reader."""

import logging
import warnings

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless

import tfmammo
from tests.archives.tools import change_dicom
from tests.small_mammograms import COLS, PATIENT, ROWS, make_rectangle
from tfmammo.archives.writers import segmentation
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError

PARAMETERS = {"detector": "ssd, step 5", "segmenter": "cgan, step 7"}


LESIONS = {
    "Lesion 1 mass": make_rectangle(5, 6, 20, 30),
    "Lesion 2 distortion": make_rectangle(15, 20, 40, 44, "distortion"),
}


@pytest.fixture
def source(tmp_path):
    """A function (**elements) -> a mammogram's file; names of `PATIENT` fit its character set."""

    def make(**elements):
        stored = np.linspace(0, 4095, ROWS * COLS).reshape(ROWS, COLS).astype(np.uint16)
        facts = {**PATIENT, "ImagerPixelSpacing": [0.07, 0.07], **elements}
        write_dicom(tmp_path / "source.dcm", stored, 12, **facts)
        return tmp_path / "source.dcm"

    return make


def written(source, tmp_path):
    segmentation.write(tmp_path / "seg.dcm", source, LESIONS, PARAMETERS)
    return pydicom.dcmread(tmp_path / "seg.dcm")


def test_one_segment_a_lesion_overlapping_ones_too(source, tmp_path):
    written(source(), tmp_path)
    read = segread(tmp_path / "seg.dcm")
    uids = [pydicom.dcmread(source()).SOPInstanceUID]
    masks = read.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    assert masks.shape == (1, ROWS, COLS, 2) and read.segmentation_type.value == "BINARY"
    for number, lesion in enumerate(LESIONS.values()):
        np.testing.assert_array_equal(masks[0, ..., number], lesion.mask(ROWS, COLS))
    assert masks[0].sum(axis=-1).max() == 2
    one, two = (read.get_segment_description(number) for number in read.segment_numbers)
    assert [one.segment_label, two.segment_label] == list(LESIONS)
    assert one.segmented_property_type.meaning == "Mass"
    assert two.segmented_property_type.meaning == "Architectural distortion of breast"
    assert one.algorithm_type.value == "AUTOMATIC" and one.tracking_uid != two.tracking_uid


def test_whose_it_is_what_it_refers_to_and_what_made_it(source, tmp_path):
    image = pydicom.dcmread(source())
    segmentation = written(source(), tmp_path)
    for keyword in (*PATIENT, "StudyInstanceUID"):
        assert segmentation[keyword].value == image[keyword].value
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
        assert segmentation[keyword].value != image[keyword].value
    (series,) = segmentation.ReferencedSeriesSequence
    (instance,) = series.ReferencedInstanceSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == image.SOPInstanceUID
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert reference.SpatialLocationsPreserved == "YES"
    (algorithm,) = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert "cgan, step 7" in algorithm.AlgorithmParameters
    assert algorithm.AlgorithmVersion == tfmammo.__version__
    assert segmentation.ImageType[0] == "DERIVED" and "AI" in segmentation.SeriesDescription


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, JPEG2000Lossless])
def test_sources_of_any_encoding_and_letters(source, tmp_path, syntax):
    letters = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "MÜLLER^ZOË"}
    path = source(syntax=syntax, PhotometricInterpretation="MONOCHROME1", **letters)
    dataset = written(path, tmp_path)
    assert dataset.pixel_array[0].sum() == 15 * 24 and dataset.PatientName == "MÜLLER^ZOË"


@pytest.mark.parametrize(
    ("keyword", "text"),
    [("PatientSex", "FEMALE^QUIBBLE"), ("StudyTime", "996199"), ("PatientBirthDate", "19430230")],
)
def test_values_of_the_wrong_form_stay_empty(source, tmp_path, keyword, text):
    path = change_dicom(source(), edit=lambda dataset: dataset.add_new(keyword, "LO", text))
    assert not written(path, tmp_path)[keyword].value


def test_nothing_of_the_patient_is_said(source, tmp_path, caplog, capfd):
    """highdicom quotes names that look odd to it, in warnings and log lines, and pydicom values."""
    caplog.set_level(logging.DEBUG)
    path = source(PatientSize="1.65")
    path.write_bytes(
        path.read_bytes()
        .replace(b"QUIBBLE^ZEPHYRINE", b"QUIBBLE ZEPHYRINE")
        .replace(b"ACCVN99344", b"ACCVN9934\x19")
    )
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        segmentation.write(tmp_path / "seg.dcm", path, LESIONS, PARAMETERS)
    said = caplog.text + "".join(str(one.message) for one in caught) + "".join(capfd.readouterr())
    assert "QUIBBLE" not in said and "ACCVN" not in said
    assert logging.getLogger("highdicom").level == logging.NOTSET


UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        *(({uid: ""}, f"has no {uid}, so no segmentation can refer to it") for uid in UIDS),
        # highdicom refuses it, in words that are not told
        ({"StudyInstanceUID": ["1.2.3", "1.2.4"]}, r"no segmentation can refer to it \(\w+\)$"),
    ],
)
def test_sources_that_nothing_can_refer_to(source, tmp_path, elements, reason):
    path = change_dicom(source(), **elements)
    with pytest.raises(ArchiveError, match=rf"source\.dcm: {reason}") as raised:
        written(path, tmp_path)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert not (tmp_path / "seg.dcm").exists()


def test_no_source_and_no_place(source, tmp_path):
    with pytest.raises(ArchiveError, match=r"nowhere\.dcm: no such file"):
        segmentation.write(tmp_path / "seg.dcm", tmp_path / "nowhere.dcm", LESIONS, PARAMETERS)
    with pytest.raises(ArchiveError, match=r"away/seg\.dcm: can't be written \(No such file"):
        segmentation.write(tmp_path / "away/seg.dcm", source(), LESIONS, PARAMETERS)
