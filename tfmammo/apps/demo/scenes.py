"""What the demo shows: files that a user could have, edits of them, and a page."""

from __future__ import annotations

import shlex
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
from tfmammo.config import DataConfig, format_override
from tfmammo.data import preprocess
from tfmammo.data.extraction import make_patches
from tfmammo.errors import DataError
from tfmammo.inference.pipeline import Pipeline, PipelineConfig
from tfmammo.inference.report import draw_overlay, format_label
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.metrics import segmentation
from tfmammo.metrics.summary import write_csv
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, EditResult
from tfmammo.tracking import export, zoo
from tfmammo.training.image_grid import draw_grid, draw_outline, encode_rgb_png

TITLE = "tfmammo: what it does"
HERE = Path(__file__).resolve().parent
ATTRIBUTION = (
    "The mammogram is P_01204, right breast, MLO, of CBIS-DDSM (Sawyer-Lee et al., The Cancer "
    "Imaging Archive, DOI 10.7937/K9/TCIA.2016.7O02S9CY, CC BY 3.0), reduced to 512 px. None of "
    "the networks was trained on it."
)
CAUTION = (
    "Research software: not a medical device, not for diagnosis. The networks are the small ones "
    "that come with the package; tfmammo pretrained show NAME lists the known failures of each."
)
SIDE = 512  # px of a mammogram's longer side, as the zoo's networks were trained
REAL_SPACING = 0.42  # mm per px of the real mammogram: its film has some 4,350 rows of 0.05 mm
SIZE = (44, 40)  # px of a generated mass
CROP = 128  # px around an edit that are shown, and of CAN's patches
STEP = 16  # px between places that are tried
DARK = 0.08  # grey of what is not breast
RING = 15  # px around a mass, whose mean is the reference of its contrast
WEAK = 0.25  # a removal that leaves a larger part of the contrast
ENLARGED = 2
SEED = 1


@dataclass(frozen=True)
class Case:
    """A mammogram on disk, with its one lesion."""

    name: str  # of its folder and file, and on the page
    title: str
    root: Path  # an archive of the kind `folder`
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

    def describe_size(self, box: Sequence[int]) -> str:
        """Describe the longer side of a box."""
        assert self.mammogram.spacing
        length = max(box[2] - box[0], box[3] - box[1]) * self.mammogram.spacing[0]
        return f"about {length:.0f} mm"


@dataclass(frozen=True)
class Method:
    """A way to insert a lesion."""

    title: str
    editor: Mapping[str, str]  # the config of its editor, without an archive of lesions
    # For `tfmammo synthesize`, with keys of `editor` in braces; "": only the studio has it.
    arguments: str = ""
    is_real: bool = False  # its lesion is the other mammogram's

    @property
    def name(self) -> str:
        """Its renderer."""
        return self.editor["renderer"]


ZOO = zoo.PREFIX
METHODS = (
    Method(
        "Infilling: a network inpaints a mass; the mask GAN draws its shape",
        {"renderer": "infilling", "generator": f"{ZOO}infilling", "gan": f"{ZOO}mask_gan"},
        "--config synthesis_full --set generator={generator} shapes.gan={gan}",
    ),
    Method(
        "Blending: a network merges a real mass with other tissue",
        {"renderer": "blending", "generator": f"{ZOO}blending"},
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
        {"renderer": "contextual", "generator": f"{ZOO}contextual_mass"},
    ),
)


def write_demo(output: Path) -> Path:
    """Write the mammograms and the page into a new folder or over an earlier demo."""
    with filesystem.claim_folder(output, {"command": "demo"}, ".demo.json"):
        cases = write_cases(output)
        pictures: dict[str, bytes] = {}
        blocks = [f"# {TITLE}", CAUTION, ATTRIBUTION]
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


def write_cases(output: Path) -> list[Case]:
    """Write a phantom and a real mammogram as a user's own files may be."""
    shutil.rmtree(output / "mammograms", ignore_errors=True)
    return [_write_phantom(output), _write_real(output)]


def _write_phantom(output: Path) -> Case:
    mammogram = next(
        each
        for each in phantom.read(count=24)
        if len(each.lesions) == 1 and each.lesions[0].kind == "mass" and each.view == "CC"
    )
    assert mammogram.spacing
    scale = SIDE / max(mammogram.rows, mammogram.cols)
    rows, cols = round(mammogram.rows * scale), round(mammogram.cols * scale)
    image = np.rint(255 * preprocess.resize_image(mammogram.pixels(), rows, cols)[..., 0])
    mask = mammogram.lesions[0].mask(mammogram.rows, mammogram.cols)
    mask = preprocess.resize_mask_to(mask, rows, cols)
    facts = ("phantom", "a phantom, drawn by this package", mammogram.spacing[0] / scale)
    side = (mammogram.laterality or "", mammogram.view or "")
    return _write_case(output, facts, image.astype(np.uint8), mask, side)


def _write_real(output: Path) -> Case:
    image, mask = (
        np.asarray(cv2.imread(str(HERE / name), cv2.IMREAD_GRAYSCALE))
        for name in ("mammogram.jpg", "mask.png")
    )
    facts = ("mammogram", "a mammogram of CBIS-DDSM", REAL_SPACING)
    return _write_case(output, facts, image, (mask > 127).astype(np.uint8), ("R", "MLO"))


def _write_case(
    output: Path,
    facts: tuple[str, str, float],
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    side: tuple[str, str],
) -> Case:
    """Write a mammogram, [rows, cols], with its mask as an archive of the kind `folder`."""
    name, title, spacing = facts
    root = output / "mammograms" / name
    for folder_name, content in (("images", image), ("masks", 255 * mask)):
        (root / folder_name).mkdir(parents=True)
        cv2.imwrite(str(root / folder_name / f"{name}.png"), content)
    columns = ("file", "patient", "laterality", "view", "pathology", "kind", "spacing")
    values = (f"{name}.png", name, *side, "malignant", "mass", spacing)
    write_csv(root / "metadata.csv", [dict(zip(columns, values, strict=True))])
    (mammogram,) = folder.read(root)
    return Case(name, title, root, mammogram)


def _show_cases(cases: Sequence[Case], pictures: dict[str, bytes]) -> Iterator[str]:
    yield "## Two mammograms with their own masses"
    for case in cases:
        image = case.mammogram.pixels()
        outlined = draw_outline(image, case.mask)
        panels = {case.name: np.repeat(image, 3, axis=-1), "its own mass": outlined}
        pictures[case.name] = _encode({name: each[np.newaxis] for name, each in panels.items()})
        size = case.describe_size(case.mammogram.lesions[0].box)
        yield f"The {case.name}: {case.title}, with a mass of {size}."
        yield document.show_picture(case.name, case.title)
    yield "To check such a folder:"
    words = (("tfmammo", "archives", "folder", str(case.root)) for case in cases)
    yield document.show_commands(*map(shlex.join, words))


def _show_insertion(
    method: Method, cases: Sequence[Case], pictures: dict[str, bytes]
) -> Iterator[str]:
    yield f"## {method.title}"
    for case, result in zip(cases, insert(method, cases), strict=True):
        size = case.describe_size(result.box)
        yield f"In the {case.name}, a mass of {size} was added here:"
        yield _draw_edit(f"{method.name} in the {case.name}", result, pictures)
    if not method.arguments:
        yield "To add one at a place of your choice, use the studio:"
        yield document.show_commands("tfmammo studio")
        return
    arguments = method.arguments.format(**method.editor)
    yield "To make mammograms with such masses, and their annotations:"
    if method.is_real:
        commands = [
            f"tfmammo synthesize {arguments} data.name=folder {_quote_root('data', case)} "
            f"lesions.name=folder {_quote_root('lesions', other)} mammograms=all count=1 "
            f"format=png --output {case.name}-{method.name}"
            for case, other in zip(cases, cases[::-1], strict=True)
        ]
    else:  # sizes can't be fitted on the one lesion of a case: phantoms have many
        commands = [
            f"tfmammo synthesize {arguments} count=1 format=png --output phantom-{method.name}"
        ]
    yield document.show_commands(*commands)


def _quote_root(section: str, case: Case) -> str:
    """Write the folder of a case as an override for a shell."""
    return shlex.quote(format_override(f"{section}.root", case.root))


def insert(method: Method, cases: Sequence[Case]) -> list[EditResult]:
    """Insert a lesion into each of two cases; real ones are those of the other case."""
    if not method.is_real:
        editors = [Editor.load(EditorConfig.model_validate(method.editor))] * len(cases)
    else:
        first, *rest = (DataConfig(name="folder", root=other.root) for other in cases[::-1])
        editor = Editor.load(EditorConfig.model_validate({**method.editor, "lesions": first}))
        editors = [editor, *map(editor.with_lesions, rest)]  # the networks are loaded once
    return [_insert_somewhere(*each) for each in zip(editors, cases, strict=True)]


def _insert_somewhere(editor: Editor, case: Case) -> EditResult:
    """Insert a lesion at the first possible place, from the breast's middle outwards."""
    problem = ""
    size = None if editor.config.real_lesions or editor.network else SIZE
    for centre in _list_places(case):
        try:
            return editor.edit(case.mammogram, EditRequest(centre=centre, size=size, seed=SEED))
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


def _show_removal(cases: Sequence[Case], pictures: dict[str, bytes]) -> Iterator[str]:
    editor = Editor.load(EditorConfig(renderer="contextual", generator=f"{ZOO}contextual_removal"))
    yield "## Contextual GAN: a network removes a mass"
    for case in cases:
        top, left, bottom, right = case.mammogram.lesions[0].box
        centre = ((top + bottom) // 2, (left + right) // 2)
        bare = replace(case.mammogram, lesions=())  # editors avoid known lesions
        try:
            result = editor.edit(bare, EditRequest(centre=centre, seed=SEED))
        except DataError as error:
            yield f"In the {case.name}, nothing was changed, because {document.escape(str(error))}."
            continue
        remaining = _measure_remaining(result, case.mask[..., 0])
        sentence = (
            f"In the {case.name}, the mass of {case.describe_size(case.mammogram.lesions[0].box)} "
            f"was to be removed. {100 * remaining:.0f} % of its contrast remains."
        )
        if remaining > WEAK:
            sentence += " This small network is too weak for it."
        yield sentence
        yield _draw_edit(f"removal in the {case.name}", result, pictures)
    yield document.show_commands("tfmammo studio")


def _measure_remaining(result: EditResult, mask: NDArray[np.uint8]) -> float:
    """Measure which part of a mass's contrast with the tissue around it an edit leaves."""
    around = cv2.dilate(mask, np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)) > mask
    before, after = (
        float(image[..., 0][mask > 0].mean() - image[..., 0][around].mean())
        for image in (result.before.image(), result.after.image())
    )
    return max(0.0, after / before)


def crop_edit(result: EditResult) -> dict[str, NDArray[np.float32]]:
    """Crop the surroundings of an edit: before, after, and after with the outline, RGB."""
    images = (result.before.image(), result.after.image(), result.mask[..., np.newaxis])
    before, after, mask = (_crop(image, result) for image in images)
    return {
        "before": np.repeat(before, 3, axis=-1),
        "after": np.repeat(after, 3, axis=-1),
        "outline": draw_outline(after, (mask > 0).astype(np.uint8)),
    }


def _draw_edit(key: str, result: EditResult, pictures: dict[str, bytes]) -> str:
    panels = {
        name: image.repeat(ENLARGED, 0).repeat(ENLARGED, 1)[np.newaxis]
        for name, image in crop_edit(result).items()
    }
    pictures[key] = _encode(panels)
    return document.show_picture(key, f"{key}: before, after and outline")


def _crop(image: NDArray[Any], result: EditResult) -> NDArray[Any]:
    """Crop the surroundings of an edit, whole within the mammogram."""
    top, left, bottom, right = result.box
    rows, cols = image.shape[:2]
    row = min(max((top + bottom - CROP) // 2, 0), rows - CROP)
    col = min(max((left + right - CROP) // 2, 0), cols - CROP)
    return image[row : row + CROP, col : col + CROP]


def _show_reading(cases: Sequence[Case], pictures: dict[str, bytes]) -> Iterator[str]:
    names = {"detector": "light_head", "segmenter": "cgan", "classifier": "shape"}
    handles = {stage: f"{ZOO}{name}" for stage, name in names.items()}
    pipeline = Pipeline.load(PipelineConfig.model_validate(handles))
    yield "## CAD pipeline: masses found, outlined and classified by shape"
    yield (
        "A detector finds masses, the cGAN outlines them, and a third network classifies the shape "
        "of the outline. The detector was trained on neither mammogram. It is small, and misses "
        "half of the masses of unseen patients. The third network was trained on outlines of "
        "phantoms alone: what it says of a real mass means nothing."
    )
    for case in cases:
        result = pipeline.predict(case.mammogram)
        key = f"findings in the {case.name}"
        pictures[key] = encode_rgb_png(draw_overlay(result, 2 * SIDE))
        yield f"In the {case.name}:"
        yield document.show_picture(key, key)
        labels = [format_label(number, each) for number, each in enumerate(result.findings, 1)]
        yield document.tabulate(["finding"], [[label] for label in labels or ["no lesion found"]])
    files = shlex.join(str(case.file) for case in cases)
    yield document.show_commands(
        f"tfmammo predict cgan {files} --boxes light_head --classifier shape --postprocess "
        "--overview -o findings"
    )


def _show_can(case: Case, pictures: dict[str, bytes]) -> Iterator[str]:
    """Show CAN in both directions on the mammogram's own mass, cropped as CAN was trained."""
    export_folder = zoo.fetch("can")
    outline = export.load(export_folder, "inverter")
    draw = export.load(export_folder, "generator")
    config = DataConfig(name="folder", size=CROP, frame="square", context=1.1)
    patches = make_patches([case.mammogram], config, Skipped())
    image, mask = patches.images[:1], patches.masks[:1].astype(np.float32)
    found = outline(image)["mask"]
    made = draw(mask)["image"]
    panels = {"mass": image, "CAN's outline": found, "true outline": mask, "CAN's mass": made}
    pictures["can"] = _encode(panels)
    dice = segmentation.dice(mask[0], found[0] > 0.5)
    yield "## CAN: from a mass to its outline, and from an outline to a mass"
    yield f"CAN's outline has a Dice coefficient of {dice:.2f}."
    yield document.show_picture("can", "CAN in both directions")
    yield "To train a small CAN:"
    yield document.show_commands("tfmammo train can --config quickstart --output runs/quickstart")


def _encode(panels: Mapping[str, NDArray[np.floating]]) -> bytes:
    """Encode rows of images under their names, as PNG."""
    return encode_rgb_png(draw_grid(panels))
