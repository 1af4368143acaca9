"""Find, outline and classify lesions in studies of a PACS, and store the findings there.

tfmammo pacs --config pacs --from ADDRESS --study UID ... --to ADDRESS

Studies are fetched from one server, and results are stored in another or the same one as DICOM: a
segmentation and a structured report. Nothing is written anywhere else. For files: tfmammo predict.
"""

from __future__ import annotations

import logging

from tfmammo import cli
from tfmammo.apps.pacs.config import RoundTripConfig, parse_address, read_credentials
from tfmammo.apps.pacs.round_trip import RoundTrip
from tfmammo.config import TrainingConfig
from tfmammo.errors import PacsError
from tfmammo.inference.pipeline import Pipeline
from tfmammo.training import script

log = logging.getLogger(__name__)


def main() -> None:
    """Process the studies that the command line names, and print a line for each."""
    parser = cli.make_command_parser("pacs", __doc__)
    parser.add_config(
        RoundTripConfig, required=False, default="pacs", example="detector=RUN score=0.6"
    )
    forms = "dicomweb://HOST/PATH (HTTPS), dicomweb+http://, dimse://AE@HOST:PORT, dimse+tls://"
    parser.add_argument(
        "--from", dest="source", required=True, metavar="ADDRESS", help=f"a PACS: {forms}"
    )
    parser.add_argument("--study", nargs="+", required=True, metavar="UID", help="its studies")
    about = "the PACS that takes the results"
    parser.add_argument("--to", dest="target", required=True, metavar="ADDRESS", help=about)
    options = parser.parse_args()
    config = cli.read_config(RoundTripConfig, options)
    source = parse_address(options.source, "--from")
    target = parse_address(options.target, "--to")
    read_credentials(config.pacs, source, target)  # before models are loaded
    script.configure_tensorflow(TrainingConfig(precision="float32"))
    pipeline = Pipeline.load(config.get_pipeline())
    for remark in pipeline.list_remarks():
        log.warning("%s", remark)
    failed = 0
    for outcome in RoundTrip(pipeline, config.pacs, source, target).run(options.study):
        cli.console.print(outcome.describe(), highlight=False, soft_wrap=True)
        failed += outcome.failure is not None
    if failed:
        studies = len(dict.fromkeys(options.study))
        raise PacsError(
            f"{failed} of {studies} studies are not complete; repeat the command to continue"
        )


if __name__ == "__main__":
    cli.run(main)
