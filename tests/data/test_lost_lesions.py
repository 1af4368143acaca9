"""An image that lost a lesion on reading is neither normal nor background, in any command."""

from dataclasses import replace

import numpy as np
import pytest

from tests.small_mammograms import COLS, ROWS, SQUARE, draw_breast, make_mammogram
from tfmammo.apps.exchange import cases
from tfmammo.apps.exchange.cases import ExchangeConfig
from tfmammo.apps.stress import detectors
from tfmammo.archives.findings import CATEGORIES
from tfmammo.config import DataConfig, SamplingConfig
from tfmammo.data import extraction, sampling, whole
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, Lost, Skipped
from tfmammo.synthesis import sources
from tfmammo.synthesis.config import SynthesisConfig

MASS = Lesion.from_outline("mass", SQUARE, ROWS, COLS)
IMAGE = draw_breast(0, ROWS, COLS)
WHOLE = make_mammogram(1, IMAGE, [MASS])
NORMAL = make_mammogram(2, IMAGE, pathology="normal")
DATA = {"name": "folder", "kinds": ["mass"]}


def lose(mammogram, kind=None):
    return replace(mammogram, lost=(Lost(kind),))


@pytest.mark.parametrize("kind", [None, *CATEGORIES])
def test_it_is_not_normal_whatever_was_lost(kind):
    assert sampling.is_normal(NORMAL) and not sampling.is_normal(lose(NORMAL, kind))


def test_no_normal_tissue_is_taken_from_it():
    config = SamplingConfig(normal="tissue")
    assert sampling.has_normal_tissue(WHOLE, config)
    assert not sampling.has_normal_tissue(lose(WHOLE, "calcification"), config)


@pytest.mark.parametrize("tiles", [None, {"empty": 1, "overlap": 8}])
def test_no_detector_learns_from_it(tiles):
    config = DataConfig(**DATA, size=32, canvas=[ROWS, COLS], tiles=tiles)
    for lost in (None, "mass"):
        skipped = Skipped()
        made = whole.make_whole([WHOLE, replace(lose(WHOLE, lost), image_id="9")], config, skipped)
        assert {name.partition("#")[0].partition("@")[0] for name in made.ids} == {"1"}
        assert "lost" in skipped.reasons["9"]
    # a calcification is nothing that this detector would have to find
    skipped = Skipped()
    made = whole.make_whole([lose(WHOLE, "calcification")], config, skipped)
    assert made.kinds.tolist() == ["mass"]  # nor is a tile beside its mass called normal
    assert ("lost" in str(skipped.reasons)) == bool(tiles)


def test_a_patch_of_the_whole_image_shows_all_lesions_or_is_none():
    config = DataConfig(**DATA, size=32, frame="full")
    assert len(extraction.make_patches([WHOLE], config, Skipped()).ids) == 1
    with pytest.raises(DataError):
        extraction.make_patches([lose(WHOLE)], config, Skipped())
    # patches around its other lesions stay
    config = DataConfig(**DATA, size=32)
    assert len(extraction.make_patches([lose(WHOLE)], config, Skipped()).ids) == 1


@pytest.mark.parametrize("mammograms", ["all", "normal"])
def test_nothing_is_inserted_into_it(mammograms):
    config = SynthesisConfig.model_construct(mammograms=mammograms, data=DataConfig(**DATA))
    assert sources._is_suitable(NORMAL, config) and not sources._is_suitable(lose(NORMAL), config)


def test_no_detector_is_tried_on_it(monkeypatch):
    monkeypatch.setattr(detectors.archives, "read_mammograms", lambda *_: [WHOLE, lose(NORMAL)])
    skipped = Skipped()
    (record,) = detectors.read_unknown(DataConfig(**DATA), [], skipped)
    assert record is WHOLE and list(skipped.reasons) == ["2"]


def test_it_is_not_exported():
    config = ExchangeConfig(data=DataConfig(**DATA))
    skipped = Skipped()
    written = list(cases._make_items(config, [WHOLE, lose(NORMAL)], skipped))
    assert [each.image_id for each in written] == ["1"] and list(skipped.reasons) == ["2"]
    assert np.array_equal(written[0].pixels(), IMAGE)
