"""evaluate/realism.py on a small archive in native form and on real exports of models
whose images are known.
"""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.facts import find, read_rows, read_scores
from tests.known_networks import Weightless, make_card
from tests.small_mammograms import write_discs
from tfmammo.config import DataConfig
from tfmammo.data import datasets, splits
from tfmammo.errors import ConfigError, WeightsError
from tfmammo.evaluation.comparison import EvaluationConfig
from tfmammo.evaluation.perceptual import PerceptualScorer
from tfmammo.metrics import perceptual
from tfmammo.metrics.summary import Measure
from tfmammo.nn.layers import patch_seeds, tri_label, uniform_noise
from tfmammo.tracking import export

SIZE = 32
FOLDS = 2
PATIENTS = 8
MODELS = ("G_unet", "G_unet-", "copier")


def know_infilling(channels=3):
    """Tissue, and 0.6 in the mass and half of it in the margin, if it sees one."""

    def infill(tri_label):
        tissue, mask, *margin = tf.unstack(tri_label, axis=-1)
        image = tissue * (1 - mask) + 0.6 * mask
        return {"image": (image * (1 - 0.5 * margin[0]) if margin else image)[..., tf.newaxis]}

    return Weightless("generator", infill, tri_label=(SIZE, SIZE, channels))


def know_copy(patch):
    """Always the patch it was given."""
    call = lambda mask: {"image": tf.zeros_like(mask) + patch}  # noqa: E731
    return Weightless("generator", call, mask=(SIZE, SIZE, 1))


def disc_in_tissue(disc, random):
    """Intensities of a bright disc in coarse noise, float64."""
    tissue = cv2.resize(random.random((12, 12)), disc.shape, interpolation=cv2.INTER_CUBIC)
    return 90 * disc + 120 * np.clip(tissue, 0, 1) + 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CDD-CESM's form: eight patients with two views each, a bright blot on tissue of its own in
    each.
    """
    root = tmp_path_factory.mktemp("archive")
    write_discs(root, PATIENTS, disc_in_tissue)
    return DataConfig(name="cdd_cesm", root=root, size=SIZE, folds=FOLDS)


@pytest.fixture(scope="module")
def patches(data):
    return datasets.load_all_patches(data)


@pytest.fixture(scope="module")
def models(tmp_path_factory, data, patches):
    """Name -> the folders of its folds, with the cards that a training writes."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: [] for name in MODELS}
    for name in MODELS:
        for fold in range(FOLDS):
            own = data.model_copy(update={"fold": fold})
            train, _ = splits.split(patches, own)
            model = know_infilling(2 if name == "G_unet-" else 3)
            model = know_copy(train.images[3]) if name == "copier" else model
            margin = {"margin": None if name == "G_unet-" else 316}
            card = make_card(patches, own, model=margin)
            folders[name].append(str(export.export(model, root / name / f"fold{fold}", card)))
    return folders


@pytest.fixture(scope="module")
def run(data, run_evaluate):
    """A function that runs the script: models and overrides -> its output folder."""

    def call(models, *overrides):
        archive = {"name": data.name, "root": str(data.root), "size": SIZE}
        config = {"data": archive, "models": models, "samples": 200}
        small = ("alexnet=none", "inception=none", "pairs=20", "steps=60")
        return run_evaluate("realism", config, *small, *overrides)

    return call


@pytest.fixture(scope="module")
def output(run, models):
    return run({name: models[name] for name in MODELS})


def synthetic(patches, margin):
    noise = uniform_noise(patch_seeds(patches.images, 0), SIZE)
    masks = patches.masks.astype(np.float32)
    label = tri_label(patches.images, masks, noise, margin).numpy()
    image = label[..., :1] * (1 - label[..., 1:2]) + 0.6 * label[..., 1:2]
    return image * (1 - 0.5 * label[..., 2:]) if margin else image


@pytest.mark.long
def test_each_model_gets_what_it_takes_and_is_measured(output, patches):
    facts = read_rows(output)
    assert [row["id"] for row in read_scores(output, "G_unet")] == patches.ids.tolist()
    scorer = perceptual.LPIPS("none", "none")
    inside = patches.masks > 0
    for name, margin in (("G_unet", 316), ("G_unet-", None)):
        generated = synthetic(patches, margin)
        distance = scorer.distance(patches.images, generated)
        scores = [float(row["lpips_random"]) for row in read_scores(output, name)]
        assert scores == pytest.approx(distance, abs=1e-5)
        assert find(facts, name, "lpips_random").value == pytest.approx(distance.mean(), abs=1e-5)
        errors = [
            np.abs(real - made)[region].mean()
            for real, made, region in zip(patches.images, generated, inside, strict=True)
        ]
        assert find(facts, name, "l1_mass").value == pytest.approx(np.mean(errors), abs=1e-5)
        assert -1 < find(facts, name, "ssim_mass").value < 0.9
        matrix = scorer.matrix(patches.images, generated)
        others = matrix[patches.patient_ids[:, np.newaxis] != patches.patient_ids].mean()
        found = find(facts, name, "lpips_pairs_random").value
        assert found == pytest.approx(others, abs=1e-4)
        assert distance.mean() < others, "a patch is nearer to its own real one"
    filled = np.where(inside, patches.images[inside].mean(), patches.images)
    distance = scorer.distance(patches.images, filled.astype(np.float32))
    rows = read_scores(output, "one intensity")
    assert [float(row["lpips_random"]) for row in rows] == pytest.approx(distance, abs=1e-5)
    assert {row["nearest_mass"] for row in rows} == {""}  # it was trained on nothing
    markdown = (output / "table.md").read_text(encoding="utf-8")
    notes = "; made with random AlexNet, no calibrated heads, random Inception"
    assert markdown.splitlines()[0].endswith(notes) and "as printed" not in markdown


@pytest.mark.long
def test_inside_the_mask_alone_the_real_tissue_is_around_every_model(run, models, patches, output):
    """The copier's patches of another tissue count in the mass alone."""
    inside = run({name: models[name] for name in ("G_unet", "copier")}, "inside=true")
    scorer = perceptual.LPIPS("none", "none")
    expected = np.where(patches.masks > 0, synthetic(patches, 316), patches.images)
    found = [float(row["lpips_random"]) for row in read_scores(inside, "G_unet")]
    assert found == pytest.approx(scorer.distance(patches.images, expected), abs=1e-5)
    part, whole = (find(read_rows(one), "copier", "lpips_random").value for one in (inside, output))
    assert part < whole


@pytest.mark.long
def test_sets_have_intervals_and_differences(output, patches):
    facts = read_rows(output)
    for measure in ("lpips_pairs_random", "fid_random", "kid_random", "auc", "ms_ssim"):
        fact, other = (find(facts, name, measure) for name in ("copier", "G_unet"))
        assert (fact.images, fact.patients) == (len(patches), PATIENTS)
        assert fact.low <= fact.value <= fact.high
        difference = find(facts, "copier", measure, "differences", "G_unet").value
        assert difference == pytest.approx(fact.value - other.value, rel=1e-3, abs=1e-4)
    copies, real = (find(facts, name, "ms_ssim").value for name in ("copier", "real patches"))
    assert copies > real
    assert find(facts, "one intensity", "auc").value > 0.9  # its masses have no grain
    inception = perceptual.Inception("none")
    features = [inception.features(one) for one in (patches.images, synthetic(patches, None))]
    fid, kid = (find(facts, "G_unet-", key) for key in ("fid_random", "kid_random"))
    assert fid.value == pytest.approx(perceptual.fid(*features), rel=1e-3)
    assert kid.value == pytest.approx(
        1000 * perceptual.mmd(*features, patches.patient_ids, patches.patient_ids), rel=1e-2
    )
    assert kid.unit == "0.001"


@pytest.mark.long
def test_planted_copies_are_flagged_and_real_patches_are_not(output, patches):
    facts = read_rows(output)
    copies = find(facts, "copier", "copy_random")
    assert copies.value == copies.high == 100 and copies.test == "rule of three"
    assert find(facts, "copier", "nearest_pixels").value == pytest.approx(0, abs=1e-6)
    assert find(facts, "real patches", "copy_random").value < 20
    assert 0.8 < find(facts, "real patches", "nearest_pixels").value < 1.2
    assert len(read_scores(output, "real patches")) == len(patches)


def test_whole_sets_are_compared_as_asked():
    """Statistics that are means of patches: their jackknife is Student's t of the patients'
    values.
    """
    values = {
        name: np.random.default_rng(row).normal(row, 1, 8)
        for row, name in enumerate(("A", "B", "C", "real"))
    }
    statistics = {
        "kid": {name: lambda rows, own=own: float(own[rows].mean()) for name, own in values.items()}
    }
    scorer = PerceptualScorer(SimpleNamespace(note=""), SimpleNamespace(note=""))
    settings = statistics, np.array(list("abcdefgh")), {"kid": Measure("KID", "", 1, 2)}
    config = EvaluationConfig(models={"A": "a"}, compare="pairs")
    facts = scorer.compare(*settings, config, "real")
    pairs = [(fact.model, fact.against) for fact in facts if fact.against]
    assert pairs == [("B", "A"), ("C", "A"), ("C", "B")]
    assert [fact.model for fact in facts if not fact.against] == ["A", "B", "C", "real"]
    expected = scipy.stats.ttest_1samp(values["C"] - values["B"], 0)
    fact = find(facts, "C", "kid", "differences", "B")
    difference = np.mean(values["C"] - values["B"])
    assert (fact.value, fact.p) == pytest.approx((difference, expected.pvalue))
    facts = scorer.compare(*settings, EvaluationConfig(models={"A": "a"}), "real")
    assert {fact.against for fact in facts} == {"", "A"}


def test_wrong_configs(run, models):
    for override, key in (
        ("data.size=16", "data.size: "),
        ("models={real patches: x}", "real patches"),
        ("sample=1", "sample: "),
        ("alexnett=x", "alexnett"),
        ("heads=nowhere.npz", "nowhere.npz"),
    ):
        with pytest.raises((ConfigError, WeightsError), match=key):
            run({"G_unet": models["G_unet"]}, override)
