"""The task of one training: what is trained, on which patches, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfmammo.config import Experiment
from tfmammo.data.patches import Patches, PatchSource
from tfmammo.training.contract import TrainableModel, Validate, Write

Mode = Literal["max", "min"]


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """The arguments of `loop.fit`, which documents them."""

    build: Callable[[], TrainableModel]
    experiment: Experiment[Any]
    train: PatchSource
    held_out: Patches
    output: Path
    validate: Validate
    monitor: str
    mode: Mode
    seen_patients: tuple[str, ...]
    write: Write

    @property
    def classes(self) -> int:
        """How many classes share every batch equally."""
        return self.train.balanced_classes

    @property
    def sign(self) -> int:
        """1 where a higher value of the monitored metric is better, else -1."""
        return 1 if self.mode == "max" else -1
