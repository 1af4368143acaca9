"""What the evaluate scripts share."""

from argparse import Namespace

import pytest

from tfmammo.config import Frozen
from tfmammo.errors import ConfigError
from tfmammo.evaluation import script


class Settings(Frozen):
    rows: int = 1


def test_an_output_that_is_no_folder_is_refused_before_anything_is_computed(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("rows: 2\n")
    output = tmp_path / "table.md"
    output.touch()
    arguments = Namespace(config=config, set=[], output=output, print_config=False)
    with pytest.raises(ConfigError, match="table.md"):
        script.run_with(arguments, Settings, lambda *_: pytest.fail("it was computed"), "", "")
