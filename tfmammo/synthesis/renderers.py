"""Renderers: what turns placed lesions into intensities.

An infilling, a CAN, a blending network, a vanilla GAN, or a method without a network.

- Infilling and blending networks see a patch of their own size. Their change is added, or with
  whole_patch the patch replaces the tissue, see tfmammo.synthesis.compositing.
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
patches (baselines.vanilla_gan), which need tissue around them. A patch is as large in it as makes
the longer side of its lesion that of a real one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    Network,
    NoiseGenerator,
    load_generator,
    load_noise_generator,
)
from tfmammo.synthesis.lesion_bank import LesionPatch
from tfmammo.synthesis.placement import Placement, TargetMammogram
from tfmammo.synthesis.recipe import InsertedLesion

BORDER = 3  # native px around a mask's box that a method without a network sees
# Supports that don't overlap, each with its intensities, float32 [rows, cols] in [0, 1].
Rendered = Iterable[tuple[Box, NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class SampledPatch:
    """A patch with a lesion that a vanilla GAN sampled, as it will be in a mammogram.

    Attributes:
        image: float32 [side, side] in [0, 1], native px and intensities.
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


@dataclass(frozen=True, eq=False)
class PlacedLesion:
    """A lesion in its place, to be rendered."""

    record: InsertedLesion
    placement: Placement
    blend_mask: BlendMask
    candidate: LesionCandidate


class Renderer(ABC):
    """What a synthesis needs of a renderer.

    Attributes:
        network: None of a method without a network.
        data: How its patches are cut, and the mammograms prepared that it works on.
        used: The part of a real lesion that is used; None for all of it.
    """

    network: Network | None
    data: DataConfig
    used: UsedPart | None = None

    @property
    def trained_on(self) -> frozenset[str] | None:
        """Patients that its network was trained on; None without a network."""
        return self.network.patients if self.network else None

    @property
    def identity(self) -> dict[str, str]:
        """What a recipe says of its network; empty without a network."""
        return self.network.identity if self.network else {}

    def prepare_lesion(
        self, lesion: LesionPatch, mammogram: Mammogram, seeds: Iterable[int]
    ) -> LesionCandidate:
        """Prepare a real lesion for a mammogram; by default it is taken as it is."""
        record = lesion.record
        origin = f"{record.archive} {record.image_id}#{record.number}"
        return LesionCandidate(lesion.mask, lesion.kind, origin, lesion)

    @abstractmethod
    def place(
        self, top: int, left: int, candidate: LesionCandidate, mammogram: Mammogram
    ) -> tuple[Placement, BlendMask]:
        """Place a lesion so that its box begins at (top, left)."""

    @abstractmethod
    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """Render the supports' new intensities."""


class NetworkRenderer(Renderer):
    """Renders with a network, all lesions of a mammogram in one call."""

    network: Generator

    def __init__(self, network: Generator, feather: float, whole_patch: bool = False) -> None:
        self.network = network
        self.data = network.data
        self.used = "outline" if network.prior == "noise" else None
        self.feather = feather
        self.replaces = whole_patch

    def place(
        self, top: int, left: int, candidate: LesionCandidate, mammogram: Mammogram
    ) -> tuple[Placement, BlendMask]:
        """Place a lesion; the patches of a CAN and whole patches reach to their borders."""
        placement = Placement.at(top, left, candidate.mask, mammogram, self.data)
        size = self.network.size
        if self.replaces or self.network.takes == "mask":
            mask = placement.scale_mask(size)
            return placement, make_whole_blend_mask(mask, placement.window, self.feather)
        return placement, make_blend_mask(placement, size, self.network.margin, self.feather)

    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """Blend in what the network makes."""
        size = self.network.size
        patches = [extract_patch(target, lesion.placement.window, size) for lesion in lesions]
        inputs = {self.network.takes: self._make_inputs(target, lesions, patches)}
        images = self.network.call(**inputs)["image"]
        for lesion, patch, image in zip(lesions, patches, images, strict=True):
            blend_mask = lesion.blend_mask
            if self.replaces:
                native = patch.to_native(image)
            else:
                native = patch.compute_difference(image, blend_mask.around)
            grey = blend(target, lesion.placement, blend_mask, native, self.replaces)
            yield blend_mask.support, grey

    def _make_inputs(
        self,
        target: TargetMammogram,
        lesions: Sequence[PlacedLesion],
        patches: Sequence[TargetPatch],
    ) -> tf.Tensor:
        """Make what the network is shown, float32 [n, size, size, channels]."""
        tissue = tf.constant(np.stack([patch.tissue for patch in patches]))
        pairs = list(zip(lesions, patches, strict=True))
        stacked = np.stack([patch.mirror(lesion.blend_mask.mask) for lesion, patch in pairs])
        masks = tf.constant(stacked[..., None], tf.float32)
        if self.network.takes == "mask":
            return masks
        if self.network.takes == "pasted":
            images = np.stack([_paste_on_patch(target, lesion, patch) for lesion, patch in pairs])
            return paste(tissue, tf.constant(images), masks)
        noise = [
            np.random.default_rng(lesion.record.seed).random(patch.tissue.shape, np.float32)
            for lesion, patch in pairs
        ]
        return tri_label(tissue, masks, tf.constant(np.stack(noise)), self.network.margin)


class DirectRenderer(Renderer):
    """Renders with a method of baselines.poisson, in native pixels."""

    network = None
    data = DataConfig(frame="padded", padding=BORDER)

    def __init__(self, name: str) -> None:
        self.name = name

    def place(
        self, top: int, left: int, candidate: LesionCandidate, mammogram: Mammogram
    ) -> tuple[Placement, BlendMask]:
        """Place a lesion; the blend mask is the lesion's mask itself."""
        placement = Placement.at(top, left, candidate.mask, mammogram, self.data)
        padded = np.pad(candidate.mask, BORDER)
        first_row, first_col, last_row, last_col = placement.window
        if (last_row - first_row, last_col - first_col) != padded.shape:
            raise DataError(f"it comes nearer than {BORDER} px to the mammogram's border")
        around = np.zeros(padded.shape, np.bool_)
        return placement, BlendMask(padded, around, padded.astype(np.float32), placement.window)

    def render(self, target: TargetMammogram, lesions: Sequence[PlacedLesion]) -> Rendered:
        """Blend each real lesion in."""
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


class VanillaRenderer(Renderer):
    """Inserts what a vanilla GAN samples from noise, lesion and tissue."""

    network: NoiseGenerator
    used = "size"

    def __init__(self, network: NoiseGenerator, feather: float) -> None:
        self.network = network
        self.data = network.data
        self.feather = feather

    def prepare_lesion(
        self, lesion: LesionPatch, mammogram: Mammogram, seeds: Iterable[int]
    ) -> LesionCandidate:
        """Sample a lesion whose longer side is that of a real one, as transformed."""
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
        """Place a lesion with the patch that it was sampled in."""
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
        """Insert each patch."""
        for lesion in lesions:
            assert lesion.candidate.sample
            image = lesion.candidate.sample.image
            grey = blend(target, lesion.placement, lesion.blend_mask, image, replaces=True)
            yield lesion.blend_mask.support, grey

    def _sample(self, lesion: LesionPatch, mammogram: Mammogram, seed: int) -> LesionCandidate:
        image, mask = self.network.generate(seed)
        if preprocess.is_mirrored(mammogram, self.data.preprocess):
            image, mask = preprocess.mirror(image), preprocess.mirror(mask)
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
    return NetworkRenderer(network, feather, whole_patch)


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
    return patch.mirror(preprocess.apply_window(image, patch.low, patch.high))
