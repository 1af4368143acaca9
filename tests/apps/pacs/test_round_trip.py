"""Studies through a real PACS and back: Orthanc, over DICOMweb and DIMSE."""

import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from highdicom.sr import srread
from pydicom.uid import JPEGLSLossless, generate_uid

from tests.commands import run_module_here
from tests.orthanc import AUTHORIZATION, run_orthanc
from tests.small_mammograms import PATIENT
from tests.small_pipelines import save_models
from tfmammo import config as configuration
from tfmammo.apps.pacs.config import PacsConfig, RoundTripConfig, parse_address
from tfmammo.apps.pacs.nodes import Instance
from tfmammo.apps.pacs.results import Identity, build_results
from tfmammo.apps.pacs.round_trip import RoundTrip
from tfmammo.archives import dicom, folder
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ConfigError
from tfmammo.inference.pipeline import Pipeline
from tfmammo.mammogram import Skipped

pytest.importorskip("dicomweb_client")
pytest.importorskip("pynetdicom")

ROWS = 96
COLS = 80
BOXES = [(20, 16, 60, 50), (70, 40, 90, 78)]
NAME = PATIENT["PatientName"]
NUMBER = PATIENT["PatientID"]
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
VIEWS = [("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO")]


def draw(seed: int) -> np.ndarray:
    """Noise with two bright ellipses where the boxes are: uint16 [ROWS, COLS], 12 bits."""
    random = np.random.default_rng(seed)
    image = random.uniform(0.1, 0.2, (ROWS, COLS))
    rows, cols = np.mgrid[:ROWS, :COLS]
    for top, left, bottom, right in BOXES:
        radii = (bottom - top) / 2 - 1, (right - left) / 2 - 1
        centre = (top + bottom - 1) / 2, (left + right - 1) / 2
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((cols - centre[1]) / radii[1]) ** 2 <= 1
        image[inside] += 0.6
    return np.rint(4095 * image).astype(np.uint16)


def write_image(path, side="R", view="CC", seed=0, study="1.2.3", **elements):
    """Write a mammogram of a patient with a name."""
    facts = {
        **PATIENT,
        "StudyTime": "101112",
        "StudyInstanceUID": study,
        "ImageLaterality": side,
        "ViewPosition": view,
        "PixelSpacing": [0.1, 0.2],
        "PatientOrientation": ["A", "R"] if side == "L" else ["P", "L"],
    }
    write_dicom(path, draw(seed), 12, **facts | elements)
    return path


@pytest.fixture
def add(pacs, tmp_path):
    """A function that puts a study into the PACS -> its UID and files."""

    def write(views=VIEWS[:1], seed=0, study=None, **elements):
        study = study or generate_uid()
        paths = [
            write_image(tmp_path / f"in/{generate_uid()}.dcm", *view, number, study, **elements)
            for number, view in enumerate(views, seed)
        ]
        for path in paths:
            pacs.upload(path)
        return study, paths

    return write


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """Overrides of configs/pacs.yaml that name small models."""
    return save_models(tmp_path_factory.mktemp("models"), BOXES, ROWS, COLS)


@pytest.fixture(scope="module")
def pipeline(overrides, repository):
    config = configuration.parse(RoundTripConfig, repository / "configs/pacs.yaml", overrides)
    return Pipeline.load(config.get_pipeline())


@pytest.fixture
def process(pipeline, pacs):
    """A function (*studies, address, target, **config) that processes studies of the PACS."""

    def call(*studies, address=pacs.web, target=None, **values):
        limits = {"timeout": 20, "attempts": 3, "wait": 0.1, "listen": pacs.listen}
        way = RoundTrip(
            pipeline,
            PacsConfig(**(limits | values)),
            parse_address(address, "--from"),
            parse_address(target or address, "--to"),
        )
        return list(way.run(studies))

    return call


def count_classes(pacs) -> Counter:
    """Count what the PACS holds by SOP class."""
    found = pacs.ask("/instances?expand&requestedTags=SOPClassUID")
    return Counter(
        pacs.ask(f"/instances/{one['ID']}/metadata/SopClassUid").decode() for one in found
    )


def find_references(dataset) -> set[str]:
    """Find the SOP Instance UIDs that a dataset refers to, at any depth."""
    elements = dataset.iterall()
    return {str(one.value) for one in elements if one.keyword == "ReferencedSOPInstanceUID"}


def sort_results(paths) -> dict[str, list[pydicom.Dataset]]:
    """Read files, by SOP class."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in paths:
        dataset = pydicom.dcmread(path)
        found.setdefault(str(dataset.SOPClassUID), []).append(dataset)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_a_study_comes_back_with_masks_and_measurements(
    process, pacs, add, pipeline, tmp_path, way
):
    study, paths = add(VIEWS)
    address = pacs.web if way == "web" else pacs.dimse
    options = {} if way == "web" else {"retrieve": way}
    (outcome,) = process(study, address=address, capture=True, **options)
    assert outcome.describe() == f"{study}: results of 4 mammograms stored"
    assert count_classes(pacs)[SEGMENTATION] == count_classes(pacs)[REPORT] == 4

    results = sort_results(pacs.download(tmp_path / "back"))
    images = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in paths}
    held = {str(dataset.SOPInstanceUID) for datasets in results.values() for dataset in datasets}
    segments = {uid: one for one in results[SEGMENTATION] for uid in find_references(one)}
    for path, image in images.items():
        expected = pipeline.predict(folder.read_one(path)).findings
        assert [finding.box for finding in expected] == [tuple(box) for box in BOXES]
        check_segmentation(segments[image.SOPInstanceUID], image, expected)
    for datasets in results.values():
        for dataset in datasets:
            assert find_references(dataset) <= held
            assert dataset.StudyInstanceUID == study and dataset.PatientName == NAME
            if dataset.get("Manufacturer") == "tfmammo":
                assert dataset.ContentQualification == "RESEARCH"
    for kind in (SEGMENTATION, REPORT):
        assert len({one.SeriesInstanceUID for one in results[kind]}) == 1, "one series a study"
    for report in results[REPORT]:
        check_report(report, segments)
    captures = [one for one in results[CAPTURE] if one.get("Manufacturer") == "tfmammo"]
    assert len(captures) == 4
    assert find_references(captures[0]) <= {image.SOPInstanceUID for image in images.values()}


def check_segmentation(segmentation, image, expected):
    """Masks are those of the pipeline, pixel for pixel."""
    read = segread(segmentation.filename)
    masks = read.get_pixels_by_source_instance(
        [image.SOPInstanceUID], ignore_spatial_locations=True
    )
    size = (image.Rows, image.Columns)
    assert masks.shape == (1, *size, len(expected))
    for number, finding in enumerate(expected):
        np.testing.assert_array_equal(masks[0, ..., number], finding.lesion.mask(*size))
        assert masks[0, ..., number].sum() > 100


def check_report(report, segments):
    """Boxes, certainty, shapes and algorithms are in the report, as highdicom reads it."""
    read = srread(report.filename)
    groups = read.content.get_planar_roi_measurement_groups()
    drawn = [group for group in groups if group.roi is not None]
    outlined = [group for group in groups if group.referenced_segmentation_frame is not None]
    assert len(drawn) == len(outlined) == len(BOXES)
    for group, (top, left, bottom, right) in zip(drawn, BOXES, strict=True):
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        np.testing.assert_allclose(group.roi.value, corners, atol=0.01)
        (certainty,) = group.get_measurements()
        assert certainty.name.value == "111012" and certainty.unit.value == "%"
        assert certainty.value == pytest.approx(90 if top == 20 else 80, abs=1e-4)
    image = drawn[0].roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    segmentation = segments[image]
    for number, group in enumerate(outlined, 1):
        item = group.referenced_segmentation_frame[0].ReferencedSOPSequence[0]
        assert item.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert item.ReferencedSegmentNumber == number
        segment = segmentation.SegmentSequence[number - 1]
        assert group.tracking_uid == segment.TrackingUID == drawn[number - 1].tracking_uid
        values = {one.name.meaning: one.value for one in group.get_measurements()}
        area = segmentation.pixel_array[number - 1].sum() * 0.1 * 0.2
        assert values["Area"] == pytest.approx(area)
        shapes = [value for name, value in values.items() if name.startswith("Probability of")]
        assert len(shapes) == 4 and sum(shapes) == pytest.approx(1, abs=1e-5)
    text = " ".join(str(one.value) for one in report.iterall() if one.keyword == "TextValue")
    assert "sha256 of files" in text and "not for diagnosis" in text


def test_a_finding_without_an_outline_takes_no_segment(pipeline, tmp_path):
    path = write_image(tmp_path / "a.dcm")
    found = pipeline.predict(folder.read_one(path))
    bare = replace(found.findings[0], lesion=None)
    found = replace(found, findings=(bare, *found.findings[1:]))
    header = dicom.read_dataset(path)
    source = Instance("1.2.3", str(header.SeriesInstanceUID), str(header.SOPInstanceUID))
    remarks = ("its detector is a small one",)
    identity = replace(Identity.make(pipeline), remarks=remarks)
    segmentation, report = build_results(found, header, source, identity, picture=False)
    (segment,) = segmentation.SegmentSequence
    report.save_as(tmp_path / "report.dcm")
    groups = srread(tmp_path / "report.dcm").content.get_planar_roi_measurement_groups()
    (group,) = (each for each in groups if each.referenced_segmentation_frame is not None)
    item = group.referenced_segmentation_frame[0].ReferencedSOPSequence[0]
    assert item.ReferencedSegmentNumber == 1 and group.tracking_uid == segment.TrackingUID
    values = [one.value for one in report.iterall() if one.keyword == "TextValue"]
    assert values.count(*remarks) == len(found.findings)


def test_other_programs_read_the_results(process, pacs, add, tmp_path):
    """DCMTK reads them, and the standard's checker finds no error."""
    programs = [shutil.which(name) for name in ("dcm2json", "dsrdump", "dciodvfy")]
    if None in programs:
        pytest.skip("apt-get install dcmtk dicom3tools")
    study, _ = add()
    process(study, capture=True)

    def run(program, path):
        return subprocess.run([program, path], capture_output=True, text=True, check=False)

    checked = 0
    for path in pacs.download(tmp_path / "back"):
        assert json.loads(run(programs[0], path).stdout)["0020000D"]["Value"] == [study]
        dataset = pydicom.dcmread(path)
        if dataset.SOPClassUID == REPORT:
            read = run(programs[1], path)
            assert read.stderr == "" and "Certainty of Finding" in read.stdout
        if dataset.get("Manufacturer") == "tfmammo":
            assert "Error" not in run(programs[2], path).stderr
            checked += 1
    assert checked == 3


def test_a_folder_reads_each_finding_once(process, pacs, add, tmp_path):
    study, _ = add()
    process(study)
    back = tmp_path / "back" / "images"
    pacs.download(back)
    skipped = Skipped()
    (record,) = folder.read(tmp_path / "back", skipped)
    assert not skipped.reasons and len(record.lesions) == len(BOXES)
    (segmentation,) = sort_results(back.glob("*.dcm"))[SEGMENTATION]
    drawn = sorted(lesion.mask(ROWS, COLS).sum() for lesion in record.lesions)
    assert drawn == sorted(frame.sum() for frame in segmentation.pixel_array)


def test_a_second_run_stores_and_fetches_nothing(process, pacs, add):
    study, _ = add(VIEWS[:2])
    process(study)
    before = pacs.ask("/changes?last")["Last"]
    (outcome,) = process(study, study)
    assert (outcome.stored, outcome.present) == (0, 2)
    assert pacs.ask("/changes?last")["Last"] == before
    # one that was added since
    add(VIEWS[2:3], seed=9, study=study)
    (outcome,) = process(study)
    assert (outcome.stored, outcome.present) == (1, 2)
    assert count_classes(pacs)[REPORT] == 3
    # a result that was not asked for before is added to those that are there
    (outcome,) = process(study, capture=True)
    assert (outcome.stored, outcome.present) == (3, 0)
    found = count_classes(pacs)
    assert found[CAPTURE] == found[REPORT] == found[SEGMENTATION] == 3


def test_what_was_stored_before_a_stop_is_not_stored_again(process, pacs, add):
    study, _ = add()
    process(study)
    (report,) = [
        one
        for one in pacs.ask("/instances")
        if pacs.ask(f"/instances/{one}/metadata/SopClassUid").decode() == REPORT
    ]
    pacs.ask(f"/instances/{report}", method="DELETE")
    (outcome,) = process(study)
    assert outcome.stored == 1
    assert count_classes(pacs)[SEGMENTATION] == count_classes(pacs)[REPORT] == 1


def test_a_segmentation_that_differs_is_not_referred_to(process, pacs, add, tmp_path):
    study, paths = add()
    process(study)
    (old,) = sort_results(pacs.download(tmp_path / "back"))[SEGMENTATION]
    pacs.clear()
    pacs.upload(paths[0])
    old.PixelData = bytes(len(old.PixelData))
    old.save_as(tmp_path / "other.dcm")
    pacs.upload(tmp_path / "other.dcm")
    (outcome,) = process(study)
    assert "another segmentation" in outcome.failure
    assert count_classes(pacs)[REPORT] == 0


@pytest.mark.parametrize("way", ["web", "dimse"])
def test_compressed_pixels_come_as_they_are(process, pacs, add, way):
    study, (path,) = add(syntax=JPEGLSLossless)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLSLossless
    (outcome,) = process(study, address=getattr(pacs, way))
    assert outcome.stored == 1


@pytest.mark.slow
def test_another_server_takes_the_results(process, pacs, add, tmp_path, monkeypatch):
    study, _ = add()
    with run_orthanc(tmp_path / "other") as other:
        (outcome,) = process(study, target=other.web)
        assert outcome.failure.endswith("status 401")  # it has not been given the source's
        monkeypatch.setenv("TFMAMMO_PACS_TARGET_AUTHORIZATION", AUTHORIZATION)
        (outcome,) = process(study, target=other.web)
        assert outcome.failure is None
        assert count_classes(other) == {SEGMENTATION: 1, REPORT: 1}
        (outcome,) = process(study, address=pacs.web, target=other.dimse)
        assert outcome.present == 1
    assert len(pacs.ask("/instances")) == 1


# pynetdicom leaves the socket of a refused connection to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_errors_are_one_sentence_and_name_no_patient(process, add, monkeypatch):
    study, _ = add()
    (outcome,) = process("1.2.3.4")
    assert "no such study" in outcome.failure
    with pytest.raises(ConfigError, match="--study: quibble"):
        process("quibble")
    monkeypatch.setenv("TFMAMMO_PACS_AUTHORIZATION", "Basic d3Jvbmc6d3Jvbmc=")
    (outcome,) = process(study)
    assert outcome.failure == "127.0.0.1: answered with status 401"
    for address in ("dicomweb+http://127.0.0.1:9/dicom-web", "dimse://X@127.0.0.1:9"):
        start = time.monotonic()
        (outcome,) = process(study, address=address, attempts=2)
        assert outcome.failure.startswith("127.0.0.1: can") and time.monotonic() - start < 10


def test_no_patient_data_is_written_or_printed(overrides, pacs, add, tmp_path, monkeypatch, caplog):
    study, _ = add()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(here))
    command = ["tfmammo.apps.pacs", "--from", pacs.web, "--to", pacs.web, "--set", *overrides]
    done = run_module_here(*command, "--study", study)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{study}: results of 1 mammograms stored\n"
    assert list(here.rglob("*")) == []
    assert NAME not in caplog.text and NUMBER not in caplog.text
    done = run_module_here(*command, "--study", "1.2.3")
    assert done.returncode == 2 and "1 of 1 studies are not complete" in done.stderr


@pytest.mark.long
def test_uids_follow_from_the_models(pipeline, overrides, repository, tmp_path):
    same = Identity.make(pipeline)
    place = overrides[0].partition("=")[2].removesuffix("/detector")
    shutil.copytree(place, tmp_path / "moved")
    options = [override.replace(place, f"{tmp_path}/moved") for override in overrides]

    def digest(*more):
        path = repository / "configs/pacs.yaml"
        config = configuration.parse(RoundTripConfig, path, [*options, *more])
        return Identity.make(Pipeline.load(config.get_pipeline())).digest

    assert digest() == same.digest != digest("score=0.6")
    with (tmp_path / "moved/detector/saved_model.pb").open("ab") as file:
        file.write(b"\x7a\x00")  # an unknown field
    assert digest() != same.digest


@pytest.mark.long
@pytest.mark.parametrize("studies", [40, pytest.param(200, marks=pytest.mark.nightly)])
def test_a_killed_server_loses_nothing_and_stores_nothing_twice(
    process, pacs, add, tmp_path, studies
):
    uids = [add(seed=number)[0] for number in range(studies)]
    outcomes = []
    work = threading.Thread(
        target=lambda: outcomes.extend(process(*uids, in_flight=8, attempts=9, wait=0.5))
    )
    work.start()
    for kill_at in (studies // 5, studies // 2):
        # a SEG and a report beside each image
        while pacs.ask("/statistics")["CountInstances"] < studies + 2 * kill_at:
            time.sleep(0.05)
        pacs.kill()
        time.sleep(1)
        pacs.start()
    work.join()
    assert [outcome.failure for outcome in outcomes] == [None] * studies
    found = count_classes(pacs)
    assert (found[SEGMENTATION], found[REPORT]) == (studies, studies)
    reports = sort_results(pacs.download(tmp_path / "back"))[REPORT]
    assert sorted(str(report.StudyInstanceUID) for report in reports) == sorted(uids)


def test_other_images_are_skipped(process, pacs, add):
    """Only the mammogram is analysed, and every other image is named in the answer."""
    study, _ = add()
    kind = "1.2.840.10008.5.1.4.1.1"
    others = {
        "raw image": {"PresentationIntentType": "FOR PROCESSING"},
        "Breast Tomosynthesis Image Storage": {"SOPClassUID": f"{kind}.13.1.3"},
        "a tomosynthesis": {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"]},
        "Ultrasound Image Storage": {"SOPClassUID": f"{kind}.6.1", "Modality": "US"},
        "MR Image Storage": {"SOPClassUID": f"{kind}.4", "Modality": "MR"},
        "modality is not MG": {"SOPClassUID": f"{kind}.7", "Modality": "CT"},  # a dose page
    }
    for number, elements in enumerate(others.values()):
        sop_class = elements.pop("SOPClassUID", f"{kind}.1.2")
        add(VIEWS[1:2], number, study=study, sop_class=sop_class, **elements)
    (outcome,) = process(study)
    assert (outcome.stored, len(outcome.skipped), outcome.failure) == (1, len(others), None)
    assert count_classes(pacs)[REPORT] == count_classes(pacs)[SEGMENTATION] == 1
    told = outcome.describe()
    assert [name for name in others if name not in told] == []
    assert NAME not in told and "/proc" not in told
    alone, _ = add(VIEWS[1:2], Modality="US")
    (outcome,) = process(alone)
    assert "no mammogram (" in outcome.failure
