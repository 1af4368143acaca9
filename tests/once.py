"""What a test process does once, though hundreds of tests ask for it."""

from __future__ import annotations

import functools
import sqlite3
import sys

import numpy as np
from numpy.typing import NDArray

RENDERINGS = 64  # that are kept, of 3.4 MB each


def share_store_tables() -> None:
    """Copy the tables of MLflow's first database into every later one of this process.

    Making them runs all of MLflow's migrations, which takes two seconds. Nothing changes before
    MLflow is imported, and for other databases than SQLite's.
    """
    utils = sys.modules.get("mlflow.store.db.utils")
    make_tables = getattr(utils, "_initialize_tables", None)
    if make_tables is None or hasattr(make_tables, "__wrapped__"):
        return
    template = sqlite3.connect(":memory:", check_same_thread=False)

    @functools.wraps(make_tables)
    def copy_tables(engine):
        if engine.dialect.name != "sqlite":
            make_tables(engine)
            return
        has_tables = template.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if not has_tables:
            make_tables(engine)
        connection = engine.raw_connection()
        try:
            database = connection.driver_connection
            source, target = (template, database) if has_tables else (database, template)
            source.backup(target)
        finally:
            connection.close()

    utils._initialize_tables = copy_tables


def share_renderings(shared: bool) -> None:
    """Let the phantom answer with a copy where it has rendered the same mammogram before.

    Args:
        shared: False renders anew, for tests of the phantom itself.
    """
    phantom = sys.modules.get("tfmammo.archives.phantom")
    if phantom is None or shared == hasattr(phantom._render, "__wrapped__"):
        return
    phantom._render = _cache(phantom._render) if shared else phantom._render.__wrapped__


@functools.cache
def _cache(render):
    keep = functools.lru_cache(RENDERINGS)(render)

    @functools.wraps(render)
    def copy(key) -> NDArray[np.float32]:
        return keep(key).copy()

    return copy
