"""tfmammo.archives.vindr on archives in VinDr-Mammo's native form, and on rows as they
stand in the real tables.
"""

import csv
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from tests.archives.writers import vindr as writer
from tests.small_mammograms import COLS, ROWS, make_mammogram, ramp
from tfmammo.archives import phantom, vindr
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Mammogram, Skipped

IMAGES = "breast-level_annotations.csv"
FINDINGS = "finding_annotations.csv"
METADATA = "metadata.csv"
MASS = Lesion("mass", (10, 20, 18, 31))


def mammogram(number: int, *lesions: Lesion, **facts) -> Mammogram:
    known = {
        "patient_id": f"Jane Doe {number}",
        "image_id": f"image {number}",
        "spacing": (0.094, 0.085),
        "birads": "4",
        "density": "C",
    }
    return make_mammogram(number, ramp(0.1 + number / 20, 0.9), lesions, **known | facts)


def read(root: Path) -> tuple[list[Mammogram], dict[str, str]]:
    skipped = Skipped()
    return vindr.read(root, skipped), skipped.reasons


@pytest.fixture
def small(tmp_path):
    """Two studies of one image: one with a mass, one of BI-RADS 1 without findings."""
    writer.write(
        [
            mammogram(1, MASS),
            mammogram(2, birads="1", view="MLO", laterality="R", official_split="test"),
        ],
        tmp_path,
    )
    return tmp_path


def edit(path: Path, row: int, add: bool = False, **cells: str) -> None:
    """Change cells of one row of a table, counted from 1; add: of a copy of it at the
    table's end.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if add:
        rows.append(rows[row - 1] | cells)
    else:
        rows[row - 1] |= cells
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


QUIRKS = [
    {},
    {"monochrome1": True, "padding": 5, "windows": 3, "bits": 14},
    {"padding": 5, "windows": 0, "upper_case": True, "byte_order_mark": True},
    {"metadata": False, "windows": 1, "syntax": JPEG2000Lossless},
]


@pytest.mark.parametrize("quirks", QUIRKS, ids=lambda quirks: "-".join(quirks) or "plain")
def test_round_trip(tmp_path, quirks):
    other = Lesion("calcification", (0, 0, 60, 44))
    originals = [
        mammogram(
            1,
            MASS,
            other,
            Lesion("distortion", (1, 2, 3, 4)),
            Lesion("asymmetry", (59, 43, 60, 44)),
            patient_id="a",
        ),
        mammogram(
            2,
            laterality="R",
            view="MLO",
            birads="1",
            density="A",
            patient_id="a",
            official_split="test",
        ),
        mammogram(3, birads="2", spacing=None, patient_id="b"),
    ]
    paths = writer.write(originals, tmp_path / "1.0.0", **quirks)
    records, reasons = read(tmp_path)
    assert not reasons
    assert [record.image_id for record in records] == [path.stem.lower() for path in paths]
    assert (
        [record.patient_id for record in records[:2]]
        == [records[0].patient_id] * 2
        != [records[2].patient_id] * 2
    )
    for original, record in zip(originals, records, strict=True):
        for fact in ("rows", "cols", "laterality", "view", "birads", "density", "spacing"):
            assert getattr(record, fact) == getattr(original, fact), fact
        assert [(ours.kind, ours.box, ours.outlines) for ours in record.lesions] == [
            (it.kind, it.box, ()) for it in original.lesions
        ]
        assert all(ours.kind_is_certain and ours.pathology is None for ours in record.lesions)
    assert [record.official_split for record in records] == ["train", "test", "train"]
    assert [record.pathology for record in records] == [None, "normal", None]
    most = 2 ** quirks.get("bits", 12) - 1
    for original, record in zip(originals, records, strict=True):
        expected = np.rint(original.pixels().astype(np.float64) * most) / most
        if pad := quirks.get("padding", 0):
            expected[:, slice(-pad, None) if original.laterality == "L" else slice(pad)] = 0
        image = record.pixels()
        np.testing.assert_array_equal(
            np.rint(image.astype(np.float64) * most), np.rint(expected * most)
        )
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_round_trip_of_the_phantom(tmp_path):
    originals = phantom.read(count=2, seed=3)
    writer.write(originals, tmp_path)
    records, reasons = read(tmp_path)
    assert not reasons
    for original, record in zip(originals, records, strict=True):
        assert [lesion.box for lesion in record.lesions] == [
            lesion.box for lesion in original.lesions
        ]
    assert np.abs(records[0].pixels() - originals[0].pixels()).max() <= 0.5 / 4095 + 1e-6


def test_only_the_first_of_several_windows_is_applied(tmp_path):
    writer.write([mammogram(1)], tmp_path, windows=3)
    (path,) = tmp_path.rglob("*.dicom")
    dataset = pydicom.dcmread(path)
    dataset.WindowCenter = [1000.5, 2047.5]
    dataset.WindowWidth = [1000, 4096]
    dataset.save_as(path)
    stored = dataset.pixel_array.astype(float)
    expected = np.clip((stored - 1000) / 999 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2
    assert 0 < (expected == 1).mean() < 1
    np.testing.assert_allclose(vindr.read(tmp_path)[0].pixels()[..., 0], expected, atol=1e-6)


def test_identifiers_are_pseudonyms(small):
    record = vindr.read(small)[0]
    assert re.fullmatch("[0-9a-f]{12}", record.patient_id)
    assert not list((small / "images").glob(f"*{record.patient_id}*"))


@pytest.mark.parametrize(
    ("categories", "kinds", "certain"),
    [
        ("['Mass']", ["mass"], True),
        ('["Mass"]', ["mass"], True),
        ("['Global Asymmetry']", ["asymmetry"], True),
        ("['Asymmetry', 'Focal Asymmetry']", ["asymmetry"], True),
        (
            "['Suspicious Calcification', 'Architectural Distortion']",
            ["calcification", "distortion"],
            False,
        ),
        ("[ 'Suspicious Calcification','Mass' , 'Mass' ]", ["calcification", "mass"], False),
        ("['Nipple Retraction', 'Mass']", ["mass"], False),
        ("['Skin Thickening']", [], None),
        ("['Suspicious Lymph Node', 'Skin Retraction']", [], None),
    ],
)
def test_categories(small, categories, kinds, certain):
    edit(small / FINDINGS, 1, finding_categories=categories)
    (record, _), _ = read(small)
    assert [lesion.kind for lesion in record.lesions] == kinds
    assert {lesion.kind_is_certain for lesion in record.lesions} == ({certain} if kinds else set())
    assert {lesion.box for lesion in record.lesions} == ({MASS.box} if kinds else set())


def test_findings_that_are_none_of_ours_are_counted_and_not_normal(small):
    for image in (1, 2):
        corners = {"xmin": "1", "ymin": "2", "xmax": "3", "ymax": "4"}
        edit(small / FINDINGS, image, finding_categories="['Skin Thickening']", **corners)
    records, reasons = read(small)
    assert [(record.lesions, record.pathology) for record in records] == [((), None), ((), None)]
    assert reasons == {
        FINDINGS: "2 rows, the first in line 2: 'skin thickening' is no lesion of ours"
    }


@pytest.mark.parametrize(
    "categories",
    [
        "",
        "Mass",
        "['Mass'",
        "['Mass'] + ['Mass']",
        "[Mass]",
        "[]",
        "__import__('os').system('touch hacked')",
        "=cmd|'/c calc'!A0",
        "[" * 5000 + "'Mass'" + "]" * 5000,
        "['Mass'," * 5000,
        "['" + "a" * 100_000,
    ],
)
def test_categories_that_are_no_list_are_noted_and_never_evaluated(small, categories):
    edit(small / FINDINGS, 2, finding_categories=categories)
    (_, record), reasons = read(small)
    assert (record.lesions, record.pathology) == ((), None)
    assert reasons == {
        FINDINGS: "1 rows, the first in line 3: finding_categories is no list of names"
    }


def test_an_unknown_category_does_not_reach_the_notes(small):
    edit(small / FINDINGS, 1, finding_categories="['Jane Doe', 'Mass']")
    (record, _), reasons = read(small)
    assert [lesion.kind_is_certain for lesion in record.lesions] == [False]
    assert record.lost == (Lost(),)
    assert reasons == {FINDINGS: "1 rows, the first in line 2: an unknown category"}


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        (("20", "10", "31", "18"), (10, 20, 18, 31)),
        (("20.5", "10.7", "30.1", "17.01"), (10, 20, 18, 31)),
        # the real table has corners such as the first
        (("-6.2529702186584", "50.0", "20.9", "1e308"), (50, 0, 60, 21)),
        (("-1e308", "-5", "1e308", "99999999999999999999"), (0, 0, 60, 44)),
    ],
)
def test_boxes_are_widened_to_whole_pixels_and_cut_at_the_border(small, corners, box):
    edit(small / FINDINGS, 1, **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)))
    (record, _), reasons = read(small)
    assert record.lesions[0].box == box
    assert all(isinstance(number, int) for number in record.lesions[0].box)
    assert not reasons


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        (("nan", "10", "31", "18"), "the box has a corner that is no number"),
        (("20", "10", "inf", "18"), "the box has a corner that is no number"),
        (("20", "10", "", "18"), "the box has a corner that is no number"),
        (("20", "ten", "31", "18"), "the box has a corner that is no number"),
        (("20", "10", "20", "18"), "the box is empty, or outside the image"),
        (("31", "10", "20", "18"), "the box is empty, or outside the image"),
        (("44", "10", "50", "18"), "the box is empty, or outside the image"),
        (("20", "-9", "31", "0"), "the box is empty, or outside the image"),
        (("1e300", "10", "1e301", "18"), "the box is empty, or outside the image"),
    ],
)
def test_a_box_that_is_none_is_noted_and_the_image_stays(small, corners, reason):
    edit(small / FINDINGS, 1, **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)))
    (record, _), reasons = read(small)
    assert (record.lesions, record.pathology, len(record.lost)) == ((), None, 1)
    assert reasons == {FINDINGS: f"1 rows, the first in line 2: {reason}"}


def test_several_findings_of_one_image(small):
    edit(
        small / FINDINGS,
        1,
        add=True,
        xmin="0",
        ymin="0",
        xmax="5",
        ymax="5",
        finding_categories="['Suspicious Calcification']",
    )
    (record, _), reasons = read(small)
    assert [(lesion.kind, lesion.box) for lesion in record.lesions] == [
        ("mass", MASS.box),
        ("calcification", (0, 0, 5, 5)),
    ]
    assert not reasons


def test_normal_needs_birads_1_and_a_row_that_says_no_finding(small):
    assert [record.pathology for record in vindr.read(small)] == [None, "normal"]
    edit(small / IMAGES, 2, breast_birads="BI-RADS 2")
    assert vindr.read(small)[1].pathology is None
    edit(small / IMAGES, 2, breast_birads="BI-RADS 1")
    edit(small / FINDINGS, 2, image_id="another")
    (_, record), reasons = read(small)
    assert record.pathology is None
    assert reasons == {FINDINGS: f"1 images are not in {IMAGES}"}


@pytest.mark.parametrize(
    "text", ["=1+1", "", "BI-RADS", "BI-RADS 7", "DENSITY E", "4 or 5", "\u0664"]
)
def test_cells_of_another_form_become_none(small, text):
    edit(
        small / IMAGES,
        1,
        breast_birads=text,
        breast_density=text,
        laterality=text,
        view_position=text,
        split=text,
    )
    (record, _), reasons = read(small)
    assert (
        record.birads,
        record.density,
        record.laterality,
        record.view,
        record.official_split,
    ) == (None,) * 5
    assert not reasons


@pytest.mark.parametrize(
    "height", ["", "0", "-60", "nan", "6e1", "60.5", "9" * 5000, "=60", "100000"]
)
def test_a_height_that_is_none_costs_the_image(small, height):
    edit(small / IMAGES, 1, height=height)
    (record,), reasons = read(small)
    assert record.view == "MLO"
    ((file, reason),) = reasons.items()
    assert file.startswith("images/") and reason == f"{IMAGES} gives no height and width for it"


def test_a_size_that_contradicts_the_dicom_shows_when_pixels_are_read(small):
    edit(small / IMAGES, 1, height="61")
    record = vindr.read(small)[0]
    assert record.rows == 61
    with pytest.raises(
        ArchiveError, match=r"pixels have shape \(60, 44, 1\), the record says \(61, 44, 1\)"
    ):
        record.pixels()


def test_indexing_opens_no_dicom_where_the_table_tells_the_spacing(small):
    for path in small.rglob("*.dicom"):
        path.write_bytes(b"text")
    records, reasons = read(small)
    assert ([record.spacing for record in records], reasons) == ([(0.094, 0.085)] * 2, {})
    with pytest.raises(ArchiveError, match=r"\.dicom: is not a DICOM file"):
        records[0].pixels()
    (small / METADATA).unlink()
    with pytest.raises(
        ArchiveError,
        match=f"{small}: holds no image of VinDr-Mammo that can be read",
    ):
        vindr.read(small)


@pytest.mark.parametrize(
    "text", ["[0.094, 0.085]", "['0.094', '0.085']", "0.094\\0.085", "(9.4e-2, 8.5E-02)"]
)
def test_spacing_in_any_way_that_a_header_is_printed(small, text):
    edit(small / METADATA, 1, **{"Imager Pixel Spacing": text})
    for path in small.rglob("*.dicom"):
        path.write_bytes(b"text")
    assert vindr.read(small)[0].spacing == (0.094, 0.085)


@pytest.mark.parametrize(
    "text", ["", "[0.5]", "[0, 0.5]", "nan", "[1, 2, 3]", "[1e999, 1e999]", "[-0.5, 0.5]"]
)
def test_spacing_falls_back_to_the_header(small, text):
    edit(small / METADATA, 1, **{"Imager Pixel Spacing": text})
    assert vindr.read(small)[0].spacing == (0.094, 0.085)


def test_pixel_spacing_goes_before_that_of_the_detector(small):
    path = small / METADATA
    path.write_text(
        path.read_text(encoding="utf-8")
        .replace("Patient's Age", "Pixel Spacing")
        .replace("053Y", "0.07 0.08"),
        encoding="utf-8",
    )
    assert vindr.read(small)[0].spacing == (0.07, 0.08)


def test_a_damaged_metadata_table_is_noted(small):
    (small / METADATA).write_text("a,b\n1,2\n", encoding="utf-8")
    (record, _), reasons = read(small)
    assert record.spacing == (0.094, 0.085)
    assert reasons == {METADATA: "has no column sop_instance_uid"}


@pytest.mark.parametrize("name", [IMAGES, FINDINGS])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is no VinDr-Mammo archive, {name} is missing"),
        (b"", "{name}: has no column (study_id, )?image_id, "),
        (b"study_id,image_id\n1,2\n", "{name}: has no column (laterality|finding_categories), "),
        (b"\xff\xfes", "{name}: (can't be read as CSV|has no column)"),
        (b'image_id,"' + b"a" * 200_000, "{name}: can't be read as CSV"),
    ],
)
def test_a_table_that_is_missing_or_damaged(small, name, content, reason):
    (small / name).unlink()
    if content is not None:
        (small / name).write_bytes(content)
    with pytest.raises(ArchiveError, match=reason.format(name=re.escape(name))):
        vindr.read(small)


def test_columns_may_stand_in_any_order_and_case_with_blanks(small):
    for name in (IMAGES, FINDINGS):
        with (small / name).open(newline="", encoding="utf-8") as file:
            rows = [row[::-1] for row in csv.reader(file)]
        text = "\n".join(
            ",".join(f'" {cell.upper() if not index else cell} "' for cell in row)
            for index, row in enumerate(rows)
        )
        (small / name).write_text(text, encoding="utf-8")
    records, reasons = read(small)
    assert [len(record.lesions) for record in records] == [1, 0]
    assert not reasons


def test_short_and_long_rows(small):
    with (small / FINDINGS).open("a", encoding="utf-8") as file:
        file.write("a,b\n\n" + ",".join("abc" * 20) + "\n")
    records, reasons = read(small)
    assert len(records) == 2
    assert (
        "2 rows, the first in line 4: finding_categories is no list of names" in reasons[FINDINGS]
    )


def test_an_image_named_twice(small):
    edit(small / IMAGES, 1, add=True, breast_birads="BI-RADS 5")
    records, reasons = read(small)
    assert [record.birads for record in records] == ["4", "1"]
    assert reasons == {IMAGES: "1 rows, the first in line 4: names an image a second time"}


def test_files_that_no_row_names(small):
    record = vindr.read(small)[0]
    (path,) = small.rglob(f"{record.image_id}.dicom")
    for folder in (path.parent.name, "study"):
        (small / "z" / folder).mkdir(parents=True)
        (small / "z" / folder / path.name).write_bytes(b"text")
    records, reasons = read(small)
    assert len(records) == 2 and records[0].pixels().shape == (ROWS, COLS, 1)
    second = f"z/{path.parent.name}/{path.name}"
    assert reasons == {
        second: "is a second file of the same study and image",
        IMAGES: "1 DICOM files are not in it",
    }


def test_a_path_in_a_cell_leads_nowhere(small):
    (small / "secret.dicom").write_bytes(b"text")
    edit(small / IMAGES, 1, study_id="..", image_id="../../secret")
    (record,), reasons = read(small)
    assert record.view == "MLO"
    assert reasons[IMAGES].startswith("1 of its 2 images are not on disk")


def test_reading_is_lazy_and_records_pickle(small):
    record = vindr.read(small)[0]
    image = record.pixels()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(record)).pixels(), image)
    (path,) = small.rglob(f"{record.image_id}.dicom")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ArchiveError, match=r"\.dicom: the file ends early"):
        record.pixels()


def test_what_is_no_archive(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ArchiveError, match=rf"{root}: is no VinDr-Mammo archive, {IMAGES} is missing"
        ):
            vindr.read(root)


def long_table(small: Path, count: int) -> float:
    """Seconds of the processor that it takes to index both tables with `count` further rows of
    images that are not on disk.
    """
    for name, cells in ((IMAGES, {}), (FINDINGS, {"xmin": "nan"})):
        edit(small / name, 1, add=True, study_id="s", image_id="new", **cells)
        lines = (small / name).read_text(encoding="utf-8").splitlines()
        repeated = [
            *lines[:-1],
            *(lines[-1].replace(",new,", f",new{number},") for number in range(count)),
        ]
        (small / name).write_text("\n".join(repeated), encoding="utf-8")
    start = time.process_time()
    records, reasons = read(small)
    seconds = time.process_time() - start
    assert len(records) == 2
    assert (
        reasons[IMAGES]
        == f"{count} of its {count + 2} images are not on disk as <study_id>/<image_id>.dicom"
    )
    assert (
        reasons[FINDINGS]
        == f"{count} rows, the first in line 4: the box has a corner that is no number"
    )
    return seconds


def test_long_tables_of_missing_images_are_one_note_and_take_linear_time(small):
    assert long_table(small, 10_000) < 3  # some 0.2 s; 10,000 scans of 10,000 rows would be more
