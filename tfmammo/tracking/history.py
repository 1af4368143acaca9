"""What a store knows of training runs: their list, and histories of their metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import mlflow

from tfmammo.errors import TrackingError
from tfmammo.tracking.runs import MONITOR, RUN_ID, is_active, read_run_ids
from tfmammo.tracking.store import probe, require_store, store_uri, translate_errors


def list_runs(uri: str | None = None, most: int = 100) -> list[dict[str, str]]:
    """List the runs of a store, the newest first.

    Returns:
        "run", "id", "experiment", "status", "started" (UTC) and "result" of each: the last value of
        the measure that chooses its best weights.

    Raises:
        TrackingError: There is no such store, or it can't be reached.
    """
    require_store(store_uri(uri))
    with _open_store(uri) as client:
        experiments = {each.experiment_id: each.name for each in client.search_experiments()}
        order = ["attributes.start_time DESC"]
        found = client.search_runs(list(experiments), max_results=most, order_by=order)
    rows = []
    for run in found:
        monitor = run.data.tags.get(MONITOR)
        value = run.data.metrics.get(f"validation_{monitor}")
        started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        rows.append(
            {
                "run": run.info.run_name,
                "id": run.info.run_id,
                "experiment": experiments[run.info.experiment_id],
                "status": run.info.status.lower(),
                "started": f"{started:%Y-%m-%d %H:%M}",
                "result": "" if value is None else f"{monitor} {value:.4f}",
            }
        )
    return rows


def read_history(folder: Path, metric: str, uri: str | None = None) -> dict[int, float]:
    """Read the history of one metric of a training run's folder: step -> value, in order of steps.

    A step that was repeated after a stop has its later value.

    Raises:
        TrackingError: The folder is not a run's, the store can't be reached, or no such metric was
            logged.
    """
    with _open_store(uri) as client:
        entries = client.get_metric_history(_find_run(client, folder), metric)
    if not entries:
        raise TrackingError(f"{folder}: its run logged no {metric}")
    entries.sort(key=lambda entry: (entry.step, entry.timestamp))
    return {entry.step: entry.value for entry in entries}


def read_monitor(folder: Path, uri: str | None = None) -> tuple[str, dict[int, float]]:
    """Read the held-out measure that chooses a run's best weights, and its history.

    Raises:
        TrackingError: As `read_history`, or the run names no such measure.
    """
    with _open_store(uri) as client:
        monitor = client.get_run(_find_run(client, folder)).data.tags.get(MONITOR)
    if monitor is None:
        raise TrackingError(f"{folder}: its run has no tag {MONITOR}")
    return monitor, read_history(folder, f"validation_{monitor}", uri)


@contextlib.contextmanager
def _open_store(uri: str | None) -> Iterator[mlflow.MlflowClient]:
    uri = store_uri(uri)
    with translate_errors(uri):
        probe(uri)
        yield mlflow.MlflowClient(uri)


def _find_run(client: mlflow.MlflowClient, folder: Path) -> str:
    """Find the run of a training's folder that the store has."""
    known = read_run_ids(folder)
    if not known:
        raise TrackingError(f"{folder}: is not the folder of a training run: it has no {RUN_ID}")
    for run in known:
        if is_active(client, run):
            return run
    raise TrackingError(f"{folder}: the store has no run {' or '.join(known)}")
