"""Pages: what is not ours stays text, and pictures are inside."""

import base64
import re

import pytest

from tfmammo import document

PNG = b"\x89PNG\r\n\x1a\n"
SLY = [
    "<img src=x onerror=alert(1)>",
    "a|b",
    "a\\|b",
    "a\\",
    "*a* _b_ __c__ `d` ~~~",
    "[x](http://y) ![x](y) <http://y>",
    "[a]: http://y",
    "&lt; &amp;",
    "# a",
    "- a",
    "1. a",
    "> a",
    "---",
    "```",
]


def render(*blocks, pictures=None):
    page = document.render_html("T", blocks, pictures or {})
    return page.partition("<body>\n")[2].partition("</body>")[0]


def escape_html(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@pytest.mark.parametrize("text", SLY)
def test_a_text_that_is_escaped_is_shown_as_it_is(text):
    shown = escape_html(text)
    safe = document.escape(text)
    assert render(safe, f"## {safe}") == f"<p>{shown}</p>\n<h2>{shown}</h2>\n"
    table = render(document.tabulate(["", safe], [[safe, "1"]]))
    assert f"<td>{shown}</td>" in table and f">{shown}</th>" in table
    assert table.count("<td") == table.count("<th>") + table.count("<th ") == 2
    picture = render(document.show_picture(text, text), pictures={text: PNG})
    assert f'alt="{shown}"' in picture


@pytest.mark.parametrize("text", SLY)
def test_commands_are_shown_as_they_are(text):
    block = document.show_commands("tfmammo", text, "end")
    assert render(block, "x") == (
        f"<pre><code>tfmammo\n{escape_html(text)}\nend\n</code></pre>\n<p>x</p>\n"
    )


def test_line_breaks_end_no_block():
    assert render(document.escape("a\n\n# b")) == "<p>a # b</p>\n"
    assert render(document.tabulate(["a"], [["b\nc"]])).count("<tr>") == 2


def test_html_is_text():
    assert render("<script>x</script>") == "<p>&lt;script&gt;x&lt;/script&gt;</p>\n"
    page = document.render_html("<b>", [], {})
    assert "<title>&lt;b&gt;</title>" in page


def test_pictures_are_in_the_page():
    pictures = {"a b.png": PNG, "c": b"\xff\xd8\xff"}
    body = render(*(document.show_picture(key, key) for key in pictures), pictures=pictures)
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)" alt="([^"]+)"', body)
    assert [(kind, base64.b64decode(data), title) for kind, data, title in found] == [
        ("png", PNG, "a b.png"),
        ("jpeg", b"\xff\xd8\xff", "c"),
    ]


def test_columns_of_numbers_are_right_aligned():
    lines = document.tabulate(["a", "b", "c"], [["x", "y", "1"]], words=2).splitlines()
    assert lines == ["| a | b | c |", "| --- | --- | ---: |", "| x | y | 1 |"]
