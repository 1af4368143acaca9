"""The patients behind a synthetic set: patients.json."""

from __future__ import annotations

from tfmammo.config import Frozen

PATIENTS = "patients.json"


class Patients(Frozen):
    """Everybody whose data a set holds or derives from.
    Each pseudonym stands once, sorted, as the archives that the set was made from give it.
    """

    mammograms: tuple[str, ...]
    """Patients whose tissue it shows, with lesions of their own."""
    lesions: tuple[str, ...]
    """Patients whose lesions were inserted, or may have given shapes or sizes."""
    trained_on: tuple[str, ...]
    """Patients that a network of the set was trained on."""
    id_key: str
    """The `mammogram.key_check` of the pseudonyms' key."""
