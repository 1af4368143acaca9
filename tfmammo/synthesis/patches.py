"""Real patches -> patches with lesions, or without theirs, by the thousand: the synthetic
part of a classifier's training.

    python -m tfmammo.synthesis.patches --config configs/patch_synthesis.yaml --output DIR [--set
    KEY=VALUE ...] [Beam's own flags]
    python -m tfmammo.synthesis.patches --recipe DIR/recipes/mass/000000.json --output OTHER [--set
    data.root=DIR]

For each patch a place on a normal mammogram (for removal: near a malignant lesion) is drawn as the
generator's training patches were, the generator's lesion is post-processed and added; what
post-processing discards is drawn again, and counted. Every patch follows from the config and its
number alone: a run that was stopped goes on where it was, and a recipe makes its patch again, bit
for bit with the same TensorFlow on the same kind of machine. What could not be made is a dead
letter with its reason, and others are made in its stead.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs (2020), section 3, Synthetic
dataset: 5,000 of each kind.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tfmammo import (
    __version__,
    archives,
    cli,
    config,
    filesystem,
)
from tfmammo.archives import source_file
from tfmammo.archives.files import without_names
from tfmammo.archives.writers.synthetic import encoded, mask_png
from tfmammo.config import DataConfig
from tfmammo.data import card, jobs, sampling
from tfmammo.data.patches import Patch, drawer
from tfmammo.data.tfrecord import sha256
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.postprocessing import Refined
from tfmammo.synthesis.config import KINDS, PatchSynthesisConfig
from tfmammo.synthesis.generators import (
    LesionGenerator,
    best_weights,
    lesion_generator,
    same_network,
)
from tfmammo.synthesis.patch_set import (
    FORMAT,
    IDENTITY,
    PatchRecipe,
    PatchSource,
    patch_scale,
    rates,
    read_patch_recipe,
    readme,
    stored_image,
)
from tfmammo.synthesis.provenance import REASONS, explained, source_of, versions

log = logging.getLogger(__name__)

MOST = 4  # times the count, of numbers tried before a kind is given up
# hashed otherwise, or of no account for a patch
_IRRELEVANT = {"data", "generators", "tracking_uri", "count"}


@dataclass(frozen=True)
class Job:
    """The patches of one mammogram by one generator: an element of the pipeline.

    Attributes:
        recipes: What is known of each before.
    """

    folder: Path
    mammogram: Mammogram
    network: Path
    recipes: tuple[PatchRecipe, ...]


@dataclass(frozen=True, eq=False)
class Made:
    """One synthetic patch, with what it was made from.

    Attributes:
        refined: Of one patch.
    """

    patch: Patch
    refined: Refined
    seed: int


def synthesise(
    chosen: PatchSynthesisConfig, output: Path, flags: Sequence[str] = ()
) -> list[PatchRecipe]:
    """Make what is missing of a set.

    Args:
        chosen: The config.
        output: A new folder, or one of an earlier run of the same.
        flags: Beam's own.

    Returns:
        The recipes of all patches, those left out included.

    Raises:
        ConfigError: Something named in the config can't be used, or `output` belongs to other work.
        ArchiveError: Something named in the config can't be used, or `output` belongs to other
            work.
        ExportError: Something named in the config can't be used, or `output` belongs to other work.
        TrackingError: Something named in the config can't be used, or `output` belongs to other
            work.
        DataError: A kind can't be made at all, or a worker failed.
    """
    skipped = Skipped()
    mammograms = archives.mammograms(chosen.data, skipped)
    networks = {
        target: best_weights(handle, chosen.tracking_uri)
        for target, handle in sorted(chosen.generators.items())
    }
    sources = {
        target: suitable(mammograms, chosen, lesion_generator(network), target)
        for target, network in networks.items()
    }
    known = _identity(chosen, mammograms, networks)
    with jobs.claimed(output, known, IDENTITY):
        (output / "README.md").unlink(missing_ok=True)  # it says that all is there
        recipes: list[PatchRecipe] = []
        for target, network in networks.items():
            recipes += _all_of(target, chosen, network, sources[target], known, output, flags)
        _finish(recipes, skipped, archives.archive_name(chosen.data), output)
    return recipes


def suitable(
    mammograms: Sequence[Mammogram],
    chosen: PatchSynthesisConfig,
    network: LesionGenerator,
    target: str,
) -> list[Mammogram]:
    """The mammograms that a generator may work on, in an order drawn by the seed.

    Raises:
        DataError: There is none, or the generator is for another target.
    """
    if network.target != target:
        raise DataError(
            f"generators.{target}: {chosen.generators[target]} was trained with "  # type: ignore[index]
            f"model.target={network.target}"
        )
    of_patients = [
        one for one in mammograms if chosen.patients == "all" or one.patient_id in network.patients
    ]

    def fits(one: Mammogram) -> bool:
        if not network.removes:
            return sampling.gives_normal(one, network.data.sampling)
        return any(
            network.wants(lesion.pathology or "")
            for lesion in sampling.wanted(one, network.data).values()
        )

    found = [one for one in of_patients if fits(one)]
    if not found:
        what = (
            f"holds a {'malignant ' if network.positives == 'malignant' else ''}lesion"
            if network.removes
            else "is normal"
        )
        raise DataError(
            f"generators.{target}: none of {len(of_patients)} mammograms of patients that it was "
            f"trained on {what} (patients=all takes all)"
            if chosen.patients == "trained"
            else f"generators.{target}: none of {len(of_patients)} mammograms {what}"
        )
    order = np.random.default_rng(chosen.seed).permutation(len(found))
    return [found[place] for place in order]


def make(job: Job) -> None:
    """Make the patches of a job that are not there: files, then recipes.

    Raises:
        OSError: The folder can't be written.
        RuntimeError: A fault that no file explains.
    """
    missing = [recipe for recipe in job.recipes if _known(recipe, job.folder) is None]
    if not missing:
        return
    network = lesion_generator(job.network)
    if network.identity != missing[0].generator:
        raise DataError(f"{job.network}: was replaced by another training while the work went on")
    try:
        with jobs.one_thread():
            source, draw = _opened(job.mammogram, network, missing[0].config)
            for recipe in missing:
                _write(_patch(recipe, job, network, source, draw), job.folder)
    except (*REASONS, cv2.error) as error:
        places = [missing[0].config.data.root] if missing[0].config.data.root else []
        for recipe in missing:
            _write(
                (recipe.model_copy(update={"left_out": explained(error, places)}), None), job.folder
            )
    except OSError as error:  # of the folder, which would cost every patch
        raise OSError(f"{job.folder}: {error.__class__.__name__}: {error}") from error
    except Exception as error:  # ours: kept as a dead letter, it would quietly cost every patch
        raise RuntimeError(
            f"{job.mammogram.image_id}: {error.__class__.__name__}: {error}"
        ) from error


def patch_data(network: LesionGenerator, seed: int) -> DataConfig:
    """How patches for a generator are drawn: as those it was trained on that it starts from."""
    return network.data.model_copy(
        update={"patches": "offset" if network.removes else "normal", "seed": seed}
    )


def drawn(
    draw: Callable[[int], Patch],
    network: LesionGenerator,
    chosen: PatchSynthesisConfig,
    number: int,
) -> tuple[Made | None, int, int, str]:
    """Draw until post-processing keeps something.

    Args:
        draw: As data.patches.drawer gives it.
        number: Of the patch among its kind.

    Returns:
        The patch, None where none came of `tries` draws; how many lesions were discarded, how many
        draws gave no patch to work on; and the last reason for either.
    """
    discarded = 0
    unusable = 0
    reason = ""
    for index in range(number * chosen.tries, (number + 1) * chosen.tries):
        try:
            patch = draw(index)
        except ValueError as error:
            unusable = unusable + 1
            reason = str(error)
            continue
        if network.removes and not network.wants(patch.pathology):
            unusable = unusable + 1
            reason = "the lesion is not malignant"
            continue
        seed = int(sampling.stream(chosen.seed, f"noise of {patch.id}", index).integers(2**63))
        refined = network.made(patch.image, seed)
        if refined.kept[0]:
            return Made(patch, refined, seed), discarded, unusable, ""
        discarded = discarded + 1
        reason = "post-processing discards what the generator makes"
    return None, discarded, unusable, reason


def remake(file: Path, output: Path, overrides: Sequence[str] = ()) -> PatchRecipe:
    """Make the patch of a recipe again, into images/ and masks/ of a folder.

    Args:
        file: The recipe.
        overrides: Of its config: where the archive (data.root) and the generators lie now.

    Raises:
        DataError: The source or the generator is another than the recipe's, or a file comes out
            differently.
        ConfigError: Something can't be used.
        ArchiveError: Something can't be used.
        ExportError: Something can't be used.
        TrackingError: Something can't be used.
    """
    recipe = config.parse(PatchRecipe, file, [f"config.{override}" for override in overrides])
    if recipe.source is None or recipe.left_out:
        raise DataError(f"{file}: is of a patch that could not be made ({recipe.left_out})")
    mammogram = source_of(recipe.source.archive, recipe.source.image_id, recipe.config.data, file)
    folder = best_weights(recipe.config.generators[recipe.target], recipe.config.tracking_uri)
    network = lesion_generator(folder)
    if not same_network(recipe.generator, network.identity, folder, {"image", "noise"}, "lesion"):
        raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
    job = Job(output, mammogram, folder, (recipe,))
    with jobs.one_thread():
        source, draw = _opened(mammogram, network, recipe.config)
        if source != recipe.source.sha256:
            raise DataError(
                f"{file}: its source {recipe.source.image_id} has changed since (sha256)"
            )
        again = _write_files(*_patch(recipe, job, network, source, draw), output)
    if again.files != recipe.files:
        raise DataError(
            f"{output}: {recipe.name} came out otherwise than then; made with {recipe.versions} "
            f"then, with {versions()} now"
        )
    return recipe


def _opened(
    mammogram: Mammogram, network: LesionGenerator, chosen: PatchSynthesisConfig
) -> tuple[str, Callable[[int], Patch]]:
    """The source's sha256, and what draws patches of it."""
    skipped = Skipped()
    draw = drawer(mammogram, patch_data(network, chosen.seed), skipped)
    if draw is None:
        raise DataError(next(iter(skipped.reasons.values()), "it has nothing to make a patch of"))
    file = source_file(mammogram)
    return sha256(file) if file else hashlib.sha256(mammogram.pixels().tobytes()).hexdigest(), draw


def _patch(
    recipe: PatchRecipe,
    job: Job,
    network: LesionGenerator,
    digest: str,
    draw: Callable[[int], Patch],
) -> tuple[PatchRecipe, Made | None]:
    made, discarded, unusable, reason = drawn(draw, network, recipe.config, recipe.number)
    counts: dict[str, Any] = {"discarded": discarded, "unusable": unusable}
    if made is None:
        return recipe.model_copy(
            update={**counts, "left_out": f"none of {recipe.config.tries} draws: {reason}"}
        ), None
    one = job.mammogram
    source = PatchSource(
        archive=one.archive,
        image_id=one.image_id,
        patient_id=one.patient_id,
        sha256=digest,
        patch=made.patch.id,
        place=made.patch.place,
        seed=made.seed,
    )
    return recipe.model_copy(
        update={**counts, "source": source, "area": float(made.refined.mask.mean())}
    ), made


def _write(result: tuple[PatchRecipe, Made | None], folder: Path) -> None:
    recipe = _write_files(*result, folder)
    path = folder / "recipes" / f"{recipe.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    filesystem.write_atomically(path, recipe.model_dump_json(indent=1) + "\n", durable=False)


def _write_files(recipe: PatchRecipe, made: Made | None, folder: Path) -> PatchRecipe:
    files = {}
    if made:
        refined = made.refined
        contents = {
            "images": encoded(stored_image(refined.image[0])),
            "masks": mask_png(refined.mask[0, ..., 0]),
        }
        for part, content in contents.items():
            name = f"{part}/{recipe.name}.png"
            place = jobs.inside(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.atomic_file(place) as path:
                path.write_bytes(content)
            files[name] = hashlib.sha256(content).hexdigest()
    return recipe.model_copy(update={"files": files})


def _all_of(
    target: str,
    chosen: PatchSynthesisConfig,
    network: Path,
    sources: Sequence[Mammogram],
    known: dict[str, Any],
    output: Path,
    flags: Sequence[str],
) -> list[PatchRecipe]:
    """`count` patches of one kind, if they can be had."""
    hashed = hashlib.sha256(jobs.as_json(known).encode()).hexdigest()
    described_as = {key: known["generators"][target][key] for key in ("name", "step", "weights")}
    first = PatchRecipe(
        identity=hashed,
        target=target,  # type: ignore[arg-type]
        number=0,
        config=chosen,
        versions=versions(),
        generator=described_as,  # type: ignore[arg-type]
    )
    total = chosen.count
    while True:
        blank = [first.model_copy(update={"number": number}) for number in range(total)]
        parts = [
            Job(output, one, network, tuple(blank[start :: len(sources)]))
            for start, one in enumerate(sources[:total])
        ]
        log.info(
            "%s: %d patches from %d mammograms, into %s", KINDS[target], total, len(parts), output
        )
        with jobs.progress(output / "recipes" / KINDS[target], "*.json", total):
            jobs.run(parts, make, flags)
        found = [_known(recipe, output) for recipe in blank]
        recipes = [recipe for recipe in found if recipe]
        if len(recipes) < total:
            raise DataError(
                f"{output}: {total - len(recipes)} recipes are missing or not as they were "
                "written; run the synthesis again"
            )
        made = sum(not recipe.left_out for recipe in recipes)
        if made >= chosen.count or total >= MOST * chosen.count:
            break
        total = min(MOST * chosen.count, total + chosen.count - made)
    log.info("%s: %d of %d patches; %s", KINDS[target], made, chosen.count, rates(recipes))
    if not made:
        raise DataError(
            f"{output}: no {KINDS[target]} patch could be made; the first: {recipes[0].left_out}"
        )
    return recipes


def _known(recipe: PatchRecipe, folder: Path) -> PatchRecipe | None:
    """The patch's recipe, None unless all of it is there as it was written."""
    try:
        found = read_patch_recipe(folder / "recipes" / f"{recipe.name}.json")
    except DataError:
        return None
    return found if found.identity == recipe.identity and found.is_whole(folder) else None


def _identity(
    chosen: PatchSynthesisConfig, mammograms: Sequence[Mammogram], networks: dict[Any, Path]
) -> dict[str, Any]:
    """Everything that decides the patches; two runs may share a folder when it is equal."""
    return {
        "format": FORMAT,
        "tfmammo": __version__,
        "config": chosen.model_dump(mode="json", exclude=_IRRELEVANT),
        "archive": {
            "name": archives.archive_name(chosen.data),
            "records": jobs.fingerprint(mammograms),
        },
        "generators": {
            target: lesion_generator(network).identity
            | {
                "patients": sorted(lesion_generator(network).patients),
                "scale": patch_scale(lesion_generator(network).data),
            }
            for target, network in networks.items()
        },
    }


def _finish(recipes: Sequence[PatchRecipe], skipped: Skipped, archive: str, output: Path) -> None:
    dead = Skipped(dict(skipped.reasons))
    for recipe in recipes:
        if recipe.left_out:
            dead.add(recipe.name, recipe.left_out)
    filesystem.write_atomically(
        output / "dead_letters.csv",
        card.dead_letters(without_names(dead.reasons, skipped.root)),
        durable=False,
    )
    licence = card.LICENCES.get(archive, card.UNKNOWN)
    filesystem.write_atomically(output / "README.md", readme(recipes, licence), durable=False)
    reasons = Counter(recipe.left_out for recipe in recipes if recipe.left_out)
    for reason, count in reasons.most_common(3):
        log.info("%d left out: %s", count, reason)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2."""
    parser = cli.Parser(
        prog="python -m tfmammo.synthesis.patches",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--config", metavar="FILE", help="a YAML file such as configs/patch_synthesis.yaml"
    )
    what.add_argument("--recipe", metavar="FILE", type=Path, help="make this patch again")
    parser.add_overrides()
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    ours, flags = parser.parse_with(arguments, jobs.unknown_to_beam)

    def work() -> None:
        if ours.recipe:
            recipe = remake(ours.recipe, ours.output.resolve(), ours.set)
            log.info("%s: made again, bit for bit", recipe.name)
        else:
            synthesise(
                config.parse(PatchSynthesisConfig, ours.config, ours.set),
                ours.output.resolve(),
                flags,
            )

    cli.run(work)


if __name__ == "__main__":
    # Workers must find everything under its real name; what runs as __main__ has another.
    from tfmammo.synthesis import patches as module

    module.main()
