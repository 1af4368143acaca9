"""Train a contextual GAN: lesions added to normal patches, or removed from others (see
tfmammo/models/contextual.py).

Half of the held-out patients choose the best checkpoint, as in the classifier study, which tests on
the other half.

python train/contextual.py --config configs/contextual.yaml --set data.name=optimam data.root=DIR
model.target=mass
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo import cli, datasets, export
from tfmammo import config as configuration
from tfmammo.config import Experiment
from tfmammo.data import splits
from tfmammo.data.labelled import check_pathologies, pathology_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError
from tfmammo.export import assign, read_card
from tfmammo.filesystem import write_atomically
from tfmammo.metrics.synthesis import sliced_wasserstein
from tfmammo.models.contextual import (
    KINDS,
    PATHOLOGIES,
    Contextual,
    ContextualConfig,
    networks,
    scalars,
)
from tfmammo.postprocessing import postprocess
from tfmammo.tracking import models
from tfmammo.training import loop, script
from tfmammo.training.folder import INITIAL_PATIENTS

log = logging.getLogger("tfmammo.train.contextual")


def main() -> None:
    """Read the config, split the patches by patient, train size after size, each from the one
    before, export.
    """
    chosen = cli.arguments(__doc__).parse_args()
    experiment = with_kinds(configuration.load(chosen.config, chosen.set, ContextualConfig))
    script.prepare(experiment.training)
    model = experiment.model
    sizes = experiment.model.stages(experiment.data.size)
    check_initial(experiment, sizes[0])
    check_fading(experiment, sizes, experiment.training.steps)
    output = chosen.output or script.default_output(experiment)
    malignant = model.positives == "malignant"
    data = datasets.archive_split(experiment.data, output)
    train, held_out = datasets.datasets(
        data, output, partial(pathology_patches, malignant=malignant)
    )
    assert isinstance(train, Patches)
    check_fading(experiment, sizes, loop.total_steps(experiment.training, len(train)))
    # the other half tests classifiers
    chooses, _ = splits.halves(held_out, datasets.whole_archive(data), data)
    # validation takes no benign ones
    train = check_pathologies(train, malignant)
    held_out = check_pathologies(chooses, malignant=False)
    real, source = (PATHOLOGIES.index(name) for name in model.roles())

    small: Path | None = None  # the export of the stage before
    for size in sizes:
        stage, folder = (
            (experiment, output)
            if size == sizes[-1]
            else (early(experiment, size), output / f"{size}px")
        )
        if small:
            stage = updated(stage, "training", initial=None)  # the first stage has started from it
            folder.mkdir(parents=True, exist_ok=True)
            log.info("growing %s to %d px", small, size)
            write_atomically(
                folder / INITIAL_PATIENTS, "\n".join(read_card(small)["train_patients"])
            )
        inputs, targets = (
            halved(held_out.take(np.flatnonzero(held_out.labels == label)), size)
            for label in (source, real)
        )
        metrics = fit(
            stage, partial(make, model, size, small), halved(train, size), inputs, targets, folder
        )
        small = folder / "export"
    script.summary(experiment, metrics, inputs, output)


def fit(
    stage: Experiment[Any],
    build: Callable[[], Contextual],
    train: Patches,
    inputs: Patches,
    targets: Patches,
    output: Path,
) -> dict[str, float]:
    """Train one stage; no checkpoint counts as the best one before the stage's new level is faded
    in.
    """
    rooms: list[Contextual] = []

    def noted() -> Contextual:
        rooms.append(build())
        return rooms[-1]

    def judge(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
        found = validate(functions, held_out, targets, stage.model)
        # the first room is the one that trains
        return found if rooms[0].average.is_faded_in() else found | {"likeness": np.nan}

    return loop.fit(noted, stage, train, inputs, output, judge)


def with_kinds(experiment: Experiment[Any]) -> Experiment[Any]:
    """The experiment with the lesions in data.kinds that model.target is about.

    Raises:
        ConfigError: data.kinds names others.
    """
    kinds = KINDS[experiment.model.target]
    if "kinds" in experiment.data.model_fields_set and set(experiment.data.kinds) != set(kinds):
        raise ConfigError(
            f"data.kinds: model.target={experiment.model.target} is about {' and '.join(kinds)}; "
            "leave data.kinds out"
        )
    return updated(experiment, "data", kinds=kinds)


def updated(experiment: Experiment[Any], section: str, **values: Any) -> Experiment[Any]:
    """The experiment with other values in one of its sections."""
    return experiment.model_copy(
        update={section: getattr(experiment, section).model_copy(update=values)}
    )


def early(experiment: Experiment[Any], size: int) -> Experiment[Any]:
    """The experiment of a stage before the last; its networks are no version in the registry."""
    stage = updated(updated(experiment, "data", size=size), "tracking", register_models=False)
    return updated(stage, "training", steps=experiment.model.start_steps)


def check_initial(experiment: Experiment[Any], size: int) -> None:
    """Make sure that what training.initial names is for the first stage.

    Raises:
        ConfigError: It is for patches of another size.
    """
    initial = experiment.training.initial
    if initial is None:
        return
    known = (
        read_card(models.resolve(initial, experiment.tracking.uri))
        .get("config", {})
        .get("data", {})
        .get("size")
    )
    if known not in (None, size):
        raise ConfigError(
            f"training.initial {initial}: holds networks for patches of {known} px, this training "
            f"starts at {size} px"
        )


def check_fading(experiment: Experiment[Any], sizes: Sequence[int], steps: int | None) -> None:
    """Make sure that every stage is long enough to fade its new level in.

    Args:
        sizes: Of all stages.
        steps: Of the last stage; None where they are not known yet.

    Raises:
        ConfigError: One is not; it would leave networks that are half the old ones.
    """
    fade = experiment.model.fade_steps
    for size in sizes[1:]:
        key, count = (
            ("training.steps", steps)
            if size == sizes[-1]
            else ("model.start_steps", experiment.model.start_steps)
        )
        if count is not None and count < fade:
            raise ConfigError(
                f"{key}: {count:,} end before the level for {size} px is faded in "
                f"(model.fade_steps={fade:,})"
            )


def make(config: ContextualConfig, size: int, small: Path | None) -> Contextual:
    """The room of a stage, grown from the export of the stage before, if there is one."""
    room = Contextual(config, size)
    if small:
        before = networks(config, size // 2)
        assign(before, small)
        room.grow(before)
    return room


def halved(patches: Patches, size: int) -> Patches:
    """The same patches at a half, a quarter, ... of their size: means of 2 x 2 pixels, as a grown
    network sees them at first.
    """
    while (side := patches.images.shape[1]) > size:
        images, masks = (
            values.reshape(-1, side // 2, 2, side // 2, 2, 1)
            for values in (patches.images, patches.masks)
        )
        patches = replace(patches, images=images.mean(axis=(2, 4)), masks=masks.max(axis=(2, 4)))
    return patches


def validate(
    functions: loop.Functions, held_out: Patches, real: Patches, model: ContextualConfig
) -> dict[str, float]:
    """How near the generated patches come to real ones as a set, and what post-processing leaves of
    them.

    Returns:
        "likeness", by which the best checkpoint is chosen: minus the sliced Wasserstein distance to
        the real patches; "likeness_of_inputs": that of the patches before. "discarded": the part of
        them that post-processing refuses.
    """
    images = held_out.images
    average = functions["average"]
    noise = scalars(len(images), average.input_signature[1].shape[1])

    def synthesize(rows: Any) -> dict[str, Any]:
        return average(image=images[rows.numpy()], noise=noise[rows.numpy()])

    made = export.predict(synthesize, "rows", np.arange(len(images)))
    refined = postprocess(
        images, made["lesion"], model.postprocess, removal=model.target == "removal"
    )
    return {
        "likeness": -sliced_wasserstein(real.images, made["image"]),
        "likeness_of_inputs": -sliced_wasserstein(real.images, images),
        "discarded": float(1 - refined.kept.mean()),
    }


if __name__ == "__main__":
    cli.run(main)
