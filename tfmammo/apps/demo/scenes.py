"""What the demo shows: files that a user could have, edits of them, and a page."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo import document, filesystem
from tfmammo.archives import folder, phantom
from tfmammo.config import DataConfig
from tfmammo.data import jobs, preprocess
from tfmammo.data.extraction import make_patches
from tfmammo.document import Block, Code, Grid, Heading, Picture, Text
from tfmammo.errors import DataError
from tfmammo.inference.pipeline import Pipeline, PipelineConfig
from tfmammo.inference.report import draw_overlay, format_label
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.metrics import segmentation
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, EditResult
from tfmammo.tracking import export, zoo
from tfmammo.training.image_grid import draw_grid, draw_outline, encode_png

TITLE = "tfmammo: what it does"
HERE = Path(__file__).resolve().parent
ATTRIBUTION = (
    "The mammogram is P_01204, right breast, MLO, of CBIS-DDSM (Sawyer-Lee et al., The Cancer "
    "Imaging Archive, DOI 10.7937/K9/TCIA.2016.7O02S9CY, CC BY 3.0), reduced to 512 px. No network "
    "here was trained on it."
)
CAUTION = (
    "Research software: not a medical device, not for diagnosis. The networks are small ones of "
    "the zoo. The command tfmammo pretrained show NAME says what each does badly."
)
SIDE = 512  # px of a mammogram's longer side, as the zoo's networks were trained
SIZE = (44, 40)  # px of a made-up mass
CROP = 128  # px around an edit that are shown, and of CAN's patches
STEP = 16  # px between places that are tried
DARK = 0.08  # grey of what is no breast
ENLARGED = 2
SEED = 1


@dataclass(frozen=True)
class Case:
    """A mammogram on disk, with its lesion.

    Attributes:
        name: Of its folder.
        title: As the page calls it.
        root: Its folder, an archive of the kind `folder`.
        mammogram: The mammogram, with one lesion.
    """

    name: str
    title: str
    root: Path
    mammogram: Mammogram

    @property
    def file(self) -> Path:
        """The mammogram's file."""
        return self.root / "images" / f"{self.name}.png"

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Its own lesion, uint8 [rows, cols, 1], 0 or 1."""
        mask = self.mammogram.lesions[0].mask(self.mammogram.rows, self.mammogram.cols)
        return mask[..., np.newaxis]


@dataclass(frozen=True)
class Method:
    """A way to insert a lesion.

    Attributes:
        title: As the page calls it.
        editor: The config of its editor, without an archive of lesions.
        arguments: What `tfmammo synthesize` takes beside the mammograms, with keys of `editor` in
            braces; "" where the studio or Python is the way.
        is_real: Whether its lesion is the other mammogram's.
    """

    title: str
    editor: Mapping[str, str]
    arguments: str = ""
    is_real: bool = False


METHODS = (
    Method(
        "Infilling: a network fills a mass of the mask GAN's shape into the tissue",
        {
            "renderer": "infilling",
            "generator": "models:/zoo/infilling",
            "gan": "models:/zoo/mask_gan",
        },
        "--config synthesis_full --set generator={generator} shapes.gan={gan}",
    ),
    Method(
        "Blending: a network sets a real lesion into other tissue",
        {"renderer": "blending", "generator": "models:/zoo/blending"},
        "--config synthesis_blending --set generator={generator}",
        is_real=True,
    ),
    Method(
        "Poisson editing: the same without a network",
        {"renderer": "poisson"},
        "--config synthesis_blending --set renderer={renderer} generator=null",
        is_real=True,
    ),
    Method(
        "Contextual GAN: a network adds a mass to a window of tissue",
        {"renderer": "contextual", "generator": "models:/zoo/contextual_mass"},
    ),
)


def write_demo(output: Path) -> Path:
    """Write the mammograms, and the page with all that is done to them.

    Args:
        output: A new folder, or that of an earlier demo, which is replaced.

    Returns:
        The page.
    """
    with jobs.claim_folder(output, {"command": "demo"}, ".demo.json"):
        return _write_demo(output)


def _write_demo(output: Path) -> Path:
    shutil.rmtree(output / "mammograms", ignore_errors=True)
    cases = [_write_phantom(output), _write_real(output)]
    pictures: dict[str, bytes] = {}
    blocks: list[Block] = [Heading(1, TITLE), Text(CAUTION), Text(ATTRIBUTION)]
    blocks += _show_cases(cases, pictures)
    for method in METHODS:
        blocks += _show_insertion(method, cases, pictures)
    blocks += _show_removal(cases, pictures)
    blocks += _show_reading(cases, pictures)
    blocks += _show_can(cases[1], pictures)
    page = output / "demo.html"
    text = document.render_html(TITLE, blocks, pictures)
    filesystem.write_atomically(page, text, durable=False)
    return page


def _write_phantom(output: Path) -> Case:
    """Render a phantom with one mass, reduced as a user's own files may be."""
    mammogram = next(
        each
        for each in phantom.read(count=24)
        if len(each.lesions) == 1 and each.lesions[0].kind == "mass" and each.view == "CC"
    )
    scale = SIDE / max(mammogram.rows, mammogram.cols)
    rows, cols = round(mammogram.rows * scale), round(mammogram.cols * scale)
    image = preprocess.resize_image(mammogram.pixels(), rows, cols)[..., 0]
    whole = mammogram.lesions[0].mask(mammogram.rows, mammogram.cols)
    mask = preprocess.resize_mask_to(whole, rows, cols) > 0
    grey = np.rint(255 * image).astype(np.uint8)
    row = (mammogram.laterality or "", mammogram.view or "")
    return _write_case(output, "phantom", "a phantom, drawn by this package", grey, mask, row)


def _write_real(output: Path) -> Case:
    image = cv2.imread(str(HERE / "mammogram.jpg"), cv2.IMREAD_GRAYSCALE)
    mask = cv2.imread(str(HERE / "mask.png"), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    assert mask is not None
    title = "a mammogram of CBIS-DDSM"
    return _write_case(output, "mammogram", title, image, np.asarray(mask) > 127, ("R", "MLO"))


def _write_case(
    output: Path,
    name: str,
    title: str,
    image: NDArray[np.generic],
    mask: NDArray[np.bool],
    side: tuple[str, str],
) -> Case:
    """Write a mammogram with its mask as an archive of the kind `folder`.

    Args:
        output: The demo's folder.
        name: Of the archive, and of the image.
        title: As the page calls it.
        image: uint8 [rows, cols].
        mask: [rows, cols].
        side: Laterality and view.
    """
    root = output / "mammograms" / name
    # Not by archives.writers.folder, which numbers its files: the page's commands name this one.
    for folder_name, content in (("images", image), ("masks", np.where(mask, 255, 0))):
        (root / folder_name).mkdir(parents=True)
        cv2.imwrite(str(root / folder_name / f"{name}.png"), content.astype(np.uint8))
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "patient", "laterality", "view", "pathology", "kind"])
        writer.writerow([f"{name}.png", name, *side, "malignant", "mass"])
    (mammogram,) = folder.read(root)
    return Case(name, title, root, mammogram)


def _show_cases(cases: Sequence[Case], pictures: dict[str, bytes]) -> Iterator[Block]:
    yield Heading(2, "Two mammograms, and the masses that they have")
    for case in cases:
        image = case.mammogram.pixels()
        outlined = draw_outline(image, case.mask)
        panels = {case.name: np.repeat(image, 3, axis=-1), "its own mass": outlined}
        pictures[case.name] = _encode({name: each[np.newaxis] for name, each in panels.items()})
        yield Text(f"{case.name}: {case.title}.")
        yield Picture(case.name, case.title)
    yield Text("How such a folder looks to this package:")
    yield Code(tuple(f"tfmammo archives folder {case.root}" for case in cases))


def _show_insertion(
    method: Method, cases: Sequence[Case], pictures: dict[str, bytes]
) -> Iterator[Block]:
    yield Heading(2, method.title)
    renderer = method.editor["renderer"]
    others = cases[::-1]  # two: the lesions of one go into the other
    editors = _load_editors(method, others)
    for case, editor in zip(cases, editors, strict=True):
        result = _insert_somewhere(editor, case)
        yield from _show_edit(f"{renderer} {case.name}", result, pictures)
    if method.arguments:
        arguments = method.arguments.format(**method.editor)
        yield Text("Mammograms with masses by this method, and their annotations:")
        if method.is_real:
            commands = [
                f"tfmammo synthesize {arguments} data.name=folder data.root={case.root} "
                f"lesions.name=folder lesions.root={other.root} mammograms=all count=1 format=png "
                f"--output {case.name}-{renderer}"
                for case, other in zip(cases, others, strict=True)
            ]
        else:  # sizes can't be fitted on the one lesion of a case: phantoms have many
            commands = [
                f"tfmammo synthesize {arguments} count=1 format=png --output phantom-{renderer}"
            ]
        yield Code(tuple(commands))
    else:
        yield Text("At a place that you point to, in the studio:")
        yield Code(("tfmammo studio",))


def _load_editors(method: Method, others: Sequence[Case]) -> list[Editor]:
    """Load a method's networks once, and an editor for the lesions of each of these cases."""
    if not method.is_real:
        return [Editor.load(EditorConfig.model_validate(method.editor))] * len(others)
    first, *rest = (DataConfig(name="folder", root=other.root) for other in others)
    editor = Editor.load(EditorConfig.model_validate({**method.editor, "lesions": first}))
    return [editor, *map(editor.with_lesions, rest)]


def _insert_somewhere(editor: Editor, case: Case) -> EditResult:
    """Insert a lesion at the first place, from the breast's middle outwards, that takes one."""
    problem = ""
    size = None if editor.config.real_lesions or editor.network else SIZE
    for centre in _list_places(case):
        request = EditRequest(centre=centre, size=size, seed=SEED)
        try:
            return editor.edit(case.mammogram, request)
        except DataError as error:
            problem = str(error)
    raise DataError(f"{case.file}: no place takes a lesion ({problem})")


def _list_places(case: Case) -> Iterator[tuple[int, int]]:
    """List places in the breast that are away from its own mass, from its middle outwards."""
    breast = case.mammogram.pixels()[..., 0] > DARK
    near = cv2.dilate(case.mask[..., 0], np.ones((CROP, CROP), np.uint8)) > 0
    rows, cols = np.nonzero(breast)
    middle = np.array([rows.mean(), cols.mean()])
    places = [
        (row, col)
        for row in range(0, breast.shape[0], STEP)
        for col in range(0, breast.shape[1], STEP)
        if breast[row, col] and not near[row, col]
    ]
    yield from sorted(places, key=lambda place: float(np.sum((middle - place) ** 2)))


def _show_removal(cases: Sequence[Case], pictures: dict[str, bytes]) -> Iterator[Block]:
    network = f"{zoo.PREFIX}contextual_removal"
    editor = Editor.load(EditorConfig(renderer="contextual", generator=network))
    yield Heading(2, "Contextual GAN: a network takes the mass away")
    for case in cases:
        top, left, bottom, right = case.mammogram.lesions[0].box
        centre = ((top + bottom) // 2, (left + right) // 2)
        request = EditRequest(centre=centre, seed=SEED)
        bare = replace(case.mammogram, lesions=())  # its editor goes where no lesion is known
        try:
            result = editor.edit(bare, request)
        except DataError as error:
            yield Text(f"{case.name}: nothing was changed, because {error}.")
            continue
        yield from _show_edit(f"removal {case.name}", result, pictures)
    yield Code(("tfmammo studio",))


def _show_edit(key: str, result: EditResult, pictures: dict[str, bytes]) -> Iterator[Block]:
    """Show the surroundings of an edit before and after."""
    before = _crop(result.before.image(), result)
    after = _crop(result.after.image(), result)
    mask = _crop(result.mask[..., np.newaxis], result)
    panels = {
        "before": np.repeat(before, 3, axis=-1),
        "after": np.repeat(after, 3, axis=-1),
        "mask": draw_outline(after, (mask > 0).astype(np.uint8)),
    }
    pictures[key] = _encode({name: _enlarge(image) for name, image in panels.items()})
    changed = int(np.count_nonzero(result.before.values != result.after.values))
    place = "rows {0} to {2}, columns {1} to {3}".format(*result.box)
    yield Text(f"{key}: {place}; {changed} pixels have another value.")
    yield Picture(key, f"{key}, before and after")


def _crop(image: NDArray[Any], result: EditResult) -> NDArray[Any]:
    """Crop the surroundings of an edit, whole within the mammogram."""
    top, left, bottom, right = result.box
    rows, cols = image.shape[:2]
    row = min(max((top + bottom - CROP) // 2, 0), rows - CROP)
    col = min(max((left + right - CROP) // 2, 0), cols - CROP)
    return image[row : row + CROP, col : col + CROP]


def _enlarge(image: NDArray[np.floating]) -> NDArray[np.floating]:
    return image.repeat(ENLARGED, 0).repeat(ENLARGED, 1)[np.newaxis]


def _show_reading(cases: Sequence[Case], pictures: dict[str, bytes]) -> Iterator[Block]:
    names = {"detector": "light_head", "segmenter": "cgan", "classifier": "shape"}
    handles = {stage: f"{zoo.PREFIX}{name}" for stage, name in names.items()}
    pipeline = Pipeline.load(PipelineConfig.model_validate(handles))
    yield Heading(2, "Found, outlined and named")
    yield Text(
        "A detector finds masses, the cGAN outlines them, and a network names the shape of the "
        "outline. The detector knows neither mammogram. It is small, and misses half of the "
        "masses of such patients."
    )
    for case in cases:
        result = pipeline.predict(case.mammogram)
        key = f"reading {case.name}"
        pictures[key] = encode_png(draw_overlay(result, 2 * SIDE))
        yield Picture(key, f"findings in the {case.name}")
        labels = [(format_label(number, each),) for number, each in enumerate(result.findings, 1)]
        yield Grid(("finding",), tuple(labels) or (("no lesion found",),))
    settings = " ".join(f"{stage}={handle}" for stage, handle in handles.items())
    files = " ".join(str(case.file) for case in cases)
    yield Code((f"tfmammo case --config case {files} --set {settings} --output case",))


def _show_can(case: Case, pictures: dict[str, bytes]) -> Iterator[Block]:
    """Show CAN both ways on the mammogram's own mass, cropped as CAN was trained."""
    export_folder = zoo.fetch("can")
    outline = export.load(export_folder, "inverter")
    draw = export.load(export_folder, "generator")
    image, mask = _crop_mass(case)
    found = outline(image[np.newaxis])["mask"]
    made = draw(mask[np.newaxis])["image"]
    panels = {"mass": image[np.newaxis], "outlined": found, "its mask": mask[np.newaxis]}
    pictures["can"] = _encode(panels | {"made of it": made})
    dice = segmentation.dice(mask, found[0] > 0.5)
    yield Heading(2, "CAN: from a mass to its outline, and from an outline to a mass")
    yield Text(f"Dice coefficient of the outline: {dice:.2f}.")
    yield Picture("can", "CAN both ways")
    yield Code(("tfmammo train can --config quickstart --output runs/quickstart",))


def _crop_mass(case: Case) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Crop the mass plus 10 %, 128 px, as CAN's training patches are."""
    config = DataConfig(name="folder", size=CROP, frame="square", context=1.1)
    patches = make_patches([case.mammogram], config, Skipped())
    return patches.images[0], patches.masks[0].astype(np.float32)


def _encode(panels: Mapping[str, NDArray[np.floating]]) -> bytes:
    """Encode rows of images under their names, as PNG."""
    return encode_png(draw_grid(panels))
