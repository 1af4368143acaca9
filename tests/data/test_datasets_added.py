"""What joins the training side: synthetic sets of the right patients, copies of training
mammograms, and nobody who is held out.
"""

import json
import shutil
from functools import partial

import numpy as np
import pytest

from tfmammo.config import AddedConfig, DataConfig
from tfmammo.data import datasets, splits
from tfmammo.data.labelled import make_blend_patches
from tfmammo.data.patients import PATIENTS
from tfmammo.data.whole import Whole, make_whole
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import key_check
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.mammograms import synthesize

DATA = DataConfig(phantoms=16, size=64, folds=2)
ROLES = ("mammograms", "lesions", "trained_on")
whole = partial(make_whole, normal=True)


@pytest.fixture(scope="module")
def split_file(tmp_path_factory):
    """One split of all patients."""
    return datasets.pin_archive_split(DATA, tmp_path_factory.mktemp("split")).split_file


@pytest.fixture(scope="module")
def made(tmp_path_factory, split_file):
    """A set of four mammograms of the training patients of fold 0."""
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    patients = {"split_file": split_file, "fold": 0, "side": "train"}
    synthesize(
        SynthesisConfig(
            name="some", data=DATA, renderer="poisson", patients=patients, count=4, format="png"
        ),
        folder,
    )
    return folder


def added(split_file, **values):
    return DATA.model_copy(update={"split_file": split_file, "added": AddedConfig(**values)})


@pytest.mark.slow
def test_synthetic_mammograms_join_the_training_side_alone(made, split_file):
    alone, held_out = datasets.open_subsets(added(split_file), make=whole)
    train, still = datasets.open_subsets(added(split_file, synthetic=made), make=whole)
    assert isinstance(train, Whole) and len(train) == len(alone) + 4
    np.testing.assert_array_equal(train.images[: len(alone)], alone.images)
    assert still.fingerprint() == held_out.fingerprint()
    new = train.take(range(len(alone), len(train)))
    assert np.all(new.boxes[:, 0, 2] > new.boxes[:, 0, 0]) and np.all(new.kinds == "mass")
    # Their patients are called as the source archive calls them, so that later evaluations know
    # them as seen.
    known = json.loads((made / PATIENTS).read_text())
    assert set(new.patient_ids.tolist()) <= set(known["mammograms"])
    assert not set(new.patient_ids.tolist()) & splits.held_out_patients(splits.load(split_file), 0)


def test_only_the_first_join_where_a_count_is_given(made, split_file):
    every, two = (
        datasets.open_subsets(added(split_file, synthetic=made, count=count), make=whole)[0]
        for count in (None, 2)
    )
    assert len(every) - len(two) == 2
    np.testing.assert_array_equal(every.images[: len(two)], two.images)
    with pytest.raises(DataError, match="data.added.count"):
        datasets.open_subsets(added(split_file, synthetic=made, count=5), make=whole)


@pytest.mark.slow
@pytest.mark.parametrize("seen", [{"canvas": (96, 64)}, {"tiles": {"overlap": 16, "empty": 1}}])
def test_detectors_inputs_of_any_kind_are_joined(made, split_file, seen):
    data = DataConfig.model_validate(added(split_file).model_dump() | seen)
    alone, _ = datasets.open_subsets(data, make=whole)
    train, _ = datasets.open_subsets(
        data.model_copy(update={"added": AddedConfig(synthetic=made, copies=2)}), make=whole
    )
    assert (
        isinstance(train, Whole)
        and len(train) > len(alone)
        and train.images.shape[1:] == alone.images.shape[1:]
    )
    new = train.take(range(len(alone), len(train)))
    assert new.boxes[:, :, 2].max(axis=1).any() and train.classes.shape == train.boxes.shape[:2]


def test_copies_are_of_training_patients(split_file):
    alone, _ = datasets.open_subsets(added(split_file), make=whole)
    train, _ = datasets.open_subsets(added(split_file, copies=7), make=whole)
    assert len(train) == len(alone) + 7
    assert set(train.patient_ids.tolist()) == set(alone.patient_ids.tolist())
    assert sum("~" in name for name in train.ids.tolist()) == 7


def test_patches_of_masses_are_joined_too(made, split_file):
    alone, _ = datasets.open_subsets(added(split_file))
    train, _ = datasets.open_subsets(added(split_file, synthetic=made, copies=3))
    # a copy whose lesion comes too near to the border gives no patch
    assert len(train) >= len(alone) + 6
    assert train.masks[len(alone) :].any(axis=(1, 2, 3)).all()


def hold_out(role):
    """A change of the patients that a set names: someone of the other side is among them."""
    return lambda known, held_out: known | {role: [*known[role], held_out]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *((hold_out(role), rf"1 of the .*{role}") for role in ROLES),
        (lambda known, _: known | {"mammograms": []}, "every patient"),
        # as many, but others
        (lambda known, _: known | {"mammograms": known["mammograms"][1:] + ["x"]}, "every patient"),
        (lambda *_: [1], "damaged"),
        (lambda *_: None, "missing"),
    ],
)
def test_a_set_whose_patients_do_not_fit_is_refused_by_its_key(
    made, split_file, tmp_path, change, named
):
    file = tmp_path / "set" / PATIENTS
    shutil.copytree(made, file.parent)
    held_out = min(splits.held_out_patients(splits.load(split_file), 0))
    content = change(json.loads(file.read_text()), held_out)
    file.write_text(json.dumps(content))
    if content is None:
        file.unlink()
    with pytest.raises(DataError, match=rf"data\.added\.synthetic: .*{named}"):
        datasets.open_subsets(added(split_file, synthetic=file.parent), make=whole)


def test_patients_behind_both_synthetic_sets_are_listed(tmp_path):
    for name in ("root", "added"):
        known = {role: [f"{name}-{role}"] for role in ROLES}
        (tmp_path / name).mkdir()
        (tmp_path / name / PATIENTS).write_text(json.dumps(known | {"id_key": key_check()}))
    added = AddedConfig(synthetic=tmp_path / "added")
    config = DataConfig(name="folder", root=tmp_path / "root", added=added)
    expected = {f"{name}-{role}" for name in ("root", "added") for role in ROLES}
    assert datasets.list_synthetic_patients(config) == expected


@pytest.mark.parametrize(
    ("load", "change", "named"),
    [
        (datasets.load_all_patches, {}, "data.added"),
        (datasets.open_subsets, {"split": "paper", "split_file": None}, "data.split"),
        (partial(datasets.open_subsets, make=make_blend_patches), {}, "have labels"),
    ],
)
def test_where_nothing_can_be_added_that_is_said(split_file, load, change, named):
    tissue = DATA.sampling.model_copy(update={"count": 8, "normal": "tissue"})
    config = added(split_file, copies=1).model_copy(update={"sampling": tissue, **change})
    with pytest.raises(ConfigError, match=named):
        load(config)


def test_a_count_without_a_set_is_refused():
    with pytest.raises(ValueError, match="count is of"):
        AddedConfig(count=3)
