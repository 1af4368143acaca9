"""A set of synthetic mammograms on disk: the files of each item, and those of the whole set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmammo import __version__
from tfmammo.archives import coco
from tfmammo.archives.findings import CATEGORIES
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.data import card
from tfmammo.data.patches import worst_pathology
from tfmammo.data.patients import PATIENTS, Patients
from tfmammo.data.tfrecord import encode_detection
from tfmammo.filesystem import to_json
from tfmammo.mammogram import Mammogram, key_check
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.recipe import ExistingLesion, InsertedLesion, Recipe
from tfmammo.synthesis.sets import Contents

ENDINGS = {"dicom": ".dcm", "png": ".png", "tfrecord": ".tfrecord"}
_USED = {  # what a card says of the lesions, by the part of real ones that is used
    None: "The lesions are",
    "outline": "The lesions' intensities are made from noise (the generator's model.prior), their "
    "outlines are those of",
    "size": "The lesions are made from noise, tissue around them too, and are as large as",
}


def list_files(recipe: Recipe, mammogram: Mammogram, stored: Stored) -> Contents:
    """List an item's files, image and masks, with what writes each; `stored` is the new image."""
    masks = [coco.decode(lesion.region, recipe.name) for lesion in recipe.lesions]
    pictures = [synthetic.encode_mask_png(mask) for mask in masks]

    def write_image(part: Path) -> None:
        if recipe.config.format == "dicom":
            synthetic.write_dicom_of_mammogram(
                part, stored, mammogram, recipe.make_key(), mammogram.is_lossy, recipe.repeat
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
    return worst_pathology(pathology or "" for pathology in pathologies)


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
