"""The report as a page: one HTML file with its pictures inside, and the same in Markdown.

Both come from facts, printed numbers and the rule of verdicts alone, and hold no time and no path.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from tfmammo.apps.report import curves, verdicts
from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.facts import Facts
from tfmammo.apps.report.items import EXTRAS, ITEMS, Extra, Item, find_item
from tfmammo.apps.report.verdicts import Evidence, Floor, Word
from tfmammo.document import Block, Code, Grid, Heading, Picture, Points, Text
from tfmammo.errors import DataError
from tfmammo.evaluation.printed import read_papers

TITLE = "The five papers, reproduced"
WORDS: tuple[Word, ...] = ("reproduced", "contradicted", "undecided", "not attempted")
LIMIT = 16  # lines of a table that the page shows; the facts hold all of them
MISSING = "The picture is not here; the commands below make it."
CURVES = (
    "Validation curves. A curve is flat where its last two quarters differ by less than two "
    "standard errors, or by less than 1 %."
)
SPEED = (
    "Speed beside PyTorch, memory and cost are in docs/measurements.md; what benchmarks/all.py "
    "measured, with the machines' descriptions, is in docs/results/speed.json and speed_amx.json."
)
# The rule of tfmammo.apps.report.verdicts, as the page's head says it.
RULES = (
    "reproduced: every claim's test is decisive (p below 0.05, or an interval without "
    "0) on the paper's side, and the models are better than the trivial baseline.",
    "contradicted: a claim's test is decisive on the other side, and the models are "
    "better than the trivial baseline, where there is one.",
    "An order of two models that were trained once each decides nothing. Of several trainings on "
    "the same patients, each of the one must also be better than each of the other: of three "
    "trainings each, chance does that once in ten. Of one training in each fold, the order must "
    "hold in every fold: of three folds, chance does that once in four. Two answers of the same "
    "networks, as before and after post-processing, are compared as they stand. Gains are decided "
    "by patients alone.",
    "A network that its own paper starts from ImageNet's weights is the paper's only with such a "
    "start: an order against one that starts from random weights decides nothing.",
    "A gain is reproduced only if it is also beyond what a trivial baseline gains: by a test, or "
    "where there is none, by an interval beyond the baseline's. Its p is the larger one of both "
    "tests. It is contradicted as the paper states it, without such a baseline.",
    "A level is reproduced where our mean reaches it. That is no test, and needs the paper's data.",
    "That nothing is gained is contradicted by a decisive gain, and reproduced by a decisive loss "
    "alone: a test that finds no gain is no proof.",
    "not attempted: the item, or one of its claims, was not measured.",
    "undecided: everything else that was measured. A level on other data than the "
    "paper's decides nothing, reached or not. Nor does what depends on the pixels of a patch, "
    "where ours has fewer.",
    "Where the paper prints a value of both models, our interval also includes or "
    "excludes a gain as large as printed, in per cent of the worse model's value.",
    "Certainty is high if all p are below 0.01, on the paper's data, over three seeds "
    "or folds; moderate if all p are below 0.01, and either the data is the paper's or "
    "there are three seeds or folds; low otherwise, and wherever a validation curve is "
    "not flat at its end, or none is known.",
)
CHANCE = (
    "Where nothing changes, noise alone makes the rule call up to 9 in a hundred curves of 8 "
    "validations rising, up to 3 in a hundred of 40, and as many falling."
)
DIFFERENCES = (
    "A difference is that of the model named first less the other one, or that with the added data "
    "or the margin less that without. It has the unit of the measure before it. 12,000 of 210,000 "
    "steps are ours of the paper's; where the paper prints no length, ours stands alone. Trainings "
    "of different lengths are called as in their commands, which each item lists."
)
DECIDED = (
    "A table or figure counts as reproduced only if all of its claims are. These single claims are "
    "decided:"
)
BEGIN = "<!-- written by evaluate/report.py -->"
END = "<!-- end of what evaluate/report.py writes -->"
SMALLER = re.compile(r"\b\d+ of \d+ px")  # in an extent where patches are smaller than the paper's
BRIEF = 3  # decided claims in a summary


@dataclass(frozen=True)
class Verdict:
    """The verdict on an item.

    Attributes:
        word: The verdict.
        certainty: "high", "moderate", "low", or "" where nothing is decided.
        evidence: The item's claims.
        reason: Why the item is undecided as a whole, or not attempted; "" elsewhere.
    """

    word: Word
    certainty: str = ""
    evidence: tuple[Evidence, ...] = ()
    reason: str = ""


def judge_item(item: Item, facts: Mapping[str, Facts]) -> Verdict:
    """Judge an item by the rule of `tfmammo.apps.report.verdicts`.

    Args:
        item: The item.
        facts: Key -> facts of all items.
    """
    if item.reason:
        return Verdict("not attempted", reason=item.reason)
    own = facts.get(item.key)
    if own is None:
        names = " and ".join(item.commands)
        reason = f"no result yet; it takes {names} of configs/report.yaml"
        return Verdict("not attempted", reason=reason)
    if own.reason:
        return Verdict("not attempted", reason=own.reason)
    if item.decided_by:
        other = judge_item(find_item(item.decided_by), facts)
        label = find_item(item.decided_by).printed.label
        if other.word == verdicts.NOT_ATTEMPTED and not other.evidence:
            return Verdict("undecided", reason=f"{label} measures it, and has no result")
        return Verdict(other.word, other.certainty, reason=f"as {label}, which measures it")
    if not item.claims:
        return Verdict("undecided", reason="the paper prints no number that decides it")
    evidence = tuple(
        verdicts.judge_claim(
            claim,
            own.tables,
            item.printed.values,
            item.floor,
            own.scale,
            own.is_papers_data,
            own.commands,
        )
        for claim in item.claims
    )
    is_decided = any(part.is_decided for part in evidence)
    if is_decided and item.is_sized and (smaller := SMALLER.search(own.extent)):
        reason = f"it depends on the pixels of a patch, and ours has {smaller[0]}"
        undecided = tuple(
            part if part.word == verdicts.NOT_ATTEMPTED else part.withhold(reason)
            for part in evidence
        )
        return Verdict("undecided", evidence=undecided, reason=reason)
    word = verdicts.combine(evidence)
    are_known = curves.are_complete(own.curves, own.commands)
    are_flat = are_known and {curve.course for curve in own.curves} == {curves.FLAT}
    rate = partial(
        verdicts.rate_certainty,
        is_papers_data=own.is_papers_data,
        trainings=own.trainings,
        are_flat=are_flat,
    )
    rated = tuple(
        replace(part, certainty=rate([part]) if part.is_decided else "") for part in evidence
    )
    if word == verdicts.NOT_ATTEMPTED:
        count = sum(part.word == word for part in evidence)
        return Verdict(word, "", rated, f"{count} of {len(evidence)} claims were not measured")
    return Verdict(word, "" if word == "undecided" else rate(evidence), rated)


def build_page(facts: Mapping[str, Facts]) -> list[Block]:
    """Build the whole page.

    Args:
        facts: Key -> facts.
    """
    verdict_of = {item.key: judge_item(item, facts) for item in ITEMS}
    blocks: list[Block] = [Heading(1, TITLE), *_summarize(verdict_of, facts)]
    if claims := _list_claims(verdict_of, facts):
        blocks += [Heading(2, "The claims, one by one"), Text(DIFFERENCES), claims]
    for key, paper in read_papers().items():
        blocks += [
            Heading(2, paper.name),
            Text(f"{paper.authors}: {paper.title}."),
            Text(f"Claim: {paper.claim}"),
        ]
        for item in ITEMS:
            if item.paper == key:
                blocks += _describe_item(item, verdict_of[item.key], facts.get(item.key))
    blocks += [Heading(2, "Beyond the papers"), Text(SPEED)]
    for extra in EXTRAS:
        blocks += _describe_extra(extra, facts.get(extra.key))
    return blocks


def _summarize(verdict_of: Mapping[str, Verdict], facts: Mapping[str, Facts]) -> list[Block]:
    """Make the page's head: what the papers claim, what was reproduced, and how certain that is."""
    counts = {word: sum(verdict.word == word for verdict in verdict_of.values()) for word in WORDS}
    total = ", ".join(f"{count} {word}" for word, count in counts.items())
    body = []
    for key, paper in read_papers().items():
        of_paper = [(item, verdict_of[item.key]) for item in ITEMS if item.paper == key]
        cells = [
            "; ".join(
                item.printed.label + (f" ({verdict.certainty})" if verdict.certainty else "")
                for item, verdict in of_paper
                if verdict.word == word
            )
            or "-"
            for word in WORDS
        ]
        body.append((paper.name, paper.claim, *cells))
    excluded = [
        f"{item.place}: {part.sentence}"
        for item in ITEMS
        for part in verdict_of[item.key].evidence
        if part.word == "undecided" and part.gain.endswith(verdicts.EXCLUDED)
    ]
    smoke = sum(of_item.scale == "smoke" for of_item in facts.values())
    blocks: list[Block] = [
        Text(
            f"{len(ITEMS)} tables and figures of five papers: {total}. In brackets: how certain a "
            "verdict is."
        ),
        Grid(("paper", "claims", *WORDS), tuple(body)),
    ]
    if decided := _list_decided(verdict_of, facts):
        blocks += [Text(DECIDED), Points(tuple(sentence for _, sentence in decided))]
    blocks += [Text("What the verdicts mean:"), Points(RULES)]
    if counted := _count_curves(facts):
        blocks.append(Text(f"{counted} {CHANCE}"))
    if excluded:
        blocks += [
            Text(
                "Undecided, but our interval excludes a gain as large as the printed one. So the "
                "two models are closer here than in the paper, or in the other order:"
            ),
            Points(tuple(excluded)),
        ]
    if smoke:
        blocks.append(
            Text(
                f"{smoke} items are of the scale smoke: a few steps on phantoms, which show that a "
                "command runs and decide nothing."
            )
        )
    return blocks


def _count_curves(facts: Mapping[str, Facts]) -> str:
    """Count how the validation curves end; "" without any."""
    # items of one training have equal curves; a training that was made again counts again
    drawn = {curve for own in facts.values() for curve in _list_drawn(own)}
    if not drawn:
        return ""
    ends = Counter(curve.course for curve in drawn)
    counts = ", ".join(f"{ends[end]} {end}" for end in curves.ENDS if ends[end])
    return f"Validation curves, by their ends: {counts}."


def _list_claims(verdict_of: Mapping[str, Verdict], facts: Mapping[str, Facts]) -> Grid | None:
    """List every claim that was measured, what ours says of it, and on what; None without any."""
    rows = []
    for item in ITEMS:
        for part in verdict_of[item.key].evidence:
            gain = f"; a gain as large as printed: {part.gain}" if part.gain else ""
            extent = facts[item.key].extent
            rows.append((item.place, part.sentence, part.verdict, f"{part.numbers}{gain}", extent))
    header = ("where", "claim", "verdict", "ours", "our work, of the paper's, and the data")
    return Grid(header, tuple(rows)) if rows else None


def replace_summary(text: str, facts: Mapping[str, Facts]) -> str:
    """Replace what stands between `BEGIN` and `END` by counts of verdicts and the decided claims.

    Args:
        text: A page in Markdown.
        facts: Key -> facts.

    Raises:
        DataError: The page has no such marks.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise DataError(f"readme: it needs the lines {BEGIN} and {END}")
    return f"{head}{begin}\n\n{_summarize_briefly(facts)}\n\n{end}{tail}"


def _summarize_briefly(facts: Mapping[str, Facts]) -> str:
    verdict_of = {item.key: judge_item(item, facts) for item in ITEMS}
    lines = ["| paper | reproduced | contradicted | undecided | not attempted |"]
    lines.append("|---|---:|---:|---:|---:|")
    for key, paper in read_papers().items():
        words = [verdict_of[item.key].word for item in ITEMS if item.paper == key]
        lines.append(f"| {paper.name} | {' | '.join(str(words.count(word)) for word in WORDS)} |")
    decided = _list_decided(verdict_of, facts)
    lines += ["", DECIDED] if decided else []
    for _, sentence in decided[:BRIEF]:
        lines += textwrap.wrap(f"- {sentence}", 118, subsequent_indent="  ")
    if further := Counter(word for word, _ in decided[BRIEF:]):
        counts = ", ".join(f"{count} {word}" for word, count in further.items())
        lines.append(f"- Further decided claims: {counts}.")
    return "\n".join(lines)


def _list_decided(
    verdict_of: Mapping[str, Verdict], facts: Mapping[str, Facts]
) -> list[tuple[Word, str]]:
    """List every claim that is reproduced or contradicted, and say by which numbers, on what."""
    return [
        (
            part.word,
            f"{item.source.name}: {part.sentence} {part.word.capitalize()}, certainty "
            f"{part.certainty}: {part.numbers} ({facts[item.key].extent}).",
        )
        for item in ITEMS
        for part in verdict_of[item.key].evidence
        if part.is_decided
    ]


def _describe_item(item: Item, verdict: Verdict, facts: Facts | None) -> list[Block]:
    printed = item.printed
    certainty = f", certainty {verdict.certainty}" if verdict.certainty else ""
    reason = f": {verdict.reason}" if verdict.reason else ""
    blocks: list[Block] = [
        Heading(3, item.place),
        Text(printed.shows),
        Text(f"Verdict: {verdict.word}{certainty}{reason}."),
    ]
    if verdict.evidence:
        blocks.append(_tabulate_claims(verdict.evidence))
    if printed.values:
        blocks += [Text("As printed:"), _tabulate_printed(printed.values)]
    if item.note:
        blocks.append(Text(item.note))
    if facts is None or facts.reason:
        return blocks
    blocks += [
        Text(f"Ours, scale {facts.scale}: {facts.extent}. Trivial baseline: {item.baseline}."),
        Picture(item.key, item.place, MISSING),
    ]
    if item.floor:
        blocks.append(Points(_compare_with_floor(item, item.floor, facts)))
    return [*blocks, *_show_facts(item.key, facts)]


def _tabulate_claims(evidence: Sequence[Evidence]) -> Grid:
    """Tabulate claims; the printed gains have a column if there are any."""
    rows = [(part.sentence, part.verdict, part.numbers, part.gain or "-") for part in evidence]
    header = ("claim", "verdict", "ours", "a gain as large as printed")
    width = 4 if any(part.gain for part in evidence) else 3
    return Grid(header[:width], tuple(row[:width] for row in rows))


def _describe_extra(extra: Extra, facts: Facts | None) -> list[Block]:
    blocks: list[Block] = [Heading(3, extra.title), Text(extra.shows)]
    if facts is None or facts.reason:
        names = " and ".join(extra.commands)
        reason = facts.reason if facts else f"it takes {names} of configs/report.yaml"
        return [*blocks, Text(f"No result yet: {reason}.")]
    blocks.append(Text(f"Scale {facts.scale}: {facts.extent}."))
    if extra.picture:
        blocks.append(Picture(extra.key, extra.title, MISSING))
    return [*blocks, *_show_facts(extra.key, facts)]


def _show_facts(key: str, facts: Facts) -> list[Block]:
    """Show tables, curves, commands and what made them."""
    blocks: list[Block] = []
    for table in facts.tables:
        blocks += [Text(table.title), Grid(table.header, table.body[:LIMIT])]
        if len(table.body) > LIMIT:
            blocks.append(Text(f"Further lines, in the facts: {len(table.body) - LIMIT}."))
        if table.notes:
            blocks.append(Points(table.notes))
    drawn = _list_drawn(facts)
    if drawn:
        picture = Picture(f"{key}.curves", "validation curves")
        blocks += [Text(CURVES), picture, Grid(*curves.tabulate(drawn))]
    elif facts.scale != "smoke":
        blocks.append(Text("No validation curve is known."))
    blocks.append(Code(facts.commands))
    if facts.code:
        blocks.append(Text(f"Made by {'; '.join(facts.code)}."))
    return blocks


def draw_curves(facts: Mapping[str, Facts]) -> dict[str, bytes]:
    """Draw the validation curves of all items.

    Returns:
        Key of a picture -> PNG.
    """
    drawn_of = {key: _list_drawn(of_item) for key, of_item in facts.items()}
    draw = cache(curves.draw)  # items of the same trainings share a picture
    return {f"{key}.curves": draw(drawn) for key, drawn in drawn_of.items() if drawn}


def link_curves(facts: Mapping[str, Facts], folder: str) -> dict[str, str]:
    """Return the file of each picture of `draw_curves` in a folder: key of a picture -> path.

    Items of the same trainings share a file.
    """
    files: dict[tuple[Curve, ...], str] = {}
    return {
        f"{key}.curves": files.setdefault(drawn, f"{folder}/{key}.png")
        for key, of_item in facts.items()
        if (drawn := _list_drawn(of_item))
    }


def _list_drawn(facts: Facts) -> tuple[Curve, ...]:
    return tuple(curve for curve in facts.curves if len(curve.steps) > 1)


def _compare_with_floor(item: Item, floor: Floor, facts: Facts) -> tuple[str, ...]:
    """Say of each model of the item's claims whether it is better than the trivial baseline."""
    models = dict.fromkeys(model for claim in item.claims for model in claim.models)
    sentences = []
    for model in models:
        word = verdicts.compare_with_floor(facts.tables, model, floor)
        sentences.append(f"{model}: {word} {floor.row}.")
    return tuple(sentences)


def _tabulate_printed(values: Mapping[str, Mapping[str, float]]) -> Grid:
    """Tabulate printed numbers, with one column for each measure."""
    columns = list(dict.fromkeys(column for of_row in values.values() for column in of_row))
    body = tuple(
        (row, *(format_printed(of_row[column]) if column in of_row else "-" for column in columns))
        for row, of_row in values.items()
    )
    return Grid(("", *columns), body)


def format_printed(value: float) -> str:
    """Format a printed number.

    Examples:
        >>> format_printed(0.846), format_printed(1e-8), format_printed(2066)
        ('0.846', '1e-08', '2066')
    """
    return f"{value:.10g}"
