"""Normalisations against their definitions in NumPy and against Keras's layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.nn.test_layers import noise
from tfmammo.nn.normalization import BatchNormalization, GroupNormalization, SampleNormalization

EPSILON = 1e-3


def normalised(x, gamma, beta, epsilon=EPSILON):
    """The definition, in float64, one sample and one channel at a time."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    for b in range(x.shape[0]):
        for c in range(x.shape[3]):
            values = x[b, :, :, c]
            y[b, :, :, c] = (
                gamma[c]
                * (values - values.mean())
                / np.sqrt(((values - values.mean()) ** 2).mean() + epsilon)
                + beta[c]
            )
    return y


def layer(channels, **kwargs):
    """A built layer whose gamma and beta differ from channel to channel."""
    norm = SampleNormalization(**kwargs)
    norm.build((None, None, None, channels))
    norm.gamma.assign(np.linspace(0.5, 2, channels))
    norm.beta.assign(np.linspace(-1, 1, channels))
    return norm


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (16, 2)])
def test_equals_the_definition(batch, size):
    norm = layer(5)
    x = noise(batch, *size, 5)
    expected = normalised(x, norm.gamma.numpy(), norm.beta.numpy())
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-5)
    unknown = tf.function(norm, input_signature=[tf.TensorSpec([None, None, None, 5])])
    np.testing.assert_allclose(unknown(x), expected, rtol=1e-5, atol=1e-5)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(norm))
    assert type(copy) is SampleNormalization and copy.get_config() == norm.get_config()


def test_a_sample_alone_and_among_others_gets_the_same_answer():
    norm = layer(6)
    x = noise(4, 8, 8, 6)
    together = norm(x)
    for i in range(4):
        np.testing.assert_allclose(norm(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)
    mates = np.concatenate([x[:1], 1000 * noise(2, 8, 8, 6, seed=1)])
    np.testing.assert_array_equal(norm(mates)[0], together[0])


KINDS = {
    "batch": (BatchNormalization, keras.layers.BatchNormalization),
    "group": (GroupNormalization, keras.layers.GroupNormalization),
}
USUAL = [{"shape": shape} for shape in ((4, 6, 4, 4), (1, 2, 1, 4), (2, 1, 1, 4), (1, 1, 1, 4))]
UNUSUAL = [{"axis": 1}, {"scale": False}, {"center": False}, {"shape": (7, 4)}]
OF_BATCHES = [{"synchronized": True}, {"mask": True}, {"trainable": False}]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for kind in KINDS for options in USUAL + UNUSUAL]
    + [("batch", options) for options in OF_BATCHES],
)
def test_a_fused_normalisation_is_keras_own_with_its_gradients_and_averages(kind, options, dtype):
    options = dict(options)
    shape = options.pop("shape", (4, 4, 5, 4))
    given = {"training": True} if kind == "batch" else {}
    if options.pop("mask", False):
        given["mask"] = tf.constant(np.random.default_rng(1).random(shape[:3]) < 0.6)
    x = tf.constant(noise(*shape) * 3 + 2)
    found = []
    for make in KINDS[kind]:
        norm = make(dtype=dtype, **({"groups": 2} if kind == "group" else {}), **options)
        norm.build((None, *shape[1:]))
        random = np.random.default_rng(2)
        norm.set_weights([random.uniform(0.5, 2, w.shape) for w in norm.get_weights()])

        def differentiate(x, norm=norm):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = norm(x, **given)
                loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32)))
            return y, *tape.gradient(loss, [x, *norm.trainable_variables])

        if len(shape) == 4:  # of an unknown number of maps
            spec = tf.TensorSpec([None, *shape[1:]])
            differentiate = tf.function(differentiate, input_signature=[spec])
        y, *gradients = differentiate(x)
        assert y.dtype == norm.compute_dtype
        found.append([y, *gradients, *norm.get_weights()])
        found[-1] += [norm(x, training=False)] if kind == "batch" else []
    tolerance = 5e-5 if dtype == "float32" else 0.1
    for ours, theirs in zip(*found, strict=True):
        ours, theirs = (tf.cast(value, tf.float32) for value in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_group_normalization_of_flat_maps_is_beta_whatever_their_level():
    """E[x^2] - E[x]^2 is below 0 for some of these levels, by rounding."""
    x = np.ones((9, 7, 5, 4), np.float32) * np.linspace(100, 1000, 9)[:, None, None, None]
    norm = GroupNormalization(2)
    norm.build(x.shape)
    norm.beta.assign([0.0, 1.0, -2.0, 3.0])
    np.testing.assert_allclose(norm(x.astype(np.float32)), np.zeros_like(x) + norm.beta, atol=0.01)


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_against_central_differences(batch):
    norm = layer(2)
    x = tf.constant(noise(batch, 3, 4, 2))
    weight = noise(batch, 3, 4, 2, seed=1)
    arguments = [a.numpy().astype(np.float64) for a in (x, norm.gamma.value, norm.beta.value)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(norm(x) * weight)
    found = tape.gradient(total, [x, norm.gamma.value, norm.beta.value])
    for which, gradient in enumerate(found):
        for index in np.ndindex(*gradient.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in arguments]
                moved[which][index] += step
                ends.append((normalised(*moved) * weight).sum())
            expected = (ends[0] - ends[1]) / 2e-5
            assert float(gradient[index]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2)]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_under_mixed_precision_dtype_out_is_dtype_in(policy, tolerance, batch):
    norm = layer(4, dtype=policy)
    x = tf.cast(noise(batch, 8, 8, 4), norm.compute_dtype)
    with tf.GradientTape() as tape:
        y = norm(x)
        total = tf.reduce_sum(y * y)
    assert y.dtype == x.dtype == norm.compute_dtype
    expected = layer(4)(tf.cast(x, tf.float32))
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, rtol=tolerance, atol=tolerance)
    gradients = tape.gradient(total, [norm.gamma.value, norm.beta.value])
    assert all(g.dtype == tf.float32 and np.isfinite(g).all() for g in gradients)
    # 300 ** 2 is more than float16 holds
    large = np.where(np.arange(32) % 2, 300, -300).astype(np.float16)
    large = np.broadcast_to(large[None, :, None, None], (batch, 32, 32, 4))
    norm.set_weights([np.ones(4), np.zeros(4)])
    np.testing.assert_allclose(tf.cast(norm(large), tf.float32), np.sign(large), rtol=1e-2)
