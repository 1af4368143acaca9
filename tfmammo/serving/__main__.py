"""Serve networks, the case chain and synthesisers.

python -m tfmammo.serving register --config configs/serving_case.yaml --set
case.detector=runs/ssd/fold0 python -m tfmammo.serving run --model models:/tfmammo-case@best --port
5001 python -m tfmammo.serving layout --model models:/tfmammo-can@best --output DIR

`register` copies the exports that a config names into a new version of a registered model, and
gives it the config's alias. `run` answers requests; `mlflow models serve --env-manager local -m
MODEL` does too, without limits, short errors and /metrics. `layout` writes an export's SavedModels
as TensorFlow Serving wants them: DIR/NAME-FUNCTION/VERSION/ and DIR/models.config.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow.exceptions import MlflowException

from tfmammo import cli, export
from tfmammo import config as configuration
from tfmammo.config import TrackingConfig
from tfmammo.errors import TrackingError
from tfmammo.serving import pictures, saving
from tfmammo.serving.pictures import ServiceConfig
from tfmammo.tracking import models
from tfmammo.tracking.store import store_uri


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2."""
    chosen = _parser().parse_args(arguments)
    work = {"register": _register, "run": _run, "layout": _layout}[chosen.command]
    cli.run(lambda: work(chosen))


def register(config: ServiceConfig) -> str:
    """Make a service a new version of tfmammo-NAME.

    Returns:
        The version.

    Raises as `pictures.gathered`, `tracking.register_service`.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures.gathered(config, Path(folder))
        # for its complaints: what can't be loaded here can't be there
        pictures.Service.load(pictures.unpacked(Path(folder)))
        store = TrackingConfig(uri=config.tracking_uri)
        return models.register_service(
            f"tfmammo-{config.name}", Path(folder), saving.save_service, store, config.alias
        )


def lay_out(handle: str, output: Path, version: int = 1, uri: str | None = None) -> list[Path]:
    """Write an export's SavedModels in TensorFlow Serving's layout.

    Args:
        handle: As for `tracking.resolve`.
        output: A new or empty folder.
        version: The number that the server goes by.

    Returns:
        The folders with the SavedModels.

    Raises:
        TrackingError: The handle leads to no export, or the folder is not empty.
    """
    source = models.resolve(handle, uri)
    card = export.read_card(source)
    if output.exists() and any(output.iterdir()):
        raise TrackingError(f"{output}: is not empty")
    names = {f"{card['name']}-{function}": function for function in card["functions"]}
    for name, function in names.items():
        shutil.copytree(source / function, output / name / str(version))
    entries = [
        f'  config {{ name: {json.dumps(name)} base_path: "/models/{name}" model_platform: '
        '"tensorflow" }\n'
        for name in names
    ]
    (output / "models.config").write_text(
        f"model_config_list {{\n{''.join(entries)}}}\n", encoding="utf-8"
    )
    return [output / name / str(version) for name in names]


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m tfmammo.serving",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    registering = commands.add_parser(
        "register", help="a new version of a registered model, from a config"
    )
    registering.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a YAML file such as configs/serving_case.yaml",
    )
    registering.add_overrides("name=case")
    running = commands.add_parser("run", help="answer requests")
    running.add_argument(
        "--model",
        required=True,
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder of MLflow's",
    )
    running.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)"
    )
    running.add_argument("--port", type=int, default=5001)
    running.add_argument(
        "--limit", type=_positive, default=64, metavar="MB", help="largest request (64)"
    )
    running.add_argument(
        "--parallel", type=_positive, default=2, metavar="N", help="requests computed at once (2)"
    )
    running.add_argument(
        "--name",
        nargs="+",
        default=[],
        metavar="HOST",
        help="names of this server that requests may be sent to",
    )
    laying = commands.add_parser("layout", help="SavedModels for TensorFlow Serving")
    laying.add_argument(
        "--model", required=True, help="a run's folder, an export, models:/NAME@ALIAS"
    )
    laying.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    laying.add_argument(
        "--version",
        type=int,
        default=1,
        metavar="N",
        help="the server's number of this version (1)",
    )
    for each in (running, laying):
        each.add_argument(
            "--tracking-uri",
            metavar="URI",
            help="MLflow's store (MLFLOW_TRACKING_URI, else mlflow.db here)",
        )
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _register(chosen: argparse.Namespace) -> None:
    config = configuration.parse(ServiceConfig, chosen.config, chosen.set)
    version = register(config)
    print(f"models:/tfmammo-{config.name}@{config.alias} is version {version}")


def _run(chosen: argparse.Namespace) -> None:
    from tfmammo.serving import server  # the extra `serve`

    # which MLflow's loading goes by
    os.environ["MLFLOW_TRACKING_URI"] = store_uri(chosen.tracking_uri)
    try:
        server.run(
            chosen.model, chosen.host, chosen.port, chosen.limit, chosen.parallel, chosen.name
        )
    except MlflowException as error:
        raise TrackingError(f"{chosen.model}: can't be served ({server.sentence(error)})") from None


def _layout(chosen: argparse.Namespace) -> None:
    for folder in lay_out(chosen.model, chosen.output, chosen.version, chosen.tracking_uri):
        print(folder)


if __name__ == "__main__":
    main()
