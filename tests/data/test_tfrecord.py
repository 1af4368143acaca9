"""Records on disk: what TensorFlow reads from them, the way back into memory, and folders
that are not what they should be.
"""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.data.patches import Patch
from tfmammo.data.pipeline import batches
from tfmammo.data.tfrecord import COLUMNS, MANIFEST, Manifest, Records, ShardFile, decode, encode
from tfmammo.errors import DataError
from tfmammo.mammogram import key_check


def patch(number=0, size=8, **facts):
    """A patch of noise, told apart by its number."""
    rng = np.random.default_rng(number)
    image = rng.random((size, size, 1)).astype(np.float32)
    facts = {
        "kind": "mass",
        "pathology": "benign",
        "shape": "oval",
        "official_split": "train",
        **facts,
    }
    return Patch(
        image=image,
        mask=(image > 0.5).astype(np.uint8),
        patient_id=f"p{number // 2}",
        id=f"image{number}#0",
        **facts,
    )


def folder(root, patches, counts):
    """Patches in shards of so many each, with their manifest."""
    root.mkdir(exist_ok=True)
    rest = list(patches)
    shards = []
    for number, count in enumerate(counts):
        name = f"shard-{number:05d}-of-{len(counts):05d}.tfrecord"
        with tf.io.TFRecordWriter(str(root / name)) as writer:
            for _ in range(count):
                writer.write(encode(rest.pop(0)))
        content = (root / name).read_bytes()
        shards.append(
            ShardFile(
                file=name,
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                count=count,
            )
        )
    single = ("patient_id", "id", "kind", "pathology", "shape", "margin", "official_split")
    columns = {
        plural: tuple(getattr(p, name) for p in patches)
        for plural, name in zip(COLUMNS, single, strict=True)
    }
    size = patches[0].image.shape[0]
    manifest = Manifest(
        format=1,
        identity={},
        size=size,
        count=len(patches),
        fingerprint="-",
        histogram=(),
        shards=tuple(shards),
        columns=columns,
        id_key=key_check(),
    )
    (root / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return root


@pytest.fixture
def seven(tmp_path):
    """Seven patches in shards of three, none, two and two."""
    patches = [patch(number) for number in range(7)]
    return folder(tmp_path / "seven", patches, (3, 0, 2, 2)), patches


def test_the_form_of_a_record():
    size = 8
    ours = patch(3, size, shape="läppchen", margin="spiculated")
    features = tf.train.Example.FromString(encode(ours)).features.feature
    values = {name: feature.bytes_list.value for name, feature in features.items()}
    assert {name: len(value) for name, value in values.items()} == dict.fromkeys(values, 1)
    texts = {
        "id": "image3#0",
        "patient_id": "p1",
        "kind": "mass",
        "pathology": "benign",
        "shape": "läppchen",
        "margin": "spiculated",
        "official_split": "train",
    }
    assert {name: value[0].decode() for name, value in values.items() if name in texts} == texts
    stored = np.frombuffer(values["image"][0], "<u2").reshape(size, size, 1)
    np.testing.assert_array_equal(stored, np.floor(ours.image.astype(np.float64) * 65535 + 0.5))
    np.testing.assert_array_equal(tf.io.decode_png(values["mask"][0]), ours.mask)
    assert set(values) == {"image", "mask", *texts}


def test_equal_patches_give_equal_bytes():
    black = Patch(np.zeros((2, 2, 1), np.float32), np.zeros((2, 2, 1), np.uint8), "p", "i")
    record = encode(black)
    names = sorted(tf.train.Example.FromString(record).features.feature)
    # each name as a field 1 of its length
    places = [record.index(bytes([10, len(name)]) + name.encode()) for name in names]
    assert places == sorted(places) and len(places) == 9


def test_round_trip_to_a_grey_value():
    ours = patch(0, 16)
    image, mask = decode(encode(ours), 16)
    assert (
        image.dtype == np.float32
        and mask.dtype == np.uint8
        and image.shape == mask.shape == (16, 16, 1)
    )
    assert np.abs(image - ours.image).max() <= 0.5 / 65535 + 1e-7
    np.testing.assert_array_equal(mask, ours.mask)
    ends = np.array([0, 1, 0.5, 1e-9], np.float32).reshape(2, 2, 1)
    image, _ = decode(encode(Patch(ends, np.zeros((2, 2, 1), np.uint8), "p", "i")), 2)
    # 32767.5 goes to the even one
    assert image.ravel().tolist() == [0, 1, np.float32(32768 / 65535), 0]
    with pytest.raises(DataError, match="not of 8 px"):
        decode(encode(ours), 8)


def test_records_know_their_patches(seven):
    root, patches = seven
    records = Records.open(root)
    assert len(records) == 7 and records.size == 8
    assert records.ids.tolist() == [p.id for p in patches] and records.patient_ids.tolist() == [
        p.patient_id for p in patches
    ]
    assert records.kinds.tolist() == ["mass"] * 7 and records.pathologies.tolist() == ["benign"] * 7
    assert (
        records.shapes.tolist() == ["oval"] * 7
        and records.official_splits.tolist() == ["train"] * 7
    )


def test_loading_gives_the_patches_back_in_order(seven):
    root, patches = seven
    for order in (list(range(7)), [6, 0, 3], [4, 5, 1, 2], []):
        taken = Records.open(root).take(order)
        loaded = taken.load()
        assert loaded.ids.tolist() == taken.ids.tolist() == [patches[i].id for i in order]
        assert loaded.patient_ids.tolist() == [
            patches[i].patient_id for i in order
        ] and loaded.shapes.tolist() == ["oval"] * len(order)
        for image, mask, i in zip(loaded.images, loaded.masks, order, strict=True):
            np.testing.assert_allclose(image, patches[i].image, atol=1e-5)
            np.testing.assert_array_equal(mask, patches[i].mask)


def test_patches_in_memory_and_on_disk_have_one_interface(seven):
    records = Records.open(seven[0])
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
    with pytest.raises(TypeError, match="can't be drawn from list"):
        batches([], 2, seed=0, augment=False)


def test_takes_of_takes(seven):
    records = Records.open(seven[0]).take([6, 4, 2, 0]).take([3, 1])
    assert records.ids.tolist() == ["image0#0", "image4#0"] and records.load().ids.tolist() == [
        "image0#0",
        "image4#0",
    ]
    assert [(path.name[:11], wanted.tolist()) for path, wanted in records.select_shards()] == [
        ("shard-00000", [True, False, False]),
        ("shard-00002", [False, True]),
    ]
    with pytest.raises(DataError, match="only once"):
        records.take([0, 0])


def test_fingerprints(seven, tmp_path):
    root, patches = seven
    records = Records.open(root)
    assert (
        records.fingerprint() == Records.open(root).fingerprint()
        and len(records.fingerprint()) == 12
    )
    assert records.fingerprint() == folder_fingerprint(tmp_path / "same", patches)
    others = {records.take(order).fingerprint() for order in ([0, 1], [1, 0], [0, 2], range(6))}
    others |= {folder_fingerprint(tmp_path / "other", [*patches[:6], patch(9)])}
    assert len(others | {records.fingerprint()}) == 6


def folder_fingerprint(root, patches):
    """Of these seven patches in the fixture's shards, elsewhere."""
    return Records.open(folder(root, patches, (3, 0, 2, 2))).fingerprint()


def test_only_the_shards_that_are_read_are_hashed(seven):
    root, _ = seven
    path = root / "shard-00003-of-00004.tfrecord"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    records = Records.open(root)
    assert len(records.take([0, 1]).load()) == 2
    with pytest.raises(
        DataError, match=r"shard-00003-of-00004.tfrecord: is not what its manifest says"
    ):
        records.load()


def test_folders_that_are_none(seven, tmp_path):
    root, _ = seven
    with pytest.raises(DataError, match=r"holds no manifest.json"):
        Records.open(tmp_path / "nowhere")
    manifest = (root / MANIFEST).read_text(encoding="utf-8")
    for damaged, reason in (
        (manifest[:100], "is damaged"),
        ("[]", "is damaged"),
        (manifest.replace('"format":1', '"format":2'), "format"),
        (manifest.replace('"count":7', '"count":8'), "do not add up"),
        (manifest.replace('"image0#0",', ""), "its column ids does not have 7 values"),
        (manifest.replace("shard-00000-of", "../shard-00000-of"), "file"),
    ):
        assert damaged != manifest
        (root / MANIFEST).write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match=reason) as caught:
            Records.open(root)
        assert "\n" not in str(caught.value) and MANIFEST in str(caught.value)


def test_shards_that_are_missing_or_short(seven):
    root, _ = seven
    path = root / "shard-00000-of-00004.tfrecord"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"has {len(content) - 1} bytes, not {len(content)}"):
        Records.open(root)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00000-of-00004.tfrecord: is missing"):
        Records.open(root)
