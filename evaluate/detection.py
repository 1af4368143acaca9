"""Evaluate detectors on patients they never saw: recall over false positives per image (FROC)
with intervals, seconds per mammogram, and every box.

tfmammo evaluate detection --config detection --set data.name=inbreast data.root=DIR
detectors=[RUN,RUN]

Several model URIs are the folds of one cross-validation: each mammogram goes to the model that
was not trained on its patient. Their scores have different scales, so each fold is measured
separately. Tables give the mean and, in a second row, the result of pooled scores.

tfmammo evaluate detection --config detection --set data.name=inbreast data.root=DIR
'detectors={SSD: [RUN,RUN], Mask R-CNN: [RUN,RUN]}' boxes=100

Several detectors are evaluated on the mammograms for which each of them has a run that never saw
their patient, and the differences from the first are tested. With boxes=100, a row of random boxes
is the trivial baseline.

tfmammo evaluate detection --study infilling --set data.name=ddsm data.root=DIR
tfmammo evaluate detection --study blending --set data.name=inbreast data.root=DIR

A study trains a detector on real and on more and more synthetic mammograms, for every fold, and
tests the difference (tfmammo/studies/detection.py). It resumes where it stopped.
"""

from pathlib import Path

from tfmammo import cli, shipped
from tfmammo.evaluation.detection import DetectionConfig, evaluate
from tfmammo.evaluation.script import print_tables, run_with
from tfmammo.studies import detection_report
from tfmammo.studies.detection import StudyConfig


def main() -> None:
    """Evaluate detectors on the patients they never saw, or run a study."""
    parser = cli.make_parser(__doc__, DetectionConfig, "detection")
    parser.add_data()
    study_help = "a study instead, by default of configs/study_NAME.yaml, which shows its keys"
    parser.add_argument("--study", choices=("infilling", "blending"), help=study_help)
    parser.add_running()
    arguments = parser.parse_args()
    if not arguments.study:
        if arguments.plan or arguments.any_version or arguments.jobs > 1:
            parser.error("--plan, --jobs and --any-version are for studies, and --study names none")
        run_with(arguments, DetectionConfig, evaluate, "runs/detection", "tables, curve and boxes")
        return
    if arguments.config == parser.get_default("config"):
        arguments.config = f"study_{arguments.study}"
    study = cli.read_config(StudyConfig, arguments)
    output = (arguments.output or Path("runs") / study.name).resolve()
    if arguments.plan:
        detection_report.show_plan(study, output, shipped.ROOT)
    else:
        places = (output, shipped.ROOT, arguments.any_version, arguments.jobs)
        report = detection_report.run_study(study, *places)
        print_tables(report.tables, f"tables and figures: {output / 'report'}")


if __name__ == "__main__":
    cli.run(main)
