"""Light-Head R-CNN: a two-stage detector of lesions in whole mammograms (Li et al. 2017).

Its second stage is thin:

    C4, C5 = ResNet(image)                                  both of stride 16, C5 is dilated
    objectness, deltas = RPN(C4)                            for each anchor
    regions = NMS(the surest anchors, moved by their deltas)
    maps = (1x15 after 15x1)(C5) + (15x1 after 1x15)(C5)    large separable convolution, 7 * 7 * 10
    class, box = FC(PS-RoI align(maps, regions))            one hidden layer of 2048
    L = BCE(objectness) + smooth L1(deltas)
      + mean over the 256 hardest regions of (CE(class) + smooth L1(box))

Shen et al. (Mass image synthesis in mammogram with contextual information based on GANs, 2021)
train it on real and more and more synthetic masses: batch 4, learning rate 2e-4, 10 epochs. Source
of the network: Li, Peng, Yu, Zhang, Deng and Sun, Light-Head R-CNN: in defense of two-stage object
detector (2017), its larger setting L.

Deviations, and what the texts leave open:
- Mammograms are letterboxed into data.canvas [1344, 800], the paper's 800 x 1333 px in multiples of
  16. That is for upright films; their short side becomes 800 px where they are no longer than 5 :
  3. The paper crops, and does not say how. data.canvas null takes a square of data.size px. Anchors
  are in px of the letterboxed image.
- Normal mammograms are trained on too, see tfmammo.detection.training. In the paper's 2,066 there
  are none, if these are 1,500 copies and 566 real ones; 566 is inferred, not printed.
  configs/study_infilling.yaml therefore sets `normal: false`. They are evaluated in either case.
- BatchNorm is frozen (statistics, scale and shift), as in Li et al.: four mammograms are too few to
  estimate statistics from. That needs weights of ImageNet. From random weights it must be
  `running`, with averages that decay by `momentum`.
- Shen et al. name no optimiser: Adam, as for their other networks. They name neither weight decay
  nor schedule: no weight decay, and a constant learning rate unless `decay` is given. No stage is
  frozen; Li et al. freeze the first, of photographs.
- Objectness is one logit for each anchor, not two under a softmax: the same function. Anchors that
  cross the image's border are trained, because the breast touches it.
- The large separable convolution has no activation, neither within nor after it; the code of Li et
  al. has a ReLU after it.
- The losses of boxes and classes have equal weights. Li et al.'s code doubles that of the second
  stage's boxes.
- Proposals: 1000 of the best 2000, in training and after it (2000 of 12,000 and 1000 of 6000 in
  their code), and at most 20 detections (100 there). The true boxes are added to them in
  training, as in Faster R-CNN.
- The box of the background class, which nothing reads, is not predicted.
- Each draw of a mammogram is mirrored, turned by half or left as it is (`data.augment`). The study
  of Shen et al. (configs/study_infilling.yaml) turns this off, because its copies are augmented.
- Overlapping detections are merged above an IoU of 0.3, as by the other detectors here and by
  Faster R-CNN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tfmammo.config import FIXED, Experiment, Frozen, Width
from tfmammo.detection import regions
from tfmammo.detection.detections import OUTPUTS
from tfmammo.detection.saved_models import (
    ROUNDING,
    describe_function,
    letterbox_batch,
    make_random_image,
    save_and_load,
)
from tfmammo.detection.training import (
    check_image_size,
    check_split,
    draw_panels,
    image_shape,
    learning_rate,
    validation_functions,
)
from tfmammo.errors import DetectionError
from tfmammo.nn.convolutions import Convolution, Dense
from tfmammo.nn.layers import draw_uniform, step_seed
from tfmammo.nn.networks import normal, resnet_stages
from tfmammo.nn.optimization import build_adam, count_batches, minimize
from tfmammo.nn.pretrained import adopt_resnet
from tfmammo.tracking.export import SIGNATURE, compare_answers

STRIDE = 16  # px of the image per cell of C4 and C5
SMALLEST = 32  # px of the image, of which C4 and C5 are 2 x 2
# whose published weights fit, by its blocks
RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
RPN_BETA = 1 / 9  # where smooth L1 of the first stage turns linear, as in Faster R-CNN

Tensors = dict[str, tf.Tensor]


class LightHeadRCNNConfig(Frozen):
    """Network, anchors, samples and optimisation; see *Deviations* in the module."""

    weights: Annotated[str, FIXED] = "imagenet"
    """Weights of the ResNet: "imagenet" (downloaded), the path of Keras's without top (.h5), or
    "none".
    """
    filters: Width = 64
    """Filters of the first stage."""
    blocks: tuple[Width, Width, Width, Width] = (3, 4, 23, 3)
    """Blocks of each of the four stages: [3, 4, 23, 3] are ResNet-101's, [3, 4, 6, 3] ResNet-50's;
    other numbers need weights "none".
    """
    batch_norm: Annotated[Literal["frozen", "running"], FIXED] = "frozen"
    """Whether BatchNorm keeps the weights' statistics or estimates its own, see the module."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Decay of BatchNorm's running averages."""
    rpn_width: Width = 512
    """Channels of the RPN."""
    anchor_scales: Annotated[tuple[PositiveFloat, ...], FIXED] = Field(
        default=(2.0, 4.0, 8.0, 16.0, 32.0), min_length=1
    )
    """Sizes of the anchors over the stride of 16 px."""
    anchor_ratios: Annotated[tuple[PositiveFloat, ...], FIXED] = Field(
        default=(0.5, 1.0, 2.0), min_length=1
    )
    """Height of the anchors over their width."""
    rpn_high: float = Field(default=0.7, gt=0, le=1)
    """IoU from which an anchor shows a lesion."""
    rpn_low: float = Field(default=0.3, ge=0, lt=1)
    """IoU below which an anchor shows none."""
    rpn_samples: PositiveInt = 256
    """Anchors of an image that the RPN learns from."""
    rpn_share: float = Field(default=0.5, gt=0, lt=1)
    """Largest share of positive ones among them."""
    rpn_nms: float = Field(default=0.7, gt=0, le=1)
    """IoU above which a proposal gives way to a surer one."""
    proposals_before: PositiveInt = 2000
    """Proposals before that suppression."""
    proposals: PositiveInt = 1000
    """Proposals after that suppression."""
    kernel: Width = 15
    """Length of the large separable convolution."""
    middle: Width = 256
    """Inner channels of the large separable convolution."""
    bins: Width = 7
    """Rows and columns of the pooling."""
    channels: Width = 10
    """Maps for each bin."""
    samples: PositiveInt = 2
    """Points along either side of a bin."""
    units: Width = 2048
    """Units of the hidden layer."""
    foreground: float = Field(default=0.5, gt=0, le=1)
    """Least IoU of a region that shows a lesion."""
    hard_examples: PositiveInt = 256
    """Regions of an image that the head learns from."""
    nms_iou: float = Field(default=0.3, gt=0, le=1)
    """IoU above which detections are merged."""
    detections: PositiveInt = 20
    """Most detections per mammogram."""
    normal: bool = True
    """Train on normal mammograms too."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate at the start."""
    decay: PositiveInt | None = None
    """Steps over which the learning rate falls to 0, along half a cosine; None: it stays."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the second moment."""

    @model_validator(mode="after")
    def _consistent(self) -> LightHeadRCNNConfig:
        if self.weights != "none" and (self.filters != 64 or self.blocks not in RESNETS):
            published = " or ".join(str(list(blocks)) for blocks in RESNETS)
            raise ValueError(
                f"weights {self.weights} are of a ResNet of filters 64 and blocks {published}; "
                "take weights none"
            )
        if self.weights == "none" and self.batch_norm == "frozen":
            raise ValueError(
                "batch_norm frozen needs weights of ImageNet; with weights none, set batch_norm "
                "running, too"
            )
        if self.rpn_low > self.rpn_high:
            raise ValueError("rpn_low must not be above rpn_high")
        return self


def check(experiment: Experiment[LightHeadRCNNConfig]) -> None:
    """Refuse what this detector can't do, before any mammogram is read, with DetectionError."""
    check_image_size(experiment.data, STRIDE, SMALLEST)
    check_split(experiment.data, "this")


class LightHeadRCNN:
    """The detector with its optimizer, for images of `size` px: a side, or rows and columns.

    Raises:
        DetectionError: A side is not a multiple of 16 px, or less than 32.
        WeightsError: The weights can't be had.
    """

    name = "light_head_rcnn"
    not_for_xla = "its non-maximum suppression (CombinedNonMaxSuppression) has no form there"

    def __init__(
        self,
        config: LightHeadRCNNConfig | None = None,
        size: int | tuple[int, int] = 1024,
        classes: int = 1,
    ) -> None:
        self.config = config = config or LightHeadRCNNConfig()
        self.shape = image_shape(size)
        self.classes = classes
        if any(side % STRIDE or side < SMALLEST for side in self.shape):
            raise DetectionError(
                f"rows and columns must be multiples of {STRIDE} px and at least {SMALLEST}, not "
                f"{self.shape}"
            )
        self.anchors = tf.constant(
            regions.make_anchors(self.shape, STRIDE, config.anchor_scales, config.anchor_ratios)
        )
        self.backbone = build_backbone(config, self.shape)
        self.head = build_head(config, classes)
        if config.weights != "none":
            source = adopt_resnet(self.backbone, RESNETS[config.blocks], config.weights)
            self.pretrained = {"backbone": source}
        network = keras.Model(
            [self.backbone.input, self.head.input],
            [*self.backbone.outputs, *self.head.outputs],
            name="detector",
        )
        self.networks = {"detector": network}
        rate = learning_rate(config.learning_rate, 0, config.decay)
        self.optimizers = build_adam(self.networks, rate, config.beta_1, config.beta_2)

    def train_step(self, batch: Tensors) -> Tensors:
        """Take one step down the sum of the four losses.

        Args:
            batch: "image" float32 [batch, rows, cols, 1] in [0, 1], "boxes" float32 [batch, k, 4]
                in [0, 1], "classes" int32 [batch, k]; see data.whole. A box without area is
                for none.

        Returns:
            float32 scalars: the whole loss and its four parts.
        """
        truth = batch["boxes"]
        classes = batch["classes"]
        with tf.GradientTape() as tape:
            objectness, deltas, maps = self.backbone(batch["image"], training=True)
            rpn_classification, rpn_localisation = self.rpn_losses(objectness, deltas, truth)
            proposals, valid = self.propose(objectness, deltas)
            proposals = tf.concat([proposals, truth], axis=1)
            valid = tf.concat([valid, regions.area(truth) > 0], axis=1)
            classification, localisation = self.head_losses(maps, proposals, valid, truth, classes)
            loss = rpn_classification + rpn_localisation + classification + localisation
        minimize(loss, self.networks["detector"], self.optimizers["detector"], tape)
        return {
            "detector_loss": loss,
            "rpn_classification": rpn_classification,
            "rpn_localisation": rpn_localisation,
            "classification": classification,
            "localisation": localisation,
        }

    def rpn_losses(
        self, objectness: tf.Tensor, deltas: tf.Tensor, truth: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute BCE of the sampled anchors, and smooth L1 of the positive ones among them.

        Both are sums over the number of all sampled anchors. Of n anchors: objectness [batch, n],
        deltas [batch, n, 4]; truth [batch, k, 4].
        """
        label, target = regions.assign_anchors(
            self.anchors, truth, self.config.rpn_high, self.config.rpn_low
        )
        seed = step_seed(count_batches(self.optimizers["detector"]))
        random = draw_uniform(tf.shape(label), seed)
        index, sampled = regions.sample_anchors(
            label, random, self.config.rpn_samples, self.config.rpn_share
        )
        label, logit, delta, target = (
            tf.gather(values, index, batch_dims=1) for values in (label, objectness, deltas, target)
        )
        expected = regions.encode(target, tf.gather(self.anchors, index))
        distance = regions.smooth_l1(delta - expected, RPN_BETA)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(label == 1, tf.float32), logit)
        return _mean(entropy, sampled, sampled), _mean(distance, sampled & (label == 1), sampled)

    def head_losses(
        self,
        maps: tf.Tensor,
        boxes: tf.Tensor,
        valid: tf.Tensor,
        truth: tf.Tensor,
        classes: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute cross entropy of the hardest regions, and smooth L1 of the positive ones.

        Both are sums over the number of the hardest regions. Of the regions `boxes` [batch, n, 4]
        those exist where `valid` is true; `truth` and `classes` are the batch's.
        """
        label, target = regions.label_regions(boxes, truth, classes, self.config.foreground)
        logits, deltas = self.predict_regions(maps, boxes)
        deltas = tf.gather(deltas, tf.maximum(label - 1, 0), batch_dims=2)  # the true class's
        distance = regions.smooth_l1(deltas - regions.encode(target, boxes, regions.DEVIATIONS))
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
        distance = tf.where(label > 0, distance, 0.0)
        index, is_hard = regions.select_hardest(
            entropy + distance, valid, self.config.hard_examples
        )
        entropy = tf.gather(entropy, index, batch_dims=1)
        distance = tf.gather(distance, index, batch_dims=1)
        return _mean(entropy, is_hard, is_hard), _mean(distance, is_hard, is_hard)

    def propose(self, objectness: tf.Tensor, deltas: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Select the first stage's regions, of at least 1 px."""
        before = min(self.config.proposals_before, len(self.anchors))
        return regions.select_proposals(
            objectness,
            deltas,
            self.anchors,
            before=before,
            after=min(self.config.proposals, before),
            nms_iou=self.config.rpn_nms,
            smallest=(1 / self.shape[0], 1 / self.shape[1]),
        )

    def predict_regions(self, maps: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Run the second stage on regions [batch, n, 4].

        Returns:
            Class logits float32 [batch, n, 1 + classes], the background's first, and the boxes'
            deltas [batch, n, classes, 4].
        """
        pooled = regions.ps_roi_align(maps, boxes, self.config.bins, self.config.samples)
        logits, deltas = self.head(tf.reshape(pooled, [-1, self.head.input_shape[-1]]))
        shape = tf.shape(boxes)[:2]
        logits = tf.reshape(logits, tf.concat([shape, [1 + self.classes]], axis=0))
        return logits, tf.reshape(deltas, tf.concat([shape, [self.classes, 4]], axis=0))

    def score_regions(self, maps: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute probabilities [batch, n, classes] and refined boxes [batch, n, classes, 4].

        The boxes are clipped to the image.
        """
        logits, deltas = self.predict_regions(maps, boxes)
        refined = regions.decode(deltas, boxes[:, :, tf.newaxis], regions.DEVIATIONS)
        return tf.nn.softmax(logits)[..., 1:], regions.clip(refined)

    def detect(self, image: tf.Tensor) -> Tensors:
        """Detect lesions in images [batch, rows, cols, 1]; outputs have the API's names.

        Returns:
            "detection_boxes" float32 [batch, n, 4] in [0, 1], "detection_scores" [batch, n],
            falling, 0 where there is nothing, "detection_classes" [batch, n] from 0 on,
            "num_detections" [batch].
        """
        objectness, deltas, maps = self.backbone(image, training=False)
        proposals, valid = self.propose(objectness, deltas)
        scores, boxes = self.score_regions(maps, proposals)
        scores = tf.where(valid[..., tf.newaxis], scores, 0.0)
        boxes, scores, classes, count = regions.suppress(
            boxes, scores, self.config.detections, self.config.nms_iou
        )
        return dict(zip(OUTPUTS, (boxes, scores, classes, tf.cast(count, tf.float32)), strict=True))

    def sample(self, batch: Tensors) -> Tensors:
        """Draw panels for the image grid, float32 [batch, rows, cols, 1] in [0, 1]."""
        return draw_panels(batch, self.detect(batch["image"]))

    def functions(self) -> dict[str, Callable]:
        """Return what validation calls; `write` exports."""
        return validation_functions(self.detect, self.shape)


def build_backbone(config: LightHeadRCNNConfig, shape: tuple[int, int]) -> keras.Model:
    """Build what is computed once for each image: ResNet, RPN and the large separable convolution.

    float32 [n, rows, cols, 1] in [0, 1] -> objectness float32 [n, anchors], deltas float32 [n,
    anchors, 4], maps float32 [n, rows / 16, cols / 16, bins * bins * channels].
    """
    image = keras.Input((*shape, 1), dtype="float32", name="image")
    *_, c4, c5 = resnet_stages(
        image,
        config.filters,
        config.blocks,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        momentum=config.momentum,
        frozen_norm=config.batch_norm == "frozen",
    )
    per_cell = len(config.anchor_scales) * len(config.anchor_ratios)
    layers = keras.layers
    x = Convolution(
        config.rpn_width,
        3,
        padding="same",
        activation="relu",
        kernel_initializer=normal(0.01),
        name="rpn",
    )(c4)
    objectness = layers.Conv2D(
        per_cell, 1, kernel_initializer=normal(0.01), dtype="float32", name="rpn_objectness"
    )(x)
    deltas = layers.Conv2D(
        4 * per_cell, 1, kernel_initializer=normal(0.01), dtype="float32", name="rpn_deltas"
    )(x)
    maps = large_separable(c5, config.kernel, config.middle, config.bins**2 * config.channels)
    objectness = layers.Reshape((-1,), dtype="float32")(objectness)
    deltas = layers.Reshape((-1, 4), dtype="float32")(deltas)
    return keras.Model(image, [objectness, deltas, maps], name="backbone")


def build_head(config: LightHeadRCNNConfig, classes: int) -> keras.Model:
    """Build the second stage's layers.

    float32 [n, bins * bins * channels] -> logits float32 [n, 1 + classes], deltas [n, 4 * classes].
    """
    pooled = keras.Input((config.bins**2 * config.channels,), dtype="float32", name="pooled")
    x = Dense(config.units, "relu", name="hidden")(pooled)
    logits = keras.layers.Dense(
        1 + classes, kernel_initializer=normal(0.01), dtype="float32", name="logits"
    )(x)
    deltas = keras.layers.Dense(
        4 * classes, kernel_initializer=normal(0.001), dtype="float32", name="deltas"
    )(x)
    return keras.Model(pooled, [logits, deltas], name="head")


def large_separable(x: keras.KerasTensor, kernel: int, middle: int, out: int) -> keras.KerasTensor:
    """Compute a kernel x kernel convolution as the sum of two pairs of thin ones.

    Source: Li et al., Figure 3; 19,493,332 parameters from 2048 channels by (15, 256, 490).
    """
    convolution = partial(Convolution, padding="same")
    column, row = (kernel, 1), (1, kernel)
    branches = []
    for name, first, second in (("column_row", column, row), ("row_column", row, column)):
        inner = convolution(middle, first, name=f"separable_{name}_1")(x)
        branches.append(convolution(out, second, name=f"separable_{name}_2")(inner))
    return keras.layers.Add(dtype="float32")(branches)


def write(model: LightHeadRCNN, folder: Path) -> dict[str, Any]:
    """Export one SavedModel, detector/, that answers as the Object Detection API's do.

    "serving_default" takes float32 [n, rows, cols, 3] in [0, 255] of any size, reads the first
    channel and letterboxes it as in training; an image of the network's own size stays as it is. It
    returns the API's four outputs, boxes as parts of rows and cols, classes counted from 1.

    "regions" returns what is between image and detections, for given regions. Disk and memory are
    compared by it (ExportError), because detections that are equally sure may change places.
    """
    network = model.networks["detector"]
    shape = model.shape
    image_spec = tf.TensorSpec([None, *shape, 1], tf.float32, "image")
    regions_spec = tf.TensorSpec([None, None, 4], tf.float32, "regions")

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "input_tensor")])
    def serve(input_tensor: tf.Tensor) -> Tensors:
        canvas, parts = letterbox_batch(input_tensor[..., :1] / 255.0, shape)
        detected = model.detect(canvas)
        boxes = regions.clip(detected[OUTPUTS[0]] / parts)
        classes = detected["detection_classes"] + 1
        return detected | {OUTPUTS[0]: boxes, "detection_classes": classes}

    @tf.function(input_signature=[image_spec, regions_spec])
    def inspect(image: tf.Tensor, regions: tf.Tensor) -> Tensors:
        objectness, deltas, maps = model.backbone(image, training=False)
        scores, boxes = model.score_regions(maps, regions)
        return {"objectness": objectness, "deltas": deltas, "scores": scores, "boxes": boxes}

    variables = [variable.value for variable in network.variables]
    functions = {SIGNATURE: serve, "regions": inspect}
    saved_model = save_and_load(variables, functions, folder / "detector")
    image = tf.constant(make_random_image(shape))
    corners = np.random.default_rng(0).random((1, 8, 2, 2), np.float32)
    some = tf.constant(np.sort(corners, axis=2).reshape(1, 8, 4))
    answers = saved_model.signatures["regions"](image=image, regions=some)
    compare_answers("the detector", answers, inspect.python_function(image, some), ROUNDING)
    outputs = saved_model.signatures[SIGNATURE].structured_outputs
    return {"detector": describe_function((None, None), outputs, network)}


def _mean(losses: tf.Tensor, included: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """Divide the sum where `included` is true by the number of places where `counted` is."""
    total = tf.reduce_sum(tf.where(included, losses, 0.0))
    return total / tf.maximum(tf.reduce_sum(tf.cast(counted, tf.float32)), 1.0)
