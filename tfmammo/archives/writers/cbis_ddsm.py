"""Write mammograms as CBIS-DDSM is distributed: four case-description tables, a DICOM tree."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from tfmammo.archives.writers.dicom import SECONDARY_CAPTURE, write_dicom
from tfmammo.mammogram import Lesion, Mammogram

Layout = Literal["nbia", "csv", "series"]

_SHAPES = {"asymmetry": "FOCAL_ASYMMETRIC_DENSITY", "distortion": "ARCHITECTURAL_DISTORTION"}
_COLUMNS = {  # as they are: a blank or an underscore in "breast density"
    "mass": "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality "
    "type,mass shape,mass margins",
    "calc": "patient_id,breast density,left or right breast,image view,abnormality id,abnormality "
    "type,calc type,calc distribution",
}
_MORE_COLUMNS = (
    "assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)


class _Series(NamedTuple):
    """One series; its files are numbered from 1."""

    root: Path
    layout: Layout
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
        if self.layout == "csv":
            return self.root / self.printed(number)
        if self.layout == "series":
            return self.root / series / f"1-{number}.dcm"
        names = (
            f"07-20-2016-DDSM-{study[-5:]}",
            f"1.000000-{self.description}-{series[-5:]}",
            f"1-{number}.dcm",
        )
        return self.root.joinpath("CBIS-DDSM", self.folder, *names)

    def write(self, number: int, stored: NDArray[np.integer], description: str | None) -> None:
        """Write one of its files, 8 or 16 bits as `stored` has."""
        study, series = self.uids
        side, view = self.folder.split("_")[3:5]
        write_dicom(
            self.path(number),
            stored,
            8 * stored.itemsize,
            sop_class=SECONDARY_CAPTURE,
            syntax=ImplicitVRLittleEndian,
            SeriesDescription=description,
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
    """Write mammograms as CBIS-DDSM distributes its own.

    Each goes into the set of its official split, else into training.

    Calcifications make one set, all other lesions the other: a mammogram with both is written
    twice, one without lesions, which CBIS-DDSM does not have, not at all.

    Args:
        mammograms: Records of any archive, each with laterality and view, one per patient,
            laterality and view; pixels are rint(value * 65535).
        root: A folder, made where missing.
        layout: Folders as the NBIA retriever names them, as the tables do, or by series UID alone.
        swapped: Mask and crop lie in two series, exchanged in the tables, instead of in one.
        described: The files carry SeriesDescription.
        mask_scale: Size of the masks over that of their mammograms, (rows, cols).

    Returns:
        The mammograms' files, in the order given, that of the masses before that of the
        calcifications.
    """
    tables: dict[tuple[str, str], list[list[object]]] = defaultdict(list)
    patients: dict[str, int] = {}
    paths: list[Path] = []
    for mammogram in mammograms:
        number = patients.setdefault(mammogram.patient_id, len(patients) + 1)
        split = mammogram.official_split or "train"
        for kind in ("mass", "calc"):
            lesions = [
                lesion
                for lesion in mammogram.lesions
                if (lesion.kind == "calcification") == (kind == "calc")
            ]
            if not lesions:
                continue
            patient = f"P_{number:05d}"
            side = "LEFT" if mammogram.laterality == "L" else "RIGHT"
            subset = "Training" if split == "train" else "Test"
            folder = f"{kind.title()}-{subset}_{patient}_{side}_{mammogram.view}"
            image = _Series(root, layout, folder, "full mammogram images")
            if image.path(1) in paths:
                raise ValueError(f"{folder}: two mammograms of one patient, side and view")
            stored = np.rint(mammogram.pixels()[..., 0].astype(np.float64) * 65535).astype(
                np.uint16
            )
            image.write(1, stored, image.description if described else None)
            paths.append(image.path(1))
            for abnormality, lesion in enumerate(lesions, start=1):
                crop, mask = _write_lesion(
                    image, f"{folder}_{abnormality}", lesion, stored, swapped, described, mask_scale
                )
                # A line break ends one of the paths: the mask's in the mass tables, the crop's in
                # the others.
                files = (
                    (image.printed(1), crop, f"{mask}\n")
                    if kind == "mass"
                    else (image.printed(1), f"{crop}\n", mask)
                )
                facts = (
                    mammogram.density,
                    side,
                    mammogram.view,
                    abnormality,
                    *_facts(mammogram, lesion),
                )
                tables[kind, split].append([patient, *facts, 3, *files])
    root.mkdir(parents=True, exist_ok=True)
    for (kind, side_of_split), rows in tables.items():
        with (root / f"{kind}_case_description_{side_of_split}_set.csv").open(
            "w", encoding="utf-8", newline=""
        ) as file:
            csv.writer(file, lineterminator="\n").writerows(
                [f"{_COLUMNS[kind]},{_MORE_COLUMNS}".split(","), *rows]
            )
    return paths


def _write_lesion(
    image: _Series,
    folder: str,
    lesion: Lesion,
    stored: NDArray[np.uint16],
    swapped: bool,
    described: bool,
    mask_scale: tuple[float, float],
) -> tuple[str, str]:
    """Write crop and mask; return their paths as the table prints them."""
    roi = image._replace(folder=folder, description="ROI mask images")
    top, left, bottom, right = lesion.box
    sizes = [
        (size, max(1, round(size * scale)))
        for size, scale in zip(stored.shape, mask_scale, strict=True)
    ]
    row, col = (((np.arange(to) + 0.5) * size / to).astype(int) for size, to in sizes)
    mask = 255 * lesion.mask(*stored.shape)[np.ix_(row, col)]
    of_crop, crop_number = (roi._replace(description="cropped images"), 1) if swapped else (roi, 1)
    mask_number = 1 if swapped else 2
    if not swapped and lesion.kind == "calcification":
        crop_number = 2
        mask_number = 1
    of_crop.write(
        crop_number, stored[top:bottom, left:right], "cropped images" if described else None
    )
    roi.write(mask_number, mask, "ROI mask images" if described else None)
    printed = of_crop.printed(crop_number), roi.printed(mask_number)
    return printed[::-1] if swapped else printed


def _facts(mammogram: Mammogram, lesion: Lesion) -> list[str]:
    """Abnormality type, shape, margins or distribution, assessment and pathology."""
    of_calcifications = lesion.kind == "calcification"
    birads = (mammogram.birads or "0")[0]
    pathology = (
        "BENIGN_WITHOUT_CALLBACK"
        if lesion.pathology == "benign" and birads == "2"
        else (lesion.pathology or "").upper()
    )
    return [
        "calcification" if of_calcifications else "mass",
        _SHAPES.get(lesion.kind) or (lesion.shape or "N/A").upper(),
        "CLUSTERED" if of_calcifications else (lesion.margin or "N/A").upper(),
        birads,
        pathology,
    ]
