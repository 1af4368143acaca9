"""Named arrays from files of weights: .npz, .safetensors, and PyTorch's .pth and .pt.

Nothing in a file is executed, and PyTorch is not needed. PyTorch's files hold a pickle, which is a
program. Here it finds nothing to call but a dictionary and two functions that lay a tensor over
stored numbers. The code of a TorchScript file is not looked at; only the tensors of its modules
are.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.errors import WeightsError, summarize

Arrays = dict[str, NDArray[Any]]
FindStorage = Callable[[str, str, int], NDArray[Any]]  # dtype, key, count -> stored numbers

STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
# The first pickle of a PyTorch file that is no zip archive.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


@contextmanager
def _read_as(path: Path, form: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into one sentence that names it."""
    try:
        yield
    except Exception as error:
        reason = summarize(error)[:300]
        raise WeightsError(f"{path}: can't be read as {form} ({reason})") from None


def read_npz(path: Path) -> Arrays:
    """Read the arrays of a .npz file; a WeightsError where it can't be read or holds objects."""
    with (
        _read_as(path, ".npz"),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return {key: arrays[key] for key in arrays.files}


def read_safetensors(path: Path) -> Arrays:
    """Read the float32 tensors of a .safetensors file; a WeightsError where it can't be read.

    Eight bytes hold the length of a JSON header (name -> dtype, shape, offsets). The tensors follow
    it.
    """
    with _read_as(path, ".safetensors"):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        tensors = {}
        for key, entry in header.items():
            first, last = entry["data_offsets"]
            if entry["dtype"] == "F32":
                data = content[start + first : start + last]
                tensors[key] = np.frombuffer(data, "<f4").reshape(entry["shape"])
        return tensors


def read_torch(path: Path) -> Arrays:
    """Read the tensors of a state dict or a TorchScript module, of any version of PyTorch.

    Returns:
        The name of a tensor, modules' names before it ("features.0.weight"), -> the tensor, in the
        order of the file.

    Raises:
        WeightsError: The file can't be read, or its pickle would do anything but build tensors.
    """
    with _read_as(path, "a PyTorch file"):
        content = _read_archive(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        tensors = {name: view.copy() for name, view in _list_arrays("", content)}
    if not tensors:
        raise WeightsError(f"{path}: contains no named PyTorch tensors")
    return tensors


def _read_archive(path: Path) -> object:
    """Read a zip archive: NAME/data.pkl, and one file of numbers for each storage."""
    with zipfile.ZipFile(path) as archive:
        (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = program.removesuffix("data.pkl")
        if archive.namelist().count(folder + "byteorder"):
            _check_little_endian(archive.read(folder + "byteorder") == b"little")
        storages: dict[str, NDArray[Any]] = {}

        def find_storage(dtype: str, key: str, count: int) -> NDArray[Any]:
            if key not in storages:
                storages[key] = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, count)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(program)), find_storage).load()


def _read_legacy(path: Path) -> object:
    """Read the form before PyTorch 1.6: five pickles, then the numbers of all storages.

    The pickles are a magic number, the form's version, the machine's types, the content, and the
    keys of the storages in the order of their numbers.
    """
    length = path.stat().st_size
    storages: dict[str, NDArray[Any]] = {}

    def find_storage(dtype: str, key: str, count: int) -> NDArray[Any]:
        if key not in storages:
            if count * np.dtype(dtype).itemsize > length:
                raise ValueError("the file is shorter than its tensors")
            storages[key] = np.zeros(count, dtype)
        return storages[key]

    with path.open("rb") as file:
        unpickle = lambda: _Unpickler(file, find_storage).load()  # noqa: E731
        if (unpickle(), unpickle()) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
            raise ValueError("it does not begin as a PyTorch file does")
        _check_little_endian(unpickle()["little_endian"])
        content = unpickle()
        keys = unpickle()
        if sorted(keys) != sorted(storages):
            raise ValueError("its tensors and its stored numbers do not belong together")
        for key in keys:
            storage = storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != len(storage):
                raise ValueError(f"{len(storage)} numbers are expected, not {count}")
            storage[:] = np.frombuffer(file.read(storage.nbytes), storage.dtype)
    return content


def _check_little_endian(is_little: object) -> None:
    if not is_little:
        raise ValueError("its numbers are big-endian")


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, text, and arrays that share the storages' memory.

    Whatever a pickle can call is found by `find_class`: a dictionary of C and two bound methods,
    which it can't change either.
    """

    def __init__(self, file: IO[bytes], find_storage: FindStorage) -> None:
        super().__init__(file)
        self.find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__") or (module, name) == ("collections", "OrderedDict"):
            return OrderedDict  # a module's attributes are those of the dictionary
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._lay_tensor
        is_list = module == "torch.jit._pickle" and name.startswith("build_")
        if is_list or (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._take_first
        raise ValueError(f"its pickle asks for {module}.{name}, which builds no tensor")

    def persistent_load(self, identifier: Any) -> NDArray[Any]:
        kind, dtype, key, _, count, *_ = identifier
        if kind != "storage" or dtype not in STORAGES.values():
            raise ValueError(f"{kind} {dtype} is no storage of known numbers")
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage has no key or no size")
        return self.find_storage(dtype, key, count)

    def _take_first(self, value: object, *_: object) -> object:
        return value

    def _lay_tensor(
        self,
        storage: NDArray[Any],
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_: object,
    ) -> NDArray[Any]:
        """Lay a tensor over stored numbers; offset and strides count numbers."""
        if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
            raise ValueError("a tensor has negative sizes")
        last = offset + sum(
            (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
        )
        count = int(np.prod(shape, dtype=object))
        if count > len(storage) or (count and last >= len(storage)):
            raise ValueError("a tensor reaches beyond its stored numbers")
        steps = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _list_arrays(name: str, value: object) -> Iterator[tuple[str, NDArray[Any]]]:
    """List the arrays of nested dictionaries and modules, by their keys joined with dots."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in (*value.items(), *getattr(value, "__dict__", {}).items()):
            yield from _list_arrays(f"{name}.{key}" if name else str(key), inner)
