"""Images in, answers out: a network of patches, the CAD pipeline or an editor of lesions.

Each is a service behind MLflow's `predict`. A request is a list of images, each a JSON object:

    image       a file (DICOM, PNG, TIFF, JPEG, PGM) in base64, or instead
    pixels      rows of intensities in [0, 1]
    laterality, view, spacing   L or R, CC or MLO, [mm, mm] per px, if the file does not state
                them
    ...         the keys of the service

The answer is a list of objects with images in base64 as PNG (or DICOM). One bad image refuses the
whole request with one sentence, which names its number.

    network     image -> mask: "mask" (PNG, 0 or 255, of the image's size), "probability" (16-bit
                PNG, of the network's size), "box"
                mask -> image: "image" (16-bit PNG, of the network's size); a lesion is wherever
                the input is not 0
                The input is a patch of the network's size with intensities mapped like those of
                its training patches. Other sizes are refused, as the answer for a whole mammogram
                would be meaningless; `scaled` allows crops at native pixels.
    pipeline    "report", see inference.report.build_report, "masks" (COCO's RLE, null for a lesion
                without a mask), and "overlay" if asked for
    system      takes the keys of synthesis.editor.EditRequest too, and "format" (png or dicom):
                "image", "mask", "box", "kind", "annotations", "recipe"

A network processes eight patches at a time. An uploaded file is written to a private folder while
it is read. Nothing of it is kept or logged, neither its name nor its header.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from tfmammo.apps.serving.requests import (
    EditorRequest,
    ImageRequest,
    PipelineRequest,
    numbering_errors,
    parse_request,
    read_mammogram,
)
from tfmammo.archives import coco
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig, Frozen, describe
from tfmammo.data import preprocess
from tfmammo.data.windows import extract_window
from tfmammo.detection.detections import locate_model
from tfmammo.errors import ArchiveError, ConfigError
from tfmammo.inference.pipeline import Pipeline, PipelineConfig
from tfmammo.inference.report import build_report, draw_overlay
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis.config import LARGEST
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest
from tfmammo.synthesis.generators import find_best_weights
from tfmammo.tracking import export, models
from tfmammo.training.image_grid import encode_rgb_png

FILE = "service.json"
BATCH_SIZE = 8  # patches in one call, so that memory does not grow with the request
MAX_IMAGES = 1024  # in one request
MAX_PIXELS = 2 * LARGEST  # of all images of one request together
MODEL_KEYS = ("detector", "segmenter", "classifier", "generator", "gan", "handle")
KINDS = ("network", "pipeline", "system")  # of services, by the keys of ServiceConfig


class NetworkConfig(Frozen):
    """A network of patches."""

    handle: str
    """Its model URI: a run, an export, or models:/NAME@ALIAS."""
    source: Literal["image", "mask"] = "image"
    """Input of the network: from an image to a mask, or from a mask to an image."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel is lesion from this probability on."""
    runtime: Literal["tensorflow", "onnx"] = "tensorflow"
    """"onnx": ONNX Runtime, which is faster for single patches on a CPU, and needs the extra onnx.
    Registering converts the network, and checks that its answers agree.
    """
    scaled: bool = False
    """Resize crops of any size, cut like the network's training patches (data.frame); otherwise an
    image must have the size of the patches.
    """

    @property
    def target(self) -> Literal["image", "mask"]:
        """Output of the network."""
        return "mask" if self.source == "image" else "image"

    def find_function(self, folder: Path) -> str:
        """Find the function from source to target in an export."""
        return export.find_function(folder, {self.source}, {self.target})


class ServiceConfig(Frozen):
    """A served model: a network, a CAD pipeline (`pipeline`) or an editor (`system`)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """The model is registered as tfmammo-NAME."""
    network: NetworkConfig | None = None
    """A network of patches."""
    pipeline: PipelineConfig | None = None
    """A CAD pipeline."""
    system: EditorConfig | None = None
    """An editor, which inserts or removes lesions."""
    alias: str = Field(default="best", pattern=r"^[a-z][a-z0-9_-]*$")
    """Alias of the new version."""
    tracking_uri: str | None = None
    """MLflow's store of the registered model; None: the environment's."""

    @model_validator(mode="after")
    def _one(self) -> ServiceConfig:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError("give one of network, pipeline and system")
        return self

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


Answer = dict[str, Any]
Item = tuple[int, Any, Mammogram]  # the number, keys and image of a part of a request


def check_cancelled() -> None:
    """Do nothing before a part of the work; a server's function raises when the client has gone."""


class Service:
    """A loaded service: `answer` takes the images of one request."""

    kind: type[ImageRequest]  # the keys of each image
    batch = 1  # images that are computed together

    @staticmethod
    def load(config: ServiceConfig) -> Service:
        """Load the models of a service."""
        if config.network:
            return NetworkService(config.network)
        if config.pipeline:
            return PipelineService(Pipeline.load(config.pipeline))
        assert config.system
        return EditorService(Editor.load(config.system))

    def answer(
        self, items: Sequence[Mapping[str, Any]], proceed: Callable[[], None] = check_cancelled
    ) -> list[Answer]:
        """Answer a request, one answer for each image as JSON has it.

        `proceed` is called before each part of the work. A TfmammoError names the image's number.
        """
        if not 0 < len(items) <= MAX_IMAGES:
            raise ConfigError(f"inputs holds {len(items)} images, not 1 to {MAX_IMAGES}")
        with tempfile.TemporaryDirectory() as folder:
            read: list[Item] = []
            pixels = 0
            for number, item in enumerate(items):
                proceed()
                with numbering_errors(number):
                    request = parse_request(self.kind, item)
                    mammogram = read_mammogram(request, Path(folder) / str(number))
                    pixels += mammogram.rows * mammogram.cols
                    if pixels > MAX_PIXELS:
                        raise ConfigError(
                            f"with this image the request has {pixels} px, more than {MAX_PIXELS}"
                        )
                    self.check(mammogram)
                read.append((number, request, mammogram))
            answers: list[Answer] = []
            for first in range(0, len(read), self.batch):
                proceed()
                answers += self.compute(read[first : first + self.batch])
            return answers

    def check(self, mammogram: Mammogram) -> None:
        """Refuse an image before any is computed."""

    def compute(self, items: Sequence[Item]) -> list[Answer]:
        """Answer a batch of images."""
        raise NotImplementedError


def gather(config: ServiceConfig, folder: Path) -> None:
    """Put a service's config and copies of all its exports into a folder, for `save_service`.

    An archive of real lesions is not copied: the server must find it where the config says. Nor is
    a detector of TensorFlow Hub or the Object Detection API.
    """
    part = getattr(config, config.kind)
    copies = {}
    uri = getattr(part, "tracking_uri", None) or config.tracking_uri
    for key in MODEL_KEYS:
        model_uri = getattr(part, key, None)
        if model_uri and (key != "detector" or locate_model(model_uri, uri)[1]):
            is_editor = key == "generator" and part.renderer == "contextual"
            find = find_best_weights if is_editor else models.resolve
            shutil.copytree(find(model_uri, uri), folder / key)
            copies[key] = key
    if config.network and config.network.runtime == "onnx":
        export_folder = folder / copies["handle"]
        name = config.network.find_function(export_folder)
        export.write_onnx(export_folder, name, export_folder / f"{name}.onnx")
    content = config.model_dump(
        mode="json", exclude={"tracking_uri": True, config.kind: {"tracking_uri"}}
    )
    content[config.kind] |= copies
    (folder / FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")


def unpack(folder: Path) -> ServiceConfig:
    """Read the config of a folder that `gather` made; its model URIs point into the folder."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        for part in (values[kind] for kind in KINDS if values.get(kind)):
            part |= {
                key: str(folder / key)
                for key in MODEL_KEYS
                if part.get(key) == key and (folder / key).is_dir()
            }
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{folder}: is not a service of this version of tfmammo ({describe(error)}); register "
            "it again"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}: is not a service ({error.__class__.__name__})") from None


class NetworkService(Service):
    """A network of patches."""

    kind = ImageRequest
    batch = BATCH_SIZE

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config
        folder = models.resolve(config.handle)
        name = config.find_function(folder)
        card = export.read_card(folder)
        self.size = card["functions"][name]["inputs"][config.source]["shape"][1]
        self.call = export.load(folder, name, config.runtime)
        try:
            data = DataConfig.model_validate(card["config"]["data"])
        except (KeyError, TypeError, ValidationError):
            raise ConfigError(
                f"{config.handle}: its card does not say how its training patches were made "
                "(config.data)"
            ) from None
        self.data = data.model_copy(update={"size": self.size})

    def check(self, mammogram: Mammogram) -> None:
        """Refuse an image that does not have the size of a patch."""
        rows, cols, frame = mammogram.rows, mammogram.cols, self.data.frame
        if frame == "full" or (rows, cols) == (self.size, self.size):
            return
        if not self.config.scaled:
            raise ArchiveError(
                f"the network takes patches of {self.size} x {self.size} px, not an image of "
                f"{rows} x {cols} px"
            )
        if frame == "square" and rows != cols:
            raise ArchiveError(
                f"the network takes square crops, not an image of {rows} x {cols} px"
            )

    def compute(self, items: Sequence[Item]) -> list[Answer]:
        """Answer a batch of patches."""
        patches = []
        for number, _, mammogram in items:
            with numbering_errors(number):
                patches.append(self.make_patch(mammogram))
        outputs = self.call(**{self.config.source: np.stack(patches)})[self.config.target]
        return [
            self.make_answer(output[..., 0], mammogram)
            for output, (_, _, mammogram) in zip(outputs, items, strict=True)
        ]

    def make_patch(self, mammogram: Mammogram) -> NDArray[np.float32]:
        """Return float32 [size, size, 1], made like the network's training patches."""
        image = mammogram.pixels()
        if self.config.source == "mask":
            mask = (image > 0).astype(np.uint8)
            return preprocess.resize_mask(mask, self.size, self.size).astype(np.float32)
        try:
            return extract_window(image, (0, 0, mammogram.rows, mammogram.cols), self.data)
        except ValueError as error:
            raise ArchiveError(str(error)) from None

    def make_answer(self, output: NDArray[np.float32], mammogram: Mammogram) -> Answer:
        """Return the answer for one output of the network, float32 [size, size]."""
        if self.config.target == "image":
            return {"image": _encode_png16(output)}
        patch = (output >= self.config.threshold).astype(np.uint8)
        mask = preprocess.resize_mask_to(patch, mammogram.rows, mammogram.cols)
        left, top, width, height = cv2.boundingRect(mask)
        box = [top, left, top + height, left + width] if width else None
        return {
            "mask": _base64(synthetic.encode_mask_png(mask)),
            "probability": _encode_png16(output),
            "box": box,
        }


class PipelineService(Service):
    """A CAD pipeline."""

    kind = PipelineRequest

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def compute(self, items: Sequence[Item]) -> list[Answer]:
        """Find the lesions of a mammogram."""
        ((number, request, mammogram),) = items
        with numbering_errors(number):
            result = self.pipeline.predict(mammogram)
        rows, cols = mammogram.rows, mammogram.cols
        masks = [
            coco.describe(finding.lesion, rows, cols)["segmentation"] if finding.lesion else None
            for finding in result.findings
        ]
        answer: Answer = {"report": build_report(result, self.pipeline), "masks": masks}
        if request.overlay:
            answer["overlay"] = _base64(encode_rgb_png(draw_overlay(result)))
        return [answer]


class EditorService(Service):
    """An editor of lesions."""

    kind = EditorRequest

    def __init__(self, editor: Editor) -> None:
        self.editor = editor

    def compute(self, items: Sequence[Item]) -> list[Answer]:
        """Edit a mammogram."""
        ((number, request, mammogram),) = items
        keys = EditRequest.model_fields
        edit = EditRequest.model_validate({key: getattr(request, key) for key in keys})
        is_dicom = request.format == "dicom"
        with numbering_errors(number), tempfile.TemporaryDirectory() as folder:
            result = self.editor.edit(mammogram, edit)
            path = Path(folder) / "synthetic"
            if is_dicom:
                result.write_dicom(path)
            else:
                synthetic.write_png(path, result.after)
            image = _base64(path.read_bytes())
        return [
            {
                "image": image,
                "mask": _base64(synthetic.encode_mask_png(result.mask)),
                "box": list(result.box),
                "kind": result.kind,
                "annotations": result.to_coco("synthetic.dcm" if is_dicom else "synthetic.png"),
                "recipe": result.recipe,
            }
        ]


def _encode_png16(image: NDArray[np.float32]) -> str:
    return _base64(synthetic.encode_png(np.rint(np.clip(image, 0, 1) * 65535).astype(np.uint16)))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
