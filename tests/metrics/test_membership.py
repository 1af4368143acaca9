"""Membership inference: rates by hand."""

import numpy as np

from tfmammo.metrics.membership import estimate_rate


def test_the_rate_at_one_in_a_hundred_leaves_one_of_a_hundred_others_above():
    members = np.arange(300) < 100
    scores = np.concatenate([np.full(25, 10.0), np.zeros(75), [11.0, 9.0, 9.0], np.ones(197)])
    # the limit is the third highest of 200 others, 9: above it are 25 members and one other
    estimate = estimate_rate(members, scores, np.arange(300), samples=50)
    assert estimate.value == 0.25 and estimate.low <= 0.25 <= estimate.high
