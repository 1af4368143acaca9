"""What is said of a config's keys."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, PositiveInt

from tfmammo.config import Frozen, keys


class Inner(Frozen):
    depth: PositiveInt = 3
    """How deep."""
    rate: float = Field(default=0.5, ge=0, lt=1)
    """How
    fast.
    """


class Outer(Frozen):
    """Everything that a config may hold."""

    name: str
    """Who."""
    inner: Inner = Inner(depth=7)
    """A section with another default."""
    tiles: Inner | None = None
    """A section or none."""
    systems: dict[str, Inner] = {}
    """Sections with names."""
    runs: tuple[Path, ...] = ()
    """Folders."""
    scale: tuple[float, float] | None = (0.5, 2)
    """Two numbers."""
    mode: Literal["a", "b"] = "a"
    """One of two."""
    on: bool = True
    """A switch."""


def test_keys_have_names_types_defaults_and_sentences():
    listed = [(key.name, key.type, key.default, key.sentence) for key in keys.list_keys(Outer)]
    assert listed == [
        ("name", "text", "required", "Who."),
        ("inner", "section", "", "A section with another default."),
        ("inner.depth", "int > 0", "7", "How deep."),
        ("inner.rate", "float >= 0, < 1", "0.5", "How fast."),
        ("tiles", "section or null", "null", "A section or none."),
        ("tiles.depth", "int > 0", "3", "How deep."),
        ("tiles.rate", "float >= 0, < 1", "0.5", "How fast."),
        ("systems", "{NAME: section}", "{}", "Sections with names."),
        ("systems.NAME.depth", "int > 0", "3", "How deep."),
        ("systems.NAME.rate", "float >= 0, < 1", "0.5", "How fast."),
        ("runs", "[path, ...]", "[]", "Folders."),
        ("scale", "[float, float] or null", "[0.5, 2]", "Two numbers."),
        ("mode", "a or b", "a", "One of two."),
        ("on", "true or false", "true", "A switch."),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("location", "meant"),
    [
        (("nmae",), "name"),
        (("inner", "dpeth"), "inner.depth"),
        (("tiles", "raet"), "tiles.rate"),
        (("systems", "mine", "dept"), "systems.mine.depth"),
        (("rate",), "inner.rate"),  # of a section that was skipped
        (("inner", "name"), "name"),
        (("inner", "xyzzy"), None),
        (("nowhere", "depth"), "inner.depth"),
    ],
)
def test_an_unknown_key_may_be_another(location, meant):
    assert keys.suggest(Outer, location) == meant
