"""Masks of another tool as a model: what it predicted is scored, and nothing else."""

import csv

import cv2
import numpy as np
import pytest

from tfmammo.apps.exchange.cases import ExchangeConfig
from tfmammo.apps.exchange.writing import write_dataset
from tfmammo.config import DataConfig
from tfmammo.data import datasets
from tfmammo.errors import DataError, ExportError
from tfmammo.evaluation.comparison import compare
from tfmammo.evaluation.segmentation import SegmentationConfig, evaluate

DATA = DataConfig(phantoms=12, size=32, folds=2)


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory):
    """What `tfmammo exchange nnunet` writes as truth of all patches, one PNG a patch."""
    folder = tmp_path_factory.mktemp("exchange") / "Dataset501_Masses"
    config = ExchangeConfig.model_validate({"data": DATA, "exchange": {"items": "patches"}})
    write_dataset("nnunet", config, folder)
    return folder / "labelsTr"


def shift(source, target, chosen=slice(None)):
    """Predict each mask one row too low. Returns the names."""
    target.mkdir()
    paths = sorted(source.glob("*.png"))[chosen]
    for path in paths:
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(target / path.name), np.roll(labels, 1, axis=0))
    return {path.stem for path in paths}


def configure(folder, **values):
    models = {"nnU-Net": f"masks:{folder}"}
    return SegmentationConfig.model_validate(
        {"data": DATA, "models": models, "samples": 20} | values
    )


def test_each_patch_is_scored_with_its_own_mask(label_maps, tmp_path):
    shift(label_maps, tmp_path / "masks")
    evaluate(configure(tmp_path / "masks"), tmp_path)
    with (tmp_path / "per_image.csv").open() as file:
        lines = {line["id"]: line for line in csv.DictReader(file) if line["model"] == "nnU-Net"}
    patches = datasets.load_all_patches(DATA)
    assert len(lines) == len(patches) > 5
    for name, mask in zip(patches.ids, patches.masks[..., 0], strict=True):
        moved = np.roll(mask, 1, axis=0)
        dice = 2 * np.sum(mask & moved) / (mask.sum() + moved.sum())
        assert float(lines[name]["dice"]) == pytest.approx(dice, abs=1e-6)


def test_only_the_patches_that_it_holds_count(label_maps, tmp_path):
    names = shift(label_maps, tmp_path / "masks", slice(0, None, 2))
    (comparison,) = compare(configure(tmp_path / "masks"), "image", "mask")
    assert len(comparison.patches) == len(names) < len(list(label_maps.glob("*.png")))


def test_folds_complete_each_other_and_seeds_repeat(label_maps, tmp_path):
    for fold in range(2):
        shift(label_maps, tmp_path / f"fold{fold}", slice(fold, None, 2))
    folds = [f"masks:{tmp_path / f'fold{fold}'}" for fold in range(2)]
    (comparison,) = compare(
        configure("", models={"nnU-Net": folds}), "image", "mask", allow_repeats=True
    )
    assert set(comparison.folds["nnU-Net"]) == {0, 1}
    twice = {"nnU-Net": [folds[0], folds[0]]}
    (comparison,) = compare(configure("", models=twice), "image", "mask", allow_repeats=True)
    assert len(comparison.list_runs("nnU-Net")) == 2


def test_what_can_not_be_read_is_named(label_maps, tmp_path):
    names = sorted(shift(label_maps, tmp_path / "masks"))
    path = tmp_path / "masks" / f"{names[0]}.png"
    cv2.imwrite(str(path), np.zeros((16, 32), np.uint8))
    with pytest.raises(DataError, match=f"{names[0]}.png: has 16 x 32 px, and data.size is 32"):
        compare(configure(path.parent), "image", "mask")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{names[0]}.png: is no PNG file with one channel"):
        compare(configure(path.parent), "image", "mask")
    path.unlink()
    with pytest.raises(DataError, match=f"{names[0]}.png: the mask of a patch can't be read"):
        compare(configure(path.parent, patients="all"), "image", "mask")


def test_it_holds_masks_alone(tmp_path):
    with pytest.raises(ExportError, match="holds masks"):
        compare(configure(tmp_path), "mask", "image")
    with pytest.raises(ExportError, match="PNG files"):
        compare(configure(tmp_path), "image", "mask")
