"""YAML and --set overrides -> one frozen, typed config. The only file that knows YAML.

An unknown key, a wrong type or a missing file is a `ConfigError`: one sentence that names the key.
"""

from __future__ import annotations

import difflib
import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tfmammo import shipped
from tfmammo.config import keys
from tfmammo.errors import ConfigError, summarize

TRAINING_CONFIG = "config.yaml"  # the file in which a training run keeps its config
FLOAT32_MAX = 2.0**128 - 2.0**104
MOST_VALUES = 100_000  # of a config file, aliases written out
# What loading YAML raises: a value that only looks like a date or a number ("2020-99-99") escapes
# as its conversion's error.
_NOT_YAML = (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError)


class Frozen(BaseModel):
    """The base of every config class: immutable, without unknown keys or non-finite numbers."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _fits_float32(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and abs(number) > FLOAT32_MAX:
                raise ValueError("input should fit float32, in which networks compute")
        return value


LARGEST_WIDTH = 2**16  # of a layer; a hundred million channels take minutes to fill the memory
FIXED = "fixed by trained weights"  # annotates a field that training.initial decides
Width = Annotated[int, Field(gt=0, le=LARGEST_WIDTH), FIXED]

Schema = TypeVar("Schema", bound=BaseModel)


def parse(schema: type[Schema], path: str | Path | None, overrides: Iterable[str] = ()) -> Schema:
    """Read a YAML file, or overrides alone, into any config class; see `sections.load`.

    Examples:
        >>> from tfmammo.config import Experiment
        >>> from tfmammo.models.can import CANConfig
        >>> parse(Experiment[CANConfig], "configs/can.yaml").model.filters[:3]
        (64, 128, 256)
    """
    content = read_yaml(shipped.find_config(path)) if path else {}
    for override in overrides:
        _override(content, override)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        fault = describe(error, schema)
        raise ConfigError(f"{path}: {fault}" if path else fault) from None


def read_value(override: str) -> Any:
    """Read the value of an override, KEY=VALUE."""
    try:
        return _load_yaml(override.partition("=")[2])
    except _NOT_YAML:
        raise ConfigError(f"--set {override}: the value is not YAML") from None


def format_overrides(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Flatten a nested mapping into overrides: {"data": {"size": 64}}: data.size=64."""
    overrides = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            overrides += format_overrides(value, f"{prefix}{key}.")
        else:
            overrides.append(format_override(f"{prefix}{key}", value))
    return overrides


def format_override(key: str, value: Any) -> str:
    """Write an override, KEY=VALUE, that is read as this value."""
    is_text = isinstance(value, str | Path)
    return f"{key}={_quote(str(value)) if is_text else json.dumps(value, default=str)}"


def _quote(text: str) -> str:
    """Quote a text that YAML would read as something else: "INbreast #2", "1", "null"."""
    try:
        is_plain = read_value(f"={text}") == text
    except ConfigError:
        is_plain = False
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def dump(config: BaseModel) -> str:
    """Write a config as YAML, which `parse` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def is_training_folder(output: Path) -> bool:
    """Tell whether a training run has claimed the folder, by keeping its config there."""
    path = output / TRAINING_CONFIG
    return path.is_file() and path.stat().st_size > 0


def describe(error: ValidationError, schema: type[BaseModel] | None = None) -> str:
    """Describe all faults of a config in one sentence: "training.stepz: unknown key".

    Args:
        error: What pydantic found.
        schema: The config's class, of which an unknown key may be a misspelt one.
    """
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])  # none of a fault of the whole file
        if fault["type"] == "extra_forbidden":
            meant = keys.suggest(schema, fault["loc"]) if schema else None
            hint = f", did you mean {meant}?" if meant else ""
            faults.append(f"{key}: unknown key{hint}")
        elif fault["type"] == "missing":
            faults.append(f"{key}: missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            # the input of a check of a whole section is the section, which is too long to show
            is_section = fault["type"] == "value_error" and isinstance(fault["input"], Mapping)
            value = "" if is_section else f" (got {_show(fault['input'])})"
            place = f"{key}: " if key else ""
            faults.append(f"{place}{message[0].lower()}{message[1:]}{value}")
    return "; ".join(faults)


def _show(value: object) -> str:
    """Show a value in a few words, however large it is."""
    words = reprlib.Repr()
    words.maxstring = words.maxlong = words.maxother = 80
    try:
        return words.repr(value)[:80]
    except ValueError:  # a number of more digits than Python writes
        return "a huge number"


def _load_yaml(text: str) -> Any:
    """Load YAML, without keys that stand twice and without aliases that grow beyond bounds."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _check_nodes(node)
        return loader.construct_document(node) if node else None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _check_nodes(root: Any) -> None:
    """Refuse a key that is twice, and more values than a config has, aliases written out.

    Raises:
        yaml.YAMLError: As above.
    """
    waiting = [root] if root else []
    seen = 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen + len(waiting) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {MOST_VALUES:,} values")
        if node.id == "sequence":
            waiting += node.value
        elif node.id == "mapping":
            waiting += [part for pair in node.value for part in pair]
            names = Counter(key.value for key, _ in node.value if key.id == "scalar")
            for name, count in names.items():
                if name != "<<" and count > 1:
                    raise yaml.YAMLError(f"{name} is there twice")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds sections or keys.

    Raises:
        ConfigError: The file is missing, is not YAML or contains no keys.
    """
    try:
        content = _load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = difflib.get_close_matches(path.stem, shipped.list_configs(), 1)
        hint = f", did you mean {names[0]}, which is shipped?" if names else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: is not YAML ({summarize(error)})") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: contains no sections")
    return dict(content)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, _ = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: must read section.key=value")
    value = read_value(override)
    section = content
    for part in parts[:-1]:
        inner = section.get(part)
        section[part] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        section = inner
    section[parts[-1]] = value
