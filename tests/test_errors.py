import pytest

from tfmammo.errors import ArchiveError, ConfigError, DataError, name_key


@pytest.mark.parametrize(
    ("key", "message", "named"),
    [
        ("real", "data.root: no such folder: x", "real.root: no such folder: x"),
        ("systems.can", "data.size: 3 is odd", "systems.can.size: 3 is odd"),
        ("data.split_file", "data.split_file: is of x", "data.split_file: is of x"),
        ("data.split_file", "x.json: can't be read", "data.split_file: x.json: can't be read"),
    ],
)
@pytest.mark.parametrize("kind", [ArchiveError, ConfigError, DataError])
def test_an_error_names_the_key(kind, key, message, named):
    with pytest.raises(kind) as raised, name_key(key):
        raise kind(message)
    assert type(raised.value) is kind and str(raised.value) == named
