"""Single cases of the classifier study: which test patches change sides, and edited pairs.

Wu, Wu and Lotter's Fig. 5 and 6 show five lesions that the classifier misses without synthetic
patches and finds with them, chosen by that outcome. Any second training run moves such lesions:
what one run scores too low by chance, the next one scores higher. Therefore

- cases that change sides are counted in both directions, for lesions and for normal patches;
- runs that differ in their seed alone are counted in the same way, as the control;
- the lesions in the figures are drawn at random from all that the first training run misses, next
  to the largest rises and falls.

Fig. 1 shows pairs of real and edited patches. Ours are a random choice, and the best and worst by
the change of the classifiers' score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from tfmammo.data.patches import Patches
from tfmammo.evaluation.report import Report
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure, Table, correct_p, describe_p, format_p
from tfmammo.studies.classification import StudyConfig, name_share, predict_unseen
from tfmammo.studies.classification_effects import EditedPatches, Effect, compute_tsne

Floats = NDArray[np.float64]
Scores = Mapping[float, Floats]  # share -> [seeds, patches]

THRESHOLD = 0.5  # of the probability; classes have equal shares of every batch
PAPERS_SHARE = 0.5  # of synthetic patches, the paper's best
NEIGHBOURS = 10


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
        settings = config.samples, config.seed, config.level
        pair = means[share], means[first], test.patient_ids[lesions], *settings
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


def find_shown_share(shares: Sequence[float]) -> float:
    """Return the share nearest to the paper's best, other than the first."""
    return min(shares[1:], key=lambda share: abs(share - PAPERS_SHARE))


def choose_cases(
    before: Floats, after: Floats, labels: NDArray[np.integer], count: int, seed: int
) -> dict[str, NDArray[np.intp]]:
    """Choose missed lesions at random, and those with the largest rise and the largest fall.

    Returns:
        "random", "largest rise", "largest fall" -> `count` rows each. The first two are of lesions
        that the first run misses, the third is of all lesions.
    """
    lesions = np.flatnonzero(labels == 1)
    missed = lesions[before[lesions] < THRESHOLD]
    change = after - before
    return {
        "random": np.random.default_rng(seed).permutation(missed)[:count],
        "largest rise": missed[np.argsort(-change[missed], kind="stable")][:count],
        "largest fall": lesions[np.argsort(change[lesions], kind="stable")][:count],
    }


def count_lesion_neighbours(features: NDArray[np.floating], test: Patches) -> Floats:
    """Compute which part of each patch's NEIGHBOURS nearest ones in feature space are lesions, [n].

    Patches of the same patient are no neighbours.
    """
    distances = cdist(features.astype(np.float64), features.astype(np.float64))
    distances[test.patient_ids[:, np.newaxis] == test.patient_ids] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    is_neighbour = np.isfinite(np.take_along_axis(distances, nearest, axis=1))
    is_lesion = (test.labels[nearest] == 1) & is_neighbour
    return is_lesion.sum(axis=1) / np.maximum(is_neighbour.sum(axis=1), 1)


@dataclass(frozen=True, eq=False)
class Cases:
    """Test patches as two runs of one seed see them, and those that are shown.

    Attributes:
        share: Of synthetic patches, in the second run.
        test: The patches.
        scores: Before and after [n] each.
        neighbours: As `count_lesion_neighbours`, before and after.
        points: t-SNE, float64 [n, 2] before and after.
        chosen: As `choose_cases` returns them.
    """

    share: float
    test: Patches
    scores: tuple[Floats, Floats]
    neighbours: tuple[Floats, Floats]
    points: tuple[Floats, Floats]
    chosen: Mapping[str, NDArray[np.intp]]

    def make_rows(self) -> list[dict[str, Any]]:
        """Make the lines of moves.csv: one for each case that is shown."""
        return [
            {
                "share": self.share,
                "choice": choice,
                "id": str(self.test.ids[row]),
                "patient": str(self.test.patient_ids[row]),
                "before": float(self.scores[0][row]),
                "after": float(self.scores[1][row]),
                "lesions_near_before": float(self.neighbours[0][row]),
                "lesions_near_after": float(self.neighbours[1][row]),
            }
            for choice, rows in self.chosen.items()
            for row in rows.tolist()
        ]


def compare_trainings(
    folders: Mapping[tuple[float, int], Path], scores: Scores, test: Patches, config: StudyConfig
) -> Cases | None:
    """Compare the first seed's runs without and with synthetic patches.

    Returns:
        The cases, chosen among at most config.tsne patches of each class; None where there is one
        share only.
    """
    if len(config.shares) < 2:
        return None
    shares = config.shares[0], find_shown_share(config.shares)
    random = np.random.default_rng(config.seed)
    rows = np.sort(
        np.concatenate(
            [
                random.permutation(np.flatnonzero(test.labels == label))[: config.tsne]
                for label in (0, 1)
            ]
        )
    )
    patches = test.take(rows)
    before, after = (scores[share][0][rows] for share in shares)
    features = [
        predict_unseen(
            folders[share, config.seeds[0]], patches.images, "features", patches.patient_ids
        )
        for share in shares
    ]
    points_before, points_after = (compute_tsne(of_run, config.seed) for of_run in features)
    near_before, near_after = (count_lesion_neighbours(of_run, patches) for of_run in features)
    return Cases(
        shares[1],
        patches,
        (before, after),
        (near_before, near_after),
        (points_before, points_after),
        choose_cases(before, after, patches.labels, config.cases, config.seed),
    )


@plot_style
def draw_moves(cases: Cases) -> Figure:
    """Draw the paper's Fig. 5: both embeddings, with the random choice of missed lesions marked."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    titles = ("real patches alone", f"{100 * cases.share:g} % synthetic at first")
    chosen = cases.chosen["random"]
    panels = zip(
        figure.subplots(1, 2), titles, cases.points, cases.scores, cases.neighbours, strict=True
    )
    for axes, title, points, scores, neighbours in panels:
        for label, name, colour in ((0, "normal", "#d62728"), (1, "lesion", "#2ca02c")):
            x, y = points[cases.test.labels == label].T
            axes.scatter(x, y, s=6, color=colour, alpha=0.5, linewidths=0, label=name)
        x, y = points[chosen].T
        axes.scatter(x, y, s=26, color="#1a237e", label="missed at first, drawn at random")
        for number, place in enumerate(points[chosen], start=1):
            axes.annotate(str(number), place, xytext=(4, 4), textcoords="offset points")
        if len(chosen):
            title += f"\nmean score {scores[chosen].mean():.2f}, "
            title += f"lesions among neighbours {100 * neighbours[chosen].mean():.0f} %"
        axes.set_title(title)
        axes.set(xticks=[], yticks=[])
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@plot_style
def draw_cases(cases: Cases) -> Figure:
    """Draw the paper's Fig. 6: the patches of the cases, with their scores before and after."""
    count = max(1, max(len(rows) for rows in cases.chosen.values()))
    figure = Figure(figsize=(0.6 + 1.6 * count, 5.8), layout="constrained")
    grid = figure.subplots(len(cases.chosen), count, squeeze=False)
    for row_of_axes, (choice, rows) in zip(grid, cases.chosen.items(), strict=True):
        for axes in row_of_axes:
            _clear(axes)
        for axes, row in zip(row_of_axes, rows, strict=False):
            axes.imshow(cases.test.images[row, ..., 0], cmap="gray", vmin=0, vmax=1)
            before, after = (scores[row] for scores in cases.scores)
            axes.set_title(f"{before:.2f} to {after:.2f}", fontsize=8)
        row_of_axes[0].set_ylabel(choice)
    figure.suptitle(
        f"Score by real patches alone, to that with {100 * cases.share:g} % synthetic at first"
    )
    return figure


def choose_pairs(effect: Effect, count: int) -> dict[str, NDArray[np.intp]]:
    """Choose edited patches: a random choice, the best and the worst by the change of score.

    The best change is the largest rise where lesions are added, the largest fall where they are
    removed. The patches of an effect are in random order.
    """
    sign = -1 if effect.target == "removal" else 1
    order = np.argsort(-sign * (effect.after - effect.before), kind="stable")
    return {"random": np.arange(len(order))[:count], "best": order[:1], "worst": order[::-1][:1]}


@plot_style
def draw_pairs(edits: Sequence[EditedPatches], effects: Sequence[Effect], count: int) -> Figure:
    """Draw the paper's Fig. 1: one row a generator, `count` random pairs of a real patch and its
    edited one, then the best and the worst.
    """
    columns = 2 * (count + 2)
    figure = Figure(figsize=(0.4 + 1.15 * columns, 0.4 + 1.45 * len(edits)), layout="constrained")
    grid = figure.subplots(len(edits), columns, squeeze=False)
    for row_of_axes, edited, effect in zip(grid, edits, effects, strict=True):
        for axes in row_of_axes:
            _clear(axes)
        row_of_axes[0].set_ylabel(edited.target)
        for first, (choice, rows) in zip(
            (0, 2 * count, 2 * count + 2), choose_pairs(effect, count).items(), strict=True
        ):
            for number, row in enumerate(rows.tolist()):
                left, right = row_of_axes[first + 2 * number :][:2]
                images = edited.before.images[row], edited.after[row]
                values = effect.before[row], effect.after[row]
                for axes, image, value in zip((left, right), images, values, strict=True):
                    axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
                    axes.set_title(f"{value:.2f}", fontsize=7)
                left.set_xlabel(f"real, {choice}", fontsize=7)
                right.set_xlabel("edited", fontsize=7)
    figure.suptitle("Above each patch, its score by the classifiers of real patches alone")
    return figure


def _clear(axes: Axes) -> None:
    """Leave nothing of axes but what is drawn in them."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
