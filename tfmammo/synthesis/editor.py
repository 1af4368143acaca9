"""The editor: one lesion into one mammogram, or out of it, at a place that somebody points to.

The studio and the server share it. An editor's renderer is one of `tfmammo synthesize`,
which inserts a mass of a given size and shape or a real lesion (Synthesizer.insert, whose recipes
these are too). Or it is a contextual GAN, which adds to the window around the place, or removes
from it, what it was trained on (tfmammo.synthesis.patch_insertion). Beyond the lesion and its mask
no stored value changes.

A mammogram comes as a file. Only its pixels and the facts of `open_mammogram` are kept: no name, no
date, no text of a header.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tfmammo import archives
from tfmammo import config as configuration
from tfmammo.archives import coco, folder
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig, Frozen
from tfmammo.errors import ArchiveError, ConfigError, DataError, name_key
from tfmammo.mammogram import Box, Laterality, LesionKind, Mammogram, Skipped, View
from tfmammo.synthesis import generators, patch_insertion
from tfmammo.synthesis.config import (
    LARGEST,
    NETWORK_INPUTS,
    RenderMethod,
    ShapeName,
    SynthesisConfig,
)
from tfmammo.synthesis.generators import LesionGenerator
from tfmammo.synthesis.lesion_bank import LesionBank, select_lesions
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.recipe import Recipe, collect_versions, describe_source
from tfmammo.synthesis.renderers import make_renderer
from tfmammo.synthesis.shapes import GeneratedShapes, NamedShapes, RealOutlines, ShapeSource
from tfmammo.synthesis.synthesizer import Synthesizer

LesionsT = TypeVar("LesionsT", LesionBank, RealOutlines)

SPACING = (0.005, 2.0)  # mm per px that a mammogram may have, by far


class GivenFacts(Frozen):
    """What somebody states of a mammogram; it counts where the file states nothing."""

    laterality: Laterality | None = None
    """Side, if the file does not state it."""
    view: View | None = None
    """View, if the file does not state it."""
    spacing: tuple[float, float] | None = None
    """mm per px (row, col), if the file does not state it."""

    def add_to(self, mammogram: Mammogram) -> Mammogram:
        """Fill in what a record lacks; a spacing that no mammogram has is an ArchiveError."""
        for spacing in (mammogram.spacing, self.spacing):
            if spacing and not all(SPACING[0] <= step <= SPACING[1] for step in spacing):
                raise ArchiveError(
                    f"{spacing[0]:g} x {spacing[1]:g} mm per px is not the spacing of a "
                    "mammogram; most have 0.05 to 0.2"
                )
        return replace(
            mammogram,
            laterality=mammogram.laterality or self.laterality,
            view=mammogram.view or self.view,
            spacing=mammogram.spacing or self.spacing,
        )


class EditorConfig(Frozen):
    """One editor."""

    renderer: Literal[RenderMethod, "contextual"]
    """As of SynthesisConfig; or contextual: a run of train/contextual.py, which adds or removes as
    its model.target says.
    """
    generator: str | None = None
    """Model URI of its network."""
    gan: str | None = None
    """Model URI of a mask GAN, which draws the shapes of masses where no name is asked for."""
    lesions: DataConfig | None = None
    """The archive of the real lesions that are inserted, or whose outlines masses take."""
    feather: PositiveFloat = 16.0
    """As of SynthesisConfig."""
    tracking_uri: str | None = None
    """The store of models:/ URIs."""

    @model_validator(mode="after")
    def _check(self) -> EditorConfig:
        has_network = self.renderer == "contextual" or self.renderer in NETWORK_INPUTS
        if has_network and not self.generator:
            raise ValueError(f"renderer={self.renderer} needs a generator")
        if self.generator is not None and not has_network:
            raise ValueError(f"generator is not used by renderer={self.renderer}; leave it out")
        if self.real_lesions and not self.lesions:
            raise ValueError(
                f"renderer={self.renderer} needs lesions, the archive of the real lesions that "
                "it inserts"
            )
        if self.lesions and self.lesions.root is None and self.lesions.name != "phantom":
            raise ValueError(f"lesions: root, the folder of {self.lesions.name}, is missing")
        makes_up = "size" in self.options
        if (self.gan and not makes_up) or (self.lesions and self.renderer == "contextual"):
            name = "gan" if self.gan else "lesions"
            raise ValueError(f"{name} is not used by renderer={self.renderer}; leave it out")
        if self.gan and self.lesions:
            raise ValueError("both gan and lesions give shapes; leave one of them out")
        return self

    @property
    def real_lesions(self) -> bool:
        """Whether real lesions are inserted."""
        return self.renderer not in ("infilling", "can", "contextual")

    @property
    def options(self) -> frozenset[str]:
        """Which of a request's size, shape and factor count."""
        if self.renderer == "contextual":
            return frozenset()
        return frozenset({"factor"} if self.real_lesions else {"size", "shape"})


class EditRequest(Frozen):
    """What somebody asks for."""

    centre: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """(row, col), native px; null: drawn on the part of the breast where masses are."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """(height, width) of a made-up mass, native px."""
    shape: ShapeName | None = None
    """Its shape by name; null: the editor's own."""
    factor: float = Field(default=1.0, ge=0.1, le=10)
    """Factor of a real lesion's size."""
    seed: NonNegativeInt = Field(default=0, lt=2**63)
    """Seed of all random draws."""


@dataclass(frozen=True, eq=False)
class EditResult:
    """A mammogram with one lesion more or less.

    Attributes:
        mask: uint8 [rows, cols], 0 or 1, the lesion that was added or removed.
        box: Of the mask, native px, half-open.
        kind: Of a lesion that was added, None of one that was removed.
    """

    mammogram: Mammogram
    before: Stored
    after: Stored
    mask: NDArray[np.uint8]
    box: Box
    kind: LesionKind | None
    recipe: dict[str, Any]

    def __repr__(self) -> str:
        change = f"{self.kind} added" if self.kind else "tissue refilled"
        return f"<EditResult: {change}, box {self.box} of {self.mammogram!r}>"

    def pixels(self) -> NDArray[np.float32]:
        """Return the new image, float32 [rows, cols, 1] in [0, 1]."""
        return self.after.image()

    def write_dicom(self, path: str | Path) -> None:
        """Write the new mammogram as DICOM, marked as synthetic."""
        key = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()
        synthetic.write_dicom_of_mammogram(Path(path), self.after, self.mammogram, key)

    def to_coco(self, file_name: str) -> dict[str, Any]:
        """Convert to COCO annotations; there is none of a lesion that was removed."""
        rows, cols = self.mask.shape
        image = {"id": 1, "file_name": file_name, "height": rows, "width": cols, "synthetic": True}
        annotations = []
        if self.kind:
            top, left, bottom, right = self.box
            mask = np.ascontiguousarray(self.mask[top:bottom, left:right])
            region = coco.encode(mask, self.box, rows, cols)
            area = int(self.mask.sum())
            annotations = [synthetic.coco_annotation(1, self.kind, self.box, area, region)]
        return synthetic.format_coco([image], annotations, "one mammogram")


class Editor:
    """An editor whose networks and lesions are loaded; made by `load`."""

    def __init__(
        self,
        config: EditorConfig,
        synthesizer: Synthesizer | None,
        network: LesionGenerator | None = None,
    ) -> None:
        self.config = config
        self.synthesizer = synthesizer
        self.network = network
        self.removes = network is not None and network.removes

    @staticmethod
    def load(config: EditorConfig) -> Editor:
        """Find and read its networks and lesions, and keep them whatever becomes of their folders.

        Raises:
            TrackingError, ExportError: A model URI leads to no network of its kind.
            DataError: A network or the lesions can't be used.
            ConfigError, ArchiveError: No such archive of lesions.
        """
        uri = config.tracking_uri
        if config.renderer == "contextual":
            assert config.generator
            export = generators.find_best_weights(config.generator, uri)
            return Editor(config, None, generators.load_lesion_generator(export))
        generator = generators.resolve_handle(config.generator, uri) if config.generator else None
        renderer = make_renderer(config.renderer, generator, config.feather)
        if config.real_lesions:
            assert config.lesions
            bank = _load_lesions(LesionBank, config.lesions)
            return Editor(config, Synthesizer(renderer, bank))
        shapes: ShapeSource | None = None
        if config.gan:
            network = generators.load_mask_generator(generators.resolve_handle(config.gan, uri))
            shapes = GeneratedShapes(network)
        elif config.lesions:
            shapes = _load_lesions(RealOutlines, config.lesions)
        return Editor(config, Synthesizer(renderer, shapes=shapes))

    def with_lesions(self, lesions: DataConfig) -> Editor:
        """Return an editor with the same network and with real lesions of another archive."""
        if not self.config.real_lesions:
            raise DataError(f"renderer={self.config.renderer} inserts no real lesions")
        assert self.synthesizer
        config = self.config.model_copy(update={"lesions": lesions})
        bank = _load_lesions(LesionBank, lesions)
        return Editor(config, replace(self.synthesizer, lesions=bank))

    def edit(self, mammogram: Mammogram, request: EditRequest) -> EditResult:
        """Insert a lesion, or remove one.

        Raises:
            DataError: It can't be done there, or not of that size; the sentence says why.
            ArchiveError: Pixels, or a real lesion, can't be read.
        """
        given = request.model_dump(include={"size", "shape", "factor"}, exclude_defaults=True)
        if unused := sorted(given.keys() - self.config.options):
            options = " and ".join(sorted(self.config.options)) or "neither size, shape nor factor"
            raise DataError(
                f"{unused[0]} plays no part: renderer={self.config.renderer} takes {options}"
            )
        rows, cols, centre = mammogram.rows, mammogram.cols, request.centre
        if centre and (centre[0] >= rows or centre[1] >= cols):
            raise DataError(f"centre {list(centre)} is outside the mammogram of {rows} x {cols} px")
        if request.size and (request.size[0] > rows or request.size[1] > cols):
            raise DataError(
                f"a mass of {request.size[0]} x {request.size[1]} px is larger than the mammogram "
                f"of {rows} x {cols} px"
            )
        stored = archives.read_stored(mammogram)
        if self.network:
            return self._refill(mammogram, stored, request, self.network)
        return self._insert(mammogram, stored, request)

    def _insert(self, mammogram: Mammogram, stored: Stored, request: EditRequest) -> EditResult:
        synthesizer = self.synthesizer
        assert synthesizer
        if not self.config.real_lesions:
            if request.size is None:
                raise DataError(
                    f"size is missing: renderer={self.config.renderer} makes a mass of (height, "
                    "width) px"
                )
            if request.shape:
                synthesizer = replace(synthesizer, shapes=NamedShapes(request.shape))
            elif synthesizer.shapes is None:
                raise DataError(
                    "shape is missing: the system has no shapes of its own (gan, lesions)"
                )
        config = _make_item_config(self.config, request)
        recipe = Recipe(
            identity=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
            number=0,
            config=config,
            versions=collect_versions(),
            generator=synthesizer.renderer.identity,
            sizes=None,
            source=describe_source(mammogram, stored),
        )
        recipe, after = synthesizer.insert(recipe, mammogram, stored)
        (lesion,) = recipe.lesions
        mask = coco.decode(lesion.region, recipe.name)
        return EditResult(
            mammogram, stored, after, mask, lesion.box, lesion.kind, recipe.model_dump(mode="json")
        )

    def _refill(
        self, mammogram: Mammogram, stored: Stored, request: EditRequest, network: LesionGenerator
    ) -> EditResult:
        target = TargetMammogram(stored.image(), mammogram, network.data)
        length = patch_insertion.compute_side(mammogram, network)
        random = np.random.default_rng(request.seed)
        if request.centre:
            top, left = (middle - length // 2 for middle in request.centre)
        else:
            for lesion in mammogram.lesions:
                target.occupy(lesion.box)
            top, left = target.draw_place((length, length), (0, 0, 0, 0), random)
        place = (top, left, top + length, left + length)
        needed = network.data.sampling.tissue
        if target.measure_free(place) < needed:
            raise DataError(
                f"the network works on a window of {length} px around it, of which less than "
                f"{100 * needed:g} % is breast"
            )
        patch = patch_insertion.fill_window(target, place, network, random)
        if patch.mask_box is None:
            raise DataError(
                "post-processing discards all that the network makes there; another seed or place "
                "may do"
            )
        mask = np.zeros((mammogram.rows, mammogram.cols), np.uint8)
        mask[top : top + length, left : left + length] = patch.mask
        kind: LesionKind | None = None
        if not self.removes:
            kind = "calcification" if network.target == "calcification" else "mass"
        recipe = {
            "renderer": "contextual",
            "target": network.target,
            "request": request.model_dump(mode="json"),
            "place": list(place),
            "noise_seed": patch.seed,
            "source": describe_source(mammogram, stored).model_dump(mode="json"),
            "versions": collect_versions(),
            "generator": network.identity,
        }
        after = patch_insertion.reinsert_patches(target, stored, [patch])
        return EditResult(mammogram, stored, after, mask, patch.mask_box, kind, recipe)


@name_key("lesions")
def _load_lesions(kind: type[LesionsT], config: DataConfig) -> LesionsT:
    mammograms = archives.read_mammograms(config, Skipped())
    return kind.select(select_lesions(mammograms, config), config)


def open_mammogram(
    path: Path | str,
    laterality: Laterality | None = None,
    view: View | None = None,
    spacing: tuple[float, float] | None = None,
) -> Mammogram:
    """Open a mammogram's file as a record; its pixels are not read yet.

    Args:
        spacing: mm per px (row, col), used where the file does not state it.

    Raises:
        ConfigError: Side, view or spacing are none.
        ArchiveError: The file can't be read, is too large, or has a spacing of no mammogram.
    """
    try:
        given = GivenFacts(laterality=laterality, view=view, spacing=spacing)
    except ValidationError as error:
        raise ConfigError(configuration.describe(error)) from None
    mammogram = folder.read_one(Path(path))
    if mammogram.rows * mammogram.cols > LARGEST:
        raise ArchiveError(
            f"{path}: {mammogram.rows} x {mammogram.cols} px are more than {LARGEST}"
        )
    try:
        return given.add_to(mammogram)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None


def _make_item_config(config: EditorConfig, request: EditRequest) -> SynthesisConfig:
    """Make the synthesis config that a recipe keeps: of one item, as requested."""
    values: dict[str, Any] = {}
    if config.renderer in NETWORK_INPUTS:
        values |= {"feather": config.feather}
    if config.real_lesions:
        values |= {"resize": (request.factor, request.factor)}
    else:
        shapes = {"drawn": request.shape} if request.shape else {"gan": config.gan}
        values |= {"size": request.size, "shapes": shapes}
    return SynthesisConfig(
        name="one",
        data=DataConfig(name="folder"),
        mammograms="all",
        renderer=config.renderer,  # type: ignore[arg-type]  # a contextual GAN has no recipe
        generator=config.generator,
        lesions=config.lesions,
        centre=request.centre,
        seed=request.seed,
        count=1,
        **values,
    )
