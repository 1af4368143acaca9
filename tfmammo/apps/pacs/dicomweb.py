"""Studies over DICOMweb: QIDO-RS to query, WADO-RS to fetch, STOW-RS to store.

dicomweb-client speaks the protocol. Everything goes to the server of the address alone: redirects
are not followed, ~/.netrc does not replace a header Authorization, and without TLS no proxy of the
environment is used. Errors name host and status.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from tfmammo.apps.pacs.config import Address, PacsConfig
from tfmammo.apps.pacs.nodes import (
    MOST_INSTANCES,
    Instance,
    check_identity,
    encode,
    make_tls,
)
from tfmammo.archives.elements import text
from tfmammo.archives.silence import silence
from tfmammo.errors import PacsError, PacsUnreachable

# it logs UIDs and what servers say; retrying, which it calls, logs tracebacks
logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)
logging.getLogger("retrying").setLevel(logging.CRITICAL + 1)

Answer = TypeVar("Answer")
_PAGE = 500  # instances of one query
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which another attempt may succeed


class _Session(requests.Session):
    """A session whose own `verify` counts: alone, requests prefers REQUESTS_CA_BUNDLE."""

    def merge_environment_settings(self, *args: Any) -> Any:
        settings = super().merge_environment_settings(*args)
        return settings if self.verify is True else {**settings, "verify": self.verify}


class _Client(DICOMwebClient):
    """Skips what comes before the first part of an answer, as RFC 2046 allows."""

    @classmethod
    def _extract_part_content(cls, part: bytes) -> bytes | None:
        try:
            content: bytes | None = super()._extract_part_content(part)
        except ValueError:  # it lacks a header
            return None
        return content


class WebNode:
    """A server of DICOMweb, for one thread; `authorization` is a value of that header."""

    def __init__(self, address: Address, config: PacsConfig, authorization: str | None) -> None:
        self._name = address.host
        self._session = _Session()
        self._session.max_redirects = 0
        self._session.trust_env = address.has_tls
        # requests looks into ~/.netrc unless something else authorises
        self._session.auth = partial(_authorize, authorization)
        if address.has_tls:
            make_tls(config)  # for its errors and warnings
            self._session.verify = str(config.ca) if config.ca and config.verify else config.verify
            if not config.verify:  # which is said above, and not at every request
                warnings.filterwarnings("ignore", "Unverified HTTPS request")
        self._client = _Client(
            address.url,
            session=self._session,
            timeout=config.timeout,
            permissive_uid=True,
        )
        self._client.set_http_retry_params(retry=False)

    def list_instances(self, study: str) -> list[Instance]:
        """List the instances of a study; [] if the server has no such study."""
        found: dict[str, Instance] = {}
        while True:
            page = self._search(study, limit=_PAGE, offset=len(found))
            new = {item.uid: item for item in page if item.uid not in found}
            found |= new
            if len(found) > MOST_INSTANCES:
                raise PacsError(f"the study has more than {MOST_INSTANCES} instances")
            # a server may ignore limit and offset, and repeat itself
            if not new or len(page) < _PAGE:
                return list(found.values())

    def has(self, instance: Instance) -> bool:
        """Whether it holds an instance."""
        filters = {"SOPInstanceUID": instance.uid}
        found = self._search(instance.study, search_filters=filters)
        return any(one.uid == instance.uid for one in found)

    def retrieve(self, instance: Instance) -> Dataset:
        """Fetch an instance as it is stored."""
        uids = (instance.study, instance.series, instance.uid)
        with silence():
            dataset = self._request(lambda: self._client.retrieve_instance(*uids))
        check_identity(dataset, instance, self._name)
        return dataset

    def store(self, dataset: Dataset) -> None:
        """Store an instance."""
        encode(dataset)  # for its error
        study = text(dataset, "StudyInstanceUID")
        answer = self._request(lambda: self._client.store_instances([dataset], study))
        if answer is not None and answer.get("FailedSOPSequence"):
            raise PacsError(f"{self._name}: refused to store a result")

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def _search(self, study: str, **options: Any) -> list[Instance]:
        fields = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"]

        def search() -> list[dict[str, Any]]:
            try:
                return self._client.search_for_instances(study, fields=fields, **options)
            except requests.HTTPError as error:
                if _get_status(error) == 404:  # some servers' answer to an unknown study
                    return []
                raise

        listed = self._request(search)
        try:
            with silence():
                items = [Dataset.from_json(item) for item in listed]
            return [
                Instance(
                    study,
                    text(item, "SeriesInstanceUID"),
                    text(item, "SOPInstanceUID"),
                    text(item, "SOPClassUID"),
                )
                for item in items
            ]
        except Exception as error:  # pydicom's, at whatever the server sent
            raise PacsError(
                f"{self._name}: its answer to a query can't be read ({type(error).__name__})"
            ) from None

    def _request(self, request: Callable[[], Answer]) -> Answer:
        try:
            return request()
        except PacsError:
            raise
        except requests.HTTPError as error:
            status = _get_status(error)
            kind = PacsUnreachable if status in _PASSING else PacsError
            raise kind(f"{self._name}: answered with status {status}") from None
        except requests.TooManyRedirects:
            raise PacsError(
                f"{self._name}: redirects to another address, which is not followed"
            ) from None
        except requests.exceptions.SSLError:
            raise PacsError(
                f"{self._name}: its certificate is not trusted; name a trusted one in pacs.ca"
            ) from None
        except (requests.RequestException, OSError) as error:
            raise PacsUnreachable(
                f"{self._name}: can't be reached ({type(error).__name__})"
            ) from None
        except Exception as error:  # at whatever the server sent
            raise PacsError(
                f"{self._name}: its answer can't be read ({type(error).__name__})"
            ) from None


def _get_status(error: requests.HTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def _authorize(value: str | None, request: requests.PreparedRequest) -> requests.PreparedRequest:
    if value:
        request.headers["Authorization"] = value
    return request
