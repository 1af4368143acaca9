"""The CAD pipeline on small mammograms with known lesions.

Its models are real exports of networks whose answers are known, and a real tiny cGAN.
"""

import json
from dataclasses import replace
from functools import partial
from math import pi, sqrt
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.exported_detectors import save_detector
from tests.known_networks import KnownSegmenter
from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data.extraction import make_patches, make_shape_patches
from tfmammo.errors import DetectionError, ExportError, PipelineError, TrackingError
from tfmammo.inference import pipeline as pipelines
from tfmammo.inference.pipeline import Finding, Pipeline, PipelineConfig
from tfmammo.inference.report import COLOURS, build_report, draw_overlay, format_label, measure
from tfmammo.mammogram import SHAPES, Mammogram, MaskedLesion, Skipped
from tfmammo.metrics.segmentation import dice
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.shape import ShapeCNN, ShapeConfig
from tfmammo.tracking import export

ROWS = 160
COLS = 120
SIZE = 64
CENTRE = (70, 50)
RADII = (26, 18)


def card(**data):
    data = DataConfig(**{"size": SIZE, "frame": "loose"} | data).model_dump(mode="json")
    return {"name": "cgan", "step": 7, "config": {"data": data}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Export segmenters "bright", "empty", "full" and "cgan", and the classifier."""
    root = tmp_path_factory.mktemp("models")
    known = {"bright": (200.0, -100.0), "empty": (0.0, -50.0), "full": (0.0, 50.0)}
    for name, values in known.items():
        export.export(KnownSegmenter(*values), root / name, card())
    keras.utils.set_random_seed(0)
    cgan = CGAN(CGANConfig(filters=(4, 4, 4, 4, 4, 4), samples=3, adversarial=False), SIZE)
    export.export(cgan, root / "cgan", card())
    classifier = ShapeCNN(ShapeConfig(filters=(2, 2, 2), units=4))
    export.export(classifier, root / "shape", {"name": "shape"})
    return root


@pytest.fixture
def load(models, tmp_path):
    """A function (boxes, segmenter="bright", data=None, **config) -> Pipeline.

    Its detector always answers with these boxes, native px. With a data section or a whole card the
    segmenter is exported anew with it.
    """

    def call(boxes, segmenter="bright", data=None, scores=None, classes=(), **config):
        parts = (np.reshape(boxes, (-1, 4)) / ([ROWS, COLS] * 2)).tolist()
        scores = scores or np.linspace(0.9, 0.6, len(parts)).tolist()
        save_detector(tmp_path / "detector", parts, scores, batch=1, classes=classes)
        handle = segmenter and models / segmenter
        if data is not None:
            content = data if "config" in data else card(**data)
            handle = export.export(KnownSegmenter(), tmp_path / "segmenter", content)
        handles = {
            "detector": str(tmp_path / "detector"),
            "segmenter": handle and str(handle),
            "classifier": str(models / "shape"),
        }
        return Pipeline.load(PipelineConfig(**handles | config))

    return call


def ellipse(centre=CENTRE, radii=RADII):
    rows, cols = np.mgrid[:ROWS, :COLS]
    squares = ((rows - centre[0]) / radii[0]) ** 2 + ((cols - centre[1]) / radii[1]) ** 2
    return (squares <= 1).astype(np.uint8)


def stored(masks):
    noise = np.random.default_rng(0).uniform(0, 0.1, (ROWS, COLS))
    return (0.2 + 0.6 * np.max(masks, axis=0) + noise)[..., None].astype(np.float32)


def mammogram(*masks, **facts):
    """A mammogram whose masses are bright, with the true lesions."""
    masks = masks or (ellipse(),)
    lesions = tuple(MaskedLesion("mass", partial(np.copy, mask)) for mask in masks)
    return Mammogram("made", "p", "i", ROWS, COLS, partial(stored, masks), lesions=lesions, **facts)


BOX = mammogram().lesions[0].box


def mask_of(finding):
    return finding.lesion.mask(ROWS, COLS)


def heard(stage):
    """The stage, and a list in which its inputs gather."""
    inputs = []

    def call(**values):
        inputs.append(next(iter(values.values())))
        return stage.call(**values)

    return replace(stage, call=call), inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "preprocess"),
    [
        ("tight", {}),
        ("loose", {"flip_right": True}),
        ("full", {"denoise": 0.7, "contrast": "equalise", "remove_marks": True}),
        ("square", {"flip_right": True, "contrast": "clahe", "clahe_tiles": 4}),
    ],
)
def test_a_patch_is_made_as_in_training(load, frame, preprocess):
    """If the detected box is the lesion's, the patch is that of a training run, bit for bit."""
    record = mammogram(laterality="R", spacing=(0.1, 0.1))
    data = {"frame": frame, "preprocess": PreprocessConfig(**preprocess), "percentiles": (1, 99)}
    assert_input(load([BOX], data=data), record)


@pytest.mark.parametrize(
    ("data", "mask"),
    [
        ({"window": (0.1, 0.7)}, ellipse()),
        # a square larger than the mammogram is padded
        ({"frame": "square", "context": 1.5, "pad": True}, np.ones((ROWS, COLS), np.uint8)),
    ],
)
def test_a_fixed_window_and_a_padded_square_are_taken_over(load, data, mask):
    lesion = MaskedLesion("mass", partial(np.copy, mask))
    finding = assert_input(load([lesion.box], data=data), replace(mammogram(), lesions=(lesion,)))
    assert dice(mask_of(finding), ellipse()) > 0.95


def assert_input(pipeline, record):
    pipeline.segmenter, inputs = heard(pipeline.segmenter)
    (finding,) = pipeline.predict(record).findings
    patches = make_patches([record], pipeline.data, Skipped())
    assert len(inputs) == len(patches) == 1
    np.testing.assert_array_equal(inputs[0], patches.images)
    return finding


@pytest.mark.parametrize(
    ("frame", "preprocess"),
    [
        ("loose", {}),
        ("full", {"flip_right": True}),
        ("square", {"flip_right": True, "spacing": 0.15}),
        ("loose", {"spacing": 0.07}),
    ],
)
def test_a_mask_comes_back_to_native_pixels(load, frame, preprocess):
    record = mammogram(laterality="R", spacing=(0.1, 0.1))
    data = {"frame": frame, "preprocess": PreprocessConfig(**preprocess)}
    (finding,) = load([BOX], data=data).predict(record).findings
    assert (finding.box, finding.kind) == (BOX, "mass") and finding.score == pytest.approx(0.9)
    assert dice(mask_of(finding), ellipse()) > 0.95
    centre = np.argwhere(mask_of(finding)).mean(axis=0)
    np.testing.assert_allclose(centre, CENTRE, atol=0.5)  # a patch's pixel is up to 2.5 native ones
    assert finding.lesion.box == pytest.approx(BOX, abs=3)


def test_spacing_and_shape(load):
    record = mammogram(spacing=(0.1, 0.2))
    (finding,) = load([BOX]).predict(record).findings
    area = int(mask_of(finding).sum())
    assert area == pytest.approx(pi * RADII[0] * RADII[1], rel=0.05)
    pixels = {"area_px": area, "diameter_px": sqrt(4 * area / pi)}
    expected = pixels | {"area_mm2": 0.02 * area, "diameter_mm": sqrt(0.08 * area / pi)}
    assert measure(finding.lesion, record) == pytest.approx(expected)
    bare = pixels | {"area_mm2": None, "diameter_mm": None}
    assert measure(finding.lesion, mammogram()) == pytest.approx(bare)
    shares = finding.probabilities
    assert list(shares) == list(SHAPES) and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert finding.lesion.shape == max(shares, key=shares.get) and finding.remarks == ()


def test_a_shape_is_judged_by_a_mask_made_as_in_training(load):
    pipeline = load([BOX])
    pipeline.classifier, inputs = heard(pipeline.classifier)
    (finding,) = pipeline.predict(mammogram()).findings
    lesion = MaskedLesion("mass", partial(np.copy, mask_of(finding)), shape="oval")
    truth = replace(mammogram(), lesions=(lesion,))
    expected = make_shape_patches([truth], DataConfig(size=64), Skipped()).masks
    np.testing.assert_array_equal(inputs[0], expected)
    rows, cols = np.argwhere(inputs[0][0, ..., 0]).T
    assert rows.mean() == pytest.approx(31.5, abs=1) and cols.mean() == pytest.approx(31.5, abs=1)
    assert np.ptp(rows) / np.ptp(cols) == pytest.approx(RADII[0] / RADII[1], rel=0.08)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_outlines_hold_a_region_exactly_but_for_its_holes(seed):
    region = (np.random.default_rng(seed).random((12, 9)) < 0.4).astype(np.uint8)
    region[0, 0] = 1
    lesion = pipelines._make_lesion("mass", region)
    rows, cols = np.nonzero(region)
    assert lesion.box == (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)
    np.testing.assert_array_equal(lesion.mask(12, 9), ndimage.binary_fill_holes(region))


def test_no_detection(load):
    assert load([]).predict(mammogram()).findings == ()
    for score, count in ((0.49, 0), (0.51, 1)):
        pipeline = load([(10, 10, 40, 40)], scores=[score])
        assert len(pipeline.predict(mammogram()).findings) == count


def test_several_masses_each_get_their_own_piece(load):
    masks = ellipse((50, 30), (16, 14)), ellipse((60, 70), (14, 16))
    record = mammogram(*masks)
    boxes = [lesion.box for lesion in record.lesions]
    for finding, mask in zip(load(boxes).predict(record).findings, masks, strict=True):
        assert dice(mask_of(finding), mask) > 0.93
    both = load(boxes, single=False).predict(record).findings[0]
    assert mask_of(both).sum() > 1.1 * masks[0].sum()  # the neighbour reaches into the frame


@pytest.mark.parametrize("frame", ["tight", "loose", "square"])
@pytest.mark.parametrize("centre", [(0, 0), (0, 60), (ROWS - 1, COLS - 1), (80, COLS - 1)])
def test_a_box_on_the_border(load, frame, centre):
    truth = ellipse(centre)
    record = mammogram(truth)
    pipeline = load([record.lesions[0].box], data={"frame": frame, "percentiles": (0, 100)})
    (finding,) = pipeline.predict(record).findings
    mask = mask_of(finding)
    assert dice(mask, truth) > 0.93
    (top, left, bottom, right) = finding.lesion.box
    assert 0 <= top < bottom <= ROWS and 0 <= left < right <= COLS
    assert mask[top:bottom, left:right].sum() == mask.sum()


def test_an_empty_mask_leaves_the_box(load):
    pipeline = load([(40, 30, 100, 70)], "empty")
    result = pipeline.predict(mammogram())
    (finding,) = result.findings
    assert finding.box == (40, 30, 100, 70)
    assert finding.lesion is None and finding.probabilities is None
    assert finding.remarks == ("no mask: the segmenter marks nothing in the box",)
    assert format_label(1, finding) == "1 mass 0.90, no mask"
    (lesion,) = build_report(result, pipeline)["lesions"]
    assert lesion["remarks"] == list(finding.remarks)
    for name in ("mask_box", "area_px", "area_mm2", "diameter_mm", "shape", "uncertainty"):
        assert lesion[name] is None


def test_a_mask_beside_the_box_is_another_lesions(load):
    for single, is_kept in ((True, False), (False, True)):
        pipeline = load([(100, 80, 140, 110)], data={"frame": "full"}, single=single)
        (finding,) = pipeline.predict(mammogram()).findings
        assert (finding.lesion is not None) == is_kept


def test_a_full_mask_is_the_frame(load):
    # the box doubled, and cut at the border
    for box, frame in (
        ((40, 30, 100, 70), (10, 10, 130, 90)),
        ((0, 0, 60, 50), (0, 0, 90, 75)),
    ):
        (finding,) = load([box], "full").predict(mammogram()).findings
        assert finding.lesion.box == frame and mask_of(finding)[: frame[2], : frame[3]][-1, -1]


def test_a_mask_of_a_few_pixels_is_enlarged_and_doubted(load):
    record = mammogram(ellipse((80, 60), (2, 2)))
    pipeline = load([record.lesions[0].box], data={"percentiles": (0, 100)})
    (finding,) = pipeline.predict(record).findings
    assert finding.lesion is not None and len(finding.probabilities) == 4
    assert len(finding.remarks) == 1 and "px was enlarged to 64 x 64 px" in finding.remarks[0]


def test_a_line_that_shrinks_away_has_no_shape(load):
    line = np.zeros((ROWS, COLS), np.uint8)
    line[5, 5:115] = 1
    found = Finding("mass", 0.9, (0, 0, 9, 120), pipelines._make_lesion("mass", line))
    finding = load([])._classify(found, mammogram())
    assert finding.probabilities is None and finding.lesion.shape is None
    assert finding.remarks == ("no shape: nothing of its mask is left at 64 px",)


def test_a_detection_of_no_size_in_pixels(load):
    (finding,) = load([(ROWS - 0.2, COLS - 0.2, ROWS, COLS)]).predict(mammogram()).findings
    assert finding.box == (ROWS - 1, COLS - 1, ROWS, COLS)


def test_what_is_constant(load):
    flat = replace(mammogram(), read=partial(np.full, (ROWS, COLS, 1), 0.5, np.float32))
    (finding,) = load([(40, 30, 100, 70)]).predict(flat).findings
    assert finding.lesion is None
    assert finding.remarks[0].startswith("no mask: the image is constant")


def test_what_cannot_be_predicted_on(load):
    torn = replace(mammogram(), read=partial(np.zeros, (3, 3, 1), np.float32))
    with pytest.raises(PipelineError, match="pixels have shape"):
        load([]).predict(torn)
    needs_a_side = {"preprocess": PreprocessConfig(flip_right=True)}
    with pytest.raises(PipelineError, match="flip_right"):
        load([(40, 30, 100, 70)], data=needs_a_side).predict(mammogram())


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (None, "no mask: the segmenter was trained on mass only"),
        ({"kinds": ("mass", "calcification")}, "no shape: it is not a mass"),
    ],
)
def test_kinds_that_a_stage_does_not_know(load, data, remark):
    kinds = ("mass", "calcification")
    pipeline = load([(40, 30, 100, 70)], classes=[2], kinds=kinds, data=data)
    (finding,) = pipeline.predict(mammogram()).findings
    assert (finding.kind, finding.remarks) == ("calcification", (remark,))
    assert finding.probabilities is None and (finding.lesion is None) == (data is None)


def test_a_real_cgan_and_its_uncertainty(load):
    (finding,) = load([(40, 30, 100, 70)], "cgan", threshold=0.01).predict(mammogram()).findings
    assert 0 < finding.uncertainty < 0.5 and finding.lesion.shape in SHAPES
    (finding,) = load([(40, 30, 100, 70)]).predict(mammogram()).findings
    assert finding.uncertainty is None


def test_postprocessing_takes_specks_away(load):
    speck = ellipse()
    speck[28:31, 49:52] = 1
    for size, is_kept in ((0, True), (3, False)):
        steps = {"closing": 0, "erosion": size, "dilation": size}
        pipeline = load([BOX], single=False, postprocess=steps)
        (finding,) = pipeline.predict(mammogram(speck)).findings
        assert mask_of(finding)[27:33, 47:54].any() == is_kept
    assert dice(mask_of(finding), ellipse()) > 0.93


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {}}, "does not say how its patches are made"),
        ({"config": {"data": {"frame": "round"}}}, "does not say how its patches are made"),
        (card(patches="offset"), "data.patches=offset"),
        (card(size=32), "card.json"),
    ],
)
def test_a_segmenter_whose_patches_are_not_known(tmp_path, load, change, said):
    with pytest.raises(PipelineError, match=said) as raised:
        load([], data={"name": "cgan", **change})
    assert str(raised.value).startswith(f"{tmp_path}/segmenter") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("stage", "handle", "error", "said"),
    [
        ("segmenter", "shape", ExportError, "none of its functions leads from image to mask"),
        ("classifier", "bright", ExportError, "none of its functions leads from mask to shapes"),
        ("segmenter", "nowhere", TrackingError, "neither a folder, nor"),
        ("detector", "bright/generator", DetectionError, "Object Detection API"),
    ],
)
def test_handles_of_the_wrong_stage(load, models, stage, handle, error, said):
    with pytest.raises(error, match=said):
        load([], **{stage: str(models / handle)})


def test_the_report_says_what_was_found_by_what(load, models, monkeypatch):
    record = mammogram(spacing=(0.1, 0.1), laterality="L", view="CC")
    pipeline = load([BOX, (130, 90, 150, 110)], tracking_uri="https://user:secret@host")
    result = pipeline.predict(record)
    content = build_report(result, pipeline)
    text = json.dumps(content, allow_nan=False)
    for secret in ("secret", '"p"', str(models)):
        assert secret not in text, "reports travel"
    facts = {"image_id": "i", "rows": ROWS, "cols": COLS, "laterality": "L", "view": "CC"}
    assert content["mammogram"] == facts | {"spacing_mm": [0.1, 0.1]}
    first, second = content["lesions"]
    area = int(mask_of(result.findings[0]).sum())
    expected = {"number": 1, "kind": "mass", "score": 0.9, "box": list(BOX), "area_px": area}
    assert first | expected == first
    assert first["area_mm2"] == pytest.approx(area / 100, abs=1e-3) and first["shape"] in SHAPES
    assert sum(first["shape_probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert (second["number"], second["score"]) == (2, 0.6)
    segmenter = content["models"]["segmenter"]
    assert (segmenter["handle"], segmenter["step"], len(segmenter["card"])) == ("bright", 7, 64)
    assert content["models"]["detector"] == {"handle": "detector", "card": None}
    assert content["versions"].keys() == {"tfmammo", "tensorflow", "keras"}
    assert content["config"]["postprocess"] is None
    assert content["remarks"] == []
    monkeypatch.setitem(pipeline.detector.card, "packed", True)
    assert "missed half" in build_report(result, pipeline)["remarks"][0]


def test_the_overlay_shows_boxes_outlines_and_words(load):
    result = load([BOX]).predict(mammogram())
    sheet = draw_overlay(result, side=640)
    assert sheet.shape == (640, 480, 3) and sheet.dtype == np.uint8
    coloured = (sheet == COLOURS[0]).all(axis=-1)
    top, left, bottom, right = (4 * np.array(BOX)).tolist()
    assert coloured[top, left + 5 : right - 5].all()
    assert coloured[top + 5 : bottom - 5, right - 1].all()
    # the outline's upper end, on the box's upper side
    tip = 4 * (CENTRE[0] - RADII[0]) + 2, 4 * CENTRE[1] + 2
    side = coloured[4 * CENTRE[0] + 2, : 4 * CENTRE[1]]
    assert coloured[tip[0] - 6 : tip[0] + 7, tip[1]].any() and side.sum() >= 3
    assert coloured[: top - 1, left:].any()  # the words above
    bare = draw_overlay(replace(result, findings=()), side=640)
    grey = (np.ptp(bare.astype(int), axis=-1) == 0).all()
    assert grey and (bare[-40:] == 255).any() and not (bare[:-40] == 255).any()


@pytest.mark.parametrize(
    ("stage", "card", "remarks"),
    [
        ("detector", {"archive": "phantom", "packed": True}, ["phantoms alone"]),
        ("detector", {"archive": "folder", "packed": True}, ["missed half of the masses"]),
        ("detector", {"archive": "inbreast", "config": {"data": {"name": "inbreast"}}}, []),
        ("classifier", {"config": {"data": {"name": "phantom"}}}, ["phantoms alone"]),
        ("classifier", {"config": {"data": {"name": "ddsm"}}}, []),
    ],
)
def test_a_model_that_must_not_be_relied_on_is_named(stage, card, remarks):
    stages = {"detector": None, "classifier": None, stage: SimpleNamespace(card=card)}
    said = Pipeline.list_remarks(SimpleNamespace(**stages))
    for remark, expected in zip(said, remarks, strict=True):
        assert remark.startswith(f"the {stage} ") and expected in remark
        assert remark.endswith("use one of your own")


def test_shapes_of_masks_that_a_detector_draws(load):
    whole = load([BOX], segmenter=None)
    masks = np.array([ellipse(), np.zeros((ROWS, COLS))], np.uint8)
    drawn = SimpleNamespace(
        classes=("mass", "mass"), scores=[0.9, 0.8], boxes=[BOX, BOX], masks=masks
    )
    drawn.above = lambda _: drawn
    whole.detector = SimpleNamespace(predict=lambda _: drawn)
    outlined, empty = whole._find(mammogram())
    assert outlined.lesion.shape in SHAPES and empty.lesion is None and not empty.remarks


@pytest.mark.parametrize("shape", [(3, 300), (300, 3), (1, 1)])
def test_an_overlay_of_any_size(shape):
    image = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(*shape, 1)
    record = Mammogram("made", "p", "i", *shape, partial(np.copy, image))
    findings = tuple(Finding("mass", 0.9, (0, 0, *shape)) for _ in range(9))
    assert max(draw_overlay(pipelines.PipelineResult(record, image, findings), 400).shape) == 400
