"""tfmammo.archives.dicom against files written here, and against pydicom's own pipeline
where that is right.
"""

import logging
import struct
import traceback
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from tests.archives.tools import change_dicom
from tests.archives.writers.ddsm import encode
from tfmammo.archives import dicom
from tfmammo.archives.silence import silence
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError

STORED = np.arange(12 * 10, dtype=np.uint16).reshape(12, 10) * 34  # 0 to 4046
MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"


def write_file(path: Path, stored=STORED, bits=12, syntax=ExplicitVRLittleEndian, **tags) -> Path:
    """A small mammogram of 16 allocated bits; a tag set to None is skipped."""
    elements = {"BitsStored": bits, "HighBit": bits - 1, **tags}
    pixels = elements.pop("PixelData", b"")
    write_dicom(path, stored, 8 * stored.itemsize, syntax=syntax, **elements)
    dataset = pydicom.dcmread(path)
    for key in [key for key in tags if tags[key] is None and key in dataset]:
        delattr(dataset, key)
    if pixels:
        dataset.PixelData = pixels
    dataset.save_as(path)
    return path


@pytest.fixture
def write(tmp_path):
    return lambda **tags: write_file(tmp_path / "image.dcm", **tags)


def save_stream(path: Path, syntax, stream: bytes, **tags) -> Path:
    """A mammogram whose compressed pixels are `stream`."""

    def edit(dataset):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return change_dicom(write_file(path, **tags), edit=edit, PixelData=encapsulate([stream]))


def assert_grey(path: Path, expected, atol: float = 0.0) -> None:
    """Compare an image with intensities [rows, cols]."""
    image = dicom.read_pixels(path)[..., 0]
    np.testing.assert_allclose(image, np.float32(expected), rtol=0, atol=atol)


RISING = np.arange(4096)


def lut(table, first=0, bits=16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in table])
    return item


# Files


SYNTAXES = [
    *(ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian),
    *(RLELossless, JPEG2000Lossless),
]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("bits", "kind"), [(8, "u2"), (12, "u2"), (12, "i2"), (16, "u2")])
def test_what_the_writer_writes_is_read_back(tmp_path, syntax, bits, kind):
    codes = np.arange(40 * 48).reshape(40, 48) * 7 % 2**bits
    low = 2 ** (bits - 1) if kind == "i2" else 0
    path = tmp_path / "a" / "image.dcm"
    write_dicom(path, (codes - low).astype(kind), bits, syntax=syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert dicom.read_header(path).cols == 48
    assert_grey(path, codes / (2**bits - 1))


@pytest.mark.parametrize(
    ("syntax", "predictor"), [(JPEGLosslessSV1, 1), (JPEGLossless, 1), (JPEGLossless, 7)]
)
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_jpeg_gives_the_same_pixels(tmp_path, write, syntax, predictor, signed):
    stream = encode(STORED, predictor, precision=12, conforming=True)
    twos_complement = (STORED.astype(np.int16) << 4) >> 4
    path = save_stream(tmp_path / "compressed.dcm", syntax, stream, PixelRepresentation=int(signed))
    plain = write(stored=twos_complement if signed else STORED)
    assert_grey(path, dicom.read_pixels(plain)[..., 0])
    fragments = encapsulate([stream + b"\0" * (len(stream) % 2)], fragments_per_frame=3)
    assert_grey(change_dicom(path, PixelData=fragments), dicom.read_pixels(plain)[..., 0])


# From value to grey

WINDOW = {"WindowCenter": 1800, "WindowWidth": 1500}
INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}
FALLING = {"RescaleSlope": -1, "RescaleIntercept": 4095}
SEVERAL = {"WindowCenter": [3210.5, 900], "WindowWidth": [2222, 300]}
PIPELINES = {
    "plain": {},
    "inverted": INVERTED | {"PixelPaddingValue": 34, "PixelPaddingRangeLimit": 340},
    "rescaled": {"RescaleSlope": 2.5, "RescaleIntercept": -1000} | SEVERAL,
    "falling": FALLING | {"VOILUTFunction": "LINEAR_EXACT"} | WINDOW,
    "sigmoid": INVERTED | {"VOILUTFunction": "SIGMOID"} | WINDOW,
    "tables": {
        "ModalityLUTSequence": [(np.arange(3000) ** 2 // 140, 50)],
        "VOILUTSequence": [(np.arange(30000) * 2, 100)],
    },
    # pydicom wraps 12-bit pixels in such a VOI LUT, and refuses such a modality LUT
    "tables of few bits": {
        "ModalityLUTSequence": [(RISING[::-1] // 2, 0, 12)],
        "VOILUTSequence": [(np.arange(2048) // 8, 0, 8)],
        **WINDOW,
    },
}


@pytest.mark.parametrize("tags", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_looking_up_equals_computing_every_pixel(write, tags, signed, bits):
    """One by one, in Python's own arithmetic; bits above the stored ones may hold anything."""
    tags = {
        key: [lut(*value[0])] if key.endswith("Sequence") else value for key, value in tags.items()
    }
    random = np.random.default_rng(bits)
    stored = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (20, 30))
    stored = stored if signed else stored % 2**bits
    stored[0, :2] = 34, 300
    foreign = random.integers(0, 2**16, stored.shape) >> bits << bits
    dirty = (stored % 2**bits | foreign).astype(np.uint16).view(np.int16 if signed else np.uint16)
    path = write(stored=dirty, bits=bits, **tags)
    content = pydicom.dcmread(path)
    assert_grey(
        path, [[_grey(content, int(value), signed, bits) for value in row] for row in stored]
    )


def _grey(content: Dataset, stored: int, signed: bool, bits: int) -> float:
    value = float(stored)
    low = -(2.0 ** (bits - 1)) if signed else 0.0
    high = low + 2.0**bits - 1
    if "RescaleSlope" in content:
        slope, intercept = float(content.RescaleSlope), float(content.RescaleIntercept)
        value, low, high = (number * slope + intercept for number in (value, low, high))
        low, high = min(low, high), max(low, high)
    for key in ("ModalityLUTSequence", "VOILUTSequence"):
        if key in content:
            entries, first, depth = content[key][0].LUTDescriptor
            value = float(content[key][0].LUTData[int(min(max(value - first, 0), entries - 1))])
            low, high = 0.0, 2.0**depth - 1
    if "WindowCenter" in content and "VOILUTSequence" not in content:
        center, width = (
            float(np.atleast_1d(content[key].value)[0]) for key in ("WindowCenter", "WindowWidth")
        )
        function = content.get("VOILUTFunction", "LINEAR")
        if function == "SIGMOID":
            value = float(1 / (1 + np.exp(-4 * (value - center) / width)))
        elif function == "LINEAR_EXACT":
            value = (value - center) / width + 0.5
        else:
            value = (value - (center - 0.5)) / (width - 1) + 0.5
        low, high = 0.0, 1.0
    grey = min(max((value - low) / (high - low), 0.0), 1.0)
    if content.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return 0.0 if "PixelPaddingValue" in content and 34 <= stored <= 340 else grey


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_and_modality_luts_agree_with_pydicom(write, function):
    path = write(**WINDOW, VOILUTFunction=function)
    assert_grey(path, apply_windowing(STORED, pydicom.dcmread(path)) / 4095, 1e-6)
    path = write(ModalityLUTSequence=[lut((np.arange(4000) * 16) ** 2 // 65536, first=20)])
    expected = apply_modality_lut(pydicom.dcmread(path).pixel_array, pydicom.dcmread(path))
    assert_grey(path, expected / 65535, 1e-6)


@pytest.mark.parametrize("order", "<>")
def test_lut_data_as_bytes(write, order):
    item = Dataset()
    syntax = ExplicitVRBigEndian if order == ">" else ExplicitVRLittleEndian
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "OW", np.arange(4096)[::-1].astype(f"{order}u2").tobytes())
    assert_grey(write(VOILUTSequence=[item], syntax=syntax), 1 - STORED / 4095, 1e-6)


def test_the_first_lut_comes_before_the_first_window(write):
    tables = [lut(entries // 16, bits=8) for entries in (RISING, RISING[::-1])]
    windows = {key: [value, 300] for key, value in WINDOW.items()}
    for many, one in (
        ({"VOILUTSequence": tables, **windows}, {"VOILUTSequence": tables[:1]}),
        (windows, WINDOW),
    ):
        path = write(**many)
        first, whole = dicom.read_pixels(path), dicom.read_pixels(path, window=False)
        np.testing.assert_array_equal(first, dicom.read_pixels(write(**one)))
        np.testing.assert_array_equal(whole, dicom.read_pixels(write()))
        assert not np.array_equal(first, whole)


def test_the_first_entry_of_a_lut_behind_a_negative_intercept(write):
    """The first input value -1000 is stored as 64536: the element's type has no sign."""
    behind = {"RescaleSlope": 1, "RescaleIntercept": -1000}
    path = write(**behind, VOILUTSequence=[lut(RISING // 16, first=64536, bits=8)])
    expected = dicom.read_pixels(path)[..., 0]
    assert_grey(write(VOILUTSequence=[lut(RISING // 16, bits=8)]), expected)


@pytest.mark.parametrize(
    ("first", "kind", "padding"), [(-2000, "US", 63536), (65000, "US", 65000), (65000, "SS", -536)]
)
def test_padding_of_either_type(write, first, kind, padding):
    stored = np.array([[first, 0, 2047]]).astype(np.int16 if first < 0 else np.uint16)
    path = write(stored=stored, bits=12 if first < 0 else 16, **INVERTED)
    change_dicom(path, edit=lambda content: content.add_new("PixelPaddingValue", kind, padding))
    whole = [0, 2047 / 4095, 0] if first < 0 else [0, 1, 1 - 2047 / 65535]
    assert_grey(path, [whole], 1e-6)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"WindowCenter": 10, "WindowWidth": 0}, "a window of width 0 is empty"),
        ({**WINDOW, "VOILUTFunction": "CUBIC"}, "function is none of LINEAR"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "is empty"),
        ({"WindowCenter": "nan", "WindowWidth": 9}, "not finite"),
    ],
)
def test_a_pipeline_that_can_not_be_followed(tmp_path, write, tags, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of writing "nan"
        write(**tags)
    with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{reason}"):
        dicom.read_pixels(tmp_path / "image.dcm")


# Damage


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        (b"1.2.840.10008.1.2.1\0\0\0", "compressed, though its transfer syntax"),
        (b"1.2.840.99999.1.2.4.70", "transfer syntax is missing or unknown"),
    ],
)
def test_a_transfer_syntax_that_is_not_the_files(tmp_path, syntax, reason):
    stream = encode(STORED, 1, precision=12, conforming=True)
    path = save_stream(tmp_path / "image.dcm", JPEGLosslessSV1, stream)
    path.write_bytes(path.read_bytes().replace(str(JPEGLosslessSV1).encode(), syntax))
    with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{reason}"):
        dicom.read_pixels(path)


def rle(segment: bytes) -> bytes:
    """A frame of two equal RLE segments."""
    return struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + 2 * segment


J2K = b"\xff\x4f\xff\x51" + struct.pack(">2H", 41, 0)
WRAPPED = struct.pack(">I4s4sI4s", 12, b"jP  ", b"\r\n\x87\n", 0, b"jp2c")
SIZES = J2K + struct.pack(">8I", 10, 12, 0, 0, 10, 12, 0, 0)
FRAME = b"\xff\xd8\xff\xe0\0\4ab\xff"  # a segment before the frame
DAMAGED = encode(STORED, 1, 12, conforming=True).replace(b"\xff\xc3", b"\xff\xc5")


def frame(*numbers: int) -> bytes:
    return FRAME + struct.pack(">BHBHHB", *numbers)


STREAMS = {
    # claims 4 EB; decoders would believe it
    "2147483647 x 2147483647": (JPEG2000Lossless, J2K + b"\x7f\xff\xff\xff" * 2 + bytes(40)),
    "in 16384 channels": (JPEG2000Lossless, SIZES + struct.pack(">H", 16384)),
    "are 0 x 0": (JPEG2000Lossless, WRAPPED + J2K + b"\x7f" * 60),
    "do not say how many they are": (JPEG2000Lossless, bytes(100)),
    "are 9 x 10,": (JPEGLossless, frame(0xC0, 11, 12, 9, 10, 1)),
    "in 3 channels": (JPEGLossless, frame(0xC3, 11, 12, 12, 10, 3)),
    "can't be decoded": (JPEGLosslessSV1, DAMAGED),
    # unpacks to 512 MB; does nothing for long; too short
    "RLE segments are far longer": (RLELossless, rle(b"\x81\0" * 2**21)),
    "far longer than its pixels": (RLELossless, rle(b"\x80" * 2**22)),
    "pixels can't be decoded": (RLELossless, rle(b"\x01\0\0")),
}


@pytest.mark.parametrize("said", STREAMS)
def test_a_stream_must_be_one_grey_image_of_the_headers_size(tmp_path, said, caplog):
    path = save_stream(tmp_path / "image.dcm", *STREAMS[said])
    tracemalloc.start()
    try:
        with (
            caplog.at_level(logging.DEBUG),
            pytest.raises(ArchiveError, match=rf"image\.dcm: .*{said}"),
        ):
            dicom.read_pixels(path)
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()
    assert not caplog.records


def test_a_deflated_file_is_not_inflated(tmp_path):
    path = tmp_path / "image.dcm"
    write_dicom(path, np.zeros((40, 30), np.uint16), 12, syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(ArchiveError, match="is deflated, which is not read here"):
        dicom.read_header(path)


def test_no_file_waits_for_the_decoding_of_another(write):
    path = write()
    before = logging.getLogger("pydicom").disabled, list(warnings.filters)
    with ThreadPoolExecutor(1) as pool, silence():
        assert pool.submit(dicom.read_pixels, path).result(timeout=20).shape == (12, 10, 1)
    assert (logging.getLogger("pydicom").disabled, list(warnings.filters)) == before


# Privacy: what a damaged file makes pydicom say quotes its values; ours must not

NAME = "QUIBBLE^ZEPHYRINE"


@pytest.mark.parametrize(
    "read", [dicom.read_header, dicom.read_pixels, dicom.read_stored, dicom.read_dataset]
)
def test_a_name_for_a_number_within_a_group_is_not_quoted(write, read):
    """pydicom converts the elements of a group while it walks through them."""
    group = Dataset()
    group.add_new("SliceThickness", "LO", NAME)
    path = write(SharedFunctionalGroupsSequence=[group])
    path.write_bytes(path.read_bytes().replace(b"LO\x12\0QUIBBLE", b"FD\x12\0QUIBBLE"))
    with pytest.raises(Exception, match="QUIBBLE"):  # of pydicom alone: 18 bytes are no doubles
        list(pydicom.dcmread(path).SharedFunctionalGroupsSequence[0])
    with pytest.raises(ArchiveError, match=r"can't be read \(\w+\)$") as caught:
        read(path)
    told = "".join(traceback.format_exception(caught.value))
    assert "QUIBBLE" not in told and "ZEPHYRINE" not in told
