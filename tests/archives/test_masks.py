"""Masks as label tools write them: read as regions, or refused with the reason.

One file is one lesion, whatever parts it has.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tfmammo.archives import folder
from tfmammo.archives.masks import read_mask
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Skipped, hash_id

ROWS = 80
COLS = 60
GREY = np.random.default_rng(0).integers(0, 256, (ROWS, COLS)).astype(np.uint8)
ROW, COL = np.mgrid[:ROWS, :COLS]
DISC = ((ROW - 40) ** 2 + (COL - 25) ** 2 < 15**2).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path)
    return path


def paint(*parts: tuple[int, int, int, int]) -> np.ndarray:
    """Squares of 10 px: (value, top, left, side)."""
    values = np.zeros((ROWS, COLS), np.uint16)
    for value, top, left, side in parts:
        values[top : top + side, left : left + side] = value
    return values


APART = [(5, 5), (30, 30), (60, 10), (60, 40)]


def number(values, side=10) -> np.ndarray:
    return paint(
        *((value, *place, side) for value, place in zip(values, APART, strict=False))
    ).astype(np.uint16 if max(values) > 255 else np.uint8)


LABELS = {
    "three lesions": number([1, 2, 3]),
    "a mass and a calcification": number([1, 2]),
    "shades of an editor": number([85, 170, 255]),
    "a lesion of three was deleted": number([1, 3]),
    "of two px each": number([1, 2, 3, 4], side=2),
    "of two px each, shades": number([60, 120, 180, 240], side=2),
    "of 16 bits": number([1000, 2000, 3000]),
    "side by side": paint((1, 20, 10, 20), (2, 20, 30, 20)).astype(np.uint8),
    "side by side, shades": paint((100, 20, 10, 20), (200, 20, 30, 20)).astype(np.uint8),
    "a calcification in a mass": paint((127, 20, 10, 30), (255, 30, 20, 6)).astype(np.uint8),
    "tissue and lesion": np.where(DISC > 0, 255, np.where(COL < 50, 128, 0)).astype(np.uint8),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_refused(tmp_path, name):
    with pytest.raises(ArchiveError, match="several labels"):
        read_mask(save(tmp_path / "a.png", LABELS[name]), ROWS, COLS)


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
    "blurred": cv2.GaussianBlur(255 * DISC, (0, 0), 1.5),
    "blurred much": cv2.GaussianBlur(255 * DISC, (0, 0), 4),
    "enlarged": resize((COLS // 2, ROWS // 2), cv2.INTER_LINEAR),
    "enlarged by 1.3": resize((46, 62), cv2.INTER_CUBIC),
    "shrunk": resize((3 * COLS, 3 * ROWS), cv2.INTER_AREA),
}


@pytest.mark.parametrize("form", ["L", "RGB"])
@pytest.mark.parametrize("name", RESAMPLED)
def test_rims_are_none(tmp_path, name, form):
    mask = read_mask(save(tmp_path / "a.png", RESAMPLED[name], form), ROWS, COLS)
    assert 2 * (mask & DISC).sum() / (mask.sum() + DISC.sum()) > 0.9


PARTS = np.where(ROW + COL > 125, 1, DISC).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_all_modes(tmp_path, mode):
    pixels = PARTS * np.uint16(25500) if mode == "I;16" else 255 * PARTS
    path = save(tmp_path / "a.png", pixels, None if mode == "I;16" else mode)
    with Image.open(path) as image:
        assert image.mode == mode
    np.testing.assert_array_equal(read_mask(path, ROWS, COLS), PARTS)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 7), (40, 200)])
def test_of_two_values_the_higher_is_the_lesion(tmp_path, values):
    path = save(tmp_path / "a.png", np.where(PARTS > 0, values[1], values[0]).astype(np.uint8))
    np.testing.assert_array_equal(read_mask(path, ROWS, COLS), PARTS)


def test_what_is_transparent_is_not_there(tmp_path):
    colours = np.zeros((ROWS, COLS, 4), np.uint8)
    colours[..., 3] = 255
    colours[..., 0] = 9 * DISC
    colours[70:] = (255, 255, 255, 0)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", colours), ROWS, COLS), DISC)


@pytest.mark.parametrize("quality", [20, 60, 95])
def test_noise_of_jpeg_is_no_label(tmp_path, quality):
    path = tmp_path / "a.jpg"
    Image.fromarray(255 * DISC).save(path, quality=quality)
    mask = read_mask(path, ROWS, COLS)
    assert 2 * (mask & DISC).sum() / (mask.sum() + DISC.sum()) > 0.95


BACKGROUND = {
    "inverted": 255 - 255 * DISC,
    "inverted, and the lesion in a corner": 255 - np.where(ROW + COL < 20, 255, 0).astype(np.uint8),
    "nothing but lesion": np.full((ROWS, COLS), 255, np.uint8),
    "nearly nothing else": np.where((ROW > 1) & (COL > 1), 1, 0).astype(np.uint8),
}


@pytest.mark.parametrize("name", BACKGROUND)
def test_a_mask_of_the_background_is_refused(tmp_path, name):
    with pytest.raises(ArchiveError, match="inverted"):
        read_mask(save(tmp_path / "a.png", BACKGROUND[name]), ROWS, COLS)


def test_a_lesion_may_touch_a_corner_or_fill_a_crop(tmp_path):
    for mask in (paint((255, 0, 0, 30)), paint((255, 3, 3, 54))):
        assert read_mask(save(tmp_path / "a.png", mask.astype(np.uint8)), ROWS, COLS).any()


# Where masks lie


def read(root: Path):
    skipped = Skipped()
    records = {record.image_id: record for record in folder.read(root, skipped)}
    return records, skipped.reasons


@pytest.mark.parametrize(
    ("mask", "lesions"),
    [
        ("images/a_mask.png", 1),
        ("images/a-seg.png", 1),
        ("images/a_label.tif", 1),
        ("images/a_GT.png", 1),
        ("images/a_mask_2.png", 1),
        ("masks/a.png", 1),
        ("masks/a_mask.png", 1),
        ("masks/a_seg_3.png", 1),
        ("Masks/a.png", 1),
        ("mask/left/a.png", 1),
        ("segmentations/a_1.png", 1),
        ("labels/a.png", 1),
        ("labels/a_1.png", 1),
        ("masks/other/a.png", 1),
        ("masks/b.png", 0),
    ],
)
def test_usual_spellings(tmp_path, mask, lesions):
    save(tmp_path / "images" / "a.png", GREY)
    save(tmp_path / mask, 255 * DISC)
    records, reasons = read(tmp_path)
    assert list(records) == [hash_id("folder", "a")]
    (record,) = records.values()
    assert len(record.lesions) == lesions
    assert len(reasons) <= 1
    if lesions:
        np.testing.assert_array_equal(record.lesions[0].mask(ROWS, COLS), DISC)


def test_a_flat_folder_of_masks_where_images_lie_in_subfolders(tmp_path):
    for name in ("left/a", "left/b", "right/c", "right/b"):
        save(tmp_path / "images" / f"{name}.png", GREY)
    for name in ("a", "b", "c_1", "c_2"):
        save(tmp_path / "masks" / f"{name}.png", 255 * DISC)
    records, reasons = read(tmp_path)
    counts = {name: len(records[hash_id("folder", name)].lesions) for name in ("left/a", "right/c")}
    assert counts == {"left/a": 1, "right/c": 2}
    # two images have this name
    assert "masks/b.png" in reasons and "masks/a.png" not in reasons
    assert not records[hash_id("folder", "left/b")].lesions
    assert reasons["masks/*"].startswith("3 masks")


def test_several_masks_beside_an_image_are_reported_in_one_line(tmp_path):
    for name in "abc":
        save(tmp_path / "images" / f"{name}.png", GREY)
        save(tmp_path / "images" / f"{name}_mask.png", 255 * DISC)
    records, reasons = read(tmp_path)
    assert [len(record.lesions) for record in records.values()] == [1, 1, 1]
    assert list(reasons) == ["images/*"] and reasons["images/*"].startswith("3 masks")


def test_a_mask_is_no_mammogram(tmp_path):
    save(tmp_path / "images" / "a.png", GREY)
    for name, pixels in (("b", 255 * DISC), ("c", DISC), ("d_mask", 40 + DISC), ("e", DISC * 9)):
        save(tmp_path / "images" / f"{name}.png", pixels)
    records, reasons = read(tmp_path)
    assert list(records) == [hash_id("folder", "a")]
    assert len(reasons) == 4 and all("mask" in reason for reason in reasons.values())


def test_a_mask_that_packs_badly_is_none_when_it_is_read(tmp_path):
    save(tmp_path / "images" / "b.bmp", 255 * DISC)
    (record,) = read(tmp_path)[0].values()
    with pytest.raises(ArchiveError, match="mask"):
        record.pixels()
