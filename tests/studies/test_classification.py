"""Who trains, chooses and tests in the classifier study, and that nothing synthetic knows
whom it is tested on.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tfmammo.archives import read_mammograms
from tfmammo.config import DataConfig, Experiment, TrackingConfig, TrainingConfig
from tfmammo.data import datasets, splits
from tfmammo.data.labelled import check_binary, make_binary_patches, make_pathology_patches
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Skipped
from tfmammo.models.classifier import ClassifierConfig
from tfmammo.studies import classification
from tfmammo.studies.classification import select_arm
from tfmammo.synthesis.patches import PatchSet, describe_scale

DATA = DataConfig(
    phantoms=40,
    size=32,
    sampling={"count": 60, "scale": (0.25, 0.25), "offset": 10},
    stratify="pathology",
)
FEW = DATA.model_copy(update={"sampling": DATA.sampling.model_copy(update={"count": 15})})


@pytest.fixture(scope="module")
def subsets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subsets")
    return classification.split_subsets(DATA, ClassifierConfig(), folder)


def patients(part):
    return set(part.patient_ids.tolist())


def experiment(tracking_uri, training=None, **model):
    small = {"weights": "none", "filters": 2, "blocks": (1, 1, 1, 1)}
    steps = {"steps": 2, "batch_size": 4, "steps_per_loop": 1, "precision": "float32"}
    return Experiment[ClassifierConfig](
        name="classifier",
        data=DATA,
        training=TrainingConfig(**steps | (training or {})),
        tracking=TrackingConfig(uri=tracking_uri, system_metrics=False),
        model=ClassifierConfig(**small, **model),
    )


@pytest.fixture
def synthetic(random_patches):
    """A function that makes a set of eight patches."""

    def make(size=32, kinds=("mass", "normal"), trained_on=(), patient="elsewhere", data=DATA):
        names = np.array([kinds[i % len(kinds)] for i in range(8)])
        patches = random_patches(8, size)
        patches = replace(patches, kinds=names, patient_ids=np.full(8, patient))
        return PatchSet(Path("set"), patches, frozenset(trained_on), (describe_scale(data),))

    return make


@pytest.fixture
def trained_on(synthetic, monkeypatch):
    """The patches of each training run, none of which takes place; the set is a small one."""
    seen = []
    monkeypatch.setattr(classification, "load_synthetic_set", lambda *_: synthetic())

    def train(build, fitted, patches, *rest, **options):
        return SimpleNamespace(fit=lambda: seen.append(patches))

    monkeypatch.setattr(classification.loop, "Training", train)
    return seen


def test_the_sides_have_two_classes_each_and_no_patient_in_common(subsets, tmp_path):
    parts = (subsets.train, subsets.validation, subsets.test)
    assert sum(len(patients(part)) for part in parts) == len(set.union(*map(patients, parts)))
    for part in parts:
        assert set(part.labels.tolist()) == {0, 1} and part.balanced
        np.testing.assert_array_equal(part.labels == 1, part.pathologies == "malignant")
    assert {"mass", "calcification"} < set(subsets.train.kinds.tolist())
    assert abs(len(patients(subsets.validation)) - len(patients(subsets.test))) <= 3
    # benign lesions are negatives to train on alone
    negatives = subsets.train.take(np.flatnonzero(subsets.train.labels == 0))
    assert set(negatives.pathologies.tolist()) == {"benign", "normal"}
    for part in parts[1:]:
        np.testing.assert_array_equal(part.labels == 0, part.kinds == "normal")
    without = classification.split_subsets(DATA, ClassifierConfig(negatives="normal"), tmp_path)
    kept = subsets.train.pathologies != "benign"
    assert without.train.ids.tolist() == subsets.train.ids[kept].tolist()
    assert without.test.ids.tolist() == subsets.test.ids.tolist()


@pytest.mark.slow
def test_every_generator_holds_the_same_patients_out(subsets, tmp_path):
    """Other kinds of lesions, other patches, other patients among them: yet the same side for
    each, and nobody who tests the classifier chooses a generator's checkpoint.
    """
    for kind in ("mass", "calcification"):
        own = FEW.model_copy(update={"kinds": (kind,)})
        data = datasets.pin_archive_split(own, tmp_path / kind)
        train, held_out = datasets.open_subsets(data, tmp_path / kind, make_pathology_patches)
        assert patients(held_out) and not patients(train) & subsets.list_held_out_patients()
        assert not patients(held_out) & patients(subsets.train)
    first, second = ((tmp_path / kind / "split.json") for kind in ("mass", "calcification"))
    assert first.read_bytes() == second.read_bytes()
    data = datasets.pin_archive_split(FEW, tmp_path)
    index = datasets.index_archive(data)
    _, held_out = datasets.open_subsets(data, tmp_path, make_pathology_patches)
    chooses, tests = splits.halve(held_out, index, data)
    assert len(chooses) + len(tests) == len(held_out)
    assert not patients(chooses) & patients(subsets.test)
    assert not patients(tests) & patients(subsets.validation)


@pytest.mark.slow
def test_all_lesions_are_positive_where_that_is_asked_for():
    records = read_mammograms(DATA, Skipped())[:16]
    data = DATA.model_copy(update={"kinds": classification.KINDS})
    every, malignant = (
        make_binary_patches(records, data, Skipped(), which) for which in (False, True)
    )
    assert {"benign", "malignant"} <= set(every.pathologies[every.labels == 1].tolist())
    assert set(malignant.pathologies.tolist()) == {"malignant", "normal"}
    assert len(malignant) < len(every)


def test_a_synthetic_set_that_does_not_fit_is_refused(subsets, synthetic):
    held = sorted(subsets.list_held_out_patients())
    windowed = DATA.model_copy(update={"window": (0.0, 1.0)})
    classification.check_synthetic(synthetic(), held, DATA)
    classification.check_synthetic(synthetic(data=windowed), held, windowed)
    for made, said in (
        (synthetic(trained_on=held[:2]), rf"trained on 2 of the {len(held)} patients"),
        (synthetic(patient=held[0]), rf"show 1 of the {len(held)} patients"),
        (synthetic(size=64), "64 px, the real ones 32"),
        (synthetic(kinds=("mass",)), "no normal patch in set"),
        (synthetic(data=windowed), r"'window': \[0.0, 1.0\].*, the real ones with .*'percentiles'"),
    ):
        with pytest.raises(DataError, match=said):
            classification.check_synthetic(made, held, DATA)


def test_a_missing_class_is_named(subsets):
    lesions, normal = (
        subsets.train.take(np.flatnonzero(subsets.train.labels == label)) for label in (1, 0)
    )
    for part, said in ((lesions, "no normal patch in x"), (normal, "no lesion's patch in x")):
        with pytest.raises(DataError, match=said):
            check_binary(part, "x")
    records = [one for one in read_mammograms(DATA, Skipped()) if one.lesions]
    with pytest.raises(DataError, match="data.patches=normal"):
        make_binary_patches(records, DATA, Skipped())


@pytest.mark.long
def test_a_run_and_what_is_known_of_it(subsets, tmp_path, tracking_uri):
    wanted = experiment(tracking_uri)
    assert not classification.is_finished(tmp_path / "run", wanted)
    metrics, _ = classification.train(wanted, tmp_path / "run", subsets)
    assert list(metrics) == ["auc", "accuracy"] and 0 <= metrics["auc"] <= 1
    assert classification.is_finished(tmp_path / "run", wanted)
    assert classification.find_weights(tmp_path / "run").name in ("best", "export")
    longer = experiment(tracking_uri, {"steps": 3})
    for other in (longer, experiment(tracking_uri, learning_rate=1e-4)):
        assert not classification.is_finished(tmp_path / "run", other)


def test_a_share_without_patches_is_refused(subsets, tmp_path, tracking_uri):
    for model, kind in (({}, ConfigError), ({"synthetic": tmp_path}, DataError)):
        wanted = experiment(tracking_uri, share=0.5, **model)
        with pytest.raises(kind, match=r"model.synthetic|contains no patches"):
            classification.train(wanted, tmp_path / "run", subsets)


def test_the_share_decays_over_the_whole_run(tracking_uri, tmp_path):
    """8 steps of 4 samples are 32; of epochs, 2 over 100 patches of which every step sees eight are
    25 steps of 4 samples.
    """
    longer, half, epochs = (
        experiment(tracking_uri, length, share=0.5, synthetic=tmp_path)
        for length in ({"steps": 8}, {}, {"steps": None, "epochs": 2})
    )
    assert select_arm(longer, 0.5, 0).model.samples == 32
    assert select_arm(longer, 0.0, 0).model.samples is None
    assert classification.set_decay_samples(epochs, 100).model.samples == 100
    fingerprints = {select_arm(one, 0.5, 0).fingerprint() for one in (longer, half)}
    assert len(fingerprints) == 2, "another length is another schedule"
    # the baseline does not depend on synthetic patches
    one, other = (select_arm(experiment(tracking_uri, synthetic=path), 0.0, 3)
                  for path in (tmp_path, None))  # fmt: skip
    assert one.identity() == other.identity() and one.training.seed == 3
    assert select_arm(half, 0.5, 3).model.synthetic == tmp_path


def test_a_control_takes_the_place_of_the_synthetic_patches(
    subsets, trained_on, tracking_uri, tmp_path
):
    """Four pools, the last two of which are real patches of training patients; a run of its own."""
    base = experiment(tracking_uri, synthetic=tmp_path)
    control, share = select_arm(base, 0.5, 0, "copies"), select_arm(base, 0.5, 0)
    assert control.model.control == "copies" and control.model.share == 0.5
    assert control.fingerprint() != share.fingerprint()
    for arm in (control, share):
        classification.train(arm, tmp_path, subsets)
    real = len(subsets.train)
    for patches in trained_on:
        assert patches.balanced_classes == 4
        np.testing.assert_array_equal(patches.labels[:real], subsets.train.labels)
        np.testing.assert_array_equal(patches.images[:real], subsets.train.images)
        assert patches.labels[real:].tolist() == [3, 2] * 4
    of_control, of_share = trained_on
    assert patients(of_control) == patients(subsets.train)
    assert "elsewhere" in of_share.patient_ids.tolist()


def test_fresh_patches_are_of_patients_whom_no_other_run_sees(
    subsets, trained_on, tracking_uri, tmp_path
):
    base = experiment(tracking_uri, synthetic=tmp_path, patient_parts=2)
    for share, control in ((0.0, None), (0.5, "copies"), (0.5, "fresh")):
        classification.train(select_arm(base, share, 0, control), tmp_path, subsets)
    alone, copies, fresh = trained_on
    seen = patients(alone)
    others = patients(subsets.train) - seen
    assert seen and others and seen < patients(subsets.train)
    real = len(alone)
    assert patients(copies) == seen == patients(fresh.take(range(real)))
    assert patients(fresh.take(range(real, len(fresh)))) <= others
    patches, nobody = classification.hold_back(subsets.train, 1, 0)
    assert patches is subsets.train and len(nobody) == 0
    (one, rest), (again, _) = (classification.hold_back(subsets.train, 2, 0) for _ in range(2))
    assert len(one) + len(rest) == len(subsets.train) and again.ids.tolist() == one.ids.tolist()


def test_controls_need_a_share_and_patients_held_back(tracking_uri):
    def make(shares=(0, 0.5), parts=1, **values):
        model = experiment(tracking_uri, patient_parts=parts)
        return classification.StudyConfig(experiment=model, shares=shares, **values)

    assert make(parts=3, controls=("fresh",)).controls == ("fresh",)
    assert make(shares=(0, 0.25), controls=()).controls == ()
    for values, said in (
        ({"controls": ("fresh",)}, "patient_parts"),
        ({"shares": (0, 0.25)}, "control_share"),
        ({"controls": ("copies", "copies")}, "controls"),
    ):
        with pytest.raises(ValueError, match=said):
            make(**values)
