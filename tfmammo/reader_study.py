"""A reader study: can those who read mammograms tell synthetic lesions from real ones?

python -m tfmammo.reader_study --config configs/reader_study.yaml cases       draws the cases, and says how many there are
python -m tfmammo.reader_study --config configs/reader_study.yaml open        lets readers answer, at http://127.0.0.1:7860
python -m tfmammo.reader_study --config configs/reader_study.yaml results     the table; with --output DIR also results.csv and roc.png
python -m tfmammo.reader_study --config configs/reader_study.yaml export      answers.csv, a row an answer, in --output DIR or here

Readers answer in the browser (tfmammo.studio.judging); `open` needs the extra serve. First they choose
the real one of pairs, a real patch beside a synthetic one; then they rate single patches, half of them
real, from 1 (certainly synthetic) to 6 (certainly real). All see the same cases, each in an order of
their own, and no patient twice. Cases are drawn once and kept in the study's database with the answers;
results and export read that alone. Overrides come last: `... results --set level=0.9`.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo import command
from tfmammo import config as configuration
from tfmammo.config import ConfigError
from tfmammo.data.patches import DataError
from tfmammo.metrics import observer
from tfmammo.metrics.observer import Choices, Estimate, Ratings
from tfmammo.metrics.significance import FEWEST_PATIENTS, describe, holm
from tfmammo.metrics.summary import Table, write_csv
from tfmammo.reader_cases import Case, ReaderStudyConfig, Task, digest, draw, pictures, sources
from tfmammo.training import cli

ALL: Final = "all readers"
FEW: Final = "not enough answers"
ENOUGH: Final = 5  # choices
ENOUGH_RATED: Final = 2  # real ones, and synthetic ones: what DeLong's variance needs
TABLES: Final = (
    "CREATE TABLE study (study TEXT, settings TEXT, pictures TEXT)",
    "CREATE TABLE cases (number INTEGER PRIMARY KEY, task TEXT, system TEXT, truth TEXT, real TEXT, synthetic TEXT)",
    "CREATE TABLE answers (study TEXT, reader TEXT, number INTEGER REFERENCES cases, value TEXT, seconds REAL, time TEXT,"
    " UNIQUE (study, reader, number))",
)


@dataclass(frozen=True)
class Answer:
    """What a reader said of a case. value: one of Case.allowed. seconds: that it took. time: UTC, ISO 8601."""

    reader: str
    case: Case
    value: str
    seconds: float
    time: str

    @property
    def score(self) -> float:
        """Of a choice 1 where it was right, else 0; of a rating the rating."""
        return float(self.value == self.case.truth) if self.case.task == "choice" else float(self.value)

    def row(self, study: str) -> dict[str, Any]:
        """A row of the export; correct and rating are empty where the other was asked."""
        case, choice = self.case, self.case.task == "choice"
        return {
            "study": study, "reader": self.reader, "number": case.number, "task": case.task, "system": case.system, "truth": case.truth,
            "answer": self.value, "correct": int(self.score) if choice else "", "rating": "" if choice else int(self.score),
            "seconds": self.seconds, "time": self.time,
        }  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A system's result by one reader, or by `ALL`; None where there are not enough answers.

    p_corrected: the choices' p after Holm's correction for all systems of the same reader.
    """

    system: str
    reader: str
    choices: Choices | None
    ratings: Ratings | None
    p_corrected: float = np.nan

    def row(self) -> dict[str, Any]:
        """A row of results.csv; what is not known is empty."""
        nothing, right, rated = Estimate(np.nan, np.nan, np.nan), self.choices, self.ratings
        row: dict[str, Any] = {"system": self.system, "reader": self.reader}
        row |= {"choices": right.n, "correct": right.right} if right else {"choices": "", "correct": ""}
        row |= _columns("share", right.share if right else nothing) | _columns("d_prime", right.d_prime if right else nothing)
        row |= {"p": right.p if right else np.nan, "p_corrected": self.p_corrected}
        row |= {"rated_real": rated.real, "rated_synthetic": rated.synthetic} if rated else {"rated_real": "", "rated_synthetic": ""}
        return row | _columns("auc", rated.area if rated else nothing) | _columns("d_a", rated.d_a if rated else nothing)


class Answers:
    """A study's database: its cases and all answers. Any number of threads and processes may use it at once.

    Raises:   ConfigError, by every method: the file can't be used, or is another study's.
    """

    def __init__(self, config: ReaderStudyConfig) -> None:
        self.study, self.settings, self.path = config.name, config.identity(), config.database

    def begun(self) -> bool:
        """Whether the cases are drawn."""
        if not self.path.is_file():
            return False
        with self._opened() as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return False
            known = database.execute("SELECT study, settings FROM study").fetchone() if "answers" in tables else None
        if known != (self.study, self.settings):
            raise ConfigError(f"database: {self.path} is not this study's, or was begun with other settings; name a new file")
        return True

    def begin(self, cases: Sequence[Case], shown: str) -> None:
        """Make the database, unless somebody was quicker. shown: `digest` of the cases."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as database:
            database.execute("PRAGMA journal_mode=WAL")  # readers and writers do not wait for each other
            database.execute("BEGIN IMMEDIATE")  # all or nothing of it is there, whenever this is killed
            if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                for table in TABLES:
                    database.execute(table)
                database.execute("INSERT INTO study VALUES (?, ?, ?)", (self.study, self.settings, shown))
                database.executemany("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?)", map(astuple, cases))

    def cases(self) -> list[Case]:
        """All cases, by number. Raises: ConfigError, besides: there are none yet."""
        if not self.begun():
            raise ConfigError(f"database: {self.path} holds no cases yet; draw them first (python -m tfmammo.reader_study ... cases)")
        with self._opened() as database:
            return [Case(*row) for row in database.execute("SELECT * FROM cases ORDER BY number")]

    def shown(self) -> str:
        """The `digest` that the cases had when they were drawn."""
        with self._opened() as database:
            return str(database.execute("SELECT pictures FROM study").fetchone()[0])

    def add(self, reader: str, number: int, value: str, seconds: float) -> bool:
        """Keep an answer, in a transaction of its own. Returns: False where the reader had answered the case; that answer stands."""
        row = (self.study, reader, number, value, round(seconds, 3), datetime.now(UTC).isoformat(timespec="seconds"))
        with self._opened() as database:
            return database.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount == 1

    def answered(self, reader: str) -> set[int]:
        """The numbers of the cases that a reader has answered."""
        with self._opened() as database:
            return {number for (number,) in database.execute("SELECT number FROM answers WHERE reader = ?", (reader,))}

    def unfinished(self) -> bool:
        """Whether somebody who has begun is not through."""
        with self._opened() as database:
            some = "SELECT 1 FROM answers GROUP BY reader HAVING COUNT(*) < (SELECT COUNT(*) FROM cases)"
            return database.execute(some).fetchone() is not None

    def all(self) -> list[Answer]:
        """All answers, in the order in which they were given."""
        cases = {case.number: case for case in self.cases()}
        with self._opened() as database:
            rows = database.execute("SELECT reader, number, value, seconds, time FROM answers ORDER BY rowid").fetchall()
        return [Answer(reader, cases[number], *rest) for reader, number, *rest in rows]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept together at the end, or none of them."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise ConfigError(f"database: {self.path} can't be used ({error})") from None


class ReaderStudy:
    """A study as readers go through it. Cases are drawn where its database has none yet.

    Args:     config: of the study.
    Raises:   ConfigError: a folder is missing, or the database is another study's. DataError: there are too few patients, or the
              archive or a set no longer shows what the cases were drawn from. ArchiveError: an archive can't be read.
    """

    def __init__(self, config: ReaderStudyConfig) -> None:
        self.config, self.answers = config, Answers(config)
        begun, found = self.answers.begun(), sources(config)
        if not begun:
            drawn = draw(config, found)
            self.answers.begin(drawn, digest(drawn, pictures(drawn, found)))
        cases = self.answers.cases()
        self._cases, self._shown = {case.number: case for case in cases}, pictures(cases, found)
        if digest(cases, self._shown) != self.answers.shown():
            raise DataError(f"database: {config.database} was begun with other pictures than the archives show now; name a new file")

    def cases(self, reader: str) -> list[Case]:
        """All cases in a reader's own order, which follows from seed and name: pairs, then ratings."""
        seed = hashlib.sha256(f"{self.config.seed}/{reader}".encode()).digest()
        order = np.random.default_rng(list(seed)).permutation(sorted(self._cases))
        return sorted((self._cases[int(number)] for number in order), key=lambda case: case.task)  # "choice" before "rating"

    def next(self, reader: str) -> Case | None:
        """The first case that a reader has not answered, None where there is none left."""
        done = self.answers.answered(reader)
        return next((case for case in self.cases(reader) if case.number not in done), None)

    def answer(self, reader: str, case: Case, value: str | int, seconds: float) -> bool:
        """Keep an answer at once.

        Args:     reader: as `reader_name` gives it. value: one of case.allowed. seconds: that it took, 0 or more.
        Returns:  False where the reader had answered the case before; that answer stands.
        Raises:   DataError: this is no answer to the case. ConfigError: it can't be written.
        """
        if self._cases.get(case.number) != case or str(value) not in case.allowed or not 0 <= seconds < math.inf:
            raise DataError(f"{value!r} in {seconds} s is no answer to case {case.number}")
        return self.answers.add(reader_name(reader), case.number, str(value), seconds)

    def pictures(self, case: Case) -> tuple[bytes, ...]:
        """What is seen of a case, from left to right: grey PNGs of 8 bits, all of one size in pixels and in bytes."""
        return tuple(self._shown[one] for one in case.shown)

    def results(self) -> list[Result]:
        """As the function `results`."""
        return results(self.config, self.answers)


def reader_name(text: str) -> str:
    """A reader's name, trimmed.

    Raises:   DataError: it has not 1 to 64 characters, begins with neither letter nor digit, has control characters, or is `ALL`.
    """
    name = text.strip()
    if not 1 <= len(name) <= 64:
        raise DataError("a reader's name has 1 to 64 characters")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise DataError("a reader's name has no control characters")
    if not name[0].isalnum() or name == ALL:  # spreadsheets take what begins with = or + for a formula
        raise DataError("a reader's name begins with a letter or a digit, and is one reader's")
    return name


# Results


def results(config: ReaderStudyConfig, answers: Answers) -> list[Result]:
    """Each system's results by each reader, and where there are several by all of them together (see `observer`).

    p is corrected for the number of systems, reader by reader.
    """
    given, found = answers.all(), []
    for system in config.systems:
        readers, right, _ = _scores(given, system, "choice")
        _, rated, real = _scores(given, system, "rating")
        for row, reader in enumerate(readers):
            answered = ~np.isnan(rated[row])
            rating = observer.ratings(real[answered], rated[row][answered], config.level) if _enough_rated(real, rated[row]) else None
            own = right[row][~np.isnan(right[row])]
            choice = observer.choices(own, config.level) if len(own) >= ENOUGH else None
            found.append(Result(system, reader, choice, rating))
        if len(readers) > 1:
            options = (config.samples, config.seed, config.level)
            choice = observer.pooled_choices(right, *options) if np.sum(~np.isnan(right)) >= ENOUGH else None
            enough = any(_enough_rated(real, row) for row in rated)
            found.append(Result(system, ALL, choice, observer.pooled_ratings(real, rated, *options) if enough else None))
    return _corrected(found)


def roc(config: ReaderStudyConfig, answers: Answers) -> Figure:
    """The systems' ROC curves; where there are not enough ratings no curve."""
    given = answers.all()
    curves = {system: _scores(given, system, "rating")[:0:-1] for system in config.systems}
    enough = {name: (real, rated) for name, (real, rated) in curves.items() if any(_enough_rated(real, row) for row in rated)}
    return observer.roc_figure(enough, config.name if enough else f"{config.name}: {FEW}")


def table(found: Sequence[Result], title: str) -> Table:
    """Results as text, with what p is and what is missing under them."""
    header = ["system", "reader", "real one chosen", "d'", "p", "real, synthetic rated", "area under ROC", "d_a"]
    systems = len({result.system for result in found if np.isfinite(result.p_corrected)})
    notes = [describe("guessing", len(found), systems)] if systems else []
    if any(_has_few(result) for result in found):
        notes.append(f"No interval and no p where fewer than {FEWEST_PATIENTS} cases were answered.")
    return Table(title, header, [_line(result) for result in found], tuple(notes))


def write_answers(config: ReaderStudyConfig, answers: Answers, path: Path) -> None:
    """Write the export, a row an answer. Raises: DataError: nobody has answered."""
    given = answers.all()
    if not given:
        raise DataError(f"{config.name}: nobody has answered yet")
    write_csv(path, [answer.row(config.name) for answer in given])


def write_results(found: Sequence[Result], path: Path) -> None:
    """Write results.csv, a row a system and reader. Raises: DataError: there is none."""
    if not found:
        raise DataError(f"{path.name}: nobody has answered yet")
    write_csv(path, [result.row() for result in found])


def _scores(given: Sequence[Answer], system: str, task: Task) -> tuple[list[str], NDArray[np.float64], NDArray[np.bool_]]:
    """(readers of the study, their scores [readers, cases], NaN unanswered, and of each case whether a real one alone was seen)."""
    own = [answer for answer in given if (answer.case.system, answer.case.task) == (system, task)]
    readers, cases = sorted({answer.reader for answer in given}), sorted({answer.case.number for answer in own})
    scores, real = np.full((len(readers), len(cases)), np.nan), np.zeros(len(cases), bool)
    for answer in own:
        place = cases.index(answer.case.number)
        scores[readers.index(answer.reader), place], real[place] = answer.score, answer.case.truth == "real"
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
    right, rated = result.choices, result.ratings
    return bool(right and np.isnan(right.p)) or bool(rated and rated.real + rated.synthetic < FEWEST_PATIENTS)


def _enough_rated(real: NDArray[np.bool_], given: NDArray[np.float64]) -> bool:
    answered = ~np.isnan(given)
    return bool(min(np.sum(answered & real), np.sum(answered & ~real)) >= ENOUGH_RATED)


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _line(result: Result) -> list[str]:
    right, rated = result.choices, result.ratings
    line = [result.system, result.reader]
    if right:
        p = "-" if np.isnan(right.p) else "< 0.001" if result.p_corrected < 0.001 else f"{result.p_corrected:.3f}"
        line += [f"{right.right} of {right.n}: {_shown(right.share)}", _shown(right.d_prime), p]
    else:
        line += [FEW, "-", "-"]
    return line + ([f"{rated.real}, {rated.synthetic}", _shown(rated.area), _shown(rated.d_a)] if rated else [FEW, "-", "-"])


def _shown(estimate: Estimate) -> str:
    """A value over its interval; infinite bounds as such, and words where there is none."""
    low, high = (f"{bound:.2f}".replace("inf", "∞") for bound in (estimate.low, estimate.high))
    return f"{estimate.value:.2f}\n" + ("(no interval)" if np.isnan(estimate.low) else f"[{low}, {high}]")


# The command


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2."""
    parser = cli.arguments(__doc__ or "")
    parser.prog = "python -m tfmammo.reader_study"
    parser.add_argument("command", choices=("cases", "open", "results", "export"), help="what to do; before --set")
    chosen = parser.parse_args(arguments)
    command.run(lambda: _run(configuration.parse(ReaderStudyConfig, chosen.config, chosen.set), chosen.command, chosen.output))


def _run(config: ReaderStudyConfig, wanted: str, output: Path | None) -> None:
    if wanted == "open":
        _open(config)
        return
    answers = Answers(config)
    if wanted == "cases":
        ReaderStudy(config)
        cli.console.print(_overview(config, answers.cases()))
        return
    if wanted == "results":
        found = results(config, answers)
        cli.console.print(table(found, config.name) if found else f"{config.name}: nobody has answered yet")
    if output:
        output.mkdir(parents=True, exist_ok=True)
    if wanted == "export":
        path = (output or Path()) / "answers.csv"
        write_answers(config, answers, path)
        cli.console.print(f"answers   {path}")
    elif output and found:
        write_results(found, output / "results.csv")
        roc(config, answers).savefig(output / "roc.png", dpi=150)
        cli.console.print(f"written   {output}")


def _open(config: ReaderStudyConfig) -> None:
    """The studio with this study alone, until Ctrl-C."""
    from tfmammo.studio import __main__ as studio  # which needs the extra serve

    def chosen() -> Any:
        from tfmammo.studio.app import StudioConfig

        return StudioConfig(study=config)

    studio.show(chosen)


def _overview(config: ReaderStudyConfig, cases: Sequence[Case]) -> Table:
    def count(system: str, task: Task) -> str:
        return str(sum((case.system, case.task) == (system, task) for case in cases))

    body = [[system, count(system, "choice"), count(system, "rating")] for system in config.systems]
    return Table(f"{config.name}: {len(cases)} cases in {config.database}", ["system", "pairs", "ratings"], body)


if __name__ == "__main__":
    main()
