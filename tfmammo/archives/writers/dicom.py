"""Stored intensities -> one DICOM file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

# digital mammography x-ray image, for presentation
MAMMOGRAPHY = UID("1.2.840.10008.5.1.4.1.1.1.2")
SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")


def write_dicom(
    path: Path,
    stored: NDArray[np.integer],
    bits: int,
    *,
    sop_class: UID = MAMMOGRAPHY,
    syntax: UID = ExplicitVRLittleEndian,
    **elements: Any,
) -> None:
    """Write one grey image; the folder is made where missing.

    Args:
        stored: [rows, cols], the values as stored, signed or not.
        bits: BitsStored; up to 8 of them are in 8 bits, others in 16.
        syntax: Uncompressed or one that pydicom encodes with its installed plugins.
        elements: Further elements by keyword, None for none. Study, series and instance have UIDs
            of their own unless they are given.
    """
    allocated = 8 if bits <= 8 else 16
    signed = np.issubdtype(stored.dtype, np.signedinteger)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = UID(
        elements.get("SOPInstanceUID") or generate_uid(entropy_srcs=[str(path)])
    )
    meta.TransferSyntaxUID = syntax if not syntax.is_compressed else ExplicitVRLittleEndian
    encoding = {
        "is_implicit_VR": syntax.is_implicit_VR,
        "is_little_endian": syntax.is_little_endian,
    }
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128, **encoding)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    for level in ("StudyInstanceUID", "SeriesInstanceUID"):
        setattr(dataset, level, generate_uid(entropy_srcs=[level, str(path)]))
    dataset.Modality = "MG"
    dataset.PatientID = "removed"
    dataset.PatientName = "removed"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated = allocated
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in elements.items():
        if value is not None:
            setattr(dataset, name, value)
    order = f"{'<' if syntax.is_little_endian else '>'}{'i' if signed else 'u'}{allocated // 8}"
    pixels = stored.astype(order, copy=False).tobytes()
    # pydicom copies bytes twice before it writes them; of a buffer it gives an odd length as it is
    even = pixels + b"\0" * (len(pixels) % 2)
    dataset.PixelData = pixels if syntax.is_compressed else BytesIO(even)
    dataset["PixelData"].VR = "OB" if allocated == 8 and syntax != ImplicitVRLittleEndian else "OW"
    if syntax.is_compressed:
        dataset.compress(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
