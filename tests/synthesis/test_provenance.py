"""Recipes: they name the networks that made their image, tell nothing of the owner's disk,
and write nothing elsewhere.
"""

import json
import re
import shutil

import cv2
import keras
import numpy as np
import pytest

from tests.archives.writers import folder as writer
from tests.small_mammograms import make_mammogram
from tfmammo import archives
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig
from tfmammo.data import runners
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, Skipped
from tfmammo.synthesis import mammograms, patches
from tfmammo.synthesis.config import PatchSynthesisConfig, ShapeConfig, SynthesisConfig
from tfmammo.synthesis.editor import Editor, EditorConfig, EditRequest, open_mammogram
from tfmammo.synthesis.recipe import Recipe, read_recipe

ROWS = 200
COLS = 150
WISH = EditRequest(centre=(100, 60), size=(24, 20), shape="oval", seed=1)
# of a config without a network
POISSON = {
    "renderer": "poisson",
    "generator": None,
    "shapes": ShapeConfig(),
    "size": None,
    "feather": 16.0,
}
PASSWORD = "sesame"
STORE = f"postgresql://jane:{PASSWORD}@store.example/mlflow?token={PASSWORD}"


def breast(seed):
    random = np.random.default_rng(seed)
    row, col = np.mgrid[:ROWS, :COLS]
    inside = ((row - ROWS / 2) / (0.47 * ROWS)) ** 2 + (col / (0.85 * COLS)) ** 2 < 1
    image = 0.4 + 0.02 * random.standard_normal((ROWS, COLS))
    return np.where(inside, np.clip(image, 0.2, 0.9), 0.01).astype(np.float32)[..., None]


def record(number, lesions=()):
    pathology = "benign" if lesions else "normal"
    image = breast(number)
    return make_mammogram(number, image, lesions, spacing=(0.1, 0.1), pathology=pathology)


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    root = tmp_path_factory.mktemp("jane_doe") / "normal"
    writer.write([record(0), record(1)], root)
    return root


@pytest.fixture(scope="module")
def infillings(tiny_infilling):
    """Two trainings of one infilling: other weights, the same everything else."""
    return [tiny_infilling(padding=20, offset=offset) for offset in (0.0, 0.1)]


@pytest.fixture
def config(normal, infillings):
    """A function (**values) -> a config of one mass in each mammogram."""

    def make(**values):
        defaults = {
            "name": "tiny",
            "data": DataConfig(name="folder", root=normal),
            "generator": str(infillings[0]),
            "count": 2,
        }
        defaults |= {
            "shapes": ShapeConfig(drawn="oval"),
            "size": (24, 20),
            "format": "png",
            "feather": 6,
        }
        return SynthesisConfig(**defaults | values)

    return make


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    synthetic.write_png(path, Stored.of_image(breast(0), 16))
    return open_mammogram(path, "L", "CC", (0.1, 0.1))


def replace_export(folder, by):
    """As a training does that ends again in the same folder."""
    shutil.move(folder, folder.with_name(".old"))
    shutil.copytree(by, folder)
    shutil.rmtree(folder.with_name(".old"))


def pixels(root):
    return [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((root / "images").iterdir())
    ]


# Which network made it


def test_an_open_system_names_the_weights_that_it_uses_after_they_were_replaced(
    infillings, picture, tmp_path
):
    folder = shutil.copytree(infillings[0], tmp_path / "infilling")
    system = EditorConfig(renderer="infilling", generator=str(folder), feather=4)
    editor = Editor.load(system)
    before = editor.edit(picture, WISH)
    replace_export(folder, infillings[1])
    after = editor.edit(picture, WISH)
    np.testing.assert_array_equal(after.after.values, before.after.values)
    assert after.recipe["generator"] == before.recipe["generator"], (
        "the same pixels by the same network"
    )
    new = Editor.load(system).edit(picture, WISH)
    assert (new.after.values != before.after.values).any() and new.recipe[
        "generator"
    ] != before.recipe["generator"]


def test_an_open_contextual_system_too(tiny_contextual, picture, tmp_path):
    scale = {"sampling": {"scale": (0.5, 0.5)}, "window": (0, 1)}
    folder = shutil.copytree(tiny_contextual(level=0.3, **scale), tmp_path / "contextual")
    editor = Editor.load(EditorConfig(renderer="contextual", generator=str(folder)))
    before = editor.edit(picture, WISH)
    replace_export(folder, tiny_contextual(level=0.6, **scale))
    after = editor.edit(picture, WISH)
    np.testing.assert_array_equal(after.after.values, before.after.values)
    assert after.recipe["generator"] == before.recipe["generator"]


def test_a_training_that_ends_again_in_its_folder_is_another_generator(
    config, infillings, where, tmp_path
):
    folder = shutil.copytree(infillings[0], tmp_path / "infilling")
    set_config = config(generator=str(folder))
    mammograms.synthesize(set_config, tmp_path / "first")
    replace_export(folder, infillings[1])
    with pytest.raises(ConfigError, match=r"generator\.weights"):
        mammograms.synthesize(set_config, tmp_path / "first")
    mammograms.synthesize(set_config, tmp_path / "second")
    mammograms.synthesize(config(generator=str(infillings[1])), tmp_path / "fresh")
    for image, other in zip(pixels(tmp_path / "second"), pixels(tmp_path / "fresh"), strict=True):
        np.testing.assert_array_equal(image, other)
    generators = [
        read_recipe(Recipe, tmp_path / name / "recipes/000000.json").generator
        for name in ("first", "second", "fresh")
    ]
    assert generators[1] == generators[2] != generators[0]
    with pytest.raises(DataError, match="000000.json"):
        mammograms.remake(
            tmp_path / "first/recipes/000000.json", tmp_path / "again", where(set_config)
        )


def test_a_generator_that_is_replaced_during_the_work_stops_it(
    config, infillings, tiny_contextual, tmp_path, monkeypatch
):
    run = runners.run
    folder = shutil.copytree(infillings[0], tmp_path / "infilling")

    def replaced_first(*arguments):
        replace_export(folder, infillings[1])
        run(*arguments)

    monkeypatch.setattr(runners, "run", replaced_first)
    with pytest.raises(DataError, match="was replaced"):
        mammograms.synthesize(config(generator=str(folder)), tmp_path / "out")
    data = DataConfig(phantoms=8)
    patients = {mammogram.patient_id for mammogram in archives.read_mammograms(data, Skipped())}
    infillings = [tiny_contextual(level=level, patients=patients) for level in (0.3, 0.6)]
    folder = shutil.copytree(infillings[0], tmp_path / "contextual")
    set_config = PatchSynthesisConfig(
        name="set", data=data, generators={"mass": str(folder)}, count=2
    )
    with pytest.raises(DataError, match="contextual: was replaced"):
        patches.synthesize(set_config, tmp_path / "patches")


def test_equal_weights_are_one_network_however_often_they_are_exported(
    config, tiny_infilling, where, tmp_path
):
    first, again = (tiny_infilling(padding=20) for _ in range(2))
    set_config = config(generator=str(first), count=1)
    (recipe,) = mammograms.synthesize(set_config, tmp_path / "out")
    mammograms.remake(
        tmp_path / "out/recipes/000000.json",
        tmp_path / "again",
        [*where(set_config), f"generator={again}"],
    )
    np.testing.assert_array_equal(pixels(tmp_path / "again")[0], pixels(tmp_path / "out")[0])
    # its folder is the same work's
    mammograms.synthesize(config(generator=str(again), count=1), tmp_path / "out")
    assert set(recipe.generator) == {"name", "step", "weights"}


def test_the_hash_follows_values_order_and_signature(tmp_path):
    from tfmammo.tracking.export import export, load_identified

    def hashed(name, kernel, bias, size=8):
        model = keras.Model(name="model")
        layer = keras.layers.Conv2D(1, 1)
        model.networks = {"net": keras.Sequential([keras.Input((size, size, 1)), layer])}
        layer.set_weights(
            [np.full((1, 1, 1, 1), kernel, np.float32), np.full((1,), bias, np.float32)]
        )
        model.functions = lambda: {"net": functions(model.networks["net"], size)}
        return load_identified(export(model, tmp_path / name, {}), {"image"}, {"logits"}).weights

    def functions(network, size):
        import tensorflow as tf

        @tf.function(input_signature=[tf.TensorSpec([None, size, size, 1], tf.float32, "image")])
        def net(image):
            return {"logits": network(image)}

        return net

    known = hashed("a", 0.25, 0.5)
    assert known == hashed("b", 0.25, 0.5) and len(known) == 64
    others = [
        hashed("c", 0.5, 0.25),
        hashed("d", 0.25, np.nextafter(np.float32(0.5), np.float32(1))),
        hashed("e", 0.25, 0.5, size=16),
    ]
    assert len({known, *others}) == 4


# What it does not tell


def told(root):
    """All text files that a work leaves."""
    files = [path for path in root.rglob("*") if path.suffix in (".json", ".csv", ".md")]
    assert len(files) > 3
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_no_password_and_no_path_of_the_owners_is_in_a_set(config, normal, tmp_path):
    outline = np.float32([[80, 30], [80, 50], [104, 50], [104, 30]])
    lesion = Lesion.from_outline("mass", outline, ROWS, COLS)
    writer.write([record(5, (lesion,)), record(6, (lesion,))], tmp_path / "masses")
    lesions = DataConfig(name="folder", root=tmp_path / "masses")
    mask = np.zeros((40, 40), np.uint8)
    mask[5:30, 8:28] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    made_up = config(
        tracking_uri=STORE,
        lesions=lesions,
        size=None,
        shapes=ShapeConfig(files=tmp_path / "mask.png"),
    )
    real = config(**POISSON, lesions=lesions)
    for name, set_config in (("made_up", made_up), ("real", real)):
        mammograms.synthesize(set_config.model_copy(update={"masses": (1, 30)}), tmp_path / name)
        text = told(tmp_path / name)
        assert (
            PASSWORD not in text
            and str(tmp_path) not in text
            and str(normal.parent) not in text
            and str(tmp_path.parent) not in text
        )
        recipe = read_recipe(Recipe, tmp_path / name / "recipes/000000.json")
        assert (
            recipe.config.data.root is None
            and recipe.config.tracking_uri is None
            and recipe.source.archive == "folder"
        )


def test_why_an_item_is_left_out_names_no_folder(config, tmp_path):
    outline = np.float32([[80, 30], [80, 50], [104, 50], [104, 30]])
    lesions = tmp_path / "masses"
    writer.write([record(5, (Lesion.from_outline("mass", outline, ROWS, COLS),))], lesions)
    for path in (lesions / "images").iterdir():
        path.write_bytes(path.read_bytes()[:2000])  # its header can be read, its pixels not
    set_config = config(**POISSON, lesions=DataConfig(name="folder", root=lesions))
    with pytest.raises(DataError, match="no item could be made") as error:
        mammograms.synthesize(set_config, tmp_path / "out")
    assert re.search(r"file-[0-9a-f]{12}: ", str(error.value))
    text = "".join(
        path.read_text()
        for path in [*(tmp_path / "out/recipes").iterdir(), tmp_path / "out/dead_letters.csv"]
    )
    assert re.search(r"file-[0-9a-f]{12}: ", text)
    assert "images/" not in text and str(tmp_path) not in text


def test_neither_is_there_in_recipes_of_patches_and_of_single_lesions(
    tiny_contextual, infillings, picture, tmp_path
):
    data = DataConfig(phantoms=8)
    patients = {mammogram.patient_id for mammogram in archives.read_mammograms(data, Skipped())}
    generator = str(tiny_contextual(patients=patients))
    set_config = PatchSynthesisConfig(
        name="set", data=data, generators={"mass": generator}, tracking_uri=STORE, count=2
    )
    patches.synthesize(set_config, tmp_path / "patches")
    system = EditorConfig(
        renderer="infilling", generator=str(infillings[0]), tracking_uri=STORE, feather=4
    )
    text = told(tmp_path / "patches") + json.dumps(Editor.load(system).edit(picture, WISH).recipe)
    assert (
        PASSWORD not in text
        and str(tmp_path) not in text
        and str(infillings[0].parent) not in text
        and generator not in text
    )


# Where it writes


@pytest.mark.parametrize("name", ["../../escaped/evil", "/evil", "a/b", ".", ""])
def test_a_recipes_name_leads_nowhere(config, where, name, tmp_path):
    set_config = config(count=1)
    mammograms.synthesize(set_config, tmp_path / "out")
    recipe = json.loads((tmp_path / "out/recipes/000000.json").read_text()) | {"name": name}
    (tmp_path / "evil.json").write_text(json.dumps(recipe))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="name: "):
        mammograms.remake(tmp_path / "evil.json", tmp_path / "a/b/c", where(set_config))
    assert sorted(tmp_path.rglob("*")) == before
