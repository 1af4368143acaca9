"""What holds for every reader, or for most."""

import importlib
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from tests.archives.tools import (
    assert_patients_match,
    assert_same,
    assert_same_lesions,
    change_dicom,
    read_archive,
)
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo import archives
from tfmammo.archives import ARCHIVES, phantom, read_mammograms
from tfmammo.config import DataConfig
from tfmammo.data.sampling import is_normal, select_lesions
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Mammogram, Skipped

READERS = sorted(ARCHIVES.keys() - {"phantom"})
LOCATED = ("cbis_ddsm", "cdd_cesm", "ddsm", "embed", "folder", "mini_mias", "optimam")
OF = {"malignant": 0, "benign": 2}  # mammograms of the phantom with one mass of that pathology
DETAILS = {"pathology": "malignant", "shape": "oval", "margin": "spiculated"}
MASS = Lesion.from_outline("mass", SQUARE, ROWS, COLS, **DETAILS)
CLUSTER = Lesion.from_outline("calcification", SQUARE + [30, -18], ROWS, COLS, pathology="benign")


def write(name, mammograms, root, **form):
    return importlib.import_module(f"tests.archives.writers.{name}").write(mammograms, root, **form)


def read(name, root):
    return read_archive(getattr(archives, name), root)


def make_originals(**facts) -> list[Mammogram]:
    """A woman with two lesions at the left and none at the right, and one with a cluster."""
    known = {"spacing": (0.07, 0.05), "birads": "4", "density": "2"} | facts
    normal = {"laterality": "R", "view": "MLO", "pathology": "normal", "birads": "1"}
    return [
        make_mammogram(1, ramp(0.1, 0.9), [MASS, CLUSTER], **known | {"pathology": "malignant"}),
        make_mammogram(2, ramp(0.2, 0.9), patient_id="p1", **known | normal),
        make_mammogram(
            3, ramp(0.3, 0.9), [CLUSTER], official_split="test", **known | {"pathology": "benign"}
        ),
    ]


class Form(NamedTuple):
    """A form of an archive, and what comes back of it."""

    name: str
    options: dict[str, Any]
    facts: str
    lesion_facts: str
    least: float | None  # Dice of the masks
    pathologies: tuple[str | None, ...]
    bits: int | None = None  # of whole numbers


PROVEN = ("malignant", "normal", "benign")
UNPROVEN = (None, "normal", None)
FOLDER = "spacing birads density official_split"
DDSM = {"transposed": True, "selected": True, "laser": False}
ALIKE = {"spacing": (0.05, 0.05)}
WINDOWS = {"padding": 5, "windows": 0, "upper_case": True, "byte_order_mark": True}
FORMS = [
    *(
        Form("folder", {"annotations": form}, FOLDER, "kind box kind_is_certain", 1, PROVEN, 16)
        for form in ("polygons", "rle")
    ),
    Form("folder", {"annotations": "boxes"}, FOLDER, "kind box kind_is_certain", None, PROVEN, 16),
    Form("folder", {}, FOLDER, "kind box pathology shape margin", 1, PROVEN, 16),
    Form("inbreast", {"xls": True}, "spacing birads density", "kind box", 0.99, UNPROVEN, 14),
    Form("inbreast", {"monochrome1": True}, "spacing", "kind box", 0.99, UNPROVEN, 14),
    Form("optimam", {}, "spacing", "kind box pathology", None, PROVEN, 12),
    Form("optimam", {"upper": True, "dcm_json": True}, "", "kind box", None, PROVEN, 12),
    *(
        Form("vindr", options, "spacing birads density", "kind box", None, UNPROVEN, bits)
        for options, bits in (
            ({}, 12),
            ({"monochrome1": True, "padding": 5, "windows": 3, "bits": 14}, 14),
            (WINDOWS, 12),
            ({"windows": 1, "syntax": JPEG2000Lossless}, 12),
        )
    ),
    *(
        Form(
            "ddsm",
            DDSM | {"scanner": scanner},
            "spacing density",
            "kind pathology shape margin box",
            0.99,
            ("malignant", None, "benign"),  # the other breast of a cancer is not proven normal
        )
        for scanner in ("lumisys", "dba")
    ),
]
KNOWN = {"vindr": {"density": "C"}, "ddsm": ALIKE}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{'-'.join(form.options)}")
def test_round_trip(form, tmp_path):
    originals = make_originals(**KNOWN.get(form.name, {}))
    paths = write(form.name, originals, tmp_path / "a", **form.options)
    records, reasons = read(form.name, tmp_path / "a")
    assert not reasons
    records = sorted(records, key=lambda record: paths.index(record.file))
    assert_patients_match(originals, records)
    assert tuple(record.pathology for record in records) == form.pathologies
    for original, record in zip(originals, records, strict=True):
        assert_same(record, original, f"rows cols laterality view {form.facts}")
        assert_same_lesions(record, original, form.lesion_facts, form.least)
        assert all(lesion.is_outlined == (form.least is not None) for lesion in record.lesions)
        image = record.pixels().astype(np.float64)
        if form.bits is None:  # film, by optical density
            assert np.abs(image - original.pixels()).max() < 3e-3
            continue
        most = 2**form.bits - 1
        expected = np.rint(original.pixels().astype(np.float64) * most)
        if pad := form.options.get("padding", 0):
            expected[:, slice(-pad, None) if original.laterality == "L" else slice(pad)] = 0
        np.testing.assert_array_equal(np.rint(image * most), expected)


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_archive(name, tmp_path):
    (tmp_path / "file.csv").write_text("a,b\n1,2\n")
    for root in (tmp_path / "nowhere", tmp_path / "file.csv", tmp_path):
        with pytest.raises(ArchiveError, match=str(root)):
            ARCHIVES[name](root)


@pytest.mark.parametrize("name", READERS)
def test_records_are_lazy_pickled_and_pseudonymous(name, tmp_path):
    size = 1024 if name == "mini_mias" else ROWS
    cols = 1024 if name == "mini_mias" else COLS
    lesions = [Lesion.from_outline("mass", SQUARE, size, cols, **DETAILS)]
    grey = np.resize(ramp(0.2, 0.9), (size, cols, 1))
    known = {"patient_id": "Jane", "spacing": (0.07, 0.07), "birads": "4", "density": "2"}
    original = make_mammogram(7, grey, lesions, pathology="malignant", **known)
    write(name, [original], tmp_path)
    skipped = Skipped()
    (record,) = pickle.loads(pickle.dumps(ARCHIVES[name](tmp_path, skipped)))
    assert record.archive == name and not skipped.reasons and not is_normal(record)
    assert len(record.lesions) + len(record.lost) == 1
    assert (record.laterality, record.view) == ("L", "MLO" if name == "mini_mias" else "CC")
    assert "Jane" not in repr(record) + record.patient_id + record.image_id
    assert np.abs(record.pixels() - grey).max() < 0.02  # CDD-CESM's are JPEGs
    record.file.unlink()
    with pytest.raises(ArchiveError):
        record.pixels()


# A picture that breaks off shows when its pixels are read; DDSM's are not opened before at all.
CUT = sorted(set(READERS) - {"cdd_cesm", "ddsm", "folder", "mini_mias"})
UNUSABLE = [(name, -100) for name in CUT] + [(name, 0) for name in READERS if name != "ddsm"]


@pytest.mark.parametrize(("name", "keep"), UNUSABLE)
def test_an_unusable_image_is_noted_and_the_others_stay(name, keep, tmp_path):
    write(name, make_originals(), tmp_path)
    before, _ = read(name, tmp_path)
    for number, record in enumerate(before, start=1):
        if record.file.is_file():
            record.file.write_bytes(record.file.read_bytes()[:keep] or b"text")
        if number < len(before):
            records, reasons = read(name, tmp_path)
            assert len(records) == len(before) - number
            assert record.file.relative_to(tmp_path).as_posix() in reasons
    with pytest.raises(ArchiveError, match=r"no image .*that can be read"):
        read(name, tmp_path)


TABLES = [
    ("cdd_cesm", "Radiology_hand_drawn_segmentations_v2.csv"),
    ("cdd_cesm", "Radiology-manual-annotations.csv"),
    ("cmmd", "CMMD_clinicaldata_revision.xlsx"),
    ("embed", "EMBED_OpenData_metadata.csv"),
    ("embed", "EMBED_OpenData_clinical.csv"),
    ("mini_mias", "Info.txt"),
    ("rsna", "train.csv"),
    ("vindr", "breast-level_annotations.csv"),
    ("vindr", "finding_annotations.csv"),
]


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,2\n", b'a,"' + b"x" * 200_000])
@pytest.mark.parametrize(("name", "table"), TABLES)
def test_a_missing_or_damaged_table_is_named(name, table, content, tmp_path):
    write(name, make_originals(), tmp_path)
    (path,) = tmp_path.rglob(table)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"(?i){table}"):
        read(name, tmp_path)


@pytest.fixture(scope="module")
def written():
    return [phantom.read(count=3)[place] for place in OF.values()]


@pytest.mark.parametrize("name", LOCATED)
def test_lesions_are_selected_by_their_pathology(written, tmp_path, name):
    write(name, written, tmp_path)
    config = DataConfig(name=name, root=tmp_path)
    mammograms = read_mammograms(config, Skipped())
    for source, wanted in zip(written, OF, strict=True):
        only = config.model_copy(update={"pathologies": (wanted,)})
        (lesion,) = (it for m in mammograms for it in select_lesions(m, only).values())
        if name not in ("embed", "optimam", "mini_mias"):  # which have boxes and circles
            areas = [one.mask(source.rows, source.cols).sum() for one in (lesion, *source.lesions)]
            assert areas[0] == pytest.approx(areas[1], rel=0.02)


@pytest.mark.parametrize(
    "name", ["inbreast", "vindr"]
)  # whose names and tables give the laterality
@pytest.mark.parametrize(
    ("words", "wall", "notes"), [(["A", "R"], "L", 0), (["P", "L"], "R", 1), (None, None, 0)]
)
def test_the_chest_wall_is_the_headers(name, words, wall, notes, tmp_path):
    (path,) = write(name, make_originals()[:1], tmp_path)
    change_dicom(path, PatientOrientation=words)
    (record,), reasons = read(name, tmp_path)
    assert (record.laterality, record.chest_wall, len(reasons)) == ("L", wall, notes)
    assert record.wall_side == (wall or "L")
