"""The reader study in a browser: two readers at once, a killed server, and what the page shows.

With TFMAMMO_SCREENSHOTS=DIR the page behind docs/reader_study.png is saved, with phantoms.
"""

import base64
import os
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.apps.studio.servers import Server
from tests.archives.writers import folder as writer
from tfmammo.apps.reader_study.answers import Answers
from tfmammo.apps.reader_study.cases import ReaderStudyConfig
from tfmammo.archives import phantom
from tfmammo.config import DataConfig

pytest.importorskip("gradio", reason="the extra serve is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SIDE = 160
CASES = 20


def cut(number, mammogram):
    """A phantom's mass and what surrounds it, as a patient's mammogram of their own."""
    lesion = mammogram.lesions[0]
    top, left, bottom, right = lesion.box
    row = int(np.clip((top + bottom - SIDE) // 2, 0, mammogram.rows - SIDE))
    col = int(np.clip((left + right - SIDE) // 2, 0, mammogram.cols - SIDE))
    outlines = tuple(outline - np.float32([row, col]) for outline in lesion.outlines)
    box = (top - row, left - col, bottom - row, right - col)
    moved = replace(lesion, box=box, outlines=outlines)
    facts = {"patient_id": f"p{number}", "rows": SIDE, "cols": SIDE, "pathology": None}
    pixels = lambda: mammogram.read()[row : row + SIDE, col : col + SIDE]  # noqa: E731
    return mammogram.with_pixels(pixels, lesions=(moved,), **facts)


@pytest.fixture
def config(tmp_path):
    """A study of 20 cases of phantoms; the "synthetic" ones have another seed and are blurred."""
    for seed, name in ((0, "real"), (1, "made")):
        firsts = {
            mammogram.patient_id: mammogram
            for mammogram in phantom.read(count=200, seed=seed)
            if mammogram.lesions
            and mammogram.lesions[0].kind == "mass"
            and max(np.ptp(mammogram.lesions[0].outlines[0], axis=0)) < SIDE / 1.6
        }
        cuts = map(cut, range(100 * seed, 100 * seed + 15), firsts.values())
        writer.write(list(cuts), tmp_path / name, annotations="polygons", bits=8)
    for path in (tmp_path / "made/images").iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.GaussianBlur(image, (0, 0), 0.8))
    real, synthetic = (
        DataConfig(name="folder", root=tmp_path / name, size=128, window=(0, 1))
        for name in ("real", "made")
    )
    values = {"pairs": 10, "ratings": 10, "show_results": True, "results": True, "samples": 200}
    values |= {"real": real, "systems": {"blurred": synthetic}}
    return ReaderStudyConfig(name="phantoms", database=tmp_path / "answers.sqlite", **values)


def enter(browser, server, name):
    """A reader's own context, at their first open case."""
    page = browser.new_context(viewport={"width": 1200, "height": 760}).new_page()
    page.set_default_timeout(90_000)  # a page takes seconds on a machine that does other work
    page.goto(server.address)
    page.get_by_label("Your name", exact=True).fill(name)
    page.get_by_role("button", name="Start or continue", exact=True).click()
    return page


def wait(page, number):
    """Until a case is shown, and no click counts as the second half of a double click any more."""
    page.get_by_text(f"Case {number} of {CASES}", exact=True).wait_for()
    page.wait_for_timeout(450)


def answer(page, number, by_key):
    """The left one, or a rating that changes from case to case."""
    wait(page, number)
    left = page.get_by_role("button", name="The left one", exact=True)
    if left.is_visible():
        page.keyboard.press("ArrowLeft") if by_key else left.click()
        return
    rating = str(1 + number % 6)
    button = page.get_by_role("button", name=rating, exact=True)
    page.keyboard.press(rating) if by_key else button.click()


def kept(config):
    return {(answer.reader, answer.case.number): answer.value for answer in Answers(config).all()}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_two_readers_finish_a_study_whose_server_is_killed(config, browser, tmp_path):
    sections = {"study": config.model_dump(mode="json", exclude_defaults=True)}
    server = Server(tmp_path / "first", sections).wait()
    try:
        anna = enter(browser, server, "Anna")
        ben = enter(browser, server, " Ben ")
        nothing_is_revealed(anna, config)
        screenshot(anna)
        window_and_level_map_both_pictures_alike(anna)
        for number in range(1, 10):
            answer(anna, number, by_key=False)
            answer(ben, number, by_key=True)
        wait(anna, 10), wait(ben, 10)
        double_click(anna, config)
        server.kill()
        before = kept(config)
        assert len(before) == 10 + 9
        anna.context.close(), ben.context.close()
        server = Server(tmp_path / "second", sections).wait()
        anna = enter(browser, server, "Anna")
        ben = enter(browser, server, "Ben")
        for number in range(10, CASES + 1):
            if number > 10:
                answer(anna, number, by_key=True)
            if number == CASES:
                anna.get_by_text("All your answers are saved.", exact=True).wait_for()
            answer(ben, number, by_key=False)
        through(anna, ben, config)
        after = kept(config)
        assert len(after) == 2 * CASES and after | before == after
        assert {reader for reader, _ in after} == {"Anna", "Ben"}
        tasks = {case.number: case.task for case in Answers(config).cases()}
        given = {(tasks[number], value) for (_, number), value in after.items()}
        assert given == {("choice", "left"), *(("rating", value) for value in "123456")}
        assert all(0.4 < answer.seconds < 900 for answer in Answers(config).all())
        unchanged_by_a_third_visit(browser, server, config)
    finally:
        server.kill()


def nothing_is_revealed(page, config):
    """Check that a pair differs only in its pixels, and that neither page nor memory says more."""
    page.get_by_text(f"Case 1 of {CASES}", exact=True).wait_for()
    images = page.locator(".pictures img")
    images.nth(1).wait_for()
    assert images.count() == 2
    tags = [images.nth(place).evaluate("image => image.outerHTML") for place in (0, 1)]
    contents = [base64.b64decode(re.search(r"base64,([^\"]*)", tag)[1]) for tag in tags]
    assert contents[0] != contents[1] and len(contents[0]) == len(contents[1])
    assert re.sub(r"base64,[^\"]*", "", tags[0]) == re.sub(r"base64,[^\"]*", "", tags[1])
    boxes = [images.nth(place).bounding_box() for place in (0, 1)]
    assert boxes[0]["width"] == boxes[1]["width"] == boxes[0]["height"] == boxes[1]["height"] > 300
    colour = "element => getComputedStyle(element).backgroundColor"
    assert page.locator(".pictures").evaluate(colour) == "rgb(0, 0, 0)"
    told = re.sub(r"base64,[^\"]*", "", page.content())
    told += page.evaluate("JSON.stringify(window.gradio_config)")
    ids = [patch for case in Answers(config).cases() for _, patch in case.shown]
    for word in ("blurred", "answers.sqlite", "truth", *ids):
        assert word not in told, word


# whether grey -> slope * grey + intercept is what the pictures' filter does
MAPS_BY = """([slope, intercept]) => [
    ...document.querySelectorAll('#grey-window feComponentTransfer > *')
].every(map => +map.getAttribute('slope') === slope
    && Math.abs(map.getAttribute('intercept') - intercept) < 1e-9)"""


def window_and_level_map_both_pictures_alike(page):
    """Window 50 and level 40 map 15 % to black and 65 % to white: grey -> 2 grey - 0.3."""
    page.get_by_text("Window and level", exact=True).click()
    for label, value, slope, intercept in (("Window", 50, 2, -0.5), ("Level", 40, 2, -0.3)):
        field = page.get_by_label(re.compile(f"number input for {label}", re.IGNORECASE))
        for _ in range(10):
            # On a slow machine the first number can arrive before Gradio listens to the field.
            # Gradio ignores a number that it already has, so each attempt begins with another one.
            field.fill(str(value + 1))
            page.wait_for_timeout(500)
            field.fill(str(value))
            try:
                page.wait_for_function(MAPS_BY, arg=[slope, intercept], timeout=9_000)
                break
            except playwright.TimeoutError:
                continue
        else:
            pytest.fail(f"{label} {value} never reached the pictures")
    style = "images => images.map(image => getComputedStyle(image).filter)"
    filters = page.locator(".pictures img").evaluate_all(style)
    assert filters == ['url("#grey-window")'] * 2
    # the slider gives the keys back to the answers
    page.get_by_label(re.compile("range slider for Level", re.IGNORECASE)).click()
    page.wait_for_function("document.activeElement.tagName !== 'INPUT'")


def screenshot(page):
    if folder := os.environ.get("TFMAMMO_SCREENSHOTS"):
        page.wait_for_timeout(500)
        path = Path(folder) / "reader_study.png"
        page.screenshot(path=path)
        assert path.stat().st_size < 200_000


def double_click(page, config):
    """Of case 10: one answer."""
    before = len(kept(config))
    page.get_by_role("button", name="The left one", exact=True).dblclick()
    shown = page.get_by_text(f"Case 11 of {CASES}", exact=True)
    shown.wait_for()
    page.wait_for_timeout(700)
    assert shown.is_visible() and len(kept(config)) == before + 1


def through(anna, ben, config):
    """Whoever is through is thanked; results come when both are."""
    for page in (anna, ben):
        page.get_by_text("All your answers are saved.", exact=True).wait_for()
        page.get_by_text(re.compile(r"You chose the real patch in \d+ of 10 pairs")).wait_for()
        assert page.get_by_role("button", name="The left one", exact=True).count() == 0
    anna.get_by_text(
        "Results are shown when everybody who has begun has finished", exact=False
    ).wait_for()
    ben.get_by_role("button", name="Results").click()
    ben.get_by_text("all readers", exact=True).locator("visible=true").first.wait_for()
    for place, lines in ((0, 1 + 3), (1, 1 + 2 * CASES)):
        with ben.expect_download() as download:
            ben.locator("a[download]").nth(place).click()
        assert download.value.path().read_text().count("\n") == lines


def unchanged_by_a_third_visit(browser, server, config):
    before = kept(config)
    page = enter(browser, server, "Anna")
    page.get_by_text("All your answers are saved.", exact=True).wait_for()
    other = enter(browser, server, "=formula")
    other.get_by_text("a reader's name must begin with a letter", exact=False).wait_for()
    assert kept(config) == before
