"""What generators do to the score of a classifier, and t-SNE of its features.

Generators edit test patches, of patients that neither they nor the classifiers know. The scores
before and after are compared by a permutation test that flips the signs of whole patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from tfmammo.data.patches import Patches
from tfmammo.data.splits import check_unseen
from tfmammo.errors import DataError
from tfmammo.evaluation.report import Report
from tfmammo.evaluation.two_sample import estimate_area
from tfmammo.metrics.clustered_auc import chance_test, estimate_auc
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.significance import FEWEST_PATIENTS, holm
from tfmammo.metrics.summary import Measure, Table, count_sizes, format_p
from tfmammo.studies.classification import StudyConfig, check_judge, predict_unseen
from tfmammo.synthesis.config import KINDS, Target
from tfmammo.synthesis.generators import LesionGenerator, find_best_weights, load_lesion_generator
from tfmammo.synthesis.patches import check_comparable, describe_scale

AUC = Measure("AUC", "", 1, 3)
SCORE = Measure("score", "", 1, 3)
SHARE = Measure("share", "%", 100, 1)
OBUCHOWSKI = "Obuchowski's variance by patient"
COLOURS = {
    "real normal": "#d62728",
    "real calcification": "#ff9f1c",
    "real mass": "#2ca02c",
    "synthetic mass": "#17a2a2",
    "synthetic calcification": "#1f4fd8",
    "synthetic normal": "#9467bd",
}


@dataclass(frozen=True, eq=False)
class EditedPatches:
    """Test patches that a generator edited, in random order.

    Attributes:
        target: "mass", "calcification" or "removal".
        before: The patches before; only those whose edit post-processing kept.
        after: float32 [n, size, size, 1], their images with a lesion added or removed.
        discarded: The part of the patches whose edit post-processing discarded, 0 to 1.
    """

    target: Target
    before: Patches
    after: NDArray[np.float32]
    discarded: float


@dataclass(frozen=True, eq=False)
class Effect:
    """What a generator does to the score of a classifier.

    Attributes:
        target: "mass", "calcification" or "removal".
        before: Scores before the edit, float64 [n].
        after: Scores after the edit, float64 [n].
        even: Scores after the trivial edit of the same size, see `spread_evenly`, float64 [n].
        patients: str [n].
        ids: str [n].
        discarded: See `EditedPatches`.
    """

    target: str
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    even: NDArray[np.float64]
    patients: NDArray[np.str_]
    ids: NDArray[np.str_]
    discarded: float


def open_generators(config: StudyConfig) -> dict[Target, LesionGenerator]:
    """Open the generators of the config, and refuse those that do not fit the study."""
    generators = {
        target: load_lesion_generator(find_best_weights(uri, config.tracking_uri))
        for target, uri in (config.generators or {}).items()
    }
    data = config.experiment.data
    for target, network in generators.items():
        check_judge(f"generators.{target}", network.model.judge_seed, config.seeds)
        if network.target != target:
            raise DataError(f"generators.{target}: was trained with model.target={network.target}")
        check_comparable(f"generators.{target}", network.size, describe_scale(network.data), data)
    return generators


def edit_patches(network: LesionGenerator, test: Patches, config: StudyConfig) -> EditedPatches:
    """Add or remove lesions on unknown test patches, as many as effects and t-SNE need."""
    is_suitable = test.labels == network.removes
    if network.removes:
        pathologies = test.pathologies.tolist()
        is_suitable &= np.array([network.removes_pathology(name) for name in pathologies])
    rows = np.random.default_rng(config.seed).permutation(np.flatnonzero(is_suitable))
    rows = rows[: max(config.effects, config.tsne)]
    if not len(rows):
        raise DataError(
            f"generators.{network.target}: no test patch is "
            f"{'malignant' if network.removes else 'normal'}"
        )
    patches = test.take(rows)
    check_unseen(
        f"generators.{network.target}: was trained on",
        network.patients,
        patches.patient_ids.tolist(),
    )
    edits = [
        network.generate(image, seed)
        for seed, image in enumerate(patches.images, start=config.seed)
    ]
    is_kept = np.array([bool(edit.kept[0]) for edit in edits])
    if not is_kept.any():
        raise DataError(
            f"generators.{network.target}: post-processing discards all {len(is_kept)} lesions "
            "that it makes"
        )
    rows = np.flatnonzero(is_kept)
    before = patches.take(rows)
    after = np.concatenate([edits[row].image for row in rows])
    discarded = float(1 - is_kept.mean())
    return EditedPatches(network.target, before, after, discarded)  # type: ignore[arg-type]


def spread_evenly(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
    """Spread what an edit adds evenly over the place of the edit: as much brighter, but flat.

    The place is where the edit changes at least a tenth of its largest change. Patches are float32
    [n, size, size, 1] in [0, 1].
    """
    change = after - before
    sizes = np.abs(change)
    place = sizes >= np.maximum(0.1 * sizes.max(axis=(1, 2, 3), keepdims=True), 1e-6)
    area = np.maximum(place.sum(axis=(1, 2, 3), keepdims=True), 1)
    mean = change.sum(axis=(1, 2, 3), keepdims=True) / area
    return np.clip(before + place * mean, 0, 1).astype(np.float32)


def measure_effect(edited: EditedPatches, baseline: Sequence[Path], config: StudyConfig) -> Effect:
    """Score patches before and after an edit, averaged over runs on real patches alone."""
    patches = edited.before.take(np.arange(min(config.effects, len(edited.before))))

    def score(images: NDArray[np.float32]) -> NDArray[np.float64]:
        scores = [
            predict_unseen(run, images, "probability", patches.patient_ids) for run in baseline
        ]
        return np.stack(scores).astype(np.float64).mean(axis=0)

    after = edited.after[: len(patches)]
    return Effect(
        edited.target,
        score(patches.images),
        score(after),
        score(spread_evenly(patches.images, after)),
        patches.patient_ids,
        patches.ids,
        edited.discarded,
    )


def add_realism(
    report: Report, edits: Sequence[EditedPatches], test: Patches, config: StudyConfig
) -> None:
    """Add how well a new classifier distinguishes edited patches from real ones of their new class.

    Real lesions for what added lesions, normal patches for what removed them; at most
    `config.effects` of each. The same patches before the edit show how far it had to go.
    """
    body = [_add_realism(report, edited, test, config) for edited in edits]
    title = (
        "How well a classifier that learns it distinguishes patches from real ones of the class "
        "that the edit leads to, unseen patients; AUC, 0.5 is best; in brackets: intervals by "
        "patient"
    )
    columns = ["generator", "patches", "real patches", "before the edit", "after it"]
    report.tables.append(Table(title, columns, body))


def _add_realism(
    report: Report, edited: EditedPatches, test: Patches, config: StudyConfig
) -> list[str]:
    kind = "normal" if edited.target == "removal" else edited.target
    is_real = test.kinds == kind
    if kind != "normal":
        is_real &= test.labels == 1
    rows = np.random.default_rng(config.seed).permutation(np.flatnonzero(is_real))
    real = test.take(rows[: config.effects])
    before = edited.before.take(np.arange(min(config.effects, len(edited.before))))
    facts = []
    for name, images in (
        (f"{edited.target}_before", before.images),
        (edited.target, edited.after[: len(before)]),
    ):
        area = estimate_area(
            real.images,
            images,
            real.patient_ids,
            before.patient_ids,
            size=min(128, config.experiment.data.size),
            level=config.level,
            seed=config.seed,
        )
        facts.append(AUC.make_fact("realism", name, "auc", area, **count_sizes(before.patient_ids)))
    report.facts += facts
    cells = [AUC.format_fact(fact) for fact in facts]
    return [edited.target, str(len(before)), str(len(real)), *cells]


def add_effects(report: Report, effects: Sequence[Effect], config: StudyConfig) -> None:
    """Add mean scores before and after, the mean change, and whether it is as intended."""
    body = [_add_effect(report, effect, config) for effect in effects]
    columns = [
        "generator",
        "patches of patients",
        "discarded, %",
        "before",
        "after",
        "change",
        "change if spread evenly",
        "change beyond that",
        "p",
        "adding raises, removing lowers",
    ]
    title = (
        "Score of a lesion by the classifiers trained on real patches alone; spread evenly: each "
        "patch as much brighter or darker at the same place, but flat; beyond that: after less "
        "spread evenly; intervals draw patients; "
        "p, two-sided: signs of patients' changes flipped, not corrected, because each generator "
        "is a question of its own"
    )
    report.tables.append(Table(title, columns, body))


def _add_effect(report: Report, effect: Effect, config: StudyConfig) -> list[str]:
    """Add the facts of one generator; return its line of the table."""
    sizes = count_sizes(effect.patients)
    count = sizes["patients"]
    levels = {
        "discarded": (SHARE, effect.discarded),
        "before": (SCORE, effect.before.mean()),
        "after": (SCORE, effect.after.mean()),
        "change_evenly": (SCORE, (effect.even - effect.before).mean()),
    }
    report.facts += [
        measure.make_fact("effects", effect.target, key, value, **sizes)
        for key, (measure, value) in levels.items()
    ]
    cells = {key: measure.show(value) for key, (measure, value) in levels.items()}
    facts = []
    for key, reference in (("change", effect.before), ("change_beyond", effect.even)):
        pair = effect.after, reference, effect.patients, *config.draws
        fact = SCORE.make_difference("effects", effect.target, key, *pair)
        facts.append(replace(fact, p_corrected=fact.p))
        # with the sign of a difference
        shown = replace(facts[-1], against="before")
        if key == "change":
            shown = replace(shown, p_corrected=np.nan)
        cells[key] = SCORE.format_fact(shown)
    report.facts += facts
    verdict = "too few patients for an interval or p (six)"
    if count >= FEWEST_PATIENTS:
        verdict = _describe_change(facts[0], config.level)
    return [
        effect.target,
        f"{len(effect.before)} of {count}",
        cells["discarded"],
        cells["before"],
        cells["after"],
        cells["change"],
        SCORE.show(levels["change_evenly"][1], "+"),
        cells["change_beyond"],
        format_p(facts[0].p),
        verdict,
    ]


def _describe_change(change: Fact, level: float) -> str:
    """Say whether adding raises the score, or removal lowers it."""
    if not change.p < 1 - level:
        return "no change shown"
    intended_sign = -1 if change.model == "removal" else 1
    return "as intended" if intended_sign * change.value > 0 else "the wrong way"


@dataclass(frozen=True, eq=False)
class Separation:
    """Scores of lesions and of normal patches, of test patients.

    Attributes:
        key: Names it in rows.
        lesions: What the lesions are.
        normal: What the normal patches are.
        labels: 1 for a lesion, int [n].
        scores: float64 [n].
        patients: str [n].
    """

    key: str
    lesions: str
    normal: str
    labels: NDArray[np.integer]
    scores: NDArray[np.float64]
    patients: NDArray[np.str_]

    @property
    def p(self) -> float:
        """Two-sided p of an area of one half; see `clustered_auc.chance_test`."""
        return chance_test(self.labels, self.scores, self.patients)


def separate(effects: Sequence[Effect]) -> list[Separation]:
    """Pair the lesions that generators added with the patches from which one removed lesions.

    All added lesions come first, then those of each generator, each followed by the trivial edit of
    the same size. Nothing is compared where nothing was added or nothing was removed.
    """
    adding = [effect for effect in effects if effect.target != "removal"]
    removing = [effect for effect in effects if effect.target == "removal"]
    if not adding or not removing:
        return []
    removed = np.concatenate([effect.after for effect in removing])
    groups = [adding] if len(adding) == 1 else [adding, *([effect] for effect in adding)]
    separations = []
    for group in groups:
        name = " and ".join(effect.target for effect in group)
        key = "+".join(effect.target for effect in group)
        patients = np.concatenate([effect.patients for effect in (*group, *removing)])
        pools = {
            (key, f"{name} added"): [effect.after for effect in group],
            (f"{key}_evenly", f"as much brighter as {name}, evenly"): [
                effect.even for effect in group
            ],
        }
        for names, scores in pools.items():
            added = np.concatenate(scores)
            labels = np.repeat([1, 0], [len(added), len(removed)])
            both = np.concatenate([added, removed])
            separations.append(Separation(*names, "lesion removed", labels, both, patients))
    return separations


def add_separation(
    report: Report,
    effects: Sequence[Effect],
    real: NDArray[np.float64],
    test: Patches,
    config: StudyConfig,
) -> None:
    """Add how well classifiers of real patches distinguish synthetic lesions from normal patches.

    A pool that classifiers are trained on has the tissue of training patients, which classifiers of
    real patches know; see `classification.Gate`. These patches are of test patients. `real` are the
    same classifiers' scores of the real ones.
    """
    synthetic = separate(effects)
    patients = np.asarray(test.patient_ids)
    of_real = Separation("real", "real lesion", "real normal", test.labels, real, patients)
    corrected = [*holm([pools.p for pools in synthetic]).tolist(), of_real.p]
    body = []
    for pools, p in zip([*synthetic, of_real], corrected, strict=True):
        lesions = int(pools.labels.sum())
        area = estimate_auc(pools.labels, pools.scores, pools.patients, config.level)
        fact = AUC.make_fact(
            "separation",
            pools.key,
            "auc",
            area,
            patients=len(set(pools.patients.tolist())),
            images=len(pools.labels),
            test=OBUCHOWSKI,
            p=pools.p,
            p_corrected=p,
        )
        report.facts.append(fact)
        counts = f"{lesions} and {len(pools.labels) - lesions}", str(fact.patients)
        body.append([pools.lesions, pools.normal, *counts, AUC.format_fact(fact), format_p(p)])
    title = (
        "Lesions distinguished from normal patches by the classifiers trained on real patches "
        "alone, on patients whom neither these nor the generators know; intervals and two-sided p "
        "against an area of one half by Obuchowski's variance, by patient, Holm's correction over "
        f"{len(synthetic)} synthetic rows"
    )
    header = ["lesions", "compared with", "patches", "patients", "AUC", "p"]
    report.tables.append(Table(title, header, body))


def make_effect_rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """Make the lines of effects.csv: one for each edited patch."""
    return [
        {
            "generator": effect.target,
            "id": name,
            "patient": patient,
            "before": before,
            "after": after,
            "spread_evenly": even,
        }
        for effect in effects
        for name, patient, before, after, even in zip(
            effect.ids.tolist(),
            effect.patients.tolist(),
            effect.before.tolist(),
            effect.after.tolist(),
            effect.even.tolist(),
            strict=True,
        )
    ]


def embed(
    run: Path, test: Patches, edits: Sequence[EditedPatches], config: StudyConfig
) -> tuple[list[str], NDArray[np.float64]]:
    """Embed real test patches and edited ones by t-SNE of the last feature layer of a classifier.

    Returns:
        The group of each patch, and its point, float64 [n, 2].
    """
    random = np.random.default_rng(config.seed)
    groups = {}
    for kind in ("normal", "calcification", "mass"):
        rows = random.permutation(np.flatnonzero(test.kinds == kind))[: config.tsne]
        patches = test.take(np.sort(rows))
        groups[f"real {kind}"] = patches.images, patches.patient_ids
    for edited in edits:
        groups[f"synthetic {KINDS[edited.target]}"] = (
            edited.after[: config.tsne],
            edited.before.patient_ids[: config.tsne],
        )
    names = [name for name, (images, _) in groups.items() for _ in images]
    features = np.concatenate(
        [
            predict_unseen(run, images, "features", patients)
            for images, patients in groups.values()
            if len(images)
        ]
    )
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=config.seed)
    return names, np.asarray(tsne.fit_transform(features), np.float64)


@plot_style
def draw_embedding(groups: Sequence[str], points: NDArray[np.float64]) -> Figure:
    """Draw the paper's Fig. 4 in its colours.

    Violet are edited patches without their lesion, which the paper does not show.
    """
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for group, colour in COLOURS.items():
        of_group = points[np.array(groups) == group]
        if len(of_group):
            label = f"{group}, {len(of_group)}"
            x, y = of_group.T
            axes.scatter(x, y, s=6, color=colour, alpha=0.7, linewidths=0, label=label)
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize=7, markerscale=2)
    axes.set_title("t-SNE of the last feature layer, trained on real patches alone")
    return figure
