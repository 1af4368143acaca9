"""The vanilla GAN: patches from noise, and where their lesions should be; its losses by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tests.full_size import build_without_memory, count_each
from tests.two_cpus import run_on_two_cpus
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.errors import ConfigError

SIZE = 16


def small(**config):
    gan = VanillaGAN(
        VanillaGANConfig(**{"z": 5, "filters": (8, 4), "discriminator_filters": (4, 8), **config}),
        SIZE,
    )
    rng = np.random.default_rng(0)
    for network in gan.networks.values():
        for weight in network.trainable_variables:
            weight.assign(rng.normal(0, 0.2, weight.shape) + (weight.name == "gamma"))
    return gan


def batch(count=4):
    rng = np.random.default_rng(1)
    masks = np.zeros((count, SIZE, SIZE, 1), np.float32)
    masks[:, 4:12, 5:11] = 1
    images = np.clip(0.3 + 0.4 * masks + 0.05 * rng.normal(size=masks.shape), 0, 1).astype(
        np.float32
    )
    return {"image": tf.constant(images), "mask": tf.constant(masks)}


def test_an_image_from_noise_at_256_px(monkeypatch):
    gan = build_without_memory(VanillaGAN, monkeypatch)
    assert gan.generator.output_shape == (None, 256, 256, 2)
    assert gan.discriminator.input_shape == (None, 256, 256, 1)
    counts = {"generator": 19_102_433, "discriminator": 17_480_385}
    assert count_each(gan) == counts, "the mask GAN's"


def test_no_loss_depends_on_masks():
    """With any other mask every number and every gradient's effect is the same."""
    data = batch()
    found = []
    for masks in (data["mask"], 1 - data["mask"], tf.zeros_like(data["mask"])):
        gan = small()
        numbers = gan.train_step(data | {"mask": masks})
        found.append(
            [float(value) for value in numbers.values()]
            + [w.numpy().sum() for w in gan.generator.trainable_variables]
        )
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_mask_is_the_mean_of_all_masks_seen():
    gan = small()
    data = batch()
    masks = np.random.default_rng(3).integers(0, 2, (3, *data["mask"].shape)).astype(np.float32)
    for some in masks:
        gan.train_step(data | {"mask": tf.constant(some)})
    noise = tf.constant(np.random.default_rng(2).uniform(-1, 1, (2, 5)), tf.float32)
    made = gan.generate(noise)
    for mask in made["mask"]:
        np.testing.assert_allclose(mask, masks.mean(axis=(0, 1)), atol=1e-6)
    assert np.abs(made["image"][0] - made["image"][1]).max() > 1e-3


def test_every_returned_number_by_hand():
    gan = small()
    data = batch()
    fake = gan.generator(gan._draw(4), training=True)[..., :1]
    real = data["image"] * 2 - 1
    logits = [
        np.asarray(gan.discriminator(x, training=True), np.float64).ravel() for x in (real, fake)
    ]
    p_real, p_fake = (1 / (1 + np.exp(-x)) for x in logits)
    expected = {
        "generator_loss": -np.log(p_fake).mean(),
        "discriminator_loss": -np.log(p_real).mean() - np.log(1 - p_fake).mean(),
        "p_real": p_real.mean(),
        "p_fake": p_fake.mean(),
    }
    losses = gan.train_step(data)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)


def test_each_network_descends_its_own_loss():
    gan, reference = small(), small()
    data = batch()
    z = reference._draw(4)

    def probability(image):
        return respond(reference.discriminator(image, training=True))

    def generate():
        return reference.generator(z, training=True)[..., :1]

    def generator_loss():
        return deceive(probability(generate()))

    def discriminator_loss():
        return tell_apart(probability(data["image"] * 2 - 1), probability(generate()))

    assert_descends(
        gan, reference, data, generator=generator_loss, discriminator=discriminator_loss
    )


def test_what_is_exported_and_shown():
    gan = small()
    data = batch()
    functions = gan.functions()
    noise = tf.constant(np.random.default_rng(2).uniform(-1, 1, (3, 5)), tf.float32)
    made = functions["generator"](noise=noise)
    assert set(made) == {"image", "mask"}
    for values in made.values():
        assert (
            values.shape == (3, SIZE, SIZE, 1)
            and values.dtype == tf.float32
            and np.min(values) >= 0
            and np.max(values) <= 1
        )
    assert np.abs(made["image"] - made["mask"]).max() > 1e-3
    assert functions["discriminator"](image=data["image"])["logits"].shape[0] == 4
    assert list(gan.sample(data)) == ["synthetic", "mean mask", "real"]


def test_a_size_that_does_not_fit():
    with pytest.raises(ConfigError, match="patches of 18 px can't be halved 2 times"):
        VanillaGAN(VanillaGANConfig(filters=(8, 4), discriminator_filters=(4, 8)), 18)


TWO_REPLICAS = """
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig

masks = np.random.default_rng(0).integers(0, 2, (3, 4, 16, 16, 1)).astype(np.float32)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    gan = VanillaGAN(VanillaGANConfig(z=5, filters=(8, 4), discriminator_filters=(4, 8)), 16)
data = tf.data.Dataset.from_tensor_slices({"image": masks.reshape(12, 16, 16, 1), "mask": masks.reshape(12, 16, 16, 1)}).batch(4)
step = tf.function(lambda batch: strategy.run(gan.train_step, args=(batch,)))
for batch in strategy.experimental_distribute_dataset(data):
    step(batch)
print(json.dumps([gan.mean_mask.mean.numpy().tolist(), masks.mean(axis=(0, 1)).tolist()]))
"""  # noqa: E501


@pytest.mark.long
def test_two_replicas_have_one_mean_mask(tmp_path):
    np.testing.assert_allclose(*run_on_two_cpus(TWO_REPLICAS, tmp_path), atol=1e-6)
