"""A set of synthetic mammograms on disk: the files of each item, and those of the whole set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

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
from tfmammo.synthesis.recipe import ExistingLesion, InsertedLesion, Recipe, TransformRecord
from tfmammo.synthesis.sets import Contents, bytes_writer

ENDINGS = {"dicom": ".dcm", "png": ".png", "tfrecord": ".tfrecord"}
_USED = {  # what a card says of the lesions, by the part of real ones that is used
    None: "The lesions are",
    "outline": "The lesions' grey values are made from noise (the generator's model.prior), their "
    "outlines are those of",
    "size": "The lesions are made from noise, tissue around them too, and are as large as",
}


def list_files(recipe: Recipe, mammogram: Mammogram, stored: Stored) -> Contents:
    """List an item's files, image and masks, with what writes each.

    Args:
        recipe: The item's.
        mammogram: The mammogram that it was made from.
        stored: The new stored values.
    """
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
            f"lesion_masks/{recipe.name}_{number}.png": bytes_writer(picture)
            for number, picture in enumerate(pictures, start=1)
        },
    }


def describe_set(
    recipes: Sequence[Recipe],
    config: SynthesisConfig,
    lesions: Iterable[str] | None,
    trained_on: Iterable[str],
) -> Mapping[str, str]:
    """Describe a whole set: annotations.json, metadata.csv, patients.json and README.md.

    Args:
        recipes: Of all items, those left out included.
        config: The set's.
        lesions: See `collect_patients`.
        trained_on: See `collect_patients`.

    Returns:
        The content of each file.
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
    lesions = _list_lesions(recipe)
    own_masks = [_draw_existing_mask(lesion, rows, cols, recipe.name) for lesion in recipe.own]
    record = encode_detection(
        synthetic.encode_png(stored.full_scale()),
        (rows, cols),
        recipe.name,
        [lesion.box for lesion in lesions],
        [*masks, *map(synthetic.encode_mask_png, own_masks)],
        [(lesion.kind, CATEGORIES[lesion.kind]) for lesion in lesions],
    )
    if recipe.own:  # say of each lesion whether it was inserted
        example = tf.train.Example.FromString(record)
        flags = [1] * len(recipe.lesions) + [0] * len(recipe.own)
        example.features.feature["image/object/synthetic"].int64_list.value.extend(flags)
        record = example.SerializeToString(deterministic=True)
    with tf.io.TFRecordWriter(str(part)) as writer:
        writer.write(record)


def _draw_existing_mask(
    lesion: ExistingLesion, rows: int, cols: int, where: str
) -> NDArray[np.uint8]:
    """Draw the mask of a lesion that was there before, or its box where there is no mask."""
    if lesion.region:
        return coco.decode(lesion.region, where)
    mask = np.zeros((rows, cols), np.uint8)
    top, left, bottom, right = lesion.box
    mask[top:bottom, left:right] = 1
    return mask


def _list_lesions(recipe: Recipe) -> list[InsertedLesion | ExistingLesion]:
    return [*recipe.lesions, *recipe.own]


def _name_image(recipe: Recipe) -> str:
    return f"{recipe.name}{ENDINGS[recipe.config.format]}"


def _format_annotations(recipes: Sequence[Recipe], config: SynthesisConfig) -> dict[str, Any]:
    images = []
    annotations = []
    for recipe in recipes:
        assert recipe.source
        images.append(
            {
                "id": recipe.number + 1,
                "file_name": _name_image(recipe),
                "height": recipe.source.rows,
                "width": recipe.source.cols,
                "source": recipe.source.image_id,
                "patient": recipe.source.patient_id,
                "synthetic": True,
            }
        )
        annotations += [
            synthetic.coco_annotation(
                recipe.number + 1,
                lesion.kind,
                lesion.box,
                lesion.area,
                lesion.region,
                not isinstance(lesion, ExistingLesion),
            )
            for lesion in _list_lesions(recipe)
        ]
    return synthetic.format_coco(
        images, annotations, f"{config.name}, from {config.data.archive_name}"
    )


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
        patients = {record.patient_id for record in _list_transforms([recipe])}
        row["lesion_patient"] = " ".join(sorted(patients))
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
    pathologies: list[str | None] = []
    for lesion in recipe.lesions:
        stated = lesion.graft.pathology if lesion.graft and not lesion.graft.used else None
        pathologies.append(requested or stated)
    pathologies += [lesion.pathology for lesion in recipe.own]
    if None in pathologies:
        return None
    return worst_pathology(pathology or "" for pathology in pathologies)


def collect_patients(
    recipes: Sequence[Recipe], lesions: Iterable[str] | None, trained_on: Iterable[str]
) -> Patients:
    """Collect everybody whose data a set holds.

    Args:
        recipes: Of its items.
        lesions: Patients whose shapes or sizes it has. None for those of its real lesions.
        trained_on: Patients that its networks were trained on.
    """
    if lesions is None:
        lesions = (record.patient_id for record in _list_transforms(recipes))
    mammograms = {recipe.source.patient_id for recipe in recipes if recipe.source}
    return Patients(
        mammograms=tuple(sorted(mammograms)),
        lesions=tuple(sorted(set(lesions))),
        trained_on=tuple(sorted(set(trained_on))),
        id_key=key_check(),
    )


def _list_transforms(recipes: Sequence[Recipe]) -> list[TransformRecord]:
    return [lesion.graft for recipe in recipes for lesion in recipe.lesions if lesion.graft]


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
    if config.real_lesions:
        lines += _describe_lesions(recipes, config)
    elif config.patients:
        lines.append(_describe_side(config))
    lines.append(f"Source's licence: {card.LICENCES.get(archive, card.UNKNOWN)}")
    return "\n\n".join(lines) + "\n"


def _describe_side(config: SynthesisConfig) -> str:
    assert config.patients
    return f"All are of the {config.patients.side} side of one split, fold {config.patients.fold}."


def _describe_lesions(recipes: Sequence[Recipe], config: SynthesisConfig) -> list[str]:
    """Describe real lesions for the card: whose they are, and what their archive allows."""
    archive = config.lesion_data.archive_name
    records = _list_transforms(recipes)
    lesions = len({(record.image_id, record.number) for record in records})
    patients = len({record.patient_id for record in records})
    lines = [
        f"{_USED[records[0].used]} {lesions} real ones of {patients} patients of {archive}: "
        "`lesion_patient` in metadata.csv. A mammogram shows the tissue of `patient` and the "
        "lesions of `lesion_patient`; it belongs on the side of a split where all of them are.",
        _describe_side(config)
        if config.patients
        else "No split was given (`patients`), so one image may show patients of both sides; such "
        "images belong on neither.",
    ]
    if config.generator:
        trained = sum(bool(record.trained_on) for record in records)
        lines.append(
            f"The generator was trained on the patients of {trained} of the {len(records)} lesions "
            "(`trained_on` in the recipes)."
        )
    return [*lines, f"Lesions' licence: {card.LICENCES.get(archive, card.UNKNOWN)}"]
