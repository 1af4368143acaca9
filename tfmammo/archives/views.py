"""Views and sides of a mammogram: words and codes of all archives.

Source: PS3.16 CID 4014 (views), CID 4 and 244 (sides).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from tfmammo.mammogram import Laterality, View

# Codes in SNOMED CT and in its older notation, which newer systems still write.
_VIEW_CODES: dict[View, tuple[str, str]] = {
    "CC": ("399162004", "R-10242"),
    "MLO": ("399368009", "R-10226"),
    "ML": ("399260004", "R-10224"),
    "LM": ("399352003", "R-10228"),
    "LMO": ("399099002", "R-10230"),
    "XCCL": ("399192008", "R-1024A"),
    "XCCM": ("399101009", "R-1024B"),
    "FB": ("399196006", "R-10244"),
    "SIO": ("399188001", "R-102D0"),
    "ISO": ("441555000", "R-40AAA"),
}
_SIDE_CODES: dict[Laterality, tuple[str, ...]] = {
    "L": ("80248007", "T-04030", "7771000", "G-A101"),
    "R": ("73056007", "T-04020", "24028007", "G-A100"),
}
_VIEW_OF_CODE = {code: view for view, codes in _VIEW_CODES.items() for code in codes}
_SIDE_OF_CODE = {code: side for side, codes in _SIDE_CODES.items() for code in codes}
_SIDES: dict[str, Laterality] = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}
_NAMES: dict[str, View] = {
    "CRANIOCAUDAL": "CC",
    "MEDIOLATERALOBLIQUE": "MLO",
    "MEDIOLATERAL": "ML",
    "LATEROMEDIAL": "LM",
    "LATEROMEDIALOBLIQUE": "LMO",
}
# "MLO" by the standard, "LMLO" or "R CC" by some systems
_POSITION = re.compile(rf"(L|R|LEFT|RIGHT|)[ _-]?({'|'.join(get_args(View))})")


def parse_side(text: str) -> Laterality | None:
    """Parse a side; None of anything else."""
    return _SIDES.get(text.strip().upper())


def parse_view(text: str) -> tuple[Laterality | None, View | None]:
    """Parse a view, and the side that some write before it; None of anything else."""
    text = text.strip().upper()
    if match := _POSITION.fullmatch(text):
        return _SIDES.get(match[1]), match[2]  # type: ignore[return-value]
    return None, _NAMES.get(re.sub(r"[ _-]", "", text))


def parse_chest_wall(row: str) -> Laterality | None:
    """Find the side of the image at which the chest wall is (PS3.3 C.7.6.1.1.1).

    `row` is the first word of PatientOrientation: rows that run to the front of the body, A, begin
    at the chest wall. CBIS-DDSM has its view there, and other words occur.
    """
    if not re.fullmatch(r"[AP][HFLR]{0,2}|[HFLR]{1,2}[AP]", row.strip().upper()):
        return None
    return "L" if "A" in row.upper() else "R"


def find_view(codes: Iterable[str]) -> View | None:
    """Find the first code of a view."""
    return next((_VIEW_OF_CODE[code] for code in codes if code in _VIEW_OF_CODE), None)


def find_side(codes: Iterable[str]) -> Laterality | None:
    """Find the first code of a side."""
    return next((_SIDE_OF_CODE[code] for code in codes if code in _SIDE_OF_CODE), None)
