"""What synthetic patches are worth to a classifier of real ones: train every share with
every seed, test, compare, draw.

python evaluate/classification.py --config configs/classification.yaml --set
experiment.data.name=cdd_cesm experiment.data.root=DIR

What is trained already is not trained again, and a training that was stopped goes on. Classifiers
of real patches alone come first. They score the synthetic set: where its lesions do not outscore
its normal patches, the study ends, unless --allow is given.

The table has each share's area under the ROC curve, of the scores averaged over the seeds and seed
by seed. Patients are the units: intervals are of Obuchowski's variance, and p is of a permutation
that swaps the ranks of two models patient by patient, with Holm's correction over the shares. Below
six patients there is neither. The last line is the area of a patch's mean grey value alone. (The
paper's p is DeLong's, which takes the patches of one patient as independent.)

With generators, also what adding and removing lesions does to the score of the classifiers trained
on real patches alone: on patches of patients that neither knows, by a permutation test that flips
patients whole. The t-SNE shows the same patches.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmammo import _tensorflow  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet

# isort: split
import keras
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from scipy import stats
from sklearn.manifold import TSNE

from tfmammo import cli, export
from tfmammo import config as configuration
from tfmammo.config import Experiment, Frozen
from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation.comparison import EXPERIMENT, save
from tfmammo.export import predict
from tfmammo.metrics import plotting
from tfmammo.metrics.classification import roc_auc, roc_curve
from tfmammo.metrics.clustered_auc import obuchowski_variance, rank_swap_test
from tfmammo.metrics.plotting import INK
from tfmammo.metrics.segmentation import Paired, paired_test
from tfmammo.metrics.significance import FEWEST_PATIENTS, holm
from tfmammo.metrics.summary import Table, write_csv
from tfmammo.models.classifier import ClassifierConfig
from tfmammo.studies import classification
from tfmammo.synthesis.config import KINDS, Target
from tfmammo.synthesis.generators import LesionGenerator, best_weights, lesion_generator
from tfmammo.synthesis.patch_set import patch_scale
from tfmammo.tracking import runs
from tfmammo.training import script, workers

log = logging.getLogger("tfmammo.evaluate.classification")

PRINTED = {
    0: (0.829, None),
    0.1: (0.837, 0.10),
    0.25: (0.839, 0.055),
    0.5: (0.846, 1e-4),
    0.75: (0.828, 0.72),
    1: (0.797, 1e-8),
}
COLOURS = {
    "real normal": "#d62728",
    "real calcification": "#ff9f1c",
    "real mass": "#2ca02c",
    "synthetic mass": "#17a2a2",
    "synthetic calcification": "#1f4fd8",
    "synthetic normal": "#9467bd",
}

Scores = dict[float, NDArray[np.float64]]  # share -> [seeds, patches]


class StudyConfig(Frozen):
    """A config file of this script.

    0. seeds: of the trainings. generators: mass, calcification and removal, or some -> the handle
       of a run of

    train/contextual.py, of which the best weights are taken; null leaves their effects out.
    """

    experiment: Experiment[ClassifierConfig]
    """As for train/classifier.py; its share and seed are replaced."""
    shares: tuple[float, ...] = (0, 0.1, 0.25, 0.5, 0.75, 1)
    """Of synthetic patches at the start, the first."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    generators: dict[Target, str] | None = None
    effects: PositiveInt = 500
    """Patches, at most, that each works on."""
    tsne: NonNegativeInt = 1000
    """Patches, at most, of each group in the figure; 0: no figure; of synthetic ones it shows what
    the generators make of test patches.
    """
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of intervals."""
    samples: PositiveInt = 10_000
    """Of permutation tests and of what is drawn here."""
    tracking_uri: str | None = None
    """MLflow's store, where the report is logged if it is given, and of models:/ handles."""
    seed: NonNegativeInt = 0
    """Of permutation tests and of what is drawn here."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if (
            not self.shares
            or self.shares[0] != 0
            or not all(0 <= share <= 1 for share in self.shares)
        ):
            raise ValueError(
                "shares must be numbers from 0 to 1, the first 0, with which the others are "
                "compared"
            )
        if len(set(self.shares)) < len(self.shares) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("shares and seeds must not repeat")
        if self.experiment.training.steps is None:
            raise ValueError("experiment.training.steps must be given")
        return self


@dataclass(frozen=True, eq=False)
class Changed:
    """What a generator makes of test patches, in random order.

    Attributes:
        before: Those that post-processing kept.
        after: float32, their images with a lesion added or removed.
        discarded: Part of the patches that post-processing left as they are; they don't count.
    """

    target: Target
    before: Patches
    after: NDArray[np.float32]
    discarded: float


@dataclass(frozen=True, eq=False)
class Effect:
    """What a generator does to the score of a classifier.

    Attributes:
        before: float64 [n].
        after: float64 [n].
        discarded: See Changed.
    """

    target: str
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    patients: NDArray[np.str_]
    ids: NDArray[np.str_]
    discarded: float

    def tested(self, samples: int, seed: int, level: float) -> Paired:
        """The mean change with its interval and p, patients flipped whole."""
        return paired_test(self.after, self.before, self.patients, samples, seed, level)


def main() -> None:
    """Read the config, train what is missing, test, write and print."""
    parser = cli.arguments(__doc__)
    parser.add_argument(
        "--allow",
        action="store_true",
        help="go on with a synthetic set whose lesions do not outscore its normal patches",
    )
    chosen = parser.parse_args()
    config = configuration.parse(StudyConfig, chosen.config, chosen.set)
    workers.refuse(config.experiment.training, "a study trains its classifiers in one process")
    script.prepare(config.experiment.training)
    output = chosen.output or Path("runs/classification")
    report = output / "report"
    generators = opened(config)
    sides = classification.sides(config.experiment.data, config.experiment.model.positives, output)
    folders, gate = trained(config, sides, output / "runs", chosen.allow)
    report.mkdir(parents=True, exist_ok=True)
    scores = tested(folders, sides.test)
    rows = run_rows(scores, sides.test, config)
    write_csv(report / "runs.csv", rows)
    write_csv(report / "scores.csv", score_rows(scores, sides.test, config.seeds))
    found = [table(scores, rows, sides.test, config), *([gate_table(gate)] if gate else [])]
    save(roc_figure(scores, sides.test.labels), report / "figure-roc.png")
    baseline = [folders[config.shares[0], seed] for seed in config.seeds]
    changes = [changed(network, sides.test, config) for network in generators.values()]
    if changes:
        effects = [effect(one, baseline, config) for one in changes]
        found.append(effect_table(effects, config))
        write_csv(report / "effects.csv", effect_rows(effects))
    if gate and not gate.is_passed:
        found = [replace(one, title=f"{flag(gate)} {one.title}") for one in found]
    if config.tsne:
        groups, points = embedding(baseline[0], sides.test, changes, config)
        write_csv(
            report / "tsne.csv",
            [
                {"group": group, "x": x, "y": y}
                for group, (x, y) in zip(groups, points.tolist(), strict=True)
            ],
        )
        save(embedding_figure(groups, points), report / "figure-tsne.png")
    (report / "table.md").write_text("\n".join(one.markdown() for one in found), encoding="utf-8")
    if config.tracking_uri:
        numbers = {f"share_{row['share']:g}/seed_{row['seed']}/auc": row["auc"] for row in rows}
        runs.log_folder(
            report, config.tracking_uri, EXPERIMENT, config.model_dump(mode="json"), numbers
        )
    for one in found:
        cli.console.print(one)
    cli.console.print(f"tables, CSVs and figures: {report}")


def opened(config: StudyConfig) -> dict[Target, LesionGenerator]:
    """The generators of the config, each for what it is named after.

    Raises:
        DataError: One was trained for something else, or on patches of another size.
    """
    found: dict[Target, LesionGenerator] = {}
    for target, handle in (config.generators or {}).items():
        found[target] = lesion_generator(best_weights(handle, config.tracking_uri))
    data = config.experiment.data
    for target, network in found.items():
        if network.target != target:
            raise DataError(f"generators.{target}: was trained with model.target={network.target}")
        if network.size != data.size:
            raise DataError(
                f"generators.{target}: makes patches of {network.size} px, experiment.data.size "
                f"is {data.size}"
            )
        if patch_scale(network.data) != patch_scale(data):
            here = patch_scale(data)
            there = patch_scale(network.data)
            raise DataError(
                f"generators.{target}: was trained on patches made with {there}, experiment.data "
                f"makes them with {here}"
            )
    return found


def trained(
    config: StudyConfig, sides: classification.Sides, folder: Path, allow: bool = False
) -> tuple[dict[tuple[float, int], Path], classification.Gate | None]:
    """A finished run of each share and seed, share 0 first, and what its classifiers make of the
    synthetic set, if there is one.

    Raises:
        DataError: The set's lesions do not outscore its normal patches, and that is not allowed.
    """
    first, *others = config.shares
    synthetic = (
        classification.synthetic_set(
            classification.shared(config.experiment, others[0], 0), sides.held_out()
        )
        if others
        else None
    )
    folders = {
        (first, seed): trained_run(config, first, seed, sides, folder) for seed in config.seeds
    }
    gate = (
        classification.judge_set(list(folders.values()), synthetic, sides.validation)
        if synthetic
        else None
    )
    if gate and not gate.is_passed and not allow:
        counts = (
            f"{len(gate.scores['synthetic lesion'])} lesions and "
            f"{len(gate.scores['synthetic normal'])} normal patches"
        )
        raise DataError(
            f"{config.experiment.model.synthetic}: by classifiers of real patches alone its "
            "lesions score no higher than its normal "
            f"patches (AUC {gate.auc:.3f} of {counts}), so that training on it teaches the "
            "opposite; --allow goes on"
        )
    for seed in config.seeds:
        for share in others:
            folders[share, seed] = trained_run(config, share, seed, sides, folder)
    return {
        (share, seed): folders[share, seed] for seed in config.seeds for share in config.shares
    }, gate


def trained_run(
    config: StudyConfig, share: float, seed: int, sides: classification.Sides, folder: Path
) -> Path:
    """The folder of one finished run, which is trained if it is not there."""
    experiment = classification.shared(config.experiment, share, seed)
    run = folder / f"share{100 * share:g}" / f"seed{seed}"
    if not classification.is_finished(run, experiment):
        log.info("share %g %%, seed %d", 100 * share, seed)
        classification.train(experiment, run, sides)
        policy = keras.config.dtype_policy()
        # or the networks of all runs stay in memory; it forgets the precision too
        keras.backend.clear_session()
        keras.config.set_dtype_policy(policy)
        gc.collect()
    return run


def tested(folders: Mapping[tuple[float, int], Path], test: Patches) -> Scores:
    """Probabilities of a lesion by the chosen weights of every run.

    Raises:
        DataError: A run knows a patient of the test patches.
    """
    by_share: dict[float, list[NDArray[np.float64]]] = {}
    for (share, _), folder in folders.items():
        by_share.setdefault(share, []).append(
            judged(folder, test.images, "probability", test.patient_ids).astype(np.float64)
        )
    return {share: np.stack(rows) for share, rows in by_share.items()}


def judged(
    folder: Path, images: NDArray[np.float32], output: str, patients: NDArray[np.str_]
) -> NDArray[np.float32]:
    """One output of a run's chosen weights: "probability" [n] or "features" [n, channels]."""
    weights = classification.chosen_weights(folder)
    if known := export.trained_on(export.read_card(weights), weights) & set(patients.tolist()):
        raise DataError(
            f"{folder}: was trained on {len(known)} of the {len(set(patients))} patients it is to "
            "be tested on"
        )
    return predict(export.load(weights, "classifier"), "image", images, batch=16)[output]


def interval(
    scores: NDArray[np.float64], test: Patches, level: float
) -> tuple[float, float, float]:
    """The area under the ROC curve with its interval by Obuchowski's variance, cut at 0 and 1; NaN
    of too few patients.
    """
    area = roc_auc(test.labels, scores)
    if is_few(test):
        return area, np.nan, np.nan
    reach = (
        float(stats.norm.ppf(0.5 + level / 2))
        * obuchowski_variance(test.labels, scores, test.patient_ids) ** 0.5
    )
    return area, max(0.0, area - reach), min(1.0, area + reach)


def is_few(test: Patches) -> bool:
    """Whether the patches are of too few patients for an interval or a test: fewer than six, or
    than two of either class.
    """
    of_class = [len(set(test.patient_ids[test.labels == label].tolist())) for label in (0, 1)]
    return len(set(test.patient_ids.tolist())) < FEWEST_PATIENTS or min(of_class) < 2


def compared(
    scores: Mapping[float, NDArray[np.float64]], test: Patches, config: StudyConfig
) -> dict[float, tuple[float, float]]:
    """p of each share but the first against the first, ranks swapped by patient, and p after Holm's
    correction; NaN of few patients.

    Args:
        scores: Share -> [patches].
    """
    first, *others = scores
    arguments = test.labels, scores[first], test.patient_ids, config.samples, config.seed
    raw = [
        np.nan if is_few(test) else rank_swap_test(arguments[0], scores[share], *arguments[1:])
        for share in others
    ]
    return dict(zip(others, zip(raw, holm(raw).tolist(), strict=True), strict=True))


def run_rows(scores: Scores, test: Patches, config: StudyConfig) -> list[dict[str, Any]]:
    """A line for each run: area, interval, and p against share 0 of the same seed, as it is and
    corrected over the shares.
    """
    by_seed = [
        compared({share: own[row] for share, own in scores.items()}, test, config)
        for row in range(len(config.seeds))
    ]
    rows = []
    for share, of_seeds in scores.items():
        for seed, own, found in zip(config.seeds, of_seeds, by_seed, strict=True):
            area, low, high = interval(own, test, config.level)
            p, corrected = found.get(share, (np.nan, np.nan))
            rows.append(
                {
                    "share": share,
                    "seed": seed,
                    "auc": area,
                    "low": low,
                    "high": high,
                    "p": p,
                    "p_holm": corrected,
                }
            )
    return rows


def score_rows(scores: Scores, test: Patches, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each test patch and run."""
    facts = list(
        zip(
            test.ids.tolist(),
            test.patient_ids.tolist(),
            test.kinds.tolist(),
            test.labels.tolist(),
            strict=True,
        )
    )
    return [
        {
            "share": share,
            "seed": seed,
            "id": name,
            "patient": patient,
            "kind": kind,
            "label": label,
            "probability": value,
        }
        for share, of_seeds in scores.items()
        for seed, own in zip(seeds, of_seeds, strict=True)
        for (name, patient, kind, label), value in zip(facts, own.tolist(), strict=True)
    ]


def table(
    scores: Scores, rows: Sequence[dict[str, Any]], test: Patches, config: StudyConfig
) -> Table:
    """The paper's Table 1: areas and p of every share, its own numbers beside the paper's; below
    them the mean grey value's.

    Args:
        rows: Of `run_rows`.
    """
    means = {share: of_seeds.mean(axis=0) for share, of_seeds in scores.items()}
    ps = {share: shown(p) for share, (_, p) in compared(means, test, config).items()}
    by_seed: dict[float, list[str]] = {share: [] for share in scores}
    for row in rows:
        by_seed[row["share"]].append(shown(row["p_holm"]))
    reference = roc_auc(test.labels, means[config.shares[0]])
    body = []
    for share, of_seeds in scores.items():
        single = np.array([roc_auc(test.labels, own) for own in of_seeds])
        spread = f"{single.mean():.3f} ± {single.std(ddof=min(1, len(single) - 1)):.3f}"
        against = ["-", "-", "-"]
        if share in ps:
            against = [
                f"{roc_auc(test.labels, means[share]) - reference:+.3f}",
                ps[share],
                ", ".join(by_seed[share]),
            ]
        printed, p = PRINTED.get(share, (None, None))
        there = (
            "-"
            if printed is None
            else f"{printed:.3f}" + (f" (p {shown(p)})" if p is not None else "")
        )
        body.append(
            [
                f"{100 * share:g} %",
                area_cell(means[share], test, config.level),
                spread,
                *against,
                there,
            ]
        )
    body.append(
        [
            "mean grey value alone",
            area_cell(mean_grey(test), test, config.level),
            "-",
            "-",
            "-",
            "-",
            "-",
        ]
    )
    columns = [
        "synthetic at first",
        "AUC of the mean score",
        f"AUC, {len(config.seeds)} seeds",
        "difference",
        "p",
        "p by seed",
    ]
    return Table(heading(test, config), [*columns, "as printed (OPTIMAM)"], body)


def heading(test: Patches, config: StudyConfig) -> str:
    """What was tested on, and what each interval and p is."""
    patients = len(set(test.patient_ids.tolist()))
    counts = (
        f"{len(test)} test patches ({int(test.labels.sum())} of lesions) of {patients} patients"
    )
    if is_few(test):
        return (
            f"{counts}: too few patients for intervals or p, which take six, two of each class "
            "among them"
        )
    return (
        f"{counts}; {100 * config.level:g} % intervals by Obuchowski's variance, clustered by "
        "patient; p against share 0, two-sided: ranks "
        f"of the two models swapped by patient, {config.samples:,} times at most, Holm's "
        f"correction over {len(config.shares) - 1} shares"
    )


def area_cell(scores: NDArray[np.float64], test: Patches, level: float) -> str:
    """An area and, of enough patients, its interval."""
    area, low, high = interval(scores, test, level)
    return f"{area:.3f}" if np.isnan(low) else f"{area:.3f}\n[{low:.3f}, {high:.3f}]"


def mean_grey(patches: Patches) -> NDArray[np.float64]:
    """The score that needs no network: a patch's mean grey value, float64 [n]."""
    return patches.images.mean(axis=(1, 2, 3), dtype=np.float64)


def shown(p: float) -> str:
    """A p value in a few characters; "-" where there is none."""
    if np.isnan(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def gate_table(gate: classification.Gate) -> Table:
    """What classifiers of real patches alone make of the synthetic set, and of real patches that
    they never saw.
    """
    body = [
        [name, str(len(scores)), f"{scores.mean():.3f}"] for name, scores in gate.scores.items()
    ]
    verdict = "outscore" if gate.is_passed else "do NOT outscore"
    title = (
        "Scores by the classifiers trained on real patches alone: synthetic lesions "
        f"{verdict} synthetic normal patches"
    )
    return Table(
        f"{title} (AUC {gate.auc:.3f}); real ones are of the validation patients",
        ["patches", "number", "mean score"],
        body,
    )


def flag(gate: classification.Gate) -> str:
    """What every table says of a study that went on with a set that failed."""
    return (
        "[ALLOWED, though synthetic lesions do not outscore synthetic normal patches: AUC "
        f"{gate.auc:.3f}]"
    )


def changed(network: LesionGenerator, test: Patches, config: StudyConfig) -> Changed:
    """Add or remove lesions on test patches, as many as effects and t-SNE want.

    Raises:
        DataError: The generator knows a test patient, there is no patch for it, or all it makes is
            discarded.
    """
    fitting = test.labels == network.removes
    fitting &= np.array(
        [not network.removes or network.wants(pathology) for pathology in test.pathologies.tolist()]
    )
    rows = np.random.default_rng(config.seed).permutation(np.flatnonzero(fitting))[
        : max(config.effects, config.tsne)
    ]
    if not len(rows):
        raise DataError(
            f"generators.{network.target}: no test patch is "
            f"{'malignant' if network.removes else 'normal'}"
        )
    patches = test.take(rows)
    if known := network.patients & set(patches.patient_ids.tolist()):
        raise DataError(
            f"generators.{network.target}: was trained on {len(known)} patients of the test "
            "patches; the same data section splits alike"
        )
    made = [
        network.made(image, seed) for seed, image in enumerate(patches.images, start=config.seed)
    ]
    kept = np.array([bool(one.kept[0]) for one in made])
    if not kept.any():
        raise DataError(
            f"generators.{network.target}: post-processing discards all {len(kept)} lesions that "
            "it makes"
        )
    after = np.concatenate([one.image for one, keep in zip(made, kept, strict=True) if keep])
    return Changed(
        network.target, patches.take(np.flatnonzero(kept)), after, float(1 - kept.mean())
    )  # type: ignore[arg-type]


def effect(made: Changed, baseline: Sequence[Path], config: StudyConfig) -> Effect:
    """The scores of patches before and after a generator.

    Args:
        baseline: Runs on real patches alone; their scores are averaged.
    """
    patches = made.before.take(np.arange(min(config.effects, len(made.before))))
    before, then = (
        np.stack(
            [judged(folder, images, "probability", patches.patient_ids) for folder in baseline]
        )
        .astype(np.float64)
        .mean(axis=0)
        for images in (patches.images, made.after[: len(patches)])
    )
    return Effect(made.target, before, then, patches.patient_ids, patches.ids, made.discarded)


def effect_table(effects: Sequence[Effect], config: StudyConfig) -> Table:
    """Mean scores before and after, the mean change, and whether it is what it should be."""
    body = []
    for one in effects:
        found = one.tested(config.samples, config.seed, config.level)
        wanted = -1 if one.target == "removal" else 1
        sure = found.p < 1 - config.level
        verdict = (
            "no change shown"
            if not sure
            else "as wanted"
            if wanted * found.difference > 0
            else "the wrong way"
        )
        change = f"{found.difference:+.3f}\n[{found.low:+.3f}, {found.high:+.3f}]"
        if len(set(one.patients.tolist())) < FEWEST_PATIENTS:
            found, change, verdict = (
                replace(found, p=np.nan),
                f"{found.difference:+.3f}",
                "too few patients for an interval or p (six)",
            )
        counts = [
            f"{len(one.before)} of {len(set(one.patients.tolist()))}",
            f"{100 * one.discarded:.1f}",
        ]
        body.append(
            [
                one.target,
                *counts,
                f"{one.before.mean():.3f}",
                f"{one.after.mean():.3f}",
                change,
                shown(found.p),
                verdict,
            ]
        )
    columns = [
        "generator",
        "patches of patients",
        "discarded, %",
        "before",
        "after",
        "change",
        "p",
        "adding raises, removing lowers",
    ]
    title = (
        "Score of a lesion by the classifiers trained on real patches alone; intervals draw "
        "patients; p, two-sided: signs of patients'"
    )
    return Table(
        f"{title} changes flipped, not corrected, each generator being a question of its own",
        columns,
        body,
    )


def effect_rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """A line for each patch that a generator changed."""
    return [
        {"generator": one.target, "id": name, "patient": patient, "before": before, "after": after}
        for one in effects
        for name, patient, before, after in zip(
            one.ids.tolist(),
            one.patients.tolist(),
            one.before.tolist(),
            one.after.tolist(),
            strict=True,
        )
    ]


@plotting.quiet
def roc_figure(scores: Scores, labels: NDArray[np.integer]) -> Figure:
    """The ROC curve of each share, of the scores averaged over the seeds."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=0.8)
    for number, (share, of_seeds) in enumerate(scores.items()):
        mean = of_seeds.mean(axis=0)
        false, true, _ = roc_curve(labels, mean)
        label = f"{100 * share:g} % synthetic at first, area {roc_auc(labels, mean):.3f}"
        axes.plot(
            false,
            true,
            color=plotting.COLOURS[number % len(plotting.COLOURS)],
            linewidth=1.2,
            label=label,
        )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1.01),
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
    )
    axes.legend(loc="lower right", fontsize=7)
    return figure


def embedding(
    run: Path, test: Patches, changes: Sequence[Changed], config: StudyConfig
) -> tuple[list[str], NDArray[np.float64]]:
    """t-SNE of the last feature layer over real test patches and what generators make of them,
    float64 [n, 2], and each one's group.

    Raises:
        DataError: The classifier knows a patient that is shown.
    """
    random = np.random.default_rng(config.seed)
    parts = {}
    for kind in ("normal", "calcification", "mass"):
        own = test.take(
            np.sort(random.permutation(np.flatnonzero(test.kinds == kind))[: config.tsne])
        )
        parts[f"real {kind}"] = own.images, own.patient_ids
    for one in changes:
        parts[f"synthetic {KINDS[one.target]}"] = (
            one.after[: config.tsne],
            one.before.patient_ids[: config.tsne],
        )
    groups = [name for name, (images, _) in parts.items() for _ in images]
    together = np.concatenate(
        [
            judged(run, images, "features", patients)
            for images, patients in parts.values()
            if len(images)
        ]
    )
    perplexity = min(30.0, (len(together) - 1) / 3)
    return groups, TSNE(perplexity=perplexity, init="pca", random_state=config.seed).fit_transform(
        together
    ).astype(np.float64)


@plotting.quiet
def embedding_figure(groups: Sequence[str], points: NDArray[np.float64]) -> Figure:
    """The paper's Fig. 4, in its colours; removed lesions, which it does not show, are violet."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    named = np.array(groups)
    for group, colour in COLOURS.items():
        own = points[named == group]
        if len(own):
            axes.scatter(
                own[:, 0],
                own[:, 1],
                s=6,
                color=colour,
                alpha=0.7,
                linewidths=0,
                label=f"{group}, {len(own)}",
            )
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize=7, markerscale=2)
    axes.set_title("t-SNE of the last feature layer, trained on real patches alone")
    return figure


if __name__ == "__main__":
    cli.run(main)
