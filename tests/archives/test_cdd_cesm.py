"""Small archives in CDD-CESM's own form, and the real one."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.archives.writers.cdd_cesm import CLINICAL_HEADER, REGION_HEADER, write_tables
from tfmammo.archives import cdd_cesm
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lost, Skipped, hash_id

ROWS = 120
COLS = 100
SQUARE = {"name": "polygon", "all_points_x": [30, 60, 60, 30], "all_points_y": [50, 50, 70, 70]}


@pytest.fixture
def archive(tmp_path):
    """A function that writes an archive: {name: (findings, pathology, regions)} -> root."""

    def write(images, clinical=None):
        (tmp_path / "images").mkdir()
        regions = []
        table = []
        for name, (findings, pathology, shapes) in images.items():
            grey = np.tile(np.linspace(0, 255, COLS, dtype=np.uint8), (ROWS, 1))
            Image.fromarray(grey).convert("RGB").save(
                tmp_path / "images" / f"{name}.jpg", quality=95
            )
            patient, side, kind, view = name.split("_")
            table.append(
                [
                    f"{name} ",
                    patient[1:],
                    side,
                    kind,
                    "50",
                    "C",
                    "4$2",
                    findings,
                    view,
                    "",
                    "1",
                    pathology,
                ]
            )
            for number, shape in enumerate(shapes):
                text = shape if isinstance(shape, str) else json.dumps(shape)
                regions.append([f"{name}.jpg", 1, "{}", len(shapes), number, text, "{}"])
        # an image that is not there
        regions.append(["P999_L_DM_CC.jpg", 1, "{}", 1, 0, json.dumps(SQUARE), "{}"])
        write_tables(tmp_path, [REGION_HEADER, *regions], [CLINICAL_HEADER, *(clinical or table)])
        return tmp_path

    return write


def test_one_certain_mass(archive):
    root = archive(
        {"P107_R_DM_CC": ("High density mass with speculated margin ", "Malignant", [SQUARE])}
    )
    skipped = Skipped()
    (mammogram,) = cdd_cesm.read(root, skipped)
    assert not skipped.reasons
    assert mammogram.patient_id == hash_id("cdd_cesm", "P107")
    assert "P107" not in mammogram.image_id and mammogram.image_id.endswith("_R_CC")
    assert (mammogram.rows, mammogram.cols, mammogram.spacing) == (ROWS, COLS, None)
    assert (mammogram.laterality, mammogram.view, mammogram.pathology) == ("R", "CC", "malignant")
    assert (mammogram.birads, mammogram.density) == ("4$2", "C")
    (lesion,) = mammogram.lesions
    assert (lesion.kind, lesion.kind_is_certain, lesion.margin, lesion.shape) == (
        "mass",
        True,
        "spiculated",
        None,
    )
    assert lesion.pathology == "malignant"
    assert lesion.box == (50, 30, 71, 61)  # rows from y, columns from x
    assert lesion.mask(ROWS, COLS).sum() == 21 * 31


def test_bands_of_images_with_several_findings_are_no_lesions(archive):
    def polygon(points):
        rows, cols = zip(*points, strict=True)
        return {"name": "polygon", "all_points_x": cols, "all_points_y": rows}

    skin = polygon([(10, 10), (10, 90), (20, 90), (20, 10)])  # 800 of 80 * 80 px: 0.125
    thick = polygon([(10, 10), (10, 90), (23, 90), (23, 10)])  # 0.1625
    turned = polygon([(10, 10), (90, 90), (97, 83), (17, 3)])  # 0.09 of its length squared
    regions = [skin, thick, turned, SQUARE]
    mixed = "High density mass with edema pattern"
    root = archive(
        {
            "P1_L_DM_CC": (mixed, "Malignant", regions),
            "P2_L_DM_CC": ("High density mass", "Malignant", regions),
        }
    )
    skipped = Skipped()
    several, certain = cdd_cesm.read(root, skipped)
    assert [lesion.box[0] for lesion in several.lesions] == [10, 50]
    assert several.lesions[0].box == (10, 10, 24, 91)
    assert len(certain.lesions) == 4
    reason = "a band, of skin or a duct"
    assert skipped.reasons == {"images/P1_L_DM_CC.jpg": f"region 0: {reason}; region 2: {reason}"}


def test_a_scaled_copy_without_masks_is_left_out(archive):
    large = {**SQUARE, "all_points_x": [3 * x for x in SQUARE["all_points_x"]]}
    root = archive(
        {
            "P1_L_DM_CC": ("mass", "Benign", [SQUARE, large]),
            "P2_L_DM_CC": ("mass", "Benign", [SQUARE]),
        }
    )
    skipped = Skipped()
    (mammogram,) = cdd_cesm.read(root, skipped)
    assert mammogram.patient_id == hash_id("cdd_cesm", "P2")
    assert skipped.reasons == {
        "images/P1_L_DM_CC.jpg": "its outline reaches row 70 and column 180 of 120 x 100 px: a "
        "scaled copy needs masks/NAME.jpg beside its images"
    }


def test_a_scaled_copy_has_its_regions_in_masks(archive):
    root = archive(
        {f"P{i}_L_DM_CC": ("High density mass", "Malignant", [SQUARE]) for i in (1, 2, 3, 4)}
    )
    mask = np.zeros((ROWS, COLS), np.uint8)
    # 15 and 1 px: specks
    mask[10:30, 20:40] = 255
    mask[60:80, 50:60] = 200
    mask[100:103, 5:10] = 255
    mask[0, 0] = 255
    (root / "masks").mkdir()
    Image.fromarray(mask).save(root / "masks/P1_L_DM_CC.png")
    Image.fromarray(mask[:50]).save(root / "masks/P2_L_DM_CC.png")
    (root / "masks/P3_L_DM_CC.png").write_bytes(b"no picture")
    skipped = Skipped()
    masked, drawn = cdd_cesm.read(root, skipped)
    assert [lesion.box for lesion in masked.lesions] == [(10, 20, 30, 40), (60, 50, 80, 60)]
    assert sum(lesion.mask(ROWS, COLS).sum() for lesion in masked.lesions) == 400 + 200
    # the image's, which may be one part's alone
    assert {lesion.pathology for lesion in masked.lesions} == {None}
    assert [lesion.box for lesion in drawn.lesions] == [(50, 30, 71, 61)]
    assert skipped.reasons["images/P2_L_DM_CC.jpg"] == "its mask has 50 x 100 px, itself 120 x 100"
    assert "can't be read" in skipped.reasons["images/P3_L_DM_CC.jpg"] and len(skipped) == 2


@pytest.mark.data
def test_the_real_scaled_copy(real_data, tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).symlink_to(real_data / "cdd-cesm-512" / folder)
    for table in (cdd_cesm.REGIONS, cdd_cesm.CLINICAL):
        (tmp_path / table).symlink_to(real_data / "cdd-cesm" / table)
    skipped = Skipped()
    mammograms = cdd_cesm.read(tmp_path, skipped)
    masses = [m for m in mammograms if any(lesion.kind == "mass" for lesion in m.lesions)]
    assert len(masses) == 128 and {(m.rows, m.cols) for m in mammograms} == {(512, 512)}
    assert len({m.patient_id for m in masses}) == 74


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_truncated_jpeg(archive, keep):
    root = archive({"P1_L_DM_MLO": ("Normal", "Normal", [])})
    file = root / "images" / "P1_L_DM_MLO.jpg"
    content = file.read_bytes()
    scan = content.index(b"\xff\xda")
    file.write_bytes(content[: scan + int(keep * (len(content) - scan))])
    (mammogram,) = cdd_cesm.read(root)
    with pytest.raises(ArchiveError, match="P1_L_DM_MLO.jpg: can't be read as an image"):
        mammogram.pixels()


@pytest.mark.parametrize(
    ("findings", "pathology", "expected"),
    [
        (
            "Architectural distortion and mass with indistinct margin",
            "Malignant",
            ("mass", False, None, None, None),
        ),
        (
            "Architectural distortion$Benign macrocalcification",
            "Benign",
            ("distortion", False, None, None, "benign"),
        ),
        (
            "Mass with obscured margin and edema pattern",
            "Malignant",
            ("mass", False, None, None, None),
        ),
        (
            "Oval mass with obscured and microlobulated margin",
            "Malignant",
            ("mass", True, "oval", None, None),
        ),
    ],
)
def test_mixed_findings_are_uncertain(archive, findings, pathology, expected):
    root = archive({"P1_L_DM_CC": (findings, pathology, [SQUARE, SQUARE])})
    (record,) = cdd_cesm.read(root)
    facts = {
        (it.kind, it.kind_is_certain, it.shape, it.margin, it.pathology) for it in record.lesions
    }
    assert facts == {expected} and len(record.lesions) == 2


def test_circle_and_turned_ellipse(archive):
    shapes = [
        {"name": "circle", "cx": 50, "cy": 60, "r": 20},
        {"name": "ellipse", "cx": 50, "cy": 60, "rx": 30, "ry": 10},
        {"name": "ellipse", "cx": 50, "cy": 60, "rx": 30, "ry": 10, "theta": np.pi / 6},
    ]
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
        ({"name": "polyline", "all_points_x": [1, 2, 3], "all_points_y": [1, 9, 3]}, "a polyline"),
        ({"name": "hedgehog"}, "unknown name"),
        ('{"name": "polygon", "all_points_x": [1, 2', "not what VIA writes"),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}, "not what VIA"),
        ({"name": "ellipse", "cx": 5, "cy": 6, "rx": 0, "ry": 9}, "not what VIA writes"),
        ({"name": "polygon", "all_points_x": [103, 109, 109], "all_points_y": [10, 10, 30]}, "out"),
        ([1, 2], "not what VIA writes"),
        ("{}", ""),  # an image without regions
    ],
)
def test_regions_that_enclose_nothing_are_lost(archive, shape, word):
    cut = {"name": "polygon", "all_points_x": [90, 109, 109, 90], "all_points_y": [10, 10, 19, 19]}
    skipped = Skipped()
    (record,) = cdd_cesm.read(archive({"P1_L_DM_CC": ("mass", "Benign", [cut, shape])}), skipped)
    assert [lesion.box for lesion in record.lesions] == [(10, 90, 20, COLS)]  # at the border
    assert record.lost == ((Lost("mass"),) if word else ())
    assert word in skipped.reasons.get("images/P1_L_DM_CC.jpg", "")


def test_other_files_are_skipped_with_a_reason(archive):
    root = archive(
        {
            "P1_L_DM_CC": ("mass", "Benign", [SQUARE]),
            "P1_L_CM_CC": ("Enhancing mass", "Benign", [SQUARE]),
            "P2_L_DM_CC": ("mass", "Benign", [SQUARE]),
            "P3_L_DM_CC": ("Diffuse edematous changes", "Malignant", [SQUARE, SQUARE]),
        }
    )
    (root / "images" / "P2_L_DM_CC.jpg").write_bytes(b"no JPEG")
    (root / "other").mkdir()
    for name in ("IM0001_r", "P1_L_DM_CC", "P9_L_DM_CC"):
        (root / "other" / f"{name}.jpg").write_bytes(
            (root / "images" / "P1_L_DM_CC.jpg").read_bytes()
        )
    skipped = Skipped()
    first, third = cdd_cesm.read(root, skipped)
    assert len(first.lesions) == 1 and third.lesions == ()
    assert skipped.reasons == {
        "images/P2_L_DM_CC.jpg": "can't be read as an image (UnidentifiedImageError)",
        "images/P3_L_DM_CC.jpg": "its 2 regions outline none of our lesions (findings: 'Diffuse "
        "edematous changes')",
        "other/IM0001_r.jpg": "its name says no patient, side and view, so it can't be split by "
        "patient",
        "other/P1_L_DM_CC.jpg": "another file has the same name",
        "other/P9_L_DM_CC.jpg": f"{cdd_cesm.CLINICAL} does not name it",
        "*_CM_*.jpg": "1 contrast-enhanced images, which are no mammograms",
    }


def test_missing_parts_are_named(archive, tmp_path):
    with pytest.raises(ArchiveError, match=f"{cdd_cesm.REGIONS} is missing"):
        cdd_cesm.read(tmp_path)
    root = archive({"P1_L_CM_CC": ("Enhancing mass", "Benign", [SQUARE])})
    with pytest.raises(ArchiveError, match="holds no image of CDD-CESM"):
        cdd_cesm.read(root)
    (root / cdd_cesm.CLINICAL).write_text("Image_name,Findings\nP1_L_CM_CC,mass\n")
    with pytest.raises(
        ArchiveError, match=r"has no column birads, breast_density_\(acr\), pathology"
    ):
        cdd_cesm.read(root)
    (root / cdd_cesm.CLINICAL).unlink()
    with pytest.raises(ArchiveError, match=f"{cdd_cesm.CLINICAL} is missing"):
        cdd_cesm.read(root)


def test_normal_images_without_a_patient_are_of_one_unknown_patient(archive):
    root = archive({"P1_L_DM_CC": ("mass", "Benign", [SQUARE])})
    for name in (
        "normal/IM0001_r.jpg",
        "Normal/x_L.jpg",
        "normal/P1_R_DM_CC.jpg",
        "other/IM0002_r.jpg",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", (30, 40)).save(root / name)
    (root / "normal/broken_l.jpg").write_bytes(b"no JPEG")
    skipped = Skipped()
    named, *normal = cdd_cesm.read(root, skipped)
    assert [(m.laterality, m.pathology, m.rows, m.cols) for m in normal] == [
        ("L", "normal", 40, 30),
        ("R", "normal", 40, 30),
    ]
    assert len({m.patient_id for m in normal}) == 1 and named.patient_id != normal[0].patient_id
    assert set(skipped.reasons) == {
        "normal/P1_R_DM_CC.jpg",
        "other/IM0002_r.jpg",
        "normal/broken_l.jpg",
    }


def test_missing_words_become_none(archive):
    row = ["P1_L_DM_CC ", "1", "L", "DM", "50", "_", "", "mass", "CC", "", "1", "unknown"]
    (mammogram,) = cdd_cesm.read(archive({"P1_L_DM_CC": ("", "", [SQUARE])}, clinical=[row]))
    assert (mammogram.density, mammogram.birads, mammogram.pathology) == (None, None, None)
    assert mammogram.lesions[0].pathology is None


@pytest.mark.data
def test_the_real_archive(real_data):
    skipped = Skipped()
    everything = cdd_cesm.read(real_data / "cdd-cesm", skipped)
    mammograms = everything[:31]
    normal = everything[31:]
    assert (
        len(normal) == 48
        and len({m.patient_id for m in normal}) == 1
        and len({m.image_id for m in normal}) == 48
    )
    assert {(m.pathology, m.lesions, m.view) for m in normal} == {("normal", (), None)}
    assert Counter(m.laterality for m in normal) == {"R": 24, "L": 24}
    assert len({m.patient_id for m in mammograms}) == 30
    assert len({m.image_id for m in mammograms}) == 31
    assert {m.pathology for m in mammograms} == {"malignant"} and {m.view for m in mammograms} == {
        "CC"
    }
    kinds = Counter(
        (lesion.kind, lesion.kind_is_certain) for m in mammograms for lesion in m.lesions
    )
    assert kinds == {
        ("mass", True): 31,
        ("mass", False): 35,
        ("distortion", True): 1,
        ("distortion", False): 6,
        ("asymmetry", True): 3,
        ("asymmetry", False): 2,
    }
    assert skipped.reasons == {
        "images/P265_L_DM_CC.jpg": "its 2 regions outline none of our lesions (findings: 'Diffuse "
        "edematous changes')",
        "images/P298_L_DM_CC.jpg": "its 2 regions outline none of our lesions (findings: 'Diffuse "
        "edematous changes')",
        "images/P37_L_DM_CC.jpg": "region 0: a polyline encloses nothing",
        "images/P108_L_DM_CC.jpg": "region 1: a band, of skin or a duct",
        "images/P209_L_DM_CC.jpg": "region 1: a band, of skin or a duct",
        "images/P256_L_DM_CC.jpg": "region 1: a band, of skin or a duct",
        "images/P304_R_DM_CC.jpg": "region 2: a band, of skin or a duct",
    }


@pytest.mark.data
@pytest.mark.slow
def test_every_real_image_can_be_read(real_data):
    for mammogram in cdd_cesm.read(real_data / "cdd-cesm"):
        assert 0.4 < mammogram.pixels().max() <= 1


@pytest.mark.data
def test_real_outlines_lie_on_brighter_tissue(real_data):
    mammograms = [
        m
        for m in cdd_cesm.read(real_data / "cdd-cesm")
        if any(x.kind_is_certain for x in m.lesions)
    ][:6]
    for mammogram in mammograms:
        pixels = mammogram.pixels()[..., 0]
        for lesion in mammogram.lesions:
            mask = lesion.mask(*pixels.shape).astype(bool)
            assert pixels[mask].mean() > pixels[~mask].mean()
