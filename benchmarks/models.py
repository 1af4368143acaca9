"""Our models for benchmarks/step.py, and the files by which a peer repeats their steps.

TensorFlow and torch.compile can't run in one process, so a folder holds what the peer needs:
weights.npz   "NETWORK/i": the network's trainable variables in their order; "NETWORK/state/i": its
              other variables; "feature_extractor/i": those of a frozen network
config.json   the model's config
draws.npz     "NAME/step": what the model draws by itself in its first two steps; the peer takes it
              in its batch
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmammo.nn import _tensorflow  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import keras
import numpy as np
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.baselines.residual_unet import ResidualUNet, ResidualUNetConfig
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.models import contextual, flow
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.models.can import CAN, CANConfig
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.classifier import Classifier, ClassifierConfig
from tfmammo.models.infilling import Infilling, InfillingConfig
from tfmammo.models.mask_gan import MaskGAN, MaskGANConfig
from tfmammo.models.shape import ShapeCNN, ShapeConfig
from tfmammo.nn import layers

COMPARED_STEPS = 2  # steps whose losses are compared
# name: a model and its config
CLASSES: dict[str, tuple[Any, Any]] = {
    "can": (CAN, CANConfig),
    "pix2pix": (Pix2Pix, Pix2PixConfig),
    "unet": (UNet, UNetConfig),
    "segnet": (SegNet, SegNetConfig),
    "fcn8s": (FCN8s, FCN8sConfig),
    "residual_unet": (ResidualUNet, ResidualUNetConfig),
    "infilling": (Infilling, InfillingConfig),
    "flow": (flow.Flow, flow.FlowConfig),
    "mask_gan": (MaskGAN, MaskGANConfig),
    "blending": (Blending, BlendingConfig),
    "vanilla_gan": (VanillaGAN, VanillaGANConfig),
    "contextual": (contextual.Contextual, contextual.ContextualConfig),
    "classifier": (Classifier, ClassifierConfig),
    "cgan": (CGAN, CGANConfig),
    "shape": (ShapeCNN, ShapeConfig),
}


def make_answers(
    model: str,
    values: dict[str, Any],
    size: int,
    batch: dict[str, np.ndarray],
    precision: str,
    folder: Path,
    device: str,
    equal: bool,
) -> dict[str, Callable[[], Any]]:
    """Build a model and return the answers to what the parent process asks for.

    Args:
        model: A name of `build_model`.
        values: Its config, where that is not the default.
        size: px.
        batch: Of every step.
        precision: float32 or bfloat16.
        folder: Of the files, which are written once.
        device: "cpu" or "gpu".
        equal: Whether losses are compared, so that nothing is dropped.

    Raises:
        SystemExit: TensorFlow has no GPU, and one is wanted.
    """
    memory = choose_device(device)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    paper_model = build_model(model, values, size)
    tensors = {name: tf.constant(value) for name, value in batch.items()}
    if not (folder / "weights.npz").exists():
        write_weights(paper_model, folder)
        numbers = {
            f"{name}/{step}": value
            for step in range(COMPARED_STEPS)
            for name, value in draw_numbers(model, paper_model, tensors, step).items()
        }
        np.savez(folder / "draws.npz", **numbers)  # type: ignore[arg-type]  # its stubs know of no other keyword
    if equal:
        switch_dropout_off(paper_model)
    train_step = tf.function(paper_model.train_step)

    def compute_losses() -> dict[str, float]:
        losses = train_step(tensors)
        return {f"{name}_loss": float(losses[f"{name}_loss"]) for name in paper_model.optimizers}

    return {
        "losses": compute_losses,
        "gemm": lambda: measure_gemm_flops(precision, 8192 if device == "gpu" else 2048),
        "profile": functools.partial(profile, compute_losses, folder / "trace"),
        **memory,
    }


def choose_device(device: str) -> dict[str, Callable[[], float]]:
    """Hide GPUs, or see that there is one; return what answers for a GPU's memory.

    Raises:
        SystemExit: There is none.
    """
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return {}
    if not tf.config.list_physical_devices("GPU"):
        raise SystemExit("--device gpu: TensorFlow finds no GPU")
    return {"memory": lambda: tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6}


def build_model(model: str, values: dict[str, Any], size: int) -> Any:
    """Build a model by its name: one of CLASSES, or light_head."""
    if model == "light_head":
        # it imports MLflow, which would count as time to the first step of all others
        from tfmammo.detection.light_head_rcnn import LightHeadRCNN, LightHeadRCNNConfig

        return LightHeadRCNN(LightHeadRCNNConfig(**values), size)
    build, make_config = CLASSES[model]
    return build(make_config(**values), size)


def collect_variables(model: Any) -> dict[str, list[Any]]:
    """Collect a model's variables by their names in weights.npz, without dropout's state."""
    variables: dict[str, list[Any]] = {}
    for name, network in model.networks.items():
        variables[name] = network.trainable_weights
        variables[f"{name}/state"] = network.non_trainable_weights
    if hasattr(model, "feature_extractor"):
        variables["feature_extractor"] = model.feature_extractor.weights
    return variables


def write_weights(model: Any, folder: Path) -> None:
    """Write weights.npz and config.json."""
    values = {
        f"{name}/{i}": variable.numpy()
        for name, variables in collect_variables(model).items()
        for i, variable in enumerate(variables)
    }
    np.savez(folder / "weights.npz", **values)
    (folder / "config.json").write_text(model.config.model_dump_json(), encoding="utf-8")


def switch_dropout_off(model: Any) -> None:
    """Have a model drop nothing; its weights are drawn as those of one that does."""
    for network in model.networks.values():
        for layer in network._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0


def draw_numbers(
    name: str, model: Any, batch: dict[str, tf.Tensor], step: int
) -> dict[str, np.ndarray]:
    """Draw what a model draws by itself in one step; dropout is switched off.

    Args:
        name: Of `build_model`.
        model: The model.
        batch: Of the step.
        step: Counted from 0.
    """
    if name == "light_head":  # what chooses anchors; a seed is step and replica
        shape = [len(batch["image"]), len(model.anchors)]
        return {"random": tf.random.stateless_uniform(shape, [step, 0]).numpy()}
    seeds = layers.patch_seeds(batch["image"], step)
    if name in ("infilling", "flow"):  # what fills the lesions
        noise = layers.uniform_noise(seeds, model.size).numpy()
        if name == "infilling":
            return {"noise": noise}
        time_noise = layers.uniform_noise(seeds + flow.TIME, 1)
        return {"noise": noise, "time": time_noise.numpy().ravel()}
    if name == "mask_gan":
        count = len(batch["mask"])
        return {"z": layers.draw_latent_noise(count, model.config.z, step).numpy()}
    if name == "blending":
        lesions = batch["image"][batch["label"] == 1]
        return {"draws": model._draws(lesions, step).numpy()}
    if name != "contextual":
        return {}

    def uniform(shape: list[int], use: int) -> np.ndarray:
        return tf.random.stateless_uniform(shape, layers.step_seed(step, use)).numpy()

    real, source = (
        int(np.sum(batch["label"] == contextual.PATHOLOGIES.index(name)))
        for name in model.config.roles()
    )
    uses = [contextual.DISCRIMINATOR_NOISE]
    uses += [contextual.GENERATOR_NOISE + update for update in range(model.generator_updates)]
    return {
        # for D, for each of G's updates
        "noise": np.stack([uniform([source, model.generator.blocks], use) * 2 - 1 for use in uses]),
        "alpha": uniform([real], contextual.PENALTY_ALPHA),
        "uniform": uniform([real, model.size, model.size, 1], contextual.PENALTY_DIRECTION),
    }


def profile(step: Callable[[], Any], folder: Path, steps: int = 3) -> dict[str, float]:
    """Trace some steps for TensorBoard or xprof.

    Returns:
        The seconds of a step that each kind of kernel takes, the longest first. Kernels of two
        kinds may run at once, so their sum can be more than the step.
    """
    with tf.profiler.experimental.Profile(str(folder)):
        for _ in range(steps):
            step()
    space = xplane_pb2.XSpace()
    seconds = collections.Counter[str]()
    space.ParseFromString(next(folder.rglob("*.xplane.pb")).read_bytes())
    for plane in space.planes:
        names = {number: metadata.name for number, metadata in plane.event_metadata.items()}
        for event in (event for line in plane.lines for event in line.events):
            operation, _, kind = names[event.metadata_id].rpartition(":")
            if (
                operation
                and "::" not in names[event.metadata_id]
                and " " not in names[event.metadata_id]
            ):
                seconds[kind.removeprefix("_MklNative").removeprefix("_Mkl")] += (
                    event.duration_ps / 1e12 / steps
                )
    return {kind: round(duration, 4) for kind, duration in seconds.most_common(12)}


def measure_gemm_flops(precision: str, side: int, times: int = 10) -> float:
    """Measure the FLOPs a second of TensorFlow's product of square matrices, at best."""
    matrix = tf.random.normal(
        (side, side), dtype=tf.bfloat16 if precision == "bfloat16" else tf.float32
    )
    # one number of it, because a GPU's product would take longer to fetch than to compute
    product = tf.function(lambda: tf.matmul(matrix, matrix)[0, 0])
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        product().numpy()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
