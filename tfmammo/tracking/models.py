"""Models in MLflow's registry: register a version, resolve a model URI to a folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from tfmammo.config import TrackingConfig
from tfmammo.errors import TrackingError
from tfmammo.export import CARD, located
from tfmammo.tracking.store import (
    alone,
    git_state,
    open_experiment,
    probe,
    reaching,
    sentence,
    shown,
    store_uri,
)


def register_service(
    name: str, folder: Path, save: Callable[..., None], config: TrackingConfig, alias: str
) -> str:
    """Make a folder a new version of a registered model, with a run of its own, and give it an
    alias.

    Args:
        save: Called with path, directory and run_id, writes the MLflow model at path.
        config: Uri and experiment are used.

    Returns:
        The version.

    Raises:
        TrackingError: The store can't be used, or the experiment was deleted.
    """
    uri = store_uri(config.uri)
    with reaching(uri):
        probe(uri)
        with alone(uri):
            client = mlflow.MlflowClient(uri)
            run = client.create_run(
                open_experiment(client, uri, config.experiment), run_name=name
            ).info.run_id
        version = add_version(
            client, run, name, "model", partial(save, directory=folder, run_id=run), git_state()
        )
        client.set_registered_model_alias(name, alias, version)
        client.set_terminated(run)
    return version


def add_version(
    client: mlflow.MlflowClient,
    run: str,
    name: str,
    place: str,
    save: Callable[[Path], None],
    tags: dict[str, str],
) -> str:
    """A version whose files are in a run's store.

    Args:
        place: Where beneath the run's artifacts.
        save: Writes the model at a path.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model")
        client.log_artifacts(run, str(Path(folder) / "model"), place)
    try:
        client.create_registered_model(name)
    except MlflowException as error:  # another training may be making it just now
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    return str(client.create_model_version(name, source_of(client, run, place), run, tags).version)


def source_of(client: mlflow.MlflowClient, run: str, place: str) -> str:
    """Where MLflow keeps what a run has stored at a place of its artifacts."""
    return f"{client.get_run(run).info.artifact_uri}/{place}"


def version_from(client: mlflow.MlflowClient, run: str, place: str) -> str | None:
    """The version whose files lie at a place in a run's store."""
    source = source_of(client, run, place)
    return next(
        (
            str(found.version)
            for found in client.search_model_versions(f"run_id = '{run}'")
            if found.source == source
        ),
        None,
    )


def resolve(handle: str | Path, uri: str | None = None) -> Path:
    """The export that a handle means, on this machine.

    A store on this machine hands out its own folder. From a server the export is copied, once in a
    process, into a temporary folder, which is removed when the process ends.

    Args:
        handle: Models:/tfmammo-can@best, models:/tfmammo-can/3, runs:/ID/ARTIFACT, a training's
            output folder, an export, or one of an export's SavedModels.
        uri: The store of the first three; see the module.

    Raises:
        TrackingError: The store can't be reached, or the handle leads to no export.
    """
    if not str(handle).startswith(("models:/", "runs:/")):
        return local_path(Path(handle))
    uri = store_uri(uri)
    with reaching(uri):
        probe(uri)
        client = mlflow.MlflowClient(uri)
    try:
        folder = download(locate_artifacts(client, str(handle)), uri)
    except Exception as error:
        raise TrackingError(
            f"{handle}: can't be fetched from {shown(uri)} ({sentence(error)})"
        ) from error
    found = [card.parent for card in folder.rglob(CARD)]
    if len(found) != 1:
        raise TrackingError(
            f"{handle}: holds {len(found) or 'no'} exports in {shown(uri)}, where one is wanted"
        )
    return found[0]


def download(location: str, uri: str) -> Path:
    """The folder that artifacts lie in, on this machine."""
    if urlsplit(location).scheme in ("", "file"):
        return Path(download_artifacts(location, tracking_uri=uri))
    if (uri, location) not in _copies:
        copy = tempfile.mkdtemp(prefix="tfmammo-")
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        download_artifacts(location, dst_path=copy, tracking_uri=uri)
        _copies[uri, location] = Path(copy)
    return _copies[uri, location]


def locate_artifacts(client: mlflow.MlflowClient, handle: str) -> str:
    """Where the artifacts of a handle are; MLflow's own answer would come from its global store,
    not from this one.
    """
    scheme, _, path = handle.partition(":/")
    name, _, rest = path.partition("/")
    if scheme == "runs":
        return f"{client.get_run(name).info.artifact_uri}/{rest}"
    if "@" in path:
        name, _, alias = path.partition("@")
        rest = client.get_model_version_by_alias(name, alias).version
    return client.get_model_version_download_uri(name, rest)


def local_path(path: Path) -> Path:
    """The folder of an export, given it, its training's output folder or its saved model.

    Raises:
        TrackingError: There is none.
    """
    for folder in (located(path), located(path / "export")):
        if (folder / CARD).is_file():
            return folder
    if (path / "saved_model.pb").is_file() and (path.parent / CARD).is_file():
        return path.parent
    problem = (
        "holds no export"
        if path.exists()
        else "is neither a folder nor a models:/ or runs:/ handle"
    )
    raise TrackingError(f"{path}: {problem}")


# (store, location) -> what was fetched from a server; gone when the process ends
_copies: dict[tuple[str, str], Path] = {}
