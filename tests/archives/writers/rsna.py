"""Write mammograms as RSNA's competition distributes its own: train.csv and train_images/."""

from collections.abc import Iterable
from pathlib import Path

import pydicom

from tests.archives.writers.pixels import quantize
from tests.archives.writers.tables import write_csv
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Mammogram


def write(mammograms: Iterable[Mammogram], root: Path) -> list[Path]:
    """Write one DICOM and one row each; lesions leave their pathology only."""
    rows = []
    paths = []
    patients: dict[str, int] = {}
    for number, mammogram in enumerate(mammograms):
        patient = patients.setdefault(mammogram.patient_id, 10006 + len(patients))
        paths.append(root / "train_images" / str(patient) / f"{462822612 + number}.dcm")
        write_dicom(paths[-1], quantize(mammogram, 12), 12, PatientID=str(patient))
        dataset = pydicom.dcmread(paths[-1])
        del dataset.Modality, dataset.SOPClassUID  # stated in the meta information alone
        dataset.save_as(paths[-1])
        cancer = int(mammogram.pathology == "malignant")
        biopsy = int(mammogram.pathology in ("benign", "malignant"))
        rows.append(
            {
                "patient_id": patient,
                "image_id": paths[-1].stem,
                "laterality": mammogram.laterality,
                "view": mammogram.view,
                "cancer": cancer,
                "biopsy": biopsy,
                "BIRADS": {"normal": "1.0", "malignant": "0.0"}.get(mammogram.pathology or "", ""),
                "density": mammogram.density or "",
                "difficult_negative_case": False,
            }
        )
    write_csv(root / "train.csv", rows)
    return paths
