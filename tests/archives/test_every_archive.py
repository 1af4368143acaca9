"""What holds for every reader, or for most."""

import pickle
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.archives.tools import (
    DETAILS,
    READERS,
    assert_patients_match,
    assert_same,
    assert_same_lesions,
    change_dicom,
    make_originals,
    read_archive,
    write_archive,
)
from tests.small_mammograms import (
    COLS,
    ROWS,
    SQUARE,
    make_mammogram,
    make_noisy,
    make_rectangle,
    ramp,
    refuse,
)
from tfmammo import archives
from tfmammo.archives import ARCHIVES
from tfmammo.data.sampling import is_normal
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Skipped


def read(name, root):
    return read_archive(getattr(archives, name), root)


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
DDSM = {"transposed": True}
MARKED = "kind pathology shape margin box"
OF_DDSM = ("malignant", None, "benign")  # the other breast of a cancer is not proven normal
VINDR = "spacing birads density"
FORMS = [
    Form("folder", {}, FOLDER, "kind box pathology shape margin", 1, PROVEN, 16),
    *(
        Form("folder", {"annotations": form}, FOLDER, "kind box kind_is_certain", dice, PROVEN, 16)
        for form, dice in (("polygons", 1), ("rle", 1), ("boxes", None))
    ),
    Form("inbreast", {"xls": True}, "spacing birads density", "kind box", 0.99, UNPROVEN, 14),
    Form("optimam", {}, "spacing", "kind box pathology", None, PROVEN, 12),
    Form("optimam", {"upper": True, "dcm_json": True}, "", "kind box", None, PROVEN, 12),
    Form("vindr", {}, VINDR, "kind box", None, UNPROVEN, 12),
    Form("vindr", {"upper_case": True}, VINDR, "kind box", None, UNPROVEN, 12),
    Form("ddsm", DDSM, "spacing density", MARKED, 0.99, OF_DDSM),
    Form("ddsm", DDSM | {"scanner": "dba"}, "spacing density", MARKED, 0.99, OF_DDSM),
]
KNOWN = {"vindr": {"density": "C"}, "ddsm": {"spacing": (0.05, 0.05)}}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{'-'.join(form.options)}")
def test_round_trip(form, tmp_path):
    originals = make_originals(**KNOWN.get(form.name, {}))
    paths = write_archive(form.name, originals, tmp_path / "a", **form.options)
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
        np.testing.assert_array_equal(np.rint(image * most), expected)


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_archive(name, tmp_path):
    (tmp_path / "file.csv").write_text("a,b\n1,2\n")
    for root in (tmp_path / "nowhere", tmp_path / "file.csv", tmp_path):
        with pytest.raises(ArchiveError, match=str(root)):
            ARCHIVES[name](root)


@pytest.mark.parametrize("name", READERS)
def test_records_are_lazy_pickled_and_pseudonymous(name, tmp_path):
    rows, cols = (1024, 1024) if name == "mini_mias" else (ROWS, COLS)
    lesions = [Lesion.from_outline("mass", SQUARE, rows, cols, **DETAILS)]
    grey = np.resize(ramp(0.2, 0.9), (rows, cols, 1))
    known = {"patient_id": "Jane", "spacing": (0.07, 0.07), "birads": "4", "density": "2"}
    original = make_mammogram(7, grey, lesions, pathology="malignant", **known)
    write_archive(name, [original], tmp_path)
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
    write_archive(name, make_originals(), tmp_path)
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
    write_archive(name, make_originals(), tmp_path)
    (path,) = tmp_path.rglob(table)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"(?i){table}"):
        read(name, tmp_path)


@pytest.mark.parametrize("name", ["inbreast", "vindr"])  # their names or tables give the laterality
@pytest.mark.parametrize(
    ("words", "wall", "notes"), [(["A", "R"], "L", 0), (["P", "L"], "R", 1), (None, None, 0)]
)
def test_the_chest_wall_is_the_headers(name, words, wall, notes, tmp_path):
    (path,) = write_archive(name, make_originals()[:1], tmp_path)
    change_dicom(path, PatientOrientation=words)
    (record,), reasons = read(name, tmp_path)
    assert (record.laterality, record.chest_wall, len(reasons)) == ("L", wall, notes)
    assert record.wall_side == (wall or "L")


def test_what_an_archive_states_decides_its_fingerprint():
    lesion = make_rectangle(10, 20, 30, 40)
    mammogram = make_noisy(lesion, name="a", read=refuse)
    other = make_noisy(name="b", read=refuse)
    texts = ("patient_id", "image_id", "laterality", "view", "pathology", "official_split")
    changes = dict.fromkeys(texts, "another") | {"rows": 1, "cols": 1, "bits": 12}
    changes |= {"spacing": (1.0, 1.0), "chest_wall": "R", "lost": (Lost("mass"),)}
    variants = [replace(mammogram, **{name: value}) for name, value in changes.items()]
    for changed in (
        replace(lesion, pathology="malignant"),
        replace(lesion, margin="spiculated"),
        make_rectangle(10, 20, 30, 41),
        replace(lesion, outlines=(lesion.outlines[0] + 0.25,)),
    ):
        variants.append(replace(mammogram, lesions=(changed,)))
    listed = [[mammogram, other], [other, mammogram], [mammogram]]
    listed += [[variant, other] for variant in variants]
    found = {archives.fingerprint(archive) for archive in listed}
    assert len(found) == len(listed)
    assert archives.fingerprint([replace(mammogram, read=None), other]) in found
