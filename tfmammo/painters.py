"""What turns lesions in their places into grey values: an infilling, a blending network, or a method without a network.

All keep one contract (`Painter`): `place` says where a lesion's patch and its support lie, `paint` gives the support's grey values.
A network sees a patch of its own size and what it changes is added, weighted by a seam (see tfmammo.insertion). The methods of
tfmammo.baselines.poisson work on native pixels and change nothing beyond the mask; their support is its box and a border.

The blending network is shown a lesion on the grey scale of the tissue that it goes into: that of training with data.window, which
gives both the same. With data.percentiles a lesion brighter than all of the tissue is cut off there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.baselines import poisson
from tfmammo.config import DataConfig
from tfmammo.data import preprocess
from tfmammo.data.preprocess import DataError, resize
from tfmammo.generators import Generator, generator
from tfmammo.grafts import Piece
from tfmammo.insertion import Ground, Patch, Seam, Spot, blended, patch, seam
from tfmammo.models.blending import pasted
from tfmammo.models.infilling import tri_label
from tfmammo.recipe import THROUGH_NETWORKS, Planted, SynthesisConfig
from tfmammo.record import Box, Mammogram

BORDER = 3  # native px around a mask's box that a method without a network sees
Painted = Iterable[tuple[Box, NDArray[np.float32]]]  # supports that don't overlap, and their grey values, float32 [rows, cols]


@dataclass(frozen=True, eq=False)
class Insertion:
    """A lesion that is to be painted. planted: its part of the recipe. piece: the real lesion that it is."""

    planted: Planted
    spot: Spot
    seam: Seam
    piece: Piece | None = None


class Painter(Protocol):
    """What synthesis needs of one."""

    @property
    def data(self) -> DataConfig:
        """How its patches are cut, and the grounds prepared that it works on."""

    @property
    def patients(self) -> frozenset[str] | None:
        """Whom its network was trained on; None where there is none."""

    def place(self, top: int, left: int, mask: NDArray[np.uint8], mammogram: Mammogram) -> tuple[Spot, Seam]:
        """A lesion whose box begins at (top, left). Raises: DataError: there is no room for it and what is around it."""

    def paint(self, ground: Ground, insertions: Sequence[Insertion]) -> Painted:
        """The supports' new grey values. Raises: DataError: the tissue under a lesion can't be used."""


Show = Callable[[Generator, Ground, Sequence[Insertion], Sequence[Patch]], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class NetworkPainter:
    """Paints with a network, all lesions of a mammogram in one call. feather: see insertion.seam. show: gives the call's arguments."""

    network: Generator
    feather: float
    show: Show

    @property
    def data(self) -> DataConfig:
        """See Painter."""
        return self.network.data

    @property
    def patients(self) -> frozenset[str]:
        """See Painter."""
        return self.network.patients

    def place(self, top: int, left: int, mask: NDArray[np.uint8], mammogram: Mammogram) -> tuple[Spot, Seam]:
        """See Painter."""
        spot = Spot.at(top, left, mask, mammogram, self.data)
        return spot, seam(spot, self.network.size, self.network.margin, self.feather)

    def paint(self, ground: Ground, insertions: Sequence[Insertion]) -> Painted:
        """See Painter."""
        patches = [patch(ground, found.spot, found.seam) for found in insertions]
        images = self.network.call(**self.show(self.network, ground, insertions, patches))["image"]
        for found, one, image in zip(insertions, patches, images, strict=True):
            yield found.seam.support, blended(ground, found.spot, found.seam, one.difference(image, found.seam.around))


@dataclass(frozen=True, eq=False)
class DirectPainter:
    """Paints with a method of baselines.poisson, in native pixels. name: for messages."""

    name: str
    patients: None = None
    data: DataConfig = DataConfig(frame="padded", padding=BORDER)

    def place(self, top: int, left: int, mask: NDArray[np.uint8], mammogram: Mammogram) -> tuple[Spot, Seam]:
        """See Painter; the seam is the mask itself."""
        spot, whole = Spot.at(top, left, mask, mammogram, self.data), np.pad(mask, BORDER)
        if (spot.window[2] - spot.window[0], spot.window[3] - spot.window[1]) != whole.shape:
            raise DataError(f"it comes nearer than {BORDER} px to the mammogram's border")
        return spot, Seam(whole, np.zeros(whole.shape, np.bool_), whole.astype(np.float32), spot.window)

    def paint(self, ground: Ground, insertions: Sequence[Insertion]) -> Painted:
        """See Painter."""
        for found in insertions:
            assert found.piece
            top, left, bottom, right = found.seam.support
            tissue, lesion = np.ascontiguousarray(ground.image[top:bottom, left:right]), found.piece.shown(BORDER)[..., None]
            try:
                image = poisson.METHODS[self.name](tissue, lesion, found.seam.mask[..., None])
            except ValueError as error:
                raise DataError(f"{self.name}: {error}") from None
            yield found.seam.support, image[..., 0]


def painter(chosen: SynthesisConfig, folder: Path | None) -> Painter:
    """The painter that a config names.

    Args:     folder: the export of its network, where it has one.
    Raises:   ExportError, DataError: see generators.generator.
    """
    if folder is None:
        return DirectPainter(chosen.painter)
    return NetworkPainter(generator(folder, THROUGH_NETWORKS[chosen.painter]), chosen.feather, SHOWN[chosen.painter])


def masked(network: Generator, ground: Ground, insertions: Sequence[Insertion], patches: Sequence[Patch]) -> dict[str, Any]:
    """What an infilling is shown: the tissue, noise for the lesion, mask and margin."""
    shape = (network.size, network.size, 1)
    noise = np.stack([np.random.default_rng(found.planted.seed).random(shape, np.float32) for found in insertions])
    tissue, masks = _stacked(patches)
    return {"tri_label": tri_label(tissue, masks, tf.constant(noise), network.margin)}


def together(network: Generator, ground: Ground, insertions: Sequence[Insertion], patches: Sequence[Patch]) -> dict[str, Any]:
    """What a blending network is shown: the tissue, the lesion pasted into it, the mask."""
    tissue, masks = _stacked(patches)
    lesions = np.stack([_on_patch(ground, found, one) for found, one in zip(insertions, patches, strict=True)])
    return {"pasted": pasted(tissue, tf.constant(lesions), masks)}


SHOWN: dict[str, Show] = {"infilling": masked, "blending": together}


def _stacked(patches: Sequence[Patch]) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.constant(np.stack([one.tissue for one in patches])), tf.constant(np.stack([one.mask for one in patches]))


def _on_patch(ground: Ground, found: Insertion, shown: Patch) -> NDArray[np.float32]:
    """A real lesion, tissue around it, as its patch shows tissue: float32 [size, size, 1] in [0, 1]."""
    assert found.piece
    (top, left, bottom, right), around = found.spot.window, found.piece.around
    first, before = found.spot.box[0] - around - top, found.spot.box[1] - around - left
    whole = np.pad(ground.image[top:bottom, left:right, 0], around)  # so that the lesion's surroundings never reach beyond
    rows, cols = found.piece.image.shape
    whole[first + around : first + around + rows, before + around : before + around + cols] = found.piece.image
    native = whole[around:-around, around:-around]
    image = np.clip(resize(native, len(shown.tissue), len(shown.tissue)), 0, 1)[..., None]
    image = preprocess.window(preprocess.framed(image, ground.data.preprocess), shown.low, shown.high)
    return np.ascontiguousarray(image[:, ::-1]) if shown.mirrored else image
