"""Compare the speed of an exported network with PyTorch and ONNX Runtime.

python benchmarks/inference.py [--model can|infilling|cgan] [--batches 1 8 32] [--rounds 7]
                               [--peers torch torch-compile onnx converted]

"ours" is the SavedModel as every part of the package calls it: `export.load`, arrays in and arrays
out. The peers have the same weights: torch is PyTorch's eager mode; torch-compile compiles, with
channels_last; onnx is the same network, by torch.onnx, in ONNX Runtime; converted is our SavedModel
in ONNX Runtime, as `network.runtime=onnx` serves it. Each runs in a separate
process with its default threads. The processes take turns, so that other work of the machine meets
all of them. Before that, their answers must agree with ours to 1e-4.

One JSON line: for each batch size, the seconds of a call of ours and of each peer, medians of the
rounds; ratio, the median of peer / ours over the rounds (above 1, ours is faster); rounds, the
seconds themselves; apart, the largest difference of an answer. Time: three minutes on two idle
cores.
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
from typing import Any, Literal

import numpy as np
from processes import MeasuredProcess, load_arrays, serve

PEERS = ("torch", "torch-compile", "onnx", "converted")
TOLERANCE = 1e-4  # images are in [0, 1]
# float32 [batch, size, size, channels] in [0, 1] -> float32 [batch, size, size, 1] in [0, 1]
Answer = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Print the measured line, or be one of the processes that take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("can", "infilling", "cgan"), default="can")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument(
        "--filters", type=int, nargs="+", help="the generator's filters (the paper's)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--patches", type=int, default=16, help="patches that each answers in a round (16)"
    )
    parser.add_argument("--as", dest="role", choices=("ours", *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        work(options)
    else:
        print(json.dumps(compare(options)))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Check the answers of all peers against ours, then time them."""
    with tempfile.TemporaryDirectory() as name:
        processes = {
            role: start_process(role, options, Path(name)) for role in ("ours", *options.peers)
        }
        apart = {
            role: max(
                _largest_difference(role, process, batch, Path(name)) for batch in options.batches
            )
            for role, process in processes.items()
        }
        if not max(apart.values()) <= TOLERANCE:
            raise SystemExit(f"answers differ by {apart}, which is more than {TOLERANCE:g}")
        batches = {batch: measure(processes, batch, options) for batch in options.batches}
        for process in processes.values():
            process.close()
    about = {
        "benchmark": "inference",
        "model": options.model,
        "function": "generator",
        "size": options.size,
    }
    return {**about, "apart": float(f"{max(apart.values()):.2g}"), "batches": batches}


def _largest_difference(role: str, process: MeasuredProcess, batch: int, folder: Path) -> float:
    """Return the largest difference of an answer from ours; ours must have been asked first."""
    process.ask({"answer": batch})
    ours, its = (np.load(folder / f"{name}-{batch}.npy") for name in ("ours", role))
    return float(np.abs(ours - its).max())


def measure(
    processes: dict[str, MeasuredProcess], batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one batch size, and return its part of the line."""
    calls = max(1, options.patches // batch)
    rounds = [
        {role: process.ask({"time": batch, "calls": calls}) for role, process in processes.items()}
        for _ in range(options.rounds)
    ]
    return {
        "seconds": {
            role: round(statistics.median(row[role] for row in rounds), 5) for role in processes
        },
        "ratio": {
            role: round(statistics.median(row[role] / row["ours"] for row in rounds), 3)
            for role in options.peers
        },
        "rounds": [[round(value, 5) for value in row.values()] for row in rounds],
    }


def start_process(role: str, options: argparse.Namespace, folder: Path) -> MeasuredProcess:
    """Start one of the processes, and wait until it is ready."""
    given = [
        "--model",
        options.model,
        "--size",
        options.size,
        *(["--filters", *options.filters] if options.filters else []),
    ]
    process = MeasuredProcess(__file__, "--as", role, "--folder", folder, *given)
    process.ask("ready")
    return process


def work(options: argparse.Namespace) -> None:
    """Be one of the processes."""
    make = {
        "ours": load_ours,
        "torch": load_torch,
        "torch-compile": load_torch,
        "onnx": load_onnx,
        "converted": load_converted,
    }[options.role]
    serve(lambda: functools.partial(answer, options, make(options)))


def answer(options: argparse.Namespace, call: Answer, question: dict[str, int]) -> float | None:
    """Write the network's answers to a file; or time calls, and return the seconds of one."""
    batch = question.get("answer") or question["time"]
    shape = (batch, options.size, options.size, read_channels(options))
    patches = np.random.default_rng(0).random(shape, np.float32)
    if "answer" in question:
        np.save(options.folder / f"{options.role}-{len(patches)}.npy", call(patches))
        return None
    start = time.perf_counter()
    for _ in range(question["calls"]):
        call(patches)
    return (time.perf_counter() - start) / question["calls"]


def read_channels(options: argparse.Namespace) -> int:
    """Read the number of channels of the generator's input."""
    return int((options.folder / "channels").read_text())


def load_ours(options: argparse.Namespace) -> Answer:
    """Load our SavedModel; its weights and config are written for the peers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import models  # isort: skip  # the first to import TensorFlow, because it keeps that quiet
    import keras

    from tfmammo.tracking import export

    keras.utils.set_random_seed(0)
    model = models.build_model(options.model, model_config(options), options.size)
    models.write_weights(model, options.folder)
    export.export(model, options.folder / "export", {})
    card = export.read_card(options.folder / "export")["functions"]["generator"]
    (description,) = card["inputs"].values()
    (options.folder / "channels").write_text(str(description["shape"][-1]))
    return load_export(options, "tensorflow")


def load_converted(options: argparse.Namespace) -> Answer:
    """Load ONNX Runtime with a file that our SavedModel was converted to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tfmammo.tracking import export

    place = options.folder / "export"
    export.write_onnx(place, "generator", place / "generator.onnx")
    return load_export(options, "onnx")


def load_export(options: argparse.Namespace, runtime: Literal["tensorflow", "onnx"]) -> Answer:
    """Load the exported generator."""
    from tfmammo.tracking import export

    place = options.folder / "export"
    card = export.read_card(place)["functions"]["generator"]
    (name,) = card["inputs"]
    output = next(iter(card["outputs"]))
    call = export.load(place, "generator", runtime)
    return lambda patches: call(**{name: patches})[output]


def model_config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of the config that differ from the paper.

    There is no dropout, which the cGAN also has at inference. Only the generator is called, so the
    discriminator is small.
    """
    values: dict[str, Any] = {
        "dropout": 0.0,
        "discriminator_filters": 4,
        "discriminator_strided": 1,
    }
    values |= {"filters": tuple(options.filters)} if options.filters else {}
    return values | ({"weights": "none"} if options.model == "infilling" else {})


def load_peer(options: argparse.Namespace) -> Any:
    """Load the peer's generator with our weights.

    Its input is [batch, channels, rows, cols] in [0, 1], its output the same with one channel.
    """
    import torch
    from peers import can, cgan, infilling

    classes: dict[str, Any] = {"can": can.Model, "cgan": cgan.Model, "infilling": infilling.Model}
    config = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))
    model = classes[options.model](config, options.size, False, "float32")
    model.load(load_arrays(options.folder / "weights.npz"))

    class Border(torch.nn.Module):
        """The generator as it is exported: CAN's and the infilling's work in [-1, 1] inside."""

        def __init__(self) -> None:
            super().__init__()
            self.network = model.networks["generator"]
            self.scaled = options.model != "cgan"

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            """See the class."""
            return (
                self.network(patches * 2 - 1) * 0.5 + 0.5 if self.scaled else self.network(patches)
            )

    return Border().eval()


def load_torch(options: argparse.Namespace) -> Answer:
    """Load PyTorch's network, compiled or not."""
    import torch

    network = load_peer(options)
    layout = torch.contiguous_format
    if options.role == "torch-compile":
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


def load_onnx(options: argparse.Namespace) -> Answer:
    """Load ONNX Runtime with a file that PyTorch wrote."""
    import onnxruntime
    import torch

    example = torch.zeros(2, read_channels(options), options.size, options.size)
    path = options.folder / "generator.onnx"
    shapes = {"patches": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        load_peer(options),
        (example,),
        path,
        input_names=["patches"],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def call(patches: np.ndarray) -> np.ndarray:
        return session.run(None, {"patches": np.ascontiguousarray(patches.transpose(0, 3, 1, 2))})[
            0
        ].transpose(0, 2, 3, 1)

    return call


if __name__ == "__main__":
    main()
