"""The address of a tracking store: which one is meant, how it is shown, how it is reached and held.

Nothing here knows MLflow.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import sqlalchemy
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from tfmammo.errors import TrackingError
from tfmammo.filesystem import take_lock

FIRST_TIMEOUT = 10  # seconds for an answer at the start; later MLflow's own
# seconds for another process to give an SQLite store free: making its tables takes some of them
PATIENCE = 60.0


def store_uri(uri: str | None = None) -> str:
    """The store's address: the one given, else MLFLOW_TRACKING_URI, else mlflow.db in the current
    folder (absolute).
    """
    return (
        uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
    )


def shown(text: str) -> str:
    """An address, or a text with addresses in it, without what may be secret: user, password, and
    what follows a "?" or "#".

    A password may hold "/", "?" and "@", so that everything before an address's last "@" goes. An
    SQLite file has no password.
    """
    text = re.sub(r"\b(?!sqlite:|file:)([\w.+-]+)://\S*@", r"\1://", text)
    text = re.sub(r"\b([\w.+-]+://[^\s?#]*)[?#]\S*", r"\1", text)
    # the path alone, as an error of the network's library names it
    return re.sub(r"[?#][^\s?#=]+=\S*", "", text)


def how_to_look(uri: str) -> str:
    """How the runs of a store are looked at: on a server's own pages, else by the command that
    shows a database.
    """
    return (
        shown(uri)
        if uri.startswith(("http://", "https://"))
        else f"mlflow ui --backend-store-uri {shlex.quote(shown(uri))}"
    )


def sqlite_file(uri: str) -> str | None:
    """The file of an SQLite store; None for any other."""
    return sqlalchemy.make_url(uri).database if uri.startswith("sqlite:") else None


def artifact_location(uri: str, name: str) -> str | None:
    """Beside an SQLite database, where MLflow would take the current folder; a server knows its own
    place.
    """
    database = sqlite_file(uri)
    return (Path(database).resolve().parent / "mlruns" / name).as_uri() if database else None


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold an SQLite store for this process: two trainings that start at once would both create its
    tables, and one fail.

    Raises:
        TrackingError: Another process has held it for PATIENCE seconds.
    """
    database = sqlite_file(uri)
    if not database or database == ":memory:":
        yield
        return
    deadline = time.monotonic() + PATIENCE
    with Path(f"{database}.lock").open("w") as file:
        while take_lock(file) is False:
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"{shown(uri)}: another process has held {database}.lock for {PATIENCE:g} s; "
                    "end it, then try again"
                )
            time.sleep(0.05)
        yield


def probe(uri: str) -> None:
    """Ask a database once: MLflow asks ten times, over minutes."""
    if uri.split(":")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine).get_table_names()


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turns whatever a store raises into a TrackingError, and waits for it no longer than
    FIRST_TIMEOUT.
    """
    patience = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(FIRST_TIMEOUT)
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, requests and the system raise their own
        raise TrackingError(
            f"{shown(uri)}: the tracking store can't be used ({sentence(error)})"
        ) from error
    finally:
        del os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        if patience is not None:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = patience


def sentence(error: Exception) -> str:
    """The first line of an error, without secrets, or its class where it says nothing."""
    first_line = shown(str(error).strip().partition("\n")[0])
    return (
        f"{first_line[:300]}…" if len(first_line) > 300 else first_line or error.__class__.__name__
    )


@contextlib.contextmanager
def registry(uri: str) -> Iterator[mlflow.MlflowClient]:
    """The client of a store that exists, an SQLite store held for this process alone: between
    reading an alias and moving it.

    Raises:
        TrackingError: There is no such store; or in place of whatever goes wrong inside.
    """
    with reaching(uri):
        if (database := sqlite_file(uri)) and not Path(database).is_file():
            raise TrackingError(f"{shown(uri)}: there is no such store")
        probe(uri)
        with alone(uri):
            yield mlflow.MlflowClient(uri)


# by which MLflow's pages show trainings, and not the evaluation of language models
EXPERIMENT_KIND = "mlflow.experimentKind"


def git_state(file: Path = Path(__file__)) -> dict[str, str]:
    """Commit of the checkout that a source file belongs to, and whether tracked files were changed
    since.

    Returns:
        {"git_commit": 40 digits, "git_dirty": "true" | "false"}; empty where the file is in no
        checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        # else an installed copy would take the commit of whatever holds it
        git("ls-files", "--error-unmatch", file.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": "true" if changed else "false"}
    except (OSError, subprocess.SubprocessError):
        return {}


def open_experiment(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment of that name, which is made where it is missing.

    Raises:
        TrackingError: It was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {EXPERIMENT_KIND: "custom_model_development"}
            return client.create_experiment(name, artifact_location(uri, name), tags)
        except MlflowException:  # another training may have created it just now
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackingError(
            f"{shown(uri)}: the experiment {name} was deleted there; restore it or set "
            "tracking.experiment"
        )
    if EXPERIMENT_KIND not in found.tags:
        client.set_experiment_tag(found.experiment_id, EXPERIMENT_KIND, "custom_model_development")
    return found.experiment_id
