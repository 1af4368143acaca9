"""The rows of studies on the papers' own data: partial, complete, arm by arm."""

import csv

import pytest

from tfmammo import config as configuration
from tfmammo.apps.report import pages, rebuild, studies, verdicts
from tfmammo.apps.report.facts import Facts
from tfmammo.apps.report.items import FACT_KEYS, ITEMS, find_item
from tfmammo.apps.report.studies import STUDIES
from tfmammo.metrics.case_scores import CENTRED_DISC, MEASURES, POSTPROCESSED
from tfmammo.studies.segmentation import StudyConfig, plan_runs

CAN, CGAN = STUDIES["can_inbreast"], STUDIES["cgan_inbreast"]
WIDE = {"CAN at full width": 0.915}
DICE = {"CAN": 0.91, "U-Net": 0.89, "FCN-8s": 0.87, "SegNet": 0.85, CENTRED_DISC: 0.70} | WIDE
SCRATCH = {"FCN-8s from scratch": 0.83, "SegNet from scratch": 0.81}
LOOSE = {"cGAN": 0.91, "cGAN without adversary": 0.92, "U-Net": 0.89, CENTRED_DISC: 0.70}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(studies, "SAMPLES", 2000)


def write(folder, runs):
    """Write the scores of runs: (arm, model, fold, seed) -> Dice of six patients a fold.

    In an arm of frames they are twelve.
    """
    endings = {"leak": ("~0", "~1"), "leak_short": ("~0", "~1"), "full": ("#full",)}
    keys = ("arm", "model", "fold", "seed")
    scores = [
        {
            **dict(zip(keys, key, strict=True)),
            "patient": f"p{key[2]}{n}",
            "case": f"lesion{key[2]}{n}{ending}",
            **dict.fromkeys(MEASURES, dice + 0.001 * (n % 6)),
        }
        for key, dice in runs.items()
        for n in range(12 if key[0] in CGAN.arms else 6)
        for ending in endings.get(key[0], ("",))
    ]
    curves = [
        dict(zip(keys, key, strict=True)) | {"step": 10, "dice": 0.5}
        for key in runs
        if key[1] != CENTRED_DISC and not key[1].endswith(POSTPROCESSED)
    ]
    for name, rows in (("scores", scores), ("curves", curves), ("runs", [{"code": "abc"}])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def every(dice, arm="unseen", seeds=1, folds=5):
    """All runs of models, whose Dice is given."""
    return {
        (arm, model, fold, seed): value
        for model, value in dice.items()
        for fold in range(folds)
        for seed in range(seeds)
    }


def read(folder, runs, study=CAN) -> Facts:
    write(folder, runs)
    found = studies.make_facts(studies.read_rows(study, folder))
    assert found is not None
    return found


def judge(item, study, found):
    """The evidence of each claim of an item, by what follows "than that of"."""
    return {
        one.says.rpartition("that of ")[2] or one.says.rpartition(" ")[2]: one
        for one in pages.judge_item(find_item(item), {study.key: found})
    }


def flatten(text):
    return " ".join(text.split())


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_study_is_that_of_its_config(study, repository, tmp_path):
    config = configuration.parse(StudyConfig, study.config)
    planned = [run.key[:2] for run in plan_runs(config, tmp_path, repository)]
    assert sorted((arm, model) for arm, one in study.plan.items() for model, _, _ in one.runs) == (
        sorted(planned)
    )
    for run in plan_runs(config, tmp_path, repository):
        assert f"training.steps={study.plan[run.arm].steps}" in run.train.overrides
        assert run.model in study.plan[run.arm].seeds
        if run.arm == study.base:
            *_, steps = (one for one in run.train.overrides if one.startswith("training.steps="))
            assert steps == f"training.steps={studies.read_steps(study.config)[run.model]}"
    assert list(study.arms) == list(config.arms) and study.folder == config.rows.name
    networks = {model.removesuffix(POSTPROCESSED) for model in study.shown} - {CENTRED_DISC}
    assert networks == set(config.models)
    has_smaller_patches = (config.test or config.data).size < 256
    assert study.is_smaller == has_smaller_patches
    papers = {value for row in find_item(study.item).printed.values.values() for value in row}
    assert study.key in FACT_KEYS and set(study.printed.values()) <= papers
    assert set(study.texts) <= {item.key for item in ITEMS}


def test_before_the_first_run_there_is_nothing(tmp_path):
    assert studies.read_facts(tmp_path) == {}
    assert rebuild._describe_leak({}) == "still to be measured, 0 of 63 runs are finished"
    for study in (CAN, CGAN):
        assert study.heading not in pages.build_page(find_item(study.item).paper, {})


def test_unfinished_models_are_shown_and_decide_nothing(tmp_path):
    runs = every({"CAN": 0.91}) | every({"U-Net": 0.89}, folds=2)
    found = read(tmp_path, runs | every({CENTRED_DISC: 0.7}))
    row = found.find("U-Net", "dice", table="progress", subset="protocol=unseen")
    assert (row.patients, round(row.value, 2)) == (12, 89.25)
    assert found.find("U-Net", "dice") is None and found.find("CAN", "dice").patients == 30
    assert found.find("CAN", "dice", "U-Net") is None
    assert all(one.word == "not tested" for one in judge("can_table1", CAN, found).values())
    text = flatten(pages.build_page("can", {CAN.key: found}))
    assert "**7 of 55 runs are finished.**" in text
    assert "| U-Net | 2 of 15 | 12 | 89.2" in text and "| SegNet | 0 of 5 | - |" in text
    assert "inflates Dice**" not in text and not pages.draw_curves({CAN.key: found})


def test_complete_models_are_compared_on_the_papers_data(tmp_path):
    found = read(tmp_path, every(DICE))
    row = found.find("CAN", "dice", "U-Net")
    assert row.patients == 30 and round(row.value, 2) == 2 and row.p_corrected < 0.05
    # five networks and the disc: each pair counts once
    assert len([one for one in found.rows if one.table == "differences"]) == 15
    assert row.p_corrected == pytest.approx(15 * row.p)
    assert list(found.find_repeats("folds", "CAN", "dice").values()) == pytest.approx([91.25] * 5)
    assert not found.find_repeats("runs", "CAN", "dice")
    by_claim = judge("can_table1", CAN, found)
    assert by_claim["U-Net."].word == "holds" and by_claim["U-Net."].facts is found
    assert found.about.is_papers_data and by_claim["SegNet."].word == "holds"
    page = pages.build_page("can", {CAN.key: found})
    (header,) = (line for line in page.splitlines() if line.startswith("|  | Jaccard, %, unseen"))
    assert header.count("printed") == 3, "of Jaccard, accuracy and MCC"
    (row,) = (line for line in page.splitlines() if line.startswith("| U-Net |") and "85.2" in line)
    assert row.startswith("| U-Net | 89.2 [") and "| 83.0 |" in row and "| 93.1 |" in row
    assert found.about.is_preliminary and by_claim["U-Net."].certainty == "low"
    assert by_claim["U-Net."].basis == "the paper's data, 1 seed, preliminary"
    rest = every(DICE | SCRATCH)
    for arm in ("leak", "leak_short"):
        rest |= every(DICE | SCRATCH, arm, folds=1)
    assert read(tmp_path, every(DICE, seeds=2) | rest).about.is_preliminary
    pair = {name: DICE[name] for name in ("CAN", "U-Net")}
    by_claim = judge("can_table1", CAN, read(tmp_path, every(pair, seeds=3) | rest))
    assert by_claim["U-Net."].basis == "the paper's data, 3 seeds"
    assert by_claim["SegNet."].basis == "CAN at full width, the paper's data, 1 seed"
    more = read(tmp_path, every(DICE, seeds=2))
    assert len(more.find_repeats("runs", "CAN", "dice")) == 2
    assert len(more.find_repeats("folds", "CAN", "dice")) == 5


def test_the_leak_of_one_model_and_seed_is_told(tmp_path):
    """Table, paragraph, figure and first page, while the other models are still missing."""
    unseen = every(DICE | {"CAN": 0.91})
    leak = every({"CAN": 0.95, CENTRED_DISC: 0.7}, "leak_short", folds=1)
    found = read(tmp_path, unseen | leak)
    row = found.find("CAN", "dice", "CAN", "arms", "arm=leak_short;less=unseen")
    assert row.images == 6 and round(row.value, 2) == 4  # copies count once
    assert row.patients == 6 and row.p_corrected == pytest.approx(2 * row.p)
    facts = {CAN.key: found}
    page = pages.build_page("can", facts)
    line = next(line for line in page.splitlines() if line.startswith("| CAN | 5 of 15"))
    assert "+4.0" in line and "runs are finished (leaking split: 1 of 4).**" in flatten(page)
    assert "inflates Dice**" in page and "CAN +4.0" in flatten(page)
    (figure,) = pages.draw_curves(facts)
    assert f"]({figure})" in page and figure.endswith(".svg")
    drawn = pages.draw_curves(facts)[figure]
    assert "CAN, leaking split" in drawn and "CAN, unseen patients" in drawn
    assert "U-Net" not in drawn  # of one protocol alone
    first = flatten(rebuild.build_index(facts))
    assert "CAN +4.0" in first
    assert "still to be measured" not in first


@pytest.fixture
def frames(tmp_path):
    """The cGAN's study: all arms, two models and a half, post-processing that helps."""
    runs = {}
    for arm, shift in (("loose", 0), ("tight", 0.05), ("full", -0.4)):
        for model, dice in LOOSE.items():
            seeds = CGAN.plan[arm].seeds.get(model, 1)
            if arm == "loose" or model in ("cGAN", "U-Net", CENTRED_DISC):
                runs |= every({model: dice + shift}, arm, seeds, 1)
            if arm == "loose" and model == "U-Net" or model == "cGAN":
                smooth = {f"{model}{POSTPROCESSED}": dice + shift + 0.01}
                runs |= every(smooth, arm, seeds, 1)
    return read(tmp_path, runs, CGAN)


def test_claims_of_the_cgan_rest_on_the_test_set_of_the_paper(frames):
    (evidence,) = (one for key, one in judge("cgan_table", CGAN, frames).items() if key == "U-Net.")
    assert evidence.word == "holds" and evidence.facts is frames
    text = flatten(" ".join(pages.describe_claim(evidence)))
    assert "the paper's test data, 3 seeds, preliminary" in text
    assert len(frames.find_repeats("runs", "cGAN", "dice")) == 3
    # three networks and the disc, without their post-processed masks
    assert len({(r.model, r.against) for r in frames.rows if r.table == "differences"}) == 6
    assert frames.about.runs == 3 and frames.about.trained == 20


def test_orders_are_judged_in_each_frame(tmp_path):
    def read_runs(count, full):
        runs = every({"cGAN": 0.94, "U-Net": 0.95, CENTRED_DISC: 0.7}, "tight", count, 1)
        runs |= every({"cGAN": 0.9, "U-Net": full, CENTRED_DISC: 0.4}, "full", count, 1)
        return read(tmp_path, every(LOOSE, "loose", 3, 1) | runs, CGAN)

    words = judge("cgan_table", CGAN, read_runs(1, 0.5))
    for place in ("in tight frames", "in full mammograms"):
        assert words[f"U-Net {place}."].why == verdicts.ONE_RUN
    several = read_runs(3, 0.3)
    words = judge("cgan_table", CGAN, several)
    assert words["U-Net."].word == "holds"
    assert words["U-Net in tight frames."].word == "does not hold"
    assert words["U-Net in full mammograms."].why == verdicts.BELOW_TRIVIAL
    assert len(several.find_repeats("runs", "U-Net", "dice", "frame=tight")) == 3


def test_post_processing_is_tested_in_each_frame(frames):
    by_frame = [
        one.word for one in pages.judge_item(find_item("cgan_morphology"), {CGAN.key: frames})
    ]
    assert by_frame == ["holds"] * 3  # patches are as large as the paper's
    row = frames.find("cGAN + post-processing", "dice", "cGAN", "morphology", "frame=tight")
    assert round(row.value, 2) == 1
    assert row.p_corrected == pytest.approx(4 * row.p)  # three frames, and the U-Net's loose one


def test_frames_are_compared_on_the_same_masses(frames):
    facts = {CGAN.key: frames}
    subset = "arm=tight;less=loose"
    for model in ("cGAN", "U-Net", CENTRED_DISC):
        assert round(frames.find(model, "dice", model, "arms", subset).value, 2) == 5
    assert not [row for row in frames.rows if row.subset.startswith("arm=full")]
    page = pages.build_page("cgan", facts)
    text = flatten(page)
    assert "**9 of 17 runs are finished (tight frames: 6 of 6, full mammograms: 5 of 5).**" in text
    assert "| SegNet | 0 of 1 | - |" in text and "| cGAN | 3 of 3 | 12 |" in text
    assert "Dice changes by +1.0" in text
    (figure,) = pages.draw_curves(facts)
    assert f"]({figure})" in page


def test_the_model_with_the_fewest_seeds_says_how_many_there_are(tmp_path):
    runs = every({"cGAN": 0.9}, "loose", 3, 1) | every({"U-Net": 0.8}, "loose", 1, 1)
    found = read(tmp_path, runs | every({CENTRED_DISC: 0.7}, "loose", 1, 1), CGAN)
    evidence = judge("cgan_table", CGAN, found)["U-Net."]
    assert evidence.seeds == found.about.runs == 1 and "1 seed, prelim" in evidence.basis
    seeds = found.about.seeds
    assert seeds[""] == seeds["frame=loose"] and seeds["frame=tight"] == {"cGAN": 0, "U-Net": 0}
    assert found.about.count_seeds(["cGAN"], "frame=loose") == 3
    assert found.about.count_seeds(["cGAN"], "frame=tight") == 0
    assert (evidence.word, evidence.why) == ("not decided", verdicts.ONE_RUN)


def test_a_paragraph_waits_for_its_rows(tmp_path):
    dice = {"cGAN": 0.9, "cGAN without adversary": 0.92}
    for models, is_shown in ({"cGAN"}, False), (set(dice), True):
        runs = every({model: dice[model] for model in models}, "loose", 3, 1)
        text = flatten(pages.build_page("cgan", {CGAN.key: read(tmp_path, runs, CGAN)}))
        assert ("on its Dice loss alone, the cGAN's Dice changes by +2.0" in text) == is_shown


def test_models_are_compared_in_the_other_arms_too(tmp_path):
    runs = every(DICE) | every({"CAN": 0.95, "U-Net": 0.91}, "leak", folds=1)
    found = read(tmp_path, runs)
    row = found.find("CAN", "dice", "U-Net", subset="protocol=leak")
    assert round(row.value, 2) == 4 and round(found.find("CAN", "dice", "U-Net").value, 2) == 2
    assert found.find("CAN", "dice", "SegNet", subset="protocol=leak") is None
