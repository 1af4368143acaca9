"""One synthetic patch: where its real patch lies, and which noise gives it a lesion."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.data.extraction import make_sampler
from tfmammo.data.patches import Patch
from tfmammo.errors import DataError
from tfmammo.filesystem import sha256
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.nn.postprocessing import Refined
from tfmammo.synthesis.config import PatchSynthesisConfig
from tfmammo.synthesis.generators import LesionGenerator
from tfmammo.synthesis.patch_set import PatchRecipe, PatchSource

Sampler = Callable[[int], Patch]  # draws a patch by its number


@dataclass(frozen=True, eq=False)
class SyntheticPatch:
    """One synthetic patch, with what it was made from.

    Attributes:
        patch: The real patch.
        refined: The generator's answer, post-processed, of one patch.
        seed: Seed of the generator's noise.
    """

    patch: Patch
    refined: Refined
    seed: int


def open_source(mammogram: Mammogram, network: LesionGenerator, seed: int) -> tuple[str, Sampler]:
    """Open a mammogram: its sha256, and what draws patches of it.

    Raises:
        DataError: It has nothing to make a patch of.
    """
    skipped = Skipped()
    sampler = make_sampler(mammogram, _make_patch_data(network, seed), skipped)
    if sampler is None:
        raise DataError(next(iter(skipped.reasons.values()), "it has nothing to make a patch of"))
    if mammogram.file:
        return sha256(mammogram.file), sampler
    return hashlib.sha256(mammogram.pixels().tobytes()).hexdigest(), sampler


def _make_patch_data(network: LesionGenerator, seed: int) -> DataConfig:
    """Make the data section of a generator's input patches, as those of its training."""
    return network.data.model_copy(
        update={"patches": "offset" if network.removes else "normal", "seed": seed}
    )


def make_patch(
    recipe: PatchRecipe,
    mammogram: Mammogram,
    network: LesionGenerator,
    digest: str,
    sampler: Sampler,
) -> tuple[PatchRecipe, SyntheticPatch | None]:
    """Make a patch and its recipe, which has no files yet."""
    config = recipe.config
    patch, discarded, unusable, reason = draw_patch(sampler, network, config, recipe.number)
    updates: dict[str, Any] = {"discarded": discarded, "unusable": unusable}
    if patch is None:
        updates["left_out"] = f"none of {config.tries} draws: {reason}"
        return recipe.model_copy(update=updates), None
    updates["source"] = PatchSource(
        archive=mammogram.archive,
        image_id=mammogram.image_id,
        patient_id=mammogram.patient_id,
        sha256=digest,
        patch=patch.patch.id,
        place=patch.patch.place,
        seed=patch.seed,
    )
    updates["area"] = float(patch.refined.mask.mean())
    return recipe.model_copy(update=updates), patch


def draw_patch(
    draw: Sampler,
    network: LesionGenerator,
    config: PatchSynthesisConfig,
    number: int,
) -> tuple[SyntheticPatch | None, int, int, str]:
    """Draw places and noise until post-processing keeps a lesion.

    Args:
        draw: Draws a patch by its number, from data.extraction.make_sampler.
        network: The generator.
        config: seed and tries are used.
        number: Number of the patch among its kind.

    Returns:
        The patch, None where none came of `tries` draws; how many lesions were discarded; how many
        draws gave no patch to work on; and the last reason for either.
    """
    discarded = 0
    unusable = 0
    reason = ""
    for index in range(number * config.tries, (number + 1) * config.tries):
        try:
            patch = draw(index)
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
        if refined.kept[0]:
            return SyntheticPatch(patch, refined, seed), discarded, unusable, ""
        discarded += 1
        reason = "post-processing discards what the generator makes"
    return None, discarded, unusable, reason
