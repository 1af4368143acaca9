"""The contract of detectors, with small SavedModels of the Object Detection API's interface.

No extra is needed.
"""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from tests.exported_detectors import write_detector_card
from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data.whole import make_whole
from tfmammo.detection import detections
from tfmammo.detection.detections import Detector
from tfmammo.errors import DetectionError, TrackingError
from tfmammo.mammogram import Lesion, Mammogram, Skipped

ROWS = 80
COLS = 60
BRIGHT = (20, 8, 40, 24)


def save_detector(folder, detect, dtype=tf.float32, images=1):
    """Save a function of "input_tensor" as the API's export."""
    spec = tf.TensorSpec([images, None, None, 3], dtype, name="input_tensor")
    module = tf.Module()
    module.weight = tf.Variable(127.5)  # the signature alone would lose it
    function = tf.function(lambda input_tensor: detect(input_tensor, module.weight))
    signature = function.get_concrete_function(spec)
    tf.saved_model.save(module, str(folder), signatures=signature)
    return folder


def save_bright_spot(folder, dtype=tf.float32, outputs=None, mask=None):
    """Save a detector of the bounding box of what is at least half as bright as possible.

    It adds a box beyond the image and one of class 2.
    """

    def detect(input_tensor, weight):
        size = tf.cast(tf.tile(tf.shape(input_tensor)[1:3], [2]), tf.float32)
        inside = tf.where(tf.cast(input_tensor[0, ..., 0], tf.float32) > weight)
        low, high = tf.reduce_min(inside, axis=0), tf.reduce_max(inside, axis=0) + 1
        box = tf.cast(tf.concat([low, high], axis=0), tf.float32) / size
        others = [[0.5, 0.5, 0.6, 0.6], [1.2, 1.2, 1.3, 1.3], [0.0, 0.0, 1.0, 1.0]]
        found = {
            "detection_boxes": tf.stack([others[0], box, *others[1:]])[tf.newaxis],
            "detection_scores": tf.constant([[0.25, 0.75, 0.5, 0.0]]),
            "detection_classes": tf.constant([[2.0, 1.0, 1.0, 1.0]]),
            "num_detections": tf.constant([3.0]),
            "raw_detection_boxes": tf.zeros([1, 9, 4]),
        }
        if mask is not None:
            masks = [tf.zeros([2, 2]), tf.constant(mask, tf.float32), *[tf.ones([2, 2])] * 2]
            found["detection_masks"] = tf.stack(masks)[None]
        return {name: found[name] for name in outputs or found}

    return save_detector(folder, detect, dtype)


def pixels(box=BRIGHT):
    image = np.full((ROWS, COLS, 1), 0.1, np.float32)
    image[box[0] : box[2], box[1] : box[3]] = 0.9
    return image


def mammogram(box=BRIGHT, **facts):
    return Mammogram("made", "p", "i", ROWS, COLS, partial(pixels, box), **facts)


def ours(folder, save=save_bright_spot, **data):
    """An export as train/ssd.py leaves it: a SavedModel and a card, under a run's folder."""
    save(folder / "export/saved_model")
    config = DataConfig(**{"size": 40, "percentiles": (0, 100), **data})
    functions = {"saved_model": {"inputs": {}, "outputs": {}}}
    write_detector_card(folder / "export", config, ["p1"], functions=functions)
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return save_bright_spot(tmp_path_factory.mktemp("foreign") / "detector/saved_model")


def test_detections_of_a_foreign_model_are_in_native_px(foreign, caplog):
    """Of known classes, by falling scores, and nothing beyond the image."""
    found = Detector.load(foreign).predict(mammogram())
    np.testing.assert_allclose(found.boxes, [BRIGHT], atol=1e-4)
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.masks is None
    assert found.scores.tolist() == [0.75] and found.classes == ("mass",)
    assert "1 detections of classes other than mass skipped" in caplog.text
    found = Detector.load(foreign.parent, kinds=("mass", "calcification")).predict(mammogram())
    np.testing.assert_allclose(found.boxes, [BRIGHT, (40, 30, 48, 36)], atol=1e-4)
    assert found.scores.tolist() == [0.75, 0.25] and found.classes == ("mass", "calcification")
    assert found.above(0.5).classes == ("mass",) and len(found.above(0.9)) == 0
    assert Detector.load(foreign).saw("p1") is None


def test_a_model_of_bytes_gets_bytes(tmp_path):
    folder = save_bright_spot(tmp_path / "model", tf.uint8)
    found = Detector.load(folder).predict(mammogram())
    np.testing.assert_allclose(found.boxes, [BRIGHT], atol=1e-4)


@pytest.mark.parametrize("handle", ["", "export", "export/saved_model"])
def test_ours_sees_the_square_and_answers_in_native_px(tmp_path, handle):
    folder = ours(tmp_path, kinds=("calcification", "mass")) / handle
    detector = Detector.load(folder, kinds=("distortion",))
    predictions = detector.predict(mammogram())
    np.testing.assert_allclose(predictions.boxes[0], BRIGHT, atol=1e-3)
    assert predictions.classes == ("calcification", "mass"), "its own kinds"
    assert (detector.saw("p1"), detector.saw("p")) == (True, False)


@pytest.mark.parametrize(("laterality", "cols"), [("L", slice(12, 24)), ("R", slice(24, 36))])
def test_ours_undoes_its_preprocessing(tmp_path, laterality, cols):
    """The left half of the model's box is the right half of a mirrored mammogram.

    At 0.2 mm it is half as high, and a quarter as wide.
    """
    preprocess = PreprocessConfig(flip_right=True, spacing=0.2)
    save = partial(save_bright_spot, mask=LEFT)
    detector = Detector.load(ours(tmp_path, save, preprocess=preprocess))
    box = (20, 12, 40, 36)
    found = detector.predict(mammogram(box, laterality=laterality, spacing=(0.1, 0.05)))
    np.testing.assert_allclose(found.boxes[0], box, atol=1e-3)
    expected = np.zeros((1, ROWS, COLS), np.uint8)
    expected[0, 20:40, cols] = 1
    np.testing.assert_array_equal(found.masks, expected)


LEFT = [[1.0, 0.0], [1.0, 0.0]]


def test_a_mask_that_reaches_beyond_the_mammogram_is_cut():
    """Of the mask of box (-2, -2, 2, 2) one pixel's centre is inside, at (1, 1).

    At the centre of pixel (0, 0) a mask with that pixel alone is 0.75 * 0.75, and one without it
    1 - 0.75 * 0.75.
    """
    masks = np.array([[[0, 0], [0, 1]], [[1, 1], [1, 0]]], np.float32)
    blended = detections._paste_masks(masks, np.array([[-2.0, -2, 2, 2]] * 2), mammogram())
    expected = np.zeros((2, ROWS, COLS), np.uint8)
    expected[0, :2, :2] = 1
    np.testing.assert_array_equal(blended, expected)
    assert not detections._paste_masks(masks[:1], np.array([[90.0, 70, 95, 75]]), mammogram()).any()


def test_a_hub_handle(tmp_path, monkeypatch):
    """What tensorflow_hub's cache holds under a URL's hash is not fetched again."""
    handle = "https://tfhub.dev/somebody/ssd/1"
    save_bright_spot(tmp_path / hashlib.sha1(handle.encode()).hexdigest())
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    found = Detector.load(handle).predict(mammogram())
    np.testing.assert_allclose(found.boxes, [BRIGHT], atol=1e-4)
    with pytest.raises(DetectionError, match="https"):
        Detector.load(handle.replace("https", "http"))


RAW = ("detection_boxes", "raw_detection_boxes")


def encode(folder):
    """Save a model of encoded images."""
    detect = tf.function(
        lambda input_tensor: dict.fromkeys(detections.OUTPUTS, tf.strings.length(input_tensor))
    )
    spec = tf.TensorSpec([None], tf.string, "input_tensor")
    tf.saved_model.save(tf.Module(), str(folder), signatures=detect.get_concrete_function(spec))


def forget_data(folder):
    """Write an export whose card does not say how the detector saw its mammograms."""
    ours(folder)
    card = folder / "export/card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"config": {}}))


def write_nothing(folder):
    (folder / "saved_model.pb").write_bytes(b"nothing")


def save_without_signature(folder):
    tf.saved_model.save(tf.Module(), str(folder))


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (partial(save_bright_spot, outputs=RAW), DetectionError, "raw_detection_boxes"),
        (save_without_signature, DetectionError, "serving_default"),
        (encode, DetectionError, "takes string"),
        (write_nothing, DetectionError, "can't be loaded"),
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


# Canvas and tiles: nothing drifts


def save_known(boxes):
    """Make what saves a detector of given boxes, parts of the image's sides, in every image."""
    count = len(boxes)

    def detect(input_tensor, _):
        images = tf.shape(input_tensor)[0]
        return {
            "detection_boxes": tf.tile(tf.constant(boxes, tf.float32)[tf.newaxis], [images, 1, 1]),
            "detection_scores": tf.tile(tf.linspace([0.9], [0.5], count, axis=1), [images, 1]),
            "detection_classes": tf.ones([images, count]),
            "num_detections": tf.fill([images], float(count)),
        }

    return partial(save_detector, detect=detect, images=None)


TILES = {"tiles": {"overlap": 64}}


def grey(rows, cols):
    return np.linspace(0, 1, rows * cols, dtype=np.float32).reshape(rows, cols, 1)


@pytest.mark.parametrize(
    "data",
    [
        {"size": 100},
        {"canvas": (113, 64), "preprocess": {"flip_right": True, "spacing": 0.15}},
        {"canvas": (512, 400), **TILES, "preprocess": {"flip_right": True, "spacing": 0.15}},
    ],
)
@pytest.mark.parametrize("laterality", ["L", "R"])
def test_a_box_goes_from_native_px_to_training_and_back_without_drift(tmp_path, data, laterality):
    """459 x 375 px of 0.1 mm are 306 x 250 at 0.15 mm.

    A box stays whole in px if its corners are multiples of 3. An image no longer than a tile is one
    tile, so that every box is in it.
    """
    boxes = [(0, 0, 33, 12), (99, 201, 150, 237), (300, 3, 459, 375), (453, 369, 456, 372)]
    lesions = tuple(Lesion("mass", box) for box in boxes)
    read = partial(grey, 459, 375)
    facts = {"laterality": laterality, "lesions": lesions, "spacing": (0.1, 0.1)}
    image = Mammogram("made", "p", "i", 459, 375, read, **facts)
    config = DataConfig(percentiles=(0, 100), **data)
    whole = make_whole([image], config, Skipped())
    assert whole.images.shape[1:3] == config.shape and whole.boxes.shape[1] == 4
    folder = ours(tmp_path, save_known(whole.boxes[0]), **data)
    found = Detector.load(folder).predict(image)
    np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-3)


LEVELS = 7


def save_squares(folder, images=None):
    """Save a detector of squares of intensity 0.2, 0.3, ... 0.8, the larger the surer.

    Its masks are the squares' left halves.
    """

    def detect(input_tensor, _):
        grey = input_tensor[..., :1] / 255
        # [n, rows, cols, levels]
        is_it = tf.abs(grey - (0.2 + 0.1 * tf.range(LEVELS, dtype=tf.float32))) < 0.02
        low, high = [], []
        for axis in (2, 1):
            along = tf.cast(tf.reduce_any(is_it, axis=axis), tf.float32)
            length = tf.cast(tf.shape(along)[1], tf.float32)
            low.append(tf.cast(tf.argmax(along, axis=1), tf.float32) / length)
            high.append(1 - tf.cast(tf.argmax(along[:, ::-1], axis=1), tf.float32) / length)
        size = tf.reduce_sum(tf.cast(is_it, tf.float32), [1, 2])
        order = tf.argsort(size, direction="DESCENDING")
        size = tf.gather(size, order, batch_dims=1)
        count = tf.shape(size)[0]
        return {
            "detection_boxes": tf.gather(tf.stack([*low, *high], axis=-1), order, batch_dims=1),
            "detection_scores": tf.tanh(size / 3000),
            "detection_classes": tf.ones([count, LEVELS]),
            "num_detections": tf.reduce_sum(tf.cast(size > 0, tf.float32), axis=1),
            "detection_masks": tf.tile(tf.constant(LEFT)[None, None], [count, LEVELS, 1, 1]),
        }

    return save_detector(folder, detect, images=images)


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


def assert_squares(found, laterality="L"):
    """Check that each square was found once, with its left half, or its mirror image."""
    assert len(found) == len(SQUARES) and (np.diff(found.scores) <= 0).all()
    np.testing.assert_allclose(sorted(found.boxes.tolist()), sorted(SQUARES), rtol=0, atol=1e-3)
    for box, mask in zip(np.rint(found.boxes).astype(int), found.masks, strict=True):
        top, left, bottom, right = box
        middle = (left + right) // 2
        expected = np.zeros((3000, 2000), np.uint8)
        cols = slice(left, middle) if laterality == "L" else slice(middle, right)
        expected[top:bottom, cols] = 1
        np.testing.assert_array_equal(mask, expected)


def make_image(**facts):
    read = partial(draw_squares, SQUARES, 3000, 2000)
    return Mammogram("made", "p", "i", 3000, 2000, read, **facts)


@pytest.mark.parametrize("images", [None, 1])
def test_lesions_in_tiles_and_across_their_borders_are_found_once(tmp_path, images):
    save = partial(save_squares, images=images)
    detector = Detector.load(ours(tmp_path, save, canvas=(512, 384), window=(0, 1), **TILES))
    function = detector._function
    shapes = []

    def watched(**inputs):
        shapes.append(inputs["input_tensor"].shape.as_list())
        return function(**inputs)

    detector._function = watched
    assert_squares(detector.predict(make_image()))
    # of 2^20 px, in tiles of 512 x 384
    assert max(shape[0] for shape in shapes) == (images or 5)
    assert {tuple(shape[1:]) for shape in shapes} == {(512, 384, 3)}
    assert sum(shape[0] for shape in shapes) < 7 * 7, "tiles that are all 0 are not seen"


@pytest.mark.parametrize("laterality", ["L", "R"])
def test_tiles_of_a_mirrored_mammogram_at_another_resolution(laterality, tmp_path):
    """Of half the resolution: tiles of 512 x 384 px see 1024 x 768 native ones."""
    data = {"canvas": (512, 384), "window": (0, 1), **TILES}
    data["preprocess"] = {"flip_right": True, "spacing": 0.2}
    detector = Detector.load(ours(tmp_path, save_squares, **data))
    image = make_image(laterality=laterality, spacing=(0.1, 0.1))
    assert_squares(detector.predict(image), laterality)


def test_a_mammogram_of_one_tile_is_as_without_tiles(tmp_path):
    squares = [(0, 0, 40, 40), (10, 10, 20, 20), (99, 30, 120, 60)]
    image = Mammogram("made", "p", "i", 120, 60, partial(draw_squares, squares, 120, 60))
    whole = ours(tmp_path / "a", save_squares, canvas=(120, 60), window=(0, 1))
    tiled = ours(tmp_path / "b", save_squares, canvas=(160, 100), window=(0, 1), **TILES)
    one, other = (Detector.load(folder).predict(image) for folder in (whole, tiled))
    np.testing.assert_allclose(one.boxes, [squares[0], squares[2], squares[1]], atol=1e-3)
    np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-3)
    np.testing.assert_array_equal(other.scores, one.scores)


def test_all_tiles_together_give_no_more_than_one(tmp_path):
    """Each tile gives the same two boxes.

    Of twelve the two surest are left, those of the first and second tile.
    """
    save = save_known([[0.5, 0.5, 0.75, 0.75], [0.5, 0.5, 0.6, 0.6]])
    predictions = Detector.load(ours(tmp_path, save, tiles={"overlap": 10})).predict(mammogram())
    np.testing.assert_allclose(predictions.boxes, [[20, 20, 30, 30], [20, 40, 30, 50]], atol=1e-3)
    np.testing.assert_allclose(predictions.scores, [0.9, 0.9])


@pytest.mark.parametrize("value", [0.0, 0.95])
def test_nothing_found_in_any_tile(value, tmp_path):
    """No tissue, and tissue without a lesion."""
    detector = Detector.load(ours(tmp_path, save_squares, tiles={"overlap": 10}, window=(0, 1)))
    read = partial(np.full, (ROWS, COLS, 1), np.float32(value))
    found = detector.predict(Mammogram("made", "p", "i", ROWS, COLS, read))
    assert len(found) == 0 and found.masks.shape == (0, ROWS, COLS)
