"""Train the Mask R-CNN: whole mammograms to boxes and masks, in three stages.

See tfmammo/detection/mask_rcnn.py.

tfmammo train mask_rcnn --config mask_rcnn --set data.name=inbreast data.root=DIR
model.checkpoint=COCO
"""

import logging
from functools import partial
from pathlib import Path

from tfmammo import cli
from tfmammo.data.whole import make_whole
from tfmammo.detection import mask_rcnn
from tfmammo.detection.training import check_unused_size, list_seen_patients, validate
from tfmammo.tracking.export import read_card
from tfmammo.training import loop, script

log = logging.getLogger("tfmammo.train.mask_rcnn")
NOT_FOR_WORKERS = "the Mask R-CNN of tf-models-official is trained by one process"


def main() -> None:
    """Read the config, split the mammograms by patient, train stage after stage, export."""
    with script.start(__doc__, mask_rcnn.MaskRCNNConfig, NOT_FOR_WORKERS) as command:
        experiment = command.experiment
        data = experiment.data
        model = experiment.model
        check_unused_size(command.overrides, data)
        mask_rcnn.check(experiment)
        train, held_out = command.open_subsets(partial(make_whole, normal=model.normal))
        patients = list_seen_patients(data, model.normal, model.checkpoint)
        start: Path | None = None  # the weights of the stage before
        for stage, training in model.stages(experiment.training):
            log.info("stage %s", stage)
            # an early stage has a folder of its own, and registers no version
            output = command.output if stage == "all" else command.output / stage
            registered = experiment.tracking.register_models and stage == "all"
            tracking = experiment.tracking.model_copy(update={"register_models": registered})
            metrics = loop.Training(
                partial(mask_rcnn.MaskRCNN, model, data.shape, len(data.kinds), stage, start),
                experiment.model_copy(update={"training": training, "tracking": tracking}),
                train,
                held_out,
                output,
                validate,
                monitor="recall",
                seen_patients=patients,
                write=mask_rcnn.write,
            ).fit()
            patients = read_card(output / "export")["train_patients"]
            start = output / "export" / mask_rcnn.CHECKPOINT
        script.print_summary(experiment, metrics, held_out, command.output)


if __name__ == "__main__":
    cli.run(main)
