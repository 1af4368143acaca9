"""PyTorch's files read without PyTorch: against PyTorch itself, and files made to do harm."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

from tfmammo.errors import WeightsError
from tfmammo.nn import tensor_files


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


class Call:
    """Pickled as a call of one of Python's functions."""

    def __init__(self, function, *arguments):
        self.function = function
        self.arguments = arguments

    def __reduce__(self):
        return self.function, self.arguments


def write_archive(path, content, storages=None, compression=zipfile.ZIP_STORED):
    """The form of PyTorch from 1.6 on: a zip archive of a pickle and of raw numbers."""
    program = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("name/data.pkl", program)
        for key, data in (storages or {}).items():
            archive.writestr(f"name/data/{key}", data)
    return path


def tensor_program(count=6, offset=0, shape=(2, 3), strides=(3, 1), kind="FloatStorage"):
    """The pickle of {"x": tensor}, assembled by hand from its opcodes."""

    def number(value):
        return b"J" + struct.pack("<i", value)

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu")
        + number(count) + b"tQ"
    )  # fmt: skip
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape)
        + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    return b"\x80\x02}" + text("x") + tensor + b"s."


SIX = struct.pack("<6f", 0, 1, 2, 3, 4, 5)
COUNTED = struct.pack("<q", 6) + SIX


def test_a_tensor_by_hand(tmp_path):
    path = write_archive(tmp_path / "x.pth", tensor_program(), {"0": SIX})
    found = tensor_files.read_torch(path)
    assert found.keys() == {"x"} and found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], [[0, 1, 2], [3, 4, 5]])
    program = tensor_program(offset=1, shape=(2, 2), strides=(1, 3))
    found = tensor_files.read_torch(write_archive(tmp_path / "y.pth", program, {"0": SIX}))
    np.testing.assert_array_equal(found["x"], [[1, 4], [2, 5]])


def test_a_module_of_torchscript_by_hand(tmp_path):
    tensor = tensor_program()[3:-2].removeprefix(b"X\1\0\0\0x")
    entry = b"}X\1\0\0\0w" + tensor + b"s"
    inner = b"c__torch__.torch.nn\nConv2d\n)\x81" + entry + b"b"
    outer = b"c__torch__\nNet\n)\x81}X\4\0\0\0conv" + inner + b"sb."
    path = write_archive(tmp_path / "x.pt", b"\x80\x02" + outer, {"0": SIX})
    found = tensor_files.read_torch(path)
    assert found.keys() == {"conv.w"}
    np.testing.assert_array_equal(found["conv.w"], [[0, 1, 2], [3, 4, 5]])


def write_legacy(path, program, keys=("0",), numbers=COUNTED):
    """The form before PyTorch 1.6: five pickles, then the numbers."""
    parts = (tensor_files.LEGACY_MAGIC, tensor_files.LEGACY_PROTOCOL, {"little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    path.write_bytes(head + program + pickle.dumps([*keys], 2) + numbers)
    return path


def test_the_form_before_pytorch_1_6(tmp_path):
    path = write_legacy(tmp_path / "x.pth", tensor_program())
    np.testing.assert_array_equal(tensor_files.read_torch(path)["x"], [[0, 1, 2], [3, 4, 5]])
    for keys, numbers, message in (
        (("1",), SIX, "do not belong together"),
        (("0",), struct.pack("<q", 5) + SIX, "6 numbers are expected, not 5"),
        (("0",), struct.pack("<q", 6) + SIX[:-1], "can't be read"),
    ):
        write_legacy(path, tensor_program(), keys, numbers)
        with pytest.raises(WeightsError, match=message):
            tensor_files.read_torch(path)
    write_legacy(path, tensor_program(count=10**6, shape=(1,), strides=(1,)))
    with pytest.raises(WeightsError, match="the file is shorter than its tensors"):
        tensor_files.read_torch(path)


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [True, False])
def test_what_pytorch_writes(tmp_path, legacy):
    torch = pytest.importorskip("torch")  # pip install torch
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    state = network.state_dict() | {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.arange(4).half(),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(9.0)[4:7],
    }
    path = tmp_path / "state.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    found = tensor_files.read_torch(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())
    torch.save({"model": {"a": torch.ones(1)}, "step": 7}, path)
    assert tensor_files.read_torch(path)["model.a"] == 1


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.:DeprecationWarning", "ignore:`torch.jit.:FutureWarning"
)
def test_torchscript(tmp_path):
    torch = pytest.importorskip("torch")  # pip install torch
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(3, 1, 1))
    torch.jit.script(network).save(str(tmp_path / "script.pt"))
    found = tensor_files.read_torch(tmp_path / "script.pt")
    assert list(found) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("function", ["open", "eval"])
def test_a_pickle_that_runs_code_runs_nothing(tmp_path, legacy, function):
    call = Call({"open": open, "eval": eval}[function], str(tmp_path / "made"), "w")
    program = pickle.dumps({"features.0.weight": call}, protocol=2)
    path = tmp_path / "evil.pth"
    write_legacy(path, program, ()) if legacy else write_archive(path, program)
    with pytest.raises(
        WeightsError, match=f"its pickle asks for .*{function}, which builds no ten"
    ):
        tensor_files.read_torch(path)
    assert not (tmp_path / "made").exists()


BAD_PROGRAMS = {
    "a tensor reaches beyond its stored numbers": tensor_program(shape=(2, 4), strides=(4, 1)),
    "a tensor reaches beyond": tensor_program(shape=(10**9, 10**9), strides=(0, 0)),
    "a tensor has negative sizes": tensor_program(offset=-1),
    "torch.BFloat16Storage, which builds no tensor": tensor_program(kind="BFloat16Storage"),
    "buffer is smaller": tensor_program(count=7, shape=(7,), strides=(1,)),
    "a storage has no key or no size": tensor_program(count=-1),
    "its pickle asks for os.system": b"(X\x02\x00\x00\x00lsios\nsystem\n.",
    "asks for os.system, which": b"(cos\nsystem\nX\x02\x00\x00\x00lso.",
    "its pickle asks for os._wrap_close": b"\x80\x02cos\n_wrap_close\n)\x81.",
    # what the pickle may call is not to be changed by it
    "cannot set 'a' attribute of immutable type": b"\x80\x02ccollections\nOrderedDict\n"
    b"N}X\1\0\0\0aK\1s\x86b.",
    "holds no PyTorch tensors by name": b"\x80\x02}.",
}


@pytest.mark.parametrize("message", BAD_PROGRAMS)
def test_bad_programs(tmp_path, message):
    path = write_archive(tmp_path / "bad.pth", BAD_PROGRAMS[message], {"0": SIX})
    with pytest.raises(WeightsError, match=message) as caught:
        tensor_files.read_torch(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_dictionaries_that_hold_the_same_again_and_again(tmp_path):
    content = {}
    for _ in range(40):
        content = {"a": content, "b": content}
    path = write_archive(tmp_path / "deep.pth", content)
    with pytest.raises(WeightsError, match="its dictionaries have more than 100,000 entries"):
        tensor_files.read_torch(path)


def test_tensors_that_lie_over_the_same_numbers_may_be_few(tmp_path):
    entry = tensor_program(1000, shape=(1000,), strides=(1,))[3:-1]
    name = b"X\1\0\0\0"
    for names, fits in ((b"abc", True), (bytes(range(97, 123)), False)):
        entries = b"".join(entry.replace(name + b"x", name + bytes([byte])) for byte in names)
        path = write_archive(
            tmp_path / f"{fits}.pth", b"\x80\x02}" + entries + b".", {"0": bytes(4000)}
        )
        if fits:
            assert set(tensor_files.read_torch(path)) == {"a", "b", "c"}
            continue
        with pytest.raises(WeightsError, match="its tensors are much larger than the file"):
            tensor_files.read_torch(path)


def test_tensors_of_safetensors_are_no_larger_than_their_file(tmp_path):
    entry = {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4000))
    with pytest.raises(WeightsError, match="its tensors are larger than the file"):
        tensor_files.read_safetensors(path)


def test_a_header_that_claims_any_size(tmp_path):
    path = tmp_path / "large.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (35184372088832,), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        archive.writestr("x.npy", content)
    with pytest.raises(WeightsError, match="can't be read as"):
        tensor_files.read_npz(path)


def test_bad_archives(tmp_path):
    program = tensor_program()
    squeezed = write_archive(tmp_path / "a.pth", program, {"0": SIX}, zipfile.ZIP_DEFLATED)
    missing = write_archive(tmp_path / "b.pth", program)
    other = tmp_path / "c.pth"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    big = write_archive(tmp_path / "d.pth", program, {"0": SIX})
    with zipfile.ZipFile(big, "a") as archive:
        archive.writestr("name/byteorder", "big")
    text = tmp_path / "e.pth"
    text.write_bytes(b"nothing")
    empty = tmp_path / "f.pth"
    empty.write_bytes(b"")
    for path, message in (
        (squeezed, "is compressed, which PyTorch never does"),
        (missing, "name/data/0"),
        (other, "can't be read as a PyTorch file"),
        (big, "its numbers are big-endian"),
        (text, "can't be read as a PyTorch file"),
        (empty, "can't be read as a PyTorch file"),
        (tmp_path / "none.pth", "can't be read as a PyTorch file"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            tensor_files.read_torch(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_damaged_file_is_an_error_or_read_as_numbers(tmp_path, legacy):
    """Cut anywhere, or with any byte changed, nothing but a WeightsError comes out."""
    path = tmp_path / "x.pth"
    if legacy:
        write_legacy(path, tensor_program())
    else:
        write_archive(path, tensor_program(), {"0": SIX})
    content = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for case in range(300):
        damaged = bytearray(content)
        if case % 3:
            damaged[random.integers(len(content))] = random.integers(256)
        else:
            del damaged[random.integers(len(content)) :]
        path.write_bytes(damaged)
        try:
            tensor_files.read_torch(path)
        except WeightsError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
