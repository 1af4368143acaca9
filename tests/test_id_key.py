"""Whatever names patients by pseudonyms is refused under another TFMAMMO_ID_KEY, where it
would know nobody again.
"""

from pathlib import Path

import numpy as np
import pytest

from tfmammo.config import DataConfig
from tfmammo.data import datasets, splits
from tfmammo.data.patches import TEXTS
from tfmammo.data.patients import PATIENTS
from tfmammo.data.tfrecord import MANIFEST, Manifest, Records
from tfmammo.errors import DataError, ExportError
from tfmammo.evaluation.networks import Network
from tfmammo.mammogram import ID_KEY, Skipped, hash_id, key_check, key_fault
from tfmammo.synthesis.mammograms import collect_patients

REFUSED = "pseudonyms were made with another TFMAMMO_ID_KEY"


@pytest.fixture
def other_key(monkeypatch):
    """A function that changes the key, as on another day in another shell."""
    monkeypatch.delenv(ID_KEY, raising=False)
    return lambda: monkeypatch.setenv(ID_KEY, "a secret")


def test_a_check_value_tells_keys_apart_and_is_none_itself(monkeypatch):
    found = []
    for key in ("", "a secret", "another"):
        monkeypatch.setenv(ID_KEY, key)
        assert key_fault(key_check()) is None
        found.append(key_check())
    assert len(set(found)) == 3 and all("secret" not in one for one in found)
    assert key_fault(found[0]) and key_fault(None), "files that say nothing are not trusted"


def test_a_network_does_not_take_its_own_patients_for_new_ones(other_key):
    card = {"train_patients": [hash_id("folder", "anna")], "id_key": key_check()}
    network = Network("runs/x", Path("x"), None, card, "image")
    patients = np.array([hash_id("folder", "anna"), hash_id("folder", "berta")])
    assert network.find_unseen(patients).tolist() == [False, True]
    other_key()
    patients = np.array([hash_id("folder", "anna"), hash_id("folder", "berta")])
    with pytest.raises(ExportError, match=f"runs/x: its {REFUSED}"):
        network.find_unseen(patients)


def test_a_split_is_refused(random_patches, other_key, tmp_path):
    saved = splits.describe(random_patches(8), DataConfig(), "folder")
    splits.save(tmp_path / "split.json", saved)
    assert splits.load(tmp_path / "split.json") == saved and saved.id_key == key_check()
    other_key()
    with pytest.raises(DataError, match=rf"split\.json: its {REFUSED}"):
        splits.load(tmp_path / "split.json")


def test_records_are_refused(other_key, tmp_path):
    facts = {"format": 1, "identity": {}, "size": 32, "count": 0, "fingerprint": "", "shards": ()}
    columns = {name: () for name in TEXTS}
    manifest = Manifest(**facts, columns=columns, id_key=key_check())
    (tmp_path / MANIFEST).write_text(manifest.model_dump_json())
    assert len(Records.open(tmp_path)) == 0
    other_key()
    with pytest.raises(DataError, match=REFUSED):
        Records.open(tmp_path)


@pytest.mark.slow
def test_a_synthetic_set_is_refused(other_key, tmp_path):
    known = collect_patients([], ["p"], ["q"])
    assert known.id_key == key_check()
    (tmp_path / PATIENTS).write_text(known.model_dump_json())
    other_key()
    config = DataConfig.model_validate({"added": {"synthetic": tmp_path}})
    with pytest.raises(DataError, match=rf"patients\.json: its {REFUSED}"):
        datasets.read_synthetic(config, set(), Skipped())
    with pytest.raises(DataError, match=rf"patients\.json: its {REFUSED}"):
        datasets.list_synthetic_patients(config)
