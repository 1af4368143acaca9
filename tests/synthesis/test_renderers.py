"""Painters: what a network is shown and what comes back, and that no method changes
anything beyond a lesion's support.
"""

import cv2
import numpy as np
import pytest

from tests.synthetic_sets import make_transform
from tfmammo.archives.stored import Stored
from tfmammo.baselines import poisson
from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.errors import DataError, ExportError
from tfmammo.mammogram import Mammogram
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import Generator
from tfmammo.synthesis.lesion_bank import LesionPatch
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.recipe import InsertedLesion
from tfmammo.synthesis.renderers import (
    BORDER,
    NETWORK_VIEWS,
    DirectRenderer,
    LesionCandidate,
    NetworkRenderer,
    PlacedLesion,
    make_renderer,
)
from tfmammo.synthesis.synthesizer import render

ROWS = 200
COLS = 160
DATA = DataConfig(size=64, frame="square", context=2, window=(0, 1))


def tissue(laterality="L"):
    random = np.random.default_rng(0)
    row, col = np.mgrid[:ROWS, :COLS]
    image = (
        0.4 + 0.1 * np.sin(row / 9) * np.cos(col / 7) + 0.01 * random.standard_normal((ROWS, COLS))
    )
    inside = ((row - ROWS / 2) / (0.47 * ROWS)) ** 2 + (col / (0.9 * COLS)) ** 2 < 1
    image = np.where(inside, image, 0.01).astype(np.float32)[..., None]
    return image[:, ::-1].copy() if laterality == "R" else image


def opened(bits, laterality="L"):
    """Stored values of so many bits, and the ground of them."""
    stored = Stored.of_image(tissue(laterality), bits)
    image = stored.image()
    return stored, TargetMammogram(
        image,
        Mammogram("made", "p", "i", ROWS, COLS, lambda: image, laterality, "CC", "normal"),
        DATA,
    )


def piece(side=32, around=5, grey=None):
    """A disc with grain, or of one grey value."""
    row, col = np.mgrid[:side, :side] - (side - 1) / 2
    image = np.random.default_rng(1).uniform(0.5, 0.9, (side + 2 * around,) * 2).astype(np.float32)
    if grey is not None:
        image[:] = grey
    return LesionPatch(
        "mass", (np.hypot(row, col) < side / 2).astype(np.uint8), image, around, make_transform()
    )


def insertion(renderer, ground, lesion, top, left):
    drawn = LesionCandidate.of(lesion)
    placement, blend_mask = renderer.place(top, left, drawn, ground.mammogram)
    inserted = InsertedLesion(
        box=placement.box,
        window=placement.window,
        area=int(lesion.mask.sum()),
        region={},
        seed=0,
        shape="",
    )
    return PlacedLesion(inserted, placement, blend_mask, drawn)


def echo(change=0.0, data=DATA, size=64):
    """A blending that answers with what it is shown pasted in, changed by a constant everywhere."""

    def call(pasted):
        assert pasted.shape[1:] == (size, size, 3) and np.min(pasted) >= 0 and np.max(pasted) <= 1
        return {"image": np.asarray(pasted)[..., 1:2] + np.float32(change)}

    return NetworkRenderer(Generator(call, size, None, data), 6.0, NETWORK_VIEWS["blending"])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", [*poisson.METHODS, "blending"])
def test_nothing_changes_beyond_the_supports(name, bits, tiny_blending):
    stored, ground = opened(bits)
    renderer = make_renderer(name, tiny_blending() if name == "blending" else None, 16.0)
    lesions = [insertion(renderer, ground, piece(), top, 40) for top in (60, 120)]
    synthetic = render(ground, stored, lesions, renderer)
    assert (
        synthetic.values.dtype == (np.uint8 if bits == 8 else np.uint16) and synthetic.bits == bits
    )
    beyond = np.ones((ROWS, COLS), bool)
    for placed in lesions:
        top, left, bottom, right = placed.blend_mask.support
        where = placed.blend_mask.weights > 0
        beyond[top:bottom, left:right] &= ~where
        changed = synthetic.values[top:bottom, left:right] != stored.values[top:bottom, left:right]
        assert changed[where].mean() > 0.5
    np.testing.assert_array_equal(synthetic.values[beyond], stored.values[beyond])
    assert beyond.sum() < ROWS * COLS
    again = render(ground, stored, lesions, renderer)
    np.testing.assert_array_equal(again.values, synthetic.values)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_paste_by_hand(bits):
    stored, ground = opened(bits)
    renderer = DirectRenderer("paste")
    lesion = piece()
    synthetic = render(ground, stored, [insertion(renderer, ground, lesion, 60, 40)], renderer)
    expected = stored.values.copy()
    inner = lesion.image[5:-5, 5:-5]
    expected[60:92, 40:72][lesion.mask > 0] = np.rint(inner * np.float64(2**bits - 1))[
        lesion.mask > 0
    ]
    # where a grey value is just between two
    assert np.abs(synthetic.values.astype(int) - expected).max() <= (bits > 8)
    assert (synthetic.values != expected).mean() < 1e-3


@pytest.mark.parametrize("name", list(poisson.METHODS))
def test_a_method_sees_native_pixels_and_a_border(name):
    _, ground = opened(16)
    renderer = DirectRenderer(name)
    real_lesion = piece()
    placed = insertion(renderer, ground, real_lesion, 60, 40)
    assert placed.blend_mask.support == placed.placement.window == (57, 37, 95, 75)
    ((box, grey),) = renderer.render(ground, [placed])
    lesion = np.ascontiguousarray(real_lesion.image[2:-2, 2:-2])[..., None]
    mask = np.pad(real_lesion.mask, BORDER)[..., None]
    np.testing.assert_array_equal(
        grey, poisson.METHODS[name](ground.image[57:95, 37:75].copy(), lesion, mask)[..., 0]
    )
    assert box == placed.blend_mask.support and renderer.trained_on is None


def test_what_a_method_cant_blend():
    _, ground = opened(16)
    renderer = DirectRenderer("opencv")
    for top, left in ((2, 40), (60, 2), (ROWS - 34, 40)):
        with pytest.raises(DataError, match="nearer than 3 px"):
            renderer.place(top, left, LesionCandidate.of(piece()), ground.mammogram)
    with pytest.raises(DataError, match="reaches beyond"):
        renderer.place(-1, 40, LesionCandidate.of(piece()), ground.mammogram)
    thin = LesionPatch(
        "mass", np.ones((2, 9), np.uint8), np.full((12, 19), 0.5, np.float32), 5, make_transform()
    )
    with pytest.raises(DataError, match="2 x 9 px"):
        list(renderer.render(ground, [insertion(renderer, ground, thin, 60, 40)]))


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.25, 0.875)])
def test_an_echo_puts_the_lesion_into_its_mask(laterality, window):
    """Of a network that gives back what was pasted, at a patch that is not scaled, only the
    lesion's own grey values come: on the mask, whatever the network's grey scale, whichever way the
    breast lies, and whatever it adds all over.
    """
    _, ground = opened(16, laterality)
    lesion = piece(grey=0.75)
    data = DATA.model_copy(update={"window": window})
    ground = TargetMammogram(ground.image, ground.mammogram, data)
    left = 40 if laterality == "L" else COLS - 72
    for change in (0.0, 0.125):
        renderer = echo(change, data)
        placed = insertion(renderer, ground, lesion, 60, left)
        assert placed.placement.window == (44, left - 16, 108, left + 48)  # 64 px: context 2
        ((support, grey),) = renderer.render(ground, [placed])
        after = ground.image[..., 0].copy()
        after[support[0] : support[2], support[1] : support[3]] = grey
        on = np.zeros((ROWS, COLS), bool)
        on[60:92, left : left + 32] = lesion.mask > 0
        np.testing.assert_allclose(after[on], 0.75, atol=1e-5)
        np.testing.assert_allclose(after[~on], ground.image[..., 0][~on], atol=1e-5)


def test_what_a_blending_network_is_shown():
    """Tissue, lesion and mask as training patches are made, each scaled and mirrored alike, the
    lesion with its own surroundings.
    """
    _, ground = opened(16, "R")
    data = DATA.model_copy(
        update={"size": 32, "preprocess": PreprocessConfig(denoise=0.6, flip_right=True)}
    )
    ground = TargetMammogram(ground.image, ground.mammogram, data)
    seen = {}

    def call(pasted):
        seen["pasted"] = np.asarray(pasted)
        return {"image": np.asarray(pasted)[..., :1]}

    renderer = NetworkRenderer(Generator(call, 32, None, data), 4.0, NETWORK_VIEWS["blending"])
    real_lesion = piece()
    placed = insertion(renderer, ground, real_lesion, 60, COLS - 72)
    ((support, grey),) = renderer.render(ground, [placed])
    # it changed nothing
    np.testing.assert_array_equal(
        grey, ground.image[support[0] : support[2], support[1] : support[3], 0]
    )
    native = ground.image[44:108, COLS - 88 : COLS - 24, 0].copy()
    expected = [
        cv2.GaussianBlur(cv2.resize(native, (32, 32), interpolation=cv2.INTER_AREA), (0, 0), 0.6)[
            :, ::-1
        ]
    ]
    native[11:53, 11:53] = real_lesion.image
    lesion = cv2.GaussianBlur(
        cv2.resize(native, (32, 32), interpolation=cv2.INTER_AREA), (0, 0), 0.6
    )[:, ::-1]
    mask = placed.blend_mask.mask[:, ::-1]
    np.testing.assert_allclose(seen["pasted"][0, ..., 0], expected[0], atol=1e-6)
    np.testing.assert_allclose(
        seen["pasted"][0, ..., 1], np.where(mask > 0, lesion, expected[0]), atol=1e-6
    )
    np.testing.assert_array_equal(seen["pasted"][0, ..., 2], mask)
    assert mask.sum() == pytest.approx(real_lesion.mask.sum() / 4, rel=0.05)


def test_a_lesion_at_the_windows_border_is_shown_in_part():
    """Where a window is moved inside the mammogram, what is known around a lesion may reach beyond
    it.
    """
    _, ground = opened(16)
    renderer = echo()
    lesion = piece(around=20)
    placed = insertion(renderer, ground, lesion, 60, 8)
    assert placed.placement.window == (44, 0, 108, 64)
    ((support, grey),) = renderer.render(ground, [placed])
    row = 60 - support[0]
    col = 8 - support[1]
    inside = grey[row : row + 32, col : col + 32][lesion.mask > 0]
    np.testing.assert_allclose(inside, lesion.crop(0)[lesion.mask > 0], atol=1e-5)


def test_a_renderer_is_what_its_config_names(tiny_blending, tiny_infilling):
    for name in poisson.METHODS:
        renderer = make_renderer(name, None, 16.0)
        assert isinstance(renderer, DirectRenderer) and renderer.name == name
    folder = tiny_blending(patients=("p1", "p2"))
    renderer = make_renderer("blending", folder, 5)
    assert isinstance(renderer, NetworkRenderer) and (
        renderer.feather,
        renderer.trained_on,
        renderer.network.margin,
    ) == (5, {"p1", "p2"}, None)
    assert renderer.data.context == 2 and renderer.network.size == 32
    with pytest.raises(ExportError, match="from pasted to"):
        make_renderer("blending", tiny_infilling(), 16.0)
    with pytest.raises(ExportError, match="tri_label"):
        make_renderer("infilling", folder, 16.0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"renderer": "blending"}, "renderer=blending needs a generator"),
        ({}, "renderer=infilling needs a generator"),
        (
            {"renderer": "poisson", "generator": "g"},
            "generator is not used by renderer=poisson; leave it out",
        ),
        ({"renderer": "mixed", "feather": 4}, "feather is not used by renderer=mixed"),
        ({"renderer": "paste", "size": (20, 20)}, "size is not used by renderer=paste"),
        (
            {
                "renderer": "blending",
                "generator": "g",
                "sizes": {"height": (9, 1), "width": (9, 1)},
            },
            "sizes is not used by renderer=blending",
        ),
        (
            {"renderer": "opencv", "shapes": {"files": "a.png"}},
            "shapes is not used by renderer=opencv",
        ),
        ({"generator": "g", "rotate": 90}, "rotate is not used by renderer=infilling"),
        ({"generator": "g", "resize": (1, 1)}, "resize is not used by renderer=infilling"),
        ({"renderer": "vanilla"}, "renderer=vanilla needs a generator"),
        (
            {"renderer": "vanilla", "generator": "g", "shapes": {"files": "a.png"}},
            "shapes is not used by renderer=vanilla",
        ),
        (
            {"renderer": "paste", "resize": (1.2, 0.8)},
            "resize must be two factors, the smaller first",
        ),
        ({"renderer": "paste", "rotate": 181}, "less than or equal to 180"),
        ({"renderer": "glue"}, "renderer"),
    ],
)
def test_no_option_does_nothing(values, reason):
    with pytest.raises(ValueError, match=reason):
        SynthesisConfig(name="a", **values)


def test_a_card_without_patients(tiny_blending):
    folder = tiny_blending()
    text = (folder / "card.json").read_text()
    (folder / "card.json").write_text(text.replace('"train_patients"', '"others"'))
    with pytest.raises(DataError, match="train_patients"):
        make_renderer("blending", folder, 16.0)


def test_lesions_of_one_mammogram_are_painted_apart():
    """Two at once are what each alone is."""
    stored, ground = opened(16)
    renderer = echo()
    lesions = [
        insertion(renderer, ground, piece(), 50, 30),
        insertion(renderer, ground, piece(side=40), 120, 40),
    ]
    both = render(ground, stored, lesions, renderer).values
    alone = [render(ground, stored, [placed], renderer).values for placed in lesions]
    for placed, synthetic in zip(lesions, alone, strict=True):
        top, left, bottom, right = placed.blend_mask.support
        np.testing.assert_array_equal(
            both[top:bottom, left:right], synthetic[top:bottom, left:right]
        )


def constant(whole_patch, feather=16.0, grey=0.75, window=(0, 1), flip=True):
    """An infilling that answers with one grey value and a step at half its columns."""

    def call(tri_label):
        image = np.full((len(tri_label), 64, 64, 1), grey, np.float32)
        image[:, :, 32:] += 0.125
        return {"image": image}

    data = DATA.model_copy(
        update={"window": window, "preprocess": PreprocessConfig(flip_right=flip)}
    )
    return NetworkRenderer(
        Generator(call, 64, None, data),
        feather,
        NETWORK_VIEWS["infilling"],
        whole=whole_patch,
        replaces=whole_patch,
    )


@pytest.mark.parametrize("laterality", ["L", "R"])
def test_a_whole_patch_takes_the_place_of_the_tissue_up_to_a_hard_border(laterality):
    """As printed: "the breast tissue patch at original position is replaced by the generated mass
    patch". Its grain goes with it.
    """
    _, ground = opened(16, laterality)
    renderer = constant(True, feather=0.0, window=(0.2, 0.6))
    ground = TargetMammogram(ground.image, ground.mammogram, renderer.data)
    placed = insertion(renderer, ground, piece(), 84, 64)
    ((support, after),) = renderer.render(ground, [placed])
    assert support == placed.placement.window == (68, 48, 132, 112)
    expected = np.full((64, 64), 0.2 + 0.4 * 0.75)
    expected[:, slice(32, None) if laterality == "L" else slice(0, 32)] += 0.4 * 0.125
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_a_whole_patch_may_fade_at_its_border():
    _, ground = opened(16)
    before = ground.image[68:132, 48:112, 0]
    renderer = constant(True, feather=8.0)
    ((support, after),) = renderer.render(ground, [insertion(renderer, ground, piece(), 84, 64)])
    assert support == (69, 49, 131, 111)  # the outermost row has no weight
    t = np.arange(1, 8) / 8
    weights = (3 * t**2 - 2 * t**3)[:, None]
    patch = np.where(np.arange(1, 63) < 32, 0.75, 0.875)
    np.testing.assert_allclose(
        after[:7, 10:50], (before[1:8, 1:63] * (1 - weights) + weights * patch)[:, 10:50], atol=1e-5
    )


def test_a_difference_keeps_the_tissues_grain_and_a_whole_patch_has_none():
    """Of 120 native px at 64 px: what is finer than a px of the patch stays, or goes."""
    _, ground = opened(16)
    spread = {}
    for whole_patch in (False, True):
        renderer = constant(whole_patch, feather=4.0)
        placed = insertion(renderer, ground, piece(side=60), 70, 40)
        ((support, after),) = renderer.render(ground, [placed])
        top = placed.placement.box[0] + 20 - support[0]
        left = placed.placement.box[1] + 5 - support[1]
        spread[whole_patch] = after[top : top + 20, left : left + 15].std()
    assert spread[True] < 1e-6 and spread[False] > 0.005  # the grain's standard deviation is 0.01


def test_whole_patches_are_configured_and_their_recipes_keys_are_others():
    values = {"name": "a", "generator": "g"}
    assert SynthesisConfig(**values).whole_patch is False
    assert SynthesisConfig(**values, whole_patch=True, feather=0).feather == 0
    with pytest.raises(ValueError, match="feather=0"):
        SynthesisConfig(**values, feather=0)
    for renderer_ in ("can", "vanilla"):
        with pytest.raises(ValueError, match=f"whole_patch is not used by renderer={renderer_}"):
            SynthesisConfig(**values, renderer=renderer_, whole_patch=True)


def test_a_generator_of_another_kind_is_told_with_the_renderer_that_fits(
    tiny_infilling, tiny_blending, tiny_contextual
):
    for name, folder, said in (
        ("can", tiny_infilling(), "; renderer=infilling fits it$"),
        ("infilling", tiny_blending(), "; renderer=blending fits it$"),
        ("infilling", tiny_contextual(), "none of its functions leads from tri_label to image$"),
    ):
        with pytest.raises(ExportError, match=said):
            make_renderer(name, folder, 16.0)
