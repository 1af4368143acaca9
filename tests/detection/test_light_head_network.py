"""Light-Head R-CNN: parameters, losses, gradients, refusals, learning, export, resuming."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.full_size import build_without_memory
from tests.small_detectors import LIGHT_HEAD
from tests.updates import assert_descends, read_weights
from tfmammo import config as configuration
from tfmammo.archives import phantom
from tfmammo.config import DataConfig, Experiment, TrackingConfig, TrainingConfig
from tfmammo.data.whole import letterbox, make_whole
from tfmammo.detection import light_head_rcnn, regions
from tfmammo.detection.detections import OUTPUTS, Detector
from tfmammo.detection.light_head_rcnn import (
    LightHeadRCNN,
    LightHeadRCNNConfig,
    write,
)
from tfmammo.detection.training import validate
from tfmammo.errors import DetectionError, ExportError
from tfmammo.mammogram import Skipped
from tfmammo.metrics.boxes import iou
from tfmammo.tracking import export as exporting
from tfmammo.tracking.export import read_card
from tfmammo.training import loop

SIZE = 64
PARTS = ("rpn_classification", "rpn_localisation", "classification", "localisation")


def make_model(size=SIZE, classes=1, **values):
    keras.utils.set_random_seed(0)
    return LightHeadRCNN(LightHeadRCNNConfig(**{**LIGHT_HEAD, **values}), size, classes)


def batch(images=2):
    """A bright square on noise, and a second box that is not there; whole.py's form."""
    random = np.random.default_rng(0)
    image = random.uniform(0, 0.2, (images, SIZE, SIZE, 1)).astype(np.float32)
    image[:, 20:44, 12:36] += 0.7
    boxes = np.zeros((images, 2, 4), np.float32)
    boxes[:, 0] = np.array([20, 12, 44, 36]) / SIZE
    return {
        "image": tf.constant(image),
        "boxes": tf.constant(boxes),
        "classes": tf.zeros([images, 2], tf.int32),
    }


def floats(losses):
    return {name: float(value) for name, value in losses.items()}


def test_the_papers_values_are_the_defaults(repository):
    c = LightHeadRCNNConfig()
    assert (c.blocks, c.rpn_width) == ((3, 4, 23, 3), 512)
    assert (c.anchor_scales, c.anchor_ratios) == ((2, 4, 8, 16, 32), (0.5, 1, 2))
    assert (c.kernel, c.middle, c.bins, c.channels, c.units) == (15, 256, 7, 10, 2048)
    assert (c.rpn_nms, c.hard_examples, c.rpn_samples, c.rpn_share) == (0.7, 256, 256, 0.5)
    assert c.learning_rate == 2e-4
    file = repository / "configs/light_head_rcnn.yaml"
    shipped = configuration.load(file, ["data.tiles={overlap: 128}"], LightHeadRCNNConfig)
    assert (shipped.training.epochs, shipped.training.batch_size) == (10, 4)
    light_head_rcnn.check(shipped)
    assert shipped.data.shape == (1344, 800), "the paper's canvas is no square"
    square = configuration.load(file, ["data.canvas=null", "data.size=320"], LightHeadRCNNConfig)
    assert square.data.shape == (320, 320)


@pytest.mark.parametrize(
    ("blocks", "published"), [((3, 4, 6, 3), "ResNet50"), ((3, 4, 23, 3), "ResNet101")]
)
def test_parameters_of_the_papers_network(blocks, published, monkeypatch):
    """ResNet, RPN, separable convolution, hidden layer, class scores and a box.

    The RPN has 15 anchors on C4; the classes are background and lesion.
    """
    config = LightHeadRCNNConfig(weights="none", batch_norm="running", blocks=blocks)
    model = build_without_memory(lambda: LightHeadRCNN(config, 64), monkeypatch)
    resnet = {"ResNet50": 23_587_712, "ResNet101": 42_658_176}[published]
    rpn = (9 * 1024 * 512 + 512) + (512 * 15 + 15) + (512 * 60 + 60)
    head = (490 * 2048 + 2048) + (2048 * 2 + 2) + (2048 * 4 + 4)
    assert model.networks["detector"].count_params() == resnet + rpn + 19_493_332 + head
    shapes = [answer.shape for answer in model.backbone.outputs]
    assert shapes == [(None, 240), (None, 240, 4), (None, 4, 4, 490)], "stride 16"
    assert model.backbone.get_layer("conv5_block1_2_conv").dilation_rate == (2, 2)
    original = build_without_memory(
        lambda: getattr(keras.applications, published)(weights=None, include_top=False), monkeypatch
    )
    for layer in original.layers:
        if layer.weights:  # takes the published weights
            ours = model.backbone.get_layer(layer.name).weights
            assert [each.shape for each in ours] == [each.shape for each in layer.weights]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)  # Keras 3.15 saving, numpy 2
def test_pretrained_weights_give_kerass_c4(tmp_path):
    """Keras's network of random weights, read from its file, has the same C4."""
    keras.utils.set_random_seed(0)
    theirs = keras.applications.ResNet50(weights=None, include_top=False)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(2.0 * np.ones(layer.moving_variance.shape))
    theirs.save(tmp_path / "resnet50.h5", include_optimizer=False)
    image = batch(1)["image"]
    colour = 255 * np.repeat(image, 3, axis=-1) - np.float32([103.939, 116.779, 123.68])
    c4 = theirs.get_layer("conv4_block6_out").output
    expected = keras.Model(theirs.input, c4)(colour).numpy()
    del theirs, c4  # a hundred megabytes
    read = {"weights": str(tmp_path / "resnet50.h5"), "blocks": (3, 4, 6, 3)}
    model = make_model(batch_norm="frozen", filters=64, **read)
    digest = hashlib.sha256((tmp_path / "resnet50.h5").read_bytes()).hexdigest()
    assert model.pretrained == {"backbone": ("Keras's ResNet-50", digest)}
    backbone = model.backbone
    ours = keras.Model(backbone.input, backbone.get_layer("rpn").input)(image)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * np.max(expected))


def test_a_step_leaves_frozen_normalisations_as_they_are(monkeypatch):
    blocks = (1, 1, 1, 1)  # published weights would take hundreds of megabytes
    monkeypatch.setitem(light_head_rcnn.RESNETS, blocks, "resnet")
    monkeypatch.setattr(light_head_rcnn, "adopt_resnet", lambda *_: None)
    model = make_model(batch_norm="frozen", weights="published", filters=64, blocks=blocks)
    before = {variable.path: variable.numpy() for variable in model.backbone.variables}
    model.train_step(batch(1))
    after = {variable.path: variable.numpy() for variable in model.backbone.variables}
    kept = {path for path in before if np.array_equal(before[path], after[path])}
    assert kept == {path for path in before if "_bn/" in path}
    assert len(kept) == 4 * sum("_bn/gamma" in path for path in before) > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"weights": "imagenet", "filters": 8}, "filters 64 and blocks"),
        ({"weights": "imagenet", "blocks": (1, 1, 1, 1)}, "filters 64 and blocks"),
        ({"weights": "none"}, "batch_norm frozen needs weights"),
        ({"rpn_low": 0.8}, "rpn_low"),
        ({"anchor_scales": ()}, "anchor_scales"),
        ({"learning_rat": 1}, "learning_rat"),
    ],
)
def test_configs_that_make_no_sense(wrong, said):
    with pytest.raises(ValidationError, match=said):
        LightHeadRCNNConfig(**wrong)
    with pytest.raises(DetectionError, match="multiples of 16 px"):
        make_model((64, 40))


def test_the_first_losses_by_hand():
    """Zeroed last layers give 1/2 for every anchor and region, and move none.

    Only the targets are left.
    """
    model = make_model()
    data = batch(1)
    zeroed = [model.backbone.get_layer(name) for name in ("rpn_objectness", "rpn_deltas")]
    zeroed += [model.head.get_layer(name) for name in ("logits", "deltas")]
    for layer in zeroed:
        layer.kernel.assign(tf.zeros_like(layer.kernel))
    truth = data["boxes"].numpy()[0, :1].astype(float)
    anchors = model.anchors.numpy().astype(float)
    overlap = iou(anchors, truth)[:, 0]
    positive = (overlap >= 0.7) | np.isclose(overlap, overlap.max())
    sampled = positive.sum() + (~positive & (overlap < 0.3)).sum()
    # all anchors of 64 px are sampled but those in between
    assert 0 < positive.sum() < sampled < 144
    top, left, bottom, right = anchors[positive].T
    heights, widths = bottom - top, right - left
    centres = (32 / 64 - (top + bottom) / 2) / heights, (24 / 64 - (left + right) / 2) / widths
    delta = np.stack([*centres, np.log(0.375 / heights), np.log(0.375 / widths)])
    l1 = np.where(np.abs(delta) < 1 / 9, delta**2 * 4.5, np.abs(delta) - 1 / 18).sum()
    losses = floats(model.train_step(data))
    assert losses["rpn_classification"] == pytest.approx(np.log(2), rel=1e-5)
    assert losses["rpn_localisation"] == pytest.approx(l1 / sampled, rel=1e-4)
    assert losses["classification"] == pytest.approx(np.log(2), rel=1e-5)
    assert losses["detector_loss"] == pytest.approx(sum(losses[name] for name in PARTS), rel=1e-5)


def test_the_heads_losses_are_means_over_the_hardest():
    model = make_model(classes=2, hard_examples=3)
    data = batch(1)
    maps = tf.random.stateless_normal([1, 4, 4, 18], (0, 1))
    corners = [
        [20, 12, 44, 36],
        [22, 12, 44, 36],
        [0, 0, 30, 30],
        [30, 30, 60, 60],
        [2, 40, 20, 60],
        [0, 0, 9, 9],
    ]
    proposals = tf.constant([corners], tf.float32) / SIZE
    there = tf.constant([[True] * 5 + [False]])
    model.head.get_layer("logits").kernel.assign(tf.random.stateless_normal([8, 3], (0, 2)))
    model.head.get_layer("deltas").kernel.assign(tf.random.stateless_normal([8, 8], (0, 3)))
    logits, deltas = (
        np.asarray(value, float)[0] for value in model.predict_regions(maps, proposals)
    )
    label = np.array([2, 2, 0, 0, 0, 0])
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    entropy = -log_probabilities[np.arange(6), label]
    wanted = np.array([[0, 0, 0, 0], [(32 - 33) / 22 / 0.1, 0, np.log(24 / 22) / 0.2, 0]])
    off = np.abs(deltas[:2, 1] - wanted)
    distance = np.append(np.where(off < 1, off**2 / 2, off - 0.5).sum(1), np.zeros(4))
    hardest = np.argsort(-(entropy + distance)[:5])[:3]
    classification, localisation = model.head_losses(
        maps, proposals, there, data["boxes"], tf.ones([1, 2], tf.int32)
    )
    assert float(classification) == pytest.approx(entropy[hardest].mean(), rel=1e-4)
    assert float(localisation) == pytest.approx(distance[hardest].mean(), rel=1e-4)


@pytest.mark.slow
def test_the_network_descends_the_sum_of_its_four_losses():
    model, reference = make_model(), make_model()
    data = batch()
    truth = data["boxes"]
    objectness, deltas, _ = reference.backbone(data["image"], training=True)
    proposals, is_valid = reference.propose(objectness, deltas)  # no gradient passes them
    boxes = tf.concat([proposals, truth], axis=1)
    is_valid = tf.concat([is_valid, regions.area(truth) > 0], axis=1)

    def loss():
        objectness, deltas, maps = reference.backbone(data["image"], training=True)
        rpn = reference.rpn_losses(objectness, deltas, truth)
        head = reference.head_losses(maps, boxes, is_valid, truth, data["classes"])
        return rpn[0] + rpn[1] + head[0] + head[1]

    before = read_weights(model)["detector"]
    assert_descends(model, reference, data, detector=loss)
    pairs = list(zip(before, read_weights(model)["detector"], strict=True))
    assert len(pairs) > 50
    assert not any(np.array_equal(*pair) for pair in pairs), "gradients reach every part"


def test_the_optimizer_has_the_configs_values():
    values = {"learning_rate": 3e-3, "beta_1": 0.3, "beta_2": 0.7}
    config = make_model(**values).optimizers["detector"].get_config()
    expected = {"epsilon": 1e-7, "name": "detector"} | values
    assert {key: config[key] for key in expected} == pytest.approx(expected)


@pytest.mark.long
def test_boxes_that_are_not_there_do_not_count():
    def losses_of(data):
        return floats(make_model().train_step(data))

    data = batch()
    first = data["boxes"][:, :1]
    flat = data | {"boxes": tf.concat([first, [[[0.5, 0.1, 0.5, 0.9]]] * 2], axis=1)}
    alone = data | {"boxes": first, "classes": data["classes"][:, :1]}
    expected = losses_of(alone)
    for other in (data, flat):
        assert losses_of(other) == pytest.approx(expected, rel=1e-4)
    # mammograms without lesions have defined losses
    losses = losses_of(data | {"boxes": tf.zeros_like(data["boxes"])})
    assert all(np.isfinite(list(losses.values())))
    assert losses["rpn_localisation"] == losses["localisation"] == 0
    assert losses["classification"] > 0 and losses["rpn_classification"] > 0


@pytest.mark.slow
def test_random_samples_follow_from_the_step_and_the_seed():
    data = batch()
    model = make_model(rpn_samples=4)
    objectness, deltas, _ = model.backbone(data["image"], training=False)

    def sampled(seed, step):
        again = make_model(rpn_samples=4)
        keras.utils.set_random_seed(seed)
        again.optimizers["detector"].iterations.assign(step)
        return again.rpn_losses(objectness, deltas, data["boxes"])

    np.testing.assert_array_equal(sampled(0, 0), sampled(0, 0))
    assert len({float(sampled(*drawn)[0]) for drawn in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.mark.slow
def test_detections_have_their_form():
    model = make_model(classes=2, detections=7)
    data = batch()
    outputs = {name: value.numpy() for name, value in model.detect(data["image"]).items()}
    boxes, scores, classes, count = outputs.values()
    assert tuple(outputs) == OUTPUTS and boxes.shape == (2, 7, 4) and count.shape == (2,)
    assert set(np.unique(classes)) <= {0, 1} and boxes.min() >= 0 and boxes.max() <= 1
    assert (np.diff(scores) <= 0).all() and 0 < scores.max() < 1
    answer = model.functions()["detector"](image=data["image"])
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-5)
    panels = model.sample({**data, "mask": data["image"]})
    assert list(panels) == ["image", "detected", "truth"]
    assert panels["detected"].shape == (2, SIZE, SIZE, 1)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_has_the_same_first_losses(policy):
    data = batch()
    exact = floats(make_model().train_step(batch()))
    keras.config.set_dtype_policy(policy)
    model = make_model()
    losses = model.train_step(data)
    assert all(value.dtype == tf.float32 for value in losses.values())
    for name, value in floats(losses).items():
        assert value == pytest.approx(exact[name], rel=0.1, abs=0.02)
    assert all(np.isfinite(list(floats(model.train_step(data)).values())))


def oblong():
    """A bright square of 24 px on a canvas of 96 x 64 px: other parts of its rows and columns."""
    image = np.random.default_rng(0).uniform(0, 0.2, (2, 96, 64, 1)).astype(np.float32)
    image[:, 52:76, 12:36] += 0.7
    boxes = np.tile(np.array([52 / 96, 12 / 64, 76 / 96, 36 / 64], np.float32), (2, 1, 1))
    return {"image": tf.constant(image), "boxes": boxes, "classes": tf.zeros([2, 1], tf.int32)}


@pytest.fixture(scope="module")
def taught():
    """A small detector that has learnt one bright square by heart."""
    keras.config.set_dtype_policy("float32")
    model = make_model((96, 64), filters=8, units=16, learning_rate=3e-3, momentum=0.8)
    step = tf.function(model.train_step)
    history = [floats(step(oblong())) for _ in range(80)]
    return model, history


@pytest.mark.long
def test_it_learns_where_the_lesion_is(taught):
    model, history = taught
    cells = 6 * 4 * 9
    assert model.backbone.output_shape == [(None, cells), (None, cells, 4), (None, 6, 4, 18)]
    assert history[-1]["detector_loss"] < 0.3 * history[0]["detector_loss"]
    outputs = model.functions()["detector"](image=oblong()["image"])
    assert (regions.iou(outputs["boxes"], oblong()["boxes"]).numpy()[:, 0] > 0.7).all()


@pytest.mark.slow
def test_the_saved_model_gives_the_same_boxes_as_the_live_one(taught, tmp_path):
    model, _ = taught
    described = write(model, tmp_path)["detector"]
    assert set(described["outputs"]) == set(OUTPUTS)
    assert list(described["inputs"]) == ["input_tensor"]
    assert len(described["variables"]) == len(model.networks["detector"].variables)
    image = oblong()["image"]
    live = model.detect(image)
    colour = tf.constant(255 * np.repeat(image, 3, axis=-1))
    served = tf.saved_model.load(str(tmp_path / "detector"))
    answer = served.signatures["serving_default"](input_tensor=colour)
    sure = int(np.sum(live["detection_scores"].numpy()[0] > 0.3))
    assert sure >= 1
    for name, more in (("detection_boxes", 0), ("detection_classes", 1)):
        np.testing.assert_allclose(answer[name][:, :sure], live[name][:, :sure] + more, atol=1e-4)
    np.testing.assert_allclose(answer["detection_scores"], live["detection_scores"], atol=1e-3)
    np.testing.assert_array_equal(answer["num_detections"], live["num_detections"])


@pytest.mark.slow
def test_an_export_that_answers_otherwise_is_refused(taught, tmp_path, monkeypatch):
    model, _ = taught
    load = tf.saved_model.load

    def spoilt(path):
        loaded = load(path)
        for variable in loaded.weights:
            if variable.shape.rank > 1:
                variable.assign(2 * variable)
        return loaded

    monkeypatch.setattr(tf.saved_model, "load", spoilt)
    with pytest.raises(ExportError, match="the detector: .* differs"):
        write(model, tmp_path)


def experiment(uri, steps):
    training = {"steps": steps, "batch_size": 2, "steps_per_loop": 1, "grid_samples": 1}
    return Experiment[LightHeadRCNNConfig](
        name="light_head_rcnn",
        data=DataConfig(size=SIZE, kinds=("mass",), folds=2),
        training=TrainingConfig(precision="float32", **training),
        tracking=TrackingConfig(uri=uri, system_metrics=False, register_models=False),
        model=LightHeadRCNNConfig(**LIGHT_HEAD),
    )


@pytest.mark.long
def test_a_run_is_continued_exported_and_started_from(tmp_path, tracking_uri, caplog):
    caplog.set_level("INFO")
    records = phantom.read(count=12)
    whole = make_whole(records, DataConfig(size=SIZE, kinds=("mass",)), Skipped())
    sides = np.unique(whole.patient_ids, return_inverse=True)[1] % 2
    train = whole.take(np.flatnonzero(sides == 0))
    held_out = whole.take(np.flatnonzero(sides == 1))
    for steps in (2, 4):
        metrics = loop.Training(
            make_model,
            experiment(tracking_uri, steps),
            train,
            held_out,
            tmp_path,
            validate,
            monitor="recall",
            write=write,
        ).fit()
    assert "from the start to step 2" in caplog.text and "from step 2 to step 4" in caplog.text
    assert set(metrics) == {"recall", "recall_of_all", "froc"}
    card = read_card(tmp_path / "export")
    assert (card["step"], card["serves"], card["name"]) == (4, "detector", "light_head_rcnn")
    assert set(card["train_patients"]) == set(train.patient_ids.tolist())

    fresh = make_model()
    exporting.assign(fresh.networks, tmp_path / "export")
    mammogram = next(record for record in records if record.lesions)
    square, scale = letterbox(mammogram.pixels(), experiment(tracking_uri, 4).data)
    expected = fresh.detect(square[np.newaxis])
    detector = Detector.load(tmp_path)
    predictions = detector.predict(mammogram)
    assert 0 < len(predictions) <= 20 and set(predictions.classes) == {"mass"}
    assert predictions.boxes.max() > 100, "native px"
    np.testing.assert_allclose(
        predictions.scores, expected["detection_scores"][0, : len(predictions)], atol=1e-4
    )
    assert detector.saw(train.patient_ids[0]) and not detector.saw(held_out.patient_ids[0])
    np.testing.assert_array_equal(
        Detector.load(tmp_path / "export/detector").predict(mammogram).boxes, predictions.boxes
    )


def test_no_proposal_is_narrower_than_a_pixel_of_either_side():
    model = make_model((96, 64))
    objectness = tf.zeros([1, len(model.anchors)])
    deltas = tf.concat([tf.zeros([1, len(model.anchors), 2]), tf.fill([1, 216, 2], -20.0)], -1)
    for one_side in ([0, 0, 0, 20], [0, 0, 20, 0]):  # thin in rows, thin in columns
        narrow = deltas + tf.constant(one_side, tf.float32)
        assert not model.propose(objectness, narrow)[1].numpy().any()
    assert model.propose(objectness, tf.zeros_like(deltas))[1].numpy().any()


@pytest.mark.slow
def test_the_rate_falls_while_it_trains():
    model = make_model(filters=4, units=8, learning_rate=1e-3, decay=2)
    data = batch()
    step = tf.function(model.train_step)
    for _ in range(2):
        step(data)
    before = [variable.numpy() for variable in model.networks["detector"].trainable_variables]
    step(data)  # at a rate of 0
    for variable, value in zip(model.networks["detector"].trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
