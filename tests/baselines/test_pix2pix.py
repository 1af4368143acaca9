"""Pix2Pix's losses, gradients and exported functions in both directions."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.full_size import build_without_memory, count_each, shape_answer
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


def test_the_papers_values_are_the_defaults():
    config = Pix2PixConfig()
    assert config.direction == "mask_to_image" and config.discriminator_strided == 3
    assert (config.lambda_l1, config.learning_rate, config.beta_1, config.dropout) == (
        100,
        2e-4,
        0.5,
        0.5,
    )
    assert config.filters == (64, 128, 256, 512, 512, 512, 512, 512)
    assert config.average == "losses"


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


def test_the_papers_networks(monkeypatch):
    model = build_without_memory(Pix2Pix, monkeypatch)
    assert count_each(model) == {"generator": 54_407_809, "discriminator": 2_764_609}
    assert model.discriminator.receptive_field == 70
    assert shape_answer(model.discriminator, 256, 256, 2) == (1, 30, 30, 1)
    assert list(model.optimizers) == list(model.networks)


@pytest.mark.parametrize("average", ["responses", "losses"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_returned_number_by_hand(direction, average):
    model = small(direction, lambda_l1=3, average=average)
    data = batch()
    source, target = pair(direction, data)
    output = model.generator(source)
    real, fake = (
        np.asarray(model.discriminator(tf.concat([source, y], -1)), np.float64)
        for y in (target, output)
    )
    p_real = 1 / (1 + np.exp(-real))
    p_fake = 1 / (1 + np.exp(-fake))
    difference = np.abs(np.asarray(target, np.float64) - output).mean()
    response = [p.mean(axis=(1, 2, 3)) if average == "responses" else p for p in (p_real, p_fake)]
    expected = {
        "generator_loss": -np.log(response[1]).mean() + 3 * difference,
        "discriminator_loss": -(np.log(response[0]).mean() + np.log(1 - response[1]).mean()) / 2,
        "l1": difference,
        "p_real": p_real.mean(),
        "p_fake": p_fake.mean(),
    }
    losses = model.train_step(data)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=2e-5, err_msg=name)
    assert abs(expected["p_real"] - expected["p_fake"]) > 1e-3


@pytest.mark.parametrize("average", ["responses", "losses"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_both_networks_descend_their_loss_from_the_weights_before_the_round(direction, average):
    model, reference = (small(direction, lambda_l1=0.5, average=average) for _ in range(2))
    data = batch()
    source, target = pair(direction, data)

    def probability(y):
        return respond(reference.discriminator(tf.concat([source, y], -1)), average)

    def generator_loss():
        output = reference.generator(source)
        distance = tf.reduce_mean(tf.abs(target - output))
        return deceive(probability(output)) + 0.5 * distance

    def discriminator_loss():
        fake = probability(reference.generator(source))
        return tell_apart(probability(target), fake) / 2

    assert_descends(
        model, reference, data, generator=generator_loss, discriminator=discriminator_loss
    )


def test_the_discriminator_learns_to_tell_pairs_apart():
    model = small()
    data = batch()
    model.optimizers["discriminator"].learning_rate = 1e-2
    model.optimizers["generator"].learning_rate = 0.0
    history = [
        {name: float(value) for name, value in model.train_step(data).items()} for _ in range(10)
    ]
    assert history[-1]["discriminator_loss"] < history[0]["discriminator_loss"] - 0.1
    assert history[-1]["p_real"] > history[-1]["p_fake"]


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_generator_learns(direction):
    model = small(direction, learning_rate=1e-2)
    data = batch()
    history = [
        {name: float(value) for name, value in model.train_step(data).items()} for _ in range(20)
    ]
    assert (
        history[-1]["l1"] < 0.7 * history[0]["l1"]
        and history[-1]["generator_loss"] < 0.7 * history[0]["generator_loss"]
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_panels_of_the_image_grid(direction):
    model = small(direction)
    data = batch(3)
    panels = model.sample(data)
    assert list(panels) == ["input", "output", "truth"]
    first, second = ("mask", "image") if direction == "mask_to_image" else ("image", "mask")
    np.testing.assert_array_equal(panels["input"], data[first])
    np.testing.assert_array_equal(panels["truth"], data[second])
    np.testing.assert_allclose(
        panels["output"], model.generator(data[first] * 2 - 1) / 2 + 0.5, rtol=1e-6
    )
    assert np.min(panels["output"]) >= 0 and np.max(panels["output"]) <= 1


@pytest.mark.parametrize(
    ("direction", "takes", "gives"),
    [("mask_to_image", "mask", "image"), ("image_to_mask", "image", "mask")],
)
def test_exported_functions(direction, takes, gives):
    model = small(direction)
    data = batch(3)
    functions = model.functions()
    assert list(functions) == ["generator", "discriminator"]
    assert [spec.name for spec in functions["generator"].input_signature] == [takes]
    assert [spec.name for spec in functions["discriminator"].input_signature] == ["mask", "image"]
    answer = functions["generator"](**{takes: data[takes]})
    assert list(answer) == [gives] and answer[gives].dtype == tf.float32
    np.testing.assert_allclose(answer[gives], model.translate(data[takes]), rtol=1e-4, atol=1e-5)
    assert np.min(answer[gives]) >= 0 and np.max(answer[gives]) <= 1
    logits = functions["discriminator"](mask=data["mask"], image=data["image"])
    np.testing.assert_allclose(
        logits["logits"], model.discriminate(*pair(direction, data)), rtol=1e-4, atol=1e-5
    )


def test_dropout_is_off_at_inference():
    model = small(dropout=0.5)
    data = batch()
    np.testing.assert_array_equal(model.translate(data["mask"]), model.translate(data["mask"]))
    for optimizer in model.optimizers.values():
        optimizer.learning_rate = 0.0
    assert abs(float(model.train_step(data)["l1"] - model.train_step(data)["l1"])) > 1e-6


def test_float16_trains_with_finite_values():
    keras.config.set_dtype_policy("mixed_float16")
    model = small()
    data = batch(1)
    assert all(
        isinstance(o, keras.optimizers.LossScaleOptimizer) and o.built
        for o in model.optimizers.values()
    )
    for _ in range(2):
        assert all(
            value.dtype == tf.float32 and np.isfinite(value)
            for value in model.train_step(data).values()
        )


def test_patches_that_can_not_be_halved_are_refused():
    with pytest.raises(ValueError, match="patches of 20 px can't be halved 3 times"):
        Pix2Pix(Pix2PixConfig(filters=(4, 8, 8)), size=20)


@pytest.mark.parametrize(
    "wrong",
    [
        {"direction": "both"},
        {"lambda_l1": -1},
        {"average": "both"},
        {"learning_rate": 0},
        {"dropout": 1},
        {"filters": [0]},
        {"filters": []},
        {"x": 1},
    ],
)
def test_configs_that_make_no_sense(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Pix2PixConfig(**wrong)
