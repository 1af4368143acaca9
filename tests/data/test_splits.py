"""No patient on both sides, balanced folds; the paper's protocol leaks as it should."""

import logging

import numpy as np
import pytest

from tfmammo.config import DataConfig
from tfmammo.data.patches import DataError, Patches
from tfmammo.data.splits import LeakError, by_patient, check_no_leak, paper, split

COUNTS = {"a": 7, "b": 6, "c": 5, "d": 4, "e": 3, "f": 2, "g": 1, "h": 1, "i": 1}
IDS = np.array([patient for patient, count in COUNTS.items() for _ in range(count)])


def patches(ids=IDS, size=4):
    """Patches of noise whose copies can be told apart."""
    rng = np.random.default_rng(0)
    shape = (len(ids), size, size, 1)
    return Patches(
        rng.random(shape, np.float32), rng.integers(0, 2, shape, np.uint8), np.array(ids), np.array([f"{i}#0" for i in range(len(ids))])
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_patient_is_held_out_once_in_balanced_folds(folds, seed):
    held = []
    for fold in range(folds):
        train, held_out = by_patient(IDS, folds, fold, seed)
        assert sorted([*train, *held_out]) == list(range(len(IDS)))
        assert not set(IDS[train]) & set(IDS[held_out])
        held.append(held_out)
    assert sorted(np.concatenate(held)) == list(range(len(IDS)))
    sizes = [len(rows) for rows in held]
    assert max(sizes) <= max(7, -(-len(IDS) // folds) + 1) and max(sizes) - min(sizes) <= 3


def test_largest_first_by_hand():
    # 5 4 3 | 2 goes to the 3, 1 to the 4 or 5-5-5 in the end
    ids = ["v"] * 5 + ["w"] * 4 + ["x"] * 3 + ["y"] * 2 + ["z"]
    folds = [set(np.array(ids)[by_patient(ids, 3, fold, seed=9)[1]]) for fold in range(3)]
    assert folds == [{"v"}, {"w", "z"}, {"x", "y"}]


def test_deterministic_by_seed_and_independent_of_the_rows():
    for fold in range(3):
        again = [set(IDS[by_patient(IDS, 3, fold, seed=4)[1]]) for _ in range(2)]
        order = np.random.default_rng(1).permutation(len(IDS))
        shuffled = IDS[order]
        assert again[0] == again[1] == set(shuffled[by_patient(shuffled, 3, fold, seed=4)[1]])
    equal = [f"p{i}" for i in range(12)]
    assert len({tuple(by_patient(equal, 3, 0, seed)[1]) for seed in range(10)}) > 5


def test_impossible_folds_are_errors():
    with pytest.raises(DataError, match="2 patients can't be split into 3 folds"):
        by_patient(["a", "b", "b", "b"], 3, 0, 0)
    for folds, fold in ((3, 3), (3, -1), (1, 0)):
        with pytest.raises(DataError, match="does not exist"):
            by_patient(IDS, folds, fold, 0)


def test_check_no_leak_counts_patients():
    check_no_leak(["a", "a", "b"], ["c"])
    with pytest.raises(LeakError, match="both sides of the split: 2$"):
        check_no_leak(["a", "a", "b", "c"], np.array(["c", "b", "b", "d"]))


def test_paper_draws_all_eight_variants_of_image_and_mask_together():
    some = patches(["p", "q"])
    train, test = paper(some, 16, 4, seed=0)
    assert len(train) == 12 and len(test) == 4
    images, masks = np.concatenate([train.images, test.images]), np.concatenate([train.masks, test.masks])
    ids = np.concatenate([train.ids, test.ids])
    assert sorted(ids) == sorted(f"{i}#0~{variant}" for i in range(2) for variant in range(8))
    assert len({image.tobytes() for image in images}) == 16
    for image, mask, name in zip(images, masks, ids, strict=True):
        row, variant = int(name[0]), int(name[-1])
        turned = [np.rot90(array[row, ..., 0], variant % 4) for array in (some.images, some.masks)]
        turned = [np.fliplr(array) for array in turned] if variant >= 4 else turned
        np.testing.assert_array_equal(image[..., 0], turned[0])
        np.testing.assert_array_equal(mask[..., 0], turned[1])


def test_paper_has_its_numbers_and_leaks():
    some = patches([f"p{i}" for i in range(107)], size=2)
    train, test = paper(some, 850, 150, seed=3)
    assert (len(train), len(test)) == (700, 150)
    assert len(set(train.ids) | set(test.ids)) == 850
    with pytest.raises(LeakError):
        check_no_leak(train.patient_ids, test.patient_ids)
    again, _ = paper(some, 850, 150, seed=3)
    other, _ = paper(some, 850, 150, seed=4)
    assert train.fingerprint() == again.fingerprint() != other.fingerprint()


def test_paper_with_few_patches_scales_the_test_set(caplog):
    with caplog.at_level(logging.WARNING):
        train, test = paper(patches([f"p{i}" for i in range(10)]), 850, 150, seed=0)
    assert (len(train), len(test)) == (66, 14)  # 80 * 150 / 850 = 14.1
    assert "10 patches make 80 samples of the 850 asked for: 14 of them test" in caplog.text
    with pytest.raises(DataError, match="1 patches make 8 samples, too few"):
        paper(patches(["p"]), 8000, 150, seed=0)


def test_split_follows_the_config():
    some = patches()
    folds = [split(some, DataConfig(folds=3, fold=fold, seed=5)) for fold in range(3)]
    assert sorted(np.concatenate([held_out.ids for _, held_out in folds])) == sorted(some.ids)
    for fold, (train, held_out) in enumerate(folds):
        expected = by_patient(IDS, 3, fold, 5)
        assert train.ids.tolist() == some.ids[expected[0]].tolist() and held_out.ids.tolist() == some.ids[expected[1]].tolist()
    train, test = split(some, DataConfig(split="paper", paper_samples=100, paper_test=20))
    assert (len(train), len(test)) == (80, 20)
