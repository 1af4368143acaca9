"""Fixtures of tests of syntheses."""

import pydicom
import pytest

from tests.archives.writers import folder as writer
from tests.synthesis_archives import MASSES, PATIENT_NAME, SIZES, draw_mammogram
from tfmammo.config import DataConfig
from tfmammo.synthesis.config import SynthesisConfig


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Normal mammograms in three forms, and an archive of masses."""
    root = tmp_path_factory.mktemp("archives")
    normal = [draw_mammogram(number) for number in range(3)]
    writer.write(normal, root / "8", bits=8)
    writer.write(normal, root / "12", bits=12)
    for path in writer.write(normal, root / "dicom", ending=".dcm", bits=12):
        dataset = pydicom.dcmread(path)
        dataset.PatientName = dataset.InstitutionName = dataset.SeriesDescription = PATIENT_NAME
        dataset.WindowCenter = 1800
        dataset.WindowWidth = 2400
        dataset.save_as(path)
    writer.write(
        [draw_mammogram(10 + number, lesion) for number, lesion in enumerate(MASSES)],
        root / "masses",
    )
    return root


@pytest.fixture(scope="session")
def generator(tiny_infilling):
    """The export of an infilling."""
    return tiny_infilling(padding=20, preprocess={"flip_right": True})


@pytest.fixture(scope="session")
def config(folders, generator):
    """A function (form="8", **values) -> a config."""

    def make(form="8", **values):
        defaults = {
            "name": "tiny",
            "data": DataConfig(name="folder", root=folders / form),
            "generator": str(generator),
            "count": 3,
        }
        defaults |= {
            "lesions": DataConfig(name="folder", root=folders / "masses"),
            "sizes": SIZES,
            "format": "png",
            "feather": 6,
        }
        return SynthesisConfig(**defaults | values)

    return make


@pytest.fixture(scope="session")
def real(config):
    """A function (renderer="poisson", form="8", **values) -> a config that sets real masses in."""

    def make(renderer="poisson", form="8", **values):
        return config(
            form,
            **{"renderer": renderer, "generator": None, "sizes": None, "feather": 16.0, **values},
        )

    return make
