"""Contextual GAN: lesions added to normal patches, or removed from others (Wu, Wu and Lotter 2020).

A generator G takes a patch x and random numbers z and returns a lesion alone. The lesion is added
to the patch, so the output is (lesion, x, x + lesion). A discriminator D knows four classes:

    L_D = CE(D(real), real) + CE(D(x + G(x, z)), fake)
        + 0.2 * (CE(D(benign), benign) + CE(D(normal), normal)) + penalty
    L_G = CE(D(x + G(x, z)), real)
    penalty = lambda * E[(|grad D(X + delta)| - k)^2],  lambda = 10, k = 1

Real patches are malignant, x is a normal one. One model adds masses, one adds calcifications, one
removes lesions. For removal real and normal change places.

Both networks are grown: trained at 128 px first, then a level is added to each and faded in over
3,000 steps (growth.py). Levels are numbered as in Fig. 2, outermost first. The network for 128 px
lacks level 1; a 1 x 1 convolution (`from_image`) gives level 2 its 16 channels instead.

    level    encoder, px    encoder, channels    decoder, px    decoder, channels
               in    out          G         D      in    out                    G
    1         256    128         16       128     128    256                   16   256 px only
    2         128     64         32       256      64    128                   16
    3          64     32         64       512      32     64                   32   attention
    4          32     16        128     1,024      16     32                   64
    5          16      8        256     2,048       8     16                  128
    6           8      4        512     4,096       4      8                  256
    centre      4      1          4         4       1      4                    4   repeated

Inside, images and lesions are in [-1, 1]. At public borders images are in [0, 1]; a lesion stays in
[-1, 1] and so is on twice their scale: image + lesion / 2.

Deviations, and what the paper leaves open:
- 16 filters doubled over six blocks end at 4 x 4 x 512; the text's 2048 takes 64 (`filters`).
- Attention at 32 x 32 is in both encoders. The paper says that it "is also used in the encoding
  part", which rather means the decoder's as well (`attention_in_decoder`). Spectral normalisation
  is D's, as in the cited paper. The sentence that names both it and self-attention rather means G's
  too (`spectral: both`). The readings have not been compared here.
- Decoder widths mirror the encoder's. The embedding is repeated to 4 x 4. LeakyReLU's slope is 0.2.
  Initial weights are Keras's (Glorot's, biases 0).
- G's loss is not printed: L_G above is that of a non-saturating GAN, over the four classes.
- D sees x + lesion alone, clipped to [-1, 1], as a real patch has no lesion; no random numbers.
- The penalty is on log p(real) / p(fake), the logit of the two-class D that the head extends. It is
  computed in float32 at every precision. The text prints delta ~ U(0, 1), which brightens a patch
  by a quarter of its range on average (`delta: as_printed`). By default it is the cited code's
  (DRAGAN): alpha * 0.5 * std(X) * U(0, 1) with one alpha ~ U(0, 1) for each patch.
- The border is 10 px at 128 px too. Its crop is hard: a lesion that reaches it ends in a line.
- A step updates D, then G, twice for masses (`generator_updates`), each time with new z.
- A running average of G (`ema`) is exported for use. Adam starts afresh when the networks grow.
- How the paper chooses a generator is not said. Here the sliced Wasserstein distance to held-out
  lesions does, or a classifier of real patches (`judge`), of another seed than those that score it.
- Neither batch size nor length are given: 12 patches, 20,000 steps at 128 px, 40,000 at 256 px.
- The paper draws 400,000 normal and 76,460 lesion patches for training, and 1,000 of each kind for
  each other subset. Here patches are kept in memory: `sampling.count` and `sampling.normals` are
  drawn from all patients, of whom 2/3, 1/6 and 1/6 are in the subsets, not 60, 20 and 20 %.
- Patches near lesions are 90 % breast too (`sampling.lesion_tissue`). The text is open there.
- Removal: "lesions" are of both kinds. The third class stays benign, the fourth is malignant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo.config import FIXED, Frozen, Width
from tfmammo.errors import ConfigError
from tfmammo.nn.convolutions import Convolution
from tfmammo.nn.growth import GrowingNetwork, copy_weights, list_stages, update_average
from tfmammo.nn.layers import (
    SelfAttention,
    SpectralNormalization,
    cached_kernels,
    draw_uniform,
    find_normalized,
    part_by_label,
    sample_latent_noise,
    step_seed,
    upsample,
)
from tfmammo.nn.networks import Trainable, export_function, leaky_relu
from tfmammo.nn.normalization import compute_batch_moments
from tfmammo.nn.optimization import build_adam, count_batches, ends_step, minimize
from tfmammo.nn.postprocessing import PostprocessConfig, Refined, postprocess

PATHOLOGIES = ("malignant", "benign", "normal")  # what a patch's label is an index of
# D's classes; "source" is what G starts from, normal in the paper
CLASSES = ("real", "fake", "benign", "source")
KINDS = {
    "mass": ("mass",),
    "calcification": ("calcification",),
    "removal": ("mass", "calcification"),
}
INNERMOST = 4  # px of the innermost map

# What a step draws random numbers for; see layers.step_seed.
DISCRIMINATOR_NOISE = 0
PENALTY_ALPHA = 1
PENALTY_DIRECTION = 2
GENERATOR_NOISE = 3  # G's further updates in one step count on from here


class ContextualConfig(Frozen):
    """The paper's values; see *Deviations* in the module for those it leaves open."""

    target: Literal["mass", "calcification", "removal"] = "mass"
    """What is added, or "removal" of both."""
    positives: Literal["malignant", "lesion"] = "malignant"
    """Which lesions are real (for removal the source). With "malignant" benign ones are a class of
    their own; with "lesion" all lesions are real and there is no benign class.
    """
    filters: tuple[Width, ...] = Field(default=(16, 32, 64, 128, 256, 512), min_length=1)
    """Channels of G's levels, outermost first; n levels take patches of 4 * 2^n px to 4 x 4."""
    discriminator_factor: Annotated[PositiveInt, FIXED] = 8
    """Factor between D's channels and G's."""
    embedding: Annotated[PositiveInt, FIXED] = 4
    """Channels of G's centre."""
    attention: Annotated[PositiveInt | None, FIXED] = 32
    """Size of the map with self-attention, px; null leaves attention out."""
    attention_in_decoder: Annotated[bool, FIXED] = False
    """Put self-attention into G's decoder as well."""
    spectral: Annotated[Literal["discriminator", "both"], FIXED] = "discriminator"
    """Networks whose kernels are normalised."""
    border: Annotated[NonNegativeInt, FIXED] = 10
    """Width of the border without lesion, px."""
    start: Annotated[PositiveInt, FIXED] = 128
    """Patch size of the first stage, px."""
    start_steps: PositiveInt = 20_000
    """Steps of each stage but the last, which has training.steps."""
    fade_steps: PositiveInt = 3000
    """Steps over which a new level is faded in."""
    lambda_penalty: NonNegativeFloat = 10.0
    """Weight of the gradient penalty; 0 leaves it out."""
    k: NonNegativeFloat = 1.0
    """Norm of the gradient that the penalty aims at."""
    delta: Literal["dragan", "as_printed"] = "dragan"
    """The penalty's delta, of patches in [-1, 1]: the cited code's, or U(0, 1)."""
    other_weight: NonNegativeFloat = 0.2
    """Weight of the losses of benign and normal patches."""
    generator_updates: PositiveInt | None = None
    """Updates of G for each of D; null means 2 for masses, else 1."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate, of both networks."""
    beta_1: float = Field(default=0.0, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    """Adam's decay of the second moment."""
    epsilon: PositiveFloat = 1e-8
    """Adam's epsilon."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Weight of the past in the running average of G."""
    postprocess: PostprocessConfig = PostprocessConfig()
    """Post-processing of the lesion channel."""
    judge: str | None = None
    """Model URI of a run of train/classifier.py on real patches, with the same data section and a
    seed that no scorer of G has. The best weights are those with the lesions that it is most
    certain of. null: those with the patches that are most like real ones as a set.
    """
    judge_seed: NonNegativeInt | None = None
    """The judge's training.seed, which tfmammo.studies.progressive fills in."""

    def roles(self) -> tuple[str, str]:
        """Return which of PATHOLOGIES is real, and which one G starts from."""
        return ("normal", "malignant") if self.target == "removal" else ("malignant", "normal")

    def stages(self, size: int) -> list[int]:
        """Return the sizes that the networks grow through, px; see `growth.list_stages`."""
        return list_stages(self.start, size)


def cross_entropy(logits: tf.Tensor, name: str) -> tf.Tensor:
    """Compute -log p(name), one of CLASSES, of logits [batch, 4]; 0 for an empty batch."""
    log_likelihoods = tf.nn.log_softmax(logits)[:, CLASSES.index(name)]
    count = tf.cast(tf.shape(logits)[0], tf.float32)
    return -tf.math.divide_no_nan(tf.reduce_sum(log_likelihoods), count)


def four_way(logits: Sequence[tf.Tensor], other_weight: float = 0.2) -> tf.Tensor:
    """Compute CE(real) + CE(fake) + other_weight * (CE(benign) + CE(source)), for D.

    The logits, float32 [n, 4], are of the patches of each class, in the order of CLASSES.
    """
    real, fake, benign, source = (
        cross_entropy(class_logits, name)
        for class_logits, name in zip(logits, CLASSES, strict=True)
    )
    return real + fake + other_weight * (benign + source)


def perturbation(real: tf.Tensor, alpha: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Compute DRAGAN's delta = alpha * 0.5 * std(X) * U(0, 1), X the real patches of all replicas.

    alpha is float32 [n] in [0, 1), U(0, 1) of X's shape.
    """
    _, variance = compute_batch_moments(real, [0, 1, 2, 3])
    return tf.reshape(alpha, [-1, 1, 1, 1]) * 0.5 * tf.sqrt(variance) * uniform


def gradient_penalty(
    logit: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor, weight: float = 10.0, k: float = 1.0
) -> tf.Tensor:
    """Compute weight * E[(|grad_x logit(x)| - k)^2], float32, of a logit [n, rows, cols, 1] -> [n].

    It is differentiable with respect to whatever `logit` depends on.

    Source:
        Section 2; Kodali et al., On convergence and stability of GANs (2017).
    """
    with tf.GradientTape() as tape:
        tape.watch(image)
        values = logit(image)
    gradient = tf.cast(tape.gradient(values, image), tf.float32)
    # the square root's gradient is infinite at 0
    norm = tf.sqrt(tf.reduce_sum(gradient**2, axis=[1, 2, 3]) + 1e-12)
    return weight * tf.reduce_mean((norm - k) ** 2)


def append_random_number(x: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Append each sample's random number, floating [batch], to a map as a constant channel."""
    channel = tf.reshape(tf.cast(numbers, x.dtype), [-1, 1, 1, 1]) * tf.ones_like(x[..., :1])
    return tf.concat([x, channel], axis=-1)


class Encoder(GrowingNetwork):
    """What G and D share: levels that halve the resolution down to 4 x 4, and a centre of 1 x 1.

    A network for fewer px than the filters are for lacks the outer levels. `from_image`, a 1 x 1
    convolution, takes their place. A grown network's old path begins with `old_from_image`.

    Args:
        config: Filters and growth.
        size: Patch rows and columns, px.
        name: Name of the network.
        factor: Factor between its channels and `config.filters`.
        outputs: Channels of the centre.
        pooling: Use stride 1 and max pooling instead of stride 2.
        spectral: Normalise all kernels.

    Attributes:
        levels: The levels that this network has, as the paper numbers them, outermost first.
    """

    def __init__(
        self,
        config: ContextualConfig,
        size: int,
        name: str,
        *,
        factor: int = 1,
        outputs: int = 4,
        pooling: bool,
        spectral: bool,
    ) -> None:
        super().__init__(name, size, config.start, config.fade_steps)
        _check(config, size, self.grown)
        self.config = config
        self.factor = factor
        self.pooling = pooling
        self.spectral = spectral
        self.depth = len(config.filters)
        halvings = (size // INNERMOST).bit_length() - 1
        self.levels = range(self.depth - halvings + 1, self.depth + 1)
        outermost = self.levels[0]
        # Layers are created, and held, from the innermost level on: exports and checkpoints store
        # weights in that order, and `convolution_down` finds a level's.
        self.downs = [
            self.convolution(self.channels(level), stride=1 if pooling else 2)
            for level in reversed(self.levels)
        ]
        self.attention = SelfAttention(spectral) if config.attention else None
        self.centre = self.convolution(outputs, INNERMOST, padding="valid")
        self.from_image = (
            self.convolution(self.channels(outermost - 1), 1) if outermost > 1 else None
        )
        self.old_from_image = self.convolution(self.channels(outermost), 1) if self.grown else None
        self.working_dtype = keras.config.dtype_policy().compute_dtype
        self.add_step_counter()

    def channels(self, level: int) -> int:
        """Return how many channels the map of a level has."""
        return self.factor * self.config.filters[level - 1]

    def convolution(
        self, filters: int, kernel: int = 3, stride: int = 1, padding: str = "same"
    ) -> keras.layers.Layer:
        """Build one convolution with a bias; its kernel is normalised where `spectral` says so."""
        return self.normalize(Convolution(filters, kernel, stride, padding))

    def normalize(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """Return the layer; its kernel is normalised where `spectral` says so."""
        return SpectralNormalization(layer) if self.spectral else layer

    def convolution_down(self, level: int) -> keras.layers.Layer:
        """Return the convolution of an encoder level."""
        return self.downs[self.depth - level]

    def noise_input(self, level: int) -> int:
        """Return the column of the noise that an encoder level sees; its decoder has the next one.

        Columns count from the innermost level, so that growth only adds columns.
        """
        return 2 * (self.depth - level)

    def encode(
        self, image: tf.Tensor, noise: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Compute the map of each level, outermost first, and the centre, [batch, 1, 1, outputs].

        `noise` is [batch, 2 * levels], see `noise_input`; None for D, which has none.
        """
        maps = []
        x = image if self.from_image is None else leaky_relu(self.from_image(image))
        for level in self.levels:
            if noise is not None:
                x = append_random_number(x, noise[:, self.noise_input(level)])
            x = leaky_relu(self.convolution_down(level)(x))
            if self.pooling:
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
            if level == self.levels[0] and self.old_from_image is not None:
                half = tf.nn.avg_pool2d(image, 2, 2, "VALID")
                x = self.blend(leaky_relu(self.old_from_image(half)), x)
            if self.attention is not None and x.shape[1] == self.config.attention:
                x = self.attention(x)
            maps.append(x)
        return maps, self.centre(x)

    def named_layers(self) -> dict[str, keras.layers.Layer]:
        """Return every layer with weights, by what it does."""
        layers = {
            **{f"down {level}": self.convolution_down(level) for level in reversed(self.levels)},
            "centre": self.centre,
            "attention": self.attention,
            "from_image": self.from_image,
            "old_from_image": self.old_from_image,
        }
        return {name: layer for name, layer in layers.items() if layer is not None}

    def power_iteration(self) -> None:
        """Move every u once; called once per step, see SpectralNormalization."""
        for layer in find_normalized(self.named_layers().values()):
            layer.power_iteration()

    def cached_kernels(self) -> AbstractContextManager[None]:
        """Within, all calls share kernels that are normalised once; see SpectralNormalization."""
        return cached_kernels(find_normalized(self.named_layers().values()))


class Generator(Encoder):
    """G: patch and random numbers to a lesion; a U-Net, each block of which sees a random number.

    A decoder level concatenates the inner map, the skip and a random number, doubles them by
    nearest neighbours and applies two convolutions with ReLU. A grown network blends the lesion of
    the old resolution, doubled, with that of the new level.

    Call arguments:
        image: float32 [batch, size, size, 1] in [-1, 1].
        noise: float32 [batch, blocks], uniform in [-1, 1]; see `noise_input`.

    Call returns:
        Lesion, float32 [batch, size, size, 1] in [-1, 1], exactly 0 within `border` px of the
        patch's border.

    Source:
        Section 2, Fig. 2. 4,386,871 trainable parameters at 256 px, 49 of them for the fading in.
    """

    def __init__(self, config: ContextualConfig, size: int, name: str = "generator") -> None:
        super().__init__(
            config,
            size,
            name,
            outputs=config.embedding,
            pooling=False,
            spectral=config.spectral == "both",
        )
        self.blocks = 2 * len(self.levels)
        # as wide as the encoder's map of the same size, which the level outside puts out
        self.ups = [
            [self.convolution(self.channels(max(level - 1, 1))) for _ in range(2)]
            for level in reversed(self.levels)
        ]
        has_attention = config.attention and config.attention_in_decoder
        self.decoder_attention = SelfAttention(self.spectral) if has_attention else None
        self.to_lesion = self.normalize(keras.layers.Conv2D(1, 1, dtype="float32"))
        self.old_to_lesion = (
            self.normalize(keras.layers.Conv2D(1, 1, dtype="float32")) if self.grown else None
        )
        self(keras.Input((size, size, 1), batch_size=1), keras.Input((self.blocks,), batch_size=1))

    def convolutions_up(self, level: int) -> list[keras.layers.Layer]:
        """Return the two convolutions of a decoder level."""
        return self.ups[self.depth - level]

    def call(self, image: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """See the class."""
        maps, centre = self.encode(tf.cast(image, self.working_dtype), noise)
        x = centre * tf.ones([1, INNERMOST, INNERMOST, 1], centre.dtype)
        for level, skip in zip(reversed(self.levels), reversed(maps), strict=True):
            inner = x
            if self.decoder_attention is not None and x.shape[1] == self.config.attention:
                x = self.decoder_attention(x)
            x = tf.concat([x, skip], axis=-1)
            x = upsample(append_random_number(x, noise[:, self.noise_input(level) + 1]))
            for convolution in self.convolutions_up(level):
                x = tf.nn.relu(convolution(x))
        lesion = self.crop_border(self.to_lesion(tf.cast(x, tf.float32)))
        if self.old_to_lesion is not None:
            old = upsample(self.crop_border(self.old_to_lesion(tf.cast(inner, tf.float32))))
            lesion = self.crop_border(self.blend(old, lesion))
        return lesion

    def crop_border(self, lesion: tf.Tensor) -> tf.Tensor:
        """Set the border to 0 and clip the rest to [-1, 1]."""
        border = self.config.border
        end = lesion.shape[1] - border
        inside = tf.clip_by_value(lesion[:, border:end, border:end], -1.0, 1.0)
        return tf.pad(inside, [[0, 0], [border, border], [border, border], [0, 0]])

    def named_layers(self) -> dict[str, keras.layers.Layer]:
        """Return every layer with weights, by what it does."""
        ups = {
            f"up {level} {i}": layer
            for level in reversed(self.levels)
            for i, layer in enumerate(self.convolutions_up(level))
        }
        ends = {
            "decoder_attention": self.decoder_attention,
            "to_lesion": self.to_lesion,
            "old_to_lesion": self.old_to_lesion,
        }
        present = {name: layer for name, layer in ends.items() if layer is not None}
        return super().named_layers() | ups | present


class Discriminator(Encoder):
    """D: patch to four logits, one for each of CLASSES.

    G's encoder with 8 times the filters, max pooling and normalised kernels.

    Call arguments:
        image: float32 [batch, size, size, 1] in [-1, 1].
        exact: Compute in float32, whatever the precision policy.

    Call returns:
        float32 logits [batch, 4].

    Source:
        Section 2, Fig. 2. 100,967,685 trainable parameters at 256 px, 256 for the fading in.
    """

    def __init__(self, config: ContextualConfig, size: int, name: str = "discriminator") -> None:
        super().__init__(
            config,
            size,
            name,
            factor=config.discriminator_factor,
            outputs=len(CLASSES),
            pooling=True,
            spectral=True,
        )
        self(keras.Input((size, size, 1), batch_size=1))

    def call(self, image: tf.Tensor, exact: bool = False) -> tf.Tensor:
        """See the class."""
        _, centre = self.encode(tf.cast(image, tf.float32 if exact else self.working_dtype))
        return tf.cast(centre[:, 0, 0], tf.float32)


class Contextual(Trainable):
    """Generator, discriminator and the generator's running average, with two optimizers."""

    def __init__(self, config: ContextualConfig | None = None, size: int = 256) -> None:
        super().__init__(name="contextual")
        self.config = config = config or ContextualConfig()
        self.size = size
        self.networks = build_networks(config, size)
        self.generator, self.discriminator, self.average = self.networks.values()
        self.generator_updates = config.generator_updates or (2 if config.target == "mass" else 1)
        if self.generator_updates > 1:
            self.not_for_accumulation = "unless model.generator_updates is 1"
        trained = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = build_adam(
            trained, config.learning_rate, config.beta_1, config.beta_2, config.epsilon
        )

    def grow(self, small: Mapping[str, Encoder]) -> None:
        """Take over the weights of the stage before.

        `build_networks` made its networks, for half the size, and `export.assign` filled them.
        Networks for another size, or not faded in yet themselves, are a ConfigError.
        """
        for name, network in self.networks.items():
            network.grow(small[name])

    def generate(self, network: Generator, image: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Compute lesion, input and input + lesion, float32 [batch, size, size, 3] in [-1, 1]."""
        lesion = network(image, noise)
        return tf.concat([lesion, image, tf.clip_by_value(image + lesion, -1.0, 1.0)], axis=-1)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update D once, G once or twice, then the running average, on "image" and "label".

        Labels are int32 [batch], an index of PATHOLOGIES. Every pathology must occur equally often;
        with config.positives "lesion" all but benign. A batch without labels is a ConfigError. The
        scalars are each network's loss, the penalty, and p(real) of real and of fake patches.
        """
        if "label" not in batch:
            raise ConfigError(
                f"the four-way head of D needs patches labelled {', '.join(PATHOLOGIES)}, these "
                "have no labels"
            )
        names = [
            name for name in PATHOLOGIES if self.config.positives == "malignant" or name != "benign"
        ]
        labels = [PATHOLOGIES.index(name) for name in names]
        parts = part_by_label(batch["image"] * 2 - 1, batch["label"], labels)
        images = dict(zip(names, parts, strict=True))
        real_name, source_name = self.config.roles()
        real = images[real_name]
        source = images[source_name]
        benign = images.get("benign", source[:0])
        for network in self.networks.values():
            network.power_iteration()

        noise = self._noise(source, DISCRIMINATOR_NOISE)
        fake = self.generate(self.generator, source, noise)[..., 2:]
        delta = self._uniform(tf.shape(real), PENALTY_DIRECTION)
        if self.config.delta == "dragan":
            delta = perturbation(real, self._uniform(tf.shape(real)[:1], PENALTY_ALPHA), delta)
        with tf.GradientTape() as tape, self.discriminator.cached_kernels():
            classes = [real, fake, benign, source]
            counts = [len(patches) for patches in classes]
            logits = tf.split(self.discriminator(tf.concat(classes, axis=0)), counts)
            penalty = self._penalty(real + delta)
            discriminator_loss = four_way(logits, self.config.other_weight) + penalty
        minimize(discriminator_loss, self.discriminator, self.optimizers["discriminator"], tape)

        with self.discriminator.cached_kernels():
            for update in range(self.generator_updates):
                noise = self._noise(source, GENERATOR_NOISE + update)
                with tf.GradientTape() as tape:
                    fake = self.generate(self.generator, source, noise)[..., 2:]
                    fake_logits = self.discriminator(fake)
                    generator_loss = cross_entropy(fake_logits, "real")
                minimize(generator_loss, self.generator, self.optimizers["generator"], tape)
        if ends_step(self.optimizers["generator"]):
            for network in (self.generator, self.discriminator):
                network.steps.assign_add(1)
            update_average(self.average, self.generator, self.config.ema)
        return {
            "generator_loss": generator_loss,
            "discriminator_loss": discriminator_loss,
            "penalty": penalty,
            "p_real": tf.reduce_mean(tf.nn.softmax(logits[0])[:, 0]),
            "p_fake": tf.reduce_mean(tf.nn.softmax(fake_logits)[:, 0]),
        }

    def refine(self, image: NDArray[np.float32], lesion: NDArray[np.float32]) -> Refined:
        """Post-process what an exported function takes and returns, by this model's config."""
        return postprocess(
            image, lesion, self.config.postprocess, removal=self.config.target == "removal"
        )

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid, always with the same random numbers: frames of a film."""
        image = batch["image"]
        noise = tf.constant(sample_latent_noise(len(image), self.average.blocks))
        output = self._synthesize(self.average, image, noise)
        refined = self.refine(np.asarray(image), output["lesion"].numpy())
        return {
            "patch": image,
            "lesion": output["lesion"] / 2 + 0.5,
            "synthetic": output["image"],
            "postprocessed": tf.constant(refined.image),
        }

    def functions(self) -> dict[str, Callable]:
        """Return what is exported.

        "average", the one to use, and "generator" map (image, noise) to image and lesion.
        "discriminator" maps an image to the logits of CLASSES.
        """
        shape = (self.size, self.size, 1)

        def export_generator(network: Generator) -> Callable:
            return export_function(
                lambda image, noise: self._synthesize(network, image, noise),
                image=shape,
                noise=(network.blocks,),
            )

        return {
            "average": export_generator(self.average),
            "generator": export_generator(self.generator),
            "discriminator": export_function(
                lambda image: {"logits": self.discriminator(image * 2 - 1)}, image=shape
            ),
        }

    def _synthesize(
        self, network: Generator, image: tf.Tensor, noise: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        output = self.generate(network, image * 2 - 1, noise)
        return {"image": output[..., 2:] * 0.5 + 0.5, "lesion": output[..., :1]}

    def _penalty(self, image: tf.Tensor) -> tf.Tensor:
        weight = self.config.lambda_penalty
        if not weight:
            return tf.zeros([])
        return gradient_penalty(self._exact_logit, image, weight, self.config.k)

    def _exact_logit(self, image: tf.Tensor) -> tf.Tensor:
        """Compute log p(real) / p(fake), float32 [batch]."""
        logits = self.discriminator(image, exact=True)
        return logits[:, 0] - logits[:, 1]

    def _noise(self, source: tf.Tensor, use: int) -> tf.Tensor:
        return self._uniform([tf.shape(source)[0], self.generator.blocks], use) * 2 - 1

    def _uniform(self, shape: tf.Tensor | Sequence[tf.Tensor], use: int) -> tf.Tensor:
        """Draw this step's random numbers for one use, in [0, 1); see `layers.step_seed`."""
        batches = count_batches(self.optimizers["generator"], self.generator.steps)
        return draw_uniform(shape, step_seed(batches, use))


def build_networks(config: ContextualConfig, size: int) -> dict[str, Encoder]:
    """Build "generator", "discriminator" and "average", which starts as a copy of the generator."""
    generator = Generator(config, size)
    average = Generator(config, size, "average")
    copy_weights(generator, average)
    return {
        "generator": generator,
        "discriminator": Discriminator(config, size),
        "average": average,
    }


def _check(config: ContextualConfig, size: int, grown: bool) -> None:
    largest = INNERMOST * 2 ** len(config.filters)
    sizes = [INNERMOST * 2**halvings for halvings in range(1, len(config.filters) + 1)]
    if size not in sizes:
        raise ConfigError(
            f"data.size: {size} px is none of the sizes that the {len(config.filters)} "
            f"model.filters allow, up to {largest} px"
        )
    maps = [INNERMOST, *sizes[: sizes.index(size)]]
    if grown:
        maps.pop()  # the new level's map is not there before the growth
    if config.attention and config.attention not in maps:
        raise ConfigError(
            f"model.attention: patches of {size} px have maps of {maps} px, none of "
            f"{config.attention} px"
        )
    if 2 * config.border >= size:
        raise ConfigError(
            f"model.border: {config.border} px on each side leave nothing of {size} px"
        )
