"""Structured reports beside the mammograms that they refer to: TID 1500 and Mammography CAD."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.archives.test_regions import (
    MASS,
    assert_read,
    coded,
    read,
    reason,
    write_image,
)
from tests.archives.tools import change_dicom, make_file, make_item
from tests.small_mammograms import COLS, ROWS, SQUARE
from tfmammo.archives import regions, reports
from tfmammo.archives.writers import measurements, segmentation
from tfmammo.mammogram import Lost


def build_report(image: Path, *graphics) -> Dataset:
    """Build the pipeline's report with a finding for each (graphic type, points)."""
    known = {"label": "1", "kind": "mass", "box": (1, 2, 9, 9), "score": 0.5}
    findings = [measurements.Finding(**known, tracking=generate_uid()) for _ in graphics]
    algorithm = measurements.Algorithm({"detector": "d"}, generate_uid())
    uids = generate_uid(), generate_uid()
    with segmentation.referring(image):
        source = pydicom.dcmread(image)
        report = measurements.build(source, None, findings, algorithm, *uids)
    for group, (graphic, points) in zip(reports._find(report, "125007"), graphics, strict=True):
        (place,) = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
        place.GraphicType, place.GraphicData = graphic, np.ravel(points).tolist()
    return report


def write_report(image: Path, *graphics, name="z") -> Path:
    path = image.parent / f"{name}.dcm"
    build_report(image, *graphics).save_as(path)
    return path


def closed(outline: np.ndarray) -> list[list[float]]:
    """(row, col) about pixels' centres -> column and row from the image's corner, closed."""
    points = (np.asarray(outline)[:, ::-1] + 0.5).tolist()
    return [*points, points[0]]


# TID 1500


def test_a_reports_regions(tmp_path):
    """A closed line, a circle of radius 5 and an ellipse about pixels' centres."""
    image = write_image(tmp_path)
    write_report(image, WHOLE)
    assert_read(tmp_path, MASS)
    ellipse = [[12.5, 30.5], [28.5, 30.5], [20.5, 26.5], [20.5, 34.5]]
    write_report(image, ("CIRCLE", [[20.5, 30.5], [25.5, 30.5]]), ("ELLIPSE", ellipse))
    (record,), reasons = read(tmp_path)
    rows, cols = np.mgrid[:ROWS, :COLS]
    distance = np.hypot(rows - 30, cols - 20)
    drawn = record.lesions[0].mask(ROWS, COLS)
    # the pixels that the circle crosses count, too
    assert not reasons and drawn[distance <= 5].all() and not drawn[distance > 6].any()
    assert [lesion.box for lesion in record.lesions] == [(25, 15, 36, 26), (26, 12, 35, 29)]


@pytest.mark.parametrize(
    ("graphic", "points", "message"),
    [
        ("POINT", [[20.5, 30.5]], "are points, not areas"),
        ("POLYLINE", closed(SQUARE)[:-1], "are lines that enclose nothing"),
        ("POLYLINE", closed(SQUARE + [0, 200]), "reach beyond their image"),
    ],
)
def test_what_a_report_draws_and_no_lesion_can_be(tmp_path, graphic, points, message):
    write_report(write_image(tmp_path), (graphic, points))
    assert reason(tmp_path) == f"1 of its regions {message}"


def draw(graphic, points, reference, name=None) -> Dataset:
    points = np.ravel(points).tolist()
    drawn = {"GraphicType": graphic, "GraphicData": points, "ContentSequence": reference}
    return make_content("SCOORD", name, **drawn)


def write_measurements(image: Path, *numbers, name="z", **texts) -> None:
    """Write a report as OHIF does: coordinates hang beneath (concept, value, (type, points) ...).

    Of `texts`, finding and site are codes, comment is what the user typed.
    """
    path = write_report(image, WHOLE, name=name)

    def edit(dataset):
        (group,) = reports._find(dataset, "125007")
        (pattern,) = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
        kept = [one for one in group.ContentSequence if one.ValueType in ("TEXT", "UIDREF")]
        for concept, key in (("121071", "finding"), ("363698007", "site")):
            if key in texts:
                codes = coded(*texts[key])
                kept.append(make_content("CODE", concept, ConceptCodeSequence=codes))
        for concept, value, *graphics in numbers:
            measured = [] if value is None else [make_item(NumericValue=value)]
            places = [draw(*graphic, pattern.ContentSequence) for graphic in graphics]
            within = {"MeasuredValueSequence": measured, "ContentSequence": places}
            concepts = coded(*concept)
            kept.append(make_item(ValueType="NUM", ConceptNameCodeSequence=concepts, **within))
        if "comment" in texts:
            kept.append(make_content("TEXT", "121106", TextValue=texts["comment"]))
            kept.append(draw("POINT", [1.0, 1.0], [], "TextPosition"))  # of the words
        group.ContentSequence = kept

    change_dicom(path, edit=edit)


AREA = ("42798000", "SCT", "Area")
PERIMETER = ("131191004", "SCT", "Perimeter")
LENGTH = ("410668003", "SCT", "Length")
LONG_AXIS = ("103339001", "SCT", "Long Axis")
SHORT_AXIS = ("103340004", "SCT", "Short Axis")
CENTRE = ("111010", "DCM", "Center")
WHOLE = ("POLYLINE", closed(SQUARE))
OPEN = ("POLYLINE", closed(SQUARE)[:-1])
LINE = ("POLYLINE", [[22, 12], [28, 16]])
HANDLES = ("MULTIPOINT", closed(SQUARE)[:2])
OUTLINED = [(PERIMETER, 14.2, WHOLE), (AREA, 12.5), (("373098007", "SCT", "Mean"), 900.1)]
CODED_CLUSTER = ("129769006", "SCT", "Calcification Cluster")
NIPPLE = ("24142002", "SCT", "Nipple")
NOT_CLOSED = "are lines that enclose nothing"


MASS_TYPED = {"comment": "Mass"}
TYPED_BEFORE = {"site": ("CORNERSTONEFREETEXT", "CORNERSTONEJS", "Calcification")}
OHIF = {
    "a typed mass": (OUTLINED, MASS_TYPED, "mass"),
    "typed before 3.11": (OUTLINED, TYPED_BEFORE, "calcification"),
    "a code": (OUTLINED, {"finding": CODED_CLUSTER, "comment": "follow up"}, "calcification"),
    "a coded site": (OUTLINED, {"site": NIPPLE}, "uncertain"),
    "no words": (OUTLINED, {}, "uncertain"),
    "unknown words": (OUTLINED, {"comment": "Quibble"}, "are of findings that are not known"),
    "no lesion": (OUTLINED, {"comment": "nipple"}, "are of findings that are not lesions"),
    "a spline": ([(PERIMETER, 14.2, WHOLE, HANDLES)], MASS_TYPED, "mass"),
    "before 3.12": ([(PERIMETER, 14.2, WHOLE), (AREA, 12.5, WHOLE)], MASS_TYPED, "mass"),
    "an area without its end": ([(AREA, 12.5, OPEN)], MASS_TYPED, "mass"),
    "an area and its length": ([(AREA, 12.5, WHOLE), (LENGTH, 3.9, LINE)], MASS_TYPED, "mass"),
    "an open contour": ([(PERIMETER, 14.2, OPEN, HANDLES)], {}, NOT_CLOSED),
    "one before 3.12": ([(PERIMETER, None, OPEN), (AREA, None, OPEN)], {}, NOT_CLOSED),
    "a length": ([(LENGTH, 3.9, LINE)], MASS_TYPED, NOT_CLOSED),
    "two axes": ([(LONG_AXIS, 3.9, LINE), (SHORT_AXIS, 2, LINE)], MASS_TYPED, NOT_CLOSED),
    "a probe": ([(CENTRE, 0, ("POINT", [[22, 12]]))], {}, "are points, not areas"),
}


@pytest.mark.filterwarnings("ignore:The value length")  # OHIF's code is longer than allowed
@pytest.mark.parametrize("case", OHIF)
def test_what_the_tools_of_ohif_write(tmp_path, case):
    """One lesion or one sentence."""
    numbers, texts, expected = OHIF[case]
    write_measurements(write_image(tmp_path), *numbers, **texts)
    (record,), reasons = read(tmp_path)
    if expected.startswith("are "):
        assert reason(tmp_path) == f"1 of its regions {expected}"
        kind = "mass" if texts == MASS_TYPED else None
        assert record.lost == (() if "not lesions" in expected else (Lost(kind),))
        return
    (lesion,) = record.lesions
    assert not reasons and not record.lost
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), MASS.mask(ROWS, COLS))
    assert len(lesion.outlines[0]) == len(SQUARE)
    kind = (lesion.kind, lesion.kind_is_certain)
    assert kind == (("mass", False) if expected == "uncertain" else (expected, True))


@pytest.mark.parametrize(
    ("line", "texts", "lost"),
    [
        (LINE, MASS_TYPED, ()),
        (LINE, {"comment": "Calcification"}, (Lost("calcification"),)),
        (("POLYLINE", [[22, 30], [28, 50]]), {}, (Lost(),)),
    ],
)
def test_the_diameter_of_a_drawn_lesion_is_no_further_one(tmp_path, line, texts, lost):
    image = write_image(tmp_path)
    write_report(image, WHOLE, name="y")
    write_measurements(image, (LENGTH, 3.9, line), **texts)
    (record,), reasons = read(tmp_path)
    assert [one.kind for one in record.lesions] == ["mass"] and record.lost == lost
    assert reasons == {"images/z.dcm": f"1 of its regions {NOT_CLOSED}"}


def test_reports_without_regions(tmp_path):
    path = write_report(write_image(tmp_path), WHOLE)
    change_dicom(path, ContentSequence=[])
    assert reason(tmp_path) == "draws no region"


# Mammography CAD (TID 4000), written by hand as the standard says

# col, row of the outline's corners; the half-open box of pixels within is (10, 20, 19, 31)
OUTLINE = [20.5, 10.5, 30.5, 10.5, 30.5, 18.5, 20.5, 18.5, 20.5, 10.5]


def make_content(form, name, **elements) -> Dataset:
    concept = {"ConceptNameCodeSequence": coded(name, "DCM")} if name else {}
    return make_item(ValueType=form, **concept, **elements)


def make_mark(code="F-01791", outline=OUTLINE, intent="111150", image=(1, 1, 1)) -> Dataset:
    """Make a single image finding (TID 4006), whose image is in the image library."""
    reference = [make_item(ReferencedContentItemIdentifier=list(image))]
    children = [
        make_content("CODE", "111056", ConceptCodeSequence=coded(intent, "DCM")),
        draw("POINT", [25.0, 14.0], reference, "111010"),
    ]
    if outline:
        children.append(draw("POLYLINE", outline, reference, "111041"))
    codes = coded(code, "SRT")
    return make_content("CODE", "111059", ConceptCodeSequence=codes, ContentSequence=children)


def write_cad_report(root: Path, mark: Dataset) -> None:
    image = write_image(root)
    reference = make_item(ReferencedSOPInstanceUID=pydicom.dcmread(image).SOPInstanceUID)
    shown = make_content("IMAGE", None, ReferencedSOPSequence=[reference])
    library = make_content("CONTAINER", "111028", ContentSequence=[shown])
    impression = make_content("CONTAINER", "111034", ContentSequence=[mark])
    done = coded("111242", "DCM")
    summary = make_content("CODE", "111017", ConceptCodeSequence=done, ContentSequence=[impression])
    content = {"PatientName": "QUIBBLE^ZEPHYRINE", "ContentSequence": [library, summary]}
    make_file(root / "images" / "z.dcm", regions.CAD_REPORT, **content)


@pytest.mark.parametrize(
    ("code", "kind", "certain"),
    [("F-01791", "mass", True), ("F-01775", "calcification", True), ("F-01796", "mass", False)],
)
def test_an_outline_of_a_cad_device_is_a_lesion(tmp_path, code, kind, certain):
    write_cad_report(tmp_path, make_mark(code))
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.kind_is_certain) == (kind, certain) and not reasons
    assert lesion.box == (10, 20, 19, 31)


MARKS = [
    ("are marked as not for presentation", {"intent": "111152"}),
    ("are points, not areas", {"outline": None}),
    ("are of findings that are not known", {"code": "F-01711"}),
    *(("name no image, or several", {"image": image}) for image in ((1, 9, 1), (1, *[1] * 40))),
    ("are lines that enclose nothing", {"outline": OUTLINE[:-2]}),
]


@pytest.mark.parametrize(("message", "changes"), MARKS)
def test_marks_that_give_no_region(tmp_path, changes, message):
    write_cad_report(tmp_path, make_mark(**changes))
    assert reason(tmp_path) == f"1 of its regions {message}"


def test_each_group_of_a_report_has_coordinates_and_its_status_is_no_group(tmp_path):
    """OHIF loads no report that has a group without coordinates."""
    image = write_image(tmp_path)
    for graphics, status in (((), "111241"), ((WHOLE,), "111242")):
        report = build_report(image, *graphics)
        groups = [one.ContentSequence for one in reports._find(report, "125007")]
        assert len(groups) == len(graphics)
        assert all(any(item.ValueType == "SCOORD" for item in items) for items in groups)
        named = [reports._name_concept(item) for item in report.ContentSequence]
        assert named[-1] == "C0034375" and ("126010" in named) == bool(graphics)
        (found,) = reports._find(report, "111017")
        assert found.ConceptCodeSequence[0].CodeValue == status
