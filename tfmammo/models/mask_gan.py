"""Mask GAN: segmentation masks of masses from uniform noise, stage 1 of Shen et al.'s infilling.

A DCGAN (Radford et al.): a generator G of transposed convolutions and a discriminator D of strided
ones,

    min_G max_D  E[log D(x)] + E[log(1 - D(G(z)))]        z uniform in [-1, 1], Eq. (2)

G's masks are noisy. `clean` leaves one region without holes. `is_plausible` says whether a mask
looks like a training mask by its size and outline. `diversity` and `find_nearest` say how far masks
differ from each other and from the training masks.

Inside, masks are in [-1, 1]; at every public border they are in [0, 1].

Deviations and what the paper leaves open:
- Layers: the paper only cites DCGAN, which ends at 64 x 64. Here it continues to 256 x 256: 4 x 4 x
  1024, then doubled in size and halved in width six times, kernel 5. D is the mirror image. Only
  G's first layer is fully connected. z has 100 numbers.
- As in DCGAN: batch normalisation on all but G's output and D's input, ReLU in G, LeakyReLU 0.2 in
  D, tanh, weights from N(0, 0.02). Moving averages (momentum 0.9) are used at inference. D sees
  real and fake masks in separate batches.
- Batch normalisation's gamma starts at 1 and its epsilon is 1e-3, as in Keras; DCGAN's code has
  N(1, 0.02) and 1e-5.
- Malignant masses (`data.pathologies`), as in the paper; null takes all. Each draw is transformed
  by a random one of the eight symmetries of the square. The paper's copies are scaled as well.
- Adam's beta_1 is 0.9, as printed; DCGAN recommends 0.5. In trials masks came and went with either,
  so look at diversity and plausible at every checkpoint: docs/measurements.md.
- log(1 - D(G(z))) hardly has a gradient while D wins: `adversarial: non_saturating` (default)
  minimises -log D(G(z)).
- The "pre-processing procedure to remove the white noise" from masks: thresholding at 0.5, a median
  filter of 5 x 5, the largest region, its holes filled. Outlines that people drew need no median
  filter: training masks are cleaned without it.
- The filter for plausibility is ours. `shapes.plausible: false` of a synthesis inserts every mask,
  as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from tfmammo.config import Frozen
from tfmammo.mammogram import keep_largest
from tfmammo.nn.dcgan import DCGANConfig, dcgan_discriminator, dcgan_generator
from tfmammo.nn.layers import draw_latent_noise, sample_latent_noise
from tfmammo.nn.losses import Adversarial, deceive, log_fake, log_real
from tfmammo.nn.networks import Trainable, export_function
from tfmammo.nn.optimization import build_adam, count_batches, minimize_each
from tfmammo.tracking.export import write_saved_models

LIMITS = "plausibility"  # the key of a function's card that holds a Plausibility
BLOCK = 256  # training masks compared at once: 64 MB of float32 at 256 x 256


class MaskGANConfig(DCGANConfig):
    """The paper's values; see *Deviations* in the module for those it leaves open."""

    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the first moment."""
    adversarial: Adversarial = "non_saturating"
    """What G minimises: -log D(G(z)), or log(1 - D(G(z))) as printed."""


class Plausibility(Frozen):
    """Limits between which a mask's measures must be; see `measure` and `fit_plausibility`."""

    area: tuple[float, float]
    """Least and largest area."""
    solidity: tuple[float, float]
    """Least and largest solidity."""
    extent: tuple[float, float]
    """Least and largest extent."""


class MaskGAN(Trainable):
    """Generator and discriminator of masks, with their optimizers.

    Args:
        config: The paper's values or yours.
        size: Mask rows and columns, px.
        references: uint8 [n, size, size, 1], 0 or 1: training masks, the nearest of which the image
            grid shows beside each generated one.

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
        self.generator = dcgan_generator(config, size)
        self.discriminator = dcgan_discriminator(config, size)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = build_adam(
            self.networks, config.learning_rate, config.beta_1, config.beta_2
        )

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update D and G once, both from the same forward pass, on "mask".

        The scalars are each network's loss, and D's mean probability for real and generated masks.
        """
        real_mask = batch["mask"] * 2 - 1
        z = self.draw(tf.shape(real_mask)[0])
        with tf.GradientTape(persistent=True) as tape:
            fake_mask = self.generator(z, training=True)  # G(z)
            real = self.discriminator(real_mask, training=True)  # D(x)
            fake = self.discriminator(fake_mask, training=True)  # D(G(z))
            losses = {
                "generator": deceive(fake, self.config.adversarial),
                "discriminator": -(log_real(real) + log_fake(fake)),
            }
        return {
            **minimize_each(losses, self, tape),
            "p_real": tf.reduce_mean(tf.sigmoid(real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(fake)),
        }

    def draw(self, count: tf.Tensor) -> tf.Tensor:
        """Draw this step's latent noise; see `layers.draw_latent_noise`."""
        return draw_latent_noise(count, self.config.z, count_batches(self.optimizers["generator"]))

    def generate(self, noise: tf.Tensor) -> tf.Tensor:
        """Generate masks: noise [n, z] in [-1, 1] -> [n, size, size, 1] in [0, 1], not cleaned."""
        return self.generator(noise, training=False) * 0.5 + 0.5

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid, for the same noise every time.

        They show a real mask, a generated mask, the cleaned mask, and the training mask nearest to
        it.
        """
        noise = sample_latent_noise(len(batch["mask"]), self.config.z)
        generated = self.generate(tf.constant(noise))
        cleaned = clean(generated.numpy())
        panels = {
            "real": batch["mask"],
            "generated": generated,
            "cleaned": tf.constant(cleaned, tf.float32),
        }
        if self.references is None:
            return panels
        _, index = find_nearest(cleaned, self.references)
        return panels | {"nearest": tf.constant(self.references[index], tf.float32)}

    def functions(self) -> dict[str, Callable]:
        """Return what is exported: noise, [n, z] in [-1, 1] -> mask, and mask -> logits."""
        noise, shape = (self.config.z,), (self.size, self.size, 1)
        return {
            "generator": export_function(lambda noise: {"mask": self.generate(noise)}, noise=noise),
            "discriminator": export_function(
                lambda mask: {"logits": self.discriminator(mask * 2 - 1)}, mask=shape
            ),
        }


def clean(
    masks: NDArray[np.floating] | NDArray[np.uint8], threshold: float = 0.5, median: int = 5
) -> NDArray[np.uint8]:
    """Clean masks [n, rows, cols, 1] in [0, 1] to one region without holes each, uint8 of 0 and 1.

    A mask is thresholded, a median filter removes specks and frayed edges, and the largest
    8-connected region stays, its holes filled. It is empty where nothing, or no more than specks,
    is above the threshold. The median filter has an odd number of rows and columns; 1 leaves it
    out.

    Source:
        Section 4.3, "remove the white noise from the synthetic mask".
    """
    cleaned = np.zeros(masks.shape, np.uint8)
    for mask, target in zip((masks[..., 0] > threshold).astype(np.uint8), cleaned, strict=True):
        region = keep_largest(cv2.medianBlur(mask, median))
        target[..., 0] = ndimage.binary_fill_holes(region)
    return cleaned


def measure(masks: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Measure how large and how smooth masks, uint8 [n, rows, cols, 1] of 0 and 1, are.

    float64 [n] each, in [0, 1], 0 for an empty mask: "area", its share of the patch; "solidity",
    its area over that of its convex hull's pixels; "extent", its area over its box's.
    """
    values = np.zeros((3, len(masks)))
    for column, mask in zip(values.T, np.ascontiguousarray(masks[..., 0]), strict=True):
        if mask.any():
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            points = np.concatenate(outlines)
            hull = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), cv2.convexHull(points), 1)
            _, _, width, height = cv2.boundingRect(points)
            column[0] = mask.mean()
            column[1] = mask.sum() / hull.sum()
            column[2] = mask.sum() / (width * height)
    return dict(zip(("area", "solidity", "extent"), values, strict=True))


def fit_plausibility(masks: NDArray[np.uint8], share: float = 0.98) -> Plausibility:
    """Fit the limits between which the middle `share` of cleaned training masks is."""
    tail = (1 - share) / 2
    limits = {
        name: np.quantile(values, [tail, 1 - tail]).tolist()
        for name, values in measure(masks).items()
    }
    return Plausibility(**limits)


def is_plausible(masks: NDArray[np.uint8], limits: Plausibility) -> NDArray[np.bool_]:
    """Decide which cleaned masks of 0 and 1 are within all limits and off the border."""
    inside = np.pad(masks[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1), (0, 0)))
    accepted = masks.any(axis=(1, 2, 3)) & (masks == inside).all(axis=(1, 2, 3))
    for name, values in measure(masks).items():
        low, high = getattr(limits, name)
        accepted &= (values >= low) & (values <= high)
    return accepted


def distances(masks: NDArray[np.uint8], references: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute 1 - Dice of every mask and every reference, float32 [n, m]; 0 for two empty masks.

    Both are uint8 [n, rows, cols, 1], 0 or 1.
    """
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    distance = np.zeros((len(masks), len(references)), np.float32)
    for start in range(0, len(references), BLOCK):
        block = references[start : start + BLOCK].reshape(-1, flat.shape[1]).astype(np.float32)
        total = flat.sum(axis=1)[:, np.newaxis] + block.sum(axis=1)
        distance[:, start : start + BLOCK] = np.where(
            total > 0, 1 - 2 * (flat @ block.T) / np.maximum(total, 1), 0
        )
    return np.clip(distance, 0, 1)


def find_nearest(
    masks: NDArray[np.uint8], references: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Find the distance and the index of the reference most like each mask; see `distances`."""
    distance = distances(masks, references)
    return distance.min(axis=1), distance.argmin(axis=1)


def diversity(masks: NDArray[np.uint8]) -> float:
    """Compute the mean distance between two of the masks, in [0, 1]; 0 for a single mask."""
    if len(masks) < 2:
        return 0.0
    return float(distances(masks, masks)[np.triu_indices(len(masks), 1)].mean())


def write(model: MaskGAN, folder: Path, limits: Plausibility) -> dict[str, Any]:
    """Write the SavedModels, see `tracking.export`; G's part of the card has the limits, too."""
    functions = write_saved_models(model, folder)
    functions["generator"][LIMITS] = limits.model_dump(mode="json")
    return functions
