"""Runs, metrics and model versions in MLflow.

The store is `tracking.uri` of the config, else the environment's MLFLOW_TRACKING_URI, else
sqlite:///mlflow.db in the current folder. Artifacts of an SQLite store are in the folder mlruns
beside the database.

A store that can't be reached at the start is a `TrackingError` within seconds. A store that fails
later never stops a run: the failure is logged once, and the next try comes after a minute at
the earliest. Meanwhile metrics wait, and are sent when the store answers. Images, artifacts and
model versions of that time are not sent again; all of them stay in the output folder. System
metrics end with the first failure.

A run resumes after a kill, because its id is kept in the output folder. Steps that a resumed
training repeats are logged twice, as MLflow only appends. This module neither reads nor sets
MLflow's global state (active run, tracking URI).
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import mlflow
import numpy as np
from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from numpy.typing import NDArray

from tfmammo.config import Experiment, TrackingConfig
from tfmammo.filesystem import flatten, write_atomically
from tfmammo.tracking.export import format_card, locate, read_card
from tfmammo.tracking.models import add_version, find_version
from tfmammo.tracking.pyfunc import save_networks
from tfmammo.tracking.store import (
    failing,
    open_experiment,
    read_git_state,
    redact,
    store_uri,
    summarize_error,
    tell_store,
)

log = logging.getLogger(__name__)
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# this module reports once what they would warn of
for _name in ("mlflow.system_metrics", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.ERROR)

RUN_ID = "mlflow_run_id"  # a file with a line for each store that knows the training
MONITOR = "monitor"  # the tag that names the measure which chooses the best weights
PAUSE = 60.0  # seconds without a try after a failure, or ten times what the failing call took
LONGEST_VALUE = 6000  # characters, MLflow's limit for a parameter
BATCH = 100  # parameters or tags that MLflow takes at once; ten times as many metrics
WAITING = 100_000  # metrics kept while the store does not answer

Result = TypeVar("Result")


class Run:
    """A training run in MLflow: started, or resumed if its output folder names the run.

    The experiment's values become parameters (except the store's address, which may hold a
    password), the code's git commit becomes a tag.

    Args:
        experiment: Its name, tracking section and parameters are used.
        output: The run's folder, where the id is kept.
    """

    def __init__(self, experiment: Experiment[Any], output: Path) -> None:
        config = experiment.tracking
        self.uri = store_uri(config.uri)
        self.model = f"tfmammo-{experiment.name}"
        self._waiting: list[Metric] = []
        self._failed = False
        self._paused_until = 0.0
        self._monitor: SystemMetricsMonitor | None = None
        tell_store(self.uri)
        with open_experiment(self.uri, config.experiment) as (self._client, place):
            name = make_run_name(experiment.name, output)
            self.id = _resume_run(self._client, self.uri, output) or _start_run(
                self._client, place, output, name, config.parent
            )
            with failing(self._client, self.id):
                self._send_parameters(
                    _flatten(experiment.model_dump(mode="json", exclude={"tracking": {"uri"}}))
                )
                state = read_git_state()
                self._send_tags(
                    state | {"mlflow.source.git.commit": state["git_commit"]} if state else {}
                )
        if config.system_metrics:
            self._attempt(self._watch_system)

    def log_tags(self, mapping: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        self._attempt(lambda: self._send_tags(mapping))

    def log_metrics(self, mapping: Mapping[str, float], step: int) -> None:
        """Log metrics in one request, together with those that waited for the store."""
        now = int(time.time() * 1000)
        self._waiting += [
            Metric(key, float(value), now, int(step)) for key, value in mapping.items()
        ]
        del self._waiting[:-WAITING]
        self._attempt(self._send_metrics)

    def log_image(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Log an image grid, uint8 [rows, cols] or [rows, cols, 1 | 3], as PNG of a series."""
        if image.dtype != np.uint8:
            raise ValueError(f"the image {name} must be uint8, not {image.dtype}")
        self._attempt(
            lambda: self._client.log_image(
                self.id, image, key=name, step=int(step), synchronous=True
            )
        )

    def register(
        self, directory: Path, step: int, metrics: Mapping[str, float], best: bool
    ) -> str | None:
        """Make an export a new version of the registered model tfmammo-NAME.

        `mlflow models serve` can serve it. Step and metrics become tags of the version.

        Args:
            directory: An export, copied into the store.
            step: Of the training.
            metrics: Name -> value.
            best: Whether it is the best of this run. Then it gets the alias "best" if no version or
                an earlier one of this run has it. Another run's best stays until `tfmammo registry
                promote` has compared them.

        Returns:
            The version, or None if the store failed.
        """
        card = read_card(directory)
        self._paused_until = 0.0
        version = self._attempt(lambda: self._register(directory, card, step, metrics, best))
        if version is None:
            log.warning(
                "%s: %s got no new version; the same command registers it when the store answers",
                redact(self.uri),
                self.model,
            )
        return version

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Send what waits and end the run; it can still be resumed.

        Args:
            status: KILLED means that a signal stopped the training.
        """
        if self._monitor:
            self._monitor.finish()
            self._monitor = None
        for last in (self._send_metrics, lambda: self._client.set_terminated(self.id, status)):
            self._paused_until = 0.0
            self._attempt(last)

    def _attempt(self, call: Callable[[], Result]) -> Result | None:
        start = time.monotonic()
        if start < self._paused_until:
            return None
        try:
            result = call()
        except Exception as error:
            # MLflow, SQLAlchemy, requests and the system raise their own: none may stop a run
            self._paused_until = time.monotonic() + max(PAUSE, 10 * (time.monotonic() - start))
            if not self._failed:
                log.warning(
                    "%s: the tracking store fails, training goes on without it (%s)",
                    redact(self.uri),
                    summarize_error(error),
                )
            self._failed = True
            return None
        if self._failed:
            log.info("%s: the tracking store answers again", redact(self.uri))
        self._failed = False
        return result

    def _send_parameters(self, values: Mapping[str, str]) -> None:
        logged = _log_parameters(self._client, self.id, values)
        changed = {key: value for key, value in values.items() if logged.get(key, value) != value}
        self._send_tags({f"resumed.{key}": value for key, value in changed.items()})

    def _send_tags(self, values: Mapping[str, Any]) -> None:
        tags = [RunTag(key, redact(str(value))[:LONGEST_VALUE]) for key, value in values.items()]
        for start in range(0, len(tags), BATCH):
            self._client.log_batch(self.id, tags=tags[start : start + BATCH], synchronous=True)

    def _send_metrics(self) -> None:
        while self._waiting:
            batch = self._waiting[: 10 * BATCH]
            try:
                self._client.log_batch(self.id, metrics=batch, synchronous=True)
            except MlflowException as error:
                # refused for good: must not hold up the others
                if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
                    del self._waiting[: len(batch)]
                raise
            del self._waiting[: len(batch)]

    def _watch_system(self) -> None:
        self._monitor = SystemMetricsMonitor(self.id, resume_logging=True, tracking_uri=self.uri)
        self._monitor.start()

    def _register(
        self,
        directory: Path,
        card: Mapping[str, Any],
        step: int,
        metrics: Mapping[str, float],
        best: bool,
    ) -> str:
        client = self._client
        tags = {"step": str(int(step))} | {
            key: f"{float(value):.6g}" for key, value in metrics.items()
        }
        tags |= {key: str(card[key]) for key in ("git_commit", "data_fingerprint") if card.get(key)}
        # A resumed training may reach the same step with other weights, and must not overwrite an
        # older version's. But the same export goes to the same place, so that a run that was
        # killed while it registered makes one version of it.
        place = f"model-{int(step)}-{card.get('id', uuid.uuid4().hex)[:8]}"
        save = partial(save_networks, directory=locate(directory), card=card, run_id=self.id)
        version = find_version(client, self.id, place) or add_version(
            client, self.id, self.model, place, save, tags, format_card(card)
        )
        if best:
            self._move_best(version, card)
        return version

    def _move_best(self, version: str, card: Mapping[str, Any]) -> None:
        best = self._client.get_registered_model(self.model).aliases.get("best")
        if best is None or self._client.get_model_version(self.model, best).run_id == self.id:
            self._client.set_registered_model_alias(self.model, "best", version)
        else:
            log.info(
                "models:/%s@best stays version %s; %s",
                self.model,
                best,
                _advise(self.model, version, card),
            )


def _advise(model: str, version: str, card: Mapping[str, Any]) -> str:
    """Say how a version becomes the best: a promotion compares segmenters and generators alone."""
    sides = [(set(one["inputs"]), set(one["outputs"])) for one in card["functions"].values()]
    pairs = ({"image"}, "mask"), ({"mask"}, "image")
    if any(inputs == of and to in outputs for inputs, outputs in sides for of, to in pairs):
        return (
            f"tfmammo registry promote --model {model} --candidate {version} judges this run's best"
        )
    return f"if version {version} is better, move the alias in MLflow"


def open_parent_run(output: Path, config: TrackingConfig) -> str:
    """Open the run that the training runs of a study are shown under, and return its id.

    It is a new one, or the one that the study's folder names. The id is for TrackingConfig.parent
    and `log_folder`.
    """
    uri = store_uri(config.uri)
    with open_experiment(uri, config.experiment) as (client, experiment):
        return _resume_run(client, uri, output) or _start_run(
            client, experiment, output, output.name
        )


def log_folder(
    folder: Path,
    uri: str,
    experiment: str,
    parameters: dict[str, Any],
    metrics: Mapping[str, float],
    run: str | None = None,
) -> None:
    """Log finished work as a run: its parameters, its metrics and every file in its folder.

    Args:
        folder: What is copied into the store; its name becomes the run's.
        uri: The store.
        experiment: The experiment's name.
        parameters: Nested, as in a config.
        metrics: Name -> value; values that are not finite are skipped.
        run: The id of an open run, see `open_parent_run`; None starts a new one.
    """
    now = int(time.time() * 1000)
    values = [
        Metric(_clean_name(name), float(value), now, 0)
        for name, value in metrics.items()
        if np.isfinite(value)
    ]
    with open_experiment(uri, experiment) as (client, place):
        if run is None:
            run = client.create_run(place, run_name=folder.name).info.run_id
        flat = _flatten(parameters)
        with failing(client, run):
            _log_parameters(
                client, run, {key: flat[key] for key in flat if not key.endswith("tracking_uri")}
            )
            client.log_batch(run, metrics=values, synchronous=True)
            client.log_artifacts(run, str(folder))
        client.set_terminated(run)


def _log_parameters(
    client: mlflow.MlflowClient, run: str, values: Mapping[str, str]
) -> dict[str, str]:
    """Log the parameters that a run has not got yet; return those that it had."""
    logged: dict[str, str] = client.get_run(run).data.params
    new = [Param(key, value) for key, value in values.items() if key not in logged]
    for start in range(0, len(new), BATCH):
        client.log_batch(run, params=new[start : start + BATCH], synchronous=True)
    return logged


def _resume_run(client: mlflow.MlflowClient, uri: str, output: Path) -> str | None:
    """Reopen the run that a folder names; None if it names none that the store has."""
    for run_id in read_run_ids(output):
        if is_active(client, run_id):
            client.update_run(run_id, "RUNNING")
            return run_id
    if (output / RUN_ID).is_file():
        log.warning("%s: has no run of %s, a new one is started", redact(uri), output)
    return None


def read_run_ids(output: Path) -> list[str]:
    """Read the ids of a training's runs, each of another store; [] where there is no such file."""
    path = output / RUN_ID
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def is_active(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether a store has a run that nobody deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        gone = (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)
        if error.error_code not in map(ErrorCode.Name, gone):
            raise
        return False
    return bool(run.info.lifecycle_stage == LifecycleStage.ACTIVE)


def make_run_name(system: str, output: Path) -> str:
    """Make a run's name: its folder's path from the system's name on, else system and folder.

    Folders of folds and seeds count with the one above them.

    Examples:
        >>> make_run_name("can", Path("runs/can/fold0")), make_run_name("can", Path("out"))
        ('can/fold0', 'can/out')
        >>> make_run_name("can", Path("runs/report/table1/fold0/seed2"))
        'can/table1/fold0/seed2'
    """
    parts = output.resolve().parts
    starts = [
        index for index, part in enumerate(parts) if part == system or part.startswith(f"{system}-")
    ]
    if starts:
        return "/".join(parts[starts[-1] :])
    first = len(parts) - 1
    while first > 1 and re.fullmatch(r"(fold|seed)-?\d+", parts[first]):
        first -= 1
    return "/".join((system, *parts[first:]))


def _start_run(
    client: mlflow.MlflowClient, experiment: str, output: Path, name: str, parent: str | None = None
) -> str:
    """Start a run in an experiment, shown under its parent; the folder keeps its id."""
    tags = {MLFLOW_PARENT_RUN_ID: parent} if parent else None
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    output.mkdir(parents=True, exist_ok=True)
    # the first ones may be asked for again
    write_atomically(output / RUN_ID, "\n".join([*read_run_ids(output), run_id, ""]))
    return run_id


def _clean_name(name: str) -> str:
    """Replace the characters that MLflow refuses in the name of a parameter or metric."""
    return re.sub(r"[^\w .:/-]", "_", name)


def _flatten(mapping: dict[str, Any]) -> dict[str, str]:
    return {
        _clean_name(key): redact(
            value if isinstance(value, str) else json.dumps(value, default=str)
        )[:LONGEST_VALUE]
        for key, value in flatten(mapping).items()
        if key  # "" of an empty mapping
    }
