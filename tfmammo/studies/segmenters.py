"""A paper's comparison of segmentation models: train, score unseen patients, test, write up.

Every model is trained once per fold and seed, each run a command of its own (workflow), so that a
stopped comparison continues where it was. The last weights are scored on the patients of the fold
that was held out; nothing is chosen on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pydantic import Field, PositiveInt, model_validator

from tfmammo import __version__, filesystem
from tfmammo.config import DataConfig, Statistics, TrackingConfig, TrainingConfig
from tfmammo.data.splits import check_folds
from tfmammo.errors import ConfigError
from tfmammo.evaluation import segmentation
from tfmammo.evaluation.comparison import Name
from tfmammo.evaluation.report import ComparisonReport, save_figure
from tfmammo.evaluation.segmentation import SegmentationConfig
from tfmammo.metrics.case_scores import BASELINES, MEASURES
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Table
from tfmammo.studies import workflow
from tfmammo.studies.systems import check_steps
from tfmammo.studies.training import TrainedConfig, plan_training
from tfmammo.studies.workflow import Step
from tfmammo.tracking import export, runs

SCORES = "scores"  # the folder of what `segmentation.evaluate` writes
DRAWN = ("dice", "jaccard")


class SegmenterConfig(TrainedConfig):
    """One of the compared models."""

    title: Name
    """Its name in tables and figures."""


class ComparisonConfig(Statistics):
    """A config file of a comparison."""

    data: DataConfig = DataConfig()
    """The patches of all models. Fold, split and seed of the runs follow from the keys below."""
    models: dict[str, SegmenterConfig] = Field(min_length=2)
    """The train script of each model ("can") and what is trained with it."""
    folds: int = Field(default=3, ge=2)
    """Folds of the cross-validation, by patient; each is held out once."""
    seeds: PositiveInt = 3
    """Runs of each model and fold, which differ in their seed: 0, 1, 2, ..."""
    training: dict[str, Any] = {}
    """Keys of the training section that all models share: {steps: 20000}."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """The probability from which on a pixel is mass."""
    tracking: TrackingConfig = TrackingConfig(experiment="tfmammo-comparison")
    """Where the runs are logged, below one run of the comparison."""

    @model_validator(mode="after")
    def _check(self) -> ComparisonConfig:
        titles = [model.title for model in self.models.values()]
        if len(set(titles)) < len(titles):
            raise ValueError(f"models: two have the same title ({', '.join(titles)})")
        if self.data.split != "patient":
            raise ValueError("data.split must be patient, because folds hold out patients")
        return self

    def select(self, names: Sequence[str]) -> ComparisonConfig:
        """Return the comparison of some of the models, two or more, in the given order."""
        for name in names:
            if name not in self.models:
                raise ConfigError(f"--models: {name} is none of {', '.join(self.models)}")
        if len(set(names)) < 2:
            raise ConfigError("--models: name two models or more, as in can,unet,segnet")
        return self.model_copy(update={"models": {name: self.models[name] for name in names}})


def plan_steps(config: ComparisonConfig, output: Path, root: Path, parent: str = "") -> list[Step]:
    """Plan the runs, shown under one run of MLflow: fold, then seed, then model after model."""
    check_folds(config.data, config.folds)
    data = config.data.model_dump(mode="json", exclude_unset=True, exclude={"fold", "folds"})
    tracking = config.tracking.model_dump(mode="json", exclude_unset=True)
    tracking |= {"experiment": config.tracking.experiment, "parent": parent or None}
    return [
        plan_training(
            f"{script}/fold{fold}/seed{seed}",
            script,
            model.config,
            [
                model.set,
                {"data": {**data, "folds": config.folds, "fold": fold}},
                {"training": {**config.training, "seed": seed}},
            ],
            tracking,
            output,
            root,
        )
        for fold in range(config.folds)
        for seed in range(config.seeds)
        for script, model in config.models.items()
    ]


def run_comparison(
    config: ComparisonConfig,
    output: Path,
    root: Path,
    jobs: int = 1,
    any_version: bool = False,
) -> ComparisonReport:
    """Make the runs that are not finished, then score, test and write.

    Args:
        config: The comparison.
        output: Its folder.
        root: The folder of configs and train.
        jobs: Runs at once.
        any_version: Continue with what another version of the package made.
    """
    check_steps(plan_steps(config, output, root))
    parent = runs.open_parent_run(output, config.tracking)
    workflow.run_steps(plan_steps(config, output, root, parent), output, "", any_version, jobs)
    return write_comparison(config, output)


def write_comparison(config: ComparisonConfig, output: Path) -> ComparisonReport:
    """Score the finished runs, and write tables, figure and methods.

    It writes table.md, table.tex, rows.csv, figure.png, figure.pdf and methods.md; the folder
    `scores` has every patch, ROC curves, box plots and overlays.
    """
    exports = {
        model.title: [
            output / f"{script}/fold{fold}/seed{seed}"
            for fold in range(config.folds)
            for seed in range(config.seeds)
        ]
        for script, model in config.models.items()
    }
    scoring = SegmentationConfig(
        data=config.data,
        models={title: tuple(map(str, folders)) for title, folders in exports.items()},
        compare="pairs",
        **{key: getattr(config, key) for key in ("threshold", "samples", "level", "seed")},
    )
    report = segmentation.evaluate(scoring, output / SCORES)
    for name in ("table.md", "rows.csv"):
        filesystem.write_atomically(output / name, (output / SCORES / name).read_bytes())
    text = "\n".join(table.latex() for table in report.tables)
    filesystem.write_atomically(output / "table.tex", text)
    means = [fact for fact in report.facts if fact.table == "means"]
    figure = draw_means(means, config.level)
    save_figure(figure, output / "figure.png")
    figure.savefig(output / "figure.pdf", metadata={"CreationDate": None})
    cards = {
        title: [export.read_card(folder / "export") for folder in folders]
        for title, folders in exports.items()
    }
    methods = describe_methods(config, cards, means[0], report.tables)
    filesystem.write_atomically(output / "methods.md", methods)
    return report


@plot_style
def draw_means(means: Sequence[Fact], level: float) -> Figure:
    """Draw each model's mean Dice and Jaccard with its interval, the trivial baselines in grey."""
    names = list(dict.fromkeys(fact.model for fact in means))
    figure = Figure(figsize=(6.4, 0.9 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(DRAWN), sharey=True)
    for axis, measure in zip(axes, DRAWN, strict=True):
        for fact in means:
            if fact.measure == measure:
                place = names.index(fact.model)
                colour = "#999999" if fact.model in BASELINES else "#000000"
                axis.plot([fact.value], [place], "o", color=colour)
                axis.plot([fact.low, fact.high], [place, place], color=colour)  # NaN: no line
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(f"{MEASURES[measure].heading}, %")
    axes[0].invert_yaxis()
    if any(fact.low == fact.low for fact in means):
        figure.suptitle(f"Means with {100 * level:g} % intervals over patients")
    return figure


def describe_methods(
    config: ComparisonConfig,
    cards: Mapping[str, Sequence[Mapping[str, Any]]],
    mean: Fact,
    tables: Sequence[Table],
) -> str:
    """Write the methods paragraphs of a paper in Markdown, each number from a card or a fact."""
    data = config.data
    first = next(iter(cards.values()))
    train = sorted(len(card["train_patients"]) for card in first)
    seeds = ", ".join(str(seed) for seed in range(config.seeds))
    window = (
        f"intensities {data.window[0]:g} to {data.window[1]:g}"
        if data.window
        else (
            f"the {data.percentiles[0]:g}th to {data.percentiles[1]:g}th percentile of each patch"
        )
    )
    fingerprints = ", ".join(dict.fromkeys(str(card["data_fingerprint"]) for card in first))
    *others, last = (measure.heading for measure in MEASURES.values())
    notes = dict.fromkeys(note for table in tables[:2] for note in table.notes)
    strata = "" if data.stratify == "none" else f", stratified by {data.stratify}"
    how = "of an earlier run" if data.split_file else f"seed {data.seed}{strata}"
    lines = [
        "# Methods",
        "",
        f"**Data.** {mean.images:,} patches of {mean.patients:,} patients of "
        f"{data.archive_name}, {data.size} x {data.size} px, crop mode {data.frame}"
        f"{f', context {data.context:g}' if data.frame == 'square' else ''}; lesions: "
        f"{', '.join(data.kinds)}; {window} became 0 to 1. Data fingerprints of the runs: "
        f"{fingerprints}.",
        "",
        f"**Split.** Patients were dealt into {config.folds} folds ({how}). Each fold was "
        f"held out once; {train[0]} to {train[-1]} patients were trained on. Every patch was "
        "scored by networks that had not seen its patient. The last weights were scored, not "
        "those that were best on held-out patients.",
        "",
        f"**Training.** Each model was trained {config.seeds} times per fold (seeds {seeds}), "
        f"{config.folds * config.seeds} times in all.",
        "",
        *(f"- {title}: {_describe_training(group)}" for title, group in cards.items()),
        "",
        f"**Scores.** A pixel was mass from a probability of {config.threshold:g} on, without "
        f"post-processing. {', '.join(others)} and {last} were computed "
        "for each patch, averaged over the seeds, then over the patches.",
        "",
        f"**Statistics.** {' '.join([*notes, f'Draws: {config.samples:,}, seed {config.seed}.'])}",
        "",
        f"**Software.** {_describe_software(first[0])}",
        "",
    ]
    return "\n".join(lines)


def _describe_training(cards: Sequence[Mapping[str, Any]]) -> str:
    """Describe a model's runs: steps, batch, optimizer, precision, weights."""
    card = cards[0]
    training = TrainingConfig.model_validate(card["config"]["training"])
    model = card["config"]["model"]
    steps = sorted({int(each["step"]) for each in cards})
    length = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    rates = {key: value for key, value in model.items() if "learning_rate" in key}
    rates |= {key: model[key] for key in ("beta_1", "beta_2", "decay") if key in model}
    optimizer = ", ".join(f"{key} {value:g}" for key, value in rates.items() if value is not None)
    precision = card["precision"]
    networks = ", ".join(f"{name} {count:,}" for name, count in card["networks"].items())
    augment = DataConfig.model_validate(card["config"]["data"]).turn_draws
    return (
        f"{length} step{'' if steps == [1] else 's'} of {training.batch_size} "
        f"patch{'' if training.batch_size == 1 else 'es'}, "
        f"{'rotated and flipped at random' if augment else 'not augmented'}; "
        f"Adam ({optimizer}); {precision}; weights: {networks}."
    )


def _describe_software(card: Mapping[str, Any]) -> str:
    commit = card.get("git_commit")
    dirty = " and changes" if str(card.get("git_dirty")) == "true" else ""
    libraries = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    source = f" (commit {commit}{dirty})" if commit else ""
    hardware = f", on {card['hardware']}" if "hardware" in card else ""
    return f"tfmammo {__version__}{source}, {libraries}{hardware}."
