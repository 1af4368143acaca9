"""Properties of tfmammo.archives.phantom."""

import pickle

import cv2
import numpy as np
import pytest

from tests.archives.tools import dice
from tfmammo.archives import phantom, phantom_anatomy
from tfmammo.mammogram import Mammogram


@pytest.fixture(scope="module")
def archive() -> list[Mammogram]:
    return phantom.read()


@pytest.fixture(scope="module")
def rendered(archive) -> list[tuple[Mammogram, np.ndarray]]:
    return [(mammogram, mammogram.pixels()[..., 0]) for mammogram in archive[:8]]


def same(a: Mammogram, b: Mammogram) -> bool:
    facts = [
        (
            (m.image_id, m.patient_id, m.pathology, m.birads, m.density),
            [(lesion.box, lesion.outlines[0].tolist()) for lesion in m.lesions],
        )
        for m in (a, b)
    ]
    return facts[0] == facts[1]


def test_records_and_pixels_repeat_bit_for_bit(archive):
    assert all(same(a, b) for a, b in zip(archive, phantom.read(), strict=True))
    image = archive[1].pixels()
    np.testing.assert_array_equal(archive[1].pixels(), image)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(archive[1])).pixels(), image)


def test_a_smaller_archive_is_the_beginning_of_a_larger(archive):
    for count in (0, 1, 20):
        few = phantom.read(count=count)
        assert len(few) == count
        assert all(same(a, b) for a, b in zip(few, archive[:count], strict=True))


def test_another_seed_is_another_archive(archive):
    other = phantom.read(count=4, seed=1)
    assert not {record.patient_id for record in other} & {record.patient_id for record in archive}
    assert np.abs(other[0].pixels() - archive[0].pixels()).mean() > 0.01


def test_names_are_unique_and_patients_have_one_or_two_breasts(archive):
    assert len({record.image_id for record in archive}) == len(archive)
    breasts = {record.patient_id: set() for record in archive}
    for record in archive:
        breasts[record.patient_id].add((record.laterality, record.view))
    assert {len(views) for views in breasts.values()} == {2, 4}
    assert {view for views in breasts.values() for view in views} == {
        (side, view) for side in "LR" for view in ("CC", "MLO")
    }


@pytest.mark.parametrize("seed", range(4))
def test_enough_mammograms_have_masses_and_some_are_normal(seed):
    records = phantom.read(count=48, seed=seed)
    masses = [sum(lesion.kind == "mass" for lesion in record.lesions) for record in records]
    assert 2 / 3 <= np.mean(np.array(masses) > 0) < 1
    assert set(masses) == {0, 1, 2}
    assert {record.pathology for record in records} == {"normal", "benign", "malignant"}
    assert all(
        (record.pathology == "normal") == (not record.lesions) == (record.birads == "1")
        for record in records
    )


def test_lesions_of_one_mammogram_lie_apart():
    several = [record for record in phantom.read(count=160, seed=5) if len(record.lesions) > 1]
    for record in several:
        drawn = sum(lesion.mask(record.rows, record.cols) for lesion in record.lesions)
        assert drawn.max() == 1, record.image_id
    assert len(several) > 10


@pytest.fixture(scope="module")
def masses():
    return [
        lesion
        for record in phantom.read(count=160, seed=5)
        for lesion in record.lesions
        if lesion.kind == "mass"
    ]


def test_pathology_goes_with_shape_and_margin(masses):
    assert {mass.shape for mass in masses} == {"round", "oval", "lobular", "irregular"}
    margins = {"circumscribed", "microlobulated", "indistinct", "spiculated"}
    assert {mass.margin for mass in masses} == margins

    def malignant(fact, word):
        chosen = [mass for mass in masses if getattr(mass, fact) == word]
        return np.mean([mass.pathology == "malignant" for mass in chosen])

    assert malignant("margin", "spiculated") == 1 and malignant("margin", "circumscribed") < 0.2
    assert malignant("shape", "irregular") > 0.8 and malignant("shape", "oval") < 0.4


def solidity(mass) -> float:
    outline = mass.outlines[0]
    return cv2.contourArea(outline) / cv2.contourArea(cv2.convexHull(outline))


def elongation(mass) -> float:
    sides = cv2.minAreaRect(mass.outlines[0])[1]
    return max(sides) / min(sides)


def test_shapes_look_like_their_names(masses):
    smooth = [mass for mass in masses if mass.margin in ("circumscribed", "indistinct")]
    plain = {shape: [m for m in smooth if m.shape == shape] for shape in phantom_anatomy.SHAPES}
    solid = {shape: np.median([solidity(mass) for mass in plain[shape]]) for shape in plain}
    assert all(elongation(mass) < 1.35 for mass in plain["round"])
    assert np.median([elongation(mass) for mass in plain["oval"]]) > 1.3
    assert solid["irregular"] < solid["oval"] - 0.01 and solid["lobular"] < solid["round"]


def test_pixels_are_a_mammogram(rendered):
    for record, image in rendered:
        assert image.dtype == np.float32
        assert image.shape == (record.rows, record.cols) == (1024, 832)
        assert image.min() >= 0 and image.max() <= 1
        wall, air = (0, -1) if record.laterality == "L" else (-1, 0)
        middle = slice(350, 650)
        assert image[middle, wall].mean() > 5 * image[middle, air].mean()


def test_pectoral_muscle_only_in_mlo(rendered):
    for record, image in rendered:
        side = slice(0, 80) if record.laterality == "L" else slice(-80, None)
        corner = image[:40, side].mean()
        fat = np.median(image[image > 0.15])
        assert (corner > fat) == (record.view == "MLO"), record.image_id


def test_masses_lie_in_the_breast_and_stand_out_from_their_surroundings(rendered):
    count = 0
    for record, image in rendered:
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


def test_no_threshold_segments_the_masses(rendered):
    """The task is not trivial: even the best threshold of each crop, chosen knowing the truth,
    falls far short of the outline.
    """
    scores = []
    for record, image in rendered:
        for lesion in (lesion for lesion in record.lesions if lesion.kind == "mass"):
            top, left, bottom, right = lesion.box
            margin = max(bottom - top, right - left) // 4
            rows = slice(max(top - margin, 0), bottom + margin)
            cols = slice(max(left - margin, 0), right + margin)
            mask = lesion.mask(record.rows, record.cols)[rows, cols] == 1
            values = image[rows, cols]
            thresholds = np.quantile(values, np.linspace(0.05, 0.95, 19))
            scores.append(max(dice(mask, values > threshold) for threshold in thresholds))
    assert 0.5 < np.mean(scores) < 0.85


def test_texture_follows_a_power_law_near_3():
    a, b = phantom._draw_power_law(np.random.default_rng(0), 3.0)
    assert a.std() == pytest.approx(1, abs=1e-3)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
    power = np.abs(np.fft.fft2(a)) ** 2
    frequency = np.hypot(np.fft.fftfreq(phantom.ROWS)[:, None], np.fft.fftfreq(phantom.COLS)[None])
    edges = np.geomspace(0.005, 0.4, 12)
    means = [
        power[(frequency >= low) & (frequency < high)].mean()
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(means), 1)[0]
    assert slope == pytest.approx(-3, abs=0.15)


def test_calcifications_are_bright_specks_in_their_outline(archive):
    clusters = [(record, it) for record in archive for it in record.lesions]
    clusters = [(record, it) for record, it in clusters if it.kind == "calcification"]
    assert len(clusters) >= 2
    for record, lesion in clusters[:2]:
        image = record.pixels()[..., 0]
        mask = lesion.mask(record.rows, record.cols)
        specks = image - cv2.GaussianBlur(image, (0, 0), 6)
        assert np.quantile(specks[mask == 1], 0.99) > 0.1
        ring = cv2.dilate(mask, np.ones((25, 25))) - mask
        assert np.quantile(specks[ring == 1], 0.99) < 0.1
