"""Several models judged on the same patches, of patients that none of them was trained on.

A model is a name and one or more handles: several handles are the folds of a cross-validation, and
each patch goes to the one fold that never saw its patient. All models are compared on the patches
that each of them can judge. Models trained by the paper's leaky protocol know every patient; they
are judged on their own held-out copies, in a comparison of their own.
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, StringConstraints

from tfmammo import datasets, export
from tfmammo.archives import archive_name
from tfmammo.config import DataConfig, Frozen
from tfmammo.data import splits
from tfmammo.data.patches import Make, Patches, make_patches
from tfmammo.errors import DataError, ExportError
from tfmammo.export import predict
from tfmammo.metrics.summary import (
    Compare,
    Measure,
    Printed,
    Row,
    Scores,
    Table,
    correct,
    in_units,
    summarize,
    tables,
    write_csv,
)
from tfmammo.tracking import runs
from tfmammo.tracking.models import resolve

log = logging.getLogger(__name__)

EXPERIMENT = "tfmammo-evaluation"  # the experiment in MLflow
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
# it becomes a part of file names
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w .+-]*$")]
# patches and a model's card -> what the model takes
Inputs = Callable[[Patches, Mapping[str, Any]], NDArray[np.float32]]
Handles = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]


class EvaluationConfig(Frozen):
    """What the evaluate scripts share."""

    data: DataConfig = DataConfig()
    """The patches; its split is not used."""
    models: dict[Name, Handles] = Field(min_length=1)
    """Name -> handle or handles, the folds of a cross-validation. A handle is the folder of a run
    (its last weights are taken), of an export or of a SavedModel, or models:/NAME@ALIAS. A
    checkpoint that was kept as the best was chosen on its held-out patients: on these its numbers
    are too good. The first model is the one that the others are compared with.
    """
    patients: Literal["unseen", "all"] = "unseen"
    """"unseen" judges a patch only by models that were not trained on its patient; "all" by every
    model.
    """
    compare: Compare = "first"
    """"first" compares every model with the first one, "pairs" each with each other."""
    tracking_uri: str | None = None
    """The MLflow server of models:/ handles; None means the environment's. Where it is set, tables
    and figures are logged there too.
    """
    samples: PositiveInt = 10_000
    """Draws of bootstrap and permutation test."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of intervals."""
    seed: NonNegativeInt = 0
    """Of all draws."""

    def summaries(self, scores: Scores, patient_ids: NDArray[np.str_]) -> list[Row]:
        """`summarize` with what the config says."""
        return summarize(scores, patient_ids, self.samples, self.seed, self.level, self.compare)


def _images(patches: Patches, card: Mapping[str, Any]) -> NDArray[np.float32]:
    return patches.images


def _masks(patches: Patches, card: Mapping[str, Any]) -> NDArray[np.float32]:
    return patches.masks.astype(np.float32)


INPUTS: Mapping[str, Inputs] = {"image": _images, "mask": _masks}


@dataclass(frozen=True)
class Network:
    """One function of one handle; its weights are read when it runs.

    Attributes:
        folder: Of the export, or of a SavedModel without a card.
        function: Its name; None for a SavedModel without a card.
        card: Of the export; empty where there is none.
        source: The name of its input.
    """

    handle: str
    folder: Path
    function: str | None
    card: dict[str, Any]
    source: str

    @property
    def leaky(self) -> bool:
        """Whether it was trained by the paper's protocol, with copies of one lesion on
        both sides.
        """
        return self.card.get("split") == "paper"

    def unseen(self, patient_ids: NDArray[np.str_]) -> NDArray[np.bool_]:
        """bool [n]: which patients it was not trained on.

        Raises:
            DataError: Its card doesn't name them.
            ExportError: It names them under another TFMAMMO_ID_KEY.
        """
        if "train_patients" not in self.card:
            raise DataError(
                f"{self.handle}: no card names the patients it was trained on; patients=all "
                "judges it all the same"
            )
        return ~np.isin(patient_ids, sorted(export.trained_on(self.card, self.handle)))

    def run(
        self,
        source: str,
        target: str,
        values: NDArray[np.float32],
        shape: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """What it makes of `values`, eight at a time.

        Args:
            source: Names of input and output.
            target: Names of input and output.
            values: float32 [n, s, s, 1] in [0, 1].
            shape: What is put out for each of them, (s, s, 1) if not said.

        Returns:
            float32 [n, *shape] in [0, 1].

        Raises:
            ExportError: It can't be read, or takes patches of another size.
            DataError: It puts out something else.
        """
        call: Callable[..., Any] = (
            export.load(self.folder, self.function) if self.function else _signature(self.folder)
        )
        outputs = predict(call, source, values)[target]
        wanted = values.shape[1:] if shape is None else shape
        if outputs.shape != (len(values), *wanted) or not np.all((outputs >= 0) & (outputs <= 1)):
            form = "[n, s, s, 1]" if shape is None else list(("n", *shape))
            raise DataError(
                f"{self.handle}: its {target} is no {form} in [0, 1] but {list(outputs.shape)}, "
                "or holds other values"
            )
        return outputs


@dataclass(frozen=True)
class Comparison:
    """The outputs of several models for the same patches.

    Attributes:
        protocol: "unseen", "all" or "paper".
        data: How the patches were made.
        outputs: Model -> float32 [n, s, s, 1], or probabilities [n, classes].
        folds: Model -> intp [n], which of its handles made each output.
        networks: Model -> its handles.
        pool: Every patch that a model may have been trained on; None: that is not known.
    """

    protocol: Protocol
    data: DataConfig
    patches: Patches
    outputs: dict[str, NDArray[np.float32]]
    folds: dict[str, NDArray[np.intp]]
    networks: Mapping[str, Sequence[Network]] = field(default_factory=dict)
    pool: Patches | None = None

    def trained_on(self, network: Network) -> NDArray[np.bool_]:
        """bool [m]: which patches of the pool a network was trained on, as its card says; all of
        them by the leaky protocol.
        """
        assert self.pool is not None
        if self.protocol == "paper":
            return np.ones(len(self.pool), np.bool_)
        known = (
            export.trained_on(network.card, network.handle)
            if "train_patients" in network.card
            else frozenset()
        )
        return np.isin(self.pool.patient_ids, sorted(known))

    @property
    def title(self) -> str:
        """What a table of it is headed with."""
        patients = len(set(self.patches.patient_ids))
        count = f"{archive_name(self.data)}, {len(self.patches)} patches of {patients} patients"
        return {
            "unseen": f"{count}, each judged by models that never saw its patient",
            "all": f"{count}, those of training included",
            "paper": f"LEAKY, by the paper's protocol: {count}, turned copies of which were "
            "trained on",
        }[self.protocol]


@dataclass(frozen=True)
class Published:
    """What a paper prints of a model, and of which patches.

    Attributes:
        values: Measure -> value.
        archive: Of tfmammo.archives.
        leaky: Whether copies of one lesion stood on both sides of its split; None: the paper does
            not say how it split.
        frame: Of its patches, without which its numbers are not shown; None: any.
    """

    values: Mapping[str, float]
    archive: str
    leaky: bool | None = None
    frame: str | None = None

    def beside(self, comparison: Comparison) -> Printed:
        """The values with what sets them apart from a comparison."""
        apart = [] if archive_name(comparison.data) == self.archive else [f"on {self.archive}"]
        if self.leaky is None:
            apart.append("a split of its own")
        elif self.leaky != (comparison.protocol == "paper"):
            apart.append("a split that leaks" if self.leaky else "unseen patients")
        return Printed(self.values, ", ".join(apart))


@dataclass
class Report:
    """All comparisons of one evaluation: tables to print, table.md, table.csv and per_image.csv.

    Attributes:
        measures: In the order of columns.
        published: Model -> what a paper prints of it, shown under the model's own.
        models_across: A column for each model and a line for each measure, instead of the reverse.
        note: Put behind every title.
    """

    config: EvaluationConfig
    measures: Mapping[str, Measure]
    published: Mapping[str, Published] = field(default_factory=dict)
    models_across: bool = False
    tables: list[Table] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def add(
        self,
        comparison: Comparison,
        scores: Scores,
        rows: Sequence[Row] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Take in a comparison. scores: model -> measure -> float64 [n]; it may hold models that
        have no handle.

        What is no key of `measures` stands in per_image.csv alone. rows: the tables' content; None:
        summaries of all scores. notes: sentences under the table of means, before its own.
        """
        config = self.config
        patches = comparison.patches
        if rows is None:
            shown = {
                model: {key: measured[key] for key in self.measures}
                for model, measured in scores.items()
            }
            rows = config.summaries(shown, patches.patient_ids)
        title = f"{comparison.title}; {self.note}" if self.note else comparison.title
        alike = {
            model: one
            for model, one in self.published.items()
            if one.frame in (None, comparison.data.frame)
        }
        printed = {model: one.beside(comparison) for model, one in alike.items()}
        means, *others = tables(
            rows, self.measures, title, printed, self.models_across, config.samples, config.level
        )
        self.tables += [replace(means, notes=notes + means.notes), *others]
        self.rows += [
            {"protocol": comparison.protocol, **in_units(row, self.measures[row.measure])}
            for row in correct(rows)
        ]
        for model, measured in scores.items():
            folds = comparison.folds.get(model)
            for i, (identifier, patient) in enumerate(
                zip(patches.ids.tolist(), patches.patient_ids.tolist(), strict=True)
            ):
                place = {
                    "protocol": comparison.protocol,
                    "model": model,
                    "fold": "" if folds is None else int(folds[i]),
                }
                values = {name: float(value[i]) for name, value in measured.items()}
                self.images.append({**place, "id": identifier, "patient": patient, **values})

    def write(self, output: Path) -> None:
        """Write table.md, table.csv (in the measures' units) and per_image.csv (as computed) into a
        folder, and log all that is in it.

        Raises:
            TrackingError: config.tracking_uri is set and can't be reached.
        """
        output.mkdir(parents=True, exist_ok=True)
        (output / "table.md").write_text(
            "\n".join(table.markdown() for table in self.tables), encoding="utf-8"
        )
        write_csv(output / "table.csv", self.rows)
        write_csv(output / "per_image.csv", self.images)
        if self.config.tracking_uri:
            means = {
                f"{row['protocol']}/{row['model']}/{row['measure']}": row["mean"]
                for row in self.rows
            }
            runs.log_folder(
                output,
                self.config.tracking_uri,
                EXPERIMENT,
                self.config.model_dump(mode="json"),
                means,
            )


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without a display."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=150)


def compare(
    config: EvaluationConfig,
    source: str | Mapping[str, Inputs],
    target: str,
    make: Make = make_patches,
    shape: tuple[int, ...] | None = None,
    limit: int | None = None,
) -> list[Comparison]:
    """Run every model on every patch that it may judge.

    Args:
        source: "image" and "mask" for segmentation, "mask" and "image" for synthesis, "mask" and
            "shapes" for shapes. Where models differ in what they take: name -> how it is made; the
            first that a model has is used.
        target: "image" and "mask" for segmentation, "mask" and "image" for synthesis, "mask" and
            "shapes" for shapes. Where models differ in what they take: name -> how it is made; the
            first that a model has is used.
        make: See `cli.all_patches`.
        shape: Of one output, as for `Network.run`.
        limit: Judge so many patches at most, drawn by config.seed.

    Returns:
        The comparison by `config.patients`, if any model is not leaky, then the one of leaky
        models, if any.

    Raises:
        ConfigError: A handle or the data can't be used as asked.
        ArchiveError: A handle or the data can't be used as asked.
        DataError: A handle or the data can't be used as asked.
        ExportError: A handle or the data can't be used as asked.
    """
    inputs = {source: INPUTS[source]} if isinstance(source, str) else source
    models = {
        name: [_open(handle, inputs, target, config.tracking_uri) for handle in config.models[name]]
        for name in config.models
    }
    leaky = {
        name: networks
        for name, networks in models.items()
        if any(network.leaky for network in networks)
    }
    fair = {name: networks for name, networks in models.items() if name not in leaky}
    judge = partial(
        _judge, inputs=inputs, target=target, shape=shape, limit=limit, seed=config.seed
    )
    found = []
    if fair:
        warn_of_other_crops((network for group in fair.values() for network in group), config.data)
        found.append(
            judge(config.patients, config.data, datasets.all_patches(config.data, make), fair)
        )
    if leaky:
        made, copies, held_out = _copies(leaky, config.data, make)
        found.append(replace(judge("paper", made, held_out, leaky), pool=copies))
    return found


def _open(handle: str, sources: Iterable[str], target: str, tracking_uri: str | None) -> Network:
    failures = []
    for source in sources:
        try:
            return open_network(handle, source, target, tracking_uri)
        except ExportError as error:
            failures.append(error)
    raise failures[0]


def open_network(handle: str, source: str, target: str, tracking_uri: str | None = None) -> Network:
    """Find the function of a handle that leads from source to target; see `EvaluationConfig` for
    handles.

    Raises:
        ExportError: There is none.
    """
    path = Path(handle)
    if not (path / "saved_model.pb").is_file():
        folder = resolve(handle, tracking_uri)
        function = None
    elif (path.parent / export.CARD).is_file():
        folder = path.parent
        function = path.name
    else:
        _signature(path, source, target)
        return Network(handle, path, None, {}, source)
    card = export.read_card(folder)
    function = function or export.find(folder, {source}, {target})
    described = card["functions"].get(function, {"inputs": (), "outputs": ()})
    if set(described["inputs"]) != {source} or target not in described["outputs"]:
        raise ExportError(f"{handle}: does not lead from {source} to {target}")
    return Network(handle, folder, function, card, source)


def _judge(
    protocol: Protocol,
    data: DataConfig,
    patches: Patches,
    models: Mapping[str, Sequence[Network]],
    inputs: Mapping[str, Inputs],
    target: str,
    shape: tuple[int, ...] | None,
    limit: int | None,
    seed: int,
) -> Comparison:
    folds = {
        name: _folds(name, networks, patches.patient_ids, protocol)
        for name, networks in models.items()
    }
    common = np.flatnonzero(np.all([fold >= 0 for fold in folds.values()], axis=0))
    for name, fold in folds.items():
        log.info(
            "%s can judge %d of %d patches, %d of them with all models",
            name,
            np.sum(fold >= 0),
            len(patches),
            len(common),
        )
    if len(common) == 0:
        raise DataError(
            f"no patch is of a patient that none of {', '.join(models)} was trained on; "
            "patients=all judges all the same"
        )
    if limit is not None and limit < len(common):
        common = np.sort(np.random.default_rng(seed).permutation(common)[:limit])
    pool = patches
    patches = patches.take(common)
    folds = {name: fold[common] for name, fold in folds.items()}
    form = patches.images.shape[1:] if shape is None else shape
    outputs = {name: np.empty((len(patches), *form), np.float32) for name in models}
    for name, networks in models.items():
        for number, network in enumerate(networks):
            mine = np.flatnonzero(folds[name] == number)
            if mine.size:
                values = inputs[network.source](patches.take(mine), network.card)
                outputs[name][mine] = network.run(network.source, target, values, form)
    return Comparison(protocol, data, patches, outputs, folds, models, pool)


def _folds(
    name: str, networks: Sequence[Network], patient_ids: NDArray[np.str_], protocol: Protocol
) -> NDArray[np.intp]:
    """intp [n]: which network of a model judges each patch, -1 where none may."""
    may = np.stack(
        [
            n.unseen(patient_ids) if protocol == "unseen" else np.ones(len(patient_ids), np.bool_)
            for n in networks
        ]
    )
    twice = int(np.sum(may.sum(axis=0) > 1))
    if twice:
        raise DataError(
            f"models.{name}: {twice} patches would be judged by several handles; give the folds "
            "of one split, or one handle"
        )
    return np.where(may.any(axis=0), may.argmax(axis=0), -1)


def _copies(
    models: Mapping[str, Sequence[Network]], data: DataConfig, make: Make
) -> tuple[DataConfig, Patches, Patches]:
    """Both sides of the paper's split, made again as the models' cards say: how they are made,
    training, held-out.
    """
    networks = [network for group in models.values() for network in group]
    first = networks[0]
    for network in networks[1:]:
        if (
            not (network.leaky and first.leaky)
            or network.card["held_out_ids"] != first.card["held_out_ids"]
        ):
            raise DataError(
                f"{network.handle} and {first.handle} were not trained on one paper split; "
                "evaluate them separately"
            )
    known = first.card["config"]["data"]
    made = DataConfig.model_validate(known | {"name": data.name, "root": data.root})
    copies, held_out = splits.split(datasets.all_patches(made, make), made)
    if held_out.ids.tolist() != first.card["held_out_ids"]:
        raise DataError(
            f"{first.handle}: its held-out copies can't be made again; data.name and data.root "
            "must be what it was trained on"
        )
    return made, copies, held_out


def warn_of_other_crops(networks: Iterable[Network], data: DataConfig) -> None:
    """Log what patches of networks' trainings were cut by and these are not."""
    for network in networks:
        trained = network.card.get("config", {}).get("data", {})
        for key, here in data.model_dump(mode="json", include=DECISIVE).items():
            if trained.get(key, here) != here:
                log.warning(
                    "%s was trained with data.%s %s and is judged with %s",
                    network.handle,
                    key,
                    trained[key],
                    here,
                )


def _signature(
    folder: Path, source: str | None = None, target: str | None = None
) -> Callable[..., Mapping[str, tf.Tensor]]:
    """The serving signature of a SavedModel that has no card, checked if names are given."""
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
            # keeps `loaded`, which owns the weights
            return loaded.signatures[export.SIGNATURE](**values)
        except (tf.errors.OpError, TypeError, ValueError):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ExportError(f"{folder}: does not take {shapes}") from None

    return call
