"""What a synthesis resolves once, and how it inserts lesions into one mammogram.

`Synthesizer.load` finds and reads the networks, the lesion bank, the source of shapes and the sizes
of a config. Every item gets that object and not the config. Workers are sent the small
`NetworkExports`, and load the same networks by path (`Synthesizer.reopen`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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
from tfmammo.synthesis.provenance import (
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


@dataclass(frozen=True)
class NetworkExports:
    """Where the networks of a synthesis lie; small, so that workers are sent it.

    Attributes:
        generator: The renderer's network.
        gan: The mask GAN.
        weights: Hashes of both when the work began, see export.load_identified.
    """

    generator: Path | None
    gan: Path | None
    weights: tuple[str | None, str | None] = (None, None)

    @staticmethod
    def find(config: SynthesisConfig) -> NetworkExports:
        """Find the networks of a config.

        Raises:
            ConfigError: A model URI leads to none.
        """
        hint = (
            "; train it first, or set real masses in without a network: renderer=poisson "
            "generator=null"
        )
        uri = config.tracking_uri
        return NetworkExports(
            _find_export("generator", config.generator, uri, hint),
            _find_export("shapes.gan", config.shapes.gan, uri),
        )


def _find_export(key: str, handle: str | None, uri: str | None, hint: str = "") -> Path | None:
    try:
        return resolve_handle(handle, uri) if handle else None
    except ValueError as error:
        raise ConfigError(f"{key}: {error}{hint}") from None


@dataclass(frozen=True, eq=False)
class Synthesizer:
    """Inserts lesions into mammograms.

    Attributes:
        renderer: Makes the grey values.
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
    exports: NetworkExports = NetworkExports(None, None)

    @staticmethod
    def load(config: SynthesisConfig, sources: Sources) -> Synthesizer:
        """Resolve all that a config names, and read it.

        Args:
            config: The config.
            sources: Of its archives; notes lesions that can't be used.

        Raises:
            ConfigError: A model URI leads to no network, or no such archive.
            ExportError: A network can't be used.
            DataError: A network, the lesions or the shapes can't be used.
            ArchiveError: No such archive.
        """
        exports = NetworkExports.find(config)
        renderer, gan = _load_networks(config, exports)
        exports = replace(exports, weights=_get_weights(renderer, gan))
        sizes = config.sizes
        if config.fits_sizes:
            sizes = fit_sizes(sources.lesions, sources.skipped)
            log.info("sizes of %d lesions: %s", sizes.count, sizes.model_dump(exclude={"count"}))
        lesions, shapes = _select_lesions(config, sources, gan)
        if lesions:
            log.info("%d real lesions", len(lesions.find_usable(sources.skipped)))
        size_patients: frozenset[str] = frozenset()
        if config.fits_sizes or isinstance(shapes, RealOutlines):
            size_patients = frozenset(source.mammogram.patient_id for source in sources.lesions)
        return _keep(
            config, Synthesizer(renderer, lesions, shapes, gan, sizes, size_patients, exports)
        )

    @staticmethod
    def reopen(config: SynthesisConfig, exports: NetworkExports) -> Synthesizer:
        """Load in a worker what `load` resolved when the work began, once in each process.

        Sizes are not fitted again, because they stand in the recipes.

        Args:
            config: The config.
            exports: Those of the synthesizer that the work began with.

        Raises:
            DataError: A network was replaced since.
        """
        renderer, gan = _load_networks(config, exports)
        if exports.weights != _get_weights(renderer, gan):
            raise DataError("a generator was replaced by another training while the work went on")
        kept = _kept.get(config)
        if kept and kept.exports == exports:
            return kept
        lesions, shapes = _select_lesions(config, Sources(config), gan)
        return _keep(config, Synthesizer(renderer, lesions, shapes, gan, exports=exports))

    @property
    def trained_on(self) -> frozenset[str]:
        """Patients that its networks were trained on.

        Raises:
            DataError: The mask GAN's card does not say.
        """
        of_gan = self.gan.trained_on if self.gan else frozenset()
        return (self.renderer.trained_on or frozenset()) | of_gan

    def insert(self, recipe: Recipe, mammogram: Mammogram, stored: Stored) -> tuple[Recipe, Stored]:
        """Insert the masses of one item into a mammogram, in memory.

        Args:
            recipe: config, sizes and number are used.
            mammogram: The mammogram.
            stored: Its stored values.

        Returns:
            The recipe, complete but for its files, and the new stored values.

        Raises:
            DataError: As `plan`.
            ArchiveError: As `plan`.
        """
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
        """Draw the masses of one item: how many, their sizes, shapes and places.

        Args:
            recipe: config, and sizes where config.size is not given, are used.
            target: Its free tissue is occupied by the masses.
            random: What draws.

        Returns:
            The masses, and a note where fewer fit than were drawn.

        Raises:
            DataError: Fewer fit than config.masses asks for at least.
            ArchiveError: A lesion that is there can't be read.
        """
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
            return self.renderer.prepare_lesion(lesion, mammogram, _draw_seeds(random))
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

    Args:
        renderer: Places it.
        candidate: The lesion.
        mammogram: The mammogram that it goes into.

    Raises:
        DataError: Not even there is room for it.
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
    """Record where a lesion lies, for its recipe and its renderer.

    Args:
        candidate: The lesion.
        placement: Of `Renderer.place`.
        blend_mask: Of `Renderer.place`.
        mammogram: The mammogram that it lies in.
        random: Draws the seed of its noise, unless the candidate has one.
    """
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
    """Render a mammogram with its masses.

    Args:
        target: The mammogram.
        stored: Its stored values. Those beyond the masses' supports are kept.
        lesions: Their supports don't overlap. A network makes all in one call.
        renderer: Makes the grey values.
    """
    return stored.with_greys(target.image, renderer.render(target, lesions))


# Of this process, by config: the synthesizer that was loaded last.
_kept: dict[SynthesisConfig, Synthesizer] = {}


def _keep(config: SynthesisConfig, synthesizer: Synthesizer) -> Synthesizer:
    _kept.clear()
    _kept[config] = synthesizer
    return synthesizer


def _load_networks(
    config: SynthesisConfig, exports: NetworkExports
) -> tuple[Renderer, MaskGenerator | None]:
    renderer = make_renderer(config.renderer, exports.generator, config.feather, config.whole_patch)
    return renderer, load_mask_generator(exports.gan) if exports.gan else None


def _get_weights(renderer: Renderer, gan: MaskGenerator | None) -> tuple[str | None, str | None]:
    return renderer.identity.get("weights"), gan.identity["weights"] if gan else None


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


def _draw_seeds(random: np.random.Generator) -> Iterator[int]:
    return (_draw_seed(random) for _ in range(TRIES))
