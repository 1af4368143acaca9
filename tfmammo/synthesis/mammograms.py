"""Synthesis of mammograms: what it reads once, how it inserts lesions, and sets of the results.

`Synthesizer.load` reads the networks, the lesion bank, the source of shapes and the sizes of a
config. Workers are sent the small `NetworkExports`, and open the same networks by path.
`tfmammo synthesize` is the command, and explains what it writes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfmammo import archives
from tfmammo.archives import coco
from tfmammo.archives.stored import Stored
from tfmammo.data import sampling
from tfmammo.data.runners import HERE, Runner
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis import sets
from tfmammo.synthesis.compositing import BlendMask
from tfmammo.synthesis.config import Margins, Sizes, SynthesisConfig
from tfmammo.synthesis.generators import MaskGenerator, load_mask_generator, resolve_handle
from tfmammo.synthesis.lesion_bank import LesionBank, find_lesion, transform
from tfmammo.synthesis.mammogram_set import describe_set, list_files
from tfmammo.synthesis.placement import Placement, TargetMammogram, scale_shape
from tfmammo.synthesis.recipe import (
    REASONS,
    InsertedLesion,
    Recipe,
    describe_existing_lesions,
    describe_source,
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
from tfmammo.synthesis.sources import ArchiveIndexes, Sources, fit_sizes

log = logging.getLogger(__name__)

IDENTITY = "synthesis.json"
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
        sizes: The Gaussian that sizes are drawn from. None where they are given, or the lesions'
            own.
        size_patients: Patients whose lesions may have given shapes or sizes to made-up masses.
        exports: Where its networks were loaded from.
    """

    renderer: Renderer
    lesions: LesionBank | None = None
    shapes: ShapeSource | None = None
    sizes: Sizes | None = None
    size_patients: frozenset[str] = frozenset()
    exports: NetworkExports = NetworkExports()

    @staticmethod
    def load(config: SynthesisConfig, sources: Sources) -> Synthesizer:
        """Read all that a config names.

        Args:
            sources: Of its archives; notes lesions that can't be used.

        Raises:
            ConfigError: A model URI leads to no network, or no such archive.
            ExportError: A network can't be used.
            DataError: The networks, lesions or shapes can't be used.
        """
        synthesizer = _load(config, sources, NetworkExports.find(config))
        sizes = None
        size_patients: frozenset[str] = frozenset()
        if config.fits_sizes:
            sizes = fit_sizes(sources.lesions, sources.skipped)
            log.info("sizes of %d lesions: %s", sizes.count, sizes.model_dump(exclude={"count"}))
        if synthesizer.lesions:
            log.info("%d real lesions", len(synthesizer.lesions.find_usable(sources.skipped)))
        if config.fits_sizes or isinstance(synthesizer.shapes, RealOutlines):
            size_patients = frozenset(source.mammogram.patient_id for source in sources.lesions)
        return replace(synthesizer, sizes=sizes or config.sizes, size_patients=size_patients)

    @staticmethod
    def reopen(config: SynthesisConfig, exports: NetworkExports) -> Synthesizer:
        """Open the synthesizer that a work began with, once in each of its processes.

        Sizes are not fitted again, because they are in the recipes.

        Raises:
            DataError: A network was replaced since.
        """
        if _load_networks(config, exports)[2] != exports:
            raise DataError("a generator was replaced by another training run meanwhile")
        kept = _kept.get(config)
        return kept if kept and kept.exports == exports else _load(config, Sources(config), exports)

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


def synthesize(
    config: SynthesisConfig, output: Path, runner: Runner = HERE, retry: bool = False
) -> list[Recipe]:
    """Synthesize a set, or complete one that was stopped.

    Args:
        output: A new folder, or one of an earlier run with the same config.
        retry: Make items that were skipped again.

    Returns:
        The recipes of all items, including skipped ones.

    Raises:
        TfmammoError: Something named in the config can't be used, `output` belongs to other work,
            no mammogram or size can be had, or a worker failed.
    """
    sources = Sources(config)
    mammograms = sources.mammograms
    synthesizer = Synthesizer.load(config, sources)
    trained_on = synthesizer.trained_on  # raises before anything is written
    generator = synthesizer.renderer.identity
    data = config.lesion_data
    sizes = synthesizer.sizes
    identity = sets.describe_identity(
        config,
        mammograms,
        generator=generator,
        lesions={
            "kinds": list(data.kinds),
            "mixed_findings": data.mixed_findings,
            "pathologies": data.pathologies and list(data.pathologies),
            "bank": synthesizer.lesions and synthesizer.lesions.identity,
        },
        sizes=sizes and sizes.model_dump(mode="json"),
        shapes=synthesizer.shapes and synthesizer.shapes.identity,
        patients=sources.patients.identity,
    )
    order = np.random.default_rng(config.seed).permutation(len(mammograms))
    first = sets.make_first(Recipe, identity, config, generator, sizes=sizes)
    in_turn = [mammograms[place] for place in order]
    plan = sets.Plan(first, in_turn, _open, synthesizer.exports)
    lesions = None if config.real_lesions else synthesizer.size_patients
    return sets.synthesize(
        [plan],
        identity,
        IDENTITY,
        sources.skipped,
        output,
        runner,
        retry,
        lambda recipes: describe_set(recipes, config, lesions, trained_on),
    )


def _open(job: sets.Job[Recipe]) -> sets.Draw[Recipe]:
    """Open the networks of a job; see `sets.Job`."""
    mammogram = job.mammogram
    config = job.recipes[0].config
    synthesizer = Synthesizer.reopen(config, job.networks)

    def draw(recipe: Recipe) -> tuple[Recipe, sets.Contents]:
        stored = archives.read_stored(mammogram)
        recipe = recipe.model_copy(update={"source": describe_source(mammogram, stored)})
        try:
            recipe, synthetic = synthesizer.insert(recipe, mammogram, stored)
        except sets.LEFT_OUT as error:  # the recipe says which mammogram was tried
            return sets.leave_out(recipe, error), {}
        return recipe, list_files(recipe, mammogram, synthetic)

    return draw


def remake(file: Path, output: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Make the item of a recipe again, into images/ and lesion_masks/ of a folder.

    Args:
        overrides: Of its config: where the archives (data.root, lesions.root) and the generator are
            now.

    Raises:
        DataError: The source, a lesion or the generator is not that of the recipe, or a file comes
            out differently.
    """

    def restore(recipe: Recipe, mammogram: Mammogram, indexes: ArchiveIndexes) -> sets.Contents:
        config = recipe.config
        folder = resolve_handle(config.generator, config.tracking_uri) if config.generator else None
        renderer = make_renderer(config.renderer, folder, config.feather, config.whole_patch)
        if renderer.identity.get("weights") != recipe.generator.get("weights"):
            raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
        stored = archives.read_stored(mammogram)
        if describe_source(mammogram, stored) != recipe.source:
            raise DataError(f"{file}: its source {mammogram.image_id} has changed since (sha256)")
        lesions = [
            _restore_lesion(record, mammogram, renderer, recipe, indexes)
            for record in recipe.lesions
        ]
        target = TargetMammogram(stored.image(), mammogram, renderer.data)
        return list_files(recipe, mammogram, render(target, stored, lesions, renderer))

    return sets.remake(Recipe, file, output, overrides, restore)


def _restore_lesion(
    record: InsertedLesion,
    mammogram: Mammogram,
    renderer: Renderer,
    recipe: Recipe,
    indexes: ArchiveIndexes,
) -> PlacedLesion:
    """Restore a lesion of a recipe in its place."""
    top, left, bottom, right = record.box
    if record.graft:
        data = recipe.config.lesion_data
        if data.root is None and record.graft.archive != "phantom":
            raise ConfigError(
                "recipes don't say where archives are; give --set lesions.root=DIR (of an archive "
                f"{record.graft.archive})"
            )
        by_id = {source.image_id: source for source in indexes.read(data)}
        lesion = transform(find_lesion(record.graft, data, by_id), record.graft, mammogram)
        candidate = renderer.prepare_lesion(lesion, mammogram, [record.seed])
    else:
        mask = coco.decode(record.region, recipe.name)[top:bottom, left:right]
        candidate = LesionCandidate(np.ascontiguousarray(mask), record.kind, record.shape)
    placement, blend_mask = renderer.place(top, left, candidate, mammogram)
    return PlacedLesion(record, placement, blend_mask, candidate)


# Of this process, by config: the synthesizer that was loaded last.
_kept: dict[SynthesisConfig, Synthesizer] = {}


def _load(config: SynthesisConfig, sources: Sources, exports: NetworkExports) -> Synthesizer:
    """Load networks, and select the real lesions or the shapes of made-up masses."""
    renderer, gan, exports = _load_networks(config, exports)
    data = config.lesion_data
    bank: LesionBank | None = None
    shapes: ShapeSource | None = None
    if config.real_lesions:
        bank = LesionBank.select(sources.lesions, data, config.pathology, config.of_patients)
    elif gan:
        shapes = GeneratedShapes(gan, config.shapes.plausible)
    elif config.shapes.files:
        shapes = ShapeFiles.find(config.shapes.files)
    elif config.shapes.drawn:
        shapes = NamedShapes(config.shapes.drawn)
    else:
        shapes = RealOutlines.select(sources.lesions, data, config.of_patients)
    _kept.clear()
    _kept[config] = Synthesizer(renderer, bank, shapes, exports=exports)
    return _kept[config]


def _load_networks(
    config: SynthesisConfig, exports: NetworkExports
) -> tuple[Renderer, MaskGenerator | None, NetworkExports]:
    """Load the renderer and the mask GAN; a process reads each export once."""
    renderer = make_renderer(config.renderer, exports.generator, config.feather, config.whole_patch)
    gan = load_mask_generator(exports.gan) if exports.gan else None
    weights = renderer.identity.get("weights"), gan.identity["weights"] if gan else None
    return renderer, gan, replace(exports, weights=weights)


def _draw_seed(random: np.random.Generator) -> int:
    return int(random.integers(2**63))
