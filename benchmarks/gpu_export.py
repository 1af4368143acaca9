"""Steps lowered, patches packed and exports written for a GPU that has no TensorFlow."""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpu_step
import models  # the first to import TensorFlow, because it keeps that quiet
from cases import make_batch

# isort: split
import keras
import numpy as np
import tensorflow as tf

from tfmammo import config as configuration
from tfmammo.data import datasets
from tfmammo.data.labelled import check_binary, make_blend_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError
from tfmammo.evaluation.validation import find_infilled_region
from tfmammo.filesystem import name_case
from tfmammo.mammogram import key_check
from tfmammo.models import blending, contextual
from tfmammo.nn.layers import sample_latent_noise
from tfmammo.studies import progressive, systems
from tfmammo.tracking import export as exports
from tfmammo.tracking import store
from tfmammo.training import loop

PRECISIONS = {"bfloat16": "mixed_bfloat16", "float32": "float32"}  # of a job -> of Keras
# What the held-out patches of each model are answered with, and what its curve shows: the function,
# the metric of `gpu_step.measure` and its name, and what is real.
MEASURES = {
    "can": ("inverter", "dice", "dice", "mask"),
    "unet": ("segmenter", "dice", "dice", "mask"),
    "fcn8s": ("segmenter", "dice", "dice", "mask"),
    "segnet": ("segmenter", "dice", "dice", "mask"),
    "pix2pix": ("generator", "ssim", "ssim", "image"),
    "infilling": ("infill", "ssim_mass", "ssim", "image"),
    "flow": ("infill", "likeness", "likeness", "image"),
    "blending": ("blend", "likeness", "likeness", "image"),
    "contextual": ("edit", "likeness", "likeness", "real"),
}
# An output that may take the memory of a parameter is the variable's new value.
ALIAS = re.compile(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>")
STORED = 4096  # numbers of a variable that is stored where it can't be drawn again


def lower_model(
    model: Any, batch: Mapping[str, np.ndarray], folder: Path, functions: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a model's programs, NAME.mlir.gz; return what meta.json says of their variables.

    Args:
        model: With its optimizers. Its weights are described, not stored: CAN's state takes 1.3 GB.
        batch: Of a step.
        folder: Of the files.
        functions: tf.functions, by the names of their programs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signature = [tf.TensorSpec(value.shape, value.dtype, key) for key, value in batch.items()]

    @tf.function(jit_compile=True, input_signature=signature)
    def train_step(*values: Any) -> dict[str, Any]:
        with tf.device("/GPU:0"):
            return model.train_step(dict(zip(batch, values, strict=True)))

    code, handles, losses = lower(train_step, list(batch.values()))
    write_program(folder / "step.mlir.gz", code)
    # places of each variable that the step writes, among all variables and among the outputs
    written = [(int(place) - len(batch), int(output)) for place, output in ALIAS.findall(code)]
    taken = len(handles)
    described = {}
    for name, function in functions.items():
        shapes = [(gpu_step.ANSWERED, *spec.shape[1:]) for spec in function.input_signature]
        compiled = tf.function(function.python_function, jit_compile=True)
        code, needed, _ = lower(compiled, [np.zeros(shape, np.float32) for shape in shapes])
        write_program(folder / f"{name}.mlir.gz", code)
        known = {id(handle) for handle in handles}
        handles += [handle for handle in needed if id(handle) not in known]
        places = {id(handle): i for i, handle in enumerate(handles)}
        described[name] = {
            "inputs": [spec.name for spec in function.input_signature],
            "variables": [places[id(handle)] for handle in needed],
        }
    return {
        "inputs": list(batch),
        "losses": sorted(losses),
        "taken": taken,
        "variables": describe_all(model, handles),
        "written": written,
        "functions": described,
    }


def lower(function: Any, inputs: list[np.ndarray]) -> tuple[str, list[Any], Any]:
    """Lower a compiled tf.function: its StableHLO, handles of variables it takes, its outputs."""
    tensors = [tf.constant(value) for value in inputs]
    concrete = function.get_concrete_function(*(() if function.input_signature else tensors))
    code = function.experimental_get_compiler_ir(*tensors)(stage="stablehlo")
    # a copy is no operation of StableHLO; a barrier is, and does as little
    code = code.replace("= mhlo.copy ", "= stablehlo.optimization_barrier ")
    return code, list(concrete.captured_inputs), concrete.structured_outputs


def write_program(path: Path, code: str) -> None:
    """Write a program, compressed: equal programs are equal files."""
    path.write_bytes(gzip.compress(code.encode(), mtime=0))


def describe_all(model: Any, handles: list[Any]) -> list[dict[str, Any]]:
    """Describe how every variable starts, and which weight of which network it is."""
    owners = {
        id(variable.value.handle): f"{network}/{i}"
        for network, variables in models.collect_variables(model).items()
        for i, variable in enumerate(variables)
    }
    seen: dict[bytes, int] = {}
    described = []
    for place, handle in enumerate(handles):
        value = read_variable(handle)
        owner = owners.get(id(handle))
        about = describe(value, owner)
        if "normal" in about:  # a running average starts as a copy of its network
            first = seen.setdefault(hashlib.sha256(value.tobytes()).digest(), place)
            if first != place:
                about = {key: about[key] for key in ("shape", "dtype")} | {"copy": first}
        described.append(about | {"owner": owner})
    return described


def read_variable(handle: Any) -> np.ndarray:
    """Read the variable of a resource handle: a graph's `variables` are not all that it takes."""
    about = handle._handle_data.shape_and_type[0]
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.dtypes.as_dtype(about.dtype)).numpy()


def describe(value: np.ndarray, owner: str | None) -> dict[str, Any]:
    """Describe how a variable starts.

    It is a constant; dropout's seed and place; normal numbers of a mean and a deviation; or, where
    it is small and no trained weight, or repeats its numbers as FCN-8s's bilinear kernels do, its
    values.
    """
    about: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype)}
    if value.size == 0 or np.all(value == value.flat[0]):
        return about | {"constant": value.flat[0].item() if value.size else 0}
    if value.dtype.kind != "f":
        return about | {"seed": value.ravel().tolist()}
    is_trained = owner is not None and "/state/" not in owner
    repeats = len(np.unique(value)) <= 0.75 * value.size
    if value.size <= STORED and (repeats or not is_trained):
        return about | {"values": value.ravel().tolist()}
    return about | {"normal": [float(value.mean()), float(value.std())]}


def write_frozen(network: Any, folder: Path) -> str:
    """Write the weights of a frozen network as float16, once for all models; return the file."""
    values = [variable.numpy().astype(np.float16) for variable in network.weights]
    digest = hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest()
    name = f"{gpu_step.FROZEN}-{digest[:12]}.npz"
    if not (folder / name).exists():
        named = {f"{gpu_step.FROZEN}/{i}": value for i, value in enumerate(values)}
        gpu_step.save(folder / name, compress=True, **named)
    return name


def make_functions(model: Any) -> dict[str, Any]:
    """Make what a model's held-out patches are answered with: tf.functions of what `pack` packs."""
    if model.name in ("infilling", "flow"):

        def infill(mask: Any, image: Any) -> dict[str, Any]:
            return {"image": model.sample({"mask": mask, "image": image})["synthetic"]}

        return {"infill": make_function(infill, model.size, "mask", "image")}
    if model.name == "blending":

        def blend(image: Any, mask: Any, tissue: Any) -> dict[str, Any]:
            return {"image": model.blend(blending.paste(tissue, image, mask))}

        return {"blend": make_function(blend, model.size, "image", "mask", "tissue")}
    if model.name == "contextual":
        average = model.functions()["average"].python_function

        def edit(image: Any, noise: Any) -> dict[str, Any]:
            return {"image": average(image, noise)["image"]}

        image = tf.TensorSpec([None, model.size, model.size, 1], tf.float32, "image")
        noise = tf.TensorSpec([None, model.average.blocks], tf.float32, "noise")
        return {"edit": tf.function(edit, input_signature=[image, noise])}
    return {
        name: function
        for name, function in model.functions().items()
        if [spec.name for spec in function.input_signature] in (["image"], ["mask"])
    }


def make_function(function: Any, size: int, *names: str) -> Any:
    """Make a tf.function of patches."""
    specs = [tf.TensorSpec([None, size, size, 1], tf.float32, name) for name in names]
    return tf.function(function, input_signature=specs)


def refuse(name: str, experiment: Any) -> None:
    """Refuse a config that asks for what a lowered step does not do."""
    training, data = experiment.training, experiment.data
    wrong = {
        "training.initial": training.initial is not None,
        "training.accumulate": training.accumulate > 1,
        "data.augment=false and data.split=paper": not data.turn_draws,
        "the encoder's model.weights": getattr(experiment.model, "pretrained", False),
    }
    if asked := [key for key, is_asked in wrong.items() if is_asked]:
        raise ConfigError(f"{name}: {', '.join(asked)}: is not for benchmarks/gpu.py")


def prepare(spec: dict[str, Any], queue: Path) -> dict[str, Any]:
    """Write a job's program, patches and card; return what queue.json says of it.

    Args:
        spec: The job, as `gpu.expand_jobs` makes it.
        queue: The queue's folder.
    """
    name = spec["model"]
    if name not in MEASURES:
        raise ConfigError(f"{spec['name']}: model={name}: is none of {', '.join(MEASURES)}")
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(PRECISIONS[spec["precision"]])
    experiment = configuration.load(spec["config"], spec["set"], systems.MODELS[name])
    refuse(spec["name"], experiment)
    folder = queue / "cards" / spec["name"]
    folder.mkdir(parents=True, exist_ok=True)
    experiment, train, packed, held_out = pack(spec, experiment, folder)
    arrays = [key.encode() + packed[key].tobytes() for key in sorted(packed)]
    data = f"{hashlib.sha256(b''.join(arrays)).hexdigest()[:12]}.npz"
    if not (queue / "data" / data).exists():
        gpu_step.save(queue / "data" / data, compress=True, **packed)
    program = lower_job(spec, experiment, queue / "programs")
    training = experiment.training.model_copy(update={"precision": PRECISIONS[spec["precision"]]})
    card = {
        "name": experiment.name,
        "config": experiment.model_copy(update={"training": training}).model_dump(
            mode="json", exclude={"tracking"}
        ),
        "archive": experiment.data.archive_name,
        "split": experiment.data.split,
        "data_fingerprint": train.fingerprint(),
        "id_key": key_check(),
        "precision": PRECISIONS[spec["precision"]],
        "train_patients": sorted(set(train.patient_ids.tolist())),
        "held_out_ids": held_out.ids.tolist(),
        **store.read_git_state(),
    }
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    count = loop.count_steps(training, len(train))
    return {
        "name": spec["name"],
        "model": name,
        "program": program,
        "data": data,
        "seed": training.seed,
        "steps": count,
        "every": min(training.validate_every, count),
    }


def lower_job(spec: dict[str, Any], experiment: Any, programs: Path) -> str:
    """Lower the step of a job, unless another job has the same; return its folder's name."""
    size, batch_size = experiment.data.size, experiment.training.batch_size
    config = experiment.model.model_dump(mode="json")
    about = {"model": spec["model"], "size": size, "batch": batch_size} | {
        "precision": spec["precision"],
        "config": config,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    folder = programs / f"{spec['model']}-{digest}"
    if (folder / "meta.json").exists():
        return folder.name
    model = models.build_model(spec["model"], config, size)
    batch = make_batch(argparse.Namespace(model=spec["model"], size=size, batch=batch_size))
    if "label" not in batch:
        batch = {key: batch[key] for key in ("mask", "image")}
    meta = about | lower_model(model, batch, folder, make_functions(model))
    function, metric, shown, real = MEASURES[spec["model"]]
    if config.get("direction") == "image_to_mask":
        function, metric, shown, real = "generator", "dice", "dice", "mask"
    meta["measure"] = {"function": function, "metric": metric, "name": shown, "real": real}
    if hasattr(model, gpu_step.FROZEN):
        meta["frozen"] = write_frozen(getattr(model, gpu_step.FROZEN), programs)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder.name


def pack(
    spec: dict[str, Any], experiment: Any, folder: Path
) -> tuple[Any, Patches, dict[str, np.ndarray], Patches]:
    """Open the patches of a run as its train script does, and pack them.

    Images have `bits`, masks 8, [n, size, size] each, labels are int32. What starts with test_ is
    held out: image, mask, the region where infilled masses are compared, and names; of blending the
    tissue that each lesion goes into; of the contextual GAN the noise and what is real.

    Args:
        spec: The job.
        experiment: Its config.
        folder: For the split.

    Returns:
        The config, the training patches, what is packed, and the held-out patches.
    """
    shorten = functools.partial(shorten_images, bits=spec["bits"])
    name = spec["model"]
    more: dict[str, np.ndarray] = {}
    train: Any
    if name == "blending":
        data = datasets.pin_archive_split(experiment.data, folder)
        train, held_out = datasets.open_subsets(data, folder, make_blend_patches)
        train = check_binary(train.load(), "the training folds")
        held_out = check_binary(held_out, "the held-out fold")
        rows = [np.flatnonzero(held_out.labels == n) for n in (blending.LESION, blending.NORMAL)]
        held_out, tissue = (held_out.take(row) for row in rows)
        more["test_tissue"] = shorten(tissue.images)[np.arange(len(held_out)) % len(tissue)]
    elif name == "contextual":
        experiment = progressive.set_kinds(experiment)
        if experiment.model.stages(experiment.data.size) != [experiment.data.size]:
            raise ConfigError("contextual: only the first stage can be trained; take model.start")
        subsets = progressive.open_subsets(experiment, folder, [experiment.data.size])
        train, held_out = subsets.train, subsets.inputs
        more["test_real"] = shorten(subsets.targets.images)
        blocks = 2 * int(np.log2(experiment.data.size // contextual.INNERMOST))
        more["test_noise"] = sample_latent_noise(len(held_out), blocks)
    else:
        train, held_out = datasets.open_subsets(experiment.data, folder)
        train = train.load()
    packed: dict[str, Any] = {}
    for start, patches in (("", train), ("test_", held_out)):
        packed[f"{start}image"] = shorten(patches.images)
        packed[f"{start}mask"] = 255 * patches.masks[..., 0]
    packed["test_region"] = find_infilled_region(held_out)[..., 0].astype(np.uint8)
    packed["test_names"] = np.array([name_case(name) for name in held_out.ids])
    packed |= {"label": train.labels} if len(train.labels) else {}
    return experiment, train, packed | more, held_out


def shorten_images(images: np.ndarray, bits: int) -> np.ndarray:
    """Turn images in [0, 1], [n, size, size, 1], to unsigned integers without the last axis."""
    return np.round((2**bits - 1) * images[..., 0]).astype(f"uint{bits}")


def write_model(queue: Path, name: str, folder: Path) -> None:
    """Write a finished job's weights as an export, with the curve beside its card."""
    run, card_folder = queue / "runs" / name, queue / "cards" / name
    job = gpu_step.find_job(queue, name)
    path = run / "weights.npz"
    if not path.exists():
        reason = "is not finished" if job["weights"] else "has weights too large to travel"
        raise SystemExit(f"{path}: there is none, because {name} {reason}")
    values = gpu_step.read_own(path, gpu_step.identify(queue, job))
    card = json.loads((card_folder / "card.json").read_text(encoding="utf-8"))
    progress = json.loads((run / "progress.json").read_text(encoding="utf-8"))
    config = card["config"]
    model = models.build_model(job["model"], config["model"], config["data"]["size"])
    for network, variables in models.collect_variables(model).items():
        for i, variable in enumerate(variables):
            if (key := f"{network}/{i}") in values:
                variable.assign(values[key])
    content = card | {
        "id": hashlib.sha256(path.read_bytes()).hexdigest()[:32],
        "step": job["steps"],
        "metrics": progress["metrics"],
        "hardware": progress["device"],
        "pretrained": {key: one._asdict() for key, one in model.pretrained.items()},
    }
    exports.export(model, folder, content)
    (folder / "curve.csv").write_bytes((run / "curve.csv").read_bytes())
