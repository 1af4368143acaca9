"""What a server of DIMSE may do wrong: refusals, and instances that were not requested."""

from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MAMMOGRAM
from pydicom.uid import ExplicitVRLittleEndian

from tests.ports import find_free_port
from tfmammo.apps.pacs import nodes
from tfmammo.apps.pacs.config import PacsConfig, parse_address
from tfmammo.errors import ConfigError, PacsError, PacsUnreachable

dimse = pytest.importorskip("tfmammo.apps.pacs.dimse")


@pytest.fixture
def node():
    return dimse.DimseNode(parse_address("dimse://ANY@127.0.0.1:11112", "--from"), PacsConfig())


def send(node, uid):
    """Send an instance to the node's own port."""
    request = SimpleNamespace(AffectedSOPInstanceUID=uid)
    event = SimpleNamespace(request=request, dataset=Dataset(), file_meta=FileMetaDataset())
    return node._take(event)


def test_an_instance_that_was_not_requested_is_refused(node):
    node._awaited["1.2.3"] = None
    assert send(node, "6.6.6") == dimse._REFUSED != 0
    assert node._awaited == {"1.2.3": None}
    assert send(node, "1.2.3") == 0
    assert isinstance(node._awaited["1.2.3"], Dataset)


def test_a_refusal_is_neither_a_warning_nor_a_lost_association(node):
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
    address = parse_address("dimse+tls://ANY@127.0.0.1:11112", "--from")
    with pytest.raises(ConfigError, match="pacs.retrieve"):
        dimse.DimseNode(address, PacsConfig(retrieve="move"))


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
    node = dimse.DimseNode(server, PacsConfig(timeout=5))
    with pytest.raises(PacsError, match="another instance"):
        node.retrieve(nodes.Instance("1.2", "1.3", "1.4", MAMMOGRAM))
