"""Damage the files of every archive as files are damaged, and read what is left."""

import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tests.archives.tools import READERS, write_archive
from tests.archives.writers import folder
from tfmammo.apps.exchange.cases import ExchangeConfig
from tfmammo.apps.exchange.writing import write_dataset
from tfmammo.archives import ARCHIVES
from tfmammo.archives.writers import segmentation
from tfmammo.mammogram import Mammogram, Skipped

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    + "]><plist><dict><key>Images</key><string>&j;</string></dict></plist>"
)
WORDS = (
    b"=cmd|' /C calc'!A0",
    b"../../../../outside/escaped",
    b"/outside/escaped",
    b"9" * 5000,
    "\u202e\U0001f4a9".encode(),
    *b"-1 0 nan inf 1e308 99999999999 4294967295 65535 [] {} null ; , # \x00 \xff\xfe".split(b" "),
    *(b"", b"\n", b'"'),
)


def _export(form: str, mammograms: Sequence[Mammogram], root: Path) -> None:
    """Write another tool's data set."""
    source = root.parent / "source"
    folder.write(mammograms, source)
    data = {"name": "folder", "root": str(source), "folds": 2, "kinds": ["mass", "calcification"]}
    write_dataset(form, ExchangeConfig.model_validate({"data": data}), root)
    shutil.rmtree(source)
    for name in (".lock", "export.json", "split.json", "splits_final.json"):  # no reader opens them
        (root / name).unlink(missing_ok=True)


def _write_regions(mammograms: Sequence[Mammogram], root: Path) -> None:
    """Write DICOM mammograms, with segmentations of their lesions."""
    paths = folder.write(mammograms, root, ending=".dcm")
    for path, mammogram in zip(paths, mammograms, strict=True):
        if not mammogram.lesions:
            continue
        lesions = {f"{i} {lesion.kind}": lesion for i, lesion in enumerate(mammogram.lesions)}
        segmentation.write(path.with_name(f"{path.stem}-seg.dcm"), path, lesions, {})
    shutil.rmtree(root / "masks")
    table = (root / "metadata.csv").read_text(encoding="ascii").splitlines(keepends=True)
    rows = [line for line in table if not re.match(r"[0-9]+_", line)]
    (root / "metadata.csv").write_text("".join(rows), encoding="ascii")


WRITERS = {
    **{name: partial(write_archive, name) for name in READERS},
    **{f"folder/{form}": partial(_export, form) for form in ("hf", "monai", "nnunet", "yolo")},
    "folder/regions": _write_regions,
    "inbreast": partial(write_archive, "inbreast", xls=True),
}


def damage(path: Path, rng: random.Random) -> None:
    """Damage a file in one of the ways that files are."""
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    words = [match.span() for match in re.finditer(rb"[\w.\-]+", content[:200_000])] or [(0, 0)]
    start, end = rng.choice(words)
    is_binary = path.suffix.lower() in (".dcm", ".jpg", ".png", ".dicom")
    ways: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: content[:at],
        "beheaded": lambda: content[at:],
        "noise": lambda: rng.randbytes(rng.choice((0, 1, 100, len(content)))),
        "repeated": lambda: content[:at] + content[at // 2 : at // 2 + 500] + content[at:],
        "utf-16": lambda: content.decode("latin-1").encode("utf-16"),
        "nested": lambda: b"[" * 200_000,
        "bomb": lambda: BOMB.encode(),
        "huge size": lambda: _enlarged(content, rng),
        "head": lambda: (
            bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.05 else b for b in content[:400])
            + content[400:]
        ),
        "word": lambda: content[:start] + rng.choice(WORDS) + content[end:],
    }
    usual = ("head", "huge size") if is_binary else ("word",)
    places = {
        "gone": Path.exists,
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "endless link": lambda place: place.symlink_to(place),
    }
    way = rng.choice((*ways, *places, *4 * usual))
    if way in ways:
        path.write_bytes(ways[way]())
    else:
        path.unlink()
        places[way](path)


def repair(path: Path, content: bytes) -> None:
    """Put a file back."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)


def _enlarged(content: bytes, rng: random.Random) -> bytes:
    """A side of 60 or 44 px becomes 65535, wherever the file says it in binary or in words."""
    for order in ("little", "big"):
        content = content.replace(rng.choice((60, 44)).to_bytes(2, order), b"\xff\xff")
    return content.replace(b"60", b"99999").replace(b"44", b"99999")


def outcome(name: str, root: Path) -> str:
    """Read the whole archive; return "record", "skip" or the name of the error."""
    skipped = Skipped()
    try:
        found = ARCHIVES[name.partition("/")[0]](root, skipped)
    except ValueError as error:
        return _told(error)
    told = ""
    for mammogram in found:
        try:
            image = mammogram.pixels()
            assert image.dtype == np.float32 and np.isfinite(image).all()
            assert image.min() >= 0 and image.max() <= 1, "pixels out of range"
        except ValueError as error:
            told = _told(error)
        for lesion in mammogram.lesions:
            try:
                top, left, bottom, right = lesion.box
                in_rows = 0 <= top < bottom <= mammogram.rows
                assert in_rows and 0 <= left < right <= mammogram.cols, f"box {lesion.box}"
                if lesion.outlines:
                    assert lesion.mask(mammogram.rows, mammogram.cols).any(), "an empty mask"
            except ValueError as error:
                told = _told(error)
    for file, reason in skipped.reasons.items():
        assert file and reason and "\n" not in reason, f"no sentence: {file!r}: {reason!r}"
    return told or ("skip" if skipped else "record")


def _told(error: ValueError) -> str:
    is_one_sentence = "\n" not in str(error) and len(str(error)) < 3000
    assert type(error).__module__.startswith("tfmammo") and is_one_sentence, repr(error)[:500]
    return type(error).__name__
