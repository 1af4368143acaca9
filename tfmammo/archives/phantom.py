"""Render procedural mammograms: an archive that needs no files.

`tfmammo.archives.writers` puts it on disk in other archives' forms.

Everything follows from (seed, patient): which breasts were imaged, how dense they are, which masses
and clusters they hold. Records and outlines are made without rendering; `pixels()` renders, bit for
bit the same every time. The archive of a smaller `count` is the beginning of that of a larger one.

A mammogram is: a smooth skin line with a nipple; a plateau of compressed tissue that rounds off
towards the skin; fat and fibroglandular tissue from Gaussian fields with power 1/f^3 (Burgess 1999:
mammograms have exponents near 3), the glandular part gathered behind the nipple and streaked
towards it; ligament-like strands; on MLO views the pectoral muscle; masses and calcifications added
to that; quantum noise; a lead marker. One breast has the same lesions at the same depth in both
views. An outline is the core of its mass: spicules radiate from it and stay outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.mammogram import (
    Laterality,
    Lesion,
    LesionKind,
    Mammogram,
    Pathology,
    Skipped,
    View,
    hash_id,
)

# px, px, mm per px
ROWS = 1024
COLS = 832
SPACING = 0.2

Field = NDArray[np.float32]

_VIEWS: tuple[View, View] = ("CC", "MLO")
_SHAPES = ("round", "oval", "lobular", "irregular")
_MARGINS = ("circumscribed", "microlobulated", "indistinct", "spiculated")
_SHAPE_ODDS = {"benign": (0.3, 0.4, 0.25, 0.05), "malignant": (0.08, 0.12, 0.2, 0.6)}
_MARGIN_ODDS = {"benign": (0.65, 0.2, 0.15, 0.0), "malignant": (0.04, 0.18, 0.28, 0.5)}
_BIRADS = {"normal": ("1",), "benign": ("2", "3"), "malignant": ("4b", "4c", "5")}


@dataclass(frozen=True)
class _Key:
    """What a mammogram is rendered from."""

    seed: int
    patient: int
    laterality: Laterality
    view: View
    healthy: bool

    def rng(self, stream: int, of_view: bool = True) -> np.random.Generator:
        """Return an own stream of random numbers, shared by both views unless `of_view`."""
        view = _VIEWS.index(self.view) + 1 if of_view else 0
        return np.random.default_rng(
            [self.seed, self.patient, "LR".index(self.laterality), view, stream]
        )


@dataclass(frozen=True)
class _Anatomy:
    """One breast in one view, chest wall at column 0.

    Attributes:
        skin: float [rows], the column where the breast ends.
        nipple: (row, col).
        density: 1 to 4.
        pectoral: Where the muscle's edge meets the upper and the left border, (col, row), or None.
    """

    skin: NDArray[np.float64]
    nipple: tuple[float, float]
    density: int
    pectoral: tuple[float, float] | None


@dataclass(frozen=True)
class _Finding:
    """A lesion before it is drawn.

    Attributes:
        outline: [n, 2], (row, col), chest wall at column 0.
        specks: Specks of a cluster.
    """

    kind: LesionKind
    pathology: Pathology
    outline: NDArray[np.float32]
    shape: str | None = None
    margin: str | None = None
    contrast: float = 0.0
    specks: NDArray[np.float32] | None = None


def read(
    root: Path | None = None, skipped: Skipped | None = None, *, count: int = 48, seed: int = 0
) -> list[Mammogram]:
    """Make the phantom archive; at least three quarters of it carry one or two masses.

    The others are normal.

    Args:
        root: Unused, there are no files.
        skipped: Unused, there are no files.
        count: How many mammograms.
        seed: Seed of everything.

    Returns:
        `count` records of 1024 x 832 px at 0.2 mm, rendered when their pixels are asked for.

    Examples:
        >>> mammogram = read(count=1)[0]
        >>> mammogram.view, mammogram.pathology, mammogram.lesions[0].kind
        ('CC', 'malignant', 'mass')
        >>> mammogram.pixels().shape
        (1024, 832, 1)
    """
    keys: list[_Key] = []
    patient = breasts = 0
    while len(keys) < count:
        sides: tuple[Laterality, ...] = ("L", "R")
        if np.random.default_rng([seed, patient]).random() < 0.4:
            sides = sides[patient % 2 :][:1]
        for laterality in sides:
            # every fourth breast is healthy, as the other breast of a patient mostly is
            breasts += 1
            keys.extend(_Key(seed, patient, laterality, view, breasts % 4 == 0) for view in _VIEWS)
        patient += 1
    return [_make_mammogram(key) for key in keys[:count]]


def _make_mammogram(key: _Key) -> Mammogram:
    anatomy = _draw_anatomy(key)
    lesions = tuple(_make_lesion(key, finding) for finding in _draw_findings(key, anatomy))
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


def _make_lesion(key: _Key, finding: _Finding) -> Lesion:
    outline = finding.outline
    if key.laterality == "R":
        outline = outline * np.array([1, -1], np.float32) + np.array([0, COLS - 1], np.float32)
    details = {"pathology": finding.pathology, "shape": finding.shape, "margin": finding.margin}
    return Lesion.from_outline(finding.kind, outline, ROWS, COLS, **details)


def _draw_anatomy(key: _Key) -> _Anatomy:
    # of the patient
    density = (
        int(np.random.default_rng([key.seed, key.patient, 1]).choice(4, p=(0.15, 0.4, 0.32, 0.13)))
        + 1
    )
    size = key.rng(0, of_view=False).uniform(0.9, 1.08)
    rng = key.rng(0)
    if key.view == "CC":
        depth = rng.uniform(0.62, 0.74) * size
        half = rng.uniform(0.37, 0.41) * size
        middle = rng.uniform(0.48, 0.53)
        place = np.linspace(-1, 1, 41)
        knots = middle + half * place
        edges = depth * (1 - np.abs(place) ** 2.3) ** 0.62
        nipple = middle + rng.uniform(-0.03, 0.03)
        pectoral = None
        blur = 7
    else:
        depth = rng.uniform(0.66, 0.77) * size
        nipple = rng.uniform(0.58, 0.64)
        knots = np.concatenate(
            [
                [-0.2, 0.0, 0.2, 0.4],
                nipple + np.array([-0.08, 0, 0.08, 0.18, 0.26, 0.31]),
                [1.02, 1.2],
            ]
        )
        edges = depth * np.array(
            [0.46, 0.55, 0.71, 0.91, 0.985, 1.0, 0.975, 0.83, 0.56, 0.26, 0.14, 0.12]
        )
        pectoral = (rng.uniform(0.28, 0.42) * COLS, rng.uniform(0.46, 0.66) * ROWS)
        blur = 26
    rows = np.arange(-ROWS // 4, ROWS + ROWS // 4)  # a blur needs neighbours at the border
    skin = np.interp(rows, knots * ROWS, edges * COLS)
    skin = cv2.GaussianBlur(skin[:, None], (1, 0), sigmaX=1, sigmaY=blur)[:, 0][
        ROWS // 4 : ROWS // 4 + ROWS
    ]
    tip = 18 * np.exp(-(((np.arange(ROWS) - nipple * ROWS) / rng.uniform(13, 17)) ** 4))
    column = float(np.interp(nipple * ROWS, np.arange(ROWS), skin))
    return _Anatomy(skin + tip, (nipple * ROWS, column), density, pectoral)


def _draw_findings(key: _Key, anatomy: _Anatomy) -> list[_Finding]:
    """Draw the lesions of one breast in one view.

    What they are is of the breast, where and how they project is of the view.
    """
    if key.healthy:
        return []
    breast = key.rng(1, of_view=False)
    view = key.rng(1)
    findings: list[_Finding] = []
    for _ in range(1 + int(breast.random() < 0.25)):
        pathology: Pathology = "malignant" if breast.random() < 0.5 else "benign"
        shape = str(breast.choice(_SHAPES, p=_SHAPE_ODDS[pathology]))
        margin = str(breast.choice(_MARGINS, p=_MARGIN_ODDS[pathology]))
        radius = float(np.clip(breast.lognormal(np.log(10.5), 0.32), 5.5, 17)) / SPACING
        contrast = (
            breast.uniform(0.14, 0.26) if pathology == "malignant" else breast.uniform(0.11, 0.22)
        )
        center, radius = _draw_place(view, anatomy, breast.uniform(0.2, 0.8), radius, findings)
        outline = center + contour(view, shape, margin, radius)
        findings.append(_Finding("mass", pathology, outline, shape, margin, contrast))
    if breast.random() < 0.3:
        pathology = (
            "malignant"
            if any(finding.pathology == "malignant" for finding in findings)
            else "benign"
        )
        center, radius = _draw_place(
            view, anatomy, breast.uniform(0.2, 0.8), breast.uniform(3, 7) / SPACING, findings
        )
        findings.append(_draw_cluster(view, center, radius, pathology))
    return findings


def _draw_place(
    rng: np.random.Generator, anatomy: _Anatomy, depth: float, radius: float, others: list[_Finding]
) -> tuple[NDArray[np.float32], float]:
    """Draw a centre at `depth` of the way from nipple to chest wall.

    It lies away from skin, muscle and other lesions. What finds no room shrinks.
    """
    row, col = anatomy.nipple
    while True:
        for _ in range(30):
            center = np.array(
                [row + rng.uniform(-0.26, 0.22) * ROWS, col * (1 - depth) + rng.uniform(-20, 20)],
                np.float32,
            )
            reach = 1.3 * radius + 24
            near = np.arange(int(max(center[0] - reach, 0)), int(min(center[0] + reach, ROWS)))
            fits = (
                reach < center[0] < ROWS - reach
                and center[1] > reach
                and (anatomy.skin[near] > center[1] + reach).all()
            )
            if (
                fits
                and _muscle_distance(anatomy, center[0], center[1]) < -0.7 * radius
                and all(
                    np.hypot(*(center - other.outline.mean(axis=0))) > 2 * radius + 80
                    for other in others
                )
            ):
                return center, radius
        radius = 0.93 * radius
        depth = 0.5 + 0.95 * (depth - 0.5)


def _muscle_distance(anatomy: _Anatomy, row: Any, col: Any) -> Any:
    """Return the distance from the pectoral muscle's edge, px, positive within the muscle.

    It is far away where the view has no muscle.
    """
    if anatomy.pectoral is None:
        return np.full(np.broadcast_shapes(np.shape(row), np.shape(col)), -np.inf)
    top, left = anatomy.pectoral
    bulge = 0.14 * top * np.sin(np.pi * np.clip(row / left, 0, 1))  # the edge is slightly convex
    return (1 - row / left - (col - bulge) / top) / np.hypot(1 / left, 1 / top)


def contour(
    rng: np.random.Generator, shape: str, margin: str, radius: float
) -> NDArray[np.float32]:
    """Draw a closed outline of a mass around (0, 0).

    Args:
        shape: Irregular, lobular, oval or round.
        margin: Circumscribed, microlobulated, indistinct or spiculated.
        radius: About, px.

    Returns:
        float32 [180, 2], (row, col), px.
    """
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    distance = 1 + _draw_ripple(rng, angle, range(2, 5), 0.03)
    if shape == "lobular":
        distance += (
            rng.uniform(0.22, 0.32)
            * np.abs(np.sin(rng.integers(3, 5) / 2 * angle + rng.uniform(0, np.pi)))
            - 0.16
        )
    elif shape == "irregular":
        distance += _draw_ripple(rng, angle, range(2, 12), 0.085)
    if margin == "microlobulated":
        distance += 0.06 * np.abs(np.sin(rng.integers(9, 14) / 2 * angle + rng.uniform(0, np.pi)))
    elif margin == "spiculated":
        distance += _draw_ripple(rng, angle, range(6, 20), 0.1)
    points = np.stack([distance * np.sin(angle), distance * np.cos(angle)], axis=1) * radius
    stretch = rng.uniform(1.35, 1.75) if shape == "oval" else rng.uniform(1.0, 1.15)
    turn = rng.uniform(0, np.pi)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (points * [stretch**0.5, stretch**-0.5] @ turned).astype(np.float32)


def _draw_ripple(
    rng: np.random.Generator, angle: NDArray, orders: Iterable[int], size: float
) -> NDArray:
    return np.sum(
        [
            size * rng.normal() * 2 / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
            for order in orders
        ],
        axis=0,
    )


def _draw_cluster(
    rng: np.random.Generator, center: NDArray[np.float32], radius: float, pathology: Pathology
) -> _Finding:
    specks = center + rng.normal(0, 0.42 * radius, (int(rng.integers(7, 24)), 2)).clip(
        -radius, radius
    )
    ring = 5 * np.stack(
        [np.sin(np.arange(8) * np.pi / 4), np.cos(np.arange(8) * np.pi / 4)], axis=1
    )
    around = (specks[:, None] + ring).reshape(-1, 2).astype(np.float32)
    hull = cv2.convexHull(around)[:, 0]
    return _Finding("calcification", pathology, hull, specks=specks.astype(np.float32))


def _render(key: _Key) -> NDArray[np.float32]:
    """Render the mammogram of a key: float32 [1024, 832, 1] in [0, 1]."""
    anatomy = _draw_anatomy(key)
    rng = key.rng(2)
    image = _render_tissue(rng, anatomy)
    for finding in _draw_findings(key, anatomy):
        image += (
            _render_mass(rng, finding) if finding.kind == "mass" else _render_cluster(rng, finding)
        )
    image = _expose(rng, image, anatomy)
    if key.laterality == "R":
        image = np.ascontiguousarray(image[:, ::-1])
    _render_mark(image, key)
    return np.clip(image, 0, 1)[..., np.newaxis]


def _draw_power_law(
    rng: np.random.Generator, exponent: float, longest: float = 420.0
) -> tuple[Field, Field]:
    """Draw two independent Gaussian fields [1024, 832] of power 1/f^exponent and variance 1.

    The power is flat beyond the longest wavelength (px).
    """
    frequency = np.hypot(np.fft.fftfreq(ROWS)[:, None], np.fft.fftfreq(COLS)[None])
    amplitude = np.maximum(frequency, 1 / longest).astype(np.float32) ** np.float32(-exponent / 2)
    amplitude[0, 0] = 0
    white = rng.standard_normal((2, ROWS, COLS), np.float32)
    field = np.fft.ifft2((white[0] + 1j * white[1]) * amplitude)
    return tuple((part / part.std()).astype(np.float32) for part in (field.real, field.imag))


def _render_tissue(rng: np.random.Generator, anatomy: _Anatomy) -> Field:
    """Render the breast without lesions and noise, float32 [1024, 832]."""
    rows = np.arange(ROWS, dtype=np.float32)[:, None]
    cols = np.arange(COLS, dtype=np.float32)[None]
    fine, coarse = _draw_power_law(rng, 3.0)
    strands, clumps = _draw_power_law(rng, 3.4, longest=160.0)
    gland = _gland_share(anatomy, rows, cols, coarse, _bend_to_nipple(anatomy, rows, cols, clumps))
    over = np.clip(
        _muscle_distance(anatomy, rows, cols) / (5 + rows / 60), -30, 30
    )  # its lower end fades
    muscle = 1 / (1 + np.exp(-over))
    gland *= 1 - 0.85 * muscle
    # Ligaments stand where a smooth field crosses zero: curved, thin, and interrupted where another
    # field is low.
    strands = cv2.GaussianBlur(strands, (0, 0), 14)
    ligaments = (
        np.exp(-((strands / 0.09) ** 2))
        * np.clip(0.3 + 0.7 * clumps, 0, 1)
        * (1 - 0.5 * gland)
        * (1 - muscle)
    )
    image = 0.27 + 0.045 * fine + gland * (0.25 + 0.045 * clumps + 0.035 * fine) + 0.06 * ligaments
    return (image + muscle * (0.24 + 0.004 * over + 0.015 * clumps)).astype(np.float32)


def _gland_share(
    anatomy: _Anatomy, rows: Field, cols: Field, coarse: Field, streaks: Field
) -> Field:
    """Return the share of the tissue that is fibroglandular, 0 to 1.

    It is a cone behind the nipple, rising to the armpit on MLO views.
    """
    row, col = anatomy.nipple
    behind = (col - cols) / col
    aside = (rows - row) / ROWS + (0.22 * behind if anatomy.pectoral else 0)
    cone = np.exp(
        -(((behind - 0.38) / (0.24 + 0.07 * anatomy.density)) ** 2)
        - (aside / (0.09 + 0.04 * anatomy.density)) ** 2
    )
    return 1 / (
        1
        + np.exp(
            -5.5 * ((0.75 + 0.2 * anatomy.density) * cone - 0.62 + 0.3 * coarse + 0.22 * streaks)
        )
    )


def _bend_to_nipple(anatomy: _Anatomy, rows: Field, cols: Field, field: Field) -> Field:
    """Map a field to polar coordinates around the nipple, stretched along the radius.

    Ducts and septa run to the nipple.
    """
    down = rows - anatomy.nipple[0]
    left = anatomy.nipple[1] + 60 - cols
    across = np.arctan2(down, left) * np.float32(500)
    along = np.hypot(down, left) * np.float32(0.35)
    return cv2.remap(
        field, across % COLS, along % ROWS, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )


def _expose(rng: np.random.Generator, tissue: Field, anatomy: _Anatomy) -> Field:
    """Return what the detector sees: thickness, skin, air, tone and quantum noise."""
    inside = (np.arange(COLS)[None] < anatomy.skin[:, None]).astype(np.uint8)
    wall = 160  # the breast goes on behind the borders it touches, there is no skin there
    padded = cv2.copyMakeBorder(inside, wall, wall, wall, 1, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[wall:-wall, wall:-1]
    depth = cv2.GaussianBlur(depth, (0, 0), 1.5)
    thickness = np.sqrt(1 - (1 - np.clip(depth / 75, 0, 1)) ** 2)
    skin = 0.08 * np.exp(-(((depth - 5) / 4) ** 2))
    image = thickness * tissue + skin
    noise = cv2.GaussianBlur(rng.standard_normal((ROWS, COLS), np.float32), (0, 0), 0.6)
    return (image + 0.03 * np.sqrt(np.clip(image, 0, 1)) * noise + 0.02).astype(np.float32)


def _render_mass(rng: np.random.Generator, finding: _Finding) -> Field:
    """Render what one mass adds.

    It is densest in its middle and falls off over an edge as soft as its margin.
    """
    mask = cv2.fillPoly(
        np.zeros((ROWS, COLS), np.uint8), [_round_fixed_point(finding.outline)], 1, shift=4
    )
    inner = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    outer = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    radius = inner.max()
    softness = {
        "circumscribed": 1.0,
        "microlobulated": 1.4,
        "indistinct": 0.11 * radius,
        "spiculated": 0.06 * radius,
    }
    edge = 1 / (
        1 + np.exp(-np.clip((inner - outer) / max(softness[str(finding.margin)], 1.0), -30, 30))
    )
    dome = np.sqrt(1 - (1 - np.clip(inner / radius, 0, 1)) ** 2)
    added = finding.contrast * edge * (0.5 + 0.5 * dome)
    if finding.margin == "spiculated":
        added = np.maximum(added, finding.contrast * _render_spicules(rng, finding.outline))
    return added.astype(np.float32)


def _render_spicules(rng: np.random.Generator, outline: NDArray[np.float32]) -> Field:
    """Render thin bent strands from within the outline outwards, 0 to 0.8.

    They thin out, and few of them reach far.
    """
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
            cv2.polylines(
                canvas,
                [_round_fixed_point(path[part - 1 : part + 1])],
                False,
                230 - 18 * part,
                thickness,
                cv2.LINE_AA,
                4,
            )
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), 1.1)


def _render_cluster(rng: np.random.Generator, finding: _Finding) -> Field:
    """Render what calcifications add.

    Specks are below a millimetre; benign ones are even, malignant ones of any size and drawn out.
    """
    canvas = np.zeros((ROWS, COLS), np.uint8)
    for speck in finding.specks if finding.specks is not None else ():
        end = speck + (
            rng.normal(0, 2.2, 2).clip(-3.5, 3.5) if finding.pathology == "malignant" else 0
        )
        thickness = int(rng.integers(1, 4)) if finding.pathology == "malignant" else 2
        cv2.polylines(
            canvas,
            [_round_fixed_point(np.stack([speck, end]))],
            False,
            int(rng.integers(140, 255)),
            thickness,
            cv2.LINE_AA,
            4,
        )
    return 0.4 * cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), 0.7)


def _round_fixed_point(points: NDArray) -> NDArray[np.int32]:
    return np.rint(points[:, ::-1] * 16).astype(np.int32)


def _render_mark(image: Field, key: _Key) -> None:
    """Render the technician's lead letters, in the air above the breast."""
    letters = np.zeros((ROWS, COLS), np.uint8)
    origin = (COLS - 190, 70) if key.laterality == "L" else (40, 70)
    cv2.putText(
        letters,
        f"{key.laterality} {key.view}",
        origin,
        cv2.FONT_HERSHEY_DUPLEX,
        1.3,
        230,
        3,
        cv2.LINE_AA,
    )
    np.maximum(image, cv2.GaussianBlur(letters.astype(np.float32) / 255, (0, 0), 1), out=image)
