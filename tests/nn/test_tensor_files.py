"""PyTorch's files read without PyTorch: against PyTorch itself, and files made to do harm."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from tfmammo.errors import WeightsError
from tfmammo.nn import tensor_files


class Call:
    """Pickled as a call of one of Python's functions."""

    def __init__(self, function, *arguments):
        self.function = function
        self.arguments = arguments

    def __reduce__(self):
        return self.function, self.arguments


def write_archive(path, content, storages=None):
    """The form of PyTorch from 1.6 on: a zip archive of a pickle and of raw numbers."""
    program = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name/data.pkl", program)
        for key, data in (storages or {}).items():
            archive.writestr(f"name/{key}", data)
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
STORED = {"data/0": SIX}
COUNTED = struct.pack("<q", 6) + SIX


def test_a_tensor_by_hand(tmp_path):
    path = write_archive(tmp_path / "x.pth", tensor_program(), STORED)
    found = tensor_files.read_torch(path)
    assert found.keys() == {"x"} and found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], [[0, 1, 2], [3, 4, 5]])
    program = tensor_program(offset=1, shape=(2, 2), strides=(1, 3))
    found = tensor_files.read_torch(write_archive(tmp_path / "y.pth", program, STORED))
    np.testing.assert_array_equal(found["x"], [[1, 4], [2, 5]])


def test_a_module_of_torchscript_by_hand(tmp_path):
    tensor = tensor_program()[3:-2].removeprefix(b"X\1\0\0\0x")
    entry = b"}X\1\0\0\0w" + tensor + b"s"
    inner = b"c__torch__.torch.nn\nConv2d\n)\x81" + entry + b"b"
    outer = b"c__torch__\nNet\n)\x81}X\4\0\0\0conv" + inner + b"sb."
    path = write_archive(tmp_path / "x.pt", b"\x80\x02" + outer, STORED)
    found = tensor_files.read_torch(path)
    assert found.keys() == {"conv.w"}
    np.testing.assert_array_equal(found["conv.w"], [[0, 1, 2], [3, 4, 5]])


def write_legacy(path, program=None, keys=("0",), numbers=COUNTED):
    """The form before PyTorch 1.6: five pickles, then the numbers."""
    parts = (tensor_files.LEGACY_MAGIC, tensor_files.LEGACY_PROTOCOL, {"little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    program = program or tensor_program()
    path.write_bytes(head + program + pickle.dumps([*keys], 2) + numbers)
    return path


def test_the_form_before_pytorch_1_6(tmp_path):
    path = write_legacy(tmp_path / "x.pth", tensor_program())
    np.testing.assert_array_equal(tensor_files.read_torch(path)["x"], [[0, 1, 2], [3, 4, 5]])


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


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("function", [open, eval])
def test_a_pickle_that_runs_code_runs_nothing(tmp_path, legacy, function):
    call = Call(function, str(tmp_path / "made"), "w")
    program = pickle.dumps({"features.0.weight": call}, protocol=2)
    path = tmp_path / "evil.pth"
    write_legacy(path, program, ()) if legacy else write_archive(path, program)
    with pytest.raises(WeightsError, match=f"evil.pth: .*{function.__name__}, which builds no ten"):
        tensor_files.read_torch(path)
    assert not (tmp_path / "made").exists()


# what a file holds, and the reason that its error gives
BAD_ARCHIVES = [
    (tensor_program(shape=(2, 4), strides=(4, 1)), STORED, "reaches beyond its stored numbers"),
    (tensor_program(shape=(10**9, 10**9), strides=(0, 0)), STORED, "a tensor reaches beyond"),
    (tensor_program(offset=-1), STORED, "a tensor has negative sizes"),
    (tensor_program(kind="BFloat16Storage"), STORED, "torch.BFloat16Storage, which builds no"),
    (tensor_program(count=7, shape=(7,), strides=(1,)), STORED, "buffer is smaller"),
    (tensor_program(count=-1), STORED, "a storage has no key or no size"),
    (tensor_program(), {}, "name/data/0"),
    (tensor_program(), STORED | {"byteorder": b"big"}, "its numbers are big-endian"),
    (b"(X\x02\x00\x00\x00lsios\nsystem\n.", {}, "asks for os.system"),
    (b"(cos\nsystem\nX\x02\x00\x00\x00lso.", {}, "asks for os.system"),
    (b"\x80\x02cos\n_wrap_close\n)\x81.", {}, "asks for os._wrap_close"),
    # what the pickle may call is not to be changed by it
    (b"\x80\x02ccollections\nOrderedDict\nN}X\1\0\0\0aK\1s\x86b.", {}, "immutable type"),
    (b"\x80\x02}.", {}, "contains no named PyTorch tensors"),
]
BAD_LEGACY = [
    ({"keys": ("1",), "numbers": SIX}, "do not belong together"),
    ({"numbers": struct.pack("<q", 5) + SIX}, "6 numbers are expected, not 5"),
    ({"numbers": struct.pack("<q", 6) + SIX[:-1]}, "can't be read"),
    (
        {"program": tensor_program(count=10**6, shape=(1,), strides=(1,))},
        "the file is shorter than its tensors",
    ),
]


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        *(
            (lambda path, program=program, stored=stored: write_archive(path, program, stored), why)
            for program, stored, why in BAD_ARCHIVES
        ),
        *(
            (lambda path, changes=changes: write_legacy(path, **changes), why)
            for changes, why in BAD_LEGACY
        ),
        (lambda path: path.write_bytes(b"nothing"), "can't be read"),
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: None, "can't be read"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, write, reason):
    path = tmp_path / "bad.pth"
    write(path)
    with pytest.raises(WeightsError, match=reason) as caught:
        tensor_files.read_torch(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_damaged_file_is_an_error_or_read_as_numbers(tmp_path, legacy):
    """Cut anywhere, or with any byte changed, nothing but a WeightsError comes out."""
    path = tmp_path / "x.pth"
    write_legacy(path) if legacy else write_archive(path, tensor_program(), STORED)
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
