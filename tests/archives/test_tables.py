"""Tables in the forms that programs write."""

import csv
import io
import logging
import unicodedata

import pytest
import xlwt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.archives.writers.tables import write_parts, write_xlsx
from tfmammo.archives.metadata import read_metadata
from tfmammo.archives.tables import read_table
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Skipped, hash_patient

# what programs write for nothing
BLANKS = ("", " ", "nan", "NaN", "None", "NULL", "n/a", "NA", "<NA>", "NaT", " - ", "?")
BLANK_WORDS = {word.strip().lower() for word in BLANKS}
LOOK_LIKE_NUMBERS = ("2020-01-02", "02.01.2020", "1/2/2020", "20:10", "12e4", "1.2.3", "-12")


def write(path, rows, separator=",", end="\n", encoding="utf-8"):
    """Write a table as .csv, .xls or .xlsx, by the ending."""
    if path.suffix == ".xlsx":
        write_xlsx(path, rows)
    elif path.suffix == ".xls":
        book = xlwt.Workbook()
        sheet = book.add_sheet("a")
        for row, cells in enumerate(rows):
            for column, cell in enumerate(cells):
                sheet.write(row, column, cell)
        book.save(str(path))
    else:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
        path.write_bytes(text.getvalue().encode(encoding))
    return path


ENDS = st.sampled_from(["\n", "\r\n"])
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
FORMS = st.one_of(
    st.tuples(st.just("metadata.csv"), st.sampled_from(",;\t"), ENDS, ENCODINGS),
    st.tuples(st.sampled_from(["metadata.xlsx", "metadata.xls"])),
)


def spell_number(number, width):
    """A whole number, and the ways in which programs and people write it."""
    digits = str(number)
    spellings = [
        digits,
        digits.zfill(width),
        f"{digits}.0",
        f"{digits},00",
        f"{digits}.",
        f"+{digits}",
        f"{number:.{max(1, len(digits) - 1)}E}",
        digits.translate({48 + digit: 0xFF10 + digit for digit in range(10)}),  # full width
        number,
        float(number),
    ]
    return ("number", number), spellings


def spell_name(name):
    """A name that is no number, and its spellings."""
    canonical = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    spellings = [name, name.upper() if name.upper().casefold() == name.casefold() else name]
    spellings += [unicodedata.normalize("NFD", name), f"{name[:1]}\u200b{name[1:]}"]
    return ("name", canonical), spellings


LETTERS = st.characters(categories=("Ll", "Lu"), max_codepoint=0x24F)
NAMES = st.text(LETTERS, min_size=1, max_size=8).filter(
    lambda name: spell_name(name)[0][1] not in BLANK_WORDS
)
PATIENTS = st.one_of(
    st.builds(spell_number, st.integers(0, 10**12), st.integers(1, 15)),
    st.builds(spell_name, NAMES | st.sampled_from(LOOK_LIKE_NUMBERS)),
    st.just((None, BLANKS)),
)


@st.composite
def written_patients(draw):
    """Cells of at most three patients, who is None for nobody: (who, cell)."""
    patients = draw(st.lists(PATIENTS, min_size=1, max_size=3))
    cells = []
    for who, spellings in draw(st.lists(st.sampled_from(patients), min_size=2, max_size=8)):
        cell = draw(st.sampled_from(spellings))
        pad = draw(st.sampled_from(["{}", " {}", "{}  ", "\ufeff{}"]))
        cells.append((who, pad.format(cell) if isinstance(cell, str) else cell))
    return cells


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=written_patients(), form=FORMS)
def test_one_patient_is_one_and_two_are_two(tmp_path, cells, form):
    """Whatever program wrote a table: one pseudonym for all spellings, and for nobody else."""
    rows = [
        ("File", "Patient"),
        *((f"{number}.png", cell) for number, (_, cell) in enumerate(cells)),
    ]
    path = write(tmp_path / form[0], rows, *form[1:])
    table = [row["patient"] for _, row in read_table(path, ["file"], strict=True)]
    assert len(table) == len(cells)
    hashes = [hash_patient("a", cell) if cell else None for cell in table]
    if path.suffix == ".csv":
        logging.disable(logging.CRITICAL)
        metadata = read_metadata(path, Skipped())
        logging.disable(logging.NOTSET)
        assert [row.get("patient") is None for row in metadata.values()] == [
            who is None for who, _ in cells
        ]
    owners = {}
    for (who, cell), hashed in zip(cells, hashes, strict=True):
        assert (who is None) == (hashed is None), cell
        assert owners.setdefault(hashed, who) == who, f"{cell!r} has another's pseudonym"
    assert len(owners) == len({who for who, _ in cells}), "one patient has two pseudonyms"


# cells as people write them: no control characters, and none that another spelling replaces
CELLS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S")) | st.sampled_from("ÄöéßŁ"),
    max_size=12,
).filter(lambda cell: cell.lower() not in BLANK_WORDS - {""})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5), form=FORMS)
def test_what_a_program_wrote_is_read(tmp_path, rows, form):
    path = write(tmp_path / form[0], [("File Name", "b", "C"), *rows], *form[1:])
    expected = [dict(zip(("file_name", "b", "c"), row, strict=True)) for row in rows if any(row)]
    assert [row for _, row in read_table(path, ["file_name"])] == expected


def test_a_cell_of_a_workbook_may_be_rich_or_inline_and_its_first_tab_is_read(tmp_path):
    words = "<sst><si><r><t>fi</t></r><r><t>le</t></r></si></sst>"
    inline = '<c r="C2" t="inlineStr"><is><t>x</t></is></c><c r="D2" t="str"><v>y</v></c>'
    sheet = f'<row><c r="C1" t="s"><v>0</v></c></row><row>{inline}</row>'
    sheets = {
        name: f"<worksheet><sheetData>{content}</sheetData></worksheet>"
        for name, content in (("sheet2", sheet), ("sheet1", ""))  # as after moving a tab
    }
    write_parts(tmp_path / "a.xlsx", sheets, words)
    assert read_table(tmp_path / "a.xlsx", ["file"])[0][1] == {"": "", "file": "x"}


@pytest.mark.parametrize(
    "sheet",
    [
        '<w><sheetData><row r="99999999"/></sheetData></w>',
        '<w><sheetData><row><c r="ZZZZZZ1"><v>1</v></c></row></sheetData></w>',
        '<w><sheetData><row><c r="A1" t="s"><v>5</v></c></row></sheetData></w>',
        "<w>",
    ],
)
def test_a_workbook_that_claims_too_much_or_is_damaged(tmp_path, sheet):
    write_parts(tmp_path / "a.xlsx", {"sheet1": sheet})
    with pytest.raises(ArchiveError, match=r"a\.xlsx: can't be read as an Excel sheet"):
        read_table(tmp_path / "a.xlsx")
