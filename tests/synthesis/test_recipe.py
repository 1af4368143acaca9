"""Recipes: they name the networks that made their image, tell nothing of the owner's disk, and
write nothing elsewhere.
"""

import json
import re
import shutil
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small_mammograms import draw_breast
from tests.synthesis_archives import MASSES, draw_mammogram, write_archive, write_mask
from tests.synthetic_sets import Disc, make_generator, read_files
from tfmammo import archives
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig
from tfmammo.data import runners
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Skipped
from tfmammo.synthesis import mammograms, patches
from tfmammo.synthesis.config import PatchSynthesisConfig, ShapeConfig
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, open_mammogram
from tfmammo.synthesis.recipe import Recipe, read_recipe
from tfmammo.tracking.export import export, load_identified

REQUEST = EditRequest(centre=(100, 60), size=(24, 20), shape="oval", seed=1)
PASSWORD = "sesame"
STORE = f"postgresql://jane:{PASSWORD}@store.example/mlflow?token={PASSWORD}"
PHANTOMS = DataConfig(phantoms=8)


@pytest.fixture(scope="module")
def infillings(tiny_infilling):
    """Two training runs of one infilling: other weights, the same everything else."""
    return [tiny_infilling(padding=20, offset=offset) for offset in (0.0, 0.1)]


@pytest.fixture
def oval(config, infillings):
    """A function (**values) -> a config of one oval mass in each of two mammograms."""
    facts = {"generator": str(infillings[0]), "sizes": None, "count": 2}
    return partial(config, shapes=ShapeConfig(drawn="oval"), size=(24, 20), **facts)


@pytest.fixture
def patch_config(tiny_contextual):
    """A function (level, **values) -> a config of two patches."""
    patients = {each.patient_id for each in archives.read_mammograms(PHANTOMS, Skipped())}

    def make(level=0.6, **values):
        generators = {"mass": str(tiny_contextual(level=level, patients=patients))}
        defaults = {"name": "set", "data": PHANTOMS, "generators": generators, "count": 2}
        return PatchSynthesisConfig(**defaults | values)

    return make


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    synthetic.write_png(path, Stored.of_image(draw_breast(0), 16))
    return open_mammogram(path, "L", "CC", (0.1, 0.1))


def replace_export(folder, by):
    """As a training run does that ends again in the same folder."""
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


# Which network made it


@pytest.mark.parametrize("renderer", ["infilling", "contextual"])
def test_an_open_editor_names_the_weights_that_it_uses_after_they_were_replaced(
    renderer, infillings, tiny_contextual, picture, tmp_path
):
    exports = infillings
    if renderer == "contextual":
        scale = {"sampling": {"scale": (0.5, 0.5)}, "window": (0, 1)}
        exports = [tiny_contextual(level=level, **scale) for level in (0.3, 0.6)]
    folder = shutil.copytree(exports[0], tmp_path / renderer)
    config = EditorConfig(renderer=renderer, generator=str(folder), feather=4)
    editor = Editor.load(config)
    sized = renderer == "infilling"
    request = REQUEST if sized else REQUEST.model_copy(update={"size": None, "shape": None})
    before = editor.edit(picture, request)
    replace_export(folder, exports[1])
    after = editor.edit(picture, request)
    np.testing.assert_array_equal(after.after.values, before.after.values)
    assert after.recipe["generator"] == before.recipe["generator"]
    new = Editor.load(config).edit(picture, request)
    assert (new.after.values != before.after.values).any()
    assert new.recipe["generator"] != before.recipe["generator"]


def test_a_training_run_that_ends_again_in_its_folder_is_another_generator(
    oval, infillings, where, tmp_path
):
    folder = shutil.copytree(infillings[0], tmp_path / "infilling")
    set_config = oval(generator=str(folder))
    mammograms.synthesize(set_config, tmp_path / "first")
    replace_export(folder, infillings[1])
    with pytest.raises(ConfigError, match=r"generator\.weights"):
        mammograms.synthesize(set_config, tmp_path / "first")
    mammograms.synthesize(set_config, tmp_path / "second")
    mammograms.synthesize(oval(generator=str(infillings[1])), tmp_path / "fresh")
    assert read_files(tmp_path / "second/images") == read_files(tmp_path / "fresh/images")
    first, second, fresh = (
        read_recipe(Recipe, tmp_path / name / "recipes/000000.json").generator
        for name in ("first", "second", "fresh")
    )
    assert second == fresh != first
    file = tmp_path / "first/recipes/000000.json"
    with pytest.raises(DataError, match="000000.json"):
        mammograms.remake(file, tmp_path / "again", where(set_config))


@pytest.fixture
def replaced(tmp_path, monkeypatch):
    """A function (export, other) -> a copy of the export, which the other replaces when a set's
    work begins.
    """
    run = runners.run

    def copy(exported, other):
        folder = shutil.copytree(exported, tmp_path / "export")

        def replace_first(*arguments):
            replace_export(folder, other)
            run(*arguments)

        monkeypatch.setattr(runners, "run", replace_first)
        return str(folder)

    return copy


def test_an_infilling_that_is_replaced_during_the_work_stops_it(
    oval, infillings, replaced, tmp_path
):
    with pytest.raises(DataError, match="was replaced"):
        mammograms.synthesize(oval(generator=replaced(*infillings)), tmp_path / "out")


def test_a_generator_of_patches_that_is_replaced_during_the_work_stops_it(
    patch_config, replaced, tmp_path
):
    exports = (patch_config(level).generators["mass"] for level in (0.3, 0.6))
    set_config = patch_config(generators={"mass": replaced(*exports)})
    with pytest.raises(DataError, match="export: was replaced"):
        patches.synthesize(set_config, tmp_path / "out")


def test_a_mask_gan_that_is_replaced_during_the_work_stops_it(oval, replaced, tmp_path):
    def export_gan(step):
        model = make_generator("mask_gan", "noise", (1,), Disc(), ("mask",))
        return export(model, tmp_path / f"gan{step}", {"step": step, "train_patients": []})

    shapes = ShapeConfig(gan=replaced(export_gan(1), export_gan(2)), plausible=False)
    with pytest.raises(DataError, match="was replaced"):
        mammograms.synthesize(oval(shapes=shapes), tmp_path / "out")


def test_the_hash_follows_values_order_and_signature(tmp_path):
    def hash_weights(name, kernel, bias, size=8):
        model = keras.Model(name="model")
        layer = keras.layers.Conv2D(1, 1)
        network = keras.Sequential([keras.Input((size, size, 1)), layer])
        layer.set_weights([np.full((1, 1, 1, 1), kernel), np.full((1,), bias)])

        @tf.function(input_signature=[tf.TensorSpec([None, size, size, 1], tf.float32, "image")])
        def net(image):
            return {"logits": network(image)}

        model.networks = {"net": network}
        model.functions = lambda: {"net": net}
        return load_identified(export(model, tmp_path / name, {}), {"image"}, {"logits"}).weights

    known = hash_weights("a", 0.25, 0.5)
    assert known == hash_weights("b", 0.25, 0.5) and len(known) == 64
    others = {
        hash_weights("c", 0.5, 0.25),
        hash_weights("d", 0.25, np.nextafter(np.float32(0.5), np.float32(1))),
        hash_weights("e", 0.25, 0.5, size=16),
    }
    assert len({known} | others) == 4


def test_the_key_of_an_item_follows_what_made_it(oval, tmp_path):
    (recipe,) = mammograms.synthesize(oval(count=1), tmp_path / "out")
    (lesion,) = recipe.lesions
    changes = [{"config": oval(feather=5)}, {"config": oval(whole_patch=True)}]
    changes += [{"generator": {"weights": "0"}}, {"lesions": (lesion, lesion)}]
    changes += [{"source": recipe.source.model_copy(update={"sha256": "0"})}, {"number": 1}]
    keys = [recipe.model_copy(update=change).make_key() for change in changes]
    assert keys[-1] == recipe.make_key(), "wherever it is in the set"
    assert len(set(keys)) == len(keys)


# What it does not tell


def test_no_password_and_no_path_of_the_owners_is_in_a_set(
    oval, config, patch_config, folders, infillings, picture, tmp_path
):
    masses = [draw_mammogram(number, MASSES[0]) for number in (4, 6)]
    lesions = write_archive(tmp_path / "masses", masses)
    shapes = ShapeConfig(files=write_mask(tmp_path / "mask.png", (5, 8, 30, 28)))
    made_up = oval(tracking_uri=STORE, lesions=lesions, size=None, shapes=shapes, masses=(1, 30))
    real = config(renderer="poisson", lesions=lesions, masses=(1, 30))
    for name, set_config in (("made_up", made_up), ("real", real)):
        mammograms.synthesize(set_config, tmp_path / "sets" / name)
        recipe = read_recipe(Recipe, tmp_path / "sets" / name / "recipes/000000.json")
        assert recipe.config.data.root is None and recipe.config.tracking_uri is None
        assert recipe.source.archive == "folder"
    set_config = patch_config(tracking_uri=STORE)
    patches.synthesize(set_config, tmp_path / "sets/patches")
    paths = (tmp_path / "sets").rglob("*")
    texts = [path.read_text() for path in paths if path.suffix in (".json", ".csv", ".md")]
    assert len(texts) > 15
    editor = EditorConfig(renderer="infilling", generator=str(infillings[0]), tracking_uri=STORE)
    texts.append(json.dumps(Editor.load(editor).edit(picture, REQUEST).recipe))
    secrets = [tmp_path, tmp_path.parent, folders, infillings[0].parent]
    for secret in (PASSWORD, *map(str, secrets), set_config.generators["mass"]):
        assert not any(secret in text for text in texts)


def test_why_an_item_is_left_out_names_no_folder(config, folders, tmp_path):
    lesions = DataConfig(name="folder", root=shutil.copytree(folders / "masses", tmp_path / "m"))
    for path in (lesions.root / "images").iterdir():
        path.write_bytes(path.read_bytes()[:2000])  # its header can be read, its pixels not
    with pytest.raises(DataError, match="no item could be made") as error:
        mammograms.synthesize(config(renderer="poisson", lesions=lesions), tmp_path / "out")
    files = [*(tmp_path / "out/recipes").iterdir(), tmp_path / "out/failures.csv"]
    for text in (str(error.value), *(path.read_text() for path in files)):
        assert re.search(r"file-[0-9a-f]{12}: ", text) and "images/" not in text
    assert str(tmp_path) not in "".join(path.read_text() for path in files)


# Where it writes


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../../escaped/evil"), ("number", "../../evil"), ("number", -1), ("lesion", "/evil")],
)
def test_a_recipe_leads_nowhere(oval, where, key, value, tmp_path):
    mammograms.synthesize(oval(count=1), tmp_path / "out")
    recipe = json.loads((tmp_path / "out/recipes/000000.json").read_text()) | {key: value}
    (tmp_path / "evil.json").write_text(json.dumps(recipe))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=f"{key}: "):
        mammograms.remake(tmp_path / "evil.json", tmp_path / "a/b/c", where(oval()))
    assert sorted(tmp_path.rglob("*")) == before
