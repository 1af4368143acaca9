"""What a synthesis takes from archives: which mammograms and lesions, whose, and of what size."""

import numpy as np
import pytest

from tests.small_mammograms import make_mammogram, textured_breast
from tfmammo import archives
from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, Skipped, key_check
from tfmammo.synthesis.config import PatientsConfig, SynthesisConfig
from tfmammo.synthesis.sources import Sources, fit_sizes, select_lesions

ROWS = 200
COLS = 150


def square(top, left, bottom, right):
    corners = [[top, left], [top, right - 1], [bottom - 1, right - 1], [bottom - 1, left]]
    return Lesion.from_outline("mass", np.array(corners), ROWS, COLS)


def fit(spacing=None, kinds=("mass",), skipped=None):
    """Fit sizes on masses of 10 x 20 and 30 x 60 px; a third one is as high as the mammogram."""
    lesions = [square(5, 5, 15, 25), square(40, 40, 70, 100), square(0, 0, 200, 10)]
    mammogram = make_mammogram(0, textured_breast(0), lesions, spacing=spacing)
    sources = select_lesions([mammogram], DataConfig(kinds=kinds))
    return fit_sizes(sources, Skipped() if skipped is None else skipped)


def test_sizes_are_fitted_by_hand():
    """Heights 10 and 30, widths 20 and 60: means 20 and 40, standard deviations sqrt(200) and
    sqrt(800), correlation 1.
    """
    skipped = Skipped()
    sizes = fit(skipped=skipped)
    assert (sizes.unit, sizes.count) == ("px", 2)
    assert sizes.correlation == pytest.approx(1)
    assert sizes.height == pytest.approx((20, 200**0.5))
    assert sizes.width == pytest.approx((40, 800**0.5))
    assert skipped.reasons == {"0": "lesion 2: is over half the image high or wide"}


def test_sizes_are_in_mm_where_spacings_are_known():
    sizes = fit(spacing=(0.1, 0.2))
    assert sizes.unit == "mm"
    assert sizes.height == pytest.approx((2, 2**0.5))
    assert sizes.width == pytest.approx((8, 32**0.5))


def test_sizes_need_two_lesions():
    with pytest.raises(DataError, match="can't be fitted on 0 lesions"):
        fit(kinds=("calcification",))


@pytest.mark.slow
def test_an_archive_and_a_split_are_read_once(tmp_path, monkeypatch):
    data = DataConfig(phantoms=8, mixed_findings=True)
    names = {mammogram.patient_id for mammogram in archives.read_mammograms(data, Skipped())}
    patients = {name: number % 2 for number, name in enumerate(sorted(names))}
    file = tmp_path / "split.json"
    splits.save(
        file,
        splits.SavedSplit(
            archive="phantom",
            split="patient",
            folds=2,
            seed=0,
            stratify="none",
            patients=patients,
            id_key=key_check(),
        ),
    )
    reads = []
    read = archives.read_mammograms
    load = splits.load
    monkeypatch.setattr(
        archives, "read_mammograms", lambda *arguments: reads.append("archive") or read(*arguments)
    )
    monkeypatch.setattr(splits, "load", lambda path: reads.append("split") or load(path))
    config = SynthesisConfig(
        name="tiny",
        data=data,
        mammograms="all",
        renderer="poisson",
        patients=PatientsConfig(split_file=file, side="held_out"),
    )
    sources = Sources(config)
    assert reads == [], "nothing is read before it is asked for"
    held_out = {patient for patient, fold in patients.items() if fold == 0}
    assert {mammogram.patient_id for mammogram in sources.mammograms} == held_out
    assert {source.mammogram.patient_id for source in sources.lesions} <= held_out
    assert sources.patients.identity["side"] == "held_out"
    assert sorted(reads) == ["archive", "split"]
