"""How much memory a training step needs, computed from the shapes of its tensors.

Nothing runs: the step is traced, and its graph is walked once. Weights and the optimizers' slots
stay; every other tensor lives from the operation that makes it to the last one that reads it. The
largest sum of those that live at once is what the step adds.

What shapes do not tell is omitted: the memory of drivers and libraries, scratch space of
convolutions, and gaps between tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import tensorflow as tf

# Outputs that are the input's memory, not a copy of it.
ALIASES = {"ExpandDims", "Identity", "IdentityN", "PreventGradient"}
ALIASES |= {"ReadVariableOp", "Reshape", "Squeeze", "StopGradient"}
# Operations that write over an input that nothing else reads, where it has the output's size.
ACTIVATIONS = ("LeakyRelu", "Relu", "Sigmoid", "Tanh")
IN_PLACE = {"AddN", "AddV2", "BiasAdd", "Mul", "Neg", "RealDiv", "Sub"}
IN_PLACE |= {*ACTIVATIONS, *(f"{name}Grad" for name in ACTIVATIONS)}
CALLS = frozenset(("PartitionedCall", "StatefulPartitionedCall"))


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes."""

    weights: int
    """Of all networks."""
    slots: int
    """Of all optimizers: Adam's two moments of each weight."""
    step: int
    """The most that the tensors of a step take at once, gradients included."""

    @property
    def total(self) -> int:
        """Bytes of everything together."""
        return self.weights + self.slots + self.step


def estimate_memory(model: Any, batch_size: int, size: int, device: str = "GPU") -> Memory:
    """Compute how much memory training a model takes, under the current precision policy.

    Args:
        model: `CAN(CANConfig(), 256)`, say. It stays as it is.
        batch_size: Patches of a step.
        size: Rows and columns of a patch, px.
        device: "GPU" or "CPU", whose operations the step is to have; a GPU need not be there.
    """
    weights, slots = (
        sum(
            int(np.prod(each.shape)) * tf.as_dtype(each.dtype).size
            for owner in owners.values()
            for each in owner.variables
        )
        for owners in (model.networks, model.optimizers)
    )
    return Memory(weights, slots, compute_peak(trace_step(model, batch_size, size, device)))


def trace_step(model: Any, batch_size: int, size: int, device: str = "GPU") -> Any:
    """Trace a training step to its tf.Graph; see `estimate_memory`."""
    shape = (batch_size, size, size, 1)
    batch = {
        "image": tf.TensorSpec(shape, tf.float32),
        "mask": tf.TensorSpec(shape, tf.float32),
        "label": tf.TensorSpec((batch_size,), tf.int32),
    }
    with tf.device(f"/{device}:0"):
        return tf.function(model.train_step).get_concrete_function(batch).graph


def list_needed(graph: Any) -> list[Any]:
    """List the operations of a graph that run: TensorFlow skips what no output and no state needs.

    Functions that they call are one operation each; `find_body` gives those of one.
    """
    operations = graph.get_operations()
    waiting = [tensor.op for tensor in graph.outputs]
    waiting += [operation for operation in operations if operation.op_def.is_stateful]
    needed = set()
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return [operation for operation in operations if operation in needed]


def find_body(operation: Any, graph: Any) -> Any:
    """Return the graph of the function that an operation of a type in CALLS calls."""
    name = operation.get_attr("f").name
    return graph._get_function(name).graph


def compute_peak(graph: Any) -> int:
    """Compute the most bytes that a graph's tensors take at once.

    Operations run in the order in which they become ready, as TensorFlow starts them. So a gradient
    is gone as soon as its weights are updated. The graph's inputs, its constants and the variables
    that it reads are not counted. Functions are counted where they are called. A ValueError names a
    tensor whose size is not known before it runs.
    """
    operations = _order(list_needed(graph))
    owners = _find_owners(operations)
    readers = Counter(
        owners[tensor.ref()]
        for operation in operations
        for tensor in operation.inputs
        if owners[tensor.ref()] is not None
    )
    # what the graph returns is read by its caller
    readers.update(owner for tensor in graph.outputs if (owner := owners[tensor.ref()]) is not None)
    sizes: dict[Any, int] = {}
    live = peak = 0
    for operation in operations:
        inputs = [owners[tensor.ref()] for tensor in operation.inputs]
        made = [tensor for tensor in operation.outputs if owners[tensor.ref()] == tensor.ref()]
        for tensor in made:
            sizes[tensor.ref()] = _count_bytes(tensor)
        added = sum(sizes[tensor.ref()] for tensor in made)
        reused = 0
        if operation.type in IN_PLACE:
            reused = max(
                (sizes[owner] for owner in inputs if owner in sizes and readers[owner] == 1),
                default=0,
            )
        within = compute_peak(find_body(operation, graph)) if operation.type in CALLS else 0
        live += added - (added if 0 < added <= reused else 0)
        peak = max(peak, live + within)
        freed = 0
        for owner in filter(None, inputs):
            readers[owner] -= 1
            if readers[owner] == 0:
                freed += sizes.get(owner, 0)
        live -= freed - (added if 0 < added <= reused else 0)
        live -= sum(sizes[tensor.ref()] for tensor in made if not readers[tensor.ref()])
    return peak


def _order(operations: Sequence[Any]) -> list[Any]:
    """Order operations by when all that they need has run; of several, the first one first."""
    needs = {
        operation: {tensor.op for tensor in operation.inputs} | {*operation.control_inputs}
        for operation in operations
    }
    return list(TopologicalSorter(needs).static_order())


def _find_owners(operations: Iterable[Any]) -> dict[Any, Any]:
    """Find the tensor whose memory each tensor uses; None for what is there before the step."""
    owners: dict[Any, Any] = {}
    for operation in operations:
        for number, tensor in enumerate(operation.outputs):
            if operation.type in ("Placeholder", "Const", "ReadVariableOp"):
                owners[tensor.ref()] = None
            elif operation.type in ALIASES:
                owners[tensor.ref()] = owners[operation.inputs[number].ref()]
            else:
                owners[tensor.ref()] = tensor.ref()
    return owners


def _count_bytes(tensor: Any) -> int:
    if tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    if tensor.op.type == "FusedBatchNormV3" and tensor.value_index == 5:
        return 0  # what cuDNN keeps for the gradient: no shape tells
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"{tensor.name}: its size {tensor.shape} is not known before it runs")
    return int(tensor.shape.num_elements() * tensor.dtype.size)
