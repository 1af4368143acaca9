"""What a synthesis leaves on disk: the files of one item, and what is told of all of them
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo import __version__, archives, filesystem
from tfmammo.archives import coco, source_file
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.archives.writers.folder import CATEGORIES
from tfmammo.data import card, jobs
from tfmammo.data.patches import worst
from tfmammo.data.patients import PATIENTS, Patients
from tfmammo.data.tfrecord import encode_detection, sha256
from tfmammo.mammogram import Mammogram, key_check
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.provenance import Graft, OwnLesion, Planted, Recipe

ENDINGS = {"dicom": ".dcm", "png": ".png", "tfrecord": ".tfrecord"}


def write(recipe: Recipe, mammogram: Mammogram, made: Stored, folder: Path) -> dict[str, str]:
    """Write an item's image and masks.

    Returns:
        The sha256 of each file by its path beneath the folder.

    Raises:
        DataError: The recipe's name leads out of the folder.
    """
    masks = [coco.decode(lesion.region, recipe.name) for lesion in recipe.lesions]
    pictures = [synthetic.mask_png(mask) for mask in masks]
    file = source_file(mammogram)
    written = {}

    def image(part: Path) -> None:
        if recipe.config.format == "dicom":
            lossy = file is not None and file.suffix.lower() in (".jpg", ".jpeg")
            synthetic.dicom(part, made, mammogram, recipe.key(), lossy)
        elif recipe.config.format == "png":
            synthetic.png(part, made)
        else:
            _write_record(part, recipe, made, pictures)

    contents: dict[str, Callable[[Path], Any]] = {
        f"images/{recipe.name}{ENDINGS[recipe.config.format]}": image
    }
    for number, picture in enumerate(pictures, start=1):
        contents[f"lesion_masks/{recipe.name}_{number}.png"] = _bytes_writer(picture)
    for name, content in contents.items():
        path = jobs.inside(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.atomic_file(path) as part:
            content(part)
            written[name] = sha256(part)
    return written


def write_set(
    made: Sequence[Recipe], left_out: int, chosen: SynthesisConfig, patients: Patients, folder: Path
) -> None:
    """Write annotations.json, metadata.csv, patients.json and README.md of a set.

    Args:
        made: The recipes of all items that there are.
        left_out: How many could not be made.
    """
    filesystem.write_atomically(
        folder / "annotations.json", jobs.as_json(_annotations(made, chosen)), durable=False
    )
    filesystem.write_atomically(
        folder / "metadata.csv",
        synthetic.metadata([_row(recipe) for recipe in made]),
        durable=False,
    )
    filesystem.write_atomically(
        folder / PATIENTS, jobs.as_json(patients.model_dump(mode="json")), durable=False
    )
    filesystem.write_atomically(folder / "README.md", _card(made, left_out, chosen), durable=False)


def _bytes_writer(content: bytes) -> Callable[[Path], Any]:
    return lambda part: part.write_bytes(content)


def _write_record(part: Path, recipe: Recipe, made: Stored, masks: Sequence[bytes]) -> None:
    size = made.values.shape
    found = _all_lesions(recipe)
    boxes = [lesion.box for lesion in found]
    labels = [(lesion.kind, CATEGORIES[lesion.kind]) for lesion in found]
    masks = [
        *masks,
        *(synthetic.mask_png(_own_mask(lesion, size, recipe.name)) for lesion in recipe.own),
    ]
    picture = synthetic.encoded(made.full_scale())
    record = encode_detection(picture, (size[0], size[1]), recipe.name, boxes, masks, labels)
    with tf.io.TFRecordWriter(str(part)) as writer:
        writer.write(_marked(record, recipe) if recipe.own else record)


def _own_mask(lesion: OwnLesion, size: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """Of a lesion that is known by its box alone its box."""
    if lesion.region:
        return coco.decode(lesion.region, where)
    mask = np.zeros(size, np.uint8)
    (top, left, bottom, right) = lesion.box
    mask[top:bottom, left:right] = 1
    return mask


def _marked(record: bytes, recipe: Recipe) -> bytes:
    """A record that says of each lesion whether it was inserted."""
    example = tf.train.Example.FromString(record)
    flags = [1] * len(recipe.lesions) + [0] * len(recipe.own)
    example.features.feature["image/object/synthetic"].int64_list.value.extend(flags)
    return bytes(example.SerializeToString(deterministic=True))


def _all_lesions(recipe: Recipe) -> list[Planted | OwnLesion]:
    return [*recipe.lesions, *recipe.own]


def _image_name(recipe: Recipe) -> str:
    return f"{recipe.name}{ENDINGS[recipe.config.format]}"


def _annotations(made: Sequence[Recipe], chosen: SynthesisConfig) -> dict[str, Any]:
    images = []
    annotations = []
    for recipe in made:
        assert recipe.source
        facts = {
            "id": recipe.number + 1,
            "file_name": _image_name(recipe),
            "height": recipe.source.rows,
            "width": recipe.source.cols,
        }
        images.append(
            {
                **facts,
                "source": recipe.source.image_id,
                "patient": recipe.source.patient_id,
                "synthetic": True,
            }
        )
        annotations += [
            synthetic.coco_annotation(
                recipe.number + 1,
                found.kind,
                found.box,
                found.area,
                found.region,
                not isinstance(found, OwnLesion),
            )
            for found in _all_lesions(recipe)
        ]
    return synthetic.coco(
        images, annotations, f"{chosen.name}, from {archives.archive_name(chosen.data)}"
    )


def _row(recipe: Recipe) -> dict[str, Any]:
    source = recipe.source
    assert source
    row: dict[str, Any] = {
        "file": _image_name(recipe),
        "patient": source.patient_id,
        "split": source.official_split,
    }
    row |= {
        "laterality": source.laterality,
        "view": source.view,
        "density": source.density,
        "pathology": _pathology(recipe),
    }
    if source.spacing:
        row["spacing"] = " x ".join(map(repr, source.spacing))
    if recipe.config.format == "png" and source.bits not in (8, 16) and recipe.files:
        row["bits"] = source.bits
    if recipe.config.real_lesions:
        row["lesion_patient"] = " ".join(sorted({graft.patient_id for graft in _grafts([recipe])}))
    return row


def _pathology(recipe: Recipe) -> str | None:
    """The worst of its lesions, where each one's is known: as it was asked for, else of a real one
    that is all there, and its own.
    """
    asked = recipe.config.pathology
    # nobody says that there is nothing else in it
    if recipe.config.mammograms == "all" and not recipe.own:
        return asked
    planted = [
        asked or (found.graft.pathology if found.graft and not found.graft.used else None)
        for found in recipe.lesions
    ]
    known = [*planted, *(found.pathology for found in recipe.own)]
    return None if None in known else worst(pathology or "" for pathology in known)


def patients_of(
    made: Sequence[Recipe], lesions: Iterable[str] | None, trained_on: Iterable[str]
) -> Patients:
    """Whose data a set holds.

    Args:
        made: Its items.
        lesions: Whose shapes or sizes there are; None: of the real ones in the items.
        trained_on: Whom the networks were trained on.
    """
    shown = {recipe.source.patient_id for recipe in made if recipe.source}
    whose = {graft.patient_id for graft in _grafts(made)} if lesions is None else lesions
    mammograms, of_lesions, trained = (
        tuple(sorted(set(some))) for some in (shown, whose, trained_on)
    )
    return Patients(
        mammograms=mammograms, lesions=of_lesions, trained_on=trained, id_key=key_check()
    )


def _grafts(made: Sequence[Recipe]) -> list[Graft]:
    return [lesion.graft for recipe in made for lesion in recipe.lesions if lesion.graft]


def _card(made: Sequence[Recipe], left_out: int, chosen: SynthesisConfig) -> str:
    archive = archives.archive_name(chosen.data)
    lesions = sum(len(recipe.lesions) for recipe in made)
    generator = made[0].generator
    lines = [
        f"# {chosen.name}: {len(made)} synthetic mammograms from {archive}",
        f"{synthetic.MARK}. {lesions} masses in {len(made)} mammograms, made from "
        f"{len({recipe.source for recipe in made})} sources"
        f" by `python -m tfmammo.synthesis` (tfmammo {__version__}); {left_out} items could not "
        "be made"
        " (dead_letters.csv).",
        f"Generator {generator['name']}, step {generator['step'] or 'unknown'}, weights "
        f"`{generator['weights'][:12]}`."
        if generator
        else f"Lesions are blended in without a network (painter {chosen.painter}).",
        "A patient's synthetic and real mammograms belong on the same side of a split: `patient` "
        "in metadata.csv is the source's"
        " pseudonym.",
        f"{PATIENTS} names everybody whose tissue or lesions the set shows, whose lesions it has "
        "shapes or sizes from, or whom its networks"
        " were trained on: keep it out of every training that holds one of them out.",
        f"Source's licence: {card.LICENCES.get(archive, card.UNKNOWN)}",
    ]
    if own := sum(len(recipe.own) for recipe in made):
        lines[2:2] = [
            f"annotations.json has {own} lesions besides that the mammograms had before; their "
            "`synthetic` is false."
        ]
    if chosen.shapes.files:
        lines[-1:-1] = ["Shapes come from files, of which nobody says whose lesions they are."]
    if chosen.real_lesions:
        lines[-1:-1] = _of_lesions(made, chosen)
    elif chosen.patients:
        lines[-1:-1] = [_of_side(chosen)]
    return "\n\n".join(lines) + "\n"


_USED = {  # what a card says of the lesions, by what of real ones is used
    None: "The lesions are",
    "outline": "The lesions' grey values are made from noise (the generator's model.prior), their "
    "outlines are those of",
    "size": "The lesions are made from noise, tissue around them too, and are as large as",
}


def _of_side(chosen: SynthesisConfig) -> str:
    assert chosen.patients
    return f"All are of the {chosen.patients.side} side of one split, fold {chosen.patients.fold}."


def _of_lesions(made: Sequence[Recipe], chosen: SynthesisConfig) -> list[str]:
    """What the card says of real lesions: whose they are, and what their archive allows."""
    archive = archives.archive_name(chosen.lesions or chosen.data)
    found = _grafts(made)
    patients = len({graft.patient_id for graft in found})
    trained = sum(bool(graft.trained_on) for graft in found)
    lines = [
        f"{_USED[found[0].used]} {len({(graft.image_id, graft.number) for graft in found})} real "
        f"ones of {patients} patients of {archive}:"
        " `lesion_patient` in metadata.csv. A mammogram shows the tissue of `patient` and the "
        "lesions of `lesion_patient`; it belongs"
        " on the side of a split where all of them are.",
        _of_side(chosen)
        if chosen.patients
        else "No split was given (`patients`), so that one image may show patients of both sides; "
        "such images belong on neither.",
    ]
    if chosen.generator:
        lines.append(
            f"The generator was trained on the patients of {trained} of the {len(found)} lesions "
            "(`trained_on` in the recipes)."
        )
    return [*lines, f"Lesions' licence: {card.LICENCES.get(archive, card.UNKNOWN)}"]
