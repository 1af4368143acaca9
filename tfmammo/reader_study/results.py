"""What the answers of a reader study amount to: accuracy, d', AUC, tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.errors import DataError
from tfmammo.metrics import observer
from tfmammo.metrics.observer import Choices, Estimate, Ratings
from tfmammo.metrics.significance import FEWEST_PATIENTS, describe, holm
from tfmammo.metrics.summary import Table, write_csv
from tfmammo.reader_study.answers import Answer, Answers
from tfmammo.reader_study.cases import ReaderStudyConfig, Task

ALL: Final = "all readers"
FEW: Final = "not enough answers"
ENOUGH: Final = 5  # choices
ENOUGH_RATED: Final = 2  # real ones, and synthetic ones: what DeLong's variance needs


@dataclass(frozen=True)
class Result:
    """A system's result by one reader, or by `ALL`; None where there are not enough answers.

    Attributes:
        p_corrected: The choices' p after Holm's correction for all systems of the same reader.
    """

    system: str
    reader: str
    choices: Choices | None
    ratings: Ratings | None
    p_corrected: float = np.nan

    def row(self) -> dict[str, Any]:
        """A row of results.csv; what is not known is empty."""
        nothing = Estimate(np.nan, np.nan, np.nan)
        right = self.choices
        rated = self.ratings
        row: dict[str, Any] = {"system": self.system, "reader": self.reader}
        row |= (
            {"choices": right.n, "correct": right.right}
            if right
            else {"choices": "", "correct": ""}
        )
        row |= _columns("share", right.share if right else nothing) | _columns(
            "d_prime", right.d_prime if right else nothing
        )
        row |= {"p": right.p if right else np.nan, "p_corrected": self.p_corrected}
        row |= (
            {"rated_real": rated.real, "rated_synthetic": rated.synthetic}
            if rated
            else {"rated_real": "", "rated_synthetic": ""}
        )
        return (
            row
            | _columns("auc", rated.area if rated else nothing)
            | _columns("d_a", rated.d_a if rated else nothing)
        )


# Results


def results(config: ReaderStudyConfig, answers: Answers) -> list[Result]:
    """Each system's results by each reader, and where there are several by all of them together
    (see `observer`).

    p is corrected for the number of systems, reader by reader.
    """
    given = answers.all()
    found = []
    for system in config.systems:
        readers, right, _ = _scores(given, system, "choice")
        _, rated, real = _scores(given, system, "rating")
        for row, reader in enumerate(readers):
            answered = ~np.isnan(rated[row])
            rating = (
                observer.ratings(real[answered], rated[row][answered], config.level)
                if _enough_rated(real, rated[row])
                else None
            )
            own = right[row][~np.isnan(right[row])]
            choice = observer.choices(own, config.level) if len(own) >= ENOUGH else None
            found.append(Result(system, reader, choice, rating))
        if len(readers) > 1:
            options = (config.samples, config.seed, config.level)
            choice = (
                observer.pooled_choices(right, *options)
                if np.sum(~np.isnan(right)) >= ENOUGH
                else None
            )
            enough = any(_enough_rated(real, row) for row in rated)
            found.append(
                Result(
                    system,
                    ALL,
                    choice,
                    observer.pooled_ratings(real, rated, *options) if enough else None,
                )
            )
    return _corrected(found)


def roc(config: ReaderStudyConfig, answers: Answers) -> Figure:
    """The systems' ROC curves; where there are not enough ratings no curve."""
    given = answers.all()
    curves = {system: _scores(given, system, "rating")[:0:-1] for system in config.systems}
    enough = {
        name: (real, rated)
        for name, (real, rated) in curves.items()
        if any(_enough_rated(real, row) for row in rated)
    }
    return observer.roc_figure(enough, config.name if enough else f"{config.name}: {FEW}")


def table(found: Sequence[Result], title: str) -> Table:
    """Results as text, with what p is and what is missing under them."""
    header = [
        "system",
        "reader",
        "real one chosen",
        "d'",
        "p",
        "real, synthetic rated",
        "area under ROC",
        "d_a",
    ]
    systems = len({result.system for result in found if np.isfinite(result.p_corrected)})
    notes = [describe("guessing", len(found), systems)] if systems else []
    if any(_has_few(result) for result in found):
        notes.append(
            f"No interval and no p where fewer than {FEWEST_PATIENTS} cases were answered."
        )
    return Table(title, header, [_line(result) for result in found], tuple(notes))


def write_results(found: Sequence[Result], path: Path) -> None:
    """Write results.csv, a row a system and reader.

    Raises:
        DataError: There is none.
    """
    if not found:
        raise DataError(f"{path.name}: nobody has answered yet")
    write_csv(path, [result.row() for result in found])


def _scores(
    given: Sequence[Answer], system: str, task: Task
) -> tuple[list[str], NDArray[np.float64], NDArray[np.bool_]]:
    """(readers of the study, their scores [readers, cases], NaN unanswered, and of each case
    whether a real one alone was seen).
    """
    own = [answer for answer in given if (answer.case.system, answer.case.task) == (system, task)]
    readers = sorted({answer.reader for answer in given})
    cases = sorted({answer.case.number for answer in own})
    scores = np.full((len(readers), len(cases)), np.nan)
    real = np.zeros(len(cases), bool)
    for answer in own:
        place = cases.index(answer.case.number)
        scores[readers.index(answer.reader), place] = answer.score
        real[place] = answer.case.truth == "real"
    return readers, scores, real


def _corrected(found: list[Result]) -> list[Result]:
    """Results with Holm's correction over the systems that one reader, or all of them, judged."""
    corrected: dict[int, float] = {}
    for reader in {result.reader for result in found}:
        own = [place for place, result in enumerate(found) if result.reader == reader]
        values = [choices.p if (choices := found[place].choices) else np.nan for place in own]
        corrected |= dict(zip(own, holm(values).tolist(), strict=True))
    return [replace(result, p_corrected=corrected[place]) for place, result in enumerate(found)]


def _has_few(result: Result) -> bool:
    """Whether there are answers, but too few for an interval."""
    right = result.choices
    rated = result.ratings
    return bool(right and np.isnan(right.p)) or bool(
        rated and rated.real + rated.synthetic < FEWEST_PATIENTS
    )


def _enough_rated(real: NDArray[np.bool_], given: NDArray[np.float64]) -> bool:
    answered = ~np.isnan(given)
    return bool(min(np.sum(answered & real), np.sum(answered & ~real)) >= ENOUGH_RATED)


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _line(result: Result) -> list[str]:
    right = result.choices
    rated = result.ratings
    line = [result.system, result.reader]
    if right:
        p = (
            "-"
            if np.isnan(right.p)
            else "< 0.001"
            if result.p_corrected < 0.001
            else f"{result.p_corrected:.3f}"
        )
        line += [f"{right.right} of {right.n}: {_shown(right.share)}", _shown(right.d_prime), p]
    else:
        line += [FEW, "-", "-"]
    return line + (
        [f"{rated.real}, {rated.synthetic}", _shown(rated.area), _shown(rated.d_a)]
        if rated
        else [FEW, "-", "-"]
    )


def _shown(estimate: Estimate) -> str:
    """A value over its interval; infinite bounds as such, and words where there is none."""
    low, high = (f"{bound:.2f}".replace("inf", "∞") for bound in (estimate.low, estimate.high))
    return f"{estimate.value:.2f}\n" + (
        "(no interval)" if np.isnan(estimate.low) else f"[{low}, {high}]"
    )
