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
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import track

from tfmammo import archives, filesystem
from tfmammo.apps.exchange import table
from tfmammo.apps.exchange.cases import (
    Case,
    encode_png,
    make_cases,
    make_plan,
    quantize,
    translate_split,
)
from tfmammo.apps.exchange.config import ExchangeConfig
from tfmammo.apps.exchange.instances import Coco, HuggingFace, Yolo
from tfmammo.apps.exchange.label_maps import Monai, NNUNet
from tfmammo.config import DataConfig
from tfmammo.data.datasets import SPLIT, log_skipped
from tfmammo.errors import ConfigError, DataError
from tfmammo.filesystem import to_json
from tfmammo.mammogram import Lesion, Skipped, key_check

log = logging.getLogger(__name__)

IDENTITY = "export.json"
METADATA = "metadata.csv"
Name = Literal["nnunet", "coco", "yolo", "hf", "monai"]
NAMES: tuple[Name, ...] = ("nnunet", "coco", "yolo", "hf", "monai")
# keys that change nothing that is written: where things lie, and what only a training does
_IRRELEVANT = ("root", "records", "split_file", "augment")


class Format(Protocol):
    """What a format says of its files.

    Attributes:
        needs_masks: Whether it has no place for a lesion without an outline.
        splits_by_folds: Whether its own files list all folds, so that no case is held out.
    """

    needs_masks: bool
    splits_by_folds: bool

    def image_path(self, case: Case) -> str:
        """Return where a case's image lies beneath the folder."""

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Take a case; return its other files by their paths beneath the folder."""

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases, the one that others look for first last."""


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        images: Number of images by subset.
        lesions: Number of lesions by kind.
        left_out: Number of images of which something was left out.
    """

    images: dict[str, int]
    lesions: dict[str, int]
    left_out: int


def write_dataset(name: Name, config: ExchangeConfig, output: Path) -> Summary:
    """Write a data set for another tool; a stopped one goes on where it was.

    One mammogram is in memory at a time. Images that are newer than the archive's files are not
    written again.

    Args:
        name: The format.
        config: Which mammograms or patches.
        output: A new folder, or one of an earlier run of the same command.

    Raises:
        ConfigError: The folder holds other files or another data set, or a key of the config can't
            be followed.
        DataError: The patients can't be split, or no image is left.
        ArchiveError: The archive can't be read.
    """
    if config.exchange.boxes and name not in ("coco", "yolo"):
        raise ConfigError(f"exchange.boxes: is for coco and yolo, not for {name}")
    if name == "nnunet" and not re.fullmatch(r"Dataset[0-9]{3}_\w+", output.name):
        log.warning(
            "nnU-Net finds only folders that are called like Dataset501_Masses; rename %s",
            output.name,
        )
    skipped = Skipped()
    plan = make_plan(config, skipped)
    form = _open(name, config, plan.split.folds or config.data.folds)
    identity = {
        "format": name,
        **_identify(config),
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
            rows.append(_make_row(case, form, config.data))
            images["held out" if case.is_held_out else "training"] += 1
            kinds.update(lesion.kind for lesion in lesions)
        if not rows:
            raise DataError(f"no image could be written ({_name_first(skipped)})")
        if name != "hf":  # whose metadata.jsonl has it, and which allows no second table
            _write(output / METADATA, _format_table(rows))
        saved = translate_split(plan.split)
        _write(output / SPLIT, to_json(saved.model_dump(mode="json") | {"sha256": saved.digest()}))
        for path, text in form.finish().items():
            _write(output / path, text)
    log_skipped(skipped)
    return Summary(dict(images), dict(kinds), len(skipped))


def _open(name: Name, config: ExchangeConfig, folds: int) -> Format:
    if name == "coco":
        return Coco(config.data, config.exchange.boxes)
    if name == "yolo":
        return Yolo(config.data, config.exchange.boxes)
    if name == "hf":
        return HuggingFace(config.data)
    return NNUNet(config.data, folds) if name == "nnunet" else Monai(config.data)


def _identify(config: ExchangeConfig) -> dict[str, object]:
    data = config.data.model_dump(mode="json")
    for key in _IRRELEVANT:
        del data[key]
    return {"data": data, "exchange": config.exchange.model_dump(mode="json")}


def _find_lesions(case: Case, form: Format, skipped: Skipped) -> list[Lesion] | None:
    """Read a case's lesions; None where one has no place in the format.

    Without it the image would teach that there is nothing.
    """
    lesions = list(case.mammogram.lesions)
    try:
        for number, lesion in enumerate(lesions):
            if form.needs_masks and not lesion.outlines:
                raise DataError(f"lesion {number}: the archive gives its box but no outline")
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
    os.utime(path)  # also of an equal image, else it would be read again each time
    return True


def _is_newer(path: Path, sources: Sequence[Path]) -> bool:
    """Whether a file was written after all of its sources; False where none is known."""
    try:
        changes = [source.stat() for source in sources]
    except OSError:  # whoever reads it tells
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


def _make_row(case: Case, form: Format, config: DataConfig) -> dict[str, str]:
    subset = "test" if case.is_held_out else "train"
    if form.splits_by_folds and config.split == "patient":
        subset = ""
    return {"file": form.image_path(case), **table.make_row(case.mammogram), "split": subset}


def _format_table(rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ("file", *table.COLUMNS, "split"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _name_first(skipped: Skipped) -> str:
    return next((f"{item}: {reason}" for item, reason in skipped.reasons.items()), "there is none")
