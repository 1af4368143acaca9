"""Progressive growing of the contextual GAN: one run a size, each from the one before.

The last size trains in the output folder itself, an earlier one in its folder SIZEpx. Every stage
is a run of its own, so a stopped command continues in the stage where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo.config import DataConfig, Experiment
from tfmammo.data import datasets, splits
from tfmammo.data.labelled import check_pathologies, make_pathology_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError
from tfmammo.evaluation.validation import validate_contextual
from tfmammo.models.contextual import (
    KINDS,
    PATHOLOGIES,
    Contextual,
    ContextualConfig,
    build_networks,
)
from tfmammo.synthesis.generators import find_best_weights
from tfmammo.synthesis.patches import check_comparable, describe_scale
from tfmammo.tracking import models
from tfmammo.tracking.export import (
    LoadedFunction,
    assign,
    get_training_patients,
    load_identified,
    read_card,
)
from tfmammo.training import loop
from tfmammo.training.contract import Functions

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Subsets:
    """Patches of the last stage's size: all classes to train on; held-out inputs and targets."""

    train: Patches
    inputs: Patches
    targets: Patches

    def downsample(self, size: int) -> Subsets:
        """Return the same patches at another size, px."""
        return Subsets(
            downsample(self.train, size),
            downsample(self.inputs, size),
            downsample(self.targets, size),
        )


def train(
    experiment: Experiment[ContextualConfig], output: Path
) -> tuple[dict[str, float], Patches]:
    """Train size after size, or go on training; see `loop.Training`.

    Half of the held-out patients choose the best checkpoint, as in the classifier study, which
    tests on the other half.

    Returns:
        The held-out metrics of the last stage at its last step, and the generator's held-out
        inputs.
    """
    model = experiment.model
    sizes = model.stages(experiment.data.size)
    check_initial(experiment, sizes[0])
    check_fading(experiment, sizes, experiment.training.steps)
    subsets = open_subsets(experiment, output, sizes)
    judge = _open_judge(experiment, subsets)
    if judge:
        seed = judge.card["config"]["training"]["seed"]
        experiment = update_section(experiment, "model", judge_seed=seed)
    previous: Path | None = None  # the export of the stage before
    metrics: dict[str, float] = {}
    for size in sizes:
        is_last = size == sizes[-1]
        stage = experiment if is_last else configure_early_stage(experiment, size)
        folder = output if is_last else output / f"{size}px"
        if previous:
            # the first stage has started from `initial`
            stage = update_section(stage, "training", initial=None)
            log.info("growing %s to %d px", previous, size)
        build = partial(build_stage, model, size, previous)
        chooser = judge.call if judge and is_last else None
        metrics = fit_stage(stage, build, subsets.downsample(size), folder, previous, chooser)
        previous = folder / "export"
    return metrics, subsets.inputs


def open_subsets(
    experiment: Experiment[ContextualConfig], output: Path, sizes: Sequence[int]
) -> Subsets:
    """Open the patches of a training, and what it is validated on, at the sizes of its stages."""
    model = experiment.model
    malignant = model.positives == "malignant"
    data = datasets.pin_archive_split(experiment.data, output)
    make = partial(make_pathology_patches, malignant=malignant)
    train, held_out = datasets.open_subsets(data, output, make)
    patches = train.load()
    check_fading(experiment, sizes, loop.count_steps(experiment.training, len(patches)))
    # the other half tests classifiers
    validation, _ = splits.halve(held_out, datasets.index_archive(data), data)
    patches = check_pathologies(patches, malignant)
    # validation takes no benign ones
    validation = check_pathologies(validation, malignant=False)
    real, source = (PATHOLOGIES.index(name) for name in model.roles())
    inputs, targets = (
        validation.take(np.flatnonzero(validation.labels == label)) for label in (source, real)
    )
    return Subsets(patches, inputs, targets)


def _open_judge(
    experiment: Experiment[ContextualConfig], subsets: Subsets
) -> LoadedFunction | None:
    """Open the classifier that chooses the best checkpoint; None where the config names none."""
    if experiment.model.judge is None:
        return None
    weights = find_best_weights(experiment.model.judge, experiment.tracking.uri)
    opened = load_identified(weights, {"image"}, {"probability"})
    data = DataConfig.model_validate(opened.card["config"]["data"])
    name = f"model.judge {experiment.model.judge}"
    check_comparable(name, data.size, describe_scale(data), experiment.data)
    known = get_training_patients(opened.card, weights)
    held_out = {*subsets.inputs.patient_ids.tolist(), *subsets.targets.patient_ids.tolist()}
    splits.check_unseen(f"{name}: was trained on", known, held_out)
    return opened


def fit_stage(
    stage: Experiment[Any],
    build: Callable[[], Contextual],
    subsets: Subsets,
    output: Path,
    previous: Path | None = None,
    judge: Any = None,
) -> dict[str, float]:
    """Train one stage, from the export of the stage before; see `loop.Training.fit`.

    No checkpoint counts as the best one before the stage's new level is faded in. The judge is the
    classifier that chooses the best checkpoint; without one the likeness does.
    """
    monitor = "likeness" if judge is None else "judged"
    built: list[Contextual] = []

    def build_and_keep() -> Contextual:
        built.append(build())
        return built[-1]

    def validate(functions: Functions, held_out: Patches) -> dict[str, float]:
        metrics = validate_contextual(functions, held_out, subsets.targets, stage.model, judge)
        # the first model is the one that trains; a later one is the copy that is exported
        is_faded_in = built[0].average.is_faded_in()
        return metrics if is_faded_in else metrics | {monitor: np.nan}

    return loop.Training(
        build_and_keep,
        stage,
        subsets.train,
        subsets.inputs,
        output,
        validate,
        monitor=monitor,
        seen_patients=read_card(previous)["train_patients"] if previous else (),
    ).fit()


def set_kinds(experiment: Experiment[Any]) -> Experiment[Any]:
    """Set data.kinds to the lesions that model.target is about; refuse others."""
    kinds = KINDS[experiment.model.target]
    if "kinds" in experiment.data.model_fields_set and set(experiment.data.kinds) != set(kinds):
        raise ConfigError(
            f"data.kinds: model.target={experiment.model.target} is about {' and '.join(kinds)}; "
            "leave data.kinds out"
        )
    return update_section(experiment, "data", kinds=kinds)


def update_section(experiment: Experiment[Any], section: str, **values: Any) -> Experiment[Any]:
    """Return the experiment with other values in one of its sections."""
    updated = getattr(experiment, section).model_copy(update=values)
    return experiment.model_copy(update={section: updated})


def configure_early_stage(experiment: Experiment[Any], size: int) -> Experiment[Any]:
    """Return the experiment of a stage before the last, which registers no version."""
    stage = update_section(experiment, "data", size=size)
    stage = update_section(stage, "tracking", register_models=False)
    # it takes patches of the last size
    stage = update_section(stage, "model", judge=None, judge_seed=None)
    return update_section(stage, "training", steps=experiment.model.start_steps)


def check_initial(experiment: Experiment[Any], size: int) -> None:
    """Check that `training.initial` is an export for patches of the first stage's size."""
    initial = experiment.training.initial
    if initial is None:
        return
    card = read_card(models.resolve(initial, experiment.tracking.uri))
    exported_size = card.get("config", {}).get("data", {}).get("size")
    if exported_size not in (None, size):
        raise ConfigError(
            f"training.initial {initial}: holds networks for patches of {exported_size} px, this "
            f"run starts at {size} px"
        )


def check_fading(experiment: Experiment[Any], sizes: Sequence[int], steps: int | None) -> None:
    """Check that every stage is long enough to fade its new level in.

    A shorter one would leave networks that are half the old ones. `steps` are those of the
    last stage; None while they are unknown.
    """
    fade = experiment.model.fade_steps
    for size in sizes[1:]:
        key = "model.start_steps"
        count = experiment.model.start_steps
        if size == sizes[-1]:
            key = "training.steps"
            count = steps
        if count is not None and count < fade:
            raise ConfigError(
                f"{key}: {count:,} end before the level for {size} px is faded in "
                f"(model.fade_steps={fade:,})"
            )


def build_stage(config: ContextualConfig, size: int, previous: Path | None) -> Contextual:
    """Build the model of a stage, grown from the export of the stage before, if there is one."""
    model = Contextual(config, size)
    if previous:
        networks = build_networks(config, size // 2)
        assign(networks, previous)
        model.grow(networks)
    return model


def downsample(patches: Patches, size: int) -> Patches:
    """Halve patches until they have a size: means of 2 x 2 px, as a grown network sees them."""
    while (side := patches.images.shape[1]) > size:
        images, masks = (
            values.reshape(-1, side // 2, 2, side // 2, 2, 1)
            for values in (patches.images, patches.masks)
        )
        patches = replace(patches, images=images.mean(axis=(2, 4)), masks=masks.max(axis=(2, 4)))
    return patches
