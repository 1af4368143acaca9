"""Pairs of mammograms that differ by one lesion, and their controls.

A method (tfmammo.synthesis.renderers) renders a lesion into a place. Its change is then scaled to
the requested contrast and margin. With T the tissue, R the rendered region, w the margin's weight,

    after = T + k w (R - T),    k so that the mean of after - T inside the outline is the contrast

so contrast means the same for every method, and nothing else differs within a pair. w rises from 0
at the outline to 1 at `softness` of the lesion's radius; without softness w is 1, also beyond the
outline, where networks fade. Curves are fitted to the contrast left after clipping and rounding.

Controls have the same outline at the same place, with the same w, and k of 1 at most:

    self    the tissue of that place, inserted into itself: the method's artefacts alone
    sham    other normal tissue of the same breast: a seam, but no lesion

Methods that draw a lesion cannot be given tissue, and have no controls.

A real lesion is removed the same way: Poisson editing inserts other normal tissue of the breast
over it and a rim around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import ceil, pi, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo import archives
from tfmammo.apps.stress.config import REMOVAL, MethodConfig, Place, StressConfig, Tissue
from tfmammo.apps.stress.detectors import KNOWN, StressedDetector, read_unknown
from tfmammo.archives.stored import Stored
from tfmammo.data import sampling
from tfmammo.errors import ArchiveError, DataError
from tfmammo.mammogram import SHAPES, Box, Lesion, Mammogram, Skipped
from tfmammo.synthesis import lesion_bank
from tfmammo.synthesis.generators import resolve_handle
from tfmammo.synthesis.lesion_bank import LesionBank, LesionPatch, select_lesions
from tfmammo.synthesis.placement import TargetMammogram, scale_shape
from tfmammo.synthesis.recipe import TransformRecord
from tfmammo.synthesis.renderers import (
    BORDER,
    DirectRenderer,
    LesionCandidate,
    PlacedLesion,
    Rendered,
    Renderer,
    make_renderer,
)
from tfmammo.synthesis.shapes import NamedShapes, draw_shape
from tfmammo.synthesis.synthesizer import find_margins, record_place

TRIES = 30  # places drawn for one lesion
MOST_GAIN = 8.0  # a change that must grow more than this does not show a lesion
RIM = 0.15  # of a lesion's radius, and RIM_PX, are removed around it
RIM_PX = 3


@dataclass(frozen=True)
class Condition:
    """A cell of the grid: a value of each of the config's lists."""

    contrast: float
    size: float
    softness: float
    tissue: Tissue
    place: Place


@dataclass(frozen=True, eq=False)
class Pair:
    """A mammogram without and with one lesion."""

    method: str  # its name, or REMOVAL
    before: Mammogram
    after: Mammogram
    box: Box
    condition: Condition | None  # None of a removal
    contrast: float  # mean intensity really added inside the outline, of 1
    size: float  # diameter of a disc of the lesion's area, in the config's unit
    controls: dict[str, Mammogram] = field(default_factory=dict)  # "self" and "sham", if any


class DrawnRenderer(DirectRenderer):
    """Adds a smooth dome inside the outline, and no texture."""

    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """Yield each lesion's support and the intensities in it."""
        for placed in lesions:
            mask = placed.blend_mask.mask
            depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
            dome = np.sqrt(1 - (1 - np.clip(depth / depth.max(), 0, 1)) ** 2)
            top, left, bottom, right = placed.blend_mask.support
            # What is beyond [0, 1] is clipped after scaling.
            yield placed.blend_mask.support, target.image[top:bottom, left:right, 0] + 0.1 * dome


@dataclass(frozen=True, eq=False)
class Inserter:
    """A method, loaded with its network and its lesions."""

    name: str
    renderer: Renderer
    bank: LesionBank | None  # None of a method that draws its lesions

    @staticmethod
    def load(
        name: str,
        method: MethodConfig,
        config: StressConfig,
        detectors: Collection[StressedDetector] = (),
    ) -> Inserter:
        """Load a method without lesions of patients whom a detector was trained on."""
        if method.renderer == "drawn":
            return Inserter(name, DrawnRenderer("drawn"), None)
        uri = config.tracking_uri
        folder = resolve_handle(method.generator, uri) if method.generator else None
        renderer = make_renderer(method.renderer, folder, method.feather)
        if method.renderer in ("infilling", "can"):
            return Inserter(name, renderer, None)
        data = config.lesions or config.data
        lesions = select_lesions(read_unknown(data, detectors, Skipped()), data)
        return Inserter(name, renderer, LesionBank.select(lesions, data))

    def draw(
        self, mammogram: Mammogram, diameter: float, random: np.random.Generator
    ) -> LesionCandidate:
        """Draw a lesion of a diameter, native px of the mammogram."""
        if self.bank is None:
            shape = SHAPES[random.integers(len(SHAPES))]
            outline, origin = draw_shape(NamedShapes(shape), random)  # type: ignore[arg-type]
            factor = diameter / _measure_diameter(outline)
            sides = [max(3, round(factor * side)) for side in outline.shape]
            return LesionCandidate(scale_shape(outline, *sides), "mass", origin)
        trained_on = self.renderer.trained_on
        lesion = self.bank.draw(mammogram, random, (1.0, 1.0), 180.0, trained_on)
        record = lesion.record.model_copy(
            update={"factor": diameter / _measure_diameter(lesion.mask)}
        )
        source = next(
            source
            for source in self.bank.lesions
            if (source.mammogram.image_id, source.number) == (record.image_id, record.number)
        )
        scaled = lesion_bank.transform(source, record, mammogram)
        return self.renderer.prepare_lesion(scaled, mammogram, ())


class Breast:
    """Where in a mammogram tissue is fatty or dense, central or peripheral."""

    def __init__(self, target: TargetMammogram) -> None:
        self.target = target
        rows, cols = target.breast.shape
        step = target.step
        image = np.ascontiguousarray(target.image[: rows * step, : cols * step, 0])
        self.greys = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA)
        self.depth = cv2.distanceTransform(target.breast, cv2.DIST_L2, 5)
        inside = target.breast == 1
        if not inside.any():
            raise DataError("no breast is found in it")
        self.middle = float(np.median(self.greys[inside]))
        self.deepest = float(self.depth.max())

    def classify(self, box: Box) -> tuple[Tissue, Place]:
        """Classify the tissue and the depth of a box, native px."""
        step = self.target.step
        top, left, bottom, right = box
        cells = self.greys[top // step : ceil(bottom / step), left // step : ceil(right / step)]
        row = min((top + bottom) // 2 // step, self.depth.shape[0] - 1)
        col = min((left + right) // 2 // step, self.depth.shape[1] - 1)
        tissue: Tissue = "dense" if float(cells.mean()) >= self.middle else "fatty"
        place: Place = "central" if self.depth[row, col] >= self.deepest / 2 else "peripheral"
        return tissue, place


def list_conditions(config: StressConfig) -> list[Condition]:
    """List the conditions of the pairs of one method, in random order.

    Whole grids are repeated, and of the last one a random part is taken.
    """
    grid = [
        Condition(*cell)
        for cell in product(
            config.contrasts, config.sizes, config.softness, config.tissues, config.places
        )
    ]
    random = np.random.default_rng(config.seed)
    conditions: list[Condition] = []
    while len(conditions) < config.pairs:
        conditions += [grid[number] for number in random.permutation(len(grid))]
    return conditions[: config.pairs]


def make_pairs(
    config: StressConfig, detectors: Collection[StressedDetector], skipped: Skipped
) -> Iterator[Pair]:
    """Make all pairs, mammogram after mammogram; `skipped` notes those that are impossible."""
    every = read_unknown(config.data, detectors, skipped)
    suitable = [each for each in every if config.mammograms == "all" or sampling.is_normal(each)]
    if not suitable:
        unseen = " that no detector was trained on" * (KNOWN in skipped.reasons.values())
        raise DataError(
            f"none of {len(every)} mammograms{unseen} is normal; mammograms=all takes others"
        )
    order = np.random.default_rng([config.seed, 1]).permutation(len(suitable))
    inserters = [
        Inserter.load(name, each, config, detectors) for name, each in config.methods.items()
    ]
    conditions = list_conditions(config)
    for turn, index in enumerate(order.tolist()):
        mammogram = suitable[index]
        wanted = list(enumerate(conditions))[turn :: len(order)]
        if not wanted:
            break
        try:
            stored = archives.read_stored(mammogram)
        except ArchiveError as error:
            skipped.add(mammogram.image_id, error)
            continue
        for inserter in inserters:
            for number, condition in wanted:
                random = sampling.random_stream(config.seed, mammogram.image_id, number)
                try:
                    yield insert(inserter, mammogram, stored, condition, config, random)
                except ValueError as error:
                    skipped.add(mammogram.image_id, f"{inserter.name}, pair {number}: {error}")


def insert(
    inserter: Inserter,
    mammogram: Mammogram,
    stored: Stored,
    condition: Condition,
    config: StressConfig,
    random: np.random.Generator,
) -> Pair:
    """Insert one lesion, and make the controls."""
    renderer = inserter.renderer
    diameter = condition.size / _get_spacing(mammogram, config)
    candidate = inserter.draw(mammogram, diameter, random)
    target = TargetMammogram(stored.image(), mammogram, renderer.data)
    for lesion in mammogram.lesions:
        target.occupy(lesion.box)
    place = _draw_place(target, candidate, renderer, random, (condition.tissue, condition.place))
    rendered = _render(renderer, target, place, candidate, random)
    weights = _weigh_margin(rendered.inside, condition.softness)
    change = rendered.change * weights
    mean = float(change[rendered.inside == 1].mean())
    if mean * MOST_GAIN < condition.contrast:
        raise DataError(f"the method adds {mean:.4f} on average, too little to scale")
    gain = condition.contrast / mean
    after, contrast = rendered.apply(target, stored, gain * change)
    if contrast <= 0:
        raise DataError("nothing of the contrast is left after rounding")
    controls: dict[str, Mammogram] = {}
    if config.controls and inserter.bank:
        target.occupy(rendered.support)
        other = _draw_place(target, candidate, renderer, random, (condition.tissue, None))
        for name, corner in {"self": place, "sham": other}.items():
            tissue = _take_tissue(target, corner, candidate)
            again = _render(renderer, target, place, tissue, random)
            control, _ = rendered.apply(target, stored, min(1.0, gain) * weights * again.change)
            controls[name] = _replace(mammogram, control)
    return Pair(
        inserter.name,
        _replace(mammogram, stored),
        _replace(mammogram, after),
        rendered.box,
        condition,
        contrast,
        _measure_diameter(candidate.mask) * _get_spacing(mammogram, config),
        controls,
    )


def make_removals(
    config: StressConfig, detectors: Collection[StressedDetector], skipped: Skipped
) -> Iterator[Pair]:
    """Remove real lesions, at most `removals` of them; `skipped` notes those that stay."""
    if not config.removals:
        return
    every = read_unknown(config.data, detectors, Skipped())  # noted with the pairs
    try:
        sources = LesionBank.select(select_lesions(every, config.data), config.data).lesions
    except DataError as error:
        skipped.add("removals", str(error))
        return
    order = np.random.default_rng([config.seed, 2]).permutation(len(sources))
    count = 0
    for index in order.tolist():
        source = sources[index]
        mammogram = source.mammogram
        random = sampling.random_stream(config.seed, mammogram.image_id, index)
        try:
            yield remove(mammogram, source.lesion, config, random)
        except ValueError as error:
            skipped.add(mammogram.image_id, f"removal of lesion {source.number}: {error}")
            continue
        count += 1
        if count == config.removals:
            return


def remove(
    mammogram: Mammogram, lesion: Lesion, config: StressConfig, random: np.random.Generator
) -> Pair:
    """Remove one real lesion by Poisson editing of other normal tissue of the same breast."""
    stored = archives.read_stored(mammogram)
    renderer = DirectRenderer("poisson")
    target = TargetMammogram(stored.image(), mammogram, renderer.data)
    for other in mammogram.lesions:
        target.occupy(other.box)
    mask = lesion.mask(mammogram.rows, mammogram.cols)
    diameter = _measure_diameter(mask)
    reach = 2 * ceil(RIM * diameter / 2 + RIM_PX) + 1
    mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    left, top, width, height = cv2.boundingRect(mask)
    crop = np.ascontiguousarray(mask[top : top + height, left : left + width])
    candidate = LesionCandidate(crop, lesion.kind, "a real lesion's place")
    corner = _draw_place(target, candidate, renderer, random, (None, None))
    tissue = _take_tissue(target, corner, candidate)
    rendered = _render(renderer, target, (top, left), tissue, random)
    after, removed = rendered.apply(target, stored, rendered.change)
    size = diameter * (_find_spacing(mammogram, config) or np.nan)
    before = _replace(mammogram, stored)
    return Pair(REMOVAL, before, _replace(mammogram, after), lesion.box, None, removed, size)


def _measure_diameter(mask: NDArray[np.uint8]) -> float:
    """Measure the diameter of a disc of a mask's area, px."""
    return 2 * sqrt(float(mask.sum()) / pi)


def _find_spacing(mammogram: Mammogram, config: StressConfig) -> float | None:
    if config.unit == "px":
        return 1.0
    return sqrt(mammogram.spacing[0] * mammogram.spacing[1]) if mammogram.spacing else None


def _get_spacing(mammogram: Mammogram, config: StressConfig) -> float:
    spacing = _find_spacing(mammogram, config)
    if spacing is None:
        raise DataError("its mm per px are not stated, and sizes are in mm; unit=px takes px")
    return spacing


def _draw_place(
    target: TargetMammogram,
    candidate: LesionCandidate,
    renderer: Renderer,
    random: np.random.Generator,
    wanted: tuple[Tissue | None, Place | None],
) -> tuple[int, int]:
    """Draw (top, left) of a box on free breast, of the wanted tissue and depth (None: any)."""
    height, width = candidate.mask.shape
    margins = find_margins(renderer, candidate, target.mammogram)
    breast = Breast(target)
    for _ in range(TRIES):
        top, left = target.draw_place((height, width), margins, random)
        found = breast.classify((top, left, top + height, left + width))
        if all(want in (None, have) for want, have in zip(wanted, found, strict=True)):
            return top, left
    words = " and ".join(word for word in wanted if word)
    raise DataError(f"no place in {words} tissue was found for a lesion of {height} x {width} px")


@dataclass(frozen=True, eq=False)
class _RenderedLesion:
    """What rendering one lesion changes in a mammogram."""

    box: Box
    support: Box
    change: NDArray[np.float64]  # of intensities in the support
    inside: NDArray[np.uint8]  # the lesion's mask in the support

    def apply(
        self, target: TargetMammogram, stored: Stored, change: NDArray[np.float64]
    ) -> tuple[Stored, float]:
        """Add a change in the support; also return the mean inside the mask after rounding."""
        top, left, bottom, right = self.support
        region = np.s_[top:bottom, left:right, 0]
        grey = np.clip(target.image[region] + change, 0, 1).astype(np.float32)
        after = stored.with_greys(target.image, [(self.support, grey)])
        added = (after.image() - target.image)[region]
        return after, float(added[self.inside == 1].mean())


def _render(
    renderer: Renderer,
    target: TargetMammogram,
    corner: tuple[int, int],
    candidate: LesionCandidate,
    random: np.random.Generator,
) -> _RenderedLesion:
    placement, blend_mask = renderer.place(*corner, candidate, target.mammogram)
    placed = record_place(candidate, placement, blend_mask, target.mammogram, random)
    ((support, grey),) = renderer.render(target, [placed])
    first_row, first_col, last_row, last_col = support
    tissue = target.image[first_row:last_row, first_col:last_col, 0]
    inside = np.zeros(tissue.shape, np.uint8)
    top, left, bottom, right = placement.box
    inside[top - first_row : bottom - first_row, left - first_col : right - first_col] = (
        placement.mask
    )
    return _RenderedLesion(placement.box, support, grey.astype(np.float64) - tissue, inside)


def _weigh_margin(mask: NDArray[np.uint8], softness: float) -> NDArray[np.float64]:
    """Compute w of the module, float64 of the mask's shape."""
    if not softness:
        return np.ones(mask.shape)
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    ramp = np.clip(depth / (softness * depth.max()), 0, 1).astype(np.float64)
    return ramp * ramp * (3 - 2 * ramp)


def _take_tissue(
    target: TargetMammogram, corner: tuple[int, int], candidate: LesionCandidate
) -> LesionCandidate:
    """Take tissue of the mammogram as a lesion of the candidate's outline."""
    mammogram = target.mammogram
    top, left = corner
    rows, cols = candidate.mask.shape
    padded = np.pad(target.image[..., 0], BORDER, mode="edge")
    image = padded[top : top + rows + 2 * BORDER, left : left + cols + 2 * BORDER]
    record = TransformRecord(
        archive=mammogram.archive,
        image_id=mammogram.image_id,
        patient_id=mammogram.patient_id,
        number=0,
        sha256="",
        pathology=None,
        angle=0.0,
        factor=1.0,
        mirrored=False,
        trained_on=None,
    )
    patch = LesionPatch(candidate.kind, candidate.mask, np.ascontiguousarray(image), BORDER, record)
    return LesionCandidate(candidate.mask, candidate.kind, "tissue", patch)


def _replace(mammogram: Mammogram, stored: Stored) -> Mammogram:
    return mammogram.with_pixels(partial(Stored.image, stored))
