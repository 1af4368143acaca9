"""The commands of single tables and figures, on the phantom and on exports of known networks:
evaluate/defects.py, frames.py, detectors.py, mammograms.py and the groups of segmentation.py.
"""

import csv
import json
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tests.commands import run_module_here
from tests.exported_detectors import write_ssd_card
from tests.known_networks import KnownCAN
from tfmammo.config import DataConfig
from tfmammo.data import datasets, splits
from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics import segmentation
from tfmammo.models.cgan import PostprocessConfig, postprocess
from tfmammo.tracking import export

SIZE = 32
DATA = DataConfig(phantoms=8, size=SIZE)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The export of a network that was trained on nobody."""
    folder = tmp_path_factory.mktemp("known") / "export"
    card = {
        "split": "patient",
        "train_patients": [],
        "config": {"data": DATA.model_dump(mode="json")},
    }
    export.export(KnownCAN("known", SIZE, 0.5), folder, card)
    return str(folder)


@pytest.fixture
def run(repository, tmp_path, monkeypatch, load_script):
    """A function (name, *overrides) that runs an evaluate script with its own config."""

    def call(name, *overrides):
        config = repository / "configs" / f"{name}.yaml"
        output = tmp_path / "output"
        arguments = ["--config", str(config), "--output", str(output), "--set", *overrides]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        load_script(f"evaluate/{name}").main()
        return output

    return call


def read_table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


SMALL = (f"data.phantoms={DATA.phantoms}", f"data.size={SIZE}", "samples=50")


def test_defects_of_an_image_without_texture(run, known):
    output = run("defects", *SMALL, f"models={{CAN: {known}}}", "rows=2")
    rows = {(row["model"], row["measure"]): row for row in read_table(output / "table.csv")}
    assert {model for model, _ in rows} == {"CAN", "two grey values", "real"}
    assert float(rows["real", "haar"]["mean"]) == pytest.approx(1)
    # Two grey values, other ones than the baseline's, have no texture either.
    assert float(rows["CAN", "haar"]["mean"]) == pytest.approx(0, abs=1e-9)
    assert ("CAN", "lattice_8") in rows
    assert float(rows["CAN", "defects"]["mean"]) > float(rows["real", "defects"]["mean"])
    assert {path.name for path in output.iterdir()} == {
        *("table.md", "table.csv", "per_image.csv"),
        *("sheet-random.png", "sheet-best-CAN.png", "sheet-worst-CAN.png"),
    }
    assert "which 1 % each of the textured real tissue is" in (output / "table.md").read_text()


def test_what_defects_refuses(run, known):
    with pytest.raises(DataError, match="models: real"):
        run("defects", *SMALL, f"models={{real: {known}}}")
    with pytest.raises(ConfigError, match="tail"):
        run("defects", *SMALL, f"models={{CAN: {known}}}", "tail=0.5")


def test_segmentation_by_pathology(run, known):
    output = run("segmentation", *SMALL, f"models={{CAN: {known}}}", "groups=[pathology]")
    patches = datasets.load_all_patches(DATA)
    lines = read_table(output / "groups.csv")
    groups = {line["group"] for line in lines}
    assert groups == set(patches.pathologies.tolist())
    for group in groups:
        members = np.flatnonzero(patches.pathologies == group)
        dice = segmentation.per_image(patches.masks[members], patches.images[members])["dice"]
        line = next(
            line
            for line in lines
            if (line["group"], line["model"], line["measure"]) == (group, "CAN", "dice")
        )
        assert float(line["mean"]) == pytest.approx(100 * dice.mean(), abs=0.5)
        assert int(line["n"]) == len(members)
    assert "### By pathology (" in (output / "table.md").read_text(encoding="utf-8")


def test_three_crop_modes_of_the_same_lesions(run, known):
    models = f"models={{full: {{A: {known}}}, loose: {{A: {known}}}, tight: {{A: {known}}}}}"
    output = run("frames", *SMALL, models, "rows=2", "data.preprocess.contrast=none")
    assert {path.name for path in output.iterdir()} == {
        *("table.md", "full", "loose", "tight", "croppings.png", "overlays.png"),
        *("morphology.csv", "failures.csv"),
        *(
            f"{name}-{frame}.png"
            for name in ("morphology", "failures")
            for frame in ("full", "loose", "tight")
        ),
    }
    data = DATA.model_copy(update={"frame": "tight"})
    data = data.model_copy(
        update={
            "percentiles": (0.0, 100.0),
            "preprocess": data.preprocess.model_copy(update={"denoise": 0.5}),
        }
    )
    patches = datasets.load_all_patches(data)
    masks = (patches.images > 0.5).astype(np.uint8)
    smooth = np.stack([postprocess(mask, PostprocessConfig()) for mask in masks])
    expected = segmentation.per_image(patches.masks, smooth)["dice"]
    rows = [
        row
        for row in read_table(output / "tight" / "per_image.csv")
        if row["model"] == "A + post-processing"
    ]
    assert [float(row["dice"]) for row in rows] == pytest.approx(expected.tolist(), abs=0.02)
    changes = read_table(output / "morphology.csv")
    assert {row["frame"] for row in changes} == {"full", "loose", "tight"}
    failures = read_table(output / "failures.csv")
    assert {row["model"] for row in failures} == {
        *("A", "A + post-processing", "whole patch", "centred disc")
    }
    whole = [row for row in failures if row["model"] == "whole patch"]
    assert {row["found"] for row in whole} == {"1.0"}
    assert "### Masses that are missed" in (output / "table.md").read_text(encoding="utf-8")
    # The lesions of one random choice, two rows, in three columns.
    assert cv2.imread(str(output / "croppings.png")).shape[1] == 3 + 3 * (SIZE + 3)


def test_croppings_need_no_model(run):
    output = run("frames", *SMALL, "models={}")
    assert {path.name for path in output.iterdir()} == {"table.md", "croppings.png"}


def test_what_frames_refuses(run, known, tmp_path):
    with pytest.raises(ConfigError, match="models.loose: names no model"):
        run("frames", *SMALL, "models={loose: {}}")
    leaky = tmp_path / "leaky"
    split = DATA.model_copy(
        update={"split": "paper", "paper_samples": 30, "paper_test": 10, "frame": "loose"}
    )
    patches = datasets.load_all_patches(split)
    _, held_out = splits.split(patches, split)
    card = {
        "split": "paper",
        "train_patients": sorted(set(patches.patient_ids.tolist())),
        "held_out_ids": held_out.ids.tolist(),
        "config": {"data": split.model_dump(mode="json")},
    }
    export.export(KnownCAN("known", SIZE, 0.5), leaky / "export", card)
    with pytest.raises(DataError, match="models.loose"):
        run("frames", *SMALL, f"models={{loose: {{A: {leaky}}}}}")


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A detector that was trained on nobody, and always finds one box in the corner."""
    folder = tmp_path_factory.mktemp("blind") / "export"
    boxes = tf.constant([[[0.0, 0.0, 0.1, 0.1]]])

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="input_tensor")]
    )
    def detect(input_tensor):
        return {
            "detection_boxes": boxes,
            "detection_scores": tf.constant([[0.5]]),
            "detection_classes": tf.ones([1, 1]),
            "num_detections": tf.ones([1]),
        }

    tf.saved_model.save(
        tf.Module(), str(folder / "saved_model"), signatures=detect.get_concrete_function()
    )
    write_ssd_card(folder, DataConfig(size=64))
    return str(folder.parent)


def test_detectors_are_compared_on_one_set(run, blind):
    output = run(
        "detectors",
        "data.phantoms=8",
        "samples=20",
        "boxes=20",
        "fppi=[1, 4]",
        f"detectors={{SSD: {blind}, Mask R-CNN: {blind}}}",
    )
    rows = read_table(output / "table.csv")
    assert [row["detector"] for row in rows] == ["SSD", "Mask R-CNN", "random boxes"]
    assert rows[0]["4, %"] == rows[1]["4, %"] and rows[0]["4, %"].startswith("0.0")
    differences = read_table(output / "difference.csv")
    assert [row["detector"] for row in differences] == ["Mask R-CNN", "random boxes"]
    assert differences[0]["all detections, %"].startswith("+0.0")
    trainings = read_table(output / "trainings.csv")
    assert [row["detector"] for row in trainings] == ["SSD", "Mask R-CNN", "random boxes"]
    seconds = read_table(output / "seconds.csv")
    assert [row["detector"] for row in seconds] == ["SSD", "Mask R-CNN"]
    assert all(float(row["s"]) > 0 for row in seconds)
    assert "Seconds" not in (output / "table.md").read_text(encoding="utf-8")
    assert (output / "froc.png").exists()


@pytest.mark.slow
def test_mammograms_with_synthetic_masses(run, repository, tmp_path):
    """A set by Poisson editing, beside the real masses of its archive."""
    made = tmp_path / "poisson"
    config = repository / "configs/synthesis_blending.yaml"
    values = ("data.name=phantom", "data.root=null", "data.phantoms=12", "lesions.name=phantom")
    settings = ("renderer=poisson", "generator=null", "format=png", "mammograms=all", "count=2")
    done = run_module_here(
        "tfmammo.synthesis", "--config", config, "--output", made, "--set", *values, *settings
    )
    assert done.returncode == 0, done.stderr
    output = run(
        "mammograms",
        "data.name=phantom",
        "data.phantoms=12",
        "samples=50",
        f"sets={{poisson: {made}}}",
    )
    text = (output / "table.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| poisson |")]
    masses, known, contrast, before, *_ = [
        cell.split()[0] for cell in line.strip("| ").split(" | ")[1:]
    ]
    assert int(masses) > 1 and float(contrast) > float(before)
    assert known == "0", "Poisson editing is trained on nobody"
    assert "| real masses |" in text
    assert list(output.glob("figure-*.png"))
    # As if a network had been trained on the patient of the first mass's mammogram, and on another
    # one's lesion.
    first, second, *_ = read_table(output / "masses.csv")
    trained_on = {first["patient"], second["patient_of_lesion"]}
    patients = json.loads((made / "patients.json").read_text())
    (made / "patients.json").write_text(json.dumps(patients | {"trained_on": sorted(trained_on)}))
    output = run(
        "mammograms",
        "data.name=phantom",
        "data.phantoms=12",
        "samples=50",
        f"sets={{poisson: {made}}}",
    )
    rows = [row for row in read_table(output / "masses.csv") if row["set"] == "poisson"]
    for row in rows:
        is_known = bool({row["patient"], row["patient_of_lesion"]} & trained_on)
        assert row["trained_on"] == str(is_known)
    known = sum(row["trained_on"] == "True" for row in rows)
    assert known >= 2 and f"| poisson | {masses} | {known} |" in (output / "table.md").read_text(
        encoding="utf-8"
    )
