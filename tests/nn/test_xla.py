"""Training steps under XLA: the same losses and weights, or a reason why XLA can't compile."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small_detectors import LIGHT_HEAD
from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.baselines.residual_unet import ResidualUNet, ResidualUNetConfig
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.config import TrainingConfig
from tfmammo.detection.light_head_rcnn import LightHeadRCNN, LightHeadRCNNConfig
from tfmammo.errors import ConfigError
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.models.can import CAN, CANConfig
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.classifier import Classifier, ClassifierConfig
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.models.flow import Flow, FlowConfig
from tfmammo.models.infilling import Infilling, InfillingConfig
from tfmammo.models.mask_gan import MaskGAN, MaskGANConfig
from tfmammo.models.shape import ShapeCNN, ShapeConfig
from tfmammo.nn.optimization import build
from tfmammo.training import loop
from tfmammo.training.contract import check_model

SIZE = 32
UNET = {"filters": (4, 8), "discriminator_filters": 4, "discriminator_strided": 1, "dropout": 0.0}
DCGAN = {"z": 5, "filters": (8, 4), "discriminator_filters": (4, 8)}
WIDTHS = (4, 4, 4, 4, 4)
MODELS = {
    "can": lambda: CAN(CANConfig(**UNET), SIZE),
    "pix2pix": lambda: Pix2Pix(Pix2PixConfig(**UNET), SIZE),
    "unet": lambda: UNet(UNetConfig(widths=(4, 4), dropout=0), SIZE),
    "fcn8s": lambda: FCN8s(FCN8sConfig(widths=WIDTHS, fc_width=8, dropout=0), SIZE),
    "residual_unet": lambda: ResidualUNet(ResidualUNetConfig(widths=(4, 4), blocks=(1, 1)), SIZE),
    "cgan": lambda: CGAN(CGANConfig(**UNET), SIZE),
    "shape": lambda: ShapeCNN(ShapeConfig(filters=(4, 4, 8), units=8, dropout=0), 64, (1.0,) * 4),
    "mask_gan": lambda: MaskGAN(MaskGANConfig(**DCGAN, kernel=3), SIZE),
    "infilling": lambda: Infilling(
        InfillingConfig(**UNET, widths=(4,) * 4, weights="none", feature_layers="first"), SIZE
    ),
    "flow": lambda: Flow(FlowConfig(widths=(4, 8), groups=2), SIZE),
    "vanilla_gan": lambda: VanillaGAN(VanillaGANConfig(**DCGAN), SIZE),
    "classifier": lambda: Classifier(
        ClassifierConfig(weights="none", filters=2, blocks=(1, 1, 1, 1)), SIZE
    ),
}
REFUSED = {
    "segnet": lambda: SegNet(SegNetConfig(widths=WIDTHS), SIZE),
    "blending": lambda: Blending(BlendingConfig(widths=(4, 8), discriminator_filters=4), SIZE),
    "contextual": lambda: Contextual(
        ContextualConfig(
            filters=(3, 4, 8), discriminator_factor=2, attention=8, border=2, start=32
        ),
        SIZE,
    ),
    "light_head_rcnn": lambda: LightHeadRCNN(
        LightHeadRCNNConfig(**{**LIGHT_HEAD, "anchor_scales": (1.0,)}), 64, 1
    ),
}


def batch(name):
    random = np.random.default_rng(0)
    size = 64 if name in ("shape", "light_head_rcnn") else SIZE
    rows, cols = np.mgrid[:size, :size]
    mask = np.repeat(
        (np.hypot(rows - size / 2, cols - size / 2) < size / 4)[None, ..., None], 6, axis=0
    )
    image = np.clip(0.3 + 0.3 * mask + random.normal(0, 0.1, mask.shape), 0, 1)
    found = {"image": image, "mask": mask}
    found = {key: tf.constant(value, tf.float32) for key, value in found.items()}
    if name in ("shape", "contextual", "classifier"):
        found["label"] = tf.constant([0, 1, 2] * 2)
    if name == "blending":
        found["label"] = tf.constant([0, 1] * 3)
    if name == "light_head_rcnn":
        return {
            "image": found["image"],
            "boxes": tf.constant([[[0.2, 0.2, 0.7, 0.7]]] * 6),
            "classes": tf.zeros([6, 1], tf.int32),
        }
    return found


def waves(shape, seed, minval=0.0, maxval=1.0, dtype=tf.float32, alg=None):
    """In place of random numbers: from the same seed XLA draws others than TensorFlow."""
    places = tf.cast(tf.range(tf.reduce_prod(shape)), tf.float32)
    return tf.cast(
        tf.reshape(minval + (maxval - minval) * (0.5 + 0.49 * tf.sin(places * 1.7)), shape), dtype
    )


def step(make, name, jit_compile, adam=False):
    """Compute one step's losses and weights, by SGD.

    Adam's first step has the same size however small a gradient is.
    """
    keras.utils.set_random_seed(3)
    model = make()
    if not adam:
        networks = {key: model.networks[key] for key in model.optimizers}
        model.optimizers = {
            key: build(keras.optimizers.SGD(0.1), network) for key, network in networks.items()
        }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.random, "stateless_uniform", waves)
        losses = tf.function(model.train_step, jit_compile=jit_compile)(batch(name))
    return losses, [
        weight.numpy()
        for network in model.networks.values()
        for weight in network.trainable_variables
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "adam"),
    [
        *(
            pytest.param(name, False, marks=pytest.mark.nightly)
            for name in MODELS
            if name != "cgan"
        ),
        ("can", True),
        ("cgan", False),
    ],
)
def test_a_compiled_step_is_the_same_step(name, adam):
    (losses, weights), (compiled, compiled_weights) = (
        step(MODELS[name], name, jit_compile, adam) for jit_compile in (False, True)
    )
    for key, value in losses.items():
        np.testing.assert_allclose(compiled[key], value, rtol=1e-3, atol=1e-5, err_msg=key)
    if not adam:
        for ours, theirs in zip(weights, compiled_weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_can_not_be_compiled(name):
    with pytest.raises((tf.errors.OpError, ValueError)):
        step(REFUSED[name], name, jit_compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_training_that_wants_it_is_told_why_not(name):
    with pytest.raises(
        ConfigError, match=f"training.jit_compile: {name} can't be compiled by XLA, because its? "
    ):
        check_model(REFUSED[name](), {}, TrainingConfig(jit_compile=True))


@pytest.mark.long
def test_a_training_compiles_its_step(tiny_can, random_patches, tmp_path):
    class Uncompilable(CAN):
        def train_step(self, batch):
            pooled, _ = tf.nn.max_pool_with_argmax(batch["image"], 2, 2, "SAME")
            return super().train_step(batch) | {"pooled": tf.reduce_mean(pooled)}

    experiment = tiny_can(steps=1)
    compiled = experiment.model_copy(
        update={"training": experiment.training.model_copy(update={"jit_compile": True})}
    )
    fit = lambda chosen, model, name: loop.Training(  # noqa: E731
        lambda: model(chosen.model, chosen.data.size),
        chosen,
        random_patches(4),
        random_patches(2),
        tmp_path / name,
        lambda *_: {"dice": 0.0},
        monitor="dice",
    ).fit()
    fit(experiment, Uncompilable, "plain")
    with pytest.raises(tf.errors.InvalidArgumentError, match="MaxPoolWithArgmax"):
        fit(compiled, Uncompilable, "compiled")
    fit(compiled, CAN, "another")
