"""Build a picture of what was found in a DICOM mammogram: a secondary capture in its study.

Every viewer shows it, also those that show neither SEG nor structured reports. It says in its
pixels and in its header that it is research output. Its modality is OT, so that nothing takes it
for a mammogram.

Like a SEG, it repeats the patient and the study of its source: guard it as the source.
"""

from __future__ import annotations

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from tfmammo.archives import elements
from tfmammo.archives.writers.segmentation import PURPOSE, complete, identify

_SERIES = 9102


def build(source: Dataset, picture: NDArray[np.uint8], series: str, instance: str) -> SCImage:
    """Build the capture of one mammogram from its elements and a picture, uint8 RGB.

    Elements that a capture can't take over are emptied. Call it within `segmentation.referring`:
    what highdicom raises quotes elements.
    """
    complete(source)
    capture = SCImage(
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        # a picture with text on it is not turned with the breast
        patient_orientation=("L", "F"),
        study_instance_uid=source.StudyInstanceUID,
        patient_id=source.PatientID,
        patient_name=source.PatientName,
        patient_birth_date=source.PatientBirthDate,
        patient_sex=source.PatientSex,
        accession_number=source.AccessionNumber,
        study_id=source.StudyID,
        study_date=source.StudyDate,
        study_time=source.StudyTime,
        referring_physician_name=source.ReferringPhysicianName,
        specific_character_set=source.get("SpecificCharacterSet"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identify(series, _SERIES, instance, "overlay (AI)"),
    )
    capture.PatientOrientation = []
    side = elements.text(source, "ImageLaterality")
    capture.Laterality = side if side in ("L", "R") else ""
    capture.ImageComments = PURPOSE
    capture.DerivationDescription = f"findings drawn over the mammogram: {PURPOSE}"
    # what is burned into the source is in the picture
    capture.BurnedInAnnotation = "NO" if source.get("BurnedInAnnotation") == "NO" else "YES"
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    capture.SourceImageSequence = [reference]
    return capture
