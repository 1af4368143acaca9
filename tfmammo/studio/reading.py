"""The tab that reads a mammogram: the case chain's boxes, outlines, shapes and
uncertainty, and its files.

An upload is read at once and then deleted, as its DICOM segmentation must be written while it is
there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr

import tfmammo
from tfmammo.archives.writers import segmentation
from tfmammo.inference.pipeline import Chain
from tfmammo.inference.report import outlined, overlay, report
from tfmammo.mammogram import Mammogram
from tfmammo.studio import uploads
from tfmammo.studio.uploads import COMPUTE, Facts, Updates
from tfmammo.synthesis import editor

HEADER = (
    "no.",
    "kind",
    "score",
    "box, px",
    "size, px",
    "size, mm",
    "shape",
    "uncertainty",
    "remarks",
)
HINT = """Boxes, outlines and shapes of lesions, by three trained models.
State first what the file does not.

A DICOM segmentation repeats the patient and study of its mammogram, as the standard demands.
Nothing else that comes from here names a patient."""
OVERLAY = "overlay.png"
REPORT = "report.json"
SEGMENTATION = "segmentation.dcm"


@dataclass(frozen=True)
class Results:
    """The folder of a session's downloads."""

    folder: Path


def tab(chain: Chain, parallel: int) -> None:
    """Fill a tab of a gr.Blocks.

    Args:
        chain: Shared by all sessions.
        parallel: Requests computed at once.
    """
    _Tab(chain, parallel)


class _Tab:
    """The tab's components, and what happens to them."""

    def __init__(self, chain: Chain, parallel: int) -> None:
        self.chain = chain
        self.results = gr.State(None, time_to_live=uploads.KEPT, delete_callback=uploads.released)
        gr.Markdown(HINT)
        self.facts = uploads.facts_inputs()
        with gr.Row(equal_height=True):
            self.upload = gr.UploadButton(
                "Read a mammogram", file_types=list(uploads.ENDINGS), size="md", variant="primary"
            )
            self.example = gr.Dropdown(
                list(uploads.phantoms()),
                value=None,
                label="or a phantom",
                filterable=False,
                elem_id="read-phantom",
            )
        self.note = gr.Markdown(visible=False, elem_classes="note")
        with gr.Column(visible=False) as self.found:
            self.overlay = gr.Image(
                show_label=False,
                interactive=False,
                height="72vh",
                format="png",
                buttons=["fullscreen"],
                elem_id="overlay",
            )
            self.table = gr.Dataframe(
                headers=list(HEADER), interactive=False, wrap=True, elem_id="lesions"
            )
            self.remarks = gr.Markdown()
            self.files = gr.Files(label="Downloads", interactive=False, elem_id="read-files")
        outputs = [
            self.results,
            self.note,
            self.found,
            self.overlay,
            self.table,
            self.remarks,
            self.files,
            self.upload,
        ]
        options: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": COMPUTE,
            "concurrency_limit": parallel,
        }
        self.upload.upload(
            self._upload, [self.upload, self.results, *self.facts], outputs, **options
        )
        self.example.input(self._example, [self.example, self.results], outputs, **options)

    def _upload(self, upload: str, old: Results | None, *facts: Any) -> Updates:
        def work() -> Updates:
            with uploads.taken(upload) as path:
                return self._read(Facts.of(*facts).added(editor.opened(path)), path, old)

        return {self.upload: None} | uploads.told(self.note, work)

    def _example(self, name: str, old: Results | None) -> Updates:
        return uploads.told(
            self.note, lambda: self._read(uploads.example(name).mammogram, None, old)
        )

    def _read(self, mammogram: Mammogram, source: Path | None, old: Results | None) -> Updates:
        case = self.chain.read(mammogram)
        content = report(case, self.chain)
        folder = Path(tempfile.mkdtemp(prefix="read_"))
        models = {
            stage: json.dumps(known, sort_keys=True)
            for stage, known in self.chain.describe().items()
        }
        without = segmentation.written(
            folder / SEGMENTATION, source, outlined(case), tfmammo.__version__, models
        )
        drawn = overlay(case, min(uploads.SIDE, max(mammogram.rows, mammogram.cols)))
        (folder / OVERLAY).write_bytes(cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
        content |= {"remarks": [without] if without else []}
        (folder / REPORT).write_text(
            json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        names = [REPORT, OVERLAY, *([] if without else [SEGMENTATION])]
        uploads.released(old)
        return {
            self.results: Results(folder),
            self.found: gr.update(visible=True),
            self.overlay: drawn,
            self.table: gr.update(
                value=[row(lesion, mammogram.spacing) for lesion in content["lesions"]],
                visible=bool(case.findings),
            ),
            self.remarks: "No lesion found."
            if not case.findings
            else f"{without[:1].upper()}{without[1:]}",
            self.files: [str(folder / name) for name in names],
        }


def row(lesion: Mapping[str, Any], spacing: tuple[float, float] | None) -> list[str]:
    """A line of the table, in the order of HEADER.

    Args:
        lesion: Of a report.
        spacing: Mm per px.
    """
    top, left, bottom, right = lesion["mask_box"] or lesion["box"]
    height = bottom - top
    width = right - left
    size = f"{height * spacing[0]:.1f} x {width * spacing[1]:.1f}" if spacing else "unknown"
    shapes = lesion["shape_probabilities"] or {}
    shape = (
        f"{lesion['shape']} {shapes[lesion['shape']]:.2f}" if shapes and lesion["shape"] else "-"
    )
    uncertainty = "-" if lesion["uncertainty"] is None else f"{lesion['uncertainty']:.3f}"
    box = ", ".join(str(edge) for edge in lesion["box"])
    remarks = "; ".join(lesion["remarks"])
    return [
        str(lesion["number"]),
        lesion["kind"],
        f"{lesion['score']:.2f}",
        box,
        f"{height} x {width}",
        size,
        shape,
        uncertainty,
        remarks,
    ]
