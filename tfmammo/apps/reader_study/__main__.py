"""Run a reader study: can readers of mammograms distinguish synthetic lesions from real ones?

tfmammo reader-study --config configs/reader_study.yaml COMMAND

COMMAND is one of
    cases       draw the cases, and print how many there are
    open        let readers answer at http://127.0.0.1:7860 (needs the extra serve)
    results     print the table; with --output DIR also write results.csv and roc.png
    export      write answers.csv, one row for each answer, to --output DIR or here

Readers answer in the browser. First they choose the real patch of each pair of a real and a
synthetic one. Then they rate single patches, half of them real, from 1 (certainly synthetic) to 6
(certainly real). All readers see the same cases, each in a different order, and no patient twice.
Cases are drawn once and stored in the study's database with the answers; `results` and `export`
read only the database. Overrides come last: `... results --set level=0.9`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tfmammo import cli
from tfmammo.apps.reader_study.answers import Answers, write_answers
from tfmammo.apps.reader_study.cases import ReaderStudyConfig
from tfmammo.apps.reader_study.results import (
    compute_results,
    plot_roc,
    results_table,
    write_results,
)
from tfmammo.apps.reader_study.session import ReaderStudy
from tfmammo.errors import ConfigError
from tfmammo.evaluation.report import save_figure
from tfmammo.metrics.summary import Table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error becomes one line on stderr and exit code 2."""
    parser = cli.make_parser(__doc__ or "", ReaderStudyConfig)
    parser.prog = "tfmammo reader-study"
    parser.add_argument(
        "command", choices=("cases", "open", "results", "export"), help="what to do; before --set"
    )
    options = parser.parse_args(arguments)
    work = {"cases": _draw, "open": _open, "results": _show_results, "export": _export}

    def run() -> None:
        config = cli.read_config(ReaderStudyConfig, options)
        if options.output and options.command in ("cases", "open"):
            raise ConfigError(f"--output: {options.command} writes into `database` alone")
        work[options.command](config, options.output)

    cli.run(run)


def _draw(config: ReaderStudyConfig, _: Path | None) -> None:
    """Draw the cases if the database has none, and print how many each system has."""
    ReaderStudy(config)
    cases = Answers(config).cases()
    counts = Counter((case.system, case.task) for case in cases)
    body = [
        [system, str(counts[system, "choice"]), str(counts[system, "rating"])]
        for system in config.systems
    ]
    title = f"{config.name}: {len(cases)} cases in {config.database}"
    cli.console.print(Table(title, ["system", "pairs", "ratings"], body))


def _open(config: ReaderStudyConfig, _: Path | None) -> None:
    """Open the studio with only this study, until Ctrl-C."""
    from tfmammo.apps.studio import __main__ as studio  # needs the extra serve
    from tfmammo.apps.studio.config import StudioConfig

    studio.show(StudioConfig(study=config))


def _show_results(config: ReaderStudyConfig, output: Path | None) -> None:
    answers = Answers(config)
    results = compute_results(config, answers)
    if output:
        output.mkdir(parents=True, exist_ok=True)
    if not results:
        cli.console.print(f"{config.name}: nobody has answered yet")
        return
    cli.console.print(results_table(results, config.name))
    if output:
        write_results(results, output / "results.csv")
        save_figure(plot_roc(config, answers), output / "roc.png")
        cli.console.print(f"written   {output}")


def _export(config: ReaderStudyConfig, output: Path | None) -> None:
    if output:
        output.mkdir(parents=True, exist_ok=True)
    path = (output or Path()) / "answers.csv"
    write_answers(config, Answers(config), path)
    cli.console.print(f"answers   {path}")


if __name__ == "__main__":
    main()
