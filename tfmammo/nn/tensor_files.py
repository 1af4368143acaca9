"""Named arrays from files of weights: .npz, .safetensors, and PyTorch's .pth and .pt.

Nothing in a file is executed, and PyTorch is not needed. PyTorch's files hold a pickle, which is a
program. It is followed here opcode by opcode: those that build containers, numbers and text, and
the calls that lay a tensor over stored numbers. Any other opcode or call is an error. The code of a
TorchScript file is not looked at; only the tensors of its modules are.
"""

from __future__ import annotations

import io
import json
import mmap
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfmammo.errors import WeightsError

Arrays = dict[str, NDArray[Any]]
FindStorage = Callable[[Any], NDArray[Any]]  # a pickle's persistent identifier -> stored numbers

STORAGES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
}
# The first pickle of a PyTorch file that is no zip archive.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

MOST_ENTRIES = 100_000  # of all dictionaries of a file
MOST_SHARED = 4  # tensors may share numbers, as tied weights do; sizes of the file in all

LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINSTRING",
    "SHORT_BINSTRING",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
FAULTS = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,  # of numpy: a header that claims any size
    RuntimeError,  # of zipfile: an unknown form, or a password
    zipfile.BadZipFile,
)


class Reference(NamedTuple):
    """A Python name in a pickle, "MODULE NAME"; it is never looked up."""

    name: str


class Module(dict[str, Any]):
    """An object of TorchScript: its attributes."""


def read_npz(path: Path) -> Arrays:
    """Read the arrays of a .npz file.

    Raises:
        WeightsError: The file can't be read, or holds Python objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except FAULTS as error:
        raise _refuse(path, ".npz", error) from None


def read_safetensors(path: Path) -> Arrays:
    """Read the float32 tensors of a .safetensors file.

    Eight bytes hold the length of a JSON header (name -> dtype, shape, offsets). The tensors follow
    it.

    Raises:
        WeightsError: The file can't be read.
    """
    try:
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        tensors = {}
        size = 0
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            dtype = entry["dtype"]
            shape = entry["shape"]
            offsets = entry["data_offsets"]
            if dtype == "F32":
                first, last = offsets
                data = content[start + first : start + last]
                size += len(data)
                if size > len(content):
                    raise ValueError("its tensors are larger than the file")
                tensors[key] = np.frombuffer(data, "<f4").reshape(shape)
        return tensors
    except FAULTS as error:
        raise _refuse(path, ".safetensors", error) from None


def read_torch(path: Path) -> Arrays:
    """Read the tensors of a state dict or a TorchScript module, of any version of PyTorch.

    Returns:
        The name of a tensor, modules' names before it ("features.0.weight"), -> the tensor, in the
        order of the file.

    Raises:
        WeightsError: The file can't be read, or its pickle would do anything but build tensors.
    """
    try:
        is_archive = zipfile.is_zipfile(path)
        content = _read_archive(path) if is_archive else _read_legacy(path)
        views = _flatten(content)
        if sum(view.nbytes for view in views.values()) > MOST_SHARED * path.stat().st_size:
            raise ValueError("its tensors are much larger than the file")
        tensors = {name: view.copy() for name, view in views.items()}
    except FAULTS as error:
        raise _refuse(path, "a PyTorch file", error) from None
    if not tensors:
        raise WeightsError(f"{path}: holds no PyTorch tensors by name")
    return tensors


def _read_archive(path: Path) -> object:
    """Read a zip archive: NAME/data.pkl, and one file of numbers for each storage."""
    with zipfile.ZipFile(path) as archive:
        (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = program.removesuffix("data.pkl")
        if archive.namelist().count(folder + "byteorder"):
            _check_little_endian(_read_member(archive, folder + "byteorder") == b"little")
        storages: dict[str, NDArray[Any]] = {}

        def find_storage(identifier: Any) -> NDArray[Any]:
            dtype, key, count = _parse_storage(identifier)
            if key not in storages:
                data = _read_member(archive, f"{folder}data/{key}")
                storages[key] = np.frombuffer(data, dtype, count)
            return storages[key]

        return _follow(io.BytesIO(_read_member(archive, program)), find_storage)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        # What is stored as it is can't grow beyond the file.
        raise ValueError(f"{name} is compressed, which PyTorch never does")
    return archive.read(name)


def _read_legacy(path: Path) -> object:
    """Read the form before PyTorch 1.6: five pickles, then the numbers of all storages.

    The pickles are a magic number, the form's version, the machine's types, the content, and the
    keys of the storages in the order of their numbers.
    """
    length = path.stat().st_size
    storages: dict[str, NDArray[Any]] = {}

    def find_storage(identifier: Any) -> NDArray[Any]:
        dtype, key, count = _parse_storage(identifier)
        if key not in storages:
            if count * np.dtype(dtype).itemsize > length:
                raise ValueError("the file is shorter than its tensors")
            storages[key] = np.zeros(count, dtype)
        return storages[key]

    def find_nothing(identifier: Any) -> NDArray[Any]:
        raise ValueError("a tensor stands where none belongs")

    # A map, because it reads no further than the file: a damaged length can't ask for memory.
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if (_follow(file, find_nothing), _follow(file, find_nothing)) != (
            LEGACY_MAGIC,
            LEGACY_PROTOCOL,
        ):
            raise ValueError("it begins as no PyTorch file does")
        machine: Any = _follow(file, find_nothing)
        _check_little_endian(machine["little_endian"])
        content = _follow(file, find_storage)
        keys: Any = _follow(file, find_nothing)
        if sorted(keys) != sorted(storages):
            raise ValueError("its tensors and its stored numbers do not belong together")
        for key in keys:
            storage = storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != len(storage):
                raise ValueError(f"{len(storage)} numbers are expected, not {count}")
            storage[:] = np.frombuffer(file.read(storage.nbytes), storage.dtype)
    return content


def _parse_storage(identifier: Any) -> tuple[str, str, int]:
    """Return dtype, key and count of what a persistent identifier names."""
    kind, storage, key, _, count, *_ = identifier
    if kind != "storage" or storage.name not in STORAGES:
        raise ValueError(f"{kind} {storage} is no storage of known numbers")
    if not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise ValueError("a storage has no key or no size")
    return STORAGES[storage.name], key, count


def _check_little_endian(is_little: object) -> None:
    if not is_little:
        raise ValueError("its numbers are big-endian")


def _follow(program: io.BytesIO | mmap.mmap, find_storage: FindStorage) -> object:
    """Follow one pickle up to its end, and build what it describes without calling anything.

    Args:
        program: A file at the first byte of the pickle; afterwards it stands behind the pickle.
        find_storage: Gives the numbers that the pickle refers to.

    Returns:
        Containers, numbers, text, arrays that share the storages' memory, and `Module`.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_marked() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    # Its stubs do not know that a map can be read.
    for opcode, argument, _ in pickletools.genops(program):  # type: ignore[arg-type]
        name = opcode.name
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            continue
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(pop_marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            items = stack[-size:]
            del stack[-size:]
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else pop_marked()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                marks.append(len(stack) - 2)
            items = pop_marked()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(Reference(argument))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack.append(Reference(f"{stack.pop()} {attribute}"))
        elif name == "BINPERSID":
            stack.append(find_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_build(stack.pop(), arguments))
        elif name == "NEWOBJ":
            stack.pop()
            stack.append(_build_module(stack.pop()))
        elif name == "BUILD":
            state = stack.pop()
            # A state dict is given `_metadata` in this way, which is no tensor.
            if isinstance(stack[-1], Module):
                stack[-1].update(state)
        elif name == "STOP":
            return stack.pop()
        else:
            raise ValueError(f"its pickle has the opcode {name}, which no tensor needs")
    raise EOFError("its pickle has no end")


def _build(function: Any, arguments: Any) -> object:
    """Return what a call in a pickle would build, where that is a container or a tensor."""
    name = function.name
    if name == "collections OrderedDict":
        return dict(*arguments)
    if name == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, strides, *_ = arguments
        return _lay_tensor(storage, offset, shape, strides)
    if name == "torch._utils _rebuild_parameter" or name.startswith("torch.jit._pickle build_"):
        return arguments[0]
    raise ValueError(f"its pickle calls {name.replace(' ', '.')}, which builds no tensor")


def _build_module(reference: Any) -> Module:
    if not reference.name.startswith("__torch__."):
        name = reference.name.replace(" ", ".")
        raise ValueError(f"its pickle makes a {name}, which is no module")
    return Module()


def _lay_tensor(
    storage: NDArray[Any], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> NDArray[Any]:
    """Lay a tensor over stored numbers; offset and strides count numbers."""
    if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError("a tensor has negative sizes")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    count = int(np.prod(shape, dtype=object))
    if count > len(storage) or (count and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its stored numbers")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _flatten(content: object) -> Arrays:
    """Collect the arrays of nested dictionaries, by their keys joined with dots."""
    tensors: Arrays = {}
    pending = [("", content)]
    visited = 0
    while pending:
        prefix, value = pending.pop()
        visited += 1
        if visited > MOST_ENTRIES:  # dictionaries may hold the same one again and again
            raise ValueError(f"its dictionaries have more than {MOST_ENTRIES:,} entries")
        if isinstance(value, np.ndarray):
            tensors[prefix.removesuffix(".")] = value
        elif isinstance(value, dict):
            pending += [(f"{prefix}{key}.", inner) for key, inner in reversed(value.items())]
    return tensors


def _refuse(path: Path, form: str, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split())[:300] or error.__class__.__name__
    return WeightsError(f"{path}: can't be read as {form} ({reason})")
