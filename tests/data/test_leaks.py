"""`split` checks what its parts return: a fault in one of them must not let a patient leak."""

import numpy as np
import pytest

from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.errors import LeakError

PATIENTS = np.array(["a", "a", "b", "b", "c", "c"])


def make_archive():
    """Six mammograms of three patients, two thirds of them in the archive's training set."""
    empty = np.array([""] * len(PATIENTS))
    subsets = np.array(["train", "train", "train", "train", "test", "test"])
    return splits.Mammograms(PATIENTS, empty, empty, subsets)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("split_by_patient", {"folds": 3}),
        ("split_officially", {"split": "official"}),
        ("split_by_file", {"split_file": "split.json"}),
    ],
)
def test_a_leak_of_any_part_is_refused(tmp_path, monkeypatch, part, values):
    archive = make_archive()
    monkeypatch.chdir(tmp_path)
    saved = splits.describe(archive, DataConfig(folds=3), "phantom")
    splits.save(tmp_path / "split.json", saved)
    config = DataConfig(**values)
    train, held_out = splits.split(archive, config)
    assert not set(train.patient_ids) & set(held_out.patient_ids)

    def leak(*arguments):
        return np.array([0, 1, 2, 4]), np.array([3, 5])  # b and c are on both sides

    monkeypatch.setattr(splits, part, leak)
    with pytest.raises(LeakError, match="both subsets of the split: 2"):
        splits.split(archive, config)


@pytest.mark.parametrize(("train", "held_out"), [([0, 1, 2, 3, 4, 5], []), ([], [0, 1])])
def test_an_empty_subset_is_refused(monkeypatch, train, held_out):
    rows = (np.array(train, np.intp), np.array(held_out, np.intp))
    monkeypatch.setattr(splits, "split_by_patient", lambda *arguments: rows)
    with pytest.raises(splits.DataError, match="none may be empty"):
        splits.split(make_archive(), DataConfig(folds=3))
