"""Every model and baseline, in a tiny size, and a batch for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.baselines.residual_unet import ResidualUNet, ResidualUNetConfig
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.models.can import CAN, CANConfig
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.classifier import Classifier, ClassifierConfig
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.models.flow import Flow, FlowConfig
from tfmammo.models.infilling import Infilling, InfillingConfig
from tfmammo.models.mask_gan import MaskGAN, MaskGANConfig
from tfmammo.models.shape import ShapeCNN, ShapeConfig

UNET = {
    "filters": (4, 8, 8),
    "discriminator_filters": 4,
    "discriminator_strided": 1,
    "dropout": 0.0,
}
DCGAN = {"filters": (8, 4), "discriminator_filters": (4, 8), "z": 5}
INFILLING = {**UNET, "weights": "none", "feature_layers": "first"}
RESNET = {"filters": 2, "blocks": (1, 1, 1, 1)}
CONTEXTUAL = {"filters": (4, 8), "discriminator_factor": 1, "attention": 4, "border": 1}
VGG_WIDTHS = {"widths": (4, 4, 4, 4, 4)}
# class, config, the config's values, size in px
TINY: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
    "can": (CAN, CANConfig, UNET, 32),
    "cgan": (CGAN, CGANConfig, UNET, 32),
    "cgan, three draws": (CGAN, CGANConfig, UNET | {"samples": 3, "dropout": 0.5}, 32),
    "cgan, resnet": (CGAN, CGANConfig, UNET | {"filters": (4, 4, 8, 8), "encoder": RESNET}, 32),
    "shape": (ShapeCNN, ShapeConfig, {"filters": (4, 4, 4), "units": 4, "dropout": 0}, 64),
    "mask_gan": (MaskGAN, MaskGANConfig, DCGAN, 32),
    "infilling": (Infilling, InfillingConfig, INFILLING, 32),
    "infilling, crn": (
        Infilling,
        InfillingConfig,
        INFILLING | {"generator": "crn", "widths": (4, 4)},
        32,
    ),
    "flow": (
        Flow,
        FlowConfig,
        {"widths": (4, 8), "groups": 2, "attention_levels": 1, "sampling_steps": 2},
        32,
    ),
    "blending": (Blending, BlendingConfig, {"widths": (4, 8), "discriminator_filters": 4}, 32),
    "contextual": (Contextual, ContextualConfig, CONTEXTUAL | {"start": 8}, 16),
    "classifier, two pools": (
        Classifier,
        ClassifierConfig,
        RESNET | {"weights": "none", "share": 0.5, "samples": 1000},
        32,
    ),
    "classifier": (Classifier, ClassifierConfig, RESNET | {"weights": "none"}, 32),
    "pix2pix": (Pix2Pix, Pix2PixConfig, UNET, 32),
    "vanilla_gan": (VanillaGAN, VanillaGANConfig, DCGAN, 32),
    "unet": (UNet, UNetConfig, {"widths": (4, 8), "dropout": 0}, 32),
    "fcn8s": (FCN8s, FCN8sConfig, VGG_WIDTHS | {"fc_width": 8, "dropout": 0}, 32),
    "segnet": (SegNet, SegNetConfig, VGG_WIDTHS, 32),
    "residual_unet": (ResidualUNet, ResidualUNetConfig, {"widths": (4, 4), "blocks": (1, 1)}, 32),
}
# labels of a batch's patches, in turn
LABELS = {
    "contextual": (0, 1, 2),
    "blending": (0, 1),
    "classifier": (0, 1),
    "classifier, two pools": (0, 1, 2, 3),
    "shape": (0, 1, 2, 3),
}


def make_model(name: str, size: int | None = None, kind: Any = None, **more: Any) -> Any:
    """Build a tiny model; its size, its class and the values of its config can be changed."""
    usual, config, values, usual_size = TINY[name]
    return (kind or usual)(config(**{**values, **more}), size or usual_size)


def make_random(
    name: str, size: int | None = 16, deviation: float = 0.3, seed: int = 0, **more: Any
) -> Any:
    """Build a tiny model with weights of NumPy's, large enough for each of them to matter."""
    model = make_model(name, size, **more)
    random = np.random.default_rng(seed)
    for network in model.networks.values():
        for weight in network.trainable_variables:
            is_gain = weight.name == "gamma" and weight.shape != ()
            weight.assign(random.normal(0, deviation, weight.shape) + is_gain)
    return model


def draw_mask(*rows: str) -> NDArray[np.float32]:
    """Make a mask, [rows, cols, 1], of lines of text: 1 where they have a "#"."""
    drawn = [[character == "#" for character in row] for row in rows]
    return np.array(drawn, np.float32)[..., np.newaxis]


def make_batch(
    name: str, count: int | None = None, seed: int = 0, size: int | None = None
) -> dict[str, tf.Tensor]:
    """Make a batch of bright discs, labelled where the model needs it."""
    count = count or 2 * len(LABELS.get(name, (0, 1, 2)))
    size = size or TINY[name][3]
    random = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size] - size / 2
    radii = random.uniform(size / 8, size / 4, (count, 1, 1))
    mask = (np.hypot(rows, cols) < radii)[..., np.newaxis]
    image = np.clip(0.3 + 0.3 * mask + random.normal(0, 0.1, mask.shape), 0, 1)
    batch = {"image": tf.constant(image, tf.float32), "mask": tf.constant(mask, tf.float32)}
    if name in LABELS:
        batch["label"] = tf.constant(np.resize(LABELS[name], count), tf.int32)
    return batch
