"""Studies over DIMSE: C-FIND to query, C-GET or C-MOVE to fetch, C-STORE to store.

pynetdicom speaks the protocol. Every request has its own association. For C-MOVE, this process
listens at `pacs.listen`. It accepts only instances that were requested, from the AE titles of the
source and the target.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLETransferSyntaxes,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, build_role, evt, sop_class

from tfmammo.apps.pacs.config import Address, PacsConfig
from tfmammo.apps.pacs.nodes import (
    IMAGE_CLASSES,
    MOST_INSTANCES,
    Instance,
    check_identity,
    encode,
    make_tls,
)
from tfmammo.archives.elements import text
from tfmammo.archives.silence import silence
from tfmammo.errors import ConfigError, PacsError, PacsUnreachable

# it logs datasets and what servers say
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

FIND = sop_class.StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
GET = sop_class.StudyRootQueryRetrieveInformationModelGet  # type: ignore[attr-defined]
MOVE = sop_class.StudyRootQueryRetrieveInformationModelMove  # type: ignore[attr-defined]
_RESULTS = (SegmentationStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage)
_PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_COMPRESSED = [
    *JPEGTransferSyntaxes,
    *JPEGLSTransferSyntaxes,
    *JPEG2000TransferSyntaxes,
    *RLETransferSyntaxes,
]
_PENDING = (0xFF00, 0xFF01)
_REFUSED = 0x0124  # not authorized


class Receiver:
    """Takes requested instances, and listens for those that C-MOVE sends.

    The nodes of a process share one, as they share `pacs.listen`.

    Args:
        config: Where to listen, and under which AE title.
        senders: AE titles that may send.
    """

    def __init__(self, config: PacsConfig, senders: Sequence[str]) -> None:
        self._config = config
        self._senders = list(senders)
        self._awaited: dict[str, Dataset | None] = {}  # by SOP Instance UID; None until it comes
        self._lock = threading.Lock()
        self._listener: Any = None

    def fetch(self, uid: str, request: Callable[[], None]) -> Dataset | None:
        """Request an instance; return what came until the request ended."""
        with self._lock:
            self._awaited[uid] = None
        try:
            request()
            return self._awaited[uid]
        finally:
            with self._lock:
                del self._awaited[uid]

    def take(self, event: Any) -> int:
        """Accept an instance that was requested, and no other; return DIMSE's status."""
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._lock:
            if uid not in self._awaited:
                return _REFUSED
        with silence():
            dataset = event.dataset
            dataset.file_meta = event.file_meta
        with self._lock:
            if uid in self._awaited:
                self._awaited[uid] = dataset
        return 0

    def listen(self) -> None:
        """Start to listen, once."""
        with self._lock:
            if self._listener is not None:
                return
            node = _make_entity(self._config)
            for kind in {*IMAGE_CLASSES, *_RESULTS}:
                node.add_supported_context(kind, [*_PLAIN, *_COMPRESSED])
            node.require_called_aet = True
            node.require_calling_aet = self._senders
            host, _, port = self._config.listen.rpartition(":")
            try:
                self._listener = node.start_server(
                    (host, int(port)), block=False, evt_handlers=[(evt.EVT_C_STORE, self.take)]
                )
            except (OSError, OverflowError) as error:
                raise ConfigError(
                    f"pacs.listen: can't listen on {self._config.listen} ({type(error).__name__})"
                ) from None

    def close(self) -> None:
        """Stop listening."""
        with self._lock:
            if self._listener is not None:
                self._listener.shutdown()
                self._listener = None


class DimseNode:
    """A server of DIMSE, which threads may share."""

    def __init__(self, address: Address, config: PacsConfig, receiver: Receiver) -> None:
        if address.has_tls and config.retrieve == "move":
            raise ConfigError(
                "pacs.retrieve: with move the images come without TLS; use get for dimse+tls"
            )
        self._address = address
        self._config = config
        self._name = address.host
        self._tls = make_tls(config) if address.has_tls else None
        self._receiver = receiver

    def list_instances(self, study: str) -> list[Instance]:
        """List the instances of a study; [] if the server has no such study."""
        found = []
        for series in self._find("SERIES", study, "", ""):
            uid = text(series, "SeriesInstanceUID")
            for item in self._find("IMAGE", study, uid, ""):
                instance = (text(item, "SOPInstanceUID"), text(item, "SOPClassUID"))
                found.append(Instance(study, uid, *instance))
            if len(found) > MOST_INSTANCES:
                raise PacsError(f"the study has more than {MOST_INSTANCES} instances")
        return found

    def has(self, instance: Instance) -> bool:
        """Whether it holds an instance."""
        found = self._find("IMAGE", instance.study, instance.series, instance.uid)
        return any(text(item, "SOPInstanceUID") == instance.uid for item in found)

    def retrieve(self, instance: Instance) -> Dataset:
        """Fetch an instance as it is stored."""
        request = self._get if self._config.retrieve == "get" else self._move
        dataset = self._receiver.fetch(instance.uid, lambda: request(instance))
        if dataset is None:
            raise PacsUnreachable(f"{self._name}: did not send the instance requested")
        check_identity(dataset, instance, self._name)
        return dataset

    def store(self, dataset: Dataset) -> None:
        """Store an instance."""
        encode(dataset)  # for its error
        contexts = [(kind, _PLAIN) for kind in _RESULTS]
        with self._associate(contexts) as association, silence():
            answer = association.send_c_store(dataset)
            status = self._check(answer)
            # 0xBxxx: stored with a warning, such as coerced elements
            if status != 0 and status >> 12 != 0xB:
                raise PacsError(f"{self._name}: refused to store a result (status {status:04X})")

    def close(self) -> None:
        """Stop listening."""
        self._receiver.close()

    def _find(self, level: str, study: str, series: str, instance: str) -> list[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        query.StudyInstanceUID = study
        query.SeriesInstanceUID = series
        if level == "IMAGE":
            query.SOPInstanceUID = instance
            query.SOPClassUID = ""
        found: list[Dataset] = []
        with self._associate([(FIND, _PLAIN)]) as association, silence():
            for answer, item in association.send_c_find(query, FIND):
                status = self._check(answer)
                if status in _PENDING and item is not None:
                    found.append(item)
                elif status not in (0, *_PENDING):
                    raise PacsError(f"{self._name}: refused a query (status {status:04X})")
                if len(found) > MOST_INSTANCES:
                    raise PacsError(f"the study has more than {MOST_INSTANCES} instances")
        return found

    def _get(self, instance: Instance) -> None:
        # one context for each syntax: the server chooses the one that it stores
        contexts = [(GET, _PLAIN)]
        is_result = instance.sop_class in (SegmentationStorage, ComprehensiveSRStorage)
        for kind in _RESULTS if is_result else IMAGE_CLASSES:
            contexts += [(kind, [syntax]) for syntax in (*_PLAIN, *_COMPRESSED)]
        roles = [build_role(kind, scp_role=True) for kind in {kind for kind, _ in contexts[1:]}]
        handlers = [(evt.EVT_C_STORE, self._receiver.take)]
        with self._associate(contexts, roles, handlers) as association, silence():
            for answer, _ in association.send_c_get(_make_query(instance), GET):
                self._check_transfer(answer)

    def _move(self, instance: Instance) -> None:
        self._receiver.listen()
        with self._associate([(MOVE, _PLAIN)]) as association, silence():
            query = _make_query(instance)
            for answer, _ in association.send_c_move(query, self._config.ae_title, MOVE):
                self._check_transfer(answer)

    def _check(self, answer: Dataset) -> int:
        if "Status" not in answer:
            raise PacsUnreachable(f"{self._name}: the association was lost")
        return int(answer.Status)

    def _check_transfer(self, answer: Dataset) -> None:
        status = self._check(answer)
        if status not in (0, *_PENDING) and status >> 12 != 0xB:
            raise PacsError(f"{self._name}: refused to send an instance (status {status:04X})")

    @contextlib.contextmanager
    def _associate(
        self,
        contexts: list[tuple[UID, list[UID]]],
        roles: list[Any] | None = None,
        handlers: list[Any] | None = None,
    ) -> Iterator[Any]:
        entity = _make_entity(self._config)
        for kind, syntaxes in contexts:
            entity.add_requested_context(kind, syntaxes)
        address = self._address
        try:
            association = entity.associate(
                address.host,
                address.port or 104,
                ae_title=address.ae_title,
                ext_neg=roles or [],
                evt_handlers=handlers or [],
                tls_args=(self._tls, address.host) if self._tls else None,
            )
        except (OSError, RuntimeError) as error:
            raise PacsUnreachable(
                f"{self._name}: can't be reached ({type(error).__name__})"
            ) from None
        if association.is_rejected:
            raise PacsError(f"{self._name}: refuses this AE title")
        if not association.is_established:
            raise PacsUnreachable(f"{self._name}: can't be reached")
        try:
            yield association
        except PacsError:
            raise
        except ValueError:  # pynetdicom's, of a context that was not accepted
            raise PacsError(f"{self._name}: does not offer what was requested") from None
        except (AttributeError, RuntimeError):  # pynetdicom's, of an association that ended
            raise PacsUnreachable(f"{self._name}: the association was lost") from None
        finally:
            if association.is_established:
                association.release()


def _make_entity(config: PacsConfig) -> AE:
    entity = AE(ae_title=config.ae_title)
    entity.acse_timeout = config.timeout
    entity.dimse_timeout = config.timeout
    entity.network_timeout = config.timeout
    entity.connection_timeout = config.timeout
    return entity


def _make_query(instance: Instance) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = instance.study
    query.SeriesInstanceUID = instance.series
    query.SOPInstanceUID = instance.uid
    return query
