"""Infilling: tri-label, refinement network, feature matching, Eq. (3) to (5), replicas."""

import functools

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.full_size import build_without_memory, count_each, count_weights, shape_answer
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.errors import WeightsError
from tfmammo.models import infilling
from tfmammo.models.infilling import (
    CRN,
    Infilling,
    InfillingConfig,
    feature_matching,
)
from tfmammo.nn.layers import enlarge, patch_seeds, tri_label, uniform_noise
from tfmammo.nn.pretrained import vgg19
from tfmammo.nn.published import compute_digest

SIZE = 32
TINY = {
    "filters": (4, 8),
    "widths": (4, 4, 4),
    "dropout": 0.0,
    "discriminator_strided": 1,
    "discriminator_filters": 4,
    "weights": "none",
    "feature_layers": "first",
}


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


def small(seed=0, **config):
    """An infilling GAN of a few hundred weights, drawn by numpy."""
    model = Infilling(InfillingConfig(**{**TINY, **config}), SIZE)
    rng = np.random.default_rng(seed)
    for network in model.networks.values():
        for weight in network.trainable_variables:
            weight.assign(rng.normal(0, 0.2, weight.shape) + (weight.name == "gamma"))
    return model


def batch(count=2, seed=1, size=SIZE):
    rng = np.random.default_rng(seed)
    distance = np.hypot(*(np.indices((size, size)) - size / 2))[np.newaxis] / rng.uniform(
        size / 6, size / 3, (count, 1, 1)
    )
    masks = (distance < 1).astype(np.float32)[..., np.newaxis]
    images = np.clip(0.3 + 0.4 * masks + 0.1 * rng.normal(size=masks.shape), 0, 1).astype(
        np.float32
    )
    return {"mask": tf.constant(masks), "image": tf.constant(images)}


def draw_mask(*rows):
    return np.array([[character == "#" for character in row] for row in rows], np.float32)[
        ..., np.newaxis
    ]


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
    rng = np.random.default_rng(0)
    image, noise = rng.random((2, 8, 8, 1)).astype(np.float32)
    label = tri_label(image[np.newaxis], mask[np.newaxis], noise[np.newaxis], margin=512).numpy()
    assert label.shape == (1, 8, 8, 3) and label.dtype == np.float32
    np.testing.assert_array_equal(label[0, ..., 0:1], np.where(mask == 1, noise, image))
    np.testing.assert_array_equal(label[0, ..., 1:2], mask)
    np.testing.assert_array_equal(label[0, ..., 2:3], margin)
    two = tri_label(image[np.newaxis], mask[np.newaxis], noise[np.newaxis], margin=None)
    np.testing.assert_array_equal(two, label[..., :2])
    np.testing.assert_array_equal(tri_label(image, mask, noise, margin=512), label[0])


@pytest.mark.parametrize("margin", [276, 296, 316])
def test_the_margins_area(margin):
    rows, cols = np.indices((256, 256)) + 0.5
    disc = (np.hypot(rows - 128, cols - 128) < 60).astype(np.float32)[np.newaxis, ..., np.newaxis]
    label = tri_label(tf.zeros_like(disc), disc, tf.ones_like(disc), margin).numpy()
    assert label[..., 2].sum() == pytest.approx(np.pi * 60**2 * ((margin / 256) ** 2 - 1), rel=0.02)
    assert not np.any(label[..., 2] * label[..., 1]) and set(np.unique(label[..., 2])) == {0, 1}
    assert (
        label[0, 128 - round(62 * margin / 256) :, :, 2].any()
        and not label[0, : 127 - round(60 * margin / 256), :, 2].any()
    )


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
    # A few rows and columns lie exactly between two source pixels, where OpenCV's fixed point
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


def test_smaller_patches_scale_by_the_same_factor():
    mask = np.zeros((1, 64, 64, 1), np.float32)
    mask[0, 16:48, 16:48] = 1
    grown = enlarge(tf.constant(mask), 320).numpy()[0, ..., 0]
    assert grown.sum() == 40 * 40 and grown[12:52, 12:52].all()


def test_a_tri_label_in_a_graph_and_in_a_dataset():
    data = batch(3)
    noise = uniform_noise(patch_seeds(data["image"], 5), SIZE)
    eager = tri_label(data["image"], data["mask"], noise)

    def one(example):
        own = uniform_noise(patch_seeds(example["image"][tf.newaxis], 5), SIZE)[0]
        return tri_label(example["image"], example["mask"], own)

    mapped = np.stack(list(tf.data.Dataset.from_tensor_slices(data).map(one).as_numpy_iterator()))
    np.testing.assert_array_equal(mapped, eager)
    np.testing.assert_array_equal(tf.function(tri_label)(data["image"], data["mask"], noise), eager)


def test_noise_follows_from_step_and_patch():
    image = batch(3)["image"]
    seeds = patch_seeds(image, 5)
    assert seeds.dtype == tf.int64 and seeds.shape == (3, 2) and set(seeds[:, 0].numpy()) == {5}
    np.testing.assert_array_equal(patch_seeds(tf.reverse(image, [0]), 5), tf.reverse(seeds, [0]))
    turned = patch_seeds(tf.image.rot90(image), 5)
    nudged = patch_seeds(tf.tensor_scatter_nd_add(image, [[0, 4, 4, 0]], [1e-3]), 5)
    assert (
        np.all(turned[:, 1] != seeds[:, 1])
        and nudged[0, 1] != seeds[0, 1]
        and nudged[1, 1] == seeds[1, 1]
    )
    noise = uniform_noise(seeds, SIZE).numpy()
    np.testing.assert_array_equal(uniform_noise(seeds[1:2], SIZE)[0], noise[1])
    assert np.abs(noise[0] - noise[1]).mean() > 0.2
    assert np.abs(noise - uniform_noise(patch_seeds(image, 6), SIZE).numpy()).mean() > 0.2
    assert (
        noise.min() >= 0
        and noise.max() < 1
        and noise.mean() == pytest.approx(0.5, abs=0.03)
        and noise.var() == pytest.approx(1 / 12, rel=0.1)
    )


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
    np.savez(tmp_path / "vgg19.npz", **arrays)
    found = small(weights=str(tmp_path / "vgg19.npz")).pretrained["feature_extractor"]
    assert found == ("VGG-19 of unknown origin", compute_digest(arrays))
    assert small().pretrained["feature_extractor"].sha256 == "", "random weights have none"


@pytest.mark.parametrize(
    ("channels", "normalization", "count"),
    [(3, "layer", 115_842_561), (2, "layer", 115_778_049), (3, "none", 115_813_889)],
)
def test_the_refinement_networks_parameters(monkeypatch, channels, normalization, count):
    network = build_without_memory(lambda: CRN(channels, normalization=normalization), monkeypatch)
    # Module i: 9 (channels + before) w + w and 9 w w + w, 2 gains and 2 offsets per channel; then
    # 512 + 1.
    assert count_weights(network) == count


def test_eight_modules_from_2_to_256_px():
    network = CRN(3, widths=(3, 4, 5, 6, 5, 4, 3, 2))
    graph = tf.function(network.modules).get_concrete_function(tf.TensorSpec([2, 256, 256, 3]))
    outputs = graph.structured_outputs
    assert [output.shape for output in outputs] == [
        (2, 2 ** (i + 1), 2 ** (i + 1), w) for i, w in enumerate((3, 4, 5, 6, 5, 4, 3, 2))
    ]
    assert shape_answer(network, 256, 256, 3) == (1, 256, 256, 1)


@pytest.mark.parametrize("shown", ["label", "before"])
def test_a_module_sees_the_downsampled_label_and_the_upsampled_output(shown):
    network = CRN(3, widths=(3, 3, 3), size=16, normalization="none")
    identity = np.zeros((3, 3, 3, 3), np.float32)
    identity[1, 1] = np.eye(3)
    for i, (first, second) in enumerate(network.convolutions):
        nothing = np.zeros_like(identity)
        seen = (
            [identity]
            if i == 0
            else [identity, nothing]
            if shown == "label"
            else [nothing, identity]
        )
        first.set_weights([np.concatenate(seen, axis=2), np.zeros(3)])
        second.set_weights([identity, np.zeros(3)])
    label = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    found = network.modules(tf.constant(label))
    for output, side in zip(found, (4, 8, 16), strict=True):
        step = 16 // side
        if shown == "label":
            expected = label.reshape(1, side, step, side, step, 3).mean(axis=(2, 4))
        elif side == 4:
            expected = label.reshape(1, 4, 4, 4, 4, 3).mean(axis=(2, 4))
        else:
            expected = cv2.resize(expected[0], (side, side), interpolation=cv2.INTER_LINEAR)[
                np.newaxis
            ]
        np.testing.assert_allclose(output, expected, atol=1e-6)


def test_layer_normalisation_is_of_the_whole_map():
    network = CRN(2, widths=(4,), size=8)
    x = tf.random.uniform([2, 8, 8, 4], seed=0) * 5
    normed = network.norms[0][0](x).numpy()
    np.testing.assert_allclose(normed.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(normed.std(axis=(1, 2, 3)), 1, atol=1e-2)


def numpy_vgg(feature_extractor, image, layers):
    """Compute VGG-19's maps of a grey image, [n, s, s, 1] in [0, 1], in float64.

    Blocks are 3 x 3 convolutions with ReLU, and max pooling by 2 stands between them.
    """
    stored = {
        variable.path: variable.numpy().astype(np.float64)
        for variable in feature_extractor.variables
    }
    mean = np.array([0.485, 0.456, 0.406])
    deviation = np.array([0.229, 0.224, 0.225])
    x = (np.repeat(image, 3, axis=-1).astype(np.float64) - mean) / deviation
    found = {}
    for block, depth in enumerate((2, 2, 4, 4, 4), 1):
        for i in range(depth):
            name = f"block{block}_conv{i + 1}"
            if f"{name}/kernel" not in stored:
                return [found[layer] for layer in layers]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            # [n, r, c, channels, 3, 3]
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
            x = (
                np.tensordot(windows, stored[f"{name}/kernel"], axes=((4, 5, 3), (0, 1, 2)))
                + stored[f"{name}/bias"]
            )
            x = found[name] = np.maximum(x, 0)
        n, rows, cols, channels = x.shape
        x = x.reshape(n, rows // 2, 2, cols // 2, 2, channels).max(axis=(2, 4))
    return [found[layer] for layer in layers]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "factors"),
    [("blocks", "elements"), ("blocks", "chen_koltun"), ("first", "elements")],
)
def test_feature_matching_against_numpy(layers, factors):
    names = {
        "blocks": [f"block{i}_conv2" for i in range(1, 6)],
        "first": ["block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block3_conv1"],
    }[layers]
    model = small(feature_layers=layers, feature_weights=factors)
    data = batch()
    real = data["image"].numpy()
    label = model.label(data) * 2 - 1
    fake = np.asarray(model.generator(label, training=True)) / 2 + 0.5
    pairs = zip(
        numpy_vgg(model.feature_extractor, real, names),
        numpy_vgg(model.feature_extractor, fake, names),
        strict=True,
    )
    deviation = np.mean(1 / np.array([0.229, 0.224, 0.225]))
    terms = [np.abs(real - fake).sum() / real.size] + [
        np.abs(r - f).sum() / r.size / deviation for r, f in pairs
    ]
    lambdas = (
        [1, 1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5] if factors == "chen_koltun" else [1] * 6
    )
    expected = np.dot(lambdas, terms)
    losses = model.train_step(data)
    assert min(terms) > 1e-3, "every layer has its say"
    assert float(losses["feature_matching"]) == pytest.approx(expected, rel=1e-4)
    assert float(losses["image_l1"]) == pytest.approx(terms[0], rel=1e-4)


def test_feature_matching_by_hand():
    real = [tf.constant([[[[1.0]], [[2.0]]]]), tf.constant([[[[1.0, 2.0, 3.0, 4.0]]]])]
    fake = [tf.constant([[[[0.0]], [[4.0]]]]), tf.constant([[[[1.0, 0.0, 3.0, 0.0]]]])]
    assert float(feature_matching(real, fake)) == pytest.approx(3 / 2 + 6 / 4)
    assert float(feature_matching(real, fake, (2.0, 10.0))) == pytest.approx(3 + 15)
    assert float(feature_matching(real, real)) == 0


@pytest.mark.parametrize("generator", ["unet", "crn"])
@pytest.mark.parametrize(
    ("adversarial", "average"),
    [
        ("non_saturating", "responses"),
        ("as_printed", "losses"),
        ("as_printed", "responses"),
    ],
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


def test_the_real_images_features_are_computed_once_and_nothing_flows_back_from_them():
    model = small()
    data = batch()
    seen = []
    feature_extractor = model.feature_extractor

    def counting(image):
        seen.append(image)
        return feature_extractor(image)

    model.features = functools.partial(
        Infilling.features,
        type("Counting", (), {"feature_extractor": staticmethod(counting), "grey_scale": 1.0}),
    )
    model.train_step(data)
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[0], data["image"])
    assert np.abs(seen[1] - data["image"]).max() > 1e-2


@pytest.mark.parametrize("margin", [296, None])
def test_what_is_exported_is_the_networks_without_vgg(margin):
    model = small(margin=margin)
    data = batch(3)
    label = model.label(data)
    functions = model.functions()
    assert functions["generator"].input_signature[0].shape[-1] == label.shape[-1]
    assert label.shape[-1] == (3 if margin else 2)
    image = functions["generator"](tri_label=label)["image"]
    expected = model.generator(label * 2 - 1) / 2 + 0.5
    np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-5)
    logits = functions["discriminator"](tri_label=label, image=data["image"])["logits"]
    expected = model.discriminator(tf.concat([label * 2 - 1, data["image"] * 2 - 1], -1))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    extractor = {id(variable.value) for variable in model.feature_extractor.variables}
    for function in functions.values():
        variables = function.get_concrete_function().variables
        assert not extractor & {id(variable) for variable in variables}
    assert list(model.networks) == ["generator", "discriminator"]


def test_two_channels_are_the_ablation():
    model = small(margin=None)
    assert count_weights(small().generator) - count_weights(model.generator) == 4 * 16
    assert all(np.isfinite(value) for value in model.train_step(batch()).values())


def test_weights_that_can_not_be_had_are_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere.npz"):
        small(weights=str(tmp_path / "nowhere.npz"))
