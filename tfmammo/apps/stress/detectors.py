"""Any detector behind one call: ours, an ONNX file, an endpoint, or a command.

All give `Detections` of mammograms. A command is not of this package, and gets a folder:

    {images}/000001.png ...     16-bit greyscale images, dark background
    {images}/images.json        COCO: their ids, file names and sizes, and the categories
    {boxes}                     the file that it writes: COCO's results, a list of objects with
                                image_id, category_id, bbox [x, y, width, height] in px, and score

Its words are split as a shell splits them, but no shell runs.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import shlex
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo import archives
from tfmammo.apps.stress.config import StressConfig
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.detection.detections import COUNT, MASKS, OUTPUTS, Detections, Detector
from tfmammo.errors import ConfigError, DataError, DetectionError, summarize
from tfmammo.mammogram import LesionKind, Mammogram, Skipped

COMMAND = "command:"
HERE = ("localhost", "127.0.0.1", "::1")
BITS = 16
KNOWN = "a detector was trained on its patient"
MOST_BYTES = 2**26  # of an answer
MOST_BOXES = 1000  # of one image: of more, those with the highest scores are kept


class StressedDetector(Protocol):
    """A detector of any kind."""

    def detect(self, mammograms: Sequence[Mammogram]) -> list[Detections]:
        """Detect lesions in mammograms, one result for each."""


def open_detector(uri: str, config: StressConfig) -> StressedDetector:
    """Open a detector by a value of `StressConfig.detectors`."""
    kinds = config.data.kinds
    if uri.startswith(COMMAND):
        return CommandDetector(uri.removeprefix(COMMAND).strip(), kinds, config.timeout)
    if uri.startswith(("http://", "https://")):
        return EndpointDetector(uri, kinds, config.timeout, config.remote)
    if uri.endswith(".onnx"):
        return OneByOne(OnnxDetector(Path(uri), kinds), kinds)
    return OneByOne(Detector.load(uri, kinds, config.tracking_uri), kinds)


def read_unknown(
    data: DataConfig, detectors: Iterable[StressedDetector], skipped: Skipped
) -> list[Mammogram]:
    """Read an archive without patients that a detector was trained on according to its card."""
    ours = [detector.detector for detector in detectors if isinstance(detector, OneByOne)]
    every = archives.read_mammograms(data, skipped)
    unknown = []
    for mammogram in every:
        if any(detector.saw(mammogram.patient_id) for detector in ours):
            skipped.add(mammogram.image_id, KNOWN)
        elif not sampling.note_lost(mammogram, None, skipped):
            unknown.append(mammogram)
    if every and not unknown:
        raise DataError(
            f"{data.archive_name}: detectors were trained on all of its patients; use mammograms "
            "that none of them saw"
        )
    return unknown


class OneByOne:
    """A detector of this package's contract, called for one mammogram after the other."""

    def __init__(self, detector: Detector, kinds: Sequence[LesionKind]) -> None:
        self.detector = detector
        self.kinds = kinds  # that count

    def detect(self, mammograms: Sequence[Mammogram]) -> list[Detections]:
        """Detect the lesions whose kinds count."""
        return [self.detector.predict(mammogram).of_kinds(self.kinds) for mammogram in mammograms]


class OnnxDetector(Detector):
    """An ONNX file with the Object Detection API's input and outputs.

    One input [n, rows, cols, 3] in [0, 255], float32 or uint8, of any size; outputs as
    detection_boxes, detection_scores, detection_classes and num_detections. `kinds` names its
    classes 1, 2, ...
    """

    def __init__(self, path: Path, kinds: Sequence[LesionKind]) -> None:
        import onnxruntime

        if not path.is_file():
            raise DetectionError(f"{path}: does not exist")
        with _translate(f"{path}: can't be read as ONNX"):
            self._session = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        inputs = self._session.get_inputs()
        outputs = {output.name for output in self._session.get_outputs()}
        types = {"tensor(float)": tf.float32, "tensor(uint8)": tf.uint8}
        if len(inputs) != 1 or inputs[0].type not in types or not set(OUTPUTS) <= outputs:
            raise DetectionError(
                f"{path}: must have one image as input and the outputs {', '.join(OUTPUTS)}, like "
                "a detector of the Object Detection API"
            )
        self.handle = str(path)
        self.kinds = tuple(kinds)
        self.data: DataConfig | None = None
        self.card: dict[str, Any] = {}
        self._seen = None
        self._input = inputs[0].name
        self._names = [name for name in (*OUTPUTS, MASKS) if name in outputs]
        self._is_whole = inputs[0].type == "tensor(uint8)"

    def _call(self, images: NDArray[np.float32]) -> list[dict[str, NDArray]]:
        pixels = np.repeat(255 * images, 3, axis=-1)
        if self._is_whole:
            pixels = np.rint(pixels).astype(np.uint8)
        answers = []
        for image in pixels:
            rows, cols = image.shape[:2]
            with _translate(f"{self.handle}: refuses an image of {rows} x {cols} px"):
                values = self._session.run(self._names, {self._input: image[np.newaxis]})
            answer = {name: value[0] for name, value in zip(self._names, values, strict=True)}
            answers.append(answer | {COUNT: np.asarray(answer[COUNT])})
        return answers


@contextmanager
def _translate(sentence: str) -> Iterator[None]:
    """Turn onnxruntime's errors, of several classes, into one sentence."""
    try:
        yield
    except Exception as error:
        raise DetectionError(f"{sentence} ({summarize(error)[:200]})") from None


class EndpointDetector:
    """A CAD pipeline behind HTTP, as `tfmammo serve` answers at /invocations."""

    def __init__(
        self, url: str, kinds: Sequence[LesionKind], timeout: float, remote: bool = False
    ) -> None:
        try:
            host = urllib.parse.urlsplit(url).hostname
        except ValueError as error:
            raise ConfigError(f"detectors: {url} is no URL ({error})") from None
        if host not in HERE and not remote:
            raise ConfigError(
                f"detectors: {host} is not this machine, and mammograms would leave it; "
                "remote=true sends them"
            )
        self.url = url
        self.kinds = kinds
        self.timeout = timeout
        # a proxy of the environment is another machine
        proxies = urllib.request.ProxyHandler(None if remote else {})
        self._open = urllib.request.build_opener(proxies).open

    def detect(self, mammograms: Sequence[Mammogram]) -> list[Detections]:
        """Send one request for each mammogram."""
        return [self._ask(mammogram) for mammogram in mammograms]

    def _ask(self, mammogram: Mammogram) -> Detections:
        picture = synthetic.encode_png(Stored.of_image(mammogram.pixels(), BITS).values)
        facts = {name: getattr(mammogram, name) for name in ("laterality", "view", "spacing")}
        item = {"image": base64.b64encode(picture).decode()}
        item |= {name: value for name, value in facts.items() if value is not None}
        body = json.dumps({"inputs": [item]}).encode()
        request = urllib.request.Request(
            self.url, body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with self._open(request, timeout=self.timeout) as answer:
                content = answer.read(MOST_BYTES + 1)
            lesions = json.loads(content)["predictions"][0]["report"]["lesions"]
            found = [
                (lesion["box"], lesion["score"], lesion["kind"])
                for lesion in lesions
                if lesion["kind"] in self.kinds
            ]
        except (OSError, http.client.HTTPException) as error:
            raise DetectionError(f"{self.url}: does not answer ({error})") from None
        except (ValueError, KeyError, IndexError, TypeError):
            raise DetectionError(
                f"{self.url}: its answer lacks predictions[0].report.lesions with box, score and "
                "kind"
            ) from None
        return _make_detections(self.url, found, mammogram)


class CommandDetector:
    """A command that reads a folder of images and writes COCO boxes; see the module.

    `kinds` become the categories 1, 2, ...; `timeout` is in seconds for a folder.
    """

    def __init__(self, command: str, kinds: Sequence[LesionKind], timeout: float) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError:
            raise ConfigError("detectors: a command has an unclosed quote") from None
        for place in ("{images}", "{boxes}"):
            if not any(place in word for word in self.words):
                raise ConfigError(f"detectors: a command must name {place}, see the guide")
        self.name = self.words[0]
        self.kinds = kinds
        self.timeout = timeout

    def detect(self, mammograms: Sequence[Mammogram]) -> list[Detections]:
        """Run the command on a folder of the mammograms."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "images").mkdir()
            self._write(mammograms, folder / "images")
            self._run(folder)
            content = self._read(folder / "boxes.json")
        by_image: dict[int, list[tuple[Any, Any, Any]]] = {
            number: [] for number in range(1, len(mammograms) + 1)
        }
        try:
            for box in content:
                left, top, width, height = box["bbox"]
                kind = dict(enumerate(self.kinds, 1)).get(box["category_id"])
                if kind:
                    corners = (top, left, top + height, left + width)
                    by_image[box["image_id"]].append((corners, box["score"], kind))
        except (KeyError, TypeError, ValueError):
            raise DetectionError(
                f"{self.name}: its boxes are not a list of objects with image_id (of images.json), "
                "category_id, bbox and score"
            ) from None
        return [
            _make_detections(self.name, by_image[number], mammogram)
            for number, mammogram in enumerate(mammograms, 1)
        ]

    def _write(self, mammograms: Sequence[Mammogram], folder: Path) -> None:
        images = []
        for number, mammogram in enumerate(mammograms, 1):
            name = f"{number:06d}.png"
            synthetic.write_png(folder / name, Stored.of_image(mammogram.pixels(), BITS))
            size = {"height": mammogram.rows, "width": mammogram.cols}
            images.append({"id": number, "file_name": name, **size})
        categories = [{"id": number, "name": kind} for number, kind in enumerate(self.kinds, 1)]
        content = {"images": images, "annotations": [], "categories": categories}
        (folder / "images.json").write_text(json.dumps(content), encoding="utf-8")

    def _run(self, folder: Path) -> None:
        places = {"{images}": str(folder / "images"), "{boxes}": str(folder / "boxes.json")}
        words = list(self.words)
        for place, path in places.items():
            words = [word.replace(place, path) for word in words]
        try:
            done = subprocess.run(words, capture_output=True, timeout=self.timeout, check=False)
        except OSError as error:
            raise DetectionError(f"{self.name}: can't be started ({error.strerror})") from None
        except subprocess.TimeoutExpired:
            raise DetectionError(f"{self.name}: took more than {self.timeout:g} s") from None
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            reason = f" ({last[0][:200]})" if last else ""
            raise DetectionError(f"{self.name}: ended with code {done.returncode}{reason}")

    def _read(self, path: Path) -> Any:
        try:
            if path.stat().st_size > MOST_BYTES:
                raise DetectionError(f"{self.name}: wrote boxes of more than {MOST_BYTES} bytes")
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise DetectionError(f"{self.name}: wrote no file {{boxes}}") from None
        except (ValueError, RecursionError):
            raise DetectionError(f"{self.name}: its boxes are not JSON") from None
        return content


def _make_detections(
    name: str, found: Sequence[tuple[Any, Any, Any]], mammogram: Mammogram
) -> Detections:
    """Check the boxes and scores of a foreign detector, and sort them."""
    rows: list[tuple[list[float], float, LesionKind]] = []
    limits = np.array([mammogram.rows, mammogram.cols] * 2, np.float64)
    for box, score, kind in found:
        try:
            corners = [float(value) for value in box]
            value = float(score)
        except (TypeError, ValueError, OverflowError):
            raise DetectionError(f"{name}: a box or a score is not a number") from None
        if len(corners) != 4 or not all(map(math.isfinite, corners)) or not 0 <= value <= 1:
            raise DetectionError(f"{name}: a box is not four numbers, or a score not in [0, 1]")
        clipped = np.clip(corners, 0, limits).astype(np.float32)
        if clipped[2] > clipped[0] and clipped[3] > clipped[1]:
            rows.append((clipped.tolist(), value, kind))
    rows = sorted(rows, key=lambda row: -row[1])[:MOST_BOXES]
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        tuple(row[2] for row in rows),
    )
