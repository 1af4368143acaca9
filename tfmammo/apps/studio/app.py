"""The studio's page, with the tabs that its config asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp

from tfmammo.apps.reader_study.session import ReaderStudy
from tfmammo.apps.serving import web
from tfmammo.apps.studio import guard, inserting, judging, reading, windowing
from tfmammo.apps.studio.config import StudioConfig
from tfmammo.errors import ConfigError, TfmammoError
from tfmammo.inference.pipeline import Pipeline
from tfmammo.synthesis.editor import Editor

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512  # a browser opens several

ABOUT = (
    "# tfmammo studio\nFor research and teaching, not for diagnosis. Images that are made here are "
    "synthetic, and their files say so."
)
STYLE = """
.gradio-container { max-width: 1500px !important; margin: auto; }
#mammogram, #overlay { background: black; }
#mammogram img { cursor: crosshair; object-fit: contain; }
.note { padding: 0.6em 0.9em; border-left: 4px solid #d55e00;
        background: color-mix(in srgb, #d55e00 12%, transparent); }
"""

Section = TypeVar("Section")
Loaded = TypeVar("Loaded")


def build(config: StudioConfig) -> gr.Blocks:
    """Load all models and lay out the page.

    Raises:
        ConfigError: A model can't be loaded; the sentence names its key.
    """
    systems = {
        name: _load(f"systems.{name}", Editor.load, system)
        for name, system in config.systems.items()
    }
    pipeline = _load("case", Pipeline.load, config.case) if config.case else None
    study = _load("study", ReaderStudy, config.study) if config.study else None
    with gr.Blocks(
        title="tfmammo studio", analytics_enabled=False, delete_cache=(60, 3600)
    ) as page:
        gr.Markdown(ABOUT)
        windowing.add_controls()
        if systems:
            with gr.Tab("Insert or remove"):
                inserting.add_tab(systems, config.parallel)
        if pipeline:
            with gr.Tab("Read"):
                reading.add_tab(pipeline, config.parallel)
        if study:
            with gr.Tab("Reader study"):
                judging.add_tab(study)
    return page


def serve(config: StudioConfig, folder: Path) -> None:
    """Show the page until Ctrl-C.

    Args:
        config: What to offer, and where to listen.
        folder: A private folder, the only one whose files are served.

    Raises:
        ConfigError: A model can't be loaded.
        OSError: The port is in use.
    """
    app = make_application(build(config), config, folder)
    with web.listen(config.host, config.port) as listener:
        log.info("the studio is at http://%s:%s", config.host, config.port)
        web.make_server(app, MAX_CONNECTIONS).run([listener])


def make_application(page: gr.Blocks, config: StudioConfig, folder: Path) -> ASGIApp:
    """Return the ASGI application that serves the page, with its checks and limits.

    Args:
        page: The page.
        config: What to offer, and where to listen.
        folder: See `serve`.
    """
    page.queue(default_concurrency_limit=8, max_size=200)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        "/",
        config.host,
        config.port,
        footer_links=[],
        max_file_size=config.upload_mb * 2**20,
        allowed_paths=[str(folder)],
        show_error=False,
        ssr_mode=False,
        theme=make_theme(),
        css=STYLE + windowing.STYLE,
    )
    bounded = guard.BoundedUploads(app, folder, config.total_mb * 2**20)
    return web.guard(bounded, config.host, config.names)


def make_theme() -> gr.themes.Base:
    """Make a plain theme with the system's fonts, so that nothing is fetched from other sites."""
    return gr.themes.Base(
        primary_hue="sky",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def _load(key: str, load: Callable[[Section], Loaded], config: Section) -> Loaded:
    """Load a section of the config; errors name its key."""
    try:
        return load(config)
    except TfmammoError as error:
        raise ConfigError(f"{key}: {error}") from error
