"""Small archives in CDD-CESM's own form, and the real one."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.archives.tools import read_archive
from tests.archives.writers.cdd_cesm import describe, list_regions, write_tables
from tfmammo.archives import cdd_cesm
from tfmammo.mammogram import Lost, hash_id

ROWS = 120
COLS = 100
read = partial(read_archive, cdd_cesm)


def polygon(*points: tuple[int, int]) -> dict:
    """A region of VIA from (row, col)."""
    rows, cols = zip(*points, strict=True)
    return {"name": "polygon", "all_points_x": cols, "all_points_y": rows}


SQUARE = polygon((50, 30), (50, 60), (70, 60), (70, 30))


@pytest.fixture
def archive(tmp_path):
    """A function that writes an archive: {name: (findings, pathology, regions)} -> root."""

    def write(images, **facts):
        (tmp_path / "images").mkdir()
        # an image that is not there
        regions = list_regions("P999_L_DM_CC", [SQUARE])
        for name, (_, _, shapes) in images.items():
            grey = np.tile(np.linspace(0, 255, COLS, dtype=np.uint8), (ROWS, 1))
            path = tmp_path / "images" / f"{name}.jpg"
            Image.fromarray(grey).convert("RGB").save(path, quality=95)
            regions += list_regions(name, shapes)
        known = {"birads": "4$2", "density": "C"} | facts
        clinical = [describe(name, *words[:2], **known) for name, words in images.items()]
        write_tables(tmp_path, regions, clinical)
        return tmp_path

    return write


def test_one_certain_mass(archive):
    findings = "High density mass with speculated margin "
    (mammogram,), reasons = read(archive({"P107_R_DM_CC": (findings, "Malignant", [SQUARE])}))
    assert not reasons and mammogram.patient_id == hash_id("cdd_cesm", "P107")
    assert (mammogram.laterality, mammogram.view, mammogram.pathology) == ("R", "CC", "malignant")
    assert (mammogram.birads, mammogram.density) == ("4$2", "C")
    (lesion,) = mammogram.lesions
    facts = (lesion.kind, lesion.kind_is_certain, lesion.margin, lesion.shape, lesion.pathology)
    assert facts == ("mass", True, "spiculated", None, "malignant")
    assert lesion.box == (50, 30, 71, 61)  # rows from y, columns from x
    assert lesion.mask(ROWS, COLS).sum() == 21 * 31


def test_bands_of_images_with_several_findings_are_no_lesions(archive):
    skin = polygon((10, 10), (10, 90), (20, 90), (20, 10))  # 800 of 80 * 80 px: 0.125
    thick = polygon((10, 10), (10, 90), (23, 90), (23, 10))  # 0.1625
    turned = polygon((10, 10), (90, 90), (97, 83), (17, 3))  # 0.09 of its length squared
    regions = [skin, thick, turned, SQUARE]
    images = {
        "P1_L_DM_CC": ("High density mass with edema pattern", "Malignant", regions),
        "P2_L_DM_CC": ("High density mass", "Malignant", regions),
    }
    (several, certain), reasons = read(archive(images))
    assert [lesion.box[0] for lesion in several.lesions] == [10, 50]
    assert several.lesions[0].box == (10, 10, 24, 91)
    assert len(certain.lesions) == 4
    reason = "a band, of skin or a duct"
    assert reasons == {"images/P1_L_DM_CC.jpg": f"region 0: {reason}; region 2: {reason}"}


def test_a_scaled_copy_without_masks_is_left_out(archive):
    large = {**SQUARE, "all_points_x": [3 * x for x in SQUARE["all_points_x"]]}
    shapes = {"P1_L_DM_CC": [SQUARE, large], "P2_L_DM_CC": [SQUARE]}
    root = archive({name: ("mass", "Benign", regions) for name, regions in shapes.items()})
    (mammogram,), reasons = read(root)
    assert mammogram.patient_id == hash_id("cdd_cesm", "P2")
    assert list(reasons) == ["images/P1_L_DM_CC.jpg"]
    assert "row 70 and column 180 of 120 x 100 px" in reasons["images/P1_L_DM_CC.jpg"]


def test_a_scaled_copy_has_its_regions_in_masks(archive):
    words = ("High density mass", "Malignant", [SQUARE])
    root = archive({f"P{i}_L_DM_CC": words for i in (1, 2, 3, 4)})
    mask = np.zeros((ROWS, COLS), np.uint8)
    mask[10:30, 20:40] = 255
    mask[60:80, 50:60] = 200
    # 15 and 1 px: specks
    mask[100:103, 5:10] = 255
    mask[0, 0] = 255
    (root / "masks").mkdir()
    Image.fromarray(mask).save(root / "masks/P1_L_DM_CC.png")
    Image.fromarray(mask[:50]).save(root / "masks/P2_L_DM_CC.png")
    (root / "masks/P3_L_DM_CC.png").write_bytes(b"no picture")
    (masked, drawn), reasons = read(root)
    assert [lesion.box for lesion in masked.lesions] == [(10, 20, 30, 40), (60, 50, 80, 60)]
    assert sum(lesion.mask(ROWS, COLS).sum() for lesion in masked.lesions) == 400 + 200
    # the image's, which may be one part's alone
    assert {lesion.pathology for lesion in masked.lesions} == {None}
    assert [lesion.box for lesion in drawn.lesions] == [(50, 30, 71, 61)]
    assert reasons["images/P2_L_DM_CC.jpg"] == "its mask has 50 x 100 px, itself 120 x 100"
    assert "can't be read" in reasons["images/P3_L_DM_CC.jpg"] and len(reasons) == 2


@pytest.mark.parametrize(
    ("findings", "pathology", "expected"),
    [
        ("Distortion and mass with obscured margin", "Malignant", ("mass", False, None)),
        ("Architectural distortion$Macrocalcification", "Benign", ("distortion", False, None)),
        ("Oval mass with obscured, microlobulated margin", "Malignant", ("mass", True, "oval")),
    ],
)
def test_mixed_findings_are_uncertain(archive, findings, pathology, expected):
    root = archive({"P1_L_DM_CC": (findings, pathology, [SQUARE, SQUARE])})
    ((first, second),) = (record.lesions for record in cdd_cesm.read(root))
    for lesion in (first, second):
        assert (lesion.kind, lesion.kind_is_certain, lesion.shape) == expected
        # of two margins, or of two regions where one is malignant, nobody knows whose it is
        of_all = "benign" if pathology == "Benign" else None
        assert (lesion.margin, lesion.pathology) == (None, of_all)


def test_circle_and_turned_ellipse(archive):
    ellipse = {"name": "ellipse", "cx": 50, "cy": 60, "rx": 30, "ry": 10}
    shapes = [{"name": "circle", "cx": 50, "cy": 60, "r": 20}, ellipse]
    shapes.append(ellipse | {"theta": np.pi / 6})
    (mammogram,) = cdd_cesm.read(archive({"P1_L_DM_CC": ("mass", "Benign", shapes)}))
    circle, flat, turned = (lesion.mask(ROWS, COLS) for lesion in mammogram.lesions)
    assert abs(int(circle.sum()) / (np.pi * 20.5**2) - 1) < 0.02
    assert mammogram.lesions[1].box == (50, 20, 71, 81)
    y, x = np.mgrid[:ROWS, :COLS] - np.array([60, 50])[:, None, None]
    # a canvas turns from x to y: clockwise on the screen
    for mask, theta in ((flat, 0.0), (turned, np.pi / 6)):
        along = x * np.cos(theta) + y * np.sin(theta)
        across = y * np.cos(theta) - x * np.sin(theta)
        distance = (along / 30) ** 2 + (across / 10) ** 2
        sure = np.abs(distance - 1) > 0.25  # away from the border
        np.testing.assert_array_equal(mask[sure], (distance < 1)[sure])


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ({"name": "point", "cx": 5, "cy": 6}, "a point encloses"),
        ({"name": "hedgehog"}, "unknown name"),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}, "not what VIA"),
        ({"name": "ellipse", "cx": 5, "cy": 6, "rx": 0, "ry": 9}, "not what VIA writes"),
        (polygon((10, 103), (10, 109), (30, 109)), "out"),
        ([1, 2], "not what VIA writes"),
        ("{}", ""),  # an image without regions
    ],
)
def test_regions_that_enclose_nothing_are_lost(archive, shape, word):
    cut = polygon((10, 90), (10, 109), (19, 109), (19, 90))
    (record,), reasons = read(archive({"P1_L_DM_CC": ("mass", "Benign", [cut, shape])}))
    assert [lesion.box for lesion in record.lesions] == [(10, 90, 20, COLS)]  # at the border
    assert record.lost == ((Lost("mass"),) if word else ())
    assert word in reasons.get("images/P1_L_DM_CC.jpg", "")


def test_other_files_are_skipped_with_a_reason(archive):
    images = {
        "P1_L_DM_CC": ("mass", "Benign", [SQUARE]),
        "P1_L_CM_CC": ("Enhancing mass", "Benign", [SQUARE]),
        "P3_L_DM_CC": ("Diffuse edematous changes", "Malignant", [SQUARE, SQUARE]),
    }
    root = archive(images)
    (root / "other").mkdir()
    content = (root / "images" / "P1_L_DM_CC.jpg").read_bytes()
    for name in ("IM0001_r", "P1_L_DM_CC", "P9_L_DM_CC"):
        (root / "other" / f"{name}.jpg").write_bytes(content)
    (first, third), reasons = read(root)
    assert len(first.lesions) == 1 and third.lesions == ()
    assert "its 2 regions outline none" in reasons["images/P3_L_DM_CC.jpg"]
    assert "no patient, side and view" in reasons["other/IM0001_r.jpg"]
    assert "another file has the same name" in reasons["other/P1_L_DM_CC.jpg"]
    assert "does not name it" in reasons["other/P9_L_DM_CC.jpg"]
    assert "1 contrast-enhanced images" in reasons["*_CM_*.jpg"] and len(reasons) == 5


def test_normal_images_without_a_patient_are_of_one_unknown_patient(archive):
    root = archive({"P1_L_DM_CC": ("mass", "Benign", [SQUARE])})
    names = ("normal/IM0001_r", "Normal/x_L", "normal/P1_R_DM_CC", "other/IM0002_r")
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", (30, 40)).save(root / f"{name}.jpg")
    (root / "normal/broken_l.jpg").write_bytes(b"no JPEG")
    (named, *normal), reasons = read(root)
    facts = [(m.laterality, m.pathology, m.rows, m.cols) for m in normal]
    assert facts == [("L", "normal", 40, 30), ("R", "normal", 40, 30)]
    assert len({m.patient_id for m in normal}) == 1 and named.patient_id != normal[0].patient_id
    assert set(reasons) == {f"{names[2]}.jpg", f"{names[3]}.jpg", "normal/broken_l.jpg"}


@pytest.mark.data
def test_the_real_archive(real_data):
    everything, reasons = read(real_data / "cdd-cesm")
    mammograms, normal = everything[:31], everything[31:]
    assert len({m.patient_id for m in normal}) == 1 and len({m.image_id for m in normal}) == 48
    assert {(m.pathology, m.lesions, m.view) for m in normal} == {("normal", (), None)}
    assert Counter(m.laterality for m in normal) == {"R": 24, "L": 24}
    assert len({m.patient_id for m in mammograms}) == 30
    assert {(m.pathology, m.view) for m in mammograms} == {("malignant", "CC")}
    lesions = [lesion for m in mammograms for lesion in m.lesions]
    kinds = Counter((lesion.kind, lesion.kind_is_certain) for lesion in lesions)
    assert kinds["mass", True] == 31 and kinds["mass", False] == 35 and len(lesions) == 78
    # two outline none of our lesions, four have bands of skin, one a polyline
    assert len(reasons) == 7 and sum("a band, of" in word for word in reasons.values()) == 4
