"""Pages of Markdown, and the same as one HTML file with pictures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from markdown_it import MarkdownIt

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

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def escape(text: str) -> str:
    """Write a text that is not Markdown, such as a file's name, so that a page shows it as it is.

    Line breaks become spaces.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def say_count(number: int, noun: str) -> str:
    """Write a number with its noun, "1 image" or "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def tabulate(header: Sequence[str], body: Iterable[Sequence[str]], words: int = 1) -> str:
    """Write a table in Markdown; line breaks in cells become spaces.

    Args:
        header: The headings.
        body: Lines of cells.
        words: How many of the first columns are of words; the others are of numbers.
    """
    rule = ["---:" if column >= words else "---" for column in range(len(header))]
    lines = (header, rule, *body)
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def show_commands(*commands: str) -> str:
    """Write commands, a line each, as a block of code."""
    text = "\n".join(commands)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)  # a shorter one in the text does not end the block
    return f"{fence}\n{text}\n{fence}"


def show_picture(key: str, title: str) -> str:
    """Write the place of a picture in an HTML page, by its key among those of the page."""
    return f"![{escape(title)}]({quote(key)})"


def render_html(title: str, blocks: Iterable[str], pictures: Mapping[str, bytes]) -> str:
    """Render a page as one HTML file without links to other files.

    Args:
        title: The page's title, as plain text.
        blocks: Paragraphs, headings, tables and the like, in Markdown. HTML in them is shown as
            text; what is not ours must go through `escape`.
        pictures: Key of `show_picture` -> PNG or JPEG.
    """
    sources = {quote(key): _encode(content) for key, content in pictures.items()}
    tokens = MARKDOWN.parse("\n\n".join(blocks))
    for token in tokens:
        for inner in token.children or ():
            if inner.type == "image":
                inner.attrs["src"] = sources[str(inner.attrs["src"])]
    body = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n"
        "</html>\n"
    )


def _encode(picture: bytes) -> str:
    """Encode a PNG or JPEG file as a URL."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
