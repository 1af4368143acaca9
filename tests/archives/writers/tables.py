"""Write tables as programs do."""

import csv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_XML = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], separator: str = ",") -> None:
    """Write rows, whose columns are in the order of their first mention."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(columns), delimiter=separator)
        table.writeheader()
        table.writerows(rows)


def write_xlsx(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write a workbook as Excel does: text is shared, blank cells are not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words: list[str] = []
    lines = []
    for number, cells in enumerate(rows, start=1):
        line = ""
        for place, cell in enumerate(cells):
            name = f"{chr(65 + place)}{number}"
            if isinstance(cell, str) and cell:
                line += f'<c r="{name}" t="s"><v>{len(words)}</v></c>'
                words.append(f"<si><t>{escape(cell)}</t></si>")
            elif cell not in ("", None):
                line += f'<c r="{name}"><v>{float(cell)}</v></c>'
        lines.append(f'<row r="{number}">{line}</row>')
    sheet = f'<worksheet xmlns="{_XML}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    write_parts(path, {"sheet1": sheet}, f'<sst xmlns="{_XML}">{"".join(words)}</sst>')


def write_parts(path: Path, sheets: Mapping[str, str], words: str = "<sst/>") -> None:
    """Write a workbook of the XML of its sheets, in the order of its tabs, and of shared text."""
    tabs = "".join(f'<sheet name="{name}" r:id="{name}"/>' for name in sheets)
    targets = "".join(
        f'<Relationship Id="{name}" Target="worksheets/{name}.xml"/>' for name in sorted(sheets)
    )
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{_XML}" xmlns:r="{_LINKS}"><sheets>{tabs}</sheets></workbook>',
        )
        book.writestr("xl/_rels/workbook.xml.rels", f"<Relationships>{targets}</Relationships>")
        book.writestr("xl/sharedStrings.xml", words)
        for name, content in sheets.items():
            book.writestr(f"xl/worksheets/{name}.xml", content)
