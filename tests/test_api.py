"""What `import tfmammo` offers: names, reprs, and answers on networks that are known."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmammo
from tests.known_networks import KnownCAN
from tfmammo import api
from tfmammo.errors import ConfigError, ExportError, TrackingError, TrainingError
from tfmammo.mammogram import Skipped
from tfmammo.tracking import export

PHANTOM = {"name": "phantom", "phantoms": 8}


@pytest.fixture(scope="module")
def archive():
    return tfmammo.open_archive("phantom", phantoms=16)


@pytest.fixture
def patches(archive):
    return tfmammo.make_patches(archive, size=32)


@pytest.fixture
def can(tmp_path):
    """A function (level, patients) -> the folder of a training run whose CAN is known."""

    def make(level=0.5, patients=()):
        folder = tmp_path / f"run{level}"
        card = {"name": "can", "step": 1000, "train_patients": sorted(patients)}
        export.export(KnownCAN("can", 32, level), folder / "export", card)
        return folder

    return make


def test_the_package_itself_imports_no_tensorflow_and_names_what_it_offers():
    program = (
        "import sys, tfmammo\n"
        "assert not {'tensorflow', 'keras', 'mlflow', 'numpy'} & {*sys.modules}\n"
        "assert {*tfmammo.__all__} <= {*dir(tfmammo)} and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert sorted(tfmammo.__all__) == sorted(api.__all__) and len(tfmammo.__all__) < 30
    for name in tfmammo.__all__:
        assert getattr(tfmammo, name) is getattr(api, name) and getattr(tfmammo, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'insert'"):
        _ = tfmammo.insert


def test_an_archive_is_a_list_of_records(archive):
    assert len(archive) == 16 and isinstance(archive[0], tfmammo.Mammogram)
    with pytest.raises(ConfigError, match="root: "):
        tfmammo.open_archive("inbreast")
    with pytest.raises(ConfigError, match="inbrest is no archive, did you mean inbreast"):
        tfmammo.open_archive("inbrest", "DIR")


def test_what_is_skipped_is_noted(archive):
    first, second = [mammogram for mammogram in archive if mammogram.lesions][:2]
    grey = np.full((second.rows, second.cols, 1), 0.5, np.float32)
    skipped = Skipped()
    given = [first, second.with_pixels(lambda: grey)]
    patches = tfmammo.make_patches(given, skipped=skipped, size=32)
    assert len(patches) == len(first.lesions) and list(skipped.reasons) == [second.image_id]


def test_patches_are_arrays_and_a_sequence(patches):
    first = next(iter(patches))
    assert first.image.shape == (32, 32, 1) and first.image.dtype == np.float32
    assert np.array_equal(first.mask, patches.masks[0]) and first.id == patches.ids[0]
    assert first.patient_id == patches.patient_ids[0] and len(list(patches)) == len(patches)
    train, held_out = tfmammo.split_patches(patches, folds=2, fold=1)
    assert not {*train.patient_ids} & {*held_out.patient_ids}
    assert len(train) + len(held_out) == len(patches)
    with pytest.raises(ConfigError, match="sise: unknown key, did you mean size?"):
        tfmammo.make_patches([], sise=32)


def test_reprs_are_one_line_without_pixels(archive, patches):
    mammogram = next(each for each in archive if each.lesions)
    line = repr(mammogram)
    assert line.startswith(f"<Mammogram phantom {mammogram.image_id} ")
    assert f"{mammogram.rows} x {mammogram.cols} px, {len(mammogram.lesions)} mass>" in line
    assert repr(mammogram.lesions[0]).startswith(f"<Lesion mass, box {mammogram.lesions[0].box}, ")
    patients = len({*patches.patient_ids})
    assert repr(patches) == f"<Patches: {len(patches)} of {patients} patients, 32 x 32 px>"
    assert repr(patches[0]).startswith(f"<Patch {patches.ids[0]} mass ")
    assert repr(patches.take([])) == "<Patches: 0 of 0 patients, no size>"


def test_a_model_goes_by_whatever_names_it(can):
    folder = can()
    for handle in (folder, str(folder), folder / "export", folder / "export" / "inverter"):
        assert tfmammo.load(handle).function == "inverter"
    assert tfmammo.load(folder / "export" / "generator").function == "generator"
    inverter = tfmammo.load(folder)
    assert repr(inverter) == (
        "<Model can inverter: image [n, 32, 32, 1] in [0, 1] -> mask [n, 32, 32, 1] in [0, 1], "
        "step 1,000>"
    )
    # more than one call of eight, by hand: 1 where the intensity is above 0.5
    images = np.tile(np.float32([0.2, 0.8]).reshape(2, 1, 1, 1), (10, 32, 32, 1))
    masks = inverter(images)["mask"]
    assert masks.shape == images.shape and np.array_equal(masks > 0.5, images > 0.5)
    assert np.array_equal(inverter(image=images)["mask"], masks)
    with pytest.raises(TrackingError, match="contains no export"):
        tfmammo.load(folder.parent)
    (folder.parent / "config.yaml").write_text("name: can")
    with pytest.raises(TrackingError, match="its training has not finished; repeat its command"):
        tfmammo.load(folder.parent)
    with pytest.raises(ExportError, match="takes image"):
        inverter()


def test_a_model_is_a_function_of_tensors(can):
    """In tf.data, a tf.function and a Keras model, on masks of any dtype, with gradients."""
    generator = tfmammo.load(can(), "generator")
    masks = (np.random.default_rng(0).random((6, 32, 32, 1)) < 0.5).astype(np.uint8)
    expected = generator(masks)["image"]
    assert isinstance(expected, np.ndarray)
    dataset = tf.data.Dataset.from_tensor_slices(masks).batch(4)
    drawn = dataset.map(lambda mask: generator(mask)["image"]).as_numpy_iterator()
    np.testing.assert_array_equal(np.concatenate(list(drawn)), expected)
    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, generator(mask=inputs)["image"])
    np.testing.assert_allclose(model.predict(masks, verbose=0), expected, atol=1e-6)

    @tf.function
    def differentiate(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = tf.reduce_sum(generator(values)["image"])
        return tape.gradient(total, values)

    gradient = differentiate(tf.constant(masks, tf.float32))
    np.testing.assert_allclose(gradient, np.full(masks.shape, 0.5), atol=1e-6)  # the level
    assert tf.is_tensor(generator(tf.constant(masks))["image"])
    traced = tf.function(lambda mask: generator(mask)["image"])
    with pytest.raises(Exception, match=r"must have the shape \[n, 32, 32, 1\]"):
        traced(tf.zeros([1, 16, 16, 1]))
    with pytest.raises(ExportError, match="must be in"):
        generator(tf.constant(255 * masks))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"mask must be in \[0, 1\]"):
        traced(tf.constant(255 * masks))


def test_patches_are_augmented_around_their_own_masks(can, patches):
    augmented = tfmammo.augment(patches, can(0.4), share=0.5, seed=3)
    count = round(len(patches) / 2)
    assert len(augmented) == len(patches) + count
    np.testing.assert_array_equal(augmented.images[: len(patches)], patches.images)
    new = augmented.take(range(len(patches), len(augmented)))
    # the known generator: 0.2 outside the mask and 0.4 more inside
    np.testing.assert_allclose(new.images, 0.2 + 0.4 * new.masks, atol=1e-6)
    rows = [patches.ids.tolist().index(name.rpartition("+")[0]) for name in new.ids]
    assert len({*rows}) == count and new.patient_ids.tolist() == patches.patient_ids[rows].tolist()
    same = tfmammo.augment(patches, tfmammo.load(can(0.4), "generator"), share=0.5, seed=3)
    np.testing.assert_array_equal(same.images, augmented.images)
    assert len(tfmammo.augment(patches, can(0.4), share=2)) == 3 * len(patches)
    with pytest.raises(ExportError, match="has no function that draws images of masks"):
        tfmammo.augment(patches, "shape")
    with pytest.raises(ExportError, match="can inverter.*draws no images of masks"):
        tfmammo.augment(patches, tfmammo.load(can(0.4), "inverter"))
    nobody = patches.take(np.arange(0))
    for few, share in ((patches, 0.01), (patches, -1), (patches, float("nan")), (nobody, 1)):
        with pytest.raises(ConfigError, match=r"^share: .* patches is not even one$"):
            tfmammo.augment(few, can(0.4), share=share)


def test_masks_are_turned_with_their_tissue(patches, tiny_infilling, monkeypatch):
    seen = []
    make = api.make_tri_labels
    record = lambda *given: seen.append(given[0]) or make(*given)  # noqa: E731
    monkeypatch.setattr(api, "make_tri_labels", record)
    new = tfmammo.augment(patches, tiny_infilling(size=32), share=1, seed=3)
    (chosen,) = seen
    np.testing.assert_array_equal(new.masks[len(patches) :], chosen.masks)
    turns = []
    for name, image, mask in zip(chosen.ids, chosen.images, chosen.masks, strict=True):
        row = patches.ids.tolist().index(name.rpartition("+")[0])
        for quarter, side in itertools.product(range(4), (1, -1)):
            turned = (
                np.rot90(one[row], quarter)[:, ::side] for one in (patches.images, patches.masks)
            )
            if all(map(np.array_equal, turned, (image, mask))):
                turns.append((quarter, side))
                break
    assert len(turns) == len(patches) and len(set(turns)) > 3


def test_three_lines_make_a_lesion(archive):
    mammogram = next(each for each in archive if not each.lesions)
    edit = tfmammo.insert_lesion(mammogram, lesions=PHANTOM)
    assert edit.kind in ("mass", "calcification") and edit.mask.any()
    changed = edit.pixels() != edit.before.image()
    assert changed[..., 0][edit.mask > 0].mean() > 0.5
    assert repr(edit).startswith(f"<EditResult: {edit.kind} added, box {edit.box} of <Mammogram")
    again = tfmammo.insert_lesion(mammogram, lesions=PHANTOM)
    assert np.array_equal(again.pixels(), edit.pixels())
    other = tfmammo.insert_lesion(mammogram, lesions=PHANTOM, seed=1)
    assert other.box != edit.box


def test_the_models_card_tells_how_a_lesion_is_made(archive, tiny_infilling, tiny_contextual, can):
    mammogram = next(each for each in archive if not each.lesions)
    edit = tfmammo.insert_lesion(mammogram, tiny_infilling(), size=(40, 30), shape="oval")
    assert edit.recipe["config"]["renderer"] == "infilling" and edit.kind == "mass"
    assert tfmammo.insert_lesion(mammogram, tiny_contextual()).recipe["renderer"] == "contextual"
    for model, options, named in (
        (tiny_contextual("removal"), {}, "remove_lesion"),
        (None, {}, "lesions: "),
        (None, {"method": "can"}, "method: "),
        (tiny_infilling(), {"method": "poisson"}, "method: "),
        (tiny_infilling(), {"size": (40, 30), "shape": "square"}, "shape: "),
    ):
        with pytest.raises(ConfigError, match=named):
            tfmammo.insert_lesion(mammogram, model, **options)


def test_a_lesion_is_removed_where_it_is(archive, tiny_contextual, tiny_infilling):
    mammogram = next(each for each in archive if each.lesions)
    lesion = mammogram.lesions[0]
    removal = tiny_contextual("removal")
    edit = tfmammo.remove_lesion(mammogram, removal, lesion)
    middle = ((lesion.box[0] + lesion.box[2]) // 2, (lesion.box[1] + lesion.box[3]) // 2)
    assert edit.mask[middle] and edit.kind is None
    assert edit.pixels()[middle] < mammogram.pixels()[middle]
    same = tfmammo.remove_lesion(mammogram, removal, middle)
    assert np.array_equal(same.pixels(), edit.pixels())
    with pytest.raises(ConfigError, match="was trained to add lesions"):
        tfmammo.remove_lesion(mammogram, tiny_contextual(), middle)
    with pytest.raises(ConfigError, match=r"inserts lesions \(infilling\)"):
        tfmammo.remove_lesion(mammogram, tiny_infilling(), middle)


@pytest.mark.slow
def test_two_models_are_compared_on_patients_that_they_never_saw(can, tmp_path):
    handles = {"half": can(0.5), "dark": [can(0.7)]}
    data = {**PHANTOM, "phantoms": 16, "size": 32}
    tables = tfmammo.evaluate(handles, data=data, samples=100, output=tmp_path / "out")
    assert [row[0] for row in tables[0].body][:2] == ["half", "dark"]
    assert (tmp_path / "out" / "rows.csv").is_file()
    assert tables[0]._repr_markdown_().startswith("### ")
    with pytest.raises(ConfigError, match="sample: unknown key, did you mean samples?"):
        tfmammo.evaluate(handles, data=data, sample=100)


def test_a_training_that_can_not_start_is_one_sentence():
    with pytest.raises(ConfigError, match="cann: "):
        tfmammo.train("cann")
    with pytest.raises(ConfigError, match="training.stepz: unknown key"):
        tfmammo.train("can", "quickstart", {"training.stepz": 3})


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A function (program) that puts a program in place of the command of a training."""

    def put(program):
        script = tmp_path / "command"
        script.write_text(f"#!{sys.executable}\n{program}")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return put


@pytest.mark.parametrize(
    ("said", "quiet", "reason"),
    [("a\nerror: no room\n", True, "error: no room"), ("\n", True, "see above")]
    + [("error: no room\n", False, "see above")],
)
def test_a_training_that_fails_says_its_last_line(stand_in, capfd, tmp_path, said, quiet, reason):
    stand_in(f"import sys\nprint('step 1')\nsys.stderr.write({said!r})\nsys.exit(2)")
    with pytest.raises(TrainingError, match=rf"^train can: ended with exit code 2 \({reason}\)$"):
        tfmammo.train("can", "quickstart", output=tmp_path, quiet=quiet)
    assert capfd.readouterr() == (("", "") if quiet else ("step 1\n", said))


@pytest.mark.parametrize("quiet", [True, False])
def test_ctrl_c_lets_a_training_save_first(stand_in, tmp_path, quiet):
    started, saved = tmp_path / "started", tmp_path / "saved"
    stand_in(
        "import pathlib, signal, time\n"
        f"signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), pathlib.Path({str(saved)!r})"
        ".write_text('all')))\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "signal.pause()\n"
    )

    def interrupt():
        while not started.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        tfmammo.train("can", "quickstart", output=tmp_path / "run", quiet=quiet)
    assert saved.read_text() == "all"
