"""Renderers: what turns placed lesions into grey values.

An infilling, a CAN, a blending network, a vanilla GAN, or a method without a network. All keep one
contract (`Renderer`): `prepare_lesion` says what becomes of a real lesion, `place` where its patch
and its support lie, `render` gives the support's grey values.

- Infilling and blending networks see a patch of their own size. Their change is added, weighted by
  a blend mask (see tfmammo.synthesis.placement). With whole_patch the patch replaces the tissue
  instead, which is Shen et al.'s way. tfmammo.synthesis.placement says
  why adding is the default.
- The blending network is shown a lesion on the grey scale of the tissue that it goes into. With
  data.window, training gives both the same scale. With data.percentiles, a lesion brighter than all
  of the tissue is cut off there. A network that was trained with model.prior=noise replaces the
  lesion's pixels by noise itself. That noise follows from the tissue, in an export as in training.
- A CAN (or a Pix2Pix) sees the mask alone, and makes a mass with tissue of its own. Its patch is
  inserted whole: it takes the grey scale of the tissue that it covers, and fades into that at its
  border. Grain finer than its pixels stays that of the mammogram.
- A vanilla GAN sees nothing. Its patches, lesion and tissue, are inserted whole, as large as a real
  lesion.
- The methods of tfmammo.baselines.poisson work on native pixels, and change nothing beyond the
  mask. Their support is the mask's box and a border.

Deviation of the vanilla GAN from Lin et al., section 3: theirs makes whole mammograms, this one
patches (baselines.vanilla_gan), which need tissue to lie in. A patch is as large in it as makes the
longer side of its lesion that of a real one.
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
from tfmammo.models.blending import paste
from tfmammo.nn.layers import tri_label
from tfmammo.synthesis.compositing import (
    BlendMask,
    TargetPatch,
    blend,
    extract_patch,
    make_blend_mask,
    make_whole_blend_mask,
    resize_as_trained,
)
from tfmammo.synthesis.config import NETWORK_INPUTS, RenderMethod, UsedPart
from tfmammo.synthesis.generators import (
    Generator,
    NoiseGenerator,
    load_generator,
    load_noise_generator,
)
from tfmammo.synthesis.lesion_bank import LesionPatch
from tfmammo.synthesis.placement import Placement, TargetMammogram
from tfmammo.synthesis.recipe import InsertedLesion

BORDER = 3  # native px around a mask's box that a method without a network sees
# Supports that don't overlap, each with its grey values, float32 [rows, cols] in [0, 1].
Rendered = Iterable[tuple[Box, NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class SampledPatch:
    """A patch with a lesion that a vanilla GAN sampled, as it will lie in a mammogram.

    Attributes:
        image: float32 [side, side] in [0, 1], native px and grey values.
        mask: uint8 [size, size], 0 or 1, of the patch as it was sampled.
        top: Row of the lesion's box in the image, px.
        left: Column of the lesion's box in the image, px.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    top: int
    left: int


@dataclass(frozen=True, eq=False)
class LesionCandidate:
    """A lesion that has no place yet.

    Attributes:
        mask: uint8 [rows, cols], its own box, 0 or 1.
    """

    mask: NDArray[np.uint8]
    kind: LesionKind
    origin: str
    lesion: LesionPatch | None = None
    sample: SampledPatch | None = None
    seed: int | None = None

    @staticmethod
    def of(lesion: LesionPatch) -> LesionCandidate:
        """Make a candidate of a real lesion as it is."""
        record = lesion.record
        origin = f"{record.archive} {record.image_id}#{record.number}"
        return LesionCandidate(lesion.mask, lesion.kind, origin, lesion)


@dataclass(frozen=True, eq=False)
class PlacedLesion:
    """A lesion in its place, to be rendered."""

    record: InsertedLesion
    placement: Placement
    blend_mask: BlendMask
    candidate: LesionCandidate


class Renderer(Protocol):
    """What a synthesis needs of a renderer."""

    @property
    def data(self) -> DataConfig:
        """How its patches are cut, and the mammograms prepared that it works on."""

    @property
    def trained_on(self) -> frozenset[str] | None:
        """Patients that its network was trained on; None without a network."""

    @property
    def identity(self) -> dict[str, str]:
        """What a recipe says of its network; empty without a network."""

    @property
    def used(self) -> UsedPart | None:
        """The part of a real lesion that is used; None for all of it."""

    def prepare_lesion(
        self, lesion: LesionPatch, mammogram: Mammogram, seeds: Iterable[int]
    ) -> LesionCandidate:
        """Prepare a real lesion for a mammogram."""

    def place(
        self, top: int, left: int, candidate: LesionCandidate, mammogram: Mammogram
    ) -> tuple[Placement, BlendMask]:
        """Place a lesion so that its box begins at (top, left)."""

    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """Render the supports' new grey values."""


class _NetworkFacts:
    """What a renderer says of its network."""

    network: Generator | NoiseGenerator

    @property
    def data(self) -> DataConfig:
        """See Renderer."""
        return self.network.data

    @property
    def trained_on(self) -> frozenset[str]:
        """See Renderer."""
        return self.network.patients

    @property
    def identity(self) -> dict[str, str]:
        """See Renderer."""
        return self.network.identity


class _WholeLesions:
    """Takes a real lesion as it is."""

    def prepare_lesion(
        self, lesion: LesionPatch, mammogram: Mammogram, seeds: Iterable[int]
    ) -> LesionCandidate:
        """See Renderer; no seed is used."""
        return LesionCandidate.of(lesion)


NetworkView = Callable[
    [Generator, TargetMammogram, Sequence[PlacedLesion], Sequence[TargetPatch]], dict[str, Any]
]


@dataclass(frozen=True, eq=False)
class NetworkRenderer(_WholeLesions, _NetworkFacts):
    """Renders with a network, all lesions of a mammogram in one call.

    Attributes:
        whole: Whether patches reach to their borders, see compositing.make_whole_blend_mask.
    """

    network: Generator
    feather: float
    show: NetworkView
    whole: bool = False
    replaces: bool = False

    @property
    def used(self) -> UsedPart | None:
        """See Renderer."""
        return "outline" if self.network.prior == "noise" else None

    def place(
        self, top: int, left: int, candidate: LesionCandidate, mammogram: Mammogram
    ) -> tuple[Placement, BlendMask]:
        """See Renderer."""
        placement = Placement.at(top, left, candidate.mask, mammogram, self.data)
        size = self.network.size
        if self.whole:
            mask = placement.scale_mask(size)
            return placement, make_whole_blend_mask(mask, placement.window, self.feather)
        return placement, make_blend_mask(placement, size, self.network.margin, self.feather)

    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """See Renderer."""
        patches = [extract_patch(target, lesion.placement, lesion.blend_mask) for lesion in lesions]
        images = self.network.call(**self.show(self.network, target, lesions, patches))["image"]
        for lesion, patch, image in zip(lesions, patches, images, strict=True):
            blend_mask = lesion.blend_mask
            if self.replaces:
                native = patch.to_native(image)
            else:
                native = patch.compute_difference(image, blend_mask.around)
            grey = blend(target, lesion.placement, blend_mask, native, self.replaces)
            yield blend_mask.support, grey


@dataclass(frozen=True, eq=False)
class DirectRenderer(_WholeLesions):
    """Renders with a method of baselines.poisson, in native pixels."""

    name: str
    trained_on: None = None
    used: None = None
    data: DataConfig = DataConfig(frame="padded", padding=BORDER)

    @property
    def identity(self) -> dict[str, str]:
        """See Renderer."""
        return {}

    def place(
        self, top: int, left: int, candidate: LesionCandidate, mammogram: Mammogram
    ) -> tuple[Placement, BlendMask]:
        """See Renderer; the blend mask is the lesion's mask itself."""
        placement = Placement.at(top, left, candidate.mask, mammogram, self.data)
        padded = np.pad(candidate.mask, BORDER)
        first_row, first_col, last_row, last_col = placement.window
        if (last_row - first_row, last_col - first_col) != padded.shape:
            raise DataError(f"it comes nearer than {BORDER} px to the mammogram's border")
        around = np.zeros(padded.shape, np.bool_)
        return placement, BlendMask(padded, around, padded.astype(np.float32), placement.window)

    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """See Renderer."""
        for placed in lesions:
            assert placed.candidate.lesion
            blend_mask = placed.blend_mask
            top, left, bottom, right = blend_mask.support
            tissue = np.ascontiguousarray(target.image[top:bottom, left:right])
            lesion = placed.candidate.lesion.crop(BORDER)[..., None]
            try:
                image = poisson.METHODS[self.name](tissue, lesion, blend_mask.mask[..., None])
            except ValueError as error:
                raise DataError(f"{self.name}: {error}") from None
            yield blend_mask.support, image[..., 0]


@dataclass(frozen=True, eq=False)
class VanillaRenderer(_NetworkFacts):
    """Inserts what a vanilla GAN samples from noise, lesion and tissue.

    Attributes:
        feather: px of the patch over which it fades at its border.
    """

    network: NoiseGenerator
    feather: float
    used: UsedPart = "size"

    def prepare_lesion(
        self, lesion: LesionPatch, mammogram: Mammogram, seeds: Iterable[int]
    ) -> LesionCandidate:
        """See Renderer; of the real lesion its longer side is used, as transformed."""
        reason = DataError("no seed is given")
        for seed in seeds:
            try:
                return self._sample(lesion, mammogram, seed)
            except DataError as error:
                reason = error
        raise reason

    def place(
        self, top: int, left: int, candidate: LesionCandidate, mammogram: Mammogram
    ) -> tuple[Placement, BlendMask]:
        """See Renderer."""
        sample = candidate.sample
        assert sample
        height, width = candidate.mask.shape
        side = len(sample.image)
        first_row = top - sample.top
        first_col = left - sample.left
        window = (first_row, first_col, first_row + side, first_col + side)
        if min(window) < 0 or window[2] > mammogram.rows or window[3] > mammogram.cols:
            raise DataError("its patch reaches beyond the mammogram")
        box = (top, left, top + height, left + width)
        blend_mask = make_whole_blend_mask(sample.mask, window, self.feather)
        return Placement(candidate.mask, box, window), blend_mask

    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """See Renderer."""
        for lesion in lesions:
            assert lesion.candidate.sample
            image = lesion.candidate.sample.image
            grey = blend(target, lesion.placement, lesion.blend_mask, image, replaces=True)
            yield lesion.blend_mask.support, grey

    def _sample(self, lesion: LesionPatch, mammogram: Mammogram, seed: int) -> LesionCandidate:
        image, mask = self.network.generate(seed)
        if preprocess.is_mirrored(mammogram, self.data.preprocess):
            image = np.ascontiguousarray(image[:, ::-1])
            mask = np.ascontiguousarray(mask[:, ::-1])
        side = round(len(mask) * max(lesion.mask.shape) / max(cv2.boundingRect(mask)[2:]))
        if side > min(mammogram.rows, mammogram.cols):
            raise DataError(
                f"a patch of {side} px, as large as its lesion's size makes it, is larger than it"
            )
        native = np.ascontiguousarray(resize_mask(mask[..., None], side, side)[..., 0])
        left, top, width, height = cv2.boundingRect(native)
        if not width:
            raise DataError(f"nothing of its mask is left at {side} px")
        sample = SampledPatch(np.clip(resize(image, side, side), 0, 1), mask, top, left)
        return LesionCandidate(
            native[top : top + height, left : left + width],
            self.network.kind,
            "vanilla GAN",
            lesion,
            sample,
            seed,
        )


def make_renderer(
    method: RenderMethod, folder: Path | None, feather: float, whole_patch: bool = False
) -> Renderer:
    """Make the renderer of a method."""
    if folder is None:
        return DirectRenderer(method)
    if method == "vanilla":
        return VanillaRenderer(load_noise_generator(folder), feather)
    network = load_generator(folder, NETWORK_INPUTS[method])
    whole = method == "can" or whole_patch
    return NetworkRenderer(network, feather, NETWORK_VIEWS[method], whole, whole_patch)


def show_tri_label(
    network: Generator,
    target: TargetMammogram,
    lesions: Sequence[PlacedLesion],
    patches: Sequence[TargetPatch],
) -> dict[str, Any]:
    """Show an infilling the tissue, noise for the lesion, mask and margin."""
    shape = (network.size, network.size, 1)
    noise = np.stack(
        [np.random.default_rng(lesion.record.seed).random(shape, np.float32) for lesion in lesions]
    )
    tissue, masks = _stack(patches)
    return {"tri_label": tri_label(tissue, masks, tf.constant(noise), network.margin)}


def show_pasted(
    network: Generator,
    target: TargetMammogram,
    lesions: Sequence[PlacedLesion],
    patches: Sequence[TargetPatch],
) -> dict[str, Any]:
    """Show a blending network the tissue, the lesion pasted into it, and the mask."""
    tissue, masks = _stack(patches)
    images = np.stack(
        [
            _paste_on_patch(target, lesion, patch)
            for lesion, patch in zip(lesions, patches, strict=True)
        ]
    )
    return {"pasted": paste(tissue, tf.constant(images), masks)}


def show_mask(
    network: Generator,
    target: TargetMammogram,
    lesions: Sequence[PlacedLesion],
    patches: Sequence[TargetPatch],
) -> dict[str, Any]:
    """Show a CAN the mask."""
    return {"mask": _stack(patches)[1]}


NETWORK_VIEWS: dict[str, NetworkView] = {
    "infilling": show_tri_label,
    "can": show_mask,
    "blending": show_pasted,
}


def _stack(patches: Sequence[TargetPatch]) -> tuple[tf.Tensor, tf.Tensor]:
    """Stack patches to tissue and masks, float32 [n, size, size, 1] each."""
    tissue = tf.constant(np.stack([patch.tissue for patch in patches]))
    masks = tf.constant(np.stack([patch.mask for patch in patches]))
    return tissue, masks


def _paste_on_patch(
    target: TargetMammogram, placed: PlacedLesion, patch: TargetPatch
) -> NDArray[np.float32]:
    """Paste a real lesion with its surroundings, on the grey scale of its patch."""
    lesion = placed.candidate.lesion
    assert lesion
    top, left, bottom, right = placed.placement.window
    around = lesion.around
    # Padded, so that the lesion's surroundings never reach beyond.
    padded = np.pad(target.image[top:bottom, left:right, 0], around)
    first_row = placed.placement.box[0] - top
    first_col = placed.placement.box[1] - left
    rows, cols = lesion.image.shape
    padded[first_row : first_row + rows, first_col : first_col + cols] = lesion.image
    native = padded[around:-around, around:-around]
    image = np.clip(resize_as_trained(native, target, len(patch.tissue)), 0, 1)[..., None]
    image = preprocess.preprocess_patch(image, target.data.preprocess)
    image = preprocess.apply_window(image, patch.low, patch.high)
    return np.ascontiguousarray(image[:, ::-1]) if patch.mirrored else image
