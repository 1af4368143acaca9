"""Patches that a vanilla GAN makes from noise: which are refused, how large they come, how they
are inserted into the tissue.
"""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.small_mammograms import make_mammogram
from tests.synthesis.test_renderers import insert
from tests.synthesis_archives import (
    COLS,
    ROWS,
    draw_mammogram,
    find_outside,
    make_mass,
    read_metadata,
    write_archive,
)
from tests.synthetic_sets import DrawPatch, edit_card, make_generator, make_transform
from tfmammo.archives import folder as archive
from tfmammo.archives.stored import Stored
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.config import DataConfig
from tfmammo.data.patients import PATIENTS
from tfmammo.errors import DataError
from tfmammo.mammogram import key_check
from tfmammo.synthesis.generators import load_noise_generator
from tfmammo.synthesis.lesion_bank import LesionPatch
from tfmammo.synthesis.mammograms import synthesize
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.renderers import VanillaRenderer, make_renderer
from tfmammo.synthesis.synthesizer import render

SIZE = DrawPatch.SIZE
TOP, LEFT, BOTTOM, RIGHT = DrawPatch.BOX
HEIGHT = BOTTOM - TOP


def find_seed(is_wanted):
    """A seed whose first random number is wanted."""
    for seed in range(1000):
        first = np.random.default_rng(seed).uniform(-1, 1, (1, 3)).astype(np.float32)[0, 0]
        if is_wanted(first):
            return seed


GOOD = find_seed(lambda z: abs(z) < 0.4)
NONE = find_seed(lambda z: z > 0.6)  # no lesion
BORDER = find_seed(lambda z: z < -0.6)


def make_piece(rows, cols):
    mask = np.ones((rows, cols), np.uint8)
    image = np.zeros((rows + 8, cols + 8), np.float32)
    return LesionPatch("calcification", mask, image, 4, make_transform())


def open_target(laterality="L"):
    stored = np.random.default_rng(1).integers(20000, 32000, (ROWS, COLS, 1))
    image = (stored / 65535).astype(np.float32)
    mammogram = make_mammogram(0, image, laterality=laterality, pathology="normal")
    return TargetMammogram(image, mammogram, DataConfig())


def open_renderer(folder):
    return VanillaRenderer(load_noise_generator(folder), 4.0)


def test_a_patch_and_its_lesion_by_hand(vanilla):
    network = load_noise_generator(vanilla(window=(0.2, 0.7)))
    image, mask = network.generate(GOOD)
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[TOP:BOTTOM, LEFT:RIGHT] = 1
    off = expected != mask
    assert off.sum() <= 12, "cleaning rounds corners"
    assert not off[TOP + 2 : BOTTOM - 2, LEFT + 2 : RIGHT - 2].any()
    noise = np.random.default_rng(GOOD).uniform(-1, 1, (1, 3)).astype(np.float32)
    drawn = 0.25 + 0.5 * np.arange(SIZE) / SIZE + 0.2 * expected + 0.01 * noise[0, 1]
    np.testing.assert_allclose(image, 0.2 + 0.5 * drawn, atol=1e-6)
    assert (network.kind, network.z, network.patients) == ("mass", 3, frozenset())
    for seed, reason in ((NONE, "nothing of its mask is left"), (BORDER, "touches the border")):
        with pytest.raises(DataError, match=f"a vanilla GAN draws can be used: .*{reason}"):
            network.generate(seed)


@pytest.mark.slow
def test_a_real_one_is_read(vanilla):
    """The export of baselines.vanilla_gan gives what the network itself gives for that noise."""
    config = VanillaGANConfig(z=5, filters=(8, 4, 4), discriminator_filters=(4, 8, 8))
    model = VanillaGAN(config, SIZE)
    random = np.random.default_rng(0)
    for weight in model.generator.trainable_variables:
        weight.assign(random.normal(0, 0.4, weight.shape) + (weight.name == "gamma"))
    network = load_noise_generator(vanilla(patients=("a",), model=model))
    assert (network.z, network.patients) == (5, {"a"})
    noise = random.uniform(-1, 1, (2, 5)).astype(np.float32)
    ours = network.call(noise=noise)
    theirs = model.generate(tf.constant(noise))
    for name in ("image", "mask"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"window": None}, "data.percentiles"),
        ({"kinds": ("mass", "calcification")}, "several kinds"),
        ({"preprocess": {"contrast": "equalise"}}, "contrast=equalise"),
        ({"frame": "full"}, "taken whole"),
        ({}, "on whom"),
    ],
)
def test_what_cant_be_inserted_is_refused(vanilla, data, reason):
    folder = vanilla(**data)
    if not data:
        edit_card(folder, '"train_patients"', '"others"')
    with pytest.raises(DataError, match=reason):
        make_renderer("vanilla", folder, 16.0)


@pytest.mark.parametrize("longer", [12, 37, 64])
def test_the_longer_side_is_that_of_the_real_lesion(longer, vanilla):
    renderer = open_renderer(vanilla())
    mammogram = open_target().mammogram
    for rows, cols in ((longer, 5), (5, longer)):
        candidate = renderer.prepare_lesion(make_piece(rows, cols), mammogram, [GOOD])
        assert candidate.mask.shape[0] == pytest.approx(longer, abs=1)
        assert candidate.mask.shape[1] == pytest.approx(longer * (RIGHT - LEFT) / HEIGHT, abs=2)
        assert len(candidate.sample.image) == round(SIZE * longer / HEIGHT)
        assert candidate.sample.top == pytest.approx(longer * TOP / HEIGHT, abs=1)
        facts = (candidate.kind, candidate.origin, candidate.seed)
        assert facts == ("mass", "vanilla GAN", GOOD)
    with pytest.raises(DataError, match="152 px"):
        renderer.prepare_lesion(make_piece(76, 2), mammogram, [GOOD])


def test_noise_is_drawn_until_there_is_a_lesion(vanilla):
    renderer = open_renderer(vanilla())
    mammogram = open_target().mammogram
    seeds = iter([NONE, BORDER, GOOD, NONE])
    assert renderer.prepare_lesion(make_piece(16, 16), mammogram, seeds).seed == GOOD
    assert list(seeds) == [NONE]
    with pytest.raises(DataError, match="its mask touches the border"):
        renderer.prepare_lesion(make_piece(16, 16), mammogram, [NONE, BORDER])


def test_right_breasts_get_the_mirror_image(vanilla):
    renderer = open_renderer(vanilla(preprocess={"flip_right": True}))
    left, right = (
        renderer.prepare_lesion(make_piece(16, 16), open_target(side).mammogram, [GOOD])
        for side in "LR"
    )
    np.testing.assert_array_equal(left.sample.image[:, ::-1], right.sample.image)
    np.testing.assert_array_equal(left.mask[:, ::-1], right.mask)
    assert right.sample.left == SIZE - left.sample.left - left.mask.shape[1]
    unflipped = open_renderer(vanilla())
    same = unflipped.prepare_lesion(make_piece(16, 16), open_target("R").mammogram, [GOOD])
    np.testing.assert_array_equal(same.sample.image, left.sample.image)


def test_a_patch_is_inserted_whole_and_fades_at_its_border(vanilla):
    """At a patch that is not scaled: w = 3 t^2 - 2 t^3 of the patch, t the distance to the border
    over 4 px, and 1 - w of the tissue.
    """
    renderer = open_renderer(vanilla())
    target = open_target()
    piece = make_piece(HEIGHT, 3)
    for corner in ((0, 60), (100, 0), (ROWS - 17, 60), (100, COLS - 13)):
        with pytest.raises(DataError, match="reaches beyond"):
            insert(renderer, target, piece, *corner, [GOOD])
    lesion = insert(renderer, target, piece, 100, 60, [GOOD])
    spot = lesion.placement
    first = 100 - lesion.candidate.sample.top
    before = 60 - lesion.candidate.sample.left
    last = first + SIZE
    behind = before + SIZE
    assert spot.window == (first, before, last, behind) and spot.box[:2] == (100, 60)
    assert lesion.blend_mask.support == (first + 1, before + 1, last - 1, behind - 1)
    stored = Stored.of_image(target.image, 16)
    synthetic = render(target, stored, [lesion], renderer)
    edge = np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1])
    t = np.minimum(np.minimum(edge[:, None], edge) / 4, 1)
    weight = 3 * t**2 - 2 * t**3
    inside = np.s_[first:last, before:behind]
    patch = renderer.network.generate(GOOD)[0]
    expected = target.image[..., 0].astype(np.float64)
    expected[inside] = (1 - weight) * expected[inside] + weight * patch
    np.testing.assert_allclose(synthetic.image()[..., 0], expected, atol=2e-5)
    changed = synthetic.values != stored.values
    assert changed[inside][1:-1, 1:-1].all() and changed.sum() == (SIZE - 2) ** 2


# From an archive to a set


@pytest.fixture
def noise_config(config, vanilla, tmp_path):
    """A function (**values) -> a config that takes three normal mammograms and the sizes of two
    malignant masses.
    """
    every = [draw_mammogram(number) for number in (0, 2, 4)]
    every += [draw_mammogram(side, make_mass(80, 30, side, side)) for side in (18, 24)]
    data = write_archive(tmp_path / "both", every, bits=12)

    def make(model=None, **values):
        generator = str(vanilla(patients=("x", "y"), model=model))
        facts = {"renderer": "vanilla", "generator": generator, "feather": 3, "resize": (1, 1)}
        return config(**{"data": data, "lesions": None, "rotate": 0, **facts, **values})

    return make


def test_from_an_archive_to_a_set(noise_config, tmp_path):
    set_config = noise_config(count=4)
    root = tmp_path / "out"
    recipes = synthesize(set_config, root)
    by_id = {record.image_id: record for record in archive.read(set_config.data.root)}
    for recipe, record in zip(recipes, archive.read(root), strict=True):
        (lesion,) = recipe.lesions
        box = by_id[lesion.graft.image_id].lesions[0].box
        side = box[3] - box[1]
        assert (lesion.graft.used, lesion.graft.trained_on) == ("size", False)
        assert (lesion.shape, lesion.kind) == ("vanilla GAN", "mass")
        assert lesion.box[2] - lesion.box[0] == pytest.approx(side, abs=1)
        top, left, bottom, right = lesion.window
        assert bottom - top == right - left == round(SIZE * side / HEIGHT)
        pixels = record.pixels()[~find_outside(recipe)]
        assert pixels.max() > 0.7, "as bright as the GAN makes it"
    pathologies = [row["pathology"] for row in read_metadata(root)]
    assert pathologies == [""] * 4, "only the size of the real lesion is used"
    assert json.loads((root / PATIENTS).read_text()) == {
        "id_key": key_check(),
        "mammograms": sorted({recipe.source.patient_id for recipe in recipes}),
        "lesions": sorted({recipe.grafts[0].patient_id for recipe in recipes}),
        "trained_on": ["x", "y"],
    }
    readme = (root / "README.md").read_text()
    assert "and are as large as" in readme and "Generator vanilla_gan, step 4" in readme


def test_a_gan_that_draws_no_lesion_is_a_reason(noise_config, tmp_path):
    class WithoutMask(DrawPatch):
        def call(self, z):
            return super().call(z) * [1.0, 0.0]

    model = make_generator("vanilla_gan", "noise", (3,), WithoutMask(), ("image", "mask"))
    with pytest.raises(DataError, match="nothing of its mask"):
        synthesize(noise_config(model, count=1), tmp_path / "out")
    assert not (tmp_path / "out/images").exists()
