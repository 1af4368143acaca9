"""Classifier of patches with and without lesion: ResNet-50 (Wu, Wu and Lotter 2020).

It is trained on real patches and a share of synthetic ones:

    L = BCE(logit, label), positive and negative patches equally often
    a patch is synthetic with probability  share * (1 - decay)^floor(samples / 5,000),  decay = 0.1

The classifier thus sees more and more real patches, as if it were fine-tuned on them. Over the
500,000 samples of a run a tenth of the share is synthetic on average.

Deviations, and what the paper leaves open:
- "Decayed by 10 %" is read as times 0.9; `decay_as: points` subtracts 10 percentage points instead.
  5,000 of 500,000 samples are a hundredth of the training (`decay_every`). They stay a hundredth
  where a run is shorter, so that its mean exposure to synthetic patches is the paper's.
- The text made training patches of 3,500 benign masses and 6,580 benign calcifications for its task
  of cancer or no cancer, and does not say how they were used: most likely as negatives, the default
  here (`negatives`). `normal` leaves them out. Validation and test patches are malignant and normal
  ones, as in the text. With `positives: lesion` benign lesions are positive.
- Patches near lesions are 90 % breast, as normal ones are (`sampling.lesion_tissue`); the text may
  mean normal ones alone.
- The share is the same for both classes. Within a pool (real or synthetic, positive or negative)
  patches come in random order, all of them before any repeats. With a share a patch is drawn from
  either pool, and one of the two is used.
- Grey patches are repeated three times and scaled as ResNet-50's weights expect: 255 * image less
  ImageNet's mean colour.
- The batch size is 20 in configs/classifier.yaml; 250 batches are the 5,000 samples between
  validations.
- No weight decay and no dropout: the text names neither.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import keras
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tfmammo.config import FIXED, Frozen, Width
from tfmammo.errors import ConfigError, name_key
from tfmammo.nn.layers import draw_uniform, part_by_label, step_seed
from tfmammo.nn.networks import Trainable, export_function, resnet_stages
from tfmammo.nn.optimization import build_adam, count_batches, minimize
from tfmammo.nn.pretrained import adopt_resnet

# What a training patch's label is an index of; "normal" means all negatives.
POOLS = ("real normal", "real lesion", "synthetic normal", "synthetic lesion")
BLOCKS = (3, 4, 6, 3)  # ResNet-50's
SMALLEST = 32  # px, whose last map is one px


Control = Literal["copies", "pasted", "brightened", "fresh"]


class ClassifierConfig(Frozen):
    """The paper's values; see *Deviations* in the module for those it leaves open."""

    weights: Annotated[str, FIXED] = "imagenet"
    """Initial weights: "imagenet" (downloaded, 94 MB), the path of Keras's ResNet-50 without top
    (.h5), or "none".
    """
    filters: Width = 64
    """Filters of the first stage."""
    blocks: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], FIXED] = BLOCKS
    """Blocks of each of the four stages; other numbers than ResNet-50's need weights "none"."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Decay of batch normalisation's running averages."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the second moment."""
    share: float = Field(default=0.0, ge=0, le=1)
    """Share of synthetic patches at the start."""
    synthetic: Path | None = None
    """Folder of the synthetic patches, which `tfmammo synthesize-patches` wrote."""
    control: Control | None = None
    """What takes the place of the synthetic patches, to see whether a gain is theirs; see
    studies/classification_controls.py. null: they are used themselves.
    """
    patient_parts: PositiveInt = 1
    """Real patches are those of one of this many parts of the training patients. The control
    "fresh" draws from the other parts.
    """
    decay: float = Field(default=0.1, ge=0, le=1)
    """How much the share decays every decay_every: a factor of 1 - decay, or with decay_as "points"
    a difference.
    """
    decay_every: float = Field(default=0.01, gt=0, le=1)
    """Interval of the decay, as a share of the training."""
    decay_as: Literal["factor", "points"] = "factor"
    """Whether the share decays by a factor or by percentage points."""
    samples: PositiveInt | None = None
    """Samples of the whole training. null: steps times batch size, which
    tfmammo.studies.classification fills in before the first step.
    """
    positives: Literal["malignant", "lesion"] = "malignant"
    """Which patches are positive: "malignant" lesions, or every "lesion"."""
    negatives: Literal["normal_and_benign", "normal"] = "normal_and_benign"
    """Which training patches are negative: normal tissue, alone or with benign lesions, unless
    `positives` counts those. Validation and test patches show normal tissue or positives.
    """

    @model_validator(mode="after")
    def _consistent(self) -> ClassifierConfig:
        if self.weights != "none" and (self.filters, self.blocks) != (64, BLOCKS):
            raise ValueError(
                f"weights {self.weights} are of ResNet-50: filters 64 and blocks {list(BLOCKS)}; "
                "take weights none"
            )
        return self


class Classifier(Trainable):
    """One network, "classifier", from patch to features and logit, with its optimizer.

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
            with name_key("model.weights"):
                source = adopt_resnet(self.network, "resnet50", config.weights)
            self.pretrained = {"classifier": source}
        self.networks = {"classifier": self.network}
        self.optimizers = build_adam(
            self.networks, config.learning_rate, config.beta_1, config.beta_2
        )

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update the network once on "image" and "label", int32 [batch], an index of POOLS.

        Every pool that there is occurs equally often. Without synthetic pools all patches are used.
        Otherwise a real and a synthetic patch form a pair, of which one is used. A batch without
        labels is a ConfigError. The scalars are the loss, the accuracy on the batch, and the share
        of synthetic patches in it.
        """
        if "label" not in batch:
            raise ConfigError(
                f"the classifier needs patches labelled {', '.join(POOLS)}, these have no labels"
            )
        image, label, synthetic = self.mix(batch)
        with tf.GradientTape() as tape:
            _, logit = self.network(image, training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, logit[:, 0]))
        minimize(loss, self.network, self.optimizers["classifier"], tape)
        is_right = tf.cast((logit[:, 0] > 0) == (label > 0), tf.float32)
        return {
            "classifier_loss": loss,
            "accuracy": tf.reduce_mean(is_right),
            "synthetic": tf.reduce_mean(synthetic),
        }

    def mix(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Select the samples of a batch of all pools, real or synthetic as the share decides.

        Returns images, labels, float32 [n], 1 positive, and float32 [n], 1 where it is synthetic.
        """
        if not self.config.share:
            label = tf.cast(batch["label"], tf.float32)
            return batch["image"], label, tf.zeros_like(label)
        pools = part_by_label(batch["image"], batch["label"], range(len(POOLS)))
        real = tf.concat(pools[:2], axis=0)
        synthetic = tf.concat(pools[2:], axis=0)
        each = len(pools[0])
        label = tf.concat([tf.zeros([each]), tf.ones([each])], axis=0)
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        batches = tf.cast(count_batches(self.optimizers["classifier"]), tf.int64)
        samples = batches * (2 * each * replicas)
        uniform = draw_uniform(tf.shape(label), step_seed(batches))
        is_synthetic = uniform < share_at(self.config, samples)
        image = tf.where(is_synthetic[:, None, None, None], synthetic, real)
        return image, label, tf.cast(is_synthetic, tf.float32)

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid: the patch, and one as bright as a lesion is probable."""
        probability = self.classify(batch["image"])["probability"]
        return {
            "patch": batch["image"],
            "probability": probability[:, None, None, None] * tf.ones_like(batch["image"]),
        }

    def classify(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Compute "probability" of a lesion, [n], and "features", [n, 32 * filters]."""
        features, logit = self.network(image)
        return {"probability": tf.sigmoid(logit[:, 0]), "features": features}

    def functions(self) -> dict[str, Callable]:
        """Return what is exported: "classifier", see `classify`."""
        shape = (self.size, self.size, 1)
        return {"classifier": export_function(lambda image: self.classify(image), image=shape)}


def share_at(config: ClassifierConfig, samples: tf.Tensor | int) -> tf.Tensor:
    """Compute the share of synthetic patches after some samples, float32 scalar in [0, 1].

    Source: Section 3, Patch Classifier Training.
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
    """Build a ResNet on grey patches; see `networks.resnet_stages`.

    float32 [n, size, size, 1] in [0, 1] -> features float32 [n, 32 * filters], logit float32 [n, 1]
    """
    image = keras.Input((size, size, 1), dtype="float32", name="image")
    *_, x = resnet_stages(image, filters, blocks, momentum=momentum)
    features = keras.layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    logit = keras.layers.Dense(1, dtype="float32", name="logit")(features)
    return keras.Model(image, [features, logit], name="classifier")
