"""tfmammo.archives.optimam on archives in OMI-DB's native form, written to disk."""

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.archives.writers import optimam as writer
from tests.small_mammograms import COLS, ROWS, make_mammogram, ramp
from tfmammo.archives import optimam, phantom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Mammogram, Skipped

MASS = Lesion("mass", (10, 20, 18, 30), pathology="malignant", margin="spiculated")
CLUSTER = Lesion("calcification", (30, 2, 60, 44), pathology="benign")


def mammogram(number: int, lesions=(), patient="aa", **facts) -> Mammogram:
    pathology = "malignant" if lesions else "normal"
    known = {"patient_id": patient, "spacing": (0.07, 0.05), "pathology": pathology}
    return make_mammogram(number, ramp(number / 10), lesions, **known | facts)


@pytest.fixture
def small(tmp_path):
    """optm1: a left breast with a mass, a right one without; optm2: a woman without findings."""
    writer.write(
        [
            mammogram(1, [MASS]),
            mammogram(2, laterality="R"),
            mammogram(3, patient="bb", view="MLO"),
        ],
        tmp_path,
    )
    return tmp_path


def read(root: Path) -> tuple[list[Mammogram], dict[str, str]]:
    skipped = Skipped()
    return optimam.read(root, skipped), skipped.reasons


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def imagedb(root: Path, client: str = "optm1") -> Path:
    return root / "data" / client / f"imagedb_{client}.json"


def nbss(root: Path, client: str = "optm1") -> Path:
    return root / "data" / client / f"nbss_{client}.json"


def dicoms(root: Path) -> list[Path]:
    return sorted(root.glob("images/*/*/*.dcm"))


def marks_of(content: dict, image: str = "1.2.826.0.1.1.1.1") -> dict:
    return content["STUDIES"][image.rpartition(".")[0]][f"{image}.1"][image]


def change_mark(root: Path, **values) -> None:
    edit(imagedb(root), lambda content: marks_of(content)["10000"].update(values))


def set_flags(root: Path, *flags: str, **values) -> None:
    others = ("Mass", "SuspiciousCalcifications", "FocalAsymmetry", "ArchitecturalDistortion")
    change_mark(root, **dict.fromkeys(others) | dict.fromkeys(flags, 1) | values)


@pytest.mark.parametrize(("upper", "dcm_json"), [(False, False), (True, True)])
def test_round_trip_of_facts_boxes_and_pathologies(tmp_path, upper, dcm_json):
    originals = [
        mammogram(1, [MASS, CLUSTER]),
        mammogram(2, laterality="R", view="MLO"),
        mammogram(3, [CLUSTER], patient="bb", pathology="benign", spacing=None),
        mammogram(4, patient="cc"),
        mammogram(
            5,
            [Lesion("asymmetry", (0, 0, 1, 1)), Lesion("distortion", (5, 6, 7, 8))],
            patient="cc",
            pathology=None,
        ),
    ]
    paths = writer.write(originals, tmp_path, upper=upper, dcm_json=dcm_json)
    records, reasons = read(tmp_path)
    assert not reasons
    assert len(list(tmp_path.rglob("IMAGEDB_*.json"))) == 3 * upper
    assert len(list(tmp_path.rglob("*.dcm.json"))) == 5 * dcm_json
    for original, path, record in zip(originals, paths, records, strict=True):
        assert record.archive == "optimam"
        for fact in ("rows", "cols", "laterality", "view", "spacing", "pathology"):
            assert getattr(record, fact) == getattr(original, fact), fact
        assert (record.birads, record.density, record.official_split) == (None, None, None)
        lesions = [
            (lesion.kind, lesion.box, lesion.pathology, lesion.margin, lesion.outlines)
            for lesion in record.lesions
        ]
        assert lesions == [
            (lesion.kind, lesion.box, lesion.pathology, lesion.margin, ())
            for lesion in original.lesions
        ]
        stored = pydicom.dcmread(path).pixel_array.astype(int)
        np.testing.assert_array_equal(
            np.rint(record.pixels()[..., 0].astype(np.float64) * 4095), stored
        )


def test_round_trip_of_the_phantom(tmp_path):
    originals = phantom.read(count=8, seed=3)
    cheap = [
        Mammogram(**{**vars(m), "read": partial(np.zeros, (m.rows, m.cols, 1), np.float32)})
        for m in originals[1:]
    ]
    (path, *_) = writer.write([originals[0], *cheap], tmp_path, bits=14)
    records, reasons = read(tmp_path)
    assert not reasons
    for original, record in zip(originals, records, strict=True):
        assert record.pathology == original.pathology
        assert [(lesion.kind, lesion.box, lesion.pathology) for lesion in record.lesions] == [
            (lesion.kind, lesion.box, lesion.pathology) for lesion in original.lesions
        ]
    pairs = {(a.patient_id, b.patient_id) for a, b in zip(originals, records, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    stored = np.rint(originals[0].pixels()[..., 0].astype(np.float64) * (2**14 - 1))
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, stored)
    np.testing.assert_array_equal(
        np.rint(records[0].pixels()[..., 0].astype(np.float64) * (2**14 - 1)), stored
    )


def test_records_are_pickled_and_carry_pseudonyms(small, capfd, caplog):
    records, _ = read(small)
    again = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal(again[0].pixels(), records[0].pixels())
    assert len({record.image_id for record in records}) == 3
    assert records[0].patient_id == records[1].patient_id != records[2].patient_id
    for record in records:
        assert "optm" not in record.patient_id + record.image_id
        assert "1.2.826" not in record.patient_id + record.image_id
    captured = capfd.readouterr()
    assert "optm" not in captured.out + captured.err + caplog.text


def test_json_headers_are_not_needed(small):
    for path in small.glob("data/optm1/*/*.json"):
        path.write_bytes(b"{")
    assert [(record.rows, record.view) for record in read(small)[0]] == [
        (ROWS, "CC"),
        (ROWS, "CC"),
        (ROWS, "MLO"),
    ]


def test_raw_images_are_counted(small):
    dataset = pydicom.dcmread(dicoms(small)[0])
    dataset.PresentationIntentType = "FOR PROCESSING"
    dataset.save_as(dicoms(small)[0])
    records, reasons = read(small)
    assert [record.laterality for record in records] == ["R", "L"]
    assert reasons == {"images/*.dcm": "1 raw images ('for processing')"}


def test_missing_images_are_counted_once(small):
    for path in dicoms(small)[:2]:
        path.unlink()
    records, reasons = read(small)
    assert len(records) == 1
    assert reasons == {"images/*.dcm": "2 images are listed but have no DICOM file"}


def test_a_dicom_that_can_not_be_read_is_noted(tmp_path):
    paths = writer.write([mammogram(1), mammogram(2)], tmp_path)
    paths[0].write_bytes(b"text")
    records, reasons = read(tmp_path)
    assert len(records) == 1
    assert reasons == {str(paths[0].relative_to(tmp_path)): "is not a DICOM file"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "can't be read as JSON (JSONDecodeError)"),
        (b"\xff\xfe\x00", "can't be read as JSON (UnicodeDecodeError)"),
        (b"[" * 100_000, "can't be read as JSON (RecursionError)"),
        (b"[]", "is no JSON object"),
        (b"{}", "lists no studies"),
        (b'{"STUDIES": [1]}', "lists no studies"),
        (None, "no such file"),
    ],
)
def test_a_bad_imagedb_costs_its_client_only(small, content, reason):
    imagedb(small).write_bytes(content) if content is not None else imagedb(small).unlink()
    records, reasons = read(small)
    assert len(records) == 1
    assert reasons == {"data/optm1/imagedb_optm1.json": reason}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda content: content["1"].update(EpisodeOpenedDate="1950-99-99"),
            "omidb can't read it (ValueError)",
        ),
        (
            lambda content: content["1"].update(SCREENING="none"),
            "omidb can't read it (AttributeError)",
        ),
        (
            lambda content: content["1"].update(BIOPSYWIDE={"L": {"1": 5}}),
            "omidb can't read it (AttributeError)",
        ),
        (None, "no such file"),
    ],
)
def test_bad_nbss_records_cost_the_pathology_only(small, change, reason):
    edit(nbss(small), change) if change else nbss(small).unlink()
    records, reasons = read(small)
    assert [(record.pathology, len(record.lesions)) for record in records] == [
        (None, 1),
        (None, 0),
        ("normal", 0),
    ]
    assert records[0].lesions[0].pathology is None
    assert reasons == {
        "data/optm1/nbss_optm1.json": f"its images are kept without pathology: {reason}"
    }


def test_reasons_hold_no_dates(small):
    edit(nbss(small), lambda content: content["1"].update(EpisodeOpenedDate="1950-99-99"))
    assert "1950" not in str(read(small)[1])


def test_a_study_without_an_episode_stays(small):
    edit(
        imagedb(small, "optm2"),
        lambda content: content["STUDIES"]["1.2.826.0.1.2.1"].update(
            EpisodeID="77", StudyDate="1999-01-01"
        ),
    )
    records, reasons = read(small)
    assert [record.pathology for record in records] == ["malignant", "normal", None]
    assert not reasons


def test_a_study_that_is_no_object_is_noted(small):
    edit(imagedb(small), lambda content: content["STUDIES"].update({"1.5": 3}))
    records, reasons = read(small)
    assert len(records) == 3
    assert reasons["data/optm1/imagedb_optm1.json"] == "a study can't be read (AttributeError)"


@pytest.mark.parametrize("study", ["../../outside", "/etc", "..", "1.2/../../x", "", "1.2\x00"])
def test_no_study_leads_out_of_the_folder(small, study):
    (small / "outside").mkdir()
    shutil.copy(dicoms(small)[0], small / "outside" / "1.2.826.0.1.1.1.1.dcm")

    def rename(content):
        content["STUDIES"][study] = content["STUDIES"].pop("1.2.826.0.1.1.1")

    edit(imagedb(small), rename)
    records, reasons = read(small)
    assert len(records) == 1
    assert reasons == {"images/*.dcm": "2 images whose study or name is no UID"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"X1": "30", "X2": "20"}, "mark 1 left out: its box is inverted or empty"),
        ({"Y2": "10"}, "mark 1 left out: its box is inverted or empty"),
        ({"X1": "-9", "X2": "0"}, "mark 1 left out: its box lies outside the image"),
        ({"Y1": str(ROWS), "Y2": "99"}, "mark 1 left out: its box lies outside the image"),
        ({"X1": "left"}, "1 of its 1 marks can't be read"),
        ({"X1": None}, "1 of its 1 marks can't be read"),
        (
            {"Mass": None},
            "mark 1 left out: its flags name no mass, calcification, distortion or asymmetry",
        ),
    ],
)
def test_a_mark_that_is_no_lesion_is_noted(small, values, reason):
    change_mark(small, **values)
    records, reasons = read(small)
    assert records[0].lesions == () and records[0].lost == (Lost(),)
    assert records[0].pathology == "malignant"  # the biopsy still says so
    assert reasons == {str(dicoms(small)[0].relative_to(small)): reason}


def test_a_box_may_fill_the_image(small):
    change_mark(small, X1="0", Y1="0", X2=str(COLS), Y2=str(ROWS))
    assert read(small)[0][0].lesions[0].box == (0, 0, ROWS, COLS)
    change_mark(small, X1="-1", Y1="-3", X2=str(COLS + 1), Y2=str(ROWS + 9))
    assert read(small)[0][0].lesions[0].box == (0, 0, ROWS, COLS)


@pytest.mark.parametrize(
    ("flags", "kind", "certain"),
    [
        (("Mass", "WithCalcification"), "mass", True),
        (("Mass", "ArchitecturalDistortion"), "mass", False),
        (("SuspiciousCalcifications", "FocalAsymmetry"), "calcification", False),
        (("WithCalcification",), "calcification", True),
        (("FocalAsymmetry", "WithCalcification"), "asymmetry", True),
        (("ArchitecturalDistortion",), "distortion", True),
        (("Vascular",), "calcification", True),
    ],
)
def test_kinds_by_flags(small, flags, kind, certain):
    set_flags(small, *flags)
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.kind, lesion.kind_is_certain) == (kind, certain)


@pytest.mark.parametrize(
    ("description", "kind"),
    [("Mass with calcification", "mass"), ("CA", "calcification"), ("DS", "distortion")],
)
def test_a_mark_without_flags_takes_its_linked_lesions_description(small, description, kind):
    set_flags(small)
    edit(
        nbss(small),
        lambda content: content["1"]["LESION"]["L"]["1"].update(LesionDescription=description),
    )
    assert read(small)[0][0].lesions[0].kind == kind


def test_types_of_calcification_and_margins_keep_their_words(small):
    set_flags(small, "Dystrophic", BenignClassification="rod-like", MassClassification="spiculated")
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.kind, lesion.shape, lesion.margin) == ("calcification", "rod-like", None)
    set_flags(small, "Mass", BenignClassification="rod-like", MassClassification="other")
    (lesion,) = read(small)[0][0].lesions
    assert (lesion.kind, lesion.shape, lesion.margin) == ("mass", None, None)


@pytest.mark.parametrize(
    ("opinion", "flags", "pathology"),
    [
        ("B5", ("Mass",), "malignant"),
        ("B2", ("Mass",), "benign"),
        ("B3", ("Mass",), "malignant"),
        ("B3", ("Dystrophic",), "malignant"),
    ],
)
def test_a_marks_pathology_is_its_linked_lesions(small, opinion, flags, pathology):
    """B3 settles nothing: the only mark of a malignant breast takes the breast's."""
    set_flags(small, *flags)
    edit(nbss(small), lambda content: content["1"]["BIOPSYWIDE"]["L"]["1"].update(Opinion=opinion))
    assert read(small)[0][0].lesions[0].pathology == pathology


@pytest.mark.parametrize(
    ("opinions", "pathology"),
    [
        (("B2", "B2"), "benign"),
        (("B2", "B3"), None),  # one is not proven
        (("B3", "B2"), None),
        (("B2", "B5"), "malignant"),
        (("B3", "B3"), None),
    ],
)
def test_a_mark_of_two_lesions_is_benign_only_if_both_are(small, opinions, pathology):
    def change(content):
        episode = content["1"]
        lesions = {str(number): {"LesionDescription": None} for number in (1, 2)}
        biopsies = {
            str(number): {"DatePerformed": "2015-03-02", "Opinion": opinion}
            for number, opinion in enumerate(opinions, start=1)
        }
        episode["LESION"]["L"] = lesions
        episode["BIOPSYWIDE"]["L"] = biopsies

    def link(content):
        marks = marks_of(content)
        marks["10000"]["LinkedNBSSLesionNumber"] = "1,2"
        # beside another mark, it does not take the breast's pathology
        marks["10001"] = marks["10000"] | {"LinkedNBSSLesionNumber": None}

    edit(nbss(small), change)
    edit(imagedb(small), link)
    assert read(small)[0][0].lesions[0].pathology == pathology


def test_an_unlinked_mark_beside_others_stays_without_pathology_unless_its_flags_are_benign(small):
    def add(content):
        mark = marks_of(content)["10000"]
        marks_of(content)["10001"] = mark | {"LinkedNBSSLesionNumber": None}
        marks_of(content)["10002"] = mark | {
            "LinkedNBSSLesionNumber": None,
            "Mass": None,
            "Vascular": "Vascular",
        }

    edit(imagedb(small), add)
    assert [lesion.pathology for lesion in read(small)[0][0].lesions] == [
        "malignant",
        None,
        "benign",
    ]


def test_a_linked_lesion_of_the_other_breast_says_nothing(small):
    edit(nbss(small), lambda content: content["1"]["LESION"].update(L={}, R={"1": {}}))
    edit(nbss(small), lambda content: content["1"]["BIOPSYWIDE"].update(R={"1": {"Opinion": "B2"}}))
    # of the breast, the mark is the only one
    assert read(small)[0][0].lesions[0].pathology == "malignant"


def episode(date: str, **facts) -> dict:
    return {
        "EpisodeType": "F",
        "EpisodeOpenedDate": date,
        "SCREENING": {"L": {"DateTaken": date}, "R": {"DateTaken": date}},
    } | facts


@pytest.mark.parametrize(
    ("first", "later", "pathologies"),
    [
        ({}, None, ("normal", "normal")),
        ({}, {}, ("normal", "normal")),
        ({"ASSESSMENT": {"left_opinion": "ON", "right_opinion": "ON"}}, None, ("normal", "normal")),
        ({"ASSESSMENT": {"left_opinion": "OB", "right_opinion": "ON"}}, None, (None, "normal")),
        ({"ASSESSMENT": {}}, None, (None, None)),
        ({"BIOPSYWIDE": {"left_opinion": "OM"}}, None, ("malignant", None)),
        (
            {"BIOPSYWIDE": {"left_opinion": "Benign", "right_opinion": "Normal"}},
            None,
            ("benign", "normal"),
        ),
        (
            {"BIOPSYFINE": {"left_opinion": "OB"}, "SURGERY": {"left_opinion": "OM"}},
            None,
            ("malignant", None),
        ),
        (
            {"BIOPSYWIDE": {"left_opinion": "OU"}, "ASSESSMENT": {"left_opinion": "OU"}},
            None,
            (None, "normal"),
        ),
        ({}, {"BIOPSYWIDE": {"right_opinion": "OM"}}, (None, None)),
        (
            {"BIOPSYWIDE": {"left_opinion": "OB"}},
            {"SURGERY": {"left_opinion": "OM"}},
            ("benign", None),
        ),
        ({}, {"EpisodeType": "CI"}, (None, None)),
        ({"EpisodeType": "CI"}, None, (None, None)),
        (
            {"EpisodeType": "CI", "LESION": {"R": {"1": {}}}, "INTERVALCANCER": {"R": {"1": {}}}},
            None,
            (None, "malignant"),
        ),
        ({"EpisodeType": "CI", "BIOPSYWIDE": {"left_opinion": "OB"}}, None, ("benign", None)),
    ],
)
def test_pathology_of_a_breast(tmp_path, first, later, pathologies):
    writer.write([mammogram(1), mammogram(2, laterality="R")], tmp_path)
    records = {"1": episode("2015-03-02", **first)} | (
        {} if later is None else {"2": episode("2018-03-02", **later)}
    )
    nbss(tmp_path).write_text(json.dumps(records), encoding="utf-8")
    mammograms, reasons = read(tmp_path)
    assert tuple(record.pathology for record in mammograms) == pathologies
    assert not reasons


def test_an_image_with_a_mark_is_not_called_normal(tmp_path):
    writer.write([mammogram(1, [Lesion("mass", (1, 1, 5, 5))], pathology="normal")], tmp_path)
    (record,), _ = read(tmp_path)
    assert (record.pathology, record.lesions[0].pathology) == (None, None)


def test_an_image_of_two_series_is_one_record(small):
    def double(content):
        study = content["STUDIES"]["1.2.826.0.1.2.1"]
        study["1.9"] = study["1.2.826.0.1.2.1.3.1"]

    edit(imagedb(small, "optm2"), double)
    assert len(read(small)[0]) == 3


def test_empty_names_in_imagedb_are_no_images(small):
    edit(
        imagedb(small),
        lambda content: content["STUDIES"]["1.2.826.0.1.1.1"]["1.2.826.0.1.1.1.1.1"].update(
            {"": None, "x": None}
        ),
    )
    records, reasons = read(small)
    assert len(records) == 3
    assert not reasons


def test_a_folder_that_is_no_client_is_counted(small):
    (small / "data" / "$RECYCLE.BIN").mkdir()
    assert read(small)[1] == {"images/*.dcm": "1 folders whose name is no client's"}


def test_what_is_no_archive(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArchiveError, match=rf"{root}: is no"):
            optimam.read(root)
    (tmp_path / "DATA").mkdir()
    (tmp_path / "IMAGES").mkdir()
    with pytest.raises(
        ArchiveError, match=r"holds no image of OMI-DB that can be read \(0 skipped\)"
    ):
        optimam.read(tmp_path)


def test_an_archive_of_unreadable_clients(small):
    for client in ("optm1", "optm2"):
        imagedb(small, client).write_bytes(b"{")
    with pytest.raises(
        ArchiveError,
        match=r"2 skipped, the first is data/optm1/imagedb_optm1.json: can't be read as JSON",
    ):
        optimam.read(small)
