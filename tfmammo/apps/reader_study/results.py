"""Results of a reader study: accuracy, d', AUC, and their tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.apps.reader_study.answers import Answer, Answers
from tfmammo.apps.reader_study.cases import ReaderStudyConfig, Task
from tfmammo.errors import DataError
from tfmammo.metrics import observer
from tfmammo.metrics.observer import Choices, Ratings
from tfmammo.metrics.significance import FEWEST_PATIENTS, Estimate, describe, holm
from tfmammo.metrics.summary import Table, format_p, write_csv

ALL: Final = "all readers"
FEW: Final = "not enough answers"
MIN_CHOICES: Final = 5
MIN_RATINGS: Final = 2  # of real and of synthetic patches


@dataclass(frozen=True)
class Result:
    """A system's result by one reader, or by `ALL`; None means not enough answers."""

    system: str
    reader: str
    choices: Choices | None
    ratings: Ratings | None
    p_corrected: float = np.nan  # of the choices, by Holm, over the systems of the same reader

    def row(self) -> dict[str, Any]:
        """Make a row of results.csv; unknown values are empty."""
        unknown = Estimate(np.nan, np.nan, np.nan)
        choices, ratings = self.choices, self.ratings
        return {
            "system": self.system,
            "reader": self.reader,
            "choices": choices.n if choices else "",
            "correct": choices.right if choices else "",
            **_columns("share", choices.share if choices else unknown),
            **_columns("d_prime", choices.d_prime if choices else unknown),
            "p": choices.p if choices else np.nan,
            "p_corrected": self.p_corrected,
            "rated_real": ratings.real if ratings else "",
            "rated_synthetic": ratings.synthetic if ratings else "",
            **_columns("auc", ratings.area if ratings else unknown),
            **_columns("d_a", ratings.d_a if ratings else unknown),
        }


def compute_results(config: ReaderStudyConfig, answers: Answers) -> list[Result]:
    """Compute each system's results by each reader, and by all readers if there are several.

    p-values are corrected for the number of systems, reader by reader.
    """
    everything = answers.all()
    results = []
    for system in config.systems:
        readers, choices, _ = _scores(everything, system, "choice")
        _, ratings, real = _scores(everything, system, "rating")
        groups = {reader: [row] for row, reader in enumerate(readers)}
        if len(readers) > 1:
            groups[ALL] = list(range(len(readers)))
        results += [
            Result(system, reader, *_estimate(choices[rows], ratings[rows], real, config))
            for reader, rows in groups.items()
        ]
    return _correct(results)


def plot_roc(config: ReaderStudyConfig, answers: Answers) -> Figure:
    """Plot the ROC curve of every system that has enough ratings."""
    everything = answers.all()
    curves = {}
    for system in config.systems:
        _, ratings, real = _scores(everything, system, "rating")
        if any(_has_enough_ratings(real, row) for row in ratings):
            curves[system] = (real, ratings)
    return observer.draw_roc(curves, config.name if curves else f"{config.name}: {FEW}")


def results_table(results: Sequence[Result], title: str) -> Table:
    """Tabulate the results, with notes on p-values and on missing intervals."""
    header = [
        "system",
        "reader",
        "real one chosen",
        "d'",
        "p",
        "real, synthetic rated",
        "AUC",
        "d_a",
    ]
    systems = len({result.system for result in results if np.isfinite(result.p_corrected)})
    notes = [describe("guessing", len(results), systems)] if systems else []
    if any(
        (result.choices and np.isnan(result.choices.p))
        or (result.ratings and np.isnan(result.ratings.area.low))
        for result in results
    ):
        notes.append(
            f"Intervals and p-values need {FEWEST_PATIENTS} answered cases; one reader's ratings "
            f"need {FEWEST_PATIENTS} of either kind."
        )
    return Table(title, header, [_table_row(result) for result in results], tuple(notes))


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write results.csv, one row for each system and reader."""
    if not results:
        raise DataError(f"{path.name}: nobody has answered yet")
    write_csv(path, [result.row() for result in results])


def _scores(
    answers: Sequence[Answer], system: str, task: Task
) -> tuple[list[str], NDArray[np.float64], NDArray[np.bool_]]:
    """Arrange the scores of one system and task.

    All readers of the study; their scores [readers, cases], NaN where unanswered; and for each case
    whether only a real patch was shown.
    """
    answered = [
        answer for answer in answers if (answer.case.system, answer.case.task) == (system, task)
    ]
    readers = sorted({answer.reader for answer in answers})
    cases = sorted({answer.case.number for answer in answered})
    scores = np.full((len(readers), len(cases)), np.nan)
    real = np.zeros(len(cases), bool)
    for answer in answered:
        column = cases.index(answer.case.number)
        scores[readers.index(answer.reader), column] = answer.score
        real[column] = answer.case.truth == "real"
    return readers, scores, real


def _estimate(
    choices: NDArray[np.float64],
    ratings: NDArray[np.float64],
    real: NDArray[np.bool_],
    config: ReaderStudyConfig,
) -> tuple[Choices | None, Ratings | None]:
    """Estimate the results of one reader or of several from rows of `_scores`."""
    is_one = len(choices) == 1
    choice, rating = None, None
    answered = choices[~np.isnan(choices)]
    if len(answered) >= MIN_CHOICES:
        choice = (
            observer.estimate_choices(answered, config.level)
            if is_one
            else observer.pool_choices(choices, *config.draws)
        )
    if any(_has_enough_ratings(real, row) for row in ratings):
        if is_one:
            is_rated = ~np.isnan(ratings[0])
            rating = observer.estimate_ratings(real[is_rated], ratings[0][is_rated], config.level)
        else:
            rating = observer.pool_ratings(real, ratings, *config.draws)
    return choice, rating


def _correct(results: list[Result]) -> list[Result]:
    """Apply Holm's correction over the systems, separately for each reader and for all readers."""
    corrected: dict[int, float] = {}
    for reader in {result.reader for result in results}:
        rows = [row for row, result in enumerate(results) if result.reader == reader]
        values = [choices.p if (choices := results[row].choices) else np.nan for row in rows]
        corrected |= dict(zip(rows, holm(values).tolist(), strict=True))
    return [replace(result, p_corrected=corrected[row]) for row, result in enumerate(results)]


def _has_enough_ratings(real: NDArray[np.bool_], ratings: NDArray[np.float64]) -> bool:
    is_rated = ~np.isnan(ratings)
    return bool(min(np.sum(is_rated & real), np.sum(is_rated & ~real)) >= MIN_RATINGS)


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _table_row(result: Result) -> list[str]:
    choices, ratings = result.choices, result.ratings
    row = [result.system, result.reader]
    if choices:
        share = f"{choices.right} of {choices.n}: {_format_estimate(choices.share)}"
        row += [share, _format_estimate(choices.d_prime), format_p(result.p_corrected)]
    else:
        row += [FEW, "-", "-"]
    if ratings:
        counts = f"{ratings.real}, {ratings.synthetic}"
        row += [counts, _format_estimate(ratings.area), _format_estimate(ratings.d_a)]
    else:
        row += [FEW, "-", "-"]
    return row


def _format_estimate(estimate: Estimate) -> str:
    """Format a value above its interval, or above "(no interval)"; bounds may be infinite."""
    low, high = (f"{bound:.2f}".replace("inf", "∞") for bound in (estimate.low, estimate.high))
    interval = "(no interval)" if np.isnan(estimate.low) else f"[{low}, {high}]"
    return f"{estimate.value:.2f}\n{interval}"
