"""Synthetic DICOMs: what they state of whose they are."""

import numpy as np
import pydicom
import pytest

from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.record import Mammogram, hashed_id


def written(path, archive, patient):
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    record = Mammogram(archive, hashed_id(archive, patient), "i", 8, 8, lambda: image, "L", "CC", spacing=(0.1, 0.1))
    synthetic.dicom(path / "a.dcm", Stored.of_image(image, 12), record, "key")
    return pydicom.dcmread(path / "a.dcm")


@pytest.mark.parametrize(
    ("archive", "patient", "key", "removed"),
    [
        ("folder", "12345", "", "NO"),  # whoever has the hospital's numbers can hash them
        ("folder", "12345", "a secret", "YES"),
        ("folder", "", "", "YES"),  # a file that names nobody
        ("inbreast", "12345", "", "YES"),  # a public archive
    ],
)
def test_identity_counts_as_removed_only_where_nobody_can_hash_their_way_back(archive, patient, key, removed, tmp_path, monkeypatch):
    monkeypatch.setenv("TFMAMMO_ID_KEY", key)
    made = written(tmp_path, archive, patient)
    assert made.PatientIdentityRemoved == removed and made.PatientID == hashed_id(archive, patient)
    assert ("DeidentificationMethod" in made) == (removed == "YES")  # DICOM's rule: it stands where identity was removed
    assert len(made.get("DeidentificationMethod", "")) <= 64  # of a long string
