"""Membership inference: areas and rates by hand, and what patients do to intervals."""

import numpy as np
import pytest

from tfmammo.metrics.membership import estimate_auc, estimate_rate


def test_an_auc_counts_pairs_and_stays_within_its_range():
    members = np.arange(24) < 12
    scores = np.where(members, np.tile([3, 1, 3], 8), 2)  # two thirds of members above all others
    estimate = estimate_auc(members, scores, np.arange(24))
    assert estimate.value == pytest.approx(2 / 3)
    assert 0 < estimate.low < 2 / 3 < estimate.high < 1


def test_a_perfect_attack_is_not_certain():
    members = np.arange(40) < 20
    estimate = estimate_auc(members, members * 1.0, np.arange(40))
    assert (estimate.value, estimate.low, estimate.high) == (1.0, pytest.approx(1 - 3 / 20), 1.0)


def test_patches_of_one_patient_widen_the_interval():
    random = np.random.default_rng(0)
    members = np.arange(120) < 60
    shared = np.repeat(random.normal(size=20), 6)
    scores = shared + 0.1 * random.normal(size=120)
    alone = estimate_auc(members, scores, np.arange(120))
    clustered = estimate_auc(members, scores, np.repeat(np.arange(20), 6))
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)


def test_the_rate_at_one_in_a_hundred_leaves_one_of_a_hundred_others_above():
    members = np.arange(300) < 100
    scores = np.concatenate([np.full(25, 10.0), np.zeros(75), [11.0, 9.0, 9.0], np.ones(197)])
    # the limit is the third highest of 200 others, 9: above it are 25 members and one other
    estimate = estimate_rate(members, scores, np.arange(300), samples=50)
    assert estimate.value == 0.25 and estimate.low <= 0.25 <= estimate.high


def test_few_patients_have_no_interval():
    members = np.arange(10) < 5
    assert np.isnan(estimate_auc(members, np.arange(10.0), np.arange(10)).low)
