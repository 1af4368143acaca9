"""The vanilla GAN: patches from noise, and where their lesions should be; its losses by hand."""

import numpy as np
import tensorflow as tf

from tests.models.every import make_batch, make_random
from tests.updates import assert_descends, deceive, respond, tell_apart

SIZE = 16


def small():
    return make_random("vanilla_gan", SIZE, 0.2)


def batch():
    return make_batch("vanilla_gan", 4, 1, SIZE)


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

    def real():
        return respond(reference.discriminator(data["image"] * 2 - 1, training=True))

    def fake():
        image = reference.generator(z, training=True)[..., :1]
        return respond(reference.discriminator(image, training=True))

    assert_descends(
        gan,
        reference,
        data,
        {"p_real": lambda: tf.reduce_mean(real()), "p_fake": lambda: tf.reduce_mean(fake())},
        generator=lambda: deceive(fake()),
        discriminator=lambda: tell_apart(real(), fake()),
    )
