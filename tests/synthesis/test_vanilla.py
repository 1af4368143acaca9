"""Mammograms with patches that a vanilla GAN makes from noise: which are refused, how
large they come, how they lie in the tissue.
"""

import csv
import json

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.archives.writers import folder as writer
from tests.small_mammograms import make_mammogram
from tests.synthetic_sets import NoiseModel, export_trained, make_transform
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.archives.stored import Stored
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.config import DataConfig
from tfmammo.data.patients import PATIENTS
from tfmammo.errors import DataError, ExportError
from tfmammo.mammogram import Lesion, Mammogram, key_check
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import load_noise_generator
from tfmammo.synthesis.lesion_bank import LesionPatch
from tfmammo.synthesis.mammograms import remake, synthesize
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.provenance import InsertedLesion
from tfmammo.synthesis.renderers import PlacedLesion, VanillaRenderer, make_renderer
from tfmammo.synthesis.synthesizer import render

SIZE = 32
ROWS = 200
COLS = 160
# of the lesion in a patch
TOP = 8
LEFT = 6
HEIGHT = 16
WIDTH = 12


class FromNoise(keras.layers.Layer):
    """z -> a ramp from left to right, 0.2 brighter in a rectangle, and that rectangle: none where
    z[0] is above 0.5, and where it is below -0.5 one that goes on to the border.
    """

    def call(self, z):
        row, col = np.mgrid[:SIZE, :SIZE]
        inside = (row >= TOP) & (row < TOP + HEIGHT) & (col >= LEFT) & (col < LEFT + WIDTH)
        first = z[:, :1, None]
        mask = tf.cast(
            (inside & (first <= 0.5)) | ((col < LEFT) & (row == TOP + 5) & (first < -0.5)),
            tf.float32,
        )
        mask = tf.maximum(
            mask,
            tf.cast((np.abs(row - TOP - 5) < 3) & (col < LEFT + 1) & (first < -0.5), tf.float32),
        )
        image = (
            tf.constant(0.25 + 0.5 * col / SIZE, tf.float32) + 0.2 * mask + 0.01 * z[:, 1:2, None]
        )
        return tf.stack([image, mask], axis=-1)


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory):
    """A function (patients=(), model=None, **data) -> the export of a vanilla GAN, which is a
    NoiseModel unless `model` is another.
    """

    def make(patients=(), model=None, **data):
        model = model or NoiseModel("vanilla_gan", 3, FromNoise(), ("image", "mask"))
        values = {"size": SIZE, "frame": "square", "context": 2, "window": (0, 1), **data}
        return export_trained(
            model, tmp_path_factory.mktemp("vanilla") / "export", patients, 4, **values
        )

    return make


def of_noise(network, wanted):
    """A seed whose first random number suits."""
    return next(
        seed
        for seed in range(1000)
        if wanted(np.random.default_rng(seed).uniform(-1, 1, (1, 3)).astype(np.float32)[0, 0])
    )


@pytest.fixture(scope="module")
def seeds(vanilla):
    """Seeds that give a lesion, none, and one at the border."""
    network = load_noise_generator(vanilla())
    return {
        "good": of_noise(network, lambda z: abs(z) < 0.4),
        "none": of_noise(network, lambda z: z > 0.6),
        "border": of_noise(network, lambda z: z < -0.6),
    }


def piece(rows, cols):
    return LesionPatch(
        "calcification",
        np.ones((rows, cols), np.uint8),
        np.zeros((rows + 8, cols + 8), np.float32),
        4,
        make_transform(),
    )


def ground(laterality="L", data=None):
    image = np.random.default_rng(1).uniform(0.3, 0.5, (ROWS, COLS, 1)).astype(np.float32)
    image = np.rint(image * 65535).astype(np.float64) / 65535
    image = image.astype(np.float32)
    return TargetMammogram(
        image,
        Mammogram("made", "p", "i", ROWS, COLS, lambda: image, laterality, "CC", "normal"),
        data or DataConfig(),
    )


def placed(renderer, candidate, top, left, on):
    spot, seam = renderer.place(top, left, candidate, on.mammogram)
    inserted = InsertedLesion(box=spot.box, window=spot.window, area=1, region={}, seed=0, shape="")
    return PlacedLesion(inserted, spot, seam, candidate)


# What it draws


def test_a_patch_and_its_lesion_by_hand(vanilla, seeds):
    network = load_noise_generator(vanilla(window=(0.2, 0.7)))
    image, mask = network.generate(seeds["good"])
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH] = 1
    off = expected != mask
    # cleaning rounds corners
    assert (
        mask.dtype == np.uint8
        and off.sum() <= 12
        and not off[TOP + 2 : TOP + 14, LEFT + 2 : LEFT + 10].any()
    )
    noise = np.random.default_rng(seeds["good"]).uniform(-1, 1, (1, 3)).astype(np.float32)
    drawn = 0.25 + 0.5 * np.arange(SIZE) / SIZE + 0.2 * expected + 0.01 * noise[0, 1]
    np.testing.assert_allclose(image, 0.2 + 0.5 * drawn, atol=1e-6)
    assert image.dtype == np.float32 and (network.kind, network.z, network.patients) == (
        "mass",
        3,
        frozenset(),
    )
    for name, reason in (
        ("none", "nothing of its mask is left at 32 px"),
        ("border", "its mask touches the border of its patch"),
    ):
        with pytest.raises(
            DataError, match=f"no lesion that a vanilla GAN draws can be used: {reason}"
        ):
            network.generate(seeds[name])


@pytest.mark.slow
def test_a_real_one_is_read(vanilla):
    """The export of baselines.vanilla_gan gives what the network itself gives of the same noise."""
    model = VanillaGAN(
        VanillaGANConfig(z=5, filters=(8, 4, 4), discriminator_filters=(4, 8, 8)), SIZE
    )
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
        (
            {"window": None},
            "data.percentiles",
        ),
        (
            {"kinds": ("mass", "calcification")},
            "several kinds",
        ),
        ({"preprocess": {"contrast": "equalise"}}, "contrast=equalise"),
        ({"frame": "full"}, "taken whole"),
    ],
)
def test_what_cant_be_set_in_is_refused(vanilla, data, reason):
    with pytest.raises(DataError, match=reason):
        make_renderer("vanilla", vanilla(**data), 16.0)


@pytest.mark.slow
def test_another_systems_export_is_refused(vanilla, tiny_blending):
    with pytest.raises(ExportError, match="from noise to"):
        make_renderer("vanilla", tiny_blending(), 16.0)
    folder = vanilla()
    (folder / "card.json").write_text(
        (folder / "card.json").read_text().replace('"train_patients"', '"others"')
    )
    with pytest.raises(DataError, match="on whom"):
        make_renderer("vanilla", folder, 16.0)


# Its size, and its place


@pytest.mark.parametrize("longer", [12, 16, 37, 64])
def test_the_longer_side_is_that_of_the_real_lesion(longer, vanilla, seeds):
    renderer = VanillaRenderer(load_noise_generator(vanilla()), 4.0)
    for rows, cols in ((longer, 5), (5, longer)):
        candidate = renderer.prepare_lesion(piece(rows, cols), ground().mammogram, [seeds["good"]])
        assert abs(candidate.mask.shape[0] - longer) <= 1 and candidate.mask.shape[
            1
        ] == pytest.approx(longer * WIDTH / HEIGHT, abs=2)
        assert len(candidate.sample.image) == round(SIZE * longer / HEIGHT) and (
            candidate.kind,
            candidate.origin,
        ) == ("mass", "vanilla GAN")
        assert (
            candidate.sample.top == pytest.approx(longer * TOP / HEIGHT, abs=1)
            and candidate.seed == seeds["good"]
        )
    with pytest.raises(DataError, match="162 px"):
        renderer.prepare_lesion(piece(81, 2), ground().mammogram, [seeds["good"]])


def test_noise_is_drawn_until_there_is_a_lesion(vanilla, seeds):
    renderer = VanillaRenderer(load_noise_generator(vanilla()), 4.0)
    where = ground().mammogram
    left = iter([seeds["none"], seeds["border"], seeds["good"], seeds["none"]])
    assert renderer.prepare_lesion(piece(16, 16), where, left).seed == seeds["good"] and list(
        left
    ) == [seeds["none"]]
    with pytest.raises(DataError, match="its mask touches the border"):
        renderer.prepare_lesion(piece(16, 16), where, [seeds["none"], seeds["border"]])


def test_right_breasts_get_the_mirror_image(vanilla, seeds):
    renderer = VanillaRenderer(load_noise_generator(vanilla(preprocess={"flip_right": True})), 4.0)
    left, right = (
        renderer.prepare_lesion(piece(16, 16), ground(side).mammogram, [seeds["good"]])
        for side in "LR"
    )
    np.testing.assert_array_equal(left.sample.image[:, ::-1], right.sample.image)
    np.testing.assert_array_equal(left.mask[:, ::-1], right.mask)
    assert right.sample.left == SIZE - left.sample.left - left.mask.shape[1]
    unflipped = VanillaRenderer(load_noise_generator(vanilla()), 4.0)
    same = unflipped.prepare_lesion(piece(16, 16), ground("R").mammogram, [seeds["good"]])
    np.testing.assert_array_equal(same.sample.image, left.sample.image)


def test_a_patch_is_set_in_whole_and_fades_at_its_border(vanilla, seeds):
    """At a patch that is not scaled: w = 3 t^2 - 2 t^3, t the distance to the border over 4 px, of
    the patch, the rest of the tissue.
    """
    renderer = VanillaRenderer(load_noise_generator(vanilla()), 4.0)
    on = ground()
    candidate = renderer.prepare_lesion(piece(HEIGHT, 3), on.mammogram, [seeds["good"]])
    placed_lesion = placed(renderer, candidate, 100, 60, on)
    first = 100 - candidate.sample.top
    before = 60 - candidate.sample.left
    assert placed_lesion.placement.window == (
        first,
        before,
        first + SIZE,
        before + SIZE,
    ) and placed_lesion.placement.box[:2] == (
        100,
        60,
    )
    stored = Stored.of_image(on.image, 16)
    synthetic = render(on, stored, [placed_lesion], renderer)
    edge = np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1])
    t = np.minimum(np.minimum(edge[:, None], edge) / 4, 1)
    weight = 3 * t**2 - 2 * t**3
    inside = (slice(first, first + SIZE), slice(before, before + SIZE))
    patch = load_noise_generator(vanilla()).generate(seeds["good"])[0]
    expected = on.image[..., 0].astype(np.float64)
    expected[inside] = (1 - weight) * expected[inside] + weight * patch
    np.testing.assert_allclose(synthetic.image()[..., 0], expected, atol=2e-5)
    changed = synthetic.values != stored.values
    assert changed[inside][1:-1, 1:-1].all() and changed.sum() == (SIZE - 2) ** 2
    assert placed_lesion.blend_mask.support == (
        first + 1,
        before + 1,
        first + SIZE - 1,
        before + SIZE - 1,
    )


def test_a_patch_does_not_leave_its_mammogram(vanilla, seeds):
    renderer = VanillaRenderer(load_noise_generator(vanilla()), 4.0)
    on = ground()
    candidate = renderer.prepare_lesion(piece(16, 16), on.mammogram, [seeds["good"]])
    for top, left in ((0, 60), (100, 0), (ROWS - 17, 60), (100, COLS - 13)):
        with pytest.raises(DataError, match="reaches beyond"):
            renderer.place(top, left, candidate, on.mammogram)


# From an archive to a set


def breast(seed):
    row, col = np.mgrid[:ROWS, :COLS]
    inside = ((row - ROWS / 2) / (0.48 * ROWS)) ** 2 + (col / (0.9 * COLS)) ** 2 < 1
    grain = np.random.default_rng(seed).standard_normal((ROWS, COLS))
    return np.where(inside, np.clip(0.4 + 0.02 * grain, 0.2, 0.9), 0.01).astype(np.float32)[
        ..., None
    ]


@pytest.fixture
def config(vanilla, tmp_path):
    """A function (**values) -> a config that takes three normal mammograms and the sizes of two
    malignant calcifications.
    """

    def lesion(side):
        corners = np.float32(
            [[80, 30], [80, 30 + side], [80 + side // 2, 30 + side], [80 + side // 2, 30]]
        )
        return Lesion.from_outline("calcification", corners, ROWS, COLS, pathology="malignant")

    normal = [
        make_mammogram(i, breast(i), spacing=(0.1, 0.1), pathology="normal") for i in range(3)
    ]
    ill = [make_mammogram(i, breast(i), [lesion(2 * i)], spacing=(0.1, 0.1)) for i in (9, 12)]
    writer.write([*normal, *ill], tmp_path / "both", bits=12)
    data = DataConfig(name="folder", root=tmp_path / "both", kinds=("calcification",))

    def make(**values):
        defaults = {
            "name": "noise",
            "renderer": "vanilla",
            "data": data,
            "count": 4,
            "feather": 3,
            "resize": (1, 1),
            "rotate": 0,
        }
        if "generator" not in values:
            defaults["generator"] = str(vanilla(patients=("x", "y")))
        return SynthesisConfig(**defaults | values)

    return make


@pytest.mark.parametrize("form", ["png", "dicom"])
def test_from_an_archive_to_a_set(form, config, where, tmp_path):
    set_config = config(format=form)
    root = tmp_path / "out"
    recipes = synthesize(set_config, root)
    assert [recipe.left_out for recipe in recipes] == [None] * 4
    records = archive.read(set_config.data.root)
    by_id = {record.image_id: record for record in records}
    synthetic = archive.read(root)
    for recipe, record in zip(recipes, synthetic, strict=True):
        (lesion,) = recipe.lesions
        sides = by_id[lesion.graft.image_id].lesions[0].box
        assert (
            lesion.graft.used == "size"
            and lesion.graft.trained_on is False
            and lesion.shape == "vanilla GAN"
        )
        assert (
            lesion.kind == "mass"
            and abs(lesion.box[2] - lesion.box[0] - (sides[3] - sides[1])) <= 1
        )
        source = by_id[recipe.source.image_id]
        near = np.zeros((ROWS, COLS), bool)
        top, left, bottom, right = lesion.window
        near[top:bottom, left:right] = True
        assert bottom - top == right - left == round(SIZE * (sides[3] - sides[1]) / HEIGHT)
        values = archives.read_stored(record).values
        np.testing.assert_array_equal(values[~near], archives.read_stored(source).values[~near])
        assert (values[near] != archives.read_stored(source).values[near]).mean() > 0.7
        (mask,) = record.lesions
        assert mask.box == lesion.box and record.pixels()[near].max() > 0.7, (
            "as bright as the GAN makes it"
        )
        remake(root / f"recipes/{recipe.name}.json", tmp_path / "again", where(set_config))
        for name in recipe.files:
            assert (tmp_path / "again" / name).read_bytes() == (root / name).read_bytes()
    with (root / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["pathology"] for row in rows] == [""] * 4, (
        "of the real lesion nothing but its size is used"
    )
    whose = {recipe.lesions[0].graft.patient_id for recipe in recipes}
    told = json.loads((root / PATIENTS).read_text())
    shown = {recipe.source.patient_id for recipe in recipes}
    assert told.pop("id_key") == key_check()
    assert {name: set(some) for name, some in told.items()} == {
        "mammograms": shown,
        "lesions": whose,
        "trained_on": {"x", "y"},
    }
    readme = (root / "README.md").read_text()
    assert (
        "made from noise, tissue around them too, and are as large as" in readme
        and "Generator vanilla_gan, step 4" in readme
    )


def test_a_gan_that_draws_no_lesion_is_a_reason(config, vanilla, tmp_path):
    class WithoutMask(FromNoise):
        def call(self, z):
            return super().call(z) * [1.0, 0.0]

    model = NoiseModel("vanilla_gan", 3, WithoutMask(), ("image", "mask"))
    with pytest.raises(DataError, match="nothing of its mask"):
        synthesize(config(generator=str(vanilla(model=model)), count=1), tmp_path / "out")
    assert not (tmp_path / "out/images").exists()


@pytest.mark.slow
def test_patches_lie_on_breast_and_apart(config, tmp_path):
    recipes = synthesize(config(masses=(2, 2), format="png"), tmp_path / "out")
    assert not any(recipe.left_out for recipe in recipes)
    for recipe in recipes:
        taken = np.zeros((ROWS, COLS), int)
        for lesion in recipe.lesions:
            top, left, bottom, right = lesion.window
            taken[top + 1 : bottom - 1, left + 1 : right - 1] += 1
        assert taken.max() == 1
        image = (
            cv2.imread(str(tmp_path / f"out/images/{recipe.name}.png"), cv2.IMREAD_UNCHANGED) / 4095
        )
        assert image[taken > 0].min() > 0.15
