"""Small maps: values and gradients of Keras's layers, and by which way they are computed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo.nn import convolutions
from tfmammo.nn.convolutions import Convolution, Dense, TransposedConvolution

PAIRS = {
    "convolution": (Convolution, keras.layers.Conv2D),
    "transposed": (TransposedConvolution, keras.layers.Conv2DTranspose),
}


@pytest.fixture
def always(monkeypatch):
    """Matrix products however many places there are."""
    monkeypatch.setattr(convolutions, "matmul_is_faster", lambda maps, places, most: True)


def both(kind, shape, *arguments, **options):
    """Our layer and Keras's of equal weights, and an input."""
    random = np.random.default_rng(0)
    layers = [
        layer(*arguments, **options, bias_initializer=keras.initializers.RandomNormal(seed=2))
        for layer in PAIRS[kind]
    ]
    for layer in layers:
        layer.build((None, *shape[1:]))
    layers[1].set_weights(layers[0].get_weights())
    return *layers, tf.constant(random.normal(size=shape).astype(np.float32))


def value_and_gradients(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(tf.sin(y))
    return [y, *tape.gradient(loss, [x, *layer.trainable_variables])]


def penalty_gradient(layer, x):
    """Of |dy / dx|^2, by the kernel."""
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(layer(x))
        penalty = tf.reduce_sum(inner.gradient(y, x) ** 2)
    return outer.gradient(penalty, layer.kernel.value)


def assert_alike(ours, theirs, x, tolerance=4e-6):
    """Compare values, gradients and, if it is not linear, the gradient of a gradient's square."""
    pairs = [
        [*value_and_gradients(layer, x), penalty_gradient(layer, x)] for layer in (ours, theirs)
    ]
    for a, b in zip(*pairs, strict=True):
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * max(1, np.abs(b).max()))


def list_operations(layer, shape, differentiate=True):
    """The types of all operations of a layer, with its gradients, in a graph of its own."""

    @tf.function(input_signature=[tf.TensorSpec(shape)])
    def call(x):
        return value_and_gradients(layer, x) if differentiate else layer(x)

    graph = call.get_concrete_function().graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [
        ((2, 2, 2, 3), 4, 2),
        ((1, 8, 8, 5), 4, 2),
        ((3, 5, 7, 2), 3, 1),
        ((1, 6, 4, 2), 3, 2),
        ((2, 1, 1, 3), 4, 2),
        ((1, 16, 16, 2), (3, 5), (2, 1)),
        ((1, 4, 4, 2), 1, 1),
        ((1, 7, 5, 2), 2, 3),
        ((1, 3, 3, 2), 3, 1),
    ],
)
def test_values_and_gradients_are_keras_own(kind, shape, kernel, stride, always):
    ours, theirs, x = both(kind, shape, 4, kernel, stride, padding="same", activation="tanh")
    assert_alike(ours, theirs, x)
    # any number of maps, and unknown sizes
    for known in ([None, *shape[1:]], [None, None, None, shape[-1]]):
        function = tf.function(ours, input_signature=[tf.TensorSpec(known)])
        np.testing.assert_allclose(function(x), theirs(x), rtol=1e-5, atol=2e-6)
        assert known[1] is None or function(x[:0]).shape == (0, *theirs(x).shape[1:])


@pytest.mark.parametrize("kind", PAIRS)
def test_other_layouts_and_no_bias_are_keras_own(kind, always):
    # TensorFlow has no dilated transposed convolution on every CPU
    other = {"padding": "valid"} if kind == "transposed" else {"dilation_rate": 2}
    assert_alike(*both(kind, (1, 6, 6, 2), 4, 3, 1, **{"padding": "same", **other}))
    assert_alike(*both(kind, (2, 6, 5, 3), 4, 4, 1, use_bias=False))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Convolution(2, 3, padding="same", dtype="bfloat16"), (1, 64, 64, 3)),
        (Convolution(2, 1, dtype="bfloat16"), (1, 64, 64, 3)),  # a matrix product
        (TransposedConvolution(2, 2, 2, dtype="bfloat16"), (1, 32, 32, 3)),
        (TransposedConvolution(1, 2, 2, "same", dtype="bfloat16"), (1, 32, 32, 4)),  # a product
        (Dense(2, dtype="bfloat16"), (4096, 3)),
    ],
)
def test_a_biass_gradient_is_no_sum_in_bfloat16(layer, shape):
    x = tf.ones(shape, tf.bfloat16)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.cast(layer(x), tf.float32))
    np.testing.assert_array_equal(tape.gradient(total, layer.bias.value), 4096)


@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "stride"),
    [
        ((2, 8, 8, 16), 1, 4, 2),
        ((1, 5, 7, 24), 6, 2, 2),
        ((3, 5, 4, 9), 1, 3, 1),
        ((1, 6, 4, 36), 1, 6, 2),
        ((2, 3, 5, 64), 1, 8, 4),
        ((2, 3, 3, 16), 1, 4, 4),
    ],
)
def test_few_filters_are_products_added_up(shape, filters, kernel, stride, monkeypatch):
    monkeypatch.setattr(convolutions, "matmul_is_faster", lambda maps, places, most: False)
    options = {"padding": "same", "activation": "tanh"}
    ours, theirs, x = both("transposed", shape, filters, kernel, stride, **options)
    assert_alike(ours, theirs, x)
    assert "MatMul" in list_operations(ours, [None, *shape[1:]], differentiate=False)
    np.testing.assert_allclose(ours(x[:1]), theirs(x[:1]), rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "is_product"),
    [
        ((1, 4, 3, 8), 2, (4, 3), True),  # the kernel covers the map
        ((5, 4, 3, 8), 2, (4, 3), True),
        ((None, 4, 3, 8), 2, (4, 3), True),
        ((2, 64, 64, 3), 1, 1, True),
        ((2, 64, 64, 3), 15, 1, True),
        ((2, 64, 64, 3), 16, 1, False),
    ],
)
def test_kernels_whose_gradient_onednn_gets_wrong_are_products(shape, filters, kernel, is_product):
    """It can write beyond its end, see convolutions.py."""
    ours, theirs, x = both("convolution", (shape[0] or 5, *shape[1:]), filters, kernel)
    # a kernel's gradient is a sum over up to 8,192 positions
    assert_alike(ours, theirs, x, tolerance=3e-4)
    assert ("Conv2DBackpropFilter" not in list_operations(ours, shape)) == is_product
