"""Each layer against NumPy: normalisations, self-attention, random scalars."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.two_cpus import run_on_two_cpus
from tfmammo.nn.layers import (
    BatchNormalization,
    GroupNormalization,
    RandomScalarMap,
    SampleNormalization,
    SelfAttention,
    SpectralNormalization,
    patch_seeds,
    seeded_dropout,
)

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
    norm = layer(5)
    x = noise(batch, *size, 5)
    np.testing.assert_allclose(
        norm(x), normalised(x, norm.gamma.numpy(), norm.beta.numpy()), rtol=1e-5, atol=1e-5
    )


def test_by_hand():
    # mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
    x = np.array([1, 2, 3, 6], np.float32).reshape(1, 2, 2, 1)
    norm = layer(1, epsilon=0.5)
    norm.gamma.assign([4.0])
    norm.beta.assign([10.0])
    # 10 + 4 * (x - 3) / sqrt(4)
    expected = np.array([6, 8, 10, 16], np.float32).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-6)
    np.testing.assert_allclose(norm(np.concatenate([x, x * 7]))[:1], expected, rtol=1e-6)


def test_a_sample_alone_and_among_others_gets_the_same_answer():
    norm = layer(6)
    x = noise(4, 8, 8, 6)
    together = norm(x)
    for i in range(4):
        np.testing.assert_allclose(norm(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)
    mates = np.concatenate([x[:1], 1000 * noise(2, 8, 8, 6, seed=1)])
    np.testing.assert_array_equal(norm(mates)[0], together[0])


def test_an_unknown_batch_size_in_a_graph_gets_the_same_answer():
    norm = layer(6)
    x = noise(1, 8, 8, 6)
    unknown = tf.function(norm, input_signature=[tf.TensorSpec([None, None, None, 6])])
    np.testing.assert_allclose(unknown(x), norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_equals_batch_normalization_in_training_at_batch_1(shift):
    norm = layer(6)
    batch_norm = keras.layers.BatchNormalization(epsilon=EPSILON)
    x = noise(1, 8, 8, 6) + shift
    batch_norm.build(x.shape)
    batch_norm.gamma.assign(norm.gamma)
    batch_norm.beta.assign(norm.beta)
    tolerance = 1e-5 * (1 + shift)
    np.testing.assert_allclose(
        norm(x), batch_norm(x, training=True), rtol=tolerance, atol=tolerance
    )


def two_batch_normalizations(dtype="float32", momentum=0.9):
    """Ours and Keras's of equal weights."""
    pair = [
        kind(momentum=momentum, dtype=dtype)
        for kind in (BatchNormalization, keras.layers.BatchNormalization)
    ]
    for norm in pair:
        norm.build((None, None, None, 3))
        norm.set_weights(
            [
                np.array(values, np.float32)
                for values in ((1, 2, -0.5), (0, 1, 3), (0.1, -1, 0), (1, 4, 0.5))
            ]
        )
    return pair


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (1, 2, 1, 3), (2, 1, 1, 3), (1, 1, 1, 3)])
def test_batch_normalization_is_keras_own_with_its_gradients_and_averages(shape):
    found = []
    for norm in two_batch_normalizations():
        x = tf.constant(noise(*shape) * 3 + 2)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, training=True)
            loss = tf.reduce_sum(tf.sin(y))
        found.append(
            [
                y,
                *tape.gradient(loss, [x, *norm.trainable_variables]),
                *norm.get_weights(),
                norm(x, training=False),
            ]
        )
    for ours, keras_own in zip(*found, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-5, atol=2e-5)


def group_normalised(x, groups, gamma, beta, epsilon=EPSILON):
    """The definition, in float64, one sample and one group at a time."""
    y = np.asarray(x, np.float64).copy()
    for sample in y:
        for group in np.split(sample, groups, axis=-1):  # views
            group[:] = (group - group.mean()) / np.sqrt(group.var() + epsilon)
    return y * gamma + beta


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("shift", "tolerance"), [(0.0, 1e-5), (30.0, 1e-3)])
def test_group_normalization_is_its_definition(groups, shift, tolerance):
    x = noise(3, 5, 4, 6) * np.arange(1, 7, dtype=np.float32) + shift
    gamma, beta = np.array([1, 2, -0.5, 1, 0.1, 3]), np.array([0, 1, 3, -1, 0, 0.5])
    norm = GroupNormalization(groups)
    norm.build(x.shape)
    norm.set_weights([gamma.astype(np.float32), beta.astype(np.float32)])
    expected = group_normalised(x, groups, gamma, beta)
    np.testing.assert_allclose(norm(x), expected, rtol=tolerance, atol=tolerance)


def test_group_normalization_of_flat_maps_is_beta_whatever_their_level():
    """E[x^2] - E[x]^2 is below 0 for some of these levels, by rounding."""
    x = np.ones((9, 7, 5, 4), np.float32) * np.linspace(100, 1000, 9)[:, None, None, None]
    norm = GroupNormalization(2)
    norm.build(x.shape)
    norm.beta.assign([0.0, 1.0, -2.0, 3.0])
    np.testing.assert_allclose(norm(x.astype(np.float32)), np.zeros_like(x) + norm.beta, atol=0.01)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        *(({}, shape) for shape in ((4, 6, 5, 4), (1, 2, 1, 4), (2, 1, 1, 4))),
        *(({option: False}, (4, 6, 5, 4)) for option in ("scale", "center")),
        ({"axis": 1}, (4, 4, 5, 3)),
        ({}, (7, 4)),
    ],
)
def test_group_normalization_is_keras_own_with_its_gradients(options, shape, dtype):
    found = []
    for kind in (GroupNormalization, keras.layers.GroupNormalization):
        norm = kind(2, dtype=dtype, **options)
        x = tf.constant(noise(*shape) * 3 + 2)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x)
            loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32)))
        found.append([y, *tape.gradient(loss, [x, *norm.trainable_variables])])
        assert y.dtype == norm.compute_dtype
    tolerance = 5e-5 if dtype == "float32" else 0.1
    for ours, keras_own in zip(*found, strict=True):
        ours, keras_own = (tf.cast(value, tf.float32) for value in (ours, keras_own))
        np.testing.assert_allclose(ours, keras_own, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "shape", "mask"),
    [
        ({"axis": 1}, (4, 3, 5, 3), None),
        ({"scale": False}, (4, 6, 5, 3), None),
        ({"center": False}, (4, 6, 5, 3), None),
        ({"synchronized": True}, (4, 6, 5, 3), None),
        ({}, (7, 3), None),
        ({}, (2, 4, 5, 3), (2, 4, 5)),
    ],
)
def test_batch_normalization_leaves_what_is_unusual_to_keras(options, shape, mask):
    x = tf.constant(noise(*shape) * 3 + 2)
    given = (
        {} if mask is None else {"mask": tf.constant(np.random.default_rng(1).random(mask) < 0.6)}
    )
    found = []
    for kind in (BatchNormalization, keras.layers.BatchNormalization):
        norm = kind(**options)
        y = norm(x, training=True, **given)
        found.append([y, *norm.get_weights(), norm(x, training=False)])
    for ours, keras_own in zip(*found, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-5, atol=2e-5)


def test_batch_normalization_of_an_unknown_number_of_maps_frozen_or_in_bfloat16():
    x = noise(4, 6, 5, 3)
    for norm, keras_own in (two_batch_normalizations(), two_batch_normalizations("mixed_bfloat16")):
        graph = tf.function(
            lambda x, norm=norm: norm(x, training=True),
            input_signature=[tf.TensorSpec([None, None, None, 3])],
        )
        kinds = {
            operation.type for operation in graph.get_concrete_function().graph.get_operations()
        }
        assert (
            "FusedBatchNormV3" in kinds
            and graph(x).dtype == keras_own(x, training=True).dtype == norm.compute_dtype
        )
        tolerance = 1e-5 if norm.compute_dtype == "float32" else 0.05
        for ours, theirs in zip(norm.get_weights(), keras_own.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    norm, keras_own = two_batch_normalizations()
    norm.trainable = keras_own.trainable = False
    before = norm.get_weights()
    np.testing.assert_allclose(norm(x, training=True), keras_own(x, training=True), rtol=1e-6)
    np.testing.assert_array_equal(norm.get_weights(), before)


def test_the_result_ignores_scale_and_offset_of_the_input():
    norm = layer(3, epsilon=1e-12)
    x = noise(2, 16, 16, 3)
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
    norm = layer(2)
    x = noise(batch, 3, 4, 2)
    weight = noise(batch, 3, 4, 2, seed=1)
    gamma = norm.gamma.numpy().astype(np.float64)
    beta = norm.beta.numpy().astype(np.float64)
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


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2)]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_under_mixed_precision_dtype_out_is_dtype_in(policy, tolerance, batch):
    exact = layer(4)
    norm = layer(4, dtype=policy)
    x = tf.cast(noise(batch, 8, 8, 4), norm.compute_dtype)
    with tf.GradientTape() as tape:
        y = norm(x)
        total = tf.reduce_sum(y * y)
    assert y.dtype == x.dtype == norm.compute_dtype
    assert norm.gamma.dtype == norm.beta.dtype == "float32"
    np.testing.assert_allclose(
        tf.cast(y, tf.float32), exact(tf.cast(x, tf.float32)), rtol=tolerance, atol=tolerance
    )
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
    assert (
        isinstance(copy, SampleNormalization)
        and copy.get_config() == norm.get_config()
        and copy.epsilon == 0.1
    )
    copy.set_weights(norm.get_weights())
    x = noise(2, 8, 8, 3)
    np.testing.assert_array_equal(copy(x), norm(x))


def spectral(shape=(3, 3, 4, 6), seed=0, **kwargs):
    """Build a SpectralNormalization around a convolution with a large random kernel."""
    layer = SpectralNormalization(keras.layers.Conv2D(shape[-1], shape[0], **kwargs))
    layer.build((None, None, None, shape[2]))
    layer.layer.kernel.assign(noise(*shape, seed=seed) * 3)
    return layer


def largest_singular_value(kernel):
    kernel = np.asarray(kernel, np.float64)
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (1, 1, 16, 2), (4, 4, 3, 1), (1, 1, 1, 5)])
def test_the_normalised_kernel_has_the_largest_singular_value_1(shape):
    layer = spectral(shape)
    for _ in range(60):
        layer.power_iteration()
    assert largest_singular_value(layer.normalized()) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(
        layer.normalized() * largest_singular_value(layer.layer.kernel),
        layer.layer.kernel,
        rtol=1e-3,
    )


def test_a_kept_kernel_is_shared_by_all_calls_and_its_gradient_is_theirs():
    layer = spectral()
    x = noise(1, 5, 5, 4)

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2) + tf.reduce_sum(tf.sin(layer(x[:, :3])))
        return tape.gradient(loss, layer.layer.kernel.value)

    apart = gradient()
    with tf.GradientTape() as tape, layer.cached_kernel():
        loss = tf.reduce_sum(layer(x) ** 2) + tf.reduce_sum(tf.sin(layer(x[:, :3])))
        before = layer(x)
        layer.layer.kernel.assign(layer.layer.kernel + 1)
        np.testing.assert_array_equal(layer(x), before)
    np.testing.assert_allclose(
        tape.gradient(loss, layer.layer.kernel.value), apart, rtol=1e-4, atol=1e-5
    )
    assert np.abs(layer(x) - before).max() > 0.01  # afterwards each call normalises anew
    with pytest.raises(KeyError), layer.cached_kernel():
        raise KeyError
    assert np.abs(layer(x) - before).max() > 0.01  # after a failure too


def test_threads_that_share_a_layer_keep_kernels_of_their_own(monkeypatch):
    # Replicas are traced in threads: what one of them keeps must not reach the other's calls.
    layer = spectral()
    x = noise(1, 5, 5, 4)
    own = threading.local()
    monkeypatch.setattr(layer, "normalized", lambda: tf.fill(layer.layer.kernel.shape, own.value))
    together = threading.Barrier(2, timeout=30)
    found = {}

    def replica(value):
        own.value = value
        with layer.cached_kernel():
            together.wait()
            found[value] = layer(x) - layer.layer.bias
            together.wait()

    threads = [threading.Thread(target=replica, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(found[2.0], 2 * found[1.0], rtol=1e-5)


def test_one_power_iteration_is_miyatos():
    layer = spectral()
    w = layer.layer.kernel.numpy().reshape(-1, 6).astype(np.float64).T
    u = layer.u.numpy().astype(np.float64)
    # algorithm 1, in the paper's letters: W is [outputs, everything else]
    v = w.T @ u / np.linalg.norm(w.T @ u)
    u = w @ v / np.linalg.norm(w @ v)
    layer.power_iteration()
    np.testing.assert_allclose(layer.u, u, rtol=1e-5)
    v = w.T @ u / np.linalg.norm(w.T @ u)
    np.testing.assert_allclose(layer.normalized(), layer.layer.kernel / (u @ w @ v), rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1, 50])
def test_the_gradient_is_orthogonal_to_the_kernel(iterations):
    layer = spectral()
    x = noise(2, 8, 8, 4)
    wanted = noise(2, 6, 6, 6, seed=1)
    for _ in range(iterations):
        layer.power_iteration()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) * wanted)
    gradient = tape.gradient(loss, layer.layer.kernel.value)
    product = float(tf.reduce_sum(gradient * layer.layer.kernel))
    assert (
        abs(product) < 1e-4 * float(tf.norm(gradient) * tf.norm(layer.layer.kernel))
        and float(tf.norm(gradient)) > 1
    )
    # dL/dW = (dL/dW_n - <dL/dW_n, W_n> v u') / sigma, Eq. 12 of the paper
    with tf.GradientTape() as tape:
        kernel = tf.constant(layer.normalized())
        tape.watch(kernel)
        loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "VALID") * wanted)
    plain = tape.gradient(loss, kernel).numpy().reshape(-1, 6).astype(np.float64)
    w = layer.layer.kernel.numpy().reshape(-1, 6).astype(np.float64)
    u = layer.u.numpy().astype(np.float64)
    u /= np.linalg.norm(u)
    sigma = np.linalg.norm(w @ u)
    v = w @ u / np.linalg.norm(w @ u)
    expected = (plain - (plain * w / sigma).sum() * np.outer(v, u)) / sigma
    np.testing.assert_allclose(
        gradient.numpy().reshape(-1, 6), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )


def test_calls_change_neither_the_kernel_nor_u():
    layer = spectral()
    x = noise(2, 8, 8, 4)
    before = layer.layer.kernel.numpy()
    u = layer.u.numpy()
    first = layer(x, training=True)
    second = layer(x, training=True)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(layer.layer.kernel, before)
    np.testing.assert_array_equal(layer.u, u)
    layer.power_iteration()
    assert np.abs(layer(x) - first).max() > 1e-3


def test_the_size_of_the_kernel_does_not_matter_and_the_bias_is_left_alone():
    layer = spectral()
    x = noise(2, 8, 8, 4)
    layer.layer.bias.assign(np.arange(6.0))
    small = layer(x)
    layer.layer.kernel.assign(layer.layer.kernel * 1000)
    np.testing.assert_allclose(layer(x), small, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        small,
        tf.nn.conv2d(x, layer.normalized(), 1, "VALID") + np.arange(6.0),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_dense_layer_is_normalised_too():
    layer = SpectralNormalization(keras.layers.Dense(3, use_bias=False))
    x = noise(5, 7)
    layer.build((None, 7))
    np.testing.assert_allclose(layer(x), x @ layer.normalized(), rtol=1e-5, atol=1e-5)
    assert len(layer.trainable_variables) == 1 and len(layer.variables) == 2


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2)]
)
def test_the_power_iteration_is_exact_under_mixed_precision(policy, tolerance):
    exact = spectral()
    keras.config.set_dtype_policy(policy)
    mixed = spectral()
    mixed.u.assign(exact.u)
    mixed.layer.kernel.assign(exact.layer.kernel * 1e4)  # beyond float16 where it is summed
    exact.layer.kernel.assign(exact.layer.kernel * 1e4)
    x = noise(2, 8, 8, 4)
    for layer in (exact, mixed):
        layer.power_iteration()
    np.testing.assert_array_equal(mixed.u, exact.u)
    np.testing.assert_array_equal(mixed.normalized(), exact.normalized())
    half = tf.cast(x, mixed.layer.compute_dtype)
    with tf.GradientTape() as tape:
        y = mixed(half)
        total = tf.reduce_sum(tf.cast(y, tf.float32))
    assert y.dtype == half.dtype and np.isfinite(y).all()
    np.testing.assert_allclose(tf.cast(y, tf.float32), exact(x), rtol=tolerance, atol=5 * tolerance)
    gradient = tape.gradient(total, mixed.layer.kernel.value)
    assert gradient.dtype == tf.float32 and np.isfinite(gradient).all()
    np.testing.assert_array_equal(mixed(x), exact(x))  # what comes in decides


def attended(x, f, g, h, v, gamma):
    """The paper's equations in float64, one pair of places at a time."""
    y = np.asarray(x, np.float64).copy()
    batch, rows, cols, channels = x.shape
    for b in range(batch):
        places = np.asarray(x[b], np.float64).reshape(-1, channels)
        for i in range(len(places)):
            s = np.array([(places[j] @ f) @ (places[i] @ g) for j in range(len(places))])
            weights = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
            seen = sum(weight * (place @ h) for weight, place in zip(weights, places, strict=True))
            y[b, i // cols, i % cols] += gamma * (seen @ v)
    return y


@pytest.mark.parametrize("is_spectral", [False, True])
def test_attention_equals_the_definition(is_spectral):
    layer = SelfAttention(is_spectral)
    x = noise(2, 3, 4, 16)
    layer(x)
    layer.gamma.assign(0.7)
    convolutions = (layer.f, layer.g, layer.h, layer.v)
    assert layer.normalized() == (list(convolutions) if is_spectral else [])
    kernels = [
        np.asarray(c.normalized() if is_spectral else c.kernel, np.float64)[0, 0]
        for c in convolutions
    ]
    assert [k.shape for k in kernels] == [(16, 2), (16, 2), (16, 2), (2, 16)]
    np.testing.assert_allclose(layer(x), attended(x, *kernels, 0.7), rtol=1e-4, atol=1e-4)


def test_attention_starts_as_the_identity_and_learns_its_gain():
    layer = SelfAttention()
    x = noise(2, 4, 4, 16)
    with tf.GradientTape() as tape:
        y = layer(x)
        loss = tf.reduce_sum(y**2)
    np.testing.assert_array_equal(y, x)
    assert float(layer.gamma) == 0 and layer.gamma.trainable and len(layer.trainable_variables) == 5
    assert abs(float(tape.gradient(loss, layer.gamma.value))) > 1e-3


def test_attention_stays_finite_in_float16():
    keras.config.set_dtype_policy("mixed_float16")
    layer = SelfAttention()
    x = tf.cast(noise(1, 32, 32, 16) * 1000, tf.float16)  # f . g is far beyond float16
    layer(x)
    layer.gamma.assign(1.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = tf.reduce_sum(tf.cast(y, tf.float32)) / 1e4
    assert (
        y.dtype == tf.float16
        and np.isfinite(y).all()
        and np.isfinite(tape.gradient(total, x)).all()
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_random_scalar_is_one_value_all_over(dtype):
    x = tf.cast(noise(3, 4, 5, 2), dtype)
    scalars = tf.constant([-1.0, 0.25, 0.5])
    y = RandomScalarMap()(x, scalars)
    assert y.shape == (3, 4, 5, 3) and y.dtype == dtype
    np.testing.assert_array_equal(y[..., :2], x)
    np.testing.assert_array_equal(
        y[..., 2], np.broadcast_to(scalars.numpy()[:, None, None], (3, 4, 5))
    )


def test_the_layers_of_the_contextual_gan_survive_serialisation():
    x = noise(2, 8, 8, 16)
    for layer in (
        SpectralNormalization(keras.layers.Conv2D(3, 3)),
        SelfAttention(True),
        RandomScalarMap(name="of_mine"),
    ):
        arguments = (x, np.ones(2, np.float32)) if isinstance(layer, RandomScalarMap) else (x,)
        expected = layer(*arguments)
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
        copy(*arguments)
        copy.set_weights(layer.get_weights())
        np.testing.assert_array_equal(copy(*arguments), expected)


REPLICAS = """
from tfmammo.nn.layers import SpectralNormalization
from tfmammo.nn.optimization import Adam, build, minimize

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)

def train(strategy, share):
    with strategy.scope():
        layer = SpectralNormalization(keras.layers.Dense(3))
        network = keras.Sequential([keras.Input((5,)), layer])
        layer.layer.kernel.assign(np.random.default_rng(1).normal(size=(5, 3)))
        layer.u.assign([1.0, 2.0, 3.0])
        optimizer = build(Adam(0.05), network)

    def step(x):
        layer.power_iteration()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((network(x) - 1.0) ** 2)
        minimize(loss, network, optimizer, tape)

    run = tf.function(lambda x: strategy.run(step, args=(x,)))
    for _ in range(10):
        run(strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(X[share * context.replica_id_in_sync_group:][:share])))
    local = strategy.experimental_local_results
    return [[v.numpy().tolist() for v in local(w.value)] for w in (layer.u, layer.layer.kernel)]

mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([train(mirrored, 2), train(tf.distribute.OneDeviceStrategy("CPU:0"), 4)]))
"""  # noqa: E501


CONTEXTUAL = """
from tfmammo.models.contextual import Contextual, ContextualConfig

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = Contextual(ContextualConfig(filters=(2, 2), discriminator_factor=2, attention=8, start=16, border=2), 16)
batch = {"image": tf.random.uniform([6, 16, 16, 1], seed=1), "label": tf.constant([0, 1, 2] * 2)}
step = tf.function(lambda: strategy.run(model.train_step, args=(batch,)))
graph = step.get_concrete_function().graph
place = lambda operation: "1" if "replica_1" in operation.name else "0"

def source(operation):
    while operation.type in ("Cast", "Identity", "Reshape"):
        operation = operation.inputs[0].op
    return operation

kernels = [(place(op), place(source(op.inputs[1].op))) for op in graph.get_operations() if op.type == "Conv2D"]
step()
networks = [w.value for network in model.networks.values() for w in network.trainable_variables]
alike = [bool(np.array_equal(*strategy.experimental_local_results(value))) for value in networks]
print(json.dumps([kernels, alike]))
"""  # noqa: E501


BATCH_STATISTICS = """
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.contextual import perturbation
from tfmammo.nn.optimization import build

rng = np.random.default_rng(1)
MASK = rng.integers(0, 2, (4, 8, 8, 1)).astype(np.float32)
IMAGE = (rng.random((4, 8, 8, 1)) * np.reshape([0.1, 0.4, 0.7, 1], (4, 1, 1, 1))).astype(np.float32)

def train(strategy, share):
    with strategy.scope():
        cgan = CGAN(CGANConfig(filters=(4, 8, 8), discriminator_filters=4, discriminator_strided=1, dropout=0, momentum=0.7), 8)
        cgan.optimizers = {name: build(keras.optimizers.SGD(0.01), network) for name, network in cgan.networks.items()}
        rng = np.random.default_rng(0)
        for network in cgan.networks.values():
            for weight in network.trainable_variables:
                weight.assign((rng.normal(0, 0.3, weight.shape) + (weight.name == "gamma")).astype(np.float32))

    def take(array):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[share * context.replica_id_in_sync_group:][:share]))

    def step(batch):
        output = cgan.generator(batch["image"], training=True)
        ones = tf.ones_like(output)
        delta = perturbation(batch["image"], ones[:, 0, 0, 0], ones)
        return output, delta, cgan.train_step(batch)

    run = tf.function(lambda batch: strategy.run(step, args=(batch,)))
    local = strategy.experimental_local_results
    steps = []
    for _ in range(3):
        output, delta, losses = run({"image": take(IMAGE), "mask": take(MASK)})
        steps.append([*(tf.concat(local(value), 0).numpy().tolist() for value in (output, delta)),
                      {name: float(np.mean(local(loss))) for name, loss in losses.items()}])
    copies = [[w.numpy().tolist() for w in local(variable.value)] for network in cgan.networks.values() for variable in network.variables]
    moving = sum("moving" in variable.name for network in cgan.networks.values() for variable in network.variables)
    return {"steps": steps, "copies": copies, "moving": moving}

mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([train(mirrored, 2), train(tf.distribute.OneDeviceStrategy("CPU:0"), 4)]))
"""  # noqa: E501


@pytest.mark.long
def test_two_replicas_of_the_cgan_share_the_statistics_of_their_batch(tmp_path):
    two, one = run_on_two_cpus(BATCH_STATISTICS, tmp_path)
    assert two["moving"] == one["moving"] == 2 * (1 + 2 + 1)
    for ours, alone in zip(two["steps"], one["steps"], strict=True):
        for values, expected in zip(ours[:2], alone[:2], strict=True):
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
        assert ours[2] == pytest.approx(alone[2], rel=1e-5)
    # SGD's weights are sums of gradients
    for copies, (alone,) in zip(two["copies"], one["copies"], strict=True):
        np.testing.assert_array_equal(*copies)
        np.testing.assert_allclose(copies[0], alone, rtol=0, atol=1e-5)


@pytest.mark.long
def test_each_replica_of_the_contextual_gan_uses_its_own_kernels(tmp_path):
    kernels, alike = run_on_two_cpus(CONTEXTUAL, tmp_path)
    assert {where for where, _ in kernels} == {"0", "1"}
    assert all(where == source for where, source in kernels)
    assert all(alike)


@pytest.mark.long
def test_replicas_have_one_u_and_agree_with_one_device(tmp_path):
    two, one = run_on_two_cpus(REPLICAS, tmp_path)
    for replicas, alone in zip(two, one, strict=True):
        np.testing.assert_array_equal(*replicas)
        np.testing.assert_allclose(replicas[0], alone[0], rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(one[0][0]) == pytest.approx(1, abs=1e-5)


# Seeded noise


def test_seeds_follow_from_the_draw_and_the_pixels_alone():
    images = tf.constant(np.random.default_rng(0).random((3, 8, 8, 1)), tf.float32)
    seeds = patch_seeds(images, 4).numpy()
    assert seeds.shape == (3, 2) and (seeds[:, 0] == 4).all() and len(set(seeds[:, 1])) == 3
    np.testing.assert_array_equal(patch_seeds(images[::-1], tf.constant([4, 4, 4])), seeds[::-1])
    np.testing.assert_array_equal(
        patch_seeds(images, tf.constant([0, 1, 2])).numpy()[:, 0], [0, 1, 2]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_seeded_dropout_drops_its_share_and_scales_the_rest(rate, dtype):
    x = tf.cast(tf.ones([2, 32, 32, 16]), dtype)
    y = seeded_dropout(x, rate, tf.constant([[0, 5], [0, 6]], tf.int64), 0)
    assert y.dtype == x.dtype and y.shape == x.shape
    found = tf.cast(y, tf.float32).numpy()
    np.testing.assert_allclose(np.unique(found), [0, 1 / (1 - rate)], rtol=1e-2)
    np.testing.assert_allclose(
        (found == 0).mean(axis=(1, 2, 3)), rate, atol=5 * np.sqrt(rate * (1 - rate) / found[0].size)
    )


def test_seeded_dropout_follows_from_each_samples_seed_and_the_level_alone():
    x = tf.ones([2, 8, 8, 4])
    seeds = tf.constant([[0, 5], [0, 6]], tf.int64)
    y = seeded_dropout(x, 0.5, seeds, 0)
    np.testing.assert_array_equal(tf.function(seeded_dropout)(x[1:], 0.5, seeds[1:], 0), y[1:])
    others = [
        y[1],
        seeded_dropout(x, 0.5, seeds, 1)[0],
        seeded_dropout(x, 0.5, seeds + [1, 0], 0)[0],
    ]
    for other in others:
        assert 0.3 < np.mean(other.numpy() == y[0]) < 0.7, (
            "independent draws agree in half of all places"
        )
