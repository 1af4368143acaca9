"""Facts: what was measured for a table or figure, as files without times and paths.

ITEM.SCALE.csv has the numbers (`tfmammo.metrics.rows`), ITEM.SCALE.json what is no number, and
ITEM.SCALE.curves.csv the validation curves. The pages are made from these alone.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tfmammo import filesystem
from tfmammo.apps.report.config import SCALES
from tfmammo.apps.report.curves import Curve
from tfmammo.config import Frozen, describe
from tfmammo.errors import DataError
from tfmammo.metrics.rows import Fact, read_facts, write_facts

RUNS = "runs"  # the table of means in each of several runs on the same patients
FOLDS = "folds"  # and in each fold, with one run each
CURVE_COLUMNS = ("run", "measure", "step", "value")


class About(Frozen):
    """What is no number."""

    item: str
    """The item's key."""
    scale: str
    """The scale of the commands."""
    data: str
    """The data in words."""
    papers_data: str
    """The paper's data in words; "" of a study that no paper has."""
    basis: str = ""
    """What verdicts say of the data; "": whether they are the paper's."""
    work: str
    """How long and how large: "12,000 of 210,000 steps; 128 of 256 px; 1/4 of the width"."""
    runs: int
    """The smallest number of seeds or folds behind a model."""
    seeds: dict[str, dict[str, int]] = {}
    """Subset -> model -> its seeds, where models differ; "" for subsets that are missing."""
    trained: int
    """How many training runs are behind it, each of which should have a curve."""
    is_smaller: bool = False
    """Whether patches have fewer pixels than the paper's."""
    random_starts: tuple[str, ...] = ()
    """The train scripts whose networks started from random weights."""
    stand_ins: dict[str, str] = {}
    """Baseline -> the model that stands in for the paper's in claims against it."""
    commands: tuple[str, ...] = ()
    """The commands, in order."""
    code: tuple[str, ...] = ()
    """Version, source hash, libraries and commit that made the numbers."""
    is_preliminary: bool = False
    """Whether more runs are planned, in which case verdicts are preliminary."""
    reason: str = ""
    """Why there is no result; "" where there is one."""

    @property
    def is_papers_data(self) -> bool:
        """Whether the data are the paper's."""
        return self.data == self.papers_data

    def count_seeds(self, models: Iterable[str], subset: str = "") -> int:
        """Count the seeds that each of some models has; 0 where they are not known."""
        known = self.seeds.get(subset) or self.seeds.get("", {})
        return min((known[model] for model in models if model in known), default=0)

    def count_runs(self, models: Iterable[str], subset: str = "") -> int:
        """Count the seeds or folds behind each of some models."""
        seeds = self.count_seeds(models, subset)
        return seeds if subset in self.seeds and subset else max(self.runs, seeds)

    @property
    def place(self) -> str:
        """The data, and whether they are the paper's, in words."""
        if self.is_papers_data:
            return f"{self.data}, the paper's data"
        is_among_them = self.papers_data in ("", *self.data.split(" and "))
        return self.data if is_among_them else f"{self.data}, in place of {self.papers_data}"


class Key(Frozen):
    """The name of a row."""

    model: str
    measure: str
    against: str = ""
    table: str = ""
    subset: str = ""

    def find(self, facts: Facts) -> Fact | None:
        """Find the row."""
        return facts.find(self.model, self.measure, self.against, self.table, self.subset)


@dataclass(frozen=True)
class Facts:
    """The facts of an item at a scale."""

    about: About
    rows: tuple[Fact, ...] = ()
    curves: tuple[Curve, ...] = ()

    @property
    def name(self) -> str:
        """The stem of the files: "can_table1.small"."""
        return f"{self.about.item}.{self.about.scale}"

    def find(
        self, model: str, measure: str, against: str = "", table: str = "", subset: str = ""
    ) -> Fact | None:
        """Find a row; of a difference also the opposite one, with its signs changed.

        Without `table` it is one of means, or of differences where `against` is given.
        """
        measure = self._name_merit(measure)
        table = table or ("differences" if against else "means")
        opposite = None
        for row in self.rows:
            if (row.table, row.subset, row.measure) == (table, subset, measure):
                if (row.model, row.against) == (model, against):
                    return row
                if against and (row.against, row.model) == (model, against):
                    opposite = row.reverse()
        return opposite

    def find_repeats(
        self, table: str, model: str, measure: str, subset: str = ""
    ) -> dict[str, float]:
        """Find a measure's mean in each run or fold of a model: "fold=0" -> mean."""
        measure = self._name_merit(measure)
        found = {}
        for row in self.rows:
            if (row.table, row.model, row.measure) == (table, model, measure):
                *parts, repeat = row.subset.split(";")
                if ";".join(parts) == subset:
                    found[repeat] = row.value
        return found

    def _name_merit(self, measure: str) -> str:
        """Name JAFROC's figure of merit; it is another one where all images have lesions."""
        if measure == "jafroc" and all(row.measure != measure for row in self.rows):
            return "jafroc1"
        return measure

    def are_flat(self, models: Iterable[str] = (), subset: str = "") -> bool:
        """Whether every training run has a curve that is flat at its end.

        Of some models alone where a study's curves, ARM/MODEL/RUN, name them, and of one arm if a
        subset names it: "frame=tight".
        """
        arm = subset.partition("=")[2]
        places = [f"{arm}/{model}/" for model in models]
        chosen = [curve for curve in self.curves if any(place in curve.run for place in places)]
        fewest = 1 if chosen else max(self.about.trained, 1)
        chosen = chosen or list(self.curves)
        return len({curve.run for curve in chosen}) >= fewest and all(
            curve.is_flat for curve in chosen
        )


def write(facts: Facts, folder: Path) -> None:
    """Write the files of an item; those that it has nothing for are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = facts.about.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    filesystem.write_atomically(folder / f"{facts.name}.json", text, durable=False)
    rows, curves = folder / f"{facts.name}.csv", folder / f"{facts.name}.curves.csv"
    if facts.rows:
        write_facts(rows, facts.rows)
    else:
        rows.unlink(missing_ok=True)
    if facts.curves:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CURVE_COLUMNS)
        for curve in facts.curves:
            for step, value in zip(curve.steps, curve.values, strict=True):
                writer.writerow((curve.run, curve.measure, step, f"{value:.4g}"))
        filesystem.write_atomically(curves, file.getvalue(), durable=False)
    else:
        curves.unlink(missing_ok=True)


def has_result(folder: Path, name: str) -> bool:
    """Whether there are facts of that name, KEY.SCALE, that are more than a reason."""
    return (folder / f"{name}.json").is_file() and not _read_one(folder, name).about.reason


def read(folder: Path, keys: Iterable[str]) -> dict[str, Facts]:
    """Read the facts of items at their largest scales, smaller ones where these have no result."""
    found = {}
    for key in keys:
        scales = [
            _read_one(folder, f"{key}.{scale}")
            for scale in reversed(SCALES)
            if (folder / f"{key}.{scale}.json").is_file()
        ]
        if scales:
            found[key] = min(scales, key=lambda facts: bool(facts.about.reason))
    return found


def _read_one(folder: Path, name: str) -> Facts:
    path = folder / f"{name}.json"
    try:
        about = About.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DataError(f"{path}: holds no facts ({describe(error)})") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    rows, curves = folder / f"{name}.csv", folder / f"{name}.curves.csv"
    return Facts(
        about,
        tuple(read_facts(rows)) if rows.is_file() else (),
        tuple(read_curves(curves)) if curves.is_file() else (),
    )


def read_curves(path: Path) -> Iterator[Curve]:
    """Read what `write` wrote; a DataError names a file with other columns or no numbers."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != CURVE_COLUMNS:
                raise DataError(f"{path}: its columns are not {', '.join(CURVE_COLUMNS)}")
            for run, measure, step, value in reader:
                points.setdefault((run, measure), []).append((int(step), float(value)))
    except ValueError as error:
        raise DataError(f"{path}: can't be read as curves: {error}") from None
    for (run, measure), pairs in points.items():
        steps, values = zip(*pairs, strict=True)
        yield Curve(run, measure, steps, values)


def make_curve(run: str, measure: str, history: dict[int, float]) -> Curve:
    """Make a curve of a run's validations, to four significant digits; NaN is skipped."""
    # a measure may be none at times: while a network is still fading in, or where nothing is kept
    known = {step: value for step, value in history.items() if math.isfinite(value)}
    return Curve(run, measure, tuple(known), tuple(float(f"{v:.4g}") for v in known.values()))
