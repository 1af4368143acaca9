"""CAN's Algorithm 1: values, gradients, order of updates, noise."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models.every import make_batch, make_random
from tests.updates import assert_descends, deceive, read_weights, respond, tell_apart
from tfmammo.nn import optimization

SIZE = 16


def small(**config):
    return make_random("can", SIZE, 0.1, filters=(4, 8), **config)


def batch(count=2):
    return make_batch("can", count, 1, SIZE)


def test_d_alone_takes_a_rate_of_its_own():
    for given, expected in ((None, 2e-4), (5e-5, 5e-5)):
        optimizers = small(discriminator_rate=given).optimizers
        rates = {name: float(each.learning_rate) for name, each in optimizers.items()}
        of_players = dict.fromkeys(("generator", "inverter"), 2e-4)
        assert rates == pytest.approx({**of_players, "discriminator": expected})


def test_discriminators_of_several_scales_judge_alike():
    can = small(discriminator_strided=(1, 2))
    data = batch()
    pair = tf.concat([data["mask"], data["image"]], axis=-1) * 2 - 1
    logits = can.discriminator(pair).numpy().reshape(2, -1)
    alone = [scale(pair).numpy().reshape(2, -1) for scale in can.discriminator.scales]
    assert [each.shape[1] for each in alone] == [6 * 6, 2 * 2]
    np.testing.assert_array_equal(logits, np.concatenate(alone, axis=1))
    before = read_weights(can)["discriminator"]
    can.train_step(data)
    for old, new in zip(before, read_weights(can)["discriminator"], strict=True):
        assert np.any(old != new)


@pytest.mark.parametrize(
    "config",
    [{"noise": True, "upsampling": "resize"}, {"dropout": 0.5, "dropout_at_inference": True}],
)
def test_noise_is_drawn_by_the_mask_alone_and_anew_in_training(config):
    data = batch()
    masks = data["mask"]
    can = small(**config)
    images = can.synthesize(masks).numpy()
    np.testing.assert_array_equal(can.synthesize(masks), images)
    np.testing.assert_allclose(can.synthesize(masks[1:]), images[1:], atol=1e-6)
    other = tf.tensor_scatter_nd_update(masks[:1], [[0, 0, 0, 0]], [1 - masks[0, 0, 0, 0]])
    far = np.abs(can.synthesize(other)[0, 8:, 8:] - images[0, 8:, 8:])
    assert far.min() < far.max() and np.median(far) > 1e-3, "another mask draws other noise"
    drawn = [can.generator(masks * 2 - 1, training=True).numpy() for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    if "dropout" in config:
        masks = small(dropout=0.5).segment(data["image"])
        np.testing.assert_array_equal(can.segment(data["image"]), masks)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_lattices_of_the_maps_do_not_reach_a_textured_image(period):
    can = small(noise=True, upsampling="resize")
    network = can.generator
    mask = batch(1)["mask"] * 2 - 1
    image = network(mask).numpy()
    unet = network.unet
    cell = np.random.default_rng(0).normal(size=(period, period)).astype(np.float32)
    lattice = np.tile(cell - cell.mean(), (SIZE // period, SIZE // period))
    network.unet = lambda *args, **kwargs: unet(*args, **kwargs) + lattice[..., np.newaxis]
    whole = np.s_[:, 6 : SIZE - 7, 6 : SIZE - 7]  # means at the border are of fewer pixels
    np.testing.assert_allclose(network(mask).numpy()[whole], image[whole], atol=1e-5)


def test_the_noise_of_each_window_has_a_deviation_of_one():
    can = make_random("can", 128, noise=True)
    for window in (1, 2, 4, 8):
        noise = can.generator._draw(1, window, tf.zeros((1, 2), tf.int64)).numpy()
        assert noise.shape == (1, 128, 128, 2)
        assert np.std(noise) == pytest.approx(1, abs=0.1)
        # neighbours share a part of the values that they sum over
        alike = np.mean(noise[:, 1:] * noise[:, :-1])
        assert alike == pytest.approx(1 - 1 / window, abs=0.1)


def test_the_l1_term_of_means_by_hand():
    can = small(l1_window=2)
    real = np.zeros((1, SIZE, SIZE, 1), np.float32)
    fake = real.copy()
    fake[0, 0, 0, 0] = 1  # in one square of 15 x 15
    fake[0, 8, 8, 0] = 1  # in four, and so is its neighbour; two hold both, whose mean is 0
    fake[0, 8, 9, 0] = -1
    squares = 1 / 4 + 4 * 1 / 4
    assert float(can.compare(real, fake)) == pytest.approx(squares / 15**2)
    assert float(small().compare(real, fake)) == pytest.approx(3 / SIZE**2)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("adversarial", "average", "l2"),
    [
        ("non_saturating", "responses", "mean_square"),
        ("non_saturating", "losses", "norm"),
        ("as_printed", "responses", "norm"),
        ("as_printed", "losses", "mean_square"),
    ],
)
def test_every_network_descends_its_own_loss_from_the_weights_before_the_round(
    adversarial, average, l2, count
):
    config = {"adversarial": adversarial, "average": average, "l2": l2}
    can, reference = (small(lambda_1=0.5, lambda_2=0.25, **config) for _ in range(2))
    data = batch(count)
    real_mask = data["mask"] * 2 - 1
    real_image = data["image"] * 2 - 1

    def probability(mask, image):
        return respond(reference.discriminator(tf.concat([mask, image], -1)), average)

    def real():
        return probability(real_mask, real_image)

    def fake_image():
        return probability(real_mask, reference.generator(real_mask))

    def fake_mask():
        return probability(reference.inverter(real_image), real_image)

    def image_l1():
        return tf.reduce_mean(tf.abs(real_image - reference.generator(real_mask)))

    def mask_l2():
        squares = (real_mask - reference.inverter(real_image)) ** 2
        norm = tf.reduce_mean(tf.sqrt(tf.reduce_sum(squares, axis=[1, 2, 3])))
        return norm if l2 == "norm" else tf.reduce_mean(squares)

    assert_descends(
        can,
        reference,
        data,
        {
            "image_l1": image_l1,
            "mask_l2": mask_l2,
            "p_real": lambda: tf.reduce_mean(real()),
            "p_fake_image": lambda: tf.reduce_mean(fake_image()),
            "p_fake_mask": lambda: tf.reduce_mean(fake_mask()),
        },
        generator=lambda: deceive(fake_image(), adversarial) + 0.5 * image_l1(),
        inverter=lambda: deceive(fake_mask(), adversarial) + 0.25 * mask_l2(),
        discriminator=lambda: tell_apart(real(), fake_image(), fake_mask()),
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("average", "passes"), [("responses", 3), ("losses", 0)])
def test_three_passes_back_through_the_discriminator_serve_five_losses(
    monkeypatch, average, passes, policy
):
    keras.config.set_dtype_policy(policy)
    can = small(average=average)
    met = []
    remember = optimization._remember
    monkeypatch.setattr(
        optimization,
        "_remember",
        lambda pass_back: remember(lambda y: met.append(y) or pass_back(y)),
    )
    can.train_step(batch(1))
    assert len(met) == passes, "one for each pair; none where no two losses can share one"
