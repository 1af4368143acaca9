"""What a reader leaves out of an archive, and why: file by file, or counted if alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfmammo.archives import dicom
from tfmammo.archives.files import list_regular_files
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Mammogram, Skipped


class Notes:
    """Notes on one archive; errors call it by its name, "" for no particular one."""

    def __init__(self, root: Path, skipped: Skipped | None, name: str) -> None:
        self.root = Path(root)
        self.name = name
        self.skipped = Skipped() if skipped is None else skipped
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lines: dict[tuple[str, str], int] = {}

    def find(
        self, endings: tuple[str, ...], *tables: Sequence[str]
    ) -> tuple[list[Path], list[Path]]:
        """Find images and tables, those nearest to the root first, in any case of letters.

        Of a table's names the first that is there counts; where there is none, this raises.
        """
        paths = sorted(list_regular_files(self.root), key=lambda path: (len(path.parts), path))
        by_name = {path.name.lower(): path for path in reversed(paths)}
        found = []
        for names in tables:
            path = next((by_name[name.lower()] for name in names if name.lower() in by_name), None)
            if path is None:
                raise self.fail(f"{names[0]} is missing")
            found.append(path)
        return [path for path in paths if path.suffix.lower() in endings], found

    def note(self, path: Path, reason: object) -> None:
        """Note a file; a reason that begins with its path, as errors do, does not repeat it."""
        words = str(reason).removeprefix(f"{path}: ")
        self.skipped.add(path.relative_to(self.root).as_posix(), words)

    @contextmanager
    def leaving_out(self, path: Path) -> Iterator[None]:
        """Leave a file out, with a note, where the block raises an ArchiveError."""
        try:
            yield
        except ArchiveError as error:
            self.note(path, error)

    def count(
        self, place: Path | str, reason: str, number: int = 1, line: int | None = None
    ) -> None:
        """Count what is alike: it becomes one note of `place`, with the line of the first."""
        file = place if isinstance(place, str) else place.relative_to(self.root).as_posix()
        if number:
            self._counts[file, reason] += number
            if line is not None:
                self._lines.setdefault((file, reason), line)

    def read_dicom(self, path: Path, place: Path) -> dict[str, Any] | None:
        """Read a DICOM's facts; note why they can't be used, raw images by number for `place`."""
        with self.leaving_out(path):
            facts = dicom.read_facts(path)
            if facts is None:
                self.count(place, "raw images ('for processing')")
            return facts
        return None

    def fail(self, reason: str) -> ArchiveError:
        """Return the error of a root that is no such archive."""
        return ArchiveError(f"{self.root}: is no {self.name} archive, {reason}")

    def finish(self, mammograms: Iterable[Mammogram]) -> list[Mammogram]:
        """Write the counts down and return the mammograms, each once; raise where there is none."""
        found: dict[str, Mammogram] = {}
        for mammogram in mammograms:
            if found.setdefault(mammogram.image_id, mammogram) is not mammogram and mammogram.file:
                self.note(mammogram.file, "is a second file of the same image")
            elif mammogram.laterality and mammogram.wall_side != mammogram.laterality:
                reason = "images are stored mirrored: PatientOrientation holds, not the laterality"
                self.count("images/*", reason)
        for (file, reason), number in self._counts.items():
            line = self._lines.get((file, reason))
            where = "" if line is None else f"rows, the first in line {line}: "
            self.skipped.add(file, f"{number} {where}{reason}")
        if not found:
            first = next((f", the first is {f}: {r}" for f, r in self.skipped.reasons.items()), "")
            kind = f"image of {self.name}" if self.name else "image"
            counts = f"({len(self.skipped)} skipped{first})"
            raise ArchiveError(f"{self.root}: contains no {kind} that can be read {counts}")
        return list(found.values())
