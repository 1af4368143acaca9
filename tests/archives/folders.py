"""A small folder of somebody's own mammograms, for the tests of `tfmammo.archives.folder`."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.archives.tools import read_archive
from tests.small_mammograms import COLS, ROWS
from tfmammo.archives import folder

GREY = np.arange(ROWS * COLS, dtype=np.uint16).reshape(ROWS, COLS)  # 0 to 2639
BYTE = (GREY % 256).astype(np.uint8)
REGION = np.zeros((ROWS, COLS), np.uint8)
REGION[10:19, 20:31] = 255
read = partial(read_archive, folder)


def picture(path: Path, pixels, mode: str | None = None, **options) -> Path:
    """Save pixels, in another of Pillow's modes if one is named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def table(root: Path, *lines: str, encoding: str = "utf-8") -> None:
    """Write metadata.csv."""
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding=encoding)


def annotate(root: Path, *annotations: dict, word: str | None = None, **changes) -> None:
    """Write annotations.json in place of masks: image 1 is a.png, 2 is b.png.

    Args:
        word: Adds category 9 of this name.
    """
    shutil.rmtree(root / "masks", ignore_errors=True)
    size = {"height": ROWS, "width": COLS}
    names = {1: "mass", 2: "Calcifications", 3: "nipple"} | ({9: word} if word else {})
    content = {
        "images": [{"id": i, "file_name": f"{name}.png", **size} for i, name in enumerate("ab", 1)],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1} | annotation
            for i, annotation in enumerate(annotations, 1)
        ],
    }
    (root / "annotations.json").write_text(json.dumps(content | changes), encoding="utf-8")
