"""Stored values and what they mean: against pydicom, brute force, and files written back."""

import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from tests.archives.tools import change_dicom
from tfmammo import archives
from tfmammo.archives import dicom
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.config import PreprocessConfig
from tfmammo.data.preprocess import preprocess_mammogram
from tfmammo.mammogram import Mammogram

ROWS = 64
COLS = 60
RAMP = np.linspace(0, 4095, ROWS * COLS).astype(np.uint16).reshape(ROWS, COLS)
SIGNED = (RAMP.astype(np.int16) - 2048).astype(np.int16)
WINDOW = {"WindowCenter": 2000, "WindowWidth": 1500}


def lut():
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "US", list(range(4096)))
    item.LUTExplanation = "made for QUIBBLE"
    return item


RENDITIONS = {
    "plain": (RAMP, 12, {}),
    "16 bits": (RAMP * np.uint16(16), 16, {}),
    "8 bits": ((RAMP // 16).astype(np.uint8), 8, {}),
    "window": (RAMP, 12, {"RescaleSlope": 1, "RescaleIntercept": 0, **WINDOW}),
    "sigmoid": (RAMP, 12, {"VOILUTFunction": "SIGMOID", **WINDOW}),
    "rescale": (RAMP, 12, {"RescaleSlope": -0.25, "RescaleIntercept": 1023.75}),
    "inverse": (RAMP, 12, {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 4095}),
    "signed padding": (SIGNED, 12, {"PixelPaddingValue": -2048}),
    "VOI LUT": (RAMP, 12, {"VOILUTSequence": [lut()]}),
    "modality LUT": (RAMP, 12, {"ModalityLUTSequence": [lut()]}),
}


def record(path, window=True, **facts):
    header = dicom.read_header(path)
    known = {"archive": "made", "patient_id": "0123456789ab", "image_id": "i"}
    size = {"rows": header.rows, "cols": header.cols, "spacing": header.spacing}
    return Mammogram(**known, **size, **dicom.pixel_source(path, window), **facts)


def nothing(archive="made", view=None, spacing=None):
    return Mammogram(archive, "0123456789ab", "i", ROWS, COLS, np.empty, "R", view, spacing=spacing)


def written(path, name, syntax=ExplicitVRLittleEndian):
    values, bits, elements = RENDITIONS[name]
    elements = {"ImagerPixelSpacing": [0.1, 0.1], **elements}
    padding = elements.pop("PixelPaddingValue", None)
    write_dicom(path, values, bits, syntax=syntax, **elements)
    if padding:
        kind = "SS" if padding < 0 else "US"
        change_dicom(path, edit=lambda dataset: dataset.add_new("PixelPaddingValue", kind, padding))
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
    wide = np.uint8 if bits == 8 else np.uint16
    picture = np.rint(stored.image()[..., 0].astype(np.float64) * np.iinfo(wide).max)
    np.testing.assert_array_equal(stored.full_scale(), picture)
    synthetic.write_dicom_of_mammogram(tmp_path / "b.dcm", stored, mammogram, "key")
    again = pydicom.dcmread(tmp_path / "b.dcm").pixel_array
    np.testing.assert_array_equal(again, pydicom.dcmread(tmp_path / "a.dcm").pixel_array)
    # by its one window
    np.testing.assert_allclose(dicom.read_pixels(tmp_path / "b.dcm"), mammogram.pixels(), atol=1e-6)


def test_compressed_pixels_and_high_bits(tmp_path):
    values, _ = written(tmp_path / "a.dcm", "signed padding", JPEG2000Lossless)
    np.testing.assert_array_equal(archives.read_stored(record(tmp_path / "a.dcm")).values, values)
    for plain, foreign in ((RAMP, 0x3000), (SIGNED, 0x3000), (SIGNED, -0x1000)):
        dirty = (plain & 0x0FFF) | plain.dtype.type(foreign)
        write_dicom(tmp_path / "b.dcm", dirty, 16, BitsStored=12, HighBit=11)
        stored = archives.read_stored(record(tmp_path / "b.dcm"))
        np.testing.assert_array_equal(stored.values, plain)
        np.testing.assert_array_equal(stored.image(), dicom.read_pixels(tmp_path / "b.dcm"))


@pytest.mark.parametrize("name", RENDITIONS)
def test_the_nearest_value(name, tmp_path):
    written(tmp_path / "a.dcm", name)
    stored = archives.read_stored(record(tmp_path / "a.dcm"))
    grey = np.append(np.random.default_rng(0).random(200, np.float32), np.float32([0, 1]))
    nearest = stored.nearest_values(grey)
    assert nearest.dtype == stored.values.dtype
    reached = stored.greys[nearest.astype(int) - stored.first]
    usable = stored.greys[~stored.padding]
    best = np.abs(usable[None] - grey[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(reached - grey), best, atol=1e-6)
    padding = np.arange(stored.first, stored.first + len(stored.greys))[stored.padding]
    assert not np.isin(nearest, padding).any()


# Files of synthetic mammograms


def test_nothing_but_numbers_and_known_words_is_carried_on(tmp_path):
    secret = "QUIBBLE"
    written(tmp_path / "a.dcm", "VOI LUT")
    keys = (
        "PatientName SeriesDescription InstitutionName RescaleType PixelSpacingCalibrationType "
        "WindowCenterWidthExplanation BurnedInAnnotation"
    )
    elements = dict.fromkeys(keys.split(), secret) | {"RescaleSlope": 1, "RescaleIntercept": 0}
    elements |= dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID"), "1.2.3.4.5")
    change_dicom(tmp_path / "a.dcm", **elements)
    mammogram = record(tmp_path / "a.dcm", laterality="R", view="MLO")
    stored = archives.read_stored(mammogram)
    synthetic.write_dicom_of_mammogram(tmp_path / "b.dcm", stored, mammogram, "key")
    before, after = ((tmp_path / f"{name}.dcm").read_bytes() for name in "ab")
    for text in (secret, "1.2.3.4.5", str(pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID)):
        assert text.encode() in before and text.encode() not in after


# What must not be empty: type 1 of PS3.3 A.26.2, beside what the writer of all DICOM files sets.
MAMMOGRAPHY = (
    "PresentationIntentType ImageLaterality AnatomicRegionSequence PixelIntensityRelationship "
    "PixelIntensityRelationshipSign RescaleSlope RescaleIntercept RescaleType "
    "PresentationLUTShape LossyImageCompression BurnedInAnnotation WindowCenter WindowWidth "
    "ImagerPixelSpacing PositionerType OrganExposed ViewCodeSequence PatientOrientation ImageType"
)


@pytest.mark.parametrize(
    ("mammogram", "sop_class", "required"),
    [
        (nothing(view="MLO", spacing=(0.07, 0.07)), "1.1.1.2", MAMMOGRAPHY),
        (nothing(), "1.1.7", "ConversionType"),
    ],
)
def test_what_the_standard_wants_is_there(tmp_path, mammogram, sop_class, required):
    stored = Stored.of_image(np.random.default_rng(0).random((ROWS, COLS, 1), np.float32), 8)
    path = tmp_path / "a.dcm"
    synthetic.write_dicom_of_mammogram(path, stored, replace(mammogram, is_lossy=True), "key")
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID == f"1.2.840.10008.5.1.4.{sop_class}"
    assert [key for key in required.split() if dataset.get(key) in (None, "", [])] == []
    assert list(dataset.ImageType[::3]) == ["DERIVED", "SYNTHETIC"]
    assert dataset.SyntheticData == "YES" and dataset.PatientName == "SYNTHETIC^MAMMOGRAM"
    assert "SYNTHETIC" in dataset.SeriesDescription and "SYNTHETIC" in dataset.ImageComments
    assert dataset.LossyImageCompression == "01"
    header = dicom.read_header(path)
    for fact in ("laterality", "view", "spacing"):
        assert getattr(header, fact) == getattr(mammogram, fact)
    np.testing.assert_allclose(dicom.read_pixels(path), stored.image(), atol=1e-6)


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
    elements = {"PhotometricInterpretation": "MONOCHROME2", "BurnedInAnnotation": burned_in}
    stored = Stored.of_image(np.zeros((ROWS, COLS, 1), np.float32), 8)
    stored = replace(stored, elements=elements)
    synthetic.write_dicom_of_mammogram(tmp_path / "a.dcm", stored, nothing(archive), "key")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert (dataset.PatientIdentityRemoved, dataset.BurnedInAnnotation) == (removed, burned_in)
    method = dataset.get("DeidentificationMethod", "")
    assert bool(method) == (removed == "YES") and len(method) <= 64


# Preprocessed mammograms


def test_a_preprocessed_mammogram_keeps_its_file_and_its_stored_values(tmp_path):
    values, _ = written(tmp_path / "a.dcm", "rescale")
    native = record(tmp_path / "a.dcm", laterality="R", view="CC")
    once = preprocess_mammogram(native, PreprocessConfig(flip_right=True, spacing=0.2))
    twice = preprocess_mammogram(pickle.loads(pickle.dumps(once)), PreprocessConfig(spacing=0.4))
    for prepared in (once, twice):
        assert prepared.pixels().shape != native.pixels().shape
        assert prepared.file == tmp_path / "a.dcm" and str(tmp_path) not in repr(prepared)
        np.testing.assert_array_equal(archives.read_stored(prepared).values, values)
    dark = native.with_pixels(partial(np.zeros, (native.rows, native.cols, 1), np.float32))
    assert dark.file is None and archives.list_files(dark) == []
    assert not archives.read_stored(dark).values.any()
