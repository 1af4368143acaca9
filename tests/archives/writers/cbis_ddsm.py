"""Write mammograms as CBIS-DDSM is distributed: four case-description tables, a DICOM tree."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from tests.archives.writers.pixels import quantize
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
        root = self.form.root
        if self.form.layout == "csv":
            return root / self.printed(number)
        if self.form.layout == "series":
            return root / series / f"1-{number}.dcm"
        names = (
            f"07-20-2016-DDSM-{study[-5:]}",
            f"1.000000-{self.description}-{series[-5:]}",
            f"1-{number}.dcm",
        )
        return root.joinpath("CBIS-DDSM", self.folder, *names)

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
    """Write mammograms as CBIS-DDSM distributes its own.

    Each goes into the set of its official split, else into training.

    Calcifications make one set, all other lesions the other: a mammogram with both is written
    twice, one without lesions, which CBIS-DDSM does not have, not at all.

    Args:
        mammograms: Records of any archive, each with laterality and view, one per patient,
            laterality and view; pixels are rint(value * 65535).
        layout: Folders as the NBIA retriever names them, as the tables do, or by series UID alone.
        swapped: Mask and crop lie in two series, exchanged in the tables, instead of in one.
        described: The files carry SeriesDescription.
        mask_scale: Size of the masks over that of their mammograms, (rows, cols).

    Returns:
        The mammograms' files, in the order given, that of the masses before that of the
        calcifications.
    """
    form = _Form(root, layout, swapped, described, mask_scale)
    tables: dict[tuple[str, str], list[list[object]]] = defaultdict(list)
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
            name = "Training" if split == "train" else "Test"
            folder = f"{kind.title()}-{name}_{patient}_{_side(mammogram)}_{mammogram.view}"
            image = _Series(form, folder, "full mammogram images")
            if image.path(1) in paths:
                raise ValueError(f"{folder}: two mammograms of one patient, side and view")
            paths.append(image.path(1))
            rows = _write_mammogram(image, mammogram, lesions)
            tables[kind, split] += [[patient, *row] for row in rows]
    root.mkdir(parents=True, exist_ok=True)
    for (kind, subset), rows in tables.items():
        path = root / f"{kind}_case_description_{subset}_set.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            header = f"{_COLUMNS[kind]},{_MORE_COLUMNS}".split(",")
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return paths


def _side(mammogram: Mammogram) -> str:
    return "LEFT" if mammogram.laterality == "L" else "RIGHT"


def _write_mammogram(
    image: _Series, mammogram: Mammogram, lesions: Sequence[Lesion]
) -> list[list[object]]:
    """Write a mammogram with its lesions; return their rows of the table, without the patient."""
    stored = quantize(mammogram, 16)
    image.write(1, stored, image.description)
    rows: list[list[object]] = []
    for abnormality, lesion in enumerate(lesions, start=1):
        crop, mask = _write_lesion(image, f"{image.folder}_{abnormality}", lesion, stored)
        # A line break ends one of the paths: the mask's in the mass tables, the crop's in the
        # others.
        if lesion.kind == "calcification":
            crop += "\n"
        else:
            mask += "\n"
        facts = (
            mammogram.density,
            _side(mammogram),
            mammogram.view,
            abnormality,
            *_facts(mammogram, lesion),
        )
        rows.append([*facts, 3, image.printed(1), crop, mask])
    return rows


def _write_lesion(
    image: _Series, folder: str, lesion: Lesion, stored: NDArray[np.uint16]
) -> tuple[str, str]:
    """Write crop and mask; return their paths as the table prints them."""
    swapped = image.form.swapped
    masks = image._replace(folder=folder, description="ROI mask images")
    crops = masks._replace(description="cropped images") if swapped else masks
    crop_number, mask_number = (1, 2) if lesion.kind != "calcification" else (2, 1)
    if swapped:
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
    printed = crops.printed(crop_number), masks.printed(mask_number)
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
