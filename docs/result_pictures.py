"""Make the pictures of docs/results, by the evaluations that score the same networks.

python docs/result_pictures.py --patches PATCHES --copy COPY --films FILMS [--only can_fig2 ...]
[--work FOLDER]

PATCHES are the patches of CBIS-DDSM, COPY is the scaled copy of CDD-CESM with normal/ beside
images/, as docs/archives tells, and FILMS are films of CBIS-DDSM of 800 rows with its official
split, and 0.3 in the column `spacing` of metadata.csv (about; mm per px). The networks are those of
the package, and no patient of a picture has trained them. Cases are drawn at random with a fixed
seed; "best" and "worst" are by the score that the caption names. A JSON file beside each picture
has the caption, the command and the SHA-256 of the networks. Evaluations that FOLDER holds are not
repeated. Time: some ten minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pictures import SEED, SIDE, crop_panels, save_grid

from tfmammo import archives
from tfmammo.config import DataConfig
from tfmammo.detection.detections import Detector
from tfmammo.errors import DataError
from tfmammo.filesystem import to_json
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, EditResult
from tfmammo.tracking import export, models, zoo

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "results" / "pictures"
PLACEHOLDERS = ("PATCHES", "COPY", "FILMS")  # for folders
PATCHES = ("data.name=folder", "data.root=PATCHES", "data.frame=full", "data.split=official")
CAN = (*PATCHES, "data.size=128", "models={CAN: models:/zoo/can}")
FILMS = ("data.name=folder", "data.root=FILMS", "data.split=official")
COPY = ("data.name=cdd_cesm", "data.root=COPY", "data.stratify=none")
CBIS = "CBIS-DDSM (Sawyer-Lee et al., DOI 10.7937/K9/TCIA.2016.7O02S9CY, CC BY 3.0), reduced"
CESM = "CDD-CESM (Khaled et al., Scientific Data 9, 2022, DOI 10.7937/29kw-ae92), reduced"
AROUND = 160  # px of a film that a panel shows
BLUE, ORANGE = (0.34, 0.71, 0.91), (0.9, 0.62, 0.0)
SCORE = 0.5
SMALL = 400  # px: narrower pictures are enlarged
RANDOM_NETWORKS = ("alexnet=none", "heads=none", "inception=none")  # no picture needs these scores


@dataclass(frozen=True)
class Evaluation:
    """A command that makes pictures.

    Attributes:
        command: The script or the subcommand of `tfmammo`, with --config.
        overrides: After --set, with PLACEHOLDERS.
        networks: Names of the zoo.
    """

    command: tuple[str, ...]
    overrides: tuple[str, ...]
    networks: tuple[str, ...]

    def format(self) -> str:
        """Format the command as a reader types it."""
        overrides = (f"'{one}'" if set(one) & set("{} ") else one for one in self.overrides)
        return " ".join(["python", *self.command, "--set", *overrides])


def evaluate(script: str, config: str, networks: tuple[str, ...], *overrides: str) -> Evaluation:
    """Describe an evaluation by its script and config."""
    command = (f"evaluate/{script}.py", "--config", f"configs/{config}.yaml")
    return Evaluation(command, overrides, networks)


Drawn = tuple[str, str, tuple[str, ...]]  # caption, source, networks
EVALUATIONS = {
    "can_segmentation": evaluate("segmentation", "segmentation", ("can",), *CAN),
    "can_synthesis": evaluate("synthesis", "synthesis", ("can",), *CAN),
    "can_defects": evaluate("defects", "defects", ("can",), *CAN),
    "infilling": evaluate(
        "realism", "realism", ("infilling",), *FILMS, "data.frame=square", "data.context=2",
        "data.size=128", "models={infilling: models:/zoo/infilling}", *RANDOM_NETWORKS,
    ),
    "blending": evaluate(
        "blending", "blending_evaluation", ("blending",), *COPY, "data.size=128",
        "models={blending: models:/zoo/blending}", "methods=[paste, poisson]", "vanilla=null",
        *RANDOM_NETWORKS,
    ),
    "contiguous": evaluate(
        "contiguous", "contiguous", ("contextual_mass",), *FILMS, "data.size=64", "count=3",
        "generator=models:/zoo/contextual_mass",
    ),
    "cgan": evaluate(
        "segmentation", "segmentation_cgan", ("cgan",), *FILMS, "models={cGAN: models:/zoo/cgan}",
    ),
    "cgan_frames": evaluate(
        "frames", "frames", ("cgan",), *FILMS, "frames=[loose]",
        "models={loose: {cGAN: models:/zoo/cgan}}",
    ),
    "shape": evaluate(
        "shape", "shape_evaluation", ("shape",), "models={Shape CNN: models:/zoo/shape}"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture of an evaluation.

    Attributes:
        name: Key of a table or figure, with "-best" or the like where it is not the first.
        evaluation: Key of `EVALUATIONS`.
        file: What that wrote.
        caption: What it shows.
        source: Whose mammograms these are.
    """

    name: str
    evaluation: str
    file: str
    caption: str
    source: str


EDGE = "SSIM along the edge of the mass"
OUTLINES = "yellow: mass found, red: missed, green: tissue marked as mass"
LIST = (
    Picture("can_fig2", "can_synthesis", "sheet.png",
            "Masks, real patches and CAN's images (the package's network, not the table's), "
            "drawn at random.", CBIS),
    Picture("can_fig2-best", "can_synthesis", "sheet-best-CAN.png",
            f"CAN's best images by {EDGE}.", CBIS),
    Picture("can_fig2-worst", "can_synthesis", "sheet-worst-CAN.png",
            f"CAN's worst images by {EDGE}.", CBIS),
    Picture("can_fig3", "can_defects", "sheet-random.png",
            "CAN's images (the package's network), drawn at random; tissue that is too flat is "
            "blue, too harsh orange.",
            CBIS),
    Picture("can_fig3-best", "can_defects", "sheet-best-CAN.png",
            "CAN's images with the fewest defects.", CBIS),
    Picture("can_fig3-worst", "can_defects", "sheet-worst-CAN.png",
            "CAN's images with the most defects.", CBIS),
    Picture("can_fig4", "can_segmentation", "overlays.png",
            f"CAN's masks beside two trivial baselines; {OUTLINES}.", CBIS),
    Picture("can_table1", "can_segmentation", "figure-CAN.png",
            "CAN's best, median and worst outlines by Dice (orange; truth: blue).", CBIS),
    Picture("infilling_fig5", "infilling", "sheet.png",
            "Real masses and inpainted ones (by the package's CRN, not the table's) under the same "
            "masks, drawn at random.", CBIS),
    Picture("infilling_fig5-best", "infilling", "sheet-best-infilling.png",
            "The inpainted masses closest to the real ones, by LPIPS with random weights.", CBIS),
    Picture("infilling_fig5-worst", "infilling", "sheet-worst-infilling.png",
            "The inpainted masses farthest from the real ones, by the same measure.", CBIS),
    Picture("blending_fig5", "blending", "sheet.png",
            "Real lesions inserted into other patients' tissue, drawn at random.", CESM),
    Picture("blending_fig5-best", "blending", "sheet-best-blending.png",
            "The blended lesions with the weakest seams.", CESM),
    Picture("blending_fig5-worst", "blending", "sheet-worst-blending.png",
            "The blended lesions with the strongest seams.", CESM),
    Picture("contextual_fig3", "contiguous", "figure-contiguous.png",
            "Masses added to three adjacent patches of a mammogram.", CBIS),
    Picture("cgan_table", "cgan", "figure-cGAN.png",
            "The cGAN's best, median and worst outlines by Dice (orange; truth: blue).", CBIS),
    Picture("cgan_samples", "cgan", "overlays.png",
            f"The cGAN's masks beside two trivial baselines; {OUTLINES}.", CBIS),
    Picture("cgan_croppings", "cgan_frames", "croppings.png",
            "Three masses of CBIS-DDSM, shown only in loose frames, with true outlines.", CBIS),
    Picture("cgan_morphology", "cgan_frames", "morphology-loose.png",
            f"The cGAN's masks before and after post-processing; {OUTLINES}.", CBIS),
    Picture("cgan_models", "cgan_frames", "overlays.png",
            f"Masks in loose frames; {OUTLINES}.", CBIS),
    Picture("cgan_failures", "cgan_frames", "failures-loose.png",
            f"The worst masks in loose frames; {OUTLINES}.", CBIS),
    Picture("cgan_confusion", "shape", "figure-confusion-Shape CNN.png",
            "True and predicted shapes of masses of phantoms.", "phantoms"),
)  # fmt: skip


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=Path, required=True)
    parser.add_argument("--copy", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--work", type=Path, help="keeps the evaluations")
    options = parser.parse_args()
    folders = {name: getattr(options, name.lower()).resolve() for name in PLACEHOLDERS}
    wanted = [one for one in LIST if not options.only or one.name in options.only]
    with tempfile.TemporaryDirectory() as folder:
        for picture in wanted:
            evaluation = EVALUATIONS[picture.evaluation]
            output = (options.work or Path(folder)) / picture.evaluation
            if not (output / picture.file).is_file():
                run(evaluation, output, folders)
            save(picture, evaluation, output / picture.file)
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        if not options.only or name in options.only:
            caption, source, networks = draw(options, PICTURES / f"{name}.jpg")
            record(name, caption, source, f"python docs/result_pictures.py --only {name}", networks)


def draw_whole(options: argparse.Namespace, path: Path) -> Drawn:
    """Draw whole mammograms before and after a mass was inserted."""
    networks = ("infilling", "mask_gan")
    editor = Editor.load(
        EditorConfig(
            renderer="infilling", generator=f"{zoo.PREFIX}infilling", gan=f"{zoo.PREFIX}mask_gan"
        )
    )
    rows = []
    for seed, mammogram in enumerate(draw_normal(options.copy, 4)):
        result = editor.edit(mammogram, EditRequest(size=(48, 44), seed=seed))
        before, after = result.before.image()[..., 0], result.after.image()[..., 0]
        rows.append([before, result.mask.astype(np.float32), mark(after, [result.box], BLUE)])
    titles = ("normal mammogram", "generated mask", "with the mass, boxed")
    save_grid([[fit(panel) for panel in row] for row in rows], titles, path)
    caption = "Normal mammograms, drawn at random, and a synthetic mass inserted into each."
    return caption, CESM, networks


def draw_contextual(options: argparse.Namespace, path: Path) -> Drawn:
    """Draw masses that were added to normal tissue, and masses that were to be removed."""
    networks = ("contextual_mass", "contextual_removal")
    adding, removing = (
        Editor.load(EditorConfig(renderer="contextual", generator=f"{zoo.PREFIX}{name}"))
        for name in networks
    )
    cards = [export.read_card(models.resolve(f"{zoo.PREFIX}{name}")) for name in networks]
    known = {patient for card in cards for patient in card["train_patients"]}
    films = [film for film in read_films(options.films) if film.patient_id not in known]
    order = iter(np.random.default_rng(SEED).permutation(len(films)))
    edits: list[EditResult] = []
    while len(edits) < 6:
        film = films[next(order)]
        top, left, bottom, right = film.lesions[0].box
        centre = ((top + bottom) // 2, (left + right) // 2)
        try:
            if len(edits) < 3:
                edits.append(adding.edit(film, EditRequest(seed=len(edits))))
            else:  # editors avoid lesions that they know
                film = replace(film, lesions=())
                edits.append(removing.edit(film, EditRequest(centre=centre)))
        except DataError:  # too near to the border
            continue
    rows = []
    for edit in edits:
        top, left, bottom, right = edit.box
        centre = ((top + bottom) // 2, (left + right) // 2)
        before, region, after = crop_panels(edit, centre, AROUND)
        rows.append([before, after, region])
    labels = ["added"] * 3 + ["removed"] * 3
    save_grid(rows, ("before", "after", "changed region"), path, labels)
    return (
        "Masses added to tissue without any, and masses removed, drawn at random.",
        CBIS,
        networks,
    )


def draw_detections(options: argparse.Namespace, path: Path) -> Drawn:
    """Draw the boxes of the package's detector on test films."""
    films = [film for film in read_films(options.films) if film.official_split == "test"]
    detector = Detector.load(f"{zoo.PREFIX}light_head")
    order = np.random.default_rng(SEED).permutation(len(films))[:8]
    panels = []
    for film in (films[number] for number in order):
        found = detector.predict(film)
        image = film.pixels()[..., 0]
        image = mark(image / image.max(), [lesion.box for lesion in film.lesions], BLUE)
        panels.append(fit(mark(image, found.boxes[found.scores >= SCORE], ORANGE)))
    save_grid([panels[:4], panels[4:]], ("", "", "", ""), path)
    caption = (
        f"Masses (blue) and detections with a score of at least {SCORE} (orange), on test films"
    )
    return f"{caption} drawn at random.", CBIS, ("light_head",)


def read_films(root: Path) -> list[Mammogram]:
    """Read the films with a mass."""
    data = DataConfig(name="folder", root=root)
    return [film for film in archives.read_mammograms(data, Skipped()) if film.lesions]


def draw_normal(root: Path, count: int) -> list[Mammogram]:
    """Draw normal mammograms of the scaled copy."""
    found = archives.read_mammograms(DataConfig(name="cdd_cesm", root=root), Skipped())
    normal = [one for one in found if one.pathology == "normal" and not one.lesions]
    order = np.random.default_rng(SEED).permutation(len(normal))[:count]
    return [normal[number] for number in order]


def mark(
    image: NDArray[np.floating], boxes: Iterable[Sequence[float]], color: tuple[float, ...]
) -> NDArray[np.float32]:
    """Draw boxes on an image, float32 [rows, cols, 3] in [0, 1]."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    image = np.ascontiguousarray(image, np.float32)
    for top, left, bottom, right in boxes:
        width = max(1, image.shape[0] // 150)
        cv2.rectangle(image, (int(left), int(top)), (int(right), int(bottom)), color, width)
    return image


def fit(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale an image into a square panel, with black beside it."""
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    scaled = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    panel = np.zeros((SIDE, SIDE, *scaled.shape[2:]), np.float32)
    top, left = (SIDE - scaled.shape[0]) // 2, (SIDE - scaled.shape[1]) // 2
    panel[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return panel


DRAWN = {
    "infilling_fig4": draw_whole,
    "contextual_fig1": draw_contextual,
    "films": draw_detections,
}


def run(evaluation: Evaluation, output: Path, folders: dict[str, Path]) -> None:
    """Run an evaluation."""
    overrides = []
    for override in evaluation.overrides:
        for name, folder in folders.items():
            override = override.replace(name, str(folder))
        overrides.append(override)
    command = [*evaluation.command, "--output", str(output), "--set", *overrides]
    subprocess.run([sys.executable, *command], cwd=HERE.parent, check=True)


def save(picture: Picture, evaluation: Evaluation, file: Path) -> None:
    """Save a picture as a JPEG, enlarged if it is small, with its record."""
    PICTURES.mkdir(exist_ok=True)
    image = cv2.imread(str(file))
    assert image is not None
    if image.shape[1] < SMALL:
        image = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(PICTURES / f"{picture.name}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    record(picture.name, picture.caption, picture.source, evaluation.format(), evaluation.networks)


def record(name: str, caption: str, source: str, command: str, networks: Sequence[str]) -> None:
    """Write the record of a picture."""
    content = {
        "caption": caption,
        "source": source,
        "command": command,
        "networks": {network: zoo.read_entry(network).sha256 for network in networks},
    }
    (PICTURES / f"{name}.json").write_text(to_json(content), encoding="utf-8")


if __name__ == "__main__":
    main()
