"""The networks and shapes that a synthesis draws from: an infilling's, a CAN's, a
blending's or a vanilla GAN's export, and masks of a mask GAN, of files, of a named
shape or of real masses; a contextual GAN's lesions.

A network and what recipes say of it (`identity`) come from one reading of its export and stay
together. So no recipe names weights that did not make its image, whatever becomes of the folder; an
export that took another's place is another network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo import export
from tfmammo.config import DataConfig
from tfmammo.errors import DataError, ExportError
from tfmammo.mammogram import LesionKind
from tfmammo.models import mask_gan
from tfmammo.models.contextual import ContextualConfig, scalars
from tfmammo.postprocessing import PostprocessConfig, Refined, postprocess
from tfmammo.synthesis.compositing import gap
from tfmammo.synthesis.config import THROUGH_NETWORKS
from tfmammo.synthesis.placement import training_data

Options = ParamSpec("Options")
Network = TypeVar("Network")


def read_once(
    read: Callable[Concatenate[Path, Options], Network],
) -> Callable[Concatenate[Path, Options], Network]:
    """What `read` makes of an export, kept in each process until a file of the export changes."""
    kept: dict[Any, tuple[Any, Network]] = {}

    @functools.wraps(read)
    def kept_or_read(folder: Path, *args: Options.args, **options: Options.kwargs) -> Network:
        key = (folder, args, tuple(options.items()))
        state = _files(folder)
        if key not in kept or kept[key][0] != state:
            kept[key] = state, read(folder, *args, **options)
        return kept[key][1]

    return kept_or_read


def _files(folder: Path) -> list[tuple[str, int, int, int]]:
    """What changes whenever a file of an export is replaced or written to."""
    found = [
        (path, path.stat()) for path in sorted(export.located(folder).rglob("*")) if path.is_file()
    ]
    return [(str(path), about.st_ino, about.st_mtime_ns, about.st_size) for path, about in found]


@dataclass(frozen=True)
class Generator:
    """An infilling, a blending or a CAN.

    Attributes:
        call: (tri_label float32 [n, size, size, 2 or 3], pasted [n, size, size, 3], or mask [n,
            size, size, 1]) -> {"image": [n, size, size, 1]}.
        margin: Of a tri-label of three channels, as in models.infilling.
        data: How its training patches were made.
        patients: Those it was trained on.
        prior: Of a blending, see models.blending: one trained with "noise" puts noise in place of
            the lesion itself, so that of a lesion pasted in it sees the outline alone.
        identity: Name, step and weights, see `_identity`.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    size: int
    margin: int | None
    data: DataConfig
    patients: frozenset[str] = frozenset()
    prior: str = "lesion"
    identity: dict[str, str] = field(default_factory=dict)


@read_once
def generator(folder: Path, takes: str = "tri_label") -> Generator:
    """The infilling of an export, or with takes="pasted" the blending, with takes="mask" the CAN,
    read once in each process.

    Raises:
        ExportError: There is none.
        DataError: Its patches can't be put back, or its card does not say how they were made.
    """
    function = _fitting(folder, takes)
    opened = export.load_whole(folder, function)
    card = opened.card
    shape = card["functions"][function]["inputs"][takes]["shape"]
    needed = (
        "config.data, config.model.margin, train_patients"
        if takes == "tri_label"
        else "config.data, train_patients"
    )
    try:
        data = training_data(card["config"]["data"], str(folder))
        model = card["config"].get("model", {})
        patients = export.trained_on(card, folder)
        margin = model["margin"] if takes == "tri_label" else None
        prior = model.get("prior", "lesion")
    except (KeyError, TypeError, AttributeError, ValidationError):
        raise DataError(
            f"{folder}: its card does not say how its training patches were made ({needed})"
        ) from None
    return Generator(
        opened.call,
        shape[1],
        margin if shape[3] == 3 else None,
        data,
        patients,
        prior,
        _identity(opened),
    )


def _fitting(folder: Path, takes: str) -> str:
    """The function that makes an image of what a painter gives.

    Raises:
        ExportError: There is none; it says which painter fits.
    """
    try:
        return export.find(folder, {takes}, {"image"})
    except ExportError as error:
        functions = export.read_card(folder)["functions"].values()
        known = [
            set(function["inputs"]) for function in functions if "image" in function["outputs"]
        ]
        fitting = [name for name, input_name in THROUGH_NETWORKS.items() if {input_name} in known]
        if not fitting:
            raise
        raise ExportError(f"{error}; painter={fitting[0]} fits it") from None


def _identity(opened: export.Opened) -> dict[str, str]:
    """What a recipe says of a network. weights: see export.load_whole."""
    return {
        "name": str(opened.card["name"]),
        "step": str(opened.card.get("step", "")),
        "weights": opened.weights,
    }


def same_network(
    recorded: dict[str, str], identity: dict[str, str], folder: Path, source: set[str], target: str
) -> bool:
    """Whether a network is the one that a recipe records; one of an earlier version records a hash
    of files ("sha256").

    Args:
        folder: Of the network's export.
        source: What its function leads from and to.
        target: What its function leads from and to.
    """
    if "sha256" in recorded:
        return (
            export.files_hash(folder, export.find(folder, source, {target})) == recorded["sha256"]
        )
    return identity.get("weights") == recorded.get("weights")


@dataclass(frozen=True)
class NoiseGenerator:
    """A vanilla GAN.

    Attributes:
        call: (noise float32 [n, z] in [-1, 1]) -> {"image": , "mask": float32 [n, size, size, 1] in
            [0, 1]}.
        kind: Of the lesions that it draws.
        data: How its training patches were made.
        patients: Those it was trained on.
        identity: See `_identity`.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    z: int
    kind: LesionKind
    data: DataConfig
    patients: frozenset[str]
    identity: dict[str, str]

    def made(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A patch and its lesion, the same of the same seed.

        Returns:
            (float32 [size, size] in native grey values, [0, 1]; uint8 [size, size], 0 or 1, one
            region off the border).

        Raises:
            DataError: There is no lesion in it, or one at its border.
        """
        outputs = self.call(noise=mask_gan.latent(1, self.z, seed))
        mask = np.ascontiguousarray(mask_gan.clean(outputs["mask"])[0, ..., 0])
        try:
            gap(mask)
        except DataError as error:
            raise DataError(f"no lesion that a vanilla GAN draws can be used: {error}") from None
        assert self.data.window
        low, high = self.data.window
        return np.clip(low + (high - low) * outputs["image"][0, ..., 0], 0, 1), mask


@read_once
def noise_generator(folder: Path) -> NoiseGenerator:
    """The vanilla GAN of an export, read once in each process.

    Raises:
        ExportError: There is none.
        DataError: Its patches can't be set in: it was trained with data.percentiles, or on lesions
            of several kinds, or its card does not say how.
    """
    function = export.find(folder, {"noise"}, {"image", "mask"})
    opened = export.load_whole(folder, function)
    card = opened.card
    try:
        data = training_data(card["config"]["data"], str(folder))
        patients = export.trained_on(card, folder)
    except (KeyError, TypeError, ValidationError):
        raise DataError(
            f"{folder}: its card does not say how and on whom it was trained (config.data, "
            "train_patients)"
        ) from None
    if data.window is None:
        raise DataError(
            f"{folder}: was trained with data.percentiles, so that its grey values are on no "
            "mammogram's scale; train it with data.window"
        )
    if len(data.kinds) > 1:
        raise DataError(
            f"{folder}: was trained on lesions of several kinds ({', '.join(data.kinds)}), so "
            "that nobody knows which it draws"
        )
    z = card["functions"][function]["inputs"]["noise"]["shape"][1]
    return NoiseGenerator(opened.call, z, data.kinds[0], data, patients, _identity(opened))


@dataclass(frozen=True)
class MaskGenerator:
    """A mask GAN.

    Attributes:
        call: (noise float32 [n, z] in [-1, 1]) -> {"mask": float32 [n, size, size, 1] in [0, 1]}.
        limits: Of masks that look like training masks.
        patients: Those it was trained on, None where its card does not say.
        identity: See `_identity`.
    """

    folder: Path
    call: Callable[..., dict[str, NDArray[np.float32]]]
    z: int
    limits: mask_gan.Plausibility | None
    patients: frozenset[str] | None
    identity: dict[str, str]

    @property
    def trained_on(self) -> frozenset[str]:
        """Its patients.

        Raises:
            DataError: They are not known.
        """
        if self.patients is None:
            raise DataError(
                f"{self.folder}: its card does not say on whom it was trained (train_patients)"
            )
        return self.patients

    def made(self, random: np.random.Generator) -> NDArray[np.uint8]:
        """A mask: uint8 [size, size], 0 or 1.

        Raises:
            DataError: It looks like no training mask.
        """
        mask = mask_gan.clean(
            self.call(noise=random.uniform(-1, 1, (1, self.z)).astype(np.float32))["mask"]
        )
        if self.limits and not mask_gan.plausible(mask, self.limits)[0]:
            raise DataError("the mask GAN's masks look like no training mask")
        return np.ascontiguousarray(mask[0, ..., 0])


@read_once
def mask_generator(folder: Path) -> MaskGenerator:
    """The mask GAN of an export, read once in each process.

    Raises:
        ExportError: There is none.
    """
    function = export.find(folder, {"noise"}, {"mask"})
    opened = export.load_whole(folder, function)
    z = opened.card["functions"][function]["inputs"]["noise"]["shape"][1]
    path = export.located(folder) / mask_gan.LIMITS
    limits = (
        mask_gan.Plausibility.model_validate_json(path.read_bytes()) if path.is_file() else None
    )
    known = export.trained_on(opened.card, folder) if "train_patients" in opened.card else None
    return MaskGenerator(folder, opened.call, z, limits, known, _identity(opened))


@dataclass(frozen=True)
class LesionGenerator:
    """A contextual GAN.

    Attributes:
        call: (image float32 [n, size, size, 1] in [0, 1], noise float32 [n, scalars] in [-1, 1]) ->
            {"lesion": float32 [n, size, size, 1] in [-1, 1]}.
        target: Mass, calcification or removal.
        positives: Malignant or lesion, what it adds or takes away.
        data: How its training patches were made.
        refine: Its post-processing.
        patients: Those it was trained on.
        identity: See `_identity`.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    size: int
    scalars: int
    target: str
    positives: str
    data: DataConfig
    refine: PostprocessConfig
    patients: frozenset[str]
    identity: dict[str, str]

    @property
    def removes(self) -> bool:
        """Whether it takes lesions away."""
        return self.target == "removal"

    def wants(self, pathology: str) -> bool:
        """Whether a lesion of that pathology ("" unknown) is one that it takes away."""
        return self.positives == "lesion" or pathology == "malignant"

    def made(self, image: NDArray[np.float32], seed: int) -> Refined:
        """One patch with its lesion added or removed, post-processed.

        Args:
            image: float32 [size, size, 1] in [0, 1].
            seed: Of its random numbers.
        """
        noise = scalars(1, self.scalars, seed)
        return postprocess(
            image[None],
            self.call(image=image[None], noise=noise)["lesion"],
            self.refine,
            self.removes,
        )


@read_once
def lesion_generator(folder: Path) -> LesionGenerator:
    """The contextual GAN of an export, read once in each process.

    Raises:
        ExportError: There is none.
        DataError: Its card does not say how it was trained.
    """
    function = export.find(folder, {"image", "noise"}, {"lesion"})
    opened = export.load_whole(folder, function)
    card = opened.card
    inputs = card["functions"][function]["inputs"]
    try:
        data = DataConfig.model_validate(card["config"]["data"])
        model = ContextualConfig.model_validate(card["config"]["model"])
        patients = export.trained_on(card, folder)
    except (KeyError, TypeError, ValidationError):
        raise DataError(
            f"{folder}: its card does not say how and on whom it was trained (config, "
            "train_patients)"
        ) from None
    size = inputs["image"]["shape"][1]
    count = inputs["noise"]["shape"][1]
    return LesionGenerator(
        opened.call,
        size,
        count,
        model.target,
        model.positives,
        data,
        model.postprocess,
        patients,
        _identity(opened),
    )


def resolved(handle: str, tracking_uri: str | None) -> Path:
    """The folder of a handle.

    Raises:
        ConfigError: There is none.
        TrackingError: There is none.
    """
    from tfmammo.tracking import models  # MLflow takes seconds to import, and no worker needs it

    return models.resolve(handle, tracking_uri)


def best_weights(handle: str, tracking_uri: str | None) -> Path:
    """As `resolved`, but of a training's folder the weights that did best on its validation
    patches, not the last ones.
    """
    best = Path(handle) / "best"
    return (
        best if (export.located(best) / export.CARD).is_file() else resolved(handle, tracking_uri)
    )
