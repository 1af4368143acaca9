"""Facts made by hand."""

from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.facts import About, Facts
from tfmammo.metrics.rows import Fact

NAN = float("nan")
FLAT = (0.9,) * 8


def level(model, value, low=NAN, high=NAN, measure="dice", table="means", subset=""):
    """A row without a comparison."""
    return Fact(table, subset, model, "", measure, "%", value, low, high, 50, 100)


def difference(model, against, value, low=NAN, high=NAN, p=NAN, measure="dice", **fields):
    """A row of a difference, whose p is corrected."""
    table, subset = fields.get("table", "differences"), fields.get("subset", "")
    return Fact(table, subset, model, against, measure, "%", value, low, high, p_corrected=p)


def repeats(table, measure="dice", **values):
    """The means of each run or fold of models."""
    key = {"runs": "run", "folds": "fold"}[table]
    return [
        level(model.replace("_", "-"), value, measure=measure, table=table, subset=f"{key}={n}")
        for model, of_model in values.items()
        for n, value in enumerate(of_model)
    ]


def make_facts(*rows, curves=(), **about):
    """Facts at the scale small, on a substitute, with a flat curve for each training run."""
    content = {
        "item": "can_table1",
        "scale": "small",
        "data": "CBIS-DDSM",
        "papers_data": "INbreast",
        "work": "20,000 of 210,000 steps",
        "runs": 3,
        "trained": 1,
        "commands": ("python evaluate/segmentation.py",),
    }
    curves = curves or (Curve("can", "dice", tuple(range(8)), FLAT),)
    return Facts(About(**{**content, **about}), tuple(rows), tuple(curves))
