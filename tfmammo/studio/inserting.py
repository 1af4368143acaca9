"""The tab that sets a lesion in, or takes one out: a click says where, and before and
after lie under a slider.

Every browser has its own mammogram and result (gr.State); nothing is shared but the systems.
Downloads have fixed names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from tfmammo.archives.writers import synthetic
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Mammogram, borders
from tfmammo.studio import uploads
from tfmammo.studio.uploads import COLOUR, COMPUTE, Facts, Held, Picture, Updates
from tfmammo.synthesis.editor import Changed, Inserter, Wish

OWN = "the system's own"
SHAPES = ("irregular", "lobular", "oval", "round")
USUAL = 12.0  # mm, a mass's height and width before somebody says something else
HINT = "Open a mammogram, then click where the lesion is to be."
PLACE = "Click into the mammogram to choose a place."


@dataclass(frozen=True, eq=False)
class Made:
    """A result as the page shows it.

    Attributes:
        before: The whole mammogram, as `uploads.shown`.
        after: The whole mammogram, as `uploads.shown`.
        details: Cut out around the lesion, native px, at `corner`.
        rows: Native.
        cols: Native.
        box: Of the lesion, native px.
        mask: Of the lesion, native px.
        folder: Of the downloads.
    """

    before: Picture
    after: Picture
    details: tuple[Picture, Picture]
    corner: tuple[int, int]
    rows: int
    cols: int
    box: Box
    mask: Picture
    folder: Path

    def pair(self, marked: bool) -> tuple[Picture, Picture]:
        """The whole mammogram before and after, the latter with box and outline where they are
        wanted: uint8 [rows, cols, 3].
        """
        scale = self.before.shape[0] / self.rows, self.before.shape[1] / self.cols
        return uploads.colour(self.before), self._drawn(self.after, (0, 0), scale, marked)

    def detail(self, marked: bool) -> tuple[Picture, Picture]:
        """The same of the part around the lesion."""
        return uploads.colour(self.details[0]), self._drawn(
            self.details[1], self.corner, (1.0, 1.0), marked
        )

    def _drawn(
        self, picture: Picture, corner: tuple[int, int], scale: tuple[float, float], marked: bool
    ) -> Picture:
        sheet = uploads.colour(picture)
        if marked:
            corners = (np.reshape(self.box, (2, 2)) - corner) * scale
            (top, left), (bottom, right) = np.rint(corners).astype(int).tolist()
            cv2.rectangle(sheet, (left, top), (right - 1, bottom - 1), COLOUR, 1)
            for outline in borders(self.mask):
                points = ((outline + self.box[:2] - corner + 0.5) * scale - 0.5)[:, ::-1]
                cv2.polylines(
                    sheet,
                    [np.rint(16 * points).astype(np.int32)],
                    True,
                    (86, 180, 233),
                    1,
                    cv2.LINE_AA,
                    4,
                )
        return sheet


def tab(systems: Mapping[str, Inserter], parallel: int) -> None:
    """Fill a tab of a gr.Blocks.

    Args:
        systems: By the names that the page shows.
        parallel: Requests computed at once.
    """
    _Tab(systems, parallel)


class _Tab:
    """The tab's components, and what happens to them."""

    def __init__(self, systems: Mapping[str, Inserter], parallel: int) -> None:
        self.systems = systems
        self.held = gr.State(None, time_to_live=uploads.KEPT, delete_callback=uploads.released)
        self.made = gr.State(None, time_to_live=uploads.KEPT, delete_callback=uploads.released)
        self.centre = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3):
                self._add_picture()
            with gr.Column(scale=2, min_width=300):
                self._add_wishes()
        self._add_result()
        self._connect(parallel)

    def _add_picture(self) -> None:
        with gr.Row(equal_height=True):
            self.upload = gr.UploadButton(
                "Open a mammogram", file_types=list(uploads.ENDINGS), size="md", variant="primary"
            )
            self.example = gr.Dropdown(
                list(uploads.phantoms()),
                value=None,
                label="or a phantom",
                filterable=False,
                elem_id="insert-phantom",
            )
        self.hint = gr.Markdown(HINT)
        self.picture = gr.Image(
            show_label=False,
            interactive=False,
            height="72vh",
            buttons=["fullscreen"],
            elem_id="mammogram",
            visible=False,
        )

    def _add_wishes(self) -> None:
        first = next(iter(self.systems))
        seen = offered(self.systems[first])
        shapes = shapes_of(self.systems[first])
        self.system = gr.Radio(list(self.systems), value=first, label="System")
        with gr.Row(visible=seen == "size") as self.sizes:
            self.height = gr.Number(80, label="Height, px", precision=0, minimum=8, min_width=90)
            self.width = gr.Number(80, label="Width, px", precision=0, minimum=8, min_width=90)
        self.size_text = gr.Markdown(size_text(80, 80, None), visible=seen == "size")
        self.shape = gr.Radio(shapes, value=shapes[0], label="Shape", visible=seen == "size")
        self.factor = gr.Slider(
            0.5, 2, 1, step=0.05, label="Times the real lesion's size", visible=seen == "factor"
        )
        self.seed = gr.Number(
            0,
            label="Seed",
            info="The same seed makes the same lesion again.",
            precision=0,
            minimum=0,
        )
        self.facts = uploads.facts_inputs()
        self.make = gr.Button("Make", variant="primary", interactive=False)
        self.note = gr.Markdown(visible=False, elem_classes="note")

    def _add_result(self) -> None:
        with gr.Column(visible=False) as self.result:
            with gr.Row(equal_height=True):
                self.text = gr.Markdown(elem_id="insert-result")
                self.marked = gr.Checkbox(False, label="Show box and outline", min_width=160)
            with gr.Row():
                options: dict[str, Any] = {
                    "format": "png",
                    "interactive": False,
                    "buttons": ["fullscreen"],
                    "type": "numpy",
                }
                self.slider = gr.ImageSlider(
                    label="Before | after", max_height=640, elem_id="before-after", **options
                )
                self.detail = gr.ImageSlider(
                    label="Around it, native pixels", max_height=640, elem_id="detail", **options
                )
            self.files = gr.Files(
                label="Downloads: marked as synthetic, without patient data",
                interactive=False,
                elem_id="insert-files",
            )

    def _connect(self, parallel: int) -> None:
        quick: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        long: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": COMPUTE,
            "concurrency_limit": parallel,
        }
        opening = [
            self.held,
            self.centre,
            self.picture,
            self.hint,
            self.height,
            self.width,
            self.make,
            self.note,
            self.upload,
        ]
        self.upload.upload(self._open, [self.upload, self.held], opening, **long)
        self.example.input(self._example, [self.example, self.held], opening, **long)
        self.picture.select(
            self._place, [self.held], [self.centre, self.picture, self.hint, self.make], **quick
        )
        self.system.change(
            self._system,
            [self.system],
            [self.sizes, self.size_text, self.shape, self.factor],
            **quick,
        )
        sizes = [self.height.change, self.width.change, self.facts[2].change, self.held.change]  # type: ignore[attr-defined]
        gr.on(
            sizes,
            self._size,
            [self.held, self.height, self.width, self.facts[2]],
            [self.size_text],
            **quick,
        )
        wishes = [self.system, self.height, self.width, self.shape, self.factor, self.seed]
        made = [self.made, self.result, self.text, self.slider, self.detail, self.files, self.note]
        self.make.click(
            self._make,
            [self.held, self.centre, self.made, self.marked, *wishes, *self.facts],
            made,
            **long,
        )
        self.marked.input(self._mark, [self.made, self.marked], [self.slider, self.detail], **quick)

    def _open(self, upload: str, old: Held | None) -> Updates:
        return {self.upload: None} | uploads.told(
            self.note, lambda: self._opened(uploads.opened(upload), old)
        )

    def _example(self, name: str, old: Held | None) -> Updates:
        return uploads.told(self.note, lambda: self._opened(uploads.example(name), old))

    def _opened(self, held: Held, old: Held | None) -> Updates:
        uploads.released(old)
        spacing = held.mammogram.spacing
        height, width = (
            max(8, round(USUAL / step))
            for step in spacing or (USUAL * 16 / held.mammogram.rows,) * 2
        )
        return {
            self.held: held,
            self.centre: None,
            self.picture: gr.update(value=uploads.colour(held.shown), visible=True),
            self.hint: f"{described(held.mammogram)}. {PLACE}",
            self.height: height,
            self.width: width,
            self.make: gr.update(interactive=False),
        }

    def _place(self, held: Held | None, event: gr.SelectData) -> Updates:
        if held is None:
            return {self.hint: HINT}
        rows = held.mammogram.rows
        cols = held.mammogram.cols
        centre = uploads.native(event.index, held.shown, rows, cols)
        return {
            self.centre: centre,
            self.picture: uploads.crossed(held.shown, centre, rows, cols),
            self.hint: f"{described(held.mammogram)}. Place: row {centre[0]}, column {centre[1]}.",
            self.make: gr.update(interactive=True),
        }

    def _system(self, name: str) -> Updates:
        seen = offered(self.systems[name])
        shapes = shapes_of(self.systems[name])
        return {
            self.sizes: gr.update(visible=seen == "size"),
            self.size_text: gr.update(visible=seen == "size"),
            self.shape: gr.update(choices=shapes, value=shapes[0], visible=seen == "size"),
            self.factor: gr.update(visible=seen == "factor"),
        }

    def _size(
        self, held: Held | None, height: float | None, width: float | None, spacing: float | None
    ) -> str:
        known = held.mammogram.spacing if held else None
        return size_text(height, width, known or ((spacing, spacing) if spacing else None))

    def _make(
        self,
        held: Held | None,
        centre: Any,
        old: Made | None,
        marked: bool,
        system: str,
        *chosen: Any,
    ) -> Updates:
        return uploads.told(
            self.note,
            lambda: self._result(held, centre, old, marked, self.systems[system], *chosen),
        )

    def _result(
        self,
        held: Held | None,
        centre: Any,
        old: Made | None,
        marked: bool,
        system: Inserter,
        height: Any,
        width: Any,
        shape: str,
        factor: float,
        seed: Any,
        *facts: Any,
    ) -> Updates:
        if held is None or centre is None:
            raise DataError(
                "the mammogram is not open any more, or no place is chosen"
                if centre
                else "choose a place in a mammogram"
            )
        wish = wish_for(system, tuple(centre), height, width, shape, factor, seed)
        changed = system.change(Facts.of(*facts).added(held.mammogram), wish)
        made = pictured(changed, written(changed, held.lossy))
        uploads.released(old)
        return {
            self.made: made,
            self.result: gr.update(visible=True),
            self.text: result_text(changed),
            # Where the lesion is, the slider shows half of it.
            self.slider: gr.update(
                value=made.pair(marked),
                slider_position=50 * (made.box[1] + made.box[3]) / made.cols,
            ),
            self.detail: made.detail(marked),
            self.files: [
                str(made.folder / name)
                for name in ("synthetic.dcm", "annotations.json", "mask.png", "recipe.json")
            ],
        }

    def _mark(self, made: Made | None, marked: bool) -> Updates:
        return (
            {self.slider: made.pair(marked), self.detail: made.detail(marked)}
            if made
            else {self.slider: None, self.detail: None}
        )


def offered(system: Inserter) -> str:
    """What a system lets one choose of a lesion's size: "size", of a mass made up; "factor", of a
    real one; "" nothing.
    """
    if system.config.painter == "contextual":
        return ""
    return "factor" if system.config.real_lesions else "size"


def shapes_of(system: Inserter) -> list[str]:
    """The shapes to choose from, the first before anything is chosen."""
    return [*([OWN] if system.config.gan or system.config.lesions else []), *SHAPES]


def wish_for(
    system: Inserter,
    centre: Any,
    height: Any,
    width: Any,
    shape: str | None,
    factor: float,
    seed: Any,
) -> Wish:
    """What was chosen, as far as it counts for a system.

    Raises:
        DataError: Height or width is missing.
        pydantic.ValidationError: A value is out of range.
    """
    wish: dict[str, Any] = {"centre": centre, "seed": seed or 0}
    if offered(system) == "size":
        if not height or not width:
            raise DataError("height and width are missing")
        wish |= {"size": (height, width), "shape": None if shape == OWN else shape}
    elif offered(system) == "factor":
        wish |= {"factor": factor}
    return Wish.model_validate(wish)


def described(mammogram: Mammogram) -> str:
    """Size and side in a few words."""
    size = f"{mammogram.rows} x {mammogram.cols} px"
    size += f" of {mammogram.spacing[0]:.3g} mm" if mammogram.spacing else ", mm per px unknown"
    return ", ".join(filter(None, (size, mammogram.laterality, mammogram.view)))


def size_text(
    height: float | None, width: float | None, spacing: tuple[float, float] | None
) -> str:
    """Height and width in mm, where that is known."""
    if not height or not width:
        return "Height and width are missing."
    if not spacing:
        return "How many mm that is is not known."
    return f"That is {height * spacing[0]:.1f} x {width * spacing[1]:.1f} mm."


def result_text(changed: Changed) -> str:
    """What was made, where, how large."""
    (top, left, bottom, right) = changed.box
    spacing = changed.mammogram.spacing
    area = int(changed.mask.sum())
    mm = (
        f" = {(bottom - top) * spacing[0]:.1f} x {(right - left) * spacing[1]:.1f} mm"
        if spacing
        else ""
    )
    square = f" = {area * spacing[0] * spacing[1]:.1f} mm²" if spacing else ""
    what = (
        f"**{changed.kind.capitalize()} added.**"
        if changed.kind
        else "**Tissue refilled, where a lesion may have been.**"
    )
    return (
        f"{what} Box: rows {top} to {bottom}, columns {left} to {right}: {bottom - top} x "
        f"{right - left} px{mm}. Area: {area} px{square}."
    )


def pictured(changed: Changed, folder: Path) -> Made:
    """A result made ready to be shown.

    Args:
        folder: Of its downloads.
    """
    before = changed.before.image()
    after = changed.after.image()
    top, left, bottom, right = changed.box
    around = max(48, (bottom - top) // 2, (right - left) // 2)
    part = np.s_[max(0, top - around) : bottom + around, max(0, left - around) : right + around]
    first, second = (
        np.rint(255 * image[part][..., 0]).astype(np.uint8) for image in (before, after)
    )
    return Made(
        before=uploads.shown(before),
        after=uploads.shown(after),
        details=(first, second),
        corner=(part[0].start, part[1].start),
        rows=before.shape[0],
        cols=before.shape[1],
        box=changed.box,
        mask=changed.mask[top:bottom, left:right].copy(),
        folder=folder,
    )


def written(changed: Changed, lossy: bool) -> Path:
    """The downloads, in a folder of their own: synthetic.dcm, annotations.json, mask.png,
    recipe.json.
    """
    folder = Path(tempfile.mkdtemp(prefix="made_"))
    recipe = dict(changed.recipe)
    if "config" in recipe:
        recipe["config"] = recipe["config"] | {"tracking_uri": None}  # which may hold a password
    try:
        text = json.dumps(recipe, indent=2, sort_keys=True, allow_nan=False)
        # A picture's own file, whose ending tells `Changed.dicom` whether it was compressed with
        # loss, is gone.
        key = hashlib.sha256(text.encode()).hexdigest()
        synthetic.dicom(folder / "synthetic.dcm", changed.after, changed.mammogram, key, lossy)
        (folder / "annotations.json").write_text(
            json.dumps(changed.coco("synthetic.dcm"), indent=1), encoding="utf-8"
        )
        (folder / "mask.png").write_bytes(synthetic.mask_png(changed.mask))
        (folder / "recipe.json").write_text(f"{text}\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
