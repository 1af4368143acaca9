"""Make all pages from committed rows alone, without TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path

from tfmammo import filesystem
from tfmammo.apps.report import facts as fact_files
from tfmammo.apps.report import inbreast, index, pages
from tfmammo.apps.report.config import ReportConfig, Scale
from tfmammo.apps.report.facts import Facts
from tfmammo.apps.report.items import FACT_KEYS
from tfmammo.apps.report.papers import read_papers
from tfmammo.errors import ConfigError


def find_folder(config: ReportConfig, scale: Scale, output: Path) -> Path:
    """Return the folder of facts and pages, at the scale smoke one of OUTPUT."""
    return output / "results" if scale == "smoke" else config.results


def read_all(folder: Path) -> dict[str, Facts]:
    """Read the facts of all items, and those of the study on INbreast."""
    facts = fact_files.read(folder, FACT_KEYS)
    study = inbreast.make_facts(inbreast.read_study(folder / inbreast.FOLDER))
    return facts | ({inbreast.KEY: study} if study else {})


def build_files(folder: Path) -> dict[str, str]:
    """Build all pages and pictures of curves from the facts in a folder: file -> text."""
    facts = read_all(folder)
    captions = {}
    for path in (folder / pages.PICTURES).glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        captions[path.stem] = (record["caption"], record["source"])
    files = {f"{paper}.md": pages.build_page(paper, facts, captions) for paper in read_papers()}
    return {"index.md": index.build_index(facts)} | files | pages.draw_curves(facts)


def write_pages(config: ReportConfig, scale: Scale, output: Path) -> list[str]:
    """Write the pages, and the README's lines but at the scale smoke.

    Returns:
        Where they were written, in words.

    Raises:
        ConfigError: There is no folder of facts.
    """
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
        text = index.build_readme(config.readme.read_text(encoding="utf-8"), read_all(folder))
        filesystem.write_atomically(config.readme, text, durable=False)
    return [f"pages: {folder / 'index.md'}"]
