"""What turns lesions in their places into grey values: an infilling, a CAN, a blending
network, a vanilla GAN, or a method without a network.

All keep one contract (`Painter`): `lesion` says what becomes of a real lesion, `place` where its
patch and its support lie, `paint` gives the support's grey values. A network sees a patch of its
own size and what it changes is added, weighted by a seam (see tfmammo.synthesis.placement). The
methods of tfmammo.baselines.poisson work on native pixels and change nothing beyond the mask; their
support is its box and a border. A vanilla GAN sees nothing: its patches, lesion and tissue, are set
in whole, of a real lesion's size.

The blending network is shown a lesion on the grey scale of the tissue that it goes into: that of
training with data.window, which gives both the same. With data.percentiles a lesion brighter than
all of the tissue is cut off there. One that was trained with model.prior=noise puts noise in place
of the lesion's pixels itself, which follows from the tissue, in an export as in training.

An infilling or a blending network's patch takes the tissue's place as a whole with whole_patch,
which is Shen et al.'s way; by default what it changes is added (a departure, whose reason
tfmammo.synthesis.placement gives).

A CAN (or a Pix2Pix) sees the mask alone and makes a mass with tissue of its own, which is set in
whole: its patch takes the grey scale of the tissue that it covers, and fades into that at its
border. Grain finer than its pixels stays that of the mammogram.

Departure of the vanilla GAN from Lin et al., section 3: there it makes whole mammograms, here
patches (baselines.vanilla_gan), which need tissue to lie in. They are as large in it as makes their
lesion's longer side that of a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.baselines import poisson
from tfmammo.config import DataConfig
from tfmammo.data import preprocess
from tfmammo.data.preprocess import resize, resize_mask
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, LesionKind, Mammogram
from tfmammo.models.blending import pasted
from tfmammo.models.infilling import tri_label
from tfmammo.synthesis.compositing import (
    Patch,
    Seam,
    blended,
    patch,
    replaced,
    seam,
    training_resize,
    whole_seam,
)
from tfmammo.synthesis.config import THROUGH_NETWORKS, SynthesisConfig, Used
from tfmammo.synthesis.generators import (
    Generator,
    MaskGenerator,
    NoiseGenerator,
    generator,
    mask_generator,
    noise_generator,
)
from tfmammo.synthesis.lesion_bank import Piece
from tfmammo.synthesis.placement import Ground, Spot
from tfmammo.synthesis.provenance import Planted

BORDER = 3  # native px around a mask's box that a method without a network sees
# supports that don't overlap, and their grey values, float32 [rows, cols]
Painted = Iterable[tuple[Box, NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class FromNoise:
    """A patch with a lesion that a vanilla GAN drew, as it will lie in a mammogram.

    Attributes:
        image: float32 [side, side] in [0, 1], native px and grey values.
        mask: uint8 [size, size], 0 or 1, of the patch as it was drawn.
        top: Of the lesion's box in the image, px.
        left: Of the lesion's box in the image, px.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    top: int
    left: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """A lesion that has no place yet.

    Attributes:
        mask: uint8 [rows, cols], its own box, 0 or 1.
        origin: Where its shape comes from.
        piece: The real lesion that it is, or whose size it has.
        made: What it is set in with, seed: of its noise, where it was drawn from noise.
    """

    mask: NDArray[np.uint8]
    kind: LesionKind
    origin: str
    piece: Piece | None = None
    made: FromNoise | None = None
    seed: int | None = None

    @staticmethod
    def of(piece: Piece) -> Drawn:
        """A real lesion as it is."""
        return Drawn(
            piece.mask,
            piece.kind,
            f"{piece.graft.archive} {piece.graft.image_id}#{piece.graft.number}",
            piece,
        )


@dataclass(frozen=True, eq=False)
class Insertion:
    """A lesion that is to be painted.

    Attributes:
        planted: Its part of the recipe.
    """

    planted: Planted
    spot: Spot
    seam: Seam
    drawn: Drawn


class Painter(Protocol):
    """What synthesis needs of one."""

    @property
    def data(self) -> DataConfig:
        """How its patches are cut, and the grounds prepared that it works on."""

    @property
    def patients(self) -> frozenset[str] | None:
        """Whom its network was trained on; None where there is none."""

    @property
    def identity(self) -> dict[str, str]:
        """What a recipe says of its network; nothing where there is none."""

    @property
    def used(self) -> Used | None:
        """What of a real lesion is used; None: all of it."""

    def lesion(self, piece: Piece, mammogram: Mammogram, seeds: Iterable[int]) -> Drawn:
        """What becomes of a real lesion in a mammogram.

        Args:
            seeds: To draw by, one after the other until one serves; taken from only where anything
                is drawn.

        Raises:
            DataError: None serves.
        """

    def place(self, top: int, left: int, drawn: Drawn, mammogram: Mammogram) -> tuple[Spot, Seam]:
        """A lesion whose box begins at (top, left).

        Raises:
            DataError: There is no room for it and what is around it.
        """

    def paint(self, ground: Ground, insertions: Sequence[Insertion]) -> Painted:
        """The supports' new grey values.

        Raises:
            DataError: The tissue under a lesion can't be used.
        """


Show = Callable[[Generator, Ground, Sequence[Insertion], Sequence[Patch]], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class NetworkPainter:
    """Paints with a network, all lesions of a mammogram in one call.

    Attributes:
        feather: See insertion.seam.
        show: Gives the call's arguments.
        whole: Its patches reach to their borders, see insertion.whole_seam.
        replaces: And take the place of the tissue, grain and all.
    """

    network: Generator
    feather: float
    show: Show
    whole: bool = False
    replaces: bool = False

    @property
    def data(self) -> DataConfig:
        """See Painter."""
        return self.network.data

    @property
    def patients(self) -> frozenset[str]:
        """See Painter."""
        return self.network.patients

    @property
    def identity(self) -> dict[str, str]:
        """See Painter."""
        return self.network.identity

    @property
    def used(self) -> Used | None:
        """See Painter."""
        return "outline" if self.network.prior == "noise" else None

    def lesion(self, piece: Piece, mammogram: Mammogram, seeds: Iterable[int]) -> Drawn:
        """See Painter; nothing is drawn."""
        return Drawn.of(piece)

    def place(self, top: int, left: int, drawn: Drawn, mammogram: Mammogram) -> tuple[Spot, Seam]:
        """See Painter."""
        spot = Spot.at(top, left, drawn.mask, mammogram, self.data)
        if self.whole:
            return spot, whole_seam(spot.patch_mask(self.network.size), spot.window, self.feather)
        return spot, seam(spot, self.network.size, self.network.margin, self.feather)

    def paint(self, ground: Ground, insertions: Sequence[Insertion]) -> Painted:
        """See Painter."""
        patches = [patch(ground, found.spot, found.seam) for found in insertions]
        images = self.network.call(**self.show(self.network, ground, insertions, patches))["image"]
        for found, one, image in zip(insertions, patches, images, strict=True):
            if self.replaces:
                grey = replaced(ground, found.spot, found.seam, one.native(image))
            else:
                grey = blended(
                    ground, found.spot, found.seam, one.difference(image, found.seam.around)
                )
            yield found.seam.support, grey


@dataclass(frozen=True, eq=False)
class DirectPainter:
    """Paints with a method of baselines.poisson, in native pixels.

    Attributes:
        name: For messages.
    """

    name: str
    patients: None = None
    used: None = None
    data: DataConfig = DataConfig(frame="padded", padding=BORDER)

    @property
    def identity(self) -> dict[str, str]:
        """See Painter."""
        return {}

    def lesion(self, piece: Piece, mammogram: Mammogram, seeds: Iterable[int]) -> Drawn:
        """See Painter; nothing is drawn."""
        return Drawn.of(piece)

    def place(self, top: int, left: int, drawn: Drawn, mammogram: Mammogram) -> tuple[Spot, Seam]:
        """See Painter; the seam is the mask itself."""
        spot = Spot.at(top, left, drawn.mask, mammogram, self.data)
        whole = np.pad(drawn.mask, BORDER)
        if (spot.window[2] - spot.window[0], spot.window[3] - spot.window[1]) != whole.shape:
            raise DataError(f"it comes nearer than {BORDER} px to the mammogram's border")
        return spot, Seam(
            whole, np.zeros(whole.shape, np.bool_), whole.astype(np.float32), spot.window
        )

    def paint(self, ground: Ground, insertions: Sequence[Insertion]) -> Painted:
        """See Painter."""
        for found in insertions:
            assert found.drawn.piece
            top, left, bottom, right = found.seam.support
            tissue = np.ascontiguousarray(ground.image[top:bottom, left:right])
            lesion = found.drawn.piece.shown(BORDER)[..., None]
            try:
                image = poisson.METHODS[self.name](tissue, lesion, found.seam.mask[..., None])
            except ValueError as error:
                raise DataError(f"{self.name}: {error}") from None
            yield found.seam.support, image[..., 0]


@dataclass(frozen=True, eq=False)
class VanillaPainter:
    """Sets in what a vanilla GAN draws from noise, lesion and tissue.

    Attributes:
        feather: px of the patch over which that fades at its border.
    """

    network: NoiseGenerator
    feather: float
    used: Used = "size"

    @property
    def data(self) -> DataConfig:
        """See Painter."""
        return self.network.data

    @property
    def patients(self) -> frozenset[str]:
        """See Painter."""
        return self.network.patients

    @property
    def identity(self) -> dict[str, str]:
        """See Painter."""
        return self.network.identity

    def lesion(self, piece: Piece, mammogram: Mammogram, seeds: Iterable[int]) -> Drawn:
        """See Painter; of the real lesion its longer side is used, as it would lie in the
        mammogram.
        """
        reason = DataError("no seed is given")
        for seed in seeds:
            try:
                return self._scaled(piece, mammogram, seed)
            except DataError as error:
                reason = error
        raise reason

    def place(self, top: int, left: int, drawn: Drawn, mammogram: Mammogram) -> tuple[Spot, Seam]:
        """See Painter."""
        assert drawn.made
        (height, width) = drawn.mask.shape
        side = len(drawn.made.image)
        first = top - drawn.made.top
        before = left - drawn.made.left
        window = (first, before, first + side, before + side)
        if min(window) < 0 or window[2] > mammogram.rows or window[3] > mammogram.cols:
            raise DataError("its patch reaches beyond the mammogram")
        spot = Spot(drawn.mask, (top, left, top + height, left + width), window)
        return spot, whole_seam(drawn.made.mask, window, self.feather)

    def paint(self, ground: Ground, insertions: Sequence[Insertion]) -> Painted:
        """See Painter."""
        for found in insertions:
            assert found.drawn.made
            (top, left, bottom, right) = found.seam.support
            (first, before) = found.spot.window[:2]
            tissue = ground.image[top:bottom, left:right, 0]
            made = found.drawn.made.image[
                top - first : bottom - first, left - before : right - before
            ]
            yield found.seam.support, np.clip(tissue + found.seam.weights * (made - tissue), 0, 1)

    def _scaled(self, piece: Piece, mammogram: Mammogram, seed: int) -> Drawn:
        image, mask = self.network.made(seed)
        if self.data.preprocess.flip_right and mammogram.laterality == "R":
            image = np.ascontiguousarray(image[:, ::-1])
            mask = np.ascontiguousarray(mask[:, ::-1])
        side = round(len(mask) * max(piece.mask.shape) / max(cv2.boundingRect(mask)[2:]))
        if side > min(mammogram.rows, mammogram.cols):
            raise DataError(
                f"a patch of {side} px, as large as its lesion's size makes it, is larger than it"
            )
        native = np.ascontiguousarray(resize_mask(mask[..., None], side, side)[..., 0])
        left, top, width, height = cv2.boundingRect(native)
        if not width:
            raise DataError(f"nothing of its mask is left at {side} px")
        made = FromNoise(np.clip(resize(image, side, side), 0, 1), mask, top, left)
        return Drawn(
            native[top : top + height, left : left + width],
            self.network.kind,
            "vanilla GAN",
            piece,
            made,
            seed,
        )


def painter(chosen: SynthesisConfig, folder: Path | None) -> Painter:
    """The painter that a config names.

    Args:
        folder: The export of its network, where it has one.

    Raises:
        ExportError: See generators.generator and generators.noise_generator.
        DataError: See generators.generator and generators.noise_generator.
    """
    if folder is None:
        return DirectPainter(chosen.painter)
    if chosen.painter == "vanilla":
        return VanillaPainter(noise_generator(folder), chosen.feather)
    network = generator(folder, THROUGH_NETWORKS[chosen.painter])
    whole = chosen.painter == "can" or chosen.whole_patch
    return NetworkPainter(network, chosen.feather, SHOWN[chosen.painter], whole, chosen.whole_patch)


@dataclass(frozen=True, eq=False)
class Tools:
    """What draws an item: its painter, and the mask GAN where shapes come from one."""

    painter: Painter
    gan: MaskGenerator | None = None

    @property
    def weights(self) -> tuple[str | None, str | None]:
        """Of both networks, see export.load_whole."""
        return self.painter.identity.get("weights"), self.gan.identity[
            "weights"
        ] if self.gan else None


@dataclass(frozen=True)
class Exports:
    """Where the networks of a set lie, for workers to read them.

    Attributes:
        weights: Of both when the work began.
    """

    painter: Path | None
    gan: Path | None
    weights: tuple[str | None, str | None] = (None, None)

    def opened(self, chosen: SynthesisConfig) -> Tools:
        """The networks as they are now.

        Raises:
            ExportError: One can't be used.
            DataError: One can't be used.
        """
        return Tools(painter(chosen, self.painter), mask_generator(self.gan) if self.gan else None)

    def as_begun(self, chosen: SynthesisConfig) -> Tools:
        """The networks that the work began with.

        Raises:
            DataError: One was replaced since.
        """
        tools = self.opened(chosen)
        if self.weights != tools.weights:
            raise DataError("a generator was replaced by another training while the work went on")
        return tools


def masked(
    network: Generator, ground: Ground, insertions: Sequence[Insertion], patches: Sequence[Patch]
) -> dict[str, Any]:
    """What an infilling is shown: the tissue, noise for the lesion, mask and margin."""
    shape = (network.size, network.size, 1)
    noise = np.stack(
        [
            np.random.default_rng(found.planted.seed).random(shape, np.float32)
            for found in insertions
        ]
    )
    tissue, masks = _stacked(patches)
    return {"tri_label": tri_label(tissue, masks, tf.constant(noise), network.margin)}


def together(
    network: Generator, ground: Ground, insertions: Sequence[Insertion], patches: Sequence[Patch]
) -> dict[str, Any]:
    """What a blending network is shown: the tissue, the lesion pasted into it, the mask."""
    tissue, masks = _stacked(patches)
    lesions = np.stack(
        [_on_patch(ground, found, one) for found, one in zip(insertions, patches, strict=True)]
    )
    return {"pasted": pasted(tissue, tf.constant(lesions), masks)}


def alone(
    network: Generator, ground: Ground, insertions: Sequence[Insertion], patches: Sequence[Patch]
) -> dict[str, Any]:
    """What a CAN is shown: the mask."""
    return {"mask": _stacked(patches)[1]}


SHOWN: dict[str, Show] = {"infilling": masked, "can": alone, "blending": together}


def _stacked(patches: Sequence[Patch]) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.constant(np.stack([one.tissue for one in patches])), tf.constant(
        np.stack([one.mask for one in patches])
    )


def _on_patch(ground: Ground, found: Insertion, shown: Patch) -> NDArray[np.float32]:
    """A real lesion, tissue around it, as its patch shows tissue: float32 [size, size, 1] in [0,
    1].
    """
    assert found.drawn.piece
    piece = found.drawn.piece
    (top, left, bottom, right) = found.spot.window
    around = piece.around
    first = found.spot.box[0] - around - top
    before = found.spot.box[1] - around - left
    # so that the lesion's surroundings never reach beyond
    whole = np.pad(ground.image[top:bottom, left:right, 0], around)
    rows, cols = piece.image.shape
    whole[first + around : first + around + rows, before + around : before + around + cols] = (
        piece.image
    )
    native = whole[around:-around, around:-around]
    image = np.clip(training_resize(native, ground, len(shown.tissue)), 0, 1)[..., None]
    image = preprocess.window(
        preprocess.framed(image, ground.data.preprocess), shown.low, shown.high
    )
    return np.ascontiguousarray(image[:, ::-1]) if shown.mirrored else image
