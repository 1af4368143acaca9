"""Whole audits: a CAN that is overfitted on purpose, one that is not trained, cards, promotion."""

import csv
import json

import cv2
import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

from tests.commands import run_module_here
from tfmammo.apps.audit.attacks import Attack, AuditConfig
from tfmammo.apps.audit.verdict import decide, find_place, write
from tfmammo.apps.audit.work import audit
from tfmammo.apps.registry.promotion import PromotionConfig, find_audit_fault
from tfmammo.config import DataConfig
from tfmammo.data import datasets
from tfmammo.errors import ConfigError
from tfmammo.metrics.rows import read_facts
from tfmammo.metrics.significance import Estimate
from tfmammo.models.can import CAN, CANConfig
from tfmammo.tracking import models
from tfmammo.tracking.export import CARD, export, read_card

SIZE = 32
PATIENTS = 40
EMPTY = {"format": 1, "name": "can", "serves": "", "functions": {}}
NARROW = CANConfig(filters=(8, 16, 16), discriminator_filters=8, dropout=0, learning_rate=2e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of patches: an ellipse anywhere, brighter or darker than tissue, one a patient."""
    root = tmp_path_factory.mktemp("patches")
    for name in ("images", "masks"):
        (root / name).mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(PATIENTS):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        centre = random.integers(10, 22, 2).tolist()
        axes = random.integers(4, 8, 2).tolist()
        cv2.ellipse(mask, centre, axes, float(random.integers(180)), 0, 360, 255, -1)
        texture = cv2.GaussianBlur(random.normal(0, 60, (SIZE, SIZE)), (0, 0), 2)
        image = np.clip(120 + 3 * texture + (mask > 0) * random.integers(-60, 60), 1, 254)
        name = f"{number:03d}.png"
        cv2.imwrite(str(root / "images" / name), image.astype(np.uint8))
        cv2.imwrite(str(root / "masks" / name), mask)
        rows.append({"file": name, "patient": f"P{number}", "kind": "mass", "laterality": "L"})
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return DataConfig(name="folder", root=root, frame="full", size=SIZE)


def train(data, folder, steps):
    """Export a CAN trained on half of the patients, as a run's card says."""
    keras.utils.set_random_seed(0)
    patches = datasets.load_all_patches(data)
    half = patches.take(np.arange(PATIENTS // 2))
    can = CAN(NARROW, SIZE)
    images = tf.constant(half.images)
    masks = tf.constant(half.masks.astype(np.float32))
    step = tf.function(can.train_step)
    for _ in range(steps):
        step({"image": images, "mask": masks})
    card = {
        "config": {"data": data.model_dump(mode="json")},
        "train_patients": sorted(set(half.patient_ids.tolist())),
    }
    return export(can, folder, card)


@pytest.mark.long
def test_an_overfitted_generator_is_caught_and_an_untrained_one_is_not(data, tmp_path, repository):
    overfitted = train(data, tmp_path / "overfitted", 250)
    config = AuditConfig(model=str(overfitted), networks=False, samples=100)
    audit(config, tmp_path / "out")
    record = read_card(overfitted)["audit"]
    assert record["verdict"] == "leaks", record
    assert "attack patient was not tried" in (tmp_path / "out/table.md").read_text()
    assert record["attacks"]["loss"][1] > 0.6 and record["patches"] == PATIENTS // 2
    assert json.loads((tmp_path / "out/audit.json").read_text())["verdict"] == "leaks"
    assert (tmp_path / "out/nearest.png").is_file()
    facts = {(fact.subset, fact.measure): fact for fact in read_facts(tmp_path / "out/rows.csv")}
    loss = facts["attack=loss", "success"]
    assert (loss.value, loss.low, loss.high) == pytest.approx(record["attacks"]["loss"], abs=1e-3)
    assert (loss.patients, loss.images) == (PATIENTS, PATIENTS)
    untrained = train(data, tmp_path / "untrained", 0)
    overrides = [f"model={untrained}", "networks=false", "samples=100"]
    config = ("--config", repository / "configs/audit.yaml", "--set", *overrides)
    done = run_module_here("tfmammo.apps.audit", *config, "--output", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert read_card(untrained)["audit"]["verdict"] == "undecided"
    assert "discriminator" in read_card(untrained)["audit"]["attacks"]


def test_no_verdict_is_written_into_a_copy(tmp_path, monkeypatch):
    own = tmp_path / "run"
    own.mkdir()
    (own / CARD).write_text(json.dumps(EMPTY))
    assert find_place(str(own), own, None) == str(own / CARD)
    assert find_place("models:/tfmammo-can/3", own, None) == "models:/tfmammo-can/3"
    for handle in ("models:/zoo/can", "can"):
        with pytest.raises(ConfigError, match=f"{handle} is read as a copy"):
            audit(AuditConfig(model=handle), tmp_path / "out")
    monkeypatch.setattr(models, "_copies", {("https://server", "runs"): tmp_path})
    with pytest.raises(ConfigError, match="write_card=false"):
        find_place("runs:/abc/export", own, None)


def test_a_verdict_stays_with_the_version_that_an_alias_named(tracking_uri, tmp_path):
    client = mlflow.MlflowClient(tracking_uri)
    client.create_registered_model("can")
    for _ in range(2):
        client.create_model_version("can", str(tmp_path))
    client.set_registered_model_alias("can", "best", "1")
    place = find_place("models:/can@best", tmp_path, tracking_uri)
    client.set_registered_model_alias("can", "best", "2")
    write({"verdict": "passed", "bound": 0.5, "reason": "", "date": ""}, place, tracking_uri)
    tags = [client.get_model_version("can", number).tags for number in ("1", "2")]
    assert tags[0]["audit.verdict"] == "passed" and "audit.verdict" not in tags[1]


@pytest.mark.parametrize(
    ("intervals", "decision", "bound"),
    [
        ([(0.5, 0.45, 0.58), (0.52, 0.48, 0.55)], "passed", 0.58),
        ([(0.5, 0.2, 0.9), (0.55, 0.5, 0.58)], "undecided", 0.9),  # the weaker one is wider
        ([(0.55, 0.5, 0.58), (0.5, 0.2, 0.9)], "undecided", 0.9),
        ([(0.7, 0.5, 0.9), (0.66, 0.62, 0.7)], "leaks", 0.9),
        ([(0.6, 0.6, 0.6)], "undecided", 0.6),  # neither above nor below the limit
        ([(0.5, 0.4, 0.55), (0.5, np.nan, np.nan)], "undecided", np.nan),
    ],
)
def test_the_verdict_takes_all_attacks(intervals, decision, bound):
    attacks = [Attack(str(number), Estimate(*values)) for number, values in enumerate(intervals)]
    verdict = decide(attacks, limit=0.6)
    assert verdict.decision == decision
    assert verdict.bound == pytest.approx(bound, nan_ok=True)


@pytest.mark.parametrize(
    ("required", "tag", "card", "is_refused"),
    [
        ("none", None, None, False),
        ("passed", None, None, True),
        ("passed", "passed", None, False),
        ("no_leak", None, "undecided", False),
        ("passed", None, "undecided", True),
        ("no_leak", "leaks", "passed", True),  # the version's own audit counts, not an earlier one
    ],
)
def test_a_promotion_may_require_an_audit(required, tag, card, is_refused):
    config = PromotionConfig(model="m", audit=required)
    tags = {"audit.verdict": tag} if tag else {}
    fault = find_audit_fault(config, tags, {"audit": {"verdict": card}} if card else {})
    assert (fault is not None) == is_refused
