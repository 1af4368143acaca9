"""The studio in a browser, with small exports whose answers are known.

With TFMAMMO_SCREENSHOTS=DIR the page behind docs/studio.png is saved, with a phantom and the zoo's
networks.
"""

import contextlib
import io
import json
import os
import signal
import stat
from pathlib import Path

import cv2
import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.apps.studio.servers import Server
from tests.small_mammograms import PATIENT
from tests.small_pipelines import save_models
from tfmammo.archives import phantom
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.config import parse

pytest.importorskip("gradio", reason="the extra serve is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tfmammo.apps.studio.config import StudioConfig  # noqa: E402

CONFIGS = Path(__file__).parents[3] / "configs"
SECRETS = ("QUIBBLE", "ZEPHYRINE", "PIDXW77310", "19430217", "GRUMBOLT", "SNODGRASS")
FILE = "Quibble Zephyrine 1943.dcm"


@pytest.fixture(scope="module")
def mass():
    """A phantom with a mass, which the pipeline is to find."""
    return next(
        each for each in phantom.read(count=8) if each.lesions and each.lesions[0].kind == "mass"
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_infilling, tiny_contextual, mass):
    """A config's sections of small systems and a small CAD pipeline."""
    root = tmp_path_factory.mktemp("models")
    save_models(root, [mass.lesions[0].box], mass.rows, mass.cols)
    names = {"detector": "detector", "segmenter": "segmenter", "classifier": "shape"}
    return {
        "systems": {
            "infilling": {"renderer": "infilling", "generator": str(tiny_infilling())},
            "add": {"renderer": "contextual", "generator": str(tiny_contextual())},
        },
        "pipeline": {stage: f"{root}/{name}" for stage, name in names.items()},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory, models):
    server = Server(tmp_path_factory.mktemp("studio"), models)
    try:
        yield server.wait()
    finally:
        server.kill()


def visit(browser, server, script=""):
    """Open the studio in a new browser; page.elsewhere lists requests to other sites."""
    page = browser.new_context(viewport={"width": 1360, "height": 1000}).new_page()
    page.add_init_script(script)
    page.set_default_timeout(90_000)
    page.elsewhere = []

    def note(request):
        if not request.url.startswith((server.address, "data:", "blob:")):
            page.elsewhere.append(request.url)

    page.on("request", note)
    page.goto(server.address)
    page.get_by_role("button", name="Open a mammogram", exact=True).wait_for()
    return page


@pytest.fixture
def patient(tmp_path, mass):
    """A DICOM of a phantom, its header full of a patient."""
    path = tmp_path / FILE
    stored = np.rint(mass.pixels()[..., 0] * 4095).astype(np.uint16)
    facts = {"ImageLaterality": mass.laterality, "ViewPosition": mass.view}
    facts |= {"ImagerPixelSpacing": [0.2, 0.2], "WindowCenter": 2048, "WindowWidth": 4096}
    facts |= {"RescaleSlope": 1, "RescaleIntercept": 0}
    facts |= {"PresentationIntentType": "FOR PRESENTATION", "InstitutionName": "SNODGRASS"}
    write_dicom(path, stored, 12, **PATIENT, **facts)
    return path


def upload(page, button, path, tab="Insert or remove"):
    page.get_by_role("tab", name=tab, exact=True).click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=button, exact=True).click()
    chooser.value.set_files(path)


def click(page, row, col):
    """Click at a native pixel of a phantom, which is shown as large as it is stored.

    Returns the place that the page tells.
    """
    image = page.locator("#mammogram img")
    image.wait_for()
    told = page.get_by_text("Place: row", exact=False)
    # A click on an image that is still being replaced is lost, and its size may be another later.
    for _ in range(6):
        image.click(position=find_position(image, row, col))
        with contextlib.suppress(playwright.TimeoutError):
            told.wait_for(timeout=15_000)
            break
    assert told.is_visible(), page.locator("body").inner_text()
    words = told.inner_text().rsplit("Place: row ", 1)[1].rstrip(".").split(", column ")
    return int(words[0]), int(words[1])


def find_position(image, row, col):
    """Find the middle of a native pixel in what the page shows of an image, px."""
    image.evaluate("image => image.decode()")
    box = image.bounding_box()
    natural = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    scale = min(box["width"] / natural[0], box["height"] / natural[1])
    left = (box["width"] - scale * natural[0]) / 2
    top = (box["height"] - scale * natural[1]) / 2
    return {"x": left + scale * (col + 0.5), "y": top + scale * (row + 0.5)}


def downloads(page, area, folder):
    """All files that a tab offers, by name."""
    links = page.locator(f"{area} a[download]")
    links.first.wait_for()
    started = [start_download(page, links.nth(number)) for number in range(links.count())]
    for download in started:
        download.save_as(folder / download.suggested_filename)
    return {each.suggested_filename: folder / each.suggested_filename for each in started}


def start_download(page, link):
    for _ in range(3):  # a click on a list that is still being replaced is lost
        try:
            with page.expect_download(timeout=20_000) as download:
                link.click()
            return download.value
        except playwright.TimeoutError:
            continue
    raise AssertionError("no download starts")


def make(page):
    page.get_by_role("button", name="Apply", exact=True).click()
    page.locator("#before-after img").nth(1).wait_for()


def free_place(mass):
    """A place within the breast, far from skin and lesions."""
    breast = (cv2.GaussianBlur(mass.pixels()[..., 0], (0, 0), 5) > 0.15).astype(np.uint8)
    for lesion in mass.lesions:
        top, left, bottom, right = lesion.box
        breast[max(0, top - 60) : bottom + 60, max(0, left - 60) : right + 60] = 0
    depth = cv2.distanceTransform(np.pad(breast, 1), cv2.DIST_L2, 5)
    row, col = np.unravel_index(depth.argmax(), depth.shape)
    return int(row) - 1, int(col) - 1


def names_nobody(*texts):
    raw = b" ".join(text if isinstance(text, bytes) else text.encode() for text in texts).upper()
    return not any(word.encode() in raw for word in SECRETS)


@pytest.mark.slow
def test_a_lesion_is_made_where_somebody_clicks(server, browser, patient, mass, tmp_path):
    page = visit(browser, server)
    upload(page, "Open a mammogram", patient)
    place = click(page, *free_place(mass))
    assert np.abs(np.subtract(place, free_place(mass))).max() <= 2
    page.get_by_label("Height, px", exact=True).fill("50")
    page.get_by_label("Width, px", exact=True).fill("40")
    page.get_by_text("That is 10.0 x 8.0 mm.", exact=True).wait_for()
    page.get_by_label("oval", exact=True).click()
    make(page)
    page.get_by_text("Mass added.", exact=True).wait_for()
    files = downloads(page, "#insert-files", tmp_path)
    assert set(files) == {"synthetic.dcm", "annotations.json", "mask.png", "recipe.json"}
    agree(files, place, patient)
    plain = page.locator("#before-after img").nth(1).get_attribute("src")
    page.get_by_label("Show box and outline", exact=True).click()
    images = "[...document.querySelectorAll('#before-after img')]"
    page.wait_for_function(f"plain => {images}.every(image => image.src !== plain)", arg=plain)
    told = page.evaluate("JSON.stringify(window.gradio_config)")
    assert names_nobody(page.content(), told, server.log)
    for path in [*server.files(), *files.values()]:
        if path.name != "segmentation.dcm":  # another test's, which has to name the patient
            assert names_nobody(path.read_bytes(), str(path))
    assert page.elsewhere == []
    phantom_of(page, "#insert-phantom", 0)
    page.locator("#before-after").wait_for(state="hidden")


def agree(files, place, patient):
    """Check the downloads: one lesion of that size at the place, and nothing else changed."""
    (annotation,) = json.loads(files["annotations.json"].read_text())["annotations"]
    left, top, width, height = annotation["bbox"]
    assert top <= place[0] < top + height and left <= place[1] < left + width
    assert abs(height - 50) <= 2 and abs(width - 40) <= 2
    mask = cv2.imread(str(files["mask.png"]), cv2.IMREAD_UNCHANGED)
    assert mask[top : top + height, left : left + width].any()
    assert (mask > 0).sum() == annotation["area"]
    before = pydicom.dcmread(patient)
    after = pydicom.dcmread(files["synthetic.dcm"])
    assert after.PatientName == "SYNTHETIC^MAMMOGRAM" and after.SyntheticData == "YES"
    for key in ("BitsStored", "ImageLaterality", "ViewPosition", "ImagerPixelSpacing"):
        assert after[key].value == before[key].value
    changed = before.pixel_array != after.pixel_array
    assert changed[mask > 0].mean() > 0.5
    assert not changed[: max(0, top - 60)].any() and not changed[top + height + 60 :].any()
    recipe = json.loads(files["recipe.json"].read_text())
    assert recipe["config"]["seed"] == 0 and recipe["source"]["bits"] == 16  # of a picture of it


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_systems_that_come_with_the_package(tmp_path, browser):
    """Each system of configs/studio.yaml once, with the zoo's networks."""
    config = parse(StudioConfig, CONFIGS / "studio.yaml")
    shipped = Server(tmp_path, config.model_dump(mode="json"))
    try:
        page = visit(browser, shipped.wait())
        phantom_of(page, "#insert-phantom", 0)
        click(page, *free_place(phantom.read(count=1)[0]))
        shown = {}
        for name in config.systems:
            page.get_by_label(name, exact=True).click()
            page.wait_for_timeout(500)  # its options take the place of the last system's
            page.get_by_role("button", name="Apply", exact=True).click()
            page.wait_for_function(
                """shown => {
                    const image = document.querySelectorAll('#before-after img')[1];
                    return image && image.complete && !shown.includes(image.src);
                }""",
                arg=list(shown.values()),
            )
            shown[name] = page.locator("#before-after img").nth(1).get_attribute("src")
            if folder := os.environ.get("TFMAMMO_SCREENSHOTS"):
                screenshot(page, Path(folder) / f"studio_{name.replace(' ', '_')}.png")
        told = "Tissue filled in, where a lesion may have been."
        page.get_by_text(told, exact=True).wait_for()
        assert len(set(shown.values())) == len(config.systems) == 5
        assert not page.locator(".note").first.is_visible()
    finally:
        shipped.kill()


def phantom_of(page, area, number):
    page.locator(f"{area} input").click()
    page.locator("ul[role=listbox] li").nth(number).click()


@pytest.mark.slow
def test_a_phantom_is_opened_once(server, browser):
    """A second opening would take back the place that was clicked in the meantime."""
    page = visit(browser, server)
    asked = []
    page.on("request", lambda request: asked.append(request.post_data or ""))
    phantom_of(page, "#insert-phantom", 0)
    page.locator("#mammogram img").wait_for()
    page.wait_for_timeout(1000)
    name = page.locator("#insert-phantom input").input_value()
    assert sum(f'"{name}"' in text for text in asked) == 1


# The browser hears two seconds late that the server has closed the connection for answers.
LATE = """
const now = window.fetch;
window.fetch = async (...request) => {
    const answer = await now(...request);
    if (!String(request[0].url ?? request[0]).includes('/queue/data')) return answer;
    const reader = answer.body.getReader();
    const body = new ReadableStream({
        async pull(controller) {
            const {done, value} = await reader.read();
            if (done) return controller.close();
            const text = new TextDecoder().decode(value);
            if (text.includes('close_stream')) await new Promise(then => setTimeout(then, 2000));
            controller.enqueue(value);
        }
    });
    return new Response(body, {headers: answer.headers, status: answer.status});
};
"""


@pytest.mark.slow
def test_a_click_is_answered_though_the_connection_is_being_closed(server, browser):
    page = visit(browser, server, LATE)
    phantom_of(page, "#insert-phantom", 0)
    image = page.locator("#mammogram img")
    image.wait_for()
    page.wait_for_timeout(1000)  # its opening has been answered, and the connection is closing
    image.click(position=find_position(image, *free_place(phantom.read(count=1)[0])))
    told = page.get_by_text("Place: row", exact=False)
    told.wait_for(timeout=60_000)
    assert told.is_visible()


@pytest.mark.long
def test_browsers_do_not_share_what_they_see(server, browser, tmp_path):
    phantoms = {visit(browser, server): number for number in (0, 3)}
    for page, number in phantoms.items():
        phantom_of(page, "#insert-phantom", number)
    places = {
        page: click(page, *free_place(phantom.read(count=4)[number]))
        for page, number in phantoms.items()
    }
    for page in phantoms:
        page.get_by_role("button", name="Apply", exact=True).click()
    for page, number in phantoms.items():
        page.get_by_text("Mass added.", exact=True).wait_for()
        files = downloads(page, "#insert-files", tmp_path / str(number))
        source = json.loads(files["recipe.json"].read_text())["source"]
        assert source["image_id"] == phantom.read(count=4)[number].image_id
        (annotation,) = json.loads(files["annotations.json"].read_text())["annotations"]
        left, top, width, height = annotation["bbox"]
        row, col = places[page]
        assert top <= row < top + height and left <= col < left + width
    third = visit(browser, server)
    assert third.locator("#mammogram img, a[download]").count() == 0


@pytest.mark.slow
def test_a_mammogram_is_read(server, browser, patient, mass, tmp_path):
    page = visit(browser, server)
    upload(page, "Read a mammogram", patient, tab="Read")
    page.locator("#overlay img").wait_for()
    files = downloads(page, "#read-files", tmp_path / "read")
    assert set(files) == {"report.json", "overlay.png", "segmentation.dcm"}
    (lesion,) = json.loads(files["report.json"].read_text())["lesions"]
    assert lesion["box"] == list(mass.lesions[0].box) and lesion["score"] == 0.9
    assert ", ".join(map(str, lesion["box"])) in page.locator("#lesions").inner_text()
    segmentation = pydicom.dcmread(files["segmentation.dcm"])
    # as the standard demands, and the page says
    assert segmentation.PatientName == "QUIBBLE^ZEPHYRINE"
    (tmp_path / "torn.png").write_bytes(b"no picture")
    upload(page, "Read a mammogram", tmp_path / "torn.png", tab="Read")
    page.locator("#overlay").wait_for(state="hidden")
    others = [files[name].read_bytes() for name in ("report.json", "overlay.png")]
    assert names_nobody(*others, page.content(), server.log)
    assert FILE not in [path.name for path in server.files()]


@pytest.mark.slow
def test_limits_hold_past_the_page_too(server):
    """Foreign files, pages and names, and uploads that are too large: these tests keep 60 MB."""
    for path in ("/etc/passwd", server.path, server.temporary.parent / "studio.yaml"):
        answer = httpx.get(f"{server.address}/gradio_api/file={path}")
        assert answer.status_code in (403, 404)
    upload = f"{server.address}/gradio_api/upload"
    for headers, status in (({"host": "evil.example"}, 400), ({"origin": "null"}, 403)):
        assert httpx.get(server.address, headers=headers).status_code == status
        files = {"files": ("a.png", b"x")}
        assert httpx.post(upload, files=files, headers=headers).status_code == status

    def send(megabytes):
        files = {"files": ("image.png", os.urandom(megabytes * 2**20))}
        return httpx.post(upload, files=files, timeout=60).status_code

    assert send(5) == 413  # above upload_mb
    kept = [send(3) for _ in range(21)]
    assert kept[0] == 200 and set(kept) == {200, 413} and kept[-1] == 413
    assert sum(path.stat().st_size for path in server.files()) <= 60 * 2**20
    for path in server.files():  # the other tests need the space
        if path.stat().st_size == 3 * 2**20:
            path.unlink()


@pytest.mark.long
def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path, models, browser):
    server = Server(tmp_path, {"systems": {"add": models["systems"]["add"]}}, host="0.0.0.0")
    try:
        server.wait()
        assert "there is no password" in server.log
        (folder,) = server.temporary.glob("tfmammo_studio_*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        page = visit(browser, server)
        phantom_of(page, "#insert-phantom", 0)
        page.locator("#mammogram img").wait_for()
        assert any(path.is_file() for path in folder.rglob("*"))
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) in (0, 130)
        assert not folder.exists() and server.files() == []
    finally:
        server.kill()


def screenshot(page, path):
    """The page, about half as large."""
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    size = picture.width * 11 // 20, picture.height * 11 // 20
    picture.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)
    assert path.stat().st_size < 300_000
