"""Sets of synthetic mammograms: what `tfmammo synthesize` makes and writes.

An item is a mammogram with its inserted lesions, its masks and its recipe. tfmammo.synthesis.sets
makes the items, and makes them again from their recipes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmammo import __version__, archives
from tfmammo.archives import coco
from tfmammo.archives.findings import CATEGORIES
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.data import card
from tfmammo.data.patches import gravest_pathology
from tfmammo.data.patients import PATIENTS, Patients
from tfmammo.data.runners import HERE, Runner
from tfmammo.data.tfrecord import encode_detection
from tfmammo.document import say_count
from tfmammo.errors import DataError
from tfmammo.filesystem import to_json
from tfmammo.mammogram import Mammogram, key_check
from tfmammo.synthesis import sets
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import resolve_handle
from tfmammo.synthesis.lesion_bank import find_lesion, transform
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.recipe import (
    ArchiveIndexes,
    ExistingLesion,
    InsertedLesion,
    Recipe,
    check_root,
    describe_source,
)
from tfmammo.synthesis.renderers import LesionCandidate, PlacedLesion, Renderer, make_renderer
from tfmammo.synthesis.shapes import GeneratedShapes
from tfmammo.synthesis.sources import Sources, find_networks
from tfmammo.synthesis.synthesizer import Synthesizer, render

log = logging.getLogger(__name__)

IDENTITY = "synthesis.json"
ENDINGS = {"dicom": ".dcm", "png": ".png", "tfrecord": ".tfrecord"}
_USED = {  # what a card says of the lesions, by the part of real ones that is used
    None: "The lesions are",
    "outline": "The lesions' intensities are made from noise (the generator's model.prior), their "
    "outlines are those of",
    "size": "The lesions are made from noise, tissue around them too, and are as large as",
}
_open_sources = lru_cache(maxsize=1)(Sources)  # once for all jobs of a process


def synthesize(
    config: SynthesisConfig, output: Path, runner: Runner = HERE, retry: bool = False
) -> list[Recipe]:
    """Synthesize a set, or complete one that was stopped.

    Args:
        output: A new folder, or one of an earlier run with the same config.
        retry: Make items that were skipped again.

    Returns:
        The recipes of all items, including skipped ones.

    Raises:
        TfmammoError: Something named in the config can't be used, `output` belongs to other work,
            no mammogram, size or item can be had, or a worker failed.
    """
    _open_sources.cache_clear()  # an archive may hold other files by now
    sources = _open_sources(config, find_networks(config))
    mammograms = sources.mammograms
    synthesizer = _make_synthesizer(sources)
    sizes = sources.sizes
    if synthesizer.lesions:
        usable = len(synthesizer.lesions.find_usable(sources.skipped))
        others = len(synthesizer.lesions.lesions) - usable
        left_out = f"; {others} others can't be inserted: failures.csv" if others else ""
        log.info("%s%s", say_count(usable, "real lesion"), left_out)
    trained_on = synthesizer.trained_on  # raises before anything is written
    generator = synthesizer.renderer.identity
    data = config.lesion_data
    identity = sets.describe_identity(
        config,
        mammograms,
        generator=generator,
        lesions={
            "kinds": list(data.kinds),
            "mixed_findings": data.mixed_findings,
            "pathologies": data.pathologies and list(data.pathologies),
            "bank": synthesizer.lesions and synthesizer.lesions.identity,
        },
        sizes=sizes and sizes.model_dump(mode="json"),
        shapes=synthesizer.shapes and synthesizer.shapes.identity,
        patients=sources.patients.identity,
    )
    order = np.random.default_rng(config.seed).permutation(len(mammograms))
    first = sets.make_first(Recipe, identity, config, generator, sizes=sizes)
    in_turn = [mammograms[place] for place in order]
    networks = sources.folders, _identify_gan(synthesizer)
    plan = sets.Plan(first, in_turn, _open, networks)
    lesions = None if config.real_lesions else sources.size_patients
    return sets.synthesize(
        [plan],
        identity,
        IDENTITY,
        sources.skipped,
        output,
        runner,
        retry,
        lambda recipes: describe_set(recipes, config, lesions, trained_on),
    )


def _make_synthesizer(sources: Sources) -> Synthesizer:
    return Synthesizer(sources.renderer, sources.lesion_bank, sources.shapes)


def _identify_gan(synthesizer: Synthesizer) -> Mapping[str, object] | None:
    shapes = synthesizer.shapes
    return shapes.network.identity if isinstance(shapes, GeneratedShapes) else None


def _open(job: sets.Job[Recipe]) -> sets.Draw[Recipe]:
    """Open the networks of a job; see `sets.Job`."""
    mammogram = job.mammogram
    first = job.recipes[0]
    folders, gan = job.networks
    synthesizer = _make_synthesizer(_open_sources(first.config, folders))
    if (synthesizer.renderer.identity, _identify_gan(synthesizer)) != (first.generator, gan):
        raise DataError("a generator was replaced by another training run meanwhile")

    def draw(recipe: Recipe) -> tuple[Recipe, sets.Contents]:
        stored = archives.read_stored(mammogram)
        recipe = recipe.model_copy(update={"source": describe_source(mammogram, stored)})
        try:
            recipe, synthetic = synthesizer.insert(recipe, mammogram, stored)
        except sets.LEFT_OUT as error:  # the recipe says which mammogram was tried
            return sets.leave_out(recipe, error), {}
        return recipe, list_files(recipe, mammogram, synthetic)

    return draw


def remake(file: Path, output: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Make the item of a recipe again, into images/ and lesion_masks/ of a folder.

    Args:
        output: The folder. No file of another content is replaced there.
        overrides: Of its config: where the archives (data.root, lesions.root) and the generator are
            now.

    Raises:
        DataError: The source, a lesion or the generator is not that of the recipe, or a file comes
            out differently, or has the name of another.
    """

    def restore(recipe: Recipe, mammogram: Mammogram, indexes: ArchiveIndexes) -> sets.Contents:
        config = recipe.config
        folder = resolve_handle(config.generator, config.tracking_uri) if config.generator else None
        renderer = make_renderer(config.renderer, folder, config.feather, config.whole_patch)
        if renderer.identity.get("weights") != recipe.generator.get("weights"):
            raise DataError(f"{folder}: is not the generator of {file}, its weights are others")
        stored = archives.read_stored(mammogram)
        if describe_source(mammogram, stored) != recipe.source:
            raise DataError(f"{file}: its source {mammogram.image_id} has changed since (sha256)")
        lesions = [
            _restore_lesion(record, mammogram, renderer, recipe, indexes)
            for record in recipe.lesions
        ]
        target = TargetMammogram(stored.image(), mammogram, renderer.data)
        return list_files(recipe, mammogram, render(target, stored, lesions, renderer))

    return sets.remake(Recipe, file, output, overrides, restore)


def _restore_lesion(
    record: InsertedLesion,
    mammogram: Mammogram,
    renderer: Renderer,
    recipe: Recipe,
    indexes: ArchiveIndexes,
) -> PlacedLesion:
    """Restore a lesion of a recipe in its place."""
    top, left, bottom, right = record.box
    if record.graft:
        data = recipe.config.lesion_data
        check_root(data, "lesions", record.graft.archive)
        by_id = {source.image_id: source for source in indexes.read(data)}
        lesion = transform(find_lesion(record.graft, data, by_id), record.graft, mammogram)
        candidate = renderer.prepare_lesion(lesion, mammogram, [record.seed])
    else:
        mask = coco.decode(record.region, recipe.name)[top:bottom, left:right]
        candidate = LesionCandidate(np.ascontiguousarray(mask), record.kind, record.shape)
    placement, blend_mask = renderer.place(top, left, candidate, mammogram)
    return PlacedLesion(record, placement, blend_mask, candidate)


def list_files(recipe: Recipe, mammogram: Mammogram, stored: Stored) -> sets.Contents:
    """List an item's files, image and masks, with what writes each; `stored` is the new image."""
    masks = [coco.decode(lesion.region, recipe.name) for lesion in recipe.lesions]
    pictures = [synthetic.encode_mask_png(mask) for mask in masks]

    def write_image(part: Path) -> None:
        if recipe.config.format == "dicom":
            synthetic.write_dicom_of_mammogram(
                part, stored, mammogram, recipe.make_key(), recipe.repeat
            )
        elif recipe.config.format == "png":
            synthetic.write_png(part, stored)
        else:
            _write_record(part, recipe, stored, pictures)

    return {
        f"images/{_name_image(recipe)}": write_image,
        **{
            f"lesion_masks/{recipe.name}_{number}.png": picture
            for number, picture in enumerate(pictures, start=1)
        },
    }


def describe_set(
    recipes: Sequence[Recipe],
    config: SynthesisConfig,
    lesions: Iterable[str] | None,
    trained_on: Iterable[str],
) -> Mapping[str, str]:
    """Describe a whole set: the content of its tables and of README.md.

    Args:
        recipes: Of all items, including skipped ones.
        lesions: As in `collect_patients`.
        trained_on: As in `collect_patients`.
    """
    complete = [recipe for recipe in recipes if not recipe.left_out]
    patients = collect_patients(complete, lesions, trained_on)
    return {
        "annotations.json": to_json(_format_annotations(complete, config)),
        "metadata.csv": synthetic.format_metadata([_format_row(recipe) for recipe in complete]),
        PATIENTS: to_json(patients.model_dump(mode="json")),
        "README.md": _format_card(complete, len(recipes) - len(complete), config),
    }


def _write_record(part: Path, recipe: Recipe, stored: Stored, masks: Sequence[bytes]) -> None:
    rows, cols = stored.values.shape
    lesions: list[InsertedLesion | ExistingLesion] = [*recipe.lesions, *recipe.own]
    own_masks = []
    for lesion in recipe.own:
        if lesion.region:
            mask = coco.decode(lesion.region, recipe.name)
        else:
            mask = np.zeros((rows, cols), np.uint8)
            top, left, bottom, right = lesion.box
            mask[top:bottom, left:right] = 1
        own_masks.append(synthetic.encode_mask_png(mask))
    record = encode_detection(
        synthetic.encode_png(stored.full_scale()),
        (rows, cols),
        recipe.name,
        [lesion.box for lesion in lesions],
        [*masks, *own_masks],
        [(lesion.kind, CATEGORIES[lesion.kind]) for lesion in lesions],
    )
    if recipe.own:  # say of each lesion whether it was inserted
        example = tf.train.Example.FromString(record)
        flags = [1] * len(recipe.lesions) + [0] * len(recipe.own)
        example.features.feature["image/object/synthetic"].int64_list.value.extend(flags)
        record = example.SerializeToString(deterministic=True)
    with tf.io.TFRecordWriter(str(part)) as writer:
        writer.write(record)


def _name_image(recipe: Recipe) -> str:
    return f"{recipe.name}{ENDINGS[recipe.config.format]}"


def _format_annotations(recipes: Sequence[Recipe], config: SynthesisConfig) -> dict[str, Any]:
    images = []
    annotations = []
    for recipe in recipes:
        assert recipe.source
        number = recipe.number + 1
        images.append(
            {
                "id": number,
                "file_name": _name_image(recipe),
                "height": recipe.source.rows,
                "width": recipe.source.cols,
                "source": recipe.source.image_id,
                "patient": recipe.source.patient_id,
                "synthetic": True,
            }
        )
        for is_synthetic, lesions in ((True, recipe.lesions), (False, recipe.own)):
            annotations += [
                synthetic.coco_annotation(
                    number, lesion.kind, lesion.box, lesion.area, lesion.region, is_synthetic
                )
                for lesion in lesions
            ]
    title = f"{config.name}, from {config.data.archive_name}"
    return synthetic.format_coco(images, annotations, title)


def _format_row(recipe: Recipe) -> dict[str, Any]:
    source = recipe.source
    assert source
    row: dict[str, Any] = {
        "file": _name_image(recipe),
        "patient": source.patient_id,
        "split": source.official_split,
        "laterality": source.laterality,
        "view": source.view,
        "density": source.density,
        "pathology": _find_pathology(recipe),
    }
    if source.spacing:
        row["spacing"] = " x ".join(map(repr, source.spacing))
    if recipe.config.format == "png" and source.bits not in (8, 16) and recipe.files:
        row["bits"] = source.bits
    if recipe.config.real_lesions:
        row["lesion_patient"] = " ".join(sorted({graft.patient_id for graft in recipe.grafts}))
    return row


def _find_pathology(recipe: Recipe) -> str | None:
    """Find the worst pathology of an item's lesions; None unless each one's is known.

    Real lesions that are used whole, and those that were there before, bring their own. Others have
    what the config asks for.
    """
    requested = recipe.config.pathology
    # Nobody says that there is nothing else in the mammogram.
    if recipe.config.mammograms == "all" and not recipe.own:
        return requested
    inserted = [
        lesion.graft.pathology if lesion.graft and not lesion.graft.used else None
        for lesion in recipe.lesions
    ]
    pathologies = [requested or stated for stated in inserted]
    pathologies += [lesion.pathology for lesion in recipe.own]
    if None in pathologies:
        return None
    return gravest_pathology(pathology or "" for pathology in pathologies)


def collect_patients(
    recipes: Sequence[Recipe], lesions: Iterable[str] | None, trained_on: Iterable[str]
) -> Patients:
    """Collect everybody whose data a set holds.

    Args:
        lesions: Patients whose shapes or sizes it has. None for those of its real lesions.
        trained_on: Patients that its networks were trained on.
    """
    if lesions is None:
        lesions = (graft.patient_id for recipe in recipes for graft in recipe.grafts)
    mammograms = {recipe.source.patient_id for recipe in recipes if recipe.source}
    return Patients(
        mammograms=tuple(sorted(mammograms)),
        lesions=tuple(sorted(set(lesions))),
        trained_on=tuple(sorted(set(trained_on))),
        id_key=key_check(),
    )


def _format_card(recipes: Sequence[Recipe], left_out: int, config: SynthesisConfig) -> str:
    archive = config.data.archive_name
    masses = sum(len(recipe.lesions) for recipe in recipes)
    sources = len({recipe.source for recipe in recipes})
    generator = recipes[0].generator
    made_by = f"Lesions are blended in without a network (renderer {config.renderer})."
    if generator:
        made_by = (
            f"Generator {generator['name']}, step {generator['step'] or 'unknown'}, weights "
            f"`{generator['weights'][:12]}`."
        )
    lines = [
        f"# {config.name}: {len(recipes)} synthetic mammograms from {archive}",
        f"{synthetic.MARK}. {masses} masses in {len(recipes)} mammograms, made from {sources} "
        f"sources by `tfmammo synthesize` (tfmammo {__version__}); {left_out} items could not be "
        "made (failures.csv).",
    ]
    if own := sum(len(recipe.own) for recipe in recipes):
        lines.append(
            f"annotations.json has {own} lesions besides that the mammograms had before; their "
            "`synthetic` is false."
        )
    lines += [
        made_by,
        "A patient's synthetic and real mammograms belong on the same side of a split: `patient` "
        "in metadata.csv is the source's pseudonym.",
        f"{PATIENTS} names everybody whose tissue or lesions the set shows, whose lesions it has "
        "shapes or sizes from, or whom its networks were trained on: keep it out of every training "
        "run that holds one of them out.",
    ]
    if config.shapes.files:
        lines.append("Shapes come from files; it is not known whose lesions they are.")
    if config.patients:
        side, fold = config.patients.side, config.patients.fold
        lines.append(f"All are of the {side} side of one split, fold {fold}.")
    if config.real_lesions:
        lines += _describe_lesions(recipes, config)
    lines.append(f"Source's licence: {card.LICENCES.get(archive, card.UNKNOWN)}")
    return "\n\n".join(lines) + "\n"


def _describe_lesions(recipes: Sequence[Recipe], config: SynthesisConfig) -> list[str]:
    """Describe real lesions for the card: whose they are, and what their archive allows."""
    archive = config.lesion_data.archive_name
    records = [graft for recipe in recipes for graft in recipe.grafts]
    lesions = len({(record.image_id, record.number) for record in records})
    patients = len({record.patient_id for record in records})
    lines = [
        f"{_USED[records[0].used]} {lesions} real ones of {patients} patients of {archive}: "
        "`lesion_patient` in metadata.csv. A mammogram shows the tissue of `patient` and the "
        "lesions of `lesion_patient`; it belongs on the side of a split where all of them are.",
    ]
    if not config.patients:
        lines.append(
            "No split was given (`patients`), so one image may show patients of both sides; such "
            "images belong on neither."
        )
    if config.generator:
        trained = sum(bool(record.trained_on) for record in records)
        lines.append(
            f"The generator was trained on the patients of {trained} of the {len(records)} lesions "
            "(`trained_on` in the recipes)."
        )
    return [*lines, f"Lesions' licence: {card.LICENCES.get(archive, card.UNKNOWN)}"]
