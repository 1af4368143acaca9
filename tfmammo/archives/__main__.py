"""Look at an archive before anything is trained on it: what it holds, what was left out and why, and how it looks.

python -m tfmammo.archives cbis_ddsm DIR --sheet sheet.png
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from tfmammo import command
from tfmammo.archives import ARCHIVES, mammograms
from tfmammo.archives.contact_sheet import contact_sheet
from tfmammo.config import DataConfig
from tfmammo.record import ArchiveError, Mammogram, MaskedLesion, Skipped

SHOWN = 10  # reasons of left-out files on the screen; --skipped writes them all


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the archive, print its summary, draw its contact sheet."""
    chosen = _parser().parse_args(arguments)

    def look() -> None:
        console, skipped = Console(), Skipped()
        found = mammograms(DataConfig(name=chosen.name, root=chosen.root, seed=chosen.seed), skipped)
        left_out = len(skipped)
        console.print(summary(found, chosen.name))
        if chosen.sheet:
            _write_sheet(found, chosen.sheet, chosen.images, chosen.seed, skipped)
            console.print(f"contact sheet  {chosen.sheet}", soft_wrap=True)
        _print_skipped(console, skipped, left_out, chosen.skipped)

    command.run(look)


def summary(found: Sequence[Mammogram], name: str) -> Table:
    """How many images, patients and lesions there are, of which kinds; no pixel is read."""
    table = Table(title=f"{name}: {len(found):,} mammograms of {len({m.patient_id for m in found}):,} patients", show_header=False)
    lesions = [lesion for mammogram in found for lesion in mammogram.lesions]
    located = Counter("mask file" if isinstance(x, MaskedLesion) else "outline" if x.outlines else "box" for x in lesions)
    rows: dict[str, Counter[str]] = {
        "view": Counter(f"{m.laterality or '?'} {m.view or '?'}" for m in found),
        "pathology": Counter(m.pathology or "not stated" for m in found),
        "official split": Counter(m.official_split or "none" for m in found),
        "density": Counter(m.density or "not stated" for m in found),
        "spacing, mm": Counter(f"{m.spacing[0]:g}" if m.spacing else "not stated" for m in found),
        "lesions": Counter({"images with": sum(bool(m.lesions) for m in found), "images without": sum(not m.lesions for m in found)}),
        **{
            kind: Counter(lesion.pathology or "not stated" for lesion in lesions if lesion.kind == kind)
            for kind in sorted({lesion.kind for lesion in lesions})
        },
        "lesions given by": located,
        "uncertain kind": Counter({"lesions": sum(not lesion.kind_is_certain for lesion in lesions)}),
    }
    for heading, counts in rows.items():
        table.add_row(heading, ", ".join(f"{count:,} {word}" for word, count in counts.most_common(8)))
    return table


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m tfmammo.archives", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(ARCHIVES), help="which archive")
    parser.add_argument("root", type=Path, nargs="?", help="its folder; the phantom has none")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw a contact sheet with the lesions' outlines")
    parser.add_argument("--images", type=int, default=36, help="how many mammograms the sheet shows (default 36, those with lesions first)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument("--skipped", type=Path, metavar="CSV", help="write every left-out file with its reason")
    return parser


def _write_sheet(found: Sequence[Mammogram], path: Path, images: int, seed: int, skipped: Skipped) -> None:
    order = np.random.default_rng(seed).permutation(len(found))
    shown = sorted(order[np.argsort([not found[i].lesions for i in order], kind="stable")][:images])
    sheet = contact_sheet((found[i] for i in shown), skipped)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), sheet[..., ::-1])
    except cv2.error:
        written = False
    if not written:
        raise ArchiveError(f"{path}: can't be written as a picture")


def _print_skipped(console: Console, skipped: Skipped, by_reader: int, file: Path | None) -> None:
    if not skipped:
        return
    console.print(f"left out, wholly or in part: {by_reader:,} by the reader, {len(skipped) - by_reader:,} while drawing")
    for name, reason in list(skipped.reasons.items())[:SHOWN]:
        console.print(f"  {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if len(skipped) > SHOWN:
        console.print(f"  ... and {len(skipped) - SHOWN:,} more" + ("" if file else " (--skipped FILE.csv writes them all)"))
    if file:
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("file", "reason"), *skipped.reasons.items()])
        console.print(f"left-out files  {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
