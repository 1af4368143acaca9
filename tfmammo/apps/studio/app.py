"""The studio's page, with the tabs that its config asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import gradio as gr
from fastapi import FastAPI

from tfmammo.apps.reader_study.session import ReaderStudy
from tfmammo.apps.serving import web
from tfmammo.apps.studio import guard, uploads
from tfmammo.apps.studio.config import StudioConfig
from tfmammo.apps.studio.inserting import InsertTab
from tfmammo.apps.studio.judging import StudyTab
from tfmammo.apps.studio.reading import ReadTab
from tfmammo.errors import ConfigError, TfmammoError
from tfmammo.inference.pipeline import Pipeline
from tfmammo.synthesis.editor import Editor

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512  # a browser opens several
FETCH_SECONDS = 3  # after which an answer that was not fetched is fetched

ABOUT = (
    "# tfmammo studio\nFor research and teaching, not for diagnosis. Images made with it are "
    "synthetic, and their files say so."
)
STYLE = """
.gradio-container { max-width: 1500px !important; margin: auto; }
#mammogram, #overlay { background: black; }
#mammogram img { cursor: crosshair; object-fit: contain; }
.note { padding: 0.6em 0.9em; border-left: 4px solid #d55e00;
        background: color-mix(in srgb, #d55e00 12%, transparent); }
"""

# Window and level of every mammogram on the page, as in a radiology viewer: the browser maps
# intensities from level - window / 2 to level + window / 2 to black to white. Nothing is sent, no
# file changes, and both images of a pair change alike. The images have 256 levels, so a narrow
# window shows steps.
FILTER = "grey-window"
_CHANNELS = "".join(f'<feFunc{name} type="linear" slope="1" intercept="0"/>' for name in "RGB")
# A filter that is not displayed at all would make the pictures vanish.
SVG = (
    '<svg width="0" height="0" style="position: absolute" aria-hidden="true">'
    f'<filter id="{FILTER}" color-interpolation-filters="sRGB">'
    f"<feComponentTransfer>{_CHANNELS}</feComponentTransfer></filter></svg>"
)
WINDOW_STYLE = f"""
#mammogram img, #overlay img, #before-after img, #detail img, .pictures img {{
    filter: url(#{FILTER}); }}
"""
# grey -> (grey - (level - window / 2)) / window
APPLY = f"""
(window_, level) => {{
    const slope = 100 / window_;
    const intercept = 0.5 - level / window_;
    for (const map of document.querySelectorAll('#{FILTER} feComponentTransfer > *')) {{
        map.setAttribute('slope', slope);
        map.setAttribute('intercept', intercept);
    }}
}}
"""
# Else the arrow keys that answer a reader study would move the slider.
LEAVE = "() => document.activeElement?.blur()"

Section = TypeVar("Section")
Loaded = TypeVar("Loaded")


def build(config: StudioConfig) -> gr.Blocks:
    """Load all models and lay out the page."""
    systems = {
        name: _load(f"systems.{name}", Editor.load, system)
        for name, system in config.systems.items()
    }
    pipeline = _load("pipeline", Pipeline.load, config.pipeline) if config.pipeline else None
    study = _load("study", ReaderStudy, config.study) if config.study else None
    with gr.Blocks(
        title="tfmammo studio", analytics_enabled=False, delete_cache=(60, 3600)
    ) as page:
        gr.Markdown(ABOUT)
        add_windowing()
        if systems:
            with gr.Tab("Insert or remove"):
                InsertTab(systems, config.parallel)
        if pipeline:
            with gr.Tab("Read"):
                ReadTab(pipeline, config.parallel)
        if study:
            with gr.Tab("Reader study"):
                StudyTab(study)
        # Where an event begins while Gradio closes the connection of the last one, nobody fetches
        # its answer until the next event, and until then further clicks are ignored.
        gr.Timer(FETCH_SECONDS).tick(lambda: None, trigger_mode="multiple", **uploads.QUICK)
    return page


def serve(config: StudioConfig, folder: Path) -> None:
    """Show the page until Ctrl-C; `folder` is private, and has all uploads and downloads."""
    page = build(config)
    page.queue(default_concurrency_limit=8, max_size=200)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        "/",
        config.host,
        config.port,
        footer_links=[],
        max_file_size=config.upload_mb * 2**20,
        show_error=False,
        ssr_mode=False,
        # the system's fonts, so that nothing is fetched from other sites
        theme=gr.themes.Base(
            primary_hue="sky",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=STYLE + WINDOW_STYLE,
    )
    bounded = guard.BoundedUploads(app, folder, config.total_mb * 2**20)
    guarded = web.guard(bounded, config.host, config.names)
    with web.listen(config.host, config.port) as listener:
        log.info("the studio is at http://%s:%s", config.host, config.port)
        web.make_server(guarded, MAX_CONNECTIONS).run([listener])


def add_windowing() -> None:
    """Add the two sliders to a gr.Blocks, for all pictures of all its tabs."""
    gr.HTML(SVG, padding=False)
    with gr.Accordion("Window and level", open=False), gr.Row():
        window = gr.Slider(5, 200, 100, step=1, label="Window, % of the grey scale")
        level = gr.Slider(0, 100, 50, step=1, label="Level, % of the grey scale")
    for slider in (window, level):
        slider.change(None, [window, level], js=APPLY, api_visibility="private")
        slider.release(None, js=LEAVE, api_visibility="private")


def _load(key: str, load: Callable[[Section], Loaded], config: Section) -> Loaded:
    """Load a section of the config; errors name its key."""
    try:
        return load(config)
    except TfmammoError as error:
        raise ConfigError(f"{key}: {error}") from error
