"""Registered models: list them, promote a version to "best", or roll a promotion back.

tfmammo registry list
tfmammo registry promote --model tfmammo-can --metric dice --min-gain 0.005
tfmammo registry promote --model tfmammo-can --set data.name=inbreast data.root=DIR
                                   candidate=4 alpha=0.01
tfmammo registry rollback --model tfmammo-can

`promote` compares a candidate (by default the newest version) with the version that has the alias
"best". If the candidate wins, it gets the alias. Tags record the decision. The keys of
PromotionConfig come from a YAML file (--config), from --set and from flags; later ones override
earlier ones. The section data says how the patches are made; the candidate's card gives the keys
that it lacks.
Exit codes: 0 promoted, the first version, or already the best; 1 refused; 2 an error.

`rollback` moves the alias back to the former version that the tags name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Literal

import rich.table

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.apps.registry import promotion
from tfmammo.apps.registry.promotion import (
    ALIAS,
    PREFIX,
    SYNTHESIS_METRICS,
    Evaluation,
    Outcome,
    PromotionConfig,
)
from tfmammo.config import TrainingConfig
from tfmammo.metrics.significance import FEWEST_PATIENTS, describe, describe_few
from tfmammo.metrics.summary import Table
from tfmammo.tracking import store
from tfmammo.training import script

TRAINING_TAGS = ("step", "git_commit", "data_fingerprint")  # set by training; not metrics
FLAGS = {
    "model": "tfmammo-can",
    "candidate": "VERSION",
    "metric": "NAME",
    "min_gain": "GAIN",
    "alpha": "P",
    "tracking_uri": "URI",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a refusal is exit code 1, an error one line on stderr and exit code 2."""
    options = _make_parser().parse_args(arguments)
    cli.run(lambda: options.work(options))


def list_models(tracking_uri: str | None = None) -> rich.table.Table:
    """Tabulate all versions of all models."""
    uri = store.store_uri(tracking_uri)
    with store.open_registry(uri) as client:
        models = [
            promotion.find_model(client, uri, model.name)
            for model in client.search_registered_models(max_results=1000)
        ]
    table = rich.table.Table(
        title=f"Registered models in {store.redact(uri)}", title_justify="left", show_lines=True
    )
    for heading in ("model", "version", "alias", "step", "metrics and audit", "promotion"):
        side: Literal["left", "right"] = "right" if heading in ("version", "step") else "left"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=heading == "model")
    for model in models:
        for number, tags in model.versions.items():
            aliases = ", ".join(alias for alias, held in model.aliases.items() if held == number)
            metrics = [
                f"{key} {value}"
                for key, value in tags.items()
                if key not in TRAINING_TAGS and not key.startswith(("mlflow.", PREFIX))
            ]
            decisions = [
                f"{key.removeprefix(PREFIX)} {value}"
                for key, value in tags.items()
                if key.startswith(PREFIX)
            ]
            cells = ["\n".join(lines) or "-" for lines in (metrics, decisions)]
            table.add_row(model.name, str(number), aliases, tags.get("step", "-"), *cells)
    return table


def _make_parser() -> cli.Parser:
    parser = cli.make_command_parser("registry", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "list", help="show models, versions, aliases, metrics and promotions"
    )
    command.set_defaults(work=lambda options: cli.console.print(list_models(options.tracking_uri)))
    command.add_tracking_uri()

    command = commands.add_parser(
        "promote", help=f"compare a version with the one that has the alias {ALIAS}"
    )
    command.set_defaults(work=_promote)
    command.add_config(PromotionConfig, required=False)
    command.add_argument("--dry-run", action="store_true", help="compare, but write nothing")
    for flag, metavar in FLAGS.items():
        command.add_argument(
            f"--{flag.replace('_', '-')}", metavar=metavar, help=f"as --set {flag}={metavar}"
        )

    command = commands.add_parser("rollback", help=f"move the alias {ALIAS} back")
    command.set_defaults(work=_rollback)
    command.add_argument("--model", required=True, metavar=FLAGS["model"])
    command.add_tracking_uri()
    return parser


def _promote(options: argparse.Namespace) -> None:
    flags = {flag: getattr(options, flag) for flag in FLAGS if getattr(options, flag) is not None}
    overrides = [f"{flag}={json.dumps(value)}" for flag, value in flags.items()]
    config = configuration.parse(PromotionConfig, options.config, [*options.set, *overrides])
    cli.print_if_wanted(config, options)
    script.configure_tensorflow(TrainingConfig(precision="float32"))
    outcome = promotion.promote(config, options.dry_run)
    if outcome.evaluation:
        cli.console.print(_comparison_table(outcome, outcome.evaluation, config))
    would = "would be " if options.dry_run and outcome.decision != "already best" else ""
    cli.console.print(
        f"{config.model}, version {outcome.candidate}: {would}{outcome.decision} ({outcome.reason})"
    )
    if outcome.decision == "refused":
        sys.exit(1)


def _rollback(options: argparse.Namespace) -> None:
    demoted, best = promotion.rollback(options.model, options.tracking_uri)
    cli.console.print(f"{options.model}: {ALIAS} is version {best} again, after version {demoted}")


def _comparison_table(outcome: Outcome, evaluation: Evaluation, config: PromotionConfig) -> Table:
    gain = evaluation.gain
    patients = evaluation.patients
    comparisons = evaluation.comparisons
    is_tested = patients >= FEWEST_PATIENTS
    interval = f"\n[{gain.low:+.4f}, {gain.high:+.4f}]" if is_tested else ""
    body = [
        [f"version {outcome.candidate}, candidate", f"{evaluation.candidate:.4f}"],
        [f"version {outcome.best}, best", f"{evaluation.best:.4f}"],
        ["gain", f"{gain.value:+.4f}{interval}"],
        ["p-value, two-sided", f"{min(1.0, comparisons * gain.p):.4f}" if is_tested else "-"],
        ["to win", f"gain >= {config.min_gain:g}\np < {config.alpha:g}"],
    ]
    note = describe_few(patients)
    if is_tested:
        level = 1 - config.alpha
        note = describe("flips", patients, comparisons, config.samples, level, "Bonferroni")
    title = (
        f"{config.model}: {evaluation.images} patches of {patients} patients "
        f"({evaluation.archive}) that neither was trained on"
    )
    heading: str = config.metric
    if SYNTHESIS_METRICS.get(config.metric) == -1:
        heading += ", lower is better"
    return Table(title, ["", heading], body, (note,))


if __name__ == "__main__":
    main()
