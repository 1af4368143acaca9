"""Files on disk -> records: one module per archive, each with `read(root, skipped)`."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tfmammo.archives import (
    cbis_ddsm,
    cdd_cesm,
    ddsm,
    dicom,
    folder,
    inbreast,
    mini_mias,
    optimam,
    phantom,
    vindr,
)
from tfmammo.archives.stored import Stored
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError
from tfmammo.mammogram import Mammogram, MaskedLesion, Skipped

log = logging.getLogger(__name__)

ARCHIVES: dict[str, Callable[..., list[Mammogram]]] = {
    "cbis_ddsm": cbis_ddsm.read,
    "cdd_cesm": cdd_cesm.read,
    "ddsm": ddsm.read,
    "folder": folder.read,
    "inbreast": inbreast.read,
    "mini_mias": mini_mias.read,
    "optimam": optimam.read,
    "phantom": phantom.read,
    "vindr": vindr.read,
}


def archive_name(config: DataConfig) -> str:
    """What is really read: the folder of records, or the archive, or the phantom where no data.root
    is given.
    """
    if config.records:
        return config.records.name
    return config.name if config.root else "phantom"


def mammograms(config: DataConfig, skipped: Skipped) -> list[Mammogram]:
    """The records of the archive that a config names, no pixel read.

    Args:
        config: Name, root, and for the phantom phantoms and seed are used.
        skipped: What the reader leaves out.

    Raises:
        ConfigError: data.name is unknown or data.root does not exist.
        ArchiveError: data.root is no such archive.
    """
    if config.name not in ARCHIVES:
        raise ConfigError(f"data.name: {config.name} is none of {', '.join(sorted(ARCHIVES))}")
    if config.root is None or config.name == "phantom":
        if config.name != "phantom":
            log.info(
                "data.root is not set: taking the phantom (synthetic mammograms) instead of %s",
                config.name,
            )
        return phantom.read(None, skipped, count=config.phantoms, seed=config.seed)
    if not config.root.is_dir():
        raise ConfigError(f"data.root: no such folder: {config.root}")
    skipped.root = config.root if config.root != Path() else Path.cwd()  # "." stands before no path
    return ARCHIVES[config.name](skipped.root, skipped)


def stored(mammogram: Mammogram) -> Stored:
    """A mammogram's grey values as its file stores them.

    Of a file that holds neither DICOM nor whole numbers over 2^bits - 1 (film as optical density,
    the phantom) its pixels in 16 bits.

    Raises:
        ArchiveError: Its pixels can't be read.
    """
    read = mammogram.read
    if isinstance(read, partial) and read.func is dicom.read_pixels:
        return dicom.read_stored(*read.args, **read.keywords)
    return Stored.of_image(mammogram.pixels(), mammogram.bits or 16)


def files_of(mammogram: Mammogram) -> list[Path]:
    """Every file that a mammogram's pixels and masks may be read from, each once."""
    reads = [
        mammogram.read,
        *(lesion.read for lesion in mammogram.lesions if isinstance(lesion, MaskedLesion)),
    ]
    arguments = [argument for read in reads if isinstance(read, partial) for argument in read.args]
    flat = [
        one
        for argument in arguments
        for one in (argument if isinstance(argument, tuple) else (argument,))
    ]
    return list(dict.fromkeys(one for one in flat if isinstance(one, Path)))


def source_file(mammogram: Mammogram) -> Path | None:
    """The file that a mammogram's pixels are read from, None where they are computed."""
    arguments = mammogram.read.args if isinstance(mammogram.read, partial) else ()
    return next((argument for argument in arguments if isinstance(argument, Path)), None)
