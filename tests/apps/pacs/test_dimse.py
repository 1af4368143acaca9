"""What a server of DIMSE may do wrong: refusals, and instances that were not requested."""

import threading
from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MAMMOGRAM
from pydicom.uid import ExplicitVRLittleEndian

from tests.ports import find_free_port
from tfmammo.apps.pacs import nodes
from tfmammo.apps.pacs.config import Address, PacsConfig, parse_address
from tfmammo.errors import ConfigError, PacsError, PacsUnreachable

dimse = pytest.importorskip("tfmammo.apps.pacs.dimse")


def make_node(address="dimse://ANY@127.0.0.1:11112", **values):
    config = PacsConfig(**values)
    parsed = address if isinstance(address, Address) else parse_address(address, "--from")
    return dimse.DimseNode(parsed, config, dimse.Receiver(config, [parsed.ae_title]))


def send(receiver, uid):
    """Send an instance to this process."""
    request = SimpleNamespace(AffectedSOPInstanceUID=uid)
    event = SimpleNamespace(request=request, dataset=Dataset(), file_meta=FileMetaDataset())
    return receiver.take(event)


def test_an_instance_that_was_not_requested_is_refused():
    receiver = dimse.Receiver(PacsConfig(), ["ANY"])
    statuses = []
    sent = receiver.fetch(
        "1.2.3", lambda: statuses.extend(send(receiver, uid) for uid in ("6.6.6", "1.2.3"))
    )
    assert statuses == [dimse._REFUSED, 0] and dimse._REFUSED != 0
    assert isinstance(sent, Dataset)
    assert send(receiver, "1.2.3") == dimse._REFUSED, "it is no longer awaited"
    assert receiver.fetch("1.2.3", lambda: None) is None


def test_source_and_target_listen_at_one_port():
    """The target is asked for a segmentation after the source was asked for its image."""
    from tfmammo.apps.pacs.round_trip import RoundTrip

    config = PacsConfig(retrieve="move", listen=f"127.0.0.1:{find_free_port()}")
    addresses = [
        parse_address(f"dimse://{title}@127.0.0.1:{find_free_port()}", "--from")
        for title in ("SOURCE", "TARGET")
    ]
    trip = RoundTrip.__new__(RoundTrip)  # without a pipeline
    vars(trip).update(_config=config, _addresses=addresses, _credentials=[None] * 2)
    vars(trip).update(_nodes={}, _receiver=None, _connecting=threading.Lock())
    source, target = trip._open(0), trip._open(1)
    assert source._receiver is target._receiver
    try:
        source._receiver.listen()
        target._receiver.listen()
    finally:
        source.close()


def test_a_refusal_is_neither_a_warning_nor_a_lost_association():
    node = make_node()
    answer = Dataset()
    for status in (0x0000, 0xFF00, 0xFF01, 0xB000, 0xB007):  # done, going on, warnings
        answer.Status = status
        node._check_transfer(answer)
    answer.Status = 0xA700
    with pytest.raises(PacsError, match="A700") as refused:
        node._check_transfer(answer)
    assert not isinstance(refused.value, PacsUnreachable)
    with pytest.raises(PacsUnreachable):
        node._check_transfer(Dataset())


def test_images_come_with_tls_or_not_at_all():
    with pytest.raises(ConfigError, match="pacs.retrieve"):
        make_node("dimse+tls://ANY@127.0.0.1:11112", retrieve="move")


@pytest.fixture
def server():
    """A server that answers every C-GET with the image 1.4 of study 6.6."""
    from pynetdicom import AE, evt

    image = Dataset()
    image.SOPClassUID = MAMMOGRAM
    image.SOPInstanceUID = "1.4"
    image.StudyInstanceUID = "6.6"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian

    def send_image(_):
        yield 1
        yield 0xFF00, image

    node = AE()
    node.add_supported_context(dimse.GET)
    node.add_supported_context(MAMMOGRAM, scu_role=True, scp_role=True)
    port = find_free_port()
    running = node.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_GET, send_image)]
    )
    yield parse_address(f"dimse://ANY@127.0.0.1:{port}", "--from")
    running.shutdown()


def test_an_image_of_another_study_is_refused(server):
    node = make_node(server, timeout=5)
    with pytest.raises(PacsError, match="another instance"):
        node.retrieve(nodes.Instance("1.2", "1.3", "1.4", MAMMOGRAM))
