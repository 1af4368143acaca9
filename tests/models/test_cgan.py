"""The cGAN's equations, its noise at test time, its ablations and its morphology."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.full_size import build_without_memory, count_each, shape_answer
from tests.models.every import make_batch, make_random
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.errors import WeightsError
from tfmammo.models import cgan as module
from tfmammo.models.cgan import CGAN, CGANConfig, EncoderConfig, PostprocessConfig, postprocess
from tfmammo.nn.networks import leaky_relu
from tfmammo.nn.normalization import BatchNormalization

SIZE = 16


def small(**config):
    return make_random("cgan", SIZE, **{"filters": (4, 8), **config})


def batch(count=3):
    return make_batch("cgan", count, 1, SIZE)


def test_the_articles_networks(monkeypatch):
    cgan = build_without_memory(CGAN, monkeypatch)
    assert shape_answer(cgan.discriminator, 256, 256, 2) == (1, 30, 30, 1)
    generator = cgan.generator
    normed = [type(norm) is BatchNormalization for norm in generator.down_norms]
    assert normed == [False, *[True] * 6, False]
    normed = [type(norm) is BatchNormalization for norm in generator.up_norms]
    assert normed == [*[True] * 7, False]
    assert [d.rate if d else 0 for d in generator.dropouts] == [0.5, 0.5, 0.5, 0, 0, 0, 0, 0]


def test_resnet101_as_the_encoder(monkeypatch):
    config = CGANConfig(filters=(32, 64, 128, 256), encoder=EncoderConfig())
    cgan = build_without_memory(lambda: CGAN(config), monkeypatch)
    # Keras counts 42,552,832 trainable weights in ResNet-101 without top. The decoder's kernels of
    # 4 x 4 have 2048 -> 256, 256 + 1024 -> 128, 128 + 512 -> 64, 64 + 256 -> 32, 32 + 64 -> 1.
    kernels = 16 * (2048 * 256 + 1280 * 128 + 640 * 64 + 320 * 32 + 96)
    biases_and_norms = (256 + 128 + 64 + 32) * 3 + 1
    counts = {"generator": 42_552_832 + kernels + biases_and_norms, "discriminator": 694_625}
    assert count_each(cgan) == counts
    assert shape_answer(cgan.generator, 256, 256, 1) == (1, 256, 256, 1)
    assert [d.rate if d else 0 for d in cgan.generator.dropouts] == [0.5, 0.5, 0.5, 0, 0]
    kerass = build_without_memory(
        lambda: keras.applications.ResNet101(weights=None, include_top=False), monkeypatch
    )
    ours, theirs = (
        {layer.name: [w.shape for w in layer.weights] for layer in network.layers if layer.weights}
        for network in (cgan.generator.encoder, kerass)
    )
    assert ours == theirs


# Keras 3.15 saves variables in a way that numpy 2 will once refuse.
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_the_encoders_weights_come_from_a_file(monkeypatch, tmp_path):
    narrow = (2, (1, 1, 1, 1))
    monkeypatch.setattr(module, "RESNET_101", narrow)
    config = EncoderConfig(filters=narrow[0], blocks=narrow[1])

    def build(weights=None, include_top=False):
        encoder = module.build_encoder(config, 32, 0.9)
        return keras.Model(encoder.input, encoder.outputs[-1])

    source = build()
    rng = np.random.default_rng(0)
    source.set_weights([rng.uniform(size=w.shape) for w in source.get_weights()])
    source.save_weights(tmp_path / "resnet101.weights.h5")
    monkeypatch.setattr(keras.applications, "ResNet101", build)
    pretrained = config.model_copy(update={"weights": tmp_path / "resnet101.weights.h5"})
    cgan = CGAN(
        CGANConfig(filters=(4, 4, 4, 4), discriminator_strided=1, encoder=pretrained), size=32
    )
    for ours, theirs in zip(
        cgan.generator.encoder.get_weights(), source.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    digest = hashlib.sha256((tmp_path / "resnet101.weights.h5").read_bytes()).hexdigest()
    assert cgan.pretrained == {"encoder": ("Keras's ResNet-101", digest)}
    # no name means a download
    missing = config.model_copy(update={"weights": module.Path("imagenet")})
    with pytest.raises(WeightsError, match=r"model.encoder.weights: .*imagenet"):
        CGAN(cgan.config.model_copy(update={"encoder": missing}), size=32)


def test_an_encoder_with_other_filters_is_refused():
    with pytest.raises(ValidationError, match="one for each of its 4 inner maps, not 8"):
        CGANConfig(encoder=EncoderConfig())
    with pytest.raises(ValidationError, match="weights x.h5 are of ResNet-101"):
        EncoderConfig(filters=32, weights="x.h5")


def test_batch_norms_averages_take_a_tenth_of_each_step():
    cgan = small(filters=(4, 8, 8))
    data = batch()
    network = cgan.generator
    first = leaky_relu(network.downs[0](data["image"]))
    mean = tf.reduce_mean(network.downs[1](first), axis=(0, 1, 2)).numpy()
    before = network.down_norms[1].moving_mean.numpy()
    cgan.train_step(data)
    np.testing.assert_allclose(
        network.down_norms[1].moving_mean, 0.9 * before + 0.1 * mean, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("normalization", ["batch", "sample"])
@pytest.mark.parametrize("content", ["dice", "l1"])
def test_each_network_descends_its_own_loss_alone(normalization, content):
    config = {"normalization": normalization, "content": content, "lambda_content": 0.5}
    cgan, reference = (small(**config) for _ in range(2))
    data = batch()

    def output():
        return reference.generator(data["image"], training=True)

    def probability(mask):
        pair = tf.concat([data["image"], mask], -1)
        return respond(reference.discriminator(pair, training=True))

    assert_descends(
        cgan,
        reference,
        data,
        {
            content: lambda: content_loss(content, data["mask"], output()),
            "p_real": lambda: tf.reduce_mean(probability(data["mask"])),
            "p_fake": lambda: tf.reduce_mean(probability(output())),
        },
        generator=lambda: (
            deceive(probability(output())) + 0.5 * content_loss(content, data["mask"], output())
        ),
        discriminator=lambda: tell_apart(probability(data["mask"]), probability(output())),
    )


@pytest.mark.parametrize("content", ["dice", "l1"])
def test_without_its_adversary_the_generator_descends_the_content_loss(content):
    config = {"adversarial": False, "content": content, "lambda_content": 5}
    cgan, reference = (small(**config) for _ in range(2))
    data = batch()

    def distance():
        mask = reference.generator(data["image"], training=True)
        return content_loss(content, data["mask"], mask)

    assert set(cgan.networks) == set(cgan.optimizers) == set(cgan.functions()) == {"generator"}
    numbers = {content: distance}
    assert_descends(cgan, reference, data, numbers, generator=lambda: 5 * distance())


def content_loss(content, truth, mask):
    """l_Dice with 1 above and below, or |y - o|."""
    if content == "l1":
        return tf.reduce_mean(tf.abs(truth - mask))
    overlap = tf.reduce_sum(truth * mask, axis=[1, 2, 3])
    sizes = tf.reduce_sum(truth + mask, axis=[1, 2, 3])
    return tf.reduce_mean(1 - (2 * overlap + 1) / (sizes + 1))


def test_dropout_is_the_noise_at_inference_too_and_draws_are_averaged():
    image = batch(1)["image"]
    # which training and inference have in common
    many = small(dropout=0.5, samples=64, normalization="sample")
    # The same draws by Keras's own dropout, all in one batch: samples share no statistics.
    draws = many.generator(tf.repeat(image, 400, axis=0), training=True).numpy()
    many_drawn = many.segment(image)
    assert draws.std(0).mean() > 1e-2
    assert np.abs(many_drawn["mask"] - draws.mean(0)).max() < 5 * draws.std(0).max() / np.sqrt(64)
    assert np.abs(many_drawn["uncertainty"] - draws.std(0)).mean() < 0.25 * draws.std(0).mean()
    one, two = (small(dropout=0.5, samples=samples).segment(image) for samples in (1, 2))
    second = 2 * two["mask"] - one["mask"]  # the first draw is the same
    np.testing.assert_allclose(two["uncertainty"], np.abs(one["mask"] - second) / 2, atol=1e-6)
    assert np.abs(one["mask"] - second).max() > 1e-2


def test_morphology_by_hand():
    mask = np.zeros((12, 12, 1), np.uint8)
    mask[2:8, 2:8] = 1
    mask[4, 4] = 0  # a hole, closed
    mask[10, 10] = 1  # a speckle, eroded
    cleaned = postprocess(mask, PostprocessConfig())
    assert cleaned.dtype == np.uint8 and cleaned.shape == mask.shape
    # Closing fills the hole; a 2x2 erosion (anchored at its lower right) takes the first row and
    # column and the speckle; a 3x3 dilation adds one pixel all round.
    expected = np.zeros_like(mask)
    expected[2:9, 2:9] = 1
    assert np.array_equal(cleaned, expected)
    nothing = PostprocessConfig(closing=0, erosion=0, dilation=0)
    assert np.array_equal(postprocess(mask, nothing), mask)
