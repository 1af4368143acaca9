"""Every benchmark at a tiny size: it runs, and its JSON line is consistent."""

import importlib
import importlib.util
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf

import tfmammo

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
@pytest.mark.parametrize("peer", ["naive", "torch"])
@pytest.mark.parametrize("model", list(TINY))
def test_a_step_beside_a_peers_from_equal_weights(model, peer, run, monkeypatch):
    if peer == "torch":
        pytest.importorskip("torch", reason="the extra `benchmark` is not installed")
    # threads that wait for each other make small steps slow where others work too
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name = {"crn": "infilling"}.get(model, model)
    (line,) = run("step", "--model", name, "--peer", peer, *make_tiny_arguments(model, rounds=2))
    assert line["benchmark"] == f"step.{name}" and len(line["rounds"]) == 2 and is_right(line)
    assert (line["gflop"] is None) == (peer == "naive")


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
    assert run("gpu", "export", tmp_path, *small, "--config", config) == []
    meta = json.loads((tmp_path / "can-float32/meta.json").read_text())
    owners = [about["owner"] for about in meta["variables"]]
    trained = {i for i, owner in enumerate(owners) if owner and "/state/" not in owner}
    written = {variable for variable, _ in meta["written"]}
    # Adam writes each weight and both of its moments, and counts its steps
    assert trained <= written and len(written) >= 3 * len(trained)
    outputs = [output for _, output in meta["written"]]
    assert outputs == list(range(len(meta["losses"]), len(meta["losses"]) + len(outputs)))
    assert {"generator", "inverter", "discriminator"} == set(meta["functions"])
    assert "mhlo.copy" not in (tmp_path / "can-float32/step.mlir").read_text()  # JAX refuses it
    pytest.importorskip("torch", reason="the extra `benchmark` is not installed")
    pytest.importorskip("jax", reason="JAX is not installed")
    numbers = ["--device", "cpu", "--rounds", "1", "--seconds", "0.1", "--faster", ""]
    (line,) = run("gpu", "compare", tmp_path, *numbers)
    assert line["benchmark"] == "gpu.can" and line["losses_apart"] < 1e-5


def test_patches_for_a_gpu_are_those_of_a_run(run, tmp_path):
    """And a GPU's answers go back to the patches that they belong to."""
    data = {"name": "phantom", "phantoms": 6, "size": 32, "folds": 2, "fold": 1}
    card = {"format": 1, "name": "can", "serves": "generator", "functions": {}}
    (tmp_path / "card.json").write_text(json.dumps(card | {"config": {"data": data}}))
    file = tmp_path / "data.npz"
    assert run("gpu", "pack", tmp_path, file) == []
    packed = dict(np.load(file))
    patches = tfmammo.make_patches(tfmammo.open_archive("phantom", phantoms=6), size=32)
    train, held_out = tfmammo.split_patches(patches, folds=2, fold=1)
    for start, of_run in (("", train), ("test_", held_out)):
        assert packed[f"{start}image"] / 65535 == pytest.approx(of_run.images[..., 0], abs=1e-5)
        np.testing.assert_array_equal(packed[f"{start}mask"] / 255, of_run.masks[..., 0])
    assert packed["patients"].tolist() == train.patient_ids.tolist()
    masks, region = packed["test_mask"] > 0, packed["test_region"] > 0
    assert np.all(region[masks]) and np.mean(region) > np.mean(masks)
    answer = np.zeros_like(packed["test_mask"])
    answer[1] = 255
    np.savez(tmp_path / "inverter.npz", answer=answer)
    assert run("gpu", "masks", tmp_path / "inverter.npz", file, tmp_path / "masks") == []
    read = {path.stem: cv2.imread(str(path), -1).max() for path in tmp_path.glob("masks/*.png")}
    names = [name.replace("#", "_") for name in held_out.ids]
    assert read == {name: int(name == names[1]) for name in names}


def read_weights(function):
    """Read the weights of an export's function, in their order; dropout's state is skipped."""
    values = tf.train.load_checkpoint(str(function / "variables/variables"))
    paths = [name for name in values.get_variable_to_shape_map() if name.startswith("weights/")]
    ordered = sorted(paths, key=lambda name: int(name.split("/")[1]))
    tensors = [values.get_tensor(name) for name in ordered]
    return [tensor for tensor in tensors if tensor.dtype == np.float32]


@pytest.mark.slow
@pytest.mark.nightly
def test_weights_of_a_gpu_become_an_export_of_the_networks_that_have_them(
    run, repository, tmp_path
):
    values = ["data.phantoms=12", "data.size=32", "model.filters=[4,8]", "training.steps=1"]
    values += ["model.discriminator_filters=4", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    train = [repository / "train/can.py", "--config", repository / "configs/quickstart.yaml"]
    command = [sys.executable, *train, "--output", tmp_path / "short", "--set", *values]
    subprocess.run(command, check=True)
    short = tmp_path / "short/export"
    before = read_weights(short / "inverter")
    halves = [(value / 2).astype(np.float16) for value in before]
    weights = {f"inverter/{i}": value for i, value in enumerate(halves)}
    card = json.loads((short / "card.json").read_text())
    about = {"model": "can", "config": card["config"]["model"], "size": 32, "batch": 1}
    about |= {"precision": "bfloat16", "steps": 7, "seed": 3, "patients": card["train_patients"]}
    np.savez(tmp_path / "weights.npz", about=json.dumps(about), **weights)
    (tmp_path / "curve.csv").write_text("step,dice\n7,0.5\n")
    made = tmp_path / "made"
    assert run("gpu", "write", tmp_path / "weights.npz", short, made) == []
    card = json.loads((made / "card.json").read_text())
    assert list(card["functions"]) == ["inverter"] == list(card["networks"])
    assert card["step"] == card["config"]["training"]["steps"] == 7
    assert card["config"]["training"]["precision"] == "mixed_bfloat16"
    assert card["train_patients"] == about["patients"]
    for value, expected in zip(read_weights(made / "inverter"), before, strict=True):
        assert value == pytest.approx(expected / 2, rel=1e-3, abs=1e-6)
    assert (made / "curve.csv").read_text() == (tmp_path / "curve.csv").read_text()
    fewer = {name: value for name, value in weights.items() if name != "inverter/0"}
    other = about | {"patients": about["patients"][1:]}
    for values, of in ((fewer, about), (weights, other), (weights, about | {"size": 64})):
        np.savez(tmp_path / "weights.npz", about=json.dumps(of), **values)
        assert run("gpu", "write", tmp_path / "weights.npz", short, tmp_path / "again")
        assert not (tmp_path / "again").exists()


@pytest.fixture
def train_by_jax(run, tmp_path, monkeypatch):
    """Export a tiny model, and return what trains it on random patches and says what is wrong."""
    pytest.importorskip("jax", reason="JAX is not installed")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def export(model, size, config):
        options = ["--model", model, "--size", size, "--config", json.dumps(config), "--dropout"]
        assert run("gpu", "export", tmp_path, *options) == []
        rng = np.random.default_rng(0)
        keys = ("image", "mask", "test_image", "test_mask")
        patches = {key: rng.integers(0, 256, (4, size, size), np.uint8) for key in keys}
        patches["test_region"] = np.ones((4, size, size), np.uint8)

        def train(name, *further, **changed):
            values = patches | changed
            np.savez(tmp_path / "data.npz", patients=["a", "b", "b", "c"], **values)
            places = (tmp_path / f"{model}-bfloat16", tmp_path / "data.npz", tmp_path / name)
            said = run("gpu", "train", *places, "--chunk", "2", "--every", "2", *further)
            return said if isinstance(said, str) else ""

        return train

    return export


@pytest.mark.slow
@pytest.mark.nightly
def test_a_training_by_jax_goes_on_where_it_was_stopped(train_by_jax, tmp_path):
    train = train_by_jax("can", 8, {"filters": [2, 2], "discriminator_filters": 2})
    assert not train("whole", "--steps", "4")
    assert not train("parts", "--steps", "2") and not train("parts", "--steps", "4")
    whole, parts = (np.load(tmp_path / name / "weights.npz") for name in ("whole", "parts"))
    for key in whole:
        np.testing.assert_array_equal(whole[key], parts[key])
    assert json.loads(str(parts["about"]))["patients"] == ["a", "b", "c"]
    rows = (tmp_path / "parts/losses.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "2", "4"]
    assert (tmp_path / "parts/inverter-4.npz").exists()
    assert not (tmp_path / "parts/curve.csv").exists()
    other = np.zeros((4, 8, 8), np.uint8)
    assert "was trained with program" in train("parts", "--steps", "6", image=other)
    assert "must be multiples of --chunk, 2" in train("parts", "--steps", "5")
    changed = train("parts", "--steps", "6", "--chunk", "3", "--every", "3")
    assert "4 steps are no multiple of --chunk, 3" in changed


@pytest.mark.slow
@pytest.mark.nightly
def test_infilling_by_jax_is_validated_and_leaves_vgg_as_it_is(train_by_jax, tmp_path):
    config = {"filters": [2, 2, 2, 2, 2], "discriminator_filters": 2, "weights": "none"}
    train = train_by_jax("infilling", 32, config)
    assert not train("own", "--steps", "2") and not train("own", "--steps", "4")
    header, *rows = (tmp_path / "own/curve.csv").read_text().split()
    assert header == "step,ssim" and [row.partition(",")[0] for row in rows] == ["2", "4"]
    assert all(-1 < float(row.partition(",")[2]) < 1 for row in rows)
    weights = np.load(tmp_path / "own/weights.npz")
    assert {name.partition("/")[0] for name in weights} == {"about", "generator", "discriminator"}
    (frozen,) = tmp_path.glob("feature_extractor-*.npz")
    vgg = np.load(frozen)
    kernel = next(v for v in map(vgg.__getitem__, vgg) if v.shape == (3, 3, 3, 64))
    assert kernel.dtype == np.float16
