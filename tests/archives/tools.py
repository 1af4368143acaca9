"""What tests of several archives share: reading them, changing their files, comparing records."""

import csv
import importlib
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.archives.writers.tables import write_csv
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo.archives import ARCHIVES
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.metrics.segmentation import dice

READERS = sorted(ARCHIVES.keys() - {"phantom"})
DETAILS = {"pathology": "malignant", "shape": "oval", "margin": "spiculated"}
MASS = Lesion.from_outline("mass", SQUARE, ROWS, COLS, **DETAILS)
CLUSTER = Lesion.from_outline("calcification", SQUARE + [30, -18], ROWS, COLS, pathology="benign")


def make_originals(**facts) -> list[Mammogram]:
    """A woman with two lesions at the left and none at the right, and one with a cluster."""
    known = {"spacing": (0.07, 0.05), "birads": "4", "density": "2"} | facts
    normal = {"laterality": "R", "view": "MLO", "pathology": "normal", "birads": "1"}
    benign = {"official_split": "test", "pathology": "benign"}
    return [
        make_mammogram(1, ramp(0.1, 0.9), [MASS, CLUSTER], **known | {"pathology": "malignant"}),
        make_mammogram(2, ramp(0.2, 0.9), patient_id="p1", **known | normal),
        make_mammogram(3, ramp(0.3, 0.9), [CLUSTER], **known | benign),
    ]


def write_archive(name: str, mammograms: list[Mammogram], root: Path, **form) -> list[Path]:
    """Write mammograms as the archive of this name is distributed."""
    return importlib.import_module(f"tests.archives.writers.{name}").write(mammograms, root, **form)


def read_archive(reader, root: Path) -> tuple[list[Mammogram], dict[str, str]]:
    """Read an archive with one of the modules: its mammograms, and what is said of files."""
    skipped = Skipped()
    return reader.read(root, skipped), skipped.reasons


def change_dicom(path: Path, stored: np.ndarray | None = None, edit=None, **elements) -> Path:
    """Set elements and pixels of a DICOM file, or edit its dataset; pydicom's warnings are none."""
    dataset = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in elements.items():
            setattr(dataset, name, value)
        if stored is not None:
            dataset.PixelData = stored.tobytes()
            dataset.Rows, dataset.Columns = stored.shape
        if edit is not None:
            edit(dataset)
        dataset.save_as(path)
    return path


def make_item(**elements) -> Dataset:
    """Make an item of a sequence."""
    item = Dataset()
    for key, value in elements.items():
        setattr(item, key, value)
    return item


def make_file(path: Path, sop_class: str, **elements) -> None:
    """Write a DICOM file of a class without pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    known = {"SOPClassUID": sop_class, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID}
    dataset = FileDataset(path, make_item(**known | elements), file_meta=meta, preamble=b"\0" * 128)
    dataset.save_as(path)


def edit_csv(path: Path, row: int, add: bool = False, **cells: str) -> None:
    """Change cells of a table's row, or of a copy at its end; _ means blanks in columns."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = {name.replace(" ", "_"): name for name in rows[0]}
    changed = rows[row] | {names[name]: value for name, value in cells.items()}
    if add:
        rows.append(changed)
    else:
        rows[row] = changed
    write_csv(path, rows)


def assert_same(ours: object, theirs: object, facts: str) -> None:
    """Compare attributes, whose names are separated by blanks."""
    for fact in facts.split():
        assert getattr(ours, fact) == getattr(theirs, fact), fact


def assert_same_lesions(
    record: Mammogram, original: Mammogram, facts: str, least: float | None = 0.99
) -> None:
    """Compare lesions by attributes and, unless `least` is None, by their masks' Dice."""
    size = (record.rows, record.cols)
    for ours, theirs in zip(record.lesions, original.lesions, strict=True):
        assert_same(ours, theirs, facts)
        assert least is None or dice(ours.mask(*size), theirs.mask(*size)) >= least


def assert_patients_match(originals: list[Mammogram], records: list[Mammogram]) -> None:
    """Assert that patients are told apart as before, under other names."""
    pairs = {(a.patient_id, b.patient_id) for a, b in zip(originals, records, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) > 1
    assert all(a != b for a, b in pairs)
