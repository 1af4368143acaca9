"""Losses against hand-computed numbers, and at the ends of the range."""

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.nn.losses import dice_loss, l1, l2_norm, log_fake, log_real, mean_square

LN3 = float(np.log(3))  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4


def logits(*samples):
    """Samples of as many logits each, as float32 [batch, 1, n, 1]."""
    return tf.constant(samples, tf.float32)[:, tf.newaxis, :, tf.newaxis]


HALF = np.log(1 / 2)


@pytest.mark.parametrize(
    ("average", "values", "real", "fake"),
    [
        ("responses", ([0, 0],), HALF, HALF),
        ("responses", ([LN3, -LN3],), HALF, HALF),  # P = (3/4 + 1/4) / 2
        ("responses", ([LN3, 0],), np.log(5 / 8), np.log(3 / 8)),  # P = (3/4 + 1/2) / 2
        ("responses", ([LN3], [-LN3]), np.log(3 / 16) / 2, np.log(3 / 16) / 2),  # two samples
        ("responses", ([LN3, 0], [0, 0]), np.log(5 / 16) / 2, np.log(3 / 16) / 2),
        ("losses", ([0, 0],), HALF, HALF),
        ("losses", ([LN3, -LN3],), np.log(3 / 16) / 2, np.log(3 / 16) / 2),
        ("losses", ([LN3, 0],), np.log(3 / 8) / 2, np.log(1 / 8) / 2),
        ("losses", ([LN3, 0], [0, 0]), np.log(3 / 32) / 4, np.log(1 / 32) / 4),
    ],
)
def test_losses_by_hand(average, values, real, fake):
    np.testing.assert_allclose(log_real(logits(*values), average), real, rtol=1e-6)
    np.testing.assert_allclose(log_fake(logits(*values), average), fake, rtol=1e-6)


@pytest.mark.parametrize("average", ["responses", "losses"])
@pytest.mark.parametrize("loss", [log_real, log_fake])
@pytest.mark.parametrize(
    ("values", "expected"),
    [([1e4, 1e4], 0), ([-1e4, -1e4], -1e4), ([1e4, -1e4], None), ([-88.5, -104], None)],
)
def test_values_and_gradients_are_stable_at_the_ends(loss, average, values, expected):
    x = logits(values) if loss is log_real else -logits(values)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x, average)
    gradient = tape.gradient(value, x)
    assert np.isfinite(gradient).all() and np.abs(gradient).sum() <= 1 + 1e-5
    if values == [1e4, -1e4]:
        expected = HALF if average == "responses" else -5e3
    if expected is not None:
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_dice_loss_by_hand_and_of_empty_masks():
    target = np.zeros((2, 2, 2, 1), np.float32)
    target[0, 0] = 1
    output = np.full((2, 2, 2, 1), 0.5, np.float32)
    # First sample: 1 - (2 * 1 + 1) / (2 + 2 + 1); second, an empty target: 1 - 1 / (0 + 2 + 1).
    assert float(dice_loss(target, output)) == pytest.approx(((1 - 3 / 5) + (1 - 1 / 3)) / 2)
    for mask in (np.zeros((1, 4, 4, 1), np.float32), np.ones((1, 4, 4, 1), np.float32)):
        assert float(dice_loss(mask, mask)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(target[:1], 1 - target[:1], smooth=0.0)) == pytest.approx(1)


TARGET = np.array([[0, 1, 1, 0], [1, 1, 1, 1]], np.float32).reshape(2, 2, 2, 1)
# differences 1 0 2 2 | 0 0 0 3
OUTPUT = np.array([[1, 1, -1, 2], [1, 1, 1, 4]], np.float32).reshape(2, 2, 2, 1)


@pytest.mark.parametrize(
    ("loss", "value", "at_zero"), [(l1, 8 / 8, 0), (mean_square, 18 / 8, 0), (l2_norm, 3, 1e-6)]
)
def test_distances_by_hand_and_at_zero(loss, value, at_zero):
    np.testing.assert_allclose(loss(TARGET, OUTPUT), value, rtol=1e-6)
    np.testing.assert_allclose(loss(OUTPUT, TARGET), value, rtol=1e-6)
    output = tf.constant(TARGET)
    with tf.GradientTape() as tape:
        tape.watch(output)
        nothing = loss(TARGET, output)
    np.testing.assert_allclose(nothing, at_zero, rtol=1e-3)
    np.testing.assert_array_equal(tape.gradient(nothing, output), np.zeros_like(TARGET))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_losses_are_computed_in_float32(dtype):
    x = tf.cast(logits([8.0, -8.0, 3.0]), dtype)
    for loss in (log_real, log_fake):
        for average in ("responses", "losses"):
            found, exact = (loss(each, average) for each in (x, tf.cast(x, tf.float32)))
            assert found.dtype == tf.float32 and float(found) == pytest.approx(float(exact), 1e-6)
    # 90,000 elements: their sum is beyond float16
    large = tf.fill([1, 300, 300, 1], tf.cast(2.0, dtype))
    for distance, value in ((l1, 2), (mean_square, 4), (l2_norm, 600)):
        result = distance(tf.zeros_like(large), large)
        assert result.dtype == tf.float32 and float(result) == pytest.approx(value, 1e-6)
