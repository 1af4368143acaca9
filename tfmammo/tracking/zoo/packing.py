"""An export as one small file, and back.

A packed network is a zip file with the export's card, the graph of each function, and its variables
in half precision. Kernels are halved; vectors such as biases and moving averages are small, and
keep float32. Unpacked, the variables are float32 again, so that everything that takes an export
takes a network of the zoo.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.errors import ExportError, summarize
from tfmammo.tracking import export
from tfmammo.tracking.export.card import PACKED, PLAIN_NAME, remove_places

GRAPH = "saved_model.pb"
WEIGHTS = "weights.npz"
CHECKPOINT = "variables/variables"
LARGEST = 256 * 2**20  # bytes of a file in a packed network, before compression
# A date for all files: packing twice gives the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)


def pack(directory: Path, file: Path, functions: Sequence[str] | None = None) -> None:
    """Pack an export. Its card names no place of this machine then.

    Args:
        directory: The export.
        file: The zip file to write.
        functions: Names of the functions to keep. By default all are kept that the card does not
            call a discriminator.
    """
    card = export.read_card(directory)
    names = list(card["functions"]) if functions is None else list(functions)
    if functions is None:
        names = [name for name in names if name != "discriminator"]
    if unknown := sorted(set(names) - set(card["functions"])):
        raise ExportError(f"{directory}: has no function {', '.join(unknown)}")
    kept = {name: card["functions"][name] for name in names}
    card = remove_places(card) | {"functions": kept, PACKED: True}
    if card["serves"] not in kept:
        card["serves"] = names[0]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        _add(packed, export.CARD, (json.dumps(card, indent=2) + "\n").encode())
        for name in names:
            folder = export.locate(Path(directory)) / name
            _add(packed, f"{name}/{GRAPH}", (folder / GRAPH).read_bytes())
            _add(packed, f"{name}/{WEIGHTS}", _pack_variables(folder / CHECKPOINT))


def unpack(file: Path, directory: Path) -> None:
    """Unpack a network into a folder that does not exist yet.

    Args:
        file: What `pack` wrote.
        directory: Becomes an export.
    """
    try:
        with zipfile.ZipFile(file) as packed:
            card = json.loads(_read(packed, export.CARD))
            directory.mkdir(parents=True)
            for name in card["functions"]:
                if not PLAIN_NAME.fullmatch(name):
                    raise ExportError(f"{file}: {name!r} is no plain name")
                folder = directory / name
                folder.mkdir()
                (folder / GRAPH).write_bytes(_read(packed, f"{name}/{GRAPH}"))
                _unpack_variables(_read(packed, f"{name}/{WEIGHTS}"), folder / CHECKPOINT)
            # The card comes last: without one the folder is no export.
            (directory / export.CARD).write_bytes(_read(packed, export.CARD))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, tf.errors.OpError) as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise ExportError(f"{file}: can't be unpacked ({summarize(error)})") from error


def read_packed_card(file: Path) -> dict[str, Any]:
    """Read the card of a packed network."""
    try:
        with zipfile.ZipFile(file) as packed:
            card: dict[str, Any] = json.loads(_read(packed, export.CARD))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(f"{file}: can't be read ({summarize(error)})") from error
    return card


def _add(packed: zipfile.ZipFile, name: str, content: bytes) -> None:
    packed.writestr(zipfile.ZipInfo(name, DATE), content, zipfile.ZIP_DEFLATED, 9)


def _read(packed: zipfile.ZipFile, name: str) -> bytes:
    if packed.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} is larger than {LARGEST // 2**20} MB")
    return packed.read(name)


def _pack_variables(checkpoint: Path) -> bytes:
    """Pack all tensors of a checkpoint under their names.

    Text becomes bytes: TensorFlow keeps the graph of objects in it.
    """
    reader = tf.train.load_checkpoint(str(checkpoint))
    arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, array in sorted(arrays.items()):
            member = io.BytesIO()
            np.save(member, _shrink(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", DATE), member.getvalue())
    return content.getvalue()


def _shrink(array: Any) -> NDArray[Any]:
    """Halve a kernel that half precision can hold; turn text into bytes; leave everything else."""
    if isinstance(array, bytes):
        return np.frombuffer(array, np.uint8)
    is_kernel = array.dtype == np.float32 and array.ndim > 1
    if is_kernel and np.abs(array).max(initial=0) <= np.finfo(np.float16).max:
        return np.asarray(array, np.float16)
    return np.asarray(array)


def _unpack_variables(content: bytes, checkpoint: Path) -> None:
    """Write tensors as a checkpoint, in float32 where they were halved."""
    tensors = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.dtype == np.uint8:
                tensors[name] = tf.constant(array.tobytes())
            elif array.dtype == np.float16:
                tensors[name] = tf.constant(array, tf.float32)
            else:
                tensors[name] = tf.constant(array)
    checkpoint.parent.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(checkpoint),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
