"""Networks of one 1x1 convolution, whose answers can be computed by hand."""

import keras
import tensorflow as tf


def make_pixelwise(
    size: int, weight: float, bias: float, activation: str | None = None
) -> keras.Sequential:
    """Make a network: activation(weight * x + bias) of each pixel, [batch, size, size, 1]."""
    constant = keras.initializers.Constant
    layer = keras.layers.Conv2D(
        1,
        1,
        activation=activation,
        kernel_initializer=constant(weight),
        bias_initializer=constant(bias),
    )
    return keras.Sequential([keras.Input((size, size, 1)), layer])


class KnownCAN(keras.Model):
    """mask = sigmoid(steepness * (image - level)); image = bias + weight * mask.

    Args:
        name: The model's.
        size: Of its patches, px.
        level: Grey value above which the mask is 1.
        weight: Brightness that the mask adds; `level` where it is None.
        bias: Brightness outside the mask.
        steepness: Of the sigmoid.
    """

    def __init__(self, name, size, level, weight=None, bias=0.2, steepness=100.0):
        super().__init__(name=name)
        weight = level if weight is None else weight
        self.networks = {
            "inverter": make_pixelwise(size, steepness, -steepness * level, "sigmoid"),
            "generator": make_pixelwise(size, weight, bias),
        }

    def functions(self):
        shape = self.networks["inverter"].input_shape

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, "image")])
        def segment(image):
            return {"mask": self.networks["inverter"](image)}

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, "mask")])
        def synthesize(mask):
            return {"image": self.networks["generator"](mask)}

        return {"inverter": segment, "generator": synthesize}


class KnownSegmenter(keras.Model):
    """mask = sigmoid(weight * image + bias), by default 1 where the image is above 0.5.

    Args:
        weight: Of the grey value.
        bias: Added to it.
        size: Of its patches, px.
    """

    def __init__(self, weight=200.0, bias=-100.0, size=64):
        super().__init__(name="bright")
        self.networks = {"generator": make_pixelwise(size, weight, bias, "sigmoid")}

    def functions(self):
        shape = self.networks["generator"].input_shape

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, "image")])
        def generator(image):
            return {"mask": self.networks["generator"](image)}

        return {"generator": generator}


class Weightless(keras.Model):
    """A model of one function that needs no weights, named after a network that it does not use.

    Args:
        name: The function's.
        call: Named tensors -> a dict of tensors.
        inputs: Name -> the shape of one.
    """

    def __init__(self, name, call, **inputs):
        super().__init__(name="known")
        self.networks = {name: make_pixelwise(8, 1.0, 0.0)}
        specs = [tf.TensorSpec([None, *shape], tf.float32, key) for key, shape in inputs.items()]
        self.made = {name: tf.function(call, input_signature=specs)}

    def functions(self):
        return self.made


def make_functions(networks, size: int) -> dict:
    """Make the functions of a generator, an inverter and a critic of pairs.

    Args:
        networks: Network by one of these names.
        size: Of their patches, px.
    """
    mask, image = (
        tf.TensorSpec([None, size, size, 1], tf.float32, name) for name in ("mask", "image")
    )

    @tf.function(input_signature=[mask])
    def generator(mask):
        return {"image": networks["generator"](mask)}

    @tf.function(input_signature=[image])
    def inverter(image):
        return {"mask": networks["inverter"](image)}

    @tf.function(input_signature=[mask, image])
    def critic(mask, image):
        return {"logits": networks["critic"](tf.concat([mask, image], -1))}

    return {"generator": generator, "inverter": inverter, "critic": critic}
