"""What is known of the networks of the zoo, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tfmammo.zoo.entries import PREFIX, Entry, Result, list_names, read_entry
from tfmammo.zoo.fetching import find_file
from tfmammo.zoo.packing import read_packed_card

HEAD = """# Networks that come with the package

Written by `python -m tfmammo.zoo page docs/models/zoo.md`.

Wherever a command or a config takes a model, `models:/zoo/NAME` is one:

```
tfmammo pretrained list
tfmammo pretrained show can
tfmammo synthesize --config synthesis_full --set generator=models:/zoo/infilling --output DIR
```

These networks are small, so that they fit the package: narrow, of 64 or 128 px, and stored in half
precision. They show what each system does, and serve as a start. They are not the papers' networks.
All numbers below are of patients that the network never saw. Those in tables were measured with
the packed files.
"""


def render() -> str:
    """Write the page of all networks."""
    names = list_names()
    entries = {name: read_entry(name) for name in names}
    total = sum(entry.size for entry in entries.values()) / 1e6
    rows = [
        f"| [{name}](#{name}) | {entry.title} | {entry.size / 1e6:.1f} |"
        for name, entry in entries.items()
    ]
    table = ["| name | what it does | MB |", "| --- | --- | ---: |", *rows, f"| | | {total:.1f} |"]
    parts = [describe(name, entry) for name, entry in entries.items()]
    return "\n".join([HEAD, *table, "", *parts])


def describe(name: str, entry: Entry) -> str:
    """Describe a network.

    Args:
        name: "can".
        entry: Its entry.

    Returns:
        Markdown with a heading of the second level.

    Raises:
        ExportError: Its packed file is missing or damaged.
    """
    card = read_packed_card(find_file(name, entry))
    patients = len(card.get("train_patients", ()))
    parameters = sum(card["networks"].get(each, 0) for each in card["functions"])
    lines = [
        f"## {name}",
        "",
        f"{entry.title} `{PREFIX}{name}`, {entry.size / 1e6:.1f} MB, SHA-256 `{entry.sha256}`.",
        "",
        *_list_functions(card["functions"]),
        f"- Training: `{entry.training}`, {card['step']:,} steps, {patients} patients, "
        f"{parameters:,} parameters.",
        f"- Data: {entry.data}",
        f"- Held out, at the last step: {_list_metrics(card['metrics'])}.",
        f"- To name and to keep: {entry.attribution}",
        f"- Memorization: {entry.memorization}",
        *(f"- Known failure: {failure}" for failure in entry.failures),
        "",
    ]
    for result in entry.results:
        lines += [*_format_result(result), ""]
    return "\n".join(lines)


def _list_metrics(metrics: Mapping[str, float | None]) -> str:
    """List what the training measured on held-out patients, where it could."""
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if value is not None)


def _list_functions(functions: Mapping[str, Any]) -> list[str]:
    return [
        f"- `{name}`: {_list_tensors(function['inputs'])} -> {_list_tensors(function['outputs'])}"
        for name, function in functions.items()
    ]


def _list_tensors(tensors: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {['n' if size is None else size for size in tensor['shape']]}".replace("'", "")
        for name, tensor in tensors.items()
    )


def _format_result(result: Result) -> Iterable[str]:
    rows = [result.header, ["---"] * len(result.header), *result.body]
    yield f"{result.title}. `{result.command}`"
    yield ""
    for row in rows:
        yield f"| {' | '.join(row)} |"
    if result.notes:
        yield ""
        yield " ".join(result.notes)
