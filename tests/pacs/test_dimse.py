"""What a server of DIMSE may do wrong: answers and instances that nobody asked for."""

from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from tfmammo.errors import PacsError, PacsUnreachable
from tfmammo.pacs.config import PacsConfig, parse_address

dimse = pytest.importorskip("tfmammo.pacs.dimse")


@pytest.fixture
def node():
    return dimse.DimseNode(parse_address("dimse://ANY@127.0.0.1:11112", "--from"), PacsConfig())


def send(node, uid):
    """Send an instance to the node's own port."""
    request = SimpleNamespace(AffectedSOPInstanceUID=uid)
    event = SimpleNamespace(request=request, dataset=Dataset(), file_meta=FileMetaDataset())
    return node._take(event)


def test_an_instance_that_nobody_waits_for_is_refused(node):
    node._awaited["1.2.3"] = None
    assert send(node, "6.6.6") == dimse._REFUSED != 0
    assert node._awaited == {"1.2.3": None}
    assert send(node, "1.2.3") == 0
    assert isinstance(node._awaited["1.2.3"], Dataset)


@pytest.mark.parametrize("status", [0x0000, 0xFF00, 0xFF01, 0xB000, 0xB007])
def test_what_goes_on_and_warnings_are_no_refusal(node, status):
    answer = Dataset()
    answer.Status = status
    node._check_transfer(answer)


def test_a_refusal_and_a_lost_association_are_told_apart(node):
    answer = Dataset()
    answer.Status = 0xA700
    with pytest.raises(PacsError, match=r"127.0.0.1: refused to send an instance \(status A700\)"):
        node._check_transfer(answer)
    with pytest.raises(PacsUnreachable, match="the association was lost"):
        node._check_transfer(Dataset())
