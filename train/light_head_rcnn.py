"""Train Light-Head R-CNN: whole mammograms to boxes.

See tfmammo/detection/light_head_rcnn.py.

tfmammo train light_head_rcnn --config light_head_rcnn --set data.name=ddsm
data.root=DIR
"""

from functools import partial

from tfmammo import cli
from tfmammo.data.whole import make_whole
from tfmammo.detection import light_head_rcnn
from tfmammo.detection.training import check_unused_size, list_seen_patients, validate
from tfmammo.training import script


def main() -> None:
    """Read the config, split the mammograms by patient, train, export."""
    with script.start(__doc__, light_head_rcnn.LightHeadRCNNConfig) as command:
        data = command.experiment.data
        model = command.experiment.model
        check_unused_size(command.overrides, data)
        light_head_rcnn.check(command.experiment)
        train, held_out = command.open_subsets(partial(make_whole, normal=model.normal))
        build = partial(light_head_rcnn.LightHeadRCNN, model, data.shape, len(data.kinds))
        write = light_head_rcnn.write
        seen = list_seen_patients(data, model.normal)
        command.fit(
            build, train, held_out, validate, monitor="recall", seen_patients=seen, write=write
        )


if __name__ == "__main__":
    cli.run(main)
