"""Time our training step beside a peer's, by default at the paper's size, batch and widths.

python benchmarks/step.py --model NAME --peer torch [--precision float32|bfloat16]
[--device cpu|gpu] [--rounds 5] [--seconds 3]

Models: can, infilling, contextual, cgan, blending, mask_gan, flow, classifier, unet, segnet, fcn8s,
light_head (Light-Head R-CNN with random weights; a square image of about the paper's area).

Peers: torch, PyTorch as its users run it; torch-best, PyTorch as fast as it goes. With torch-best a
sweep comes first: each side takes the allocator with which its steps are shortest, PyTorch without
further options. With that allocator PyTorch then takes none of fused Adam, channels_last and
torch.compile, one, or all three, whichever is shortest. Each side runs in a process of its own.
They take turns, A B A B, and never run at once. Other load on the machine meets both, if not
equally: busily waiting threads such as PyTorch's suffer more. First both take two steps from equal
weights on equal patches, with equal random numbers and no dropout, and their losses must agree.

With --device gpu both sides take the first GPU, and float32 there means TF32 in products, which
TensorFlow takes by itself; allocators of the host are not tried, and memory is the GPU's.

One JSON line: chosen and sweep, seconds of a step by side and choice; seconds and peer_seconds,
medians of a step; ratio, the median of the rounds' peer_seconds / seconds; gflop of a step (counted
in PyTorch's); gemm_gflops, measured here by TensorFlow in the same precision; share, the part of
that which our step reaches (model FLOPs utilisation, MFU); the time from the start to the end of
the first step, s; peak memory, MB; with --trace, seconds of our step that each kind of kernel
takes.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from allocators import list_available, make_environment
from cases import MODELS, add_model_arguments, make_batch, parse
from processes import MeasuredProcess, load_arrays, peak_megabytes, serve

CLEARLY_SLOWER = 1.25  # a side's first steps, than the best of the others
LONG = 2.0  # s: two such steps differ by little
# Relative differences of the losses of the first and the second step. Adam's first update moves
# each weight by the learning rate, whatever its gradient's size: noise decides where it is small.
AGREE = {"float32": (2e-4, 5e-3), "bfloat16": (5e-2, 5e-2)}
# A detector's second stage learns from regions that the last digits of the first stage choose. With
# equal regions its losses agree to 2e-5. The gradients of its 101 random layers are another matter:
# noise of 1e-3 in the image turns them to a right angle. So the second step's losses, which follow
# from the gradients, take one of two values in either library, by the kernels that oneDNN takes.
CHOOSE = {
    ("light_head", "float32"): (2e-2, math.inf),
    ("light_head", "bfloat16"): (5e-2, math.inf),
}


# what makes PyTorch faster; each alone, then together
FASTER = ("fused", "channels_last", "compile")
CHOICES = ("", *FASTER, ",".join(FASTER))


class Side(NamedTuple):
    """How one of the two processes runs.

    Attributes:
        role: "ours" or "torch".
        allocator: Of allocators.py.
        faster: Of FASTER, joined by commas.
    """

    role: str
    allocator: str = "default"
    faster: str = ""


def main() -> None:
    """Print the JSON line; with --as, be one of the two processes that take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--peer", choices=("torch", "torch-best"), default="torch")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of a side's steps in a round, about (3)"
    )
    parser.add_argument(
        "--trace",
        type=Path,
        help="keep a trace of three of our steps in this folder, and say what kernels take",
    )
    parser.add_argument(
        "--as",
        dest="role",
        choices=("ours", "torch"),
        help=argparse.SUPPRESS,
    )
    parser.add_argument("--faster", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--equal", action="store_true", help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.role:
        work(arguments)
    else:
        print(json.dumps(compare(arguments)))


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check both processes against each other, then time them; return the JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        sides, sweep = (Side("ours"), Side("torch")), {}
        difference = check_losses(sides, arguments, Path(folder))
        if arguments.peer == "torch-best":
            sides, sweep = find_sides(arguments, Path(folder))
            difference = max(difference, check_losses(sides, arguments, Path(folder)))
        # one after the other, so that neither waits for the other's start
        ours, our_start = start_and_step(sides[0], arguments, Path(folder))
        peer, peer_start = start_and_step(sides[1], arguments, Path(folder))
        steps = max(1, math.ceil(arguments.seconds / max(ours.ask(1), peer.ask(1))))
        rounds = [(ours.ask(steps), peer.ask(steps)) for _ in range(arguments.rounds)]
        gemm = ours.ask("gemm")
        memory = [side.ask("memory") for side in (ours, peer)]
        flops = peer.ask("flops")
        operations = keep_trace(ours, Path(folder), arguments.trace) if arguments.trace else {}
        for side in (ours, peer):
            side.close()
    seconds, peer_seconds = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "benchmark": f"step.{arguments.model}",
        "peer": arguments.peer,
        "device": arguments.device,
        "precision": arguments.precision,
        "size": arguments.size,
        "batch": arguments.batch,
        "config": arguments.config,
        **sweep,
        "seconds": round(seconds, 4),
        "peer_seconds": round(peer_seconds, 4),
        "ratio": round(statistics.median(b / a for a, b in rounds), 3),
        "rounds": [[round(a, 4), round(b, 4)] for a, b in rounds],
        "losses_apart": float(f"{difference:.2g}"),
        "gflop": float(f"{flops / 1e9:.4g}"),
        "gemm_gflops": round(gemm / 1e9, 1),
        "share": round(flops / seconds / gemm, 3),
        "first_step_seconds": [round(our_start, 1), round(peer_start, 1)],
        "peak_mb": [round(megabytes) for megabytes in memory],
        **operations,
    }


def keep_trace(ours: MeasuredProcess, folder: Path, target: Path) -> dict[str, Any]:
    """Trace our steps into `target`; return the seconds of each kind of kernel."""
    kernels = ours.ask("profile")
    shutil.copytree(folder / "trace", target, dirs_exist_ok=True)
    return {"kernels": kernels}


def find_sides(
    arguments: argparse.Namespace, folder: Path
) -> tuple[tuple[Side, Side], dict[str, Any]]:
    """Find by a sweep how both sides run, each as fast as it goes.

    Returns:
        Ours and the peer's, and the sweep for the JSON line.
    """
    seconds: dict[Side, float] = {}
    best = {}
    allocators = ["default"] if arguments.device == "gpu" else list_available()
    for role in ("ours", "torch"):
        with_allocators = [Side(role, allocator) for allocator in allocators]
        best[role] = choose_fastest(with_allocators, seconds, arguments, folder)
    choices = [best["torch"]._replace(faster=faster) for faster in CHOICES]
    best["torch"] = choose_fastest(choices, seconds, arguments, folder)
    names = {side: " ".join(filter(None, side)) for side in seconds}
    sweep = {
        "chosen": [names[side] for side in best.values()],
        "sweep": {names[side]: round(value, 4) for side, value in seconds.items()},
    }
    return (best["ours"], best["torch"]), sweep


def choose_fastest(
    sides: Iterable[Side],
    seconds: dict[Side, float],
    arguments: argparse.Namespace,
    folder: Path,
) -> Side:
    """Measure steps of each side that has no time yet, and return the fastest side.

    A side takes no further steps if its first two are long, or much longer than the best of others.

    Args:
        sides: What to choose from.
        seconds: The shortest step, or mean of two, of each side; measured ones are added.
        arguments: Of the command.
        folder: Of the files; see models.py.
    """
    sides = list(sides)
    for side in sides:
        if side not in seconds:
            process = start_side(side, arguments, folder)
            process.ask("losses")
            best = min((seconds[other] for other in sides if other in seconds), default=math.inf)
            seconds[side] = min(process.ask(1), process.ask(1))
            if seconds[side] < min(CLEARLY_SLOWER * best, LONG):
                seconds[side] = min(seconds[side], process.ask(2))
            process.close()
    return min(sides, key=lambda side: seconds[side])


def check_losses(sides: Iterable[Side], arguments: argparse.Namespace, folder: Path) -> float:
    """Compare the losses of two steps from equal weights, and exit if they differ too much.

    Returns:
        The largest relative difference in the first step; losses below 0.1 count as 0.1.
    """
    both = [start_side(side, arguments, folder, equal=True) for side in sides]
    ours, theirs = ([side.ask("losses"), side.ask("losses")] for side in both)
    for side in both:
        side.close()
    differences = [measure_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    precision = arguments.precision
    limits = CHOOSE.get((arguments.model, precision), AGREE[precision])
    if not all(apart <= limit for apart, limit in zip(differences, limits, strict=True)):
        raise SystemExit(
            f"the losses of two steps differ by {differences}, more than {limits}: "
            f"{ours} and {theirs}"
        )
    return differences[0]


def measure_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Measure the largest relative difference of our losses; those below 0.1 count as 0.1."""
    return max(abs(ours[name] - theirs[name]) / max(abs(ours[name]), 0.1) for name in ours)


def start_side(
    side: Side, arguments: argparse.Namespace, folder: Path, equal: bool = False
) -> MeasuredProcess:
    """Start one of the two processes, and wait until it is ready.

    Args:
        side: How it runs.
        arguments: Of the command.
        folder: Of the files; see models.py.
        equal: Whether its losses are compared, so that it has no dropout.
    """
    options = [
        "--model",
        arguments.model,
        "--device",
        arguments.device,
        "--precision",
        arguments.precision,
        "--size",
        arguments.size,
        "--batch",
        arguments.batch,
    ]
    options += ["--config", json.dumps(arguments.config), *(["--equal"] if equal else [])]
    process = MeasuredProcess(
        __file__,
        *("--as", side.role, f"--faster={side.faster}", "--folder", folder, *options),
        environment=make_environment(side.allocator),
    )
    process.ask("ready")
    return process


def start_and_step(
    side: Side, arguments: argparse.Namespace, folder: Path
) -> tuple[MeasuredProcess, float]:
    """Start a process and take its first step; return it, and the seconds since it started."""
    process = start_side(side, arguments, folder)
    process.ask("losses")
    return process, time.perf_counter() - process.start


def work(arguments: argparse.Namespace) -> None:
    """Answer the parent as one of the two processes."""
    make = {"ours": make_ours, "torch": make_torch}[arguments.role]
    serve(lambda: functools.partial(answer, make(arguments)))


def answer(answers: dict[str, Callable[[], Any]], question: str | int) -> Any:
    """Answer the parent.

    Args:
        answers: By question.
        question: A key of `answers`; "memory", for the peak in MB, by default the process's; or a
            number of steps, for their mean seconds.
    """
    if question == "memory" and question not in answers:
        return peak_megabytes()
    if isinstance(question, str):
        return answers[question]()
    start = time.perf_counter()
    for _ in range(question):
        answers["losses"]()
    return (time.perf_counter() - start) / question


def make_ours(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Build our model; return its answers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import models

    return models.make_answers(
        arguments.model,
        {**MODELS[arguments.model].config, **arguments.config},
        arguments.size,
        make_batch(arguments),
        arguments.precision,
        arguments.folder,
        arguments.device,
        equal=arguments.equal,
    )


def make_torch(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Build the model in PyTorch; its answers use our random numbers if losses are compared."""
    memory = choose_torch_device(arguments.device)
    model = build_peer(arguments)
    batch = to_tensors(arguments, make_batch(arguments))
    draws = load_arrays(arguments.folder / "draws.npz") if arguments.equal else {}
    steps = iter(
        [
            to_tensors(arguments, dict(zip(draws, values, strict=True)))
            for values in zip(*draws.values(), strict=True)
        ]
    )
    return {
        "losses": lambda: model.train_step(batch | next(steps, {})),
        "flops": lambda: count_flops(lambda: model.train_step(batch)),
        **memory,
    }


def choose_torch_device(device: str) -> dict[str, Callable[[], float]]:
    """Have PyTorch make what follows on a device; return what answers for a GPU's memory.

    Raises:
        SystemExit: PyTorch has no GPU.
    """
    if device == "cpu":
        return {}
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("--device gpu: PyTorch finds no GPU")
    torch.set_default_device("cuda")
    torch.set_float32_matmul_precision("high")  # TF32, as TensorFlow's
    return {"memory": lambda: torch.cuda.max_memory_allocated() / 1e6}


def build_peer(arguments: argparse.Namespace) -> Any:
    """Build the model in PyTorch with our first weights, and with what of FASTER is asked for."""
    import torch
    from peers import layers

    torch.manual_seed(0)
    faster = arguments.faster.split(",")
    config = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))
    build = find_peer(arguments.model)
    model = build(config, arguments.size, "fused" in faster, arguments.precision)
    model.load(load_arrays(arguments.folder / "weights.npz"))
    for optimizer in model.optimizers.values():
        layers.epsilon_as_ours(optimizer)
    for network in model.networks.values():
        for module in network.modules():
            if arguments.equal and isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if "channels_last" in faster:
            network.to(memory_format=torch.channels_last)
        if "compile" in faster:
            network.compile(dynamic=False)  # contextual's D meets batches of two sizes
    return model


def find_peer(model: str) -> Callable[..., Any]:
    """Find what builds a model in PyTorch: (config, size, whether Adam is fused, precision).

    torchvision is imported where it is used alone, so that the time to the first step of the others
    is their own.
    """
    if model == "classifier":
        from peers import classifier

        return classifier.Model
    if model == "light_head":
        from peers import light_head

        return light_head.Model
    from peers import blending, can, cgan, contextual, flow, infilling, mask_gan, segmenters

    return {
        "can": can.Model,
        "infilling": infilling.Model,
        "contextual": contextual.Model,
        "cgan": cgan.Model,
        "blending": blending.Model,
        "mask_gan": mask_gan.Model,
        "flow": flow.Model,
        "unet": segmenters.make_unet,
        "segnet": segmenters.make_segnet,
        "fcn8s": segmenters.make_fcn8s,
    }[model]


def to_tensors(arguments: argparse.Namespace, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Convert arrays to PyTorch's tensors, maps to [batch, channels, rows, cols]."""
    import torch

    is_last = "channels_last" in arguments.faster.split(",")
    order = torch.channels_last if is_last else torch.contiguous_format
    tensors = {}
    for name, value in values.items():
        tensor = torch.from_numpy(value).to(torch.get_default_device())
        if tensor.ndim == 4:
            tensor = tensor.permute(0, 3, 1, 2).contiguous(memory_format=order)
        tensors[name] = tensor
    return tensors


def count_flops(step: Callable[[], Any]) -> float:
    """Count the FLOPs of a step by PyTorch's formulas.

    PyTorch's own FlopCounterMode also follows modules, and fails at a gradient's gradient.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        total = 0.0

        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = operation(*args, **(kwargs or {}))
            if formula := flop_registry.get(operation._overloadpacket):
                self.total += formula(*args, **(kwargs or {}), out_val=result)
            return result

    with torch.compiler.set_stance("force_eager"), Counter() as counter:
        step()
    return counter.total


if __name__ == "__main__":
    main()
