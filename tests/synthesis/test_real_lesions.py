"""Real lesions in mammograms, and real mammograms: whose lesions they are, how large they come, and
what is refused.
"""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.facts import read_failures
from tests.synthesis_archives import (
    MASSES,
    draw_mammogram,
    find_outside,
    find_source,
    read_image,
    read_metadata,
    write_archive,
)
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Skipped
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesize

PHANTOMS = DataConfig(phantoms=24)


def test_real_lesions_of_the_phantom(tmp_path):
    """Recipes say which they are; boxes anywhere on the breast go beyond the paper's rule."""
    known = {each.image_id: each for each in archives.read_mammograms(PHANTOMS, Skipped())}
    values = {"name": "grafts", "data": PHANTOMS, "renderer": "paste", "format": "png"}
    recipes = synthesize(SynthesisConfig(**values, count=8, places="breast"), tmp_path / "set")
    lesions = [(lesion, recipe) for recipe in recipes for lesion in recipe.lesions]
    for lesion, recipe in lesions:
        graft = lesion.graft
        own = known[graft.image_id]
        assert own.lesions[graft.number].kind == "mass" and graft.patient_id == own.patient_id
        assert graft.mirrored == ({own.laterality, recipe.source.laterality} == {"L", "R"})
        assert lesion.shape == f"phantom {graft.image_id}#{graft.number}"
        assert 0.8 <= graft.factor <= 1.2 and graft.angle != 0 and graft.trained_on is None
        area = own.lesions[graft.number].mask(own.rows, own.cols).sum() * graft.factor**2
        assert lesion.area == pytest.approx(area, rel=0.02)
    middles = [(each.box[0] + each.box[2]) / 2 / recipe.source.rows for each, recipe in lesions]
    assert len(middles) == 8 and not all(1 / 4 <= middle <= 3 / 4 for middle in middles)


@pytest.mark.slow
def test_whose_lesions_they_are_is_told(config, tmp_path, folders, tiny_blending):
    recipes = synthesize(config(renderer="poisson", masses=(2, 2)), tmp_path / "out")
    known = {mammogram.image_id: mammogram for mammogram in archive.read(folders / "masses")}
    for row, recipe in zip(read_metadata(tmp_path / "out"), recipes, strict=True):
        patients = {known[graft.image_id].patient_id for graft in recipe.grafts}
        assert row["patient"] == recipe.source.patient_id and row["patient"] not in patients
        assert row["lesion_patient"] == " ".join(sorted(patients)) and row["pathology"] == "benign"
    readme = (tmp_path / "out/README.md").read_text()
    assert "without a network (renderer poisson)" in readme and "No split was given" in readme
    patient = next(iter(known.values())).patient_id
    generator = str(tiny_blending(patients=[patient]))
    set_config = config(renderer="blending", generator=generator, count=6)
    grafts = [recipe.grafts[0] for recipe in synthesize(set_config, tmp_path / "network")]
    assert {graft.trained_on for graft in grafts} == {True, False}
    assert all(graft.trained_on == (graft.patient_id == patient) for graft in grafts)
    count = sum(graft.trained_on for graft in grafts)
    readme = (tmp_path / "network/README.md").read_text()
    assert f"trained on the patients of {count} of the 6 lesions" in readme


def test_lesions_of_another_archive_depth_and_spacing(config, tmp_path):
    """16-bit masses at half the spacing come out half as large in 12-bit mammograms."""
    outlines = {10: MASSES[0], 12: [[1, 0], [30, 0], [30, 40]]}
    fine = [
        draw_mammogram(number, outline, spacing=(0.05, 0.05))
        for number, outline in outlines.items()
    ]
    lesions = write_archive(tmp_path / "fine", fine, bits=16)
    values = {"renderer": "paste", "resize": (1, 1), "rotate": 0}
    recipes = synthesize(config("12", lesions=lesions, **values), tmp_path / "out")
    for recipe in recipes:
        assert recipe.left_out is None
        (lesion,) = recipe.lesions
        assert (lesion.graft.angle, lesion.graft.factor) == (0, 1)
        top, left, bottom, right = lesion.box
        np.testing.assert_allclose([bottom - top, right - left], [12.5, 13.5], atol=1)
        image = read_image(tmp_path / "out", recipe)
        assert image.dtype == np.uint16 and image.max() < 2**12
    reason = "lesion 0: its mask touches the border of its mammogram"
    assert any(each.startswith(reason) for each in read_failures(tmp_path / "out").values())
    unknown = write_archive(tmp_path / "unknown", [replace(each, spacing=None) for each in fine])
    with pytest.raises(DataError, match="mm per px"):
        synthesize(config(renderer="poisson", lesions=unknown), tmp_path / "none")


def test_a_recipe_wants_its_lesion(config, folders, tmp_path):
    copy = shutil.copytree(folders / "masses", tmp_path / "copy")
    lesions = DataConfig(name="folder", root=copy)
    (recipe,) = synthesize(config(renderer="poisson", count=1, lesions=lesions), tmp_path / "out")
    file = tmp_path / "out/recipes/000000.json"
    (graft,) = recipe.grafts
    name = f"{graft.image_id}#{graft.number}"
    root = f"data.root={folders / '8'}"
    remake(file, tmp_path / "moved", [root, f"lesions.root={folders / 'masses'}"])
    for path in (copy / "images").iterdir():
        cv2.imwrite(str(path), 65535 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    for overrides, error, named in (
        ([root], ConfigError, "lesions.root=DIR"),
        ([root, f"lesions.root={copy}"], DataError, f"{name} has changed since"),
        ([root, f"lesions.root={folders / '8'}"], DataError, f"{name} is not in folder"),
    ):
        with pytest.raises(error, match=named):
            remake(file, tmp_path / "none", overrides)


def test_bad_lesions_are_sentences(config, tmp_path):
    for number, (values, named) in enumerate(
        (
            ({"lesions": None}, "has no mass"),
            ({"pathology": "malignant"}, "malignant mass"),
            ({"resize": (5, 5), "rotate": 0}, "too small"),
            ({"resize": (50, 50)}, "larger than it"),
            ({"renderer": "opencv", "resize": (0.06, 0.06), "count": 1}, "opencv: "),
        )
    ):
        with pytest.raises(DataError, match=named):
            synthesize(config(**{"renderer": "poisson", **values}), tmp_path / str(number))
    placed = config(renderer="mixed", centre=(100, 60), count=1, rotate=0)
    (recipe,) = synthesize(placed, tmp_path / "centre")
    top, left, bottom, right = recipe.lesions[0].box
    np.testing.assert_allclose([(top + bottom) / 2, (left + right) / 2], (100, 60), atol=1)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("renderer", ["infilling", "poisson", "mixed"])
def test_real_mammograms(real_data, renderer, tiny_infilling, where, tmp_path):
    data = DataConfig(name="cdd_cesm", root=real_data / "cdd-cesm")
    values = {"name": "real", "data": data, "renderer": renderer, "count": 4, "format": "png"}
    if renderer == "infilling":
        network = tiny_infilling(size=256, padding=100, preprocess={"remove_marks": True})
        values |= {"generator": str(network), "masses": (1, 2), "format": "dicom"}
    config = SynthesisConfig(**values)
    recipes = synthesize(config, tmp_path / "out")
    complete = [recipe for recipe in recipes if not recipe.left_out]
    assert len(complete) >= 3
    for recipe in complete:
        source = archives.read_stored(find_source(config, recipe)).values
        values = read_image(tmp_path / "out", recipe)
        masks = [archives.coco.decode(lesion.region, "") for lesion in recipe.lesions]
        on = np.any(masks, axis=0)
        outside = find_outside(recipe) if renderer == "infilling" else ~on
        np.testing.assert_array_equal(values[outside], source[outside])
        assert values.dtype == np.uint8 and (values[on] != source[on]).mean() > 0.3
        remake(tmp_path / f"out/recipes/{recipe.name}.json", tmp_path / "again", where(config))
