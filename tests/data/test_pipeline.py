"""Order, augmentation and resumption of batches, of memory and of records: decided by seed
and step alone.
"""

from itertools import islice

import numpy as np
import pytest
import tensorflow as tf

from tests.record_folders import write_records
from tests.two_cpus import run_on_two_cpus
from tfmammo.data import pipeline
from tfmammo.data.patches import Patches
from tfmammo.data.pipeline import batches, rotate_and_flip
from tfmammo.data.tfrecord import Records
from tfmammo.errors import DataError


def patches(count=5, size=4):
    """Patches of noise without symmetry, told apart by their top left pixel; the mask is where the
    image is above 0.5.
    """
    rng = np.random.default_rng(0)
    images = rng.random((count, size, size, 1)).astype(np.float32)
    names = np.array([f"{i}#0" for i in range(count)])
    return Patches(images, (images > 0.5).astype(np.uint8), names, names)


def drawn(data, steps, batch_size=1, seed=0, augment=False, start_step=0):
    """The images and masks of some steps, float32 [2, steps, batch, size, size, 1]."""
    found = list(islice(batches(data, batch_size, seed, augment, start_step), steps))
    return np.array([[batch[name] for batch in found] for name in ("image", "mask")])


def draw_epochs(data, count, epochs):
    """The numbers of the patches that epochs draw one by one, checked against data in memory."""
    loaded = data.load()
    images, masks = drawn(data, epochs * count)
    order = np.array([identify(image[0], loaded)[0] for image in images]).reshape(epochs, count)
    assert (np.sort(order) == np.arange(count)).all()
    np.testing.assert_array_equal(images[:, 0], loaded.images[order.ravel()])
    np.testing.assert_array_equal(masks[:, 0], loaded.masks[order.ravel()])
    return order


def symmetries(image):
    """All eight by numpy, in `rotate_and_flip`'s order."""
    return [
        np.flip(np.rot90(image, turn % 4), axis=1) if turn >= 4 else np.rot90(image, turn)
        for turn in range(8)
    ]


def identify(image, data):
    """(index of the patch, turn) of a drawn image."""
    matches = [
        (i, t)
        for i, original in enumerate(data.images)
        for t, turned in enumerate(symmetries(original))
        if np.array_equal(turned, image)
    ]
    assert len(matches) == 1
    return matches[0]


@pytest.fixture
def records(tmp_path):
    """A function (count, shards) -> Records of `patches(count)`, with one empty shard more."""

    def make(count=5, shards=2):
        counts = [len(part) for part in np.array_split(np.arange(count), shards)]
        root = write_records(tmp_path / f"{count}-{shards}", list(patches(count)), [*counts, 0])
        return Records.open(root)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("is_streamed", "augment"), [(0, 0), (0, 1), (1, 1)])
def test_the_same_seed_gives_the_same_batches_whatever_the_global_seed(
    records, is_streamed, augment
):
    data = records(40, 7) if is_streamed else patches()
    found = []
    for global_seed, seed in ((1, 3), (2, 3), (2, 4)):
        tf.random.set_seed(global_seed)
        found.append(drawn(data, 20, batch_size=4, seed=seed, augment=bool(augment)))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("start", [2, 9, 29])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_start_step_equals_skipping(records, monkeypatch, start, is_streamed):
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 16 * 2 * 16)
    # batches of 3 cross the borders of epochs of 5, or of blocks (16, 32) and epochs (40, 80)
    data = records(40, 7) if is_streamed else patches(5)
    whole = drawn(data, start + 4, batch_size=3, augment=True)
    rest = drawn(data, 4, batch_size=3, augment=True, start_step=start)
    np.testing.assert_array_equal(rest, whole[:, start:])


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_late_start_costs_nothing(records, is_streamed):
    images, _ = drawn(records() if is_streamed else patches(), 5, start_step=10**12)
    expected = np.sort(patches().images[:, 0, 0, 0])
    np.testing.assert_allclose(np.sort(images[:, 0, 0, 0, 0]), expected, atol=1e-5)


def test_augmentation_turns_image_and_mask_together_into_all_eight():
    data = patches(4)
    images, masks = drawn(data, 400, batch_size=1, augment=True)
    np.testing.assert_array_equal(masks, images > 0.5)
    origins = np.array([identify(image[0], data) for image in images])
    # augmentation does not touch the order
    assert (np.sort(origins[:, 0].reshape(100, 4)) == np.arange(4)).all()
    for patch in range(4):
        assert set(origins[origins[:, 0] == patch, 1]) == set(range(8))
    counts = np.bincount(origins[:, 1], minlength=8)
    # chi square of seven degrees of freedom, p = 0.001; the draws are fixed
    assert ((counts - 50) ** 2 / 50).sum() < 24.3


IMAGE = np.random.default_rng(0).random((5, 5, 2)).astype(np.float32)


@pytest.mark.parametrize("turn", range(8))
def test_dihedral_equals_numpy(turn):
    for function in (rotate_and_flip, tf.function(rotate_and_flip)):
        np.testing.assert_array_equal(function(IMAGE, tf.constant(turn)), symmetries(IMAGE)[turn])
    assert rotate_and_flip(IMAGE.astype(np.uint8), turn).dtype == tf.uint8


TWO_REPLICAS = """
from itertools import islice
from tfmammo.data.patches import Patches
from tfmammo.data.pipeline import batches

rng = np.random.default_rng(0)
names = np.array([f"{i}#0" for i in range(5)])
images = rng.random((5, 4, 4, 1)).astype(np.float32)
masks = rng.integers(0, 2, (5, 4, 4, 1)).astype(np.uint8)
data = Patches(images, masks, names, names)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
equal, shares = [], []
for start in (0, 3):
    distributed = strategy.experimental_distribute_dataset(batches(data, 4, 0, True, start))
    for ours, whole in zip(islice(distributed, 6), islice(batches(data, 4, 0, True, start), 6)):
        for name in ("image", "mask"):
            parts = strategy.experimental_local_results(ours[name])
            shares.append([int(part.shape[0]) for part in parts])
            equal.append(bool(np.array_equal(np.concatenate(parts), whole[name])))
print(json.dumps({"equal": equal, "shares": shares}))
"""


@pytest.mark.long
def test_two_replicas_share_the_batches_of_one(tmp_path):
    results = run_on_two_cpus(TWO_REPLICAS, tmp_path)
    assert results["equal"] == [True] * 24 and results["shares"] == [[2, 2]] * 24


@pytest.mark.slow
@pytest.mark.parametrize(("count", "shards", "block"), [(1, 1, 16), (40, 7, 16), (40, 7, 2**25)])
def test_every_epoch_is_a_permutation_of_what_loading_gives(
    records, monkeypatch, count, shards, block
):
    """Fewer records are shuffled at once than there are, or all."""
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", block * 2 * 16)
    for data in (records(count, shards), patches(count)):
        order = draw_epochs(data, count, 3)
        assert count == 1 or len(np.unique(order, axis=0)) == 3


def test_only_the_wanted_records_come(records):
    data = records(12, 3).take([11, 1, 2, 0])
    assert data.load().ids.tolist() == ["11#0", "1#0", "2#0", "0#0"]
    draw_epochs(data, 4, 2)


def test_streams_mix_the_shards(records):
    data = records(40, 4)
    loaded = data.load()
    images, _ = drawn(data, 25, batch_size=40)
    by_pixel = np.argsort(loaded.images[:, 0, 0, 0])
    places = by_pixel[np.searchsorted(loaded.images[by_pixel, 0, 0, 0], images[:, :, 0, 0, 0])]
    # of shard 0's ten patches, in each epoch: hypergeometric
    first_half = (places[:, :20] // 10 == 0).sum(axis=1)
    assert abs(first_half.mean() - 5) < 1 and first_half.min() > 0 and first_half.max() < 10
    orders = np.argsort(places, axis=1)
    assert len(np.unique(orders, axis=0)) == 25
    assert abs(np.corrcoef(orders)[np.triu_indices(25, 1)]).max() < 0.7


def test_a_damaged_shard_is_refused_before_the_first_batch(records):
    data = records(5)
    path, _ = data.select_shards()[0]
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataError, match="is not what its manifest says"):
        batches(data, 1, seed=0, augment=False)
    with pytest.raises(DataError, match="no patch to draw from"):
        batches(data.take([]), 1, seed=0, augment=False)


def test_balanced_classes_take_turns_and_each_has_its_own_epochs():
    data = patches(7).with_labels([0, 2, 2, 0, 2, 2, 5], balanced=True)  # two, four and one
    assert (data.balanced_classes, data.take([0, 1]).balanced_classes) == (3, 2)
    assert patches(7).with_labels([0, 1] * 3 + [0]).balanced_classes == 1
    drawn_batches = list(islice(batches(data, 3, 0, False), 8))
    assert [np.array(batch["label"]).tolist() for batch in drawn_batches] == [[0, 2, 5]] * 8
    order = np.array(
        [[identify(image, data)[0] for image in batch["image"].numpy()] for batch in drawn_batches]
    )
    assert [sorted(part) for part in order[:, 0].reshape(4, 2).tolist()] == [[0, 3]] * 4
    assert [sorted(part) for part in order[:, 1].reshape(2, 4).tolist()] == [[1, 2, 4, 5]] * 2
    assert (order[:, 2] == 6).all()
    later, _ = drawn(data, 3, batch_size=3, start_step=5)
    np.testing.assert_array_equal(later, [batch["image"] for batch in drawn_batches[5:]])
