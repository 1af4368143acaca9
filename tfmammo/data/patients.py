"""Whose data a synthetic set was made of: patients.json."""

from __future__ import annotations

from tfmammo.config import Frozen

PATIENTS = "patients.json"


class Patients(Frozen):
    """Everybody whom a set could tell of, by the pseudonyms of the archives that it was made from, each once and sorted.

    mammograms: whose tissue it shows, and their own lesions. lesions: whose lesions were set in, or may have given shapes or sizes.
    trained_on: whom a network that made any of it was trained on. id_key: the `record.key_check` that the pseudonyms were made under,
    None of a set of an earlier version.
    """

    mammograms: tuple[str, ...]
    lesions: tuple[str, ...]
    trained_on: tuple[str, ...]
    id_key: str | None = None
