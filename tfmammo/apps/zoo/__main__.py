"""Networks that come with the package, and weights of other networks.

list     one line for each network
show     a network's training data, quality and known failures
get      unpack a network, to use it with TensorFlow and without this package
convert  turn a published file of VGG-19, AlexNet, LPIPS or Inception into a .npz file
add      pack a run's export, for maintainers
page     write the page of all networks, for maintainers

Commands and configs accept models:/zoo/NAME wherever they take a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tfmammo import cli, filesystem
from tfmammo.errors import ConfigError
from tfmammo.tracking import zoo
from tfmammo.tracking.zoo.entries import FOLDER
from tfmammo.tracking.zoo.fetching import find_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the subcommand."""
    parser = cli.make_command_parser("pretrained", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the networks")
    listing.set_defaults(act=_list)
    showing = commands.add_parser("show", help="show what is known of a network")
    showing.add_argument("name")
    showing.set_defaults(act=_show)
    getting = commands.add_parser("get", help="unpack a network")
    getting.add_argument("name")
    getting.add_argument("directory", type=Path, nargs="?", help="by default the cache")
    getting.set_defaults(act=_get)
    converting = commands.add_parser("convert", help="convert a published file of weights")
    converting.add_argument("source", type=Path, metavar="IN")
    converting.add_argument("target", type=Path, metavar="OUT")
    converting.set_defaults(act=_convert)
    adding = commands.add_parser("add", help="pack a run's export")
    adding.add_argument("name", help="of the entry in tfmammo/tracking/zoo/networks to update")
    adding.add_argument(
        "--run", type=Path, required=True, help="the run's output folder, or its export"
    )
    adding.add_argument("--functions", nargs="+", help="default: all but the discriminator")
    adding.set_defaults(act=_add)
    paging = commands.add_parser("page", help="write the page of all networks")
    paging.add_argument("file", type=Path)
    paging.set_defaults(act=_write_page)
    options = parser.parse_args(arguments)
    cli.run(lambda: options.act(options))


def _list(_: argparse.Namespace) -> None:
    for name in zoo.list_names():
        entry = zoo.read_entry(name)
        print(f"{name:<22}{entry.size / 1e6:4.1f} MB  {entry.title}")


def _show(options: argparse.Namespace) -> None:
    from tfmammo.apps.zoo import page  # imports TensorFlow, which a list does not need

    name = options.name.removeprefix(zoo.PREFIX)
    print(page.describe(name, zoo.read_entry(name)), end="")


def _get(options: argparse.Namespace) -> None:
    from tfmammo.tracking.zoo.packing import unpack  # takes seconds to import

    name, directory = options.name.removeprefix(zoo.PREFIX), options.directory
    if directory is None:
        print(zoo.fetch(name))
        return
    if directory.exists():
        raise ConfigError(f"{directory}: already exists")
    unpack(find_file(name, zoo.read_entry(name)), directory)
    print(directory)


def _convert(options: argparse.Namespace) -> None:
    from tfmammo.nn import pretrained  # takes seconds to import

    pretrained.convert_and_print(options.source, options.target)


def _add(options: argparse.Namespace) -> None:
    """Pack a run's export into an entry's file."""
    from tfmammo.tracking.models import find_local_export
    from tfmammo.tracking.zoo.packing import pack

    name = options.name.removeprefix(zoo.PREFIX)
    entry = zoo.read_entry(name)
    file = FOLDER / entry.file
    pack(find_local_export(options.run), file, options.functions)
    packed = {"sha256": filesystem.sha256(file), "size": file.stat().st_size}
    zoo.write_entry(name, entry.model_copy(update=packed))
    _show(options)


def _write_page(options: argparse.Namespace) -> None:
    from tfmammo.apps.zoo import page

    filesystem.write_atomically(options.file, page.render())
    print(options.file)


if __name__ == "__main__":
    main()
