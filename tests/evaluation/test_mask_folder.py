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
from tfmammo.evaluation.networks import open_predictor
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
    folder = open_predictor(f"masks:{tmp_path / 'masks'}", (), "mask")
    backwards = patches.take(np.arange(len(patches))[::-1])
    answers = [folder.answer(those, {}, "mask", (32, 32, 1)) for those in (patches, backwards)]
    np.testing.assert_array_equal(answers[1], answers[0][::-1])


def test_masks_may_be_called_as_the_images_that_nnunet_takes(label_maps, tmp_path):
    shift(label_maps, tmp_path / "masks")
    patches = datasets.load_all_patches(DATA)
    plain = open_predictor(f"masks:{tmp_path / 'masks'}", (), "mask")
    expected = plain.answer(patches, {}, "mask", (32, 32, 1))
    for path in list((tmp_path / "masks").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_0000"))
    named = open_predictor(f"masks:{tmp_path / 'masks'}", (), "mask")
    assert named.find_eligible(patches).all()
    np.testing.assert_array_equal(named.answer(patches, {}, "mask", (32, 32, 1)), expected)


def test_folds_complete_each_other_and_seeds_repeat(label_maps, tmp_path):
    """Only the patches count that a folder has."""
    names = [shift(label_maps, tmp_path / f"fold{fold}", slice(fold, None, 2)) for fold in range(2)]
    folds = [f"masks:{tmp_path / f'fold{fold}'}" for fold in range(2)]
    twice = [uri for uri in folds for _ in range(2)]
    for uris, fold_numbers, runs, protocol in (
        (folds, {0, 1}, 1, "unseen"),
        (folds[:1], {0}, 1, "all"),
        (twice[:2], {0}, 2, "unseen"),
        (twice, {0, 1}, 2, "unseen"),
    ):
        config = configure("", models={"nnU-Net": uris}, patients=protocol)
        (comparison,) = compare(config, "image", "mask", allow_repeats=True)
        assert set(comparison.folds["nnU-Net"]) == fold_numbers
        assert len(comparison.patches) == len(set().union(*names[: len(fold_numbers)]))
        assert len(comparison.runs["nnU-Net"]) == runs


def test_what_can_not_be_read_is_named(label_maps, tmp_path):
    names = sorted(shift(label_maps, tmp_path / "masks"))
    path = tmp_path / "masks" / f"{names[0]}.png"
    for damage, said in (
        (lambda: cv2.imwrite(str(path), np.zeros((16, 32), np.uint8)), "has 16 x 32 px"),
        (lambda: path.write_bytes(b""), "is no PNG file"),
    ):
        damage()
        with pytest.raises(DataError, match=f"{names[0]}.png: {said}"):
            compare(configure(path.parent, patients="all"), "image", "mask")
    config = configure("", models={"A": f"masks:{path.parent}", "B": f"masks:{label_maps}"})
    for one in path.parent.iterdir():
        one.unlink()
    (path.parent / "other.png").touch()
    with pytest.raises(DataError, match="no patch can be scored for all of A, B"):
        compare(config, "image", "mask")
    for inputs, said in ((("mask", "image"), "holds masks"), (("image", "mask"), "PNG files")):
        with pytest.raises(ExportError, match=said):
            compare(configure(tmp_path), *inputs)
