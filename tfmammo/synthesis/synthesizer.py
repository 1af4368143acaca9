"""The synthesizer: lesions drawn, placed and rendered in one mammogram, in memory.

`tfmammo synthesize` makes sets with it, and the editor single mammograms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfmammo.archives import coco
from tfmammo.archives.stored import Stored
from tfmammo.data import sampling
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis.compositing import BlendMask
from tfmammo.synthesis.config import Margins
from tfmammo.synthesis.lesion_bank import LesionBank
from tfmammo.synthesis.placement import Placement, TargetMammogram, scale_shape
from tfmammo.synthesis.recipe import (
    REASONS,
    InsertedLesion,
    Recipe,
    describe_existing_lesions,
    explain,
)
from tfmammo.synthesis.renderers import LesionCandidate, PlacedLesion, Renderer
from tfmammo.synthesis.shapes import GeneratedShapes, ShapeSource, draw_shape

TRIES = 20  # sizes, shapes and places drawn for one mass


@dataclass(frozen=True, eq=False)
class Synthesizer:
    """Inserts lesions into mammograms.

    Attributes:
        lesions: Real lesions to insert. None where masses are made up.
        shapes: Shapes of made-up masses. None where lesions are real.
    """

    renderer: Renderer
    lesions: LesionBank | None = None
    shapes: ShapeSource | None = None

    @property
    def trained_on(self) -> frozenset[str]:
        """Patients that its networks were trained on."""
        of_renderer = self.renderer.trained_on or frozenset()
        if isinstance(self.shapes, GeneratedShapes):
            return of_renderer | self.shapes.network.trained_on
        return of_renderer

    def insert(self, recipe: Recipe, mammogram: Mammogram, stored: Stored) -> tuple[Recipe, Stored]:
        """Insert the masses of one item into a mammogram, in memory."""
        target = TargetMammogram(stored.image(), mammogram, self.renderer.data)
        random = sampling.random_stream(recipe.config.seed, mammogram.image_id, recipe.number)
        existing = describe_existing_lesions(mammogram)
        recipe = recipe.model_copy(update={"own": existing, "generator": self.renderer.identity})
        lesions, notes = self.plan(recipe, target, random)
        records = tuple(lesion.record for lesion in lesions)
        recipe = recipe.model_copy(update={"lesions": records, "notes": notes})
        return recipe, render(target, stored, lesions, self.renderer)

    def plan(
        self, recipe: Recipe, target: TargetMammogram, random: np.random.Generator
    ) -> tuple[list[PlacedLesion], tuple[str, ...]]:
        """Draw the masses of one item: how many, their sizes, shapes and places."""
        config = recipe.config
        for lesion in target.mammogram.lesions:
            target.occupy(lesion.box)
        count = int(random.integers(config.masses[0], config.masses[1] + 1))
        placed: list[PlacedLesion] = []
        while len(placed) < count:
            try:
                placed.append(self._draw_and_place(recipe, target, random))
            except REASONS as error:
                reason = explain(error, config.archive_folders)
                if count > 1:
                    reason = f"{len(placed)} of {count} masses fit: {reason}"
                if len(placed) < config.masses[0]:
                    raise DataError(reason) from None
                return placed, (reason,)
        return placed, ()

    def _draw_and_place(
        self, recipe: Recipe, target: TargetMammogram, random: np.random.Generator
    ) -> PlacedLesion:
        """Draw one mass, and place it on free tissue, which is occupied then."""
        reason: Exception = DataError()
        for _ in range(TRIES):
            try:
                candidate = self._draw(recipe, target.mammogram, random)
                return self._place(candidate, recipe, target, random)
            except REASONS as error:
                reason = error
        raise reason

    def _draw(
        self, recipe: Recipe, mammogram: Mammogram, random: np.random.Generator
    ) -> LesionCandidate:
        config = recipe.config
        if self.lesions:
            trained_on, used = self.renderer.trained_on, self.renderer.used
            lesion = self.lesions.draw(
                mammogram, random, config.resize, config.rotate, trained_on, used
            )
            seeds = (_draw_seed(random) for _ in range(TRIES))
            return self.renderer.prepare_lesion(lesion, mammogram, seeds)
        assert self.shapes
        size = config.size
        if size is None:
            assert recipe.sizes
            size = recipe.sizes.draw(random, mammogram.spacing)
        outline, origin = draw_shape(self.shapes, random)
        return LesionCandidate(scale_shape(outline, *size), "mass", origin)

    def _place(
        self,
        candidate: LesionCandidate,
        recipe: Recipe,
        target: TargetMammogram,
        random: np.random.Generator,
    ) -> PlacedLesion:
        centre = recipe.config.centre
        mammogram = target.mammogram
        height, width = candidate.mask.shape
        if centre:
            top, left = centre[0] - height // 2, centre[1] - width // 2
        else:
            margins = find_margins(self.renderer, candidate, mammogram)
            by_rule = recipe.config.places == "rule"
            top, left = target.draw_place((height, width), margins, random, by_rule)
        placement, blend_mask = self.renderer.place(top, left, candidate, mammogram)
        if not target.is_free(blend_mask.support):
            raise DataError(
                "the place asked for is not entirely free breast tissue"
                if centre
                else "no normal tissue is left around it"
            )
        target.occupy(blend_mask.support)
        return record_place(candidate, placement, blend_mask, mammogram, random)


def find_margins(renderer: Renderer, candidate: LesionCandidate, mammogram: Mammogram) -> Margins:
    """Find how far a lesion's support reaches beyond its box, native px.

    The renderer alone knows, once the lesion has a place: it is placed in the middle for a try.
    """
    height, width = candidate.mask.shape
    middle = ((mammogram.rows - height) // 2, (mammogram.cols - width) // 2)
    trial, blend_mask = renderer.place(*middle, candidate, mammogram)
    before = [trial.box[axis] - blend_mask.support[axis] for axis in (0, 1)]
    behind = [blend_mask.support[axis] - trial.box[axis] for axis in (2, 3)]
    return before[0], before[1], behind[0], behind[1]


def record_place(
    candidate: LesionCandidate,
    placement: Placement,
    blend_mask: BlendMask,
    mammogram: Mammogram,
    random: np.random.Generator,
) -> PlacedLesion:
    """Record where a lesion is, for its recipe and its renderer."""
    record = InsertedLesion(
        kind=candidate.kind,
        box=placement.box,
        window=placement.window,
        area=int(candidate.mask.sum()),
        region=coco.encode(candidate.mask, placement.box, mammogram.rows, mammogram.cols),
        shape=candidate.origin,
        seed=_draw_seed(random) if candidate.seed is None else candidate.seed,
        graft=candidate.lesion.record if candidate.lesion else None,
    )
    return PlacedLesion(record, placement, blend_mask, candidate)


def render(
    target: TargetMammogram, stored: Stored, lesions: Sequence[PlacedLesion], renderer: Renderer
) -> Stored:
    """Render a mammogram with its masses."""
    return stored.with_greys(target.image, renderer.render(target, lesions))


def _draw_seed(random: np.random.Generator) -> int:
    return int(random.integers(2**63))
