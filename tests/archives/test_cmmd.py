"""CMMD, in files written as TCIA distributes it."""

from functools import partial

import pytest

from tests.archives.tools import CLUSTER, MASS, read_archive
from tests.archives.writers import cmmd as writer
from tests.archives.writers.tables import write_xlsx
from tests.small_mammograms import make_mammogram, ramp
from tfmammo.archives import cmmd
from tfmammo.data.sampling import is_normal
from tfmammo.mammogram import Lost

read = partial(read_archive, cmmd)
TABLE = "CMMD_clinicaldata_revision.xlsx"


@pytest.fixture
def root(tmp_path):
    """Both views of a breast with two kinds of findings, its other breast, and another woman."""
    facts = [
        {"patient_id": "a", "pathology": "malignant", "lesions": [MASS, CLUSTER]},
        {"patient_id": "a", "pathology": "malignant", "lesions": [MASS, CLUSTER], "view": "MLO"},
        {"patient_id": "a", "laterality": "R"},
        {"patient_id": "b", "pathology": "benign", "lesions": [CLUSTER], "laterality": "R"},
    ]
    writer.write([make_mammogram(i, ramp(0.2), **each) for i, each in enumerate(facts)], tmp_path)
    return tmp_path


def test_breasts_have_pathology_and_images_no_lesions(root):
    records, reasons = read(root)
    assert not reasons
    both = (Lost("mass"), Lost("calcification"))
    shown = [(r.laterality, r.view) for r in records]
    assert shown == [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "CC")]
    assert [r.pathology for r in records] == ["malignant", "malignant", None, "benign"]
    assert [r.lost for r in records] == [both, both, (Lost(),), (Lost("calcification"),)]
    assert not any(record.lesions or is_normal(record) for record in records)
    assert len({record.patient_id for record in records}) == 2
    assert len({record.image_id for record in records}) == 4


def test_two_findings_of_a_breast_and_words_that_are_not_known(root):
    rows = [
        ("D1-0001", "L", 44, 2, "mass", "Benign", ""),
        ("D1-0001", "L", 44, 2, "calcification", "Malignant", ""),
        ("D1-0002", "R", 44, 2, "hedgehog", "perhaps", ""),
        ("D1-0003", "R", 44, 2, "mass", "Benign", ""),
    ]
    write_xlsx(root / TABLE, [writer.COLUMNS, *rows])
    records, reasons = read(root)
    assert [record.pathology for record in records] == ["malignant", "malignant", None, None]
    assert records[0].lost == (Lost("mass"), Lost("calcification"))
    assert records[3].lost == (Lost(),)
    assert reasons == {TABLE: "1 of its breasts have no image here"}


def test_a_csv_of_it_and_files_of_nobody(root):
    (root / TABLE).unlink()
    csv = "ID1;LeftRight;abnormality;classification\nD1-0002;R;mass;Malignant\n"
    (root / "CMMD_clinicaldata_revision.csv").write_text(csv)
    (root / "CMMD" / "D1-0001").rename(root / "CMMD" / "unknown")
    (record,), reasons = read(root)
    assert record.pathology == "malignant"
    assert reasons == {
        "CMMD_clinicaldata_revision.csv": "3 DICOM files are in no patient's folder (D1-0001)"
    }
