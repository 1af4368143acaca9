"""Membership inference: rates by hand."""

import numpy as np

from tfmammo.metrics.membership import estimate_rate


def test_the_rate_at_one_in_a_hundred_leaves_one_of_a_hundred_others_above():
    members = np.arange(300) < 100
    scores = np.concatenate([np.full(25, 10.0), np.zeros(75), [11.0, 9.0, 9.0], np.ones(197)])
    # the limit is the third highest of 200 others, 9: above it are 25 members and one other
    estimate = estimate_rate(members, scores, np.arange(300), samples=50)
    assert estimate.value == 0.25 and estimate.low <= 0.25 <= estimate.high


def test_the_rate_counts_members_above_the_limit_of_the_others_by_hand():
    """Half of four others may lie above: the limit is 2, and a member at it is not above it."""
    members = [True] * 3 + [False] * 4
    scores = [5.0, 2.0, 1.5, 4.0, 3.0, 2.0, 1.0]
    estimate = estimate_rate(members, scores, np.arange(7), rate=0.5)
    assert estimate.value == 1 / 3 and np.isnan(estimate.low)
