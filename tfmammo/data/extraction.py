"""Cut square patches with their masks out of mammograms: at lesions, near them, in normal tissue.

`extract_patches` makes the patches of one mammogram, one after the other, so that an archive need
not fit into memory. `make_patches` puts those of many mammograms into arrays. Pixels go through
these steps: preprocessing of the whole mammogram, crop, resampling to `size` px, preprocessing of
the resampled crop, intensities to [0, 1]. Percentiles are taken last, of what a network sees.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.patches import Patch, Patches, gravest_pathology, stack_patches
from tfmammo.data.preprocess import resize_mask
from tfmammo.data.windows import crop_image, crop_window, extract_window
from tfmammo.errors import DataError
from tfmammo.mammogram import SHAPES, Box, Lesion, Mammogram, Skipped

log = logging.getLogger(__name__)

# The signature of `make_patches`, which other makers of patches share.
MakePatches = Callable[[Iterable[Mammogram], DataConfig, Skipped], Patches]


def make_patches(mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped) -> Patches:
    """Make all patches of some mammograms, of the sort that config.patches names.

    Args:
        mammograms: Raw records. Pixels are read once each, and only where a patch is to be made.
        config: Preprocessing, patches, crop mode (`frame`), sampling and intensities are used.
        skipped: What makes no patch is noted here, by image_id; DataError if none is left.

    Returns:
        Patches of config.size px, in the order of the mammograms. They are fewer than
        `sampling.count` where windows are skipped.

    Examples:
        >>> from tfmammo.archives import phantom
        >>> mammograms = phantom.read(count=2)
        >>> patches = make_patches(mammograms, DataConfig(size=32), Skipped())
        >>> patches.images.shape, patches.masks.dtype
        ((2, 32, 32, 1), dtype('uint8'))
        >>> patches.kinds.tolist()
        ['mass', 'mass']
    """
    counts: dict[str, int] = {}
    if config.patches != "lesion":
        mammograms = list(mammograms)
        counts = sampling.draw_quota(mammograms, config)
    patches: list[Patch] = []
    num_mammograms = num_uncertain = 0
    seen: list[Lesion] = []
    num_skipped = len(skipped)
    for mammogram in mammograms:
        num_mammograms += 1
        seen += mammogram.lesions
        count = counts.get(mammogram.image_id, 0)
        new = list(extract_patches(mammogram, config, skipped, count))
        patches += new
        if new:
            lesions = sampling.select_lesions(mammogram, config).values()
            num_uncertain += sum(not lesion.kind_is_certain for lesion in lesions)
    if not patches:
        reasons = list(skipped.reasons.items())[num_skipped:]
        raise DataError(_explain_no_patch(config, num_mammograms, seen, reasons))
    wanted = config.pathologies
    num_others = sum(
        lesion.kind in config.kinds and wanted is not None and lesion.pathology not in wanted
        for lesion in seen
    )
    log.info(
        "%d patches%s of %d patients from %d mammograms; skipped: %d; lesions "
        "of uncertain kind: %d%s",
        len(patches),
        f" of {sum(counts.values())} asked for" if counts else "",
        len({patch.patient_id for patch in patches}),
        num_mammograms,
        len(skipped) - num_skipped,
        num_uncertain,
        f"; lesions left out by data.pathologies: {num_others}" if num_others else "",
    )
    return stack_patches(patches)


def make_patches_of(
    sort: Literal["lesion", "offset", "normal"],
    mammograms: Iterable[Mammogram],
    config: DataConfig,
    skipped: Skipped,
) -> Patches:
    """`make_patches` of one sort, whatever config.patches says."""
    return make_patches(mammograms, config.model_copy(update={"patches": sort}), skipped)


def make_shape_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped
) -> Patches:
    """Make a patch of every mass of stated shape, labelled by its place in `SHAPES`.

    The images show the masks, since there is nothing else to see. No pixel is read.
    """
    _refuse_detectors_keys(config)
    patches = []
    others = Counter[str]()
    for mammogram in mammograms:
        for number, lesion in enumerate(mammogram.lesions):
            if lesion.kind != "mass":
                continue
            shape = sampling.shape_class(lesion.shape)
            if shape is None:
                others[lesion.shape or "not stated"] += 1
                continue
            try:
                mask = sampling.draw_shape_mask(lesion, mammogram.rows, mammogram.cols, config.size)
            except ValueError as error:
                skipped.add(mammogram.image_id, f"lesion {number}: {error}")
                continue
            patches.append(
                Patch(
                    mask.astype(np.float32),
                    mask,
                    mammogram.patient_id,
                    f"{mammogram.image_id}#{number}",
                    "mass",
                    lesion.pathology or "",
                    shape,
                    lesion.margin or "",
                    mammogram.official_split or "",
                )
            )
    left_out = ", ".join(f"{count} {word}" for word, count in sorted(others.items())) or "none"
    if not patches:
        raise DataError(
            f"no mass is {', '.join(SHAPES[:-1])} or {SHAPES[-1]}; other masses: "
            f"{left_out}; {len(skipped)} mammograms skipped"
        )
    log.info("%d masks; masses of other shapes skipped: %s", len(patches), left_out)
    labels = [SHAPES.index(patch.shape) for patch in patches]
    return stack_patches(patches).with_labels(labels)


def extract_patches(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped, count: int | None = None
) -> Iterator[Patch]:
    """Extract the patches of one mammogram, one at a time.

    - "lesion": one for every wanted lesion, or in the crop mode "full" one for all of them.
    - "offset": `count` random windows near a lesion, by `sampling.draw_near_lesion`.
    - "normal": `count` random windows of a normal mammogram, by `sampling.draw_on_breast`.

    A mask shows every wanted lesion, so that a neighbour does not count as background.
    """
    _refuse_detectors_keys(config)
    if config.patches == "lesion":
        return _extract_around_lesions(mammogram, config, skipped)
    if count is None:
        raise ValueError(
            f"data.patches={config.patches}: a mammogram's patches need its share, by "
            "sampling.draw_quota"
        )
    return _extract_random(mammogram, config, skipped, count)


def _refuse_detectors_keys(config: DataConfig) -> None:
    for key in ("canvas", "tiles"):
        if getattr(config, key):
            raise DataError(
                f"data.{key}: is for detectors, which see whole mammograms; patches are data.size "
                "x data.size px"
            )


@dataclass(frozen=True, eq=False)
class _Preprocessed:
    """A mammogram after preprocessing, its pixels read."""

    mammogram: Mammogram
    lesions: dict[int, Lesion]
    image: NDArray[np.float32]
    regions: NDArray[np.uint8]


def _extract_around_lesions(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped
) -> Iterator[Patch]:
    preprocessed = _preprocess_with_lesions(mammogram, config, skipped)
    if preprocessed is None:
        return
    lesions_of = {
        f"lesion {number}": (f"#{number}", [lesion])
        for number, lesion in preprocessed.lesions.items()
    }
    if config.frame == "full":
        lesions_of = {"all lesions": ("#full", list(preprocessed.lesions.values()))}
    for name, (suffix, lesions) in lesions_of.items():
        try:
            place = crop_window(lesions[0].box, preprocessed.mammogram, config)
            patch = _extract_patch(preprocessed, place, config, suffix, lesions)
        except ValueError as error:
            skipped.add(mammogram.image_id, f"{name}: {error}")
        else:
            yield patch


def make_sampler(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped
) -> Callable[[int], Patch] | None:
    """Read a mammogram's pixels, and return a function that makes random patches of it.

    Returns:
        Number -> patch, the same for the same seed, image and number, or ValueError. None where the
        mammogram has nothing to make such patches of.
    """
    near = config.patches == "offset"
    preprocess_with = _preprocess_with_lesions if near else _preprocess_normal
    preprocessed = preprocess_with(mammogram, config, skipped)
    if preprocessed is None:
        return None
    tissue = config.sampling.lesion_tissue if near else config.sampling.tissue
    breast = None if near and not tissue else preprocess.breast_mask(preprocessed.image)

    def draw(number: int) -> Patch:
        """Extract patch `number`, near a random lesion or somewhere on the breast."""
        random = sampling.random_stream(config.seed, mammogram.image_id, number)
        length = sampling.draw_length(config.size, config.sampling, random)
        if not near:
            assert breast is not None
            place = sampling.draw_on_breast(breast, length, tissue, random, preprocessed.regions)
            return _extract_patch(preprocessed, place, config, f"@{number}", [])
        index = list(preprocessed.lesions)[random.integers(len(preprocessed.lesions))]
        lesion = preprocessed.lesions[index]
        region = lesion.mask(preprocessed.mammogram.rows, preprocessed.mammogram.cols)
        place = sampling.draw_near_lesion(
            region, length, config.sampling.offset, random, breast, tissue
        )
        return _extract_patch(preprocessed, place, config, f"#{index}@{number}", [lesion])

    return draw


def _extract_random(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped, count: int
) -> Iterator[Patch]:
    draw = make_sampler(mammogram, config, skipped) if count else None
    if draw is None:
        return
    reasons = []
    for number in range(count):
        try:
            patch = draw(number)
        except ValueError as error:
            reasons.append(str(error))
        else:
            yield patch
    if reasons:
        skipped.add(mammogram.image_id, f"{len(reasons)} of {count} random places: {reasons[0]}")


def _preprocess_with_lesions(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped
) -> _Preprocessed | None:
    """Preprocess a mammogram with its wanted lesions; None where none of them has an outline.

    A patch of the whole image needs all of them: it would show the others as background.
    """
    lesions = {}
    needs_all = config.patches == "lesion" and config.frame == "full"
    wanted = sampling.select_lesions(mammogram, config)
    for number, lesion in wanted.items():
        try:
            if lesion.outlines:  # reads the mask's file, if there is one
                lesions[number] = lesion
            elif config.patches == "offset" and config.sampling.boxes:
                lesions[number] = replace(lesion, outlines=(_outline_box(lesion.box),))
            else:
                skipped.add(
                    mammogram.image_id, f"lesion {number}: the archive gives its box but no outline"
                )
        except ValueError as error:
            skipped.add(mammogram.image_id, f"lesion {number}: {error}")
    if needs_all and sampling.note_lost(mammogram, config.kinds, skipped):
        return None
    if not lesions or (needs_all and len(lesions) < len(wanted)):
        return None  # no pixel is read
    preprocessed = _preprocess(mammogram, lesions, config, skipped)
    is_whole = preprocessed is not None and len(preprocessed.lesions) == len(wanted)
    return preprocessed if is_whole or not needs_all else None


def _preprocess_normal(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped
) -> _Preprocessed | None:
    """Preprocess a mammogram with all its lesions; None where no normal tissue may be taken."""
    if not sampling.has_normal_tissue(mammogram, config.sampling):
        return None
    lesions = dict(enumerate(mammogram.lesions))
    preprocessed = _preprocess(mammogram, lesions, config, skipped)
    is_whole = preprocessed is not None and len(preprocessed.lesions) == len(lesions)
    return preprocessed if is_whole else None


def _outline_box(box: Box) -> NDArray[np.float32]:
    top, left, bottom, right = box
    corners = [[top, left], [top, right - 1], [bottom - 1, right - 1], [bottom - 1, left]]
    return np.array(corners, np.float32)


def _preprocess(
    mammogram: Mammogram, lesions: dict[int, Lesion], config: DataConfig, skipped: Skipped
) -> _Preprocessed | None:
    try:
        moved = preprocess.preprocess_mammogram(
            replace(mammogram, lesions=tuple(lesions.values())), config.preprocess
        )
        image = moved.pixels()
    except ValueError as error:
        skipped.add(mammogram.image_id, error)
        return None
    regions = np.zeros((moved.rows, moved.cols, 1), np.uint8)
    visible = {}
    for number, lesion in zip(lesions, moved.lesions, strict=True):
        try:
            regions[..., 0] |= lesion.mask(moved.rows, moved.cols)
            visible[number] = lesion
        except ValueError as error:  # a speck that resampling leaves nothing of
            skipped.add(mammogram.image_id, f"lesion {number}: {error}")
    if lesions and not visible:
        return None
    return _Preprocessed(moved, visible, image, regions)


def _extract_patch(
    preprocessed: _Preprocessed,
    place: Box,
    config: DataConfig,
    suffix: str,
    lesions: Sequence[Lesion],
) -> Patch:
    """Extract one patch; a ValueError says why there is none."""
    mammogram = preprocessed.mammogram
    top, left, bottom, right = place
    if not config.pad and (bottom - top > mammogram.rows or right - left > mammogram.cols):
        raise ValueError(
            "its patch is larger than the mammogram (pad=true keeps it; where the images are "
            "cut around lesions already, frame=full)"
        )
    image = extract_window(preprocessed.image, place, config)
    mask = resize_mask(crop_image(preprocessed.regions, place), config.size, config.size)
    if lesions and not mask.any():
        raise ValueError(f"nothing of its mask is left at {config.size} px")
    return Patch(
        image,
        mask,
        mammogram.patient_id,
        mammogram.image_id + suffix,
        **_describe_lesions(mammogram, lesions, config),
        official_split=mammogram.official_split or "",
        place=place,
    )


def _describe_lesions(
    mammogram: Mammogram, lesions: Sequence[Lesion], config: DataConfig
) -> dict[str, str]:
    if not lesions:
        return {"kind": "normal", "pathology": "normal"}
    kind = min((lesion.kind for lesion in lesions), key=config.kinds.index)
    pathology = gravest_pathology(lesion.pathology or "" for lesion in lesions)
    if config.patches == "lesion" and config.frame == "full":
        pathology = mammogram.pathology or pathology
    facts = {"kind": kind, "pathology": pathology}
    for name in ("shape", "margin"):
        words = {getattr(lesion, name) or "" for lesion in lesions}
        facts[name] = words.pop() if len(words) == 1 else ""
    return facts


def _explain_no_patch(
    config: DataConfig,
    num_mammograms: int,
    seen: list[Lesion],
    reasons: list[tuple[str, str]],
) -> str:
    wanted = f"a {sampling.describe_wanted(config)}"
    if not config.mixed_findings:
        wanted += " whose kind is certain"
    if config.patches == "normal":
        wanted = "normal tissue"
    kinds = Counter(
        lesion.kind
        if config.pathologies is None
        else f"{lesion.kind} of {lesion.pathology or 'unknown'} pathology"
        for lesion in seen
    )
    lesions = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no lesion"
    message = f"no patch of {wanted} can be made: {num_mammograms} mammograms hold {lesions}"
    if reasons:
        message += f"; {len(reasons)} skipped, first {reasons[0][0]}: {reasons[0][1]}"
    return message
