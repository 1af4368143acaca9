"""RSNA's competition of 2022, in files written as it is distributed."""

from functools import partial

import numpy as np
import pytest

from tests.archives.tools import edit_csv, read_archive
from tests.archives.writers import rsna as writer
from tests.small_mammograms import make_mammogram, ramp
from tfmammo.archives import rsna
from tfmammo.data.sampling import is_normal
from tfmammo.mammogram import Lost

read = partial(read_archive, rsna)


@pytest.fixture
def root(tmp_path):
    """Two images of one woman, with a cancer at the left, and one normal image of another."""
    facts = [
        {"patient_id": "a", "pathology": "malignant", "density": "B"},
        {"patient_id": "a", "laterality": "R", "view": "MLO"},
        {"patient_id": "b", "pathology": "normal"},
    ]
    writer.write([make_mammogram(i, ramp(0.1), **each) for i, each in enumerate(facts)], tmp_path)
    return tmp_path


def test_breasts_have_pathology_and_images_no_lesions(root):
    records, reasons = read(root)
    assert not reasons
    facts = [(r.laterality, r.view, r.pathology, r.birads, r.density) for r in records]
    assert facts == [
        ("L", "CC", "malignant", "0", "B"),
        ("R", "MLO", None, None, None),
        ("L", "CC", "normal", "1", None),
    ]
    assert [r.lost for r in records] == [(Lost(),), (Lost(),), ()]
    assert [is_normal(r) for r in records] == [False, False, True]
    assert records[0].patient_id == records[1].patient_id != records[2].patient_id
    np.testing.assert_allclose(records[0].pixels(), ramp(0.1), atol=1e-3)


@pytest.mark.parametrize(
    ("cells", "pathology"),
    [
        ({"BIRADS": "2"}, None),
        ({"BIRADS": ""}, None),
        ({"BIRADS": "1", "difficult_negative_case": "True"}, None),
        ({"biopsy": "1"}, "benign"),
        ({"cancer": ""}, None),
        ({"cancer": "1"}, "malignant"),
    ],
)
def test_only_a_negative_breast_without_biopsy_is_normal(root, cells, pathology):
    edit_csv(root / "train.csv", 2, **cells)
    record = rsna.read(root)[2]
    assert record.pathology == pathology and record.lost == (Lost(),)


def test_of_two_tables_the_nearest_to_the_root_counts(root):
    (root / "a" / "b").mkdir(parents=True)
    (root / "train.csv").rename(root / "a" / "train.csv")
    (root / "a" / "b" / "train.csv").write_text("another")
    assert len(rsna.read(root)) == 3


def test_spellings_of_one_patient_and_images_that_are_not_here(root):
    edit_csv(root / "train.csv", 0, patient_id="10006.0")
    next((root / "train_images/10007").iterdir()).rename(root / "train_images/other.dcm")
    records, reasons = read(root)
    assert len({record.patient_id for record in records}) == 1 and len(records) == 2
    assert reasons == {
        "train.csv": "1 of its images are not here as <patient_id>/<image_id>.dcm; "
        "1 DICOM files are not in it"
    }
