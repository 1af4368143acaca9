"""Pictures in, answers out: a network of patches, the case chain, or a system that sets
lesions in, each behind MLflow's `predict`.

A request is a list of pictures, each an object: "image", a file (DICOM, PNG, TIFF, JPEG, PGM) in
base64, or "pixels", rows of grey values in [0, 1]; "laterality" (L or R), "view" (CC or MLO) and
"spacing" ([mm, mm] per px), where the file does not state them; and what the service asks besides.
The answer is a list of objects, pictures in base64 as PNG (or DICOM). One bad picture refuses the
whole request, with one sentence that names its number.

    network     image -> mask:  "mask" (PNG, 0 or 255, of the picture's size), "probability" (PNG of
    16 bits, of the network's), "box"
                mask -> image:  "image" (PNG of 16 bits, of the network's size); what goes in is a
                lesion wherever it is not 0
                The picture is the patch: as large as the network's, its grey values mapped as its
                training patches' were. No other
                size is taken, as a network answers nonsense for a whole mammogram; but with
                `scaled`, crops at native pixels are.
    case        "report", as evaluate/case.py writes it, "masks" (RLE, as COCO has them, null where
    a lesion has none); "overlay" on demand
    system      of tfmammo.synthesis.editor: takes its Wish too, and "format" (png or dicom):
    "image", "mask", "box", "annotations", "recipe"

A network sees eight patches at a time. An uploaded file is written to a private folder while it is
read, and nothing of it is kept or logged: neither name nor header.
"""

from __future__ import annotations

import base64
import binascii
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from tfmammo import config as configuration
from tfmammo import export
from tfmammo.archives import coco
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig, Frozen
from tfmammo.data import preprocess
from tfmammo.data.patches import seen
from tfmammo.errors import ArchiveError, ConfigError, TfmammoError
from tfmammo.inference.pipeline import Case, CaseConfig, Chain
from tfmammo.inference.report import overlay, report
from tfmammo.mammogram import Laterality, Mammogram, View, hashed_id
from tfmammo.synthesis import editor
from tfmammo.synthesis.config import LARGEST
from tfmammo.synthesis.editor import Inserter, SystemConfig, Wish, opened
from tfmammo.tracking import models

FILE = "service.json"
AT_ONCE = 8  # patches that a network sees, so that memory does not follow from a request
MOST = 1024  # pictures of a request
PIXELS = 2 * LARGEST  # of all pictures of a request, together
HANDLES = ("detector", "segmenter", "classifier", "generator", "gan", "handle")


class NetworkConfig(Frozen):
    """A network of patches."""

    handle: str
    """Its export."""
    source: Literal["image", "mask"] = "image"
    """What goes in; image leads to a mask, mask to an image."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel is lesion from this probability on."""
    scaled: bool = False
    """Pictures may be crops of any size, cut as the network's training patches were (data.frame),
    and are scaled as those were; else they must be as large as the network's patches.
    """


class ServiceConfig(Frozen):
    """One served model, of one of three kinds."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Tfmammo-NAME in the registry."""
    network: NetworkConfig | None = None
    case: CaseConfig | None = None
    system: SystemConfig | None = None
    alias: str = Field(default="best", pattern=r"^[a-z][a-z0-9_-]*$")
    """That the new version gets."""
    tracking_uri: str | None = None
    """The store that it is registered in."""

    @model_validator(mode="after")
    def _one(self) -> ServiceConfig:
        if sum(part is not None for part in (self.network, self.case, self.system)) != 1:
            raise ValueError("give one of network, case and system")
        return self


class Picture(Frozen):
    """What every request has, see the module."""

    image: str | None = None
    pixels: Any = None
    laterality: Laterality | None = None
    view: View | None = None
    spacing: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Picture:
        if (self.image is None) == (self.pixels is None):
            raise ValueError("give image or pixels")
        if self.spacing and not all(
            editor.SPACING[0] <= step <= editor.SPACING[1] for step in self.spacing
        ):
            raise ValueError(
                "spacing must be two numbers of mm, from {:g} to {:g}".format(*editor.SPACING)
            )
        return self


class CaseRequest(Picture):
    """CaseRequest.

    Attributes:
        overlay: Whether the answer has the picture with its findings, too.
    """

    overlay: bool = False


class SystemRequest(Picture, Wish):
    """SystemRequest.

    Attributes:
        format: Of the picture in the answer.
    """

    format: Literal["png", "dicom"] = "png"


Answer = dict[str, Any]
Proceed = Callable[[], None]
Make = Callable[[Sequence[Any], Sequence[Mammogram], Proceed], list[Answer]]


def go_on() -> None:
    """What is asked before each part of the work; a server puts something in its place that raises
    where nobody waits any more.
    """


class Service:
    """A loaded service: `answer` takes the requests of one call. make: the requests and their
    mammograms -> the answers.
    """

    def __init__(self, kind: type[Picture], make: Make) -> None:
        self.kind = kind
        self.make = make

    @staticmethod
    def load(config: ServiceConfig) -> Service:
        """Read its networks.

        Raises what the loading of its parts raises, errors of this package.
        """
        if config.network:
            return Service(Picture, _Network(config.network).answers)
        if config.case:
            chain = Chain.load(config.case)
            return Service(CaseRequest, _each(partial(_read, chain)))
        assert config.system
        return Service(SystemRequest, _each(partial(_changed, Inserter.load(config.system))))

    def answer(self, items: Sequence[Mapping[str, Any]], proceed: Proceed = go_on) -> list[Answer]:
        """One answer for each picture.

        Args:
            proceed: See `go_on`.

        Raises:
            ConfigError: A request is none.
            ArchiveError: A picture can't be used. Each names its number.
            DataError: A picture can't be used. Each names its number.
            CaseError: A picture can't be used. Each names its number.
        """
        if not items:
            raise ConfigError("inputs holds no picture")
        if len(items) > MOST:
            raise ConfigError(f"inputs holds {len(items)} pictures, more than {MOST}")
        with tempfile.TemporaryDirectory() as folder:
            requests = []
            mammograms = []
            pixels = 0
            for number, item in enumerate(items):
                proceed()
                with _numbered(number):
                    requests.append(_parsed(self.kind, item))
                    mammograms.append(_mammogram(requests[-1], Path(folder) / str(number)))
                    pixels += mammograms[-1].rows * mammograms[-1].cols
                    if pixels > PIXELS:
                        raise ConfigError(
                            f"with this picture the request has {pixels} px, more than {PIXELS}"
                        )
            return self.make(requests, mammograms, proceed)


def gathered(config: ServiceConfig, folder: Path) -> None:
    """Put a service's config and copies of all its exports into a folder, for `save_service`.

    An archive of real lesions is not copied: the server must find it where the config says. Nor is
    a detector of others.

    Raises:
        TrackingError: A handle leads to no export.
        ExportError: A handle leads to no export.
    """
    part = config.network or config.case or config.system
    assert part
    handles = {}
    uri = getattr(part, "tracking_uri", None) or config.tracking_uri
    for name in HANDLES:
        handle = getattr(part, name, None)
        if handle and not (name == "detector" and _foreign(handle)):
            shutil.copytree(models.resolve(handle, uri), folder / name)
            handles[name] = name
    key = "network" if config.network else "case" if config.case else "system"
    kept = config.model_dump(mode="json", exclude={"tracking_uri": True, key: {"tracking_uri"}})
    (folder / FILE).write_text(
        json.dumps(kept | {key: kept[key] | handles}, indent=2), encoding="utf-8"
    )


def unpacked(folder: Path) -> ServiceConfig:
    """The config of a folder that `gathered` made, its handles pointing into it.

    Raises:
        ConfigError: It is none.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        for part in (values[key] for key in ("network", "case", "system") if values.get(key)):
            part |= {
                name: str(folder / name)
                for name in HANDLES
                if part.get(name) == name and (folder / name).is_dir()
            }
        return ServiceConfig.model_validate(values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}: holds no service ({error.__class__.__name__})") from None


def _foreign(handle: str) -> bool:
    """Whether a detector is of TensorFlow Hub or the Object Detection API, without a
    card of ours.
    """
    return handle.startswith("http") or any(
        (Path(handle) / place / "saved_model.pb").is_file() for place in (".", "saved_model")
    )


class _Network:
    """One network, of patches."""

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config
        folder = models.resolve(config.handle)
        self.target = "mask" if config.source == "image" else "image"
        name = export.find(folder, {config.source}, {self.target})
        card = export.read_card(folder)
        self.size = card["functions"][name]["inputs"][config.source]["shape"][1]
        self.call = export.load(folder, name)
        try:
            self.data = DataConfig.model_validate(card["config"]["data"]).model_copy(
                update={"size": self.size}
            )
        except (KeyError, TypeError, ValidationError):
            raise ConfigError(
                f"{config.handle}: its card does not say how its training patches were made "
                "(config.data)"
            ) from None

    def answers(
        self, requests: Sequence[Picture], mammograms: Sequence[Mammogram], proceed: Proceed
    ) -> list[Answer]:
        """Eight in one call of the network."""
        for number, one in enumerate(mammograms):
            with _numbered(number):
                self.check(one.rows, one.cols)
        found: list[Answer] = []
        for first in range(0, len(mammograms), AT_ONCE):
            proceed()
            found += self.some(mammograms[first : first + AT_ONCE], first)
        return found

    def some(self, mammograms: Sequence[Mammogram], first: int) -> list[Answer]:
        """The answers to pictures that the network sees at once. first: the number of the first."""
        patches = []
        for number, one in enumerate(mammograms, first):
            with _numbered(number):
                patches.append(self.patch(one))
        outputs = self.call(**{self.config.source: np.stack(patches)})[self.target]
        return [
            self.answer(output[..., 0], one)
            for output, one in zip(outputs, mammograms, strict=True)
        ]

    def check(self, rows: int, cols: int) -> None:
        """Refuse what is no patch of this network.

        Raises ArchiveError.
        """
        frame = self.data.frame
        if frame == "full" or (rows, cols) == (self.size, self.size):
            return
        if not self.config.scaled:
            raise ArchiveError(
                f"the network takes patches of {self.size} x {self.size} px, no picture of {rows} "
                f"x {cols} px"
            )
        if frame == "square" and rows != cols:
            raise ArchiveError(f"the network takes square crops, no picture of {rows} x {cols} px")

    def patch(self, mammogram: Mammogram) -> NDArray[np.float32]:
        """float32 [size, size, 1] as the network's training patches."""
        image = mammogram.pixels()
        if self.config.source == "mask":
            return preprocess.resize_mask(
                (image > 0).astype(np.uint8), self.size, self.size
            ).astype(np.float32)
        try:
            return seen(image, (0, 0, mammogram.rows, mammogram.cols), self.data)
        except ValueError as error:
            raise ArchiveError(str(error)) from None

    def answer(self, output: NDArray[np.float32], mammogram: Mammogram) -> Answer:
        """What one picture is answered with."""
        if self.target == "image":
            return {"image": _png16(output)}
        patch = (output >= self.config.threshold).astype(np.uint8)
        mask = preprocess.covered(patch, mammogram.rows, mammogram.cols)
        left, top, width, height = cv2.boundingRect(mask)
        box = [top, left, top + height, left + width] if width else None
        return {
            "mask": _base64(synthetic.mask_png(mask)),
            "probability": _png16(output),
            "box": box,
        }


def _each(one: Callable[[Any, Mammogram], Answer]) -> Make:
    def all_of(
        requests: Sequence[Any], mammograms: Sequence[Mammogram], proceed: Proceed
    ) -> list[Answer]:
        answers = []
        for number, (request, mammogram) in enumerate(zip(requests, mammograms, strict=True)):
            proceed()
            with _numbered(number):
                answers.append(one(request, mammogram))
        return answers

    return all_of


def _read(chain: Chain, request: CaseRequest, mammogram: Mammogram) -> Answer:
    case = chain.read(mammogram)
    answer: Answer = {"report": report(case, chain), "masks": _regions(case)}
    if request.overlay:
        answer["overlay"] = _base64(cv2.imencode(".png", overlay(case)[..., ::-1])[1].tobytes())
    return answer


def _regions(case: Case) -> list[Any]:
    rows = case.mammogram.rows
    cols = case.mammogram.cols
    found: list[Any] = []
    for lesion in (finding.lesion for finding in case.findings):
        if lesion is None:
            found.append(None)
            continue
        top, left, bottom, right = lesion.box
        region = np.ascontiguousarray(lesion.mask(rows, cols)[top:bottom, left:right])
        found.append(coco.encode(region, lesion.box, rows, cols))
    return found


def _changed(system: Inserter, request: SystemRequest, mammogram: Mammogram) -> Answer:
    wish = Wish.model_validate({name: getattr(request, name) for name in Wish.model_fields})
    found = system.change(mammogram, wish)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic"
        found.dicom(path) if request.format == "dicom" else synthetic.png(path, found.after)
        image = _base64(path.read_bytes())
    return {
        "image": image,
        "mask": _base64(synthetic.mask_png(found.mask)),
        "box": list(found.box),
        "kind": found.kind,
        "annotations": found.coco(
            "synthetic.dcm" if request.format == "dicom" else "synthetic.png"
        ),
        "recipe": found.recipe,
    }


def _parsed(kind: type[Picture], item: Mapping[str, Any]) -> Picture:
    try:
        return kind.model_validate(item)
    except ValidationError as error:
        raise ConfigError(configuration.describe(error)[:500].removeprefix("the file: ")) from None


def _mammogram(request: Picture, path: Path) -> Mammogram:
    facts = {"laterality": request.laterality, "view": request.view, "spacing": request.spacing}
    if request.image is None:
        return _of_pixels(request.pixels, facts)
    try:
        content = base64.b64decode(request.image, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("image is not in base64") from None
    path.write_bytes(content)
    try:
        return opened(path, **facts)  # type: ignore[arg-type]
    except ArchiveError as error:
        raise ArchiveError(str(error).removeprefix(f"{path}: ")) from None


def _of_pixels(pixels: Any, facts: Mapping[str, Any]) -> Mammogram:
    """pixels: rows as JSON has them, or a server's array of them."""
    try:
        values = np.asarray(pixels)
    except ValueError:
        values = np.empty(0)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf":
        raise ConfigError("pixels must be rows of equal length, of numbers")
    with np.errstate(over="ignore"):  # what float32 can't hold is infinite in it, and refused below
        image = values.astype(np.float32, copy=False)[..., np.newaxis]
    if image.size > LARGEST:
        raise ConfigError(f"pixels: {image.shape[0]} x {image.shape[1]} px are more than {LARGEST}")
    if not (image.min() >= 0 and image.max() <= 1):  # written so that NaN fails too
        raise ConfigError(
            f"pixels must lie in [0, 1], but reach from {image.min():g} to {image.max():g}"
        )
    nobody = hashed_id("folder", "")
    rows, cols = image.shape[:2]
    return Mammogram("folder", nobody, nobody, rows, cols, partial(_held, image), **facts)


def _held(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return image


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Our own errors say which picture they are of, and not in which folder it lay."""
    try:
        yield
    except ValueError as error:
        if not isinstance(error, TfmammoError):
            raise
        kind: Any = type(error)
        raise kind(f"inputs[{number}]: {_without_folder(str(error), number)}") from None


def _without_folder(text: str, number: int) -> str:
    """A sentence without the place of an uploaded file."""
    return " ".join(
        "the file" if word.startswith(tempfile.gettempdir()) and f"/{number}" in word else word
        for word in text.split(" ")
    )


def _png16(image: NDArray[np.float32]) -> str:
    return _base64(synthetic.encoded(np.rint(np.clip(image, 0, 1) * 65535).astype(np.uint16)))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
