"""One lesion into one mammogram, or out of it, where somebody points: what the studio and
the server share.

A system is a painter of `python -m tfmammo.synthesis`, which sets a mass of a wanted size and
shape, or a real lesion, into tissue (tfmammo.synthesis.mammograms.set_in, whose recipes these are
too); or a contextual GAN, which adds to the window around the place or takes away from it what it
was trained to (tfmammo.synthesis.patch_insertion). Nothing beyond the lesion and its seam changes
by a single stored value.

A mammogram comes as a file, of which nothing but pixels and the facts of `opened` is kept: no name,
no date, no text of a header.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tfmammo import archives
from tfmammo.archives import coco, folder
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig, Frozen
from tfmammo.errors import ArchiveError, DataError
from tfmammo.mammogram import Box, Laterality, LesionKind, Mammogram, View
from tfmammo.synthesis import generators, patch_insertion
from tfmammo.synthesis.config import LARGEST, THROUGH_NETWORKS, Painter, SynthesisConfig
from tfmammo.synthesis.generators import LesionGenerator
from tfmammo.synthesis.mammograms import set_in, source
from tfmammo.synthesis.placement import Ground
from tfmammo.synthesis.provenance import Recipe, versions
from tfmammo.synthesis.renderers import Exports, Tools

Shape = Literal["irregular", "lobular", "oval", "round"]
SPACING = (0.005, 2.0)  # mm per px that a mammogram may have, by far


class SystemConfig(Frozen):
    """One system."""

    painter: Painter | Literal["contextual"]
    """Of SynthesisConfig, or contextual: a run of train/contextual.py, which adds or removes as its
    model.target says.
    """
    generator: str | None = None
    """The handle of its network."""
    gan: str | None = None
    """A mask GAN's, which then draws the shapes of masses where none is asked for by name."""
    lesions: DataConfig | None = None
    """The archive of real lesions that are set in, or whose outlines masses take."""
    feather: PositiveFloat = 16.0
    """As of SynthesisConfig."""
    tracking_uri: str | None = None
    """The store of models:/ handles."""

    @model_validator(mode="after")
    def _consistent(self) -> SystemConfig:
        if self.painter == "contextual":
            if not self.generator:
                raise ValueError("painter=contextual needs a generator")
        else:
            _chosen(self, Wish(centre=(0, 0), size=(8, 8)))
            if self.real_lesions and not self.lesions:
                raise ValueError(
                    f"painter={self.painter} needs lesions, the archive of the real lesions that "
                    "it sets in"
                )
        return self

    @property
    def real_lesions(self) -> bool:
        """Whether real lesions are set in, or say how large one is: a wish's factor counts then,
        else its size and shape.
        """
        return self.painter not in ("infilling", "can", "contextual")


class Wish(Frozen):
    """What somebody asks for."""

    centre: tuple[NonNegativeInt, NonNegativeInt]
    """(row, col), native px."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """(height, width) of a mass made up, native px."""
    shape: Shape | None = None
    """Its shape by name; null: the system's own."""
    factor: float = Field(default=1.0, ge=0.1, le=10)
    """Of a real lesion's size."""
    seed: NonNegativeInt = Field(default=0, lt=2**63)
    """Of everything that is drawn."""


@dataclass(frozen=True, eq=False)
class Changed:
    """A mammogram with one lesion more or less.

    Attributes:
        before: As the file stores them.
        after: As the file stores them.
        mask: uint8 [rows, cols], 0 or 1, the lesion, or what was taken away.
        box: Of it, native px, half-open.
        kind: Of a lesion added, None of one removed.
        recipe: What JSON can hold, enough to make it again.
    """

    mammogram: Mammogram
    before: Stored
    after: Stored
    mask: NDArray[np.uint8]
    box: Box
    kind: LesionKind | None
    recipe: dict[str, Any]

    def dicom(self, path: Path) -> None:
        """Write it as a DICOM, marked as synthetic; see archives.writers.synthetic."""
        file = archives.source_file(self.mammogram)
        lossy = file is not None and file.suffix.lower() in (".jpg", ".jpeg")
        content = json.dumps(self.recipe, sort_keys=True)
        synthetic.dicom(
            path, self.after, self.mammogram, hashlib.sha256(content.encode()).hexdigest(), lossy
        )

    def coco(self, file_name: str) -> dict[str, Any]:
        """Its annotations; none of a lesion removed."""
        rows, cols = self.mask.shape
        image = {"id": 1, "file_name": file_name, "height": rows, "width": cols, "synthetic": True}
        top, left, bottom, right = self.box
        region = coco.encode(
            np.ascontiguousarray(self.mask[top:bottom, left:right]), self.box, rows, cols
        )
        found = (
            [synthetic.coco_annotation(1, self.kind, self.box, int(self.mask.sum()), region)]
            if self.kind
            else []
        )
        return synthetic.coco([image], found, "one mammogram")


class Inserter:
    """A system whose networks are at hand; made by `load`. tools: what sets lesions in. network: a
    contextual GAN, in their place.
    """

    def __init__(
        self, config: SystemConfig, tools: Tools | None, network: LesionGenerator | None = None
    ) -> None:
        self.config = config
        self.tools = tools
        self.network = network
        self.removes = network is not None and network.removes

    @staticmethod
    def load(config: SystemConfig) -> Inserter:
        """Find and read its networks: what it answers, and what its recipes say, is of these,
        whatever becomes of their folders.

        Raises:
            TrackingError: A handle leads to no network of its kind.
            ExportError: A handle leads to no network of its kind.
            DataError: A handle leads to no network of its kind.
        """
        uri = config.tracking_uri
        if config.painter == "contextual":
            assert config.generator
            return Inserter(
                config,
                None,
                generators.lesion_generator(generators.best_weights(config.generator, uri)),
            )
        generator, gan = (
            generators.resolved(handle, uri) if handle else None
            for handle in (config.generator, config.gan)
        )
        return Inserter(
            config,
            Exports(generator, gan).opened(_chosen(config, Wish(centre=(0, 0), size=(8, 8)))),
        )

    def change(self, mammogram: Mammogram, wish: Wish) -> Changed:
        """Set a lesion in, or take one out.

        Args:
            mammogram: From `opened`.

        Raises:
            DataError: It can't be done there, or not of that size; the sentence says why.
            ArchiveError: Pixels, or a real lesion, can't be read.
        """
        if wish.centre[0] >= mammogram.rows or wish.centre[1] >= mammogram.cols:
            raise DataError(
                f"centre {list(wish.centre)} lies outside the mammogram of {mammogram.rows} x "
                f"{mammogram.cols} px"
            )
        if wish.size and (wish.size[0] > mammogram.rows or wish.size[1] > mammogram.cols):
            size, whole = (
                f"{rows} x {cols} px"
                for rows, cols in (wish.size, (mammogram.rows, mammogram.cols))
            )
            raise DataError(f"a mass of {size} is larger than the mammogram of {whole}")
        stored = archives.stored(mammogram)
        if self.network:
            return self._refilled(mammogram, stored, wish, self.network)
        assert self.tools
        return self._painted(mammogram, stored, wish, self.tools)

    def _painted(self, mammogram: Mammogram, stored: Stored, wish: Wish, tools: Tools) -> Changed:
        if not self.config.real_lesions and wish.size is None:
            raise DataError(
                f"size is missing: painter={self.config.painter} makes a mass of (height, width) px"
            )
        if not (self.config.real_lesions or wish.shape or self.config.gan or self.config.lesions):
            raise DataError("shape is missing: the system has no shapes of its own (gan, lesions)")
        chosen = _chosen(self.config, wish)
        digest = hashlib.sha256(chosen.model_dump_json().encode()).hexdigest()
        recipe = Recipe(
            identity=digest,
            name="000000",
            number=0,
            config=chosen,
            versions=versions(),
            generator=tools.painter.identity,
            sizes=None,
            source=source(mammogram, stored),
        )
        recipe, after = set_in(recipe, mammogram, stored, tools)
        (lesion,) = recipe.lesions
        mask = coco.decode(lesion.region, recipe.name)
        return Changed(
            mammogram, stored, after, mask, lesion.box, lesion.kind, recipe.model_dump(mode="json")
        )

    def _refilled(
        self, mammogram: Mammogram, stored: Stored, wish: Wish, network: LesionGenerator
    ) -> Changed:
        ground = Ground(stored.image(), mammogram, network.data)
        length = patch_insertion.side(mammogram, network)
        top, left = (int(middle) - length // 2 for middle in wish.centre)
        place = (top, left, top + length, left + length)
        if ground.free_part(place) < (wanted := network.data.sampling.tissue):
            raise DataError(
                f"of the window of {length} px around it, which the network works on, less than "
                f"{100 * wanted:g} % is breast"
            )
        patch = patch_insertion.filled(ground, place, network, np.random.default_rng(wish.seed))
        if patch.mask_box is None:
            raise DataError(
                "post-processing discards all that the network makes there; another seed or place "
                "may do"
            )
        mask = np.zeros((mammogram.rows, mammogram.cols), np.uint8)
        mask[top : top + length, left : left + length] = patch.mask
        kind: LesionKind | None = (
            None
            if self.removes
            else "calcification"
            if network.target == "calcification"
            else "mass"
        )
        recipe = {
            "painter": "contextual",
            "target": network.target,
            "wish": wish.model_dump(mode="json"),
            "place": list(place),
            "noise_seed": patch.seed,
            "source": source(mammogram, stored).model_dump(mode="json"),
            "versions": versions(),
            "generator": network.identity,
        }
        return Changed(
            mammogram,
            stored,
            patch_insertion.reinserted(ground, stored, [patch]),
            mask,
            patch.mask_box,
            kind,
            recipe,
        )


def opened(
    path: Path,
    laterality: Laterality | None = None,
    view: View | None = None,
    spacing: tuple[float, float] | None = None,
) -> Mammogram:
    """A mammogram's file as a record; its pixels are not yet read.

    Laterality, view, spacing (mm per px): taken where the file itself does not state them.

    Raises:
        ArchiveError: No mammogram, a raw one, or one of more than LARGEST px or of a spacing that
            no mammogram has.
    """
    found = folder.mammogram(path)
    if found.rows * found.cols > LARGEST:
        raise ArchiveError(f"{path}: {found.rows} x {found.cols} px are more than {LARGEST}")
    spacing = found.spacing or spacing
    if spacing and not all(SPACING[0] <= step <= SPACING[1] for step in spacing):
        raise ArchiveError(
            f"{path}: {spacing[0]:g} x {spacing[1]:g} mm per px are no mammogram's; most have "
            "0.05 to 0.2"
        )
    return replace(
        found, laterality=found.laterality or laterality, view=found.view or view, spacing=spacing
    )


def _chosen(config: SystemConfig, wish: Wish) -> SynthesisConfig:
    """The config of a synthesis of one item."""
    values: dict[str, Any] = {
        "painter": config.painter,
        "generator": config.generator,
        "lesions": config.lesions,
    }
    if config.painter in THROUGH_NETWORKS:
        values |= {"tracking_uri": config.tracking_uri, "feather": config.feather}
    if config.real_lesions:
        values |= {"resize": (wish.factor, wish.factor)}
    else:
        values |= {
            "size": wish.size,
            "shapes": {"drawn": wish.shape} if wish.shape else {"gan": config.gan},
        }
    return SynthesisConfig.model_validate(
        {
            "name": "one",
            "data": DataConfig(name="folder"),
            "mammograms": "all",
            "centre": wish.centre,
            "seed": wish.seed,
            "count": 1,
            **values,
        }
    )
