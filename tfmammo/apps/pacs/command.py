"""The options of `tfmammo case` for a PACS."""

from __future__ import annotations

import argparse
import logging

from tfmammo import cli
from tfmammo.apps.pacs.config import CaseConfig, parse_address, read_credentials
from tfmammo.apps.pacs.round_trip import RoundTrip
from tfmammo.errors import ConfigError, PacsError
from tfmammo.inference.pipeline import Pipeline

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --from, --study and --to."""
    forms = "dicomweb://HOST/PATH (HTTPS), dicomweb+http://, dimse://AE@HOST:PORT, dimse+tls://"
    parser.add_argument("--from", dest="source", metavar="ADDRESS", help=f"a PACS: {forms}")
    parser.add_argument("--study", nargs="+", default=[], metavar="UID", help="its studies")
    parser.add_argument(
        "--to", dest="target", metavar="ADDRESS", help="the PACS that takes the results"
    )


def run(options: argparse.Namespace, config: CaseConfig) -> None:
    """Process the studies that the command line names, and print a line for each."""
    if not (options.source and options.target and options.study):
        raise ConfigError("--from, --study and --to belong together")
    if options.mammograms or options.output:
        raise ConfigError("--from excludes files and --output: results go to --to alone")
    source = parse_address(options.source, "--from")
    target = parse_address(options.target, "--to")
    read_credentials(config.pacs, source, target)  # before models are loaded
    pipeline = Pipeline.load(config.get_pipeline())
    for remark in pipeline.list_remarks():
        log.warning("%s", remark)
    failed = 0
    outcomes = RoundTrip(pipeline, config.pacs, source, target).run(options.study)
    for outcome in outcomes:
        cli.console.print(outcome.describe(), highlight=False, soft_wrap=True)
        failed += outcome.failure is not None
    if failed:
        studies = len(dict.fromkeys(options.study))
        raise PacsError(
            f"{failed} of {studies} studies are not complete; repeat the command to continue"
        )
