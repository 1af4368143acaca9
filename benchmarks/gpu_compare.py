"""Time our training steps on a GPU beside PyTorch's, by XLA through JAX, without TensorFlow there.

python benchmarks/gpu_compare.py export FOLDER --model can unet [--precision bfloat16]
python benchmarks/gpu_compare.py compare FOLDER [--rounds 5] [--seconds 2] [--minutes 8]

export (needs tfmammo) lowers the training step of each model, of step.py's size, batch and widths.
compare (needs JAX and PyTorch) draws weights by the same description for both sides, compares the
losses of the first step, and lets the two take turns. Dropout is off on both sides. XLA can't
compile Light-Head R-CNN's step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_step
import numpy as np
from cases import MODELS, make_batch
from processes import MeasuredProcess, serve
from step import measure_difference

COMPARED = tuple(name for name in MODELS if name != "light_head")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("export")
    command.add_argument("folder", type=Path)
    command.add_argument("--model", nargs="+", choices=COMPARED, default=COMPARED)
    command.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    command.add_argument("--size", type=int, help="px (the paper's)")
    command.add_argument("--batch", type=int, help="patches (the paper's)")
    command.add_argument("--config", type=json.loads, default={}, metavar="JSON")
    command.set_defaults(run=lambda options: [export(options, name) for name in options.model])
    command = commands.add_parser("compare")
    command.add_argument("folder", type=Path)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seconds", type=float, default=2.0, help="of a side's round, about (2)")
    command.add_argument("--minutes", type=float, default=8.0, help="no model starts later (8)")
    command.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    command.add_argument("--faster", nargs="*", default=["", "fused,channels_last"])
    command.set_defaults(run=compare)
    command = commands.add_parser("ours", help=argparse.SUPPRESS)
    command.add_argument("folder", type=Path)
    command.set_defaults(run=lambda options: serve(lambda: make_ours(options.folder)))
    options = parser.parse_args()
    options.run(options)


def export(options: argparse.Namespace, name: str) -> None:
    """Write the folder NAME-PRECISION: the program, meta.json, what PyTorch needs."""
    import gpu_export
    import keras
    import models
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(gpu_export.PRECISIONS[options.precision])
    paper = MODELS[name]
    size, batch_size = options.size or paper.size, options.batch or paper.batch
    model = models.build_model(name, {**paper.config, **options.config}, size)
    models.switch_dropout_off(model)
    batch = make_batch(argparse.Namespace(model=name, size=size, batch=batch_size))
    tensors = {key: tf.constant(value) for key, value in batch.items()}
    draws = models.draw_numbers(name, model, tensors, 0)
    folder = options.folder / f"{name}-{options.precision}"
    meta = {"model": name, "precision": options.precision, "size": size, "batch": batch_size}
    meta |= gpu_export.lower_model(model, batch, folder, {})
    np.savez(folder / "draws.npz", **{f"{key}/0": value for key, value in draws.items()})  # type: ignore[arg-type]
    (folder / "config.json").write_text(model.config.model_dump_json(), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    print(f"{folder}: {len(meta['variables'])} variables", flush=True)


def make_ours(folder: Path) -> Callable[[Any], Any]:
    """Compile the step; return what answers, as a process that is measured in turns."""
    step = gpu_step.Step(folder)
    step.compile()
    owned = step.collect_owned(frozen=True)
    # its reader takes the arrays of a network in their order in the file
    ordered = sorted(owned, key=lambda name: int(name.rpartition("/")[2]))
    np.savez(folder / "weights.npz", **{name: owned[name] for name in ordered})  # type: ignore[arg-type]
    batch = [step.put(value) for value in make_batch(argparse.Namespace(**step.meta)).values()]

    def answer(question: str | int) -> Any:
        if question == "losses":
            losses = zip(step.meta["losses"], step.take(batch), strict=True)
            return {name: float(value) for name, value in losses if name.endswith("_loss")}
        if question == "compile":
            return step.compile_seconds
        if question == "memory":
            return step.executable.get_compiled_memory_stats().temp_size_in_bytes / 1e6
        start = time.perf_counter()
        for _ in range(int(question)):
            answer("losses")  # PyTorch's side fetches the losses of each step, too
        return (time.perf_counter() - start) / int(question)

    return answer


def compare(options: argparse.Namespace) -> None:
    """Print a JSON line for each model and choice of PyTorch's options."""
    began = time.monotonic()
    for faster in options.faster:
        for folder in sorted(options.folder.iterdir(), key=lambda path: path.stat().st_mtime):
            if time.monotonic() - began > 60 * options.minutes:
                print(json.dumps({"left out": str(folder), "faster": faster}), flush=True)
                continue
            try:
                print(json.dumps(compare_step(folder, faster, options)), flush=True)
            except (SystemExit, KeyError) as error:  # of one side: the others go on
                print(
                    json.dumps({"failed": str(folder), "faster": faster, "why": str(error)}),
                    flush=True,
                )


def compare_step(folder: Path, faster: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start both sides, compare their first losses, and let them take turns."""
    meta = gpu_step.read_meta(folder)
    ours = MeasuredProcess(__file__, "ours", folder)
    ours.ask("ready")
    numbers = [
        word for key in ("model", "precision", "size", "batch") for word in (f"--{key}", meta[key])
    ]
    script = Path(__file__).with_name("step.py")
    arguments = ["--as", "torch", f"--faster={faster}", "--folder", folder, "--equal", *numbers]
    torch = MeasuredProcess(script, *arguments, "--device", options.device)
    torch.ask("ready")
    losses = ours.ask("losses"), torch.ask("losses")
    counts = [max(1, round(options.seconds / side.ask(10))) for side in (ours, torch)]
    rounds = [(ours.ask(counts[0]), torch.ask(counts[1])) for _ in range(options.rounds)]
    line = {
        "benchmark": f"gpu.{meta['model']}",
        **{key: meta[key] for key in ("precision", "size", "batch")},
        "torch": faster,
        "milliseconds": round(1e3 * statistics.median(a for a, _ in rounds), 3),
        "peer_milliseconds": round(1e3 * statistics.median(b for _, b in rounds), 3),
        "ratio": round(statistics.median(b / a for a, b in rounds), 3),
        "rounds": [[round(1e3 * a, 3), round(1e3 * b, 3)] for a, b in rounds],
        "losses_apart": float(f"{measure_difference(*losses):.2g}"),
        "compile_seconds": round(ours.ask("compile"), 1),
        "step_mb": round(ours.ask("memory")),
        "gflop": float(f"{torch.ask('flops') / 1e9:.4g}"),
    }
    for side in (ours, torch):
        side.close()
    return line


if __name__ == "__main__":
    main()
