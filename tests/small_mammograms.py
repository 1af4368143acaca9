"""Mammograms of a few thousand pixels and archives of them, for tests that need known content."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.archives.writers.cdd_cesm import describe, list_regions, write_tables
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Mammogram

ROWS = 60
COLS = 44
# What a DICOM file may say of its patient and study; nobody has such a name.
PATIENT = {
    "PatientName": "QUIBBLE^ZEPHYRINE",
    "PatientID": "PIDXW77310",
    "PatientBirthDate": "19430217",
    "PatientSex": "F",
    "StudyDate": "20091123",
    "AccessionNumber": "ACCVN99344",
    "StudyID": "7",
    "ReferringPhysicianName": "GRUMBOLT^OTTOLINE",
}
SQUARE = np.float32([[10, 20], [10, 30], [18, 30], [18, 20]])


def ramp(first: float, last: float = 1.0) -> np.ndarray:
    """Intensities that rise from row to row: float32 [ROWS, COLS, 1]."""
    return np.linspace(first, last, ROWS * COLS, dtype=np.float32).reshape(ROWS, COLS, 1)


def draw_breast(
    seed: int, rows: int = 200, cols: int = 150, laterality: str = "L", reach: float = 0.85
) -> np.ndarray:
    """Half an ellipse of textured tissue on black: float32 [rows, cols, 1].

    Args:
        seed: Of the texture and its grain.
        rows: Px.
        cols: Px.
        laterality: L or R.
        reach: Part of the columns that is breast, 0 to 1.
    """
    random = np.random.default_rng(seed)
    row, col = np.mgrid[:rows, :cols]
    inside = ((row - rows / 2) / (0.47 * rows)) ** 2 + (col / (reach * cols)) ** 2 < 1
    texture = cv2.GaussianBlur(random.standard_normal((rows, cols)).astype(np.float32), (0, 0), 4)
    grain = random.standard_normal((rows, cols)).astype(np.float32)
    image = 0.4 + 0.05 * texture / texture.std() + 0.01 * grain
    image = np.where(inside, np.clip(image, 0.2, 0.9), 0.01).astype(np.float32)[..., None]
    return image[:, ::-1].copy() if laterality == "R" else image


def make_mammogram(
    number: int, image: np.ndarray, lesions: Sequence[Lesion] = (), **facts: object
) -> Mammogram:
    """Make a mammogram of patient p<number>, left and CC unless `facts` say otherwise.

    Args:
        number: Its image_id.
        image: Its pixels, float32 [rows, cols, 1] in [0, 1].
        lesions: Lesions on it.
        facts: Further fields of Mammogram.
    """
    rows, cols = image.shape[:2]
    content = {"patient_id": f"p{number}", "image_id": str(number), "laterality": "L", "view": "CC"}
    return Mammogram(
        **{"archive": "test", **content, **facts},
        rows=rows,
        cols=cols,
        read=partial(np.copy, image),
        lesions=tuple(lesions),
    )


def make_rectangle(
    top: int,
    left: int,
    bottom: int,
    right: int,
    kind: str = "mass",
    size: tuple[int, int] = (100, 120),
    **details: object,
) -> Lesion:
    """Make a lesion that covers these pixels, half-open, of a mammogram of (rows, cols) px."""
    corners = [[top, left], [top, right - 1], [bottom - 1, right - 1], [bottom - 1, left]]
    return Lesion.from_outline(kind, np.array(corners), *size, **details)


def draw_noise(rows: int = 100, cols: int = 120) -> np.ndarray:
    """Grey noise in [0.2, 0.8]: float32 [rows, cols, 1]."""
    return np.random.default_rng(0).uniform(0.2, 0.8, (rows, cols, 1)).astype(np.float32)


def draw_half(rows: int = 120, cols: int = 150) -> np.ndarray:
    """A breast that fills the left 90 columns, noise in [0.4, 0.6]; right of it black."""
    image = np.random.default_rng(5).uniform(0.4, 0.6, (rows, cols, 1)).astype(np.float32)
    image[:, 90:] = 0
    return image


def refuse() -> np.ndarray:
    """Fail as a broken file does."""
    raise ArchiveError("P1.jpg: broken")


def make_noisy(*lesions: Lesion, name: str = "a", read: object = draw_noise, **facts) -> Mammogram:
    """Make a mammogram of 100 x 120 px of noise, of patient p, that states nothing else."""
    known = {"patient_id": "p", "rows": 100, "cols": 120, "read": read, "lesions": lesions}
    return Mammogram(**{"archive": "test", "image_id": name, **known, **facts})


def make_normal(name: str = "n", read: object = draw_half, **facts: object) -> Mammogram:
    """Make a normal mammogram of half a breast."""
    return make_noisy(
        name=name, read=read, **{"rows": 120, "cols": 150, "pathology": "normal"}, **facts
    )


def noisy_disc(disc: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Intensities of a bright disc in noise: a bool array -> int64 of the same shape."""
    return 90 * disc + random.integers(20, 140, disc.shape)


def write_discs(
    root: Path,
    patients: int,
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray] = noisy_disc,
    jitter: int = 0,
) -> None:
    """Write an archive in CDD-CESM's form: a disc in two views of 96 px for each patient.

    Args:
        root: A folder.
        patients: How many.
        draw: Returns intensities in [0, 255] where a disc is, bool [96, 96].
        jitter: px by which an outline may be beside its disc.
    """
    random = np.random.default_rng(0)
    regions, clinical = [], []
    rows, cols = np.mgrid[:96, :96] - 48
    for patient in range(1, patients + 1):
        for view in ("CC", "MLO"):
            name = f"P{patient}_L_DM_{view}"
            radius = int(random.integers(12, 20))
            image = draw(np.hypot(rows, cols) < radius, random)
            Image.fromarray(image.astype(np.uint8)).save(root / f"{name}.jpg", quality=95)
            col = 48 + (int(random.integers(-jitter, jitter + 1)) if jitter else 0)
            circle = {"name": "circle", "cx": col, "cy": 48, "r": radius}
            regions += list_regions(name, [circle])
            clinical.append(describe(name, "Mass", "Malignant"))
    write_tables(root, regions, clinical)
