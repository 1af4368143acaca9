"""What the model registry stores: a pyfunc from code, beside the exports that it reads. Nothing is pickled."""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import: no usage reports

import mlflow  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import Model, ModelSignature  # noqa: E402
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec  # noqa: E402

from tfmammo import __version__  # noqa: E402
from tfmammo.config import ConfigError  # noqa: E402

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*Any type hint is inferred", UserWarning)  # MLflow's own, of its own classes
    import mlflow.pyfunc  # noqa: E402

NETWORKS = Path(__file__).with_name("networks.py")
ENTRY = Path(__file__).with_name("entry.py")
SERVICE = "service"  # the artifact of a model that takes pictures
# SHA-256 of both files as earlier versions of this package registered them. A change of either adds what it was when it was last released.
EARLIER = {
    "networks.py": ("c0c98b24a31169f657c4d98922e987a52efc6194541e150708086daa83b0eba6",),
    "entry.py": ("19fc0868e0d4dd02b62fae34416a6d9af020368b6364595bd07920efda086a5e",),
}
FROM_CODE = "mlflow.pyfunc.loaders.code_model"  # how MLflow calls a model whose code it keeps as text
# What MLflow writes of such a model, and all that it reads: "code" and "data" would name further files that it runs.
KEYS = {"artifacts", "code", "cloudpickle_version", "env", "loader_module", "model_code_path", "python_version", "streamable"}


def save_networks(path: Path, directory: Path, card: Mapping[str, Any], run_id: str) -> None:
    """Save an export so that `mlflow models serve` answers arrays with it; see tfmammo.serving.networks."""
    with warnings.catch_warnings():
        # The card describes the input; an example would be 65,536 numbers of text in every version.
        warnings.filterwarnings("ignore", ".*input example was not provided.*")
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(NETWORKS),
            artifacts={"export": str(directory)},
            signature=_signature(card),
            conda_env=_environment(f"tensorflow=={tf.__version__}", f"numpy=={np.__version__}", f"mlflow=={mlflow.__version__}"),
            mlflow_model=Model(run_id=run_id),
        )


def save_service(path: Path, directory: Path, run_id: str) -> None:
    """Save a folder that `pictures.gathered` made so that a server with this package answers pictures with it."""
    with warnings.catch_warnings(record=True):  # see tfmammo.serving.entry
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(ENTRY),
            artifacts={SERVICE: str(directory)},
            conda_env=_environment(f"tfmammo=={__version__}"),
            mlflow_model=Model(run_id=run_id),
        )


def check(folder: Path, name: str) -> None:
    """Make sure that MLflow will run nothing from a model's folder but a file of this package.

    Args:     name: of the model, for the error.
    Raises:   ConfigError: it would. MlflowException: there is no model.
    """
    if not (folder / "MLmodel").is_file():
        raise MlflowException(f"there is no model of MLflow's in {folder.name}")
    flavor = Model.load(str(folder)).flavors.get("python_function", {})
    code = flavor.get("model_code_path")
    if flavor.get("loader_module") != FROM_CODE or not code:
        raise ConfigError(f"{name}: is not kept as code and SavedModels but as a pickle or of another framework, which is never loaded")
    path = folder / Path(code).name
    known = {hashlib.sha256(own.read_bytes()).hexdigest() for own in (NETWORKS, ENTRY)}.union(*EARLIER.values())
    if set(flavor) - KEYS or flavor.get("code") or path.is_symlink() or hashlib.sha256(path.read_bytes()).hexdigest() not in known:
        raise ConfigError(f"{name}: its code is not of this package (networks.py, entry.py), so that it is not run; register it anew")


def _environment(*requirements: str) -> dict[str, Any]:
    """What a served model needs. Left to itself, MLflow looks for pip's version, and warns where another tool made the environment."""
    python = f"python={platform.python_version()}"
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": [python, "pip", {"pip": list(requirements)}]}


def _signature(card: Mapping[str, Any]) -> ModelSignature:
    """Of the served function. A single input is unnamed, so that `params` may choose a network whose input has another name."""
    function = card["functions"][card["serves"]]
    inputs, outputs = ([_tensor(value["shape"], name) for name, value in function[side].items()] for side in ("inputs", "outputs"))
    if len(inputs) == 1:
        inputs = [_tensor(inputs[0].shape, None)]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("network", DataType.string, card["serves"])]))


def _tensor(shape: tuple[int | None, ...], name: str | None) -> Any:  # Schema's own annotation takes no list of TensorSpec
    return TensorSpec(np.dtype(np.float32), tuple(-1 if size is None else size for size in shape), name)
