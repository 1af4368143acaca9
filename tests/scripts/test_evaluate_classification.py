"""evaluate/classification.py and evaluate/contiguous.py on the phantom, with generators
that are known and tiny classifiers.
"""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import special, stats

from tests.facts import find, read_csv, read_rows
from tfmammo import archives
from tfmammo.archives.phantom import read
from tfmammo.config import DataConfig, dump
from tfmammo.data.patches import Patches
from tfmammo.data.sampling import is_normal
from tfmammo.errors import ConfigError, DataError, TrainingError
from tfmammo.evaluation.report import Report
from tfmammo.mammogram import Skipped
from tfmammo.metrics.classification import delong_test, roc_auc
from tfmammo.metrics.clustered_auc import obuchowski_variance, rank_swap_test
from tfmammo.metrics.summary import format_p
from tfmammo.models.classifier import ClassifierConfig
from tfmammo.studies import classification as study
from tfmammo.studies import classification_effects as effects
from tfmammo.studies import classification_report as report
from tfmammo.synthesis import patches
from tfmammo.synthesis.config import PatchSynthesisConfig
from tfmammo.synthesis.generators import find_best_weights, load_lesion_generator
from tfmammo.synthesis.patch_insertion import draw_contiguous
from tfmammo.synthesis.patches import PatchSet
from tfmammo.tracking import export

SAMPLING = {"count": 50, "scale": (0.25, 0.25), "offset": 10}
DATA = {
    "name": "phantom",
    "phantoms": 40,
    "size": 32,
    "stratify": "pathology",
    "sampling": SAMPLING,
}


@pytest.fixture(scope="module")
def subsets(tmp_path_factory):
    return study.split_subsets(
        DataConfig(**DATA), ClassifierConfig(), tmp_path_factory.mktemp("subsets")
    )


@pytest.fixture(scope="module")
def generators(subsets, tiny_contextual):
    known = set(subsets.train.patient_ids.tolist())
    make = lambda target: str(tiny_contextual(target, patients=known, idle=0.25))  # noqa: E731
    return {target: make(target) for target in ("mass", "removal")}


@pytest.fixture(scope="module")
def synthetic(generators, tmp_path_factory):
    return synthesize(generators, 6, tmp_path_factory.mktemp("synthetic") / "set")


def synthesize(generators, count, output):
    data = DataConfig(**DATA)
    synthesis = PatchSynthesisConfig(name="set", data=data, generators=generators, count=count)
    patches.synthesize(synthesis, output)
    return output


@pytest.fixture
def config(synthetic, generators, tracking_uri):
    """A function (**values) -> the study's config."""

    def make(**values):
        experiment = {
            "name": "classifier",
            "data": DATA,
            "training": {"steps": 2, "batch_size": 4, "steps_per_loop": 1, "precision": "float32"},
            "tracking": {"uri": tracking_uri, "system_metrics": False, "register_models": False},
            "model": {
                "weights": "none",
                "filters": 2,
                "blocks": (1, 1, 1, 1),
                "synthetic": str(synthetic),
            },
        }
        known = {"shares": (0, 0.5), "seeds": (0, 1), "controls": (), "effects": 6, "tsne": 8}
        known |= {"generators": generators, "tracking_uri": tracking_uri}
        return study.StudyConfig(**{"experiment": experiment, **known, **values})

    return make


def graded(lesion, normal=0.5):
    """A set whose lesions all score `lesion` and whose normal patches all score `normal`."""
    pools = {"real normal": 0.2, "real lesion": 0.8}
    pools |= {"synthetic normal": normal, "synthetic lesion": lesion}
    return study.Gate({name: np.full(4, score) for name, score in pools.items()})


@pytest.mark.long
def test_one_command_trains_tests_and_draws(config, subsets, tmp_path, call_script):
    study_config = config(seeds=(1,), controls=("pasted",))
    output = tmp_path / "study"
    (tmp_path / "config.yaml").write_text(dump(study_config), encoding="utf-8")
    arguments = ("--config", tmp_path / "config.yaml", "--output", output, "--allow")
    call_script("evaluate/classification", *arguments)
    folder = output / "report"
    figures = {"figure-roc.png", "figure-tsne.png"}
    tables = {f"{name}.csv" for name in ("rows", "scores", "effects", "tsne")}
    assert {path.name for path in folder.iterdir()} == {"table.md"} | figures | tables
    facts = read_rows(folder)
    scores = read_csv(folder / "scores.csv")
    labels = subsets.test.labels
    for share, model in (("0.0", "share0"), ("0.5", "share50")):
        own = [float(row["probability"]) for row in scores if float(row["share"]) == float(share)]
        area = find(facts, model, "auc", "runs", subset="run=1").value
        assert area == pytest.approx(roc_auc(labels, own), abs=1e-5)
    assert find(facts, "pasted", "auc", "controls").images == len(labels)
    assert {fact.table for fact in facts} >= {"gate", "effects", "separation", "moves", "delong"}
    assert find(facts, "mass", "auc", "realism").images
    said = (folder / "table.md").read_text(encoding="utf-8")
    assert "| 50 % |" in said and "0.846 (p 1e-04)" in said and "| removal |" in said
    assert "| mean intensity alone |" in said and "| synthetic lesion | 6 |" in said
    card = export.read_card(output / "runs/pasted/seed1/export")
    assert card["config"]["model"]["control"] == "pasted"
    points = Counter(row["group"] for row in read_csv(folder / "tsne.csv"))
    assert {"real normal", "real mass", "synthetic mass", "synthetic normal"} <= set(points)
    assert max(points.values()) == 8
    lines = read_csv(folder / "effects.csv")
    assert {row["generator"] for row in lines} == {"mass", "removal"} and len(lines) <= 12
    exports = {path: path.stat().st_mtime_ns for path in output.rglob("saved_model.pb")}
    assert len(exports) >= 2
    call_script("evaluate/classification", *arguments)
    # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in output.rglob("saved_model.pb")} == exports
    assert read_csv(folder / "scores.csv") == scores
    train = export.read_card(study.find_weights(output / "runs/share50/seed1"))["train_patients"]
    assert not set(train) & subsets.list_held_out_patients()
    (output / "runs/share50/seed1/train_patches").write_text("of a smaller set")
    with pytest.raises(TrainingError, match="its patches were others"):
        call_script("evaluate/classification", *arguments)


def test_a_set_chosen_by_a_scorer_is_refused_before_anything_is_trained(
    config, subsets, tiny_contextual, tmp_path, monkeypatch
):
    known = set(subsets.train.patient_ids.tolist())
    generators = {
        "mass": str(tiny_contextual(patients=known, judge_seed=1)),
        "removal": str(tiny_contextual("removal", patients=known)),
    }
    synthesize(generators, 2, tmp_path / "set")
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("it was trained"))
    plan = config()
    model = plan.experiment.model.model_copy(update={"synthetic": tmp_path / "set"})
    experiment = plan.experiment.model_copy(update={"model": model})
    plan = plan.model_copy(update={"experiment": experiment})
    with pytest.raises(ConfigError, match="set: a classifier of training.seed=1"):
        report.train_missing(plan, subsets, tmp_path / "runs")


def predict_mean_grey(folder, images, output, patients):
    """In place of a run: the probability is a patch's mean intensity."""
    return images.mean(axis=(1, 2, 3))


@pytest.mark.slow
def test_the_effect_is_the_paired_change_of_what_is_kept(config, subsets, monkeypatch):
    """Adding raises the mean by 0.3 times the softened disc, clipped; removal lowers it; what is
    discarded does not count.
    """
    monkeypatch.setattr(effects, "predict_unseen", predict_mean_grey)
    study = config(effects=8)
    networks = effects.open_generators(study)
    for target, sign in (("mass", 1), ("removal", -1)):
        edited = effects.edit_patches(networks[target], subsets.test, study)
        effect = effects.measure_effect(edited, [Path("a"), Path("b")], study)
        change = effect.after - effect.before
        assert 0 < len(change) <= 8
        assert np.all(sign * change > 0.01) and np.all(sign * change < 0.3 * np.pi / 16 * 1.5)
        wanted = subsets.test.pathologies == "malignant"
        if target == "mass":
            wanted = subsets.test.labels == 0
        assert set(effect.ids.tolist()) <= set(subsets.test.ids[wanted].tolist())
        assert effect.discarded == pytest.approx(1 - len(change) / min(8, wanted.sum()))
    report = Report(config=None)
    effects.add_effects(report, [effect], study)
    fact = find(report.facts, "removal", "change", "effects")
    assert fact.images == len(change) and fact.value == pytest.approx(change.mean())


@pytest.mark.slow
def test_an_added_mass_is_compared_with_real_masses_and_a_removed_one_with_real_tissue(config):
    """Masses brighten a patch; the network's do so, too, and its removal leaves a checkerboard."""
    random = np.random.default_rng(0)
    patients = np.array([f"{number:02d}" for number in range(20)])
    tissue = random.normal(0.3, 0.02, (3, 20, 32, 32, 1)).astype(np.float32)
    masses = tissue[0] + np.float32(0.3)
    test = Patches(
        np.concatenate([masses, tissue[1]]),
        np.zeros((40, 32, 32, 1), np.uint8),
        np.tile(patients, 2),
        np.arange(40).astype(str),
        kinds=np.repeat(["mass", "normal"], 20),
        labels=np.repeat([1, 0], 20).astype(np.int32),
    )
    before = replace(test.take(np.arange(20, 40)), images=tissue[2])
    checkerboard = np.indices((32, 32)).sum(0)[..., None] % 2 * np.float32(0.2)
    edits = [
        effects.EditedPatches("mass", before, before.images + np.float32(0.3), 0.0),
        effects.EditedPatches("removal", test.take(np.arange(20)), tissue[2] + checkerboard, 0.0),
    ]
    found = Report(config=None)
    effects.add_realism(found, edits, test, config(effects=20))
    unedited, edited = (
        find(found.facts, name, "auc", "realism") for name in ("mass_before", "mass")
    )
    assert unedited.value > 0.95 and edited.low < 0.5 < edited.high and edited.value < 0.8
    mass, removed = (
        find(found.facts, name, "auc", "realism") for name in ("removal_before", "removal")
    )
    assert mass.value > 0.95 and removed.value > 0.95
    (table,) = found.tables
    assert [row[:3] for row in table.body] == [["mass", "20", "20"], ["removal", "20", "20"]]


def test_the_trivial_edit_adds_as_much_at_the_same_place():
    """A cone of height 0.4 is spread over the pixels where it is 0.04 or higher."""
    rows, columns = np.mgrid[:16, :16]
    cone = np.maximum(0.4 - 0.08 * np.hypot(rows - 8, columns - 8), 0)[None, ..., None]
    before = np.full((2, 16, 16, 1), 0.3, np.float32)
    after = (before + np.concatenate([cone, np.zeros_like(cone)])).astype(np.float32)
    even = effects.spread_evenly(before, after)
    place = cone[0] >= 0.04
    assert even[0][place] == pytest.approx(0.3 + cone.sum() / place.sum(), abs=1e-5)
    assert np.array_equal(even[0][~place], before[0][~place])
    assert even[0].sum() == pytest.approx(after[0].sum(), abs=1e-3)
    assert np.array_equal(even[1], before[1])  # what was not edited


def test_the_verdict_says_what_the_test_shows(config):
    study = config(samples=2000)
    patients = np.array([f"p{i}" for i in range(12)])
    ids = np.array([f"i{i}" for i in range(12)])
    low = np.full(12, 0.2)
    high = np.full(12, 0.2) + np.linspace(0.1, 0.2, 12)

    def make(target, before, after):
        return effects.Effect(target, before, after, before, patients, ids, 0.0)

    noise = low + np.tile([0.1, -0.1], 6)
    moves = [(low, high), (high, low), (high, low), (low, noise)]
    targets = ("mass", "mass", "removal", "mass")
    changes = [make(target, *pair) for target, pair in zip(targets, moves, strict=True)]
    report = Report(config=None)
    effects.add_effects(report, changes, study)
    lines = report.tables[0].body
    verdicts = ["as intended", "the wrong way", "as intended", "no change shown"]
    assert [line[-1] for line in lines] == verdicts
    assert lines[0][3:5] == ["0.200", "0.350"] and lines[0][5].startswith("+0.150")
    assert lines[0][6] == "+0.000", "the trivial edit does nothing"
    fact = find(report.facts, "removal", "change_beyond", "effects")
    assert fact.value == pytest.approx(-0.15) and fact.p < 0.005 and fact.high < 0
    assert lines[0][7] == f"{lines[0][5]}\np = {float(lines[0][8]):.3f}"


def test_the_table_of_known_scores(config, subsets):
    """Shares 0 and 0.5 score at random, share 1 as the labels say: areas and p worked out by the
    metrics themselves.
    """
    study = config(shares=(0, 0.5, 1))
    labels = subsets.test.labels
    patients = np.array([f"p{i % 9}" for i in range(len(subsets.test))])
    test = replace(subsets.test, patient_ids=patients)
    random, other = np.random.default_rng(0).random((2, 2, len(labels)))
    scores = {0: random, 0.5: other, 1: labels + 0.1 * random}
    found = Report(config=None)
    report.add_areas(found, scores, test, study)
    facts = found.facts
    means = random.mean(axis=0)
    perfect = find(facts, "share100", "auc")
    expected = (1, pytest.approx(2 / 3, abs=1e-3), 1)  # the rule of three, 9 patients
    assert (perfect.value, perfect.low, perfect.high) == expected
    area = roc_auc(labels, means)
    deviation = obuchowski_variance(labels, means, patients)[0] ** 0.5 / (area * (1 - area))
    low, high = special.expit(
        special.logit(area) + stats.t.ppf(0.975, 8) * deviation * np.array([-1, 1])
    )
    first = find(facts, "share0", "auc")
    assert (first.value, first.low, first.high) == pytest.approx((area, low, high))
    grey = find(facts, "mean intensity", "auc").value
    assert grey == pytest.approx(roc_auc(labels, subsets.test.images.mean(axis=(1, 2, 3))))
    compare = lambda share: rank_swap_test(labels, scores[share].mean(0), means, patients)  # noqa: E731
    p = {share: compare(share) for share in (1, 0.5)}
    second = find(facts, "share100", "auc", "differences", "share0")
    assert second.value == pytest.approx(1 - area)
    assert p[1] < p[0.5] and (second.p, second.p_corrected) == (p[1], 2 * p[1]), "Holm"
    half = find(facts, "share50", "auc", "differences", "share0")
    assert half.p_corrected == max(p[0.5], 2 * p[1])
    for row in range(2):
        by_seed = find(facts, "share100", "auc", "differences", "share0", f"run={row}")
        expected = 2 * rank_swap_test(labels, scores[1][row], random[row], patients)
        assert by_seed.p_corrected == expected
    delong = find(facts, "share50", "auc", "delong", "share0")
    assert delong.p == pytest.approx(delong_test(labels, other.mean(axis=0), means)[1])
    (table,) = found.tables
    first, half, second, grey = table.body
    assert first[0] == "0 %" and first[3:6] == ["-"] * 3 and first[-1] == "0.829"
    assert second[:3] == ["100 %", "1.000\n[0.667, 1.000]", "1.000 ± 0.000"]
    assert second[-1] == "0.797 (p 1e-08)" and half[4] == format_p(delong.p)


def test_the_table_of_controls_compares_with_real_patches_alone_and_with_synthetic_ones(
    config, subsets
):
    """Pasted lesions score as the labels say and copies at random, as share 0 and 0.5 do."""
    study = config(controls=("copies", "pasted"))
    labels = subsets.test.labels
    patients = np.array([f"p{i % 9}" for i in range(len(subsets.test))])
    test = replace(subsets.test, patient_ids=patients)
    alone, half, copies = np.random.default_rng(1).random((3, 2, len(labels)))
    perfect = labels + 0.1 * alone
    controls = {"copies": copies, "pasted": perfect}
    found = Report(config=None)
    report.add_controls(found, controls, {0: alone, 0.5: half}, test, study)
    areas = [roc_auc(labels, scores.mean(axis=0)) for scores in (alone, half, copies)]
    assert find(found.facts, "copies", "auc", "controls").value == areas[2]
    for pair, reference, sign in (
        (lambda name: (name, "share0"), alone, 1),
        (lambda name: ("share50", name), half, -1),
    ):
        p = [
            rank_swap_test(labels, scores.mean(axis=0), reference.mean(axis=0), patients)
            for scores in (copies, perfect)
        ]
        model, against = pair("pasted")
        fact = find(found.facts, model, "auc", "controls", against)
        area = roc_auc(labels, reference.mean(axis=0))
        assert fact.value == pytest.approx(sign * (1 - area))
        assert p[1] < p[0] and fact.p_corrected == 4 * p[1]  # of four comparisons in the table
        assert fact.low < fact.value < fact.high
    (table,) = found.tables
    assert table.body[1][2] == "1.000, 1.000" and "(50 %)" in table.header[4]


def test_of_few_patients_there_is_a_sentence_and_no_number(config, subsets):
    patients = np.array([f"p{i % 5}" for i in range(len(subsets.test))])
    test = replace(subsets.test, patient_ids=patients)
    study = config()
    random = np.random.default_rng(0).random((2, 2, len(test)))
    scores = {0: random[0], 0.5: random[1]}
    found = Report(config=None)
    report.add_areas(found, scores, test, study)
    for key in ("low", "high", "p", "p_corrected"):
        assert np.isnan([getattr(fact, key) for fact in found.facts]).all()
    (table,) = found.tables
    assert "of 5 patients: too few patients" in table.title and "Holm" not in table.title
    ids = np.array(["a", "b", "c", "d", "e"])
    few = effects.Effect("mass", np.full(5, 0.1), np.full(5, 0.3), np.full(5, 0.2), ids, ids, 0.0)
    effects.add_effects(found, [few], study)
    line = found.tables[1].body[0]
    assert line[5:8] == ["+0.200", "+0.100", "+0.100"] and line[8] == "-"


def test_added_lesions_are_told_from_removed_ones_on_unseen_patients(config, subsets):
    """The area counts pairs of an added and a removed lesion, with ties as halves; patients are
    units.
    """
    ids = np.array([f"p{i}" for i in range(8)])
    half = np.full(8, 0.5)

    def edit(target, after):
        return effects.Effect(target, half, np.asarray(after, float), half, ids, ids, 0.0)

    removed = edit("removal", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    mass = edit("mass", [0.85, 0.75, 0.95, 0.9, 0.99, 0.25, 0.9, 0.85])
    speck = edit("calcification", removed.after[::-1])
    test = subsets.test
    found = Report(config=None)
    real = test.labels.astype(float)
    effects.add_separation(found, [mass, speck, removed], real, test, config())
    area = (6 * 8 + 7 + 2) / 64  # six above all, one above seven, one above two
    expected = {
        "mass+calcification": (area + 0.5) / 2,
        "mass+calcification_evenly": 4.5 / 8,
        "mass": area,
        "mass_evenly": 4.5 / 8,
        "calcification": 0.5,
        "calcification_evenly": 4.5 / 8,
        "real": 1,
    }
    assert {fact.model: fact.value for fact in found.facts} == pytest.approx(expected)
    fact = find(found.facts, "mass", "auc", "separation")
    assert (fact.patients, fact.images) == (8, 16) and fact.low < area < fact.high
    assert found.tables[0].body[2][1:4] == ["lesion removed", "8 and 8", "8"]
    one, other = effects.separate([mass, removed]), effects.separate([mass, speck])
    assert len(one) == 2 and other == []
    labels, scores, patients = one[0].labels, one[0].scores, one[0].patients
    area = roc_auc(labels, scores)
    deviation = obuchowski_variance(labels, scores, patients)[0] ** 0.5 / (area * (1 - area))
    assert one[0].p == pytest.approx(2 * stats.t.sf(np.log(area / (1 - area)) / deviation, 7))
    few = effects.Separation("k", "a", "b", labels[3:13], scores[3:13], patients[3:13])
    assert np.isnan(few.p)


@pytest.mark.long
def test_a_set_whose_lesions_do_not_outscore_its_normal_patches_is_refused(
    config, subsets, tmp_path, monkeypatch
):
    """A study of such a set ends before any share of it is trained on; --allow goes on, and says so
    over every table.
    """
    seen = []
    monkeypatch.setattr(study, "train", lambda experiment, *_: seen.append(experiment.model.share))
    monkeypatch.setattr(study, "score_synthetic_set", lambda *_: graded(0.4))
    with pytest.raises(DataError, match="AUC 0.000"):
        report.train_missing(config(), subsets, tmp_path)
    assert seen == [0, 0]
    _, gate = report.train_missing(config(), subsets, tmp_path, allow=True)
    assert seen[2:] == [0, 0, 0.5, 0.5]
    assert not gate.is_passed and not graded(0.5).is_passed and graded(0.6).is_passed
    assert "AUC 0.000" in report.describe_failure(gate)
    found = Report(config=None)
    report.add_gate(found, gate)
    assert find(found.facts, "synthetic", "auc", "gate").value == 0
    assert find(found.facts, "real", "auc", "gate").value == 1
    fact = find(found.facts, "synthetic", "score_lesion", "gate")
    assert fact.value == pytest.approx(0.4) and fact.images == 4
    assert "do NOT outscore" in found.tables[0].title


def test_the_gate_scores_both_pools_and_unseen_real_patches(subsets, synthetic, monkeypatch):
    """By mean intensities: the discs that were added are 0.3 brighter than the tissue, the removals
    darker.
    """
    predict = lambda run, images: images.mean(axis=(1, 2, 3)).astype(np.float64)  # noqa: E731
    monkeypatch.setattr(study, "predict_probabilities", predict)
    patch_set = PatchSet.read(synthetic)
    gate = study.score_synthetic_set([Path("a"), Path("b")], patch_set, subsets.validation)
    lesions = int(subsets.validation.labels.sum())
    real = {"real normal": len(subsets.validation) - lesions, "real lesion": lesions}
    synthetic_too = real | {"synthetic normal": 6, "synthetic lesion": 6}
    assert {name: len(scores) for name, scores in gate.scores.items()} == synthetic_too
    grey = patch_set.patches.images.mean(axis=(1, 2, 3))
    assert gate.auc == pytest.approx(roc_auc(patch_set.patches.kinds == "mass", grey))


def test_the_figure_shows_what_generators_make_of_patients_that_the_classifier_never_saw(
    config, subsets, monkeypatch
):
    shown = []

    def predict_unseen(folder, images, output, patients):
        assert len(images) == len(patients), "every patch's patient is checked"
        shown.append(set(patients.tolist()))
        return np.random.default_rng(len(images)).random((len(images), 4))

    monkeypatch.setattr(effects, "predict_unseen", predict_unseen)
    study = config()
    changes = [
        effects.edit_patches(network, subsets.test, study)
        for network in effects.open_generators(study).values()
    ]
    groups, points = effects.embed(Path("run"), subsets.test, changes, study)
    assert {"synthetic mass", "synthetic normal", "real normal"} <= set(groups)
    assert len(points) == len(groups)
    assert len(shown) >= 4 and set.union(*shown) <= set(subsets.test.patient_ids.tolist())


def test_the_best_weights_of_a_generators_training_are_taken(tiny_contextual, tmp_path):
    last, best = (Path(tiny_contextual(level=level)) for level in (0.6, 0.4))
    shutil.copytree(last, tmp_path / "run/export")
    assert find_best_weights(str(tmp_path / "run"), None) == tmp_path / "run/export"
    shutil.copytree(best, tmp_path / "run/best")
    assert find_best_weights(str(tmp_path / "run"), None) == tmp_path / "run/best"
    named = find_best_weights(str(tmp_path / "run/export"), None)
    assert named == tmp_path / "run/export", "what is named itself"


def test_bad_input_is_one_sentence(config, subsets, tiny_contextual, generators):
    for wrong, said in (
        (generators["removal"], "generators.mass: .*model.target"),
        (tiny_contextual(window=(0, 1)), "generators.mass: .*window"),
    ):
        with pytest.raises(DataError, match=said):
            effects.open_generators(config(generators={"mass": str(wrong)}))
    known = set(subsets.test.patient_ids.tolist())
    lesions = subsets.test.take(np.flatnonzero(subsets.test.labels == 1))
    for folder, patches_to_edit in (
        (tiny_contextual(patients=known), subsets.test),
        (generators["mass"], lesions),
    ):
        with pytest.raises(DataError, match="generators.mass"):
            effects.edit_patches(load_lesion_generator(Path(folder)), patches_to_edit, config())
    chosen = {"mass": str(tiny_contextual(judge_seed=1))}
    effects.open_generators(config(generators=chosen, seeds=(0, 2)))
    with pytest.raises(ConfigError, match="generators.mass: .*training.seed=1"):
        effects.open_generators(config(generators=chosen, seeds=(0, 1)))
    for shares in ((0.5, 0), (), (0, 2)):
        with pytest.raises(ValueError, match="shares"):
            config(shares=shares)
    with pytest.raises(ValueError, match="seeds"):
        config(seeds=(1, 1))


@pytest.mark.slow
def test_lesions_side_by_side_are_put_back(repository, tiny_contextual, tmp_path, call_script):
    """Beyond the windows every value is the source's; within, a disc of side / 2 brightens by 0.3
    of the patch's contrast.
    """
    output = tmp_path / "out"
    folder = tiny_contextual("mass", level=0.4)
    arguments = ("--set", "data.phantoms=12", f"generator={folder}", "count=3", "--output", output)
    call_script(
        "evaluate/contiguous", "--config", repository / "configs/contiguous.yaml", *arguments
    )
    rows = read_csv(output / "boxes.csv")
    assert len(rows) == 3 and (output / "figure-contiguous.png").is_file()
    phantoms = read(None, Skipped(), count=12, seed=0)
    (source,) = [one for one in phantoms if one.image_id == rows[0]["image_id"]]
    assert is_normal(source)
    picture = cv2.imread(str(output / "mammogram.png"), cv2.IMREAD_UNCHANGED).astype(np.int32)
    before = archives.read_stored(source).values.astype(np.int32)
    inside = np.zeros(before.shape, bool)
    corners = ("row_min", "col_min", "row_max", "col_max")
    tops = [[int(row[name]) for name in corners] for row in rows]
    for top, left, bottom, right in tops:
        assert bottom - top == right - left == 128
        inside[top:bottom, left:right] = True
        change = (picture - before)[top:bottom, left:right] / 65535
        assert change.min() >= 0 and change[64, 64] > 0.02
        window = before[top:bottom, left:right] / 65535
        small = cv2.resize(window, (32, 32), interpolation=cv2.INTER_AREA)
        low, high = np.percentile(small, (0.5, 99.5))
        assert change[64, 64] == pytest.approx(0.2 * (high - low), rel=0.05)
        assert not change[:16].any()  # the disc's radius is a quarter, its edge a few px
    np.testing.assert_array_equal(picture[~inside], before[~inside])
    sides = ({(box[axis], box[axis + 2]) for box in tops} for axis in (0, 1))
    assert min(map(len, sides)) == 1, "in one row or one column"
    lesion = [int(rows[0][f"lesion_{name}"]) for name in ("row_min", "row_max")]
    assert lesion[1] - lesion[0] == pytest.approx(64, abs=4)


@pytest.mark.slow
def test_contiguous_boxes_and_where_there_is_no_room(
    repository, tiny_contextual, tmp_path, call_script
):
    breast = np.zeros((60, 100, 1), np.uint8)
    breast[20:40, 10:70] = 1
    none = np.zeros_like(breast)
    places = draw_contiguous(breast, none, 20, 3, 1.0, np.random.default_rng(0))
    assert places == [(20, 10, 40, 30), (20, 30, 40, 50), (20, 50, 40, 70)]
    turned = (np.ascontiguousarray(one.transpose(1, 0, 2)) for one in (breast, none))
    upright = draw_contiguous(*turned, 20, 3, 1.0, np.random.default_rng(0))
    assert upright == [(10, 20, 30, 40), (30, 20, 50, 40), (50, 20, 70, 40)]
    with pytest.raises(DataError, match="20 px"):
        draw_contiguous(breast, none, 20, 4, 0.9, np.random.default_rng(0))
    none[30, 40] = 1
    with pytest.raises(DataError, match="no 3 squares"):
        draw_contiguous(breast, none, 20, 3, 1.0, np.random.default_rng(0))
    for overrides, said in (
        ([f"generator={tiny_contextual('removal')}"], "removes lesions"),
        ([f"generator={tiny_contextual()}", "only=nobody"], "only: nobody is none of"),
        ([f"generator={tiny_contextual()}", "count=40"], "room for the patches"),
    ):
        options = ("--config", repository / "configs/contiguous.yaml", "--output", tmp_path)
        with pytest.raises((ConfigError, DataError), match=said):
            call_script("evaluate/contiguous", *options, "--set", "data.phantoms=3", *overrides)
