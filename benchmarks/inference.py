"""What an exported network's answer takes beside PyTorch and ONNX Runtime: latency of one
patch, throughput of many.

python benchmarks/inference.py [--model can|infilling|cgan] [--batches 1 8 32] [--rounds 7] [--peers
torch torch-compile onnx]

ours: the SavedModel as every part of the package calls it, `export.load`, arrays in and arrays out.
Peers have its weights: torch, PyTorch's eager mode; torch-compile, with channels_last; onnx, the
same network by torch.onnx in ONNX Runtime. Each runs in a process of its own with its own default
threads, and they take turns, never two at once, so whatever else the machine does meets all of
them. First their answers must agree with ours to 1e-4.

One JSON line: for each batch size seconds of a call, ours and each peer's, medians of the rounds;
ratio, the median of the rounds' peer / ours, so that above 1 ours is quicker; processor_ratio,
likewise of all threads' processor seconds, which hardly depend on what else the machine does;
rounds, the seconds themselves; apart, the largest difference of an answer. Time: three minutes on
two idle cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sides import Side, arrays, serve

PEERS = ("torch", "torch-compile", "onnx")
AGREE = 1e-4  # images are in [0, 1]
# float32 [batch, size, size, channels] in [0, 1] -> [batch, size, size, 1] likewise
Answer = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Print the measured line; or be one of those that take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("can", "infilling", "cgan"), default="can")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--filters", type=int, nargs="+", help="of the generator; the paper's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--patches", type=int, default=16, help="that each answers in a round, in one call at least"
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="of each; 1 where others use the machine too, for threads that wait for each other",
    )
    parser.add_argument("--as", dest="role", choices=("ours", *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    work(chosen) if chosen.role else print(json.dumps(compared(chosen)))


def compared(chosen: argparse.Namespace) -> dict[str, Any]:
    """All sides checked against ours, then timed."""
    with tempfile.TemporaryDirectory() as name:
        sides = {role: side_of(role, chosen, Path(name)) for role in ("ours", *chosen.peers)}
        apart = {
            role: max(_apart(role, side, batch, Path(name)) for batch in chosen.batches)
            for role, side in sides.items()
        }
        if not max(apart.values()) <= AGREE:
            raise SystemExit(f"answers differ by {apart}, which is more than {AGREE:g}")
        batches = {batch: timed(sides, batch, chosen) for batch in chosen.batches}
        for side in sides.values():
            side.close()
    about = {
        "benchmark": "inference",
        "model": chosen.model,
        "function": "generator",
        "size": chosen.size,
        "threads": chosen.threads,
    }
    return {**about, "apart": float(f"{max(apart.values()):.2g}"), "batches": batches}


def _apart(role: str, side: Side, batch: int, folder: Path) -> float:
    """Largest difference of a side's answer from ours, which is the first to be asked."""
    side.ask({"answer": batch})
    ours, its = (np.load(folder / f"{name}-{batch}.npy") for name in ("ours", role))
    return float(np.abs(ours - its).max())


def timed(sides: dict[str, Side], batch: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """What one batch size's part of the line says."""
    calls = max(1, chosen.patches // batch)
    rounds = [
        {role: side.ask({"time": batch, "calls": calls}) for role, side in sides.items()}
        for _ in range(chosen.rounds)
    ]
    seconds, processor = (
        [{role: row[role][clock] for role in sides} for row in rounds] for clock in (0, 1)
    )
    return {
        "seconds": {
            role: round(statistics.median(row[role] for row in seconds), 5) for role in sides
        },
        "ratio": _ratios(seconds),
        "processor_ratio": _ratios(processor),
        "rounds": [[round(value, 5) for value in row.values()] for row in seconds],
    }


def _ratios(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {
        role: round(statistics.median(row[role] / row["ours"] for row in rounds), 3)
        for role in rounds[0]
        if role != "ours"
    }


def side_of(role: str, chosen: argparse.Namespace, folder: Path) -> Side:
    """One of them, when it is ready."""
    given = [
        "--model",
        chosen.model,
        "--size",
        chosen.size,
        *(["--filters", *chosen.filters] if chosen.filters else []),
    ]
    given += ["--threads", chosen.threads] if chosen.threads else []
    side = Side(__file__, "--as", role, "--folder", folder, *given)
    side.ask("ready")
    return side


def work(chosen: argparse.Namespace) -> None:
    """Be one of them."""
    make = {"ours": ours, "torch": torchs, "torch-compile": torchs, "onnx": onnx}[chosen.role]
    serve(lambda: functools.partial(answer, chosen, make(chosen)))


def answer(chosen: argparse.Namespace, call: Answer, what: dict[str, int]) -> list[float] | None:
    """What the parent is answered: nothing where the answers go into a file, else the seconds of a
    call by two clocks.
    """
    shape = (what.get("answer") or what["time"], chosen.size, chosen.size, channels_of(chosen))
    patches = np.random.default_rng(0).random(shape, np.float32)
    if "answer" in what:
        np.save(chosen.folder / f"{chosen.role}-{len(patches)}.npy", call(patches))
        return None
    start = time.perf_counter()
    busy = time.process_time()
    for _ in range(what["calls"]):
        call(patches)
    return [
        (now - then) / what["calls"]
        for now, then in ((time.perf_counter(), start), (time.process_time(), busy))
    ]


def channels_of(chosen: argparse.Namespace) -> int:
    """Of what the generator takes."""
    return int((chosen.folder / "channels").read_text())


def ours(chosen: argparse.Namespace) -> Answer:
    """Our SavedModel. Weights and config go into the folder, for the peers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import rooms  # isort: skip  # the first to import TensorFlow, because it keeps that quiet
    import keras
    import tensorflow as tf

    from tfmammo import export

    if chosen.threads:
        tf.config.threading.set_intra_op_parallelism_threads(chosen.threads)
        tf.config.threading.set_inter_op_parallelism_threads(chosen.threads)
    keras.utils.set_random_seed(0)
    room = rooms.room_of(chosen.model, changed(chosen), chosen.size)
    rooms.leave(room, chosen.folder)
    export.export(room, chosen.folder / "export", {})
    card = export.read_card(chosen.folder / "export")["functions"]["generator"]
    (name,) = card["inputs"]
    output = next(iter(card["outputs"]))
    (chosen.folder / "channels").write_text(str(card["inputs"][name]["shape"][-1]))
    call = export.load(chosen.folder / "export", "generator")
    return lambda patches: call(**{name: patches})[output]


def changed(chosen: argparse.Namespace) -> dict[str, Any]:
    """Of the config: no dropout, which the cGAN's answers have too.

    Only the generator is called, so the discriminator may be small.
    """
    values: dict[str, Any] = {
        "dropout": 0.0,
        "discriminator_filters": 4,
        "discriminator_strided": 1,
    }
    values |= {"filters": tuple(chosen.filters)} if chosen.filters else {}
    return values | ({"weights": "none"} if chosen.model == "infilling" else {})


def network_of(chosen: argparse.Namespace) -> Any:
    """The peer's generator with our weights, [batch, channels, rows, cols] in [0, 1] to the same
    with one channel.
    """
    import torch
    from peers import can, cgan, infilling

    rooms: dict[str, Any] = {"can": can.Room, "cgan": cgan.Room, "infilling": infilling.Room}
    config = json.loads((chosen.folder / "config.json").read_text(encoding="utf-8"))
    room = rooms[chosen.model](config, chosen.size, False, "float32")
    room.load(arrays(chosen.folder / "weights.npz"))

    class Border(torch.nn.Module):
        """The generator as it is exported: CAN's and the infilling's work in [-1, 1] inside."""

        def __init__(self) -> None:
            super().__init__()
            self.network = room.networks["generator"]
            self.scaled = chosen.model != "cgan"

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            """See the class."""
            return (
                self.network(patches * 2 - 1) * 0.5 + 0.5 if self.scaled else self.network(patches)
            )

    return Border().eval()


def torchs(chosen: argparse.Namespace) -> Answer:
    """PyTorch, compiled or not."""
    import torch

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    network = network_of(chosen)
    layout = torch.contiguous_format
    if chosen.role == "torch-compile":
        layout = torch.channels_last
        network = network.to(memory_format=layout)
        network.compile()

    @torch.inference_mode()
    def call(patches: np.ndarray) -> np.ndarray:
        return (
            network(torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous(memory_format=layout))
            .permute(0, 2, 3, 1)
            .numpy()
        )

    return call


def onnx(chosen: argparse.Namespace) -> Answer:
    """ONNX Runtime, on a file that PyTorch wrote."""
    import onnxruntime
    import torch

    example = torch.zeros(2, channels_of(chosen), chosen.size, chosen.size)
    path = chosen.folder / "generator.onnx"
    shapes = {"patches": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        network_of(chosen),
        (example,),
        path,
        input_names=["patches"],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = chosen.threads or 0  # 0: its own choice
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(patches: np.ndarray) -> np.ndarray:
        return session.run(None, {"patches": np.ascontiguousarray(patches.transpose(0, 3, 1, 2))})[
            0
        ].transpose(0, 2, 3, 1)

    return call


if __name__ == "__main__":
    main()
