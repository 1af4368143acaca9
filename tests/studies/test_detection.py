"""The detection studies' plan and facts; tests/scripts runs evaluate/detection.py --study."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.facts import find
from tfmammo import config as configuration
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation import froc
from tfmammo.metrics.detection import ALL_DETECTIONS
from tfmammo.metrics.significance import holm
from tfmammo.studies import detection_report
from tfmammo.studies.detection import Arm, Method, StudyConfig, list_arms, plan_steps
from tfmammo.studies.systems import check_steps
from tfmammo.studies.training import ScriptConfig

OUT = Path("out")
ROOT = Path("repo")


def config(**values):
    generator = {"generator": "{output}/generators/unet/fold{fold}"}
    small = {
        "name": "small",
        "data": {"name": "inbreast", "folds": 3},
        "detector": ScriptConfig(script="light_head_rcnn", set={"model": {"filters": 4}}),
        "generators": {"unet": ScriptConfig(script="infilling", set={"model": {"margin": None}})},
        "methods": {"unet": Method(config=Path("a.yaml"), set=generator)},
        "copies": (2, 4),
        "base": 2,
        "synthetic": (3, 6),
        "folds": (0, 2),
        "seeds": (0, 1),
        "samples": 50,
    }
    return StudyConfig(**{**small, **values})


ALONE = {"generators": {}, "methods": {}, "synthetic": (), "copies": (2,), "base": 0}


def options(step):
    return dict(one.split("=", 1) for one in step.arguments if "=" in one)


def test_every_fold_trains_its_own_networks_and_every_arm_is_evaluated():
    arms = list_arms(config())
    assert [arm.name for arm in arms] == ["real", "copies-2", "copies-4", "unet-3", "unet-6"]
    assert arms[-1] == Arm("unet-6", 2, "unet", 6)
    assert (arms[0].title, arms[-1].title) == ("real alone", "real + 2 copies + 6 by unet")
    steps = plan_steps(config(), OUT, ROOT, "parent")
    names = [step.name for step in steps]
    assert len(names) == len(set(names)) == 2 * (1 + 1 + 2 * 5) + 2 * 5
    for number, step in enumerate(steps):
        assert set(step.depends_on) <= set(names[:number])
    by_name = dict(zip(names, steps, strict=True))
    for fold in (0, 2):
        generator, synthesis = (by_name[f"{what}/unet/fold{fold}"] for what in (
            "generators", "synthetic"
        ))  # fmt: skip
        chosen = options(generator)
        assert (chosen["data.fold"], chosen["model.margin"]) == (str(fold), "null")
        chosen = options(synthesis)
        side = [chosen[f"patients.{key}"] for key in ("split_file", "fold", "side")]
        assert side == ["out/split.json", str(fold), "train"]
        assert chosen["generator"] == f"out/generators/unet/fold{fold}"
        assert synthesis.depends_on == (generator.name,)
        assert chosen["count"] == "9"  # half more than 6


def test_a_detector_is_given_its_arms_mammograms_and_nobody_held_out():
    steps = {step.name: step for step in plan_steps(config(), OUT, ROOT, "parent")}
    real, copied, synthetic = (
        options(steps[f"detectors/{arm}/fold2-seed1"]) for arm in ("real", "copies-4", "unet-3")
    )
    assert not any(key.startswith("data.added") for key in real)
    assert copied["data.added.copies"] == "4"
    added = {key: synthetic[f"data.added.{key}"] for key in ("copies", "synthetic", "count")}
    assert added == {"copies": "2", "synthetic": "out/synthetic/unet/fold2", "count": "3"}
    for said in (real, copied, synthetic):
        keys = ("data.split_file", "data.fold", "training.seed", "data.name", "model.filters")
        assert [said[key] for key in keys] == ["out/split.json", "2", "1", "inbreast", "4"]
    assert steps["detectors/real/fold2-seed1"].ignored_args == ("--set", "tracking.parent=parent")
    assert json.loads(options(steps["evaluations/unet-3/seed1"])["detectors"]) == [
        "out/detectors/unet-3/fold0-seed1",
        "out/detectors/unet-3/fold2-seed1",
    ]
    assert config(folds=None).held_out == (0, 1, 2)
    assert config(folds=None, data=DataConfig(split="official")).held_out == (0,)


@pytest.mark.parametrize("name", ["infilling", "blending"])
def test_the_repositorys_studies_are_the_papers(repository, name):
    study = configuration.parse(StudyConfig, repository / "configs" / f"study_{name}.yaml")
    steps = plan_steps(study, OUT, repository, "parent")
    for step in steps:
        files = [Path(one) for one in step.command if one.endswith((".py", ".yaml"))]
        assert files and all(file.is_file() or (repository / file).is_file() for file in files)
    if name == "infilling":
        assert np.diff((0, *study.copies)).tolist() == [300, 300, 400, 500, 500, 500, 500, 1000]
        assert np.diff((0, *study.synthetic)).tolist() == [300, 500, 500, 500, 500, 500]
        assert study.base + 566 == 2066 and len(steps) == 75
    else:
        assert (study.synthetic, study.data.folds, study.held_out) == ((200,), 5, (0, 1, 2, 3, 4))
        assert study.copies == study.synthetic, "as many mammograms, and no synthetic mass"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("detector.script=nosuch", r"detectors/real/fold0-seed0: .*nosuch.py"),
        ("generators.unet.config=nosuch.yaml", r"generators/unet/fold0: .*nosuch.yaml"),
        ("methods.crn.set.pianter=paste", r"synthetic/crn/fold0: .*synthesis_full.yaml: pianter"),
        ("detector.set.training.stepz=3", r"detectors/real/fold0-seed0: .*training.stepz"),
        ("detector.set.model.nosuch=1", r"detectors/real/fold0-seed0: .*model.nosuch"),
    ],
)
def test_what_a_command_would_refuse_hours_later_is_refused_at_once(repository, override, said):
    file = repository / "configs/study_infilling.yaml"
    check_steps(plan_steps(configuration.parse(StudyConfig, file), OUT, repository, "p"))
    wrong = configuration.parse(StudyConfig, file, [override])
    with pytest.raises(ConfigError, match=said):
        check_steps(plan_steps(wrong, OUT, repository, "parent"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": {}}, "methods and synthetic"),
        ({"synthetic": ()}, "methods and synthetic"),
        ({"methods": {"real": Method(config=Path("a.yaml"))}}, "real"),
        ({"generators": {"../x": ScriptConfig(script="infilling")}}, "generators"),
        ({"folds": (3,)}, "folds"),
        ({"data": DataConfig(split="paper")}, "data"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        config(**values)


PATIENTS = "pqrstu"
HIT = [0, 0, 10, 9]
MISS = [0, 0, 4, 4]


def write_boxes(output, study, boxes_of):
    """What the evaluations of a study leave: six patients with one mammogram each, three in either
    fold, every lesion at one place.

    boxes_of(arm, fold, seed, number): of a mammogram, the boxes and their scores.
    """
    for arm in list_arms(study):
        for seed in study.seeds:
            images = {}
            for number, patient in enumerate(PATIENTS):
                boxes, scores = boxes_of(arm, study.held_out[number % 2], seed, number)
                images[f"image{number}"] = {
                    "patient": patient,
                    "detector": number % 2,
                    "boxes": boxes,
                    "scores": scores,
                    "classes": ["mass"] * len(boxes),
                    "wanted": [{"kind": "mass", "box": [0, 0, 10, 10]}],
                }
            place = output / "evaluations" / arm.name / f"seed{seed}"
            place.mkdir(parents=True, exist_ok=True)
            (place / "boxes.json").write_text(json.dumps(images))


@pytest.fixture
def evaluated(tmp_path):
    """Boxes of two arms, two seeds and six patients; the second arm finds the lesion in every
    mammogram, the first in one of six.
    """
    study = config(**ALONE, fppi=(1.0,))

    def find_boxes(arm, fold, seed, number):
        return [HIT if arm.copies or number == seed else MISS], [0.9]

    write_boxes(tmp_path, study, find_boxes)
    return study, tmp_path


def change_boxes(output, change, arm="*"):
    """Rewrite boxes.json of an arm with what change(images) leaves."""
    for path in output.glob(f"evaluations/{arm}/*/boxes.json"):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))


def make_report(study, output):
    """The report of a study whose evaluations are in a folder."""
    return detection_report.make_report(study, detection_report.read_results(study, output))


def test_recall_differences_and_runs_by_hand(evaluated):
    report = make_report(*evaluated)
    facts = report.facts
    # Seed 0 finds one of three lesions of fold 0, seed 1 one of fold 2: recall 1/3, 0, 0, 1/3;
    # either fold has a mean of 1/6.
    recall = find(facts, "real", "tpr@1", "froc")
    assert recall.value == pytest.approx(100 / 6) and (recall.patients, recall.images) == (6, 6)
    assert recall.low <= recall.value <= recall.high
    assert find(facts, "real", "tpr@all", "froc").value == pytest.approx(100 / 6), "Eq. (6)"
    assert find(facts, "real", "tpr_sd@1", "froc").value == pytest.approx(0, abs=1e-9)
    # Fold 0 of seed 0: one hit and two false positives of one score, in three mammograms. The
    # curve rises linearly to (2 / 3, 1 / 3) and stays there, so that its mean to 1 is 2 / 9.
    area = find(facts, "real", "mean_tpr@1", "froc").value
    assert area == pytest.approx(100 * (2 / 9 + 0 + 0 + 2 / 9) / 4)
    assert find(facts, "copies-2", "mean_tpr@1", "froc").value == 100
    difference = find(facts, "copies-2", "tpr@1", "differences", "real")
    assert difference.value == pytest.approx(500 / 6)
    # One hit and two false positives of one score: (1 + 1/2 + 1/2) + (1/2 + 0 + 0) x 2, of 9.
    # Fold 2 has 0 with this seed. With one seed, each fold would have its value.
    merit = find(facts, "real", "jafroc1", "runs", subset="run=0")
    assert merit.value == pytest.approx((1 / 3 + 0) / 2)
    assert find(facts, "real", "tpr@all", "runs", subset="run=1").value == pytest.approx(100 / 6)
    merits = report.tables[-1]
    assert merits.title == "JAFROC1 figure of merit of each run"
    assert merits.header == ["trained on", "fold 0", "fold 2"]
    assert merits.body == [
        ["real alone", "0.333, 0.000", "0.000, 0.333"],
        ["real + 2 copies", "1.000, 1.000", "1.000, 1.000"],
    ]
    rows = {row[0]: row[1:] for row in report.tables[0].body}
    assert list(rows) == [
        *("real alone", "real alone, pooled", "real + 2 copies", "real + 2 copies, pooled")
    ]
    assert rows["real alone"][0].startswith("16.7 ± 0.0\n[")
    # all of six patients with lesions: 1 - 3 / 6, by the rule of three
    assert rows["real + 2 copies"][0] == "100.0 ± 0.0\n[50.1, 100.0]"
    assert report.tables[0].header[1:] == ["1, %", "all detections, %", "mean from 0 to 1, %"]


def test_figures_of_a_study(evaluated, tmp_path):
    study, output = evaluated
    detected = detection_report.read_results(study, output)
    found = detected.found["copies-2"]
    assert len(found.images) == 12 and set(detected.patients) == set(PATIENTS)
    assert found.runs == [(0, 0), (2, 0)] * 3 + [(0, 1), (2, 1)] * 3, "folds 0 and 2 are held out"
    assert "6 lesions in 6 unseen mammograms, 0 of them normal, of 6 patients" in detected.title
    of_all = detection_report.draw_growth(study, detected, ALL_DETECTIONS).axes[0]
    assert of_all.get_ylabel() == "recall at IoU > 0.5, all detections"
    np.testing.assert_allclose(of_all.lines[0].get_ydata(), [1 / 6, 1])
    detection_report.draw_figures(study, detected, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"froc.png"}


def test_perfect_runs_whose_scores_lie_apart_are_perfect(tmp_path):
    """Every run ranks its lesions above its false positives; the seeds' scores are half a point
    apart.
    """
    study = config(**ALONE, fppi=(0.25,))
    boxes = [HIT, [40, 40, 60, 60]]
    write_boxes(
        tmp_path, study, lambda arm, fold, seed, _: (boxes, [0.3 + 0.5 * seed, 0.2 + 0.5 * seed])
    )
    facts = make_report(study, tmp_path).facts
    assert find(facts, "real", "tpr@0.25", "froc").value == 100
    assert find(facts, "real", "tpr@0.25", "froc", subset=froc.POOLED).value == 50


@pytest.mark.parametrize("is_normal", [False, True])
def test_fewer_than_six_patients_with_lesions_give_no_interval_and_no_p(evaluated, is_normal):
    study, output = evaluated

    def change(images):
        if not is_normal:
            return dict(list(images.items())[:4])
        for one in list(images.values())[4:]:
            one["wanted"] = []
        return images

    change_boxes(output, change)
    report = make_report(study, output)
    assert np.isnan([fact.low for fact in report.facts]).all()
    assert np.isnan([fact.p for fact in report.facts]).all()
    assert all("4 patients with lesions" in report.tables[n].notes[0] for n in (0, 2))


@pytest.mark.parametrize(
    ("changes", "references"),
    [
        ({"base": 2, "synthetic": (1, 3)}, ["real", "copies-5", "copies-2", "crn-3"]),
        ({"base": 0, "synthetic": (2,)}, ["real", "copies-2", "crn-2"]),
    ],
)
def test_arms_are_compared_with_copies_and_with_other_methods(evaluated, changes, references):
    study, output = evaluated
    methods = {name: Method(config=Path("a.yaml")) for name in ("unet", "crn")}
    study = study.model_copy(update={"methods": methods, "copies": (2, 5), **changes})
    write_boxes(output, study, lambda arm, fold, seed, number: ([HIT], [0.9]))
    report = make_report(study, output)
    found = dict.fromkeys(fact.against for fact in report.facts if fact.against)
    assert list(found) == references
    largest = study.synthetic[-1]
    assert find(report.facts, f"unet-{largest}", "tpr@all", "differences", f"crn-{largest}")
    keys = [(f.table, f.subset, f.model, f.against, f.measure) for f in report.facts]
    assert len(keys) == len(set(keys)), "each number once"
    tests = [fact for fact in report.facts if fact.against and fact.measure.startswith("jafroc")]
    pairs = {frozenset((fact.model, fact.against)) for fact in tests}
    assert len(tests) == len(pairs), "one direction of each pair"
    known = holm([fact.p for fact in tests])
    np.testing.assert_allclose([fact.p_corrected for fact in tests], known)
    tables = [table for table in report.tables if table.title.startswith("Differences")]
    assert len(tables) == len(references)
    assert all(len(table.body) == len(detection_report.list_arms(study)) - 1 for table in tables)


def test_what_evaluations_left_must_fit(evaluated):
    study, output = evaluated
    change_boxes(output, lambda images: dict(list(images.items())[1:]), "real")
    with pytest.raises(DataError, match="not evaluated on the same mammograms"):
        detection_report.read_results(study, output)
    path = output / "evaluations/real/seed0/boxes.json"
    for text, said in (("[", "can't be read"), ('{"image0": {"patient": "p"}}', "is not what")):
        path.write_text(text)
        with pytest.raises(DataError, match=f"boxes.json: {said}"):
            detection_report.read_results(study, output)
