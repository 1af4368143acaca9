"""Stored values and what they stand for: against pydicom, brute force, and files written back."""

import pickle
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from tfmammo import archives
from tfmammo.archives import dicom, folder
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.config import PreprocessConfig
from tfmammo.data.preprocess import preprocess_mammogram
from tfmammo.mammogram import Mammogram, MaskedLesion

ROWS = 64
COLS = 60
RAMP = np.linspace(0, 4095, ROWS * COLS).astype(np.uint16).reshape(ROWS, COLS)
SIGNED = (RAMP.astype(np.int16) - 2048).astype(np.int16)
WINDOW = {"WindowCenter": 2000, "WindowWidth": 1500}


def lut(first=0, entries=4096):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries, first, 12])
    item.add_new("LUTData", "US", np.linspace(0, 4095, entries).astype(int)[::1].tolist())
    item.LUTExplanation = "made for QUIBBLE"
    return item


RENDITIONS = {
    "plain": (RAMP, 12, {}),
    "16 bits": (RAMP * np.uint16(16), 16, {}),
    "8 bits": ((RAMP // 16).astype(np.uint8), 8, {}),
    "window": (RAMP, 12, {"RescaleSlope": 1, "RescaleIntercept": 0, **WINDOW}),
    "several windows": (RAMP, 12, {"WindowCenter": [2000, 1000], "WindowWidth": [1500, 300]}),
    "sigmoid": (RAMP, 12, {"VOILUTFunction": "SIGMOID", **WINDOW}),
    "rescale": (RAMP, 12, {"RescaleSlope": -0.25, "RescaleIntercept": 1023.75}),
    "inverse": (RAMP, 12, {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 4095}),
    "signed": (SIGNED, 12, {}),
    "signed padding": (SIGNED, 12, {"PixelPaddingValue": -2048}),
    "VOI LUT": (RAMP, 12, {"VOILUTSequence": [lut()]}),
    "modality LUT": (RAMP, 12, {"ModalityLUTSequence": [lut()]}),
}


def record(path, window=True, **facts):
    header = dicom.read_header(path)
    source = dicom.pixel_source(path, window)
    return Mammogram(
        archive="made",
        patient_id="0123456789ab",
        image_id="i",
        rows=header.rows,
        cols=header.cols,
        spacing=header.spacing,
        **source,
        **facts,
    )


def written(path, name, syntax=ExplicitVRLittleEndian):
    values, bits, elements = RENDITIONS[name]
    elements = {key: value for key, value in elements.items() if key != "PixelPaddingValue"}
    write_dicom(path, values, bits, syntax=syntax, ImagerPixelSpacing=[0.1, 0.1], **elements)
    if padding := RENDITIONS[name][2].get("PixelPaddingValue"):
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
        dataset.save_as(path)
    return values, bits


@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("name", RENDITIONS)
def test_values_and_greys_come_back_and_go_on(name, window, tmp_path):
    values, bits = written(tmp_path / "a.dcm", name)
    mammogram = record(tmp_path / "a.dcm", window, laterality="L", view="CC")
    stored = archives.read_stored(mammogram)
    assert stored.bits == bits
    np.testing.assert_array_equal(stored.values, values)
    np.testing.assert_array_equal(stored.image(), mammogram.pixels())
    synthetic.write_dicom_of_mammogram(tmp_path / "b.dcm", stored, mammogram, "key")
    again = pydicom.dcmread(tmp_path / "b.dcm")
    np.testing.assert_array_equal(
        again.pixel_array, pydicom.dcmread(tmp_path / "a.dcm").pixel_array
    )
    # by its one window
    np.testing.assert_allclose(dicom.read_pixels(tmp_path / "b.dcm"), mammogram.pixels(), atol=1e-6)


def test_compressed_pixels_and_high_bits(tmp_path):
    values, _ = written(tmp_path / "a.dcm", "signed", JPEG2000Lossless)
    np.testing.assert_array_equal(archives.read_stored(record(tmp_path / "a.dcm")).values, values)
    for sign in (False, True):
        plain = SIGNED if sign else RAMP
        dirty = (plain & 0x0FFF) | plain.dtype.type(0x3000)
        write_dicom(tmp_path / "b.dcm", dirty, 16)
        dataset = pydicom.dcmread(tmp_path / "b.dcm")
        dataset.BitsStored = 12
        dataset.HighBit = 11
        dataset.save_as(tmp_path / "b.dcm")
        stored = archives.read_stored(record(tmp_path / "b.dcm"))
        np.testing.assert_array_equal(stored.values, plain)
        np.testing.assert_array_equal(stored.image(), dicom.read_pixels(tmp_path / "b.dcm"))


@pytest.mark.parametrize("name", RENDITIONS)
def test_the_nearest_value(name, tmp_path):
    written(tmp_path / "a.dcm", name)
    stored = archives.read_stored(record(tmp_path / "a.dcm"))
    grey = np.random.default_rng(0).random(200, np.float32)
    nearest = stored.nearest_values(grey)
    assert nearest.dtype == stored.values.dtype
    reached = stored.greys[nearest.astype(int) - stored.first]
    usable = stored.greys[~stored.padding]
    best = np.abs(usable[None] - grey[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(reached - grey), best, atol=1e-6)
    padding = np.arange(stored.first, stored.first + len(stored.greys))[stored.padding]
    assert not np.isin(nearest, padding).any()


@pytest.mark.parametrize("bits", [1, 8, 10, 12, 16])
def test_an_image_of_whole_numbers(bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (9, 7))
    image = (values / (2**bits - 1)).astype(np.float32)[..., None]
    stored = Stored.of_image(image, bits)
    np.testing.assert_array_equal(stored.values, values)
    np.testing.assert_array_equal(stored.nearest_values(image[..., 0]), values)
    np.testing.assert_allclose(stored.image(), image, atol=1e-7)
    assert stored.full_scale() is stored.values and stored.values.dtype == (
        np.uint8 if bits <= 8 else np.uint16
    )


def test_a_picture_of_a_dicom_has_its_greys(tmp_path):
    for name, wide in (("window", np.uint16), ("8 bits", np.uint8), ("signed", np.uint16)):
        written(tmp_path / "a.dcm", name)
        stored = archives.read_stored(record(tmp_path / "a.dcm"))
        expected = np.rint(stored.image()[..., 0].astype(np.float64) * np.iinfo(wide).max)
        np.testing.assert_array_equal(stored.full_scale(), expected)
        assert stored.full_scale().dtype == wide


def test_nothing_but_numbers_and_known_words_is_carried_on(tmp_path):
    secret = "QUIBBLE"
    written(tmp_path / "a.dcm", "VOI LUT")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PatientName = dataset.SeriesDescription = dataset.InstitutionName = secret
    dataset.RescaleType = secret
    dataset.PixelSpacingCalibrationType = secret
    dataset.WindowCenterWidthExplanation = secret
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = 0
    dataset.BurnedInAnnotation = secret
    uids = {dataset.SOPInstanceUID}
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3.4.5"
    dataset.save_as(tmp_path / "a.dcm")
    assert secret.encode() in (tmp_path / "a.dcm").read_bytes()
    mammogram = record(tmp_path / "a.dcm", laterality="R", view="MLO")
    synthetic.write_dicom_of_mammogram(
        tmp_path / "b.dcm", archives.read_stored(mammogram), mammogram, "key"
    )
    content = (tmp_path / "b.dcm").read_bytes()
    assert (
        secret.encode() not in content
        and b"1.2.3.4.5" not in content
        and str(*uids).encode() not in content
    )


# Type 1 of the modules of PS3.3 A.26.2 and A.8.1 (and 1C where its condition holds): what must be
# there and not empty.
ALWAYS = """SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality Rows Columns
    SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation PhotometricInterpretation
    PixelData ImageType"""
MAMMOGRAPHY = """PresentationIntentType ImageLaterality AnatomicRegionSequence ViewCodeSequence
    PixelIntensityRelationship PixelIntensityRelationshipSign RescaleSlope RescaleIntercept
    RescaleType PresentationLUTShape LossyImageCompression BurnedInAnnotation WindowCenter
    WindowWidth ImagerPixelSpacing PositionerType OrganExposed PatientOrientation"""
# Type 2: what must be there, known or not.
EMPTY = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID
    ReferringPhysicianName AccessionNumber SeriesNumber InstanceNumber Manufacturer
    PatientOrientation"""


def test_what_the_standard_wants_is_there(tmp_path):
    stored = Stored.of_image(np.random.default_rng(0).random((ROWS, COLS, 1), np.float32), 8)
    full = Mammogram(
        "made", "0123456789ab", "i", ROWS, COLS, np.empty, "R", "MLO", spacing=(0.07, 0.07)
    )
    bare = Mammogram("made", "0123456789ab", "i", ROWS, COLS, np.empty, "R")
    for mammogram, sop, required in (
        (full, "1.2.840.10008.5.1.4.1.1.1.2", f"{ALWAYS} {MAMMOGRAPHY}"),
        (bare, "1.2.840.10008.5.1.4.1.1.7", f"{ALWAYS} ConversionType"),
    ):
        synthetic.write_dicom_of_mammogram(tmp_path / "a.dcm", stored, mammogram, "key", lossy=True)
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == sop
        assert [key for key in required.split() if dataset.get(key) in (None, "", [])] == []
        assert [key for key in EMPTY.split() if key not in dataset] == []
        assert (
            list(dataset.ImageType[::3]) == ["DERIVED", "SYNTHETIC"]
            and dataset.SyntheticData == "YES"
        )
        assert dataset.PatientName == "SYNTHETIC^MAMMOGRAM"
        assert (
            "SYNTHETIC" in dataset.SeriesDescription
            and "SYNTHETIC" in dataset.ImageComments
            and dataset.LossyImageCompression == "01"
        )
        header = dicom.read_header(tmp_path / "a.dcm")
        assert (header.laterality, header.view, header.spacing) == (
            mammogram.laterality,
            mammogram.view,
            mammogram.spacing,
        )
        np.testing.assert_array_equal(dataset.pixel_array, stored.values)
        np.testing.assert_allclose(dicom.read_pixels(tmp_path / "a.dcm"), stored.image(), atol=1e-6)


@pytest.mark.parametrize(
    ("archive", "key", "burned_in", "removed"),
    [
        ("inbreast", "", "YES", "YES"),  # given out without names
        ("folder", "", "NO", "NO"),  # whoever has a list of numbers can undo the hash
        ("folder", "a secret", "YES", "NO"),  # the pixels may show a name
        ("folder", "a secret", "NO", "YES"),
    ],
)
def test_identity_is_called_removed_only_where_it_is(
    tmp_path, monkeypatch, archive, key, burned_in, removed
):
    monkeypatch.setenv("TFMAMMO_ID_KEY", key)
    stored = Stored.of_image(np.zeros((ROWS, COLS, 1), np.float32), 8)
    stored = replace(
        stored,
        elements={"PhotometricInterpretation": "MONOCHROME2", "BurnedInAnnotation": burned_in},
    )
    mammogram = Mammogram(archive, "0123456789ab", "i", ROWS, COLS, np.empty, "R")
    synthetic.write_dicom_of_mammogram(tmp_path / "a.dcm", stored, mammogram, "key")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert (dataset.PatientIdentityRemoved, dataset.BurnedInAnnotation) == (removed, burned_in)
    assert ("DeidentificationMethod" in dataset) == (removed == "YES") and len(
        dataset.get("DeidentificationMethod", "")
    ) <= 64


def test_uids_follow_from_the_key(tmp_path):
    stored = Stored.of_image(np.zeros((ROWS, COLS, 1), np.float32), 8)
    mammogram = Mammogram("made", "0123456789ab", "i", ROWS, COLS, np.empty, "R")
    for name, key in (("a", "1"), ("b", "1"), ("c", "2")):
        synthetic.write_dicom_of_mammogram(tmp_path / name, stored, mammogram, key)
    first, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same != other
    uids = [pydicom.dcmread(tmp_path / name) for name in "ac"]
    assert uids[0].StudyInstanceUID == uids[1].StudyInstanceUID
    assert (
        uids[0].SOPInstanceUID != uids[1].SOPInstanceUID
        and uids[0].SeriesInstanceUID != uids[1].SeriesInstanceUID
    )


PREPROCESS = PreprocessConfig(flip_right=True, spacing=0.2)


def test_a_preprocessed_dicom_keeps_its_file_and_its_stored_values(tmp_path):
    values, bits = written(tmp_path / "a.dcm", "rescale")
    native = record(tmp_path / "a.dcm", laterality="R", view="CC")
    once = preprocess_mammogram(native, PREPROCESS)
    twice = preprocess_mammogram(once, PreprocessConfig(spacing=0.4))
    for prepared in (once, pickle.loads(pickle.dumps(once)), twice):
        assert prepared.pixels().shape != native.pixels().shape
        assert prepared.file == tmp_path / "a.dcm" and str(tmp_path) not in repr(prepared)
        stored = archives.read_stored(prepared)
        assert stored.bits == bits
        np.testing.assert_array_equal(stored.values, values)
        np.testing.assert_array_equal(stored.image(), native.pixels())


def test_a_preprocessed_picture_keeps_its_file_and_its_stored_values(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), values)
    (native,) = folder.read(tmp_path)
    prepared = preprocess_mammogram(
        replace(native, laterality="R"), PreprocessConfig(flip_right=True)
    )
    assert prepared.file == native.file == tmp_path / "images" / "a.png"
    assert archives.list_files(prepared) == [tmp_path / "images" / "a.png"]
    np.testing.assert_array_equal(archives.read_stored(prepared).values, values)
    np.testing.assert_array_equal(prepared.pixels(), native.pixels()[:, ::-1])


def test_other_pixels_have_no_file(tmp_path):
    written(tmp_path / "a.dcm", "rescale")
    native = record(tmp_path / "a.dcm", laterality="R", view="CC")
    dark = native.with_pixels(partial(np.zeros, (native.rows, native.cols, 1), np.float32))
    assert dark.file is None and archives.list_files(dark) == []
    assert not archives.read_stored(dark).values.any()


def test_a_moved_mask_keeps_its_file(tmp_path):
    lesion = MaskedLesion(
        "mass", partial(np.eye, ROWS, COLS, dtype=np.uint8), (tmp_path / "m.png",)
    )
    native = Mammogram("made", "p", "i", ROWS, COLS, np.empty, "R", lesions=(lesion,))
    prepared = preprocess_mammogram(native, PreprocessConfig(flip_right=True))
    assert archives.list_files(prepared) == archives.list_files(native) == [tmp_path / "m.png"]
