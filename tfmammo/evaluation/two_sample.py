"""Can a network tell synthetic patches from real ones? A classifier two-sample test.

If two sets are of one distribution, no classifier is better than chance on patches that it was not
trained on. How much better it is says how far apart the sets are, whatever the classifier looks at.
An area of 0.5 under the ROC curve therefore means that this small network, with this many patches,
can't tell them apart, and no more. Areas compare only between sets of about the same size.

Source: Lopez-Paz and Oquab, Revisiting classifier two-sample tests (2017), section 3. Deviations:
the area under the ROC curve in place of the accuracy; cross-validation in place of one held-out
half, because patches are few; folds by patient, because patches of one patient are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from tfmammo.data.preprocess import resize_image, resize_mask
from tfmammo.metrics.blending import check_patches
from tfmammo.metrics.resampling import jackknife_area
from tfmammo.metrics.significance import FEWEST_PATIENTS, Estimate
from tfmammo.nn.optimization import Adam

Images = NDArray[np.floating]
Masks = NDArray[np.generic]
Groups = NDArray[np.str_]

FILTERS = (16, 24, 32, 32)  # of convolutions that halve a patch each
HALF = 8  # real patches in a batch, and made ones
BLUR = 1.0  # px, standard deviation
LEARNING_RATE = 3e-3
TURNS = 8  # quarter turns and mirror images of a square
MIN_SIZE = 2 ** len(FILTERS)  # px


@dataclass(frozen=True, eq=False)
class TwoSample:
    """The result of a classifier two-sample test.

    Attributes:
        real: Logits of being made, of the real patches, float64 [n].
        made: The same of the made patches, float64 [m].
        real_folds: The fold, and so the network, that scored each real patch, int [n].
        made_folds: The same of the made patches, int [m].
    """

    real: NDArray[np.float64]
    made: NDArray[np.float64]
    real_folds: NDArray[np.intp]
    made_folds: NDArray[np.intp]

    def measure_area(
        self, rows: NDArray[np.intp], made_rows: NDArray[np.intp] | None = None
    ) -> float:
        """Compute the area over some rows of the real and the made patches, for given networks.

        It is the probability that a made patch scores higher than a real one, both unseen and
        scored by the same network, as networks have no common scale; 0.5: they do not differ to it.
        Two sets made from the same real patches are compared by it, as their folds are the same.
        NaN where no network scored patches of both kinds.

        Args:
            rows: Of the real patches.
            made_rows: Of the made ones; None: the same.
        """
        if made_rows is None:
            made_rows = rows
        pairs = self.real_folds[rows][:, None] == self.made_folds[made_rows]
        won = (1 + np.sign(self.made[made_rows] - self.real[rows][:, None])) / 2  # ties: one half
        return float(won[pairs].mean()) if pairs.any() else np.nan


def two_sample(
    real: Images,
    made: Images,
    real_groups: Groups,
    made_groups: Groups,
    real_masks: Masks,
    made_masks: Masks,
    *,
    folds: int = 5,
    seed: int = 0,
    size: int = 128,
    steps: int = 200,
) -> TwoSample:
    """Train a small network to tell made patches from real ones, and score unseen patients.

    This is cross-validated by patient. The network computes in float32 whatever the precision
    policy, on images and masks, and neither uses nor changes any global state or random numbers of
    Keras. Training patches are turned and mirrored at random; a score is the mean over all eight
    ways.

    Args:
        real: float [n, s, s, 1] in [0, 1].
        made: float [m, s, s, 1] in [0, 1].
        real_groups: The patient of each real patch, str [n]; none is in training and test at once.
        made_groups: The patient of each made patch, str [m]. For a lesion blended into another
            patient's tissue, name the lesion's patient: the network could recognise the lesion.
        real_masks: {0, 1} [n, s, s, 1].
        made_masks: {0, 1} [m, s, s, 1].
        folds: Number of networks trained.
        seed: Seed of weights and batches.
        size: px that patches are resampled to.
        steps: Training steps, of 16 patches each, half of them real.

    Raises:
        ValueError: Unequal lengths or shapes, other values, too few patients, a fold without real
            or made patches, or a size below 16 px.

    Source:
        Lopez-Paz and Oquab (2017), section 3.
    """
    check_patches(real_masks, real=real)
    check_patches(made_masks, made=made)
    sizes = (len(real), len(made)), (len(real_groups), len(made_groups))
    if sizes[0] != sizes[1]:
        raise ValueError(f"{sizes[0]} real and made patches need as many groups, not {sizes[1]}")
    if size < MIN_SIZE:
        raise ValueError(f"patches of {size} px are too small for the network, it needs {MIN_SIZE}")
    labels = np.repeat([0, 1], [len(real), len(made)])
    groups = np.concatenate([real_groups, made_groups])
    inputs = np.concatenate(
        [_make_inputs(real, real_masks, size), _make_inputs(made, made_masks, size)]
    )
    scores = np.empty(len(labels))
    fold_of = np.empty(len(labels), np.intp)
    classifier = _Classifier(size, seed)
    for fold, (train, test) in enumerate(_split(labels, groups, folds)):
        shift = inputs[train].mean(axis=(0, 1, 2))
        scale = np.maximum(inputs[train].std(axis=(0, 1, 2)), 1e-6)
        random = np.random.default_rng([seed, fold])
        classifier.fit((inputs[train] - shift) / scale, labels[train], steps, random)
        scores[test] = classifier.score((inputs[test] - shift) / scale)
        fold_of[test] = fold
    is_made = labels == 1
    return TwoSample(scores[~is_made], scores[is_made], fold_of[~is_made], fold_of[is_made])


def estimate_area(
    real: Images,
    made: Images,
    real_groups: Groups,
    made_groups: Groups,
    *,
    size: int,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate the AUC of a classifier of two sets of images without masks; see `two_sample`.

    With fewer than FEWEST_PATIENTS on a side all are NaN.

    Args:
        real: float [n, s, s, 1] in [0, 1].
        made: float [m, s, s, 1] in [0, 1].
        real_groups: Patients, str [n].
        made_groups: Patients, str [m].
        size: px that images are resampled to.
        level: Confidence level, in (0, 1).
        seed: Of the classifier.
    """
    patients = min(len(set(groups.tolist())) for groups in (real_groups, made_groups))
    if patients < FEWEST_PATIENTS:
        return Estimate(np.nan)
    test = two_sample(
        real,
        made,
        real_groups,
        made_groups,
        np.zeros_like(real),
        np.zeros_like(made),
        folds=min(5, patients // 2),
        seed=seed,
        size=size,
    )
    count = len(real)

    def measure_area(rows: NDArray[np.intp]) -> float:
        return test.measure_area(rows[rows < count], rows[rows >= count] - count)

    groups = np.concatenate([real_groups, made_groups])
    return jackknife_area(measure_area, groups, patients, level)


def _split(
    labels: NDArray[np.intp], groups: Groups, folds: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    patients = min(len(np.unique(groups[labels == side])) for side in (0, 1))
    if not 2 <= folds <= patients:
        raise ValueError(
            f"{folds} folds can't be made of {patients} patients with real, or with made, patches"
        )
    for train, test in StratifiedGroupKFold(folds).split(labels, labels, groups):
        if min(len(np.unique(labels[rows])) for rows in (train, test)) < 2:
            raise ValueError(f"one of {folds} folds has real or made patches alone: take fewer")
        yield train, test


def _build_network(size: int, seed: int) -> keras.Model:
    """Build the network: float32 [n, size, size, 3] -> logit float32 [n, 1]; 20,569 parameters."""
    layers = keras.layers

    def start(number: int) -> keras.initializers.Initializer:
        return keras.initializers.HeNormal(seed + number)

    # names of its own: Keras counts those that it makes up
    x = patch = keras.Input((size, size, 3), dtype="float32", name="patch")
    for number, filters in enumerate(FILTERS):
        options = {"kernel_initializer": start(number), "dtype": "float32"}
        x = layers.Conv2D(filters, 3, 2, "same", name=f"convolution_{number}", **options)(x)
        x = layers.BatchNormalization(momentum=0.9, dtype="float32", name=f"normalised_{number}")(x)
        x = layers.ReLU(dtype="float32", name=f"rectified_{number}")(x)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="mean")(x)
    options = {"kernel_initializer": start(len(FILTERS)), "dtype": "float32"}
    return keras.Model(patch, layers.Dense(1, name="logit", **options)(x), name="two_sample")


class _Classifier:
    """The network and its training.

    Every fold starts from the same weights, so that the training step is traced only once.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.network = _build_network(size, seed)
        self.optimizer = Adam(LEARNING_RATE)
        self.optimizer.build(self.network.trainable_variables)
        self.start = self.network.get_weights()
        self.step = tf.function(
            self._step, input_signature=[tf.TensorSpec([2 * HALF, size, size, 3], tf.float32)]
        )

    def fit(
        self,
        inputs: NDArray[np.float32],
        labels: NDArray[np.intp],
        steps: int,
        random: np.random.Generator,
    ) -> None:
        """Train on batches of half real, half made patches; the rate falls to 0 by a cosine."""
        self.network.set_weights(self.start)
        for variable in self.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        sides = [np.flatnonzero(labels == side) for side in (0, 1)]
        for number in range(steps):
            self.optimizer.learning_rate.assign(
                LEARNING_RATE * (1 + np.cos(np.pi * number / steps)) / 2
            )
            rows = np.concatenate(
                [random.choice(side, HALF, replace=len(side) < HALF) for side in sides]
            )
            self.step(tf.constant(_turn(inputs[rows], random.integers(TURNS, size=2 * HALF))))

    def score(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Average the logits of being made over the eight ways of each patch, float64 [n]."""
        views = (tf.constant(_turn(inputs, np.full(len(inputs), turn))) for turn in range(TURNS))
        return np.mean(
            [np.asarray(self.network(view, training=False))[:, 0] for view in views],
            axis=0,
            dtype=np.float64,
        )

    def _step(self, batch: tf.Tensor) -> None:
        truth = tf.repeat([0.0, 1.0], HALF)
        with tf.GradientTape() as tape:
            logit = self.network(batch, training=True)[:, 0]
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(truth, logit))
        self.optimizer.apply(
            tape.gradient(loss, self.network.trainable_variables), self.network.trainable_variables
        )


def _turn(inputs: NDArray[np.float32], turns: NDArray[np.integer]) -> NDArray[np.float32]:
    """Turn or mirror each patch in one of the eight ways of a square.

    The bits of its number transpose it, and reverse rows and columns.
    """
    transpose, rows, cols = (((turns >> bit) % 2 == 1)[:, None, None, None] for bit in range(3))
    inputs = np.where(transpose, inputs.swapaxes(1, 2), inputs)
    inputs = np.where(rows, inputs[:, ::-1], inputs)
    return np.where(cols, inputs[:, :, ::-1], inputs)


def _make_inputs(images: Images, masks: Masks, size: int) -> NDArray[np.float32]:
    """Stack image, what a blur removes from it, and mask: float32 [n, size, size, 3].

    The second channel shows grain and seams, which are faint compared with a breast's greys.
    """
    inputs = np.empty((len(images), size, size, 3), np.float32)
    for row, (image, mask) in enumerate(
        zip(images.astype(np.float32), masks.astype(np.uint8), strict=True)
    ):
        small = resize_image(image, size, size)[..., 0]
        inputs[row, ..., 0] = small
        inputs[row, ..., 1] = small - cv2.GaussianBlur(small, (0, 0), BLUR)
        inputs[row, ..., 2:] = resize_mask(mask, size, size)
    return inputs
