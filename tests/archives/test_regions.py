"""DICOM SEG, SR and RTSTRUCT beside the mammograms that they refer to, written by highdicom and
pydicom, read by `folder`.
"""

import logging
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom import sr
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from tests.small_mammograms import COLS, PATIENT, ROWS, SQUARE
from tfmammo.archives import folder, regions, reports
from tfmammo.archives.writers import segmentation
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Skipped

MASS = Lesion.from_outline("mass", SQUARE, ROWS, COLS)
CLUSTER = Lesion.from_outline("calcification", SQUARE + [25, 10], ROWS, COLS)
ODD = Lesion.from_outline("asymmetry", SQUARE + [30, -19], ROWS, COLS)
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LESION = Code("52988006", "SCT", "Lesion")
NIPPLE = Code("24142002", "SCT", "Nipple")
CODES = {
    "mass": Code("4147007", "SCT", "Mass"),
    "calcification": Code("129770007", "SCT", "Individual Calcification"),
}
FRAME = "1.2.3.4.5"
IN_SPACE = {
    "FrameOfReferenceUID": FRAME,
    "ImagePositionPatient": [10.0, -20.0, 30.0],
    "ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.0, -1.0],
    "PixelSpacing": [0.5, 0.25],
    "SliceThickness": 1.0,
}


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


def write_image(root: Path, name: str = "a", **elements) -> Path:
    path = root / "images" / f"{name}.dcm"
    stored = np.linspace(0, 4095, ROWS * COLS).reshape(ROWS, COLS).astype(np.uint16)
    facts = {**PATIENT, "StudyTime": "", "PixelSpacing": [0.07, 0.07]}
    write_dicom(path, stored, 12, **{**facts, **elements})
    return path


def read(root: Path):
    skipped = Skipped()
    records = folder.read(root, skipped)
    return records, skipped.reasons


def masks(record):
    return {lesion.kind: lesion.mask(record.rows, record.cols) for lesion in record.lesions}


def assert_read(root: Path, *lesions: Lesion) -> list[Lesion]:
    (record,), reasons = read(root)
    assert not reasons
    drawn = masks(record)
    assert sorted(drawn) == sorted(lesion.kind for lesion in lesions)
    for lesion in lesions:
        np.testing.assert_array_equal(drawn[lesion.kind], lesion.mask(ROWS, COLS))
    return list(record.lesions)


def reason(root: Path) -> str:
    """Why the only file of regions gives no lesion."""
    (record,), reasons = read(root)
    assert not record.lesions
    ((file, told),) = reasons.items()
    assert file == "images/z.dcm" and "QUIBBLE" not in told and "\n" not in told
    return told


def write_segmentation(image: Path, pixels: np.ndarray, **changes) -> Path:
    """Write a SEG of one segment beside an image: uint8 or float [rows, cols]."""
    options = {"kind": SegmentationTypeValues.BINARY, "code": CODES["mass"], "label": "1"} | changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        description = SegmentDescription(
            segment_number=1,
            segment_label=options["label"],
            segmented_property_category=Code(
                "49755003", "SCT", "Morphologically Abnormal Structure"
            ),
            segmented_property_type=options["code"],
            algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
        )
        written = Segmentation(
            source_images=[pydicom.dcmread(image)],
            pixel_array=pixels[np.newaxis],
            segmentation_type=options["kind"],
            segment_descriptions=[description],
            series_instance_uid=generate_uid(),
            series_number=2,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="m",
            manufacturer_model_name="m",
            software_versions="1",
            device_serial_number="1",
            **{name: changes[name] for name in ("transfer_syntax_uid",) if name in changes},
        )
        path = image.parent / "z.dcm"
        written.save_as(path)
    return path


def change(path: Path, edit) -> None:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path)


def write_report(image: Path, *graphics, code=CODES["mass"], name="z") -> Path:
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
        report = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=Code("71651007", "SCT", "Mammography"),
            imaging_measurements=groups,
        )
        written = sr.ComprehensiveSR(
            evidence=[source],
            content=report,
            series_instance_uid=generate_uid(),
            series_number=3,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="m",
        )
        path = image.parent / f"{name}.dcm"
        written.save_as(path)
    return path


def closed(outline: np.ndarray) -> list[list[float]]:
    """(row, col) about pixels' centres -> column and row from the image's corner, closed."""
    points = (np.asarray(outline)[:, ::-1] + 0.5).tolist()
    return [*points, points[0]]


def write_structures(image: Path, *outlines: np.ndarray, name="mass", **changes) -> Path:
    """Write an RTSTRUCT of one structure with a contour for each outline, drawn by IN_SPACE."""
    source = pydicom.dcmread(image)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = regions.STRUCTURE_SET
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = image.parent / "z.dcm"
    dataset = FileDataset(
        str(path), {}, file_meta=meta, preamble=b"\0" * 128, is_little_endian=True
    )
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "RTSTRUCT"
    structure = Dataset()
    structure.ROINumber = 3
    structure.ROIName = name
    structure.ReferencedFrameOfReferenceUID = changes.get("frame", FRAME)
    contours = []
    for outline in outlines:
        reference = Dataset()
        reference.ReferencedSOPClassUID = source.SOPClassUID
        reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
        contour = Dataset()
        contour.ContourImageSequence = Sequence([reference])
        contour.ContourGeometricType = changes.get("form", "CLOSED_PLANAR")
        # PS3.3 C.7.6.2.1.1 with IN_SPACE: columns run along y, rows along -z
        points = [
            [10.0 + changes.get("off", 0), -20.0 + 0.25 * col, 30.0 - 0.5 * row]
            for row, col in np.asarray(outline, float).tolist()
        ]
        contour.NumberOfContourPoints = len(points)
        contour.ContourData = [f"{value:.6g}" for point in points for value in point]
        contours.append(contour)
    roi = Dataset()
    roi.ReferencedROINumber = 3
    roi.ContourSequence = Sequence(contours)
    dataset.StructureSetROISequence = Sequence([structure])
    dataset.ROIContourSequence = Sequence([roi])
    dataset.save_as(path, enforce_file_format=True)
    return path


# SEG


def test_our_own_segmentations_come_back(tmp_path):
    image = write_image(tmp_path)
    lesions = {"Lesion 1 mass": MASS, "Lesion 2 calcification": CLUSTER, "3 asymmetry": ODD}
    segmentation.write(tmp_path / "images" / "z.dcm", image, lesions, "1", {})
    read_back = assert_read(tmp_path, *lesions.values())
    assert all(lesion.kind_is_certain for lesion in read_back)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_binary_and_fractional_segments(tmp_path, kind, syntax):
    """A fractional segment is cut at half of its maximum."""
    if kind == "BINARY" and syntax != ExplicitVRLittleEndian:
        pytest.skip("segments of 1 bit are not compressed")
    image = write_image(tmp_path)
    pixels: np.ndarray = MASS.mask(ROWS, COLS)
    if kind == "FRACTIONAL":
        pixels = np.where(pixels, 0.6, 0.4).astype(np.float64)
        pixels[0, :] = 0
    write_segmentation(image, pixels, kind=SegmentationTypeValues(kind), transfer_syntax_uid=syntax)
    assert_read(tmp_path, MASS)


def test_frames_that_begin_within_a_byte(tmp_path):
    """Frames follow each other bit by bit: 15 x 9 px are 16 bytes and 7 bits."""
    image = tmp_path / "images" / "a.dcm"
    write_dicom(image, np.zeros((15, 9), np.uint16), 12)
    boxes = ([[1, 1], [1, 4], [4, 4]], [[6, 2], [6, 7], [9, 7]], [[10, 1], [13, 1], [13, 8]])
    lesions = {
        f"{number} mass": Lesion.from_outline("mass", box, 15, 9)
        for number, box in enumerate(boxes)
    }
    segmentation.write(tmp_path / "images" / "z.dcm", image, lesions, "1", {})
    (record,), reasons = read(tmp_path)
    assert not reasons
    for lesion, original in zip(record.lesions, lesions.values(), strict=True):
        np.testing.assert_array_equal(lesion.mask(15, 9), original.mask(15, 9))


def test_segments_in_a_folder_of_their_own(tmp_path):
    path = write_segmentation(write_image(tmp_path), MASS.mask(ROWS, COLS))
    (tmp_path / "annotations").mkdir()
    path.rename(tmp_path / "annotations" / "z.dcm")
    assert_read(tmp_path, MASS)


def test_the_kind_of_a_general_finding(tmp_path):
    """The label's word decides, else the table, else it is a mass of uncertain kind."""
    image = write_image(tmp_path)
    write_segmentation(image, MASS.mask(ROWS, COLS), code=LESION, label="Architectural distortion")
    (lesion,) = read(tmp_path)[0][0].lesions
    assert (lesion.kind, lesion.kind_is_certain) == ("distortion", True)
    write_segmentation(image, MASS.mask(ROWS, COLS), code=LESION, label="Lesion 1")
    (lesion,) = read(tmp_path)[0][0].lesions
    assert (lesion.kind, lesion.kind_is_certain) == ("mass", False)
    (tmp_path / "metadata.csv").write_text("file,patient,kind,shape\na.dcm,p,asymmetry,oval\n")
    (lesion,) = read(tmp_path)[0][0].lesions
    assert (lesion.kind, lesion.kind_is_certain, lesion.shape) == ("asymmetry", True, "oval")


TISSUE = Code("85756007", "SCT", "Tissue")
OLD_TISSUE = Code("T-D0050", "SRT", "Tissue")
VIEWERS = [
    (OLD_TISSUE, "Mass", "mass", True),  # OHIF, MONAI Label
    (TISSUE, "Mass", "mass", True),  # Slicer
    (TISSUE, "calcifications", "calcification", True),
    (TISSUE, "Segment_1", "mass", False),
    (Code("123037004", "SCT", "Body structure"), "Focal asymmetry", "asymmetry", True),
    (Code("M-03000", "SRT", "Mass"), "x", "mass", True),  # dcmqi before 2020
    (Code("F-01792", "SRT", "Focal density"), "x", "asymmetry", True),
    (Code("M-8FFFF", "SRT", "Neoplasm"), "x", "mass", False),
    (Code("129751002", "SCT", "Eggshell calcification"), "x", "calcification", True),
]


@pytest.mark.parametrize(("code", "label", "kind", "certain"), VIEWERS)
def test_segments_of_everyday_viewers(tmp_path, code, label, kind, certain):
    path = write_segmentation(write_image(tmp_path), MASS.mask(ROWS, COLS), label=label)

    def state(dataset):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code[:3]
        dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [item]

    change(path, state)
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.kind_is_certain) == (kind, certain) and not reasons
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), MASS.mask(ROWS, COLS))


@pytest.mark.parametrize(
    ("code", "label"), [(TISSUE, "heart"), (Code("64033007", "SCT", "Kidney"), "Mass")]
)
def test_an_unknown_segment_is_a_lost_lesion(tmp_path, code, label):
    write_segmentation(write_image(tmp_path), MASS.mask(ROWS, COLS), code=code, label=label)
    assert reason(tmp_path) == "1 of its regions are of findings that are not known"
    assert read(tmp_path)[0][0].lost == (Lost(),)


@pytest.mark.parametrize("place", ["images", "annotations"])
@pytest.mark.parametrize("highest", [2, 300])
def test_a_label_map(tmp_path, place, highest):
    """Of a mass and a calcification; beyond 255 segments its pixels have 16 bits."""
    image = write_image(tmp_path)
    values = MASS.mask(ROWS, COLS).astype(np.uint16)
    values[CLUSTER.mask(ROWS, COLS) > 0] = highest
    descriptions = [
        SegmentDescription(
            segment_number=number,
            segment_label="Calcification" if number == highest else "Mass",
            segmented_property_category=ABNORMAL,
            segmented_property_type=TISSUE,
            algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in range(1, highest + 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = Segmentation(
            source_images=[pydicom.dcmread(image)],
            pixel_array=values[np.newaxis],
            segmentation_type="LABELMAP",
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(),
            series_number=2,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="m",
            manufacturer_model_name="m",
            software_versions="1",
            device_serial_number="1",
        )
    (tmp_path / place).mkdir(exist_ok=True)
    written.save_as(tmp_path / place / "z.dcm")
    assert written.BitsAllocated == (8 if highest < 256 else 16)
    assert_read(tmp_path, MASS, CLUSTER)


def _move_uid(dataset):
    dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[
        0
    ].ReferencedSOPInstanceUID = "1.2.3"


def _turn(dataset):
    plane = Dataset()
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = Sequence([plane])


def _scale(dataset):
    measures = Dataset()
    measures.PixelSpacing = [0.14, 0.14]
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = Sequence([measures])


def _move(dataset):
    dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[
        0
    ].SpatialLocationsPreserved = "NO"


def _set(**elements):
    def edit(dataset):
        for key, value in elements.items():
            setattr(dataset, key, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_move_uid, "1 of its regions lie on images that are not read here"),
        (_turn, "1 of its regions are turned against their image"),
        (_scale, "1 of its regions have another spacing than their image"),
        (_move, "1 of its regions do not lie on the image's own pixels"),
        (_set(PatientOrientation=["P", "F"]), "1 of its regions are turned against their image"),
        (_set(FrameOfReferenceUID="1.2.9"), "have another frame of reference than their image"),
        (_set(Rows=30, Columns=88), r"1 of its regions have 30 x 88 px, their image 60 x 44"),
        (
            _set(SegmentationType="PAINTED"),
            "is a segmentation that is neither binary, fractional nor a label map",
        ),
        (_set(NumberOfFrames=7), "does not describe each of its frames"),
    ],
)
def test_segments_that_are_not_of_their_image(tmp_path, edit, message):
    image = write_image(tmp_path, **IN_SPACE | {"PixelSpacing": [0.07, 0.07]})
    change(image, _set(PatientOrientation=["A", "F"]))
    path = write_segmentation(image, MASS.mask(ROWS, COLS))
    change(path, edit)
    assert message in reason(tmp_path)


def test_findings_that_are_no_lesions(tmp_path):
    write_segmentation(write_image(tmp_path), MASS.mask(ROWS, COLS), code=NIPPLE, label="mass")
    assert reason(tmp_path) == "1 of its regions are of findings that are no lesions of ours"


def test_an_empty_segment_and_missing_pixels_are_told_when_they_are_read(tmp_path):
    image = write_image(tmp_path)
    path = write_segmentation(image, MASS.mask(ROWS, COLS))
    change(path, lambda dataset: setattr(dataset, "PixelData", bytes(len(dataset.PixelData))))
    (lesion,) = read(tmp_path)[0][0].lesions
    with pytest.raises(ArchiveError, match=r"z\.dcm: a segment marks nothing"):
        _ = lesion.box
    path.write_bytes(path.read_bytes()[:-60])
    (lesion,) = read(tmp_path)[0][0].lesions
    with pytest.raises(ArchiveError, match=r"z\.dcm: the file ends before its pixels do"):
        _ = lesion.box


def test_masks_come_first(tmp_path):
    write_segmentation(write_image(tmp_path), MASS.mask(ROWS, COLS))
    (tmp_path / "annotations.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.dcm"}], "annotations": [], "categories": []}'
    )
    assert reason(tmp_path) == "is not read beside masks or annotations.json"


# SR


def test_a_reports_regions(tmp_path):
    """A closed line, a circle of radius 5 and an ellipse about pixels' centres."""
    image = write_image(tmp_path)
    write_report(image, ("POLYLINE", closed(SQUARE)))
    assert_read(tmp_path, MASS)
    write_report(image, ("CIRCLE", [[20.5, 30.5], [25.5, 30.5]]))
    (record,), reasons = read(tmp_path)
    rows, cols = np.mgrid[:ROWS, :COLS]
    distance = np.hypot(rows - 30, cols - 20)
    drawn = masks(record)["mass"]
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
    calcification = CODES["calcification"]
    outline = closed(SQUARE + [25, 10])
    write_report(second, ("POLYLINE", outline), code=calcification, name="y")
    records, reasons = read(tmp_path)
    assert not reasons
    assert [[lesion.kind for lesion in record.lesions] for record in records] == [
        ["mass"],
        ["calcification"],
    ]


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


def write_measurements(image: Path, *numbers, finding=("4147007", "SCT", "Mass")) -> None:
    """Write a report as OHIF does: coordinates hang beneath numbers (concept, type, points)."""
    path = write_report(image, ("POLYLINE", closed(SQUARE)))

    def coded(value, scheme, meaning):
        item = Dataset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OHIF's value is longer than the standard allows
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return Sequence([item])

    def edit(dataset):
        groups = list(reports._find_groups(dataset, 0))
        kept = []
        for item in groups[0].ContentSequence:
            if item.ValueType == "SCOORD":
                pattern = item
            elif item.ValueType != "CODE":
                kept.append(item)
        code = Dataset()
        code.ValueType, code.RelationshipType = "CODE", "CONTAINS"
        code.ConceptNameCodeSequence = coded("121071", "DCM", "Finding")
        code.ConceptCodeSequence = coded(*finding)
        kept.append(code)
        for concept, graphic, points in numbers:
            place = Dataset()
            place.ValueType, place.RelationshipType = "SCOORD", "INFERRED FROM"
            place.GraphicType, place.GraphicData = graphic, np.ravel(points).tolist()
            place.ContentSequence = pattern.ContentSequence
            number = Dataset()
            number.ValueType, number.RelationshipType = "NUM", "CONTAINS"
            number.ConceptNameCodeSequence = coded(*concept)
            number.ContentSequence = Sequence([place])
            kept.append(number)
        groups[0].ContentSequence = Sequence(kept)

    change(path, edit)


AREA = ("42798000", "SCT", "Area")
MEAN = ("373098007", "SCT", "Mean")
LENGTH = ("410668003", "SCT", "Length")


@pytest.mark.parametrize(
    "finding", [("4147007", "SCT", "Mass"), ("CORNERSTONEFREETEXT", "CORNERSTONEJS", "Mass")]
)
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_region_beneath_several_numbers_is_one_lesion(tmp_path, finding, is_closed):
    points = closed(SQUARE) if is_closed else closed(SQUARE)[:-1]
    numbers = [(AREA, "POLYLINE", points)]
    if is_closed:
        numbers.append((MEAN, "POLYLINE", points))
    write_measurements(write_image(tmp_path), *numbers, finding=finding)
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert lesion.kind == "mass" and not reasons
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), MASS.mask(ROWS, COLS))


def test_a_length_alone_is_a_lost_lesion(tmp_path):
    write_measurements(write_image(tmp_path), (LENGTH, "POLYLINE", [[20, 10], [30, 18]]))
    assert reason(tmp_path) == "1 of its regions are lines that enclose nothing"
    assert read(tmp_path)[0][0].lost == (Lost("mass"),)


def test_a_free_text_that_is_not_known(tmp_path):
    text = ("CORNERSTONEFREETEXT", "CORNERSTONEJS", "Quibble")
    write_measurements(write_image(tmp_path), (AREA, "POLYLINE", closed(SQUARE)), finding=text)
    assert reason(tmp_path) == "1 of its regions are of findings that are not known"


def test_a_region_a_little_over_the_border_is_cut_there(tmp_path):
    outline = [[30, -0.5], [30, 8], [40, 8], [40, -0.5]]
    write_report(write_image(tmp_path), ("POLYLINE", closed(np.float32(outline))))
    (record,), reasons = read(tmp_path)
    assert record.lesions[0].box == (30, 0, 41, 9) and not reasons


# RTSTRUCT


def test_structures_by_hand(tmp_path):
    """Two parts of one structure, at 0.5 mm a row and 0.25 mm a column."""
    image = write_image(tmp_path, **IN_SPACE)
    write_structures(image, SQUARE, SQUARE + [25, 10])
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert not reasons and (lesion.kind, lesion.kind_is_certain) == ("mass", True)
    both = MASS.mask(ROWS, COLS) | CLUSTER.mask(ROWS, COLS)
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), both)
    assert lesion.box == (10, 20, 44, 41)


@pytest.mark.parametrize(
    ("changes", "elements", "message"),
    [
        ({"frame": "1.2.9"}, {}, "have another frame of reference than their image"),
        ({"frame": ""}, {}, "share no frame of reference with their image"),
        ({"off": 2.0}, {}, "lie off the plane of their image"),
        ({"form": "POINT"}, {}, "are points or lines, not areas"),
        ({"name": "Quibble's heart"}, {}, "are of findings that are not known"),
        ({}, {"ImagePositionPatient": None}, "lie in space, where their image states no position"),
        (
            {},
            {"ImageOrientationPatient": [0.0, 1, 0, 0, 1, 0]},
            "lie on an image whose orientation is none",
        ),
    ],
)
def test_structures_that_are_not_of_their_image(tmp_path, changes, elements, message):
    write_structures(write_image(tmp_path, **IN_SPACE | elements), SQUARE, **changes)
    assert reason(tmp_path) == f"1 of its regions {message}"


# Damage


def test_damaged_files_are_told_in_one_sentence_and_bounded_time(tmp_path, caplog):
    """Every cut and many changed bytes: a lesion, a named reason or an ArchiveError."""
    caplog.set_level(logging.DEBUG)
    image = write_image(tmp_path, **IN_SPACE)
    random = np.random.default_rng(0)
    makers = (
        lambda: write_segmentation(image, MASS.mask(ROWS, COLS)),
        lambda: write_report(image, ("POLYLINE", closed(SQUARE))),
        lambda: write_structures(image, SQUARE),
    )
    start = time.monotonic()
    for make in makers:
        path = make()
        content = path.read_bytes()
        for number in range(40):
            damaged = bytearray(content)
            if number % 2:
                del damaged[random.integers(200, len(content)) :]
            else:
                for place in random.integers(200, len(content), 8):
                    damaged[place] = random.integers(256)
            path.write_bytes(bytes(damaged))
            records, reasons = read(tmp_path)
            assert all(told and "\n" not in told for told in reasons.values())
            for record in records:
                for lesion in record.lesions:
                    try:
                        assert lesion.mask(ROWS, COLS).shape == (ROWS, COLS)
                    except ArchiveError as error:
                        assert "\n" not in str(error)
    assert time.monotonic() - start < 60
    assert "QUIBBLE" not in caplog.text


def test_a_report_nested_without_end(tmp_path):
    path = write_report(write_image(tmp_path), ("POLYLINE", closed(SQUARE)))
    dataset = pydicom.dcmread(path)
    for _ in range(30):
        outer = Dataset()
        outer.ValueType = "CONTAINER"
        outer.ContentSequence = dataset.ContentSequence
        dataset.ContentSequence = Sequence([outer])
    dataset.save_as(path)
    assert reason(tmp_path) == "is a report of more than 16 levels"


@pytest.mark.slow
def test_a_deflated_file_is_not_inflated(tmp_path):
    """It says so at its beginning, and what follows may have any size."""
    path = write_segmentation(write_image(tmp_path), MASS.mask(ROWS, COLS))
    content = path.read_bytes()
    old = b"1.2.840.10008.1.2.1\0"
    assert old in content
    syntax = b"1.2.840.10008.1.2.1.99"
    length = 144 + int.from_bytes(content[140:144], "little")
    head = content[:140] + (length - 144 + 2).to_bytes(4, "little") + content[144:length]
    head = head.replace(len(old).to_bytes(2, "little") + old, b"\x16\0" + syntax)
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(squeezer.compress(bytes(2**24)) for _ in range(64))
    path.write_bytes(head + body + squeezer.flush())
    tracemalloc.start()
    assert reason(tmp_path) == "is deflated, which is not read here"
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_files_of_other_sorts_and_reports_without_regions(tmp_path):
    path = write_report(write_image(tmp_path), ("POLYLINE", closed(SQUARE)))
    change(path, lambda dataset: setattr(dataset, "ContentSequence", Sequence([])))
    assert reason(tmp_path) == "draws no region"
    path.unlink()
    write_image(tmp_path / "other").rename(tmp_path / "b.dcm")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "b.dcm").rename(tmp_path / "annotations" / "b.dcm")
    (_,), reasons = read(tmp_path)
    assert reasons == {"annotations/b.dcm": "is no SEG, no SR of findings and no RTSTRUCT"}
