"""Blending: Eq. (3) to (5), and how lesions are placed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tests.full_size import build_without_memory
from tests.models.every import make_batch, make_random
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.metrics.blending import background_error
from tfmammo.models.blending import (
    GAP,
    Blending,
    background_loss,
    guide,
    paste,
    place_lesion,
    seamless_loss,
)

SIZE = 32
PRIORS = [  # and guide
    pytest.param("lesion", "lesion", id="lesion"),
    pytest.param("noise", "lesion", id="noise"),
    pytest.param("noise", "none", id="noise-unguided"),
]


def small(**config):
    return make_random("blending", SIZE, 0.2, **config)


def batch(count=2):
    """`count` bright discs and as much tissue, in turns as the pipeline has them."""
    return make_batch("blending", 2 * count, 1, SIZE)


def grey(*rows):
    return tf.constant(np.array(rows, np.float32)[np.newaxis, ..., np.newaxis])


def test_the_networks(monkeypatch):
    network = build_without_memory(Blending, monkeypatch).discriminator
    assert network.output_shape == (None, 126, 126, 1)
    kernels = [
        (layer.kernel_size[0], layer.strides[0])
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    assert kernels == [(4, 2), (4, 1), (4, 1), (1, 1)]
    field = 1
    for size, stride in reversed(kernels):
        field = (field - 1) * stride + size
    assert field == 16


def test_the_guide_takes_the_larger_gradient_pixel_by_pixel():
    tissue = grey([0, 3, 3], [0, 3, 3], [0, 0, 0])
    lesion = grey([0, 0, 0], [2, 2, 2], [2, 6, 2])
    # (down, right) of the tissue: (0,3) (0,0) (0,0) | (0,3) (-3,0) (-3,0); of the lesion: (2,0)
    # (2,0) (2,0) | (0,0) (4,0) (0,0).
    expected = [[[0, 3], [2, 0], [2, 0]], [[0, 3], [4, 0], [-3, 0]], [[0, 4], [0, -4], [0, 0]]]
    np.testing.assert_array_equal(guide(tissue, lesion)[0], expected)
    # of equal gradients it is the lesion's
    found = guide(grey([0, 1], [0, 1]), grey([0, -1], [0, -1]))
    np.testing.assert_array_equal(found[0, ..., 1], [[-1, 0], [-1, 0]])


def test_the_seamless_loss_is_zero_for_an_image_equal_to_its_guide():
    lesion = tf.constant(np.random.default_rng(0).random((2, 8, 8, 1)), tf.float32)
    flat = tf.fill([2, 8, 8, 1], 0.5)
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[:, 2:6, 2:6] = 1
    assert float(seamless_loss(lesion, flat, lesion, mask)) < 1e-5
    assert float(seamless_loss(lesion + 0.3, flat, lesion, mask)) < 1e-5, "no gradient differs"
    assert float(seamless_loss(flat, flat, lesion, mask)) > 0.1
    assert float(seamless_loss(flat, lesion, flat, mask)) > 0.1, "the tissue's gradients count too"


def make_regions():
    """Omega in the middle, at borders, in corners, of one pixel, in two places, everywhere."""
    masks = np.zeros((7, 12, 12, 1), np.float32)
    masks[0, 4:8, 3:9] = 1
    masks[1, :5, 4:9] = 1
    masks[2, 3:9, :4] = 1
    masks[3, 8:, 8:] = 1
    masks[4, 6, 6] = 1
    masks[5, 1:4, 1:4] = masks[5, 7:, 5:12] = 1
    masks[6] = 1
    return masks


def test_a_direct_paste_has_no_background_loss_wherever_the_mask_is():
    rng = np.random.default_rng(1)
    masks = make_regions()
    tissue, lesion = rng.random((2, *masks.shape)).astype(np.float32)
    pasted = np.where(masks > 0, lesion, tissue)
    for kept in [slice(None), *([i] for i in range(len(masks)))]:
        assert float(background_loss(pasted[kept], tissue[kept], masks[kept])) == 0
    changed = pasted + 0.1 * (1 - masks)
    for i in range(len(masks) - 1):
        assert float(background_loss(changed[[i]], tissue[[i]], masks[[i]])) > 0.09


def test_the_losses_against_loops_over_pixels():
    rng = np.random.default_rng(2)
    masks = make_regions()
    output, tissue, lesion = rng.random((3, *masks.shape)).astype(np.float32)
    for i in range(len(masks)):
        found = [image[[i]] for image in (output, tissue, lesion, masks)]
        arrays = (image[0, ..., 0].astype(float) for image in found)
        seamless, change, gradient = compute_priors(*arrays)
        assert float(seamless_loss(*found)) == pytest.approx(seamless, rel=1e-5)
        error = float(background_loss(found[0], found[1], found[3]))
        assert error == pytest.approx(change + gradient, rel=1e-5)
        if i < len(masks) - 1:  # without background the metric is NaN
            metric = background_error(found[0], found[1], found[3])
            assert metric["l1_background"] == pytest.approx([change], rel=1e-5)
            assert metric["gradient_background"] == pytest.approx([gradient], rel=1e-5)


def compute_priors(output, tissue, lesion, mask):
    """Compute Eq. (3) and the two terms of Eq. (5) pixel by pixel."""
    size = len(mask)

    def gradient(image, row, col):
        right = image[row, col + 1] - image[row, col] if col + 1 < size else 0
        down = image[row + 1, col] - image[row, col] if row + 1 < size else 0
        return np.array([down, right])

    inside, outside, grey_values = [], [], []
    for row, col in np.ndindex(mask.shape):
        of_output, of_tissue, of_lesion = (
            gradient(image, row, col) for image in (output, tissue, lesion)
        )
        v = of_tissue if np.hypot(*of_tissue) > np.hypot(*of_lesion) else of_lesion
        neighbours = [(row + 1, col), (row, col + 1)]
        for axis, (below, beside) in enumerate(neighbours):
            if below < size and beside < size and (mask[row, col] or mask[below, beside]):
                inside.append((of_output - v)[axis] ** 2)
        if not mask[row, col]:
            grey_values.append(abs(output[row, col] - tissue[row, col]))
            if row + 1 < size and col + 1 < size and not mask[row + 1, col] + mask[row, col + 1]:
                outside.append((np.hypot(*of_output) - np.hypot(*of_tissue)) ** 2)
    seamless = np.sqrt(2 * np.mean(inside)) if inside else 0
    change = np.mean(grey_values) if grey_values else 0
    return seamless, change, np.sqrt(np.mean(outside)) if outside else 0


def test_both_losses_have_finite_gradients_where_they_are_zero():
    flat = tf.fill([1, 8, 8, 1], 0.5)
    mask = tf.ones([1, 8, 8, 1])
    with tf.GradientTape() as tape:
        tape.watch(flat)
        value = seamless_loss(flat, flat, flat, mask) + background_loss(flat, flat, 1 - mask)
    assert np.isfinite(tape.gradient(value, flat)).all()


def square(size=SIZE, top=8, left=10, height=6, width=9):
    image = np.random.default_rng(0).random((1, size, size, 1)).astype(np.float32)
    mask = np.zeros((1, size, size, 1), np.float32)
    mask[0, top : top + height, left : left + width] = 1
    return tf.constant(image), tf.constant(mask)


def test_a_lesion_that_is_neither_turned_nor_resized_is_moved_only():
    image, mask = square(height=6, width=8)  # half its diagonal is 5 px
    # Of 32 px the middle may be from 9 to 23: at 9 + 1 = 10 and 9 + 7 = 16, 9.5 and 15.5 counted
    # from the first pixel's middle.
    draws = tf.constant([[0.5, 0.0, 1 / 14, 0.5]])
    moved, place = place_lesion(image, mask, draws, 0.0, (1.0, 1.0))
    np.testing.assert_array_equal(place[0, 7:13, 12:20, 0], np.ones((6, 8)))
    assert float(tf.reduce_sum(place)) == 48
    np.testing.assert_allclose(moved[0, 7:13, 12:20], image[0, 8:14, 10:18], atol=1e-5)


def test_a_quarter_turn_is_exact():
    image, mask = square(height=8, width=8, left=12)
    moved, place = place_lesion(image, mask, tf.constant([[1.0, 0.0, 0.5, 0.5]]), 90.0, (1.0, 1.0))
    np.testing.assert_array_equal(place[0, 12:20, 12:20, 0], np.ones((8, 8)))
    patch = image[0, 8:16, 12:20].numpy()
    turned = [np.rot90(patch, k) for k in (1, 3)]
    error = [np.abs(moved[0, 12:20, 12:20] - one).max() for one in turned]
    assert min(error) < 1e-4


def test_a_resized_lesion_against_scipy():
    image, mask = square(size=64, top=20, left=24, height=12, width=12)
    smooth = tf.constant(ndimage.gaussian_filter(image.numpy(), (0, 3, 3, 0)))
    moved, place = place_lesion(smooth, mask, tf.constant([[0.5, 0.5, 0.5, 0.5]]), 0.0, (1.5, 1.5))
    assert float(tf.reduce_sum(place)) == pytest.approx(18 * 18, rel=0.12)
    rows, cols = np.meshgrid(np.arange(24, 40), np.arange(24, 40), indexing="ij")
    expected = ndimage.map_coordinates(
        smooth[0, ..., 0], [(rows - 31.5) / 1.5 + 25.5, (cols - 31.5) / 1.5 + 29.5], order=1
    )
    np.testing.assert_allclose(moved[0, 24:40, 24:40, 0], expected, atol=1e-4)


def test_no_place_cuts_a_mask_off():
    rng = np.random.default_rng(3)
    # it fits only when made smaller, and nothing of it goes on beyond its patch
    image, mask = square(height=18, width=20, top=0, left=6)
    many = [tf.repeat(values, 200, axis=0) for values in (image, mask)]
    draws = tf.constant(rng.random((200, 4)), tf.float32)
    moved, place = (each.numpy() for each in place_lesion(*many, draws, 180.0, (0.5, 1.5)))
    inside = place[:, GAP - 1 : 1 - GAP, GAP - 1 : 1 - GAP]
    assert place.sum() == inside.sum(), "the gap is kept, but for rounding"
    areas = place.sum(axis=(1, 2, 3))
    assert areas.min() > 0.2 * 360 and areas.max() <= 1.05 * 360 and areas.std() > 20
    assert moved.min() >= 0 and moved.max() <= 1
    places = {tuple(np.argwhere(one[..., 0]).mean(axis=0).round()) for one in place}
    assert len(places) > 30


@pytest.mark.parametrize(("prior", "guide"), PRIORS)
@pytest.mark.parametrize(
    ("adversarial", "average"),
    [("non_saturating", "responses"), ("as_printed", "losses"), ("as_printed", "responses")],
)
def test_each_network_descends_its_own_loss(prior, guide, adversarial, average):
    config = {"prior": prior, "noise_guide": guide, "adversarial": adversarial, "average": average}
    model, reference = (small(lambda_p=0.1, **config) for _ in range(2))
    data = batch()
    tissue = data["image"][::2]
    real = data["image"][1::2]
    lesion, mask = place_lesion(real, data["mask"][1::2], reference._draws(real, 0))
    shown = reference._prior(tissue, lesion, 0)
    channels = tf.concat([tissue, tf.where(mask > 0, shown, tissue), mask], -1) * 2 - 1
    right, below = (tf.roll(mask, -1, axis) for axis in (2, 1))
    touching = tf.concat([tf.maximum(mask, below), tf.maximum(mask, right)], -1)
    whole = np.array((1 - mask) * (1 - right) * (1 - below))
    whole[:, -1] = whole[:, :, -1] = 0

    def probability(image):
        return respond(reference.discriminator(image), average)

    def gradients(image):
        return tf.concat(tf.image.image_gradients(image), -1)

    def length(vectors):
        return tf.sqrt(tf.reduce_sum(vectors**2, -1, keepdims=True) + 1e-14)

    def mean_over(region, values):
        return tf.reduce_sum(region * values, [1, 2, 3]) / tf.reduce_sum(region, [1, 2, 3])

    def seamless(image):
        is_tissue = length(gradients(tissue)) > length(gradients(lesion))
        v = tf.where(is_tissue, gradients(tissue), gradients(lesion))
        return tf.sqrt(2 * mean_over(touching, (gradients(image) - v) ** 2))

    def background(image):
        change = length(gradients(image)) - length(gradients(tissue))
        return mean_over(1 - mask, tf.abs(image - tissue)) + tf.sqrt(mean_over(whole, change**2))

    def blend():
        return reference.generator(channels, training=True)

    def seamless_term():
        return tf.constant(0.0) if guide == "none" else tf.reduce_mean(seamless(blend() / 2 + 0.5))

    def background_term():
        return tf.reduce_mean(background(blend() / 2 + 0.5))

    def p_real():
        return probability(real * 2 - 1)

    def p_fake():
        return probability(blend())

    assert_descends(
        model,
        reference,
        data,
        {
            "seamless": seamless_term,
            "background": background_term,
            "p_real": lambda: tf.reduce_mean(p_real()),
            "p_fake": lambda: tf.reduce_mean(p_fake()),
        },
        generator=lambda: (
            deceive(p_fake(), adversarial) + 0.1 * (seamless_term() + background_term())
        ),
        discriminator=lambda: tell_apart(p_real(), p_fake()),
    )


def test_the_order_of_lesions_and_tissue_in_a_batch_does_not_matter():
    data = batch(2)
    turned = {name: tf.gather(values, [1, 0, 3, 2]) for name, values in data.items()}
    first, again = (small().train_step(each) for each in (data, turned))
    for name, value in first.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-5, err_msg=name)


def test_panels_show_lesions_in_the_tissue_that_is_given_or_in_their_own():
    data = batch(3)
    tissue = np.full((2, SIZE, SIZE, 1), 0.25, np.float32)
    model = Blending(small().config, SIZE, tissue)
    panels = model.sample(data)
    assert np.all(panels["tissue"] == 0.25)
    expected = np.where(data["mask"] > 0, data["image"], np.float32(0.25))
    np.testing.assert_array_equal(panels["pasted"], expected)
    np.testing.assert_array_equal(small().sample(data)["tissue"], data["image"][:, :, ::-1])


def test_without_prior_the_lesion_makes_no_difference_but_its_place_does():
    model = small(prior="noise")
    data = batch()
    tissue = data["image"][::2]
    mask = data["mask"][1::2]
    one, other = (
        model.blend(paste(tissue, tf.fill(tissue.shape, value), mask)) for value in (0.1, 0.9)
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - model.blend(paste(tissue, tissue, tf.reverse(mask, [1, 2])))).max() > 1e-3
