"""evaluate/blending.py on the phantom and on real exports of models whose images are known."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tests.facts import find, read_rows, read_scores
from tests.known_networks import Weightless
from tfmammo.archives import read_mammograms
from tfmammo.config import DataConfig, SamplingConfig
from tfmammo.data import datasets, splits
from tfmammo.data.labelled import make_blend_patches
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.blending import (
    BlendingEvaluationConfig,
    compare_sets,
    group_patients,
    pair_patients,
    pair_with_tissue,
)
from tfmammo.mammogram import Skipped
from tfmammo.metrics import blending
from tfmammo.tracking import export

SIZE = 32
FOLDS = 2


def fill_square(noise):
    """A bright square on grey, and its mask."""
    square = tf.pad(tf.ones([1, 16, 16, 1]), [[0, 0], [8, 8], [8, 8], [0, 0]])
    mask = tf.tile(square, [tf.shape(noise)[0], 1, 1, 1])
    grain = tf.random.stateless_uniform(tf.shape(mask), [0, 1], 0.0, 0.1)
    level = 0.3 + 0.1 * (noise[:, :1, tf.newaxis, tf.newaxis] + 1)
    return {"image": level + 0.4 * mask + grain, "mask": mask}


CHANNELS = (SIZE, SIZE, 3)
# one channel of what a network is given: the pasted lesion, the tissue, the hole
NETWORKS = {
    "pasted": (lambda pasted: {"image": pasted[..., 1:2]}, {"pasted": CHANNELS}),
    "untouched": (lambda pasted: {"image": pasted[..., :1]}, {"pasted": CHANNELS}),
    "hole": (lambda tri_label: {"image": tri_label[..., :1]}, {"tri_label": CHANNELS}),
    "vanilla": (fill_square, {"noise": (3,)}),
}


@pytest.fixture(scope="module")
def data():
    sampling = SamplingConfig(count=60, scale=(0.2, 0.3), normal="tissue", tissue=0.5)
    return DataConfig(
        size=SIZE, context=2, window=(0, 1), folds=FOLDS, phantoms=24, sampling=sampling
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory, data):
    """Name -> the folders of its folds, with the cards that a training writes."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: [] for name in NETWORKS}
    saved = splits.describe(splits.Mammograms.of(read_mammograms(data, Skipped())), data, "phantom")
    for fold in range(FOLDS):
        card = {
            "split": "patient",
            "train_patients": [name for name, place in saved.patients.items() if place != fold],
            "config": {"data": data.model_dump(mode="json")},
        }
        for name, (call, inputs) in NETWORKS.items():
            model = Weightless("generator", call, **inputs)
            folders[name].append(str(export.export(model, root / name / f"fold{fold}", card)))
    return folders


@pytest.fixture(scope="module")
def run(data, run_evaluate):
    """A function that runs the script: models and overrides -> its output folder."""

    def call(models, *overrides):
        archive = data.model_dump(mode="json", exclude={"root", "records", "split_file"})
        config = {"data": archive, "models": models, "samples": 200}
        small = ("alexnet=none", "inception=none", "folds=2", "steps=4", "feather=4")
        return run_evaluate("blending", config, *small, *overrides)

    return call


@pytest.fixture(scope="module")
def output(run, models):
    networks = {name: models[name] for name in ("pasted", "untouched", "hole")}
    return run(networks, f"vanilla={json.dumps(models['vanilla'])}")


@pytest.mark.long
def test_a_network_that_pastes_scores_as_direct_paste_does(output):
    facts = read_rows(output)

    def mean(model, measure):
        return find(facts, model, measure).value

    sets = ("lpips_pairs_random", "fid_random", "kid_random", "auc")
    for measure in ("seam", "contrast", "l1_background", "gradient_background", *sets):
        expected = pytest.approx(mean("paste", measure), rel=1e-5, abs=1e-6)
        assert mean("pasted", measure) == expected, measure
        inserted = mean("pasted, inserted", measure)
        assert inserted == expected, "a paste changes nothing outside the mask"
    assert mean("hole, inserted", "seam") > 0
    for fold in range(FOLDS):  # whose images one network of a method made
        for measure in ("kid_random", "auc"):
            pasted, paste = (
                find(facts, name, measure, "folds", subset=f"fold={fold}")
                for name in ("pasted", "paste")
            )
            # KID compares different groups of patients, of which a fold may have one
            expected = pytest.approx(paste.value, rel=1e-5, abs=1e-6, nan_ok=measure != "auc")
            assert pasted.value == expected and pasted.images > 0, measure
        textures = [
            find(facts, name, "haar_mass", "folds", subset=f"fold={fold}").value
            for name in ("paste", "pasted", "untouched")
        ]
        assert textures[0] == pytest.approx(1, rel=1e-4) == textures[1], "as the real lesion has"
        assert textures[2] != pytest.approx(1, rel=0.01)
    for method in ("paste", "poisson", "mixed", "opencv", "opencv_mixed", "untouched"):
        assert mean(method, "l1_background") == 0 == mean(method, "gradient_background")
    assert mean("poisson", "seam") < mean("paste", "seam")
    assert mean("paste", "haar_mass") == pytest.approx(1, rel=1e-4)
    assert mean("hole", "haar_mass") > 2, "noise has more texture than a lesion"
    assert mean("real patches", "contrast") > mean("untouched", "contrast")
    assert mean("vanilla GAN", "contrast") == pytest.approx(0.4, abs=0.02)
    # A hole is noise, 0.5 on average whatever the lesion; the tissue around it is as it was.
    assert mean("hole", "l1_background") == 0
    assert np.std([float(row["contrast"]) for row in read_scores(output, "hole")]) < 0.2
    assert mean("hole", "contrast") > mean("untouched", "contrast")
    assert mean("hole", "seam") > mean("paste", "seam")
    # tissue, three networks and what they insert, five methods, vanilla GAN, real
    assert cv2.imread(str(output / "sheet.png")).shape[1] >= 14 * SIZE
    table = (output / "table.md").read_text(encoding="utf-8")
    assert "random Inception" in table.splitlines()[0]
    areas = next(line for line in table.splitlines() if "AUC" in line)
    assert f"{mean('paste', 'auc'):.3f}" in areas, "of all folds, not of the last one"


@pytest.mark.long
def test_runs_of_one_fold_are_averaged(run, models):
    alone = ("untouched", "hole")
    networks = {"both": [uri for name in alone for uri in models[name]]}
    facts = read_rows(run(networks | {name: models[name] for name in alone}, "methods=[]"))
    for measure in ("seam", "contrast", "kid_random", "auc", "haar_mass"):
        values = [find(facts, name, measure).value for name in alone]
        mean = np.sqrt(np.prod(values)) if measure == "haar_mass" else np.mean(values)
        assert find(facts, "both", measure).value == pytest.approx(mean, rel=1e-5), measure
        assert values[0] != pytest.approx(values[1]), measure
        of_runs = [find(facts, "both", measure, "runs", subset=f"run={one}") for one in (0, 1)]
        assert [fact.value for fact in of_runs] == pytest.approx(values, rel=1e-5), measure
        inserted = find(facts, "both, inserted", measure, "runs", subset="run=1").value
        expected = find(facts, "hole, inserted", measure).value
        assert inserted == pytest.approx(expected, rel=1e-5), measure
    assert {fact.model for fact in facts if fact.table == "runs"} == {"both", "both, inserted"}
    for measure in ("kid_random", "auc"):
        both, *values = (
            find(facts, name, measure, "folds", subset="fold=1").value for name in ("both", *alone)
        )
        assert both == pytest.approx(np.mean(values), rel=1e-5, nan_ok=measure != "auc"), measure


@pytest.mark.long
def test_lesions_are_set_into_tissue_of_their_own_fold(output, data, tmp_path):
    lesions, tissue = pair_with_tissue(data, 0, tmp_path)
    saved = splits.load(output / datasets.SPLIT)
    assert len(lesions) == len(tissue) and {lesions.labels.min(), tissue.labels.max()} == {1, 0}
    pairs = zip(lesions.patient_ids.tolist(), tissue.patient_ids.tolist(), strict=True)
    for lesion, under in pairs:
        assert saved.patients[lesion] == saved.patients[under]
    seen = [float(row["seam"]) for row in read_scores(output, "untouched")]
    seams = blending.seam_strength(tissue.images, lesions.masks).tolist()
    assert seen == pytest.approx(seams, nan_ok=True)
    assert len({row["fold"] for row in read_scores(output, "pasted")}) == FOLDS


def test_patients_form_couples_so_that_groups_share_nobody():
    random = np.random.default_rng(0)
    seven = {f"p{number}" for number in range(7)}
    partners = pair_patients(seven | {"lesion"}, seven | {"tissue"}, random)
    assert set(partners) == seven | {"lesion"} and partners.pop("lesion") == "tissue"
    assert set(partners.values()) == seven and all(one != two for one, two in partners.items())
    first, second = (np.array(side) for side in zip(*partners.items(), strict=True))
    groups = group_patients(first, second)
    sizes = sorted(np.unique(groups, return_counts=True)[1].tolist())
    assert sizes == [2, 2, 3], "two couples and a ring of three"
    assert pair_patients({"a"}, {"a"}, random) == {"a": "a"}
    assert pair_patients({"a", "b"}, {"c"}, random) == {"a": "c", "b": "c"}
    together = group_patients(np.array(["a", "b", "d"]), np.array(["c", "c", "d"]))
    assert together[0] == together[1] != together[2], "who share one are one group"


def test_one_group_of_patients_leaves_the_classifier_out(caplog):
    scorer = SimpleNamespace(
        inception=SimpleNamespace(features=lambda images: images),
        make_statistics=lambda *_: {"kid": {}},
        mark_name=str,
        compare=lambda statistics, *_: [statistics["auc"]],
    )
    outputs = {name: [np.zeros((3, 8, 8, 1))] for name in ("paste", "real patches")}
    masks = {name: images for name, (images,) in outputs.items()}
    config = BlendingEvaluationConfig(models={"a": ("run",)})
    rows = compare_sets(outputs, masks, scorer, config, np.array(["a", "a", "a"]), None)
    assert rows == [{}] and "all images share patients" in caplog.text


@pytest.mark.long
def test_what_can_not_be_evaluated(run, models):
    for override, said in (
        ("patients=all", "patients"),
        ("data.folds=3", "data.folds"),
        ("models={poisson: x}", "models: poisson"),
    ):
        with pytest.raises((ConfigError, DataError), match=said):
            run({"pasted": models["pasted"]}, override)


@pytest.mark.long
def test_patches_to_blend(data):
    skipped = Skipped()
    patches = make_blend_patches(read_mammograms(data, Skipped()), data, skipped)
    lesions, normal = (patches.take(np.flatnonzero(patches.labels == label)) for label in (1, 0))
    assert patches.balanced and set(patches.labels.tolist()) == {0, 1}
    assert len(lesions) > 5 and len(normal) > 20
    assert not normal.masks.any() and np.all(lesions.masks.any(axis=(1, 2, 3)))
    border = lesions.masks.copy()
    border[:, 1:-1, 1:-1] = 0
    assert not border.any()
    tight = data.model_copy(update={"frame": "tight"})
    with pytest.raises(DataError, match="there is no lesion's patch in the archive"):
        make_blend_patches(read_mammograms(data, Skipped()), tight, skipped)
    assert any("touches the border of its patch" in reason for reason in skipped.reasons.values())
