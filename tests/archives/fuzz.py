"""Drive one reader with damaged copies of its archive's files, in a process of its own
with a bound on memory.

    python -m tests.archives.fuzz NAME --count 2000 --seed 0

Before damaging bytes at random it tries every structural case on every file: small files that claim
much, unpack to much, nest deeply, never end, or are called by another spelling of their name.

Every outcome must be a record, a named skip or a ValueError of one sentence. Prints one JSON line:
how often each outcome came, and every failure with the number that repeats it (--only NUMBER).
"""

import argparse
import io
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from tests.archives.writers import (
    cbis_ddsm,
    cdd_cesm,
    cmmd,
    ddsm,
    embed,
    folder,
    inbreast,
    mini_mias,
    optimam,
    rsna,
    vindr,
)
from tfmammo.archives import ARCHIVES
from tfmammo.archives.writers import segmentation
from tfmammo.mammogram import Lesion, Mammogram, Skipped

MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"
MEMORY = 4 * 2**30  # bytes of address space
SECONDS = 20  # for one damaged archive, reading all of it; a few hundredths is usual
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    + "]><plist><dict><key>Images</key><string>&j;</string></dict></plist>"
)
WORDS = (
    b"=cmd|' /C calc'!A0",
    b"../../../../outside/escaped",
    b"/outside/escaped",
    b"-1",
    b"0",
    b"nan",
    b"inf",
    b"1e308",
    b"99999999999",
    b"4294967295",
    b"65535",
    b"",
    b"\x00",
    b"\xff\xfe",
    b"[]",
    b"{}",
    b"null",
    b'"',
    b"\n",
    b";",
    b",",
    b"#",
    b"9" * 5000,
    "\u202e\U0001f4a9".encode(),
)


def _export(form: str, mammograms: Sequence[Mammogram], root: Path) -> None:
    """Write another tool's data set, in a process of its own, which needs more memory."""
    source = root.parent / "source"
    folder.write(mammograms, source)
    (root.parent / "config.yaml").write_text("data: {name: folder, folds: 2}", encoding="ascii")
    command = [sys.executable, "-m", "tfmammo.apps.exchange", form, "--config"]
    command += [str(root.parent / "config.yaml"), str(root), "--set", f"data.root={source}"]
    command += ["data.kinds=[mass, calcification]"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    shutil.rmtree(source)
    # what no reader opens
    for name in ("config.yaml", "archive/.lock", "archive/export.json", "archive/split.json"):
        (root.parent / name).unlink()
    (root / "splits_final.json").unlink(missing_ok=True)


def _write_regions(mammograms: Sequence[Mammogram], root: Path) -> None:
    """Write DICOM mammograms, each with a segmentation of its lesions."""
    for path, mammogram in zip(
        folder.write(mammograms, root, ending=".dcm"), mammograms, strict=True
    ):
        lesions = {
            f"{number} {lesion.kind}": lesion for number, lesion in enumerate(mammogram.lesions)
        }
        segmentation.write(path.with_name(f"{path.stem}-seg.dcm"), path, lesions, "1", {})
    shutil.rmtree(root / "masks")
    table = (root / "metadata.csv").read_text(encoding="ascii").splitlines(keepends=True)
    rows = [line for line in table if not re.match(r"[0-9]+_", line)]
    (root / "metadata.csv").write_text("".join(rows), encoding="ascii")


WRITERS = {
    "cbis_ddsm": cbis_ddsm.write,
    "cdd_cesm": cdd_cesm.write,
    "cmmd": cmmd.write,
    "ddsm": ddsm.write,
    "embed": embed.write,
    "folder": folder.write,
    "folder/hf": partial(_export, "hf"),
    "folder/monai": partial(_export, "monai"),
    "folder/nnunet": partial(_export, "nnunet"),
    "folder/regions": _write_regions,
    "folder/yolo": partial(_export, "yolo"),
    "inbreast": partial(inbreast.write, xls=True),
    "mini_mias": mini_mias.write,
    "optimam": optimam.write,
    "rsna": rsna.write,
    "vindr": vindr.write,
}


def grey(value: float) -> np.ndarray:
    """A tiny mammogram: a bright square breast with a gland on a dark ground."""
    image = np.zeros((48, 40, 1), np.float32)
    image[4:44, :30] = value
    image[20:30, :10] = value / 2
    return image


def original(number: int) -> Mammogram:
    outline = np.float32([[10, 8], [10, 20], [24, 20], [24, 8]])
    details = {"pathology": "malignant", "shape": "oval", "margin": "spiculated"}
    lesions = (
        Lesion.from_outline("mass", outline, 48, 40, **details),
        Lesion.from_outline("calcification", outline + 6, 48, 40, **details),
    )
    return Mammogram(
        "test",
        f"p{number // 2}",
        f"image{number}",
        48,
        40,
        partial(grey, 0.5 + number / 10),
        "LR"[number % 2],
        "CC",
        "malignant",
        lesions[: 1 + number % 2],
        (0.1, 0.1),
        "4",
        "2",
    )


def damage(content: bytes, path: Path, rng: random.Random) -> bytes | None:
    """The content, damaged in one of the ways that files are; None: the file is missing."""
    at = rng.randrange(len(content) + 1)
    size = len(content)
    start = rng.randrange(size) if size else 0
    text = [match.span() for match in re.finditer(rb"[\w.\-]+", content[:200_000])]
    ways = {
        "truncated": lambda: content[:at],
        "beheaded": lambda: content[at:],
        "bits": lambda: bytes(
            b ^ (1 << rng.randrange(8)) if rng.random() < 4 / max(size, 1) else b for b in content
        ),
        "head bits": lambda: (
            bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.05 else b for b in content[:400])
            + content[400:]
        ),
        "noise": lambda: rng.randbytes(rng.choice((0, 1, 100, size))),
        "repeated": lambda: content[:at] + content[start : start + 500] + content[at:],
        "utf-16": lambda: content.decode("latin-1").encode("utf-16"),
        "latin-1": lambda: content.replace(b"a", b"\xe4"),
        "nested": lambda: b"[" * 200_000,
        "bomb": lambda: BOMB.encode(),
        "picture of another kind": lambda: b"GIF89a" + content,
        "gone": lambda: None,
        "word": lambda: _replaced(content, rng.choice(text), rng.choice(WORDS)) if text else b"",
        "words": lambda: (
            _replaced(
                _replaced(content, text[-1], rng.choice(WORDS)), rng.choice(text), rng.choice(WORDS)
            )
            if text
            else b""
        ),
        "huge size": lambda: _enlarged(content, rng),
    }
    usual = (
        ("word", "word", "word", "words")
        if path.suffix.lower() not in (".dcm", ".jpg", ".png", ".dicom")
        else ("head bits", "bits", "huge size")
    )
    return ways[rng.choice((*ways, *usual))]()


def _replaced(content: bytes, span: tuple[int, int], word: bytes) -> bytes:
    return content[: span[0]] + word + content[span[1] :]


def _enlarged(content: bytes, rng: random.Random) -> bytes:
    """A side of 48 or 40 px becomes 65535, wherever the file says it in binary or in words."""
    little, big = (rng.choice((48, 40)).to_bytes(2, order) for order in ("little", "big"))
    return (
        content.replace(little, b"\xff\xff")
        .replace(big, b"\xff\xff")
        .replace(b"48", b"99999")
        .replace(b"40", b"99999")
    )


def structural(content: bytes, path: Path) -> dict[str, bytes | Callable[[Path], object]]:
    """Structural damage of one file: what it becomes, or what is done to it in its place."""
    ending = path.suffix.lower()
    zeros = b"\0" * 2**22
    cases: dict[str, bytes | Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "endless link": lambda place: place.symlink_to(place),
        "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "deep list": b"[" * 200_000,
        "deep object": b'{"a":' * 200_000,
        "blank lines": b"\n" * 300_000 + content,
        "blanks": b" " * 300_000 + content,
    }
    if ending in (".dcm", ".dicom"):
        cases |= {
            "RLE bomb": _dicom_with(RLELossless, rle_frame(b"\x81\0" * 2**21)),
            "RLE of nothing": _dicom_with(RLELossless, rle_frame(b"\x80" * 2**22)),
            "deflate bomb": _deflated(2**30),
            "JPEG 2000 of many channels": _dicom_with(JPEG2000Lossless, _J2K),
        }
    elif ending in (".png", ".jpg", ".jpeg"):
        cases |= {
            "PNG bomb": _png(60_000, 60_000, zlib.compress(zeros)),
            "PNG of a line": _png(2**31 - 1, 1, b""),
            "JPEG bomb": _jpeg_claim(content),
        }
    else:
        numbers = [match.span() for match in re.finditer(rb"\d+(?:\.\d+)?", content[:200_000])][
            -40:
        ]
        for number, word in enumerate(
            (b"1" + b"0" * 400, b"9" * 16_000, b"1e308", b"-1e7", b"30000000")
        ):
            cases |= {
                f"number {number} at {span[0]}": _replaced(content, span, word)
                for span in numbers[:: max(1, len(numbers) // 8)]
            }
        cases["number everywhere"] = re.sub(rb"(?<=[ (:,\[])\d+(?=[,.)\]])", b"30000000", content)
    return cases


def rle_frame(packed: bytes) -> bytes:
    """Two RLE segments as one."""
    return struct.pack("<16I", 2, 64, 64 + len(packed), *[0] * 13) + packed * 2


_J2K = (
    b"\xff\x4f\xff\x51"
    + struct.pack(">2H8IH", 41, 0, 40, 48, 0, 0, 40, 48, 0, 0, 16384)
    + bytes(64)
)


def _dicom_with(syntax: UID, frame: bytes) -> bytes:
    made = _blank(syntax)
    made.PixelData = encapsulate([frame])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return _saved(made)


@cache
def _deflated(size: int) -> bytes:
    """A mammogram that inflates to `size` bytes, its transfer syntax behind 70,000 bytes of meta
    information.
    """
    made = _blank(DeflatedExplicitVRLittleEndian)
    made.file_meta.PrivateInformationCreatorUID = "1.2.3"
    made.file_meta.PrivateInformation = bytes(70_000)
    made.PixelData = bytes(48 * 40 * 2)
    content = _saved(made)
    start = 144 + int.from_bytes(content[140:144], "little")
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = squeezer.compress(zlib.decompress(content[start:], -15))
    # After a full flush the same bytes are packed in the same way.
    body += squeezer.flush(zlib.Z_FULL_FLUSH)
    step = squeezer.compress(bytes(2**24)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    return content[:start] + body + step * (size // 2**24) + squeezer.flush()


def _blank(syntax: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = MAMMOGRAPHY
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    made = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=True)
    made.SOPClassUID = MAMMOGRAPHY
    made.SOPInstanceUID = "1.2.3.4"
    made.Modality = "MG"
    made.PhotometricInterpretation = "MONOCHROME2"
    made.Rows = 48
    made.Columns = 40
    made.BitsAllocated = 16
    made.BitsStored = 12
    made.HighBit = 11
    made.SamplesPerPixel = 1
    made.PixelRepresentation = 0
    return made


def _saved(made: FileDataset) -> bytes:
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _png(cols: int, rows: int, data: bytes) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _jpeg_claim(content: bytes) -> bytes:
    at = content.find(b"\xff\xc0") + 5
    return content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :] if at > 5 else content[:20]


def outcome(name: str, root: Path) -> str:
    """Read everything of the archive, as a training would.

    Returns which kind of outcome it was; raises on a fault.
    """
    skipped = Skipped()
    try:
        found = ARCHIVES[name.partition("/")[0]](root, skipped)
    except ValueError as error:
        return _told(error)
    told = ""
    for mammogram in found:
        try:
            image = mammogram.pixels()
            assert (
                image.dtype == np.float32
                and np.isfinite(image).all()
                and image.min() >= 0
                and image.max() <= 1
            ), "pixels out of range"
        except ValueError as error:
            told = _told(error)
        for lesion in mammogram.lesions:
            try:
                top, left, bottom, right = lesion.box
                assert (
                    0 <= top < bottom <= mammogram.rows and 0 <= left < right <= mammogram.cols
                ), f"box {lesion.box}"
                if lesion.outlines:
                    assert lesion.mask(mammogram.rows, mammogram.cols).any(), "an empty mask"
            except ValueError as error:
                told = _told(error)
    for file, reason in skipped.reasons.items():
        assert file and reason and "\n" not in reason, (
            f"skip without a sentence: {file!r}: {reason!r}"
        )
    return told or ("skip" if skipped else "record")


def _told(error: ValueError) -> str:
    assert (
        type(error).__module__.startswith("tfmammo")
        and "\n" not in str(error)
        and len(str(error)) < 3000
    ), repr(error)[:500]
    return type(error).__name__


def too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(WRITERS))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat one number, with its traceback")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as folder_name:
        place = Path(folder_name)
        os.chdir(place)
        (place / "outside").mkdir()
        (place / "outside/escaped").write_bytes(b"not to be read")
        root = place / "a/b/c/archive"
        root.parent.mkdir(parents=True)
        WRITERS[chosen.name]([original(number) for number in range(3)], root)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        assert outcome(chosen.name, root) == "record", (
            "the archive is not whole before it is damaged"
        )
        print(json.dumps(drive(chosen, place, root)))


def drive(chosen: argparse.Namespace, place: Path, root: Path) -> dict[str, object]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    before = sorted(str(path) for path in place.rglob("*"))
    outcomes: dict[str, int] = {}
    failures: list[str] = []
    slowest = structures = 0.0
    for label, path, damaged in cases(chosen, files):
        start = time.monotonic()
        content = path.read_bytes()
        try:
            kind = _tried(chosen.name, root, path, damaged)
            outcomes[kind] = outcomes.get(kind, 0) + (not label.startswith("structure"))
            structures += label.startswith("structure")
        except BaseException as error:
            if chosen.only is not None or isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"{label}: {path.name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.alarm(0)
            _remove(path)
            path.write_bytes(content)
        slowest = max(slowest, time.monotonic() - start)
        if (after := sorted(str(found) for found in place.rglob("*"))) != before:
            failures.append(f"{label}: {path.name}: wrote {set(after) ^ set(before)}")
            for extra in set(after) - set(before):
                shutil.rmtree(extra, ignore_errors=True)
    # getrusage's peak would include that of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="ascii")
    memory = int(status.split("VmHWM:")[1].split()[0]) / 2**10
    return {
        "name": chosen.name,
        "outcomes": outcomes,
        "structures": int(structures),
        "failures": failures,
        "slowest_s": round(slowest, 2),
        "memory_mib": round(memory),
    }


def cases(
    chosen: argparse.Namespace, files: list[Path]
) -> Iterator[tuple[str, Path, bytes | Callable[[Path], object] | None]]:
    """(what is done, to which file, what it becomes): every structural case, then
    damage by chance.
    """
    for path in files if chosen.only is None else []:
        for what, damaged in structural(path.read_bytes(), path).items():
            yield f"structure {what}", path, damaged
    for number in range(chosen.count) if chosen.only is None else [chosen.only]:
        rng = random.Random(f"{chosen.seed}/{chosen.name}/{number}")
        path = rng.choice(files)
        yield str(number), path, damage(path.read_bytes(), path, rng)


def _tried(
    name: str, root: Path, path: Path, damaged: bytes | Callable[[Path], object] | None
) -> str:
    if isinstance(damaged, bytes):
        path.write_bytes(damaged)
    else:
        path.unlink()
        if damaged is not None:
            damaged(path)
    signal.alarm(SECONDS)
    return outcome(name, root)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
