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
from tfmammo.nn.postprocessing import Refined, postprocess
from tfmammo.synthesis.compositing import measure_gap
from tfmammo.synthesis.config import NETWORK_INPUTS
from tfmammo.tracking import export

# Part of its tightest rectangle, of any orientation, that a plausible mask covers at most: 1 for a
# rectangle, 0.79 for an ellipse. It refuses 4 of 888 masks of CBIS-DDSM, none of 116 of INbreast,
# and all of 400 drawn rectangles with rounded corners and frayed edges.
RECTANGULAR = 0.88

Options = ParamSpec("Options")
NetworkT = TypeVar("NetworkT")


def read_once(
    read: Callable[Concatenate[Path, Options], NetworkT],
) -> Callable[Concatenate[Path, Options], NetworkT]:
    """Keep what `read` makes of an export, in each process, until a file of the export changes."""
    kept: dict[Any, tuple[Any, NetworkT]] = {}

    @functools.wraps(read)
    def read_or_keep(folder: Path, *args: Options.args, **options: Options.kwargs) -> NetworkT:
        key = (folder, args, tuple(options.items()))
        files = [path for path in sorted(export.locate(folder).rglob("*")) if path.is_file()]
        stats = [(path, path.stat()) for path in files]
        state = [(path, stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
        if key not in kept or kept[key][0] != state:
            kept[key] = state, read(folder, *args, **options)
        return kept[key][1]

    return read_or_keep


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
class Network:
    """A network that makes patches of lesions.

    Attributes:
        call: The exported function; takes and gives float32 arrays by name.
        size: Side of its patches, px.
        data: How its training patches were made.
        patients: Those that it was trained on.
        identity: Its name, step and the hash of its weights, for recipes.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    size: int
    data: DataConfig
    patients: frozenset[str] = frozenset()
    identity: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Generator(Network):
    """An infilling, a blending network or a CAN.

    Its `call` takes tri_label [n, size, size, 2 or 3], pasted [n, size, size, 3], or mask [n, size,
    size, 1], and gives image [n, size, size, 1].

    Attributes:
        takes: The name of its input.
        prior: Of a blending network, see models.blending. One trained with "noise" replaces the
            lesion by noise itself, so that it sees only the outline of a pasted lesion.
    """

    takes: str = "tri_label"
    margin: Margin | None = None
    prior: str = "lesion"


@read_once
def load_generator(folder: Path, takes: str = "tri_label") -> Generator:
    """Load an infilling, a blending network or a CAN, once in each process."""
    try:
        opened = export.load_identified(folder, {takes}, {"image"})
    except ExportError as error:
        fitting = find_renderers(folder)
        hint = ""
        if fitting and takes not in [NETWORK_INPUTS[name] for name in fitting]:
            hint = f"; renderer={fitting[0]} fits it"
        raise ExportError(f"{error}{hint}") from None
    key = {"tri_label": " config.model.margin,", "pasted": " config.model.prior,"}.get(takes, "")
    needed = f"how its training patches were made (config.data,{key} train_patients)"
    with _describe_network(folder, opened, needed) as facts:
        model = opened.card["config"].get("model", {})
        margin = parse_margin(model["margin"]) if takes == "tri_label" else None
        prior = model["prior"] if takes == "pasted" else "lesion"
        data = read_training_data(opened.card["config"]["data"], str(folder))
    size, channels = opened.shapes[takes][2:]
    margin = margin if channels == 3 else None
    return Generator(size=size, data=data, takes=takes, margin=margin, prior=prior, **facts)


def find_renderers(folder: Path) -> list[str]:
    """Find the renderers that an export fits, by what its functions take and make."""
    functions = export.read_card(folder)["functions"].values()
    inputs = [set(function["inputs"]) for function in functions if "image" in function["outputs"]]
    return [name for name, needed in NETWORK_INPUTS.items() if {needed} in inputs]


@contextmanager
def _describe_network(
    folder: Path, opened: export.LoadedFunction, needed: str
) -> Iterator[dict[str, Any]]:
    """Give what every `Network` has of its export. Raise a DataError if the card lacks a fact."""
    try:
        if opened.patients is None:
            raise KeyError("train_patients")
        yield {"call": opened.call, "patients": opened.patients, "identity": _identify(opened)}
    except (KeyError, TypeError, AttributeError, ValidationError):
        raise DataError(f"{folder}: its card does not say {needed}") from None


def _identify(opened: export.LoadedFunction) -> dict[str, str]:
    return {
        "name": str(opened.card["name"]),
        "step": str(opened.card.get("step", "")),
        "weights": opened.weights,
    }


@dataclass(frozen=True, kw_only=True)
class NoiseGenerator(Network):
    """A vanilla GAN. Its `call` takes noise [n, z], and gives image and mask [n, size, size, 1]."""

    z: int
    kind: LesionKind

    def generate(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Generate a patch and its lesion, the same for the same seed.

        Returns:
            float32 [size, size] in native intensities, [0, 1], and uint8 [size, size], 0 or 1, one
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
    needed = "how and on whom it was trained (config.data, train_patients)"
    with _describe_network(folder, opened, needed) as facts:
        data = read_training_data(opened.card["config"]["data"], str(folder))
    if data.window is None:
        raise DataError(
            f"{folder}: was trained with data.percentiles, so that its intensities are on no "
            "mammogram's scale; train it with data.window"
        )
    if len(data.kinds) > 1:
        raise DataError(
            f"{folder}: was trained on lesions of several kinds ({', '.join(data.kinds)}), so "
            "that nobody knows which it draws"
        )
    z = opened.shapes["noise"][1]
    return NoiseGenerator(size=data.size, data=data, z=z, kind=data.kinds[0], **facts)


@dataclass(frozen=True)
class MaskGenerator:
    """A mask GAN. Its `call` takes noise [n, z], and gives mask [n, size, size, 1] in [0, 1].

    Attributes:
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
            raise DataError(
                "the mask GAN's masks do not look like training masks; train it for longer, or set "
                "shapes.plausible=false"
            )
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
    limits = opened.description.get(mask_gan.LIMITS)
    if limits is not None:
        limits = mask_gan.Plausibility.model_validate(limits)
    z = opened.shapes["noise"][1]
    return MaskGenerator(folder, opened.call, z, limits, opened.patients, _identify(opened))


@dataclass(frozen=True, kw_only=True)
class LesionGenerator(Network):
    """A contextual GAN.

    Its `call` takes image [n, size, size, 1] in [0, 1] and noise [n, noise_inputs], and gives
    lesion [n, size, size, 1] in [-1, 1].

    Attributes:
        model: What it was trained for. Its `judge_seed` is training.seed of the classifier that
            chose its weights, None where none did.
    """

    noise_inputs: int
    model: ContextualConfig

    @property
    def target(self) -> str:
        """mass, calcification or removal."""
        return self.model.target

    @property
    def removes(self) -> bool:
        """Whether it removes lesions."""
        return self.target == "removal"

    def removes_pathology(self, pathology: str) -> bool:
        """Return whether it removes lesions of a pathology ("" for unknown)."""
        return self.model.positives == "lesion" or pathology == "malignant"

    def generate(self, image: NDArray[np.float32], seed: int) -> Refined:
        """Generate one patch with its lesion added or removed, post-processed.

        Args:
            image: float32 [size, size, 1] in [0, 1].
        """
        noise = sample_latent_noise(1, self.noise_inputs, seed)
        lesion = self.call(image=image[None], noise=noise)["lesion"]
        return postprocess(image[None], lesion, self.model.postprocess, self.removes)


@read_once
def load_lesion_generator(folder: Path) -> LesionGenerator:
    """Load a contextual GAN, once in each process."""
    opened = export.load_identified(folder, {"image", "noise"}, {"lesion"})
    needed = "how and on whom it was trained (config, train_patients)"
    with _describe_network(folder, opened, needed) as facts:
        data = DataConfig.model_validate(opened.card["config"]["data"])
        model = ContextualConfig.model_validate(opened.card["config"]["model"])
    size, noise_inputs = (opened.shapes[name][1] for name in ("image", "noise"))
    return LesionGenerator(size=size, data=data, noise_inputs=noise_inputs, model=model, **facts)


def resolve_handle(handle: str, tracking_uri: str | None) -> Path:
    """Resolve a model URI to a folder."""
    from tfmammo.tracking import models  # MLflow takes seconds to import, and no worker needs it

    return models.resolve(handle, tracking_uri)


def find_best_weights(handle: str, tracking_uri: str | None) -> Path:
    """Resolve a model URI to a folder, for a training run to the weights that validated best.

    `resolve_handle` gives the last ones.
    """
    best = Path(handle) / "best"
    has_best = (export.locate(best) / export.CARD).is_file()
    return best if has_best else resolve_handle(handle, tracking_uri)
