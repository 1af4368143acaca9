"""Models in MLflow's registry: register a version, resolve a model URI to a folder."""

from __future__ import annotations

import atexit
import difflib
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

from tfmammo.config import TrackingConfig, is_training_folder
from tfmammo.errors import TrackingError
from tfmammo.tracking import zoo
from tfmammo.tracking.export import CARD, locate
from tfmammo.tracking.store import (
    failing,
    name_other_stores,
    open_experiment,
    probe,
    read_git_state,
    redact,
    require_store,
    store_uri,
    summarize_error,
    tell_store,
    translate_errors,
)

# (store, location) -> the copy fetched from a server, which is removed when the process ends
_copies: dict[tuple[str, str], Path] = {}


def register_service(
    name: str, folder: Path, save: Callable[..., None], config: TrackingConfig, alias: str
) -> str:
    """Register a folder as a new version of a model, with a run and an alias of its own.

    Args:
        name: The registered model's.
        folder: What the version holds.
        save: Writes the MLflow model; called with path, directory and run_id.
        config: Its uri and experiment are used.
        alias: The version's.

    Returns:
        The version.
    """
    uri = store_uri(config.uri)
    tell_store(uri)
    with open_experiment(uri, config.experiment) as (client, experiment):
        run = client.create_run(experiment, run_name=name).info.run_id
        with failing(client, run):
            write = partial(save, directory=folder, run_id=run)
            version = add_version(client, run, name, "model", write, read_git_state())
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
    description: str | None = None,
) -> str:
    """Add a version of a registered model, which is created if it is missing, and return it.

    `save` writes the model, whose files go to `place`, a folder among the run's artifacts. The
    description is Markdown, which MLflow's page shows.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model")
        client.log_artifacts(run, str(Path(folder) / "model"), place)
    try:
        client.create_registered_model(name)
    except MlflowException as error:  # another training run may be making it just now
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    source = get_source(client, run, place)
    version = client.create_model_version(name, source, run, tags, description=description)
    return str(version.version)


def get_source(client: mlflow.MlflowClient, run: str, place: str) -> str:
    """Return the URI of a folder among a run's artifacts."""
    return f"{client.get_run(run).info.artifact_uri}/{place}"


def find_version(client: mlflow.MlflowClient, run: str, place: str) -> str | None:
    """Find the version whose files are in a folder among a run's artifacts."""
    source = get_source(client, run, place)
    versions = client.search_model_versions(f"run_id = '{run}'")
    return next((str(each.version) for each in versions if each.source == source), None)


def resolve(handle: str | Path, uri: str | None = None) -> Path:
    """Resolve a model URI to the folder of its export on this machine.

    A store on this machine hands out its own folder. From a server the export is copied once per
    process into a temporary folder, which is removed when the process ends.

    Args:
        handle: The model URI: models:/tfmammo-can@best, models:/tfmammo-can/3 or runs:/ID/ARTIFACT;
            or models:/zoo/can or can, which comes with the package; or the path of a run's output
            folder, an export, or one of its SavedModels.
        uri: The store of the first three; see `store.store_uri`.

    Raises:
        TrackingError: The store can't be reached, or the URI leads to no export.
        ConfigError: The zoo has no such network.
        ExportError: A network of the zoo can't be unpacked.
    """
    if str(handle).startswith(zoo.PREFIX):
        return zoo.fetch(str(handle))
    if not str(handle).startswith(("models:/", "runs:/")):
        return find_local_export(Path(handle))
    uri = store_uri(uri)
    with translate_errors(uri):
        require_store(uri)
        tell_store(uri)
        probe(uri)
        client = mlflow.MlflowClient(uri)
    try:
        folder = download(locate_artifacts(client, str(handle)), uri)
    except Exception as error:
        raise TrackingError(
            f"{handle}: can't be fetched from {redact(uri)} ({summarize_error(error)})"
            f"{name_other_stores(uri)}"
        ) from error
    exports = [card.parent for card in folder.rglob(CARD)]
    if len(exports) != 1:
        raise TrackingError(
            f"{handle}: contains {len(exports) or 'no'} exports in {redact(uri)}, not one"
        )
    return exports[0]


def download(location: str, uri: str) -> Path:
    """Return the folder of artifacts on this machine; a server's are copied into one first."""
    if urlsplit(location).scheme in ("", "file"):
        return Path(download_artifacts(location, tracking_uri=uri))
    if (uri, location) not in _copies:
        copy = tempfile.mkdtemp(prefix="tfmammo-")
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        download_artifacts(location, dst_path=copy, tracking_uri=uri)
        _copies[uri, location] = Path(copy)
    return _copies[uri, location]


def is_copy(folder: Path) -> bool:
    """Tell whether a folder is a server's, copied for this process."""
    return any(folder.is_relative_to(copy) for copy in _copies.values())


def locate_artifacts(client: mlflow.MlflowClient, handle: str) -> str:
    """Return where the artifacts of a model URI are.

    MLflow's own function would ask its global store, not this one.
    """
    scheme, _, path = handle.partition(":/")
    name, _, rest = path.partition("/")
    if scheme == "runs":
        return get_source(client, name, rest)
    if "@" in path:
        name, _, alias = path.partition("@")
        rest = client.get_model_version_by_alias(name, alias).version
    return client.get_model_version_download_uri(name, rest)


def find_local_export(path: Path) -> Path:
    """Find an export by its path, by its training's output folder or by one of its SavedModels."""
    for folder in (locate(path), locate(path / "export")):
        if (folder / CARD).is_file():
            return folder
    if (path / "saved_model.pb").is_file() and (path.parent / CARD).is_file():
        return path.parent
    if path.exists():
        if is_training_folder(path):
            raise TrackingError(
                f"{path}: contains no export, its training has not finished; repeat its command"
            )
        raise TrackingError(f"{path}: contains no export")
    if str(path) in zoo.list_names():
        return zoo.fetch(str(path))
    close = difflib.get_close_matches(str(path), zoo.list_names(), 1)
    meant = f"did you mean {close[0]}?" if close else "`tfmammo pretrained list` lists these"
    raise TrackingError(
        f"{path}: is neither a folder, nor a model URI (models:/ or runs:/), nor a network of the "
        f"package; {meant}"
    )
