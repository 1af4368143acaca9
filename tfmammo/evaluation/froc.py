"""Facts, tables and the curve of detectors that ran on the same mammograms.

Every training run has its own scale of scores. Recall and figure of merit are therefore measured
for each run and averaged, also in each draw of the bootstrap and of the jackknife, which take
patients. Where there are several runs, a second row pools the scores of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.evaluation.report import Report
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    Found,
    Measured,
    Run,
    false_positives_apart,
    froc_by_run,
    froc_interval,
    over_folds,
    scores_at,
)
from tfmammo.metrics.jafroc import JafrocTest, choose_common_merit, jafroc, jafroc_test
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    Estimate,
    bound_alike,
    describe,
    describe_few,
    holm,
    is_point,
)
from tfmammo.metrics.summary import BOOTSTRAP, JACKKNIFE, Measure, Table, format_p

RECALL = Measure("recall", "%", 100, 1)
MERIT = Measure("figure of merit", "", 1, 3)
FALSE_POSITIVES = Measure("false positives", "", 1, 2)
SCORE = Measure("least score", "", 1, 3)
SECONDS = Measure("median time", "s", 1, 3)
POOLED = "scores=pooled"
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detected:
    """What detectors found in the same mammograms.

    Attributes:
        found: Detector -> what it found in each mammogram.
        patients: The patient of each mammogram.
        fppi: Numbers of false positives per image at which recall is given.
        bootstrap: Draws, seed and confidence level.
        recall: What is measured, in words.
        title: The heading of the tables.
        kind: What the first column of the tables lists.
        titles: Detector -> its name in tables, where that is another one.
        images: Number of different mammograms.
    """

    found: Mapping[str, Found]
    patients: Sequence[str]
    fppi: Sequence[float]
    bootstrap: tuple[int, int, float]
    recall: str
    title: str
    kind: str = "detector"
    titles: Mapping[str, str] = field(default_factory=dict)
    images: int | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """`fppi`, and infinity for all detections."""
        return (*self.fppi, ALL_DETECTIONS)

    def name(self, detector: str) -> str:
        """Return what tables call a detector."""
        return self.titles.get(detector, detector)

    def average(
        self, detector: str, rates: Sequence[float], of: Measured = "tpr", is_pooled: bool = False
    ) -> tuple[Floats, Floats]:
        """Average a FROC curve over runs: mean and deviation over folds, float64 [k] each."""
        curves = froc_by_run(self._take(detector, is_pooled), rates)
        return over_folds({run: getattr(curve, of) for run, curve in curves.items()})

    def measure(
        self, detector: str, rates: Sequence[float], of: Measured = "tpr", is_pooled: bool = False
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Average a FROC curve as `average` does, with its interval.

        Returns:
            (mean, deviation, low, high), float64 [k] each; NaN where there is none.
        """
        found = self._take(detector, is_pooled)
        low, high = froc_interval(found, self.patients, rates, *self.bootstrap, of)
        mean, deviation = self.average(detector, rates, of, is_pooled)
        if np.isfinite(low).all():  # resampling may see no variance, though others would differ
            diseased = found.count_diseased(self.patients)
            for place, value in enumerate(mean):
                if value in (0, 1) or is_point(low[place], high[place]):
                    least, most = bound_alike(value, diseased, self.bootstrap[2])
                    low[place] = min(low[place], least)
                    high[place] = max(high[place], most)
        return mean, deviation, low, high

    def _take(self, detector: str, is_pooled: bool) -> Found:
        """Take what a detector found; pooled, all is of one run."""
        found = self.found[detector]
        return Found.by_one_run(found.images) if is_pooled else found

    def make_fact(
        self, measure: Measure, table: str, detector: str, key: str, value: float | Estimate
    ) -> Fact:
        """Make a fact with the numbers of patients and images."""
        images = len(self.patients) if self.images is None else self.images
        fact = measure.make_fact(table, detector, key, value)
        return replace(fact, patients=len(set(self.patients)), images=images)

    def describe(self, comparisons: int = 0) -> tuple[str, ...]:
        """Describe the test of some comparisons, or say that there are too few patients for one."""
        first = next(iter(self.found.values()))  # all have the same lesions
        diseased = first.count_diseased(self.patients)
        if diseased < FEWEST_PATIENTS:
            return (describe_few(diseased, "with lesions"),)
        count = len(set(self.patients))
        return (describe("jackknife", count, comparisons),) if comparisons else ()

    @plot_style
    def draw(self, detectors: Iterable[str] | None = None, title: str = "") -> Figure:
        """Draw the FROC curves, of all detectors or of some, each with the band of its interval."""
        rates = np.linspace(0, max(self.fppi), 81)
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        shown = list(self.found if detectors is None else detectors)
        for name in shown:
            mean, _, low, high = self.measure(name, rates.tolist())
            axes.fill_between(rates, low, high, alpha=0.2, linewidth=0)
            axes.plot(rates, mean, label=self.name(name))
        axes.set(xlabel="false positives per image", ylabel=self.recall)
        axes.set(xlim=(0, rates[-1]), ylim=(0, 1))
        axes.set_title(title or self.title, fontsize=8)
        if len(shown) > 1:
            axes.legend()
        return figure


def name_rate(key: str, rate: float) -> str:
    """Name a measure at a number of false positives per image: "tpr@0.5", "tpr@all"."""
    return f"{key}@all" if rate == ALL_DETECTIONS else f"{key}@{rate:g}"


def format_estimate(measure: Measure, value: float, deviation: float, *bounds: float) -> str:
    """Format a mean with its deviation and interval, where they exist."""
    text = measure.show(value)
    if np.isfinite(deviation):
        text += f" ± {measure.show(deviation)}"
    if np.isfinite(bounds[0]):
        text += "\n[{}, {}]".format(*map(measure.show, bounds))
    return text


def add_recall(report: Report, detected: Detected, notes: tuple[str, ...] = ()) -> None:
    """Add recall of every detector at numbers of false positives per image, and of all detections.

    That of all detections is Eq. (6) of the infilling paper. "mean_tpr" is the mean height of the
    curve from 0 to there, the normalised partial area; the table has that to the largest number.
    """
    body = []
    widest = int(np.argmax(detected.fppi))
    for detector, found in detected.found.items():
        for is_pooled in (False, True)[: min(2, len(set(found.runs)))]:
            tpr = detected.measure(detector, detected.rates, "tpr", is_pooled)
            areas = detected.measure(detector, detected.fppi, "areas", is_pooled)
            recall, area = ([*zip(*values, strict=True)] for values in (tpr, areas))
            subset = POOLED if is_pooled else ""
            for key, columns in (("tpr", recall), ("mean_tpr", area)):
                report.facts += make_recall_facts(detected, detector, key, columns, subset)
            cells = [format_estimate(RECALL, *column) for column in (*recall, area[widest])]
            body.append([f"{detected.name(detector)}{', pooled' * is_pooled}", *cells])
    header = [
        detected.kind,
        *(f"{rate:g}, %" for rate in detected.fppi),
        "all detections, %",
        f"mean from 0 to {max(detected.fppi):g}, %",
    ]
    folds = {fold for found in detected.found.values() for fold, _ in found.runs}
    spread = " ± SD over folds" if len(folds) > 1 else ""
    title = f"{detected.title}: {detected.recall}{spread}, at false positives per image"
    report.tables.append(Table(title, header, body, notes + detected.describe()))


def make_recall_facts(
    detected: Detected, detector: str, key: str, columns: Iterable[tuple[float, ...]], subset: str
) -> Iterator[Fact]:
    """Make the facts of (mean, deviation, low, high) at each rate."""
    for rate, (mean, deviation, *bounds) in zip(detected.rates, columns, strict=False):
        keys = RECALL, "froc", detector
        fact = detected.make_fact(*keys, name_rate(key, rate), Estimate(mean, *bounds))
        yield replace(fact, subset=subset, test=BOOTSTRAP)
        if np.isfinite(deviation):
            yield detected.make_fact(*keys, name_rate(f"{key}_sd", rate), deviation)


def add_false_positives(report: Report, detected: Detected) -> None:
    """Add false positives per normal mammogram and per mammogram with lesions.

    The columns are numbers of false positives per mammogram of either kind.
    """
    body = []
    for detector, found in detected.found.items():
        apart = false_positives_apart(found, detected.rates)
        for key, values in zip(("fp_normal", "fp_lesions"), apart, strict=True):
            for rate, value in zip(detected.rates, values, strict=True):
                name = name_rate(key, rate)
                fact = detected.make_fact(FALSE_POSITIVES, "froc", detector, name, value)
                report.facts.append(fact)
        cells = [
            f"{FALSE_POSITIVES.show(first)} / {FALSE_POSITIVES.show(second)}"
            for first, second in zip(*apart, strict=True)
        ]
        body.append([detected.name(detector), *cells])
    header = [detected.kind, *(f"{rate:g}" for rate in detected.fppi), "all detections"]
    title = "False positives per normal mammogram / per mammogram with lesions"
    report.tables.append(Table(title, header, body))


def add_scores(report: Report, detected: Detected) -> None:
    """Add the score from which on each run has at most so many false positives per mammogram.

    A user who wants that many gives it to `tfmammo predict --score`.
    """
    body = []
    for detector, found in detected.found.items():
        scores = {run: scores_at(part, detected.fppi) for run, part in found.parts().items()}
        for place, rate in enumerate(detected.fppi):
            by_run = {run: float(values[place]) for run, values in scores.items()}
            report.facts += list_repeats(SCORE, detector, name_rate("score", rate), by_run)
        columns = zip(*(scores[run] for run in sorted(scores)), strict=True)
        body.append([detected.name(detector), *(", ".join(map(SCORE.show, of)) for of in columns)])
    header = [detected.kind, *(f"{rate:g}" for rate in detected.fppi)]
    title = "Least score with at most so many false positives per mammogram, by run"
    report.tables.append(Table(title, header, body))


def add_differences(report: Report, detected: Detected, references: Mapping[str, str]) -> None:
    """Add how far the other detectors are from each reference.

    Recall has intervals for which the same patients are drawn for both. JAFROC's figure of merit
    has p-values as well, corrected by Holm over all pairs, each of which counts once.

    Args:
        report: Gets facts, and a table for each reference.
        detected: What was found.
        references: Name -> its role in a study, which the table's title says.
    """
    merit = choose_common_merit(detected.patients, *detected.found.values())
    others = {
        reference: [name for name in detected.found if name != reference]
        for reference in references
    }
    tests: dict[tuple[str, str], JafrocTest] = {}
    levels: dict[str, float] = {}
    for reference, names in others.items():
        for name in names:
            if (reference, name) not in tests:
                found = detected.found[name], detected.found[reference]
                test = jafroc_test(*found, detected.patients, merit, detected.bootstrap[2])
                tests[name, reference] = test
                levels |= {name: test.merit, reference: test.other}
    corrected = holm([test.p for test in tests.values()])
    pairs: dict[tuple[str, str], list[Fact]] = {}
    for (name, reference), p_corrected in zip(tests, corrected, strict=True):
        test = tests[name, reference]
        difference = Estimate(test.difference, test.low, test.high)
        fact = detected.make_fact(MERIT, "differences", name, merit, difference)
        fact = replace(fact, against=reference, test=JACKKNIFE, p=test.p)
        fact = replace(fact, p_corrected=float(p_corrected))
        pairs[name, reference] = [*compare_recall(detected, name, reference), fact]
    report.facts += [fact for of_pair in pairs.values() for fact in of_pair]
    report.facts += [
        detected.make_fact(MERIT, "froc", name, merit, value) for name, value in levels.items()
    ]
    for pair in list(pairs):
        pairs.setdefault(pair[::-1], [fact.reverse() for fact in pairs[pair]])
    header = [
        detected.kind,
        *(f"{rate:g}, %" for rate in detected.fppi),
        "all detections, %",
        f"{merit.upper()} figure of merit",
        "p, uncorrected",
        "p, Holm",
    ]
    notes = detected.describe(int(np.isfinite([test.p for test in tests.values()]).sum()))
    for reference, names in others.items():
        body = []
        for name in names:
            *recalls, last = pairs[name, reference]
            cells = [*map(RECALL.format_fact, recalls), MERIT.format_fact(last)]
            body.append([detected.name(name), *cells, *map(format_p, (last.p, last.p_corrected))])
        title = (
            f"Differences in {detected.recall} from {detected.name(reference)}"
            f"{references[reference]}, at false positives per image"
        )
        report.tables.append(Table(title, header, body, notes))


def compare_recall(detected: Detected, name: str, reference: str) -> Iterator[Fact]:
    """Compare a detector's recall with a reference's, in draws of the same patients.

    Where all draws differ alike, the interval reaches by the rule of three to either side, as that
    of `jafroc_test`.
    """
    found, against = detected.found[name], detected.found[reference]
    ours, theirs = (detected.average(one, detected.rates)[0] for one in (name, reference))
    low, high = froc_interval(
        found, detected.patients, detected.rates, *detected.bootstrap, against=against
    )
    differences = ours - theirs
    diseased = found.count_diseased(detected.patients)
    for place in np.flatnonzero((high - low < 1e-12) & (np.abs(differences) >= 1e-12)):
        low[place], high[place] = bound_alike(
            differences[place], diseased, detected.bootstrap[2], lowest=-1.0
        )
    for rate, *numbers in zip(detected.rates, differences, low, high, strict=True):
        key, difference = name_rate("tpr", rate), Estimate(*numbers)
        fact = detected.make_fact(RECALL, "differences", name, key, difference)
        yield replace(fact, against=reference, test=BOOTSTRAP)


def add_runs(report: Report, detected: Detected) -> None:
    """Add figure of merit and recall of each run; a table shows the former, one column a fold.

    Intervals and p count patients. This table shows how much runs differ besides. What no run made,
    such as random boxes, is skipped where there are folds, because it is of all of them.
    """
    merit = choose_common_merit(detected.patients, *detected.found.values())
    merits, recalls = {}, {}
    for name, found in detected.found.items():
        merits[name] = {run: jafroc(part, merit) for run, part in found.parts().items()}
        curves = froc_by_run(found, detected.rates)
        recalls[name] = {
            name_rate("tpr", rate): {run: float(curve.tpr[place]) for run, curve in curves.items()}
            for place, rate in enumerate(detected.rates)
        }
    folds = sorted({fold for of_name in merits.values() for fold, _ in of_name})
    body = []
    for name, of_name in merits.items():
        if {fold for fold, _ in of_name} != set(folds):
            continue
        report.facts += list_repeats(MERIT, name, merit, of_name)
        for key, of_rate in recalls[name].items():
            report.facts += list_repeats(RECALL, name, key, of_rate)
        cells = [
            ", ".join(MERIT.show(of_name[one]) for one in sorted(of_name) if one[0] == fold)
            for fold in folds
        ]
        body.append([detected.name(name), *cells])
    title = f"{merit.upper()} figure of merit of each run"
    report.tables.append(Table(title, [detected.kind, *(f"fold {fold}" for fold in folds)], body))


def list_repeats(
    measure: Measure, detector: str, key: str, values: Mapping[Run, float]
) -> Iterator[Fact]:
    """List the value of each fold, or with several seeds the mean over folds of each seed.

    `values` are by (fold, seed).
    """
    seeds = sorted({seed for _, seed in values})
    if len(seeds) == 1:
        for fold, seed in sorted(values):
            value, subset = values[fold, seed], f"fold={fold}"
            yield measure.make_fact("folds", detector, key, value, subset=subset)
        return
    for number in seeds:
        value = float(np.mean([value for (_, seed), value in values.items() if seed == number]))
        yield measure.make_fact("runs", detector, key, value, subset=f"run={number}")


def measure_seconds(seconds: Iterable[tuple[int, float]]) -> float:
    """Return the median time of a mammogram, s, averaged over detectors.

    The first one of each detector is skipped, because it includes tracing. The times, each with
    the number of its detector, are in the order of the work.
    """
    by_detector: dict[int, list[float]] = {}
    for detector, time_taken in seconds:
        by_detector.setdefault(detector, []).append(time_taken)
    medians = [np.median(times[1:] if len(times) > 1 else times) for times in by_detector.values()]
    return float(np.mean(medians))


def tabulate_seconds(seconds: Mapping[str, float], detected: Detected) -> tuple[list[Fact], Table]:
    """Tabulate how long each detector took for a mammogram, on this machine.

    It is neither in rows.csv nor in table.md, whose content is the same whenever an evaluation is
    repeated.
    """
    facts = [SECONDS.make_fact("seconds", name, "median", value) for name, value in seconds.items()]
    body = [[detected.name(fact.model), SECONDS.format(fact.value)] for fact in facts]
    title = "Seconds per mammogram, on this machine: reading, preprocessing and detection, median"
    return facts, Table(title, [detected.kind, "s"], body)
