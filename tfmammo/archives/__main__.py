"""Look at an archive before you train on it: what it contains, what was skipped, how it looks.

tfmammo archives cbis_ddsm DIR --sheet sheet.png
tfmammo archives cbis_ddsm DIR --list      the file behind each pseudonym in tables, logs
                        and failures.csv
tfmammo archives inbreast DIR --dicom annotations      the lesions as DICOM SEG and SR

All mask files are read, to find those that are empty or have a wrong size; --quick omits this.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tfmammo import cli, filesystem
from tfmammo.archives import ARCHIVES, list_files, read_mammograms
from tfmammo.archives.contact_sheet import draw_contact_sheet
from tfmammo.archives.files import remove_names
from tfmammo.archives.writers.annotations import write as write_annotations
from tfmammo.config import DataConfig, describe
from tfmammo.errors import ArchiveError, ConfigError, EmptyMask, MaskSize
from tfmammo.mammogram import Lesion, Mammogram, MaskedLesion, Skipped, escape_cell

SHOWN = 10  # reasons on the screen; --skipped writes them all
_FAULTS: dict[type[ArchiveError], str] = {EmptyMask: "empty", MaskSize: "of a wrong size"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the archive, print its summary, draw its contact sheet."""
    parser = cli.make_command_parser("archives", __doc__)
    add = parser.add_argument
    add("name", choices=sorted(ARCHIVES), help="which archive")
    add("root", type=Path, nargs="?", help="its folder; the phantom has none")
    sheet_help = "draw a contact sheet with the lesions' outlines"
    add("--sheet", type=Path, metavar="PNG", help=sheet_help)
    images_help = "how many mammograms the sheet shows (default 36, those with lesions first)"
    add("--images", type=cli.parse_count, default=36, help=images_help)
    add("--seed", type=int, default=0, help="of their choice")
    list_help = "print which file is behind each pseudonym, and nothing else"
    add("--list", action="store_true", help=list_help)
    add("--quick", action="store_true", help="read no mask")
    dicom_help = "write the lesions of DICOM mammograms as SEG and SR; they name the same patient"
    add("--dicom", type=Path, metavar="DIR", help=dicom_help)
    add("--skipped", type=Path, metavar="CSV", help="write every skipped file with its reason")
    options = parser.parse_args(arguments)
    if options.root is None and options.name != "phantom":
        parser.error(f"root is missing: the folder of {options.name}")

    def look() -> None:
        """Read and print; `cli.run` reports what it raises."""
        skipped = Skipped()
        try:
            config = DataConfig(name=options.name, root=options.root, seed=options.seed)
        except ValidationError as error:
            raise ConfigError(f"--{describe(error)}") from None
        records = read_mammograms(config, skipped)
        if options.list:
            write_list(records, skipped, sys.stdout)
            return
        by_reader = len(skipped)
        faults = Counter[str]() if options.quick else _check_masks(records, skipped)
        cli.console.print(summary(records, options.name, faults))
        if options.dicom:
            written = write_annotations(records, options.dicom, skipped)
            cli.console.print(f"SEG and SR     {options.dicom}, of {written:,} mammograms")
        if options.sheet:
            _write_sheet(records, options.sheet, options.images, options.seed, skipped)
            cli.console.print(f"contact sheet  {options.sheet}", soft_wrap=True)
        _print_skipped(skipped, by_reader, options.skipped)

    cli.run(look)


def _check_masks(records: Sequence[Mammogram], skipped: Skipped) -> Counter[str]:
    """Read every mask in a file of its own; count unusable ones by what is wrong with them."""
    lesions = [(record, lesion) for record in records for lesion in record.lesions]
    masked = [(record, each) for record, each in lesions if isinstance(each, MaskedLesion)]
    faults: Counter[str] = Counter()
    screen = Console(stderr=True, quiet=len(masked) < SHOWN)
    for mammogram, lesion in track(masked, "reading masks", transient=True, console=screen):
        try:
            lesion.read()
        except ArchiveError as error:
            skipped.add(mammogram.image_id, error)
            faults[_FAULTS.get(type(error), "unreadable")] += 1
    return faults


def write_list(records: Sequence[Mammogram], skipped: Skipped, stream: TextIO) -> None:
    """Write which file is behind each pseudonym as CSV: pseudonym, patient, file, why skipped.

    It reverses the pseudonyms, so it goes to the caller's own screen or file, and to no log.
    """
    root = skipped.root
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(("pseudonym", "patient", "file", "skipped"))
    for mammogram in records:
        for path in list_files(mammogram):
            is_beneath = root and path.is_relative_to(root)
            file = path.relative_to(root).as_posix() if root and is_beneath else str(path)
            rows.writerow((mammogram.image_id, mammogram.patient_id, escape_cell(file), ""))
    for file, reason in skipped.reasons.items():
        rows.writerow((*remove_names({file: ""}, None), "", escape_cell(file), escape_cell(reason)))


def summary(records: Sequence[Mammogram], name: str, faults: Counter[str] | None = None) -> Table:
    """Count images, patients and lesions, and their kinds; no pixel is read.

    Args:
        faults: Masks that can't be used, by what is wrong with them.
    """
    patients = len({m.patient_id for m in records})
    title = f"{name}: {len(records):,} mammograms of {patients:,} patients"
    table = Table(title=title, show_header=False)
    lesions = [lesion for mammogram in records for lesion in mammogram.lesions]
    with_lesions = sum(bool(m.lesions) for m in records)
    counts = {"images with": with_lesions, "images without": len(records) - with_lesions}
    rows: dict[str, Counter[str]] = {
        "view": Counter(f"{m.laterality or '?'} {m.view or '?'}" for m in records),
        "pathology": Counter(m.pathology or "not stated" for m in records),
        "official split": Counter(m.official_split or "none" for m in records),
        "density": Counter(m.density or "not stated" for m in records),
        "spacing, mm": Counter(f"{m.spacing[0]:g}" if m.spacing else "not stated" for m in records),
        "lesions": Counter(counts),
    }
    for kind in sorted({lesion.kind for lesion in lesions}):
        same = [lesion for lesion in lesions if lesion.kind == kind]
        rows[kind] = Counter(lesion.pathology or "not stated" for lesion in same)
    rows["lesions given by"] = Counter(map(_name_location, lesions))
    if faults:
        rows["masks that can't be used"] = faults
    # marked and unreadable: their images are neither background nor normal
    if lost := [str(each.kind or "of unknown kind") for m in records for each in m.lost]:
        rows["lost on reading"] = Counter(lost)
    uncertain = sum(not lesion.kind_is_certain for lesion in lesions)
    rows["uncertain kind"] = Counter({"lesions": uncertain})
    for heading, counted in rows.items():
        words = (f"{count:,} {word}" for word, count in counted.most_common(8))
        table.add_row(heading, ", ".join(words))
    return table


def _name_location(lesion: Lesion) -> str:
    if isinstance(lesion, MaskedLesion):  # its outlines would read the file
        return "mask file"
    return "outline" if lesion.outlines else "box"


def _write_sheet(
    records: Sequence[Mammogram], path: Path, images: int, seed: int, skipped: Skipped
) -> None:
    order = np.random.default_rng(seed).permutation(len(records))
    has_none = [not records[index].lesions for index in order]
    selected = sorted(order[np.argsort(has_none, kind="stable")][:images])
    sheet = draw_contact_sheet((records[index] for index in selected), skipped)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), sheet[..., ::-1])
    except cv2.error:
        written = False
    if not written:
        raise ArchiveError(f"{path}: can't be written as a picture")


def _print_skipped(skipped: Skipped, by_reader: int, file: Path | None) -> None:
    if file:  # also an empty one, in the place of an earlier one
        # neither a link nor a pipe is replaced, as /dev/stdout is
        is_replaced = not file.is_symlink() and (file.is_file() or not file.exists())
        with filesystem.atomic_file(file) if is_replaced else nullcontext(file) as part:
            part.write_text(skipped.to_csv(), encoding="utf-8", newline="")
    if not skipped:
        return
    later = len(skipped) - by_reader
    cli.console.print(f"skipped  {by_reader:,} notes of the reader, {later:,} of masks or pixels")
    for name, reason in list(skipped.reasons.items())[:SHOWN]:
        cli.console.print(f"  {name}: {reason}", highlight=False, soft_wrap=True)
    if len(skipped) > SHOWN:
        hint = "" if file else " (--skipped FILE.csv writes them all)"
        cli.console.print(f"  ... and {len(skipped) - SHOWN:,} more{hint}")
    if file:
        cli.console.print(f"skipped files  {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
