"""Texture of models' images compared with real patches, as measures of the evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.evaluation.comparison import EvaluationConfig
from tfmammo.metrics import texture
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure

REAL = "real patches"
TWO_GREYS = "two intensities"
BLURRED = "two blurred intensities"
BLUR = 1 / 32  # standard deviation of the blur, as a part of a patch's side
HAAR = "haar_mass"
SMALLEST = 1e-6  # of the Haar band's ratio, so that an image without texture has a logarithm
PERIODS = (2, 4, 8)  # px, of the checkerboard artefacts of up to three upsampling layers
LATTICES = {f"lattice_{period}": period for period in PERIODS}
MEASURES = {
    HAAR: Measure("finest Haar band in the mass, times the real patch's", "", 1, 2),
    **{
        name: Measure(f"checkerboard of {period} px above its surroundings", "dB", 1, 1)
        for name, period in LATTICES.items()
    },
}
NOTE = (
    "Texture: a Haar band of 0.5 to 2 times the real one is wanted (geometric mean over patches), "
    "and checkerboards as weak as in real patches, near 0 dB. Differences of Haar bands are of "
    "logarithms to base 2: +1 is twice the energy."
)

Scores = dict[str, NDArray[np.float64]]


def make_two_greys(patches: Patches) -> NDArray[np.float32]:
    """Make the mean intensity of real masses inside each mask, and that of real tissue outside."""
    inside = patches.masks != 0
    levels = [
        float(patches.images[region].mean()) if region.any() else 0.0
        for region in (inside, ~inside)
    ]
    return np.where(inside, levels[0], levels[1]).astype(np.float32)


def make_baselines(patches: Patches) -> dict[str, NDArray[np.float32]]:
    """Make images without texture by the mask alone: two intensities, and the same blurred.

    L1, PSNR and SSIM reward smooth images. So a model must be closer than these.
    """
    greys = make_two_greys(patches)
    blurred = [cv2.GaussianBlur(grey, (0, 0), BLUR * grey.shape[0])[..., None] for grey in greys]
    return {TWO_GREYS: greys, BLURRED: np.stack(blurred)}


def measure(images: NDArray[np.floating], patches: Patches) -> Scores:
    """Measure the texture of each image: MEASURES -> float64 [n].

    That is the energy of the finest Haar band inside the mass over that of the real patch, and
    checkerboard artefacts in dB. NaN where a mask or the real patch has no energy, or where the
    patches' size does not suit `texture.compute_lattice`.
    """
    real = texture.compute_fine_energy(patches.images, patches.masks)
    energy = texture.compute_fine_energy(images, patches.masks)
    ratio = np.divide(energy, real, out=np.full(len(images), np.nan), where=real > 0)
    return {HAAR: ratio} | measure_lattices(images)


def average(runs: Sequence[Scores]) -> Scores:
    """Average the texture of each patch over the runs of a model, the band geometrically."""
    if len(runs) == 1:
        return runs[0]
    means = {name: np.mean([values[name] for values in runs], axis=0) for name in MEASURES}
    logarithms = [np.log(np.maximum(values[HAAR], SMALLEST)) for values in runs]
    return means | {HAAR: np.exp(np.mean(logarithms, axis=0))}


def summarize(
    scores: Mapping[str, Scores], patches: Patches, config: EvaluationConfig
) -> list[Fact]:
    """Compute means, intervals and tests over patients, and the checkerboards of real patches.

    The band's ratio is averaged, bootstrapped and tested as a logarithm to base 2, so that half and
    double weigh the same. Differences stay logarithms. A ratio below SMALLEST counts as SMALLEST.
    """
    patients = patches.patient_ids
    logarithms = {
        model: {HAAR: np.log2(np.maximum(values[HAAR], SMALLEST))}
        for model, values in scores.items()
    }
    facts = [
        replace(fact, unit="log2")
        if fact.against
        else replace(fact, value=2**fact.value, low=2**fact.low, high=2**fact.high)
        for fact in config.summarize(logarithms, patients, MEASURES)
    ]
    lattices = {
        model: {name: values[name] for name in LATTICES}
        for model, values in {**scores, REAL: measure_lattices(patches.images)}.items()
    }
    return facts + config.summarize(lattices, patients, MEASURES)


def summarize_folds(scores: Mapping[str, Scores], folds: NDArray[np.intp]) -> list[Fact]:
    """Compute the mean ratio of the Haar band in each fold, geometric as in `summarize`.

    Args:
        scores: As of `measure`, by model.
        folds: The fold of each patch, [n].
    """
    facts = []
    for model, values in scores.items():
        for fold in np.unique(folds):
            ratios = values[HAAR][(folds == fold) & np.isfinite(values[HAAR])]
            counts = {"subset": f"fold={fold}", "images": len(ratios)}
            if len(ratios):
                ratio = _average_ratios(ratios)
                facts.append(MEASURES[HAAR].make_fact("folds", model, HAAR, ratio, **counts))
    return facts


def summarize_runs(runs: Mapping[str, Sequence[Scores]]) -> list[Fact]:
    """Compute the mean ratio of the Haar band in each run of the models that have several."""
    return [
        fact
        for model, of_runs in runs.items()
        for fact in MEASURES[HAAR].list_runs(
            model, HAAR, [_average_ratios(values[HAAR]) for values in of_runs]
        )
    ]


def _average_ratios(ratios: NDArray[np.float64]) -> float:
    """Return the geometric mean of those that are known."""
    return float(np.exp2(np.nanmean(np.log2(np.maximum(ratios, SMALLEST)))))


def measure_lattices(images: NDArray[np.floating]) -> Scores:
    """Measure the checkerboard of each period in dB; NaN where the size does not suit it."""
    size = images.shape[1]
    if size % max(PERIODS) or size < 4 * max(PERIODS):
        return {name: np.full(len(images), np.nan) for name in LATTICES}
    return {name: texture.compute_lattice(images, period) for name, period in LATTICES.items()}
