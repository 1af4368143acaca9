"""The Mask R-CNN: settings for tf-models-official, refusals; with the extra, losses and export.

The networks of these tests have a ResNet-10 and few filters, and see 128 px; only the count of
parameters takes the paper's.
"""

import importlib.util
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.exported_detectors import write_detector_card
from tfmammo.archives import phantom
from tfmammo.config import DataConfig, TrainingConfig
from tfmammo.detection import mask_rcnn
from tfmammo.detection.detections import Detector
from tfmammo.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig, make_settings
from tfmammo.detection.training import restore_checkpoint
from tfmammo.errors import DetectionError
from tfmammo.mammogram import Mammogram
from tfmammo.tracking.export import read_card

HAS_EXTRA = importlib.util.find_spec("object_detection") is not None
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason='needs pip install "tfmammo[detection]"')
SIZE = 128
SMALL = {"depth": 10, "filters": 16, "fully_connected": 32}
SMALL |= {"proposals": 32, "rois": 16, "detections": 5}
CONFIG = MaskRCNNConfig(
    **SMALL, anchor_scale=4, lambda_loc=2, lambda_seg=3, learning_rate=1e-3, warmup=0
)


@pytest.mark.parametrize(
    ("values", "training", "expected"),
    [
        ({}, {"epochs": 40}, [30, 30, 40]),  # the paper's
        ({}, {"steps": 1000, "epochs": 40}, [300, 300, 400]),
        ({"heads_epochs": 0}, {"epochs": 5}, [0, 30, 5]),
        ({"heads_epochs": 0, "upper_epochs": 0}, {"steps": 400, "epochs": 40}, [0, 0, 400]),
        ({"heads_epochs": 1, "upper_epochs": 98}, {"steps": 50, "epochs": 1}, [1, 48, 1]),
        ({"checkpoint": None}, {"epochs": 40}, [0, 0, 40]),  # what is frozen would be random
    ],
)
def test_the_stages(values, training, expected):
    stages = MaskRCNNConfig(**{"checkpoint": "coco", **values}).stages(TrainingConfig(**training))
    key = "steps" if "steps" in training else "epochs"
    lengths = {stage: getattr(one, key) for stage, one in stages}
    assert [lengths.pop(stage, 0) for stage in ("heads", "upper", "all")] == expected
    assert not lengths


def test_steps_are_shared_by_the_stages_in_the_papers_proportion():
    """30, 30 and 40 of 100 epochs, whatever the training set."""
    coco = MaskRCNNConfig(checkpoint="coco")
    for steps in range(3, 40):
        stages = coco.stages(TrainingConfig(steps=steps, epochs=40))
        shares = [one.steps for _, one in stages]
        assert sum(shares) == steps and min(shares) > 0
        assert np.abs(np.array(shares) - steps * np.array([0.3, 0.3, 0.4])).max() < 2
    with pytest.raises(DetectionError, match="training.steps"):
        coco.stages(TrainingConfig(steps=2, epochs=40))


def test_what_comes_from_a_checkpoint_keeps_its_batch_norm():
    assert MaskRCNNConfig(checkpoint="coco").frozen_norm and not MaskRCNNConfig().frozen_norm
    assert not MaskRCNNConfig(checkpoint="coco", batch_norm="running").frozen_norm
    for values in ({"batch_norm": "frozen"}, {"heads_epochs": 1}, {"upper_epochs": 1}):
        with pytest.raises(ValidationError, match="needs a checkpoint|which needs a check"):
            MaskRCNNConfig(**values)


def test_what_the_task_is_told():
    config = MaskRCNNConfig(lambda_loc=2, lambda_seg=3, rois=64, nms_iou=0.45, regularisation=7e-6)
    settings = make_settings(config, (384, 256), 2)
    model, losses = settings["model"], settings["losses"]
    assert model["detection_generator"]["nms_iou_threshold"] == 0.45
    assert losses["l2_weight_decay"] == 7e-6
    assert (model["num_classes"], model["input_size"]) == (3, [384, 256, 3])
    assert model["backbone"]["resnet"]["model_id"] == 50
    assert (losses["frcnn_box_weight"], losses["mask_weight"]) == (2, 3)
    # of 64 regions a quarter at most shows a lesion
    assert model["mask_sampler"]["num_sampled_masks"] == 16


def batch():
    """Two equal mammograms with one bright mass each, and space for a second box.

    The mass's upper left quarter is empty.
    """
    image = np.full((2, SIZE, SIZE, 1), 0.1, np.float32)
    mask = np.zeros((2, SIZE, SIZE, 1), np.float32)
    image[:, 20:60, 30:70] = 0.9
    mask[:, 20:60, 30:70] = 1
    mask[:, 20:40, 30:50] = 0
    boxes = np.zeros((2, 2, 4), np.float32)
    boxes[:, 0] = np.array([20, 30, 60, 70]) / SIZE
    values = {"image": image, "mask": mask, "boxes": boxes, "classes": np.zeros((2, 2), np.int32)}
    return {name: tf.constant(value) for name, value in values.items()}


def values(model):
    return [variable.numpy() for variable in model.networks["detector"].variables]


def numbers(losses):
    return {name: float(value) for name, value in losses.items()}


@pytest.fixture(scope="module")
def model():
    tf.random.set_seed(1)
    return MaskRCNN(CONFIG, SIZE, 1)


@pytest.fixture(scope="module")
def trained(model):
    """The model's losses: of a first step, of the last of ten, and without a lesion."""
    step = tf.function(model.train_step)
    data = batch()
    losses = [numbers(step(data)) for _ in range(10)]
    return losses[0], losses[-1], numbers(step(data | {"boxes": tf.zeros_like(data["boxes"])}))


@pytest.fixture(scope="module")
def exported(model, trained, tmp_path_factory):
    """The export of the trained model, as the loop writes it."""
    folder = tmp_path_factory.mktemp("run") / "export"
    folder.mkdir()
    described = mask_rcnn.write(model, folder)
    data = DataConfig(size=SIZE, percentiles=(0, 100), kinds=("mass",))
    write_detector_card(folder, data, ["p1"], "mask_rcnn", described)
    return folder


def by_layer(network):
    """The variables of each layer in turn: a network's own list has those of frozen layers last."""
    layers = [
        layer
        for layer in network.submodules
        if hasattr(layer, "variables") and not list(layer.submodules)
    ]
    return [variable for layer in layers for variable in layer.variables]


@pytest.mark.long
@needs_extra
@pytest.mark.detection
@pytest.mark.slow
class TestNetwork:
    def test_parameters_of_the_papers_network(self):
        network = MaskRCNN(size=SIZE).networks["detector"]
        sizes = [int(np.prod(variable.shape)) for variable in network.trainable_variables]
        assert sum(sizes) == 45_888_091

    def test_the_loss_is_the_weighted_sum_of_its_parts_and_falls(self, trained):
        first, last, _ = trained
        alone = ("rpn_score_loss", "rpn_box_loss", "frcnn_cls_loss", "weight_decay")
        whole = sum(first[name] for name in alone)
        whole += 2 * first["frcnn_box_loss"] + 3 * first["mask_loss"]
        assert first["detector_loss"] == pytest.approx(whole, rel=1e-4)
        assert last["detector_loss"] < first["detector_loss"]

    def test_without_a_lesion_there_is_nothing_to_place_or_outline(self, trained):
        *_, lesionless = trained
        assert all(np.isfinite(value) for value in lesionless.values())
        for name in ("frcnn_box_loss", "mask_loss", "rpn_box_loss"):
            assert lesionless[name] == 0 < lesionless["frcnn_cls_loss"]

    def test_what_there_is_to_find(self, model):
        """The mask is the union's part within the box; classes count from 1."""
        image, labels = model._targets(batch())
        assert image.shape == (2, SIZE, SIZE, 3)
        boxes = labels["gt_boxes"][0, :2]
        np.testing.assert_allclose(boxes, [[20, 30, 60, 70], [-1] * 4], atol=1e-3)
        assert labels["gt_classes"][0, :2].numpy().tolist() == [1, -1]
        # at the border interpolation reaches out of the box
        mask = labels["gt_masks"][0, 0].numpy()[4:-4, 4:-4]
        assert labels["gt_masks"].shape[2:] == (112, 112), "2.8 to a px"
        assert mask[:46, :46].max() == 0 and mask[58:].min() == mask[:, 58:].min() == 1
        # 0.1 and 0.9 by the means and standard deviations of ImageNet's channels
        expected = [(0.1 - 0.485) / 0.229, (0.1 - 0.456) / 0.224, (0.1 - 0.406) / 0.225]
        np.testing.assert_allclose(image[0, 0, 0], expected, rtol=1e-4)

    def test_a_step_and_boxes_on_a_canvas_of_odd_multiples_of_64_px(self):
        """3 x 5 cells of the pyramid's highest level; the mass is 40 x 40 px of 192 x 320."""
        tf.random.set_seed(1)
        shape = (192, 320)
        mass = [84, 30, 124, 70]
        model = MaskRCNN(CONFIG, shape, 1)
        known = batch()
        data = {
            name: tf.pad(known[name], [[0, 0], [64, 0], [0, 192], [0, 0]])
            for name in ("image", "mask")
        }
        part = np.array(mass) / (shape * 2)
        boxes = tf.where(known["boxes"][..., 2:3] > 0, tf.constant(part, tf.float32), 0.0)
        data |= {"boxes": boxes, "classes": known["classes"]}
        image, labels = model._targets(data)
        assert image.shape == (2, *shape, 3)
        np.testing.assert_allclose(labels["gt_boxes"][0, :2], [mass, [-1] * 4], atol=1e-3)
        losses = numbers(model.train_step(data))
        assert all(np.isfinite(value) for value in losses.values())
        assert losses["mask_loss"] > 0 and losses["rpn_box_loss"] > 0
        assert model.detect(data["image"])["detection_boxes"].shape == (2, 5, 4)
        (spec,) = model.make_serving_function().input_signature
        assert spec.shape.as_list() == [None, *shape, 3]

        def network(image, image_shape, training):
            assert image_shape.numpy().tolist() == [[*shape]] * 2 and not training
            assert image.shape == (2, *shape, 3)
            parts = {
                "detection_scores": tf.ones([2, 5]),
                "detection_classes": tf.ones([2, 5]),
                "num_detections": tf.constant([5, 1]),
                "detection_boxes": tf.tile([[tf.constant(mass, tf.float32)] * 5], [2, 1, 1]),
            }
            return parts | {"detection_masks": tf.ones([2, 5, 28, 28])}

        model.model = network
        detected = model._detect(data["image"])["detection_boxes"]
        np.testing.assert_allclose(detected[0], [part] * 5, rtol=1e-6)
        np.testing.assert_allclose(detected[1, 0], boxes[1, 0], rtol=1e-6)

    @pytest.mark.parametrize("stage", ["heads", "upper"])
    def test_a_stage_starts_from_the_one_before_and_moves_what_it_trains(
        self, model, exported, stage
    ):
        later = MaskRCNN(CONFIG, SIZE, 1, stage, exported / mask_rcnn.CHECKPOINT)
        before = values(later)
        for value, expected in zip(before, values(model), strict=True):
            np.testing.assert_array_equal(value, expected)
        later.train_step(batch())
        pairs = zip(later.networks["detector"].variables, before, strict=True)
        moved = {id(variable) for variable, value in pairs if not np.array_equal(variable, value)}
        layers = later.model.backbone.layers
        split = [layer.name for layer in layers].index("block_group_l3") + 1
        frozen = layers if stage == "heads" else layers[:split]
        assert sum(len(layer.variables) for layer in frozen) > 20
        # averages of BatchNorm among them
        assert not moved & {id(variable) for layer in frozen for variable in layer.variables}
        upper = {id(variable) for layer in layers[split:] for variable in layer.variables}
        assert len(moved & upper) > 0.9 * len(upper) or stage == "heads"
        pyramid = {id(variable) for variable in later.model.decoder.trainable_variables}
        assert len(moved & pyramid) > 0.5 * len(pyramid)

    def test_resnet_pyramid_and_proposals_start_from_a_checkpoint_and_the_rest_does_not(
        self, model, exported
    ):
        config = CONFIG.model_copy(update={"checkpoint": exported / mask_rcnn.CHECKPOINT})
        ours, theirs = MaskRCNN(config, SIZE, 2).model, model.model
        for name in ("backbone", "decoder", "rpn_head"):
            variables = (by_layer(getattr(detector, name)) for detector in (ours, theirs))
            assert all(np.array_equal(*pair) for pair in zip(*variables, strict=True)), name
        one, other = (each.mask_head.trainable_variables[0].numpy() for each in (ours, theirs))
        assert not np.array_equal(one, other)

    def test_the_resnets_batch_norm_stays_as_its_checkpoint_has_it(self, exported):
        config = CONFIG.model_copy(update={"checkpoint": exported / mask_rcnn.CHECKPOINT})
        detector = MaskRCNN(config, SIZE, 1)
        backbone = detector.model.backbone
        layers = [m for m in backbone.submodules if type(m).__name__ == "BatchNormalization"]
        norms = {id(variable) for layer in layers for variable in layer.variables}
        before = [variable.numpy() for variable in backbone.variables]
        detector.train_step(batch())
        assert len(layers) == 13
        for variable, value in zip(backbone.variables, before, strict=True):
            assert np.array_equal(variable, value) == (id(variable) in norms)

    def test_a_wrong_checkpoint_is_one_sentence(self, exported, model):
        parts = {"decoder": model.model.backbone}
        with pytest.raises(DetectionError, match="model.checkpoint"):
            restore_checkpoint(exported / mask_rcnn.CHECKPOINT, parts, "depth")
        with pytest.raises(DetectionError, match="neither a checkpoint"):
            restore_checkpoint(exported / "nowhere", parts, "depth")

    def test_the_export_finds_what_the_live_network_finds(self, model, exported):
        image = batch()["image"].numpy()[:1]
        mammogram = Mammogram("made", "p", "i", SIZE, SIZE, partial(np.copy, image[0]))
        predictions = Detector.load(exported).predict(mammogram)
        # percentiles 0 and 100: what the detector sees reaches from 0 to 1
        live = {name: value[0].numpy() for name, value in model.detect((image - 0.1) / 0.8).items()}
        count = int(live["num_detections"])
        assert len(predictions) == count > 0 and predictions.masks.shape == (count, SIZE, SIZE)
        expected = live["detection_boxes"][:count] * SIZE
        np.testing.assert_allclose(predictions.boxes, expected, atol=0.01 * SIZE)
        np.testing.assert_allclose(predictions.scores, live["detection_scores"][:count], atol=1e-3)
        masks = live["detection_masks"]
        assert masks.shape == (5, 28, 28) and 0 <= masks.min() <= masks.max() <= 1
        for box, mask in zip(predictions.boxes, predictions.masks, strict=True):
            rows, cols = np.nonzero(mask)
            outside = (rows + 1 < box[0]) | (rows > box[2]) | (cols + 1 < box[1]) | (cols > box[3])
            assert not outside.any()


@pytest.mark.long
@needs_extra
@pytest.mark.detection
@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "stages", [("heads",), pytest.param(("heads", "upper"), marks=pytest.mark.nightly)]
)
def test_two_steps_of_each_stage(repository, tmp_path, exported, stages):
    """Every stage has a folder of its own; the last one's export is the run's."""
    overrides = [
        *("data.size=128", "data.phantoms=12", "data.folds=2", "training.batch_size=2"),
        *("training.epoch_samples=4", "training.epochs=1"),
        f"model.checkpoint={exported / mask_rcnn.CHECKPOINT}",
        *("model.heads_epochs=1", f"model.upper_epochs={int('upper' in stages)}"),
        "model.anchor_scale=4",
        *(f"model.{name}={value}" for name, value in SMALL.items()),
        "tracking.system_metrics=false",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]
    config = repository / "configs/mask_rcnn.yaml"
    command = [sys.executable, repository / "train/mask_rcnn.py", "--config", config]
    command += ["--output", tmp_path / "run", "--set", *overrides]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=2900
    )
    assert done.returncode == 0, done.stderr
    cards = [read_card(tmp_path / "run" / folder / "export") for folder in (*stages, ".")]
    assert [card["step"] for card in cards] == [2] * len(cards)
    for card in cards:
        assert card["serves"] == "saved_model" and set(card["metrics"]) >= {"recall", "froc"}
    assert cards[0]["train_patients"] == cards[-1]["train_patients"] and cards[-1]["train_patients"]
    mammogram = next(record for record in phantom.read(count=4) if record.lesions)
    predictions = Detector.load(tmp_path / "run").predict(mammogram)
    assert predictions.masks.shape == (len(predictions), mammogram.rows, mammogram.cols)
