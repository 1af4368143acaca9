"""Cards of exported detectors whose SavedModels the tests write themselves."""

import json
from collections.abc import Sequence
from pathlib import Path

from tfmammo.config import DataConfig
from tfmammo.mammogram import key_check
from tfmammo.tracking.export import FORMAT


def write_ssd_card(folder: Path, data: DataConfig, train_patients: Sequence[str] = ()) -> None:
    """Write the card of an SSD of one SavedModel into its export."""
    card = {
        "format": FORMAT,
        "name": "ssd",
        "serves": "saved_model",
        "functions": {},
        "train_patients": list(train_patients),
        "id_key": key_check(),
        "config": {"data": data.model_dump(mode="json")},
    }
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
