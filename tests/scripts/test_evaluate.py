"""The evaluate scripts on a small archive in native form and on real exports of networks
whose outputs are known.
"""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import mlflow
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from tests.known_networks import KnownCAN, make_pixelwise
from tests.small_mammograms import write_discs
from tfmammo import config as configuration
from tfmammo.config import DataConfig, Experiment, TrackingConfig
from tfmammo.data import datasets, splits
from tfmammo.data.extraction import make_shape_patches
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.evaluation import comparison as evaluation
from tfmammo.evaluation import losses, report
from tfmammo.evaluation import segmentation as segmentation_report
from tfmammo.evaluation import shape as shape_report
from tfmammo.evaluation.synthesis import SynthesisConfig
from tfmammo.mammogram import key_check
from tfmammo.metrics import perceptual, segmentation, synthesis, texture
from tfmammo.metrics.summary import Measure
from tfmammo.models.cgan import CGANConfig
from tfmammo.tracking import export
from tfmammo.tracking import runs as tracking
from tfmammo.training.image_grid import HEADER, ORANGE, draw_outline

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
    for name, levels in LEVELS.items():
        for fold, level in enumerate(levels):
            write(
                root / name / f"fold{fold}" / "export",
                level,
                patches,
                data.model_copy(update={"fold": fold}),
            )
        leaky = data.model_copy(
            update={"split": "paper", "paper_samples": 60, "paper_test": 20, "root": None}
        )
        write(root / name / "leaky" / "export", levels[0], patches, leaky)
    return root


def write(folder, level, patches, data):
    """An export with the card that a training writes."""
    train, held_out = splits.split(patches, data)
    card = {
        "split": data.split,
        "data_fingerprint": train.fingerprint(),
        "train_patients": sorted(set(train.patient_ids.tolist())),
        "held_out_ids": held_out.ids.tolist(),
        "config": {"data": data.model_dump(mode="json")},
    }
    return export.export(KnownCAN("known", SIZE, level), folder, card)


@pytest.fixture
def run(tmp_path, monkeypatch, repository, archive, load_script):
    """A function that runs an evaluate script in this process: models and overrides -> its output
    folder.
    """

    def call(name, models, *overrides):
        config = tmp_path / "config.yaml"
        data = {"name": "cdd_cesm", "root": str(archive), "size": SIZE}
        # JSON is YAML
        config.write_text(
            json.dumps({"data": data, "models": models, "samples": 500}), encoding="utf-8"
        )
        extra = ["--set", *overrides] if overrides else []
        output = tmp_path / "output"
        monkeypatch.setattr(
            sys, "argv", [f"{name}.py", "--config", str(config), "--output", str(output), *extra]
        )
        load_script(f"evaluate/{name}").main()
        return output

    return call


def folds(runs, name):
    return [str(runs / name / f"fold{fold}") for fold in range(FOLDS)]


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_patch_is_evaluated_by_the_fold_that_never_saw_its_patient(run, runs, patches):
    output = run("segmentation", {"CAN": folds(runs, "CAN"), "U-Net": folds(runs, "U-Net")})
    rows = [row for row in table(output / "per_image.csv") if row["model"] == "CAN"]
    assert [row["id"] for row in rows] == patches.ids.tolist()
    for row, image, mask in zip(rows, patches.images, patches.masks, strict=True):
        fold = int(row["fold"])
        assert (
            row["patient"]
            not in export.read_card(runs / "CAN" / f"fold{fold}" / "export")["train_patients"]
        )
        output_mask = image >= LEVELS["CAN"][fold]
        assert float(row["dice"]) == pytest.approx(segmentation.dice(mask, output_mask), abs=1e-9)
        assert float(row["mcc"]) == pytest.approx(segmentation.mcc(mask, output_mask), abs=1e-9)
    assert {row["fold"] for row in rows} == {"0", "1", "2"}


def test_trainings_of_one_fold_are_averaged_patch_by_patch(run, runs, patches):
    trainings = [*folds(runs, "CAN"), *folds(runs, "U-Net")]  # the same folds at other levels
    output = run("segmentation", {"CAN": trainings, "U-Net": folds(runs, "U-Net")})
    rows = [row for row in table(output / "per_image.csv") if row["model"] == "CAN"]
    for row, image, mask in zip(rows, patches.images, patches.masks, strict=True):
        fold = int(row["fold"])
        dices = [segmentation.dice(mask, image >= LEVELS[name][fold]) for name in LEVELS]
        assert float(row["dice"]) == pytest.approx(np.mean(dices), abs=1e-9)
    written = (output / "table.md").read_text(encoding="utf-8")
    line = next(
        line
        for line in written.partition("Dice of each training, %")[2].splitlines()
        if line.startswith("| CAN")
    )
    means = [float(mean) for mean in line.split("|")[2].split(",")]
    mean = 100 * np.mean([float(row["dice"]) for row in rows])
    assert len(means) == 2 and np.mean(means) == pytest.approx(mean, abs=0.1)


def test_the_table_summarises_the_images(run, runs, patches, capsys):
    output = run("segmentation", {"CAN": folds(runs, "CAN"), "U-Net": folds(runs, "U-Net")})
    images = table(output / "per_image.csv")
    rows = {(row["model"], row["measure"]): row for row in table(output / "table.csv")}
    assert {model for model, _ in rows} == {"CAN", "U-Net", "whole patch", "centred disc"}
    values = {
        m: np.array([float(row["dice"]) for row in images if row["model"] == m])
        for m in ("CAN", "U-Net", "whole patch")
    }
    patients = np.array([row["patient"] for row in images if row["model"] == "CAN"])
    for model, dice in values.items():
        row = rows[model, "dice"]
        assert (row["n"], row["patients"], row["unit"], row["protocol"]) == (
            "18",
            "9",
            "%",
            "unseen",
        )
        assert float(row["mean"]) == pytest.approx(100 * dice.mean())
        expected = segmentation.bootstrap_interval(dice, patients, samples=500)
        assert (float(row["low"]), float(row["high"])) == pytest.approx(
            (100 * expected[0], 100 * expected[1])
        )
    assert rows["CAN", "dice"]["p"] == ""
    test = segmentation.paired_test(values["U-Net"], values["CAN"], patients, samples=500)
    assert float(rows["U-Net", "dice"]["difference"]) == pytest.approx(100 * test.difference)
    assert float(rows["U-Net", "dice"]["p"]) == pytest.approx(test.p)
    assert float(rows["U-Net", "dice"]["p_corrected"]) >= float(rows["U-Net", "dice"]["p"])
    share = patches.masks.mean(axis=(1, 2, 3))
    # everything is called mass
    assert values["whole patch"] == pytest.approx(2 * share / (1 + share))
    markdown = (output / "table.md").read_text(encoding="utf-8")
    assert f"| CAN | {float(rows['CAN', 'accuracy']['mean']):.1f} [" in markdown
    assert (
        "| CAN, as printed (on inbreast, a split that leaks) | 94.1 | 91.7 | 85.1 | 87.2 |"
        in markdown
    )
    assert (
        "| U-Net, as printed (on inbreast, a split that leaks) | 93.1 | 90.5 | 83.0 | 85.2 |"
        in markdown
    )
    assert "### Differences from CAN" in markdown and "LEAKY" not in markdown
    assert (
        "Holm's correction for 3 comparisons; 500 random draws can give no p below 0.012."
        in markdown
    )
    assert "Jaccard, %" in capsys.readouterr().out
    assert {path.name for path in output.glob("*.png")} == {
        "figure-CAN.png",
        "figure-U-Net.png",
        "overlays.png",
        "boxes.png",
        "roc.png",
    }
    for model in ("CAN", "U-Net", "whole patch", "centred disc"):
        dice, jaccard = (
            float(rows[model, measure]["mean"]) / 100 for measure in ("dice", "jaccard")
        )
        assert jaccard >= dice / (2 - dice), "Jaccard is convex in Dice, so means can't lie below"


def test_the_articles_printed_means_contradict_each_other():
    printed = segmentation_report.PUBLISHED["cGAN"].values
    assert printed["jaccard"] < printed["dice"] / (2 - printed["dice"])


def test_post_processing_adds_a_row_for_each_model(run, runs, patches):
    models = {"CAN": folds(runs, "CAN"), "U-Net": folds(runs, "U-Net")}
    output = run(
        "segmentation",
        models,
        "postprocess={closing: 0, erosion: 0, dilation: 3}",
        "floors=[]",
        "threshold=0.4",
    )
    rows = table(output / "per_image.csv")
    shown = ["CAN", "CAN + post-processing", "U-Net", "U-Net + post-processing"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == shown
    dices = [float(row["dice"]) for row in rows if row["model"] == "U-Net + post-processing"]
    for dice, image, mask in zip(dices, patches.images, patches.masks, strict=True):
        bright = (100 * (image - LEVELS["U-Net"][0]) >= np.log(0.4 / 0.6)).astype(np.uint8)
        assert dice == pytest.approx(
            segmentation.dice(mask[..., 0], cv2.dilate(bright, np.ones((3, 3), np.uint8))), abs=1e-9
        )
    assert {row["fold"] for row in rows if row["model"] == "CAN + post-processing"} == {""}
    assert not (output / "figure-CAN + post-processing.png").exists()


def test_overlays_boxes_and_roc_show_what_was_measured(patches, tmp_path, monkeypatch):
    truth = patches.masks.astype(np.float32)
    half = truth * np.float32(0.9)
    half[:, : SIZE // 2] = 0.1
    outputs = {"A": half, "B": 0.1 + 0.8 * patches.images}
    scores = {
        name: segmentation.per_image(patches.masks, output) for name, output in outputs.items()
    }
    segmentation_report.write_overlays(
        patches,
        outputs,
        scores,
        segmentation_report.SegmentationConfig(models={"A": "a"}, cases=2),
        tmp_path / "o.png",
    )
    sheet = cv2.imread(str(tmp_path / "o.png"))[..., ::-1]
    assert sheet.shape == (HEADER + 4 * (SIZE + 3), 3 + 4 * (SIZE + 3), 3)
    best = np.argsort(-scores["A"]["dice"], kind="stable")[0]
    left = 3 + 2 * (SIZE + 3)
    colours = sheet[HEADER : HEADER + SIZE, left : left + SIZE]
    mask = patches.masks[best, ..., 0].astype(bool)
    lower = np.arange(SIZE)[:, None] >= SIZE // 2
    assert (colours[mask & lower] == (255, 255, 0)).all() and (
        colours[mask & ~lower] == (255, 0, 0)
    ).all()
    assert (colours[~mask] == 0).all()
    figure = segmentation_report.draw_box_plots(scores)
    for axes, measure in zip(figure.axes, ("dice", "jaccard"), strict=True):
        medians = [line.get_ydata()[0] for line in axes.lines if line.get_color() == "#d55e00"]
        assert medians == pytest.approx(
            [100 * np.median(scores[name][measure]) for name in outputs]
        )
    comparison = evaluation.Comparison("unseen", DataConfig(), patches, outputs, {})
    areas, figure = segmentation_report.draw_roc_curves(comparison, 0)
    area = sklearn.metrics.roc_auc_score(truth.ravel(), half.ravel())
    assert areas.body[0] == ["A", f"{area:.3f}"] and len(figure.axes[0].lines) == 3
    monkeypatch.setattr(segmentation_report, "MAX_PIXELS", 2_000)
    again, figure = segmentation_report.draw_roc_curves(comparison, 0)
    assert again.body == segmentation_report.draw_roc_curves(comparison, 0)[0].body
    assert "2,000 pixels" in again.title
    assert float(again.body[0][1]) == pytest.approx(area, abs=0.05)


def test_models_are_compared_on_what_all_of_them_is_eligible_for(run, runs):
    output = run(
        "segmentation",
        {"CAN": folds(runs, "CAN"), "U-Net": str(runs / "U-Net" / "fold1")},
        "floors=[]",
    )
    evaluated = {
        model: [row["id"] for row in table(output / "per_image.csv") if row["model"] == model]
        for model in LEVELS
    }
    assert evaluated["CAN"] == evaluated["U-Net"]
    assert sorted(evaluated["CAN"]) == sorted(
        export.read_card(runs / "U-Net" / "fold1" / "export")["held_out_ids"]
    )
    assert {row["model"] for row in table(output / "table.csv")} == {"CAN", "U-Net"}


@pytest.mark.slow
def test_the_leaky_protocol_has_a_table_of_its_own(run, runs):
    models = {
        "CAN": folds(runs, "CAN"),
        "CAN leaky": [str(runs / "CAN" / "leaky")],
        "U-Net leaky": [str(runs / "U-Net" / "leaky")],
    }
    output = run("segmentation", models)
    rows = table(output / "per_image.csv")
    leaky = [row for row in rows if row["model"] == "CAN leaky"]
    assert [row["id"] for row in leaky] == export.read_card(runs / "CAN" / "leaky" / "export")[
        "held_out_ids"
    ]
    assert len(leaky) == 20 and all("~" in row["id"] for row in leaky)
    assert {row["protocol"] for row in leaky} == {"paper"}
    assert {row["protocol"] for row in rows if row["model"] == "CAN"} == {"unseen"}
    markdown = (output / "table.md").read_text(encoding="utf-8")
    fair, separate = markdown.split("### LEAKY", 1)
    assert "CAN leaky" not in fair and "| CAN |" not in separate
    assert "### Differences from CAN leaky" in separate


def test_all_patients_on_demand(run, runs, patches):
    output = run(
        "segmentation", {"CAN": str(runs / "CAN" / "fold0")}, "patients=all", "threshold=0.9"
    )
    rows = [row for row in table(output / "per_image.csv") if row["model"] == "CAN"]
    assert len(rows) == len(patches)
    probabilities = 1 / (1 + np.exp(-100 * (patches.images.astype(np.float64) - LEVELS["CAN"][0])))
    expected = segmentation.per_image(patches.masks, probabilities, 0.9)["jaccard"]
    assert [float(row["jaccard"]) for row in rows] == pytest.approx(expected, abs=0.01)
    assert "those of training included" in (output / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", [".", "export", "export/inverter"])
def test_uris_of_a_run_an_export_and_a_savedmodel(runs, place):
    network = evaluation.open_network(str(runs / "CAN" / "fold1" / place), "image", "mask")
    image = np.random.default_rng(0).random((9, SIZE, SIZE, 1), np.float32)
    np.testing.assert_array_equal(network.run("image", "mask", image) > 0.5, image > 0.5)
    assert network.function == "inverter" and len(network.card["train_patients"]) == 6


def test_a_savedmodel_without_a_card(run, tmp_path, patches):
    class Sheet(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1], tf.float32, "image")])
        def __call__(self, image):
            return {"mask": tf.ones_like(image)}

    model = Sheet()
    tf.saved_model.save(model, str(tmp_path / "foreign"), signatures=model.__call__)
    with pytest.raises(DataError, match="foreign: .*patients=all"):
        run("segmentation", {"foreign": str(tmp_path / "foreign")})
    output = run("segmentation", {"foreign": str(tmp_path / "foreign")}, "patients=all")
    rows = table(output / "per_image.csv")
    foreign, baseline = (
        [row["dice"] for row in rows if row["model"] == model]
        for model in ("foreign", "whole patch")
    )
    assert foreign == baseline and len(baseline) == len(patches)
    with pytest.raises(ExportError, match="from mask to image"):
        run("synthesis", {"foreign": str(tmp_path / "foreign")}, "patients=all")


def test_a_savedmodel_that_is_damaged_or_of_another_size(tmp_path):
    layers = keras.layers
    dense = layers.Dense(SIZE * SIZE, activation="sigmoid", kernel_initializer="zeros")
    network = keras.Sequential(
        [keras.Input((SIZE, SIZE, 1)), layers.Flatten(), dense, layers.Reshape((SIZE, SIZE, 1))]
    )
    network.export(str(tmp_path / "keras"), verbose=False)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="damaged: "):
        evaluation.open_network(str(damaged), "image", "mask")
    name = next(
        iter(
            tf.saved_model.load(str(tmp_path / "keras"))
            .signatures["serving_default"]
            .structured_input_signature[1]
        )
    )
    other = evaluation.open_network(str(tmp_path / "keras"), name, "output_0")
    assert other.run(name, "output_0", np.zeros((2, SIZE, SIZE, 1), np.float32)) == pytest.approx(
        0.5
    )
    with pytest.raises(ExportError, match=r"keras: .*\[2, 16, 16, 1\]"):
        other.run(name, "output_0", np.zeros((2, 16, 16, 1), np.float32))


def test_an_output_that_is_no_probability(tmp_path):
    class Loud(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1], tf.float32, "mask")])
        def __call__(self, mask):
            return {"image": 2 * mask}

    model = Loud()
    tf.saved_model.save(model, str(tmp_path / "loud"), signatures=model.__call__)
    network = evaluation.open_network(str(tmp_path / "loud"), "mask", "image")
    with pytest.raises(DataError, match="loud: its image is no"):
        network.run("mask", "image", np.ones((1, SIZE, SIZE, 1), np.float32))


def test_what_can_not_be_evaluated_is_an_error_of_one_sentence(run, runs, archive, tmp_path):
    can = folds(runs, "CAN")
    cases = {
        r"its folds have different numbers of trainings \(2, 1\)": (
            {"CAN": [can[0], can[0], can[1]]},
            (),
        ),
        "several URIs are eligible for 18 patches": ({"CAN": can}, ("patients=all",)),
        "no patch is of a patient that none of CAN, U-Net": (
            {"CAN": can[0], "U-Net": folds(runs, "U-Net")[1]},
            (),
        ),
        "does not lead from image to mask": ({"CAN": can[0] + "/export/generator"}, ()),
        r"data.size: .* takes patches of 32 px, these have": ({"CAN": can}, ("data.size=16",)),
        "nowhere": ({"CAN": str(tmp_path / "nowhere")}, ()),
        "were not trained on one paper split": ({"CAN": [can[0], str(runs / "CAN" / "leaky")]}, ()),
        "held-out copies can't be made again": (
            {"CAN": str(runs / "CAN" / "leaky")},
            ("data.name=phantom", "data.root=null"),
        ),
    }
    for message, (models, overrides) in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            run("segmentation", models, *overrides)
        assert type(caught.value).__module__.startswith("tfmammo"), message
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("threshhold=0.5", "threshhold: unknown key"),
        ("threshold=0", "threshold: "),
        ("models={}", "models: "),
        ("models.CAN=[]", "models.CAN: "),
        ("models={a/b: runs}", "models.a/b"),
        ("models={whole patch: runs}", "whole patch is the name of a trivial baseline"),
        ("postprocess.closng=3", "postprocess.closng: unknown key"),
        ("data.nme=x", "data.nme: unknown key"),
    ],
)
def test_wrong_configs(run, override, message):
    with pytest.raises(ConfigError, match=message):
        run("segmentation", {"CAN": "runs"}, override)


def test_names_that_rows_of_ours_have_are_refused(run):
    with pytest.raises(ConfigError, match="post-processing"):
        run("segmentation", {"U-Net": "runs", "U-Net + post-processing": "runs"}, "postprocess={}")
    with pytest.raises(ConfigError, match="most frequent"):
        run("shape", {"most frequent": "runs"})


def test_a_model_trained_on_other_crops_is_pointed_out(run, runs, caplog):
    run("segmentation", {"CAN": folds(runs, "CAN")}, "data.context=2")
    assert "was trained with data.context 1.3 and is evaluated with 2.0" in caplog.text


def discs(radii, size=64):
    """Masks of centred discs, [n, size, size, 1], by counting."""
    place = np.arange(size) - (size - 1) / 2
    return np.stack(
        [(place[:, None] ** 2 + place**2 <= radius**2)[..., None] for radius in radii]
    ).astype(np.uint8)


def make_comparison(patches, pool, folds, train_patients, protocol="unseen"):
    """A comparison whose model A has a network for each list of patients."""
    networks = [
        evaluation.Network(
            f"run{n}", Path(), None, {"train_patients": known, "id_key": key_check()}, "image"
        )
        for n, known in enumerate(train_patients)
    ]
    outputs = {"A": patches.masks.astype(np.float32)}
    return evaluation.Comparison(
        protocol, DataConfig(), patches, outputs, {"A": np.array(folds)}, {"A": networks}, pool
    )


def of_discs(patches, radii, patients):
    """Patches whose masks are centred discs."""
    count = len(radii)
    some = patches.take(np.zeros(count, np.intp))
    masks = discs(radii)
    return replace(
        some,
        images=masks.astype(np.float32),
        masks=masks,
        patient_ids=np.array(patients),
        ids=np.array([f"{row}" for row in range(count)]),
    )


def test_the_disc_is_fitted_on_the_training_masks_of_each_fold(patches):
    pool = of_discs(patches, [10, 10, 20, 20, 25, 5], list("aabbcd"))
    comparison = make_comparison(pool.take([4, 5]), pool, [0, 1], [["a"], ["b"]])
    baselines, notes = segmentation_report.make_baselines(
        ("whole patch", "centred disc"), comparison
    )
    assert (baselines["whole patch"] == 1).all()
    np.testing.assert_array_equal(baselines["centred disc"], discs([10, 20]))
    assert baselines["centred disc"].dtype == np.float32
    assert notes == (
        "Centred disc: radius of 10, 20 px, the best for the masks that A was trained on.",
    )
    leaky, notes = segmentation_report.make_baselines(
        ("centred disc",), make_comparison(pool.take([5]), pool.take([2, 3, 4]), [0], [[]], "paper")
    )
    np.testing.assert_array_equal(leaky["centred disc"], discs([20]))
    comparison = make_comparison(pool, pool, [0] * 6, [["a"]])
    assert segmentation_report.make_baselines((), comparison) == ({}, ())


def test_the_disc_of_a_foreign_model_is_fitted_on_the_other_patients(patches):
    pool = of_discs(patches, [10, 10, 20], list("aab"))
    baselines, notes = segmentation_report.make_baselines(
        ("centred disc",), make_comparison(pool, pool, [0, 0, 0], [["nobody here"]])
    )
    np.testing.assert_array_equal(baselines["centred disc"], discs([20, 20, 10]))
    assert notes[0].startswith(
        "Centred disc: radius of 10, 20 px, the best for the masks of all other patients"
    )


def test_a_disc_that_can_not_be_fitted_is_an_error(patches):
    alone = of_discs(patches, [10], ["a"])
    message = r"no lesion to fit the centred disc on; leave it out with floors=\[whole patch\]"
    with pytest.raises(DataError, match=message):
        comparison = make_comparison(alone, alone, [0], [[]])
        segmentation_report.make_baselines(("centred disc",), comparison)
    empty = of_discs(patches, [0, 0], ["a", "b"])
    with pytest.raises(DataError, match="no lesion"):
        comparison = make_comparison(empty, empty, [0, 0], [["a"]], "all")
        segmentation_report.make_baselines(("centred disc",), comparison)


@pytest.mark.parametrize("frame", ["full", "padded", "tight"])
def test_the_disc_stands_in_the_table_however_patches_are_cut(run, runs, frame):
    """It was left out without a word where its size did not follow from the frame."""
    output = run("segmentation", {"CAN": folds(runs, "CAN")}, f"data.frame={frame}")
    dice = {
        row["model"]: float(row["mean"])
        for row in table(output / "table.csv")
        if row["measure"] == "dice"
    }
    assert dice["centred disc"] >= dice["whole patch"]
    assert "Centred disc: radius of " in (output / "table.md").read_text(encoding="utf-8")


def test_every_pair_is_compared_on_request(run, runs):
    output = run(
        "segmentation", {"CAN": folds(runs, "CAN"), "U-Net": folds(runs, "U-Net")}, "compare=pairs"
    )
    rows = [
        row for row in table(output / "table.csv") if row["measure"] == "dice" and row["against"]
    ]
    assert [(row["model"], row["against"]) for row in rows] == [
        ("U-Net", "CAN"),
        ("whole patch", "CAN"),
        ("whole patch", "U-Net"),
        ("centred disc", "CAN"),
        ("centred disc", "U-Net"),
        ("centred disc", "whole patch"),
    ]
    markdown = (output / "table.md").read_text(encoding="utf-8")
    assert "### Differences of every pair" in markdown and "| centred disc - U-Net |" in markdown
    assert "Holm's correction for 6 comparisons" in markdown


def test_printed_rows_stand_beside_their_own_archive_split_and_frame(patches):
    printed = segmentation_report.PUBLISHED
    own = DataConfig(name="inbreast", root="somewhere")

    def label(model, protocol, data):
        return (
            printed[model]
            .annotate(evaluation.Comparison(protocol, data, patches, {}, {}))
            .label(model)
        )

    assert label("CAN", "paper", own) == "CAN, as printed"
    assert label("CAN", "unseen", own) == "CAN, as printed (a split that leaks)"
    assert (
        label("CAN", "unseen", DataConfig()) == "CAN, as printed (on inbreast, a split that leaks)"
    )
    assert label("cGAN", "unseen", own) == "cGAN, as printed (a split of its own)"
    unseen = report.Published({}, "inbreast", leaky=False)
    leaky = evaluation.Comparison("paper", own, patches, {}, {})
    assert unseen.annotate(leaky).elsewhere == "unseen patients"


def test_a_printed_row_of_another_frame_is_left_out(run, runs):
    output = run("segmentation", {"CAN": folds(runs, "CAN")}, "data.frame=loose")
    assert "as printed" not in (output / "table.md").read_text(encoding="utf-8")


def test_folds_have_roc_curves_of_their_own(patches):
    """Two networks without a fault whose scales differ: pooled, their area would be less than 1."""
    truth = np.tile([0, 1], 50)
    fold = np.repeat([0, 1], 50)
    scores = np.where(fold == 0, 0.1 + 0.1 * truth, 0.5 + 0.1 * truth)
    assert sklearn.metrics.roc_auc_score(truth, scores) == 0.75
    curve, areas = segmentation_report.compute_mean_roc(truth, scores, fold)
    assert areas.tolist() == [1, 1] and curve[0] == 0 and (curve[1:] == 1).all()
    masks = patches.masks.astype(np.float32)
    number = np.arange(len(patches)) % 2
    shifted = {"A": 0.1 * masks + 0.5 * number[:, None, None, None].astype(np.float32)}
    comparison = evaluation.Comparison("unseen", DataConfig(), patches, shifted, {"A": number})
    assert segmentation_report.draw_roc_curves(comparison, 0)[0].body == [["A", "1.000 ± 0.000"]]
    zeros = np.zeros(4, int)
    assert len(segmentation_report.compute_mean_roc(zeros, np.zeros(4), zeros)[1]) == 0


def test_each_fold_has_a_mean_of_its_own(patches):
    """B's networks are named in another order, C has one, a disc none. B has no value for A's
    worst patches, which are left out for all; E has none anywhere.
    """
    count = len(patches)
    folds = np.arange(count) % 2
    one = np.zeros(count, int)
    comparison = evaluation.Comparison(
        "unseen", DataConfig(), patches, {}, {"A": folds, "B": 1 - folds, "C": one}
    )
    dice = {
        "A": np.where(folds == 0, 0.8, 0.6),
        "B": np.where(folds == 0, 0.7, 0.9),
        "C": np.full(count, 0.5),
        "disc": np.where(folds == 0, 0.5, 0.4),
        "E": np.full(count, np.nan),
    }
    dice["A"][:4] = 0.1
    dice["B"][:4] = np.nan
    scores = {name: {"dice": values, "own": values} for name, values in dice.items()}
    measures = {"dice": Measure("Dice", "%", 100, 1), "auc": Measure("AUC", "", 1, 3)}
    (table,) = report.tabulate_folds(comparison, scores, measures)
    assert table.header == ["", "Dice, %"]
    assert table.body == [
        ["A", "80.0, 60.0"],
        ["B", "70.0, 90.0"],
        ["C", "-, -"],
        ["disc", "50.0, 40.0"],
        ["E", "-, -"],
    ]
    alone = evaluation.Comparison("unseen", DataConfig(), patches, {}, {"B": np.zeros(count, int)})
    assert report.tabulate_folds(alone, scores, measures) == []


def test_the_figure_shows_best_median_and_worst(patches):
    dice = np.linspace(0.1, 0.95, len(patches))[np.random.default_rng(1).permutation(len(patches))]
    figure = segmentation_report.draw_cases("CAN", patches, patches.masks.astype(bool), dice, 3)
    shown = [
        [float(axis.get_title().split()[1]) for axis in figure.axes[row * 3 : row * 3 + 3]]
        for row in range(3)
    ]
    ranked = np.round(np.sort(100 * dice)[::-1], 1)
    assert shown[0] == pytest.approx(ranked[:3], abs=0.051)
    assert shown[1] == pytest.approx(ranked[7:10], abs=0.051)
    assert shown[2] == pytest.approx(ranked[-3:], abs=0.051)
    first = np.argmax(dice)
    np.testing.assert_array_equal(
        figure.axes[0].get_images()[0].get_array(),
        # drawn over an equal truth
        draw_outline(patches.images[first], patches.masks[first], ORANGE),
    )
    assert (
        len(
            segmentation_report.draw_cases(
                "CAN", patches.take([0, 1]), patches.masks[:2].astype(bool), dice[:2], 4
            ).axes
        )
        == 6
    )


def test_synthesis_tables_and_sheet(run, runs, patches):
    models = {"CAN": folds(runs, "CAN"), "Pix2Pix": folds(runs, "U-Net")}
    output = run("synthesis", models, "rows=5", "seed=3")
    rows = table(output / "per_image.csv")
    fake = 0.2 + np.float32(0.3) * patches.masks.astype(np.float32)
    expected = synthesis.per_image(patches.images, fake, patches.masks)
    for name, values in expected.items():
        measured = [float(row[name]) for row in rows if row["model"] == "Pix2Pix"]
        assert measured == pytest.approx(values, abs=1e-5)
    table_rows = {(row["model"], row["measure"]): row for row in table(output / "table.csv")}
    assert len(table_rows) == 4 * (9 + 1) + 5 * 3
    inside = patches.masks == 1
    greys = np.where(inside, patches.images[inside].mean(), patches.images[~inside].mean())
    trivial = synthesis.per_image(patches.images, greys.astype(np.float32), patches.masks)
    found = float(table_rows["two grey values", "psnr_edge"]["mean"])
    assert found == pytest.approx(trivial["psnr_edge"].mean(), abs=1e-3)
    greys[..., 0] = [cv2.GaussianBlur(grey, (0, 0), SIZE / 32) for grey in greys]
    trivial = synthesis.per_image(patches.images, greys.astype(np.float32), patches.masks)
    found = float(table_rows["two blurred grey values", "ssim"]["mean"])
    assert found == pytest.approx(trivial["ssim"].mean(), abs=1e-4)
    assert float(table_rows["Pix2Pix", "l1_edge"]["mean"]) == pytest.approx(
        expected["l1_edge"].mean(), abs=1e-6
    )
    # The image is even inside the mass.
    assert float(table_rows["Pix2Pix", "haar_mass"]["mean"]) == pytest.approx(1e-6)
    real = texture.compute_lattice(patches.images, 4).mean()
    assert float(table_rows["real patches", "lattice_4"]["mean"]) == pytest.approx(real, abs=1e-6)
    assert table_rows["CAN", "psnr"]["unit"] == "dB"
    markdown = (output / "table.md").read_text(encoding="utf-8")
    assert "| SSIM along its edge |" in markdown
    assert "\nNo LPIPS, FID and KID: the folder in TFMAMMO_WEIGHTS lacks" in markdown
    assert {path.name for path in output.glob("sheet-*")} == {
        f"sheet-{which}-{model}.png" for which in ("best", "worst") for model in ("CAN", "Pix2Pix")
    }
    sheet = cv2.imread(str(output / "sheet.png"))
    assert sheet.shape == (HEADER + 5 * (SIZE + 3), 3 + 4 * (SIZE + 3), 3)
    numbers = np.random.default_rng(3).permutation(len(patches))[:5]
    for row, number in enumerate(numbers):
        place = slice(HEADER + row * (SIZE + 3), HEADER + row * (SIZE + 3) + SIZE)
        np.testing.assert_array_equal(
            sheet[place, 3 : 3 + SIZE, 0], patches.masks[number, ..., 0] * 255
        )
        np.testing.assert_allclose(
            sheet[place, 6 + SIZE : 6 + 2 * SIZE, 0],
            patches.images[number, ..., 0] * 255,
            atol=0.51,
        )
        np.testing.assert_allclose(
            sheet[place, 12 + 3 * SIZE : 12 + 4 * SIZE, 0], fake[number, ..., 0] * 255, atol=0.51
        )


def test_trainings_of_a_generator_are_averaged_patch_by_patch(run, runs):
    models = {"CAN": folds(runs, "CAN"), "Pix2Pix": folds(runs, "U-Net")}
    models["both"] = [*models["CAN"], *models["Pix2Pix"]]
    rows = table(run("synthesis", models) / "per_image.csv")
    for name in ("ssim_edge", "haar_mass", "lattice_4"):
        one, other, both = (
            np.array([float(row[name]) for row in rows if row["model"] == model])
            for model in models
        )
        mean = (one + other) / 2
        if name == "haar_mass":
            mean = np.sqrt(np.maximum(one, 1e-6) * np.maximum(other, 1e-6))
        assert both == pytest.approx(mean, abs=1e-6)
    output = run("defects", models)
    rows = {(row["model"], row["measure"]): row for row in table(output / "table.csv")}
    one, other, both = (float(rows[model, "defects"]["mean"]) for model in models)
    assert both == pytest.approx((one + other) / 2, abs=1e-6)
    written = (output / "table.md").read_text(encoding="utf-8")
    listed = written.partition("Tissue with defects of each training, %")[2]
    assert f"| both | {one:.1f}, {other:.1f} |" in listed and "| CAN |" not in listed


@pytest.mark.slow
def test_synthesis_with_published_networks(run, runs, patches, published_weights):
    for name in ("alexnet.npz", "lpips_alex.npz", "inception_fid2015.npz"):
        if not (published_weights / name).is_file():
            pytest.skip(f"TFMAMMO_TEST_WEIGHTS has no {name}")
    models = {"CAN": folds(runs, "CAN"), "Pix2Pix": folds(runs, "U-Net")}
    models["both"] = [*models["CAN"], *models["Pix2Pix"]]
    output = run("synthesis", models)
    rows = {(row["model"], row["measure"]): row for row in table(output / "table.csv")}
    for measure in ("lpips", "fid", "kid"):
        one, other, both = (float(rows[model, measure]["mean"]) for model in models)
        assert both == pytest.approx((one + other) / 2, rel=1e-4)
    fake = 0.2 + np.float32(0.3) * patches.masks.astype(np.float32)
    inception = perceptual.Inception()
    features = [inception.features(images) for images in (patches.images, fake)]
    found = rows["Pix2Pix", "fid"]
    assert float(found["mean"]) == pytest.approx(perceptual.fid(*features), rel=1e-4)
    assert float(found["low"]) < float(found["mean"]) < float(found["high"])
    distances = perceptual.LPIPS().distance(patches.images, fake)
    lpips = float(rows["Pix2Pix", "lpips"]["mean"])
    assert lpips == pytest.approx(distances.mean(), abs=1e-5)
    markdown = (output / "table.md").read_text(encoding="utf-8")
    assert "FID's Inception of 2015-12-05 (SHA-256 a706954822b6)" in markdown
    networks = json.loads((output / "networks.json").read_text(encoding="utf-8"))
    assert networks["FID, KID"]["Inception-v3"]["sha256"].startswith("a706954822b6")


def test_synthesis_of_the_leaky_protocol_and_no_infinite_means(run, runs):
    output = run("synthesis", {"CAN": str(runs / "CAN" / "leaky")})
    assert (output / "sheet-leaky.png").is_file() and not (output / "sheet.png").exists()
    assert all(np.isfinite(float(row["mean"])) for row in table(output / "table.csv"))


class Shapes(keras.Model):
    """Certain of what it is told of each mask, by its number of pixels; otherwise of `else_`."""

    def __init__(self, said, else_=0):
        super().__init__(name="shapes")
        self.table = np.full(64 * 64 + 1, else_)
        self.networks = {"classifier": make_pixelwise(SIZE, 1.0, 0.0)}
        for mask, label in said:
            self.table[int(mask.sum())] = label

    def functions(self):
        sure = tf.constant(0.1 + 0.6 * np.eye(4)[self.table], tf.float32)

        @tf.function(input_signature=[tf.TensorSpec([None, 64, 64, 1], tf.float32, "mask")])
        def classifier(mask):
            return {
                "shapes": tf.gather(sure, tf.cast(tf.reduce_sum(mask, axis=[1, 2, 3]), tf.int32))
            }

        return {"classifier": classifier}


@pytest.fixture(scope="module")
def shape_runs(tmp_path_factory):
    """Two folds of classifiers on the phantom's masks: the first is always right, the second calls
    every mass round.
    """
    data = DataConfig(size=64, folds=2, stratify="shape", phantoms=40)
    root = tmp_path_factory.mktemp("shapes")
    masks = datasets.load_all_patches(data, make_shape_patches)
    for fold in range(2):
        own = data.model_copy(update={"fold": fold})
        train, held_out = splits.split(masks, own)
        card = {
            "split": "patient",
            "train_patients": sorted(set(train.patient_ids.tolist())),
            "config": {"data": own.model_dump(mode="json")},
        }
        said = zip(held_out.masks, held_out.labels, strict=True) if fold == 0 else ()
        export.export(Shapes(list(said), else_=3), root / f"fold{fold}" / "export", card)
    return root, masks, data


@pytest.mark.slow
def test_shapes_confusion_accuracy_and_roc_of_the_folds(
    load_script, shape_runs, tmp_path, monkeypatch, tracking_uri
):
    root, masks, data = shape_runs
    config = tmp_path / "config.yaml"
    output = tmp_path / "evaluated"
    uris = {"Shape CNN": [str(root / "fold0"), str(root / "fold1")]}
    values = {
        "data": {"size": 64, "phantoms": 40},
        "models": uris,
        "samples": 500,
        "tracking_uri": tracking_uri,
    }
    config.write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["shape.py", "--config", str(config), "--output", str(output)])
    load_script("evaluate/shape").main()
    unseen = splits.split(masks, data.model_copy(update={"fold": 1}))[1]
    right = (len(masks) - len(unseen) + np.sum(unseen.labels == 3)) / len(masks)
    rows = table(output / "per_image.csv")
    evaluated = [row for row in rows if row["model"] == "Shape CNN"]
    assert [row["id"] for row in evaluated] == masks.ids.tolist() and [
        float(row["label"]) for row in evaluated
    ] == masks.labels.tolist()
    assert {float(row["called"]) for row in evaluated if row["fold"] == "1"} == {3}
    summary = {row["model"]: row for row in table(output / "table.csv")}
    assert float(summary["Shape CNN"]["mean"]) == pytest.approx(100 * right) and {
        row["measure"] for row in summary.values()
    } == {"accuracy"}
    frequent = np.bincount(masks.labels).max() / len(masks)
    assert float(summary["most frequent"]["mean"]) == pytest.approx(100 * frequent)
    markdown = (output / "table.md").read_text(encoding="utf-8")
    called = np.where(np.isin(masks.ids, unseen.ids), 3, masks.labels)
    counts = [int(np.sum((masks.labels == 0) & (called == shape))) for shape in range(4)]
    recall = 100 * counts[0] / sum(counts)
    assert f"| irregular | {' | '.join(map(str, counts))} | {recall:.1f} |" in markdown
    precision = 100 * np.mean(masks.labels[called == 3] == 3)
    assert f"{precision:.1f} |  |" in markdown
    # One fold is perfect (area 1), the other knows nothing (0.5): mean 0.75, and a sample's
    # deviation of 0.5 / sqrt(2).
    assert "| Shape CNN |" + " 0.750 ± 0.354 |" * 5 in markdown
    assert {path.name for path in output.glob("*.png")} == {
        "figure-confusion-Shape CNN.png",
        "figure-roc-Shape CNN.png",
    }
    assert "| Shape CNN, as printed (on ddsm, a split of its own) | 80.0 |" in markdown
    client = mlflow.MlflowClient(tracking_uri)
    (logged,) = client.search_runs(
        [client.get_experiment_by_name("tfmammo-evaluation").experiment_id]
    )
    assert logged.data.metrics["unseen/Shape CNN/accuracy"] == pytest.approx(100 * right)
    assert {each.path for each in client.list_artifacts(logged.info.run_id)} == {
        path.name for path in output.iterdir()
    }


def test_the_most_frequent_shape_is_that_of_the_training(patches):
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


def test_the_roc_figure_shows_mean_and_spread():
    curves = np.stack([np.ones(201), np.linspace(0, 1, 201)])
    areas = np.array([[1.0, 1.0, np.nan, 1.0], [0.5] * 4])
    drawn = shape_report.draw_roc_curves("A", curves, areas)
    axes = drawn.axes[0]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), curves.mean(axis=0))
    assert axes.lines[-1].get_label() == "mean of 2 folds, area 0.750 ± 0.354"
    alone = shape_report.draw_roc_curves("A", curves[1:], areas[1:]).axes[0]
    assert alone.lines[-1].get_label() == "area 0.500" and not alone.collections
    table = shape_report.tabulate_areas("A", areas[1:])
    assert table.body == [["A", *["0.500"] * 5]] and "deviation" not in table.title
    table = shape_report.tabulate_areas("A", areas)
    assert table.body == [["A", *["0.750 ± 0.354"] * 2, "0.500", *["0.750 ± 0.354"] * 2]]
    assert table.title.endswith(", mean ± standard deviation of 2 folds")
    zeros = np.zeros(3, int)
    one_class = shape_report.compute_fold_curves(zeros, np.full((3, 4), 0.25), zeros)
    assert one_class[0].shape == (0, 201) and one_class[1].shape == (0, 4)


def test_losses_of_two_runs(load_script, tmp_path, monkeypatch, tracking_uri):
    runs = {}
    for name, content in (("Dice", "dice"), ("L1", "l1")):
        folder = runs[name] = tmp_path / name
        folder.mkdir()
        values = Experiment[CGANConfig](
            name="cgan",
            model=CGANConfig(content=content),
            tracking=TrackingConfig(uri=tracking_uri, system_metrics=False),
        )
        (folder / "config.yaml").write_text(configuration.dump(values), encoding="utf-8")
        run = tracking.Run(values, folder)
        for step in range(1, 5):
            run.log_metrics({content: 1 / step, "validation_dice": step / 10}, step)
        run.log_metrics({content: 0.125}, 4)  # repeated after a stop: the later value counts
        run.close()
    config = tmp_path / "config.yaml"
    values = {
        "runs": {name: str(folder) for name, folder in runs.items()},
        "tracking_uri": tracking_uri,
        "smooth": 2,
    }
    config.write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["losses.py", "--config", str(config), "--output", str(tmp_path / "out")]
    )
    load_script("evaluate/losses").main()
    rows = table(tmp_path / "out" / "losses.csv")
    values = [float(row["value"]) for row in rows if (row["run"], row["curve"]) == ("L1", "loss")]
    assert values == pytest.approx([1, 1 / 2, 1 / 3, 0.125])
    assert (tmp_path / "out" / "losses.png").is_file()
    drawn = losses.draw_curves(
        {"L1": {"loss": dict(enumerate(values, 1)), "held-out Dice": {1: 0.1, 4: 0.4}}}, 2
    )
    np.testing.assert_allclose(
        drawn.axes[0].lines[0].get_xydata(), [[1.5, 0.75], [2.5, 5 / 12], [3.5, 11 / 48]]
    )
    np.testing.assert_allclose(drawn.axes[1].lines[0].get_xydata(), [[1, 0.1], [4, 0.4]])


@pytest.mark.long
def test_a_missing_run_is_one_line_on_stderr(repository, tmp_path):
    command = [
        sys.executable,
        str(repository / "evaluate/segmentation.py"),
        "--config",
        str(repository / "configs/segmentation.yaml"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: runs/can/fold0: ") and ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_configs_are_the_defaults(repository):
    for name, schema in (
        ("segmentation", segmentation_report.SegmentationConfig),
        ("synthesis", SynthesisConfig),
    ):
        config = configuration.parse(schema, repository / "configs" / f"{name}.yaml")
        assert list(config.models)[0] == "CAN" and all(
            len(uris) == 3 for uris in config.models.values()
        )
        default = type(config)(models=config.models, data=config.data)
        assert config == default


def test_the_other_shipped_configs_are_read(repository):
    config = configuration.parse(
        segmentation_report.SegmentationConfig,
        repository / "configs/segmentation_cgan.yaml",
    )
    assert config.postprocess and (
        config.postprocess.closing,
        config.postprocess.erosion,
        config.postprocess.dilation,
    ) == (3, 2, 3)
    trained = configuration.load(repository / "configs/cgan.yaml").data
    assert all(getattr(config.data, key) == getattr(trained, key) for key in evaluation.DECISIVE)
    shapes = configuration.parse(
        evaluation.EvaluationConfig, repository / "configs/shape_evaluation.yaml"
    )
    trained = configuration.load(repository / "configs/shape.yaml").data
    assert (
        len(shapes.models["Shape CNN"]) == trained.folds == 5
        and shapes.data.phantoms == trained.phantoms
    )
    configuration.parse(losses.LossesConfig, repository / "configs/losses.yaml")
