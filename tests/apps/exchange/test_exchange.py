"""Data sets for other tools, read back by `folder` and by pycocotools."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as cocotools
from pycocotools.coco import COCO

from tests.archives.folders import read
from tests.archives.writers import folder as writer
from tests.commands import refuse
from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram
from tfmammo.apps.exchange import writing
from tfmammo.apps.exchange.__main__ import main
from tfmammo.apps.exchange.cases import ExchangeConfig, Plan, make_cases
from tfmammo.apps.exchange.formats import FORMATS
from tfmammo.apps.exchange.writing import write_dataset
from tfmammo.archives import read_mammograms
from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.data.extraction import make_patches
from tfmammo.data.splits import Mammograms
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, Skipped, hash_id

MASS = Lesion.from_outline(
    "mass", SQUARE, ROWS, COLS, pathology="malignant", shape="oval", margin="spiculated"
)
OTHER = Lesion.from_outline("mass", SQUARE + [20, -15], ROWS, COLS, pathology="benign")
CLUSTER = Lesion.from_outline("calcification", SQUARE + [30, 8], ROWS, COLS)
KINDS = ("mass", "calcification")


@pytest.fixture
def archive(tmp_path):
    """Ten mammograms of five patients, 16 bits, some normal, in the form of `folder`."""
    random = np.random.default_rng(0)
    lesions = ([MASS, OTHER, CLUSTER], [], [MASS], [CLUSTER], [OTHER])
    mammograms = [
        make_mammogram(
            number,
            random.integers(0, 2**16, (ROWS, COLS, 1)) / np.float32(65535),
            lesions[number % 5],
            patient_id=f"p{number // 2}",
            view=("CC", "MLO")[number % 2],
            spacing=(0.07, 0.05),
            official_split="test" if number // 2 == 4 else "train",
            pathology=None if lesions[number % 5] else "normal",
        )
        for number in range(10)
    ]
    writer.write(mammograms, tmp_path / "archive")
    return tmp_path / "archive"


def config(root: Path | None, **changes) -> ExchangeConfig:
    exchange = changes.pop("exchange", {})
    values = {"name": "folder", "root": root, "kinds": KINDS, "folds": 2, "fold": 1} | changes
    return ExchangeConfig(data=DataConfig(**values), exchange=exchange)


def draw(mammogram, kind: str) -> np.ndarray:
    """The union of a mammogram's lesions of one kind."""
    region = np.zeros((mammogram.rows, mammogram.cols), np.uint8)
    for lesion in mammogram.lesions:
        if lesion.kind == kind:
            region |= lesion.mask(mammogram.rows, mammogram.cols)
    return region


def hold_out(mammograms, data: DataConfig) -> set[str]:
    """The held-out patients."""
    return set(splits.split(Mammograms.of(mammograms), data)[1].patient_ids)


def make_archive(root: Path, lesions, count=2, **options) -> Path:
    """An archive of black mammograms with the same lesions, one a patient."""
    image = np.zeros((ROWS, COLS, 1), np.float32)
    mammograms = [
        make_mammogram(number, image, lesions, patient_id=f"p{number}") for number in range(count)
    ]
    writer.write(mammograms, root, **options)
    return root


def pair(originals, records, name: str):
    """Each original with its record: `folder` names images by their paths in the data set."""
    by_id = {record.image_id: record for record in records}
    for original in originals:
        places = {
            "nnunet": [f"images{part}/{original.image_id}_0000" for part in ("Tr", "Ts")],
            "coco": [original.image_id],
            "yolo": [f"{part}/{original.image_id}" for part in ("train", "val", "test")],
            "hf": [f"{part}/{original.image_id}" for part in ("train", "validation", "test")],
            "monai": [f"images{part}/{original.image_id}" for part in ("Tr", "Ts")],
        }[name]
        (record,) = (by_id[key] for place in places if (key := hash_id("folder", place)) in by_id)
        yield original, record


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_whose_lesions_may_never_have_been_drawn_is_no_background(archive, tmp_path, name):
    table = archive / "metadata.csv"
    lines = [line.replace(",normal", ",") for line in table.read_text().splitlines(True)]
    table.write_text("".join(lines))
    summary = write_dataset(name, config(archive), tmp_path / "Dataset501_Masses")
    assert sum(summary.images.values()) == 8 and summary.skipped == 2


@pytest.mark.parametrize("split", ["patient", "official"])
@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(archive, tmp_path, name, split):
    """Pixels, regions, facts, patients and the split come back as they were."""
    originals, _ = read(archive)
    options = config(archive, split=split)
    summary = write_dataset(name, options, tmp_path / "Dataset501_Masses")
    held_out = len(splits.split(Mammograms.of(originals), options.data)[1].patient_ids)
    assert summary.images == {"training": 10 - held_out, "held out": held_out}
    assert held_out == 2 or split == "patient"
    records, reasons = read(tmp_path / "Dataset501_Masses")
    assert not reasons and len(records) == 10
    for original, record in pair(originals, records, name):
        np.testing.assert_array_equal(record.pixels(), original.pixels())
        for kind in KINDS:
            np.testing.assert_array_equal(draw(record, kind), draw(original, kind))
        for fact in ("laterality", "view", "spacing", "pathology"):
            assert getattr(record, fact) == getattr(original, fact), fact
        assert record.patient_id == hash_id("folder", original.patient_id)
        back, stated = (sorted(one.kind for one in each.lesions) for each in (record, original))
        assert back == stated
        for fact in ("pathology", "shape", "margin") if name in ("coco", "hf") else ():
            back, stated = (
                [getattr(lesion, fact) for lesion in each.lesions] for each in (record, original)
            )
            assert back == stated, fact
    file = tmp_path / "Dataset501_Masses" / "split.json"
    for fold in (0, 1):
        data = options.data.model_copy(update={"fold": fold})
        back = hold_out(records, data.model_copy(update={"split_file": file}))
        assert back == {hash_id("folder", patient) for patient in hold_out(originals, data)}
    if name != "nnunet" or split == "official":
        test = {record.patient_id for record in records if record.official_split == "test"}
        held_out = hold_out(originals, options.data)
        assert test == {hash_id("folder", patient) for patient in held_out}


def test_nnunets_folds_are_the_splits(archive, tmp_path):
    root = tmp_path / "Dataset501_Masses"
    write_dataset("nnunet", config(archive), root)
    originals, _ = read(archive)
    folds = json.loads((root / "splits_final.json").read_text())
    assert len(folds) == 2
    for number, fold in enumerate(folds):
        held_out = hold_out(originals, config(archive, fold=number).data)
        for part, is_val in (("val", True), ("train", False)):
            wanted = [one for one in originals if (one.patient_id in held_out) == is_val]
            assert sorted(fold[part]) == sorted(one.image_id for one in wanted)
    content = json.loads((root / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "mass": 1, "calcification": 2}


def test_nnunets_folds_exclude_an_official_test_set(archive, tmp_path):
    root = tmp_path / "Dataset501_Masses"
    write_dataset("nnunet", config(archive, split="official"), root)
    test = {path.stem.removesuffix("_0000") for path in (root / "imagesTs").iterdir()}
    assert len(test) == 2 and json.loads((root / "dataset.json").read_text())["numTraining"] == 8
    patients = {original.image_id: original.patient_id for original in read(archive)[0]}
    for fold in json.loads((root / "splits_final.json").read_text()):
        assert len(fold["train"]) + len(fold["val"]) == 8
        assert not test & {*fold["train"], *fold["val"]}
        val, train = ({patients[case] for case in fold[part]} for part in ("val", "train"))
        assert not val & train


def test_a_label_map_gives_an_overlap_to_the_kind_named_first(tmp_path):
    near = Lesion.from_outline("calcification", SQUARE + [4, 4], ROWS, COLS)
    archive = make_archive(tmp_path / "archive", [MASS, near])
    write_dataset("monai", config(archive, kinds=KINDS[::-1]), tmp_path / "out")
    (path, _) = sorted((tmp_path / "out").rglob("labels*/*.png"))
    expected = 2 * MASS.mask(ROWS, COLS)
    expected[near.mask(ROWS, COLS) > 0] = 1
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_the_regions(archive, tmp_path):
    root = tmp_path / "coco"
    write_dataset("coco", config(archive), root)
    originals = {original.image_id: original for original in read(archive)[0]}
    sizes = {}
    for name in ("annotations", "annotations_train", "annotations_val"):
        api = COCO(str(root / f"{name}.json"))
        sizes[name] = len(api.imgs)
        for image in api.imgs.values():
            original = originals[Path(image["file_name"]).stem]
            entries = api.imgToAnns[image["id"]]
            assert len(entries) == len(original.lesions)
            for entry, lesion in zip(entries, original.lesions, strict=True):
                mask = lesion.mask(ROWS, COLS)
                np.testing.assert_array_equal(api.annToMask(entry), mask)
                assert entry["area"] == mask.sum()
                assert entry["bbox"] == cocotools.toBbox(entry["segmentation"]).tolist()
                assert api.cats[entry["category_id"]]["name"] == lesion.kind
    assert sizes["annotations"] == 10 == sizes["annotations_train"] + sizes["annotations_val"]


def test_yolos_boxes_by_hand(archive, tmp_path):
    root = tmp_path / "yolo"
    write_dataset("yolo", config(archive, exchange={"boxes": True}), root)
    texts = "\n".join(path.read_text() for path in (root / "labels").rglob("*.txt"))
    (line,) = {line for line in texts.splitlines() if line.startswith("1 ")}
    # SQUARE + (30, 8): rows 40 to 49, columns 28 to 39, half-open; of 60 x 44 px
    expected = [1, 33.5 / 44, 44.5 / 60, 11 / 44, 9 / 60]
    assert [float(word) for word in line.split()] == pytest.approx(expected, abs=1e-9)
    assert "\nnames:\n  0: mass\n  1: calcification\n" in (root / "data.yaml").read_text()
    records, reasons = read(root)
    assert not reasons
    boxes = sorted(lesion.box for record in records for lesion in record.lesions)
    originals = [lesion.box for record in read(archive)[0] for lesion in record.lesions]
    assert boxes == sorted(originals)


@pytest.mark.parametrize("name", FORMATS)
def test_lesions_of_a_pixel_or_a_line(tmp_path, name):
    """Masks have specks, and boxes of none: each comes back with its pixels."""
    outlines = ([[9, 9]] * 3, [[20, 9], [20, 14], [20, 14]], [[30, 9], [33, 12], [33, 12]])
    lesions = [Lesion.from_outline("mass", outline, ROWS, COLS) for outline in outlines]
    archive = make_archive(tmp_path / "archive", lesions)
    write_dataset(name, config(archive), tmp_path / "Dataset501_Masses")
    originals, _ = read(archive)
    records, reasons = read(tmp_path / "Dataset501_Masses")
    assert not reasons
    for original, record in pair(originals, records, name):
        assert len(record.lesions) == 3
        np.testing.assert_array_equal(draw(record, "mass"), draw(original, "mass"))


def test_patches_are_those_of_training(tmp_path):
    data = {"phantoms": 12, "root": None, "kinds": ("mass",), "size": 32, "name": "phantom"}
    options = config(**data, exchange={"items": "patches"})
    patches = make_patches(read_mammograms(options.data, Skipped()), options.data, Skipped())
    _, held_out = splits.split(patches, options.data)
    for name in FORMATS:
        summary = write_dataset(name, options, tmp_path / f"Dataset502_{name}")
        records, reasons = read(tmp_path / f"Dataset502_{name}")
        assert not reasons and sum(summary.images.values()) == len(records) == len(patches) > 3
        assert all((record.rows, record.bits) == (32, 16) for record in records)
    by_id = {record.image_id: record for record in read(tmp_path / "Dataset502_coco")[0]}
    for image, mask, name in zip(patches.images, patches.masks, patches.ids, strict=True):
        record = by_id[hash_id("folder", name.replace("#", "_"))]
        np.testing.assert_allclose(record.pixels(), image, rtol=0, atol=0.51 / 65535)
        np.testing.assert_array_equal(draw(record, "mass"), mask[..., 0])
    test = [record for record in by_id.values() if record.official_split == "test"]
    assert len(test) == len(held_out)


def test_a_stopped_export_resumes_and_writes_no_image_twice(archive, tmp_path, monkeypatch):
    root = tmp_path / "coco"
    options = config(archive)
    write_dataset("coco", options, tmp_path / "whole")
    written = []
    quantize = writing.quantize

    def stop_after_four(mammogram):
        written.append(mammogram.image_id)
        if len(written) == 5:
            raise KeyboardInterrupt
        return quantize(mammogram)

    monkeypatch.setattr(writing, "quantize", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        write_dataset("coco", options, root)
    assert len(list((root / "images").iterdir())) == 4 and not (root / "split.json").exists()
    (root / "images" / ".x.png.abc.part").write_bytes(b"half")
    write_dataset("coco", options, root)
    assert len(written) == 5 + 6
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (root / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert not list(root.rglob(".*.part"))


def test_a_corrected_image_is_written_again_once(archive, tmp_path, monkeypatch):
    write_dataset("coco", config(archive), tmp_path / "out")
    source = sorted((archive / "images").iterdir())[3]
    before = {path: path.read_bytes() for path in (tmp_path / "out/images").iterdir()}
    times = source.stat().st_atime_ns, source.stat().st_mtime_ns
    picture = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(source), picture // 2)
    os.utime(source, ns=times)  # as a copy that keeps the time of the correction
    write_dataset("coco", config(archive), tmp_path / "out")
    (changed,) = (path for path, content in before.items() if path.read_bytes() != content)
    np.testing.assert_array_equal(cv2.imread(str(changed), cv2.IMREAD_UNCHANGED), picture // 2)
    monkeypatch.setattr(writing, "quantize", lambda _: pytest.fail("read again"))
    write_dataset("coco", config(archive), tmp_path / "out")


def test_images_with_a_lesion_without_an_outline_are_skipped(tmp_path):
    archive = make_archive(tmp_path / "archive", [MASS], 4, annotations="boxes")
    for name in ("nnunet", "monai", "yolo"):
        with pytest.raises(DataError, match="no outline"):
            write_dataset(name, config(archive), tmp_path / name)
    for name in ("coco", "hf"):
        assert write_dataset(name, config(archive), tmp_path / name).lesions
        records, _ = read(tmp_path / name)
        assert {lesion.box for record in records for lesion in record.lesions} == {MASS.box}


def test_a_damaged_image_is_skipped_and_counted(archive, tmp_path, caplog):
    path = sorted((archive / "images").iterdir())[3]
    path.write_bytes(path.read_bytes()[:300])
    caplog.set_level(logging.INFO, "tfmammo")
    summary = write_dataset("coco", config(archive), tmp_path / "out")
    assert sum(summary.images.values()) == 9 and summary.skipped == 1
    assert path.name not in caplog.text


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"split": "paper"}, "data.split"),
        ({"records": "records"}, "data.records"),
        ({"exchange": {"items": "patches"}}, "data.kinds"),
        ({"exchange": {"boxes": True}}, "exchange.boxes"),
        ({"added": {"copies": 2}}, "data.added"),
    ],
)
def test_keys_without_meaning_for_a_data_set(archive, tmp_path, changes, key):
    with pytest.raises(ConfigError, match=key):
        write_dataset("hf", config(archive, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_name_of_the_archive_reaches_the_data_set(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("TFMAMMO_ID_KEY", "secret")
    table = (archive / "metadata.csv").read_text().replace(",p0,", ",Quibble Zephyrine,")
    (archive / "metadata.csv").write_text(table)
    for name in FORMATS:
        write_dataset(name, config(archive), tmp_path / name)
        for path in (tmp_path / name).rglob("*"):
            assert "quibble" not in str(path).lower()
            assert not path.is_file() or b"quibble" not in path.read_bytes().lower()


def test_command(archive, tmp_path, capsys, repository):
    """The config of a training run does as well, and the whole command says what it wrote."""
    overrides = ["data.name=folder", f"data.root={archive}", "data.folds=2"]
    output = tmp_path / "Dataset501_Masses"
    for path in ("configs/exchange.yaml", "configs/can.yaml"):
        shutil.rmtree(output, ignore_errors=True)
        arguments = ["nnunet", "--config", str(repository / path), str(output)]
        main([*arguments, "--set", *overrides])
        said = capsys.readouterr().out
        assert "images    " in said and "8 mass" in said and str(output) in said
    for override in ("data.fold=1", "exchange.boxs=true", "trainng.steps=3"):
        said = refuse(capsys, main, [*arguments, "--set", *overrides, override])
        assert "error: " in said


def test_two_images_of_one_name_are_refused():
    """Both would be a_1.png."""
    records = [
        replace(
            make_mammogram(number, np.zeros((ROWS, COLS, 1), np.float32), pathology="normal"),
            image_id=name,
        )
        for number, name in enumerate(("a.1", "a_1"))
    ]
    data = config(None).data
    saved = splits.describe(Mammograms.of(records), data, "folder")
    cases = make_cases(config(None), Plan(records, saved, frozenset(), {}, ""), Skipped())
    assert next(cases).name == "a_1"
    with pytest.raises(DataError, match="a_1"):
        next(cases)
