"""Properties of tfmammo.archives.phantom."""

import pickle

import cv2
import numpy as np
import pytest

from tfmammo.archives import phantom
from tfmammo.mammogram import Mammogram


@pytest.fixture(scope="module")
def archive() -> list[Mammogram]:
    return phantom.read()


@pytest.fixture(scope="module")
def rendered(archive) -> list[tuple[Mammogram, np.ndarray]]:
    return [(mammogram, mammogram.pixels()[..., 0]) for mammogram in archive[:8]]


def same(a: Mammogram, b: Mammogram) -> bool:
    facts = ("image_id", "patient_id", "pathology", "birads", "density")
    outlines = [[lesion.outlines[0].tolist() for lesion in one.lesions] for one in (a, b)]
    return outlines[0] == outlines[1] and all(getattr(a, it) == getattr(b, it) for it in facts)


def test_records_and_pixels_repeat_bit_for_bit(archive):
    assert all(same(a, b) for a, b in zip(archive, phantom.read(), strict=True))
    image = archive[1].pixels()
    np.testing.assert_array_equal(archive[1].pixels(), image)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(archive[1])).pixels(), image)


def test_a_smaller_archive_is_the_beginning_of_a_larger(archive):
    few = phantom.read(count=20)
    assert len(few) == 20 and all(map(same, few, archive))


def test_another_seed_is_another_archive(archive):
    other = phantom.read(count=4, seed=1)
    assert not {record.patient_id for record in other} & {record.patient_id for record in archive}


def test_enough_mammograms_have_masses_and_some_are_normal(archive):
    masses = [sum(lesion.kind == "mass" for lesion in record.lesions) for record in archive]
    assert 2 / 3 <= np.mean(np.array(masses) > 0) < 1 and set(masses) == {0, 1, 2}
    assert {record.pathology for record in archive} == {"normal", "benign", "malignant"}
    for record in archive:
        is_normal = record.pathology == "normal"
        assert is_normal == (not record.lesions) == (record.birads == "1")


@pytest.fixture(scope="module")
def masses():
    records = phantom.read(count=160, seed=5)
    return [it for record in records for it in record.lesions if it.kind == "mass"]


def test_pathology_goes_with_shape_and_margin(masses):
    assert {mass.shape for mass in masses} == {"round", "oval", "lobular", "irregular"}
    margins = {"circumscribed", "microlobulated", "indistinct", "spiculated"}
    assert {mass.margin for mass in masses} == margins

    def malignant(fact, word):
        chosen = [mass for mass in masses if getattr(mass, fact) == word]
        return np.mean([mass.pathology == "malignant" for mass in chosen])

    assert malignant("margin", "spiculated") == 1 and malignant("margin", "circumscribed") < 0.2
    assert malignant("shape", "irregular") > 0.8 and malignant("shape", "oval") < 0.4


def test_pixels_are_a_mammogram_whose_masses_lie_in_the_breast_and_stand_out(rendered):
    count = 0
    for record, image in rendered:
        assert image.dtype == np.float32 and image.shape == (record.rows, record.cols)
        assert image.min() >= 0 and image.max() <= 1
        wall, air = (0, -1) if record.laterality == "L" else (-1, 0)
        assert image[350:650, wall].mean() > 5 * image[350:650, air].mean()
        bright = (cv2.GaussianBlur(image, (0, 0), 2) > 0.08).astype(np.uint8)
        breast = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, np.ones((9, 9)))
        for lesion in record.lesions:
            mask = lesion.mask(record.rows, record.cols)
            assert (breast >= mask).all(), record.image_id
            if lesion.kind == "mass":
                count += 1
                width = 2 * int(np.sqrt(mask.sum() / np.pi) / 2) + 1
                element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
                ring = cv2.dilate(mask, element) - mask
                assert image[mask == 1].mean() > image[ring == 1].mean() + 0.02, record.image_id
    assert count >= 6


def test_texture_follows_a_power_law_near_3():
    a, b = phantom._draw_power_law(np.random.default_rng(0), 3.0)
    assert a.std() == pytest.approx(1, abs=1e-3)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
    power = np.abs(np.fft.fft2(a)) ** 2
    frequency = np.hypot(np.fft.fftfreq(phantom.ROWS)[:, None], np.fft.fftfreq(phantom.COLS)[None])
    edges = np.geomspace(0.005, 0.4, 12)
    bands = zip(edges, edges[1:], strict=False)
    means = [power[(frequency >= low) & (frequency < high)].mean() for low, high in bands]
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(means), 1)[0]
    assert slope == pytest.approx(-3, abs=0.15)


def test_calcifications_are_bright_specks_in_their_outline(archive):
    clusters = [(record, it) for record in archive for it in record.lesions]
    record, lesion = next(pair for pair in clusters if pair[1].kind == "calcification")
    image = record.pixels()[..., 0]
    mask = lesion.mask(record.rows, record.cols)
    specks = image - cv2.GaussianBlur(image, (0, 0), 6)
    assert np.quantile(specks[mask == 1], 0.99) > 0.1
    ring = cv2.dilate(mask, np.ones((25, 25))) - mask
    assert np.quantile(specks[ring == 1], 0.99) < 0.1
