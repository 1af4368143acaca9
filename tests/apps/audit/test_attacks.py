"""Attacks on generators whose memory is known: everything, nothing, or the tissue they see."""

from pathlib import Path

import numpy as np
import pytest

from tfmammo.apps.audit.attacks import AuditConfig, Sides, run_attacks
from tfmammo.apps.audit.verdict import decide
from tfmammo.data.patches import Patches
from tfmammo.evaluation.networks import Network

CONFIG = AuditConfig(model="none", networks=False, samples=100)
NETWORK = Network("none", Path("nowhere"), None, {}, "mask")
LEVEL = 0.99
SIDE = 16


def make_sides(remembers, patients=40, per=2, shown=False, seed=0, side=SIDE):
    """Patches of noise, half of the patients' trained on; those come back if it remembers them."""
    random = np.random.default_rng(seed)
    count = patients * per
    names = np.repeat([f"p{number:02d}" for number in range(patients)], per)
    real = random.random((count, side, side, 1), np.float32)
    masks = np.zeros(real.shape, np.uint8)
    masks[:, 4:12, 4:12] = 1
    is_member = np.arange(count) < count // 2
    made = random.random(real.shape, np.float32)
    if remembers:
        noise = random.normal(0, 0.05, real.shape)
        back = np.clip(real + noise, 0, 1).astype(np.float32)
        made = np.where(is_member[:, None, None, None], back, made)
    weights = np.ones(real.shape, np.float32)
    if shown:
        weights = masks.astype(np.float32)
        made = np.where(masks == 1, made, real)
    ids = np.array([f"{name}#{number}" for number, name in enumerate(names)])
    return Sides(Patches(real, masks, names, ids), is_member, made, made, weights)


def attack(sides):
    return {each.name: each for each in run_attacks(NETWORK, sides, CONFIG, LEVEL)}


def test_a_generator_that_gives_training_patches_back_is_caught():
    attacks = attack(make_sides(True))
    assert attacks["loss"].success.value == 1 and attacks["loss"].rate.value == 1
    assert attacks["extraction"].success.value == 1
    assert attacks["extraction"].details.startswith("100.0 % of training patches")
    verdict = decide(list(attacks.values()), 0.6)
    assert verdict.decision == "leaks"


@pytest.mark.parametrize("shown", [False, True])
def test_a_generator_that_knows_nothing_is_not_caught(shown):
    attacks = attack(make_sides(False, shown=shown))
    assert set(attacks) == {"loss", "nearest, pixels", "extraction", "patient"}
    for each in attacks.values():
        assert each.success.low < 0.5 < each.success.high
    assert decide(list(attacks.values()), 0.6).decision == "undecided"
    assert decide(list(attacks.values()), 0.9).decision == "passed"


def test_a_training_patch_generated_from_an_unseen_mask_is_found():
    sides = make_sides(False)
    others = np.flatnonzero(~sides.is_member)
    # turned, as training turns patches
    sides.made[others] = np.rot90(sides.patches.images[: len(others)], axes=(1, 2))
    nearest = attack(sides)["nearest, pixels"]
    assert nearest.success.value == 1 and nearest.details.startswith("mean 0 of training patches")


def test_identical_generated_patches_reveal_nothing():
    sides = make_sides(False)
    sides.made[:] = 0.5
    success = attack(sides)["nearest, pixels"].success
    assert success.low < 0.5 < success.high


def test_a_patient_is_found_by_the_other_patch():
    sides = make_sides(False)
    members = np.flatnonzero(sides.is_member)
    # what is made for one patch of a patient shows the other one
    sides.made[members] = sides.patches.images[members.reshape(-1, 2)[:, ::-1].ravel()]
    found = attack(sides)["patient"]
    assert found.details.startswith("100.0 % of training patients found")
    assert found.success.low > 0.6
    # a patch of the same patient is no evidence of a copy
    nearest = attack(sides)["nearest, pixels"].success
    assert nearest.low < 0.5 < nearest.high


def test_a_patient_is_searched_among_those_of_the_same_side_with_two_patches():
    sides = make_sides(False)
    members = np.flatnonzero(sides.is_member)
    others = np.flatnonzero(~sides.is_member)
    real = sides.patches.images
    made = real[members.reshape(-1, 2)[:, ::-1].ravel()]
    sides.made[members] = np.clip(made + 0.01, 0, 1)
    real[others] = sides.made[members]  # nearer, but on the other side
    sides.patients[:2] = ["alone", "too"]
    assert attack(sides)["patient"].details.startswith("100.0 % of training patients found")


@pytest.mark.slow
def test_networks_see_copies_too(published_weights):
    sides = make_sides(False, patients=16, per=1, side=64)
    # what is made for unseen patients shows training patches, a little noisier
    copies = sides.patches.images[sides.is_member] * 0.95
    sides.made[~sides.is_member] = copies
    config = CONFIG.model_copy(update={"networks": True})
    attacks = {each.name: each for each in run_attacks(NETWORK, sides, config, LEVEL)}
    for space in ("pixels", "LPIPS", "Inception"):
        assert attacks[f"nearest, {space}"].success.value > 0.9


@pytest.mark.slow
def test_too_few_patients_are_undecided():
    sides = make_sides(True, patients=8)
    assert decide(list(attack(sides).values()), 0.6).decision == "undecided"
