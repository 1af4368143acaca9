"""Set lesions into mammograms, have mammograms read, and run reader studies, in a browser.

python -m tfmammo.studio --config configs/studio.yaml python -m tfmammo.studio --config
configs/studio.yaml --set systems.infilling.generator=RUN port=8000

The page is at http://127.0.0.1:7860, for this machine alone, until Ctrl-C. All files that come in
or go out lie in one folder that nobody else may open and that is removed at the end.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from tfmammo import cli as command
from tfmammo import config as configuration
from tfmammo.errors import ConfigError
from tfmammo.serving.local import private_folder, stoppable


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2; Ctrl-C ends it."""
    chosen = _parser().parse_args(arguments)
    command.run(lambda: _run(chosen))


def show(chosen: Callable[[], Any]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        chosen: Makes a StudioConfig, once Gradio may be imported.

    Raises:
        ConfigError: Gradio is not installed, or a model can't be loaded.
        OSError: The port is taken.
    """
    with stoppable(), private_folder("tfmammo_studio_") as folder:
        # Gradio reads both while it is imported.
        os.environ |= {
            "GRADIO_TEMP_DIR": str(folder / "gradio"),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
        try:
            import gradio  # noqa: F401  # after the folder is there, and not before --help
        except ModuleNotFoundError:
            raise ConfigError("the studio needs Gradio: install the extra serve") from None
        from tfmammo.studio import app
        from tfmammo.training import script

        config = chosen()
        script.prepare(configuration.TrainingConfig(precision="float32"))
        app.serve(config, folder)


def _run(chosen: argparse.Namespace) -> None:
    def parsed() -> Any:
        from tfmammo.studio.app import StudioConfig

        return configuration.parse(StudioConfig, chosen.config, chosen.set)

    show(parsed)


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m tfmammo.studio",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a YAML file with keys of StudioConfig"
    )
    parser.add_overrides("port=8000")
    return parser


if __name__ == "__main__":
    main()
