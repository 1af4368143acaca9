"""Patches with their masks: one, or many in arrays, and what splits and training need of them.

`tfmammo.data.extraction` cuts them out of mammograms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tfmammo.errors import DataError
from tfmammo.mammogram import Box

SEVERITY = ("malignant", "benign", "normal", "")

# The columns of Patches that are text, and the field of Patch that each is made of.
TEXTS = {
    "patient_ids": "patient_id",
    "ids": "id",
    "kinds": "kind",
    "pathologies": "pathology",
    "shapes": "shape",
    "margins": "margin",
    "official_splits": "official_split",
}


@dataclass(frozen=True, eq=False)
class Patch:
    """One patch; for the texts see Patches.

    Attributes:
        image: float32 [s, s, 1] in [0, 1].
        mask: uint8 [s, s, 1], 0 or 1.
        place: Its window in the mammogram as `preprocess.preprocess_mammogram` leaves it, px.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    patient_id: str
    id: str
    kind: str = ""
    pathology: str = ""
    shape: str = ""
    margin: str = ""
    official_split: str = ""
    place: Box = (0, 0, 0, 0)

    def __repr__(self) -> str:
        words = (self.id, self.kind, self.pathology, self.shape)
        return f"<Patch {' '.join(filter(None, words))}: {_describe_size(self.image)}>"


def _unknown() -> NDArray[np.str_]:
    return np.empty(0, np.str_)


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches in memory, row i of every array belonging together.

    A text is "" where it is unknown. Kind, pathology, shape, margin and official split are those of
    the lesion that the patch was made for. A whole mammogram has the first kind in config.kinds
    that it holds, the image's pathology (else its worst lesion's), and the shape and the margin
    that all its lesions share.

    Attributes:
        images: float32 [n, s, s, 1] in [0, 1].
        masks: uint8 [n, s, s, 1], 0 or 1, 1 on any wanted lesion.
        patient_ids: str [n], the unit of splits.
        ids: str [n], "<image_id>#<index of the lesion in the mammogram>" of a lesion's patch,
            "<image_id>#full" of a whole mammogram, "<image_id>#<index>@<i>" of the i-th one near a
            lesion, "<image_id>@<i>" of normal tissue.
        kinds: str [n], mass, calcification, asymmetry, distortion or normal.
        pathologies: str [n], normal, benign or malignant.
        shapes: str [n], the archive's own words.
        margins: str [n], the archive's own words, as "spiculated".
        official_splits: str [n], train or test.
        labels: int32 [n], the class of each for a classifier, set by `with_labels`; of length 0
            where there is none.
        balanced: Whether batches take their patches from the classes in turn, so that each class
            has the same share of every batch, however rare it is.
    """

    images: NDArray[np.float32]
    masks: NDArray[np.uint8]
    patient_ids: NDArray[np.str_]
    ids: NDArray[np.str_]
    kinds: NDArray[np.str_] = field(default_factory=_unknown)
    pathologies: NDArray[np.str_] = field(default_factory=_unknown)
    shapes: NDArray[np.str_] = field(default_factory=_unknown)
    margins: NDArray[np.str_] = field(default_factory=_unknown)
    official_splits: NDArray[np.str_] = field(default_factory=_unknown)
    labels: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    balanced: bool = False
    square: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shape = self.images.shape
        is_square = len(shape) == 4 and (shape[1] == shape[2] or not self.square)
        if not is_square or shape[3] != 1 or self.masks.shape != shape:
            wanted = "[n, s, s, 1]" if self.square else "[n, rows, cols, 1]"
            raise ValueError(
                f"images {shape} and masks {self.masks.shape} must both have the shape {wanted}"
            )
        if self.images.dtype != np.float32 or self.masks.dtype != np.uint8:
            raise ValueError(
                f"images must be float32 and masks uint8, not {self.images.dtype} and "
                f"{self.masks.dtype}"
            )
        for name in TEXTS:
            column = getattr(self, name)
            if column.size == 0 and name not in ("patient_ids", "ids"):
                object.__setattr__(self, name, np.full(len(self), "", np.str_))
            elif column.shape != shape[:1] or column.dtype.kind != "U":
                raise ValueError(
                    f"{name} must be an array of {shape[0]} str, not of {column.shape} "
                    f"{column.dtype}"
                )
        if self.labels.dtype != np.int32 or self.labels.shape not in ((0,), shape[:1]):
            raise ValueError(
                f"labels must be {shape[0]} int32 or none, not {self.labels.shape} "
                f"{self.labels.dtype}"
            )
        if len(self) and not (
            self.images.min() >= 0 and self.images.max() <= 1 and self.masks.max() <= 1
        ):
            raise ValueError("images must be in [0, 1] and masks must hold 0 and 1 alone")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        patients = len(np.unique(self.patient_ids))
        size = _describe_size(self.images[0]) if len(self) else "no size"
        return f"<{type(self).__name__}: {len(self)} of {patients} patients, {size}>"

    def __getitem__(self, row: int) -> Patch:
        """Return one patch, without the place that it was cut at."""
        texts: dict[str, Any] = {
            name: str(getattr(self, column)[row]) for column, name in TEXTS.items()
        }
        return Patch(self.images[row], self.masks[row], **texts)

    def __iter__(self) -> Iterator[Patch]:
        return (self[row] for row in range(len(self)))

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Self:
        """Return the patches at `indices`, in that order."""
        rows = np.asarray(indices, np.intp)
        columns = {
            column.name: getattr(self, column.name)
            for column in fields(self)
            if column.name != "balanced"
        }
        return replace(
            self,
            **{name: values[rows] if len(values) else values for name, values in columns.items()},
        )

    def load(self) -> Self:
        """Return these patches, which are in memory already."""
        return self

    def concatenate(self, *others: Self) -> Self:
        """Return these patches and then those of `others`, of the same size, without labels."""
        columns = concatenate_columns((self, *others))
        return replace(self, **columns, labels=np.empty(0, np.int32), balanced=False)

    def with_labels(
        self, labels: Sequence[int] | NDArray[np.integer], balanced: bool = False
    ) -> Self:
        """Return the same patches with a class each, int [n], which batches hold as "label"."""
        return replace(self, labels=np.asarray(labels, np.int32), balanced=balanced)

    @property
    def targets(self) -> Mapping[str, NDArray[Any]]:
        """What a batch holds of each patch beside image and mask, by its name there."""
        return {"label": self.labels} if len(self.labels) else {}

    @property
    def balanced_classes(self) -> int:
        """How many classes share every batch equally; 1 where they are not balanced."""
        return len(np.unique(self.labels)) if self.balanced else 1

    def fingerprint(self) -> str:
        """Return twelve hexadecimal digits, equal for equal patches in the same order.

        Images, masks, labels, patient_ids and ids count.
        """
        content = hashlib.sha256(repr(self.images.shape).encode())
        for array in (self.images, self.masks):
            content.update(np.ascontiguousarray(array).data)
        for names in (self.patient_ids, self.ids):
            content.update("\n".join(names.tolist()).encode() + b"\n")
        content.update(self.labels.tobytes())
        return content.hexdigest()[:12]


def _describe_size(image: NDArray[np.float32]) -> str:
    return f"{image.shape[0]} x {image.shape[1]} px"


def concatenate_columns(parts: Sequence[Patches]) -> dict[str, Any]:
    """Return images, masks and texts of several parts, each joined along its rows."""
    names = ("images", "masks", *TEXTS)
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def stack_patches(patches: Iterable[Patch]) -> Patches:
    """Put patches into arrays, in their order."""
    rows = list(patches)
    if not rows:
        raise DataError("there is no patch to stack")
    return Patches(**stack_columns(rows))


def stack_columns(patches: Sequence[Patch]) -> dict[str, Any]:
    """Return what patches hold as the columns of Patches."""
    return {
        "images": np.stack([patch.image for patch in patches]),
        "masks": np.stack([patch.mask for patch in patches]),
        **{
            column: np.array([getattr(patch, name) for patch in patches], np.str_)
            for column, name in TEXTS.items()
        },
    }


def gravest_pathology(pathologies: Iterable[str]) -> str:
    """Return the gravest of some pathologies, "" where none is known."""
    return min(pathologies, key=SEVERITY.index, default="")
