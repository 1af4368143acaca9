"""Normal mammograms -> mammograms with masses, at native resolution and depth.

`tfmammo synthesize` is the command, and explains what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tfmammo import archives
from tfmammo.archives import coco
from tfmammo.data.runners import HERE, Runner
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis import sets
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import resolve_handle
from tfmammo.synthesis.lesion_bank import find_lesion, transform
from tfmammo.synthesis.mammogram_set import describe_set, list_files
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.recipe import InsertedLesion, Recipe, describe_source
from tfmammo.synthesis.renderers import LesionCandidate, PlacedLesion, Renderer, make_renderer
from tfmammo.synthesis.sources import ArchiveIndexes, Sources
from tfmammo.synthesis.synthesizer import Synthesizer, render

IDENTITY = "synthesis.json"


def synthesize(
    config: SynthesisConfig, output: Path, runner: Runner = HERE, retry: bool = False
) -> list[Recipe]:
    """Synthesize a set, or complete one that was stopped.

    Args:
        output: A new folder, or one of an earlier run with the same config.
        retry: Make items that were left out again.

    Returns:
        The recipes of all items, those left out included.

    Raises:
        ConfigError: Something named in the config can't be used, or `output` belongs to other work.
        TfmammoError: An archive or a network can't be used, no mammogram or size can be had, or a
            worker failed.
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
    plan = sets.Plan(
        sets.make_first(Recipe, identity, config, generator, sizes=sizes),
        [mammograms[place] for place in order],
        _open,
        synthesizer.exports,
        config.count,
        config.count,
    )
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


def _open(job: sets.Job[Recipe]) -> Callable[[Recipe], tuple[Recipe, sets.Contents]]:
    """Open the networks of a job; see `sets.Job`."""
    mammogram = job.mammogram
    config = job.recipes[0].config
    synthesizer = Synthesizer.load(config, Sources(config), job.networks)

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
        TfmammoError: Something can't be used.
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
                "recipes don't say where archives lie; give --set lesions.root=DIR (of an archive "
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
