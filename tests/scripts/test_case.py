"""evaluate/case.py on phantom mammograms, with tiny exports of the real networks and a
detector that knows where to look.
"""

import errno
import json
import shutil
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pydicom
import pytest
from highdicom.seg import segread

from tests.archives.writers import vindr
from tests.exported_detectors import save_detector
from tests.small_pipelines import save_models
from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, PipelineError
from tfmammo.inference import case
from tfmammo.inference.pipeline import Pipeline
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.shape import SHAPES
from tfmammo.tracking import export

SIZE = 32
NAME = "QUIBBLE^ZEPHYRINE"
NUMBER = "PIDXW77310"
BORN = "19430217"
RECORD = next(
    record
    for record in phantom.read(count=8)
    if any(lesion.kind == "mass" for lesion in record.lesions)
)
MASS = next(lesion for lesion in RECORD.lesions if lesion.kind == "mass")
BOXES = [MASS.box, (400, 0, 460, 40)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_models(root, BOXES, RECORD.rows, RECORD.cols)
    save_detector(root / "blind", [], [], batch=1)
    keras.utils.set_random_seed(0)
    data = DataConfig(size=SIZE, frame="loose").model_dump(mode="json")
    card = {"name": "cgan", "step": 3, "config": {"data": data}, "train_patients": ["abc"]}
    config = CGANConfig(filters=(4, 4, 4, 4, 4), samples=3, adversarial=False)
    export.export(CGAN(config, SIZE), root / "cgan", card)
    return root


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A phantom as a DICOM with a patient in its header."""
    (path,) = vindr.write([RECORD], tmp_path_factory.mktemp("vindr"))
    dataset = pydicom.dcmread(path)
    dataset.PatientName = NAME
    dataset.PatientID = NUMBER
    dataset.PatientBirthDate = BORN
    dataset.ImageLaterality = RECORD.laterality
    dataset.save_as(path.with_name("mammogram.dcm"))
    return path.with_name("mammogram.dcm")


@pytest.fixture
def run(call_script, repository, models, tmp_path):
    """A function (*files, **config) that runs the script in this process and returns its reports by
    folder.
    """

    def call(*files, **config):
        parts = {"detector": "detector", "segmenter": "cgan", "classifier": "shape"}
        known = {"threshold": 0.01} | {key: f"{models}/{name}" for key, name in parts.items()}
        values = [f"{key}={value}" for key, value in (known | config).items()]
        options = ["--config", repository / "configs/case.yaml", "--output", tmp_path / "out"]
        call_script("evaluate/case", *files, *options, "--set", *values)
        reports = (tmp_path / "out").glob("*/report.json")
        return {path.parent: json.loads(path.read_text()) for path in reports}

    return call


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_dicom_gives_overlay_report_and_segmentation(run, stored, capfd):
    """Only the segmentation names the patient."""
    ((folder, report),) = run(stored).items()
    assert folder.name.startswith("mammogram-") and len(folder.name) == len("mammogram-") + 8
    assert list_names(folder) == ["mask.png", "overlay.png", "report.json", "segmentation.dcm"]
    assert report["input"]["sha256"].startswith(folder.name[-8:])
    assert report["files"]["segmentation"] == "segmentation.dcm" and report["remarks"] == []
    lesions = report["lesions"]
    assert [lesion["box"] for lesion in lesions] == [list(box) for box in BOXES]
    assert report["mammogram"]["laterality"] == RECORD.laterality
    assert report["mammogram"]["spacing_mm"] == list(RECORD.spacing)
    for lesion in lesions:
        assert lesion["shape"] in SHAPES and 0 < lesion["uncertainty"] < 0.5
        area = lesion["area_px"] * RECORD.spacing[0] ** 2
        assert lesion["area_mm2"] == pytest.approx(area, rel=1e-3)
    assert report["models"]["segmenter"]["name"] == "cgan"
    assert max(cv2.imread(str(folder / "overlay.png")).shape) == 1600
    mask = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (RECORD.rows, RECORD.cols) and {*np.unique(mask)} == {0, 255}
    read = segread(folder / "segmentation.dcm")
    source = [pydicom.dcmread(stored).SOPInstanceUID]
    masks = read.get_pixels_by_source_instance(source, ignore_spatial_locations=True)
    assert masks.sum(axis=(0, 1, 2)).tolist() == [lesion["area_px"] for lesion in lesions]
    for number, lesion in enumerate(lesions, 1):
        label = read.get_segment_description(number).segment_label
        assert label.startswith(f"Lesion {number} mass 0.{10 - number}0, {lesion['shape']}")
    said = "".join(capfd.readouterr())
    assert f"{stored}: 1 mass 0.90" in said
    for secret in (NAME, NAME.split("^")[0], NUMBER, BORN):
        assert secret.encode() in stored.read_bytes() and secret not in said
        for name in ("mask.png", "overlay.png", "report.json"):
            assert secret.encode() not in (folder / name).read_bytes()
    assert pydicom.dcmread(folder / "segmentation.dcm").PatientName == NAME
    assert "abc" not in (folder / "report.json").read_text()  # a patient of the training


@pytest.mark.slow
def test_a_picture_gives_no_segmentation_and_says_so(run, tmp_path):
    pixels = np.rint(255 * RECORD.pixels()[..., 0]).astype(np.uint8)
    files = [tmp_path / name for name in ("a.png", "a.jpg", "a.tif")]
    for path in files:
        cv2.imwrite(str(path), pixels)
    reports = run(*files)
    assert len(reports) == 3  # of one stem, each in its own folder
    for folder, report in reports.items():
        assert list_names(folder) == ["mask.png", "overlay.png", "report.json"]
        assert report["files"]["segmentation"] is None
        assert report["remarks"] == ["no DICOM segmentation: the input is no DICOM"]
        assert len(report["lesions"]) == 2 and report["lesions"][0]["area_mm2"] is None
        assert report["mammogram"]["laterality"] is None


@pytest.mark.slow
def test_a_second_run_replaces_the_first_unless_it_fails(run, stored, models, monkeypatch):
    ((folder, first),) = run(stored).items()
    (folder / "mine.txt").touch()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(PipelineError, match="No space left"):
        patch.setattr(case, "write_report", fail)
        run(stored)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    ((again, second),) = run(stored, detector=f"{models}/blind").items()
    assert again == folder and first["lesions"] and second["lesions"] == []
    assert second["remarks"] == ["no DICOM segmentation: there is no mask"]
    assert list_names(folder) == ["mask.png", "mine.txt", "overlay.png", "report.json"]


@pytest.mark.slow
def test_results_of_the_packages_own_detector_say_so(run, stored, capfd):
    ((_, report),) = run(stored, detector="models:/zoo/light_head").items()
    assert any("a small one that comes with the package" in each for each in report["remarks"])
    assert "it missed half of the masses" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("card", "remark"),
    [
        ({"archive": "phantom", "packed": True}, "trained on generated phantoms alone"),
        ({"archive": "folder", "packed": True}, "missed half of the masses in mammograms"),
        ({"archive": "inbreast", "config": {"data": {"name": "inbreast"}}}, None),
    ],
)
def test_a_detector_that_must_not_be_relied_on_says_so(card, remark):
    said = Pipeline.list_remarks(SimpleNamespace(detector=SimpleNamespace(card=card)))
    if remark is None:
        assert not said
    else:
        assert remark in said[0] and said[0].endswith("name your own by detector=RUN")


@pytest.mark.slow
def test_what_cannot_be_read_is_told_of_and_the_rest_is_read(run, stored, tmp_path):
    damaged, text, nowhere = (tmp_path / name for name in ("damaged.dcm", "notes.txt", "x.dcm"))
    damaged.write_bytes(stored.read_bytes()[:5000])
    text.write_text("no image")
    with pytest.raises(PipelineError) as raised:
        run(damaged, text, stored, nowhere)
    said = str(raised.value).split("; ")
    for sentence, start in zip(said, (damaged, text, nowhere), strict=True):
        assert sentence.startswith(f"{start}: ") and "\n" not in sentence
    assert "ends early" in said[0] and said[2] == f"{nowhere}: no such file"
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.slow
def test_a_dicom_without_identifiers_keeps_its_report(run, stored, tmp_path):
    shutil.copy(stored, tmp_path / "IM0001")  # without an ending
    dataset = pydicom.dcmread(stored)
    del dataset.StudyInstanceUID
    dataset.save_as(tmp_path / "bare.dcm")
    reports = run(tmp_path / "bare.dcm", tmp_path / "IM0001")
    (bare,) = [report for place, report in reports.items() if place.name.startswith("bare")]
    (plain,) = [report for place, report in reports.items() if place.name.startswith("IM")]
    (remark,) = bare["remarks"]
    assert remark.startswith("no DICOM segmentation: has no StudyInstanceUID")
    assert len(bare["lesions"]) == 2 and bare["files"]["segmentation"] is None
    assert plain["files"]["segmentation"] == "segmentation.dcm"


def test_what_the_pipeline_refuses(run, stored, tmp_path):
    dataset = pydicom.dcmread(stored)
    dataset.PresentationIntentType = "FOR PROCESSING"
    dataset.save_as(tmp_path / "raw.dcm")
    with pytest.raises(PipelineError, match="raw.dcm"):
        run(tmp_path / "raw.dcm")
    with pytest.raises(ConfigError, match="segmentor: unknown key"):
        run(stored, segmentor="x")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(PipelineError, match="can't be written"):
        run(stored)
