"""Synthesize patches with lesions added or removed, by the thousand, to train classifiers on.

    tfmammo synthesize-patches --config configs/patch_synthesis.yaml --output DIR [--set
    KEY=VALUE ...] [--jobs N]
    tfmammo synthesize-patches --recipe DIR/recipes/mass/000000.json --output OTHER [--set
    data.root=DIR]

For each patch a place on a normal mammogram (for removal: near a malignant lesion) is drawn as the
generator's training patches were. The generator's lesion is post-processed and added. A lesion that
post-processing discards is drawn again, and counted.

Every patch follows from the config and its number alone. A stopped run resumes. A recipe reproduces
its patch, bit for bit with the same TensorFlow on the same kind of machine. A patch that could not
be made is a failure with its reason, and another replaces it; --retry tries it again.

DIR is a set of patches, which `PatchSet.read` reads:

    images/KIND/000000.png (16 bits)   masks/KIND/000000.png   recipes/KIND/000000.json
    patch_set.json   README.md

KIND is mass, calcification or normal. A normal patch is one whose lesion was removed. A mask shows
what was added or removed.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs (2020), section 3, Synthetic
dataset: 5,000 of each kind.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tfmammo import archives
from tfmammo.archives.writers.synthetic import encode_mask_png, encode_png
from tfmammo.config import DataConfig
from tfmammo.data import card, sampling
from tfmammo.data.extraction import make_sampler
from tfmammo.data.patches import Patch, Patches, stack_patches
from tfmammo.data.runners import HERE, Runner
from tfmammo.data.tfrecord import GREY, quantise
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis import sets
from tfmammo.synthesis.config import KINDS, PatchSynthesisConfig, Target
from tfmammo.synthesis.generators import (
    LesionGenerator,
    find_best_weights,
    load_lesion_generator,
)
from tfmammo.synthesis.recipe import (
    ArchiveIndexes,
    PatchRecipe,
    PatchSource,
    hash_source,
    read_recipe,
)

log = logging.getLogger(__name__)

IDENTITY = "patch_set.json"
MOST = 4  # times the count, of numbers tried before a kind is given up
Sampler = Callable[[int], Patch]  # draws a patch by its number


def synthesize(
    config: PatchSynthesisConfig, output: Path, runner: Runner = HERE, retry: bool = False
) -> list[PatchRecipe]:
    """Synthesize a set of patches, or complete one that was stopped.

    Arguments, result and errors are those of `tfmammo.synthesis.mammograms.synthesize`; a kind that
    can't be made at all is an error, too.
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
    generators = {target: _describe_generator(network) for target, network in networks.items()}
    identity = sets.describe_identity(
        config, mammograms, patients=config.patients, generators=generators
    )
    plans = [
        sets.Plan(
            sets.make_first(PatchRecipe, identity, config, network.identity, target=target),
            sources[target],
            _open,
            exports[target],
            MOST,
            grouped=True,
            names=(f"{KINDS[target]} patch", f"{KINDS[target]} patches"),
        )
        for target, network in networks.items()
    ]
    recipes = sets.synthesize(
        plans,
        identity,
        IDENTITY,
        skipped,
        output,
        runner,
        retry,
        lambda recipes: {"README.md": format_readme(recipes)},
    )
    for line in describe_rates(recipes):
        log.info("%s", line)
    return recipes


def _describe_generator(network: LesionGenerator) -> dict[str, Any]:
    """Describe a generator in patch_set.json."""
    facts = {
        "patients": sorted(network.patients),
        "scale": describe_scale(network.data),
        "judge_seed": network.model.judge_seed,
    }
    return network.identity | facts


def select_mammograms(
    mammograms: Sequence[Mammogram],
    config: PatchSynthesisConfig,
    network: LesionGenerator,
    target: Target,
) -> list[Mammogram]:
    """Select the mammograms that a generator may work on, in an order drawn by the seed."""
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
            pathology = "malignant " if network.model.positives == "malignant" else ""
            condition = f"has a {pathology}lesion"
        whose = ""
        if config.patients == "trained":
            whose = " of patients that it was trained on"
            condition += " (patients=all takes all)"
        raise DataError(
            f"generators.{target}: none of {len(candidates)} mammograms{whose} {condition}"
        )
    order = np.random.default_rng(config.seed).permutation(len(suitable))
    return [suitable[place] for place in order]


def _is_suitable(mammogram: Mammogram, network: LesionGenerator) -> bool:
    """Return whether a generator may work on a mammogram. No file is read."""
    if not network.removes:
        return sampling.has_normal_tissue(mammogram, network.data.sampling)
    lesions = sampling.select_lesions(mammogram, network.data).values()
    return any(network.removes_pathology(lesion.pathology or "") for lesion in lesions)


def _open(job: sets.Job[PatchRecipe]) -> sets.Draw[PatchRecipe]:
    """Open the network of a job; see `sets.Job`."""
    network = load_lesion_generator(job.networks)
    first = job.recipes[0]
    if network.identity != first.generator:
        raise DataError(f"{job.networks}: was replaced by another training run meanwhile")
    open_once = cache(lambda: _open_source(job.mammogram, network, first.config.seed))

    def draw(recipe: PatchRecipe) -> tuple[PatchRecipe, sets.Contents]:
        return draw_patch(recipe, job.mammogram, network, *open_once())

    return draw


def _open_source(mammogram: Mammogram, network: LesionGenerator, seed: int) -> tuple[str, Sampler]:
    """Open a mammogram: its sha256, and what draws patches as those of the generator's training."""
    skipped = Skipped()
    patches = "offset" if network.removes else "normal"
    data: DataConfig = network.data.model_copy(update={"patches": patches, "seed": seed})
    sampler = make_sampler(mammogram, data, skipped)
    if sampler is None:
        raise DataError(next(iter(skipped.reasons.values()), "it has nothing to make a patch of"))
    return hash_source(mammogram, mammogram.pixels), sampler


def draw_patch(
    recipe: PatchRecipe,
    mammogram: Mammogram,
    network: LesionGenerator,
    digest: str,
    sampler: Sampler,
) -> tuple[PatchRecipe, sets.Contents]:
    """Draw places and noise, config.tries times at most, until post-processing keeps a lesion.

    Args:
        digest: sha256 of the mammogram.

    Returns:
        The recipe, complete but for its files, and the files: image and mask.
    """
    config = recipe.config
    discarded = unusable = 0
    reason = ""
    for index in range(recipe.number * config.tries, (recipe.number + 1) * config.tries):
        try:
            patch = sampler(index)
        except ValueError as error:
            unusable += 1
            reason = str(error)
            continue
        if network.removes and not network.removes_pathology(patch.pathology):
            unusable += 1
            reason = "the lesion is not malignant"
            continue
        random = sampling.random_stream(config.seed, f"noise of {patch.id}", index)
        seed = int(random.integers(2**63))
        refined = network.generate(patch.image, seed)
        if not refined.kept[0]:
            discarded += 1
            reason = "post-processing discards what the generator makes"
            continue
        source = PatchSource(
            archive=mammogram.archive,
            image_id=mammogram.image_id,
            patient_id=mammogram.patient_id,
            sha256=digest,
            patch=patch.id,
            place=patch.place,
            seed=seed,
        )
        area = float(refined.mask.mean())
        facts = {"discarded": discarded, "unusable": unusable, "source": source, "area": area}
        return recipe.model_copy(update=facts), {
            f"images/{recipe.name}.png": encode_png(quantise(refined.image[0, ..., 0])),
            f"masks/{recipe.name}.png": encode_mask_png(refined.mask[0, ..., 0]),
        }
    left_out = f"none of {config.tries} draws: {reason}"
    facts = {"discarded": discarded, "unusable": unusable, "left_out": left_out}
    return recipe.model_copy(update=facts), {}


def remake(file: Path, output: Path, overrides: Sequence[str] = ()) -> PatchRecipe:
    """Make the patch of a recipe again, into images/ and masks/ of a folder.

    See `tfmammo.synthesis.mammograms.remake`. `overrides` name data.root and the generators.
    """

    def restore(recipe: PatchRecipe, mammogram: Mammogram, _: ArchiveIndexes) -> sets.Contents:
        config = recipe.config
        folder = find_best_weights(config.generators[recipe.target], config.tracking_uri)
        network = load_lesion_generator(folder)
        if network.identity["weights"] != recipe.generator.get("weights"):
            raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
        digest, sampler = _open_source(mammogram, network, config.seed)
        if recipe.source and digest != recipe.source.sha256:
            raise DataError(f"{file}: its source {mammogram.image_id} has changed since (sha256)")
        return draw_patch(recipe, mammogram, network, digest, sampler)[1]

    return sets.remake(PatchRecipe, file, output, overrides, restore)


def describe_scale(data: DataConfig) -> dict[str, Any]:
    """Describe what decides intensities: equal where patches of two sources are comparable."""
    decisive = {"percentiles", "preprocess"} if data.window is None else {"window", "preprocess"}
    return data.model_dump(mode="json", include=decisive)


def check_comparable(name: str, size: int, scale: Mapping[str, Any], real: DataConfig) -> None:
    """Make sure that a network's patches are as large and as bright as real ones.

    Args:
        name: Of the network or its patches; the message of DataError begins with it.
        size: The side of its patches, px.
        scale: `describe_scale` of its data.
        real: How the real patches are made.
    """
    if size != real.size:
        raise DataError(
            f"{name}: its patches have {size} px, the real ones {real.size}; train with "
            f"data.size={real.size}"
        )
    real_scale = describe_scale(real)
    if scale != real_scale:
        raise DataError(
            f"{name}: its patches are made with {scale}, the real ones with {real_scale}; train "
            "with the same data section"
        )


@dataclass(frozen=True, eq=False)
class PatchSet:
    """Synthetic patches in memory.

    Attributes:
        patches: Of the kinds mass, calcification and normal. patient_ids are of the mammograms that
            they show.
        trained_on: Patients that a generator of theirs was trained on.
        scales: `describe_scale` of each generator's data.
        judge_seeds: Seeds of the classifiers that chose the generators' weights.
    """

    folder: Path
    patches: Patches
    trained_on: frozenset[str]
    scales: tuple[dict[str, Any], ...] = ()
    judge_seeds: tuple[int | None, ...] = ()

    @staticmethod
    def read(folder: Path) -> PatchSet:
        """Read all patches of a folder; DataError unless it is finished and whole."""
        try:
            identity = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
            generators = identity["generators"].values()
            trained_on = frozenset().union(*(each["patients"] for each in generators))
            scales = tuple(each["scale"] for each in generators)
            judge_seeds = tuple(each["judge_seed"] for each in generators)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{folder}: contains no patches of `tfmammo synthesize-patches` ({IDENTITY} is "
                "missing or damaged)"
            ) from None
        if not (folder / "README.md").is_file():
            raise DataError(
                f"{folder}: the work on it was not finished; run `tfmammo synthesize-patches` again"
            )
        paths = sorted((folder / "recipes").rglob("*.json"))
        recipes = (read_recipe(PatchRecipe, path) for path in paths)
        patches = stack_patches(
            _read_patch(recipe, folder) for recipe in recipes if not recipe.left_out
        )
        return PatchSet(folder, patches, trained_on, scales, judge_seeds)


def _read_patch(recipe: PatchRecipe, folder: Path) -> Patch:
    assert recipe.source
    if not recipe.is_whole(folder):
        raise DataError(
            f"{folder}: the files of {recipe.name} are not as they were written; run "
            "`tfmammo synthesize-patches` again"
        )
    image, mask = (
        cv2.imread(str(folder / part / f"{recipe.name}.png"), cv2.IMREAD_UNCHANGED)
        for part in ("images", "masks")
    )
    assert image is not None and mask is not None
    return Patch(
        (image.astype(np.float64) / GREY).astype(np.float32)[..., None],
        (mask > 0).astype(np.uint8)[..., None],
        recipe.source.patient_id,
        f"synthetic/{recipe.name}",
        recipe.kind,
        "normal" if recipe.kind == "normal" else "",
        place=recipe.source.place,
    )


def describe_rates(recipes: Sequence[PatchRecipe]) -> list[str]:
    """Describe how many patches of each kind were made, and how many were discarded."""
    lines = []
    for target in dict.fromkeys(recipe.target for recipe in recipes):
        of_kind = [recipe for recipe in recipes if recipe.target == target]
        complete = sum(not recipe.left_out for recipe in of_kind)
        discarded = sum(recipe.discarded for recipe in of_kind)
        generated = complete + discarded
        lines.append(
            f"{KINDS[target]}: {complete} patches; {discarded} of {generated} generated lesions "
            f"discarded ({100 * discarded / max(1, generated):.1f} %); "
            f"{len(of_kind) - complete} skipped (failures.csv)."
        )
    return lines


def format_readme(recipes: Sequence[PatchRecipe]) -> str:
    """Format the set's card as Markdown: counts, discard rates, origin."""
    config = recipes[0].config
    lines = [
        f"# {config.name}: synthetic patches, not for diagnosis",
        *describe_rates(recipes),
        f"Source's licence: {card.LICENCES.get(config.data.archive_name, card.UNKNOWN)}",
        "A patient's synthetic and real patches belong on the same side of a split; "
        f"{IDENTITY} names whom the generators know.",
    ]
    return "\n\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    command = ("synthesize-patches", __doc__, PatchSynthesisConfig, "patch_synthesis")
    sets.run_command(arguments, *command, synthesize, remake)


if __name__ == "__main__":
    # Workers must find everything under its real name; what runs as __main__ has another.
    from tfmammo.synthesis import patches as module

    module.main()
