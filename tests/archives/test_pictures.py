"""Pictures and DICOM files in a folder: intensities as they are, or the reason why not."""

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from tests.archives.folders import BYTE, GREY, picture, read, table
from tests.archives.writers import folder as writer
from tests.small_mammograms import COLS, ROWS, make_mammogram, ramp
from tfmammo.archives import folder
from tfmammo.archives.named_files import is_dicom
from tfmammo.archives.stored import unused_range
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Mammogram


def only(root: Path, **columns: str) -> Mammogram:
    """The one image of a folder, with columns of its row."""
    (path,) = (root / "images").iterdir()
    cells = {"file": path.name, "patient": "p", **columns}
    table(root, ",".join(cells), ",".join(cells.values()))
    (record,) = folder.read(root)
    return record


def facts(record: Mammogram) -> tuple:
    return record.laterality, record.view, record.spacing


@pytest.mark.parametrize(
    ("ending", "bits"),
    [(".png", 8), (".png", 10), (".tif", 14), (".bmp", 8), (".pgm", 8), (".pgm", 12), (".dcm", 16)],
)
def test_round_trip(tmp_path, ending, bits):
    original = make_mammogram(1, ramp(0.1), spacing=(0.07, 0.05))
    writer.write([original], tmp_path, ending=ending, bits=bits)
    (record,), reasons = read(tmp_path)
    assert not reasons and record.pixels().dtype == np.float32
    images = (record.pixels(), original.pixels())
    ours, theirs = (np.rint(image.astype(np.float64) * (2**bits - 1)) for image in images)
    np.testing.assert_array_equal(ours, theirs)
    assert facts(record) == ("L", "CC", (0.07, 0.05))


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_are_scaled_by_their_whole_range_unless_the_table_says_otherwise(tmp_path, ending):
    picture(tmp_path / "images" / f"a{ending}", GREY)
    for full, columns in ((65535, {}), (4095, {"bits": "12.0"})):
        expected = GREY.astype(np.float32) / np.float32(full)
        np.testing.assert_array_equal(only(tmp_path, **columns).pixels()[..., 0], expected)
    with pytest.raises(ArchiveError, match="up to 2639, more than 11 bits can"):
        only(tmp_path, bits="11").pixels()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_equal_channels_are_grey(tmp_path, mode):
    picture(tmp_path / "images" / "a.png", BYTE, mode)
    grey = BYTE.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(only(tmp_path).pixels()[..., 0], grey)


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_a_tiff_of_any_depth_and_direction(tmp_path, bits, photometric):
    """A little-endian TIFF of one uncompressed strip; 12 bits are two values in three bytes."""
    values = np.array([[0, 1, 100, 255], [7, 200, 30, 2]], np.uint16) * (1 if bits == 8 else 16)
    data = values.astype("u1" if bits == 8 else "<u2").tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int).tolist()
        data = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in pairs)
    tags = {256: 4, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 2}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    (tmp_path / "images").mkdir()
    content = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 9)
    (tmp_path / "images" / "a.tif").write_bytes(content + entries + bytes(4))
    expected = values.astype(np.float32) / np.float32(2**bits - 1)
    expected = expected if photometric else 1 - expected
    np.testing.assert_allclose(only(tmp_path).pixels()[..., 0], expected, atol=1e-7)


def test_when_a_range_is_called_unused():
    assert "25 % of 16 bits; state bits=14" in unused_range(16383, 65535)
    for highest, full in ((0, 65535), (16384, 65535), (10, 255), (1000, 4095)):
        assert unused_range(highest, full) is None


# DICOM


def test_bytes_tell_a_dicom(tmp_path):
    # the last two differ behind the last point alone
    names = {"PAT00000/STU00000/IMG00000", "1.2.826.0.1.3.7", "1.2.826.0.1.3.8"}
    for name in names:
        write_dicom(tmp_path / "images" / name, GREY, 12)
    (tmp_path / "images" / "README").write_text("not an image")
    records, reasons = read(tmp_path)
    files = {record.file.relative_to(tmp_path / "images").as_posix() for record in records}
    assert files == names and len({record.image_id for record in records}) == 3
    np.testing.assert_array_equal(np.rint(records[0].pixels()[..., 0] * 4095), GREY)
    assert list(reasons) == ["images/*"] and reasons["images/*"].startswith("1 files")


@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_dicom_without_the_head_of_part_10(tmp_path, is_implicit):
    path = tmp_path / "images" / "a"
    write_dicom(path, GREY, 12, ImageLaterality="R", ViewPosition="MLO")
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = is_implicit, True
    write_dataset(buffer, Dataset(pydicom.dcmread(path)))
    path.write_bytes(buffer.getvalue())
    assert is_dicom(path)
    (record,) = read(tmp_path)[0]
    assert (record.laterality, record.view) == ("R", "MLO")
    np.testing.assert_array_equal(np.rint(record.pixels()[..., 0] * 4095), GREY)


@pytest.mark.parametrize("wall", ["A", "P"])
def test_the_orientation_holds_where_it_contradicts_the_laterality(tmp_path, wall):
    for name, side in (("a", "L"), ("b", "R")):
        stated = {"ImageLaterality": side, "PatientOrientation": [wall, "F"]}
        write_dicom(tmp_path / "images" / f"{name}.dcm", GREY, 12, **stated)
    records, reasons = read(tmp_path)
    assert [record.wall_side for record in records] == [{"A": "L", "P": "R"}[wall]] * 2
    assert reasons["images/*"].startswith("1 images are stored mirrored")


def test_facts_of_a_dicom_hold_where_the_table_is_silent_and_raw_ones_are_counted(tmp_path):
    stated = {"ImageLaterality": "L", "ViewPosition": "CC", "ImagerPixelSpacing": [0.07, 0.05]}
    write_dicom(tmp_path / "images" / "a.dcm", GREY, 12, **stated)
    assert facts(only(tmp_path)) == ("L", "CC", (0.07, 0.05))
    assert facts(only(tmp_path, laterality="R", spacing="0.2")) == ("R", "CC", (0.2, 0.2))
    raw = tmp_path / "images" / "b.dcm"
    write_dicom(raw, GREY, 12, PresentationIntentType="FOR PROCESSING")
    (tmp_path / "metadata.csv").unlink()
    records, reasons = read(tmp_path)
    assert len(records) == 1 and reasons == {"images/*": "1 raw images ('for processing')"}


# What can't be used


TURNED = Image.Exif()
TURNED[274] = 6


def content(data: bytes):
    return lambda path: path.write_bytes(data)


def pixels(values, *mode, **options):
    return lambda path: picture(path, values, *mode, **options)


DEEP_COLOURS = cv2.imencode(".png", np.dstack([GREY] * 3))[1].tobytes()
PAGES = {"save_all": True, "append_images": [Image.fromarray(BYTE)]}


@pytest.mark.parametrize(
    ("name", "write", "word"),
    [
        ("z.png", content(DEEP_COLOURS), "16 bits in several channels"),
        ("z.tif", pixels(BYTE, **PAGES), "several pages"),
        ("z.jpg", pixels(BYTE, exif=TURNED), "turned or mirrored"),
        ("z.tif", pixels(BYTE.astype(np.float32)), "(F)"),
        ("z.jpg", pixels(BYTE, "CMYK"), "(CMYK)"),
        ("z.pgm", content(b"P6 1 1 65535 " + bytes(6)), "no PGM but a colour image"),
        ("z.pgm", content(b"P5 12000 12000 255 "), "12000 x 12000 px"),
        (
            "z.png",
            lambda path: Image.new("L", (4, 4)).save(path, format="GIF"),
            "(its format is not known",
        ),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Image size.*decompression bomb:PIL.Image.DecompressionBombWarning"
)
def test_an_unusable_image_is_noted_and_the_others_stay(small, name, write, word):
    write(small / "images" / name)
    table(small, "file,patient", "a.png,p1", "b.png,p2", f"{name},p3")
    records, reasons = read(small)
    assert len(records) == 2 and list(reasons) == [f"images/{name}"]
    assert word in reasons[f"images/{name}"]


@pytest.mark.parametrize(
    ("name", "pixels", "word"),
    [
        ("a.png", np.dstack([BYTE, BYTE, BYTE + 1]), "colour image"),
        ("a.png", np.dstack([BYTE] * 4), "transparent"),
        *((f"a{ending}", None, "as an image") for ending in (".jpg", ".png", ".tif")),
    ],
)
def test_what_only_the_pixels_show_is_an_error_when_they_are_wanted(tmp_path, name, pixels, word):
    noise = np.random.default_rng(0).integers(0, 256, (ROWS, COLS), dtype=np.uint8)
    path = picture(tmp_path / "images" / name, noise if pixels is None else pixels)
    if pixels is None:
        path.write_bytes(path.read_bytes()[:-400])
    record = only(tmp_path)
    with pytest.raises(ArchiveError, match=f"images/{name}: .*{word}"):
        record.pixels()


@pytest.mark.parametrize(
    ("ending", "word"), [(".png", "has 8 bits"), (".pgm", "PGM"), (".dcm", "DICOM")]
)
def test_bits_that_contradict_the_file_are_noted(tmp_path, ending, word):
    originals = [make_mammogram(number, ramp(0.1)) for number in (1, 2)]
    first, _ = writer.write(originals, tmp_path, ending=ending, bits=8)
    table(tmp_path, "file,patient,bits", f"{first.name},p1,12", f"000002{ending},p2,")
    records, reasons = read(tmp_path)
    assert len(records) == 1 and word in reasons[f"images/{first.name}"]


# One file by itself


def test_one_picture_has_the_name_that_it_has_in_a_folder(small):
    one = folder.read_one(small / "images/a.png")
    assert one.image_id in {record.image_id for record in read(small)[0]}
    path = Path(os.fsdecode(os.fsencode(small) + b"/\xff.png"))  # in no known encoding
    Image.fromarray(BYTE).save(os.fsencode(path))
    assert len(folder.read_one(path).image_id) == 12


def test_one_raw_image_is_no_mammogram(tmp_path):
    write_dicom(tmp_path / "raw.dcm", GREY, 12, PresentationIntentType="FOR PROCESSING")
    with pytest.raises(ArchiveError, match=r"raw\.dcm: .*raw image"):
        folder.read_one(tmp_path / "raw.dcm")
