"""The classifier study's data and trainings: who trains, who chooses the checkpoint, who tests, and which patches are synthetic.

The archive's patients are split once (`cli.archive_split`); train/contextual.py splits them alike, so that no generator has seen
whom the classifier is tested on. Half of the held-out patients choose the checkpoints, of generators and of classifiers; the other
half test.

`Gate` asks a classifier of real patches alone whether a synthetic set is worth training on: whether it gives the set's lesions
higher scores than the set's normal patches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tfmammo import quiet  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import numpy as np

from tfmammo import export
from tfmammo.config import ConfigError, DataConfig, Experiment, TrainingConfig
from tfmammo.data import splits
from tfmammo.data.labelled import binary_patches, check_binary
from tfmammo.data.patches import DataError, Patches, joined
from tfmammo.metrics.classification import roc_auc
from tfmammo.models.classifier import Classifier, ClassifierConfig
from tfmammo.patch_set import PatchSet, patch_scale
from tfmammo.training import cli, loop

KINDS = ("mass", "calcification")


@dataclass(frozen=True, eq=False)
class Sides:
    """Real patches labelled 0 normal and 1 lesion, of disjoint patients."""

    train: Patches
    validation: Patches
    test: Patches

    def held_out(self) -> set[str]:
        """The patients that nothing may have been trained on."""
        return {*self.validation.patient_ids.tolist(), *self.test.patient_ids.tolist()}


def sides(data: DataConfig, positives: str, output: Path) -> Sides:
    """The real patches of an archive, split by patient.

    Args:     data: kinds is not read, masses and calcifications are taken. positives: "malignant" or "lesion". output: split.json
              is written there.
    Raises:   ConfigError, ArchiveError: the archive can't be used. DataError: a class is missing on one side.
    """
    data = cli.archive_split(data.model_copy(update={"kinds": KINDS}), output)
    train, held_out = splits.split(cli.all_patches(data, partial(binary_patches, malignant=positives == "malignant")), data)
    validation, test = splits.halves(held_out, cli.whole_archive(data), data)
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        check_binary(part, f"the {name} part")
    return Sides(train, validation, test)


def with_synthetic(real: Patches, found: PatchSet, held_out: Iterable[str], data: DataConfig) -> Patches:
    """Real and synthetic patches in the four pools of models.classifier.POOLS.

    Args:     real: labelled 0 and 1. found: the synthetic ones. held_out: patients whom neither may know. data: of the real ones.
    Raises:   DataError: a class of synthetic patches is missing, they have another size or other grey values, or they or their
              generators know a patient that is held out.
    """
    patches, where = found.patches, str(found.folder)
    here, there = real.images.shape[1], patches.images.shape[1]
    if here != there:
        raise DataError(f"{where}: its patches have {there} px, the real ones {here}; train a generator for data.size={here}")
    wanted = patch_scale(data)
    for scale in found.scales:
        if scale != wanted:
            raise DataError(f"{where}: its patches were made with {scale}, the real ones with {wanted}; train the generators likewise")
    held = set(held_out)
    for what, patients in (("its generators were trained on", found.trained_on), ("its patches show", patches.patient_ids.tolist())):
        if known := held & set(patients):
            raise DataError(f"{where}: {what} {len(known)} of the {len(held)} patients held out here; the same data section splits alike")
    synthetic = check_binary(patches.labelled(2 + (patches.kinds != "normal")), where)
    together = joined([real, synthetic])
    return together.labelled(np.concatenate([real.labels, synthetic.labels]), balanced=True)


def train(experiment: Experiment[ClassifierConfig], output: Path, found: Sides | None = None) -> tuple[dict[str, float], Sides]:
    """Train one classifier, or go on training it; see `loop.fit`.

    Args:     found: the experiment's sides, where they are known already.
    Returns:  its metrics on the validation patches at the last step, and the sides.
    Raises:   as `loop.fit` and `sides`. ConfigError: synthetic patches are wanted and none named.
    """
    model = experiment.model
    if model.share and model.synthetic is None:
        raise ConfigError(f"model.synthetic: is missing, model.share={model.share:g} needs a folder that tfmammo.patch_synthesis wrote")
    found = found or sides(experiment.data, model.positives, output)
    patches, fitted = found.train, experiment
    if model.share and model.synthetic:
        patches = with_synthetic(patches, PatchSet.read(model.synthetic), found.held_out(), experiment.data)
        experiment = scheduled(experiment, len(patches))
        fitted = experiment.model_copy(update={"training": _doubled(experiment.training)})
    build = partial(Classifier, experiment.model, experiment.data.size)
    return loop.fit(build, fitted, patches, found.validation, output, validate), found


def validate(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
    """The area under the ROC curve, by which the weights are chosen, and the accuracy at 0.5, on real patches."""
    probability = cli.predict(functions["classifier"], "image", held_out.images, batch=16)["probability"]
    accuracy = float(np.mean((probability > 0.5) == (held_out.labels == 1)))
    return {"auc": roc_auc(held_out.labels, probability), "accuracy": accuracy}


def chosen_weights(run: Path) -> Path:
    """The export of a run's weights that did best on the validation patches.

    Raises:   ExportError: the run is not there, or not finished.
    """
    export.read_card(run / "export")
    return run / "best" if (run / "best" / export.CARD).is_file() else run / "export"


def is_finished(run: Path, experiment: Experiment[Any]) -> bool:
    """Whether a run is there and trained as long as the experiment says; another experiment's counts as not finished."""
    try:
        card = export.read_card(run / "export")
    except export.ExportError:
        return False
    wanted = experiment.model_dump(mode="json", exclude={"tracking"})
    known = dict(card.get("config", {}))
    known["training"] = {**known.get("training", {}), "batch_size": wanted["training"]["batch_size"]}
    return card.get("step") == experiment.training.steps and known == wanted


def scheduled(experiment: Experiment[ClassifierConfig], patches: int = 0) -> Experiment[ClassifierConfig]:
    """The experiment with model.samples, over which the share decays. Args: patches: draws of an epoch, where epochs are counted."""
    model, training = experiment.model, experiment.training
    if not model.share or model.samples:
        return experiment
    samples = loop.total_steps(_doubled(training), patches) * training.batch_size
    return experiment.model_copy(update={"model": model.model_copy(update={"samples": samples})})


def _doubled(training: TrainingConfig) -> TrainingConfig:
    """Twice the batch: of each two draws, one real and one synthetic, the room takes one."""
    return training.model_copy(update={"batch_size": 2 * training.batch_size})


def shared(experiment: Experiment[ClassifierConfig], share: float, seed: int) -> Experiment[ClassifierConfig]:
    """The experiment of one share and seed; without synthetic patches their folder and decay don't count."""
    model = experiment.model.model_copy(update={"share": share, **({} if share else {"synthetic": None})})
    training = experiment.training.model_copy(update={"seed": seed})
    return scheduled(experiment.model_copy(update={"model": model, "training": training}))
