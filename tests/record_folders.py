"""Folders of records as `tfmammo build` writes them, of patches that a test makes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from tfmammo.data.patches import TEXTS, Patch
from tfmammo.data.tfrecord import MANIFEST, Manifest, ShardFile, encode
from tfmammo.mammogram import key_check


def write_records(root: Path, patches: Sequence[Patch], counts: Sequence[int]) -> Path:
    """Write patches in shards of so many each, with their manifest, and return the folder."""
    root.mkdir(exist_ok=True)
    rest = list(patches)
    shards = []
    for number, count in enumerate(counts):
        name = f"shard-{number:05d}-of-{len(counts):05d}.tfrecord"
        with tf.io.TFRecordWriter(str(root / name)) as writer:
            for _ in range(count):
                writer.write(encode(rest.pop(0)))
        content = (root / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        shards.append(ShardFile(file=name, sha256=digest, bytes=len(content), count=count))
    manifest = Manifest(
        format=1,
        identity={},
        size=len(patches[0].image),
        count=len(patches),
        fingerprint="-",
        shards=tuple(shards),
        columns={
            column: tuple(getattr(patch, name) for patch in patches)
            for column, name in TEXTS.items()
        },
        id_key=key_check(),
    )
    (root / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return root
