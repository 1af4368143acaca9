"""Mammography CAD SR (TID 4000) beside its mammograms, written by hand as the standard says."""

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.small_mammograms import COLS, ROWS
from tfmammo.archives import folder, regions
from tfmammo.archives.writers import measurements, segmentation
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Lesion, Skipped

# col, row of the outline's corners; the half-open box of pixels within is (10, 20, 19, 31)
OUTLINE = [20.5, 10.5, 30.5, 10.5, 30.5, 18.5, 20.5, 18.5, 20.5, 10.5]


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


def make_item(form, name=None, **elements) -> Dataset:
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    if form:
        item.ValueType = form
    if name:
        item.ConceptNameCodeSequence = [make_code(name)]
    for key, value in elements.items():
        setattr(item, key, value)
    return item


def make_code(value, scheme="DCM") -> Dataset:
    code = Dataset()
    code.CodeValue = value
    code.CodingSchemeDesignator = scheme
    code.CodeMeaning = "a meaning"
    return code


def make_finding(code="F-01791", outline=OUTLINE, intent="111150", image=(1, 1, 1)) -> Dataset:
    """Make a single image finding (TID 4006), whose image stands in the image library."""
    reference = make_item(None, ReferencedContentItemIdentifier=list(image))
    children = [make_item("CODE", "111056", ConceptCodeSequence=[make_code(intent)])]
    centre = {"GraphicType": "POINT", "GraphicData": [25.0, 14.0], "ContentSequence": [reference]}
    children.append(make_item("SCOORD", "111010", **centre))
    if outline:
        drawn = {"GraphicType": "POLYLINE", "GraphicData": outline}
        children.append(make_item("SCOORD", "111041", **drawn, ContentSequence=[reference]))
    codes = [make_code(code, "SRT")]
    return make_item("CODE", "111059", ConceptCodeSequence=codes, ContentSequence=children)


def write_image(root) -> Dataset:
    stored = np.linspace(0, 4095, ROWS * COLS).reshape(ROWS, COLS).astype(np.uint16)
    uid = generate_uid()
    write_dicom(root / "images" / "a.dcm", stored, 12, SOPInstanceUID=uid)
    return uid


def write_report(root, uid, *findings) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = regions.CAD_REPORT
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = root / "images" / "z.dcm"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = regions.CAD_REPORT
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientName = "QUIBBLE^ZEPHYRINE"
    dataset.ValueType = "CONTAINER"
    dataset.ConceptNameCodeSequence = [make_code("111036")]
    reference = Dataset()
    reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    reference.ReferencedSOPInstanceUID = uid
    image = make_item("IMAGE", ReferencedSOPSequence=[reference])
    library = make_item("CONTAINER", "111028", ContentSequence=[image])
    impression = make_item("CONTAINER", "111034", ContentSequence=list(findings))
    summary = make_item("CODE", "111017", ConceptCodeSequence=[make_code("111242")])
    summary.ContentSequence = [impression]
    dataset.ContentSequence = [library, summary]
    dataset.save_as(path)


def read(root):
    skipped = Skipped()
    (record,) = folder.read(root, skipped)
    return record.lesions, list(skipped.reasons.values())


@pytest.mark.parametrize(
    ("code", "kind", "certain"),
    [("F-01791", "mass", True), ("F-01775", "calcification", True), ("F-01796", "mass", False)],
)
def test_an_outline_is_a_lesion(tmp_path, code, kind, certain):
    write_report(tmp_path, write_image(tmp_path), make_finding(code))
    (lesion,), reasons = read(tmp_path)
    assert not reasons
    assert (lesion.kind, lesion.kind_is_certain) == (kind, certain)
    assert lesion.box == (10, 20, 19, 31)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"intent": "111152"}, "are marked as not for presentation"),
        ({"outline": None}, "are points, not areas"),
        ({"code": "F-01711"}, "are of findings that are not known"),
        ({"image": (1, 9, 1)}, "name no image, or several"),
        ({"image": (2, 1, 1)}, "name no image, or several"),
        ({"image": (1, 2)}, "name no image, or several"),
        ({"image": (1, *[1] * 40)}, "name no image, or several"),
        ({"outline": OUTLINE[:-2]}, "are lines that enclose nothing"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, changes, reason):
    write_report(tmp_path, write_image(tmp_path), make_finding(**changes))
    lesions, (told,) = read(tmp_path)
    assert not lesions and told == f"1 of its regions {reason}"


def test_a_lesion_of_segmentation_and_report_counts_once(tmp_path):
    stored = np.linspace(0, 4095, ROWS * COLS).reshape(ROWS, COLS).astype(np.uint16)
    path = tmp_path / "images" / "a.dcm"
    write_dicom(path, stored, 12, ImagerPixelSpacing=[0.07, 0.07])
    source = regions.dicom.read_dataset(path)
    outline = np.float32([[12, 22], [12, 28], [16, 28]])
    lesion = Lesion.from_outline("mass", outline, ROWS, COLS)
    tracking = generate_uid()
    with segmentation.referring(path):
        identifiers = segmentation.Identifiers(generate_uid(), generate_uid(), (tracking,))
        segments = segmentation.build(source, {"Lesion 1": lesion}, "1", {}, identifiers)
        algorithm = measurements.Algorithm("1", {"detector": "d"}, generate_uid())
        findings = [
            measurements.Finding(f"Lesion {number}", uid, "mass", box, 0.5)
            for number, uid, box in (
                (1, tracking, (10, 20, 19, 31)),
                (2, generate_uid(), (40, 5, 50, 15)),
            )
        ]
        report = measurements.build(
            source, None, findings, algorithm, generate_uid(), generate_uid()
        )
    segments.save_as(path.with_name("y.dcm"))
    report.save_as(path.with_name("z.dcm"))
    lesions, reasons = read(tmp_path)
    assert not reasons and len(lesions) == 2
    np.testing.assert_array_equal(lesions[0].mask(ROWS, COLS), lesion.mask(ROWS, COLS))
    # a rectangle from corner to corner covers the pixels of its half-open box
    assert lesions[1].box == pytest.approx((40, 5, 50, 15), abs=1)
