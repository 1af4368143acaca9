"""Psychometric functions: derivatives, curves without noise, censoring, patients, coverage."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize, stats

from tfmammo.metrics import psychometric

GRID = np.array([0.0125, 0.025, 0.05, 0.1, 0.2])


def observe(seed, patients=40, pairs=10, spread=0.0, slope=3.0, guess=0.05, lapse=0.05):
    """Hits of an observer whose threshold, 0.05 on average, varies between patients, and blanks."""
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(patients), pairs)
    stimuli = random.choice(GRID, patients * pairs)
    shift = random.normal(0, spread, patients)[names] if spread else 0.0
    rise = stats.logistic.cdf(slope * (np.log(stimuli) - np.log(0.05) - shift))
    hits = random.random(len(names)) < guess + (1 - guess - lapse) * rise
    return stimuli, hits, names, random.random(len(names)) < guess, names


def find_truth(spread, slope=3.0, guess=0.05, lapse=0.05):
    """The stimulus at which the observers find a half, over all patients, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)

    def exceed(x):
        rise = stats.logistic.cdf(slope * (x - np.log(0.05) - spread * nodes))
        return weights @ (guess + (1 - guess - lapse) * rise) / weights.sum() - 0.5

    return np.exp(optimize.brentq(exceed, -9, 3))


def test_derivatives_are_those_of_the_curve():
    parameters = np.array([-3.1, 0.9, 0.07, 0.11])
    x = np.log(GRID)
    _, derivatives = psychometric._compute_curve(parameters, x)
    for number in range(4):
        step = np.eye(4)[number] * 1e-6
        up, down = (psychometric._compute_curve(parameters + s, x)[0] for s in (step, -step))
        np.testing.assert_allclose(derivatives[:, number], (up - down) / 2e-6, atol=1e-6)


def test_a_curve_is_a_half_at_its_threshold_and_ends_at_guess_and_lapse():
    curve = psychometric.Psychometric(0.05, 0, 1, 4.0, 0.1, 0.2, 0.95, 9, 1.0)
    np.testing.assert_allclose(curve.predict([1e-9, 0.05, 1e9]), [0.1, 0.5, 0.8], atol=1e-6)


def test_many_observations_give_the_observer_back():
    curve = psychometric.fit(*observe(0, patients=400, pairs=50), interval=False)
    assert curve.threshold == pytest.approx(0.05, rel=0.03)
    assert curve.slope == pytest.approx(3.0, rel=0.1)
    assert curve.guess == pytest.approx(0.05, abs=0.01)
    assert curve.lapse == pytest.approx(0.05, abs=0.02)
    assert curve.inflation == pytest.approx(1.0, abs=0.2)


def compute_inflation(curve, stimuli, hits, names, blanks, blank_names):
    """The sandwich of the patients' scores over the inverse information, by differences."""
    parameters = np.array([np.log(curve.threshold), np.log(curve.slope), curve.guess, curve.lapse])

    def predict(values):
        threshold, slope, guess, lapse = values
        other = dataclasses.replace(
            curve, threshold=np.exp(threshold), slope=np.exp(slope), guess=guess, lapse=lapse
        )
        return np.append(other.predict(stimuli), np.full(len(blanks), guess))

    p = predict(parameters)
    steps = np.eye(4) * 1e-5
    slopes = np.stack([(predict(parameters + s) - predict(parameters - s)) / 2e-5 for s in steps])
    seen = np.append(hits, blanks)
    everybody = np.append(names, blank_names)
    information = slopes / (p * (1 - p)) @ slopes.T
    scores = slopes * (seen - p) / (p * (1 - p))
    of_patients = np.stack([scores[:, everybody == name].sum(1) for name in np.unique(everybody)])
    count = len(of_patients)
    inverse = np.linalg.inv(information)
    sandwich = inverse @ (of_patients.T @ of_patients) @ inverse * count / (count - 1)
    return sandwich[0, 0] / inverse[0, 0]


@pytest.mark.parametrize("are_clustered", [False, True])
def test_the_inflation_counts_the_blanks_of_each_patient(are_clustered):
    stimuli, hits, names, blanks, _ = observe(1, guess=0.2)
    if are_clustered:  # some patients have something in every blank, the others in none
        blanks = names % 5 == 0
    curve = psychometric.fit(stimuli, hits, names, blanks, names)
    expected = compute_inflation(curve, stimuli, hits, names, blanks, names)
    assert curve.inflation == pytest.approx(expected, rel=0.01)


def test_thresholds_beyond_what_was_tested_are_not_made_up():
    stimuli = np.tile(GRID, 40)
    names = np.repeat(np.arange(40), 5)
    blind = psychometric.fit(stimuli, np.zeros(200), names, np.zeros(200), names)
    assert blind.threshold == blind.high == np.inf and blind.low == pytest.approx(0.2, rel=0.01)
    sharp = psychometric.fit(stimuli, np.ones(200), names, np.zeros(200), names)
    assert sharp.threshold == sharp.low == 0 and sharp.high == pytest.approx(0.0125, rel=0.01)
    assert np.isnan(blind.predict([0.1])).all()


def test_few_patients_have_no_interval():
    curve = psychometric.fit(*observe(2, patients=5, pairs=40))
    assert np.isfinite(curve.threshold) and np.isnan([curve.low, curve.high]).all()


@pytest.mark.parametrize(
    ("stimuli", "reason"), [([0.1, 0.0], "above 0"), ([0.1, 0.1], "two different")]
)
def test_what_can_not_be_fitted(stimuli, reason):
    with pytest.raises(ValueError, match=reason):
        psychometric.fit(stimuli, [0, 1], ["a", "b"])


def count_covered(repeats, spread):
    truth = find_truth(spread)
    curves = [psychometric.fit(*observe([0, seed], spread=spread)) for seed in range(repeats)]
    return sum(curve.low <= truth <= curve.high for curve in curves) / repeats


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_intervals_hold_the_threshold(spread):
    # 20 intervals of 95 %: fewer than 16 happen once in 400 times
    assert count_covered(20, spread) >= 0.8


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_intervals_hold_the_threshold_as_often_as_they_say(spread):
    assert 0.93 <= count_covered(200, spread) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 13, 14, 23, 33, 51])
def test_hardly_any_hits_have_an_interval_too(seed):
    """Searches from different starts end in different places here; the interval must not break."""
    random = np.random.default_rng(seed)
    contrasts = np.repeat([0.02, 0.04, 0.08, 0.16, 0.32], 16)
    patients = random.integers(0, 20, 80).astype(str)
    threshold = np.log(random.choice([0.1, 0.3, 0.5]))
    chance = 0.05 + 0.9 / (1 + np.exp(-3 * (np.log(contrasts) - threshold)))
    chance = np.clip(chance * random.choice([0.3, 0.6, 1.0]), 0, 1)
    hits = random.random(80) < chance
    found = psychometric.fit(contrasts, hits, patients, random.random(80) < 0.05, patients)
    assert found.low <= found.threshold <= found.high
