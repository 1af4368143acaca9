"""Records on disk: what TensorFlow reads from them, the way back into memory, and folders that are
not what they should be.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests.record_folders import write_records
from tfmammo.data.patches import Patch
from tfmammo.data.pipeline import batches
from tfmammo.data.tfrecord import MANIFEST, Records, decode, encode
from tfmammo.errors import DataError

BLACK = Patch(np.zeros((2, 2, 1), np.float32), np.zeros((2, 2, 1), np.uint8), "p", "i")


def make_patch(number=0, size=8, **facts):
    """A patch of noise that its number decides."""
    image = np.random.default_rng(number).random((size, size, 1)).astype(np.float32)
    known = {"kind": "mass", "pathology": "benign", "shape": "oval", "official_split": "train"}
    ids = (f"p{number // 2}", f"image{number}#0")
    return Patch(image, (image > 0.5).astype(np.uint8), *ids, **known | facts)


@pytest.fixture
def seven(tmp_path):
    """Seven patches in shards of three, none, two and two."""
    patches = [make_patch(number) for number in range(7)]
    return write_records(tmp_path / "seven", patches, (3, 0, 2, 2)), patches


def test_the_form_of_a_record():
    ours = make_patch(3, shape="läppchen", margin="spiculated")
    features = tf.train.Example.FromString(encode(ours)).features.feature
    values = {name: feature.bytes_list.value for name, feature in features.items()}
    assert all(len(value) == 1 for value in values.values())
    image = np.frombuffer(values.pop("image")[0], "<u2").reshape(8, 8, 1)
    np.testing.assert_array_equal(image, np.floor(ours.image.astype(np.float64) * 65535 + 0.5))
    np.testing.assert_array_equal(tf.io.decode_png(values.pop("mask")[0]), ours.mask)
    assert {name: value[0].decode() for name, value in values.items()} == {
        "id": "image3#0",
        "patient_id": "p1",
        "kind": "mass",
        "pathology": "benign",
        "shape": "läppchen",
        "margin": "spiculated",
        "official_split": "train",
    }


def test_round_trip_to_a_grey_value():
    ours = make_patch(0, 16)
    image, mask = decode(encode(ours), 16)
    assert image.dtype == np.float32 and mask.dtype == np.uint8 and image.shape == (16, 16, 1)
    assert np.abs(image - ours.image).max() <= 0.5 / 65535 + 1e-7
    np.testing.assert_array_equal(mask, ours.mask)
    ends = np.array([0, 1, 0.5, 1e-9], np.float32).reshape(2, 2, 1)
    image, _ = decode(encode(Patch(ends, BLACK.mask, "p", "i")), 2)
    # 32767.5 goes to the even one
    assert image.ravel().tolist() == [0, 1, np.float32(32768 / 65535), 0]
    with pytest.raises(DataError, match="not of 8 px"):
        decode(encode(ours), 8)


def test_patches_in_memory_and_on_disk_have_one_interface(seven):
    records = Records.open(seven[0])
    assert records.size == 8
    patches = records.load()
    assert patches.load() is patches
    for source in (records, patches):
        assert len(source) == 7 and source.balanced_classes == 1
        assert source.patient_ids.tolist() == records.patient_ids.tolist()
        two = source.take([4, 1])
        assert type(two) is type(source) and two.load().ids.tolist() == ["image4#0", "image1#0"]
        assert two.fingerprint() != source.fingerprint() == source.take(range(7)).fingerprint()
        (batch,) = batches(two, 2, seed=0, augment=False).take(1)
        assert sorted(batch) == ["image", "mask"] and batch["image"].shape == (2, 8, 8, 1)


def test_takes_of_takes(seven):
    records = Records.open(seven[0]).take([6, 4, 2, 0]).take([3, 1])
    assert records.ids.tolist() == records.load().ids.tolist() == ["image0#0", "image4#0"]
    assert [(path.name[:11], wanted.tolist()) for path, wanted in records.select_shards()] == [
        ("shard-00000", [True, False, False]),
        ("shard-00002", [False, True]),
    ]
    with pytest.raises(DataError, match="only once"):
        records.take([0, 0])


def test_fingerprints(seven, tmp_path):
    root, patches = seven
    records = Records.open(root)
    counts = (3, 0, 2, 2)
    same = Records.open(write_records(tmp_path / "same", patches, counts))
    other = write_records(tmp_path / "other", [*patches[:6], make_patch(9)], counts)
    assert records.fingerprint() == same.fingerprint() and len(records.fingerprint()) == 12
    others = {records.take(order).fingerprint() for order in ([0, 1], [1, 0], [0, 2], range(6))}
    others |= {Records.open(other).fingerprint(), records.fingerprint()}
    assert len(others) == 6


def test_only_the_shards_that_are_read_are_hashed(seven):
    root, _ = seven
    path = root / "shard-00003-of-00004.tfrecord"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    records = Records.open(root)
    assert len(records.take([0, 1]).load()) == 2
    with pytest.raises(DataError, match="shard-00003-of-00004.tfrecord: is not what its manifest"):
        records.load()


def swap(old, new):
    return lambda manifest: manifest.replace(old, new)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda manifest: manifest[:100], "is damaged"),
        (lambda manifest: "[]", "is damaged"),
        (swap('"format":1', '"format":2'), "format"),
        (swap('"count":7', '"count":8'), "do not add up"),
        (swap('"image0#0",', ""), "its column ids does not have 7 values"),
        (swap("shard-00000-of", "../shard-00000-of"), "file"),
    ],
)
def test_a_damaged_manifest_is_named_in_one_line(seven, change, reason):
    path = seven[0] / MANIFEST
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        Records.open(seven[0])
    assert "\n" not in str(caught.value) and MANIFEST in str(caught.value)


def test_missing_and_cut_files_are_named(seven, tmp_path):
    path = seven[0] / "shard-00000-of-00004.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"has {path.stat().st_size} bytes, not"):
        Records.open(seven[0])
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}: is missing"):
        Records.open(seven[0])
    with pytest.raises(DataError, match=rf"contains no {MANIFEST}"):
        Records.open(tmp_path / "nowhere")
