"""The answers of a reader study on disk: one line an answer, appended."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics.summary import write_csv
from tfmammo.reader_study.cases import Case, ReaderStudyConfig

TABLES: Final = (
    "CREATE TABLE study (study TEXT, settings TEXT, pictures TEXT)",
    "CREATE TABLE cases (number INTEGER PRIMARY KEY, task TEXT, system TEXT, truth TEXT, real "
    "TEXT, synthetic TEXT)",
    "CREATE TABLE answers (study TEXT, reader TEXT, number INTEGER REFERENCES cases, value TEXT, "
    "seconds REAL, time TEXT,"
    " UNIQUE (study, reader, number))",
)


@dataclass(frozen=True)
class Answer:
    """What a reader said of a case.

    Attributes:
        value: One of Case.allowed.
        seconds: That it took.
        time: UTC, ISO 8601.
    """

    reader: str
    case: Case
    value: str
    seconds: float
    time: str

    @property
    def score(self) -> float:
        """Of a choice 1 where it was right, else 0; of a rating the rating."""
        return (
            float(self.value == self.case.truth)
            if self.case.task == "choice"
            else float(self.value)
        )

    def row(self, study: str) -> dict[str, Any]:
        """A row of the export; correct and rating are empty where the other was asked."""
        case = self.case
        choice = self.case.task == "choice"
        return {
            "study": study,
            "reader": self.reader,
            "number": case.number,
            "task": case.task,
            "system": case.system,
            "truth": case.truth,
            "answer": self.value,
            "correct": int(self.score) if choice else "",
            "rating": "" if choice else int(self.score),
            "seconds": self.seconds,
            "time": self.time,
        }


class Answers:
    """A study's database: its cases and all answers.

    Any number of threads and processes may use it at once.

    Raises ConfigError, by every method: the file can't be used, or is another study's.
    """

    def __init__(self, config: ReaderStudyConfig) -> None:
        self.study = config.name
        self.settings = config.identity()
        self.path = config.database

    def begun(self) -> bool:
        """Whether the cases are drawn."""
        if not self.path.is_file():
            return False
        with self._opened() as database:
            tables = {
                name
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                )
            }
            if not tables:
                return False
            known = (
                database.execute("SELECT study, settings FROM study").fetchone()
                if "answers" in tables
                else None
            )
        if known != (self.study, self.settings):
            raise ConfigError(
                f"database: {self.path} is not this study's, or was begun with other settings; "
                "name a new file"
            )
        return True

    def begin(self, cases: Sequence[Case], shown: str) -> None:
        """Make the database, unless somebody was quicker. shown: `digest` of the cases."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as database:
            # readers and writers do not wait for each other
            database.execute("PRAGMA journal_mode=WAL")
            # all or nothing of it is there, whenever this is killed
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                for table in TABLES:
                    database.execute(table)
                database.execute(
                    "INSERT INTO study VALUES (?, ?, ?)", (self.study, self.settings, shown)
                )
                database.executemany(
                    "INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?)", map(astuple, cases)
                )

    def cases(self) -> list[Case]:
        """All cases, by number.

        Raises ConfigError, besides: there are none yet.
        """
        if not self.begun():
            raise ConfigError(
                f"database: {self.path} holds no cases yet; draw them first (python -m "
                "tfmammo.reader_study ... cases)"
            )
        with self._opened() as database:
            return [Case(*row) for row in database.execute("SELECT * FROM cases ORDER BY number")]

    def shown(self) -> str:
        """The `digest` that the cases had when they were drawn."""
        with self._opened() as database:
            return str(database.execute("SELECT pictures FROM study").fetchone()[0])

    def add(self, reader: str, number: int, value: str, seconds: float) -> bool:
        """Keep an answer, in a transaction of its own.

        Returns:
            False where the reader had answered the case; that answer stands.
        """
        row = (
            self.study,
            reader,
            number,
            value,
            round(seconds, 3),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._opened() as database:
            return (
                database.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row
                ).rowcount
                == 1
            )

    def answered(self, reader: str) -> set[int]:
        """The numbers of the cases that a reader has answered."""
        with self._opened() as database:
            return {
                number
                for (number,) in database.execute(
                    "SELECT number FROM answers WHERE reader = ?", (reader,)
                )
            }

    def unfinished(self) -> bool:
        """Whether somebody who has begun is not through."""
        with self._opened() as database:
            some = (
                "SELECT 1 FROM answers GROUP BY reader HAVING COUNT(*) < (SELECT COUNT(*) FROM "
                "cases)"
            )
            return database.execute(some).fetchone() is not None

    def all(self) -> list[Answer]:
        """All answers, in the order in which they were given."""
        cases = {case.number: case for case in self.cases()}
        with self._opened() as database:
            rows = database.execute(
                "SELECT reader, number, value, seconds, time FROM answers ORDER BY rowid"
            ).fetchall()
        return [Answer(reader, cases[number], *rest) for reader, number, *rest in rows]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept together at the end, or none of them."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise ConfigError(f"database: {self.path} can't be used ({error})") from None


def write_answers(config: ReaderStudyConfig, answers: Answers, path: Path) -> None:
    """Write the export, a row an answer.

    Raises:
        DataError: Nobody has answered.
    """
    given = answers.all()
    if not given:
        raise DataError(f"{config.name}: nobody has answered yet")
    write_csv(path, [answer.row(config.name) for answer in given])
