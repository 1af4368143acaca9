"""SegNet: parameter counts, pooling indices and unpooling against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.full_size import build_without_memory, count_weights
from tfmammo.baselines.segnet import PoolWithIndices, Unpool, build_network
from tfmammo.nn.layers import SampleNormalization


def pooled_by_numpy(features):
    """(maxima, places in the flattened features) of 2x2 windows."""
    batch, rows, cols, channels = features.shape
    places = np.arange(features.size).reshape(features.shape)
    order = (0, 1, 3, 5, 2, 4)
    windows, where = (
        a.reshape(batch, rows // 2, 2, cols // 2, 2, channels)
        .transpose(order)
        .reshape(batch, rows // 2, cols // 2, channels, 4)
        for a in (features, places)
    )
    best = windows.argmax(-1)[..., None]
    return np.take_along_axis(windows, best, -1)[..., 0], np.take_along_axis(where, best, -1)[
        ..., 0
    ]


def features(dtype="float32", batch=2):
    """Distinct values, exact in 8 bits of mantissa, in random order."""
    values = np.random.default_rng(0).permutation(batch * 4 * 6 * 2) - 50.0
    return values.reshape(batch, 4, 6, 2).astype(dtype)


@pytest.mark.parametrize(
    ("channels", "classes", "count"), [(3, 12, 29_449_932), (1, 1, 29_442_433)]
)
def test_full_size(channels, classes, count, monkeypatch):
    model = build_without_memory(
        lambda: build_network(256, channels=channels, classes=classes), monkeypatch
    )
    assert count_weights(model) == count
    assert not model.non_trainable_variables  # no moving averages
    assert model.output_shape == (None, 256, 256, classes)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    encoder = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    decoder = [512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64]
    assert [c.filters for c in convolutions] == [*encoder, *decoder, classes]
    # all but the classifier
    assert sum(isinstance(layer, SampleNormalization) for layer in model.layers) == 25
    assert model.get_layer("pool5").output[0].shape == (None, 8, 8, 512)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pooling_and_unpooling_against_numpy(dtype):
    values = features()
    maxima, places = pooled_by_numpy(values)
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    pooled, indices = PoolWithIndices(dtype=policy)(values)
    assert pooled.dtype == dtype
    np.testing.assert_array_equal(tf.cast(pooled, tf.float32), maxima)
    np.testing.assert_array_equal(indices, places)
    expected = np.zeros(values.size, np.float32)
    expected[places.ravel()] = maxima.ravel()
    unpooled = Unpool(dtype=policy)(pooled, indices)
    assert unpooled.dtype == dtype
    np.testing.assert_array_equal(tf.cast(unpooled, tf.float32), expected.reshape(values.shape))


def test_unpooling_puts_other_values_to_the_same_places():
    values = features()
    others = features()[:, :2, :3] * 3
    _, places = pooled_by_numpy(values)
    unpooled = np.asarray(Unpool()(others, PoolWithIndices()(values)[1]))
    np.testing.assert_array_equal(unpooled.ravel()[places.ravel()], others.ravel())
    assert np.count_nonzero(unpooled) == np.count_nonzero(others)


def test_the_first_of_equal_values_counts():
    _, indices = PoolWithIndices()(np.ones((1, 2, 2, 1), np.float32))
    assert int(indices[0, 0, 0, 0]) == 0


def test_gradients_follow_the_indices():
    values = tf.constant(features())
    _, places = pooled_by_numpy(values.numpy())
    weights = np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(values)
        unpooled = Unpool()(*PoolWithIndices()(values))
        loss = tf.reduce_sum(unpooled * weights)
    expected = np.zeros(weights.size, np.float32)
    expected[places.ravel()] = weights.ravel()[places.ravel()]
    np.testing.assert_allclose(tape.gradient(loss, values), expected.reshape(weights.shape))


def test_unpooling_keeps_the_static_shape():
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3])])
    def there_and_back(x):
        unpooled = Unpool()(*PoolWithIndices()(x))
        assert unpooled.shape.as_list() == [None, 8, 8, 3]
        return unpooled

    assert there_and_back(tf.ones([2, 8, 8, 3])).shape == (2, 8, 8, 3)
    assert Unpool()(*PoolWithIndices()(tf.ones([1, 8, 8, 3]))).shape == (1, 8, 8, 3)


def test_every_unpooling_takes_the_indices_of_its_own_level():
    model = build_network(64, widths=(2, 3, 4, 5, 6))
    for level in range(1, 6):
        pooled, indices = model.get_layer(f"unpool{level}").input
        assert indices is model.get_layer(f"pool{level}").output[1]
        assert pooled.shape == indices.shape


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_shifted_bright_square_stays_where_it_was(dtype):
    """Pooling and unpooling move nothing: a lone maximum returns to its pixel."""
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 13, 22, 0] = 1
    values = image
    stack = []
    for _ in range(5):
        values, indices = PoolWithIndices(dtype=dtype)(values)
        stack.append(indices)
    for indices in reversed(stack):
        values = Unpool(dtype=dtype)(values, indices)
    np.testing.assert_array_equal(tf.cast(values, tf.float32), image)
