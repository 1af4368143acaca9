"""Synthetic patches in bulk, of the phantom, by a generator that is known: files, recipes,
rates, reasons, bit for bit.
"""

import hashlib
import json
from functools import partial

import cv2
import numpy as np
import pytest

from tests.commands import run_module, run_module_here
from tests.synthetic_sets import read_files
from tfmammo import archives
from tfmammo.config import DataConfig, dump
from tfmammo.data.sampling import is_normal
from tfmammo.errors import ConfigError, DataError, TrackingError
from tfmammo.mammogram import Skipped
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.nn.layers import sample_latent_noise
from tfmammo.nn.postprocessing import postprocess
from tfmammo.synthesis import patches
from tfmammo.synthesis.config import PatchSynthesisConfig
from tfmammo.synthesis.generators import load_lesion_generator
from tfmammo.synthesis.patches import PatchSet, remake, synthesize
from tfmammo.synthesis.recipe import PatchRecipe, read_recipe
from tfmammo.tracking.export import export

DATA = DataConfig(phantoms=12)


@pytest.fixture(scope="module")
def mammograms():
    return archives.read_mammograms(DATA, Skipped())


@pytest.fixture(scope="module")
def generators(mammograms, tiny_contextual):
    patients = {mammogram.patient_id for mammogram in mammograms}
    return {
        "mass": str(tiny_contextual("mass", patients=patients, idle=0.5)),
        "removal": str(tiny_contextual("removal", patients=patients)),
    }


def config(generators, **values):
    return PatchSynthesisConfig(
        **{"name": "set", "data": DATA, "generators": generators, "count": 6, **values}
    )


@pytest.fixture(scope="module")
def patches_made(generators, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "set"
    return output, synthesize(config(generators), output)


def test_every_patch_is_there_with_its_recipe(patches_made, mammograms):
    output, recipes = patches_made
    patch_set = PatchSet.read(output)
    assert sorted(patch_set.patches.kinds.tolist()) == ["mass"] * 6 + ["normal"] * 6
    assert patch_set.trained_on == {mammogram.patient_id for mammogram in mammograms}
    known = {mammogram.image_id: mammogram for mammogram in mammograms}
    for recipe in recipes:
        source = recipe.source
        mammogram = known[source.image_id]
        assert recipe.is_whole(output) and not recipe.left_out
        assert mammogram.patient_id == source.patient_id
        assert is_normal(mammogram) == (recipe.target == "mass")
        if recipe.target == "removal":
            index = int(source.patch.rpartition("#")[2].partition("@")[0])
            assert mammogram.lesions[index].pathology == "malignant"
        top, left, bottom, right = source.place
        # 32 px at a scale of 1/4
        assert bottom - top == right - left == 128 and top >= 0 and bottom <= 1024
    assert len({(recipe.target, recipe.source.patch) for recipe in recipes}) == 12
    images = {recipe.source.image_id for recipe in recipes if recipe.target == "mass"}
    assert len(images) == min(6, sum(map(is_normal, mammograms))), "spread evenly"
    discarded = sum(recipe.discarded for recipe in recipes if recipe.target == "mass")
    assert 1 <= discarded <= 30  # every other draw
    rate = f"{100 * discarded / (6 + discarded):.1f} %"
    counts = f"mass: 6 patches; {discarded} of {6 + discarded} generated lesions discarded ({rate})"
    assert counts in (output / "README.md").read_text(encoding="utf-8")


def test_a_patch_is_the_real_one_plus_half_the_softened_lesion(patches_made, mammograms):
    """Independently: the window cut, scaled and stretched; the disc, expanded by 1 px and smoothed
    by 1 px, 0.6 / 2 high.
    """
    output, recipes = patches_made
    recipe = next(recipe for recipe in recipes if recipe.target == "mass")
    (source,) = [each for each in mammograms if each.image_id == recipe.source.image_id]
    top, left, bottom, right = recipe.source.place
    native = source.pixels()[top:bottom, left:right, 0]
    small = cv2.resize(native, (32, 32), interpolation=cv2.INTER_AREA)
    low, high = np.percentile(small, (0.5, 99.5))
    patch = np.clip((small - low) / (high - low), 0, 1)
    centre = np.arange(32) - 15.5
    disc = (np.hypot(centre[:, None], centre) < 8).astype(np.float32)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    edge = cv2.GaussianBlur(cv2.dilate(disc, cross), (0, 0), 1)
    stored, mask = (
        cv2.imread(str(output / part / f"{recipe.name}.png"), cv2.IMREAD_UNCHANGED)
        for part in ("images", "masks")
    )
    assert stored.dtype == np.uint16
    expected = np.clip(patch + edge * 0.3 * disc, 0, 1)
    assert np.abs(stored / 65535 - expected).max() < 1e-4
    np.testing.assert_array_equal(mask > 0, disc > 0)
    assert recipe.area == pytest.approx(disc.mean())


def test_a_recipe_makes_its_patch_again(patches_made, generators, tmp_path):
    output, recipes = patches_made
    where = [f"generators.mass={generators['mass']}"]
    file = output / "recipes/mass/000003.json"
    recipe = remake(file, tmp_path / "one", where)
    files = {name: (output / name).read_bytes() for name in recipe.files}
    assert read_files(tmp_path / "one") == files and len(files) == 2
    broken = json.loads(file.read_text())
    broken["files"]["images/mass/000003.png"] = hashlib.sha256(b"").hexdigest()
    (tmp_path / "recipe.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match="mass/000003"):
        remake(tmp_path / "recipe.json", tmp_path / "two", where)
    assert read_files(tmp_path / "two") == {}


def test_only_patients_of_the_generators_training_are_taken(mammograms, tiny_contextual, tmp_path):
    normal = [mammogram for mammogram in mammograms if is_normal(mammogram)]
    export = tiny_contextual(patients={normal[0].patient_id})
    set_config = config({"mass": str(export)}, count=2)
    recipes = synthesize(set_config, tmp_path / "set")
    assert {recipe.source.patient_id for recipe in recipes} == {normal[0].patient_id}
    of_all = config(set_config.generators, patients="all")
    network = load_lesion_generator(export)
    everybody = patches.select_mammograms(mammograms, of_all, network, "mass")
    ids = sorted(mammogram.image_id for mammogram in normal)
    assert sorted(mammogram.image_id for mammogram in everybody) == ids


@pytest.mark.slow
def test_bad_input_is_one_sentence(mammograms, tiny_contextual, tmp_path, generators, patches_made):
    patients = {mammogram.patient_id for mammogram in mammograms}
    too_large = str(tiny_contextual(patients=patients, sampling={"scale": (0.02, 0.02)}))
    idle = str(tiny_contextual(patients=patients, idle=1.1))
    for name, mass, values, error, named in (
        ("target", generators["removal"], {}, DataError, "generators.mass: .*model.target"),
        ("nobody", str(tiny_contextual()), {}, DataError, "generators.mass: .*none of 0"),
        ("empty", str(tmp_path), {}, TrackingError, "contains no export"),
        ("large", too_large, {"count": 1}, DataError, "1600 px"),
        ("idle", idle, {"count": 1, "tries": 2}, DataError, "post-processing"),
    ):
        with pytest.raises(error, match=named):
            synthesize(config({"mass": mass}, **values), tmp_path / name)
    recipe = read_recipe(PatchRecipe, tmp_path / "idle/recipes/mass/000000.json")
    assert "post-processing discards" in recipe.left_out and recipe.discarded == 2
    recipe = read_recipe(PatchRecipe, tmp_path / "large/recipes/mass/000000.json")
    assert (recipe.discarded, recipe.unusable, recipe.files) == (0, 20, {})
    (tmp_path / "x.json").write_text("{}")
    for read, error, named in (
        (lambda: synthesize(config(generators, seed=1), patches_made[0]), ConfigError, "seed;"),
        (lambda: PatchSet.read(tmp_path), DataError, "tfmammo synthesize-patches"),
        (lambda: PatchSet.read(tmp_path / "idle"), DataError, "was not finished"),
        (lambda: read_recipe(PatchRecipe, tmp_path / "x.json"), DataError, "x.json"),
    ):
        with pytest.raises(error, match=named):
            read()


@pytest.mark.long
def test_the_command(generators, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(dump(config(generators, count=2)), encoding="utf-8")
    module = "tfmammo.synthesis.patches"
    words = ("--config", "config.yaml", "--output", "set")
    done = run_module(module, *words, "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "set/images").rglob("*.png"))) == 4
    assert "generated lesions discarded" in done.stderr
    where = f"generators.removal={generators['removal']}"
    monkeypatch.chdir(tmp_path)
    run = partial(run_module_here, module)
    done = run("--recipe", "set/recipes/normal/000001.json", "--output", "one", "--set", where)
    assert done.returncode == 0 and "normal/000001: made again, bit for bit" in done.stderr
    done = run(*words, "--set", "countt=1")
    assert done.stderr == "error: config.yaml: countt: unknown key, did you mean count?\n"
    assert done.returncode == 2


@pytest.mark.long
def test_an_export_of_the_model_itself_is_used_by_its_running_average(tmp_path):
    """The lesion is that of the average, which answers otherwise than the generator; its noise
    follows from the seed.
    """
    small = {"filters": (2, 4), "discriminator_factor": 1, "attention": 8, "border": 1, "start": 16}
    model_config = ContextualConfig(target="removal", **small)
    model = Contextual(model_config, 16)
    model.average.to_lesion.bias.assign([-0.5])
    data = DATA.model_copy(update={"size": 16})
    sections = {"data": data, "model": model_config}
    sections = {name: section.model_dump(mode="json") for name, section in sections.items()}
    card = {"config": sections, "train_patients": ["p"]}
    network = load_lesion_generator(export(model, tmp_path / "export", card))
    facts = (network.size, network.noise_inputs, network.removes, network.patients)
    assert facts == (16, 4, True, {"p"}) and network.removes_pathology("malignant")
    image = np.random.default_rng(0).random((16, 16, 1)).astype(np.float32)
    noise = sample_latent_noise(1, 4, 7)
    lesion = model.functions()["average"](image=image[None], noise=noise)["lesion"].numpy()
    expected = postprocess(image[None], lesion, model_config.postprocess, removal=True)
    refined = network.generate(image, 7)
    np.testing.assert_allclose(refined.image, expected.image, atol=1e-6)
    assert refined.kept[0] and refined.image.mean() < image.mean()
    del card["train_patients"]
    with pytest.raises(DataError, match="its card does not say"):
        load_lesion_generator(export(model, tmp_path / "nobody", card))
