"""Pages of text, tables, commands and pictures, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-size: 13px; }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left;
  vertical-align: top; }
td + td, th + th { font-variant-numeric: tabular-nums; }
pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 12px; }
img { max-width: 100%; border: 1px solid #ddd; }
h2 { margin-top: 2.5rem; border-top: 2px solid #1b1b1b; padding-top: .6rem; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table."""

    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Code:
    """Commands."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A picture in an HTML page, by its key among those of the page; it may be missing."""

    key: str
    title: str


Block = Heading | Text | Points | Grid | Code | Picture


def render_markdown(blocks: Sequence[Block]) -> str:
    """Render the page in Markdown, without its pictures."""
    parts = (_render_markdown(block) for block in blocks)
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Points(sentences):
            return "\n".join(f"- {sentence}" for sentence in sentences)
        case Grid(header, body):
            lines = [header, ("---",) * len(header), *body]
            return "\n".join(
                f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines
            )
        case Code(lines):
            return "\n".join(["```", *lines, "```"])
        case Picture():
            return ""


def render_html(title: str, blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """Render the page, with pictures (PNG or JPEG by key), as one HTML file without links."""
    body = "\n".join(_render_html(block, pictures) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n"
        "</html>\n"
    )


def _render_html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Points(sentences):
            return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in sentences)}</ul>"
        case Grid(header, body):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            rows = "".join(
                f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>\n"
                for line in body
            )
            return f"<table>\n<tr>{head}</tr>\n{rows}</table>"
        case Code(lines):
            return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
        case Picture(key, title):
            return _render_picture(title, pictures[key]) if key in pictures else ""


def _render_picture(title: str, content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(content).decode("ascii")
    return f'<p><img alt="{html.escape(title)}" src="data:image/{kind};base64,{data}"></p>'
