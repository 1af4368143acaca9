"""Audit a generator: does it reveal its training patients?

    tfmammo audit --config configs/audit.yaml --set model=RUN data.root=DIR

Training patches are compared with as many unseen ones: membership by loss and by discriminator,
nearest patches, extraction from masks alone, re-identified patients. The verdict goes into the
export's card, or into the tags of a registered version; `promote` can require it.
"""

from __future__ import annotations

from pathlib import Path

from tfmammo import cli
from tfmammo.apps.audit.attacks import AuditConfig
from tfmammo.apps.audit.work import audit
from tfmammo.evaluation.script import run_with


def main() -> None:
    """Run the command. An error becomes one line on stderr and exit code 2."""
    parser = cli.make_command_parser("audit", __doc__)
    parser.add_config(AuditConfig, example="model=RUN data.root=DIR")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: runs/audit")
    options = parser.parse_args()
    cli.run(lambda: run_with(options, AuditConfig, audit, "runs/audit", "verdict and table"))


if __name__ == "__main__":
    main()
