"""Find out where a detector fails, by pairs of mammograms with and without one lesion.

    tfmammo stress --config configs/stress.yaml --set data.name=inbreast data.root=DIR
    tfmammo stress --config configs/stress.yaml --detector RUN --method drawn poisson

It measures the contrast and size at which the detector finds half of the lesions, how its score
changes if only the lesion changes, and its detections where a lesion was removed or a seam was
made. The page index.html has curves and pictures of the worst pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.apps.stress.config import StressConfig
from tfmammo.apps.stress.work import stress
from tfmammo.config import TrainingConfig
from tfmammo.errors import ConfigError
from tfmammo.evaluation.script import check_output, print_tables
from tfmammo.training import script


def main() -> None:
    """Run the command. An error becomes one line on stderr and exit code 2."""
    parser = cli.make_command_parser("stress", __doc__)
    parser.add_config(StressConfig)
    parser.add_argument("--detector", metavar="X", help="one detector, instead of the config's")
    parser.add_argument(
        "--method", nargs="+", metavar="NAME", help="only these of the config's methods"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/stress"), metavar="DIR")
    options = parser.parse_args()

    def work() -> None:
        config = configuration.parse(StressConfig, options.config, options.set)
        config = choose(config, options.detector, options.method)
        cli.print_if_wanted(config, options)
        check_output(options.output)
        script.configure_tensorflow(TrainingConfig(precision="float32"))
        print_tables(stress(config, options.output), f"page, tables and pairs: {options.output}")

    cli.run(work)


def choose(
    config: StressConfig, detector: str | None, methods: Sequence[str] | None
) -> StressConfig:
    """Use one detector instead of the config's, and only some of its methods."""
    changes: dict[str, Any] = {}
    if detector:
        changes["detectors"] = {"detector": detector}
    if methods:
        unknown = [name for name in methods if name not in config.methods]
        if unknown:
            raise ConfigError(f"--method: the config has no {unknown[0]}")
        changes["methods"] = {name: config.methods[name] for name in methods}
    try:
        return StressConfig.model_validate(config.model_dump() | changes)
    except ValidationError as error:
        raise ConfigError(configuration.describe(error)) from None


if __name__ == "__main__":
    main()
