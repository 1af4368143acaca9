"""Save a service for the model registry, as code for MLflow's own server, SavedModels and JSON."""

from __future__ import annotations

import warnings
from pathlib import Path

import mlflow
from mlflow.models import Model

from tfmammo import __version__
from tfmammo.tracking.pyfunc import make_conda_environment

ENTRY = Path(__file__).with_name("entry.py")
SERVICE = "service"  # the artifact of a model that takes images
PLACE = f"artifacts/{SERVICE}"  # where MLflow puts a folder of this name in the model


def save_service(path: Path, directory: Path, run_id: str) -> None:
    """Save the folder that `pictures.gather` made as an MLflow model of a run.

    Args:
        path: Where the MLflow model is written.
        directory: The folder, named `SERVICE`.
        run_id: The run that the model belongs to.
    """
    with warnings.catch_warnings(record=True):  # see tfmammo.apps.serving.entry
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(ENTRY),
            artifacts={SERVICE: str(directory)},
            conda_env=make_conda_environment(f"tfmammo=={__version__}"),
            mlflow_model=Model(run_id=run_id),
        )
