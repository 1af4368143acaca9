"""The classifier study's data and trainings: who trains, who chooses the checkpoint, who
tests, and which patches are synthetic.

The archive's patients are split once (`cli.archive_split`); train/contextual.py splits them alike,
so that no generator has seen whom the classifier is tested on. Half of the held-out patients choose
the checkpoints, of generators and of classifiers; the other half test.

`Gate` asks a classifier of real patches alone whether a synthetic set is worth training on: whether
it gives the set's lesions higher scores than the set's normal patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo import (
    datasets,
    export,
)
from tfmammo.config import DataConfig, Experiment, TrainingConfig
from tfmammo.data import splits
from tfmammo.data.labelled import binary_patches, check_binary
from tfmammo.data.patches import Patches, joined
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.export import predict
from tfmammo.metrics.classification import roc_auc
from tfmammo.models.classifier import Classifier, ClassifierConfig
from tfmammo.synthesis.patch_set import PatchSet, patch_scale
from tfmammo.training import loop

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

    Args:
        data: Kinds is not read, masses and calcifications are taken.
        positives: "malignant" or "lesion".
        output: split.json is written there.

    Raises:
        ConfigError: The archive can't be used.
        ArchiveError: The archive can't be used.
        DataError: A class is missing on one side.
    """
    data = datasets.archive_split(data.model_copy(update={"kinds": KINDS}), output)
    train, held_out = splits.split(
        datasets.all_patches(data, partial(binary_patches, malignant=positives == "malignant")),
        data,
    )
    validation, test = splits.halves(held_out, datasets.whole_archive(data), data)
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        check_binary(part, f"the {name} part")
    return Sides(train, validation, test)


def synthetic_set(experiment: Experiment[ClassifierConfig], held_out: Iterable[str]) -> PatchSet:
    """The synthetic patches that an experiment names, if real ones may be trained on beside them.

    Raises:
        ConfigError: None are named.
        DataError: As `check_synthetic`, or the folder holds none.
    """
    model = experiment.model
    if model.synthetic is None:
        raise ConfigError(
            f"model.synthetic: is missing, model.share={model.share:g} needs a folder that "
            "tfmammo.synthesis.patches wrote"
        )
    found = PatchSet.read(model.synthetic)
    check_synthetic(found, held_out, experiment.data)
    return found


def check_synthetic(found: PatchSet, held_out: Iterable[str], data: DataConfig) -> None:
    """Make sure that a synthetic set is one for a training.

    Args:
        held_out: Patients whom neither patches nor generators may know.
        data: Of the real patches.

    Raises:
        DataError: A class is missing, the patches have another size or other grey values than the
            real ones, or they or their generators know a patient that is held out.
    """
    patches = found.patches
    where = str(found.folder)
    size = patches.images.shape[1]
    if size != data.size:
        raise DataError(
            f"{where}: its patches have {size} px, the real ones {data.size}; train a generator "
            f"for data.size={data.size}"
        )
    wanted = patch_scale(data)
    for scale in found.scales:
        if scale != wanted:
            raise DataError(
                f"{where}: its patches were made with {scale}, the real ones with {wanted}; train "
                "the generators likewise"
            )
    held = set(held_out)
    for what, patients in (
        ("its generators were trained on", found.trained_on),
        ("its patches show", patches.patient_ids.tolist()),
    ):
        if known := held & set(patients):
            raise DataError(
                f"{where}: {what} {len(known)} of the {len(held)} patients held out here; the "
                "same data section splits alike"
            )
    check_binary(patches.labelled(patches.kinds != "normal"), where)


def with_synthetic(real: Patches, synthetic: Patches) -> Patches:
    """Real and synthetic patches in the four pools of models.classifier.POOLS.

    Args:
        real: Labelled 0 and 1.
    """
    synthetic = synthetic.labelled(2 + (synthetic.kinds != "normal"))
    together = joined([real, synthetic])
    return together.labelled(np.concatenate([real.labels, synthetic.labels]), balanced=True)


def train(
    experiment: Experiment[ClassifierConfig], output: Path, found: Sides | None = None
) -> tuple[dict[str, float], Sides]:
    """Train one classifier, or go on training it; see `loop.fit`.

    Args:
        found: The experiment's sides, where they are known already.

    Returns:
        Its metrics on the validation patches at the last step, and the sides.

    Raises as `loop.fit` and `sides`.

    Raises:
        ConfigError: Synthetic patches are wanted and none named.
    """
    found = found or sides(experiment.data, experiment.model.positives, output)
    patches = found.train
    fitted = experiment
    if experiment.model.share:
        patches = with_synthetic(patches, synthetic_set(experiment, found.held_out()).patches)
        experiment = scheduled(experiment, len(patches))
        fitted = experiment.model_copy(update={"training": _doubled(experiment.training)})
    build = partial(Classifier, experiment.model, experiment.data.size)
    return loop.fit(build, fitted, patches, found.validation, output, validate), found


def validate(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
    """The area under the ROC curve, by which the weights are chosen, and the accuracy at 0.5, on
    real patches.
    """
    probability = predict(functions["classifier"], "image", held_out.images, batch=16)[
        "probability"
    ]
    accuracy = float(np.mean((probability > 0.5) == (held_out.labels == 1)))
    return {"auc": roc_auc(held_out.labels, probability), "accuracy": accuracy}


def chosen_weights(run: Path) -> Path:
    """The export of a run's weights that did best on the validation patches.

    Raises:
        ExportError: The run is not there, or not finished.
    """
    export.read_card(run / "export")
    return run / "best" if (run / "best" / export.CARD).is_file() else run / "export"


def probabilities(run: Path, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of a lesion, by a run's chosen weights, float64 [n]."""
    classifier = export.load(chosen_weights(run), "classifier")
    return predict(classifier, "image", images, batch=16)["probability"].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Gate:
    """What classifiers trained on real patches alone make of a synthetic set: for each of
    models.classifier.POOLS the scores of its patches, float64 [n]; real ones are of patients that
    the classifiers never saw.
    """

    scores: dict[str, NDArray[np.float64]]

    @property
    def auc(self) -> float:
        """How often a synthetic lesion scores higher than a synthetic normal patch."""
        normal = self.scores["synthetic normal"]
        lesion = self.scores["synthetic lesion"]
        return roc_auc(
            np.repeat([0, 1], [len(normal), len(lesion)]), np.concatenate([normal, lesion])
        )

    @property
    def is_passed(self) -> bool:
        """Whether the lesions outscore the normal patches."""
        return self.auc > 0.5


def judge_set(baseline: Sequence[Path], found: PatchSet, validation: Patches) -> Gate:
    """Score a synthetic set before anything is trained on it.

    The set shows tissue of training patients, which the classifiers know: that speaks against
    lesions added to it.

    Args:
        baseline: Runs on real patches alone, whose scores are averaged.
        validation: Real patches of other patients.
    """
    is_lesion = found.patches.kinds != "normal"
    pools = {
        "real normal": validation.images[validation.labels == 0],
        "real lesion": validation.images[validation.labels == 1],
        "synthetic normal": found.patches.images[~is_lesion],
        "synthetic lesion": found.patches.images[is_lesion],
    }
    return Gate(
        {
            name: np.mean([probabilities(run, images) for run in baseline], axis=0)
            for name, images in pools.items()
        }
    )


def is_finished(run: Path, experiment: Experiment[Any]) -> bool:
    """Whether a run is there and trained as long as the experiment says; another experiment's
    counts as not finished.
    """
    try:
        card = export.read_card(run / "export")
    except ExportError:
        return False
    wanted = experiment.model_dump(mode="json", exclude={"tracking"})
    known = dict(card.get("config", {}))
    known["training"] = {
        **known.get("training", {}),
        "batch_size": wanted["training"]["batch_size"],
    }
    return card.get("step") == experiment.training.steps and known == wanted


def scheduled(
    experiment: Experiment[ClassifierConfig], patches: int = 0
) -> Experiment[ClassifierConfig]:
    """The experiment with model.samples, over which the share decays.

    Args:
        patches: Draws of an epoch, where epochs are counted.
    """
    model = experiment.model
    training = experiment.training
    if not model.share or model.samples:
        return experiment
    samples = loop.total_steps(_doubled(training), patches) * training.batch_size
    return experiment.model_copy(update={"model": model.model_copy(update={"samples": samples})})


def _doubled(training: TrainingConfig) -> TrainingConfig:
    """Twice the batch: of each two draws, one real and one synthetic, the room takes one."""
    return training.model_copy(update={"batch_size": 2 * training.batch_size})


def shared(
    experiment: Experiment[ClassifierConfig], share: float, seed: int
) -> Experiment[ClassifierConfig]:
    """The experiment of one share and seed; without synthetic patches their folder and decay don't
    count.
    """
    model = experiment.model.model_copy(
        update={"share": share, **({} if share else {"synthetic": None})}
    )
    training = experiment.training.model_copy(update={"seed": seed})
    return scheduled(experiment.model_copy(update={"model": model, "training": training}))
