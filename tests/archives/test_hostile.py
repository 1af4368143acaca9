"""Small files that claim much, or never end: each reader refuses them in bounded time and
memory, and goes on with the others.
"""

import csv
import json
import os
import signal
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from tests.archives.writers import cbis_ddsm, mini_mias, vindr
from tests.archives.writers import cdd_cesm as cesm_writer
from tests.archives.writers import ddsm as ddsm_writer
from tests.archives.writers import folder as folder_writer
from tests.archives.writers import inbreast as inbreast_writer
from tests.archives.writers import optimam as optimam_writer
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram
from tfmammo.archives import (
    ARCHIVES,
    cdd_cesm,
    compressed,
    ddsm,
    dicom,
    folder,
    inbreast,
    optimam,
)
from tfmammo.archives.elements import Fault
from tfmammo.archives.regions import SEGMENTATION, _read_frame, read_regions
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Mammogram, Skipped

WRITERS = {
    "cbis_ddsm": cbis_ddsm.write,
    "cdd_cesm": cesm_writer.write,
    "ddsm": ddsm_writer.write,
    "folder": folder_writer.write,
    "inbreast": inbreast_writer.write,
    "mini_mias": mini_mias.write,
    "optimam": optimam_writer.write,
    "vindr": vindr.write,
}


def originals(count: int = 2) -> list[Mammogram]:
    details = {"pathology": "malignant", "shape": "oval", "margin": "spiculated"}
    lesions = [Lesion.from_outline("mass", SQUARE, ROWS, COLS, **details)]
    facts = {"pathology": "malignant", "spacing": (0.1, 0.1), "birads": "4", "density": "2"}
    grey = np.full((ROWS, COLS, 1), 0.5, np.float32)
    return [
        make_mammogram(number, grey, lesions, image_id=f"image{number}", **facts)
        for number in range(count)
    ]


@pytest.fixture(autouse=True)
def _in_time():
    """20 s for a test whose work takes a fraction of one; each of these took minutes,
    or for ever.
    """

    def stop(*_):
        raise TimeoutError("took more than 20 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", WRITERS)
def test_pipes_are_no_files_of_an_archive(name, tmp_path):
    WRITERS[name](originals(), tmp_path / "archive")
    whole = len(ARCHIVES[name](tmp_path / "archive", Skipped()))
    paths = sorted(path for path in (tmp_path / "archive").rglob("*") if path.is_file())
    for path in paths:
        os.mkfifo(path.with_name(f"extra_{path.name}"))
    assert len(ARCHIVES[name](tmp_path / "archive", Skipped())) == whole
    for path in paths:
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        try:
            for mammogram in ARCHIVES[name](tmp_path / "archive", Skipped()):
                mammogram.pixels()
                assert all(lesion.box for lesion in mammogram.lesions)
        except ArchiveError:
            pass  # said what is missing
        path.unlink()
        path.write_bytes(content)


def test_a_single_pipe_is_no_mammogram(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ArchiveError, match=r"a\.png: is no file"):
        folder.read_one(tmp_path / "a.png")


@pytest.mark.parametrize("end", [3e4, 3e7, 1e30])
def test_an_outline_is_drawn_near_the_image_alone(end):
    angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    radius = np.where(np.arange(300) % 2, end, end / 2)
    # around the whole image
    star = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    assert Lesion.from_outline("mass", star, 4000, 3000).box == (0, 0, 4000, 3000)
    with suppress(ValueError):  # whether a tangle covers the image is for chance to say
        Lesion.from_outline(
            "mass", np.random.default_rng(0).uniform(-end, end, (300, 2)), 4000, 3000
        ).mask(4000, 3000)


@pytest.mark.parametrize("scale", [1.0, 40.0, 1e6])
def test_what_lies_in_the_image_is_drawn_as_ever(scale):
    """A large diamond around a corner, cut by the image's border: the half-plane row +
    col <= side.
    """
    side = 30 * scale
    outline = np.array([[-side, 0], [0, side], [side, 0], [0, -side]])
    rows, cols = np.mgrid[:ROWS, :COLS]
    drawn = Lesion.from_outline("mass", outline, ROWS, COLS).mask(ROWS, COLS)
    wrong = drawn != (rows + cols <= side)
    assert not wrong[np.abs(rows + cols - side) > 1].any()


def test_a_hole_between_crossing_edges_stays_one():
    """A figure of eight far wider than the image: even-odd, its crossing in the middle."""
    outline = np.array(
        [[-1e5, -1e5], [1e5 + ROWS, 1e5 + ROWS], [1e5 + ROWS, -1e5], [-1e5, 1e5 + ROWS]]
    )
    drawn = Lesion("mass", (0, 0, 1, 1), (outline,)).mask(ROWS, ROWS)
    assert (
        drawn[:25, 30].all()
        and drawn[-25:, 30].all()
        and not drawn[30, :25].any()
        and not drawn[30, -25:].any()
    )


def test_an_outline_that_crosses_itself_without_end_is_refused():
    outline = np.random.default_rng(0).uniform(0, 3000, (20_000, 2))
    with pytest.raises(ValueError, match="an outline of 20000 points crosses itself too often"):
        Lesion.from_outline("mass", outline, 4000, 3000)


def test_an_ics_of_blanks(tmp_path):
    ddsm_writer.write(originals(1), tmp_path)
    (path,) = tmp_path.rglob("*.ics")
    text = path.read_text()
    for blanks in (
        "\n" * 300_000,
        " " * 300_000,
        "\nDIGITIZER" + " " * 300_000 + "x\n",
        "\nLEFT_CC LINES" + " " * 300_000 + "x\n",
    ):
        path.write_text(blanks + text)
        assert len(ddsm.read(tmp_path, Skipped())) == 1


def test_a_point_of_many_digits(tmp_path):
    inbreast_writer.write(originals(1), tmp_path)
    (path,) = tmp_path.rglob("*.xml")
    text = path.read_text()
    first = text.index("<string>(", text.index("Point_px")) + len("<string>(")
    for digits in ("9" * 400_000, "1e308", "9" * 60):
        path.write_text(text[:first] + digits + text[text.index(",", first) :])
        skipped = Skipped()
        (record,) = inbreast.read(tmp_path, skipped)
        assert record.lesions == () and "left out" in next(iter(skipped.reasons.values()))


def regions(root, text: str) -> None:
    """Put a shape into the first row of CDD-CESM's region table."""
    path = root / cdd_cesm.REGIONS
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, first, *rows = csv.reader(file)
    first[header.index("region_shape_attributes")] = text
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, first, *rows])


@pytest.mark.parametrize(
    "shape",
    [
        "[" * 100_000,
        '{"name": "polygon", "all_points_x": [1'
        + "0" * 400
        + ', 5, 9], "all_points_y": [1, 5, 9]}',
        '{"name": "circle", "cx": 1' + "0" * 400 + ', "cy": 5, "r": 3}',
        '{"name": "polygon", "all_points_x": [1e308, -1e308, 9], "all_points_y": [1, 5, 9]}',
        '{"name": {"a": 1}}',
        "[1, 2]",
        "7",
    ],
)
def test_one_bad_shape_costs_no_other_image(shape, tmp_path):
    cesm_writer.write(originals(), tmp_path)
    regions(tmp_path, shape)
    skipped = Skipped()
    assert sorted(len(one.lesions) for one in cdd_cesm.read(tmp_path, skipped)) == [0, 1]
    assert len(skipped) == 1 and len(next(iter(skipped.reasons.values()))) < 200


@pytest.mark.parametrize("claim", [(65500, 65500), (65535, 65535)])
def test_a_jpeg_that_claims_too_much_costs_no_other_image(claim, tmp_path):
    cesm_writer.write(originals(), tmp_path)
    path = sorted(tmp_path.rglob("*.jpg"))[0]
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:at] + struct.pack(">HH", *claim) + content[at + 4 :])
    skipped = Skipped()
    assert len(cdd_cesm.read(tmp_path, skipped)) == 1
    assert len(skipped) == 1


def test_an_eps_called_jpg_reaches_no_other_program(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", never)
    cesm_writer.write(originals(), tmp_path)
    path = sorted(tmp_path.rglob("*.jpg"))[0]
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 44 60\n%%EndComments\nshowpage\n"
    )
    assert len([one.pixels() for one in cdd_cesm.read(tmp_path, Skipped())]) == 1


def test_a_mask_of_many_parts_is_no_radiologists(tmp_path):
    cesm_writer.write(originals(1), tmp_path)
    (image,) = sorted(tmp_path.rglob("*.jpg"))
    rows, cols = np.mgrid[:900, :900]
    Image.fromarray(np.full((900, 900), 90, np.uint8)).save(image)
    (image.parent / "masks").mkdir()
    Image.fromarray((((rows % 6 < 4) & (cols % 6 < 4)) * 255).astype(np.uint8)).save(
        image.parent / "masks" / f"{image.stem}.png"
    )
    skipped = Skipped()
    with pytest.raises(ArchiveError):
        cdd_cesm.read(tmp_path, skipped)
    assert "has 22500 parts" in next(iter(skipped.reasons.values()))


def test_a_png_that_unpacks_to_too_much_is_refused_by_its_header(tmp_path):
    folder_writer.write(originals(), tmp_path)
    path = sorted((tmp_path / "images").rglob("*.png"))[0]
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 16, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(10_000_000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    skipped = Skipped()
    assert len(folder.read(tmp_path, skipped)) == 1 and len(skipped) >= 1


def pack_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_pages_without_end_are_not_counted(tmp_path):
    path = tmp_path / "pages.tif"
    Image.new("L", (8, 8), 9).save(path)
    one = path.read_bytes()
    assert folder.read_one(path).rows == 8
    at = int.from_bytes(one[4:8], "little")
    count = int.from_bytes(one[at : at + 2], "little")
    end = at + 2 + 12 * count
    pages = [one[:end] + struct.pack("<I", len(one))]
    pages += [
        one[at:end] + struct.pack("<I", len(one) + number * (end - at + 4))
        for number in range(1, 100_000)
    ]
    path.write_bytes(b"".join(pages))
    with pytest.raises(ArchiveError, match="pages.tif: "):
        folder.read_one(path)


def test_a_directory_that_ends_early_is_named(tmp_path):
    for content in (b"II", b"II+\0" + bytes(20), b"II*\0\x08\0\0\0\xff\xff"):
        (tmp_path / "short.tif").write_bytes(content)
        with pytest.raises(ArchiveError, match="short.tif: can't be read as an image"):
            folder.read_one(tmp_path / "short.tif")


START_OF_FRAME = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 64, 64, 1) + bytes(3)
SCAN = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes(5)


@pytest.mark.parametrize(
    "between",
    [
        b"\xff\x01",
        b"\xff\xd0",
        b"\xff\xff",
        b"\0",
        b"\xff\xfe\0\1",
        START_OF_FRAME,
    ],
)
def test_a_stream_that_decoders_read_differently_is_refused(between):
    compressed.check_stream(b"\xff\xd8" + START_OF_FRAME + SCAN, 64, 64)
    for stream in (
        b"\xff\xd8" + between + START_OF_FRAME + SCAN,
        b"\xff\xd8" + START_OF_FRAME + between + SCAN,
    ):
        if stream == b"\xff\xd8" + START_OF_FRAME + SCAN:
            continue
        with pytest.raises(Fault, match="do not say how many they are"):
            compressed.check_stream(stream, 64, 64)


def test_a_frame_that_a_decoder_does_not_see_counts_for_nothing():
    # to a decoder a comment of 65,535 bytes; taken for a length, its marker leads to the frame
    hidden = b"\xff\xd8" + b"\xff\x01" + b"\xff\xfe\xff\xff" + bytes(65_530)
    with pytest.raises(Fault, match="do not say how many they are"):
        compressed.check_stream(hidden + START_OF_FRAME + SCAN, 64, 64)


def raise_noted(path):
    told = []
    read_regions([path], lambda path, reason: told.append(str(reason)))
    raise ArchiveError(told[0])


@pytest.mark.parametrize(
    "read", [dicom.read_header, raise_noted, lambda path: _read_frame(path, 0)]
)
def test_a_header_of_many_tiny_elements_is_refused_in_time(tmp_path, read):
    path = tmp_path / "many.dcm"
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.file_meta.MediaStorageSOPClassUID = SEGMENTATION
    dataset.save_as(path)
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010))
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 250_000
    sequence = struct.pack("<HH2sHI", 0x0099, 0x1001, b"SQ", 0, 0xFFFFFFFF) + items
    sequence = struct.pack("<HH2sH", 0x0099, 0x0010, b"LO", 4) + b"mine" + sequence
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(content[:at] + sequence + end + content[at:])
    with pytest.raises(ArchiveError, match="its header has more elements than any mammogram's"):
        read(path)


@pytest.mark.parametrize("read", [dicom.read_header, raise_noted])
def test_file_meta_of_many_tiny_elements_are_refused_in_time(tmp_path, read):
    path = tmp_path / "many.dcm"
    content = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    at = 144 + int.from_bytes(content[140:144], "little")
    tiny = struct.pack("<HH2sH", 0x0002, 0x0016, b"AE", 0) * 250_000
    path.write_bytes(content[:at] + tiny + content[at:])
    with pytest.raises(ArchiveError, match="its header has more elements than any mammogram's"):
        read(path)


def test_a_deflated_header_of_many_tiny_elements_is_refused_in_time(tmp_path):
    path = tmp_path / "many.dcm"
    content = Path(get_testdata_file("image_dfl.dcm")).read_bytes()
    at = 144 + int.from_bytes(content[140:144], "little")
    elements = zlib.decompress(content[at:], -15)
    tiny = struct.pack("<HH2sH", 0x0008, 0x0001, b"LO", 0) * 250_000
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(content[:at] + squeezer.compress(tiny + elements) + squeezer.flush())
    with pytest.raises(ArchiveError, match="its header has more elements than any mammogram's"):
        dicom.read_header(path)


@pytest.mark.parametrize(
    "deep",
    [
        "[" * 200_000,
        json.dumps({"STUDIES": {"1.2.3": {"1.2.3.1": {"1.2.3.1.1": {"m": {"X1": 10**400}}}}}}),
    ],
)
def test_deep_or_endless_json_of_one_client_costs_no_other(deep, tmp_path):
    optimam_writer.write(originals(), tmp_path)
    path = sorted((tmp_path / "data").rglob("imagedb_*.json"))[0]
    path.write_text(deep)
    assert len(optimam.read(tmp_path, Skipped())) == 1
