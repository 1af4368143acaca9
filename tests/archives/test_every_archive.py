"""What holds for every reader."""

import importlib
import pickle

import numpy as np
import pytest

from tests.small_mammograms import COLS, ROWS, SQUARE, make_mammogram, ramp
from tfmammo.archives import ARCHIVES, phantom, read_mammograms
from tfmammo.config import DataConfig
from tfmammo.data.sampling import is_normal, select_lesions
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Skipped

READERS = sorted(ARCHIVES.keys() - {"phantom"})
LOCATED = ("cbis_ddsm", "cdd_cesm", "ddsm", "embed", "folder", "mini_mias", "optimam")
OF = {"malignant": 0, "benign": 2}  # mammograms of the phantom with one mass of that pathology


def write(name, mammograms, root):
    return importlib.import_module(f"tests.archives.writers.{name}").write(mammograms, root)


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_archive(name, tmp_path):
    (tmp_path / "file.csv").write_text("a,b\n1,2\n")
    for root in (tmp_path / "nowhere", tmp_path / "file.csv", tmp_path):
        with pytest.raises(ArchiveError, match=str(root)):
            ARCHIVES[name](root)


@pytest.mark.parametrize("name", READERS)
def test_records_are_lazy_pickled_and_pseudonymous(name, tmp_path):
    size = 1024 if name == "mini_mias" else ROWS
    cols = 1024 if name == "mini_mias" else COLS
    details = {"pathology": "malignant", "shape": "oval", "margin": "spiculated"}
    lesions = [Lesion.from_outline("mass", SQUARE, size, cols, **details)]
    grey = np.resize(ramp(0.2, 0.9), (size, cols, 1))
    known = {"patient_id": "Jane", "spacing": (0.07, 0.07), "birads": "4", "density": "2"}
    original = make_mammogram(7, grey, lesions, pathology="malignant", **known)
    write(name, [original], tmp_path)
    skipped = Skipped()
    (record,) = pickle.loads(pickle.dumps(ARCHIVES[name](tmp_path, skipped)))
    assert record.archive == name and not skipped.reasons and not is_normal(record)
    assert len(record.lesions) + len(record.lost) == 1
    assert (record.laterality, record.view) == ("L", "MLO" if name == "mini_mias" else "CC")
    assert "Jane" not in repr(record) + record.patient_id + record.image_id
    assert np.abs(record.pixels() - grey).max() < 0.02  # CDD-CESM's are JPEGs
    record.file.unlink()
    with pytest.raises(ArchiveError):
        record.pixels()


@pytest.fixture(scope="module")
def written():
    return [phantom.read(count=3)[place] for place in OF.values()]


@pytest.mark.parametrize("name", LOCATED)
def test_lesions_are_selected_by_their_pathology(written, tmp_path, name):
    write(name, written, tmp_path)
    config = DataConfig(name=name, root=tmp_path)
    mammograms = read_mammograms(config, Skipped())
    for source, wanted in zip(written, OF, strict=True):
        only = config.model_copy(update={"pathologies": (wanted,)})
        (lesion,) = (it for m in mammograms for it in select_lesions(m, only).values())
        if name not in ("embed", "optimam", "mini_mias"):  # which have boxes and circles
            areas = [one.mask(source.rows, source.cols).sum() for one in (lesion, *source.lesions)]
            assert areas[0] == pytest.approx(areas[1], rel=0.02)
