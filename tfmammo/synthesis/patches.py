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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo import __version__, archives, cli, filesystem
from tfmammo.archives.writers.synthetic import encode_mask_png, encode_png
from tfmammo.data import card, jobs, sampling, tfrecord
from tfmammo.data.runners import HERE, Runner
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis import sets
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
)
from tfmammo.synthesis.provenance import collect_versions
from tfmammo.synthesis.sources import ArchiveIndexes

log = logging.getLogger(__name__)

MOST = 4  # times the count, of numbers tried before a kind is given up
# Keys that are hashed otherwise, or decide no patch.
_IRRELEVANT = {"data", "generators", "tracking_uri", "count"}


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


def _open(
    job: sets.Job[PatchRecipe],
) -> Callable[[PatchRecipe], tuple[PatchRecipe, sets.Contents]]:
    """Open the network of a job; see `sets.Job`."""
    network = load_lesion_generator(job.networks)
    first = job.recipes[0]
    if network.identity != first.generator:
        raise DataError(f"{job.networks}: was replaced by another training while the work went on")
    open_once = cache(lambda: open_source(job.mammogram, network, first.config.seed))

    def draw(recipe: PatchRecipe) -> tuple[PatchRecipe, sets.Contents]:
        digest, sampler = open_once()
        recipe, patch = make_patch(recipe, job.mammogram, network, digest, sampler)
        return recipe, _list_files(recipe, patch)

    return draw


def remake(file: Path, output: Path, overrides: Sequence[str] = ()) -> PatchRecipe:
    """Make the patch of a recipe again, into images/ and masks/ of a folder.

    Args:
        file: The recipe.
        output: The folder.
        overrides: Of its config: where the archive (data.root) and the generators lie now.

    Raises:
        DataError: The source or the generator is not that of the recipe, a file comes out
            differently, or another file has its name.
        TfmammoError: Something can't be used.
    """

    def restore(recipe: PatchRecipe, mammogram: Mammogram, _: ArchiveIndexes) -> sets.Contents:
        config = recipe.config
        folder = find_best_weights(config.generators[recipe.target], config.tracking_uri)
        network = load_lesion_generator(folder)
        if network.identity["weights"] != recipe.generator.get("weights"):
            raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
        digest, sampler = open_source(mammogram, network, config.seed)
        if recipe.source and digest != recipe.source.sha256:
            raise DataError(f"{file}: its source {mammogram.image_id} has changed since (sha256)")
        return _list_files(*make_patch(recipe, mammogram, network, digest, sampler))

    return sets.remake(PatchRecipe, file, output, overrides, restore)


def _list_files(recipe: PatchRecipe, patch: SyntheticPatch | None) -> sets.Contents:
    """List the files of a patch, its image and mask, with what writes each."""
    if patch is None:
        return {}
    refined = patch.refined
    image = encode_png(tfrecord.quantise(refined.image[0, ..., 0]))
    mask = encode_mask_png(refined.mask[0, ..., 0])
    return {
        f"images/{recipe.name}.png": sets.bytes_writer(image),
        f"masks/{recipe.name}.png": sets.bytes_writer(mask),
    }


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
    total = wanted
    while True:
        planned = [first.model_copy(update={"number": number}) for number in range(total)]
        parts = [
            sets.Job(output, mammogram, tuple(planned[start :: len(sources)]), _open, network)
            for start, mammogram in enumerate(sources[:total])
        ]
        log.info("%s: %d patches from %d mammograms, into %s", kind, total, len(parts), output)
        recipes = sets.complete(parts, runner)
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
    left_out = [(recipe.name, recipe.left_out) for recipe in recipes if recipe.left_out]
    sets.write_dead_letters(skipped, left_out, output)
    licence = card.LICENCES.get(archive, card.UNKNOWN)
    filesystem.write_atomically(
        output / "README.md", format_readme(recipes, licence), durable=False
    )
    reasons = Counter(reason for _, reason in left_out)
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
