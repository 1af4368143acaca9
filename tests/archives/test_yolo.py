"""YOLO's data sets as Ultralytics, Roboflow and label tools write them."""

import numpy as np
import pytest

from tests.archives.test_layouts import COLS, ROWS, complain, picture, read, write
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lost, hash_id

BOX = "0 0.5 0.5 0.5 0.2"


@pytest.mark.parametrize("names", ["[mass, nipple]", "{0: mass, 1: nipple}"])
def test_yolo_by_hand(tmp_path, names):
    """Box: centre (0.5, 0.4), 0.25 x 0.2 of 40 x 30 px; polygon: three corners of pixels."""
    write(tmp_path / "data.yaml", f"train: images/train\nnames: {names}\n")
    picture(tmp_path / "images" / "train" / "a.png")
    picture(tmp_path / "images" / "train" / "b.png")
    triangle = "0 0.2625 0.35 0.5125 0.35 0.5125 0.6833333333333333"
    lines = ["0 0.5 0.4 0.25 0.2", triangle, "", "1 0.5 0.5 0.1 0.1"]
    write(tmp_path / "labels" / "train" / "a.txt", "\n".join(lines))
    (first, second), reasons = read(tmp_path)
    assert [lesion.box for lesion in first.lesions] == [(9, 15, 15, 25), (10, 10, 21, 21)]
    np.testing.assert_allclose(first.lesions[1].outlines[0], [[10, 10], [10, 20], [20, 20]])
    assert not second.lesions and first.official_split is None
    assert reasons == {"data.yaml": "1 of its labels are no lesions of ours"}


@pytest.mark.parametrize(
    "names_file", ["data.yaml", "mammo.yml", "classes.txt", "labels/classes.txt"]
)
@pytest.mark.parametrize(
    ("images", "labels_at"),
    [
        ("images", "labels"),
        ("images/train", "labels/train"),
        ("train/images", "train/labels"),
        ("valid/images/left", "valid/labels/left"),
    ],
)
def test_yolo_as_ultralytics_reads_it(tmp_path, images, labels_at, names_file):
    picture(tmp_path / images / "a.png")
    write(tmp_path / labels_at / "a.txt", "1 0.5 0.5 0.5 0.2")
    names = "mass\ncalcification\n" if names_file.endswith("txt") else "names: [mass, calc]"
    if "labels/" in names_file and not labels_at.startswith("labels"):
        return
    write(tmp_path / names_file, names)
    table = "file,patient\na.png,anna\n"
    write(tmp_path / "metadata.csv", table)
    (record,), reasons = read(tmp_path)
    assert [lesion.kind for lesion in record.lesions] == ["calcification"]
    assert record.patient_id == hash_id("folder", "anna")
    assert set(reasons) <= {"metadata.csv"}


def test_yolo_without_names(tmp_path):
    picture(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", "3 0.5 0.5 0.5 0.2")
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.kind_is_certain) == ("mass", False) and "labels/*" in reasons


@pytest.mark.parametrize("other", ["annotations.json", "masks/a.png"])
def test_label_files_that_are_not_used_are_an_error(tmp_path, other):
    picture(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", "0 0.5 0.5 0.5 0.2")
    if other.endswith("json"):
        write(tmp_path / other, {})
    else:
        picture(tmp_path / other)
    assert "label files" in complain(tmp_path)


def test_label_files_of_no_image(tmp_path):
    picture(tmp_path / "images/a.png")
    write(tmp_path / "labels/b.txt", "0 0.5 0.5 0.5 0.2")
    assert "label files" in complain(tmp_path)
    write(tmp_path / "labels/a.txt", "0 0.5 0.5 0.5 0.2")
    (record,), reasons = read(tmp_path)
    assert len(record.lesions) == 1 and "1 label files" in reasons["labels/*"]


@pytest.mark.parametrize(
    "stated",
    [
        "train: images/train\nval: images/val",
        "path: .\ntrain: [images/train]\nval: [images/val]",
        "path: ../elsewhere\ntrain: images/train\nval: images/val",
        "train: train.txt\nval: val.txt",
        "path: images\ntrain: train\nvalidation: val",
    ],
)
def test_subsets_that_the_yaml_names(tmp_path, stated):
    write(tmp_path / "data.yaml", f"{stated}\nnames: [mass]")
    for name in ("train/a", "train/b", "val/a", "other/c"):
        picture(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "labels" / f"{name}.txt", BOX)
    write(tmp_path / "train.txt", "./images/train/a.png\nimages/train/b.png\n\n../x.png\ngone.png")
    write(tmp_path / "val.txt", "images/val/a.png")
    records, reasons = read(tmp_path)
    split = {r.file.relative_to(tmp_path).as_posix(): r.official_split for r in records}
    assert split == {
        "images/other/c.png": None,
        "images/train/a.png": "train",
        "images/train/b.png": "train",
        "images/val/a.png": "test",
    }
    assert not reasons and all(len(record.lesions) == 1 for record in records)


def test_images_that_only_the_yaml_names(tmp_path):
    write(tmp_path / "mammo.yaml", "train: shots/one\nval: shots/two/images\nnames: [mass]")
    picture(tmp_path / "shots/one/a.png")
    write(tmp_path / "shots/one/a.txt", BOX)  # beside its image
    picture(tmp_path / "shots/two/images/a.png")
    write(tmp_path / "shots/two/labels/a.txt", BOX)
    records, reasons = read(tmp_path)
    assert [record.official_split for record in records] == ["train", "test"]
    assert [len(record.lesions) for record in records] == [1, 1] and not reasons
    assert len({record.image_id for record in records}) == 2


@pytest.mark.parametrize(
    "stated", ["../outside", "/etc", "x\\0y", "5", "[1, [2]]", "{a: b}", "gone"]
)
def test_what_the_yaml_names_elsewhere_is_not_read(tmp_path, stated):
    picture(tmp_path / "outside/a.png")
    root = tmp_path / "root"
    write(
        root / "data.yaml",
        f'train: "{stated}"\nnames: [mass]'.replace('"[', "[").replace(']"', "]"),
    )
    picture(root / "images/a.png")
    write(root / "labels/a.txt", BOX)
    (record,), reasons = read(root)
    assert record.file == root / "images/a.png" and not reasons


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5", "line 1: is neither a box of 4 numbers nor a polygon"),
        ("0 0.5 0.5 x 0.1", "line 1: is not made of numbers"),
        ("7 0.5 0.5 0.1 0.1", "line 1: its label has no name"),
        ("0 nan 0.5 0.5 0.1", "line 1: is neither a box"),
        ("0.5 0.5 0.5 0.1 0.1", "line 1: its label is no whole number"),
    ],
)
def test_lines_that_are_no_lesions(tmp_path, line, message):
    write(tmp_path / "data.yaml", "names: [mass]")
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", line)
    with pytest.raises(ArchiveError) as raised:
        read(tmp_path)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.9 0.5 0.5 0.2", (12, 26, 18, COLS)),
        ("0.0 0.05 0.5 0.2 0.2", (12, 0, 18, 6)),
        ("0 0.5 0.5 3 3", (0, 0, ROWS, COLS)),
    ],
)
def test_a_box_over_the_border_is_cut_there(tmp_path, line, box):
    write(tmp_path / "data.yaml", "names: [mass]")
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", line)
    (record,), reasons = read(tmp_path)
    assert [lesion.box for lesion in record.lesions] == [box] and not reasons and not record.lost


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("0 1e308 0.5 0.5 0.1", Lost("mass")),
        ("0 5 5 6 6 5 6", Lost("mass")),
        ("0 1e308 1e308 1 1 0 1", Lost("mass")),
        ("1 0.5 0.5 0.1 0.1", Lost()),
    ],
)
def test_a_lost_line_costs_its_lesion_alone(tmp_path, line, lost):
    write(tmp_path / "data.yaml", "names: [mass, hedgehog, pectoral muscle]")
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", f"0 0.5 0.5 0.5 0.2\n{line}\n2 0.5 0.5 0.1 0.1")
    (record,), reasons = read(tmp_path)
    assert [lesion.box for lesion in record.lesions] == [(12, 10, 18, 30)]
    assert record.lost == (lost,)
    assert "'hedgehog'" in reasons["data.yaml"] and "muscle" not in reasons["data.yaml"]
