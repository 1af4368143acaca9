"""The config of a memory audit."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo.config import Frozen
from tfmammo.metrics import perceptual


class AuditConfig(Frozen):
    """A generator, patches that it was and was not trained on, and the rule of the verdict."""

    model: str
    """A run, an export, or models:/NAME/VERSION, with a function from mask or tri_label to image.
    """
    data: dict[str, Any] = {}
    """Keys of DataConfig that name the archive of the training run, with its held-out patients; the
    model's card gives the others.
    """
    count: int = Field(default=200, ge=12)
    """Largest number of training patches, and of unseen ones."""
    limit: float = Field(default=0.6, gt=0.5, lt=1)
    """An attack that separates training from unseen patches with a higher AUC is a leak."""
    copy_below: PositiveFloat = perceptual.COPY
    """A patch is a copy if its distance to a training patch is below this part of the median
    distance of real unseen patches.
    """
    networks: bool = True
    """Also compare LPIPS and Inception features, if the folder TFMAMMO_WEIGHTS has both."""
    write_card: bool = True
    """Write the verdict into the export's card, or into the tags of a registered version."""
    rows: PositiveInt = 8
    """Rows of the grid of the nearest patches."""
    tracking_uri: str | None = None
    """MLflow's store of models:/ URIs. If set, the audit is logged there as a run."""
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Simultaneous confidence level of the verdict's intervals."""
    seed: NonNegativeInt = 0
    """Seed of all draws."""
