"""Pix2Pix's losses, gradients and exported functions in both directions."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models.every import make_batch, make_random
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.baselines.pix2pix import Pix2PixConfig
from tfmammo.config import load
from tfmammo.models.can import CANConfig


def test_cans_comparison_has_the_same_experimental_settings_key_for_key(repository):
    can, compared = (
        load(repository / "configs" / f"{name}.yaml", model=kind).model_dump(exclude={"name"})
        for name, kind in (("can", CANConfig), ("pix2pix_can", Pix2PixConfig))
    )
    cans, settings = can.pop("model"), compared.pop("model")
    assert compared == can
    assert settings.pop("direction") == "mask_to_image"
    assert settings.pop("lambda_l1") == cans.pop("lambda_1") == 10
    assert settings["discriminator_strided"] == 1  # 16 x 16 px
    # Those of the inverter, which Pix2Pix has not; -log P, which is all that Pix2Pix minimises; and
    # what Pix2Pix's networks have without a choice.
    assert {key: cans.pop(key) for key in cans.keys() - settings.keys()} == {
        "lambda_2": 100,
        "l2": "mean_square",
        "adversarial": "non_saturating",
        "upsampling": "transposed",
        "discriminator_rate": None,
        "dropout_at_inference": False,
        "noise": False,
        "l1_window": 1,
    }
    assert settings == cans


@pytest.mark.parametrize("average", ["responses", "losses"])
@pytest.mark.parametrize("direction", ["mask_to_image", "image_to_mask"])
def test_both_networks_descend_their_loss_from_the_weights_before_the_round(direction, average):
    values = {"direction": direction, "lambda_l1": 0.5, "average": average}
    model, reference = (make_random("pix2pix", **values) for _ in range(2))
    data = make_batch("pix2pix", 2, size=16)
    source, target = (data[name] * 2 - 1 for name in direction.split("_to_"))
    panels = model.sample(data)
    for panel, name in zip(("input", "truth"), direction.split("_to_"), strict=True):
        np.testing.assert_array_equal(panels[panel], data[name])

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
