"""Single cases of the classifier study: which test patches change sides.

Wu, Wu and Lotter's Fig. 5 and 6 show five lesions that the classifier misses without synthetic
patches and finds with them, chosen by that outcome. Any second training run moves such lesions:
what one run scores too low by chance, the next one scores higher. Therefore cases that change sides
are counted in both directions, for lesions and for normal patches. Runs that differ in their seed
alone are counted in the same way, as the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.evaluation.report import Report
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure, Table, correct_p, describe_p, format_p
from tfmammo.studies.classification import StudyConfig, name_share

Floats = NDArray[np.float64]
Scores = Mapping[float, Floats]  # share -> [seeds, patches]

THRESHOLD = 0.5  # of the probability; classes have equal shares of every batch

COUNT = Measure("patches", "", 1, 1)
CHANGE = Measure("change of score", "", 1, 3)
# From a first to a second run; score_of_missed: mean change of score of the lesions that the first
# one misses, NaN where there are none
Moves = dict[str, float]


def count_moves(before: Floats, after: Floats, labels: NDArray[np.integer]) -> Moves:
    """Count the test patches (labels 0 normal, 1 lesion) that change sides between two runs."""
    is_lesion = labels == 1
    called_before = before >= THRESHOLD
    called_after = after >= THRESHOLD
    missed = is_lesion & ~called_before
    return {
        "missed_lesions": float(missed.sum()),
        "of_them_found": float((missed & called_after).sum()),
        "found_lesions_missed": float((is_lesion & called_before & ~called_after).sum()),
        "false_alarms_gone": float((~is_lesion & called_before & ~called_after).sum()),
        "new_false_alarms": float((~is_lesion & ~called_before & called_after).sum()),
        "score_of_missed": float((after - before)[missed].mean()) if missed.any() else np.nan,
    }


def average_moves(several: Sequence[Moves]) -> Moves:
    """Average counts and rises over pairs of runs; pairs without a rise do not count for it."""
    means = {}
    for key in several[0]:
        values = np.array([moves[key] for moves in several])
        known = values[np.isfinite(values)]
        means[key] = float(known.mean()) if len(known) else np.nan
    return means


def count_control_moves(of_seeds: Floats, labels: NDArray[np.integer]) -> Moves | None:
    """Count what changes sides between runs that differ in their seed alone, [seeds, n].

    Returns:
        Means over all ordered pairs of seeds; None for a single seed.
    """
    pairs = list(permutations(range(len(of_seeds)), 2))
    if not pairs:
        return None
    return average_moves([count_moves(of_seeds[a], of_seeds[b], labels) for a, b in pairs])


def add_moves(report: Report, scores: Scores, test: Patches, config: StudyConfig) -> None:
    """Add which test patches change sides with synthetic patches, and by a new seed alone.

    The change of score of all lesions is tested, averaged over the seeds.
    """
    first, *others = config.shares
    labels = test.labels
    reference = scores[first]
    changes = _test_changes(scores, test, config)
    body = []
    for share, change in zip(others, changes, strict=True):
        pairs = zip(reference, scores[share], strict=True)
        moves = average_moves([count_moves(before, after, labels) for before, after in pairs])
        cells = _add_counts(report, name_share(share), moves, name_share(first))
        report.facts.append(change)
        shown = CHANGE.format_fact(replace(change, p_corrected=np.nan))
        body.append([f"{100 * share:g} %", *cells, shown, format_p(change.p_corrected)])
    control = count_control_moves(reference, labels)
    if control:
        name = name_share(first)
        cells = _add_counts(report, name, control, name, "run=another_seed")
        body.append([f"{100 * first:g} %, another seed", *cells, "-", "-"])
    header = [
        "synthetic at first",
        "missed lesions, of them found",
        "found lesions missed",
        "false alarms gone",
        "new false alarms",
        "score of missed lesions",
        "score of all lesions",
        "p",
    ]
    lesions = int((labels == 1).sum())
    title = (
        f"Test patches that change sides at a score of {THRESHOLD:g}, against "
        f"{100 * first:g} % synthetic with the same seed; {lesions} lesions, "
        f"{len(labels) - lesions} normal patches, means over {len(reference)} seeds"
    )
    notes = describe_p(changes, {"score_of_lesions": CHANGE}, config.samples, config.level)
    if control:
        notes += (
            "Another seed: runs on real patches alone that differ in their seed; what they move, "
            "synthetic patches need not have moved.",
        )
    report.tables.append(Table(title, header, body, notes))


def _test_changes(scores: Scores, test: Patches, config: StudyConfig) -> list[Fact]:
    """Test for each share the change of score of all lesions against the first share."""
    first, *others = config.shares
    lesions = np.flatnonzero(test.labels == 1)
    means = {share: scores[share].mean(axis=0)[lesions] for share in config.shares}
    facts = []
    for share in others:
        pair = means[share], means[first], test.patient_ids[lesions], *config.draws
        fact = CHANGE.make_difference("moves", name_share(share), "score_of_lesions", *pair)
        facts.append(replace(fact, against=name_share(first)))
    return correct_p(facts)


def _add_counts(
    report: Report, model: str, moves: Moves, against: str, subset: str = ""
) -> list[str]:
    """Add the counts of moves as facts; return their cells."""
    for key, value in moves.items():
        measure = CHANGE if key == "score_of_missed" else COUNT
        fact = measure.make_fact("moves", model, key, value, against=against, subset=subset)
        report.facts.append(fact)
    missed, found, *counts, rise = moves.values()
    return [f"{missed:.1f}, {found:.1f}", *map(COUNT.show, counts), CHANGE.show(rise, "+")]
