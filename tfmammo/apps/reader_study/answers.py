"""The database of a reader study: its cases, and one row for each answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tfmammo.apps.reader_study.cases import Case, ReaderStudyConfig
from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics.summary import write_csv

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
    """A reader's answer to a case."""

    reader: str
    case: Case
    value: str  # one of Case.allowed
    seconds: float  # that the reader took
    time: str  # UTC, ISO 8601

    @property
    def score(self) -> float:
        """The rating, or for a choice 1 if it was right, else 0."""
        if self.case.task == "choice":
            return float(self.value == self.case.truth)
        return float(self.value)

    def row(self, study: str) -> dict[str, Any]:
        """Make a row of the export; "correct" is empty for a rating, "rating" for a choice."""
        case = self.case
        is_choice = case.task == "choice"
        return {
            "study": study,
            "reader": self.reader,
            "number": case.number,
            "task": case.task,
            "system": case.system,
            "truth": case.truth,
            "answer": self.value,
            "correct": int(self.score) if is_choice else "",
            "rating": "" if is_choice else int(self.score),
            "seconds": self.seconds,
            "time": self.time,
        }


class Answers:
    """A study's database: its cases and all answers.

    Any number of threads and processes may use it at once. Every method raises ConfigError if the
    file can't be used or belongs to another study.
    """

    def __init__(self, config: ReaderStudyConfig) -> None:
        self.study = config.name
        self.settings = config.identity()
        self.path = config.database

    def has_begun(self) -> bool:
        """Return whether the cases have been drawn."""
        if not self.path.is_file():
            return False
        with self._connect() as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in rows}
            if not tables:
                return False
            study = None
            if "answers" in tables:
                study = database.execute("SELECT study, settings FROM study").fetchone()
        if study != (self.study, self.settings):
            raise ConfigError(
                f"database: {self.path} belongs to another study, or has other settings; name a "
                "new file"
            )
        return True

    def begin(self, cases: Sequence[Case], images_hash: str) -> None:
        """Create the database with all cases, unless another process was faster."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as database:
            # readers and writers do not wait for each other
            database.execute("PRAGMA journal_mode=WAL")
            # if this process is killed, nothing is written
            database.execute("BEGIN IMMEDIATE")
            if database.execute("SELECT 1 FROM sqlite_master").fetchone():
                return
            for table in TABLES:
                database.execute(table)
            study = (self.study, self.settings, images_hash)
            database.execute("INSERT INTO study VALUES (?, ?, ?)", study)
            rows = map(astuple, cases)
            database.executemany("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?)", rows)

    def cases(self) -> list[Case]:
        """Return all cases, by number."""
        if not self.has_begun():
            raise ConfigError(
                f"database: {self.path} has no cases yet; draw them first (tfmammo reader-study "
                "... cases)"
            )
        with self._connect() as database:
            return [Case(*row) for row in database.execute("SELECT * FROM cases ORDER BY number")]

    def images_hash(self) -> str:
        """Return the `hash_cases` at the time when the cases were drawn."""
        with self._connect() as database:
            return str(database.execute("SELECT pictures FROM study").fetchone()[0])

    def add(self, reader: str, number: int, value: str, seconds: float) -> bool:
        """Store an answer; False if the reader had already answered the case, which stays."""
        row = (
            self.study,
            reader,
            number,
            value,
            round(seconds, 3),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        insert = "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        with self._connect() as database:
            return database.execute(insert, row).rowcount == 1

    def completed(self, reader: str) -> set[int]:
        """Return the numbers of the cases that a reader has answered."""
        query = "SELECT number FROM answers WHERE reader = ?"
        with self._connect() as database:
            return {number for (number,) in database.execute(query, (reader,))}

    def list_readers(self) -> list[str]:
        """List everybody who has answered, oldest first."""
        query = "SELECT reader FROM answers GROUP BY reader ORDER BY MIN(rowid)"
        with self._connect() as database:
            return [reader for (reader,) in database.execute(query)]

    def is_unfinished(self) -> bool:
        """Return whether a reader has begun and not answered all cases."""
        query = (
            "SELECT 1 FROM answers GROUP BY reader HAVING COUNT(*) < (SELECT COUNT(*) FROM cases)"
        )
        with self._connect() as database:
            return database.execute(query).fetchone() is not None

    def all(self) -> list[Answer]:
        """Return all answers, oldest first."""
        cases = {case.number: case for case in self.cases()}
        with self._connect() as database:
            rows = database.execute(
                "SELECT reader, number, value, seconds, time FROM answers ORDER BY rowid"
            ).fetchall()
        return [Answer(reader, cases[number], *rest) for reader, number, *rest in rows]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """Open a connection; all of its changes are committed at the end, or none."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise ConfigError(f"database: {self.path} can't be used ({error})") from None


def write_answers(config: ReaderStudyConfig, answers: Answers, path: Path) -> None:
    """Write the export, one row for each answer."""
    everything = answers.all()
    if not everything:
        raise DataError(f"{config.name}: nobody has answered yet")
    write_csv(path, [answer.row(config.name) for answer in everything])
