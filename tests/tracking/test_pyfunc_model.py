"""Serving: the model as MLflow loads it from the text of networks.py, and the real server
in the slow test.
"""

import ast
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import tensorflow as tf
from mlflow.exceptions import MlflowException

from tests.ports import find_free_port, run_mlflow
from tests.tracking.test_export import SIZE, Model
from tfmammo.config import Experiment, TrackingConfig
from tfmammo.tracking.export import export
from tfmammo.tracking.pyfunc import NETWORKS
from tfmammo.tracking.runs import Run


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
    what = {"python_model": str(NETWORKS), "artifacts": {"export": str(exported)}}
    mlflow.pyfunc.save_model(path, **what, pip_requirements=["tensorflow"])
    return mlflow.pyfunc.load_model(path).predict


@pytest.fixture
def batch():
    return np.random.default_rng(1).random((2, SIZE, SIZE, 1), np.float32)


def test_a_parameter_chooses_another_network(model, predict, batch):
    served = predict.__self__.unwrap_python_model()
    answer = served.predict(None, batch, {"network": "generator"})
    expected = model.networks["generator"](batch)
    np.testing.assert_allclose(answer["image"], expected, rtol=1e-5, atol=1e-6)
    mask, image = batch, 1 - batch
    answer = served.predict(None, {"image": image, "mask": mask}, {"network": "critic"})
    expected = model.networks["critic"](tf.concat([mask, image], -1))
    np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-6)


def test_a_network_sees_eight_patches_at_a_time(model, predict):
    served = predict.__self__.unwrap_python_model()
    seen = []
    inverter = served.loaded["inverter"]
    signature = inverter.signatures["serving_default"]
    patches = np.random.default_rng(2).random((21, SIZE, SIZE, 1), np.float32)

    class Counted:
        signatures = {
            "serving_default": lambda image: seen.append(len(image)) or signature(image=image)
        }

    served.loaded["inverter"] = Counted
    try:
        answer = served.predict(None, patches)["mask"]
    finally:
        served.loaded["inverter"] = inverter
    assert seen == [8, 8, 5]
    np.testing.assert_allclose(answer, model.networks["inverter"](patches), rtol=1e-5, atol=1e-6)


UNEQUAL = {"mask": np.zeros((9, 4, 4, 1)), "image": np.zeros((8, 4, 4, 1))}


@pytest.mark.parametrize(
    "model_input, params, message",
    [
        (np.zeros((1, 4, 4)), None, r"image .*\[n, 4, 4, 1\]"),
        (np.zeros((1, 4, 8, 1)), None, r"not \[1, 4, 8, 1\]"),
        (np.zeros((0, 4, 4, 1)), None, r"not \[0, 4, 4, 1\]"),
        (np.full((1, 4, 4, 1), 1.01), None, "image .*1.01"),
        (np.full((1, 4, 4, 1), -255.0), None, "image .*-255"),
        (np.full((1, 4, 4, 1), np.nan), None, "image .*nan"),
        (np.full((1, 4, 4, 1), "a"), None, "image is no regular array"),
        ({"image": [[1.0], [1.0, 2.0]]}, None, "image is no regular array"),
        ({"image": [[[[10**400]]]]}, None, "image is no regular array"),
        (UNEQUAL, {"network": "critic"}, "mask and image must hold equally many"),
        ({"mask": np.zeros((1, 4, 4, 1))}, None, "inverter takes image"),
        ([[1.0]], None, "inverter takes image"),
        (np.zeros((1, 4, 4, 1)), {"network": "critic"}, "critic takes mask and image"),
        (np.zeros((1, 4, 4, 1)), {"network": "renderer"}, "network renderer"),
    ],
)
def test_bad_input_is_one_sentence(predict, model_input, params, message):
    model = predict.__self__.unwrap_python_model()
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(None, model_input, params)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE" and "\n" not in str(caught.value)


def test_a_server_needs_nothing_but_tensorflow_mlflow_and_numpy():
    modules = set()
    for node in ast.walk(ast.parse(Path(NETWORKS).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
    assert modules - sys.stdlib_module_names == {"tensorflow", "mlflow", "numpy"}


@pytest.fixture
def server(exported, tmp_path):
    """The address of `mlflow models serve` with the registered model behind it."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = TrackingConfig(uri=uri, system_metrics=False)
    run = Run(Experiment[dict](name="tiny", tracking=tracking, model={}), tmp_path / "output")
    assert run.register(exported, 1, {}, best=True) == "1"
    port = str(find_free_port())
    options = ["models", "serve", "--env-manager", "local", "-m", "models:/tfmammo-tiny@best"]
    options += ["-h", "127.0.0.1", "-p", port]
    address = f"http://127.0.0.1:{port}"
    with run_mlflow(tmp_path, f"{address}/ping", *options, MLFLOW_TRACKING_URI=uri):
        yield f"{address}/invocations"


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
    for name, key in (("inverter", "mask"), ("generator", "image")):
        status, answer = post(server, {"inputs": batch.tolist(), "params": {"network": name}})
        expected = model.networks[name](batch)
        assert status == 200
        np.testing.assert_allclose(answer["predictions"][key], expected, rtol=1e-5, atol=1e-6)
    status, answer = post(server, {"inputs": (255 * batch).tolist()})
    assert status == 400 and "image must be in [0, 1]" in answer
    status, answer = post(server, {"inputs": batch.tolist(), "params": {"network": "renderer"}})
    assert status == 400 and "there is no network renderer" in answer
    assert post(server, {"inputs": batch[:, :2].tolist()})[0] == 400
