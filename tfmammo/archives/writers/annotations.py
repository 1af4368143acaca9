"""Write an archive's lesions as DICOM: a label-map SEG and a TID 1500 report.

Viewers show them, and `folder` reads them back from a folder `annotations`. A lesion has one
tracking UID in both. Files repeat the patient and the study of their mammogram: guard them as it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydicom.uid import generate_uid

from tfmammo.archives import dicom
from tfmammo.archives.named_files import is_dicom
from tfmammo.archives.writers import measurements, segmentation
from tfmammo.errors import ArchiveError
from tfmammo.filesystem import name_case
from tfmammo.mammogram import Mammogram, Skipped


def write(mammograms: Iterable[Mammogram], output: Path, skipped: Skipped) -> int:
    """Write NAME_seg.dcm and NAME_sr.dcm for each DICOM mammogram with lesions; return how many.

    UIDs follow from the mammogram's UID and its lesions. A mammogram with a lesion without an
    outline is skipped: a rectangle would be read as its outline, and without the lesion its place
    as normal.
    """
    output.mkdir(parents=True, exist_ok=True)
    written = 0
    for mammogram in mammograms:
        if mammogram.lesions:
            try:
                _write_one(mammogram, output)
                written += 1
            except ValueError as error:
                skipped.add(mammogram.image_id, error)
    return written


def _write_one(mammogram: Mammogram, output: Path) -> None:
    path = mammogram.file
    if path is None or not is_dicom(path):
        raise ArchiveError("is not a DICOM, so no segmentation can refer to it")
    lesions = mammogram.lesions
    if mammogram.lost or not all(lesion.outlines for lesion in lesions):
        raise ArchiveError("has a lesion without an outline")
    drawn = hashlib.sha256()
    for lesion in lesions:
        drawn.update(f"{lesion.kind} {lesion.kind_is_certain}".encode())
        drawn.update(b"".join(outline.tobytes() for outline in lesion.outlines))
    source = dicom.read_dataset(path)
    with segmentation.referring(path):

        def make_uid(*names: str) -> str:
            of = ["tfmammo lesions", source.SOPInstanceUID, drawn.hexdigest(), *names]
            return generate_uid(entropy_srcs=of)

        tracking = tuple(make_uid(str(number)) for number in range(len(lesions)))
        labelled = {
            # the label's word counts where the code is general
            f"Lesion {number}{f' {lesion.kind}' if lesion.kind_is_certain else ''}": lesion
            for number, lesion in enumerate(lesions, 1)
        }
        uids = segmentation.Identifiers(make_uid("SEG series"), make_uid("SEG"), tracking)
        segments = segmentation.build(source, labelled, None, uids, label_map=True)
        report = measurements.build_outlines(
            source, lesions, tracking, make_uid("SR series"), make_uid("SR")
        )
    name = name_case(mammogram.image_id)
    segmentation.save(segments, output / f"{name}_seg.dcm")
    segmentation.save(report, output / f"{name}_sr.dcm")
