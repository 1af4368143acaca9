"""Addresses and credentials of a PACS."""

import pytest

from tfmammo.apps.pacs.config import PacsConfig, parse_address, read_credentials
from tfmammo.errors import ConfigError

BEARER = "Bearer quibble-zephyrine"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    monkeypatch.delenv("TFMAMMO_PACS_AUTHORIZATION", raising=False)
    monkeypatch.delenv("TFMAMMO_PACS_TARGET_AUTHORIZATION", raising=False)


def test_addresses():
    for text, url, has_tls in (
        ("dicomweb://pacs.hospital/dicom-web/", "https://pacs.hospital/dicom-web", True),
        ("dicomweb://pacs.hospital:8443", "https://pacs.hospital:8443", True),
        ("dicomweb+http://127.0.0.1:8042/d", "http://127.0.0.1:8042/d", False),
    ):
        address = parse_address(text, "--from")
        assert (address.url, address.has_tls, address.is_web) == (url, has_tls, True)
    address = parse_address("dimse+tls://PACS_1@10.1.2.3:2762", "--to")
    assert (address.ae_title, address.host, address.port) == ("PACS_1", "10.1.2.3", 2762)
    assert address.has_tls and not address.is_web
    assert not parse_address("dimse://A@b:104", "--to").has_tls


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("https://pacs.hospital/x", "dicomweb://"),
        ("dicomweb://host:99999/x", "not an address"),
        ("dicomweb://reader:quibble@host/x", "password"),
        ("dicomweb://host/x?token=a", "dicomweb://HOST"),
        ("dimse://PACS@host", "AE_TITLE@HOST:PORT"),
        ("dimse://A_TITLE_OF_17_CHARS@host:104", "AE_TITLE@HOST:PORT"),
    ],
)
def test_a_wrong_address_is_refused_without_its_password(text, word):
    with pytest.raises(ConfigError, match="^--from: ") as error:
        parse_address(text, "--from")
    assert word in str(error.value) and "quibble" not in str(error.value)


def test_credentials_go_to_their_own_server(monkeypatch, tmp_path):
    here = parse_address("dicomweb://one/a", "--from")
    same = parse_address("dicomweb://one/b", "--to")
    other = parse_address("dicomweb://two/a", "--to")
    dimse = parse_address("dimse://A@one:104", "--to")
    assert read_credentials(PacsConfig(), here, other) == (None, None)
    monkeypatch.setenv("TFMAMMO_PACS_AUTHORIZATION", BEARER)
    assert read_credentials(PacsConfig(), here, same) == (BEARER, BEARER)
    elsewhere = (other, dimse, parse_address("dicomweb://one:8443/a", "--to"))
    for target in (*elsewhere, parse_address("dicomweb+http://one/a", "--to")):
        assert read_credentials(PacsConfig(), here, target) == (BEARER, None)
    (tmp_path / "token").write_text("Bearer second\n")
    config = PacsConfig(target_authorization=tmp_path / "token")
    assert read_credentials(config, here, other) == (BEARER, "Bearer second")


def test_credentials_in_clear_stay_on_this_machine(monkeypatch):
    monkeypatch.setenv("TFMAMMO_PACS_AUTHORIZATION", BEARER)
    for host in ("127.0.0.1", "localhost"):
        local = parse_address(f"dicomweb+http://{host}:1/x", "--from")
        assert read_credentials(PacsConfig(), local, local) == (BEARER, BEARER)
    for host in ("10.0.0.1", "localhost.hospital"):
        far = parse_address(f"dicomweb+http://{host}/x", "--from")
        with pytest.raises(ConfigError, match="would be sent in clear"):
            read_credentials(PacsConfig(), far, far)


@pytest.mark.parametrize("value", ["quibble", "Bearer a\nX-Other: b", "Bearer  "])
def test_a_wrong_credential_is_refused_and_not_quoted(monkeypatch, tmp_path, value):
    address = parse_address("dicomweb://one/a", "--from")
    monkeypatch.setenv("TFMAMMO_PACS_AUTHORIZATION", value)
    with pytest.raises(ConfigError, match="TFMAMMO_PACS_AUTHORIZATION") as error:
        read_credentials(PacsConfig(), address, address)
    assert value not in str(error.value)
    with pytest.raises(ConfigError, match=r"pacs\.authorization"):
        read_credentials(PacsConfig(authorization=tmp_path / "none"), address, address)
