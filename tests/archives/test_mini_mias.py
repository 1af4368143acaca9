"""tfmammo.archives.mini_mias on archives in mini-MIAS's form, and rows of the real Info.txt."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.archives.tools import (
    assert_patients_match,
    assert_same,
    assert_same_lesions,
    read_archive,
)
from tests.archives.writers import mini_mias as writer
from tests.small_mammograms import make_mammogram
from tfmammo.archives import mini_mias
from tfmammo.mammogram import Lesion, Lost, Mammogram

SIZE = 1024
read = partial(read_archive, mini_mias)
GREY = b"P5\n1024 1024\n255\n" + bytes(SIZE * SIZE)


def lesion(kind="mass", row=600.0, col=300.0, radius=40.0, **facts) -> Lesion:
    """A circle."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    outline = [row, col] + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return Lesion.from_outline(
        kind, np.float32(outline), SIZE, SIZE, **{"pathology": "benign"} | facts
    )


def mammogram(number: int, *lesions: Lesion, **facts) -> Mammogram:
    noise = np.random.default_rng(number).random((SIZE, SIZE, 1), np.float32)
    return make_mammogram(number, noise, lesions, **{"view": "MLO", "density": "fatty"} | facts)


def real(root: Path, *rows: str, images: tuple[str, ...] = ()) -> Path:
    """An archive of black images whose Info.txt has the rows given; one image for each number in
    them unless named.
    """
    for name in images or sorted({f"{row.split()[0]}.pgm" for row in rows if row.split()}):
        (root / name).write_bytes(GREY)
    (root / "Info.txt").write_text("\n".join(rows), encoding="ascii")
    return root


LESIONS = (
    lesion(margin="circumscribed"),
    lesion("mass", 200, 700, 30, margin="spiculated", pathology="malignant"),
    lesion("mass", 400, 500, 25, margin="ill-defined"),
    lesion("calcification", 900, 100, 20, pathology="malignant"),
    lesion("asymmetry", 500, 900, 60),
    # off the whole pixels that the table holds
    lesion("distortion", 300.4, 350.6, 150.3, pathology="malignant"),
    lesion("mass", 10, 512, 50, margin="circumscribed"),  # cut by the border
)


@pytest.mark.parametrize("quirks", [{}, {"folder": "all", "upper_case": True, "comment": True}])
def test_round_trip(tmp_path, quirks):
    right = {"laterality": "R", "density": "dense-glandular", "pathology": "normal"}
    other = {"laterality": "R", "density": "fatty-glandular", "pathology": "benign"}
    originals = [
        mammogram(1, *LESIONS, patient_id="a", pathology="malignant"),
        mammogram(2, patient_id="a", **right),
        mammogram(3, LESIONS[0], patient_id="b", **other),
    ]
    writer.write(originals, tmp_path, **quirks)
    records, reasons = read(tmp_path)
    assert not reasons
    assert [record.image_id for record in records] == ["mdb001", "mdb002", "mdb004"]
    assert_patients_match(originals, records)
    for original, record in zip(originals, records, strict=True):
        assert_same(record, original, "rows cols laterality view density pathology")
        assert record.spacing == (0.2, 0.2)
        assert_same_lesions(record, original, "kind margin pathology kind_is_certain shape")
        quantised = np.rint(original.pixels().astype(np.float64) * 255)
        np.testing.assert_array_equal(record.pixels(), (quantised / 255).astype(np.float32))


def test_rows_of_the_real_table(tmp_path):
    rows = (
        "mdb001 G CIRC B 535 425 197",
        "mdb002 G CIRC B 522 280 69",
        "mdb003 D NORM ",
        "mdb005 F CIRC B 477 133 30",
        "mdb144 F MISC B 233 994 29",
        "mdb144 F MISC M 313 540 27",
    )
    (one, two, three, five, last), reasons = read(real(tmp_path, *rows, ""))
    assert not reasons
    # by hand: row = 1024 - y; the circle reaches a radius to every side, and the last row and
    # column are half-open
    assert one.lesions[0].box == (1024 - 425 - 197, 535 - 197, 1024 - 425 + 197 + 1, 535 + 197 + 1)
    assert [record.laterality for record in (one, two, three, five)] == ["L", "R", "L", "L"]
    assert [record.pathology for record in (one, three, last)] == ["benign", "normal", "malignant"]
    assert [lesion.pathology for lesion in last.lesions] == ["benign", "malignant"]
    densities = ["dense-glandular", "fatty-glandular", "fatty"]
    assert [record.density for record in (three, one, five)] == densities


def test_sides_and_origin_agree_with_the_full_size_archive(tmp_path):
    """The full-size table: number, side and width; x and y in 50 um, films lying, R mirrored."""
    full = {"1lm": (1815, 1116), "2rl": (3091, 1262), "5ll": (647, 1163), "10rm": (2509, 975)}
    circles = ("01 G CIRC B 535 425 197", "02 G CIRC B 522 280 69", "05 F CIRC B 477 133 30")
    mini = [f"mdb0{row}" for row in (*circles, "10 F CIRC B 525 425 33")]
    records = mini_mias.read(real(tmp_path, *mini))
    for record, (name, (x, y)) in zip(records, full.items(), strict=True):
        assert record.laterality == name[-2].upper()
        length = 4320 / 4
        width = {"m": 2048, "l": 2600}[name[-1]] / 4
        row, col = (length - x / 4, y / 4) if name[-2] == "l" else (x / 4, width - y / 4)
        centre = record.lesions[0].outlines[0].mean(axis=0)
        expected = (row - (length - SIZE) / 2, col + (SIZE - width) / 2)
        np.testing.assert_allclose(centre, expected, atol=2)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ("mdb059 F CIRC B *NOTE 3*", "CIRC without a circle"),
        ("mdb059 G CIRC B 535 425 0", "encloses nothing"),
        ("mdb059 G CIRC B 535 425 1024", "more than the image"),
        ("mdb059 G CIRC B 9999 425 10", "outside the image"),
    ],
)
def test_a_finding_without_a_circle_is_lost_and_counts_for_the_pathology(tmp_path, row, word):
    (record,), reasons = read(real(tmp_path, row))
    assert (record.lesions, record.pathology, record.lost) == ((), "benign", (Lost("mass"),))
    assert list(reasons) == ["mdb059.pgm"] and word in reasons["mdb059.pgm"]


@pytest.mark.parametrize(
    "row",
    [
        "mdb002 G CIRC B 535 425",
        "mdb002 G CIRC B nan 425 10",
        "mdb002 G CIRC B 535 425 " + "9" * 5000,
        "mdb002 Q CIRC B 535 425 10",
        "mdb002 G LUMP B 535 425 10",
        "mdb002 G CIRC X 535 425 10",
        "mdb002",
    ],
)
def test_a_row_that_is_none_is_noted_and_its_image_left_out(tmp_path, row):
    root = real(tmp_path, "mdb001 D NORM", row, images=("mdb001.pgm", "mdb002.pgm"))
    (record,), reasons = read(root)
    assert record.image_id == "mdb001" and list(reasons) == ["Info.txt", "mdb002.pgm"]
    assert "line 2" in reasons["Info.txt"] and "does not name it" in reasons["mdb002.pgm"]


def test_normal_and_not_normal_at_once_is_noted(tmp_path):
    (record,), reasons = read(real(tmp_path, "mdb001 G NORM", "mdb001 G CIRC B 535 425 20"))
    assert (record.pathology, len(record.lesions)) == ("benign", 1) and len(reasons) == 1


def test_odd_bytes_and_line_ends_in_the_prose_cost_nothing(tmp_path):
    real(tmp_path, "mdb001 D NORM")
    prose = b"\xef\xbb\xbfWARNING: \xe9\x80\x00 mdb is a prefix\r\n\r\n1st column: mdb001 and\r\n"
    (tmp_path / "Info.txt").write_bytes(prose + b"MDB001\tg\tcirc\tb\t535 425 20\r\n")
    (record,), reasons = read(tmp_path)
    assert len(record.lesions) == 1 and not reasons


def test_an_image_of_another_size_is_noted(tmp_path):
    real(tmp_path, "mdb001 D NORM", "mdb002 D NORM")
    (tmp_path / "mdb002.pgm").write_bytes(b"P5\n512 512\n255\n" + bytes(512 * 512))
    (record,), reasons = read(tmp_path)
    assert record.image_id == "mdb001" and "512 x 512 px" in reasons["mdb002.pgm"]


def test_second_files_and_tables(tmp_path):
    real(tmp_path, "mdb001 D NORM")
    for name in ("copy", "other"):
        shutil.copytree(tmp_path, tmp_path / name, ignore=shutil.ignore_patterns("copy"))
    (tmp_path / "other" / "mdb001.pgm").unlink()
    (tmp_path / "other" / "Info.txt").write_text("mdb001 G NORM", encoding="ascii")
    (tmp_path / "copy" / "._mdb001.pgm").write_bytes(b"macOS")
    (record,), reasons = read(tmp_path)
    # copy/Info.txt says the same
    assert record.density == "dense-glandular"
    assert set(reasons) == {"copy/mdb001.pgm", "other/Info.txt"}
