"""Mask R-CNN: boxes and outlines of masses in whole mammograms, by which Lin et al.

(2019) judge their blended masses.

Network and losses are tf-models-official's (extra "detection"), ResNet-50 with a feature pyramid by
default; data, loop, checkpoints and tracking are the house's. Unlike the SSD's API it needs no
environment variable, and its exports need TensorFlow alone.

    L_det = L_cls + lambda_loc L_loc + lambda_seg L_seg        Eq. (6), of each region; the losses
    of the region proposal
                                                               network and weight decay are added,
                                                               with weight 1

Training is in three stages, each from the one before (see train/mask_rcnn.py): "heads" (all but the
ResNet), "upper" (from stage 4 of the ResNet, its blocks conv4 and conv5, up) and "all", of 30, 30
and 40 epochs. training.steps is the number of all three together, in that proportion, so that
training sets of any size are trained equally long. What is frozen keeps its BatchNorm averages as
well.

Departures, and what the paper's text leaves open:
- Masks: a mammogram's masks are one union; a lesion's is what of it lies in the lesion's box. Where
  boxes of two lesions
  overlap, each shows a part of the other. A lesion without outline is its box.
- The lambdas are 1. Adam with a linear warm-up, then constant (or falling, `decay`), with clipped
  gradients; anew in every stage.
- COCO weights go into ResNet, pyramid and proposals; what knows classes starts anew.
- The ResNet's BatchNorm is frozen (statistics, scale and shift) where it comes from a checkpoint,
  as in the implementation whose schedule
  of heads, stage 4 up and all the paper's is (Abdulla 2017): two mammograms a step are too few to
  estimate statistics from.
  `batch_norm: running` estimates them all the same, and so does a training from random weights,
  which has no others. Pyramid and heads
  always do: Abdulla's pyramid has no BatchNorm, and the heads start anew here.
- BatchNorm's averages decay by 0.97 a step and not 0.997, as trainings here are short.
- Normal mammograms are trained on too (`normal`), where the paper's "approximately three times" of
  93 images and 200 synthetic ones leaves
  them out. Normal is what the archive calls so and marks no lesion in: of INbreast BI-RADS 1, by
  its authors 67 mammograms. Those with
  other findings alone are neither trained on nor judged, so that false positives per image are
  counted over other images than the paper's.
- Detections are kept from a probability of 0.001 (0.05 in tf-models-official), as FROC asks for the
  unsure ones; overlapping
  boxes are merged above an IoU of 0.3 (0.5): two masses hardly overlap.
- Which anchors and proposals a step learns from is drawn by TensorFlow's own generator: a resumed
  run draws others.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tfmammo.config import Experiment, Frozen, TrainingConfig
from tfmammo.detection.detections import MASKS
from tfmammo.detection.training import (
    ROUNDING,
    Network,
    learning_rate,
    panels,
    refuse_copies,
    refuse_sides,
    sides,
)
from tfmammo.errors import DetectionError, ExportError
from tfmammo.export import SIGNATURE
from tfmammo.optimization import build, minimize

Stage = Literal["heads", "upper", "all"]
# px: rows and columns of the image are multiples of it, the stride of the pyramid's highest level
STEP = 64
SAVED_MODEL = "saved_model"
CHECKPOINT = "checkpoint"  # of an export, laid out as tf-models-official's
# the last layer of the ResNet's stage 3 in tf-models-official; its l2 to l5 are conv2 to conv5
STAGE_3 = "block_group_l3"
LOSSES = ("rpn_score_loss", "rpn_box_loss", "frcnn_cls_loss", "frcnn_box_loss", "mask_loss")


class MaskRCNNConfig(Frozen):
    """Network and optimisation; see *Departures* in the module."""

    checkpoint: Path | None = None
    """Of a Mask R-CNN of tf-models-official with the same depth and filters (of COCO, or
    "checkpoint" of an export here), a folder or a prefix, from which ResNet, pyramid and proposals
    start; None: random weights.
    """
    batch_norm: Literal["frozen", "running"] | None = None
    """Of the ResNet: "frozen" as the checkpoint has it, or "running" with each step's statistics;
    None: frozen where there is a checkpoint.
    """
    depth: Literal[10, 18, 26, 34, 50, 101, 152] = 50
    """Of the ResNet."""
    filters: PositiveInt = 256
    """Channels of pyramid and heads."""
    fully_connected: PositiveInt = 1024
    """Width of the box head; 256 and 1024, as COCO weights need them."""
    anchor_scale: PositiveFloat = 8.0
    """Side of a level's anchors over its stride, which is 4 to 64 px."""
    anchor_ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    """Width over height."""
    proposals: PositiveInt = 1000
    """Regions kept."""
    rois: int = Field(default=512, ge=4)
    """Regions that a step learns from, per mammogram; it learns from half as many anchors."""
    lambda_loc: NonNegativeFloat = 1.0
    """Of Eq. (6)."""
    lambda_seg: NonNegativeFloat = 1.0
    """Of Eq. (6)."""
    regularisation: NonNegativeFloat = 4e-5
    """Weight decay."""
    nms_iou: float = Field(default=0.3, gt=0, le=1)
    """Boxes that overlap more are merged."""
    detections: PositiveInt = 20
    """Most per mammogram."""
    normal: bool = True
    """Train on normal mammograms too."""
    heads_epochs: NonNegativeInt = 30
    """Of the first two stages, 0 leaves one out; the third has training.epochs. Where
    training.steps is given the stages share it in the proportion of their epochs.
    """
    upper_epochs: NonNegativeInt = 30
    """Of the first two stages, 0 leaves one out; the third has training.epochs. Where
    training.steps is given the stages share it in the proportion of their epochs.
    """
    learning_rate: PositiveFloat = 1e-4
    warmup: NonNegativeInt = 100
    """Steps of each stage until learning_rate is reached."""
    decay: PositiveInt | None = None
    """Steps of each over which it then falls to 0, along half a cosine; None: it stays."""
    clip: PositiveFloat = 10.0
    """Largest global norm of the gradient."""

    @model_validator(mode="after")
    def _consistent(self) -> MaskRCNNConfig:
        if self.batch_norm == "frozen" and not self.checkpoint:
            raise ValueError(
                "batch_norm frozen needs a checkpoint; from random weights take batch_norm running"
            )
        return self

    @property
    def frozen_norm(self) -> bool:
        """Whether the ResNet's BatchNorm stays as its checkpoint has it."""
        return (self.batch_norm or ("frozen" if self.checkpoint else "running")) == "frozen"

    def stages(self, training: TrainingConfig) -> list[tuple[Stage, TrainingConfig]]:
        """The stages in order, each with its own length.

        Without training.steps each has its epochs, the last one training.epochs; with it they share
        the steps in that proportion.

        Raises:
            DetectionError: There are fewer steps than stages.
        """
        lengths: dict[Stage, int] = {
            "heads": self.heads_epochs,
            "upper": self.upper_epochs,
            "all": training.epochs,
        }
        lengths = {stage: epochs for stage, epochs in lengths.items() if epochs}
        if training.steps is None:
            return [
                (stage, training.model_copy(update={"epochs": epochs}))
                for stage, epochs in lengths.items()
            ]
        if training.steps < len(lengths):
            raise DetectionError(
                f"training.steps: {training.steps} steps are too few for the stages "
                f"{', '.join(lengths)}"
            )
        ends = [
            training.steps * sum([*lengths.values()][: place + 1]) // sum(lengths.values())
            for place in range(len(lengths))
        ]
        shares = np.maximum(np.diff(ends, prepend=0), 1)
        shares[-1] = training.steps - shares[:-1].sum()
        return [
            (stage, training.model_copy(update={"steps": int(steps)}))
            for stage, steps in zip(lengths, shares, strict=True)
        ]


def check(experiment: Experiment[MaskRCNNConfig]) -> None:
    """Refuse what a detector can't do with the sections that all systems share, before any
    mammogram is read.

    Raises:
        DetectionError: Names the key, or the extra that is missing.
    """
    data = experiment.data
    training = experiment.training
    if training.precision != "float32":
        raise DetectionError(
            "training.precision: tf-models-official trains in float32 here, not in "
            f"{training.precision}"
        )
    if training.initial:
        raise DetectionError(
            "training.initial: a Mask R-CNN starts from model.checkpoint, a checkpoint of "
            "tf-models-official"
        )
    refuse_sides(data, STEP, STEP, ", for the levels of the pyramid")
    refuse_copies(data, "a Mask R-CNN")
    experiment.model.stages(training)
    _api()


def settings(config: MaskRCNNConfig, shape: tuple[int, int], classes: int) -> dict[str, Any]:
    """What differs from tf-models-official's experiment maskrcnn_resnetfpn_coco, as the fields of
    its task.

    Args:
        shape: Rows and columns of the image, px.
        classes: Kinds of lesions, without background.
    """
    filters = {"num_filters": config.filters}
    proposals = {
        f"{prefix}{name}": config.proposals
        for prefix in ("", "test_")
        for name in ("num_proposals", "pre_nms_top_k")
    }
    proposals["pre_nms_top_k"] *= 2  # as there
    model = {
        "num_classes": classes + 1,
        "input_size": [*shape, 3],
        "anchor": {"anchor_size": config.anchor_scale, "aspect_ratios": list(config.anchor_ratios)},
        "backbone": {"type": "resnet", "resnet": {"model_id": config.depth}},
        "decoder": {"type": "fpn", "fpn": filters},
        "rpn_head": filters,
        "detection_head": {**filters, "fc_dims": config.fully_connected},
        "mask_head": filters,
        "roi_generator": proposals,
        "roi_sampler": {"num_sampled_rois": config.rois},
        # a quarter of the regions show a lesion at most
        "mask_sampler": {"num_sampled_masks": config.rois // 4},
        "detection_generator": {
            "pre_nms_score_threshold": 0.001,
            "nms_iou_threshold": config.nms_iou,
            "max_num_detections": config.detections,
        },
        "norm_activation": {"norm_momentum": 0.97},
    }
    losses = {
        "l2_weight_decay": config.regularisation,
        "frcnn_box_weight": config.lambda_loc,
        "mask_weight": config.lambda_seg,
    }
    # Its loss of the proposals is a sum over the anchors drawn, by the number of regions drawn: 256
    # by 512 there.
    data = {"parser": {"rpn_batch_size_per_im": config.rois // 2}}
    return {
        "init_checkpoint": None,
        "annotation_file": None,
        "model": model,
        "losses": losses,
        "train_data": data,
    }


class MaskRCNN:
    """The detector with its optimizer; built on construction.

    Args:
        config: The network.
        size: Rows and columns of the image, or the side of a square one, multiples of 64 px.
        classes: Kinds of lesions.
        stage: Of the training, says what is frozen.
        start: The checkpoint that the stage before exported, in place of config.checkpoint; all
            weights start from it.

    Raises:
        DetectionError: The extra is missing, or a checkpoint can't be read.
    """

    name = "mask_rcnn"
    not_for_xla = "it is tf-models-official's, and its step has not been tried so"

    def __init__(
        self,
        config: MaskRCNNConfig | None = None,
        size: int | tuple[int, int] = 1024,
        classes: int = 1,
        stage: Stage = "all",
        start: Path | None = None,
    ) -> None:
        self.config = config or MaskRCNNConfig()
        self.shape = sides(size)
        self.classes = classes
        self.api = _api()
        task = self.api.get_exp_config("maskrcnn_resnetfpn_coco").task
        task.override(settings(self.config, self.shape, classes), is_strict=True)
        self.task = self.api.MaskRCNNTask(task)
        self.model = self.task.build_model()
        self.parse = _parser(self.api, task).parse_fn(is_training=True)
        if start:
            _start_from(dict(self.model.checkpoint_items), start)
        elif self.config.checkpoint:
            parts = self.model.checkpoint_items
            _start_from(
                {name: parts[name] for name in ("backbone", "decoder", "rpn_head")},
                self.config.checkpoint,
            )
        # before anything is frozen: then all stages have their variables in one order
        network = Network(self.model)
        _freeze(self.model, stage)
        if self.config.frozen_norm:
            _freeze_norm(self.model.backbone)
        network.trainable_variables = list(self.model.trainable_variables)
        self.networks: dict[str, Any] = {"detector": network}
        schedule = learning_rate(self.config.learning_rate, self.config.warmup, self.config.decay)
        self.optimizers = {
            "detector": build(
                keras.optimizers.Adam(schedule, global_clipnorm=self.config.clip, name="detector"),
                network,
            )
        }
        spec = tf.TensorSpec([None, *self.shape, 1], tf.float32, "image")
        self.detect = tf.function(self._detect, input_signature=[spec])

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step down Eq. (6), the losses of the proposals and weight decay.

        Args:
            batch: "image" float32 [batch, rows, cols, 1] in [0, 1], "mask" the same shape, 0 or 1,
                "boxes" float32 [batch, k, 4] in [0, 1], "classes" int32 [batch, k]; see data.whole.

        Returns:
            float32 scalars: the whole loss and its parts, unweighted.
        """
        image, labels = self._targets(batch)
        with tf.GradientTape() as tape:
            known = {
                name: labels[name]
                for name in ("anchor_boxes", "gt_boxes", "gt_classes", "gt_masks")
            }
            outputs = self.model(
                image, image_shape=labels["image_info"][:, 1], training=True, **known
            )
            losses = self.task.build_losses(outputs, labels, aux_losses=self.model.losses)
            loss = losses["total_loss"]
        minimize(loss, self.networks["detector"], self.optimizers["detector"], tape)
        return {
            "detector_loss": loss,
            **{name: losses[name] for name in LOSSES},
            "weight_decay": loss - losses["model_loss"],
        }

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Panels for the image grid.

        Args:
            batch: "image" and "mask".

        Returns:
            float32 [batch, rows, cols, 1] in [0, 1].
        """
        return panels(batch, self.detect(batch["image"]))

    def functions(self) -> dict[str, Callable]:
        """What validation calls: image -> boxes, scores and classes from 0 on.

        The export is `serving`.
        """

        @tf.function(input_signature=[tf.TensorSpec([None, *self.shape, 1], tf.float32, "image")])
        def detector(image: tf.Tensor) -> dict[str, tf.Tensor]:
            found = self.detect(image)
            boxes, scores, classes = (
                found[f"detection_{name}"] for name in ("boxes", "scores", "classes")
            )
            return {"boxes": boxes, "scores": scores, "classes": tf.maximum(classes - 1, 0)}

        return {"detector": detector}

    def serving(self) -> Any:
        """The exported function: float32 [n, rows, cols, 3] in [0, 255] -> as `detect`."""

        @tf.function(
            input_signature=[tf.TensorSpec([None, *self.shape, 3], tf.float32, "input_tensor")]
        )
        def serve(input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.detect(tf.reduce_mean(input_tensor, axis=-1, keepdims=True) / 255)

        return serve

    def _detect(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Names as the Object Detection API's.

        Args:
            image: float32 [batch, rows, cols, 1] in [0, 1].

        Returns:
            float32 "detection_boxes" [batch, n, 4] in [0, 1], "detection_scores" [batch, n],
            falling, "detection_classes" [batch, n] from 1 on, "num_detections" [batch]; beyond it
            all is 0. "detection_masks" [batch, n, 28, 28] in [0, 1]: how probable the lesion is,
            from its box's upper left to its lower right corner.
        """
        image = self.api.normalize_image(tf.repeat(image, 3, axis=-1))
        shape = tf.tile(tf.constant([self.shape], tf.float32), [tf.shape(image)[0], 1])
        found = self.model(image, image_shape=shape, training=False)
        number = tf.cast(found["num_detections"], tf.float32)
        there = tf.sequence_mask(found["num_detections"], self.config.detections, tf.float32)
        return {
            "detection_boxes": found["detection_boxes"] / (self.shape * 2) * there[..., tf.newaxis],
            # -1 where there is nothing
            "detection_scores": tf.maximum(found["detection_scores"], 0.0) * there,
            "detection_classes": tf.cast(found["detection_classes"], tf.float32) * there,
            "num_detections": number,
            MASKS: found[MASKS] * there[..., tf.newaxis, tf.newaxis],
        }

    def _targets(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, Any]]:
        """The images as the network wants them, and what it has to find there, by
        tf-models-official's parser.
        """
        parts = [tf.unstack(batch[name]) for name in ("image", "mask", "boxes", "classes")]
        examples = [self.parse(_decoded(*one)) for one in zip(*parts, strict=True)]
        images, labels = zip(*examples, strict=True)
        return tf.stack(images), tf.nest.map_structure(lambda *values: tf.stack(values), *labels)


def _decoded(
    image: tf.Tensor, mask: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor
) -> dict[str, tf.Tensor]:
    """One example as tf-models-official's decoders give it; a box that is not there is left out."""
    there = boxes[:, 2] > boxes[:, 0]
    boxes = tf.boolean_mask(boxes, there)
    classes = tf.boolean_mask(classes, there)
    return {
        "image": tf.repeat(image, 3, axis=-1),
        "groundtruth_boxes": boxes,
        "groundtruth_classes": tf.cast(classes, tf.int64) + 1,
        "groundtruth_is_crowd": tf.zeros_like(classes, tf.bool),
        # the parser cuts out the boxes
        "groundtruth_instance_masks": tf.repeat(
            mask[tf.newaxis, ..., 0], tf.shape(boxes)[0], axis=0
        ),
    }


def _parser(api: SimpleNamespace, task: Any) -> Any:
    model = task.model
    parser = task.train_data.parser
    return api.Parser(
        output_size=model.input_size[:2],
        min_level=model.min_level,
        max_level=model.max_level,
        num_scales=model.anchor.num_scales,
        aspect_ratios=model.anchor.aspect_ratios,
        anchor_size=model.anchor.anchor_size,
        rpn_match_threshold=parser.rpn_match_threshold,
        rpn_unmatched_threshold=parser.rpn_unmatched_threshold,
        rpn_batch_size_per_im=parser.rpn_batch_size_per_im,
        rpn_fg_fraction=parser.rpn_fg_fraction,
        max_num_instances=parser.max_num_instances,
        include_mask=True,
        mask_crop_size=parser.mask_crop_size,
    )


def _freeze(model: Any, stage: Stage) -> None:
    """What a stage does not train; its BatchNorm then takes its averages and leaves them as they
    are.
    """
    layers = model.backbone.layers
    if stage == "heads":
        model.backbone.trainable = False
    elif stage == "upper":
        last = [layer.name for layer in layers].index(STAGE_3)
        for layer in layers[: last + 1]:
            layer.trainable = False


def _freeze_norm(backbone: Any) -> None:
    """BatchNorm takes the checkpoint's averages, and neither they nor its scale and shift are
    trained.
    """
    for layer in backbone.submodules:
        if type(layer).__name__ in ("BatchNormalization", "SyncBatchNormalization"):
            layer.trainable = False


def _start_from(parts: dict[str, Any], checkpoint: Path) -> None:
    prefix = tf.train.latest_checkpoint(str(checkpoint)) if checkpoint.is_dir() else str(checkpoint)
    if prefix is None or not tf.io.gfile.glob(f"{prefix}.index"):
        raise DetectionError(
            f"model.checkpoint: {checkpoint} is neither a checkpoint nor a folder with one"
        )
    try:
        tf.train.Checkpoint(**parts).read(prefix).expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError):
        raise DetectionError(
            f"model.checkpoint: {checkpoint} is damaged, or of another depth, width or number of "
            "anchors"
        ) from None


def write(room: Any, folder: Path) -> dict[str, Any]:
    """Export as a SavedModel with the Object Detection API's signature, and a checkpoint to go on
    from.

    Args:
        room: A MaskRCNN.
        folder: Exists and is empty.

    Returns:
        The card's description of the function "saved_model".

    Raises:
        ExportError: The SavedModel answers otherwise than the network in memory.
    """
    network = room.networks["detector"]
    serve = room.serving().get_concrete_function()
    tf.train.Checkpoint(**room.model.checkpoint_items).save(str(folder / CHECKPOINT / "ckpt"))
    module = tf.Module()
    module.weights = network.variables
    tf.saved_model.save(module, str(folder / SAVED_MODEL), signatures={SIGNATURE: serve})
    image = np.random.default_rng(0).random((1, *room.shape, 1), np.float32)
    loaded = tf.saved_model.load(str(folder / SAVED_MODEL))
    saved = loaded.signatures[SIGNATURE](
        input_tensor=tf.constant(255 * np.repeat(image, 3, axis=-1))
    )
    for name, known in room.detect(tf.constant(image)).items():
        if not np.allclose(saved[name], known, rtol=ROUNDING, atol=ROUNDING):
            raise ExportError(
                f"the detector's {name} differ between the SavedModel and the network in memory"
            )
    described = {
        name: {"shape": value.shape.as_list(), "dtype": value.dtype.name, "range": None}
        for name, value in saved.items()
    }
    inputs = {
        "input_tensor": {"shape": [None, *room.shape, 3], "dtype": "float32", "range": [0.0, 255.0]}
    }
    variables = [
        f"{variable.name} {'x'.join(map(str, variable.shape)) or 'scalar'}"
        for variable in network.variables
    ]
    return {SAVED_MODEL: {"inputs": inputs, "outputs": described, "variables": variables}}


def _api() -> SimpleNamespace:
    """The parts of tf-models-official."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its old idioms, and those of what it imports
            from official.core.exp_factory import get_exp_config
            from official.vision.dataloaders.maskrcnn_input import Parser
            from official.vision.ops.preprocess_ops import normalize_image
            from official.vision.tasks.maskrcnn import MaskRCNNTask
    except ImportError as error:
        raise DetectionError(
            f"tf-models-official is missing ({error.name}); install it: pip install "
            '"tfmammo[detection]"'
        ) from None
    # it warns of what tf-models-official's sources are deprecated for
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return SimpleNamespace(
        get_exp_config=get_exp_config,
        Parser=Parser,
        normalize_image=normalize_image,
        MaskRCNNTask=MaskRCNNTask,
    )
