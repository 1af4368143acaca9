"""The images of a prediction, and the boxes that are given for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from tfmammo import archives
from tfmammo.archives import coco, folder, masks, regions
from tfmammo.archives.named_files import DICOMS, PICTURES, Names, find_files, is_dicom
from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import read_table
from tfmammo.config import DataConfig
from tfmammo.data.datasets import log_skipped
from tfmammo.errors import ArchiveError, ConfigError, PipelineError
from tfmammo.inference.pipeline import Finding, Pipeline, PipelineConfig, PipelineResult
from tfmammo.mammogram import LesionKind, Mammogram, Skipped, cut_box

log = logging.getLogger(__name__)

TRUTH = "truth"  # in place of a model or a file of boxes: the archive's own lesions
KINDS = get_args(LesionKind)
# folders of what draws lesions
NO_IMAGES = {"mask", "masks", "label", "labels", "segmentations", "annotations"}
BOX_COLUMNS = (("row_min", "col_min", "row_max", "col_max"), ("ymin", "xmin", "ymax", "xmax"))


@dataclass(frozen=True, eq=False)
class Image:
    """One image to predict on.

    Attributes:
        name: Its path without the ending, which its results are called by.
        mammogram: The record, with its true lesions where an archive states them.
        regions: Given boxes; None where a detector finds them, or the image is a patch.
    """

    name: str
    mammogram: Mammogram
    regions: tuple[Finding, ...] | None = None

    @property
    def file_name(self) -> str:
        """Its path with the ending."""
        ending = self.mammogram.file.suffix if self.mammogram.file else ""
        return self.name if self.name.endswith(ending) else f"{self.name}{ending}"

    @property
    def source(self) -> str:
        """What messages call it: its file, if it has one."""
        return str(self.mammogram.file or self.name)


def is_patch(config: PipelineConfig, image: Image) -> bool:
    """Whether the segmenter sees the whole image, because nothing names regions."""
    return config.detector is None and image.regions is None


def predict_each(
    pipeline: Pipeline, images: Sequence[Image], failed: Skipped
) -> Iterator[tuple[Image, PipelineResult]]:
    """Predict on a few images, whose patches the segmenter sees together.

    Args:
        pipeline: The stages.
        images: The images.
        failed: Takes images that can't be read or processed.
    """
    ready = []
    prepared = []
    for image in images:
        try:
            prepared.append(pipeline.prepare(image.mammogram, image.regions))
            ready.append(image)
        except (ArchiveError, PipelineError) as error:
            failed.add(image.source, str(error).removeprefix(f"{image.source}: "))
    yield from zip(ready, pipeline.segment(prepared), strict=True)


def open_images(
    given: Sequence[Path | Mammogram],
    failed: Skipped,
    archive: str | None = None,
    output: Path | None = None,
) -> list[Image]:
    """Open images; no pixel is read.

    Args:
        given: Records, image files, and folders of them at any depth. Masks in folders are passed
            over.
        failed: Takes files that can't be read.
        archive: The archive that the only place is the folder of.
        output: The folder of results: places in it are passed over, as is the folder itself within
            a place once it has results.

    Raises:
        ConfigError: There is no such place, no image, or more than one archive.
        ArchiveError: The folder is no such archive.
    """
    records = [each for each in given if isinstance(each, Mammogram)]
    named = [each for each in given if not isinstance(each, Mammogram)]
    places = [place for place in named if not _is_beneath(place, output)]
    if named and not (places or records):
        raise ConfigError(f"{output}: has the images; name another folder for the results")
    found = [(record.image_id, record) for record in records]
    if archive and (places or not records):
        found += _read_archive(archive, places, failed)
    else:
        found += [image for place in places for image in _read_place(place, failed)]
    images: dict[str, Image] = {}
    for name, record in found:
        if name in images:
            reason = f"another image is called {name}; predict on them separately"
            failed.add(record.file or name, reason)
        else:
            images[name] = Image(name, record)
    if not images and not failed:
        raise ConfigError(f"{', '.join(map(str, places))}: no image found")
    return list(images.values())


def _read_archive(
    archive: str, places: Sequence[Path], failed: Skipped
) -> Iterator[tuple[str, Mammogram]]:
    """Read the records of an archive, with their names; images that have none are failures."""
    if len(places) > 1 or (not places and archive != "phantom"):
        raise ConfigError(f"{archive}: takes one folder, not {len(places)} places")
    root = places[0] if places else None
    if root and root.is_file():
        raise ConfigError(f"{root}: is a file; lesions are read from the folder of an archive")
    skipped = Skipped()
    used = set()
    for record in archives.read_mammograms(DataConfig(name=archive, root=root), skipped):
        name = record.image_id
        if record.file and skipped.root and record.file.is_relative_to(skipped.root):
            name = _remove_ending(record.file.relative_to(skipped.root))
        used.add(record.file)
        yield name.removeprefix("images/"), record
    other = Skipped(root=skipped.root)
    for file, reason in skipped.reasons.items():
        path = skipped.root / file if skipped.root else Path(file)
        if _is_image(Path(file)) and path not in used:
            failed.add(path, reason)
        else:
            other.add(file, reason)
    log_skipped(other)


def _read_place(place: Path, failed: Skipped) -> Iterator[tuple[str, Mammogram]]:
    """Read the header of a file, or of each image of a folder."""
    is_file = place.is_file()
    files = {_remove_ending(Path(place.name)): place} if is_file else _list_images(place, failed)
    for name, path in files.items():
        try:
            yield name, folder.read_one(path)
        except ArchiveError as error:
            failed.add(path, str(error).removeprefix(f"{path}: "))


def name_unopened(
    given: Sequence[Path | Mammogram], opened: Sequence[Image], failed: Skipped
) -> set[str]:
    """Name the images that could not be opened, as `open_images` would have named them."""
    places = [each for each in given if isinstance(each, Path)]
    names = set()
    for path in map(Path, failed.reasons):
        for place in places:
            if path.is_relative_to(place):
                inner = path.relative_to(place) if path != place else Path(path.name)
                names.add(_remove_ending(inner).removeprefix("images/"))
    return names - {image.name for image in opened}


def _is_beneath(place: Path, output: Path | None) -> bool:
    """Whether a file or folder is that of results, or lies in it."""
    if output is None or not place.exists():
        return False
    return place.resolve().is_relative_to(output.resolve())


def _remove_ending(path: Path) -> str:
    """Remove the ending of an image; what follows a dot in another name is part of it."""
    is_ending = path.suffix.lower() in PICTURES + DICOMS
    return (path.with_suffix("") if is_ending else path).as_posix()


def _is_image(path: Path) -> bool:
    """Whether a file beneath a folder is an image by its name, and no mask by its folder's."""
    is_ending = path.suffix.lower() in PICTURES + DICOMS
    return is_ending and not _draws_lesions(path)


def _draws_lesions(path: Path) -> bool:
    """Whether a path beneath a folder leads into a folder of what draws lesions."""
    return not NO_IMAGES.isdisjoint(part.lower() for part in path.parts[:-1])


def _list_images(root: Path, failed: Skipped) -> dict[str, Path]:
    """List the images of a folder by their names, without masks and DICOM files that draw them."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such file or folder")
    if (root / folder.TABLE).is_file():
        log.warning("%s: is not read; --archive folder reads it", root / folder.TABLE)
    inner = "images" if (root / "images").is_dir() else ""
    skipped = Skipped()
    images = find_files(root, inner, PICTURES + DICOMS, skipped)
    for file, reason in skipped.reasons.items():
        if _is_image(Path(file)):
            failed.add(root / file, reason)
    masks.find_masks(Notes(root, None, ""), images)  # takes masks beside their images out
    return {
        name: path
        for name, path in images.items()
        if not _draws_lesions(Path(name)) and not (is_dicom(path) and regions.is_region_file(path))
    }


def add_boxes(images: Sequence[Image], boxes: str | Path, failed: Skipped) -> list[Image]:
    """Give images their regions.

    Args:
        images: Of `open_images`.
        failed: Takes images whose true masks can't be read.
        boxes: "truth", the lesions that the archive states; a COCO file; or a CSV table with the
            columns file, row_min, col_min, row_max, col_max (or xmin, ymin, xmax, ymax) and, where
            it has them, kind and score. Px of the image, the maximum beyond the last pixel.
    """
    if str(boxes) == TRUTH:
        with_regions = []
        for image in images:
            try:
                regions = [Finding(each.kind, 1.0, each.box) for each in image.mammogram.lesions]
                with_regions.append(replace(image, regions=tuple(regions)))
            except ArchiveError as error:
                failed.add(image.source, error)
        return with_regions
    path = Path(boxes)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    names = Names([image.name for image in images], folders_matter=False)
    sizes = {image.name: (image.mammogram.rows, image.mammogram.cols) for image in images}
    read = _read_table if path.suffix.lower() == ".csv" else _read_coco
    unknown: set[str] = set()
    found = read(path, names, sizes, unknown)
    level = logging.INFO if found else logging.WARNING
    log.log(level, "%s: boxes for %d of %d images", path, len(found), len(images))
    if unknown:
        some = ", ".join([*sorted(unknown)[:3], *["..."][: len(unknown) > 3]])
        log.warning(
            "%s: boxes of %s are not used: no image has that name, or several have", path, some
        )
    return [replace(image, regions=tuple(found.get(image.name, ()))) for image in images]


def _read_coco(
    path: Path, names: Names, sizes: dict[str, tuple[int, int]], unknown: set[str]
) -> dict[str, list[Finding]]:
    """Read boxes by the images' names; `unknown` takes the names of other files with boxes."""
    listed = coco.load(path, lambda name: names.find(name) or name, log.warning)
    unknown |= {name for name in listed.keys() - sizes.keys() if listed[name].annotations}
    found: dict[str, list[Finding]] = {}
    for name in sorted(listed.keys() & sizes.keys()):
        try:
            listed[name].check_size(*sizes[name], f"{path}: {name}")
        except coco.Contradiction as error:
            raise ConfigError(str(error)) from None
        for number, (finding, annotation) in enumerate(listed[name].annotations, 1):
            if finding is None or finding.kind is None:
                continue
            where = f"{path}: annotation {number} of {name}"
            try:
                lesion = coco.make_lesion(annotation, *sizes[name], where, finding.kind, {})
                score = float(annotation.get("score", 1))
                found.setdefault(name, []).append(Finding(lesion.kind, score, lesion.box))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{where} is not a box ({error})") from None
    return found


def _read_table(
    path: Path, names: Names, sizes: dict[str, tuple[int, int]], unknown: set[str]
) -> dict[str, list[Finding]]:
    """Read boxes by the images' names; `unknown` takes the names of other files."""
    try:
        rows = read_table(path, strict=True)
    except ArchiveError as error:
        raise ConfigError(str(error)) from None
    if not rows:
        raise ConfigError(f"{path}: has no boxes")
    columns = next((each for each in BOX_COLUMNS if {*each, "file"} <= {*rows[0][1]}), None)
    if columns is None:
        raise ConfigError(f"{path}: lacks the columns file and {', '.join(BOX_COLUMNS[0])}")
    found: dict[str, list[Finding]] = {}
    called: dict[str, str] = {}  # image -> what the table calls it
    for line, row in rows:
        name = names.find(row["file"]) or names.find(row["file"].removeprefix("'"))  # lesions.csv
        if name is None:
            unknown.add(row["file"])
            continue
        if called.setdefault(name, row["file"]) != row["file"]:
            raise ConfigError(
                f"{path}: {called[name]} and {row['file']} may both be the image {name}; give the "
                "folder above them as IMAGES"
            )
        try:
            top, left, bottom, right = (round(float(row[column])) for column in columns)
            box = cut_box((top, left, bottom, right), *sizes[name])
            kind: LesionKind = (row.get("kind") or "mass").lower()  # type: ignore[assignment]
            if kind not in KINDS:
                raise ValueError(f"there is no kind {kind}; there are {', '.join(KINDS)}")
            found.setdefault(name, []).append(Finding(kind, float(row.get("score") or 1), box))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: line {line} is not a box: {error}") from None
    return found
