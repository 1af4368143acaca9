"""What a config says of a data set for another tool."""

from __future__ import annotations

from typing import Any, Literal

from tfmammo.config import DataConfig, Frozen


class ExchangeOptions(Frozen):
    """What the data set holds."""

    items: Literal["mammograms", "patches"] = "mammograms"
    """"mammograms": whole ones, after data.preprocess.remove_marks to data.preprocess.spacing;
    "patches": those that a training with this data section sees, of one kind of lesion.
    """
    boxes: bool = False
    """COCO and YOLO: write boxes alone. Without it YOLO leaves out mammograms with a lesion of
    which the archive gives no outline.
    """


class ExchangeConfig(Frozen):
    """A config file of this command, or of a training, whose data section counts."""

    data: DataConfig = DataConfig()
    """Which mammograms, which patches of them, and which patients are held out."""
    exchange: ExchangeOptions = ExchangeOptions()
    """What the data set holds."""
    name: str | None = None
    """Not used."""
    model: dict[str, Any] = {}
    """Not used: a training's."""
    training: dict[str, Any] = {}
    """Not used: a training's."""
    tracking: dict[str, Any] = {}
    """Not used: a training's."""
    build: dict[str, Any] = {}
    """Not used: that of `tfmammo build`."""
