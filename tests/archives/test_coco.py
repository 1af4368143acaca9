"""Run-length encodings of regions against pycocotools, which needs masks of the whole image."""

import numpy as np
import pytest
from pycocotools import mask as masks

from tfmammo.archives import coco


@pytest.mark.parametrize("box", [(0, 0, 7, 5), (2, 1, 6, 4), (3, 0, 4, 5), (0, 2, 7, 3)])
def test_regions_are_pycocotools(box):
    random = np.random.default_rng(sum(box))
    (top, left, bottom, right) = box
    for share in (0.3, 0.7, 1.0):
        mask = np.zeros((7, 5), np.uint8)
        mask[top:bottom, left:right] = random.random((bottom - top, right - left)) < share
        encoded = coco.encode(mask[top:bottom, left:right], box, 7, 5)
        expected = masks.encode(np.asfortranarray(mask))
        assert encoded == {"size": [7, 5], "counts": expected["counts"].decode()}
        if mask.any():
            np.testing.assert_array_equal(coco.decode(encoded, "here"), mask)


def test_long_runs():
    big = np.zeros((3000, 2000), np.uint8)
    big[1000:2400, 300:1500] = 1
    encoded = coco.encode(big[1000:2400, 300:1500], (1000, 300, 2400, 1500), 3000, 2000)
    assert encoded["counts"] == masks.encode(np.asfortranarray(big))["counts"].decode()
