"""Write mammograms as EMBED's open data is distributed: two tables and DICOM files."""

from collections.abc import Iterable
from pathlib import Path

from tests.archives.writers.pixels import write_mammogram
from tests.archives.writers.tables import write_csv
from tfmammo.mammogram import Mammogram

_SHAPES = {"mass": "X", "asymmetry": "F", "distortion": "A"}
_SEVERITIES = {"malignant": "0.0", "benign": "4.0"}


def write(mammograms: Iterable[Mammogram], root: Path) -> list[Path]:
    """Write each mammogram as an exam of its own, with a box and a row a lesion."""
    files = []
    findings = []
    paths = []
    patients: dict[str, int] = {}
    for number, mammogram in enumerate(mammograms, start=1):
        patient = patients.setdefault(mammogram.patient_id, 66685715 + len(patients))
        exam = f"{4932273561626049 + number}"
        study = f"images/cohort_1/{patient}/1.2.847.{number}/1.2.844.{number}"
        paths.append(root / study / f"1.2.826.0.1.{number}.dcm")
        write_mammogram(paths[-1], mammogram, 12)
        boxes = ", ".join(str(lesion.box) for lesion in mammogram.lesions)
        files.append(
            {
                "anon_dicom_path": f"/mnt/NAS2/mammo/anon_dicom/{study}/{paths[-1].name}",
                "empi_anon": patient,
                "acc_anon": exam,
                "FinalImageType": "2D",
                "ImageLateralityFinal": mammogram.laterality,
                "ViewPosition": mammogram.view,
                "spot_mag": "",
                "num_roi": len(mammogram.lesions),
                "ROI_coords": f"({boxes}{',' if len(mammogram.lesions) == 1 else ''})",
            }
        )
        columns = "side path_severity bside massshape massmargin massdens calcfind calcdistri"
        known = {"empi_anon": patient, "acc_anon": exam, "asses": "N", "tissueden": "2.0"}
        row = dict.fromkeys(columns.split(), "") | known
        findings += [
            row
            | {
                "side": mammogram.laterality,
                "asses": "S",
                "path_severity": _SEVERITIES.get(lesion.pathology or "", ""),
                "massshape": _SHAPES.get(lesion.kind, ""),
                "massmargin": "S" if lesion.margin == "spiculated" else "",
                "calcfind": "A" if lesion.kind == "calcification" else "",
            }
            for lesion in mammogram.lesions
        ] or [row]
    write_csv(root / "tables/EMBED_OpenData_metadata.csv", files)
    write_csv(root / "tables/EMBED_OpenData_clinical.csv", findings)
    return paths
