"""Find the breast and the pectoral muscle on a mammogram: pure functions of one image.

Both are found on a reduced copy and are good to one or two of its pixels. They serve preprocessing,
not measurement. Images are float32 [rows, cols, 1] in [0, 1], masks uint8 [rows, cols, 1], 0 or 1.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.mammogram import Box, Laterality, View, fill_outlines, keep_largest

Grey = NDArray[np.float32]  # [rows, cols], no channel
Region = NDArray[np.uint8]  # [rows, cols], 0 or 1

_WORKING = 512  # px along the longer side: the breast's outline is smooth at this scale
_FINDING = 256  # px along the longer side, for the muscle's edge


def breast_mask(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Find the breast: the largest connected region of tissue, its holes filled.

    On a copy of 512 px: scanner borders and padding (lines along the frame that are all black or
    all bright) are peeled off; tissue is what stands out from the darker class of log intensities
    (Otsu) by more than that class's own spread; its largest part after an opening is the breast, to
    which what the opening took off a smooth outline (nipple, folds) is given back, unless it is as
    bright as lead letters. Dark fat that reaches the frame is filled in. Where nothing is flat and
    darker than the rest, as in a magnified detail, all is breast; nothing of a constant image is.

    Source:
        Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9 (1979) 62.
    """
    rows, cols = image.shape[:2]
    grey = _shrink(image[..., 0], _WORKING)
    top, left, bottom, right = _peel_frame(grey)
    region = np.zeros(grey.shape, np.uint8)
    if bottom > top and right > left:
        inside = np.s_[top:bottom, left:right]
        region[inside] = _find_breast(grey[inside], max(2, round(0.025 * max(grey.shape))))
    return _enlarge(region, rows, cols)[..., None]


def remove_marks(image: NDArray[np.float32], mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Set letters, labels, tape marks and noise outside the breast to 0.

    What is on the breast stays: tape across the skin line is cut where it leaves the breast, a
    lead marker or a scar wire on the breast is not touched, and neither is a label that touches the
    breast along more than about a twentieth of the image's longer side.
    """
    return np.where(mask != 0, image, np.float32(0))


def _shrink(grey: Grey, longest: int) -> Grey:
    scale = min(1.0, longest / max(grey.shape))
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def _enlarge(region: Region, rows: int, cols: int) -> Region:
    # Linear and cut at a half, which bends the steps of the small grid into a smooth line.
    return (
        cv2.resize(region.astype(np.float32), (cols, rows), interpolation=cv2.INTER_LINEAR) >= 0.5
    ).astype(np.uint8)


def _peel_frame(grey: Grey) -> Box:
    """Peel black and bright bands off along the frame; return the box that is left.

    Bands may alternate; the box is half-open.
    """
    low, high = np.percentile(grey, (0.1, 99.9))
    black = grey <= low + 0.01 * (high - low)
    bright = grey >= low + 0.9 * (high - low)
    box = (0, 0, *grey.shape)
    last = None
    while box != last and box[0] < box[2] and box[1] < box[3]:
        last = box
        box = _peel_bands(black, box, 1.0, max(grey.shape))
        box = _peel_bands(
            bright, box, 0.95, max(grey.shape) // 16
        )  # a broader band is dense tissue
    return box


def _peel_bands(region: NDArray[np.bool_], box: Box, share: float, broadest: int) -> Box:
    """Peel bands off a box, in which at least `share` of every line is region."""
    top, left, bottom, right = box
    inside = region[top:bottom, left:right]
    if not inside.size:
        return box
    runs = []
    for lines in (inside, inside.T, inside[::-1], inside.T[::-1]):
        other = np.flatnonzero(lines.mean(axis=1) < share)
        run = int(other[0]) if len(other) else len(lines)
        runs.append(run if run <= broadest else 0)
    return top + runs[0], left + runs[1], bottom - runs[2], right - runs[3]


def _find_breast(grey: Grey, radius: int) -> Region:
    smooth = cv2.GaussianBlur(cv2.medianBlur(np.ascontiguousarray(grey), 5), (0, 0), 1)
    tissue = _find_tissue(smooth)
    # first, else the opening tears apart a breast of dark fat and thin strands
    whole = _fill_holes(keep_largest(tissue, connectivity=4))
    opened = keep_largest(_morph(cv2.MORPH_OPEN, whole, radius), connectivity=4)
    if not opened.any():  # an image of a few pixels
        return whole
    breast = _add_protrusions(smooth, whole, opened, radius)
    return _fill_holes(_morph(cv2.MORPH_CLOSE, _fill_holes(breast), radius))


def _find_tissue(grey: Grey) -> Region:
    """Find everything that is not air."""
    log = np.log(grey + 0.02)
    levels = np.rint(255 * (log - log.min()) / max(float(np.ptp(log)), 1e-6)).astype(np.uint8)
    split = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]
    dark = grey[levels <= split]
    light = grey[levels > split]
    if not light.size:
        return np.ones(grey.shape, np.uint8)
    air = float(np.median(dark))
    spread = 1.48 * float(np.median(np.abs(dark - air)))
    step = float(np.median(light)) - air
    if 3 * spread > 0.5 * step:  # no flat darker class: fat and glands, no air
        return np.ones(grey.shape, np.uint8)
    return (grey > air + max(4 * spread, 0.04 * step)).astype(np.uint8)


def _morph(operation: int, region: Region, radius: int) -> Region:
    """Open or close a region by a disc; the region continues beyond the frame."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    padded = cv2.copyMakeBorder(
        region, 2 * radius, 2 * radius, 2 * radius, 2 * radius, cv2.BORDER_REPLICATE
    )
    return cv2.morphologyEx(padded, operation, disc)[
        2 * radius : -2 * radius, 2 * radius : -2 * radius
    ]


def _add_protrusions(grey: Grey, tissue: Region, opened: Region, radius: int) -> Region:
    """Add what hangs on the opened breast within two radii, but for pieces as bright as lead."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4 * radius + 1, 4 * radius + 1))
    near = cv2.dilate(opened, disc) & tissue & (1 - opened)
    lead = np.percentile(grey, 99.9)
    breast = opened.copy()
    count, labels = cv2.connectedComponents(near, connectivity=4)
    for label in range(1, count):
        piece = labels == label
        if np.percentile(grey[piece], 90) < 0.9 * lead:
            breast[piece] = 1
    return keep_largest(breast, connectivity=4)


def _fill_holes(region: Region) -> Region:
    """Fill holes, and bays along the frame.

    Bays hold dark fat, not the air between breast and arm or a label.
    """
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = cv2.drawContours(np.zeros_like(region), contours, -1, 1, cv2.FILLED)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - whole, connectivity=4)
    share = stats[:, cv2.CC_STAT_AREA] / max(1, whole.sum())
    bay = np.arange(len(stats)) > 0
    for side, largest in (
        (0, 0.03),
        (-1, 0.03),
        ((slice(None), 0), 0.15),
        ((slice(None), -1), 0.15),
    ):
        line = labels[side]
        met = np.flatnonzero(whole[side])
        outside = np.ones(len(line), bool)
        if met.size:
            outside[met[0] : met[-1] + 1] = False
        bay[line[outside]] = False
        bay[line] &= share[line] < largest
    return whole | bay[labels].astype(np.uint8)


def pectoral_mask(image: NDArray[np.float32], laterality: Laterality) -> NDArray[np.uint8]:
    """Find the pectoral muscle of an MLO view; empty where no edge looks like the muscle's.

    On a copy of 256 px: the straight line from the upper border to the chest wall along which grey
    values fall most steadily from the upper inner corner outwards, as Karssemeijer's Hough
    transform finds it; then the path of steepest descent in a band around that line, by dynamic
    programming, as the muscle's edge is seldom straight. It is refused when the edge is faint or
    interrupted, when the muscle would be a sliver or half of the breast, or when it would not be
    brighter than what is next to it.

    It can't tell the muscle from a skin fold or an arm above the breast, and follows the straight
    line where a muscle's lower end fades. Do not call it for a CC view.

    Deviation:
        A path of least cost in place of its straight edge, as in Domingues et al., Pectoral muscle
        detection in mammograms based on the shortest path with endpoints learnt by SVMs, EMBC 2010.

    Source:
        Karssemeijer, Automated classification of parenchymal patterns in mammograms, Phys. Med.
        Biol. 43 (1998) 365 (line).
    """
    rows, cols = image.shape[:2]
    whole = breast_mask(image)[..., 0]
    grey = _shrink(image[..., 0], _FINDING)
    breast = _shrink(whole.astype(np.float32), _FINDING) >= 0.5
    if laterality == "R":
        grey = grey[:, ::-1]
        breast = breast[:, ::-1]
    region = np.zeros(grey.shape, np.uint8)
    if breast.any():
        left, top, width, height = cv2.boundingRect(breast.astype(np.uint8))
        box = np.s_[top : top + height, left : left + width]
        region[box] = _find_muscle(grey[box], breast[box])
    if laterality == "R":
        region = region[:, ::-1]
    return (_enlarge(region, rows, cols) & whole)[..., None]


def remove_pectoral(
    image: NDArray[np.float32], laterality: Laterality, view: View
) -> NDArray[np.float32]:
    """Set the pectoral muscle to 0 on an MLO view; return other views as they are.

    What is over the muscle goes with it: lymph nodes and, in a few views of a hundred, most of a
    lesion.
    """
    return (
        image
        if view != "MLO"
        else np.where(pectoral_mask(image, laterality) != 0, np.float32(0), image)
    )


def _find_muscle(grey: Grey, breast: NDArray[np.bool_]) -> Region:
    """Find the muscle in the breast's box, chest wall on the left; empty where none is visible."""
    nothing = np.zeros(grey.shape, np.uint8)
    log = np.log(np.where(breast, grey, np.median(grey[breast])) + np.float32(0.05))
    falls = _measure_falls(log, breast)
    line, steady = _find_line(falls, breast)
    if steady < 0.3:
        return nothing
    edge = _trace_edge(falls, *line)
    triangle = np.vstack([edge, [[-9, -9]]])
    muscle = fill_outlines([triangle], *grey.shape) & breast.astype(np.uint8)
    return muscle if _is_plausible(muscle, log, breast) else nothing


def _measure_falls(log: Grey, breast: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Measure how intensities fall downwards and to the right."""
    smooth = cv2.GaussianBlur(log, (0, 0), 2.5)
    falls = -np.stack(
        [cv2.Sobel(smooth, cv2.CV_32F, 0, 1), cv2.Sobel(smooth, cv2.CV_32F, 1, 0)], axis=-1
    )
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13))
    padded = cv2.copyMakeBorder(breast.astype(np.uint8), 13, 13, 13, 13, cv2.BORDER_REPLICATE)
    falls[cv2.erode(padded, disc)[13:-13, 13:-13] == 0] = 0
    strength = np.linalg.norm(falls, axis=-1)
    return (falls / max(float(np.percentile(strength[breast], 90)), 1e-6)).astype(np.float32)


def _find_line(
    falls: NDArray[np.float32], breast: NDArray[np.bool_]
) -> tuple[tuple[float, float], float]:
    """Find the steadiest line."""
    rows, cols = breast.shape
    width = np.flatnonzero(breast[: rows // 20 + 1].any(axis=0)).max(initial=0) + 1
    grid = np.meshgrid(
        np.linspace(0.14, 1.0, 56) * min(width, cols), np.linspace(0.12, 0.95, 56) * rows
    )
    top, left = (axis.ravel() for axis in grid)
    angle = np.degrees(np.arctan2(left, top))
    top, left = (axis[(angle > 40) & (angle < 82)] for axis in (top, left))
    if not len(top):
        return (0.0, 0.0), 0.0
    along = np.linspace(0.03, 0.97, 64)
    across = _project_falls(
        falls, np.outer(left, along), np.outer(top, 1 - along), 1 / left[:, None], 1 / top[:, None]
    )
    # Clipped, so that no single strong edge makes a line; long lines are preferred among equals.
    steady = np.clip(across, -1, 1).mean(axis=1)
    best = int(np.argmax(steady * np.hypot(top, left) ** 0.25))
    return (float(top[best]), float(left[best])), float(steady[best])


def _project_falls(
    falls: NDArray[np.float32], rows: NDArray, cols: NDArray, down: NDArray, right: NDArray
) -> NDArray:
    """Return the fall at points [n, m] in the direction (down, right)."""
    parts = (
        cv2.remap(
            np.ascontiguousarray(falls[..., axis]),
            cols.astype(np.float32),
            rows.astype(np.float32),
            cv2.INTER_LINEAR,
        )
        for axis in (0, 1)
    )
    norm = np.hypot(down, right)
    return sum(
        part * direction / norm for part, direction in zip(parts, (down, right), strict=True)
    )


def _trace_edge(falls: NDArray[np.float32], top: float, left: float) -> NDArray[np.float64]:
    """Trace the edge near a line, from beyond the upper border to beyond the chest wall."""
    length = np.hypot(top, left)
    reach = 12
    # of the line row / left + col / top = 1, away from the corner
    normal = np.array([top, left]) / length
    along = np.linspace(-0.1, 1.1, max(8, round(1.2 * length)))
    base = np.stack([left * along, top * (1 - along)], axis=-1)
    offset = np.arange(-reach, reach + 1)
    points = base[:, None] + offset[None, :, None] * normal
    across = _project_falls(falls, points[..., 0], points[..., 1], normal[0], normal[1])
    gain = np.sign(across) * np.sqrt(np.abs(across)) - 0.4 * (offset / reach) ** 2
    total = gain[0]
    came = np.zeros(gain.shape, int)
    for step in range(1, len(gain)):
        candidates = np.stack([np.roll(total, move) - 0.25 * abs(move) for move in (-1, 0, 1)])
        candidates[0, -1] = candidates[2, 0] = -np.inf
        choice = candidates.argmax(axis=0)
        came[step] = np.arange(len(offset)) - (choice - 1)
        total = gain[step] + candidates.max(axis=0)
    path = [int(total.argmax())]
    for step in range(len(gain) - 1, 0, -1):
        path.append(int(came[step][path[-1]]))
    smooth = cv2.GaussianBlur(
        offset[path[::-1]].astype(np.float64)[:, None], (1, 0), sigmaX=1, sigmaY=3
    )
    return base + smooth * normal


def _is_plausible(muscle: Region, log: Grey, breast: NDArray[np.bool_]) -> bool:
    """Whether a muscle is neither a sliver nor half of the breast, nor darker than its outside."""
    share = muscle.sum() / breast.sum()
    if not 0.015 < share < 0.5:
        return False
    beyond = cv2.distanceTransform(1 - muscle, cv2.DIST_L2, 5)
    within = cv2.distanceTransform(
        cv2.copyMakeBorder(muscle, 9, 9, 9, 9, cv2.BORDER_REPLICATE), cv2.DIST_L2, 5
    )[9:-9, 9:-9]
    inner = (muscle != 0) & (within < 9)
    outer = (beyond > 0) & (beyond < 9) & breast
    return bool(
        inner.any() and outer.any() and np.median(log[inner]) - np.median(log[outer]) > 0.05
    )
