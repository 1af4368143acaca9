"""A browser for the tests of the studio."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def browser():
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
