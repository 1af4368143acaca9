"""Re-run the five papers: every table and figure beside its printed numbers, decided by a rule.

tfmammo report --config report --scale smoke --jobs 2 --keep-going

--scale smoke takes minutes on phantoms and shows that every command runs. --scale small needs the
folders of `data` in the config; --scale paper has the papers' settings. Finished commands are not
repeated. Results become rows (docs/results), from which --rebuild makes the pages again without a
run. --plan prints the commands.
"""

from pathlib import Path

from tfmammo import cli, shipped
from tfmammo.apps.report import rebuild
from tfmammo.apps.report.config import SCALES, ReportConfig


def main() -> None:
    """Run the commands of the wanted items, and write the pages."""
    parser = cli.make_parser(__doc__, ReportConfig, "report")
    only_help = "papers or items, as in --only can infilling_table1; by default all"
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=only_help)
    parser.add_argument("--rebuild", action="store_true", help="make the pages from rows alone")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failed command")
    parser.add_running()
    arguments = parser.parse_args()
    config = cli.read_config(ReportConfig, arguments)
    output = (arguments.output or Path(f"runs/report-{arguments.scale}")).resolve()
    if arguments.rebuild:
        lines = rebuild.write_pages(config, arguments.scale, output)
    else:
        from tfmammo.apps.report import runner  # imports TensorFlow, which --rebuild does not need

        only = tuple(arguments.only)
        options = runner.Options(
            arguments.scale, only, arguments.jobs, arguments.keep_going, arguments.any_version
        )
        if arguments.plan:
            lines = runner.print_plan(config, options, shipped.ROOT)
        else:
            lines = runner.run_report(config, options, output, shipped.ROOT)
    for line in lines:
        cli.console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
