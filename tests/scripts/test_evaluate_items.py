"""The commands of single tables and figures, on the phantom and on exports of known networks:
evaluate/defects.py, frames.py and mammograms.py.
"""

import json
import re

import cv2
import numpy as np
import pytest

from tests.commands import run_module_here
from tests.facts import find, read_csv, read_rows, read_scores
from tests.known_networks import KnownCAN, make_card
from tfmammo.config import DataConfig
from tfmammo.data import datasets
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
    data = DATA.model_dump(mode="json")
    card = {"split": "patient", "train_patients": [], "config": {"data": data}}
    export.export(KnownCAN("known", SIZE, 0.5), folder, card)
    return str(folder)


@pytest.fixture
def run(run_evaluate):
    """A function (name, *overrides) that runs an evaluate script with its own config."""
    return lambda name, *overrides: run_evaluate(name, None, *overrides)


SMALL = (f"data.phantoms={DATA.phantoms}", f"data.size={SIZE}", "samples=50")


def test_defects_of_an_image_without_texture(run, known):
    output = run("defects", *SMALL, f"models={{CAN: {known}}}", "rows=2")
    facts = read_rows(output)
    means = [fact for fact in facts if fact.table == "means"]
    assert {fact.model for fact in means} == {"CAN", "two intensities", "real"}
    assert find(facts, "real", "haar").value == pytest.approx(1)
    # Two intensities, other ones than the baseline's, have no texture either.
    assert find(facts, "CAN", "haar").value == pytest.approx(0, abs=1e-9)
    assert find(facts, "CAN", "lattice_8")
    assert find(facts, "CAN", "defects").value > find(facts, "real", "defects").value
    assert len(list(output.glob("sheet-*.png"))) == 3


def test_three_crop_modes_of_the_same_lesions(run, known):
    models = f"models={{full: {{A: {known}}}, loose: {{A: {known}}}, tight: {{A: {known}}}}}"
    output = run("frames", *SMALL, models, "rows=2", "data.preprocess.contrast=none")
    for pattern, count in (("morphology-*.png", 3), ("failures-*.png", 3), ("overlays.png", 1)):
        assert len(list(output.glob(pattern))) == count
    changes = {"frame": "tight", "percentiles": (0.0, 100.0)}
    changes["preprocess"] = DATA.preprocess.model_copy(update={"denoise": 0.5})
    patches = datasets.load_all_patches(DATA.model_copy(update=changes))
    masks = (patches.images > 0.5).astype(np.uint8)
    smooth = np.stack([postprocess(mask, PostprocessConfig()) for mask in masks])
    expected = segmentation.per_image(patches.masks, smooth)["dice"]
    rows = read_scores(output / "tight", "A + post-processing")
    found = [float(row["dice"]) for row in rows]
    assert found == pytest.approx(expected.tolist(), abs=0.02)
    facts = read_rows(output)
    for frame in ("full", "loose", "tight"):
        key = "A + post-processing", "dice"
        alone = find(read_rows(output / frame), *key).value
        for table in ("means", "morphology"):
            assert find(facts, *key, table, subset=f"frame={frame}").value == alone
        assert find(facts, *key, "morphology", "A", f"frame={frame}")
    failures = read_csv(output / "failures.csv")
    whole = [row for row in failures if row["model"] == "whole patch"]
    assert {row["found"] for row in whole} == {"1.0"}
    subset = "frame=tight;masses=alone"
    assert find(facts, "whole patch", "missed", "failures", subset=subset).value == 0
    # The lesions of one random choice, two rows, in three columns.
    assert cv2.imread(str(output / "croppings.png")).shape[1] == 3 + 3 * (SIZE + 3)


def test_croppings_need_no_model(run):
    output = run("frames", *SMALL, "models={}")
    assert {path.name for path in output.iterdir()} == {"rows.csv", "croppings.png"}


def test_what_is_refused(run, known, tmp_path):
    leaky = tmp_path / "leaky"
    changes = {"split": "paper", "paper_samples": 30, "paper_test": 10, "frame": "loose"}
    split = DATA.model_copy(update=changes)
    card = make_card(datasets.load_all_patches(split), split)
    export.export(KnownCAN("known", SIZE, 0.5), leaky / "export", card)
    for name, models, others, error, key in (
        ("defects", f"{{real: {known}}}", (), ConfigError, "models: real"),
        ("defects", f"{{CAN: {known}}}", ("tail=0.5",), ConfigError, "tail"),
        ("frames", "{loose: {}}", (), ConfigError, "models.loose: names no model"),
        ("frames", f"{{loose: {{A: {leaky}}}}}", (), DataError, "models.loose"),
    ):
        with pytest.raises(error, match=key):
            run(name, *SMALL, f"models={models}", *others)


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
    small = ("data.name=phantom", "data.phantoms=12", "samples=50", f"sets={{poisson: {made}}}")
    output = run("mammograms", *small)
    facts = read_rows(output)
    contrast, before = (
        find(facts, "poisson", key, "masses") for key in ("contrast", "contrast_before")
    )
    assert contrast.images > 1 and contrast.value > before.value
    known = find(facts, "poisson", "of_training_patients", "masses").value
    assert known == 0, "Poisson editing is trained on nobody"
    assert find(facts, "real masses", "contrast", "masses")
    names = {"table.md", "rows.csv", "masses.csv", "figure-poisson.png"}
    assert {path.name for path in output.iterdir()} == names
    table = (output / "table.md").read_text(encoding="utf-8")
    assert re.search(r"\| poisson \| 2 \| \d+ \| - \|", table), "few patients: no corners compared"
    assert "No interval and no p-value:" in table
    real = [row for row in read_csv(output / "masses.csv") if row["set"] == "real masses"]
    assert real and all(row["seam_before"] == "" for row in real)
    with pytest.raises(DataError, match="recipe"):
        run("mammograms", *small[:-1], f"sets={{poisson: {output}}}")
    # As if a network had been trained on the patient of the first mass's mammogram, and on another
    # one's lesion.
    first, second, *_ = read_csv(output / "masses.csv")
    trained_on = {first["patient"], second["patient_of_lesion"]}
    patients = json.loads((made / "patients.json").read_text())
    (made / "patients.json").write_text(json.dumps(patients | {"trained_on": sorted(trained_on)}))
    output = run("mammograms", *small)
    rows = [row for row in read_csv(output / "masses.csv") if row["set"] == "poisson"]
    for row in rows:
        is_known = bool({row["patient"], row["patient_of_lesion"]} & trained_on)
        assert row["trained_on"] == str(is_known)
    known = sum(row["trained_on"] == "True" for row in rows)
    found = find(read_rows(output), "poisson", "of_training_patients", "masses").value
    assert found == known >= 2
