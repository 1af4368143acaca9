"""tfmammo.archives.coco: annotations as label tools write them, in a folder of images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as cocotools

from tests.archives.folders import BYTE, annotate, picture, read, table
from tests.small_mammograms import COLS, ROWS, SQUARE
from tfmammo.archives import coco, folder
from tfmammo.data.sampling import is_normal
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lost, hash_id

POLYGON = (SQUARE[:, ::-1] + 0.5).ravel().tolist()
SIZE = {"height": ROWS, "width": COLS}
BOX = {"bbox": [1, 1, 2, 2]}


def test_several_polygons_are_one_lesion_and_parts_of_two_points_are_nothing(small):
    moved = [(np.array(POLYGON) + shift * 4).tolist() for shift in ([0, 30], [-15, -5])]
    annotate(small, {"segmentation": [POLYGON, [1, 1, 2, 2], *moved]})
    (lesion,) = read(small)[0][0].lesions
    assert (len(lesion.outlines), lesion.box) == (3, (5, 5, 49, 31))
    assert lesion.mask(ROWS, COLS).sum() == 3 * 9 * 11


def test_attributes_are_a_lesions_own(small):
    attributes = {"shape": " Oval", "margin": "", "pathology": "Cancer", "other": [1]}
    annotate(small, BOX | {"attributes": attributes}, BOX | {"attributes": 5})
    table(small, "file,patient,pathology", "a.png,p1,benign", "b.png,p2,")
    first, second = read(small)[0][0].lesions
    assert (first.shape, first.margin, first.pathology) == ("oval", None, "malignant")
    assert (second.shape, second.pathology) == (None, "benign")


# Run lengths


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=30))
def test_compressed_runs_of_any_length(lengths):
    size = sum(lengths)
    encoded = cocotools.frPyObjects({"size": [1, size], "counts": lengths}, 1, size)
    assert coco._decode_runs(encoded["counts"].decode()) == lengths


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 4))
def test_regions_are_encoded_as_pycocotools_does(seed, top, left):
    random = np.random.default_rng(seed)
    bottom, right = random.integers(top + 1, 8), random.integers(left + 1, 6)
    mask = np.zeros((7, 5), np.uint8)
    mask[top:bottom, left:right] = random.random((bottom - top, right - left)) < 0.7
    encoded = coco.encode(mask[top:bottom, left:right], (top, left, bottom, right), 7, 5)
    expected = cocotools.encode(np.asfortranarray(mask))
    assert encoded == {"size": [7, 5], "counts": expected["counts"].decode()}
    if mask.any():
        np.testing.assert_array_equal(coco.decode(encoded, ""), mask)


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ([ROWS * COLS], "marks nothing"),
        *((counts, "does not fill 60 x 44 px") for counts in ([], [1, 2], [2**62] * 4, [[1]])),
        *((counts, "can't be decoded") for counts in ([10**400], None, "oooo", "\x01")),
        ([-1, ROWS * COLS + 1], "does not fill 60 x 44 px"),
    ],
)
def test_a_damaged_rle_is_an_error_when_it_is_wanted(small, counts, word):
    annotate(small, {"segmentation": {"size": [ROWS, COLS], "counts": counts}})
    (lesion,) = read(small)[0][0].lesions
    place = f"annotations.json: {hash_id('folder', 'a')}, annotation 1: its RLE {word}"
    with pytest.raises(ArchiveError, match=place):
        lesion.mask(ROWS, COLS)


# What is cut, lost or refused


@pytest.mark.parametrize(
    ("annotation", "box"),
    [
        ({"bbox": [20, 10, 11, 9], "segmentation": []}, (10, 20, 19, 31)),
        ({"bbox": [19.8, 9.6, 11, 9]}, (10, 20, 19, 31)),
        ({"bbox": [-1, -2, 5, 9]}, (0, 0, 7, 4)),
        # one pixel around a corner that four of them share
        ({"bbox": [1.5, 1.5, 1, 1]}, (2, 2, 3, 3)),
        ({"bbox": [0.5, 0.5, 1, 1]}, (1, 1, 2, 2)),
        ({"bbox": [0, 0, 45, 61]}, (0, 0, ROWS, COLS)),
        # what encloses nothing, beside a good box
        ({"bbox": [4, 5, 6, 3], "segmentation": [[4, 5, 9, 7]]}, (5, 4, 8, 10)),
        # corners in COCO's half pixels: the box of [40, 45) x [5, 8), cut
        ({"segmentation": [[40.5, 5.5, 45, 5.5, 45, 7.5, 40.5, 7.5]]}, (5, 40, 8, 44)),
        # a part outside the image
        (
            {"segmentation": [[99, 5, 103, 5, 103, 9], [3.5, 2.5, 6.5, 2.5, 6.5, 4.5, 3.5, 4.5]]},
            (2, 3, 5, 7),
        ),
    ],
)
def test_boxes_and_outlines_are_cut_at_the_border(small, annotation, box):
    annotate(small, annotation)
    records, reasons = read(small)
    (lesion,) = records[0].lesions
    assert lesion.box == box and not reasons and not records[0].lost
    assert bool(lesion.outlines) == ("bbox" not in annotation)


@pytest.mark.parametrize(
    ("annotation", "word"),
    [
        ({}, "neither a segmentation nor a bbox"),
        ({"bbox": [1, 2, 3]}, "neither a segmentation nor a bbox"),
        ({"bbox": [1, 2, float("nan"), 3]}, "not finite"),
        *(({"bbox": [x, 5, w, 3]}, "empty or is outside") for x, w in ((5, -2), (44, 5), (-6, 5))),
        ({"segmentation": [[1, 2, 3, 4]]}, "neither a segmentation nor a bbox"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "no list of x, y"),
        ({"segmentation": [[1, 2, 3, 4, 5, "six"]]}, "no list of x, y"),
        ({"segmentation": 5}, "no list of x, y"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, "no number"),
        ({"segmentation": [[901, 2, 903, 4, 905, 6]]}, "outside the image"),
    ],
)
def test_an_annotation_that_is_no_lesion_is_lost_and_the_others_stay(small, annotation, word):
    annotate(small, BOX, annotation)
    records, reasons = read(small)
    assert [lesion.box for lesion in records[0].lesions] == [(1, 1, 3, 3)]
    assert list(reasons) == ["images/a.png"] and word in reasons["images/a.png"]
    assert "annotation 2" in reasons["images/a.png"]
    assert records[0].lost == (Lost("mass"),) and not records[1].lost


def test_the_table_knows_what_a_general_word_means(small):
    table(small, "file,patient,kind", "a.png,p1,distortion", "b.png,p2,")
    annotate(small, BOX | {"category_id": 9}, BOX, word="lesion")
    found = [(it.kind, it.kind_is_certain) for it in read(small)[0][0].lesions]
    assert found == [("distortion", True), ("mass", True)]


@pytest.mark.parametrize("word", ["ignore", "Rundherd"])
def test_an_unknown_word_is_named_and_its_image_is_no_background(small, word):
    table(small, "file,patient,pathology", "a.png,p1,normal", "b.png,p2,normal")
    annotate(small, BOX | {"category_id": 9}, word=word)
    records, reasons = read(small)
    assert [(record.lesions, record.lost) for record in records] == [((), (Lost(),)), ((), ())]
    assert f"category '{word}', which is not known" in reasons["annotations.json"]
    assert [is_normal(record) for record in records] == [False, True]


def test_other_categories_and_images_are_noted(small):
    picture(small / "images" / "c.png", BYTE)
    table(small, "file,patient", "a.png,p1", "b.png,p1", "c.png,p1")
    annotate(small, BOX | {"category_id": 3}, BOX | {"image_id": 9})
    (small / "images" / "b.png").unlink()
    (record,), reasons = read(small)
    assert (record.lesions, record.lost) == ((), ())
    assert reasons.pop("annotations.json").split("; ") == [
        "1 annotations of the category 'nipple', which is no lesion of ours",
        "1 annotations of images that it does not list",
        "1 of its 2 images are missing",
    ]
    assert reasons["images/*"] == "1 images that annotations.json does not list"


def test_a_size_that_contradicts_the_image_is_an_error(small):
    annotate(small, images=[{"id": 1, "file_name": "a.png", "height": COLS, "width": ROWS}])
    with pytest.raises(ArchiveError, match=r"images/a.png has \(60, 44\) .* \(44, 60\) is stated"):
        folder.read(small)
    annotate(small, {"segmentation": {"size": [COLS, ROWS], "counts": [1, 2]}})
    with pytest.raises(ArchiveError, match="images/a.png, annotation 1: its RLE is of another"):
        folder.read(small)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ("[]", "COCO results alone"),
        ("{}", "KeyError"),
        ({"annotations": [{"image_id": [], "category_id": 1}]}, "no COCO file"),
        ({"images": [{"id": 1, "file_name": "a", "height": "x", "width": 1}]}, "no COCO file"),
        ({"images": [{"id": 1, "file_name": name} for name in "ab"]}, "twice"),
        ({"images": [{"id": number, "file_name": "a"} for number in (1, 2)]}, "twice"),
    ],
)
def test_a_damaged_file_is_refused(small, content, word):
    annotate(small, **(content if isinstance(content, dict) else {}))
    if isinstance(content, str):
        (small / "annotations.json").write_text(content)
    with pytest.raises(ArchiveError, match=f"annotations.json: .*{word}"):
        folder.read(small)


# Names of images


NAMES = {
    # the names of files as they are
    False: ("a.png", "a.PNG", "a", "images\\a.png"),
    # of these only the last part is compared, with the files that are here
    True: (
        "..\\..\\label-studio\\media\\upload\\4\\a.png",
        "/data/local-files/?d=shots/a.png",
        "http://host/data/upload/4/0af51c22-a.png",
        "s3://bucket/a%2Epng",
    ),
}


@pytest.mark.parametrize(
    ("name", "is_said"), [(name, is_said) for is_said, names in NAMES.items() for name in names]
)
def test_names_as_label_tools_write_them(small, name, is_said):
    annotate(small, BOX, images=[{"id": 1, "file_name": name, **SIZE}])
    (record,), reasons = read(small)
    assert record.file == small / "images" / "a.png" and len(record.lesions) == 1
    assert ("annotations.json" in reasons) == is_said


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\x00.png"])
def test_names_of_no_image_here_are_missing(small, name):
    annotate(small, BOX, images=[{"id": 1, "file_name": name, **SIZE}])
    with pytest.raises(ArchiveError, match="1 of its 1 images are missing"):
        folder.read(small)


def test_a_name_of_several_images_is_missing_and_stops_no_other(small):
    picture(small / "images" / "left" / "b.png", BYTE)
    table(small, "file,patient", "a.png,p1", "b.png,p2", "left/b.png,p2")
    names = {1: "upload/1/a.png", 2: "upload/2/b.png"}
    annotate(small, BOX, images=[{"id": i, "file_name": n, **SIZE} for i, n in names.items()])
    (record,), reasons = read(small)
    assert record.file == small / "images" / "a.png"
    assert "1 of its 2 images are missing" in reasons["annotations.json"]
