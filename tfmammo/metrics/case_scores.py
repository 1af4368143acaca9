"""Scores of a study's segmentation runs, one CSV line a case: read, averaged by lesion, compared.

A run is one model in one arm (a protocol), fold and seed. A lesion may be scored several times: as
rotated copies of a patch, by several folds and by several seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure

SCORES = "scores.csv"
RUNS = "runs.csv"
CURVES = "curves.csv"
KEYS = ("arm", "model", "fold", "seed")
MEASURES = {
    "accuracy": Measure("Accuracy", "%", 100, 1, is_share=True),
    "dice": Measure("Dice", "%", 100, 1, is_share=True),
    "jaccard": Measure("Jaccard", "%", 100, 1, is_share=True),
    "mcc": Measure("MCC", "%", 100, 1),
}
WHOLE_PATCH: Final = "whole patch"
CENTRED_DISC: Final = "centred disc"
BASELINES = (WHOLE_PATCH, CENTRED_DISC)
POSTPROCESSED = " + post-processing"

Run = tuple[str, str, int, int]  # the values of KEYS


@dataclass(frozen=True)
class Cases:
    """The scores of models on the same lesions.

    Attributes:
        scores: Model -> measure -> float64 [n], as fractions.
        ids: The lesions, str [n].
        patients: The patient of each lesion, str [n].
    """

    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]
    ids: NDArray[np.str_]
    patients: NDArray[np.str_]


@dataclass(frozen=True)
class StudyScores:
    """The scores of all finished runs of a study.

    Attributes:
        runs: Run -> lesion -> the measures of each of its copies, in the order of `MEASURES`.
        patients: Lesion -> patient.
    """

    runs: Mapping[Run, Mapping[str, Sequence[Sequence[float]]]]
    patients: Mapping[str, str]

    def list_models(self, arm: str) -> list[str]:
        """List the models with a run in an arm, the trivial baselines last."""
        models = dict.fromkeys(model for of_arm, model, _, _ in self.runs if of_arm == arm)
        return sorted(models, key=lambda name: name in BASELINES)

    def collect(
        self, arm: str, models: Mapping[str, Collection[int] | None], fold: int | None = None
    ) -> Cases | None:
        """Collect the mean of each lesion over its copies, folds and seeds.

        Lesions that one of the models has not scored are skipped.

        Args:
            arm: The arm.
            models: Model -> the seeds that count; None: all.
            fold: The fold that counts; None: all.

        Returns:
            None where no lesion has been scored by all models.
        """
        means = {model: self._average(arm, model, seeds, fold) for model, seeds in models.items()}
        common = sorted(set.intersection(*map(set, means.values()))) if means else []
        if not common:
            return None
        scores = {}
        for model, of_lesion in means.items():
            columns = np.array([of_lesion[lesion] for lesion in common]).T
            scores[model] = dict(zip(MEASURES, columns, strict=True))
        patients = [self.patients[lesion] for lesion in common]
        return Cases(scores, np.array(common), np.array(patients))

    def _average(
        self, arm: str, model: str, seeds: Collection[int] | None, fold: int | None
    ) -> dict[str, NDArray[np.float64]]:
        copies: dict[str, list[Sequence[float]]] = {}
        for (of_arm, of_model, of_fold, seed), lesions in self.runs.items():
            is_chosen = (seeds is None or seed in seeds) and fold in (None, of_fold)
            if (of_arm, of_model) == (arm, model) and is_chosen:
                for lesion, values in lesions.items():
                    copies.setdefault(lesion, []).extend(values)
        return {lesion: np.mean(values, axis=0) for lesion, values in copies.items()}


def read_lines(path: Path) -> list[dict[str, str]]:
    """Read the lines of a CSV file by its header; a file that is missing has none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_scores(path: Path) -> StudyScores:
    """Read the scores of a study; a file that is missing has none."""
    runs: dict[Run, dict[str, list[list[float]]]] = {}
    patients = {}
    for line in read_lines(path):
        run = line["arm"], line["model"], int(line["fold"]), int(line["seed"])
        lesion = line["case"].partition("~")[0]
        patients[lesion] = line["patient"]
        numbers = [float(line[measure]) for measure in MEASURES]
        runs.setdefault(run, {}).setdefault(lesion, []).append(numbers)
    return StudyScores(runs, patients)


def compare_arms(
    cases: Cases,
    base: Cases,
    subset: str,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Fact]:
    """Compute the Dice of each model in one arm less its Dice in another, on the lesions of both.

    Args:
        cases: The one arm.
        base: The arm that is subtracted.
        subset: Names both, for the facts of the table "arms".
        samples: As for `paired_test`, like `seed` and `level`.

    Returns:
        A fact of each model that both have; nothing where they share no lesion.
    """
    common, rows, of_base = np.intersect1d(cases.ids, base.ids, return_indices=True)
    if not len(common):
        return []
    facts = []
    for model in (model for model in base.scores if model in cases.scores):
        ours, others = cases.scores[model]["dice"][rows], base.scores[model]["dice"][of_base]
        pair = ours, others, cases.patients[rows], samples, seed, level
        fact = MEASURES["dice"].make_difference(
            "arms", model, "dice", *pair, subset=subset, against=model
        )
        facts.append(fact)
    return facts
