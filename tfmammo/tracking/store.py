"""The tracking store: its address, how it is reached, locked and shown without passwords."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mlflow
import sqlalchemy
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from tfmammo.errors import TrackingError
from tfmammo.filesystem import take_lock

log = logging.getLogger(__name__)

STORE = "mlflow.db"  # the default store, in the current folder
FIRST_TIMEOUT = 10  # seconds for a server's first answer; later MLflow's own, as uploads take long
# seconds for another process to release an SQLite store: creating its tables takes a few
PATIENCE = 60.0
LONGEST_SENTENCE = 300  # characters of a foreign error
# the kind by which MLflow's pages show training runs, and not the evaluation of language models
EXPERIMENT_KIND = "mlflow.experimentKind"


def store_uri(uri: str | None = None) -> str:
    """Return the store's address: `uri`, else MLFLOW_TRACKING_URI, else ./mlflow.db."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(STORE).resolve()}"


@cache
def tell_store(uri: str) -> None:
    """Log which store a command uses, once."""
    log.info("MLflow store: %s", redact(uri))


def require_store(uri: str) -> None:
    """Refuse an SQLite store that is not there, which MLflow would create.

    The TrackingError names the stores of the folders above.
    """
    if (database := get_sqlite_file(uri)) and not Path(database).is_file():
        elsewhere = name_other_stores(uri) or "; a training run creates it"
        raise TrackingError(f"{redact(uri)}: no such MLflow store{elsewhere}")


def name_other_stores(uri: str) -> str:
    """Return a clause that names the SQLite stores in the folders above a store's; "" if none."""
    database = get_sqlite_file(uri)
    folders = Path(database).resolve().parent.parents if database else ()
    found = [f"sqlite:///{folder / STORE}" for folder in folders if (folder / STORE).is_file()]
    if not found:
        return ""
    return f"; a folder above has {' and '.join(found)}: MLFLOW_TRACKING_URI chooses it"


def redact(text: str) -> str:
    """Remove what may be secret from a text with addresses: users, passwords, queries, fragments.

    A password may contain "/", "?" and "@", so everything before an address's last "@" is removed.
    An SQLite file has no password.
    """
    text = re.sub(r"\b(?!sqlite:|file:)([\w.+-]+)://\S*@", r"\1://", text)
    text = re.sub(r"\b(?!sqlite:|file:)([\w.+-]+://[^\s?#]*)[?#]\S*", r"\1", text)
    # a path alone, as errors of the network's library name it
    return re.sub(r"[?#][^\s?#=]+=\S*", "", text)


def describe_viewer(uri: str) -> str:
    """Describe how to look at a store's runs: a server's address, else the command that serves."""
    if uri.startswith(("http://", "https://")):
        return redact(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(redact(uri))}"


def get_sqlite_file(uri: str) -> str | None:
    """Return the file of an SQLite store, None for any other store."""
    return sqlalchemy.make_url(uri).database if uri.startswith("sqlite:") else None


def get_artifact_location(uri: str, name: str) -> str | None:
    """Return where an experiment's artifacts are: next to an SQLite database.

    MLflow would take the current folder. A server knows its own place: None.
    """
    database = get_sqlite_file(uri)
    return (Path(database).resolve().parent / "mlruns" / name).as_uri() if database else None


@contextlib.contextmanager
def hold_store(uri: str) -> Iterator[None]:
    """Lock an SQLite store for this process; wait for another one for PATIENCE seconds at most.

    Two training runs that start at once would both create its tables, and one would fail.
    """
    database = get_sqlite_file(uri)
    if not database or database == ":memory:":
        yield
        return
    deadline = time.monotonic() + PATIENCE
    with Path(f"{database}.lock").open("w") as file:
        while take_lock(file) is False:
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"{redact(uri)}: another process has held {database}.lock for {PATIENCE:g} s; "
                    "end it, then try again"
                )
            time.sleep(0.05)
        yield


def probe(uri: str) -> None:
    """Ask a store whether it answers within seconds; MLflow would ask for minutes."""
    kind = uri.split(":")[0].split("+")[0]
    if kind in ("http", "https"):
        creds = get_default_host_creds(uri)
        http_request(creds, "/health", "GET", timeout=FIRST_TIMEOUT, raise_on_status=False)
    elif kind in ("sqlite", "postgresql", "mysql", "mssql"):
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine).get_table_names()


@contextlib.contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn whatever a store raises into a TrackingError."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, requests and the system raise their own
        raise TrackingError(
            f"{redact(uri)}: the tracking store can't be used ({summarize_error(error)})"
        ) from error


@contextlib.contextmanager
def open_experiment(uri: str, name: str) -> Iterator[tuple[mlflow.MlflowClient, str]]:
    """Open a store to write to; yield its client, and the id of an experiment.

    The experiment is created if it is missing, and refused if it was deleted. Whatever the store
    raises inside becomes a TrackingError.
    """
    with translate_errors(uri):
        probe(uri)
        with hold_store(uri):
            client = mlflow.MlflowClient(uri)
            experiment = _find_experiment(client, uri, name)
        yield client, experiment


@contextlib.contextmanager
def failing(client: mlflow.MlflowClient, run: str) -> Iterator[None]:
    """Mark a run as failed when an error leaves the block."""
    try:
        yield
    except Exception:
        client.set_terminated(run, "FAILED")
        raise


def summarize_error(error: Exception) -> str:
    """Return the first line of an error, without secrets, or its class if it has no text."""
    first_line = redact(str(error).strip().partition("\n")[0])
    if len(first_line) > LONGEST_SENTENCE:
        return f"{first_line[:LONGEST_SENTENCE]}…"
    return first_line or error.__class__.__name__


@contextlib.contextmanager
def open_registry(uri: str) -> Iterator[mlflow.MlflowClient]:
    """Open the client of an existing store, and lock an SQLite store meanwhile.

    The lock protects the time between reading an alias and moving it. Whatever the store raises
    inside becomes a TrackingError.
    """
    with translate_errors(uri):
        require_store(uri)
        tell_store(uri)
        probe(uri)
        with hold_store(uri):
            yield mlflow.MlflowClient(uri)


def read_git_state(file: Path = Path(__file__)) -> dict[str, str]:
    """Read the commit of a source file's checkout, and whether tracked files were changed since.

    Returns:
        {"git_commit": 40 digits, "git_dirty": "true" | "false"}; empty where the file is in no
        checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        return done.stdout.strip()

    try:
        # else an installed copy would take the commit of whatever checkout it is in
        git("ls-files", "--error-unmatch", file.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": "true" if changed else "false"}
    except (OSError, subprocess.SubprocessError):
        return {}


def _find_experiment(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    kind = "custom_model_development"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            place = get_artifact_location(uri, name)
            return client.create_experiment(name, place, {EXPERIMENT_KIND: kind})
        except MlflowException:  # another training run may have created it just now
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackingError(
            f"{redact(uri)}: the experiment {name} was deleted there; restore it or set "
            "tracking.experiment"
        )
    if EXPERIMENT_KIND not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, EXPERIMENT_KIND, kind)
    return experiment.experiment_id
