"""Networks of one 1x1 convolution, whose answers can be computed by hand, and their cards."""

import keras
import tensorflow as tf

from tfmammo.data import splits
from tfmammo.nn.networks import export_function


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


class KnownModel(keras.Model):
    """A model that can be exported: networks, and functions named after some of them."""

    def __init__(self, name, networks, functions):
        super().__init__(name=name)
        self.networks = networks
        self.exported = functions

    def functions(self):
        return self.exported


class KnownCAN(KnownModel):
    """mask = sigmoid(steepness * (image - level)); image = bias + weight * mask.

    The weight is `level` where it is None; patches are of `size` px.
    """

    def __init__(self, name, size, level, weight=None, bias=0.2, steepness=100.0):
        networks = {
            "inverter": make_pixelwise(size, steepness, -steepness * level, "sigmoid"),
            "generator": make_pixelwise(size, level if weight is None else weight, bias),
        }
        functions = make_functions(networks, size)
        super().__init__(name, networks, {key: functions[key] for key in networks})


class KnownSegmenter(KnownModel):
    """mask = sigmoid(weight * image + bias), by default 1 where the image is above 0.5."""

    def __init__(self, weight=200.0, bias=-100.0, size=64):
        network = make_pixelwise(size, weight, bias, "sigmoid")
        segment = export_function(lambda image: {"mask": network(image)}, image=(size, size, 1))
        super().__init__("bright", {"generator": network}, {"generator": segment})


class Weightless(KnownModel):
    """A model of one function that needs no weights, named after a network that it does not use.

    Args:
        name: The function's.
        call: Named tensors -> a dict of tensors.
        inputs: Name -> the shape of one.
    """

    def __init__(self, name, call, **inputs):
        specs = [tf.TensorSpec([None, *shape], tf.float32, key) for key, shape in inputs.items()]
        function = tf.function(call, input_signature=specs)
        super().__init__("known", {name: make_pixelwise(8, 1.0, 0.0)}, {name: function})


def make_functions(networks, size: int) -> dict:
    """Make the functions of a generator, an inverter and a critic of pairs, by these names."""
    shape = (size, size, 1)
    return {
        "generator": export_function(
            lambda mask: {"image": networks["generator"](mask)}, mask=shape
        ),
        "inverter": export_function(
            lambda image: {"mask": networks["inverter"](image)}, image=shape
        ),
        "critic": export_function(
            lambda mask, image: {"logits": networks["critic"](tf.concat([mask, image], -1))},
            mask=shape,
            image=shape,
        ),
    }


def make_card(patches, data, **config) -> dict:
    """Make the card that a training run on these patches writes, with other parts of its config."""
    train, held_out = splits.split(patches, data)
    return {
        "split": data.split,
        "data_fingerprint": train.fingerprint(),
        "train_patients": sorted(set(train.patient_ids.tolist())),
        "held_out_ids": held_out.ids.tolist(),
        "config": {"data": data.model_dump(mode="json"), **config},
    }
