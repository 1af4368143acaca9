"""The keys of a config class: their names, types and defaults, and the sentences under them.

`--help` shows them, and the error of an unknown key names the one that may be meant.
"""

from __future__ import annotations

import collections.abc
import difflib
import json
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

NAMES = {str: "text", bool: "true or false", Path: "path", type(None): "null", Any: "any value"}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_MAPPINGS = (dict, collections.abc.Mapping)
_UNIONS = (Union, types.UnionType)


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        name: With its sections: "training.steps". NAME means a key that users choose.
        type: In words: "int > 0 or null".
        default: In YAML; "required" where there is none; "" of a section.
        sentence: What is under the field in the class.
        is_section: Whether keys of its own follow.
    """

    name: str
    type: str
    default: str
    sentence: str
    is_section: bool = False


def list_keys(
    schema: type[BaseModel], prefix: str = "", values: BaseModel | None = None
) -> Iterator[Key]:
    """List the keys of a config class, each section before its own keys.

    Args:
        schema: The class.
        prefix: Precedes each name.
        values: Holds the defaults; None: those of the class.
    """
    for name, field in schema.model_fields.items():
        full_name = f"{prefix}{name}"
        default = field.get_default(call_default_factory=True)
        if values is not None:
            default = getattr(values, name)
        is_required = field.is_required() and values is None
        annotation = field.annotation
        is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        yield Key(
            full_name,
            describe_type(annotation, field.metadata),
            "" if is_section else "required" if is_required else _format_default(default),
            " ".join((field.description or "").split()),
            is_section,
        )
        for section, infix in _find_sections(annotation):
            inner = default if isinstance(default, section) else None
            yield from list_keys(section, f"{full_name}{infix}.", inner)


def suggest(schema: type[BaseModel], location: Sequence[str | int]) -> str | None:
    """Suggest the key that an unknown one may have been meant to be.

    Args:
        schema: The class of the whole config.
        location: The unknown key and its sections, as in a pydantic error.

    Returns:
        The name of a key with its sections; None if none is alike.
    """
    *sections, unknown = map(str, location)
    siblings = {schema}
    for section in sections:
        fields = [
            model.model_fields[section] for model in siblings if section in model.model_fields
        ]
        if fields:  # else a user's key of a mapping, an index, or the name of a class
            siblings = {inner for field in fields for inner, _ in _find_sections(field.annotation)}
    names = {name for sibling in siblings for name in sibling.model_fields}
    if close := difflib.get_close_matches(unknown, names, 1):
        return ".".join([*sections, close[0]])
    elsewhere = [key.name for key in list_keys(schema) if key.name.split(".")[-1] == unknown]
    return elsewhere[0] if elsewhere else None


def describe_type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Describe a type in the words of a YAML file.

    Args:
        annotation: The type.
        metadata: pydantic's constraints of the field.

    Examples:
        >>> describe_type(tuple[int, ...] | None), describe_type(Literal["mass", "none"])
        ('[int, ...] or null', 'mass or none')
    """
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return describe_type(arguments[0], [*arguments[1:], *metadata])
    if origin in _UNIONS:
        first, *others = arguments
        return " or ".join([describe_type(first, metadata), *map(describe_type, others)])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in _MAPPINGS:
        return f"{{NAME: {describe_type(arguments[1])}}}"
    if arguments:
        return f"[{', '.join('...' if a is ... else describe_type(a) for a in arguments)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    name = NAMES.get(annotation) or getattr(annotation, "__name__", "any value")
    return f"{name} {_describe_bounds(metadata)}".strip()


def format_keys(schema: type[BaseModel], width: int) -> str:
    """Format all keys of a config class for --help.

    Args:
        schema: The class.
        width: Columns of the page.
    """
    lines = ["keys of the config, which --set KEY=VALUE overrides:"]
    for key in list_keys(schema):
        if key.is_section:
            lines += ["", f"  {key.name}"]
        else:
            lines.append(f"  {key.name}: {key.type} = {key.default}")
        lines += textwrap.wrap(
            key.sentence, width, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def _format_default(default: Any) -> str:
    value = TypeAdapter(Any).dump_python(default, mode="json")
    return value if isinstance(value, str) and value else json.dumps(value)


def _find_sections(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Find the config classes in a type, each with what precedes its keys: "" or ".NAME"."""
    if isinstance(annotation, type) and not get_args(annotation):
        if issubclass(annotation, BaseModel):
            yield annotation, ""
        return
    infix = ".NAME" if get_origin(annotation) in _MAPPINGS else ""
    for argument in get_args(annotation):
        for section, inner in _find_sections(argument):
            yield section, infix + inner


def _describe_bounds(constraints: Sequence[Any]) -> str:
    """Describe pydantic's constraints: ">= 0, < 1"."""
    return ", ".join(
        f"{sign} {bound:g}"
        for constraint in constraints
        for attribute, sign in _SIGNS.items()
        if (bound := getattr(constraint, attribute, None)) is not None
    )
