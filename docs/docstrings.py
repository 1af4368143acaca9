"""The house's docstrings -> Markdown, when the site is built; the sources are left as they are.

A docstring names arguments one after the other in running text ("Args:     logits: float32 [...]. average: ..."), and its lists
begin right behind their heading. Here each argument or key gets a line of its own, and each list the empty line that Markdown asks for.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

import griffe

SECTION = re.compile(r"(Args|Returns|Raises|Source|Departures?|Yields):\s+(?=\S)")
LISTED = re.compile(r"- |\|")


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that is shown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute as soon as its members are known."""
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = markdown(obj.docstring.value, explicable(obj))


def explicable(obj: griffe.Object) -> dict[str, str]:
    """What a docstring may explain, and the default where no signature shows it: parameters, and the fields of a class."""
    if isinstance(obj, griffe.Function):
        return {parameter.name: "" for parameter in obj.parameters}
    if not isinstance(obj, griffe.Class):
        return {}
    functions = [obj.members.get(name) for name in ("__init__", "call")]
    parameters = {name: "" for function in functions if isinstance(function, griffe.Function) for name in explicable(function)}
    return parameters | {name: default(member) for name, member in obj.members.items() if isinstance(member, griffe.Attribute)}


def default(field: griffe.Attribute) -> str:
    """A field's default as the source has it; nothing where it has none."""
    text = str(field.value or "")
    call = ast.parse(text, mode="eval").body if text.startswith("Field(") else None
    if not isinstance(call, ast.Call):
        return text
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "default"), "")


def markdown(text: str, known: Mapping[str, str]) -> str:
    """A docstring in Markdown.

    Args:     text: as it stands in the source, without its indentation. known: names that a line may explain, and their defaults.
    Returns:  the same words; sections begin with their heading in bold.
    """
    blocks: list[str] = []
    for lines in paragraphs(text.splitlines()):
        heading = SECTION.match(lines[0])
        joined = escaped(" ".join(line.strip() for line in lines))
        if lines[0].startswith("    "):
            blocks.append("\n".join(lines))
        elif heading:
            blocks.append(explained(f"**{heading[1]}:** ", joined[heading.end() :], known))
        elif LISTED.match(lines[0]):
            blocks.append("\n".join(escaped(line) for line in lines))
        else:
            blocks.append(explained("", joined, known))
    return "\n\n".join(blocks)


def paragraphs(lines: Iterable[str]) -> list[list[str]]:
    """Lines in groups: split at empty lines, before each section, and where a list or indented text begins or ends."""
    groups: list[list[str]] = [[]]
    for line in lines:
        first = groups[-1][0] if groups[-1] else ""
        if not line.strip():
            groups.append([])
        elif SECTION.match(line) or (LISTED.match(line) and not LISTED.match(first)) or (first[:4] == "    " != line[:4]):
            groups.append([line])
        else:
            groups[-1].append(line)
    return [group for group in groups if group]


def explained(heading: str, text: str, known: Mapping[str, str]) -> str:
    """The text with each "name: ..." of a known name as an item of a list; "a, b: ..." explains two."""
    name = "|".join([*sorted(map(re.escape, known), key=len, reverse=True), r"\\\*\w+"])
    parts = re.split(rf"(?:^|(?<=[.;)]) )((?:{name})(?:, (?:{name}))*): ", text)
    items = []
    for names, what in zip(parts[1::2], parts[2::2], strict=True):
        values = ", ".join(known[one] for one in names.split(", ") if known.get(one))
        items.append(f"- `{names.removeprefix(chr(92))}`{f' (`{values}`)' if values else ''}: {what.strip()}")
    return "\n\n".join(part for part in ((heading + parts[0]).strip(), "\n".join(items)) if part)


def escaped(text: str) -> str:
    """Text whose signs mean themselves: `code` stays, but a < is no tag and a * or _ no emphasis."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"(?<!\w)([*_])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)
