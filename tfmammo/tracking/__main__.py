"""List the training runs of an MLflow store, the newest first.

tfmammo runs
tfmammo runs --tracking-uri sqlite:///elsewhere/mlflow.db

Without --tracking-uri the store is MLFLOW_TRACKING_URI, else mlflow.db in the current folder.
Registered models are listed by `tfmammo registry list`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tfmammo import cli
from tfmammo.tracking import history, store


def main(arguments: Sequence[str] | None = None) -> None:
    """List the runs."""
    parser = cli.make_command_parser("runs", __doc__)
    parser.add_tracking_uri()
    parser.add_argument("--most", type=cli.parse_count, default=100, metavar="N", help="at most N")
    options = parser.parse_args(arguments)
    cli.run(lambda: _list(options.tracking_uri, options.most))


def _list(uri: str | None, most: int) -> None:
    rows = history.list_runs(uri, most)
    name = store.redact(store.store_uri(uri))
    table = Table(title=f"{len(rows)} runs in {name}", title_justify="left")
    for heading in ("run", "experiment", "status", "started", "result", "id"):
        table.add_column(heading)
    for row in rows:
        table.add_row(*(row[str(column.header)] for column in table.columns))
    cli.console.print(table)


if __name__ == "__main__":
    main()
