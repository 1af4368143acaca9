"""The mask GAN's equations, and its masks: cleaned, measured, compared."""

import numpy as np
import pytest
import tensorflow as tf
from skimage import measure as regions

from tests.models.every import draw_mask, make_random
from tests.updates import assert_descends, deceive, respond, tell_apart
from tfmammo.models import mask_gan
from tfmammo.models.mask_gan import (
    Plausibility,
    clean,
    distances,
    diversity,
    find_nearest,
    fit_plausibility,
    is_plausible,
    measure,
)
from tfmammo.nn.layers import sample_latent_noise

SIZE = 16


def small(**config):
    return make_random("mask_gan", SIZE, kernel=3, **config)


def discs(count=4, seed=1, size=SIZE):
    rng = np.random.default_rng(seed)
    radii = rng.uniform(size / 6, size / 3, (count, 1, 1))
    centres = rng.uniform(0.45 * size, 0.55 * size, (2, count, 1, 1))
    rows, cols = np.indices((size, size))
    return (np.hypot(rows - centres[0], cols - centres[1]) < radii).astype(np.uint8)[
        ..., np.newaxis
    ]


@pytest.mark.parametrize("adversarial", ["non_saturating", "as_printed"])
def test_each_network_descends_its_own_loss(adversarial):
    gan, reference = (small(adversarial=adversarial) for _ in range(2))
    data = {"mask": tf.constant(discs(), tf.float32)}
    z = reference.draw(4)

    def real():
        return respond(reference.discriminator(data["mask"] * 2 - 1, training=True))

    def fake():
        return respond(
            reference.discriminator(reference.generator(z, training=True), training=True)
        )

    assert_descends(
        gan,
        reference,
        data,
        {"p_real": lambda: tf.reduce_mean(real()), "p_fake": lambda: tf.reduce_mean(fake())},
        generator=lambda: deceive(fake(), adversarial),
        discriminator=lambda: tell_apart(real(), fake()),
    )


def test_noise_is_uniform_and_of_its_seed():
    many = sample_latent_noise(1000, 5, 7)
    np.testing.assert_array_equal(many, sample_latent_noise(1000, 5, 7))
    assert -1 <= many.min() < 0 < many.max() <= 1 and many.mean() == pytest.approx(0, abs=0.05)
    assert many.std() == pytest.approx(3**-0.5, rel=0.05)


def test_panels_show_the_training_mask_nearest_to_each():
    references = discs(7)
    gan = small()
    gan.references = references
    panels = gan.sample({"mask": tf.constant(discs(3), tf.float32)})
    np.testing.assert_array_equal(panels["cleaned"], clean(panels["generated"].numpy()))
    _, nearest = find_nearest(panels["cleaned"].numpy().astype(np.uint8), references)
    np.testing.assert_array_equal(panels["nearest"], references[nearest])


def test_cleaning_by_hand():
    rows = [
        "........",
        ".####..#",
        ".#..#...",
        ".#..#...",
        ".####...",
        ".....#..",
        "#.......",
        "##......",
    ]
    mask = draw_mask(*rows)[np.newaxis]
    rows[1:4] = [".####..."] * 3
    expected = draw_mask(*rows[:6], "........", "........")[np.newaxis]
    cleaned = clean(mask * 0.4 + 0.2, median=1)  # 0.6 and 0.2
    assert cleaned.dtype == np.uint8
    np.testing.assert_array_equal(cleaned, expected)
    assert not clean(mask * 0.5, median=1).any(), "nothing is above 0.5"
    np.testing.assert_array_equal(clean(mask * 0.5, threshold=0.4, median=1), expected)


def test_specks_and_teeth_are_smoothed_before_regions_are_counted():
    square = np.zeros((1, 40, 40, 1), np.uint8)
    square[:, 10:30, 10:30] = 1
    frayed = square.copy()
    frayed[:, 9, 11:29:3] = 1  # teeth of one pixel
    frayed[:, 2:7, 2:4] = 1  # a speck of 10 px
    assert not clean(frayed[:, :8, :8]).any()
    # A pixel stays where 13 of the 25 about it are mask: 9 at a corner, 12 beside it, 15 elsewhere
    # along the edge.
    for row, col in np.argwhere(clean(frayed)[0, ..., 0] != square[0, ..., 0]):
        from_corner = [min(abs(place - 10), abs(place - 29)) for place in (row, col)]
        assert sorted(from_corner) in ([0, 0], [0, 1])


def test_measures_by_hand_and_against_scikit_image():
    square, cross, empty = np.zeros((3, 12, 12, 1), np.uint8)
    square[2:6, 3:9] = 1
    cross[5:7, 1:11] = cross[1:11, 5:7] = 1
    measures = measure(np.stack([square, cross, empty]))
    np.testing.assert_allclose(measures["area"], [24 / 144, 36 / 144, 0])
    np.testing.assert_allclose(measures["extent"], [1, 0.36, 0])
    np.testing.assert_allclose(measures["solidity"][[0, 2]], [1, 0])
    blobs = clean(np.random.default_rng(1).random((10, 32, 32, 1)) ** 0.7)
    measures = measure(blobs)
    for i, blob in enumerate(blobs[..., 0]):
        (region,) = regions.regionprops(blob.astype(int))
        assert measures["area"][i] == region.area / 1024
        assert measures["extent"][i] == pytest.approx(region.extent)
        # what is on the hull's edge is counted differently
        assert measures["solidity"][i] == pytest.approx(region.solidity, rel=0.06)


def test_limits_are_quantiles_of_the_training_masks():
    masks = np.zeros((5, 20, 20, 1), np.uint8)
    for i, mask in enumerate(masks):
        mask[2 : 4 + i, 2:12] = 1  # 20 to 60 px, each solid
    limits = fit_plausibility(masks, share=0.5)
    assert limits == Plausibility(area=(30 / 400, 50 / 400), solidity=(1, 1), extent=(1, 1))
    assert Plausibility.model_validate_json(limits.model_dump_json()) == limits
    assert is_plausible(masks, limits).tolist() == [False, True, True, True, False]
    assert is_plausible(masks, fit_plausibility(masks, share=1)).all()


def test_what_is_not_plausible():
    good, edge, thin, empty = np.zeros((4, 20, 20, 1), np.uint8)
    good[5:11, 5:11] = 1
    edge[0:6, 5:11] = 1
    thin[2:18, 2] = thin[2, 2:18] = 1  # of nearly the same area
    limits = Plausibility(area=(0, 0.2), solidity=(0.9, 1), extent=(0.5, 1))
    edges = [np.rot90(edge, side) for side in range(4)]
    found = is_plausible(np.stack([good, thin, empty, *edges]), limits)
    assert found.tolist() == [True] + [False] * 6


def test_distances_by_hand(monkeypatch):
    monkeypatch.setattr(mask_gan, "BLOCK", 2)  # so that several blocks are needed
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (3, 6, 6, 1)).astype(np.uint8)
    references = rng.integers(0, 2, (5, 6, 6, 1)).astype(np.uint8)
    masks[1] = references[4] = 0
    found = distances(masks, references)
    for (i, j), distance in np.ndenumerate(found):
        total = float(masks[i].sum() + references[j].sum())
        expected = 1 - 2 * np.sum(masks[i] & references[j]) / total if total else 0
        assert distance == pytest.approx(expected, abs=1e-6)
    distance, index = find_nearest(masks, references)
    assert index[1] == 4 and distance[1] == 0
    np.testing.assert_array_equal(distance, found.min(axis=1))
    np.testing.assert_allclose(find_nearest(references, references)[0], 0, atol=1e-6)


def test_diversity_by_hand():
    masks = np.zeros((3, 4, 4, 1), np.uint8)
    masks[0, :2] = 1
    masks[1, :2] = 1
    masks[2, 1:3] = 1
    assert diversity(masks) == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert diversity(masks[:2]) == 0 and diversity(masks[:1]) == 0
