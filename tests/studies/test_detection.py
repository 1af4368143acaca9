"""The detection studies' plan and tables; evaluate/detection.py --study runs them in
tests/scripts.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from tfmammo import config as configuration
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation import froc_tables
from tfmammo.metrics.detection import ALL_DETECTIONS
from tfmammo.studies import detection, detection_report
from tfmammo.studies.detection import Arm, Command, Method, StudyConfig, list_arms, plan_steps

OUT = Path("out")
ROOT = Path("repo")


def config(**values):
    small = {
        "name": "small",
        "data": {"name": "inbreast", "folds": 3},
        "detector": Command(script="light_head_rcnn", set={"model": {"filters": 4}}),
        "generators": {"unet": Command(script="infilling", set={"model": {"margin": None}})},
        "methods": {
            "unet": Method(
                config=Path("a.yaml"), set={"generator": "{output}/generators/unet/fold{fold}"}
            )
        },
        "copies": (2, 4),
        "base": 2,
        "synthetic": (3, 6),
        "folds": (0, 2),
        "seeds": (0, 1),
        "samples": 50,
    }
    return StudyConfig(**{**small, **values})


def make_tables(study, output):
    """The tables of a study whose evaluations lie in a folder."""
    return detection_report.make_tables(detection_report.read_results(study, output))


def options(step):
    return dict(one.split("=", 1) for one in step.arguments if "=" in one)


def test_arms_are_real_copies_and_methods():
    names = ["real", "copies-2", "copies-4", "unet-3", "unet-6"]
    assert [arm.name for arm in list_arms(config())] == names
    assert list_arms(config())[-1] == Arm("unet-6", 2, "unet", 6)
    assert (
        list_arms(config())[-1].title == "real + 2 copies + 6 by unet"
        and list_arms(config())[0].title == "real alone"
    )


def test_every_fold_trains_its_own_networks_and_every_arm_is_evaluated():
    steps = plan_steps(config(), OUT, ROOT, "parent")
    names = [step.name for step in steps]
    assert len(names) == len(set(names)) == 2 * (1 + 1 + 2 * 5) + 2 * 5
    for number, step in enumerate(steps):
        assert set(step.depends_on) <= set(names[:number])
    for fold in (0, 2):
        generator, synthesis = (
            next(step for step in steps if step.name == f"{what}/unet/fold{fold}")
            for what in ("generators", "synthetic")
        )
        assert (
            options(generator)["data.fold"] == str(fold)
            and options(generator)["model.margin"] == "null"
        )
        side = {
            key: options(synthesis)[f"patients.{key}"] for key in ("split_file", "fold", "side")
        }
        assert side == {"split_file": "out/split.json", "fold": str(fold), "side": "train"}
        assert options(synthesis)[
            "generator"
        ] == f"out/generators/unet/fold{fold}" and synthesis.depends_on == (generator.name,)
        assert options(synthesis)["count"] == "9"  # half more than 6


def test_a_detector_is_given_its_arms_mammograms_and_nobody_held_out():
    steps = {step.name: step for step in plan_steps(config(), OUT, ROOT, "parent")}
    real, copied, synthetic = (
        options(steps[f"detectors/{arm}/fold2-seed1"]) for arm in ("real", "copies-4", "unet-3")
    )
    assert (
        not any(key.startswith("data.added") for key in real) and copied["data.added.copies"] == "4"
    )
    added = {key: synthetic[f"data.added.{key}"] for key in ("copies", "synthetic", "count")}
    assert added == {"copies": "2", "synthetic": "out/synthetic/unet/fold2", "count": "3"}
    for said in (real, copied, synthetic):
        assert (said["data.split_file"], said["data.fold"], said["training.seed"]) == (
            "out/split.json",
            "2",
            "1",
        )
        assert (said["data.name"], said["model.filters"]) == ("inbreast", "4")
    assert steps["detectors/real/fold2-seed1"].ignored_args == ("--set", "tracking.parent=parent")
    evaluation = steps["evaluations/unet-3/seed1"]
    assert json.loads(options(evaluation)["detectors"]) == [
        "out/detectors/unet-3/fold0-seed1",
        "out/detectors/unet-3/fold2-seed1",
    ]


def test_all_folds_are_held_out_in_turn_unless_some_are_named():
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
        assert sum(step.name.startswith("detectors/") for step in steps) == 30


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("detector.script=nosuch", r"detectors/real/fold0-seed0: there is no script .*nosuch.py"),
        (
            "generators.unet.config=nosuch.yaml",
            r"generators/unet/fold0: .*nosuch.yaml: no such config file",
        ),
        (
            "methods.crn.set.pianter=paste",
            r"synthetic/crn/fold0: .*synthesis_full.yaml: pianter: unknown key",
        ),
        (
            "detector.set.training.stepz=3",
            r"detectors/real/fold0-seed0: .*training.stepz: unknown key",
        ),
    ],
)
def test_what_a_command_would_refuse_hours_later_is_refused_at_once(repository, override, said):
    file = repository / "configs/study_infilling.yaml"
    study = configuration.parse(StudyConfig, file)
    detection.check_steps(plan_steps(study, OUT, repository, "parent"))
    wrong = configuration.parse(StudyConfig, file, [override])
    with pytest.raises(ConfigError, match=said):
        detection.check_steps(plan_steps(wrong, OUT, repository, "parent"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": {}}, "methods and synthetic belong together"),
        ({"synthetic": ()}, "methods and synthetic belong together"),
        ({"methods": {"real": Method(config=Path("a.yaml"))}}, "no method may be called real"),
        ({"generators": {"../x": Command(script="infilling")}}, "become folders"),
        ({"folds": (3,)}, "there are 3 of them, from 0 on"),
        ({"data": DataConfig(split="paper")}, "split by patient"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        config(**values)


PATIENTS = "pqrstu"


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


HIT = [0, 0, 10, 9]
MISS = [0, 0, 4, 4]


@pytest.fixture
def evaluated(tmp_path):
    """Boxes of two arms, two seeds and six patients; the second arm finds the lesion in every
    mammogram, the first in one of six.
    """
    study = config(generators={}, methods={}, synthetic=(), copies=(2,), base=0, fppi=(1.0,))
    write_boxes(
        tmp_path,
        study,
        lambda arm, fold, seed, number: ([HIT if arm.copies or number == seed else MISS], [0.9]),
    )
    return study, tmp_path


def test_every_training_is_known_by_fold_and_seed(evaluated):
    results = detection_report.read_results(*evaluated)
    assert [len(results.matches[arm]) for arm in ("real", "copies-2")] == [12, 12] and set(
        results.patients
    ) == set(PATIENTS)
    assert results.trainings == [(0, 0), (2, 0)] * 3 + [(0, 1), (2, 1)] * 3, (
        "folds 0 and 2 are held out"
    )
    assert (
        "6 lesions in 6 unseen mammograms, 0 of them normal, of 6 patients, folds 0 and 2, 2 seeds"
        in results.title
    )


def test_tables_say_recall_and_difference(evaluated):
    results = detection_report.read_results(*evaluated)
    tables = detection_report.make_tables(results)
    assert set(tables) == {"recall", "false_positives", "difference", "trainings"}
    # One hit and two false positives of one score: (1 + 1/2 + 1/2) + (1/2 + 0 + 0) x 2, of 9.
    assert tables["trainings"].title == "JAFROC1 figure of merit of each training"
    assert tables["trainings"].header == ["trained on", "fold 0", "fold 2"]
    assert tables["trainings"].body == [
        ["real alone", "0.333, 0.000", "0.000, 0.333"],
        ["real + 2 copies", "1.000, 1.000", "1.000, 1.000"],
    ]
    rows = {row[0]: row[1:] for row in tables["recall"].body}
    assert list(rows) == [
        "real alone",
        "real alone, pooled",
        "real + 2 copies",
        "real + 2 copies, pooled",
    ]
    # Seed 0 finds one of three lesions of fold 0, seed 1 one of fold 2: recall 1/3, 0, 0, 1/3;
    # either fold has a mean of 1/6.
    assert (
        rows["real alone"][0].startswith("16.7 ± 0.0\n[")
        and rows["real + 2 copies"][0] == "100.0 ± 0.0\n[100.0, 100.0]"
    )
    assert rows["real alone"][1].startswith("16.7"), "of all detections, Eq. (6)"
    assert tables["recall"].header[1:] == ["1, %", "all detections, %", "mean from 0 to 1, %"]
    assert tables["difference"].body[0][1].startswith("+83.3")
    measured = detection_report.compute_metrics(results)
    assert (
        measured["real/recall at 1"] == pytest.approx(1 / 6)
        and measured["copies-2/recall of all detections"] == 1
    )
    assert list(results.select_curves()) == ["real alone", "real + 2 copies"]
    at_rate = detection_report.draw_growth(results, 1.0)
    assert at_rate.axes[0].get_legend() is not None
    of_all = detection_report.draw_growth(results, ALL_DETECTIONS).axes[0]
    assert of_all.get_ylabel() == "recall at IoU > 0.5, all detections"
    np.testing.assert_allclose(of_all.lines[0].get_ydata(), [1 / 6, 1])


def test_growth_is_a_line_for_each_arm_and_rate(evaluated):
    rows = detection_report.make_growth_rows(detection_report.read_results(*evaluated))
    keys = [(row["arm"], row["copies"], row["false_positives"]) for row in rows]
    assert keys == [
        ("real", 0, 1.0),
        ("real", 0, np.inf),
        ("copies-2", 2, 1.0),
        ("copies-2", 2, np.inf),
    ]
    real, real_of_all, copies, _ = rows
    assert real["recall"] == pytest.approx(1 / 6) and copies["recall"] == 1
    # Fold 0 of seed 0: one hit and two false positives of one score, in three mammograms. The
    # curve rises linearly to (2 / 3, 1 / 3) and stays there, so that its mean to 1 is 2 / 9.
    assert real["area"] == pytest.approx((2 / 9 + 0 + 0 + 2 / 9) / 4)
    assert real_of_all["recall"] == pytest.approx(1 / 6) and np.isnan(real_of_all["area"])
    assert copies["area"] == 1 and real["deviation"] == 0


def test_seconds_are_medians_without_the_first(evaluated):
    study, output = evaluated
    assert detection_report.tabulate_seconds(study, output) is None
    for seed, values in ((0, (9, 1, 3)), (1, (8, 4))):
        path = output / "evaluations" / "real" / f"seed{seed}" / "seconds.csv"
        # a second detector, whose first mammogram takes long, too
        lines = "".join(f"{detector},{value}\n" for detector in (0, 1) for value in values)
        path.write_text(f"detector,seconds\n{lines}", encoding="utf-8")
    table = detection_report.tabulate_seconds(study, output)
    assert table.body == [["real alone", "3.000"]], "the mean of 2 s and 4 s"


def test_perfect_trainings_whose_scores_lie_apart_are_perfect(tmp_path):
    """Every training ranks its lesions above its false positives; the seeds' scores are half a
    point apart.
    """
    study = config(generators={}, methods={}, synthetic=(), copies=(2,), base=0, fppi=(0.25,))
    far = [40, 40, 60, 60]
    write_boxes(
        tmp_path,
        study,
        lambda arm, fold, seed, number: ([HIT, far], [0.3 + 0.5 * seed, 0.2 + 0.5 * seed]),
    )
    body = make_tables(study, tmp_path)["recall"].body
    assert body[0][1] == "100.0 ± 0.0\n[100.0, 100.0]"
    assert body[1][0] == "real alone, pooled" and body[1][1].startswith("50.0")


def test_the_tables_say_what_p_is_and_correct_it(evaluated):
    study, output = evaluated
    study = study.model_copy(update={"copies": (2, 4)})
    # Copies-2 finds all but one of six, copies-4 all.
    hit = {"real": (0,), "copies-2": (0, 1, 2, 3, 4), "copies-4": range(6)}
    write_boxes(
        output,
        study,
        lambda arm, fold, seed, number: (
            [HIT if number in hit[arm.name] else MISS],
            [0.9 - number / 100],
        ),
    )
    table = make_tables(study, output)["difference"]
    assert table.header[-2:] == ["p, uncorrected", "p, Holm"]
    p, corrected = (np.array([float(row[place]) for row in table.body]) for place in (-2, -1))
    assert corrected.min() == pytest.approx(min(2 * p.min(), 1), abs=2e-3) and np.all(
        corrected >= p
    )
    (note,) = table.notes
    assert (
        "jackknife" in note and "one patient" in note and "Holm" in note and "2 comparisons" in note
    )


def test_a_small_p_is_not_rounded_to_zero(evaluated, monkeypatch):
    tiny = SimpleNamespace(difference=0.1, low=0.05, high=0.15, p=2e-5)
    monkeypatch.setattr(froc_tables, "jafroc_test", lambda *_: tiny)
    body = make_tables(*evaluated)["difference"].body
    assert {tuple(row[-2:]) for row in body} == {("2e-05", f"{len(body) * 2e-5:.0e}")}


def test_fewer_than_six_patients_give_no_interval_and_no_p_but_a_sentence(evaluated):
    study, output = evaluated
    for path in output.rglob("boxes.json"):
        boxes = json.loads(path.read_text())
        path.write_text(json.dumps({name: boxes[name] for name in list(boxes)[:4]}))
    tables = make_tables(study, output)
    assert not any("[" in cell for row in tables["recall"].body for cell in row)
    assert tables["difference"].body[0][-2:] == ["-", "-"]
    names = ("recall", "difference")
    assert all("4 patients with lesions" in tables[name].notes[0] for name in names)


def test_many_patients_of_whom_few_have_lesions_are_as_few(evaluated):
    study, output = evaluated
    for path in output.rglob("boxes.json"):
        boxes = json.loads(path.read_text())
        for one in list(boxes.values())[4:]:
            one["wanted"] = []
        path.write_text(json.dumps(boxes))
    tables = make_tables(study, output)
    assert not any("[" in cell for row in tables["recall"].body for cell in row)
    assert "4 patients with lesions" in tables["recall"].notes[0]


def test_false_positives_on_normal_mammograms_stand_apart(evaluated):
    """Of two normal mammograms and four with lesions only the normal ones show a false positive,
    one each: 2 in 6 images.
    """
    study, output = evaluated
    for path in output.rglob("boxes.json"):
        boxes = json.loads(path.read_text())
        for number, one in enumerate(boxes.values()):
            one["boxes"] = [HIT]
            one["wanted"] = [] if number < 2 else one["wanted"]
        path.write_text(json.dumps(boxes))
    body = make_tables(study, output)["false_positives"].body
    assert body[0] == ["real alone", "1.00 / 0.00"]


def test_boxes_of_kinds_that_are_not_counted_are_no_false_positives(evaluated):
    study, output = evaluated
    path = output / "evaluations/real/seed0/boxes.json"
    boxes = json.loads(path.read_text())
    for one in boxes.values():
        one.update(boxes=[[20, 20, 30, 30]], scores=[0.99], classes=["calcification"])
    path.write_text(json.dumps(boxes))
    results = detection_report.read_results(study, output)
    assert not any(len(one.false_positives) for one in results.matches["real"][:6])


def test_synthetic_mammograms_are_compared_with_the_copies_they_join_and_with_as_many(evaluated):
    study, output = evaluated
    methods = {"unet": Method(config=Path("a.yaml"))}
    changes = {"methods": methods, "copies": (2, 5), "base": 2, "synthetic": (1, 3)}
    study = study.model_copy(update=changes)
    write_boxes(output, study, lambda arm, fold, seed, number: ([HIT], [0.9]))
    tables = make_tables(study, output)
    assert list(tables) == [
        "recall",
        "false_positives",
        "difference",
        "difference-from-copies",  # the report judges by the first table that has the line
        "difference-from-base",
        "trainings",
    ]
    assert "real + 5 copies" in tables["difference-from-copies"].title
    assert "real + 2 copies" in tables["difference-from-base"].title


def test_synthetic_mammograms_that_join_no_copies_are_compared_with_as_many_copies(evaluated):
    study, output = evaluated
    study = study.model_copy(
        update={"methods": {"unet": Method(config=Path("a.yaml"))}, "synthetic": (2,)}
    )
    write_boxes(output, study, lambda arm, fold, seed, number: ([HIT], [0.9]))
    tables = make_tables(study, output)
    assert [row[0] for row in tables["difference-from-copies"].body] == [
        "real alone",
        "real + 2 by unet",
    ]
    assert "difference-from-base" not in tables


def test_arms_evaluated_on_different_mammograms_are_refused(evaluated):
    study, output = evaluated
    path = output / "evaluations/real/seed0/boxes.json"
    boxes = json.loads(path.read_text())
    path.write_text(json.dumps({key: boxes[key] for key in list(boxes)[1:]}))
    with pytest.raises(DataError, match="not evaluated on the same mammograms"):
        detection_report.read_results(study, output)
    path.write_text("[")
    with pytest.raises(DataError, match="boxes.json: can't be read"):
        detection_report.read_results(study, output)
    path.write_text(json.dumps({"image0": {"patient": "p"}}))
    with pytest.raises(DataError, match="is not what evaluate/detection.py writes"):
        detection_report.read_results(study, output)
