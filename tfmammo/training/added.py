"""What joins the training side of a split: synthetic mammograms, and turned copies of training mammograms (data.added).

Nobody who is held out may be part of it: not as tissue, not as a lesion or the shape of one, and not in the training of a network
that made it. That is checked here, by the patients.json of the synthetic set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from tfmammo.archives import folder, mammograms
from tfmammo.config import ConfigError, DataConfig
from tfmammo.data import splits, whole
from tfmammo.data.copies import copies
from tfmammo.data.patches import DataError, Make, Patches, joined
from tfmammo.data.whole import Whole
from tfmammo.record import Mammogram, Skipped, hashed_id, key_fault
from tfmammo.synthetic_set import PATIENTS, Patients

log = logging.getLogger(__name__)


def with_added(train: Patches, held_out: Patches, config: DataConfig, make: Make, skipped: Skipped) -> Patches:
    """The training patches with those of the added mammograms behind them.

    Args:     train, held_out: of a split by patient. config: of the training. make: what made the patches. skipped: what is left out
              is noted here.
    Raises:   ConfigError: the split or the patches are of a kind that nothing can be added to. DataError: the synthetic set is none, is
              too small, or knows a patient who is held out. ArchiveError: it can't be read.
    """
    if config.split == "paper":
        raise ConfigError("data.added: needs a split that keeps patients apart; take data.split=patient or official, not paper")
    if len(train.labels):
        raise ConfigError("data.added: is for trainings on masks or boxes; the patches of this one have labels")
    parts, own = [train], config.model_copy(update={"added": config.added.model_copy(update={"synthetic": None, "count": None})})
    if config.added.copies:
        known = set(train.patient_ids.tolist())
        found = [one for one in mammograms(config, Skipped()) if one.patient_id in known]
        parts.append(make(copies(found, own, skipped), config, skipped))
    if config.added.synthetic:
        parts.append(make(synthetic(config, _held_out(held_out, config), skipped), config, skipped))
    log.info("training on %d patches, %d of them added", sum(map(len, parts)), sum(map(len, parts[1:])))
    wholes = [part for part in parts if isinstance(part, Whole)]
    return whole.joined(wholes) if wholes else joined(parts)


def synthetic(config: DataConfig, held_out: set[str], skipped: Skipped) -> Iterator[Mammogram]:
    """The mammograms of data.added.synthetic, their patients called as in the archive that they were made from.

    Args:     held_out: patients who must have no part in the set.
    Raises:   as `with_added`.
    """
    place, count = config.added.synthetic, config.added.count
    assert place
    known = _patients(place)
    if fault := key_fault(known.id_key):
        raise DataError(f"data.added.synthetic: {place / PATIENTS}: {fault}")
    for what, patients in (("mammograms", known.mammograms), ("lesions", known.lesions), ("trained_on", known.trained_on)):
        if both := held_out & set(patients):
            raise DataError(
                f"data.added.synthetic: {place} knows {len(both)} of the {len(held_out)} patients who are held out ({what}); make it of"
                " the training patients (patients.split_file, patients.fold, patients.side=train), its networks too"
            )
    by_name = {hashed_id("folder", patient): patient for patient in known.mammograms}
    found = folder.read(place, skipped)
    if count and len(found) < count:
        raise DataError(f"data.added.synthetic: {place} holds {len(found)} mammograms, fewer than data.added.count={count}")
    return (replace(one, patient_id=by_name[one.patient_id], image_id=f"synthetic-{one.image_id}") for one in found[:count])


def _patients(place: Path) -> Patients:
    try:
        return Patients.model_validate_json((place / PATIENTS).read_bytes())
    except (OSError, ValidationError):
        raise DataError(
            f"data.added.synthetic: {place} is no finished set of tfmammo.synthesis, or of an older version ({PATIENTS} is missing or"
            " damaged); run the synthesis again"
        ) from None


def _held_out(patches: Patches, config: DataConfig) -> set[str]:
    """Everybody who is held out, those included whom no patch shows."""
    shown = set(patches.patient_ids.tolist())
    return shown | splits.held_out_by(splits.load(config.split_file), config.fold) if config.split_file else shown
