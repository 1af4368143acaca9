"""What the studio's tabs share: open a mammogram, show it, and report errors in one sentence.

An upload is a patient's. It is moved at once from Gradio's folder, named after the file, to a
private folder under a fixed name, and deleted after it was read. A browser's session keeps its
pixels, side, view and spacing until it ends: those of an ordinary image in memory, those of a DICOM
in a new file, with the same stored values, bits and spacing. File names and header texts are not
logged, shown or written.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo import archives
from tfmammo import config as configuration
from tfmammo.archives import dicom, folder, named_files, phantom
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.data.preprocess import resize_image
from tfmammo.errors import ArchiveError, DataError, TfmammoError, summarize
from tfmammo.mammogram import Laterality, Mammogram, View, hash_id
from tfmammo.synthesis import editor
from tfmammo.synthesis.editor import GivenFacts

log = logging.getLogger(__name__)

MAX_SIDE = 1600  # px of the longer side of what is shown, at most
# An open mammogram or a result is kept this long, or until its page is closed.
KEPT_SECONDS = 3600.0
PHANTOMS = 8
ENDINGS = folder.DICOMS + folder.PICTURES
SIDES: dict[str, Laterality | None] = {"unknown": None, "left": "L", "right": "R"}
VIEWS: dict[str, View | None] = {"unknown": None, "CC": "CC", "MLO": "MLO"}
COLOUR = (230, 159, 0)
# options of events that take no time
QUICK: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,
}

Updates = dict[Any, Any]
Picture = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class OpenMammogram:
    """A mammogram that a session has opened."""

    mammogram: Mammogram
    shown: Picture  # uint8 [rows, cols], at most MAX_SIDE px high and wide
    folder: Path | None = None  # of the pixels; None: they are in memory


@contextmanager
def claim(upload: str) -> Iterator[Path]:
    """Move an upload to a fixed name in a private folder, which is deleted at the end."""
    source = Path(upload)
    private = Path(tempfile.mkdtemp(prefix="upload_"))
    suffix = source.suffix.lower()
    path = private / f"mammogram{suffix if suffix in ENDINGS else ''}"
    try:
        claimed = source.with_name(private.name)
        try:
            source.rename(claimed)
        except OSError:  # the same file came twice at once, and the other request has deleted it
            raise ArchiveError("the upload no longer exists; send it again") from None
        shutil.move(claimed, path)  # perhaps to another disk
        with suppress(OSError):
            source.parent.rmdir()
        yield path
    finally:
        shutil.rmtree(private, ignore_errors=True)


@contextmanager
def new_folder(prefix: str) -> Iterator[Path]:
    """Make a folder for what a page keeps; an error deletes it."""
    made = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def open_upload(upload: str) -> OpenMammogram:
    """Read an upload and delete it."""
    with claim(upload) as path:
        mammogram = editor.open_mammogram(path)
        stored = archives.read_stored(mammogram)
        image = stored.image()
        is_dicom = named_files.is_dicom(path)
    content = repr(stored.values.shape).encode() + stored.values.tobytes()
    identity = hashlib.sha256(content).hexdigest()
    # Nobody states the patient, so every image gets a pseudonymous patient.
    pseudonym = hash_id("studio", identity)
    mammogram = replace(mammogram, archive="studio", patient_id=pseudonym, image_id=pseudonym)
    if not is_dicom:
        read = partial(Stored.image, stored)
        return OpenMammogram(mammogram.with_pixels(read), to_display(image))
    with new_folder("held_") as session_folder:
        path = session_folder / "mammogram.dcm"
        synthetic.write_dicom_of_mammogram(path, stored, mammogram, identity)
        mammogram = replace(mammogram, **dicom.pixel_source(path))
        return OpenMammogram(mammogram, to_display(image), folder=session_folder)


def list_phantoms() -> dict[str, Mammogram]:
    """List the examples by their names on the page."""
    return {
        f"{number}: {mammogram.laterality} {mammogram.view}, {mammogram.pathology}": mammogram
        for number, mammogram in enumerate(phantom.read(count=PHANTOMS), 1)
    }


def open_phantom(name: str) -> OpenMammogram:
    """Open an example by its name on the page."""
    phantoms = list_phantoms()
    if name not in phantoms:
        raise DataError("there is no such phantom")
    stored = Stored.of_image(phantoms[name].pixels(), 16)
    mammogram = phantoms[name].with_pixels(partial(Stored.image, stored), bits=16)
    return OpenMammogram(mammogram, to_display(stored.image()))


def release(state: Any) -> None:
    """Delete the folder of an open mammogram or a result; gr.State calls it too."""
    if state is not None and state.folder is not None:
        shutil.rmtree(state.folder, ignore_errors=True)


def to_display(image: NDArray[np.float32]) -> Picture:
    """Reduce float32 [rows, cols, 1] in [0, 1] to uint8 [rows, cols], at most MAX_SIDE px."""
    scale = min(1.0, MAX_SIDE / max(image.shape[:2]))
    size = [max(1, round(length * scale)) for length in image.shape[:2]]
    smaller = image if scale == 1 else resize_image(image, *size)
    return np.rint(255 * np.clip(smaller[..., 0], 0, 1)).astype(np.uint8)


def to_native(click: tuple[int, int], picture: Picture, rows: int, cols: int) -> tuple[int, int]:
    """Find the native pixel (row, col) under a click, (col, row) px of the scaled picture.

    `rows` and `cols` are the size of the mammogram, native px.
    """
    height, width = picture.shape[:2]
    row = int((click[1] + 0.5) * rows / height)
    col = int((click[0] + 0.5) * cols / width)
    return min(max(row, 0), rows - 1), min(max(col, 0), cols - 1)


def to_rgb(picture: Picture) -> Picture:
    """Repeat a grey image, uint8 [rows, cols], to [rows, cols, 3]."""
    return np.repeat(picture[..., np.newaxis], 3, axis=-1)


def draw_cross(picture: Picture, centre: tuple[int, int], rows: int, cols: int) -> Picture:
    """Draw a cross with an open middle at a native pixel of the scaled picture; RGB."""
    marked = to_rgb(picture)
    height, width = picture.shape[:2]
    row = int((centre[0] + 0.5) * height / rows)
    col = int((centre[1] + 0.5) * width / cols)
    inner = max(8, height // 120)
    outer = max(16, height // 40)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        start, end = ((col + reach * right, row + reach * down) for reach in (inner, outer))
        cv2.line(marked, start, end, (0, 0, 0), 4)
        cv2.line(marked, start, end, COLOUR, 2)
    return marked


def add_facts_inputs() -> list[gr.components.Component]:
    """Add inputs for side, view and mm per px; for `parse_facts`."""
    with gr.Accordion("What the file does not state", open=False), gr.Row():
        return [
            gr.Dropdown(list(SIDES), value="unknown", label="Side", min_width=90, filterable=False),
            gr.Dropdown(list(VIEWS), value="unknown", label="View", min_width=90, filterable=False),
            gr.Number(label="mm per px", minimum=0, step=0.01, min_width=90),
        ]


def forget_facts(inputs: Sequence[gr.components.Component]) -> Updates:
    """Empty the inputs of `add_facts_inputs`, which state facts of one mammogram alone."""
    return dict(zip(inputs, ("unknown", "unknown", None), strict=True))


def parse_facts(side: str, view: str, spacing: float | None) -> GivenFacts:
    """Parse the values of `add_facts_inputs`."""
    steps = (spacing, spacing) if spacing else None
    return GivenFacts(laterality=SIDES[side], view=VIEWS[view], spacing=steps)


def add_opening_inputs(label: str, element: str) -> tuple[gr.UploadButton, gr.Dropdown]:
    """Add a row with an upload button, and a choice of phantoms with the id `element`."""
    with gr.Row(equal_height=True):
        upload = gr.UploadButton(label, file_types=list(ENDINGS), size="md", variant="primary")
        phantoms = gr.Dropdown(
            list(list_phantoms()),
            value=None,
            label="or a phantom",
            filterable=False,
            elem_id=element,
        )
    return upload, phantoms


def computing(parallel: int) -> dict[str, Any]:
    """Return options of events that take long, of which `parallel` run at once in all tabs."""
    return {
        "api_visibility": "private",
        "concurrency_id": "compute",
        "concurrency_limit": parallel,
    }


def add_state() -> gr.State:
    """Add a session's state, whose files are deleted with it."""
    return gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=release)


def run_with_note(note: Any, work: Callable[[], Updates]) -> Updates:
    """Do a page's work; an error becomes the tab's note, and nothing else changes."""
    try:
        return {note: gr.update(value="", visible=False)} | work()
    except Exception as error:
        if not isinstance(error, ValidationError | TfmammoError):
            # The message may quote a header, the frames do not.
            log.error(
                "%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
            )
        return {note: gr.update(value=format_error(error), visible=True)}


def format_error(error: Exception) -> str:
    """Format an error for a page, without folders or names of files."""
    if not isinstance(error, ValidationError | TfmammoError):
        return "Something went wrong in the studio. Its log has the details."
    text = summarize(error)
    if isinstance(error, ValidationError):
        text = configuration.describe(error)
    text = re.sub(r"^[^:]*[/\\][^:]*: ", "", text)  # "FILE: it is ..."
    text = re.sub(r"[\w.~-]*(?:[/\\][^\s:;,()'\"]+)+", "a file", text)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
