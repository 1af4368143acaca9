"""Train the Mask R-CNN: whole mammograms to boxes and masks, in three stages (see
tfmammo/detection/mask_rcnn.py).

python train/mask_rcnn.py --config configs/mask_rcnn.yaml --set data.name=inbreast data.root=DIR
model.checkpoint=COCO
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from tfmammo import cli, datasets, filesystem
from tfmammo import config as configuration
from tfmammo.config import Experiment, TrainingConfig
from tfmammo.data.whole import make_whole
from tfmammo.detection import mask_rcnn
from tfmammo.detection.training import refuse_unused_size, seen, validate
from tfmammo.export import read_card
from tfmammo.training import folder, loop, script, workers

log = logging.getLogger("tfmammo.train.mask_rcnn")


def main() -> None:
    """Read the config, split the mammograms by patient, train stage after stage, each from the one
    before, export.
    """
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, mask_rcnn.MaskRCNNConfig)
    workers.refuse(
        experiment.training, "the Mask R-CNN of tf-models-official is trained by one process"
    )
    script.prepare(experiment.training)
    refuse_unused_size(chosen.set, experiment.data)
    mask_rcnn.check(experiment)
    output = chosen.output or script.default_output(experiment)
    data = experiment.data
    model = experiment.model
    train, held_out = datasets.datasets(data, output, partial(make_whole, normal=model.normal))

    patients = seen(model.checkpoint)
    start = None
    for stage, training in model.stages(experiment.training):
        place = output if stage == "all" else output / stage
        place.mkdir(parents=True, exist_ok=True)
        filesystem.write_atomically(place / folder.INITIAL_PATIENTS, "\n".join(patients))
        log.info("stage %s", stage)
        build = partial(mask_rcnn.MaskRCNN, model, data.shape, len(data.kinds), stage, start)
        metrics = loop.fit(
            build,
            staged(experiment, stage, training),
            train,
            held_out,
            place,
            validate,
            write=mask_rcnn.write,
        )
        patients = read_card(place / "export")["train_patients"]
        start = Path(place / "export" / mask_rcnn.CHECKPOINT)
    script.summary(experiment, metrics, held_out, output)


def staged(
    experiment: Experiment[Any], stage: mask_rcnn.Stage, training: TrainingConfig
) -> Experiment[Any]:
    """The experiment of a stage, with its own length; the network of an early one is no version in
    the registry.
    """
    registered = experiment.tracking.register_models and stage == "all"
    tracking = experiment.tracking.model_copy(update={"register_models": registered})
    return experiment.model_copy(update={"training": training, "tracking": tracking})


if __name__ == "__main__":
    cli.run(main)
