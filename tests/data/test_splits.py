"""No patient on both sides, balanced folds, saved and official splits; the paper's protocol leaks
as it should.
"""

import csv
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.data.patches import Patches
from tfmammo.data.pipeline import batches
from tfmammo.data.splits import (
    Mammograms,
    check_no_leak,
    describe,
    halve,
    load,
    save,
    split,
    split_as_in_paper,
    split_by_patient,
    split_officially,
)
from tfmammo.errors import DataError

COUNTS = {"a": 7, "b": 6, "c": 5, "d": 4, "e": 3, "f": 2, "g": 1, "h": 1, "i": 1}
IDS = np.array([patient for patient, count in COUNTS.items() for _ in range(count)])
OFFICIAL = DataConfig(split="official")


def make_patches(ids=IDS, size=4, **facts):
    """Patches of noise, of which no two are alike."""
    random = np.random.default_rng(0)
    shape = (len(ids), size, size, 1)
    names = np.array([f"{i}#0" for i in range(len(ids))])
    images = random.random(shape, np.float32)
    masks = random.integers(0, 2, shape, np.uint8)
    return replace(Patches(images, masks, np.array(ids), names), **facts)


def many(count, **values):
    return make_patches([f"p{i}" for i in range(count)], **values)


def select(patches, wanted):
    return patches.take(np.flatnonzero(wanted))


def hold_out(ids, folds, seed, *classes):
    """The patients that each fold holds out."""
    ids = np.array(ids)
    return [
        set(ids[split_by_patient(ids, folds, fold, seed, *classes)[1]]) for fold in range(folds)
    ]


def test_folds_by_hand_and_independent_of_the_rows():
    # 5 4 3 | 2 goes to the 3, 1 to the 4 or 5-5-5 in the end
    ids = ["v"] * 5 + ["w"] * 4 + ["x"] * 3 + ["y"] * 2 + ["z"]
    assert hold_out(ids, 3, 9) == [{"v"}, {"w", "z"}, {"x", "y"}]
    shuffled = IDS[np.random.default_rng(1).permutation(len(IDS))]
    for rows in (IDS, shuffled):  # what runs have had
        assert hold_out(rows, 3, 4) == [set("afi"), set("beg"), set("cdh")]
    equal = [f"p{i}" for i in range(12)]
    assert len({tuple(split_by_patient(equal, 3, 0, seed)[1]) for seed in range(10)}) > 5
    configs = [DataConfig(folds=3, seed=seed) for seed in range(10)]
    assert len({tuple(split(many(12), config)[1].patient_ids) for config in configs}) > 5


@pytest.mark.parametrize(
    ("ids", "folds", "fold", "named"),
    [
        (["a", "b", "b", "b"], 3, 0, "into 3 folds"),
        *((IDS, *wrong, "does not exist") for wrong in ((3, 3), (3, -1), (1, 0))),
    ],
)
def test_impossible_folds_are_errors(ids, folds, fold, named):
    with pytest.raises(DataError, match=named):
        split_by_patient(ids, folds, fold, 0)


def test_an_empty_list_of_mammograms():
    listed = Mammograms.of([])
    assert listed.patient_ids.shape == listed.official_splits.shape == (0,)


# Leaks


def test_check_no_leak_counts_patients():
    check_no_leak(["a", "a", "b"], ["c"])
    with pytest.raises(DataError, match="both subsets of the split: 2$"):
        check_no_leak(["a", "a", "b", "c"], np.array(["c", "b", "b", "d"]))


def make_archive(ids, subsets=None):
    ids = np.array(list(ids))
    empty = np.array([""] * len(ids))
    return Mammograms(ids, empty, empty, empty if subsets is None else np.array(subsets))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("split_by_patient", {"folds": 3}),
        ("split_officially", {"split": "official"}),
        ("split_by_file", {"split_file": "split.json"}),
    ],
)
def test_a_leak_of_any_part_is_refused(tmp_path, monkeypatch, part, values):
    """`split` checks what its parts return."""
    archive = make_archive("aabbcc", ["train"] * 4 + ["test"] * 2)
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "split.json", describe(archive, DataConfig(folds=3), "phantom"))
    config = DataConfig(**values)
    train, held_out = split(archive, config)
    assert not set(train.patient_ids) & set(held_out.patient_ids)
    for rows, error, named in (
        (([0, 1, 2, 4], [3, 5]), DataError, "both subsets of the split: 2"),  # b and c leak
        (([0, 1, 2, 3, 4, 5], []), DataError, "none may be empty"),
        (([], [0, 1]), DataError, "none may be empty"),
    ):
        parts = tuple(np.array(side, np.intp) for side in rows)
        monkeypatch.setattr(splits, part, lambda *arguments, parts=parts: parts)
        with pytest.raises(error, match=named):
            split(archive, config)


# The archive's own split


def test_the_official_split():
    sides = np.where(np.isin(IDS, ["b", "g"]), "test", "train")
    some = make_patches(official_splits=sides)
    train, test = split(some, OFFICIAL)
    assert test.ids.tolist() == some.ids[sides == "test"].tolist()
    assert train.ids.tolist() == some.ids[sides == "train"].tolist()
    for wrong, named in (
        (np.where(IDS == "a", "", sides), "7 of 30"),
        (np.full(30, "train"), "holds 0 out"),
    ):
        with pytest.raises(DataError, match=named):
            split(replace(some, official_splits=wrong), OFFICIAL)


def test_an_official_split_that_leaks_is_refused():
    sides = np.array(["train"] * len(IDS))
    sides[[0, 7, 29]] = "test"  # a and b are on both sides, i entirely in the test set
    with pytest.raises(DataError, match="test set: 2"):
        split(make_patches(official_splits=sides), OFFICIAL)


@pytest.mark.data
def test_the_real_leak_of_cbis_ddsm(real_data):
    parts = {}
    for kind, counts in (("mass", (1318, 378)), ("calc", (1546, 326))):
        rows = []
        for side in ("train", "test"):
            path = real_data / f"cbis-ddsm/{kind}_case_description_{side}_set.csv"
            with path.open(newline="", encoding="utf-8") as file:
                rows += [(row["patient_id"], side) for row in csv.DictReader(file)]
        parts[kind] = np.array(rows)
        train, test = split_officially(*parts[kind].T)
        assert (len(train), len(test)) == counts
    with pytest.raises(DataError, match="training and the test set: 31;"):
        split_officially(*np.concatenate(list(parts.values())).T)


# The paper's split


def test_paper_draws_all_eight_variants_of_image_and_mask_together():
    shapes = np.array(["oval", ""])
    some = make_patches(["p", "q"], shapes=shapes)
    parts = split_as_in_paper(some, 16, 4, seed=0)
    assert [len(part) for part in parts] == [12, 4]
    names = [name for part in parts for name in part.ids]
    assert sorted(names) == sorted(f"{i}#0~{variant}" for i in range(2) for variant in range(8))
    assert len({image.tobytes() for part in parts for image in part.images}) == 16
    for patch in (patch for part in parts for patch in part):
        row = int(patch.id[0])
        variant = int(patch.id[-1])
        assert (patch.patient_id, patch.shape) == ("pq"[row], shapes[row])
        for array, original in ((patch.image, some.images), (patch.mask, some.masks)):
            turned = np.rot90(original[row, ..., 0], variant % 4)
            turned = np.fliplr(turned) if variant >= 4 else turned
            np.testing.assert_array_equal(array[..., 0], turned)


def test_paper_has_its_numbers_and_leaks():
    some = many(107, size=2)
    train, test = split_as_in_paper(some, 850, 150, seed=3)
    assert (len(train), len(test)) == (700, 150)
    assert len(set(train.ids) | set(test.ids)) == 850
    with pytest.raises(DataError, match="both subsets"):
        check_no_leak(train.patient_ids, test.patient_ids)
    again, _ = split_as_in_paper(some, 850, 150, seed=3)
    other, _ = split_as_in_paper(some, 850, 150, seed=4)
    assert train.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(("turned", "shared"), [(False, 0), (True, 150)])
def test_no_draw_of_the_papers_training_equals_a_test_copy_unless_draws_are_turned(turned, shared):
    config = DataConfig(split="paper", seed=3)
    train, test = split(many(107, size=3), config)
    quarters = [np.rot90(train.images, k, axes=(1, 2)) for k in range(4)]
    draws = np.concatenate([*quarters, *(quarter[:, :, ::-1] for quarter in quarters)])
    if not turned:  # what the loop hands to `batches`
        drawn = batches(train, 10, seed=0, augment=config.turn_draws).take(3 * len(train) // 10)
        draws = np.concatenate([batch["image"] for batch in drawn.as_numpy_iterator()])
    seen = {image.tobytes() for image in draws}
    assert sum(image.tobytes() in seen for image in test.images) == shared == len(test) * turned
    assert OFFICIAL.turn_draws and not config.turn_draws
    assert not DataConfig(augment=False).turn_draws


def test_paper_with_few_patches_scales_the_test_set(caplog):
    with caplog.at_level(logging.WARNING):
        train, test = split_as_in_paper(many(10), 850, 150, seed=0)
    assert (len(train), len(test)) == (66, 14)  # 80 * 150 / 850 = 14.1
    assert "10 patches make 80 samples of the 850 asked for: 14 of them test" in caplog.text
    with pytest.raises(DataError, match="too few"):
        split_as_in_paper(many(1), 8000, 150, seed=0)


# Strata


@given(
    patients=st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from(["malignant", "benign", "normal", ""])),
        min_size=5,
        max_size=60,
    ),
    folds=st.integers(2, 5),
    seed=st.integers(0, 100),
)
@settings(max_examples=100)
def test_strata_are_shared_out_within_one_patient_and_folds_stay_balanced(patients, folds, seed):
    ids = [f"p{i}" for i, (count, _) in enumerate(patients) for _ in range(count)]
    pathologies = [pathology for count, pathology in patients for _ in range(count)]
    held = [split_by_patient(ids, folds, fold, seed, pathologies)[1] for fold in range(folds)]
    assert sorted(np.concatenate(held)) == list(range(len(ids)))
    members = [{ids[row] for row in rows} for rows in held]
    assert sum(len(group) for group in members) == len(patients)
    for pathology in set(pathologies):
        shares = [sum(patients[int(name[1:])][1] == pathology for name in ids) for ids in members]
        assert max(shares) - min(shares) <= 1
    sizes = [len(rows) for rows in held]
    assert max(sizes) - min(sizes) <= max(count for count, _ in patients)


def test_a_patients_stratum_is_its_worst_pathology():
    # Two patients with a malignant patch among others: one in each fold, though without strata v
    # and w would be parted.
    ids = np.array(list("vvvwwwxxyy"))
    names = ("benign", "", "malignant", "benign", "benign", "benign", "normal", "malignant")
    pathologies = np.array([*names, "benign", ""])
    for seed in range(5):
        folds = hold_out(ids, 2, seed, pathologies)
        assert sorted(sorted(fold) for fold in folds) == [["v", "y"], ["w", "x"]]
    order = np.random.default_rng(1).permutation(len(ids))
    shuffled = hold_out(ids[order], 2, 3, pathologies[order])
    assert shuffled == hold_out(ids, 2, 3, pathologies)


def test_a_patient_of_several_shapes_counts_for_the_rarest():
    # v and y have a round mass among others, w and x a lobular one among irregular ones: each fold
    # gets one of either sort.
    words = ("irregular", "oval", "round", "irregular", "lobulated", "", "lobular", "irregular")
    some = make_patches(list("vvvwwwxxyy"), shapes=np.array([*words, "round", "oval"]))
    for seed in range(5):
        config = DataConfig(stratify="shape", folds=2, seed=seed)
        folds = [
            set(split(some, config.model_copy(update={"fold": fold}))[1].patient_ids)
            for fold in range(2)
        ]
        assert sorted(sorted(fold) for fold in folds) == [["v", "x"], ["w", "y"]]
        saved = describe(some, config, "x")
        first = {patient for patient, fold in saved.patients.items() if fold == 0}
        assert saved.stratify == "shape" and first == folds[0]


def test_nothing_to_stratify_by_is_an_error():
    for stratify in ("pathology", "shape"):
        with pytest.raises(DataError, match="data.stratify"):
            split(make_patches(shapes=np.full(30, "round-oval")), DataConfig(stratify=stratify))


# Saved splits


def test_a_saved_split_is_taken_up_by_other_patches(tmp_path):
    some = make_patches()
    path = tmp_path / "split.json"
    config = DataConfig(folds=4, fold=2, seed=5)
    saved = describe(some, config, "cdd_cesm")
    # of the whole split, not of one fold
    assert saved == describe(some, config.model_copy(update={"fold": 0}), "cdd_cesm")
    save(path, saved)
    assert load(path) == saved
    content = json.loads(path.read_text())
    facts = {"archive": "cdd_cesm", "split": "patient", "folds": 4, "seed": 5, "stratify": "none"}
    assert content.items() >= facts.items()
    assert content.keys() == {*facts, "patients", "id_key", "sha256"}
    for fold, expected in enumerate(hold_out(IDS, 4, 5)):
        assert {patient for patient, place in saved.patients.items() if place == fold} == expected
        # Fewer patches and another seed would give other folds, the file gives the same.
        fewer = some.take([row for row, patient in enumerate(IDS) if row % 2 or patient in "ghi"])
        again = DataConfig(fold=fold, seed=99, split_file=path)
        train, held_out = split(fewer, again)
        assert set(held_out.patient_ids) == expected and len(train) + len(held_out) == len(fewer)
        assert describe(fewer, again, "cdd_cesm") == saved


def test_an_official_split_can_be_saved_and_a_paper_split_described(tmp_path):
    some = make_patches(official_splits=np.where(IDS < "e", "train", "test"))
    path = tmp_path / "split.json"
    saved = describe(some, OFFICIAL, "x")
    assert saved.patients == dict.fromkeys("abcd", "train") | dict.fromkeys("efghi", "test")
    assert saved.folds is saved.seed is None
    save(path, saved)
    # the sides come from the file alone
    _, test = split(make_patches(), DataConfig(split="official", split_file=path))
    assert set(test.patient_ids) == set("efghi")
    leaky = DataConfig(split="paper", paper_samples=100, paper_test=20, seed=3)
    train, test = split(some, leaky)
    places = describe(some, leaky, "x").patients
    for part, other in ((train, "test"), (test, "train")):
        inside = {patient for patient, place in places.items() if place != other}
        assert inside == set(part.patient_ids)
    with pytest.raises(DataError, match="data.split_file"):
        split(some, leaky.model_copy(update={"split_file": path}))


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path):
    some = make_patches()
    path = tmp_path / "split.json"
    known = select(some, IDS != "c")
    save(path, describe(known, DataConfig(folds=3), "inbreast"))
    fold_of_a = load(path).patients["a"]
    renamed = replace(known, patient_ids=np.where(known.patient_ids == "a", "z", known.patient_ids))
    for patches, values, named in (
        (some, {}, "split.json: .*1 of 9"),
        (renamed, {}, "1 of 8 patients"),  # as many as the file knows
        (some, {"folds": 4, "fold": 3}, "split.json: .*fold 3"),
        (some, {"split": "official"}, "split.json: .*kind"),
        (select(some, IDS == "a"), {"fold": fold_of_a}, "holds 7 out"),
        (some, {"split_file": tmp_path / "none.json"}, "none.json"),
    ):
        with pytest.raises(DataError, match=named):
            split(patches, DataConfig(**{"split_file": path, **values}))


SET_ASIDE = "is not a split"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"a": ', '"a": 1'), "was changed after"),
        (lambda text: text.replace('"sha256": "', '"sha256": "0'), "was changed after"),
        (lambda text: text.replace('"archive"', '"arcive"'), rf"{SET_ASIDE} .* \(2 faults\)"),
        (lambda text: text[:-5], SET_ASIDE),
        (lambda text: "[]", SET_ASIDE),
        (lambda text: "[" * 100_000, SET_ASIDE),
        (lambda text: "\udc80", SET_ASIDE),
    ],
)
def test_a_changed_file_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "split.json"
    save(path, describe(make_patches(), DataConfig(), "x"))
    text = path.read_text(encoding="utf-8")
    path.write_bytes(change(text).encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        load(path)


# Halves


def test_the_halves_of_what_is_held_out_share_no_patient_whatever_patches_there_are():
    config = DataConfig(folds=2)
    archive = make_archive("abcdefghi")
    everybody = split(archive, config)[1].patient_ids
    held_out = select(make_patches(), np.isin(IDS, everybody))
    halves = [set(part.patient_ids.tolist()) for part in halve(held_out, archive, config)]
    assert halves[0] | halves[1] == set(everybody.tolist())
    assert not halves[0] & halves[1] and abs(len(halves[0]) - len(halves[1])) <= 1
    one = min(halves[1])
    fewer = halve(select(held_out, held_out.patient_ids != one), archive, config)
    again = [set(part.patient_ids.tolist()) for part in fewer]
    assert again == [halves[0], halves[1] - {one}]
    alone = select(held_out, np.isin(held_out.patient_ids, sorted(halves[1])))
    with pytest.raises(DataError, match="one half"):
        halve(alone, archive, config)


def test_a_split_file_of_fewer_patients_than_the_archive_has_is_halved(tmp_path):
    path = tmp_path / "split.json"
    known = make_archive("abcdef")
    save(path, describe(known, DataConfig(folds=2), "folder"))
    config = DataConfig(folds=2, split_file=path)
    everybody = split(known, config)[1].patient_ids
    held_out = select(make_patches(), np.isin(IDS, everybody))
    parts = halve(held_out, make_archive("abcdefghi"), config)
    assert sum(len(set(part.patient_ids.tolist())) for part in parts) == 3
