"""tfmammo.archives.ljpeg: PVRG's lossless JPEG, and the scanners' calibration."""

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.archives.writers.ddsm import encode
from tfmammo.archives import ljpeg
from tfmammo.errors import ArchiveError


def noise(rows: int, cols: int, bits: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, (rows, cols)).astype(np.uint16)


def jpeg(bits: str, counts, symbols, rows=2, predictor=7, extra=b"") -> bytes:
    """A file of 2 columns by hand: `counts` codes of 1, 2, ... bits for `symbols`.

    `bits` is the scan before padding and stuffing.
    """
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    table = bytes([0, *counts, *[0] * (16 - len(counts)), *symbols])
    frame = b"\xff\xd8\xff\xc3" + struct.pack(">HBHHBBBB", 11, 16, rows, 2, 1, 1, 0x11, 0)
    tables = b"\xff\xc4" + struct.pack(">H", len(table) + 2) + table + extra
    start = b"\xff\xda" + bytes([0, 8, 1, 1, 0, predictor, 0, 0])
    return frame + tables + start + scan + b"\xff\xd9"


WRAPPING = [[0, 65535, 32767, 65535, 0, 32768, 0], [65535, 0, 1, 32769, 1, 65535, 0]]


@pytest.mark.parametrize("predictor", range(1, 8))
def test_every_predictor(predictor):
    """The writer computes differences by PVRG's rule; they wrap and reach 32768."""
    for grey, precision in ((noise(5, 9), 12), (noise(5, 9), 16), (np.uint16(WRAPPING), 16)):
        data = encode(grey, predictor, precision)
        np.testing.assert_array_equal(ljpeg.decode(data, *grey.shape), grey)


# Half the range is 32768. Pixel (0, 0) is 2 above it; (0, 1) is predicted as (32768 + 32770) >> 1 =
# 32769; (1, 0) as the one above, 32770; (1, 1) as (32769 + 32770) >> 1 = 32769. The differences 2,
# 0, 0, 0 have categories 2, 0, 0, 0, and 2 is "10".
HAND = np.uint16([[32770, 32769], [32770, 32769]])
WHOLE = ("0110000000", [0, 2], [0, 2])


@pytest.mark.parametrize(
    ("bits", "counts", "symbols"),
    [
        WHOLE,
        ("0010010101", [0, 2], [2, 0]),
        # a code that fills 0xff
        ("010111111110111111110111111110", [1] * 9, [2, 1, 3, 4, 5, 6, 7, 8, 0]),
    ],
)
def test_a_file_by_hand(bits, counts, symbols):
    data = jpeg(bits, counts, symbols)
    np.testing.assert_array_equal(ljpeg.decode(data, 2, 2), HAND)


def test_width_and_height_exchanged_in_the_header():
    grey = noise(12, 7)
    np.testing.assert_array_equal(ljpeg.decode(encode(grey.reshape(7, 12)), 12, 7), grey)


def test_a_file_cut_off_anywhere_is_refused():
    data = encode(noise(6, 8))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="is no JPEG|cut off or damaged"):
            ljpeg.decode(data[:length], 6, 8)


def picture(grey: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is no JPEG"),
        (picture(np.zeros((2, 2), np.uint8), "JPEG"), "not a lossless one"),
        (encode(noise(2, 3)), "has 2 x 3 values where the .ics says 2 x 2"),
        (jpeg("0110000000", [0, 2], [1, 2]), "no Huffman code for a difference of 0"),
        (jpeg(*WHOLE, extra=b"\xff\xdd\0\x04\0\x02"), "has restart intervals"),
        (jpeg(*WHOLE, predictor=0), "not one grey image"),
        (jpeg(*WHOLE, rows=65530), "claims 65530 lines"),
        (jpeg(*WHOLE).replace(b"\xff\xc3", b"\xff\xfe"), "a scan before its frame"),
        # another marker than the end's
        (jpeg(*WHOLE)[:-1] + b"\xd8", "the scan is cut off or damaged"),
        (jpeg("11", [0, 2], [0, 2]), "cut off or damaged|can't be decoded"),  # no such code
    ],
)
def test_what_is_no_such_file(data, reason):
    with pytest.raises(ValueError, match=reason):
        ljpeg.decode(data, 2, 2)


@pytest.mark.parametrize(
    ("scanner", "grey", "density"),
    [
        ("howtek_mgh", 1000, 2.84332),  # 3.789 - 0.94568
        ("howtek_ismd", 1000, 2.97548288),  # 3.96604095 - 0.99055807
        ("lumisys", 2478, 1.6045332),  # 1618.99 / 1009.01
        ("dba", 1000, 1.6797486),  # (4.80662 - 3) / 1.07553
        ("dba", 0, 4.4690710),
    ],
)
def test_density_by_hand(scanner, grey, density):
    assert ljpeg.optical_density(np.array(grey), scanner) == pytest.approx(density, abs=1e-6)


def test_dba_against_the_measured_wedge():
    # DDSM's calibration page: mean grey levels of a step wedge on the DBA scanner
    wedge = """
        0.21 37201  0.34 26986  0.50 18445  0.69 12569  0.82 8296  0.96 5648  1.13 3797  1.28 2603
        1.44 1772  1.59 1217  1.74 847  1.89 581  2.07 393  2.21 271  2.37 185  2.52 132  2.68 94
        2.84 65  2.99 47
    """
    density, grey = np.array(wedge.split(), float).reshape(-1, 2).T
    np.testing.assert_allclose(ljpeg.optical_density(grey, "dba"), density, atol=0.08)


def test_image_by_hand(tmp_path):
    path = tmp_path / "a.LJPEG.1"
    path.write_bytes(np.array([[2478], [4095]], ">u2").tobytes())
    # 1 - 1.5545332 / 2.95
    np.testing.assert_allclose(
        ljpeg.read_pixels(path, "lumisys", 2, 1)[:, 0, 0], [0.473040, 1], atol=1e-6
    )


def test_every_form_gives_the_same(tmp_path):
    grey = noise(5, 4)
    path = tmp_path / "a.LJPEG.1"
    path.write_bytes(grey.astype(">u2").tobytes())
    (tmp_path / "a.LJPEG").write_bytes(encode(grey))
    (tmp_path / "a.LJPEG.gz").write_bytes(gzip.compress(encode(grey)))
    (tmp_path / "a.png").write_bytes(picture(grey))
    expected = ljpeg.read_pixels(path, "lumisys", 5, 4)
    for name in ("a.LJPEG", "a.LJPEG.gz", "a.png"):
        np.testing.assert_array_equal(ljpeg.read_pixels(tmp_path / name, "lumisys", 5, 4), expected)


# Every worker collects the same names of cases: gzip's time of writing would make them differ.
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.LJPEG.1", bytes(39), "has 39 bytes where 5 x 4 values of 16 bits need 40"),
        ("a.LJPEG", encode(noise(5, 4))[:80], "the scan is cut off or damaged"),
        ("a.LJPEG.gz", b"no gzip", "can't be read .BadGzipFile"),
        ("a.LJPEG.gz", gzip.compress(bytes(9), mtime=0)[:-9], "can't be read .EOFError"),
        ("a.LJPEG.gz", gzip.compress(bytes(10**6), mtime=0), "is too large, more than 65696 bytes"),
        ("a.png", picture(noise(5, 4, 8).astype(np.uint8)), "is 5 x 4 of mode L, not 5 x 4 16-bit"),
        ("a.png", picture(noise(4, 5)), "is 4 x 5 of mode I;16, not 5 x 4 16-bit"),
        ("a.png", picture(noise(5, 4, 16)), "holds values up to [0-9]+, which a scanner of 12"),
        ("a.png", picture(noise(5, 4))[:-30], "can't be decoded .OSError"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"{path}: {reason}"):
        ljpeg.read_pixels(path, "lumisys", 5, 4)


def test_dba_may_use_all_16_bits(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(noise(5, 4, 16)))
    assert ljpeg.read_pixels(tmp_path / "a.png", "dba", 5, 4).max() > 0.5
