"""The verdict of an audit, by one rule, and where it is kept.

With simultaneous intervals of all attacks (Bonferroni):

    leaks       one lower bound is above the limit: that attack works
    passed      all upper bounds are below the limit: none of these attacks works
    undecided   neither; more patches may decide

The bound is the largest upper bound. "passed" covers the attacks that were tried, and no others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tfmammo
from tfmammo import filesystem
from tfmammo.apps.audit.attacks import Attack
from tfmammo.errors import ConfigError
from tfmammo.tracking import export, models, store, zoo
from tfmammo.tracking.export.card import PACKED

KEY = "audit"  # of the card, and before the tags of a registered version

Decision = Literal["leaks", "passed", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """The result of an audit, by the rule of the module."""

    decision: Decision
    bound: float  # NaN if patients are too few
    reason: str


def decide(attacks: Sequence[Attack], limit: float) -> Verdict:
    """Decide by the rule of the module."""
    lows = np.array([attack.success.low for attack in attacks])
    highs = np.array([attack.success.high for attack in attacks])
    if np.isnan(lows).any():
        return Verdict("undecided", float("nan"), "too few patients for intervals")
    strongest = attacks[int(lows.argmax())]
    bound = float(highs.max())
    success = strongest.success
    if success.low > limit:
        reason = f"{strongest.name} succeeds by {success.value:.2f}, surely above {limit:g}"
        return Verdict("leaks", bound, reason)
    if bound < limit:
        reason = f"no attack succeeds by more than {bound:.2f}, which is below {limit:g}"
        return Verdict("passed", bound, reason)
    weakest = attacks[int(highs.argmax())]
    reason = f"{weakest.name} may succeed by {bound:.2f}, which is not below {limit:g}"
    return Verdict("undecided", bound, reason)


def make_record(
    verdict: Verdict, attacks: Sequence[Attack], facts: dict[str, Any]
) -> dict[str, Any]:
    """Make the card's entry: the verdict, the attacks and further facts."""
    return {
        "verdict": verdict.decision,
        "bound": None if np.isnan(verdict.bound) else round(verdict.bound, 4),
        "reason": verdict.reason,
        "attacks": {
            attack.name: [
                None if np.isnan(value) else round(value, 4)
                for value in (attack.success.value, attack.success.low, attack.success.high)
            ]
            for attack in attacks
        },
        **facts,
        "version": tfmammo.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def find_place(handle: str, folder: Path, uri: str | None) -> str:
    """Find where a verdict is kept: models:/NAME/VERSION, in tags of the store, or a card's path.

    An alias may lead to another version once the attacks are done.

    Args:
        handle: The model URI of the network.
        folder: The export to which it leads.
        uri: The store of models:/ URIs.

    Raises:
        ConfigError: It is a copy, which would lose a verdict.
    """
    is_registered = handle.startswith("models:/") and not handle.startswith(zoo.PREFIX)
    if not is_registered and (models.is_copy(folder) or export.read_card(folder).get(PACKED)):
        raise ConfigError(
            f"write_card: {handle} is read as a copy, which would lose a verdict; set "
            "write_card=false, or name a registered version or an export on this machine"
        )
    if not is_registered:
        return str(export.locate(folder) / export.CARD)
    name, _, alias = handle.removeprefix("models:/").partition("@")
    if not alias:
        return handle
    with store.open_registry(store.store_uri(uri)) as client:
        return f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}"


def write(record: dict[str, Any], place: str, uri: str | None) -> None:
    """Write a record to a place of `find_place`; `uri` is the store of models:/ URIs."""
    if place.startswith("models:/"):
        name, _, version = place.removeprefix("models:/").partition("/")
        with store.open_registry(store.store_uri(uri)) as client:
            for key in ("verdict", "bound", "reason", "date"):
                client.set_model_version_tag(name, version, f"{KEY}.{key}", str(record[key]))
        return
    path = Path(place)
    card = json.loads(path.read_text(encoding="utf-8"))
    filesystem.write_atomically(path, json.dumps(card | {KEY: record}, indent=2) + "\n")
