"""data.pathologies with each archive that states pathology, as its own files say it."""

import importlib

import pytest

from tfmammo.archives import phantom, read_mammograms
from tfmammo.config import DataConfig
from tfmammo.data.sampling import select_lesions
from tfmammo.mammogram import Skipped

ARCHIVES = ("cbis_ddsm", "cdd_cesm", "ddsm", "embed", "folder", "mini_mias", "optimam")
OF = {"malignant": 0, "benign": 2}  # mammograms of the phantom with one mass of that pathology


@pytest.fixture(scope="module")
def written():
    return [phantom.read(count=3)[place] for place in OF.values()]


@pytest.mark.parametrize("name", ARCHIVES)
def test_lesions_are_selected_by_their_pathology(written, tmp_path, name):
    writer = importlib.import_module(f"tests.archives.writers.{name}")
    writer.write(written, tmp_path)
    config = DataConfig(name=name, root=tmp_path)
    mammograms = read_mammograms(config, Skipped())
    selected = {
        wanted: [
            lesion
            for mammogram in mammograms
            for lesion in select_lesions(
                mammogram, config.model_copy(update={"pathologies": (wanted,)})
            ).values()
        ]
        for wanted in OF
    }
    assert {wanted: len(lesions) for wanted, lesions in selected.items()} == dict.fromkeys(OF, 1)
    for wanted, (lesion,) in selected.items():
        source = written[list(OF).index(wanted)]
        if name not in ("embed", "optimam", "mini_mias"):  # which have boxes and circles
            areas = [one.mask(source.rows, source.cols).sum() for one in (lesion, *source.lesions)]
            assert areas[0] == pytest.approx(areas[1], rel=0.02)
