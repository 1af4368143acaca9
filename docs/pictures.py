"""Make the pictures of README.md and the documentation, one command each.

python docs/pictures.py insertions --data DIR
python docs/pictures.py pipeline --data FILMS
python docs/pictures.py cdd_cesm --data DIR
python docs/pictures.py demo
python docs/pictures.py studio
python docs/pictures.py reader_study

Cases are drawn at random with a fixed seed, never chosen. A JSON file beside each picture records
the command, and the SHA-256 of the networks that made it. `studio` and `reader_study` need the
extra serve, Playwright and chromium.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo import archives
from tfmammo.apps.demo import scenes
from tfmammo.config import DataConfig
from tfmammo.errors import DataError
from tfmammo.filesystem import to_json
from tfmammo.inference.pipeline import Pipeline, PipelineConfig
from tfmammo.inference.report import draw_overlay
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, EditResult
from tfmammo.tracking import zoo
from tfmammo.tracking.zoo import read_entry

HERE = Path(__file__).resolve().parent
SEED = 2026
TESTS = {  # picture -> the test that makes it, its file
    "studio": ("test_app.py::test_the_systems_that_come_with_the_package", "studio_blending.png"),
    "reader_study": (
        "test_judging.py::test_two_readers_finish_a_study_whose_server_is_killed",
        "reader_study.png",
    ),
}
SHOWN = 4  # rows
WINDOW = 800  # native px of a mammogram that a panel shows
SIDE = 224  # px of a panel
TITLE = 30  # px above the panels
LABEL = 90  # px beside them, if rows have labels
COLOURS = {"mass": "C3", "calcification": "C0", "asymmetry": "gold", "distortion": "limegreen"}
MASS = (200, 180)  # native px of a generated mass


def main() -> None:
    """Make the picture that the command names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", choices=("insertions", "pipeline", "cdd_cesm", "demo", *TESTS))
    parser.add_argument(
        "--data",
        type=Path,
        help="CDD-CESM with some normal mammograms; for pipeline CBIS-DDSM, official split",
    )
    options = parser.parse_args()
    if options.picture == "insertions":
        draw_insertions(options.data)
    elif options.picture == "pipeline":
        draw_findings(options.data)
    elif options.picture == "cdd_cesm":
        draw_outlines(options.data)
    elif options.picture == "demo":
        draw_demo()
    else:
        take_screenshot(options.picture)


def draw_demo() -> None:
    """Draw the demo's insertions, a row for each method, in the phantom and in the mammogram."""
    rows, labels = [], []
    with tempfile.TemporaryDirectory() as folder:
        cases = scenes.write_cases(Path(folder))
        for method in scenes.METHODS:
            panels = [scenes.crop_edit(result) for result in scenes.insert(method, cases)]
            rows.append([panel for each in panels for panel in each.values()])
            labels.append(method.title.partition(":")[0].replace(" ", "\n"))
    titles = [
        f"{case.name}, {name}" for case, each in zip(cases, panels, strict=True) for name in each
    ]
    save_grid(rows, titles, HERE / "demo.jpg", labels)
    uris = [uri for method in scenes.METHODS for uri in method.editor.values() if ":/" in uri]
    record_networks("demo", [uri.removeprefix(zoo.PREFIX) for uri in uris])


def draw_findings(root: Path) -> None:
    """Draw what the CAD pipeline finds on test films; the first in which it finds anything."""
    names = ("light_head", "cgan")
    detector, segmenter = (f"{zoo.PREFIX}{name}" for name in names)
    pipeline = Pipeline.load(PipelineConfig(detector=detector, segmenter=segmenter))
    data = DataConfig(name="folder", root=root)
    films = [
        film
        for film in archives.read_mammograms(data, Skipped())
        if film.official_split == "test" and film.lesions
    ]
    panels: list[NDArray[np.float32]] = []
    for number in np.random.default_rng(SEED).permutation(len(films)).tolist():
        result = pipeline.predict(films[number])
        if result.findings:
            overlay = draw_overlay(result, 600).astype(np.float32) / 255
            panel = np.zeros((600, 480, 3), np.float32)
            height, width = np.minimum(overlay.shape[:2], panel.shape[:2])
            panel[:height, :width] = overlay[:height, :width]
            panels.append(panel)
        if len(panels) == 3:
            break
    image = (np.hstack(panels) * 255).astype(np.uint8)
    cv2.imwrite(str(HERE / "pipeline.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    record_networks("pipeline", names, " --data FILMS")


def draw_outlines(root: Path) -> None:
    """Draw mammograms of CDD-CESM with the outlines as read, those of one patient at most once."""
    data = DataConfig(name="cdd_cesm", root=root)
    mammograms = [each for each in archives.read_mammograms(data, Skipped()) if each.lesions]
    drawn: dict[str, Mammogram] = {}
    for number in np.random.default_rng(SEED).permutation(len(mammograms)).tolist():
        drawn.setdefault(mammograms[number].patient_id, mammograms[number])
    figure = Figure(figsize=(10, 7), facecolor="black", layout="constrained")
    for axes, mammogram in zip(figure.subplots(2, 4).flat, drawn.values(), strict=False):
        image = mammogram.pixels()[..., 0]
        scale = 400 / image.shape[0]
        axes.imshow(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), "gray"
        )
        for lesion in mammogram.lesions:
            for line in lesion.outlines:
                rows, cols = np.vstack([line, line[:1]]).T * scale
                axes.plot(cols, rows, color=COLOURS[lesion.kind], linewidth=1)
        kinds = ", ".join(sorted({lesion.kind for lesion in mammogram.lesions}))
        title = f"{mammogram.laterality} {mammogram.view}: {kinds}"
        axes.set_title(title, color="white", fontsize=9)
        axes.set_axis_off()
    figure.savefig(HERE / "cdd_cesm.jpg", dpi=100, pil_kwargs={"quality": 85})


def take_screenshot(picture: str) -> None:
    """Take a picture of a page with phantoms, by the test that drives it in a browser."""
    test, file = TESTS[picture]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", f"tests/apps/studio/{test}"]
        environment = os.environ | {"TFMAMMO_SCREENSHOTS": folder}
        subprocess.run(command, cwd=HERE.parent, env=environment, check=True)
        (HERE / f"{picture}.png").write_bytes((Path(folder) / file).read_bytes())
    if picture == "studio":
        record_networks(picture, ["blending"])


def record_networks(picture: str, names: Sequence[str], options: str = "") -> None:
    """Write how a picture was made, and by which networks."""
    made_by = {
        "command": f"python docs/pictures.py {picture}{options}",
        "networks": {name: read_entry(name).sha256 for name in names},
    }
    (HERE / f"{picture}.json").write_text(to_json(made_by), encoding="utf-8")


def draw_insertions(root: Path) -> None:
    """Draw windows of normal mammograms before and after two networks inserted a mass."""
    networks = {name: f"{zoo.PREFIX}{name}" for name in ("infilling", "mask_gan", "blending")}
    data = DataConfig(name="cdd_cesm", root=root, kinds=("mass",), mixed_findings=False)
    infilling = Editor.load(
        EditorConfig(
            renderer="infilling", generator=networks["infilling"], gan=networks["mask_gan"]
        )
    )
    blending = Editor.load(
        EditorConfig(renderer="blending", generator=networks["blending"], lesions=data)
    )
    mammograms = archives.read_mammograms(data, Skipped())
    normal = [mammogram for mammogram in mammograms if mammogram.pathology == "normal"]
    rows: list[list[NDArray[np.float32]]] = []
    for number in np.random.default_rng(SEED).permutation(len(normal)).tolist():
        try:
            rows.append(insert_both(infilling, blending, normal[number], number))
        except DataError as error:  # such as a breast that is too small for the mass
            print(f"{normal[number].image_id}: {error}")
        if len(rows) == SHOWN:
            break
    titles = ("normal tissue", "generated mask", "infilling", "a real mass's mask", "blending")
    save_grid(rows, titles, HERE / "insertions.jpg")
    record_networks("insertions", list(networks), " --data DIR")


def insert_both(
    infilling: Editor, blending: Editor, mammogram: Mammogram, seed: int
) -> list[NDArray[np.float32]]:
    """Insert a generated mass, and a real one at the same random place; return the panels."""
    filled = infilling.edit(mammogram, EditRequest(size=MASS, seed=seed))
    top, left, bottom, right = filled.box
    centre = ((top + bottom) // 2, (left + right) // 2)
    blended = blending.edit(mammogram, EditRequest(centre=centre, seed=seed))
    return [*crop_panels(filled, centre), *crop_panels(blended, centre)[1:]]


def crop_panels(
    result: EditResult, centre: tuple[int, int], side: int = WINDOW
) -> list[NDArray[np.float32]]:
    """Crop tissue, mask and result around a place, float32 [SIDE, SIDE] in [0, 1].

    Args:
        side: px of the mammogram that a panel shows.
    """
    before, after = result.before.image()[..., 0], result.after.image()[..., 0]
    top, left = (
        min(max(place - side // 2, 0), size - side)
        for place, size in zip(centre, before.shape, strict=True)
    )
    window = np.s_[top : top + side, left : left + side]
    low, high = np.percentile(before[window], (0.5, 99.9))
    tissue, changed = (
        np.clip((image[window] - low) / (high - low), 0, 1) for image in (before, after)
    )
    panels = (tissue, result.mask[window].astype(np.float32), changed)
    return [cv2.resize(panel, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for panel in panels]


def save_grid(
    rows: Sequence[Sequence[NDArray[np.float32]]],
    titles: Sequence[str],
    path: Path,
    labels: Sequence[str] = (),
) -> None:
    """Save rows of square panels of one size below column titles, and next to labels of rows."""
    side = rows[0][0].shape[0]
    margin = LABEL if labels else 0
    width = margin + len(titles) * side
    height = TITLE + len(rows) * side
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for row, panels in enumerate(rows):
        bottom = 1 - (TITLE + (row + 1) * side) / height
        if labels:
            middle = (0.5 * margin / width, bottom + 0.5 * side / height)
            figure.text(*middle, labels[row], ha="center", va="center")
        for column, panel in enumerate(panels):
            place = ((margin + column * side) / width, bottom, side / width, side / height)
            axes = figure.add_axes(place)
            axes.imshow(panel, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(titles[column], fontsize=11 if side >= SIDE else 8, pad=4)
    figure.savefig(path, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
