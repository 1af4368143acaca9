"""Run the classifier study, and write its rows, tables and figures."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.metrics.classification import delong_test, roc_auc, roc_curve
from tfmammo.metrics.clustered_auc import estimate_auc, has_few_patients, rank_swap_test
from tfmammo.metrics.plotting import COLOURS, make_roc_axes, plot_style
from tfmammo.metrics.printed import get_values
from tfmammo.metrics.resampling import jackknife
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.significance import Estimate
from tfmammo.metrics.summary import Table, correct_p, count_sizes, format_p, format_spread
from tfmammo.models.classifier import Control
from tfmammo.studies import classification
from tfmammo.studies.classification import Gate, StudyConfig, Subsets, name_share, predict_unseen
from tfmammo.studies.classification_cases import add_moves
from tfmammo.studies.classification_controls import IN_WORDS
from tfmammo.studies.classification_effects import (
    AUC,
    OBUCHOWSKI,
    SCORE,
    add_effects,
    add_realism,
    add_separation,
    draw_embedding,
    edit_patches,
    embed,
    make_effect_rows,
    measure_effect,
    open_generators,
)
from tfmammo.training.folder import check_patches

log = logging.getLogger(__name__)

# Share -> (area, p), as the paper prints them.
PUBLISHED = {
    float(share.removesuffix(" %")) / 100: (values["AUC"], values.get("p"))
    for share, values in get_values("contextual", "table1").items()
}
SWAPS = "rank swaps by patient"

# a share of synthetic patches, or the name of a control
AnyArm = TypeVar("AnyArm", bound=float | str)
Scores = dict[float, NDArray[np.float64]]  # share -> [seeds, patches]


def run_study(config: StudyConfig, output: Path, allow: bool = False) -> Report:
    """Train what is missing, test, and write rows, tables and figures to the folder "report".

    Args:
        config: The study.
        output: The study's folder.
        allow: Continue with a synthetic set whose lesions do not outscore its normal patches.
    """
    folder = output / "report"
    generators = open_generators(config)
    experiment = config.experiment
    subsets = classification.split_subsets(experiment.data, experiment.model, output)
    test = subsets.test
    folders, gate = train_missing(config, subsets, output / "runs", allow)
    controls = train_controls(config, subsets, output / "runs")
    scores = score_runs(folders, test)
    report = Report(config=config)
    report.files["scores.csv"] = make_score_rows(scores, test, config.seeds)
    add_areas(report, scores, test, config)
    if len(config.shares) > 1:
        add_moves(report, scores, test, config)
    if controls:
        add_controls(report, score_runs(controls, test), scores, test, config)
    if gate:
        add_gate(report, gate)
    save_figure(draw_roc_curves(scores, test.labels), folder / "figure-roc.png")
    baseline = [folders[config.shares[0], seed] for seed in config.seeds]
    edits = [edit_patches(network, test, config) for network in generators.values()]
    if edits:
        effects = [measure_effect(edited, baseline, config) for edited in edits]
        add_effects(report, effects, config)
        add_separation(report, effects, scores[config.shares[0]].mean(axis=0), test, config)
        add_realism(report, edits, test, config)
        report.files["effects.csv"] = make_effect_rows(effects)
    if gate and not gate.is_passed:
        failure = describe_failure(gate)
        report.tables = [replace(one, title=f"{failure} {one.title}") for one in report.tables]
    if config.tsne:
        groups, points = embed(baseline[0], test, edits, config)
        points_of_groups = zip(groups, points.tolist(), strict=True)
        report.files["tsne.csv"] = [
            {"group": group, "x": x, "y": y} for group, (x, y) in points_of_groups
        ]
        save_figure(draw_embedding(groups, points), folder / "figure-tsne.png")
    report.write(folder)
    return report


def train_missing(
    config: StudyConfig, subsets: Subsets, folder: Path, allow: bool = False
) -> tuple[dict[tuple[float, int], Path], Gate | None]:
    """Train each share with each seed, if it is not trained yet, share 0 first.

    Returns:
        (share, seed) -> finished run, and how the classifiers of real patches score the synthetic
        set; None where there is no synthetic set.
    """
    first, *others = config.shares
    synthetic = None
    if others:
        experiment = classification.select_arm(config.experiment, others[0], 0)
        held_out = subsets.list_held_out_patients()
        synthetic = classification.load_synthetic_set(experiment, held_out)
        for seed in synthetic.judge_seeds:
            classification.check_judge(str(synthetic.folder), seed, config.seeds)
    folders = {
        (first, seed): train_run(config, first, seed, subsets, folder) for seed in config.seeds
    }
    gate = None
    if synthetic:
        baseline = list(folders.values())
        gate = classification.score_synthetic_set(baseline, synthetic, subsets.validation)
    if gate and not gate.is_passed and not allow:
        lesions = len(gate.scores["synthetic lesion"])
        normal = len(gate.scores["synthetic normal"])
        raise DataError(
            f"{config.experiment.model.synthetic}: by classifiers of real patches alone its "
            "lesions score no higher than its normal "
            f"patches (AUC {gate.auc:.3f} of {lesions} lesions and {normal} normal patches), so "
            "that training on it teaches the opposite; --allow goes on"
        )
    for seed in config.seeds:
        for share in others:
            folders[share, seed] = train_run(config, share, seed, subsets, folder)
    in_order = {
        (share, seed): folders[share, seed] for seed in config.seeds for share in config.shares
    }
    return in_order, gate


def train_controls(
    config: StudyConfig, subsets: Subsets, folder: Path
) -> dict[tuple[Control, int], Path]:
    """Train each control with each seed, if it is not trained yet: (control, seed) -> run."""
    return {
        (control, seed): train_run(config, config.control_share, seed, subsets, folder, control)
        for seed in config.seeds
        for control in config.controls
    }


def train_run(
    config: StudyConfig,
    share: float,
    seed: int,
    subsets: Subsets,
    folder: Path,
    control: Control | None = None,
) -> Path:
    """Return the folder of one run, after training it if it is not finished.

    A finished one whose patches were others is a TrainingError.
    """
    experiment = classification.select_arm(config.experiment, share, seed, control)
    run = folder / (control or name_share(share)) / f"seed{seed}"
    if classification.is_finished(run, experiment):
        patches, _ = classification.make_training_patches(experiment, subsets)
        check_patches(run, experiment, patches, subsets.validation)
    else:
        log.info("share %g %% of %s patches, seed %d", 100 * share, control or "synthetic", seed)
        classification.train(experiment, run, subsets)
        policy = keras.config.dtype_policy()
        # Otherwise the networks of all runs stay in memory. It forgets the precision.
        keras.backend.clear_session()
        keras.config.set_dtype_policy(policy)
        gc.collect()
    return run


def score_runs(
    folders: Mapping[tuple[AnyArm, int], Path], test: Patches
) -> dict[AnyArm, NDArray[np.float64]]:
    """Predict the probability of a lesion with the best weights of every run."""
    by_arm: dict[AnyArm, list[NDArray[np.float64]]] = {}
    for (arm, _), folder in folders.items():
        scores = predict_unseen(folder, test.images, "probability", test.patient_ids)
        by_arm.setdefault(arm, []).append(scores.astype(np.float64))
    return {arm: np.stack(rows) for arm, rows in by_arm.items()}


def compare_areas(
    scores: NDArray[np.float64],
    reference: NDArray[np.float64],
    test: Patches,
    config: StudyConfig,
) -> Estimate:
    """Compare two models' areas: their difference, its jackknife interval, and p by swapped ranks.

    Interval and p are NaN where there are too few patients.
    """

    def subtract(rows: NDArray[np.intp]) -> float:
        own, other = (roc_auc(test.labels[rows], values[rows]) for values in (scores, reference))
        return own - other

    if has_few_patients(test.labels, test.patient_ids):
        return Estimate(subtract(np.arange(len(test))))
    p = rank_swap_test(
        test.labels, scores, reference, test.patient_ids, config.samples, config.seed
    )
    return replace(jackknife(subtract, test.patient_ids, config.level), p=p)


def make_score_rows(scores: Scores, test: Patches, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Make the lines of scores.csv: one for each test patch and run."""
    patches = [
        {"id": name, "patient": patient, "kind": kind, "label": label}
        for name, patient, kind, label in zip(
            test.ids.tolist(),
            test.patient_ids.tolist(),
            test.kinds.tolist(),
            test.labels.tolist(),
            strict=True,
        )
    ]
    return [
        {"share": share, "seed": seed, **patch, "probability": probability}
        for share, of_seeds in scores.items()
        for seed, of_run in zip(seeds, of_seeds, strict=True)
        for patch, probability in zip(patches, of_run.tolist(), strict=True)
    ]


def find_fact(facts: Sequence[Fact], table: str, model: str, subset: str = "") -> Fact:
    """Find a fact of the area under the curve."""
    wanted = (table, model, subset, "auc")
    return next(f for f in facts if (f.table, f.model, f.subset, f.measure) == wanted)


def add_areas(report: Report, scores: Scores, test: Patches, config: StudyConfig) -> None:
    """Add areas and p of every share next to the paper's (its Table 1).

    Areas are of the mean score over the seeds and, in the table "runs", of each seed. p is
    corrected over the shares; the table "delong" has the paper's p. The last line is the mean
    intensity's.
    """
    first = config.shares[0]
    facts = _compare_areas(scores, test, config)
    labels, patients = test.labels, test.patient_ids
    grey = estimate_auc(labels, compute_mean_grey(test), patients, config.level)
    about: dict[str, Any] = {"test": OBUCHOWSKI, **count_sizes(patients)}
    fact = AUC.make_fact("means", "mean intensity", "auc", grey, **about)
    body = []
    for share, of_seeds in scores.items():
        model = name_share(share)
        areas = np.array([roc_auc(labels, of_run) for of_run in of_seeds])
        comparison = ["-"] * 3
        if share != first:
            change = find_fact(facts, "differences", model)
            by_seed = [
                find_fact(facts, "differences", model, f"run={seed}") for seed in config.seeds
            ]
            comparison = [
                AUC.format_fact(change),
                format_p(find_fact(facts, "delong", model).p),
                ", ".join(format_p(one.p_corrected) for one in by_seed),
            ]
        area_cell = AUC.format_fact(find_fact(facts, "means", model))
        spread = format_spread(areas)
        body.append([f"{100 * share:g} %", area_cell, spread, *comparison, format_published(share)])
    body.append(["mean intensity alone", AUC.format_fact(fact), *["-"] * 5])
    report.facts += [*facts, fact]
    columns = [
        "synthetic at first",
        "AUC of the mean score",
        f"AUC, {len(config.seeds)} seeds",
        "difference",
        "p, DeLong",
        "p by seed",
        "as printed (OPTIMAM)",
    ]
    report.tables.append(Table(make_heading(test, config), columns, body))


def _compare_areas(scores: Scores, test: Patches, config: StudyConfig) -> list[Fact]:
    """Compute areas, and their differences from the first share's, of the mean and each seed."""
    labels, patients = test.labels, test.patient_ids
    counts = count_sizes(patients)
    few = has_few_patients(labels, patients)
    parts: dict[str, dict[float, NDArray[np.float64]]] = {
        "": {share: of_seeds.mean(axis=0) for share, of_seeds in scores.items()}
    }
    for row, seed in enumerate(config.seeds):
        parts[f"run={seed}"] = {share: of_seeds[row] for share, of_seeds in scores.items()}
    facts: list[Fact] = []
    first = config.shares[0]
    for subset, of_part in parts.items():
        settings: dict[str, Any] = {"subset": subset, **counts}
        changes: list[Fact] = []
        for share, own in of_part.items():
            model = name_share(share)
            area = estimate_auc(labels, own, patients, config.level)
            table = "runs" if subset else "means"
            facts.append(AUC.make_fact(table, model, "auc", area, test=OBUCHOWSKI, **settings))
            if share == first:
                continue
            change = compare_areas(own, of_part[first], test, config)
            against = {"against": name_share(first), **settings}
            tested = {"test": SWAPS, "p": change.p}
            changes.append(AUC.make_fact("differences", model, "auc", change, **against, **tested))
            p = np.nan if few else delong_test(labels, own, of_part[first])[1]
            tested = {"test": "DeLong", "p": p}
            facts.append(AUC.make_fact("delong", model, "auc", change.value, **against, **tested))
        facts += correct_p(changes)
    return facts


def add_controls(
    report: Report,
    controls: Mapping[Control, NDArray[np.float64]],
    scores: Scores,
    test: Patches,
    config: StudyConfig,
) -> None:
    """Add what simpler patches bring in place of synthetic ones: control -> [seeds, patches]."""
    labels, patients = test.labels, test.patient_ids
    counts = count_sizes(patients)
    means: dict[str, NDArray[np.float64]] = {
        control: of_seeds.mean(axis=0) for control, of_seeds in controls.items()
    }
    alone, synthetic = config.shares[0], config.control_share
    of_alone, of_synthetic = (scores[share].mean(axis=0) for share in (alone, synthetic))
    changes: list[Fact] = []
    for control, mean in means.items():
        for model, against, own, other in (
            (control, name_share(alone), mean, of_alone),
            (name_share(synthetic), control, of_synthetic, mean),
        ):
            change = compare_areas(own, other, test, config)
            tested = {"against": against, "test": SWAPS, "p": change.p, **counts}
            changes.append(AUC.make_fact("controls", model, "auc", change, **tested))
    changes = correct_p(changes)
    report.facts += changes
    body = []
    for (control, mean), of_seeds in zip(means.items(), controls.values(), strict=True):
        area = estimate_auc(labels, mean, patients, config.level)
        level = AUC.make_fact("controls", control, "auc", area, test=OBUCHOWSKI, **counts)
        report.facts.append(level)
        of_runs = [roc_auc(labels, of_run) for of_run in of_seeds]
        report.facts += [
            AUC.make_fact("controls", control, "auc", of_run, subset=f"run={seed}")
            for seed, of_run in zip(config.seeds, of_runs, strict=True)
        ]
        cells = [control, AUC.format_fact(level), ", ".join(map(AUC.show, of_runs))]
        of_control = [fact for fact in changes if control in (fact.model, fact.against)]
        body.append([*cells, *map(AUC.format_fact, of_control)])
    share = f"{100 * config.control_share:g} %"
    columns = [
        f"{share} at first of",
        "AUC of the mean score",
        "AUC of each seed",
        "difference from real patches alone",
        f"synthetic patches ({share}) minus these",
    ]
    title = (
        "Controls, patches made of real training patches in place of the synthetic ones: "
        f"{', '.join(IN_WORDS[control] for control in controls)}; "
        f"p with Holm's correction over {len(changes)} comparisons"
    )
    report.tables.append(Table(title, columns, body))


def make_heading(test: Patches, config: StudyConfig) -> str:
    """Say what was tested on, and what each interval and p is."""
    patients = len(set(test.patient_ids.tolist()))
    counts = (
        f"{len(test)} test patches ({int(test.labels.sum())} of lesions) of {patients} patients"
    )
    if has_few_patients(test.labels, test.patient_ids):
        return f"{counts}: too few patients for intervals or p, which take six of each class"
    return (
        f"{counts}; {100 * config.level:g} % intervals by Obuchowski's variance on the scale of "
        "logits, clustered by patient; p against share 0, two-sided: ranks "
        f"of the two models swapped by patient, {config.samples:,} times at most, Holm's "
        f"correction over {len(config.shares) - 1} shares; DeLong's p as in the paper, which takes "
        "the patches of a patient as independent, without correction"
    )


def format_published(share: float) -> str:
    """Format the paper's area and p of a share; "-" where it prints none."""
    if share not in PUBLISHED:
        return "-"
    area, p = PUBLISHED[share]
    return f"{area:.3f}" if p is None else f"{area:.3f} (p {format_p(p)})"


def compute_mean_grey(patches: Patches) -> NDArray[np.float64]:
    """Compute the score that needs no network: a patch's mean intensity, float64 [n]."""
    return patches.images.mean(axis=(1, 2, 3), dtype=np.float64)


def add_gate(report: Report, gate: Gate) -> None:
    """Add how classifiers of real patches alone score the synthetic set and unseen patches."""
    areas = {"synthetic": gate.auc, "real": gate.real_auc}
    report.facts += [AUC.make_fact("gate", pool, "auc", area) for pool, area in areas.items()]
    body = []
    for name, scores in gate.scores.items():
        pool, _, kind = name.partition(" ")
        key, mean = f"score_{kind}", float(scores.mean())
        report.facts.append(SCORE.make_fact("gate", pool, key, mean, images=len(scores)))
        body.append([name, str(len(scores)), SCORE.show(mean)])
    verdict = "outscore" if gate.is_passed else "do NOT outscore"
    title = (
        "Scores by the classifiers trained on real patches alone: synthetic lesions "
        f"{verdict} synthetic normal patches (AUC {gate.auc:.3f}, of real patches "
        f"{gate.real_auc:.3f}); real ones are of the validation patients"
    )
    report.tables.append(Table(title, ["patches", "number", "mean score"], body))


def describe_failure(gate: Gate) -> str:
    """Say what every table says of a study that continued with a set that failed the gate."""
    return (
        "[ALLOWED, though synthetic lesions do not outscore synthetic normal patches: AUC "
        f"{gate.auc:.3f}]"
    )


@plot_style
def draw_roc_curves(scores: Scores, labels: NDArray[np.integer]) -> Figure:
    """Draw the ROC curve of each share, of the scores averaged over the seeds."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = make_roc_axes(figure)
    for number, (share, of_seeds) in enumerate(scores.items()):
        mean = of_seeds.mean(axis=0)
        false, true, _ = roc_curve(labels, mean)
        label = f"{100 * share:g} % synthetic at first, area {roc_auc(labels, mean):.3f}"
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(false, true, color=colour, linewidth=1.2, label=label)
    axes.legend(loc="lower right", fontsize=7)
    return figure
