"""Write one data set: images one by one, then the files that list them."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from tfmammo import archives, filesystem
from tfmammo.apps.exchange.cases import (
    COLUMNS,
    Case,
    ExchangeConfig,
    make_cases,
    make_plan,
    name_first,
    translate_split,
)
from tfmammo.apps.exchange.formats import FORMATS, Format
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers.synthetic import encode_png
from tfmammo.data.datasets import SPLIT, log_skipped
from tfmammo.errors import ConfigError, DataError
from tfmammo.filesystem import to_json
from tfmammo.mammogram import Lesion, Mammogram, Skipped, key_check

log = logging.getLogger(__name__)

IDENTITY = "export.json"
METADATA = "metadata.csv"
# keys without influence on what is written: places of files, and what only training does
_IRRELEVANT = ("root", "records", "split_file", "augment")


@dataclass(frozen=True)
class Summary:
    """Numbers of what was written."""

    images: dict[str, int]  # by subset
    lesions: dict[str, int]  # by kind
    skipped: int  # images with something skipped


def write_dataset(name: str, config: ExchangeConfig, output: Path) -> Summary:
    """Write a data set in one of the FORMATS, or resume one in the same folder.

    One mammogram is in memory at a time. Images that are newer than the archive's files are not
    written again.
    """
    if config.exchange.boxes and name not in ("coco", "yolo"):
        raise ConfigError(f"exchange.boxes: is for coco and yolo, not for {name}")
    if name == "nnunet" and not re.fullmatch(r"Dataset[0-9]{3}_\w+", output.name):
        log.warning(
            "nnU-Net finds only folders with names like Dataset501_Masses; rename %s", output.name
        )
    skipped = Skipped()
    plan = make_plan(config, skipped)
    form = FORMATS[name](config, plan.split.folds or config.data.folds)
    identity = {
        "format": name,
        "data": config.data.model_dump(mode="json", exclude=set(_IRRELEVANT)),
        "exchange": config.exchange.model_dump(mode="json"),
        "archive": plan.fingerprint,
        "split": translate_split(plan.split).digest(),
        "id_key": key_check(),
    }
    rows: list[dict[str, str]] = []
    images: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    with filesystem.claim_folder(output, identity, IDENTITY):
        for case in track(
            make_cases(config, plan, skipped),
            f"writing {name}",
            total=len(plan.records),
            transient=True,
            console=Console(stderr=True),
        ):
            lesions = _find_lesions(case, form, skipped)
            if lesions is None or not _write_image(output, form, case, skipped):
                continue
            for path, content in form.add(case, lesions).items():
                _write(output / path, content)
            subset = "test" if case.is_held_out else "train"
            if form.splits_by_folds and config.data.split == "patient":
                subset = ""
            rows.append({"file": form.image_path(case), **case.make_row(), "split": subset})
            images["held out" if case.is_held_out else "training"] += 1
            kinds.update(lesion.kind for lesion in lesions)
        if not rows:
            raise DataError(f"no image could be written{name_first(skipped)}")
        if name != "hf":  # its metadata.jsonl has the facts, and it allows no second table
            table = io.StringIO(newline="")
            writer = csv.DictWriter(table, ("file", *COLUMNS, "split"), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            _write(output / METADATA, table.getvalue())
        saved = translate_split(plan.split)
        _write(output / SPLIT, to_json(saved.model_dump(mode="json") | {"sha256": saved.digest()}))
        for path, text in form.finish().items():
            _write(output / path, text)
    log_skipped(skipped)
    return Summary(dict(images), dict(kinds), len(skipped))


def _find_lesions(case: Case, form: Format, skipped: Skipped) -> list[Lesion] | None:
    """Read a case's lesions; None if the format can't state one of them.

    Without it, the image would teach that its place is normal.
    """
    lesions = list(case.mammogram.lesions)
    try:
        for number, lesion in enumerate(lesions):
            if form.needs_masks and not lesion.outlines:
                raise DataError(f"lesion {number}: the archive states its box but no outline")
            _ = lesion.box
    except ValueError as error:
        skipped.add(case.mammogram.image_id, error)
        return None
    return lesions


def _write_image(output: Path, form: Format, case: Case, skipped: Skipped) -> bool:
    path = output / form.image_path(case)
    if path.exists() and _is_newer(path, archives.list_files(case.mammogram)):
        return True
    try:
        pixels = quantize(case.mammogram)
    except ValueError as error:
        skipped.add(case.mammogram.image_id, error)
        return False
    _write(path, encode_png(pixels))
    os.utime(path)  # even of an equal image, or it would be read again each time
    return True


def quantize(mammogram: Mammogram) -> NDArray[np.integer]:
    """Read pixels as uint8 or uint16 [rows, cols] over their whole range.

    8 and 16 bits keep their values. Others are rounded: up to 8 bits to 8, all others to 16.
    """
    has_byte = mammogram.bits is not None and mammogram.bits <= 8
    return Stored.of_image(mammogram.pixels(), 8 if has_byte else 16).values


def _is_newer(path: Path, sources: Sequence[Path]) -> bool:
    """Whether a file was written after all of its sources; False if none is known."""
    try:
        changes = [source.stat() for source in sources]
    except OSError:  # reading it will explain
        return False
    # A corrected file may be copied here with its old time of change, but not of status.
    times = [max(change.st_mtime_ns, change.st_ctime_ns) for change in changes]
    return bool(times) and path.stat().st_mtime_ns > max(times)


def _write(path: Path, content: bytes | str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.write_atomically(path, content)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror})") from None
