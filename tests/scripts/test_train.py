"""Every train script as a user calls it: two steps on the phantom, and what happens when
something is wrong.

Most run in this process; the one with a signal and with what TensorFlow prints has its own.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import pytest

from tfmammo import cli
from tfmammo.training.image_grid import HEADER

DISCRIMINATOR = "model.discriminator_filters=4 model.discriminator_strided=1"
SMALL = {
    "can": "model.filters=[4,8,8] model.discriminator_filters=4",
    "pix2pix": f"model.filters=[4,8,8] {DISCRIMINATOR}",
    "cgan": f"model.filters=[4,8,8] {DISCRIMINATOR}",
    "unet": "model.widths=[4,8]",
    "fcn8s": "model.widths=[4,4,4,4,4] model.fc_width=8",
    "segnet": "model.widths=[4,4,4,4,4]",
    "residual_unet": "model.widths=[4,8] model.blocks=[1,1]",
    "shape": "model.filters=[4,4,4] model.units=4 data.phantoms=24",
    # patches of each class on all three sides
    "contextual": "model.filters=[4,8] model.discriminator_factor=1 model.attention=4 "
    "model.border=1 model.start=8 model.start_steps=2 model.fade_steps=2 training.batch_size=3 "
    "model.generator_updates=1 data.sampling.count=40 data.folds=2 data.phantoms=40 data.seed=1",
    # patches of both classes on all three sides
    "classifier": "model.weights=none model.filters=2 model.blocks=[1,1,1,1] data.phantoms=40 "
    "training.batch_size=4 data.sampling.count=60 data.sampling.scale=[0.25,0.25]",
    "mask_gan": "model.filters=[8,4] model.discriminator_filters=[4,8] model.z=5 "
    "training.batch_size=4",
    # lesions and normal patches on both sides
    "blending": "model.widths=[4,8] model.discriminator_filters=4 training.batch_size=2 "
    "data.sampling.count=12 data.folds=2 data.phantoms=24",
    "vanilla_gan": "data.folds=2 model.filters=[8,4] model.discriminator_filters=[4,8] model.z=5 "
    "training.batch_size=4",
    "infilling": f"model.filters=[4,8,8] {DISCRIMINATOR} model.weights=none",
    "flow": "model.widths=[4,8] model.groups=2 model.sampling_steps=2 training.batch_size=2",
    # lesions on both sides
    "light_head_rcnn": "model.weights=none model.batch_norm=running model.filters=4 "
    "model.blocks=[1,1,1,1] model.anchor_scales=[0.5,1,2] model.rpn_width=8 model.middle=4 "
    "model.bins=3 model.channels=2 model.units=8 model.proposals=20 training.batch_size=2 "
    "data.folds=2 data.canvas=null",
}
SMALL = {name: values.split() for name, values in SMALL.items()}
COMMON = ["data.size=32", "data.phantoms=12", "training.steps=2", "training.steps_per_loop=1"]
COMMON += ["tracking.system_metrics=false"]


@pytest.fixture
def train(call_script, repository, tmp_path, monkeypatch, capsys):
    """A function (system, *arguments) -> exit code, stdout and stderr of its script."""

    def run(system, *arguments, config=None):
        config = config or repository / f"configs/{system}.yaml"
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            cli.run(lambda: call_script(f"train/{system}", "--config", config, *arguments))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


LONG = ("classifier", "contextual", "flow", "light_head_rcnn", "segnet")


def mark(system):
    if system == "can":
        return system
    return pytest.param(system, marks=pytest.mark.long if system in LONG else pytest.mark.slow)


@pytest.mark.parametrize("system", [mark(system) for system in SMALL])
def test_two_steps(train, tmp_path, system):
    larger = dict.fromkeys(("fcn8s", "segnet", "shape", "light_head_rcnn"), 64)
    size = ({"contextual": 16} | larger).get(system, 32)
    # MLflow's registration of a model is that of the loop, whatever it trains
    registers = f"tracking.register_models={str(system == 'can').lower()}"
    overrides = [*COMMON, registers, f"data.size={size}", *SMALL[system]]
    code, out, err = train(system, "--output", "out", "--set", *overrides)
    assert code == 0, err
    assert "taking the phantom" in err or system == "can"
    assert (tmp_path / "out/export/card.json").is_file()
    assert list((tmp_path / "out/samples").glob("*.png")) and (tmp_path / "mlflow.db").is_file()
    assert "held-out" in out and "model" in out and "Traceback" not in err


@pytest.mark.long
def test_two_steps_of_a_detector_on_a_canvas_and_in_tiles(train, tmp_path):
    common = [override for override in COMMON if not override.startswith("data.size")]
    seen = ["data.canvas=[96,64]", "data.tiles={overlap: 32, empty: 1}"]
    overrides = [*common, *SMALL["light_head_rcnn"], *seen, "data.preprocess.spacing=0.4"]
    overrides.append("tracking.register_models=false")
    code, out, err = train("light_head_rcnn", "--output", "out", "--set", *overrides)
    assert code == 0, err
    assert (tmp_path / "out/export/card.json").is_file() and "held-out" in out
    sheet = cv2.imread(str(max((tmp_path / "out/samples").glob("*.png"))))
    assert (sheet.shape[0] - HEADER) % (96 + 3) == 0 and sheet.shape[1] == 3 + 3 * (64 + 3)
    assert "tiles with" in err


@pytest.mark.slow
def test_a_wrong_size_is_corrected_in_the_same_folder(train, tmp_path):
    arguments = ["--output", "out", "--set", *COMMON, *SMALL["unet"]]
    arguments.append("tracking.register_models=false")
    code, _, err = train("unet", *arguments, "data.size=61")
    assert code != 0 and "61" in err.splitlines()[-1]
    for name in ("config.yaml", "mlflow_run_id"):
        assert not (tmp_path / "out" / name).exists()
    code, _, err = train("unet", *arguments)
    assert code == 0, err
    assert "data.root is not set: taking the phantom" in err
    code, _, err = train("can", config="nowhere.yaml")
    assert code == 2 and err.strip() == "error: nowhere.yaml: no such config file"


@pytest.mark.long
def test_ctrl_c_saves_and_the_same_command_goes_on(repository, tmp_path, empty_store):
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    rare = [f"training.{key}=100000" for key in ("checkpoint_every", "validate_every")]
    overrides = [*COMMON, *SMALL["unet"], *rare]
    script = [repository / "train/unet.py", "--config", repository / "configs/unet.yaml"]
    command = [sys.executable, *map(str, script), "--output", "out", "--set", *overrides]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    options["env"] = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    endless = ["training.steps=100000", "tracking.register_models=false"]
    process = subprocess.Popen([*command, *endless], **options)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "out").glob("samples/*.png")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)  # into the loop
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and "everything is saved" in err and "Traceback" not in err
    checkpoint = (tmp_path / "out/checkpoints/checkpoint").read_text()
    stopped = int(checkpoint.split('"')[1].rsplit("-", 1)[1])
    process = subprocess.Popen([*command, f"training.steps={stopped + 2}"], **options)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0
    assert f"from step {stopped:,} to step {stopped + 2:,}" in err
    assert (tmp_path / "out/export/card.json").is_file() and "held-out" in out
    for noise in ("oneDNN", "cuInit", "Traceback", "WARNING: All log", "pip version"):
        assert noise not in err, "TensorFlow and MLflow print nothing"
