"""Every benchmark at a tiny size: it runs, and its JSON line is consistent."""

import argparse
import gzip
import importlib
import json
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow as tf

import tfmammo
import tfmammo.config
from tfmammo.baselines.fcn8s import bilinear
from tfmammo.baselines.segnet import SegNetConfig
from tfmammo.errors import ConfigError
from tfmammo.models.flow import Flow, FlowConfig

PATCH = {"filters": [4, 8, 8], "discriminator_strided": 1, "discriminator_filters": 4}
HEAD = {"filters": 4, "blocks": [1, 1, 1, 1], "rpn_width": 8, "anchor_scales": [1.0, 2.0]}
HEAD |= {"kernel": 3, "middle": 4, "channels": 2, "units": 16, "weights": "none"}
TINY = {  # size, batch and config of a step; CRN is infilling's other generator
    "can": (32, 1, PATCH),
    "infilling": (32, 2, PATCH),
    "crn": (32, 2, {**PATCH, "generator": "crn", "widths": [8, 8, 4]}),
    "contextual": (
        *(16, 3),
        {"filters": [2, 4], "discriminator_factor": 1, "attention": 8, "border": 1},
    ),
    "cgan": (32, 2, PATCH),
    "blending": (32, 4, {"widths": [4, 8], "discriminator_filters": 4}),
    "mask_gan": (32, 4, {"filters": [8, 4, 4], "discriminator_filters": [4, 4, 8]}),
    "flow": (32, 2, {"widths": [8, 16], "attention_levels": 1}),
    "classifier": (64, 4, {"filters": 4}),
    "unet": (32, 1, {"widths": [4, 8, 16]}),
    "segnet": (32, 1, {"widths": [4, 4, 8, 8, 8]}),
    "fcn8s": (32, 1, {"widths": [4, 4, 8, 8, 8], "fc_width": 16}),
    "light_head": (64, 2, {**HEAD, "batch_norm": "running"}),
}


@pytest.fixture
def run(repository, tmp_path, monkeypatch):
    """A function (script, *arguments) -> the JSON lines of a benchmark, or what it says on stderr
    if it fails.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv("PYTHONPATH", str(repository))

    def call(script, *arguments):
        command = [sys.executable, repository / f"benchmarks/{script}.py", *arguments]
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 400}
        done = subprocess.run([str(part) for part in command], **options)
        if done.returncode:
            return done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    return call


def is_right(line):
    """Whether answers were those of another package, and ratios those of the rounds."""
    ratios = [theirs / ours for ours, theirs in line["rounds"]]
    is_between = min(ratios) * 0.95 <= line["ratio"] <= max(ratios) * 1.05
    return line["losses_apart"] < 2e-4 and is_between and min(line["peak_mb"]) > 50


def is_one_side_alone(found):
    """Whether the loss of several workers is between those of the rounds, by either clock."""
    for clock in (found, found["cpu"]):
        lost = [1 - alone / together for alone, together in clock["rounds"]]
        # the rounds are printed to a millisecond
        if not min(lost) - 0.2 <= clock["loss"] <= max(lost) + 0.2:
            return False
    return 0 < found["exchanged_mb"] < 1


def make_tiny_arguments(model, rounds):
    """Arguments of benchmarks/step.py for a really small model, and one step a round."""
    size, batch, config = TINY[model]
    numbers = {"--size": size, "--batch": batch, "--rounds": rounds, "--seconds": 0.01}
    arguments = [part for name, number in numbers.items() for part in (name, str(number))]
    return [*arguments, "--config", json.dumps(config)]


CAN = json.dumps({"filters": [4, 8, 8], "discriminator_filters": 4})
OTHERS = {
    "input --only pipeline --files 2 --size 32 --patches 8 --draws 40 --steps 2 --model CAN": (
        lambda line: line["patches"] == 8 and line["memory"]["waited"] < 1
    ),
    "input --only build --mammograms 4 --size 32": lambda line: line["same_bytes"] is True,
    "workers --size 32 --config CAN --rounds 2 --steps 2 --accumulate 2 --exchange bfloat16": (
        is_one_side_alone
    ),
    "inference --peers torch onnx --size 32 --filters 4 8 8 --batches 1 2 --rounds 3 --patches 4": (
        lambda line: line["apart"] < 1e-4 and set(line["batches"]) == {"1", "2"}
    ),
    "xla shape --rounds 2 --seconds 0.01": (
        lambda line: (
            line["difference"] < 1e-4 and min(line["seconds"], line["compiled_seconds"]) > 0
        )
    ),
    f"step --model can --peer torch-best {' '.join(make_tiny_arguments('can', 2)[:-1])} CAN": (
        lambda line: line["losses_apart"] < 2e-4 and set(line["chosen"]) <= set(line["sweep"])
    ),
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", OTHERS)
def test_a_benchmark_runs_and_its_line_is_consistent(command, run):
    if "--peer" in command:
        for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="the extra `benchmark` is not installed")
    (line,) = run(*[CAN if word == "CAN" else word for word in command.split()])
    assert OTHERS[command](line), line


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("model", list(TINY))
def test_a_step_beside_pytorchs_from_equal_weights(model, run, monkeypatch):
    pytest.importorskip("torch", reason="the extra `benchmark` is not installed")
    # threads that wait for each other make small steps slow where others work too
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name = {"crn": "infilling"}.get(model, model)
    (line,) = run("step", "--model", name, "--peer", "torch", *make_tiny_arguments(model, rounds=2))
    assert line["benchmark"] == f"step.{name}" and len(line["rounds"]) == 2 and is_right(line)
    assert line["gflop"] > 0


def test_inference_starts_its_processes_with_the_options_of_its_command(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    inference = importlib.import_module("inference")
    started, worked = [], []

    def start(*command):
        started.append([str(part) for part in command])
        raise SystemExit

    monkeypatch.setattr(inference, "MeasuredProcess", start)
    monkeypatch.setattr(inference, "work", worked.append)
    monkeypatch.setattr(sys, "argv", ["inference.py", "--size", "32", "--filters", "4", "8"])
    with pytest.raises(SystemExit):
        inference.main()
    monkeypatch.setattr(sys, "argv", *started)
    inference.main()
    (options,) = worked
    assert (options.role, options.model, options.size) == ("ours", "can", 32)
    assert options.filters == [4, 8]


def test_dropout_is_off_where_losses_are_compared(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    models = importlib.import_module("models")
    can = models.build_model("can", {**PATCH, "filters": [4, 8, 8, 8]}, 32)
    (masks,) = np.random.default_rng(0).random((1, 2, 32, 32, 1), np.float32)
    usual = can.generator(masks).numpy()
    assert np.abs(can.generator(masks, training=True) - usual).max() > 1e-3
    models.switch_dropout_off(can)
    np.testing.assert_array_equal(can.generator(masks, training=True), usual)


@pytest.mark.slow
def test_dicom(run):
    (dicom,) = run("input", "--only", "dicom", "--files", "1", "--pixels", "64", "48")
    assert [dicom[key] for key in ("benchmark", "files", "rows", "cols")] == [
        *("input.dicom", 1, 64, 48)
    ]
    for syntax in ("uncompressed", "JPEG 2000"):
        ours, theirs, ratio = dicom[syntax].values()
        assert ours > 0 and theirs > 0 and ratio == pytest.approx(ours / theirs, rel=0.1)


def test_the_loss_of_eight_workers_follows_from_that_of_two(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import workers  # isort: skip  # of benchmarks/

    # 0.2 s of exchange become 0.35, each sending 14/8 instead of 2/2 of the gradients
    assert workers.predict_loss([1.0, 1.2]) == pytest.approx(0.35 / 1.35)
    assert workers.predict_loss([1.0, 1.2], workers=2) == pytest.approx(0.2 / 1.2)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_lowered_step_says_which_variables_it_writes(run, tmp_path):
    """And JAX's answers are PyTorch's, where both are installed."""
    small = ["--model", "can", "--precision", "float32", "--size", "32"]
    config = json.dumps({"filters": [4, 8], "discriminator_filters": 4})
    assert run("gpu_compare", "export", tmp_path, *small, "--config", config) == []
    meta = json.loads((tmp_path / "can-float32/meta.json").read_text())
    owners = [about["owner"] for about in meta["variables"]]
    trained = {i for i, owner in enumerate(owners) if owner and "/state/" not in owner}
    written = {variable for variable, _ in meta["written"]}
    # Adam writes each weight and both of its moments, and counts its steps
    assert trained <= written and len(written) >= 3 * len(trained)
    outputs = [output for _, output in meta["written"]]
    assert outputs == list(range(len(meta["losses"]), len(meta["losses"]) + len(outputs)))
    code = gzip.decompress((tmp_path / "can-float32/step.mlir.gz").read_bytes())
    assert b"mhlo.copy" not in code  # JAX refuses it
    pytest.importorskip("torch", reason="the extra `benchmark` is not installed")
    pytest.importorskip("jax", reason="JAX is not installed")
    numbers = ["--device", "cpu", "--rounds", "1", "--seconds", "0.1", "--faster", ""]
    (line,) = run("gpu_compare", "compare", tmp_path, *numbers)
    assert line["benchmark"] == "gpu.can" and line["losses_apart"] < 1e-5


@pytest.fixture
def gpu(repository, monkeypatch):
    """The module benchmarks/gpu.py."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("gpu")


def write_run(queue, job, made, **files):
    """Write a job's run as a GPU leaves it."""
    folder = queue / "runs" / job["name"]
    folder.mkdir(parents=True, exist_ok=True)
    progress = {"made": made, "milliseconds": 1.5, "device": "a GPU", "metrics": {"dice": 0.5}}
    (folder / "progress.json").write_text(json.dumps(progress))
    (folder / "curve.csv").write_text(f"step,dice\n{made},0.5\n")
    for name, values in files.items():
        np.savez(folder / f"{name}.npz", **values)


def read_weights(function):
    """Read the weights of an export's function, in their order; dropout's state is skipped."""
    values = tf.train.load_checkpoint(str(function / "variables/variables"))
    paths = [name for name in values.get_variable_to_shape_map() if name.startswith("weights/")]
    ordered = sorted(paths, key=lambda name: int(name.split("/")[1]))
    tensors = [values.get_tensor(name) for name in ordered]
    return [tensor for tensor in tensors if tensor.dtype == np.float32]


@pytest.mark.long
def test_a_queue_goes_to_a_gpu_and_its_answer_becomes_an_export(run, gpu, tmp_path):
    """Prepare two folds, answer one of them as a GPU does, and write export and masks."""
    queue, out = tmp_path / "queue", tmp_path / "out"
    data = ["data.name=phantom", "data.phantoms=6", "data.size=32", "data.folds=2"]
    overrides = [data, ["model.widths=[4,8]", "training.steps=4", "training.validate_every=2"]]
    spec = {"name": "tiny", "model": "unet", "folds": [0, 1], "set": overrides}
    (tmp_path / "jobs.yaml").write_text(json.dumps({"jobs": [spec]}))
    command = ("gpu", "queue", tmp_path / "jobs.yaml", queue)
    assert run(*command) == []
    _, job = gpu.read_jobs(queue)
    assert (job["name"], job["steps"], job["every"]) == ("tiny-1", 4, 2)
    assert job["state"] == "float32" and len(list(queue.glob("programs/*"))) == 1

    packed = dict(np.load(queue / "data" / job["data"]))
    patches = tfmammo.make_patches(tfmammo.open_archive("phantom", phantoms=6), size=32)
    train, held_out = tfmammo.split_patches(patches, folds=2, fold=1)
    for start, of_run in (("", train), ("test_", held_out)):
        assert packed[f"{start}image"] / 65535 == pytest.approx(of_run.images[..., 0], abs=1e-5)
        np.testing.assert_array_equal(packed[f"{start}mask"] / 255, of_run.masks[..., 0])
    masks, region = packed["test_mask"] > 0, packed["test_region"] > 0
    assert np.all(region[masks]) and np.mean(region) > np.mean(masks)

    box = queue / "next"  # what a GPU's machine gets; it has no TensorFlow
    assert [one["name"] for one in gpu.read_jobs(box)] == ["tiny-0", "tiny-1"]
    assert not list(box.glob("cards")) and (box / "gpu_step.py").exists()
    meta = json.loads((box / "programs" / job["program"] / "meta.json").read_text())
    random = np.random.default_rng(0)
    weights = {
        about["owner"]: random.random(about["shape"]).astype(np.float16)
        for about in meta["variables"]
        if about["owner"]
    }
    answer = np.zeros((*packed["test_mask"].shape, 1), np.uint8)
    answer[1] = 255
    identity = gpu.gpu_step.identify(queue, job)
    files = {"weights": weights | {"of": identity}}
    files["answer-segmenter"] = {"answer": answer, "of": identity}
    write_run(box, job, 4, **files)
    out.mkdir()
    gpu.write_answer(box, [job], out)
    assert run("gpu", "collect", out, queue) == []
    assert [one["name"] for one in gpu.read_jobs(box)] == ["tiny-0"]

    assert "is not finished" in run("gpu", "write", queue, "tiny-0", tmp_path / "none")
    assert run("gpu", "write", queue, "tiny-1", tmp_path / "export") == []
    card = json.loads((tmp_path / "export/card.json").read_text())
    assert card["step"] == 4 and card["metrics"] == {"dice": 0.5}
    assert card["config"]["training"]["precision"] == "mixed_bfloat16"
    assert card["train_patients"] == sorted(set(train.patient_ids.tolist()))
    assert (tmp_path / "export/curve.csv").read_text() == "step,dice\n4,0.5\n"
    written = read_weights(tmp_path / "export/segmenter")
    for value, expected in zip(written, weights.values(), strict=True):
        assert value == pytest.approx(expected.astype(np.float32))

    assert run("gpu", "masks", queue, "tiny-1", tmp_path / "masks") == []
    read = {path.stem: cv2.imread(str(path), -1).max() for path in tmp_path.glob("masks/*.png")}
    names = [name.replace("#", "_") for name in held_out.ids]
    assert read == {name: int(name == names[1]) for name in names}


@pytest.fixture
def three_jobs(gpu, tmp_path):
    """A queue of three jobs of four steps, without their programs."""
    jobs = [{"name": name, "steps": 4, "answer_bytes": 10**6} for name in ("a", "b", "c")]
    gpu.write_jobs(tmp_path, jobs)
    return jobs


def test_an_answer_has_small_files_and_loses_no_newer_run(gpu, three_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "make_next", lambda queue, megabytes: None)
    monkeypatch.setattr(gpu, "FILE_BYTES", 10_000)
    box, queue, out = (tmp_path / name for name in ("box", "queue", "out"))
    for folder in (box, queue, out):
        folder.mkdir()
    gpu.write_jobs(queue, three_jobs)
    numbers = np.random.default_rng(0).random(3000)  # 24,000 bytes
    write_run(box, three_jobs[0], 2, state={"made": 2, "numbers": numbers})
    write_run(box, three_jobs[1], 2)
    (box / "runs/b/state.npz").symlink_to(box / "deleted by its job")
    write_run(queue, three_jobs[1], 3)
    (out / "answer-1-of-1").write_bytes(b"of an earlier command")
    gpu.write_answer(box, three_jobs[:2], out)
    assert [path.name for path in sorted(out.iterdir())] == [
        f"answer-{i}-of-5" for i in range(1, 6)
    ]
    assert max(path.stat().st_size for path in out.iterdir()) == 10_000
    gpu.collect(argparse.Namespace(out=out, queue=queue, mb=60))
    np.testing.assert_array_equal(np.load(queue / "runs/a/state.npz")["numbers"], numbers)
    assert gpu.read_progress(queue, three_jobs[1])["made"] == 3
    (out / "answer-2-of-5").unlink()
    with pytest.raises(SystemExit, match="holds 4 of 5 parts of an answer"):
        gpu.collect(argparse.Namespace(out=out, queue=queue, mb=60))


def test_the_next_job_starts_when_one_is_finished(gpu, three_jobs, tmp_path, monkeypatch):
    """Jobs that are finished, or whose answers have no room, are not started."""
    write_run(tmp_path, three_jobs[0], 4)
    begun = []

    def start(folder, job, minutes):
        begun.append(job["name"])
        write_run(folder, job, 4)
        return subprocess.Popen([sys.executable, "-c", "pass"])

    monkeypatch.setattr(gpu, "start_job", start)
    options = argparse.Namespace(folder=tmp_path, out=tmp_path / "out", minutes=5, together=1)
    gpu.run_next(options)
    assert begun == ["b", "c"]
    with tarfile.open(tmp_path / "out/answer-1-of-1") as tar:
        assert {name.split("/")[1] for name in tar.getnames()} == {"b", "c"}
    for name in ("b", "c"):
        (tmp_path / "runs" / name / "progress.json").unlink()
    begun.clear()
    three_jobs[2]["answer_bytes"] = 134 * 10**6
    gpu.write_jobs(tmp_path, three_jobs)
    gpu.run_next(options)
    assert begun == ["b"]


def test_a_state_is_as_exact_as_fits(gpu):
    def describe(**owners):
        shape = {"shape": [10**6], "dtype": "float32"}
        return [shape | {"owner": owner} for owner in owners.values()]

    network = describe(weight="generator/0", first_moment=None, second_moment=None)
    frozen = describe(weight="feature_extractor/0")
    # MB of a million weights: 12; all as bfloat16 6; the weights as float16 2
    sizes = [gpu.gpu_step.count_state_bytes(network + frozen, form) for form in gpu.gpu_step.STATES]
    assert sizes == [12 * 10**6, 6 * 10**6, 2 * 10**6, 0]
    times = {1: "float32", 4: "bfloat16", 10: "weights", 21: "none"}  # 40 MB travel
    assert {n: gpu.choose_state(n * network, 40e6) for n in times} == times


def test_a_state_of_half_the_bytes_is_rounded_to_the_nearest(gpu):
    encode, decode = gpu.gpu_step.encode, gpu.gpu_step.decode
    # bfloat16 has eight digits: next to 1 come 1 + 1/128 and 1 + 2/128
    values = np.array([1, 1 + 1 / 256, 1 + 3 / 256, 1 + 1.01 / 256, -3e-30, 2e30, 0], np.float32)
    expected = np.array([1, 1, 1 + 2 / 128, 1 + 1 / 128, -3e-30, 2e30, 0], np.float32)
    short = encode(values, "bfloat16")
    assert short.dtype == np.uint16
    assert decode(short, "float32") == pytest.approx(expected, rel=1 / 256, abs=0)
    np.testing.assert_array_equal(decode(short, "float32")[:4], expected[:4])
    counter = np.array(70_000, np.int64)
    assert decode(encode(counter, "bfloat16"), "int64") == 70_000
    np.testing.assert_array_equal(decode(encode(values, "float32"), "float32"), values)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.accumulate=2", "training.accumulate"),
        ("data.augment=false", "data.augment=false"),
        ("model.weights=vgg19.npz", "the encoder's model.weights"),
    ],
)
def test_a_job_that_a_lowered_step_can_not_do_is_refused(override, named, gpu):
    export = importlib.import_module("gpu_export")
    experiment = tfmammo.config.load("segnet", [override], SegNetConfig)
    with pytest.raises(ConfigError, match=named):
        export.refuse("table", experiment)
    export.refuse("table", tfmammo.config.load("segnet", [], SegNetConfig))


def test_first_values_that_are_not_random_are_kept(gpu):
    """Bilinear kernels, constants, and a running average that starts as a copy of its network."""
    export = importlib.import_module("gpu_export")
    kernel = bilinear((4, 4, 2, 2)).numpy()
    weights = np.random.default_rng(0).normal(0.5, 2, 10_000).astype(np.float32)
    described = [
        export.describe(kernel, "segmenter/0"),
        export.describe(np.float32([20, 1, 2]), None),  # the flow's sampling steps
        export.describe(weights, "velocity/0"),
        export.describe(np.ones((3, 3), np.float32), "velocity/1"),
        export.describe(np.array([7, 0], np.uint32), None),  # dropout's
    ]
    drawn = draw_all(gpu, described)
    np.testing.assert_array_equal(drawn[0], kernel)
    assert drawn[1].tolist() == [20, 1, 2] and drawn[4].tolist() == [10, 0]
    assert np.all(drawn[3] == 1) and not np.array_equal(drawn[2], weights)
    assert drawn[2].mean() == pytest.approx(0.5, abs=0.1) and drawn[2].std() == pytest.approx(
        2, 0.1
    )

    model = Flow(FlowConfig(widths=(8,), attention_levels=1), 8)
    variables = [*model.velocity.weights, *model.average.weights]
    drawn = draw_all(gpu, export.describe_all(model, [one.value.handle for one in variables]))
    count = len(model.velocity.weights)
    for network, average in zip(drawn[:count], drawn[count:], strict=True):
        np.testing.assert_array_equal(network, average)


def draw_all(gpu, described):
    """Draw variables by their descriptions."""
    random = np.random.default_rng(1)
    drawn = []
    for about in described:
        drawn.append(gpu.gpu_step.draw_variable(about, random, 3, drawn))
    return drawn


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("can", ["model.filters=[2,2]", "model.discriminator_filters=2"]),
        ("flow", ["model.widths=[8,8]", "model.attention_levels=1", "training.batch_size=2"]),
    ],
)
def test_a_training_by_jax_goes_on_where_it_was_stopped(
    model, overrides, run, gpu, tmp_path, monkeypatch
):
    pytest.importorskip("jax", reason="JAX is not installed")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    small = ["data.name=phantom", "data.phantoms=12", "data.size=16", "training.validate_every=2"]
    spec = {"name": "tiny", "model": model, "set": [*small, *overrides, "training.steps=4"]}
    (tmp_path / "jobs.yaml").write_text(json.dumps({"jobs": [spec]}))
    queue = tmp_path / "queue"
    assert run("gpu", "queue", tmp_path / "jobs.yaml", queue) == []
    assert run("gpu", "next", queue / "next", tmp_path / "out") == []
    for _ in range(2):  # without time a command takes one chunk of steps, two here
        assert not (queue / "runs/tiny/weights.npz").exists()
        assert run("gpu", "train", queue, "tiny", "0") == []
    whole, parts = (np.load(one / "runs/tiny/weights.npz") for one in (queue / "next", queue))
    for key in whole:
        np.testing.assert_array_equal(whole[key], parts[key])
    rows = (queue / "runs/tiny/losses.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "2", "4"]
    assert run("gpu", "collect", tmp_path / "out", queue) == []
    assert run("gpu", "write", queue, "tiny", tmp_path / "export") == []
    assert (tmp_path / "export/card.json").exists()
