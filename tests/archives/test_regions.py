"""DICOM SEG and RTSTRUCT beside the mammograms that they refer to, read by `folder`.

highdicom and pydicom write them; reports are in `test_reports`.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import RLELossless

from tests.archives.folders import read
from tests.archives.tools import change_dicom, make_file, make_item
from tests.small_mammograms import COLS, PATIENT, ROWS, SQUARE
from tfmammo.archives import regions
from tfmammo.archives.writers import segmentation
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost

MASS = Lesion.from_outline("mass", SQUARE, ROWS, COLS)
CLUSTER = Lesion.from_outline("calcification", SQUARE + [25, 10], ROWS, COLS)
ODD = Lesion.from_outline("asymmetry", SQUARE + [30, -19], ROWS, COLS)
DRAWN = MASS.mask(ROWS, COLS)
LESION = ("52988006", "SCT", "Lesion")
NIPPLE = ("24142002", "SCT", "Nipple")
TISSUE = ("85756007", "SCT", "Tissue")
FRAME = "1.2.3.4.5"
IN_SPACE = {
    "FrameOfReferenceUID": FRAME,
    "ImagePositionPatient": [10.0, -20.0, 30.0],
    "ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.0, -1.0],
    "PixelSpacing": [0.5, 0.25],
    "SliceThickness": 1.0,
}


def write_image(root: Path, name: str = "a", **elements) -> Path:
    path = root / "images" / f"{name}.dcm"
    stored = np.linspace(0, 4095, ROWS * COLS).reshape(ROWS, COLS).astype(np.uint16)
    facts = {**PATIENT, "StudyTime": "", "PixelSpacing": [0.07, 0.07]}
    write_dicom(path, stored, 12, **{**facts, **elements})
    return path


def assert_read(root: Path, *lesions: Lesion) -> None:
    (record,), reasons = read(root)
    assert not reasons
    drawn = {lesion.kind: lesion.mask(ROWS, COLS) for lesion in record.lesions}
    assert sorted(drawn) == sorted(lesion.kind for lesion in lesions)
    for lesion in lesions:
        np.testing.assert_array_equal(drawn[lesion.kind], lesion.mask(ROWS, COLS))


def reason(root: Path) -> str:
    """Why the only file of regions gives no lesion."""
    (record,), reasons = read(root)
    assert not record.lesions
    ((file, told),) = reasons.items()
    assert file == "images/z.dcm" and "QUIBBLE" not in told and "\n" not in told
    return told


def coded(value, scheme, meaning="a meaning") -> list[Dataset]:
    return [make_item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def write_segmentation(image: Path, code=None, label: str = "1 mass", edit=None) -> Path:
    """Write a SEG of MASS beside an image: its type may be another code, its dataset edited."""
    path = image.parent / "z.dcm"
    segmentation.write(path, image, {label: MASS}, {})
    if code:
        edit = partial(_set_code, code)
    return change_dicom(path, edit=edit)


def _set_code(code, dataset: Dataset) -> None:
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = coded(*code)


# SEG


def test_fractional_segments_are_cut_at_half_of_their_maximum(tmp_path):
    def edit(dataset):
        dataset.SegmentationType = "FRACTIONAL"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.MaximumFractionalValue = 100
        dataset.PixelData = np.where(DRAWN, 50, 40).astype(np.uint8).tobytes()

    write_segmentation(write_image(tmp_path), edit=edit)
    assert_read(tmp_path, MASS)


def compress_bits(dataset: Dataset) -> None:
    """Compress the bits of each frame as one row of bytes, as OHIF does."""
    frames = dataset.pixel_array.reshape(dataset.NumberOfFrames, -1)
    packed = np.packbits(frames, axis=1, bitorder="little")
    form = {"rows": 1, "columns": packed.shape[1], "number_of_frames": 1, "samples_per_pixel": 1}
    form |= {"bits_allocated": 8, "bits_stored": 8, "pixel_representation": 0}
    form["photometric_interpretation"] = "MONOCHROME2"
    encoded = [RLELosslessEncoder.encode(row.tobytes(), **form) for row in packed]
    dataset.PixelData = encapsulate(encoded)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = RLELossless


@pytest.mark.parametrize("is_compressed", [False, True])
def test_frames_that_are_no_whole_bytes(tmp_path, is_compressed):
    """Frames follow each other bit by bit: 15 x 9 px are 16 bytes and 7 bits."""
    image = tmp_path / "images" / "a.dcm"
    write_dicom(image, np.zeros((15, 9), np.uint16), 12)
    corners = ([[1, 1], [1, 4], [4, 4]], [[6, 2], [6, 7], [9, 7]], [[10, 1], [13, 1], [13, 8]])
    lesions = [Lesion.from_outline("mass", each, 15, 9) for each in corners]
    path = tmp_path / "images" / "z.dcm"
    segmentation.write(path, image, dict(zip("123", lesions, strict=True)), {})
    if is_compressed:
        change_dicom(path, edit=compress_bits)
    (record,), reasons = read(tmp_path)
    assert not reasons
    for lesion, original in zip(record.lesions, lesions, strict=True):
        np.testing.assert_array_equal(lesion.mask(15, 9), original.mask(15, 9))


VIEWERS = [
    (("T-D0050", "SRT", "Tissue"), "Mass", "mass", True),  # OHIF, MONAI Label
    (TISSUE, "Mass", "mass", True),  # Slicer
    (TISSUE, "Segment_1", "mass", False),
    (LESION, "Architectural distortion", "distortion", True),
    (LESION, "Lesion 1", "mass", False),
    (("123037004", "SCT", "Body structure"), "Focal asymmetry", "asymmetry", True),
    (("M-03000", "SRT", "Mass"), "x", "mass", True),  # dcmqi before 2020
    (("M-8FFFF", "SRT", "Neoplasm"), "x", "mass", False),
    (("129751002", "SCT", "Eggshell calcification"), "x", "calcification", True),
]


@pytest.mark.parametrize(("code", "label", "kind", "certain"), VIEWERS)
def test_segments_of_everyday_viewers(tmp_path, code, label, kind, certain):
    """A general code leaves it to the label, that to the table, else it is an uncertain mass."""
    write_segmentation(write_image(tmp_path), code, label)
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.kind_is_certain) == (kind, certain) and not reasons
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), DRAWN)
    (tmp_path / "metadata.csv").write_text("file,patient,kind\na.dcm,p,asymmetry\n")
    (lesion,) = read(tmp_path)[0][0].lesions
    assert (lesion.kind == "asymmetry") == (not certain or kind == "asymmetry")


@pytest.mark.parametrize(
    ("code", "label", "message", "lost"),
    [
        (TISSUE, "heart", "are not known", (Lost(),)),
        (("64033007", "SCT", "Kidney"), "Mass", "are not known", (Lost(),)),
        (NIPPLE, "mass", "are not lesions", ()),
    ],
)
def test_segments_that_are_no_lesions_of_ours(tmp_path, code, label, message, lost):
    write_segmentation(write_image(tmp_path), code, label)
    assert reason(tmp_path) == f"1 of its regions are of findings that {message}"
    assert read(tmp_path)[0][0].lost == lost


def _in_source(**elements):
    def edit(dataset):
        (frame,) = dataset.PerFrameFunctionalGroupsSequence
        _set(**elements)(frame.DerivationImageSequence[0].SourceImageSequence[0])

    return edit


def _in_shared(sequence, **elements):
    item = make_item(**elements)
    return lambda dataset: setattr(dataset.SharedFunctionalGroupsSequence[0], sequence, [item])


def _set(**elements):
    return lambda dataset: [setattr(dataset, key, value) for key, value in elements.items()]


TURNED = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
FOREIGN = [
    ("are on images that are not read here", _in_source(ReferencedSOPInstanceUID="1.2.3")),
    ("are not on the image's own pixels", _in_source(SpatialLocationsPreserved="NO")),
    ("are turned against their image", _in_shared("PlaneOrientationSequence", **TURNED)),
    ("are turned against their image", _set(PatientOrientation=["P", "F"])),
    ("have another spacing", _in_shared("PixelMeasuresSequence", PixelSpacing=[0.14, 0.14])),
    ("have another frame of reference than their image", _set(FrameOfReferenceUID="1.2.9")),
    ("have 30 x 88 px, their image 60 x 44", _set(Rows=30, Columns=88)),
    ("neither binary, fractional", _set(SegmentationType="PAINTED")),
    ("does not describe each of its frames", _set(NumberOfFrames=7)),
]


@pytest.mark.parametrize(("message", "edit"), FOREIGN)
def test_segments_that_are_not_of_their_image(tmp_path, edit, message):
    image = write_image(tmp_path, **IN_SPACE | {"PixelSpacing": [0.07, 0.07]})
    change_dicom(image, PatientOrientation=["A", "F"])
    write_segmentation(image, edit=edit)
    assert message in reason(tmp_path)


def test_an_empty_segment_and_missing_pixels_are_told_when_they_are_read(tmp_path):
    path = write_segmentation(write_image(tmp_path))
    change_dicom(path, PixelData=bytes(len(pydicom.dcmread(path).PixelData)))
    (lesion,) = read(tmp_path)[0][0].lesions
    with pytest.raises(ArchiveError, match=r"z\.dcm: a segment marks nothing"):
        _ = lesion.box
    path.write_bytes(path.read_bytes()[:-60])
    (lesion,) = read(tmp_path)[0][0].lesions
    with pytest.raises(ArchiveError, match=r"z\.dcm: the file ends before its pixels do"):
        _ = lesion.box


def test_annotations_come_first(tmp_path):
    write_segmentation(write_image(tmp_path))
    listed = '{"images": [{"id": 1, "file_name": "a.dcm"}], "annotations": [], "categories": []}'
    (tmp_path / "annotations.json").write_text(listed)
    assert reason(tmp_path) == "is not read beside masks or annotations.json"


# RTSTRUCT


def write_structures(image: Path, *outlines, name="mass", frame=FRAME, form="CLOSED_PLANAR", off=0):
    """Write an RTSTRUCT of one structure with a contour for each outline, drawn by IN_SPACE."""
    source = pydicom.dcmread(image)
    reference = make_item(ReferencedSOPInstanceUID=source.SOPInstanceUID)
    contours = []
    for outline in outlines or (SQUARE,):
        # PS3.3 C.7.6.2.1.1 with IN_SPACE: columns run along y, rows along -z
        points = np.insert(outline * [-0.5, 0.25] + [30.0, -20.0], 2, 10.0 + off, axis=1)[:, ::-1]
        data = [f"{value:.6g}" for value in points.ravel()]
        known = {"ContourImageSequence": [reference], "ContourGeometricType": form}
        contours.append(make_item(**known, ContourData=data))
    structure = make_item(ROINumber=3, ROIName=name, ReferencedFrameOfReferenceUID=frame)
    path = image.parent / "z.dcm"
    make_file(
        path,
        regions.STRUCTURE_SET,
        StructureSetROISequence=[structure],
        ROIContourSequence=[make_item(ReferencedROINumber=3, ContourSequence=contours)],
    )
    return path


def test_structures_by_hand(tmp_path):
    """Two parts of one structure, at 0.5 mm a row and 0.25 mm a column."""
    image = write_image(tmp_path, **IN_SPACE)
    write_structures(image, SQUARE, SQUARE + [25, 10])
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert not reasons and (lesion.kind, lesion.kind_is_certain) == ("mass", True)
    np.testing.assert_array_equal(lesion.mask(ROWS, COLS), DRAWN | CLUSTER.mask(ROWS, COLS))
    assert lesion.box == (10, 20, 44, 41)


MISPLACED = [
    ("have another frame of reference than their image", {"frame": "1.2.9"}, {}),
    ("share no frame of reference with their image", {"frame": ""}, {}),
    ("are off the plane of their image", {"off": 2.0}, {}),
    ("are points or lines, not areas", {"form": "POINT"}, {}),
    ("are of findings that are not known", {"name": "Quibble's heart"}, {}),
    ("their image states no position", {}, {"ImagePositionPatient": None}),
    ("their image states no position", {}, {"ImagePositionPatient": [10.0, -20.0]}),
    ("without a valid orientation", {}, {"ImageOrientationPatient": [0.0, 1, 0, 0, 1, 0]}),
]


@pytest.mark.parametrize(("message", "changes", "elements"), MISPLACED)
def test_structures_that_are_not_of_their_image(tmp_path, changes, elements, message):
    write_structures(write_image(tmp_path, **IN_SPACE | elements), **changes)
    assert message in reason(tmp_path)


# Refused


def test_a_deflated_file_is_not_inflated(tmp_path):
    """What follows its head may have any size."""
    path = tmp_path / "images" / "z.dcm"
    write_image(tmp_path)
    make_file(path, regions.SEGMENTATION)
    old, new = b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x001.2.840.10008.1.2.1.99"
    path.write_bytes(path.read_bytes().replace(old, new))
    assert reason(tmp_path) == "is deflated, which is not read here"


def test_files_of_other_sorts(tmp_path):
    (tmp_path / "annotations").mkdir()
    write_image(tmp_path, "b").rename(tmp_path / "annotations" / "b.dcm")
    write_image(tmp_path)
    (_,), reasons = read(tmp_path)
    assert reasons == {"annotations/b.dcm": "is not a SEG, an RTSTRUCT or an SR of findings"}
