"""CAN's Table I on INbreast: the rows of configs/study_can.yaml's runs, finished or not, as facts.

The study appends each run's scores to the CSV files of docs/results/inbreast_can, one line a mass.
Verdicts take the models that have every fold of a seed; the page shows the others as they are.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.facts import FOLDS, RUNS, About, Facts
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.segmentation import bootstrap_interval, paired_test
from tfmammo.metrics.significance import holm

KEY = "can_inbreast"
FOLDER = "inbreast_can"
MODELS = ("CAN", "U-Net", "FCN-8s", "SegNet")
DISC = "centred disc"
MEASURES = ("dice", "jaccard", "accuracy", "mcc")
UNSEEN, LEAK = "unseen", "leak"
PLANNED = {UNSEEN: (5, 3), LEAK: (1, 3)}  # arm -> folds, seeds of each model
PROGRESS = "progress"  # the table of models as far as their runs are finished
SAMPLES = 10_000
WORK = "6,000 of 210,000 steps (15,000 where copies leak); 128 of 256 px; 1/2 of the width"

Scores = dict[str, NDArray[np.float64]]  # lesion -> its measures, in per cent


@dataclass(frozen=True)
class Study:
    """The scores of the study so far."""

    # (arm, model, fold, seed) -> lesion -> the mean over its copies
    scores: Mapping[tuple[str, str, int, int], Scores]
    patients: Mapping[str, str]  # of each lesion
    curves: tuple[Curve, ...]
    code: tuple[str, ...]  # the commits that made them

    def count_runs(self, arm: str, model: str) -> int:
        """Count the finished runs of a model."""
        return sum(key[:2] == (arm, model) for key in self.scores)

    def list_seeds(self, arm: str, model: str) -> list[int]:
        """List the seeds whose folds are all finished."""
        folds, seeds = PLANNED[arm]
        if model == DISC:  # kept once for each fold
            seeds = 1
        return [
            seed
            for seed in range(seeds)
            if all((arm, model, fold, seed) in self.scores for fold in range(folds))
        ]

    def average(self, arm: str, model: str, seeds: Iterable[int] | None = None) -> Scores:
        """Average each lesion over folds and seeds; all seeds by default."""
        of_lesion: dict[str, list[NDArray[np.float64]]] = {}
        for (of_arm, of_model, _, seed), scores in self.scores.items():
            if (of_arm, of_model) == (arm, model) and (seeds is None or seed in seeds):
                for lesion, values in scores.items():
                    of_lesion.setdefault(lesion, []).append(values)
        return {lesion: np.mean(of_lesion[lesion], axis=0) for lesion in sorted(of_lesion)}


def count_planned() -> int:
    """Count the runs of all arms."""
    return len(MODELS) * sum(folds * seeds for folds, seeds in PLANNED.values())


def name_leaking(model: str) -> str:
    """Name a model that was trained by the leaking split."""
    return f"{model} by the leaking split"


def read_study(folder: Path) -> Study:
    """Read the files of the study; a folder without them has no runs yet."""
    copies: dict[tuple[str, str, int, int], dict[str, list[list[float]]]] = {}
    patients = {}
    for row in _read(folder / "scores.csv"):
        key = row["arm"], row["model"], int(row["fold"]), int(row["seed"])
        lesion = row["case"].partition("~")[0]
        patients[lesion] = row["patient"]
        numbers = [100 * float(row[measure]) for measure in MEASURES]
        copies.setdefault(key, {}).setdefault(lesion, []).append(numbers)
    scores = {
        key: {lesion: np.mean(values, axis=0) for lesion, values in of_key.items()}
        for key, of_key in copies.items()
    }
    points: dict[str, dict[int, float]] = {}
    for row in _read(folder / "curves.csv"):
        name = f"{row['arm']}/{row['model']}/fold{row['fold']}/seed{row['seed']}"
        points.setdefault(name, {})[int(row["step"])] = float(row["dice"])
    curves = tuple(
        Curve(name, "dice", tuple(of_run), tuple(of_run.values()))
        for name, of_run in points.items()
    )
    code = sorted({f"commit {row['code']}" for row in _read(folder / "runs.csv")})
    return Study(scores, patients, curves, tuple(code))


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_facts(study: Study) -> Facts | None:
    """Make facts of the study; None before its first run.

    Their tables are "means", "differences", "runs" or "folds", of models that have every fold of a
    seed; "progress", of all; and "leak", Dice by the leaking protocol less that on unseen patients.
    """
    if not study.scores:
        return None
    complete = [model for model in MODELS if study.list_seeds(UNSEEN, model)]
    rows = [
        row
        for arm in PLANNED
        for model in (*MODELS, DISC)
        for row in _summarize(study, PROGRESS, f"protocol={arm}", model, study.average(arm, model))
    ]
    averages = {
        model: study.average(UNSEEN, model, study.list_seeds(UNSEEN, model))
        for model in (*complete, DISC)
    }
    for model, scores in averages.items():
        rows += _summarize(study, "means", "", model, scores)
        rows += _list_repeats(study, model)
    pairs = [(one, other) for one in complete for other in (*complete, DISC) if one != other]
    rows += _compare(study, "differences", [(*p, averages[p[0]], averages[p[1]]) for p in pairs])
    leaks = [
        (name_leaking(model), model, study.average(LEAK, model), averages[model])
        for model in complete
        if study.count_runs(LEAK, model)
    ]
    rows += _compare(study, LEAK, leaks)
    trained = sum(study.count_runs(arm, model) for arm in PLANNED for model in MODELS)
    about = About(
        item=KEY,
        scale="small",
        data="INbreast",
        papers_data="INbreast",
        work=WORK,
        runs=PLANNED[UNSEEN][0] if complete else 1,
        trained=trained,
        is_smaller=True,
        random_starts=("segnet", "fcn8s"),
        commands=(
            "tfmammo evaluate segmentation --study can --config study_can --set data.root=DIR",
        ),
        code=study.code,
    )
    return Facts(about, tuple(rows), study.curves)


def _summarize(study: Study, table: str, subset: str, model: str, scores: Scores) -> list[Fact]:
    """Summarize a model's measures: means over masses, intervals by patient."""
    if not scores:
        return []
    patients = np.array([study.patients[lesion] for lesion in scores])
    values = np.array(list(scores.values()))
    counts = {"patients": len(set(patients.tolist())), "images": len(patients)}
    facts = []
    for measure, column in zip(MEASURES, values.T, strict=True):
        low, high = bootstrap_interval(column, patients, SAMPLES)
        numbers = float(column.mean()), low, high
        how = "bootstrap by patient"
        facts.append(Fact(table, subset, model, "", measure, "%", *numbers, test=how, **counts))
    return facts


def _list_repeats(study: Study, model: str) -> list[Fact]:
    """List Dice of each seed over all folds; of a single seed, of each fold."""
    seeds = study.list_seeds(UNSEEN, model)
    if len(seeds) > 1:
        parts = {
            (RUNS, f"run={seed}"): list(study.average(UNSEEN, model, [seed]).values())
            for seed in seeds
        }
    else:
        parts = {
            (FOLDS, f"fold={fold}"): list(study.scores[UNSEEN, model, fold, seed].values())
            for seed in seeds
            for fold in range(PLANNED[UNSEEN][0])
        }
    return [
        Fact(table, subset, model, "", "dice", "%", float(np.mean(values, axis=0)[0]))
        for (table, subset), values in parts.items()
    ]


def _compare(
    study: Study, table: str, pairs: Sequence[tuple[str, str, Scores, Scores]]
) -> list[Fact]:
    """Compare the Dice of pairs on the lesions of both, p corrected by Holm."""
    facts = []
    for model, other, scores, of_other in pairs:
        common = [lesion for lesion in scores if lesion in of_other]
        if not common:
            continue
        patients = np.array([study.patients[lesion] for lesion in common])
        first, second = (
            np.array([of[lesion][0] for lesion in common]) for of in (scores, of_other)
        )
        test = paired_test(first, second, patients, SAMPLES)
        fact = Fact(
            table,
            "",
            model,
            other,
            "dice",
            "%",
            float(test.difference),
            float(test.low),
            float(test.high),
            patients=len(set(patients.tolist())),
            images=len(common),
            test="permutation by patient",
            p=float(test.p),
        )
        facts.append(fact)
    corrected = holm([fact.p for fact in facts])
    return [replace(fact, p_corrected=float(p)) for fact, p in zip(facts, corrected, strict=True)]
