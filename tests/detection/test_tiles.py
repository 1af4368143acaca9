"""Tiles that cover a mammogram, and their detections as those of the whole."""

import numpy as np
import pytest

from tfmammo.detection import tiles


def test_a_grid_by_hand():
    """10 rows by tiles of 4 that share 1 start at 0, 3, 6.

    6 columns by tiles of 5 need a second one, flush with the border, which shares 4.
    """
    assert tiles.lay_grid((10, 6), (4, 5), 1) == [(0, 0), (0, 1), (3, 0), (3, 1), (6, 0), (6, 1)]
    # as even as px allow
    assert tiles.lay_grid((11, 4), (4, 5), 1) == [(0, 0), (2, 0), (4, 0), (7, 0)]
    assert tiles.lay_grid((3, 5), (4, 5), 1) == [(0, 0)]


@pytest.mark.parametrize("seed", range(20))
def test_every_pixel_is_covered_and_what_fits_into_the_overlap_lies_whole_in_a_tile(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(8, 40, 2).tolist())
    overlap = int(random.integers(1, min(shape)))
    image = tuple(random.integers(1, 150, 2).tolist())
    places = tiles.lay_grid(image, shape, overlap)
    every = [sorted({place[axis] for place in places}) for axis in (0, 1)]
    assert len(places) == len(set(places)) == len(every[0]) * len(every[1])
    for starts, length, side in zip(every, image, shape, strict=True):
        assert set(range(length)) <= {start + px for start in starts for px in range(side)}
        assert starts[0] == 0 and (starts[-1] + side == length or starts == [0] and side > length)
        assert all(np.diff(starts) <= side - overlap)
        # One tile less could not reach the border, each going side - overlap px beyond the one
        # before it.
        assert starts == [0] or (len(starts) - 1) * (side - overlap) + overlap < length
        for low in range(max(0, length - overlap) + 1):
            high = min(length, low + overlap)
            assert any(start <= low and high <= start + side for start in starts)


def test_tiles_that_share_all_of_themselves_are_refused():
    with pytest.raises(ValueError, match="tiles of 8 x 6 px can't share 6 px"):
        tiles.lay_grid((20, 20), (8, 6), 6)


WHOLE = ((100, 100, 140, 140), 0.5, 1, 1)  # a lesion of 40 px
PART = ((100, 100, 140, 108), 0.5, 1, 0)  # of which the other tile shows the first 8 columns
HALF = [((0, 0, 10, 10), 0.9, 1, 0), ((0, 6, 10, 14), 0.8, 1, 1)]  # 40 of 80 px are shared
SAME_TILE = [((0, 0, 10, 10), 0.9, 1, 0), ((0, 1, 10, 11), 0.8, 1, 0), ((2, 2, 4, 4), 0.95, 1, 0)]
MANY = [
    ((0, 0, 10, 10), 0.7, 1, 0),
    ((0, 6, 10, 16), 0.8, 1, 1),  # shares 40 of 100 with the first
    ((0, 4, 10, 14), 0.6, 1, 2),  # shares 60 with the first and 80 with the second
    ((2, 2, 4, 4), 0.5, 1, 1),  # is in the first
    ((2, 2, 4, 4), 0.4, 2, 1),  # so does this, of another class
    ((30, 30, 30, 40), 0.9, 1, 3),  # no area
    ((50, 50, 60, 60), 0.1, 1, 3),
]


@pytest.mark.parametrize(
    ("rows", "same", "kept"),
    [
        (MANY, tiles.SAME, [1, 0, 4, 6]),
        # 0.4 is more than that, and what hid the fourth is gone
        (MANY, 0.39, [1, 3, 4, 6]),
        ([PART, WHOLE], tiles.SAME, [1]),  # of equally sure boxes the larger one stays
        ([WHOLE, PART], tiles.SAME, [0]),
        (HALF, tiles.SAME, [0, 1]),  # half is not more than half
        (HALF, 0.49, [0]),
        (SAME_TILE, tiles.SAME, [2, 0, 1]),
    ],
)
def test_merging_by_hand(rows, same, kept):
    boxes, scores, classes, numbers = (np.array(column) for column in zip(*rows, strict=True))
    assert tiles.merge(boxes.astype(np.float32), scores, classes, numbers, same).tolist() == kept


def test_merging_again_changes_nothing_and_order_does_not_matter():
    random = np.random.default_rng(0)
    corners = np.sort(random.uniform(0, 50, (60, 2, 2)), axis=1).reshape(60, 4)
    scores = random.permutation(60) / 60
    classes = random.integers(0, 2, 60)
    numbers = random.integers(0, 4, 60)
    kept = tiles.merge(corners, scores, classes, numbers)
    assert 10 < len(kept) < 60 and (np.diff(scores[kept]) < 0).all()
    again = tiles.merge(corners[kept], scores[kept], classes[kept], numbers[kept])
    assert again.tolist() == list(range(len(kept)))
    order = random.permutation(60)
    shuffled = tiles.merge(corners[order], scores[order], classes[order], numbers[order])
    assert order[shuffled].tolist() == kept.tolist()
    assert tiles.merge(np.zeros((0, 4)), np.zeros(0), np.zeros(0), np.zeros(0, int)).size == 0
