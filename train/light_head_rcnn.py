"""Train Light-Head R-CNN: whole mammograms to boxes (see tfmammo/detection/light_head_rcnn.py).

python train/light_head_rcnn.py --config configs/light_head_rcnn.yaml --set data.name=ddsm
data.root=DIR
"""

from functools import partial

from tfmammo import cli, datasets
from tfmammo import config as configuration
from tfmammo.data.whole import make_whole
from tfmammo.detection import light_head_rcnn
from tfmammo.detection.training import refuse_unused_size, validate
from tfmammo.training import loop, script


def main() -> None:
    """Read the config, split the mammograms by patient, train, export."""
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, light_head_rcnn.LightHeadRCNNConfig)
    script.prepare(experiment.training)
    refuse_unused_size(chosen.set, experiment.data)
    light_head_rcnn.check(experiment)
    output = chosen.output or script.default_output(experiment)
    data = experiment.data
    train, held_out = datasets.datasets(
        data, output, partial(make_whole, normal=experiment.model.normal)
    )
    build = partial(light_head_rcnn.LightHeadRCNN, experiment.model, data.shape, len(data.kinds))
    metrics = loop.fit(
        build, experiment, train, held_out, output, validate, write=light_head_rcnn.write
    )
    script.summary(experiment, metrics, held_out, output)


if __name__ == "__main__":
    cli.run(main)
