"""Addresses of PACS, limits and credentials.

    dicomweb://HOST[:PORT]/PATH          DICOMweb over HTTPS
    dicomweb+http://HOST[:PORT]/PATH     DICOMweb without TLS
    dimse://AE_TITLE@HOST:PORT           DIMSE without TLS
    dimse+tls://AE_TITLE@HOST:PORT       DIMSE over TLS

An address never contains a password: every user of the machine sees command lines, and shells keep
them. The value of the header Authorization ("Bearer TOKEN", "Basic BASE64") comes from a file or
from the environment. Without TLS it is sent to this machine alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt

from tfmammo.config import Frozen
from tfmammo.errors import ConfigError
from tfmammo.inference.pipeline import PipelineConfig

AUTHORIZATION = "TFMAMMO_PACS_AUTHORIZATION"
TARGET_AUTHORIZATION = "TFMAMMO_PACS_TARGET_AUTHORIZATION"
_SCHEMES = {"dicomweb": "https", "dicomweb+http": "http", "dimse": "", "dimse+tls": "tls"}
_AE_TITLE = r"[\x21-\x5b\x5d-\x7e]{1,16}"  # printable ASCII without blanks and backslash
_HEADER = re.compile(r"[\x21-\x7e]+ [\x21-\x7e]+")


class PacsConfig(Frozen):
    """How studies are fetched and results are stored."""

    authorization: Path | None = None
    """File with the value of the source's header Authorization; None uses
    TFMAMMO_PACS_AUTHORIZATION."""
    target_authorization: Path | None = None
    """The same for the target; None uses TFMAMMO_PACS_TARGET_AUTHORIZATION, or the source's value
    if both are one server."""
    verify: bool = True
    """Check the server's certificate and name."""
    ca: Path | None = None
    """File of trusted certificates, PEM; None trusts the usual authorities."""
    timeout: PositiveFloat = 60
    """Seconds without an answer after which a request has failed."""
    attempts: PositiveInt = Field(default=7, le=100)
    """Attempts at each request while the server can't be reached."""
    wait: float = Field(default=1, ge=0, le=60)
    """Seconds before the second attempt; each further wait is twice as long, up to a minute."""
    in_flight: PositiveInt = Field(default=2, le=64)
    """Studies processed at once."""
    capture: bool = False
    """Also store the overlay of the findings, as a secondary capture."""
    ae_title: str = Field(default="TFMAMMO", pattern=f"^{_AE_TITLE}$")
    """AE title of this node (DIMSE)."""
    retrieve: Literal["get", "move"] = "get"
    """Fetch by C-GET, or by C-MOVE to this node (DIMSE)."""
    listen: str = Field(default="127.0.0.1:11112", pattern=r"^[^\s/@]+:\d{1,5}$")
    """HOST:PORT on which this node listens for C-MOVE. The PACS must know it under ae_title."""


class RoundTripConfig(PipelineConfig):
    """The models of the pipeline, and the PACS."""

    pacs: PacsConfig = PacsConfig()
    """How studies are fetched from a PACS and results are stored."""

    def get_pipeline(self) -> PipelineConfig:
        """Return the pipeline's part, which reports contain."""
        return PipelineConfig.model_validate(self.model_dump(exclude={"pacs"}))


@dataclass(frozen=True)
class Address:
    """Where a server is."""

    text: str  # as the user wrote it
    scheme: str
    host: str
    port: int | None  # None: the scheme's own
    path: str = ""  # of DICOMweb
    ae_title: str = ""  # the server's, of DIMSE

    @property
    def is_web(self) -> bool:
        """Whether it is DICOMweb."""
        return self.scheme.startswith("dicomweb")

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("dicomweb", "dimse+tls")

    @property
    def url(self) -> str:
        """The URL of DICOMweb."""
        port = f":{self.port}" if self.port else ""
        return f"{_SCHEMES[self.scheme]}://{self.host}{port}{self.path}"

    def shares_server(self, other: Address) -> bool:
        """Whether both are the same server, so that credentials of one hold for the other."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)


def parse_address(text: str, option: str) -> Address:
    """Parse an address; `option` is where the user gave it, for messages."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{option}: is not an address") from None
    if parts.password is not None:
        raise ConfigError(
            f"{option}: an address must not contain a password; put the header's value into "
            f"{AUTHORIZATION} or a file"
        )
    if parts.scheme not in _SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ConfigError(f"{option}: must start with one of {schemes}")
    if not parts.hostname or ":" in parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{option}: {text} is not of the form {parts.scheme}://HOST...")
    if parts.scheme.startswith("dicomweb"):
        if parts.username is not None:
            raise ConfigError(f"{option}: an address of DICOMweb must not contain a user")
        path = parts.path.rstrip("/")
        return Address(text, parts.scheme, parts.hostname, port, path)
    if not port or not re.fullmatch(_AE_TITLE, parts.username or "") or parts.path.strip("/"):
        raise ConfigError(
            f"{option}: {text} is not of the form {parts.scheme}://AE_TITLE@HOST:PORT"
        )
    return Address(text, parts.scheme, parts.hostname, port, "", parts.username or "")


def read_credentials(
    config: PacsConfig, source: Address, target: Address
) -> tuple[str | None, str | None]:
    """Read the values of the header Authorization for source and target; None without one."""
    of_source = _read_credential("pacs.authorization", config.authorization, AUTHORIZATION)
    of_target = _read_credential(
        "pacs.target_authorization", config.target_authorization, TARGET_AUTHORIZATION
    )
    if of_target is None and target.shares_server(source):
        of_target = of_source
    used = []
    for address, value in ((source, of_source), (target, of_target)):
        if address.is_web and value and not address.has_tls and not _is_local(address.host):
            raise ConfigError(
                f"{address.text}: credentials would be sent in clear; use dicomweb:// (HTTPS)"
            )
        used.append(value if address.is_web else None)
    return used[0], used[1]


def _read_credential(key: str, path: Path | None, variable: str) -> str | None:
    name = key if path else variable
    try:
        value = path.read_text(encoding="ascii").strip() if path else os.environ.get(variable, "")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} can't be read ({type(error).__name__})") from None
    if path is None and not value:
        return None
    if not _HEADER.fullmatch(value):
        raise ConfigError(
            f'{name}: must be a value of the header Authorization, such as "Bearer TOKEN" or '
            '"Basic BASE64"'
        )
    return value


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
