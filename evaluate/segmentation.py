"""Evaluate segmentation models on unseen patients: intervals, paired tests, CSVs, figures.

tfmammo evaluate segmentation --config segmentation --set data.name=inbreast
data.root=DIR models.CAN=[RUN,RUN,RUN]

Two trivial baselines, which ignore the image, show what the numbers mean. "whole
patch" calls everything mass. "centred disc" knows only how the patches are cut: its radius is the
best one for the masks that the first model was trained on. Figures: the best, median and worst
cases of each model; where all models are right and wrong, side by side; box plots; ROC curves over
pixels.

tfmammo evaluate segmentation --study can --set data.root=DIR

A study trains and scores its models under several protocols (tfmammo/studies/segmentation.py). It
resumes where it stopped; on another machine it needs only its CSV files.
"""

from pathlib import Path

from tfmammo import cli, shipped
from tfmammo.evaluation.script import print_tables, run_with
from tfmammo.evaluation.segmentation import SegmentationConfig, evaluate
from tfmammo.studies import segmentation as studies


def main() -> None:
    """Compare models on patients that they never saw, or run a study."""
    parser = cli.make_parser(__doc__, SegmentationConfig, "segmentation")
    parser.add_data()
    study_help = "a study instead, by default of configs/study_NAME.yaml, which shows its keys"
    parser.add_argument("--study", choices=("can", "cgan"), help=study_help)
    parser.add_running()
    arguments = parser.parse_args()
    if not arguments.study:
        if arguments.plan or arguments.any_version or arguments.jobs > 1:
            parser.error("--plan, --jobs and --any-version are for studies, and --study names none")
        files = "tables, CSVs and figures"
        run_with(arguments, SegmentationConfig, evaluate, "runs/segmentation", files)
        return
    if arguments.config == parser.get_default("config"):
        arguments.config = f"study_{arguments.study}"
    study = cli.read_config(studies.StudyConfig, arguments)
    output = (arguments.output or Path("runs") / study.name).resolve()
    if arguments.plan:
        for run in studies.find_missing(study, studies.plan_runs(study, output, shipped.ROOT)):
            for step in (run.train, run.score):
                cli.console.print(step.format_command(), soft_wrap=True)
        return
    places = (output, shipped.ROOT, arguments.jobs, arguments.any_version)
    report = studies.run_study(study, *places)
    print_tables(report.tables, f"tables: {output}; scores of every case: {study.rows}")


if __name__ == "__main__":
    cli.run(main)
