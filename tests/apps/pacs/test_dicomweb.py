"""What a server of DICOMweb may do wrong: a small one of this test that does it."""

import datetime
import ipaddress
import ssl
from contextlib import contextmanager

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset

from tests import http_server
from tfmammo.apps.pacs import nodes
from tfmammo.apps.pacs.config import PacsConfig, parse_address
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import PacsError, PacsUnreachable

dicomweb = pytest.importorskip("tfmammo.apps.pacs.dicomweb")

IMAGE = nodes.Instance("1.2", "1.3", "1.4")


@contextmanager
def serve(answer, certificate=None):
    """Run a server; yield its address, and the headers of each request that it answers.

    With a certificate, the files of it and of its key, it speaks TLS.
    """
    heard = []
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)

    def note(handler):
        heard.append(dict(handler.headers))
        answer(handler)

    with http_server.serve(note, context) as place:
        yield place, heard


def reply(status=200, content=b"[]", kind="application/dicom+json", **headers):
    headers["Content-Type"] = kind
    return lambda handler: http_server.reply(handler, content, status, **headers)


def open_node(place, authorization="Bearer token", **config):
    address = parse_address(f"dicomweb+http://{place}/x", "--from")
    return dicomweb.WebNode(address, PacsConfig(**({"timeout": 5} | config)), authorization)


@pytest.mark.parametrize("status", [401, 400])
def test_a_refusal_is_final(status):
    with serve(reply(status, b"QUIBBLE^ZEPHYRINE")) as (place, _):
        with pytest.raises(PacsError, match=f"^127.0.0.1: answered with status {status}$") as error:
            open_node(place).list_instances("1.2")
        assert not isinstance(error.value, PacsUnreachable)


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
def test_passing_failures_are_attempted_again(status):
    with serve(reply(status)) as (place, heard):
        node = open_node(place)
        config = PacsConfig(attempts=3, wait=0)
        with pytest.raises(PacsUnreachable):
            nodes.try_repeatedly(config, lambda: node.list_instances("1.2"))
        assert len(heard) == 3


def test_nothing_found_is_no_error():
    for answer in (reply(404), reply(204, b""), reply(200, b"[]")):
        with serve(answer) as (place, _):
            assert open_node(place).list_instances("1.2") == []


def test_a_server_that_ignores_the_page_ends(monkeypatch):
    item = b'{"00080018": {"vr": "UI", "Value": ["1.4"]}}'
    monkeypatch.setattr(dicomweb, "_PAGE", 1)
    with serve(reply(200, b"[" + item + b"]")) as (place, heard):
        assert [one.uid for one in open_node(place).list_instances("1.2")] == ["1.4"]
        assert len(heard) == 2


@pytest.mark.parametrize("content", [b"QUIBBLE", b"[1]", b'[{"00080018": {"vr": "UI"}}', b"{"])
def test_an_unreadable_answer_is_not_quoted(content):
    with serve(reply(200, content)) as (place, _):
        with pytest.raises(PacsError) as error:
            open_node(place).list_instances("1.2")
        assert "QUIBBLE" not in str(error.value) and "127.0.0.1: " in str(error.value)


@pytest.mark.parametrize("preamble", [b"", b"This is a message of several parts.\r\n"])
def test_a_preamble_before_the_parts_is_passed_over(tmp_path, preamble):
    path = tmp_path / "a.dcm"
    uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.4"}
    write_dicom(path, np.zeros((4, 4), np.uint16), 12, **uids)
    head = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
    content = preamble + head + path.read_bytes() + b"\r\n--b--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    with serve(reply(200, content, kind)) as (place, _):
        assert open_node(place).retrieve(IMAGE).SOPInstanceUID == "1.4"


@pytest.mark.parametrize(("study", "uid"), [("6.6", "1.4"), ("1.2", "6.6")])
def test_another_instance_than_requested_is_refused(study, uid):
    dataset = Dataset()
    dataset.StudyInstanceUID = study
    dataset.SOPInstanceUID = uid
    with pytest.raises(PacsError, match="another instance"):
        nodes.check_identity(dataset, IMAGE, "pacs")


def test_nothing_is_sent_to_another_server(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login quibble password zephyrine\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve(reply()) as (other, heard_there):
        moved = reply(307, b"", Location=f"http://localhost:{other.rpartition(':')[2]}/x")
        refused = pytest.raises(PacsError, match="redirects")
        with serve(moved) as (place, heard), refused:
            open_node(place).list_instances("1.2")
        assert heard[0]["Authorization"] == "Bearer token" and not heard_there
        monkeypatch.setenv("http_proxy", f"http://{other}")
        monkeypatch.delenv("no_proxy", raising=False)
        with serve(reply()) as (place, heard):
            open_node(place).list_instances("1.2")
        assert len(heard) == 1 and not heard_there, "without TLS a proxy would read everything"
        monkeypatch.delenv("http_proxy")
    with serve(reply()) as (place, heard):
        open_node(place, authorization=None).list_instances("1.2")
        assert "Authorization" not in heard[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The files of a certificate that nobody signed, for 127.0.0.1, and of its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = [tmp_path_factory.mktemp("tls") / name for name in ("cert.pem", "key.pem")]
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [None, requests.certs.where()])
def test_a_self_signed_certificate_is_refused_unless_it_is_named(
    certificate, caplog, monkeypatch, bundle
):
    """Whatever the environment says: requests alone would take its certificates."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    if bundle:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    with serve(reply(), certificate) as (place, heard):
        address = parse_address(f"dicomweb://{place}/x", "--from")

        def ask(**config):
            node = dicomweb.WebNode(address, PacsConfig(timeout=5, **config), None)
            return node.list_instances("1.2")

        with pytest.raises(PacsError, match="certificate is not trusted"):
            ask()
        assert not heard
        assert ask(ca=certificate[0]) == [] and not caplog.messages
        assert ask(verify=False) == []
    assert caplog.messages == ["pacs.verify=false: the server's certificate is not checked"]
