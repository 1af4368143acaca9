"""Tiles that cover a mammogram, and their detections as those of the whole."""

import numpy as np
import pytest

from tfmammo.detection import tiles


@pytest.fixture(autouse=True)
def float32_policy():
    """Replace the fixture for all tests: nothing here uses Keras, so nothing waits for it."""


def test_a_grid_by_hand():
    """10 rows by tiles of 4 that share 1 start at 0, 3, 6.

    6 columns by tiles of 5 need a second one, flush with the border, which shares 4.
    """
    assert tiles.lay_grid((10, 6), (4, 5), 1) == [(0, 0), (0, 1), (3, 0), (3, 1), (6, 0), (6, 1)]
    assert tiles.lay_grid((11, 4), (4, 5), 1) == [(0, 0), (2, 0), (4, 0), (7, 0)], (
        "as even as px allow"
    )
    assert tiles.lay_grid((3, 5), (4, 5), 1) == [(0, 0)]


@pytest.mark.parametrize("seed", range(20))
def test_every_pixel_is_covered_and_what_fits_into_the_overlap_lies_whole_in_a_tile(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(8, 40, 2).tolist())
    overlap = int(random.integers(1, min(shape)))
    image = tuple(random.integers(1, 150, 2).tolist())
    places = tiles.lay_grid(image, shape, overlap)
    for axis in (0, 1):
        starts = sorted({place[axis] for place in places})
        inside = np.array(starts)[:, np.newaxis] + np.arange(shape[axis])
        assert set(range(image[axis])) <= set(inside.ravel().tolist())
        assert starts[0] == 0 and (
            starts[-1] + shape[axis] == image[axis]
            or (len(starts) == 1 and shape[axis] > image[axis])
        )
        assert all(
            first + shape[axis] - second >= overlap
            for first, second in zip(starts, starts[1:], strict=False)
        )
        # One tile less could not reach the border, each going shape - overlap px beyond the one
        # before it.
        assert (
            len(starts) == 1 or (len(starts) - 1) * (shape[axis] - overlap) + overlap < image[axis]
        )
        for low in range(max(0, image[axis] - overlap) + 1):
            assert any(
                start <= low and min(image[axis], low + overlap) <= start + shape[axis]
                for start in starts
            )
    assert (
        len(places)
        == len(set(places))
        == len({top for top, _ in places}) * len({left for _, left in places})
    )


def test_tiles_that_share_all_of_themselves_are_refused():
    with pytest.raises(ValueError, match="tiles of 8 x 6 px can't share 6 px"):
        tiles.lay_grid((20, 20), (8, 6), 6)


def merged(rows, same=tiles.SAME):
    """Of rows (box, score, class, tile)."""
    boxes, scores, classes, numbers = zip(*rows, strict=True)
    return tiles.merge(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        np.array(classes),
        np.array(numbers),
        same,
    ).tolist()


def test_merging_by_hand():
    rows = [
        ((0, 0, 10, 10), 0.7, 1, 0),
        ((0, 6, 10, 16), 0.8, 1, 1),  # shares 40 of 100 with the first
        ((0, 4, 10, 14), 0.6, 1, 2),  # shares 60 with the first and 80 with the second
        ((2, 2, 4, 4), 0.5, 1, 1),  # lies in the first
        ((2, 2, 4, 4), 0.4, 2, 1),  # so does this, of another class
        ((30, 30, 30, 40), 0.9, 1, 3),  # no area
        ((50, 50, 60, 60), 0.1, 1, 3),
    ]
    assert merged(rows) == [1, 0, 4, 6]
    assert merged(rows, 0.39) == [1, 3, 4, 6], (
        "0.4 is more than that, and what hid the fourth is gone"
    )


def test_what_a_border_cut_gives_way_to_the_whole_that_is_as_sure():
    """A lesion of 40 px, of which the other tile shows the first 8 columns: 320 px of 320."""
    whole = ((100, 100, 140, 140), 0.5, 1, 1)
    part = ((100, 100, 140, 108), 0.5, 1, 0)
    assert merged([part, whole]) == [1] and merged([whole, part]) == [0]


def test_half_is_not_more_than_half():
    """In the other tile's box of 8 columns lie 4 of the first one's: 40 of 80 px."""
    rows = [((0, 0, 10, 10), 0.9, 1, 0), ((0, 6, 10, 14), 0.8, 1, 1)]
    assert merged(rows) == [0, 1] and merged(rows, 0.49) == [0]


def test_boxes_of_one_tile_are_left_as_they_are():
    rows = [((0, 0, 10, 10), 0.9, 1, 0), ((0, 1, 10, 11), 0.8, 1, 0), ((2, 2, 4, 4), 0.95, 1, 0)]
    assert merged(rows) == [2, 0, 1]


def test_nothing_found_is_nothing_merged():
    assert tiles.merge(np.zeros((0, 4)), np.zeros(0), np.zeros(0), np.zeros(0, int)).tolist() == []


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
    assert (
        order[tiles.merge(corners[order], scores[order], classes[order], numbers[order])].tolist()
        == kept.tolist()
    )
