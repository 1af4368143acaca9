"""Run several models on the same patches, of patients that none of them was trained on.

A model is a name and one or more URIs. Several URIs are the folds of a cross-validation: each patch
goes to the one fold that never saw its patient. URIs that were trained on the same patients are
runs of one fold, which differ in their seed. All models are compared on the patches that each of
them is eligible for. Models trained by the paper's leaky protocol know every patient, so they are
evaluated on their own held-out copies, in a comparison of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, StringConstraints

from tfmammo.config import DataConfig, Statistics
from tfmammo.data import datasets, splits
from tfmammo.data.extraction import MakePatches, make_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.networks import (
    Inputs,
    MaskFolder,
    Predictor,
    check_crops,
    open_predictor,
)
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Compare, Measure, Scores, count_sizes, summarize
from tfmammo.tracking import export

log = logging.getLogger(__name__)


Protocol = Literal["unseen", "all", "paper"]
# It becomes a part of file names.
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w .+-]*$")]
ModelURIs = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]


# Model -> its networks
Models = Mapping[str, Sequence[Predictor]]
# Model -> which of its networks answers each patch: intp [runs, n]
Assigned = Mapping[str, NDArray[np.intp]]


class Settings(Statistics):
    """What the configs of all evaluations on an archive share."""

    data: DataConfig = DataConfig()
    """The patches or mammograms. Their split is not used."""
    patients: Literal["unseen", "all"] = "unseen"
    """"unseen" evaluates a patch or mammogram only with models that were not trained on its
    patient; "all" with every model, of detectors with the first.
    """
    tracking_uri: str | None = None
    """The MLflow server of models:/ URIs; None means the environment's. Where it is set, tables and
    figures are logged there too.
    """


class EvaluationConfig(Settings):
    """What the configs of all comparisons of models on patches share."""

    models: dict[Name, ModelURIs] = Field(min_length=1)
    """Name -> one model URI, or several: the folds of a cross-validation and, for segmentation,
    synthesis, defects and blending, runs of one fold that differ in their seed. A URI is the folder
    of a run (its last weights are taken), of an export or of a SavedModel, or models:/NAME@ALIAS.
    For segmentation masks:DIR is a folder of masks that another tool predicted, see `MaskFolder`. A
    checkpoint that was kept as the best was chosen on its held-out patients, so its numbers on them
    are too good. The other models are compared with the first one.
    """
    compare: Compare = "first"
    """"first" compares every model with the first one, "pairs" every model with every other."""

    def summarize(
        self, scores: Scores, patient_ids: NDArray[np.str_], measures: Mapping[str, Measure]
    ) -> list[Fact]:
        """Call `summarize` with the settings of the config."""
        return summarize(scores, patient_ids, measures, *self.draws, self.compare)

    def refuse_names(self, *taken: str) -> None:
        """Refuse models of a name that a row of the tables has."""
        for name in self.models:
            if name in taken:
                raise ConfigError(f"models: {name} is the name of a row of its own")


INPUTS: Mapping[str, Inputs] = {
    "image": lambda patches, card: patches.images,
    "mask": lambda patches, card: patches.masks.astype(np.float32),
}


@dataclass(frozen=True)
class Comparison:
    """The outputs of several models for the same patches.

    Attributes:
        protocol: "unseen", "all" or "paper".
        data: How the patches were made.
        patches: Those that all models are eligible for.
        runs: Model -> the outputs of each of its runs on the same patients, float32 [n, s, s, 1],
            or probabilities [n, classes].
        folds: Model -> intp [n], the fold whose networks made each output, from 0 on.
        networks: Model -> the network of each fold, of the first run.
        pool: Every patch that a model may have been trained on.
    """

    protocol: Protocol
    data: DataConfig
    patches: Patches
    runs: dict[str, list[NDArray[np.float32]]]
    folds: dict[str, NDArray[np.intp]]
    networks: Models
    pool: Patches

    @property
    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """Model -> the outputs of its first run."""
        return {name: runs[0] for name, runs in self.runs.items()}

    def find_training_patches(self, network: Predictor) -> NDArray[np.bool_]:
        """Mark the patches of the pool that a network was trained on, bool [m].

        By the leaky protocol these are all of them.
        """
        if self.protocol == "paper":
            return np.ones(len(self.pool), np.bool_)
        patients = export.find_patients(network.card, network.uri) or frozenset()
        return np.isin(self.pool.patient_ids, sorted(patients))

    @property
    def counts(self) -> dict[str, int]:
        """How many patients and images are behind its facts."""
        return count_sizes(self.patches.patient_ids)

    @property
    def subset(self) -> str:
        """The subset of its facts: "" for unseen patients."""
        return "" if self.protocol == "unseen" else f"protocol={self.protocol}"

    @property
    def ending(self) -> str:
        """The end of the names of its files."""
        return "-leaky.png" if self.protocol == "paper" else ".png"

    @property
    def title(self) -> str:
        """The heading of its tables."""
        count = "{}, {images} patches of {patients} patients".format(
            self.data.archive_name, **self.counts
        )
        return {
            "unseen": f"{count}, each scored by models that never saw its patient",
            "all": f"{count}, those that were trained on included",
            "paper": f"LEAKY, by the paper's protocol: {count}, turned copies of which were "
            "trained on",
        }[self.protocol]


def compare(
    config: EvaluationConfig,
    source: str | Mapping[str, Inputs],
    target: str,
    make: MakePatches = make_patches,
    shape: tuple[int, ...] | None = None,
    limit: int | None = None,
    allow_repeats: bool = False,
) -> list[Comparison]:
    """Run every model on every patch that it is eligible for.

    Args:
        config: Models and data.
        source: Name of the models' input: "image" or "mask". Where models differ in what they take:
            name -> how it is made. The first name that a model has is used.
        target: Name of the models' output: "mask", "image" or "shapes".
        make: See `datasets.load_all_patches`.
        shape: Shape of one output, as for `Network.run`.
        limit: Evaluate at most so many patches, drawn by config.seed.
        allow_repeats: Whether a model may be several runs on the same patients.

    Returns:
        The comparison by `config.patients`, if any model is not leaky, then the one of the leaky
        models, if any.
    """
    inputs = {source: INPUTS[source]} if isinstance(source, str) else source
    models = {
        name: [open_predictor(uri, inputs, target, config.tracking_uri) for uri in uris]
        for name, uris in config.models.items()
    }
    leaky = {name: group for name, group in models.items() if any(one.is_leaky for one in group)}
    fair = {name: group for name, group in models.items() if name not in leaky}

    def answer(network: Predictor, patches: Patches) -> NDArray[np.float32]:
        return network.answer(patches, inputs, target, shape or patches.images.shape[1:])

    comparisons = []
    if fair:
        check_crops((network for group in fair.values() for network in group), config.data)
        pool = datasets.load_all_patches(config.data, make)
        patches, assigned = _assign(fair, pool, config.patients, limit, config.seed, allow_repeats)
        comparisons.append(
            _run(config.patients, config.data, patches, fair, assigned, pool, answer, allow_repeats)
        )
    if leaky:
        data, copies, held_out = _remake_paper_split(leaky, config.data, make)
        patches, assigned = _assign(leaky, held_out, "paper", limit, config.seed, allow_repeats)
        comparisons.append(
            _run("paper", data, patches, leaky, assigned, copies, answer, allow_repeats)
        )
    return comparisons


def _run(
    protocol: Protocol,
    data: DataConfig,
    patches: Patches,
    models: Models,
    assigned: Assigned,
    pool: Patches,
    answer: Callable[[Predictor, Patches], NDArray[np.float32]],
    allow_repeats: bool,
) -> Comparison:
    """Let each network answer the patches that are assigned to it."""
    outputs: dict[str, NDArray[np.float32]] = {}
    first = {
        name: [numbers[0] for numbers in _group_runs(networks, allow_repeats)]
        for name, networks in models.items()
    }
    for name, networks in models.items():
        for number, network in enumerate(networks):
            runs, rows = np.nonzero(assigned[name] == number)
            if rows.size:
                answers = answer(network, patches.take(rows))
                shape = (*assigned[name].shape, *answers.shape[1:])
                outputs.setdefault(name, np.empty(shape, np.float32))[runs, rows] = answers
    return Comparison(
        protocol,
        data,
        patches,
        {name: list(runs) for name, runs in outputs.items()},
        {name: np.searchsorted(first[name], numbers[0]) for name, numbers in assigned.items()},
        {name: [networks[number] for number in first[name]] for name, networks in models.items()},
        pool,
    )


def _assign(
    models: Models,
    pool: Patches,
    protocol: Protocol,
    limit: int | None,
    seed: int,
    allow_repeats: bool,
) -> tuple[Patches, Assigned]:
    """Take the patches that all models are eligible for, and assign networks to each of them."""
    assigned = {
        name: _assign_networks(name, networks, pool, protocol, allow_repeats)
        for name, networks in models.items()
    }
    common = np.flatnonzero(np.all([numbers[0] >= 0 for numbers in assigned.values()], axis=0))
    for name, numbers in assigned.items():
        log.info(
            "%s: eligible for %d of %d patches, for %d of them with all models",
            name,
            np.sum(numbers[0] >= 0),
            len(pool),
            len(common),
        )
    if len(common) == 0:
        names = ", ".join(assigned)
        if any(isinstance(one, MaskFolder) for networks in models.values() for one in networks):
            raise DataError(f"no patch can be scored for all of {names}; masks are of one fold")
        raise DataError(
            f"no patch is of a patient that none of {names} was trained on; "
            "patients=all evaluates all patches anyway"
        )
    if limit is not None and limit < len(common):
        common = np.sort(np.random.default_rng(seed).permutation(common)[:limit])
    return pool.take(common), {name: numbers[:, common] for name, numbers in assigned.items()}


def _assign_networks(
    name: str,
    networks: Sequence[Predictor],
    patches: Patches,
    protocol: Protocol,
    allow_repeats: bool,
) -> NDArray[np.intp]:
    """Assign the eligible networks of a model to each patch: intp [runs, n], -1 where none is."""
    everyone = np.ones(len(patches), np.bool_)
    eligible = np.stack(
        [
            network.find_eligible(patches)
            if protocol == "unseen" or isinstance(network, MaskFolder)
            else everyone
            for network in networks
        ]
    )
    groups = _group_runs(networks, allow_repeats)
    ambiguous = int(np.sum(eligible[[numbers[0] for numbers in groups]].sum(axis=0) > 1))
    if ambiguous:
        raise DataError(
            f"models.{name}: several URIs are eligible for {ambiguous} patches; give the folds "
            "of one split, or one URI"
        )
    counts = [len(numbers) for numbers in groups]
    if len(set(counts)) > 1:
        raise DataError(
            f"models.{name}: its folds have different numbers of runs "
            f"({', '.join(map(str, counts))})"
        )
    assigned = np.full((counts[0], len(patches)), -1, np.intp)
    for numbers in groups:
        rows = eligible[numbers[0]]
        assigned[:, rows] = np.array(numbers)[:, None]
    return assigned


def _group_runs(networks: Sequence[Predictor], allow_repeats: bool) -> list[list[int]]:
    """Group the numbers of networks by their fold: runs of one fold have the same patients."""
    groups: dict[Any, list[int]] = {}
    for number, network in enumerate(networks):
        groups.setdefault(network.training if allow_repeats else number, []).append(number)
    return list(groups.values())


def _remake_paper_split(
    models: Models, data: DataConfig, make: MakePatches
) -> tuple[DataConfig, Patches, Patches]:
    """Make both subsets of the paper's split again, as the models' cards say."""
    first, *others = (network for group in models.values() for network in group)
    for network in others:
        if (
            not (network.is_leaky and first.is_leaky)
            or network.card["held_out_ids"] != first.card["held_out_ids"]
        ):
            raise DataError(
                f"{network.uri} and {first.uri} were not trained on one paper split; "
                "evaluate them separately"
            )
    trained_with = first.card["config"]["data"]
    paper_data = DataConfig.model_validate(trained_with | {"name": data.name, "root": data.root})
    copies, held_out = splits.split(datasets.load_all_patches(paper_data, make), paper_data)
    if held_out.ids.tolist() != first.card["held_out_ids"]:
        raise DataError(
            f"{first.uri}: its held-out copies can't be made again; data.name and data.root "
            "must be what it was trained on"
        )
    return paper_data, copies, held_out
