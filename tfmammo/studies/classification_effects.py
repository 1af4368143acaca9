"""What generators do to the score of a classifier, and t-SNE of its features.

Generators edit test patches, of patients that neither they nor the classifiers know. The scores
before and after are compared by a permutation test that flips the signs of whole patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.metrics.clustered_auc import chance_test, estimate_auc
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.segmentation import Paired, paired_test
from tfmammo.metrics.significance import FEWEST_PATIENTS, holm
from tfmammo.metrics.summary import Table, format_p, format_p_line
from tfmammo.studies.classification import StudyConfig, check_judge, predict_unseen
from tfmammo.synthesis.config import KINDS, Target
from tfmammo.synthesis.generators import LesionGenerator, find_best_weights, load_lesion_generator
from tfmammo.synthesis.patch_set import describe_scale

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

    def test(self, samples: int, seed: int, level: float) -> Paired:
        """Test the mean change; patients are flipped whole."""
        return paired_test(self.after, self.before, self.patients, samples, seed, level)


def open_generators(config: StudyConfig) -> dict[Target, LesionGenerator]:
    """Open the generators of the config.

    Raises:
        DataError: One was trained for something else, or on patches of another size or scale.
        ConfigError: A classifier of one of the study's seeds chose its weights.
    """
    generators = {
        target: load_lesion_generator(find_best_weights(uri, config.tracking_uri))
        for target, uri in (config.generators or {}).items()
    }
    data = config.experiment.data
    for target, network in generators.items():
        check_judge(f"generators.{target}", network.judge_seed, config.seeds)
        if network.target != target:
            raise DataError(f"generators.{target}: was trained with model.target={network.target}")
        if network.size != data.size:
            raise DataError(
                f"generators.{target}: makes patches of {network.size} px, experiment.data.size "
                f"is {data.size}"
            )
        scale = describe_scale(data)
        generator_scale = describe_scale(network.data)
        if generator_scale != scale:
            raise DataError(
                f"generators.{target}: was trained on patches made with {generator_scale}, "
                f"experiment.data makes them with {scale}"
            )
    return generators


def edit_patches(network: LesionGenerator, test: Patches, config: StudyConfig) -> EditedPatches:
    """Add or remove lesions on test patches, as many as effects and t-SNE need.

    Raises:
        DataError: The generator knows a test patient, there is no patch for it, or post-processing
            discards every edit.
    """
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
    if known := network.patients & set(patches.patient_ids.tolist()):
        raise DataError(
            f"generators.{network.target}: was trained on {len(known)} patients of the test "
            "patches; the same data section splits alike"
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

    The place is where the edit changes at least a tenth of its largest change.

    Args:
        before: float32 [n, size, size, 1] in [0, 1].
        after: The same patches after an edit.

    Returns:
        The patches before, with the mean change of each at its place, within [0, 1].
    """
    change = after - before
    sizes = np.abs(change)
    place = sizes >= np.maximum(0.1 * sizes.max(axis=(1, 2, 3), keepdims=True), 1e-6)
    area = np.maximum(place.sum(axis=(1, 2, 3), keepdims=True), 1)
    mean = change.sum(axis=(1, 2, 3), keepdims=True) / area
    return np.clip(before + place * mean, 0, 1).astype(np.float32)


def measure_effect(edited: EditedPatches, baseline: Sequence[Path], config: StudyConfig) -> Effect:
    """Score patches before and after a generator edited them.

    Args:
        edited: The patches.
        baseline: Runs on real patches alone; their scores are averaged.
        config: How many patches count.
    """
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


def tabulate_effects(effects: Sequence[Effect], config: StudyConfig) -> Table:
    """Tabulate mean scores before and after, the mean change, and whether it is as intended."""
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
        "p, two-sided: signs of patients' changes flipped, not corrected, each generator being a "
        "question of its own"
    )
    return Table(title, columns, [_make_effect_row(effect, config) for effect in effects])


def _make_effect_row(effect: Effect, config: StudyConfig) -> list[str]:
    test = effect.test(config.samples, config.seed, config.level)
    patients = len(set(effect.patients.tolist()))
    beyond = paired_test(
        effect.after, effect.even, effect.patients, config.samples, config.seed, config.level
    )
    cells = [f"{one.difference:+.3f}" for one in (test, beyond)]
    if patients < FEWEST_PATIENTS:
        verdict = "too few patients for an interval or p (six)"
    else:
        intervals = [f"\n[{one.low:+.3f}, {one.high:+.3f}]" for one in (test, beyond)]
        cells = [cell + interval for cell, interval in zip(cells, intervals, strict=True)]
        cells[1] += format_p_line(beyond.p)
        verdict = _describe_change(test, effect.target, config.level)
    return [
        effect.target,
        f"{len(effect.before)} of {patients}",
        f"{100 * effect.discarded:.1f}",
        f"{effect.before.mean():.3f}",
        f"{effect.after.mean():.3f}",
        cells[0],
        f"{(effect.even - effect.before).mean():+.3f}",
        cells[1],
        format_p(test.p),
        verdict,
    ]


def _describe_change(test: Paired, target: str, level: float) -> str:
    """Say whether adding raises the score, or removal lowers it."""
    if not test.p < 1 - level:
        return "no change shown"
    intended_sign = -1 if target == "removal" else 1
    return "as wanted" if intended_sign * test.difference > 0 else "the wrong way"


@dataclass(frozen=True, eq=False)
class Separation:
    """Scores of lesions beside those of normal patches, of test patients.

    Attributes:
        lesions: What the lesions are.
        normal: What the normal patches are.
        labels: 1 for a lesion, int [n].
        scores: float64 [n].
        patients: str [n].
    """

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
    """Set the lesions that generators added beside the patches from which one removed lesions.

    All added lesions come first, then those of each generator, each beside the trivial edit of the
    same size. Nothing is compared where nothing was added or nothing was removed.
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
        patients = np.concatenate([effect.patients for effect in (*group, *removing)])
        pools = {
            f"{name} added": [effect.after for effect in group],
            f"as much brighter as {name}, evenly": [effect.even for effect in group],
        }
        for lesions, scores in pools.items():
            added = np.concatenate(scores)
            labels = np.repeat([1, 0], [len(added), len(removed)])
            both = np.concatenate([added, removed])
            separations.append(Separation(lesions, "lesion removed", labels, both, patients))
    return separations


def tabulate_separation(
    effects: Sequence[Effect], real: NDArray[np.float64], test: Patches, config: StudyConfig
) -> Table:
    """Tabulate how well classifiers of real patches tell synthetic lesions from normal patches.

    A pool that classifiers are trained on has the tissue of training patients, which classifiers of
    real patches know; see `classification.Gate`. These patches are of test patients.

    Args:
        effects: Of every generator; nothing synthetic is compared without "removal".
        real: The same classifiers' scores of the real test patches, averaged, float64 [n].
        test: These patches.
        config: The confidence level.
    """
    synthetic = separate(effects)
    beside = Separation(
        "real lesion", "real normal", test.labels, real, np.asarray(test.patient_ids)
    )
    corrected = [*holm([pools.p for pools in synthetic]).tolist(), beside.p]
    rows = []
    for pools, p in zip([*synthetic, beside], corrected, strict=True):
        lesions = int(pools.labels.sum())
        rows.append(
            [
                pools.lesions,
                pools.normal,
                f"{lesions} and {len(pools.labels) - lesions}",
                str(len(set(pools.patients.tolist()))),
                format_area(pools.labels, pools.scores, pools.patients, config.level),
                format_p(p),
            ]
        )
    title = (
        "Lesions told from normal patches by the classifiers trained on real patches alone, on "
        "patients whom neither these nor the generators know; intervals and two-sided p against "
        "an area of one half by Obuchowski's variance, by patient, Holm's correction over "
        f"{len(synthetic)} synthetic rows"
    )
    return Table(title, ["lesions", "beside", "patches", "patients", "AUC", "p"], rows)


def format_area(
    labels: NDArray[np.integer],
    scores: NDArray[np.float64],
    patients: NDArray[np.str_],
    level: float,
) -> str:
    """Format an area under a ROC curve and, if there are enough patients, its interval."""
    area = estimate_auc(labels, scores, patients, level)
    interval = "" if np.isnan(area.low) else f"\n[{area.low:.3f}, {area.high:.3f}]"
    return f"{area.value:.3f}{interval}"


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
    """Embed real test patches and edited ones by t-SNE of the last feature layer.

    Args:
        run: The classifier's.
        test: Real patches.
        edits: What each generator made of test patches.
        config: How many patches of each group are embedded.

    Returns:
        The group of each patch, and its point, float64 [n, 2].

    Raises:
        DataError: The classifier knows a patient.
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
    return names, tsne.fit_transform(features).astype(np.float64)


@plot_style
def draw_embedding(groups: Sequence[str], points: NDArray[np.float64]) -> Figure:
    """Draw the paper's Fig. 4 in its colours.

    Violet are edited patches without their lesion, which the paper does not show.

    Args:
        groups: The group of each point [n].
        points: float64 [n, 2].
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
