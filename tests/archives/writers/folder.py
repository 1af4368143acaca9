"""Write a folder that other programs read too: images, masks or COCO, metadata.csv."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.archives.writers.pixels import quantize
from tests.archives.writers.tables import write_csv
from tfmammo.archives.findings import CATEGORIES
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Lesion, Mammogram

_FACTS = ("laterality", "view", "pathology", "birads", "density")
_COLUMNS = ("file", "patient", *_FACTS, "kind", "shape", "margin", "spacing", "split", "bits")


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    annotations: Literal["masks", "polygons", "rle", "boxes"] = "masks",
    ending: str = ".png",
    bits: int = 16,
) -> list[Path]:
    """Write mammograms of any archive, numbered in the order given, with their pseudonyms.

    Args:
        annotations: One PNG per lesion, or annotations.json with outlines, run-length encodings or
            boxes.
        ending: .png, .tif, .pgm, .dcm, or with 8 bits also .bmp and .jpg (which loses).
        bits: 1 to 16; pixels are rint(value * (2^bits - 1)), in 8 bits where they fit, else in 16.
    """
    root.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    table: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for number, mammogram in enumerate(mammograms, start=1):
        paths.append(root / "images" / f"{number:06d}{ending}")
        stored: NDArray[np.integer] = quantize(mammogram, bits)
        if bits <= 8:
            stored = stored.astype(np.uint8)
        _write_image(paths[-1], stored, bits, mammogram)
        table.append(_row(paths[-1].name, mammogram, bits))
        if annotations == "masks":
            table += _write_masks(root / "masks", paths[-1].stem, mammogram)
        else:
            size = {"height": mammogram.rows, "width": mammogram.cols}
            images.append({"id": number, "file_name": paths[-1].name, **size})
            entries += [
                _annotation(lesion, mammogram, number, annotations) for lesion in mammogram.lesions
            ]
    blank = dict.fromkeys(_COLUMNS)
    write_csv(root / "metadata.csv", [blank | row for row in table])
    if annotations != "masks":
        content = {
            "images": images,
            "annotations": [{"id": i, **entry} for i, entry in enumerate(entries, 1)],
            "categories": [{"id": number, "name": kind} for kind, number in CATEGORIES.items()],
        }
        (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return paths


def _write_image(path: Path, stored: NDArray[np.integer], bits: int, mammogram: Mammogram) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".dcm":
        spacing = list(mammogram.spacing) if mammogram.spacing else None
        shown = {"ImageLaterality": mammogram.laterality, "ViewPosition": mammogram.view}
        write_dicom(path, stored, bits, **shown, PixelSpacing=spacing)
    elif path.suffix == ".pgm":
        head = f"P5\n{stored.shape[1]} {stored.shape[0]}\n{2**bits - 1}\n".encode()
        path.write_bytes(head + stored.astype(np.uint8 if bits <= 8 else ">u2").tobytes())
    else:
        Image.fromarray(stored).save(path)


def _row(file: str, mammogram: Mammogram, bits: int) -> dict[str, Any]:
    known = {"file": file, "patient": mammogram.patient_id, "split": mammogram.official_split}
    row = known | {name: getattr(mammogram, name) for name in _FACTS}
    if mammogram.spacing:
        row["spacing"] = " x ".join(map(repr, map(float, mammogram.spacing)))
    if bits not in (8, 16) and not file.endswith((".dcm", ".pgm")):
        row["bits"] = bits  # the others state it themselves
    return row


def _write_masks(folder: Path, stem: str, mammogram: Mammogram) -> list[dict[str, Any]]:
    """Write one file and one row of the table for each lesion."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, lesion in enumerate(mammogram.lesions, start=1):
        name = f"{stem}_{number}.png"
        mask = lesion.mask(mammogram.rows, mammogram.cols) * np.uint8(255)
        Image.fromarray(mask).save(folder / name)
        facts = ("kind", "shape", "margin", "pathology")
        rows.append({"file": name} | {fact: getattr(lesion, fact) for fact in facts})
    return rows


def _annotation(lesion: Lesion, mammogram: Mammogram, image: int, form: str) -> dict[str, Any]:
    top, left, bottom, right = lesion.box
    size = [right - left, bottom - top]
    entry: dict[str, Any] = {"image_id": image, "category_id": CATEGORIES[lesion.kind]}
    entry |= {"bbox": [left, top, *size], "area": size[0] * size[1], "iscrowd": int(form == "rle")}
    if form == "boxes":
        return entry
    mask = lesion.mask(mammogram.rows, mammogram.cols)
    entry["area"] = int(mask.sum())
    if form == "polygons":  # COCO counts from the image's corner, we from the first pixel's centre
        parts = [outline[:, ::-1].astype(float) + 0.5 for outline in lesion.outlines]
        return entry | {"segmentation": [part.ravel().tolist() for part in parts]}
    flat = np.concatenate([[0], mask.T.ravel()])  # runs begin with one of 0
    borders = np.flatnonzero(np.diff(flat))
    runs = np.diff([0, *borders.tolist(), mask.size])
    return entry | {"segmentation": {"size": list(mask.shape), "counts": runs.tolist()}}
