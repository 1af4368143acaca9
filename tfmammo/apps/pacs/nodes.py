"""What DICOMweb and DIMSE have in common: instances, the contract of a node, and its retries."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol, TypeVar

from pydicom.dataset import Dataset

from tfmammo.apps.pacs.config import PacsConfig
from tfmammo.archives.elements import text
from tfmammo.archives.silence import silence
from tfmammo.errors import ConfigError, PacsError, PacsUnreachable

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

MOST_INSTANCES = 10_000  # of a study
_LONGEST_WAIT = 60.0  # s
# Images that may be mammograms: digital mammography for presentation, secondary captures, computed
# radiography, digital radiography for presentation.
IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1.2",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
)


@dataclass(frozen=True)
class Instance:
    """One instance of a study, by its UIDs."""

    study: str
    series: str
    uid: str
    sop_class: str = ""  # "" if the server does not state it


class Node(Protocol):
    """A server that holds studies.

    Each method is one attempt. It raises PacsUnreachable if another attempt may help, and PacsError
    if none will. No message quotes what the server says, because it may name a patient.
    """

    def list_instances(self, study: str) -> list[Instance]:
        """List the instances of a study; [] if the server has no such study."""

    def has(self, instance: Instance) -> bool:
        """Whether it holds an instance."""

    def retrieve(self, instance: Instance) -> Dataset:
        """Fetch an instance."""

    def store(self, dataset: Dataset) -> None:
        """Store an instance."""

    def close(self) -> None:
        """Close what is open."""


def try_repeatedly(config: PacsConfig, attempt: Callable[[], Answer]) -> Answer:
    """Attempt something until the server can be reached, `config.attempts` times at most."""
    for number in range(1, config.attempts):
        try:
            return attempt()
        except PacsUnreachable as error:
            log.debug("attempt %d: %s", number, error)
            time.sleep(min(config.wait * 2 ** (number - 1), _LONGEST_WAIT))
    return attempt()


def make_tls(config: PacsConfig) -> ssl.SSLContext:
    """Make the settings of TLS: certificate and name are checked unless `verify` is off."""
    try:
        context = ssl.create_default_context(cafile=config.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"pacs.ca: {config.ca} can't be read as certificates ({type(error).__name__})"
        ) from None
    if not config.verify:
        log.warning("pacs.verify=false: the server's certificate is not checked")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def check_identity(dataset: Dataset, instance: Instance, name: str) -> None:
    """Check that a server sent the instance requested: results go to the study that it names."""
    found = (text(dataset, "StudyInstanceUID"), text(dataset, "SOPInstanceUID"))
    if found != (instance.study, instance.uid):
        raise PacsError(f"{name}: sent another instance than the one requested")


def encode(dataset: Dataset) -> bytes:
    """Encode a dataset as a DICOM file."""
    try:
        with silence(), BytesIO() as file:
            dataset.save_as(file, enforce_file_format=True)
            return file.getvalue()
    except Exception as error:  # pydicom's message quotes elements
        raise PacsError(f"can't be encoded ({type(error).__name__})") from None
