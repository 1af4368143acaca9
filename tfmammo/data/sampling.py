"""Draw the places of random patches, and the shapes of masses.

Nothing drawn here depends on the order in which mammograms come, or on what was drawn before. A
mammogram's count follows from the seed and the set of images. The place of its patch i follows from
the seed, the image's id and i. So one mammogram can be worked on by itself, on any machine, and
gives the same patches. Regions, also those with a third axis of 1, are uint8, 0 outside.

What the papers leave open:

- Whether the offset counts native pixels or those of the enlarged patch: native ones. An offset
  that would lose the lesion's pixel is never drawn: it ends just short of half the window, which
  for 256 px and the paper's 128 is 127.
- What happens at the image's border: the window is moved inside. Padding would draw an edge that no
  breast has.
- Whether the 90 % of breast are asked of patches near a lesion too: they are
  (`sampling.lesion_tissue`). The sentence is about all patches, and precedes the one about
  lesions. With 0 patches of masses at the breast's edge show more background than normal ones do,
  which tells the two apart.
- What a normal mammogram is: the strict reading, one in which the archive marks no lesion of any
  kind and which it calls normal. Tissue away from known lesions is taken only where sampling.normal
  asks for it, since only outlined lesions are known.
- How places are weighted: each lesion is equally likely to be drawn, and so is each normal
  mammogram. All places of a normal mammogram that hold enough breast are equally likely.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs, section 3 (places); Singh et
al., Breast tumor segmentation and shape classification in mammograms using cGAN and CNN (shapes).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig, SamplingConfig
from tfmammo.data.preprocess import resize_mask
from tfmammo.errors import DataError
from tfmammo.mammogram import SHAPES, Box, Lesion, LesionKind, Mammogram, MaskedLesion, Skipped

ATTEMPTS = 100  # draws near one lesion until a square holds enough breast
SHAPE_MARGIN = 0.05  # between a shape's longer side and its square's border, over that side
_SHAPE_WORDS = {**{shape: shape for shape in SHAPES}, "lobulated": "lobular"}


def select_lesions(mammogram: Mammogram, config: DataConfig) -> dict[int, Lesion]:
    """Select the lesions that config's kinds, pathologies and mixed_findings ask for."""
    return {
        number: lesion
        for number, lesion in enumerate(mammogram.lesions)
        if lesion.kind in config.kinds
        and (config.pathologies is None or lesion.pathology in config.pathologies)
        and (lesion.kind_is_certain or config.mixed_findings)
    }


def describe_wanted(config: DataConfig) -> str:
    """Say which lesions `select_lesions` selects: "malignant mass or calcification".

    Examples:
        >>> describe_wanted(DataConfig(pathologies=("malignant",)))
        'malignant mass'
    """
    kinds = " or ".join(config.kinds)
    return f"{' or '.join(config.pathologies)} {kinds}" if config.pathologies else kinds


def list_unselected(mammogram: Mammogram, config: DataConfig) -> list[Lesion]:
    """List the lesions of config.kinds that `select_lesions` leaves out; no file is read."""
    wanted = select_lesions(mammogram, config)
    return [
        lesion
        for number, lesion in enumerate(mammogram.lesions)
        if lesion.kind in config.kinds and number not in wanted
    ]


def is_normal(mammogram: Mammogram) -> bool:
    """Whether the archive marks no lesion of any kind in it and calls it normal."""
    unmarked = not mammogram.lesions and not mammogram.lacks()
    return unmarked and mammogram.pathology == "normal"


def has_normal_tissue(mammogram: Mammogram, config: SamplingConfig) -> bool:
    """Whether normal tissue may be taken from it, as config.normal says; no file is read."""
    outlined = all(
        isinstance(lesion, MaskedLesion) or lesion.outlines for lesion in mammogram.lesions
    )
    return is_normal(mammogram) or (
        config.normal == "tissue" and bool(mammogram.lesions) and outlined and not mammogram.lacks()
    )


def note_lost(mammogram: Mammogram, kinds: Iterable[LesionKind] | None, skipped: Skipped) -> bool:
    """Whether the image lost a lesion of these kinds (None: of any) on reading; note it then.

    Nobody could say whether what is found outside its other lesions is wrong.
    """
    if mammogram.lacks(kinds):
        skipped.add(mammogram.image_id, "one of its lesions was lost on reading")
        return True
    return False


def draw_quota(mammograms: Iterable[Mammogram], config: DataConfig) -> dict[str, int]:
    """Draw how many patches each mammogram is asked for; no pixel is read.

    For config.patches "offset", `sampling.count` draws of a lesion, each equally likely; for
    "normal", of a normal mammogram; for "lesion" no draw: as many as there are wanted lesions,
    outlined or not, with frame "full" at most one.
    """
    if config.patches != "lesion":
        config.sampling.get_scale()
    weights = {mammogram.image_id: _weight(mammogram, config) for mammogram in mammograms}
    total = sum(weights.values())
    if total == 0:
        fault = f"holds a {describe_wanted(config)} to make a patch of"
        if config.patches == "normal":
            fault = "is normal: without any lesion, and called normal by its archive"
            if config.sampling.normal == "tissue":
                fault += " (or has outlined lesions)"
        raise DataError(f"data.patches={config.patches}: none of {len(weights)} mammograms {fault}")
    if config.patches == "lesion":
        return weights
    names = sorted(weights)
    counts = np.random.default_rng(config.seed).multinomial(
        config.sampling.count, [weights[name] / total for name in names]
    )
    return dict(zip(names, counts.tolist(), strict=True))


def random_stream(seed: int, image_id: str, number: int) -> np.random.Generator:
    """Return the random numbers of one patch of one image."""
    image = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:16], "big")
    return np.random.default_rng([seed, image, number])


def draw_length(size: int, config: SamplingConfig, random: np.random.Generator) -> int:
    """Draw the side of a window, native px, that a factor of config.scale enlarges to `size` px."""
    scale = config.get_scale()
    enlargement = np.interp(random.random(), np.linspace(0, 1, len(scale)), scale)
    return max(1, round(size / float(enlargement)))


def draw_near_lesion(
    region: NDArray[np.uint8],
    length: int,
    offset: int,
    random: np.random.Generator,
    breast: NDArray[np.uint8] | None = None,
    tissue: float = 0.0,
) -> Box:
    """Draw a square that holds a random pixel of a lesion, off the square's centre.

    Args:
        region: The lesion, not 0.
        length: Side of the square, px.
        offset: px between the pixel and the square's centre, at most, along each axis; no more than
            just short of half the side is used.
        random: Random numbers.
        breast: uint8 [rows, cols, 1], 0 or 1; None if any square will do.
        tissue: Smallest part of the square that is breast, 0 to 1.

    Returns:
        [row_min, col_min, row_max, col_max], half-open, native px; beyond the image only along an
        axis where it is longer than the image.
    """
    pixels = np.flatnonzero(region)
    if len(pixels) == 0:
        raise ValueError("its mask is empty")
    reach = min(offset, (length - 1) // 2)
    last = np.array(region.shape) - length
    for _ in range(ATTEMPTS):
        pixel = np.unravel_index(pixels[random.integers(len(pixels))], region.shape)
        centre = np.array(pixel) + random.integers(-reach, reach + 1, 2)
        corner = np.clip(centre - length // 2, np.minimum(0, last), np.maximum(0, last))
        top, left = (int(start) for start in corner)
        bottom, right = top + length, left + length
        if (
            breast is None
            or np.count_nonzero(breast[max(0, top) : bottom, max(0, left) : right])
            >= tissue * length**2 - 1e-6
        ):
            return top, left, bottom, right
    raise ValueError(f"none of {ATTEMPTS} squares of {length} px is {100 * tissue:g} % breast")


def draw_on_breast(
    breast: NDArray[np.uint8],
    length: int,
    tissue: float,
    random: np.random.Generator,
    lesions: NDArray[np.uint8] | None = None,
) -> Box:
    """Draw a square, a box in native px, from all those that hold enough breast and no lesion.

    `tissue` is the smallest part of the square that is breast, 0 to 1.
    """
    if length <= min(breast.shape[:2]):
        enough = find_squares(breast, length, tissue, lesions)
        places = np.flatnonzero(enough)
        if len(places):
            corner = np.unravel_index(places[random.integers(len(places))], enough.shape)
            top, left = (int(start) for start in corner)
            return top, left, top + length, left + length
    without = " without a lesion" if lesions is not None and lesions.any() else ""
    raise ValueError(f"no square of {length} px is {100 * tissue:g} % breast{without}")


def find_squares(
    breast: NDArray[np.uint8], length: int, tissue: float, lesions: NDArray[np.uint8] | None
) -> NDArray[np.bool_]:
    """Find the upper left corners of all squares that hold enough breast and no lesion."""
    # 0.07 * 100 is above 7 in floating point
    enough = count_in_windows(breast, length) >= tissue * length**2 - 1e-6
    if lesions is not None and lesions.any():
        enough &= count_in_windows(lesions, length) == 0
    return enough


def count_in_windows(
    region: NDArray[np.uint8], rows: int, cols: int | None = None
) -> NDArray[np.int32]:
    """Count the pixels in every window of that size at once, by the integral image.

    Regions are uint8, 0 or 1; without `cols` a window is a square. The answer is int32 [tops,
    lefts], for each upper left corner of a window inside the region.
    """
    cols = rows if cols is None else cols
    corners = cv2.integral(np.ascontiguousarray(region))
    return (
        corners[rows:, cols:]
        - corners[:-rows, cols:]
        - corners[rows:, :-cols]
        + corners[:-rows, :-cols]
    )


def shape_class(word: str | None) -> str | None:
    """Classify an archive's word for a mass's shape as one of SHAPES.

    Joined words count where they name one of the four, whatever else they add, as in
    "irregular-architectural_distortion". What names two of them, or none, has no class.
    """
    parts = re.split(r"[^a-z]+", (word or "").lower())
    shapes = {_SHAPE_WORDS[part] for part in parts if part in _SHAPE_WORDS}
    return shapes.pop() if len(shapes) == 1 else None


def draw_shape_mask(lesion: Lesion, rows: int, cols: int, size: int) -> NDArray[np.uint8]:
    """Draw the mask of one mass, alone in a square around its box."""
    top, left, bottom, right = lesion.box
    mask = lesion.mask(rows, cols)[top:bottom, left:right]
    length = round(max(mask.shape) * (1 + 2 * SHAPE_MARGIN))
    square = np.zeros((length, length, 1), np.uint8)
    above = (length - mask.shape[0]) // 2
    before = (length - mask.shape[1]) // 2
    square[above : above + mask.shape[0], before : before + mask.shape[1], 0] = mask
    small = resize_mask(square, size, size)
    if not small.any():
        raise ValueError(f"nothing of its mask is left at {size} px")
    return small


def _weight(mammogram: Mammogram, config: DataConfig) -> int:
    if config.patches == "normal":
        return int(has_normal_tissue(mammogram, config.sampling))
    lesions = select_lesions(mammogram, config).values()
    if config.patches == "lesion":
        return min(1, len(lesions)) if config.frame == "full" else len(lesions)
    return sum(config.sampling.boxes or lesion.is_outlined for lesion in lesions)
