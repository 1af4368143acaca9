"""Pairs that differ by one lesion, scores, and a whole stress test with blob detectors."""

import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from tests.commands import run_module_here
from tests.facts import find, read_csv, read_rows
from tfmammo import archives
from tfmammo.apps.stress import analysis, pairs, prediction, scoring, work
from tfmammo.apps.stress.__main__ import choose
from tfmammo.apps.stress.config import MethodConfig, StressConfig
from tfmammo.apps.stress.detectors import OneByOne, read_unknown
from tfmammo.apps.stress.pairs import Condition, Inserter
from tfmammo.apps.stress.prediction import Prediction
from tfmammo.apps.stress.scoring import Outcome, Trial
from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.data.sampling import is_normal, select_lesions
from tfmammo.detection.detections import Detections, Detector
from tfmammo.errors import ArchiveError, ConfigError, DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.rows import read_facts
from tfmammo.metrics.significance import holm

PHANTOMS = 12
DATA = DataConfig(phantoms=PHANTOMS)
KINDS = ("mass",)


def make_config(**values):
    return StressConfig(**{"data": DATA, "detectors": {"none": "none"}, **values})


@pytest.fixture(scope="module")
def normal():
    return next(each for each in phantom.read(count=PHANTOMS) if is_normal(each))


def insert(normal, renderer, condition):
    config = make_config(methods={"a": MethodConfig(renderer=renderer)})
    inserter = Inserter.load("a", config.methods["a"], config)
    stored = archives.read_stored(normal)
    random = np.random.default_rng(0)
    pair = pairs.insert(inserter, normal, stored, condition, config, random)
    return stored.image()[..., 0], pair


@pytest.mark.parametrize("renderer", ["drawn", "poisson", "paste"])
@pytest.mark.parametrize("softness", [0.0, 0.5])
def test_a_pair_differs_by_a_lesion_of_the_requested_contrast_and_size(normal, renderer, softness):
    before, pair = insert(normal, renderer, Condition(0.1, 10.0, softness, "fatty", "central"))
    change = pair.after.pixels()[..., 0] - before
    top, left, bottom, right = pair.box
    around = np.ones(change.shape, np.bool_)
    around[top - 3 : bottom + 3, left - 3 : right + 3] = False
    assert not change[around].any()
    assert pair.contrast == pytest.approx(0.1, abs=0.005)
    assert pair.size == pytest.approx(10.0, rel=0.05)
    # a disc of 10 mm at 0.2 mm a px, on which the mean change is the contrast
    assert change.sum() == pytest.approx(pair.contrast * np.pi / 4 * 50**2, rel=0.1)
    assert set(pair.controls) == (set() if renderer == "drawn" else {"self", "sham"})
    # softness weakens the margin, not the middle
    box = change[top:bottom, left:right]
    edge = np.abs(np.concatenate([box[:2].ravel(), box[-2:].ravel()])).mean()
    assert (edge < 0.1 * np.abs(box).mean()) or not softness


def test_tissue_inserted_into_itself_changes_nothing_and_other_tissue_does(normal):
    before, pair = insert(normal, "poisson", Condition(0.05, 8.0, 0.0, "dense", "central"))
    own, other = (pair.controls[name].pixels()[..., 0] - before for name in ("self", "sham"))
    assert np.abs(own).max() < 1e-4 < np.abs(other).max()


def test_a_lesion_that_is_removed_is_gone():
    mammogram = next(each for each in phantom.read(count=PHANTOMS) if each.lesions)
    lesion = mammogram.lesions[0]
    pair = pairs.remove(mammogram, lesion, make_config(), np.random.default_rng(0))
    before = mammogram.pixels()[..., 0]
    after = pair.after.pixels()[..., 0]
    mask = lesion.mask(mammogram.rows, mammogram.cols) == 1
    assert before[mask].mean() - after[mask].mean() > 0.02
    assert pair.box == lesion.box and pair.contrast < -0.01


def test_the_command_takes_one_detector_and_some_methods():
    config = make_config(methods={"a": MethodConfig(), "b": MethodConfig(renderer="paste")})
    chosen = choose(config, "runs/x", ["b"])
    assert chosen.detectors == {"detector": "runs/x"} and list(chosen.methods) == ["b"]
    with pytest.raises(ConfigError, match="--method: the config has no c"):
        choose(config, None, ["c"])
    several = make_config(detectors=dict.fromkeys("xyz", "none"), unseen=DATA)
    with pytest.raises(ConfigError, match="needs three detectors"):
        choose(several, "runs/x", None)


def test_a_method_is_not_called_as_the_removals_are():
    with pytest.raises(ValueError, match="methods: removal is the name"):
        make_config(methods={"removal": MethodConfig()})


def test_every_cell_of_the_grid_gets_equally_many_pairs():
    config = make_config(contrasts=(0.1, 0.2), sizes=(5,), softness=(0,), pairs=17)
    counts = {}
    for condition in pairs.list_conditions(config):
        counts[condition] = counts.get(condition, 0) + 1
    assert len(counts) == 8 and sorted(counts.values()) == [2] * 7 + [3]


class Knowing(Detector):
    """A detector whose card names some patients."""

    def __init__(self, patients):
        self._seen = frozenset(patients)


def test_training_patients_of_a_detector_are_skipped():
    every = phantom.read(count=PHANTOMS)
    known = {each.patient_id for each in every[: PHANTOMS // 2]}
    detectors = [OneByOne(Knowing(known), KINDS), OneByOne(Knowing([]), KINDS), object()]
    skipped = Skipped()
    left = read_unknown(DATA, detectors, skipped)
    assert left and not known & {each.patient_id for each in left}
    assert set(skipped.reasons.values()) == {"a detector was trained on its patient"}
    assert len(left) + len(skipped) == len(every)
    config = make_config(mammograms="all", methods={"a": MethodConfig(renderer="paste")}, pairs=6)
    made = list(pairs.make_pairs(config, detectors, Skipped()))
    assert made and not known & {pair.before.patient_id for pair in made}
    inserter = Inserter.load("a", config.methods["a"], config, detectors)
    assert not known & {lesion.mammogram.patient_id for lesion in inserter.bank.lesions}
    taken_out = list(pairs.make_removals(config, detectors, Skipped()))
    assert taken_out and not known & {pair.before.patient_id for pair in taken_out}
    everybody = [OneByOne(Knowing(each.patient_id for each in every), KINDS)]
    with pytest.raises(DataError, match="detectors were trained on all"):
        read_unknown(DATA, everybody, Skipped())


def test_an_archive_without_lesions_has_no_removals(monkeypatch):
    skipped = Skipped()
    normal = [each for each in phantom.read(count=24) if is_normal(each)]
    monkeypatch.setattr(archives, "read_mammograms", lambda *_: normal)
    assert not list(pairs.make_removals(make_config(), (), skipped))
    assert "has no mass with an outline" in skipped.reasons["removals"]
    known = [OneByOne(Knowing([normal[0].patient_id]), KINDS)]
    monkeypatch.setattr(pairs.sampling, "is_normal", lambda _: False)
    with pytest.raises(DataError, match="is normal"):
        next(pairs.make_pairs(make_config(), known, Skipped()))


def test_a_mammogram_that_cant_be_read_is_skipped(normal, monkeypatch):
    def fail():
        raise ArchiveError("it is damaged")

    broken = replace(normal.with_pixels(fail), image_id="broken")
    monkeypatch.setattr(archives, "read_mammograms", lambda *_: [broken, normal])
    config = make_config(pairs=4, contrasts=(0.1,), sizes=(4,), softness=(0,))
    skipped = Skipped()
    made = list(pairs.make_pairs(config, (), skipped))
    assert made and {pair.before.image_id for pair in made} == {normal.image_id}
    assert skipped.reasons["broken"] == "it is damaged"


def test_unseen_mammograms_are_checked_before_anything_is_detected():
    config = make_config(detectors=dict.fromkeys("abc", "none"), unseen=DATA)
    every = phantom.read(count=PHANTOMS)
    fit = [each for each in every if is_normal(each) or select_lesions(each, config.unseen)]
    assert len(prediction.list_unseen({}, config)) == len(fit)
    knowing = {"a": OneByOne(Knowing(each.patient_id for each in every), KINDS)}
    with pytest.raises(DataError, match="detectors were trained on all"):
        prediction.list_unseen(knowing, config)
    assert prediction.list_unseen({}, make_config()) == []


def test_tissue_and_depth_of_a_box():
    """A breast of 20 x 20 cells of 4 px: its left half dark, its right half bright."""
    image = np.full((80, 80, 1), 0.2, np.float32)
    image[:, 40:] = 0.8
    breast = np.zeros((20, 20), np.uint8)
    breast[1:19, 1:19] = 1
    where = pairs.Breast(SimpleNamespace(breast=breast, step=4, image=image))
    assert where.classify((36, 28, 44, 36)) == ("fatty", "central")
    assert where.classify((36, 48, 44, 56)) == ("dense", "central")
    assert where.classify((36, 4, 44, 12)) == ("fatty", "peripheral")
    assert where.classify((4, 60, 12, 68)) == ("dense", "peripheral")


def test_sizes_in_mm_need_a_spacing(normal):
    record = Mammogram("mine", "p", "i", 9, 9, partial(np.zeros, (9, 9, 1)))
    assert pairs._get_spacing(record, make_config(unit="px")) == 1
    with pytest.raises(DataError, match="unit=px"):
        pairs._get_spacing(record, make_config())
    oblong = replace(normal, spacing=(0.1, 0.4))  # whose px have the area of 0.2 x 0.2 mm
    assert pairs._get_spacing(oblong, make_config()) == pytest.approx(0.2)


def test_a_detector_works_where_its_false_positives_are_few_enough():
    lists = [np.float32([0.9, 0.4]), np.float32([0.6]), np.float32([]), np.float32([0.2])]
    # two false positives in four mammograms: above 0.4 there are 0.9 and 0.6
    assert scoring.choose_limit(lists, make_config(fppi=0.5)) == (pytest.approx(0.4), 0.5)
    assert scoring.choose_limit(lists, make_config(fppi=2)) == (0.0, 1.0)
    assert scoring.choose_limit(lists, make_config(score=0.5)) == (0.5, 0.5)


class Scattered:
    """Finds one thing in a normal mammogram's corner, and three in another one's."""

    def __init__(self):
        self.seen = []

    def detect(self, mammograms):
        self.seen += [each.image_id for each in mammograms]
        counts = [3 if each.lesions else 1 for each in mammograms]
        corner = np.float32([[0, 0, 9, 9]])
        return [
            Detections(corner.repeat(count, 0), np.full(count, 0.5, np.float32), ("mass",) * count)
            for count in counts
        ]


def test_false_positives_are_those_of_mammograms_before_insertion(normal):
    """A removal's mammogram may have further lesions, which are unmarked."""
    other = next(each for each in phantom.read(count=PHANTOMS) if each.lesions)
    inserted = Condition(0.1, 8.0, 0.0, "fatty", "central")
    made = [
        pairs.Pair("drawn", normal, normal, (100, 100, 120, 120), inserted, 0.1, 8.0),
        pairs.Pair("removal", other, other, other.lesions[0].box, None, -0.1, 8.0),
        pairs.Pair("drawn", normal, normal, (200, 100, 220, 120), inserted, 0.1, 8.0),
    ]
    detectors = {name: Scattered() for name in ("d", "e")}
    trials = scoring.run(detectors, made, make_config(score=0.25))
    for name, trial in trials.items():
        assert (trial.fppi, trial.limit, len(trial.outcomes)) == (1.0, 0.25, 3)
        # each pair's second image, and what was before once
        assert len(detectors[name].seen) == 3 + 2
    for one, other in zip(trials["d"].outcomes, trials["e"].outcomes, strict=True):
        assert one.picture is other.picture  # drawn once


def test_the_score_of_a_box_is_that_of_its_surest_hit():
    boxes = np.float32([[0, 0, 90, 90], [10, 10, 20, 20], [12, 12, 18, 18]])
    found = Detections(boxes, np.float32([0.9, 0.5, 0.25]), ("mass",) * 3)
    config = make_config()
    # the first one's centre is elsewhere
    assert scoring.score_box(found, (10, 10, 20, 20), config) == 0.5
    assert scoring.score_box(found, (60, 60, 70, 70), config) == 0
    config = make_config(criterion="iou", threshold=0.3)
    assert scoring.score_box(found, (12, 12, 18, 18), config) == 0.5


def make_trial(threshold, seed, method="drawn", patients=12, each=10):
    """The trial of a detector that finds what is above a contrast, with some noise."""
    random = np.random.default_rng(seed)
    outcomes = []
    picture = np.zeros((1, 2), np.uint8)
    for number in range(patients * each):
        contrast = float(random.choice([0.01, 0.02, 0.04, 0.08, 0.16]))
        found = np.log(contrast / threshold) + random.normal(0, 0.4) > 0
        condition = Condition(contrast, 8.0, 0.0, "fatty", "central")
        place = (f"p{number % patients}", "i", "", (0, 0, 1, 1), condition, contrast, 8.0)
        outcomes.append(Outcome("d", method, *place, 0.0, float(found), {}, picture))
    return Trial(outcomes, 0.5, 0.0)


def make_matches(recall, seed, count=48):
    random = np.random.default_rng(seed)
    found = random.random(count) < recall
    return [Matches(np.ones(int(hit)), np.empty(0), 1, 1) for hit in found]


@pytest.mark.long
def test_a_stress_score_that_ranks_as_recall_does_predicts_it():
    thresholds = dict(zip("abcdef", (0.012, 0.02, 0.03, 0.05, 0.08, 0.12), strict=True))
    trials = {name: make_trial(value, 3) for name, value in thresholds.items()}
    recalls = dict(zip("abcdef", (0.95, 0.8, 0.65, 0.5, 0.3, 0.1), strict=True))
    matches = {name: make_matches(value, 4) for name, value in recalls.items()}
    patients = [f"u{number // 2}" for number in range(48)]
    config = make_config(samples=40)
    (right,) = prediction.predict(trials, matches, patients, config)
    assert right.correlation == pytest.approx(1.0) and right.low > 0.7
    assert right.p == pytest.approx(2 / 720) and right.verdict == "predicts recall"
    turned = dict(zip("abcdef", list(matches.values())[::-1], strict=True))
    (wrong,) = prediction.predict(trials, turned, patients, config)
    assert wrong.correlation == pytest.approx(-1.0) and wrong.verdict == "predicts the reverse"


def test_more_methods_need_a_smaller_p():
    """Six detectors of which three are above all contrasts: 12 of 720 pairings do as well."""
    scores = dict(zip("abcdef", (3.0, 2.0, 1.0, -np.inf, -np.inf, -np.inf), strict=True))
    recalls = dict(zip("abcdef", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), strict=True))
    p = prediction._test_ranks(scores, recalls, 0)
    assert p == pytest.approx(12 / 720)
    values = ("drawn", scores, recalls, 0.94, 0.5, 0.99, p)
    assert Prediction(*values, p, 0.05).verdict == "predicts recall"
    three = holm([p, p, 0.333])
    assert Prediction(*values, three[0], 0.05).verdict.startswith("predicts nothing")
    table = prediction.tabulate([Prediction(*values, three[0], 0.05)] * 3, make_config())[1]
    assert table.body[0][5:7] == ["0.017", "0.050"] and "3 methods" in table.notes[0]


def test_thresholds_and_correlations_are_facts(repository):
    scores = dict(zip("abc", (3.0, 2.0, 1.0), strict=True))
    recalls = dict(zip("abc", (0.5, 0.3, 0.4), strict=True))
    values = ("drawn", scores, recalls, 0.5, -0.1, 0.9, 0.3, 0.6, 0.05)
    recall, *_, correlation = prediction.list_facts([Prediction(*values)], make_config())
    assert (recall.model, recall.measure, recall.unit, recall.value) == ("a", "tpr@0.5", "%", 50)
    assert (correlation.value, correlation.low, correlation.high) == (0.5, -0.1, 0.9)
    assert (correlation.p, correlation.p_corrected) == (0.3, 0.6)
    trials = {"a": make_trial(0.03, 3), "blind": make_trial(9, 4)}
    config = make_config(contrasts=(0.01, 0.02, 0.04, 0.08, 0.16), sizes=(8,))
    curves = {
        (name, "drawn"): analysis.fit_curves(trial.outcomes, trial.limit, config)
        for name, trial in trials.items()
    }
    seen, blind = analysis.list_facts(curves, trials, config)
    assert seen.low < seen.value < seen.high and seen.patients == 12 and blind.value == np.inf
    # the committed rows are of the same kind
    committed = read_facts(repository / "docs/results/stress.small.csv")
    keys = {(row.table, row.subset, row.measure) for row in (recall, correlation, seen)}
    assert keys < {(row.table, row.subset, row.measure) for row in committed}


def test_names_on_the_page_are_no_markup(tmp_path):
    trial = make_trial(0.03, 3, method="my _odd_ one")
    odd = [replace(each, density="a|b <b>x</b> `c` [d](e)") for each in trial.outcomes]
    trials = {"my _odd_ one": replace(trial, outcomes=odd)}
    config = make_config(samples=10, worst=1)
    curves = {("my _odd_ one", "my _odd_ one"): analysis.fit_curves(odd, trial.limit, config)}
    tables = [analysis.tabulate_strata(trials, config)]
    work.write_page(tmp_path, tables, curves, trials, config)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<td>my _odd_ one</td>" in page and "<h2>my _odd_ one: plain lesions" in page
    density = "breast density: a|b &lt;b&gt;x&lt;/b&gt; `c` [d](e)</td>"
    assert density in page
    assert page.count('<img src="data:image/png;base64,') == 2
    assert [*tmp_path.glob("worst-*.png")]
    easy = {name: replace(each, limit=-1.0) for name, each in trials.items()}
    work.write_page(tmp_path, tables, curves, easy, config)
    assert not [*tmp_path.glob("worst-*.png")]  # of the earlier test
    for tag in ("<em", "<b>", "<a ", "<code"):
        assert tag not in page


def test_scores_and_recalls_that_cannot_be_ranked():
    correlate = prediction.correlate
    assert np.isnan(correlate({"a": 1, "b": 2, "c": 3}, dict.fromkeys("abc", 0.5)))
    # above all contrasts is the lowest score, whatever the others are
    scores = {"a": -np.inf, "b": 1.0, "c": 2.0}
    assert correlate(scores, {"a": 0.1, "b": 0.2, "c": 0.3}) == pytest.approx(1.0)
    # one contrast alone has no curve
    trial = make_trial(0.03, 3)
    one = replace(trial, outcomes=[each for each in trial.outcomes if each.contrast == 0.02])
    scores = prediction._score({"a": one, "b": one}, "drawn", None, make_config())
    assert np.isnan(list(scores.values())).all()
    assert np.isnan(correlate(scores, {"a": 0.1, "b": 0.2}))


@pytest.mark.long
def test_blobs_with_more_noise_find_less(repository, tmp_path, tracking_uri):
    program = f"command: {sys.executable} {repository}/tests/blobs.py {{images}} {{boxes}} --noise"
    detectors = {f"noise {noise}": f"{program} {noise}" for noise in (0, 0.05, 0.2)}
    config = {"data": {"phantoms": 12}, "unseen": {"phantoms": 12, "seed": 1}}
    config |= {"detectors": detectors, "tracking_uri": tracking_uri, "places": ["central"]}
    config |= {"methods": {name: {"renderer": name} for name in ("drawn", "poisson")}}
    config |= {"contrasts": [0.02, 0.08, 0.3], "sizes": [8], "softness": [0], "fppi": 1}
    config |= {"pairs": 12, "removals": 2, "batch": 100, "samples": 10}
    file = tmp_path / "stress.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")  # which is YAML, too
    done = run_module_here("tfmammo.apps.stress", "--config", file, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["skipped"] < 12
    rows = read_csv(tmp_path / "out/pairs.csv")
    plain = [row for row in rows if row["method"] == "drawn" and row["wanted_contrast"] == "0.3"]
    found = {
        name: np.mean([int(row["found"]) for row in plain if row["detector"] == name])
        for name in detectors
    }
    assert found["noise 0"] > found["noise 0.2"]
    assert (tmp_path / "out/curves.png").is_file() and (tmp_path / "out/table.md").is_file()
    shown = read_rows(tmp_path / "out")
    for curve in summary["curves"]:
        subset = f"method={curve['method']}"
        fact = find(shown, curve["detector"], "contrast_50", subset=subset)
        assert fact.value == pytest.approx(float(curve["contrast"]["threshold"]), rel=1e-5)
    for name in detectors:
        assert 0 <= find(shown, name, "tpr@1").value <= 100
    page = (tmp_path / "out/index.html").read_text()
    assert "Does the stress score predict recall?" in page
