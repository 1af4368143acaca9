"""Blending: a lesion of one mammogram grown into the normal tissue of another (Lin et al. 2019).

A generator G sees three channels: normal tissue X; X with the lesion E pasted in; the mask of the
lesion, Omega. A discriminator D sees 16 x 16 px at a time and tells G's images from real ones with
lesions, Y:

    L     = L_adv + lambda_p (L_S + L_B)                                              Eq. (1)
    L_adv = E[log D(Y)] + E[log(1 - D(G(X, E)))]                                      Eq. (2)
    L_S   = ||grad G(X, E) - v||_2 on Omega                                           Eq. (3)
    v     = grad X where |grad X| > |grad E|, else grad E                             Eq. (4)
    L_B   = ||G(X, E) - X||_1 + || |grad G(X, E)| - |grad X| ||_2 outside Omega       Eq. (5)

Inside, the networks' images are in [-1, 1]; at every public border, and in L_S and L_B, they are in
[0, 1].

Deviations and what the paper leaves open:
- lambda_p, Adam's values, the batch and the length are not given: 100 and (2e-4, 0.5), Pix2Pix's;
  four lesions and four patches of tissue a step, 20,000 steps. Nor are the initial weights: He's in
  G, N(0, 0.02) in D.
- "U-Net [13]" is Ronneberger's, as cited: its widths, skips at every resolution, the input's own
  too. It has no normalisation, so that intensities are preserved. Dropout is off, because G gains
  nothing from randomness. tanh at the end.
- D's four convolutions: the three of Pix2Pix's 16 x 16 discriminator, the last one widened and
  followed by a convolution 1 x 1; 126 x 126 responses from 256 px. The two in the middle are
  normalised by each sample's own statistics, Pix2Pix's by those of the batch. D sees the image
  alone, as in Eq. (2), not G's input.
- Norms: ||.||_1 is the mean and ||.||_2 the root mean square over the region. Neither lambda_p's
  meaning nor the balance of the two regions then depends on their sizes.
- Gradients are forward differences, down and to the right; |.| is the length of the two. L_S takes
  each difference with a pixel in Omega, so that all sides of the border count alike; v is that of
  the pixel from which the difference starts. L_B takes the gradients whose three pixels all are
  outside Omega, so that it is 0 for an unchanged background.
- Whole mammograms in the paper, patches here: a lesion with context around it, and normal tissue at
  similar scales. Y, G's images and the tissue are of one size, and the position is drawn within the
  patch.
- Each step rotates and resizes its lesions (`rotate`, `resize`) by one interpolation. It draws
  their positions so that the mask stays away from the patch's border; a larger lesion is made small
  enough to fit.
- log(1 - D) hardly has a gradient while D wins: `adversarial: non_saturating` (default) minimises
  -log D. D's "average" of its responses is that of probabilities; `average: losses` averages their
  logarithms.
- Each draw of a real patch, of tissue and of a lesion is one of the eight symmetries of the square
  (`data.augment`).
- Intensities are those of the mammogram (`data.window`); the paper states none.
- Windows of lesions are twice as wide as the lesion. Windows of tissue are drawn from the same
  widths (`data.sampling.scale: null`). Else D could tell the two apart by their resolution.
- Windows of tissue are at least 90 % breast (`data.sampling.tissue`), those of lesions need not be:
  40 % of CDD-CESM's are not. The paper asks for neither.
- Real patches show their lesion in the middle, blended ones anywhere. D sees 16 px and can't tell
  them apart by that. Lesions need outlines.
- `prior: noise` is the paper's model without prior knowledge of the mass, "replacing the real
  lesion patch with random noise at the input to the generator": uniform noise. Only the input
  changes. Eq. (3) and (4) keep the real lesion E, whose gradients G then can't know. The other
  reading is `noise_guide: none`, without L_S.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Literal

import keras
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from tfmammo.config import Frozen, Width
from tfmammo.errors import ConfigError
from tfmammo.nn.convolutions import Convolution
from tfmammo.nn.layers import (
    draw_uniform,
    part_by_label,
    patch_seeds,
    sample_bilinear,
    seeded_draws,
    uniform_noise,
)
from tfmammo.nn.losses import Adversarial, Average, deceive, log_fake, log_real
from tfmammo.nn.networks import Trainable, export_function, halve, leaky_relu, normal, unet_features
from tfmammo.nn.normalization import SampleNormalization
from tfmammo.nn.optimization import build_adam, count_batches, minimize_each

# labels of a batch's patches
NORMAL = 0
LESION = 1
GAP = 4  # px between mask and border of a patch
TINY = 1e-24  # a smaller square counts as 0


class BlendingConfig(Frozen):
    """The paper's values; see *Deviations* in the module for those it leaves open."""

    prior: Literal["lesion", "noise"] = "lesion"
    """What is pasted: the "lesion", or "noise"."""
    noise_guide: Literal["lesion", "none"] = "lesion"
    """Whose gradients L_S asks for with prior "noise": the real "lesion"'s, or "none": no L_S."""
    lambda_p: NonNegativeFloat = 100.0
    """Weight of L_S + L_B."""
    rotate: float = Field(default=180.0, ge=0, le=180)
    """Largest rotation of lesions either way, degrees."""
    resize: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    """Range of the factor by which lesions are scaled."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate, of both networks."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the second moment."""
    adversarial: Adversarial = "non_saturating"
    """What G minimises: -log D, or log(1 - D) as printed."""
    average: Average = "responses"
    """How D's responses to one image become one, see `tfmammo.nn.losses`."""
    widths: tuple[Width, ...] = Field(default=(64, 128, 256, 512, 1024), min_length=2)
    """Channels of G's levels, the bottom last."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share dropped in G's last two levels."""
    discriminator_filters: Width = 64
    """Filters of D's first convolution, doubled by each further one."""

    @model_validator(mode="after")
    def _check_values(self) -> BlendingConfig:
        if self.resize[0] > self.resize[1]:
            raise ValueError("resize must be two factors, the smaller first")
        if self.prior == "lesion" and self.noise_guide == "none":
            raise ValueError("noise_guide=none needs prior=noise")
        return self


def paste(tissue: tf.Tensor, lesion: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Make G's input: tissue, the tissue with the lesion pasted in, the mask; section 2.1.

    float32 [n, size, size, 1] in [0, 1] each -> float32 [n, size, size, 3]
    """
    return tf.concat([tissue, tf.where(mask > 0, lesion, tissue), mask], axis=-1)


def image_gradients(image: tf.Tensor) -> tf.Tensor:
    """Compute forward differences down and to the right: [n, rows, cols, 1] -> [n, rows, cols, 2].

    They are 0 in the last row or column, which has no neighbour.
    """
    return tf.concat(tf.image.image_gradients(tf.convert_to_tensor(image)), axis=-1)


def guide(tissue: tf.Tensor, lesion: tf.Tensor) -> tf.Tensor:
    """Compute v, Eq. (4): at each pixel the longer gradient, the tissue's or the lesion's.

    float32 [n, size, size, 1] each -> float32 [n, size, size, 2], see `image_gradients`
    """
    tissue_gradients = image_gradients(tissue)
    lesion_gradients = image_gradients(lesion)
    tissue_squares = tf.reduce_sum(tissue_gradients**2, -1, keepdims=True)
    lesion_squares = tf.reduce_sum(lesion_gradients**2, -1, keepdims=True)
    return tf.where(tissue_squares > lesion_squares, tissue_gradients, lesion_gradients)


def seamless_loss(
    output: tf.Tensor, tissue: tf.Tensor, lesion: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    """Compute L_S, Eq. (3): the root mean square of |grad G - v| over Omega.

    Every forward difference that touches Omega counts, those across its border too. All are float32
    [n, size, size, 1], the mask of 0 and 1. The result is the mean over the batch, 0 where the
    output's differences are the guide's.
    """
    difference = image_gradients(output) - guide(tissue, lesion)
    squares = 2 * difference**2  # a gradient has two differences
    return tf.reduce_mean(_root(_region_mean(squares, _mark_touching(mask))))


def background_loss(output: tf.Tensor, tissue: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Compute L_B, Eq. (5), outside Omega.

    It is the mean of |G - X| plus the root mean square of |grad G| - |grad X|. Gradients count
    whose pixels all are outside Omega. All are float32 [n, size, size, 1], the mask of 0 and 1. The
    result is the mean over the batch, 0 where the background is the tissue's.
    """
    background = 1 - mask
    grey_term = _region_mean(tf.abs(output - tissue), background)
    change = _length(image_gradients(output)) - _length(image_gradients(tissue))
    whole = 1 - tf.reduce_max(_mark_touching(mask), axis=-1, keepdims=True)
    # the last row and column have no gradient of two differences
    gradient_term = _root(_region_mean(change[:, :-1, :-1] ** 2, whole[:, :-1, :-1]))
    return tf.reduce_mean(grey_term + gradient_term)


def place_lesion(
    lesion: tf.Tensor,
    mask: tf.Tensor,
    draws: tf.Tensor,
    rotate: float = 180.0,
    resize: tuple[float, float] = (0.8, 1.2),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rotate lesions about the centres of their masks, resize them, and move them.

    They go to places where their masks keep away from the border. Beyond its old patch a lesion is
    0.

    Args:
        lesion: float32 [n, size, size, 1] in [0, 1], with its surroundings.
        mask: The same shape, 0 or 1, not empty.
        draws: float32 [n, 4] in [0, 1), for angle, factor, row and column.
        rotate: See BlendingConfig.
        resize: See BlendingConfig.

    Source:
        Section 3, "we randomly resize and rotate the input lesion", and section 2.2, "a random
        position (x, y)".
    """
    size = int(lesion.shape[1])
    centre, reach = _measure_extent(mask)
    angle = (2 * draws[:, 0] - 1) * (rotate * pi / 180)
    factor = tf.minimum(resize[0] + draws[:, 1] * (resize[1] - resize[0]), (size / 2 - GAP) / reach)
    distance = (factor * reach + GAP)[:, None]  # of the centre from the border
    row, col = tf.unstack(distance + draws[:, 2:] * (size - 2 * distance) - 0.5, axis=1)
    # From a pixel of the result to the pixel of the source that it shows: rotated back and scaled
    # back about the two centres.
    cosine = tf.cos(angle) / factor
    sine = tf.sin(angle) / factor
    across = centre[:, 1] - cosine * col - sine * row
    down = centre[:, 0] + sine * col - cosine * row
    cosine, sine, across, down = (values[:, None, None] for values in (cosine, sine, across, down))
    to_row = tf.range(size, dtype=tf.float32)[:, None]
    to_col = tf.range(size, dtype=tf.float32)
    moved = sample_bilinear(
        tf.concat([lesion, mask], axis=-1),
        down - sine * to_col + cosine * to_row,
        across + cosine * to_col + sine * to_row,
    )
    return moved[..., :1], tf.cast(moved[..., 1:] >= 0.5, tf.float32)


class Blending(Trainable):
    """Generator and discriminator, with their optimizers.

    Args:
        config: The paper's values or yours.
        size: Patch rows and columns, px.
        tissue: float32 [k, size, size, 1] in [0, 1], into which the image grid's lesions are
            pasted; None: into their own patches, mirrored.

    Source:
        Section 2.1. For the default widths G has 31,031,745 and D 657,473 trainable parameters.
    """

    def __init__(
        self, config: BlendingConfig | None = None, size: int = 256, tissue: NDArray | None = None
    ) -> None:
        super().__init__(name="blending")
        self.config = config = config or BlendingConfig()
        self.size = size
        self.tissue = tissue
        self.generator = _generator(config, size)
        self.discriminator = _discriminator(config.discriminator_filters, size)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = build_adam(
            self.networks, config.learning_rate, config.beta_1, config.beta_2
        )

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update G and D once, both from the same forward pass, on "image", "mask" and "label".

        As many labels are LESION as NORMAL: the i-th lesion goes into the i-th normal patch. A
        batch without labels is a ConfigError. The scalars are each network's loss, L_S, L_B, and
        D's mean probability for real and for blended patches.
        """
        if "label" not in batch:
            raise ConfigError(
                "blending needs patches labelled as lesion's and normal, these have no labels"
            )
        config = self.config
        step = count_batches(self.optimizers["generator"])
        tissue, real = part_by_label(batch["image"], batch["label"], [NORMAL, LESION])  # X, Y
        _, mask = part_by_label(batch["mask"], batch["label"], [NORMAL, LESION])
        # E, Omega
        lesion, mask = place_lesion(
            real, mask, self._draws(real, step), config.rotate, config.resize
        )
        shown = paste(tissue, self._prior(tissue, lesion, step), mask)
        with tf.GradientTape(persistent=True) as tape:
            blended = self.generator(shown * 2 - 1, training=True)  # G(X, E)
            p_real = self.discriminator(real * 2 - 1)
            p_fake = self.discriminator(blended)
            image = blended * 0.5 + 0.5
            seamless = (
                seamless_loss(image, tissue, lesion, mask)
                if config.noise_guide == "lesion"
                else tf.constant(0.0)
            )
            background = background_loss(image, tissue, mask)
            adversarial = deceive(p_fake, config.adversarial, config.average)
            losses = {
                "generator": adversarial + config.lambda_p * (seamless + background),
                "discriminator": -(
                    log_real(p_real, config.average) + log_fake(p_fake, config.average)
                ),
            }
        return {
            **minimize_each(losses, self, tape),
            "seamless": seamless,
            "background": background,
            "p_real": tf.reduce_mean(tf.sigmoid(p_real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(p_fake)),
        }

    def blend(self, channels: tf.Tensor) -> tf.Tensor:
        """Blend lesions into tissue by G.

        With prior "noise" the lesion is first replaced by noise that follows from the tissue.

        float32 [n, size, size, 3] in [0, 1], see `paste` -> float32 [n, size, size, 1] in [0, 1]
        """
        tissue, lesion, mask = tf.split(channels, 3, axis=-1)
        channels = paste(tissue, self._prior(tissue, lesion, 0), mask)
        return self.generator(channels * 2 - 1) * 0.5 + 0.5

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid.

        They show the tissue, the lesion pasted into it where it was, G's image, and the lesion's
        own patch.
        """
        lesion = batch["image"]
        mask = batch["mask"]
        tissues = tf.reverse(lesion, [2]) if self.tissue is None else self.tissue
        tissue = tf.gather(tissues, tf.range(len(lesion)) % len(tissues))
        channels = paste(tissue, lesion, mask)
        return {
            "tissue": tissue,
            "pasted": channels[..., 1:2],
            "synthetic": self.blend(channels),
            "real": lesion,
        }

    def functions(self) -> dict[str, Callable]:
        """Return what is exported, one function for each network."""
        rows_and_cols = (self.size, self.size)
        return {
            "generator": export_function(
                lambda pasted: {"image": self.blend(pasted)}, pasted=(*rows_and_cols, 3)
            ),
            "discriminator": export_function(
                lambda image: {"logits": self.discriminator(image * 2 - 1)},
                image=(*rows_and_cols, 1),
            ),
        }

    def _prior(self, tissue: tf.Tensor, lesion: tf.Tensor, step: tf.Tensor | int) -> tf.Tensor:
        if self.config.prior == "lesion":
            return lesion
        return uniform_noise(patch_seeds(tissue, step), self.size)

    def _draws(self, patches: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Draw float32 [n, 4] in [0, 1), which depend on the step and on each patch alone."""
        return seeded_draws(draw_uniform, (4,), patch_seeds(patches, step))


def _measure_extent(mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Measure the centre (row, col) of each mask's box, [n, 2], and half its diagonal, [n], px."""
    centres = []
    lengths = []
    for axis in (2, 1):
        inside = tf.reduce_max(mask[..., 0], axis=axis) > 0
        first = tf.argmax(inside, axis=1)
        last = inside.shape[1] - 1 - tf.argmax(inside[:, ::-1], axis=1)
        centres.append(tf.cast(first + last, tf.float32) / 2)
        lengths.append(tf.cast(last - first + 1, tf.float32))
    return tf.stack(centres, axis=1), tf.sqrt(lengths[0] ** 2 + lengths[1] ** 2) / 2


def _mark_touching(mask: tf.Tensor) -> tf.Tensor:
    """Mark the forward differences, down and right, that have a pixel in a mask of 0 and 1.

    They are 0 where the patch ends, as those of `image_gradients`.
    """
    down = tf.maximum(mask[:, 1:], mask[:, :-1])
    right = tf.maximum(mask[:, :, 1:], mask[:, :, :-1])
    down = tf.pad(down, [[0, 0], [0, 1], [0, 0], [0, 0]])
    right = tf.pad(right, [[0, 0], [0, 0], [0, 1], [0, 0]])
    return tf.concat([down, right], axis=-1)


def _region_mean(values: tf.Tensor, region: tf.Tensor) -> tf.Tensor:
    """Average each sample over a region of 0 and 1: float32 [n], 0 for an empty region."""
    return tf.math.divide_no_nan(
        tf.reduce_sum(values * region, axis=[1, 2, 3]), tf.reduce_sum(region, axis=[1, 2, 3])
    )


def _length(vectors: tf.Tensor) -> tf.Tensor:
    return _root(tf.reduce_sum(vectors**2, axis=-1, keepdims=True))


def _root(squares: tf.Tensor) -> tf.Tensor:
    """Take the square root, with gradient 0 where it is 0 instead of an infinite one."""
    positive = squares > TINY
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1.0)), 0.0)


def _generator(config: BlendingConfig, size: int) -> keras.Model:
    """Build the U-Net.

    floating [batch, size, size, 3] in [-1, 1] -> float32 [batch, size, size, 1] in [-1, 1]
    """
    halve("widths", size, len(config.widths) - 1)
    channels = keras.Input((size, size, 3))
    features = unet_features(channels, config.widths, config.dropout)
    image = Convolution(1, 1)(features)
    return keras.Model(
        channels, keras.layers.Activation("tanh", dtype="float32")(image), name="generator"
    )


def _discriminator(filters: int, size: int) -> keras.Model:
    """Build four convolutions that see 16 x 16 px.

    floating [batch, size, size, 1] in [-1, 1] -> float32 logits [batch, n, n, 1]
    """
    layers = keras.layers
    if size < 16:
        raise ConfigError(
            f"data.size: patches of {size} px are smaller than the 16 px that the discriminator "
            "looks at"
        )
    stack: list[keras.layers.Layer] = [keras.Input((size, size, 1))]
    for i, (width, stride) in enumerate(((filters, 2), (2 * filters, 1), (4 * filters, 1))):
        stack += [
            layers.ZeroPadding2D(1),
            Convolution(width, 4, stride, use_bias=i == 0, kernel_initializer=normal()),
        ]
        stack += [SampleNormalization()] if i else []
        stack += [layers.Activation(leaky_relu)]
    stack += [
        Convolution(1, 1, kernel_initializer=normal()),
        layers.Activation("linear", dtype="float32"),
    ]
    return keras.Sequential(stack, name="discriminator")
