"""Networks that two or more models use identically, and what every model is.

Pix2Pix's U-Net-256 and patch discriminator, Ronneberger's U-Net, and ResNets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import keras
import tensorflow as tf

from tfmammo.errors import ConfigError
from tfmammo.nn.convolutions import Convolution, TransposedConvolution, on_cpu
from tfmammo.nn.layers import (
    Dropout,
    draw_normal,
    next_seed,
    patch_seeds,
    seeded_draws,
    seeded_dropout,
)
from tfmammo.nn.normalization import BatchNormalization, SampleNormalization
from tfmammo.nn.pretrained import KERAS_MEAN
from tfmammo.nn.published import Source

PIX2PIX_FILTERS = (64, 128, 256, 512, 512, 512, 512, 512)


def normal(deviation: float = 0.02) -> keras.initializers.Initializer:
    """Return initial weights N(0, deviation), Pix2Pix's by default, a fresh seed for each layer."""
    return keras.initializers.RandomNormal(0.0, deviation)


class Network(keras.Model):
    """A keras.Model that refuses to be saved as a .keras file, which could not be read again."""

    def save(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse, before a file is made."""
        self.get_config()

    def get_config(self) -> NoReturn:
        """Refuse; every way of saving calls this."""
        raise NotImplementedError(
            f"{type(self).__name__} can't be saved as a .keras file: write the model that it "
            "belongs to with tfmammo.tracking.export.export(model, FOLDER, {}) and read it with "
            "tfmammo.tracking.export.load(FOLDER, FUNCTION)"
        )


class Trainable(Network):
    """Networks that are trained together, by a `train_step` of their own.

    It is a keras.Model so that Keras keeps track of its networks: summary(), count_params() and
    trainable_variables cover all of them. Keras's call and fit are refused by a sentence that names
    what works: several networks have no common output, and fit would train them by one optimizer,
    without this package's order of updates, loss scaling and checkpoints.
    """

    networks: Mapping[str, keras.Model]
    pretrained: Mapping[str, Source] = {}
    """Published weights that a network starts from, or that a loss uses; the card names them."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.built = True  # there is nothing to build but its networks

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse to call the networks as a whole."""
        raise NotImplementedError(
            f"{type(self).__name__} can't be called as a whole: call a function, "
            "model.functions()[NAME](...), or a network, "
            f"model.networks[NAME](...), NAME being one of {', '.join(self.networks)}"
        )

    def compile(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse, as fit, evaluate, predict and the others do."""
        raise NotImplementedError(
            f"{type(self).__name__} is trained by its own train_step and not by Keras: run python "
            f"train/{self.name}.py --config configs/{self.name}.yaml, or call "
            "model.train_step(batch) in a loop"
        )

    fit = evaluate = predict = train_on_batch = test_on_batch = predict_on_batch = compile

    def export(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse; see tfmammo.tracking.export."""
        self.get_config()


def export_function(function: Callable[..., dict[str, tf.Tensor]], **shapes: Sequence[int]) -> Any:
    """Make what a model exports: a tf.function of float32 tensors with these names and shapes.

    The batch comes before each shape, and may be of any size.
    """
    inputs = [tf.TensorSpec([None, *shape], tf.float32, name) for name, shape in shapes.items()]
    return tf.function(function, input_signature=inputs, autograph=False)


class UNet256(Network):
    """The U-Net of Pix2Pix: stride-2 convolutions down, as many up, skips between.

    Encoder: conv(k4, s2), LeakyReLU(0.2) before all but the first, normalisation on all but the
    first and the innermost. Decoder: ReLU, transposed conv(k4, s2), normalisation on all but the
    last, dropout on the three innermost. Only the last transposed convolution has a bias, or
    all have with `biases`. With eight filters and 256 rows the innermost map is 1x1. `norm` makes a
    normalisation layer. With `resize` nearest neighbours and conv(k3) take the place of each
    transposed convolution, whose kernels overlap and leave checkerboard artefacts (Odena et al.
    2016). An `encoder` replaces the strided convolutions: a network from x to maps of 1/2, 1/4, ...
    of its size. `filters` are then the decoder's, one for each map but the innermost.

    floating [batch, size, size, channels] -> float32 [batch, size, size, out_channels], by default
    in [-1, 1] (activation tanh). A size that can't be halved so often is a ConfigError.

    Source:
        Isola et al. 2017, section 6.1.1. 54,407,809 trainable parameters for 1 -> 1 channels.
    """

    def __init__(
        self,
        channels: int = 1,
        out_channels: int = 1,
        filters: Sequence[int] = PIX2PIX_FILTERS,
        dropout: float = 0.5,
        size: int = 256,
        name: str | None = None,
        *,
        biases: bool = False,
        norm: Callable[[], keras.layers.Layer] = SampleNormalization,
        activation: str = "tanh",
        resize: bool = False,
        encoder: keras.Model | None = None,
    ) -> None:
        super().__init__(name=name)
        widths = filters if encoder else filters[:-1]
        depth = len(widths) + 1
        halve("filters", size, depth)
        self.encoder = encoder
        self.downs = [] if encoder else [_convolution(n, biases) for n in filters]
        self.down_norms = [norm() if 0 < i < depth - 1 else None for i in range(len(self.downs))]
        ups = [*reversed(widths), out_channels]
        make_up = _resize_convolution if resize else _transposed_convolution
        self.ups = [make_up(n, biases or i == depth - 1) for i, n in enumerate(ups)]
        self.up_norms = [norm() if i < depth - 1 else None for i in range(depth)]
        self.dropouts = [
            Dropout(dropout) if dropout and i < min(3, depth - 1) else None for i in range(depth)
        ]
        self.to_float32 = keras.layers.Activation(activation, dtype="float32")
        self(keras.Input((size, size, channels), batch_size=1))

    def call(
        self, x: tf.Tensor, training: bool = False, seeds: tf.Tensor | None = None
    ) -> tf.Tensor:
        """See the class; by `seeds`, int64 [batch, 2], dropout draws at inference too."""
        skips = self.encoder(x, training=training) if self.encoder else self._encode(x, training)
        x = skips.pop()  # the innermost map goes straight up
        for level, (up, norm, dropout) in enumerate(
            zip(self.ups, self.up_norms, self.dropouts, strict=True)
        ):
            x = up(tf.nn.relu(x))
            x = norm(x, training=training) if norm else x
            if dropout and seeds is None:
                x = dropout(x, training=training)
            elif dropout:
                x = seeded_dropout(x, dropout.rate, seeds, level)
            x = tf.concat([x, skips.pop()], axis=-1) if skips else x
        return self.to_float32(x)

    def _encode(self, x: tf.Tensor, training: bool) -> list[tf.Tensor]:
        maps = []
        for i, (down, norm) in enumerate(zip(self.downs, self.down_norms, strict=True)):
            x = down(leaky_relu(x) if i else x)
            x = norm(x, training=training) if norm else x
            maps.append(x)
        return maps


class TexturedUNet(Network):
    """The U-Net of Pix2Pix with convolutions at full size that see noise, for images with texture.

    `UNet256`, whose arguments it has, gives filters[0] maps instead of an image. Means of 8 x 8 px
    of them, the input, and noise go through conv(k3), LeakyReLU(0.2), twice, and conv(k3) to one
    channel. Such means take away every wave of 2, 4 or 8 px, the periods of the checkerboard
    artefacts that layers of upsampling leave: whatever is finer comes from the input and from the
    noise. The noise is N(0, 1): two channels each of single values and of sums over squares of 2, 4
    and 8 px. In training it is drawn anew at each call, at inference by the sample's own values:
    equal inputs give equal outputs. The three convolutions start from N(0, 0.05).

    floating [batch, size, size, 1] -> float32 [batch, size, size, 1] in [-1, 1]
    """

    def __init__(
        self, filters: Sequence[int], dropout: float, size: int, name: str, resize: bool
    ) -> None:
        super().__init__(name=name)
        self.size = size
        width = filters[0]
        self.unet = UNet256(
            out_channels=width,
            filters=filters,
            dropout=dropout,
            size=size,
            name="unet",
            activation="linear",
            resize=resize,
        )
        self.first, self.second, self.head = (
            Convolution(n, 3, 1, "same", kernel_initializer=normal(0.05)) for n in (width, width, 1)
        )
        self.seed_generator = keras.random.SeedGenerator()
        self.to_float32 = keras.layers.Activation("tanh", dtype="float32")
        self(keras.Input((size, size, 1), batch_size=1))

    def call(
        self, x: tf.Tensor, training: bool = False, seeds: tf.Tensor | None = None
    ) -> tf.Tensor:
        """See the class, and `UNet256.call` for the seeds."""
        maps = self.unet(x, training=training, seeds=seeds)
        means = tf.nn.avg_pool2d(maps, 8, 1, "SAME")
        own = None if training else patch_seeds(tf.cast(x, tf.float32), 0)
        noise = [self._draw(tf.shape(x)[0], window, own) for window in (1, 2, 4, 8)]
        y = tf.concat([means, tf.cast(x, tf.float32), *noise], axis=-1)
        for convolution in (self.first, self.second):
            y = leaky_relu(convolution(y))
        return self.to_float32(self.head(y))

    def _draw(self, count: tf.Tensor | int, window: int, seeds: tf.Tensor | None) -> tf.Tensor:
        side = self.size + window - 1
        shape = (side, side, 2)
        if seeds is None:
            noise = draw_normal([count, *shape], next_seed(self.seed_generator))
        else:
            noise = seeded_draws(draw_normal, shape, seeds, window)
        return tf.nn.avg_pool2d(noise, window, 1, "VALID") * window  # its deviation is 1 again


class PatchDiscriminator(Network):
    """The patch discriminator of Pix2Pix: one logit for each of many overlapping patches.

    conv(k4, s2, bias), LeakyReLU; then strided and one unstrided conv(k4), normalisation,
    LeakyReLU; then conv(k4, s1, bias) to one channel; padding 1 everywhere; filters double up to
    8x. `biases` gives every convolution one. `norm` makes a normalisation layer. `strided` counts
    the stride-2 convolutions: 1, 2, 3, 4, 5 give a receptive field of 16, 34, 70, 142, 286 px, and
    126, 62, 30, 14, 6 rows and columns of logits from 256 px.

    floating [batch, size, size, channels] in [-1, 1] -> float32 logits [batch, n, n, 1]. A patch
    that is too small for so many convolutions is a ConfigError.

    Source:
        Isola et al. 2017, section 6.1.2. 135,489 trainable parameters for two channels and strided
        = 1.
    """

    def __init__(
        self,
        channels: int = 2,
        strided: int = 3,
        filters: int = 64,
        size: int = 256,
        name: str | None = None,
        *,
        biases: bool = False,
        norm: Callable[[], keras.layers.Layer] = SampleNormalization,
    ) -> None:
        super().__init__(name=name)
        strides = [2] * strided + [1]
        widths = [filters * min(2**i, 8) for i in range(strided + 1)]
        self.pad = keras.layers.ZeroPadding2D(1)
        self.convolutions = [
            _valid_convolution(n, s, biases or i == 0)
            for i, (n, s) in enumerate(zip(widths, strides, strict=True))
        ]
        self.norms = [norm() if i else None for i in range(strided + 1)]
        self.head = _valid_convolution(1, 1, bias=True)
        self.to_float32 = keras.layers.Activation("linear", dtype="float32")
        side = size
        for stride in [*strides, 1]:
            side = (side + 2 - 4) // stride + 1
        if side < 1:
            raise ConfigError(
                f"model.discriminator_strided: {strided} leaves nothing of patches of {size} px"
            )
        self(keras.Input((size, size, channels), batch_size=1))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the class."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(self.pad(x))
            x = leaky_relu(norm(x, training=training) if norm else x)
        return self.to_float32(self.head(self.pad(x)))


class MultiScaleDiscriminator(Network):
    """`PatchDiscriminator`s of several receptive fields that see the same input.

    They give float32 logits [batch, n, 1, 1], of all patches of all of them.
    """

    def __init__(
        self,
        channels: int,
        strided: Sequence[int],
        filters: int,
        size: int,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.scales = [PatchDiscriminator(channels, count, filters, size) for count in strided]
        self(keras.Input((size, size, channels), batch_size=1))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the class."""
        logits = [scale(x, training=training) for scale in self.scales]
        flat = [tf.reshape(each, [-1, each.shape[1] * each.shape[2], 1, 1]) for each in logits]
        return tf.concat(flat, axis=1)


def unet_features(
    features: keras.KerasTensor, widths: Sequence[int], dropout: float
) -> keras.KerasTensor:
    """Compute Ronneberger's U-Net between its input and its last convolution, 1 x 1.

    Two convolutions 3 x 3 with ReLU a level, max pooling between levels down, transposed
    convolutions 2 x 2 up, skips at every resolution, the input's own too. He's random weights.
    Convolutions are padded, so that nothing is cropped, which is a deviation.

    Args:
        features: [batch, size, size, channels]; size a multiple of 2 ** (len(widths) - 1).
        widths: Channels of each level, the bottom last.
        dropout: Share that is dropped after the last two levels.

    Source:
        Ronneberger, Fischer, Brox, U-Net: Convolutional networks for biomedical image segmentation
        (2015), figure 1.
    """
    skips = []
    for level, width in enumerate(widths):
        if level > 0:
            features = keras.layers.MaxPooling2D(2)(features)
        features = _two_convolutions(features, width)
        if level >= len(widths) - 2:
            features = Dropout(dropout)(features)
        skips.append(features)
    for width, skip in zip(widths[-2::-1], skips[-2::-1], strict=True):
        up = TransposedConvolution(width, 2, 2, kernel_initializer="he_normal")
        features = keras.layers.Concatenate()([skip, up(features)])
        features = _two_convolutions(features, width)
    return features


def resnet_stages(
    image: keras.KerasTensor,
    filters: int,
    blocks: Sequence[int],
    *,
    strides: Sequence[int] = (1, 2, 2, 2),
    dilations: Sequence[int] = (1, 1, 1, 1),
    momentum: float = 0.99,
    frozen_norm: bool = False,
) -> list[keras.KerasTensor]:
    """Compute the last map of each stage of a ResNet on grey images.

    Layers with weights have the names that they have in keras.applications.

    Args:
        image: float32 [n, rows, cols, 1] in [0, 1].
        filters: Filters of the first stage, doubled by each further one.
        blocks: Blocks of each stage.
        strides: Stride of each stage's first block.
        dilations: Dilation of the 3 x 3 convolutions of each stage.
        momentum: Decay of batch normalisation's running averages.
        frozen_norm: Don't train batch normalisation, nor change its averages.

    Source:
        He et al., Deep residual learning for image recognition (2016), Table 1, stride in the first
        1 x 1 convolution.
    """
    layers = keras.layers

    def normalize(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Add batch normalisation."""
        return BatchNormalization(
            momentum=momentum, epsilon=1.001e-5, trainable=not frozen_norm, name=f"{name}_bn"
        )(x)

    x = layers.Concatenate(dtype="float32")([image] * 3)
    x = layers.Rescaling(255.0, [-mean for mean in KERAS_MEAN], dtype="float32")(x)
    x = Convolution(filters, 7, 2, name="conv1_conv")(layers.ZeroPadding2D(3)(x))
    x = layers.ReLU()(normalize(x, "conv1"))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    stages = []
    for stage, (depth, stride, dilation) in enumerate(zip(blocks, strides, dilations, strict=True)):
        for number in range(depth):
            name = f"conv{stage + 2}_block{number + 1}"
            step = 1 if number else stride
            x = _bottleneck(x, filters * 2**stage, step, dilation, name, normalize)
        stages.append(x)
    return stages


def _bottleneck(
    x: keras.KerasTensor,
    width: int,
    stride: int,
    dilation: int,
    name: str,
    normalize: Callable[[keras.KerasTensor, str], keras.KerasTensor],
) -> keras.KerasTensor:
    """Add a ResNet's block: convolutions 1 x 1, 3 x 3 and 1 x 1, and the shortcut around them."""
    layers = keras.layers
    shortcut = x
    if stride > 1 or x.shape[-1] != 4 * width:
        shortcut = Convolution(4 * width, 1, stride, name=f"{name}_0_conv")(x)
        shortcut = normalize(shortcut, f"{name}_0")
    x = Convolution(width, 1, stride, name=f"{name}_1_conv")(x)
    x = layers.ReLU()(normalize(x, f"{name}_1"))
    convolution = Convolution(
        width, 3, padding="same", dilation_rate=dilation, name=f"{name}_2_conv"
    )
    x = layers.ReLU()(normalize(convolution(x), f"{name}_2"))
    x = Convolution(4 * width, 1, name=f"{name}_3_conv")(x)
    x = normalize(x, f"{name}_3")
    return layers.ReLU()(layers.Add()([shortcut, x]))


@keras.saving.register_keras_serializable("tfmammo")
def leaky_relu(x: tf.Tensor) -> tf.Tensor:
    """Compute max(x, 0.2 x)."""
    return _leaky_relu_by_result(x) if on_cpu() else tf.nn.leaky_relu(x, 0.2)


@tf.custom_gradient
def _leaky_relu_by_result(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Compute LeakyReLU with a gradient that reads the sign of the result, which is that of x.

    Only the activation then reads a convolution's biased output, and TensorFlow's CPU graph
    optimizer fuses the three; else it fails as a whole ("remapper failed"). The gradient of 16 bits
    is computed in float32: TensorFlow's kernel takes bfloat16 one number at a time.
    """
    y = tf.nn.leaky_relu(x, 0.2)
    # otherwise a second derivative asks for the sign's, which is 0, by TensorFlow's gradient
    sign = tf.stop_gradient(y)

    def scale(gradient: tf.Tensor) -> tf.Tensor:
        scaled = tf.raw_ops.LeakyReluGrad(
            gradients=tf.cast(gradient, tf.float32), features=tf.cast(sign, tf.float32), alpha=0.2
        )
        return tf.cast(scaled, gradient.dtype)

    return y, scale


def _two_convolutions(features: keras.KerasTensor, width: int) -> keras.KerasTensor:
    for _ in range(2):
        features = Convolution(
            width, 3, padding="same", activation="relu", kernel_initializer="he_normal"
        )(features)
    return features


def halve(key: str, size: int, halvings: int) -> int:
    """Halve a patch of `size` px as often as `model.KEY` asks for, or raise a ConfigError."""
    if size % 2**halvings:
        raise ConfigError(
            f"data.size: patches of {size} px can't be halved {halvings} times, for all of "
            f"model.{key}"
        )
    return size // 2**halvings


def _convolution(filters: int, bias: bool) -> keras.layers.Layer:
    # "same" pads one pixel on each side here, as the Torch original does: kernel 4, stride 2, even
    # sizes.
    return Convolution(filters, 4, 2, "same", use_bias=bias, kernel_initializer=normal())


def _transposed_convolution(filters: int, bias: bool) -> keras.layers.Layer:
    return TransposedConvolution(filters, 4, 2, "same", use_bias=bias, kernel_initializer=normal())


def _resize_convolution(filters: int, bias: bool) -> keras.layers.Layer:
    convolution = Convolution(filters, 3, 1, "same", use_bias=bias, kernel_initializer=normal())
    return keras.Sequential([keras.layers.UpSampling2D(2), convolution])


def _valid_convolution(filters: int, stride: int, bias: bool) -> keras.layers.Layer:
    return Convolution(filters, 4, stride, "valid", use_bias=bias, kernel_initializer=normal())
