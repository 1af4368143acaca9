"""The contract of detectors, with small SavedModels of the Object Detection API's interface.

No extra is needed.
"""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data.whole import make_whole
from tfmammo.detection import detections
from tfmammo.detection.detections import Detections, Detector
from tfmammo.errors import DetectionError, TrackingError
from tfmammo.mammogram import Lesion, Mammogram, Skipped, key_check
from tfmammo.tracking.export import FORMAT

ROWS = 80
COLS = 60
BRIGHT = (20, 8, 40, 24)


class BrightSpot(tf.Module):
    """Detects the bounding box of what is at least half as bright as possible.

    It adds a box beyond the image and one of class 2.
    """

    def __init__(self, dtype=tf.float32, outputs=None, mask=None):
        self.outputs = outputs
        self.mask = mask
        self.weight = tf.Variable(127.5)
        self.signature = [tf.TensorSpec([1, None, None, 3], dtype, name="input_tensor")]

    def function(self):
        @tf.function(input_signature=self.signature)
        def detect(input_tensor):
            size = tf.cast(tf.tile(tf.shape(input_tensor)[1:3], [2]), tf.float32)
            inside = tf.cast(
                tf.where(tf.cast(input_tensor[0, ..., 0], tf.float32) > self.weight), tf.float32
            )
            box = (
                tf.concat(
                    [tf.reduce_min(inside, axis=0), tf.reduce_max(inside, axis=0) + 1], axis=0
                )
                / size
            )
            outputs = {
                "detection_boxes": tf.stack(
                    [[0.5, 0.5, 0.6, 0.6], box, [1.2, 1.2, 1.3, 1.3], [0.0, 0.0, 1.0, 1.0]]
                )[tf.newaxis],
                "detection_scores": tf.constant([[0.25, 0.75, 0.5, 0.0]]),
                "detection_classes": tf.constant([[2.0, 1.0, 1.0, 1.0]]),
                "num_detections": tf.constant([3.0]),
                "raw_detection_boxes": tf.zeros([1, 9, 4]),
            }
            if self.mask is not None:
                outputs["detection_masks"] = tf.stack(
                    [tf.zeros([2, 2]), tf.constant(self.mask, tf.float32), *[tf.ones([2, 2])] * 2]
                )[None]
            return {name: outputs[name] for name in self.outputs or outputs}

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


def ours(folder, mask=None, model=None, **data):
    """An export as train/ssd.py leaves it: a SavedModel and a card, under a run's folder."""
    (model or BrightSpot(mask=mask)).save(folder / "export/saved_model")
    config = DataConfig(**{"size": 40, "percentiles": (0, 100), **data}).model_dump(mode="json")
    card = {
        "format": FORMAT,
        "name": "ssd",
        "train_patients": ["p1"],
        "id_key": key_check(),
        "serves": "saved_model",
        "functions": {"saved_model": {"inputs": {}, "outputs": {}}},
        "config": {"data": config},
    }
    (folder / "export/card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return BrightSpot().save(tmp_path_factory.mktemp("foreign") / "detector/saved_model")


def test_detections_of_a_foreign_model_are_in_native_px(foreign):
    predictions = Detector.load(foreign).predict(mammogram())
    np.testing.assert_allclose(predictions.boxes, [BRIGHT], atol=1e-4)
    assert (
        predictions.boxes.dtype == predictions.scores.dtype == np.float32
        and predictions.masks is None
    )
    assert predictions.scores.tolist() == [0.75] and predictions.classes == ("mass",)


def test_classes_by_their_numbers_falling_scores_and_nothing_beyond_the_image(foreign):
    predictions = Detector.load(foreign.parent, kinds=("mass", "calcification")).predict(
        mammogram()
    )
    np.testing.assert_allclose(predictions.boxes, [BRIGHT, (40, 30, 48, 36)], atol=1e-4)
    assert predictions.scores.tolist() == [0.75, 0.25] and predictions.classes == (
        "mass",
        "calcification",
    )
    assert predictions.above(0.5).classes == ("mass",) and len(predictions.above(0.9)) == 0


def test_an_unknown_class_is_logged(foreign, caplog):
    Detector.load(foreign).predict(mammogram())
    assert "1 detections of classes other than mass skipped" in caplog.text


def test_a_model_of_bytes_gets_bytes(tmp_path):
    predictions = Detector.load(BrightSpot(tf.uint8).save(tmp_path / "model")).predict(mammogram())
    np.testing.assert_allclose(predictions.boxes, [BRIGHT], atol=1e-4)


@pytest.mark.parametrize("handle", ["", "export", "export/saved_model"])
def test_ours_sees_the_square_and_answers_in_native_px(tmp_path, handle):
    predictions = Detector.load(ours(tmp_path) / handle).predict(mammogram())
    np.testing.assert_allclose(predictions.boxes[0], BRIGHT, atol=1e-3)
    assert predictions.classes == ("mass",)


def test_ours_undoes_its_preprocessing(tmp_path):
    box = (20, 12, 40, 36)
    preprocess = PreprocessConfig(flip_right=True, spacing=0.2)
    detector = Detector.load(ours(tmp_path, preprocess=preprocess, size=40))
    predictions = detector.predict(mammogram(box, laterality="R", spacing=(0.1, 0.1)))
    np.testing.assert_allclose(predictions.boxes[0], box, atol=1e-3)
    predictions = detector.predict(mammogram(box, laterality="L", spacing=(0.1, 0.1)))
    np.testing.assert_allclose(predictions.boxes[0], box, atol=1e-3)


LEFT = [[1.0, 0.0], [1.0, 0.0]]


def test_masks_of_a_foreign_model_are_pasted_into_native_px(tmp_path):
    """Between two pixels of the mask 0.5 is reached at half the box: row 30 of 20 to 40."""
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
    """The left half of the model's box is the right half of a mirrored mammogram."""
    detector = Detector.load(
        ours(tmp_path, LEFT, preprocess=PreprocessConfig(flip_right=True, spacing=0.2))
    )
    predictions = detector.predict(
        mammogram((20, 12, 40, 36), laterality=laterality, spacing=(0.1, 0.1))
    )
    expected = np.zeros((1, ROWS, COLS), np.uint8)
    expected[0, 20:40, cols] = 1
    np.testing.assert_array_equal(predictions.masks, expected)


def test_a_mask_that_reaches_beyond_the_mammogram_is_cut():
    """Of the mask of box (-2, -2, 2, 2) one pixel's centre lies inside, at (1, 1).

    At the centre of pixel (0, 0) a mask with that pixel alone is 0.75 * 0.75, and one without it
    1 - 0.75 * 0.75.
    """
    masks = np.array([[[0, 0], [0, 1]], [[1, 1], [1, 0]]], np.float32)
    blended = detections._paste_masks(masks, np.array([[-2.0, -2, 2, 2]] * 2), mammogram())
    expected = np.zeros((2, ROWS, COLS), np.uint8)
    expected[0, :2, :2] = 1
    np.testing.assert_array_equal(blended, expected)
    assert not detections._paste_masks(masks[:1], np.array([[90.0, 70, 95, 75]]), mammogram()).any()


def test_ours_knows_its_kinds(tmp_path):
    detector = Detector.load(ours(tmp_path, kinds=("calcification", "mass")), kinds=("distortion",))
    assert detector.predict(mammogram()).classes == ("calcification", "mass")


def test_it_knows_its_patients(tmp_path, foreign):
    detector = Detector.load(ours(tmp_path))
    assert (
        detector.saw("p1") is True
        and detector.saw("p") is False
        and Detector.load(foreign).saw("p") is None
    )


def test_a_hub_handle(foreign, tmp_path, monkeypatch):
    """What tensorflow_hub's cache holds under a URL's hash is not fetched again."""
    handle = "https://tfhub.dev/somebody/ssd/1"
    cached = tmp_path / hashlib.sha1(handle.encode()).hexdigest()
    BrightSpot().save(cached)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    np.testing.assert_allclose(
        Detector.load(handle).predict(mammogram()).boxes, [BRIGHT], atol=1e-4
    )


RAW = ("detection_boxes", "raw_detection_boxes")


def encode(folder):
    """Save a model of encoded images."""
    outputs = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
    detect = tf.function(
        lambda input_tensor: dict.fromkeys(outputs, tf.strings.length(input_tensor))
    )
    spec = tf.TensorSpec([None], tf.string, "input_tensor")
    tf.saved_model.save(tf.Module(), str(folder), signatures=detect.get_concrete_function(spec))


def forget_data(folder):
    """Write an export whose card does not say how the detector saw its mammograms."""
    ours(folder)
    card = folder / "export/card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"config": {}}))


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (
            lambda folder: BrightSpot(outputs=RAW).save(folder),
            DetectionError,
            "raw_detection_boxes",
        ),
        (
            lambda folder: tf.saved_model.save(tf.Module(), str(folder)),
            DetectionError,
            "serving_default",
        ),
        (encode, DetectionError, "takes string"),
        (
            lambda folder: (folder / "saved_model.pb").write_bytes(b"nothing"),
            DetectionError,
            "can't be loaded",
        ),
        (forget_data, DetectionError, "card.json"),
        (lambda folder: None, TrackingError, "export"),
        (lambda folder: folder.rmdir(), TrackingError, "folder"),
    ],
)
def test_what_is_no_detector_is_one_sentence(tmp_path, make, error, named):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(error, match=named) as raised:
        Detector.load(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_a_detector_does_not_come_by_http():
    with pytest.raises(DetectionError, match="https"):
        Detector.load("http://tfhub.dev/somebody/ssd/1")


# Canvas and tiles: nothing drifts


class Known(tf.Module):
    """Finds given boxes, parts of the image's sides, in whatever it is shown."""

    def __init__(self, boxes):
        self.boxes = boxes

    def save(self, folder):
        @tf.function(
            input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="input_tensor")]
        )
        def detect(input_tensor):
            images = tf.shape(input_tensor)[0]
            count = len(self.boxes)
            return {
                "detection_boxes": tf.tile(
                    tf.constant(self.boxes, tf.float32)[tf.newaxis], [images, 1, 1]
                ),
                "detection_scores": tf.tile(tf.linspace([0.9], [0.5], count, axis=1), [images, 1]),
                "detection_classes": tf.ones([images, count]),
                "num_detections": tf.fill([images], float(count)),
            }

        tf.saved_model.save(self, str(folder), signatures=detect.get_concrete_function())


def grey(rows, cols):
    return np.linspace(0, 1, rows * cols, dtype=np.float32).reshape(rows, cols, 1)


@pytest.mark.parametrize(
    "data",
    [
        {"size": 100},
        {"canvas": (113, 64)},
        {"canvas": (64, 113)},
        {"size": 100, "preprocess": {"flip_right": True}},
        {"canvas": (113, 64), "preprocess": {"flip_right": True, "spacing": 0.15}},
        {"canvas": (512, 400), "tiles": {"overlap": 64}, "preprocess": {"flip_right": True}},
        {
            "canvas": (512, 400),
            "tiles": {"overlap": 64},
            "preprocess": {"flip_right": True, "spacing": 0.15},
        },
    ],
)
@pytest.mark.parametrize("laterality", ["L", "R"])
def test_a_box_goes_from_native_px_to_training_and_back_without_drift(tmp_path, data, laterality):
    """459 x 375 px of 0.1 mm are 306 x 250 at 0.15 mm.

    A box stays whole in px if its corners are multiples of 3. An image no longer than a tile is one
    tile, so that every box lies in it.
    """
    boxes = [(0, 0, 33, 12), (99, 201, 150, 237), (300, 3, 459, 375), (453, 369, 456, 372)]
    lesions = tuple(Lesion("mass", box) for box in boxes)
    read = partial(grey, 459, 375)
    image = Mammogram(
        "made", "p", "i", 459, 375, read, laterality=laterality, lesions=lesions, spacing=(0.1, 0.1)
    )
    config = DataConfig(percentiles=(0, 100), **data)
    whole = make_whole([image], config, Skipped())
    assert whole.images.shape[1:3] == config.shape and whole.boxes.shape[1] == 4
    predictions = Detector.load(
        ours(tmp_path, model=Known(whole.boxes[0]), percentiles=(0, 100), **data)
    ).predict(image)
    np.testing.assert_allclose(predictions.boxes, boxes, rtol=0, atol=1e-3)


LEVELS = 7


class Squares(tf.Module):
    """Detects squares of grey value 0.2, 0.3, ... 0.8, the larger the surer.

    Its masks are the squares' left halves.
    """

    def __init__(self, images=None):
        self.images = images

    def save(self, folder):
        @tf.function(
            input_signature=[
                tf.TensorSpec([self.images, None, None, 3], tf.float32, name="input_tensor")
            ]
        )
        def detect(input_tensor):
            grey = input_tensor[..., :1] / 255
            # [n, rows, cols, levels]
            is_it = tf.abs(grey - (0.2 + 0.1 * tf.range(LEVELS, dtype=tf.float32))) < 0.02
            sides = []
            for axis in (2, 1):
                along = tf.cast(tf.reduce_any(is_it, axis=axis), tf.int32)
                length = tf.shape(along)[1]
                low = tf.argmax(along, axis=1, output_type=tf.int32)
                high = length - tf.argmax(along[:, ::-1], axis=1, output_type=tf.int32)
                sides.append(
                    [
                        tf.cast(edge, tf.float32) / tf.cast(length, tf.float32)
                        for edge in (low, high)
                    ]
                )
            (top, bottom), (left, right) = sides
            boxes = tf.stack([top, left, bottom, right], axis=-1)
            size = tf.cast(tf.reduce_sum(tf.cast(is_it, tf.int32), [1, 2]), tf.float32)
            order = tf.argsort(size, direction="DESCENDING")
            size = tf.gather(size, order, batch_dims=1)
            boxes = tf.gather(boxes, order, batch_dims=1)
            images = tf.shape(size)[0]
            return {
                "detection_boxes": boxes,
                "detection_scores": tf.tanh(size / 3000),
                "detection_classes": tf.ones([images, LEVELS]),
                "num_detections": tf.reduce_sum(tf.cast(size > 0, tf.float32), axis=1),
                "detection_masks": tf.tile(
                    tf.constant(LEFT)[tf.newaxis, tf.newaxis], [images, LEVELS, 1, 1]
                ),
            }

        tf.saved_model.save(self, str(folder), signatures=detect.get_concrete_function())


def draw_squares(squares, rows, cols):
    image = np.zeros((rows, cols, 1), np.float32)
    for number, (top, left, bottom, right) in enumerate(squares):
        image[top:bottom, left:right] = 0.2 + 0.1 * number
    return image


# With tiles of 512 x 384 px that share 64, 3000 x 2000 px are seen in tiles from rows 0, 414, 829,
# ... and columns 0, 269, 538, ...
SQUARES = [
    (0, 0, 40, 40),  # at both borders
    (2960, 1960, 3000, 2000),  # and at the others
    (100, 100, 140, 140),  # in one tile
    # over the lower and right border of the first tile, of the overlap's size
    (480, 330, 544, 394),
    (2488, 1616, 2528, 1656),  # with its corner on that of the last tile
    (1500, 1000, 1560, 1040),
    # over two borders, where the third row of tiles begins and the second column of them ends
    (824, 646, 836, 658),
]


def make_image(squares=SQUARES, **facts):
    return Mammogram(
        "made", "p", "i", 3000, 2000, partial(draw_squares, squares, 3000, 2000), **facts
    )


@pytest.mark.parametrize("images", [None, 1])
def test_lesions_in_tiles_and_across_their_borders_are_found_once(tmp_path, images):
    data = {"canvas": (512, 384), "tiles": {"overlap": 64}, "window": (0, 1)}
    detector = Detector.load(ours(tmp_path, model=Squares(images), **data))
    function = detector._function
    shapes = []

    def watched(**inputs):
        shapes.append(inputs["input_tensor"].shape.as_list())
        return function(**inputs)

    detector._function = watched
    predictions = detector.predict(make_image())
    assert len(predictions) == len(SQUARES) and (np.diff(predictions.scores) <= 0).all()
    np.testing.assert_allclose(
        sorted(predictions.boxes.tolist()), sorted(SQUARES), rtol=0, atol=1e-3
    )
    for box, mask in zip(np.rint(predictions.boxes).astype(int), predictions.masks, strict=True):
        top, left, bottom, right = box
        expected = np.zeros((3000, 2000), np.uint8)
        expected[top:bottom, left : (left + right) // 2] = 1
        np.testing.assert_array_equal(mask, expected)
    most = images or 5  # of 2^20 px, in tiles of 512 x 384
    assert max(shape[0] for shape in shapes) == most and {tuple(shape[1:]) for shape in shapes} == {
        (512, 384, 3)
    }
    holding = {
        (top, left)
        for top in [n * 2488 // 6 for n in range(7)]
        for left in [n * 1616 // 6 for n in range(7)]
        if any(
            top < s[2] and top + 512 > s[0] and left < s[3] and left + 384 > s[1] for s in SQUARES
        )
    }
    assert sum(shape[0] for shape in shapes) == len(holding), "tiles that are all 0 are not seen"


def test_tiles_of_a_mirrored_mammogram_at_another_resolution(tmp_path):
    """Of half the resolution: tiles of 512 x 384 px see 1024 x 768 native ones."""
    data = {
        "canvas": (512, 384),
        "tiles": {"overlap": 64},
        "window": (0, 1),
        "preprocess": {"flip_right": True, "spacing": 0.2},
    }
    detector = Detector.load(ours(tmp_path, model=Squares(), **data))
    for laterality, half in (("L", 0), ("R", 1)):
        predictions = detector.predict(make_image(laterality=laterality, spacing=(0.1, 0.1)))
        np.testing.assert_allclose(
            sorted(predictions.boxes.tolist()), sorted(SQUARES), rtol=0, atol=1e-3
        )
        for (top, left, bottom, right), mask in zip(
            np.rint(predictions.boxes).astype(int), predictions.masks, strict=True
        ):
            middle = (left + right) // 2
            expected = np.zeros((3000, 2000), np.uint8)
            expected[top:bottom, slice(middle, right) if half else slice(left, middle)] = 1
            np.testing.assert_array_equal(mask, expected)


def test_a_mammogram_of_one_tile_is_as_without_tiles(tmp_path):
    squares = [(0, 0, 40, 40), (10, 10, 20, 20), (99, 30, 120, 60)]
    image = Mammogram("made", "p", "i", 120, 60, partial(draw_squares, squares, 120, 60))
    whole = ours(tmp_path / "a", model=Squares(), canvas=(120, 60), window=(0, 1))
    tiled = tmp_path / "b"
    ours(tiled, model=Squares(), canvas=(160, 100), tiles={"overlap": 64}, window=(0, 1))
    one = Detector.load(whole).predict(image)
    other = Detector.load(tiled).predict(image)
    np.testing.assert_allclose(one.boxes, [squares[0], squares[2], squares[1]], atol=1e-3)
    np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-3)
    np.testing.assert_array_equal(other.scores, one.scores)


def test_all_tiles_together_give_no_more_than_one(tmp_path):
    """Known gives the same two boxes of every tile.

    Of twelve the two surest are left, those of the first and second tile.
    """
    data = {"size": 40, "tiles": {"overlap": 10}, "percentiles": (0, 100)}
    detector = Detector.load(
        ours(tmp_path, model=Known([[0.5, 0.5, 0.75, 0.75], [0.5, 0.5, 0.6, 0.6]]), **data)
    )
    predictions = detector.predict(mammogram())
    np.testing.assert_allclose(predictions.boxes, [[20, 20, 30, 30], [20, 40, 30, 50]], atol=1e-3)
    np.testing.assert_allclose(predictions.scores, [0.9, 0.9])


def test_nothing_found_in_any_tile(tmp_path):
    data = {"size": 40, "tiles": {"overlap": 10}, "window": (0, 1)}
    detector = Detector.load(ours(tmp_path, model=Squares(), **data))
    for value in (0.0, 0.95):  # no tissue, and tissue without a lesion
        predictions = detector.predict(
            Mammogram(
                "made", "p", "i", ROWS, COLS, partial(np.full, (ROWS, COLS, 1), np.float32(value))
            )
        )
        assert len(predictions) == 0 and predictions.masks.shape == (0, ROWS, COLS)


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
