"""Contextual GAN: lesions added to normal patches, or removed from others (Wu, Wu and Lotter 2020).

A generator G sees a patch x and some random numbers z and answers with a lesion alone, which is
added: the output is (lesion, x, x + lesion). A discriminator D tells four classes of patches apart:

    L_D = CE(D(real), real) + CE(D(x + G(x, z)), fake) + 0.2 * (CE(D(benign), benign) +
    CE(D(normal), normal)) + penalty
    L_G = CE(D(x + G(x, z)), real)
    penalty = lambda * E[(|grad D(X + delta)| - k)^2],  lambda = 10, k = 1

Both are grown: trained on 128 px, then a level is added to each and faded in over 3,000 steps. Real
are malignant patches, x normal ones. One model adds masses, one adds calcifications, one removes
lesions: for it real and normal change places.

Inside, images and lesions are in [-1, 1]; at public borders images are in [0, 1], and a lesion, in
[-1, 1] still, is on twice their scale: image + lesion / 2.

Departures and what the paper leaves open:
- 16 filters doubled over six blocks end at 4 x 4 x 512, not at the text's 2048, which takes 64
  (`filters`).
- Attention at 32 x 32 stands in both encoders. That it "is also used in the encoding part" rather
  means the decoder's as well
  (`attention_in_decoder`). Spectral normalisation is D's, as in the cited paper. The sentence that
  names it, and self-attention
  GANs, rather mean G's too (`spectral: both`). Neither reading has been measured here against the
  other.
- Decoder widths mirror the encoder's; the 1 x 1 x 4 embedding is repeated to 4 x 4, to meet its
  skip. A first convolution of
  the smaller stages, 1 x 1, stands for the levels that are missing. LeakyReLU: slope 0.2.
- D sees x + lesion alone, since a real patch has no lesion channel, and no random numbers. x +
  lesion is clipped to [-1, 1].
- The penalty is on log p(real) / p(fake), the logit of the two-class D that the head extends; delta
  is alpha * 0.5 * std(X) *
  U(0, 1) with one alpha ~ U(0, 1) a patch, as in the cited code (DRAGAN). It is computed in float32
  in every precision.
- The border's 10 px are of the patch that is made, at 128 px too. Cropping is hard: a lesion that
  reaches it ends in a line.
- In one step D is updated, then G, twice for masses (`generator_updates`), each time with new z for
  the same patches.
- A running average of G (`ema`) is what is exported to be used; Adam starts anew when the networks
  grow.
- The paper draws 400,000 normal and 76,460 lesions' patches for training and 1,000 of a kind for
  each other side. Patches are kept
  in memory here, so that such numbers do not fit; `sampling.count` and `sampling.normals` are drawn
  of all patients, and each side
  has those of its own. Patients: 2/3, 1/6 and 1/6 in place of 60, 20 and 20 %. The batch is not
  given: 12.
- Removal: "lesions" are masses and calcifications, the third class stays benign, the fourth is
  malignant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo.config import Frozen
from tfmammo.convolutions import Convolution
from tfmammo.errors import ConfigError
from tfmammo.layers import RandomScalarMap, SelfAttention, SpectralNormalization, step_seed
from tfmammo.networks import Network, Trainable, leaky_relu
from tfmammo.optimization import Adam, build, minimize
from tfmammo.postprocessing import PostprocessConfig, Refined, postprocess

PATHOLOGIES = ("malignant", "benign", "normal")  # what a patch's label counts
# of D; source: what G starts from, normal in the paper
CLASSES = ("real", "fake", "benign", "source")
KINDS = {
    "mass": ("mass",),
    "calcification": ("calcification",),
    "removal": ("mass", "calcification"),
}
INNERMOST = 4  # px of the innermost map


class ContextualConfig(Frozen):
    """The paper's values; see *Departures* in the module for those it leaves open."""

    target: Literal["mass", "calcification", "removal"] = "mass"
    positives: Literal["malignant", "lesion"] = "malignant"
    """"malignant" lesions are real (for removal the source), benign ones a class of their own; or
    every "lesion" is, and there is no benign class.
    """
    filters: tuple[PositiveInt, ...] = Field(default=(16, 32, 64, 128, 256, 512), min_length=1)
    """Of G's blocks, outermost first; with n of them patches of 4 * 2^n px end at 4 x 4."""
    discriminator_factor: PositiveInt = 8
    """D's over G's."""
    embedding: PositiveInt = 4
    """Channels in the middle."""
    attention: PositiveInt | None = 32
    """px of the map that has it; null: none."""
    attention_in_decoder: bool = False
    spectral: Literal["discriminator", "both"] = "discriminator"
    border: NonNegativeInt = 10
    """px without lesion."""
    start: PositiveInt = 128
    """px of the first stage."""
    start_steps: PositiveInt = 20_000
    """Of each stage but the last, whose are training.steps."""
    fade_steps: PositiveInt = 3000
    """Of fading in."""
    lambda_penalty: NonNegativeFloat = 10.0
    """Of the gradient penalty, which is not computed where lambda_penalty is 0."""
    k: NonNegativeFloat = 1.0
    """Of the gradient penalty, which is not computed where lambda_penalty is 0."""
    other_weight: NonNegativeFloat = 0.2
    """Of the losses of benign and normal patches."""
    generator_updates: PositiveInt | None = None
    """For one of D; null: 2 for masses, else 1."""
    learning_rate: PositiveFloat = 1e-5
    beta_1: float = Field(default=0.0, ge=0, lt=1)
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    epsilon: PositiveFloat = 1e-8
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Weight of the running average's past."""
    postprocess: PostprocessConfig = PostprocessConfig()

    def roles(self) -> tuple[str, str]:
        """Which of PATHOLOGIES are real, and which G starts from."""
        return ("normal", "malignant") if self.target == "removal" else ("malignant", "normal")

    def stages(self, size: int) -> list[int]:
        """The sizes that the networks grow through, the last being `size`.

        Raises:
            ConfigError: Size is no doubling of start, or not what the filters are for.
        """
        sizes = [size]
        while sizes[0] > self.start and sizes[0] % 2 == 0:
            sizes.insert(0, sizes[0] // 2)
        if sizes[0] != min(self.start, size):
            raise ConfigError(
                f"model.start: {self.start} px can't be doubled to data.size, {size} px"
            )
        return sizes


class Encoder(Network):
    """What G and D share: blocks that halve the resolution down to 4 x 4, then a convolution to 1 x
    1.

    Level k's block leads from a map of 8 * 2^k px to one of 4 * 2^k px. A network for fewer px than
    the filters are for lacks the outer levels; a convolution 1 x 1 takes their place. A grown one
    has that convolution too, as `old_from_image`: with weight 1 - alpha the patch goes that way at
    half its resolution, with alpha through the new level.

    Args:
        config: Filters and growth.
        size: Patch rows and columns, px.
        factor: Of the filters.
        outputs: Of the middle.
        pooling: stride 1 and max pooling instead of stride 2.
        spectral: Normalise all kernels.

    Raises:
        ConfigError: Size, filters, attention and start don't fit together.
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
        # its layers cast, or follow what comes in
        super().__init__(name=name, dtype="float32", autocast=False)
        self.config = config
        self.size = size
        self.pooling = pooling
        self.spectral = spectral
        self.levels = size.bit_length() - 3
        self.grown = size > config.start
        _check(config, size, self.levels, self.grown)
        self.widths = [factor * width for width in reversed(config.filters)][: self.levels + 1]
        self.downs = [
            self.convolution(width, stride=1 if pooling else 2)
            for width in self.widths[: self.levels]
        ]
        self.attention = SelfAttention(spectral) if config.attention else None
        self.centre = self.convolution(outputs, INNERMOST, padding="valid")
        whole = self.levels == len(config.filters)
        self.from_image = None if whole else self.convolution(self.widths[-1], 1)
        self.old_from_image = (
            self.convolution(self.widths[self.levels - 1], 1) if self.grown else None
        )
        self.scalar_map = RandomScalarMap()
        self.working_dtype = keras.config.dtype_policy().compute_dtype
        self.steps = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int64",
            trainable=False,
            name="steps",
            autocast=False,
        )

    def convolution(
        self, filters: int, kernel: int = 3, stride: int = 1, padding: str = "same"
    ) -> keras.layers.Layer:
        """One convolution with a bias, its kernel normalised where this network's are."""
        layer: keras.layers.Layer = Convolution(filters, kernel, stride, padding)
        return SpectralNormalization(layer) if self.spectral else layer

    def alpha(self, dtype: tf.DType) -> tf.Tensor:
        """The weight of the new level: 0 at a stage's first step, 1 from step fade_steps on."""
        return tf.cast(
            tf.minimum(
                tf.cast(tf.convert_to_tensor(self.steps), tf.float32) / self.config.fade_steps, 1.0
            ),
            dtype,
        )

    def is_faded_in(self) -> bool:
        """Whether nothing of the old resolution is left in the answers."""
        return not self.grown or float(self.alpha(tf.float32)) >= 1

    def blend(self, old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """(1 - alpha) * old + alpha * new."""
        alpha = self.alpha(new.dtype)
        return (1 - alpha) * tf.cast(old, new.dtype) + alpha * new

    def encode(
        self, image: tf.Tensor, noise: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The map of each level, innermost first, and the middle, [batch, 1, 1, outputs].

        Args:
            image: floating [batch, size, size, 1] in [-1, 1].
            noise: floating [batch, 2 * levels]: 2k of level k's block.
        """
        maps: list[tf.Tensor] = []
        x = image if self.from_image is None else leaky_relu(self.from_image(image))
        for level in reversed(range(self.levels)):
            x = x if noise is None else self.scalar_map(x, noise[:, 2 * level])
            x = leaky_relu(self.downs[level](x))
            x = tf.nn.max_pool2d(x, 2, 2, "VALID") if self.pooling else x
            if level == self.levels - 1 and self.old_from_image is not None:
                x = self.blend(
                    leaky_relu(self.old_from_image(tf.nn.avg_pool2d(image, 2, 2, "VALID"))), x
                )
            x = self.attention(x) if self.attention and x.shape[1] == self.config.attention else x
            maps.insert(0, x)
        return maps, self.centre(x)

    def parts(self) -> dict[str, keras.layers.Layer]:
        """Every layer with weights, by what it does."""
        found = {f"down {level}": layer for level, layer in enumerate(self.downs)} | {
            "centre": self.centre
        }
        ends = {
            "attention": self.attention,
            "from_image": self.from_image,
            "old_from_image": self.old_from_image,
        }
        return found | {name: layer for name, layer in ends.items() if layer is not None}

    def normalized(self) -> list[SpectralNormalization]:
        """Every layer with a normalised kernel."""
        attentions = [layer for layer in self.parts().values() if isinstance(layer, SelfAttention)]
        own = [layer for layer in self.parts().values() if isinstance(layer, SpectralNormalization)]
        return [*own, *(layer for attention in attentions for layer in attention.normalized())]

    def power_iteration(self) -> None:
        """Once per step; see SpectralNormalization."""
        for layer in self.normalized():
            layer.power_iteration()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, all calls meet the same kernels, computed once; see SpectralNormalization."""
        with ExitStack() as stack:
            for layer in self.normalized():
                stack.enter_context(layer.kept())
            yield

    def grow(self, small: Encoder) -> None:
        """Take over the weights of the network for half the size; at alpha = 0 this one answers as
        that one does.

        Raises:
            ConfigError: It is for another size, or its own last level is not faded in yet.
        """
        if not self.grown or 2 * small.size != self.size:
            raise ConfigError(
                f"{self.name}: networks for {small.size} px can't grow to {self.size} px "
                f"(model.start: {self.config.start})"
            )
        if not small.is_faded_in():
            steps = int(tf.convert_to_tensor(small.steps))
            raise ConfigError(
                f"{self.name}: the networks for {small.size} px are not faded in after {steps} "
                "steps (model.fade_steps)"
            )
        here = self.parts()
        for name, layer in small.parts().items():
            # else of the stage before it, whose fading in has ended
            if not name.startswith("old_"):
                copy(layer, here[f"old_{name}" if name in ("from_image", "to_lesion") else name])


class Generator(Encoder):
    """G: patch and random numbers to a lesion; a U-Net whose every block sees a random number.

    Level k's decoder block: concatenate what comes from within, the skip and a random number;
    double by nearest neighbours; two convolutions with ReLU. A grown one blends the lesion of the
    old resolution, doubled, with that of the new level.

    Args:
        image: float32 [batch, size, size, 1] in [-1, 1].
        noise: float32 [batch, blocks], uniform in [-1, 1]: level k's encoder block has column 2k,
            its decoder block 2k + 1.

    Returns:
        Lesion, float32 [batch, size, size, 1] in [-1, 1], exactly 0 within `border` px of the
        patch's border.

    Source:
        Section 2, Fig. 2. 4,386,871 trainable parameters at 256 px, of which 49 are to fade in.
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
        self.blocks = 2 * self.levels
        # behind level k as wide as the encoder's map of that size
        widths = [*self.widths, self.widths[-1]][1 : self.levels + 1]
        self.ups = [[self.convolution(width) for _ in range(2)] for width in widths]
        self.decoder_attention = (
            SelfAttention(self.spectral)
            if config.attention and config.attention_in_decoder
            else None
        )
        self.to_lesion = keras.layers.Conv2D(1, 1, dtype="float32")
        self.old_to_lesion = keras.layers.Conv2D(1, 1, dtype="float32") if self.grown else None
        self(keras.Input((size, size, 1), batch_size=1), keras.Input((self.blocks,), batch_size=1))

    def call(self, image: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """See the class."""
        maps, middle = self.encode(tf.cast(image, self.working_dtype), noise)
        x = before = middle * tf.ones([1, INNERMOST, INNERMOST, 1], middle.dtype)
        for level, skip in enumerate(maps):
            before = x
            if self.decoder_attention is not None and x.shape[1] == self.config.attention:
                x = self.decoder_attention(x)
            x = doubled(self.scalar_map(tf.concat([x, skip], axis=-1), noise[:, 2 * level + 1]))
            for convolution in self.ups[level]:
                x = tf.nn.relu(convolution(x))
        lesion = self.cropped(self.to_lesion(x))
        if self.old_to_lesion is not None:
            old = doubled(self.cropped(self.old_to_lesion(before)))
            lesion = self.cropped(self.blend(old, lesion))
        return lesion

    def cropped(self, lesion: tf.Tensor) -> tf.Tensor:
        """The border set to 0, the rest clipped to [-1, 1]."""
        border = self.config.border
        end = lesion.shape[1] - self.config.border
        inside = tf.clip_by_value(lesion[:, border:end, border:end], -1.0, 1.0)
        return tf.pad(inside, [[0, 0], [border, border], [border, border], [0, 0]])

    def parts(self) -> dict[str, keras.layers.Layer]:
        """Every layer with weights, by what it does."""
        ups = {
            f"up {level} {i}": layer
            for level, pair in enumerate(self.ups)
            for i, layer in enumerate(pair)
        }
        ends = {
            "decoder_attention": self.decoder_attention,
            "to_lesion": self.to_lesion,
            "old_to_lesion": self.old_to_lesion,
        }
        return (
            super().parts()
            | ups
            | {name: layer for name, layer in ends.items() if layer is not None}
        )


class Discriminator(Encoder):
    """D: patch to four logits, of CLASSES; G's encoder with 8 times the filters, max pooling and
    normalised kernels.

    Args:
        image: float32 [batch, size, size, 1] in [-1, 1].
        exact: Compute in float32, whatever the precision policy.

    Returns:
        float32 logits [batch, 4].

    Source:
        Section 2, Fig. 2. 100,967,685 trainable parameters at 256 px, of which 256 are to fade in.
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
        _, middle = self.encode(tf.cast(image, tf.float32 if exact else self.working_dtype))
        return tf.cast(middle[:, 0, 0], tf.float32)


class Contextual(Trainable):
    """Generator, discriminator and the generator's running average, with two optimizers; built on
    construction.

    Args:
        config: The paper's values or yours.
        size: Patch rows and columns of this stage, px.

    Source:
        Section 2.
    """

    not_for_xla = (
        "it parts a batch by the patches' labels, into parts whose sizes are known at "
        "run time alone (DynamicPartition)"
    )

    def __init__(self, config: ContextualConfig | None = None, size: int = 256) -> None:
        super().__init__(name="contextual")
        self.config = config = config or ContextualConfig()
        self.size = size
        self.networks = networks(config, size)
        self.generator, self.discriminator, self.average = self.networks.values()
        self.generator_updates = config.generator_updates or (2 if config.target == "mass" else 1)
        self.optimizers = {
            name: build(
                Adam(config.learning_rate, config.beta_1, config.beta_2, config.epsilon, name=name),
                self.networks[name],
            )
            for name in ("generator", "discriminator")
        }

    def grow(self, small: Mapping[str, Encoder]) -> Contextual:
        """Take over the weights of the stage before, as `networks` made and `export.assign` filled
        them; returns itself.
        """
        for name, network in self.networks.items():
            network.grow(small[name])
        return self

    def generate(self, network: Generator, image: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """The paper's output: lesion, input and input + lesion, float32 [batch, size, size, 3] in
        [-1, 1].
        """
        lesion = network(image, noise)
        return tf.concat([lesion, image, tf.clip_by_value(image + lesion, -1.0, 1.0)], axis=-1)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of D, then one or two of G, then of the running average.

        Args:
            batch: "image", float32 [batch, size, size, 1] in [0, 1], and "label", int32 [batch], an
                index of PATHOLOGIES; every one of them must be there; with config.positives
                "lesion" all but benign.

        Returns:
            float32 scalars: each network's loss, the penalty, and p(real) of real and of fake
            patches.

        Raises:
            ConfigError: The batch has no labels.
        """
        if "label" not in batch:
            raise ConfigError(
                f"the four-way head of D needs patches labelled {', '.join(PATHOLOGIES)}, these "
                "have no labels"
            )
        images = dict(
            zip(
                PATHOLOGIES,
                tf.dynamic_partition(batch["image"] * 2 - 1, batch["label"], len(PATHOLOGIES)),
                strict=True,
            )
        )
        benign = images["benign"]
        (real, source) = (images[name] for name in self.config.roles())
        for network in self.networks.values():
            network.power_iteration()

        fake = self.generate(self.generator, source, self._noise(source, 0))[..., 2:]
        delta = perturbation(
            real, self._uniform(tf.shape(real)[:1], 1), self._uniform(tf.shape(real), 2)
        )
        with tf.GradientTape() as tape, self.discriminator.kept():
            parts = [real, fake, benign, source]
            logits = tf.split(
                self.discriminator(tf.concat(parts, axis=0)), [tf.shape(part)[0] for part in parts]
            )
            penalty = self._penalty(real + delta)
            discriminator_loss = four_way(logits, self.config.other_weight) + penalty
        minimize(discriminator_loss, self.discriminator, self.optimizers["discriminator"], tape)

        with self.discriminator.kept():
            for update in range(self.generator_updates):
                with tf.GradientTape() as tape:
                    fake = self.generate(self.generator, source, self._noise(source, 3 + update))[
                        ..., 2:
                    ]
                    fake_logits = self.discriminator(fake)
                    generator_loss = cross_entropy(fake_logits, "real")
                minimize(generator_loss, self.generator, self.optimizers["generator"], tape)
        self._follow()
        return {
            "generator_loss": generator_loss,
            "discriminator_loss": discriminator_loss,
            "penalty": penalty,
            "p_real": tf.reduce_mean(tf.nn.softmax(logits[0])[:, 0]),
            "p_fake": tf.reduce_mean(tf.nn.softmax(fake_logits)[:, 0]),
        }

    def refine(self, image: NDArray[np.float32], lesion: NDArray[np.float32]) -> Refined:
        """`postprocess` as this model's config wants it, of what its exported functions take and
        give.
        """
        return postprocess(
            image, lesion, self.config.postprocess, removal=self.config.target == "removal"
        )

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Panels for the image grid, the random numbers the same every time: frames of a film of
        the training.

        Args:
            batch: "image", float32 [batch, size, size, 1] in [0, 1].

        Returns:
            The same shape, in [0, 1].
        """
        image = batch["image"]
        made = self._synthesize(
            self.average, image, tf.constant(scalars(len(image), self.average.blocks))
        )
        refined = self.refine(np.asarray(image), made["lesion"].numpy())
        return {
            "patch": image,
            "lesion": made["lesion"] / 2 + 0.5,
            "synthetic": made["image"],
            "postprocessed": tf.constant(refined.image),
        }

    def functions(self) -> dict[str, Callable]:
        """What is exported: (image, noise) -> image and lesion by the running average, which is the
        one to use, and by G itself; image -> logits of CLASSES.
        """
        image = tf.TensorSpec([None, self.size, self.size, 1], tf.float32, "image")
        noise = tf.TensorSpec([None, self.generator.blocks], tf.float32, "noise")

        @tf.function(input_signature=[image, noise])
        def average(image: tf.Tensor, noise: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._synthesize(self.average, image, noise)

        @tf.function(input_signature=[image, noise])
        def generator(image: tf.Tensor, noise: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._synthesize(self.generator, image, noise)

        @tf.function(input_signature=[image])
        def discriminator(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": self.discriminator(image * 2 - 1)}

        return {"average": average, "generator": generator, "discriminator": discriminator}

    def _synthesize(
        self, network: Generator, image: tf.Tensor, noise: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        output = self.generate(network, image * 2 - 1, noise)
        return {"image": output[..., 2:] * 0.5 + 0.5, "lesion": output[..., :1]}

    def _penalty(self, image: tf.Tensor) -> tf.Tensor:
        weight = self.config.lambda_penalty
        k = self.config.k
        return gradient_penalty(self._exact_logit, image, weight, k) if weight else tf.zeros([])

    def _exact_logit(self, image: tf.Tensor) -> tf.Tensor:
        """log p(real) / p(fake), float32 [batch]."""
        logits = self.discriminator(image, exact=True)
        return logits[:, 0] - logits[:, 1]

    def _noise(self, source: tf.Tensor, use: int) -> tf.Tensor:
        return self._uniform([tf.shape(source)[0], self.generator.blocks], use) * 2 - 1

    def _uniform(self, shape: tf.Tensor | Sequence[tf.Tensor], use: int) -> tf.Tensor:
        """This step's random numbers for one use, in [0, 1); see `layers.step_seed`."""
        return tf.random.stateless_uniform(
            shape, step_seed(tf.convert_to_tensor(self.generator.steps), use)
        )

    def _follow(self) -> None:
        """The running average moves towards G; what is not trained (u, alpha's step) it shares."""
        decay = self.config.ema
        for network in (self.generator, self.discriminator):
            network.steps.assign_add(1)
        for mean, weight in zip(
            self.average.trainable_variables, self.generator.trainable_variables, strict=True
        ):
            mean.assign(decay * mean + (1 - decay) * weight)
        for mean, weight in zip(
            self.average.non_trainable_variables,
            self.generator.non_trainable_variables,
            strict=True,
        ):
            mean.assign(weight)


def networks(config: ContextualConfig, size: int) -> dict[str, Encoder]:
    """The room's networks: "generator", "discriminator", and "average", which starts as a copy of
    the generator.
    """
    generator = Generator(config, size)
    average = Generator(config, size, "average")
    copy(generator, average)
    return {
        "generator": generator,
        "discriminator": Discriminator(config, size),
        "average": average,
    }


def copy(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Give one layer or network the weights of another."""
    for variable, value in zip(target.variables, source.variables, strict=True):
        variable.assign(value)


def cross_entropy(logits: tf.Tensor, name: str) -> tf.Tensor:
    """-log p(name), the mean over the batch, 0 of none.

    Args:
        logits: float32 [batch, 4].
        name: One of CLASSES.
    """
    return -tf.math.divide_no_nan(
        tf.reduce_sum(tf.nn.log_softmax(logits)[:, CLASSES.index(name)]),
        tf.cast(tf.shape(logits)[0], tf.float32),
    )


def four_way(logits: Sequence[tf.Tensor], other_weight: float = 0.2) -> tf.Tensor:
    """D's loss without the penalty: CE(real) + CE(fake) + other_weight * (CE(benign) + CE(source)).

    Args:
        logits: float32 [n, 4] of the patches of each of CLASSES, in that order.
    """
    real, fake, benign, source = (
        cross_entropy(part, name) for part, name in zip(logits, CLASSES, strict=True)
    )
    return real + fake + other_weight * (benign + source)


def perturbation(real: tf.Tensor, alpha: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """delta = alpha * 0.5 * std(X) * U(0, 1).

    Args:
        real: float32 [n, rows, cols, 1].
        alpha: float32 [n] in [0, 1).
        uniform: float32 of real's shape in [0, 1).
    """
    return tf.reshape(alpha, [-1, 1, 1, 1]) * 0.5 * tf.math.reduce_std(real) * uniform


def gradient_penalty(
    logit: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor, weight: float = 10.0, k: float = 1.0
) -> tf.Tensor:
    """weight * E[(|grad_x logit(x)| - k)^2], float32; differentiable by whatever `logit` depends
    on.

    Args:
        logit: [n, rows, cols, 1] to float32 [n].
        image: float32 [n, rows, cols, 1], perturbed.
        weight: The paper's lambda.

    Source:
        Section 2; Kodali et al., On convergence and stability of GANs (2017).
    """
    with tf.GradientTape() as tape:
        tape.watch(image)
        values = logit(image)
    gradient = tf.cast(tape.gradient(values, image), tf.float32)
    # whose gradient is infinite at 0
    norm = tf.sqrt(tf.reduce_sum(gradient**2, axis=[1, 2, 3]) + 1e-12)
    return weight * tf.reduce_mean((norm - k) ** 2)


def scalars(count: int, blocks: int, seed: int = 0) -> NDArray[np.float32]:
    """Random numbers for the exported functions, the same for the same seed: float32 [count,
    blocks], uniform in [-1, 1].
    """
    return np.random.default_rng(seed).uniform(-1, 1, (count, blocks)).astype(np.float32)


def doubled(x: tf.Tensor) -> tf.Tensor:
    """Twice the rows and columns by nearest neighbours."""
    rows, cols, channels = x.shape[1:]
    # tf.tile's gradient makes oneDNN complain
    twice = x[:, :, None, :, None] * tf.ones([1, 1, 2, 1, 2, 1], x.dtype)
    return tf.reshape(twice, [-1, 2 * rows, 2 * cols, channels])


def _check(config: ContextualConfig, size: int, levels: int, grown: bool) -> None:
    whole = INNERMOST * 2 ** len(config.filters)
    if size != INNERMOST * 2**levels or not 2 * INNERMOST <= size <= whole:
        raise ConfigError(
            f"data.size: {size} px is none of the sizes that the {len(config.filters)} "
            f"model.filters allow, up to {whole} px"
        )
    maps = [INNERMOST * 2**level for level in range(levels - grown)]
    if config.attention and config.attention not in maps:
        raise ConfigError(
            f"model.attention: patches of {size} px have maps of {maps} px, none of "
            f"{config.attention} px"
        )
    if 2 * config.border >= size:
        raise ConfigError(
            f"model.border: {config.border} px on each side leave nothing of {size} px"
        )
