"""Patches with a class each, of lesions and of normal tissue together: by pathology, or a
lesion or none.

What a generator of lesions and a classifier learn from. config.sampling.count patches near lesions
are asked for, and sampling.normals normal ones, or as many.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from tfmammo.config import DataConfig
from tfmammo.data.patches import (
    SEVERITY,
    Patches,
    joined,
    lesion_patches,
    normal_patches,
    offset_patches,
)
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped

log = logging.getLogger(__name__)

CUT_OFF = "its mask touches the border of its patch, where the rest of it may be cut off"
UNKNOWN = "the archive does not state the lesion's pathology"


def pathology_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped, malignant: bool = True
) -> Patches:
    """Malignant and benign patches near lesions and normal ones, as many as the module says,
    labelled by SEVERITY and balanced.

    As `make_patches`; config.patches is not read.

    Args:
        skipped: Patches of lesions whose pathology is unknown too.
        malignant: Without it every lesion counts as malignant, for archives that seldom state a
            lesion's pathology.

    Returns:
        Labels: 0 malignant, 1 benign, 2 normal.

    Raises:
        DataError: One of the three, or without `malignant` of the two, is missing.
    """
    records = list(mammograms)
    _warn_of_percentiles(config)
    near = offset_patches(records, config, skipped)
    normal = _normal_patches(records, config, skipped)
    if not malignant:
        patches = joined([near, normal])
        return check_pathologies(
            patches.labelled(2 * (patches.kinds == "normal"), balanced=True), malignant
        )
    known = np.flatnonzero(np.isin(near.pathologies, SEVERITY[:2]))
    for name in np.setdiff1d(near.ids, near.ids[known]):
        skipped.add(str(name), UNKNOWN)
    patches = joined([near.take(known), normal])
    return check_pathologies(
        patches.labelled(
            [SEVERITY.index(name) for name in patches.pathologies.tolist()], balanced=True
        )
    )


def check_pathologies(patches: Patches, malignant: bool = True) -> Patches:
    """The patches, if each of the three classes is among them, or without `malignant` the first and
    the last.

    Raises:
        DataError: One is missing; the message counts them.
    """
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


def binary_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped, malignant: bool = True
) -> Patches:
    """Patches near lesions, labelled 1, and normal ones, labelled 0, balanced.

    As `pathology_patches`.

    Args:
        malignant: Leave benign lesions, and those of unknown pathology, out.

    Raises:
        DataError: One of the two is missing.
    """
    records = list(mammograms)
    _warn_of_percentiles(config)
    near = offset_patches(records, config, skipped)
    normal = _normal_patches(records, config, skipped)
    if malignant:
        for name in near.ids[near.pathologies == ""].tolist():
            skipped.add(name, UNKNOWN)
        near = near.take(np.flatnonzero(near.pathologies == "malignant"))
    patches = joined([near, normal])
    return check_binary(patches.labelled(patches.kinds != "normal", balanced=True), "the archive")


def blend_patches(mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped) -> Patches:
    """Patches around lesions, labelled 1, and normal ones to set them into, labelled 0, balanced.

    As `make_patches`; config.patches is not read.

    Args:
        skipped: Lesions whose mask touches their patch's border too.

    Raises:
        DataError: One of the two is missing.
    """
    records = list(mammograms)
    around = lesion_patches(records, config, skipped)
    normal = _normal_patches(records, config, skipped)
    inside = around.masks[:, 1:-1, 1:-1].sum(axis=(1, 2, 3)) == around.masks.sum(axis=(1, 2, 3))
    for name in around.ids[~inside].tolist():
        skipped.add(name, CUT_OFF)
    patches = joined([around.take(np.flatnonzero(inside)), normal])
    return check_binary(patches.labelled(patches.kinds != "normal", balanced=True), "the archive")


def check_binary(patches: Patches, where: str) -> Patches:
    """The patches, if some are of lesions and some normal; labels are even for normal ones.

    Args:
        where: They are, for the message.

    Raises:
        DataError: One class is missing.
    """
    positives = int(np.sum(patches.labels % 2 == 1))
    if positives in (0, len(patches)):
        missing = "normal" if positives else "lesion's"
        raise DataError(
            f"there is no {missing} patch in {where} ({len(patches)} patches): both classes are "
            "needed to tell them apart"
        )
    return patches


def _warn_of_percentiles(config: DataConfig) -> None:
    if config.window is None:
        low, high = config.percentiles
        log.warning(
            "data.window is not set: percentiles %g and %g of each patch become 0 and 1, which "
            "hides what a lesion adds",
            low,
            high,
        )


def _normal_patches(records: list[Mammogram], config: DataConfig, skipped: Skipped) -> Patches:
    sampling = config.sampling.model_copy(
        update={"count": config.sampling.normals or config.sampling.count}
    )
    return normal_patches(records, config.model_copy(update={"sampling": sampling}), skipped)
