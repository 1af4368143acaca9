"""Facts: what was measured for an item, as a small JSON file without times and paths.

The page is built from these files alone. Pictures lie in a folder beside them and are not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tfmammo import filesystem
from tfmammo.apps.report.config import SCALES, Scale
from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.items import WITH_EXTRAS, Extra, Item
from tfmammo.apps.report.tables import parse_markdown
from tfmammo.config import Frozen, describe
from tfmammo.document import TableFacts
from tfmammo.errors import DataError
from tfmammo.studies.workflow import DONE, Step

if TYPE_CHECKING:  # a page is built without the config classes of all commands
    from tfmammo.apps.report.plan import Plan

TABLE_FILES = ("table.md", "report/table.md")
PICTURES = "pictures"
CURVES = "curves"


class Facts(Frozen):
    """The facts of an item at a scale."""

    item: str
    """Its key."""
    scale: Scale
    """The scale of the commands."""
    extent: str
    """Steps and data in words."""
    is_papers_data: bool
    """Whether the data are the paper's."""
    trainings: int
    """The smallest number of seeds or folds behind a model."""
    commands: tuple[str, ...]
    """The commands, in order."""
    code: tuple[str, ...] = ()
    """Version, source hash, libraries and commit that made the tables."""
    tables: tuple[TableFacts, ...] = ()
    """The tables of the evaluations."""
    curves: tuple[Curve, ...] = ()
    """The validation curves of the trainings."""
    reason: str = ""
    """Why there is no result; "" where there is one."""

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.item}.{self.scale}.json"


def add_tables(facts: Facts, item: Item | Extra, plan: Plan, output: Path) -> Facts:
    """Add the tables that the finished commands of an item wrote, and the code that made them.

    Args:
        facts: Of the item, without tables.
        item: The item.
        plan: The item's own plan, trainings included.
        output: The folder of the report.

    Raises:
        DataError: A table is missing.
    """
    steps = [step for name in item.sources for step in plan.steps_of[name]]
    tables = [
        table
        for step in steps
        for table in read_tables(output / step.name)
        if any(fnmatchcase(table.title, pattern) for pattern in item.titles)
    ]
    code = sorted({_read_code(step, output) for step in plan.steps})
    return facts.model_copy(update={"code": tuple(code), "tables": tuple(tables)})


def read_tables(folder: Path) -> list[TableFacts]:
    """Read the tables of an evaluation's folder.

    Raises:
        DataError: There is no table.md.
    """
    for name in TABLE_FILES:
        if (folder / name).is_file():
            return parse_markdown((folder / name).read_text(encoding="utf-8"))
    raise DataError(f"{folder}: holds no table.md")


def _read_code(step: Step, output: Path) -> str:
    note = json.loads((output / DONE / f"{step.name}.json").read_text(encoding="utf-8"))
    commit = f", commit {note['commit']}" if note.get("commit") else ""
    return f"tfmammo {note['code']}{commit}"


def describe_obstacles(reasons: Iterable[str], folders: Mapping[Path, str]) -> str:
    """Join reasons without this machine's folders and without the log's path."""
    text = "; ".join(re.sub(r"; all it said: .*", "", reason) for reason in reasons)
    for path, name in folders.items():
        text = text.replace(str(path), name)
    return text


def write_facts(facts: Facts, folder: Path) -> None:
    """Write facts into a folder, indented and with sorted keys."""
    folder.mkdir(parents=True, exist_ok=True)
    content = facts.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    filesystem.write_atomically(folder / facts.file, text, durable=False)


def read_facts(folder: Path) -> dict[str, Facts]:
    """Read the facts of each item at its largest scale; other files are left alone.

    A file that only says why there is no result yields to a smaller scale that has one.

    Returns:
        Key -> facts.

    Raises:
        DataError: A file holds no facts.
    """
    facts = {}
    for item in WITH_EXTRAS:
        candidates = []
        for scale in SCALES:
            path = folder / f"{item.key}.{scale}.json"
            if path.is_file():
                candidates.append(_read_file(path))
        if candidates:
            facts[item.key] = max(
                candidates, key=lambda of_scale: (not of_scale.reason, SCALES.index(of_scale.scale))
            )
    return facts


def _read_file(path: Path) -> Facts:
    try:
        return Facts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DataError(f"{path}: holds no facts ({describe(error)})") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None


def find_picture(item: Item | Extra, plan: Plan, output: Path) -> Path | None:
    """Find the picture that a command made for an item; None where there is none."""
    name, _, pattern = item.picture.partition("/")
    for step in plan.steps_of.get(name, ()):
        matches = sorted((output / step.name).glob(pattern))
        if matches:
            return matches[0]
    return None
