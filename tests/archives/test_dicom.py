"""tfmammo.archives.dicom against files written here, and against pydicom's own pipeline where that is right."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from tfmammo.archives import dicom
from tfmammo.record import ArchiveError

STORED = np.arange(12 * 10, dtype=np.uint16).reshape(12, 10) * 34  # 0 to 4046
MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"


def dataset(stored=STORED, bits=12, syntax=ExplicitVRLittleEndian, **tags) -> FileDataset:
    """A small mammogram; a tag set to None is left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", MAMMOGRAPHY)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    little = syntax != ExplicitVRBigEndian
    order = "<" if little else ">"
    made = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=syntax == ImplicitVRLittleEndian, is_little_endian=little)
    content = {
        "SOPClassUID": MAMMOGRAPHY,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MG",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelData": stored.astype(stored.dtype.newbyteorder(order)).tobytes(),
    }
    for key, value in (content | tags).items():
        if value is not None:
            setattr(made, key, value)
    return made


def save(path: Path, made: FileDataset) -> Path:
    made.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def write(tmp_path):
    return lambda **tags: save(tmp_path / "image.dcm", dataset(**tags))


def lut(table, first=0, bits=16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in table])
    return item


@pytest.mark.parametrize("bits", [12, 13, 14, 16])
def test_pixels_are_stored_values_over_the_stored_range(write, bits):
    image = dicom.read_pixels(write(bits=bits))
    assert image.dtype == np.float32
    assert image.shape == (12, 10, 1)
    np.testing.assert_array_equal(np.rint(image[..., 0].astype(np.float64) * (2**bits - 1)), STORED)


def test_scale_does_not_follow_the_images_own_extremes(write):
    image = dicom.read_pixels(write(stored=np.full((4, 4), 1024, np.uint16)))
    np.testing.assert_allclose(image, 1024 / 4095, rtol=1e-6)


def test_high_bits_are_masked_off(write):
    overlay = STORED | np.uint16(0xA000)
    np.testing.assert_array_equal(dicom.read_pixels(write(stored=overlay)), dicom.read_pixels(write()))


def test_signed_pixels_span_their_own_range(write):
    image = dicom.read_pixels(write(stored=np.array([[-2048, -1], [0, 2047]], np.int16)))
    np.testing.assert_allclose(image[..., 0], [[0, 2047 / 4095], [2048 / 4095, 1]], rtol=1e-6)


def test_signed_pixels_under_foreign_high_bits(write):
    stored = np.array([[-2048, -1], [0, 2047]], np.int16)
    dirty = (stored & 0x0FFF) | np.int16(0x3000)
    np.testing.assert_array_equal(dicom.read_pixels(write(stored=dirty)), dicom.read_pixels(write(stored=stored)))


def test_monochrome1_is_the_inverse_of_monochrome2(write):
    straight = dicom.read_pixels(write())
    inverted = dicom.read_pixels(write(stored=4095 - STORED, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted, straight, atol=1e-7)
    assert straight[0, 0, 0] == 0


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_uncompressed_syntax_gives_the_same_pixels(write, syntax):
    expected = dicom.read_pixels(write())
    path = write(syntax=syntax)
    np.testing.assert_array_equal(dicom.read_pixels(path), expected)
    assert dicom.read_header(path).rows == 12


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_gives_the_same_pixels(tmp_path, write, syntax, signed):
    stored = np.tile(STORED, (6, 5))  # JPEG 2000's resolutions need some size
    stored = stored.astype(np.int16) - 2000 if signed else stored
    expected = dicom.read_pixels(write(stored=stored))
    made = dataset(stored=stored)
    made.compress(syntax)
    path = save(tmp_path / "compressed.dcm", made)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(dicom.read_pixels(path), expected)
    assert dicom.read_header(path).cols == 50


def test_rescale_is_scaled_by_the_rescaled_range(write):
    path = write(RescaleSlope=2.5, RescaleIntercept=-1000)
    np.testing.assert_allclose(dicom.read_pixels(path), dicom.read_pixels(write()), atol=1e-6)


def test_a_negative_slope_inverts(write):
    path = write(RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], 1 - STORED / 4095, atol=1e-6)


def test_modality_lut_of_12_bits(write):
    table = np.arange(4096)[::-1] // 2
    path = write(ModalityLUTSequence=[lut(table, bits=12)])
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], table[STORED] / 4095, atol=1e-6)


def test_modality_lut_agrees_with_pydicom(write):
    table = (np.arange(4000) * 16) ** 2 // 65536
    path = write(ModalityLUTSequence=[lut(table, first=20)])
    expected = apply_modality_lut(pydicom.dcmread(path).pixel_array, pydicom.dcmread(path))
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], expected / 65535, atol=1e-6)


def test_voi_lut_of_8_bits_under_12_bit_pixels(write):
    table = np.arange(4096) // 16
    image = dicom.read_pixels(write(VOILUTSequence=[lut(table, bits=8)]))
    np.testing.assert_allclose(image[..., 0], (STORED // 16) / 255, atol=1e-6)


def test_voi_lut_clamps_outside_its_table_and_wins_over_a_window(write):
    table = np.array([100, 200, 300, 400])
    image = dicom.read_pixels(write(VOILUTSequence=[lut(table, first=34, bits=10)], WindowCenter=0, WindowWidth=2))
    expected = table[np.clip(STORED.astype(int) - 34, 0, 3)] / 1023
    np.testing.assert_allclose(image[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_lut_data_as_bytes(write, syntax):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "OW", np.arange(4096)[::-1].astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes())
    image = dicom.read_pixels(write(VOILUTSequence=[item], syntax=syntax))
    np.testing.assert_allclose(image[..., 0], 1 - STORED / 4095, atol=1e-6)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_agrees_with_pydicom(write, function):
    path = write(WindowCenter=1800, WindowWidth=1500, VOILUTFunction=function)
    expected = apply_windowing(STORED, pydicom.dcmread(path)) / 4095
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], expected, atol=1e-6)


def test_the_first_of_several_windows_counts(write):
    several = dicom.read_pixels(write(WindowCenter=[1800, 900], WindowWidth=[1500, 300]))
    np.testing.assert_array_equal(several, dicom.read_pixels(write(WindowCenter=1800, WindowWidth=1500)))


def test_without_window_the_stored_range_stays(write):
    path = write(WindowCenter=1800, WindowWidth=1500)
    np.testing.assert_array_equal(dicom.read_pixels(path, window=False), dicom.read_pixels(write()))


def test_window_after_a_negative_slope_keeps_its_direction(write):
    path = write(RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2047.5, WindowWidth=4095, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], 1 - STORED / 4095, atol=1e-6)


def test_padding_is_dark_in_monochrome1(write):
    stored = np.array([[0, 0, 4095], [0, 2000, 4095]], np.uint16)
    path = write(stored=stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], [[0, 0, 0], [0, 1 - 2000 / 4095, 0]], atol=1e-6)


def test_padding_range(write):
    stored = np.array([[5, 7, 9, 11]], np.uint16)
    path = write(stored=stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=9, PixelPaddingRangeLimit=6)
    np.testing.assert_array_equal(dicom.read_pixels(path)[0, :, 0] == 0, [False, True, True, False])


def test_header_facts(write):
    path = write(ImageLaterality="R", ViewPosition="MLO", ImagerPixelSpacing=[0.07, 0.07])
    assert dicom.read_header(path) == dicom.Header(12, 10, (0.07, 0.07), "R", "MLO")


def test_spacing_in_the_breast_wins_and_need_not_be_square(write):
    header = dicom.read_header(write(PixelSpacing=[0.05, 0.1], ImagerPixelSpacing=[0.07, 0.07]))
    assert header.spacing == (0.05, 0.1)


@pytest.mark.parametrize("spacing", [None, [0, 0], ""])
def test_spacing_that_is_none(write, spacing):
    assert dicom.read_header(write(PixelSpacing=spacing)).spacing is None


@pytest.mark.parametrize("keyword", ["ImageLaterality", "Laterality", "FrameLaterality"])
def test_laterality_of_every_tag(write, keyword):
    assert dicom.read_header(write(**{keyword: "L"})).laterality == "L"


def test_laterality_of_an_enhanced_image(write):
    anatomy, shared = Dataset(), Dataset()
    anatomy.FrameLaterality = "R"
    shared.FrameAnatomySequence = [anatomy]
    assert dicom.read_header(write(SharedFunctionalGroupsSequence=[shared])).laterality == "R"


def test_both_breasts_are_no_laterality(write):
    assert dicom.read_header(write(ImageLaterality="B")).laterality is None


@pytest.mark.parametrize(("code", "view"), [("R-10242", "CC"), ("399368009", "MLO"), ("R-10224", None)])
def test_view_from_its_code(write, code, view):
    item = Dataset()
    item.CodeValue = code
    assert dicom.read_header(write(ViewCodeSequence=[item])).view == view


def test_secondary_capture_is_accepted(write):
    path = write(SOPClassUID=SecondaryCaptureImageStorage, Modality="OT")
    assert dicom.read_pixels(path).shape == (12, 10, 1)


REFUSED = {
    "modality is CT": {"Modality": "CT", "SOPClassUID": CTImageStorage},
    "modality is not stated": {"Modality": None},
    "holds 3 frames": {"NumberOfFrames": 3, "PixelData": STORED.tobytes() * 3},
    "interpretation is RGB": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "interpretation is PALETTE COLOR": {"PhotometricInterpretation": "PALETTE COLOR"},
    "no rows or columns": {"Rows": None},
    "has no pixel data": {"PixelData": None},
    "the file ends early, 100 of 240 bytes": {"PixelData": STORED.tobytes()[:100]},
    "high bit 15 does not fit 12 stored bits": {"HighBit": 15},
}


@pytest.mark.parametrize("reader", [dicom.read_header, dicom.read_pixels])
@pytest.mark.parametrize("reason", REFUSED)
def test_refusals_name_file_and_reason(write, reason, reader):
    path = write(**REFUSED[reason])
    with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{reason}") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [dicom.read_header, dicom.read_pixels])
def test_what_is_no_dicom(tmp_path, reader):
    path = tmp_path / "notes.dcm"
    with pytest.raises(ArchiveError, match=r"notes\.dcm: no such file"):
        reader(path)
    for content in (b"", b"just some text" * 40):
        path.write_bytes(content)
        with pytest.raises(ArchiveError, match=r"notes\.dcm: is not a DICOM file"):
            reader(path)
    with pytest.raises(ArchiveError, match="can't be read"):
        reader(tmp_path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_a_file_cut_anywhere_is_an_archive_error(tmp_path, syntax):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4096, (64, 48)).astype(np.uint16)
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        made = dataset(stored=stored)
        made.compress(syntax)
    else:
        made = dataset(stored=stored, syntax=syntax)
    whole = save(tmp_path / "whole.dcm", made).read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in [*range(0, 900, 37), *range(900, len(whole) - 8, 501), len(whole) - 9]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=r"cut\.dcm: "):
            dicom.read_pixels(cut)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"WindowCenter": 10, "WindowWidth": 0}, "a window of width 0 is empty"),
        ({"WindowCenter": 10, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "function CUBIC is unknown"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "is empty"),
    ],
)
def test_a_pipeline_that_can_not_be_followed(write, tags, reason):
    with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{reason}"):
        dicom.read_pixels(write(**tags))


def test_invalid_values_do_not_leak_as_warnings(write):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(PatientBirthDate="not a date", StudyInstanceUID="1.x.2", PatientAge="ninety", ImageLaterality="left breast")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = dicom.read_header(path)
        dicom.read_pixels(path)
    assert header.laterality is None


@pytest.mark.data
def test_a_genuine_file_of_cbis_ddsm(real_data):
    (path,) = sorted((real_data / "cbis-ddsm" / "dicom").glob("*.dcm"))
    header, image = dicom.read_header(path), dicom.read_pixels(path)
    stored = pydicom.dcmread(path).pixel_array
    assert image.shape == (header.rows, header.cols, 1) == (*stored.shape, 1)
    assert header.spacing is None
    np.testing.assert_allclose(image[..., 0], stored / 65535, atol=1e-6)
