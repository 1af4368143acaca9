"""The SSD: settings for the API; with the extra, training, resuming and export.

The API needs environment variables that must be set before TensorFlow is imported, so it runs in
processes of its own, as for a user. This process has neither and reads the exports all the same.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tfmammo.archives import phantom
from tfmammo.detection.detections import Detector
from tfmammo.detection.ssd import SSD, SSDConfig, make_pipeline
from tfmammo.errors import DetectionError
from tfmammo.tracking.export import read_card

HAS_EXTRA = importlib.util.find_spec("object_detection") is not None
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason='needs pip install "tfmammo[detection]"')
SMALL = [
    "data.size=96",
    "data.phantoms=12",
    "data.folds=2",
    "training.batch_size=2",
    "training.steps_per_loop=2",
    "model.depth=16",
]
SMALL += ["model.head_layers=1", "tracking.system_metrics=false"]
START = "from the start to step 6"  # what a run logs before its first step


def run_python(arguments, repository, folder=None):
    """Run Python in a process of its own, without a GPU; stdout and stderr as text."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=make_environment(repository),
        capture_output=True,
        text=True,
        timeout=1400,
    )


def make_environment(repository):
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(repository)}


def test_the_pipelines():
    values = {"anchor_scale": 3, "anchor_octaves": 4, "detections": 7, "regularisation": 7e-6}
    config = SSDConfig(nms_iou=0.45, **values)
    settings = make_pipeline(config, (320, 192), 2)["model"]["ssd"]
    extractor = settings["feature_extractor"]
    resizer = settings["image_resizer"]["fixed_shape_resizer"]
    assert (settings["num_classes"], resizer) == (2, {"height": 320, "width": 192})
    assert extractor["type"] == "ssd_mobilenet_v2_fpn_keras" and extractor["use_depthwise"]
    anchors = settings["anchor_generator"]["multiscale_anchor_generator"]
    facts = ("anchor_scale", "min_level", "max_level", "scales_per_octave")
    assert [anchors[name] for name in facts] == [3, 3, 7, 4]
    predictor = settings["box_predictor"]["weight_shared_convolutional_box_predictor"]
    assert predictor["depth"] == extractor["fpn"]["additional_layer_depth"] == 128
    first = 1 / (1 + np.exp(-predictor["class_prediction_bias_init"]))
    assert first == pytest.approx(0.01, abs=1e-3)
    suppression = settings["post_processing"]["batch_non_max_suppression"]
    assert (suppression["max_total_detections"], suppression["iou_threshold"]) == (7, 0.45)
    for part in (extractor, predictor):
        assert part["conv_hyperparams"]["regularizer"]["l2_regularizer"]["weight"] == 7e-6
    resnet = SSDConfig(backbone="resnet50")
    extractor = make_pipeline(resnet, (640, 640), 1)["model"]["ssd"]["feature_extractor"]
    assert extractor["type"] == "ssd_resnet50_v1_fpn_keras" and not extractor["use_depthwise"]
    assert extractor["fpn"]["additional_layer_depth"] == 256


def test_without_the_environment_it_says_so(monkeypatch):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    with pytest.raises(DetectionError, match="TF_USE_LEGACY_KERAS"):
        SSD()


SCRIPT = """
import json, os, sys
os.environ |= {"TF_USE_LEGACY_KERAS": "1", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
from tfmammo.detection.detections import DetectionError
from tfmammo.detection.ssd import SSD, SSDConfig
import numpy as np
import tensorflow as tf

small = {"depth": 16, "head_layers": 1}
model = SSD(SSDConfig(**small, warmup=0, learning_rate=2e-3), 96, 2)
network = model.networks["detector"]
values = lambda: [variable.numpy() for variable in network.variables]
changed = lambda before: [not np.array_equal(a, b) for a, b in zip(before, values())]
names = [variable.name for variable in network.variables]
image = np.zeros((2, 96, 96, 1), np.float32)
image[:, 20:52, 30:62] = 1
box = np.array([[20, 30, 52, 62]], np.float32) / 96
batch = {"image": image, "boxes": np.stack([box, box]), "classes": np.array([[1], [1]], np.int32)}
padded = batch | {
    "boxes": np.pad(batch["boxes"], ((0, 0), (0, 1), (0, 0))),
    "classes": np.pad(batch["classes"], ((0, 0), (0, 1))),
}
lesionless = padded | {"boxes": np.zeros_like(padded["boxes"])}
specs = {
    "image": tf.TensorSpec([2, 96, 96, 1]),
    "boxes": tf.TensorSpec([2, None, 4]),
    "classes": tf.TensorSpec([2, None], tf.int32),
}
step = tf.function(model.train_step, input_signature=[specs])
losses = lambda given: {name: float(value) for name, value in step(given).items()}
facts = {}
start = values()
model.detect(tf.constant(image))
facts["changed_by_detection"] = sum(changed(start))
first = losses(batch)
trainable = {id(variable) for variable in network.trainable_variables}
moved = changed(start)
facts["trainable"] = len(trainable)
facts["trainable_moved"] = sum(m for m, v in zip(moved, network.variables) if id(v) in trainable)
facts["averages_moved"] = sum(m for m, n in zip(moved, names) if "moving_" in n)
facts["averages"] = sum("moving_" in name for name in names)
tf.train.Checkpoint(model=model.detector).save(sys.argv[1] + "/ckpt")
saved = values()
for variable, value in zip(network.variables, start):
    variable.assign(value)
facts["first"], facts["padded"] = first, losses(padded)
facts["lesionless"] = losses(lesionless)
for _ in range(10):
    last = losses(batch)
facts["last"] = last
other = SSD(SSDConfig(**small, checkpoint=sys.argv[1]), 96, 3)
pairs = zip(other.networks["detector"].variables, saved)
kept = [np.array_equal(variable.numpy(), value) for variable, value in pairs]
facts["kept"] = [sum(kept), len(kept)]
mistakes = {"depth": {"depth": 32}, "nowhere": {"checkpoint": sys.argv[1] + "/nowhere"}}
for key, wrong in mistakes.items():
    try:
        SSD(SSDConfig(**{**small, "checkpoint": sys.argv[1], **wrong}), 96)
    except DetectionError as error:
        facts[key] = str(error)
retinanet = SSD(SSDConfig(backbone="resnet50", **small), 160)
facts["resnet"] = retinanet.networks["detector"].count_params()
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(repository, tmp_path_factory):
    command = ["-c", SCRIPT, str(tmp_path_factory.mktemp("checkpoint"))]
    done = run_python(command, repository)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@needs_extra
@pytest.mark.detection
@pytest.mark.slow
@pytest.mark.timeout(1500)
class TestNetwork:
    def test_a_step_moves_every_weight_and_average_and_detection_moves_none(self, facts):
        assert facts["changed_by_detection"] == 0
        # not what boxes of other sizes would be found with
        assert facts["trainable_moved"] > 0.9 * facts["trainable"] > 100
        assert facts["averages_moved"] > 0.9 * facts["averages"] > 100

    def test_boxes_that_are_not_there_do_not_count(self, facts):
        assert facts["padded"] == pytest.approx(facts["first"], rel=1e-4)
        assert facts["lesionless"]["localisation"] == 0 < facts["first"]["localisation"]

    def test_the_loss_is_its_parts_and_falls(self, facts):
        names = ("localisation", "classification", "weight_decay")
        whole = sum(facts["first"][name] for name in names)
        assert facts["first"]["detector_loss"] == pytest.approx(whole)
        assert facts["last"]["detector_loss"] < facts["first"]["detector_loss"]

    def test_backbone_and_pyramid_start_from_a_checkpoint_and_heads_do_not(self, facts):
        kept, of = facts["kept"]
        assert 0.5 * of < kept < of
        assert facts["depth"].startswith("model.checkpoint: ")
        assert "of another backbone, depth" in facts["depth"]
        assert "neither a checkpoint nor a folder" in facts["nowhere"]

    def test_retinanet_is_built(self, facts):
        assert facts["resnet"] > 23_000_000


@pytest.fixture(scope="module")
def trained(repository, tmp_path_factory):
    """A run of six steps, stopped by Ctrl-C and gone on with; (folder, stderr of both)."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [*SMALL, "training.steps=6", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    command = [
        *(str(repository / "train/ssd.py"), "--config", str(repository / "configs/ssd.yaml")),
        *("--output", str(folder / "run"), "--set", *overrides),
    ]
    stopped = stop_at(START, command, repository, folder)
    done = run_python(command, repository, folder)
    assert done.returncode == 0, done.stderr
    return folder, [stopped, done.stderr]


def stop_at(said, arguments, repository, folder):
    """Run Python, and press Ctrl-C as soon as it has said something; all of stderr."""
    log = folder / "stderr"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=make_environment(repository),
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        while said not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(1400) == 130, log.read_text()
    return log.read_text()


@pytest.mark.long
@needs_extra
@pytest.mark.detection
@pytest.mark.slow
@pytest.mark.timeout(3000)
class TestTraining:
    def test_it_resumes_exports_and_draws(self, trained):
        folder, said = trained
        assert "everything is saved" in said[0]
        assert "from step 2 to step 6" in said[1], said[1]
        for noise in ("oneDNN", "cuInit", "Traceback", "tensorflow_io", "learning_phase"):
            assert noise not in said[0]
        card = read_card(folder / "run/export")
        assert (card["step"], card["serves"], card["name"]) == (6, "saved_model", "ssd")
        assert set(card["metrics"]) >= {"recall", "froc"}
        names = {path.name for path in (folder / "run/export").iterdir()}
        assert names == {"card.json", "checkpoint", "pipeline.config", "saved_model"}
        assert len(list((folder / "run/samples").glob("*.png"))) >= 2

    def test_this_process_reads_the_export_with_tensorflow_alone(self, trained):
        folder, _ = trained
        assert "object_detection" not in sys.modules
        mammogram = next(record for record in phantom.read(count=4) if record.lesions)
        uri = f"sqlite:///{folder}/mlflow.db"
        predictions = Detector.load(folder / "run").predict(mammogram)
        assert 0 < len(predictions) <= 20 and set(predictions.classes) == {"mass"}
        assert predictions.boxes.max() > 100, "native px"
        version = (folder / "run/registered").read_text().split()[3]  # "6 is version 3 of run"
        for same in (folder / "run/export/saved_model", f"models:/tfmammo-ssd/{version}"):
            again = Detector.load(same, uri=uri).predict(mammogram)
            np.testing.assert_array_equal(again.boxes, predictions.boxes)
            np.testing.assert_array_equal(again.scores, predictions.scores)
