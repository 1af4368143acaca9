"""How measures and rows are shown: names, decimals, intervals, and rows in a text."""

from __future__ import annotations

import math

from tfmammo.apps.report.facts import Facts
from tfmammo.metrics.rows import Fact

UNKNOWN = "not measured"
COUNTS = ("false_alarms_gone", "new_false_alarms")  # of patches; they have no sign
THOUSANDTHS = "0.001"  # the unit of KID, whose name says it
# measure -> (name, decimals); of one with a rate, such as tpr@0.5, the part before @
MEASURES = {
    "accuracy": ("accuracy", 1),
    "auc": ("AUC", 3),
    "auc_sd": ("SD of the AUC", 3),
    "change": ("change of the score", 3),
    "contrast": ("contrast", 3),
    "defects": ("tissue with defects", 1),
    "dice": ("Dice", 1),
    "discarded": ("edits discarded", 1),
    "false_alarms_gone": ("false alarms gone", 0),
    "fid": ("FID", 1),
    "flat": ("too flat", 1),
    "found": ("part found", 1),
    "haar": ("fine texture of tissue, real = 1", 2),
    "haar_mass": ("fine texture in the mass, real = 1", 2),
    "harsh": ("too harsh", 1),
    "jaccard": ("Jaccard", 1),
    "jafroc": ("JAFROC figure of merit", 3),
    "jafroc1": ("JAFROC1 figure of merit", 3),
    "kid": ("KID x 1000", 1),
    "lattice_2": ("checkerboard of 2 px", 1),
    "lattice_4": ("checkerboard of 4 px", 1),
    "lattice_8": ("checkerboard of 8 px", 1),
    "lpips": ("LPIPS to the real patch", 4),
    "lpips_pairs": ("LPIPS to other patients' real patches", 4),
    "mcc": ("MCC", 1),
    "masses": ("masses", 0),
    "missed": ("missed completely", 0),
    "ms_ssim": ("MS-SSIM among themselves", 3),
    "precision": ("precision", 1),
    "recall": ("recall", 1),
    "nearest_mass": ("distance to the nearest training mass", 2),
    "new_false_alarms": ("new false alarms", 0),
    "seam": ("seam", 2),
    "ssim": ("SSIM", 3),
    "ssim_edge": ("SSIM along the edge", 3),
    "ssim_mass": ("SSIM in the mass", 3),
    "success": ("AUC of the attack", 3),
    "tpr": ("recall", 1),
    "tpr_sd": ("SD over folds of recall", 1),
}


def capitalize(text: str) -> str:
    """Begin a text with a capital and leave the rest as it is."""
    return f"{text[:1].upper()}{text[1:]}"


def name_measure(measure: str, unit: str = "") -> str:
    """Name a measure with its unit: "Dice, %", "recall at 0.5 false positives, %"."""
    base, _, rate = measure.partition("@")
    name = MEASURES.get(base, (base.replace("_", " "), 3))[0]
    if rate:
        plural = "" if rate == "1" else "s"
        rates = f"{rate} false positive{plural} per image"
        name += " of all detections" if rate == "all" else f" at {rates}"
    return f"{name}, {unit}" if unit and unit != THOUSANDTHS else name


def format_value(value: float, measure: str, unit: str = "", sign: str = "") -> str:
    """Format a number in its measure's decimals; a dash for NaN."""
    if math.isnan(value):
        return "-"
    decimals = MEASURES.get(measure.partition("@")[0], ("", 3))[1]
    number = f"{value:{sign}.{decimals}f}"
    return f"{number} {unit}" if unit and unit != THOUSANDTHS else number


def format_printed(value: float | None) -> str:
    """Format a printed number with the paper's own decimals; those of 0.8 say that it is rough."""
    return "-" if value is None else str(value)


def format_interval(row: Fact, with_p: bool = False, with_unit: bool = True) -> str:
    """Format a row's value and interval, of a difference with its sign."""
    sign = "+" if row.against and row.measure not in COUNTS else ""
    text = format_value(row.value, row.measure, sign=sign)
    if not math.isnan(row.low) and not math.isnan(row.high):
        bounds = (format_value(bound, row.measure, sign=sign) for bound in (row.low, row.high))
        text += f" [{', '.join(bounds)}]"
    if with_unit and row.unit and row.unit != THOUSANDTHS:
        text += " points" if row.unit == "%" and row.against else f" {row.unit}"
    p = row.p if math.isnan(row.p_corrected) else row.p_corrected
    if with_p and not math.isnan(p):
        text += f", {_format_p(p)}"
        # otherwise an interval without zero would seem to contradict it
        if row.p < 0.05 <= p:
            text += f" ({_format_p(row.p)} uncorrected)"
    return text


def _format_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


class Placeholder:
    """Facts in a text, whose format is the key of a row: {ITEM:MODEL|MEASURE}.

    Further parts name the rest of its key, as in |against=cGAN|subset=frame=tight; |p adds the
    p-value.
    """

    def __init__(self, facts: Facts | None) -> None:
        self.facts = facts

    def __format__(self, key: str) -> str:
        model, measure, *others = key.split("|")
        keys = dict(part.split("=", 1) for part in others if part != "p")
        row = self.facts.find(model, measure, **keys) if self.facts else None
        return format_interval(row, with_p="p" in others) if row else UNKNOWN
