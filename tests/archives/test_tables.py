"""Tables in the forms that programs write."""

import csv
import io

import pytest
import xlwt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfmammo.archives.tables import read_table
from tfmammo.errors import ArchiveError

# cells as people write them: no control characters, and none that another spelling replaces
CELLS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S")) | st.sampled_from("ÄöéßŁ"),
    max_size=12,
).filter(lambda cell: cell.lower() not in ("nan", "none", "null", "n/a", "na", "<na>", "nat"))


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5),
    separator=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_a_program_wrote_is_read(tmp_path, rows, separator, end, encoding):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(
        [("File Name", "b", "C"), *rows]
    )
    (tmp_path / "a.csv").write_bytes(text.getvalue().encode(encoding))
    expected = [
        dict(zip(("file_name", "b", "c"), ("" if c in "-?" else c for c in cells), strict=True))
        for cells in rows
        if any(cells)
    ]
    assert [row for _, row in read_table(tmp_path / "a.csv", ["file_name"], True)] == expected


def test_what_programs_write_for_nothing_is_blank(tmp_path):
    words = ["nan", "NaN", "None", "NULL", "n/a", "<NA>", " - ", "?", "  "]
    (tmp_path / "a.csv").write_text("file,x\n" + "".join(f"a,{word}\n" for word in words))
    assert {row["x"] for _, row in read_table(tmp_path / "a.csv")} == {""}


def test_numbers_of_old_excel(tmp_path):
    book = xlwt.Workbook()
    sheet = book.add_sheet("a")
    for place, cells in enumerate([("File Name", "x"), (20586908.0, 0.25), (12.0, "")]):
        for column, cell in enumerate(cells):
            sheet.write(place, column, cell)
    book.save(str(tmp_path / "a.xls"))
    assert read_table(tmp_path / "a.xls") == [
        (2, {"file_name": "20586908", "x": "0.25"}),
        (3, {"file_name": "12", "x": ""}),
    ]


def test_rows_of_another_length(tmp_path):
    (tmp_path / "a.csv").write_text("file,x\na\nb,1,2\n")
    assert read_table(tmp_path / "a.csv") == [
        (2, {"file": "a", "x": ""}),
        (3, {"file": "b", "x": "1"}),
    ]
    with pytest.raises(ArchiveError, match="row 2 has 1 cells, the first line 2"):
        read_table(tmp_path / "a.csv", strict=True)


@pytest.mark.parametrize("name", ["a.csv", "a.xls", "nowhere.csv"])
def test_what_is_no_table(tmp_path, name):
    if name != "nowhere.csv":
        (tmp_path / name).write_bytes(b'file,"' + b"\xff" * 300_000)
    with pytest.raises(ArchiveError, match=f"{name}: can't be read as"):
        read_table(tmp_path / name)
