"""Where random patches are and how many each mammogram gives; the shapes of masses."""

from collections import Counter

import numpy as np
import pytest

from tests.small_mammograms import make_noisy, make_rectangle, refuse
from tfmammo.config import DataConfig, SamplingConfig
from tfmammo.data.sampling import (
    draw_length,
    draw_near_lesion,
    draw_on_breast,
    draw_quota,
    has_normal_tissue,
    is_normal,
    shape_class,
)
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, MaskedLesion


def mammogram(*lesions, image_id="a", **details):
    """A record whose pixels can't be read."""
    return make_noisy(*lesions, name=image_id, read=refuse, **details)


def normal(image_id):
    return mammogram(image_id=image_id, pathology="normal")


BOXED = Lesion("mass", (1, 2, 30, 40))


def test_every_pixel_of_the_lesion_is_drawn_and_an_offset_ends_inside_the_window():
    region = np.zeros((40, 40), np.uint8)
    region[10, 10:13] = region[20, 25] = 1
    random = np.random.default_rng(0)
    corners = {draw_near_lesion(region, 5, 0, random)[:2] for _ in range(200)}
    assert corners == {(8, 8), (8, 9), (8, 10), (18, 23)}
    region[:] = 0
    region[20, 20] = 1
    tops = {draw_near_lesion(region, 5, 128, random)[0] for _ in range(200)}
    assert tops == set(range(16, 21))  # 5 px that hold row 20
    with pytest.raises(ValueError, match="its mask is empty"):
        draw_near_lesion(np.zeros((8, 8), np.uint8), 4, 1, random)


def test_a_square_near_a_lesion_holds_as_much_breast_as_asked_for():
    breast = np.zeros((40, 40, 1), np.uint8)
    breast[:, :20] = 1
    region = np.zeros((40, 40), np.uint8)
    region[20, 18] = 1  # 2 px from the breast's edge
    random = np.random.default_rng(0)
    draws = [draw_near_lesion(region, 10, 4, random, breast, 0.9) for _ in range(200)]
    assert {left for _, left, _, _ in draws} == {9, 10, 11}  # at least 9 of 10 columns
    anywhere = [draw_near_lesion(region, 10, 4, random, breast, 0.0) for _ in range(200)]
    assert {left for _, left, _, _ in anywhere} == set(range(9, 18))
    with pytest.raises(ValueError, match="none of 100 squares of 10 px is 90 % breast"):
        draw_near_lesion(region, 10, 0, random, breast, 0.9)
    # beyond the image there is none
    with pytest.raises(ValueError, match="none of 100 squares of 50 px"):
        draw_near_lesion(region, 50, 4, random, np.ones_like(breast), 0.9)


def enough(breast, length, tissue):
    """The corners of all windows that hold enough breast, counted one by one."""
    rows, cols, _ = breast.shape
    corners = [(r, c) for r in range(rows - length + 1) for c in range(cols - length + 1)]
    return {
        (r, c)
        for r, c in corners
        if breast[r : r + length, c : c + length].sum() >= round(tissue * length**2, 6)
    }


@pytest.mark.parametrize(("length", "tissue"), [(3, 0.9), (5, 0.28), (12, 0.4), (4, 0.0)])
def test_windows_on_breast_are_all_those_with_enough_of_it(length, tissue):
    random = np.random.default_rng(3)
    breast = np.zeros((12, 14, 1), np.uint8)
    breast[:, :8] = 1
    breast[random.integers(0, 12, 9), random.integers(0, 14, 9)] ^= 1
    expected = enough(breast, length, tissue)
    counts = Counter()
    for _ in range(40 * len(expected)):
        top, left, bottom, right = draw_on_breast(breast, length, tissue, random)
        assert bottom - top == right - left == length
        counts[top, left] += 1
    assert set(counts) == expected
    statistic = sum((count - 40) ** 2 / 40 for count in counts.values())
    free = len(expected) - 1
    assert statistic < free + 4 * np.sqrt(2 * free) + 10, "each is as likely as the others"


def test_windows_of_normal_tissue_keep_off_lesions():
    breast = np.ones((12, 14, 1), np.uint8)
    lesions = np.zeros((12, 14, 1), np.uint8)
    lesions[4:7, 5] = 1
    expected = {
        (r, c) for r in range(10) for c in range(12) if not lesions[r : r + 3, c : c + 3].any()
    }
    random = np.random.default_rng(0)
    assert {draw_on_breast(breast, 3, 1.0, random, lesions)[:2] for _ in range(3000)} == expected


def test_no_place_is_an_error():
    random = np.random.default_rng(0)
    breast = np.ones((12, 9, 1), np.uint8)
    breast[::3, ::3] = 0
    lesion = np.zeros_like(breast)
    lesion[6, 4] = 1
    for length, lesions, reason in (
        (3, None, "no square of 3 px is 90 % breast$"),  # every one holds a hole
        (10, None, "no square of 10 px is 90 % breast$"),  # wider than the image
        (9, lesion, "no square of 9 px is 80 % breast without a lesion$"),
    ):
        with pytest.raises(ValueError, match=reason):
            draw_on_breast(breast, length, 0.9 if lesions is None else 0.8, random, lesions)
    assert draw_on_breast(breast, 3, 8 / 9, random)


def test_scale_enlarges():
    random = np.random.default_rng(0)
    for scale, length in ((1, 256), (2, 128), (0.5, 512)):
        assert draw_length(256, SamplingConfig(scale=(scale, scale)), random) == length
    # quantiles 0, 1/2 and 1: half of the windows have 256 to 128 px, half 128 to 64
    skewed = SamplingConfig(scale=(1, 2, 4))
    sides = np.array([draw_length(256, skewed, random) for _ in range(2000)])
    assert sides.min() >= 64 and sides.max() <= 256
    assert np.mean(sides > 128) == pytest.approx(0.5, abs=0.05)
    for wrong in ((2, 1), (1,), (0, 1), (1, 3, 2)):
        with pytest.raises(ValueError, match="scale must be"):
            SamplingConfig(scale=wrong)
    sides = [draw_length(256, SamplingConfig(), random) for _ in range(500)]
    assert min(sides) >= 213 and max(sides) <= 320 and min(sides) < 220 and max(sides) > 310


@pytest.mark.parametrize(
    ("record", "is_it", "has_tissue"),
    [
        (normal("a"), True, True),
        # the archive does not call it normal, and its lesions are not marked at all
        (mammogram(pathology="benign"), False, False),
        (mammogram(), False, False),
        (mammogram(make_rectangle(10, 10, 20, 20)), False, True),
        # a lesion's place is not known to the pixel
        (mammogram(make_rectangle(10, 10, 20, 20), BOXED), False, False),
        (mammogram(BOXED, pathology="normal"), False, False),
    ],
)
def test_normal_mammograms_and_normal_tissue_of_others(record, is_it, has_tissue):
    assert is_normal(record) == has_normal_tissue(record, SamplingConfig()) == is_it
    assert has_normal_tissue(record, SamplingConfig(normal="tissue")) == has_tissue


def test_quota_follows_lesions_and_not_the_order():
    one = make_rectangle(10, 10, 20, 20)
    masked = MaskedLesion("mass", refuse)  # counts, and is not read
    lesions = {
        "one": (one,),
        "three": (one, masked, one),
        "box": (BOXED,),
        "none": (),
        "other": (make_rectangle(1, 1, 9, 9, kind="asymmetry"),),
    }
    records = [mammogram(*some, image_id=name) for name, some in lesions.items()]
    config = DataConfig(patches="offset", sampling=SamplingConfig(count=4000), seed=1)
    counts = draw_quota(records, config)
    assert set(counts) == set(lesions) and sum(counts.values()) == 4000
    assert counts["box"] == counts["none"] == counts["other"] == 0
    assert counts["three"] == pytest.approx(3000, abs=110)  # 4 standard deviations of a binomial
    another = draw_quota(records, config.model_copy(update={"seed": 2}))
    assert counts == draw_quota(records[::-1], config) != another
    full = DataConfig(frame="full", kinds=("mass", "asymmetry"))
    for config, expected in ((DataConfig(), (1, 3, 1, 0, 0)), (full, (1, 1, 1, 0, 1))):
        assert draw_quota(records, config) == dict(zip(lesions, expected, strict=True))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"patches": "normal"}, "data.patches=normal"),
        ({"patches": "offset"}, "data.patches=offset"),
        ({"kinds": ("calcification", "distortion")}, "calcification"),
    ],
)
def test_an_empty_quota_says_what_is_missing(values, named):
    with pytest.raises(DataError, match=named):
        draw_quota([mammogram(BOXED), mammogram(image_id="b")], DataConfig(**values))


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("LOBULATED", "lobular"),
        ("irregular-architectural_distortion", "irregular"),
        ("Round, smooth", "round"),
        ("oval-lymph_node", "oval"),
        ("round-oval", None),
        ("round-irregular-architectural_distortion", None),
        ("lobulated-lobular", "lobular"),
        ("architectural_distortion", None),
        ("microlobulated", None),
        (None, None),
    ],
)
def test_archives_words_become_four_shapes(word, shape):
    assert shape_class(word) == shape
