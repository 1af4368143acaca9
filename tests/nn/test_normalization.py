"""Normalisations against their definitions in NumPy and against Keras's layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.two_cpus import run_on_two_cpus
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


def noise(*shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 2 + 1).astype(np.float32)


def layer(channels, **kwargs):
    """A built layer whose gamma and beta differ from channel to channel."""
    norm = SampleNormalization(**kwargs)
    norm.build((None, None, None, channels))
    norm.gamma.assign(np.linspace(0.5, 2, channels))
    norm.beta.assign(np.linspace(-1, 1, channels))
    return norm


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (16, 2)])
@pytest.mark.parametrize("epsilon", [EPSILON, 0.5])
def test_equals_the_definition(batch, size, epsilon):
    norm = layer(5, epsilon=epsilon)
    x = noise(batch, *size, 5)
    expected = normalised(x, norm.gamma.numpy(), norm.beta.numpy(), epsilon)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-5)


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
    assert type(copy) is SampleNormalization and copy.get_config() == norm.get_config()
    assert copy.epsilon == 0.1


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
