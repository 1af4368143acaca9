"""Studies over DICOMweb: QIDO-RS to query, WADO-RS to fetch, STOW-RS to store.

dicomweb-client speaks the protocol. What it leaves open is set here:

- An answer of more than `nodes.LARGEST` bytes, inflated, is broken off, and so is one that takes
  ten times `pacs.timeout`.
- Everything goes to the server of the address alone. Where it redirects to is not followed. No
  ~/.netrc takes the place of a header Authorization. Without TLS no proxy of the environment is
  asked.
- Errors name host and status. What the server says is dropped, because it may name a patient.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from tfmammo.apps.pacs.config import Address, PacsConfig
from tfmammo.apps.pacs.nodes import (
    LARGEST,
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
_PAGE = 500  # instances that are asked for at once
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which another attempt may succeed
_LONGEST = 10  # times the timeout that an answer may take


class _Session(requests.Session):
    """A session whose own `verify` counts, whatever certificates the environment names.

    Alone, requests takes REQUESTS_CA_BUNDLE instead.
    """

    def merge_environment_settings(self, *args: Any) -> Any:
        settings = super().merge_environment_settings(*args)
        return settings if self.verify is True else {**settings, "verify": self.verify}


class _Client(DICOMwebClient):
    """Passes over what stands before the first part of an answer, as RFC 2046 allows."""

    @classmethod
    def _extract_part_content(cls, part: bytes) -> bytes | None:
        try:
            content: bytes | None = super()._extract_part_content(part)
        except ValueError:  # it has no header
            return None
        return content


class WebNode:
    """A server of DICOMweb; see `nodes.Node`. One for each thread.

    Args:
        address: Where it is.
        config: Limits and TLS.
        authorization: Value of the header Authorization, None without one.
    """

    def __init__(self, address: Address, config: PacsConfig, authorization: str | None) -> None:
        self._name = address.host
        self._config = config
        self._session = _Session()
        self._session.max_redirects = 0
        self._session.trust_env = address.has_tls
        # requests looks into ~/.netrc unless something else authorises
        self._session.auth = _Authorization(authorization)
        if address.has_tls:
            make_tls(config)  # for its errors and warnings
            self._session.verify = str(config.ca) if config.ca and config.verify else config.verify
            if not config.verify:  # which is said above, and not at every request
                warnings.filterwarnings("ignore", "Unverified HTTPS request")
        self._client = _Client(
            address.url,
            session=self._session,
            callback=self._limit,
            timeout=config.timeout,
            permissive_uid=True,
        )
        self._client.set_http_retry_params(retry=False)

    def list_instances(self, study: str) -> list[Instance]:
        """List the instances of a study; [] where the server has no such study."""
        found: dict[str, Instance] = {}
        while True:
            page = self._search(study, limit=_PAGE, offset=len(found))
            new = {item.uid: item for item in page if item.uid not in found}
            found |= new
            if len(found) > MOST_INSTANCES:
                raise PacsError(f"the study has more than {MOST_INSTANCES} instances")
            # a server may know neither limit nor offset, and repeat itself
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
                if _get_status(error) == 404:  # so some say that they have no such study
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
        except Exception as error:  # of pydicom, at whatever the server sent
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
                f"{self._name}: its certificate is not trusted; name those that are in pacs.ca"
            ) from None
        except (requests.RequestException, OSError) as error:
            raise PacsUnreachable(
                f"{self._name}: can't be reached ({type(error).__name__})"
            ) from None
        except Exception as error:  # at whatever the server sent
            raise PacsError(
                f"{self._name}: its answer can't be read ({type(error).__name__})"
            ) from None

    def _limit(self, response: requests.Response, *_: object, **__: object) -> requests.Response:
        """Make an answer break off that is too long, before any of it is read."""
        deadline = time.monotonic() + _LONGEST * self._config.timeout
        raw = response.raw

        def read(amount: int, decode_content: bool = True) -> Iterator[bytes]:
            """Pass on what arrives, however little, while size and time last."""
            size = 0
            while chunk := raw.read1(amount, decode_content=decode_content):
                size += len(chunk)
                if size > LARGEST:
                    response.close()
                    raise PacsError(f"{self._name}: sends more than {LARGEST} bytes")
                if time.monotonic() > deadline:
                    response.close()
                    raise PacsUnreachable(f"{self._name}: sends too slowly")
                yield chunk

        raw.stream = read
        return response


def _get_status(error: requests.HTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


class _Authorization(requests.auth.AuthBase):
    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value:
            request.headers["Authorization"] = self._value
        return request
