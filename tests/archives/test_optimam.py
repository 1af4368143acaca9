"""tfmammo.archives.optimam on archives in OMI-DB's native form, written to disk."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.archives.tools import change_dicom, read_archive
from tests.archives.writers import optimam as writer
from tests.small_mammograms import COLS, ROWS, make_mammogram, ramp
from tfmammo.archives import optimam
from tfmammo.mammogram import Lesion, Lost, Mammogram

MASS = Lesion("mass", (10, 20, 18, 30), pathology="malignant", margin="spiculated")
FIRST = "images/optm1/1.2.826.0.1.1.1/1.2.826.0.1.1.1.1.dcm"
read = partial(read_archive, optimam)


def mammogram(number: int, lesions=(), patient="aa", **facts) -> Mammogram:
    pathology = "malignant" if lesions else "normal"
    known = {"patient_id": patient, "spacing": (0.07, 0.05), "pathology": pathology}
    return make_mammogram(number, ramp(number / 10), lesions, **known | facts)


@pytest.fixture
def small(tmp_path):
    """optm1: a left breast with a mass, a right one without; optm2: a woman without findings."""
    right, other = mammogram(2, laterality="R"), mammogram(3, patient="bb", view="MLO")
    writer.write([mammogram(1, [MASS]), right, other], tmp_path)
    return tmp_path


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def imagedb(root: Path, client: str = "optm1") -> Path:
    return root / "data" / client / f"imagedb_{client}.json"


def nbss(root: Path) -> Path:
    return root / "data/optm1/nbss_optm1.json"


def marks_of(content: dict) -> dict:
    """The marks on the first image."""
    return content["STUDIES"]["1.2.826.0.1.1.1"]["1.2.826.0.1.1.1.1.1"]["1.2.826.0.1.1.1.1"]


def change_mark(root: Path, **values) -> None:
    edit(imagedb(root), lambda content: marks_of(content)["10000"].update(values))


def set_flags(root: Path, *flags: str, **values) -> None:
    others = ("Mass", "SuspiciousCalcifications", "FocalAsymmetry", "ArchitecturalDistortion")
    change_mark(root, **dict.fromkeys(others) | dict.fromkeys(flags, 1) | values)


# What can't be read


def test_what_is_no_mammogram_is_counted(small):
    first, second, _ = sorted(small.glob("images/*/*/*.dcm"))
    change_dicom(first, PresentationIntentType="FOR PROCESSING")
    second.unlink()
    (small / "data" / "$RECYCLE.BIN").mkdir()
    records, reasons = read(small)
    assert [record.view for record in records] == ["MLO"]
    for word in ("name is no client's", "have no DICOM file", "raw images"):
        assert word in reasons["images/*.dcm"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "JSONDecodeError"),
        (b"[]", "not a JSON object"),
        (b'{"STUDIES": [1]}', "no studies"),
        (None, "no such file"),
    ],
)
def test_a_bad_imagedb_costs_its_client_only(small, content, word):
    imagedb(small).write_bytes(content) if content is not None else imagedb(small).unlink()
    records, reasons = read(small)
    ((file, reason),) = reasons.items()
    assert len(records) == 1 and file == "data/optm1/imagedb_optm1.json" and word in reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda content: content["1"].update(EpisodeOpenedDate="1950-99-99"), "(ValueError)"),
        (lambda content: content["1"].update(SCREENING="none"), "(AttributeError)"),
        (lambda content: content["1"].update(BIOPSYWIDE={"L": {"1": 5}}), "(AttributeError)"),
        (None, "no such file"),
    ],
)
def test_bad_nbss_records_cost_the_pathology_only(small, change, word):
    edit(nbss(small), change) if change else nbss(small).unlink()
    records, reasons = read(small)
    assert [record.pathology for record in records] == [None, None, "normal"]
    assert [len(record.lesions) for record in records] == [1, 0, 0]
    assert records[0].lesions[0].pathology is None
    ((file, reason),) = reasons.items()
    assert file == "data/optm1/nbss_optm1.json" and word in reason and "1950" not in reason


def test_studies_without_an_episode_twice_and_of_another_form(small):
    def change(content):
        study = content["STUDIES"]["1.2.826.0.1.2.1"]
        study.update(EpisodeID="77", StudyDate="1999-01-01")
        study["1.9"] = study["1.2.826.0.1.2.1.3.1"]  # in two series, it is still one image
        study["1.2.826.0.1.2.1.3.1"].update({"": None, "x": None})
        content["STUDIES"]["1.5"] = 3

    edit(imagedb(small, "optm2"), change)
    records, reasons = read(small)
    assert [record.pathology for record in records] == ["malignant", "normal", None]
    assert "a study can't be read" in reasons["data/optm2/imagedb_optm2.json"]


@pytest.mark.parametrize("study", ["../../outside", "/etc", "..", "1.2\x00"])
def test_no_study_leads_out_of_the_folder(small, study):
    (small / "outside").mkdir()
    shutil.copy(small / FIRST, small / "outside")

    def rename(content):
        content["STUDIES"][study] = content["STUDIES"].pop("1.2.826.0.1.1.1")

    edit(imagedb(small), rename)
    records, reasons = read(small)
    assert len(records) == 1
    assert reasons == {"images/*.dcm": "2 images whose study or name is no UID"}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"X1": "30", "X2": "20"}, "empty or is outside"),
        ({"X1": "-9", "X2": "0"}, "outside the image"),
        ({"X1": "left"}, "1 of its 1 marks"),
        ({"Mass": None}, "its flags name no mass"),
    ],
)
def test_a_mark_that_is_no_lesion_is_lost(small, values, word):
    change_mark(small, **values)
    (record, *_), reasons = read(small)
    assert (record.lesions, record.lost) == ((), (Lost(),))
    assert record.pathology == "malignant"  # the biopsy still says so
    assert list(reasons) == [FIRST] and word in reasons[FIRST]


def test_a_box_is_cut_at_the_border(small):
    change_mark(small, X1="-3", Y1="-3", X2=str(COLS + 3), Y2=str(ROWS + 3))
    assert read(small)[0][0].lesions[0].box == (0, 0, ROWS, COLS)


# What flags, findings and events mean


@pytest.mark.parametrize(
    ("flags", "kind", "certain"),
    [
        (("Mass", "WithCalcification"), "mass", True),
        (("Mass", "ArchitecturalDistortion"), "mass", False),
        (("WithCalcification",), "calcification", True),
        (("FocalAsymmetry", "WithCalcification"), "asymmetry", True),
        (("Vascular",), "calcification", True),
    ],
)
def test_kinds_by_flags(small, flags, kind, certain):
    set_flags(small, *flags)
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.kind, lesion.kind_is_certain) == (kind, certain)


def test_a_mark_without_flags_takes_its_linked_lesions_description(small):
    set_flags(small)
    for word, kind in {"Mass with calcification": "mass", "DS": "distortion"}.items():
        described = {"L": {"1": {"LesionDescription": word}}}
        edit(nbss(small), lambda content, facts=described: content["1"].update(LESION=facts))
        assert read(small)[0][0].lesions[0].kind == kind


def test_types_of_calcification_and_margins_keep_their_words(small):
    words = {"BenignClassification": "rod-like", "MassClassification": "spiculated"}
    set_flags(small, "Dystrophic", **words)
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.kind, lesion.shape, lesion.margin) == ("calcification", "rod-like", None)
    set_flags(small, "Mass", **words)
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.kind, lesion.shape, lesion.margin) == ("mass", None, "spiculated")


@pytest.mark.parametrize(("opinion", "pathology"), [("B2", "benign"), ("B3", "malignant")])
def test_a_marks_pathology_is_its_linked_lesions(small, opinion, pathology):
    """B3 settles nothing: the only mark of a malignant breast takes the breast's."""
    edit(nbss(small), lambda content: content["1"]["BIOPSYWIDE"]["L"]["1"].update(Opinion=opinion))
    assert read(small)[0][0].lesions[0].pathology == pathology


@pytest.mark.parametrize(
    ("opinions", "pathology"),
    [
        (("B2", "B2"), "benign"),
        (("B3", "B2"), None),  # one is not proven
        (("B2", "B5"), "malignant"),
    ],
)
def test_a_mark_of_two_lesions_is_benign_only_if_both_are(small, opinions, pathology):
    """Beside other marks it does not take the breast's, and nor do they; flags may be benign."""

    def change(content):
        content["1"]["LESION"]["L"] = {number: {"LesionDescription": None} for number in "12"}
        facts = [{"DatePerformed": "2015-03-02", "Opinion": opinion} for opinion in opinions]
        content["1"]["BIOPSYWIDE"]["L"] = dict(zip("12", facts, strict=True))

    def link(content):
        marks = marks_of(content)
        marks["10000"]["LinkedNBSSLesionNumber"] = "1,2"
        marks["10001"] = marks["10000"] | {"LinkedNBSSLesionNumber": None}
        marks["10002"] = marks["10001"] | {"Mass": None, "Vascular": "Vascular"}

    edit(nbss(small), change)
    edit(imagedb(small), link)
    found = [lesion.pathology for lesion in read(small)[0][0].lesions]
    assert found == [pathology, None, "benign"]


def episode(date: str, **facts) -> dict:
    taken = {side: {"DateTaken": date} for side in "LR"}
    return {"EpisodeType": "F", "EpisodeOpenedDate": date, "SCREENING": taken} | facts


def opinion(left: str, right: str | None = None) -> dict:
    return {"left_opinion": left} | ({"right_opinion": right} if right else {})


CANCER_OF_R = {"LESION": {"R": {"1": {}}}, "INTERVALCANCER": {"R": {"1": {}}}}


@pytest.mark.parametrize(
    ("first", "later", "pathologies"),
    [
        ({}, {}, ("normal", "normal")),
        ({"ASSESSMENT": opinion("OB", "ON")}, None, (None, "normal")),
        ({"ASSESSMENT": {}}, None, (None, None)),
        ({"BIOPSYWIDE": opinion("Benign", "Normal")}, None, ("benign", "normal")),
        ({"BIOPSYFINE": opinion("OB"), "SURGERY": opinion("OM")}, None, ("malignant", None)),
        ({"BIOPSYWIDE": opinion("OU"), "ASSESSMENT": opinion("OU")}, None, (None, "normal")),
        ({}, {"BIOPSYWIDE": {"right_opinion": "OM"}}, (None, None)),
        ({"BIOPSYWIDE": opinion("OB")}, {"SURGERY": opinion("OM")}, ("benign", None)),
        ({}, {"EpisodeType": "CI"}, (None, None)),
        ({"EpisodeType": "CI", **CANCER_OF_R}, None, (None, "malignant")),
    ],
)
def test_pathology_of_a_breast(tmp_path, first, later, pathologies):
    writer.write([mammogram(1), mammogram(2, laterality="R")], tmp_path)
    records = {"1": episode("2015-03-02", **first)}
    if later is not None:
        records["2"] = episode("2018-03-02", **later)
    nbss(tmp_path).write_text(json.dumps(records), encoding="utf-8")
    mammograms, reasons = read(tmp_path)
    assert tuple(record.pathology for record in mammograms) == pathologies
    assert not reasons


def test_an_image_with_a_mark_is_not_called_normal(tmp_path):
    writer.write([mammogram(1, [Lesion("mass", (1, 1, 5, 5))], pathology="normal")], tmp_path)
    (record,), _ = read(tmp_path)
    assert (record.pathology, record.lesions[0].pathology) == (None, None)
