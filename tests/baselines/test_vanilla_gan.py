"""The vanilla GAN: patches from noise, and where their lesions should be; its losses by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tests.two_cpus import run_on_two_cpus
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig

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


def test_each_network_descends_its_own_loss():
    gan, reference = small(), small()
    data = batch()
    z = reference._draw(4)

    def probability(image):
        return respond(reference.discriminator(image, training=True))

    def real():
        return probability(data["image"] * 2 - 1)

    def fake():
        return probability(reference.generator(z, training=True)[..., :1])

    assert_descends(
        gan,
        reference,
        data,
        {"p_real": lambda: tf.reduce_mean(real()), "p_fake": lambda: tf.reduce_mean(fake())},
        generator=lambda: deceive(fake()),
        discriminator=lambda: tell_apart(real(), fake()),
    )


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
