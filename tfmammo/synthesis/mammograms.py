"""Normal mammograms -> mammograms with masses, at native resolution and depth.

`tfmammo synthesize` is the command, and explains what it writes. This module holds its
work as a resumable job: one item per mammogram and number, each with its recipe, which `remake`
turns into the same files again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo import __version__, archives, filesystem
from tfmammo.archives import coco
from tfmammo.data import jobs
from tfmammo.data.runners import HERE, Runner
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis import sets
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import resolve_handle
from tfmammo.synthesis.lesion_bank import find_lesion, transform
from tfmammo.synthesis.mammogram_set import list_files, write_set
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.provenance import (
    FORMAT,
    InsertedLesion,
    Recipe,
    collect_versions,
    describe_source,
)
from tfmammo.synthesis.renderers import LesionCandidate, PlacedLesion, Renderer, make_renderer
from tfmammo.synthesis.sources import ArchiveIndexes, Sources
from tfmammo.synthesis.synthesizer import Synthesizer, render

log = logging.getLogger(__name__)

IDENTITY = "synthesis.json"
# Keys that no item depends on: where things are (records and networks are hashed), and how many
# items there are.
_IRRELEVANT = {"data", "lesions", "generator", "shapes", "patients", "tracking_uri", "count"}


def synthesize(
    config: SynthesisConfig, output: Path, runner: Runner = HERE, retry: bool = False
) -> list[Recipe]:
    """Synthesize a set, or complete one that was stopped.

    Args:
        config: The config.
        output: A new folder, or one of an earlier run with the same config.
        runner: Who does the work.
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
    identity = _describe_identity(config, sources, synthesizer)
    items = _plan_items(config, mammograms, synthesizer, identity, output)
    with jobs.claim_folder(output, identity, IDENTITY):
        log.info("%d items from %d mammograms, into %s", len(items), len(mammograms), output)
        recipes = sets.complete(items, runner, retry)
        sets.write_dead_letters(sources.skipped, _list_left_out(items, recipes), output)
        if all(recipe.left_out for recipe in recipes):
            raise DataError(
                f"{output}: no item could be made, dead_letters.csv says why; the first: "
                f"{recipes[0].left_out}"
            )
        lesions = None if config.real_lesions else synthesizer.size_patients
        write_set(recipes, config, lesions, trained_on, output)
        _log_summary(recipes)
        return recipes


def _open(job: sets.Job[Recipe]) -> Callable[[Recipe], tuple[Recipe, sets.Contents]]:
    """Open the networks of a job; see `sets.Job`."""
    mammogram = job.mammogram
    synthesizer = Synthesizer.reopen(job.recipes[0].config, job.networks)

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
        file: The recipe.
        output: The folder.
        overrides: Of its config: where the archives (data.root, lesions.root) and the generator lie
            now.

    Raises:
        DataError: The source, a lesion or the generator is not that of the recipe, or a file comes
            out differently.
        TfmammoError: Something can't be used.
    """

    def restore(recipe: Recipe, mammogram: Mammogram, indexes: ArchiveIndexes) -> sets.Contents:
        renderer = _load_renderer(recipe, file)
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


def _load_renderer(recipe: Recipe, file: Path) -> Renderer:
    """Load the renderer of a recipe.

    Raises:
        DataError: Its network is not that of the recipe.
    """
    config = recipe.config
    folder = resolve_handle(config.generator, config.tracking_uri) if config.generator else None
    renderer = make_renderer(config.renderer, folder, config.feather, config.whole_patch)
    if renderer.identity.get("weights") != recipe.generator.get("weights"):
        raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
    return renderer


def _restore_lesion(
    record: InsertedLesion,
    mammogram: Mammogram,
    renderer: Renderer,
    recipe: Recipe,
    indexes: ArchiveIndexes,
) -> PlacedLesion:
    """Restore a lesion of a recipe in its place.

    Raises:
        DataError: The real lesion is gone, or its mammogram has changed.
        ConfigError: Nobody said where its archive lies.
        ArchiveError: It can't be read.
    """
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


def _describe_identity(
    config: SynthesisConfig, sources: Sources, synthesizer: Synthesizer
) -> dict[str, Any]:
    """Describe everything that decides the items."""
    data = config.lesion_data
    bank = synthesizer.lesions
    sizes = synthesizer.sizes
    shapes = synthesizer.shapes
    return {
        "format": FORMAT,
        "tfmammo": __version__,
        "config": config.model_dump(mode="json", exclude=_IRRELEVANT),
        "archive": {
            "name": config.data.archive_name,
            "mammograms": len(sources.mammograms),
            "records": jobs.fingerprint(sources.mammograms),
        },
        "generator": synthesizer.renderer.identity,
        "lesions": {
            "kinds": list(data.kinds),
            "mixed_findings": data.mixed_findings,
            "pathologies": data.pathologies and list(data.pathologies),
            "bank": bank.identity if bank else None,
        },
        "sizes": sizes.model_dump(mode="json") if sizes else None,
        "shapes": shapes.identity if shapes else None,
        "patients": sources.patients.identity,
    }


def _plan_items(
    config: SynthesisConfig,
    mammograms: Sequence[Mammogram],
    synthesizer: Synthesizer,
    identity: dict[str, Any],
    output: Path,
) -> list[sets.Job[Recipe]]:
    """Spread the items evenly over the mammograms, in an order drawn by the seed."""
    order = np.random.default_rng(config.seed).permutation(len(mammograms))
    first = Recipe(
        identity=hashlib.sha256(filesystem.to_json(identity).encode()).hexdigest(),
        number=0,
        config=config,
        versions=collect_versions(),
        generator=synthesizer.renderer.identity,
        sizes=synthesizer.sizes,
    )
    items = []
    for number in range(config.count):
        repeat, place = divmod(number, len(order))
        recipe = first.model_copy(update={"number": number, "repeat": repeat})
        mammogram = mammograms[order[place]]
        items.append(sets.Job(output, mammogram, (recipe,), _open, synthesizer.exports))
    return items


def _list_left_out(
    items: Sequence[sets.Job[Recipe]], recipes: Sequence[Recipe]
) -> Iterator[tuple[str, str]]:
    """List what was asked for and not made, by item."""
    for recipe, item in zip(recipes, items, strict=True):
        for reason in (recipe.left_out, *recipe.notes):
            if reason:
                yield f"item {recipe.name} of {item.mammogram.image_id}", reason


def _log_summary(recipes: Sequence[Recipe]) -> None:
    complete = [recipe for recipe in recipes if not recipe.left_out]
    reasons = Counter(recipe.left_out for recipe in recipes if recipe.left_out)
    log.info(
        "%d of %d items with %d masses%s",
        len(complete),
        len(recipes),
        sum(len(recipe.lesions) for recipe in complete),
        "".join(f"; {count} left out: {reason}" for reason, count in reasons.most_common(3)),
    )
