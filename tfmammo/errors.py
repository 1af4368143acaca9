"""Every error that tfmammo raises on purpose.

One sentence each, which names the file or the key.
"""

from __future__ import annotations


class TfmammoError(ValueError):
    """What a user can mend.

    Commands print the message alone; any other ValueError is a fault of this package.
    """


class ArchiveError(TfmammoError):
    """An archive, or one file of it, can't be read.

    The message names the file and the reason in one sentence.
    """


class WeightsError(TfmammoError):
    """Pretrained weights can't be had or read.

    The message is one sentence and names the file or what to download.
    """


class ConfigError(TfmammoError):
    """A config file or override is wrong. The message is one sentence and names the file or key."""


class ExportError(TfmammoError):
    """An export can't be written, read or used.

    The message is one sentence and names the folder or network.
    """


class DataError(TfmammoError):
    """The data can't be used as the config asks. The message says what was found."""


class LeakError(TfmammoError):
    """A patient stands on both sides of a split."""


class DetectionError(TfmammoError):
    """A detector can't be built, read or used.

    The message is one sentence and names the key, file or handle.
    """


class WorkerError(TfmammoError):
    """The workers can't begin or go on together; one sentence says why and what to do."""


class TrainingError(TfmammoError):
    """A training can't start or can't go on; one sentence says why and what is kept."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived and everything is saved. `signal`: which of the two.

    Args:
        where: The work was, in a few words.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(
            f"stopped {where}, everything is saved; the same command goes on from there"
        )
        self.signal = number


class TrackingError(TfmammoError):
    """A store can't be reached, or a handle leads to no export.

    The message is one sentence and names the store or handle.
    """


class CaseError(TfmammoError):
    """A chain can't be loaded, or a mammogram can't be read by it. The message is one sentence."""


class AveragePrecisionError(TfmammoError):
    """Average precision can't be computed. The message is one sentence."""
