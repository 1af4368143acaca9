"""Copies: where points, boxes, outlines and pixels go, and that copies follow from seed,
image and number alone.
"""

import numpy as np
import pytest

from tests.small_mammograms import make_noisy, make_rectangle
from tfmammo.archives import phantom
from tfmammo.config import AddedConfig, DataConfig
from tfmammo.data.copies import Transform, make_copies, transform_mammogram
from tfmammo.errors import ArchiveError, DataError
from tfmammo.mammogram import Lesion, Lost, MaskedLesion, Skipped

ROWS = 40
COLS = 60


def make_mammogram(*lesions, pixels=None, **facts):
    """One of 40 x 60 px, dark where nothing is given."""
    image = np.zeros((ROWS, COLS, 1), np.float32) if pixels is None else pixels
    read = lambda: image  # noqa: E731
    return make_noisy(*lesions, name="image", rows=ROWS, cols=COLS, read=read, **facts)


def make_square(top, left, side):
    facts = {"pathology": "malignant", "shape": "oval", "kind_is_certain": False}
    return make_rectangle(top, left, top + side, left + side, size=(ROWS, COLS), **facts)


def transform(mammogram, angle=0, factor=1, mirrored=False, number=1, skipped=None):
    skipped = Skipped() if skipped is None else skipped
    return transform_mammogram(mammogram, Transform(angle, factor, mirrored), number, skipped)


def copy(records, **added):
    return list(make_copies(records, DataConfig(added=AddedConfig(**added)), Skipped()))


def size(lesion):
    top, left, bottom, right = lesion.box
    return bottom - top, right - left


def test_a_mirrored_image_and_its_lesion_are_numpys():
    pixels = np.random.default_rng(0).random((ROWS, COLS, 1), np.float32)
    facts = {"laterality": "L", "spacing": (0.1, 0.2)}
    moved = transform(make_mammogram(make_square(5, 10, 8), pixels=pixels, **facts), mirrored=True)
    np.testing.assert_allclose(moved.pixels(), pixels[:, ::-1], atol=1e-6)
    assert (moved.laterality, moved.spacing, moved.image_id) == ("R", (0.1, 0.2), "image~1")
    (lesion,) = moved.lesions
    assert lesion.box == (5, COLS - 18, 13, COLS - 10)
    facts = (lesion.pathology, lesion.shape, lesion.kind_is_certain)
    assert facts == ("malignant", "oval", False)


def test_sizes_of_lesions_and_spacing():
    moved = transform(make_mammogram(make_square(15, 25, 9), spacing=(0.1, 0.1)), factor=2)
    # corners are pixels' centres: 8 px between them become 16
    assert size(moved.lesions[0]) == (17, 17) and moved.spacing == (0.05, 0.05)
    # one known by its box gets the box around the rotated one
    moved = transform(make_mammogram(Lesion("mass", (10, 20, 20, 30))), angle=45)
    assert size(moved.lesions[0]) == (14, 14)  # 10 times the root of 2


@pytest.mark.parametrize(("angle", "factor", "mirrored"), [(33, 0.9, False), (-12, 1.1, True)])
def test_outline_and_pixels_go_together(angle, factor, mirrored):
    lesion = make_square(12, 22, 11)
    pixels = lesion.mask(ROWS, COLS)[..., None].astype(np.float32)
    moved = transform(make_mammogram(lesion, pixels=pixels), angle, factor, mirrored)
    mask = moved.lesions[0].mask(ROWS, COLS)
    shown = moved.pixels()[..., 0] > 0.5
    assert 2 * np.sum(mask & shown) / (mask.sum() + shown.sum()) > 0.93


def test_what_is_out_of_sight_or_unreadable_is_noted():
    def fail():
        raise ArchiveError("mask.png: can't be read")

    skipped = Skipped()
    corner = make_square(0, 0, 4)
    lesions = (make_square(15, 25, 9), corner, MaskedLesion("mass", fail))
    mammogram = make_mammogram(*lesions, lost=(Lost("calcification"),))
    moved = transform(mammogram, factor=2, number=3, skipped=skipped)
    reasons = "lesion 1: the outline is outside the image; lesion 2: mask.png: can't be read"
    assert len(moved.lesions) == 1 and skipped.reasons == {"image~3": reasons}
    # neither normal nor background, as the image itself is not; what left the image is not in it
    assert moved.lost == (Lost("calcification"), Lost("mass"))
    with pytest.raises(ValueError, match="no lesion"):
        transform(make_mammogram(corner), factor=2)
    with pytest.raises(DataError, match="data.added.copies"):
        copy([make_mammogram()], copies=1)


def test_copies_are_spread_evenly_and_more_begin_with_the_fewer():
    records = phantom.read(count=12)
    few = copy(records, copies=5)
    every = copy(records, copies=23)
    for one, other in zip(few, every, strict=False):
        assert one.image_id == other.image_id
        assert [each.box for each in one.lesions] == [each.box for each in other.lesions]
    masses = [r.image_id for r in records if any(each.kind == "mass" for each in r.lesions)]
    times = [sum(one.image_id.split("~")[0] == name for one in every) for name in masses]
    assert sum(times) == 23 and max(times) - min(times) <= 1
    assert {one.patient_id for one in every} <= {record.patient_id for record in records}
