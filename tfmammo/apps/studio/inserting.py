"""The tab that inserts or removes a lesion: a click gives the place, a slider compares the result.

Every browser has its own mammogram and result (gr.State); only the systems are shared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from tfmammo.apps.studio import uploads
from tfmammo.apps.studio.uploads import COLOUR, OpenMammogram, Picture, Updates
from tfmammo.archives.writers import synthetic
from tfmammo.errors import DataError
from tfmammo.mammogram import SHAPES, Box, Mammogram, trace_borders
from tfmammo.synthesis.editor import Editor, EditRequest, EditResult

OWN_SHAPE = "the system's own"
USUAL_MM = 12.0  # height and width of a mass until the user changes them
HINT = "Open a mammogram, then click on the place of the lesion."
PLACE = "Click on the mammogram to choose a place."
OUTLINE_COLOUR = (86, 180, 233)
DOWNLOADS = ("synthetic.dcm", "annotations.json", "mask.png", "recipe.json")


@dataclass(frozen=True, eq=False)
class ResultView:
    """A result as the page shows it; all places and sizes are native px of the mammogram."""

    before: Picture  # the whole mammogram, as `uploads.to_display` returns it
    after: Picture
    details: tuple[Picture, Picture]  # the surroundings of the lesion before and after
    corner: tuple[int, int]  # top and left of the details
    rows: int
    cols: int
    box: Box
    mask: Picture  # within the box
    folder: Path  # of the downloads

    def pair(self, marked: bool) -> tuple[Picture, Picture]:
        """Return the whole mammogram before and after, RGB; `marked` draws box and outline."""
        scale = self.before.shape[0] / self.rows, self.before.shape[1] / self.cols
        after = self._draw(self.after, (0, 0), scale) if marked else uploads.to_rgb(self.after)
        return uploads.to_rgb(self.before), after

    def detail(self, marked: bool) -> tuple[Picture, Picture]:
        """Return the surroundings of the lesion before and after, like `pair`."""
        before, after = self.details
        rgb = self._draw(after, self.corner, (1.0, 1.0)) if marked else uploads.to_rgb(after)
        return uploads.to_rgb(before), rgb

    def _draw(
        self, picture: Picture, corner: tuple[int, int], scale: tuple[float, float]
    ) -> Picture:
        canvas = uploads.to_rgb(picture)
        corners = (np.reshape(self.box, (2, 2)) - corner) * scale
        (top, left), (bottom, right) = np.rint(corners).astype(int).tolist()
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), COLOUR, 1)
        for outline in trace_borders(self.mask):
            points = ((outline + self.box[:2] - corner + 0.5) * scale - 0.5)[:, ::-1]
            sixteenths = np.rint(16 * points).astype(np.int32)
            cv2.polylines(canvas, [sixteenths], True, OUTLINE_COLOUR, 1, cv2.LINE_AA, 4)
        return canvas


class InsertTab:
    """The tab's components and their events, on a gr.Blocks.

    The page shows editors by their names, and computes `parallel` requests at once.
    """

    def __init__(self, systems: Mapping[str, Editor], parallel: int) -> None:
        self.systems = systems
        self.held = uploads.add_state()
        self.view = uploads.add_state()
        self.centre = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3):
                self.upload, self.example = uploads.add_opening_inputs(
                    "Open a mammogram", "insert-phantom"
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
            with gr.Column(scale=2, min_width=300):
                self._add_options()
        self._add_result()
        self._connect(parallel)

    def _add_options(self) -> None:
        first = next(iter(self.systems))
        control = size_control(self.systems[first])
        shapes = list_shapes(self.systems[first])
        self.system = gr.Radio(list(self.systems), value=first, label="System")
        with gr.Row(visible=control == "size") as self.sizes:
            self.height = gr.Number(80, label="Height, px", precision=0, minimum=8, min_width=90)
            self.width = gr.Number(80, label="Width, px", precision=0, minimum=8, min_width=90)
        self.size_text = gr.Markdown(format_size(80, 80, None), visible=control == "size")
        self.shape = gr.Radio(shapes, value=shapes[0], label="Shape", visible=control == "size")
        self.factor = gr.Slider(
            0.5, 2, 1, step=0.05, label="Scale of the real lesion", visible=control == "factor"
        )
        again = "The same seed gives the same lesion again."
        self.seed = gr.Number(0, label="Seed", info=again, precision=0, minimum=0)
        self.facts = uploads.add_facts_inputs()
        self.make = gr.Button("Apply", variant="primary", interactive=False)
        self.note = gr.Markdown(visible=False, elem_classes="note")

    def _add_result(self) -> None:
        with gr.Column(visible=False) as self.result:
            with gr.Row(equal_height=True):
                self.text = gr.Markdown(elem_id="insert-result")
                self.marked = gr.Checkbox(False, label="Show box and outline", min_width=160)
            with gr.Row():
                self.slider, self.detail = (
                    gr.ImageSlider(
                        label=label,
                        format="png",
                        type="numpy",
                        interactive=False,
                        buttons=["fullscreen"],
                        max_height=640,
                        elem_id=element,
                    )
                    for label, element in (
                        ("Before | after", "before-after"),
                        ("Detail, native pixels", "detail"),
                    )
                )
            self.files = gr.Files(
                label="Downloads: marked as synthetic, without patient data",
                interactive=False,
                elem_id="insert-files",
            )

    def _connect(self, parallel: int) -> None:
        long = uploads.computing(parallel)
        quick = uploads.QUICK
        opening = [self.held, self.centre, self.picture, self.hint, self.height, self.width]
        opening += [self.make, self.note, self.upload, self.example, self.result, *self.facts]
        self.upload.upload(self._open, [self.upload, self.held], opening, **long)
        # Gradio's `input` comes twice for one choice, and its `select` not at all for the keyboard.
        self.example.change(self._example, [self.example, self.held], opening, **long)
        self.picture.select(
            self._place, [self.held], [self.centre, self.picture, self.hint, self.make], **quick
        )
        controls = [self.sizes, self.size_text, self.shape, self.factor]
        self.system.change(self._system, [self.system], controls, **quick)
        sized = [self.held, self.height, self.width, self.facts[2]]
        changes = [each.change for each in sized]  # type: ignore[attr-defined]
        gr.on(changes, self._size, sized, [self.size_text], **quick)
        options = [self.system, self.height, self.width, self.shape, self.factor, self.seed]
        result = [self.view, self.result, self.text, self.slider, self.detail, self.files]
        result.append(self.note)
        self.make.click(
            self._make,
            [self.held, self.centre, self.view, self.marked, *options, *self.facts],
            result,
            **long,
        )
        self.marked.input(self._mark, [self.view, self.marked], [self.slider, self.detail], **quick)

    def _open(self, upload: str, old: OpenMammogram | None) -> Updates:
        return {self.upload: None, self.example: None} | uploads.run_with_note(
            self.note, lambda: self._show(uploads.open_upload(upload), old)
        )

    def _example(self, name: str | None, old: OpenMammogram | None) -> Updates:
        if name is None:  # the user's own file replaces it
            return gr.skip()
        return uploads.run_with_note(self.note, lambda: self._show(uploads.open_phantom(name), old))

    def _show(self, held: OpenMammogram, old: OpenMammogram | None) -> Updates:
        uploads.release(old)
        # Without a spacing, the usual height is a sixteenth of the mammogram's.
        unknown = USUAL_MM * 16 / held.mammogram.rows
        spacing = held.mammogram.spacing or (unknown, unknown)
        height, width = (max(8, round(USUAL_MM / step)) for step in spacing)
        return {
            self.held: held,
            self.centre: None,
            self.picture: gr.update(value=uploads.to_rgb(held.shown), visible=True),
            self.hint: f"{describe(held.mammogram)}. {PLACE}",
            self.height: height,
            self.width: width,
            self.make: gr.update(interactive=False),
            self.result: gr.update(visible=False),
            **uploads.forget_facts(self.facts),
        }

    def _place(self, held: OpenMammogram | None, event: gr.SelectData) -> Updates:
        if held is None:
            return {self.hint: HINT}
        rows, cols = held.mammogram.rows, held.mammogram.cols
        centre = uploads.to_native(event.index, held.shown, rows, cols)
        return {
            self.centre: centre,
            self.picture: uploads.draw_cross(held.shown, centre, rows, cols),
            self.hint: f"{describe(held.mammogram)}. Place: row {centre[0]}, column {centre[1]}.",
            self.make: gr.update(interactive=True),
        }

    def _system(self, name: str) -> Updates:
        control = size_control(self.systems[name])
        shapes = list_shapes(self.systems[name])
        return {
            self.sizes: gr.update(visible=control == "size"),
            self.size_text: gr.update(visible=control == "size"),
            self.shape: gr.update(choices=shapes, value=shapes[0], visible=control == "size"),
            self.factor: gr.update(visible=control == "factor"),
        }

    def _size(self, held: OpenMammogram | None, height: Any, width: Any, spacing: Any) -> str:
        stated = (spacing, spacing) if spacing else None
        of_file = held.mammogram.spacing if held else None
        return format_size(height, width, of_file or stated)

    def _make(
        self,
        held: OpenMammogram | None,
        centre: tuple[int, int] | None,
        old: ResultView | None,
        marked: bool,
        name: str,
        height: Any,
        width: Any,
        shape: str | None,
        factor: float,
        seed: Any,
        *facts: Any,
    ) -> Updates:
        """Edit, and show the result instead of the old one."""

        def work() -> Updates:
            if centre is None:
                raise DataError("choose a place in a mammogram")
            if held is None:
                raise DataError("the mammogram is no longer open; open it again")
            system = self.systems[name]
            request = build_request(system, centre, height, width, shape, factor, seed)
            mammogram = uploads.parse_facts(*facts).add_to(held.mammogram)
            result = system.edit(mammogram, request)
            with uploads.new_folder("made_") as folder:
                write_downloads(result, folder)
                view = make_view(result, folder)
            uploads.release(old)
            middle = 50 * (view.box[1] + view.box[3]) / view.cols
            return {
                self.view: view,
                self.result: gr.update(visible=True),
                self.text: format_result(result),
                self.slider: gr.update(value=view.pair(marked), slider_position=middle),
                self.detail: view.detail(marked),
                self.files: [str(view.folder / file) for file in DOWNLOADS],
            }

        return uploads.run_with_note(self.note, work)

    def _mark(self, view: ResultView | None, marked: bool) -> Updates:
        if view is None:
            return {self.slider: None, self.detail: None}
        return {self.slider: view.pair(marked), self.detail: view.detail(marked)}


def size_control(system: Editor) -> str:
    """Return how a user sets the size of lesions: "size" if drawn, "factor" if real, or ""."""
    return next(iter(system.config.options & {"size", "factor"}), "")


def list_shapes(system: Editor) -> list[str]:
    """List the shapes to choose from; the first is the default."""
    return [*([OWN_SHAPE] if system.config.gan or system.config.lesions else []), *SHAPES]


def build_request(
    system: Editor,
    centre: tuple[int, int],
    height: Any,
    width: Any,
    shape: str | None,
    factor: float,
    seed: Any,
) -> EditRequest:
    """Build the request from the page's values, without those that the system does not use."""
    values: dict[str, Any] = {"centre": centre, "seed": seed or 0}
    if size_control(system) == "size":
        if not height or not width:
            raise DataError("height and width are missing")
        values |= {"size": (height, width), "shape": None if shape == OWN_SHAPE else shape}
    elif size_control(system) == "factor":
        values |= {"factor": factor}
    return EditRequest.model_validate(values)


def describe(mammogram: Mammogram) -> str:
    """Describe a mammogram's size, side and view in a few words."""
    size = f"{mammogram.rows} x {mammogram.cols} px"
    size += f" of {mammogram.spacing[0]:.3g} mm" if mammogram.spacing else ", mm per px unknown"
    return ", ".join(filter(None, (size, mammogram.laterality, mammogram.view)))


def format_size(
    height: float | None, width: float | None, spacing: tuple[float, float] | None
) -> str:
    """Format height and width in mm, if the spacing is known."""
    if not height or not width:
        return "Height and width are missing."
    if not spacing:
        return "The size in mm is unknown."
    return f"That is {height * spacing[0]:.1f} x {width * spacing[1]:.1f} mm."


def format_result(result: EditResult) -> str:
    """Describe a result: what was changed, where, and its size."""
    top, left, bottom, right = result.box
    spacing = result.mammogram.spacing
    area = int(result.mask.sum())
    size = f"{bottom - top} x {right - left} px"
    area_text = f"{area} px"
    if spacing:
        size += f" = {(bottom - top) * spacing[0]:.1f} x {(right - left) * spacing[1]:.1f} mm"
        area_text += f" = {area * spacing[0] * spacing[1]:.1f} mm²"
    change = "**Tissue filled in, where a lesion may have been.**"
    if result.kind:
        change = f"**{result.kind.capitalize()} added.**"
    return (
        f"{change} Box: rows {top} to {bottom}, columns {left} to {right}: {size}. "
        f"Area: {area_text}."
    )


def make_view(result: EditResult, folder: Path) -> ResultView:
    """Make the view of a result, with the folder of its downloads."""
    before = result.before.image()
    after = result.after.image()
    top, left, bottom, right = result.box
    around = max(48, (bottom - top) // 2, (right - left) // 2)
    part = np.s_[max(0, top - around) : bottom + around, max(0, left - around) : right + around]
    first, second = (
        np.rint(255 * image[part][..., 0]).astype(np.uint8) for image in (before, after)
    )
    return ResultView(
        before=uploads.to_display(before),
        after=uploads.to_display(after),
        details=(first, second),
        corner=(part[0].start, part[1].start),
        rows=before.shape[0],
        cols=before.shape[1],
        box=result.box,
        mask=result.mask[top:bottom, left:right].copy(),
        folder=folder,
    )


def write_downloads(result: EditResult, folder: Path) -> None:
    """Write the DOWNLOADS to a folder."""
    text = json.dumps(result.recipe, indent=2, sort_keys=True, allow_nan=False)
    result.write_dicom(folder / "synthetic.dcm")
    (folder / "annotations.json").write_text(
        json.dumps(result.to_coco("synthetic.dcm"), indent=1), encoding="utf-8"
    )
    (folder / "mask.png").write_bytes(synthetic.encode_mask_png(result.mask))
    (folder / "recipe.json").write_text(f"{text}\n", encoding="utf-8")
