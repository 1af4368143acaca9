"""A start from trained weights: networks as wide as those of `training.initial`, on its patches."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import keras
from pydantic.fields import FieldInfo

from tfmammo import config as configuration
from tfmammo import shipped
from tfmammo.config import FIXED, Experiment
from tfmammo.errors import ConfigError, name_key
from tfmammo.tracking import export, models

log = logging.getLogger(__name__)


def parse_with_initial(schema: type[Experiment[Any]], options: Namespace) -> Experiment[Any]:
    """Parse a training config; what `training.initial` fixes and nobody states is its card's.

    A shipped config states nothing: its widths are the paper's. A ConfigError where the config
    contradicts the card.
    """
    experiment = configuration.parse(schema, options.config, options.set)
    uri = experiment.training.initial
    if uri is None:
        return experiment
    with name_key("training.initial"):
        fixed = _read_fixed(experiment, uri, options.output)
    ours = experiment.model_dump(mode="json")
    differing = {
        key: value for key, value in fixed.items() if not _is_alike(key, _get(ours, key), value)
    }
    for key in sorted(differing.keys() & _list_stated(options)):
        raise ConfigError(
            f"training.initial: {uri} has {key}={differing[key]}, and the config says "
            f"{_get(ours, key)}; leave out {key}"
        )
    if differing:
        taken = [f"{key}={json.dumps(value)}" for key, value in differing.items()]
        log.info("taken from %s: %s", uri, " ".join(taken))
        try:
            experiment = configuration.parse(schema, options.config, [*options.set, *taken])
        except ConfigError as error:
            raise ConfigError(f"training.initial: {uri} doesn't fit this system: {error}") from None
    return experiment


def _read_fixed(experiment: Experiment[Any], uri: str, output: Path | None) -> dict[str, Any]:
    """Read the keys that the weights fix: the images' size, and what the model marks as `FIXED`.

    A training run that goes on has them in its own folder.
    """
    if output and configuration.is_training_folder(output):
        config = configuration.read_yaml(output / configuration.TRAINING_CONFIG)
    else:
        config = export.read_card(models.resolve(uri, experiment.tracking.uri)).get("config", {})
    fields = type(experiment.model).model_fields
    model = [name for name, field in fields.items() if _is_fixed(field)]
    parts = {"data": ("size", "canvas"), "model": model}
    return {
        f"{section}.{name}": content[name]
        for section, names in parts.items()
        for content in [config.get(section) or {}]
        for name in names
        if name in content
    }


def assign(networks: Mapping[str, keras.Model], uri: str, experiment: Experiment[Any]) -> Path:
    """Give networks the weights of a trained model; return the folder of its export."""
    folder = models.resolve(uri, experiment.tracking.uri)
    export.assign(networks, folder)
    return folder


def _is_fixed(field: FieldInfo) -> bool:
    """Whether a field is annotated as `FIXED`, or a tuple of what is."""
    return FIXED in field.metadata or any(
        FIXED in get_args(part) for part in get_args(field.annotation)
    )


def _is_alike(key: str, ours: Any, fixed: Any) -> bool:
    """Whether networks have the same variables: whichever file their first weights were from."""
    if isinstance(ours, dict) and isinstance(fixed, dict):
        return ours.keys() == fixed.keys() and all(
            _is_alike(name, ours[name], fixed[name]) for name in ours
        )
    if key.rpartition(".")[2] == "weights":
        return (ours == "none") == (fixed == "none")
    return bool(ours == fixed)


def _list_stated(options: Namespace) -> set[str]:
    """List the keys that overrides, or a config of the user's own, state."""
    stated = set()
    for override in options.set:
        key = override.partition("=")[0].strip()
        value = configuration.read_value(override)
        is_section = "." not in key and isinstance(value, dict)
        stated |= {f"{key}.{name}" for name in value} if is_section else {key}
    path = shipped.find_config(options.config)
    if path.resolve().parent != shipped.ROOT / "configs":
        for section, content in configuration.read_yaml(path).items():
            stated |= (
                {f"{section}.{key}" for key in content} if isinstance(content, Mapping) else set()
            )
    return stated


def _get(content: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return (content.get(section) or {}).get(name)
