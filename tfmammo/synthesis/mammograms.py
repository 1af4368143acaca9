"""Normal mammograms -> mammograms with masses, at native resolution and depth.

`tfmammo synthesize` is the command, and explains what it writes. This module holds its
work as a resumable job: one item per mammogram and number, each with its recipe, which `remake`
turns into the same files again.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tfmammo import (
    __version__,
    archives,
    filesystem,
)
from tfmammo import config as configuration
from tfmammo.archives import coco
from tfmammo.archives.files import remove_names
from tfmammo.data import card, jobs
from tfmammo.data.runners import HERE, Runner
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import resolve_handle
from tfmammo.synthesis.lesion_bank import find_lesion, transform
from tfmammo.synthesis.mammogram_set import write_item, write_set
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.provenance import (
    FORMAT,
    REASONS,
    InsertedLesion,
    Recipe,
    collect_versions,
    describe_source,
    explain,
    find_source,
    read_recipe,
)
from tfmammo.synthesis.renderers import LesionCandidate, PlacedLesion, Renderer, make_renderer
from tfmammo.synthesis.sources import ArchiveIndexes, Sources
from tfmammo.synthesis.synthesizer import NetworkExports, Synthesizer, render

log = logging.getLogger(__name__)

IDENTITY = "synthesis.json"
# Keys that no item depends on: where things are (records and networks are hashed), and how many
# items there are.
_IRRELEVANT = {"data", "lesions", "generator", "shapes", "patients", "tracking_uri", "count"}


@dataclass(frozen=True)
class Job:
    """One item: an element of the pipeline. Small, because it is pickled for its worker.

    Attributes:
        folder: The output folder.
        mammogram: The mammogram to insert into.
        exports: Where the networks lie.
        recipe: What is decided before the item is made.
    """

    folder: Path
    mammogram: Mammogram
    exports: NetworkExports
    recipe: Recipe

    @property
    def path(self) -> Path:
        """Path of its recipe."""
        return self.folder / "recipes" / f"{self.recipe.name}.json"


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
        (output / "recipes").mkdir(exist_ok=True)
        log.info("%d items from %d mammograms, into %s", len(items), len(mammograms), output)
        steps = jobs.PartSteps(
            make=make,
            read=_read_finished,
            name=lambda item: item.path,
            has_failures=lambda recipe: bool(recipe.left_out),
            command="synthesis",
        )
        recipes = jobs.complete_parts(items, steps, runner, retry)
        _write_dead_letters(items, recipes, sources.skipped)
        lesions = None if config.real_lesions else synthesizer.size_patients
        write_set(recipes, config, lesions, trained_on, output)
        _log_summary(recipes)
        return recipes


def make(job: Job) -> None:
    """Make one item: its files, then its recipe.

    Of an item that can't be made there is only the recipe, which says why.

    Raises:
        DataError: A network was replaced since the work began.
        OSError: The folder can't be written.
        RuntimeError: A fault that no file explains.
    """
    recipe = job.recipe
    mammogram = job.mammogram
    synthesizer = Synthesizer.reopen(recipe.config, job.exports)
    try:
        with jobs.use_one_thread():
            stored = archives.read_stored(mammogram)
            recipe = recipe.model_copy(update={"source": describe_source(mammogram, stored)})
            recipe, synthetic = synthesizer.insert(recipe, mammogram, stored)
    except (*REASONS, OSError, cv2.error) as error:
        # A run of days must not end because of one file.
        log.debug("%s", mammogram.image_id, exc_info=True)
        reason = explain(error, recipe.config.archive_folders)
        recipe = recipe.model_copy(update={"left_out": reason})
    except Exception as error:
        # A fault of this code. As a dead letter it would quietly cost every item.
        raise RuntimeError(f"{mammogram.image_id}: {error.__class__.__name__}: {error}") from error
    else:
        files = write_item(recipe, mammogram, synthetic, job.folder)
        recipe = recipe.model_copy(update={"files": files})
    filesystem.write_atomically(job.path, recipe.model_dump_json(indent=1) + "\n", durable=False)


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
        ConfigError: Something can't be used.
        ArchiveError: Something can't be used.
        ExportError: Something can't be used.
        TrackingError: Something can't be used.
    """
    recipe = configuration.parse(Recipe, file, [f"config.{override}" for override in overrides])
    if recipe.source is None or recipe.left_out:
        raise DataError(f"{file}: is of an item that could not be made ({recipe.left_out})")
    indexes = ArchiveIndexes()
    mammogram = find_source(
        recipe.source.archive, recipe.source.image_id, recipe.config.data, file, indexes
    )
    renderer = _load_renderer(recipe, file)
    stored = archives.read_stored(mammogram)
    if describe_source(mammogram, stored) != recipe.source:
        raise DataError(f"{file}: its source {recipe.source.image_id} has changed since (sha256)")
    with jobs.use_one_thread():
        lesions = [
            _restore_lesion(record, mammogram, renderer, recipe, indexes)
            for record in recipe.lesions
        ]
        target = TargetMammogram(stored.image(), mammogram, renderer.data)
        synthetic = render(target, stored, lesions, renderer)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=output) as made:
        files = write_item(recipe, mammogram, synthetic, Path(made))
        differing = [name for name, digest in files.items() if recipe.files.get(name) != digest]
        if differing:
            raise DataError(
                f"{output}: {', '.join(differing)} came out otherwise than then; made with "
                f"{recipe.versions} then, with {collect_versions()} now"
            )
        filesystem.move_files(Path(made), output, files)
    return recipe


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
) -> list[Job]:
    """Spread the items evenly over the mammograms, in an order drawn by the seed."""
    order = np.random.default_rng(config.seed).permutation(len(mammograms))
    first = Recipe(
        identity=hashlib.sha256(filesystem.to_json(identity).encode()).hexdigest(),
        name="000000",
        number=0,
        config=config,
        versions=collect_versions(),
        generator=synthesizer.renderer.identity,
        sizes=synthesizer.sizes,
    )
    items = []
    for number in range(config.count):
        repeat, place = divmod(number, len(order))
        named = {"name": f"{number:06d}", "number": number, "repeat": repeat}
        recipe = first.model_copy(update=named)
        mammogram = mammograms[order[place]]
        items.append(Job(output, mammogram, synthesizer.exports, recipe))
    return items


def _read_finished(job: Job) -> Recipe | None:
    """Read the recipe of a finished item. None unless its files are there as they were written."""
    try:
        recipe = read_recipe(job.path)
    except DataError:
        return None
    is_finished = recipe.identity == job.recipe.identity and recipe.is_whole(job.folder)
    return recipe if is_finished else None


def _write_dead_letters(items: Sequence[Job], recipes: Sequence[Recipe], skipped: Skipped) -> None:
    """Write dead_letters.csv: what could not be used, and what was asked for and not made.

    Raises:
        DataError: No item could be made.
    """
    dead_letters = Skipped(dict(skipped.reasons))
    for recipe, item in zip(recipes, items, strict=True):
        for reason in (recipe.left_out, *recipe.notes):
            if reason:
                dead_letters.add(f"item {recipe.name} of {item.mammogram.image_id}", reason)
    output = items[0].folder
    content = card.format_dead_letters(remove_names(dead_letters.reasons, skipped.root))
    filesystem.write_atomically(output / "dead_letters.csv", content, durable=False)
    if all(recipe.left_out for recipe in recipes):
        raise DataError(
            f"{output}: no item could be made, dead_letters.csv says why; the first: "
            f"{recipes[0].left_out}"
        )


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
