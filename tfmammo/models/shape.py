"""Shape CNN: the shape of a tumour from its 64 x 64 mask alone (Singh et al.).

Sources: a review of the paper (Sik-Ho Tsang, 2022), whose sections are cited, and some facts from
the article.

    conv 9x9x64 - max pool 4 - conv 5x5x128 - max pool 4 - conv 4x4x256 (valid) - FC 128, dropout
    0.5 - FC 4

    L = -(1 - n_c / N) log p_c        c: the true class, n_c of the N training masks are of it

Deviations and what the text leaves open:
- ReLU after every layer but the last, and "same" padding of the first two convolutions: the only
  reading that leaves one position to the third and gives the 768,132 parameters.
- The weighted losses are averaged over the batch, not divided by the sum of their weights.
- Masks are in [0, 1], 1 on the lesion. Initial weights are Keras's (Glorot's, biases 0).
- The text downsamples the cGAN's mask of its loose crop, which was scaled by two factors. Here a
  mass is cut out of its mammogram again. The crop is a square, 5 % wider than the mass's box on
  either side, so that an oval stays one.
- RMSprop's 0.9 is read as its momentum, which makes steps about ten times as long. It may have been
  its decay (Keras's rho), which is 0.9 here too; `momentum: 0` is that reading.
- Augmentation: each draw is transformed by a random one of the eight symmetries of the square
  (`data.augment`); the text names none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from pydantic import Field, PositiveFloat

from tfmammo.config import Frozen, Width
from tfmammo.errors import ConfigError
from tfmammo.mammogram import SHAPES
from tfmammo.nn.convolutions import Convolution, Dense
from tfmammo.nn.layers import Dropout
from tfmammo.nn.networks import Trainable, export_function
from tfmammo.nn.optimization import build, minimize


class ShapeConfig(Frozen):
    """The article's values."""

    learning_rate: PositiveFloat = 1e-3
    """RMSprop's learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """RMSprop's momentum."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share dropped after the first fully connected layer."""
    filters: tuple[Width, Width, Width] = (64, 128, 256)
    """Filters of the three convolutions."""
    units: Width = 128
    """Units of the first fully connected layer."""


def class_weights(counts: Sequence[int]) -> list[float]:
    """Compute 1 - n_c / N for every class, from the number of training masks of each."""
    return [1 - count / sum(counts) for count in counts]


class ShapeCNN(Trainable):
    """One network, "classifier", from mask to four shapes, with its optimizer.

    Args:
        config: The article's values or yours.
        size: Mask rows and columns, px.
        weights: Weight of each class in the loss, from `class_weights`; by default 1.

    Examples:
        >>> ShapeCNN(ShapeConfig()).networks["classifier"].count_params()
        768132

    Source:
        Section 3. 768,132 trainable parameters.
    """

    def __init__(
        self,
        config: ShapeConfig | None = None,
        size: int = 64,
        weights: Sequence[float] = (1.0,) * len(SHAPES),
    ) -> None:
        super().__init__(name="shape")
        self.config = config = config or ShapeConfig()
        self.size = size
        self.weights_of_classes = tuple(weights)
        if size < 64:
            raise ConfigError(
                f"data.size: masks of {size} px are too small, two poolings by 4 and a 4 x 4 "
                "convolution need 64"
            )
        layers = keras.layers
        self.network = keras.Sequential(
            [
                keras.Input((size, size, 1)),
                Convolution(config.filters[0], 9, padding="same", activation="relu"),
                layers.MaxPooling2D(4),
                Convolution(config.filters[1], 5, padding="same", activation="relu"),
                layers.MaxPooling2D(4),
                Convolution(config.filters[2], 4, padding="valid", activation="relu"),
                layers.Flatten(),
                Dense(config.units, activation="relu"),
                Dropout(config.dropout),
                Dense(len(SHAPES)),
                layers.Activation("linear", dtype="float32"),
            ],
            name="classifier",
        )
        self.networks = {"classifier": self.network}
        optimizer = keras.optimizers.RMSprop(
            config.learning_rate, momentum=config.momentum, name="classifier"
        )
        self.optimizers = {"classifier": build(optimizer, self.network)}

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update the network once on "mask" and "label", int32 [batch], an index of SHAPES.

        The scalars are the weighted loss, and the accuracy on the batch.
        """
        labels = batch["label"]
        with tf.GradientTape() as tape:
            logits = self.network(batch["mask"], training=True)
            cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(
                tf.gather(tf.constant(self.weights_of_classes), labels) * cross_entropy
            )
        minimize(loss, self.network, self.optimizers["classifier"], tape)
        predicted = tf.argmax(logits, axis=-1, output_type=labels.dtype)
        is_right = tf.cast(predicted == labels, tf.float32)
        return {"classifier_loss": loss, "accuracy": tf.reduce_mean(is_right)}

    def classify(self, mask: tf.Tensor) -> tf.Tensor:
        """Compute the probabilities of SHAPES, float32 [batch, 4], of masks in [0, 1]."""
        return tf.nn.softmax(self.network(mask))

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid: the mask, and four bars.

        Each shape has a bar, as bright as the shape is probable.
        """
        bars = tf.repeat(self.classify(batch["mask"]), self.size // len(SHAPES), axis=1)
        panel = tf.tile(bars[:, tf.newaxis, :, tf.newaxis], [1, self.size, 1, 1])
        return {
            "mask": batch["mask"],
            " ".join(SHAPES): tf.image.pad_to_bounding_box(panel, 0, 0, self.size, self.size),
        }

    def functions(self) -> dict[str, Callable]:
        """Return what is exported: "classifier", mask -> shapes, float32 [batch, 4]."""
        shape = (self.size, self.size, 1)
        return {
            "classifier": export_function(lambda mask: {"shapes": self.classify(mask)}, mask=shape)
        }
