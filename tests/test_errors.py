import pytest

from tfmammo.errors import ArchiveError, ConfigError, DataError, name_key


@pytest.mark.parametrize(
    ("key", "message", "named"),
    [
        ("real", "data.root: no such folder: x", "real.root: no such folder: x"),
        ("systems.can", "data.size: 3 is odd", "systems.can.size: 3 is odd"),
        ("data", "data.root: no such folder: x", "data.root: no such folder: x"),
        ("data.split_file", "data.split_file: is of x", "data.split_file: is of x"),
        ("data.split_file", "x.json: can't be read", "data.split_file: x.json: can't be read"),
        ("training.initial", "runs/x: no such run", "training.initial: runs/x: no such run"),
    ],
)
@pytest.mark.parametrize("kind", [ArchiveError, ConfigError, DataError])
def test_an_error_names_the_key(kind, key, message, named):
    with pytest.raises(kind) as raised, name_key(key):
        raise kind(message)
    assert type(raised.value) is kind and str(raised.value) == named


def test_a_bug_keeps_its_message():
    with pytest.raises(ValueError, match="^negative$"), name_key("real"):
        raise ValueError("negative")
