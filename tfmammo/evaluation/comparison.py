"""Evaluate several models on the same patches, of patients that none of them was trained on.

A model is a name and one or more URIs. Several URIs are the folds of a cross-validation: each patch
goes to the one fold that never saw its patient. URIs that were trained on the same patients are
trainings of one fold, which differ by their seed. All models are compared on the patches that each
of them is eligible for.

Models trained by the paper's leaky protocol know every patient. They are evaluated on their own
held-out copies, in a comparison of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from tfmammo import config as configuration
from tfmammo.config import DataConfig, Frozen
from tfmammo.data import datasets, splits
from tfmammo.data.extraction import MakePatches, make_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.evaluation import mask_folder
from tfmammo.evaluation.mask_folder import MaskFolder
from tfmammo.metrics.summary import Compare, Row, Scores, summarize
from tfmammo.tracking import export
from tfmammo.tracking.export import predict
from tfmammo.tracking.models import resolve

log = logging.getLogger(__name__)

# Keys of data that decide what a patch shows.
DECISIVE = {
    "patches",
    "kinds",
    "frame",
    "context",
    "padding",
    "preprocess",
    "percentiles",
    "window",
}

Protocol = Literal["unseen", "all", "paper"]
# It becomes a part of file names.
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w .+-]*$")]
# (patches, card of the model) -> what the model takes
Inputs = Callable[[Patches, Mapping[str, Any]], NDArray[np.float32]]
ModelURIs = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]


class EvaluationConfig(Frozen):
    """What the configs of the evaluate scripts share."""

    data: DataConfig = DataConfig()
    """The patches. Their split is not used."""
    models: dict[Name, ModelURIs] = Field(min_length=1)
    """Name -> one model URI, or several: the folds of a cross-validation and, for segmentation,
    synthesis and defects, trainings of one fold that differ by their seed. A URI is the folder of
    a run (its last weights are taken), of an export or of a SavedModel, or models:/NAME@ALIAS. For
    segmentation masks:DIR is a folder of masks that another tool predicted, see `mask_folder`. A
    checkpoint that was kept as the best was chosen on its held-out patients, so its numbers on them
    are too good. The other models are compared with the first one.
    """
    patients: Literal["unseen", "all"] = "unseen"
    """"unseen" evaluates a patch only with models that were not trained on its patient; "all" with
    every model.
    """
    compare: Compare = "first"
    """"first" compares every model with the first one, "pairs" every model with every other."""
    tracking_uri: str | None = None
    """The MLflow server of models:/ URIs; None means the environment's. Where it is set, tables and
    figures are logged there too.
    """
    samples: PositiveInt = 10_000
    """Draws of the bootstrap and of the permutation test."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of intervals."""
    seed: NonNegativeInt = 0
    """Seed of all draws."""

    def summarize(self, scores: Scores, patient_ids: NDArray[np.str_]) -> list[Row]:
        """Call `summarize` with the settings of the config."""
        return summarize(scores, patient_ids, self.samples, self.seed, self.level, self.compare)


def _get_images(patches: Patches, card: Mapping[str, Any]) -> NDArray[np.float32]:
    return patches.images


def _get_masks(patches: Patches, card: Mapping[str, Any]) -> NDArray[np.float32]:
    return patches.masks.astype(np.float32)


INPUTS: Mapping[str, Inputs] = {"image": _get_images, "mask": _get_masks}


@dataclass(frozen=True)
class Network:
    """One function of one model URI; its weights are read when it runs.

    Attributes:
        uri: The URI as the config names it.
        folder: The folder of the export, or of a SavedModel without a card.
        function: The name of the function; None for a SavedModel without a card.
        card: The card of the export; empty where there is none.
        source: The name of the function's input.
    """

    uri: str
    folder: Path
    function: str | None
    card: dict[str, Any]
    source: str

    @property
    def is_leaky(self) -> bool:
        """Whether the paper's protocol trained it, with copies of one lesion on both sides."""
        return self.card.get("split") == "paper"

    @property
    def training(self) -> tuple[str, ...]:
        """What tells one fold from another: the patients that it was trained on."""
        return tuple(self.card.get("train_patients", ()))

    def find_eligible(self, patches: Patches) -> NDArray[np.bool_]:
        """Mark the patches of patients that the network was not trained on; see `find_unseen`."""
        return self.find_unseen(patches.patient_ids)

    def find_unseen(self, patient_ids: NDArray[np.str_]) -> NDArray[np.bool_]:
        """Mark the patients that the network was not trained on.

        Returns:
            bool [n].

        Raises:
            DataError: The card doesn't name the patients of the training.
            ExportError: The card names them under another TFMAMMO_ID_KEY.
        """
        if "train_patients" not in self.card:
            raise DataError(
                f"{self.uri}: no card names the patients it was trained on; patients=all "
                "evaluates it anyway"
            )
        return ~np.isin(patient_ids, sorted(export.get_training_patients(self.card, self.uri)))

    def merge_data(self, data: Mapping[str, Any]) -> DataConfig:
        """Merge data settings over those of the card.

        Of the card's, those that only a training uses are dropped.

        Args:
            data: Keys of DataConfig, nested as there.

        Raises:
            ConfigError: They don't fit.
        """
        of_card = self.card.get("config", {}).get("data", {}) | {"added": {}, "split_file": None}
        if data.keys() & {"name", "root"}:
            of_card["records"] = None  # otherwise they would be read instead of the named archive
        try:
            return DataConfig.model_validate(_merge(of_card, data))
        except ValidationError as error:
            raise ConfigError(
                f"data, with what the card of {self.uri} says: {configuration.describe(error)}"
            ) from None

    def answer(
        self,
        patches: Patches,
        inputs: Mapping[str, Inputs],
        target: str,
        shape: tuple[int, ...],
    ) -> NDArray[np.float32]:
        """Run the network on what it takes of patches; see `run`.

        Args:
            patches: The patches.
            inputs: Name of an input -> how it is made.
            target: Name of the output.
            shape: Shape of one output.
        """
        return self.run(self.source, target, inputs[self.source](patches, self.card), shape)

    def run(
        self,
        source: str,
        target: str,
        values: NDArray[np.float32],
        shape: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """Run the network on `values`, eight at a time.

        Args:
            source: Name of the input.
            target: Name of the output.
            values: float32 [n, s, s, 1] in [0, 1], or noise [n, z].
            shape: Shape of one output; None: (s, s, 1).

        Returns:
            float32 [n, *shape] in [0, 1].

        Raises:
            ExportError: The network can't be read, or takes patches of another size.
            DataError: The output has another shape or other values.
        """
        size = self.card.get("config", {}).get("data", {}).get("size", values.shape[1])
        if values.ndim == 4 and size != values.shape[1]:  # noise has no size
            raise ExportError(
                f"data.size: {self.uri} takes patches of {size} px, these have {values.shape[1]}"
            )
        call: Callable[..., Any] = (
            export.load(self.folder, self.function) if self.function else _load(self.folder)
        )
        outputs = predict(call, {source: values})[target]
        expected = values.shape[1:] if shape is None else shape
        if outputs.shape != (len(values), *expected) or not np.all((outputs >= 0) & (outputs <= 1)):
            form = "[n, s, s, 1]" if shape is None else list(("n", *shape))
            raise DataError(
                f"{self.uri}: its {target} is no {form} in [0, 1] but {list(outputs.shape)}, "
                "or holds other values"
            )
        return outputs


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested dicts; where both have a value, that of `above` stays."""
    sections = {
        key: _merge(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **sections}


Judged = Network | MaskFolder


@dataclass(frozen=True)
class Comparison:
    """The outputs of several models for the same patches.

    Attributes:
        protocol: "unseen", "all" or "paper".
        data: How the patches were made.
        patches: The patches.
        outputs: Model -> float32 [n, s, s, 1], or probabilities [n, classes].
        folds: Model -> intp [n], which of its networks made each output.
        repeats: Model -> the outputs of its further trainings on the same patients.
        networks: Model -> its networks.
        pool: Every patch that a model may have been trained on; None where that is not known.
    """

    protocol: Protocol
    data: DataConfig
    patches: Patches
    outputs: dict[str, NDArray[np.float32]]
    folds: dict[str, NDArray[np.intp]]
    networks: Mapping[str, Sequence[Judged]] = field(default_factory=dict)
    pool: Patches | None = None
    repeats: Mapping[str, Sequence[NDArray[np.float32]]] = field(default_factory=dict)

    def list_trainings(self, name: str) -> list[NDArray[np.float32]]:
        """List the outputs of every training of a model."""
        return [self.outputs[name], *self.repeats.get(name, ())]

    def find_training_patches(self, network: Judged) -> NDArray[np.bool_]:
        """Mark the patches of the pool that a network was trained on, as its card says.

        Returns:
            bool [m]. By the leaky protocol a network was trained on all of them.
        """
        assert self.pool is not None
        if self.protocol == "paper":
            return np.ones(len(self.pool), np.bool_)
        patients: frozenset[str] = frozenset()
        if "train_patients" in network.card:
            patients = export.get_training_patients(network.card, network.uri)
        return np.isin(self.pool.patient_ids, sorted(patients))

    @property
    def title(self) -> str:
        """The heading of its tables."""
        patients = len(set(self.patches.patient_ids))
        count = f"{self.data.archive_name}, {len(self.patches)} patches of {patients} patients"
        return {
            "unseen": f"{count}, each judged by models that never saw its patient",
            "all": f"{count}, those of training included",
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
        source: Name of the models' input: "image" for segmentation, "mask" for synthesis and for
            shapes. Where models differ in what they take: name -> how it is made. The first name
            that a model has is used.
        target: Name of the models' output: "mask", "image" or "shapes".
        make: See `datasets.load_all_patches`.
        shape: Shape of one output, as for `Network.run`.
        limit: Evaluate at most so many patches, drawn by config.seed.
        allow_repeats: Whether a model may be several trainings on the same patients.

    Returns:
        The comparison by `config.patients`, if any model is not leaky, then the one of the leaky
        models, if any.

    Raises:
        ConfigError: A model or the data can't be used as the config asks.
        ArchiveError: The archive can't be read.
        DataError: No patch is left, or a patch has several eligible folds.
        ExportError: A model can't be read, or does not lead from source to target.
    """
    inputs = {source: INPUTS[source]} if isinstance(source, str) else source
    models = {
        name: [_open(uri, inputs, target, config.tracking_uri) for uri in uris]
        for name, uris in config.models.items()
    }
    leaky = {
        name: networks
        for name, networks in models.items()
        if any(network.is_leaky for network in networks)
    }
    fair = {name: networks for name, networks in models.items() if name not in leaky}
    evaluate = partial(
        _evaluate,
        inputs=inputs,
        target=target,
        shape=shape,
        limit=limit,
        seed=config.seed,
        allow_repeats=allow_repeats,
    )
    comparisons = []
    if fair:
        warn_of_other_crops((network for group in fair.values() for network in group), config.data)
        patches = datasets.load_all_patches(config.data, make)
        comparisons.append(evaluate(config.patients, config.data, patches, fair))
    if leaky:
        data, copies, held_out = _remake_paper_split(leaky, config.data, make)
        comparisons.append(replace(evaluate("paper", data, held_out, leaky), pool=copies))
    return comparisons


def _open(uri: str, sources: Iterable[str], target: str, tracking_uri: str | None) -> Judged:
    if uri.startswith(mask_folder.PREFIX):
        return mask_folder.open_mask_folder(uri, target)
    return open_first(uri, sources, target, tracking_uri)


def open_first(
    uri: str, sources: Iterable[str], target: str, tracking_uri: str | None = None
) -> Network:
    """Find the function of a model that leads to target from the first source that it has.

    Args:
        uri: See `EvaluationConfig.models`.
        sources: Names of inputs; the first is preferred.
        target: Name of the output.
        tracking_uri: See `open_network`.

    Raises:
        ExportError: There is no such function; the message is of the first source.
    """
    failures = []
    for source in sources:
        try:
            return open_network(uri, source, target, tracking_uri)
        except ExportError as error:
            failures.append(error)
    raise failures[0]


def open_network(uri: str, source: str, target: str, tracking_uri: str | None = None) -> Network:
    """Find the function of a model that leads from source to target.

    Args:
        uri: See `EvaluationConfig.models`.
        source: Name of the input.
        target: Name of the output.
        tracking_uri: The MLflow server of models:/ URIs; None means the environment's.

    Raises:
        ExportError: There is no such function.
    """
    path = Path(uri)
    if not (path / "saved_model.pb").is_file():
        folder = resolve(uri, tracking_uri)
        function = None
    elif (path.parent / export.CARD).is_file():
        folder = path.parent
        function = path.name
    else:
        _load(path, source, target)
        return Network(uri, path, None, {}, source)
    card = export.read_card(folder)
    function = function or export.find_function(folder, {source}, {target})
    signature = card["functions"].get(function, {"inputs": (), "outputs": ()})
    if set(signature["inputs"]) != {source} or target not in signature["outputs"]:
        raise ExportError(f"{uri}: does not lead from {source} to {target}")
    return Network(uri, folder, function, card, source)


def _evaluate(
    protocol: Protocol,
    data: DataConfig,
    patches: Patches,
    models: Mapping[str, Sequence[Judged]],
    inputs: Mapping[str, Inputs],
    target: str,
    shape: tuple[int, ...] | None,
    limit: int | None,
    seed: int,
    allow_repeats: bool,
) -> Comparison:
    """Run models on the patches that all of them are eligible for."""
    assigned = {
        name: _assign_networks(name, networks, patches, protocol, allow_repeats)
        for name, networks in models.items()
    }
    common = np.flatnonzero(np.all([numbers[0] >= 0 for numbers in assigned.values()], axis=0))
    for name, numbers in assigned.items():
        log.info(
            "%s: eligible for %d of %d patches, for %d of them with all models",
            name,
            np.sum(numbers[0] >= 0),
            len(patches),
            len(common),
        )
    if len(common) == 0:
        raise DataError(
            f"no patch is of a patient that none of {', '.join(models)} was trained on; "
            "patients=all evaluates all patches anyway"
        )
    if limit is not None and limit < len(common):
        common = np.sort(np.random.default_rng(seed).permutation(common)[:limit])
    pool = patches
    patches = pool.take(common)
    form = patches.images.shape[1:] if shape is None else shape
    outputs = {
        name: np.empty((len(numbers), len(patches), *form), np.float32)
        for name, numbers in assigned.items()
    }
    for name, networks in models.items():
        for number, network in enumerate(networks):
            training, rows = np.nonzero(assigned[name][:, common] == number)
            if rows.size:
                answers = network.answer(patches.take(rows), inputs, target, form)
                outputs[name][training, rows] = answers
    return Comparison(
        protocol,
        data,
        patches,
        {name: trainings[0] for name, trainings in outputs.items()},
        {name: numbers[0, common] for name, numbers in assigned.items()},
        models,
        pool,
        {name: tuple(trainings[1:]) for name, trainings in outputs.items()},
    )


def _assign_networks(
    name: str,
    networks: Sequence[Judged],
    patches: Patches,
    protocol: Protocol,
    allow_repeats: bool,
) -> NDArray[np.intp]:
    """Assign to each patch the networks of a model that are eligible for it, one a training.

    Returns:
        intp [trainings, n]; -1 where no network is eligible.

    Raises:
        DataError: Networks that are eligible for one patch were trained on different patients, or
            the folds have different numbers of trainings.
    """
    everyone = np.ones(len(patches), np.bool_)
    eligible = np.stack(
        [
            network.find_eligible(patches) if protocol == "unseen" else everyone
            for network in networks
        ]
    )
    groups: dict[Any, list[int]] = {}
    for number, network in enumerate(networks):
        key = network.training if allow_repeats else number
        groups.setdefault(key, []).append(number)
    ambiguous = int(np.sum(eligible[[numbers[0] for numbers in groups.values()]].sum(axis=0) > 1))
    if ambiguous:
        raise DataError(
            f"models.{name}: several URIs are eligible for {ambiguous} patches; give the folds "
            "of one split, or one URI"
        )
    counts = {len(numbers) for numbers in groups.values()}
    if len(counts) > 1:
        raise DataError(
            f"models.{name}: its folds have different numbers of trainings "
            f"({', '.join(str(len(numbers)) for numbers in groups.values())})"
        )
    assigned = np.full((counts.pop(), len(patches)), -1, np.intp)
    for numbers in groups.values():
        rows = eligible[numbers[0]]
        assigned[:, rows] = np.array(numbers)[:, None]
    return assigned


def _remake_paper_split(
    models: Mapping[str, Sequence[Judged]], data: DataConfig, make: MakePatches
) -> tuple[DataConfig, Patches, Patches]:
    """Make both subsets of the paper's split again, as the models' cards say.

    Returns:
        How the patches are made, the training patches, the held-out patches.
    """
    networks = [network for group in models.values() for network in group]
    first = networks[0]
    for network in networks[1:]:
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


def warn_of_other_crops(networks: Iterable[Judged], data: DataConfig) -> None:
    """Log where networks were trained on patches that were cut in another way."""
    for network in networks:
        trained_with = network.card.get("config", {}).get("data", {})
        for key, value in data.model_dump(mode="json", include=DECISIVE).items():
            if trained_with.get(key, value) != value:
                log.warning(
                    "%s was trained with data.%s %s and is evaluated with %s",
                    network.uri,
                    key,
                    trained_with[key],
                    value,
                )


def _load(
    folder: Path, source: str | None = None, target: str | None = None
) -> Callable[..., Mapping[str, tf.Tensor]]:
    """Load the signature of a SavedModel without a card, and check it if names are given."""
    try:
        loaded = tf.saved_model.load(str(folder))
        signature = loaded.signatures[export.SIGNATURE]
    except (OSError, tf.errors.OpError, ValueError, KeyError) as error:
        raise ExportError(
            f"{folder}: can't be read as a SavedModel with a serving signature "
            f"({' '.join(str(error).split())})"
        ) from None
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    if source and (set(inputs) != {source} or target not in outputs):
        raise ExportError(
            f"{folder}: leads from {', '.join(inputs)} to {', '.join(outputs)}, not from {source} "
            f"to {target}"
        )

    def call(**values: tf.Tensor) -> Mapping[str, tf.Tensor]:
        try:
            # `loaded` owns the weights: the closure keeps it.
            return loaded.signatures[export.SIGNATURE](**values)
        except (tf.errors.OpError, TypeError, ValueError):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ExportError(f"{folder}: does not take {shapes}") from None

    return call
