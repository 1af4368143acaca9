"""Where a PACS is, how it is talked to, and who may: addresses, limits and credentials.

    dicomweb://HOST[:PORT]/PATH          DICOMweb over HTTPS
    dicomweb+http://HOST[:PORT]/PATH     DICOMweb without TLS
    dimse://AE_TITLE@HOST:PORT           DIMSE without TLS
    dimse+tls://AE_TITLE@HOST:PORT       DIMSE over TLS

An address holds no password: command lines are seen by every user of the machine, and stay in the
shell's history. The value of the header Authorization ("Bearer TOKEN", "Basic BASE64") comes from a
file or from the environment. Without TLS it is sent to this machine alone.
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
    """File with the value of the source's header Authorization; None takes
    TFMAMMO_PACS_AUTHORIZATION."""
    target_authorization: Path | None = None
    """The same of the target; None takes TFMAMMO_PACS_TARGET_AUTHORIZATION, and where the target is
    the source's server, what holds for the source."""
    verify: bool = True
    """Check the server's certificate and name."""
    ca: Path | None = None
    """File of the certificates that are trusted, PEM; None trusts the usual authorities."""
    timeout: PositiveFloat = 60
    """Seconds without an answer after which a request has failed."""
    attempts: PositiveInt = Field(default=7, le=100)
    """Attempts at each request while the server can't be reached."""
    wait: float = Field(default=1, ge=0, le=60)
    """Seconds before the second attempt; each further wait is twice as long, up to a minute."""
    in_flight: PositiveInt = Field(default=2, le=64)
    """Studies that are worked on at once."""
    capture: bool = False
    """Also store a picture of the findings, as a secondary capture."""
    ae_title: str = Field(default="TFMAMMO", pattern=f"^{_AE_TITLE}$")
    """The own AE title (DIMSE)."""
    retrieve: Literal["get", "move"] = "get"
    """Fetch by C-GET, or by C-MOVE to the own node (DIMSE)."""
    listen: str = Field(default="127.0.0.1:11112", pattern=r"^[^\s/@]+:\d{1,5}$")
    """HOST:PORT on which the own node listens for C-MOVE. The PACS must know it under ae_title."""


class CaseConfig(PipelineConfig):
    """The models of the pipeline, and the PACS."""

    pacs: PacsConfig = PacsConfig()
    """How studies are fetched from a PACS and results are stored; see PacsConfig."""

    def get_pipeline(self) -> PipelineConfig:
        """Return the pipeline's part, which reports hold."""
        return PipelineConfig.model_validate(self.model_dump(exclude={"pacs"}))


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        text: As the user wrote it.
        scheme: One of the four.
        host: Name or IP address.
        port: None for the scheme's own.
        path: Of DICOMweb.
        ae_title: The server's own, of DIMSE.
    """

    text: str
    scheme: str
    host: str
    port: int | None
    path: str = ""
    ae_title: str = ""

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
    """Parse an address.

    Args:
        text: What the user wrote.
        option: The option that it was given to, for messages.

    Raises:
        ConfigError: It is none. The message does not quote one that holds a password.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{option}: is no address") from None
    if parts.password is not None:
        raise ConfigError(
            f"{option}: an address must not hold a password; put the header's value into "
            f"{AUTHORIZATION} or a file"
        )
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"{option}: begins with none of {', '.join(f'{s}://' for s in _SCHEMES)}")
    if not parts.hostname or ":" in parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{option}: {text} is not of the form {parts.scheme}://HOST...")
    if parts.scheme.startswith("dicomweb"):
        if parts.username is not None:
            raise ConfigError(f"{option}: an address of DICOMweb must not hold a user")
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
    """Read the values of the header Authorization for source and target; None without one.

    Raises:
        ConfigError: A file can't be read, or something is no such value, or would be sent in clear.
            No message quotes a value.
    """
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
            f'{name}: is no value of the header Authorization, such as "Bearer TOKEN" or '
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
