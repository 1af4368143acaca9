"""The studio's page: which tabs it has follows from its config."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import gradio as gr
from fastapi import FastAPI
from pydantic import Field, PositiveInt, model_validator

from tfmammo.config import Frozen
from tfmammo.errors import ConfigError, TfmammoError
from tfmammo.inference.pipeline import CaseConfig, Chain
from tfmammo.reader_study.cases import ReaderStudyConfig
from tfmammo.reader_study.session import ReaderStudy
from tfmammo.serving import connections, local
from tfmammo.studio import guard, inserting, judging, reading
from tfmammo.synthesis.editor import Inserter, SystemConfig

log = logging.getLogger(__name__)

ABOUT = (
    "# tfmammo studio\nFor research and teaching, not for diagnosis. What is made here is "
    "synthetic, and its files say so."
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


class StudioConfig(Frozen):
    """What the studio offers, and to whom."""

    systems: dict[str, SystemConfig] = {}
    """By the names that the page shows, what sets lesions in or takes them out."""
    case: CaseConfig | None = None
    """The chain that reads mammograms."""
    study: ReaderStudyConfig | None = None
    """A reader study. One of the three at least."""
    host: str = "127.0.0.1"
    """Where it listens."""
    port: int = Field(default=7860, ge=1, le=65535)
    """Where it listens."""
    names: tuple[str, ...] = ()
    """That its machine is reached by, besides its own and its addresses; what is sent to another
    name is refused.
    """
    upload_mb: PositiveInt = 100
    """Of one file, at most."""
    total_mb: PositiveInt = 2000
    """Of all files that it keeps for its pages, uploads and results; beyond, uploads are refused.
    """
    parallel: PositiveInt = 2
    """Requests that are computed at once; others wait."""

    @model_validator(mode="after")
    def _consistent(self) -> StudioConfig:
        if not (self.systems or self.case or self.study):
            raise ValueError("systems, case or study: one of them must be given")
        if self.total_mb < self.upload_mb:
            raise ValueError(f"total_mb must be at least upload_mb ({self.upload_mb})")
        return self


def build(config: StudioConfig) -> gr.Blocks:
    """Load all models and lay out the page.

    Raises:
        ConfigError: One of them can't be loaded; the sentence names its key.
    """
    systems = {
        name: _loaded(f"systems.{name}", Inserter.load, system)
        for name, system in config.systems.items()
    }
    chain = _loaded("case", Chain.load, config.case) if config.case else None
    study = _loaded("study", ReaderStudy, config.study) if config.study else None
    with gr.Blocks(
        title="tfmammo studio", analytics_enabled=False, delete_cache=(60, 3600)
    ) as page:
        gr.Markdown(ABOUT)
        if systems:
            with gr.Tab("Insert or remove"):
                inserting.tab(systems, config.parallel)
        if chain:
            with gr.Tab("Read"):
                reading.tab(chain, config.parallel)
        if study:
            with gr.Tab("Reader study"):
                judging.tab(study)
    return page


def serve(config: StudioConfig, folder: Path) -> None:
    """Show the page until Ctrl-C.

    Args:
        folder: Private; the only one of which files are handed out.

    Raises:
        ConfigError: A model can't be loaded.
        OSError: The port is taken.
    """
    page = build(config)
    if config.host not in local.NAMES:
        log.warning(
            "host=%s: whoever reaches this machine can use the studio, there is no password",
            config.host,
        )
    with connections.listening(config.host, config.port) as listener:
        guard.watch(page, folder / "gradio")
        log.info("the studio is at http://%s:%s", config.host, config.port)
        connections.serve(application(page, config, folder), listener)


def application(page: gr.Blocks, config: StudioConfig, folder: Path) -> local.Application:
    """The page as it answers requests.

    Args:
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
        theme=theme(),
        css=STYLE,
    )
    megabyte = 2**20
    return local.SameOrigin(
        guard.Bounded(app, folder, config.upload_mb * megabyte, config.total_mb * megabyte),
        config.names,
    )


def theme() -> gr.themes.Base:
    """A quiet look, with the system's own fonts: nothing is fetched from elsewhere."""
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Base(primary_hue="sky", neutral_hue="slate", font=fonts[0], font_mono=fonts[1])


def _loaded(key: str, load: Callable[[Section], Loaded], config: Section) -> Loaded:
    """A part of the config, loaded; its errors name the key."""
    try:
        return load(config)
    except ValueError as error:
        if not isinstance(error, TfmammoError):
            raise
        raise ConfigError(f"{key}: {error}") from error
