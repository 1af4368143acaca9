"""What a synthesis leaves on disk: the files of one item, and what is told of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmammo import __version__, archives
from tfmammo.archives import coco, source_file
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.archives.writers.folder import CATEGORIES
from tfmammo.data import card, jobs
from tfmammo.data.patches import worst
from tfmammo.data.tfrecord import encode_detection, sha256
from tfmammo.recipe import Graft, Recipe, SynthesisConfig
from tfmammo.record import Mammogram

ENDINGS = {"dicom": ".dcm", "png": ".png", "tfrecord": ".tfrecord"}


def write(recipe: Recipe, mammogram: Mammogram, made: Stored, folder: Path) -> dict[str, str]:
    """Write an item's image and masks.

    Returns:  the sha256 of each file by its path beneath the folder.
    """
    masks = [coco.decode(lesion.region, recipe.name) for lesion in recipe.lesions]
    pictures = [synthetic.mask_png(mask) for mask in masks]
    file, written = source_file(mammogram), {}

    def image(part: Path) -> None:
        if recipe.config.format == "dicom":
            lossy = file is not None and file.suffix.lower() in (".jpg", ".jpeg")
            synthetic.dicom(part, made, mammogram, recipe.key(), lossy)
        elif recipe.config.format == "png":
            synthetic.png(part, made)
        else:
            _write_record(part, recipe, made, pictures)

    contents: dict[str, Callable[[Path], Any]] = {f"images/{recipe.name}{ENDINGS[recipe.config.format]}": image}
    for number, picture in enumerate(pictures, start=1):
        contents[f"lesion_masks/{recipe.name}_{number}.png"] = _bytes_writer(picture)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with jobs.written(folder / name) as part:
            content(part)
            written[name] = sha256(part)
    return written


def write_set(made: Sequence[Recipe], left_out: int, chosen: SynthesisConfig, folder: Path) -> None:
    """Write annotations.json, metadata.csv and README.md of a set.

    Args:     made: the recipes of all items that there are. left_out: how many could not be made.
    """
    jobs.write(folder / "annotations.json", jobs.as_json(_annotations(made, chosen)))
    jobs.write(folder / "metadata.csv", synthetic.metadata([_row(recipe) for recipe in made]))
    jobs.write(folder / "README.md", _card(made, left_out, chosen))


def _bytes_writer(content: bytes) -> Callable[[Path], Any]:
    return lambda part: part.write_bytes(content)


def _write_record(part: Path, recipe: Recipe, made: Stored, masks: Sequence[bytes]) -> None:
    size, labels = made.values.shape, [(lesion.kind, CATEGORIES[lesion.kind]) for lesion in recipe.lesions]
    picture, boxes = synthetic.encoded(made.full_scale()), [lesion.box for lesion in recipe.lesions]
    with tf.io.TFRecordWriter(str(part)) as writer:
        writer.write(encode_detection(picture, (size[0], size[1]), recipe.name, boxes, masks, labels))


def _image_name(recipe: Recipe) -> str:
    return f"{recipe.name}{ENDINGS[recipe.config.format]}"


def _annotations(made: Sequence[Recipe], chosen: SynthesisConfig) -> dict[str, Any]:
    images, annotations = [], []
    for recipe in made:
        assert recipe.source
        facts = {"id": recipe.number + 1, "file_name": _image_name(recipe), "height": recipe.source.rows, "width": recipe.source.cols}
        images.append({**facts, "source": recipe.source.image_id, "patient": recipe.source.patient_id, "synthetic": True})
        annotations += [
            synthetic.coco_annotation(recipe.number + 1, found.kind, found.box, found.area, found.region) for found in recipe.lesions
        ]
    return synthetic.coco(images, annotations, f"{chosen.name}, from {archives.archive_name(chosen.data)}")


def _row(recipe: Recipe) -> dict[str, Any]:
    source = recipe.source
    assert source
    row: dict[str, Any] = {"file": _image_name(recipe), "patient": source.patient_id, "split": source.official_split}
    row |= {"laterality": source.laterality, "view": source.view, "density": source.density, "pathology": _pathology(recipe)}
    if source.spacing:
        row["spacing"] = " x ".join(map(repr, source.spacing))
    if recipe.config.format == "png" and source.bits not in (8, 16) and recipe.files:
        row["bits"] = source.bits
    if recipe.config.real_lesions:
        row["lesion_patient"] = " ".join(sorted({graft.patient_id for graft in _grafts([recipe])}))
    return row


def _pathology(recipe: Recipe) -> str | None:
    """Of all its masses as it was asked for; of real ones in a normal mammogram the worst, where each one's is known."""
    known = [graft.pathology for graft in _grafts([recipe])]
    if recipe.config.pathology or not known or None in known or recipe.config.mammograms != "normal":
        return recipe.config.pathology
    return worst(pathology or "" for pathology in known)


def _grafts(made: Sequence[Recipe]) -> list[Graft]:
    return [lesion.graft for recipe in made for lesion in recipe.lesions if lesion.graft]


def _card(made: Sequence[Recipe], left_out: int, chosen: SynthesisConfig) -> str:
    archive, lesions = archives.archive_name(chosen.data), sum(len(recipe.lesions) for recipe in made)
    generator = made[0].generator
    lines = [
        f"# {chosen.name}: {len(made)} synthetic mammograms from {archive}",
        f"{synthetic.MARK}. {lesions} masses in {len(made)} mammograms, made from {len({recipe.source for recipe in made})} sources"
        f" by `python -m tfmammo.synthesis` (tfmammo {__version__}); {left_out} items could not be made"
        " (dead_letters.csv).",
        f"Generator {generator['name']}, step {generator['step'] or 'unknown'}, sha256 `{generator['sha256'][:12]}`."
        if generator
        else f"Lesions are blended in without a network (painter {chosen.painter}).",
        "A patient's synthetic and real mammograms belong on the same side of a split: `patient` in metadata.csv is the source's"
        " pseudonym.",
        f"Source's licence: {card.LICENCES.get(archive, card.UNKNOWN)}",
    ]
    if chosen.real_lesions:
        lines[-1:-1] = _of_lesions(made, chosen)
    return "\n\n".join(lines) + "\n"


def _of_lesions(made: Sequence[Recipe], chosen: SynthesisConfig) -> list[str]:
    """What the card says of real lesions: whose they are, and what their archive allows."""
    archive, found = archives.archive_name(chosen.lesions or chosen.data), _grafts(made)
    patients, trained = len({graft.patient_id for graft in found}), sum(bool(graft.trained_on) for graft in found)
    lines = [
        f"The lesions are {len({(graft.image_id, graft.number) for graft in found})} real ones of {patients} patients of {archive}:"
        " `lesion_patient` in metadata.csv. A mammogram shows the tissue of `patient` and the lesions of `lesion_patient`; it belongs"
        " on the side of a split where all of them are.",
        f"All are of the {chosen.patients.side} side of one split, fold {chosen.patients.fold}."
        if chosen.patients
        else "No split was given (`patients`), so that one image may show patients of both sides; such images belong on neither.",
    ]
    if chosen.generator:
        lines.append(f"The generator was trained on the patients of {trained} of the {len(found)} lesions (`trained_on` in the recipes).")
    return [*lines, f"Lesions' licence: {card.LICENCES.get(archive, card.UNKNOWN)}"]
