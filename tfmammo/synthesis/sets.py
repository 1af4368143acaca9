"""The engine of synthetic sets: items with recipes, made by workers and again from their recipes.

tfmammo.synthesis.mammograms and tfmammo.synthesis.patches say what an item is. What makes a set
resumable and repeatable is here, the command line included.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import cv2
from pydantic import BaseModel

from tfmammo import __version__, archives, cli, filesystem
from tfmammo import config as configuration
from tfmammo.archives.files import remove_names
from tfmammo.data import runners
from tfmammo.data.runners import Runner
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.config import PatchSynthesisConfig, SynthesisConfig
from tfmammo.synthesis.recipe import (
    FORMAT,
    REASONS,
    AnyRecipe,
    ArchiveIndexes,
    collect_versions,
    explain,
    find_source,
    read_recipe,
)

log = logging.getLogger(__name__)

LEFT_OUT = (*REASONS, OSError, cv2.error)  # of an item, for its own files; anything else is a bug
# path beneath the set's folder -> its content, or what writes it
Contents = Mapping[str, bytes | Callable[[Path], object]]
Draw = Callable[[AnyRecipe], tuple[AnyRecipe, Contents]]
# Keys that decide no item, or that identities describe otherwise: where things are, and how many.
_IRRELEVANT = {"data", "lesions", "generator", "generators", "shapes", "patients"}
_IRRELEVANT |= {"tracking_uri", "count"}


@dataclass(frozen=True)
class Job(Generic[AnyRecipe]):
    """Items of one mammogram: a part of the work. Small, because it is pickled for its worker.

    Attributes:
        recipes: What is decided of each item before it is made.
        open: Opens the networks in a worker; a function of a module. It returns what makes an item:
            the recipe, complete but for its files, and what writes these. It raises DataError where
            a network was replaced since the work began.
        networks: Where the networks are, for `open`.
    """

    folder: Path
    mammogram: Mammogram
    recipes: tuple[AnyRecipe, ...]
    open: Callable[[Job[AnyRecipe]], Draw[AnyRecipe]]
    networks: Any

    def read(self, planned: AnyRecipe) -> AnyRecipe | None:
        """Read the recipe of a finished item. None unless its files are there as written."""
        try:
            recipe = read_recipe(type(planned), planned.find_path(self.folder))
        except DataError:
            return None
        is_finished = recipe.identity == planned.identity and recipe.is_whole(self.folder)
        return recipe if is_finished else None


@dataclass(frozen=True, eq=False)
class Plan(Generic[AnyRecipe]):
    """Items of one kind, made from mammograms in turn.

    Attributes:
        first: What is decided of all of them. Its config says how many are wanted.
        open: As of Job.
        networks: As of Job.
        spare: How often as many numbers are tried, until so many items are made.
        grouped: Whether one job makes all items of a mammogram, which takes long to open.
        names: What an item and items are called.
    """

    first: AnyRecipe
    mammograms: Sequence[Mammogram]
    open: Callable[[Job[AnyRecipe]], Draw[AnyRecipe]]
    networks: Any
    spare: int = 1
    grouped: bool = False
    names: tuple[str, str] = ("item", "items")

    def list_jobs(self, folder: Path, total: int) -> list[Job[AnyRecipe]]:
        """List the jobs that make the items 0 to `total`."""
        every = len(self.mammograms)
        recipes = [
            self.first.model_copy(update={"number": number, "repeat": number // every})
            for number in range(total)
        ]
        count = min(every, total) if self.grouped else total  # of jobs
        starts = [recipes[start::count] for start in range(count)]
        return [
            Job(folder, self.find_mammogram(some[0]), tuple(some), self.open, self.networks)
            for some in starts
        ]

    def find_mammogram(self, recipe: AnyRecipe) -> Mammogram:
        """Return the mammogram that an item is made from."""
        return self.mammograms[recipe.number % len(self.mammograms)]


def describe_identity(
    config: SynthesisConfig | PatchSynthesisConfig, mammograms: Sequence[Mammogram], **parts: object
) -> dict[str, Any]:
    """Describe everything that decides the items of a set."""
    return {
        "format": FORMAT,
        "tfmammo": __version__,
        "config": config.model_dump(mode="json", exclude=_IRRELEVANT),
        "archive": archives.describe_archive(config.data, mammograms),
        **parts,
    }


def make_first(
    kind: type[AnyRecipe],
    identity: Mapping[str, Any],
    config: SynthesisConfig | PatchSynthesisConfig,
    generator: Mapping[str, str],
    **facts: Any,
) -> AnyRecipe:
    """Make the recipe that holds what is decided of all items of a plan."""
    digest = hashlib.sha256(filesystem.to_json(identity).encode()).hexdigest()
    content: dict[str, Any] = {"identity": digest, "config": config, "generator": generator}
    return kind(number=0, versions=collect_versions(), **content, **facts)


def synthesize(
    plans: Sequence[Plan[AnyRecipe]],
    identity: Mapping[str, Any],
    file: str,
    skipped: Skipped,
    output: Path,
    runner: Runner,
    retry: bool,
    describe: Callable[[Sequence[AnyRecipe]], Mapping[str, str]],
) -> list[AnyRecipe]:
    """Synthesize a set, or complete one that was stopped; see `mammograms.synthesize`.

    Args:
        identity: From `describe_identity`; kept in `file`.
        skipped: What of the archives could not be used, for failures.csv.
        describe: Describes all recipes: name of a file -> content. README.md is one. It says that
            the set is finished.
    """
    with filesystem.claim_folder(output, identity, file):
        (output / "README.md").unlink(missing_ok=True)
        recipes: list[AnyRecipe] = []
        failures = Skipped(remove_names(skipped.reasons, skipped.root))
        for plan in plans:
            made = _complete_plan(plan, output, runner, retry)
            recipes += made
            for recipe in made:
                for reason in (recipe.left_out, *recipe.notes):
                    if reason:
                        image_id = plan.find_mammogram(recipe).image_id
                        failures.add(f"item {recipe.name} of {image_id}", reason)
            filesystem.write_atomically(output / "failures.csv", failures.to_csv(), durable=False)
            if all(recipe.left_out for recipe in made):
                raise DataError(
                    f"{output}: no {plan.names[0]} could be made, failures.csv says why; the "
                    f"first: {made[0].left_out}"
                )
        for name, content in describe(recipes).items():
            filesystem.write_atomically(output / name, content, durable=False)
    return recipes


def _complete_plan(
    plan: Plan[AnyRecipe], output: Path, runner: Runner, retry: bool
) -> list[AnyRecipe]:
    """Make the missing items of a plan, and others in place of those that can't be made.

    Returns:
        The recipes by their numbers, including those of skipped items.
    """
    total = wanted = plan.first.config.count
    while True:
        used = min(total, len(plan.mammograms))
        log.info("%d %s from %d mammograms, into %s", total, plan.names[1], used, output)
        parts = plan.list_jobs(output, total)
        for job in parts if retry else ():
            for planned in job.recipes:
                recipe = job.read(planned)
                if recipe and recipe.left_out:
                    planned.find_path(job.folder).unlink()
        records = runners.complete_parts(
            parts, make, _read_recipes, lambda job: job.recipes[0].find_path(job.folder), runner
        )
        recipes = [recipe for record in records for recipe in record]
        complete = sum(not recipe.left_out for recipe in recipes)
        if complete >= wanted or total >= plan.spare * wanted:
            break
        total = min(plan.spare * wanted, total + wanted - complete)
    reasons = Counter(recipe.left_out for recipe in recipes if recipe.left_out).most_common(3)
    left_out = "".join(f"; {count} skipped: {reason}" for reason, count in reasons)
    log.info("%d of %d %s%s", complete, wanted, plan.names[1], left_out)
    return sorted(recipes, key=lambda recipe: recipe.number)


def _read_recipes(job: Job[AnyRecipe]) -> list[AnyRecipe] | None:
    """Read the recipes of a finished job. None unless all items are there as written."""
    recipes = [recipe for planned in job.recipes if (recipe := job.read(planned))]
    return recipes if len(recipes) == len(job.recipes) else None


def make(job: Job[AnyRecipe]) -> None:
    """Make the items of a job that are not there: their files, then their recipes.

    An item that can't be made leaves a recipe alone, which says why: a run of days must not end
    because of one file.
    """
    draw = job.open(job)
    name = job.mammogram.image_id
    for planned in job.recipes:
        if job.read(planned):
            continue
        try:
            with runners.use_one_thread():
                recipe, contents = draw(planned)
        except LEFT_OUT as error:
            recipe, contents = leave_out(planned, error), {}
        except Exception as error:
            # A bug. As a failure it would quietly cost every item.
            raise RuntimeError(f"{name}: {error.__class__.__name__}: {error}") from error
        recipe = recipe.model_copy(update={"files": write_files(contents, job.folder)})
        path = recipe.find_path(job.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.write_atomically(path, recipe.model_dump_json(indent=1) + "\n", durable=False)


def leave_out(recipe: AnyRecipe, error: Exception) -> AnyRecipe:
    """Say in a recipe why its item can't be made."""
    log.debug("%s", recipe.name, exc_info=error)
    reason = explain(error, recipe.config.archive_folders)
    return recipe.model_copy(update={"left_out": reason})


def write_files(contents: Contents, folder: Path) -> dict[str, str]:
    """Write an item's files, and return the sha256 of each by its path beneath the folder."""
    digests = {}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.atomic_file(path) as part:
            if isinstance(content, bytes):
                part.write_bytes(content)
            else:
                content(part)
            digests[name] = filesystem.sha256(part)
    return digests


def remake(
    kind: type[AnyRecipe],
    file: Path,
    output: Path,
    overrides: Sequence[str],
    restore: Callable[[AnyRecipe, Mammogram, ArchiveIndexes], Contents],
) -> AnyRecipe:
    """Make the item of a recipe again; see `mammograms.remake`.

    Args:
        restore: Makes the item's files from its recipe, its mammogram, and the archives that were
            read already. It raises DataError where they are not those of the recipe.
    """
    recipe = configuration.parse(kind, file, [f"config.{override}" for override in overrides])
    source = recipe.source
    if source is None or recipe.left_out:
        raise DataError(f"{file}: is of an item that could not be made ({recipe.left_out})")
    indexes = ArchiveIndexes()
    mammogram = find_source(source, recipe.config.data, file, indexes)
    with runners.use_one_thread():
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


def run_command(
    arguments: Sequence[str] | None,
    name: str,
    doc: str | None,
    schema: type[BaseModel],
    example: str,
    synthesize: Callable[..., Collection[Any]],
    remake: Callable[..., Any],
) -> None:
    """Run the command of a synthesis. An error becomes one line on stderr and exit code 2.

    Args:
        arguments: Those of the command line; None for this process's.
        doc: The text of --help.
        example: A shipped config.
    """
    parser = cli.make_command_parser(name, doc)
    parser.schema = schema
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--config", metavar="FILE", help=f"a YAML file, or a shipped config: {example}"
    )
    inputs.add_argument("--recipe", metavar="FILE", type=Path, help="make this item again")
    parser.add_overrides()
    parser.add_data()
    parser.add_print_config()
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument("--retry", action="store_true", help="try again what could not be made")
    runners.add_options(parser)
    options, runner = runners.parse(parser, arguments)
    if options.recipe and options.print_config:
        parser.error("--print-config shows what --config would run, and takes no --recipe")

    def work() -> None:
        if options.recipe:
            recipe = remake(options.recipe, options.output.resolve(), options.set)
            log.info("%s: made again, bit for bit", recipe.name)
        else:
            config = cli.read_config(schema, options)  # ends here where it is only printed
            recipes = synthesize(config, options.output.resolve(), runner, options.retry)
            made = sum(not recipe.left_out for recipe in recipes)
            left_out = "; not used: failures.csv" if made < len(recipes) else ""
            print(f"{made} of {len(recipes)} items: {options.output}{left_out}")

    cli.run(work)
