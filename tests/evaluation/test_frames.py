"""Crop modes, morphology and failures, on masks set by hand."""

import cv2
import numpy as np
import pytest

from tests.facts import find
from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation import frames
from tfmammo.evaluation.frames import FrameResult, FramesConfig
from tfmammo.evaluation.report import Report
from tfmammo.metrics import segmentation
from tfmammo.training.image_grid import HEADER

SIZE = 16


def make_result(frame, ids, masks, outputs=None):
    masks = np.asarray(masks, np.uint8)
    patches = Patches(
        np.full(masks.shape, 0.5, np.float32),
        masks,
        np.array([name.partition("#")[0] for name in ids]),
        np.array(ids),
    )
    outputs = outputs or {}
    scores = {name: segmentation.per_image(masks, output) for name, output in outputs.items()}
    networks = tuple(name for name in outputs if "post" not in name)
    return FrameResult(frame, patches, outputs, scores, networks)


def draw_squares(*corners, side=4):
    mask = np.zeros((SIZE, SIZE, 1), np.uint8)
    for row, col in corners:
        mask[row : row + side, col : col + side] = 1
    return mask


@pytest.fixture
def loose():
    """A patch with two masses, one cut off by the border, and three with one."""
    masks = np.stack(
        [draw_squares((6, 6), (12, 0)), *(draw_squares((number, 6)) for number in (4, 6, 8))]
    )
    first_alone = masks.astype(np.float32)
    first_alone[0, 12:] = 0
    half = masks.astype(np.float32)
    half[:, :, :8] = 0
    ids = ["a#0", "b#0", "c#0", "c#1"]
    return make_result("loose", ids, masks, {"A": first_alone, "B": half})


def test_lesions_are_drawn_from_what_all_crop_modes_hold(loose):
    full = make_result("full", ["a#full", "c#full"], [draw_squares((6, 6))] * 2)
    tight = make_result("tight", ["c#1", "c#0", "b#0"], [draw_squares((6, 6))] * 3)
    lesions = frames.draw_lesions([full, loose, tight], 5, seed=0)
    assert sorted(lesions) == ["c#0", "c#1"]
    assert full.find_row("c#1") == 1 and tight.find_row("c#1") == 0
    assert frames.draw_lesions([full, loose, tight], 1, seed=0) == lesions[:1]
    assert sorted(frames.draw_lesions([full], 5, seed=0)) == ["a#full", "c#full"]
    other = make_result("tight", ["d#0"], [draw_squares((6, 6))])
    with pytest.raises(DataError, match="crop mode"):
        frames.draw_lesions([full, loose, other], 5, seed=0)


def test_croppings_and_overlays_show_the_same_lesions(loose, tmp_path):
    masks = [draw_squares((0, 0))] * 2
    output = {"A": np.stack(masks).astype(np.float32)}
    full = make_result("full", ["a#full", "c#full"], masks, output)
    frames.write_croppings([full, loose], ["a#0", "c#1"], tmp_path / "croppings.png")
    sheet = cv2.imread(str(tmp_path / "croppings.png"))
    assert sheet.shape == (HEADER + 2 * (SIZE + 3), 3 + 2 * (SIZE + 3), 3)
    frames.write_overlays([full, loose], ["a#0", "c#1"], 0.5, tmp_path / "overlays.png")
    sheet = cv2.imread(str(tmp_path / "overlays.png"))[..., ::-1]
    # Image, truth and A, which both crop modes have; B is of one only.
    assert sheet.shape == (HEADER + 4 * (SIZE + 3), 3 + 3 * (SIZE + 3), 3)
    left = 3 + 2 * (SIZE + 3)
    top = HEADER + 2 * (SIZE + 3)
    agreement = sheet[top : top + SIZE, left : left + SIZE]
    assert (agreement[6:10, 6:10] == (255, 255, 0)).all()
    assert (agreement[12:, :4] == (255, 0, 0)).all()


def test_failures_are_masses_that_are_not_found(loose):
    failures = frames.list_failures([loose], 0.5)
    of_first = [line for line in failures if line["id"] == "a#0"]
    assert len(failures) == 2 * 5 and {line["masses"] for line in of_first} == {2}
    values = {(line["model"], line["at_border"]): line["found"] for line in of_first}
    assert values == {("A", False): 1, ("A", True): 0, ("B", False): 0.5, ("B", True): 0}
    assert {line["area"] for line in of_first} == {0.5}
    report = Report(config=None)
    frames.add_failures(report, failures)
    assert report.tables[0].body == [
        ["loose: A", "0 of 3", "100.0", "1 of 2", "50.0"],
        ["loose: B", "0 of 3", "50.0", "1 of 2", "25.0"],
    ]
    subset = "frame=loose;masses=several"
    missed = find(report.facts, "A", "missed", "failures", subset=subset)
    assert (missed.value, missed.images) == (1, 1)
    assert find(report.facts, "B", "found", "failures", subset=subset).value == 25
    empty = make_result("loose", ["a#0"], [draw_squares()], {"A": np.zeros((1, SIZE, SIZE, 1))})
    with pytest.raises(DataError, match="no patch holds any mass"):
        frames.list_failures([empty], 0.5)


def test_a_speck_is_no_mass():
    mask = draw_squares((6, 6), side=5)[..., 0]
    mask[0, 0] = 1  # 1 of 26 px
    (mass,) = frames.find_masses(mask)
    assert mass.sum() == 25 and mass[6:11, 6:11].all()
    mask[0, 1] = 1
    assert [int(part.sum()) for part in frames.find_masses(mask)] == [2, 25]


def test_failures_show_several_masses_then_the_least_found(loose, tmp_path):
    config = FramesConfig(models={"loose": {"A": "a"}}, rows=2)
    failures = frames.list_failures([loose], 0.5)
    frames.write_failures([loose], failures, config, tmp_path)
    sheet = cv2.imread(str(tmp_path / "failures-loose.png"))
    # One patch with two masses, then the two with the least part found.
    assert sheet.shape == (HEADER + 3 * (SIZE + 3), 3 + 4 * (SIZE + 3), 3)


def test_morphology_is_tested_within_each_model():
    random = np.random.default_rng(0)
    ids = [f"p{number}#0" for number in range(8)]
    masks = np.stack([draw_squares((6, 6))] * 8)
    rough = masks.astype(np.float32)
    for image in rough:
        image[random.integers(0, 5), random.integers(0, 5)] = 1
    outputs = {"A": rough, "A + post-processing": masks.astype(np.float32)}
    result = make_result("loose", ids, masks, outputs)
    config = FramesConfig(models={"loose": {"A": "a"}}, samples=300)
    report = Report(config=None)
    frames.add_morphology(report, [result], config)
    model, subset = "A + post-processing", "frame=loose"
    gain = find(report.facts, model, "dice", "morphology", "A", subset)
    assert gain.value == pytest.approx(100 * (1 - 32 / 33))
    means, differences = report.tables
    assert [line[0] for line in means.body] == ["loose: A", "loose: A + post-processing"]
    assert differences.title == "Differences from loose: A"
