"""The detection studies' plan and tables; evaluate/detection.py --study runs them in tests/scripts."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tfmammo import config as configuration
from tfmammo.config import ConfigError, DataConfig
from tfmammo.data import splits
from tfmammo.data.patches import DataError
from tfmammo.detection import study
from tfmammo.detection.study import Arm, Command, Method, StudyConfig, arms, plan
from tfmammo.metrics.detection import froc

OUT, ROOT = Path("out"), Path("repo")


def config(**values):
    small = {
        "name": "small",
        "data": {"name": "inbreast", "folds": 3},
        "detector": Command(script="light_head_rcnn", set={"model": {"filters": 4}}),
        "generators": {"unet": Command(script="infilling", set={"model": {"margin": None}})},
        "methods": {"unet": Method(config=Path("a.yaml"), set={"generator": "{output}/generators/unet/fold{fold}"})},
        "copies": (2, 4),
        "base": 2,
        "synthetic": (3, 6),
        "folds": (0, 2),
        "seeds": (0, 1),
        "samples": 50,
    }
    return StudyConfig(**{**small, **values})


def options(step):
    return dict(one.split("=", 1) for one in step.arguments if "=" in one)


def test_arms_are_real_copies_and_methods():
    names = ["real", "copies-2", "copies-4", "unet-3", "unet-6"]
    assert [arm.name for arm in arms(config())] == names
    assert arms(config())[-1] == Arm("unet-6", 2, "unet", 6)
    assert arms(config())[-1].shown == "real + 2 copies + 6 by unet" and arms(config())[0].shown == "real alone"


def test_every_fold_trains_its_own_networks_and_every_arm_is_judged():
    steps = plan(config(), OUT, ROOT, "parent")
    names = [step.name for step in steps]
    assert len(names) == len(set(names)) == 2 * (1 + 1 + 2 * 5) + 2 * 5
    for number, step in enumerate(steps):
        assert set(step.needs) <= set(names[:number])
    for fold in (0, 2):
        generator, made = (next(step for step in steps if step.name == f"{what}/unet/fold{fold}") for what in ("generators", "synthetic"))
        assert options(generator)["data.fold"] == str(fold) and options(generator)["model.margin"] == "null"
        side = {key: options(made)[f"patients.{key}"] for key in ("split_file", "fold", "side")}
        assert side == {"split_file": "out/split.json", "fold": str(fold), "side": "train"}
        assert options(made)["generator"] == f"out/generators/unet/fold{fold}" and made.needs == (generator.name,)
        assert options(made)["count"] == "9"  # half more than 6


def test_a_detector_is_given_its_arms_mammograms_and_nobody_held_out():
    steps = {step.name: step for step in plan(config(), OUT, ROOT, "parent")}
    real, copied, synthetic = (options(steps[f"detectors/{arm}/fold2-seed1"]) for arm in ("real", "copies-4", "unet-3"))
    assert not any(key.startswith("data.added") for key in real) and copied["data.added.copies"] == "4"
    added = {key: synthetic[f"data.added.{key}"] for key in ("copies", "synthetic", "count")}
    assert added == {"copies": "2", "synthetic": "out/synthetic/unet/fold2", "count": "3"}
    for said in (real, copied, synthetic):
        assert (said["data.split_file"], said["data.fold"], said["training.seed"]) == ("out/split.json", "2", "1")
        assert (said["data.name"], said["model.filters"]) == ("inbreast", "4")
    assert steps["detectors/real/fold2-seed1"].aside == ("--set", "tracking.parent=parent")
    judged = steps["evaluations/unet-3/seed1"]
    assert json.loads(options(judged)["detectors"]) == ["out/detectors/unet-3/fold0-seed1", "out/detectors/unet-3/fold2-seed1"]


def test_all_folds_are_held_out_in_turn_unless_some_are_named():
    assert config(folds=None).held_out == (0, 1, 2)
    assert config(folds=None, data=DataConfig(split="official")).held_out == (0,)


@pytest.mark.parametrize("name", ["infilling", "blending"])
def test_the_repositorys_studies_are_the_papers(repository, name):
    found = configuration.parse(StudyConfig, repository / "configs" / f"study_{name}.yaml")
    steps = plan(found, OUT, repository, "parent")
    for step in steps:
        files = [Path(one) for one in step.command if one.endswith((".py", ".yaml"))]
        assert files and all(file.is_file() or (repository / file).is_file() for file in files)
    if name == "infilling":
        assert np.diff((0, *found.copies)).tolist() == [300, 300, 400, 500, 500, 500, 500, 1000]
        assert np.diff((0, *found.synthetic)).tolist() == [300, 500, 500, 500, 500, 500]
        assert found.base + 566 == 2066 and len(steps) == 74
    else:
        assert (found.synthetic, found.data.folds, found.held_out) == ((200,), 5, (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("detector.script=nosuch", r"detectors/real/fold0-seed0: there is no script .*nosuch.py"),
        ("generators.unet.config=nosuch.yaml", r"generators/unet/fold0: .*nosuch.yaml: no such config file"),
        ("methods.crn.set.pianter=paste", r"synthetic/crn/fold0: .*synthesis_full.yaml: pianter: unknown key"),
        ("detector.set.training.stepz=3", r"detectors/real/fold0-seed0: .*training.stepz: unknown key"),
    ],
)
def test_what_a_command_would_refuse_hours_later_is_refused_at_once(repository, override, said):
    file = repository / "configs/study_infilling.yaml"
    study.check(plan(configuration.parse(StudyConfig, file), OUT, repository, "parent"))
    with pytest.raises(ConfigError, match=said):
        study.check(plan(configuration.parse(StudyConfig, file, [override]), OUT, repository, "parent"))


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


@pytest.fixture
def judged(tmp_path):
    """Boxes of two arms, two seeds and four mammograms of two patients; the second arm finds the lesion in every one of them."""
    splits.save(
        tmp_path / "split.json",
        splits.SavedSplit(archive="a", split="patient", folds=2, seed=0, stratify="none", patients={"p": 0, "q": 1}),
    )
    chosen = config(generators={}, methods={}, synthetic=(), copies=(2,), base=0, fppi=(1.0,))
    lesion = {"kind": "mass", "box": [0, 0, 10, 10]}
    for arm in arms(chosen):
        for seed in chosen.seeds:
            boxes = {}
            for number in range(4):
                right = arm.copies or number == seed
                boxes[f"image{number}"] = {
                    "patient": "pq"[number // 2],
                    "boxes": [[0, 0, 10, 9] if right else [0, 0, 4, 4]],
                    "scores": [0.9],
                    "classes": ["mass"],
                    "wanted": [lesion],
                }
            place = tmp_path / "evaluations" / arm.name / f"seed{seed}"
            place.mkdir(parents=True)
            (place / "boxes.json").write_text(json.dumps(boxes))
    return chosen, tmp_path


def test_seeds_are_judged_together(judged):
    found = study.results(*judged)
    assert [len(found.matches[arm]) for arm in ("real", "copies-2")] == [8, 8] and set(found.patients) == {"p", "q"}
    assert froc(found.matches["real"], [1.0]).tpr[0] == 2 / 8 and froc(found.matches["copies-2"], [1.0]).tpr[0] == 1
    assert "4 lesions in 4 unseen mammograms of 2 patients, folds 0 and 2, 2 seeds" in found.title


def test_tables_say_recall_and_difference(judged):
    found = study.results(*judged)
    tables = study.tables(found)
    assert set(tables) == {"recall", "difference"}
    assert [row[0] for row in tables["recall"].body] == ["real alone", "real + 2 copies"]
    assert tables["recall"].body[1][1].startswith("100.0") and tables["difference"].body[0][1].startswith("+75.0")
    assert study.metrics(found) == {"real/recall at 1": 0.25, "copies-2/recall at 1": 1.0}
    assert list(found.shown()) == ["real alone", "real + 2 copies"]
    assert study.growth_figure(found).axes[0].get_legend() is not None


def test_the_base_is_compared_with_too(judged):
    chosen, output = judged
    found = study.results(chosen.model_copy(update={"base": 2}), output)
    assert study.tables(found)["difference-from-base"].body[0][:1] == ["real alone"]


def test_arms_judged_on_different_mammograms_are_refused(judged):
    chosen, output = judged
    path = output / "evaluations/real/seed0/boxes.json"
    boxes = json.loads(path.read_text())
    path.write_text(json.dumps({key: boxes[key] for key in list(boxes)[1:]}))
    with pytest.raises(DataError, match="not judged on the same mammograms"):
        study.results(chosen, output)
    path.write_text("[")
    with pytest.raises(DataError, match="boxes.json: can't be read"):
        study.results(chosen, output)
    path.write_text(json.dumps({"image0": {"patient": "p"}}))
    with pytest.raises(DataError, match="is not what evaluate/detection.py writes"):
        study.results(chosen, output)
