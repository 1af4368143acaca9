"""The evaluate scripts on a small archive in native form and on real exports of networks
whose outputs are known.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from tests.commands import run_script_here
from tests.facts import find, read_csv, read_rows, read_scores
from tests.known_networks import KnownCAN, Weightless, make_card
from tests.small_mammograms import write_discs
from tfmammo import config as configuration
from tfmammo.config import DataConfig, Experiment, TrackingConfig
from tfmammo.data import datasets, splits
from tfmammo.data.extraction import make_shape_patches
from tfmammo.errors import ConfigError, DataError, TfmammoError
from tfmammo.evaluation import losses
from tfmammo.evaluation import segmentation as segmentation_report
from tfmammo.evaluation import shape as shape_report
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig, compare
from tfmammo.evaluation.networks import Network
from tfmammo.evaluation.report import ComparisonReport
from tfmammo.evaluation.segmentation import SegmentationConfig
from tfmammo.mammogram import key_check
from tfmammo.metrics import resampling, segmentation, synthesis, texture
from tfmammo.metrics.classification import RATES
from tfmammo.models.cgan import CGANConfig
from tfmammo.tracking import export
from tfmammo.tracking import runs as tracking
from tfmammo.training.image_grid import HEADER

SIZE = 32
FOLDS = 3
LEVELS = {"CAN": (0.4, 0.5, 0.6), "U-Net": (0.3, 0.3, 0.3)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """CDD-CESM's form: nine patients with two views each, a bright disc outlined a little off."""
    root = tmp_path_factory.mktemp("archive")
    write_discs(root, 9, jitter=3)
    return root


@pytest.fixture(scope="module")
def data(archive):
    return DataConfig(name="cdd_cesm", root=archive, size=SIZE, folds=FOLDS, phantoms=4)


@pytest.fixture(scope="module")
def patches(data):
    return datasets.load_all_patches(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data, patches):
    """Run folders NAME/fold0 .. NAME/fold2, and NAME/leaky by the paper's protocol."""
    root = tmp_path_factory.mktemp("runs")
    leaky = {"split": "paper", "paper_samples": 60, "paper_test": 20, "root": None}
    changes = {f"fold{fold}": {"fold": fold} for fold in range(FOLDS)} | {"leaky": leaky}
    for name, levels in LEVELS.items():
        for level, (place, values) in zip((*levels, levels[0]), changes.items(), strict=True):
            card = make_card(patches, data.model_copy(update=values))
            export.export(KnownCAN("known", SIZE, level), root / name / place / "export", card)
    return root


@pytest.fixture(scope="module")
def run(archive, run_evaluate):
    """A function that runs an evaluate script: models and overrides -> its output folder."""

    def call(name, models, *overrides):
        data = {"name": "cdd_cesm", "root": str(archive), "size": SIZE}
        return run_evaluate(name, {"data": data, "models": models, "samples": 500}, *overrides)

    return call


@pytest.fixture(scope="module")
def models(runs):
    """Both models with all folds."""
    return {name: [str(runs / name / f"fold{fold}") for fold in range(FOLDS)] for name in LEVELS}


@pytest.fixture(scope="module")
def compared(run, models):
    """What evaluate/segmentation.py writes of both models."""
    return run("segmentation", models)


def read_values(output, model, name):
    """A column of per_image.csv of a model."""
    return np.array([float(row[name]) for row in read_scores(output, model)])


def read_markdown(output):
    return (output / "table.md").read_text(encoding="utf-8")


def test_each_patch_is_evaluated_by_the_fold_that_never_saw_its_patient(compared, runs, patches):
    rows = read_scores(compared, "CAN")
    assert [row["id"] for row in rows] == patches.ids.tolist()
    for row, image, mask in zip(rows, patches.images, patches.masks, strict=True):
        fold = int(row["fold"])
        card = export.read_card(runs / "CAN" / f"fold{fold}" / "export")
        assert row["patient"] not in card["train_patients"]
        output_mask = image >= LEVELS["CAN"][fold]
        for measure, (expected,) in segmentation.per_image(mask[None], output_mask[None]).items():
            assert float(row[measure]) == pytest.approx(expected, abs=1e-9)
    assert {row["fold"] for row in rows} == {"0", "1", "2"}


def test_facts_and_tables_summarise_the_images(compared, patches):
    facts = read_rows(compared)
    dice = read_values(compared, "CAN", "dice")
    fact = find(facts, "CAN", "dice")
    assert (fact.images, fact.patients, fact.unit) == (18, 9, "%")
    bounds = resampling.bootstrap_interval(dice, patches.patient_ids, samples=500)
    expected = [100 * one for one in (dice.mean(), *bounds)]
    assert (fact.value, fact.low, fact.high) == pytest.approx(expected, rel=1e-5)
    fact = find(facts, "U-Net", "dice", "differences", "CAN")
    assert fact.p_corrected >= fact.p
    share = patches.masks.mean(axis=(1, 2, 3))
    # everything is called mass
    expected = 2 * share / (1 + share)
    assert read_values(compared, "whole patch", "dice") == pytest.approx(expected)
    of_fold = find(facts, "CAN", "dice", "folds", subset="fold=1").value
    rows = read_scores(compared, "CAN")
    expected = np.mean([float(row["dice"]) for row in rows if row["fold"] == "1"])
    assert of_fold == pytest.approx(100 * expected, rel=1e-5)
    markdown = read_markdown(compared)
    assert f"| CAN | {find(facts, 'CAN', 'accuracy').value:.1f} [" in markdown
    printed = "| CAN, as printed (on inbreast, a split that leaks) | 94.1 | 91.7 | 85.1 | 87.2 |"
    assert printed in markdown and "LEAKY" not in markdown
    assert "Holm's correction for 3 comparisons; 500 random draws" in markdown
    pictures = ("figure-CAN.png", "figure-U-Net.png", "overlays.png", "boxes.png", "roc.png")
    assert {path.name for path in compared.glob("*.png")} == {*pictures}


def test_post_processing_adds_a_row_for_each_model(run, models, patches):
    morphology = "postprocess={closing: 0, erosion: 0, dilation: 3}"
    settings = ("baselines=[]", "threshold=0.4", "groups=[pathology]")
    output = run("segmentation", models, morphology, *settings)
    rows = read_csv(output / "per_image.csv")
    shown = ["CAN", "CAN + post-processing", "U-Net", "U-Net + post-processing"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == shown
    dices = [float(row["dice"]) for row in rows if row["model"] == "U-Net + post-processing"]
    for dice, image, mask in zip(dices, patches.images, patches.masks, strict=True):
        bright = (100 * (image - LEVELS["U-Net"][0]) >= np.log(0.4 / 0.6)).astype(np.uint8)
        smooth = cv2.dilate(bright, np.ones((3, 3), np.uint8))
        assert dice == pytest.approx(segmentation.dice(mask[..., 0], smooth), abs=1e-9)
    assert {row["fold"] for row in rows if row["model"] == "CAN + post-processing"} == {""}
    assert not (output / "figure-CAN + post-processing.png").exists()
    group = patches.pathologies[0]
    fact = find(read_rows(output), "CAN", "dice", "groups", subset=f"pathology={group}")
    assert fact.images == np.sum(patches.pathologies == group)


def test_overlays_boxes_and_roc_show_what_was_measured(patches, tmp_path, monkeypatch):
    truth = patches.masks.astype(np.float32)
    half = truth * np.float32(0.9)
    half[:, : SIZE // 2] = 0.1
    outputs = {"A": half, "B": 0.1 + 0.8 * patches.images}
    scores = {name: segmentation.per_image(patches.masks, one) for name, one in outputs.items()}
    config = SegmentationConfig(models={"A": "a"}, cases=2)
    runs = {name: [one] for name, one in outputs.items()}
    comparison = Comparison("unseen", DataConfig(), patches, runs, {}, {}, patches)
    dice = {name: values["dice"] for name, values in scores.items()}
    path = tmp_path / "o.png"
    segmentation_report.write_overlays(comparison, config, outputs, dice, path)
    sheet = cv2.imread(str(path))[..., ::-1]
    assert sheet.shape == (HEADER + 4 * (SIZE + 3), 3 + 4 * (SIZE + 3), 3)
    best = np.argsort(-dice["A"], kind="stable")[0]
    left = 3 + 2 * (SIZE + 3)
    colours = sheet[HEADER : HEADER + SIZE, left : left + SIZE]
    mask = patches.masks[best, ..., 0].astype(bool)
    lower = np.arange(SIZE)[:, None] >= SIZE // 2
    assert (colours[mask & lower] == (255, 255, 0)).all()
    assert (colours[mask & ~lower] == (255, 0, 0)).all() and (colours[~mask] == 0).all()
    axes = segmentation_report.draw_box_plots(scores).axes[1]
    medians = [line.get_ydata()[0] for line in axes.lines if line.get_color() == "#d55e00"]
    assert medians == pytest.approx([100 * np.median(scores[name]["jaccard"]) for name in outputs])
    area = sklearn.metrics.roc_auc_score(truth.ravel(), half.ravel())
    for most, tolerance in ((10**9, 1e-9), (2_000, 0.05)):
        monkeypatch.setattr(segmentation_report, "MAX_PIXELS", most)
        report = ComparisonReport(config=config)
        figure = segmentation_report.add_roc_curves(report, comparison)
        assert len(figure.axes[0].lines) == 3
        assert find(report.facts, "A", "auc", "roc").value == pytest.approx(area, abs=tolerance)
    assert "2,000 pixels" in report.tables[0].title and "±" not in report.tables[0].notes[0]


def test_masks_without_probabilities_have_no_roc_curve(patches):
    runs = {"A": [0.5 * patches.images], "nnU-Net": [patches.masks.astype(np.float32)]}
    report = ComparisonReport(config=EvaluationConfig(models={"A": "a", "nnU-Net": "b"}))
    comparison = Comparison("unseen", DataConfig(), patches, runs, {}, {}, patches)
    segmentation_report.add_roc_curves(report, comparison)
    assert [line[0] for line in report.tables[0].body] == ["A"]
    assert "no curve: nnU-Net" in report.tables[0].notes[0]


def test_folds_have_roc_curves_of_their_own(patches):
    number = np.arange(len(patches)) % 2
    shifted = 0.1 * patches.masks + 0.5 * number[:, None, None, None]
    runs = {"A": [shifted.astype(np.float32)]}
    report = ComparisonReport(config=EvaluationConfig(models={"A": "a"}))
    comparison = Comparison("unseen", DataConfig(), patches, runs, {"A": number}, {}, patches)
    segmentation_report.add_roc_curves(report, comparison)
    assert report.tables[0].body == [["A", "1.000 ± 0.000"]]
    assert report.tables[0].notes[0].startswith("Mean ± SD over folds")
    assert find(report.facts, "A", "auc", "roc", subset="fold=1").value == 1


def test_models_are_compared_on_what_all_of_them_are_eligible_for(run, runs, models):
    some = {"CAN": models["CAN"], "U-Net": models["U-Net"][1]}
    output = run("segmentation", some, "baselines=[]")
    evaluated = {model: [row["id"] for row in read_scores(output, model)] for model in LEVELS}
    assert evaluated["CAN"] == evaluated["U-Net"]
    card = export.read_card(runs / "U-Net" / "fold1" / "export")
    assert sorted(evaluated["CAN"]) == sorted(card["held_out_ids"])
    assert {fact.model for fact in read_rows(output)} == {"CAN", "U-Net"}


@pytest.mark.slow
def test_the_leaky_protocol_has_a_table_of_its_own(run, runs, models, data):
    some = {"CAN": models["CAN"]}
    some |= {f"{name} leaky": [str(runs / name / "leaky")] for name in LEVELS}
    output = run("segmentation", some)
    leaky = read_scores(output, "CAN leaky")
    card = export.read_card(runs / "CAN" / "leaky" / "export")
    assert [row["id"] for row in leaky] == card["held_out_ids"]
    assert len(leaky) == 20 and all("~" in row["id"] for row in leaky)
    facts = read_rows(output)
    assert find(facts, "CAN leaky", "dice", subset="protocol=paper").images == 20
    assert find(facts, "U-Net leaky", "dice", "differences", "CAN leaky", "protocol=paper")
    fair, separate = read_markdown(output).split("### LEAKY", 1)
    assert "CAN leaky" not in fair and "| CAN |" not in separate
    _, of_copies = compare(SegmentationConfig(data=data, models=some), "image", "mask")
    assert len(of_copies.pool) == 40 and not {*of_copies.pool.ids} & {*card["held_out_ids"]}


def test_all_patients_on_demand(run, models, patches):
    one = {"CAN": models["CAN"][0]}
    output = run("segmentation", one, "patients=all", "threshold=0.9")
    probabilities = 1 / (1 + np.exp(-100 * (patches.images.astype(np.float64) - LEVELS["CAN"][0])))
    expected = segmentation.per_image(patches.masks, probabilities, 0.9)["jaccard"]
    assert read_values(output, "CAN", "jaccard") == pytest.approx(expected, abs=0.01)
    assert find(read_rows(output), "CAN", "dice", subset="protocol=all").images == len(patches)


def test_a_savedmodel_without_a_card(run, tmp_path, patches):
    foreign = {"foreign": str(tmp_path / "foreign")}
    sheet = Weightless("sheet", lambda image: {"mask": tf.ones_like(image)}, image=(None, None, 1))
    tf.saved_model.save(tf.Module(), foreign["foreign"], signatures=sheet.exported["sheet"])
    with pytest.raises(DataError, match="foreign: .*patients=all"):
        run("segmentation", foreign)
    output = run("segmentation", foreign, "patients=all")
    dices = [row["dice"] for row in read_scores(output, "foreign")]
    assert dices == [row["dice"] for row in read_scores(output, "whole patch")]
    assert len(dices) == len(patches)


def test_what_can_not_be_evaluated_is_an_error_of_one_sentence(run, runs, models, tmp_path):
    can, unet = models["CAN"], models["U-Net"]
    leaky = str(runs / "CAN" / "leaky")
    for message, some, *overrides in (
        (r"different numbers of runs \(2, 1\)", {"CAN": [can[0], can[0], can[1]]}),
        ("several URIs are eligible for 18 patches", {"CAN": can}, "patients=all"),
        ("none of CAN, U-Net", {"CAN": can[0], "U-Net": unet[1]}),
        ("from image to mask", {"CAN": can[0] + "/export/generator"}),
        (r"data.size: .* 32 px", {"CAN": can}, "data.size=16"),
        ("nowhere", {"CAN": str(tmp_path / "nowhere")}),
        ("one paper split", {"CAN": [can[0], leaky]}),
        ("held-out copies", {"CAN": leaky}, "data.name=phantom", "data.root=null"),
        ("threshold: ", {"CAN": "runs"}, "threshold=0"),
        ("models.CAN: ", {"CAN": "runs"}, "models.CAN=[]"),
        ("models.a/b", {"a/b": "runs"}),
        ("whole patch", {"whole patch": "runs"}),
        ("post-processing", {"A": "runs", "A + post-processing": "runs"}, "postprocess={}"),
        ("postprocess.closng", {"CAN": "runs"}, "postprocess.closng=3"),
    ):
        with pytest.raises(TfmammoError, match=message) as caught:
            run("segmentation", some, *overrides)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="most frequent"):
        run("shape", {"most frequent": "runs"})


def make_discs(radii, size=64):
    """Masks of centred discs, [n, size, size, 1], by counting."""
    place = np.arange(size) - (size - 1) / 2
    squares = place[:, None] ** 2 + place**2
    return np.stack([(squares <= radius**2)[..., None] for radius in radii]).astype(np.uint8)


def make_comparison(patches, pool, folds, train_patients, protocol="unseen"):
    """A comparison whose model A has a network for each list of patients."""
    of_model = [
        Network(f"run{n}", Path(), None, {"train_patients": known, "id_key": key_check()}, "image")
        for n, known in enumerate(train_patients)
    ]
    runs = {"A": [patches.masks.astype(np.float32)]}
    networks_of = {"A": of_model}
    folds_of = {"A": np.array(folds)}
    return Comparison(protocol, DataConfig(), patches, runs, folds_of, networks_of, pool)


def of_discs(patches, radii, patients):
    """Patches whose masks are centred discs."""
    masks = make_discs(radii)
    return replace(
        patches.take(np.zeros(len(radii), np.intp)),
        images=masks.astype(np.float32),
        masks=masks,
        patient_ids=np.array(patients),
        ids=np.array([f"{row}" for row in range(len(radii))]),
    )


def test_the_disc_is_fitted_on_the_training_masks_of_each_fold(patches):
    pool = of_discs(patches, [10, 10, 20, 20, 25, 5], list("aabbcd"))
    fit = segmentation_report.make_baselines
    comparison = make_comparison(pool.take([4, 5]), pool, [0, 1], [["a"], ["b"]])
    baselines, (note,) = fit(("whole patch", "centred disc"), comparison)
    assert (baselines["whole patch"] == 1).all() and "radius of 10, 20 px" in note
    np.testing.assert_array_equal(baselines["centred disc"], make_discs([10, 20]))
    assert baselines["centred disc"].dtype == np.float32
    copies = make_comparison(pool.take([5]), pool.take([2, 3, 4]), [0], [[]], "paper")
    leaky, _ = fit(("centred disc",), copies)
    np.testing.assert_array_equal(leaky["centred disc"], make_discs([20]))
    assert fit((), make_comparison(pool, pool, [0] * 6, [["a"]])) == ({}, ())
    # of a foreign model: on the masks of the other patients
    pool = of_discs(patches, [10, 10, 20], list("aab"))
    comparison = make_comparison(pool, pool, [0, 0, 0], [["nobody here"]])
    foreign, (note,) = fit(("centred disc",), comparison)
    np.testing.assert_array_equal(foreign["centred disc"], make_discs([20, 20, 10]))
    assert "all other patients" in note
    for radii, patients, known in (([10], "a", []), ([0, 0], "ab", ["a"])):
        pool = of_discs(patches, radii, list(patients))
        with pytest.raises(DataError, match="baselines: there is no lesion"):
            fit(("centred disc",), make_comparison(pool, pool, [0] * len(radii), [known], "all"))


@pytest.mark.parametrize("frame", ["full", "padded", "tight"])
def test_the_disc_is_in_the_table_however_patches_are_cut(run, models, frame, caplog):
    one = {"CAN": models["CAN"]}
    output = run("segmentation", one, f"data.frame={frame}", "data.context=2", "compare=pairs")
    facts = read_rows(output)
    assert find(facts, "centred disc", "dice", "differences", "whole patch").images == 18
    disc, whole = (find(facts, name, "dice").value for name in ("centred disc", "whole patch"))
    assert disc >= whole
    assert "as printed" not in read_markdown(output), "the paper's are of another frame"
    said = "was trained with data.context 1.3 and is evaluated with 2.0" in caplog.text
    assert said == (frame != "full")  # images that are taken whole are crops already


def test_synthesis_facts_and_sheet(run, models, patches):
    both = {"CAN": models["CAN"], "Pix2Pix": models["U-Net"]}
    output = run("synthesis", both, "rows=5", "seed=3")
    facts = read_rows(output)
    fake = 0.2 + np.float32(0.3) * patches.masks.astype(np.float32)
    expected = synthesis.per_image(patches.images, fake, patches.masks)
    for name, values in expected.items():
        assert read_values(output, "Pix2Pix", name) == pytest.approx(values, abs=1e-5)
        assert find(facts, "Pix2Pix", name).value == pytest.approx(values.mean(), rel=1e-5)
    inside = patches.masks == 1
    greys = np.where(inside, patches.images[inside].mean(), patches.images[~inside].mean())
    blurred = [cv2.GaussianBlur(grey, (0, 0), SIZE / 32)[..., None] for grey in greys]
    for name, images, measure in (
        ("two intensities", greys, "psnr_edge"),
        ("two blurred intensities", np.stack(blurred), "ssim"),
    ):
        trivial = synthesis.per_image(patches.images, images.astype(np.float32), patches.masks)
        found = find(facts, name, measure).value
        assert found == pytest.approx(trivial[measure].mean(), abs=1e-3)
    assert find(facts, "two intensities", "psnr_edge").unit == "dB"
    # The image is even inside the mass.
    assert find(facts, "Pix2Pix", "haar_mass").value == pytest.approx(1e-6)
    real = texture.compute_lattice(patches.images, 4).mean()
    assert find(facts, "real patches", "lattice_4").value == pytest.approx(real, abs=1e-6)
    assert "\nNo LPIPS, FID and KID: the folder in TFMAMMO_WEIGHTS lacks" in read_markdown(output)
    sheet = cv2.imread(str(output / "sheet.png"))
    assert sheet.shape == (HEADER + 5 * (SIZE + 3), 3 + 4 * (SIZE + 3), 3)
    for row, number in enumerate(np.random.default_rng(3).permutation(len(patches))[:5]):
        top = HEADER + row * (SIZE + 3)
        for column, images in ((0, patches.masks), (1, patches.images), (3, fake)):
            left = 3 + column * (SIZE + 3)
            shown = sheet[top : top + SIZE, left : left + SIZE, 0]
            np.testing.assert_allclose(shown, images[number, ..., 0] * 255.0, atol=0.51)


def test_runs_of_a_generator_are_averaged_patch_by_patch(run, models):
    three = {"CAN": models["CAN"], "Pix2Pix": models["U-Net"]}
    three["both"] = [*three["CAN"], *three["Pix2Pix"]]
    output = run("synthesis", three)
    for name in ("ssim_edge", "haar_mass", "lattice_4"):
        one, other, both = (read_values(output, model, name) for model in three)
        mean = (one + other) / 2
        if name == "haar_mass":
            mean = np.sqrt(np.maximum(one, 1e-6) * np.maximum(other, 1e-6))
        assert both == pytest.approx(mean, abs=1e-6)
    facts = read_rows(run("defects", three))
    one, other, both = (find(facts, model, "defects").value for model in three)
    assert both == pytest.approx((one + other) / 2, rel=1e-5)
    listed = [find(facts, "both", "defects", "runs", subset=f"run={n}").value for n in range(2)]
    assert listed == pytest.approx([one, other])
    assert not [fact for fact in facts if (fact.table, fact.model) == ("runs", "CAN")]


def test_synthesis_of_the_leaky_protocol_and_no_infinite_means(run, runs):
    output = run("synthesis", {"CAN": str(runs / "CAN" / "leaky")})
    assert (output / "sheet-leaky.png").is_file() and not (output / "sheet.png").exists()
    assert np.isfinite([fact.value for fact in read_rows(output)]).all()


def know_shapes(said, other=0):
    """A model that is certain of what it is told of each mask, by its number of pixels; of other
    masks that they have the shape `other`.
    """
    table = np.full(64 * 64 + 1, other)
    for mask, label in said:
        table[int(mask.sum())] = label
    sure = tf.constant(0.1 + 0.6 * np.eye(4)[table], tf.float32)

    def classify(mask):
        area = tf.cast(tf.reduce_sum(mask, axis=[1, 2, 3]), tf.int32)
        return {"shapes": tf.gather(sure, area)}

    return Weightless("classifier", classify, mask=(64, 64, 1))


@pytest.mark.slow
def test_shapes_confusion_accuracy_and_roc_of_the_folds(run_evaluate, tmp_path, tracking_uri):
    """Two folds of classifiers on the phantom's masks: the first is always right, the second calls
    every mass round.
    """
    data = DataConfig(size=64, folds=2, stratify="shape", phantoms=40)
    masks = datasets.load_all_patches(data, make_shape_patches)
    for fold in range(2):
        own = data.model_copy(update={"fold": fold})
        _, unseen = splits.split(masks, own)
        said = zip(unseen.masks, unseen.labels, strict=True) if fold == 0 else ()
        model = know_shapes(said, other=3)
        export.export(model, tmp_path / f"fold{fold}" / "export", make_card(masks, own))
    values = {
        "data": {"size": 64, "phantoms": 40},
        "models": {"Shape CNN": [str(tmp_path / "fold0"), str(tmp_path / "fold1")]},
        "samples": 500,
        "tracking_uri": tracking_uri,
    }
    output = run_evaluate("shape", values)
    rows = read_scores(output, "Shape CNN")
    assert [row["id"] for row in rows] == masks.ids.tolist()
    assert [float(row["label"]) for row in rows] == masks.labels.tolist()
    assert {float(row["predicted"]) for row in rows if row["fold"] == "1"} == {3}
    facts = read_rows(output)
    right = (len(masks) - len(unseen) + np.sum(unseen.labels == 3)) / len(masks)
    frequent = np.bincount(masks.labels).max() / len(masks)
    for name, share in (("Shape CNN", right), ("most frequent", frequent)):
        assert find(facts, name, "accuracy").value == pytest.approx(100 * share, rel=1e-5)
    predicted = np.where(np.isin(masks.ids, unseen.ids), 3, masks.labels)
    counts = [int(np.sum((masks.labels == 0) & (predicted == shape))) for shape in range(4)]
    table = ("confusion", "", "shape=irregular")
    for shape, count in zip(("irregular", "lobular", "oval", "round"), counts, strict=True):
        assert find(facts, "Shape CNN", f"predicted_{shape}", *table).value == count
    recall = find(facts, "Shape CNN", "recall", *table).value
    assert recall == pytest.approx(100 * counts[0] / sum(counts), rel=1e-5)
    precision = find(facts, "Shape CNN", "precision", "confusion", subset="shape=round").value
    expected = 100 * np.mean(masks.labels[predicted == 3] == 3)
    assert precision == pytest.approx(expected, rel=1e-5)
    # One fold is perfect (area 1), the other knows nothing (0.5): mean 0.75, and a sample's
    # deviation of 0.5 / sqrt(2).
    assert find(facts, "Shape CNN", "auc", "roc").value == 0.75
    markdown = read_markdown(output)
    assert "| Shape CNN |" + " 0.750 ± 0.354 |" * 5 in markdown
    assert f"| irregular | {' | '.join(map(str, counts))} | {recall:.1f} |" in markdown
    assert "| Shape CNN, as printed (on ddsm, a split of its own) | 80.0 |" in markdown
    assert len(list(output.glob("figure-*-Shape CNN.png"))) == 2
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("tfmammo-evaluation").experiment_id
    (logged,) = client.search_runs([experiment])
    assert logged.data.metrics["means/Shape CNN/accuracy"] == pytest.approx(100 * right)
    artifacts = {each.path for each in client.list_artifacts(logged.info.run_id)}
    assert artifacts == {path.name for path in output.iterdir()}


def test_the_most_frequent_shape_is_that_of_the_training_masks(patches):
    """Two folds whose training masks are mostly of another shape than those that are evaluated."""
    pool = replace(
        patches.take([0] * 6),
        patient_ids=np.array(list("aabbcc")),
        labels=np.array([1, 1, 2, 2, 3, 3], np.int32),
    )
    comparison = make_comparison(pool.take([4, 5]), pool, [0, 1], [["a"], ["b"]])
    probabilities = shape_report.predict_most_frequent(comparison)
    assert probabilities.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    unknown = make_comparison(pool.take([4]), pool.take([3, 4, 5]), [0], [["nobody here"]])
    assert shape_report.predict_most_frequent(unknown).tolist() == [[0, 0, 0, 1]]


def test_the_roc_figure_shows_mean_and_spread(patches):
    curves = np.stack([np.ones(len(RATES)), RATES])
    areas = np.array([[1.0, 1.0, np.nan, 1.0], [0.5] * 4])
    axes = shape_report.draw_roc_curves("A", curves, areas).axes[0]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), curves.mean(axis=0))
    assert axes.lines[-1].get_label() == "mean of 2 folds, area 0.750 ± 0.354"
    alone = shape_report.draw_roc_curves("A", curves[1:], areas[1:]).axes[0]
    assert alone.lines[-1].get_label() == "area 0.500" and not alone.collections
    report = ComparisonReport(config=None)
    comparison = Comparison("unseen", DataConfig(), patches, {}, {}, {}, patches)
    shape_report.add_areas(report, comparison, "A", np.array([0, 2]), areas)
    assert report.tables[0].body == [["A", *["0.750 ± 0.354"] * 2, "0.500", *["0.750 ± 0.354"] * 2]]
    assert find(report.facts, "A", "auc", "roc", subset="shape=oval").value == 0.5
    assert find(report.facts, "A", "auc", "roc", subset="fold=2").value == 0.5


def test_losses_of_two_runs(run_evaluate, tmp_path, tracking_uri):
    folders = {}
    for name, content in (("Dice", "dice"), ("L1", "l1")):
        folder = folders[name] = tmp_path / name
        folder.mkdir()
        store = TrackingConfig(uri=tracking_uri, system_metrics=False)
        model = CGANConfig(content=content)
        values = Experiment[CGANConfig](name="cgan", model=model, tracking=store)
        (folder / "config.yaml").write_text(configuration.dump(values), encoding="utf-8")
        run = tracking.Run(values, folder)
        for step in range(1, 5):
            run.log_metrics({content: 1 / step, "validation_dice": step / 10}, step)
        run.log_metrics({content: 0.125}, 4)  # repeated after a stop: the later value counts
        run.close()
    runs = {name: str(folder) for name, folder in folders.items()}
    settings = {"runs": runs, "tracking_uri": tracking_uri, "smooth": 2}
    output = run_evaluate("losses", settings)
    rows = read_csv(output / "losses.csv")
    values = [float(row["value"]) for row in rows if (row["run"], row["measure"]) == ("L1", "loss")]
    assert values == pytest.approx([1, 1 / 2, 1 / 3, 0.125])
    assert find(read_rows(output), "Dice", "dice", "last_step").value == 0.4
    assert {path.name for path in output.iterdir()} == {"losses.csv", "losses.png", "rows.csv"}
    curves = {"L1": {"loss": dict(enumerate(values, 1)), "dice": {1: 0.1, 4: 0.4}}}
    left, right = losses.draw_curves(curves, 2).axes
    smooth = [[1.5, 0.75], [2.5, 5 / 12], [3.5, 11 / 48]]
    np.testing.assert_allclose(left.lines[0].get_xydata(), smooth)
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1, 0.1], [4, 0.4]])


@pytest.mark.parametrize(
    ("script", "option"),
    [("segmentation", option) for option in ("--plan", "--any-version", "--jobs=2")]
    + [("detection", "--plan")],
)
def test_what_studies_alone_take_is_refused_without_one(repository, tmp_path, script, option):
    done = run_script_here(
        repository / f"evaluate/{script}.py", option, "--output", tmp_path / "out"
    )
    assert done.returncode == 2 and "--study names none" in done.stderr
    assert not (tmp_path / "out").exists()
