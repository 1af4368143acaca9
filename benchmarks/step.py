"""A training step of ours beside the same step by somebody else's means, by default at the
paper's size, batch and widths.

python benchmarks/step.py --model can|infilling|contextual|cgan --peer torch [--precision
float32|bfloat16] [--rounds 5] [--steps 4]

Peers: torch, PyTorch as its users run it; torch-best, with fused Adam, channels_last and
torch.compile; naive, ours with Keras's own layers and Adam and a pass back for each loss. Both run
in processes of their own and take turns, A B A B, never at once; so whatever else the machine does
meets both, if not equally: threads that wait for each other busily, as PyTorch's do, suffer more.
First both make two steps from equal weights on equal patches, with equal random numbers and no
dropout, and their losses must agree.

One JSON line: seconds and peer_seconds, medians of a step; ratio, the median of the rounds'
peer_seconds / seconds; gflop of a step (counted in PyTorch's), gemm_gflops measured here by
TensorFlow in the same precision, and share, what of that our step reaches; start to the end of the
first step, s; peak memory, MB; with --trace, seconds of our step that each kind of kernel takes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sides import Side, arrays, serve

AGREE = {"float32": 2e-4, "bfloat16": 5e-2}  # relative, of the losses of two steps


class Model(NamedTuple):
    """The paper's patches, px, and batch, and where our defaults are not what is measured."""

    size: int
    batch: int
    config: dict[str, Any]


MODELS = {
    "can": Model(256, 1, {"discriminator_strided": 3}),  # patches of 70 px, as Pix2Pix's
    "infilling": Model(256, 2, {"weights": "none"}),  # the time does not depend on VGG-19's weights
    "contextual": Model(256, 12, {}),
    "cgan": Model(256, 8, {}),
}
NO_DROPOUT = ("can", "infilling", "cgan")  # whose dropout is switched off where losses are compared


def main() -> None:
    """Print the measured line; or be one of the two that take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=tuple(MODELS), default="can")
    parser.add_argument("--peer", choices=("torch", "torch-best", "naive"), default="torch")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, help="of a patch, px; the paper's")
    parser.add_argument("--batch", type=int, help="the paper's")
    parser.add_argument(
        "--config",
        type=json.loads,
        default={},
        metavar="JSON",
        help="the model's, where it is not the paper's",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each in a round (4)")
    parser.add_argument(
        "--trace",
        type=Path,
        help="keep a trace of three of our steps in this folder, and say what kernels take",
    )
    parser.add_argument(
        "--as",
        dest="role",
        choices=("ours", "torch", "torch-best", "naive"),
        help=argparse.SUPPRESS,
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--equal", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    model = MODELS[chosen.model]
    chosen.size = chosen.size or model.size
    chosen.batch = chosen.batch or model.batch
    work(chosen) if chosen.role else print(json.dumps(compared(chosen)))


def compared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Both sides checked against each other, then timed."""
    with tempfile.TemporaryDirectory() as folder:
        apart = losses_apart(chosen, Path(folder))
        mine, peer = (side_of(role, chosen, Path(folder)) for role in ("ours", chosen.peer))
        starts = [first_step(side) for side in (mine, peer)]
        rounds = [(mine.ask(chosen.steps), peer.ask(chosen.steps)) for _ in range(chosen.rounds)]
        gemm = mine.ask("gemm")
        memory = [side.ask("memory") for side in (mine, peer)]
        flops = peer.ask("flops")
        operations = traced(mine, Path(folder), chosen.trace) if chosen.trace else {}
        for side in (mine, peer):
            side.close()
    seconds, others = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "benchmark": f"step.{chosen.model}",
        "peer": chosen.peer,
        "precision": chosen.precision,
        "size": chosen.size,
        "batch": chosen.batch,
        "config": chosen.config,
        "seconds": round(seconds, 4),
        "peer_seconds": round(others, 4),
        "ratio": round(statistics.median(b / a for a, b in rounds), 3),
        "rounds": [[round(a, 4), round(b, 4)] for a, b in rounds],
        "losses_apart": float(f"{apart:.2g}"),
        "gflop": flops and float(f"{flops / 1e9:.4g}"),
        "gemm_gflops": round(gemm / 1e9, 1),
        "share": flops and round(flops / seconds / gemm, 3),
        "first_step_seconds": [round(start, 1) for start in starts],
        "peak_mb": [round(one) for one in memory],
        **operations,
    }


def traced(mine: Side, folder: Path, to: Path) -> dict[str, Any]:
    """The trace put where it shall stay, and the seconds of each kind of kernel."""
    found = mine.ask("profile")
    shutil.copytree(folder / "trace", to, dirs_exist_ok=True)
    return {"kernels": found}


def losses_apart(chosen: argparse.Namespace, folder: Path) -> float:
    """By how much the losses of two steps from equal weights differ; too much ends everything."""
    both = [side_of(role, chosen, folder, equal=True) for role in ("ours", chosen.peer)]
    ours, theirs = ([side.ask("losses"), side.ask("losses")] for side in both)
    for side in both:
        side.close()
    apart = max(
        abs(a[name] - b[name]) / abs(a[name])
        for a, b in zip(ours, theirs, strict=True)
        for name in a
    )
    if not apart <= AGREE[chosen.precision]:
        raise SystemExit(
            f"the losses differ by {apart:.2g}, which is more than {AGREE[chosen.precision]:g}: "
            f"{ours} and {theirs}"
        )
    return apart


def side_of(role: str, chosen: argparse.Namespace, folder: Path, equal: bool = False) -> Side:
    """One of the two, when it is ready. equal: to be compared, so without dropout."""
    given = [
        "--model",
        chosen.model,
        "--precision",
        chosen.precision,
        "--size",
        chosen.size,
        "--batch",
        chosen.batch,
    ]
    given += ["--config", json.dumps(chosen.config), *(["--equal"] if equal else [])]
    side = Side(__file__, "--as", role, "--folder", folder, *given)
    side.ask("ready")
    return side


def first_step(side: Side) -> float:
    """Make it.

    Returns:
        The seconds since the process began.
    """
    side.ask("losses")
    return time.perf_counter() - side.start


def work(chosen: argparse.Namespace) -> None:
    """Be one of the two."""
    make = {"ours": ours, "naive": ours, "torch": torchs, "torch-best": torchs}[chosen.role]
    serve(lambda: functools.partial(answer, make(chosen)))


def answer(made: dict[str, Callable[[], Any]], what: str | int) -> Any:
    """What the parent is answered: of a number the mean seconds of so many steps."""
    if what == "memory":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if isinstance(what, str):
        return made[what]()
    start = time.perf_counter()
    for _ in range(what):
        made["losses"]()
    return (time.perf_counter() - start) / what


def batch_of(chosen: argparse.Namespace) -> dict[str, np.ndarray]:
    """Images, float32 [batch, size, size, 1], with masks or with labels, of each as many."""
    random = np.random.default_rng(0)
    shape = (chosen.batch, chosen.size, chosen.size, 1)
    if chosen.model == "contextual":
        return {
            "image": random.random(shape, np.float32),
            "label": np.arange(chosen.batch, dtype=np.int32) % 3,
        }
    return {
        "mask": (random.random(shape) > 0.7).astype(np.float32),
        "image": random.random(shape, np.float32),
    }


def changed(chosen: argparse.Namespace) -> dict[str, Any]:
    """Of the config: what is not the default."""
    dropout = {"dropout": 0.0} if chosen.equal and chosen.model in NO_DROPOUT else {}
    return {**MODELS[chosen.model].config, **chosen.config, **dropout}


def ours(chosen: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Our room, or with Keras's Adam."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import rooms

    naive = chosen.role == "naive"
    return rooms.answers(
        chosen.model,
        changed(chosen),
        chosen.size,
        batch_of(chosen),
        chosen.precision,
        chosen.folder,
        naive,
    )


def torchs(chosen: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The room in PyTorch and, to be compared, with our random numbers."""
    room = peer_of(chosen)
    batch = tensors(chosen, batch_of(chosen))
    drawn = arrays(chosen.folder / "draws.npz") if chosen.equal else {}
    steps = iter(
        [
            tensors(chosen, dict(zip(drawn, values, strict=True)))
            for values in zip(*drawn.values(), strict=True)
        ]
    )
    return {
        "losses": lambda: room.train_step(batch | next(steps, {})),
        "flops": lambda: flops_of(lambda: room.train_step(batch)),
    }


def peer_of(chosen: argparse.Namespace) -> Any:
    """The room in PyTorch with our first weights; the best one with all that makes it fast."""
    import torch
    from peers import can, cgan, contextual, infilling, layers

    torch.manual_seed(0)
    best = chosen.role == "torch-best"
    config = json.loads((chosen.folder / "config.json").read_text(encoding="utf-8")) | changed(
        chosen
    )
    peer = {"can": can, "infilling": infilling, "contextual": contextual, "cgan": cgan}[
        chosen.model
    ]
    room = peer.Room(config, chosen.size, best, chosen.precision)
    room.load(arrays(chosen.folder / "weights.npz"))
    for optimizer in room.optimizers.values():
        layers.epsilon_as_ours(optimizer)
    for network in room.networks.values() if best else ():
        network.to(memory_format=torch.channels_last)
        network.compile(dynamic=False)  # contextual's D meets batches of two sizes
    return room


def tensors(chosen: argparse.Namespace, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as PyTorch has them, maps as [batch, channels, rows, cols]."""
    import torch

    order = torch.channels_last if chosen.role == "torch-best" else torch.contiguous_format
    made = {name: torch.from_numpy(value) for name, value in values.items()}
    return {
        name: one.permute(0, 3, 1, 2).contiguous(memory_format=order) if one.ndim == 4 else one
        for name, one in made.items()
    }


def flops_of(step: Callable[[], Any]) -> float:
    """Of one step, by PyTorch's formulas.

    Its own FlopCounterMode follows modules too and fails at a gradient's gradient.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        total = 0.0

        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = operation(*args, **(kwargs or {}))
            if formula := flop_registry.get(operation._overloadpacket):
                self.total += formula(*args, **(kwargs or {}), out_val=found)
            return found

    with torch.compiler.set_stance("force_eager"), Counter() as counter:
        step()
    return counter.total


if __name__ == "__main__":
    main()
