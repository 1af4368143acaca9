"""Images with a lesion where a known segmenter and a known detector find it."""

import json

import cv2
import numpy as np

ROWS = 160
COLS = 120
BOX = (30, 40, 90, 80)
OTHER = (100, 20, 130, 60)


def draw(seed=0, rows=ROWS, cols=COLS):
    """A dark image with a bright ellipse in the middle of BOX: uint8 [rows, cols]."""
    image = np.random.default_rng(seed).integers(10, 60, (rows, cols)).astype(np.uint8)
    cv2.ellipse(image, (60 * cols // COLS, 60 * rows // ROWS), (15, 25), 0, 0, 360, 220, -1)
    return image


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def read_mask(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def write_boxes(form, root, folder):
    """Write the boxes of the archive's lesions; return the file, or the word truth."""
    top, left, bottom, right = 35, 45, 86, 76
    if form == "truth":
        return "truth"
    if form == "json":
        size = {"height": ROWS, "width": COLS}
        box = {"category_id": 1, "bbox": [left, top, right - left, bottom - top], "score": 0.75}
        content = {
            "images": [{"id": n, "file_name": f"{n}.png", **size} for n in range(3)],
            "annotations": [{"id": n + 1, "image_id": n, **box} for n in range(3)],
            "categories": [{"id": 1, "name": "mass"}],
        }
        (folder / "boxes.json").write_text(json.dumps(content))
        return folder / "boxes.json"
    names = {"csv": "row_min,col_min,row_max,col_max", "corners": "xmin,ymin,xmax,ymax"}[form]
    box = {"csv": (top, left, bottom, right), "corners": (left, top, right, bottom)}[form]
    rows = [f"images/{n}.png,{','.join(map(str, box))},0.75" for n in range(3)]
    (folder / "boxes.csv").write_text("\n".join([f"file,{names},score", *rows]))
    return folder / "boxes.csv"
