"""Write mammograms as CBIS-DDSM is distributed: four case-description tables, a DICOM tree."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from tests.archives.writers.pixels import quantize
from tests.archives.writers.tables import write_csv
from tfmammo.archives.writers.dicom import SECONDARY_CAPTURE, write_dicom
from tfmammo.mammogram import Lesion, Mammogram

Layout = Literal["nbia", "csv", "series"]

_SHAPES = {"asymmetry": "FOCAL_ASYMMETRIC_DENSITY", "distortion": "ARCHITECTURAL_DISTORTION"}
_SIDES = {"L": "LEFT", "R": "RIGHT"}


class _Form(NamedTuple):
    """Where and how an archive is written; for the fields see `write`."""

    root: Path
    layout: Layout
    swapped: bool
    described: bool
    mask_scale: tuple[float, float]


class _Series(NamedTuple):
    """One series; its files are numbered from 1."""

    form: _Form
    folder: str
    description: str

    @property
    def uids(self) -> tuple[str, str]:
        """Return (study, series)."""
        key = f"{self.folder}/{self.description}"
        return generate_uid(entropy_srcs=[key, "study"]), generate_uid(entropy_srcs=[key, "series"])

    def printed(self, number: int) -> str:
        """Return a file's path in the tables."""
        return "/".join((self.folder, *self.uids, f"{number - 1:06d}.dcm"))

    def path(self, number: int) -> Path:
        """Return a file's path on disk."""
        study, series = self.uids
        if self.form.layout == "csv":
            return self.form.root / self.printed(number)
        if self.form.layout == "series":
            return self.form.root / series / f"1-{number}.dcm"
        named = f"1.000000-{self.description}-{series[-5:]}"
        folder = self.form.root / "CBIS-DDSM" / self.folder / f"07-20-2016-DDSM-{study[-5:]}"
        return folder / named / f"1-{number}.dcm"

    def write(self, number: int, stored: NDArray[np.integer], description: str) -> None:
        """Write one of its files, 8 or 16 bits as `stored` has."""
        study, series = self.uids
        side, view = self.folder.split("_")[3:5]
        write_dicom(
            self.path(number),
            stored,
            8 * stored.itemsize,
            sop_class=SECONDARY_CAPTURE,
            syntax=ImplicitVRLittleEndian,
            SeriesDescription=description if self.form.described else None,
            PatientID=self.folder,
            PatientName=self.folder,
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            Laterality=side[0],
            PatientOrientation=view,
        )


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    layout: Layout = "nbia",
    swapped: bool = False,
    described: bool = True,
    mask_scale: tuple[float, float] = (1.0, 1.0),
) -> list[Path]:
    """Write mammograms, one a patient, laterality and view, into the sets of their splits.

    Calcifications make one set, all other lesions the other: a mammogram with both is written
    twice, first with its masses, and one without lesions not at all.

    Args:
        layout: Folders as the NBIA retriever names them, as the tables do, or by series UID alone.
        swapped: Mask and crop are in two series, exchanged in the tables, instead of in one.
        described: The files carry SeriesDescription.
        mask_scale: Size of the masks over that of their mammograms, (rows, cols).
    """
    form = _Form(root, layout, swapped, described, mask_scale)
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    patients: dict[str, str] = {}
    paths: list[Path] = []
    for mammogram in mammograms:
        patient = patients.setdefault(mammogram.patient_id, f"P_{len(patients) + 1:05d}")
        split = mammogram.official_split or "train"
        for kind in ("mass", "calc"):
            lesions = [
                lesion
                for lesion in mammogram.lesions
                if (lesion.kind == "calcification") == (kind == "calc")
            ]
            if not lesions:
                continue
            name = f"{kind.title()}-{'Training' if split == 'train' else 'Test'}_{patient}"
            side = _SIDES[mammogram.laterality or "L"]
            folder = f"{name}_{side}_{mammogram.view}"
            image = _Series(form, folder, "full mammogram images")
            paths.append(image.path(1))
            stored = quantize(mammogram, 16)
            image.write(1, stored, image.description)
            for number, lesion in enumerate(lesions, start=1):
                row = _describe(mammogram, lesion, kind) | {"patient_id": patient}
                files = _write_lesion(image, f"{folder}_{number}", lesion, stored)
                row |= {"abnormality id": number, "image file path": image.printed(1), **files}
                tables[f"{kind}_case_description_{split}_set.csv"].append(row)
    for table, rows in tables.items():
        write_csv(root / table, rows)
    return paths


def _describe(mammogram: Mammogram, lesion: Lesion, kind: str) -> dict[str, Any]:
    """Return the facts of a row; columns are called as they are."""
    shape = _SHAPES.get(lesion.kind) or (lesion.shape or "N/A").upper()
    margin = (lesion.margin or "N/A").upper()
    words = {"mass shape": shape, "mass margins": margin}
    if kind == "calc":
        words = {"calc type": shape, "calc distribution": "CLUSTERED"}
    birads = (mammogram.birads or "0")[0]
    is_known = lesion.pathology == "benign" and birads == "2"
    pathology = "BENIGN_WITHOUT_CALLBACK" if is_known else (lesion.pathology or "").upper()
    return {
        "breast_density" if kind == "mass" else "breast density": mammogram.density,
        "left or right breast": _SIDES[mammogram.laterality or "L"],
        "image view": mammogram.view,
        "abnormality type": "calcification" if kind == "calc" else "mass",
        **words,
        "assessment": birads,
        "pathology": pathology,
        "subtlety": 3,
    }


def _write_lesion(
    image: _Series, folder: str, lesion: Lesion, stored: NDArray[np.uint16]
) -> dict[str, str]:
    """Write crop and mask; return their paths as the table prints them, one with a line break."""
    masks = image._replace(folder=folder, description="ROI mask images")
    crops = masks._replace(description="cropped images") if image.form.swapped else masks
    is_cluster = lesion.kind == "calcification"
    crop_number, mask_number = (2, 1) if is_cluster else (1, 2)
    if image.form.swapped:
        crop_number = mask_number = 1
    sizes = [
        (size, max(1, round(size * scale)))
        for size, scale in zip(stored.shape, image.form.mask_scale, strict=True)
    ]
    row, col = (((np.arange(to) + 0.5) * size / to).astype(int) for size, to in sizes)
    mask = 255 * lesion.mask(*stored.shape)[np.ix_(row, col)]
    top, left, bottom, right = lesion.box
    crops.write(crop_number, stored[top:bottom, left:right], "cropped images")
    masks.write(mask_number, mask, "ROI mask images")
    printed = [crops.printed(crop_number), masks.printed(mask_number)]
    printed = printed[::-1] if image.form.swapped else printed
    printed[not is_cluster] += "\n"
    return dict(zip(("cropped image file path", "ROI mask file path"), printed, strict=True))
