"""tfmammo.archives.dicom against files written here, and against pydicom's own pipeline
where that is right.
"""

import logging
import struct
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from tests.archives.writers.ddsm import encode
from tfmammo.archives import dicom
from tfmammo.archives.headers import Header
from tfmammo.archives.silence import silence
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError

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
    written = FileDataset(
        "",
        {},
        b"\0" * 128,
        meta,
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=little,
    )
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
            setattr(written, key, value)
    return written


def save(path: Path, content: FileDataset) -> Path:
    content.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def write(tmp_path):
    return lambda **tags: save(tmp_path / "image.dcm", dataset(**tags))


def save_stream(path: Path, syntax, stream: bytes, **tags) -> Path:
    """A mammogram whose compressed pixels are `stream`."""
    content = dataset(syntax=syntax, **tags)
    content.PixelData = encapsulate([stream])
    content["PixelData"].VR = "OB"
    content["PixelData"].is_undefined_length = True
    return save(path, content)


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
    np.testing.assert_array_equal(
        dicom.read_pixels(write(stored=overlay)), dicom.read_pixels(write())
    )


def test_signed_pixels_span_their_own_range(write):
    image = dicom.read_pixels(write(stored=np.array([[-2048, -1], [0, 2047]], np.int16)))
    np.testing.assert_allclose(image[..., 0], [[0, 2047 / 4095], [2048 / 4095, 1]], rtol=1e-6)


def test_signed_pixels_under_foreign_high_bits(write):
    stored = np.array([[-2048, -1], [0, 2047]], np.int16)
    dirty = (stored & 0x0FFF) | np.int16(0x3000)
    np.testing.assert_array_equal(
        dicom.read_pixels(write(stored=dirty)), dicom.read_pixels(write(stored=stored))
    )


def test_monochrome1_is_the_inverse_of_monochrome2(write):
    straight = dicom.read_pixels(write())
    inverted = dicom.read_pixels(
        write(stored=4095 - STORED, PhotometricInterpretation="MONOCHROME1")
    )
    np.testing.assert_allclose(inverted, straight, atol=1e-7)
    assert straight[0, 0, 0] == 0


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
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
    content = dataset(stored=stored)
    content.compress(syntax)
    path = save(tmp_path / "compressed.dcm", content)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(dicom.read_pixels(path), expected)
    assert dicom.read_header(path).cols == 50


@pytest.mark.parametrize(
    ("syntax", "predictor"),
    [(JPEGLosslessSV1, 1), (JPEGLossless, 1), (JPEGLossless, 4), (JPEGLossless, 7)],
)
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_jpeg_gives_the_same_pixels(tmp_path, write, syntax, predictor, signed):
    stream = encode(STORED, predictor, precision=12, conforming=True)
    twos_complement = (STORED.astype(np.int16) << 4) >> 4
    path = save_stream(tmp_path / "compressed.dcm", syntax, stream, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(
        dicom.read_pixels(path),
        dicom.read_pixels(write(stored=twos_complement if signed else STORED)),
    )


def test_jpeg_ls_by_the_example_of_its_standard(tmp_path):
    stream = bytes.fromhex(  # ITU-T T.87, annex H.3
        "ffd8fff7000b080004000401011100ffda0008010100000000c000006c80208e01c0000057400000"
        "6ee6000001bc18000005d800009160ffd9"
    )
    pixels = np.array(
        [[0, 0, 90, 74], [68, 50, 43, 205], [64, 145, 145, 145], [100, 145, 145, 145]], np.uint8
    )
    path = save_stream(
        tmp_path / "image.dcm", JPEGLSLossless, stream, stored=pixels, bits=8, BitsAllocated=8
    )
    np.testing.assert_array_equal(
        dicom.read_pixels(path)[..., 0], (pixels / 255).astype(np.float32)
    )


def test_lossy_jpeg_2000_is_near(tmp_path, write):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint16) * 28
    content = dataset(stored=smooth)
    content.compress(JPEG2000, j2k_psnr=[70])
    image = dicom.read_pixels(save(tmp_path / "compressed.dcm", content))
    assert 0 < np.abs(image - dicom.read_pixels(write(stored=smooth))).max() < 0.003


def test_baseline_jpeg_of_8_bits_is_near(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    stream = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    path = save_stream(
        tmp_path / "image.dcm", JPEGBaseline8Bit, stream, stored=smooth, bits=8, BitsAllocated=8
    )
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], smooth / 255, atol=3 / 255)


def test_extended_jpeg_of_12_bits(tmp_path):
    """Four blocks of one grey level each, coded by hand: a DC difference in 4 + n bits, then the
    end of the block.
    """
    levels = [100, 4000, 2048, 7]
    bits = ""
    last = 2048
    for level in levels:
        difference = level - last
        last = level
        size = abs(difference).bit_length()
        bits += f"{size:04b}{difference if difference > 0 else difference + 2**size - 1:0{size}b}0"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    parts = [
        (0xDB, bytes([0, 8]) + b"\1" * 63),  # a DC step of 8 is one grey level
        (0xC1, bytes([12, 0, 8, 0, 32, 1, 1, 0x11, 0])),
        (0xC4, bytes([0x00, 0, 0, 0, 15, *[0] * 12, *range(15)])),
        (0xC4, bytes([0x10, 1, *[0] * 15, 0])),
        (0xDA, bytes([1, 1, 0, 0, 63, 0])),
    ]
    segments = b"".join(
        b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2, "big") + body
        for marker, body in parts
    )
    stored = np.tile(np.repeat(np.array(levels, np.uint16), 8), (8, 1))
    path = save_stream(
        tmp_path / "image.dcm",
        JPEGExtended12Bit,
        b"\xff\xd8" + segments + scan + b"\xff\xd9",
        stored=stored,
    )
    np.testing.assert_array_equal(
        dicom.read_pixels(path)[..., 0], (stored / 4095).astype(np.float32)
    )


def test_several_fragments_make_one_image(tmp_path):
    stream = encode(STORED, 1, precision=12, conforming=True)
    stream += b"\0" * (len(stream) % 2)
    path = save_stream(tmp_path / "image.dcm", JPEGLosslessSV1, stream)
    expected = dicom.read_pixels(path)
    file = pydicom.dcmread(path)
    file.PixelData = encapsulate([stream], fragments_per_frame=3)
    np.testing.assert_array_equal(dicom.read_pixels(save(path, file)), expected)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\xfe\xff\x00\xe0")])
    with pytest.raises(ArchiveError, match=r"the file ends early, its compressed pixels break off"):
        dicom.read_pixels(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("cols", [4, 5])
def test_pixels_of_8_bits_in_words(tmp_path, syntax, cols):
    stored = np.arange(3 * cols, dtype=np.uint8).reshape(3, cols) * 9
    padded = np.frombuffer(stored.tobytes() + b"\0" * (stored.size % 2), "<u2")
    content = dataset(stored=stored, bits=8, syntax=syntax, BitsAllocated=8)
    content.PixelData = padded.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    content["PixelData"].VR = "OW"
    np.testing.assert_array_equal(
        dicom.read_pixels(save(tmp_path / "image.dcm", content))[..., 0],
        (stored / 255).astype(np.float32),
    )


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ImplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("bits", [8, 12])
def test_what_the_writer_writes_is_read_back(tmp_path, syntax, bits):
    stored = (np.arange(40 * 48).reshape(40, 48) % 2**bits).astype(np.uint16)
    write_dicom(tmp_path / "a" / "image.dcm", stored, bits, syntax=syntax)
    np.testing.assert_array_equal(
        dicom.read_pixels(tmp_path / "a" / "image.dcm")[..., 0],
        (stored / (2**bits - 1)).astype(np.float32),
    )


def test_pixels_of_one_bit(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (5, 7)).astype(np.uint8)
    content = dataset(
        stored=bits,
        bits=1,
        BitsAllocated=1,
        PixelData=np.packbits(bits, bitorder="little").tobytes() + b"\0",
    )
    content["PixelData"].VR = "OB"
    np.testing.assert_array_equal(
        dicom.read_pixels(save(tmp_path / "image.dcm", content))[..., 0], bits
    )


PIPELINES = {
    "plain": {},
    "inverted": {
        "PhotometricInterpretation": "MONOCHROME1",
        "PixelPaddingValue": 34,
        "PixelPaddingRangeLimit": 340,
    },
    "rescaled": {
        "RescaleSlope": 2.5,
        "RescaleIntercept": -1000,
        "WindowCenter": 3210.5,
        "WindowWidth": 2222,
    },
    "sigmoid": {
        "WindowCenter": 1800,
        "WindowWidth": 1500,
        "VOILUTFunction": "SIGMOID",
        "PhotometricInterpretation": "MONOCHROME1",
    },
    "tables": {
        "ModalityLUTSequence": [(np.arange(3000) ** 2 // 140, 50)],
        "VOILUTSequence": [(np.arange(30000) * 2, 100)],
    },
}


@pytest.mark.parametrize("tags", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_looking_up_equals_computing_every_pixel(write, tags, signed, bits):
    """One by one, in Python's own arithmetic."""
    tags = {
        key: [lut(*value[0])] if key.endswith("Sequence") else value for key, value in tags.items()
    }
    stored = (
        np.random.default_rng(bits)
        .integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (20, 30))
        .astype(np.int16)
    )
    stored = stored if signed else (stored.view(np.uint16) & np.uint16(2**bits - 1))
    stored[0, :2] = 34, 300
    content = pydicom.dcmread(write(stored=stored, bits=bits, **tags))
    image = dicom.read_pixels(write(stored=stored, bits=bits, **tags))
    expected = [[_grey(content, int(value), signed, bits) for value in row] for row in stored]
    np.testing.assert_array_equal(image[..., 0], np.float32(expected))


def _grey(content: Dataset, stored: int, signed: bool, bits: int) -> float:
    value = float(stored)
    low = -(2.0 ** (bits - 1)) if signed else 0.0
    high = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1
    if "RescaleSlope" in content:
        value, low, high = (
            number * float(content.RescaleSlope) + float(content.RescaleIntercept)
            for number in (value, low, high)
        )
    for key in ("ModalityLUTSequence", "VOILUTSequence"):
        if key in content:
            entries, first, depth = content[key][0].LUTDescriptor
            value = float(content[key][0].LUTData[int(min(max(value - first, 0), entries - 1))])
            low = 0.0
            high = 2.0**depth - 1
    if "WindowCenter" in content:
        center = float(content.WindowCenter)
        width = float(content.WindowWidth)
        if "VOILUTFunction" in content:
            value = float(1 / (1 + np.exp(-4 * (value - center) / width)))
        else:
            value = (value - (center - 0.5)) / (width - 1) + 0.5
        low = 0.0
        high = 1.0
    grey = min(max((value - low) / (high - low), 0.0), 1.0)
    if content.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return 0.0 if "PixelPaddingValue" in content and 34 <= stored <= 340 else grey


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
    image = dicom.read_pixels(
        write(VOILUTSequence=[lut(table, first=34, bits=10)], WindowCenter=0, WindowWidth=2)
    )
    expected = table[np.clip(STORED.astype(int) - 34, 0, 3)] / 1023
    np.testing.assert_allclose(image[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_lut_data_as_bytes(write, syntax):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new(
        "LUTData",
        "OW",
        np.arange(4096)[::-1].astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes(),
    )
    image = dicom.read_pixels(write(VOILUTSequence=[item], syntax=syntax))
    np.testing.assert_allclose(image[..., 0], 1 - STORED / 4095, atol=1e-6)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_agrees_with_pydicom(write, function):
    path = write(WindowCenter=1800, WindowWidth=1500, VOILUTFunction=function)
    expected = apply_windowing(STORED, pydicom.dcmread(path)) / 4095
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], expected, atol=1e-6)


def test_the_first_of_several_windows_counts(write):
    several = dicom.read_pixels(write(WindowCenter=[1800, 900], WindowWidth=[1500, 300]))
    np.testing.assert_array_equal(
        several, dicom.read_pixels(write(WindowCenter=1800, WindowWidth=1500))
    )


def test_a_window_is_chosen_by_its_number(write):
    table = lut(np.arange(4096) // 16, bits=8)
    path = write(
        VOILUTSequence=[table, lut(np.arange(4096)[::-1] // 16, bits=8)],
        WindowCenter=[1800, 900],
        WindowWidth=[1500, 300],
    )
    alone = {
        0: {"VOILUTSequence": [table]},
        1: {"VOILUTSequence": [lut(np.arange(4096)[::-1] // 16, bits=8)]},
        2: {"WindowCenter": 1800, "WindowWidth": 1500},
        3: {"WindowCenter": 900, "WindowWidth": 300},
    }
    images = {number: dicom.read_pixels(path, window=number) for number in alone}
    np.testing.assert_array_equal(dicom.read_pixels(path), images[0])
    for number, tags in alone.items():
        np.testing.assert_array_equal(dicom.read_pixels(write(**tags)), images[number])


@pytest.mark.parametrize("number", [2, 1000, -1])
def test_a_window_that_is_not_there(write, number):
    with pytest.raises(
        ArchiveError, match=rf"image\.dcm: has no window of number {number}, only 2"
    ):
        dicom.read_pixels(write(WindowCenter=[1800, 900], WindowWidth=[1500, 300]), window=number)


def test_a_window_around_zero(write):
    stored = np.array([[-3, -1, 0, 1, 3]], np.int16)
    image = dicom.read_pixels(
        write(stored=stored, WindowCenter=0, WindowWidth=4, VOILUTFunction="LINEAR_EXACT")
    )
    np.testing.assert_array_equal(image[0, :, 0], [0, 0.25, 0.5, 0.75, 1])


def test_the_first_entry_of_a_lut_behind_a_negative_intercept(write):
    """The first input value -1000 is stored as 64536, for the element has no type of its own for
    signed numbers.
    """
    table = np.arange(4096) // 16
    path = write(
        RescaleSlope=1, RescaleIntercept=-1000, VOILUTSequence=[lut(table, first=64536, bits=8)]
    )
    np.testing.assert_array_equal(
        dicom.read_pixels(path), dicom.read_pixels(write(VOILUTSequence=[lut(table, bits=8)]))
    )


def test_without_window_the_stored_range_stays(write):
    path = write(WindowCenter=1800, WindowWidth=1500)
    np.testing.assert_array_equal(dicom.read_pixels(path, window=False), dicom.read_pixels(write()))


def test_window_after_a_negative_slope_keeps_its_direction(write):
    path = write(
        RescaleSlope=-1,
        RescaleIntercept=4095,
        WindowCenter=2047.5,
        WindowWidth=4095,
        VOILUTFunction="LINEAR_EXACT",
    )
    np.testing.assert_allclose(dicom.read_pixels(path)[..., 0], 1 - STORED / 4095, atol=1e-6)


def test_padding_is_dark_in_monochrome1(write):
    stored = np.array([[0, 0, 4095], [0, 2000, 4095]], np.uint16)
    path = write(stored=stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    np.testing.assert_allclose(
        dicom.read_pixels(path)[..., 0], [[0, 0, 0], [0, 1 - 2000 / 4095, 0]], atol=1e-6
    )


def test_padding_range(write):
    stored = np.array([[5, 7, 9, 11]], np.uint16)
    path = write(
        stored=stored,
        PhotometricInterpretation="MONOCHROME1",
        PixelPaddingValue=9,
        PixelPaddingRangeLimit=6,
    )
    np.testing.assert_array_equal(dicom.read_pixels(path)[0, :, 0] == 0, [False, True, True, False])


@pytest.mark.parametrize("kind", ["US", "SS"])
def test_padding_below_zero_by_either_type(tmp_path, kind):
    content = dataset(
        stored=np.array([[-2000, 0, 2047]], np.int16), PhotometricInterpretation="MONOCHROME1"
    )
    content.add_new("PixelPaddingValue", kind, 63536 if kind == "US" else -2000)
    image = dicom.read_pixels(save(tmp_path / "image.dcm", content))
    np.testing.assert_allclose(image[0, :, 0], [0, 2047 / 4095, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("tags", "raw"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, True),
        ({"PresentationIntentType": "FOR PRESENTATION"}, False),
        ({"SOPClassUID": MAMMOGRAPHY + ".1"}, True),
        ({}, False),
    ],
)
def test_raw_images_are_recognised(write, tags, raw):
    assert dicom.read_header(write(**tags)).for_processing is raw


@pytest.mark.parametrize(
    ("words", "said"), [(" cropped images ", "cropped images"), ("", None), (None, None)]
)
def test_the_series_description(write, words, said):
    assert dicom.read_header(write(SeriesDescription=words)).series_description == said


def test_header_facts(write):
    path = write(ImageLaterality="R", ViewPosition="MLO", ImagerPixelSpacing=[0.07, 0.07])
    assert dicom.read_header(path) == Header(12, 10, (0.07, 0.07), "R", "MLO", None, False)


def test_spacing_in_the_breast_wins_and_need_not_be_square(write):
    header = dicom.read_header(write(PixelSpacing=[0.05, 0.1], ImagerPixelSpacing=[0.07, 0.07]))
    assert header.spacing == (0.05, 0.1)


IMAGER = {"ImagerPixelSpacing": [0.075, 0.15]}


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        (IMAGER, (0.075, 0.15)),
        (IMAGER | {"EstimatedRadiographicMagnificationFactor": 1.5}, (0.05, 0.1)),
        (IMAGER | {"EstimatedRadiographicMagnificationFactor": 0}, (0.075, 0.15)),
        (IMAGER | {"EstimatedRadiographicMagnificationFactor": 0.5}, (0.075, 0.15)),
        (
            IMAGER
            | {"PixelSpacing": [0.06, 0.12], "EstimatedRadiographicMagnificationFactor": 1.5},
            (0.06, 0.12),
        ),
        # PS3.3 10.7.1.1: equal values and no type of calibration mean that nothing has been
        # corrected
        (
            IMAGER
            | {"PixelSpacing": [0.075, 0.15], "EstimatedRadiographicMagnificationFactor": 1.5},
            (0.05, 0.1),
        ),
        (
            IMAGER
            | {
                "PixelSpacing": [0.075, 0.15],
                "PixelSpacingCalibrationType": "GEOMETRY",
                "EstimatedRadiographicMagnificationFactor": 1.5,
            },
            (0.075, 0.15),
        ),
        (
            {"PixelSpacing": [0.06, 0.12], "EstimatedRadiographicMagnificationFactor": 1.5},
            (0.06, 0.12),
        ),
        ({"NominalScannedPixelSpacing": [0.05, 0.05]}, (0.05, 0.05)),
        (IMAGER | {"NominalScannedPixelSpacing": [0.05, 0.05]}, (0.075, 0.15)),
    ],
)
def test_precedence_of_spacings(write, tags, spacing):
    assert dicom.read_header(write(**tags)).spacing == pytest.approx(spacing)


@pytest.mark.parametrize("spacing", [None, [0, 0], ""])
def test_spacing_that_is_none(write, spacing):
    assert dicom.read_header(write(PixelSpacing=spacing)).spacing is None


@pytest.mark.parametrize("keyword", ["ImageLaterality", "Laterality", "FrameLaterality"])
def test_laterality_of_every_tag(write, keyword):
    assert dicom.read_header(write(**{keyword: "L"})).laterality == "L"


def test_laterality_of_an_enhanced_image(write):
    anatomy = Dataset()
    shared = Dataset()
    anatomy.FrameLaterality = "R"
    shared.FrameAnatomySequence = [anatomy]
    assert dicom.read_header(write(SharedFunctionalGroupsSequence=[shared])).laterality == "R"


def code(value: str, **tags) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    for key, content in tags.items():
        setattr(item, key, content)
    return item


@pytest.mark.parametrize(
    ("item", "side"),
    [
        (code("80248007"), "L"),
        (code("T-04020"), "R"),
        (code("76752008", AnatomicRegionModifierSequence=[code("7771000")]), "L"),
        (code("T-04000", AnatomicRegionModifierSequence=[code("G-A100")]), "R"),
        (code("76752008"), None),
    ],
)
def test_laterality_from_its_code(write, item, side):
    assert dicom.read_header(write(AnatomicRegionSequence=[item])).laterality == side


def test_what_an_enhanced_image_says_of_its_one_frame(write):
    """Breast projection x-ray images state everything in functional groups."""

    def macro(**tags) -> Dataset:
        return code("x", **tags)

    shared = Dataset()
    frame = Dataset()
    shared.PixelMeasuresSequence = [macro(PixelSpacing=[0.05, 0.06])]
    shared.FrameAnatomySequence = [macro(FrameLaterality="L")]
    shared.PixelValueTransformationSequence = [macro(RescaleSlope=2, RescaleIntercept=-100)]
    frame.FrameVOILUTSequence = [macro(WindowCenter=900, WindowWidth=400)]
    path = write(
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame],
        NumberOfFrames=1,
    )
    header = dicom.read_header(path)
    image = dicom.read_pixels(path)
    assert (header.spacing, header.laterality) == ((0.05, 0.06), "L")
    plain = write(RescaleSlope=2, RescaleIntercept=-100, WindowCenter=900, WindowWidth=400)
    np.testing.assert_array_equal(image, dicom.read_pixels(plain))


def test_both_breasts_are_no_laterality(write):
    assert dicom.read_header(write(ImageLaterality="B")).laterality is None


VIEW_CODES = {
    "R-10242": "CC",
    "399162004": "CC",
    "R-10226": "MLO",
    "399368009": "MLO",
    "R-10224": "ML",
    "R-1024A": "XCCL",
    "399101009": "XCCM",
    "399352003": "LM",
    "399099002": "LMO",
    "399196006": "FB",
    "399188001": "SIO",
    "G-8310": None,  # a specimen
}


@pytest.mark.parametrize(("value", "view"), VIEW_CODES.items())
def test_view_from_its_code(write, value, view):
    assert dicom.read_header(write(ViewCodeSequence=[code(value)])).view == view


@pytest.mark.parametrize(
    ("position", "side", "view"),
    [
        ("CC", None, "CC"),
        ("MLO", None, "MLO"),
        ("LMLO", "L", "MLO"),
        ("RCC", "R", "CC"),
        ("R CC", "R", "CC"),
        ("ML", None, "ML"),
        ("LML", "L", "ML"),
        ("LMO", None, "LMO"),
        ("XCCL", None, "XCCL"),
        ("LM", None, "LM"),
        ("", None, None),
    ],
)
def test_view_and_side_from_the_position(write, position, side, view):
    header = dicom.read_header(write(ViewPosition=position))
    assert (header.laterality, header.view) == (side, view)


def test_a_stated_side_wins_over_the_positions(write):
    header = dicom.read_header(write(ViewPosition="LCC", ImageLaterality="R"))
    assert (header.laterality, header.view) == ("R", "CC")


@pytest.mark.parametrize(
    ("words", "side"),
    [
        (["A", "R"], "L"),
        (["A", "FR"], "L"),
        (["AF", "R"], "L"),
        (["P", "L"], "R"),
        (["P", "FL"], "R"),
        (["PH", "FL"], "R"),
        (["L", "F"], None),
        ("CC", None),  # CBIS-DDSM's
        ("MLO", None),
        ("", None),
        (None, None),
    ],
)
def test_the_chest_wall_by_the_direction_of_the_rows(write, words, side):
    header = dicom.read_header(write(PatientOrientation=words, ImageLaterality="R"))
    assert (header.chest_wall, header.laterality) == (side, "R")


CAPTURE = {"SOPClassUID": SecondaryCaptureImageStorage}
XRAY = "1.2.840.10008.5.1.4.1.1.1.1"  # digital radiography for presentation
SYNTHESIZED = ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]


@pytest.mark.parametrize(
    "tags",
    [
        CAPTURE,
        CAPTURE | {"Modality": None},
        CAPTURE | {"BodyPartExamined": "LEFT BREAST"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"},
        {"SOPClassUID": XRAY},
        {"SOPClassUID": XRAY, "Modality": None, "BodyPartExamined": "BREAST"},
        {"Modality": None},
        {"ImageType": SYNTHESIZED},
        {"ImageType": "DERIVED"},
    ],
)
def test_film_scans_radiographs_and_synthesized_images_are_mammograms(write, tags):
    assert dicom.read_pixels(write(**tags)).shape == (12, 10, 1)


@pytest.mark.parametrize(
    "tags",
    [
        CAPTURE | {"Modality": "CT"},  # a dose page
        CAPTURE | {"Modality": "US"},
        CAPTURE | {"Modality": "OT"},
        CAPTURE | {"BodyPartExamined": "ABDOMEN"},
        CAPTURE | {"Modality": None, "BodyPartExamined": "CHEST"},
        {"BodyPartExamined": "SPINE"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.5.1"},  # a fundus photograph
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.5.1", "Modality": None},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"},  # ultrasound
        {"SOPClassUID": XRAY, "Modality": None},
        {"SOPClassUID": CTImageStorage, "Modality": None, "BodyPartExamined": "BREAST"},
        CAPTURE | {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ", "RIGHT"]},
    ],
)
def test_what_is_found_beside_mammograms_is_none(write, tags):
    with pytest.raises(ArchiveError, match="is no mammogram"):
        dicom.read_header(write(**tags))


REFUSED = {
    "modality is CT": {"Modality": "CT", "SOPClassUID": CTImageStorage},
    "SOP class is neither": {"Modality": None, "SOPClassUID": CTImageStorage},
    "holds 3 frames": {"NumberOfFrames": 3, "PixelData": STORED.tobytes() * 3},
    "interpretation is RGB": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "interpretation is PALETTE COLOR": {"PhotometricInterpretation": "PALETTE COLOR"},
    "interpretation is unknown": {"PhotometricInterpretation": "SOMETHING"},
    "no rows or columns": {"Rows": None},
    "no mammogram has 65535 x 65535 pixels": {"Rows": 65535, "Columns": 65535},
    "17 bits stored in 16": {"BitsStored": 17},
    "32 bits stored in 32": {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
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


@pytest.mark.parametrize(
    "other", ["1.2.840.10008.1.2.7", "1.2.840.99999.1.2.1", "1.2.840.10008.5.1.4"]
)
def test_a_transfer_syntax_that_is_none(write, other):
    path = write()
    padded = [text.encode().ljust(20, b"\0") for text in (ExplicitVRLittleEndian, other)]
    path.write_bytes(path.read_bytes().replace(*padded))
    with pytest.raises(ArchiveError, match="image.dcm: its transfer syntax is missing or unknown"):
        dicom.read_header(path)


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


def test_compressed_pixels_of_another_size_than_the_headers(tmp_path):
    content = dataset(stored=np.tile(STORED, (6, 5)))
    content.compress(JPEG2000Lossless)
    content.Rows = 50
    content.Columns = 72
    with pytest.raises(
        ArchiveError, match=r"compressed pixels are 72 x 50, its header says 50 x 72"
    ):
        dicom.read_pixels(save(tmp_path / "a.dcm", content))
    path = save_stream(
        tmp_path / "b.dcm",
        JPEGLosslessSV1,
        encode(STORED, 1, precision=12, conforming=True),
        Rows=1,
    )
    with pytest.raises(
        ArchiveError, match=r"compressed pixels are 12 x 10, its header says 1 x 10"
    ):
        dicom.read_pixels(path)


def test_a_stream_that_claims_a_huge_image_is_not_decoded(tmp_path):
    original = dataset(stored=np.tile(STORED, (6, 5)))
    original.compress(JPEG2000Lossless)
    path = save(tmp_path / "image.dcm", original)
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(content[:at] + b"\x7f\xff\xff\xff" * 2 + content[at + 8 :])
    with pytest.raises(
        ArchiveError,
        match=r"compressed pixels are 2147483647 x 2147483647, its header says 72 x 50",
    ):
        dicom.read_pixels(path)


def test_a_deflated_bomb_is_not_inflated(tmp_path, monkeypatch):
    path = save(
        tmp_path / "image.dcm",
        dataset(stored=np.zeros((3000, 3000), np.uint16), syntax=DeflatedExplicitVRLittleEndian),
    )
    assert dicom.read_header(path).rows == 3000
    assert path.stat().st_size < 30_000
    monkeypatch.setattr(dicom, "MOST_PIXELS", 2**19)
    with pytest.raises(
        ArchiveError, match="image.dcm: is deflated and inflates to more than any mammogram needs"
    ):
        dicom.read_header(path)


def test_a_deflated_bomb_behind_a_long_preface_is_not_inflated_either(tmp_path, monkeypatch):
    bomb = dataset(stored=np.zeros((3000, 3000), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    bomb.file_meta.PrivateInformationCreatorUID = "1.2.3"
    # before the transfer syntax in no file, but before the rest in this one
    bomb.file_meta.PrivateInformation = b"\0" * 70_000
    path = save(tmp_path / "image.dcm", bomb)
    assert dicom.read_header(path).rows == 3000
    content = path.read_bytes()
    name = str(DeflatedExplicitVRLittleEndian).encode()
    element = content[content.index(name) - 8 :][: 8 + len(name) + len(name) % 2]
    behind = content.replace(element, b"")
    end = 144 + int.from_bytes(content[140:144], "little") - len(element)
    # elements out of order, as pydicom takes them
    path.write_bytes(behind[:end] + element + behind[end:])
    monkeypatch.setattr(dicom, "MOST_PIXELS", 2**19)
    with pytest.raises(
        ArchiveError, match="image.dcm: is deflated and inflates to more than any mammogram needs"
    ):
        dicom.read_header(path)


def rle(*segments: bytes) -> bytes:
    """A frame of RLE segments."""
    offsets = [64 + sum(map(len, segments[:number])) for number in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(
        segments
    )


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        # unpacks to 512 MB
        (rle(b"\x81\0" * 2**21, b"\x81\0" * 2**21), "RLE segments are far longer than its pixels"),
        # does nothing for long
        (rle(b"\x80" * 2**22, b"\x80" * 2**22), "RLE segments are far longer"),
        (rle(b"\x81\0" * 4), "can't be decoded"),
        (rle(b"\x81\0", b"\x81\0"), "can't be decoded"),
        (b"\2\0\0\0", "can't be decoded"),
    ],
)
def test_an_rle_bomb_is_not_unpacked(tmp_path, frame, said):
    path = save_stream(
        tmp_path / "image.dcm", RLELossless, frame, stored=np.zeros((64, 64), np.uint16)
    )
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{said}"):
            dicom.read_pixels(path)
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()


def test_rle_that_unpacks_to_more_than_its_pixels_is_cut_there(tmp_path):
    row = bytes(range(128))
    # literally 0 to 127, 128 times 5, nothing, then padding
    packed = b"\x7f" + row + b"\x81\x05" + b"\x80" + b"\x81\x06" * 400
    path = save_stream(
        tmp_path / "image.dcm",
        RLELossless,
        rle(b"\x81\0\x81\0", packed),
        stored=np.zeros((2, 128), np.uint16),
    )
    image = dicom.read_pixels(path, window=False)
    np.testing.assert_array_equal(np.rint(image[..., 0] * 4095), [list(row), [5] * 128])


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (
            b"\xff\x4f\xff\x51" + struct.pack(">2H8IH", 41, 0, 10, 12, 0, 0, 10, 12, 0, 0, 16384),
            "in 16384 channels",
        ),
        (
            struct.pack(">I4s4sI4s", 12, b"jP  ", b"\r\n\x87\n", 0, b"jp2c")
            + b"\xff\x4f\xff\x51\0\x29\0\0"
            + b"\x7f" * 60,
            "are 0 x 0",
        ),
        (b"\0" * 100, "do not say how many they are"),
    ],
)
def test_a_jpeg_2000_must_be_one_grey_image_of_the_headers_size(tmp_path, stream, said):
    with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{said}"):
        dicom.read_pixels(save_stream(tmp_path / "image.dcm", JPEG2000Lossless, stream))


def test_no_file_waits_for_the_decoding_of_another(write):
    path = write()
    inside = threading.Event()
    done = threading.Event()

    def slow() -> None:
        with silence():
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=slow)
    disabled = logging.getLogger("pydicom").disabled
    filters = list(warnings.filters)
    thread.start()
    inside.wait(30)
    with ThreadPoolExecutor(1) as pool:
        try:
            assert pool.submit(dicom.read_pixels, path).result(timeout=20).shape == (12, 10, 1)
        finally:
            done.set()
            thread.join()
    assert logging.getLogger("pydicom").disabled == disabled and list(warnings.filters) == filters


def test_compressed_pixels_under_an_uncompressed_syntax(tmp_path):
    path = save_stream(
        tmp_path / "image.dcm", JPEGLosslessSV1, encode(STORED, 1, precision=12, conforming=True)
    )
    content = path.read_bytes().replace(str(JPEGLosslessSV1).encode(), b"1.2.840.10008.1.2.1\0\0\0")
    path.write_bytes(content)
    with pytest.raises(
        ArchiveError, match="compressed, though its transfer syntax says that they are not"
    ):
        dicom.read_pixels(path)


def test_a_damaged_stream_is_one_sentence(tmp_path, caplog):
    stream = bytearray(encode(STORED, 1, precision=12, conforming=True))
    stream[2:4] = b"\xff\xc5"
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ArchiveError, match=r"its pixels can't be decoded \(RuntimeError: .*\)$"),
    ):
        dicom.read_pixels(save_stream(tmp_path / "image.dcm", JPEGLosslessSV1, bytes(stream)))
    assert not caplog.records


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless],
)
def test_a_file_cut_anywhere_is_an_archive_error(tmp_path, syntax):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4096, (64, 48)).astype(np.uint16)
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        content = dataset(stored=stored)
        content.compress(syntax)
    else:
        content = dataset(stored=stored, syntax=syntax)
    whole = save(tmp_path / "whole.dcm", content).read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in [*range(0, 900, 37), *range(900, len(whole) - 8, 501), len(whole) - 9]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=r"cut\.dcm: "):
            dicom.read_pixels(cut)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"WindowCenter": 10, "WindowWidth": 0}, "a window of width 0 is empty"),
        (
            {"WindowCenter": 10, "WindowWidth": 9, "VOILUTFunction": "CUBIC"},
            "function is none of LINEAR",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "is empty"),
        ({"RescaleSlope": "1e300", "RescaleIntercept": "nan"}, "is empty"),
        ({"WindowCenter": "nan", "WindowWidth": 9}, "not finite"),
    ],
)
def test_a_pipeline_that_can_not_be_followed(tmp_path, write, tags, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of writing "nan"
        write(**tags)
    with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{reason}"):
        dicom.read_pixels(tmp_path / "image.dcm")


def test_invalid_values_do_not_leak_as_warnings(write):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(
            PatientBirthDate="not a date",
            StudyInstanceUID="1.x.2",
            PatientAge="ninety",
            ImageLaterality="left breast",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = dicom.read_header(path)
        dicom.read_pixels(path)
    assert header.laterality is None


@pytest.mark.data
def test_a_genuine_file_of_cbis_ddsm(real_data):
    (path,) = sorted((real_data / "cbis-ddsm" / "dicom").glob("*.dcm"))
    header = dicom.read_header(path)
    image = dicom.read_pixels(path)
    stored = pydicom.dcmread(path).pixel_array
    assert image.shape == (header.rows, header.cols, 1) == (*stored.shape, 1)
    assert header.spacing is None
    np.testing.assert_allclose(image[..., 0], stored / 65535, atol=1e-6)
