"""Structured reports beside the mammograms that they refer to: TID 1500 and Mammography CAD."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from tests.archives.test_regions import (
    CODED_MASS,
    MASS,
    assert_damage_is_told,
    assert_read,
    read,
    reason,
    write_image,
)
from tests.archives.tools import change_dicom, make_file, make_item
from tests.small_mammograms import COLS, ROWS, SQUARE
from tfmammo.archives import regions, reports
from tfmammo.archives.writers import measurements, segmentation
from tfmammo.mammogram import Lesion, Lost


def write_report(image: Path, *graphics, code=CODED_MASS, name="z") -> Path:
    """Write a TID 1500 SR with a planar measurement group for each (graphic type, points)."""
    source = pydicom.dcmread(image)
    device = sr.DeviceObserverIdentifyingAttributes(uid=generate_uid())
    observer = sr.ObserverContext(
        observer_type=Code("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    groups = [
        sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier="1"),
            referenced_region=sr.ImageRegion(
                graphic_type=graphic,
                graphic_data=np.array(points, float),
                source_image=sr.SourceImageForRegion.from_source_image(source),
            ),
            finding_type=code,
        )
        for graphic, points in graphics
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = sr.ComprehensiveSR(
            evidence=[source],
            content=sr.MeasurementReport(
                observation_context=sr.ObservationContext(observer_device_context=observer),
                procedure_reported=Code("71651007", "SCT", "Mammography"),
                imaging_measurements=groups,
            ),
            **segmentation.identify(generate_uid(), 3, generate_uid(), "1", "lesions"),
        )
        written.save_as(image.parent / f"{name}.dcm")
    return image.parent / f"{name}.dcm"


def closed(outline: np.ndarray) -> list[list[float]]:
    """(row, col) about pixels' centres -> column and row from the image's corner, closed."""
    points = (np.asarray(outline)[:, ::-1] + 0.5).tolist()
    return [*points, points[0]]


# TID 1500


def test_a_reports_regions(tmp_path):
    """A closed line, a circle of radius 5 and an ellipse about pixels' centres."""
    image = write_image(tmp_path)
    write_report(image, ("POLYLINE", closed(SQUARE)))
    assert_read(tmp_path, MASS)
    write_report(image, ("CIRCLE", [[20.5, 30.5], [25.5, 30.5]]))
    (record,), reasons = read(tmp_path)
    rows, cols = np.mgrid[:ROWS, :COLS]
    distance = np.hypot(rows - 30, cols - 20)
    drawn = record.lesions[0].mask(ROWS, COLS)
    # the pixels that the circle crosses count, too
    assert not reasons and drawn[distance <= 5].all() and not drawn[distance > 6].any()
    assert record.lesions[0].box == (25, 15, 36, 26)
    ellipse = [[12.5, 30.5], [28.5, 30.5], [20.5, 26.5], [20.5, 34.5]]
    write_report(image, ("ELLIPSE", ellipse))
    (record,), reasons = read(tmp_path)
    assert not reasons and record.lesions[0].box == (26, 12, 35, 29)


def test_regions_of_several_images_and_reports(tmp_path):
    """Each region reaches the image that it was selected from."""
    first = write_image(tmp_path, "a")
    second = write_image(tmp_path, "b")
    write_report(first, ("POLYLINE", closed(SQUARE)), name="x")
    code = Code("129770007", "SCT", "Individual Calcification")
    write_report(second, ("POLYLINE", closed(SQUARE + [25, 10])), code=code, name="y")
    records, reasons = read(tmp_path)
    kinds = [[lesion.kind for lesion in record.lesions] for record in records]
    assert not reasons and kinds == [["mass"], ["calcification"]]


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


def test_a_region_a_little_over_the_border_is_cut_there(tmp_path):
    outline = [[30, -0.5], [30, 8], [40, 8], [40, -0.5]]
    write_report(write_image(tmp_path), ("POLYLINE", closed(np.float32(outline))))
    (record,), reasons = read(tmp_path)
    assert record.lesions[0].box == (30, 0, 41, 9) and not reasons


def coded(value, scheme, meaning="a meaning") -> list[Dataset]:
    return [make_item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def write_measurements(image: Path, *numbers, finding=("4147007", "SCT", "Mass")) -> None:
    """Write a report as OHIF does: coordinates hang beneath numbers (concept, type, points)."""
    path = write_report(image, ("POLYLINE", closed(SQUARE)))

    def edit(dataset):
        (group,) = reports._find(dataset, "125007")
        (pattern,) = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
        kept = [one for one in group.ContentSequence if one.ValueType not in ("SCOORD", "CODE")]
        named = {"ConceptNameCodeSequence": coded("121071", "DCM", "Finding")}
        kept.append(make_item(ValueType="CODE", **named, ConceptCodeSequence=coded(*finding)))
        for concept, graphic, points in numbers:
            drawn = {"GraphicType": graphic, "GraphicData": np.ravel(points).tolist()}
            place = make_item(ValueType="SCOORD", **drawn, ContentSequence=pattern.ContentSequence)
            named = {"ConceptNameCodeSequence": coded(*concept), "ContentSequence": [place]}
            kept.append(make_item(ValueType="NUM", **named))
        group.ContentSequence = kept

    change_dicom(path, edit=edit)


AREA = ("42798000", "SCT", "Area")
MEAN = ("373098007", "SCT", "Mean")
LENGTH = ("410668003", "SCT", "Length")
FREE_TEXT = ("CORNERSTONEFREETEXT", "CORNERSTONEJS")


@pytest.mark.filterwarnings("ignore:The value length")  # OHIF's code is longer than allowed
@pytest.mark.parametrize("finding", [("4147007", "SCT", "Mass"), (*FREE_TEXT, "Mass")])
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_region_beneath_several_numbers_is_one_lesion(tmp_path, finding, is_closed):
    points = closed(SQUARE) if is_closed else closed(SQUARE)[:-1]
    numbers = [(AREA, "POLYLINE", points)]
    if is_closed:
        numbers.append((MEAN, "POLYLINE", points))
    write_measurements(write_image(tmp_path), *numbers, finding=finding)
    (lesion,) = assert_read(tmp_path, MASS)
    assert len(lesion.outlines[0]) == len(SQUARE)


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize(
    ("number", "points", "finding", "message", "lost"),
    [
        (LENGTH, [[20, 10], [30, 18]], "Mass", "are lines that enclose nothing", Lost("mass")),
        (AREA, closed(SQUARE), "Quibble", "are of findings that are not known", Lost()),
    ],
)
def test_measurements_that_give_no_region(tmp_path, number, points, finding, message, lost):
    graphic = (number, "POLYLINE", points)
    write_measurements(write_image(tmp_path), graphic, finding=(*FREE_TEXT, finding))
    assert reason(tmp_path) == f"1 of its regions {message}"
    assert read(tmp_path)[0][0].lost == (lost,)


def test_damaged_reports_and_those_without_regions(tmp_path):
    path = write_report(write_image(tmp_path), ("POLYLINE", closed(SQUARE)))
    whole = path.read_bytes()
    assert_damage_is_told(tmp_path, path)
    path.write_bytes(whole)
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
    reference = make_item(ReferencedContentItemIdentifier=list(image))
    centre = {"GraphicType": "POINT", "GraphicData": [25.0, 14.0], "ContentSequence": [reference]}
    children = [
        make_content("CODE", "111056", ConceptCodeSequence=coded(intent, "DCM")),
        make_content("SCOORD", "111010", **centre),
    ]
    if outline:
        drawn = {"GraphicType": "POLYLINE", "GraphicData": outline}
        children.append(make_content("SCOORD", "111041", **drawn, ContentSequence=[reference]))
    codes = coded(code, "SRT")
    return make_content("CODE", "111059", ConceptCodeSequence=codes, ContentSequence=children)


def write_cad_report(root: Path, mark: Dataset) -> None:
    image = write_image(root)
    uid = pydicom.dcmread(image).SOPInstanceUID
    reference = make_item(ReferencedSOPInstanceUID=uid)
    shown = make_content("IMAGE", None, ReferencedSOPSequence=[reference])
    library = make_content("CONTAINER", "111028", ContentSequence=[shown])
    impression = make_content("CONTAINER", "111034", ContentSequence=[mark])
    summary = make_content(
        "CODE",
        "111017",
        ConceptCodeSequence=coded("111242", "DCM"),
        ContentSequence=[impression],
    )
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
    *(
        ("name no image, or several", {"image": image})
        for image in ((1, 9, 1), (2, 1, 1), (1, 2), (1, *[1] * 40))
    ),
    ("are lines that enclose nothing", {"outline": OUTLINE[:-2]}),
]


@pytest.mark.parametrize(("message", "changes"), MARKS)
def test_marks_that_give_no_region(tmp_path, changes, message):
    write_cad_report(tmp_path, make_mark(**changes))
    assert reason(tmp_path) == f"1 of its regions {message}"


def test_a_lesion_of_segmentation_and_report_counts_once(tmp_path):
    path = write_image(tmp_path)
    source = regions.dicom.read_dataset(path)
    outline = np.float32([[12, 22], [12, 28], [16, 28]])
    lesion = Lesion.from_outline("mass", outline, ROWS, COLS)
    uids = [generate_uid() for _ in range(7)]
    with segmentation.referring(path):
        identifiers = segmentation.Identifiers(*uids[:2], (uids[2],))
        segments = segmentation.build(source, {"Lesion 1": lesion}, "1", {}, identifiers)
        algorithm = measurements.Algorithm("1", {"detector": "d"}, uids[3])
        findings = [
            measurements.Finding("Lesion 1", uids[2], "mass", (10, 20, 19, 31), 0.5),
            measurements.Finding("Lesion 2", uids[4], "mass", (40, 5, 50, 15), 0.5),
        ]
        report = measurements.build(source, None, findings, algorithm, *uids[5:])
    segments.save_as(path.with_name("y.dcm"))
    report.save_as(path.with_name("z.dcm"))
    (record,), reasons = read(tmp_path)
    assert not reasons and len(record.lesions) == 2
    np.testing.assert_array_equal(record.lesions[0].mask(ROWS, COLS), lesion.mask(ROWS, COLS))
    # a rectangle from corner to corner covers the pixels of its half-open box
    assert record.lesions[1].box == pytest.approx((40, 5, 50, 15), abs=1)
