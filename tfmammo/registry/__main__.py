"""The registered models: which version is the best one, who decided that, and on what.

python -m tfmammo.registry list python -m tfmammo.registry promote --model tfmammo-can --metric dice
--min-gain 0.005 python -m tfmammo.registry promote --model tfmammo-can --set data.name=inbreast
data.root=DIR candidate=4 alpha=0.01 python -m tfmammo.registry rollback --model tfmammo-can

`promote` judges a candidate, the newest version if none is named, against the version with the
alias "best", moves the alias if it wins, and writes the audit into tags; see
tfmammo.registry.promotion, also for what trainings do to the alias. It takes the keys of
PromotionConfig from a YAML file (--config), if one is given, from --set and from flags, the later
over the earlier. The patches are those of its section data; what is not said there is taken from
the candidate's card. Exit codes: 0 promoted, the first one, or the best already; 1 refused; 2 an
error. `rollback` moves the alias back to the version that the tags name.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.table

from tfmammo import cli
from tfmammo import cli as command
from tfmammo import config as configuration
from tfmammo.config import TrainingConfig
from tfmammo.errors import ConfigError
from tfmammo.metrics.significance import FEWEST_PATIENTS, describe, describe_few
from tfmammo.metrics.summary import Table
from tfmammo.registry import promotion
from tfmammo.registry.promotion import ALIAS, PAINTING, PREFIX, Judged, Outcome, PromotionConfig
from tfmammo.tracking import store
from tfmammo.training import script

# the other tags of a version that a training sets
NO_METRICS = ("step", "git_commit", "data_fingerprint")
FLAGS = {
    "model": "tfmammo-can",
    "candidate": "VERSION",
    "metric": "NAME",
    "min_gain": "GAIN",
    "alpha": "P",
    "tracking_uri": "URI",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2; a refusal is exit
    code 1.
    """
    chosen = _parser().parse_args(arguments)
    command.run(
        lambda: {"list": _list, "promote": _promote, "rollback": _rollback}[chosen.command](chosen)
    )


def overview(tracking_uri: str | None = None) -> rich.table.Table:
    """All versions of all models.

    Raises:
        TrackingError: The store is not there.
    """
    uri = store.store_uri(tracking_uri)
    with store.registry(uri) as client:
        models = [
            promotion.registered(client, uri, found.name)
            for found in client.search_registered_models(max_results=1000)
        ]
    table = rich.table.Table(
        title=f"Registered models in {store.shown(uri)}", title_justify="left", show_lines=True
    )
    for heading in ("model", "version", "alias", "step", "metrics", "promotion"):
        table.add_column(heading, justify="right" if heading in ("version", "step") else "left")
    for model in models:
        for number, tags in model.versions.items():
            aliases = ", ".join(alias for alias, held in model.aliases.items() if held == number)
            theirs = {
                key: value
                for key, value in tags.items()
                if key not in NO_METRICS and not key.startswith(("mlflow.", PREFIX))
            }
            audit = {
                key.removeprefix(PREFIX): value
                for key, value in tags.items()
                if key.startswith(PREFIX)
            }
            table.add_row(
                model.name,
                str(number),
                aliases,
                tags.get("step", "-"),
                _lines(theirs),
                _lines(audit),
            )
    return table


def configured(path: str | None, overrides: Sequence[str]) -> PromotionConfig:
    """The config of a file, or of overrides alone.

    Raises:
        ConfigError: A key is unknown, missing or wrong.
    """
    if path:
        return configuration.parse(PromotionConfig, path, overrides)
    with tempfile.TemporaryDirectory() as folder:  # `parse` reads files
        empty = Path(folder) / "empty.yaml"
        empty.write_text("{}", encoding="utf-8")
        try:
            return configuration.parse(PromotionConfig, empty, overrides)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{empty}: ")) from None


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m tfmammo.registry",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser(
        "list", help="models, versions, aliases, metrics and what promotions said"
    )
    promoting = commands.add_parser(
        "promote", help=f"judge a version against the one with the alias {ALIAS}"
    )
    back = commands.add_parser("rollback", help=f"move the alias {ALIAS} back")
    promoting.add_argument(
        "--config", metavar="FILE", help="a YAML file with keys of PromotionConfig"
    )
    promoting.add_overrides()
    promoting.add_argument("--dry-run", action="store_true", help="judge, but write nothing")
    for flag, metavar in FLAGS.items():
        promoting.add_argument(
            f"--{flag.replace('_', '-')}", metavar=metavar, help=f"as --set {flag}={metavar}"
        )
    back.add_argument("--model", required=True, metavar=FLAGS["model"])
    for each in (listing, back):
        each.add_argument(
            "--tracking-uri",
            metavar="URI",
            help="the store; default: the environment's, else mlflow.db here",
        )
    return parser


def _list(chosen: argparse.Namespace) -> None:
    cli.console.print(overview(chosen.tracking_uri))


def _promote(chosen: argparse.Namespace) -> None:
    flags = {flag: getattr(chosen, flag) for flag in FLAGS if getattr(chosen, flag) is not None}
    config = configured(
        chosen.config,
        [*chosen.set, *(f"{flag}={json.dumps(value)}" for flag, value in flags.items())],
    )
    script.prepare(TrainingConfig(precision="float32"))
    outcome = promotion.promote(config, chosen.dry_run)
    if outcome.judged:
        cli.console.print(_table(outcome, outcome.judged, config))
    would = "would be " if chosen.dry_run and outcome.decision != "already best" else ""
    cli.console.print(
        f"{config.model}, version {outcome.candidate}: {would}{outcome.decision} ({outcome.reason})"
    )
    if outcome.decision == "refused":
        sys.exit(1)


def _rollback(chosen: argparse.Namespace) -> None:
    left, reached = promotion.rollback(chosen.model, chosen.tracking_uri)
    cli.console.print(f"{chosen.model}: {ALIAS} is version {reached} again, after version {left}")


def _lines(values: Mapping[str, str]) -> str:
    return "\n".join(f"{key} {value}" for key, value in values.items()) or "-"


def _table(outcome: Outcome, judged: Judged, config: PromotionConfig) -> Table:
    gain = judged.gain
    tested = judged.patients >= FEWEST_PATIENTS
    interval = f"\n[{gain.low:+.4f}, {gain.high:+.4f}]" if tested else ""
    body = [
        [f"version {outcome.candidate}, candidate", f"{judged.candidate:.4f}"],
        [f"version {outcome.best}, best", f"{judged.best:.4f}"],
        ["gain", f"{gain.difference:+.4f}{interval}"],
        ["p, two-sided", f"{min(1.0, judged.comparisons * gain.p):.4f}" if tested else "-"],
        ["to win", f"gain >= {config.min_gain:g}\np < {config.alpha:g}"],
    ]
    note = describe(
        "flips", judged.patients, judged.comparisons, config.samples, 1 - config.alpha, "Bonferroni"
    )
    title = (
        f"{config.model}: {judged.images} patches of {judged.patients} patients "
        f"({judged.archive}) that neither was trained on"
    )
    heading = config.metric + (", less is better" if PAINTING.get(config.metric) == -1 else "")
    return Table(title, ["", heading], body, (note if tested else describe_few(judged.patients),))


if __name__ == "__main__":
    main()
