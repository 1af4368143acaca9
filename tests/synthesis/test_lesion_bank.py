"""The lesion bank: which lesions are taken and whose, and what rotation, mirroring and two spacings
make of one.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.archives.writers import folder as writer
from tests.synthetic_sets import make_transform, save_split
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, Mammogram, MaskedLesion, Skipped
from tfmammo.synthesis import lesion_bank
from tfmammo.synthesis.config import PatientsConfig, SynthesisConfig
from tfmammo.synthesis.lesion_bank import LesionBank, SourceLesion
from tfmammo.synthesis.sources import Sources

ROWS = 90
COLS = 120
TOP, LEFT, HEIGHT, WIDTH = 30, 50, 14, 9
# an L of that box
CORNERS = np.array([[30, 50], [30, 53], [38, 53], [38, 58], [43, 58], [43, 50]], np.float32)


def noise():
    """Intensities of 16 bits, so that storing them loses nothing."""
    return (np.random.default_rng(0).integers(0, 65536, (ROWS, COLS, 1)) / 65535).astype(np.float32)


def ramp():
    """0.002 brighter from column to column, 0.001 from row to row."""
    row, col = np.mgrid[:ROWS, :COLS]
    return (0.2 + 0.001 * row + 0.002 * col).astype(np.float32)[..., None]


def record(image=noise, corners=CORNERS, **facts):
    facts = {"archive": "made", "patient_id": "p", "image_id": "i", **facts}
    size = {"rows": ROWS, "cols": COLS}
    lesions = (Lesion.from_outline("mass", np.float32(corners), ROWS, COLS),)
    return Mammogram(**{**size, "read": image, "lesions": lesions, **facts})


def target(**facts):
    facts = {"image_id": "t", "patient_id": "q", **facts}
    return record(partial(np.zeros, (800, 800, 1), np.float32), rows=800, cols=800, **facts)


def turned(angle=0.0, factor=1.0, mirrored=False, donor=None, into=None):
    details = make_transform(angle=angle, factor=factor, mirrored=mirrored)
    return lesion_bank.transform(SourceLesion(donor or record(), 0), details, into or target())


MASK = record().lesions[0].mask(ROWS, COLS)[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]


def shown(image, around):
    return image[TOP - around : TOP + HEIGHT + around, LEFT - around : LEFT + WIDTH + around, 0]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_quarter_turns_and_mirror_images_are_exact(quarters, mirrored):
    piece = turned(angle=(0, 90, 180, -90)[quarters], mirrored=mirrored)
    mask, image = (
        np.rot90(part[:, ::-1] if mirrored else part, quarters)
        for part in (MASK, shown(noise(), piece.around))
    )
    np.testing.assert_array_equal(piece.mask, mask)
    assert piece.around == 4 and piece.mask.dtype == np.uint8 and piece.image.dtype == np.float32
    np.testing.assert_array_equal(piece.image, image)
    np.testing.assert_array_equal(piece.crop(2), piece.image[2:-2, 2:-2])


def test_a_resized_ramp_is_a_ramp():
    """Twice as large: a step of half as much from pixel to pixel, about the same value in the
    middle of the box.
    """
    piece = turned(factor=2, donor=record(ramp))
    rows, cols = piece.mask.shape
    assert (rows, cols) == (28, 18) and piece.mask.sum() == pytest.approx(4 * MASK.sum(), rel=0.02)
    row, col = np.mgrid[: piece.image.shape[0], : piece.image.shape[1]]
    middle = [(length - 1) / 2 for length in piece.image.shape]
    expected = 0.2 + 0.001 * ((row - middle[0]) / 2 + 36.5) + 0.002 * ((col - middle[1]) / 2 + 54)
    # A tenth of a step: OpenCV's cubic kernel gives a line back but for that. Half a pixel's shift
    # would be five times as much.
    np.testing.assert_allclose(piece.image, expected, atol=2e-4)


@pytest.mark.parametrize("angle", [17.0, -45.0, 133.3])
def test_any_angle_keeps_area_and_grey_values(angle):
    piece = turned(angle=angle, factor=3, donor=record(ramp))
    assert piece.mask.sum() == pytest.approx(9 * MASK.sum(), rel=0.03)
    assert all(side.any() for side in (*piece.mask[[0, -1]], *piece.mask.T[[0, -1]]))
    inside = piece.crop(0)[piece.mask > 0]
    assert inside.mean() == pytest.approx(shown(ramp(), 0)[MASK > 0].mean(), abs=5e-4)
    # Counter-clockwise as shown: what was to the right, and brighter, is up for a positive
    # angle. 0.002 a column, 0.001 a row.
    down, right = (gradient.mean() * 3 for gradient in np.gradient(piece.image))
    cosine = np.cos(np.deg2rad(angle))
    sine = np.sin(np.deg2rad(angle))
    assert right == pytest.approx(0.002 * cosine + 0.001 * sine, abs=5e-5)
    assert down == pytest.approx(0.001 * cosine - 0.002 * sine, abs=5e-5)


@pytest.mark.parametrize(
    ("own", "other", "angle", "expected"),
    [
        ((0.1, 0.1), (0.05, 0.05), 0, (28, 18)),  # twice as many pixels for the same mm
        ((0.1, 0.2), (0.1, 0.1), 0, (14, 18)),
        ((0.1, 0.2), (0.1, 0.1), 90, (18, 14)),  # turned in mm, not in pixels that are no squares
        ((0.1, 0.1), (0.1, 0.05), 90, (9, 28)),
        (None, None, 90, (9, 14)),
    ],
)
def test_millimetres_stay_millimetres(own, other, angle, expected):
    piece = turned(angle=angle, donor=record(ramp, spacing=own), into=target(spacing=other))
    assert np.abs(np.subtract(piece.mask.shape, expected)).max() <= 1


def test_nothing_aliases_that_shrinks():
    """Stripes of one pixel, a quarter as large: grey, where sampling every fourth pixel would keep
    stripes or one of their values.
    """
    stripes = partial(np.tile, np.array([[[0.0], [1.0]]], np.float32), (ROWS, COLS // 2, 1))
    donor = record(stripes, [[20, 20], [20, 100], [70, 100], [70, 20]])
    piece = turned(factor=0.25, donor=donor)
    assert piece.crop(0).mean() == pytest.approx(0.5, abs=0.05) and piece.crop(0).std() < 0.2
    assert turned(donor=donor).crop(0).std() == pytest.approx(0.5, abs=0.01)


def test_the_largest_of_several_parts_is_inserted():
    small, large = (
        np.float32([[top, 20], [top, 20 + side], [top + side, 20 + side], [top + side, 20]])
        for top, side in ((20, 5), (40, 19))
    )
    donor = record(lesions=(Lesion("mass", (20, 20, 60, 40), (small, large)),))
    assert turned(donor=donor).mask.shape == (20, 20) and turned(donor=donor).mask.all()


CUT = record(corners=[[0, 50], [0, 60], [20, 60]])
EMPTY = record(image_id="e", lesions=(replace(record().lesions[0], box=(30, 50, 30, 50)),))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"factor": 100}, "1400 x 900 px"),
        ({"factor": 0.01}, "0.1 x 0.1 px"),
        ({"donor": CUT}, "lesion 0 of i: .*touches"),
        ({"donor": EMPTY}, "lesion 0 of e: its mask is empty"),
    ],
)
def test_what_cant_be_inserted(values, reason):
    with pytest.raises(DataError, match=reason):
        turned(**values)


def test_unusable_lesions_are_noted():
    region = partial(np.zeros, (ROWS, COLS), np.uint8)
    nothing = record(image_id="n", lesions=(MaskedLesion("mass", region),))
    skipped = Skipped()
    good = SourceLesion(record(), 0)
    bad = [SourceLesion(mammogram, 0) for mammogram in (CUT, EMPTY, nothing)]
    assert LesionBank((*bad, good)).find_usable(skipped) == [good]
    assert skipped.reasons == {
        "i": f"lesion 0: {lesion_bank.CUT_OFF}",
        "e": "lesion 0: its mask is empty",
        "n": "lesion 0: the mask of a lesion marks nothing",
    }
    with pytest.raises(DataError, match="lesion 0: .*touches"):
        LesionBank((bad[0],)).find_usable(Skipped())


def draw(lesions, mammogram, random=None, trained_on=None, resize=(0.8, 1.2), rotate=180.0):
    """A lesion of a bank for a mammogram."""
    random = random or np.random.default_rng(0)
    return LesionBank(tuple(lesions)).draw(mammogram, random, resize, rotate, trained_on)


@pytest.mark.parametrize(
    ("own", "other", "name", "reason"),
    [
        ((0.1, 0.1), (0.1, 0.1), "other", None),
        (None, None, "made", None),
        ((0.1, 0.1), None, "made", "^its mm per px"),
        (None, (0.1, 0.1), "made", "^the mm per px of lesions"),
        (None, None, "other", "^neither its mm per px"),
    ],
)
def test_sizes_must_be_known_in_the_mammogram(own, other, name, reason):
    lesions = [SourceLesion(record(spacing=own, archive=name), 0)]
    if reason is None:
        assert draw(lesions, target(spacing=other)).mask.any()
    else:
        with pytest.raises(DataError, match=reason):
            draw(lesions, target(spacing=other))


def test_what_is_drawn():
    donors = [
        SourceLesion(record(image_id=side or "none", laterality=side, patient_id=f"p{side}"), 0)
        for side in ("L", "R", None)
    ]
    random = np.random.default_rng(0)

    def draw_facts(count, mammogram, *settings):
        records = [draw(donors, mammogram, random, *settings).record for _ in range(count)]
        return records, {(each.image_id, each.mirrored, each.trained_on) for each in records}

    records, facts = draw_facts(300, target(laterality="L"), {"pR"}, (0.9, 1.5), 30)
    assert facts == {("L", False, False), ("R", True, True), ("none", False, False)}
    angles, factors = np.array([(each.angle, each.factor) for each in records]).T
    assert angles.min() < -28 and angles.max() > 28 and np.abs(angles).max() <= 30
    assert abs(angles.mean()) < 4
    assert 0.9 <= factors.min() < 0.92 and 1.48 < factors.max() <= 1.5
    own = replace(donors[0].mammogram, laterality=None)
    assert draw_facts(60, own)[1] == {("R", False, None), ("none", False, None)}
    with pytest.raises(DataError, match="there are no lesions but its own"):
        draw(donors[:1], donors[0].mammogram, random)


@pytest.fixture
def on_disk(tmp_path):
    """Four mammograms of three patients: two with masses, two without."""
    facts = [("a", "benign"), ("b", "malignant"), ("b", None), ("c", "normal")]
    records = [
        record(image_id=str(i), patient_id=patient, pathology=pathology, bits=16)
        for i, (patient, pathology) in enumerate(facts)
    ]
    records[2:] = [replace(each, lesions=()) for each in records[2:]]
    writer.write(records, tmp_path / "folder")
    return DataConfig(name="folder", root=tmp_path / "folder")


def open_sources(lesions, **values):
    """What a synthesis takes from archives."""
    values = {"data": DataConfig(), "mammograms": "all", **values}
    return Sources(SynthesisConfig(name="a", renderer="paste", lesions=lesions, **values))


def load_bank(lesions, **values):
    """The lesions of a config's bank, as a synthesis loads it."""
    sources = open_sources(lesions, **values)
    return sources.lesion_bank.lesions


def test_the_bank_holds_what_is_asked_for(on_disk, tmp_path):
    records = archive.read(on_disk.root)
    drawn = [(donor.mammogram.image_id, donor.number) for donor in load_bank(on_disk)]
    assert drawn == [(mammogram.image_id, 0) for mammogram in records[:2]]
    (malignant,) = load_bank(on_disk, pathology="malignant")
    assert malignant.mammogram.image_id == records[1].image_id
    assert malignant.lesion.mask(ROWS, COLS).sum() == MASK.sum()
    boxes = DataConfig(name="folder", root=tmp_path / "boxes")
    writer.write([record()], boxes.root, annotations="boxes")
    nowhere = on_disk.model_copy(update={"root": tmp_path / "no"})
    calcifications = on_disk.model_copy(update={"kinds": ("calcification",)})
    for values, error, named in (
        ({"lesions": calcifications}, DataError, "calcification"),
        ({"lesions": nowhere}, ConfigError, "lesions.root: no such folder"),
        ({"lesions": boxes, "pathology": "benign"}, DataError, "benign mass"),
    ):
        with pytest.raises(error, match=named):
            load_bank(**values)


def test_patients_of_one_side_of_a_split(on_disk, tmp_path):
    records = archive.read(on_disk.root)
    a, b, c = (records[row].patient_id for row in (0, 1, 3))
    file = tmp_path / "split.json"

    def side(name, fold=0, data=on_disk, lesions=on_disk):
        """Patients of the lesions, and of the mammograms to insert into."""
        patients = PatientsConfig(split_file=file, fold=fold, side=name)
        sources = open_sources(lesions, data=data, patients=patients)
        mammograms = sources.mammograms
        return {source.mammogram.patient_id for source in sources.lesions}, {
            mammogram.patient_id for mammogram in mammograms
        }

    save_split(file, {a: 0, b: 1, c: 1})
    assert side("train") == ({b}, {b, c})
    assert side("held_out") == side("train", fold=1) == ({a}, {a})
    unset = {"folds": None, "seed": None, "stratify": None}
    save_split(file, {a: "test", b: "train", c: "train"}, split="official", **unset)
    assert side("train") == ({b}, {b, c}) and side("held_out") == ({a}, {a})
    phantom = DataConfig(phantoms=8)
    everybody = {each.patient_id for each in archives.read_mammograms(phantom, Skipped())}
    assert side("held_out", data=phantom) == ({a}, everybody), "phantoms are on no side"
    with pytest.raises(DataError, match="split.json"):
        side("train", data=phantom, lesions=phantom)
    save_split(file, {a: 0, b: 1})  # c has no lesion to insert
    assert load_bank(on_disk, data=on_disk, patients=PatientsConfig(split_file=file))
    paper = {"split": "paper", "folds": None, "stratify": None}
    for places, changes, fold, reason in [
        ({a: 0, c: 1}, {}, 0, "does not know 1 of 2 patients"),
        ({a: 0, b: 0, c: 1}, {}, 0, "train side"),
        ({a: "both"}, paper, 0, "split of the kind paper"),
        ({a: 0, b: 1, c: 1}, {}, 2, "has no fold 2, only 2 folds"),
    ]:
        save_split(file, places, **changes)
        patients = PatientsConfig(split_file=file, fold=fold)
        with pytest.raises(DataError, match=reason):
            load_bank(on_disk, data=on_disk, patients=patients)
