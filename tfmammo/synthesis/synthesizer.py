"""What a synthesis reads once, and how it inserts lesions into one mammogram.

`Synthesizer.load` reads the networks, the lesion bank, the source of shapes and the sizes of a
config. Workers are sent the small `NetworkExports`, and load the same networks by path.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfmammo.archives import coco
from tfmammo.archives.stored import Stored
from tfmammo.data import sampling
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis.compositing import BlendMask
from tfmammo.synthesis.config import Margins, Sizes, SynthesisConfig
from tfmammo.synthesis.generators import MaskGenerator, load_mask_generator, resolve_handle
from tfmammo.synthesis.lesion_bank import LesionBank
from tfmammo.synthesis.placement import Placement, TargetMammogram, scale_shape
from tfmammo.synthesis.recipe import (
    REASONS,
    InsertedLesion,
    Recipe,
    describe_existing_lesions,
    explain,
)
from tfmammo.synthesis.renderers import LesionCandidate, PlacedLesion, Renderer, make_renderer
from tfmammo.synthesis.shapes import (
    GeneratedShapes,
    NamedShapes,
    RealOutlines,
    ShapeFiles,
    ShapeSource,
    draw_shape,
)
from tfmammo.synthesis.sources import Sources, fit_sizes

log = logging.getLogger(__name__)

TRIES = 20  # sizes, shapes and places drawn for one mass
HINT = "; train it first, or insert real masses without a network: renderer=poisson generator=null"


@dataclass(frozen=True)
class NetworkExports:
    """Where the networks of a synthesis are; small, so that workers are sent it.

    Attributes:
        generator: The renderer's network.
        gan: The mask GAN.
        weights: Hashes of both when the work began, see export.load_identified.
    """

    generator: Path | None = None
    gan: Path | None = None
    weights: tuple[str | None, str | None] = (None, None)

    @staticmethod
    def find(config: SynthesisConfig) -> NetworkExports:
        """Find the networks of a config."""

        def resolve(key: str, handle: str | None, hint: str = "") -> Path | None:
            try:
                return resolve_handle(handle, config.tracking_uri) if handle else None
            except ValueError as error:
                raise ConfigError(f"{key}: {error}{hint}") from None

        generator = resolve("generator", config.generator, HINT)
        return NetworkExports(generator, resolve("shapes.gan", config.shapes.gan))


@dataclass(frozen=True, eq=False)
class Synthesizer:
    """Inserts lesions into mammograms.

    Attributes:
        lesions: Real lesions to insert. None where masses are made up.
        shapes: Shapes of made-up masses. None where lesions are real.
        gan: The mask GAN, where shapes come from one.
        sizes: The Gaussian that sizes are drawn from. None where they are given, or the lesions'
            own.
        size_patients: Patients whose lesions may have given shapes or sizes to made-up masses.
        exports: Where its networks were loaded from.
    """

    renderer: Renderer
    lesions: LesionBank | None = None
    shapes: ShapeSource | None = None
    gan: MaskGenerator | None = None
    sizes: Sizes | None = None
    size_patients: frozenset[str] = frozenset()
    exports: NetworkExports = NetworkExports()

    @staticmethod
    def load(
        config: SynthesisConfig, sources: Sources, exports: NetworkExports | None = None
    ) -> Synthesizer:
        """Read all that a config names.

        Args:
            sources: Of its archives; notes lesions that can't be used.
            exports: In a worker: those of the synthesizer that the work began with. Sizes are not
                fitted again, because they are in the recipes.

        Raises:
            ConfigError: A model URI leads to no network, or no such archive.
            ExportError: A network can't be used.
            DataError: The networks, lesions or shapes can't be used, or a network was replaced
                since the work began.
        """
        found = exports or NetworkExports.find(config)
        renderer = make_renderer(
            config.renderer, found.generator, config.feather, config.whole_patch
        )
        gan = load_mask_generator(found.gan) if found.gan else None
        weights = (renderer.identity.get("weights"), gan.identity["weights"] if gan else None)
        if exports and exports.weights != weights:
            raise DataError("a generator was replaced by another training run meanwhile")
        found = replace(found, weights=weights)
        kept = _kept.get(config)
        if exports and kept and kept.exports == found:
            return kept
        sizes = config.sizes
        size_patients: frozenset[str] = frozenset()
        if config.fits_sizes and not exports:
            sizes = fit_sizes(sources.lesions, sources.skipped)
            log.info("sizes of %d lesions: %s", sizes.count, sizes.model_dump(exclude={"count"}))
        lesions, shapes = _select_lesions(config, sources, gan)
        if not exports:
            if lesions:
                log.info("%d real lesions", len(lesions.find_usable(sources.skipped)))
            if config.fits_sizes or isinstance(shapes, RealOutlines):
                size_patients = frozenset(source.mammogram.patient_id for source in sources.lesions)
        _kept.clear()
        _kept[config] = Synthesizer(renderer, lesions, shapes, gan, sizes, size_patients, found)
        return _kept[config]

    @property
    def trained_on(self) -> frozenset[str]:
        """Patients that its networks were trained on."""
        of_gan = self.gan.trained_on if self.gan else frozenset()
        return (self.renderer.trained_on or frozenset()) | of_gan

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
            lesion = self.lesions.draw(
                mammogram,
                random,
                config.resize,
                config.rotate,
                self.renderer.trained_on,
                self.renderer.used,
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
            top = centre[0] - height // 2
            left = centre[1] - width // 2
        else:
            margins = find_margins(self.renderer, candidate, mammogram)
            by_rule = recipe.config.places == "rule"
            top, left = target.draw_place((height, width), margins, random, by_rule)
        placement, blend_mask = self.renderer.place(top, left, candidate, mammogram)
        if not target.is_free(blend_mask.support):
            raise DataError(
                "the place asked for is not wholly free breast tissue"
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
    return blend_mask.compute_margins(trial.box)


def record_place(
    candidate: LesionCandidate,
    placement: Placement,
    blend_mask: BlendMask,
    mammogram: Mammogram,
    random: np.random.Generator,
) -> PlacedLesion:
    """Record where a lesion lies, for its recipe and its renderer."""
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


# Of this process, by config: the synthesizer that was loaded last.
_kept: dict[SynthesisConfig, Synthesizer] = {}


def _select_lesions(
    config: SynthesisConfig, sources: Sources, gan: MaskGenerator | None
) -> tuple[LesionBank | None, ShapeSource | None]:
    """Select the real lesions of a config, or the shapes of its made-up masses."""
    data = config.lesion_data
    if config.real_lesions:
        bank = LesionBank.select(sources.lesions, data, config.pathology, config.of_patients)
        return bank, None
    if gan:
        return None, GeneratedShapes(gan, config.shapes.plausible)
    if config.shapes.files:
        return None, ShapeFiles.find(config.shapes.files)
    if config.shapes.drawn:
        return None, NamedShapes(config.shapes.drawn)
    return None, RealOutlines.select(sources.lesions, data, config.of_patients)


def _draw_seed(random: np.random.Generator) -> int:
    return int(random.integers(2**63))
