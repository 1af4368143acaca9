"""The images of tests/golden/make_pretrained_golden.py."""

import numpy as np


def make_image_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Make two times five images of 80 px, float32 in [0, 1].

    Pairs are different, nearly equal, equal, black, and white.
    """
    random = np.random.default_rng(2)
    a, b = random.random((2, 5, 80, 80, 1), dtype=np.float32)
    b[1] = np.clip(a[1] + random.normal(0, 0.05, a[1].shape), 0, 1)
    b[2] = a[2]
    a[3] = 0
    b[3] = 1
    return a, b
