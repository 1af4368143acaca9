"""A lowered training step on JAX's first device, and a job's run of it; without TensorFlow.

`gpu.py queue` writes what is read here, `gpu.py next` starts `train` in a process for each job.
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

FROZEN = "feature_extractor"  # the network of infilling that training leaves as it is
ANSWERED = 8  # patches that a function takes
TYPES = {"f32": np.dtype(np.float32), "i64": np.dtype(np.int64), "i32": np.dtype(np.int32)}
LONGEST_CHUNK = 100  # steps that the device takes by itself
STATE_SECONDS = 60  # after which a state is written, at the latest
# What a run that ended early goes on with, from the most exact to the smallest. "float32": as if it
# had not ended. "bfloat16": every weight and Adam's moments in half as many bytes. "weights": the
# networks' weights as float16, and Adam starts afresh. "none": nothing, it begins again.
STATES = ("float32", "bfloat16", "weights", "none")
Job = dict[str, Any]


def is_frozen(about: dict[str, Any]) -> bool:
    """Return whether a variable belongs to the frozen network."""
    return (about["owner"] or "").startswith(f"{FROZEN}/")


def draw_variable(
    about: dict[str, Any], random: np.random.Generator, seed: int, drawn: list[np.ndarray]
) -> np.ndarray:
    """Make a variable's first value by its description; see `gpu_export.describe`."""
    shape, dtype = about["shape"], about["dtype"]
    if "copy" in about:
        return drawn[about["copy"]].copy()
    if "values" in about:
        return np.array(about["values"], dtype).reshape(shape)
    if "seed" in about:
        return np.array([about["seed"][0] + seed, *about["seed"][1:]], dtype).reshape(shape)
    if "constant" in about:
        return np.full(shape, about["constant"], dtype)
    mean, deviation = about["normal"]
    return (random.standard_normal(shape, np.float32) * deviation + mean).astype(dtype)


class Step:
    """A lowered training step on JAX's first device.

    Args:
        folder: Of the program, written by `gpu_export.lower_model`.
        seed: Of the weights.

    Attributes:
        state: The value of every variable, on the device.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        os.environ["JAX_ENABLE_X64"] = "1"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax

        self.meta = read_meta(folder)
        self.folder, self.seed = folder, seed
        self.device = jax.devices()[0]
        self.put = functools.partial(jax.device_put, device=self.device)
        random = np.random.default_rng(seed)
        drawn: list[np.ndarray] = []
        for about in self.meta["variables"]:
            drawn.append(draw_variable(about, random, seed, drawn))
        if "frozen" in self.meta:
            with np.load(folder.parent / self.meta["frozen"]) as frozen:
                for i, about in enumerate(self.meta["variables"]):
                    if is_frozen(about):
                        drawn[i] = frozen[about["owner"]].astype(about["dtype"])
        self.state = list(map(self.put, drawn))

    def read_program(self, name: str) -> bytes:
        """Read one of the folder's programs, StableHLO as text."""
        return gzip.decompress((self.folder / f"{name}.mlir.gz").read_bytes())

    def load(self, name: str) -> Any:
        """Compile one of the folder's programs."""
        from jax._src.lib import xla_client

        devices = xla_client.DeviceList((self.device,))
        options = xla_client.CompileOptions()
        return self.device.client.compile_and_load(self.read_program(name), devices, options)

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

        code = self.read_program("step").decode()
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
        taken = state[: self.meta["taken"]]  # functions may take more variables
        return self.advance(state, self.primitive.bind(*batch, *taken))

    def take(self, batch: list[Any]) -> list[Any]:
        """Take a step on a batch; return the losses, on the device."""
        outputs = call(self.executable, [*batch, *self.state[: self.meta["taken"]]])
        self.state, losses = self.advance(self.state, outputs)
        return losses

    def advance(self, state: list[Any], outputs: list[Any]) -> tuple[list[Any], list[Any]]:
        """Put what a step has written into its state; return the new state and the losses."""
        state = list(state)
        for variable, output in self.meta["written"]:
            state[variable] = outputs[output]
        return state, outputs[: len(self.meta["losses"])]

    def answer(self, name: str, program: Any, data: dict[str, np.ndarray]) -> np.ndarray:
        """Compute what a function makes of the held-out patches, float32 [n, size, size, 1]."""
        about = self.meta["functions"][name]
        weights = [self.state[i] for i in about["variables"]]
        tests = [scale(data[f"test_{key}"]) for key in about["inputs"]]
        # images and masks have no axis of channels, noise has one of its own
        tests = [test[..., None] if test.ndim == 3 else test for test in tests]
        answers = []
        for start in range(0, len(tests[0]), ANSWERED):
            rows = np.arange(start, start + ANSWERED) % len(tests[0])
            inputs = [self.put(test[rows]) for test in tests]
            answers.append(np.asarray(call(program, [*inputs, *weights])[0]))
        return np.concatenate(answers)[: len(tests[0])]

    def collect_owned(self, frozen: bool = False) -> dict[str, np.ndarray]:
        """Collect the networks' weights by their names in weights.npz."""
        return {
            about["owner"]: np.asarray(value)
            for about, value in zip(self.meta["variables"], self.state, strict=True)
            if about["owner"] and (frozen or not is_frozen(about))
        }


def call(executable: Any, values: list[Any]) -> list[Any]:
    """Run a program on arrays of the device."""
    results = executable.execute_sharded(values)
    return [one[0] for one in results.disassemble_into_single_device_arrays()]


def scale(values: np.ndarray) -> np.ndarray:
    """Scale unsigned integers to float32 in [0, 1]; others are left as they are."""
    if values.dtype.kind != "u":
        return values
    return values.astype(np.float32) / np.iinfo(values.dtype).max


def count_state_bytes(variables: list[dict[str, Any]], form: str) -> int:
    """Count the bytes of a state in one of the forms of `STATES`."""
    if form == "none":
        return 0
    total = 0
    for about in variables:
        if is_frozen(about) or (form == "weights" and not about["owner"]):
            continue
        size = np.dtype(about["dtype"]).itemsize
        halved = form != "float32" and about["dtype"] == "float32"
        total += math.prod(about["shape"]) * (size // 2 if halved else size)
    return total


def encode(value: np.ndarray, form: str) -> np.ndarray:
    """Shorten a value for a state: bfloat16's bits as uint16, rounded to even; or float16."""
    if value.dtype != np.float32 or form == "float32":
        return value
    if form == "weights":
        return value.astype(np.float16)
    bits = np.ascontiguousarray(value).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def decode(value: np.ndarray, dtype: str) -> np.ndarray:
    """Turn what `encode` has made into a variable's dtype."""
    if dtype == "float32" and value.dtype == np.uint16:
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value.astype(dtype)


def save(path: Path, compress: bool = False, **values: Any) -> None:
    """Write arrays, so that a stop leaves the earlier file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new.npz")
    (np.savez_compressed if compress else np.savez)(new, **values)
    new.replace(path)


class Run:
    """A job's run and its folder, runs/NAME of the queue.

    losses.csv         losses and seconds after every chunk of steps
    curve.csv          the held-out metric at every validation
    answer-NAME.npz    what a function makes of the held-out patches, uint8
    state.npz          what an unfinished run goes on with; see `STATES`
    weights.npz        of a finished run: its networks' weights as float16
    progress.json      how far it is, which is written last

    Args:
        queue: The queue's folder.
        name: Of the job.
    """

    def __init__(self, queue: Path, name: str) -> None:
        self.job = find_job(queue, name)
        self.folder = queue / "runs" / name
        self.step = Step(queue / "programs" / self.job["program"], self.job["seed"])
        self.data = dict(np.load(queue / "data" / self.job["data"]))
        self.chunk = math.gcd(self.job["steps"], self.job["every"], LONGEST_CHUNK)
        self.identity = identify(queue, self.job)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.made = self.read_state()
        self.losses = read_rows(self.folder / "losses.csv", self.made)
        self.curve = read_rows(self.folder / "curve.csv", self.made)
        self.load = functools.cache(self.step.load)  # functions are compiled when they are wanted

    def read_state(self) -> int:
        """Read what `write_state` wrote, if anything; return the steps made so far."""
        path = self.folder / "state.npz"
        if not path.exists():
            return 0
        values = read_own(path, self.identity)
        for i, about in enumerate(self.step.meta["variables"]):
            if str(i) in values:
                self.step.state[i] = self.step.put(decode(values[str(i)], about["dtype"]))
        return int(values["made"])

    def write_state(self) -> None:
        """Write state.npz, or of a finished run weights.npz in its place."""
        form = self.job["state"]
        if self.made < self.job["steps"]:
            if form == "none":
                return
            values = {
                str(i): encode(np.asarray(value), form)
                for i, (about, value) in enumerate(
                    zip(self.step.meta["variables"], self.step.state, strict=True)
                )
                if not is_frozen(about) and (about["owner"] or form != "weights")
            }
            save(self.folder / "state.npz", made=self.made, of=self.identity, **values)
            return
        if self.job["weights"]:
            owned = self.step.collect_owned()
            half = {name: value.astype(np.float16) for name, value in owned.items()}
            save(self.folder / "weights.npz", of=self.identity, **half)
        (self.folder / "state.npz").unlink(missing_ok=True)

    def keep(self, answers: bool) -> None:
        """Write what there is; the state comes after all that a stop may lose."""
        score = self.step.meta["measure"]["name"]
        header = ["step", "seconds", *self.step.meta["losses"]]
        write_rows(self.folder / "losses.csv", header, self.losses)
        write_rows(self.folder / "curve.csv", ["step", score], self.curve)
        for name in self.step.meta["functions"] if answers else ():
            values = np.clip(np.round(255 * self.compute(name)), 0, 255).astype(np.uint8)
            save(self.folder / f"answer-{name}.npz", compress=True, answer=values, of=self.identity)
        self.write_state()
        taken = float(self.losses[-1][1]) if self.losses else 0.0
        progress = {
            "made": self.made,
            "milliseconds": round(1e3 * taken / max(self.made, 1), 3),
            "metrics": {score: float(self.curve[-1][1])} if self.curve else {},
            "device": self.step.device.device_kind,
        }
        new = self.folder / "progress.new"
        new.write_text(json.dumps(progress), encoding="utf-8")
        new.replace(self.folder / "progress.json")

    def compute(self, name: str) -> np.ndarray:
        """Compute a function's answers to the held-out patches."""
        return self.step.answer(name, self.load(name), self.data)

    def validate(self) -> None:
        """Add a row to the curve."""
        about = self.step.meta["measure"]
        score = measure(about["metric"], about["real"], self.compute(about["function"]), self.data)
        self.curve.append([str(self.made), f"{score:.6g}"])

    def train(self, minutes: float) -> None:
        """Take steps until the last one, a signal, or the end of the time; keep what there is."""
        stops = collect_stops()  # a stop waits for the end of a chunk
        began = kept = time.monotonic()
        take = compile_chunk(self.step, self.data, self.made, self.chunk)
        print(f"{self.step.device}: compiled in {time.monotonic() - began:.0f} s", flush=True)
        taken = float(self.losses[-1][1]) if self.losses else 0.0
        while self.made < self.job["steps"] and not stops:
            since = time.monotonic()
            self.step.state, losses = take(self.step.state, self.made)
            numbers = [float(loss) for loss in losses]
            if not all(map(math.isfinite, numbers)):
                raise SystemExit(f"a loss is not finite after step {self.made}: {numbers}")
            taken += time.monotonic() - since
            self.made += self.chunk
            self.losses.append([str(self.made), f"{taken:.1f}", *map(str, numbers)])
            if self.made % self.job["every"] == 0 or self.made == self.job["steps"]:
                self.validate()
            if time.monotonic() - began > 60 * minutes:
                break
            if time.monotonic() - kept > STATE_SECONDS:
                self.keep(answers=False)
                kept = time.monotonic()
        self.keep(answers=True)


def collect_stops() -> list[int]:
    """Collect Ctrl-C and SIGTERM from now on, in place of what they do: a list that grows."""
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stops.append(number))
    return stops


def read_meta(program: Path) -> dict[str, Any]:
    """Read what is known of a program, by its folder."""
    meta: dict[str, Any] = json.loads((program / "meta.json").read_text(encoding="utf-8"))
    return meta


def read_own(path: Path, identity: str) -> dict[str, np.ndarray]:
    """Read the arrays of a run's file; refuse those of another program, seed or patches."""
    with np.load(path) as file:
        values = dict(file)
    if str(of := values.pop("of")) != identity:
        raise SystemExit(f"{path}: is of {of}, not of {identity}")
    return values


def read_jobs(queue: Path) -> list[Job]:
    """Read the jobs of a queue, in their order."""
    path = queue / "queue.json"
    if not path.exists():
        raise SystemExit(f"{path}: no such file; is this the folder of a queue?")
    jobs: list[Job] = json.loads(path.read_text(encoding="utf-8"))["jobs"]
    return jobs


def find_job(queue: Path, name: str) -> Job:
    """Find a job of the queue by its name."""
    for job in read_jobs(queue):
        if job["name"] == name:
            return job
    raise SystemExit(f"{queue}: has no job {name}")


def identify(queue: Path, job: Job) -> str:
    """Name program, seed and patches, all that a run needs: it goes on with no others."""
    folder = queue / "programs" / job["program"]
    files = [(folder / name).read_bytes() for name in ("step.mlir.gz", "meta.json")]
    program = hashlib.sha256(b"".join(files)).hexdigest()[:12]
    return f"program {program}, seed {job['seed']}, patches {job['data']}"


def measure(metric: str, real: str, answer: np.ndarray, data: dict[str, np.ndarray]) -> float:
    """Compare answers with the real held-out images or masks, as train/ validates a model."""
    from tfmammo.metrics import segmentation, synthesis  # which need no TensorFlow

    truth = scale(data[f"test_{real}"])[..., None]
    if metric == "dice":
        return float(segmentation.per_image(truth, answer)["dice"].mean())
    if metric == "likeness":
        return -synthesis.sliced_wasserstein(truth, answer)
    region = (data["test_region"] > 0).astype(np.uint8)[..., None]
    return float(synthesis.per_image(truth, answer, region)[metric].mean())


def compile_chunk(step: Step, data: dict[str, np.ndarray], first: int, chunk: int) -> Any:
    """Compile a chunk of steps on patches, turned and mirrored at random, for the device.

    An epoch takes each patch once, in an order of its own; of labelled patches each label has
    epochs of its own, and the labels take turns in a batch.

    Args:
        step: The training step.
        data: image and mask, unsigned integers [n, size, size], and label, int32 [n], if any.
        first: The number of steps made so far.
        chunk: How many steps the device takes by itself.

    Returns:
        (state, first) -> (state, losses of the last step).
    """
    import jax
    import jax.numpy as jnp

    inputs = {name: step.put(scale(data[name])) for name in step.meta["inputs"]}
    labels = data["label"] if "label" in inputs else np.zeros(len(data["image"]), np.int32)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    batch = step.meta["batch"]
    orders, turns_of = jax.random.split(jax.random.PRNGKey(step.seed))

    def choose(group: int, rows: np.ndarray, number: Any) -> Any:
        """Choose a batch's patches of one group by the orders of their epochs."""
        share = batch // len(groups)

        def choose_one(draw: Any) -> Any:
            epoch = draw // len(rows) * len(groups) + group
            order = jax.random.permutation(jax.random.fold_in(orders, epoch), len(rows))
            return jnp.asarray(rows)[order[draw % len(rows)]]

        return jax.vmap(choose_one)(number * share + jnp.arange(share))

    def draw(number: Any) -> list[Any]:
        chosen = [choose(group, rows, number) for group, rows in enumerate(groups)]
        index = jnp.stack(chosen, axis=1).reshape(-1)
        turns = jax.random.randint(jax.random.fold_in(turns_of, number), (batch,), 0, 8)

        def place(values: Any, k: Any) -> Any:
            ways = [functools.partial(jnp.rot90, k=n) for n in range(4)]
            values = jax.lax.switch(k % 4, ways, values)
            return jnp.where(k >= 4, values[:, ::-1], values)

        def take(values: Any) -> Any:
            values = values[index]
            return values if values.ndim == 1 else jax.vmap(place)(values, turns)[..., None]

        return [take(values) for values in inputs.values()]

    @functools.partial(jax.jit, donate_argnums=0)
    def take_steps(state: list[Any], first: Any) -> tuple[list[Any], list[Any]]:
        def body(number: Any, carried: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
            return step.inline(draw(number), carried[0])

        losses = [jnp.zeros((), jnp.float32)] * len(step.meta["losses"])
        return jax.lax.fori_loop(first, first + chunk, body, (state, losses))

    return take_steps.lower(step.state, first).compile()


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
