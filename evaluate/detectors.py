"""Compare several detectors on one set of mammograms: recall over false positives per image, the
differences from the first, and seconds per mammogram.

tfmammo evaluate detectors --config detectors --set data.name=inbreast data.root=DIR

Only mammograms count for which every detector has a run that never saw their patient. A row of
random boxes tells what the numbers are worth.
"""

from tfmammo import cli
from tfmammo.evaluation.detectors import DetectorsConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Run every detector on patients it never saw, compare, write and print."""
    files = "tables and curves"
    run_evaluation(__doc__, DetectorsConfig, evaluate, "runs/detectors", files)


if __name__ == "__main__":
    cli.run(main)
