"""Serve networks, CAD pipelines and editors.

tfmammo serve register --config configs/serving_case.yaml --set
                                   case.detector=runs/ssd/fold0
tfmammo serve run --model models:/tfmammo-case@best --port 5001
tfmammo serve layout --model models:/tfmammo-can@best --output DIR
tfmammo serve onnx --model models:/tfmammo-can@best --output DIR

`register` copies the exports that a config names into a new version of a registered model, which
gets the config's alias. `run` answers requests. `mlflow models serve --env-manager local -m MODEL`
does too, but without limits, short errors and /metrics. `layout` writes an export's SavedModels in
TensorFlow Serving's layout: DIR/NAME-FUNCTION/VERSION/ and DIR/models.config. `onnx` writes each
function of an export as DIR/NAME-FUNCTION.onnx, for ONNX Runtime.
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
from tfmammo.tracking.store import store_uri


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error becomes one line on stderr and exit code 2."""
    options = _make_parser().parse_args(arguments)
    commands = {"register": _register, "run": _run, "layout": _layout, "onnx": _onnx}
    work = commands[options.command]
    cli.run(lambda: work(options))


def register(config: ServiceConfig) -> str:
    """Register a service as a new version of tfmammo-NAME.

    Returns:
        The version.

    Raises:
        TfmammoError: A model can't be found or loaded, or the store can't be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures.gather(config, Path(folder))
        # A service that can't be loaded here can't be loaded by a server either.
        pictures.Service.load(pictures.unpack(Path(folder)))
        store = TrackingConfig(uri=config.tracking_uri)
        return models.register_service(
            f"tfmammo-{config.name}", Path(folder), saving.save_service, store, config.alias
        )


def lay_out(
    model_uri: str, output: Path, version: int = 1, tracking_uri: str | None = None
) -> list[Path]:
    """Write an export's SavedModels in TensorFlow Serving's layout.

    Args:
        model_uri: As for `models.resolve`.
        output: A new or empty folder.
        version: TensorFlow Serving's number of this version.
        tracking_uri: MLflow's store; None: the environment's.

    Returns:
        The folders with the SavedModels.

    Raises:
        TrackingError: The URI leads to no export, or the folder is not empty.
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


def write_onnx_files(model_uri: str, output: Path, tracking_uri: str | None = None) -> list[Path]:
    """Write each function of an export as an ONNX file.

    Args:
        model_uri: As for `models.resolve`.
        output: A folder; files of the same names are replaced.
        tracking_uri: MLflow's store; None: the environment's.

    Returns:
        The files.

    Raises:
        TrackingError: The URI leads to no export.
        ExportError: A function can't be converted, or answers differently; see export.write_onnx.
    """
    source = models.resolve(model_uri, tracking_uri)
    card = export.read_card(source)
    return [
        export.write_onnx(source, function, output / f"{card['name']}-{function}.onnx")
        for function in card["functions"]
    ]


def _make_parser() -> cli.Parser:
    parser = cli.make_command_parser("serve", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    registering = commands.add_parser(
        "register", help="register a new version of a model, from a config"
    )
    registering.add_config(ServiceConfig, example="name=case")
    running = commands.add_parser("run", help="serve a model over HTTP")
    running.add_argument(
        "--model",
        required=True,
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of an MLflow model",
    )
    running.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)"
    )
    running.add_argument("--port", type=int, default=5001)
    running.add_argument(
        "--limit", type=cli.parse_count, default=64, metavar="MB", help="largest request (64)"
    )
    running.add_argument(
        "--parallel",
        type=cli.parse_count,
        default=2,
        metavar="N",
        help="requests computed at once (2)",
    )
    running.add_argument(
        "--name",
        nargs="+",
        default=[],
        metavar="HOST",
        help="further names and addresses of this server that requests may be sent to",
    )
    laying_out = commands.add_parser("layout", help="write SavedModels for TensorFlow Serving")
    converting = commands.add_parser("onnx", help="write ONNX files for ONNX Runtime")
    for writing in (laying_out, converting):
        writing.add_argument(
            "--model", required=True, help="a run's folder, an export, models:/NAME@ALIAS"
        )
        writing.add_argument("--output", required=True, type=Path, metavar="DIR", help="a folder")
    laying_out.add_argument(
        "--version",
        type=int,
        default=1,
        metavar="N",
        help="the server's number of this version (1)",
    )
    running.add_tracking_uri()
    laying_out.add_tracking_uri()
    converting.add_tracking_uri()
    return parser


def _register(options: argparse.Namespace) -> None:
    config = cli.read_config(ServiceConfig, options)
    version = register(config)
    print(f"models:/tfmammo-{config.name}@{config.alias} is version {version}")


def _run(options: argparse.Namespace) -> None:
    from tfmammo.apps.serving import server  # needs the extra `serve`

    # MLflow loads models from the store that this variable names.
    os.environ["MLFLOW_TRACKING_URI"] = store_uri(options.tracking_uri)
    try:
        server.run(
            options.model, options.host, options.port, options.limit, options.parallel, options.name
        )
    except MlflowException as error:
        raise TrackingError(
            f"{options.model}: can't be served ({server.short_message(error)})"
        ) from None


def _layout(options: argparse.Namespace) -> None:
    for folder in lay_out(options.model, options.output, options.version, options.tracking_uri):
        print(folder)


def _onnx(options: argparse.Namespace) -> None:
    for file in write_onnx_files(options.model, options.output, options.tracking_uri):
        print(file)


if __name__ == "__main__":
    main()
