"""Who trains, chooses and tests in the classifier study, and that nothing synthetic knows
whom it is tested on.
"""

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
from tfmammo.synthesis.patch_set import PatchSet, describe_scale

DATA = DataConfig(
    phantoms=40,
    size=32,
    sampling={"count": 60, "scale": (0.25, 0.25), "offset": 10},
    stratify="pathology",
)


@pytest.fixture(scope="module")
def subsets(tmp_path_factory):
    return classification.split_subsets(
        DATA, ClassifierConfig(), tmp_path_factory.mktemp("subsets")
    )


def patients(part):
    return set(part.patient_ids.tolist())


def experiment(tracking_uri, **model):
    small = {"weights": "none", "filters": 2, "blocks": (1, 1, 1, 1)}
    training = {"steps": 2, "batch_size": 4, "steps_per_loop": 1, "precision": "float32"}
    return Experiment[ClassifierConfig](
        name="classifier",
        data=DATA,
        training=TrainingConfig(**training),
        tracking=TrackingConfig(uri=tracking_uri, system_metrics=False),
        model=ClassifierConfig(**small, **model),
    )


def synthetic(
    random_patches, size=32, kinds=("mass", "normal"), trained_on=(), patient="elsewhere", scales=()
):
    from dataclasses import replace
    from pathlib import Path

    patches = random_patches(8, size)
    names = np.array([kinds[i % len(kinds)] for i in range(8)])
    return PatchSet(
        Path("set"),
        replace(patches, kinds=names, patient_ids=np.full(8, patient)),
        frozenset(trained_on),
        scales,
    )


@pytest.fixture
def trained_on(random_patches, monkeypatch):
    """The patches of each training, none of which takes place; the synthetic set is a small one."""
    seen = []
    monkeypatch.setattr(
        classification,
        "load_synthetic_set",
        lambda *_: synthetic(random_patches, scales=(describe_scale(DATA),)),
    )

    def train(build, fitted, patches, *rest, **options):
        return SimpleNamespace(fit=lambda: seen.append(patches))

    monkeypatch.setattr(classification.loop, "Training", train)
    return seen


def test_the_sides_have_two_classes_each_and_no_patient_in_common(subsets):
    parts = (subsets.train, subsets.validation, subsets.test)
    assert sum(len(patients(part)) for part in parts) == len(set.union(*map(patients, parts)))
    for part in parts:
        assert set(part.labels.tolist()) == {0, 1} and part.balanced
        np.testing.assert_array_equal(part.labels == 1, part.pathologies == "malignant")
    assert {"mass", "calcification"} < set(subsets.train.kinds.tolist())
    assert abs(len(patients(subsets.validation)) - len(patients(subsets.test))) <= 3


def test_benign_lesions_are_negatives_of_the_training_alone(subsets, tmp_path):
    negatives = subsets.train.take(np.flatnonzero(subsets.train.labels == 0))
    assert set(negatives.pathologies.tolist()) == {"benign", "normal"}
    for part in (subsets.validation, subsets.test):
        np.testing.assert_array_equal(part.labels == 0, part.kinds == "normal")
    without = classification.split_subsets(DATA, ClassifierConfig(negatives="normal"), tmp_path)
    kept = subsets.train.pathologies != "benign"
    assert without.train.ids.tolist() == subsets.train.ids[kept].tolist()
    assert without.test.ids.tolist() == subsets.test.ids.tolist()


@pytest.mark.slow
def test_every_generators_training_holds_the_same_patients_out(subsets, tmp_path):
    """Other kinds of lesions, other patches, other patients among them: yet the same
    side for each.
    """
    for kind in ("mass", "calcification"):
        few = DATA.sampling.model_copy(update={"count": 15})
        data = datasets.pin_archive_split(
            DATA.model_copy(update={"kinds": (kind,), "sampling": few}), tmp_path / kind
        )
        train, held_out = datasets.open_subsets(data, tmp_path / kind, make_pathology_patches)
        assert patients(held_out) and not patients(train) & subsets.list_held_out_patients()
        assert not patients(held_out) & patients(subsets.train)
    assert (tmp_path / "mass/split.json").read_bytes() == (
        tmp_path / "calcification/split.json"
    ).read_bytes()


@pytest.mark.slow
def test_all_lesions_are_positive_where_that_is_asked_for(subsets):
    records = read_mammograms(DATA, Skipped())[:16]
    data = DATA.model_copy(update={"kinds": classification.KINDS})
    every, malignant = (
        make_binary_patches(records, data, Skipped(), which) for which in (False, True)
    )
    assert {"benign", "malignant"} <= set(every.pathologies[every.labels == 1].tolist())
    assert set(malignant.pathologies.tolist()) == {"malignant", "normal"} and len(malignant) < len(
        every
    )


def test_synthetic_patches_become_pools_of_their_own(subsets, random_patches):
    together = classification.join_synthetic(subsets.train, synthetic(random_patches).patches)
    real = len(subsets.train)
    assert (
        together.balanced_classes == 4
        and together.labels[:real].tolist() == subsets.train.labels.tolist()
    )
    assert together.labels[real:].tolist() == [3, 2] * 4
    np.testing.assert_array_equal(together.images[:real], subsets.train.images)


def test_synthetic_patches_that_know_the_test_patients_are_refused(subsets, random_patches):
    held = sorted(subsets.list_held_out_patients())
    with pytest.raises(
        DataError,
        match=rf"its generators were trained on 2 of the {len(held)} patients held out here",
    ):
        classification.check_synthetic(synthetic(random_patches, trained_on=held[:2]), held, DATA)
    with pytest.raises(
        DataError, match=rf"its patches show 1 of the {len(held)} patients held out here"
    ):
        classification.check_synthetic(synthetic(random_patches, patient=held[0]), held, DATA)
    with pytest.raises(DataError, match="its patches have 64 px, the real ones 32"):
        classification.check_synthetic(synthetic(random_patches, size=64), held, DATA)
    with pytest.raises(DataError, match="there is no normal patch in set"):
        classification.check_synthetic(synthetic(random_patches, kinds=("mass",)), held, DATA)


def test_synthetic_patches_of_other_grey_values_are_refused(subsets, random_patches):
    window = DataConfig(window=(0, 1))
    ours, theirs = (describe_scale(data) for data in (DATA, window))
    classification.check_synthetic(
        synthetic(random_patches, scales=(ours,)), subsets.list_held_out_patients(), DATA
    )
    windowed = DATA.model_copy(update={"window": (0.0, 1.0)})
    classification.check_synthetic(
        synthetic(random_patches, scales=(theirs,)), subsets.list_held_out_patients(), windowed
    )
    with pytest.raises(
        DataError,
        match=r"set: its patches were made with .*'window': \[0.0, 1.0\].*, the real ones with "
        r".*'percentiles'",
    ):
        classification.check_synthetic(
            synthetic(random_patches, scales=(ours, theirs)), subsets.list_held_out_patients(), DATA
        )


@pytest.mark.slow
def test_whom_checkpoints_are_chosen_by_does_not_depend_on_the_patches(subsets, tmp_path):
    """Of masses alone, of a few patches: nobody who tests the classifier chooses a generator's
    checkpoint.
    """
    data = datasets.pin_archive_split(
        DATA.model_copy(update={"sampling": DATA.sampling.model_copy(update={"count": 15})}),
        tmp_path,
    )
    _, held_out = datasets.open_subsets(data, tmp_path, make_pathology_patches)
    chooses, tests = splits.halve(held_out, datasets.index_archive(data), data)
    assert len(chooses) + len(tests) == len(held_out)
    assert not patients(chooses) & patients(subsets.test) and not patients(tests) & patients(
        subsets.validation
    )
    without_benign = subsets.train.take(np.flatnonzero(subsets.train.pathologies != "benign"))
    known = patients(held_out) | patients(without_benign)
    saved = splits.load(data.split_file)
    fewer = saved.model_copy(
        update={
            "patients": {name: place for name, place in saved.patients.items() if name in known}
        }
    )
    splits.save(tmp_path / "fewer.json", fewer)
    parts = splits.halve(
        held_out,
        datasets.index_archive(data),
        data.model_copy(update={"split_file": tmp_path / "fewer.json"}),
    )
    assert len(fewer.patients) < len(saved.patients) and sum(map(len, parts)) == len(held_out)
    with pytest.raises(DataError, match="are all of one half of the held-out patients"):
        splits.halve(chooses, datasets.index_archive(data), data)


def test_a_missing_class_is_one_sentence(subsets):
    lesions = subsets.train.take(np.flatnonzero(subsets.train.labels == 1))
    with pytest.raises(
        DataError, match=rf"there is no normal patch in the test part \({len(lesions)} patches\)"
    ):
        check_binary(lesions, "the test part")
    normal = subsets.train.take(np.flatnonzero(subsets.train.labels == 0))
    with pytest.raises(DataError, match="there is no lesion's patch in x"):
        check_binary(normal, "x")
    records = [one for one in read_mammograms(DATA, Skipped()) if one.lesions]
    with pytest.raises(DataError, match="data.patches=normal: none of .* mammograms is normal"):
        make_binary_patches(records, DATA, Skipped())
    assert len(lesions.concatenate(normal)) == len(subsets.train)


@pytest.mark.long
def test_a_training_and_what_is_known_of_it(subsets, tmp_path, tracking_uri):
    wanted = experiment(tracking_uri)
    assert not classification.is_finished(tmp_path / "run", wanted)
    metrics, _ = classification.train(wanted, tmp_path / "run", subsets)
    assert list(metrics) == ["auc", "accuracy"] and 0 <= metrics["auc"] <= 1
    assert classification.is_finished(tmp_path / "run", wanted)
    assert classification.find_weights(tmp_path / "run").name in ("best", "export")
    longer = wanted.model_copy(update={"training": wanted.training.model_copy(update={"steps": 3})})
    other = experiment(tracking_uri, learning_rate=1e-4)
    assert not classification.is_finished(
        tmp_path / "run", longer
    ) and not classification.is_finished(tmp_path / "run", other)


def test_a_share_without_patches_is_refused(subsets, tmp_path, tracking_uri):
    with pytest.raises(
        ConfigError, match="model.synthetic: is missing, model.share=0.5 needs a folder"
    ):
        classification.train(experiment(tracking_uri, share=0.5), tmp_path / "run", subsets)
    with pytest.raises(DataError, match="holds no patches that tfmammo.synthesis.patches wrote"):
        classification.train(
            experiment(tracking_uri, share=0.5, synthetic=tmp_path), tmp_path / "run", subsets
        )


def test_the_share_decays_over_the_whole_training(tracking_uri, tmp_path):
    """8 steps of 4 samples are 32; of epochs, 2 over 100 patches of which every step sees eight are
    25 steps of 4 samples.
    """
    half = experiment(tracking_uri, share=0.5, synthetic=tmp_path)
    longer = half.model_copy(update={"training": half.training.model_copy(update={"steps": 8})})
    assert (
        classification.select_arm(longer, 0.5, 0).model.samples == 32
        and classification.select_arm(longer, 0.0, 0).model.samples is None
    )
    epochs = half.model_copy(
        update={"training": half.training.model_copy(update={"steps": None, "epochs": 2})}
    )
    assert classification.set_decay_samples(epochs, 100).model.samples == 100
    assert (
        classification.select_arm(longer, 0.5, 0).fingerprint()
        != classification.select_arm(half, 0.5, 0).fingerprint()
    ), "another length is another schedule"


@pytest.mark.slow
def test_the_baseline_does_not_depend_on_synthetic_patches(tracking_uri, tmp_path):
    one = classification.select_arm(experiment(tracking_uri, synthetic=tmp_path), 0.0, 3)
    other = classification.select_arm(experiment(tracking_uri), 0.0, 3)
    assert one.identity() == other.identity() and one.training.seed == 3
    assert (
        classification.select_arm(
            experiment(tracking_uri, synthetic=tmp_path), 0.5, 3
        ).model.synthetic
        == tmp_path
    )


def test_a_control_takes_the_place_of_the_synthetic_patches(
    subsets, trained_on, tracking_uri, tmp_path
):
    """What the training sees: four pools, the last two of which are real patches of training
    patients; a run of its own, told from that of the share.
    """
    base = experiment(tracking_uri, synthetic=tmp_path)
    control = classification.select_arm(base, 0.5, 0, "copies")
    assert control.model.control == "copies" and control.model.share == 0.5
    assert control.fingerprint() != classification.select_arm(base, 0.5, 0).fingerprint()
    for arm in (control, classification.select_arm(base, 0.5, 0)):
        classification.train(arm, tmp_path, subsets)
    of_control, of_share = trained_on
    for patches in (of_control, of_share):
        assert patches.labels[len(subsets.train) :].tolist() == [3, 2] * 4
    assert set(of_control.patient_ids.tolist()) == patients(subsets.train)
    assert "elsewhere" in of_share.patient_ids.tolist()


def test_fresh_patches_are_of_patients_whom_no_other_training_sees(
    subsets, trained_on, tracking_uri, tmp_path
):
    base = experiment(tracking_uri, synthetic=tmp_path, patient_parts=2)
    for share, control in ((0.0, None), (0.5, "copies"), (0.5, "fresh")):
        arm = classification.select_arm(base, share, 0, control)
        classification.train(arm, tmp_path, subsets)
    alone, copies, fresh = trained_on
    seen = patients(alone)
    others = patients(subsets.train) - seen
    assert seen and others and seen < patients(subsets.train)
    real = len(alone)
    assert patients(copies) == seen
    assert patients(fresh.take(range(real))) == seen
    assert patients(fresh.take(range(real, len(fresh)))) <= others


def test_nobody_is_held_back_unless_asked_for(subsets):
    patches, fresh = classification.hold_back(subsets.train, 1, 0)
    assert patches is subsets.train and len(fresh) == 0
    one, rest = classification.hold_back(subsets.train, 2, 0)
    again, _ = classification.hold_back(subsets.train, 2, 0)
    assert len(one) + len(rest) == len(subsets.train) and again.ids.tolist() == one.ids.tolist()


def test_the_control_fresh_needs_patients_held_back(tracking_uri):
    values = {"shares": (0, 0.5), "controls": ("fresh",)}
    with pytest.raises(ValueError, match="set experiment.model.patient_parts above 1"):
        classification.StudyConfig(experiment=experiment(tracking_uri), **values)
    parted = experiment(tracking_uri, patient_parts=3)
    assert classification.StudyConfig(experiment=parted, **values).controls == ("fresh",)


def test_controls_need_a_share_to_be_compared_with(tracking_uri):
    values = {"experiment": experiment(tracking_uri), "shares": (0, 0.25)}
    with pytest.raises(ValueError, match=r"control_share 0\.5 is none of shares"):
        classification.StudyConfig(**values)
    assert classification.StudyConfig(**values, controls=()).controls == ()
    with pytest.raises(ValueError, match="controls must not repeat"):
        classification.StudyConfig(**values, control_share=0.25, controls=("copies", "copies"))
