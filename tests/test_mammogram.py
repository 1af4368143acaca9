"""Outlines become masks and half-open boxes; records say where they can't."""

import hashlib
import hmac
import pickle
from functools import partial

import numpy as np
import pytest

from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    ID_KEY,
    Lesion,
    Mammogram,
    MaskedLesion,
    Skipped,
    hash_id,
    hash_patient,
    keep_largest,
    normalize_patient,
)

SQUARE = np.array([(2, 3), (2, 6), (4, 6), (4, 3)], np.float32)


def drawn(picture: str) -> np.ndarray:
    """A mask from rows of dots and hashes."""
    return np.array([[mark == "#" for mark in row] for row in picture.split()], np.uint8)


@pytest.mark.parametrize(
    ("outline", "size", "picture", "box"),
    [
        # border pixels belong to the mask
        (SQUARE, (5, 7), "....... ....... ...#### ...#### ...####", (2, 3, 5, 7)),
        ([(0, 0), (4, 0), (4, 4)], (5, 6), "#..... ##.... ###... ####.. #####.", (0, 0, 5, 5)),
        (  # a hollow form
            [(0, 0), (4, 0), (4, 6), (0, 6), (0, 4), (2, 4), (2, 2), (0, 2)],
            (5, 7),
            "###.### ###.### ####### ####### #######",
            (0, 0, 5, 7),
        ),
        (  # cut at the border
            [(-3, -2), (-3, 2), (2, 2), (2, -2)],
            (5, 6),
            "###... ###... ###... ...... ......",
            (0, 0, 3, 3),
        ),
        (  # points as far outside as they may be do not wrap around
            [(-32768, -32768), (-32768, 32768), (32768, 32768), (32768, -32768)],
            (5, 6),
            "###### ###### ###### ###### ######",
            (0, 0, 5, 6),
        ),
    ],
)
def test_outlines_by_hand(outline, size, picture, box):
    lesion = Lesion.from_outline("mass", np.array(outline, np.float64), *size)
    np.testing.assert_array_equal(lesion.mask(*size), drawn(picture), strict=True)
    assert lesion.box == box and all(type(side) is int for side in lesion.box)
    np.testing.assert_array_equal(lesion.outlines[0], np.float32(outline))


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5, 0.8])
def test_sub_pixel_outlines_stay_within_a_pixel_of_the_true_region(shift):
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    centre = np.array([20 + shift, 24 - shift])
    radius = 9.0
    mask = Lesion.from_outline(
        "mass", centre + radius * np.stack([np.sin(angle), np.cos(angle)], 1), 44, 48
    ).mask(44, 48)
    distance = np.hypot(*(np.indices((44, 48)) - centre[:, None, None]))
    assert mask[distance <= radius - 0.1].all()
    assert not mask[distance > radius + 1].any()


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        (np.zeros((0, 2)), "an outline of 0 points"),
        (np.zeros((2, 2)), "an outline of 2 points"),
        ([(1, 1), (np.nan, 2), (3, 1)], "no number"),
        ([(1, 1), (2, np.inf), (3, 1)], "no number"),
        (SQUARE + 100, "outside the image"),
    ],
)
def test_outlines_that_enclose_nothing(outline, said):
    with pytest.raises(ValueError, match=said):
        Lesion.from_outline("mass", np.asarray(outline, np.float64), 7, 9)


def test_a_lesion_with_a_box_alone_has_no_mask():
    with pytest.raises(ValueError, match="a box but no outline"):
        Lesion("mass", (0, 0, 3, 3)).mask(5, 5)


def test_spellings_that_look_alike_are_one_identifier():
    composed = "M\u00fcller"
    others = ("Mu\u0308ller", "M\u00fc\u200bller\ufeff\u00ad", "Mu\u200d\u0308ller")
    assert {hash_id("folder", name) for name in others} == {hash_id("folder", composed)}
    assert hash_id("folder", "\uff21\uff11") == hash_id("folder", "A1") != hash_id("folder", "a1")
    digest = hashlib.sha256("folder/M\u00fcller".encode()).hexdigest()
    assert hash_id("folder", composed) == digest[:12], "as ever"


def test_a_secret_key_makes_it_a_keyed_hash(monkeypatch):
    monkeypatch.delenv(ID_KEY, raising=False)
    plain = hash_id("inbreast", "Jane Doe")
    assert plain == hashlib.sha256(b"inbreast/Jane Doe").hexdigest()[:12]
    monkeypatch.setenv(ID_KEY, "")
    assert hash_id("inbreast", "Jane Doe") == plain
    monkeypatch.setenv(ID_KEY, "a secret, söt")
    expected = hmac.new("a secret, söt".encode(), b"inbreast/Jane Doe", "sha256").hexdigest()[:12]
    assert hash_id("inbreast", "Jane Doe") == expected != plain
    monkeypatch.setenv(ID_KEY, "another")
    assert hash_id("inbreast", "Jane Doe") not in (expected, plain)


def mammogram(image, rows=4, cols=5):
    return Mammogram("toy", "p", "toy_1", rows, cols, read=partial(np.asarray, image))


@pytest.mark.parametrize("shape", [(4, 5), (5, 4, 1), (4, 5, 3), (1, 4, 5, 1)])
def test_pixels_of_another_shape_are_an_error_that_names_the_image(shape):
    with pytest.raises(ArchiveError, match="toy_1"):
        mammogram(np.zeros(shape)).pixels()


def test_skipped_joins_the_reasons_of_one_file():
    skipped = Skipped()
    skipped.add("a.dcm", "truncated")
    skipped.add("a.dcm", ValueError("no pixels"))
    skipped.add("b.dcm", "not a mammogram")
    assert skipped.reasons == {"a.dcm": "truncated; no pixels", "b.dcm": "not a mammogram"}
    assert len(skipped) == 2


def test_overlapping_outlines_have_no_hole():
    square = np.array([[2, 2], [2, 7], [7, 7], [7, 2]], np.float32)
    both, one, other = (
        Lesion("mass", (2, 2, 10, 10), outlines).mask(12, 12)
        for outlines in ((square, square + 2), (square,), (square + 2,))
    )
    np.testing.assert_array_equal(both, one | other)


def from_file(picture: str) -> np.ndarray:
    return drawn(picture) * 255


def test_a_masked_lesion_reads_its_file_late_and_once():
    calls = []

    def read() -> np.ndarray:
        calls.append(1)
        return from_file("...... .###.. .#.#.. .###.. ....##")

    lesion = MaskedLesion("mass", read, pathology="benign", margin="spiculated")
    assert (lesion.pathology, lesion.margin, lesion.shape) == ("benign", "spiculated", None)
    assert "benign" in repr(lesion) and not calls
    assert lesion.box == (1, 1, 5, 6) and len(calls) == 1
    filled = drawn("...... .###.. .###.. .###.. ....##")
    np.testing.assert_array_equal(lesion.mask(5, 6), filled)
    assert len(calls) == 1 and lesion.outlines[0].dtype == np.float32


def test_a_masked_lesion_survives_pickling_unread():
    lesion = pickle.loads(pickle.dumps(MaskedLesion("mass", partial(from_file, ".. .#"))))
    assert lesion.box == (1, 1, 2, 2)


def test_an_empty_mask_is_an_error_on_first_use():
    lesion = MaskedLesion("mass", partial(from_file, ".. .."))
    for use in (lambda: lesion.box, lambda: lesion.outlines, lambda: lesion.mask(2, 2)):
        with pytest.raises(ArchiveError, match="marks nothing"):
            use()


def test_the_largest_part_of_a_region_by_hand():
    region = drawn("##... #...# .#..# ....#")
    by_corners = keep_largest(region)
    np.testing.assert_array_equal(by_corners, drawn("##... #.... .#... ....."))
    first = keep_largest(region, connectivity=4)  # of two parts of 3 px
    np.testing.assert_array_equal(first, drawn("##... #.... ..... ....."))
    assert not keep_largest(np.zeros((3, 3), np.uint8)).any()


@pytest.mark.parametrize(
    "names", [("12e4", "120000"), ("1.10", "1.1"), ("12.5", "12"), ("-12", "12"), ("P012", "P12")]
)
def test_two_names_are_two_patients(names):
    assert len({hash_patient("folder", name) for name in names}) == 2


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("1.23457E+12", "1e+16", "1,5e3"), "digits"),
        (("1,000", "2.000", "+120.000"), "save the column as text"),
    ],
)
def test_a_number_that_lost_digits_or_may_be_of_thousands_names_nobody(texts, said):
    for text in texts:
        with pytest.raises(ValueError, match=said):
            normalize_patient(text)
