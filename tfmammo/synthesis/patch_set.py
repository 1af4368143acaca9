"""A set of synthetic patches on disk: what `tfmammo synthesize-patches` writes.

    images/KIND/000000.png (16 bits)   masks/KIND/000000.png   recipes/KIND/000000.json
    patch_set.json   README.md

KIND is mass, calcification or normal. A normal patch is one whose lesion was removed. A mask shows
what was added or removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tfmammo.config import DataConfig
from tfmammo.data import card
from tfmammo.data.patches import Patch, Patches, stack_patches
from tfmammo.data.tfrecord import GREY
from tfmammo.errors import DataError
from tfmammo.synthesis.config import KINDS
from tfmammo.synthesis.recipe import PatchRecipe, read_recipe

IDENTITY = "patch_set.json"


def describe_scale(data: DataConfig) -> dict[str, Any]:
    """Describe what decides intensities: equal where patches of two sources are comparable."""
    decisive = {"percentiles", "preprocess"} if data.window is None else {"window", "preprocess"}
    return data.model_dump(mode="json", include=decisive)


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
                f"{folder}: holds no patches that tfmammo.synthesis.patches wrote ({IDENTITY} is "
                "missing or damaged)"
            ) from None
        if not (folder / "README.md").is_file():
            raise DataError(
                f"{folder}: the work on it was not finished; run tfmammo.synthesis.patches again"
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
            "tfmammo.synthesis.patches again"
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
