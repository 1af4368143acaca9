"""What the model registry stores: a pyfunc from code, beside the exports that it reads.

Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from tfmammo import __version__
from tfmammo.errors import ConfigError
from tfmammo.tracking.pyfunc import NETWORKS, conda_environment

ENTRY = Path(__file__).with_name("entry.py")
SERVICE = "service"  # the artifact of a model that takes pictures
# SHA-256 of both files as earlier versions of this package registered them. A change of either adds
# what it was when it was last released.
EARLIER = {
    "pyfunc_model.py": (
        "c0c98b24a31169f657c4d98922e987a52efc6194541e150708086daa83b0eba6",
        "2071ddbe1207f5f2502ade175a668fbc5d4b39960080c0f877394345d9150325",
    ),
    "entry.py": (
        "19fc0868e0d4dd02b62fae34416a6d9af020368b6364595bd07920efda086a5e",
        "ee7b9f133ea73de01b0a1215e5ca40a05a9f24bda9c4b1362346620c7bbfc1c7",
    ),
}
# how MLflow calls a model whose code it keeps as text
FROM_CODE = "mlflow.pyfunc.loaders.code_model"
# What MLflow writes of such a model, and all that it reads: "code" and "data" would name further
# files that it runs.
KEYS = {
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
    """Save a folder that `pictures.gathered` made so that a server with this package answers
    pictures with it.
    """
    with warnings.catch_warnings(record=True):  # see tfmammo.serving.entry
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(ENTRY),
            artifacts={SERVICE: str(directory)},
            conda_env=conda_environment(f"tfmammo=={__version__}"),
            mlflow_model=Model(run_id=run_id),
        )


def check(folder: Path, name: str) -> None:
    """Make sure that MLflow will run nothing from a model's folder but a file of this package.

    Args:
        name: Of the model, for the error.

    Raises:
        ConfigError: It would.
        MlflowException: There is no model.
    """
    if not (folder / "MLmodel").is_file():
        raise MlflowException(f"there is no model of MLflow's in {folder.name}")
    flavor = Model.load(str(folder)).flavors.get("python_function", {})
    code = flavor.get("model_code_path")
    if flavor.get("loader_module") != FROM_CODE or not code:
        raise ConfigError(
            f"{name}: is not kept as code and SavedModels but as a pickle or of another "
            "framework, which is never loaded"
        )
    path = folder / Path(code).name
    known = {hashlib.sha256(own.read_bytes()).hexdigest() for own in (NETWORKS, ENTRY)}.union(
        *EARLIER.values()
    )
    if (
        set(flavor) - KEYS
        or flavor.get("code")
        or path.is_symlink()
        or hashlib.sha256(path.read_bytes()).hexdigest() not in known
    ):
        raise ConfigError(
            f"{name}: its code is not of this package (pyfunc_model.py, entry.py), so that it is "
            "not run; register it anew"
        )
