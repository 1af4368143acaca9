"""evaluate/detection.py on the phantom, with exports that find the first phantom's lesions wherever they are looked for."""

import csv
import importlib.util
import json
import sys
from types import ModuleType

import mlflow
import numpy as np
import pytest
import tensorflow as tf

from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.data.patches import DataError
from tfmammo.export import FORMAT

PHANTOMS = 8
RECORDS = phantom.read(count=PHANTOMS)
MASSES = {record.image_id: [lesion.box for lesion in record.lesions if lesion.kind == "mass"] for record in RECORDS}
KNOWN = next(record for record in RECORDS if MASSES[record.image_id])


@pytest.fixture(scope="module")
def script(repository) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_detection", repository / "evaluate/detection.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: "a" and "b" were trained on the patients of half of the phantoms each, "none" has no card."""
    root = tmp_path_factory.mktemp("runs")
    patients = list(dict.fromkeys(record.patient_id for record in RECORDS))
    assert len(patients) > 1
    for name, seen in {"a": patients[::2], "b": patients[1::2], "none": None}.items():
        folder = root / name / "export"
        save(folder / "saved_model")
        if seen is not None:
            data = DataConfig(size=64).model_dump(mode="json")
            card = {"format": FORMAT, "name": "ssd", "serves": "saved_model", "functions": {}, "train_patients": seen}
            (folder / "card.json").write_text(json.dumps(card | {"config": {"data": data}}))
    return root


def save(folder):
    """A detector that always answers with the known lesions, and with a box in the corner that is less certain."""
    side = max(KNOWN.rows, KNOWN.cols)  # of the square into which the mammogram is scaled
    boxes = np.array([*MASSES[KNOWN.image_id], (0, 0, 20, 20)], np.float32) / side
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="input_tensor")])
    def detect(input_tensor):
        return {
            "detection_boxes": tf.constant(boxes[np.newaxis]),
            "detection_scores": tf.constant(scores[np.newaxis]),
            "detection_classes": tf.ones([1, len(boxes)]),
            "num_detections": tf.constant([float(len(boxes))]),
        }

    module = tf.Module()
    tf.saved_model.save(module, str(folder), signatures=detect.get_concrete_function())


@pytest.fixture
def run(script, repository, tmp_path, monkeypatch):
    def call(*overrides):
        arguments = ["--config", str(repository / "configs/detection.yaml"), "--output", str(tmp_path / "out"), "--set"]
        monkeypatch.setattr(sys, "argv", ["detection.py", *arguments, f"data.phantoms={PHANTOMS}", "samples=20", *overrides])
        script.main()
        rows = list(csv.reader((tmp_path / "out/table.csv").read_text().splitlines()))
        return rows, json.loads((tmp_path / "out/boxes.json").read_text())

    return call


def test_each_patient_by_the_fold_that_never_saw_it(run, runs, tmp_path):
    rows, boxes = run(f"detectors=[{runs}/a, {runs}/b]")
    assert set(boxes) == {record.image_id for record in RECORDS if MASSES[record.image_id] or record.pathology == "normal"}
    found = boxes[KNOWN.image_id]
    np.testing.assert_allclose(found["boxes"][:-1], MASSES[KNOWN.image_id], atol=1)
    assert [float(row[0]) for row in rows[1:]] == [0.25, 0.5, 1, 2, 4, 8]
    recall = [float(row[1]) for row in rows[1:]]
    lesions = sum(len(MASSES[image]) for image in boxes)
    assert recall[-1] >= 100 * len(MASSES[KNOWN.image_id]) / lesions - 0.1 and recall == sorted(recall)
    assert all(float(low) <= float(value) <= float(high) for _, value, low, high in rows[1:])
    assert (tmp_path / "out/froc.png").is_file() and "recall at IoU 0.5" in (tmp_path / "out/table.md").read_text()


def test_one_fold_judges_its_unseen_patients_alone(run, runs):
    seen = json.loads((runs / "a/export/card.json").read_text())["train_patients"]
    _, boxes = run(f"detectors={runs}/a", "patients=unseen")
    patients = {record.image_id: record.patient_id for record in RECORDS}
    assert boxes and not {patients[image] for image in boxes} & set(seen)


def test_patients_all_and_without_normal_ones(run, runs):
    _, boxes = run(f"detectors={runs}/none/export", "patients=all", "normal=false")
    assert set(boxes) == {image for image, masses in MASSES.items() if masses}


def test_the_store_keeps_table_curve_and_recall(run, runs, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    rows, _ = run(f"detectors=[{runs}/a, {runs}/b]", f"tracking_uri={uri}")
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tfmammo-evaluation")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert {item.path for item in client.list_artifacts(logged.info.run_id)} == {"boxes.json", "froc.png", "table.csv", "table.md"}
    assert 100 * logged.data.metrics["recall at 1"] == pytest.approx(float(rows[3][1]), abs=0.05)


def test_what_would_not_be_fair_is_refused(run, runs):
    with pytest.raises(DataError, match="no card names the patients"):
        run(f"detectors={runs}/none/export")
    with pytest.raises(DataError, match="judged by several handles"):
        run(f"detectors=[{runs}/a, {runs}/a]")
