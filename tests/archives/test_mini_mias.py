"""tfmammo.archives.mini_mias on archives in mini-MIAS's native form, and on rows of the
real Info.txt.
"""

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.archives.writers import mini_mias as writer
from tests.small_mammograms import make_mammogram
from tfmammo.archives import mini_mias
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Mammogram, Skipped

SIZE = 1024
GREY = b"P5\n1024 1024\n255\n" + bytes(SIZE * SIZE)


def circle(row: float, col: float, radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return np.stack([row + radius * np.sin(angle), col + radius * np.cos(angle)], axis=1).astype(
        np.float32
    )


def lesion(kind="mass", row=600.0, col=300.0, radius=40.0, rows=SIZE, cols=SIZE, **facts) -> Lesion:
    return Lesion.from_outline(
        kind, circle(row, col, radius), rows, cols, **({"pathology": "benign"} | facts)
    )


def noise(seed: int, rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, cols, 1), np.float32)


def mammogram(number: int, *lesions: Lesion, rows=SIZE, cols=SIZE, **facts) -> Mammogram:
    known = {"patient_id": f"aa{number}", "view": "MLO", "density": "fatty"}
    return make_mammogram(number, noise(number, rows, cols), lesions, **known | facts)


def real(root: Path, *rows: str, images: tuple[str, ...] = ()) -> Path:
    """An archive of black images whose Info.txt has the rows given; one image for each number in
    them unless named.
    """
    for name in images or sorted({f"{row.split()[0]}.pgm" for row in rows if row.split()}):
        (root / name).write_bytes(GREY)
    (root / "Info.txt").write_text("\n".join(rows), encoding="ascii")
    return root


def read(root: Path) -> tuple[list[Mammogram], dict[str, str]]:
    skipped = Skipped()
    return mini_mias.read(root, skipped), skipped.reasons


def dice(a, b) -> float:
    return 2 * np.sum(a * b) / (np.sum(a) + np.sum(b))


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


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "quirks"])
def round_trip(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("mias")
    originals = [
        mammogram(1, *LESIONS, patient_id="a", pathology="malignant"),
        mammogram(2, patient_id="a", laterality="R", density="dense-glandular", pathology="normal"),
        mammogram(
            3,
            LESIONS[0],
            patient_id="b",
            laterality="R",
            density="fatty-glandular",
            pathology="benign",
        ),
    ]
    quirks = {"folder": "all-mias", "upper_case": True, "comment": True} if request.param else {}
    return originals, writer.write(originals, root, **quirks), root


def test_round_trip_of_circles_and_facts(round_trip):
    originals, paths, root = round_trip
    records, reasons = read(root)
    assert not reasons
    assert (
        [path.stem.lower() for path in paths]
        == [record.image_id for record in records]
        == ["mdb001", "mdb002", "mdb004"]
    )
    for original, record in zip(originals, records, strict=True):
        for fact in ("rows", "cols", "laterality", "view", "density", "pathology"):
            assert getattr(record, fact) == getattr(original, fact), fact
        assert (record.archive, record.spacing, record.birads, record.official_split) == (
            "mini_mias",
            (0.2, 0.2),
            None,
            None,
        )
        for ours, theirs in zip(record.lesions, original.lesions, strict=True):
            assert dice(ours.mask(SIZE, SIZE), theirs.mask(SIZE, SIZE)) >= 0.99
            assert (ours.kind, ours.margin, ours.pathology) == (
                theirs.kind,
                theirs.margin,
                theirs.pathology,
            )
            assert ours.kind_is_certain and ours.shape is None


def test_round_trip_of_pixels(round_trip):
    originals, _, root = round_trip
    for original, record in zip(originals, mini_mias.read(root), strict=True):
        quantised = np.rint(original.pixels().astype(np.float64) * 255)
        image = record.pixels()
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, (quantised / 255).astype(np.float32))


def test_a_pair_is_one_patient(round_trip):
    first, second, third = mini_mias.read(round_trip[2])
    assert first.patient_id == second.patient_id != third.patient_id
    assert re.fullmatch("[0-9a-f]{12}", first.patient_id)


@pytest.mark.parametrize(("rows", "cols"), [(1024, 832), (1024, 833), (1100, 600), (300, 1500)])
def test_the_writer_centres_images_of_another_size(tmp_path, rows, cols):
    mass = lesion(row=rows // 2, col=cols // 2, radius=30, rows=rows, cols=cols)
    writer.write([mammogram(1, mass, rows=rows, cols=cols)], tmp_path)
    (record,) = mini_mias.read(tmp_path)
    top = (SIZE - rows) // 2 if rows < SIZE else -((rows - SIZE) // 2)
    left = (SIZE - cols) // 2 if cols < SIZE else -((cols - SIZE) // 2)
    inside = record.pixels()[max(top, 0) : top + rows, max(left, 0) : left + cols]
    original = noise(1, rows, cols)[max(-top, 0) : SIZE - top, max(-left, 0) : SIZE - left]
    assert np.abs(inside - original).max() <= 0.5 / 255 + 1e-6
    assert record.pixels().sum() == pytest.approx(inside.sum())  # black around it
    assert record.lesions[0].box == tuple(np.add(mass.box, (top, left, top, left)))


def test_a_patient_with_several_films_of_one_side_gets_several_pairs(tmp_path):
    sides = ["R", "R", "L", "L", "L"]
    paths = writer.write(
        [mammogram(i, patient_id="a", laterality=side) for i, side in enumerate(sides)], tmp_path
    )
    assert [path.stem for path in paths] == ["mdb002", "mdb004", "mdb001", "mdb003", "mdb005"]


def test_the_writer_refuses_what_the_format_cannot_say(tmp_path):
    with pytest.raises(
        ValueError, match="7: mini-MIAS numbers its films by side, and this one has none"
    ):
        writer.write([mammogram(7, laterality=None)], tmp_path)
    with pytest.raises(ValueError, match="7: a lesion has a box but no outline"):
        writer.write([mammogram(7, Lesion("mass", (1, 2, 3, 4)))], tmp_path)


def test_rows_of_the_real_table(tmp_path):
    rows = (
        "mdb001 G CIRC B 535 425 197",
        "mdb002 G CIRC B 522 280 69",
        "mdb003 D NORM ",
        "mdb005 F CIRC B 477 133 30",
    )
    root = real(
        tmp_path,
        *rows,
        "mdb005 F CIRC B 500 168 26",
        "mdb144 F MISC B 233 994 29",
        "mdb144 F MISC M 313 540 27",
        "",
    )
    (one, two, three, five, last), reasons = read(root)
    assert not reasons
    # by hand: row = 1024 - y; the circle reaches a radius to every side, and the last row and
    # column are half-open
    assert one.lesions[0].box == (1024 - 425 - 197, 535 - 197, 1024 - 425 + 197 + 1, 535 + 197 + 1)
    assert [lesion.box[1] for lesion in five.lesions] == [447, 474]
    assert [record.laterality for record in (one, two, three, five)] == ["L", "R", "L", "L"]
    assert [record.pathology for record in (one, three, last)] == ["benign", "normal", "malignant"]
    assert [lesion.pathology for lesion in last.lesions] == ["benign", "malignant"]
    assert (three.lesions, three.density, one.density, five.density) == (
        (),
        "dense-glandular",
        "fatty-glandular",
        "fatty",
    )


def test_sides_and_origin_agree_with_the_full_size_archive(tmp_path):
    """The table of the full-size MIAS: name with its side, x and y in 50 um, films lying; right
    ones are mirrored.
    """
    full = {
        "mdb001lm": (1815, 1116),
        "mdb002rl": (3091, 1262),
        "mdb005ll": (647, 1163),
        "mdb010rm": (2509, 975),
    }
    mini = (
        "mdb001 G CIRC B 535 425 197",
        "mdb002 G CIRC B 522 280 69",
        "mdb005 F CIRC B 477 133 30",
        "mdb010 F CIRC B 525 425 33",
    )
    records = mini_mias.read(real(tmp_path, *mini))
    for record, (name, (x, y)) in zip(records, full.items(), strict=True):
        assert record.laterality == name[6].upper()
        length = 4320 / 4
        width = {"m": 2048, "l": 2600}[name[7]] / 4
        row, col = (length - x / 4, y / 4) if name[6] == "l" else (x / 4, width - y / 4)
        centre = record.lesions[0].outlines[0].mean(axis=0)
        np.testing.assert_allclose(
            centre, (row - (length - SIZE) / 2, col + (SIZE - width) / 2), atol=2
        )


@pytest.mark.parametrize(
    "row",
    [
        "mdb059 F CIRC B *NOTE 3*",
        "mdb059 F CIRC B",
        "mdb059 F CIRC B  *NOTE  3*",
        "mdb059 F CIRC B *note 3*",
    ],
)
def test_a_finding_without_a_circle_is_noted_and_counts_for_the_pathology(tmp_path, row):
    (record,), reasons = read(real(tmp_path, row))
    assert (record.lesions, record.pathology, record.lost) == ((), "benign", (Lost("mass"),))
    assert reasons == {"mdb059.pgm": "a finding CIRC without a circle became no lesion"}


def test_note_3_as_the_writer_puts_it(tmp_path):
    writer.write(
        [mammogram(1, LESIONS[0], LESIONS[3], pathology="malignant")], tmp_path, note_3=True
    )
    (record,), reasons = read(tmp_path)
    assert [lesion.kind for lesion in record.lesions] == ["mass"]
    assert record.pathology == "malignant"
    assert reasons == {"mdb001.pgm": "a finding CALC without a circle became no lesion"}


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("535 425 0", "the circle 535 425 0 left out: a radius of 0 encloses nothing"),
        (
            "535 425 1024",
            "the circle 535 425 1024 left out: a radius of 1024 encloses more than the image",
        ),
        ("9999 425 10", "the circle 9999 425 10 left out: the outline lies outside the image"),
    ],
)
def test_a_circle_that_cannot_be_is_noted(tmp_path, place, reason):
    (record,), reasons = read(real(tmp_path, f"mdb001 G CIRC M {place}"))
    assert (record.lesions, record.pathology, record.lost) == ((), "malignant", (Lost("mass"),))
    assert reasons == {"mdb001.pgm": reason}


@pytest.mark.parametrize(
    "row",
    [
        "mdb002 G CIRC B 535 425",
        "mdb002 G CIRC B 535 -425 10",
        "mdb002 G CIRC B nan 425 10",
        "mdb002 G CIRC B 535 425 1e99",
        "mdb002 G CIRC B 535 425 " + "9" * 5000,
        "mdb002 G CIRC 535 425 10",
        "mdb002 Q CIRC B 535 425 10",
        "mdb002 G LUMP B 535 425 10",
        "mdb002 G CIRC X 535 425 10",
        "mdb002,G,CIRC,B,535,425,10",
        "mdb002",
        'mdb002 G CIRC B =cmd|"/c calc"!A0',
    ],
)
def test_a_row_that_is_none_is_noted_and_its_image_left_out(tmp_path, row):
    (record,), reasons = read(
        real(tmp_path, "mdb001 D NORM", row, images=("mdb001.pgm", "mdb002.pgm"))
    )
    assert record.image_id == "mdb001"
    assert reasons == {
        "Info.txt": "1 rows are not of its form, the first is line 2",
        "mdb002.pgm": "Info.txt does not name it",
    }


def test_normal_and_not_normal_at_once_is_noted(tmp_path):
    (record,), reasons = read(real(tmp_path, "mdb001 G NORM", "mdb001 G CIRC B 535 425 20"))
    assert (record.pathology, len(record.lesions)) == ("benign", 1)
    assert reasons == {"mdb001.pgm": "Info.txt calls it normal and names findings, which were kept"}


def test_odd_bytes_and_line_ends_in_the_prose_cost_nothing(tmp_path):
    real(tmp_path, "mdb001 D NORM")
    prose = (
        b"\xef\xbb\xbfWARNING: \xe9\x80\x00 mdb is a prefix\r\n\r\n1st column: mdb001 and so on\r\n"
    )
    (tmp_path / "Info.txt").write_bytes(prose + b"MDB001\tg\tcirc\tb\t535 425 20\r\n")
    (record,), reasons = read(tmp_path)
    assert len(record.lesions) == 1
    assert not reasons


def test_missing_images_are_one_note(tmp_path):
    rows = [f"mdb{number:03d} D NORM" for number in range(1, 323)]
    (_,), reasons = read(real(tmp_path, *rows, images=("mdb007.pgm",)))
    assert reasons == {"Info.txt": "321 of its 322 images are missing"}


def test_indexing_reads_no_pixels_and_is_linear(tmp_path):
    """2,000 sparse files: read whole they would be 2 GB."""
    count = 2000
    for number in range(1, count + 1):
        with (tmp_path / f"mdb{number:04d}.pgm").open("wb") as file:
            file.write(GREY[:17])
            file.truncate(len(GREY))
    (tmp_path / "Info.txt").write_text(
        "\n".join(f"mdb{number:04d} D NORM" for number in range(1, count + 1)), encoding="ascii"
    )
    records, reasons = read(tmp_path)
    assert (len(records), reasons) == (count, {})
    assert len({record.patient_id for record in records}) == count // 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GREY[:-1], "the file ends early, 1 bytes are missing"),
        (GREY[:30], "the file ends early"),
        (b"", "is no binary PGM (P5)"),
        (b"P2\n1024 1024\n255\n" + b"0 " * 50, "is no binary PGM (P5)"),
        (b"P5\n" + b"#" * 5000, "is no binary PGM (P5)"),
        (
            b"P5\n512 512\n255\n" + bytes(512 * 512),
            "is 512 x 512 px, but the circles of Info.txt are in pixels of 1024 x 1024",
        ),
        (b"P5\n999999 999999\n255\n", "is 999999 x 999999 px, but"),
        (
            b"P5\n1024 1024\n65535\n" + bytes(2 * SIZE * SIZE),
            "its largest grey value is 65535, not 255",
        ),
    ],
)
def test_an_unusable_image_is_noted_and_the_others_stay(tmp_path, content, reason):
    real(tmp_path, "mdb001 D NORM", "mdb002 D NORM")
    (tmp_path / "mdb002.pgm").write_bytes(content)
    (record,), reasons = read(tmp_path)
    assert record.image_id == "mdb001"
    assert reasons["mdb002.pgm"].startswith(reason)
    (tmp_path / "mdb001.pgm").write_bytes(content)
    with pytest.raises(
        ArchiveError,
        match=rf"{tmp_path}: holds no image .*2 skipped, the first is mdb001\.pgm: "
        rf"{re.escape(reason)}",
    ):
        mini_mias.read(tmp_path)


def test_reading_is_lazy_and_records_pickle(tmp_path):
    writer.write([mammogram(1, LESIONS[0])], tmp_path)
    (record,) = mini_mias.read(tmp_path)
    copy = pickle.loads(pickle.dumps(record))
    np.testing.assert_array_equal(copy.pixels(), record.pixels())
    os.truncate(tmp_path / "mdb001.pgm", 5000)
    with pytest.raises(ArchiveError, match=r"mdb001\.pgm: the file ends early"):
        copy.pixels()
    (tmp_path / "mdb001.pgm").unlink()
    with pytest.raises(ArchiveError, match=r"mdb001\.pgm: can't be read \(No such file"):
        record.pixels()


def test_second_files_and_tables(tmp_path):
    real(tmp_path, "mdb001 D NORM")
    for name in ("copy", "other"):
        shutil.copytree(tmp_path, tmp_path / name, ignore=shutil.ignore_patterns("copy"))
    (tmp_path / "other" / "mdb001.pgm").unlink()
    (tmp_path / "other" / "Info.txt").write_text("mdb001 G NORM", encoding="ascii")
    (tmp_path / "copy" / "._mdb001.pgm").write_bytes(b"macOS")
    (record,), reasons = read(tmp_path)
    assert record.density == "dense-glandular"
    assert reasons["copy/mdb001.pgm"] == "is a second file of the same number"
    assert reasons["other/Info.txt"] == "is another table, and was not used"
    assert "copy/Info.txt" not in reasons  # it says the same


def test_what_is_no_archive(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ArchiveError, match=rf"{root}: is no mini-MIAS archive, there is no mdb<number>\.pgm"
        ):
            mini_mias.read(root)
    (tmp_path / "mdb001.pgm").write_bytes(GREY)
    for content in (None, b"", b"\x00\xff" * 1000, b"prose alone"):
        if content is not None:
            (tmp_path / "Info.txt").write_bytes(content)
        with pytest.raises(
            ArchiveError,
            match=rf"{tmp_path}: is no mini-MIAS archive, there is no Info\.txt with rows",
        ):
            mini_mias.read(tmp_path)
