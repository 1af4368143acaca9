"""Other tools' data sets as anybody might have them, written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.archives import folders
from tests.archives.folders import read
from tfmammo.archives import folder
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lost, Skipped, hash_id

ROWS = 30
COLS = 40
GREY = np.arange(ROWS * COLS, dtype=np.uint8).reshape(ROWS, COLS)


def picture(path: Path, pixels: np.ndarray = GREY) -> None:
    folders.picture(path, pixels)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


def complain(root: Path) -> str:
    """All that is said of a folder of which nothing can be read."""
    skipped = Skipped()
    with pytest.raises(ArchiveError) as raised:
        folder.read(root, skipped)
    return "; ".join([str(raised.value), *skipped.reasons.values()])


def labels(*parts: tuple[int, int, int, int, int]) -> np.ndarray:
    """A label map of rectangles: (value, box)."""
    values = np.zeros((ROWS, COLS), np.uint8)
    for value, top, left, bottom, right in parts:
        values[top:bottom, left:right] = value
    return values


NNUNET = {
    "channel_names": {"0": "grey"},
    "labels": {"background": 0, "Masses": 1, "nipple": 2, "calcification": 3},
    "file_ending": ".png",
}


@pytest.fixture
def nnunet(tmp_path):
    write(tmp_path / "dataset.json", NNUNET)
    picture(tmp_path / "imagesTr" / "case_1_0000.png")
    parts = ((1, 2, 3, 8, 9), (1, 12, 3, 18, 9), (2, 20, 20, 22, 22), (3, 5, 30, 6, 31))
    picture(tmp_path / "labelsTr" / "case_1.png", labels(*parts))
    return tmp_path


def test_nnunet_by_hand(nnunet):
    """Each part of a label is a lesion; without a table nobody knows whose an image is."""
    picture(nnunet / "imagesTr" / "case_1_0001.png")
    picture(nnunet / "imagesTs" / "case_2_0000.png")
    (record,), reasons = read(nnunet)
    assert [lesion.kind for lesion in record.lesions] == ["mass", "mass", "calcification"]
    boxes = [(12, 3, 18, 9), (2, 3, 8, 9), (5, 30, 6, 31)]
    assert [lesion.box for lesion in record.lesions] == boxes
    assert record.official_split is None and record.bits == 8
    assert reasons == {
        "dataset.json": "1 of its labels are no lesions of ours",
        "imagesTr/case_1_0001.png": "is no first channel: its name does not end in _0000",
        "imagesTs/case_2_0000.png": "has no label map in labelsTs",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"mass": [1, 2]}}, "dataset.json: its labels are not one number each"),
        ({"file_ending": ".nii.gz"}, "dataset.json: its images are no pictures"),
        ({"file_ending": None}, "dataset.json: its images are no pictures"),
        ({"labels": {"mass": 3}}, "case_1.png: holds the label 1"),
    ],
)
def test_damaged_nnunet(nnunet, change, message):
    write(nnunet / "dataset.json", NNUNET | change)
    assert message in complain(nnunet)
    write(nnunet / "dataset.json", NNUNET)
    picture(nnunet / "labelsTr" / "case_1.png", labels()[:20])
    assert "case_1.png: has 20 x 40 px, its image 30 x 40" in complain(nnunet)
    picture(nnunet / "labelsTr" / "case_1.png", np.zeros((ROWS, COLS, 3), np.uint8))
    assert "case_1.png: is no label map, which has one channel" in complain(nnunet)


def test_noise_is_no_label_map(tmp_path):
    """A million runs would be traced for minutes."""
    write(tmp_path / "dataset.json", NNUNET)
    noise = np.random.default_rng(0).integers(0, 2, (1200, 1200), np.uint8)
    picture(tmp_path / "imagesTr" / "a_0000.png", noise)
    picture(tmp_path / "labelsTr" / "a.png", noise)
    assert "a.png: marks no lesions but noise" in complain(tmp_path)


def test_a_folder_of_ones_own_with_such_a_file_stays_one(tmp_path):
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "dataset.json", {"mine": 1})
    write(tmp_path / "data.yaml", "names: [mass]")
    assert len(read(tmp_path)[0]) == 1
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(ArchiveError, match=r"is neither nnU-Net's \(with file_ending\) nor MONAI"):
        read(tmp_path)


def test_monai_by_hand(tmp_path):
    """With a test list the validation images count among the trained ones."""
    names = {"training": "a", "validation": "b", "test": "c"}
    lists = {
        key: [{"image": f"./x/{name}.png", "label": f"y/{name}.png"}] for key, name in names.items()
    }
    lists["training"] += ["x/a.png", {"image": "x/gone.png", "label": "y/a.png"}]
    write(tmp_path / "dataset.json", {"labels": {"0": "background", "1": "mass"}, **lists})
    for name in names.values():
        picture(tmp_path / "x" / f"{name}.png")
        picture(tmp_path / "y" / f"{name}.png", labels((1, 2, 3, 8, 9)))
    records, reasons = read(tmp_path)
    assert [record.official_split for record in records] == ["train", "train", "test"]
    assert [record.lesions[0].box for record in records] == [(2, 3, 8, 9)] * 3
    assert reasons == {"dataset.json": "2 of its images have no picture or no label map here"}
    lists["training"].append({"image": "../x/a.png", "label": "y/a.png"})
    write(tmp_path / "dataset.json", {"labels": {"1": "mass"}, **lists})
    with pytest.raises(ArchiveError, match="leads out of the folder"):
        read(tmp_path)


def test_what_nnunet_ignores_is_no_background(tmp_path):
    content = NNUNET | {"labels": {"background": 0, "tumor": 1, "ignore": 2}}
    write(tmp_path / "dataset.json", content)
    picture(tmp_path / "imagesTr" / "a_0000.png")
    picture(tmp_path / "labelsTr" / "a.png", labels((1, 2, 3, 8, 9), (2, 10, 10, 20, 20)))
    (record,), reasons = read(tmp_path)
    (lesion,) = record.lesions
    assert (lesion.kind, lesion.kind_is_certain, lesion.box) == ("mass", False, (2, 3, 8, 9))
    assert record.lost == (Lost(),) and "'ignore'" in reasons["dataset.json"]


def test_hugging_face_by_hand(tmp_path):
    """Other columns are nobody's business; objects without our kinds are noted."""
    objects = {"bbox": [[3, 2, 6, 6], [0, 0, 4, 4]], "category": ["Mass", "nipple"]}
    lines = [
        {"file_name": "a.png", "patient": "anna", "view": "CC", "score": 3, "objects": objects},
        {"file_name": "images/b.png", "patient": "berta", "view": "lateral"},
        {"file_name": "gone.png", "patient": "berta"},
    ]
    write(tmp_path / "train" / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    for name in ("a", "images/b"):  # a folder "images" within is a folder like any other
        picture(tmp_path / "train" / f"{name}.png")
    (first, second), reasons = read(tmp_path)
    assert [(lesion.kind, lesion.box) for lesion in first.lesions] == [("mass", (2, 3, 8, 9))]
    assert (first.view, second.view, second.lesions) == ("CC", None, ())
    assert first.patient_id != second.patient_id
    assert reasons == {
        "*/metadata.jsonl": "1 of their 3 images are missing",
        "metadata": "1 words of view are not known and count as not stated",
        "train/a": "object 2 is no lesion of ours",
    }


def test_one_number_is_one_patient_of_hugging_face_too(tmp_path, caplog):
    lines = []
    for name, patient in (("a", 12), ("b", 12.0), ("c", "0012"), ("d", "13")):
        picture(tmp_path / "train" / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "patient": patient}))
    write(tmp_path / "train/metadata.jsonl", "\n".join(lines))
    patients = [record.patient_id for record in read(tmp_path)[0]]
    assert patients == [hash_id("folder", "12")] * 3 + [hash_id("folder", "13")]
    assert "leading zeros" in caplog.text
    lines[3] = json.dumps({"file_name": "d.png", "patient": float("nan")})
    write(tmp_path / "train/metadata.jsonl", "\n".join(lines))
    records, _ = read(tmp_path)
    assert len(records) == 3, "an image of nobody is left out"
