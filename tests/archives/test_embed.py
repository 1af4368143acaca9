"""EMBED's open data, in files written as it is distributed."""

from functools import partial

import pytest

from tests.archives.tools import CLUSTER, MASS, read_archive
from tests.archives.tools import edit_csv as edit
from tests.archives.writers import embed as writer
from tests.small_mammograms import COLS, make_mammogram, ramp
from tfmammo.archives import embed
from tfmammo.data.sampling import is_normal
from tfmammo.mammogram import Lost

read = partial(read_archive, embed)
FILES = "tables/EMBED_OpenData_metadata.csv"
FINDINGS = "tables/EMBED_OpenData_clinical.csv"


@pytest.fixture
def root(tmp_path):
    """A mass, two findings with a box each, and a normal image."""
    facts = [
        {"lesions": [MASS], "spacing": (0.07, 0.07)},
        {"lesions": [MASS, CLUSTER], "laterality": "R"},
        {"view": "MLO"},
    ]
    writer.write([make_mammogram(i, ramp(0.2), **each) for i, each in enumerate(facts)], tmp_path)
    return tmp_path


def test_boxes_with_what_the_findings_say_of_them(root):
    (one, two, normal), reasons = read(root)
    assert not reasons
    (lesion,) = one.lesions
    facts = (lesion.kind, lesion.kind_is_certain, lesion.pathology, lesion.shape, lesion.margin)
    assert facts == ("mass", True, "malignant", "irregular", "spiculated")
    assert lesion.box == MASS.box and not lesion.outlines and not one.lost
    assert (one.pathology, one.birads, one.density) == ("malignant", "4", "2")
    assert (one.laterality, one.view, one.spacing) == ("L", "CC", (0.07, 0.07))
    # which box is which finding's nobody says
    unsure = [(each.kind, each.kind_is_certain, each.pathology) for each in two.lesions]
    assert unsure == [("mass", False, None)] * 2
    assert two.pathology == "malignant" and not two.lost
    assert (normal.pathology, normal.view, normal.birads) == ("normal", "MLO", "1")
    assert [is_normal(record) for record in (one, two, normal)] == [False, False, True]


@pytest.mark.parametrize(
    ("cells", "pathology", "birads"),
    [
        ({"asses": "B"}, None, "2"),
        ({"massshape": "O"}, None, "1"),
        ({"path_severity": "4"}, "benign", "1"),
        ({"path_severity": "6"}, None, "1"),
        ({"path_severity": "1", "side": "B"}, "malignant", "1"),
        # of the other breast
        ({"asses": "A", "side": "R"}, None, None),
        ({"path_severity": "1", "bside": "R"}, "normal", "1"),
    ],
)
def test_without_a_box_only_a_negative_breast_is_normal(root, cells, pathology, birads):
    edit(root / FINDINGS, 3, **cells)
    record = embed.read(root)[2]
    assert (record.pathology, record.birads) == (pathology, birads)
    assert record.lost == (() if pathology == "normal" else (Lost(),))


def test_a_finding_without_a_box_is_lost(root):
    edit(root / FINDINGS, 0, add=True, asses="P", path_severity="")
    record = embed.read(root)[0]
    assert len(record.lesions) == 1 and record.lost == (Lost(),)
    assert (record.pathology, record.lesions[0].pathology) == ("malignant", None)


@pytest.mark.parametrize(
    ("cells", "boxes", "lost"),
    [
        ({"ROI_coords": "((10, 20, 19, 99),)"}, [(10, 20, 19, COLS)], ()),
        ({"ROI_coords": "([10, 20, 19, 31], [1, 2, 3, 4])", "num_roi": "2.0"}, 2, ()),
        ({"ROI_coords": "((10, 20, 10, 31),)"}, [], (Lost("mass"),)),
        ({"ROI_coords": "((900, 20, 910, 31),)"}, [], (Lost("mass"),)),
        ({"ROI_coords": "()"}, [], (Lost(),)),
        ({"ROI_coords": "((1, 2, 3),)"}, [], (Lost(),)),
    ],
)
def test_boxes(root, cells, boxes, lost):
    edit(root / FILES, 0, **cells)
    record = embed.read(root)[0]
    assert record.lost == lost
    found = [lesion.box for lesion in record.lesions]
    assert found == boxes if isinstance(boxes, list) else len(found) == boxes


def test_other_files_are_counted(root):
    edit(root / FILES, 0, FinalImageType="cview")
    edit(root / FILES, 1, spot_mag="1.0")
    edit(root / FILES, 2, add=True, anon_dicom_path="/elsewhere/gone.dcm")
    (_,), reasons = read(root)
    (reason,) = reasons.values()
    for words in ("1 C-views", "1 spot or magnification", "1 of its files are not here"):
        assert words in reason


def test_one_patient_in_two_spellings_and_reduced_tables(root):
    edit(root / FILES, 1, empi_anon="66685715.0")
    edit(root / FILES, 2, empi_anon="6.66857E+09")
    for name in (FILES, FINDINGS):
        (root / name).rename(root / name.replace(".csv", "_reduced.csv"))
    records, reasons = read(root)
    assert len(records) == 2 and len({record.patient_id for record in records}) == 1
    assert "lost digits" in next(iter(reasons.values()))
