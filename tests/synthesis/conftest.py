"""Fixtures of tests of syntheses."""

import json

import keras
import numpy as np
import pydicom
import pytest

from tests.archives.writers import folder as writer
from tests.synthesis_archives import (
    COLS,
    MASSES,
    PATIENT_NAME,
    ROWS,
    SIZES,
    draw_mammogram,
    make_mass,
    write_archive,
)
from tests.synthetic_sets import DrawPatch, export_trained, make_generator
from tfmammo.config import DataConfig
from tfmammo.mammogram import Lesion
from tfmammo.synthesis.config import SynthesisConfig

# Own lesions of a mammogram of `mixed`, off the rows that masses are inserted in: a triangle at
# the chest wall, and a box.
TRIANGLE = [[20, 10], [20, 30], [34, 10]]
BOX = (160, 12, 176, 40)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Normal mammograms in three forms, an archive of masses, and a mixed one.

    In the last are a mammogram without lesions, and one with an outlined mass and a boxed
    calcification.
    """
    root = tmp_path_factory.mktemp("archives")
    normal = [draw_mammogram(number) for number in range(3)]
    write_archive(root / "8", normal)
    write_archive(root / "12", normal, bits=12)
    for path in writer.write(normal, root / "dicom", ending=".dcm", bits=12):
        dataset = pydicom.dcmread(path)
        dataset.PatientName = dataset.InstitutionName = dataset.SeriesDescription = PATIENT_NAME
        dataset.WindowCenter = 1800
        dataset.WindowWidth = 2400
        dataset.save_as(path)
    ill = [draw_mammogram(10 + number, lesion) for number, lesion in enumerate(MASSES)]
    write_archive(root / "masses", ill, bits=16)
    triangle = Lesion.from_outline("mass", np.float32(TRIANGLE), ROWS, COLS)
    own = (triangle, make_mass(*BOX[:2], 16, 28))
    mixed = draw_mammogram(2, lesions=own, pathology="malignant")
    write_archive(root / "mixed", [draw_mammogram(0), mixed], annotations="rle")
    content = json.loads((root / "mixed/annotations.json").read_text())
    del content["annotations"][1]["segmentation"]
    content["annotations"][1]["category_id"] = writer.CATEGORIES["calcification"]
    (root / "mixed/annotations.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def generator(tiny_infilling):
    """The export of an infilling."""
    return tiny_infilling(padding=20, preprocess={"flip_right": True})


@pytest.fixture(scope="session")
def can(tmp_path_factory):
    """A function (**data) -> the export of a CAN that makes 0.3 everywhere and 0.9 on the mask."""

    def make(**data):
        kernel, bias = (keras.initializers.Constant(value) for value in (0.6, 0.3))
        layer = keras.layers.Conv2D(1, 1, kernel_initializer=kernel, bias_initializer=bias)
        values = {"size": 32, "frame": "square", "context": 2.0, "window": (0, 1), **data}
        model = make_generator("can", "mask", (32, 32, 1), layer, ("image",))
        return export_trained(model, tmp_path_factory.mktemp("can") / "export", ["p"], **values)

    return make


@pytest.fixture(scope="session")
def vanilla(tmp_path_factory):
    """A function (patients=(), model=None, **data) -> the export of a vanilla GAN."""

    def make(patients=(), model=None, **data):
        names = ("image", "mask")
        model = model or make_generator("vanilla_gan", "noise", (3,), DrawPatch(), names)
        values = {"size": 32, "frame": "square", "context": 2, "window": (0, 1), **data}
        folder = tmp_path_factory.mktemp("vanilla") / "export"
        return export_trained(model, folder, patients, 4, **values)

    return make


@pytest.fixture(scope="session")
def config(folders, generator):
    """A function (form="8", **values) -> a config of an infilling, or of another renderer."""

    def make(form="8", **values):
        defaults = {
            "name": "tiny",
            "data": DataConfig(name="folder", root=folders / form),
            "lesions": DataConfig(name="folder", root=folders / "masses"),
            "count": 3,
            "format": "png",
        }
        if values.get("renderer", "infilling") == "infilling":
            defaults |= {"generator": str(generator), "sizes": SIZES, "feather": 6}
        return SynthesisConfig(**defaults | values)

    return make
