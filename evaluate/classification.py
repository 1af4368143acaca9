"""Measure what synthetic patches add to a classifier of real ones: train every share with every
seed, test, compare, draw.

tfmammo evaluate classification --config classification --set
experiment.data.name=cdd_cesm experiment.data.root=DIR

Finished runs are not repeated, and stopped runs resume. Classifiers of real patches alone come
first, and score the synthetic set. If its lesions do not outscore its normal patches, the study
ends, unless --allow is given.

The table has each share's AUC, of scores averaged over the seeds and seed by seed. Patients are the
units: intervals come from Obuchowski's variance, p-values from a permutation test that swaps the
ranks of two models patient by patient, with Holm's correction over the shares. With fewer than six
patients neither is given. The last line is the AUC of a patch's mean intensity alone. A further
column has the paper's p-value, DeLong's, which treats patches of one patient as independent.

With generators, the study also tests how adding and removing lesions changes the score of the
classifiers trained on real patches alone, on patches of patients unseen by both. Its permutation
test flips whole patients. The t-SNE shows the same patches.
"""

from pathlib import Path

from tfmammo import cli
from tfmammo.evaluation.script import print_tables
from tfmammo.studies.classification import StudyConfig
from tfmammo.studies.classification_report import run_study
from tfmammo.training import script, workers


def main() -> None:
    """Train what is missing, test, write and print."""
    parser = cli.make_parser(__doc__, StudyConfig)
    text = "go on with a synthetic set whose lesions do not outscore its normal patches"
    parser.add_argument("--allow", action="store_true", help=text)
    arguments = parser.parse_args()
    config = cli.read_config(StudyConfig, arguments)
    training = config.experiment.training
    workers.refuse_multi_worker(training, "a study trains its classifiers in one process")
    script.configure_tensorflow(training)
    output = arguments.output or Path("runs/classification")
    report = run_study(config, output, arguments.allow)
    print_tables(report.tables, f"tables, CSVs and figures: {output / 'report'}")


if __name__ == "__main__":
    cli.run(main)
