"""SegNet: its layers, and pooling with places and its inverse against TensorFlow's operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.full_size import build_without_memory
from tfmammo.baselines.segnet import PoolWithIndices, Unpool, build_network
from tfmammo.nn.normalization import SampleNormalization


def test_full_size(monkeypatch):
    model = build_without_memory(lambda: build_network(256), monkeypatch)
    assert not model.non_trainable_variables  # no moving averages
    assert model.output_shape == (None, 256, 256, 1)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    encoder = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    decoder = [512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64]
    assert [c.filters for c in convolutions] == [*encoder, *decoder, 1]
    # all but the classifier
    assert sum(isinstance(layer, SampleNormalization) for layer in model.layers) == 25
    assert model.get_layer("pool5").output[0].shape == (None, 8, 8, 512)


def unpool_by_tensorflow(pooled, indices):
    batch, rows, cols, channels = pooled.shape
    flat = tf.scatter_nd(
        tf.reshape(indices, [-1, 1]), tf.reshape(pooled, [-1]), [4 * tf.size(pooled, tf.int64)]
    )
    return tf.reshape(flat, [batch, 2 * rows, 2 * cols, channels])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_and_gradients_are_those_of_tensorflows_operations(dtype, jit_compile):
    """Of small whole numbers, so that many are equal: the first of a window counts."""
    random = np.random.default_rng(0)
    features, weights = (tf.cast(random.integers(-5, 5, (2, 4, 6, 3)), dtype) for _ in range(2))
    scale = tf.cast(random.integers(1, 5, (2, 2, 3, 3)), dtype)
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"

    def there_and_back(pool, unpool):
        with tf.GradientTape() as tape:
            tape.watch([features, scale])
            pooled, places = pool(features)
            unpooled = unpool(pooled * scale, places)
            loss = tf.reduce_sum(unpooled * weights + unpooled**2)
        return pooled, unpooled, *tape.gradient(loss, [features, scale])

    ours = tf.function(
        lambda: there_and_back(PoolWithIndices(dtype=policy), Unpool(dtype=policy)),
        jit_compile=jit_compile,
    )
    expected = there_and_back(
        lambda maps: tf.nn.max_pool_with_argmax(maps, 2, 2, "VALID", include_batch_in_index=True),
        unpool_by_tensorflow,
    )
    for found, value in zip(ours(), expected, strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(tf.cast(found, tf.float32), tf.cast(value, tf.float32))


def test_every_unpooling_takes_the_indices_of_its_own_level():
    model = build_network(64, widths=(2, 3, 4, 5, 6))
    for level in range(1, 6):
        pooled, indices = model.get_layer(f"unpool{level}").input
        assert indices is model.get_layer(f"pool{level}").output[1]
        assert pooled.shape == indices.shape
