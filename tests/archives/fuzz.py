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
import pydicom
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
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Lesion, Mammogram, Skipped

MEMORY = 4 * 2**30  # bytes of address space
SECONDS = 20  # for one damaged archive, reading all of it; a few hundredths is usual
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    + "]><plist><dict><key>Images</key><string>&j;</string></dict></plist>"
)
WORDS = (
    *(b"=cmd|' /C calc'!A0", b"../../../../outside/escaped", b"/outside/escaped", b"nan", b"inf"),
    *(b"-1", b"0", b"1e308", b"99999999999", b"4294967295", b"65535", b"9" * 5000),
    *(b"", b"\x00", b"\xff\xfe", b"[]", b"{}", b"null", b'"', b"\n", b";", b",", b"#"),
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

    def flip(data: bytes, share: float) -> bytes:
        return bytes(b ^ (1 << rng.randrange(8)) if rng.random() < share else b for b in data)

    def replace(data: bytes) -> bytes:
        return _replaced(data, rng.choice(text), rng.choice(WORDS)) if text else b""

    def enlarge() -> bytes:
        """A side of 48 or 40 px becomes 65535, wherever the file says it, binary or in words."""
        little, big = (rng.choice((48, 40)).to_bytes(2, order) for order in ("little", "big"))
        wide = content.replace(little, b"\xff\xff").replace(big, b"\xff\xff")
        return wide.replace(b"48", b"99999").replace(b"40", b"99999")

    ways = {
        "truncated": lambda: content[:at],
        "beheaded": lambda: content[at:],
        "bits": lambda: flip(content, 4 / max(size, 1)),
        "head bits": lambda: flip(content[:400], 0.05) + content[400:],
        "noise": lambda: rng.randbytes(rng.choice((0, 1, 100, size))),
        "repeated": lambda: content[:at] + content[start : start + 500] + content[at:],
        "utf-16": lambda: content.decode("latin-1").encode("utf-16"),
        "latin-1": lambda: content.replace(b"a", b"\xe4"),
        "nested": lambda: b"[" * 200_000,
        "bomb": lambda: BOMB.encode(),
        "picture of another kind": lambda: b"GIF89a" + content,
        "gone": lambda: None,
        "word": lambda: replace(content),
        "words": lambda: replace(_replaced(content, text[-1], rng.choice(WORDS)) if text else b""),
        "huge size": enlarge,
    }
    is_image = path.suffix.lower() in (".dcm", ".jpg", ".png", ".dicom")
    usual = ("head bits", "bits", "huge size") if is_image else ("word", "word", "word", "words")
    return ways[rng.choice((*ways, *usual))]()


def _replaced(content: bytes, span: tuple[int, int], word: bytes) -> bytes:
    return content[: span[0]] + word + content[span[1] :]


def structural(content: bytes, path: Path) -> dict[str, bytes | Callable[[Path], object]]:
    """Structural damage of one file: what it becomes, or what is done to it in its place."""
    ending = path.suffix.lower()
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
        frames = {
            "RLE bomb": (RLELossless, rle_frame(b"\x81\0" * 2**21)),
            "RLE of nothing": (RLELossless, rle_frame(b"\x80" * 2**22)),
            "JPEG 2000 of many channels": (JPEG2000Lossless, _J2K),
        }
        cases |= {what: _dicom(*frame) for what, frame in frames.items()}
        cases["deflate bomb"] = _deflated(2**30)
    elif ending in (".png", ".jpg", ".jpeg"):
        at = content.find(b"\xff\xc0") + 5  # the size in a JPEG's frame
        claim = content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :] if at > 5 else content[:20]
        cases |= {
            "PNG bomb": _png(60_000, 60_000, zlib.compress(b"\0" * 2**22)),
            "PNG of a line": _png(2**31 - 1, 1, b""),
            "JPEG bomb": claim,
        }
    else:
        found = re.finditer(rb"\d+(?:\.\d+)?", content[:200_000])
        numbers = [match.span() for match in found][-40:]
        words = (b"1" + b"0" * 400, b"9" * 16_000, b"1e308", b"-1e7", b"30000000")
        cases |= {
            f"number {number} at {span[0]}": _replaced(content, span, word)
            for number, word in enumerate(words)
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


@cache
def _dicom(syntax: UID, frame: bytes | None, private: bytes = b"") -> bytes:
    """A mammogram of 48 x 40 px with this frame, or black; `private` lengthens its meta part."""
    with tempfile.TemporaryDirectory() as place:
        write_dicom(Path(place) / "a", np.zeros((48, 40), np.uint16), 12)
        made = pydicom.dcmread(Path(place) / "a")
    made.file_meta.TransferSyntaxUID = syntax
    if frame is not None:
        made.PixelData = encapsulate([frame])
        made["PixelData"].VR = "OB"
        made["PixelData"].is_undefined_length = True
    if private:
        made.file_meta.PrivateInformationCreatorUID = "1.2.3"
        made.file_meta.PrivateInformation = private
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@cache
def _deflated(size: int) -> bytes:
    """A mammogram that inflates to `size` bytes, its transfer syntax behind 70,000 bytes."""
    content = _dicom(DeflatedExplicitVRLittleEndian, None, bytes(70_000))
    start = 144 + int.from_bytes(content[140:144], "little")
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = squeezer.compress(zlib.decompress(content[start:], -15))
    # After a full flush the same bytes are packed in the same way.
    body += squeezer.flush(zlib.Z_FULL_FLUSH)
    step = squeezer.compress(bytes(2**24)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    return content[:start] + body + step * (size // 2**24) + squeezer.flush()


def _png(cols: int, rows: int, data: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)
    parts = [
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def outcome(name: str, root: Path) -> str:
    """Read everything of the archive, as a training run would.

    Returns which kind of outcome it was; raises on a fault.
    """
    skipped = Skipped()
    try:
        found = ARCHIVES[name.partition("/")[0]](root, skipped)
    except ValueError as error:
        return _told(error)
    told = ""
    for mammogram in found:
        rows, cols = mammogram.rows, mammogram.cols
        try:
            image = mammogram.pixels()
            is_grey = np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
            assert image.dtype == np.float32 and is_grey, "pixels out of range"
        except ValueError as error:
            told = _told(error)
        for lesion in mammogram.lesions:
            try:
                top, left, bottom, right = lesion.box
                assert 0 <= top < bottom <= rows and 0 <= left < right <= cols, f"box {lesion.box}"
                assert not lesion.outlines or lesion.mask(rows, cols).any(), "an empty mask"
            except ValueError as error:
                told = _told(error)
    for file, reason in skipped.reasons.items():
        assert file and reason and "\n" not in reason, f"no sentence: {file!r}: {reason!r}"
    return told or ("skip" if skipped else "record")


def _told(error: ValueError) -> str:
    is_ours = type(error).__module__.startswith("tfmammo")
    assert is_ours and "\n" not in str(error) and len(str(error)) < 3000, repr(error)[:500]
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
        assert outcome(chosen.name, root) == "record", "not whole before it is damaged"
        print(json.dumps(drive(chosen, place, root)))


def drive(chosen: argparse.Namespace, place: Path, root: Path) -> dict[str, object]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    before = {str(path) for path in place.rglob("*")}
    outcomes: dict[str, int] = {}
    failures: list[str] = []
    slowest = 0.0
    structures = 0
    for label, path, damaged in cases(chosen, files):
        start = time.monotonic()
        content = path.read_bytes()
        try:
            path.unlink()
            if isinstance(damaged, bytes):
                path.write_bytes(damaged)
            elif damaged is not None:
                damaged(path)
            signal.alarm(SECONDS)
            kind = outcome(chosen.name, root)
            is_structural = label.startswith("structure")
            outcomes[kind] = outcomes.get(kind, 0) + (not is_structural)
            structures += is_structural
        except BaseException as error:
            if chosen.only is not None or isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"{label}: {path.name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.alarm(0)
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        slowest = max(slowest, time.monotonic() - start)
        after = {str(found) for found in place.rglob("*")}
        if after != before:
            failures.append(f"{label}: {path.name}: wrote {after ^ before}")
            for extra in after - before:
                shutil.rmtree(extra, ignore_errors=True)
    # getrusage's peak would include that of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {
        "name": chosen.name,
        "outcomes": outcomes,
        "structures": structures,
        "failures": failures,
        "slowest_s": round(slowest, 2),
        "memory_mib": round(int(status.split("VmHWM:")[1].split()[0]) / 2**10),
    }


def cases(
    chosen: argparse.Namespace, files: list[Path]
) -> Iterator[tuple[str, Path, bytes | Callable[[Path], object] | None]]:
    """(what is done, to which file, what it becomes): every structural case, then chance."""
    for path in files if chosen.only is None else []:
        for what, damaged in structural(path.read_bytes(), path).items():
            yield f"structure {what}", path, damaged
    for number in range(chosen.count) if chosen.only is None else [chosen.only]:
        rng = random.Random(f"{chosen.seed}/{chosen.name}/{number}")
        path = rng.choice(files)
        yield str(number), path, damage(path.read_bytes(), path, rng)


if __name__ == "__main__":
    sys.exit(main())
