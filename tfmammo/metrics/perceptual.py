"""Realism and variety of synthetic patches: LPIPS, FID, KID, MS-SSIM, nearest training patches.

The distances between sets (FID, KID) take features of any network, one row a patch. Row i of real
and synthetic features may belong together (a mass rendered into the tissue of real patch i): the
intervals keep such pairs together, and `mmd` leaves them out. Numbers of networks with random
weights compare only with each other, at best: a network's `note` says so. Its `source` names
weights and SHA-256.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.errors import name_key
from tfmammo.nn import pretrained, published

Floats = NDArray[np.floating]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11  # px of SSIM's Gaussian
# A patch counts as a copy if its distance to training patches is below this part of the median of
# real held-out patches.
COPY = 0.5
BATCH = 16


class LPIPS:
    """Learned perceptual image patch similarity, version 0.1, on AlexNet; grey is repeated to RGB.

    d(a, b) = sum over the five feature maps of the mean over positions of sum_c w_c (a_c - b_c)^2,
    both of unit length at every position.

    Args:
        alexnet: Weights of AlexNet, as for `pretrained.alexnet`; WeightsError if they can't be had.
        heads: Weights w_c, as for `pretrained.lpips_heads`; all w_c = 1 give larger numbers.

    Source:
        Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric (2018);
        equal to the `lpips` package 0.1.4 (net="alex") to 1e-5.
    """

    def __init__(self, alexnet: str = "imagenet", heads: str = "published") -> None:
        with name_key("alexnet"):
            self.network = pretrained.alexnet(alexnet)
        with name_key("heads"):
            self.heads = pretrained.lpips_heads(heads)
        backbone = published.identify("alexnet", alexnet)
        calibration = published.identify("LPIPS heads", heads)
        missing = {"random AlexNet": backbone, "no calibrated heads": calibration}
        self.note = ", ".join(note for note, weights in missing.items() if not weights.sha256)
        self.source = {"AlexNet": backbone, "heads": calibration}

    def distance(self, a: Floats, b: Floats) -> NDArray[np.float64]:
        """Compute the distance of every image of `a` to the same row of `b`, float64 [n].

        Both are float [n, s, s, 1] in [0, 1], s from 32 px up.
        """
        if a.shape != b.shape:
            raise ValueError(f"images must be of one shape, not {a.shape} and {b.shape}")
        parts = [np.empty(0)]
        for one, other in zip(_split_batches(a), _split_batches(b), strict=True):
            levels = zip(self._normalize(one), self._normalize(other), self.heads, strict=True)
            parts.append(
                np.sum(
                    [np.square(x - y).mean(axis=(1, 2)) @ head for x, y, head in levels],
                    axis=0,
                    dtype=np.float64,
                )
            )
        return np.concatenate(parts)

    def matrix(self, a: Floats, b: Floats) -> NDArray[np.float64]:
        """Compute the distance of every image of `a` to every image of `b`, float64 [n, m].

        Products of feature vectors give it, exact to about 1e-5. An image of 256 px takes 2.5 MB
        meanwhile.
        """
        distances = np.zeros((len(a), len(b)))
        for x, y, head in zip(self._flatten(a), self._flatten(b), self.heads, strict=True):
            # A head may be negative, though no published one is.
            signs = np.tile(np.sign(head), x.shape[1] // len(head))
            first, second = (np.einsum("ij,j,ij->i", z, signs, z, dtype=np.float64) for z in (x, y))
            distances += first[:, np.newaxis] + second - 2.0 * ((x * signs) @ y.T)
        return distances

    def _flatten(self, images: Floats) -> list[NDArray[np.float32]]:
        """Flatten each feature map into vectors whose squared distance is LPIPS."""
        batches = []
        for part in _split_batches(images):
            maps = zip(self._normalize(part), self.heads, strict=True)
            batches.append(
                [
                    (unit * np.sqrt(np.abs(head) / (unit.shape[1] * unit.shape[2]))).reshape(
                        len(unit), -1
                    )
                    for unit, head in maps
                ]
            )
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def _normalize(self, images: Floats) -> list[NDArray[np.float32]]:
        maps = [np.asarray(level) for level in self.network(images, training=False)]
        return [level / (np.linalg.norm(level, axis=-1, keepdims=True) + 1e-10) for level in maps]


class Inception:
    """Inception-v3's pooled features, for FID and KID, with weights of `pretrained.inception`."""

    def __init__(self, weights: str = "imagenet") -> None:
        with name_key("inception"):
            self.network = pretrained.inception(weights)
        self._call = tf.function(
            lambda images: self.network(images, training=False),
            input_signature=[tf.TensorSpec([None, None, None, 1], tf.float32)],
        )
        self.source = published.identify("inception", weights)
        self.note = "" if self.source.sha256 else "random Inception"

    def features(self, images: Floats) -> NDArray[np.float32]:
        """Compute features: float [n, s, s, 1] in [0, 1] -> float32 [n, 2048]."""
        return np.concatenate(
            [self._call(tf.constant(part)).numpy() for part in _split_batches(images)]
        )


def fid(real: Floats, synthetic: Floats) -> float:
    """Compute the Fréchet distance of two sets of features, each taken for a Gaussian.

    |m_1 - m_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

    The trace of the root is the sum of the singular values of A B', where A'A = C_1 and B'B = C_2,
    so few patches of many features take no time. The distance is biased upwards, the more the fewer
    patches there are: compare sets of one size only.

    Args:
        real: float [n, d], n at least 2.
        synthetic: float [m, d], m at least 2.

    Source:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium (2017).
    """
    _check_features(real, synthetic)
    roots = [_factorize(np.asarray(features, np.float64)) for features in (real, synthetic)]
    shift = np.square(
        np.mean(real, axis=0, dtype=np.float64) - np.mean(synthetic, axis=0, dtype=np.float64)
    ).sum()
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(max(0.0, shift + sum(np.square(root).sum() for root in roots) - 2 * shared))


def mmd(
    real: Floats,
    synthetic: Floats,
    real_patients: NDArray[np.str_],
    synthetic_patients: NDArray[np.str_],
) -> float:
    """Compute the unbiased squared maximum mean discrepancy of two sets of features.

    The kernel is KID's, (x.y / d + 1)^3. The value is 0 on average where both are of one
    distribution, so it may be negative. Kernels of two patches of one patient are excluded, because
    they would bias it.

    Args:
        real: float [n, d], n at least 2.
        synthetic: float [m, d], m at least 2.
        real_patients: Patients, str [n].
        synthetic_patients: Patients, or those of the real patches that the synthetic ones were made
            of, str [m].

    Returns:
        The value; NaN where a set is of one patient.

    Source:
        Gretton et al., A kernel two-sample test (2012), Eq. 3; the kernel is of Binkowski et al.,
        Demystifying MMD GANs (2018).
    """
    _check_features(real, synthetic)
    x = np.asarray(real, np.float64), real_patients
    y = np.asarray(synthetic, np.float64), synthetic_patients
    xx, yy, xy = (
        average_apart((a @ b.T / real.shape[1] + 1) ** 3, p, q)
        for (a, p), (b, q) in ((x, x), (y, y), (x, y))
    )
    return xx + yy - 2 * xy


def average_apart(
    matrix: NDArray[np.float64], patients: NDArray[np.str_], others: NDArray[np.str_]
) -> float:
    """Average float [n, m] over the pairs of different patients, str [n] and [m]; NaN of none."""
    apart = patients[:, np.newaxis] != others
    return float(matrix[apart].mean()) if apart.any() else np.nan


def ms_ssim(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Compute the multi-scale structural similarity of pairs of images, float64 [n] in [0, 1].

    The higher it is among random pairs of one set, the less various is the set. Images are float
    [n, s, s, 1] in [0, 1], s from 11 px up. Below 176 px they have fewer than five scales, whose
    exponents are stretched to the same sum. Numbers of different scales do not compare.

    Source:
        Wang, Simoncelli and Bovik (2003); Odena et al., AC-GAN (2017), for its use.
    """
    if a.shape != b.shape:
        raise ValueError(f"images must be of one shape, not {a.shape} and {b.shape}")
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"patches below {WINDOW} px have no SSIM")
    scales = min(len(MS_SSIM_WEIGHTS), 1 + int(np.log2(min(a.shape[1:3]) / WINDOW)))
    weights = (
        np.array(MS_SSIM_WEIGHTS[:scales]) * sum(MS_SSIM_WEIGHTS) / sum(MS_SSIM_WEIGHTS[:scales])
    )
    parts = [np.empty(0, np.float32)]
    for one, other in zip(_split_batches(a), _split_batches(b), strict=True):
        parts.append(
            tf.image.ssim_multiscale(
                one, other, 1.0, power_factors=weights.tolist(), filter_size=WINDOW
            ).numpy()
        )
    return np.concatenate(parts).astype(np.float64)


def draw_pairs(n: int, count: int, seed: int = 0) -> NDArray[np.intp]:
    """Draw `count` different unordered pairs of n things, or all there are: intp [pairs, 2]."""
    rows, cols = np.triu_indices(n, 1)
    pairs = np.random.default_rng(seed).permutation(len(rows))[:count]
    return np.stack([rows[pairs], cols[pairs]], axis=1)


def find_nearest(
    queries: Floats,
    pool: Floats,
    allowed: NDArray[np.bool_] | None = None,
    weights: Floats | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Find the nearest item of the pool for each query.

    Args:
        queries: Images or features, float [n, ...].
        pool: Of the same kind, float [m, ...].
        allowed: Which items count for which query, bool [n, m]; None: all.
        weights: Of the queries' values, float [n, ...]. With a mask only what is inside counts.

    Returns:
        (distance, index): float64 [n], the root of the (weighted) mean squared difference, and intp
        [n]; infinite and -1 where nothing is allowed, or all weights are 0.
    """
    flat = [np.asarray(values, np.float32).reshape(len(values), -1) for values in (queries, pool)]
    weight = (
        np.ones_like(flat[0])
        if weights is None
        else np.asarray(weights, np.float32).reshape(flat[0].shape)
    )
    # Squared distances, up to a constant for each query.
    squares = weight @ np.square(flat[1]).T - 2 * (weight * flat[0]) @ flat[1].T
    if allowed is not None:
        squares[~allowed] = np.inf
    distance = np.full(len(queries), np.inf)
    index = np.full(len(queries), -1, np.intp)
    for row in np.flatnonzero(np.isfinite(squares).any(axis=1) & weight.any(axis=1)):
        index[row] = squares[row].argmin()
        # Computed again, because large sums above may have cancelled.
        difference = flat[0][row].astype(np.float64) - flat[1][index[row]]
        distance[row] = np.sqrt(np.average(np.square(difference), weights=weight[row]))
    return distance, index


def find_nearest_turned(
    images: Floats,
    pool: Floats,
    allowed: NDArray[np.bool_] | None = None,
    masks: Floats | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Find the nearest patches in pixels, in the eight orientations that training shows.

    Otherwise as `find_nearest`; `masks` say where pixels count.
    """
    best = np.full(len(images), np.inf)
    index = np.full(len(images), -1, np.intp)
    for quarter, step in product(range(4), (1, -1)):  # a step of -1 mirrors
        turned_masks = None if masks is None else _turn(masks, quarter, step)
        turned = _turn(images, quarter, step)
        distance, turned_index = find_nearest(turned, pool, allowed, turned_masks)
        nearer = distance < best
        best[nearer] = distance[nearer]
        index[nearer] = turned_index[nearer]
    return best, index


def copy_ratio(distances: Floats, reference: Floats) -> NDArray[np.float64]:
    """Compute distances to training patches over the median of real held-out patches' distances.

    Below COPY a patch is called a copy. In pixels, a blurred patch is nearer to everything than a
    real one: ratios somewhat below 1 are no sign of copies.

    Args:
        distances: Distances by `find_nearest`, of the patches [n].
        reference: Distances by `find_nearest`, of real patches that were not trained on.

    Returns:
        float64 [n]; NaN where there is no distance.
    """
    finite = np.asarray(reference)[np.isfinite(reference)]
    median = np.median(finite) if finite.size else np.nan
    values = np.where(np.isfinite(distances), distances, np.nan)
    return np.divide(values, median, out=np.full(len(values), np.nan), where=bool(median > 0))


def _turn(images: Floats, quarter: int, step: int) -> Floats:
    return np.rot90(images[:, :, ::step], quarter, axes=(1, 2))


def _split_batches(images: Floats) -> list[NDArray[np.float32]]:
    if images.ndim != 4 or images.shape[-1] != 1:
        raise ValueError(f"images must be [n, s, s, 1], not {images.shape}")
    if not np.all((images >= 0) & (images <= 1)):
        raise ValueError("images must be between 0 and 1")
    return [np.asarray(images[i : i + BATCH], np.float32) for i in range(0, len(images), BATCH)]


def _factorize(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A [min(n, d), d] with A'A = the covariance."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return (
        np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
    )


def _check_features(real: Floats, synthetic: Floats) -> None:
    shapes = real.shape, synthetic.shape
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features must be [n, d] and [m, d], not {shapes[0]} and {shapes[1]}")
    if min(len(real), len(synthetic)) < 2:
        raise ValueError("features must have two rows at least")
