"""evaluate/detection.py on the phantom, with exports that find the first phantom's lesions
wherever they are looked for.
"""

import json
import sys

import mlflow
import numpy as np
import pytest

from tests.exported_detectors import save_detector, write_detector_card
from tests.facts import find, read_rows
from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.froc import POOLED
from tfmammo.metrics.rows import read_facts

PHANTOMS = 24  # of seven patients
RECORDS = phantom.read(count=PHANTOMS)
MASSES = {
    record.image_id: [lesion.box for lesion in record.lesions if lesion.kind == "mass"]
    for record in RECORDS
}
KNOWN = next(record for record in RECORDS if MASSES[record.image_id])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: "a" and "b" were trained on the patients of half of the phantoms each, "blind" on
    nobody's, "none" has no card; "inside" answers with the middle of each lesion.
    """
    root = tmp_path_factory.mktemp("runs")
    patients = list(dict.fromkeys(record.patient_id for record in RECORDS))
    assert len(patients) > 1
    trained_on = {"a": patients[::2], "b": patients[1::2], "blind": [], "none": None, "inside": []}
    for name, seen in trained_on.items():
        folder = root / name / "export"
        save(folder / "saved_model", name != "blind", 0.6 if name == "inside" else 1.0)
        if seen is not None:
            write_detector_card(folder, DataConfig(size=64), seen)
    return root


def save(folder, finds=True, part=1.0):
    """A detector that always answers with the known lesions, or the middle part of each, and with a
    box in the corner that is less certain; or with nothing.
    """
    side = max(KNOWN.rows, KNOWN.cols)  # of the square into which the mammogram is scaled
    known = np.array(MASSES[KNOWN.image_id], np.float32)
    middle = np.tile((known[:, :2] + known[:, 2:]) / 2, 2)
    boxes = np.concatenate([middle + part * (known - middle), [(0, 0, 20, 20)]]) / side
    scores = np.linspace(0.9, 0.5, len(boxes))
    save_detector(folder, boxes.tolist() if finds else [], scores.tolist() if finds else [])


@pytest.fixture
def run(run_evaluate):
    """A function (*overrides) that runs the script -> its output folder, facts and boxes."""

    def call(*overrides):
        small = (f"data.phantoms={PHANTOMS}", "samples=20")
        output = run_evaluate("detection", None, *small, *overrides)
        return output, read_rows(output), json.loads((output / "boxes.json").read_text())

    return call


@pytest.mark.slow
def test_each_patient_by_the_fold_that_never_saw_it(run, runs):
    output, facts, boxes = run(f"detectors=[{runs}/a, {runs}/b]")
    fit = (one for one in RECORDS if MASSES[one.image_id] or one.pathology == "normal")
    assert set(boxes) == {record.image_id for record in fit}
    detections = boxes[KNOWN.image_id]
    np.testing.assert_allclose(detections["boxes"][:-1], MASSES[KNOWN.image_id], atol=1)
    assert {one["detector"] for one in boxes.values()} == {0, 1}
    lesions = sum(len(MASSES[image]) for image in boxes)
    pooled = find(facts, "detectors", "tpr@all", "froc", subset=POOLED).value
    assert pooled >= 100 * len(MASSES[KNOWN.image_id]) / lesions - 0.1
    for rate in ("0.25", "0.5", "1", "2", "4", "8"):
        keys = (f"{key}@{rate}" for key in ("tpr", "mean_tpr"))
        recall, area = (find(facts, "detectors", key, "froc") for key in keys)
        assert recall.low <= recall.value <= recall.high and area.value <= recall.value
    by_fold = [[one for one in boxes.values() if one["detector"] == place] for place in (0, 1)]
    recalls = []
    for fold in by_fold:
        wanted = [(one, mass) for one in fold for mass in one["wanted"]]
        hits = sum(any(overlaps(box, mass["box"]) for box in one["boxes"]) for one, mass in wanted)
        recalls.append(100 * hits / len(wanted))
    found = find(facts, "detectors", "tpr@all", "froc").value
    assert found == pytest.approx(np.mean(recalls), rel=1e-5)
    assert "recall at IoU > 0.5" in (output / "table.md").read_text()


def overlaps(box, other):
    """Whether two boxes share more than half of their union."""
    rows, cols = (
        min(box[axis + 2], other[axis + 2]) - max(box[axis], other[axis]) for axis in (0, 1)
    )
    shared = max(rows, 0) * max(cols, 0)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, other)]
    return shared > 0.5 * (sum(areas) - shared)


def test_boxes_of_other_kinds_are_no_false_positives(run, runs, tmp_path):
    """A detector of two kinds whose every answer is a calcification: evaluated on masses, it is
    silent, not wrong.
    """
    folder = tmp_path / "both" / "export"
    save(folder / "saved_model")
    write_detector_card(folder, DataConfig(size=64, kinds=("calcification", "mass")))
    output, facts, boxes = run(f"detectors={folder.parent}")
    assert all(one["classes"] for one in boxes.values())
    for key in ("tpr@all", "fp_normal@all", "fp_lesions@all"):
        assert find(facts, "detectors", key, "froc").value == 0
    output, facts, _ = run(f"detectors={folder.parent}", "data.kinds=[mass,calcification]")
    assert find(facts, "detectors", "fp_lesions@all", "froc").value > 0


def test_patients_all_and_without_normal_ones(run, runs):
    _, _, boxes = run(f"detectors={runs}/none/export", "patients=all", "normal=false")
    assert set(boxes) == {image for image, masses in MASSES.items() if masses}


def test_a_second_detector_is_evaluated_on_the_same_mammograms(run, runs):
    two = f"detectors={{blind: {runs}/blind, SSD: [{runs}/a, {runs}/b]}}"
    output, facts, _ = run(two, "coco=true")
    for fact in facts:
        is_merit = fact.measure == "jafroc1"
        if fact.model == "blind" and fact.measure.startswith("score"):
            assert np.isnan(fact.value)
        elif fact.model == "blind" and not is_merit:
            assert fact.value == 0, "what is blind finds nothing, neither right nor wrong"
        if fact.against and not is_merit:
            alone = find(facts, "SSD", fact.measure, "froc")
            assert (fact.value, fact.low, fact.high) == (alone.value, alone.low, alone.high)
    # its normal mammograms are all of one patient
    ours, theirs = (find(facts, name, "jafroc1", "froc") for name in ("SSD", "blind"))
    test = find(facts, "SSD", "jafroc1", "differences", "blind")
    assert theirs.value == 0.5 and test.value == pytest.approx(ours.value - 0.5, abs=1e-5)
    assert test.low <= test.value <= test.high and 0 <= test.p <= 1
    assert 0 < find(facts, "SSD", "ap50", "coco").value <= 100
    assert "one comparison, no correction" in (output / "table.md").read_text()


def test_several_detectors_have_recall_seconds_and_a_row_of_random_boxes(run, runs):
    three = f"detectors={{SSD: {runs}/blind, Mask R-CNN: {runs}/blind, inside: {runs}/inside}}"
    output, facts, boxes = run(three, "boxes=20", "fppi=[1, 4]")
    ssd, mask_rcnn = (find(facts, name, "tpr@4", "froc") for name in ("SSD", "Mask R-CNN"))
    assert ssd.value == mask_rcnn.value == 0
    assert find(facts, "Mask R-CNN", "tpr@all", "differences", "SSD").value == 0
    assert find(facts, "random boxes", "jafroc1", "differences", "SSD").p_corrected
    assert boxes and not any(one["boxes"] for one in boxes.values()), "those of the first"
    seconds = read_facts(output / "seconds.csv")
    assert [fact.model for fact in seconds] == ["SSD", "Mask R-CNN", "inside"]
    assert all(fact.value > 0 and fact.unit == "s" for fact in seconds)
    table = (output / "table.md").read_text(encoding="utf-8")
    assert "Seconds" not in table and "random boxes: at random places" in table


def test_both_are_compared_where_both_are_eligible(run, runs):
    """The blind one saw nobody and is eligible for all, fold a for those that it never saw."""
    _, _, alone = run(f"detectors={runs}/a", "normal=false")
    two = f"detectors={{blind: {runs}/blind, SSD: {runs}/a}}"
    _, facts, boxes = run(two, "normal=false")
    assert set(boxes) == set(alone) and not any(one["boxes"] for one in boxes.values())
    assert {fact.images for fact in facts if fact.table == "froc"} == {len(alone)}


def test_the_criterion_and_its_threshold_decide(run, runs):
    """The middle of a lesion, 0.36 of its area, has that IoU and the lesion's centre."""

    def count(*overrides):
        _, facts, _ = run(f"detectors={runs}/inside", *overrides)
        return find(facts, "detectors", "tpr@all", "froc").value

    found = count("criterion=iou", "threshold=0.3")
    assert found > 0
    # of other mammograms' lesions, some of which the boxes hit by chance
    assert count("criterion=centre", "threshold=0.9") > found


def test_what_would_not_be_fair_is_refused(run, runs, monkeypatch):
    for overrides, said in (
        ([f"detectors={runs}/none/export"], "no card names the patients"),
        ([f"detectors=[{runs}/a, {runs}/a]"], "several URIs are eligible"),
        # normal mammograms are left, on which there is nothing to find
        ([f"detectors=[{runs}/a, {runs}/b]", "data.kinds=[distortion]"], "distortion"),
        ([f"detectors=[{runs / 'a'}]", "data.added.copies=2"], "data.added"),
        ([f"detectors={{random boxes: {runs}/a}}"], "random boxes is the name"),
    ):
        with pytest.raises((DataError, ConfigError), match=said):
            run(*overrides)
    # before the work
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(DataError, match="needs pycocotools"):
        run("detectors=nowhere", "coco=true")


SMALL = """data.canvas=null data.size=64 training.steps=2 training.batch_size=2
training.precision=float32 model.weights=none model.batch_norm=running model.filters=4
model.blocks=[1,1,1,1] model.anchor_scales=[1,2] model.rpn_width=8 model.middle=4 model.units=8
model.proposals_before=50 model.proposals=20 model.hard_examples=8"""


@pytest.fixture
def study(call_script, tmp_path, tracking_uri):
    """A function (name, *overrides) that runs a study of Light-Head R-CNN on phantoms, two steps a
    run; returns its folder.
    """
    values = [f"tracking.uri={tracking_uri}", "tracking.system_metrics=false"]
    values += ["data.name=phantom", "data.root=null", "data.folds=2", "data.phantoms=12"]
    values += ["folds=[0]", "samples=20", "detector.script=light_head_rcnn"]
    values += [f"detector.set.{value}" for value in SMALL.split()]

    def call(name, *overrides, flags=()):
        options = ["--study", name, "--output", tmp_path / "study", *flags]
        call_script("evaluate/detection", *options, "--set", *values, *overrides)
        return tmp_path / "study"

    return call


def test_a_studys_plan_is_shown_and_nothing_is_run(study, capsys):
    folder = study("infilling", flags=["--plan"])
    lines = capsys.readouterr().out.splitlines()
    assert not folder.exists() and len(lines) == 75
    assert lines[0].startswith("python ") and "train/mask_gan.py" in lines[0]
    assert "data.phantoms=12" in lines[0]


@pytest.mark.long
def test_a_study_ends_with_tables_a_figure_and_a_run_with_children_and_is_not_run_twice(
    study, steps_here, tracking_uri, caplog
):
    config = "{config: configs/synthesis_blending.yaml, set: {renderer: poisson, generator: null}}"
    few = "generators={}", f"methods={{poisson: {config}}}", "synthetic=[3]", "copies=[]"
    folder = study("blending", *few)
    table = (folder / "report/table.md").read_text()
    for said in ("| real alone |", "| real + 3 by poisson |", "Differences in recall at IoU > 0.5"):
        assert said in table
    assert (folder / "report/froc.png").is_file()
    places = json.loads((folder / "split.json").read_text())["patients"]
    held_out = {name for name, fold in places.items() if fold == 0}
    path = "detectors/{}/fold0-seed0/export/card.json"
    files = (folder / path.format(arm) for arm in ("poisson-3", "real"))
    card, real = (json.loads(file.read_text()) for file in files)
    assert card["config"]["data"]["added"]["count"] == 3
    assert not held_out & set(card["train_patients"])
    assert real["config"]["data"]["added"]["synthetic"] is None
    boxes = json.loads((folder / "evaluations/poisson-3/seed0/boxes.json").read_text())
    assert boxes and {one["patient"] for one in boxes.values()} <= held_out

    client = mlflow.MlflowClient(tracking_uri)
    parent = (folder / "mlflow_run_id").read_text().strip()
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 2 and client.get_run(parent).info.status == "FINISHED"
    assert any(name.startswith("froc/real/tpr") for name in client.get_run(parent).data.metrics)

    caplog.clear()
    before = (folder / path.format("real")).stat().st_mtime_ns
    study("blending", *few, "fppi=[1]")  # what is reported may change
    assert (folder / path.format("real")).stat().st_mtime_ns == before
    assert not any(message.startswith("step ") for message in caplog.messages)
    facts = read_rows(folder / "report")
    assert find(facts, "poisson-3", "tpr@1", "differences", "real")
    assert not [fact for fact in facts if fact.measure == "tpr@2"]
