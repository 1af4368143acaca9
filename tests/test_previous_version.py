"""What the version before the packages made is read, resumed and made again by this one.

tests/golden/make_previous.py says how it was made.
"""

import json
import os
import runpy
import subprocess
import sys
import tarfile

import mlflow
import numpy as np
import pytest
import tensorflow as tf

from tfmammo import archives
from tfmammo.apps.serving import saving
from tfmammo.archives import phantom
from tfmammo.synthesis.provenance import describe_source
from tfmammo.tracking import export

IMAGE = (np.arange(32 * 32, dtype=np.float32) / 1024).reshape(1, 32, 32, 1)


@pytest.fixture
def previous(repository, tmp_path, monkeypatch):
    """The folder that the earlier version made, which is the current one during the test."""
    with tarfile.open(repository / "tests/golden/previous.tar.gz") as archive:
        # Python 3.11.2, which Debian 12 has, knows no filter.
        known = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **known)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def facts(previous):
    """What it measured of it."""
    return json.loads((previous / "facts.json").read_text())


@pytest.fixture
def same_phantoms(previous):
    """Skip a test where phantoms are not those that it began with.

    Their exponentials, transforms and blurs end in other bits on processors of another kind.
    """
    recipe = json.loads((previous / "sets/poisson/recipes/000000.json").read_text())
    source, count = recipe["source"], recipe["config"]["data"]["phantoms"]
    (drawn,) = [each for each in phantom.read(count=count) if each.image_id == source["image_id"]]
    if describe_source(drawn, archives.read_stored(drawn)).sha256 != source["sha256"]:
        pytest.skip("this processor draws phantoms with other last bits than the one of the files")


@pytest.fixture(scope="module")
def maker(repository):
    """The script's functions and constants."""
    return runpy.run_path(str(repository / "tests/golden/make_previous.py"), run_name="imported")


def run(repository, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(repository), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.usefixtures("same_phantoms")
def test_a_training_goes_on_to_the_same_weights(previous, maker, repository):
    start = np.load("step_4.npz")
    for name, value in maker["weights"](previous / "stopped").items():
        np.testing.assert_array_equal(value, start[name])
    config = str(repository / "configs/quickstart.yaml")
    common = (str(repository / "train/can.py"), "--config", config, "--output", "stopped")
    run(repository, *common, "--set", *maker["TRAINING"], "training.steps=8")
    end = np.load("step_8.npz")
    reached = maker["weights"](previous / "stopped")
    assert set(reached) == set(end.files)
    # Bit for bit on one machine; others, and other numbers of threads, round differently.
    error = sum(float(np.square(reached[name] - end[name]).sum()) for name in reached)
    moved = sum(float(np.square(end[name] - start[name]).sum()) for name in reached)
    assert error < 1e-3 * moved


def test_an_export_gives_the_same_masks(previous):
    inverter = export.load(previous / "can/export", "inverter")
    mask = inverter(image=tf.constant(IMAGE))["mask"]
    # the last bit is that of the TensorFlow that is installed
    np.testing.assert_allclose(mask, np.load("mask.npy"), atol=1e-6)


def test_a_registered_model_is_known_and_answers_the_same(previous):
    saving.check(previous / "registered", "registered")
    model = mlflow.pyfunc.load_model(str(previous / "registered"))
    answer = model.predict(IMAGE, params={"network": "inverter"})
    np.testing.assert_allclose(answer["mask"], np.load("mask.npy"), atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["poisson", "can"])
@pytest.mark.usefixtures("same_phantoms")
def test_an_item_of_a_set_is_made_again_bit_for_bit(previous, name, repository):
    recipe = next(
        path for path in sorted((previous / "sets" / name).rglob("*.json")) if "recipe" in str(path)
    )
    # The command refuses files whose SHA-256 is not the recipe's.
    run(repository, "-m", "tfmammo.synthesis", "--recipe", str(recipe), "--output", "again")
    assert list((previous / "again").rglob("*.png"))


@pytest.mark.long
def test_a_reader_study_shows_its_answers_and_results(previous, facts, maker, repository):
    study = (
        "-m",
        "tfmammo.apps.reader_study",
        "--config",
        str(repository / "configs/reader_study.yaml"),
    )
    assert run(repository, *study, "results", "--set", *maker["STUDY"]) == facts["results"]
    run(repository, *study, "export", "--output", "out", "--set", *maker["STUDY"])
    assert (previous / "out/answers.csv").read_text() == facts["answers"]
