"""Insert lesions into mammograms, run the CAD pipeline and reader studies in a browser.

tfmammo studio
tfmammo studio --config configs/studio.yaml --set systems.infilling.generator=RUN
                                                            port=8000

The page is at http://127.0.0.1:7860, for this machine only, until Ctrl-C. Uploads and downloads are
kept in one private folder, which is removed at the end. The studio needs the extra `serve`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.apps.serving.web import private_folder, stoppable
from tfmammo.apps.studio.config import StudioConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command until Ctrl-C; an error becomes one line on stderr and exit code 2."""
    parser = cli.make_command_parser("studio", __doc__)
    parser.add_config(StudioConfig, required=False, default="studio", example="port=8000")
    options = parser.parse_args(arguments)
    cli.run(lambda: show(cli.read_config(StudioConfig, options)))


def show(config: StudioConfig) -> None:
    """Serve the page until Ctrl-C."""
    with stoppable(), private_folder("tfmammo_studio_") as folder:
        # Gradio reads both while it is imported.
        os.environ |= {
            "GRADIO_TEMP_DIR": str(folder / "gradio"),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
        from tfmammo.apps.studio import app  # Gradio: after the folder exists, and not for --help
        from tfmammo.training import script

        script.configure_tensorflow(configuration.TrainingConfig(precision="float32"))
        app.serve(config, folder)


if __name__ == "__main__":
    main()
