"""Our rooms for benchmarks/step.py, as they are or of Keras's own parts alone, and what
the other side needs to make the same steps.

TensorFlow and torch.compile don't bear each other in one process, so all of that stands in files in
a folder:
weights.npz   "NETWORK/i": network's trainable variables in their order; "NETWORK/state/i": the
              others; "trunk/i": of a frozen network
config.json   of the room
draws.npz     "NAME/step": what the room draws by itself in its first two steps, as the peer takes
              it in its batch
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmammo import _tensorflow  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import keras
import numpy as np
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfmammo import convolutions, layers

CHECKED = 2  # steps whose losses are compared


def answers(
    model: str,
    values: dict[str, Any],
    size: int,
    batch: dict[str, np.ndarray],
    precision: str,
    folder: Path,
    naive: bool,
) -> dict[str, Callable[[], Any]]:
    """What the parent asks for. naive: `plain`, from the folder's weights; else what the other side
    needs is left there, once.
    """
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    room = room_of(model, values, size)
    given = {name: tf.constant(value) for name, value in batch.items()}
    if naive:
        take(room, folder)
        plain(room)
    elif not (folder / "weights.npz").exists():
        leave(room, folder)
        drawn = {
            f"{name}/{step}": value
            for step in range(CHECKED)
            for name, value in draws(model, room, given, step).items()
        }
        np.savez(folder / "draws.npz", **drawn)  # type: ignore[arg-type]  # its stubs know of no other keyword
    step = tf.function(room.train_step)

    def losses() -> dict[str, float]:
        found = step(given)
        return {f"{name}_loss": float(found[f"{name}_loss"]) for name in room.optimizers}

    traced = functools.partial(profile, losses, folder / "trace")
    return {
        "losses": losses,
        "gemm": lambda: gemm_flops(precision),
        "flops": lambda: None,
        "profile": traced,
    }


def room_of(model: str, values: dict[str, Any], size: int) -> Any:
    """A room by its name; the others are not imported, so that the time to the first step is its
    own.
    """
    if model == "can":
        from tfmammo.models.can import CAN, CANConfig

        return CAN(CANConfig(**values), size)
    if model == "infilling":
        from tfmammo.models.infilling import Infilling, InfillingConfig

        return Infilling(InfillingConfig(**values), size)
    if model == "contextual":
        from tfmammo.models.contextual import Contextual, ContextualConfig

        return Contextual(ContextualConfig(**values), size)
    from tfmammo.models.cgan import CGAN, CGANConfig

    return CGAN(CGANConfig(**values), size)


def stored(room: Any) -> dict[str, list[Any]]:
    """A room's variables but for the state of dropout's random numbers, as weights.npz
    names them.
    """
    found: dict[str, list[Any]] = {}
    for name, network in room.networks.items():
        found |= {name: network.trainable_weights, f"{name}/state": network.non_trainable_weights}
    return found | ({"trunk": room.trunk.weights} if hasattr(room, "trunk") else {})


def leave(room: Any, folder: Path) -> None:
    """Write weights.npz and config.json."""
    kept = {
        f"{name}/{i}": variable.numpy()
        for name, variables in stored(room).items()
        for i, variable in enumerate(variables)
    }
    np.savez(folder / "weights.npz", **kept)
    (folder / "config.json").write_text(room.config.model_dump_json(), encoding="utf-8")


def take(room: Any, folder: Path) -> None:
    """Read weights.npz."""
    with np.load(folder / "weights.npz") as known:
        for name, variables in stored(room).items():
            for i, variable in enumerate(variables):
                variable.assign(known[f"{name}/{i}"])


def plain(room: Any) -> None:
    """What users of Keras have: its own layers, its own Adam, with our numbers, and a pass back for
    each network's loss.
    """
    convolutions._is_usual = lambda layer: False
    layers.BatchNormalization.call = keras.layers.BatchNormalization.call
    numbers = {
        key: value
        for key, value in room.config.model_dump().items()
        if key in ("learning_rate", "beta_1", "beta_2", "epsilon")
    }
    room.optimizers = {
        name: keras.optimizers.Adam(**{"epsilon": 1e-7, **numbers}) for name in room.optimizers
    }
    for name, optimizer in room.optimizers.items():
        optimizer.build(room.networks[name].trainable_variables)
    if hasattr(room, "shares_gradients"):
        room.shares_gradients = False


def draws(model: str, room: Any, batch: dict[str, tf.Tensor], step: int) -> dict[str, np.ndarray]:
    """What a room draws by itself in one step, but for dropout, which is switched off."""
    if model == "infilling":  # what fills the lesions
        return {
            "noise": layers.uniform_noise(
                layers.patch_seeds(batch["image"], step), room.size
            ).numpy()
        }
    if model != "contextual":
        return {}
    from tfmammo.models.contextual import PATHOLOGIES

    def uniform(shape: list[int], use: int) -> np.ndarray:
        return tf.random.stateless_uniform(shape, layers.step_seed(step, use)).numpy()

    real, source = (
        int(np.sum(batch["label"] == PATHOLOGIES.index(name))) for name in room.config.roles()
    )
    uses = [0, *(3 + update for update in range(room.generator_updates))]
    return {
        # for D, for each of G's updates
        "noise": np.stack([uniform([source, room.generator.blocks], use) * 2 - 1 for use in uses]),
        "alpha": uniform([real], 1),
        "uniform": uniform([real, room.size, room.size, 1], 2),
    }


def profile(step: Callable[[], Any], folder: Path, steps: int = 3) -> dict[str, float]:
    """A trace of some steps for TensorBoard or xprof; the seconds of a step that kernels of each
    kind take, the longest first.

    Kernels of two kinds may run at once, so that their sum can be more than the step.
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
    return {kind: round(taken, 4) for kind, taken in seconds.most_common(12)}


def gemm_flops(precision: str, side: int = 2048, times: int = 10) -> float:
    """FLOPs a second of TensorFlow's product of square matrices, the best of so many."""
    matrix = tf.random.normal(
        (side, side), dtype=tf.bfloat16 if precision == "bfloat16" else tf.float32
    )
    product = tf.function(lambda: tf.matmul(matrix, matrix))
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        product().numpy()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
