"""Pictures of the documentation are of the networks that the package ships."""

import json
from pathlib import Path

import pytest

from tfmammo.tracking import zoo

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDS = sorted([*DOCS.glob("*.json"), *DOCS.glob("results/pictures/*.json")])


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_picture_is_of_the_shipped_networks(record):
    networks = json.loads(record.read_text())["networks"]
    assert networks == {name: zoo.read_entry(name).sha256 for name in networks}
    assert any(record.with_suffix(suffix).is_file() for suffix in (".jpg", ".png"))
