"""Detectors on one set: recall, seconds, average precision, and the baseline of random boxes."""

from dataclasses import replace

import numpy as np
import pytest

from tests.facts import find
from tfmammo.archives import phantom
from tfmammo.detection.detections import Detections
from tfmammo.evaluation.detection import (
    DetectionConfig,
    Prediction,
    add_precision,
    collect,
    draw_boxes,
    match_random_boxes,
)
from tfmammo.evaluation.froc import add_recall, add_scores, measure_seconds, tabulate_seconds
from tfmammo.evaluation.report import Report
from tfmammo.metrics.boxes import Matches

CONFIG = DetectionConfig(detectors={"A": "a", "B": "b"}, boxes=40, fppi=(1, 2), samples=20)


def make_prediction(mammogram, hits=(), others=(), detector=0, seconds=1.0):
    matches = Matches(
        np.array(hits, np.float64), np.array(others, np.float64), len(mammogram.lesions), 1
    )
    empty = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), ())
    return Prediction(mammogram, mammogram.lesions, empty, matches, detector, seconds)


@pytest.fixture(scope="module")
def mammograms():
    """Eight with one mass each, of different patients."""
    records = [record for record in phantom.read(count=48) if len(record.lesions) == 1]
    by_patient = {record.patient_id: record for record in records}
    return [
        replace(record, lesions=(replace(record.lesions[0], kind="mass"),))
        for record in list(by_patient.values())[:8]
    ]


def test_random_boxes_have_the_sizes_of_other_patients_lesions(mammograms):
    mammogram = mammograms[0]
    prediction = make_prediction(mammogram)
    random = np.random.default_rng(0)
    boxes, kinds = draw_boxes(prediction, [(0.25, 0.5, "mass")], 30, random)
    assert boxes.shape == (30, 4) and set(kinds) == {"mass"}
    limits = np.array([mammogram.rows, mammogram.cols] * 2)
    assert (boxes >= 0).all() and (boxes <= limits).all()
    inside = np.all((boxes > 0) & (boxes < limits), axis=1)
    sides = boxes[inside, 2:] - boxes[inside, :2]
    np.testing.assert_allclose(sides, [[mammogram.rows / 4, mammogram.cols / 2]] * len(sides))
    middle = np.floor(boxes[inside].reshape(-1, 2, 2).mean(axis=1)).astype(int)
    assert (mammogram.pixels()[middle[:, 0], middle[:, 1]] > 0).all(), "on the breast"
    assert draw_boxes(prediction, [], 30, random)[0].shape == (0, 4)


@pytest.mark.slow
def test_random_boxes_do_not_know_their_own_patient(mammograms):
    alone = [make_prediction(mammograms[0])]
    (matches,) = match_random_boxes(alone, CONFIG)
    assert not matches.hits.size and not matches.false_positives.size and matches.lesions == 1
    several = [make_prediction(mammogram) for mammogram in mammograms]
    first = match_random_boxes(several, CONFIG)
    again = match_random_boxes(several, CONFIG)
    for one, other in zip(first, again, strict=True):
        assert len(one.hits) + len(one.false_positives) <= CONFIG.boxes
        np.testing.assert_array_equal(one.false_positives, other.false_positives)
    scores = np.concatenate([one.false_positives for one in first])
    assert len(set(scores.tolist())) == len(scores) and 0.4 < scores.mean() < 0.6


def test_random_boxes_on_lesions_that_do_not_count_are_no_false_positives(mammograms):
    """The lesions of one mammogram do not count: a box of almost its size is anywhere on it."""
    config = CONFIG.model_copy(update={"criterion": "centre", "boxes": 200})
    whole = (0.0, 0.0, float(mammograms[0].rows), float(mammograms[0].cols))
    benign = replace(mammograms[0].lesions[0], pathology="benign", box=whole, outlines=())
    first = replace(make_prediction(replace(mammograms[0], lesions=(benign,))), lesions=())
    predictions = [first, make_prediction(mammograms[1])]
    matches, _ = match_random_boxes(predictions, config)
    assert len(matches.false_positives) == 200 and not matches.lesions, "any lesion counts"
    data = config.data.model_copy(update={"pathologies": ("malignant",)})
    config = config.model_copy(update={"data": data})
    matches, _ = match_random_boxes(predictions, config)
    assert not len(matches.false_positives), "none beside the benign one, which spares all"


def test_every_detector_has_its_recall_and_its_median_time(mammograms):
    sets = {
        "A": [make_prediction(one, hits=[0.9], seconds=2.0) for one in mammograms],
        "B": [make_prediction(one, others=[0.5], seconds=s) for s, one in enumerate(mammograms)],
        "late": [make_prediction(one, hits=[0.5], others=[0.9]) for one in mammograms],
    }
    detected = collect(CONFIG, sets)
    report = Report(config=CONFIG)
    add_recall(report, detected)
    fact = find(report.facts, "A", "tpr@1", "froc")
    assert (fact.value, fact.high, fact.patients) == (100, 100, 8)
    assert fact.low == pytest.approx(100 * (1 + np.log(0.05) / 8))  # the rule of three, of 8
    assert find(report.facts, "B", "tpr@all", "froc").value == 0
    assert find(report.facts, "A", "mean_tpr@2", "froc").value == 100
    # every lesion is found from one false positive per image on
    means = [find(report.facts, "late", f"mean_tpr@{rate}", "froc").value for rate in (1, 2)]
    assert means == [0, 50]
    (table,) = report.tables
    assert table.header[1:] == ["1, %", "2, %", "all detections, %", "mean from 0 to 2, %"]
    assert table.body[0][1] == "100.0\n[62.6, 100.0]" and table.body[2][4].startswith("50.0")
    seconds = {
        name: measure_seconds((one.detector, one.seconds) for one in found)
        for name, found in sets.items()
    }
    facts, _ = tabulate_seconds(seconds, detected)
    assert [fact.value for fact in facts] == [2, 4, 1], "B's of 1 to 7 s, without the first"


def test_each_run_has_its_own_least_score(mammograms):
    """The same ranking on two scales: a score for `tfmammo predict` is that of one run."""
    predictions = [
        make_prediction(one, [0.9 * scale], [0.8 * scale, 0.1 * scale], detector=number)
        for one, number, scale in zip(mammograms, (0, 1, 0, 1), (1, 0.5, 1, 0.5), strict=False)
    ]
    report = Report(config=CONFIG)
    add_scores(report, collect(CONFIG, {"A": predictions}))
    scores = {fact.subset: fact.value for fact in report.facts if fact.measure == "score@1"}
    assert scores == {"fold=0": 0.8, "fold=1": 0.4}
    assert report.tables[0].body == [["A", "0.800, 0.400", "0.100, 0.050"]]


def test_folds_have_an_average_precision_of_their_own(mammograms):
    """Two faultless detectors whose scales differ: pooled, a false positive would come first."""
    predictions = []
    for number, mammogram in enumerate(mammograms[:4]):
        scale = (1.0, 0.2)[number % 2]
        boxes = np.float32([mammogram.lesions[0].box, [0, 0, 5, 5]])
        scores = np.float32([0.9, 0.8]) * np.float32(scale)
        prediction = make_prediction(mammogram, [0.9 * scale], [0.8 * scale], number % 2)
        found = Detections(boxes, scores, ("mass", "mass"))
        predictions.append(replace(prediction, detections=found))
    pooled = [replace(prediction, detector=0) for prediction in predictions]
    values = []
    for found in (predictions, pooled):
        config = DetectionConfig(detectors=("a", "b"))
        report = Report(config=config)
        add_precision(report, collect(config, {"A": found}), {"A": found})
        values.append([find(report.facts, "A", key, "coco").value for key in ("ap", "ap50", "ar")])
    assert values[0] == pytest.approx([100] * 3) and values[1][0] < 90
