"""What a damaged DICOM file makes pydicom say quotes its values; ours must not."""

import traceback

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.archives.test_dicom import STORED
from tfmammo.archives import dicom
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.errors import ArchiveError

NAME = "QUIBBLE^ZEPHYRINE"


@pytest.fixture
def path(tmp_path):
    """A sound file."""
    write_dicom(tmp_path / "a.dcm", STORED, 12)
    return tmp_path / "a.dcm"


def tell(error):
    return f"{error}\n{error!r}\n{''.join(traceback.format_exception(error))}"


@pytest.mark.parametrize(
    "read", [dicom.read_header, dicom.read_pixels, dicom.read_stored, dicom.read_dataset]
)
def test_a_name_for_a_number_within_a_group_is_not_quoted(path, read):
    """pydicom converts the elements of a group while it walks through them."""
    dataset = pydicom.dcmread(path)
    group = Dataset()
    group.add_new("SliceThickness", "LO", NAME)
    dataset.SharedFunctionalGroupsSequence = [group]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    content = path.read_bytes()
    text = NAME.encode()
    path.write_bytes(content.replace(b"LO\x12\0" + text, b"FD\x12\0" + text))
    with pytest.raises(Exception, match="QUIBBLE"):  # of pydicom alone: 18 bytes are no doubles
        list(pydicom.dcmread(path).SharedFunctionalGroupsSequence[0])
    with pytest.raises(ArchiveError, match=r"can't be read \(\w+\)$") as caught:
        read(path)
    assert "QUIBBLE" not in tell(caught.value) and "ZEPHYRINE" not in tell(caught.value)


@pytest.mark.parametrize(
    "fault", [ValueError(NAME), OSError(NAME), UnicodeDecodeError("ascii", b"Q", 0, 1, NAME)]
)
def test_of_any_exception_only_the_class_is_told(path, fault):
    with pytest.raises(ArchiveError) as caught, dicom.reading(path):
        raise fault
    assert str(caught.value) == f"{path}: can't be read ({type(fault).__name__})"
    assert NAME not in tell(caught.value)
