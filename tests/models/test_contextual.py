"""The contextual GAN's equations, its growth, and what it refuses."""

import contextlib
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models.every import make_batch
from tests.updates import assert_follows
from tfmammo.errors import ConfigError
from tfmammo.models import contextual
from tfmammo.models.contextual import (
    DISCRIMINATOR_NOISE,
    GENERATOR_NOISE,
    PENALTY_ALPHA,
    PENALTY_DIRECTION,
    Contextual,
    ContextualConfig,
    Discriminator,
    Generator,
    build_networks,
)
from tfmammo.nn.growth import copy_weights
from tfmammo.nn.layers import find_normalized, sample_latent_noise
from tfmammo.nn.optimization import Accumulator

SIZE = 32
TINY = {
    "filters": (3, 4, 8),
    "discriminator_factor": 2,
    "attention": 8,
    "border": 2,
    "start": 16,
    "fade_steps": 4,
}


def config(**values):
    return ContextualConfig(**{**TINY, **values})


def randomise(networks, seed=0):
    """Give networks weights large enough to tell answers apart, attention's gain and biases too."""
    rng = np.random.default_rng(seed)
    for network in networks.values():
        for weight in network.trainable_variables:
            weight.assign(rng.normal(0, 0.4, weight.shape))
    return networks


def make_model(**values):
    model = Contextual(config(**values), 16)
    randomise(model.networks)
    copy_weights(model.generator, model.average)
    return model


def make_discriminator(size=SIZE, **values):
    return Discriminator(config(**values), size)


def batch(seed=1):
    """The classes in turn, as balanced batches hold them, told apart by their brightness."""
    data = make_batch("contextual", 6, seed, 16)
    brightness = 0.3 * tf.cast(data["label"], tf.float32)[:, None, None, None]
    return data | {"image": tf.minimum(data["image"] / 3 + brightness, 1)}


def patches(size, count=2, seed=2):
    return tf.constant(
        np.random.default_rng(seed).uniform(-1, 1, (count, size, size, 1)), tf.float32
    )


def noise(network, count=2, seed=3):
    return tf.constant(sample_latent_noise(count, network.blocks, seed))


@pytest.mark.parametrize("values", [{}, {"attention_in_decoder": True}])
def test_both_normalises_every_kernel_of_the_generator_and_the_default_none(values):
    generator = Generator(config(spectral="both", **values), SIZE)
    kernels = [weight for weight in generator.weights if weight.name == "kernel"]
    normalized = find_normalized(generator.named_layers().values())
    assert sorted(map(id, kernels)) == sorted(id(layer.layer.kernel) for layer in normalized)
    default = Generator(config(**values), SIZE)
    assert not find_normalized(default.named_layers().values())
    assert [w.shape for w in default.trainable_weights] == [
        w.shape for w in generator.trainable_weights
    ]


@pytest.mark.parametrize("size", [16, 32])
def test_the_lesion_has_a_border_of_exact_zeros_and_lies_between_minus_1_and_1(size):
    generator = randomise({"g": Generator(config(), size)})["g"]
    generator.to_lesion.bias.assign([5.0])  # beyond what is allowed
    generator.steps.assign(2)
    lesion = generator(patches(size), noise(generator)).numpy()
    assert lesion.shape == (2, size, size, 1) and lesion.dtype == np.float32
    inside = lesion[:, 2:-2, 2:-2]
    assert (np.abs(lesion).sum() == np.abs(inside).sum()) and np.abs(lesion).max() <= 1
    assert (inside[:, [0, -1]] != 0).all() and (inside[:, :, [0, -1]] != 0).all()


def test_every_block_sees_its_own_random_number():
    generator = randomise({"g": Generator(config(attention_in_decoder=True), SIZE)})["g"]
    generator.steps.assign(2)
    assert generator.blocks == 6 and generator.decoder_attention is not None
    image = patches(SIZE, 1)
    first = noise(generator, 1).numpy()
    lesion = generator(image, first)
    for block in range(generator.blocks):
        other = first.copy()
        other[:, block] *= -1
        assert np.abs(generator(image, other) - lesion).max() > 1e-6, f"block {block}"


def test_the_discriminator_is_the_encoder_by_hand():
    d = randomise({"d": Discriminator(config(start=32), SIZE)})["d"]
    x = patches(SIZE).numpy().astype(np.float64)
    for level in (1, 2, 3):
        convolution = d.convolution_down(level)
        kernel = convolution.normalized().numpy()
        bias = convolution.layer.bias.numpy()
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        # [n, r, c, channel, 3, 3]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.einsum("nrcaij,ijab->nrcb", windows, kernel) + bias
        x = np.where(x > 0, x, 0.2 * x)
        x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max(axis=(2, 4))
        if level == 2:
            # against numpy in test_layers.py
            x = d.attention(tf.constant(x, tf.float32)).numpy().astype(np.float64)
    logits = (
        np.einsum("nrca,rcab->nb", x, d.centre.normalized().numpy()) + d.centre.layer.bias.numpy()
    )
    np.testing.assert_allclose(d(patches(SIZE)), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"attention_in_decoder": True, "spectral": "both"}])
def test_at_alpha_0_the_grown_networks_equal_the_small_ones(values):
    settings = config(start=8, attention=4, **values)
    assert settings.stages(SIZE) == [8, 16, 32]
    stages = [randomise(build_networks(settings, size), size) for size in (8, 16, 32)]
    for small, grown in itertools.pairwise(stages):
        for network in small.values():
            network.steps.assign(settings.fade_steps)
        for name, network in grown.items():
            network.grow(small[name])
        image = patches(grown["generator"].size)
        half = tf.nn.avg_pool2d(image, 2, 2, "VALID")
        for name in ("generator", "average"):
            random = noise(grown[name])
            lesion = small[name](half, random[:, : small[name].blocks])
            assert np.abs(lesion).max() > 0.01
            found = grown[name](image, random)
            np.testing.assert_array_equal(found, np.repeat(np.repeat(lesion, 2, 1), 2, 2))
        np.testing.assert_array_equal(grown["discriminator"](image), small["discriminator"](half))


@pytest.mark.slow
def test_the_new_level_is_faded_in_over_fade_steps():
    small = randomise(build_networks(config(), 16))
    grown = randomise(build_networks(config(), SIZE), seed=9)
    generator = grown["generator"]
    generator.grow(small["generator"])
    random = noise(generator)
    alphas = []
    for step in range(6):
        generator.steps.assign(step)
        alphas.append(float(generator.alpha(tf.float32)))
    assert alphas == [0, 0.25, 0.5, 0.75, 1, 1]
    new = generator(patches(SIZE), random).numpy()
    for end in (generator.old_to_lesion, generator.old_from_image):  # no longer of any weight
        end.bias.assign(end.bias + 1)
    np.testing.assert_array_equal(generator(patches(SIZE), random), new)
    generator.steps.assign(2)
    assert np.abs(generator(patches(SIZE), random) - new).max() > 1e-3


def test_the_penalty_in_the_analytic_case():
    """D(x) = w . x with w = (3, 4) has |w| = 5, so 10 * (5 - 1)^2 = 160.

    That holds for any x and any number of them.
    """
    w = tf.constant([3.0, 4.0], shape=[1, 2, 1])
    x = tf.constant(np.random.default_rng(0).normal(size=(7, 1, 2, 1)), tf.float32)

    def logit(image):
        return tf.reduce_sum(image * w, axis=[1, 2, 3])

    with tf.GradientTape() as tape:
        tape.watch(w)
        penalty = contextual.gradient_penalty(logit, x)
    assert float(penalty) == pytest.approx(160, rel=1e-6)
    # d/dw 10 (|w| - 1)^2 = 20 (|w| - 1) w / |w|
    np.testing.assert_allclose(np.ravel(tape.gradient(penalty, w)), [48, 64], rtol=1e-5)
    nothing = contextual.gradient_penalty(lambda image: 0.0 * logit(image), x, 2.0, 3.0)
    assert float(nothing) == pytest.approx(18)


@pytest.mark.parametrize(("benign", "others"), [(1, 2), (0, 1)])
def test_the_four_way_loss_by_hand(benign, others):
    logits = tf.constant([[np.log(2.0), 0, 0, 0]], tf.float32)  # probabilities 2/5 and 1/5
    expected = np.log(5 / 2) + np.log(5) + 0.2 * others * np.log(5)
    found = contextual.four_way([logits, logits, logits[:benign], logits], 0.2)
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "updates", "spectral", "delta"),
    [
        ("mass", 2, "discriminator", "dragan"),
        ("calcification", 1, "both", "as_printed"),
        ("removal", 1, "discriminator", "dragan"),
    ],
)
def test_a_step_descends_the_discriminators_loss_then_the_generators(
    target, updates, spectral, delta
):
    keras.utils.set_random_seed(1)  # some first weights give G hardly any gradient
    values = {"target": target, "spectral": spectral, "delta": delta, "ema": 0.9}
    values["lambda_penalty"] = 0.1
    gan, reference = (make_model(**values) for _ in range(2))
    data = batch()
    image = data["image"] * 2 - 1
    malignant, benign, normal = (
        tf.boolean_mask(image, data["label"] == label) for label in range(3)
    )
    real, source = (normal, malignant) if target == "removal" else (malignant, normal)

    def fake(use):
        noise = reference._noise(source, use)
        return tf.clip_by_value(source + reference.generator(source, noise), -1, 1)

    def cross_entropy(patches, label):
        return -tf.reduce_mean(tf.nn.log_softmax(reference.discriminator(patches))[:, label])

    def probability(patches):
        return tf.reduce_mean(tf.nn.softmax(reference.discriminator(patches))[:, 0])

    def penalty():
        alpha = reference._uniform([2], PENALTY_ALPHA)[:, None, None, None]
        uniform = reference._uniform(real.shape, PENALTY_DIRECTION)
        scale = 1 if delta == "as_printed" else alpha * 0.5 * tf.math.reduce_std(real)
        perturbed = real + scale * uniform
        with tf.GradientTape() as tape:
            tape.watch(perturbed)
            logits = reference.discriminator(perturbed)
            total = tf.reduce_sum(logits[:, 0] - logits[:, 1])
        norm = tf.sqrt(tf.reduce_sum(tape.gradient(total, perturbed) ** 2, axis=[1, 2, 3]))
        return 0.1 * tf.reduce_mean((norm - 1) ** 2)

    def discriminator_loss():
        four_way = (
            cross_entropy(real, 0)
            + cross_entropy(fake(DISCRIMINATOR_NOISE), 1)
            + 0.2 * cross_entropy(benign, 2)
            + 0.2 * cross_entropy(source, 3)
        )
        return four_way + penalty()

    def algorithm(descend):
        for network in reference.networks.values():
            network.power_iteration()
        numbers = {"penalty": penalty(), "p_real": probability(real)}
        descend(discriminator=discriminator_loss)
        for update in range(updates):
            noise = GENERATOR_NOISE + update
            numbers["p_fake"] = probability(fake(noise))
            descend(generator=lambda noise=noise: cross_entropy(fake(noise), 0))
        weights = reference.generator.trainable_variables
        for mean, weight in zip(reference.average.trainable_variables, weights, strict=True):
            mean.assign(0.9 * mean + 0.1 * weight)
        return numbers

    assert_follows(gan, reference, data, algorithm)
    assert int(gan.optimizers["generator"].iterations) == updates
    assert [int(network.steps) for network in gan.networks.values()] == [1, 1, 1]


@pytest.mark.slow
def test_two_batches_of_a_step_update_and_count_once():
    gan = make_model(target="removal", learning_rate=1e-3)
    accumulator = Accumulator(gan.networks, gan.optimizers, 2)
    before = [weight.numpy() for weight in gan.generator.trainable_variables]
    draws = []
    for number, is_last in enumerate([False, True]):
        accumulator.done.assign(number)
        accumulator.is_last = is_last
        draws.append(gan._uniform([3], GENERATOR_NOISE).numpy())
        gan.train_step(batch(seed=number))
        changed = [
            not np.array_equal(old, new.numpy())
            for old, new in zip(before, gan.generator.trainable_variables, strict=True)
        ]
        assert all(changed) if is_last else not any(changed)
        assert [int(network.steps) for network in gan.networks.values()] == [number] * 3
    assert not np.array_equal(*draws)
    assert [int(each.iterations) for each in gan.optimizers.values()] == [1, 1]


def test_a_generator_that_is_updated_twice_takes_no_further_batches():
    assert "generator_updates is 1" in make_model(target="mass").not_for_accumulation
    assert not hasattr(make_model(target="mass", generator_updates=1), "not_for_accumulation")


@pytest.mark.slow
def test_only_networks_of_half_the_size_that_are_faded_in_grow():
    eight = {"start": 8, "attention": 4}
    small, grown = (make_discriminator(size, **eight) for size in (16, 32))
    small.steps.assign(3)
    for source, target, named in (
        (small, grown, "discriminator: the networks for 16 px are not faded in after 3 steps"),
        (make_discriminator(8, **eight), make_discriminator(), "networks for 8 px can't grow"),
        (make_discriminator(16), make_discriminator(start=32), "networks for 16 px can't grow"),
    ):
        with pytest.raises(ConfigError, match=named):
            target.grow(source)
    small.steps.assign(4)
    grown.grow(small)
    assert make_discriminator(8, **eight).is_faded_in() and not grown.is_faded_in()


@pytest.mark.parametrize(
    ("start", "size", "stages"),
    [
        (128, 256, [128, 256]),
        (128, 64, [64]),
        (96, 256, None),
    ],
)
def test_stages(start, size, stages):
    refused = pytest.raises(ConfigError, match="model.start: 96 px")
    with contextlib.nullcontext() if stages else refused:
        assert ContextualConfig(start=start).stages(size) == stages


@pytest.mark.slow
def test_without_attention_and_penalty_nothing_of_them_is_left():
    model = make_model(attention=None, attention_in_decoder=True, lambda_penalty=0.0)
    for network in model.networks.values():
        assert not any("attention" in weight.path for weight in network.variables)
    values = model.train_step(batch())
    assert float(values["penalty"]) == 0 and np.isfinite(float(values["discriminator_loss"]))


@pytest.mark.slow
def test_without_benign_patches_the_others_are_told_apart():
    data = batch()
    rows = np.flatnonzero(data["label"].numpy() != 1)
    two = {name: tf.gather(value, rows) for name, value in data.items()}
    values = make_model(positives="lesion").train_step(two)
    assert all(np.isfinite(float(value)) for value in values.values())
