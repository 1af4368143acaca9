"""Show what the systems do, without training, data or settings.

Masses are inserted into a phantom and into a mammogram by four methods, and removed. The CAD
pipeline finds, outlines and classifies masses. The page shows before and after, and commands to try
next. It takes a minute on two CPU cores, and nothing leaves this machine.
"""

from __future__ import annotations

from tfmammo.nn import _tensorflow  # noqa: F401  # imports TensorFlow quietly, before Keras does

# isort: split
import logging
from collections.abc import Sequence
from pathlib import Path

from tfmammo import cli
from tfmammo.apps.demo import scenes


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the demo's page."""
    parser = cli.make_command_parser("demo", __doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="default runs/demo")
    options = parser.parse_args(arguments)

    def work() -> None:
        logging.disable(logging.INFO)  # notes for owners of patient data, which the demo has not
        try:
            print(f"page: {scenes.write_demo(options.output)}")
        finally:
            logging.disable(logging.NOTSET)

    cli.run(work)


if __name__ == "__main__":
    main()
