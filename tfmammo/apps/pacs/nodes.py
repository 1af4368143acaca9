"""What DICOMweb and DIMSE have in common: instances, the protocol of a node, and its retries."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol, TypeVar

from pydicom.dataset import Dataset

from tfmammo.apps.pacs.config import Address, PacsConfig
from tfmammo.archives.elements import text
from tfmammo.archives.silence import silence
from tfmammo.errors import ConfigError, PacsError, PacsUnreachable

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

MOST_INSTANCES = 10_000  # of a study
LARGEST = 2**29  # bytes of an answer; the pixels of the largest mammogram that is read take 2**28
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
    """One instance of a study, by its UIDs.

    Attributes:
        study: Study Instance UID.
        series: Series Instance UID.
        uid: SOP Instance UID.
        sop_class: SOP Class UID, "" where the server does not say.
    """

    study: str
    series: str
    uid: str
    sop_class: str = ""


class Node(Protocol):
    """A server that holds studies.

    Each method is one attempt. It raises PacsUnreachable where another attempt may help, and
    PacsError where none will. No message quotes what the server says.
    """

    def list_instances(self, study: str) -> list[Instance]:
        """List the instances of a study; [] where the server has no such study."""

    def has(self, instance: Instance) -> bool:
        """Whether it holds an instance."""

    def retrieve(self, instance: Instance) -> Dataset:
        """Fetch an instance."""

    def store(self, dataset: Dataset) -> None:
        """Store an instance."""

    def close(self) -> None:
        """Close what is open."""


def connect(address: Address, config: PacsConfig, authorization: str | None) -> Node:
    """Make the node of an address; nothing is sent yet.

    Args:
        address: Where it is.
        config: How to talk to it.
        authorization: Value of the header Authorization, None without one.
    """
    # of the extra `pacs`
    if address.is_web:
        from tfmammo.apps.pacs.dicomweb import WebNode

        return WebNode(address, config, authorization)
    from tfmammo.apps.pacs.dimse import DimseNode

    return DimseNode(address, config)


def try_repeatedly(config: PacsConfig, attempt: Callable[[], Answer]) -> Answer:
    """Attempt something until the server can be reached, `config.attempts` times at most.

    Raises:
        PacsUnreachable: It could not be reached in any attempt.
        PacsError: As `attempt` raises.
    """
    for number in range(1, config.attempts):
        try:
            return attempt()
        except PacsUnreachable as error:
            log.debug("attempt %d: %s", number, error)
            time.sleep(min(config.wait * 2 ** (number - 1), _LONGEST_WAIT))
    return attempt()


def make_tls(config: PacsConfig) -> ssl.SSLContext:
    """Make the settings of TLS: certificate and name are checked unless `verify` is off.

    Raises:
        ConfigError: pacs.ca can't be read.
    """
    try:
        context = ssl.create_default_context(cafile=config.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"pacs.ca: {config.ca} holds no certificates that can be read ({type(error).__name__})"
        ) from None
    if not config.verify:
        log.warning("pacs.verify=false: the server's certificate is not checked")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def check_identity(dataset: Dataset, instance: Instance, name: str) -> None:
    """Check that what a server sent is what it was asked for, and of the same study.

    Results go to the study that the dataset names.

    Args:
        dataset: What came.
        instance: What was asked for.
        name: The server's, for the message.

    Raises:
        PacsError: It is another one.
    """
    found = (text(dataset, "StudyInstanceUID"), text(dataset, "SOPInstanceUID"))
    if found != (instance.study, instance.uid):
        raise PacsError(f"{name}: sent another instance than the one asked for")


def encode(dataset: Dataset) -> bytes:
    """Encode a dataset as a DICOM file.

    Raises:
        PacsError: Its elements are such that no file can hold them.
    """
    try:
        with silence(), BytesIO() as file:
            dataset.save_as(file, enforce_file_format=True)
            return file.getvalue()
    except Exception as error:  # of pydicom, whose words quote elements
        raise PacsError(f"can't be encoded ({type(error).__name__})") from None
