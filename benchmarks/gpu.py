"""Run our training steps on a GPU without TensorFlow there, beside PyTorch's: by XLA through JAX.

python benchmarks/gpu.py export FOLDER --model can unet [--precision bfloat16]
python benchmarks/gpu.py compare FOLDER [--rounds 5] [--seconds 2] [--minutes 8] [--faster ...]
python benchmarks/gpu.py train FOLDER/can-bfloat16 DATA.npz OUT [--steps 210000] [--minutes 8]

export (needs tfmammo) lowers `train_step` of each model, of step.py's size, batch and widths, and
the model's functions to StableHLO. Weights are described, not stored: CAN's state takes 1.3 GB.
compare (needs JAX and PyTorch) draws weights by that description for both sides, compares the
losses of the first step, and lets the two take turns. Dropout is off on both sides. The steps of
the contextual GAN, blending, SegNet and Light-Head R-CNN are none that XLA takes.
train (needs JAX) trains from such weights on `image` and `mask`, uint8 [n, size, size], in the
eight symmetries, and answers for `test_image` and `test_mask` by each function.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import step as steps
from processes import MeasuredProcess, serve

XLA = ("can", "unet", "cgan", "infilling", "fcn8s", "classifier", "mask_gan", "flow")
# An output that may take the memory of a parameter is the variable's new value.
ALIAS = re.compile(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>")
ANSWERED = 8  # patches that a function takes


def main() -> None:
    """Export, compare or train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("export")
    command.add_argument("folder", type=Path)
    command.add_argument("--model", nargs="+", choices=XLA, default=XLA)
    command.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    command.add_argument("--size", type=int, help="px (the paper's)")
    command.add_argument("--batch", type=int, help="patches (the paper's)")
    command.add_argument("--config", type=json.loads, default={}, metavar="JSON")
    command.add_argument("--dropout", action="store_true", help="keep it, for a training")
    command.set_defaults(run=lambda options: [export(options, name) for name in options.model])
    command = commands.add_parser("compare")
    command.add_argument("folder", type=Path)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seconds", type=float, default=2.0, help="of a side's round, about (2)")
    command.add_argument("--minutes", type=float, default=8.0, help="no model starts later (8)")
    command.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    command.add_argument("--faster", nargs="*", default=["", "fused,channels_last"])
    command.set_defaults(run=compare)
    command = commands.add_parser("train")
    command.add_argument("folder", type=Path)
    command.add_argument("data", type=Path)
    command.add_argument("output", type=Path)
    command.add_argument("--steps", type=int, default=210_000)
    command.add_argument("--minutes", type=float, default=8.0)
    command.set_defaults(run=train)
    command = commands.add_parser("ours", help=argparse.SUPPRESS)
    command.add_argument("folder", type=Path)
    command.set_defaults(run=lambda options: serve(lambda: make_ours(options.folder)))
    options = parser.parse_args()
    options.run(options)


def export(options: argparse.Namespace, name: str) -> None:
    """Write the folder NAME-PRECISION: programs (*.mlir), meta.json, what PyTorch needs."""
    import models  # the first to import TensorFlow, because it keeps that quiet

    # isort: split
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(
        "mixed_bfloat16" if options.precision == "bfloat16" else "float32"
    )
    paper = steps.MODELS[name]
    size, batch_size = options.size or paper.size, options.batch or paper.batch
    model = models.build_model(name, {**paper.config, **options.config}, size)
    if not options.dropout:
        models.switch_dropout_off(model)
    folder = options.folder / f"{name}-{options.precision}"
    folder.mkdir(parents=True, exist_ok=True)
    about = argparse.Namespace(model=name, size=size, batch=batch_size)
    batch = steps.make_batch(about)
    tensors = {key: tf.constant(value) for key, value in batch.items()}
    draws = models.draw_numbers(name, model, tensors, 0)
    np.savez(folder / "draws.npz", **{f"{key}/0": value for key, value in draws.items()})  # type: ignore[arg-type]
    (folder / "config.json").write_text(model.config.model_dump_json(), encoding="utf-8")

    @tf.function(
        jit_compile=True,
        input_signature=[tf.TensorSpec(v.shape, v.dtype, k) for k, v in batch.items()],
    )
    def train_step(*values: Any) -> dict[str, Any]:
        with tf.device("/GPU:0"):
            return model.train_step(dict(zip(batch, values, strict=True)))

    code, captured, losses = lower(train_step, list(batch.values()))
    (folder / "step.mlir").write_text(code, encoding="utf-8")
    # places of each variable that the step writes, among all variables and among the outputs
    written = [
        (int(parameter) - len(batch), int(output)) for parameter, output in ALIAS.findall(code)
    ]
    owners = {
        id(variable.value.handle): f"{network}/{i}"
        for network, variables in models.collect_variables(model).items()
        for i, variable in enumerate(variables)
    }
    functions = {}
    for label, function in model.functions().items():
        inputs = [np.zeros((ANSWERED, *s.shape[1:]), np.float32) for s in function.input_signature]
        compiled = tf.function(function.python_function, jit_compile=True)
        code, needed, _ = lower(compiled, inputs)
        (folder / f"{label}.mlir").write_text(code, encoding="utf-8")
        places = {id(handle): i for i, handle in enumerate(captured)}
        functions[label] = {
            "inputs": [spec.name for spec in function.input_signature],
            "variables": [places.get(id(handle)) for handle in needed],
        }
    meta = {
        "model": name,
        "precision": options.precision,
        "size": size,
        "batch": batch_size,
        "losses": sorted(losses),
        "variables": [
            describe(read_variable(handle)) | {"owner": owners.get(id(handle))}
            for handle in captured
        ],
        "written": written,
        "functions": functions,
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    print(f"{folder}: {len(captured)} variables, {', '.join(functions)}", flush=True)


def lower(function: Any, inputs: list[np.ndarray]) -> tuple[str, list[Any], Any]:
    """Lower a compiled tf.function: its StableHLO, the variables it takes, its outputs."""
    import tensorflow as tf

    tensors = [tf.constant(value) for value in inputs]
    concrete = function.get_concrete_function(*(() if function.input_signature else tensors))
    code = function.experimental_get_compiler_ir(*tensors)(stage="stablehlo")
    # a copy is no operation of StableHLO; a barrier is, and does as little
    code = code.replace("= mhlo.copy ", "= stablehlo.optimization_barrier ")
    return code, list(concrete.captured_inputs), concrete.structured_outputs


def read_variable(handle: Any) -> np.ndarray:
    """Read the variable of a resource handle."""
    import tensorflow as tf

    about = handle._handle_data.shape_and_type[0]
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.dtypes.as_dtype(about.dtype)).numpy()


def describe(value: np.ndarray) -> dict[str, Any]:
    """Describe how a variable starts: a constant, or normal numbers of a mean and a deviation."""
    about: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype)}
    if value.size == 0 or np.ptp(value) == 0:
        return about | {"constant": value.ravel()[0].item() if value.size else 0}
    if value.dtype.kind != "f":
        return about | {"values": value.ravel().tolist()}
    return about | {"normal": [float(value.mean()), float(value.std())]}


def draw_variable(about: dict[str, Any], random: np.random.Generator) -> np.ndarray:
    """Draw a variable by its description."""
    shape, dtype = about["shape"], about["dtype"]
    if "values" in about:
        return np.array(about["values"], dtype).reshape(shape)
    if "constant" in about:
        return np.full(shape, about["constant"], dtype)
    mean, deviation = about["normal"]
    return (random.standard_normal(shape, np.float32) * deviation + mean).astype(dtype)


class Step:
    """A lowered training step on JAX's first device.

    Args:
        folder: Of `export`.
    """

    def __init__(self, folder: Path) -> None:
        os.environ["JAX_ENABLE_X64"] = "1"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax

        self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.device = jax.devices()[0]
        self.put = functools.partial(jax.device_put, device=self.device)
        began = time.perf_counter()
        self.executable = self.load("step")
        self.compile_seconds = time.perf_counter() - began
        random = np.random.default_rng(0)
        self.state = [self.put(draw_variable(about, random)) for about in self.meta["variables"]]

    def load(self, name: str) -> Any:
        """Compile one of the folder's programs."""
        from jax._src.lib import xla_client

        code = (self.folder / f"{name}.mlir").read_bytes()
        devices = xla_client.DeviceList((self.device,))
        return self.device.client.compile_and_load(code, devices, xla_client.CompileOptions())

    def take(self, batch: list[Any]) -> list[Any]:
        """Take a step on a batch; return the losses, on the device."""
        outputs = call(self.executable, [*batch, *self.state])
        for variable, output in self.meta["written"]:
            self.state[variable] = outputs[output]
        return outputs[: len(self.meta["losses"])]

    def write_weights(self) -> None:
        """Write weights.npz, by which PyTorch's side starts from the same weights."""
        owned = {
            about["owner"]: np.asarray(value)
            for about, value in zip(self.meta["variables"], self.state, strict=True)
            if about["owner"]
        }
        # its reader takes the arrays of a network in their order in the file
        ordered = sorted(owned, key=lambda name: int(name.rpartition("/")[2]))
        np.savez(self.folder / "weights.npz", **{name: owned[name] for name in ordered})  # type: ignore[arg-type]


def call(executable: Any, values: list[Any]) -> list[Any]:
    """Run a program on arrays of the device."""
    results = executable.execute_sharded(values)
    return [one[0] for one in results.disassemble_into_single_device_arrays()]


def make_ours(folder: Path) -> Callable[[Any], Any]:
    """Compile the step; return what answers, as a process that is measured in turns."""
    step = Step(folder)
    step.write_weights()
    batch = [
        step.put(value) for value in steps.make_batch(argparse.Namespace(**step.meta)).values()
    ]

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
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
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
    shared = sorted(set(losses[0]) & set(losses[1]))
    apart = max(abs(losses[0][k] - losses[1][k]) / max(abs(losses[0][k]), 0.1) for k in shared)
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
        "losses_apart": float(f"{apart:.2g}"),
        "compile_seconds": round(ours.ask("compile"), 1),
        "step_mb": round(ours.ask("memory")),
        "gflop": float(f"{torch.ask('flops') / 1e9:.4g}"),
    }
    for side in (ours, torch):
        side.close()
    return line


def train(options: argparse.Namespace) -> None:
    """Train, and write losses.csv and an answer.npz of each function, uint8."""
    step = Step(options.folder)
    import jax
    import jax.numpy as jnp

    print(f"{step.device}: compiled in {step.compile_seconds:.0f} s", flush=True)
    data = np.load(options.data)
    image, mask = step.put(data["image"]), step.put(data["mask"])
    batch_size = step.meta["batch"]

    @jax.jit
    def draw(number: Any) -> list[Any]:
        which, turn = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(0), number))
        index = jax.random.randint(which, (batch_size,), 0, len(image))
        turns = jax.random.randint(turn, (batch_size,), 0, 8)

        def place(values: Any, k: Any) -> Any:
            ways = [functools.partial(jnp.rot90, k=n) for n in range(4)]
            values = jax.lax.switch(k % 4, ways, values.astype(jnp.float32) / 255)
            return jnp.where(k >= 4, values[:, ::-1], values)

        # make_batch has the mask first
        return [jax.vmap(place)(values[index], turns)[..., None] for values in (mask, image)]

    options.output.mkdir(parents=True, exist_ok=True)
    names = step.meta["losses"]
    began = time.monotonic()
    with (options.output / "losses.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["step", "seconds", *names])
        for made in range(1, options.steps + 1):
            losses = step.take(draw(made))
            if made % 500 == 0:
                seconds = time.monotonic() - began
                table.writerow([made, round(seconds, 1), *map(float, losses)])
                file.flush()
                if seconds > 60 * options.minutes:
                    break
    seconds = time.monotonic() - began
    print(
        f"{made} steps, {1e3 * seconds / made:.2f} ms each; "
        f"{ {name: float(loss) for name, loss in zip(names, losses, strict=True)} }",
        flush=True,
    )
    for name, about in step.meta["functions"].items():
        function = step.load(name)
        weights = [step.state[i] for i in about["variables"]]
        tests = [data[f"test_{key}"] for key in about["inputs"]]
        answers = []
        for start in range(0, len(tests[0]), ANSWERED):
            rows = np.arange(start, start + ANSWERED) % len(tests[0])
            inputs = [step.put((test[rows] / 255).astype(np.float32)[..., None]) for test in tests]
            answers.append(np.asarray(call(function, [*inputs, *weights])[0]))
        values = np.concatenate(answers)[: len(tests[0]), ..., 0]
        values = np.clip(np.round(255 * values), 0, 255).astype(np.uint8)
        np.savez_compressed(options.output / f"{name}.npz", answer=values)


if __name__ == "__main__":
    main()
