"""Whose data a synthetic set was made of: patients.json."""

from __future__ import annotations

from tfmammo.config import Frozen

PATIENTS = "patients.json"


class Patients(Frozen):
    """Everybody whom a set could tell of, by the pseudonyms of the archives that it was made from,
    each once and sorted.
    """

    mammograms: tuple[str, ...]
    """Whose tissue it shows, and their own lesions."""
    lesions: tuple[str, ...]
    """Whose lesions were set in, or may have given shapes or sizes."""
    trained_on: tuple[str, ...]
    """Whom a network that made any of it was trained on."""
    id_key: str | None = None
    """The `record.key_check` that the pseudonyms were made under, None of a set of an earlier
    version.
    """
