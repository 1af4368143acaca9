"""One page of results for each paper, made from rows alone: no time, no path, no TensorFlow."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from tfmammo.apps.report import curves, inbreast
from tfmammo.apps.report.facts import Facts
from tfmammo.apps.report.items import (
    ITEMS,
    Item,
    Paper,
    Shown,
    find_item,
    list_checks,
    read_papers,
)
from tfmammo.apps.report.measures import format_interval, format_printed, name_measure
from tfmammo.apps.report.verdicts import NO_RUN, OTHER_DATA, WORDS, Evidence, Word, judge_claim
from tfmammo.metrics.rows import Fact

WIDTH = 118
LONGEST = 8  # lines of a table
PICTURES = "pictures"
Captions = Mapping[str, tuple[str, str]]  # name of a picture -> what it shows, and its source
NO_CAPTIONS: Captions = {}
CURVES = "curves"
LEAK = f"{CURVES}/can_inbreast.leak.svg"  # where models have been scored by both protocols
NO_RESULT = "no valid result yet"
SUBSETS = {"protocol=paper": "leaking split"}  # in words, where the value alone does not say it
AllFacts = Mapping[str, Facts]


def wrap(text: str, first: str = "", then: str = "") -> list[str]:
    """Wrap a paragraph; `first` and `then` begin its lines."""
    # a command stays on one line
    parts = text.split("`")
    parts[1::2] = [command.replace(" ", "\0") for command in parts[1::2]]
    lines = textwrap.wrap(
        "`".join(parts),
        WIDTH,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MkDocs make it."""
    kept = (letter for letter in heading.lower() if letter.isalnum() or letter in " -")
    return "".join(kept).replace(" ", "-")


def tabulate(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Format a table; its first column is of words, the others are of numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(line)} |" for line in (header, rule, *body)]


def list_sources(item: Item, facts: AllFacts) -> list[Facts]:
    """List the facts of an item that have a result."""
    found = [facts[key] for key in item.fact_keys if key in facts]
    return [one for one in found if not one.about.reason]


def judge_item(item: Item, facts: AllFacts) -> tuple[Evidence, ...]:
    """Judge each claim of an item by the first facts that have its row."""
    if reason := find_reason(item, facts):
        why = NO_RUN if reason == NO_RUN else NO_RESULT
        return tuple(
            Evidence(one.says, "not tested", why=why, detail=reason) for one in item.claims
        )
    judged = []
    for claim in item.claims:
        evidence = [
            judge_claim(claim, source, item.printed.values, item.trivial, item.is_sized)
            for source in list_sources(item, facts)
        ]
        tested = [one for one in evidence if one.word != "not tested"]
        judged.append((tested or evidence)[0])
    return tuple(judged)


def find_reason(item: Item, facts: AllFacts) -> str:
    """Say why an item has no result; "" where it has one."""
    if item.reason or list_sources(item, facts):
        return item.reason
    reasons = [facts[key].about.reason for key in item.fact_keys if key in facts]
    return reasons[0] if reasons else NO_RUN


def count_words(evidence: Sequence[Evidence]) -> dict[Word, int]:
    """Count verdicts."""
    return {word: sum(one.word == word for one in evidence) for word in WORDS}


def name_counts(evidence: Sequence[Evidence]) -> str:
    """Say how many claims have each verdict."""
    plurals = {"holds": "hold", "does not hold": "do not hold"}
    return ", ".join(
        f"{count} {word if count == 1 else plurals.get(word, word)}"
        for word, count in count_words(evidence).items()
    )


def build_page(paper: str, facts: AllFacts, captions: Captions = NO_CAPTIONS) -> str:
    """Build the page of a paper from the facts of all items."""
    source = read_papers()[paper]
    items = [item for item in ITEMS if item.paper == paper]
    lines = [f"# {source.name}: results", "", *_introduce(paper, source, items, facts)]
    for item in items:
        lines += ["", f"## {item.printed.label}", "", *_describe(item, facts, captions)]
        if paper == "can" and item.name == "table1" and inbreast.KEY in facts:
            lines += ["", *_describe_inbreast(facts[inbreast.KEY], item)]
    text = (
        f"`tfmammo report --only {paper}` repeats the runs of this page, and `--only` with the "
        "name of a file those behind it. All files are in `docs/results`."
    )
    lines += ["", "---", "", *wrap(text)]
    shown = [captions[name] for item in items for name in list_pictures(item) if name in captions]
    if shown:
        sources = "; ".join(sorted({source for _, source in shown}))
        text = f"Pictures: networks of the package on patients that they never saw. {sources}."
        lines += ["", *wrap(f"{text} Commands: the JSON file beside each picture.")]
    return "\n".join(lines) + "\n"


def list_pictures(item: Item) -> tuple[str, ...]:
    """List the names that pictures of an item may have."""
    return item.key, f"{item.key}-best", f"{item.key}-worst"


def _introduce(paper: str, source: Paper, items: Sequence[Item], facts: AllFacts) -> list[str]:
    evidence = [one for item in items for one in judge_item(item, facts)]
    checks = list_checks({paper, *(item.key for item in items)})
    lines = [
        *wrap(
            f"{source.authors}: *{source.title}*. The paper's claim: {source.claim} How it works, "
            f"and where this implementation deviates: [the paper's page](../papers/{paper}.md). "
            "What the verdicts mean: [the rule](index.md#how-a-claim-is-decided)."
        ),
        "",
        *wrap(f"{len(evidence)} claims: {name_counts(evidence)}."),
        "",
        *wrap(
            "**Verified in the implementation**, whatever the runs say (each by a test): "
            + "; ".join(dict.fromkeys(check.what for check in checks))
            + "."
        ),
    ]
    return lines


def _describe(item: Item, facts: AllFacts, captions: Captions) -> list[str]:
    lines = wrap(item.printed.shows)
    for name in list_pictures(item):
        if name in captions:
            lines += ["", f"![{item.printed.label}]({PICTURES}/{name}.jpg)"]
            lines += ["", *wrap(f"*{captions[name][0]}*")]
    reason = find_reason(item, facts)
    evidence = judge_item(item, facts)
    if reason:
        lines += ["", *wrap(f"**Not tested**: {reason}.")]
        points = [line for one in evidence for line in wrap(one.says, "- ", "  ")]
        return [*lines, "", *points] if points else lines
    if evidence:
        lines += ["", *(line for one in evidence for line in describe_claim(one))]
    # the study on INbreast has a section of its own
    sources = [one for one in list_sources(item, facts) if one.about.item != inbreast.KEY]
    if not sources:
        return lines
    own = next((one for one in sources if one.about.item == item.key), sources[0])
    if item.shown and (table := show(item.shown, own, item)):
        lines += ["", *table]
    if item.text:
        lines += ["", *wrap(item.text)]
    about = own.about
    if about.item != item.key:
        label = find_item(about.item).printed.label
        return [*lines, "", *wrap(f"Numbers, data and scale: [{label}](#{slug(label)}).")]
    return [*lines, "", *wrap(f"Data: {about.place}. Scale: {about.work}."), "", *_fold(own)]


def describe_claim(evidence: Evidence) -> list[str]:
    """Describe a claim as a point of a list: verdict, claim, numbers, data."""
    certainty = f", certainty {evidence.certainty}" if evidence.certainty else ""
    text = f"**{evidence.word.capitalize()}**{certainty}: {evidence.says}"
    details = [evidence.numbers, ": ".join(filter(None, (evidence.why, evidence.detail)))]
    if evidence.word == "not decided" and evidence.why != OTHER_DATA:
        seen = evidence.seen or "not known, because the test gives no interval"
        details.append(f"smallest difference that could be seen: {seen}")
    details.append(evidence.gain)
    if evidence.facts and evidence.word != "not tested":
        about = evidence.facts.about
        kind = "the paper's data" if about.is_papers_data else "a substitute for the paper's data"
        details.append(f"{kind}, scale {about.scale}")
    return wrap(f"{text} {'; '.join(filter(None, details))}.", "- ", "  ")


def show(shown: Shown, facts: Facts, item: Item) -> list[str]:
    """Format the rows of facts that a page shows; nothing where there are none."""
    printed = shown.printed
    header = [""]
    body: list[list[str]] = []
    values = item.printed.values
    cells = {
        (line, measure): facts.find(model, measure, table=shown.table, subset=subset)
        for line, (model, subset) in enumerate(shown.models)
        for measure in shown.measures
    }
    units = {measure: row.unit for (_, measure), row in cells.items() if row}
    measures = [measure for measure in shown.measures if measure in units]
    for measure in measures:
        header.append(name_measure(measure, units[measure]))
        if measure in printed:
            header.append("printed")
    for line, (model, subset) in enumerate(shown.models):
        rows = [cells[line, measure] for measure in measures]
        if not any(rows):
            continue
        part = SUBSETS.get(subset, subset.rpartition("=")[2])
        label = shown.labels.get(model, model)
        body.append([f"{label}, {part}" if part else label])
        for measure, row in zip(measures, rows, strict=True):
            body[-1].append(format_interval(row, with_unit=False) if row else "-")
            if measure in printed:
                value = values.get(label, {}).get(printed[measure])
                body[-1].append(format_printed(value, measure))
    return tabulate(header, body[:LONGEST]) if body else []


def _fold(facts: Facts) -> list[str]:
    """Fold away files, commands and curves."""
    name = facts.name
    files = [f"[All {len(facts.rows)} numbers]({name}.csv)"] if facts.rows else []
    files += [f"[curves]({name}.curves.csv)"] if facts.curves else []
    files.append(f"[commands]({name}.json)")
    lines = ["<details markdown><summary>Numbers, commands, curves</summary>", ""]
    ends = f" {curves.count_ends(facts.curves)}." if facts.curves else ""
    lines += wrap(f"{', '.join(files)}.{ends}")
    if facts.curves:
        lines += [f"![Validation curves]({CURVES}/{name}.svg)"]
    return [*lines, "", "</details>"]


def _describe_inbreast(facts: Facts, item: Item) -> list[str]:
    """Describe the study on the paper's own data, as far as it is finished."""
    lines = ["## Table I on INbreast, the paper's own data", ""]
    done = {
        model: len(
            {curve.run for curve in facts.curves if curve.run.startswith(f"unseen/{model}/")}
        )
        for model in inbreast.MODELS
    }
    folds, seeds = inbreast.PLANNED[inbreast.UNSEEN]
    planned = folds * seeds
    lines += wrap(
        f"All 107 mammograms with masses, 116 outlines, 50 patients; {facts.about.work}; five "
        f"folds by patient, three seeds. **{sum(done.values())} of {planned * len(done)} runs are "
        "finished.** Means are over the masses of the patients scored so far, intervals by "
        "patient. Verdicts above take this data as soon as both models have every fold. With 50 "
        "patients a difference of 0.8 points of Dice is found with a probability of 80 %."
    )
    body = []
    for model in (*inbreast.MODELS, inbreast.DISC):
        row = facts.find(model, "dice", table=inbreast.PROGRESS, subset="protocol=unseen")
        leak = facts.find(model, "dice", table=inbreast.PROGRESS, subset="protocol=leak")
        gain = facts.find(inbreast.name_leaking(model), "dice", model, inbreast.LEAK)
        value = item.printed.values.get(model, {}).get("dice")
        body.append(
            [
                model,
                f"{done[model]} of {planned}" if model in done else "-",
                str(row.patients) if row else "-",
                *(
                    format_interval(one, with_unit=False) if one else "-"
                    for one in (row, leak, gain)
                ),
                format_printed(value, "dice"),
            ]
        )
    header = ["", "runs", "patients", "Dice, %, unseen patients", "Dice, %, leaking split"]
    lines += ["", *tabulate([*header, "effect of the leak", "printed (its split leaks)"], body)]
    if _list_protocols(facts):
        lines += ["", f"![Dice on unseen patients and by the leaking split]({LEAK})"]
    lines += [
        "",
        *wrap(
            "In the paper, rotated copies of one lesion are on both sides of the split. The runs "
            "by the leaking split repeat that protocol. The difference from unseen patients, on "
            "the same masses, is the effect of the leak. Rows with different numbers of patients "
            "cannot be compared. INbreast's terms allow numbers and plots, and no pixels. Files: "
            "[scores](inbreast_can/scores.csv), [runs](inbreast_can/runs.csv), "
            "[curves](inbreast_can/curves.csv)."
        ),
        "",
        "```",
        *facts.about.commands,
        "```",
    ]
    return lines


def draw_curves(facts: AllFacts) -> dict[str, str]:
    """Draw the curves of all facts as SVG, by the file as the pages see it."""
    files = {
        f"{CURVES}/{one.name}.svg": curves.draw(one.curves)
        for key, one in facts.items()
        if one.curves and key != inbreast.KEY
    }
    if inbreast.KEY in facts and (rows := _list_protocols(facts[inbreast.KEY])):
        files[LEAK] = curves.draw_intervals(rows, "% Dice")
    return files


def _list_protocols(facts: Facts) -> list[tuple[str, int, Fact]]:
    """List the Dice of each model by both protocols, where both were measured."""
    protocols = {"unseen": "unseen patients", "leak": "leaking split"}
    rows = []
    for model in inbreast.MODELS:
        found = [
            (f"{model}, {name}", index, fact)
            for index, (protocol, name) in enumerate(protocols.items())
            if (
                fact := facts.find(
                    model, "dice", table=inbreast.PROGRESS, subset=f"protocol={protocol}"
                )
            )
        ]
        rows += found if len(found) == len(protocols) else []
    return rows
