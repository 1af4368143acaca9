"""The address of a tracking store: which one is meant, how it is shown, how it is reached and held. Nothing here knows MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import sqlalchemy

FIRST_TIMEOUT = 10  # seconds for an answer at the start; later MLflow's own
PATIENCE = 60.0  # seconds for another process to give an SQLite store free: making its tables takes some of them


class TrackingError(ValueError):
    """A store can't be reached, or a handle leads to no export. The message is one sentence and names the store or handle."""


def store_uri(uri: str | None = None) -> str:
    """The store's address: the one given, else MLFLOW_TRACKING_URI, else mlflow.db in the current folder (absolute)."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def shown(text: str) -> str:
    """An address, or a text with addresses in it, without what may be secret: user, password, and what follows a "?" or "#".

    A password may hold "/", "?" and "@", so that everything before an address's last "@" goes. An SQLite file has no password.
    """
    text = re.sub(r"\b(?!sqlite:|file:)([\w.+-]+)://\S*@", r"\1://", text)
    text = re.sub(r"\b([\w.+-]+://[^\s?#]*)[?#]\S*", r"\1", text)
    return re.sub(r"[?#][^\s?#=]+=\S*", "", text)  # the path alone, as an error of the network's library names it


def how_to_look(uri: str) -> str:
    """How the runs of a store are looked at: on a server's own pages, else by the command that shows a database."""
    return shown(uri) if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {shlex.quote(shown(uri))}"


def sqlite_file(uri: str) -> str | None:
    """The file of an SQLite store; None for any other."""
    return sqlalchemy.make_url(uri).database if uri.startswith("sqlite:") else None


def artifact_location(uri: str, name: str) -> str | None:
    """Beside an SQLite database, where MLflow would take the current folder; a server knows its own place."""
    database = sqlite_file(uri)
    return (Path(database).resolve().parent / "mlruns" / name).as_uri() if database else None


def take_lock(file: IO[str]) -> bool | None:
    """Lock an open file for this process, without waiting.

    Returns:  True; False where another process holds it; None where the file system knows no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold an SQLite store for this process: two trainings that start at once would both create its tables, and one fail.

    Raises:   TrackingError: another process has held it for PATIENCE seconds.
    """
    database = sqlite_file(uri)
    if not database or database == ":memory:":
        yield
        return
    deadline = time.monotonic() + PATIENCE
    with Path(f"{database}.lock").open("w") as file:
        while take_lock(file) is False:
            if time.monotonic() > deadline:
                raise TrackingError(f"{shown(uri)}: another process has held {database}.lock for {PATIENCE:g} s; end it, then try again")
            time.sleep(0.05)
        yield


def probe(uri: str) -> None:
    """Ask a database once: MLflow asks ten times, over minutes."""
    if uri.split(":")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine).get_table_names()


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turns whatever a store raises into a TrackingError, and waits for it no longer than FIRST_TIMEOUT."""
    patience = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(FIRST_TIMEOUT)
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, requests and the system raise their own
        raise TrackingError(f"{shown(uri)}: the tracking store can't be used ({sentence(error)})") from error
    finally:
        del os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        if patience is not None:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = patience


def sentence(error: Exception) -> str:
    """The first line of an error, without secrets, or its class where it says nothing."""
    first_line = shown(str(error).strip().partition("\n")[0])
    return f"{first_line[:300]}…" if len(first_line) > 300 else first_line or error.__class__.__name__
