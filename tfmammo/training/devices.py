"""The devices that a training runs on, and its precision."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmammo.config import TrainingConfig
from tfmammo.errors import ConfigError, TrainingError
from tfmammo.training import workers

log = logging.getLogger(__name__)
BFLOAT16_SINCE = (8, 0)  # compute capability of the first GPUs with bfloat16 in their matrix units


def choose_strategy(config: TrainingConfig, classes: int = 1) -> tf.distribute.Strategy:
    """Choose how devices share a training run: `training.devices`, else all GPUs, else the CPU.

    With `training.strategy=multi_worker` they are those of all workers. If `training.devices` is
    not set and the GPUs can't share the batch, one of them computes it; each takes as many patches
    of each of the balanced `classes`. The number of devices changes no statistic that a network
    takes of a batch, see `normalization.compute_batch_moments`. A device that is not there is a
    ConfigError.
    """
    if config.strategy == "multi_worker":
        return workers.join()
    names = _select(config.devices)
    divisor = len(names) * classes
    if config.devices is None and len(names) > 1 and config.batch_size % divisor:
        log.warning(
            "training.batch_size: %d can't be shared by %d GPUs, so %s alone trains; a multiple "
            "of %d takes all, training.devices chooses",
            config.batch_size,
            len(names),
            names[0],
            divisor,
        )
        names = names[:1]
    if len(names) > 1:
        return tf.distribute.MirroredStrategy([f"/{name}" for name in names])
    if names == _list_fastest()[:1]:
        return tf.distribute.get_strategy()
    return tf.distribute.OneDeviceStrategy(f"/{names[0]}")


def _list_fastest() -> list[str]:
    """List this machine's GPUs ("GPU:0", "GPU:1", ...), or without one its CPU ("CPU:0")."""
    gpus = tf.config.list_logical_devices("GPU")
    return [
        device.name.removeprefix("/device:")
        for device in gpus or tf.config.list_logical_devices("CPU")
    ]


def _select(wanted: int | Sequence[str] | None) -> list[str]:
    present = _list_fastest()
    if wanted is None:
        return present if present[0].startswith("GPU") else present[:1]
    if isinstance(wanted, int):
        if wanted > len(present):
            raise ConfigError(
                f"training.devices: {wanted} are wanted, there are {len(present)}: "
                f"{', '.join(present)}"
            )
        return present[:wanted]
    names = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"training.devices: there is no {name}; there are {', '.join(names)}")
    return list(wanted)


def check_batch(config: TrainingConfig, replicas: int, classes: int = 1) -> None:
    """Check that devices and classes can share a batch equally; else a TrainingError."""
    if config.batch_size % replicas:
        raise TrainingError(
            f"training.batch_size: {config.batch_size} can't be shared equally by {replicas} "
            f"devices; take a multiple of {replicas}, or fewer training.devices"
        )
    if config.batch_size // replicas % classes:
        share = f"{config.batch_size // replicas} patches a device"
        raise TrainingError(
            f"training.batch_size: {share} can't be shared equally by {classes} classes"
        )


def describe_hardware() -> str:
    """Describe this machine, and the GPUs that TensorFlow sees: "Linux x86_64, one GPU"."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    devices = f"{gpus} GPUs" if gpus > 1 else ("one GPU" if gpus else "CPU alone")
    return f"{platform.system()} {platform.machine()}, {devices}"


def choose_precision(config: TrainingConfig, gpus: Sequence[Any]) -> str:
    """Choose the Keras dtype policy for `training.precision`.

    "auto" takes what the devices compute fastest without harm to the results. The machine's `gpus`
    don't count if `training.devices` names CPUs alone.
    """
    if config.precision != "auto":
        return config.precision
    on_cpus = isinstance(config.devices, tuple) and all(
        name.startswith("CPU") for name in config.devices
    )
    if gpus and not on_cpus:
        return "mixed_bfloat16" if all(gpu_has_bfloat16(gpu) for gpu in gpus) else "mixed_float16"
    return "mixed_bfloat16" if cpu_multiplies_bfloat16_faster() else "float32"


def gpu_has_bfloat16(gpu: Any) -> bool:
    """Return whether a GPU is known to multiply bfloat16 in its matrix units."""
    capability = tf.config.experimental.get_device_details(gpu).get("compute_capability")
    return capability is not None and tuple(capability) >= BFLOAT16_SINCE


def cpu_multiplies_bfloat16_faster() -> bool:
    """Return whether this CPU multiplies matrices faster in bfloat16 than in float32.

    Those with matrix units (AMX) do, and AMD's with AVX512-BF16 (since Zen 4). Intel's with
    AVX512-BF16 alone are slower in bfloat16. False if the system does not say.
    """
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "amx_bf16" in words or ("AuthenticAMD" in words and "avx512_bf16" in words)
