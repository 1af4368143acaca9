"""Addresses and credentials of a PACS."""

import pytest

from tfmammo.apps.pacs.config import PacsConfig, parse_address, read_credentials
from tfmammo.errors import ConfigError

BEARER = "Bearer quibble-zephyrine"


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    monkeypatch.delenv("TFMAMMO_PACS_AUTHORIZATION", raising=False)
    monkeypatch.delenv("TFMAMMO_PACS_TARGET_AUTHORIZATION", raising=False)


@pytest.mark.parametrize(
    ("text", "url", "has_tls"),
    [
        ("dicomweb://pacs.hospital/dicom-web/", "https://pacs.hospital/dicom-web", True),
        ("dicomweb://pacs.hospital:8443", "https://pacs.hospital:8443", True),
        ("dicomweb+http://127.0.0.1:8042/d", "http://127.0.0.1:8042/d", False),
    ],
)
def test_addresses_of_dicomweb(text, url, has_tls):
    address = parse_address(text, "--from")
    assert (address.url, address.has_tls, address.is_web) == (url, has_tls, True)


def test_addresses_of_dimse():
    address = parse_address("dimse+tls://PACS_1@10.1.2.3:2762", "--to")
    assert (address.ae_title, address.host, address.port) == ("PACS_1", "10.1.2.3", 2762)
    assert address.has_tls and not address.is_web
    assert not parse_address("dimse://A@b:104", "--to").has_tls


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://pacs.hospital/x", "begins with none of"),
        ("dicomweb:///x", "is not of the form"),
        ("dicomweb://host:99999/x", "is no address"),
        ("dicomweb://user@host/x", "must not hold a user"),
        ("dicomweb://host/x?token=a", "is not of the form"),
        ("dimse://host:104", "AE_TITLE@HOST:PORT"),
        ("dimse://PACS@host", "AE_TITLE@HOST:PORT"),
        ("dimse://A_TITLE_OF_17_CHARS@host:104", "AE_TITLE@HOST:PORT"),
    ],
)
def test_what_is_no_address(text, told):
    with pytest.raises(ConfigError, match="^--from: ") as error:
        parse_address(text, "--from")
    assert told in str(error.value)


def test_a_password_in_an_address_is_refused_and_not_quoted():
    with pytest.raises(ConfigError) as error:
        parse_address("dicomweb://reader:quibble@host/x", "--from")
    assert "quibble" not in str(error.value) and "must not hold a password" in str(error.value)


def test_credentials_go_to_their_own_server(monkeypatch, tmp_path):
    here = parse_address("dicomweb://one/a", "--from")
    same = parse_address("dicomweb://one/b", "--to")
    other = parse_address("dicomweb://two/a", "--to")
    dimse = parse_address("dimse://A@one:104", "--to")
    assert read_credentials(PacsConfig(), here, other) == (None, None)
    monkeypatch.setenv("TFMAMMO_PACS_AUTHORIZATION", BEARER)
    assert read_credentials(PacsConfig(), here, same) == (BEARER, BEARER)
    assert read_credentials(PacsConfig(), here, other) == (BEARER, None)
    assert read_credentials(PacsConfig(), here, dimse) == (BEARER, None)
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
def test_what_is_no_header_is_refused_and_not_quoted(monkeypatch, value):
    monkeypatch.setenv("TFMAMMO_PACS_AUTHORIZATION", value)
    address = parse_address("dicomweb://one/a", "--from")
    with pytest.raises(ConfigError, match="TFMAMMO_PACS_AUTHORIZATION") as error:
        read_credentials(PacsConfig(), address, address)
    assert value not in str(error.value)


@pytest.mark.slow
def test_a_missing_file_is_named(tmp_path):
    address = parse_address("dicomweb://one/a", "--from")
    config = PacsConfig(authorization=tmp_path / "none")
    with pytest.raises(ConfigError, match="pacs.authorization"):
        read_credentials(config, address, address)
