"""No patient on both sides, balanced folds, saved and official splits; the paper's
protocol leaks as it should.
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
from tfmammo.data.paper_split import split_as_in_paper
from tfmammo.data.patches import Patches
from tfmammo.data.pipeline import batches
from tfmammo.data.splits import (
    Mammograms,
    SavedSplit,
    check_no_leak,
    describe,
    halve,
    load,
    save,
    split,
    split_by_patient,
    split_officially,
)
from tfmammo.errors import DataError, LeakError
from tfmammo.mammogram import key_check

COUNTS = {"a": 7, "b": 6, "c": 5, "d": 4, "e": 3, "f": 2, "g": 1, "h": 1, "i": 1}
IDS = np.array([patient for patient, count in COUNTS.items() for _ in range(count)])


def patches(ids=IDS, size=4):
    """Patches of noise whose copies can be told apart."""
    rng = np.random.default_rng(0)
    shape = (len(ids), size, size, 1)
    return Patches(
        rng.random(shape, np.float32),
        rng.integers(0, 2, shape, np.uint8),
        np.array(ids),
        np.array([f"{i}#0" for i in range(len(ids))]),
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_patient_is_held_out_once_in_balanced_folds(folds, seed):
    held = []
    for fold in range(folds):
        train, held_out = split_by_patient(IDS, folds, fold, seed)
        assert sorted([*train, *held_out]) == list(range(len(IDS)))
        assert not set(IDS[train]) & set(IDS[held_out])
        held.append(held_out)
    assert sorted(np.concatenate(held)) == list(range(len(IDS)))
    sizes = [len(rows) for rows in held]
    assert max(sizes) <= max(7, -(-len(IDS) // folds) + 1) and max(sizes) - min(sizes) <= 3


def test_largest_first_by_hand():
    # 5 4 3 | 2 goes to the 3, 1 to the 4 or 5-5-5 in the end
    ids = ["v"] * 5 + ["w"] * 4 + ["x"] * 3 + ["y"] * 2 + ["z"]
    folds = [set(np.array(ids)[split_by_patient(ids, 3, fold, seed=9)[1]]) for fold in range(3)]
    assert folds == [{"v"}, {"w", "z"}, {"x", "y"}]


def test_deterministic_by_seed_and_independent_of_the_rows():
    for fold in range(3):
        again = [set(IDS[split_by_patient(IDS, 3, fold, seed=4)[1]]) for _ in range(2)]
        order = np.random.default_rng(1).permutation(len(IDS))
        shuffled = IDS[order]
        assert again[0] == again[1] == set(shuffled[split_by_patient(shuffled, 3, fold, seed=4)[1]])
    equal = [f"p{i}" for i in range(12)]
    assert len({tuple(split_by_patient(equal, 3, 0, seed)[1]) for seed in range(10)}) > 5


def test_impossible_folds_are_errors():
    with pytest.raises(DataError, match="into 3 folds"):
        split_by_patient(["a", "b", "b", "b"], 3, 0, 0)
    for folds, fold in ((3, 3), (3, -1), (1, 0)):
        with pytest.raises(DataError, match="does not exist"):
            split_by_patient(IDS, folds, fold, 0)


def test_check_no_leak_counts_patients():
    check_no_leak(["a", "a", "b"], ["c"])
    with pytest.raises(LeakError, match="both subsets of the split: 2$"):
        check_no_leak(["a", "a", "b", "c"], np.array(["c", "b", "b", "d"]))


def test_paper_draws_all_eight_variants_of_image_and_mask_together():
    some = patches(["p", "q"])
    train, test = split_as_in_paper(some, 16, 4, seed=0)
    assert len(train) == 12 and len(test) == 4
    images = np.concatenate([train.images, test.images])
    masks = np.concatenate([train.masks, test.masks])
    ids = np.concatenate([train.ids, test.ids])
    assert sorted(ids) == sorted(f"{i}#0~{variant}" for i in range(2) for variant in range(8))
    assert len({image.tobytes() for image in images}) == 16
    for image, mask, name in zip(images, masks, ids, strict=True):
        row = int(name[0])
        variant = int(name[-1])
        turned = [np.rot90(array[row, ..., 0], variant % 4) for array in (some.images, some.masks)]
        turned = [np.fliplr(array) for array in turned] if variant >= 4 else turned
        np.testing.assert_array_equal(image[..., 0], turned[0])
        np.testing.assert_array_equal(mask[..., 0], turned[1])


def test_paper_has_its_numbers_and_leaks():
    some = patches([f"p{i}" for i in range(107)], size=2)
    train, test = split_as_in_paper(some, 850, 150, seed=3)
    assert (len(train), len(test)) == (700, 150)
    assert len(set(train.ids) | set(test.ids)) == 850
    with pytest.raises(LeakError):
        check_no_leak(train.patient_ids, test.patient_ids)
    again, _ = split_as_in_paper(some, 850, 150, seed=3)
    other, _ = split_as_in_paper(some, 850, 150, seed=4)
    assert train.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("turned, shared", [(False, 0), (True, 150)])
def test_no_draw_of_the_papers_training_equals_a_test_copy_unless_draws_are_turned(turned, shared):
    config = DataConfig(split="paper", seed=3)
    train, test = split(patches([f"p{i}" for i in range(107)], size=3), config)
    draws = _all_turns(train.images)
    if not turned:  # what the loop hands to `batches`
        drawn = batches(train, 10, seed=0, augment=config.turn_draws).take(3 * len(train) // 10)
        draws = np.concatenate([batch["image"] for batch in drawn.as_numpy_iterator()])
    seen = {image.tobytes() for image in draws}
    assert sum(image.tobytes() in seen for image in test.images) == shared == len(test) * turned


def _all_turns(images):
    quarters = [np.rot90(images, k, axes=(1, 2)) for k in range(4)]
    return np.concatenate([one for quarter in quarters for one in (quarter, quarter[:, :, ::-1])])


def test_only_the_papers_split_switches_turned_draws_off():
    assert DataConfig().turn_draws and not DataConfig(augment=False).turn_draws
    assert not DataConfig(split="paper").turn_draws and DataConfig(split="official").turn_draws


def test_paper_with_few_patches_scales_the_test_set(caplog):
    with caplog.at_level(logging.WARNING):
        train, test = split_as_in_paper(patches([f"p{i}" for i in range(10)]), 850, 150, seed=0)
    assert (len(train), len(test)) == (66, 14)  # 80 * 150 / 850 = 14.1
    assert "10 patches make 80 samples of the 850 asked for: 14 of them test" in caplog.text
    with pytest.raises(DataError, match="too few"):
        split_as_in_paper(patches(["p"]), 8000, 150, seed=0)


def test_split_follows_the_config():
    some = patches()
    folds = [split(some, DataConfig(folds=3, fold=fold, seed=5)) for fold in range(3)]
    assert sorted(np.concatenate([held_out.ids for _, held_out in folds])) == sorted(some.ids)
    for fold, (train, held_out) in enumerate(folds):
        expected = split_by_patient(IDS, 3, fold, 5)
        assert (
            train.ids.tolist() == some.ids[expected[0]].tolist()
            and held_out.ids.tolist() == some.ids[expected[1]].tolist()
        )
    train, test = split(some, DataConfig(split="paper", paper_samples=100, paper_test=20))
    assert (len(train), len(test)) == (80, 20)


def test_folds_are_what_earlier_runs_had():
    folds = [
        "".join(sorted(set(IDS[split_by_patient(IDS, 3, fold, seed=4)[1]]))) for fold in range(3)
    ]
    assert folds == ["afi", "beg", "cdh"]  # by the code before strata were added


@given(
    patients=st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from(["malignant", "benign", "normal", ""])),
        min_size=5,
        max_size=60,
    ),
    folds=st.integers(2, 5),
    seed=st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_strata_are_shared_out_within_one_patient_and_folds_stay_balanced(patients, folds, seed):
    if not any(pathology for _, pathology in patients):
        patients[0] = (1, "benign")
    ids = [f"p{i}" for i, (count, _) in enumerate(patients) for _ in range(count)]
    pathologies = [pathology for count, pathology in patients for _ in range(count)]
    held = [split_by_patient(ids, folds, fold, seed, pathologies)[1] for fold in range(folds)]
    assert sorted(np.concatenate(held)) == list(range(len(ids)))
    members = [{ids[row] for row in rows} for rows in held]
    assert sum(len(group) for group in members) == len(patients)
    for pathology in set(pathologies):
        shares = [
            sum(patients[int(name[1:])][1] == pathology for name in group) for group in members
        ]
        assert max(shares) - min(shares) <= 1
    sizes = [len(rows) for rows in held]
    assert max(sizes) - min(sizes) <= max(count for count, _ in patients)


def test_a_patients_stratum_is_its_worst_pathology():
    # Two patients with a malignant patch beside others: one in each fold, though without strata v
    # and w would be parted.
    ids = ["v"] * 3 + ["w"] * 3 + ["x"] * 2 + ["y"] * 2
    pathologies = [
        "benign",
        "",
        "malignant",
        "benign",
        "benign",
        "benign",
        "normal",
        "malignant",
        "benign",
        "",
    ]
    for seed in range(5):
        folds = [
            set(np.array(ids)[split_by_patient(ids, 2, fold, seed, pathologies)[1]])
            for fold in range(2)
        ]
        assert sorted(sorted(fold) for fold in folds) == [["v", "y"], ["w", "x"]]
    order = np.random.default_rng(1).permutation(len(ids))
    shuffled = split_by_patient(np.array(ids)[order], 2, 0, 3, np.array(pathologies)[order])[1]
    assert set(np.array(ids)[order][shuffled]) == set(
        np.array(ids)[split_by_patient(ids, 2, 0, 3, pathologies)[1]]
    )


def test_nothing_to_stratify_by_is_an_error():
    some = patches()
    with pytest.raises(DataError, match="data.stratify"):
        split(some, DataConfig(stratify="pathology"))
    known = replace(
        some, pathologies=np.where(np.isin(IDS, ["a", "c", "e"]), "malignant", "benign")
    )
    _, held_out = split(known, DataConfig(stratify="pathology", fold=1))
    expected = IDS[split_by_patient(IDS, 3, 1, 0, known.pathologies)[1]]
    assert (
        held_out.patient_ids.tolist() == expected.tolist()
        and sum(held_out.pathologies == "malignant") > 0
    )


def test_the_official_split():
    sides = np.where(np.isin(IDS, ["b", "g"]), "test", "train")
    some = replace(patches(), official_splits=sides)
    train, test = split(some, DataConfig(split="official"))
    assert (
        set(test.patient_ids) == {"b", "g"}
        and test.ids.tolist() == some.ids[sides == "test"].tolist()
    )
    assert train.ids.tolist() == some.ids[sides == "train"].tolist()
    with pytest.raises(DataError, match="7 of 30"):
        split(
            replace(some, official_splits=np.where(IDS == "a", "", sides)),
            DataConfig(split="official"),
        )
    with pytest.raises(DataError, match="holds 0 out"):
        split(replace(some, official_splits=np.full(30, "train")), DataConfig(split="official"))


def test_an_official_split_that_leaks_is_refused():
    sides = np.array(["train"] * len(IDS))
    sides[[0, 7, 29]] = "test"  # a and b stand on both sides, i wholly in the test set
    with pytest.raises(LeakError, match="test set: 2"):
        split(replace(patches(), official_splits=sides), DataConfig(split="official"))


@pytest.mark.data
def test_the_real_leak_of_cbis_ddsm(real_data):
    leaks = {}
    for kind in ("mass", "calc"):
        patients = []
        sides = []
        for side in ("train", "test"):
            path = real_data / f"cbis-ddsm/{kind}_case_description_{side}_set.csv"
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row["patient_id"] for row in csv.DictReader(file)]
            patients += rows
            sides += [side] * len(rows)
        leaks[kind] = np.array(patients), np.array(sides)
        train, test = split_officially(*leaks[kind])
        assert (len(train), len(test)) == {"mass": (1318, 378), "calc": (1546, 326)}[kind]
    with pytest.raises(LeakError, match="training and the test set: 31;"):
        split_officially(*(np.concatenate([leaks["mass"][i], leaks["calc"][i]]) for i in range(2)))


def test_a_saved_split_is_taken_up_by_other_patches(tmp_path):
    some = patches()
    path = tmp_path / "split.json"
    config = DataConfig(folds=4, fold=2, seed=5)
    saved = describe(some, config, "cdd_cesm")
    assert saved == describe(some, config.model_copy(update={"fold": 0}), "cdd_cesm"), (
        "of the whole split, not of one fold"
    )
    save(path, saved)
    assert load(path) == saved
    content = json.loads(path.read_text())
    assert set(content) == {
        "archive",
        "split",
        "folds",
        "seed",
        "stratify",
        "patients",
        "id_key",
        "sha256",
    }
    assert (
        content["archive"],
        content["split"],
        content["folds"],
        content["seed"],
        content["stratify"],
    ) == (
        "cdd_cesm",
        "patient",
        4,
        5,
        "none",
    )
    for fold in range(4):
        expected = set(IDS[split_by_patient(IDS, 4, fold, 5)[1]])
        assert {
            patient for patient, number in content["patients"].items() if number == fold
        } == expected
        # Fewer patches and another seed would give other folds, the file gives the same.
        fewer = some.take([row for row, patient in enumerate(IDS) if row % 2 or patient in "ghi"])
        again = DataConfig(folds=4, fold=fold, seed=99, split_file=path)
        train, held_out = split(fewer, again)
        assert set(held_out.patient_ids) == expected and len(train) + len(held_out) == len(fewer)
        assert describe(fewer, again, "cdd_cesm") == saved


def test_an_official_split_can_be_saved_and_a_paper_split_described(tmp_path):
    some = replace(patches(), official_splits=np.where(IDS < "e", "train", "test"))
    path = tmp_path / "split.json"
    saved = describe(some, DataConfig(split="official"), "x")
    assert (
        saved.patients == {**dict.fromkeys("abcd", "train"), **dict.fromkeys("efghi", "test")}
        and saved.folds is saved.seed is None
    )
    save(path, saved)
    # the sides come from the file alone
    _, test = split(patches(), DataConfig(split="official", split_file=path))
    assert set(test.patient_ids) == set("efghi")
    leaky = DataConfig(split="paper", paper_samples=100, paper_test=20, seed=3)
    train, test = split(some, leaky)
    places = describe(some, leaky, "x").patients
    assert {patient for patient, place in places.items() if place != "test"} == set(
        train.patient_ids
    )
    assert {patient for patient, place in places.items() if place != "train"} == set(
        test.patient_ids
    )
    with pytest.raises(DataError, match="data.split_file"):
        split(some, leaky.model_copy(update={"split_file": path}))


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path):
    some = patches()
    path = tmp_path / "split.json"
    save(path, describe(some.take(np.flatnonzero(IDS != "c")), DataConfig(folds=3), "inbreast"))
    with pytest.raises(DataError, match="split.json: .*1 of 9"):
        split(some, DataConfig(split_file=path))
    renamed = replace(some, patient_ids=np.where(IDS == "a", "z", IDS))
    renamed = renamed.take(np.flatnonzero(IDS != "c"))
    with pytest.raises(DataError, match="1 of 8 patients"):  # as many as the file knows
        split(renamed, DataConfig(split_file=path))
    with pytest.raises(DataError, match="split.json: .*fold 3"):
        split(some, DataConfig(folds=4, fold=3, split_file=path))
    with pytest.raises(DataError, match="split.json: .*kind"):
        split(some, DataConfig(split="official", split_file=path))
    few = some.take(np.flatnonzero(IDS == "a"))
    fold = load(path).patients["a"]
    with pytest.raises(DataError, match="holds 7 out"):
        split(few, DataConfig(fold=fold, split_file=path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"a": ', '"a": 1'), "was changed after it was written"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "was changed after it was written"),
        (
            lambda text: text.replace('"sha256": "', '"sha256": "0'),
            "was changed after it was written",
        ),
        (
            lambda text: text.replace('"archive"', '"arcive"'),
            r"is no split that a run wrote \(2 faults\)",
        ),
        (lambda text: text.replace('"sha256"', '"md5"'), "is no split that a run wrote"),
        (lambda text: text[:-5], "is no split that a run wrote"),
        (lambda text: "[]", "is no split that a run wrote"),
        (lambda text: "[" * 100_000, "is no split that a run wrote"),
        (lambda text: "\udc80", "is no split that a run wrote"),
    ],
)
def test_a_changed_file_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "split.json"
    save(path, describe(patches(), DataConfig(), "x"))
    changed = change(path.read_text(encoding="utf-8"))
    assert changed != path.read_text(encoding="utf-8")
    path.write_bytes(changed.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        load(path)


def make_archive(ids):
    ids = np.array(list(ids))
    empty = np.array([""] * len(ids))
    return Mammograms(ids, empty, empty, empty)


def test_the_halves_of_what_is_held_out_share_no_patient_whatever_patches_there_are():
    config = DataConfig(folds=2)
    archive = make_archive("abcdefghi")
    _, everybody = split(archive, config)
    some = patches()
    held_out = some.take(np.flatnonzero(np.isin(IDS, everybody.patient_ids)))
    validation, test = halve(held_out, archive, config)
    halves = set(validation.patient_ids.tolist()), set(test.patient_ids.tolist())
    assert halves[0] | halves[1] == set(everybody.patient_ids.tolist())
    assert not halves[0] & halves[1] and abs(len(halves[0]) - len(halves[1])) <= 1
    one = min(halves[1])
    fewer = held_out.take(np.flatnonzero(held_out.patient_ids != one))
    validation, test = halve(fewer, archive, config)
    assert set(validation.patient_ids.tolist()) == halves[0]
    assert set(test.patient_ids.tolist()) == halves[1] - {one}
    alone = held_out.take(np.flatnonzero(np.isin(held_out.patient_ids, sorted(halves[1]))))
    with pytest.raises(DataError, match="one half"):
        halve(alone, archive, config)


def test_a_split_file_of_fewer_patients_than_the_archive_has_is_halved(tmp_path):
    path = tmp_path / "split.json"
    known = make_archive("abcdef")
    save(path, describe(known, DataConfig(folds=2), "folder"))
    config = DataConfig(folds=2, split_file=path)
    _, everybody = split(known, config)
    held_out = patches().take(np.flatnonzero(np.isin(IDS, everybody.patient_ids)))
    validation, test = halve(held_out, make_archive("abcdefghi"), config)
    assert len(set(validation.patient_ids.tolist())) + len(set(test.patient_ids.tolist())) == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.json"):
        split(patches(), DataConfig(split_file=tmp_path / "none.json"))


def test_the_digest_does_not_depend_on_the_order_of_patients():
    one = SavedSplit(
        archive="x",
        split="patient",
        folds=2,
        seed=0,
        stratify="none",
        patients={"a": 0, "b": 1},
        id_key=key_check(),
    )
    other = one.model_copy(update={"patients": {"b": 1, "a": 0}})
    assert (
        one.digest()
        == other.digest()
        != one.model_copy(update={"patients": {"a": 1, "b": 1}}).digest()
        and len(one.digest()) == 64
    )


def test_the_papers_copies_keep_their_facts():
    some = replace(
        patches(["p", "q"]),
        kinds=np.array(["mass", "calcification"]),
        shapes=np.array(["oval", ""]),
    )
    train, test = split_as_in_paper(some, 16, 4, seed=0)
    for part in (train, test):
        rows = [int(name[0]) for name in part.ids]
        assert (
            part.kinds.tolist() == some.kinds[rows].tolist()
            and part.shapes.tolist() == some.shapes[rows].tolist()
        )
        assert part.patient_ids.tolist() == some.patient_ids[rows].tolist()


def test_a_patient_of_several_shapes_counts_for_the_rarest():
    # v and y have a round mass beside others, w and x a lobular one beside irregular ones: each
    # fold gets one of either sort.
    ids = np.array(["v"] * 3 + ["w"] * 3 + ["x"] * 2 + ["y"] * 2)
    shapes = np.array(
        [
            "irregular",
            "oval",
            "round",
            "irregular",
            "lobulated",
            "",
            "lobular",
            "irregular",
            "round",
            "oval",
        ]
    )
    some = replace(patches(ids), shapes=shapes)
    for seed in range(5):
        config = DataConfig(stratify="shape", folds=2, seed=seed)
        folds = [
            set(split(some, config.model_copy(update={"fold": fold}))[1].patient_ids)
            for fold in range(2)
        ]
        assert sorted(sorted(fold) for fold in folds) == [["v", "x"], ["w", "y"]]
        saved = describe(some, config, "x")
        assert (
            saved.stratify == "shape"
            and {patient for patient, fold in saved.patients.items() if fold == 0} == folds[0]
        )


def test_shapes_are_shared_out_within_one_patient():
    random = np.random.default_rng(0)
    shapes = random.choice(
        ["irregular", "lobular", "oval", "round", "round-oval", ""],
        200,
        p=[0.4, 0.35, 0.1, 0.06, 0.05, 0.04],
    )
    some = replace(patches([f"p{i}" for i in range(200)]), shapes=shapes)
    held = [
        split(some, DataConfig(stratify="shape", folds=5, fold=fold))[1].shapes for fold in range(5)
    ]
    for shape in ("irregular", "lobular", "oval", "round"):
        counts = [int(np.sum(part == shape)) for part in held]
        assert sum(counts) == np.sum(shapes == shape) and max(counts) - min(counts) <= 1
    with pytest.raises(DataError, match="data.stratify"):
        split(replace(some, shapes=np.full(200, "round-oval")), DataConfig(stratify="shape"))
