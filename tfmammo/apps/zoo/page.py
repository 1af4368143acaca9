"""The page of the zoo's networks, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tfmammo.document import show_commands, tabulate
from tfmammo.tracking.zoo.entries import PREFIX, Entry, list_names, read_entry
from tfmammo.tracking.zoo.fetching import find_file
from tfmammo.tracking.zoo.packing import read_packed_card

HEAD = (
    "# Networks that come with the package",
    "Written by `tfmammo pretrained page docs/models/zoo.md`.",
    "Commands and configs take `NAME` or `models:/zoo/NAME` as a model:",
    show_commands(
        "tfmammo pretrained list",
        "tfmammo pretrained show can",
        "tfmammo synthesize --config synthesis_full --set generator=models:/zoo/infilling "
        "--output SET",
    ),
    "These networks are small enough to come with the package: narrow, for patches of 64 to 256 px "
    "and mammograms of 384 px, and stored in half precision. They show what each system does, and "
    "are a starting point. They are not the papers' networks. All numbers come from patients that "
    "the network was not trained on, with exceptions that the cards name. Numbers in tables were "
    "measured with the packed files; [Measures](../guides/evaluation.md#measures) explains them.",
)


def render() -> str:
    """Write the page of all networks."""
    entries = {name: read_entry(name) for name in list_names()}
    rows = [
        (f"[{name}](#{name})", entry.title, _format_size(entry.size))
        for name, entry in entries.items()
    ]
    total = _format_size(sum(entry.size for entry in entries.values()))
    header = ("name", "what it does", "MB")
    blocks = [*HEAD, tabulate(header, (*rows, ("", "", total)), len(header))]
    for name, entry in entries.items():
        heading, what, *details = _describe(name, entry)
        blocks += [heading, what]
        if sheet := entry.sheet:
            blocks += [f"![{name}](../{sheet.file})", f"*{sheet.caption}*"]
        blocks += details
    return _join(blocks)


def describe(name: str, entry: Entry) -> str:
    """Describe a network in Markdown, below a heading of the second level."""
    return _join(_describe(name, entry))


def _join(blocks: Iterable[str]) -> str:
    return "\n\n".join(blocks) + "\n"


def _describe(name: str, entry: Entry) -> Iterator[str]:
    card = read_packed_card(find_file(name, entry))
    patients = len(card.get("train_patients", ()))
    parameters = sum(card["networks"].get(each, 0) for each in card["functions"])
    yield f"## {name}"
    size = _format_size(entry.size)
    yield f"{entry.title} `{PREFIX}{name}`, {size} MB, SHA-256 `{entry.sha256}`."
    points = (
        *_list_functions(card["functions"]),
        f"Training: `{entry.training}`; the weights after {card['step']:,} steps, {patients} "
        f"patients, {parameters:,} parameters.",
        f"Data: {entry.data}",
        f"Held out, with these weights: {_list_metrics(card['metrics'])}.",
        f"Attribution: {entry.attribution}",
        f"Memorization: {entry.memorization}",
        *(f"Known failure: {failure}" for failure in entry.failures),
    )
    yield "\n".join(f"- {point}" for point in points)
    for result in entry.results:
        yield f"{result.title}. `{result.command}`"
        yield tabulate(result.header, result.body, len(result.header))
        if result.notes:
            yield " ".join(result.notes)


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
