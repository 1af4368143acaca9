"""The SSD: settings for the API, refusals; with the extra, training, resuming and export.

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
import tensorflow as tf

from tfmammo import config as configuration
from tfmammo.archives import phantom
from tfmammo.config import DataConfig, Experiment, TrainingConfig
from tfmammo.data.whole import make_whole
from tfmammo.detection import ssd
from tfmammo.detection.detections import Detector
from tfmammo.detection.ssd import SSD, SSDConfig, make_pipeline
from tfmammo.detection.training import read_training_patients, validate, validation_functions
from tfmammo.errors import DetectionError
from tfmammo.mammogram import Skipped, key_check
from tfmammo.metrics.boxes import iou
from tfmammo.tracking.export import FORMAT, read_card

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


def run_python(arguments, repository, folder=None, timeout=1400):
    """Run Python in a process of its own, without a GPU; stdout and stderr as text."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=make_environment(repository),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def make_environment(repository):
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(repository)}


def experiment(data=None, model=None, **training):
    training = TrainingConfig(**{"precision": "float32", **training})
    return Experiment[SSDConfig](
        name="ssd", data=data or DataConfig(), training=training, model=model or SSDConfig()
    )


def test_the_shipped_config_is_the_default_model(repository):
    shipped = configuration.load(repository / "configs/ssd.yaml", model=SSDConfig)
    assert shipped.model == SSDConfig() and shipped.training.precision == "float32"
    assert shipped.model.warmup + shipped.model.decay == shipped.training.steps


def test_the_pipeline_of_mobilenet():
    config = SSDConfig(
        anchor_scale=3, anchor_octaves=4, detections=7, nms_iou=0.45, regularisation=7e-6
    )
    settings = make_pipeline(config, (320, 192), 2)["model"]["ssd"]
    assert settings["num_classes"] == 2 and settings["image_resizer"] == {
        "fixed_shape_resizer": {"height": 320, "width": 192}
    }
    assert (
        settings["feature_extractor"]["type"] == "ssd_mobilenet_v2_fpn_keras"
        and settings["feature_extractor"]["use_depthwise"]
    )
    anchors = settings["anchor_generator"]["multiscale_anchor_generator"]
    assert (
        anchors["anchor_scale"],
        anchors["min_level"],
        anchors["max_level"],
        anchors["scales_per_octave"],
    ) == (3, 3, 7, 4)
    predictor = settings["box_predictor"]["weight_shared_convolutional_box_predictor"]
    assert (
        predictor["depth"] == settings["feature_extractor"]["fpn"]["additional_layer_depth"] == 128
    )
    assert 1 / (1 + np.exp(-predictor["class_prediction_bias_init"])) == pytest.approx(
        0.01, abs=1e-3
    )
    suppression = settings["post_processing"]["batch_non_max_suppression"]
    assert (suppression["max_total_detections"], suppression["iou_threshold"]) == (7, 0.45)
    for part in (settings["feature_extractor"], predictor):
        assert part["conv_hyperparams"]["regularizer"]["l2_regularizer"]["weight"] == 7e-6


def test_the_pipeline_of_retinanet():
    settings = make_pipeline(SSDConfig(backbone="resnet50"), (640, 640), 1)["model"]["ssd"]
    assert (
        settings["feature_extractor"]["type"] == "ssd_resnet50_v1_fpn_keras"
        and not settings["feature_extractor"]["use_depthwise"]
    )
    assert settings["feature_extractor"]["fpn"]["additional_layer_depth"] == 256


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        (experiment(precision="auto"), "training.precision"),
        (experiment(initial="runs/x"), "training.initial"),
        (experiment(DataConfig(split="paper")), "data.split"),
        (experiment(DataConfig(size=32)), "data.size"),
        (experiment(DataConfig(canvas=(64, 32))), "data.canvas"),
        (experiment(DataConfig(size=128), SSDConfig(backbone="resnet50")), "data.size"),
    ],
)
def test_what_a_detector_cant_do_is_refused_by_its_key(wrong, key):
    with pytest.raises(DetectionError, match=f"^{key}"):
        ssd.check(wrong)


def test_without_the_environment_it_says_so(monkeypatch):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    with pytest.raises(DetectionError, match="TF_USE_LEGACY_KERAS"):
        SSD()


def test_a_missing_extra_is_one_sentence(monkeypatch):
    for name, value in ssd.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "object_detection", None)
    with pytest.raises(DetectionError) as raised:
        ssd.check(experiment())
    assert 'pip install "tfmammo[detection]"' in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.long
def test_the_script_without_the_extra_is_one_line(repository, tmp_path):
    script = str(repository / "train/ssd.py")
    hidden = (
        "import sys; sys.modules['object_detection'] = None; sys.argv = sys.argv[1:]; "
        f"exec(open({script!r}).read())"
    )
    command = ["-c", hidden, "ssd.py", "--config", str(repository / "configs/ssd.yaml")]
    done = run_python(command, repository, folder=tmp_path, timeout=240)
    assert done.returncode == 2, done.stderr
    assert [
        line
        for line in done.stderr.splitlines()
        if line.startswith("error: ") and 'pip install "tfmammo[detection]"' in line
    ]
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_patients_behind_a_checkpoint_are_seen(tmp_path):
    (tmp_path / "export/checkpoint").mkdir(parents=True)
    (tmp_path / "export/card.json").write_text(
        json.dumps(
            {
                "format": FORMAT,
                "name": "ssd",
                "serves": "saved_model",
                "functions": {},
                "train_patients": ["p1", "p2"],
                "id_key": key_check(),
            }
        )
    )
    for checkpoint in ("export/checkpoint", "export/checkpoint/ckpt-0"):
        assert read_training_patients(tmp_path / checkpoint) == ["p1", "p2"]
    assert read_training_patients(tmp_path) == read_training_patients(None) == []


def test_validation_by_hand():
    """The detector knows the first of two lesions, and is surer of something wrong."""
    config = DataConfig(size=64, kinds=("mass",))
    records = [
        record
        for record in phantom.read(count=12)
        if [lesion.kind for lesion in record.lesions] == ["mass"]
    ]
    whole = make_whole([records[0], records[-1]], config, Skipped())
    assert whole.boxes.shape == (2, 1, 4)
    wrong = np.array([0, 0, 0.02, 0.02], np.float32)

    def detector(image):
        count = image.shape[0]
        boxes = np.stack(
            [
                np.tile(wrong, (count, 1)),
                np.tile(whole.boxes[0], (count, 1)),
                np.zeros((count, 4), np.float32),
            ],
            axis=1,
        )
        scores = np.tile(np.array([0.9, 0.8, 0], np.float32), (count, 1))
        return {
            "boxes": tf.constant(boxes),
            "scores": tf.constant(scores),
            "classes": tf.zeros([count, 3]),
        }

    metrics = validate({"detector": detector}, whole.take([0]))
    assert metrics == {"recall": 1.0, "recall_of_all": 1.0, "froc": pytest.approx((0 + 0 + 4) / 6)}
    assert list(metrics)[0] == "recall", "it decides which checkpoint is best"
    other = whole.take([0, 1])
    overlap = iou(whole.boxes[0], whole.boxes[1])[0, 0]
    assert overlap < 0.5
    assert validate({"detector": detector}, other)["recall_of_all"] == 0.5


def test_validation_distinguishes_classes():
    config = DataConfig(size=64, kinds=("calcification", "mass"))
    records = [
        record
        for record in phantom.read(count=8)
        if [lesion.kind for lesion in record.lesions] == ["mass"]
    ][:1]
    whole = make_whole(records, config, Skipped())

    def detector(image, kind):
        return {
            "boxes": tf.constant(whole.boxes),
            "scores": tf.ones([1, 1]),
            "classes": tf.fill([1, 1], float(kind)),
        }

    assert validate({"detector": lambda image: detector(image, 1)}, whole)["recall_of_all"] == 1
    assert validate({"detector": lambda image: detector(image, 0)}, whole)["recall_of_all"] == 0


@pytest.mark.parametrize("first", [0, 1])
def test_validation_is_given_classes_from_0_on(first):
    detected = {
        "detection_boxes": tf.ones([1, 2, 4]),
        "detection_scores": tf.constant([[0.5, 0.0]]),
        "detection_classes": tf.constant([[1.0 + first, 0.0]]),
        "num_detections": tf.ones([1]),
    }
    answer = validation_functions(lambda image: detected, (4, 6), first)["detector"](
        image=tf.zeros([1, 4, 6, 1])
    )
    assert set(answer) == {"boxes", "scores", "classes"}
    assert answer["classes"].numpy().tolist() == [[1, 0]]


def test_validation_needs_a_lesion():
    config = DataConfig(size=64, kinds=("mass",))
    whole = make_whole(phantom.read(count=8), config, Skipped())
    normal = whole.take(np.flatnonzero(whole.kinds == "normal"))
    assert len(normal)
    nothing = {
        "boxes": tf.zeros([len(normal), 1, 4]),
        "scores": tf.zeros([len(normal), 1]),
        "classes": tf.zeros([len(normal), 1]),
    }
    with pytest.raises(DetectionError, match="nothing to validate on"):
        validate({"detector": lambda image: nothing}, normal)


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
        parts = [
            facts["first"][name] for name in ("localisation", "classification", "weight_decay")
        ]
        assert facts["first"]["detector_loss"] == pytest.approx(sum(parts))
        assert facts["last"]["detector_loss"] < facts["first"]["detector_loss"]

    def test_backbone_and_pyramid_start_from_a_checkpoint_and_heads_do_not(self, facts):
        kept, of = facts["kept"]
        assert 0.5 * of < kept < of
        assert (
            facts["depth"].startswith("model.checkpoint: ")
            and "of another backbone, depth" in facts["depth"]
        )
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
        assert (card["step"], card["serves"], card["name"]) == (6, "saved_model", "ssd") and set(
            card["metrics"]
        ) >= {"recall", "froc"}
        assert {path.name for path in (folder / "run/export").iterdir()} == {
            "card.json",
            "checkpoint",
            "pipeline.config",
            "saved_model",
        }
        assert len(list((folder / "run/samples").glob("*.png"))) >= 2

    def test_this_process_reads_the_export_with_tensorflow_alone(self, trained):
        folder, _ = trained
        assert "object_detection" not in sys.modules
        mammogram = next(record for record in phantom.read(count=4) if record.lesions)
        uri = f"sqlite:///{folder}/mlflow.db"
        predictions = Detector.load(folder / "run").predict(mammogram)
        assert (
            0 < len(predictions) <= 20
            and set(predictions.classes) == {"mass"}
            and predictions.boxes.max() > 100
        ), "native px"
        version = (folder / "run/export_registered").read_text().split()[-1]  # "6 is version 3"
        for same in (folder / "run/export/saved_model", f"models:/tfmammo-ssd/{version}"):
            again = Detector.load(same, uri=uri).predict(mammogram)
            np.testing.assert_array_equal(again.boxes, predictions.boxes)
            np.testing.assert_array_equal(again.scores, predictions.scores)
