"""Masks as label tools write them: read as regions, or refused with the reason.

One file is one lesion, whatever parts it has.
"""

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.archives.folders import picture as save
from tests.archives.folders import read
from tfmammo.archives.masks import read_mask
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import hash_id
from tfmammo.metrics.segmentation import dice

ROWS = 80
COLS = 60
GREY = np.random.default_rng(0).integers(0, 256, (ROWS, COLS)).astype(np.uint8)
ROW, COL = np.mgrid[:ROWS, :COLS]
DISC = ((ROW - 40) ** 2 + (COL - 25) ** 2 < 15**2).astype(np.uint8)
PARTS = np.where(ROW + COL > 125, 1, DISC).astype(np.uint8)
APART = [(5, 5), (30, 30), (60, 10), (60, 40)]


def paint(*parts: tuple[int, int, int, int]) -> np.ndarray:
    """Squares: (value, top, left, side)."""
    values = np.zeros((ROWS, COLS), np.uint16)
    for value, top, left, side in parts:
        values[top : top + side, left : left + side] = value
    return values if values.max() > 255 else values.astype(np.uint8)


def number(values, side=10) -> np.ndarray:
    return paint(*((value, *place, side) for value, place in zip(values, APART, strict=False)))


LABELS = {
    "three lesions": number([1, 2, 3]),
    "of two px each": number([1, 2, 3, 4], side=2),
    "of 16 bits": number([1000, 2000, 3000]),
    "side by side": paint((1, 20, 10, 20), (2, 20, 30, 20)),
    "a calcification in a mass": paint((127, 20, 10, 30), (255, 30, 20, 6)),
    "tissue and lesion": np.where(DISC > 0, 255, np.where(COL < 50, 128, 0)).astype(np.uint8),
}
BACKGROUND = {
    "inverted": 255 - 255 * DISC,
    "inverted, and the lesion in a corner": np.where(ROW + COL < 20, 0, 255).astype(np.uint8),
    "nothing but lesion": np.full((ROWS, COLS), 255, np.uint8),
    "nearly nothing else": np.where((ROW > 1) & (COL > 1), 1, 0).astype(np.uint8),
}


@pytest.mark.parametrize("name", [*LABELS, *BACKGROUND])
def test_labels_and_masks_of_the_background_are_refused(tmp_path, name):
    path = save(tmp_path / "a.png", (LABELS | BACKGROUND)[name])
    with pytest.raises(ArchiveError, match="several labels" if name in LABELS else "inverted"):
        read_mask(path, ROWS, COLS)


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colours_are_labels(tmp_path, mode):
    image = Image.fromarray(number([1, 2]), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # as VOC's label maps have them
    image.convert(mode).save(tmp_path / "a.png")
    with pytest.raises(ArchiveError, match="several labels"):
        read_mask(tmp_path / "a.png", ROWS, COLS)


def resize(size, method) -> np.ndarray:
    small = cv2.resize(255 * DISC, size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(small, (COLS, ROWS), interpolation=method)


RESAMPLED = {
    "blurred much": cv2.GaussianBlur(255 * DISC, (0, 0), 4),
    "enlarged": resize((COLS // 2, ROWS // 2), cv2.INTER_LINEAR),
    "enlarged by 1.3": resize((46, 62), cv2.INTER_CUBIC),
    "shrunk": resize((3 * COLS, 3 * ROWS), cv2.INTER_AREA),
}


@pytest.mark.parametrize("form", ["L", "RGB"])
@pytest.mark.parametrize("name", RESAMPLED)
def test_rims_are_no_labels(tmp_path, name, form):
    mask = read_mask(save(tmp_path / "a.png", RESAMPLED[name], form), ROWS, COLS)
    assert dice(mask, DISC) > 0.9


def test_noise_of_jpeg_is_no_label(tmp_path):
    path = save(tmp_path / "a.jpg", 255 * DISC, quality=20)
    assert dice(read_mask(path, ROWS, COLS), DISC) > 0.95


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_all_modes(tmp_path, mode):
    pixels = PARTS * np.uint16(25500) if mode == "I;16" else 255 * PARTS
    path = save(tmp_path / "a.png", pixels, None if mode == "I;16" else mode)
    with Image.open(path) as image:
        assert image.mode == mode
    np.testing.assert_array_equal(read_mask(path, ROWS, COLS), PARTS)


def test_of_two_values_the_higher_is_the_lesion_and_what_is_transparent_is_not_there(tmp_path):
    for low, high in ((0, 1), (0, 255), (0, 7), (40, 200)):
        path = save(tmp_path / "a.png", np.where(PARTS > 0, high, low).astype(np.uint8))
        np.testing.assert_array_equal(read_mask(path, ROWS, COLS), PARTS)
    colours = np.zeros((ROWS, COLS, 4), np.uint8)
    colours[..., 3] = 255
    colours[..., 0] = 9 * DISC
    colours[70:] = (255, 255, 255, 0)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", colours), ROWS, COLS), DISC)
    # a lesion may touch a corner, or two, or fill a crop
    for mask in (paint((255, 0, 0, 30)), paint((255, 0, 0, 60)), paint((255, 3, 3, 54))):
        assert read_mask(save(tmp_path / "a.png", mask), ROWS, COLS).any()


# Where masks are

PLACES = (
    "images/a_mask.png images/a-seg.png images/a_label.tif images/a_GT.png images/a_mask_2.png "
    "masks/a_seg_3.png Masks/a.png mask/left/a.png segmentations/a_1.png labels/a.png masks/b.png"
)


def test_usual_spellings(tmp_path):
    for place, mask in enumerate(PLACES.split(" ")):
        root = tmp_path / str(place)
        save(root / "images" / "a.png", GREY)
        save(root / mask, 255 * DISC)
        (record,), reasons = read(root)
        assert record.image_id == hash_id("folder", "a") and len(reasons) <= 1
        assert len(record.lesions) == (mask != "masks/b.png"), mask
        for lesion in record.lesions:
            np.testing.assert_array_equal(lesion.mask(ROWS, COLS), DISC)


def test_a_flat_folder_of_masks_where_images_lie_in_subfolders(tmp_path):
    for name in ("left/a", "left/b", "right/c", "right/b"):
        save(tmp_path / "images" / f"{name}.png", GREY)
    for name in ("a", "b", "c_1", "c_2"):
        save(tmp_path / "masks" / f"{name}.png", 255 * DISC)
    records, reasons = read(tmp_path)
    counts = {record.image_id: len(record.lesions) for record in records}
    expected = {"left/a": 1, "right/c": 2, "left/b": 0, "right/b": 0}  # two images have b's name
    assert counts == {hash_id("folder", name): count for name, count in expected.items()}
    assert "masks/b.png" in reasons and "masks/a.png" not in reasons
    assert reasons["masks/*"].startswith("3 masks")


def test_a_mask_is_no_mammogram(tmp_path):
    save(tmp_path / "images" / "a.png", GREY)
    for name, pixels in (("b", 255 * DISC), ("c", DISC), ("d_mask", 40 + DISC), ("e", DISC * 9)):
        save(tmp_path / "images" / f"{name}.png", pixels)
    save(tmp_path / "images" / "f.bmp", 255 * DISC)  # which packs badly
    (first, last), reasons = read(tmp_path)
    assert first.image_id == hash_id("folder", "a")
    assert len(reasons) == 4 and all("mask" in reason for reason in reasons.values())
    with pytest.raises(ArchiveError, match="mask"):
        last.pixels()
