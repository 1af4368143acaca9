"""Compare segmentation models as a paper does: folds, seeds, unseen patients, corrected tests.

tfmammo compare --config compare --models can,unet,segnet --folds 3
--seeds 3 --data inbreast=DIR --output runs/compare

Trains each model once per fold and seed, scores the last weights on patients that they never saw,
tests each pair with Holm's correction, and writes the table (Markdown, LaTeX, CSV), the figure and
the methods paragraph. Finished runs are not repeated. --plan prints their commands.
"""

from pathlib import Path

from tfmammo import cli, shipped
from tfmammo import config as configuration
from tfmammo.errors import ConfigError
from tfmammo.evaluation.script import print_tables
from tfmammo.studies.segmenters import ComparisonConfig, plan_steps, run_comparison


def main() -> None:
    """Make the runs that are missing, and write the comparison."""
    parser = cli.make_parser(__doc__, ComparisonConfig, "compare")
    parser.add_argument("--models", metavar="NAMES", help="some of the config's: can,unet")
    parser.add_argument("--folds", type=int, help="of the cross-validation")
    parser.add_argument("--seeds", type=int, help="runs of each model and fold")
    parser.add_data()
    parser.add_running()
    options = parser.parse_args()
    overrides = [f"{key}={getattr(options, key)}" for key in ("folds", "seeds")]
    overrides = [override for override in overrides if not override.endswith("=None")]
    config = configuration.parse(ComparisonConfig, options.config, [*overrides, *options.set])
    if options.models:
        config = config.select(options.models.split(","))
    cli.print_if_wanted(config, options)
    if config.data.root is None and config.data.name != "phantom":
        raise ConfigError("data.root: is missing; name the archive by --data [NAME=]DIR")
    if config.data.root is not None and not config.data.root.is_dir():
        raise ConfigError(f"data.root: no such folder: {config.data.root}")
    output = (options.output or Path("runs/compare")).resolve()
    if options.plan:
        for step in plan_steps(config, output, shipped.ROOT):
            print(step.format_command())
        return
    report = run_comparison(config, output, shipped.ROOT, options.jobs, options.any_version)
    print_tables(report.tables, f"table, figure and methods: {output}")


if __name__ == "__main__":
    cli.run(main)
