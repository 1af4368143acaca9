"""tfmammo.archives.vindr on archives in VinDr-Mammo's native form, with real cells."""

from functools import partial

import pytest

from tests.archives.tools import edit_csv as edit
from tests.archives.tools import read_archive
from tests.archives.writers import vindr as writer
from tests.small_mammograms import make_mammogram, ramp
from tfmammo.archives import vindr
from tfmammo.archives.vindr import FINDINGS, IMAGES
from tfmammo.mammogram import Lesion, Lost, Mammogram

MASS = Lesion("mass", (10, 20, 18, 31))
CORNERS = ("xmin", "ymin", "xmax", "ymax")
read = partial(read_archive, vindr)


def mammogram(number: int, *lesions: Lesion, **facts) -> Mammogram:
    known = {"patient_id": f"Jane Doe {number}", "image_id": f"image {number}"}
    known |= {"spacing": (0.094, 0.085), "birads": "4", "density": "C"}
    return make_mammogram(number, ramp(0.1 + number / 20, 0.9), lesions, **known | facts)


@pytest.fixture
def small(tmp_path):
    """Two studies of one image: one with a mass, one of BI-RADS 1 without findings."""
    normal = mammogram(2, birads="1", view="MLO", laterality="R", official_split="test")
    writer.write([mammogram(1, MASS), normal], tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("categories", "kinds", "certain"),
    [
        ("['Mass']", ["mass"], True),
        ('["Mass"]', ["mass"], True),
        ("['Asymmetry', 'Focal Asymmetry']", ["asymmetry"], True),
        ("['Distortion', 'Suspicious Calcification']", ["distortion", "calcification"], False),
        ("['Nipple Retraction', 'Mass']", ["mass"], False),
    ],
)
def test_categories(small, categories, kinds, certain):
    edit(small / FINDINGS, 0, finding_categories=categories)
    (record, _), _ = read(small)
    found = [(lesion.kind, lesion.kind_is_certain, lesion.box) for lesion in record.lesions]
    assert found == [(kind, certain, MASS.box) for kind in kinds]


def test_findings_that_are_none_of_ours_are_counted_and_not_normal(small):
    for image in (0, 1):
        edit(small / FINDINGS, image, finding_categories="['Skin Thickening']")
    records, reasons = read(small)
    assert [(record.lesions, record.pathology) for record in records] == [((), None), ((), None)]
    assert reasons[FINDINGS].startswith("2 rows, the first in line 2: 'skin thickening'")


@pytest.mark.parametrize(
    "categories",
    [
        "",
        "Mass",
        "['Mass'] + ['Mass']",
        "[]",
        "__import__('os').system('touch hacked')",
        "[" * 5000 + "'Mass'" + "]" * 5000,
        "['Jane Doe', 'Mass']",  # an unknown word, which no note repeats
    ],
)
def test_categories_that_are_no_list_or_not_known_are_lost(small, categories):
    for row in (0, 1):
        edit(small / FINDINGS, row, finding_categories=categories)
    records, reasons = read(small)
    for record in records:
        assert (record.pathology, record.lost) == (None, (Lost(),))
    certain = [lesion.kind_is_certain for lesion in records[0].lesions]
    assert certain == [False] * ("Jane" in categories)
    assert reasons[FINDINGS].startswith("2 rows, the first in line 2: ")
    assert "Jane" not in str(reasons)


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        (("20.5", "10.7", "30.1", "17.01"), (10, 20, 18, 31)),
        # the real table has corners such as the first
        (("-6.2529702186584", "50.0", "20.9", "1e308"), (50, 0, 60, 21)),
        (("nan", "10", "31", "18"), None),
        (("20", "", "31", "18"), None),
        (("20", "10", "20", "18"), None),
        (("44", "10", "50", "18"), None),
        (("1e300", "10", "1e301", "18"), None),
    ],
)
def test_boxes_are_widened_to_whole_pixels_and_cut_at_the_border(small, corners, box):
    edit(small / FINDINGS, 0, **dict(zip(CORNERS, corners, strict=True)))
    (record, _), reasons = read(small)
    assert [lesion.box for lesion in record.lesions] == ([box] if box else [])
    assert all(isinstance(number, int) for lesion in record.lesions for number in lesion.box)
    assert (len(record.lost), list(reasons)) == ((0, []) if box else (1, [FINDINGS]))
    assert record.pathology is None


def test_normal_needs_birads_1_and_a_row_that_says_no_finding(small):
    edit(small / IMAGES, 1, breast_birads="BI-RADS 2")
    assert vindr.read(small)[1].pathology is None
    edit(small / IMAGES, 1, breast_birads="BI-RADS 1")
    edit(small / FINDINGS, 1, image_id="another")
    (_, record), reasons = read(small)
    assert record.pathology is None and reasons == {FINDINGS: f"1 images are not in {IMAGES}"}


def test_cells_of_another_form_become_none(small):
    names = ("breast_birads", "breast_density", "laterality", "view_position", "split")
    edit(small / IMAGES, 0, **dict.fromkeys(names, "4 or 5"))
    (record, _), reasons = read(small)
    facts = ("birads", "density", "laterality", "view", "official_split")
    assert [getattr(record, fact) for fact in facts] == [None] * 5 and not reasons


@pytest.mark.parametrize("height", ["", "0", "-60", "60.5", "9" * 5000, "100000"])
def test_a_height_that_is_none_costs_the_image(small, height):
    edit(small / IMAGES, 0, height=height)
    (record,), reasons = read(small)
    ((file, reason),) = reasons.items()
    assert record.view == "MLO" and file.startswith("images/") and "no height" in reason


def test_images_and_files_without_or_with_several_partners(small):
    edit(small / IMAGES, 0, add=True, breast_birads="BI-RADS 5")
    path = vindr.read(small)[0].file
    (small / "secret.dicom").write_bytes(b"text")
    edit(small / IMAGES, 0, add=True, study_id="..", image_id="../../secret")
    second = small / "z" / path.parent.name / path.name
    second.parent.mkdir(parents=True)
    second.write_bytes(b"text")
    records, reasons = read(small)
    assert [record.birads for record in records] == ["4", "1"]
    assert list(reasons) == [second.relative_to(small).as_posix(), IMAGES]
    assert reasons[IMAGES].split("; ") == [
        "1 rows, the first in line 4: names an image a second time",
        "1 of its 3 images are not on disk as <study_id>/<image_id>.dicom",
        "1 DICOM files are not in it",
    ]
