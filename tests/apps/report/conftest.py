"""The shipped report, and its plans."""

from pathlib import Path

import pytest

from tfmammo import config as configuration
from tfmammo.apps.report import plan, runner
from tfmammo.apps.report.config import SCALES, ReportConfig
from tfmammo.apps.report.runner import Options


@pytest.fixture(scope="session")
def config(repository):
    return configuration.parse(ReportConfig, repository / "configs/report.yaml")


@pytest.fixture(scope="session")
def complete(config):
    """The config with all data and packages available."""
    return plan.complete(config)


@pytest.fixture(scope="session")
def whole(complete, repository):
    """The plan of each scale, with all items."""
    return {
        scale: runner.plan_report(complete, Options(scale), Path("/out"), repository)
        for scale in SCALES
    }
