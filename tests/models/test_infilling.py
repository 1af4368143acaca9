"""Infilling: tri-label, refinement network, feature matching, Eq. (3) to (5)."""

import functools

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.full_size import build_without_memory, count_each, count_weights, shape_answer
from tests.models.every import draw_mask, make_batch, make_random
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.errors import WeightsError
from tfmammo.models import infilling
from tfmammo.models.infilling import CRN, Infilling, InfillingConfig
from tfmammo.nn.layers import enlarge, patch_seeds, tri_label, uniform_noise
from tfmammo.nn.pretrained import vgg19
from tfmammo.nn.published import compute_digest

SIZE = 32


@pytest.fixture(autouse=True)
def one_trunk(monkeypatch):
    """VGG-19's random weights are drawn once for each set of layers and precision."""
    monkeypatch.setattr(
        infilling,
        "vgg19",
        lambda weights, layers: _trunk(weights, tuple(layers), keras.config.dtype_policy().name),
    )


@functools.cache
def _trunk(weights, layers, policy):
    return vgg19(weights, layers)


@pytest.fixture(autouse=True, scope="module")
def forget_trunks():
    """80 MB each, not for the tests of other files."""
    yield
    _trunk.cache_clear()


def small(**config):
    return make_random("infilling", SIZE, 0.2, **{"filters": (4, 8), "widths": (4, 4, 4), **config})


def batch(count=2):
    return make_batch("infilling", count, 1, SIZE)


def test_a_hand_drawn_tri_label():
    mask = draw_mask(
        "........",
        "........",
        "...#....",
        "..###...",
        "...##...",
        "....#...",
        "........",
        "........",
    )
    margin = draw_mask(
        "..##....",
        "..##....",
        "###.##..",
        "##...#..",
        "..#..#..",
        "..##.#..",
        "....##..",
        "....##..",
    )  # the mask doubled about the patch's centre, less the mask
    image, noise = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    expected = np.concatenate([np.where(mask == 1, noise, image), mask, margin], -1)
    one, *several = (each[np.newaxis] for each in (image, mask, noise))
    for label in (
        tri_label(image, mask, noise, margin=512),
        tri_label(one, *several, margin=512)[0],
        tf.function(tri_label)(one, *several, margin=512)[0],
    ):
        np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(tri_label(image, mask, noise, margin=None), expected[..., :2])


@pytest.mark.parametrize("margin", [276, 296, 316])
def test_an_enlarged_mask_is_the_resized_and_cropped_one(margin):
    mask = (
        cv2.GaussianBlur(np.random.default_rng(margin).random((256, 256)), (0, 0), 9) > 0.5
    ).astype(np.float32)
    border = (margin - 256) // 2
    resized = cv2.resize(mask, (margin, margin), interpolation=cv2.INTER_NEAREST_EXACT)[
        border:-border, border:-border
    ]
    found = enlarge(tf.constant(mask[np.newaxis, ..., np.newaxis]), margin)[0, ..., 0]
    # A few rows and columns are exactly between two source pixels, where OpenCV's fixed point
    # numbers fall to either side.
    assert np.mean(found != resized) < 1e-3 and 0.2 < mask.mean() < 0.8


@pytest.mark.parametrize(("size", "radius"), [(256, 20), (64, 5)])
def test_a_dilated_margin_has_one_width_wherever_the_mask_lies(size, radius):
    """The paper's morphological operation, beside OpenCV's."""
    rows, cols = np.indices((size, size))
    mask = (np.hypot(rows - size // 5, cols - 3 * size // 4) < size / 8).astype(np.uint8)
    steps = np.arange(-radius, radius + 1)
    disc = (np.hypot(*np.meshgrid(steps, steps)) <= radius).astype(np.uint8)
    expected = cv2.dilate(mask, disc) - mask
    one = mask[..., np.newaxis].astype(np.float32)
    config = InfillingConfig(margin={"dilation": 20})
    assert config.channels == 3
    label = tri_label(one, one, np.ones_like(one), config.margin)
    np.testing.assert_array_equal(label[..., 2], expected)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert outside[expected == 1].max() <= radius and outside[expected + mask == 0].min() > radius
    batch = np.stack([one, one[::-1]])
    compiled = tf.function(tri_label, jit_compile=True)(batch, batch, batch, config.margin)
    np.testing.assert_array_equal(compiled[1, ..., 2], expected[::-1])


def test_noise_follows_from_step_and_patch():
    image = batch(3)["image"]
    seeds = patch_seeds(image, 5)
    assert seeds.dtype == tf.int64 and seeds.shape == (3, 2) and set(seeds[:, 0].numpy()) == {5}
    np.testing.assert_array_equal(patch_seeds(tf.reverse(image, [0]), 5), tf.reverse(seeds, [0]))
    nudged = patch_seeds(tf.tensor_scatter_nd_add(image, [[0, 4, 4, 0]], [1e-3]), 5)
    assert nudged[0, 1] != seeds[0, 1] and nudged[1, 1] == seeds[1, 1]
    mirrored = patch_seeds(tf.reverse(image, [2]), 5)  # the same pixels elsewhere
    assert not np.intersect1d(mirrored[:, 1], seeds[:, 1]).size
    noise = uniform_noise(seeds, SIZE).numpy()
    np.testing.assert_array_equal(uniform_noise(seeds[1:2], SIZE)[0], noise[1])
    assert np.abs(noise[0] - noise[1]).mean() > 0.2
    assert np.abs(noise[0] - uniform_noise(patch_seeds(image, 6), SIZE)[0]).mean() > 0.2
    assert noise.min() >= 0 and noise.max() < 1
    assert noise.mean() == pytest.approx(0.5, abs=0.03)
    assert noise.var() == pytest.approx(1 / 12, rel=0.1)


def test_the_papers_networks(monkeypatch):
    monkeypatch.setattr(infilling, "vgg19", vgg19)  # one without numbers is not for other tests
    config = InfillingConfig(weights="none")
    model = build_without_memory(lambda: Infilling(config), monkeypatch)
    # U-Net and D of Pix2Pix (54,407,809 and 2,764,609) with two more input channels: 64 kernels of
    # 16 weights for each.
    assert count_each(model) == {"generator": 54_409_857, "discriminator": 2_766_657}
    assert shape_answer(model.discriminator, 256, 256, 4) == (1, 30, 30, 1)


def test_the_network_of_the_feature_loss_is_known_by_its_weights(tmp_path):
    network = keras.applications.VGG19(weights=None, include_top=False)
    arrays = {
        f"{layer.name}/{variable.name}": np.zeros(variable.shape, np.float32)
        for layer in network.layers
        for variable in layer.weights
    }
    arrays |= {"input/scale": np.ones(3, np.float32), "input/offset": np.zeros(3, np.float32)}
    path = tmp_path / "vgg19.npz"
    with pytest.raises(WeightsError, match="vgg19.npz"):
        small(weights=str(path))
    np.savez(path, **arrays)
    model = small(weights=str(path))
    found = model.pretrained["feature_extractor"]
    assert found == ("VGG-19 of unknown origin", compute_digest(arrays))
    assert small().pretrained["feature_extractor"].sha256 == "", "random weights have none"
    # it is in no export and no checkpoint
    extractor = {id(variable.value) for variable in model.feature_extractor.variables}
    for function in model.functions().values():
        variables = function.get_concrete_function().variables
        assert not extractor & {id(variable) for variable in variables}
    assert list(model.networks) == ["generator", "discriminator"]


@pytest.mark.parametrize(
    ("channels", "normalization", "count"),
    [(3, "layer", 115_842_561), (2, "layer", 115_778_049), (3, "none", 115_813_889)],
)
def test_the_refinement_networks_parameters(monkeypatch, channels, normalization, count):
    network = build_without_memory(lambda: CRN(channels, normalization=normalization), monkeypatch)
    # Module i: 9 (channels + before) w + w and 9 w w + w, 2 gains and 2 offsets per channel; then
    # 512 + 1.
    assert count_weights(network) == count


@pytest.mark.parametrize("shown", ["label", "before"])
def test_a_module_sees_the_downsampled_label_and_the_upsampled_output(shown):
    network = CRN(3, widths=(3, 3, 3), size=16, normalization="none")
    identity = np.zeros((3, 3, 3, 3), np.float32)
    identity[1, 1] = np.eye(3)
    pair = [identity, 0 * identity] if shown == "label" else [0 * identity, identity]
    for i, (first, second) in enumerate(network.convolutions):
        first.set_weights([np.concatenate(pair if i else [identity], axis=2), np.zeros(3)])
        second.set_weights([identity, np.zeros(3)])
    label = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    for output, side in zip(network.modules(tf.constant(label)), (4, 8, 16), strict=True):
        if shown == "label" or side == 4:
            step = 16 // side
            expected = label.reshape(1, side, step, side, step, 3).mean(axis=(2, 4))
        else:
            expected = cv2.resize(expected[0], (side, side), interpolation=cv2.INTER_LINEAR)[None]
        np.testing.assert_allclose(output, expected, atol=1e-6)


def test_labels_are_downsampled_in_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = CRN(1, widths=(1,) * 6, size=128, normalization="none")
    identity = np.zeros((3, 3, 1, 1), np.float32)
    identity[1, 1] = 1
    for convolution in network.convolutions[0]:
        convolution.set_weights([identity, np.zeros(1)])
    output = network.modules(tf.fill([1, 128, 128, 1], 0.75))[0]
    np.testing.assert_array_equal(tf.cast(output, tf.float32), 0.75)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["blocks", "first"])
def test_feature_matching_by_hand(layers):
    """Of VGG-19's maps, which test_pretrained.py compares with Keras's and torchvision's."""
    names = {
        "blocks": [f"block{i}_conv2" for i in range(1, 6)],
        "first": ["block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block3_conv1"],
    }[layers]
    model = small(feature_layers=layers)
    data = batch()
    real = data["image"].numpy()
    fake = np.asarray(model.generator(model.label(data) * 2 - 1, training=True)) / 2 + 0.5
    deviation = np.mean(1 / np.array([0.229, 0.224, 0.225]))
    terms = [np.mean(np.abs(real - fake))]
    for of_real, of_fake in zip(*map(vgg19("none", names), (real, fake)), strict=True):
        terms.append(np.mean(np.abs(of_real - of_fake)) / deviation)
    assert min(terms) > 1e-3, "every layer has its say"
    losses = model.train_step(data)
    assert float(losses["feature_matching"]) == pytest.approx(np.sum(terms), rel=1e-4)
    assert float(losses["image_l1"]) == pytest.approx(terms[0], rel=1e-4)


@pytest.mark.parametrize("generator", ["unet", "crn"])
@pytest.mark.parametrize(
    ("adversarial", "average"),
    [("non_saturating", "responses"), ("as_printed", "losses"), ("as_printed", "responses")],
)
def test_each_network_descends_its_own_loss_and_vgg_stays(generator, adversarial, average):
    config = {"generator": generator, "adversarial": adversarial, "average": average}
    model, reference = (small(lambda_fm=0.1, **config) for _ in range(2))
    data = batch()
    label = reference.label(data, 0) * 2 - 1
    scale = np.mean(1 / np.array([0.229, 0.224, 0.225]))

    def generate():
        return reference.generator(label, training=True)

    def probability(image):
        return respond(reference.discriminator(tf.concat([label, image], -1)), average)

    def real():
        return probability(data["image"] * 2 - 1)

    def fake():
        return probability(generate())

    def phi(image):
        return [image, *(maps / scale for maps in reference.feature_extractor(image))]

    def distances():
        pairs = zip(phi(data["image"]), phi(generate() / 2 + 0.5), strict=True)
        return [tf.reduce_mean(tf.abs(real - fake)) for real, fake in pairs]

    vgg = [variable.numpy() for variable in model.feature_extractor.variables]
    assert_descends(
        model,
        reference,
        data,
        {
            "feature_matching": lambda: tf.add_n(distances()),
            "image_l1": lambda: distances()[0],
            "p_real": lambda: tf.reduce_mean(real()),
            "p_fake": lambda: tf.reduce_mean(fake()),
        },
        generator=lambda: deceive(fake(), adversarial) + 0.1 * tf.add_n(distances()),
        discriminator=lambda: tell_apart(real(), fake()),
    )
    for before, variable in zip(vgg, model.feature_extractor.variables, strict=True):
        np.testing.assert_array_equal(variable, before)
