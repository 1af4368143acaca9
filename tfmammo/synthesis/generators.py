"""The networks that a synthesis draws from.

Infillings, CANs, blending networks, vanilla GANs, mask GANs and contextual GANs, each as an export.

A network and what recipes say of it (`identity`) come from one reading of its export, and stay
together. So no recipe names weights that did not make its image, whatever becomes of the folder. An
export that replaced another one is another network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo.config import DataConfig
from tfmammo.errors import DataError, ExportError
from tfmammo.mammogram import LesionKind
from tfmammo.models import mask_gan
from tfmammo.models.contextual import ContextualConfig
from tfmammo.nn.layers import Margin, parse_margin, sample_latent_noise
from tfmammo.nn.postprocessing import PostprocessConfig, Refined, postprocess
from tfmammo.synthesis.compositing import measure_gap
from tfmammo.synthesis.config import NETWORK_INPUTS
from tfmammo.tracking import export

# Part of its tightest rectangle, of any orientation, that a plausible mask covers at most: 1 for a
# rectangle, 0.79 for an ellipse. It refuses 4 of 888 masks of CBIS-DDSM, none of 116 of INbreast,
# and all of 400 drawn rectangles with rounded corners and frayed edges.
RECTANGULAR = 0.88

Options = ParamSpec("Options")
Network = TypeVar("Network")


def read_once(
    read: Callable[Concatenate[Path, Options], Network],
) -> Callable[Concatenate[Path, Options], Network]:
    """Keep what `read` makes of an export, in each process, until a file of the export changes."""
    kept: dict[Any, tuple[Any, Network]] = {}

    @functools.wraps(read)
    def read_or_keep(folder: Path, *args: Options.args, **options: Options.kwargs) -> Network:
        key = (folder, args, tuple(options.items()))
        state = _stat_files(folder)
        if key not in kept or kept[key][0] != state:
            kept[key] = state, read(folder, *args, **options)
        return kept[key][1]

    return read_or_keep


def _stat_files(folder: Path) -> list[tuple[str, int, int, int]]:
    """Stat the files of an export, so that a file that is replaced or written to shows."""
    paths = sorted(export.locate(folder).rglob("*"))
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return [(str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in stats]


def read_training_data(section: dict[str, Any], handle: str) -> DataConfig:
    """Read the data section of a generator's card."""
    config = DataConfig.model_validate(section)
    if config.preprocess.contrast != "none":
        raise DataError(
            f"{handle}: was trained with data.preprocess.contrast={config.preprocess.contrast}, "
            "which can't be reversed"
        )
    if config.frame == "full":
        raise DataError(
            f"{handle}: was trained on images taken whole (data.frame=full), so that what it makes "
            "has no place in a mammogram"
        )
    return config


@dataclass(frozen=True)
class Generator:
    """An infilling, a blending network or a CAN.

    Attributes:
        call: (tri_label float32 [n, size, size, 2 or 3], pasted [n, size, size, 3], or mask [n,
            size, size, 1]) -> {"image": [n, size, size, 1]}.
        size: Side of its patches, px.
        prior: Of a blending network, see models.blending. One trained with "noise" replaces the
            lesion by noise itself, so that it sees only the outline of a pasted lesion.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    size: int
    margin: Margin | None
    data: DataConfig
    patients: frozenset[str] = frozenset()
    prior: str = "lesion"
    identity: dict[str, str] = field(default_factory=dict)


@read_once
def load_generator(folder: Path, takes: str = "tri_label") -> Generator:
    """Load an infilling, a blending network or a CAN, once in each process."""
    try:
        opened = export.load_identified(folder, {takes}, {"image"})
    except ExportError as error:
        raise ExportError(f"{error}{_suggest_renderer(folder, takes)}") from None
    needed = "config.data, train_patients"
    if takes == "tri_label":
        needed = "config.data, config.model.margin, train_patients"
    elif takes == "pasted":
        needed = "config.data, config.model.prior, train_patients"
    with _require(folder, f"how its training patches were made ({needed})"):
        config = opened.card["config"]
        data = read_training_data(config["data"], str(folder))
        model = config.get("model", {})
        margin = parse_margin(model["margin"]) if takes == "tri_label" else None
        patients = _get_patients(opened)
        prior = model["prior"] if takes == "pasted" else "lesion"
    size, channels = opened.shapes[takes][2:]
    return Generator(
        opened.call,
        size,
        margin if channels == 3 else None,
        data,
        patients,
        prior,
        _identify(opened),
    )


def find_renderers(folder: Path) -> list[str]:
    """Find the renderers that an export fits, by what its functions take and make."""
    functions = export.read_card(folder)["functions"].values()
    inputs = [set(function["inputs"]) for function in functions if "image" in function["outputs"]]
    return [name for name, needed in NETWORK_INPUTS.items() if {needed} in inputs]


def _suggest_renderer(folder: Path, takes: str) -> str:
    """Name the renderer that an export without a function for this input fits, if any does."""
    fitting = find_renderers(folder)
    if not fitting or takes in [NETWORK_INPUTS[name] for name in fitting]:
        return ""
    return f"; renderer={fitting[0]} fits it"


@contextmanager
def _require(folder: Path, facts: str) -> Iterator[None]:
    """Raise a DataError where the body misses something in the card of an export."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValidationError):
        raise DataError(f"{folder}: its card does not say {facts}") from None


def _get_patients(opened: export.LoadedFunction) -> frozenset[str]:
    if opened.patients is None:
        raise KeyError("train_patients")
    return opened.patients


def _identify(opened: export.LoadedFunction) -> dict[str, str]:
    """Describe a network for a recipe; weights are hashed by export.load_identified."""
    return {
        "name": str(opened.card["name"]),
        "step": str(opened.card.get("step", "")),
        "weights": opened.weights,
    }


@dataclass(frozen=True)
class NoiseGenerator:
    """A vanilla GAN.

    Attributes:
        call: (noise float32 [n, z] in [-1, 1]) -> {"image", "mask": float32 [n, size, size, 1] in
            [0, 1]}.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    z: int
    kind: LesionKind
    data: DataConfig
    patients: frozenset[str]
    identity: dict[str, str]

    def generate(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Generate a patch and its lesion, the same for the same seed.

        Returns:
            float32 [size, size] in native grey values, [0, 1], and uint8 [size, size], 0 or 1, one
            region off the border.
        """
        outputs = self.call(noise=sample_latent_noise(1, self.z, seed))
        mask = np.ascontiguousarray(mask_gan.clean(outputs["mask"])[0, ..., 0])
        try:
            measure_gap(mask)
        except DataError as error:
            raise DataError(f"no lesion that a vanilla GAN draws can be used: {error}") from None
        assert self.data.window
        low, high = self.data.window
        return np.clip(low + (high - low) * outputs["image"][0, ..., 0], 0, 1), mask


@read_once
def load_noise_generator(folder: Path) -> NoiseGenerator:
    """Load a vanilla GAN, once in each process."""
    opened = export.load_identified(folder, {"noise"}, {"image", "mask"})
    with _require(folder, "how and on whom it was trained (config.data, train_patients)"):
        data = read_training_data(opened.card["config"]["data"], str(folder))
        patients = _get_patients(opened)
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
    z = opened.shapes["noise"][1]
    return NoiseGenerator(opened.call, z, data.kinds[0], data, patients, _identify(opened))


@dataclass(frozen=True)
class MaskGenerator:
    """A mask GAN.

    Attributes:
        call: (noise float32 [n, z] in [-1, 1]) -> {"mask": float32 [n, size, size, 1] in [0, 1]}.
        patients: Those it was trained on, None where its card does not say.
    """

    folder: Path
    call: Callable[..., dict[str, NDArray[np.float32]]]
    z: int
    limits: mask_gan.Plausibility | None
    patients: frozenset[str] | None
    identity: dict[str, str]

    @property
    def trained_on(self) -> frozenset[str]:
        """Its patients."""
        if self.patients is None:
            raise DataError(
                f"{self.folder}: its card does not say on whom it was trained (train_patients)"
            )
        return self.patients

    def generate(self, random: np.random.Generator, plausible: bool = True) -> NDArray[np.uint8]:
        """Generate a mask: uint8 [rows, cols], 0 or 1.

        Args:
            plausible: Whether it must look like a training mask, and not like a rectangle. Else it
                has a border of 0 more, so that one at its patch's border, where it is cut, serves
                as well.
        """
        mask = mask_gan.clean(
            self.call(noise=random.uniform(-1, 1, (1, self.z)).astype(np.float32))["mask"]
        )
        if not plausible:
            return np.pad(mask[0, ..., 0], 1)
        if self.limits and not mask_gan.is_plausible(mask, self.limits)[0]:
            raise DataError("the mask GAN's masks do not look like training masks")
        region = np.ascontiguousarray(mask[0, ..., 0])
        if measure_rectangularity(region) > RECTANGULAR:
            raise DataError("the mask GAN's masks are rectangles")
        return region


def measure_rectangularity(mask: NDArray[np.uint8]) -> float:
    """Measure which part of its tightest rectangle, of any orientation, a mask covers.

    Args:
        mask: uint8 [rows, cols], 0 or 1, one region.

    Returns:
        1 for a rectangle, pi / 4 for an ellipse, 0 for an empty mask.
    """
    if not mask.any():
        return 0.0
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    _, (width, height), _ = cv2.minAreaRect(np.concatenate(outlines))
    return float(mask.sum()) / ((width + 1) * (height + 1))  # from pixel centres to their borders


@read_once
def load_mask_generator(folder: Path) -> MaskGenerator:
    """Load a mask GAN, once in each process."""
    opened = export.load_identified(folder, {"noise"}, {"mask"})
    path = export.locate(folder) / mask_gan.LIMITS
    limits = (
        mask_gan.Plausibility.model_validate_json(path.read_bytes()) if path.is_file() else None
    )
    z = opened.shapes["noise"][1]
    return MaskGenerator(folder, opened.call, z, limits, opened.patients, _identify(opened))


@dataclass(frozen=True)
class LesionGenerator:
    """A contextual GAN.

    Attributes:
        call: (image float32 [n, size, size, 1] in [0, 1], noise float32 [n, noise_inputs] in
            [-1, 1]) -> {"lesion": float32 [n, size, size, 1] in [-1, 1]}.
        size: Side of its patches, px.
        judge_seed: training.seed of the classifier that chose its weights; None where none did.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    size: int
    noise_inputs: int
    target: str
    positives: str
    judge_seed: int | None
    data: DataConfig
    refine: PostprocessConfig
    patients: frozenset[str]
    identity: dict[str, str]

    @property
    def removes(self) -> bool:
        """Whether it removes lesions."""
        return self.target == "removal"

    def removes_pathology(self, pathology: str) -> bool:
        """Return whether it removes lesions of a pathology ("" for unknown)."""
        return self.positives == "lesion" or pathology == "malignant"

    def generate(self, image: NDArray[np.float32], seed: int) -> Refined:
        """Generate one patch with its lesion added or removed, post-processed.

        Args:
            image: float32 [size, size, 1] in [0, 1].
        """
        noise = sample_latent_noise(1, self.noise_inputs, seed)
        return postprocess(
            image[None],
            self.call(image=image[None], noise=noise)["lesion"],
            self.refine,
            self.removes,
        )


@read_once
def load_lesion_generator(folder: Path) -> LesionGenerator:
    """Load a contextual GAN, once in each process."""
    opened = export.load_identified(folder, {"image", "noise"}, {"lesion"})
    with _require(folder, "how and on whom it was trained (config, train_patients)"):
        data = DataConfig.model_validate(opened.card["config"]["data"])
        model = ContextualConfig.model_validate(opened.card["config"]["model"])
        patients = _get_patients(opened)
    return LesionGenerator(
        opened.call,
        opened.shapes["image"][1],
        opened.shapes["noise"][1],
        model.target,
        model.positives,
        model.judge_seed,
        data,
        model.postprocess,
        patients,
        _identify(opened),
    )


def resolve_handle(handle: str, tracking_uri: str | None) -> Path:
    """Resolve a model URI to a folder."""
    from tfmammo.tracking import models  # MLflow takes seconds to import, and no worker needs it

    return models.resolve(handle, tracking_uri)


def find_best_weights(handle: str, tracking_uri: str | None) -> Path:
    """Resolve a model URI to a folder, for a training run to its best weights.

    Those did best on its validation patches. `resolve_handle` gives the last ones.
    """
    best = Path(handle) / "best"
    return (
        best
        if (export.locate(best) / export.CARD).is_file()
        else resolve_handle(handle, tracking_uri)
    )
