"""What the studio reads from its config; without Gradio, so that --help needs no extra."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from tfmammo.apps.reader_study.cases import ReaderStudyConfig
from tfmammo.config import Frozen
from tfmammo.inference.pipeline import PipelineConfig
from tfmammo.synthesis.editor import EditorConfig


class StudioConfig(Frozen):
    """What the studio offers, and where it listens."""

    systems: dict[str, EditorConfig] = {}
    """Editors, which insert or remove lesions, by the names that the page shows."""
    pipeline: PipelineConfig | None = None
    """The CAD pipeline that reads mammograms."""
    study: ReaderStudyConfig | None = None
    """A reader study. At least one of systems, pipeline and study must be given."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only."""
    port: int = Field(default=7860, ge=1, le=65535)
    """Port to listen on."""
    names: tuple[str, ...] = ()
    """Further names and addresses of this machine. Requests to other names are refused, unless
    other machines reach `host` and no names are given.
    """
    upload_mb: PositiveInt = 100
    """Largest upload, MB."""
    total_mb: PositiveInt = 2000
    """Largest total of the uploads and results kept for open pages, MB; beyond it, uploads are
    refused.
    """
    parallel: PositiveInt = 2
    """Requests that are computed at once; others wait."""

    @model_validator(mode="after")
    def _consistent(self) -> StudioConfig:
        if not (self.systems or self.pipeline or self.study):
            raise ValueError("one of systems, pipeline and study must be given")
        if self.total_mb < self.upload_mb:
            raise ValueError(f"total_mb must be at least upload_mb ({self.upload_mb})")
        return self
