"""A reader study: can those who read mammograms tell synthetic lesions from real ones?

python -m tfmammo.reader_study --config configs/reader_study.yaml cases       draws the cases, and
                        says how many there are
python -m tfmammo.reader_study --config configs/reader_study.yaml open        lets readers answer,
                        at http://127.0.0.1:7860
python -m tfmammo.reader_study --config configs/reader_study.yaml results     the table; with
                        --output DIR also results.csv and roc.png
python -m tfmammo.reader_study --config configs/reader_study.yaml export      answers.csv, a row an
                        answer, in --output DIR or here

Readers answer in the browser (tfmammo.studio.judging); `open` needs the extra serve. First they
choose the real one of pairs, a real patch beside a synthetic one; then they rate single patches,
half of them real, from 1 (certainly synthetic) to 6 (certainly real). All see the same cases, each
in an order of their own, and no patient twice. Cases are drawn once and kept in the study's
database with the answers; results and export read that alone. Overrides come last: `... results
--set level=0.9`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfmammo import cli
from tfmammo import cli as command
from tfmammo import config as configuration
from tfmammo.metrics.summary import Table
from tfmammo.reader_study.answers import Answers, write_answers
from tfmammo.reader_study.cases import Case, ReaderStudyConfig, Task
from tfmammo.reader_study.results import results, roc, table, write_results
from tfmammo.reader_study.session import ReaderStudy

# The command


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2."""
    parser = cli.arguments(__doc__ or "")
    parser.prog = "python -m tfmammo.reader_study"
    parser.add_argument(
        "command", choices=("cases", "open", "results", "export"), help="what to do; before --set"
    )
    chosen = parser.parse_args(arguments)
    command.run(
        lambda: _run(
            configuration.parse(ReaderStudyConfig, chosen.config, chosen.set),
            chosen.command,
            chosen.output,
        )
    )


def _run(config: ReaderStudyConfig, wanted: str, output: Path | None) -> None:
    if wanted == "open":
        _open(config)
        return
    answers = Answers(config)
    if wanted == "cases":
        ReaderStudy(config)
        cli.console.print(_overview(config, answers.cases()))
        return
    if wanted == "results":
        found = results(config, answers)
        cli.console.print(
            table(found, config.name) if found else f"{config.name}: nobody has answered yet"
        )
    if output:
        output.mkdir(parents=True, exist_ok=True)
    if wanted == "export":
        path = (output or Path()) / "answers.csv"
        write_answers(config, answers, path)
        cli.console.print(f"answers   {path}")
    elif output and found:
        write_results(found, output / "results.csv")
        roc(config, answers).savefig(output / "roc.png", dpi=150)
        cli.console.print(f"written   {output}")


def _open(config: ReaderStudyConfig) -> None:
    """The studio with this study alone, until Ctrl-C."""
    from tfmammo.studio import __main__ as studio  # which needs the extra serve

    def chosen() -> Any:
        from tfmammo.studio.app import StudioConfig

        return StudioConfig(study=config)

    studio.show(chosen)


def _overview(config: ReaderStudyConfig, cases: Sequence[Case]) -> Table:
    def count(system: str, task: Task) -> str:
        return str(sum((case.system, case.task) == (system, task) for case in cases))

    body = [[system, count(system, "choice"), count(system, "rating")] for system in config.systems]
    return Table(
        f"{config.name}: {len(cases)} cases in {config.database}",
        ["system", "pairs", "ratings"],
        body,
    )


if __name__ == "__main__":
    main()
