"""Compare methods that blend lesions into normal tissue: what evaluate/blending.py writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfmammo.baselines.poisson import METHODS
from tfmammo.config import DataConfig
from tfmammo.data import datasets, splits
from tfmammo.data.labelled import make_blend_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation import sheets, texture
from tfmammo.evaluation.comparison import Comparison, ModelURIs, compare
from tfmammo.evaluation.perceptual import (
    SET_MEASURES,
    PatchSample,
    PerceptualConfig,
    PerceptualScorer,
    Scores,
    average_statistics,
)
from tfmammo.evaluation.realism import make_tri_labels
from tfmammo.evaluation.report import ComparisonReport, average_runs
from tfmammo.metrics import blending
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure
from tfmammo.models.blending import LESION, NORMAL, paste
from tfmammo.models.mask_gan import clean
from tfmammo.nn.layers import sample_latent_noise
from tfmammo.synthesis.compositing import blend_patch
from tfmammo.tracking import export

Images = NDArray[np.float32]
Masks = NDArray[np.uint8]
# Method -> the images of each of its runs, float32 [n, s, s, 1]
Outputs = Mapping[str, Sequence[Images]]

REAL = "real patches"
VANILLA = "vanilla GAN"
TISSUE = "tissue"
MEASURES = {
    "seam": Measure("seam: jumps across the border over those beside it", "", 1, 2),
    "contrast": Measure("contrast of the lesion", "", 1, 3),
    "l1_background": Measure("L1 of the background x 1000", "", 1000, 2),
    "gradient_background": Measure("gradient difference of the background x 1000", "", 1000, 2),
    **SET_MEASURES,
}
OF_LESION = ("seam", "contrast")
OF_BACKGROUND = ("l1_background", "gradient_background")
REPEATED = ("kid", "auc")  # also of each fold and run, by which the order of two methods is checked
RUNS_NOTE = (
    "Other tables average each patch over the runs of a network, and its runs' FID, KID and AUC as "
    "well. The sheet shows the first run."
)

DirectMethod = Literal["paste", "poisson", "mixed", "opencv", "opencv_mixed"]


class BlendingEvaluationConfig(PerceptualConfig):
    """Blending networks, inpainting networks, direct methods and a vanilla GAN.

    `models` are runs of train/blending.py, train/infilling.py or train/flow.py. `data` is the data
    section that they were trained with: its folds, seed and stratify decide which tissue a lesion
    is inserted into.
    """

    methods: tuple[DirectMethod, ...] = ("paste", "poisson", "mixed", "opencv", "opencv_mixed")
    """Direct methods of tfmammo.baselines.poisson."""
    vanilla: ModelURIs | None = None
    """Runs of train/vanilla_gan.py, or null."""
    feather: PositiveFloat | None = None
    """Also score the networks' images as a synthesis inserts them: their change alone, fading
    within so many px around the mask; null: do not. The paper takes the whole image.
    """


def evaluate(config: BlendingEvaluationConfig, output: Path) -> ComparisonReport:
    """Pair lesions and tissue, run every method, and write the table, CSVs and the sheet."""
    scorer = config.load_scorer()
    config.refuse_names(REAL, VANILLA, TISSUE, *METHODS)
    if config.patients != "unseen":
        raise ConfigError(
            "patients: lesions and tissue must be of patients that no model was trained on (unseen)"
        )
    lesions, tissue = pair_with_tissue(config.data, config.seed, output)
    comparison = run_networks(config, lesions, tissue)
    target = tissue.take(find_rows(lesions, comparison.patches))
    outputs, masks = run_methods(config, comparison, target, lesions)
    runs = {
        name: [
            score_images(images, masks[name], None if name in (REAL, VANILLA) else target.images)
            for images in of_runs
        ]
        for name, of_runs in outputs.items()
    }
    groups = group_patients(comparison.patches.patient_ids, target.patient_ids)
    scores = average_runs(runs)
    facts = summarize_images(scores, config, groups)
    fold_of = next(iter(comparison.folds.values()))
    facts += compare_sets(outputs, masks, scorer, config, groups, fold_of)
    texture_runs = {
        name: [texture.measure(images, comparison.patches) for images in of_runs]
        for name, of_runs in outputs.items()
        if name not in (REAL, VANILLA)
    }
    textures = {name: texture.average(of_runs) for name, of_runs in texture_runs.items()}
    of_groups = replace(comparison.patches, patient_ids=groups)
    facts += texture.summarize(textures, of_groups, config)
    facts += texture.summarize_folds(textures, fold_of)
    facts += texture.summarize_runs(texture_runs)
    scores = {name: values | textures.get(name, {}) for name, values in scores.items()}
    measures = scorer.mark_measures(MEASURES) | texture.MEASURES
    report = ComparisonReport(
        config=config, measures=measures, models_across=True, note=scorer.note
    )
    note = (
        "An image shows two patients, its lesion's and its tissue's. The units of intervals and "
        f"tests are groups of patients who share images, {len(set(groups.tolist()))} in all."
    )
    report.add(comparison, scores, facts, (*scorer.describe(), texture.NOTE, note))
    for key in OF_LESION:
        report.add_runs(comparison, runs, key, RUNS_NOTE)
    scorer.write_sources(output / "networks.json")
    panels = {TISSUE: target.images, **{name: of_runs[0] for name, of_runs in outputs.items()}}
    seams = {name: runs[name][0]["seam"] for name in textures}
    sheets.write_sheets(panels, seams, config.rows, config.seed, output / "sheet.png")
    report.write(output)
    return report


def pair_with_tissue(data: DataConfig, seed: int, output: Path) -> tuple[Patches, Patches]:
    """Draw a patch of normal tissue from the same fold for each lesion of an archive.

    All lesions of a patient come into the tissue of one other patient; see `pair_patients`.
    """
    split = datasets.pin_archive_split(data, output)
    patches = datasets.load_all_patches(split, make_blend_patches)
    lesions = patches.take(np.flatnonzero(patches.labels == LESION))
    normal = patches.take(np.flatnonzero(patches.labels == NORMAL))
    fold_of = splits.describe(patches, split, "").patients
    folds = np.array([str(fold_of[patient]) for patient in lesions.patient_ids.tolist()])
    normal_folds = np.array([str(fold_of[patient]) for patient in normal.patient_ids.tolist()])
    random = np.random.default_rng(seed)
    rows = np.empty(len(lesions), np.intp)
    for fold in sorted(set(folds.tolist())):
        of_tissue = set(normal.patient_ids[normal_folds == fold].tolist())
        if not of_tissue:
            raise DataError(
                f"fold {fold} has lesions, but no normal tissue to insert them into; "
                "data.sampling.normal=tissue takes it beside lesions"
            )
        partners = pair_patients(
            set(lesions.patient_ids[folds == fold].tolist()), of_tissue, random
        )
        for row in np.flatnonzero(folds == fold):
            partner = partners[str(lesions.patient_ids[row])]
            rows[row] = random.choice(np.flatnonzero(normal.patient_ids == partner))
    return lesions, normal.take(rows)


def pair_patients(
    with_lesions: set[str], with_tissue: set[str], random: np.random.Generator
) -> dict[str, str]:
    """Choose for each patient with lesions another one, who gives the tissue.

    An image shows two patients. So that few images share one, patients who have both form couples,
    in which each gives the other's tissue; three form a ring where they are odd in number. Patients
    with lesions alone get those with tissue alone in turn. A patient who is alone in having both
    gives the own tissue.
    """
    both = random.permutation(sorted(with_lesions & with_tissue)).tolist()
    rings = [both[start : start + 2] for start in range(0, len(both), 2)]
    if len(rings) > 1 and len(rings[-1]) == 1:
        rings[-2:] = [rings[-2] + rings[-1]]
    partners = {
        patient: ring[(place + 1) % len(ring)]
        for ring in rings
        for place, patient in enumerate(ring)
    }
    others = random.permutation(sorted(with_tissue - with_lesions)).tolist() or both
    lonely = sorted(with_lesions - with_tissue)
    return partners | {
        patient: others[number % len(others)] for number, patient in enumerate(lonely)
    }


def group_patients(first: NDArray[np.str_], second: NDArray[np.str_]) -> NDArray[np.str_]:
    """Name the group of patients of each image, who share images directly or by others, str [n].

    Images of different groups share no patient, so groups are independent.
    """
    names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    rows, columns = numbers.reshape(2, -1)
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    _, groups = connected_components(links, directed=False)
    _, heads = np.unique(groups, return_index=True)
    return names[heads[groups[rows]]]


def run_networks(config: BlendingEvaluationConfig, lesions: Patches, tissue: Patches) -> Comparison:
    """Run the networks on all lesions that each of them is eligible for.

    A blending network pastes the lesion into the tissue. A network that inpaints sees the tissue
    around the lesion's mask, and not the lesion.
    """

    def find_tissue(patches: Patches, card: Mapping[str, Any]) -> Patches:
        target = tissue.take(find_rows(lesions, patches))
        training_patients = sorted(export.get_training_patients(card, "the model"))
        if np.isin(target.patient_ids, training_patients).any():
            raise DataError(
                "a lesion would be inserted into tissue of a patient that its model was trained "
                "on; data.folds, seed and stratify must be those it was trained with"
            )
        return target

    def make_pasted(patches: Patches, card: Mapping[str, Any]) -> Images:
        target = find_tissue(patches, card)
        return paste(target.images, patches.images, patches.masks.astype(np.float32)).numpy()

    def make_holes(patches: Patches, card: Mapping[str, Any]) -> Images:
        target = replace(find_tissue(patches, card), masks=patches.masks)
        return make_tri_labels(target, card)

    shape = lesions.images.shape[1:]
    sources = {"pasted": make_pasted, "tri_label": make_holes}
    # The lesions are cut already: no pixel is read a second time.
    comparisons = compare(
        config, sources, "image", make=lambda *_: lesions, shape=shape, allow_repeats=True
    )
    return comparisons[0]


def find_rows(patches: Patches, some: Patches) -> NDArray[np.intp]:
    """Find the row in `patches` of each of some patches, by id."""
    row_of = {name: row for row, name in enumerate(patches.ids.tolist())}
    return np.array([row_of[name] for name in some.ids.tolist()], np.intp)


def run_methods(
    config: BlendingEvaluationConfig, comparison: Comparison, tissue: Patches, lesions: Patches
) -> tuple[dict[str, list[Images]], dict[str, Masks]]:
    """Collect the images of the networks, the direct methods, the vanilla GAN, and the real ones.

    Returns:
        Images of each run and masks by method, each [n, size, size, 1].
    """
    patches = comparison.patches

    def insert(images: Images, method: Callable[..., Images]) -> Images:
        triples = zip(tissue.images, images, patches.masks, strict=True)
        return np.stack([method(*triple) for triple in triples])

    outputs = dict(comparison.runs)
    if config.feather:
        blend = partial(blend_patch, feather=config.feather)
        for name, of_runs in comparison.runs.items():
            outputs[f"{name}, inserted"] = [insert(images, blend) for images in of_runs]
    for name in config.methods:
        outputs[name] = [insert(patches.images, METHODS[name])]
    masks = dict.fromkeys(outputs, patches.masks)
    if config.vanilla:
        images, masks[VANILLA] = sample_vanilla(config, patches, lesions)
        outputs[VANILLA] = [images]
    return outputs | {REAL: [patches.images]}, masks | {REAL: patches.masks}


def sample_vanilla(
    config: BlendingEvaluationConfig, patches: Patches, lesions: Patches
) -> tuple[Images, Masks]:
    """Sample one image and one clean mask of the vanilla GAN for each lesion.

    The fold that never saw the lesion's patient makes them.
    """
    vanilla = config.model_copy(update={"models": {VANILLA: config.vanilla}})
    shape = lesions.images.shape[1:]

    def make_noise(some: Patches, card: Mapping[str, Any]) -> Images:
        function = next(
            function
            for function in card["functions"].values()
            if set(function["inputs"]) == {"noise"}
        )
        dimensions = function["inputs"]["noise"]["shape"][1]
        return sample_latent_noise(len(lesions), dimensions, config.seed)[find_rows(lesions, some)]

    outputs = {}
    for target in ("image", "mask"):
        comparison = compare(
            vanilla, {"noise": make_noise}, target, make=lambda *_: lesions, shape=shape
        )[0]
        if comparison.patches.ids.tolist() != patches.ids.tolist():
            raise DataError(
                f"vanilla: is eligible for {len(comparison.patches)} patches and the other models "
                f"for {len(patches)}; they must be of one split"
            )
        outputs[target] = comparison.outputs[VANILLA]
    return outputs["image"], clean(outputs["mask"])


def score_images(images: Images, masks: Masks, tissue: Images | None) -> Scores:
    """Compute the measures of single images, without background where tissue is None."""
    scores = {
        "seam": blending.seam_strength(images, masks),
        "contrast": blending.lesion_contrast(images, masks),
    }
    if tissue is None:
        return scores | dict.fromkeys(OF_BACKGROUND, np.full(len(images), np.nan))
    return scores | blending.background_error(images, tissue, masks)


def summarize_images(
    scores: Mapping[str, Scores], config: BlendingEvaluationConfig, groups: NDArray[np.str_]
) -> list[Fact]:
    """Summarize the measures of single images, with groups of patients as units.

    The vanilla GAN is summarized apart, because some of its images may lack a lesion.
    """

    def summarize(names: Iterable[str], keys: tuple[str, ...]) -> list[Fact]:
        chosen = {name: scores[name] for name in names}
        return config.summarize(chosen, groups, {key: MEASURES[key] for key in keys})

    facts = summarize((name for name in scores if name != VANILLA), OF_LESION)
    if VANILLA in scores:
        pair = summarize((next(iter(scores)), VANILLA), OF_LESION)
        facts += [fact for fact in pair if fact.model == VANILLA]
    inserted = (name for name in scores if name not in (REAL, VANILLA))
    return facts + summarize(inserted, OF_BACKGROUND)


def compare_sets(
    outputs: Outputs,
    masks: Mapping[str, Masks],
    scorer: PerceptualScorer,
    config: BlendingEvaluationConfig,
    groups: NDArray[np.str_],
    fold_of: NDArray[np.intp],
) -> list[Fact]:
    """Measure whole sets: distances to the real patches, and a classifier two-sample test.

    Values are means over the runs of a method. KID and the classifier's area are also those of each
    fold, whose images one network of a run made, and of each run where there are several.
    """
    keys = {
        name: [name, *(f"{name}, run {run}" for run in range(1, len(of_runs)))]
        for name, of_runs in outputs.items()
    }
    images = {
        key: of_run
        for name, of_runs in outputs.items()
        for key, of_run in zip(keys[name], of_runs, strict=True)
    }
    mask_sets = {key: masks[name] for name in outputs for key in keys[name]}
    sets = {
        key: PatchSample(of_run, scorer.inception.features(of_run), groups)
        for key, of_run in images.items()
    }
    statistics = scorer.make_statistics(sets.pop(REAL), sets)
    tests = config.distinguish(images, mask_sets, groups, REAL)
    statistics["auc"] = {key: test.measure_area for key, test in tests.items()}
    averaged = {
        measure: {
            name: average_statistics([of_sets[key] for key in of_name])
            for name, of_name in keys.items()
            if name in of_sets
        }
        for measure, of_sets in statistics.items()
    }
    facts = scorer.compare(averaged, groups, MEASURES, config, REAL)
    everything = np.arange(len(groups))
    for key in REPEATED:
        measure, marked = MEASURES[key], scorer.mark_name(key)
        for fold in np.unique(fold_of):
            rows = np.flatnonzero(fold_of == fold)
            about = {"subset": f"fold={fold}", "images": len(rows)}
            facts += [
                measure.make_fact("folds", name, marked, statistic(rows), **about)
                for name, statistic in averaged[key].items()
            ]
        for name in averaged[key]:
            of_runs = [statistics[key][of_run](everything) for of_run in keys[name]]
            facts += measure.list_runs(name, marked, of_runs)
    return facts
