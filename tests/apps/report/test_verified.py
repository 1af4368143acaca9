"""What is said to be verified: the items exist, and so do the tests."""

import re

from tfmammo.apps.report.items import ITEMS
from tfmammo.apps.report.papers import read_papers
from tfmammo.apps.report.verified import list_checks, read_checks


def test_every_verified_fact_names_an_item_and_a_test_that_exists(repository):
    known = {*read_papers(), *(item.key for item in ITEMS)}
    for check in read_checks():
        assert check.item in known, check
        place, _, function = check.test.partition("::")
        path = repository / place
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        wanted = re.compile(rf"^def {function}\w*\(", re.MULTILINE)
        assert any(wanted.search(file.read_text(encoding="utf-8")) for file in files), check


def test_every_paper_has_its_values_networks_and_losses_verified():
    for paper in read_papers():
        facts = list_checks({paper})
        assert len(facts) >= 3 and any("descends" in check.what for check in facts), paper
