"""CAN's Algorithm 1: values, gradients, order of updates, replicas, exports, golden numbers."""

import json
import runpy

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.updates import assert_descends, deceive, read_weights, respond, tell_apart
from tfmammo.errors import ConfigError
from tfmammo.models.can import CAN, CANConfig
from tfmammo.nn import optimization
from tfmammo.nn.networks import PatchDiscriminator

SIZE = 16
NETWORKS = ("generator", "inverter", "discriminator")


def small(seed=0, kind=None, **config):
    """Build a CAN of a few hundred weights, drawn by NumPy, by default without dropout.

    Args:
        kind: Class of the model.
    """
    can = (kind or CAN)(
        CANConfig(**{"filters": (4, 8), "discriminator_filters": 4, "dropout": 0.0, **config}), SIZE
    )
    rng = np.random.default_rng(seed)
    for network in can.networks.values():
        for weight in network.trainable_variables:
            weight.assign(rng.normal(0, 0.1, weight.shape) + (weight.name == "gamma"))
    return can


def batch(count=2, seed=1):
    """Discs and images that show them, in noise."""
    rng = np.random.default_rng(seed)
    distance = np.hypot(*(np.indices((SIZE, SIZE)) - SIZE / 2))[np.newaxis] / rng.uniform(
        3, 7, (count, 1, 1)
    )
    masks = (distance < 1).astype(np.float32)[..., np.newaxis]
    images = np.clip(0.3 + 0.4 * masks + 0.1 * rng.normal(size=masks.shape), 0, 1).astype(
        np.float32
    )
    return {"mask": tf.constant(masks), "image": tf.constant(images)}


def test_d_alone_takes_a_rate_of_its_own():
    rates = {name: float(each.learning_rate) for name, each in small().optimizers.items()}
    assert rates == pytest.approx(dict.fromkeys(("generator", "inverter", "discriminator"), 2e-4))
    slow = small(discriminator_rate=5e-5).optimizers
    assert float(slow["discriminator"].learning_rate) == pytest.approx(5e-5)
    assert float(slow["generator"].learning_rate) == pytest.approx(2e-4)


def test_discriminators_of_several_scales_judge_alike():
    can = small(discriminator_strided=(1, 2))
    mask, image = (value * 2 - 1 for value in batch().values())
    logits = can.discriminate(mask, image)
    pair = tf.concat([mask, image], axis=-1)
    alone = [scale(pair).numpy().reshape(2, -1) for scale in can.discriminator.scales]
    assert [each.shape[1] for each in alone] == [6 * 6, 2 * 2]
    np.testing.assert_array_equal(logits.numpy().reshape(2, -1), np.concatenate(alone, axis=1))
    assert can.discriminator.receptive_field == 34
    before = read_weights(can)
    can.train_step(batch())
    after = read_weights(can)
    for scale in can.discriminator.scales:
        assert scale.trainable_variables
    assert all(
        np.any(old != new)
        for old, new in zip(before["discriminator"], after["discriminator"], strict=True)
    )


def test_dropout_at_inference_draws_by_the_mask_alone():
    masks = batch()["mask"]
    usual = small(dropout=0.5).synthesize(masks).numpy()
    noisy = small(dropout=0.5, dropout_at_inference=True)
    images = noisy.synthesize(masks).numpy()
    assert np.abs(images - usual).max() > 0.01
    np.testing.assert_allclose(noisy.synthesize(masks[1:]), images[1:], atol=1e-6)
    image = batch()["image"]
    np.testing.assert_array_equal(noisy.segment(image), small(dropout=0.5).segment(image))


def test_noise_is_drawn_by_the_mask_alone_and_anew_in_training():
    masks = batch()["mask"]
    can = small(noise=True, upsampling="resize")
    images = can.synthesize(masks).numpy()
    np.testing.assert_array_equal(can.synthesize(masks), images)
    np.testing.assert_allclose(can.synthesize(masks[1:]), images[1:], atol=1e-6)
    other = tf.tensor_scatter_nd_update(masks[:1], [[0, 0, 0, 0]], [1 - masks[0, 0, 0, 0]])
    far = np.abs(can.synthesize(other)[0, 8:, 8:] - images[0, 8:, 8:])
    assert far.min() < far.max() and np.median(far) > 1e-3, "another mask draws other noise"
    drawn = [can.generator(masks * 2 - 1, training=True).numpy() for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


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
    can = CAN(CANConfig(filters=(4, 8), discriminator_filters=4, noise=True), 128)
    for window in (1, 2, 4, 8):
        noise = can.generator._draw(1, window, tf.zeros((1, 2), tf.int64)).numpy()
        assert noise.shape == (1, 128, 128, 2)
        assert np.std(noise) == pytest.approx(1, abs=0.1)
        # neighbours share a part of the values that they sum over
        alike = np.mean(noise[:, 1:] * noise[:, :-1])
        assert alike == pytest.approx(1 - 1 / window, abs=0.1)


def test_the_l1_term_of_means_by_hand():
    with pytest.raises(ConfigError, match="model.l1_window: 64 px are more than a patch has, 32"):
        CAN(CANConfig(l1_window=64), 32)
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


def test_exported_functions():
    can = small()
    data = batch()
    mask, image = (data[name] * 2 - 1 for name in ("mask", "image"))
    expected = {
        ("generator", "image"): can.generator(mask) / 2 + 0.5,
        ("inverter", "mask"): can.inverter(image) / 2 + 0.5,
        ("discriminator", "logits"): can.discriminator(tf.concat([mask, image], -1)),
    }
    functions = can.functions()
    assert list(functions) == list(NETWORKS)
    for (name, output), value in expected.items():
        inputs = [spec.name for spec in functions[name].input_signature]
        answer = functions[name](**{key: data[key] for key in inputs})
        assert list(answer) == [output]
        np.testing.assert_allclose(answer[output], value, rtol=1e-4, atol=1e-5)


class Halved(CAN):
    """Half of the adversarial term."""

    def adversarial(self, fake):
        return super().adversarial(fake) / 2


class LeastSquares(CAN):
    """The adversarial term of LSGAN, whose gradient is no multiple of that of D's loss."""

    def adversarial(self, fake):
        return tf.reduce_mean((fake - 1) ** 2)


class Coupled(CAN):
    """D's batch normalisation, in which samples share their statistics."""

    def __init__(self, config, size):
        super().__init__(config, size)
        self.discriminator = PatchDiscriminator(
            2, 1, 4, size, "discriminator", norm=keras.layers.BatchNormalization
        )
        self.networks["discriminator"] = self.discriminator


def updates(kind, count, shares, **config):
    """Compute by how much one round of plain gradient descent moves every weight.

    A round that shares a pass back runs in a graph, as in training.
    """
    can = small(kind=kind, adversarial="non_saturating", **config)
    can.shares_gradients = shares
    can.optimizers = {name: keras.optimizers.SGD(1.0) for name in NETWORKS}
    before = read_weights(can)
    step = tf.function(can.train_step) if shares and count == 1 else can.train_step
    step(batch(count))
    return {
        name: [new - old for old, new in zip(before[name], now, strict=True)]
        for name, now in read_weights(can).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "average"),
    [
        *((kind, 1, "responses") for kind in (CAN, Halved, LeastSquares, Coupled)),
        *((kind, 3, "responses") for kind in (CAN, Halved, Coupled)),
        (CAN, 1, "losses"),
    ],
)
def test_sharing_a_pass_back_changes_no_update_whatever_is_overridden(kind, count, average):
    shared, plain = (updates(kind, count, shares, average=average) for shares in (True, False))
    for name in NETWORKS:
        largest = max(np.abs(update).max() for update in plain[name])
        for a, b in zip(shared[name], plain[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest, err_msg=name)


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


@pytest.mark.parametrize("case", ["default", "as_printed"])
def test_golden_numbers(repository, case):
    recipe = runpy.run_path(str(repository / "tests" / "golden" / "make_can_golden.py"))
    golden = json.loads(recipe["GOLDEN"].read_text(encoding="utf-8"))
    assert set(golden) == set(recipe["CASES"])
    found = recipe["losses"](case)
    assert len(found) == len(golden[case]) == 3
    for step, (now, before) in enumerate(zip(found, golden[case], strict=True)):
        assert set(now) == set(before)
        for name, value in before.items():
            np.testing.assert_allclose(
                now[name], value, rtol=1e-4, err_msg=f"{name} at step {step}"
            )
