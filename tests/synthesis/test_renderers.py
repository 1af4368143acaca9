"""Renderers: what a network is shown and what comes back, and that no method changes anything
beyond a lesion's support.
"""

import cv2
import numpy as np
import pytest

from tests.small_mammograms import draw_breast, make_mammogram
from tests.synthetic_sets import edit_card, make_transform
from tfmammo.archives.stored import Stored
from tfmammo.baselines import poisson
from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.errors import DataError, ExportError
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.generators import Generator
from tfmammo.synthesis.lesion_bank import LesionPatch
from tfmammo.synthesis.placement import TargetMammogram
from tfmammo.synthesis.recipe import InsertedLesion
from tfmammo.synthesis.renderers import (
    BORDER,
    DirectRenderer,
    NetworkRenderer,
    PlacedLesion,
    make_renderer,
)
from tfmammo.synthesis.synthesizer import render

ROWS = 200
COLS = 160
DATA = DataConfig(size=64, frame="square", context=2, window=(0, 1))


def open_target(bits=16, laterality="L", data=DATA):
    """Stored values of so many bits, and the target of them."""
    stored = Stored.of_image(draw_breast(0, ROWS, COLS, laterality), bits)
    mammogram = make_mammogram(0, stored.image(), laterality=laterality, pathology="normal")
    return stored, TargetMammogram(stored.image(), mammogram, data)


def make_piece(side=32, around=5, grey=None):
    """A disc with grain, or of one intensity."""
    row, col = np.mgrid[:side, :side] - (side - 1) / 2
    image = np.random.default_rng(1).uniform(0.5, 0.9, (side + 2 * around,) * 2).astype(np.float32)
    if grey is not None:
        image[:] = grey
    mask = (np.hypot(row, col) < side / 2).astype(np.uint8)
    return LesionPatch("mass", mask, image, around, make_transform())


def insert(renderer, target, piece, top, left, seeds=()):
    candidate = renderer.prepare_lesion(piece, target.mammogram, seeds)
    spot, blend_mask = renderer.place(top, left, candidate, target.mammogram)
    facts = {"box": spot.box, "window": spot.window, "area": int(piece.mask.sum()), "seed": 0}
    record = InsertedLesion(**facts, region={}, shape="")
    return PlacedLesion(record, spot, blend_mask, candidate)


def crop(image, box):
    return image[box[0] : box[2], box[1] : box[3]]


def make_echo(change=0.0, data=DATA):
    """A blending network that answers with what it is shown pasted in, changed by a constant."""

    def call(pasted):
        assert pasted.shape[1:] == (64, 64, 3) and np.min(pasted) >= 0 and np.max(pasted) <= 1
        return {"image": np.asarray(pasted)[..., 1:2] + np.float32(change)}

    return NetworkRenderer(Generator(call, 64, data, takes="pasted"), 6.0)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_paste_by_hand(bits):
    stored, target = open_target(bits)
    renderer = DirectRenderer("paste")
    piece = make_piece()
    synthetic = render(target, stored, [insert(renderer, target, piece, 60, 40)], renderer)
    expected = stored.values.copy()
    on = piece.mask > 0
    expected[60:92, 40:72][on] = np.rint(piece.image[5:-5, 5:-5] * np.float64(2**bits - 1))[on]
    # where a intensity is just between two
    assert np.abs(synthetic.values.astype(int) - expected).max() <= (bits > 8)
    assert (synthetic.values != expected).mean() < 1e-3


@pytest.mark.parametrize("name", list(poisson.METHODS))
def test_a_method_sees_native_pixels_and_a_border(name):
    _, target = open_target()
    renderer = DirectRenderer(name)
    piece = make_piece()
    placed = insert(renderer, target, piece, 60, 40)
    assert placed.blend_mask.support == placed.placement.window == (57, 37, 95, 75)
    ((box, grey),) = renderer.render(target, [placed])
    lesion = np.ascontiguousarray(piece.image[2:-2, 2:-2])[..., None]
    mask = np.pad(piece.mask, BORDER)[..., None]
    expected = poisson.METHODS[name](target.image[57:95, 37:75].copy(), lesion, mask)
    np.testing.assert_array_equal(grey, expected[..., 0])
    assert box == placed.blend_mask.support


@pytest.mark.parametrize(
    ("corner", "reason"),
    [
        ((2, 40), "nearer than 3 px"),
        ((60, 2), "nearer than 3 px"),
        ((ROWS - 34, 40), "nearer than 3 px"),
        ((-1, 40), "reaches beyond"),
        ((60, 40), "2 x 9 px"),
    ],
)
def test_what_a_method_cant_blend(corner, reason):
    _, target = open_target()
    renderer = DirectRenderer("opencv")
    piece = make_piece()
    if corner == (60, 40):
        image = np.full((12, 19), 0.5, np.float32)
        piece = LesionPatch("mass", np.ones((2, 9), np.uint8), image, 5, make_transform())
    with pytest.raises(DataError, match=reason):
        list(renderer.render(target, [insert(renderer, target, piece, *corner)]))


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.25, 0.875)])
@pytest.mark.parametrize("change", [0.0, 0.125])
def test_an_echo_puts_the_lesion_into_its_mask(change, window, laterality):
    """A network that gives back what was pasted, at a patch that is not scaled, gives the lesion's
    own intensities on the mask alone: whatever the network's grey scale and the breast's side, and
    whatever it adds all over.
    """
    data = DATA.model_copy(update={"window": window})
    _, target = open_target(16, laterality, data)
    piece = make_piece(grey=0.75)
    left = 40 if laterality == "L" else COLS - 72
    renderer = make_echo(change, data)
    placed = insert(renderer, target, piece, 60, left)
    assert placed.placement.window == (44, left - 16, 108, left + 48)  # 64 px: context 2
    ((support, grey),) = renderer.render(target, [placed])
    before = target.image[..., 0]
    after = before.copy()
    crop(after, support)[:] = grey
    on = np.zeros((ROWS, COLS), bool)
    on[60:92, left : left + 32] = piece.mask > 0
    np.testing.assert_allclose(after, np.where(on, 0.75, before), atol=1e-5)


def test_what_a_blending_network_is_shown():
    """Tissue, lesion and mask as training patches are made, each scaled and mirrored alike, the
    lesion with its own surroundings.
    """
    preprocess = PreprocessConfig(denoise=0.6, flip_right=True)
    data = DATA.model_copy(update={"size": 32, "preprocess": preprocess})
    _, target = open_target(16, "R", data)
    seen = {}

    def call(pasted):
        seen["pasted"] = np.asarray(pasted)[0]
        return {"image": np.asarray(pasted)[..., :1]}

    renderer = NetworkRenderer(Generator(call, 32, data, takes="pasted"), 4.0)
    piece = make_piece()
    placed = insert(renderer, target, piece, 60, COLS - 72)
    ((support, grey),) = renderer.render(target, [placed])
    np.testing.assert_array_equal(grey, crop(target.image, support)[..., 0])  # nothing changed

    def show(native):
        small = cv2.resize(native, (32, 32), interpolation=cv2.INTER_AREA)
        return cv2.GaussianBlur(small, (0, 0), 0.6)[:, ::-1]

    native = target.image[44:108, COLS - 88 : COLS - 24, 0].copy()
    tissue = show(native)
    native[11:53, 11:53] = piece.image
    mask = placed.blend_mask.mask[:, ::-1]
    pasted = np.where(mask > 0, show(native), tissue)
    expected = np.stack([tissue, pasted, mask], axis=-1)
    np.testing.assert_allclose(seen["pasted"], expected, atol=1e-6)
    assert mask.sum() == pytest.approx(piece.mask.sum() / 4, rel=0.05)


def test_a_lesion_at_the_windows_border_is_shown_in_part():
    """Where a window is moved inside the mammogram, a lesion's surroundings may reach beyond it."""
    _, target = open_target()
    renderer = make_echo()
    piece = make_piece(around=20)
    placed = insert(renderer, target, piece, 60, 8)
    assert placed.placement.window == (44, 0, 108, 64)
    ((support, grey),) = renderer.render(target, [placed])
    row = 60 - support[0]
    col = 8 - support[1]
    on = piece.mask > 0
    inside = grey[row : row + 32, col : col + 32]
    np.testing.assert_allclose(inside[on], piece.crop(0)[on], atol=1e-5)


def test_lesions_of_one_mammogram_are_rendered_apart():
    """Two at once are what each alone is."""
    stored, target = open_target()
    renderer = make_echo()
    lesions = [
        insert(renderer, target, make_piece(side=side), top, 30)
        for side, top in ((32, 50), (40, 120))
    ]
    both = render(target, stored, lesions, renderer).values
    for lesion in lesions:
        alone = render(target, stored, [lesion], renderer).values
        support = lesion.blend_mask.support
        np.testing.assert_array_equal(crop(both, support), crop(alone, support))


def test_an_export_that_does_not_fit_is_refused(
    tiny_infilling, tiny_blending, tiny_contextual, can
):
    infilling, blending = tiny_infilling(), tiny_blending()
    silent = edit_card(tiny_blending(), '"train_patients"', '"others"')
    for name, folder, error, named in (
        ("can", infilling, ExportError, "; renderer=infilling fits it$"),
        ("blending", infilling, ExportError, "from pasted to"),
        ("infilling", blending, ExportError, "; renderer=blending fits it$"),
        ("infilling", tiny_contextual(), ExportError, "from tri_label to image$"),
        ("vanilla", can(), ExportError, "from noise to"),
        ("blending", silent, DataError, "train_patients"),
    ):
        with pytest.raises(error, match=named):
            make_renderer(name, folder, 16.0)


INFILLING = {"renderer": "infilling", "generator": "g"}
BLENDING = {"renderer": "blending", "generator": "g"}
VANILLA = {"renderer": "vanilla", "generator": "g"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"renderer": "glue"}, "renderer"),
        ({"renderer": "blending"}, "renderer=blending needs a generator"),
        ({"renderer": "vanilla"}, "renderer=vanilla needs a generator"),
        ({}, "renderer=infilling needs a generator"),
        ({"renderer": "poisson", "generator": "g"}, "generator is not used by renderer=poisson"),
        ({"renderer": "mixed", "feather": 4}, "feather is not used by renderer=mixed"),
        ({"renderer": "paste", "size": (20, 20)}, "size is not used by renderer=paste"),
        ({**BLENDING, "sizes": {"height": (9, 1), "width": (9, 1)}}, "sizes is not used"),
        ({"renderer": "opencv", "shapes": {"files": "a.png"}}, "shapes is not used"),
        ({**VANILLA, "shapes": {"files": "a.png"}}, "shapes is not used by renderer=vanilla"),
        ({**VANILLA, "whole_patch": True}, "whole_patch is not used by renderer=vanilla"),
        ({**INFILLING, "renderer": "can", "whole_patch": True}, "whole_patch is not used"),
        ({**INFILLING, "rotate": 90}, "rotate is not used by renderer=infilling"),
        ({**INFILLING, "resize": (1, 1)}, "resize is not used by renderer=infilling"),
        ({**INFILLING, "feather": 0}, "feather=0"),
        ({**INFILLING, "masses": (3, 2)}, "masses"),
        ({**INFILLING, "centre": (1, 1), "masses": (1, 2)}, "centre"),
        ({**INFILLING, "shapes": {"gan": "a", "files": "b"}}, "gan"),
        ({**INFILLING, "shapes": {"plausible": False}}, "plausible"),
        ({"renderer": "paste", "resize": (1.2, 0.8)}, "resize must be two factors"),
        ({"renderer": "paste", "rotate": 181}, "less than or equal to 180"),
    ],
)
def test_no_option_does_nothing(values, reason):
    with pytest.raises(ValueError, match=reason):
        SynthesisConfig(name="a", **values)
    SynthesisConfig(name="a", **INFILLING, whole_patch=True, feather=0)


def make_constant(whole, feather=16.0, window=(0, 1)):
    """An infilling that answers with 0.75, and 0.875 in the right half."""

    def call(tri_label):
        image = np.full((len(tri_label), 64, 64, 1), 0.75, np.float32)
        image[:, :, 32:] += 0.125
        return {"image": image}

    preprocess = PreprocessConfig(flip_right=True)
    data = DATA.model_copy(update={"window": window, "preprocess": preprocess})
    return NetworkRenderer(Generator(call, 64, data), feather, whole)


@pytest.mark.parametrize("laterality", ["L", "R"])
def test_a_whole_patch_replaces_the_tissue_up_to_a_hard_border(laterality):
    """As printed: "the breast tissue patch at original position is replaced by the generated mass
    patch". Its grain goes with it.
    """
    renderer = make_constant(True, feather=0.0, window=(0.2, 0.6))
    _, target = open_target(16, laterality, renderer.data)
    placed = insert(renderer, target, make_piece(), 84, 64)
    ((support, after),) = renderer.render(target, [placed])
    assert support == placed.placement.window == (68, 48, 132, 112)
    expected = np.full((64, 64), 0.2 + 0.4 * 0.75)
    expected[:, slice(32, None) if laterality == "L" else slice(0, 32)] += 0.4 * 0.125
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_a_difference_keeps_the_tissues_grain_and_a_whole_patch_has_none():
    """120 native px at 64 px: what is finer than a px of the patch stays, or goes."""
    spread = {}
    for whole in (False, True):
        renderer = make_constant(whole, feather=4.0)
        _, target = open_target(16, "L", renderer.data)
        placed = insert(renderer, target, make_piece(side=60), 70, 40)
        ((support, after),) = renderer.render(target, [placed])
        top = placed.placement.box[0] + 20 - support[0]
        left = placed.placement.box[1] + 5 - support[1]
        spread[whole] = after[top : top + 20, left : left + 15].std()
    assert spread[True] < 1e-6 and spread[False] > 0.005  # the grain's standard deviation is 0.01
