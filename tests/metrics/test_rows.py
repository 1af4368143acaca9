import math
from pathlib import Path

import numpy as np
import pytest

from tfmammo.errors import DataError
from tfmammo.metrics.rows import COLUMNS, Fact, read_facts, write_facts

FACTS = [
    Fact("means", "", "CAN", "", "dice", "%", 89.25, 86.0, 92.5, 10, 24, "bootstrap by patient"),
    Fact("differences", "fold=0;run=a, b", "CAN", 'a "U-Net"', "dice", "%", -1e-5, p=1.0),
    Fact("froc", "", "ours", "", "tpr@0.5", "", math.nan, patients=0),
]


def test_facts_survive_a_round_trip(tmp_path: Path) -> None:
    write_facts(tmp_path / "rows.csv", FACTS)
    assert read_facts(tmp_path / "rows.csv") == FACTS


def test_numbers_are_written_in_short_and_unknown_ones_not_at_all(tmp_path: Path) -> None:
    facts = [Fact("t", "", "m", "", "x", "", np.float64(2 / 3), -0.0, np.nan, 3, p=np.float32(0.1))]
    write_facts(tmp_path / "rows.csv", facts)
    text = (tmp_path / "rows.csv").read_text()
    assert text == f"{','.join(COLUMNS)}\nt,,m,,x,,0.666667,0,,3,,,0.1,\n"
    assert COLUMNS[:3] == ("table", "subset", "model") and len(COLUMNS) == 14


@pytest.mark.parametrize(
    "content",
    [
        "table,value\nmeans,1\n",
        ",".join(COLUMNS) + "\nmeans,,m,,x,,many,,,,,,,\n",
        ",".join(COLUMNS) + "\nmeans,,m\n",
        ",".join(COLUMNS) + "\n" + "," * 14 + "\n",
        "",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=r"rows\.csv"):
        read_facts(tmp_path / "rows.csv")
    with pytest.raises(DataError, match="missing"):
        read_facts(tmp_path / "missing.csv")
