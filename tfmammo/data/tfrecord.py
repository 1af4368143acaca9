"""Patches in sharded TFRecord files: their form, and a folder of them opened for training.

A folder of `tfmammo build` holds shard-*.tfrecord and manifest.json. A record is a
tf.train.Example of bytes features: "image", the patch as rint(value * 65535), little-endian uint16
row by row, so off by at most 1/131070; "mask", a PNG of one byte a pixel, 0 or 1; and as text "id",
"patient_id", "kind", "pathology", "shape", "margin" and "official_split".

Pixels are not compressed: a 16-bit PNG of a patch is only 14 % smaller (the low bits are noise) and
takes 1.2 ms to decode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from tfmammo import filesystem
from tfmammo.config import Frozen, describe
from tfmammo.data.patches import TEXTS, Patch, Patches
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, key_fault

FORMAT: Final = 1
MANIFEST = "manifest.json"
COLUMNS = tuple(TEXTS)  # of Patches, one text a patch
GREY = 65535  # what an image's 1.0 is stored as


class ShardFile(Frozen):
    """One shard of a folder."""

    file: str = Field(pattern=r"^shard-\d{5,}-of-\d{5,}\.tfrecord$")
    """Name of the file."""
    sha256: str
    """SHA-256 of its content, hexadecimal."""
    bytes: NonNegativeInt
    """Size of the file."""
    count: NonNegativeInt
    """How many records it holds."""


class Manifest(Frozen):
    """What a folder holds."""

    format: Literal[1]
    """Version of the form."""
    identity: dict[str, Any]
    """Config, archive and versions that decide the contents."""
    size: PositiveInt
    """Rows and columns of a patch, px."""
    count: NonNegativeInt
    """How many patches there are."""
    fingerprint: str
    """Fingerprint of all shards together."""
    shards: tuple[ShardFile, ...]
    """The files, in order."""
    columns: dict[str, tuple[str, ...]]
    """COLUMNS and more: one text a record, in the order of shards and records."""
    id_key: str
    """The `mammogram.key_check` that pseudonyms were made under."""

    def fault(self) -> str | None:
        """Say in a few words what contradicts itself; None where all is well."""
        if sum(shard.count for shard in self.shards) != self.count:
            return "its shards do not add up to its count"
        wrong = [name for name in COLUMNS if len(self.columns.get(name, ())) != self.count]
        return f"its column {wrong[0]} does not have {self.count} values" if wrong else None


@dataclass(frozen=True, eq=False)
class Records:
    """Patches in a folder of shards: texts are in memory, images and masks stay on disk.

    Attributes:
        size: Rows and columns of a patch, px.
        rows: intp [n], the places of these patches in the folder's order.
        patient_ids: str [n]; this and the other columns are as in Patches.
    """

    root: Path
    size: int
    shards: tuple[ShardFile, ...]
    rows: NDArray[np.intp]
    patient_ids: NDArray[np.str_]
    ids: NDArray[np.str_]
    kinds: NDArray[np.str_]
    pathologies: NDArray[np.str_]
    shapes: NDArray[np.str_]
    margins: NDArray[np.str_]
    official_splits: NDArray[np.str_]
    # shared by everything taken from one folder
    _checked: set[str] = field(default_factory=set, repr=False, kw_only=True)
    balanced_classes: ClassVar[int] = 1  # records have no labels

    @staticmethod
    def open(root: Path) -> Records:
        """Open all patches of a folder that `tfmammo build` wrote; read no image.

        DataError says if the folder or its manifest is missing or damaged, a shard is missing or of
        another size, or the pseudonyms were made under another TFMAMMO_ID_KEY.
        """
        manifest = read_manifest(Path(root))
        if fault := key_fault(manifest.id_key):
            raise DataError(f"{Path(root) / MANIFEST}: {fault}")
        for shard in manifest.shards:
            path = Path(root) / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                fault = "is missing"
                if path.is_file():
                    fault = f"has {path.stat().st_size} bytes, not {shard.bytes}"
                raise DataError(f"{path}: {fault}; run tfmammo.data.build again")
        columns = (np.array(manifest.columns[name], np.str_) for name in COLUMNS)
        return Records(
            Path(root), manifest.size, manifest.shards, np.arange(manifest.count), *columns
        )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Records:
        """Return the patches at `indices`, in that order."""
        places = np.asarray(indices, np.intp)
        rows = self.rows[places]
        if len(np.unique(rows)) != len(rows):
            raise DataError("a patch can be taken from records only once")
        return replace(self, rows=rows, **{name: getattr(self, name)[places] for name in COLUMNS})

    def fingerprint(self) -> str:
        """Return twelve hexadecimal digits, equal for equal patches in the same order.

        The manifest's hashes alone decide them.
        """
        content = hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode())
        content.update(self.rows.astype("<i8").tobytes())
        return content.hexdigest()[:12]

    def select_shards(self) -> list[tuple[Path, NDArray[np.bool_]]]:
        """Return the shards that hold any of these patches, and which of their records they are."""
        ends = np.cumsum([shard.count for shard in self.shards])
        wanted = np.zeros(ends[-1] if len(ends) else 0, bool)
        wanted[self.rows] = True
        parts = zip(self.shards, np.split(wanted, ends[:-1]), strict=True) if len(ends) else ()
        return [(self.root / shard.file, part) for shard, part in parts if part.any()]

    def check(self) -> None:
        """Hash every shard that is about to be read, each once."""
        digests = {shard.file: shard.sha256 for shard in self.shards}
        for path, _ in self.select_shards():
            if path.name not in self._checked and filesystem.sha256(path) != digests[path.name]:
                raise DataError(
                    f"{path}: is not what its manifest says (sha256); run tfmammo.data.build again"
                )
            self._checked.add(path.name)

    def load(self) -> Patches:
        """Read these patches into memory, in their order; DataError if a shard is damaged."""
        self.check()
        images = np.empty((len(self), self.size, self.size, 1), np.float32)
        masks = np.empty(images.shape, np.uint8)
        shards = (
            (tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), wanted)
            for path, wanted in self.select_shards()
        )
        records = (
            record
            for shard, wanted in shards
            for record, is_wanted in zip(shard, wanted, strict=True)
            if is_wanted
        )
        for place, record in zip(np.argsort(self.rows), records, strict=True):
            images[place], masks[place] = decode(record, self.size)
        return Patches(
            images=images, masks=masks, **{name: getattr(self, name) for name in COLUMNS}
        )


# In memory or on disk: what batches and training need.
PatchSource = Patches | Records


def read_manifest(root: Path) -> Manifest:
    """Read a folder's manifest; DataError if it is missing, unreadable or contradicts itself."""
    path = root / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{root}: contains no {MANIFEST}, so it is not a finished output of tfmammo.data.build"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except ValidationError as error:
        raise DataError(f"{path}: is damaged ({describe(error)[:300]})") from None
    if fault := manifest.fault():
        raise DataError(f"{path}: is damaged ({fault})")
    return manifest


def quantise(image: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return an image as it is stored: uint16, rint(value * 65535)."""
    return np.rint(image.astype(np.float64) * GREY).astype("<u2")


def encode(patch: Patch) -> bytes:
    """Encode a patch as the bytes of a tf.train.Example; equal patches give equal bytes."""
    values = {
        "image": quantise(patch.image).tobytes(),
        "mask": cv2.imencode(".png", patch.mask)[1].tobytes(),
    }
    values |= {name: getattr(patch, name).encode() for name in TEXTS.values()}
    return _serialize({name: [value] for name, value in values.items()})


def _serialize(
    texts: Mapping[str, Sequence[bytes]],
    numbers: Mapping[str, Sequence[int]] = MappingProxyType({}),
    floats: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> bytes:
    train = tf.train
    kinds: tuple[tuple[Mapping[str, Any], str, Any], ...] = (
        (texts, "bytes_list", train.BytesList),
        (numbers, "int64_list", train.Int64List),
        (floats, "float_list", train.FloatList),
    )
    features = {
        name: train.Feature(**{field: make(value=value)})
        for values, field, make in kinds
        for name, value in values.items()
    }
    example = train.Example(features=train.Features(feature=features))
    return bytes(example.SerializeToString(deterministic=True))  # else in any order


def encode_detection(
    picture: bytes,
    size: tuple[int, int],
    name: str,
    boxes: Sequence[Box],
    masks: Sequence[bytes],
    labels: Sequence[tuple[str, int]],
) -> bytes:
    """Encode a whole image with its lesions as the bytes of a tf.train.Example.

    The keys are those of the TensorFlow Object Detection API. Boxes are native px, half-open; they
    are stored over the size, (rows, cols) in px.
    """
    scale = np.array(size * 2, np.float64)
    edges = (np.reshape(boxes, (-1, 4)) / scale).T.tolist()
    texts: dict[str, Sequence[bytes]] = {
        "image/encoded": [picture],
        "image/format": [b"png"],
        "image/filename": [name.encode()],
        "image/source_id": [name.encode()],
        "image/object/mask": masks,
        "image/object/class/text": [text.encode() for text, _ in labels],
    }
    numbers = {
        "image/height": size[:1],
        "image/width": size[1:],
        "image/object/class/label": [number for _, number in labels],
    }
    sides = zip(("ymin", "xmin", "ymax", "xmax"), edges, strict=True)
    return _serialize(
        texts, numbers, {f"image/object/bbox/{side}": values for side, values in sides}
    )


def decode(record: bytes, size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Decode what `encode` wrote: image float32 in [0, 1] and mask uint8, [size, size, 1] each."""
    features = tf.train.Example.FromString(record).features.feature
    stored = np.frombuffer(features["image"].bytes_list.value[0], "<u2")
    mask = cv2.imdecode(
        np.frombuffer(features["mask"].bytes_list.value[0], np.uint8), cv2.IMREAD_UNCHANGED
    )
    if len(stored) != size * size or mask is None or mask.shape != (size, size):
        raise DataError(f"a record is not of {size} px as its manifest says")
    image = stored.astype(np.float32) / np.float32(GREY)
    return image.reshape(size, size, 1), mask[..., np.newaxis]
