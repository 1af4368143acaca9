"""Every error that tfmammo raises on purpose.

Each message is one sentence that names the file, key or network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TfmammoError(ValueError):
    """An error that the user can correct.

    Commands print the message alone. Any other ValueError is a bug of this package.
    """


class ArchiveError(TfmammoError):
    """An archive, or one file of it, can't be read."""


class EmptyMask(ArchiveError):
    """The mask of a lesion marks nothing."""


class MaskSize(ArchiveError):
    """The mask of a lesion is of another size than its image."""


class WeightsError(TfmammoError):
    """Pretrained weights are missing or can't be read. The message names what to download."""


class ConfigError(TfmammoError):
    """A config file or an override is wrong."""


class ExportError(TfmammoError):
    """An export can't be written, read or used."""


class DataError(TfmammoError):
    """The data can't be used as the config asks. The message says what the data is."""


class DetectionError(TfmammoError):
    """A detector can't be built, read or used."""


class WorkerError(TfmammoError):
    """The workers can't start or go on together. The message says why and what to do."""


class TrainingError(TfmammoError):
    """A training run can't start or go on. The message says why and which checkpoint is kept."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived, and everything is saved.

    Args:
        number: The signal's.
        where: How far the work was: "at step 12".

    Attributes:
        signal: The signal's number.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(
            f"stopped {where}, everything is saved; the same command goes on from there"
        )
        self.signal = number


class TrackingError(TfmammoError):
    """A tracking store can't be reached, or a model URI leads to no export."""


class PipelineError(TfmammoError):
    """A CAD pipeline can't be loaded, or can't process a mammogram."""


class PacsError(TfmammoError):
    """A PACS refuses a request, or answers against the standard."""


class PacsUnreachable(PacsError):
    """A PACS can't be reached now. Another attempt may succeed."""


@contextmanager
def name_key(key: str) -> Iterator[None]:
    """Name a key of the config in every error that is raised inside.

    An error that names a key of the section `data` names the same key of the section `key`
    instead. Every other error, unless it names the key itself, gets the key in front.

    Args:
        key: A section of the fields of `data`, such as "real" or "systems.can"; or a key.

    Examples:
        >>> with name_key("real"):
        ...     raise ConfigError("data.root: no such folder: x")
        Traceback (most recent call last):
        tfmammo.errors.ConfigError: real.root: no such folder: x
    """
    try:
        yield
    except TfmammoError as error:
        message = str(error)
        if message.startswith("data.") and not key.startswith("data."):
            message = key + message.removeprefix("data")
        elif not message.startswith(key):
            message = f"{key}: {message}"
        raise type(error)(message) from None


def summarize(error: Exception) -> str:
    """Return the message of an error in one line, else the name of its class."""
    return " ".join(str(error).split()) or error.__class__.__name__
