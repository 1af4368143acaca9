"""YOLO's data sets as Ultralytics, Roboflow and label tools write them."""

import cv2
import numpy as np
import pytest

from tests.archives.test_layouts import COLS, ROWS, complain, picture, read, write
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lost, hash_id

BOX = "0 0.5 0.5 0.5 0.2"


def write_one(root, lines: str, names: str = "[mass]") -> None:
    write(root / "data.yaml", f"names: {names}")
    picture(root / "images" / "a.png")
    write(root / "labels" / "a.txt", lines)


@pytest.mark.parametrize("names", ["[mass, nipple]", "{0: mass, 1: nipple}"])
def test_yolo_by_hand(tmp_path, names):
    """Box: centre (0.5, 0.4), 0.25 x 0.2 of 40 x 30 px; polygon: three corners of pixels."""
    triangle = "0 0.2625 0.35 0.5125 0.35 0.5125 0.6833333333333333"
    write_one(tmp_path, f"0 0.5 0.4 0.25 0.2\n{triangle}\n\n1 0.5 0.5 0.1 0.1", names)
    picture(tmp_path / "images" / "b.png")
    (first, second), reasons = read(tmp_path)
    assert [lesion.box for lesion in first.lesions] == [(9, 15, 15, 25), (10, 10, 21, 21)]
    np.testing.assert_allclose(first.lesions[1].outlines[0], [[10, 10], [10, 20], [20, 20]])
    assert not second.lesions and first.official_split is None
    assert reasons == {"data.yaml": "1 of its labels are no lesions of ours"}


@pytest.mark.parametrize("names_file", ["mammo.yml", "classes.txt"])
@pytest.mark.parametrize("folder", ["{}", "{}/train", "train/{}", "valid/{}/left"])
def test_yolo_as_ultralytics_reads_it(tmp_path, folder, names_file):
    picture(tmp_path / folder.format("images") / "a.png")
    write(tmp_path / folder.format("labels") / "a.txt", "1 0.5 0.5 0.5 0.2")
    is_list = names_file.endswith("txt")
    place = tmp_path / "labels" if is_list and folder.startswith("{}") else tmp_path
    write(place / names_file, "mass\ncalcification\n" if is_list else "names: [mass, calc]")
    write(tmp_path / "metadata.csv", "file,patient\na.png,anna\n")
    (record,), reasons = read(tmp_path)
    assert [lesion.kind for lesion in record.lesions] == ["calcification"]
    assert record.patient_id == hash_id("folder", "anna")
    assert set(reasons) <= {"metadata.csv"}


def test_yolo_without_names(tmp_path):
    write_one(tmp_path, "3 0.5 0.5 0.5 0.2")
    (tmp_path / "data.yaml").unlink()
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.kind_is_certain) == ("mass", False) and "labels/*" in reasons


def test_label_files_that_are_not_used(tmp_path):
    write_one(tmp_path, BOX)
    write(tmp_path / "labels/b.txt", BOX)
    (record,), reasons = read(tmp_path)
    assert len(record.lesions) == 1 and "1 label files" in reasons["labels/*"]
    (tmp_path / "labels/a.txt").unlink()
    assert "label files" in complain(tmp_path)
    for other in ("annotations.json", "masks/a.png"):
        write(tmp_path / "labels/a.txt", BOX)
        write(tmp_path / other, {})
        assert "label files" in complain(tmp_path)
        (tmp_path / other).unlink()


def test_linked_label_files_are_read(tmp_path):
    write_one(tmp_path, BOX)
    (tmp_path / "labels/a.txt").rename(tmp_path / "store")
    (tmp_path / "labels/a.txt").symlink_to(tmp_path / "store")
    (record,), _ = read(tmp_path)
    assert len(record.lesions) == 1


def test_masks_in_labels_stay_masks_beside_names_of_classes(tmp_path):
    picture(tmp_path / "images/a.png")
    mask = np.zeros((ROWS, COLS), np.uint8)
    mask[8:16, 10:30] = 255
    (tmp_path / "labels").mkdir()
    assert cv2.imwrite(str(tmp_path / "labels/a.png"), mask)
    write(tmp_path / "classes.txt", "mass")
    (record,), _ = read(tmp_path)
    assert [lesion.box for lesion in record.lesions] == [(8, 10, 16, 30)]


def test_a_table_names_files_by_their_paths(tmp_path):
    for subset in ("train", "valid"):
        picture(tmp_path / subset / "images/a.png")
        write(tmp_path / subset / "labels/a.txt", BOX)
    write(tmp_path / "metadata.csv", "file,patient\ntrain/images/a.png,p\nvalid/images/a.png,q\n")
    records, reasons = read(tmp_path)
    expected = [hash_id("folder", name) for name in "pq"]
    assert [record.patient_id for record in records] == expected
    assert "metadata.csv" not in reasons


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
    split = {r.file.relative_to(tmp_path / "images").as_posix(): r.official_split for r in records}
    subsets = {"other/c": None, "train/a": "train", "train/b": "train", "val/a": "test"}
    assert split == {f"{name}.png": subset for name, subset in subsets.items()}
    assert not reasons and all(len(record.lesions) == 1 for record in records)


@pytest.mark.parametrize("stated", ['"../outside"', '"/etc"', '"x\\0y"', "[1, [2]]", "{a: b}"])
def test_what_the_yaml_names_elsewhere_is_not_read(tmp_path, stated):
    picture(tmp_path / "outside/a.png")
    root = tmp_path / "root"
    write_one(root, BOX, f"[mass]\ntrain: {stated}")
    (record,), reasons = read(root)
    assert record.file == root / "images/a.png" and not reasons


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5", "is neither a box of 4 numbers nor a polygon"),
        ("0 0.5 0.5 x 0.1", "is not made of numbers"),
        ("7 0.5 0.5 0.1 0.1", "its label has no name"),
        ("0.5 0.5 0.5 0.1 0.1", "its label is no whole number"),
    ],
)
def test_lines_that_are_no_lesions(tmp_path, line, message):
    write_one(tmp_path, line)
    with pytest.raises(ArchiveError, match=f"line 1: {message}"):
        read(tmp_path)


def test_a_box_over_the_border_is_cut_there(tmp_path):
    write_one(tmp_path, "0.0 0.05 0.5 0.2 0.2\n0 0.5 0.5 3 3")
    (record,), reasons = read(tmp_path)
    assert [lesion.box for lesion in record.lesions] == [(12, 0, 18, 6), (0, 0, ROWS, COLS)]
    assert not reasons and not record.lost


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("0 1e308 0.5 0.5 0.1", Lost("mass")),
        ("0 5 5 6 6 5 6", Lost("mass")),
        ("1 0.5 0.5 0.1 0.1", Lost()),
    ],
)
def test_a_lost_line_costs_its_lesion_alone(tmp_path, line, lost):
    lines = f"0 0.5 0.5 0.5 0.2\n{line}\n2 0.5 0.5 0.1 0.1"
    write_one(tmp_path, lines, "[mass, hedgehog, pectoral muscle]")
    (record,), reasons = read(tmp_path)
    assert [lesion.box for lesion in record.lesions] == [(12, 10, 18, 30)]
    assert record.lost == (lost,)
    assert "'hedgehog'" in reasons["data.yaml"] and "muscle" not in reasons["data.yaml"]
