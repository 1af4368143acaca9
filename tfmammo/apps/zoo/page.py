"""The page of the zoo's networks, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tfmammo import document
from tfmammo.document import Block, Code, Grid, Heading, Points, Text
from tfmammo.tracking.zoo.entries import PREFIX, Entry, list_names, read_entry
from tfmammo.tracking.zoo.fetching import find_file
from tfmammo.tracking.zoo.packing import read_packed_card

HEAD: tuple[Block, ...] = (
    Heading(1, "Networks that come with the package"),
    Text("Written by `tfmammo pretrained page docs/models/zoo.md`."),
    Text("Commands and configs take `NAME` or `models:/zoo/NAME` as a model:"),
    Code(
        (
            "tfmammo pretrained list",
            "tfmammo pretrained show can",
            "tfmammo synthesize --config synthesis_full --set generator=models:/zoo/infilling "
            "--output SET",
        )
    ),
    Text(
        "These networks are small, so that they fit the package: narrow, for patches of 64 to 256 "
        "px and mammograms of 384 px, and stored in half precision. They show what each system "
        "does, and are a starting point. They are not the papers' networks. All numbers below come "
        "from patients that the network was not trained on; the cards name the exceptions. Those "
        "in tables were measured with the packed files. "
        "[Measures](../guides/evaluation.md#measures) explains them."
    ),
)


def render() -> str:
    """Write the page of all networks."""
    entries = {name: read_entry(name) for name in list_names()}
    rows = [
        (f"[{name}](#{name})", entry.title, _format_size(entry.size))
        for name, entry in entries.items()
    ]
    total = _format_size(sum(entry.size for entry in entries.values()))
    table = Grid(("name", "what it does", "MB"), (*rows, ("", "", total)))
    blocks: list[Block] = [*HEAD, table]
    for name, entry in entries.items():
        heading, what, *details = _describe(name, entry)
        blocks += [heading, what]
        if sheet := entry.sheet:
            blocks += [Text(f"![{name}](../{sheet.file})"), Text(f"*{sheet.caption}*")]
        blocks += details
    return document.render_markdown(blocks)


def describe(name: str, entry: Entry) -> str:
    """Describe a network in Markdown, below a heading of the second level."""
    return document.render_markdown(list(_describe(name, entry)))


def _describe(name: str, entry: Entry) -> Iterator[Block]:
    card = read_packed_card(find_file(name, entry))
    patients = len(card.get("train_patients", ()))
    parameters = sum(card["networks"].get(each, 0) for each in card["functions"])
    yield Heading(2, name)
    yield Text(
        f"{entry.title} `{PREFIX}{name}`, {_format_size(entry.size)} MB, SHA-256 `{entry.sha256}`."
    )
    yield Points(
        (
            *_list_functions(card["functions"]),
            f"Training: `{entry.training}`; the weights after {card['step']:,} steps, {patients} "
            f"patients, {parameters:,} parameters.",
            f"Data: {entry.data}",
            f"Held out, with these weights: {_list_metrics(card['metrics'])}.",
            f"Attribution: {entry.attribution}",
            f"Memorization: {entry.memorization}",
            *(f"Known failure: {failure}" for failure in entry.failures),
        )
    )
    for result in entry.results:
        yield Text(f"{result.title}. `{result.command}`")
        yield Grid(result.header, result.body)
        if result.notes:
            yield Text(" ".join(result.notes))


def _format_size(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _list_metrics(metrics: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if value is not None)


def _list_functions(functions: Mapping[str, Any]) -> list[str]:
    return [
        f"`{name}`: {_list_tensors(function['inputs'])} -> {_list_tensors(function['outputs'])}"
        for name, function in functions.items()
    ]


def _list_tensors(tensors: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {['n' if size is None else size for size in tensor['shape']]}".replace("'", "")
        for name, tensor in tensors.items()
    )
