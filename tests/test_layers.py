"""SampleNormalization against numpy, Keras's BatchNormalization at batch 1, and itself on its two paths."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo.layers import SampleNormalization

EPSILON = 1e-3


def normalised(x, gamma, beta, epsilon=EPSILON):
    """The definition, in float64, one sample and one channel at a time."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    for b in range(x.shape[0]):
        for c in range(x.shape[3]):
            values = x[b, :, :, c]
            y[b, :, :, c] = gamma[c] * (values - values.mean()) / np.sqrt(((values - values.mean()) ** 2).mean() + epsilon) + beta[c]
    return y


def noise(*shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 2 + 1).astype(np.float32)


def layer(channels, **kwargs):
    """A built layer whose gamma and beta differ from channel to channel."""
    norm = SampleNormalization(**kwargs)
    norm.build((None, None, None, channels))
    norm.gamma.assign(np.linspace(0.5, 2, channels))
    norm.beta.assign(np.linspace(-1, 1, channels))
    return norm


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1), (16, 2)])
def test_equals_the_definition(batch, size):
    norm, x = layer(5), noise(batch, *size, 5)
    np.testing.assert_allclose(norm(x), normalised(x, norm.gamma.numpy(), norm.beta.numpy()), rtol=1e-5, atol=1e-5)


def test_by_hand():
    x = np.array([1, 2, 3, 6], np.float32).reshape(1, 2, 2, 1)  # mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
    norm = layer(1, epsilon=0.5)
    norm.gamma.assign([4.0])
    norm.beta.assign([10.0])
    expected = np.array([6, 8, 10, 16], np.float32).reshape(1, 2, 2, 1)  # 10 + 4 * (x - 3) / sqrt(4)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-6)
    np.testing.assert_allclose(norm(np.concatenate([x, x * 7]))[:1], expected, rtol=1e-6)


def test_a_sample_alone_and_among_others_gets_the_same_answer():
    norm, x = layer(6), noise(4, 8, 8, 6)
    together = norm(x)
    for i in range(4):
        np.testing.assert_allclose(norm(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)
    mates = np.concatenate([x[:1], 1000 * noise(2, 8, 8, 6, seed=1)])
    np.testing.assert_array_equal(norm(mates)[0], together[0])


def test_an_unknown_batch_size_in_a_graph_gets_the_same_answer():
    norm, x = layer(6), noise(1, 8, 8, 6)
    unknown = tf.function(norm, input_signature=[tf.TensorSpec([None, None, None, 6])])
    np.testing.assert_allclose(unknown(x), norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_equals_batch_normalization_in_training_at_batch_1(shift):
    norm, batch_norm, x = layer(6), keras.layers.BatchNormalization(epsilon=EPSILON), noise(1, 8, 8, 6) + shift
    batch_norm.build(x.shape)
    batch_norm.gamma.assign(norm.gamma)
    batch_norm.beta.assign(norm.beta)
    tolerance = 1e-5 * (1 + shift)
    np.testing.assert_allclose(norm(x), batch_norm(x, training=True), rtol=tolerance, atol=tolerance)


def test_the_result_ignores_scale_and_offset_of_the_input():
    norm, x = layer(3, epsilon=1e-12), noise(2, 16, 16, 3)
    np.testing.assert_allclose(norm(7 * x - 20), norm(x), rtol=1e-3, atol=1e-4)


def test_a_constant_image_is_beta_and_stays_finite():
    norm = layer(3)
    for batch in (1, 2):
        x = tf.ones([batch, 4, 4, 3]) * 5
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x)
        np.testing.assert_allclose(y, np.broadcast_to(norm.beta.numpy(), y.shape), atol=1e-5)
        assert np.isfinite(tape.gradient(y, x)).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_against_central_differences(batch):
    norm, x, weight = layer(2), noise(batch, 3, 4, 2), noise(batch, 3, 4, 2, seed=1)
    gamma, beta = norm.gamma.numpy().astype(np.float64), norm.beta.numpy().astype(np.float64)
    arguments = [x.astype(np.float64), gamma, beta]

    def numeric(which, step=1e-5):
        gradient = np.zeros_like(arguments[which])
        for index in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in arguments]
                moved[which][index] += sign * step
                ends.append((normalised(*moved) * weight).sum())
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        return gradient

    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(norm(inputs) * weight)
    found = tape.gradient(total, [inputs, norm.gamma.value, norm.beta.value])
    for which, gradient in enumerate(found):
        np.testing.assert_allclose(gradient, numeric(which), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_under_mixed_precision_dtype_out_is_dtype_in(policy, tolerance, batch):
    exact, norm = layer(4), layer(4, dtype=policy)
    x = tf.cast(noise(batch, 8, 8, 4), norm.compute_dtype)
    with tf.GradientTape() as tape:
        y = norm(x)
        total = tf.reduce_sum(y * y)
    assert y.dtype == x.dtype == norm.compute_dtype
    assert norm.gamma.dtype == norm.beta.dtype == "float32"
    np.testing.assert_allclose(tf.cast(y, tf.float32), exact(tf.cast(x, tf.float32)), rtol=tolerance, atol=tolerance)
    gradients = tape.gradient(total, [norm.gamma.value, norm.beta.value])
    assert all(g.dtype == tf.float32 and np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("batch", [1, 2])
def test_float16_statistics_do_not_overflow(batch):
    x = np.full((batch, 32, 32, 1), 300, np.float16)  # 300 ** 2 is more than float16 holds
    x[:, ::2] = -300
    norm = layer(1, dtype="mixed_float16")
    norm.gamma.assign([1.0])
    norm.beta.assign([0.0])
    np.testing.assert_allclose(norm(x), np.sign(x), rtol=1e-3)


def test_weights_start_near_one_and_at_zero_and_are_trained():
    norm = SampleNormalization()
    norm.build((None, 8, 8, 10_000))
    assert abs(norm.gamma.numpy().mean() - 1) < 1e-3 and abs(norm.gamma.numpy().std() - 0.02) < 1e-3
    assert not norm.beta.numpy().any()
    assert len(norm.trainable_variables) == len(norm.variables) == 2


def test_survives_serialisation():
    norm = layer(3, epsilon=0.1, name="of_mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(norm))
    assert isinstance(copy, SampleNormalization) and copy.get_config() == norm.get_config() and copy.epsilon == 0.1
    copy.set_weights(norm.get_weights())
    x = noise(2, 8, 8, 3)
    np.testing.assert_array_equal(copy(x), norm(x))
