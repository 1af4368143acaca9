"""Save an export as an MLflow pyfunc model from code. Nothing is pickled."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import tensorflow as tf
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

NETWORKS = Path(__file__).with_name("pyfunc_model.py")


def save_networks(path: Path, directory: Path, card: Mapping[str, Any], run_id: str) -> None:
    """Save an export for `mlflow models serve`; see tfmammo.tracking.pyfunc_model.

    Args:
        path: Where the MLflow model is written.
        directory: The export.
        card: The export's.
        run_id: The run that the model belongs to.
    """
    with warnings.catch_warnings():
        # The card describes the input; an example would add 65,536 numbers to every version.
        warnings.filterwarnings("ignore", ".*input example was not provided.*")
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(NETWORKS),
            artifacts={"export": str(directory)},
            signature=_make_signature(card),
            conda_env=make_conda_environment(
                f"tensorflow=={tf.__version__}",
                f"numpy=={np.__version__}",
                f"mlflow=={mlflow.__version__}",
            ),
            mlflow_model=Model(run_id=run_id),
        )


def make_conda_environment(*requirements: str) -> dict[str, Any]:
    """Describe the environment that a served model needs.

    By itself MLflow looks for pip's version, and warns if another tool made the environment.
    """
    python = f"python={platform.python_version()}"
    return {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [python, "pip", {"pip": list(requirements)}],
    }


def _make_signature(card: Mapping[str, Any]) -> ModelSignature:
    """Make the signature of the served function.

    A single input is unnamed, so that `params` may choose a network whose input has another name.
    """
    function = card["functions"][card["serves"]]
    inputs, outputs = (
        [_make_tensor_spec(value["shape"], name) for name, value in function[side].items()]
        for side in ("inputs", "outputs")
    )
    if len(inputs) == 1:
        inputs = [_make_tensor_spec(inputs[0].shape, None)]
    return ModelSignature(
        Schema(inputs),
        Schema(outputs),
        ParamSchema([ParamSpec("network", DataType.string, card["serves"])]),
    )


# Schema's own annotation takes no list of TensorSpec
def _make_tensor_spec(shape: tuple[int | None, ...], name: str | None) -> Any:
    return TensorSpec(
        np.dtype(np.float32), tuple(-1 if size is None else size for size in shape), name
    )
