"""Claims of the papers, and the rule by which rows decide them. index.md says it in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

from tfmammo.apps.report.facts import FOLDS, RUNS, About, Facts, Key
from tfmammo.apps.report.measures import capitalize, format_interval, format_value, name_measure
from tfmammo.config import Frozen
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.significance import bound_difference

Word = Literal["holds", "printed gain excluded", "does not hold", "not decided", "not tested"]
WORDS: tuple[Word, ...] = (
    "holds",
    "printed gain excluded",
    "does not hold",
    "not decided",
    "not tested",
)
DECIDED = WORDS[:3]
Printed = Mapping[str, Mapping[str, float]]
SIGNIFICANT = 0.05
CERTAIN = 0.01
FEWEST_RUNS = 3
SMOKE = "the scale smoke decides nothing"
NOT_MEASURED = "no difference was computed"
NO_RUN = "no run yet"
NOT_SIGNIFICANT = "not significant"
NO_TEST = "no interval and no p-value"
RUNS_DISAGREE = "runs disagree"
ONE_RUN = "one run of each model"
NOT_RECORDED = "the scores of single runs were not recorded"
OF_RUNS = (RUNS_DISAGREE, ONE_RUN, NOT_RECORDED)
RANDOM_START = "we trained the baseline from random weights, its authors from ImageNet's"
NOT_BEYOND = "not beyond what a trivial method gains"
BELOW_TRIVIAL = "not better than the trivial baseline"
SMALLER = "it depends on the patch size in pixels, and our patches are smaller than the paper's"
OTHER_DATA = "printed levels are compared only on the paper's data"
BELOW_LEVEL = "below the printed level"
BEYOND_REAL = "beyond what real patches have, which is not better"
DISAGREE = "another of our experiments shows the opposite"
READINGS = "not confirmed by the other reading of the measure"
NO_MARGIN = "the absence of a gain cannot be shown without an equivalence margin"
WIDTH = 1.96  # standard errors on either side, of a 95 % interval
DETECTED = 2.8 / (2 * WIDTH)  # widths of such an interval that a test detects with 80 % power


class Trivial(Frozen):
    """A trivial baseline: its name in the rows, and the measure that compares with it."""

    model: str
    measure: str
    higher: bool = True
    """Whether a larger value is better."""


@dataclass(frozen=True)
class Evidence:
    """What the rows say about one claim; texts are "" where there is nothing to say."""

    says: str  # the claim
    word: Word  # the verdict
    numbers: str = ""  # behind it
    why: str = ""  # nothing is decided, or was tested: one of a few sentences
    detail: str = ""  # what is behind that
    p: float = math.nan  # of the test
    detectable: str = ""  # the smallest difference that the test detects
    gain: str = ""  # our interval beside the printed gain
    certainty: str = ""  # "high", "moderate" or "low" of a decided claim
    facts: Facts | None = None  # that were judged
    seeds: int = 0  # that each of its models has; 0: not known
    stand_in: str = ""  # the model in place of the one that the claim names

    @property
    def is_decided(self) -> bool:
        """Whether it holds, does not hold, or its printed gain is excluded."""
        return self.word in DECIDED

    @property
    def basis(self) -> str:
        """The data and seeds that it rests on, in words."""
        if not self.facts:
            return ""
        about = self.facts.about
        kind = "the paper's data" if about.is_papers_data else "a substitute for the paper's data"
        seeds = f"{self.seeds} seed{'' if self.seeds == 1 else 's'}" if self.seeds else ""
        preliminary = "preliminary" if about.is_preliminary else ""
        parts = (self.stand_in, about.basis or kind, seeds, preliminary)
        return ", ".join(filter(None, parts))

    def withhold(self, why: str, detail: str = "") -> Evidence:
        """Return it as not decided."""
        return replace(self, word="not decided", why=why, detail=detail, certainty="")


class Gains(NamedTuple):
    """The interval of our gain, and the printed one."""

    low: float
    high: float
    printed: float
    smallest: float  # gain that the paper would print so
    largest: float
    scale: float  # of a difference in our unit to a gain
    kind: str
    unit: str

    @property
    def is_excluded(self) -> bool:
        """Whether our whole interval is outside of what the paper would print so."""
        return self.high < self.smallest or self.low > self.largest

    @property
    def p(self) -> float:
        """The p-value of a gain as large as the smallest one, from our interval."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return math.erfc((self.smallest - middle) / half * WIDTH / math.sqrt(2)) if half else 0.0

    def describe(self) -> str:
        """Say whether our interval excludes a gain as large as the printed one.

        With one more decimal where the difference would not be seen without it.
        """
        is_inside = self.low <= self.printed <= self.high
        usual = 1 if self.unit else 3  # of an AUC
        low, high, printed = (round(value, usual) for value in (self.low, self.high, self.printed))
        digits = usual if (low <= printed <= high) == is_inside else usual + 1
        word = "includes" if is_inside else "excludes"
        if not is_inside and not self.is_excluded:
            word = "comes within rounding of"
        unit = f" {self.unit}" if self.unit else ""
        printed_gain = f"{self.printed:.{digits}f}{unit}"
        if self.kind == "gain" and digits == usual:  # of the row itself
            return f"the interval over patients {word} the printed gain of {printed_gain}"
        ours = f"our {self.kind}, {self.low:.{digits}f} to {self.high:.{digits}f}{unit}"
        return f"{ours}, {word} the printed {printed_gain}"


class Difference(Frozen):
    """The claim that one model is better than another, or that an added thing brings a gain."""

    says: str
    """The claim."""
    model: str
    """The model that the paper finds better."""
    against: str = ""
    """The other one; "": a level is compared with `null_value`."""
    measure: str
    """The measure."""
    reading: str = ""
    """Another measure that the paper may mean, by which the claim must be decided alike."""
    table: str = ""
    """The table of the row; "": differences."""
    subset: str = ""
    """The part of the data."""
    higher: bool = True
    """Whether a larger value is better."""
    null_value: float = 0
    """What the row is compared with: 0.5 of an AUC."""
    is_order: bool = True
    """Whether both are networks, whose single runs must agree."""
    is_absent: bool = False
    """Whether the paper finds no gain."""
    is_rival: bool = False
    """Whether `against` is another paper's model, which must beat the trivial baseline as well:
    where our copy of it failed to learn, to be better proves nothing.
    """
    imagenet: str = ""
    """The train script of a rival that its own paper starts from ImageNet's weights."""
    printed: str = ""
    """Column of both models' printed values; "": the paper prints none."""
    printed_gain: tuple[str, str] | tuple[str, str, str] | tuple[()] = ()
    """Row and column of the printed gain in our unit, or two rows and their column of shares, whose
    difference it is; (): the paper prints none.
    """
    beyond: Key | None = None
    """The row of what is gained beyond a trivial method."""
    trivial: Key | None = None
    """The row of a trivial method, beyond whose interval ours must be."""
    real: Key | float | None = None
    """The value of real patches, or its row, where a model that is beyond it is not better."""

    @property
    def named(self) -> tuple[str, ...]:
        """The models that it names."""
        return self.model, self.against

    @property
    def models(self) -> tuple[str, ...]:
        """The networks whose order it is about."""
        return self.named if self.is_order else ()

    def judge(self, facts: Facts, printed: Printed) -> Evidence:
        """Judge the claim without the item's trivial baseline."""
        row = facts.find(self.model, self.measure, self.against, self.table, self.subset)
        if row is None or math.isnan(row.value):
            return Evidence(self.says, "not tested", why=NOT_MEASURED)
        wants_higher = self.higher != self.is_absent
        evidence = _judge_row(self.says, row, wants_higher, self.null_value)
        if self.is_absent and evidence.word != "does not hold":
            evidence = evidence.withhold(NO_MARGIN)
        is_favourable = evidence.word == "holds"
        gains = self._find_gains(row, facts, printed)
        evidence = replace(evidence, gain=gains.describe() if gains else "")
        is_above = row.value > 0
        is_doubtful = self.is_order and evidence.is_decided
        if is_doubtful and (doubt := self._doubt_runs(facts, is_above)):
            evidence = evidence.withhold(*doubt)
        if self.imagenet in facts.about.random_starts:
            evidence = replace(evidence, gain="").withhold(RANDOM_START)
        elif not (is_favourable or evidence.is_decided) and self._excludes_printed(gains, facts):
            p = gains.p if gains else math.nan
            evidence = replace(
                evidence, word="printed gain excluded", why="", detail="", p=p, detectable=""
            )
        evidence = self._compare_readings(evidence, facts)
        return self._require_more(evidence, row, facts) if evidence.word == "holds" else evidence

    def _compare_readings(self, evidence: Evidence, facts: Facts) -> Evidence:
        if not (self.reading and evidence.is_decided):
            return evidence
        row = facts.find(self.model, self.reading, self.against, self.table, self.subset)
        if row and _judge_row("", row, self.higher, self.null_value).word == evidence.word:
            return evidence
        return evidence.withhold(READINGS, _describe(row) if row else NOT_MEASURED)

    def _require_more(self, evidence: Evidence, row: Fact, facts: Facts) -> Evidence:
        if self.beyond:
            rest = self.beyond.find(facts)
            if rest is None:
                return evidence.withhold(NOT_BEYOND, "not compared with that method")
            other = _judge_row("", rest, self.higher)
            if other.word != "holds":
                return evidence.withhold(
                    NOT_BEYOND, f"compared with that method, {_describe(rest)}"
                )
            both = f"{evidence.numbers}; compared with a trivial method, {_describe(rest)}"
            is_known = math.isfinite(evidence.p) and math.isfinite(other.p)
            p = max(evidence.p, other.p) if is_known else math.nan
            evidence = replace(evidence, numbers=both, p=p)
        if self.trivial:
            rest = self.trivial.find(facts)
            upper, lower = (row, rest) if self.higher else (rest, row)
            if not upper or not lower or not upper.low > lower.high:
                numbers = f"has {_describe(rest)}" if rest else "was not measured"
                return evidence.withhold(NOT_BEYOND, f"that method {numbers}")
        if self.real is not None:
            real = self.real.find(facts) if isinstance(self.real, Key) else self.real
            real = real.value if isinstance(real, Fact) else real
            ours = facts.find(self.model, self.measure, subset=self.subset)
            if real is None or not ours or (ours.value > real) == self.higher:
                return evidence.withhold(BEYOND_REAL)
        return evidence

    def _doubt_runs(self, facts: Facts, is_above: bool) -> tuple[str, ...]:
        """Say why other runs might change the order; () where all known ones agree."""
        sign = 1 if is_above else -1
        table, *both = self._find_repeats(facts)
        if not table:
            several = facts.about.count_runs(self.models, self.subset) > 1
            return (NOT_RECORDED if several else ONE_RUN,)
        first, second = ({part: sign * value for part, value in values.items()} for values in both)
        if table == RUNS:
            said = "the order does not hold between all runs"
            agree = min(first.values()) > max(second.values())
        else:
            said = "the order does not hold in every fold"
            agree = first.keys() == second.keys() and all(
                value > second[fold] for fold, value in first.items()
            )
        means = " against ".join(
            ", ".join(format_value(value, self.measure) for value in values.values())
            for values in both
        )
        return () if agree else (RUNS_DISAGREE, f"{said}: {means}")

    def _find_repeats(self, facts: Facts) -> tuple[str, dict[str, float], dict[str, float]]:
        """Find the table that has single runs of both models, else folds; "" where none has."""
        for table in (RUNS, FOLDS):
            first, second = (
                facts.find_repeats(table, name, self.measure, self.subset) for name in self.named
            )
            if min(len(first), len(second)) > 1:
                return table, first, second
        return "", {}, {}

    def _excludes_printed(self, gains: Gains | None, facts: Facts) -> bool:
        """Whether our intervals, over patients and over runs, are below what a paper prints so.

        Without scores of single runs, nothing is excluded: the interval over patients leaves out
        how much runs differ.
        """
        is_repeated = facts.about.count_runs(self.named, self.subset) >= FEWEST_RUNS
        if not (facts.about.is_papers_data and is_repeated and gains):
            return False
        if not self.is_order:
            return gains.high < gains.smallest
        table, first, second = self._find_repeats(facts)
        if not table or (table == FOLDS and first.keys() != second.keys()):
            return False
        sign = 1 if self.higher else -1
        ours, other = ([sign * one[key] for key in sorted(one)] for one in (first, second))
        bound = bound_difference(ours, other, is_paired=table == FOLDS) * gains.scale
        return gains.high < gains.smallest and bound < gains.smallest

    def _find_gains(self, row: Fact, facts: Facts, printed: Printed) -> Gains | None:
        """Find our interval and the printed gain, as a gain where less is better, too."""
        low, high = sorted((row.low, row.high)) if self.higher else sorted((-row.low, -row.high))
        if math.isnan(low) or math.isnan(high):
            return None
        if self.printed_gain:
            first, *second, column = self.printed_gain
            wanted = printed[first][column]
            # of an approximate number, such as "about ten", printed.json says how approximate
            half = printed[first].get(f"{column}, plus or minus", _round_off(wanted))
            if second:
                worse = printed[second[0]][column]
                wanted, half = 100 * (wanted - worse), 100 * (half + _round_off(worse))
            unit = "points" if row.unit == "%" else row.unit
            return Gains(low, high, wanted, wanted - half, wanted + half, 1, "gain", unit)
        if not self.printed:
            return None
        level = facts.find(self.against, self.measure, subset=self.subset)
        if level is None or not level.value:  # of a network that found nothing
            return None
        better, worse = (printed[name][self.printed] for name in self.named)
        sign = 1 if self.higher else -1
        halves = _round_off(better), _round_off(worse)
        wanted, smallest, largest = (
            sign * ((better + part * halves[0]) / (worse - part * halves[1]) - 1) * 100
            for part in (0, -sign, sign)
        )
        scale = 100 / level.value
        return Gains(
            low * scale, high * scale, wanted, smallest, largest, scale, "relative gain", "%"
        )


class Level(Frozen):
    """The claim that a model reaches a printed value, with its whole interval."""

    says: str
    """The claim."""
    model: str
    """The model."""
    measure: str
    """The measure."""
    level: tuple[str, str]
    """Row and column of the printed value."""
    table: str = "means"
    """The table of the row."""
    factor: float = 1
    """Our unit in the printed one: 100 where ours is per cent and the paper's a fraction."""
    subset: ClassVar[str] = ""
    is_rival: ClassVar[bool] = False

    @property
    def named(self) -> tuple[str, ...]:
        """The model that it names."""
        return (self.model,)

    @property
    def models(self) -> tuple[str, ...]:
        """The network that it is about."""
        return (self.model,)

    def judge(self, facts: Facts, printed: Printed) -> Evidence:
        """Judge the claim without the trivial baseline. A level is never said not to hold."""
        row = facts.find(self.model, self.measure, table=self.table)
        if row is None:
            return Evidence(self.says, "not tested", why=NOT_MEASURED)
        target = printed[self.level[0]][self.level[1]] * self.factor
        numbers = f"{capitalize(_describe(row))}, printed {target:g}"
        evidence = Evidence(self.says, "not decided", numbers)
        if math.isnan(row.high):
            return evidence.withhold(NO_TEST)
        if not facts.about.is_papers_data:
            return evidence.withhold(OTHER_DATA)
        if row.low >= target:
            return replace(evidence, word="holds")
        is_within = row.high >= target
        return evidence.withhold(BELOW_LEVEL, "within our interval" if is_within else "")


Claim = Difference | Level


def _round_off(number: float) -> float:
    """Return half a unit of a printed number's last digit: 0.05 of 91.7, 0.5 of 10."""
    return 0.5 * 10.0 ** -len(str(number).partition(".")[2])


def _describe(row: Fact) -> str:
    name = name_measure(row.measure)
    if row.against:  # a difference of logarithms is in no unit of real patches
        name = name.removesuffix(", real = 1")
    return f"{name} {format_interval(row, with_p=True)}"


def _judge_row(sentence: str, row: Fact, wants_higher: bool, null: float = 0) -> Evidence:
    p = row.p if math.isnan(row.p_corrected) else row.p_corrected
    numbers = capitalize(_describe(row))
    has_interval = math.isfinite(row.low) and math.isfinite(row.high)
    if math.isfinite(p):
        is_decisive = p < SIGNIFICANT and row.value != null
    elif has_interval:
        is_decisive = row.low > null or row.high < null
    else:
        return Evidence(sentence, "not decided", numbers, NO_TEST)
    if not is_decisive:
        unit = "points" if row.unit == "%" else row.unit
        width = DETECTED * (row.high - row.low)
        detectable = format_value(width, row.measure, unit) if has_interval else ""
        return Evidence(sentence, "not decided", numbers, NOT_SIGNIFICANT, "", p, detectable)
    word: Word = "holds" if (row.value > null) == wants_higher else "does not hold"
    return Evidence(sentence, word, numbers, p=p)


def judge_claim(
    claim: Claim,
    facts: Facts,
    printed: Printed,
    trivial: Trivial | None = None,
    is_sized: bool = False,
) -> Evidence:
    """Judge a claim by the rule.

    `printed` has the paper's numbers, row -> column -> number. A claim that `is_sized` depends on
    the pixels of a patch.
    """
    ours = facts.about.stand_ins.get(claim.named[-1], "")
    if ours:
        printed = {**printed, ours: printed.get(claim.model, {})}
        claim = claim.model_copy(update={"model": ours})
    seeds = facts.about.count_seeds(claim.named, claim.subset)
    evidence = replace(claim.judge(facts, printed), facts=facts, seeds=seeds, stand_in=ours)
    if not evidence.is_decided and evidence.why not in OF_RUNS:
        return evidence
    if facts.about.scale == "smoke":
        return evidence.withhold(SMOKE)
    if is_sized and facts.about.is_smaller:
        return evidence.withhold(SMALLER)
    if trivial and trivial.measure == claim.measure:
        # A network of the paper that learned less than that refutes nothing, however often it runs.
        is_enough = evidence.word == "holds" and not claim.is_rival
        for name in claim.models[:1] if is_enough else claim.models:
            if not beats(facts, name, trivial, claim.subset):
                return evidence.withhold(BELOW_TRIVIAL, f"{name} does not beat {trivial.model}")
    if not evidence.is_decided:
        return evidence
    runs = facts.about.count_runs(claim.named, claim.subset)
    are_flat = facts.are_flat(claim.named, claim.subset)
    return replace(evidence, certainty=_rate_certainty(evidence, facts.about, runs, are_flat))


def withhold_contradicted(claim: Claim, evidence: Evidence, others: Iterable[Evidence]) -> Evidence:
    """Withhold a verdict on substitute data if another experiment is significant against it."""
    facts = evidence.facts
    if not (evidence.is_decided and facts and isinstance(claim, Difference)):
        return evidence
    if facts.about.is_papers_data:
        return evidence
    for other in others:
        if not (other.facts and (other.is_decided or other.why in OF_RUNS)):
            continue
        row = other.facts.find(claim.model, claim.measure, claim.against, claim.table, claim.subset)
        word = row and _judge_row("", row, claim.higher, claim.null_value).word
        if word in DECIDED and word != evidence.word:
            return evidence.withhold(DISAGREE, f"{other.facts.about.data}: {other.numbers}")
    return evidence


def beats(facts: Facts, model: str, trivial: Trivial, subset: str = "") -> bool:
    """Whether a model beats the trivial baseline, by their test, else by its own interval."""
    row = facts.find(model, trivial.measure, trivial.model, subset=subset)
    if row:
        return _judge_row("", row, trivial.higher).word == "holds"
    both = (model, trivial.model)
    own, other = (facts.find(name, trivial.measure, subset=subset) for name in both)
    if not own or not other:
        return False
    return own.low > other.value if trivial.higher else own.high < other.value


def _rate_certainty(evidence: Evidence, about: About, runs: int, are_flat: bool) -> str:
    if about.is_preliminary or not are_flat or not evidence.p < CERTAIN:
        return "low"
    strengths = about.is_papers_data + (runs >= FEWEST_RUNS) + (not about.is_smaller)
    return ("low", "low", "moderate", "high")[strengths]
