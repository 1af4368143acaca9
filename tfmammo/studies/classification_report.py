"""Run the classifier study, and write its tables and figures."""

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
from tfmammo.evaluation.printed import get_values
from tfmammo.evaluation.report import EXPERIMENT, save_figure, write_markdown
from tfmammo.metrics.classification import delong_test, roc_auc, roc_curve
from tfmammo.metrics.clustered_auc import estimate_auc, has_few_patients, rank_swap_test
from tfmammo.metrics.plotting import COLOURS, make_roc_axes, plot_style
from tfmammo.metrics.significance import holm
from tfmammo.metrics.summary import Table, format_p, format_spread, write_csv
from tfmammo.models.classifier import Control
from tfmammo.studies import classification
from tfmammo.studies.classification import Gate, StudyConfig, Subsets, predict_unseen
from tfmammo.studies.classification_cases import (
    compare_trainings,
    draw_cases,
    draw_moves,
    draw_pairs,
    tabulate_moves,
)
from tfmammo.studies.classification_controls import IN_WORDS
from tfmammo.studies.classification_effects import (
    draw_embedding,
    edit_patches,
    embed,
    format_area,
    make_effect_rows,
    measure_effect,
    open_generators,
    tabulate_effects,
    tabulate_separation,
)
from tfmammo.tracking import runs

log = logging.getLogger(__name__)

# Share -> (area, p), as the paper prints them.
PUBLISHED = {
    float(share.removesuffix(" %")) / 100: (values["AUC"], values.get("p"))
    for share, values in get_values("contextual", "table1").items()
}

# a share of synthetic patches, or the name of a control
AnyArm = TypeVar("AnyArm", bound=float | str)
Scores = dict[float, NDArray[np.float64]]  # share -> [seeds, patches]


def run_study(config: StudyConfig, output: Path, allow: bool = False) -> list[Table]:
    """Train what is missing, test, and write tables, CSVs and figures to the folder "report".

    Args:
        config: The study.
        output: The study's folder.
        allow: Continue with a synthetic set whose lesions do not outscore its normal patches.

    Returns:
        The tables.

    Raises:
        DataError: A generator or the synthetic set does not fit the study.
        ConfigError: A classifier of one of the study's seeds chose a generator's weights.
    """
    report = output / "report"
    generators = open_generators(config)
    experiment = config.experiment
    subsets = classification.split_subsets(experiment.data, experiment.model, output)
    test = subsets.test
    folders, gate = train_missing(config, subsets, output / "runs", allow)
    controls = train_controls(config, subsets, output / "runs")
    report.mkdir(parents=True, exist_ok=True)
    scores = score_runs(folders, test)
    rows = make_run_rows(scores, test, config)
    write_csv(report / "runs.csv", rows)
    write_csv(report / "scores.csv", make_score_rows(scores, test, config.seeds))
    tables = [tabulate_areas(scores, rows, test, config)]
    if len(config.shares) > 1:
        tables.append(tabulate_moves(scores, test, config))
    if controls:
        tables.append(tabulate_controls(score_runs(controls, test), scores, test, config))
    if gate:
        tables.append(tabulate_gate(gate))
    save_figure(draw_roc_curves(scores, test.labels), report / "figure-roc.png")
    baseline = [folders[config.shares[0], seed] for seed in config.seeds]
    edits = [edit_patches(network, test, config) for network in generators.values()]
    if edits:
        effects = [measure_effect(edited, baseline, config) for edited in edits]
        tables.append(tabulate_effects(effects, config))
        real = scores[config.shares[0]].mean(axis=0)
        tables.append(tabulate_separation(effects, real, test, config))
        write_csv(report / "effects.csv", make_effect_rows(effects))
        if config.cases:
            save_figure(draw_pairs(edits, effects, config.cases), report / "figure-pairs.png")
    if gate and not gate.is_passed:
        tables = [
            replace(table, title=f"{describe_failure(gate)} {table.title}") for table in tables
        ]
    if config.tsne:
        groups, points = embed(baseline[0], test, edits, config)
        points_of_groups = zip(groups, points.tolist(), strict=True)
        lines = [{"group": group, "x": x, "y": y} for group, (x, y) in points_of_groups]
        write_csv(report / "tsne.csv", lines)
        save_figure(draw_embedding(groups, points), report / "figure-tsne.png")
        write_cases(folders, scores, test, config, report)
    write_markdown(report / "table.md", tables)
    if config.tracking_uri:
        metrics = {f"share_{row['share']:g}/seed_{row['seed']}/auc": row["auc"] for row in rows}
        content = config.model_dump(mode="json")
        runs.log_folder(report, config.tracking_uri, EXPERIMENT, content, metrics)
    return tables


def write_cases(
    folders: Mapping[tuple[float, int], Path],
    scores: Scores,
    test: Patches,
    config: StudyConfig,
    report: Path,
) -> None:
    """Write the figures of test patches that change sides, if the config asks for them."""
    if not config.cases:
        return
    cases = compare_trainings(folders, scores, test, config)
    if cases:
        write_csv(report / "moves.csv", cases.make_rows())
        save_figure(draw_moves(cases), report / "figure-moves.png")
        save_figure(draw_cases(cases), report / "figure-cases.png")


def train_missing(
    config: StudyConfig, subsets: Subsets, folder: Path, allow: bool = False
) -> tuple[dict[tuple[float, int], Path], Gate | None]:
    """Train each share with each seed, if it is not trained yet, share 0 first.

    Args:
        config: The study.
        subsets: Its real patches.
        folder: The folder of all runs.
        allow: Continue with a synthetic set that fails the gate.

    Returns:
        (share, seed) -> finished run, and how the classifiers of real patches score the synthetic
        set; None where there is no synthetic set.

    Raises:
        DataError: The set's lesions do not outscore its normal patches, and that is not allowed.
        ConfigError: A classifier of one of the study's seeds chose the set's generators.
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
    """Train each control with each seed, if it is not trained yet.

    Returns:
        (control, seed) -> finished run.
    """
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
    """Return the folder of one run, after training it if it is not finished."""
    experiment = classification.select_arm(config.experiment, share, seed, control)
    run = folder / (control or f"share{100 * share:g}") / f"seed{seed}"
    if not classification.is_finished(run, experiment):
        log.info("share %g %% of %s patches, seed %d", 100 * share, control or "synthetic", seed)
        classification.train(experiment, run, subsets)
        policy = keras.config.dtype_policy()
        # Otherwise the networks of all runs stay in memory. It forgets the precision, too.
        keras.backend.clear_session()
        keras.config.set_dtype_policy(policy)
        gc.collect()
    return run


def score_runs(
    folders: Mapping[tuple[AnyArm, int], Path], test: Patches
) -> dict[AnyArm, NDArray[np.float64]]:
    """Predict the probability of a lesion with the best weights of every run.

    Raises:
        DataError: A run knows a patient of the test patches.
    """
    by_arm: dict[AnyArm, list[NDArray[np.float64]]] = {}
    for (arm, _), folder in folders.items():
        scores = predict_unseen(folder, test.images, "probability", test.patient_ids)
        by_arm.setdefault(arm, []).append(scores.astype(np.float64))
    return {arm: np.stack(rows) for arm, rows in by_arm.items()}


def compare_with_first(
    scores: Mapping[AnyArm, NDArray[np.float64]], test: Patches, config: StudyConfig
) -> dict[AnyArm, tuple[float, float]]:
    """Compare each share or control with the first one; ranks are swapped by patient.

    Args:
        scores: Share or control -> [patches].
        test: The patches.
        config: How many swaps.

    Returns:
        Share or control -> p, and p after Holm's correction; NaN where there are too few patients.
    """
    first, *others = scores
    if has_few_patients(test.labels, test.patient_ids):
        p_values = [np.nan for _ in others]
    else:
        p_values = [
            rank_swap_test(
                test.labels,
                scores[arm],
                scores[first],
                test.patient_ids,
                config.samples,
                config.seed,
            )
            for arm in others
        ]
    corrected = holm(p_values).tolist()
    return dict(zip(others, zip(p_values, corrected, strict=True), strict=True))


def compute_delong_p(
    scores: NDArray[np.float64], reference: NDArray[np.float64], test: Patches
) -> float:
    """Compute the paper's p of two models; NaN where there are too few patients for any."""
    if has_few_patients(test.labels, test.patient_ids):
        return np.nan
    return delong_test(test.labels, scores, reference)[1]


def make_run_rows(scores: Scores, test: Patches, config: StudyConfig) -> list[dict[str, Any]]:
    """Make the lines of runs.csv: area, interval, and p against share 0 of the same seed.

    p is given as it is and corrected over the shares; DeLong's p stands beside it.
    """
    p_by_seed = [
        compare_with_first(
            {share: of_seeds[row] for share, of_seeds in scores.items()}, test, config
        )
        for row in range(len(config.seeds))
    ]
    rows = []
    for share, of_seeds in scores.items():
        runs_of_share = zip(
            config.seeds, of_seeds, scores[config.shares[0]], p_by_seed, strict=True
        )
        for seed, of_run, first, p_of_shares in runs_of_share:
            area = estimate_auc(test.labels, of_run, test.patient_ids, config.level)
            p, corrected = p_of_shares.get(share, (np.nan, np.nan))
            delong = np.nan
            if share in p_of_shares:
                delong = compute_delong_p(of_run, first, test)
            rows.append(
                {
                    "share": share,
                    "seed": seed,
                    "auc": area.value,
                    "low": area.low,
                    "high": area.high,
                    "p": p,
                    "p_holm": corrected,
                    "p_delong": delong,
                }
            )
    return rows


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


def tabulate_areas(
    scores: Scores, rows: Sequence[dict[str, Any]], test: Patches, config: StudyConfig
) -> Table:
    """Tabulate areas and p of every share beside the paper's (its Table 1).

    The last line is the mean grey value's.

    Args:
        scores: Of all runs.
        rows: Of `make_run_rows`.
        test: The patches.
        config: The study.
    """
    means = {share: of_seeds.mean(axis=0) for share, of_seeds in scores.items()}
    p_of_means = compare_with_first(means, test, config)
    first = means[config.shares[0]]
    reference = roc_auc(test.labels, first)
    body = []
    for share, of_seeds in scores.items():
        areas = np.array([roc_auc(test.labels, of_run) for of_run in of_seeds])
        comparison = ["-"] * 4
        if share in p_of_means:
            by_seed = [format_p(row["p_holm"]) for row in rows if row["share"] == share]
            comparison = [
                f"{roc_auc(test.labels, means[share]) - reference:+.3f}",
                format_p(p_of_means[share][1]),
                format_p(compute_delong_p(means[share], first, test)),
                ", ".join(by_seed),
            ]
        body.append(
            [
                f"{100 * share:g} %",
                format_area(test.labels, means[share], test.patient_ids, config.level),
                format_spread(areas),
                *comparison,
                format_published(share),
            ]
        )
    grey = format_area(test.labels, compute_mean_grey(test), test.patient_ids, config.level)
    body.append(["mean grey value alone", grey, *["-"] * 6])
    columns = [
        "synthetic at first",
        "AUC of the mean score",
        f"AUC, {len(config.seeds)} seeds",
        "difference",
        "p",
        "p, DeLong",
        "p by seed",
        "as printed (OPTIMAM)",
    ]
    return Table(make_heading(test, config), columns, body)


def tabulate_controls(
    controls: Mapping[Control, NDArray[np.float64]],
    scores: Scores,
    test: Patches,
    config: StudyConfig,
) -> Table:
    """Tabulate what simpler patches bring in place of the synthetic ones.

    Args:
        controls: Control -> [seeds, patches].
        scores: Of the shares.
        test: The patches.
        config: The study.
    """
    means: dict[str, NDArray[np.float64]] = {
        control: of_seeds.mean(axis=0) for control, of_seeds in controls.items()
    }
    references = [scores[share].mean(axis=0) for share in (config.shares[0], config.control_share)]
    area_alone, area_synthetic = (roc_auc(test.labels, reference) for reference in references)
    alone, synthetic = (
        compare_with_first({"reference": reference, **means}, test, config)
        for reference in references
    )
    body = []
    for (control, mean), of_seeds in zip(means.items(), controls.values(), strict=True):
        area = roc_auc(test.labels, mean)
        areas = [roc_auc(test.labels, of_run) for of_run in of_seeds]
        body.append(
            [
                control,
                format_area(test.labels, mean, test.patient_ids, config.level),
                ", ".join(f"{of_run:.3f}" for of_run in areas),
                f"{area - area_alone:+.3f}",
                format_p(alone[control][1]),
                f"{area_synthetic - area:+.3f}",
                format_p(synthetic[control][1]),
            ]
        )
    share = f"{100 * config.control_share:g} %"
    columns = [
        f"{share} at first of",
        "AUC of the mean score",
        "AUC of each seed",
        "difference from real patches alone",
        "p",
        f"synthetic patches ({share}) minus these",
        "p of that",
    ]
    title = (
        "Controls, patches made of real training patches in place of the synthetic ones: "
        f"{', '.join(IN_WORDS[control] for control in controls)}; "
        f"p with Holm's correction over {len(means)} controls"
    )
    return Table(title, columns, body)


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
    """Compute the score that needs no network: a patch's mean grey value, float64 [n]."""
    return patches.images.mean(axis=(1, 2, 3), dtype=np.float64)


def tabulate_gate(gate: Gate) -> Table:
    """Tabulate how classifiers of real patches alone score the synthetic set.

    Real patches that they never saw stand beside it.
    """
    body = [
        [name, str(len(scores)), f"{scores.mean():.3f}"] for name, scores in gate.scores.items()
    ]
    verdict = "outscore" if gate.is_passed else "do NOT outscore"
    title = (
        "Scores by the classifiers trained on real patches alone: synthetic lesions "
        f"{verdict} synthetic normal patches (AUC {gate.auc:.3f}, of real patches "
        f"{gate.real_auc:.3f}); real ones are of the validation patients"
    )
    return Table(title, ["patches", "number", "mean score"], body)


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
