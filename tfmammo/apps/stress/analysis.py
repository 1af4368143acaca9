"""Tables and curves of a stress test: sensitivity, thresholds, controls, strata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmammo.apps.stress.config import REMOVAL, StressConfig
from tfmammo.apps.stress.pairs import Condition
from tfmammo.apps.stress.scoring import Outcome, Trial
from tfmammo.metrics.psychometric import Psychometric, fit
from tfmammo.metrics.resampling import bootstrap_interval, share_interval
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Table

STRATA: dict[str, Callable[[Outcome, Condition], str]] = {
    "tissue": lambda outcome, condition: condition.tissue,
    "place": lambda outcome, condition: condition.place,
    "softness": lambda outcome, condition: f"{condition.softness:g}",
    "breast density": lambda outcome, condition: outcome.density or "not stated",
}
NOTES = (
    "Intervals draw whole patients (bootstrap); those of thresholds are profile likelihoods, "
    "corrected for patients.",
)


PROFILE = "profile likelihood by patient"  # of `Fact.test`


@dataclass(frozen=True)
class Curves:
    """The fits of one detector and one method; None where there is too little to fit."""

    contrast: Psychometric | None
    size: Psychometric | None


def fit_curves(
    outcomes: Sequence[Outcome], limit: float, config: StressConfig, interval: bool = True
) -> Curves:
    """Fit sensitivity against contrast and against size; each pools over the other.

    What is found at the same place before insertion gives the guess rate.
    """
    fits = (_fit(name, outcomes, limit, config, interval) for name in ("contrast", "size"))
    return Curves(*fits)


def _fit(
    name: str, outcomes: Sequence[Outcome], limit: float, config: StressConfig, interval: bool
) -> Psychometric | None:
    stimuli = [getattr(outcome, name) for outcome in outcomes]
    # The pairs of one requested contrast or size differ by rounding alone.
    if len(getattr(config, f"{name}s")) == 1 or len(set(stimuli)) < 2:
        return None
    patients = [outcome.patient for outcome in outcomes]
    return fit(
        stimuli,
        [outcome.after > limit for outcome in outcomes],
        patients,
        [outcome.before > limit for outcome in outcomes],
        patients,
        config.level,
        interval,
    )


def tabulate_thresholds(
    curves: Mapping[tuple[str, str], Curves], trials: Mapping[str, Trial], config: StressConfig
) -> Table:
    """Tabulate the contrast and the size at which every second lesion is found."""
    body = []
    for (detector, method), both in curves.items():
        outcomes = trials[detector].list_of(method)
        found = [outcome.after > trials[detector].limit for outcome in outcomes]
        curve = both.contrast
        body.append(
            [
                detector,
                method,
                str(len(outcomes)),
                format_threshold(curve),
                format_threshold(both.size),
                _format_share(found, outcomes, config),
                f"{curve.guess:.3f}" if curve else "-",
                f"{curve.lapse:.3f}" if curve else "-",
            ]
        )
    header = [
        "detector",
        "method",
        "pairs",
        "contrast of 50 %",
        f"size of 50 %, {config.unit}",
        "found, of the whole grid, %",
        "guess rate",
        "lapse rate",
    ]
    limit = f"{config.fppi:g} false positives per mammogram or fewer"
    if config.score is not None:
        limit = f"scores above {config.score:g}"
    return Table(f"Where every second lesion is found, at {limit}", header, body, NOTES)


def list_facts(
    curves: Mapping[tuple[str, str], Curves], trials: Mapping[str, Trial], config: StressConfig
) -> list[Fact]:
    """List the thresholds; one is infinite above all tested stimuli, 0 below them."""
    facts = []
    for (detector, method), both in curves.items():
        patients = len({outcome.patient for outcome in trials[detector].list_of(method)})
        key = ("means", f"method={method}", detector, "")
        for measure, unit, curve in (
            ("contrast_50", "", both.contrast),
            ("size_50", config.unit, both.size),
        ):
            if curve:
                values = (curve.threshold, curve.low, curve.high)
                facts.append(Fact(*key, measure, unit, *values, patients, test=PROFILE))
    return facts


def format_threshold(curve: Psychometric | None) -> str:
    """Format a threshold with its interval; words if it is beyond the tested stimuli."""
    if curve is None:
        return "-"
    low, high = name_stimulus(curve.low), name_stimulus(curve.high)
    return f"{name_stimulus(curve.threshold)} [{low}, {high}]"


def name_stimulus(value: float) -> str:
    """Format a stimulus; 0 and infinity mean that it is beyond the tested ones."""
    names = {0.0: "below all", float("inf"): "above all"}
    return names.get(value, "-" if np.isnan(value) else f"{value:.3g}")


def tabulate_sensitivity(trials: Mapping[str, Trial], config: StressConfig) -> Table:
    """Tabulate sensitivity and the mean change of score at each contrast and each size."""
    body = []
    for detector, method, outcomes, limit in _list_groups(trials):
        for name, values in (("contrast", config.contrasts), ("size", config.sizes)):
            for value in values:
                part = [o for o in outcomes if o.condition and getattr(o.condition, name) == value]
                if part:
                    found = [outcome.after > limit for outcome in part]
                    change = np.array([outcome.after - outcome.before for outcome in part])
                    cells = [detector, method, f"{name} {value:g}", str(len(part))]
                    cells.append(_format_share(found, part, config))
                    cells.append(_format(bootstrap_interval, change, part, config, 1, 3))
                    body.append(cells)
    header = ["detector", "method", "lesions of", "pairs", "found, %", "change of score"]
    return Table("Sensitivity, and the change of score within pairs", header, body, NOTES)


def tabulate_controls(trials: Mapping[str, Trial], config: StressConfig) -> Table:
    """Tabulate how often something is found where there is no lesion, or no longer one."""
    body = []
    for detector, trial in trials.items():
        for method in dict.fromkeys(outcome.method for outcome in trial.outcomes):
            outcomes = trial.list_of(method)
            cells = [detector, method, str(len(outcomes))]
            for name in ("before", "after"):
                found = [getattr(outcome, name) > trial.limit for outcome in outcomes]
                cells.append(_format_share(found, outcomes, config))
            for control in ("self", "sham"):
                part = [outcome for outcome in outcomes if control in outcome.controls]
                found = [outcome.controls[control] > trial.limit for outcome in part]
                cells.append(_format_share(found, part, config) if part else "-")
            body.append(cells)
    header = [
        "detector",
        "method",
        "pairs",
        "found before, %",
        "found after, %",
        "found, own tissue inserted, %",
        "found, other tissue inserted, %",
    ]
    notes = (
        f"{REMOVAL}: a real lesion is present before and removed after.",
        "Own tissue shows the method's artefacts, other tissue the seam; neither is a lesion.",
        *NOTES,
    )
    return Table("Found where no lesion is: the controls", header, body, notes)


def tabulate_strata(trials: Mapping[str, Trial], config: StressConfig) -> Table:
    """Tabulate sensitivity and the threshold of contrast in parts of the pairs."""
    body = []
    for detector, method, outcomes, limit in _list_groups(trials):
        for name, key in STRATA.items():
            groups: dict[str, list[Outcome]] = {}
            for outcome in outcomes:
                if outcome.condition:
                    groups.setdefault(key(outcome, outcome.condition), []).append(outcome)
            for value, part in sorted(groups.items()):
                found = [outcome.after > limit for outcome in part]
                cells = [detector, method, f"{name}: {value}", str(len(part))]
                cells.append(_format_share(found, part, config))
                cells.append(format_threshold(_fit("contrast", part, limit, config, True)))
                body.append(cells)
    header = ["detector", "method", "part", "pairs", "found, %", "contrast of 50 %"]
    return Table("By tissue, place, margin and density", header, body, NOTES)


def list_rows(trials: Mapping[str, Trial]) -> list[dict[str, Any]]:
    """Make the rows of pairs.csv."""
    rows = []
    for trial in trials.values():
        for outcome in trial.outcomes:
            condition = outcome.condition
            rows.append(
                {
                    "detector": outcome.detector,
                    "method": outcome.method,
                    "patient": outcome.patient,
                    "image": outcome.image,
                    "density": outcome.density,
                    "box": " ".join(map(str, outcome.box)),
                    "wanted_contrast": condition.contrast if condition else "",
                    "contrast": round(outcome.contrast, 6),
                    "size": round(outcome.size, 4),
                    "softness": condition.softness if condition else "",
                    "tissue": condition.tissue if condition else "",
                    "place": condition.place if condition else "",
                    "score_before": round(outcome.before, 6),
                    "score_after": round(outcome.after, 6),
                    "score_self": outcome.controls.get("self", ""),
                    "score_sham": outcome.controls.get("sham", ""),
                    "limit": round(trial.limit, 6),
                    "found": int(outcome.after > trial.limit),
                }
            )
    return rows


def _list_groups(trials: Mapping[str, Trial]) -> list[tuple[str, str, list[Outcome], float]]:
    """List detector, method, outcomes and limit of all insertions."""
    return [
        (detector, method, trial.list_of(method), trial.limit)
        for detector, trial in trials.items()
        for method in dict.fromkeys(outcome.method for outcome in trial.outcomes)
        if method != REMOVAL
    ]


def _format_share(found: Sequence[bool], outcomes: Sequence[Outcome], config: StressConfig) -> str:
    return _format(share_interval, np.array(found, np.float64), outcomes, config, 100, 1)


def _format(
    interval: Callable[..., tuple[float, float]],
    values: Any,
    outcomes: Sequence[Outcome],
    config: StressConfig,
    scale: float,
    decimals: int,
) -> str:
    patients = [outcome.patient for outcome in outcomes]
    low, high = interval(values, patients, *config.draws)
    text = f"{scale * values.mean():.{decimals}f}"
    if np.isnan(low):
        return text
    return f"{text} [{scale * low:.{decimals}f}, {scale * high:.{decimals}f}]"
