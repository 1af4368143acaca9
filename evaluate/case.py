"""Find, outline and name the lesions of a mammogram: box, mask and shape of each, by three
trained models.

tfmammo case --config case MAMMOGRAM.dcm [MORE ...] --output DIR
tfmammo case --config case --from ADDRESS --study UID ... --to ADDRESS

Every mammogram gets a folder in DIR, named after its file and the beginning of the file's sha256.
It holds overlay.png, mask.png (0 tissue, 255 lesion, in the image's own pixels), report.json and,
for a DICOM file, segmentation.dcm. The standard requires segmentation.dcm to repeat the patient's
name and number; the other files hold neither.

With --from, studies are fetched from a PACS, and results are stored in them as DICOM: a
segmentation and a structured report. Nothing is written anywhere else.
"""

from pathlib import Path

from tfmammo import cli
from tfmammo.apps.pacs import command
from tfmammo.apps.pacs.config import CaseConfig
from tfmammo.config import TrainingConfig
from tfmammo.errors import ArchiveError, PipelineError
from tfmammo.inference.case import process_file
from tfmammo.inference.pipeline import Pipeline
from tfmammo.training import script


def main() -> None:
    """Load the models, then process each mammogram; those that can't be read end in exit code 2."""
    parser = cli.make_parser(__doc__, CaseConfig, "case")
    about = "an image file, DICOM or other"
    parser.add_argument("mammograms", nargs="*", type=Path, metavar="MAMMOGRAM", help=about)
    command.add_arguments(parser)
    arguments = parser.parse_args()
    config = cli.read_config(CaseConfig, arguments)
    script.configure_tensorflow(TrainingConfig(precision="float32"))
    if arguments.source or arguments.study or arguments.target:
        command.run(arguments, config)
        return
    if not arguments.mammograms:
        parser.error("give at least one MAMMOGRAM, or --from, --study and --to")
    pipeline = Pipeline.load(config.get_pipeline())
    failures = []
    for path in arguments.mammograms:
        try:
            folder, findings = process_file(pipeline, path, arguments.output or Path("runs/case"))
        except (ArchiveError, PipelineError) as error:
            failures.append(f"{path}: {str(error).removeprefix(f'{path}: ')}")
            continue
        lines = f"{path}: {findings}", f"-> {folder}"
        cli.console.print(*lines, highlight=False, soft_wrap=True)
    if failures:
        raise PipelineError("; ".join(failures))


if __name__ == "__main__":
    cli.run(main)
