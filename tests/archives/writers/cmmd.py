"""Write mammograms as CMMD is distributed: TCIA's folders and an Excel table of breasts."""

from collections.abc import Iterable
from pathlib import Path

from pydicom.dataset import Dataset

from tests.archives.writers.pixels import quantize
from tests.archives.writers.tables import write_xlsx
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Mammogram

COLUMNS = ("ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype")
VIEWS = {"CC": "399162004", "MLO": "399368009"}


def write(mammograms: Iterable[Mammogram], root: Path) -> list[Path]:
    """Write one DICOM each, and one row a breast that has a pathology."""
    paths = []
    patients: dict[str, str] = {}
    rows: dict[tuple[str, str | None], list[object]] = {}
    for number, mammogram in enumerate(mammograms, start=1):
        patient = patients.setdefault(mammogram.patient_id, f"D1-{len(patients) + 1:04d}")
        folder = root / "CMMD" / patient / "07-18-2010-NA-NA-79377" / "1.000000-NA-70244"
        paths.append(folder / f"1-{number}.dcm")
        view = Dataset()
        view.CodeValue = VIEWS[mammogram.view or "CC"]
        stated = {"ImageLaterality": mammogram.laterality, "ViewCodeSequence": [view]}
        write_dicom(paths[-1], quantize(mammogram, 8), 8, **stated)
        kinds = {lesion.kind for lesion in mammogram.lesions}
        abnormality = "both" if len(kinds) > 1 else next(iter(kinds), "mass")
        if mammogram.pathology in ("benign", "malignant"):
            facts = (44, 2, abnormality, mammogram.pathology.capitalize(), "")
            rows[patient, mammogram.laterality] = [patient, mammogram.laterality, *facts]
    write_xlsx(root / "CMMD_clinicaldata_revision.xlsx", [COLUMNS, *rows.values()])
    return paths
