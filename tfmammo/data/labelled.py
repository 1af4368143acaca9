"""Label patches of lesions and of normal tissue: by pathology, or a lesion or none.

Generators of lesions and classifiers learn from them. config.sampling.count patches near lesions
are asked for, and sampling.normals normal ones, or as many.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from tfmammo.config import DataConfig
from tfmammo.data.extraction import make_patches_of
from tfmammo.data.patches import SEVERITY, Patches
from tfmammo.data.preprocess import preprocess_mammogram
from tfmammo.data.windows import crop_window
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped

log = logging.getLogger(__name__)

CUT_OFF = "its mask touches the border of its patch, where the rest of it may be cut off"


def make_pathology_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped, malignant: bool = True
) -> Patches:
    """Make malignant (0), benign (1) and normal (2) patches, labelled and balanced.

    Otherwise as `make_patches`; config.patches is not read. Without `malignant` every lesion counts
    as malignant, for archives that seldom state a lesion's pathology.
    """
    wanted = SEVERITY[:2] if malignant else None
    patches = _make_near_and_normal(mammograms, config, skipped, wanted)
    labels: Any = 2 * (patches.kinds == "normal")
    if malignant:
        labels = [SEVERITY.index(name) for name in patches.pathologies.tolist()]
    return check_pathologies(patches.with_labels(labels, balanced=True), malignant)


def _make_near_and_normal(
    mammograms: Iterable[Mammogram],
    config: DataConfig,
    skipped: Skipped,
    pathologies: Collection[str] | None,
) -> Patches:
    """Make patches near lesions of these pathologies (None: of all), then normal ones."""
    records = list(mammograms)
    if config.window is None:
        low, high = config.percentiles
        log.warning(
            "data.window is not set: percentiles %g and %g of each patch become 0 and 1, which "
            "hides what a lesion adds",
            low,
            high,
        )
    near = make_patches_of("offset", records, config, skipped)
    normal = _make_normal(records, config, skipped)
    if pathologies is not None:
        for name in near.ids[near.pathologies == ""].tolist():
            skipped.add(name, "the archive does not state the lesion's pathology")
        near = near.take(np.flatnonzero(np.isin(near.pathologies, list(pathologies))))
    return near.concatenate(normal)


def check_pathologies(patches: Patches, malignant: bool = True) -> Patches:
    """Return the patches if each class (without `malignant` the first and the last) is there."""
    counts = {name: int(np.sum(patches.labels == label)) for label, name in enumerate(SEVERITY[:3])}
    missing = [
        name for name, count in counts.items() if count == 0 and (malignant or name != "benign")
    ]
    if missing:
        held = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise DataError(
            f"no {' and no '.join(missing)} patch to tell from the others: {held}; take another "
            "fold, or an archive with all three"
            + (" (model.positives=lesion needs no pathology)" if malignant else "")
        )
    return patches


def make_binary_patches(
    mammograms: Iterable[Mammogram],
    config: DataConfig,
    skipped: Skipped,
    malignant: bool = True,
    benign: bool = False,
) -> Patches:
    """Make patches near lesions, labelled 1, and normal ones, labelled 0, balanced."""
    wanted = (SEVERITY[:2] if benign else SEVERITY[:1]) if malignant else None
    patches = _make_near_and_normal(mammograms, config, skipped, wanted)
    positive = patches.pathologies == "malignant" if malignant else patches.kinds != "normal"
    return check_binary(patches.with_labels(positive, balanced=True), "the archive")


def make_blend_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped
) -> Patches:
    """Make patches around lesions, labelled 1, and normal ones to blend them into, labelled 0.

    They are balanced. config.patches is not read. `measure_scale` replaces a scale of null.
    """
    records = list(mammograms)
    around = make_patches_of("lesion", records, config, skipped)
    inside = around.masks[:, 1:-1, 1:-1].sum(axis=(1, 2, 3)) == around.masks.sum(axis=(1, 2, 3))
    for name in around.ids[~inside].tolist():
        skipped.add(name, CUT_OFF)
    around = around.take(np.flatnonzero(inside))
    if config.sampling.scale is None:
        scale = measure_scale(records, config, around.ids.tolist())
        sampling = config.sampling.model_copy(update={"scale": scale})
        config = config.model_copy(update={"sampling": sampling})
    patches = around.concatenate(_make_normal(records, config, skipped))
    return check_binary(
        patches.with_labels(patches.kinds != "normal", balanced=True), "the archive"
    )


def measure_scale(
    mammograms: Iterable[Mammogram], config: DataConfig, ids: Collection[str]
) -> tuple[float, ...]:
    """Measure by which factors lesions' windows are enlarged to patches.

    Tissue of other windows could be distinguished from lesions by its resolution alone.
    """
    wanted = set(ids)
    scales = []
    for mammogram in mammograms:
        lesions = tuple(
            lesion
            for number, lesion in enumerate(mammogram.lesions)
            if f"{mammogram.image_id}#{number}" in wanted
        )
        if not lesions:
            continue
        # as patches are: preprocessed, then cut
        moved = preprocess_mammogram(replace(mammogram, lesions=lesions), config.preprocess)
        for lesion in moved.lesions:
            top, _, bottom, _ = crop_window(lesion.box, moved, config)
            scales.append(config.size / (bottom - top))
    if not scales:
        raise DataError(
            f"data.sampling.scale: null takes windows around single lesions, and data.frame="
            f"{config.frame} has none; set two numbers"
        )
    deciles = np.percentile(scales, np.arange(10, 100, 10)).tolist()
    log.info("normal patches are scaled by %.3g to %.3g, as lesions are", deciles[0], deciles[-1])
    return tuple(deciles)


def check_binary(patches: Patches, where: str) -> Patches:
    """Return the patches if some are of lesions and some normal; labels of normal ones are even."""
    positives = int(np.sum(patches.labels % 2 == 1))
    if positives in (0, len(patches)):
        missing = "normal" if positives else "lesion's"
        raise DataError(
            f"there is no {missing} patch in {where} ({len(patches)} patches): both classes are "
            "needed to tell them apart"
        )
    return patches


def _make_normal(records: list[Mammogram], config: DataConfig, skipped: Skipped) -> Patches:
    sampling = config.sampling.model_copy(
        update={"count": config.sampling.normals or config.sampling.count}
    )
    return make_patches_of(
        "normal", records, config.model_copy(update={"sampling": sampling}), skipped
    )
