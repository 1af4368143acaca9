"""Render procedural mammograms: an archive that needs no files.

`tests/archives/writers` puts it on disk in other archives' forms.

Everything follows from (seed, patient): which breasts were imaged, how dense they are, which masses
and clusters they hold. Records and outlines are made without rendering; `pixels()` renders, bit for
bit the same every time on processors of one kind: another kind's exponentials and blurs end in
other bits. The archive of a smaller `count` is the beginning of that of a larger one.

A mammogram is: a smooth skin line with a nipple; a plateau of compressed tissue that rounds off
towards the skin; fat and fibroglandular tissue from Gaussian fields with power 1/f^3 (Burgess 1999:
mammograms have exponents near 3), the glandular part gathered behind the nipple and streaked
towards it; ligament-like strands; on MLO views the pectoral muscle; masses and calcifications added
to that; quantum noise; a lead marker. One breast has the same lesions at the same depth in both
views. An outline is the core of its mass: spicules radiate from it and stay outside.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.phantom_anatomy import (
    COLS,
    ROWS,
    SPACING,
    VIEWS,
    Anatomy,
    Field,
    Finding,
    Key,
    draw_anatomy,
    draw_findings,
    muscle_distance,
)
from tfmammo.mammogram import (
    Laterality,
    Lesion,
    Mammogram,
    Pathology,
    Skipped,
    fill_outlines,
    hash_id,
)

_BIRADS = {"normal": ("1",), "benign": ("2", "3"), "malignant": ("4b", "4c", "5")}


def read(
    root: Path | None = None, skipped: Skipped | None = None, *, count: int = 48, seed: int = 0
) -> list[Mammogram]:
    """Make records of 1024 x 832 px at 0.2 mm, rendered when their pixels are asked for.

    At least three quarters of them carry one or two masses, the others are normal.

    Args:
        root: Not used.
        skipped: Not used.
        count: How many mammograms.
        seed: Seed of everything.

    Examples:
        >>> mammogram = read(count=1)[0]
        >>> mammogram.view, mammogram.pathology, mammogram.lesions[0].kind
        ('CC', 'malignant', 'mass')
        >>> mammogram.pixels().shape
        (1024, 832, 1)
    """
    keys: list[Key] = []
    patient = breasts = 0
    while len(keys) < count:
        sides: tuple[Laterality, ...] = ("L", "R")
        if np.random.default_rng([seed, patient]).random() < 0.4:
            sides = sides[patient % 2 :][:1]
        for laterality in sides:
            # every fourth breast is healthy, as the other breast of a patient mostly is
            breasts += 1
            keys.extend(Key(seed, patient, laterality, view, breasts % 4 == 0) for view in VIEWS)
        patient += 1
    return [_make_mammogram(key) for key in keys[:count]]


def _make_mammogram(key: Key) -> Mammogram:
    anatomy = draw_anatomy(key)
    lesions = tuple(_make_lesion(key, finding) for finding in draw_findings(key, anatomy))
    pathology: Pathology = "normal" if not lesions else "benign"
    if any(lesion.pathology == "malignant" for lesion in lesions):
        pathology = "malignant"
    return Mammogram(
        archive="phantom",
        patient_id=hash_id("phantom", f"{key.seed}/{key.patient}"),
        image_id=f"phantom-{key.seed}-{key.patient:04d}-{key.laterality}-{key.view}",
        rows=ROWS,
        cols=COLS,
        read=partial(_render, key),
        laterality=key.laterality,
        view=key.view,
        pathology=pathology,
        lesions=lesions,
        spacing=(SPACING, SPACING),
        birads=str(key.rng(3, of_view=False).choice(_BIRADS[pathology])),
        density=str(anatomy.density),
    )


def _make_lesion(key: Key, finding: Finding) -> Lesion:
    outline = finding.outline
    if key.laterality == "R":
        outline = outline * np.array([1, -1], np.float32) + np.array([0, COLS - 1], np.float32)
    details = {"pathology": finding.pathology, "shape": finding.shape, "margin": finding.margin}
    return Lesion.from_outline(finding.kind, outline, ROWS, COLS, **details)


def _render(key: Key) -> NDArray[np.float32]:
    """Render the mammogram of a key: float32 [1024, 832, 1] in [0, 1]."""
    anatomy = draw_anatomy(key)
    rng = key.rng(2)
    image = _render_tissue(rng, anatomy)
    for finding in draw_findings(key, anatomy):
        render = _render_mass if finding.kind == "mass" else _render_cluster
        image += render(rng, finding)
    image = _expose(rng, image, anatomy)
    if key.laterality == "R":
        image = np.ascontiguousarray(image[:, ::-1])
    _render_mark(image, key)
    return np.clip(image, 0, 1)[..., np.newaxis]


def _draw_power_law(
    rng: np.random.Generator, exponent: float, longest: float = 420.0
) -> tuple[Field, Field]:
    """Draw two independent Gaussian fields of power 1/f^exponent, flat beyond `longest` px."""
    frequency = np.hypot(np.fft.fftfreq(ROWS)[:, None], np.fft.fftfreq(COLS)[None])
    amplitude = np.maximum(frequency, 1 / longest).astype(np.float32) ** np.float32(-exponent / 2)
    amplitude[0, 0] = 0
    white = rng.standard_normal((2, ROWS, COLS), np.float32)
    field = np.fft.ifft2((white[0] + 1j * white[1]) * amplitude)
    return tuple((part / part.std()).astype(np.float32) for part in (field.real, field.imag))


def _render_tissue(rng: np.random.Generator, anatomy: Anatomy) -> Field:
    """Render the breast without lesions and noise, float32 [1024, 832]."""
    rows = np.arange(ROWS, dtype=np.float32)[:, None]
    cols = np.arange(COLS, dtype=np.float32)[None]
    fine, coarse = _draw_power_law(rng, 3.0)
    strands, clumps = _draw_power_law(rng, 3.4, longest=160.0)
    gland = _gland_share(anatomy, rows, cols, coarse, _bend_to_nipple(anatomy, rows, cols, clumps))
    distance = muscle_distance(anatomy, rows, cols)
    over = np.clip(distance / (5 + rows / 60), -30, 30)  # its lower end fades
    muscle = 1 / (1 + np.exp(-over))
    gland *= 1 - 0.85 * muscle
    # Ligaments are where a smooth field crosses zero: curved, thin, and interrupted where another
    # field is low.
    strands = cv2.GaussianBlur(strands, (0, 0), 14)
    ligaments = np.exp(-((strands / 0.09) ** 2)) * np.clip(0.3 + 0.7 * clumps, 0, 1)
    ligaments = ligaments * (1 - 0.5 * gland) * (1 - muscle)
    image = 0.27 + 0.045 * fine + gland * (0.25 + 0.045 * clumps + 0.035 * fine) + 0.06 * ligaments
    return (image + muscle * (0.24 + 0.004 * over + 0.015 * clumps)).astype(np.float32)


def _gland_share(
    anatomy: Anatomy, rows: Field, cols: Field, coarse: Field, streaks: Field
) -> Field:
    """Return the fibroglandular share: a cone behind the nipple, rising to the armpit on MLO."""
    row, col = anatomy.nipple
    behind = (col - cols) / col
    aside = (rows - row) / ROWS + (0.22 * behind if anatomy.pectoral else 0)
    cone = np.exp(
        -(((behind - 0.38) / (0.24 + 0.07 * anatomy.density)) ** 2)
        - (aside / (0.09 + 0.04 * anatomy.density)) ** 2
    )
    share = (0.75 + 0.2 * anatomy.density) * cone - 0.62 + 0.3 * coarse + 0.22 * streaks
    return 1 / (1 + np.exp(-5.5 * share))


def _bend_to_nipple(anatomy: Anatomy, rows: Field, cols: Field, field: Field) -> Field:
    """Stretch a field along the radius from the nipple, to which ducts and septa run."""
    down = rows - anatomy.nipple[0]
    left = anatomy.nipple[1] + 60 - cols
    across = np.arctan2(down, left) * np.float32(500)
    along = np.hypot(down, left) * np.float32(0.35)
    where = (across % COLS, along % ROWS)
    return cv2.remap(field, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _expose(rng: np.random.Generator, tissue: Field, anatomy: Anatomy) -> Field:
    """Return what the detector sees: thickness, skin, air, tone and quantum noise."""
    inside = (np.arange(COLS)[None] < anatomy.skin[:, None]).astype(np.uint8)
    wall = 160  # the breast goes on behind the borders it touches, without skin
    padded = cv2.copyMakeBorder(inside, wall, wall, wall, 1, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[wall:-wall, wall:-1]
    depth = cv2.GaussianBlur(depth, (0, 0), 1.5)
    thickness = np.sqrt(1 - (1 - np.clip(depth / 75, 0, 1)) ** 2)
    skin = 0.08 * np.exp(-(((depth - 5) / 4) ** 2))
    image = thickness * tissue + skin
    noise = cv2.GaussianBlur(rng.standard_normal((ROWS, COLS), np.float32), (0, 0), 0.6)
    return (image + 0.03 * np.sqrt(np.clip(image, 0, 1)) * noise + 0.02).astype(np.float32)


def _render_mass(rng: np.random.Generator, finding: Finding) -> Field:
    """Render what a mass adds, densest in its middle, with an edge as soft as its margin."""
    mask = fill_outlines([finding.outline], ROWS, COLS)
    inner = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    outer = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    radius = inner.max()
    softness = {
        "circumscribed": 1.0,
        "microlobulated": 1.4,
        "indistinct": 0.11 * radius,
        "spiculated": 0.06 * radius,
    }
    depth = (inner - outer) / max(softness[str(finding.margin)], 1.0)
    edge = 1 / (1 + np.exp(-np.clip(depth, -30, 30)))
    dome = np.sqrt(1 - (1 - np.clip(inner / radius, 0, 1)) ** 2)
    added = finding.contrast * edge * (0.5 + 0.5 * dome)
    if finding.margin == "spiculated":
        added = np.maximum(added, finding.contrast * _render_spicules(rng, finding.outline))
    return added.astype(np.float32)


def _render_spicules(rng: np.random.Generator, outline: NDArray[np.float32]) -> Field:
    """Render thin bent strands from within the outline outwards, few of which reach far."""
    center = outline.mean(axis=0)
    canvas = np.zeros((ROWS, COLS), np.uint8)
    for start in outline[rng.permutation(len(outline))[: rng.integers(18, 34)]]:
        reach = 1.2 + rng.exponential(0.35)
        bend = rng.normal(0, 0.3)
        steps = np.linspace(0.7, reach, 9)[:, None]
        across = (start - center)[::-1] * [1, -1] * bend
        path = center + (start - center) * steps + across * (steps - 0.7) ** 2
        for part in range(8, 0, -1):  # the strong inner parts last, over the ends of the weak ones
            thickness = 2 if part < 5 else 1
            _draw_line(canvas, path[part - 1 : part + 1], 230 - 18 * part, thickness)
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), 1.1)


def _render_cluster(rng: np.random.Generator, finding: Finding) -> Field:
    """Render calcifications: benign ones are even, malignant ones of any size and drawn out."""
    canvas = np.zeros((ROWS, COLS), np.uint8)
    for speck in finding.specks if finding.specks is not None else ():
        end, thickness = speck, 2
        if finding.pathology == "malignant":
            end = speck + rng.normal(0, 2.2, 2).clip(-3.5, 3.5)
            thickness = int(rng.integers(1, 4))
        _draw_line(canvas, np.stack([speck, end]), int(rng.integers(140, 255)), thickness)
    return 0.4 * cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), 0.7)


def _draw_line(canvas: NDArray[np.uint8], points: NDArray, grey: int, thickness: int) -> None:
    sixteenths = np.rint(points[:, ::-1] * 16).astype(np.int32)
    cv2.polylines(canvas, [sixteenths], False, grey, thickness, cv2.LINE_AA, shift=4)


def _render_mark(image: Field, key: Key) -> None:
    """Render the technician's lead letters, in the air above the breast."""
    letters = np.zeros((ROWS, COLS), np.uint8)
    origin = (COLS - 190, 70) if key.laterality == "L" else (40, 70)
    words = f"{key.laterality} {key.view}"
    cv2.putText(letters, words, origin, cv2.FONT_HERSHEY_DUPLEX, 1.3, 230, 3, cv2.LINE_AA)
    np.maximum(image, cv2.GaussianBlur(letters.astype(np.float32) / 255, (0, 0), 1), out=image)
