"""One page of results for each paper, made from rows alone: no time, no path, no TensorFlow."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from tfmammo.apps.report import curves
from tfmammo.apps.report.facts import Facts
from tfmammo.apps.report.items import (
    ITEMS,
    Item,
    Shown,
    find_item,
    list_checks,
)
from tfmammo.apps.report.measures import (
    UNKNOWN,
    Placeholder,
    capitalize,
    format_interval,
    format_printed,
    name_measure,
)
from tfmammo.apps.report.studies import (
    ARMS,
    PROGRESS,
    STUDIES,
    Study,
    count_runs,
    describe_difference,
    describe_runs,
)
from tfmammo.apps.report.verdicts import (
    NO_RUN,
    OTHER_DATA,
    WORDS,
    Evidence,
    Word,
    judge_claim,
    withhold_contradicted,
)
from tfmammo.document import tabulate
from tfmammo.metrics.case_scores import CENTRED_DISC, POSTPROCESSED
from tfmammo.metrics.printed import Paper, read_papers
from tfmammo.metrics.rows import Fact

WIDTH = 118
PICTURES = "pictures"
Captions = Mapping[str, tuple[str, str]]  # name of a picture -> what it shows, and its source
NO_CAPTIONS: Captions = {}
CURVES = "curves"
NO_RESULT = "no valid result yet"
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


def list_sources(item: Item, facts: AllFacts) -> list[Facts]:
    """List the facts of an item that have a result."""
    found = [facts[key] for key in item.fact_keys if key in facts]
    return [one for one in found if not one.about.reason]


def judge_item(item: Item, facts: AllFacts) -> tuple[Evidence, ...]:
    """Judge each claim of an item by the first facts that have its row.

    Where others are significant in the opposite direction, nothing is decided.
    """
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
        first, *others = tested or evidence
        judged.append(withhold_contradicted(claim, first, others))
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
    texts = {
        "holds": ("holds", "hold"),
        "printed gain excluded": (
            "has its printed gain excluded",
            "have their printed gain excluded",
        ),
        "does not hold": ("does not hold", "do not hold"),
        "not decided": ("is not decided", "are not decided"),
        "not tested": ("was not tested", "were not tested"),
    }
    return ", ".join(
        f"{count} {texts[word][count != 1]}"
        for word, count in count_words(evidence).items()
        if count
    )


def build_page(paper: str, facts: AllFacts, captions: Captions = NO_CAPTIONS) -> str:
    """Build the page of a paper from the facts of all items."""
    source = read_papers()[paper]
    items = [item for item in ITEMS if item.paper == paper]
    lines = [f"# {source.name}: results", "", *_introduce(paper, source, items, facts)]
    for item in items:
        lines += ["", f"## {item.printed.label}", "", *_describe(item, facts, captions)]
        for study in STUDIES.values():
            if study.item == item.key and study.key in facts:
                lines += ["", *_describe_study(study, facts, item)]
    lines += ["", "---", "", *_list_checks(paper, items)]
    shown = [captions[name] for item in items for name in list_pictures(item) if name in captions]
    if shown:
        sources = "; ".join(sorted({source for _, source in shown}))
        text = f"The pictures show networks of the package on unseen patients: {sources}."
        lines += ["", *wrap(f"{text} The JSON file beside each picture has its commands.")]
    text = (
        f"`tfmammo report --only {paper}` repeats the runs of this page, except where a study has "
        "a command of its own."
    )
    measured = [item.key for item in items if item.key in facts and facts[item.key].rows]
    if measured:
        text += f" `--only {measured[0]}` repeats those behind `{facts[measured[0]].name}.csv`."
    text += (
        " `--set data.KEY.root=DIR` names an archive's folder. Files in `docs/results` are "
        "replaced; `results=DIR readme=null` writes elsewhere."
    )
    return "\n".join([*lines, "", *wrap(text)]) + "\n"


def list_pictures(item: Item) -> tuple[str, ...]:
    """List the names that pictures of an item may have."""
    return item.key, f"{item.key}-best", f"{item.key}-worst"


def _introduce(paper: str, source: Paper, items: Sequence[Item], facts: AllFacts) -> list[str]:
    evidence = [one for item in items for one in judge_item(item, facts)]
    return [
        *wrap(
            f"{source.authors}: *{source.title}*. The paper's claim: {source.claim} [The paper's "
            f"page](../papers/{paper}.md) describes the method, and where this implementation "
            "deviates. [The rule](index.md#how-a-claim-is-decided) explains the verdicts."
        ),
        "",
        *wrap(f"{len(evidence)} claims: {name_counts(evidence)}."),
    ]


def _list_checks(paper: str, items: Sequence[Item]) -> list[str]:
    checks = list_checks({paper, *(item.key for item in items)})
    said = "; ".join(dict.fromkeys(check.what for check in checks))
    return wrap(f"**Verified by tests**, independently of any run: {said}.")


def _describe(item: Item, facts: AllFacts, captions: Captions) -> list[str]:
    lines = wrap(item.printed.shows)
    for name in list_pictures(item):
        if name in captions:
            lines += ["", f"![{item.printed.label}]({PICTURES}/{name}.jpg)"]
            lines += ["", *wrap(f"*{captions[name][0]}*")]
    reason = find_reason(item, facts)
    evidence = judge_item(item, facts)
    if reason == NO_RUN and not evidence:
        return [*lines, *_fill(item.text, None)]
    if reason:
        lines += ["", *wrap(f"**Not tested**: {reason}.")]
        points = [line for one in evidence for line in wrap(one.says, "- ", "  ")]
        return [*lines, "", *points] if points else lines
    if evidence:
        lines += ["", *(line for one in evidence for line in describe_claim(one))]
    # a study on the paper's own data has a section of its own
    sources = [one for one in list_sources(item, facts) if one.about.item not in STUDIES]
    if not sources:
        return [*lines, *_fill(item.text, None)]
    own = next((one for one in sources if one.about.item == item.key), sources[0])
    if item.shown and (table := show(item.shown, own, item)):
        lines += ["", *table]
    of_studies = (study.texts.get(item.key) for key, study in STUDIES.items() if key in facts)
    lines += _fill(next(filter(None, of_studies), item.text), own)
    about = own.about
    if about.item != item.key:
        label = find_item(about.item).printed.label
        return [*lines, "", *wrap(f"Numbers, data and scale: [{label}](#{slug(label)}).")]
    return [*lines, "", *wrap(f"Data: {about.place}. Scale: {about.work}."), "", *_fold(own)]


def describe_claim(evidence: Evidence) -> list[str]:
    """Describe a claim as a point of a list: verdict, claim, numbers, data."""
    certainty = f" ({evidence.certainty} certainty)" if evidence.certainty else ""
    text = f"**{evidence.word.capitalize()}**{certainty}: {evidence.says}"
    details = [evidence.numbers, ": ".join(filter(None, (evidence.why, evidence.detail)))]
    if evidence.word == "not decided" and evidence.why != OTHER_DATA and evidence.detectable:
        details.append(f"smallest detectable difference, uncorrected: {evidence.detectable}")
    details.append(evidence.gain)
    if evidence.facts and evidence.word != "not tested":
        scale = ", the paper's scale" if evidence.facts.about.scale == "paper" else ""
        details.append(f"{evidence.basis}{scale}")
    said = "; ".join(filter(None, details))
    return wrap(f"{text} {capitalize(said)}.", "- ", "  ")


def show(shown: Shown, facts: Facts, item: Item, part: str = "") -> list[str]:
    """Format the rows of facts that a page shows; nothing where there are none.

    `part` names the part of the data of all lines, in the headings; without it each line names its
    own.
    """
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
    names = {measure: row.measure for (_, measure), row in cells.items() if row}
    measures = [measure for measure in shown.measures if measure in units]
    for measure in measures:
        name = name_measure(names[measure], units[measure])
        header.append(f"{name}, {part}" if part else name)
        if measure in printed:
            header.append("printed")
    for line, (model, subset) in enumerate(shown.models):
        rows = [cells[line, measure] for measure in measures]
        if not any(rows):
            continue
        own_part = "" if part else subset.rpartition("=")[2]
        label = shown.labels.get(model, model)
        body.append([f"{label}, {own_part}" if own_part else label])
        for measure, row in zip(measures, rows, strict=True):
            body[-1].append(format_interval(row, with_unit=False) if row else "-")
            if measure in printed:
                value = values.get(label, {}).get(printed[measure])
                body[-1].append(format_printed(value))
    return tabulate(header, body).splitlines() if body else []


def _fill(text: str, facts: Facts | None) -> list[str]:
    """Fill rows into a paragraph, and wrap it; nothing where a row is missing."""
    filled = text.format(rows=Placeholder(facts))
    is_complete = filled.count(UNKNOWN) == text.count(UNKNOWN)
    return ["", *wrap(filled)] if text and is_complete else []


def _fold(facts: Facts) -> list[str]:
    """Fold away files, commands and curves."""
    name = facts.name
    files = [f"[{len(facts.rows)} numbers]({name}.csv)"] if facts.rows else []
    files += [f"[curves]({name}.curves.csv)"] if facts.curves else []
    files.append(f"[commands]({name}.json)")
    lines = ["<details markdown><summary>Numbers, commands, curves</summary>", ""]
    ends = f" {curves.count_ends(facts.curves)}." if facts.curves else ""
    lines += wrap(f"Files: {', '.join(files)}.{ends}")
    if facts.curves:
        lines += [f"![Validation curves]({CURVES}/{name}.svg)"]
    return [*lines, "", "</details>"]


def _describe_study(study: Study, facts: AllFacts, item: Item) -> list[str]:
    """Describe a study on the paper's own data, as far as it is finished."""
    runs = describe_runs(study, facts, [study.base])
    others = [
        f"{shown.name}: {done} of {len(study.plan[arm].runs)}"
        for arm, shown in study.arms.items()
        if arm != study.base and (done := count_runs(study, facts, arm))
    ]
    runs += f" ({', '.join(others)})" if others else ""
    intro = study.intro.format(work=study.describe_work(), runs=capitalize(runs))
    lines = [f"## {study.heading}", "", *wrap(intro), "", *_show_study(study, facts, item)]
    if _list_arms(study, facts[study.key]):
        lines += ["", f"![{study.figure}]({_name_figure(study)})"]
    rows = Placeholder(facts[study.key])
    differences = {arm: describe_difference(study, facts, arm) for arm in study.arms}
    for note in study.notes:
        text = note.format(rows=rows, **differences)
        if UNKNOWN not in text:
            lines += ["", *wrap(text)]
    files = (f"[{name}]({study.folder}/{name}.csv)" for name in ("scores", "runs", "curves"))
    lines += ["", *wrap(f"{study.text} Files: {', '.join(files)}.")]
    return [*lines, "", "```", study.command, "```"]


def _show_study(study: Study, facts: AllFacts, item: Item) -> list[str]:
    """Format the Dice of a study's models in each arm, and what arms differ by."""
    own = facts[study.key]
    compared = {arm: shown.less for arm, shown in study.arms.items() if shown.less}
    header = [
        "",
        "runs",
        "patients",
        *(f"Dice, %, {shown.name}" for shown in study.arms.values()),
        *compared.values(),
        study.printed_heading,
    ]
    base = study.plan[study.base]
    body = []
    for model in study.shown:
        network = model.removesuffix(POSTPROCESSED)
        runs = count_runs(study, facts, study.base, network)
        levels = [
            own.find(model, "dice", table=PROGRESS, subset=study.name_part(arm))
            for arm in study.arms
        ]
        differences = [
            own.find(model, "dice", model, ARMS, study.name_difference(arm)) for arm in compared
        ]
        value = item.printed.values.get(model, {}).get(study.printed["dice"])
        body.append(
            [
                model,
                f"{runs} of {base.folds * base.seeds[network]}" if network in base.seeds else "-",
                str(levels[0].patients) if levels[0] else "-",
                *(
                    format_interval(row, with_unit=False) if row else "-"
                    for row in (*levels, *differences)
                ),
                format_printed(value),
            ]
        )
    return [*tabulate(header, body).splitlines(), *_show_other_measures(study, own, item)]


def _show_other_measures(study: Study, facts: Facts, item: Item) -> list[str]:
    """Format what else the first arm was scored by, of the paper's models and the baseline."""
    printed: dict[str, str] = {key: name for key, name in study.printed.items() if key != "dice"}
    named = {*item.printed.values, *study.stand_ins.values(), CENTRED_DISC}
    subset = study.name_part(study.base)
    shown = Shown(
        models=tuple((model, subset) for model in study.shown if model in named),
        measures=tuple(printed),
        table=PROGRESS,
        printed=printed,
    )
    lines = show(shown, facts, item, study.arms[study.base].name)
    return ["", *lines] if lines else []


def draw_curves(facts: AllFacts) -> dict[str, str]:
    """Draw the curves of all facts as SVG, by the file as the pages see it."""
    files = {
        f"{CURVES}/{one.name}.svg": curves.draw(one.curves)
        for key, one in facts.items()
        if one.curves and key not in STUDIES
    }
    for key, study in STUDIES.items():
        if key in facts and (rows := _list_arms(study, facts[key])):
            files[_name_figure(study)] = curves.draw_intervals(rows, "% Dice")
    return files


def _name_figure(study: Study) -> str:
    return f"{CURVES}/{study.key}.arms.svg"


def _list_arms(study: Study, facts: Facts) -> list[tuple[str, int, Fact]]:
    """List the Dice of each model by arm, where it was measured in several."""
    rows = []
    for model in study.shown:
        found = [
            (f"{model}, {shown.name}", index, fact)
            for index, (arm, shown) in enumerate(study.arms.items())
            if (fact := facts.find(model, "dice", table=PROGRESS, subset=study.name_part(arm)))
            and math.isfinite(fact.low)
        ]
        rows += found if len(found) > 1 else []
    return rows
