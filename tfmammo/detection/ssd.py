"""SSD: single-shot detection of lesions by the TensorFlow Object Detection API.

The API builds the network, its losses and its export from a pipeline.config, which
`make_pipeline` writes from our own config. Data, loop, checkpoints and tracking are this
package's: the API's own training script needs an estimator that TensorFlow no longer has. Two
detectors of the API's zoo can be trained:

- mobilenet_v2: MobileNet-V2 with a feature pyramid of separable convolutions ("SSD MobileNet V2
  FPNLite").
- resnet50: ResNet-50 with a full feature pyramid (RetinaNet).

The API (extra "detection") is imported when a network is built. It only works where
TF_USE_LEGACY_KERAS=1 and PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python are set before TensorFlow
is imported; train/ssd.py sets them. Its exports need neither.

Deviation from the paper: neither is the SSD of Liu et al. (2016), whose name the paper gives. That
one is a VGG-16 with further layers, predicts from several maps without a feature pyramid, and
learns by softmax from the hardest negatives. Both networks here have a feature pyramid (FPN) and
learn by the focal loss, as RetinaNet does.

Deviations from the zoo, and what the paper's text leaves open:
- Anchors: 2 * 2^level px and sqrt(2) times that, 16 to 360 px, half of the zoo's: in a mammogram
  scaled to 320 px masses measure 10 to 80 px. Boxes of masses are nearly square: aspect ratios 1/2,
  1 and 2 are enough.
- Grey images are fed as three equal channels, so that COCO weights fit. Pyramid and heads start
  from random weights unless a COCO checkpoint is given. BatchNorm's averages decay by 0.97 a step
  and not 0.997, because runs here are short.
- Adam with warm-up and cosine decay replaces momentum, which needs tens of thousands of steps from
  random weights.
- Overlapping boxes are merged above an IoU of 0.3 (0.6 in the zoo): two masses hardly overlap.
- Two backbones of the zoo's, no pipeline.config of the user's; one process, float32,
  model.checkpoint instead of training.initial.
- Normal mammograms are trained on too, see tfmammo.detection.training.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import keras
import tensorflow as tf
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo.config import Experiment, Frozen
from tfmammo.detection.saved_models import (
    ROUNDING,
    SAVED_MODEL,
    answer_api,
    describe_function,
    make_random_image,
)
from tfmammo.detection.training import (
    Network,
    check_image_size,
    check_split,
    check_training,
    draw_panels,
    identify_checkpoint,
    image_shape,
    import_quietly,
    learning_rate,
    restore_checkpoint,
    validation_functions,
)
from tfmammo.errors import DetectionError
from tfmammo.nn.optimization import build, minimize
from tfmammo.tracking.export import SIGNATURE, compare_answers

ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
_BACKBONES = {"mobilenet_v2": "ssd_mobilenet_v2_fpn_keras", "resnet50": "ssd_resnet50_v1_fpn_keras"}
_SMALLEST = {"mobilenet_v2": 33, "resnet50": 129}  # px, the API's own limits


class SSDConfig(Frozen):
    """Network, anchors and optimisation; see *Deviations* in the module."""

    backbone: Literal["mobilenet_v2", "resnet50"] = "mobilenet_v2"
    """Backbone of the zoo's, see the module."""
    checkpoint: Path | None = None
    """Checkpoint of a COCO detector of the zoo with the same backbone, from which backbone and
    pyramid start: a folder or a prefix ("ckpt-0"). None: random weights.
    """
    depth: PositiveInt | None = None
    """Channels of pyramid and heads. None: 128 for mobilenet_v2, 256 for resnet50, which COCO
    weights need.
    """
    head_layers: PositiveInt = 4
    """Convolutions before each prediction."""
    levels: tuple[PositiveInt, PositiveInt] = (3, 7)
    """First and last level of the pyramid; a level has stride 2^level."""
    anchor_scale: PositiveFloat = 2.0
    """Side of a level's smallest anchor over its stride."""
    anchor_ratios: tuple[PositiveFloat, ...] = Field(default=(1.0, 2.0, 0.5), min_length=1)
    """Width over height."""
    anchor_octaves: PositiveInt = 2
    """Anchor sizes per level."""
    gamma: NonNegativeFloat = 2.0
    """Exponent of the focal loss."""
    alpha: float = Field(default=0.25, gt=0, lt=1)
    """Weight of lesions in the focal loss."""
    localisation: PositiveFloat = 1.0
    """Weight of the boxes' smooth L1."""
    regularisation: NonNegativeFloat = 4e-5
    """Weight decay, the L2 of all convolutions."""
    nms_iou: float = Field(default=0.3, gt=0, le=1)
    """IoU above which boxes are merged."""
    detections: PositiveInt = 20
    """Most detections per mammogram."""
    normal: bool = True
    """Train on normal mammograms too."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's learning rate after the warm-up."""
    warmup: NonNegativeInt = 100
    """Steps until learning_rate is reached."""
    decay: PositiveInt = 1900
    """Steps after the warm-up over which it falls to 0."""
    clip: PositiveFloat = 10.0
    """Largest global norm of the gradient."""


def check(experiment: Experiment[SSDConfig]) -> None:
    """Refuse what this detector can't do, before any mammogram is read, with DetectionError."""
    data = experiment.data
    check_training(experiment.training, "an SSD", "the Object Detection API")
    smallest = _SMALLEST[experiment.model.backbone]
    check_image_size(data, 1, smallest, f" for the API's {experiment.model.backbone}")
    check_split(data, "an SSD")
    _import_api()


def make_pipeline(config: SSDConfig, shape: tuple[int, int], classes: int) -> dict[str, Any]:
    """Build the model part of the API's TrainEvalPipelineConfig for images of `shape` px."""
    mobile = config.backbone == "mobilenet_v2"
    depth = config.depth or (128 if mobile else 256)
    anchors = {
        "anchor_scale": config.anchor_scale,
        "aspect_ratios": config.anchor_ratios,
        "scales_per_octave": config.anchor_octaves,
    }
    low, high = config.levels
    hyperparameters = {
        "regularizer": {"l2_regularizer": {"weight": config.regularisation}},
        "activation": "RELU_6",
        "batch_norm": {"decay": 0.97, "epsilon": 0.001, "scale": True},
    }
    normal = {"random_normal_initializer": {"mean": 0.0, "stddev": 0.01}}
    truncated = {"truncated_normal_initializer": {"mean": 0.0, "stddev": 0.03}}
    predictor = {
        "depth": depth,
        "num_layers_before_predictor": config.head_layers,
        "kernel_size": 3,
        "use_depthwise": mobile,
        # a first probability of 1 %, as most anchors show nothing
        "class_prediction_bias_init": -4.6,
        "conv_hyperparams": {**hyperparameters, "initializer": normal},
    }
    extractor = {
        "type": _BACKBONES[config.backbone],
        "depth_multiplier": 1.0,
        "min_depth": 16,
        "use_depthwise": mobile,
        "override_base_feature_extractor_hyperparams": True,
        "conv_hyperparams": {**hyperparameters, "initializer": truncated},
        "fpn": {"min_level": low, "max_level": high, "additional_layer_depth": depth},
    }
    suppression = {
        "iou_threshold": config.nms_iou,
        "max_detections_per_class": config.detections,
        "max_total_detections": config.detections,
        "score_threshold": 1e-8,
    }
    loss = {
        "localization_loss": {"weighted_smooth_l1": {}},
        "classification_loss": {
            "weighted_sigmoid_focal": {"gamma": config.gamma, "alpha": config.alpha}
        },
        "localization_weight": config.localisation,
        "classification_weight": 1.0,
    }
    ssd = {
        "num_classes": classes,
        "image_resizer": {"fixed_shape_resizer": {"height": shape[0], "width": shape[1]}},
        "feature_extractor": extractor,
        "box_coder": {"faster_rcnn_box_coder": _BOX_CODER},
        "matcher": {"argmax_matcher": _MATCHER},
        "similarity_calculator": {"iou_similarity": {}},
        "box_predictor": {"weight_shared_convolutional_box_predictor": predictor},
        "anchor_generator": {
            "multiscale_anchor_generator": {"min_level": low, "max_level": high, **anchors}
        },
        "post_processing": {
            "batch_non_max_suppression": suppression,
            "score_converter": "SIGMOID",
        },
        "normalize_loss_by_num_matches": True,
        "normalize_loc_loss_by_codesize": True,
        "loss": loss,
        "encode_background_as_zeros": True,
        "inplace_batchnorm_update": True,
        "freeze_batchnorm": False,
    }
    return {"model": {"ssd": ssd}}


_BOX_CODER = {"y_scale": 10.0, "x_scale": 10.0, "height_scale": 5.0, "width_scale": 5.0}
_MATCHER = {
    "matched_threshold": 0.5,
    "unmatched_threshold": 0.5,
    "ignore_thresholds": False,
    "negatives_lower_than_unmatched": True,
    "force_match_for_each_row": True,
    "use_matmul_gather": True,
}


class SSD:
    """The detector with its optimizer, for images of `size` px: a side, or rows and columns.

    Raises:
        DetectionError: The extra is missing, the environment is not the API's, or model.checkpoint
            can't be read.
    """

    name = "ssd"
    not_for_xla = "it is the Object Detection API's, and its step has not been tried so"

    def __init__(
        self, config: SSDConfig | None = None, size: int | tuple[int, int] = 320, classes: int = 1
    ) -> None:
        self.config = config or SSDConfig()
        self.shape = image_shape(size)
        self.classes = classes
        self.api = _import_api()
        self.pipeline = self.api.pipeline_pb2.TrainEvalPipelineConfig(
            **make_pipeline(self.config, self.shape, classes)
        )
        self.detector = self.api.model_builder.build(self.pipeline.model, is_training=True)
        self.detect(tf.zeros([1, *self.shape, 1]))  # the API makes its variables at the first call
        if self.config.checkpoint:
            parts = self.detector.restore_from_objects("detection")
            restore_checkpoint(self.config.checkpoint, parts, "backbone, depth or pyramid")
            self.pretrained = {"detector": identify_checkpoint(self.config.checkpoint)}
        network = Network(self.detector)
        self.networks: dict[str, Any] = {"detector": network}
        rate = learning_rate(self.config.learning_rate, self.config.warmup, self.config.decay)
        optimizer = keras.optimizers.Adam(rate, global_clipnorm=self.config.clip, name="detector")
        self.optimizers = {"detector": build(optimizer, network)}

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Take one step down focal loss + localisation * smooth L1 + weight decay.

        Args:
            batch: "image" float32 [batch, rows, cols, 1] in [0, 1], "boxes" float32 [batch, k, 4]
                in [0, 1], "classes" int32 [batch, k]; see data.whole.

        Returns:
            float32 scalars: the whole loss and its three parts.
        """
        true_boxes = tf.unstack(batch["boxes"])
        labels = tf.unstack(tf.one_hot(batch["classes"], self.classes))
        has_area = [boxes[:, 2] > boxes[:, 0] for boxes in true_boxes]
        self.detector.provide_groundtruth(
            groundtruth_boxes_list=list(map(tf.boolean_mask, true_boxes, has_area)),
            groundtruth_classes_list=list(map(tf.boolean_mask, labels, has_area)),
        )
        with tf.GradientTape() as tape, _set_learning_phase(self.api, True):
            images, shapes = self._preprocess(batch["image"])
            parts = self.detector.loss(self.detector.predict(images, shapes), shapes)
            localisation = parts["Loss/localization_loss"]
            classification = parts["Loss/classification_loss"]
            decay = tf.add_n(self.detector.regularization_losses())
            loss = localisation + classification + decay
        minimize(loss, self.networks["detector"], self.optimizers["detector"], tape)
        return {
            "detector_loss": loss,
            "localisation": localisation,
            "classification": classification,
            "weight_decay": decay,
        }

    def detect(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detect lesions, as the API does.

        Args:
            image: float32 [batch, rows, cols, 1] in [0, 1].

        Returns:
            The API's names: "detection_boxes" float32 [batch, n, 4] in [0, 1], "detection_scores"
            [batch, n], falling, 0 where there is nothing, "detection_classes" [batch, n] from 0 on,
            "num_detections" [batch], and others.
        """
        with _set_learning_phase(self.api, False):
            images, shapes = self._preprocess(image)
            return self.detector.postprocess(self.detector.predict(images, shapes), shapes)

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid, float32 [batch, rows, cols, 1] in [0, 1]."""
        return draw_panels(batch, self.detect(batch["image"]))

    def functions(self) -> dict[str, Callable]:
        """Return what validation calls; the export is the API's own, see `write`."""
        return validation_functions(self.detect, self.shape)

    def _preprocess(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.detector.preprocess(tf.repeat(255.0 * image, 3, axis=-1))


def write(model: Any, folder: Path) -> dict[str, Any]:
    """Export with the API's exporter: saved_model/, checkpoint/ and pipeline.config.

    Args:
        model: An SSD.
        folder: Exists and is empty.

    Returns:
        The card's description of the function "saved_model": float32 [n, rows, cols, 3] in [0, 255]
        -> the API's outputs, classes counted from 1.

    Raises:
        ExportError: The SavedModel answers otherwise than the network in memory.
    """
    with tempfile.TemporaryDirectory() as temporary, _set_learning_phase(model.api, False):
        tf.train.Checkpoint(model=model.detector).save(f"{temporary}/ckpt")
        model.api.exporter_lib_v2.export_inference_graph(
            "float_image_tensor", model.pipeline, temporary, str(folder)
        )
    image = make_random_image(model.shape)
    saved_model = tf.saved_model.load(str(folder / SAVED_MODEL))
    function = saved_model.signatures[SIGNATURE]
    expected = model.detect(tf.constant(image))
    # one per anchor; those that are selected from them may change places by rounding
    raw = {name: expected[name] for name in ("raw_detection_boxes", "raw_detection_scores")}
    compare_answers("the detector", answer_api(function, image), raw, ROUNDING)
    outputs = function.structured_outputs
    network = model.networks["detector"]
    return {SAVED_MODEL: describe_function((None, None), outputs, network)}


@contextmanager
def _set_learning_phase(api: SimpleNamespace, on: bool) -> Iterator[None]:
    """Within, switch on or off that BatchNorm takes the batch's statistics and learns from them.

    The API's layers ask Keras's global switch.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*learning_phase.* is deprecated", UserWarning)
        api.tf_keras.backend.set_learning_phase(int(on))
        try:
            yield
        finally:
            api.tf_keras.backend.set_learning_phase(0)


def _import_api() -> SimpleNamespace:
    """Import the parts of the API, and the Keras that it is written for."""
    for name, value in ENVIRONMENT.items():
        if os.environ.get(name) != value:
            raise DetectionError(
                f"the Object Detection API needs {name}={value} before TensorFlow is imported, as "
                "train/ssd.py sets it"
            )
    # among its warnings are those of tensorflow-io's file systems, which nothing needs
    with import_quietly("the TensorFlow Object Detection API"):
        import tf_keras
        from object_detection import exporter_lib_v2
        from object_detection.builders import model_builder
        from object_detection.protos import pipeline_pb2
    return SimpleNamespace(
        tf_keras=tf_keras,
        exporter_lib_v2=exporter_lib_v2,
        model_builder=model_builder,
        pipeline_pb2=pipeline_pb2,
    )
