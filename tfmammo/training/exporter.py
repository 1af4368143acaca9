"""The end of a training: its last and its best weights as exports and registry versions."""

from __future__ import annotations

import logging
import math
import shutil
import uuid
from collections.abc import Callable
from typing import Any

import keras

from tfmammo import filesystem
from tfmammo.errors import ExportError, TrainingError
from tfmammo.tracking import export, store
from tfmammo.tracking.runs import Run
from tfmammo.training import devices, folder
from tfmammo.training.contract import TrainableModel
from tfmammo.training.state import TrainingState, get_variables
from tfmammo.training.task import TrainingTask

log = logging.getLogger(__name__)


class Exporter:
    """Exports a finished training, and registers each export once.

    Args:
        task: The training's.
        state: At the last step.
        run: Where versions are registered; None registers none.
    """

    def __init__(self, task: TrainingTask, state: TrainingState, run: Run | None) -> None:
        self.task = task
        self.state = state
        self.run = run

    def finish(self, metrics: dict[str, float]) -> None:
        """Export the last weights and the best, each as a version in the registry.

        A step that is already exported or registered is not exported or registered again.

        Args:
            metrics: Of the last step.
        """
        output = self.task.output
        last_step = int(self.state.step)
        best = self.state.best_checkpoints.latest
        best_is_last = best is None or folder.parse_step(best) == last_step
        for name in ("best", "export"):
            export.remove_leftovers(output / name)
        if self._read_exported_card():
            log.info("step %s is already exported to %s", f"{last_step:,}", output / "export")
        else:
            log.info("exporting step %s to %s", f"{last_step:,}", output / "export")
            # of a shorter training in this folder
            shutil.rmtree(output / "best", ignore_errors=True)
            if not best_is_last:
                self._export_best()
            self._export("export", metrics)
            log.info("finished at step %s; exported to %s", f"{last_step:,}", output / "export")
        if (output / "best").exists():
            self._register("best", True)
        self._register("export", best_is_last)

    def read_metrics(self) -> dict[str, float]:
        """Read the held-out metrics of the present step from its export; {} if there is none."""
        metrics: dict[str, float] = self._read_exported_card().get("metrics", {})
        return metrics

    def _read_exported_card(self) -> dict[str, Any]:
        """Read the export's card; {} if it is not of the present step."""
        try:
            card = export.read_card(self.task.output / "export")
        except ExportError:
            return {}
        return card if card.get("step") == int(self.state.step) else {}

    def _export_best(self) -> None:
        """Export the best weights, then restore the last ones."""
        try:
            self.state.best_checkpoints.restore()
            # of these weights: a later best may have been lost
            score = self.task.sign * float(self.state.best)
            self._export("best", {self.task.monitor: score})
        except TrainingError as error:
            log.warning(
                "the best weights are lost, and the last ones are exported alone: %s", error
            )
        self.state.newest_checkpoints.restore()

    def _export(self, name: str, metrics: dict[str, float]) -> None:
        experiment = self.task.experiment
        train = self.task.train
        seen_patients = folder.read_seen_patients(self.task.output)
        card = {
            "id": uuid.uuid4().hex,  # by which the registry knows this export again
            "name": experiment.name,
            "step": int(self.state.step),
            # a card is JSON, which has no NaN: a metric that could not be measured is left out
            "metrics": {key: value for key, value in metrics.items() if math.isfinite(value)},
            # the store's address may hold a password
            "config": experiment.model_dump(mode="json", exclude={"tracking"}),
            "archive": experiment.data.archive_name,
            "split": experiment.data.split,
            "data_fingerprint": train.fingerprint(),
            "precision": keras.config.dtype_policy().name,
            "hardware": devices.describe_hardware(),
            "train_patients": sorted({*train.patient_ids.tolist(), *seen_patients}),
            "held_out_ids": self.task.held_out.ids.tolist(),
            "pretrained": {
                name: source._asdict()
                for name, source in getattr(self.state.model, "pretrained", {}).items()
            },
            **store.read_git_state(),
        }
        model = copy_in_float32(self.task.build, self.state.model)
        export.export(model, self.task.output / name, card, self.task.write)

    def _register(self, name: str, best: bool) -> None:
        """Make an export a version, unless an earlier call did.

        That call may have been stopped between exporting and registering.
        """
        card = export.read_card(self.task.output / name)
        record = self.task.output / f"{name}_registered"
        # empty if an earlier write failed
        recorded = record.read_text(encoding="utf-8").split() if record.is_file() else []
        is_registered = recorded[:1] == [str(card["step"])]
        if is_registered or not self.run or not self.task.experiment.tracking.register_models:
            return
        metrics = {f"validation_{key}": value for key, value in card["metrics"].items()}
        version = self.run.register(self.task.output / name, card["step"], metrics, best)
        if version is not None:
            filesystem.write_atomically(record, f"{card['step']} is version {version}\n")


def copy_in_float32(build: Callable[[], TrainableModel], model: TrainableModel) -> TrainableModel:
    """Copy a model into one that computes in float32, which runs anywhere.

    Args:
        build: Builds the model under the current precision policy.
        model: Of whatever precision; its weights are copied.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = build()
    finally:
        keras.config.set_dtype_policy(policy)
    for name, network in model.networks.items():
        pairs = zip(get_variables(copy.networks[name]), get_variables(network), strict=True)
        for target, source in pairs:
            target.assign(source)
    return copy
