"""Outlines become masks and half-open boxes; records say where they can't."""

import hashlib
import hmac
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    ("outline", "picture", "box"),
    [
        # the border pixels belong to the mask
        (SQUARE, "....... ....... ...#### ...#### ...####", (2, 3, 5, 7)),
        ([(0, 0), (4, 0), (4, 4)], "#...... ##..... ###.... ####... #####..", (0, 0, 5, 5)),
        (
            [(0, 0), (4, 0), (4, 6), (0, 6), (0, 4), (2, 4), (2, 2), (0, 2)],
            "###.### ###.### ####### ####### #######",
            (0, 0, 5, 7),
        ),
        # cut at the border
        (
            [(-3, -2), (-3, 2), (2, 2), (2, -2)],
            "###.... ###.... ###.... " + "....... " * 2,
            (0, 0, 3, 3),
        ),
        # far outside, where numbers of 32 bits would wrap around
        ([(-1e9, -1e9), (-1e9, 1e9), (1e9, 1e9), (1e9, -1e9)], "####### " * 5, (0, 0, 5, 7)),
        (SQUARE.ravel(), "....... ....... ...#### ...#### ...####", (2, 3, 5, 7)),
    ],
)
def test_masks_and_boxes_by_hand(outline, picture, box):
    lesion = Lesion.from_outline("mass", np.asarray(outline, np.float32), 5, 7)
    mask = lesion.mask(5, 7)
    assert mask.dtype == np.uint8 and lesion.box == box
    np.testing.assert_array_equal(mask, drawn(picture))
    assert all(type(side) is int for side in lesion.box)
    np.testing.assert_array_equal(lesion.outlines[0], np.reshape(outline, (-1, 2)))


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5, 0.8])
def test_sub_pixel_outlines_stay_within_a_pixel_of_the_true_region(shift):
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    centre = np.array([20 + shift, 24 - shift])
    circle = centre + 9 * np.stack([np.sin(angle), np.cos(angle)], 1)
    mask = Lesion.from_outline("mass", circle, 44, 48).mask(44, 48)
    distance = np.hypot(*(np.indices((44, 48)) - centre[:, None, None]))
    assert mask[distance <= 8.9].all() and not mask[distance > 10].any()


def test_the_box_is_half_open_and_tight_for_any_polygon():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lesion = Lesion.from_outline("mass", rng.uniform(-5, 25, (5, 2)) * 0.5 + 5, 20, 20)
        mask = lesion.mask(20, 20)
        top, left, bottom, right = lesion.box
        assert mask.sum() == mask[top:bottom, left:right].sum() > 0
        edges = mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]
        assert all(edge.any() for edge in edges)


def test_details_reach_the_lesion():
    details = {"pathology": "malignant", "shape": "oval", "margin": "spiculated"}
    lesion = Lesion.from_outline("mass", SQUARE, 7, 9, kind_is_certain=False, **details)
    assert {name: getattr(lesion, name) for name in details} == details
    assert lesion.kind_is_certain is False


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        *((np.zeros((count, 2)), f"{count} points") for count in range(3)),
        ([(1, 1), (np.nan, 2), (3, 1)], "no number"),
        ([(1, 1), (2, np.inf), (3, 1)], "no number"),
        (SQUARE + 100, "outside the image"),
        (SQUARE - 100, "outside the image"),
    ],
)
def test_outlines_that_enclose_nothing(outline, said):
    with pytest.raises(ValueError, match=said):
        Lesion.from_outline("mass", np.asarray(outline, np.float64), 7, 9)
    with pytest.raises(ValueError, match="a box but no outline"):
        Lesion("mass", (0, 0, 3, 3)).mask(5, 5)


def test_hashed_id_is_a_short_stable_pseudonym_and_keyed_by_a_secret(monkeypatch):
    monkeypatch.delenv(ID_KEY, raising=False)
    plain = hash_id("inbreast", "Jane Doe")
    assert plain == hashlib.sha256(b"inbreast/Jane Doe").hexdigest()[:12]
    found = {hash_id(archive, patient) for archive in "ab" for patient in "12ü"}
    assert len(found) == 6
    monkeypatch.setenv(ID_KEY, "")
    assert hash_id("inbreast", "Jane Doe") == plain
    monkeypatch.setenv(ID_KEY, "a secret, söt")
    expected = hmac.new("a secret, söt".encode(), b"inbreast/Jane Doe", "sha256").hexdigest()[:12]
    assert hash_id("inbreast", "Jane Doe") == expected != plain
    monkeypatch.setenv(ID_KEY, "another")
    assert hash_id("inbreast", "Jane Doe") not in (expected, plain)


def test_spellings_that_look_alike_are_one_identifier():
    composed = "M\u00fcller"
    others = ("Mu\u0308ller", "M\u00fc\u200bller\ufeff\u00ad", "Mu\u200d\u0308ller")
    assert {hash_id("folder", name) for name in others} == {hash_id("folder", composed)}
    assert hash_id("folder", "\uff21\uff11") == hash_id("folder", "A1") != hash_id("folder", "a1")
    digest = hashlib.sha256("folder/M\u00fcller".encode()).hexdigest()
    assert hash_id("folder", composed) == digest[:12], "as ever"


def mammogram(image, rows=4, cols=5):
    return Mammogram("toy", "p", "toy_1", rows, cols, read=partial(np.asarray, image))


def test_pixels_are_float32_of_the_records_shape():
    image = np.random.default_rng(0).random((4, 5, 1))
    pixels = mammogram(image).pixels()
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, image.astype(np.float32))
    for shape in ((4, 5), (5, 4, 1), (4, 5, 3), (1, 4, 5, 1)):
        with pytest.raises(ArchiveError, match="toy_1: "):
            mammogram(np.zeros(shape)).pixels()


def test_skipped_joins_the_reasons_of_one_file():
    skipped = Skipped()
    assert len(skipped) == 0
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
    region = np.array(
        [
            [1, 1, 0, 0, 0],
            [1, 0, 0, 0, 1],
            [0, 1, 0, 0, 1],  # touches the first part at a corner
            [0, 0, 0, 0, 1],
        ],
        np.uint8,
    )
    by_corners = keep_largest(region)
    np.testing.assert_array_equal(by_corners[:, :2], region[:, :2])
    assert by_corners.sum() == 4
    first = keep_largest(region, connectivity=4)  # of two parts of 3 px
    np.testing.assert_array_equal(first[:2, :2], [[1, 1], [1, 0]])
    assert first.sum() == 3
    assert not keep_largest(np.zeros((3, 3), np.uint8)).any()


NUMBERS = st.integers(0, 10**12)


def spell(number: int) -> st.SearchStrategy[str]:
    """The ways in which pandas, Excel and people write one whole number."""
    digits = str(number)
    exponent = len(digits) - 1
    written = [
        digits,
        f"{number:020d}",
        f"{digits}.0",
        f"{digits}.",
        f"{digits},00",
        f"+{digits}",
        f" {digits}\t",
        f"\u200b{digits}",
        "".join(chr(ord(digit) + 0xFEE0) for digit in digits),  # full width
        f"{digits[0]}.{digits[1:]}E+{exponent:02d}",
        f"{digits[0]}.{digits[1:]}e{exponent}",
    ]
    return st.sampled_from(written)


@given(NUMBERS.flatmap(lambda number: st.tuples(spell(number), spell(number))))
def test_one_number_is_one_patient(spellings):
    assert len({hash_patient("folder", text) for text in spellings}) == 1


@given(st.sets(NUMBERS, min_size=2, max_size=2).flatmap(lambda pair: st.tuples(*map(spell, pair))))
def test_two_numbers_are_two_patients(spellings):
    assert len({hash_patient("folder", text) for text in spellings}) == 2


@pytest.mark.parametrize(
    "names", [("12e4", "120000"), ("1.10", "1.1"), ("12.5", "12"), ("-12", "12"), ("P012", "P12")]
)
def test_two_names_are_two_patients(names):
    assert len({hash_patient("folder", name) for name in names}) == 2


@pytest.mark.parametrize("text", ["1.23457E+12", "1e+16", "1,5e3"])
def test_a_number_that_lost_digits_names_nobody(text):
    with pytest.raises(ValueError, match="digits"):
        normalize_patient(text)
