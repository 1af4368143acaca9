"""Run our training steps on a GPU without TensorFlow there, beside PyTorch's: by XLA through JAX.

python benchmarks/gpu.py export FOLDER --model can unet [--precision bfloat16]
python benchmarks/gpu.py compare FOLDER [--rounds 5] [--seconds 2] [--minutes 8] [--faster ...]
python benchmarks/gpu.py pack RUN/export DATA.npz
python benchmarks/gpu.py train FOLDER/can-bfloat16 DATA.npz OUT [--steps 210000] [--minutes 8]
[--seed 0]
python benchmarks/gpu.py write OUT/weights.npz RUN/export DIR
python benchmarks/gpu.py masks OUT/inverter-210000.npz DATA.npz DIR

export (needs tfmammo) lowers `train_step` of each model, of step.py's size, batch and widths, and
the model's functions to StableHLO. Weights are described, not stored: CAN's state takes 1.3 GB.
compare (needs JAX and PyTorch) draws weights by that description for both sides, compares the
losses of the first step, and lets the two take turns. Dropout is off on both sides. XLA can't
compile Light-Head R-CNN's step; those of the contextual GAN, blending and SegNet were not compared.
pack (needs tfmammo) puts the patches of a short run, with those that it held out, into one file,
and their patients.
train (needs JAX) trains from such weights on its `image` and `mask`, uint16 and uint8 [n, size,
size], each once an epoch, in the eight symmetries, 500 steps at a time without leaving the GPU. It
answers for `test_image` and `test_mask` by each network of images. Infilling is validated besides,
which needs OpenCV and scikit-image: curve.csv has the SSIM of held-out masses. The same command
goes on where --minutes, --steps or Ctrl-C ended. Other weights, patches or seeds are refused.
Several processes share a GPU: start NVIDIA's MPS daemon first (nvidia-cuda-mps-control -d).
write (needs tfmammo) makes an export of the weights, which evaluate/ and the report's `trained`
take, with the curve beside its card. It has the card of the short run, which must be of the same
model, size, batch and patients.
masks writes an answer as label maps, which evaluate/segmentation.py takes as the model masks:DIR.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import step as steps
from processes import MeasuredProcess, serve

COMPARED = ("can", "unet", "cgan", "infilling", "fcn8s", "classifier", "mask_gan", "flow")
# Models whose trained networks start from normal numbers alone. Others' special weights would be
# lost: bilinear kernels of FCN-8s, the flow's average.
TRAINED = ("can", "infilling", "pix2pix", "unet")
FROZEN = "feature_extractor"  # the network of infilling that training leaves as it is
MEASURED = "infill"  # the function whose images are compared with the real ones
# An output that may take the memory of a parameter is the variable's new value.
ALIAS = re.compile(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>")
ANSWERED = 8  # patches that a function takes
LOSSES = "losses.csv"
CURVE = "curve.csv"  # of a validated run
PRECISIONS = {"bfloat16": "mixed_bfloat16", "float32": "float32"}  # name of a folder -> of Keras
TYPES = {"f32": np.dtype(np.float32), "i64": np.dtype(np.int64), "i32": np.dtype(np.int32)}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("export")
    command.add_argument("folder", type=Path)
    command.add_argument("--model", nargs="+", choices=(*COMPARED, "pix2pix"), default=COMPARED)
    command.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    command.add_argument("--size", type=int, help="px (the paper's)")
    command.add_argument("--batch", type=int, help="patches (the paper's)")
    command.add_argument("--config", type=json.loads, default={}, metavar="JSON")
    command.add_argument(
        "--dropout", action="store_true", help="for a training run: D of 16 px, VGG-19"
    )
    command.set_defaults(run=lambda options: [export(options, name) for name in options.model])
    command = commands.add_parser("compare")
    command.add_argument("folder", type=Path)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seconds", type=float, default=2.0, help="of a side's round, about (2)")
    command.add_argument("--minutes", type=float, default=8.0, help="no model starts later (8)")
    command.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    command.add_argument("--faster", nargs="*", default=["", "fused,channels_last"])
    command.set_defaults(run=compare)
    command = commands.add_parser("pack")
    command.add_argument("short", type=Path, help="export of a short run")
    command.add_argument("data", type=Path)
    command.set_defaults(run=pack)
    command = commands.add_parser("train")
    command.add_argument("folder", type=Path)
    command.add_argument("data", type=Path)
    command.add_argument("output", type=Path)
    command.add_argument("--steps", type=int, default=210_000)
    command.add_argument("--minutes", type=float, default=8.0, help="then it can go on (8)")
    command.add_argument(
        "--every",
        type=int,
        default=14_000,
        help="steps between states, answers and validations (14000)",
    )
    command.add_argument("--seed", type=int, default=0, help="of weights, batches and dropout (0)")
    command.add_argument(
        "--chunk", type=int, default=500, help="steps that the device takes by itself (500)"
    )
    command.set_defaults(run=train)
    command = commands.add_parser("masks")
    command.add_argument("answer", type=Path)
    command.add_argument("data", type=Path)
    command.add_argument("folder", type=Path)
    command.set_defaults(run=write_masks)
    command = commands.add_parser("write")
    command.add_argument("weights", type=Path)
    command.add_argument("short", type=Path, help="export of a short run")
    command.add_argument("folder", type=Path)
    command.set_defaults(run=write_model)
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
    keras.config.set_dtype_policy(PRECISIONS[options.precision])
    paper = steps.MODELS[name]
    size, batch_size = options.size or paper.size, options.batch or paper.batch
    # What step.py changes for its peer (CAN's D of 70 px) is for times alone.
    config = options.config if options.dropout else {**paper.config, **options.config}
    model = models.build_model(name, config, size)
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
    functions = export_functions(model, captured, folder)
    meta: dict[str, Any] = {
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
    if options.dropout and hasattr(model, FROZEN):
        meta["frozen"] = write_frozen(getattr(model, FROZEN), options.folder)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    print(f"{folder}: {len(captured)} variables, {', '.join(functions)}", flush=True)


def write_frozen(network: Any, folder: Path) -> str:
    """Write the weights of a frozen network as float16, once for all models; return the file."""
    values = [variable.numpy().astype(np.float16) for variable in network.weights]
    digest = hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest()
    name = f"{FROZEN}-{digest[:12]}.npz"
    if not (folder / name).exists():
        _save(folder / name, **{f"{FROZEN}/{i}": value for i, value in enumerate(values)})
    return name


def export_functions(model: Any, captured: list[Any], folder: Path) -> dict[str, Any]:
    """Write FUNCTION.mlir of each function; return what each takes.

    Args:
        model: The model.
        captured: Handles of the variables that the step takes.
        folder: Of the files.
    """
    import tensorflow as tf

    places = {id(handle): i for i, handle in enumerate(captured)}
    functions = {}
    made = model.functions()
    if model.name == "infilling":

        def infill(mask: Any, image: Any) -> dict[str, Any]:
            return {"image": model.sample({"mask": mask, "image": image})["synthetic"]}

        shape = [None, model.size, model.size, 1]
        signature = [tf.TensorSpec(shape, tf.float32, key) for key in ("mask", "image")]
        made[MEASURED] = tf.function(infill, input_signature=signature)
    for name, function in made.items():
        inputs = [np.zeros((ANSWERED, *s.shape[1:]), np.float32) for s in function.input_signature]
        compiled = tf.function(function.python_function, jit_compile=True)
        code, needed, _ = lower(compiled, inputs)
        (folder / f"{name}.mlir").write_text(code, encoding="utf-8")
        functions[name] = {
            "inputs": [spec.name for spec in function.input_signature],
            "variables": [places.get(id(handle)) for handle in needed],
        }
    return functions


def lower(function: Any, inputs: list[np.ndarray]) -> tuple[str, list[Any], Any]:
    """Lower a compiled tf.function: its StableHLO, handles of variables it takes, its outputs."""
    import tensorflow as tf

    tensors = [tf.constant(value) for value in inputs]
    concrete = function.get_concrete_function(*(() if function.input_signature else tensors))
    code = function.experimental_get_compiler_ir(*tensors)(stage="stablehlo")
    # a copy is no operation of StableHLO; a barrier is, and does as little
    code = code.replace("= mhlo.copy ", "= stablehlo.optimization_barrier ")
    return code, list(concrete.captured_inputs), concrete.structured_outputs


def read_variable(handle: Any) -> np.ndarray:
    """Read the variable of a resource handle: a graph's `variables` are not all that it takes."""
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


def draw_variable(about: dict[str, Any], random: np.random.Generator, seed: int) -> np.ndarray:
    """Draw a variable by its description."""
    shape, dtype = about["shape"], about["dtype"]
    if "values" in about:  # dropout's seed and place
        return np.array([about["values"][0] + seed, *about["values"][1:]], dtype).reshape(shape)
    if "constant" in about:
        return np.full(shape, about["constant"], dtype)
    mean, deviation = about["normal"]
    return (random.standard_normal(shape, np.float32) * deviation + mean).astype(dtype)


def is_frozen(about: dict[str, Any]) -> bool:
    """Return whether a variable belongs to the frozen network."""
    return (about["owner"] or "").startswith(f"{FROZEN}/")


class Step:
    """A lowered training step on JAX's first device.

    Args:
        folder: Of `export`.
        seed: Of the weights.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        os.environ["JAX_ENABLE_X64"] = "1"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax

        self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.folder, self.seed = folder, seed
        self.device = jax.devices()[0]
        self.put = functools.partial(jax.device_put, device=self.device)
        random = np.random.default_rng(seed)
        drawn = [draw_variable(about, random, seed) for about in self.meta["variables"]]
        if "frozen" in self.meta:
            with np.load(folder.parent / self.meta["frozen"]) as frozen:
                for i, about in enumerate(self.meta["variables"]):
                    if is_frozen(about):
                        drawn[i] = frozen[about["owner"]].astype(about["dtype"])
        self.state = list(map(self.put, drawn))

    def load(self, name: str) -> Any:
        """Compile one of the folder's programs."""
        from jax._src.lib import xla_client

        code = (self.folder / f"{name}.mlir").read_bytes()
        devices = xla_client.DeviceList((self.device,))
        return self.device.client.compile_and_load(code, devices, xla_client.CompileOptions())

    def compile(self) -> None:
        """Compile the step for `take`."""
        began = time.perf_counter()
        self.executable = self.load("step")
        self.compile_seconds = time.perf_counter() - began

    @functools.cached_property
    def primitive(self) -> Any:
        """The step as an operation of JAX, which other programs may hold."""
        from jax._src import core
        from jax._src.lib.mlir import ir
        from jax._src.lib.mlir.dialects import func
        from jax.interpreters import mlir

        code = (self.folder / "step.mlir").read_text(encoding="utf-8")
        with mlir.make_ir_context():
            main = ir.SymbolTable(ir.Module.parse(code).operation)["main"]
            results = [
                core.ShapedArray(tuple(kind.shape), TYPES[str(kind.element_type)])
                for kind in map(ir.RankedTensorType, main.type.results)
            ]

        def lower_call(context: Any, *values: Any) -> Any:
            into = context.module_context
            with into.module.context:
                module = ir.Module.parse(code)
            main = ir.SymbolTable(module.operation)["main"]
            for attributes in ("arg_attrs", "res_attrs"):  # those of a program's own main
                if attributes in main.attributes:
                    del main.attributes[attributes]
            name = mlir.merge_mlir_modules(into.module, "step", module, into.symbol_table)
            kinds = [mlir.aval_to_ir_type(into, value) for value in context.avals_out]
            return func.CallOp(kinds, ir.FlatSymbolRefAttr.get(name), values).results

        primitive = core.Primitive("train_step")
        primitive.multiple_results = True
        primitive.def_abstract_eval(lambda *_: results)
        mlir.register_lowering(primitive, lower_call)
        return primitive

    def inline(self, batch: list[Any], state: list[Any]) -> tuple[list[Any], list[Any]]:
        """Take a step within a program of JAX; return the new state and the losses."""
        return self.advance(state, self.primitive.bind(*batch, *state))

    def take(self, batch: list[Any]) -> list[Any]:
        """Take a step on a batch; return the losses, on the device."""
        outputs = call(self.executable, [*batch, *self.state])
        self.state, losses = self.advance(self.state, outputs)
        return losses

    def advance(self, state: list[Any], outputs: list[Any]) -> tuple[list[Any], list[Any]]:
        """Put what a step has written into its state; return the new state and the losses."""
        state = list(state)
        for variable, output in self.meta["written"]:
            state[variable] = outputs[output]
        return state, outputs[: len(self.meta["losses"])]

    def identify(self, data: dict[str, np.ndarray]) -> str:
        """Name the program with its weights, the seed and the patches, all that a run needs.

        It goes on with no others.
        """
        files = [(self.folder / name).read_bytes() for name in ("step.mlir", "meta.json")]
        program = hashlib.sha256(b"".join(files)).hexdigest()[:12]
        arrays = [data[name].tobytes() for name in sorted(data)]
        patches = hashlib.sha256(b"".join(arrays)).hexdigest()[:12]
        return f"program {program}, seed {self.seed}, patches {patches}"

    def read_state(self, folder: Path, identity: str) -> int:
        """Read what `write_state` wrote, if anything; return the steps made so far."""
        if not (folder / "state.npz").exists():
            return 0
        with np.load(folder / "state.npz") as values:
            if str(values["of"]) != identity:
                raise SystemExit(f"{folder}: was trained with {values['of']}, not {identity}")
            for i, about in enumerate(self.meta["variables"]):
                if not is_frozen(about):
                    self.state[i] = self.put(values[str(i)])
            return int(values["made"])

    def write_state(self, folder: Path, made: int, identity: str, patients: np.ndarray) -> None:
        """Write state.npz, with which a training run goes on, and weights.npz.

        The latter has the networks' weights as float16, and what `write_model` must know of them.
        A frozen network is in neither.
        """
        trained = {
            str(i): (about["owner"], np.asarray(value))
            for i, (about, value) in enumerate(zip(self.meta["variables"], self.state, strict=True))
            if not is_frozen(about)
        }
        state = {place: value for place, (_, value) in trained.items()}
        weights = {owner: value.astype(np.float16) for owner, value in trained.values() if owner}
        about = {key: self.meta[key] for key in ("model", "size", "batch", "precision")}
        about["config"] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        about |= {"steps": made, "seed": self.seed, "patients": sorted(set(patients.tolist()))}
        _save(folder / "state.npz", made=made, of=identity, **state)
        _save(folder / "weights.npz", about=json.dumps(about), **weights)

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


def _save(path: Path, **values: Any) -> None:
    """Write arrays, so that a stop leaves the earlier file or the new one."""
    new = path.with_suffix(".new.npz")
    np.savez(new, **values)
    new.replace(path)


def call(executable: Any, values: list[Any]) -> list[Any]:
    """Run a program on arrays of the device."""
    results = executable.execute_sharded(values)
    return [one[0] for one in results.disassemble_into_single_device_arrays()]


def make_ours(folder: Path) -> Callable[[Any], Any]:
    """Compile the step; return what answers, as a process that is measured in turns."""
    step = Step(folder)
    step.compile()
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
        "losses_apart": float(f"{steps.measure_difference(*losses):.2g}"),
        "compile_seconds": round(ours.ask("compile"), 1),
        "step_mb": round(ours.ask("memory")),
        "gflop": float(f"{torch.ask('flops') / 1e9:.4g}"),
    }
    for side in (ours, torch):
        side.close()
    return line


def pack(options: argparse.Namespace) -> None:
    """Write image and test_image, uint16, mask and test_mask, uint8, [n, size, size] each.

    Beside them stand the patients of the training's patches, of the test's the names and the region
    where infilled masses are compared.
    """
    from tfmammo.config import DataConfig
    from tfmammo.data import datasets
    from tfmammo.evaluation.validation import find_infilled_region
    from tfmammo.filesystem import name_case
    from tfmammo.tracking import export

    config = DataConfig.model_validate(export.read_card(options.short)["config"]["data"])
    train, held_out = datasets.open_subsets(config)
    packed: dict[str, Any] = {}
    for start, patches in (("", train.load()), ("test_", held_out)):
        packed[f"{start}image"] = np.round(65535 * patches.images[..., 0]).astype(np.uint16)
        packed[f"{start}mask"] = 255 * patches.masks[..., 0]
    region = find_infilled_region(held_out)[..., 0].astype(np.uint8)
    names = [name_case(name) for name in held_out.ids]
    np.savez_compressed(
        options.data,
        **packed,
        test_region=region,
        test_names=names,
        patients=train.patient_ids,
    )


def write_masks(options: argparse.Namespace) -> None:
    """Write a label map, 0 or 1, for each test patch."""
    import cv2

    options.folder.mkdir(parents=True)
    masks = np.load(options.answer)["answer"] > 127
    for name, mask in zip(np.load(options.data)["test_names"], masks, strict=True):
        cv2.imwrite(str(options.folder / f"{name}.png"), mask.astype(np.uint8))


def write_model(options: argparse.Namespace) -> None:
    """Write trained weights as an export, with the card of a short run.

    The card says which patients the networks know, so the run must be of the same ones.
    """
    import models

    from tfmammo.tracking import export as exports

    card = exports.read_card(options.short)
    config = card["config"]
    with np.load(options.weights) as file:
        values = dict(file)
    about = json.loads(str(values.pop("about")))
    checks = {
        "model": (about["config"], config["model"]),
        "data.size": (about["size"], config["data"]["size"]),
        "training.batch_size": (about["batch"], config["training"]["batch_size"]),
        "patients": (about["patients"], sorted(card["train_patients"])),
    }
    for key, (has, wants) in checks.items():
        if has != wants:
            raise SystemExit(f"{options.short}: {key} is not that of {options.weights}")
    model = models.build_model(about["model"], config["model"], config["data"]["size"])
    made = {name.partition("/")[0] for name in values}
    for name, variables in models.collect_variables(model).items():
        for i, variable in enumerate(variables):
            if name in made:
                variable.assign(values[f"{name}/{i}"])
    kept = ("name", "split", "data_fingerprint", "id_key", "train_patients", "held_out_ids")
    training = {key: about[key] for key in ("steps", "seed")}
    training["precision"] = PRECISIONS[about["precision"]]
    content = {key: card[key] for key in kept} | {
        "id": hashlib.sha256(options.weights.read_bytes()).hexdigest()[:32],
        "step": about["steps"],
        "config": config | {"training": config["training"] | training},
    }
    with_weights = argparse.Namespace(
        name=model.name,
        networks={name: model.networks[name] for name in sorted(made)},
        functions=lambda: {n: one for n, one in model.functions().items() if n in made},
    )
    exports.export(with_weights, options.folder, content)
    if (curve := options.weights.with_name(CURVE)).exists():
        shutil.copyfile(curve, options.folder / CURVE)


def train(options: argparse.Namespace) -> None:
    """Train, or go on; write losses.csv, weights.npz, and the answers of each network of images.

    A training run that is validated writes curve.csv too. state.npz holds all that a second command
    needs to go on.
    """
    step = Step(options.folder, options.seed)
    import jax

    if step.meta["model"] not in TRAINED:
        raise SystemExit(f"{options.folder}: only {', '.join(TRAINED)} can be trained")
    chunk = options.chunk
    if options.steps % chunk or options.every % chunk:
        raise SystemExit(f"--steps and --every must be multiples of --chunk, {chunk}")
    data = dict(np.load(options.data))
    identity = step.identify(data)
    options.output.mkdir(parents=True, exist_ok=True)
    start = made = step.read_state(options.output, identity)
    if made % chunk:
        raise SystemExit(f"{options.output}: {made} steps are no multiple of --chunk, {chunk}")
    networks = {
        name: step.load(name)
        for name, about in step.meta["functions"].items()
        if about["inputs"] in (["image"], ["mask"])
    }
    measured = None
    if MEASURED in step.meta["functions"]:
        from tfmammo.metrics.synthesis import per_image  # which needs no TensorFlow

        measured = step.load(MEASURED)
    curve = read_rows(options.output / CURVE, made)
    rows = read_rows(options.output / LOSSES, made)

    def keep() -> None:
        """Write what there is: losses, networks' answers, the curve and the state."""
        write_rows(options.output / LOSSES, ["step", "seconds", *step.meta["losses"]], rows)
        for name, network in networks.items():
            values = np.clip(np.round(255 * answer(step, name, network, data)), 0, 255)
            np.savez_compressed(
                options.output / f"{name}-{made}.npz", answer=values.astype(np.uint8)
            )
        if measured and made % options.every == 0:
            real, region = scale(data["test_image"]), data["test_region"]
            images = answer(step, MEASURED, measured, data)
            # as train/infilling.py is validated
            ssim = per_image(real[..., None], images, region[..., None])["ssim_mass"].mean()
            curve.append([str(made), str(float(ssim))])
            write_rows(options.output / CURVE, ["step", "ssim"], curve)
        # last, because a stop loses what was made after the state
        step.write_state(options.output, made, identity, data["patients"])

    stops: list[int] = []  # a stop waits for the end of a chunk
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stops.append(number))
    key = jax.random.PRNGKey(options.seed)
    began = time.monotonic()
    compiled = compile_chunk(step, data, key, made, chunk)
    print(f"{step.device}: compiled in {time.monotonic() - began:.0f} s", flush=True)
    spent = float(rows[-1][1]) if rows else 0.0
    taken = 0.0  # s, by the steps of this command alone
    began = time.monotonic()
    while made < options.steps and not stops and time.monotonic() - began < 60 * options.minutes:
        since = time.monotonic()
        step.state, losses = compiled(step.state, made)
        numbers = list(map(float, losses))
        taken += time.monotonic() - since
        made += chunk
        rows.append([str(made), f"{spent + taken:.1f}", *map(str, numbers)])
        if made % options.every == 0 and made < options.steps:
            keep()
    print(f"{made} steps, {1e3 * taken / max(made - start, 1):.2f} ms each", flush=True)
    if made > start:
        keep()


def compile_chunk(step: Step, data: dict[str, np.ndarray], key: Any, first: int, chunk: int) -> Any:
    """Compile a chunk of steps on patches, turned and mirrored at random, for the device.

    An epoch takes each patch once, in an order of its own.

    Args:
        step: The training step.
        data: image and mask, unsigned integers [n, size, size].
        key: The key of all draws.
        first: The number of steps made so far.
        chunk: How many steps the device takes by itself.

    Returns:
        (state, first) -> (state, losses of the last step).
    """
    import jax
    import jax.numpy as jnp

    image, mask = (step.put(scale(data[name])) for name in ("image", "mask"))
    count, batch = len(image), step.meta["batch"]
    orders, turns_of = jax.random.split(key)

    def choose(draw: Any) -> Any:
        """Choose the patch of a draw by its epoch's order."""
        order = jax.random.permutation(jax.random.fold_in(orders, draw // count), count)
        return order[draw % count]

    def draw(number: Any) -> list[Any]:
        index = jax.vmap(choose)(number * batch + jnp.arange(batch))
        turns = jax.random.randint(jax.random.fold_in(turns_of, number), (batch,), 0, 8)

        def place(values: Any, k: Any) -> Any:
            ways = [functools.partial(jnp.rot90, k=n) for n in range(4)]
            values = jax.lax.switch(k % 4, ways, values)
            return jnp.where(k >= 4, values[:, ::-1], values)

        return [jax.vmap(place)(values[index], turns)[..., None] for values in (mask, image)]

    @functools.partial(jax.jit, donate_argnums=0)
    def take(state: list[Any], first: Any) -> tuple[list[Any], list[Any]]:
        """Take a chunk of steps; return the state and the losses of the last one."""

        def body(number: Any, carried: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
            return step.inline(draw(number), carried[0])

        losses = [jnp.zeros((), jnp.float32)] * len(step.meta["losses"])
        return jax.lax.fori_loop(first, first + chunk, body, (state, losses))

    return take.lower(step.state, first).compile()


def scale(values: np.ndarray) -> np.ndarray:
    """Scale integers to float32 in [0, 1]."""
    return values.astype(np.float32) / np.iinfo(values.dtype).max


def read_rows(path: Path, made: int) -> list[list[str]]:
    """Read the rows of a table up to a step; later ones were of work that a stop lost."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [row for row in rows if int(row[0]) <= made]


def write_rows(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """Write a table, so that a stop leaves the earlier one or the new one."""
    new = path.with_suffix(".new")
    with new.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    new.replace(path)


def answer(step: Step, name: str, network: Any, data: dict[str, np.ndarray]) -> np.ndarray:
    """Compute what a function makes of the test patches, float32 [n, size, size, 1]."""
    about = step.meta["functions"][name]
    weights = [step.state[i] for i in about["variables"]]
    tests = [scale(data[f"test_{key}"])[..., None] for key in about["inputs"]]
    answers = []
    for start in range(0, len(tests[0]), ANSWERED):
        rows = np.arange(start, start + ANSWERED) % len(tests[0])
        inputs = [step.put(test[rows]) for test in tests]
        answers.append(np.asarray(call(network, [*inputs, *weights])[0]))
    return np.concatenate(answers)[: len(tests[0])]


if __name__ == "__main__":
    main()
