"""The CAD pipeline on small mammograms with known lesions.

Its models are real exports of networks whose answers are known, and a real tiny cGAN.
"""

import json
from dataclasses import replace
from functools import partial
from math import pi, sqrt
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.known_networks import KnownSegmenter
from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data.extraction import make_patches, make_shape_patches
from tfmammo.data.patches import TEXTS
from tfmammo.errors import DetectionError, ExportError, PipelineError, TrackingError
from tfmammo.inference import pipeline as pipelines
from tfmammo.inference.pipeline import Finding, Pipeline, PipelineConfig
from tfmammo.inference.report import COLOURS, build_report, draw_overlay, format_label, measure
from tfmammo.mammogram import Lesion, Mammogram, MaskedLesion, Skipped, key_check
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.shape import SHAPES, ShapeCNN, ShapeConfig
from tfmammo.tracking import export

ROWS = 160
COLS = 120
SIZE = 64
CENTRE = (70, 50)
RADII = (26, 18)


def detector(folder, boxes, scores=None, classes=None, rows=ROWS, cols=COLS):
    """A foreign SavedModel that always answers with these boxes, native px."""
    parts = np.reshape(np.array(boxes, np.float32), (-1, 4)) / np.array(
        [rows, cols] * 2, np.float32
    )
    count = max(1, len(parts))
    parts = parts if len(parts) else np.zeros((1, 4), np.float32)
    scores = np.float32(scores or np.linspace(0.9, 0.6, count) * bool(len(boxes)))

    @tf.function(
        input_signature=[tf.TensorSpec([1, None, None, 3], tf.float32, name="input_tensor")]
    )
    def detect(input_tensor):
        return {
            "detection_boxes": tf.constant(parts[np.newaxis]),
            "detection_scores": tf.constant(scores[np.newaxis]),
            "detection_classes": tf.constant(np.float32([classes or [1] * count])),
            "num_detections": tf.constant([float(len(boxes))]),
        }

    tf.saved_model.save(tf.Module(), str(folder), signatures=detect.get_concrete_function())
    return str(folder)


def card(**data):
    return {
        "name": "cgan",
        "step": 7,
        "config": {
            "data": DataConfig(**{"size": SIZE, "frame": "loose"} | data).model_dump(mode="json")
        },
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Export segmenters "bright", "empty", "full" and "cgan", and the classifier."""
    root = tmp_path_factory.mktemp("models")
    for name, values in {
        "bright": (200.0, -100.0),
        "empty": (0.0, -50.0),
        "full": (0.0, 50.0),
    }.items():
        export.export(KnownSegmenter(*values), root / name, card())
    keras.utils.set_random_seed(0)
    cgan = CGAN(CGANConfig(filters=(4, 4, 4, 4, 4, 4), samples=3, adversarial=False), SIZE)
    export.export(cgan, root / "cgan", card())
    export.export(
        ShapeCNN(ShapeConfig(filters=(2, 2, 2), units=4)), root / "shape", {"name": "shape"}
    )
    return root


@pytest.fixture
def load(models, tmp_path):
    """A function (boxes, segmenter="bright", data=None, **config) -> Chain."""

    def call(boxes, segmenter="bright", data=None, scores=None, classes=None, **config):
        handle = models / segmenter
        if data is not None:
            handle = export.export(KnownSegmenter(), tmp_path / "segmenter", card(**data))
        path = detector(tmp_path / "detector", boxes, scores, classes)
        steps = {"closing": 0, "erosion": 0, "dilation": 0}
        values = {"postprocess": steps, **config}
        return Pipeline.load(
            PipelineConfig(
                detector=path, segmenter=str(handle), classifier=str(models / "shape"), **values
            )
        )

    return call


def ellipse(centre=CENTRE, radii=RADII):
    rows, cols = np.mgrid[:ROWS, :COLS]
    return (
        ((rows - centre[0]) / radii[0]) ** 2 + ((cols - centre[1]) / radii[1]) ** 2 <= 1
    ).astype(np.uint8)


def stored(masks):
    noise = np.random.default_rng(0).uniform(0, 0.1, (ROWS, COLS))
    return (0.2 + 0.6 * np.max(masks, axis=0) + noise)[..., None].astype(np.float32)


def mammogram(*masks, **facts):
    """A mammogram whose masses are bright, with the true lesions."""
    masks = masks or (ellipse(),)
    lesions = tuple(MaskedLesion("mass", partial(np.copy, mask)) for mask in masks)
    return Mammogram("made", "p", "i", ROWS, COLS, partial(stored, masks), lesions=lesions, **facts)


def mask_of(finding):
    return finding.lesion.mask(ROWS, COLS)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def heard(stage):
    """The stage, and a list in which its inputs gather."""
    inputs = []

    def call(**values):
        inputs.append(next(iter(values.values())))
        return stage.call(**values)

    return replace(stage, call=call), inputs


PREPROCESSING = [
    {},
    {"flip_right": True},
    {"denoise": 0.7, "contrast": "equalise", "remove_marks": True},
    {"flip_right": True, "contrast": "clahe", "clahe_tiles": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["tight", "loose", "full", "square"])
@pytest.mark.parametrize("preprocess", PREPROCESSING)
def test_a_patch_is_made_as_in_training(load, frame, preprocess):
    """If the detected box is the lesion's, the patch is that of a training run, bit for bit."""
    record = mammogram(laterality="R", spacing=(0.1, 0.1))
    data = {"frame": frame, "preprocess": PreprocessConfig(**preprocess), "percentiles": (1, 99)}
    pipeline = load([record.lesions[0].box], data=data)
    pipeline.segmenter, inputs = heard(pipeline.segmenter)
    pipeline.predict(record)
    patches = make_patches([record], pipeline.data, Skipped())
    assert len(inputs) == len(patches) == 1
    np.testing.assert_array_equal(inputs[0], patches.images)


def test_a_fixed_window_is_taken_over(load):
    record = mammogram()
    pipeline = load([record.lesions[0].box], data={"window": (0.1, 0.7)})
    pipeline.segmenter, inputs = heard(pipeline.segmenter)
    pipeline.predict(record)
    np.testing.assert_array_equal(
        inputs[0], make_patches([record], pipeline.data, Skipped()).images
    )


@pytest.mark.parametrize("frame", ["loose", "full", "square"])
@pytest.mark.parametrize(
    "preprocess",
    [{}, {"flip_right": True}, {"flip_right": True, "spacing": 0.15}, {"spacing": 0.07}],
)
def test_a_mask_comes_back_to_native_pixels(load, frame, preprocess):
    record = mammogram(laterality="R", spacing=(0.1, 0.1))
    pipeline = load(
        [record.lesions[0].box], data={"frame": frame, "preprocess": PreprocessConfig(**preprocess)}
    )
    (finding,) = pipeline.predict(record).findings
    assert (
        finding.box == record.lesions[0].box
        and finding.score == pytest.approx(0.9)
        and finding.kind == "mass"
    )
    assert dice(mask_of(finding), ellipse()) > 0.95
    centre = np.argwhere(mask_of(finding)).mean(axis=0)
    np.testing.assert_allclose(centre, CENTRE, atol=0.5)  # a patch's pixel is up to 2.5 native ones
    assert finding.lesion.box == pytest.approx(record.lesions[0].box, abs=3)


def test_spacing_and_shape(load):
    record = mammogram(spacing=(0.1, 0.2))
    case = load([record.lesions[0].box]).predict(record)
    (finding,) = case.findings
    area = int(mask_of(finding).sum())
    assert area == pytest.approx(pi * RADII[0] * RADII[1], rel=0.05)
    expected = {
        "area_px": area,
        "diameter_px": sqrt(4 * area / pi),
        "area_mm2": 0.02 * area,
        "diameter_mm": sqrt(0.08 * area / pi),
    }
    assert measure(finding.lesion, record) == pytest.approx(expected)
    bare = measure(finding.lesion, mammogram())
    assert bare["area_mm2"] is None and bare["diameter_mm"] is None and bare["area_px"] == area
    assert list(finding.probabilities) == list(SHAPES) and sum(
        finding.probabilities.values()
    ) == pytest.approx(1, abs=1e-5)
    assert (
        finding.lesion.shape == max(finding.probabilities, key=finding.probabilities.get)
        and finding.remarks == ()
    )


def test_a_shape_is_judged_by_a_mask_made_as_in_training(load):
    record = mammogram()
    pipeline = load([record.lesions[0].box])
    pipeline.classifier, inputs = heard(pipeline.classifier)
    (finding,) = pipeline.predict(record).findings
    truth = replace(
        record, lesions=(MaskedLesion("mass", partial(np.copy, mask_of(finding)), shape="oval"),)
    )
    np.testing.assert_array_equal(
        inputs[0], make_shape_patches([truth], DataConfig(size=64), Skipped()).masks
    )
    assert inputs[0].shape == (1, 64, 64, 1) and inputs[0].dtype == np.float32
    rows, cols = np.argwhere(inputs[0][0, ..., 0]).T
    assert rows.mean() == pytest.approx(31.5, abs=1) and cols.mean() == pytest.approx(31.5, abs=1)
    assert np.ptp(rows) / np.ptp(cols) == pytest.approx(RADII[0] / RADII[1], rel=0.08)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_outlines_hold_a_region_exactly_but_for_its_holes(seed):
    region = (np.random.default_rng(seed).random((12, 9)) < 0.4).astype(np.uint8)
    region[0, 0] = 1
    lesion = pipelines._make_lesion("mass", region)
    drawn = lesion.mask(12, 9)
    assert (drawn >= region).all()
    rows, cols = np.nonzero(region)
    assert lesion.box == (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)
    # what the border reaches around the region stays out
    outside = np.pad(1 - region, 1, constant_values=1)
    reached = np.zeros_like(outside)
    reached[0, 0] = 1
    for _ in range(outside.size):
        grown = reached.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown |= np.roll(reached, step, axis)
        grown &= outside
        if (grown == reached).all():
            break
        reached = grown
    np.testing.assert_array_equal(drawn, 1 - reached[1:-1, 1:-1])


def test_no_detection(load):
    case = load([]).predict(mammogram())
    assert case.findings == ()
    assert load([(10, 10, 40, 40)], scores=[0.49]).predict(mammogram()).findings == ()
    assert len(load([(10, 10, 40, 40)], scores=[0.51]).predict(mammogram()).findings) == 1


def test_several_masses_each_get_their_own_piece(load):
    masks = ellipse((50, 30), (16, 14)), ellipse((60, 70), (14, 16))
    record = mammogram(*masks)
    boxes = [lesion.box for lesion in record.lesions]
    case = load(boxes).predict(record)
    assert [
        dice(mask_of(finding), mask) > 0.93
        for finding, mask in zip(case.findings, masks, strict=True)
    ] == [True, True]
    both = load(boxes, single=False).predict(record).findings[0]
    assert mask_of(both).sum() > 1.1 * masks[0].sum()  # the neighbour reaches into the frame


@pytest.mark.parametrize("frame", ["tight", "loose", "square"])
@pytest.mark.parametrize("centre", [(0, 0), (0, 60), (ROWS - 1, COLS - 1), (80, COLS - 1)])
def test_a_box_on_the_border(load, frame, centre):
    truth = ellipse(centre)
    record = mammogram(truth)
    (finding,) = (
        load([record.lesions[0].box], data={"frame": frame, "percentiles": (0, 100)})
        .predict(record)
        .findings
    )
    assert dice(mask_of(finding), truth) > 0.93
    (top, left, bottom, right) = finding.lesion.box
    mask = mask_of(finding)
    assert (
        0 <= top < bottom <= ROWS
        and 0 <= left < right <= COLS
        and mask[top:bottom, left:right].sum() == mask.sum()
    )


def test_a_square_larger_than_the_mammogram_is_padded(load):
    box = (0, 0, ROWS, COLS)
    pipeline = load([box], data={"frame": "square", "context": 1.5, "pad": True})
    record = replace(
        mammogram(),
        lesions=(
            Lesion(
                "mass",
                box,
                (np.float32([[0, 0], [0, COLS - 1], [ROWS - 1, COLS - 1], [ROWS - 1, 0]]),),
            ),
        ),
    )
    pipeline.segmenter, inputs = heard(pipeline.segmenter)
    (finding,) = pipeline.predict(record).findings
    np.testing.assert_array_equal(
        inputs[0], make_patches([record], pipeline.data, Skipped()).images
    )
    assert dice(mask_of(finding), ellipse()) > 0.95


def test_an_empty_mask_leaves_the_box(load):
    (finding,) = load([(40, 30, 100, 70)], "empty").predict(mammogram()).findings
    assert (
        finding.box == (40, 30, 100, 70)
        and finding.lesion is None
        and finding.probabilities is None
    )
    assert finding.remarks == ("no mask: the segmenter marks nothing in the box",)
    assert format_label(1, finding) == "1 mass 0.90, no mask"


def test_a_mask_beside_the_box_is_another_lesions(load):
    boxes = [(100, 80, 140, 110)]
    assert load(boxes, data={"frame": "full"}).predict(mammogram()).findings[0].lesion is None
    assert (
        load(boxes, data={"frame": "full"}, single=False).predict(mammogram()).findings[0].lesion
        is not None
    )


def test_a_full_mask_is_the_frame(load):
    (finding,) = load([(40, 30, 100, 70)], "full").predict(mammogram()).findings
    # the box doubled
    assert finding.lesion.box == (10, 10, 130, 90) and mask_of(finding).sum() == 120 * 80
    (finding,) = load([(0, 0, 60, 50)], "full").predict(mammogram()).findings
    assert finding.lesion.box == (0, 0, 90, 75)  # and cut at the border
    assert len(finding.probabilities) == 4


def test_a_mask_of_a_few_pixels_is_enlarged_and_doubted(load):
    truth = ellipse((80, 60), (2, 2))
    (finding,) = (
        load([mammogram(truth).lesions[0].box], data={"percentiles": (0, 100)})
        .predict(mammogram(truth))
        .findings
    )
    assert finding.lesion is not None and len(finding.probabilities) == 4
    assert len(finding.remarks) == 1 and "px was enlarged to 64 x 64 px" in finding.remarks[0]


def test_a_line_that_shrinks_away_has_no_shape(load):
    line = np.zeros((ROWS, COLS), np.uint8)
    line[5, 5:115] = 1
    pipeline = load([])
    finding = pipeline._classify(
        Finding("mass", 0.9, (0, 0, 9, 120), pipelines._make_lesion("mass", line)), mammogram()
    )
    assert (
        finding.lesion is not None
        and finding.probabilities is None
        and finding.lesion.shape is None
    )
    assert finding.remarks == ("no shape: nothing of its mask is left at 64 px",)


def test_a_detection_of_no_size_in_pixels(load):
    (finding,) = load([(ROWS - 0.2, COLS - 0.2, ROWS, COLS)]).predict(mammogram()).findings
    assert finding.box == (ROWS - 1, COLS - 1, ROWS, COLS)


def test_what_is_constant(load):
    flat = replace(mammogram(), read=partial(np.full, (ROWS, COLS, 1), 0.5, np.float32))
    (finding,) = load([(40, 30, 100, 70)]).predict(flat).findings
    assert finding.lesion is None and finding.remarks[0].startswith(
        "no mask: the image is constant"
    )


def test_pixels_that_cannot_be_read(load):
    torn = replace(mammogram(), read=partial(np.zeros, (3, 3, 1), np.float32))
    with pytest.raises(PipelineError, match="pixels have shape"):
        load([]).predict(torn)


def test_a_fact_that_preprocessing_needs(load):
    with pytest.raises(PipelineError, match="flip_right"):
        load([(40, 30, 100, 70)], data={"preprocess": PreprocessConfig(flip_right=True)}).predict(
            mammogram()
        )


def test_kinds_that_a_stage_does_not_know(load):
    kinds = ("mass", "calcification")
    finding = load([(40, 30, 100, 70)], classes=[2], kinds=kinds).predict(mammogram()).findings[0]
    assert finding.kind == "calcification" and finding.remarks == (
        "no mask: the segmenter was trained on mass only",
    )
    finding = (
        load([(40, 30, 100, 70)], classes=[2], kinds=kinds, data={"kinds": kinds})
        .predict(mammogram())
        .findings[0]
    )
    assert (
        finding.lesion is not None
        and finding.probabilities is None
        and finding.remarks == ("no shape: it is not a mass",)
    )


def test_a_real_cgan_and_its_uncertainty(load):
    (finding,) = load([(40, 30, 100, 70)], "cgan", threshold=0.01).predict(mammogram()).findings
    assert 0 < finding.uncertainty < 0.5 and finding.lesion.shape in SHAPES
    (finding,) = load([(40, 30, 100, 70)]).predict(mammogram()).findings
    assert finding.uncertainty is None


def test_postprocessing_takes_specks_away(load):
    speck = ellipse()
    speck[28:31, 49:52] = 1
    record = mammogram(speck)
    box = mammogram().lesions[0].box
    kept = load([box], single=False).predict(record).findings[0]
    cleaned = (
        load([box], single=False, postprocess={"closing": 0, "erosion": 3, "dilation": 3})
        .predict(record)
        .findings[0]
    )
    assert mask_of(kept)[27:33, 47:54].any() and not mask_of(cleaned)[27:33, 47:54].any()
    assert dice(mask_of(cleaned), ellipse()) > 0.93


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {}}, "does not say how its patches are made"),
        ({"config": {"data": {"frame": "round"}}}, "does not say how its patches are made"),
        (card(patches="offset"), "data.patches=offset"),
        (card(size=32), "card.json"),
        (card(records="nowhere"), "nowhere"),
    ],
)
def test_a_segmenter_whose_patches_are_not_known(tmp_path, models, change, said):
    handle = export.export(KnownSegmenter(), tmp_path / "segmenter", {"name": "cgan", **change})
    path = detector(tmp_path / "detector", [])
    with pytest.raises(PipelineError, match=said) as raised:
        Pipeline.load(
            PipelineConfig(detector=path, segmenter=str(handle), classifier=str(models / "shape"))
        )
    assert str(raised.value).startswith(str(handle)) and "\n" not in str(raised.value)


def test_a_segmenter_of_records_asks_their_manifest(tmp_path, models):
    data = DataConfig(size=SIZE, frame="tight").model_dump(mode="json")
    columns = {name: [] for name in TEXTS}
    manifest = {
        "format": 1,
        "identity": {"data": data},
        "size": SIZE,
        "count": 0,
        "fingerprint": "",
        "histogram": [],
        "shards": [],
        "id_key": key_check(),
    }
    (tmp_path / "records").mkdir()
    (tmp_path / "records/manifest.json").write_text(json.dumps(manifest | {"columns": columns}))
    handle = export.export(
        KnownSegmenter(), tmp_path / "segmenter", card(records=str(tmp_path / "records"))
    )
    path = detector(tmp_path / "detector", [])
    pipeline = Pipeline.load(
        PipelineConfig(detector=path, segmenter=str(handle), classifier=str(models / "shape"))
    )
    assert pipeline.data.frame == "tight"


def test_handles_of_the_wrong_stage(tmp_path, models):
    path = detector(tmp_path / "detector", [])
    good = {
        "detector": path,
        "segmenter": str(models / "bright"),
        "classifier": str(models / "shape"),
    }
    with pytest.raises(ExportError, match="none of its functions leads from image to mask"):
        Pipeline.load(PipelineConfig(**good | {"segmenter": good["classifier"]}))
    with pytest.raises(ExportError, match="none of its functions leads from mask to shapes"):
        Pipeline.load(PipelineConfig(**good | {"classifier": good["segmenter"]}))
    with pytest.raises(TrackingError, match="neither a folder nor"):
        Pipeline.load(PipelineConfig(**good | {"segmenter": str(tmp_path / "nowhere")}))
    with pytest.raises(DetectionError, match="Object Detection API"):
        Pipeline.load(PipelineConfig(**good | {"detector": str(models / "bright/generator")}))


def test_the_report_says_what_was_found_by_what(load, models):
    record = mammogram(spacing=(0.1, 0.1), laterality="L", view="CC")
    box = record.lesions[0].box
    pipeline = load([box, (130, 90, 150, 110)], tracking_uri="https://user:secret@host")
    case = pipeline.predict(record)
    content = json.loads(json.dumps(build_report(case, pipeline), allow_nan=False))
    assert "secret" not in json.dumps(content) and '"p"' not in json.dumps(content)
    facts = {
        "image_id": "i",
        "rows": ROWS,
        "cols": COLS,
        "laterality": "L",
        "view": "CC",
        "spacing_mm": [0.1, 0.1],
    }
    assert content["mammogram"] == facts
    first, second = content["lesions"]
    area = int(mask_of(case.findings[0]).sum())
    assert (first["number"], first["kind"], first["score"], first["box"]) == (
        1,
        "mass",
        0.9,
        list(box),
    )
    assert first["area_px"] == area and first["area_mm2"] == pytest.approx(area / 100, abs=1e-3)
    assert first["shape"] in SHAPES and sum(first["shape_probabilities"].values()) == pytest.approx(
        1, abs=1e-3
    )
    assert second["number"] == 2 and second["score"] == 0.6
    assert content["models"]["segmenter"]["handle"] == "bright"
    assert str(models) not in json.dumps(content), "reports travel"
    assert (
        content["models"]["segmenter"]["step"] == 7
        and len(content["models"]["segmenter"]["card"]) == 64
    )
    assert content["models"]["detector"] == {
        "handle": Path(pipeline.config.detector).name,
        "card": None,
    }
    assert content["versions"].keys() == {"tfmammo", "tensorflow", "keras"} and content[
        "date"
    ].endswith("+00:00")
    assert content["config"]["postprocess"] == {"closing": 0, "erosion": 0, "dilation": 0}


def test_the_report_of_a_box_without_mask(load):
    pipeline = load([(40, 30, 100, 70)], "empty")
    (lesion,) = build_report(pipeline.predict(mammogram()), pipeline)["lesions"]
    measured = (
        "mask_box",
        "area_px",
        "area_mm2",
        "diameter_px",
        "diameter_mm",
        "shape",
        "shape_probabilities",
        "uncertainty",
    )
    assert all(lesion[name] is None for name in measured) and lesion["remarks"] == [
        "no mask: the segmenter marks nothing in the box"
    ]


def test_the_overlay_shows_boxes_outlines_and_words(load):
    record = mammogram()
    case = load([record.lesions[0].box]).predict(record)
    sheet = draw_overlay(case, side=640)
    assert sheet.shape == (640, 480, 3) and sheet.dtype == np.uint8
    coloured = (sheet == COLOURS[0]).all(axis=-1)
    top, left, bottom, right = (4 * np.array(record.lesions[0].box)).tolist()
    assert (
        coloured[top, left + 5 : right - 5].all()
        and coloured[top + 5 : bottom - 5, right - 1].all()
    )
    # the outline's upper end, on the box's upper side
    tip = 4 * (CENTRE[0] - RADII[0]) + 2, 4 * CENTRE[1] + 2
    side = coloured[4 * CENTRE[0] + 2, : 4 * CENTRE[1]]
    assert coloured[tip[0] - 6 : tip[0] + 7, tip[1]].any() and side.sum() >= 3
    assert coloured[: top - 1, left:].any()  # the words above
    bare = draw_overlay(replace(case, findings=()), side=640)
    grey = (np.ptp(bare.astype(int), axis=-1) == 0).all()
    assert grey and (bare[-40:] == 255).any() and not (bare[:-40] == 255).any()


@pytest.mark.parametrize("shape", [(3, 300), (300, 3), (1, 1)])
def test_an_overlay_of_any_size(shape):
    image = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(*shape, 1)
    record = Mammogram("made", "p", "i", *shape, partial(np.copy, image))
    findings = tuple(Finding("mass", 0.9, (0, 0, *shape)) for _ in range(9))
    assert max(draw_overlay(pipelines.PipelineResult(record, image, findings), 400).shape) == 400


def test_words_do_not_cover_one_another():
    image = np.ones((200, 200, 1), np.float32)
    record = Mammogram("made", "p", "i", 200, 200, partial(np.copy, image))

    def ground(count):  # the black under the words
        findings = tuple(Finding("mass", 0.9, (40, 40, 80, 80)) for _ in range(count))
        return (
            (draw_overlay(pipelines.PipelineResult(record, image, findings), 800) == 0)
            .all(axis=-1)
            .sum()
        )

    assert ground(1) > 1000 and ground(6) == pytest.approx(6 * ground(1), rel=0.05)
