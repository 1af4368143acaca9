"""Claims of the papers, and the rule by which facts decide them.

The rule, for each claim:

- The test behind a claim is decisive if its p is below 0.05 (corrected where the evaluation
  corrects), or if it has no p and the 95 % interval excludes 0.
- *reproduced*: the test is decisive on the paper's side, and every model of the claim is above the
  trivial baseline.
- *contradicted*: the test is decisive on the other side, and every model of the claim is above the
  trivial baseline. Otherwise the trainings may just be too short.
- The test counts patients, who are many; trainings differ by their seed, too. So an order of two
  models that were trained once each decides nothing. Of several trainings on the same patients,
  each of the one must also be better than each of the other. Of one training in each fold, the
  order must hold in every fold. Two answers of the same networks are compared as they stand: other
  trainings would change both. Gains have no such rule: their tables show each training beside the
  test.
- That nothing is gained is contradicted by a decisive gain. A test that finds none is no proof, so
  it is reproduced only by a decisive loss.
- A gain is reproduced only if it is also beyond what a trivial baseline gains: augmented copies, or
  the same brightness spread evenly. It is contradicted as the paper states it, which compares with
  no such baseline. Where no test compares the two, its interval must lie beyond the baseline's. Its
  p is the larger one of both tests.
- *not attempted*: the facts have no such number.
- *undecided*: everything else. The scale `smoke` decides nothing, and a printed level is decided on
  the paper's data alone: other data may be easier or harder. What depends on the pixels of a patch
  is undecided where ours has fewer.
- A network that its own paper starts from ImageNet's weights is the paper's only with such a start.
  An order against one that starts from random weights decides nothing.
- Where the paper prints a value of both models, our interval also includes or excludes a gain as
  large as the printed one, in per cent. A claim may be undecided and its printed gain excluded.
  Where trainings overlap, others might say otherwise.

A table or figure is reproduced if all its claims are, contradicted if one of them is, else not
attempted if one of them is, and undecided otherwise. A picture without a measure of its own has the
verdict of the table that measures what it shows.

Certainty of a decided verdict: *high* if all p are below 0.01, on the paper's data and over three
seeds or folds; *moderate* if all p are below 0.01 and one of the two holds; *low* otherwise, and
wherever a validation curve is not flat at its end, or none is known.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tfmammo.apps.report.tables import (
    Cell,
    find_cell,
    find_difference,
    find_folds,
    find_level,
    find_trainings,
)
from tfmammo.document import TableFacts

Word = Literal["reproduced", "contradicted", "undecided", "not attempted"]
NOT_ATTEMPTED: Word = "not attempted"
Printed = Mapping[str, Mapping[str, float]]
SIGNIFICANT = 0.05
CERTAIN = 0.01
FEWEST_TRAININGS = 3
OVERLAP = "trainings overlap"  # how a doubt of an order begins, where several trainings are known
EXCLUDED = "excluded"  # the last word on a gain as large as the printed one


@dataclass(frozen=True)
class Floor:
    """A trivial baseline.

    Attributes:
        row: Its name in the tables.
        column: A pattern of the measure's heading.
        higher: Whether a larger value is better.
    """

    row: str
    column: str
    higher: bool = True


@dataclass(frozen=True)
class Evidence:
    """What the facts say of one claim.

    Attributes:
        sentence: The claim.
        word: The verdict.
        reason: The numbers behind it, or why there are none.
        p: p of the test; None where there is none.
        gain: The printed gain beside ours, in per cent; "" where the paper prints none.
        certainty: "high", "moderate" or "low" of a decided claim; "" elsewhere.
        measure: What the numbers measure; "" where there are none.
    """

    sentence: str
    word: Word
    reason: str
    p: float | None = None
    gain: str = ""
    certainty: str = ""
    measure: str = ""

    @property
    def is_decided(self) -> bool:
        """Whether the claim is reproduced or contradicted."""
        return self.word in ("reproduced", "contradicted")

    @property
    def numbers(self) -> str:
        """The measure and the numbers behind the verdict, or why there are none."""
        return f"{self.measure}: {self.reason}" if self.measure else self.reason

    def withhold(self, reason: str) -> Evidence:
        """Return it undecided, for a further reason."""
        return replace(self, word="undecided", reason=f"{self.reason}; {reason}")

    def require(self, other: Evidence, what: str) -> Evidence:
        """Return it as certain as a further test makes it, undecided where that is not passed.

        Args:
            other: The further test.
            what: What that tests.
        """
        reason = f"{what} {other.reason}"
        if other.word != self.word:
            return self.withhold(reason)
        p = None if self.p is None or other.p is None else max(self.p, other.p)
        return replace(self, reason=f"{self.reason}; {reason}", p=p)

    @property
    def verdict(self) -> str:
        """The verdict in words, with its certainty."""
        return f"{self.word} ({self.certainty})" if self.certainty else self.word


@dataclass(frozen=True)
class Order:
    """One model is better than another one in a measure.

    Attributes:
        sentence: The claim.
        better: Name of the model that the paper finds better.
        worse: Name of the other one.
        column: A pattern of the measure's heading.
        higher: Whether a larger value is better.
        printed: Column of the printed values of both models; "": the paper prints none.
        is_one_network: Whether both are answers of the same networks, so that other trainings would
            change both.
        pretrained: The script that trains the worse one, where its own paper starts it from
            ImageNet's weights; "" elsewhere.
    """

    sentence: str
    better: str
    worse: str
    column: str
    higher: bool = True
    printed: str = ""
    is_one_network: bool = False
    pretrained: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that must be better than the trivial baseline."""
        return self.better, self.worse

    def judge(self, tables: Sequence[TableFacts], printed: Printed) -> Evidence:
        """Judge the claim without a trivial baseline."""
        cell = find_difference(tables, self.better, self.worse, self.column)
        if cell is None:
            reason = f"{self.better} and {self.worse} were not compared"
            return Evidence(self.sentence, NOT_ATTEMPTED, reason)
        evidence = _judge_difference(self.sentence, cell, self.higher, cell.p)
        gain = self._compare_gains(cell, tables, printed)
        doubt = self._doubt_trainings(tables, cell.value > 0)
        if doubt.startswith(OVERLAP) and gain:
            gain += " for these trainings"
        if doubt and evidence.is_decided:
            evidence = evidence.withhold(doubt)
        return replace(evidence, gain=gain)

    def _doubt_trainings(self, tables: Sequence[TableFacts], is_above: bool) -> str:
        """Say why other trainings might change the order; "" where each known one has it.

        Args:
            tables: The facts.
            is_above: Whether the first model has the larger value.
        """
        if self.is_one_network:
            return ""
        first, second = (find_trainings(tables, name, self.column) for name in self.models)
        if len(first) > 1 and len(second) > 1:
            order = OVERLAP
            differ = min(first) > max(second) if is_above else max(first) < min(second)
        else:
            first, second = (find_folds(tables, name, self.column) for name in self.models)
            are_known = all(map(math.isfinite, first + second))
            if len(first) < 2 or len(first) != len(second) or not are_known:
                return "one training each, or not known how each does"
            order = "not in every fold"
            sign = 1 if is_above else -1
            differ = all(sign * (one - other) > 0 for one, other in zip(first, second, strict=True))
        means = " and ".join(", ".join(map(str, values)) for values in (first, second))
        return "" if differ else f"{order}: {means}"

    def _compare_gains(self, cell: Cell, tables: Sequence[TableFacts], printed: Printed) -> str:
        """Say whether our interval excludes a gain as large as the printed one.

        Gains are in per cent of the worse model's value, because levels differ between data sets.
        """
        level = find_level(tables, self.worse, self.column)
        if not self.printed or level is None or cell.low is None or cell.high is None:
            return ""
        if level.value == 0:  # of a network that found nothing, which has no per cent
            return ""
        sign = 1 if self.higher else -1
        printed_worse = printed[self.worse][self.printed]
        printed_gain = sign * (printed[self.better][self.printed] / printed_worse - 1) * 100
        low, high = sorted(sign * bound / level.value * 100 for bound in (cell.low, cell.high))
        word = "included" if low <= printed_gain <= high else EXCLUDED
        return f"{printed_gain:.1f} %, ours {low:.1f} to {high:.1f} %: {word}"


@dataclass(frozen=True)
class Gain:
    """A cell of a table of differences is positive, or negative.

    Attributes:
        sentence: The claim.
        row: A pattern of the line.
        column: A pattern of the heading.
        title: A pattern of the table's title.
        p_column: A pattern of the heading of p, where that is a column; "": p stands in the cell.
        positive: Whether the paper finds a gain.
        level: The cell's value without a gain: 0.5 of an area under the curve.
        beyond: A pattern of the title of the differences from the trivial baseline; "": none.
        beyond_edit: A pattern of the heading of what is gained beyond a trivial edit; "": none.
        beyond_row: A pattern of the trivial baseline's line in the same table; "": none.
        is_absent: Whether the paper finds that there is none.
        printed: Row and column of the printed gain, in our unit; (): the paper prints none.
    """

    sentence: str
    row: str
    column: str
    title: str = "*"
    p_column: str = ""
    positive: bool = True
    level: float = 0
    beyond: str = ""
    beyond_edit: str = ""
    beyond_row: str = ""
    is_absent: bool = False
    printed: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """No model is compared with the trivial baseline: the difference has one of its own."""
        return ()

    def judge(self, tables: Sequence[TableFacts], printed: Printed) -> Evidence:
        """Judge the claim."""
        evidence = self._judge_alone(tables)
        if self.printed:
            evidence = replace(evidence, gain=self._compare_gains(tables, printed))
        if evidence.word != "reproduced":
            return evidence
        if self.beyond:
            rest = replace(self, title=self.beyond)._judge_alone(tables)
            evidence = evidence.require(rest, "beyond the trivial baseline")
        if self.beyond_edit:
            rest = replace(self, column=self.beyond_edit, p_column="")._judge_alone(tables)
            evidence = evidence.require(rest, "beyond the trivial edit")
        if self.beyond_row:
            ours, trivial = (
                find_cell(tables, self.title, row, self.column)
                for row in (self.row, self.beyond_row)
            )
            if not ours or not trivial or not _is_beyond(ours, trivial, self.positive):
                numbers = trivial.text if trivial else "was not measured"
                return evidence.withhold(f"the trivial baseline {numbers}")
        return evidence

    def _judge_alone(self, tables: Sequence[TableFacts]) -> Evidence:
        """Judge the claim without a trivial baseline."""
        cell = find_cell(tables, self.title, self.row, self.column)
        if cell is None:
            return Evidence(self.sentence, NOT_ATTEMPTED, "no such line was measured")
        p = cell.p
        if self.p_column:
            of_test = find_cell(tables, self.title, self.row, self.p_column)
            p = of_test.value if of_test else None
        is_positive = self.positive and not self.is_absent
        return _judge_difference(self.sentence, cell, is_positive, p, self.level)

    def _compare_gains(self, tables: Sequence[TableFacts], printed: Printed) -> str:
        """Say whether our interval excludes the printed gain; "" where there is no interval."""
        cell = find_cell(tables, self.title, self.row, self.column)
        if cell is None or cell.low is None or cell.high is None:
            return ""
        row, column = self.printed
        gain = printed[row][column]
        word = "included" if cell.low <= gain <= cell.high else EXCLUDED
        return f"{gain:g}, ours {cell.low:g} to {cell.high:g}: {word}"


@dataclass(frozen=True)
class Level:
    """A model reaches a printed value.

    A level on other data than the paper's decides nothing. It is never contradicted.

    Attributes:
        sentence: The claim.
        row: A pattern of the model's line.
        column: A pattern of the measure's heading.
        printed: Row and column of the printed value.
        factor: Our unit in the printed one: 100 where ours is per cent and the paper's a fraction.
    """

    sentence: str
    row: str
    column: str
    printed: tuple[str, str]
    factor: float = 1

    @property
    def models(self) -> tuple[str, ...]:
        """The model must be better than the trivial baseline."""
        return (self.row,)

    def judge(self, tables: Sequence[TableFacts], printed: Printed) -> Evidence:
        """Judge the claim without a trivial baseline."""
        cell = find_level(tables, self.row, self.column)
        if cell is None:
            return Evidence(self.sentence, NOT_ATTEMPTED, "it was not measured")
        target = printed[self.printed[0]][self.printed[1]] * self.factor
        reason = f"{cell.text} against {target:g} as printed"
        if cell.high is None:
            return Evidence(self.sentence, "undecided", f"{reason}, without an interval")
        if cell.value >= target:
            return Evidence(self.sentence, "reproduced", reason)
        word = "not reached" if cell.high < target else "within our interval"
        return Evidence(self.sentence, "undecided", f"{reason}, {word}")


Claim = Order | Gain | Level


def _is_beyond(ours: Cell, trivial: Cell, is_above: bool) -> bool:
    """Whether our interval lies wholly above the trivial one, or wholly below."""
    upper, lower = (ours, trivial) if is_above else (trivial, ours)
    return upper.low is not None and lower.high is not None and upper.low > lower.high


def _judge_difference(
    sentence: str, cell: Cell, is_positive: bool, p: float | None, level: float = 0
) -> Evidence:
    reason = cell.text
    if p is not None and cell.p is None:
        reason += f", p {p:g}" if p >= 0.001 else ", p < 0.001"
    if p is not None:
        is_decisive = p < SIGNIFICANT
    elif cell.low is not None and cell.high is not None:
        is_decisive = cell.low > level or cell.high < level
    else:
        text = f"{reason}: no interval and no p"
        return Evidence(sentence, "undecided", text, measure=cell.measure)
    if not is_decisive or cell.value == level:
        return Evidence(sentence, "undecided", reason, p, measure=cell.measure)
    word: Word = "reproduced" if (cell.value > level) == is_positive else "contradicted"
    return Evidence(sentence, word, reason, p, measure=cell.measure)


def judge_claim(
    claim: Claim,
    tables: Sequence[TableFacts],
    printed: Printed,
    floor: Floor | None,
    scale: str,
    is_papers_data: bool = True,
    commands: Sequence[str] = (),
) -> Evidence:
    """Judge a claim by the rule of this module.

    Args:
        claim: The claim.
        tables: The facts.
        printed: Row -> column -> number, as the paper prints them.
        floor: The trivial baseline; None where there is none.
        scale: "smoke", "small" or "paper".
        is_papers_data: Whether the data are the paper's.
        commands: The commands behind the facts.
    """
    evidence = claim.judge(tables, printed)
    if evidence.word == NOT_ATTEMPTED:
        return evidence
    if isinstance(claim, Order) and starts_at_random(claim.pretrained, commands):
        # nor does the printed gain concern such a network
        evidence = replace(evidence, gain="").withhold(
            f"not decided: {claim.worse} starts from random weights, in its own paper from ImageNet"
        )
    if scale == "smoke":
        return evidence.withhold("the scale smoke decides nothing")
    if isinstance(claim, Level) and evidence.is_decided and not is_papers_data:
        return evidence.withhold("a level on other data decides nothing")
    if evidence.is_decided and floor:
        below = [
            model
            for model in claim.models
            if compare_with_floor(tables, model, floor) != "better than"
        ]
        if below:
            return evidence.withhold(f"{' and '.join(below)} not better than {floor.row}")
    return evidence


def starts_at_random(script: str, commands: Sequence[str]) -> bool:
    """Whether a script trains a network from random weights, as its config does by default.

    Args:
        script: As of `Order.pretrained`; none starts at random where it is "".
        commands: The commands behind the facts.

    Examples:
        >>> command = "python train/segnet.py --config configs/segnet.yaml --set data.fold=0"
        >>> starts_at_random("train/segnet.py", [command])
        True
        >>> starts_at_random("train/segnet.py", [f"{command} model.weights=vgg16.h5"])
        False
    """
    if not script:
        return False
    # what stands before it, of a training that was made elsewhere, is prose
    words = [shlex.split(command.rpartition("python ")[2]) for command in commands]
    runs = [run for run in words if script in run]
    return not runs or not all(
        any(word.startswith("model.weights=") and word != "model.weights=none" for word in run)
        for run in runs
    )


def compare_with_floor(tables: Sequence[TableFacts], model: str, floor: Floor) -> str:
    """Compare a model with the trivial baseline, by their test, else by its own interval.

    Returns:
        "better than", "not better than" or "not compared with".
    """
    difference = find_difference(tables, model, floor.row, floor.column)
    if difference:
        evidence = _judge_difference("", difference, floor.higher, difference.p)
        return "better than" if evidence.word == "reproduced" else "not better than"
    own = find_level(tables, model, floor.column)
    baseline = find_level(tables, floor.row, floor.column)
    if not own or not baseline or own.low is None or own.high is None:
        return "not compared with"
    is_better = own.low > baseline.value if floor.higher else own.high < baseline.value
    return "better than" if is_better else "not better than"


def combine(evidence: Sequence[Evidence]) -> Word:
    """Combine the verdicts of an item's claims."""
    words = {part.word for part in evidence}
    if "contradicted" in words:
        return "contradicted"
    if NOT_ATTEMPTED in words:
        return NOT_ATTEMPTED
    return "reproduced" if words == {"reproduced"} else "undecided"


def rate_certainty(
    evidence: Sequence[Evidence], is_papers_data: bool, trainings: int, are_flat: bool
) -> str:
    """Rate how certain a decided verdict is, by the rule of this module.

    Args:
        evidence: The claims of a decided item.
        is_papers_data: Whether the data are the paper's.
        trainings: The smallest number of seeds or folds of a model.
        are_flat: Whether validation curves are known, and every one is flat at its end.
    """
    decisive = [part for part in evidence if part.is_decided]
    if not are_flat or any(part.p is None or part.p >= CERTAIN for part in decisive):
        return "low"
    strengths = is_papers_data + (trainings >= FEWEST_TRAININGS)
    return ("low", "moderate", "high")[strengths]
