"""Growth and weight copying of the contextual GAN's networks (Karras et al. 2017).

A grown network takes over the weights of the network for half its size and has one more level,
outside the others. The new level is faded in, t being the steps since the growth:

    output = (1 - alpha) * old + alpha * new,    alpha = min(t / fade_steps, 1)

The old path sees the patch at half its resolution. At alpha = 0 the grown network therefore gives
the output of the small one.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmammo.errors import ConfigError
from tfmammo.nn.networks import Network

# Layers between the outermost level and the patch. A small network's `NAME` becomes the grown
# network's `old_NAME`, through which the old path goes.
ENDS = ("from_image", "to_lesion")


class GrowingNetwork(Network):
    """A network that fades in its outermost level where a smaller network comes before it.

    A subclass calls `add_step_counter` in its constructor and names its layers in `named_layers`.

    Args:
        name: Name of the network, which error messages quote.
        size: Patch rows and columns, px.
        start: Size of the first stage, px; networks for more are grown ones.
        fade_steps: Steps until alpha is 1.
    """

    def __init__(self, name: str, size: int, start: int, fade_steps: int) -> None:
        # every layer casts its input itself, or follows its dtype
        super().__init__(name=name, dtype="float32", autocast=False)
        self.size = size
        self.start = start
        self.fade_steps = fade_steps
        self.grown = size > start

    def add_step_counter(self) -> None:
        """Create `steps`, the training steps of this stage so far, int64."""
        self.steps = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int64",
            trainable=False,
            name="steps",
            autocast=False,
        )

    def named_layers(self) -> dict[str, keras.layers.Layer]:
        """Return every layer with weights; a level has the same name at every size."""
        raise NotImplementedError

    def alpha(self, dtype: tf.DType) -> tf.Tensor:
        """Compute the weight of the new level: 0 at a stage's first step, 1 from fade_steps on."""
        steps = tf.cast(tf.convert_to_tensor(self.steps), tf.float32)
        return tf.cast(tf.minimum(steps / self.fade_steps, 1.0), dtype)

    def is_faded_in(self) -> bool:
        """Return whether the old resolution no longer contributes to the output."""
        return not self.grown or float(self.alpha(tf.float32)) >= 1

    def blend(self, old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """Compute (1 - alpha) * old + alpha * new, in the dtype of `new`."""
        alpha = self.alpha(new.dtype)
        return (1 - alpha) * tf.cast(old, new.dtype) + alpha * new

    def grow(self, small: GrowingNetwork) -> None:
        """Take over the weights of the network for half the size.

        One for another size, or one that is not faded in itself, is a ConfigError.
        """
        if not self.grown or 2 * small.size != self.size:
            raise ConfigError(
                f"{self.name}: networks for {small.size} px can't grow to {self.size} px "
                f"(model.start: {self.start})"
            )
        if not small.is_faded_in():
            steps = int(tf.convert_to_tensor(small.steps))
            raise ConfigError(
                f"{self.name}: the networks for {small.size} px are not faded in after {steps} "
                "steps (model.fade_steps)"
            )
        targets = self.named_layers()
        for name, layer in small.named_layers().items():
            # the small network's own old path is of no use after its fading in
            if not name.startswith("old_"):
                copy_weights(layer, targets[f"old_{name}" if name in ENDS else name])


def list_stages(start: int, size: int) -> list[int]:
    """Return the sizes that networks grow through, px; the last one is `size`.

    A ConfigError where `start` can't be doubled to `size`.
    """
    sizes = [size]
    while sizes[0] > start and sizes[0] % 2 == 0:
        sizes.insert(0, sizes[0] // 2)
    if sizes[0] != min(start, size):
        raise ConfigError(f"model.start: {start} px can't be doubled to data.size, {size} px")
    return sizes


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Give a layer or network all variables of another one of the same structure."""
    for variable, value in zip(target.variables, source.variables, strict=True):
        variable.assign(value)


def update_average(average: keras.Model, network: keras.Model, decay: float) -> None:
    """Move a running average towards a network of the same structure.

    What is not trained (the step, and u of spectral normalisation) is copied.
    """
    for mean, weight in zip(average.trainable_variables, network.trainable_variables, strict=True):
        mean.assign(decay * mean + (1 - decay) * weight)
    for copy, value in zip(
        average.non_trainable_variables, network.non_trainable_variables, strict=True
    ):
        copy.assign(value)
