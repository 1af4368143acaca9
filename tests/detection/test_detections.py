"""The contract of detectors, with small SavedModels that have the Object Detection API's interface; no extra is needed."""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.detection import detections
from tfmammo.detection.detections import DetectionError, Detections, Detector
from tfmammo.export import FORMAT
from tfmammo.record import Mammogram
from tfmammo.training.tracking import TrackingError

ROWS, COLS = 80, 60
BRIGHT = (20, 8, 40, 24)


class BrightSpot(tf.Module):
    """Finds the bounding box of what is at least half as bright as can be; then a box beyond the image and one of class 2."""

    def __init__(self, dtype=tf.float32, outputs=None, mask=None):
        self.outputs, self.mask = outputs, mask
        self.weight = tf.Variable(127.5)
        self.signature = [tf.TensorSpec([1, None, None, 3], dtype, name="input_tensor")]

    def function(self):
        @tf.function(input_signature=self.signature)
        def detect(input_tensor):
            size = tf.cast(tf.tile(tf.shape(input_tensor)[1:3], [2]), tf.float32)
            inside = tf.cast(tf.where(tf.cast(input_tensor[0, ..., 0], tf.float32) > self.weight), tf.float32)
            box = tf.concat([tf.reduce_min(inside, axis=0), tf.reduce_max(inside, axis=0) + 1], axis=0) / size
            found = {
                "detection_boxes": tf.stack([[0.5, 0.5, 0.6, 0.6], box, [1.2, 1.2, 1.3, 1.3], [0.0, 0.0, 1.0, 1.0]])[tf.newaxis],
                "detection_scores": tf.constant([[0.25, 0.75, 0.5, 0.0]]),
                "detection_classes": tf.constant([[2.0, 1.0, 1.0, 1.0]]),
                "num_detections": tf.constant([3.0]),
                "raw_detection_boxes": tf.zeros([1, 9, 4]),
            }
            if self.mask is not None:
                found["detection_masks"] = tf.stack([tf.zeros([2, 2]), tf.constant(self.mask, tf.float32), *[tf.ones([2, 2])] * 2])[None]
            return {name: found[name] for name in self.outputs or found}

        return detect

    def save(self, folder):
        tf.saved_model.save(self, str(folder), signatures=self.function().get_concrete_function())
        return folder


def pixels(box=BRIGHT):
    image = np.full((ROWS, COLS, 1), 0.1, np.float32)
    image[box[0] : box[2], box[1] : box[3]] = 0.9
    return image


def mammogram(box=BRIGHT, **facts):
    return Mammogram("made", "p", "i", ROWS, COLS, partial(pixels, box), **facts)


def ours(folder, mask=None, **data):
    """An export as train/ssd.py leaves it: a SavedModel and a card, under a run's folder."""
    BrightSpot(mask=mask).save(folder / "export/saved_model")
    config = DataConfig(**{"size": 40, "percentiles": (0, 100), **data}).model_dump(mode="json")
    card = {
        "format": FORMAT,
        "name": "ssd",
        "train_patients": ["p1"],
        "serves": "saved_model",
        "functions": {"saved_model": {}},
        "config": {"data": config},
    }
    (folder / "export/card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return BrightSpot().save(tmp_path_factory.mktemp("foreign") / "detector/saved_model")


def test_detections_of_a_foreign_model_are_in_native_px(foreign):
    found = Detector.load(foreign).predict(mammogram())
    np.testing.assert_allclose(found.boxes, [BRIGHT], atol=1e-4)
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.masks is None
    assert found.scores.tolist() == [0.75] and found.classes == ("mass",)


def test_classes_by_their_numbers_falling_scores_and_nothing_beyond_the_image(foreign):
    found = Detector.load(foreign.parent, kinds=("mass", "calcification")).predict(mammogram())
    np.testing.assert_allclose(found.boxes, [BRIGHT, (40, 30, 48, 36)], atol=1e-4)
    assert found.scores.tolist() == [0.75, 0.25] and found.classes == ("mass", "calcification")
    assert found.above(0.5).classes == ("mass",) and len(found.above(0.9)) == 0


def test_an_unknown_class_is_logged(foreign, caplog):
    Detector.load(foreign).predict(mammogram())
    assert "1 detections of classes other than mass left out" in caplog.text


def test_a_model_of_bytes_gets_bytes(tmp_path):
    found = Detector.load(BrightSpot(tf.uint8).save(tmp_path / "model")).predict(mammogram())
    np.testing.assert_allclose(found.boxes, [BRIGHT], atol=1e-4)


@pytest.mark.parametrize("handle", ["", "export", "export/saved_model"])
def test_ours_sees_the_square_and_answers_in_native_px(tmp_path, handle):
    found = Detector.load(ours(tmp_path) / handle).predict(mammogram())
    np.testing.assert_allclose(found.boxes[0], BRIGHT, atol=1e-3)
    assert found.classes == ("mass",)


def test_ours_undoes_its_preprocessing(tmp_path):
    box = (20, 12, 40, 36)
    preprocess = PreprocessConfig(flip_right=True, spacing=0.2)
    detector = Detector.load(ours(tmp_path, preprocess=preprocess, size=40))
    found = detector.predict(mammogram(box, laterality="R", spacing=(0.1, 0.1)))
    np.testing.assert_allclose(found.boxes[0], box, atol=1e-3)
    found = detector.predict(mammogram(box, laterality="L", spacing=(0.1, 0.1)))
    np.testing.assert_allclose(found.boxes[0], box, atol=1e-3)


LEFT = [[1.0, 0.0], [1.0, 0.0]]


def test_masks_of_a_foreign_model_are_pasted_into_native_px(tmp_path):
    """Between the middles of two pixels of the mask, 0.5 is reached at half the box: at row 30 of 20 to 40."""
    handle = BrightSpot(mask=[[1, 1], [0, 0]]).save(tmp_path / "model")
    masks = Detector.load(handle).predict(mammogram()).masks
    expected = np.zeros((1, ROWS, COLS), np.uint8)
    expected[0, 20:30, 8:24] = 1
    np.testing.assert_array_equal(masks, expected)
    assert masks.dtype == np.uint8
    both = Detector.load(handle, kinds=("mass", "calcification")).predict(mammogram())
    np.testing.assert_array_equal(both.masks, [*expected, np.zeros_like(expected[0])])
    assert both.above(0.5).masks.shape == (1, ROWS, COLS)


@pytest.mark.parametrize(("laterality", "cols"), [("L", slice(12, 24)), ("R", slice(24, 36))])
def test_masks_of_a_mirrored_and_resampled_mammogram(tmp_path, laterality, cols):
    """What the model calls the left half of the box is the right half of a mammogram that it saw mirrored."""
    detector = Detector.load(ours(tmp_path, LEFT, preprocess=PreprocessConfig(flip_right=True, spacing=0.2)))
    found = detector.predict(mammogram((20, 12, 40, 36), laterality=laterality, spacing=(0.1, 0.1)))
    expected = np.zeros((1, ROWS, COLS), np.uint8)
    expected[0, 20:40, cols] = 1
    np.testing.assert_array_equal(found.masks, expected)


def test_a_mask_that_reaches_beyond_the_mammogram_is_cut():
    """Box (-2, -2, 2, 2): of the middles of the mask's four pixels, at -1 and 1, the last alone lies inside. At the middle of
    pixel (0, 0) a mask with that one alone is 0.75 * 0.75, and one without it 1 - 0.75 * 0.75."""
    masks = np.array([[[0, 0], [0, 1]], [[1, 1], [1, 0]]], np.float32)
    made = detections._pasted(masks, np.array([[-2.0, -2, 2, 2]] * 2), mammogram())
    expected = np.zeros((2, ROWS, COLS), np.uint8)
    expected[0, :2, :2] = 1
    np.testing.assert_array_equal(made, expected)
    assert not detections._pasted(masks[:1], np.array([[90.0, 70, 95, 75]]), mammogram()).any()


def test_ours_knows_its_kinds(tmp_path):
    detector = Detector.load(ours(tmp_path, kinds=("calcification", "mass")), kinds=("distortion",))
    assert detector.predict(mammogram()).classes == ("calcification", "mass")


def test_it_knows_its_patients(tmp_path, foreign):
    detector = Detector.load(ours(tmp_path))
    assert detector.saw("p1") is True and detector.saw("p") is False and Detector.load(foreign).saw("p") is None


def test_a_hub_handle(foreign, tmp_path, monkeypatch):
    """tensorflow_hub's own cache, filled beforehand: what it holds under a handle's hash is not fetched again."""
    handle = "https://tfhub.dev/somebody/ssd/1"
    cached = tmp_path / hashlib.sha1(handle.encode()).hexdigest()
    BrightSpot().save(cached)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    np.testing.assert_allclose(Detector.load(handle).predict(mammogram()).boxes, [BRIGHT], atol=1e-4)


def test_another_apis_export_is_one_sentence(tmp_path):
    folder = BrightSpot(outputs=("detection_boxes", "raw_detection_boxes")).save(tmp_path / "other")
    with pytest.raises(DetectionError, match="is no export of the TensorFlow Object Detection API.*raw_detection_boxes") as raised:
        Detector.load(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_a_saved_model_without_signature_is_one_sentence(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(DetectionError, match="it has no signature serving_default"):
        Detector.load(tmp_path / "bare")


def test_a_model_of_encoded_images_is_refused(tmp_path):
    module = tf.Module()
    outputs = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
    detect = tf.function(lambda input_tensor: dict.fromkeys(outputs, tf.strings.length(input_tensor)))
    spec = tf.TensorSpec([None], tf.string, "input_tensor")
    tf.saved_model.save(module, str(tmp_path / "encoded"), signatures=detect.get_concrete_function(spec))
    with pytest.raises(DetectionError, match="takes string"):
        Detector.load(tmp_path / "encoded")


def test_a_damaged_saved_model_is_one_sentence(foreign, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(DetectionError, match="can't be loaded") as raised:
        Detector.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_nothing_there(tmp_path):
    with pytest.raises(TrackingError, match="neither a folder nor"):
        Detector.load(tmp_path / "nowhere")
    with pytest.raises(TrackingError, match="holds no export"):
        Detector.load(tmp_path)


def test_a_card_without_the_data_section(tmp_path):
    card = tmp_path / "export/card.json"
    ours(tmp_path)
    card.write_text(json.dumps(json.loads(card.read_text()) | {"config": {}}))
    with pytest.raises(DetectionError, match="does not say how"):
        Detector.load(tmp_path)


GOOD = {
    "boxes": np.array([[0, 0, 2, 2], [1, 1, 3, 4]], np.float32),
    "scores": np.array([0.9, 0.1], np.float32),
    "classes": ("mass", "mass"),
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boxes": GOOD["boxes"][:1]}, "don't fit together"),
        ({"classes": ("mass",)}, "don't fit together"),
        ({"scores": np.array([0.9, 0.1])}, "float32"),
        ({"scores": np.array([0.1, 0.9], np.float32)}, "must fall"),
        ({"scores": np.array([1.5, 0.9], np.float32)}, "must fall"),
        ({"scores": np.array([np.nan, 0.9], np.float32)}, "must fall"),
        ({"boxes": GOOD["boxes"][:, ::-1].copy()}, "no area"),
        ({"classes": ("mass", "cat")}, "not cat, mass"),
        ({"masks": np.zeros((1, 4, 4), np.uint8)}, "masks must be"),
    ],
)
def test_wrong_detections_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        Detections(**(GOOD | change))


def test_no_detection_is_a_detection_result():
    empty = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), ())
    assert len(empty) == 0 and len(empty.above(0)) == 0
    masks = np.zeros((2, 5, 5), np.uint8)
    assert Detections(**GOOD, masks=masks).above(0.5).masks.shape == (1, 5, 5)
