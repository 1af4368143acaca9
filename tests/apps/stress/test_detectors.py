"""Detectors of every kind behind one call: ONNX files, commands, endpoints."""

import base64
import json
import sys

import cv2
import numpy as np
import pytest

from tests.http_server import reply, serve
from tests.small_mammograms import make_mammogram
from tfmammo.apps.stress.config import StressConfig
from tfmammo.apps.stress.detectors import CommandDetector, OneByOne, OnnxDetector, open_detector
from tfmammo.config import DataConfig
from tfmammo.detection.detections import Detections, Detector
from tfmammo.errors import ConfigError, DetectionError

KINDS = ("mass", "calcification")
# Writes what it is given as its answer, and checks what it reads.
PROGRAM = """
import json, sys
from pathlib import Path
folder, boxes, answer = sys.argv[1:]
images = json.loads((Path(folder) / "images.json").read_text())["images"]
assert all((Path(folder) / image["file_name"]).is_file() for image in images), "no picture"
if answer == "fail":
    sys.exit("out of luck")
if answer != "silence":
    Path(boxes).write_text(answer)
"""


def record(rows=40, cols=60, seed=0):
    image = np.random.default_rng(seed).random((rows, cols, 1), np.float32)
    return make_mammogram(seed, image, spacing=(0.2, 0.2))


@pytest.fixture
def command(tmp_path):
    """A function (answer) -> the detector of a command that gives this answer."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return lambda answer: CommandDetector(
        f"{sys.executable} {program} {{images}} {{boxes}} '{answer}'", KINDS, 60.0
    )


class Finding(Detector):
    """A detector that finds a calcification, then a mass."""

    def __init__(self):
        self._seen = None

    def predict(self, mammogram):
        boxes = np.float32([[0, 0, 9, 9], [5, 5, 20, 20]])
        return Detections(boxes, np.float32([0.9, 0.5]), ("calcification", "mass"))


def test_other_kinds_of_lesions_are_dropped():
    (both,) = OneByOne(Finding(), KINDS).detect([record()])
    (masses,) = OneByOne(Finding(), ("mass",)).detect([record()])
    assert len(both) == 2 and masses.classes == ("mass",)
    np.testing.assert_array_equal(masses.boxes, [[5, 5, 20, 20]])
    np.testing.assert_array_equal(masses.scores, np.float32([0.5]))


def test_a_command_answers_in_cocos_form(command):
    boxes = [
        {"image_id": 2, "category_id": 1, "bbox": [10, 5, 20, 8], "score": 0.25},
        {"image_id": 2, "category_id": 2, "bbox": [50, 30, 99, 99], "score": 0.5},
        {"image_id": 2, "category_id": 7, "bbox": [1, 1, 2, 2], "score": 0.9},
    ]
    first, second = command(json.dumps(boxes)).detect([record(), record(seed=1)])
    assert len(first) == 0 and second.classes == ("calcification", "mass")
    # the second box is cut at the image's 40 x 60 px, a category of its own is skipped
    np.testing.assert_array_equal(second.boxes, [[30, 50, 40, 60], [5, 10, 13, 30]])
    np.testing.assert_array_equal(second.scores, np.float32([0.5, 0.25]))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("fail", "code 1 (out of luck)"),
        ("silence", "wrote no file {boxes}"),
        ("{", "not JSON"),
        ("3", "not a list"),
        ('[{"image_id": 9, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]', "image_id"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 2}]', "score"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [NaN, 1, 2, 2], "score": 1}]', "box"),
        # a number that no float holds
        (
            f'[{{"image_id": 1, "category_id": 1, "bbox": [1{400 * "0"}, 1, 2, 2], "score": 1}}]',
            "box",
        ),
    ],
)
def test_what_a_command_may_not_answer(command, answer, reason):
    with pytest.raises(DetectionError) as refused:
        command(answer).detect([record()])
    assert reason in str(refused.value)


def test_a_command_that_is_late_or_cant_be_run():
    words = f"{sys.executable} -c 'import time; time.sleep(60)' {{images}} {{boxes}}"
    with pytest.raises(DetectionError, match=r"more than 0\.5 s"):
        CommandDetector(words, KINDS, 0.5).detect([record()])
    with pytest.raises(DetectionError, match="no-such-program"):
        CommandDetector("no-such-program {images} {boxes}", KINDS, 1.0).detect([record()])


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("command: find {images}", "{boxes}"),
        ("command: find '{images} {boxes}", "quote"),
        # no mammogram leaves this machine without permission
        ("https://example.org/invocations", "example.org"),
        ("http://[::1/invocations", "is no URL"),
    ],
)
def test_a_bad_detector_is_refused(uri, word):
    with pytest.raises(ConfigError, match=word):
        open_detector(uri, StressConfig(detectors={"a": "b"}))


def box_the_brightest_pixel(handler):
    """Answer as `tfmammo serve` with a CAD pipeline."""
    body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
    (item,) = body["inputs"]
    assert item["laterality"] == "L" and item["spacing"] == [0.2, 0.2]
    image = cv2.imdecode(
        np.frombuffer(base64.b64decode(item["image"]), np.uint8), cv2.IMREAD_UNCHANGED
    )
    assert image.dtype == np.uint16
    row, col = np.unravel_index(image.argmax(), image.shape)
    place = [int(row), int(col), int(row) + 1, int(col) + 1]
    lesions = [{"kind": kind, "score": 0.75, "box": place} for kind in ("mass", "asymmetry")]
    answer = {"predictions": [{"report": {"lesions": lesions}}]}
    reply(handler, json.dumps(answer if handler.path == "/invocations" else {}).encode())


def test_an_endpoint_of_this_machine_answers_for_a_pipeline():
    config = StressConfig(detectors={"a": "b"}, data=DataConfig(kinds=("mass",)))
    mammogram = record()
    with serve(box_the_brightest_pixel) as place:
        (found,) = open_detector(f"http://{place}/invocations", config).detect([mammogram])
        with pytest.raises(DetectionError, match=r"predictions\[0\]"):
            open_detector(f"http://{place}/elsewhere", config).detect([mammogram])
    row, col = np.unravel_index(mammogram.pixels()[..., 0].argmax(), (40, 60))
    np.testing.assert_array_equal(found.boxes, [[row, col, row + 1, col + 1]])
    assert found.classes == ("mass",) and found.scores == np.float32(0.75)


def test_an_onnx_file_of_the_apis_form_is_a_detector(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    values = {
        "detection_boxes": np.float32([[[0.25, 0.5, 0.5, 0.75], [0, 0, 1, 1]]]),
        "detection_scores": np.float32([[0.75, 0.5]]),
        "detection_classes": np.float32([[1, 2]]),
        "num_detections": np.float32([2]),
    }
    constants = [onnx.numpy_helper.from_array(value, f"c_{name}") for name, value in values.items()]
    nodes = [helper.make_node("Identity", [f"c_{name}"], [name]) for name in values]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, None, None, 3])
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape)
        for name, value in values.items()
    ]
    graph = helper.make_graph(nodes, "known", [image], outputs, constants)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    file = tmp_path / "known.onnx"
    onnx.save(model, str(file))
    config = StressConfig(detectors={"a": "b"}, data=DataConfig(kinds=KINDS))
    (found,) = open_detector(str(file), config).detect([record()])
    np.testing.assert_array_equal(found.boxes, [[10, 30, 20, 45], [0, 0, 40, 60]])
    assert found.classes == KINDS
    del model.graph.output[:2]
    onnx.save(model, str(file))
    with pytest.raises(DetectionError, match="Object Detection API"):
        OnnxDetector(file, KINDS)
    file.write_bytes(b"nothing")
    with pytest.raises(DetectionError, match="can't be read as ONNX"):
        OnnxDetector(file, KINDS)
