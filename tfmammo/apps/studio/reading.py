"""The tab of the CAD pipeline: boxes, outlines, shapes and uncertainty of lesions, and their files.

An upload is read at once and then deleted; its DICOM segmentation needs it and is written before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from tfmammo import filesystem
from tfmammo.apps.studio import uploads
from tfmammo.apps.studio.uploads import Updates
from tfmammo.inference.pipeline import Pipeline
from tfmammo.inference.report import build_report, draw_overlay, write_segmentation
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis import editor
from tfmammo.training.image_grid import encode_rgb_png

OVERLAY = "overlay.png"
REPORT = "report.json"
SEGMENTATION = "segmentation.dcm"
HEADER = "no. | kind | score | box, px | size, px | size, mm | shape | uncertainty | remarks"
HINT = """Trained models find lesions, and mark their boxes, outlines and, by a classifier, shapes.
First state what the file does not.

A DICOM segmentation repeats the patient and study of its mammogram, as the standard requires.
No other download names a patient."""


@dataclass(frozen=True)
class Results:
    """The folder of a session's downloads."""

    folder: Path


class ReadTab:
    """The tab's components and their events, on a gr.Blocks; all sessions share the pipeline."""

    def __init__(self, pipeline: Pipeline, parallel: int) -> None:
        self.pipeline = pipeline
        self.results = uploads.add_state()
        gr.Markdown(HINT)
        self.facts = uploads.add_facts_inputs()
        self.upload, self.example = uploads.add_opening_inputs("Read a mammogram", "read-phantom")
        self.note = gr.Markdown(visible=False, elem_classes="note")
        with gr.Column(visible=False) as self.findings:
            self.overlay = gr.Image(
                show_label=False,
                interactive=False,
                height="72vh",
                format="png",
                buttons=["fullscreen"],
                elem_id="overlay",
            )
            self.table = gr.Dataframe(
                headers=HEADER.split(" | "), interactive=False, wrap=True, elem_id="lesions"
            )
            self.remarks = gr.Markdown()
            self.files = gr.Files(label="Downloads", interactive=False, elem_id="read-files")
        outputs = [self.results, self.note, self.findings, self.overlay, self.table, self.remarks]
        outputs += [self.files, self.upload, self.example, *self.facts]
        options = uploads.computing(parallel)
        self.upload.upload(
            self._upload, [self.upload, self.results, *self.facts], outputs, **options
        )
        # Gradio's `input` comes twice for one choice, and its `select` not at all for the keyboard.
        self.example.change(self._example, [self.example, self.results], outputs, **options)

    def _upload(self, upload: str, old: Results | None, *facts: Any) -> Updates:
        def work() -> Updates:
            with uploads.claim(upload) as path:
                mammogram = uploads.parse_facts(*facts).add_to(editor.open_mammogram(path))
                return self._read(mammogram, path, old) | uploads.forget_facts(self.facts)

        return {self.upload: None, self.example: None} | self._run(work)

    def _example(self, name: str | None, old: Results | None) -> Updates:
        if name is None:  # the user's own file replaces it
            return gr.skip()
        return self._run(lambda: self._read(uploads.open_phantom(name).mammogram, None, old))

    def _run(self, work: Callable[[], Updates]) -> Updates:
        """Do the work, or hide what was found in another mammogram."""
        return {self.findings: gr.update(visible=False)} | uploads.run_with_note(self.note, work)

    def _read(self, mammogram: Mammogram, source: Path | None, old: Results | None) -> Updates:
        result = self.pipeline.predict(mammogram)
        overlay = draw_overlay(result, min(uploads.MAX_SIDE, max(mammogram.rows, mammogram.cols)))
        with uploads.new_folder("read_") as folder:
            (folder / OVERLAY).write_bytes(encode_rgb_png(overlay))
            reason = write_segmentation(self.pipeline, result, source, folder / SEGMENTATION)
            content = build_report(result, self.pipeline)
            shown = [reason if result.findings else "no lesion found", *content["remarks"]]
            content["remarks"] += [reason] if reason else []
            (folder / REPORT).write_text(filesystem.to_json(content), encoding="utf-8")
            names = [REPORT, OVERLAY]
            if not reason:
                names.append(SEGMENTATION)
        rows = [format_row(lesion, mammogram.spacing) for lesion in content["lesions"]]
        uploads.release(old)
        return {
            self.results: Results(folder),
            self.findings: gr.update(visible=True),
            self.overlay: overlay,
            self.table: gr.update(value=rows, visible=bool(rows)),
            self.remarks: "\n\n".join(f"{line[:1].upper()}{line[1:]}." for line in shown if line),
            self.files: [str(folder / name) for name in names],
        }


def format_row(lesion: Mapping[str, Any], spacing: tuple[float, float] | None) -> list[str]:
    """Format an entry of a report's "lesions" as a row of the table, in the order of HEADER."""
    top, left, bottom, right = lesion["mask_box"] or lesion["box"]
    height = bottom - top
    width = right - left
    size = f"{height * spacing[0]:.1f} x {width * spacing[1]:.1f}" if spacing else "unknown"
    probabilities = lesion["shape_probabilities"] or {}
    shape = lesion["shape"]
    uncertainty = "-" if lesion["uncertainty"] is None else f"{lesion['uncertainty']:.3f}"
    return [
        str(lesion["number"]),
        lesion["kind"],
        f"{lesion['score']:.2f}",
        ", ".join(str(edge) for edge in lesion["box"]),
        f"{height} x {width}",
        size,
        f"{shape} {probabilities[shape]:.2f}" if probabilities and shape else "-",
        uncertainty,
        "; ".join(lesion["remarks"]),
    ]
