"""Synthesize patches with lesions added or removed, by the thousand, to train classifiers on.

    tfmammo synthesize-patches --config configs/patch_synthesis.yaml --output DIR [--set
    KEY=VALUE ...] [--jobs N]
    tfmammo synthesize-patches --recipe DIR/recipes/mass/000000.json --output OTHER [--set
    data.root=DIR]

For each patch a place on a normal mammogram (for removal: near a malignant lesion) is drawn as the
generator's training patches were. The generator's lesion is post-processed and added. A lesion that
post-processing discards is drawn again, and counted.

Every patch follows from the config and its number alone. A run that was stopped goes on where it
was. A recipe makes its patch again, bit for bit with the same TensorFlow on the same kind of
machine. What could not be made is a dead letter with its reason, and others replace it.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs (2020), section 3, Synthetic
dataset: 5,000 of each kind.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tfmammo import (
    __version__,
    archives,
    cli,
    filesystem,
)
from tfmammo import config as configuration
from tfmammo.archives.files import remove_names
from tfmammo.archives.writers.synthetic import encode_mask_png, encode_png
from tfmammo.data import card, jobs, sampling, tfrecord
from tfmammo.data.runners import HERE, Runner
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.command import make_parser, parse
from tfmammo.synthesis.config import PatchSynthesisConfig, Target
from tfmammo.synthesis.generators import (
    LesionGenerator,
    find_best_weights,
    load_lesion_generator,
)
from tfmammo.synthesis.patch_drawing import SyntheticPatch, make_patch, open_source
from tfmammo.synthesis.patch_set import (
    FORMAT,
    IDENTITY,
    PatchRecipe,
    describe_rates,
    describe_scale,
    format_readme,
    read_patch_recipe,
)
from tfmammo.synthesis.provenance import (
    REASONS,
    collect_versions,
    explain,
    find_source,
)
from tfmammo.synthesis.sources import ArchiveIndexes

log = logging.getLogger(__name__)

MOST = 4  # times the count, of numbers tried before a kind is given up
# Keys that are hashed otherwise, or decide no patch.
_IRRELEVANT = {"data", "generators", "tracking_uri", "count"}


@dataclass(frozen=True)
class Job:
    """The patches of one mammogram by one generator: an element of the pipeline.

    Attributes:
        folder: The output folder.
        mammogram: The mammogram that the patches are of.
        network: The generator's export.
        recipes: What is decided of each patch before it is made.
    """

    folder: Path
    mammogram: Mammogram
    network: Path
    recipes: tuple[PatchRecipe, ...]


def synthesize(
    config: PatchSynthesisConfig, output: Path, runner: Runner = HERE
) -> list[PatchRecipe]:
    """Synthesize a set of patches, or complete one that was stopped.

    Args:
        config: The config.
        output: A new folder, or one of an earlier run with the same config.
        runner: Who does the work.

    Returns:
        The recipes of all patches, those left out included.

    Raises:
        ConfigError: Something named in the config can't be used, or `output` belongs to other work.
        ArchiveError: The archive can't be used.
        ExportError: A generator can't be used.
        TrackingError: A model URI can't be resolved.
        DataError: A kind can't be made at all, or a worker failed.
    """
    skipped = Skipped()
    mammograms = archives.read_mammograms(config.data, skipped)
    exports: dict[Target, Path] = {
        target: find_best_weights(handle, config.tracking_uri)
        for target, handle in sorted(config.generators.items())
    }
    networks = {target: load_lesion_generator(export) for target, export in exports.items()}
    sources = {
        target: select_mammograms(mammograms, config, network, target)
        for target, network in networks.items()
    }
    identity = _describe_identity(config, mammograms, networks)
    with jobs.claim_folder(output, identity, IDENTITY):
        (output / "README.md").unlink(missing_ok=True)  # it says that all is there
        recipes: list[PatchRecipe] = []
        for target, export in exports.items():
            first = PatchRecipe(
                identity=hashlib.sha256(filesystem.to_json(identity).encode()).hexdigest(),
                target=target,
                number=0,
                config=config,
                versions=collect_versions(),
                generator=networks[target].identity,
            )
            recipes += _complete_kind(first, export, sources[target], output, runner)
        _write_summary(recipes, skipped, config.data.archive_name, output)
    return recipes


def select_mammograms(
    mammograms: Sequence[Mammogram],
    config: PatchSynthesisConfig,
    network: LesionGenerator,
    target: Target,
) -> list[Mammogram]:
    """Select the mammograms that a generator may work on, in an order drawn by the seed.

    Raises:
        DataError: There is none, or the generator is for another target.
    """
    if network.target != target:
        raise DataError(
            f"generators.{target}: {config.generators[target]} was trained with "
            f"model.target={network.target}"
        )
    candidates = [
        mammogram
        for mammogram in mammograms
        if config.patients == "all" or mammogram.patient_id in network.patients
    ]
    suitable = [mammogram for mammogram in candidates if _is_suitable(mammogram, network)]
    if not suitable:
        condition = "is normal"
        if network.removes:
            pathology = "malignant " if network.positives == "malignant" else ""
            condition = f"holds a {pathology}lesion"
        if config.patients == "trained":
            reason = (
                f"none of {len(candidates)} mammograms of patients that it was trained on "
                f"{condition} (patients=all takes all)"
            )
        else:
            reason = f"none of {len(candidates)} mammograms {condition}"
        raise DataError(f"generators.{target}: {reason}")
    order = np.random.default_rng(config.seed).permutation(len(suitable))
    return [suitable[place] for place in order]


def _is_suitable(mammogram: Mammogram, network: LesionGenerator) -> bool:
    """Return whether a generator may work on a mammogram. No file is read."""
    if not network.removes:
        return sampling.has_normal_tissue(mammogram, network.data.sampling)
    lesions = sampling.select_lesions(mammogram, network.data).values()
    return any(network.removes_pathology(lesion.pathology or "") for lesion in lesions)


def make(job: Job) -> None:
    """Make the patches of a job that are not there: files, then recipes.

    Raises:
        DataError: The generator was replaced since the work began.
        OSError: The folder can't be written.
        RuntimeError: A fault that no file explains.
    """
    missing = [recipe for recipe in job.recipes if _read_finished(recipe, job.folder) is None]
    config = job.recipes[0].config
    network = load_lesion_generator(job.network)
    if network.identity != job.recipes[0].generator:
        raise DataError(f"{job.network}: was replaced by another training while the work went on")
    try:
        with jobs.use_one_thread():
            digest, sampler = open_source(job.mammogram, network, config.seed)
            for recipe in missing:
                complete, patch = make_patch(recipe, job.mammogram, network, digest, sampler)
                _write_recipe(_write_files(complete, patch, job.folder), job.folder)
    except (*REASONS, cv2.error) as error:
        reason = explain(error, [config.data.root] if config.data.root else [])
        for recipe in missing:
            _write_recipe(recipe.model_copy(update={"left_out": reason}), job.folder)
    except OSError as error:  # of the folder, which would cost every patch
        raise OSError(f"{job.folder}: {error.__class__.__name__}: {error}") from error
    except Exception as error:
        # A fault of this code. As a dead letter it would quietly cost every patch.
        raise RuntimeError(
            f"{job.mammogram.image_id}: {error.__class__.__name__}: {error}"
        ) from error


def remake(file: Path, output: Path, overrides: Sequence[str] = ()) -> PatchRecipe:
    """Make the patch of a recipe again, into images/ and masks/ of a folder.

    Args:
        file: The recipe.
        output: The folder.
        overrides: Of its config: where the archive (data.root) and the generators lie now.

    Raises:
        DataError: The source or the generator is not that of the recipe, a file comes out
            differently, or another file has its name.
        ConfigError: Something can't be used.
        ArchiveError: Something can't be used.
        ExportError: Something can't be used.
        TrackingError: Something can't be used.
    """
    recipe = configuration.parse(
        PatchRecipe, file, [f"config.{override}" for override in overrides]
    )
    source = recipe.source
    config = recipe.config
    if source is None or recipe.left_out:
        raise DataError(f"{file}: is of a patch that could not be made ({recipe.left_out})")
    mammogram = find_source(source.archive, source.image_id, config.data, file, ArchiveIndexes())
    folder = find_best_weights(config.generators[recipe.target], config.tracking_uri)
    network = load_lesion_generator(folder)
    if network.identity["weights"] != recipe.generator["weights"]:
        raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
    with jobs.use_one_thread():
        digest, sampler = open_source(mammogram, network, config.seed)
        if digest != source.sha256:
            raise DataError(f"{file}: its source {source.image_id} has changed since (sha256)")
        complete, patch = make_patch(recipe, mammogram, network, digest, sampler)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=output) as made:
        complete = _write_files(complete, patch, Path(made))
        if complete.files != recipe.files:
            raise DataError(
                f"{output}: {recipe.name} came out otherwise than then; made with "
                f"{recipe.versions} then, with {collect_versions()} now"
            )
        filesystem.move_files(Path(made), output, complete.files)
    return recipe


def _write_recipe(recipe: PatchRecipe, folder: Path) -> None:
    path = recipe.find_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    filesystem.write_atomically(path, recipe.model_dump_json(indent=1) + "\n", durable=False)


def _write_files(recipe: PatchRecipe, patch: SyntheticPatch | None, folder: Path) -> PatchRecipe:
    """Write a patch's image and mask, and add their hashes to its recipe."""
    files = {}
    if patch:
        refined = patch.refined
        contents = {
            "images": encode_png(tfrecord.quantise(refined.image[0, ..., 0])),
            "masks": encode_mask_png(refined.mask[0, ..., 0]),
        }
        for part, content in contents.items():
            name = f"{part}/{recipe.name}.png"
            path = jobs.resolve_inside(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.atomic_file(path) as temporary:
                temporary.write_bytes(content)
            files[name] = hashlib.sha256(content).hexdigest()
    return recipe.model_copy(update={"files": files})


def _complete_kind(
    first: PatchRecipe,
    network: Path,
    sources: Sequence[Mammogram],
    output: Path,
    runner: Runner,
) -> list[PatchRecipe]:
    """Make `count` patches of one kind, if they can be had.

    Args:
        first: What is decided of all of them.
        network: The generator's export.
        sources: The mammograms that they are of.
        output: The claimed folder.
        runner: Who does the work.

    Returns:
        Their recipes, those left out included.

    Raises:
        DataError: None can be made, or a worker failed.
    """
    wanted = first.config.count
    kind = first.kind
    steps = jobs.PartSteps(
        make=make,
        read=_read_finished_job,
        name=lambda job: job.recipes[0].find_path(job.folder),
        command="synthesis",
    )
    total = wanted
    while True:
        planned = [first.model_copy(update={"number": number}) for number in range(total)]
        parts = [
            Job(output, mammogram, network, tuple(planned[start :: len(sources)]))
            for start, mammogram in enumerate(sources[:total])
        ]
        log.info("%s: %d patches from %d mammograms, into %s", kind, total, len(parts), output)
        records = jobs.complete_parts(parts, steps, runner)
        recipes = sorted(
            (recipe for record in records for recipe in record), key=lambda recipe: recipe.number
        )
        complete = sum(not recipe.left_out for recipe in recipes)
        if complete >= wanted or total >= MOST * wanted:
            break
        total = min(MOST * wanted, total + wanted - complete)
    log.info("%s: %d of %d patches; %s", kind, complete, wanted, describe_rates(recipes))
    if not complete:
        raise DataError(
            f"{output}: no {kind} patch could be made; the first: {recipes[0].left_out}"
        )
    return recipes


def _read_finished_job(job: Job) -> list[PatchRecipe] | None:
    """Read the recipes of a finished job. None unless all patches are there as written."""
    recipes = []
    for planned in job.recipes:
        recipe = _read_finished(planned, job.folder)
        if recipe is None:
            return None
        recipes.append(recipe)
    return recipes


def _read_finished(planned: PatchRecipe, folder: Path) -> PatchRecipe | None:
    """Read the recipe of a finished patch. None unless its files are there as written."""
    try:
        recipe = read_patch_recipe(planned.find_path(folder))
    except DataError:
        return None
    is_finished = recipe.identity == planned.identity and recipe.is_whole(folder)
    return recipe if is_finished else None


def _describe_identity(
    config: PatchSynthesisConfig,
    mammograms: Sequence[Mammogram],
    networks: Mapping[Target, LesionGenerator],
) -> dict[str, Any]:
    """Describe everything that decides the patches."""
    return {
        "format": FORMAT,
        "tfmammo": __version__,
        "config": config.model_dump(mode="json", exclude=_IRRELEVANT),
        "archive": {
            "name": config.data.archive_name,
            "records": jobs.fingerprint(mammograms),
        },
        "generators": {
            target: network.identity
            | {
                "patients": sorted(network.patients),
                "scale": describe_scale(network.data),
                "judge_seed": network.judge_seed,
            }
            for target, network in networks.items()
        },
    }


def _write_summary(
    recipes: Sequence[PatchRecipe], skipped: Skipped, archive: str, output: Path
) -> None:
    """Write dead_letters.csv and README.md, which says that all is there."""
    dead_letters = Skipped(dict(skipped.reasons))
    for recipe in recipes:
        if recipe.left_out:
            dead_letters.add(recipe.name, recipe.left_out)
    content = card.format_dead_letters(remove_names(dead_letters.reasons, skipped.root))
    filesystem.write_atomically(output / "dead_letters.csv", content, durable=False)
    licence = card.LICENCES.get(archive, card.UNKNOWN)
    filesystem.write_atomically(
        output / "README.md", format_readme(recipes, licence), durable=False
    )
    reasons = Counter(recipe.left_out for recipe in recipes if recipe.left_out)
    for reason, count in reasons.most_common(3):
        log.info("%d left out: %s", count, reason)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. An error becomes one line on stderr and exit code 2."""
    parser = make_parser(
        "synthesize-patches", __doc__, PatchSynthesisConfig, "patch_synthesis", "patch"
    )
    options, runner = parse(parser, arguments)

    def work() -> None:
        if options.recipe:
            recipe = remake(options.recipe, options.output.resolve(), options.set)
            log.info("%s: made again, bit for bit", recipe.name)
        else:
            config = cli.read_config(PatchSynthesisConfig, options)
            synthesize(config, options.output.resolve(), runner)

    cli.run(work)


if __name__ == "__main__":
    # Workers must find everything under its real name; what runs as __main__ has another.
    from tfmammo.synthesis import patches as module

    module.main()
