"""The classifier study's data and runs: subsets, synthetic patches, decay of their share.

The archive's patients are split once (`datasets.pin_archive_split`). train/contextual.py splits
them in the same way, so that no generator has seen a patient whom the classifier is tested on. Half
of the held-out patients choose the checkpoints of generators and of classifiers; the other half
test.

Controls are runs with simpler patches in place of the synthetic ones.

`Gate` asks classifiers of real patches alone whether a synthetic set is worth training on: whether
they give the set's lesions higher scores than its normal patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tfmammo.config import DataConfig, Experiment, Statistics, TrainingConfig
from tfmammo.data import datasets, splits
from tfmammo.data.labelled import check_binary, make_binary_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, ExportError
from tfmammo.metrics.classification import roc_auc
from tfmammo.models.classifier import Classifier, ClassifierConfig, Control
from tfmammo.studies.classification_controls import CONTROLS, make_control
from tfmammo.synthesis.config import Target
from tfmammo.synthesis.patches import PatchSet, check_comparable
from tfmammo.tracking import export
from tfmammo.tracking.export import predict
from tfmammo.training import contract, loop

KINDS = ("mass", "calcification")


class StudyConfig(Statistics):
    """A config file of evaluate/classification.py."""

    experiment: Experiment[ClassifierConfig]
    """How to train, as for train/classifier.py. The study replaces share and seed."""
    shares: tuple[float, ...] = (0, 0.1, 0.25, 0.5, 0.75, 1)
    """The shares of synthetic patches at the start of a run. The first is 0, and the others
    are compared with it.
    """
    controls: tuple[Control, ...] = CONTROLS
    """What takes the place of the synthetic patches in further runs; see
    classification_controls.py. "fresh" needs experiment.model.patient_parts above 1.
    """
    control_share: float = Field(default=0.5, gt=0, le=1)
    """Their share at the start of a run, one of `shares`."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    """The seeds of the runs; each share is trained with each seed."""
    generators: dict[Target, str] | None = None
    """"mass", "calcification" and "removal", or some of them -> the model URI of a run of
    train/contextual.py, whose best weights are taken. null leaves the effects of generators out.
    """
    effects: PositiveInt = 500
    """How many patches, at most, each generator edits."""
    tsne: NonNegativeInt = 1000
    """How many patches, at most, of each group the t-SNE figure shows. Its synthetic patches are
    test patches that the generators edited. 0: no such figure.
    """
    tracking_uri: str | None = None
    """The MLflow server of models:/ URIs; null means the environment's. Where it is set, the report
    is logged there too.
    """

    @model_validator(mode="after")
    def _check_consistent(self) -> StudyConfig:
        is_share = [0 <= share <= 1 for share in self.shares]
        if not self.shares or self.shares[0] != 0 or not all(is_share):
            raise ValueError(
                "shares must be numbers from 0 to 1, the first 0, with which the others are "
                "compared"
            )
        if len(set(self.shares)) < len(self.shares) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("shares and seeds must not repeat")
        if len(set(self.controls)) < len(self.controls):
            raise ValueError("controls must not repeat")
        if self.controls and self.control_share not in self.shares:
            raise ValueError(
                f"control_share {self.control_share:g} is none of shares, so that no run with "
                "synthetic patches could be compared with the controls (controls=[]: none)"
            )
        if "fresh" in self.controls and self.experiment.model.patient_parts == 1:
            raise ValueError(
                "the control fresh needs patients that are held back: set "
                "experiment.model.patient_parts above 1"
            )
        if self.experiment.training.steps is None:
            raise ValueError("experiment.training.steps must be given")
        return self


@dataclass(frozen=True, eq=False)
class Subsets:
    """Real patches, labelled 0 negative and 1 positive, in three subsets of disjoint patients."""

    train: Patches
    validation: Patches
    test: Patches

    def list_held_out_patients(self) -> set[str]:
        """List the patients that nothing may have been trained on."""
        return {*self.validation.patient_ids.tolist(), *self.test.patient_ids.tolist()}


def split_subsets(data: DataConfig, model: ClassifierConfig, output: Path) -> Subsets:
    """Split the real patches of an archive by patient; held-out negatives are of normal tissue.

    `data.kinds` is not read: masses and calcifications are taken. The split is written to output.
    """
    data = datasets.pin_archive_split(data.model_copy(update={"kinds": KINDS}), output)
    make_patches = partial(
        make_binary_patches,
        malignant=model.positives == "malignant",
        benign=model.negatives == "normal_and_benign",
    )
    train, held_out = splits.split(datasets.load_all_patches(data, make_patches), data)
    held_out = held_out.take(np.flatnonzero((held_out.labels == 1) | (held_out.kinds == "normal")))
    validation, test = splits.halve(held_out, datasets.index_archive(data), data)
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        check_binary(part, f"the {name} part")
    return Subsets(train, validation, test)


def load_synthetic_set(
    experiment: Experiment[ClassifierConfig], held_out: Iterable[str]
) -> PatchSet:
    """Read the synthetic patches that model.synthetic names, and check them: `check_synthetic`."""
    model = experiment.model
    if model.synthetic is None:
        raise ConfigError(
            f"model.synthetic: is missing, model.share={model.share:g} needs a folder that "
            "`tfmammo synthesize-patches` wrote"
        )
    synthetic = PatchSet.read(model.synthetic)
    check_synthetic(synthetic, held_out, experiment.data)
    return synthetic


def check_judge(name: str, judge_seed: int | None, seeds: Sequence[int]) -> None:
    """Refuse a judge of the same seed as one of the classifiers that score what it chose.

    Trained on the same patches the two are one classifier, whose scores are too good.
    """
    if judge_seed in seeds:
        raise ConfigError(
            f"{name}: a classifier of training.seed={judge_seed} chose its weights "
            "(model.judge), and the study would score it by a classifier of the same seed; train "
            "the judge with a seed that is none of `seeds`"
        )


def check_synthetic(synthetic: PatchSet, held_out: Iterable[str], data: DataConfig) -> None:
    """Refuse a synthetic set that does not fit the real patches.

    Raises:
        DataError: A class is missing, the patches have another size or scale of intensities, or
            they or their generators know a held-out patient.
    """
    patches = synthetic.patches
    folder = str(synthetic.folder)
    for scale in synthetic.scales:
        check_comparable(folder, patches.images.shape[1], scale, data)
    held_out = set(held_out)
    splits.check_unseen(f"{folder}: its generators were trained on", synthetic.trained_on, held_out)
    splits.check_unseen(f"{folder}: its patches show", patches.patient_ids.tolist(), held_out)
    check_binary(patches.with_labels(patches.kinds != "normal"), folder)


def hold_back(patches: Patches, parts: int, seed: int) -> tuple[Patches, Patches]:
    """Part the training patients: the patches of one part, and those of patients held back."""
    if parts == 1:
        return patches, patches.take([])
    held_back, seen = splits.split_by_patient(patches.patient_ids, parts, 0, seed)
    of_part, fresh = patches.take(seen), patches.take(held_back)
    check_binary(of_part, f"one of {parts} parts of the training patients")
    check_binary(fresh, f"{parts - 1} of {parts} parts of the training patients")
    return of_part, fresh


def join_synthetic(real: Patches, synthetic: Patches) -> Patches:
    """Join real patches, labelled 0 and 1, and synthetic ones in the pools of models.classifier."""
    synthetic = synthetic.with_labels(2 + (synthetic.kinds != "normal"))
    patches = real.concatenate(synthetic)
    return patches.with_labels(np.concatenate([real.labels, synthetic.labels]), balanced=True)


def make_training_patches(
    experiment: Experiment[ClassifierConfig], subsets: Subsets
) -> tuple[Patches, tuple[str, ...]]:
    """Make what a classifier is trained on.

    Returns:
        Its patches, and the patients that the generators of synthetic ones were trained on.
    """
    model = experiment.model
    patches, fresh = hold_back(subsets.train, model.patient_parts, experiment.data.seed)
    if not model.share:
        return patches, ()
    synthetic = load_synthetic_set(experiment, subsets.list_held_out_patients())
    pool = synthetic.patches
    if model.control:
        source = fresh if model.control == "fresh" else patches
        pool = make_control(model.control, source, pool, experiment.training.seed)
    return join_synthetic(patches, pool), tuple(synthetic.trained_on)


def train(
    experiment: Experiment[ClassifierConfig], output: Path, subsets: Subsets | None = None
) -> tuple[dict[str, float], Subsets]:
    """Train one classifier, or continue its training; see `loop.Training`.

    Returns:
        The metrics on the validation patches at the last step, and the subsets.
    """
    subsets = subsets or split_subsets(experiment.data, experiment.model, output)
    patches, seen_patients = make_training_patches(experiment, subsets)
    fitted = experiment
    if experiment.model.share:
        experiment = set_decay_samples(experiment, len(patches))
        fitted = experiment.model_copy(update={"training": _double_batch(experiment.training)})
    build = partial(Classifier, experiment.model, experiment.data.size)
    metrics = loop.Training(
        build,
        fitted,
        patches,
        subsets.validation,
        output,
        validate,
        monitor="auc",
        seen_patients=seen_patients,
    ).fit()
    return metrics, subsets


def validate(functions: contract.Functions, held_out: Patches) -> dict[str, float]:
    """Measure "auc", by which the weights are chosen, and "accuracy" at a threshold of 0.5."""
    outputs = predict(functions["classifier"], {"image": held_out.images}, batch=16)
    probability = outputs["probability"]
    accuracy = float(np.mean((probability > 0.5) == (held_out.labels == 1)))
    return {"auc": roc_auc(held_out.labels, probability), "accuracy": accuracy}


def find_weights(run: Path) -> Path:
    """Return the export of a finished run that was best on the validation patches."""
    export.read_card(run / "export")
    return run / "best" if (run / "best" / export.CARD).is_file() else run / "export"


def predict_unseen(
    run: Path, images: NDArray[np.float32], output: str, patients: NDArray[np.str_]
) -> NDArray[np.float32]:
    """Predict with a run's best weights on patches of patients that it was not trained on.

    Returns:
        "probability" [n], of a lesion, or "features" [n, channels].
    """
    weights = find_weights(run)
    training_patients = export.get_training_patients(export.read_card(weights), weights)
    splits.check_unseen(f"{run}: was trained on", training_patients, patients.tolist())
    return predict(export.load(weights, "classifier"), {"image": images}, batch=16)[output]


def predict_probabilities(run: Path, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Predict the probability of a lesion with a run's best weights, float64 [n]."""
    classifier = export.load(find_weights(run), "classifier")
    return predict(classifier, {"image": images}, batch=16)["probability"].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Gate:
    """How classifiers trained on real patches alone score a synthetic set.

    Attributes:
        scores: Pool of models.classifier.POOLS -> the scores of its patches, float64 [n]. Real ones
            are of patients that the classifiers never saw.
    """

    scores: dict[str, NDArray[np.float64]]

    @property
    def auc(self) -> float:
        """The probability that a synthetic lesion scores higher than a synthetic normal patch."""
        return self._compare("synthetic")

    @property
    def real_auc(self) -> float:
        """The same of real patches, for comparison."""
        return self._compare("real")

    def _compare(self, pool: str) -> float:
        normal = self.scores[f"{pool} normal"]
        lesion = self.scores[f"{pool} lesion"]
        labels = np.repeat([0, 1], [len(normal), len(lesion)])
        return roc_auc(labels, np.concatenate([normal, lesion]))

    @property
    def is_passed(self) -> bool:
        """Whether the lesions outscore the normal patches."""
        return self.auc > 0.5


def score_synthetic_set(baseline: Sequence[Path], synthetic: PatchSet, validation: Patches) -> Gate:
    """Score a synthetic set before anything is trained on it, averaged over runs on real patches.

    The set shows tissue of training patients, which the classifiers know. That lowers the scores of
    lesions added to it.
    """
    is_lesion = synthetic.patches.kinds != "normal"
    pools = {
        "real normal": validation.images[validation.labels == 0],
        "real lesion": validation.images[validation.labels == 1],
        "synthetic normal": synthetic.patches.images[~is_lesion],
        "synthetic lesion": synthetic.patches.images[is_lesion],
    }
    return Gate(
        {
            name: np.mean([predict_probabilities(run, images) for run in baseline], axis=0)
            for name, images in pools.items()
        }
    )


def is_finished(run: Path, experiment: Experiment[Any]) -> bool:
    """Return whether a run exists and was trained as the experiment says, to its last step."""
    try:
        card = export.read_card(run / "export")
    except ExportError:
        return False
    config = experiment.model_dump(mode="json", exclude={"tracking"})
    trained_with = dict(card.get("config", {}))
    # The batch was doubled where half of it is synthetic, see `_double_batch`.
    trained_with["training"] = {
        **trained_with.get("training", {}),
        "batch_size": config["training"]["batch_size"],
    }
    return card.get("step") == experiment.training.steps and trained_with == config


def set_decay_samples(
    experiment: Experiment[ClassifierConfig], patches: int = 0
) -> Experiment[ClassifierConfig]:
    """Set model.samples, the number of draws over which the share decays, if it is not set.

    `patches` are the draws of an epoch, where the run counts epochs.
    """
    model = experiment.model
    training = experiment.training
    if not model.share or model.samples:
        return experiment
    steps = loop.count_steps(_double_batch(training), patches)
    samples = steps * training.batch_size * training.accumulate
    return experiment.model_copy(update={"model": model.model_copy(update={"samples": samples})})


def _double_batch(training: TrainingConfig) -> TrainingConfig:
    """Double the batch: of two draws, one real and one synthetic, the model uses one."""
    return training.model_copy(update={"batch_size": 2 * training.batch_size})


def name_share(share: float) -> str:
    """Name the runs of a share: "share50"."""
    return f"share{100 * share:g}"


def select_arm(
    experiment: Experiment[ClassifierConfig],
    share: float,
    seed: int,
    control: Control | None = None,
) -> Experiment[ClassifierConfig]:
    """Return the experiment of one share and seed, perhaps with a control's patches.

    Without a synthetic share, the folder of synthetic patches is skipped.
    """
    values: dict[str, Any] = {"share": share, "control": control}
    if not share:
        values["synthetic"] = None
    model = experiment.model.model_copy(update=values)
    training = experiment.training.model_copy(update={"seed": seed})
    return set_decay_samples(experiment.model_copy(update={"model": model, "training": training}))
