"""Save a service for the model registry, and check the code of models before they are loaded.

A model is stored as code and the exports that it reads. Nothing is pickled.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from tfmammo import __version__
from tfmammo.errors import ConfigError
from tfmammo.filesystem import sha256
from tfmammo.tracking.pyfunc import make_conda_environment

ENTRY = Path(__file__).with_name("entry.py")
SERVICE = "service"  # the artifact of a model that takes images
# MLflow's loader of a model that is stored as code
FROM_CODE = "mlflow.pyfunc.loaders.code_model"
# All keys that MLflow writes for such a model. Others, such as "data", could name further files
# that MLflow runs. So does "code", which must be empty.
FLAVOR_KEYS = {
    "artifacts",
    "code",
    "cloudpickle_version",
    "env",
    "loader_module",
    "model_code_path",
    "python_version",
    "streamable",
}


def save_service(path: Path, directory: Path, run_id: str) -> None:
    """Save the folder that `pictures.gather` made as an MLflow model of a run."""
    with warnings.catch_warnings(record=True):  # see tfmammo.apps.serving.entry
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(ENTRY),
            artifacts={SERVICE: str(directory)},
            conda_env=make_conda_environment(f"tfmammo=={__version__}"),
            mlflow_model=Model(run_id=run_id),
        )


def check(folder: Path, name: str) -> None:
    """Make sure that MLflow runs nothing from a model's folder but the code of a service."""
    if not (folder / "MLmodel").is_file():
        raise MlflowException(f"{folder.name} is not an MLflow model")
    flavor = Model.load(str(folder)).flavors.get("python_function", {})
    code = flavor.get("model_code_path")
    if flavor.get("loader_module") != FROM_CODE or not code:
        raise ConfigError(
            f"{name}: is not stored as code and SavedModels but as a pickle or by another "
            "framework; such models are never loaded"
        )
    path = folder / Path(code).name
    has_other_code = bool(set(flavor) - FLAVOR_KEYS or flavor.get("code") or path.is_symlink())
    if has_other_code or sha256(path) != sha256(ENTRY):
        raise ConfigError(
            f"{name}: its code is not that of this package's services (entry.py), so it is not "
            "run; register the service again, or serve a network that takes arrays by `mlflow "
            "models serve`"
        )
