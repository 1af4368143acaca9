"""The lesion bank: which lesions are taken and whose, and what turning, mirroring and two
spacings make of one.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.archives.writers import folder as writer
from tests.synthetic_sets import make_transform
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.errors import ArchiveError, ConfigError, DataError
from tfmammo.mammogram import Lesion, Mammogram, MaskedLesion, Skipped, key_check
from tfmammo.synthesis import lesion_bank
from tfmammo.synthesis.config import PatientsConfig, SynthesisConfig
from tfmammo.synthesis.lesion_bank import LesionBank
from tfmammo.synthesis.sources import PatientSubset, SourceLesion, Sources
from tfmammo.synthesis.synthesizer import Synthesizer

ROWS = 90
COLS = 120
TOP = 30
LEFT = 50
HEIGHT = 14
WIDTH = 9
# an L, whose box is 14 x 9 px
CORNERS = np.array([[30, 50], [30, 53], [38, 53], [38, 58], [43, 58], [43, 50]], np.float32)


def noise():
    """Grey values of 16 bits, so that storing them loses nothing."""
    return (np.random.default_rng(0).integers(0, 65536, (ROWS, COLS, 1)) / 65535).astype(np.float32)


def ramp():
    """0.002 brighter from column to column, 0.001 from row to row."""
    row, col = np.mgrid[:ROWS, :COLS]
    return (0.2 + 0.001 * row + 0.002 * col).astype(np.float32)[..., None]


def record(image=noise, corners=CORNERS, rows=ROWS, cols=COLS, **facts):
    lesions = (Lesion.from_outline("mass", corners, rows, cols),) if corners is not None else ()
    return Mammogram(
        **{
            "archive": "made",
            "patient_id": "p",
            "image_id": "i",
            "rows": rows,
            "cols": cols,
            "read": image,
            "lesions": lesions,
            **facts,
        }
    )


def target(rows=800, cols=800, **facts):
    return record(
        partial(np.zeros, (rows, cols, 1), np.float32),
        None,
        rows,
        cols,
        **{"image_id": "t", "patient_id": "q", **facts},
    )


def turned(angle=0.0, factor=1.0, mirrored=False, donor=None, into=None):
    details = make_transform(angle=angle, factor=factor, mirrored=mirrored)
    return lesion_bank.transform(SourceLesion(donor or record(), 0), details, into or target())


def mask():
    return record().lesions[0].mask(ROWS, COLS)[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]


def shown(image, around):
    return image[TOP - around : TOP + HEIGHT + around, LEFT - around : LEFT + WIDTH + around, 0]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_quarter_turns_and_mirror_images_are_exact(quarters, mirrored):
    piece = turned(angle=(0, 90, 180, -90)[quarters], mirrored=mirrored)
    expected = [
        np.rot90(part[:, ::-1] if mirrored else part, quarters)
        for part in (mask(), shown(noise(), piece.around))
    ]
    np.testing.assert_array_equal(piece.mask, expected[0])
    assert piece.around == 4 and piece.mask.dtype == np.uint8 and piece.image.dtype == np.float32
    np.testing.assert_array_equal(piece.image, expected[1])
    np.testing.assert_array_equal(piece.crop(2), piece.image[2:-2, 2:-2])


def test_a_resized_ramp_is_a_ramp():
    """Twice as large: a step of half as much from pixel to pixel, about the same value in the
    middle of the box.
    """
    piece = turned(factor=2, donor=record(ramp))
    rows, cols = piece.mask.shape
    assert (rows, cols) == (28, 18) and piece.mask.sum() == pytest.approx(
        4 * mask().sum(), rel=0.02
    )
    row, col = np.mgrid[: piece.image.shape[0], : piece.image.shape[1]]
    middle = [(length - 1) / 2 for length in piece.image.shape]
    expected = 0.2 + 0.001 * ((row - middle[0]) / 2 + 36.5) + 0.002 * ((col - middle[1]) / 2 + 54)
    # A tenth of a step: OpenCV's cubic kernel gives a line back but for that. Half a pixel's shift
    # would be five times as much.
    np.testing.assert_allclose(piece.image, expected, atol=2e-4)


def test_any_angle_keeps_area_and_grey_values():
    for angle in (17.0, -45.0, 133.3):
        piece = turned(angle=angle, factor=3, donor=record(ramp))
        assert piece.mask.sum() == pytest.approx(9 * mask().sum(), rel=0.03)
        assert (
            piece.mask[0].any()
            and piece.mask[-1].any()
            and piece.mask[:, 0].any()
            and piece.mask[:, -1].any()
        )
        inside = piece.crop(0)[piece.mask > 0]
        assert inside.mean() == pytest.approx(shown(ramp(), 0)[mask() > 0].mean(), abs=5e-4)
        # Counter-clockwise as shown: what was to the right, and brighter, lies up for a positive
        # angle. 0.002 a column, 0.001 a row.
        down, right = (np.gradient(piece.image)[axis].mean() * 3 for axis in (0, 1))
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
    corners = np.array([[20, 20], [20, 100], [70, 100], [70, 20]], np.float32)
    piece = turned(factor=0.25, donor=record(stripes, corners))
    assert piece.crop(0).mean() == pytest.approx(0.5, abs=0.05) and piece.crop(0).std() < 0.2
    assert turned(donor=record(stripes, corners)).crop(0).std() == pytest.approx(0.5, abs=0.01)


def test_of_several_parts_the_largest_is_set_in():
    small, large = (
        np.array(
            [[top, 20], [top, 20 + side], [top + side, 20 + side], [top + side, 20]], np.float32
        )
        for top, side in ((20, 5), (40, 19))
    )
    donor = record(lesions=(Lesion("mass", (20, 20, 60, 40), (small, large)),))
    assert turned(donor=donor).mask.shape == (20, 20) and turned(donor=donor).mask.all()


def test_what_cant_be_set_in():
    with pytest.raises(DataError, match="1400 x 900 px"):
        turned(factor=100)
    with pytest.raises(DataError, match="0.1 x 0.1 px"):
        turned(factor=0.01)
    cut = record(corners=np.array([[0, 50], [0, 60], [20, 60]], np.float32))
    with pytest.raises(DataError, match="lesion 0 of i: .*touches"):
        turned(donor=cut)
    empty = record(lesions=(replace(record().lesions[0], box=(30, 50, 30, 50)),))
    with pytest.raises(DataError, match="lesion 0 of i: its mask is empty"):
        turned(donor=empty)
    nothing = record(lesions=(MaskedLesion("mass", partial(np.zeros, (ROWS, COLS), np.uint8)),))
    skipped = Skipped()
    good = SourceLesion(record(), 0)
    assert LesionBank(
        (
            SourceLesion(cut, 0),
            good,
            SourceLesion(replace(empty, image_id="e"), 0),
            SourceLesion(replace(nothing, image_id="n"), 0),
        )
    ).find_usable(skipped) == [good]
    assert skipped.reasons == {
        "i": f"lesion 0: {lesion_bank.CUT_OFF}",
        "e": "lesion 0: its mask is empty",
        "n": "lesion 0: the mask of a lesion marks nothing",
    }
    with pytest.raises(DataError, match="lesion 0: .*touches"):
        LesionBank((SourceLesion(cut, 0),)).find_usable(Skipped())


def draw(lesions, mammogram, random=None, trained_on=None, resize=(0.8, 1.2), rotate=180.0):
    """A lesion of a bank for a mammogram."""
    random = random or np.random.default_rng(0)
    return LesionBank(tuple(lesions)).draw(mammogram, random, resize, rotate, trained_on)


def test_sizes_that_are_not_known():
    def draw_one(own, other, archive="made"):
        lesion = SourceLesion(record(spacing=own, archive=archive), 0)
        return draw([lesion], target(spacing=other))

    assert draw_one((0.1, 0.1), (0.1, 0.1), "other").mask.any()
    assert draw_one(None, None).mask.any()
    for own, other, archive_, reason in [
        (
            (0.1, 0.1),
            None,
            "made",
            "^its mm per px",
        ),
        (None, (0.1, 0.1), "made", "^the mm per px of lesions"),
        (
            None,
            None,
            "other",
            "^neither its mm per px",
        ),
    ]:
        with pytest.raises(DataError, match=reason):
            draw_one(own, other, archive_)


def test_what_is_drawn():
    donors = [
        SourceLesion(record(image_id=side or "none", laterality=side, patient_id=f"p{side}"), 0)
        for side in ("L", "R", None)
    ]
    random = np.random.default_rng(0)
    pieces = [
        draw(donors, target(laterality="L"), random, {"pR"}, (0.9, 1.5), 30).record
        for _ in range(300)
    ]
    assert {(graft.image_id, graft.mirrored, graft.trained_on) for graft in pieces} == {
        ("L", False, False),
        ("R", True, True),
        ("none", False, False),
    }
    angles, factors = np.array([(graft.angle, graft.factor) for graft in pieces]).T
    assert (
        angles.min() < -28
        and angles.max() > 28
        and np.abs(angles).max() <= 30
        and abs(angles.mean()) < 4
    )
    assert 0.9 <= factors.min() < 0.92 and 1.48 < factors.max() <= 1.5
    own = {
        draw(donors, replace(donors[0].mammogram, laterality=None), random).record
        for _ in range(60)
    }
    assert {(graft.image_id, graft.mirrored, graft.trained_on) for graft in own} == {
        ("R", False, None),
        ("none", False, None),
    }
    with pytest.raises(DataError, match="there are no lesions but its own"):
        draw(donors[:1], donors[0].mammogram, random)


@pytest.fixture
def on_disk(tmp_path):
    """Four mammograms of three patients: two with masses, one with a box alone, one normal."""
    facts = [("a", "benign"), ("b", "malignant"), ("b", None), ("c", "normal")]
    records = [
        replace(
            record(),
            image_id=str(i),
            patient_id=patient,
            pathology=pathology,
            lesions=record().lesions if i < 2 else (),
            bits=16,
        )
        for i, (patient, pathology) in enumerate(facts)
    ]
    writer.write(records, tmp_path / "folder")
    return DataConfig(name="folder", root=tmp_path / "folder")


def load_bank(config):
    """The bank of a config, as a synthesis loads it."""
    return Synthesizer.load(config, Sources(config)).lesions.lesions


def test_the_bank_holds_what_is_asked_for(on_disk, tmp_path):
    config = SynthesisConfig(name="a", renderer="paste", lesions=on_disk)
    records = archive.read(on_disk.root)
    assert [(donor.mammogram.image_id, donor.number) for donor in load_bank(config)] == [
        (mammogram.image_id, 0) for mammogram in records[:2]
    ]
    (malignant,) = load_bank(config.model_copy(update={"pathology": "malignant"}))
    assert (
        malignant.mammogram.image_id == records[1].image_id
        and malignant.lesion.mask(ROWS, COLS).sum() == mask().sum()
    )
    with pytest.raises(DataError, match="calcification"):
        load_bank(
            config.model_copy(
                update={"lesions": on_disk.model_copy(update={"kinds": ("calcification",)})}
            )
        )
    with pytest.raises(ConfigError, match="lesions.root: no such folder"):
        load_bank(
            config.model_copy(
                update={"lesions": on_disk.model_copy(update={"root": tmp_path / "no"})}
            )
        )
    boxes = DataConfig(name="folder", root=tmp_path / "boxes")
    writer.write([record()], boxes.root, annotations="boxes")
    with pytest.raises(DataError, match="benign mass"):
        load_bank(config.model_copy(update={"lesions": boxes, "pathology": "benign"}))


def test_patients_of_one_side_of_a_split(on_disk, tmp_path):
    records = archive.read(on_disk.root)
    a = records[0].patient_id
    b = records[1].patient_id
    c = records[3].patient_id
    file = tmp_path / "split.json"

    def save(**values):
        values = {
            "archive": "folder",
            "split": "patient",
            "folds": 2,
            "seed": 0,
            "stratify": "none",
            "patients": {a: 0, b: 1, c: 1},
            "id_key": key_check(),
            **values,
        }
        splits.save(file, splits.SavedSplit(**values))

    def side(name, fold=0, data=on_disk, lesions=None):
        patients = PatientsConfig(split_file=file, fold=fold, side=name)
        config = SynthesisConfig(
            name="a", renderer="paste", data=data, lesions=lesions, patients=patients
        )
        archive_names = (data.archive_name, config.lesion_data.archive_name)
        subset = PatientSubset.load(patients, archive_names)
        of_data = subset.select(archives.read_mammograms(data, Skipped()), data.archive_name)
        return {donor.mammogram.patient_id for donor in load_bank(config)}, {
            mammogram.patient_id for mammogram in of_data
        }

    save()
    assert (
        side("train") == ({b}, {b, c})
        and side("held_out") == ({a}, {a})
        and side("train", fold=1) == ({a}, {a})
    )
    save(
        split="official",
        folds=None,
        seed=None,
        stratify=None,
        patients={a: "test", b: "train", c: "train"},
    )
    assert side("train") == ({b}, {b, c}) and side("held_out") == ({a}, {a})
    phantom = DataConfig(phantoms=8)
    # the phantom's patients are on no side
    lesions, normal = side("held_out", data=phantom, lesions=on_disk)
    assert lesions == {a} and normal == {
        mammogram.patient_id for mammogram in archives.read_mammograms(phantom, Skipped())
    }
    with pytest.raises(DataError, match="split.json"):
        side("train", data=phantom)
    for values, reason in [
        ({"patients": {a: 0, b: 1}}, "does not know 1 of 3 patients"),
        (
            {"patients": {a: 0, b: 0, c: 1}},
            "train side",
        ),
        (
            {"split": "paper", "folds": None, "stratify": None, "patients": {a: "both"}},
            "split of the kind paper",
        ),
    ]:
        save(**values)
        with pytest.raises(DataError, match=reason):
            side("train")
    save()
    with pytest.raises(DataError, match="has no fold 2, only 2 folds"):
        side("train", fold=2)


def test_a_recipes_lesion_is_found_again(on_disk):
    config = SynthesisConfig(name="a", renderer="paste", lesions=on_disk)
    into = target(archive="folder")
    piece = draw(load_bank(config), into)
    mammograms = {mammogram.image_id: mammogram for mammogram in archive.read(on_disk.root)}
    lesion = lesion_bank.find_lesion(piece.record, on_disk, mammograms)
    same = lesion_bank.transform(lesion, piece.record, into)
    assert (
        (same.mask == piece.mask).all()
        and (same.image == piece.image).all()
        and same.record == piece.record
    )
    for changes, reason in [
        ({"image_id": "gone"}, "gone#0"),
        ({"number": 3}, f"the lesion {piece.record.image_id}#3 is not in folder"),
        (
            {"sha256": "0"},
            f"the mammogram of the lesion {piece.record.image_id}#0 has changed since",
        ),
    ]:
        with pytest.raises(DataError, match=reason):
            lesion_bank.find_lesion(piece.record.model_copy(update=changes), on_disk, mammograms)


def test_an_unreadable_mammogram_of_a_lesion(on_disk):
    config = SynthesisConfig(
        name="a", renderer="paste", lesions=on_disk.model_copy(update={"mixed_findings": True})
    )
    for path in (on_disk.root / "images").iterdir():
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ArchiveError, match=r"00000\d.png"):
        draw(load_bank(config), target(archive="folder"))
