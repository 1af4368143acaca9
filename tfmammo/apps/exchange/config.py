"""The config of `tfmammo export`, without the tools' formats."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from tfmammo.config import DataConfig, Frozen

# Sections of a train script's or a build's config, of which `data` alone counts.
_OTHERS = ("name", "model", "training", "tracking", "build")


class ExchangeOptions(Frozen):
    """The contents of the data set."""

    items: Literal["mammograms", "patches"] = "mammograms"
    """"mammograms": whole ones, after data.preprocess.remove_marks to data.preprocess.spacing;
    "patches": those of a training run with this data section, of one kind of lesion.
    """
    boxes: bool = False
    """COCO and YOLO: write boxes alone. Otherwise YOLO skips mammograms with a lesion without an
    outline.
    """


class ExchangeConfig(Frozen):
    """A config file of this command, or of a train script, whose data section counts."""

    data: DataConfig = DataConfig()
    """Mammograms, their patches, and the held-out patients."""
    exchange: ExchangeOptions = ExchangeOptions()
    """The contents of the data set."""

    @model_validator(mode="before")
    @classmethod
    def _drop_others(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if key not in _OTHERS}
