"""Normal mammograms -> mammograms with masses, at native resolution and depth, each with
boxes, masks and a recipe.

    python -m tfmammo.synthesis --config configs/synthesis_full.yaml --output DIR [--set KEY=VALUE
    ...] [Beam's own flags]
    python -m tfmammo.synthesis --recipe DIR/recipes/000000.json --output OTHER [--set data.root=DIR
    lesions.root=DIR generator=DIR]

The masses are made up by an infilling or a CAN (`painter`, see tfmammo.synthesis.renderers), or are
real ones of any archive (tfmammo.synthesis.lesion_bank, configs/synthesis_blending.yaml), blended
in by a network or by a method of tfmammo.baselines.poisson; or a vanilla GAN makes them.

DIR gets images/, lesion_masks/, recipes/ and at the end annotations.json (COCO), metadata.csv,
patients.json, dead_letters.csv and README.md. With DICOM or PNG it is an archive that
`data.name=folder` reads, so that `python -m tfmammo.data.build` and the train scripts take it as it
is. Every item follows from the config and its number alone: a run that was stopped goes on where it
was, a greater `count` adds items, and a recipe makes its item again, bit for bit with the same
TensorFlow on the same kind of machine. What could not be made is a dead letter with its reason;
--retry tries it again.

Whatever lies beyond an item's supports (see tfmammo.synthesis.placement) is stored as in the
source, value for value. With mammograms=all a source may have lesions of its own: annotations.json
and TFRecords have them too, marked as not synthetic, for a detector would else learn that they are
none; lesion_masks/ are those of what was set in.

A real lesion and the mammogram that it is set into may be of two patients, and both are seen by
whoever sees the result. With `patients` both are of one side of a split, and so are those that
sizes and shapes come from; without it each recipe and metadata.csv say whose lesion it is.
patients.json tells everybody whom a set shows, derives from, or whose data its networks were
trained on.

Departures from Shen et al., section 4.3, beside those that tfmammo.synthesis.placement and
tfmammo.models name: sizes are drawn of the mass, not of its patch padded by 100 px, which is the
same, and the patch is cut as the generator's training patches were (data.frame padded is the
paper's). A generated patch does not replace the tissue as in the paper: what it changes is added
with a faded border, so that the tissue's grain stays and no square shows; whole_patch=true is the
paper's way. Sides of a mammogram whose laterality is not stated are not guessed.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tfmammo import (
    __version__,
    archives,
    config,
    filesystem,
)
from tfmammo.archives import coco
from tfmammo.archives.files import without_names
from tfmammo.archives.stored import Stored
from tfmammo.data import card, jobs, sampling
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.synthesis import lesion_bank, shapes
from tfmammo.synthesis.config import THROUGH_NETWORKS, Sizes, SynthesisConfig
from tfmammo.synthesis.generators import MaskGenerator, resolved, same_network
from tfmammo.synthesis.mammogram_set import patients_of, write, write_set
from tfmammo.synthesis.placement import Ground, fit_sizes, scaled
from tfmammo.synthesis.provenance import (
    FORMAT,
    REASONS,
    OwnLesion,
    Planted,
    Recipe,
    Source,
    digest,
    explained,
    read_recipe,
    source_of,
    versions,
)
from tfmammo.synthesis.renderers import Drawn, Exports, Insertion, Painter, Tools, painter
from tfmammo.synthesis.shapes import shape, shapes_described

log = logging.getLogger(__name__)

IDENTITY = "synthesis.json"
TRIES = 20  # sizes, shapes and places drawn for one mass
# What real lesions alone depend on: noted with them, so that folders of infillings, which came
# before, stay valid.
_OF_REAL_LESIONS = {"painter", "resize", "rotate"}
# What no item depends on: where things lie (records and networks are hashed), and how many items
# there are.
_IRRELEVANT = {
    "data",
    "lesions",
    "generator",
    "shapes",
    "patients",
    "tracking_uri",
    "count",
    "whole_patch",
    *_OF_REAL_LESIONS,
}


@dataclass(frozen=True)
class Job:
    """One item: an element of the pipeline.

    Attributes:
        recipe: What is known before.
    """

    folder: Path
    mammogram: Mammogram
    exports: Exports
    recipe: Recipe

    @property
    def path(self) -> Path:
        """Where its recipe will be."""
        return self.folder / "recipes" / f"{self.recipe.name}.json"


def synthesise(
    chosen: SynthesisConfig, output: Path, flags: Sequence[str] = (), retry: bool = False
) -> list[Recipe]:
    """Make what is missing of a set.

    Args:
        chosen: The config.
        output: A new folder, or one of an earlier run of the same.
        flags: Beam's own.
        retry: Make items that were left out anew.

    Returns:
        The recipes of all items, those left out included.

    Raises:
        ConfigError: Something named in the config can't be used, or `output` belongs to other work.
        ArchiveError: Something named in the config can't be used, or `output` belongs to other
            work.
        ExportError: Something named in the config can't be used, or `output` belongs to other work.
        TrackingError: Something named in the config can't be used, or `output` belongs to other
            work.
        DataError: No mammogram or size can be had, or a worker failed.
    """
    skipped = Skipped()
    mammograms = _chosen_of(archives.mammograms(chosen.data, skipped), chosen)
    exports = _exports(chosen)
    tools = exports.opened(chosen)
    exports = replace(exports, weights=tools.weights)
    trained_on = _trained_on(tools)  # for its complaints, before anything is written
    sizes = _sizes(chosen, skipped)
    known = _identity(chosen, mammograms, tools, sizes)
    items = _items(chosen, mammograms, exports, sizes, known, output)
    with jobs.claimed(output, known, IDENTITY):
        (output / "recipes").mkdir(exist_ok=True)
        for item in items if retry else ():
            if item.path.is_file() and read_recipe(item.path).left_out:
                item.path.unlink()
        log.info("%d items from %d mammograms, into %s", len(items), len(mammograms), output)
        with jobs.progress(output / "recipes", "*.json", len(items)):
            jobs.run(items, make, flags)
        return _finish(items, chosen, skipped, trained_on)


def make(job: Job) -> None:
    """Make one item unless it is there: its files, then its recipe, which is all there is of one
    that can't be made.

    Raises:
        OSError: The folder can't be written.
        RuntimeError: A fault that no file explains.
    """
    if _known(job) is not None:
        return
    recipe = job.recipe
    mammogram = job.mammogram
    tools = job.exports.as_begun(recipe.config)
    try:
        with jobs.one_thread():
            stored = archives.stored(mammogram)
            recipe = recipe.model_copy(update={"source": source(mammogram, stored)})
            recipe, made = set_in(recipe, mammogram, stored, tools)
    except (*REASONS, OSError, cv2.error) as error:
        # a run of days must not end because of one file
        log.debug("%s", mammogram.image_id, exc_info=True)
        recipe = recipe.model_copy(update={"left_out": explained(error, recipe.config.places)})
    except Exception as error:  # ours: kept as a dead letter, it would quietly cost every item
        raise RuntimeError(f"{mammogram.image_id}: {error.__class__.__name__}: {error}") from error
    else:
        files = write(recipe, mammogram, made, job.folder)
        recipe = recipe.model_copy(update={"files": files})
    filesystem.write_atomically(job.path, recipe.model_dump_json(indent=1) + "\n", durable=False)


def set_in(
    recipe: Recipe, mammogram: Mammogram, stored: Stored, tools: Tools
) -> tuple[Recipe, Stored]:
    """One mammogram with its masses, in memory: the recipe of it but for its files, and its pixels.

    Args:
        recipe: Config, sizes and number are used.
        stored: Of the mammogram.
        tools: As the config names them; the recipe says which network paints.

    Raises as `plan`.
    """
    brush = tools.painter
    ground = Ground(stored.image(), mammogram, brush.data)
    random = sampling.stream(recipe.config.seed, mammogram.image_id, recipe.number)
    recipe = recipe.model_copy(update={"own": own_lesions(mammogram), "generator": brush.identity})
    insertions, notes = plan(recipe, ground, brush, random, tools.gan)
    recipe = recipe.model_copy(
        update={"lesions": tuple(found.planted for found in insertions), "notes": notes}
    )
    return recipe, render(ground, stored, insertions, brush)


def own_lesions(mammogram: Mammogram) -> tuple[OwnLesion, ...]:
    """The lesions of a mammogram as annotations have them, of every kind.

    Raises:
        DataError: A box is empty or reaches beyond the mammogram.
        ArchiveError: A mask can't be read.
    """
    return tuple(_own(number, lesion, mammogram) for number, lesion in enumerate(mammogram.lesions))


def _own(number: int, lesion: Lesion, mammogram: Mammogram) -> OwnLesion:
    (top, left, bottom, right) = lesion.box
    rows = mammogram.rows
    cols = mammogram.cols
    if not (0 <= top < bottom <= rows and 0 <= left < right <= cols):
        raise DataError(f"lesion {number}: its box is empty or reaches beyond the mammogram")
    region = None
    area = (bottom - top) * (right - left)
    if lesion.outlines:
        mask = lesion.mask(rows, cols)[top:bottom, left:right]
        region = coco.encode(mask, lesion.box, rows, cols)
        area = int(mask.sum())
    return OwnLesion(
        kind=lesion.kind, box=lesion.box, area=area, region=region, pathology=lesion.pathology
    )


def plan(
    recipe: Recipe,
    ground: Ground,
    brush: Painter,
    random: np.random.Generator,
    gan: MaskGenerator | None = None,
) -> tuple[list[Insertion], tuple[str, ...]]:
    """Draw the masses of one item: how many, their sizes, shapes and places.

    Args:
        recipe: Config, and sizes where config.size is not given, are used.
        ground: What is placed is taken from it.

    Returns:
        The masses, and what is to be noted: fewer fit than were drawn.

    Raises:
        DataError: Fewer fit than config.masses asks for at least.
        ArchiveError: A known lesion can't be read.
    """
    chosen = recipe.config
    for lesion in ground.mammogram.lesions:
        ground.take(lesion.box)
    wanted = int(random.integers(chosen.masses[0], chosen.masses[1] + 1))
    found: list[Insertion] = []
    while len(found) < wanted:
        try:
            found.append(_placed(recipe, ground, brush, random, gan))
        except REASONS as error:
            said = explained(error, chosen.places)
            reason = f"{len(found)} of {wanted} masses fit: {said}" if wanted > 1 else said
            if len(found) < chosen.masses[0]:
                raise DataError(reason) from None
            return found, (reason,)
    return found, ()


def render(
    ground: Ground, stored: Stored, insertions: Sequence[Insertion], brush: Painter
) -> Stored:
    """The mammogram with its masses; every value beyond their supports is the source's.

    Args:
        ground: Of stored.image().
        insertions: Their supports don't overlap; a network makes all in one call.
    """
    return stored.repainted(ground.image, brush.paint(ground, insertions))


def remake(file: Path, output: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Make the item of a recipe again, into images/ and lesion_masks/ of a folder.

    Args:
        file: The recipe.
        overrides: Of its config: where the archives (data.root, lesions.root) and the generator lie
            now.

    Raises:
        DataError: The source, a lesion or the generator is another than the recipe's, or a file
            comes out differently.
        ConfigError: Something can't be used.
        ArchiveError: Something can't be used.
        ExportError: Something can't be used.
        TrackingError: Something can't be used.
    """
    recipe = config.parse(Recipe, file, [f"config.{override}" for override in overrides])
    if recipe.source is None or recipe.left_out:
        raise DataError(f"{file}: is of an item that could not be made ({recipe.left_out})")
    mammogram = source_of(recipe.source.archive, recipe.source.image_id, recipe.config.data, file)
    brush = _painter_of(recipe, file)
    stored = archives.stored(mammogram)
    if source(mammogram, stored) != recipe.source:
        raise DataError(f"{file}: its source {recipe.source.image_id} has changed since (sha256)")
    with jobs.one_thread():
        insertions = [_again(planted, mammogram, brush, recipe) for planted in recipe.lesions]
        made = render(Ground(stored.image(), mammogram, brush.data), stored, insertions, brush)
    written = write(recipe, mammogram, made, output)
    if differing := [name for name, digest in written.items() if recipe.files.get(name) != digest]:
        then = recipe.versions
        now = versions()
        raise DataError(
            f"{output}: {', '.join(differing)} came out otherwise than then; made with {then} "
            f"then, with {now} now"
        )
    return recipe


def _painter_of(recipe: Recipe, file: Path) -> Painter:
    """The painter of a recipe.

    Raises:
        DataError: Its network is another.
    """
    chosen = recipe.config
    folder = resolved(chosen.generator, chosen.tracking_uri) if chosen.generator else None
    brush = painter(chosen, folder)
    if folder and not same_network(
        recipe.generator, brush.identity, folder, {THROUGH_NETWORKS[chosen.painter]}, "image"
    ):
        raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
    return brush


def _placed(
    recipe: Recipe,
    ground: Ground,
    brush: Painter,
    random: np.random.Generator,
    gan: MaskGenerator | None,
) -> Insertion:
    """One mass on free tissue, which is taken then."""
    reason: Exception = DataError()
    for _ in range(TRIES):
        try:
            draw = _real if recipe.config.real_lesions else _made_up
            drawn = draw(recipe, ground.mammogram, brush, random, gan)
            return _set(drawn, recipe, ground, brush, random)
        except REASONS as error:
            reason = error
    raise reason


def _made_up(
    recipe: Recipe,
    mammogram: Mammogram,
    brush: Painter,
    random: np.random.Generator,
    gan: MaskGenerator | None,
) -> Drawn:
    chosen = recipe.config
    assert chosen.size or recipe.sizes
    size = chosen.size or recipe.sizes.draw(random, mammogram.spacing)  # type: ignore[union-attr]
    outline, origin = shape(chosen, gan, random)
    return Drawn(scaled(outline, *size), "mass", origin)


def _real(
    recipe: Recipe,
    mammogram: Mammogram,
    brush: Painter,
    random: np.random.Generator,
    gan: MaskGenerator | None,
) -> Drawn:
    piece = lesion_bank.drawn(recipe.config, mammogram, random, brush.patients, brush.used)
    return brush.lesion(piece, mammogram, (_seed(random) for _ in range(TRIES)))


def _seed(random: np.random.Generator) -> int:
    return int(random.integers(2**63))


def _set(
    drawn: Drawn, recipe: Recipe, ground: Ground, brush: Painter, random: np.random.Generator
) -> Insertion:
    chosen = recipe.config
    mammogram = ground.mammogram
    mask = drawn.mask
    height, width = mask.shape
    if chosen.centre:
        top = chosen.centre[0] - height // 2
        left = chosen.centre[1] - width // 2
    else:
        spot, trial = brush.place(
            (mammogram.rows - height) // 2, (mammogram.cols - width) // 2, drawn, mammogram
        )
        top, left = ground.draw((height, width), trial.reach(spot.box), random)
    spot, found = brush.place(top, left, drawn, mammogram)
    if not ground.is_free(found.support):
        raise DataError(
            "the place asked for is not wholly free breast tissue"
            if chosen.centre
            else "no normal tissue is left around it"
        )
    ground.take(found.support)
    planted = Planted(
        kind=drawn.kind,
        box=spot.box,
        window=spot.window,
        area=int(mask.sum()),
        region=coco.encode(mask, spot.box, mammogram.rows, mammogram.cols),
        shape=drawn.origin,
        seed=_seed(random) if drawn.seed is None else drawn.seed,
        graft=drawn.piece.graft if drawn.piece else None,
    )
    return Insertion(planted, spot, found, drawn)


def _again(planted: Planted, mammogram: Mammogram, brush: Painter, recipe: Recipe) -> Insertion:
    top, left, bottom, right = planted.box
    if planted.graft:
        drawn = brush.lesion(
            lesion_bank.again(planted.graft, recipe.config, mammogram), mammogram, [planted.seed]
        )
    else:
        mask = np.ascontiguousarray(
            coco.decode(planted.region, recipe.name)[top:bottom, left:right]
        )
        drawn = Drawn(mask, planted.kind, planted.shape)
    return Insertion(planted, *brush.place(top, left, drawn, mammogram), drawn)


def source(mammogram: Mammogram, stored: Stored) -> Source:
    """What a recipe says of the mammogram that it starts from."""
    names = (
        "archive",
        "image_id",
        "patient_id",
        "rows",
        "cols",
        "laterality",
        "view",
        "density",
        "spacing",
        "official_split",
    )
    return Source(
        sha256=digest(mammogram, stored),
        bits=stored.bits,
        **{name: getattr(mammogram, name) for name in names},
    )


def _chosen_of(mammograms: Sequence[Mammogram], chosen: SynthesisConfig) -> list[Mammogram]:
    found = [one for one in mammograms if _suits(one, chosen)]
    found = lesion_bank.of_side(found, chosen.data, chosen)
    if chosen.only:
        by_id = {one.image_id: one for one in found}
        if missing := [name for name in chosen.only if name not in by_id]:
            raise ConfigError(
                f"only: {missing[0]} is none of the {len(found)} mammograms "
                f"(mammograms={chosen.mammograms})"
            )
        found = [by_id[name] for name in chosen.only]
    if not found:
        normal = "is normal: without any lesion, and called normal by its archive"
        reason = (
            normal
            if chosen.mammograms == "normal"
            else "has lesions of certain kind alone (data.mixed_findings=false)"
        )
        raise DataError(f"none of {len(mammograms)} mammograms{chosen.whose} {reason}")
    return found


def _suits(mammogram: Mammogram, chosen: SynthesisConfig) -> bool:
    """Whether lesions may be set into a mammogram; no file is read."""
    if chosen.mammograms == "normal":
        return sampling.is_normal(mammogram)
    return chosen.data.mixed_findings or all(lesion.kind_is_certain for lesion in mammogram.lesions)


def _exports(chosen: SynthesisConfig) -> Exports:
    """Where the networks lie.

    Raises:
        ConfigError: A handle leads to none.
    """
    found = {}
    for key, handle in (("generator", chosen.generator), ("shapes.gan", chosen.shapes.gan)):
        try:
            found[key] = resolved(handle, chosen.tracking_uri) if handle else None
        except ValueError as error:
            hint = (
                "; train it first, or set real masses in without a network: painter=poisson "
                "generator=null"
                if key == "generator"
                else ""
            )
            raise ConfigError(f"{key}: {error}{hint}") from None
    return Exports(found["generator"], found["shapes.gan"])


def _trained_on(tools: Tools) -> frozenset[str]:
    """The patients of all networks' trainings.

    Raises:
        DataError: A mask GAN's are not known.
    """
    return (tools.painter.patients or frozenset()) | (
        tools.gan.trained_on if tools.gan else frozenset()
    )


def _sizes(chosen: SynthesisConfig, skipped: Skipped) -> Sizes | None:
    """Those to draw from; None where sizes are given or the lesions' own.

    Lesions that can't be used are noted.
    """
    if chosen.real_lesions:
        log.info("%d real lesions", len(lesion_bank.usable(lesion_bank.bank(chosen), skipped)))
    if chosen.real_lesions or chosen.sizes or chosen.size:
        return chosen.sizes
    data = chosen.lesions or chosen.data
    sizes = fit_sizes(
        lesion_bank.of_side(archives.mammograms(data, Skipped()), data, chosen), data, skipped
    )
    log.info("sizes of %d lesions: %s", sizes.count, sizes.model_dump(exclude={"count"}))
    return sizes


def _identity(
    chosen: SynthesisConfig, mammograms: Sequence[Mammogram], tools: Tools, sizes: Sizes | None
) -> dict[str, Any]:
    """Everything that decides the items; two runs may share a folder when it is equal."""
    data = chosen.lesions or chosen.data
    known: dict[str, Any] = {
        "format": FORMAT,
        "tfmammo": __version__,
        "config": chosen.model_dump(mode="json", exclude=_IRRELEVANT),
        "archive": {
            "name": archives.archive_name(chosen.data),
            "mammograms": len(mammograms),
            "records": jobs.fingerprint(mammograms),
        },
        "generator": tools.painter.identity,
        "lesions": {"kinds": list(data.kinds), "mixed_findings": data.mixed_findings},
        "sizes": sizes.model_dump(mode="json") if sizes else None,
    }
    if chosen.whole_patch:
        known["whole_patch"] = True
    if chosen.mammograms == "all":
        known["own_lesions"] = "annotated"  # earlier versions left them out
    if chosen.real_lesions:
        of_lesions = chosen.model_dump(mode="json", include=_OF_REAL_LESIONS)
        return known | {"lesions": known["lesions"] | of_lesions | lesion_bank.described(chosen)}
    side = {"patients": lesion_bank.side_described(chosen)} if chosen.patients else {}
    return known | {"shapes": shapes_described(chosen, tools.gan)} | side


def _items(
    chosen: SynthesisConfig,
    mammograms: Sequence[Mammogram],
    exports: Exports,
    sizes: Sizes | None,
    known: dict[str, Any],
    output: Path,
) -> list[Job]:
    order = np.random.default_rng(chosen.seed).permutation(len(mammograms))
    hashed = hashlib.sha256(jobs.as_json(known).encode()).hexdigest()
    first = Recipe(
        identity=hashed,
        name="000000",
        number=0,
        config=chosen,
        versions=versions(),
        generator=known["generator"],
        sizes=sizes,
    )
    return [
        Job(
            output,
            mammograms[order[number % len(order)]],
            exports,
            first.model_copy(update={"name": f"{number:06d}", "number": number}),
        )
        for number in range(chosen.count)
    ]


def _known(job: Job) -> Recipe | None:
    """The item's recipe, None unless all of it is there as it was written."""
    try:
        recipe = read_recipe(job.path)
    except DataError:
        return None
    return (
        recipe if recipe.identity == job.recipe.identity and recipe.is_whole(job.folder) else None
    )


def _finish(
    items: Sequence[Job], chosen: SynthesisConfig, skipped: Skipped, trained_on: frozenset[str]
) -> list[Recipe]:
    """Write what is told of all items together."""
    recipes = []
    output = items[0].folder
    for item in items:
        recipe = _known(item)
        if recipe is None:
            raise DataError(
                f"{item.path}: is missing or not as it was written; run the synthesis again"
            )
        recipes.append(recipe)
    dead = Skipped(dict(skipped.reasons))
    for recipe, item in zip(recipes, items, strict=True):
        for reason in (recipe.left_out, *recipe.notes):
            if reason:
                dead.add(f"item {recipe.name} of {item.mammogram.image_id}", reason)
    made = [recipe for recipe in recipes if not recipe.left_out]
    filesystem.write_atomically(
        output / "dead_letters.csv",
        card.dead_letters(without_names(dead.reasons, skipped.root)),
        durable=False,
    )
    if not made:
        raise DataError(
            f"{output}: no item could be made, dead_letters.csv says why; the first: "
            f"{recipes[0].left_out}"
        )
    lesions = None if chosen.real_lesions else shapes.lesion_patients(chosen)
    write_set(
        made, len(recipes) - len(made), chosen, patients_of(made, lesions, trained_on), output
    )
    reasons = Counter(recipe.left_out for recipe in recipes if recipe.left_out)
    log.info(
        "%d of %d items with %d masses%s",
        len(made),
        len(recipes),
        sum(len(recipe.lesions) for recipe in made),
        "".join(f"; {count} left out: {reason}" for reason, count in reasons.most_common(3)),
    )
    return recipes
