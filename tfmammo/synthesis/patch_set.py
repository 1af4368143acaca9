"""A set of synthetic patches on disk: what `python -m tfmammo.synthesis.patches` writes,
and how a training reads it.

    images/KIND/000000.png (16 bits)   masks/KIND/000000.png   recipes/KIND/000000.json
    patch_set.json   README.md

KIND is mass, calcification or normal; a normal patch is one whose lesion was removed. A mask shows
what was added or removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, field_serializer

from tfmammo.config import DataConfig, Frozen
from tfmammo.data.patches import Patch, Patches, stack
from tfmammo.data.tfrecord import GREY
from tfmammo.errors import DataError
from tfmammo.mammogram import Box
from tfmammo.synthesis.config import KINDS, PatchSynthesisConfig, Target
from tfmammo.synthesis.provenance import as_written, passed_on, read

FORMAT: Final = 1
IDENTITY = "patch_set.json"


class PatchSource(Frozen):
    """What a patch was made from, by pseudonym."""

    archive: str
    image_id: str
    patient_id: str
    sha256: str
    """Of the mammogram's file, or of its pixels where there is none."""
    patch: str
    """The id of the real one, place: its window in the mammogram as prepared, px."""
    place: Box
    seed: NonNegativeInt
    """Of the generator's random numbers."""


class PatchRecipe(Frozen):
    """What makes one patch again, and what came out."""

    format: Literal[1] = FORMAT
    identity: str
    """Hash of what decides a whole set."""
    target: Target
    """The generator's."""
    number: NonNegativeInt
    """Of the patch among its kind."""
    config: PatchSynthesisConfig
    """Written as recipe.passed_on leaves it."""
    versions: dict[str, str]
    generator: dict[str, str]
    """Name, step and weights, as in Recipe."""
    source: PatchSource | None = None
    discarded: NonNegativeInt = 0
    """What post-processing refused of earlier draws."""
    unusable: NonNegativeInt = 0
    """Draws without a patch, for too little tissue or another pathology."""
    left_out: str | None = None
    """Why there is none."""
    area: NonNegativeFloat = 0.0
    """Of the mask, part of the patch."""
    files: dict[str, str] = {}
    """Sha256 by path beneath the folder."""

    @field_serializer("config")
    def _passed_on(self, chosen: PatchSynthesisConfig) -> dict[str, Any]:
        return passed_on(chosen)

    @property
    def kind(self) -> str:
        """Mass, calcification or normal."""
        return KINDS[self.target]

    @property
    def name(self) -> str:
        """KIND/NUMBER, of its files."""
        return f"{self.kind}/{self.number:06d}"

    def is_whole(self, folder: Path) -> bool:
        """Whether all its files are in the folder as they were written."""
        return as_written(folder, self.files)


def patch_scale(data: DataConfig) -> dict[str, Any]:
    """What decides the grey values of patches: those of two sources are comparable where this is
    equal.
    """
    decisive = {"percentiles", "preprocess"} if data.window is None else {"window", "preprocess"}
    return data.model_dump(mode="json", include=decisive)


def read_patch_recipe(path: Path) -> PatchRecipe:
    """A patch's recipe.

    Raises:
        DataError: It is missing or damaged.
    """
    return read(PatchRecipe, path, "recipe of a patch")


def stored_image(image: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 [size, size, 1] in [0, 1] -> uint16 [size, size]: rint(65535 * value)."""
    return np.rint(image[..., 0] * np.float64(GREY)).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class PatchSet:
    """Synthetic patches in memory.

    Attributes:
        patches: Kinds mass, calcification and normal, patient_ids of the mammograms they show.
        trained_on: The patients that a generator of theirs was trained on.
        scales: `patch_scale` of each generator's data.
    """

    folder: Path
    patches: Patches
    trained_on: frozenset[str]
    scales: tuple[dict[str, Any], ...] = ()

    @staticmethod
    def read(folder: Path) -> PatchSet:
        """All patches of a folder.

        Raises:
            DataError: It is no such folder, the work on it was not finished, or a file is not as it
                was written.
        """
        try:
            known = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
            trained_on = frozenset(
                name for one in known["generators"].values() for name in one["patients"]
            )
            scales = tuple(one["scale"] for one in known["generators"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{folder}: holds no patches that tfmammo.synthesis.patches wrote ({IDENTITY} is "
                "missing or damaged)"
            ) from None
        if not (folder / "README.md").is_file():
            raise DataError(
                f"{folder}: the work on it was not finished; run tfmammo.synthesis.patches again"
            )
        recipes = (read_patch_recipe(path) for path in sorted((folder / "recipes").rglob("*.json")))
        return PatchSet(
            folder,
            stack(_patch(recipe, folder) for recipe in recipes if not recipe.left_out),
            trained_on,
            scales,
        )


def _patch(recipe: PatchRecipe, folder: Path) -> Patch:
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


def readme(recipes: Sequence[PatchRecipe], licence: str) -> str:
    """The set's card, as Markdown: counts, discard rates, origin."""
    lines = [
        f"# {recipes[0].config.name}: synthetic patches, not for diagnosis",
        *_counted(recipes),
        f"Source's licence: {licence}",
    ]
    lines.append(
        "A patient's synthetic and real patches belong on the same side of a split; "
        "patch_set.json names whom the generators know."
    )
    return "\n\n".join(lines) + "\n"


def _counted(recipes: Sequence[PatchRecipe]) -> Iterable[str]:
    for target in dict.fromkeys(recipe.target for recipe in recipes):
        mine = [recipe for recipe in recipes if recipe.target == target]
        made = sum(not recipe.left_out for recipe in mine)
        left_out = f"{len(mine) - made} left out (dead_letters.csv)"
        yield f"{KINDS[target]}: {made} patches; {rates(mine)}; {left_out}."


def rates(recipes: Sequence[PatchRecipe]) -> str:
    """How much post-processing discarded, in a few words."""
    made = sum(not recipe.left_out for recipe in recipes)
    discarded = sum(recipe.discarded for recipe in recipes)
    return (
        f"{discarded} of {made + discarded} generated lesions discarded "
        f"({100 * discarded / max(1, made + discarded):.1f} %)"
    )
