"""What archives, label tools and DICOM call findings: one table of words, one of codes.

Words are those of BI-RADS, VinDr-Mammo, INbreast and CDD-CESM (misspellings included), and of data
sets in the forms of COCO, YOLO and nnU-Net. Codes are SNOMED CT's; pydicom knows their older form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from pydicom.sr.coding import Code

from tfmammo.mammogram import LesionKind, Pathology, normalize_spelling

# the numbers of kinds in the label files that this package writes
CATEGORIES: dict[LesionKind, int] = {kind: i for i, kind in enumerate(get_args(LesionKind), 1)}


@dataclass(frozen=True)
class Finding:
    """What a word or a code means."""

    kind: LesionKind | None  # None of what is no lesion of ours: a lymph node, the background
    is_certain: bool = True  # False where the word is general ("lesion") or names several kinds

    @property
    def certain_kind(self) -> LesionKind | None:
        """The kind where there is no doubt of it."""
        return self.kind if self.is_certain else None


LESION = Finding("mass", is_certain=False)
_KINDS: dict[LesionKind, str] = {
    "mass": r"\bmass(es)?\b|\bnodul(e|es|ar)\b|\blumps?\b|\bcysts?\b|\bfibroadenomas?\b",
    "calcification": r"calc?ific|calcs?\b|\bclusters?\b",
    "asymmetry": r"\bass?[iy]mm?et",
    "distortion": r"\bdistort",
}
_OTHERS = (
    r"\b(skin|nipples?|pectoral\w*|muscles?|implants?|clips?|markers?|vessels?|vascular|ducts?|"
    r"ductal|scars?|(post)?operative|o?edema|trabecular|retraction|tissue|fat|background|bg|air|"
    r"normal|no|text|paddle|art[ei]facts?)\b|^((left|right) )?breast( area| region| mask)?$"
)
_GENERAL = (
    r"\b(lesions?|tumou?rs?|neoplas\w*|cancers?|\w*carcinoma|malignan\w+|benign|suspicious|"
    r"findings?|abnormal\w*|roi|gtv|regions?|segment|foreground|object)\b"
)
_PATHOLOGIES: dict[str, Pathology] = {
    "normal": "normal",
    **dict.fromkeys(("benign", "benign_without_callback"), "benign"),
    **dict.fromkeys(("malignant", "malign", "cancer"), "malignant"),
}
# CBIS-DDSM and DDSM list these among the shapes of masses
_NO_MASS = {"architectural_distortion", "focal_asymmetric_density", "asymmetric_breast_tissue"}
_CODES: dict[str, Finding] = {
    "4147007": Finding("mass"),
    "129788004": Finding("mass"),  # mammographic breast mass
    "129769006": Finding("calcification"),  # cluster
    "129770007": Finding("calcification"),  # individual
    "309587003": Finding("calcification"),  # of breast
    "44771000": Finding("calcification"),  # microcalcifications of the breast
    "129790003": Finding("asymmetry"),  # asymmetric breast tissue
    "129789007": Finding("asymmetry"),  # focal asymmetric breast tissue
    "129792006": Finding("distortion"),
    # lesion, neoplasm, malignant neoplasm, abnormal structure, mammography breast density
    **dict.fromkeys(("52988006", "108369006", "86049000", "49755003", "129793001"), LESION),
}
# tissue, body structure, anatomical structure: what viewers state where nobody chose
_DEFAULTS = ("85756007", "123037004", "91723000")


def list_kinds(text: str) -> list[LesionKind]:
    """List the kinds of lesions that a text names, in the order of their first mention.

    "Non mass" and "no mass" are no mass.
    """
    text = re.sub(r"\bnon?[- ]?mass\w*", "", text.lower())
    first = {
        kind: match.start() for kind, words in _KINDS.items() if (match := re.search(words, text))
    }
    return sorted(first, key=first.__getitem__)


def parse_pathology(text: str) -> Pathology | None:
    """Parse a word of pathology; None of any other."""
    return _PATHOLOGIES.get(re.sub(r"\W", "_", text.strip().lower()))


def worst_pathology(pathologies: Iterable[Pathology | None]) -> Pathology | None:
    """Return the pathology of several findings together: benign only if every one is proven so."""
    named = set(pathologies)
    if "malignant" in named:
        return "malignant"
    return "benign" if named == {"benign"} else None


def is_mass_shape(shape: str | None) -> bool:
    """Whether a shape of (CBIS-)DDSM leaves no doubt that its finding is a mass."""
    return shape is None or not set(shape.split("-")) <= _NO_MASS


def find_word(text: str) -> Finding | None:
    """Find what a label or a category means; None of what is not known.

    Examples:
        >>> find_word("Suspicious_Calcifications")
        Finding(kind='calcification', is_certain=True)
        >>> find_word("tumor")
        Finding(kind='mass', is_certain=False)
    """
    text = re.sub(r"[\W_]+", " ", normalize_spelling(text).lower()).strip()
    if re.search(r"\b(lymph|nodes?)\b", text):  # also if it is calcified
        return Finding(None)
    if re.search(r"\be?spiculated region\b", text):  # INbreast: wider than the mass it may hold
        return Finding("distortion", is_certain=False)
    if kinds := list_kinds(text):
        return Finding(kinds[0], is_certain=len(kinds) == 1)
    if re.search(_OTHERS, text):
        return Finding(None)
    return LESION if re.search(_GENERAL, text) else None


def find_coded(codes: Sequence[tuple[str, str]], label: str) -> Finding | None:
    """Find what codes stand for, each a value and a meaning; None of what is not known.

    The label beside them decides where they are general or missing.
    """
    values = [_translate(value) for value, _ in codes]
    known = {_CODES[value] for value in values if value in _CODES} - {LESION}
    if len(known) == 1:
        return known.pop()
    meanings = [
        meaning
        for value, (_, meaning) in zip(values, codes, strict=True)
        if value not in _CODES and value not in _DEFAULTS
    ]
    if meanings:
        return find_word(" ".join(meanings))
    is_lesion = not label.strip() or any(value in _CODES for value in values)
    return find_word(label) or (LESION if is_lesion else None)


def _translate(value: str) -> str:
    """Translate SNOMED's older form, M-03000, which its equality in pydicom knows."""
    old = Code(value, "SRT", "")
    return next((new for new in (*_CODES, *_DEFAULTS) if Code(new, "SCT", "") == old), value)
