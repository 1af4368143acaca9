"""All pages, from committed rows and templates alone, without TensorFlow; and the README's lines.

A placeholder {ITEM:MODEL|MEASURE} in index.md and readme.md is a row of an item: `Placeholder`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfmammo import filesystem
from tfmammo.apps.report import facts as fact_files
from tfmammo.apps.report import pages, studies
from tfmammo.apps.report.config import ReportConfig, Scale
from tfmammo.apps.report.facts import Facts
from tfmammo.apps.report.items import FACT_KEYS, ITEMS, Item, find_item, list_checks
from tfmammo.apps.report.measures import UNKNOWN, Placeholder
from tfmammo.apps.report.pages import AllFacts, count_words, judge_item, name_counts, wrap
from tfmammo.apps.report.verdicts import DECIDED, WORDS, Evidence
from tfmammo.document import tabulate
from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics.printed import read_papers

BEGIN = "<!-- written by evaluate/report.py -->"
END = "<!-- end of what evaluate/report.py writes -->"
CAN = studies.STUDIES["can_inbreast"]
AllEvidence = Mapping[str, Sequence[Evidence]]


def build_index(facts: AllFacts) -> str:
    """Build the page docs/results/index.md."""
    evidence = {item.key: judge_item(item, facts) for item in ITEMS}
    theirs, ours = (_gather(ITEMS, evidence, is_ours) for is_ours in (False, True))
    return _fill(
        "index.md",
        facts,
        counts=f"The five papers make {len(theirs)} claims that can be tested with numbers: "
        f"{name_counts(theirs)}. Of {len(ours)} further tests of ours {name_counts(ours)}.",
        leak=_describe_leak(facts),
        claims="\n".join(_tabulate_claims(evidence)),
        open=_describe_open(evidence),
    )


def build_readme(text: str, facts: AllFacts) -> str:
    """Replace what is between the two marks of the README by some lines of results."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise DataError(f"readme: it needs the lines {BEGIN} and {END}")
    return f"{head}{begin}\n\n{_fill('readme.md', facts)}\n{end}{tail}"


def _fill(name: str, facts: AllFacts, **texts: str) -> str:
    """Fill a template, and wrap its paragraphs and points."""
    template = Path(__file__).with_name(name).read_text(encoding="utf-8")
    rows = {key: Placeholder(facts.get(key)) for key in FACT_KEYS}
    lines = []
    for line in template.format(**rows, **texts).splitlines():
        if line.startswith(("|", "#", " ")):
            lines.append(line)
        else:
            lines += wrap(line, then="  " if line.startswith("- ") else "") or [""]
    return "\n".join(lines) + "\n"


def _describe_leak(facts: AllFacts) -> str:
    """Say how much a leaking split inflates Dice on INbreast, as far as it is known."""
    effect = studies.describe_difference(CAN, facts, "leak_short")
    if effect == UNKNOWN:
        return f"still to be measured, {studies.describe_runs(CAN, facts)}"
    return f"{effect} (minus Dice on unseen patients, after the same number of steps)"


def _gather(items: Sequence[Item], evidence: AllEvidence, is_ours: bool) -> list[Evidence]:
    """Gather what is known of the papers' claims, or of our own tests."""
    return [one for item in items if item.is_ours == is_ours for one in evidence[item.key]]


def _tabulate_claims(evidence: AllEvidence) -> list[str]:
    body = []
    for key, paper in read_papers().items():
        items = [item for item in ITEMS if item.paper == key]
        checks = len(list_checks({key, *(item.key for item in items)}))
        for is_ours, name, facts in (
            (False, paper.name, f"{checks} facts"),
            (True, f"{paper.name}, our tests", "-"),
        ):
            some = _gather(items, evidence, is_ours)
            counts = [str(count) for count in count_words(some).values()]
            if some:
                body.append([f"[{name}]({key}.md)", str(len(some)), *counts, facts])
    papers = tabulate(("paper", "claims", *WORDS, "verified in the implementation"), body)
    decided = [
        [
            read_papers()[find_item(key).paper].name,
            one.says.rstrip("."),
            f"**{one.word}**, {one.certainty} certainty",
            "; ".join(filter(None, (one.numbers, one.gain, one.basis))),
        ]
        for key, of_item in evidence.items()
        for one in of_item
        if one.is_decided and not find_item(key).is_ours
    ]
    header = ("paper", "claim that is decided", "verdict", "our numbers")
    return [papers, "", tabulate(header, decided, words=4)] if decided else [papers]


def _describe_open(evidence: AllEvidence) -> str:
    """Count why claims are not decided or not tested, the most frequent reason first."""
    counts = Counter((one.word, one.why) for of_item in evidence.values() for one in of_item)
    texts = []
    for word in WORDS:
        reasons = [(why, count) for (of, why), count in counts.most_common() if of == word]
        if word not in DECIDED and reasons:
            several = "; ".join(f"{why} ({count})" for why, count in reasons)
            texts.append(f"**{word.capitalize()}**: {several}.")
    return " ".join(texts)


def find_folder(config: ReportConfig, scale: Scale, output: Path) -> Path:
    """Return the folder of facts and pages, at the scale smoke one of OUTPUT."""
    return output / "results" if scale == "smoke" else config.results


def read_all(folder: Path) -> dict[str, Facts]:
    """Read the facts of all items, and those of the studies on the papers' own data."""
    return fact_files.read(folder, FACT_KEYS) | studies.read_facts(folder)


def build_files(folder: Path) -> dict[str, str]:
    """Build all pages and pictures of curves from the facts in a folder: file -> text."""
    facts = read_all(folder)
    captions = {}
    for path in (folder / pages.PICTURES).glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        captions[path.stem] = (record["caption"], record["source"])
    files = {f"{paper}.md": pages.build_page(paper, facts, captions) for paper in read_papers()}
    return {"index.md": build_index(facts)} | files | pages.draw_curves(facts)


def write_pages(config: ReportConfig, scale: Scale, output: Path) -> list[str]:
    """Write the pages, and the README's lines but at the scale smoke; say where."""
    folder = find_folder(config, scale, output)
    if not folder.is_dir():
        raise ConfigError(f"results: {folder}: no such folder, so there is nothing to report")
    files = build_files(folder)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        filesystem.write_atomically(path, text, durable=False)
    for path in (folder / pages.CURVES).glob("*.svg"):
        if f"{pages.CURVES}/{path.name}" not in files:  # of facts that have changed since
            path.unlink()
    if config.readme and scale != "smoke":
        text = build_readme(config.readme.read_text(encoding="utf-8"), read_all(folder))
        filesystem.write_atomically(config.readme, text, durable=False)
    return [f"pages: {folder / 'index.md'}"]
