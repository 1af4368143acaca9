"""Controls of the classifier study: what else could take the place of synthetic patches.

A gain from synthetic patches is the generator's only where simpler patches don't bring it. Each
control makes as many patches of each class as the synthetic set has, out of real training patches:

    copies        lesions and normal patches once more
    pasted        a lesion, cut out along its outline and pasted into a normal patch; normal patches
    brightened    a normal patch, brighter within the outline of a synthetic lesion by as much as
                  synthetic lesions are on average; normal patches
    fresh         lesions and normal patches of training patients whom no classifier sees otherwise

The last one is a positive control: what a perfect generator would bring. Where it brings nothing
either, the study could not have found a gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.models.classifier import Control

CONTROLS: tuple[Control, ...] = ("copies", "pasted", "brightened")
IN_WORDS: Mapping[Control, str] = {
    "copies": "the same ones again",
    "pasted": "a lesion pasted into normal tissue",
    "brightened": "normal tissue brightened by as much as synthetic lesions are",
    "fresh": "those of patients whom no other run sees",
}


def make_control(control: Control, real: Patches, synthetic: Patches, seed: int = 0) -> Patches:
    """Make the patches that take the place of a synthetic set.

    Args:
        control: Which ones.
        real: Training patches, labelled 0 negative and 1 positive, with the lesions' masks; for
            "fresh" those of the patients held back.
        synthetic: Patches of the kinds mass, calcification and normal, with masks of what was
            added.
        seed: Decides which real patches are drawn.

    Returns:
        As many patches as the set has, of the same kinds in the same order.
    """
    if not len(real):
        raise DataError(f"the control {control}: no patient is held back (model.patient_parts=1)")
    random = np.random.default_rng(seed)
    is_lesion = (synthetic.kinds != "normal").astype(np.uint8)
    lesions = np.flatnonzero(real.labels == 1)
    if control == "pasted":
        lesions = lesions[real.masks[lesions].any(axis=(1, 2, 3))]
        if not len(lesions):
            raise DataError("the control pasted: no training patch shows the outline of a lesion")
    normal = np.flatnonzero(real.kinds == "normal")  # negatives may be benign lesions as well
    backgrounds = normal[random.integers(len(normal), size=len(synthetic))]
    sources = lesions[random.integers(len(lesions), size=len(synthetic))]

    is_untouched = control in ("copies", "fresh")
    rows = np.where(is_lesion > 0, sources, backgrounds) if is_untouched else backgrounds
    images = real.images[rows]
    masks = real.masks[rows]
    if control == "pasted":
        masks = real.masks[sources] * is_lesion[:, None, None, None]
        images = np.where(masks > 0, real.images[sources], images)
    elif control == "brightened":
        masks = synthetic.masks * is_lesion[:, None, None, None]
        images = np.clip(images + _measure_dose(images, synthetic, masks) * masks, 0, 1)
    return replace(
        synthetic,
        images=images.astype(np.float32),
        masks=masks,
        patient_ids=real.patient_ids[rows],
        ids=np.array([f"{control}/{number:06d}" for number in range(len(synthetic))]),
    )


def _measure_dose(
    backgrounds: NDArray[np.float32], synthetic: Patches, masks: NDArray[np.uint8]
) -> float:
    """Measure by how much synthetic lesions are brighter than normal patches at the same place."""
    inside = masks > 0
    if not inside.any():
        return 0.0
    return float(np.mean(synthetic.images[inside], dtype=np.float64)) - float(
        np.mean(backgrounds[inside], dtype=np.float64)
    )
