"""Resumable jobs: work cut into parts, which tfmammo.data.runners makes.

A job claims its folder with `filesystem.claim_folder`, and hands its parts to `complete_parts`. A
finished part leaves a record, which a later run reads instead of making the part again. Every
worker must see the folder under the same path.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2

from tfmammo.data import runners
from tfmammo.data.runners import Runner
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, MaskedLesion

Part = TypeVar("Part")
Record = TypeVar("Record")


def complete_parts(
    parts: Sequence[Part],
    make: Callable[[Part], None],
    read: Callable[[Part], Record | None],
    name: Callable[[Part], object],
    runner: Runner,
) -> list[Record]:
    """Make the missing parts of a claimed folder, and read the records of all parts, in order.

    Args:
        parts: Small, because each one is pickled for its worker.
        make: Makes a part, whatever is there of it. A function of a module, because workers import
            it by name.
        read: Returns the record of a finished part. None unless its files are there as written.
        name: Names a part in messages.
        runner: Who makes them. DataError if one fails, or is still missing afterwards.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading is hashing, which threads share
        records = list(pool.map(read, parts))
        missing = [index for index, record in enumerate(records) if record is None]
        runners.run([parts[index] for index in missing], make, runner)
        made = pool.map(read, [parts[index] for index in missing])
        for index, record in zip(missing, made, strict=True):
            if record is None:
                raise DataError(
                    f"{name(parts[index])}: is missing or not as it was written; run the command "
                    "again"
                )
            records[index] = record
    return [record for record in records if record is not None]


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread, because there are as many workers as cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def fingerprint(mammograms: Iterable[Mammogram]) -> str:
    """Hash what an archive states of its mammograms, in their order: twelve hexadecimal digits.

    No pixel and no mask file is read.
    """
    content = hashlib.sha256()
    for mammogram in mammograms:
        content.update(_encode_facts(mammogram))
    return content.hexdigest()[:12]


def _encode_facts(mammogram: Mammogram) -> bytes:
    outlined = [lesion for lesion in mammogram.lesions if not isinstance(lesion, MaskedLesion)]
    names = (
        "patient_id image_id rows cols bits spacing laterality view pathology official_split lost "
        "chest_wall"
    )
    facts = [
        *(getattr(mammogram, name) for name in names.split()),
        [lesion.box for lesion in outlined],
        [(lesion.kind, *lesion.details.values()) for lesion in mammogram.lesions],
    ]
    return repr(facts).encode() + b"".join(
        outline.tobytes() for lesion in outlined for outline in lesion.outlines
    )
