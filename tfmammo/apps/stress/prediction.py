"""Test whether a stress score predicts recall on lesions that no detector saw.

A detector's stress score by a method is minus the logarithm of the contrast of 50 %: more is
better. Spearman's correlation of score and recall is over detectors. Its interval draws patients,
of the stress test and of the unseen mammograms, and fits and counts again: it shows how certain the
correlation is for these detectors. Its p-value tests whether so few detectors could be ranked alike
by chance; with fewer than five it is never small. A verdict needs both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tfmammo.apps.stress.analysis import fit_curves, name_stimulus
from tfmammo.apps.stress.config import StressConfig
from tfmammo.apps.stress.detectors import StressedDetector, read_unknown
from tfmammo.apps.stress.scoring import Trial
from tfmammo.data import datasets, sampling
from tfmammo.document import say_count
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped, stack_boxes
from tfmammo.metrics.boxes import Matches, find_spared, match
from tfmammo.metrics.detection import froc
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.significance import FEWEST_PATIENTS, holm, percentile_interval
from tfmammo.metrics.summary import BOOTSTRAP, Table, format_p

MOST_DRAWS = 300  # a draw fits one curve for each detector and method


@dataclass(frozen=True)
class Prediction:
    """How well one method's stress score predicts recall."""

    method: str
    scores: dict[str, float]  # by detector; minus infinity above all contrasts
    recall: dict[str, float]  # by detector, on unseen lesions, in [0, 1]
    correlation: float  # Spearman's; NaN if all scores or all recalls are equal
    low: float  # of its interval; NaN below FEWEST_PATIENTS patients
    high: float
    p: float  # two-sided, over all ways to pair scores with recalls
    p_corrected: float  # by Holm, over all methods
    alpha: float  # a verdict needs a smaller p_corrected

    @property
    def verdict(self) -> str:
        """What the interval and the p-value show together, in words."""
        if self.p_corrected < self.alpha and self.low > 0:
            return "predicts recall"
        if self.p_corrected < self.alpha and self.high < 0:
            return "predicts the reverse"
        return "predicts nothing that these detectors and patients show"


def list_unseen(detectors: Mapping[str, StressedDetector], config: StressConfig) -> list[Mammogram]:
    """List mammograms with unseen lesions, and normal ones; [] if the config names none."""
    if not config.unseen:
        return []
    skipped = Skipped()
    mammograms = [
        mammogram
        for mammogram in read_unknown(config.unseen, detectors.values(), skipped)
        if sampling.select_lesions(mammogram, config.unseen) or sampling.is_normal(mammogram)
    ]
    datasets.log_skipped(skipped)
    if not any(sampling.select_lesions(mammogram, config.unseen) for mammogram in mammograms):
        raise DataError(f"unseen: no lesion of {config.unseen.archive_name} counts")
    return mammograms


def measure_recall(
    detectors: Mapping[str, StressedDetector],
    mammograms: Sequence[Mammogram],
    config: StressConfig,
) -> tuple[dict[str, list[Matches]], list[str]]:
    """Run all detectors on the mammograms of `list_unseen`; also return their patients."""
    assert config.unseen
    matches: dict[str, list[Matches]] = {name: [] for name in detectors}
    for start in range(0, len(mammograms), config.batch):
        part = mammograms[start : start + config.batch]
        for name, detector in detectors.items():
            for mammogram, found in zip(part, detector.detect(part), strict=True):
                truth = stack_boxes(sampling.select_lesions(mammogram, config.unseen).values())
                uncertain = stack_boxes(sampling.list_unselected(mammogram, config.unseen))
                rule = (config.threshold, config.criterion)
                kept = found.select(~find_spared(found.boxes, truth, uncertain, *rule))
                matches[name].append(match(kept.boxes, kept.scores, truth, *rule))
    return matches, [mammogram.patient_id for mammogram in mammograms]


def predict(
    trials: Mapping[str, Trial],
    matches: Mapping[str, Sequence[Matches]],
    patients: Sequence[str],
    config: StressConfig,
) -> list[Prediction]:
    """Correlate the stress scores of every method with recall in unseen mammograms.

    Each of these has a patient, and matches by each detector.
    """
    stressed = np.array(
        sorted({outcome.patient for trial in trials.values() for outcome in trial.outcomes})
    )
    unseen = np.array(sorted(set(patients)))
    draws = min(config.samples, MOST_DRAWS)
    enough = min(len(stressed), len(unseen)) >= FEWEST_PATIENTS
    recall = _measure_recall(matches, np.arange(len(patients)), config)
    random = np.random.default_rng([config.seed, 3])
    rows = {patient: np.flatnonzero(np.array(patients) == patient) for patient in unseen.tolist()}
    drawn_recalls = []
    drawn_patients = []
    for _ in range(draws if enough else 0):
        images = np.concatenate(
            [rows[name] for name in random.choice(unseen, len(unseen)).tolist()]
        )
        drawn_recalls.append(_measure_recall(matches, images, config))
        drawn_patients.append(random.choice(stressed, len(stressed)).tolist())
    predictions = []
    # 1 - 0.95 is a little more than 0.05
    alpha = round(1 - config.level, 12)
    for method in config.methods:
        scores = _score(trials, method, None, config)
        values = [
            correlate(_score(trials, method, names, config), drawn)
            for names, drawn in zip(drawn_patients, drawn_recalls, strict=True)
        ]
        finite = np.array([value for value in values if np.isfinite(value)])
        low = high = float("nan")
        if len(finite) > draws / 2:
            low, high = percentile_interval(finite, config.level)
        correlation = correlate(scores, recall)
        p = _test_ranks(scores, recall, config.seed)
        predictions.append(Prediction(method, scores, recall, correlation, low, high, p, p, alpha))
    corrected = holm([prediction.p for prediction in predictions]).tolist()
    return [
        replace(prediction, p_corrected=p)
        for prediction, p in zip(predictions, corrected, strict=True)
    ]


def correlate(scores: Mapping[str, float], recall: Mapping[str, float]) -> float:
    """Compute Spearman's correlation over detectors; NaN if either is constant."""
    values = [scores[name] for name in recall]
    if len(set(values)) == 1 or len(set(recall.values())) == 1:
        return float("nan")
    return float(stats.spearmanr(values, list(recall.values())).statistic)


def _test_ranks(scores: Mapping[str, float], recall: Mapping[str, float], seed: int) -> float:
    """Compute the p-value of a permutation test; NaN without a correlation."""
    if np.isnan(correlate(scores, recall)):
        return float("nan")
    first = stats.rankdata([scores[name] for name in recall])
    second = stats.rankdata(list(recall.values()))
    test = stats.permutation_test(
        (first,),
        lambda ranks: float(np.corrcoef(ranks, second)[0, 1]),
        permutation_type="pairings",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _measure_recall(
    matches: Mapping[str, Sequence[Matches]], rows: NDArray[np.intp], config: StressConfig
) -> dict[str, float]:
    recalls = {}
    for name, images in matches.items():
        joined = Matches.join([images[row] for row in rows])
        recalls[name] = (
            float(froc([joined], [config.fppi]).tpr[0]) if joined.lesions else float("nan")
        )
    return recalls


def _score(
    trials: Mapping[str, Trial], method: str, names: Sequence[str] | None, config: StressConfig
) -> dict[str, float]:
    """Compute each detector's stress score, of all patients or of drawn ones."""
    scores = {}
    for detector, trial in trials.items():
        outcomes = trial.list_of(method)
        if names is not None:
            by_patient: dict[str, list] = {}
            for outcome in outcomes:
                by_patient.setdefault(outcome.patient, []).append(outcome)
            outcomes = [outcome for name in names for outcome in by_patient.get(name, ())]
        curve = fit_curves(outcomes, trial.limit, config, interval=False).contrast
        threshold = curve.threshold if curve else float("nan")
        scores[detector] = -float(np.log(threshold)) if threshold else float("inf")
    return scores


def list_facts(predictions: Sequence[Prediction], config: StressConfig) -> list[Fact]:
    """List the recalls, and the correlation of each method with its interval and p."""
    facts = [
        Fact("means", "", name, "", f"tpr@{config.fppi:g}", "%", 100 * recall)
        for name, recall in predictions[0].recall.items()
    ]
    for one in predictions:
        key = ("prediction", f"method={one.method}", "stress score", "", "rank_correlation", "")
        values = (one.correlation, one.low, one.high)
        fact = Fact(*key, *values, test=BOOTSTRAP, p=one.p, p_corrected=one.p_corrected)
        facts.append(fact)
    return facts


def tabulate(predictions: Sequence[Prediction], config: StressConfig) -> list[Table]:
    """Tabulate the scores and recalls, and their correlations."""
    names = list(predictions[0].recall)
    header = ["detector", f"recall at {config.fppi:g} false positives, %"]
    header += [f"contrast of 50 %, {prediction.method}" for prediction in predictions]
    body = [
        [
            name,
            f"{100 * predictions[0].recall[name]:.1f}",
            *(name_stimulus(np.exp(-prediction.scores[name])) for prediction in predictions),
        ]
        for name in sorted(names, key=lambda name: -predictions[0].recall[name])
    ]
    rows = [
        [
            prediction.method,
            str(len(names)),
            f"{prediction.correlation:.2f}",
            f"{prediction.low:.2f}",
            f"{prediction.high:.2f}",
            format_p(prediction.p),
            format_p(prediction.p_corrected),
            prediction.verdict,
        ]
        for prediction in predictions
    ]
    columns = ["method", "detectors", "rank correlation", "low", "high"]
    columns += ["p, uncorrected", "p, Holm", "so the score"]
    note = (
        "The interval draws patients. The p-value is over all ways to pair the detectors' scores "
        "with their recalls; below five detectors it is never small. Holm's correction for "
        f"{say_count(len(predictions), 'method')}."
    )
    return [
        Table("Detectors on lesions that they never saw", header, body),
        Table("Does the stress score predict recall?", columns, rows, (note,)),
    ]
