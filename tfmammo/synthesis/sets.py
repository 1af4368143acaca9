"""How a synthetic set is made: items with recipes, by workers, and each one again from its recipe.

tfmammo.synthesis.mammograms and tfmammo.synthesis.patches say what an item is. All else that makes
a set resumable and repeatable stands here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2

from tfmammo import config as configuration
from tfmammo import filesystem
from tfmammo.archives.files import remove_names
from tfmammo.data import card, jobs
from tfmammo.data.runners import Runner
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.provenance import (
    REASONS,
    ItemRecipe,
    collect_versions,
    explain,
    find_source,
    read_recipe,
)
from tfmammo.synthesis.sources import ArchiveIndexes

log = logging.getLogger(__name__)

LEFT_OUT = (*REASONS, OSError, cv2.error)  # of an item, for its own files; anything else is a bug
AnyRecipe = TypeVar("AnyRecipe", bound=ItemRecipe)
Contents = Mapping[str, Callable[[Path], object]]  # path beneath the set's folder -> what writes it


@dataclass(frozen=True)
class Job(Generic[AnyRecipe]):
    """Items of one mammogram: a part of the work. Small, because it is pickled for its worker.

    Attributes:
        folder: The set's folder.
        mammogram: The mammogram that they are made from.
        recipes: What is decided of each item before it is made.
        open: Opens the networks in a worker; a function of a module. It returns what makes an item:
            the recipe, complete but for its files, and what writes these. It raises DataError where
            a network was replaced since the work began.
        networks: Where the networks lie, for `open`.
    """

    folder: Path
    mammogram: Mammogram
    recipes: tuple[AnyRecipe, ...]
    open: Callable[[Job[AnyRecipe]], Callable[[AnyRecipe], tuple[AnyRecipe, Contents]]]
    networks: Any

    def read(self, planned: AnyRecipe) -> AnyRecipe | None:
        """Read the recipe of a finished item. None unless its files are there as written."""
        try:
            recipe = read_recipe(type(planned), planned.find_path(self.folder))
        except DataError:
            return None
        is_finished = recipe.identity == planned.identity and recipe.is_whole(self.folder)
        return recipe if is_finished else None


def complete(
    parts: Sequence[Job[AnyRecipe]], runner: Runner, retry: bool = False
) -> list[AnyRecipe]:
    """Make the items that are missing in a claimed folder, and read the recipes of all.

    Args:
        parts: All items.
        runner: Who makes them.
        retry: Make again what was left out.

    Returns:
        The recipes by their numbers, those of items that were left out included.

    Raises:
        DataError: The work stopped before its end.
    """
    for job in parts if retry else ():
        for planned in job.recipes:
            recipe = job.read(planned)
            if recipe and recipe.left_out:
                planned.find_path(job.folder).unlink()
    steps: jobs.PartSteps[Job[AnyRecipe], list[AnyRecipe]] = jobs.PartSteps(
        make=make,
        read=_read_recipes,
        name=lambda job: job.recipes[0].find_path(job.folder),
        command="synthesis",
    )
    records = jobs.complete_parts(parts, steps, runner)
    recipes = [recipe for record in records for recipe in record]
    return sorted(recipes, key=lambda recipe: recipe.number)


def _read_recipes(job: Job[AnyRecipe]) -> list[AnyRecipe] | None:
    """Read the recipes of a finished job. None unless all items are there as written."""
    recipes = []
    for planned in job.recipes:
        recipe = job.read(planned)
        if recipe is None:
            return None
        recipes.append(recipe)
    return recipes


def make(job: Job[AnyRecipe]) -> None:
    """Make the items of a job that are not there: their files, then their recipes.

    Of an item that can't be made there is only the recipe, which says why.

    Raises:
        DataError: A network was replaced since the work began.
        OSError: The folder can't be written.
        RuntimeError: A fault that no file explains.
    """
    draw = job.open(job)
    name = job.mammogram.image_id
    for planned in job.recipes:
        if job.read(planned):
            continue
        try:
            with jobs.use_one_thread():
                recipe, contents = draw(planned)
        except LEFT_OUT as error:
            recipe, contents = leave_out(planned, error), {}
        except Exception as error:
            # A fault of this code. As a dead letter it would quietly cost every item.
            raise RuntimeError(f"{name}: {error.__class__.__name__}: {error}") from error
        recipe = recipe.model_copy(update={"files": write_files(contents, job.folder)})
        path = recipe.find_path(job.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.write_atomically(path, recipe.model_dump_json(indent=1) + "\n", durable=False)


def leave_out(recipe: AnyRecipe, error: Exception) -> AnyRecipe:
    """Say in a recipe why its item can't be made: a run of days must not end because of one file.

    Args:
        recipe: The recipe.
        error: One of `LEFT_OUT`.
    """
    log.debug("%s", recipe.name, exc_info=error)
    reason = explain(error, recipe.config.archive_folders)
    return recipe.model_copy(update={"left_out": reason})


def write_files(contents: Contents, folder: Path) -> dict[str, str]:
    """Write an item's files, and return the sha256 of each by its path beneath the folder.

    Raises:
        DataError: A path leads out of the folder.
    """
    digests = {}
    for name, write in contents.items():
        path = jobs.resolve_inside(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.atomic_file(path) as part:
            write(part)
            digests[name] = filesystem.sha256(part)
    return digests


def bytes_writer(content: bytes) -> Callable[[Path], object]:
    """Make what writes these bytes into a file."""
    return lambda path: path.write_bytes(content)


def remake(
    kind: type[AnyRecipe],
    file: Path,
    output: Path,
    overrides: Sequence[str],
    restore: Callable[[AnyRecipe, Mammogram, ArchiveIndexes], Contents],
) -> AnyRecipe:
    """Make the item of a recipe again.

    Args:
        kind: The recipe's class.
        file: The recipe.
        output: The folder to write into.
        overrides: Of its config: where archives and networks lie now.
        restore: Makes the item's files from its recipe, its mammogram, and the archives that were
            read already. It raises DataError where they are not those of the recipe.

    Raises:
        DataError: The mammogram is not there, `restore` raised it, or a file comes out differently.
        TfmammoError: Something can't be used.
    """
    recipe = configuration.parse(kind, file, [f"config.{override}" for override in overrides])
    source = recipe.source
    if source is None or recipe.left_out:
        raise DataError(f"{file}: is of an item that could not be made ({recipe.left_out})")
    indexes = ArchiveIndexes()
    mammogram = find_source(source.archive, source.image_id, recipe.config.data, file, indexes)
    with jobs.use_one_thread():
        contents = restore(recipe, mammogram, indexes)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=output) as made:
        files = write_files(contents, Path(made))
        differing = sorted(dict(files.items() ^ recipe.files.items()))
        if differing:
            raise DataError(
                f"{output}: {', '.join(differing)} came out otherwise than then; made with "
                f"{recipe.versions} then, with {collect_versions()} now"
            )
        filesystem.move_files(Path(made), output, files)
    return recipe


def write_dead_letters(skipped: Skipped, left_out: Iterable[tuple[str, str]], output: Path) -> None:
    """Write dead_letters.csv of a set.

    Args:
        skipped: What of the archives could not be used.
        left_out: Names of items, and why they could not be made.
        output: The set's folder.
    """
    dead_letters = Skipped(dict(skipped.reasons))
    for name, reason in left_out:
        dead_letters.add(name, reason)
    content = card.format_dead_letters(remove_names(dead_letters.reasons, skipped.root))
    filesystem.write_atomically(output / "dead_letters.csv", content, durable=False)
