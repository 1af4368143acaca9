"""Read files on disk into records: one module per archive, each with `read(root, skipped)`.

`root` is the archive's folder or any above it, and `skipped` takes what was skipped, and why.
Tables and headers are read, pixels when they are wanted. A lesion that is marked and can't be read
is `lost`. ArchiveError: a table is missing or has not the columns that are read, or no image can be
read; the header of each module states what else its archive leaves open.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tfmammo.archives import (
    cbis_ddsm,
    cdd_cesm,
    cmmd,
    ddsm,
    embed,
    folder,
    inbreast,
    mini_mias,
    optimam,
    phantom,
    rsna,
    vindr,
)
from tfmammo.archives.files import resolve_root
from tfmammo.archives.stored import Stored
from tfmammo.cli import suggest
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError
from tfmammo.mammogram import Mammogram, MaskedLesion, Skipped

log = logging.getLogger(__name__)

ARCHIVES: dict[str, Callable[..., list[Mammogram]]] = {
    "cbis_ddsm": cbis_ddsm.read,
    "cdd_cesm": cdd_cesm.read,
    "cmmd": cmmd.read,
    "ddsm": ddsm.read,
    "embed": embed.read,
    "folder": folder.read,
    "inbreast": inbreast.read,
    "mini_mias": mini_mias.read,
    "optimam": optimam.read,
    "phantom": phantom.read,
    "rsna": rsna.read,
    "vindr": vindr.read,
}


def read_mammograms(config: DataConfig, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the records of the archive that a config names; no pixel is read.

    Args:
        config: Name, root, and for the phantom phantoms and seed are used.
        skipped: Takes what the reader leaves out.

    Raises:
        ConfigError: data.name is unknown or data.root does not exist.
        ArchiveError: data.root is no such archive.
    """
    skipped = Skipped() if skipped is None else skipped
    if config.name not in ARCHIVES:
        meant = suggest(config.name, sorted(ARCHIVES))
        raise ConfigError(f"data.name: {config.name} is no archive{meant}")
    if config.root is None or config.name == "phantom":
        if config.name != "phantom":
            log.warning(
                "data.root is not set: taking the phantom (synthetic mammograms) instead of %s. "
                "Your own data: --set data.name=%s data.root=DIR",
                config.name,
                config.name,
            )
        return phantom.read(None, skipped, count=config.phantoms, seed=config.seed)
    if not config.root.is_dir():
        raise ConfigError(f"data.root: no such folder: {config.root}")
    skipped.root = resolve_root(config.root)
    return ARCHIVES[config.name](skipped.root, skipped)


def read_stored(mammogram: Mammogram) -> Stored:
    """Read a mammogram's intensities as its file stores them.

    Of a preprocessed mammogram they are those of the file behind it, on the file's own grid. Where
    a file holds neither DICOM nor whole numbers over 2^bits - 1 (film as optical density, the
    phantom), they are the pixels in 16 bits.

    Raises:
        ArchiveError: The file can't be read.
    """
    native = mammogram.source or mammogram
    if native.read_stored:
        stored: Stored = native.read_stored()
        return stored
    return Stored.of_image(native.pixels(), native.bits or 16)


def list_files(mammogram: Mammogram) -> list[Path]:
    """List every file that a mammogram's pixels and masks may be read from, each once."""
    files = [mammogram.file] if mammogram.file else []
    for lesion in mammogram.lesions:
        if isinstance(lesion, MaskedLesion):
            files += lesion.files
    return list(dict.fromkeys(files))


def describe_archive(config: DataConfig, mammograms: Sequence[Mammogram]) -> dict[str, Any]:
    """Describe the archive that a config names, as far as it decides what is made of it."""
    return {
        "name": config.archive_name,
        "mammograms": len(mammograms),
        "records": fingerprint(mammograms),
    }


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
