"""Mask GAN: segmentation masks of masses from uniform noise, stage 1 of Shen et al.'s infilling.

A DCGAN (Radford et al.): a generator G of transposed convolutions and a discriminator D of strided
ones,

    min_G max_D  E[log D(x)] + E[log(1 - D(G(z)))]        z uniform in [-1, 1], Eq. (2)

What G draws is noisy: `clean` leaves one region without holes, `plausible` says whether it looks
like a training mask by its size and outline, `diversity` and `nearest` whether the masks differ
from each other and from those that G was trained on.

Inside, masks are in [-1, 1]; at every public border they are in [0, 1].

Departures and what the paper leaves open:
- Layers: the paper only cites DCGAN, which ends at 64 x 64. Here it goes on to 256 x 256: 4 x 4 x
  1024, then doubled in size
  and halved in width six times, kernel 5, D the mirror image; no fully connected layer but G's
  first. z has 100 numbers.
- As in DCGAN: batch normalisation on all but G's output and D's input, ReLU in G, LeakyReLU 0.2 in
  D, tanh, weights from
  N(0, 0.02). Its moving averages (momentum 0.9) are used at inference. D sees real and false masks
  in batches of their own.
- Batch normalisation's gamma starts at 1 and its epsilon is 1e-3, as in Keras; DCGAN's code has
  N(1, 0.02) and 1e-5.
- Masks of masses of any pathology, where the paper takes malignant ones alone, each draw turned
  anew by one of the eight
  symmetries of the square. The paper's copies are scaled as well.
- Adam's beta_1 is 0.9, as printed, where DCGAN recommends 0.5. In trials here masks came and went
  with either, so look at
  diversity and plausible at every checkpoint: docs/results.md.
- log(1 - D(G(z))) hardly has a gradient while D wins: `adversarial: non_saturating` (default)
  minimises -log D(G(z)).
- "Pre-processing to remove the white noise" from masks: thresholding at 0.5, a median filter of 5 x
  5, the largest region, its
  holes filled. Outlines that people drew need no median filter: training masks are cleaned without
  it.
- The filter for plausibility is ours: the paper inserts every mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from scipy import ndimage

from tfmammo.config import Frozen
from tfmammo.layers import step_noise
from tfmammo.losses import log_fake, log_real
from tfmammo.networks import Trainable, dcgan_discriminator, dcgan_generator
from tfmammo.optimization import Adam, build, minimize

LIMITS = "plausibility.json"  # the file in an export that holds a Plausibility
BLOCK = 256  # training masks compared at once: 64 MB of float32 at 256 x 256


class MaskGANConfig(Frozen):
    """The paper's values; see *Departures* in the module for those it leaves open."""

    learning_rate: PositiveFloat = 2e-4
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    adversarial: Literal["non_saturating", "as_printed"] = "non_saturating"
    z: PositiveInt = 100
    """Length of the noise vector."""
    filters: tuple[PositiveInt, ...] = Field(default=(1024, 512, 256, 128, 64, 32), min_length=1)
    """Of G from its innermost map on, each twice the size of the one before."""
    discriminator_filters: tuple[PositiveInt, ...] = Field(
        default=(32, 64, 128, 256, 512, 1024), min_length=1
    )
    """Of D, one per halving of the mask."""
    kernel: PositiveInt = 5
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of batch normalisation's moving averages."""


class Plausibility(Frozen):
    """Between which values a mask's measures must lie; see `measures`.

    Made by `fit_plausibility`.
    """

    area: tuple[float, float]
    solidity: tuple[float, float]
    extent: tuple[float, float]


class MaskGAN(Trainable):
    """Generator and discriminator with their optimizers; built on construction.

    Args:
        config: The paper's values or yours.
        size: Mask rows and columns, px.
        references: uint8 [n, size, size, 1], 0 or 1: training masks, the nearest of which stands
            beside each generated one in the image grid.

    Raises:
        ConfigError: Masks of that size can't be halved so often.

    Source:
        Sections 3.2 and 4.2. G has 19,102,433 and D 17,480,385 trainable parameters.
    """

    def __init__(
        self,
        config: MaskGANConfig | None = None,
        size: int = 256,
        references: NDArray[np.uint8] | None = None,
    ) -> None:
        super().__init__(name="mask_gan")
        self.config = config = config or MaskGANConfig()
        self.size = size
        self.references = references
        self.generator = dcgan_generator(
            config.z, config.filters, 1, size, config.kernel, config.momentum
        )
        self.discriminator = dcgan_discriminator(
            config.discriminator_filters, 1, size, config.kernel, config.momentum
        )
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = {
            name: build(
                Adam(config.learning_rate, config.beta_1, config.beta_2, name=name), network
            )
            for name, network in self.networks.items()
        }

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of D and one of G, both from the same forward pass; the noise follows from step
        and replica.

        Args:
            batch: "mask", float32 [batch, size, size, 1] in [0, 1].

        Returns:
            float32 scalars: each network's loss, and D's mean probability for real and generated
            masks.
        """
        real_mask = batch["mask"] * 2 - 1
        z = self.draw(tf.shape(real_mask)[0])
        with tf.GradientTape(persistent=True) as tape:
            fake_mask = self.generator(z, training=True)  # G(z)
            real = self.discriminator(real_mask, training=True)  # D(x)
            fake = self.discriminator(fake_mask, training=True)  # D(G(z))
            generator_loss = (
                log_fake(fake) if self.config.adversarial == "as_printed" else -log_real(fake)
            )
            discriminator_loss = -(log_real(real) + log_fake(fake))
        losses = {"generator": generator_loss, "discriminator": discriminator_loss}
        for name, loss in losses.items():
            minimize(loss, self.networks[name], self.optimizers[name], tape)
        return {
            **{f"{name}_loss": loss for name, loss in losses.items()},
            "p_real": tf.reduce_mean(tf.sigmoid(real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(fake)),
        }

    def draw(self, count: tf.Tensor) -> tf.Tensor:
        """This step's noise on this replica: float32 [count, z], uniform in [-1, 1]; a resumed run
        draws what it would have.
        """
        return step_noise(count, self.config.z, self.optimizers["generator"].iterations)

    def generate(self, noise: tf.Tensor) -> tf.Tensor:
        """G at inference.

        Args:
            noise: float32 [n, z] in [-1, 1].

        Returns:
            float32 [n, size, size, 1] in [0, 1], not cleaned.
        """
        return self.generator(noise, training=False) * 0.5 + 0.5

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Panels for the image grid: a real mask; of fixed noise a mask as drawn, cleaned, and the
        training mask nearest to it.
        """
        generated = self.generate(tf.constant(latent(len(batch["mask"]), self.config.z)))
        cleaned = clean(generated.numpy())
        panels = {
            "real": batch["mask"],
            "generated": generated,
            "cleaned": tf.constant(cleaned, tf.float32),
        }
        if self.references is None:
            return panels
        return panels | {
            "nearest": tf.constant(
                self.references[nearest(cleaned, self.references)[1]], tf.float32
            )
        }

    def functions(self) -> dict[str, Callable]:
        """What is exported: noise float32 [n, z] in [-1, 1] -> mask float32 [n, size, size, 1]; and
        mask -> D's logits.
        """

        @tf.function(input_signature=[tf.TensorSpec([None, self.config.z], tf.float32, "noise")])
        def generator(noise: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"mask": self.generate(noise)}

        @tf.function(
            input_signature=[tf.TensorSpec([None, self.size, self.size, 1], tf.float32, "mask")]
        )
        def discriminator(mask: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": self.discriminator(mask * 2 - 1, training=False)}

        return {"generator": generator, "discriminator": discriminator}


def latent(count: int, z: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise for `generate`, the same for the same seed: float32 [count, z], uniform in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, z)).astype(np.float32)


def clean(
    masks: NDArray[np.floating] | NDArray[np.uint8], threshold: float = 0.5, median: int = 5
) -> NDArray[np.uint8]:
    """One region without holes of each mask: thresholded, specks and frayed edges smoothed, the
    largest 8-connected region, filled.

    Args:
        masks: [n, rows, cols, 1] in [0, 1].
        threshold: What lies above it is mask.
        median: Side of the median filter, an odd number of px; 1 leaves it out.

    Returns:
        uint8 of the same shape, 0 or 1; empty where nothing, or no more than specks, lies above the
        threshold.

    Source:
        Section 4.3, "remove the white noise from the synthetic mask".
    """
    cleaned = np.zeros(masks.shape, np.uint8)
    for mask, target in zip((masks[..., 0] > threshold).astype(np.uint8), cleaned, strict=True):
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(
            cv2.medianBlur(mask, median), connectivity=8
        )
        areas = statistics[1:, cv2.CC_STAT_AREA]
        if len(areas):
            target[..., 0] = ndimage.binary_fill_holes(labels == 1 + areas.argmax())
    return cleaned


def measures(masks: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """How large and how smooth masks are.

    Args:
        masks: uint8 [n, rows, cols, 1], 0 or 1.

    Returns:
        float64 [n] each, in [0, 1], 0 for an empty mask: "area", its share of the patch;
        "solidity", its area over that of its convex hull's pixels; "extent", its area over its
        box's.
    """
    found = np.zeros((3, len(masks)))
    for column, mask in zip(found.T, np.ascontiguousarray(masks[..., 0]), strict=True):
        if mask.any():
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            points = np.concatenate(outlines)
            hull = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), cv2.convexHull(points), 1)
            _, _, width, height = cv2.boundingRect(points)
            column[:] = mask.mean(), mask.sum() / hull.sum(), mask.sum() / (width * height)
    return dict(zip(("area", "solidity", "extent"), found, strict=True))


def fit_plausibility(masks: NDArray[np.uint8], share: float = 0.98) -> Plausibility:
    """The limits between which the middle `share` of masks lies, by each measure.

    Args:
        masks: uint8 [n, rows, cols, 1], 0 or 1, not empty: training masks, cleaned.
        share: In (0, 1].
    """
    tail = (1 - share) / 2
    limits = {
        name: np.quantile(values, [tail, 1 - tail]).tolist()
        for name, values in measures(masks).items()
    }
    return Plausibility(**limits)


def plausible(masks: NDArray[np.uint8], limits: Plausibility) -> NDArray[np.bool_]:
    """Which masks lie within all limits and do not touch the patch's border.

    Args:
        masks: uint8 [n, rows, cols, 1], 0 or 1, cleaned.

    Returns:
        bool [n].
    """
    inside = np.pad(masks[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1), (0, 0)))
    accepted = masks.any(axis=(1, 2, 3)) & (masks == inside).all(axis=(1, 2, 3))
    for name, values in measures(masks).items():
        low, high = getattr(limits, name)
        accepted &= (values >= low) & (values <= high)
    return accepted


def distances(masks: NDArray[np.uint8], references: NDArray[np.uint8]) -> NDArray[np.float32]:
    """1 - Dice of every mask and every reference; of two empty masks 0.

    Args:
        masks: uint8 [n, rows, cols, 1].
        references: uint8 [m, rows, cols, 1]; 0 or 1.

    Returns:
        float32 [n, m] in [0, 1].
    """
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    found = np.zeros((len(masks), len(references)), np.float32)
    for start in range(0, len(references), BLOCK):
        block = references[start : start + BLOCK].reshape(-1, flat.shape[1]).astype(np.float32)
        total = flat.sum(axis=1)[:, np.newaxis] + block.sum(axis=1)
        found[:, start : start + BLOCK] = np.where(
            total > 0, 1 - 2 * (flat @ block.T) / np.maximum(total, 1), 0
        )
    return np.clip(found, 0, 1)


def nearest(
    masks: NDArray[np.uint8], references: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """The distance of each mask to the reference most like it, float32 [n], and that one's index,
    [n]; see `distances`.
    """
    found = distances(masks, references)
    return found.min(axis=1), found.argmin(axis=1)


def diversity(masks: NDArray[np.uint8]) -> float:
    """The mean distance between two of the masks, in [0, 1]; 0 for one alone. See `distances`."""
    if len(masks) < 2:
        return 0.0
    return float(distances(masks, masks)[np.triu_indices(len(masks), 1)].mean())
