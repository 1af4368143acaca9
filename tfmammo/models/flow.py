"""Rectified flow: lesions inpainted by an ordinary differential equation (Liu et al. 2022).

The tri-label of the infilling GAN (`layers.tri_label`) is a patch whose lesion is replaced by
uniform noise, the mask, and the margin. A network v moves the noise X_0 in that hole to a lesion
X_1, along straight lines and under the condition c, mask and margin:

    X_t = t X_1 + (1 - t) X_0,    t ~ U(0, 1)
    min_v  E || (X_1 - X_0) - v(X_t, t, c) ||^2                     Eq. (1)
    dZ_t = v(Z_t, t, c) dt,    Z_0 = X_0,    the lesion is Z_1
    Z_{t + 1/N} = Z_t + v(Z_t, t, c) / N                            Euler's method, N steps

Liu, Gong and Liu, Flow straight and fast: learning to generate and transfer data with rectified
flow (2022). Lipman et al., Flow matching for generative modeling (2023), derive the same loss from
optimal-transport paths, with sigma_min = 0 here.

Pixels outside the hole are known: X_1 = X_0 there, so v is 0, and the tissue is returned as it is.
v sees them, because X_t fills the tri-label's first channel. v never sees X_0 beside X_t. It could
read X_1 - X_0 = (X_t - X_0) / t from the two.

The tri-label's noise is the only random number. Another noise gives another lesion, the same noise
the same lesion. So the exported function needs no seed: whoever draws the noise has drawn the seed.

Inside, images, mask and margin are in [-1, 1]; at every public border they are in [0, 1].

Deviations and what the papers leave open:
- X_0 is uniform, as the tri-label holds it. Liu et al. allow any X_0, and take Gaussian noise;
  Lipman et al. need it.
- The norm is the mean over the hole's pixels, of each patch by itself. A sum would let large
  lesions decide. A patch without a hole has loss 0.
- Heun's method (`sampler: heun`) takes two evaluations a step and has an error of order N^-2. The
  papers take Euler's and adaptive Runge-Kutta methods.
- Classifier-free guidance (Ho and Salimans 2022) is off. With `drop_condition` mask and margin are
  0, which neither 0 nor 1 of a mask is here, for a share of the patches. `guidance` w then samples
  with v(c = 0) + w (v(c) - v(c = 0)); w = 1 is v(c).
- The network is small, for patches and CPUs: a U-Net of residual blocks with group normalisation,
  as in Ho et al., Denoising diffusion probabilistic models (2020). It has one block a level each
  way. Maps are narrowed before they are doubled. Attention is SAGAN's, on a block's normalised map.
- `ema` is reached slowly: the average's weight of the past is at most (1 + step) / (10 + step).
  Otherwise a short training would export its random start.
- Reflow, the second stage of Liu et al., is omitted: it trains on pairs that the first network
  makes, and serves sampling in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tfmammo import config as configuration
from tfmammo.config import FIXED, Frozen, Width
from tfmammo.errors import ConfigError, ExportError
from tfmammo.nn.convolutions import Convolution, Dense
from tfmammo.nn.growth import copy_weights, update_average
from tfmammo.nn.layers import (
    FULL,
    SelfAttention,
    label_patches,
    patch_seeds,
    uniform_noise,
    upsample,
)
from tfmammo.nn.networks import Network, Trainable, export_function, halve
from tfmammo.nn.normalization import GroupNormalization
from tfmammo.nn.optimization import build_adam, count_batches, ends_step, minimize
from tfmammo.tracking import export

Velocity = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# What a step draws random numbers for, besides the tri-label's noise: added to a patch's seeds.
TIME = 1
DROP = 2


class FlowConfig(Frozen):
    """The papers' values where they have any; see *Deviations* in the module."""

    margin: Annotated[int | None, FIXED] = Field(default=296, gt=FULL)
    """Size, px, to which a mask of 256 px is scaled for the third channel, as in
    models.infilling. null: two channels.
    """
    widths: tuple[Width, ...] = Field(default=(32, 64, 128, 160), min_length=1)
    """Channels of the U-Net's levels, outermost first; each halves the map of the one before."""
    groups: Annotated[PositiveInt, FIXED] = 8
    """Groups of the group normalisation; every width is a multiple."""
    attention_levels: Annotated[NonNegativeInt, FIXED] = 2
    """How many of the innermost levels have self-attention."""
    sampler: Literal["euler", "heun"] = "euler"
    """Method that integrates the flow. heun evaluates the network twice a step."""
    sampling_steps: PositiveInt = 20
    """Steps from noise to lesion, N."""
    drop_condition: float = Field(default=0.0, ge=0, lt=1)
    """Share of patches that are trained without mask and margin, for guidance."""
    guidance: PositiveFloat = 1.0
    """Weight of classifier-free guidance; 1 is none."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the second moment."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Weight of the past in the running average of the network, which is exported."""

    @property
    def channels(self) -> int:
        """Channels of the tri-label."""
        return 2 if self.margin is None else 3

    @model_validator(mode="after")
    def _consistent(self) -> FlowConfig:
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"widths must be multiples of groups, {self.groups}")
        if self.attention_levels > len(self.widths):
            raise ValueError(f"attention_levels must be at most the {len(self.widths)} of widths")
        if self.guidance != 1 and not self.drop_condition:
            raise ValueError("guidance needs a network that was trained with drop_condition")
        return self


def interpolate(start: tf.Tensor, end: tf.Tensor, time: tf.Tensor) -> tf.Tensor:
    """Compute X_t = t X_1 + (1 - t) X_0 of float32 [n, size, size, 1], t [n, 1, 1, 1] in [0, 1]."""
    return time * end + (1 - time) * start


def flow_matching(displacement: tf.Tensor, velocity: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Compute Eq. (1): the mean over each hole's pixels of ((X_1 - X_0) - v)^2, float32.

    All are [n, size, size, 1]; the mask is above 0 inside the hole.
    """
    hole = tf.cast(mask > 0, tf.float32)
    squared = hole * tf.math.squared_difference(displacement, velocity)
    pixels = tf.reduce_sum(hole, axis=[1, 2, 3])
    return tf.reduce_mean(tf.reduce_sum(squared, axis=[1, 2, 3]) / tf.maximum(pixels, 1.0))


def integrate(
    velocity: Velocity, start: tf.Tensor, steps: int | tf.Tensor, sampler: str
) -> tf.Tensor:
    """Integrate dZ_t = v(Z_t, t) dt from t = 0 to 1.

    Args:
        velocity: v, a function of Z_t and of t, a float32 scalar.
        start: Z_0.
        steps: N, an integer; the step is 1 / N.
        sampler: "euler", or "heun", which averages the velocities at both ends of Euler's step.

    Returns:
        Z_1, of the same shape and dtype.

    Examples:
        >>> float(integrate(lambda state, time: 2 * time, tf.zeros([]), 4, "euler"))
        0.75
        >>> float(integrate(lambda state, time: 2 * time, tf.zeros([]), 4, "heun"))
        1.0
    """
    length = 1 / tf.cast(steps, tf.float32)

    def advance(step: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        time = tf.cast(step, tf.float32) * length
        slope = velocity(state, time)
        if sampler == "heun":
            ahead = velocity(state + length * slope, time + length)
            slope = (slope + ahead) / 2
        return step + 1, state + length * slope

    return tf.while_loop(lambda step, _: step < steps, advance, (0, start))[1]


def embed_time(time: tf.Tensor, channels: int) -> tf.Tensor:
    """Embed times as cos, then sin, of 1000 t / 10000^(i / n), i = 0 to n - 1: [batch, 2 n].

    Source:
        Vaswani et al., Attention is all you need (2017), section 3.5, positions being 1000 t.
    """
    count = channels // 2
    frequencies = 1000.0 * 10000.0 ** (-np.arange(count) / count)
    angles = time[:, tf.newaxis] * tf.constant(frequencies, tf.float32)
    return tf.concat([tf.cos(angles), tf.sin(angles)], axis=-1)


class ResidualBlock(keras.layers.Layer):
    """Two convolutions 3 x 3, each after group normalisation and SiLU, and the way around them.

    The time, floating [batch, n], shifts every channel between them. The second convolution starts
    at 0, so that the block starts as its shortcut, a 1 x 1 convolution where `width` differs from
    its input's `channels`. With `attends` positions attend to each other in front of it.
    """

    def __init__(self, width: int, channels: int, groups: int, attends: bool) -> None:
        super().__init__()
        # a CPU takes SiLU of bfloat16 one number at a time; the convolutions cast its result
        self.norms = [GroupNormalization(groups, dtype="float32") for _ in range(2)]
        self.convolution = Convolution(width, 3, padding="same")
        self.shift = Dense(width)
        self.attention = SelfAttention() if attends else None
        self.last = Convolution(width, 3, padding="same", kernel_initializer="zeros")
        self.shortcut = Convolution(width, 1) if channels != width else None

    def call(self, x: tf.Tensor, time: tf.Tensor) -> tf.Tensor:
        """See the class."""
        h = self.convolution(tf.nn.silu(self.norms[0](x)))
        h = h + self.shift(time)[:, tf.newaxis, tf.newaxis]
        h = tf.nn.silu(self.norms[1](h))
        h = self.attention(h) if self.attention else h
        return self.last(h) + (self.shortcut(x) if self.shortcut else x)


class VelocityUNet(Network):
    """v, a U-Net of residual blocks.

    A level down is a block; convolutions of stride 2 lead to the next one. The bottom is
    a block. A level up is a block that also sees the map of its level down. A 3 x 3 convolution
    narrows its map to the next level's width, then it is doubled by nearest neighbours.

    Call arguments:
        x: float32 [batch, size, size, channels] in [-1, 1]: X_t, mask and margin.
        time: float32 [batch] in [0, 1].

    Call returns:
        float32 [batch, size, size, 1]; 0 before training.

    Source:
        3,240,934 trainable parameters for three channels, at every size.
    """

    def __init__(self, config: FlowConfig, size: int, name: str) -> None:
        # Its layers cast their inputs. Half precision would leave too few digits of the time.
        super().__init__(name=name, autocast=False)
        widths = config.widths
        halve("widths", size, len(widths) - 1)

        def block(level: int, channels: int) -> ResidualBlock:
            attends = level >= len(widths) - config.attention_levels
            return ResidualBlock(widths[level], channels, config.groups, attends)

        levels = range(len(widths))
        self.time_channels = widths[0]
        self.embedding = [Dense(4 * widths[0], "silu") for _ in range(2)]
        self.first = Convolution(widths[0], 3, padding="same")
        self.blocks_down = [block(level, widths[max(level - 1, 0)]) for level in levels]
        self.halvings = [Convolution(width, 3, 2, "same") for width in widths[:-1]]
        self.bottom = block(levels[-1], widths[-1])
        self.blocks_up = [block(level, 2 * widths[level]) for level in reversed(levels)]
        self.narrowings = [Convolution(width, 3, padding="same") for width in widths[-2::-1]]
        self.norm = GroupNormalization(config.groups, dtype="float32")
        self.head = Convolution(1, 3, padding="same", kernel_initializer="zeros")
        self.to_float32 = keras.layers.Activation("linear", dtype="float32")
        self(
            keras.Input((size, size, config.channels), batch_size=1),
            keras.Input((), batch_size=1),
        )

    def call(self, x: tf.Tensor, time: tf.Tensor) -> tf.Tensor:
        """See the class."""
        embedded = embed_time(time, self.time_channels)
        for layer in self.embedding:
            embedded = layer(embedded)
        x = self.first(x)
        skips = []
        for level, block in enumerate(self.blocks_down):
            x = self.halvings[level - 1](x) if level else x
            x = block(x, embedded)
            skips.append(x)
        x = self.bottom(x, embedded)
        for level, block in enumerate(self.blocks_up):
            x = upsample(self.narrowings[level - 1](x)) if level else x
            x = block(tf.concat([x, skips.pop()], axis=-1), embedded)
        return self.to_float32(self.head(tf.nn.silu(self.norm(x))))


class Flow(Trainable):
    """The network v, its running average and its optimizer."""

    def __init__(self, config: FlowConfig | None = None, size: int = 128) -> None:
        super().__init__(name="flow")
        self.config = config = config or FlowConfig()
        self.size = size
        self.velocity = VelocityUNet(config, size, "velocity")
        self.average = VelocityUNet(config, size, "average")
        copy_weights(self.velocity, self.average)
        self.networks = {"velocity": self.velocity, "average": self.average}
        # A variable, so that the hash of an export's weights tells other samplers apart.
        evaluations = 2 if config.sampler == "heun" else 1
        self.sampling = tf.Variable(
            [config.sampling_steps, evaluations, config.guidance], trainable=False, dtype=tf.float32
        )
        self.optimizers = build_adam(
            {"velocity": self.velocity}, config.learning_rate, config.beta_1, config.beta_2
        )

    def label(self, batch: dict[str, tf.Tensor], step: tf.Tensor | int = 0) -> tf.Tensor:
        """Make the tri-label of a batch; its noise follows from step and patches."""
        return label_patches(batch["image"], batch["mask"], step, self.config.margin)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update v once, then its running average, on "image" and "mask"."""
        config = self.config
        optimizer = self.optimizers["velocity"]
        step = count_batches(optimizer)
        seeds = patch_seeds(batch["image"], step)
        label = self.label(batch, step) * 2 - 1
        start = label[..., :1]  # X_0
        end = batch["image"] * 2 - 1  # X_1
        condition = label[..., 1:]  # c
        if config.drop_condition:
            is_kept = uniform_noise(seeds + DROP, 1) >= config.drop_condition
            condition = tf.where(is_kept, condition, 0.0)
        time = uniform_noise(seeds + TIME, 1)  # t
        state = tf.concat([interpolate(start, end, time), condition], axis=-1)
        with tf.GradientTape() as tape:
            velocity = self.velocity(state, tf.reshape(time, [-1]))  # v(X_t, t, c)
            loss = flow_matching(end - start, velocity, batch["mask"])  # Eq. (1)
        steps = tf.cast(optimizer.iterations, tf.float32)  # before this one, of all its batches
        minimize(loss, self.velocity, optimizer, tape)
        if ends_step(optimizer):
            ema = tf.minimum(config.ema, (1 + steps) / (10 + steps))
            update_average(self.average, self.velocity, ema)
        return {"velocity_loss": loss}

    def infill(self, label: tf.Tensor) -> tf.Tensor:
        """Inpaint lesions with the running average: images in [0, 1] from labels.

        The noise of a label, see `layers.tri_label`, decides which lesion it becomes. Its tissue
        stays as it is outside the mask.
        """
        hole = label[..., 1:2] > 0
        start = label[..., :1] * 2 - 1
        condition = label[..., 1:] * 2 - 1

        def velocity(state: tf.Tensor, time: tf.Tensor) -> tf.Tensor:
            return tf.where(hole, self.guided_velocity(state, time, condition), 0.0)

        steps = tf.cast(self.sampling[0], tf.int32)
        end = integrate(velocity, start, steps, self.config.sampler)
        return tf.where(hole, tf.clip_by_value(end * 0.5 + 0.5, 0.0, 1.0), label[..., :1])

    def guided_velocity(self, state: tf.Tensor, time: tf.Tensor, condition: tf.Tensor) -> tf.Tensor:
        """Compute v(c = 0) + w (v(c) - v(c = 0)) of the running average, v(c) where w is 1.

        The state is Z_t, the condition c; both are in [-1, 1]. The time is a float32 scalar.
        """
        weight = self.config.guidance
        times = tf.fill(tf.shape(state)[:1], time)
        conditional = self.average(tf.concat([state, condition], axis=-1), times)
        if weight == 1:
            return conditional
        nothing = tf.zeros_like(condition)
        unconditional = self.average(tf.concat([state, nothing], axis=-1), times)
        return unconditional + weight * (conditional - unconditional)

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid: the tri-label's channels, two lesions and the real one.

        The noise is always the same.
        """
        label = self.label(batch)
        split = tf.split(label, self.config.channels, axis=-1)
        channels = dict(zip(("tissue", "mask", "margin"), split, strict=False))
        lesions = {
            "synthetic": self.infill(label),
            "another": self.infill(self.label(batch, 1)),
        }
        return {**channels, **lesions, "real": batch["image"]}

    def functions(self) -> dict[str, Callable]:
        """Return what is exported.

        "average", the one to use, maps a tri-label to an image. "velocity" is the trained network
        itself: (X_t in a tri-label's place of the tissue, t) -> v.
        """
        label = (self.size, self.size, self.config.channels)
        return {
            "average": export_function(
                lambda tri_label: {"image": self.infill(tri_label)}, tri_label=label
            ),
            "velocity": export_function(
                lambda tri_label, time: {"velocity": self.velocity(tri_label * 2 - 1, time)},
                tri_label=label,
                time=(),
            ),
        }


def export_again(folder: Path, directory: Path, **changes: Any) -> Path:
    """Export a trained flow once more, with another sampler.

    Args:
        folder: An export of a training run.
        directory: Where to.
        **changes: Keys of the config that need no training: sampler, sampling_steps, guidance.

    Raises:
        ConfigError: Another key is to change, or the values make no sense.
        ExportError: The folder contains no flow, or the directory something other than an export.
    """
    wrong = set(changes) - {"sampler", "sampling_steps", "guidance"}
    if wrong:
        raise ConfigError(f"{', '.join(sorted(wrong))}: can't be changed without training")
    card = export.read_card(folder)
    experiment = card["config"]
    if set(card["networks"]) != {"average", "velocity"}:
        raise ExportError(f"{folder}: does not hold a flow but a model for {card['name']}")
    try:
        config = FlowConfig(**{**experiment["model"], **changes})
    except ValidationError as error:
        raise ConfigError(configuration.describe(error)) from None
    model = Flow(config, experiment["data"]["size"])
    export.assign(model.networks, folder)
    experiment["model"] = config.model_dump(mode="json")
    # by its id a registry would take it for the export of the training
    return export.export(model, directory, {key: card[key] for key in card if key != "id"})
