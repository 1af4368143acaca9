"""Light-Head R-CNN: a two-stage detector of lesions in whole mammograms, whose second
stage is thin (Li et al. 2017).

    C4, C5 = ResNet(image), both of stride 16                                   C5 dilated instead
    of strided
    objectness, deltas = RPN(C4)                                                per anchor
    regions = NMS(the surest anchors, moved by their deltas)
    maps = (1x15 after 15x1)(C5) + (15x1 after 1x15)(C5)                        large separable
    convolution, 7 * 7 * 10 maps
    class, box = FC(PS-RoI align(maps, regions))                                one hidden layer of
    2048
    L = BCE(objectness) + smooth L1(deltas) + mean over the 256 hardest regions of (CE(class) +
    smooth L1(box))

Shen et al. (Mass image synthesis in mammogram with contextual information based on GANs, 2021)
train it on real and more and more synthetic masses: batch 4, learning rate 2e-4, 10 epochs. Source
of the network: Li, Peng, Yu, Zhang, Deng and Sun, Light-Head R-CNN: in defense of two-stage object
detector (2017), its larger setting L.

Departures and what the texts leave open:
- Mammograms are letterboxed into data.canvas [1344, 800], the paper's 800 x 1333 px to multiples of
  16, for upright films, whose short
  side becomes 800 px where they are no longer than 5 : 3. The paper crops, in a way that it does
  not say. data.canvas null takes a
  square of data.size px. Anchors are in px of what is seen.
- Normal mammograms are trained on too (`normal`), where the paper's 566 + 1,500 = 2,066 leaves them
  out. Normal is what the archive calls
  so and marks no lesion in (of INbreast: BI-RADS 1). Those with other findings alone are neither
  trained on nor judged, so that false
  positives per image are counted over other images than the paper's.
- BatchNorm is frozen, statistics, scale and shift, as in Li et al.: four mammograms are too few to
  estimate them from. That takes
  weights of ImageNet; from random weights it must be `running`, with averages that decay by
  `momentum`.
- Shen et al. name no optimiser; Adam, as for all else there. No weight decay, and unless `decay`
  says so a constant learning rate: they
  name neither. No stage is frozen: Li et al. freeze the first, of photographs.
- Objectness is one logit per anchor, not two under a softmax: the same function. Anchors that cross
  the image's border are trained,
  because the breast touches it.
- No activation stands in or behind the large separable convolution.
- Proposals: 1000 of the best 2000, in training and after it; the true boxes are added to them in
  training, as in Faster R-CNN.
- The box of the background class, which nothing reads, is not predicted.
- Overlapping detections are merged above an IoU of 0.3, as by the other detectors here, and by
  Faster R-CNN.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tfmammo import pretrained
from tfmammo.config import Experiment, Frozen
from tfmammo.detection import regions
from tfmammo.detection.detections import OUTPUTS
from tfmammo.detection.training import (
    ROUNDING,
    learning_rate,
    panels,
    refuse_copies,
    refuse_sides,
    sides,
)
from tfmammo.errors import DetectionError, ExportError
from tfmammo.export import SIGNATURE
from tfmammo.optimization import Adam, build, minimize

STRIDE = 16  # px of the image per cell of C4 and C5
SMALLEST = 32  # px of the image, of which C4 and C5 are 2 x 2
# blocks: published weights
RESNETS = {(3, 4, 6, 3): pretrained.resnet50, (3, 4, 23, 3): pretrained.resnet101}
RPN_BETA = 1 / 9  # where smooth L1 of the first stage turns linear, as in Faster R-CNN

Tensors = dict[str, tf.Tensor]


class LightHeadRCNNConfig(Frozen):
    """Network, anchors, samples and optimisation; see *Departures* in the module."""

    weights: str = "imagenet"
    """"imagenet" (downloaded), the path of Keras's ResNet without top (.h5), or "none"."""
    filters: PositiveInt = 64
    """Of the first stage."""
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 23, 3)
    """Of each of the four stages, [3, 4, 23, 3] ResNet-101's, [3, 4, 6, 3] ResNet-50's; other
    numbers need weights "none".
    """
    batch_norm: Literal["frozen", "running"] = "frozen"
    """See the module."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of running averages."""
    rpn_width: PositiveInt = 512
    """Channels of the RPN."""
    anchor_scales: tuple[PositiveFloat, ...] = Field(
        default=(2.0, 4.0, 8.0, 16.0, 32.0), min_length=1
    )
    """Sides over the stride of 16 px."""
    anchor_ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    """Height over width."""
    rpn_high: float = Field(default=0.7, gt=0, le=1)
    """IoU from which an anchor shows a lesion, below which it shows none."""
    rpn_low: float = Field(default=0.3, ge=0, lt=1)
    """IoU from which an anchor shows a lesion, below which it shows none."""
    rpn_samples: PositiveInt = 256
    """Anchors an image that the RPN learns from."""
    rpn_share: float = Field(default=0.5, gt=0, lt=1)
    """Of them positive, at most."""
    rpn_nms: float = Field(default=0.7, gt=0, le=1)
    """IoU above which a proposal gives way to a surer one."""
    proposals_before: PositiveInt = 2000
    """How many are left before and after that."""
    proposals: PositiveInt = 1000
    """How many are left before and after that."""
    kernel: PositiveInt = 15
    """Length and inner channels of the large separable convolution."""
    middle: PositiveInt = 256
    """Length and inner channels of the large separable convolution."""
    bins: PositiveInt = 7
    """Rows and columns of the pooling."""
    channels: PositiveInt = 10
    """Maps a bin."""
    samples: PositiveInt = 2
    """Points along either side of a bin."""
    units: PositiveInt = 2048
    """Of the hidden layer."""
    foreground: float = Field(default=0.5, gt=0, le=1)
    """Least IoU of a region that shows a lesion."""
    hard_examples: PositiveInt = 256
    """Regions an image that the head learns from."""
    nms_iou: float = Field(default=0.3, gt=0, le=1)
    """Detections that overlap more are merged."""
    detections: PositiveInt = 20
    """Most per mammogram."""
    normal: bool = True
    """Train on normal mammograms too."""
    learning_rate: PositiveFloat = 2e-4
    decay: PositiveInt | None = None
    """Steps over which the learning rate falls to 0, along half a cosine; None: it stays."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)

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
                "batch_norm frozen needs weights of ImageNet; of weights none take batch_norm "
                "running"
            )
        if self.rpn_low > self.rpn_high:
            raise ValueError("rpn_low must not be above rpn_high")
        return self


def check(experiment: Experiment[LightHeadRCNNConfig]) -> None:
    """Refuse what a detector can't do with the sections that all systems share, before any
    mammogram is read.

    Raises:
        DetectionError: Names the key.
    """
    refuse_sides(experiment.data, STRIDE, SMALLEST)
    refuse_copies(experiment.data, "this")


class LightHeadRCNN:
    """The detector with its optimizer, one network by the name of "detector"; built on
    construction.

    Args:
        config: The network.
        size: Rows and columns of the image, or the side of a square one, px, multiples of 16 and at
            least 32 (see `check`).
        classes: Kinds of lesions.

    Raises:
        DetectionError: The size is another.
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
        self.config = c = config or LightHeadRCNNConfig()
        self.shape = sides(size)
        self.classes = classes
        if any(side % STRIDE or side < SMALLEST for side in self.shape):
            raise DetectionError(
                f"rows and columns must be multiples of {STRIDE} px and at least {SMALLEST}, not "
                f"{self.shape}"
            )
        self.anchors = tf.constant(
            regions.anchors(self.shape, STRIDE, c.anchor_scales, c.anchor_ratios)
        )
        self.trunk = trunk(c, self.shape)
        self.head = head(c, classes)
        if c.weights != "none":
            for layer in RESNETS[c.blocks](c.weights).layers:
                if layer.weights:
                    self.trunk.get_layer(layer.name).set_weights(layer.get_weights())
        both = [self.trunk, self.head]
        network = keras.Model(
            [part.input for part in both],
            [output for part in both for output in part.outputs],
            name="detector",
        )
        self.networks = {"detector": network}
        self.optimizers = {
            "detector": build(
                Adam(
                    learning_rate(c.learning_rate, 0, c.decay), c.beta_1, c.beta_2, name="detector"
                ),
                network,
            )
        }

    def train_step(self, batch: Tensors) -> Tensors:
        """One step down the sum of the four losses.

        Args:
            batch: "image" float32 [batch, rows, cols, 1] in [0, 1], "boxes" float32 [batch, k, 4]
                in [0, 1], "classes" int32 [batch, k]; see data.whole. A box without area is not
                there.

        Returns:
            float32 scalars: the whole loss and its four parts.
        """
        truth = batch["boxes"]
        classes = batch["classes"]
        with tf.GradientTape() as tape:
            objectness, deltas, maps = self.trunk(batch["image"], training=True)
            rpn_classification, rpn_localisation = self.rpn_losses(objectness, deltas, truth)
            found, there = self.propose(objectness, deltas)
            found = tf.concat([found, truth], axis=1)
            there = tf.concat([there, regions.area(truth) > 0], axis=1)
            classification, localisation = self.head_losses(maps, found, there, truth, classes)
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
        """BCE of the sampled anchors, and smooth L1 of the positive ones among them, both over the
        number of all sampled.

        Args:
            objectness: float32 [batch, n], deltas: float32 [batch, n, 4], of the n anchors.
            truth: float32 [batch, k, 4].
        """
        label, target = regions.assigned(
            self.anchors, truth, self.config.rpn_high, self.config.rpn_low
        )
        random = tf.random.stateless_uniform(tf.shape(label), self._seed())
        index, there = regions.drawn(label, random, self.config.rpn_samples, self.config.rpn_share)
        label, logit, delta, target = (
            tf.gather(values, index, batch_dims=1) for values in (label, objectness, deltas, target)
        )
        wanted = regions.encode(target, tf.gather(self.anchors, index))
        distance = regions.smooth_l1(delta - wanted, RPN_BETA)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(label == 1, tf.float32), logit)
        return _mean(entropy, there, there), _mean(distance, there & (label == 1), there)

    def head_losses(
        self,
        maps: tf.Tensor,
        found: tf.Tensor,
        there: tf.Tensor,
        truth: tf.Tensor,
        classes: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross entropy of the hardest regions, and smooth L1 of those among them that show a
        lesion, both over their number.

        Args:
            maps: float32 [batch, rows, cols, 7 * 7 * 10].
            found: float32 [batch, n, 4].
            there: bool [batch, n].
            truth: As of the batch.
            classes: As of the batch.
        """
        label, target = regions.labelled(found, truth, classes, self.config.foreground)
        logits, deltas = self.judge(maps, found)
        own = tf.gather(deltas, tf.maximum(label - 1, 0), batch_dims=2)
        distance = regions.smooth_l1(own - regions.encode(target, found, regions.DEVIATIONS))
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
        distance = tf.where(label > 0, distance, 0.0)
        index, chosen = regions.hardest(entropy + distance, there, self.config.hard_examples)
        entropy, distance = (
            tf.gather(losses, index, batch_dims=1) for losses in (entropy, distance)
        )
        return _mean(entropy, chosen, chosen), _mean(distance, chosen, chosen)

    def propose(self, objectness: tf.Tensor, deltas: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The first stage's regions; see `regions.proposals`. None has a side of less than 1 px."""
        c = self.config
        before = min(c.proposals_before, len(self.anchors))
        smallest = (1 / self.shape[0], 1 / self.shape[1])
        return regions.proposals(
            objectness, deltas, self.anchors, before, min(c.proposals, before), c.rpn_nms, smallest
        )

    def judge(self, maps: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The second stage: class logits float32 [batch, n, 1 + classes], the background's first,
        and boxes' deltas [batch, n, classes, 4].

        Args:
            maps: float32 [batch, rows, cols, 7 * 7 * 10].
            found: float32 [batch, n, 4].
        """
        pooled = regions.ps_roi_align(maps, found, self.config.bins, self.config.samples)
        logits, deltas = self.head(tf.reshape(pooled, [-1, self.head.input_shape[-1]]))
        shape = tf.shape(found)[:2]
        logits = tf.reshape(logits, tf.concat([shape, [1 + self.classes]], axis=0))
        return logits, tf.reshape(deltas, tf.concat([shape, [self.classes, 4]], axis=0))

    def scored(self, maps: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Probabilities float32 [batch, n, classes] and boxes float32 [batch, n, classes, 4],
        clipped, of regions; see `judge`.
        """
        logits, deltas = self.judge(maps, found)
        boxes = regions.decode(deltas, found[:, :, tf.newaxis], regions.DEVIATIONS)
        return tf.nn.softmax(logits)[..., 1:], regions.clipped(boxes)

    def detect(self, image: tf.Tensor) -> Tensors:
        """Detections, by the names of the Object Detection API.

        Args:
            image: float32 [batch, rows, cols, 1] in [0, 1].

        Returns:
            "detection_boxes" float32 [batch, n, 4] in [0, 1], "detection_scores" [batch, n],
            falling, 0 where there is nothing, "detection_classes" [batch, n] from 0 on,
            "num_detections" [batch].
        """
        objectness, deltas, maps = self.trunk(image, training=False)
        found, there = self.propose(objectness, deltas)
        scores, boxes = self.scored(maps, found)
        scores = tf.where(there[..., tf.newaxis], scores, 0.0)
        boxes, scores, classes, count = regions.suppressed(
            boxes, scores, self.config.detections, self.config.nms_iou
        )
        return dict(zip(OUTPUTS, (boxes, scores, classes, tf.cast(count, tf.float32)), strict=True))

    def sample(self, batch: Tensors) -> Tensors:
        """Panels for the image grid.

        Args:
            batch: "image" and "mask".

        Returns:
            float32 [batch, rows, cols, 1] in [0, 1].
        """
        return panels(batch, self.detect(batch["image"]))

    def functions(self) -> dict[str, Callable]:
        """What validation calls: image -> boxes, scores and classes.

        What is exported says `write`.
        """

        @tf.function(input_signature=[tf.TensorSpec([None, *self.shape, 1], tf.float32, "image")])
        def detector(image: tf.Tensor) -> Tensors:
            found = self.detect(image)
            return {name: found[f"detection_{name}"] for name in ("boxes", "scores", "classes")}

        return {"detector": detector}

    def _seed(self) -> tf.Tensor:
        """Of this update's random numbers: of the optimizer's count of updates, which is saved, and
        of the replica.
        """
        optimizer = self.optimizers["detector"]
        inner = (
            optimizer.inner_optimizer
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            else optimizer
        )
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.stack(
            [tf.cast(tf.convert_to_tensor(inner.iterations), tf.int32), tf.cast(replica, tf.int32)]
        )


def trunk(config: LightHeadRCNNConfig, shape: tuple[int, int]) -> keras.Model:
    """All that is computed once an image.

    float32 [n, rows, cols, 1] in [0, 1] -> objectness float32 [n, anchors], deltas float32 [n,
    anchors, 4], maps float32 [n, rows / 16, cols / 16, bins * bins * channels].
    """
    image = keras.Input((*shape, 1), dtype="float32", name="image")
    c4, c5 = resnet(image, config)
    per_cell = len(config.anchor_scales) * len(config.anchor_ratios)
    layers = keras.layers
    x = layers.Conv2D(
        config.rpn_width,
        3,
        padding="same",
        activation="relu",
        kernel_initializer=_normal(0.01),
        name="rpn",
    )(c4)
    objectness = layers.Conv2D(
        per_cell, 1, kernel_initializer=_normal(0.01), dtype="float32", name="rpn_objectness"
    )(x)
    deltas = layers.Conv2D(
        4 * per_cell, 1, kernel_initializer=_normal(0.01), dtype="float32", name="rpn_deltas"
    )(x)
    maps = large_separable(c5, config.kernel, config.middle, config.bins**2 * config.channels)
    objectness, deltas = (
        layers.Reshape(shape, dtype="float32")(x)
        for x, shape in ((objectness, (-1,)), (deltas, (-1, 4)))
    )
    return keras.Model(image, [objectness, deltas, maps], name="trunk")


def head(config: LightHeadRCNNConfig, classes: int) -> keras.Model:
    """The second stage's layers: float32 [n, bins * bins * channels] -> logits float32 [n, 1 +
    classes], deltas [n, 4 * classes].
    """
    pooled = keras.Input((config.bins**2 * config.channels,), dtype="float32", name="pooled")
    x = keras.layers.Dense(config.units, "relu", name="hidden")(pooled)
    logits = keras.layers.Dense(
        1 + classes, kernel_initializer=_normal(0.01), dtype="float32", name="logits"
    )(x)
    deltas = keras.layers.Dense(
        4 * classes, kernel_initializer=_normal(0.001), dtype="float32", name="deltas"
    )(x)
    return keras.Model(pooled, [logits, deltas], name="head")


def large_separable(x: keras.KerasTensor, kernel: int, middle: int, out: int) -> keras.KerasTensor:
    """A kernel x kernel convolution as the sum of two pairs of thin ones, float32 [n, rows, cols,
    out].

    Source:
        Li et al., Figure 3; 19,493,332 parameters from 2048 channels by (15, 256, 490).
    """
    column = (kernel, 1)
    row = (1, kernel)
    branches = []
    for name, (first, second) in {"column_row": (column, row), "row_column": (row, column)}.items():
        inner = keras.layers.Conv2D(middle, first, padding="same", name=f"separable_{name}_1")(x)
        branches.append(
            keras.layers.Conv2D(out, second, padding="same", name=f"separable_{name}_2")(inner)
        )
    return keras.layers.Add(dtype="float32")(branches)


def resnet(
    image: keras.KerasTensor, config: LightHeadRCNNConfig
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """C4 and C5 of a ResNet on grey images, both of stride 16: C5's 3 x 3 convolutions are dilated
    by 2 instead.

    Layers with weights have the names that they have in keras.applications.

    Source:
        He et al., Deep residual learning for image recognition (2016), Table 1, stride in the first
        1 x 1 convolution.
    """
    layers = keras.layers
    frozen = config.batch_norm == "frozen"

    def normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.BatchNormalization(
            momentum=config.momentum, epsilon=1.001e-5, trainable=not frozen, name=f"{name}_bn"
        )(x)

    def block(
        x: keras.KerasTensor, width: int, stride: int, dilation: int, name: str
    ) -> keras.KerasTensor:
        shortcut = x
        if stride > 1 or x.shape[-1] != 4 * width:
            shortcut = normalised(
                layers.Conv2D(4 * width, 1, stride, name=f"{name}_0_conv")(x), f"{name}_0"
            )
        x = layers.ReLU()(
            normalised(layers.Conv2D(width, 1, stride, name=f"{name}_1_conv")(x), f"{name}_1")
        )
        x = layers.Conv2D(width, 3, padding="same", dilation_rate=dilation, name=f"{name}_2_conv")(
            x
        )
        x = layers.ReLU()(normalised(x, f"{name}_2"))
        x = normalised(layers.Conv2D(4 * width, 1, name=f"{name}_3_conv")(x), f"{name}_3")
        return layers.ReLU()(layers.Add()([shortcut, x]))

    x = layers.Concatenate(dtype="float32")([image] * 3)
    x = layers.Rescaling(255.0, [-mean for mean in pretrained.KERAS_MEAN], dtype="float32")(x)
    x = layers.Conv2D(config.filters, 7, 2, name="conv1_conv")(layers.ZeroPadding2D(3)(x))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(layers.ReLU()(normalised(x, "conv1"))))
    stages = []
    for stage, (depth, stride, dilation) in enumerate(
        zip(config.blocks, (1, 2, 2, 1), (1, 1, 1, 2), strict=True)
    ):
        for number in range(depth):
            x = block(
                x,
                config.filters * 2**stage,
                1 if number else stride,
                dilation,
                f"conv{stage + 2}_block{number + 1}",
            )
        stages.append(x)
    return stages[2], stages[3]


def write(room: LightHeadRCNN, folder: Path) -> dict[str, Any]:
    """Export one SavedModel, detector/, that answers as the Object Detection API's do.

    "serving_default": float32 [n, rows, cols, 3] in [0, 255], of which the first channel is read;
    any size, letterboxed as in training, which leaves an image of the network's own size as it is
    -> the API's four outputs, boxes as parts of rows and cols, classes counted from 1. "regions":
    what stands between image and detections, for given regions; by it disk and memory are compared,
    because detections that are equally sure may change places.

    Args:
        room: Built under the float32 policy.
        folder: Exists and is empty.

    Returns:
        The card's description.

    Raises:
        ExportError: The SavedModel answers otherwise than the network in memory.
    """
    network = room.networks["detector"]
    shape = room.shape
    path = str(folder / "detector")
    image = tf.TensorSpec([None, *shape, 1], tf.float32, "image")
    found = tf.TensorSpec([None, None, 4], tf.float32, "regions")

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "input_tensor")])
    def serve(input_tensor: tf.Tensor) -> Tensors:
        canvas, parts = letterboxed(input_tensor[..., :1] / 255.0, shape)
        detected = room.detect(canvas)
        boxes = regions.clipped(detected[OUTPUTS[0]] / parts)
        classes = detected["detection_classes"] + 1
        return detected | {OUTPUTS[0]: boxes, "detection_classes": classes}

    @tf.function(input_signature=[image, found])
    def inside(image: tf.Tensor, regions: tf.Tensor) -> Tensors:
        objectness, deltas, maps = room.trunk(image, training=False)
        scores, boxes = room.scored(maps, regions)
        return {"objectness": objectness, "deltas": deltas, "scores": scores, "boxes": boxes}

    module = tf.Module()
    # in order, so that training.initial can read them
    module.weights = [variable.value for variable in network.variables]
    tf.saved_model.save(
        module,
        path,
        signatures={
            SIGNATURE: serve.get_concrete_function(),
            "regions": inside.get_concrete_function(),
        },
    )
    loaded = tf.saved_model.load(path)
    _compare(loaded.signatures["regions"], inside.python_function, shape)
    inputs = {
        "input_tensor": {"shape": [None, None, None, 3], "dtype": "float32", "range": [0.0, 255.0]}
    }
    answers = loaded.signatures[SIGNATURE].structured_outputs
    outputs = {
        name: {"shape": one.shape.as_list(), "dtype": one.dtype.name, "range": None}
        for name, one in answers.items()
    }
    variables = [
        f"{variable.name} {'x'.join(map(str, variable.shape)) or 'scalar'}"
        for variable in network.variables
    ]
    return {"detector": {"inputs": inputs, "outputs": outputs, "variables": variables}}


def letterboxed(image: tf.Tensor, shape: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale images by the largest factor with which they fit and fill the canvas with 0, below or
    on the right, as data.whole does.

    Args:
        image: float32 [n, any, any, 1].
        shape: Rows and columns of the canvas, px.

    Returns:
        float32 [n, *shape, 1], and float32 [4], which parts of the canvas' sides the image takes:
        rows, cols, twice.
    """
    size = tf.cast(tf.shape(image)[1:3], tf.float32)
    by_rows = size * shape[0] / size[0]
    by_cols = size * shape[1] / size[1]
    scaled = tf.maximum(
        tf.round(tf.where(size[0] * shape[1] >= size[1] * shape[0], by_rows, by_cols)), 1.0
    )
    resized = tf.image.resize(image, tf.cast(scaled, tf.int32), antialias=True)
    canvas = tf.ensure_shape(tf.image.pad_to_bounding_box(resized, 0, 0, *shape), [None, *shape, 1])
    return canvas, tf.tile(scaled / shape, [2])


def _compare(saved: Any, eager: Any, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    image = random.random((1, *shape, 1), np.float32)
    corners = np.sort(random.random((1, 8, 2, 2), np.float32), axis=2).reshape(1, 8, 4)
    answers = saved(image=tf.constant(image), regions=tf.constant(corners))
    for name, expected in eager(tf.constant(image), tf.constant(corners)).items():
        scale = max(1.0, float(np.max(np.abs(expected))))
        if not np.allclose(answers[name], expected, rtol=ROUNDING, atol=ROUNDING * scale):
            raise ExportError(
                f"the detector's {name} differ between the SavedModel and the network in memory"
            )


def _mean(losses: tf.Tensor, of: tf.Tensor, over: tf.Tensor) -> tf.Tensor:
    """The sum where `of` is true, over the number of places where `over` is."""
    return tf.reduce_sum(tf.where(of, losses, 0.0)) / tf.maximum(
        tf.reduce_sum(tf.cast(over, tf.float32)), 1.0
    )


def _normal(deviation: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=deviation)
