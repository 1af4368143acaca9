"""What the studio's tabs share: a mammogram comes in, is shown, and what goes wrong is
told in one sentence.

An upload is a patient's. It is moved at once out of the folder that is named by its file, into a
private one under a fixed name, and deleted as soon as it was read. What is kept for its browser's
session are pixels and the facts of a record: of a picture in memory, of a DICOM in a file written
anew from its stored values (archives.writers.synthetic), so that its bits, greys and spacing stay
what they were. It goes with the session. Neither names of files nor texts of headers are logged,
shown or written.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import gradio as gr
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo import archives
from tfmammo import config as configuration
from tfmammo.archives import dicom, folder, phantom
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.data.preprocess import resize_image
from tfmammo.errors import ArchiveError, DataError, TfmammoError
from tfmammo.mammogram import Laterality, Mammogram, View, hashed_id
from tfmammo.synthesis import editor

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

SIDE = 1600  # px of the longer side of what is shown, at most
KEPT = 3600.0  # s that an opened mammogram, or a result, is kept; it goes earlier with its page
PHANTOMS = 8
ENDINGS = folder.DICOMS + folder.PICTURES
SIDES: dict[str, Laterality | None] = {"unknown": None, "left": "L", "right": "R"}
VIEWS: dict[str, View | None] = {"unknown": None, "CC": "CC", "MLO": "MLO"}
COMPUTE = "compute"  # the queue of all that takes long
COLOUR = (230, 159, 0)

Updates = dict[Any, Any]
Picture = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Facts:
    """What somebody says of a mammogram whose file does not.

    Attributes:
        spacing: Mm per px, both ways.
    """

    laterality: Laterality | None = None
    view: View | None = None
    spacing: float | None = None

    @staticmethod
    def of(side: str, view: str, spacing: float | None) -> Facts:
        """From what stands in the page.

        Raises:
            DataError: The spacing is none.
        """
        if spacing and not 0.005 <= spacing <= 2:
            raise DataError(f"{spacing:g} mm per px is no mammogram's; most have 0.05 to 0.2")
        return Facts(SIDES[side], VIEWS[view], spacing or None)

    def added(self, mammogram: Mammogram) -> Mammogram:
        """The record with these facts where it has none."""
        spacing = mammogram.spacing or ((self.spacing, self.spacing) if self.spacing else None)
        return replace(
            mammogram,
            laterality=mammogram.laterality or self.laterality,
            view=mammogram.view or self.view,
            spacing=spacing,
        )


@dataclass(frozen=True, eq=False)
class Held:
    """A mammogram that a session has opened.

    Attributes:
        shown: uint8 [rows, cols], at most SIDE px high and wide.
        lossy: Its file was compressed with loss.
        folder: Holds what its pixels are read from; None where these are in memory.
    """

    mammogram: Mammogram
    shown: Picture
    lossy: bool = False
    folder: Path | None = None


@contextmanager
def taken(upload: str) -> Iterator[Path]:
    """An upload under a fixed name in a private folder, gone at the end.

    Raises:
        ArchiveError: It is not there any more.
    """
    source = Path(upload)
    place = Path(tempfile.mkdtemp(prefix="upload_"))
    path = place / f"mammogram{source.suffix.lower() if source.suffix.lower() in ENDINGS else ''}"
    try:
        try:
            source.rename(path)
        except OSError:  # the same file came twice at once: the first to take it has deleted it
            raise ArchiveError("the upload is gone; send it once more") from None
        with suppress(OSError):
            source.parent.rmdir()
        yield path
    finally:
        shutil.rmtree(place, ignore_errors=True)


def opened(upload: str) -> Held:
    """Read an upload and delete it.

    Raises:
        ArchiveError: It is no mammogram that can be read.
    """
    with taken(upload) as path:
        found = editor.opened(path)
        stored = archives.stored(found)
        image = stored.image()
        is_dicom = folder.is_dicom(path)
        lossy = path.suffix in (".jpg", ".jpeg")
    identity = hashlib.sha256(
        repr(stored.values.shape).encode() + stored.values.tobytes()
    ).hexdigest()
    # Every image counts as one of a patient of its own: whose it is, nobody says.
    pseudonym = hashed_id("studio", identity)
    found = replace(found, archive="studio", patient_id=pseudonym, image_id=pseudonym)
    if not is_dicom:
        return Held(replace(found, read=partial(_of_memory, stored)), shown(image), lossy)
    place = Path(tempfile.mkdtemp(prefix="held_"))
    synthetic.dicom(place / "mammogram.dcm", stored, found, identity)
    return Held(
        replace(found, read=partial(dicom.read_pixels, place / "mammogram.dcm")),
        shown(image),
        folder=place,
    )


def phantoms() -> dict[str, Mammogram]:
    """The examples, by what they are called in the page."""
    found = phantom.read(count=PHANTOMS)
    return {
        f"{number}: {one.laterality} {one.view}, {one.pathology}": one
        for number, one in enumerate(found, 1)
    }


def example(name: str) -> Held:
    """A mammogram of the phantom, by its name in the page.

    Raises:
        DataError: There is none of that name.
    """
    known = phantoms()
    if name not in known:
        raise DataError("there is no such phantom")
    stored = Stored.of_image(known[name].pixels(), 16)
    return Held(
        replace(known[name], read=partial(_of_memory, stored), bits=16), shown(stored.image())
    )


def released(held: Any) -> None:
    """Delete what a session kept on disk; for gr.State too."""
    if held is not None and held.folder is not None:
        shutil.rmtree(held.folder, ignore_errors=True)


def shown(image: NDArray[np.float32]) -> Picture:
    """A mammogram as pages show it, never enlarged.

    Args:
        image: float32 [rows, cols, 1] in [0, 1].

    Returns:
        uint8 [rows, cols], at most SIDE px high and wide.
    """
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = [max(1, round(length * scale)) for length in image.shape[:2]]
    smaller = image if scale == 1 else resize_image(image, *size)
    return np.rint(255 * np.clip(smaller[..., 0], 0, 1)).astype(np.uint8)


def native(click: tuple[int, int], picture: Picture, rows: int, cols: int) -> tuple[int, int]:
    """The native pixel under a click.

    Args:
        click: (col, row), px of the picture, as gr.Image gives it.
        picture: The whole mammogram, scaled.

    Returns:
        (row, col), native px, within the mammogram.
    """
    height, width = picture.shape[:2]
    row = int((click[1] + 0.5) * rows / height)
    col = int((click[0] + 0.5) * cols / width)
    return min(max(row, 0), rows - 1), min(max(col, 0), cols - 1)


def colour(picture: Picture) -> Picture:
    """uint8 [rows, cols] -> [rows, cols, 3]."""
    return np.repeat(picture[..., np.newaxis], 3, axis=-1)


def crossed(picture: Picture, centre: tuple[int, int], rows: int, cols: int) -> Picture:
    """A picture of the whole mammogram with a mark at a native pixel, open in its middle: uint8
    [rows, cols, 3].
    """
    marked = colour(picture)
    (height, width) = picture.shape[:2]
    row = int((centre[0] + 0.5) * height / rows)
    col = int((centre[1] + 0.5) * width / cols)
    inner = max(8, height // 120)
    outer = max(16, height // 40)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        start, end = ((col + reach * right, row + reach * down) for reach in (inner, outer))
        cv2.line(marked, start, end, (0, 0, 0), 4)
        cv2.line(marked, start, end, COLOUR, 2)
    return marked


def facts_inputs() -> list[gr.components.Component]:
    """Where somebody says what a file does not: side, view, mm per px; for `Facts.of`."""
    with gr.Accordion("What the file does not state", open=False), gr.Row():
        return [
            gr.Dropdown(list(SIDES), value="unknown", label="Side", min_width=90, filterable=False),
            gr.Dropdown(list(VIEWS), value="unknown", label="View", min_width=90, filterable=False),
            gr.Number(label="mm per px", minimum=0, step=0.01, min_width=90),
        ]


def told(note: Any, work: Callable[[], Updates]) -> Updates:
    """Do what a page asks for; what goes wrong becomes its note, and nothing else changes.

    Args:
        note: A gr.Markdown of the tab.
        work: Gives updates of components.
    """
    try:
        return {note: gr.update(value="", visible=False)} | work()
    except Exception as error:
        if not is_ours(error):
            # The message may quote a header, the frames do not.
            log.error(
                "%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
            )
        return {note: gr.update(value=sentence(error), visible=True)}


def is_ours(error: Exception) -> bool:
    """Whether an error is an answer to somebody, rather than a fault of ours."""
    return isinstance(error, ValidationError | TfmammoError)


def sentence(error: Exception) -> str:
    """What a page tells of an error, without any file's place or name."""
    if not is_ours(error):
        return "Something went wrong within the studio; its log says what."
    text = (
        configuration.describe(error)
        if isinstance(error, ValidationError)
        else " ".join(str(error).split())
    )
    text = re.sub(r"^[^:]*[/\\][^:]*: ", "", text)  # "FILE: it is ..."
    text = re.sub(r"[\w.~-]*(?:[/\\][^\s:;,()'\"]+)+", "a file", text)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _of_memory(stored: Stored) -> NDArray[np.float32]:
    return stored.image()
