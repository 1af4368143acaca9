"""Draw what the phantom's breasts hold: skin line, nipple, muscle, masses and clusters.

Nothing is rendered here; `tfmammo.archives.phantom` does that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.mammogram import Laterality, LesionKind, Pathology, View

# px, px, mm per px
ROWS = 1024
COLS = 832
SPACING = 0.2

Field = NDArray[np.float32]

VIEWS: tuple[View, View] = ("CC", "MLO")
_SHAPES_BY_ODDS = ("round", "oval", "lobular", "irregular")
_MARGINS = ("circumscribed", "microlobulated", "indistinct", "spiculated")
_SHAPE_ODDS = {"benign": (0.3, 0.4, 0.25, 0.05), "malignant": (0.08, 0.12, 0.2, 0.6)}
_MARGIN_ODDS = {"benign": (0.65, 0.2, 0.15, 0.0), "malignant": (0.04, 0.18, 0.28, 0.5)}


@dataclass(frozen=True)
class Key:
    """What a mammogram is rendered from."""

    seed: int
    patient: int
    laterality: Laterality
    view: View
    healthy: bool

    def rng(self, stream: int, of_view: bool = True) -> np.random.Generator:
        """Return an own stream of random numbers, shared by both views unless `of_view`."""
        view = VIEWS.index(self.view) + 1 if of_view else 0
        return np.random.default_rng(
            [self.seed, self.patient, "LR".index(self.laterality), view, stream]
        )


@dataclass(frozen=True)
class Anatomy:
    """One breast in one view, chest wall at column 0."""

    skin: NDArray[np.float64]  # [rows], the column where the breast ends
    nipple: tuple[float, float]  # (row, col)
    density: int  # 1 to 4
    # where the muscle's edge meets the upper and the left border, (col, row)
    pectoral: tuple[float, float] | None


@dataclass(frozen=True)
class Finding:
    """A lesion before it is drawn."""

    kind: LesionKind
    pathology: Pathology
    outline: NDArray[np.float32]  # [n, 2], (row, col), chest wall at column 0
    shape: str | None = None
    margin: str | None = None
    contrast: float = 0.0
    specks: NDArray[np.float32] | None = None  # of a cluster


def draw_anatomy(key: Key) -> Anatomy:
    """Draw skin line, nipple, density and muscle of one breast in one view."""
    of_patient = np.random.default_rng([key.seed, key.patient, 1])
    density = int(of_patient.choice(4, p=(0.15, 0.4, 0.32, 0.13))) + 1
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
        near = nipple + np.array([-0.08, 0, 0.08, 0.18, 0.26, 0.31])
        knots = np.concatenate([[-0.2, 0.0, 0.2, 0.4], near, [1.02, 1.2]])
        widths = [0.46, 0.55, 0.71, 0.91, 0.985, 1.0, 0.975, 0.83, 0.56, 0.26, 0.14, 0.12]
        edges = depth * np.array(widths)
        pectoral = (rng.uniform(0.28, 0.42) * COLS, rng.uniform(0.46, 0.66) * ROWS)
        blur = 26
    rows = np.arange(-ROWS // 4, ROWS + ROWS // 4)  # a blur needs neighbours at the border
    skin = np.interp(rows, knots * ROWS, edges * COLS)
    skin = cv2.GaussianBlur(skin[:, None], (1, 0), sigmaX=1, sigmaY=blur)[:, 0]
    skin = skin[ROWS // 4 : ROWS // 4 + ROWS]
    tip = 18 * np.exp(-(((np.arange(ROWS) - nipple * ROWS) / rng.uniform(13, 17)) ** 4))
    column = float(np.interp(nipple * ROWS, np.arange(ROWS), skin))
    return Anatomy(skin + tip, (nipple * ROWS, column), density, pectoral)


def draw_findings(key: Key, anatomy: Anatomy) -> list[Finding]:
    """Draw what the lesions of a breast are, and where and how they project in one view."""
    if key.healthy:
        return []
    breast = key.rng(1, of_view=False)
    view = key.rng(1)
    findings: list[Finding] = []
    for _ in range(1 + int(breast.random() < 0.25)):
        pathology: Pathology = "malignant" if breast.random() < 0.5 else "benign"
        shape = str(breast.choice(_SHAPES_BY_ODDS, p=_SHAPE_ODDS[pathology]))
        margin = str(breast.choice(_MARGINS, p=_MARGIN_ODDS[pathology]))
        radius = float(np.clip(breast.lognormal(np.log(10.5), 0.32), 5.5, 17)) / SPACING
        contrast = breast.uniform(*((0.14, 0.26) if pathology == "malignant" else (0.11, 0.22)))
        center, radius = _draw_place(view, anatomy, breast.uniform(0.2, 0.8), radius, findings)
        outline = center + contour(view, shape, margin, radius)
        findings.append(Finding("mass", pathology, outline, shape, margin, contrast))
    if breast.random() < 0.3:
        pathology = "benign"
        if any(finding.pathology == "malignant" for finding in findings):
            pathology = "malignant"
        depth, radius = breast.uniform(0.2, 0.8), breast.uniform(3, 7) / SPACING
        center, radius = _draw_place(view, anatomy, depth, radius, findings)
        findings.append(_draw_cluster(view, center, radius, pathology))
    return findings


def _draw_place(
    rng: np.random.Generator, anatomy: Anatomy, depth: float, radius: float, others: list[Finding]
) -> tuple[NDArray[np.float32], float]:
    """Draw a centre at `depth` of the way from nipple to chest wall; what finds no room shrinks.

    It is away from skin, muscle and other lesions.
    """
    row, col = anatomy.nipple
    while True:
        for _ in range(30):
            aside, along = rng.uniform(-0.26, 0.22) * ROWS, rng.uniform(-20, 20)
            center = np.array([row + aside, col * (1 - depth) + along], np.float32)
            reach = 1.3 * radius + 24
            near = np.arange(int(max(center[0] - reach, 0)), int(min(center[0] + reach, ROWS)))
            fits = (
                reach < center[0] < ROWS - reach
                and center[1] > reach
                and (anatomy.skin[near] > center[1] + reach).all()
            )
            apart = (np.hypot(*(center - other.outline.mean(axis=0))) for other in others)
            if (
                fits
                and muscle_distance(anatomy, center[0], center[1]) < -0.7 * radius
                and all(distance > 2 * radius + 80 for distance in apart)
            ):
                return center, radius
        radius = 0.93 * radius
        depth = 0.5 + 0.95 * (depth - 0.5)


def muscle_distance(anatomy: Anatomy, row: Any, col: Any) -> Any:
    """Return the distance from the pectoral muscle's edge, px, positive within the muscle."""
    if anatomy.pectoral is None:
        return np.full(np.broadcast_shapes(np.shape(row), np.shape(col)), -np.inf)
    top, left = anatomy.pectoral
    bulge = 0.14 * top * np.sin(np.pi * np.clip(row / left, 0, 1))  # the edge is slightly convex
    return (1 - row / left - (col - bulge) / top) / np.hypot(1 / left, 1 / top)


def contour(
    rng: np.random.Generator, shape: str, margin: str, radius: float
) -> NDArray[np.float32]:
    """Draw a closed outline of a mass around (0, 0): float32 [180, 2], (row, col), px.

    Args:
        rng: Source of randomness.
        shape: Irregular, lobular, oval or round.
        margin: Circumscribed, microlobulated, indistinct or spiculated.
        radius: About, px.
    """
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    distance = 1 + _draw_ripple(rng, angle, range(2, 5), 0.03)
    if shape == "lobular":
        depth = rng.uniform(0.22, 0.32)
        lobes = np.abs(np.sin(rng.integers(3, 5) / 2 * angle + rng.uniform(0, np.pi)))
        distance += depth * lobes - 0.16
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
    waves = [
        size * rng.normal() * 2 / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
        for order in orders
    ]
    return np.sum(waves, axis=0)


def _draw_cluster(
    rng: np.random.Generator, center: NDArray[np.float32], radius: float, pathology: Pathology
) -> Finding:
    places = rng.normal(0, 0.42 * radius, (int(rng.integers(7, 24)), 2))
    specks = center + places.clip(-radius, radius)
    angle = np.arange(8) * np.pi / 4
    ring = 5 * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    around = (specks[:, None] + ring).reshape(-1, 2).astype(np.float32)
    hull = cv2.convexHull(around)[:, 0]
    return Finding("calcification", pathology, hull, specks=specks.astype(np.float32))
