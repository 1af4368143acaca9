"""Count what a training step does, without running it: work, memory, and where it can run.

python benchmarks/counts.py [can unet ...] [--write]

A step of each model is traced for a GPU, in a small size. One line a model: operations, GFLOP of
convolutions and matrix products, MB of the step's tensors, and the types of operations that no GPU
or no XLA can run, or that are placed on the CPU. --write stores the numbers in counts.json; a test
compares them. Unlike times, they do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models import build_model  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import keras
from tensorflow.python.framework import kernels

from tfmammo.nn.memory import CALLS, compute_peak, find_body, list_needed, trace_step

REFERENCE = Path(__file__).with_name("counts.json")
SIZE = 64
BATCH = 2
BATCHES = {"contextual": 3}  # others, whose patches are of so many labels
_UNET: dict[str, Any] = {"filters": (8, 16, 32, 32), "discriminator_filters": 8}
_NOISE: dict[str, Any] = {"filters": (32, 16, 8, 8), "discriminator_filters": (8, 8, 16, 32)}
# name of a model: its config, where that is not the default
MODELS: dict[str, dict[str, Any]] = {
    "can": _UNET,
    "pix2pix": _UNET,
    "unet": {"widths": (8, 16, 32)},
    "segnet": {"widths": (8, 16, 32, 32, 32)},
    "fcn8s": {"widths": (8, 16, 32, 32, 32), "fc_width": 64},
    "residual_unet": {"widths": (8, 16, 32), "blocks": (1, 1, 1)},
    "infilling": _UNET | {"weights": "none"},
    "flow": {"widths": (16, 32, 32)},
    "mask_gan": _NOISE,
    "blending": {"widths": (8, 16), "discriminator_filters": 8},
    "vanilla_gan": _NOISE,
    "contextual": {
        "filters": (8, 16, 16, 16),
        "discriminator_factor": 2,
        "attention": 16,
        "start": 32,
    },
    "classifier": {"weights": "none", "filters": 8},
    "cgan": _UNET,
    "shape": {"filters": (8, 16, 32), "units": 16},
}


def main() -> None:
    """Print a line for each model, or store all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(MODELS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(MODELS)}")
    counts = {}
    for name in options.models:
        counts[name] = count(name)
        print(json.dumps({"model": name} | counts[name]), flush=True)
    if options.write:
        known = json.loads(REFERENCE.read_text("utf-8")) if REFERENCE.is_file() else {}
        REFERENCE.write_text(f"{json.dumps(known | counts, indent=1)}\n", encoding="utf-8")


def count(name: str) -> dict[str, Any]:
    """Trace the step of a model, and count."""
    keras.utils.clear_session()
    model = build_model(name, MODELS[name], SIZE)
    return count_graph(trace_step(model, BATCHES.get(name, BATCH), SIZE))


def count_graph(graph: Any) -> dict[str, Any]:
    """Count the operations of a graph, those of called functions included.

    Args:
        graph: A tf.Graph.

    Returns:
        operations, gflop, step_mb, without_gpu, without_xla, on_cpu; the last three are types of
        operations.
    """
    operations = list(walk(graph))
    types = {operation.type for operation in operations}
    return {
        "operations": len(operations),
        "gflop": round(sum(map(count_flops, operations)) / 1e9, 4),
        "step_mb": round(compute_peak(graph) / 1e6, 2),
        "without_gpu": sorted(each for each in types if not has_kernel(each, "GPU")),
        "without_xla": sorted(each for each in types if not has_kernel(each, "XLA_GPU_JIT")),
        "on_cpu": sorted({each.type for each in operations if "CPU" in each.device}),
    }


def walk(graph: Any) -> Iterator[Any]:
    """Go through all operations that run, also those of called functions."""
    for operation in list_needed(graph):
        if operation.type in CALLS:
            yield from walk(find_body(operation, graph))
        else:
            yield operation


def count_flops(operation: Any) -> int:
    """Count the floating point operations of a convolution or matrix product; 0 for all others.

    A multiplication and an addition are two.

    Raises:
        ValueError: A shape is not known before the step runs.
    """
    if operation.type in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        return 2 * _count_products(operation)
    if operation.type in ("MatMul", "BatchMatMulV2"):
        transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
        inner = operation.inputs[0].shape[-2 if transposed else -1]
        return 2 * _multiply(operation.outputs[0].shape) * int(inner)
    return 0


def _count_products(convolution: Any) -> int:
    """Count the pixels of the convolution's output, times what each of its channels reads."""
    if convolution.type == "Conv2D":
        pixels, kernel = convolution.outputs[0].shape, convolution.inputs[1].shape
    elif convolution.type == "Conv2DBackpropInput":
        pixels, kernel = convolution.inputs[2].shape, convolution.inputs[1].shape
    else:
        pixels, kernel = convolution.inputs[2].shape, convolution.outputs[0].shape
    return _multiply(pixels) * _multiply(kernel[:3])


def _multiply(shape: Any) -> int:
    if not shape.is_fully_defined():
        raise ValueError(f"{shape} is not known before the step runs")
    return int(shape.num_elements())


def has_kernel(operation_type: str, device: str) -> bool:
    """Return whether TensorFlow has a kernel of an operation for a device.

    Inputs and outputs of functions, and what only orders others, need none.
    """
    if operation_type in ("Placeholder", "NoOp", "Const"):
        return True
    found = kernels.get_registered_kernels_for_op(operation_type).kernel
    return any(kernel.device_type in (device, "DEFAULT") for kernel in found)


if __name__ == "__main__":
    main()
