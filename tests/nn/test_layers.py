"""Each layer against NumPy: spectral normalisation, self-attention; parting, sampling, noise."""

import itertools
import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.two_cpus import run_on_two_cpus
from tfmammo.errors import ConfigError
from tfmammo.nn.layers import (
    Dropout,
    SelfAttention,
    SpectralNormalization,
    draw_uniform,
    part_by_label,
    seeded_dropout,
    step_seed,
)


def noise(*shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 2 + 1).astype(np.float32)


def spectral(shape=(3, 3, 4, 6), seed=0, **kwargs):
    """Build a SpectralNormalization around a convolution with a large random kernel."""
    layer = SpectralNormalization(keras.layers.Conv2D(shape[-1], shape[0], **kwargs))
    layer.build((None, None, None, shape[2]))
    layer.layer.kernel.assign(noise(*shape, seed=seed) * 3)
    return layer


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


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (4, 4, 3, 1), (1, 1, 1, 5)])
def test_one_power_iteration_is_miyatos(shape):
    layer = spectral(shape)
    w = layer.layer.kernel.numpy().reshape(-1, shape[-1]).astype(np.float64).T
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
    kernel = tf.constant(layer.normalized())
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(kernel)
        loss = tf.reduce_sum(layer(x) * wanted)
        plain_loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "VALID") * wanted)
    gradient, plain, w = (
        np.reshape(values, (-1, 6)).astype(np.float64)
        for values in (
            tape.gradient(loss, layer.layer.kernel.value),
            tape.gradient(plain_loss, kernel),
            layer.layer.kernel,
        )
    )
    assert abs((gradient * w).sum()) < 1e-4 * np.linalg.norm(gradient) * np.linalg.norm(w)
    # dL/dW = (dL/dW_n - <dL/dW_n, W_n> v u') / sigma, Eq. 12 of the paper
    u = layer.u.numpy() / np.linalg.norm(layer.u)
    sigma = np.linalg.norm(w @ u)
    expected = (plain - (plain * w / sigma).sum() * np.outer(w @ u / sigma, u)) / sigma
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.linalg.norm(gradient) > 1


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2)]
)
def test_the_power_iteration_is_exact_under_mixed_precision(policy, tolerance):
    exact = spectral()
    keras.config.set_dtype_policy(policy)
    mixed = spectral()
    mixed.u.assign(exact.u)
    for layer in (mixed, exact):  # beyond float16 where it is summed
        layer.layer.kernel.assign(exact.layer.kernel * 1e4)
        layer.power_iteration()
    exact.layer.kernel.assign(mixed.layer.kernel)
    exact.u.assign(mixed.u)
    np.testing.assert_array_equal(mixed.normalized(), exact.normalized())
    x = noise(2, 8, 8, 4)
    half = tf.cast(x, mixed.layer.compute_dtype)
    with tf.GradientTape() as tape:
        y = tf.cast(mixed(half), tf.float32)
        total = tf.reduce_sum(y)
    assert mixed(half).dtype == half.dtype
    np.testing.assert_allclose(y, exact(x), rtol=tolerance, atol=5 * tolerance)
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
    np.testing.assert_array_equal(layer(x), x)  # it starts as the identity
    layer.gamma.assign(0.7)
    convolutions = (layer.f, layer.g, layer.h, layer.v)
    assert layer.normalized() == (list(convolutions) if is_spectral else [])
    kernels = [
        np.asarray(c.normalized() if is_spectral else c.kernel, np.float64)[0, 0]
        for c in convolutions
    ]
    assert [k.shape for k in kernels] == [(16, 2), (16, 2), (16, 2), (2, 16)]
    np.testing.assert_allclose(layer(x), attended(x, *kernels, 0.7), rtol=1e-4, atol=1e-4)


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
    assert y.dtype == tf.float16
    assert np.isfinite(y).all() and np.isfinite(tape.gradient(total, x)).all()


def test_the_layers_of_the_contextual_gan_survive_serialisation():
    x = noise(2, 8, 8, 16)
    for layer in (
        SpectralNormalization(keras.layers.Conv2D(3, 3)),
        SelfAttention(True),
    ):
        expected = layer(x)
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
        copy(x)
        copy.set_weights(layer.get_weights())
        np.testing.assert_array_equal(copy(x), expected)


@pytest.mark.parametrize("labels", [[0, 0, 0, 2], [0, 1, 2, 2], [0, 0, 2, 3]])
def test_labels_that_are_not_balanced_are_an_error(labels):
    with pytest.raises(tf.errors.InvalidArgumentError, match="equally often"):
        part_by_label(noise(4, 1), tf.constant(labels), [0, 2])
    with pytest.raises(ConfigError, match="training.batch_size"):
        part_by_label(noise(4, 1), tf.constant(labels), [0, 1, 2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_seeded_dropout_follows_from_each_samples_seed_and_the_level_alone(rate, dtype):
    x = tf.cast(tf.ones([2, 32, 32, 16]), dtype)
    seeds = tf.constant([[0, 5], [0, 6]], tf.int64)
    y = seeded_dropout(x, rate, seeds, 0)
    assert y.dtype == x.dtype and y.shape == x.shape
    found = tf.cast(y, tf.float32).numpy()
    np.testing.assert_allclose(np.unique(found), [0, 1 / (1 - rate)], rtol=1e-2)
    deviation = np.sqrt(rate * (1 - rate) / found[0].size)
    np.testing.assert_allclose((found == 0).mean(axis=(1, 2, 3)), rate, atol=5 * deviation)
    np.testing.assert_array_equal(tf.function(seeded_dropout)(x[1:], rate, seeds[1:], 0), y[1:])
    for other in (
        y[1],
        seeded_dropout(x, rate, seeds, 1)[0],
        seeded_dropout(x, rate, seeds + [1, 0], 0)[0],
    ):
        alike = np.mean(other == y[0])
        assert alike == pytest.approx(rate**2 + (1 - rate) ** 2, abs=0.05), "independent draws"


def test_uniform_numbers_are_tensorflows_own_with_xla_too():
    seed = tf.constant([3, 2**40 + 4], tf.int64)
    known = tf.random.stateless_uniform([7, 33], seed, -1, 1, alg="philox")
    for jit_compile in (False, True):
        drawn = tf.function(draw_uniform, jit_compile=jit_compile)([7, 33], seed, -1, 1)
        np.testing.assert_array_equal(drawn, known)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_drops_the_same_elements_with_xla_and_others_in_the_next_call(dtype):
    keras.utils.set_random_seed(0)
    layer = Dropout(0.25, dtype=dtype)
    start = [tf.identity(value) for value in layer.non_trainable_variables]
    x = tf.ones([50, 200], dtype)
    found = []
    for jit_compile in (False, True):
        for variable, value in zip(layer.non_trainable_variables, start, strict=True):
            variable.assign(value)
        call = tf.function(lambda: layer(x, training=True), jit_compile=jit_compile)
        found.append([tf.cast(call(), tf.float32).numpy() for _ in range(2)])
    np.testing.assert_array_equal(*found)
    first, second = found[0]
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.75], rtol=1e-2)
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.02)
    assert np.mean((first == 0) == (second == 0)) == pytest.approx(0.625, abs=0.03)
    assert layer(x) is x or np.all(layer(x) == x)


def test_dropout_and_noise_differ_between_replicas_in_both_of_two_calls(tmp_path):
    script = """
from tfmammo.nn.layers import Dropout, draw_normal, next_seed

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = Dropout(0.5)

@tf.function
def call():
    def draw():
        noise = draw_normal([400], next_seed(layer.seed_generator))
        return layer(tf.ones([400]), training=True), noise
    return strategy.run(draw)

found = [strategy.experimental_local_results(value) for _ in range(2) for value in call()]
print(json.dumps([[np.array(one).tolist() for one in pair] for pair in found]))
"""
    drops, noises, more_drops, more_noises = run_on_two_cpus(script, tmp_path)
    drawn = np.array([*drops, *more_drops]) == 0
    alike = [np.mean(a == b) for a, b in itertools.combinations(drawn, 2)]
    np.testing.assert_allclose(alike, 0.5, atol=0.1)
    related = np.corrcoef([*noises, *more_noises])[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(related, 0, atol=0.2)


def test_each_step_use_and_replica_draws_numbers_of_its_own(monkeypatch):
    seeds = set()
    for run, step, use, replica in itertools.product((3, 4), (0, 1), (0, 1023), (0, 1)):
        keras.utils.set_random_seed(run)  # training.seed
        context = SimpleNamespace(replica_id_in_sync_group=replica)
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda own=context: own)
        seeds.add(tuple(step_seed(step, use).numpy()))
    assert len(seeds) == 16
