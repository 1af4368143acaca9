"""Every benchmark at a tiny size: it runs, and its JSON line is consistent."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf

import tfmammo

PATCH = {"filters": [4, 8, 8], "discriminator_strided": 1, "discriminator_filters": 4}
TINY = {  # size, batch and config of a step; CRN is infilling's other generator
    "can": (32, 1, PATCH),
    "infilling": (32, 2, PATCH),
    "crn": (32, 2, {**PATCH, "generator": "crn", "widths": [8, 8, 4]}),
    "contextual": (
        16,
        3,
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
    "light_head": (
        64,
        2,
        {
            "filters": 4,
            "blocks": [1, 1, 1, 1],
            "rpn_width": 8,
            "anchor_scales": [1.0, 2.0],
            "kernel": 3,
            "middle": 4,
            "channels": 2,
            "units": 16,
            "weights": "none",
            "batch_norm": "running",
        },
    ),
}


@pytest.fixture
def measured(repository, tmp_path):
    """A function (*arguments, script="input") -> the JSON lines of a benchmark."""

    def run(*arguments, script="input"):
        path = os.pathsep.join([str(repository), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, str(repository / f"benchmarks/{script}.py"), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=400
        )
        assert done.returncode == 0, done.stderr
        assert list(tmp_path.iterdir()) == []
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def make_tiny_arguments(model, rounds):
    """Arguments of benchmarks/step.py for a really small model, and one step a round."""
    size, batch, config = TINY[model]
    numbers = {"--size": size, "--batch": batch, "--rounds": rounds, "--seconds": 0.01}
    arguments = [part for name, number in numbers.items() for part in (name, str(number))]
    return [*arguments, "--config", json.dumps(config)]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("peer", ["naive", "torch"])
@pytest.mark.parametrize("model", list(TINY))
def test_a_step_beside_a_peers_from_equal_weights(model, peer, measured, monkeypatch):
    if peer == "torch":
        pytest.importorskip("torch", reason="the extra `benchmark` is not installed")
    # threads that wait for each other make small steps slow where others work too
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name = {"crn": "infilling"}.get(model, model)
    tiny = make_tiny_arguments(model, rounds=2)
    (line,) = measured("--model", name, "--peer", peer, *tiny, script="step")
    assert (
        line["benchmark"] == f"step.{name}"
        and line["losses_apart"] < 2e-4
        and len(line["rounds"]) == 2
    )
    ratios = [theirs / ours for ours, theirs in line["rounds"]]
    assert min(ratios) * 0.95 <= line["ratio"] <= max(ratios) * 1.05 and min(line["peak_mb"]) > 50
    assert (line["gflop"] is None) == (peer == "naive")


@pytest.mark.slow
@pytest.mark.nightly
def test_the_fastest_of_both_sides_is_chosen_by_a_sweep(measured, monkeypatch):
    pytest.importorskip("torch", reason="the extra `benchmark` is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny = make_tiny_arguments("can", rounds=2)
    (line,) = measured("--model", "can", "--peer", "torch-best", *tiny, script="step")
    sweep = line["sweep"]
    assert {"ours default", "ours tuned", "torch default", "torch tuned"} <= set(sweep)
    ours, theirs = line["chosen"]
    assert sweep[ours] == min(value for name, value in sweep.items() if name.startswith("ours"))
    assert sweep[theirs] == min(value for name, value in sweep.items() if name.startswith("torch"))
    allocator = theirs.split()[1]
    for faster in ("fused", "channels_last", "compile", "fused,channels_last,compile"):
        assert f"torch {allocator} {faster}" in sweep
    assert line["losses_apart"] < 2e-4
    keep = ("--chosen", "ours tuned", f"torch {allocator} fused")
    arguments = ("--model", "can", "--peer", "torch-best", *keep, *tiny)
    (again,) = measured(*arguments, script="step")
    assert again["chosen"] == list(keep[1:]) and "sweep" not in again
    assert again["losses_apart"] is None  # the first run has compared them


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
@pytest.mark.nightly
def test_a_gpu_that_is_not_there_is_named(repository, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    command = [sys.executable, str(repository / "benchmarks/step.py"), "--device", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "--device gpu: TensorFlow finds no GPU" in done.stderr


def test_an_allocator_is_an_environment(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    allocators = importlib.import_module("allocators")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    plain = allocators.make_environment("default")
    assert "MALLOC_TOP_PAD_" not in plain and "LD_PRELOAD" not in plain
    tuned = allocators.make_environment("tuned")
    assert tuned["MALLOC_TOP_PAD_"] == "1000000000" and set(tuned) - set(plain) == {
        "MALLOC_TRIM_THRESHOLD_",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TOP_PAD_",
    }
    found = {"jemalloc": "libjemalloc.so.2"}
    monkeypatch.setattr(allocators.ctypes.util, "find_library", found.get)
    assert allocators.list_available() == ["default", "tuned", "jemalloc"]
    assert allocators.make_environment("jemalloc")["LD_PRELOAD"] == "libjemalloc.so.2"


@pytest.mark.slow
def test_dicom(measured):
    (dicom,) = measured("--only", "dicom", "--files", "1", "--pixels", "64", "48")
    assert dicom["benchmark"] == "input.dicom"
    assert (dicom["files"], dicom["rows"], dicom["cols"]) == (1, 64, 48)
    for syntax in ("uncompressed", "JPEG 2000"):
        ours, theirs, ratio = dicom[syntax].values()
        assert ours > 0 and theirs > 0 and ratio == pytest.approx(ours / theirs, rel=0.1)


@pytest.mark.slow
@pytest.mark.nightly
def test_pipeline(measured):
    model = json.dumps({"filters": [4, 8, 8], "discriminator_filters": 4})
    sizes = ("--files", "2", "--size", "32", "--patches", "8", "--draws", "40", "--steps", "2")
    (found,) = measured("--only", "pipeline", *sizes, "--model", model)
    assert found["benchmark"] == "input.pipeline" and found["patches"] == 8 and found["size"] == 32
    for source in ("memory", "records"):
        assert found[source]["over_step"] == pytest.approx(
            found[source]["patches_per_s"] * found["can_step_s"], rel=0.1
        )
        assert found[source]["waited"] < 1  # below 0 by noise, where nobody waits


@pytest.mark.slow
@pytest.mark.nightly
def test_build(measured):
    (found,) = measured("--only", "build", "--mammograms", "4", "--size", "32")
    assert found["benchmark"] == "input.build" and found["same_bytes"] is True
    assert found["ratio"] == pytest.approx(found["one_worker_s"] / found["two_workers_s"], rel=0.01)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_workers(measured):
    model = json.dumps({"filters": [4, 8], "discriminator_filters": 4})
    (found,) = measured(
        "--size", "32", "--config", model, "--rounds", "2", "--steps", "2",
        "--accumulate", "2", "--exchange", "bfloat16", script="workers"
    )  # fmt: skip
    assert (
        found["benchmark"] == "workers.can"
        and found["batch"] == 1
        and len(found["rounds"]) == 2
        and 0 < found["exchanged_mb"] < 1
    )
    for clock in (found, found["cpu"]):
        lost = [1 - alone / together for alone, together in clock["rounds"]]
        # the rounds are printed to a millisecond
        assert min(lost) - 0.2 <= clock["loss"] <= max(lost) + 0.2


def test_the_loss_of_eight_workers_follows_from_that_of_two(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import workers  # isort: skip  # of benchmarks/

    # 0.2 s of exchange become 0.35, each sending 14/8 instead of 2/2 of the gradients
    assert workers.predict_loss([1.0, 1.2]) == pytest.approx(0.35 / 1.35)
    assert workers.predict_loss([1.0, 1.2], workers=2) == pytest.approx(0.2 / 1.2)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_trace_is_kept_and_summed_up(measured, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "new"
    tiny = make_tiny_arguments("can", rounds=1)
    (line,) = measured("--peer", "naive", *tiny, "--trace", str(folder), script="step")
    assert len(list(folder.rglob("*.xplane.pb"))) == 1
    assert {"Conv2DBackpropFilter", "ResourceApplyAdam"} <= set(line["kernels"]) and 0 < sum(
        line["kernels"].values()
    ) < 5


@pytest.mark.long
def test_the_memory_of_a_system_is_one_line_of_a_table(repository):
    script = repository / "benchmarks/memory.py"
    command = [sys.executable, str(script), "unet", "--size", "64", "--batches", "1", "2"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    name, millions, kept, first, second = done.stdout.strip(" |\n").split(" | ")
    # weights, and twice as much for Adam, in float32
    assert name == "unet" and float(kept) == pytest.approx(12 * float(millions), rel=0.05)
    # the optimizer's part is the same for every batch
    assert 1 < float(second.replace(",", "")) / float(first.replace(",", "")) <= 2.1


@pytest.mark.slow
@pytest.mark.nightly
def test_a_lowered_step_says_which_variables_it_writes(repository, tmp_path):
    folder = tmp_path / "can-float32"
    command = [sys.executable, str(repository / "benchmarks/gpu.py"), "export", str(tmp_path)]
    config = {"filters": [4, 8], "discriminator_filters": 4}
    command += ["--model", "can", "--precision", "float32", "--size", "32"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run([*command, "--config", json.dumps(config)], check=True, env=environment)
    meta = json.loads((folder / "meta.json").read_text())
    variables = meta["variables"]
    trained = {
        i for i, about in enumerate(variables) if about["owner"] and "/state/" not in about["owner"]
    }
    written = {variable for variable, _ in meta["written"]}
    # Adam writes each weight and both of its moments, and counts its steps
    assert trained <= written and len(written) >= 3 * len(trained)
    outputs = [output for _, output in meta["written"]]
    assert outputs == list(range(len(meta["losses"]), len(meta["losses"]) + len(outputs)))
    assert {"generator", "inverter", "discriminator"} == set(meta["functions"])
    assert "mhlo.copy" not in (folder / "step.mlir").read_text()  # JAX refuses it


@pytest.mark.slow
@pytest.mark.nightly
def test_a_lowered_step_beside_pytorchs_from_equal_weights(repository, tmp_path):
    pytest.importorskip("torch", reason="the extra `benchmark` is not installed")
    pytest.importorskip("jax", reason="JAX is not installed")
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    script = [sys.executable, str(repository / "benchmarks/gpu.py")]
    export = ["export", str(tmp_path), "--model", "can", "--precision", "float32", "--size", "32"]
    config = json.dumps({"filters": [4, 8], "discriminator_filters": 4})
    subprocess.run([*script, *export, "--config", config], check=True, env=environment)
    numbers = ["--device", "cpu", "--rounds", "1", "--seconds", "0.1", "--faster", ""]
    command = [*script, "compare", str(tmp_path), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    line = json.loads(done.stdout)
    assert line["benchmark"] == "gpu.can" and line["losses_apart"] < 1e-5


def test_patches_for_a_gpu_are_those_of_a_run(repository, tmp_path):
    """And a GPU's answers go back to the patches that they belong to."""
    data = {"name": "phantom", "phantoms": 6, "size": 32, "folds": 2, "fold": 1}
    card = {"format": 1, "name": "can", "serves": "generator", "functions": {}}
    (tmp_path / "card.json").write_text(json.dumps(card | {"config": {"data": data}}))
    script = [sys.executable, str(repository / "benchmarks/gpu.py")]
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    file = tmp_path / "data.npz"
    subprocess.run([*script, "pack", str(tmp_path), str(file)], check=True, env=environment)
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
    command = ["masks", str(tmp_path / "inverter.npz"), str(file), str(tmp_path / "masks")]
    subprocess.run([*script, *command], check=True, env=environment)
    read = {path.stem: cv2.imread(str(path), -1).max() for path in tmp_path.glob("masks/*.png")}
    names = [name.replace("#", "_") for name in held_out.ids]
    assert read == {name: int(name == names[1]) for name in names}


def read_weights(function):
    """Read the weights of an export's function, in their order; dropout's state is left out."""
    values = tf.train.load_checkpoint(str(function / "variables/variables"))
    paths = [name for name in values.get_variable_to_shape_map() if name.startswith("weights/")]
    ordered = sorted(paths, key=lambda name: int(name.split("/")[1]))
    tensors = [values.get_tensor(name) for name in ordered]
    return [tensor for tensor in tensors if tensor.dtype == np.float32]


@pytest.mark.slow
@pytest.mark.nightly
def test_weights_of_a_gpu_become_an_export_of_the_networks_that_have_them(repository, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    values = ["data.phantoms=12", "data.size=32", "model.filters=[4,8]", "training.steps=1"]
    values += ["model.discriminator_filters=4", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    train = [repository / "train/can.py", "--config", repository / "configs/quickstart.yaml"]
    command = [sys.executable, *train, "--output", tmp_path / "short", "--set", *values]
    subprocess.run(command, check=True, env=environment)
    short = tmp_path / "short/export"
    before = read_weights(short / "inverter")
    halves = [(value / 2).astype(np.float16) for value in before]
    weights = {f"inverter/{i}": value for i, value in enumerate(halves)}
    card = json.loads((short / "card.json").read_text())
    about = {"model": "can", "config": card["config"]["model"], "size": 32, "batch": 1}
    about |= {"precision": "bfloat16", "steps": 7, "seed": 3, "patients": card["train_patients"]}
    np.savez(tmp_path / "weights.npz", about=json.dumps(about), **weights)
    (tmp_path / "curve.csv").write_text("step,dice\n7,0.5\n")
    write = [sys.executable, repository / "benchmarks/gpu.py", "write"]
    made = tmp_path / "made"
    subprocess.run([*write, tmp_path / "weights.npz", short, made], check=True, env=environment)
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
        again = [*write, tmp_path / "weights.npz", short, tmp_path / "again"]
        assert subprocess.run(again, check=False, env=environment).returncode
        assert not (tmp_path / "again").exists()


@pytest.fixture
def train_by_jax(repository, tmp_path):
    """Export a tiny model, and return what trains it on random patches and says what is wrong."""
    pytest.importorskip("jax", reason="JAX is not installed")
    environment = {**os.environ, "PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    script = [sys.executable, str(repository / "benchmarks/gpu.py")]

    def export(model, size, config):
        options = ["--model", model, "--size", str(size), "--config", json.dumps(config)]
        command = [*script, "export", str(tmp_path), *options, "--dropout"]
        subprocess.run(command, check=True, env=environment)
        rng = np.random.default_rng(0)
        keys = ("image", "mask", "test_image", "test_mask")
        patches = {key: rng.integers(0, 256, (4, size, size), np.uint8) for key in keys}
        patches["test_region"] = np.ones((4, size, size), np.uint8)

        def train(name, *further, **changed):
            values = patches | changed
            np.savez(tmp_path / "data.npz", patients=["a", "b", "b", "c"], **values)
            folder = tmp_path / f"{model}-bfloat16"
            command = [*script, "train", folder, tmp_path / "data.npz", tmp_path / name]
            command = [*map(str, command), "--chunk", "2", "--every", "2", *further]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            return done.stderr if done.returncode else ""

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


@pytest.mark.slow
@pytest.mark.nightly
def test_inference_beside_its_peers(measured):
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `benchmark` is not installed")
    small = ("--size", 32, "--filters", 4, 8, 8, "--batches", 1, 2, "--rounds", 3, "--patches", 4)
    (found,) = measured("--peers", "torch", "onnx", *map(str, small), script="inference")
    assert (
        found["benchmark"] == "inference"
        and found["apart"] < 1e-4
        and set(found["batches"]) == {"1", "2"}
    )
    for batch in found["batches"].values():
        assert set(batch["ratio"]) == {"torch", "onnx"} and len(batch["rounds"]) == 3
        for place, peer in enumerate(("torch", "onnx"), start=1):
            ratios = [row[place] / row[0] for row in batch["rounds"]]
            assert min(ratios) * 0.9 <= batch["ratio"][peer] <= max(ratios) * 1.1
