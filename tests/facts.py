"""Facts of an evaluation, as tests ask for them, and the scores of a study."""

import csv
from pathlib import Path

from tfmammo.metrics.case_scores import SCORES
from tfmammo.metrics.rows import Fact, read_facts
from tfmammo.metrics.summary import write_csv


def read_rows(output: Path) -> list[Fact]:
    """Read the facts in a folder."""
    return read_facts(output / "rows.csv")


def find(facts, model: str, measure: str, table: str = "means", against: str = "", subset=""):
    """Find the only fact of these keys."""
    wanted = (table, subset, model, against, measure)
    (fact,) = [f for f in facts if (f.table, f.subset, f.model, f.against, f.measure) == wanted]
    return fact


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file as one dict a line."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_scores(output: Path, model: str) -> list[dict[str, str]]:
    """Read the lines of per_image.csv of a model."""
    return [row for row in read_csv(output / "per_image.csv") if row["model"] == model]


def read_failures(folder: Path) -> dict[str, str]:
    """Read the reason of each file that could not be made."""
    return {row["file"]: row["reason"] for row in read_csv(folder / "failures.csv")}


def write_study(folder: Path, cases) -> Path:
    """Write rows of (arm, model, seed, patient, case, Dice, fold or 0); return their file.

    The other measures are 0.5.
    """
    names = ("arm", "model", "seed", "patient", "case", "dice", "fold")
    others = {"fold": 0, "accuracy": 0.5, "jaccard": 0.5, "mcc": 0.5}
    write_csv(folder / SCORES, [others | dict(zip(names, case, strict=False)) for case in cases])
    return folder / SCORES
