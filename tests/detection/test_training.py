"""What all detectors share: configs, refusals, schedules, validation, exports."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.exported_detectors import write_detector_card
from tests.small_detectors import LIGHT_HEAD
from tfmammo.archives import phantom
from tfmammo.config import DataConfig, Experiment, TrainingConfig
from tfmammo.data import splits
from tfmammo.data.splits import Mammograms
from tfmammo.data.whole import letterbox, make_whole
from tfmammo.detection import light_head_rcnn, mask_rcnn, ssd
from tfmammo.detection.light_head_rcnn import LightHeadRCNNConfig
from tfmammo.detection.mask_rcnn import MaskRCNNConfig
from tfmammo.detection.saved_models import (
    answer_api,
    describe_function,
    letterbox_batch,
    make_random_image,
)
from tfmammo.detection.ssd import SSDConfig
from tfmammo.detection.training import (
    check_unused_size,
    identify_checkpoint,
    learning_rate,
    list_seen_patients,
    read_training_patients,
    validate,
    validation_functions,
)
from tfmammo.errors import DetectionError
from tfmammo.mammogram import Skipped
from tfmammo.metrics.boxes import iou

DETECTORS = {
    "light_head_rcnn": (light_head_rcnn, LightHeadRCNNConfig(**LIGHT_HEAD)),
    "mask_rcnn": (mask_rcnn, MaskRCNNConfig()),
    "ssd": (ssd, SSDConfig()),
    "retinanet": (ssd, SSDConfig(backbone="resnet50")),
}


def check(detector, data=None, **training):
    module, model = DETECTORS[detector]
    experiment = Experiment[type(model)](
        name=detector,
        data=DataConfig(**{"size": 128, **(data or {})}),
        training=TrainingConfig(**{"precision": "float32", **training}),
        model=model,
    )
    module.check(experiment)


@pytest.mark.parametrize(
    ("detector", "data", "training", "key"),
    [
        ("light_head_rcnn", {"split": "paper"}, {}, "data.split"),
        ("light_head_rcnn", {"size": 100}, {}, "data.size: .*multiples of 16 px"),
        ("light_head_rcnn", {"size": 16}, {}, "data.size: .*at least 32 px"),
        ("light_head_rcnn", {"canvas": (64, 40)}, {}, "data.canvas: "),
        ("light_head_rcnn", {"canvas": (16, 64)}, {}, "data.canvas: "),
        ("mask_rcnn", {}, {"precision": "auto"}, "training.precision"),
        ("mask_rcnn", {}, {"initial": "runs/x"}, "training.initial"),
        ("mask_rcnn", {"split": "paper"}, {}, "data.split"),
        ("mask_rcnn", {"size": 300}, {}, "data.size: .*multiples of 64 px"),
        ("mask_rcnn", {"canvas": (1344, 800)}, {}, "data.canvas"),
        ("ssd", {}, {"precision": "auto"}, "training.precision"),
        ("ssd", {}, {"initial": "runs/x"}, "training.initial"),
        ("ssd", {"split": "paper"}, {}, "data.split"),
        ("ssd", {"size": 32}, {}, "data.size: .*at least 33 px"),
        ("ssd", {"canvas": (64, 32)}, {}, "data.canvas"),
        ("retinanet", {"size": 128}, {}, "data.size: .*at least 129 px"),
    ],
)
def test_what_a_detector_cant_do_is_refused_by_its_key(detector, data, training, key):
    with pytest.raises(DetectionError, match=f"^{key}"):
        check(detector, data, **training)


@pytest.mark.parametrize(
    ("detector", "library"), [("mask_rcnn", "official"), ("ssd", "object_detection")]
)
def test_a_missing_extra_is_one_sentence(detector, library, monkeypatch):
    for name, value in ssd.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "official.core.exp_factory", None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DetectionError) as raised:
        check(detector)
    assert 'pip install "tfmammo[detection]"' in str(raised.value) and "\n" not in str(raised.value)


def test_a_size_that_the_canvas_would_hide_is_refused():
    check_unused_size(["data.size=320", "training.steps=3"], DataConfig(size=320))
    check_unused_size(["data.sizes=3"], DataConfig(canvas=(64, 32)))
    with pytest.raises(DetectionError, match="data.canvas=null"):
        check_unused_size(["training.steps=3", "data.size=320"], DataConfig(canvas=(64, 32)))


@pytest.mark.parametrize(
    ("warmup", "decay", "steps", "rates"),
    [
        (10, None, (0, 5, 10, 1000), (0, 0.1, 0.2, 0.2)),
        (0, 40, (0, 10, 20, 40, 99), (0.2, 0.1 + 0.1 * 0.5**0.5, 0.1, 0, 0)),
        (10, 40, (0, 5, 10, 30, 50), (0, 0.1, 0.2, 0.1, 0)),
    ],
)
def test_the_learning_rate_rises_stays_or_falls(warmup, decay, steps, rates):
    schedule = learning_rate(0.2, warmup, decay)
    found = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(found, rates, rtol=1e-5, atol=1e-9)
    assert learning_rate(0.2) == 0.2


def test_a_checkpoint_is_named_by_the_content_of_its_files(tmp_path):
    prefix = tf.train.Checkpoint(weight=tf.Variable(1.0)).write(str(tmp_path / "ckpt[0]"))
    tf.train.Checkpoint(weight=tf.Variable(2.0)).write(str(tmp_path / "ckpt[0]1"))
    content = b"".join(
        (tmp_path / f"ckpt[0].{end}").read_bytes() for end in ("data-00000-of-00001", "index")
    )
    expected = ("checkpoint ckpt[0]", hashlib.sha256(content).hexdigest())
    assert identify_checkpoint(Path(prefix)) == expected
    with pytest.raises(DetectionError, match="neither a checkpoint nor a folder"):
        identify_checkpoint(tmp_path)


def test_patients_behind_a_checkpoint_are_seen(tmp_path, monkeypatch):
    (tmp_path / "export/checkpoint").mkdir(parents=True)
    write_detector_card(tmp_path / "export", DataConfig(), ["p1", "p2"])
    for checkpoint in ("export/checkpoint", "export/checkpoint/ckpt-0"):
        assert read_training_patients(tmp_path / checkpoint) == ["p1", "p2"]
    monkeypatch.chdir(tmp_path / "export/checkpoint")
    for checkpoint in (".", "ckpt-0"):
        assert read_training_patients(Path(checkpoint)) == ["p1", "p2"]
    assert read_training_patients(tmp_path) == read_training_patients(None) == []


# Validation


def with_masses(kinds=("mass",)):
    """Whole mammograms of the phantom with one mass each."""
    records = [
        record
        for record in phantom.read(count=12)
        if [lesion.kind for lesion in record.lesions] == ["mass"]
    ]
    return make_whole([records[0], records[-1]], DataConfig(size=64, kinds=kinds), Skipped())


def make_detector(boxes, scores, kind=0):
    """A detector that always gives these boxes of a kind."""

    def detector(image):
        count = image.shape[0]
        return {
            "boxes": tf.constant(np.tile(np.float32(boxes), (count, 1, 1))),
            "scores": tf.constant(np.tile(np.float32(scores), (count, 1))),
            "classes": tf.fill([count, len(boxes)], float(kind)),
        }

    return {"detector": detector}


def test_patients_of_normal_mammograms_that_no_training_image_shows_are_seen_in_other_folds(
    tmp_path,
):
    config = DataConfig(phantoms=24, folds=3)
    mammograms = Mammograms.of(phantom.read(count=24))
    path = tmp_path / "split.json"
    splits.save(path, splits.describe(mammograms, config, "phantom"))
    sides = []
    for fold in range(3):
        data = config.model_copy(update={"fold": fold, "split_file": path})
        seen = list_seen_patients(data, normal=False)
        train, held_out = splits.split(mammograms, data)
        assert set(seen) == {*train.patient_ids} and not {*seen} & {*held_out.patient_ids}
        assert list_seen_patients(data, normal=True) == []
        sides.append({*held_out.patient_ids})
    assert set.union(*sides) == {*mammograms.patient_ids}
    assert list_seen_patients(config, normal=False) == []


def test_validation_by_hand():
    """The detector knows the first of two lesions, and is surer of something wrong."""
    whole = with_masses()
    assert whole.boxes.shape == (2, 1, 4)
    known = whole.boxes[0, 0]
    detector = make_detector([[0, 0, 0.02, 0.02], known, [0, 0, 0, 0]], [0.9, 0.8, 0])
    metrics = validate(detector, whole.take([0]))
    assert metrics == {"recall": 1.0, "recall_of_all": 1.0, "froc": pytest.approx((0 + 0 + 4) / 6)}
    assert list(metrics)[0] == "recall", "it decides which checkpoint is best"
    assert iou(whole.boxes[0], whole.boxes[1])[0, 0] < 0.5
    assert validate(detector, whole)["recall_of_all"] == 0.5
    nothing = make_detector([known], [0])  # a score of 0 is no box
    assert validate(nothing, whole.take([0]))["recall_of_all"] == 0


@pytest.mark.parametrize("kind", [0, 1])
def test_validation_distinguishes_classes(kind):
    whole = with_masses(("calcification", "mass")).take([0])
    found = validate(make_detector(whole.boxes[0], [1.0], kind), whole)
    assert found["recall_of_all"] == kind


@pytest.mark.parametrize("first", [0, 1])
def test_validation_is_given_classes_from_0_on(first):
    detected = {
        "detection_boxes": tf.ones([1, 2, 4]),
        "detection_scores": tf.constant([[0.5, 0.0]]),
        "detection_classes": tf.constant([[1.0 + first, 0.0]]),
        "num_detections": tf.ones([1]),
    }
    functions = validation_functions(lambda image: detected, (4, 6), first)
    answer = functions["detector"](image=tf.zeros([1, 4, 6, 1]))
    assert set(answer) == {"boxes", "scores", "classes"}
    assert answer["classes"].numpy().tolist() == [[1, 0]]


def test_validation_needs_a_lesion():
    config = DataConfig(size=64, kinds=("mass",))
    whole = make_whole(phantom.read(count=8), config, Skipped())
    normal = whole.take(np.flatnonzero(whole.kinds == "normal"))
    assert len(normal)
    with pytest.raises(DetectionError, match="nothing to validate on"):
        validate(make_detector([[0, 0, 0, 0]], [0]), normal)


# Exports


def test_an_api_is_given_three_channels_of_grey_levels():
    image = np.array([[[[0.0], [1.0]]]], np.float32)
    answers = answer_api(lambda input_tensor: {"echo": input_tensor}, image)
    np.testing.assert_array_equal(answers["echo"], [[[[0, 0, 0], [255, 255, 255]]]])
    image = make_random_image((3, 5))
    assert image.shape == (1, 3, 5, 1) and 0 <= image.min() < image.max() < 1
    np.testing.assert_array_equal(image, make_random_image((3, 5)))


def test_a_function_in_the_card_by_hand():
    class Network:
        variables = (
            tf.Variable(tf.zeros([3, 3, 1, 2]), name="kernel"),
            tf.Variable(0.0, name="count"),
        )

    outputs = {"scores": tf.TensorSpec([None, 7], tf.float32)}
    image = {"shape": [None, None, 64, 3], "dtype": "float32", "range": [0.0, 255.0]}
    assert describe_function((None, 64), outputs, Network()) == {
        "inputs": {"input_tensor": image},
        "outputs": {"scores": {"shape": [None, 7], "dtype": "float32", "range": None}},
        "variables": ["kernel:0 3x3x1x2", "count:0 scalar"],
    }


@pytest.mark.parametrize("canvas", [(48, 48), (64, 32), (48, 80)])
def test_images_are_letterboxed_as_in_training(canvas):
    image = np.random.default_rng(0).random((2, *canvas, 1), np.float32)
    filled, parts = letterbox_batch(tf.constant(image), canvas)
    np.testing.assert_allclose(filled, image, atol=1e-6)
    assert parts.numpy().tolist() == [1, 1, 1, 1]
    smooth = np.linspace(0, 1, 90 * 61, dtype=np.float32).reshape(90, 61, 1)
    filled, parts = letterbox_batch(tf.constant(smooth[None]), canvas)
    expected, scale = letterbox(smooth, DataConfig(canvas=canvas, window=(0, 1)))
    assert filled.shape == (1, *canvas, 1)
    np.testing.assert_allclose(filled[0], expected, atol=0.02)
    np.testing.assert_allclose(parts, np.tile(np.array(scale) * [90, 61] / canvas, 2), rtol=1e-6)
