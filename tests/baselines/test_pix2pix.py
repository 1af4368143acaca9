"""Pix2Pix's losses, gradients and exported functions in both directions."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.config import load
from tfmammo.models.can import CANConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

SIZE = 16
DIRECTIONS = ("mask_to_image", "image_to_mask")


def small(direction="mask_to_image", **config):
    """Build a Pix2Pix of a few hundred weights, drawn by NumPy, by default without dropout."""
    defaults = {
        "filters": (4, 8, 8),
        "discriminator_filters": 4,
        "discriminator_strided": 1,
        "dropout": 0.0,
    }
    model = Pix2Pix(Pix2PixConfig(direction=direction, **{**defaults, **config}), SIZE)
    rng = np.random.default_rng(0)
    for network in model.networks.values():
        for weight in network.trainable_variables:
            weight.assign(rng.normal(0, 0.3, weight.shape) + (weight.name == "gamma"))
    return model


def batch(count=2):
    rng = np.random.default_rng(1)
    masks = np.zeros((count, SIZE, SIZE, 1), np.float32)
    masks[:, 4:11, 5:13] = 1
    images = np.clip(masks * 0.5 + 0.2 + 0.1 * rng.normal(size=masks.shape), 0, 1)
    return {"mask": tf.constant(masks), "image": tf.constant(images, tf.float32)}


def pair(direction, data):
    """(source, target) in [-1, 1]."""
    mask = data["mask"] * 2 - 1
    image = data["image"] * 2 - 1
    return (mask, image) if direction == "mask_to_image" else (image, mask)


def test_cans_comparison_has_the_same_experimental_settings_key_for_key():
    can = load(CONFIGS / "can.yaml", model=CANConfig)
    compared = load(CONFIGS / "pix2pix_can.yaml", model=Pix2PixConfig)
    assert compared.model_dump(exclude={"name", "model"}) == can.model_dump(
        exclude={"name", "model"}
    )
    settings = compared.model.model_dump()
    cans = can.model.model_dump()
    assert settings.pop("direction") == "mask_to_image"
    assert settings.pop("lambda_l1") == cans.pop("lambda_1") == 10
    # Those of the inverter, which Pix2Pix has not, and -log P, which is all that Pix2Pix minimises.
    assert (cans.pop("lambda_2"), cans.pop("l2"), cans.pop("adversarial")) == (
        100,
        "mean_square",
        "non_saturating",
    )
    assert cans.pop("upsampling") == "transposed"  # which Pix2Pix's networks have without a choice
    assert cans.pop("discriminator_rate") is None  # one rate of all networks, as of Pix2Pix
    assert cans.pop("dropout_at_inference") is False
    assert cans.pop("noise") is False
    assert cans.pop("l1_window") == 1
    assert settings == cans
    assert settings["discriminator_strided"] == 1  # 16 x 16 px


@pytest.mark.parametrize("average", ["responses", "losses"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_both_networks_descend_their_loss_from_the_weights_before_the_round(direction, average):
    model, reference = (small(direction, lambda_l1=0.5, average=average) for _ in range(2))
    data = batch()
    source, target = pair(direction, data)

    def probability(y):
        return respond(reference.discriminator(tf.concat([source, y], -1)), average)

    def real():
        return probability(target)

    def fake():
        return probability(reference.generator(source))

    def distance():
        return tf.reduce_mean(tf.abs(target - reference.generator(source)))

    assert_descends(
        model,
        reference,
        data,
        {
            "l1": distance,
            "p_real": lambda: tf.reduce_mean(real()),
            "p_fake": lambda: tf.reduce_mean(fake()),
        },
        generator=lambda: deceive(fake()) + 0.5 * distance(),
        discriminator=lambda: tell_apart(real(), fake()) / 2,
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_shown_and_exported(direction):
    takes, _, gives = direction.partition("_to_")
    model = small(direction)
    data = batch(3)
    source, _ = pair(direction, data)
    expected = model.generator(source) / 2 + 0.5
    panels = model.sample(data)
    np.testing.assert_array_equal(panels["input"], data[takes])
    np.testing.assert_array_equal(panels["truth"], data[gives])
    answer = model.functions()["generator"](**{takes: data[takes]})
    assert list(answer) == [gives]
    for found in (panels["output"], answer[gives]):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    logits = model.functions()["discriminator"](mask=data["mask"], image=data["image"])
    np.testing.assert_allclose(
        logits["logits"], model.discriminate(*pair(direction, data)), rtol=1e-4, atol=1e-5
    )
