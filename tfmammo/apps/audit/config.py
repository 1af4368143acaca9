"""The config of a memory audit."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo.config import Frozen
from tfmammo.metrics import perceptual


class AuditConfig(Frozen):
    """A generator, the patches that it was and was not trained on, and the rule of the verdict."""

    model: str
    """A run, an export, or models:/NAME/VERSION, whose networks lead from mask or tri_label to
    image.
    """
    data: dict[str, Any] = {}
    """Keys of DataConfig that say where the patches are; the model's card gives the others. It must
    be the archive of the training, with patients that it held out.
    """
    count: int = Field(default=200, ge=12)
    """Training patches, and as many unseen ones, at most."""
    limit: float = Field(default=0.6, gt=0.5, lt=1)
    """An attack that tells training patches from unseen ones with more than this AUC is a leak."""
    copy_below: PositiveFloat = perceptual.COPY
    """A patch is a copy if its distance to a training patch is below this part of the median
    distance of real unseen patches.
    """
    networks: bool = True
    """Whether to compare in LPIPS and Inception features, too, where the folder that
    TFMAMMO_WEIGHTS names has both.
    """
    write_card: bool = True
    """Whether to write the verdict into the export's card, or into the tags of a registered
    version.
    """
    rows: PositiveInt = 8
    """Rows of the picture of the nearest patches."""
    tracking_uri: str | None = None
    """The store of models:/ URIs. Where it is set, the audit is logged there as a run, too."""
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of all intervals of the verdict together."""
    seed: NonNegativeInt = 0
    """Seed of all draws."""
