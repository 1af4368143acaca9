"""Mammograms -> square patches with their masks: around lesions, near them, or of normal tissue.

`patches_of` makes the patches of one mammogram, one after the other, so that an archive need not
fit into memory; `make_patches` puts those of many into arrays. What is done to pixels, in this
order: the preprocessing of the whole mammogram, the crop, resampling to `size` px, the
preprocessing of the resampled crop, grey values to [0, 1]. Percentiles are taken last: of what a
network sees.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.preprocess import normalise, resize_image, resize_mask
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Lesion, Mammogram, Skipped

log = logging.getLogger(__name__)

SEVERITY = ("malignant", "benign", "normal", "")

# The rows of Patches that are text, and what Patch calls one of them.
TEXTS = {
    "patient_ids": "patient_id",
    "ids": "id",
    "kinds": "kind",
    "pathologies": "pathology",
    "shapes": "shape",
    "official_splits": "official_split",
}


@dataclass(frozen=True, eq=False)
class Patch:
    """One patch.

    Attributes:
        image: float32 [s, s, 1] in [0, 1].
        mask: uint8 [s, s, 1], 0 or 1.
        place: Its window in the mammogram as `preprocess.preprocess_mammogram` leaves it, px. The rest: see
            Patches.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    patient_id: str
    id: str
    kind: str = ""
    pathology: str = ""
    shape: str = ""
    official_split: str = ""
    place: Box = (0, 0, 0, 0)


def _unknown() -> NDArray[np.str_]:
    return np.empty(0, np.str_)


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches in memory, row i of every array belonging together.

    Raises:
        ValueError: A shape, dtype or range is another.

    Attributes:
        images: float32 [n, s, s, 1] in [0, 1].
        masks: uint8 [n, s, s, 1], 0 or 1, 1 on any wanted lesion.
        patient_ids: str [n], the unit of splits.
        ids: str [n], "<image_id>#<index of the lesion in the mammogram>" of a lesion's patch,
            "<image_id>#full" of a whole mammogram, "<image_id>#<index>@<i>" of the i-th one near a
            lesion, "<image_id>@<i>" of normal tissue. Facts, str [n] each, "" where unknown, all of
            them where left out: kinds: mass, calcification, asymmetry, distortion or normal.
        pathologies: Normal, benign or malignant.
        shapes: The archive's own word.
        official_splits: Train or test. They are the lesion's for whose sake the patch was made. A
            whole mammogram's kind is the first in config.kinds that it holds, its pathology the
            image's (else its worst lesion's), its shape the one that all its lesions share.
        labels: int32 [n], the class of each for a classifier, set by `labelled`; of length 0 where
            there is none.
        balanced: Batches take their patches from the classes in turn, so that each class has the
            same share of every batch, however rare it is.
    """

    images: NDArray[np.float32]
    masks: NDArray[np.uint8]
    patient_ids: NDArray[np.str_]
    ids: NDArray[np.str_]
    kinds: NDArray[np.str_] = field(default_factory=_unknown)
    pathologies: NDArray[np.str_] = field(default_factory=_unknown)
    shapes: NDArray[np.str_] = field(default_factory=_unknown)
    official_splits: NDArray[np.str_] = field(default_factory=_unknown)
    labels: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    balanced: bool = False
    square: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shape = self.images.shape
        if (
            len(shape) != 4
            or (self.square and shape[1] != shape[2])
            or shape[3] != 1
            or self.masks.shape != shape
        ):
            wanted = "[n, s, s, 1]" if self.square else "[n, rows, cols, 1]"
            raise ValueError(
                f"images {shape} and masks {self.masks.shape} must both have the shape {wanted}"
            )
        if self.images.dtype != np.float32 or self.masks.dtype != np.uint8:
            raise ValueError(
                f"images must be float32 and masks uint8, not {self.images.dtype} and "
                f"{self.masks.dtype}"
            )
        if self.patient_ids.shape != shape[:1] or self.ids.shape != shape[:1]:
            raise ValueError(
                f"{len(self.patient_ids)} patient_ids and {len(self.ids)} ids for {shape[0]} "
                "patches"
            )
        if self.patient_ids.dtype.kind != "U" or self.ids.dtype.kind != "U":
            raise ValueError("patient_ids and ids must be arrays of str")
        for name in ("kinds", "pathologies", "shapes", "official_splits"):
            fact = getattr(self, name)
            if fact.size == 0:
                object.__setattr__(self, name, np.full(len(self), "", np.str_))
            elif fact.shape != shape[:1] or fact.dtype.kind != "U":
                raise ValueError(
                    f"{name} must be an array of {shape[0]} str, not of {fact.shape} {fact.dtype}"
                )
        if self.labels.dtype != np.int32 or self.labels.shape not in ((0,), shape[:1]):
            raise ValueError(
                f"labels must be {shape[0]} int32 or none, not {self.labels.shape} "
                f"{self.labels.dtype}"
            )
        if len(self) and not (
            self.images.min() >= 0 and self.images.max() <= 1 and self.masks.max() <= 1
        ):
            raise ValueError("images must lie in [0, 1] and masks must hold 0 and 1 alone")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Patches:
        """The patches at `indices`, in that order."""
        rows = np.asarray(indices, np.intp)
        texts: dict[str, Any] = {name: getattr(self, name)[rows] for name in TEXTS}
        labels = self.labels[rows] if len(self.labels) else self.labels
        return Patches(
            self.images[rows], self.masks[rows], **texts, labels=labels, balanced=self.balanced
        )

    def labelled(
        self, labels: Sequence[int] | NDArray[np.integer], balanced: bool = False
    ) -> Patches:
        """The same patches with a class each, which batches then hold as "label"; balanced: see the
        class.
        """
        return replace(self, labels=np.asarray(labels, np.int32), balanced=balanced)

    @property
    def shares(self) -> int:
        """How many classes share every batch equally: 1 where they are not balanced."""
        return len(np.unique(self.labels)) if self.balanced else 1

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits, equal for equal images, masks, labels, patient_ids and ids in
        the same order.
        """
        content = hashlib.sha256(repr(self.images.shape).encode())
        for array in (self.images, self.masks):
            content.update(np.ascontiguousarray(array).data)
        for names in (self.patient_ids, self.ids):
            content.update("\n".join(names.tolist()).encode() + b"\n")
        content.update(self.labels.tobytes())
        return content.hexdigest()[:12]


def stack(patches: Iterable[Patch]) -> Patches:
    """Patches as arrays, in their order.

    Raises:
        DataError: There is none.
    """
    rows = list(patches)
    if not rows:
        raise DataError("there is no patch to stack")
    texts: dict[str, Any] = {
        plural: np.array([getattr(row, single) for row in rows], np.str_)
        for plural, single in TEXTS.items()
    }
    return Patches(
        np.stack([row.image for row in rows]), np.stack([row.mask for row in rows]), **texts
    )


def worst(pathologies: Iterable[str]) -> str:
    """The gravest of some pathologies: malignant, benign, normal, or "" where none is known."""
    return min(pathologies, key=SEVERITY.index, default="")


# what `make_patches` is one of
Make = Callable[[Iterable[Mammogram], DataConfig, Skipped], Patches]


def make_patches(mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped) -> Patches:
    """All patches of some mammograms, of the sort that config.patches names.

    Args:
        mammograms: Raw records; their pixels are read once each, and only where a patch is to be
            made.
        config: Everything about preprocessing, patches, frame, sampling and grey values is used.
        skipped: What makes no patch is noted here, by image_id.

    Returns:
        Patches of config.size px, in the order of the mammograms. Fewer than `sampling.count` where
        places are skipped.

    Raises:
        DataError: No patch is left.
    """
    counts: dict[str, int] = {}
    if config.patches != "lesion":
        mammograms = list(mammograms)
        counts = sampling.quota(mammograms, config)
    made: list[Patch] = []
    seen = 0
    uncertain = 0
    found = Counter[str]()
    before = len(skipped)
    for mammogram in mammograms:
        seen += 1
        found.update(lesion.kind for lesion in mammogram.lesions)
        known = len(made)
        made += patches_of(mammogram, config, skipped, counts.get(mammogram.image_id, 0))
        if len(made) > known:
            uncertain += sum(
                not lesion.kind_is_certain for lesion in sampling.wanted(mammogram, config).values()
            )
    if not made:
        raise DataError(_nothing(config, seen, found, list(skipped.reasons.items())[before:]))
    log.info(
        "%d patches%s of %d patients from %d mammograms, %d left out wholly or in part; the "
        "archive does not settle the kind of %d lesions",
        len(made),
        f" of {sum(counts.values())} asked for" if counts else "",
        len({patch.patient_id for patch in made}),
        seen,
        len(skipped) - before,
        uncertain,
    )
    return stack(made)


def lesion_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped
) -> Patches:
    """`make_patches` with one patch around every lesion, whatever config.patches says."""
    return make_patches(mammograms, config.model_copy(update={"patches": "lesion"}), skipped)


def offset_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped
) -> Patches:
    """`make_patches` with `sampling.count` patches near random lesion pixels, whatever
    config.patches says.
    """
    return make_patches(mammograms, config.model_copy(update={"patches": "offset"}), skipped)


def normal_patches(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped
) -> Patches:
    """`make_patches` with `sampling.count` patches of normal mammograms, whatever config.patches
    says.
    """
    return make_patches(mammograms, config.model_copy(update={"patches": "normal"}), skipped)


def shape_patches(mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped) -> Patches:
    """Every mass of stated shape, alone, its place in sampling.SHAPES as its label: what a shape is
    learned from.

    Args:
        mammograms: No pixel of theirs is read.
        config: Size is used.
        skipped: Unreadable masks are noted here.

    Returns:
        Labelled patches; their images show the masks, since there is nothing else to see.

    Raises:
        DataError: No mass has one of the four shapes.
    """
    _refuse_detectors_keys(config)
    records = list(mammograms)
    masks, shapes, patients, ids = sampling.shape_masks(records, config.size, skipped=skipped)
    known = {
        f"{record.image_id}#{i}": (lesion, record)
        for record in records
        for i, lesion in enumerate(record.lesions)
    }
    return Patches(
        masks.astype(np.float32),
        masks,
        patients,
        ids,
        kinds=np.full(len(masks), "mass"),
        pathologies=np.array([known[name][0].pathology or "" for name in ids.tolist()], np.str_),
        shapes=shapes,
        official_splits=np.array(
            [known[name][1].official_split or "" for name in ids.tolist()], np.str_
        ),
        labels=np.array([sampling.SHAPES.index(shape) for shape in shapes.tolist()], np.int32),
    )


def joined(parts: Sequence[Patches]) -> Patches:
    """Patches of one size behind one another, without labels."""
    texts: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in TEXTS
    }
    return Patches(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.masks for part in parts]),
        **texts,
    )


def patches_of(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped, count: int | None = None
) -> Iterator[Patch]:
    """The patches of one mammogram, made one at a time.

    "lesion": one for every wanted lesion, or with frame "full" one for all; see `frame`. "offset":
    `count` random windows near a lesion; see `sampling.near_lesion`. "normal": `count` random
    windows of a normal mammogram; see `sampling.on_breast`. A mask shows every wanted lesion, so
    that a neighbour does not count as background.

    Args:
        mammogram: The raw record; its pixels are read once, and only if there is a patch to make.
        config: As for `make_patches`.
        skipped: Lesions and windows that make no patch are noted here, by image_id.
        count: This mammogram's share, by `sampling.quota`; not used for "lesion".

    Raises:
        ValueError: "offset" and "normal" are not given a count.
        DataError: The config has what only detectors know.
    """
    _refuse_detectors_keys(config)
    if config.patches == "lesion":
        return _around_lesions(mammogram, config, skipped)
    if count is None:
        raise ValueError(
            f"data.patches={config.patches}: a mammogram's patches need its share, by "
            "sampling.quota"
        )
    return _drawn(mammogram, config, skipped, count)


def _refuse_detectors_keys(config: DataConfig) -> None:
    for key in ("canvas", "tiles"):
        if getattr(config, key):
            raise DataError(
                f"data.{key}: is for detectors, which see whole mammograms; patches are data.size "
                "x data.size px"
            )


def window(
    box: Box, rows: int, cols: int, context: float, spacing: tuple[float, float] | None = None
) -> Box:
    """Where a square patch lies: around a lesion's box, moved to stay inside the image.

    Args:
        box: Of the lesion, native px.
        rows: Of the image.
        cols: Of the image.
        context: The square's side over the box's longer side.
        spacing: (row, col) in mm per px; without it pixels count as square.

    Returns:
        [row_min, col_min, row_max, col_max], half-open, native px; beyond the image only along an
        axis where it is longer than the image.
    """
    step = spacing or (1.0, 1.0)
    side = context * max((box[2] - box[0]) * step[0], (box[3] - box[1]) * step[1])
    starts = []
    lengths = []
    for axis, extent in enumerate((rows, cols)):
        length = max(1, round(side / step[axis]))
        start = round((box[axis] + box[axis + 2] - length) / 2)
        starts.append(int(np.clip(start, min(0, extent - length), max(0, extent - length))))
        lengths.append(length)
    return starts[0], starts[1], starts[0] + lengths[0], starts[1] + lengths[1]


def frame(box: Box, mammogram: Mammogram, config: DataConfig) -> Box:
    """What the patch of a lesion shows, by config.frame.

    "square": see `window`. "tight": its box. "loose": its box doubled in each side about its
    centre, cut at the image's border. "padded": its box with `padding` px on every side, cut
    likewise. "full": the whole mammogram. All but "square" are then scaled to a square, their sides
    by different factors.

    Args:
        box: Of the lesion, native px.
        mammogram: Rows, cols and spacing are used.
        config: Frame, context and padding are used.

    Returns:
        [row_min, col_min, row_max, col_max], half-open, native px.

    Source:
        Singh et al., Breast tumor segmentation and shape classification in mammograms using cGAN
        and CNN, section 3; "padded": Shen et al., Mass image synthesis in mammogram with contextual
        information based on GANs, section 4.3.
    """
    rows = mammogram.rows
    cols = mammogram.cols
    top, left, bottom, right = box
    if config.frame == "square":
        return window(box, rows, cols, config.context, mammogram.spacing)
    if config.frame == "tight":
        return box
    if config.frame == "full":
        return 0, 0, rows, cols
    above = (bottom - top) // 2
    before = (right - left) // 2
    below = bottom - top - above
    beside = right - left - before
    if config.frame == "padded":
        above = before = below = beside = config.padding
    return (
        max(0, top - above),
        max(0, left - before),
        min(rows, bottom + below),
        min(cols, right + beside),
    )


def seen(image: NDArray[np.float32], place: Box, config: DataConfig) -> NDArray[np.float32]:
    """What a network sees of a mammogram: a frame of it, scaled, its contrast and grey values as
    the config wants them.

    Args:
        image: float32 [rows, cols, 1] in [0, 1], prepared.
        place: As `frame` gives it; 0 where it lies beyond the image.
        config: Size, preprocess, window and percentiles are used.

    Returns:
        float32 [size, size, 1] in [0, 1].

    Raises:
        ValueError: What is seen is constant.
    """
    crop = _crop(image, place)
    patch = preprocess.framed(resize_image(crop, config.size, config.size), config.preprocess)
    if config.window:
        return preprocess.window(patch, *config.window)
    # Scaling a constant leaves rounding errors, which would be stretched to an image; unscaled, it
    # is refused.
    return normalise(crop if crop.min() == crop.max() else patch, config.percentiles)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A mammogram after preprocessing.

    Attributes:
        lesions: The wanted ones that have an outline, by their index in the archive's record.
        image: float32 [rows, cols, 1] in [0, 1].
        regions: uint8 [rows, cols, 1], 1 on any of the lesions.
    """

    mammogram: Mammogram
    lesions: dict[int, Lesion]
    image: NDArray[np.float32]
    regions: NDArray[np.uint8]


def _around_lesions(mammogram: Mammogram, config: DataConfig, skipped: Skipped) -> Iterator[Patch]:
    opened = _with_lesions(mammogram, config, skipped)
    if opened is None:
        return
    shown = {
        f"lesion {number}": (f"#{number}", [lesion]) for number, lesion in opened.lesions.items()
    }
    if config.frame == "full":
        shown = {"all lesions": ("#full", list(opened.lesions.values()))}
    for name, (suffix, lesions) in shown.items():
        try:
            patch = _patch(
                opened, frame(lesions[0].box, opened.mammogram, config), config, suffix, lesions
            )
        except ValueError as error:
            skipped.add(mammogram.image_id, f"{name}: {error}")
        else:
            yield patch


def drawer(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped
) -> Callable[[int], Patch] | None:
    """What makes the patches of random place of one mammogram, whose pixels are read here, once.

    Args:
        mammogram: The raw record.
        config: As for `make_patches`; patches is "offset" or "normal".
        skipped: Noted here.

    Returns:
        Number -> patch, always the same for the same seed, image and number; it raises ValueError
        where there is none. None where the mammogram has nothing to make such patches of.
    """
    return (_near_lesions if config.patches == "offset" else _of_normal_tissue)(
        mammogram, config, skipped
    )


def _near_lesions(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped
) -> Callable[[int], Patch] | None:
    opened = _with_lesions(mammogram, config, skipped)
    if opened is None:
        return None

    def draw(number: int) -> Patch:
        random, length = _side(mammogram, config, number)
        index = list(opened.lesions)[random.integers(len(opened.lesions))]
        region = opened.lesions[index].mask(opened.mammogram.rows, opened.mammogram.cols)
        place = sampling.near_lesion(region, length, config.sampling.offset, random)
        return _patch(opened, place, config, f"#{index}@{number}", [opened.lesions[index]])

    return draw


def _of_normal_tissue(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped
) -> Callable[[int], Patch] | None:
    if not sampling.gives_normal(mammogram, config.sampling):
        return None
    marked = dict(enumerate(mammogram.lesions))  # of every kind
    opened = _open(mammogram, marked, config, skipped)
    if opened is None or len(opened.lesions) < len(marked):
        return None
    breast = preprocess.breast_mask(opened.image)

    def draw(number: int) -> Patch:
        random, length = _side(mammogram, config, number)
        place = sampling.on_breast(breast, length, config.sampling.tissue, random, opened.regions)
        return _patch(opened, place, config, f"@{number}", [])

    return draw


def _side(mammogram: Mammogram, config: DataConfig, number: int) -> tuple[np.random.Generator, int]:
    random = sampling.stream(config.seed, mammogram.image_id, number)
    return random, sampling.side(config.size, config.sampling, random)


def _drawn(
    mammogram: Mammogram, config: DataConfig, skipped: Skipped, count: int
) -> Iterator[Patch]:
    draw = drawer(mammogram, config, skipped) if count else None
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


def _with_lesions(mammogram: Mammogram, config: DataConfig, skipped: Skipped) -> _Opened | None:
    """The mammogram with its wanted lesions; None where none of them has an outline, so that no
    pixel is read in vain.
    """
    lesions = {}
    for number, lesion in sampling.wanted(mammogram, config).items():
        try:
            if lesion.outlines:  # read from a file here, if they stand in one
                lesions[number] = lesion
            elif config.patches == "offset" and config.sampling.boxes:
                top, left, bottom, right = lesion.box
                corners = [
                    [top, left],
                    [top, right - 1],
                    [bottom - 1, right - 1],
                    [bottom - 1, left],
                ]
                lesions[number] = replace(lesion, outlines=(np.array(corners, np.float32),))
            else:
                skipped.add(
                    mammogram.image_id, f"lesion {number}: the archive gives its box but no outline"
                )
        except ValueError as error:
            skipped.add(mammogram.image_id, f"lesion {number}: {error}")
    return _open(mammogram, lesions, config, skipped) if lesions else None


def _open(
    mammogram: Mammogram, lesions: dict[int, Lesion], config: DataConfig, skipped: Skipped
) -> _Opened | None:
    try:
        prepared = preprocess.preprocess_mammogram(
            replace(mammogram, lesions=tuple(lesions.values())), config.preprocess
        )
        image = prepared.pixels()
    except ValueError as error:
        skipped.add(mammogram.image_id, error)
        return None
    regions = np.zeros((prepared.rows, prepared.cols, 1), np.uint8)
    drawn = {}
    for number, lesion in zip(lesions, prepared.lesions, strict=True):
        try:
            regions[..., 0] |= lesion.mask(prepared.rows, prepared.cols)
            drawn[number] = lesion
        except ValueError as error:  # a speck that resampling leaves nothing of
            skipped.add(mammogram.image_id, f"lesion {number}: {error}")
    return _Opened(prepared, drawn, image, regions) if drawn or not lesions else None


def _patch(
    opened: _Opened, place: Box, config: DataConfig, suffix: str, lesions: Sequence[Lesion]
) -> Patch:
    """One patch; a ValueError says why there is none."""
    mammogram = opened.mammogram
    if not config.pad and (
        place[2] - place[0] > mammogram.rows or place[3] - place[1] > mammogram.cols
    ):
        raise ValueError("its patch is larger than the mammogram (data.pad=true keeps it)")
    image = seen(opened.image, place, config)
    mask = resize_mask(_crop(opened.regions, place), config.size, config.size)
    if lesions and not mask.any():
        raise ValueError(f"nothing of its mask is left at {config.size} px")
    facts = _facts(mammogram, lesions, config)
    return Patch(
        image,
        mask,
        mammogram.patient_id,
        mammogram.image_id + suffix,
        **facts,
        official_split=mammogram.official_split or "",
        place=place,
    )


def _facts(mammogram: Mammogram, lesions: Sequence[Lesion], config: DataConfig) -> dict[str, str]:
    if not lesions:
        return {"kind": "normal", "pathology": "normal"}
    kind = min((lesion.kind for lesion in lesions), key=config.kinds.index)
    pathology = worst(lesion.pathology or "" for lesion in lesions)
    if config.patches == "lesion" and config.frame == "full":
        pathology = mammogram.pathology or pathology
    shapes = {lesion.shape or "" for lesion in lesions}
    return {"kind": kind, "pathology": pathology, "shape": shapes.pop() if len(shapes) == 1 else ""}


def _crop(image: NDArray, place: Box) -> NDArray:
    top, left, bottom, right = place
    inside = image[max(0, top) : bottom, max(0, left) : right]
    below = bottom - max(0, top) - inside.shape[0]
    beside = right - max(0, left) - inside.shape[1]
    return np.pad(inside, ((max(0, -top), below), (max(0, -left), beside), (0, 0)))


def _nothing(
    config: DataConfig, seen: int, found: Counter[str], skipped: list[tuple[str, str]]
) -> str:
    wanted = " or ".join(config.kinds) + ("" if config.mixed_findings else " whose kind is certain")
    wanted = "normal tissue" if config.patches == "normal" else f"a {wanted}"
    lesions = ", ".join(f"{count} {kind}" for kind, count in found.items()) or "no lesion"
    reason = f"; {len(skipped)} skipped, first {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    return f"no patch of {wanted} can be made: {seen} mammograms hold {lesions}{reason}"
