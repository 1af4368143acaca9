"""The classifier of patches: ResNet-50, a lesion or none, on real patches and a share of
synthetic ones (Wu, Wu and Lotter 2020).

    L = BCE(logit, label), positive and negative patches equally often
    a patch is synthetic with probability  share * (1 - decay)^floor(samples / 5,000),  decay = 0.1

so that the classifier sees more and more real patches, as if it were fine-tuned on them. Over the
500,000 samples of a training a tenth of the share is synthetic in the mean.

Departures and what the paper leaves open:
- "Decayed by 10 %" is read as times 0.9; `decay_as: points` takes 10 percentage points off instead.
  5,000 of 500,000 samples are
  a hundredth of the training (`decay_every`), and a hundredth they stay where a training is
  shorter: its mean exposure to
  synthetic patches is the paper's.
- The share is that of either class. Within a pool (real or synthetic, positive or negative) patches
  come in random order, all
  of them before any comes again.
- Grey patches are repeated three times and made what ResNet-50's weights expect: 255 * image less
  ImageNet's mean colour.
- The batch size: 20 in configs/classifier.yaml, of which 250 are the 5,000 samples between
  validations.
- No weight decay and no dropout: the text names neither.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import keras
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tfmammo import pretrained
from tfmammo.config import Frozen
from tfmammo.errors import ConfigError
from tfmammo.layers import step_seed
from tfmammo.networks import Trainable
from tfmammo.optimization import Adam, build, minimize

# what a training patch's label counts
POOLS = ("real normal", "real lesion", "synthetic normal", "synthetic lesion")
BLOCKS = (3, 4, 6, 3)  # ResNet-50's
SMALLEST = 32  # px, of which the last map is one


class ClassifierConfig(Frozen):
    """The paper's values; see *Departures* in the module for those it leaves open."""

    weights: str = "imagenet"
    """"imagenet" (downloaded, 94 MB), the path of Keras's ResNet-50 without top (.h5), or "none".
    """
    filters: PositiveInt = 64
    """Of the first stage."""
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = BLOCKS
    """Of each of the four stages; other numbers than ResNet-50's need weights "none"."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Of the running means of batch normalisation."""
    learning_rate: PositiveFloat = 1e-5
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    share: float = Field(default=0.0, ge=0, le=1)
    """Of synthetic patches at the start."""
    synthetic: Path | None = None
    """The folder that they lie in, which `python -m tfmammo.synthesis.patches` wrote."""
    decay: float = Field(default=0.1, ge=0, le=1)
    """Part of the share that is lost every decay_every, or with decay_as points what is taken off
    it.
    """
    decay_every: float = Field(default=0.01, gt=0, le=1)
    """Part of the training."""
    decay_as: Literal["factor", "points"] = "factor"
    samples: PositiveInt | None = None
    """Of the whole training; null: what its steps and batch come to, which
    tfmammo.studies.classification fills in before the first step.
    """
    positives: Literal["malignant", "lesion"] = "malignant"
    """"malignant" lesions, or every "lesion"."""

    @model_validator(mode="after")
    def _consistent(self) -> ClassifierConfig:
        if self.weights != "none" and (self.filters, self.blocks) != (64, BLOCKS):
            raise ValueError(
                f"weights {self.weights} are of ResNet-50: filters 64 and blocks {list(BLOCKS)}; "
                "take weights none"
            )
        return self


class Classifier(Trainable):
    """One network, "classifier", from patch to features and logit, with its optimizer; built on
    construction.

    Args:
        config: The paper's values or yours.
        size: Patch rows and columns, px.

    Raises:
        ConfigError: Patches of that size vanish, or nothing says how long the share decays.
        WeightsError: The weights can't be had.

    Source:
        Section 3. 23,536,641 trainable parameters.
    """

    def __init__(self, config: ClassifierConfig | None = None, size: int = 256) -> None:
        super().__init__(name="classifier")
        self.config = config = config or ClassifierConfig()
        self.size = size
        if size < SMALLEST:
            raise ConfigError(
                f"data.size: of patches of {size} px nothing is left behind five halvings, they "
                f"need {SMALLEST}"
            )
        if config.share and config.samples is None:
            raise ConfigError(
                "model.samples: how many the training has must be known, for model.share to decay "
                "over it"
            )
        self.network = resnet(size, config.filters, config.blocks, config.momentum)
        if config.weights != "none":
            adopt(self.network, pretrained.resnet50(config.weights))
        self.networks = {"classifier": self.network}
        optimizer = Adam(config.learning_rate, config.beta_1, config.beta_2, name="classifier")
        self.optimizers = {"classifier": build(optimizer, self.network)}

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update.

        Args:
            batch: "image", float32 [batch, size, size, 1] in [0, 1], and "label", int32 [batch], an
                index of POOLS, of each that there is equally often. Without synthetic pools all
                patches are used, else half of them: of each two, one real and one synthetic, one.

        Returns:
            float32 scalars: the loss, the accuracy on the batch, and the share of synthetic patches
            in it.

        Raises:
            ConfigError: The batch has no labels.
        """
        if "label" not in batch:
            raise ConfigError(
                f"the classifier needs patches labelled {', '.join(POOLS)}, these have no labels"
            )
        image, label, synthetic = self.mixed(batch)
        with tf.GradientTape() as tape:
            _, logit = self.network(image, training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, logit[:, 0]))
        minimize(loss, self.network, self.optimizers["classifier"], tape)
        right = tf.cast((logit[:, 0] > 0) == (label > 0), tf.float32)
        return {
            "classifier_loss": loss,
            "accuracy": tf.reduce_mean(right),
            "synthetic": tf.reduce_mean(synthetic),
        }

    def mixed(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The samples of a batch of all pools, each real or synthetic as this step's share decides.

        Returns:
            Image float32 [n, size, size, 1], label float32 [n], 1 positive, and float32 [n], 1
            where it is synthetic.
        """
        if not self.config.share:
            return (
                batch["image"],
                tf.cast(batch["label"], tf.float32),
                tf.zeros_like(batch["label"], tf.float32),
            )
        pools = tf.dynamic_partition(batch["image"], batch["label"], len(POOLS))
        real = tf.concat(pools[:2], axis=0)
        synthetic = tf.concat(pools[2:], axis=0)
        negatives = tf.shape(pools[0])[0]
        positives = tf.shape(pools[1])[0]
        label = tf.concat([tf.zeros([negatives]), tf.ones([positives])], axis=0)
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        steps = tf.cast(self._steps(), tf.int64)
        samples = steps * tf.cast((negatives + positives) * replicas, tf.int64)
        uniform = tf.random.stateless_uniform(tf.shape(label), step_seed(steps))
        chosen = uniform < share_at(self.config, samples)
        return (
            tf.where(chosen[:, None, None, None], synthetic, real),
            label,
            tf.cast(chosen, tf.float32),
        )

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The image grid's panels: the patch, and a panel as bright as a lesion is probable."""
        probability = self.classify(batch["image"])["probability"]
        return {
            "patch": batch["image"],
            "probability": probability[:, None, None, None] * tf.ones_like(batch["image"]),
        }

    def classify(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """{"probability": of a lesion, float32 [n], "features": of the last layer before, float32
        [n, 32 * filters]}.
        """
        features, logit = self.network(image)
        return {"probability": tf.sigmoid(logit[:, 0]), "features": features}

    def functions(self) -> dict[str, Callable]:
        """What is exported: {"classifier": image float32 [n, size, size, 1] in [0, 1] -> as
        `classify`}.
        """

        @tf.function(
            input_signature=[tf.TensorSpec([None, self.size, self.size, 1], tf.float32, "image")]
        )
        def classifier(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.classify(image)

        return {"classifier": classifier}

    def _steps(self) -> tf.Tensor:
        """Updates so far, those that float16 made the optimizer skip left out; of the optimizer, so
        that they are saved.
        """
        optimizer = self.optimizers["classifier"]
        inner = (
            optimizer.inner_optimizer
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            else optimizer
        )
        return tf.convert_to_tensor(inner.iterations)


def share_at(config: ClassifierConfig, samples: tf.Tensor | int) -> tf.Tensor:
    """The share of synthetic patches after so many of config.samples, float32 scalar in [0, 1].

    Source:
        Section 3, Patch Classifier Training.
    """
    assert config.samples
    every = max(1, round(config.decay_every * config.samples))
    decays = tf.cast(samples // every, tf.float32)
    if config.decay_as == "points":
        return tf.maximum(config.share - config.decay * decays, 0.0)
    return config.share * (1 - config.decay) ** decays


def resnet(
    size: int, filters: int = 64, blocks: tuple[int, ...] = BLOCKS, momentum: float = 0.99
) -> keras.Model:
    """ResNet on grey patches: float32 [n, size, size, 1] in [0, 1] -> features float32 [n, 32 *
    filters], logit float32 [n, 1].

    Layers with weights have the names that they have in keras.applications.ResNet50.

    Source:
        He et al., Deep residual learning for image recognition (2016), Table 1, stride in the first
        1 x 1 convolution.
    """
    layers = keras.layers

    def normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.BatchNormalization(momentum=momentum, epsilon=1.001e-5, name=f"{name}_bn")(x)

    def block(x: keras.KerasTensor, width: int, stride: int, name: str) -> keras.KerasTensor:
        shortcut = x
        if stride > 1 or x.shape[-1] != 4 * width:
            shortcut = normalised(
                layers.Conv2D(4 * width, 1, stride, name=f"{name}_0_conv")(x), f"{name}_0"
            )
        x = layers.ReLU()(
            normalised(layers.Conv2D(width, 1, stride, name=f"{name}_1_conv")(x), f"{name}_1")
        )
        x = layers.ReLU()(
            normalised(
                layers.Conv2D(width, 3, padding="same", name=f"{name}_2_conv")(x), f"{name}_2"
            )
        )
        x = normalised(layers.Conv2D(4 * width, 1, name=f"{name}_3_conv")(x), f"{name}_3")
        return layers.ReLU()(layers.Add()([shortcut, x]))

    image = keras.Input((size, size, 1), dtype="float32", name="image")
    x = layers.Concatenate(dtype="float32")([image] * 3)
    x = layers.Rescaling(255.0, [-mean for mean in pretrained.KERAS_MEAN], dtype="float32")(x)
    x = layers.Conv2D(filters, 7, 2, name="conv1_conv")(layers.ZeroPadding2D(3)(x))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(layers.ReLU()(normalised(x, "conv1"))))
    for stage, depth in enumerate(blocks):
        for number in range(depth):
            stride = 2 if stage and not number else 1
            x = block(x, filters * 2**stage, stride, f"conv{stage + 2}_block{number + 1}")
    features = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    logit = layers.Dense(1, dtype="float32", name="logit")(features)
    return keras.Model(image, [features, logit], name="classifier")


def adopt(network: keras.Model, published: keras.Model) -> None:
    """Give the network the weights of a ResNet-50 without top; all but its head."""
    for layer in published.layers:
        if layer.weights:
            network.get_layer(layer.name).set_weights(layer.get_weights())
