"""A reader study as its page uses it: the next case of each reader, images and answers."""

from __future__ import annotations

import hashlib
import math
import unicodedata

import numpy as np

from tfmammo.apps.reader_study.answers import Answers
from tfmammo.apps.reader_study.cases import (
    Case,
    ReaderStudyConfig,
    draw_cases,
    encode_images,
    hash_cases,
    load_sources,
)
from tfmammo.apps.reader_study.results import ALL
from tfmammo.errors import DataError


class ReaderStudy:
    """A study with its images. Cases are drawn if the database has none yet."""

    def __init__(self, config: ReaderStudyConfig) -> None:
        self.config = config
        self.answers = Answers(config)
        has_begun = self.answers.has_begun()  # first: it refuses the database of another study
        sources = load_sources(config)
        if not has_begun:
            new_cases = draw_cases(config, sources)
            images = encode_images(new_cases, sources)
            self.answers.begin(new_cases, hash_cases(new_cases, images))
        cases = self.answers.cases()
        self._cases = {case.number: case for case in cases}
        self._images = encode_images(cases, sources)
        if hash_cases(cases, self._images) != self.answers.images_hash():
            raise DataError(
                f"database: {config.database} was created from other images than the archives "
                "have now; name a new file"
            )

    def cases(self, reader: str) -> list[Case]:
        """Return all cases in a reader's order: pairs, then ratings.

        The order follows from the study's seed and the reader's name.
        """
        seed = hashlib.sha256(f"{self.config.seed}/{reader}".encode()).digest()
        order = np.random.default_rng(list(seed)).permutation(sorted(self._cases))
        # The sort is stable, and "choice" comes before "rating".
        return sorted((self._cases[int(number)] for number in order), key=lambda case: case.task)

    def next(self, reader: str) -> Case | None:
        """Return the first case that a reader has not answered; None at the end."""
        done = self.answers.completed(reader)
        return next((case for case in self.cases(reader) if case.number not in done), None)

    def find_reader(self, text: str) -> str:
        """Parse a reader's name, spelled with the capitals of the first time."""
        name = parse_reader_name(text)
        known = self.answers.list_readers()
        return next((each for each in known if each.casefold() == name.casefold()), name)

    def answer(self, reader: str, case: Case, value: str | int, seconds: float) -> bool:
        """Store one of case.allowed at once; False if the reader had already answered the case."""
        if (
            self._cases.get(case.number) != case
            or str(value) not in case.allowed
            or not 0 <= seconds < math.inf
        ):
            raise DataError(f"{value!r} in {seconds} s is not an answer to case {case.number}")
        return self.answers.add(parse_reader_name(reader), case.number, str(value), seconds)

    def images(self, case: Case) -> tuple[bytes, ...]:
        """Return the PNGs of a case, from left to right, of equal size in pixels and in bytes."""
        return tuple(self._images[key] for key in case.shown)


def parse_reader_name(text: str) -> str:
    """Trim and check a reader's name; keyboards write one accent in two ways."""
    name = unicodedata.normalize("NFC", text.strip())
    if not 1 <= len(name) <= 64:
        raise DataError("a reader's name must have 1 to 64 characters")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise DataError("a reader's name must not have control characters")
    # Spreadsheets read a cell that begins with = or + as a formula.
    if not name[0].isalnum():
        raise DataError("a reader's name must begin with a letter or a digit")
    if name == ALL:
        raise DataError(f"a reader can't be named {ALL!r}")
    return name
