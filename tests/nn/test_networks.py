"""Pix2Pix's networks: sizes, parameter counts, receptive fields, and outputs against Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo.nn.networks import PatchDiscriminator, UNet256, leaky_relu, normal


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomise(network, seed=0):
    """Weights large enough for every layer to matter."""
    rng = np.random.default_rng(seed)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape) + (variable.name == "gamma"))
    return network


@pytest.mark.parametrize(
    ("strided", "field", "side"),
    [(1, 16, 126), (2, 34, 62), (3, 70, 30), (4, 142, 14), (5, 286, 6)],
)
def test_discriminator_receptive_field_and_output(strided, field, side):
    network = PatchDiscriminator(2, strided, filters=2)
    seen = 1  # px that one logit sees
    for layer in reversed([*network.convolutions, network.head]):
        seen = (seen - 1) * layer.strides[0] + layer.kernel_size[0]
    assert seen == field
    logits = network(noise(1, 256, 256, 2))
    assert logits.shape == (1, side, side, 1) and logits.dtype == tf.float32
    widths = [2, 4, 8, 16, 16, 16]  # doubled up to eight times
    assert [c.filters for c in network.convolutions] == widths[: strided + 1]


def keras_discriminator(size, channels, strided, filters):
    """The same network from Keras's own layers, with BatchNormalization in training."""
    x = inputs = keras.Input((size, size, channels), batch_size=1)
    for i in range(strided + 1):
        width = filters * min(2**i, 8)
        stride = 2 if i < strided else 1
        x = keras.layers.Conv2D(width, 4, stride, use_bias=i == 0)(keras.layers.ZeroPadding2D(1)(x))
        x = keras.layers.BatchNormalization()(x, training=True) if i else x
        x = keras.layers.LeakyReLU(0.2)(x)
    return keras.Model(inputs, keras.layers.Conv2D(1, 4)(keras.layers.ZeroPadding2D(1)(x)))


def keras_unet(size, channels, out_channels, filters):
    """Build the same network from Keras's layers, in Pix2Pix's recursive form."""

    def norm(x):
        return keras.layers.BatchNormalization()(x, training=True)

    def block(x, widths, out, outermost=False):
        width, *inner = widths
        down = keras.layers.Conv2D(width, 4, 2, "same", use_bias=False)(
            x if outermost else keras.layers.LeakyReLU(0.2)(x)
        )
        if inner:
            down = down if outermost else norm(down)
            below = block(down, inner, width)
            down = keras.layers.Concatenate()([below, down])
        up = keras.layers.Conv2DTranspose(out, 4, 2, "same", use_bias=outermost)(
            keras.layers.ReLU()(down)
        )
        return keras.layers.Activation("tanh")(up) if outermost else norm(up)

    inputs = keras.Input((size, size, channels), batch_size=1)
    return keras.Model(inputs, block(inputs, filters, out_channels, outermost=True))


def give_weights(layers, targets, kind):
    """Give layers of a kind the weights of ours, in their order."""
    ours = [w for layer in layers if layer for w in layer.trainable_variables]
    theirs = [w for layer in targets if type(layer) is kind for w in layer.trainable_variables]
    for target, weight in zip(theirs, ours, strict=True):
        target.assign(weight)


@pytest.mark.parametrize("strided", [1, 3])
def test_discriminator_equals_one_of_keras_layers(strided):
    network = randomise(PatchDiscriminator(2, strided, filters=3, size=48))
    reference = keras_discriminator(48, 2, strided, 3)
    convolutions = [*network.convolutions, network.head]
    give_weights(convolutions, reference.layers, keras.layers.Conv2D)
    give_weights(network.norms, reference.layers, keras.layers.BatchNormalization)
    x = noise(1, 48, 48, 2)
    np.testing.assert_allclose(network(x), reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("filters", [(3,), (3, 5), (3, 5, 7), (2, 3, 4, 5)])
def test_unet_equals_one_of_keras_layers(filters):
    network = randomise(UNet256(2, 3, filters, dropout=0, size=32))
    reference = keras_unet(32, 2, 3, filters)
    norms = [*network.down_norms, *network.up_norms]
    give_weights(network.ups, reference.layers, keras.layers.Conv2DTranspose)
    give_weights(norms, reference.layers, keras.layers.BatchNormalization)
    give_weights(network.downs, reference.layers, keras.layers.Conv2D)
    x = noise(1, 32, 32, 2)
    np.testing.assert_allclose(network(x), reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("filters", "dropout", "expected"),
    [
        ((4, 8, 8, 8, 8), 0.5, [True, True, True, False, False]),
        ((4, 8), 0.5, [True, False]),  # never on the output
        ((4, 8, 8), 0, [False] * 3),
    ],
)
def test_dropout_is_on_the_innermost_decoder_blocks_and_only_in_training(
    filters, dropout, expected
):
    network = randomise(UNet256(filters=filters, dropout=dropout, size=32))
    assert [bool(layer) for layer in network.dropouts] == expected
    x = noise(1, 32, 32, 1)
    np.testing.assert_array_equal(network(x), network(x))
    trained = [network(x, training=True) for _ in range(2)]
    assert (np.abs(trained[0] - trained[1]).max() > 1e-3) == bool(dropout)


def test_every_layer_draws_its_own_weights_from_the_same_normal():
    network = UNet256(filters=(32, 32, 32), size=16)
    kernels = [layer.kernel.numpy() for layer in (*network.downs, *network.ups)]
    assert not np.array_equal(kernels[1], kernels[2])
    for kernel in kernels:
        assert abs(kernel.std() - 0.02) < 0.003 and abs(kernel.mean()) < 0.003
    assert normal(0.5).stddev == 0.5


def test_leaky_relu_with_its_gradient_and_that_of_a_gradient_s_square():
    x = tf.constant([-2.0, -1e-3, 1e-3, 3.0])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = leaky_relu(x * x * tf.sign(x))
        (gradient,) = inner.gradient(y, [x])
        penalty = gradient**2
    np.testing.assert_allclose(y, [-0.8, -2e-7, 1e-6, 9], rtol=1e-6)
    # 2 |x|, a fifth of it below 0
    np.testing.assert_allclose(gradient, [0.8, 4e-4, 2e-3, 6], rtol=1e-6)
    # 8 x, times 0.04
    np.testing.assert_allclose(outer.gradient(penalty, x), [-0.64, -3.2e-4, 8e-3, 24], rtol=1e-6)


def test_resizing_leaves_no_checkerboard_where_transposed_convolution_does():
    """Of a constant map, within its edges."""
    ones = tf.ones((1, 8, 8, 8))
    for resize in (True, False):
        network = UNet256(filters=(4, 8), size=16, resize=resize)
        answer = network.ups[0](ones)
        assert answer.shape == (1, 16, 16, 4)
        ripple = np.ptp(answer[0, 2:-2, 2:-2], axis=(0, 1)).max()
        assert ripple < 2e-6 if resize else ripple > 0.01
        # encoder 4 x 4 x (1 x 4 + 4 x 8), a bias, scale and shift; decoder 8 x 4 + 8 x 1 kernels
        assert network.count_params() == 16 * 36 + 1 + 2 * 4 + (9 if resize else 16) * 40
