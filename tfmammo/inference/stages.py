"""One stage of the CAD pipeline: a function of an export, and what its card says of its patches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tfmammo.config import DataConfig
from tfmammo.errors import PipelineError
from tfmammo.tracking import export, models
from tfmammo.tracking.export.card import remove_places


@dataclass(frozen=True, eq=False)
class Stage:
    """One function of an export.

    Attributes:
        handle: Model URI.
        card: The export's card.
        size: Rows and columns of the input, px.
        call: Name -> float32 array, see export.load.
        folder: The export's folder.
        name: The function's name.
    """

    handle: str
    card: Mapping[str, Any]
    size: int
    call: Callable[..., export.Tensors]
    folder: Path
    name: str

    @staticmethod
    def load(handle: str, source: str, target: str, uri: str | None) -> Stage:
        """Load the function of an export that leads from `source` to `target`.

        Args:
            handle: Model URI.
            source: Name of the input.
            target: Name of the output.
            uri: Store of models:/ and runs:/ URIs.
        """
        folder = models.resolve(handle, uri)
        name = export.find_function(folder, {source}, {target}, handle)
        card = export.read_card(folder)
        size = card["functions"][name]["inputs"][source]["shape"][1]
        return Stage(handle, card, size, export.load(folder, name), folder, name)


def describe_model(handle: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a model by its URI and what its card says."""
    handle = remove_places(handle)  # results travel
    if not card:
        return {"handle": handle, "card": None}
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    facts = {name: card.get(name) for name in ("name", "step", "git_commit", "data_fingerprint")}
    return {"handle": handle, "card": digest, **facts}


def read_training_data(segmenter: Stage) -> DataConfig:
    """Return how a segmenter's patches were made, which must be around lesions."""
    try:
        data = DataConfig.model_validate(segmenter.card["config"]["data"])
    except (KeyError, TypeError, ValidationError):
        raise PipelineError(
            f"{segmenter.handle}: its {export.CARD} does not say how its patches are made"
        ) from None
    if data.patches != "lesion":
        raise PipelineError(
            f"{segmenter.handle}: was trained on data.patches={data.patches}, not on patches "
            "around lesions"
        )
    if data.size != segmenter.size:
        raise PipelineError(
            f"{segmenter.handle}: takes {segmenter.size} px, but its {export.CARD} says {data.size}"
        )
    return data
