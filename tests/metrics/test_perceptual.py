"""Measures of realism: LPIPS against the lpips package, FID against scipy's root, KID by
hand, planted copies.
"""

import json

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from tests.image_pairs import make_image_pairs
from tfmammo.metrics import perceptual
from tfmammo.metrics.perceptual import (
    LPIPS,
    copy_ratio,
    draw_pairs,
    fid,
    find_nearest,
    find_nearest_turned,
    mmd,
    ms_ssim,
)
from tfmammo.nn import pretrained

WIDTHS = (64, 192, 384, 256, 256)


@pytest.fixture(scope="module")
def pairs():
    return make_image_pairs()


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """Random AlexNet with the random heads of make_pretrained_golden.py, some of them negative."""
    path = tmp_path_factory.mktemp("heads") / "heads.npz"
    random = np.random.default_rng(1)
    np.savez(
        path,
        **{
            f"lin{i}/kernel": random.normal(0.5, 0.5, width).astype(np.float32)
            for i, width in enumerate(WIDTHS)
        },
    )
    return LPIPS("none", str(path))


@pytest.fixture
def features():
    """A function (n, d) -> rows of a correlated normal distribution, off the origin."""
    random = np.random.default_rng(0)

    def make(n, d=8, shift=0.0):
        mixture = np.random.default_rng(9).normal(0, 1, (d, d))
        return random.normal(0, 1, (n, d)) @ mixture + 0.5 + shift

    return make


def test_lpips_is_what_the_package_computes(repository, lpips, pairs):
    # made by the lpips package, see make_pretrained_golden.py
    golden = json.loads((repository / "tests/golden/pretrained.json").read_text(encoding="utf-8"))
    assert golden["versions"]["lpips"] == "0.1.4"
    np.testing.assert_allclose(lpips.distance(*pairs), golden["lpips"], atol=1e-5)
    plain = LPIPS("none", "none").distance(*pairs)
    np.testing.assert_allclose(plain, golden["lpips_without_heads"], atol=1e-5)
    a, b = pairs
    assert (lpips.distance(a, a) == 0).all()
    np.testing.assert_allclose(lpips.distance(a, b), lpips.distance(b, a), atol=1e-9)


def test_all_pairs_at_once_and_in_batches(lpips, pairs, monkeypatch):
    a, b = pairs
    expected = [[lpips.distance(a[i : i + 1], b[j : j + 1])[0] for j in range(4)] for i in range(5)]
    np.testing.assert_allclose(lpips.matrix(a, b[:4]), expected, atol=2e-5)
    monkeypatch.setattr(perceptual, "BATCH", 2)
    np.testing.assert_allclose(lpips.matrix(a, b[:4]), expected, atol=2e-5)
    np.testing.assert_allclose(lpips.distance(a[:4], b[:4]), np.diag(expected), atol=1e-6)


def test_random_weights_say_so(lpips, tmp_path):
    path = tmp_path / "alexnet.npz"
    weights = pretrained.alexnet("none").weights
    np.savez(path, **{"/".join(v.path.split("/")[-2:]): v.numpy() for v in weights})
    notes = [LPIPS("none", "none").note, lpips.note, LPIPS(str(path), "none").note]
    assert notes == ["random AlexNet, no calibrated heads", "random AlexNet", "no calibrated heads"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a, b: (a, b[:2]), "of one shape"),
        (lambda a, b: (a[..., 0], b[..., 0]), r"\[n, s, s, 1\]"),
        (lambda a, b: (a + 0.5, b), "between 0 and 1"),
        (lambda a, b: (a, b - 0.5), "between 0 and 1"),
        (lambda a, b: (np.where(a > 0.5, np.nan, a), b), "between 0 and 1"),
        (lambda a, b: (a[:, :10, :10], b[:, :10, :10]), "below 11 px"),
    ],
)
def test_bad_images(lpips, pairs, change, named):
    functions = {ms_ssim} if named == "below 11 px" else {ms_ssim, lpips.distance}
    for function in functions:
        with pytest.raises(ValueError, match=named):
            function(*change(*pairs))


@pytest.mark.parametrize(("n", "m"), [(5, 6), (40, 6), (6, 40), (200, 300)])
def test_fid_against_scipys_matrix_root(features, n, m):
    """More rows than features and fewer take different ways."""
    real = features(n)
    synthetic = features(m, shift=0.3)
    c = [np.cov(x, rowvar=False) for x in (real, synthetic)]
    root = scipy.linalg.sqrtm(c[0] @ c[1] + 0j).real  # of a singular matrix too
    expected = np.square(real.mean(0) - synthetic.mean(0)).sum() + np.trace(c[0] + c[1] - 2 * root)
    assert fid(real, synthetic) == pytest.approx(expected, rel=1e-5)
    assert fid(synthetic, real) == pytest.approx(expected, rel=1e-5)


def test_kernel_distance_by_hand():
    """k(x, y) = (x y + 1)^3 of single numbers: real 0 and 1, synthetic 1 and 2."""
    real = np.array([[0.0], [1.0]])
    synthetic = np.array([[1.0], [2.0]])
    within = 1.0 + 27.0  # k(0, 1), k(1, 2)
    patients, others = np.array(["a", "b"]), np.array(["c", "d"])
    expected = pytest.approx(within - 2 * (1 + 1 + 8 + 27) / 4)
    assert mmd(real, synthetic, patients, others) == expected
    # k(0, 2), k(1, 1)
    paired = pytest.approx(within - 2 * (1 + 8) / 2)
    assert mmd(real, synthetic, patients, patients) == paired
    twice = [np.repeat(features, 2, axis=1) for features in (real, synthetic)]
    assert mmd(*twice, patients, others) == expected, "x y is a mean over features"
    assert np.isnan(mmd(real, synthetic, np.array(["a", "a"]), others))


def test_several_patches_of_one_patient_do_not_bias_the_kernel_distance():
    """Two real sets of 25 patients with four similar patches each, drawn 60 times: 0 on average."""
    rng = np.random.default_rng(0)
    patients = [np.repeat([f"{name}{n}" for n in range(25)], 4) for name in "ab"]
    distances = []
    for _ in range(60):
        sets = [np.repeat(rng.normal(size=(25, 10)), 4, axis=0) for _ in range(2)]
        sets = [one + rng.normal(size=one.shape) for one in sets]
        distances.append(mmd(*sets, *patients))
    assert abs(np.mean(distances)) < 3 * np.std(distances) / 60**0.5


@pytest.mark.parametrize(
    "measure", [fid, lambda *sets: mmd(*sets, *(np.arange(len(x)) for x in sets))]
)
@pytest.mark.parametrize("shapes", [((1, 8), (5, 8)), ((5, 8), (5, 7)), ((8,), (5, 8))])
def test_bad_features(measure, shapes):
    with pytest.raises(ValueError, match="features"):
        measure(*(np.ones(shape) for shape in shapes))


def test_ms_ssim_at_full_and_at_small_size():
    random = np.random.default_rng(0)
    for size, scales in ((192, 5), (96, 4), (32, 2), (11, 1)):
        a = random.random((3, size, size, 1), dtype=np.float32)
        b = np.clip(a + random.normal(0, 0.3, a.shape), 0, 1).astype(np.float32)
        weights = np.array(perceptual.MS_SSIM_WEIGHTS[:scales])
        weights *= sum(perceptual.MS_SSIM_WEIGHTS) / weights.sum()
        expected = tf.image.ssim_multiscale(a, b, 1.0, power_factors=weights).numpy()
        np.testing.assert_allclose(ms_ssim(a, b), expected, atol=1e-6)
        np.testing.assert_allclose(ms_ssim(a, a), 1, atol=1e-6)
        assert (ms_ssim(a, b) < 0.95).all()


def test_random_pairs():
    assert {tuple(sorted(pair)) for pair in draw_pairs(5, 100).tolist()} == {
        (i, j) for i in range(5) for j in range(i + 1, 5)
    }
    few = draw_pairs(50, 20, seed=3)
    assert few.shape == (20, 2) and (few[:, 0] < few[:, 1]).all()
    assert len({tuple(pair) for pair in few.tolist()}) == 20
    assert draw_pairs(1, 10).shape == (0, 2)


def test_nearest_against_all_distances():
    random = np.random.default_rng(0)
    queries = random.random((7, 6, 6, 1))
    pool = random.random((9, 6, 6, 1))
    table = np.sqrt(np.square(queries[:, None] - pool[None]).mean(axis=(2, 3, 4)))
    distance, index = find_nearest(queries, pool)
    np.testing.assert_allclose(distance, table.min(axis=1), atol=1e-6)
    np.testing.assert_array_equal(index, table.argmin(axis=1))
    allowed = random.random((7, 9)) < 0.4
    allowed[3] = False
    distance, index = find_nearest(queries, pool, allowed)
    expected = np.where(allowed, table, np.inf)
    np.testing.assert_allclose(distance, expected.min(axis=1), atol=1e-6)
    assert index[3] == -1 and (np.delete(index, 3) == np.delete(expected.argmin(axis=1), 3)).all()


def test_nearest_inside_a_mask():
    random = np.random.default_rng(0)
    queries = random.random((4, 6, 6, 1))
    pool = random.random((5, 6, 6, 1))
    masks = (random.random(queries.shape) < 0.4).astype(np.uint8)
    masks[2] = 0
    pool[3] = np.where(masks[0], queries[0], 1 - queries[0])  # a copy where it counts alone
    distance, index = find_nearest(queries, pool, weights=masks)
    assert distance[0] == pytest.approx(0, abs=1e-7)
    assert (index[0], distance[2], index[2]) == (3, np.inf, -1)
    for row in (1, 3):
        inside = masks[row].astype(bool)
        table = np.sqrt(np.square(queries[row][inside] - pool[:, inside]).mean(axis=1))
        assert (distance[row], index[row]) == (pytest.approx(table.min(), abs=1e-6), table.argmin())


@pytest.mark.parametrize(
    "turn",
    [lambda x: x, lambda x: np.rot90(x, 1), lambda x: x[::-1], lambda x: np.rot90(x[:, ::-1], 3)],
)
def test_a_planted_copy_is_found_however_it_is_turned(turn):
    random = np.random.default_rng(0)
    smooth = random.random((40, 8, 8, 1)).repeat(4, axis=1).repeat(4, axis=2)
    training = smooth[:20]
    held_out = smooth[20:30]
    synthetic = smooth[30:].copy()
    synthetic[4] = np.clip(turn(training[11]) + random.normal(0, 0.02, (32, 32, 1)), 0, 1)
    distance, index = find_nearest_turned(synthetic, training)
    ratio = copy_ratio(distance, find_nearest_turned(held_out, training)[0])
    assert np.flatnonzero(ratio < perceptual.COPY).tolist() == [4] and index[4] == 11
    distances, _ = find_nearest_turned(held_out, training)
    assert (copy_ratio(distances, distances) > 0.7).all()


@pytest.mark.parametrize("turn", [lambda x: np.rot90(x, 1), lambda x: x[::-1]])
def test_a_turned_copy_is_found_where_its_mask_counts(turn):
    """The mask turns with its patch: elsewhere the copy differs from the original."""
    random = np.random.default_rng(0)
    training = random.random((6, 8, 8, 1))
    mask = np.zeros((8, 8, 1))
    mask[1:3, 2:7] = 1  # no turn maps it to itself
    copy = np.where(mask, turn(training[4]), random.random((8, 8, 1)))
    distance, index = find_nearest_turned(copy[None], training, masks=mask[None])
    assert index.tolist() == [4] and distance == pytest.approx(0, abs=1e-6)


def test_copy_ratio_by_hand():
    found = copy_ratio(np.array([1.0, 0.0, np.inf]), np.array([1.0, 2.0, 4.0, np.inf]))
    np.testing.assert_array_equal(found, [0.5, 0.0, np.nan])
    assert np.isnan(copy_ratio(np.ones(3), np.full(3, np.inf))).all()
    assert np.isnan(copy_ratio(np.ones(3), np.zeros(3))).all()
