"""The card of an export, and where an export is."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from tfmammo.config import describe
from tfmammo.errors import ExportError, summarize
from tfmammo.mammogram import ID_KEY, hash_id, is_keyed, key_check, key_fault

log = logging.getLogger(__name__)
FORMAT = 1
CARD = "card.json"
SIGNATURE = "serving_default"
PACKED = "packed"  # in the card of a network of the zoo
# Public patients whom networks of the zoo may have been trained on: their archive's own reader,
# what it hashes of a patient, a number above all of theirs, and what precedes the hash where a
# folder of several archives names them by it.
ARCHIVES = (
    ("cbis_ddsm", "P_{:05}", 3000, "cbis"),
    ("cdd_cesm", "P{}", 400, "cesm"),
    ("phantom", "0/{}", 3000, "phantom"),
)
# Of every tensor with this name; any other may have any value.
RANGES = {
    "image": [0.0, 1.0],
    "mask": [0.0, 1.0],
    "uncertainty": [0.0, 0.5],
    "shapes": [0.0, 1.0],
    "noise": [-1.0, 1.0],
    "lesion": [-1.0, 1.0],
    "tri_label": [0.0, 1.0],
}
PLAIN_NAME = re.compile(r"\w[\w .-]*")  # of systems and functions, which become folders
# float32, relative to each value, and to an output's largest value if that is above 1
TOLERANCE = 1e-5


class _Tensor(BaseModel):
    shape: list[int | None]
    dtype: str
    range: tuple[float, float] | None = None


class _Function(BaseModel):
    inputs: dict[str, _Tensor]
    outputs: dict[str, _Tensor]


class _Pretrained(BaseModel):
    """Published weights, see networks.Trainable.pretrained and published.Source."""

    title: str
    sha256: str


class _CardForm(BaseModel):
    """What this package reads of a card."""

    name: str
    serves: str
    functions: dict[str, _Function]
    networks: dict[str, int] = {}
    versions: dict[str, str] = {}
    config: dict[str, Any] = {}
    train_patients: list[str] = []
    pretrained: dict[str, _Pretrained] = {}


Tensors = dict[str, NDArray[np.float32]]


def locate(directory: Path) -> Path:
    """Find an export: in its place, or beside it.

    It is next to its place after a crash between the two moves that replace one export by another.
    """
    old = sibling(directory, "old")
    return old if old.is_dir() and not directory.exists() else directory


def read_card(directory: Path) -> dict[str, Any]:
    """Read the card of an export.

    Returns:
        "format", "name", "serves", "versions", "networks" (name -> number of parameters),
        "functions" (name -> "inputs" and "outputs", each name -> shape, dtype and range, and
        "variables"), and what `export` was given.

    Raises:
        ExportError: The folder contains no export, or one of a newer tfmammo.
    """
    path = locate(Path(directory)) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ExportError(f"{directory}: contains no export, {CARD} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: can't be read ({summarize(error)})") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ExportError(f"{path}: is no card of format {FORMAT}, the one that this version reads")
    try:
        _CardForm.model_validate(card)
    except ValidationError as error:
        raise ExportError(f"{path}: is no card ({describe(error)})") from None
    check_names(path, card)
    return card


def format_card(card: Mapping[str, Any]) -> str:
    """Format a card as Markdown for people: what it is, data, metrics, functions, versions.

    Patients are counted, not named.

    Args:
        card: Of `read_card`.
    """
    step = f", step {int(card['step']):,}" if "step" in card else ""
    lines = [f"**{card['name']}**{step}. Research software: not for diagnosis.", ""]
    data = card.get("config", {}).get("data", {})
    if data:
        patients = len(card.get("train_patients", ()))
        lines.append(
            f"- Data: {card.get('archive', data.get('name'))}, {data.get('size')} px, frame "
            f"{data.get('frame')}, split {card.get('split', data.get('split'))}, {patients:,} "
            "patients trained on"
        )
    metrics = card.get("metrics", {})
    if metrics:
        values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        lines.append(f"- On held-out patches: {values}")
    for name, source in card.get("pretrained", {}).items():
        digest = f", SHA-256 {source['sha256']}" if source["sha256"] else ""
        lines.append(f"- Published weights of `{name}`: {source['title']}{digest}")
    for name, function in card["functions"].items():
        sides = (
            ", ".join(f"{key} {tensor['shape'][1:]}" for key, tensor in function[side].items())
            for side in ("inputs", "outputs")
        )
        lines.append(f"- `{name}`: {' to '.join(sides)}")
    networks = ", ".join(f"{name} {count:,}" for name, count in card.get("networks", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items())
    lines += [f"- Weights: {networks}", f"- Made with {versions}"]
    if card.get("git_commit"):
        changed = ", with changes" if str(card.get("git_dirty")) == "true" else ""
        lines.append(f"- Commit {card['git_commit']}{changed}")
    return "\n".join(lines) + "\n"


def get_training_patients(card: Mapping[str, Any], where: object) -> frozenset[str]:
    """Return the pseudonyms of the patients that an export's networks were trained on.

    Those of a network of the zoo, whose patients are public, are also the ones that their archive's
    own reader gives them, and under a TFMAMMO_ID_KEY those of this key.

    Args:
        card: Of `read_card`.
        where: What an error names.

    Raises:
        KeyError: The card does not name them.
        ExportError: They were made with another TFMAMMO_ID_KEY, so none could match a patient of
            today.
    """
    patients = frozenset(card["train_patients"])
    if card.get(PACKED) and card.get("id_key") == key_check(key=""):
        return _translate(patients, where, key_check())
    if fault := key_fault(card.get("id_key")):
        raise ExportError(f"{where}: {fault}")
    return patients


@lru_cache
def _translate(patients: frozenset[str], where: object, check: str) -> frozenset[str]:
    """Add today's pseudonyms of public patients; `check` tells keys apart."""
    added: set[str] = set()
    found: set[str] = set()
    for archive, form, end, prefix in ARCHIVES:
        for number in range(end):
            name = form.format(number)
            plain = hash_id(archive, name, key="")
            names = [(archive, name), ("folder", name.casefold()), ("folder", f"{prefix}_{plain}")]
            if known := [each for each in names if hash_id(*each, key="") in patients]:
                found |= {hash_id(*each, key="") for each in known}
                added |= {hash_id(*each) for each in (names[0], *known)}
    if is_keyed() and len(found) < len(patients):
        log.info(
            "%s: %d of its %d patients are unknown here, because %s is set",
            where,
            len(patients) - len(found),
            len(patients),
            ID_KEY,
        )
    return patients | added


def find_function(
    directory: Path, inputs: Collection[str], outputs: Collection[str], handle: str | None = None
) -> str:
    """Find the function of an export with exactly these inputs and at least these outputs.

    If there are several, it is the one that the card serves, else the first. `handle` is what an
    error calls the export; None: its directory.

    Raises:
        ExportError: There is none.
    """
    card = read_card(directory)
    names = sorted(card["functions"], key=lambda name: name != card["serves"])
    for name in names:
        function = card["functions"][name]
        if set(function["inputs"]) == set(inputs) and set(outputs) <= set(function["outputs"]):
            return name
    wanted = f"{', '.join(sorted(inputs))} to {', '.join(sorted(outputs))}"
    raise ExportError(
        f"{handle or directory}: holds a model for {card['name']}, and none of its functions "
        f"leads from {wanted}"
    )


def check_names(path: Path | str, card: Mapping[str, Any]) -> None:
    """Check that the names in a card can be names of folders; an error begins with the path."""
    for name in (*([card["name"]] if "name" in card else []), *card.get("functions", ())):
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise ExportError(
                f"{path}: {str(name)[:80]!r} is no plain name (letters, digits, _ - .)"
            )


def describe_variables(network: Any) -> list[str]:
    """Describe a network's variables for the model card, as "NAME ROWSxCOLS" in their order.

    Only the last part of its path counts, because layers' names count up within a process.
    """
    return [
        f"{variable.name} {'x'.join(map(str, variable.shape)) or 'scalar'}"
        for variable in network.variables
    ]


def sibling(directory: Path, suffix: str) -> Path:
    """Return the absolute path of a hidden folder beside an export."""
    path = Path(os.path.abspath(directory))  # "." has no name
    return path.with_name(f".{path.name}.{suffix}")


def remove_places(content: Any, key: str = "") -> Any:
    """Remove places of this machine from what others may be given.

    Keys named root and tracking_uri become null, because a store's address may hold a password. Of
    any other path that leads out of the current folder only the last part is left.

    Args:
        content: What JSON can hold.
        key: Where it is.
    """
    if isinstance(content, dict):
        return {name: remove_places(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [remove_places(value, key) for value in content]
    if key in ("root", "tracking_uri"):
        return None
    leads_out = isinstance(content, str) and (
        Path(content).is_absolute() or content.startswith(("~", ".."))
    )
    return Path(content).name if leads_out else content
