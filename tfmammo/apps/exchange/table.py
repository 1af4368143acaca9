"""The facts of a mammogram as `folder`'s table has them."""

from __future__ import annotations

from tfmammo.mammogram import Mammogram

COLUMNS = ("patient", "laterality", "view", "pathology", "birads", "density", "spacing")


def make_row(mammogram: Mammogram) -> dict[str, str]:
    """Return its facts by COLUMNS, "" where unknown; the patient is a pseudonym."""
    spacing = mammogram.spacing
    facts = {
        "patient": mammogram.patient_id,
        "spacing": " x ".join(map(repr, map(float, spacing))) if spacing else "",
    }
    return {name: facts.get(name) or getattr(mammogram, name, None) or "" for name in COLUMNS}
