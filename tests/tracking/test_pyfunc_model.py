"""Serving: the model as MLflow loads it from the text of networks.py, and the real server
in the slow test.
"""

import ast
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from mlflow.exceptions import MlflowException

from tests.known_networks import make_functions
from tests.ports import find_free_port
from tfmammo.config import Experiment, TrackingConfig
from tfmammo.tracking.export import export
from tfmammo.tracking.pyfunc import NETWORKS
from tfmammo.tracking.runs import Run

SIZE = 4


class Model(keras.Model):
    """A generator, an inverter and a critic of pairs, one convolution each."""

    def __init__(self):
        super().__init__(name="tiny")
        shapes = {"generator": (1, "sigmoid"), "inverter": (1, "sigmoid"), "critic": (2, None)}
        self.networks = {
            name: keras.Sequential(
                [
                    keras.Input((SIZE, SIZE, channels)),
                    keras.layers.Conv2D(1, 3, 1, "same", activation=activation),
                ]
            )
            for name, (channels, activation) in shapes.items()
        }

    def functions(self):
        return make_functions(self.networks, SIZE)


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("exported") / "export", {})


@pytest.fixture(scope="module")
def predict(exported, tmp_path_factory):
    """The model's own `predict`, without the checks of a signature before it."""
    path = str(tmp_path_factory.mktemp("model") / "model")
    mlflow.pyfunc.save_model(
        path,
        python_model=str(NETWORKS),
        artifacts={"export": str(exported)},
        pip_requirements=["tensorflow"],
    )
    return mlflow.pyfunc.load_model(path).predict


@pytest.fixture
def batch():
    return np.random.default_rng(1).random((2, SIZE, SIZE, 1), np.float32)


def test_the_served_function_answers_an_array_or_a_named_one(model, predict, batch):
    expected = model.networks["inverter"](batch).numpy()
    for model_input in (batch, {"image": batch}, batch.astype(np.float64)):
        answer = predict(model_input)
        assert list(answer) == ["mask"] and answer["mask"].dtype == np.float32
        np.testing.assert_allclose(answer["mask"], expected, rtol=1e-5, atol=1e-6)


def test_a_parameter_chooses_another_network(model, predict, batch):
    served = predict.__self__.unwrap_python_model()
    answer = served.predict(None, batch, {"network": "generator"})
    np.testing.assert_allclose(
        answer["image"], model.networks["generator"](batch), rtol=1e-5, atol=1e-6
    )
    mask = batch
    image = 1 - batch
    answer = served.predict(None, {"image": image, "mask": mask}, {"network": "critic"})
    expected = model.networks["critic"](tf.concat([mask, image], -1))
    np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-6)


def test_a_network_sees_eight_patches_at_a_time(model, predict):
    served = predict.__self__.unwrap_python_model()
    seen = []
    asked = []
    inverter = served.loaded["inverter"]
    signature = inverter.signatures["serving_default"]
    patches = np.random.default_rng(2).random((21, SIZE, SIZE, 1), np.float32)

    class Counted:
        signatures = {
            "serving_default": lambda image: seen.append(len(image)) or signature(image=image)
        }

    served.loaded["inverter"] = Counted
    served.proceed = lambda: asked.append(1)
    try:
        answer = served.predict(None, patches)["mask"]
    finally:
        served.loaded["inverter"] = inverter
        del served.proceed
    assert seen == [8, 8, 5] and len(asked) == 3
    np.testing.assert_allclose(answer, model.networks["inverter"](patches), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model_input, params, message",
    [
        (
            np.zeros((1, 4, 4)),
            None,
            r"image .*\[n, 4, 4, 1\]",
        ),
        (np.zeros((1, 4, 8, 1)), None, r"not \[1, 4, 8, 1\]"),
        (np.zeros((0, 4, 4, 1)), None, r"not \[0, 4, 4, 1\]"),
        (
            np.full((1, 4, 4, 1), 1.01),
            None,
            "image .*1.01",
        ),
        (np.full((1, 4, 4, 1), -255.0), None, "reaches from -255 to -255"),
        (np.full((1, 4, 4, 1), np.nan), None, "reaches from nan to nan"),
        (np.full((1, 4, 4, 1), "a"), None, "image is no regular array of numbers"),
        ({"image": [[1.0], [1.0, 2.0]]}, None, "image is no regular array of numbers"),
        ({"image": [[[[10**400]]]]}, None, "image is no regular array of numbers"),
        (
            {"mask": np.zeros((9, 4, 4, 1)), "image": np.zeros((8, 4, 4, 1))},
            {"network": "critic"},
            "mask and image must hold equally many patches",
        ),
        ({"mask": np.zeros((1, 4, 4, 1))}, None, "inverter takes image: one array"),
        ([[1.0]], None, "inverter takes image: one array"),
        (
            np.zeros((1, 4, 4, 1)),
            {"network": "critic"},
            "critic takes mask and image",
        ),
        (
            np.zeros((1, 4, 4, 1)),
            {"network": "renderer"},
            "network renderer",
        ),
    ],
)
def test_bad_input_is_one_sentence(predict, model_input, params, message):
    model = predict.__self__.unwrap_python_model()
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(None, model_input, params)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE" and "\n" not in str(caught.value)


def test_a_server_needs_nothing_but_tensorflow_mlflow_and_numpy():
    tree = ast.parse(Path(NETWORKS).read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    assert {module.split(".")[0] for module in modules} - sys.stdlib_module_names == {
        "tensorflow",
        "mlflow",
        "numpy",
    }


@pytest.fixture
def server(exported, tmp_path):
    """The address of `mlflow models serve` with the registered model behind it."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = Run(
        Experiment[dict](
            name="tiny", tracking=TrackingConfig(uri=uri, system_metrics=False), model={}
        ),
        tmp_path / "output",
    )
    assert run.register(exported, 1, {}, best=True) == "1"
    port = find_free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--env-manager",
        "local",
        "-m",
        "models:/tfmammo-tiny@best",
    ]
    # MLflow calls uvicorn by name
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PATH": path}
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def wait_for(address, process, log):
    deadline = time.monotonic() + 300  # twenty seconds on an idle machine
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def post(address, body):
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
def test_mlflow_serves_a_registered_model(model, server, batch):
    status, answer = post(server, {"inputs": batch.tolist()})
    assert status == 200
    np.testing.assert_allclose(
        answer["predictions"]["mask"], model.networks["inverter"](batch), rtol=1e-5, atol=1e-6
    )
    status, answer = post(server, {"inputs": batch.tolist(), "params": {"network": "generator"}})
    assert status == 200
    np.testing.assert_allclose(
        answer["predictions"]["image"], model.networks["generator"](batch), rtol=1e-5, atol=1e-6
    )
    status, answer = post(server, {"inputs": (255 * batch).tolist()})
    assert status == 400 and "image must lie in [0, 1]" in answer
    status, answer = post(server, {"inputs": batch.tolist(), "params": {"network": "renderer"}})
    assert status == 400 and "there is no network renderer" in answer
    status, answer = post(server, {"inputs": batch[:, :2].tolist()})
    assert status == 400
