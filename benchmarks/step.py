"""A training step of ours beside the same step by somebody else's means: CAN at full size, or at --size and --filters.

python benchmarks/step.py --model can --peer torch [--precision float32|bfloat16] [--rounds 5] [--steps 4]

Peers: torch, PyTorch as its users run it; torch-best, with fused Adam, channels_last and torch.compile; naive, ours with Keras's own
Adam. Both run in processes of their own and take turns, A B A B, never at once; so whatever else the machine does meets both. First,
without dropout, both make two steps from equal weights on equal patches, and their losses must agree.

One JSON line: seconds and peer_seconds, medians of a step; ratio, the median of the rounds' peer_seconds / seconds; gflop of a step
(counted in PyTorch's), gemm_gflops measured here by TensorFlow in the same precision, and share, what of that our step reaches; start to
the end of the first step, s; peak memory, MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

AGREE = {"float32": 2e-4, "bfloat16": 5e-2}  # relative, of the losses of two steps
GEMM = 2048  # side of the matrices


def main() -> None:
    """Print the measured line; or be one of the two that take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("can",), default="can")
    parser.add_argument("--peer", choices=("torch", "torch-best", "naive"), default="torch")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--filters", type=int, nargs="+", help="of G and I; the paper's")
    parser.add_argument("--strided", type=int, default=3, help="stride-2 convolutions of D: 3 gives 70 px patches (3)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each in a round (4)")
    parser.add_argument("--as", dest="role", choices=("ours", "torch", "torch-best", "naive"), help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dropout", type=float, default=0.5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    work(chosen) if chosen.role else print(json.dumps(compared(chosen)))


def compared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Both sides checked against each other, then timed."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        both = [Side(role, chosen, weights, dropout=0.0) for role in ("ours", chosen.peer)]
        ours, theirs = ([side.ask("losses"), side.ask("losses")] for side in both)
        for side in both:
            side.close()
        apart = max(abs(a[name] - b[name]) / abs(a[name]) for a, b in zip(ours, theirs, strict=True) for name in a)
        if not apart <= AGREE[chosen.precision]:
            raise SystemExit(f"the losses differ by {apart:.2g}, which is more than {AGREE[chosen.precision]:g}: {ours} and {theirs}")
        mine, peer = Side("ours", chosen, weights), Side(chosen.peer, chosen, weights)
        starts = [side.ask("losses", started=True) for side in (mine, peer)]
        rounds = [(mine.ask(chosen.steps), peer.ask(chosen.steps)) for _ in range(chosen.rounds)]
        gemm, memory = mine.ask("gemm"), [side.ask("memory") for side in (mine, peer)]
        flops = peer.ask("flops")
        for side in (mine, peer):
            side.close()
    seconds, others = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "benchmark": f"step.{chosen.model}", "peer": chosen.peer, "precision": chosen.precision, "size": chosen.size, "batch": chosen.batch,
        "seconds": round(seconds, 4), "peer_seconds": round(others, 4), "ratio": round(statistics.median(b / a for a, b in rounds), 3),
        "rounds": [[round(a, 4), round(b, 4)] for a, b in rounds], "losses_apart": float(f"{apart:.2g}"),
        "gflop": flops and round(flops / 1e9, 2), "gemm_gflops": round(gemm / 1e9, 1),
        "share": flops and round(flops / seconds / gemm, 3),
        "first_step_seconds": [round(start, 1) for start in starts], "peak_mb": [round(one) for one in memory],
    }  # fmt: skip


class Side:
    """One of the two, in a process of its own, which answers a line with a line."""

    def __init__(self, role: str, chosen: argparse.Namespace, weights: Path, dropout: float = 0.5) -> None:
        self.start = time.perf_counter()
        given = ["--precision", chosen.precision, "--size", chosen.size, "--strided", chosen.strided, "--batch", chosen.batch]
        given += ["--filters", *chosen.filters] if chosen.filters else []
        command = [sys.executable, __file__, "--as", role, "--weights", weights, "--dropout", dropout, *given]
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask("ready")

    def ask(self, what: str | int, started: bool = False) -> Any:
        """The answer. started: instead of it the seconds since the process began."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args}: ended")
        return time.perf_counter() - self.start if started else json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def work(chosen: argparse.Namespace) -> None:
    """Answer the parent's lines until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    made = {"ours": ours, "naive": ours, "torch": torchs, "torch-best": torchs}[chosen.role](chosen)
    for line in sys.stdin:
        answers.write(json.dumps(answer(line.strip(), made)) + "\n")
        answers.flush()


def answer(line: str, made: dict[str, Callable[[], Any]]) -> Any:
    """What one line is answered with: of a number the mean seconds of so many steps."""
    if line == "ready":
        return True
    if line == "memory":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not line.isdigit():
        return made[line]()
    start = time.perf_counter()
    for _ in range(int(line)):
        made["losses"]()
    return (time.perf_counter() - start) / int(line)


def config_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Of the model on both sides."""
    filters = {"filters": tuple(chosen.filters)} if chosen.filters else {}
    return {"discriminator_strided": chosen.strided, "dropout": chosen.dropout, **filters}


def batch_of(chosen: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """float32 [batch, size, size, 1]: masks and images."""
    random = np.random.default_rng(0)
    shape = (chosen.batch, chosen.size, chosen.size, 1)
    return (random.random(shape) > 0.7).astype(np.float32), random.random(shape).astype(np.float32)


def ours(chosen: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Our CAN; its first weights go into the file that the other side reads, if it is not there yet."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tfmammo import quiet  # noqa: F401, I001  # the first to import TensorFlow, because it keeps that quiet
    import keras
    import tensorflow as tf

    from tfmammo.models.can import CAN, CANConfig

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16" if chosen.precision == "bfloat16" else "float32")
    room = CAN(CANConfig(**config_of(chosen)), chosen.size)
    if chosen.role == "naive":
        with np.load(chosen.weights) as known:
            for name, network in room.networks.items():
                for i, variable in enumerate(network.trainable_variables):
                    variable.assign(known[f"{name}/{i}"])
        room.optimizers = {name: _plain(network, room.config) for name, network in room.networks.items()}
    elif not chosen.weights.exists():
        kept = {f"{name}/{i}": value for name, network in room.networks.items() for i, value in enumerate(weights_of(network))}
        np.savez(chosen.weights, **kept)
        chosen.weights.with_suffix(".json").write_text(room.config.model_dump_json(), encoding="utf-8")
    step, (mask, image) = tf.function(room.train_step), map(tf.constant, batch_of(chosen))

    def losses() -> dict[str, float]:
        found = step({"mask": mask, "image": image})
        return {name: float(found[f"{name}_loss"]) for name in room.networks}

    def gemm() -> float:
        matrix = tf.random.normal((GEMM, GEMM), dtype=tf.bfloat16 if chosen.precision == "bfloat16" else tf.float32)
        product, best = tf.function(lambda: tf.matmul(matrix, matrix)), float("inf")
        for _ in range(10):
            start = time.perf_counter()
            product().numpy()
            best = min(best, time.perf_counter() - start)
        return 2 * GEMM**3 / best

    return {"losses": losses, "gemm": gemm, "flops": lambda: None}


def _plain(network: Any, config: Any) -> Any:
    import keras

    optimizer = keras.optimizers.Adam(config.learning_rate, config.beta_1, epsilon=1e-7)
    optimizer.build(network.trainable_variables)
    return optimizer


def weights_of(network: Any) -> list[np.ndarray]:
    """A Keras network's weights but for the state of dropout's random numbers."""
    return [variable.numpy() for variable in network.trainable_variables]


def torchs(chosen: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """CAN in PyTorch from our first weights."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from peers import can

    torch.manual_seed(0)
    best = chosen.role == "torch-best"
    # TensorFlow and torch.compile don't bear each other in one process: what of ours is needed stands in files.
    config = json.loads(chosen.weights.with_suffix(".json").read_text(encoding="utf-8"))
    room = can.CAN(config | {"dropout": chosen.dropout}, best, chosen.precision)
    with np.load(chosen.weights) as known:
        names = [key.partition("/")[0] for key in known.files]
        room.load({name: [known[f"{name}/{i}"] for i in range(names.count(name))] for name in room.networks})
    mask, image = (torch.from_numpy(part).permute(0, 3, 1, 2).contiguous() for part in batch_of(chosen))
    if best:
        room.to(memory_format=torch.channels_last)
        mask, image = (part.to(memory_format=torch.channels_last) for part in (mask, image))
        for network in room.networks.values():
            network.compile()

    def flops() -> float:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            room.train_step(mask, image)
        return float(counter.get_total_flops())

    return {"losses": lambda: room.train_step(mask, image), "flops": flops}


if __name__ == "__main__":
    main()
