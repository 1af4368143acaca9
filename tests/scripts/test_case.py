"""evaluate/case.py on phantom mammograms, with tiny exports of the real networks and a
detector that knows where to look.
"""

import errno
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pydicom
import pytest
import tensorflow as tf
from highdicom.seg import segread

from tests.archives.writers import vindr
from tests.commands import run_script_here
from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, PipelineError
from tfmammo.evaluation import case
from tfmammo.inference.pipeline import Pipeline
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.shape import SHAPES, ShapeCNN, ShapeConfig
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


def detector(folder, boxes):
    """A foreign SavedModel that always answers with these boxes of the phantom."""
    parts = np.zeros((1, 4), np.float32)
    if boxes:
        parts = np.array(boxes, np.float32) / np.array([RECORD.rows, RECORD.cols] * 2, np.float32)

    @tf.function(
        input_signature=[tf.TensorSpec([1, None, None, 3], tf.float32, name="input_tensor")]
    )
    def detect(input_tensor):
        return {
            "detection_boxes": tf.constant(parts[np.newaxis]),
            "detection_scores": tf.constant(
                np.linspace(0.9, 0.8, len(parts), dtype=np.float32)[np.newaxis] * bool(boxes)
            ),
            "detection_classes": tf.ones([1, len(parts)]),
            "num_detections": tf.constant([float(len(boxes))]),
        }

    tf.saved_model.save(tf.Module(), str(folder), signatures=detect.get_concrete_function())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    detector(root / "detector", BOXES)
    detector(root / "blind", [])
    keras.utils.set_random_seed(0)
    data = DataConfig(size=SIZE, frame="loose").model_dump(mode="json")
    card = {"name": "cgan", "step": 3, "config": {"data": data}, "train_patients": ["abc"]}
    export.export(
        CGAN(CGANConfig(filters=(4, 4, 4, 4, 4), samples=3, adversarial=False), SIZE),
        root / "cgan",
        card,
    )
    export.export(
        ShapeCNN(ShapeConfig(filters=(2, 2, 2), units=4)), root / "shape", {"name": "shape"}
    )
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
def run(load_script, repository, models, tmp_path, monkeypatch):
    """A function (*files, **config) that runs the script in this process and returns its reports by
    folder.
    """

    def call(*files, **config):
        config = {
            "detector": f"{models}/detector",
            "segmenter": f"{models}/cgan",
            "classifier": f"{models}/shape",
        } | config
        values = [f"{key}={value}" for key, value in ({"threshold": 0.01} | config).items()]
        arguments = [
            *map(str, files),
            "--config",
            str(repository / "configs/case.yaml"),
            "--output",
            str(tmp_path / "out"),
        ]
        monkeypatch.setattr(sys, "argv", ["case.py", *arguments, "--set", *values])
        load_script("evaluate/case").main()
        return {
            path.parent: json.loads(path.read_text())
            for path in (tmp_path / "out").glob("*/report.json")
        }

    return call


@pytest.mark.slow
def test_a_dicom_gives_overlay_report_and_segmentation(run, stored, models, capfd):
    ((folder, report),) = run(stored).items()
    assert folder.name.startswith("mammogram-") and len(folder.name) == len("mammogram-") + 8
    assert sorted(path.name for path in folder.iterdir()) == [
        "mask.png",
        "overlay.png",
        "report.json",
        "segmentation.dcm",
    ]
    assert (
        report["input"]["sha256"].startswith(folder.name[-8:])
        and report["files"]["segmentation"] == "segmentation.dcm"
    )
    assert [lesion["box"] for lesion in report["lesions"]] == [list(box) for box in BOXES]
    assert report["mammogram"]["laterality"] == RECORD.laterality and report["mammogram"][
        "spacing_mm"
    ] == list(RECORD.spacing)
    for lesion in report["lesions"]:
        assert (
            lesion["shape"] in SHAPES and lesion["area_px"] > 0 and 0 < lesion["uncertainty"] < 0.5
        )
        assert lesion["area_mm2"] == pytest.approx(
            lesion["area_px"] * RECORD.spacing[0] ** 2, rel=1e-3
        )
    assert report["models"]["segmenter"]["name"] == "cgan" and report["remarks"] == []
    assert max(cv2.imread(str(folder / "overlay.png")).shape) == 1600
    mask = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (RECORD.rows, RECORD.cols) and {*np.unique(mask)} == {0, 255}
    read = segread(folder / "segmentation.dcm")
    image = pydicom.dcmread(stored)
    masks = read.get_pixels_by_source_instance(
        [image.SOPInstanceUID], ignore_spatial_locations=True
    )
    assert masks.sum(axis=(0, 1, 2)).tolist() == [lesion["area_px"] for lesion in report["lesions"]]
    labels = [read.get_segment_description(number).segment_label for number in (1, 2)]
    shapes = [lesion["shape"] for lesion in report["lesions"]]
    assert labels[0].startswith(f"Lesion 1 mass 0.90, {shapes[0]}") and labels[1].startswith(
        f"Lesion 2 mass 0.80, {shapes[1]}"
    )
    assert f"{stored}: 1 mass 0.90" in capfd.readouterr().out


@pytest.mark.slow
def test_only_the_segmentation_names_the_patient(run, stored, capfd):
    ((folder, _),) = run(stored).items()
    said = "".join(capfd.readouterr())
    for secret in (NAME, NAME.split("^")[0], NUMBER, BORN):
        assert secret.encode() in stored.read_bytes() and secret not in said
        for name in ("mask.png", "overlay.png", "report.json"):
            assert secret.encode() not in (folder / name).read_bytes()
    assert pydicom.dcmread(folder / "segmentation.dcm").PatientName == NAME
    assert "abc" not in (folder / "report.json").read_text()  # a patient of the training


@pytest.mark.slow
def test_a_picture_gives_no_segmentation_and_says_so(run, tmp_path):
    pixels = np.rint(255 * RECORD.pixels()[..., 0]).astype(np.uint8)
    for name in ("a.png", "a.jpg", "a.tif"):
        cv2.imwrite(str(tmp_path / name), pixels)
    reports = run(tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "a.tif")
    assert len(reports) == 3  # of one stem, each in its own folder
    for folder, report in reports.items():
        assert sorted(path.name for path in folder.iterdir()) == [
            "mask.png",
            "overlay.png",
            "report.json",
        ]
        assert report["files"]["segmentation"] is None and report["remarks"] == [
            "no DICOM segmentation: the input is no DICOM"
        ]
        assert len(report["lesions"]) == 2 and report["lesions"][0]["area_mm2"] is None
        assert report["mammogram"]["laterality"] is None


def test_no_detection(run, stored, models):
    ((folder, report),) = run(stored, detector=f"{models}/blind").items()
    assert report["lesions"] == [] and report["remarks"] == [
        "no DICOM segmentation: there is no mask"
    ]
    assert (folder / "overlay.png").is_file() and not (folder / "segmentation.dcm").exists()


@pytest.mark.slow
def test_a_second_run_replaces_the_first(run, stored, models):
    ((folder, first),) = run(stored).items()
    (folder / "mine.txt").touch()
    ((again, second),) = run(stored, detector=f"{models}/blind").items()
    assert again == folder and first["lesions"] and not second["lesions"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "mask.png",
        "mine.txt",
        "overlay.png",
        "report.json",
    ]


@pytest.mark.slow
def test_results_of_the_packages_own_detector_say_so(run, stored, capfd):
    ((_, report),) = run(stored, detector="models:/zoo/light_head").items()
    assert any("a small one that comes with the package" in each for each in report["remarks"])
    assert "it missed half of the masses" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("card", "remark"),
    [
        ({"archive": "phantom", "packed": True}, "trained on generated phantoms alone"),
        ({"config": {"data": {"name": "phantom"}}}, "trained on generated phantoms alone"),
        (
            {"archive": "folder", "packed": True},
            "missed half of the masses in mammograms of unseen patients",
        ),
    ],
)
def test_a_detector_that_must_not_be_relied_on_says_so(card, remark):
    pipeline = SimpleNamespace(detector=SimpleNamespace(card=card))
    (said,) = Pipeline.list_remarks(pipeline)
    assert remark in said and said.endswith("name your own by detector=RUN")


def test_a_detector_of_ones_own_gets_no_remark():
    card = {"archive": "inbreast", "config": {"data": {"name": "inbreast"}}}
    assert not Pipeline.list_remarks(SimpleNamespace(detector=SimpleNamespace(card=card)))


@pytest.mark.slow
def test_a_second_run_that_fails_leaves_the_first(run, stored, monkeypatch):
    ((folder, _),) = run(stored).items()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(case, "write_report", fail)
    with pytest.raises(PipelineError, match="No space left"):
        run(stored)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_two_files_of_one_name(run, stored, tmp_path):
    other = tmp_path / "other" / stored.name
    other.parent.mkdir()
    dataset = pydicom.dcmread(stored)
    dataset.PixelData = dataset.PixelData[::-1]
    dataset.save_as(other)
    reports = run(stored, other)
    assert (
        len(reports) == 2 and len({report["input"]["sha256"] for report in reports.values()}) == 2
    )


@pytest.mark.slow
def test_what_cannot_be_read_is_told_of_and_the_rest_is_read(run, stored, tmp_path):
    damaged = tmp_path / "damaged.dcm"
    text = tmp_path / "notes.txt"
    damaged.write_bytes(stored.read_bytes()[:5000])
    text.write_text("no image")
    with pytest.raises(PipelineError) as raised:
        run(damaged, text, stored, tmp_path / "nowhere.dcm")
    said = str(raised.value)
    assert said.count("; ") == 2 and "\n" not in said
    assert (
        f"{damaged}: " in said
        and "ends early" in said
        and f"{text}: can't be read as an image" in said
    )
    assert said.endswith(f"{tmp_path / 'nowhere.dcm'}: no such file")
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.slow
def test_a_dicom_without_identifiers_keeps_its_report(run, stored, tmp_path):
    path = tmp_path / "bare.dcm"
    dataset = pydicom.dcmread(stored)
    del dataset.StudyInstanceUID
    dataset.save_as(path)
    ((folder, report),) = run(path).items()
    assert report["remarks"] == [
        "no DICOM segmentation: has no StudyInstanceUID, so no segmentation can refer to it"
    ]
    assert len(report["lesions"]) == 2 and not (folder / "segmentation.dcm").exists()


@pytest.mark.slow
def test_a_dicom_without_an_ending(run, stored, tmp_path):
    shutil.copy(stored, tmp_path / "IM0001")
    ((_, report),) = run(tmp_path / "IM0001").items()
    assert report["files"]["segmentation"] == "segmentation.dcm"


def test_a_raw_image_is_refused(run, stored, tmp_path):
    dataset = pydicom.dcmread(stored)
    dataset.PresentationIntentType = "FOR PROCESSING"
    dataset.save_as(tmp_path / "raw.dcm")
    with pytest.raises(PipelineError, match="raw.dcm"):
        run(tmp_path / "raw.dcm")


def test_a_folder_that_cannot_be_written(run, stored, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(PipelineError, match="can't be written"):
        run(stored)


def test_a_key_that_is_unknown(run, stored):
    with pytest.raises(ConfigError, match="segmentor: unknown key"):
        run(stored, segmentor="x")


def test_a_region_of_the_phantom_is_framed_as_its_patch(models, stored):
    """From the DICOM on disk to the segmenter's input: what a training sees of this mass in the
    same file.
    """
    from tfmammo.archives import folder
    from tfmammo.data.extraction import make_patches
    from tfmammo.inference.pipeline import Pipeline, PipelineConfig
    from tfmammo.mammogram import Skipped

    chain = Pipeline.load(
        PipelineConfig(
            detector=f"{models}/detector", segmenter=f"{models}/cgan", classifier=f"{models}/shape"
        )
    )
    inputs = []
    chain.segmenter = replace(
        chain.segmenter, call=lambda image: inputs.append(image) or {"mask": np.zeros_like(image)}
    )
    record = folder.read_one(stored)
    assert (record.rows, record.cols, record.spacing) == (RECORD.rows, RECORD.cols, RECORD.spacing)
    chain.predict(record)
    expected = make_patches([replace(record, lesions=(MASS,))], chain.data, Skipped()).images
    np.testing.assert_array_equal(inputs[0][:1], expected)


@pytest.mark.slow
def test_a_wrong_path_is_one_sentence_and_exit_2(repository, models, tmp_path):
    arguments = ("--config", repository / "configs/case.yaml", tmp_path / "nowhere.dcm")
    values = [
        f"detector={models}/detector",
        f"segmenter={models}/cgan",
        f"classifier={models}/shape",
    ]
    done = run_script_here(repository / "evaluate/case.py", *arguments, "--set", *values)
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1] == f"error: {tmp_path / 'nowhere.dcm'}: no such file"
    )
    assert "Traceback" not in done.stderr
