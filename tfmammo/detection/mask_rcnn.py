"""Mask R-CNN: boxes and outlines of masses in whole mammograms.

Lin et al. (2019) evaluate their blended masses with it. Network and losses are
tf-models-official's (extra "detection"), by default ResNet-50 with a feature pyramid. Data, loop,
checkpoints and tracking are this package's. Unlike the SSD's API it needs no environment variable,
and its exports need TensorFlow alone.

    L_det = L_cls + lambda_loc L_loc + lambda_seg L_seg        Eq. (6), of each region

The losses of the region proposal network and weight decay are added, with weight 1.

Training has three stages, each from the one before (see train/mask_rcnn.py): "heads" (all but the
ResNet), "upper" (from stage 4 of the ResNet, its blocks conv4 and conv5, up) and "all", of 30, 30
and 40 epochs. training.steps counts all three together, in that proportion, so that training sets
of any size are trained equally long. Frozen layers keep their BatchNorm averages as well. Without
a checkpoint there is the third stage alone: what the others freeze would be random.

Deviations, and what the paper's text leaves open:
- Masks: a mammogram's masks are one union, and a lesion's mask is the part of it in the lesion's
  box. Where boxes of two lesions overlap, each shows a part of the other. A lesion without outline
  is its box.
- The lambdas are 1. Adam has a linear warm-up, then a constant rate (or a falling one, `decay`),
  with clipped gradients. It starts afresh in every stage.
- COCO weights go into ResNet, pyramid and proposals; the heads of boxes and masks start from random
  weights as a whole, though only their last layers know classes.
- Each draw of a mammogram is mirrored, turned by half or left as it is (`data.augment`); the text
  turns and resizes lesions only.
- The ResNet's BatchNorm is frozen (statistics, scale and shift) where it comes from a checkpoint,
  because two mammograms a step are too few to estimate statistics from. So does the implementation
  (Abdulla 2017) whose schedule of heads, stage 4 up and all the paper has. `batch_norm: running`
  estimates them nevertheless, and so does a run from random weights, which has no others.
  Pyramid and heads always do: Abdulla's pyramid has no BatchNorm, and the heads start from random
  weights.
- BatchNorm's averages decay by 0.97 a step and not 0.997, because runs here are short.
- Normal mammograms are trained on too, see tfmammo.detection.training. The paper's "approximately
  three times" of 93 images and 200 synthetic ones leaves them out.
- Detections have a probability of at least 0.001 (0.05 in tf-models-official), since FROC needs the
  unsure ones. Overlapping boxes are merged above an IoU of 0.3 (0.5): two masses hardly overlap.
- TensorFlow's own generator draws which anchors and proposals a step learns from: a resumed run
  draws others.
"""

from __future__ import annotations

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
from tfmammo.detection.saved_models import (
    ROUNDING,
    SAVED_MODEL,
    answer_api,
    describe_function,
    make_random_image,
    save_and_load,
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

Stage = Literal["heads", "upper", "all"]
# px: rows and columns of the image are multiples of it, the stride of the pyramid's highest level
STEP = 64
CHECKPOINT = "checkpoint"  # of an export, laid out as tf-models-official's
# the last layer of the ResNet's stage 3 in tf-models-official; its l2 to l5 are conv2 to conv5
STAGE_3 = "block_group_l3"
FROZEN_EPOCHS = 30  # of each stage with frozen layers, as the paper has it
LOSSES = ("rpn_score_loss", "rpn_box_loss", "frcnn_cls_loss", "frcnn_box_loss", "mask_loss")


class MaskRCNNConfig(Frozen):
    """Network and optimisation; see *Deviations* in the module."""

    checkpoint: Path | None = None
    """Checkpoint of a Mask R-CNN of tf-models-official with the same depth and filters (of COCO, or
    "checkpoint" of an export here), from which ResNet, pyramid and proposals start: a folder or a
    prefix. None: random weights.
    """
    batch_norm: Literal["frozen", "running"] | None = None
    """BatchNorm of the ResNet: "frozen" as the checkpoint has it, or "running" with each step's
    statistics. None: frozen where there is a checkpoint.
    """
    depth: Literal[10, 18, 26, 34, 50, 101, 152] = 50
    """Depth of the ResNet."""
    filters: PositiveInt = 256
    """Channels of pyramid and heads."""
    fully_connected: PositiveInt = 1024
    """Width of the box head; 256 and 1024, as COCO weights need them."""
    anchor_scale: PositiveFloat = 8.0
    """Side of a level's anchors over its stride, which is 4 to 64 px."""
    anchor_ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    """Width over height."""
    proposals: PositiveInt = 1000
    """Regions that the proposal network puts out."""
    rois: int = Field(default=512, ge=4)
    """Regions that a step learns from, per mammogram; it learns from half as many anchors."""
    lambda_loc: NonNegativeFloat = 1.0
    """Weight of the boxes' loss in Eq. (6)."""
    lambda_seg: NonNegativeFloat = 1.0
    """Weight of the masks' loss in Eq. (6)."""
    regularisation: NonNegativeFloat = 4e-5
    """Weight decay."""
    nms_iou: float = Field(default=0.3, gt=0, le=1)
    """IoU above which boxes are merged."""
    detections: PositiveInt = 20
    """Most detections per mammogram."""
    normal: bool = True
    """Train on normal mammograms too."""
    heads_epochs: NonNegativeInt | None = None
    """Epochs of the first stage, which freezes the ResNet; 0 leaves it out. None: the paper's 30
    where there is a checkpoint, else 0. The third stage has training.epochs. Where training.steps
    is given the stages share it in the proportion of their epochs.
    """
    upper_epochs: NonNegativeInt | None = None
    """Epochs of the second stage, which freezes the ResNet up to its stage 3; as heads_epochs."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's learning rate after the warm-up."""
    warmup: NonNegativeInt = 100
    """Steps of each stage until learning_rate is reached."""
    decay: PositiveInt | None = None
    """Steps of each stage over which it then falls to 0, along half a cosine; None: it stays."""
    clip: PositiveFloat = 10.0
    """Largest global norm of the gradient."""

    @model_validator(mode="after")
    def _consistent(self) -> MaskRCNNConfig:
        if self.batch_norm == "frozen" and not self.checkpoint:
            raise ValueError(
                "batch_norm frozen needs a checkpoint; from random weights take batch_norm running"
            )
        if not self.checkpoint and (self.heads_epochs or self.upper_epochs):
            raise ValueError(
                "heads_epochs and upper_epochs freeze layers of the ResNet, which needs a "
                "checkpoint; from random weights take 0"
            )
        return self

    @property
    def frozen_norm(self) -> bool:
        """Whether the ResNet's BatchNorm stays as its checkpoint has it."""
        return (self.batch_norm or ("frozen" if self.checkpoint else "running")) == "frozen"

    def stages(self, training: TrainingConfig) -> list[tuple[Stage, TrainingConfig]]:
        """Return the stages in order, each with its own length.

        Without training.steps each has its epochs, the last one training.epochs. With it they share
        the steps in that proportion. From random weights there is the last one alone.

        Raises:
            DetectionError: There are fewer steps than stages.
        """
        usual = FROZEN_EPOCHS if self.checkpoint else 0
        lengths: dict[Stage, int] = {
            "heads": usual if self.heads_epochs is None else self.heads_epochs,
            "upper": usual if self.upper_epochs is None else self.upper_epochs,
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
        shares[shares.argmax()] -= shares.sum() - training.steps  # which a stage of 0 was given
        return [
            (stage, training.model_copy(update={"steps": steps}))
            for stage, steps in zip(lengths, shares.tolist(), strict=True)
        ]


def check(experiment: Experiment[MaskRCNNConfig]) -> None:
    """Refuse what this detector can't do, before any mammogram is read, with DetectionError."""
    check_training(experiment.training, "a Mask R-CNN", "tf-models-official")
    check_image_size(experiment.data, STEP, STEP, ", for the levels of the pyramid")
    check_split(experiment.data, "a Mask R-CNN")
    experiment.model.stages(experiment.training)
    _import_api()


def make_settings(config: MaskRCNNConfig, shape: tuple[int, int], classes: int) -> dict[str, Any]:
    """Build what differs from tf-models-official's task; `classes` are without background."""
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
    """The detector with its optimizer.

    Args:
        size: Rows and columns of the image, or the side of a square one, multiples of 64 px.
        stage: Stage of the training, which decides what is frozen.
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
        self.shape = image_shape(size)
        self.api = _import_api()
        task = self.api.get_exp_config("maskrcnn_resnetfpn_coco").task
        task.override(make_settings(self.config, self.shape, classes), is_strict=True)
        self.task = self.api.MaskRCNNTask(task)
        self.model = self.task.build_model()
        self.parse = _make_parser(self.api, task).parse_fn(is_training=True)
        parts = dict(self.model.checkpoint_items)
        differences = "depth, width or number of anchors"
        if start:
            restore_checkpoint(start, parts, differences)
        elif self.config.checkpoint:
            without_heads = {name: parts[name] for name in ("backbone", "decoder", "rpn_head")}
            restore_checkpoint(self.config.checkpoint, without_heads, differences)
        if self.config.checkpoint:  # which a later stage comes from too
            self.pretrained = {"detector": identify_checkpoint(self.config.checkpoint)}
        # before anything is frozen: then all stages have their variables in one order
        network = Network(self.model)
        _freeze(self.model.backbone, stage, self.config.frozen_norm)
        network.trainable_variables = list(self.model.trainable_variables)
        self.networks: dict[str, Any] = {"detector": network}
        schedule = learning_rate(self.config.learning_rate, self.config.warmup, self.config.decay)
        optimizer = keras.optimizers.Adam(
            schedule, global_clipnorm=self.config.clip, name="detector"
        )
        self.optimizers = {"detector": build(optimizer, network)}
        spec = tf.TensorSpec([None, *self.shape, 1], tf.float32, "image")
        self.detect = tf.function(self._detect, input_signature=[spec])

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Take one step down Eq. (6), the losses of the proposals and weight decay.

        Args:
            batch: "image" float32 [batch, rows, cols, 1] in [0, 1], "mask" the same shape, 0 or 1,
                "boxes" float32 [batch, k, 4] in [0, 1], "classes" int32 [batch, k]; see data.whole.

        Returns:
            float32 scalars: the whole loss and its parts, unweighted.
        """
        image, labels = self._targets(batch)
        with tf.GradientTape() as tape:
            outputs = self.model(
                image,
                image_shape=labels["image_info"][:, 1],
                anchor_boxes=labels["anchor_boxes"],
                gt_boxes=labels["gt_boxes"],
                gt_classes=labels["gt_classes"],
                gt_masks=labels["gt_masks"],
                training=True,
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
        """Draw panels for the image grid, float32 [batch, rows, cols, 1] in [0, 1]."""
        return draw_panels(batch, self.detect(batch["image"]))

    def functions(self) -> dict[str, Callable]:
        """Return what validation calls; `write` exports `make_serving_function`'s."""
        return validation_functions(self.detect, self.shape, first=1)

    def make_serving_function(self) -> Any:
        """Build the exported function: float32 [n, rows, cols, 3] in [0, 255] -> as `detect`."""
        spec = tf.TensorSpec([None, *self.shape, 3], tf.float32, "input_tensor")

        @tf.function(input_signature=[spec])
        def serve(input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.detect(tf.reduce_mean(input_tensor, axis=-1, keepdims=True) / 255)

        return serve

    def _detect(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detect lesions; outputs have the Object Detection API's names.

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
        outputs = self.model(image, image_shape=shape, training=False)
        count = outputs["num_detections"]
        valid = tf.sequence_mask(count, self.config.detections, tf.float32)
        boxes = outputs["detection_boxes"] / (self.shape * 2)
        return {
            "detection_boxes": boxes * valid[..., tf.newaxis],
            # -1 where there is nothing
            "detection_scores": tf.maximum(outputs["detection_scores"], 0.0) * valid,
            "detection_classes": tf.cast(outputs["detection_classes"], tf.float32) * valid,
            "num_detections": tf.cast(count, tf.float32),
            MASKS: outputs[MASKS] * valid[..., tf.newaxis, tf.newaxis],
        }

    def _targets(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, Any]]:
        """Make the network's inputs and targets by tf-models-official's parser."""
        columns = [tf.unstack(batch[name]) for name in ("image", "mask", "boxes", "classes")]
        examples = [self.parse(_make_example(*row)) for row in zip(*columns, strict=True)]
        images, labels = zip(*examples, strict=True)
        return tf.stack(images), tf.nest.map_structure(lambda *values: tf.stack(values), *labels)


def _make_example(
    image: tf.Tensor, mask: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Make one example as tf-models-official's decoders give it, without boxes of no area."""
    has_area = boxes[:, 2] > boxes[:, 0]
    boxes = tf.boolean_mask(boxes, has_area)
    classes = tf.boolean_mask(classes, has_area)
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


def _make_parser(api: SimpleNamespace, task: Any) -> Any:
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


def _freeze(backbone: Any, stage: Stage, norm: bool) -> None:
    """Freeze what a stage does not train, and all BatchNorm if it is the checkpoint's.

    BatchNorm of frozen layers uses its averages and leaves them as they are.
    """
    if stage == "heads":
        backbone.trainable = False
    elif stage == "upper":
        last = [layer.name for layer in backbone.layers].index(STAGE_3)
        for layer in backbone.layers[: last + 1]:
            layer.trainable = False
    for layer in backbone.submodules if norm else ():
        if type(layer).__name__ in ("BatchNormalization", "SyncBatchNormalization"):
            layer.trainable = False


def write(model: Any, folder: Path) -> dict[str, Any]:
    """Export a SavedModel with the Object Detection API's signature, and a checkpoint."""
    network = model.networks["detector"]
    tf.train.Checkpoint(**model.model.checkpoint_items).save(str(folder / CHECKPOINT / "ckpt"))
    functions = {SIGNATURE: model.make_serving_function()}
    saved_model = save_and_load(network.variables, functions, folder / SAVED_MODEL)
    image = make_random_image(model.shape)
    answers = answer_api(saved_model.signatures[SIGNATURE], image)
    compare_answers("the detector", answers, model.detect(tf.constant(image)), ROUNDING)
    return {SAVED_MODEL: describe_function(model.shape, answers, network)}


def _import_api() -> SimpleNamespace:
    """Import the parts of tf-models-official."""
    with import_quietly("tf-models-official"):
        from official.core.exp_factory import get_exp_config
        from official.vision.dataloaders.maskrcnn_input import Parser
        from official.vision.ops.preprocess_ops import normalize_image
        from official.vision.tasks.maskrcnn import MaskRCNNTask
    return SimpleNamespace(
        get_exp_config=get_exp_config,
        Parser=Parser,
        normalize_image=normalize_image,
        MaskRCNNTask=MaskRCNNTask,
    )
