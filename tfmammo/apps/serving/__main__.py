"""Serve networks, CAD pipelines and lesion editors over HTTP.

tfmammo serve register --config configs/serving_inverter.yaml --set network.handle=runs/can/fold0
tfmammo serve run --model models:/tfmammo-can-inverter@best --port 5001
tfmammo serve layout --model models:/tfmammo-can@best --output DIR
tfmammo serve onnx --model models:/tfmammo-can@best --output DIR

`register` copies the exports that a config names (network.handle, pipeline.detector, ...) into a
new version of a registered model, which gets the config's alias. `run` answers requests. `mlflow
models serve --env-manager local -m MODEL` does too, but without limits, short errors and /metrics.
`layout` writes an export's SavedModels in TensorFlow Serving's layout: DIR/NAME-FUNCTION/VERSION/
and DIR/models.config. `onnx` writes each function of an export as DIR/NAME-FUNCTION.onnx, for ONNX
Runtime.
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

from tfmammo import cli
from tfmammo.apps.serving import pictures, saving
from tfmammo.apps.serving.pictures import ServiceConfig
from tfmammo.config import TrackingConfig
from tfmammo.errors import TrackingError
from tfmammo.tracking import export, models
from tfmammo.tracking.store import require_store, store_uri


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error becomes one line on stderr and exit code 2."""
    options = _make_parser().parse_args(arguments)
    cli.run(lambda: options.work(options))


def register(config: ServiceConfig) -> str:
    """Register a service as a new version of tfmammo-NAME, and return the version."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / saving.SERVICE
        folder.mkdir()
        pictures.gather(config, folder)
        # A service that can't be loaded here can't be loaded by a server either.
        pictures.Service.load(pictures.unpack(folder))
        store = TrackingConfig(uri=config.tracking_uri)
        return models.register_service(
            f"tfmammo-{config.name}", folder, saving.save_service, store, config.alias
        )


def lay_out(
    model_uri: str, output: Path, version: int = 1, tracking_uri: str | None = None
) -> list[Path]:
    """Write an export's SavedModels in TensorFlow Serving's layout, and return their folders.

    Args:
        model_uri: As for `models.resolve`.
        output: A new or empty folder.
        version: TensorFlow Serving's number of this version.
        tracking_uri: MLflow's store; None: the environment's.
    """
    source = models.resolve(model_uri, tracking_uri)
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


def _make_parser() -> cli.Parser:
    parser = cli.make_command_parser("serve", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "register", help="register a new version of a model, from a config"
    )
    command.set_defaults(work=_register)
    command.add_config(ServiceConfig, example="network.handle=runs/can/fold0")

    command = commands.add_parser("run", help="serve a registered service over HTTP")
    command.set_defaults(work=_run)
    command.add_argument(
        "--model",
        required=True,
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of a service",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)"
    )
    command.add_argument("--port", type=int, default=5001)
    command.add_argument(
        "--limit", type=cli.parse_count, default=64, metavar="MB", help="largest request (64)"
    )
    command.add_argument(
        "--parallel",
        type=cli.parse_count,
        default=2,
        metavar="N",
        help="requests computed at once (2)",
    )
    command.add_argument(
        "--name",
        nargs="+",
        default=[],
        metavar="HOST",
        help="further names and addresses of this server that requests may be sent to",
    )
    command.add_tracking_uri()

    command = commands.add_parser("layout", help="write SavedModels for TensorFlow Serving")
    command.set_defaults(work=_layout)
    command.add_argument(
        "--version",
        type=cli.parse_count,
        default=1,
        metavar="N",
        help="the server's number of it (1)",
    )
    _add_export(command)

    command = commands.add_parser("onnx", help="write ONNX files for ONNX Runtime")
    command.set_defaults(work=_onnx)
    _add_export(command)
    return parser


def _add_export(command: cli.Parser) -> None:
    command.add_argument(
        "--model", required=True, help="a run's folder, an export, models:/NAME@ALIAS"
    )
    command.add_argument("--output", required=True, type=Path, metavar="DIR", help="a folder")
    command.add_tracking_uri()


def _register(options: argparse.Namespace) -> None:
    config = cli.read_config(ServiceConfig, options)
    version = register(config)
    print(f"models:/tfmammo-{config.name}@{config.alias} is version {version}")


def _run(options: argparse.Namespace) -> None:
    from tfmammo.apps.serving import server  # needs the extra `serve`

    uri = store_uri(options.tracking_uri)
    if options.model.startswith(("models:/", "runs:/")):
        require_store(uri)
    os.environ["MLFLOW_TRACKING_URI"] = uri  # where MLflow loads models from
    try:
        server.run(
            options.model, options.host, options.port, options.limit, options.parallel, options.name
        )
    except MlflowException as error:
        raise TrackingError(
            f"{options.model}: can't be served ({server.shorten(error.message)})"
        ) from None


def _layout(options: argparse.Namespace) -> None:
    for folder in lay_out(options.model, options.output, options.version, options.tracking_uri):
        print(folder)


def _onnx(options: argparse.Namespace) -> None:
    source = models.resolve(options.model, options.tracking_uri)
    card = export.read_card(source)
    for function in card["functions"]:
        file = options.output / f"{card['name']}-{function}.onnx"
        print(export.write_onnx(source, function, file))


if __name__ == "__main__":
    main()
