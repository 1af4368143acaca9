"""A reader study as its pages see it: readers, their next case, their answers."""

from __future__ import annotations

import hashlib
import math
import unicodedata

import numpy as np

from tfmammo.errors import DataError
from tfmammo.reader_study.answers import Answers
from tfmammo.reader_study.cases import Case, ReaderStudyConfig, digest, draw, pictures, sources
from tfmammo.reader_study.results import ALL, Result, results


class ReaderStudy:
    """A study as readers go through it. Cases are drawn where its database has none yet.

    Args:
        config: Of the study.

    Raises:
        ConfigError: A folder is missing, or the database is another study's.
        DataError: There are too few patients, or the archive or a set no longer shows what the
            cases were drawn from.
        ArchiveError: An archive can't be read.
    """

    def __init__(self, config: ReaderStudyConfig) -> None:
        self.config = config
        self.answers = Answers(config)
        begun = self.answers.begun()
        found = sources(config)
        if not begun:
            drawn = draw(config, found)
            self.answers.begin(drawn, digest(drawn, pictures(drawn, found)))
        cases = self.answers.cases()
        self._cases = {case.number: case for case in cases}
        self._shown = pictures(cases, found)
        if digest(cases, self._shown) != self.answers.shown():
            raise DataError(
                f"database: {config.database} was begun with other pictures than the archives "
                "show now; name a new file"
            )

    def cases(self, reader: str) -> list[Case]:
        """All cases in a reader's own order, which follows from seed and name: pairs,
        then ratings.
        """
        seed = hashlib.sha256(f"{self.config.seed}/{reader}".encode()).digest()
        order = np.random.default_rng(list(seed)).permutation(sorted(self._cases))
        # "choice" before "rating"
        return sorted((self._cases[int(number)] for number in order), key=lambda case: case.task)

    def next(self, reader: str) -> Case | None:
        """The first case that a reader has not answered, None where there is none left."""
        done = self.answers.answered(reader)
        return next((case for case in self.cases(reader) if case.number not in done), None)

    def answer(self, reader: str, case: Case, value: str | int, seconds: float) -> bool:
        """Keep an answer at once.

        Args:
            reader: As `reader_name` gives it.
            value: One of case.allowed.
            seconds: That it took, 0 or more.

        Returns:
            False where the reader had answered the case before; that answer stands.

        Raises:
            DataError: This is no answer to the case.
            ConfigError: It can't be written.
        """
        if (
            self._cases.get(case.number) != case
            or str(value) not in case.allowed
            or not 0 <= seconds < math.inf
        ):
            raise DataError(f"{value!r} in {seconds} s is no answer to case {case.number}")
        return self.answers.add(reader_name(reader), case.number, str(value), seconds)

    def pictures(self, case: Case) -> tuple[bytes, ...]:
        """What is seen of a case, from left to right: grey PNGs of 8 bits, all of one size in
        pixels and in bytes.
        """
        return tuple(self._shown[one] for one in case.shown)

    def results(self) -> list[Result]:
        """As the function `results`."""
        return results(self.config, self.answers)


def reader_name(text: str) -> str:
    """A reader's name, trimmed.

    Raises:
        DataError: It has not 1 to 64 characters, begins with neither letter nor digit, has control
            characters, or is `ALL`.
    """
    name = text.strip()
    if not 1 <= len(name) <= 64:
        raise DataError("a reader's name has 1 to 64 characters")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise DataError("a reader's name has no control characters")
    # spreadsheets take what begins with = or + for a formula
    if not name[0].isalnum() or name == ALL:
        raise DataError("a reader's name begins with a letter or a digit, and is one reader's")
    return name
