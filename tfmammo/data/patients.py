"""The patients behind a synthetic set: patients.json."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from tfmammo.config import Frozen
from tfmammo.errors import DataError
from tfmammo.mammogram import key_fault

PATIENTS = "patients.json"


class Patients(Frozen):
    """Everybody whose data a set holds or derives from.

    Each pseudonym appears once, sorted, as the archives that the set was made from give it.
    """

    mammograms: tuple[str, ...]
    """Patients whose tissue it shows, with lesions of their own."""
    lesions: tuple[str, ...]
    """Patients whose lesions were inserted, or may have given shapes or sizes."""
    trained_on: tuple[str, ...]
    """Patients that a network of the set was trained on."""
    id_key: str
    """The `mammogram.key_check` of the pseudonyms' key."""


def read_patients(root: Path) -> Patients:
    """Read who is behind a synthetic set, by pseudonyms of today's TFMAMMO_ID_KEY."""
    try:
        patients = Patients.model_validate_json((root / PATIENTS).read_bytes())
    except (OSError, ValidationError):
        raise DataError(
            f"{root} is no finished set of tfmammo.synthesis ({PATIENTS} is missing or damaged); "
            "run the synthesis again"
        ) from None
    if fault := key_fault(patients.id_key):
        raise DataError(f"{root / PATIENTS}: {fault}")
    return patients
