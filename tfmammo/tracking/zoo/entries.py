"""What is known of each network of the zoo: where it is, what it is of, how good it is."""

from __future__ import annotations

import json
from pathlib import Path

import pydantic

from tfmammo.cli import suggest
from tfmammo.config import Frozen
from tfmammo.errors import ConfigError

PREFIX = "models:/zoo/"
FOLDER = Path(__file__).resolve().parent / "networks"


class Result(Frozen):
    """A table that an evaluation printed for the packed network, on patients it never saw."""

    title: str
    """Its heading."""
    header: tuple[str, ...]
    """The headings of the columns."""
    body: tuple[tuple[str, ...], ...]
    """Lines of cells; the first cell names the line."""
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    command: str
    """What printed it, without this machine's folders."""


class Sheet(Frozen):
    """A picture of what a network does on patients that it never saw, drawn at random."""

    file: str
    """Relative to docs."""
    caption: str


class Entry(Frozen):
    """A network of the zoo."""

    title: str
    """What it does, in a line."""
    paper: str
    """The page of the paper, under docs/papers."""
    data: str
    """What it was trained on, with what was held out."""
    attribution: str
    """Whom users of the network must name, and the terms."""
    training: str
    """The command that trained it, without this machine's folders."""
    memorization: str
    """Whether it repeats training patches, and how that was measured."""
    failures: list[str]
    """What it is known to do badly."""
    results: list[Result] = []
    sheet: Sheet | None = None
    file: str
    """The name of the packed file beside this entry."""
    sha256: str = ""
    size: int = 0
    """Of the packed file, in bytes."""


def list_names() -> list[str]:
    """List the networks of the zoo."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_entry(name: str) -> Entry:
    """Read what is known of a network: "can", or "models:/zoo/can"."""
    name = name.removeprefix(PREFIX)
    names = list_names()
    if name not in names:
        raise ConfigError(f"{PREFIX}{name}: is no network of the zoo{suggest(name, names)}")
    path = FOLDER / f"{name}.json"
    try:
        return Entry.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise ConfigError(f"{path}: is no entry of the zoo ({error})") from None


def write_entry(name: str, entry: Entry) -> None:
    """Write what is known of a network."""
    text = json.dumps(entry.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
